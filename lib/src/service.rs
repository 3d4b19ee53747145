//! Where a restorer's own (service) descriptors stand in a table while it is restored: integers
//! only, no system call.

/// Slots of the kernel's table for a highest number: FDSize of /proc/PID/status.
///
/// 64 are embedded in files_struct, then powers of two from 128 (alloc_fdtable in fs/file.c, 64-bit).
pub fn capacity(highest: Option<u32>) -> u64 {
    match highest {
        Some(highest) if highest >= 64 => (u64::from(highest) + 1).next_power_of_two(),
        _ => 64,
    }
}

/// The numbers of `count` service descriptors, highest first, in a table whose task wants the
/// numbers `wanted` (ascending): policy `tight`.
///
/// They are the highest free numbers inside the smallest capacity that holds the task's own highest
/// number, holes included, so that the table is no larger than it must be; what finds no room there
/// goes one step up. None if there is no room below `limit`, the soft RLIMIT_NOFILE.
pub fn base(wanted: &[u32], count: usize, limit: u32) -> Option<Vec<u32>> {
    let mut top = capacity(wanted.last().copied());
    loop {
        let end = top.min(limit.into()) as u32;
        let numbers = free_below(end, wanted, count);
        if numbers.len() == count {
            return Some(numbers);
        }
        if top >= limit.into() {
            return None;
        }
        top *= 2;
    }
}

/// The highest numbers below `end` that nobody wants, at most `count`, highest first.
fn free_below(end: u32, wanted: &[u32], count: usize) -> Vec<u32> {
    let mut taken =
        wanted[..wanted.partition_point(|&number| number < end)].iter().rev().peekable();
    let free = |number: &u32| taken.next_if_eq(&number).is_none();
    (0..end).rev().filter(free).take(count).collect()
}

/// Which of some moves `(from, to)` can come next without overwriting a source that still waits.
/// None if all of them are in cycles.
pub fn next_move(moves: &[(i32, i32)]) -> Option<usize> {
    moves.iter().position(|&(from, to)| from == to || moves.iter().all(|&(each, _)| each != to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_table_has_the_kernels_sizes() {
        for (highest, size) in
            [(0, 64), (63, 64), (64, 128), (127, 128), (128, 256), (4095, 4096), (4096, 8192)]
        {
            assert_eq!(capacity(Some(highest)), size, "{highest}");
        }
        assert_eq!(capacity(None), 64);
    }

    #[test]
    fn services_stand_in_the_holes_below_the_capacity() {
        assert_eq!(base(&[0, 3, 4, 5], 2, 1024), Some(vec![63, 62]));
        let full: Vec<u32> = (0..64).collect();
        assert_eq!(base(&full, 2, 1024), Some(vec![127, 126]));
        let hole: Vec<u32> = (0..64).filter(|&number| number != 9).collect();
        assert_eq!(base(&hole, 1, 1024), Some(vec![9]));
        assert_eq!(base(&full, 1, 64), None);
    }

    proptest! {
        #[test]
        fn no_service_collides_and_the_table_stays_minimal_where_there_is_room(
            wanted in prop::collection::btree_set(0u32..300, 0..250),
            count in 0usize..20,
            limit in 1u32..600,
        ) {
            let wanted: Vec<u32> = wanted.into_iter().collect();
            let room = |end: u64| {
                let end = end.min(limit.into());
                (0..end).filter(|n| !wanted.contains(&(*n as u32))).count()
            };
            let need = capacity(wanted.last().copied());
            match base(&wanted, count, limit) {
                Some(numbers) => {
                    prop_assert_eq!(numbers.len(), count);
                    for (at, number) in numbers.iter().enumerate() {
                        prop_assert!(!wanted.contains(number) && *number < limit);
                        prop_assert!(!numbers[..at].contains(number));
                        prop_assert!(u64::from(*number) < need || room(need) < count);
                    }
                }
                None => prop_assert!(room(limit.into()) < count),
            }
        }

        #[test]
        fn moves_never_overwrite_what_still_waits(
            from in prop::collection::btree_set(0i32..30, 0..12),
            seed in prop::collection::vec(0i32..30, 12),
        ) {
            let mut targets: Vec<i32> = Vec::new();
            for to in seed {
                if !targets.contains(&to) { targets.push(to) }
            }
            let mut left: Vec<(i32, i32)> = from.into_iter().zip(targets).collect();
            while let Some(next) = next_move(&left) {
                let (_, to) = left.remove(next);
                prop_assert!(left.iter().all(|&(from, _)| from != to));
            }
            // What is left are cycles: each target is a source.
            prop_assert!(left.iter().all(|&(_, to)| left.iter().any(|&(from, _)| from == to)));
        }
    }
}
