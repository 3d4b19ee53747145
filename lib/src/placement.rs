//! Placement of the service descriptors, which are the restorer's own, in a table while it is
//! restored, and the memory that a table takes: integers only, no system call. See fdkit(7).

use std::collections::HashMap;

/// A policy for the numbers of service descriptors: `--placement` of fdrestore(1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// The highest numbers below the soft RLIMIT_NOFILE, whatever the task needs.
    Rlimit,
    /// Above the task's own highest number, at the end of a table of a size that is rounded up.
    Task,
    /// The lowest free numbers: every descriptor is opened at the lowest free number too, and moved
    /// to its own at the end.
    Late,
    /// The free numbers of the smallest table that the task needs.
    #[default]
    Tight,
}

crate::word_enum!(Placement { Rlimit = "rlimit", Task = "task", Late = "late", Tight = "tight" });

/// The numbers that [`Placement::Task`] reserves for each task that shares a table.
pub const SLOTS: u32 = 16;
/// The numbers that [`Placement::Task`] leaves free above the task's own.
const PAD: u32 = 16;
/// The step of the sizes of tables for [`Placement::Task`]: 1024 bytes of pointers.
const STEP: u32 = 128;

/// The slots of a table with this highest number: FDSize of proc_pid_status(5).
///
/// 64 are embedded in files_struct; larger tables have a power of two from 128 up (alloc_fdtable in
/// fs/file.c, 64-bit).
pub fn capacity(highest: Option<u32>) -> u64 {
    match highest {
        Some(highest) if highest >= 64 => (u64::from(highest) + 1).next_power_of_two(),
        _ => 64,
    }
}

/// The bytes that the kernel allocates for a table of so many slots, beside files_struct, in which 64
/// slots are embedded: a pointer for each slot; two bits for each slot and one for each 64 slots, but
/// a cache line at least; struct fdtable (alloc_fdtable in fs/file.c, Linux 6.18, 64-bit).
pub fn bytes(capacity: u64) -> u64 {
    match capacity {
        0..=64 => 0,
        slots => 8 * slots + (slots / 4 + slots.div_ceil(64 * 64) * 8).max(64) + 56,
    }
}

/// A table for which numbers of service descriptors are sought.
#[derive(Clone, Copy, Debug, Default)]
pub struct TableNeeds<'a> {
    /// The numbers that the task will have, ascending.
    pub numbers: &'a [u32],
    /// The highest number that the caller has passed down, which counts for [`Placement::Task`].
    pub highest_inherited: Option<u32>,
    /// How many tasks share the table, at least 1.
    pub sharers: u32,
    /// The slots that the table has, or will have, before a service descriptor is placed, so that
    /// [`Placement::Tight`] cannot save them.
    pub min_capacity: u64,
    /// The soft RLIMIT_NOFILE.
    pub limit: u32,
}

/// The numbers of `count` service descriptors of each sharer of a table, highest first: sharer k
/// has those from index `k * count` on. None if there is no room below the limit.
///
/// - `rlimit`: the highest free numbers below the limit.
/// - `task`: n = max(highest, inherited) + 16 for each sharer + 16; below the smallest 128·2^k above
///   n, or if that is beyond the limit, below the limit rounded down to 128s if n fits there.
/// - `late`: the lowest free numbers.
/// - `tight`: the highest free numbers inside the smallest capacity that has room, from
///   [`TableNeeds::min_capacity`] on: nearly always the one that the task's own highest number needs.
pub fn service_numbers(
    policy: Placement,
    table: &TableNeeds<'_>,
    count: usize,
) -> Option<Vec<u32>> {
    let TableNeeds { numbers: used, highest_inherited, sharers, min_capacity, limit } = *table;
    let all = count * sharers.max(1) as usize;
    let found = match policy {
        Placement::Rlimit => highest_free(limit, used, all),
        Placement::Late => {
            let mut found = lowest_free(used, all);
            found.reverse();
            found
        }
        Placement::Tight => {
            let mut slots = capacity(None).max(min_capacity);
            loop {
                let end = slots.min(limit.into()) as u32;
                let found = highest_free(end, used, all);
                if found.len() == all || slots >= limit.into() {
                    break found;
                }
                slots *= 2;
            }
        }
        Placement::Task => {
            let highest = used.last().copied().max(highest_inherited).map_or(-1, i64::from);
            let sharers = sharers.max(1);
            let need = highest + i64::from(SLOTS * sharers) + i64::from(PAD);
            let base = base(need, limit)?;
            // 1 to 15 of the 16 were used; a sharer's range begins 16 below the one before.
            let of = |sharer: u32| (1..=count as u32).map(move |at| base - at - SLOTS * sharer);
            (0..sharers).flat_map(of).collect()
        }
    };
    (found.len() == all && found.iter().all(|&number| number < limit)).then_some(found)
}

/// The number below which [`Placement::Task`] counts down.
fn base(need: i64, limit: u32) -> Option<u32> {
    let need = u32::try_from(need).ok()?;
    let base = match need / STEP {
        0 => STEP,
        steps => STEP.checked_mul(steps.checked_add(1)?.checked_next_power_of_two()?)?,
    };
    match base {
        base if base <= limit => Some(base),
        _ => Some(limit / STEP * STEP).filter(|&base| base >= need),
    }
}

/// The highest numbers below `end` that are not used, at most `count`, highest first. `used` ascends.
fn highest_free(end: u32, used: &[u32], count: usize) -> Vec<u32> {
    let below = &used[..used.partition_point(|&number| number < end)];
    let mut used = below.iter().rev().peekable();
    let free = |number: &u32| used.next_if_eq(&number).is_none();
    (0..end).rev().filter(free).take(count).collect()
}

/// The lowest numbers that are not used, `count` of them, ascending. `used` ascends.
pub fn lowest_free(used: &[u32], count: usize) -> Vec<u32> {
    let mut used = used.iter().peekable();
    let free = |number: &u32| used.next_if_eq(&number).is_none();
    (0..=i32::MAX as u32).filter(free).take(count).collect()
}

/// Descriptors that are to be moved `(from, to)`, in an order in which none is replaced before it has
/// been moved itself: where ranges overlap, the one nearest to the free end goes first. Neither two
/// sources nor two targets are equal. A cycle is opened by a move to `spare`, a free number.
pub fn moves(wanted: &[(u32, u32)], spare: u32) -> Vec<(u32, u32)> {
    let by_source: HashMap<u32, usize> =
        wanted.iter().enumerate().map(|(at, &(from, _))| (from, at)).collect();
    let mut done = vec![false; wanted.len()];
    let mut order = Vec::with_capacity(wanted.len());
    for first in 0..wanted.len() {
        // The descriptor at the target of a move has to be moved before, and so on.
        let mut chain = Vec::new();
        let mut next = Some(first);
        while let Some(at) = next.filter(|&at| !done[at]) {
            done[at] = true;
            chain.push(at);
            next = by_source.get(&wanted[at].1).copied();
        }
        let closed = next == Some(first) && !chain.is_empty();
        match &chain[..] {
            [at] if wanted[*at].0 == wanted[*at].1 => continue,
            [.., last] if closed => {
                // The last of the chain can be moved once the first is at the spare number.
                let (from, to) = wanted[first];
                order.push((from, spare));
                let rest = chain[1..].iter().rev().map(|&at| wanted[at]);
                order.extend(rest);
                debug_assert_eq!(wanted[*last].1, from);
                order.push((spare, to));
            }
            chain => order.extend(chain.iter().rev().map(|&at| wanted[at])),
        }
    }
    order
}

/// The table of a task of a tree, for [`forecast`].
#[derive(Clone, Debug, Default)]
pub struct TablePlan {
    /// The index of the task that forks it, if that is in the tree.
    pub forker: Option<usize>,
    /// The index of the task whose table it shares, if it shares one.
    pub owner: Option<usize>,
    /// The numbers of the table, ascending.
    pub numbers: Vec<u32>,
    /// Further numbers that are open until all queues are filled, ascending.
    pub temporary: Vec<u32>,
    /// The highest number of its forker's table at the fork, service descriptors aside.
    pub highest_at_fork: Option<u32>,
    /// How many tasks share the table.
    pub sharers: u32,
    /// How many service descriptors the task has.
    pub services: usize,
}

/// FDSize of a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// The largest while the task is restored.
    pub peak: u64,
    /// The one that it is left with.
    pub end: u64,
}

/// The sizes of the tables of a tree. None for a task whose numbers, or the service descriptors
/// beside them, have no room below the limit. Parents come before children, and owners of tables
/// before those who share them.
pub fn forecast(policy: Placement, tasks: &[TablePlan], limit: u32) -> Vec<Option<Size>> {
    let mut sizes: Vec<Option<Size>> = Vec::with_capacity(tasks.len());
    // The highest service number of each task, which its children inherit.
    let mut tops: Vec<Option<u32>> = Vec::with_capacity(tasks.len());
    for task in tasks {
        if let Some(owner) = task.owner {
            tops.push(tops[owner]);
            sizes.push(sizes[owner]);
            continue;
        }
        let mut all = [&task.numbers[..], &task.temporary].concat();
        all.sort_unstable();
        let sharers = task.sharers;
        let table = TableNeeds { numbers: &all, sharers, limit, ..TableNeeds::default() };
        let placed = service_numbers(policy, &table, task.services);
        let top = placed.as_ref().and_then(|numbers| numbers.first().copied());
        let inherited = task.forker.and_then(|forker| tops[forker]).max(task.highest_at_fork);
        let peak = capacity(inherited.max(top).max(all.last().copied()));
        // A table that is shared cannot be made smaller by one of those who share it.
        let shrinks = policy == Placement::Tight && task.sharers <= 1;
        let end = if shrinks { capacity(task.numbers.last().copied()) } else { peak };
        tops.push(top);
        let fits = placed.is_some() && all.last().is_none_or(|&last| last < limit);
        sizes.push(fits.then_some(Size { peak, end }));
    }
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tight(numbers: &[u32], count: usize, limit: u32) -> Option<Vec<u32>> {
        let min_capacity = capacity(numbers.last().copied());
        let table = TableNeeds { numbers, min_capacity, limit, ..TableNeeds::default() };
        service_numbers(Placement::Tight, &table, count)
    }

    #[test]
    fn a_table_has_the_kernels_sizes() {
        for (highest, size) in
            [(0, 64), (63, 64), (64, 128), (127, 128), (128, 256), (4095, 4096), (4096, 8192)]
        {
            assert_eq!(capacity(Some(highest)), size, "{highest}");
        }
        assert_eq!(capacity(None), 64);
        // Computed from alloc_fdtable.
        for (slots, size) in [
            (64, 0),
            (128, 1144),
            (256, 2176),
            (512, 4288),
            (1024, 8512),
            (4096, 33856),
            (8192, 67656),
            (32768, 270456),
            (1048576, 8652856),
        ] {
            assert_eq!(bytes(slots), size, "{slots}");
        }
    }

    #[test]
    fn services_stand_in_the_holes_below_the_capacity() {
        assert_eq!(tight(&[0, 3, 4, 5], 2, 1024), Some(vec![63, 62]));
        let full: Vec<u32> = (0..64).collect();
        assert_eq!(tight(&full, 2, 1024), Some(vec![127, 126]));
        let hole: Vec<u32> = (0..64).filter(|&number| number != 9).collect();
        assert_eq!(tight(&hole, 1, 1024), Some(vec![9]));
        assert_eq!(tight(&full, 1, 64), None);
        // Children that need less are made before the table grows.
        let table = TableNeeds { numbers: &[0, 1, 19000], limit: 20000, ..TableNeeds::default() };
        assert_eq!(service_numbers(Placement::Tight, &table, 2), Some(vec![63, 62]));
    }

    #[test]
    fn task_gives_the_sizes_of_the_series() {
        let size = |highest: u32, limit: u32| {
            let table = TableNeeds { numbers: &[highest], limit, ..TableNeeds::default() };
            let placed = service_numbers(Placement::Task, &table, 15)?;
            assert!(placed.iter().all(|&number| number > highest));
            Some(capacity(placed.first().copied().max(Some(highest))))
        };
        for (range, is) in [(0..=95, 128), (96..=223, 256), (224..=479, 512)] {
            for highest in [*range.start(), *range.end()] {
                assert_eq!(size(highest, 20000), Some(is), "{highest}");
            }
        }
        // Near the limit: rounded down to 128s, or nothing.
        assert_eq!(base(19000 + 32, 20000), Some(19968));
        assert_eq!(base(19936 + 32, 20000), Some(19968));
        assert_eq!(base(19937 + 32, 20000), None);
        assert_eq!(size(95, 100), None);
        // Inherited numbers count, and each sharer has 16 of its own.
        let mut table =
            TableNeeds { numbers: &[3], highest_inherited: Some(96), ..TableNeeds::default() };
        table.limit = 1000;
        assert_eq!(service_numbers(Placement::Task, &table, 1), Some(vec![255]));
        table = TableNeeds { numbers: &[3], sharers: 5, limit: 1000, ..TableNeeds::default() };
        assert_eq!(service_numbers(Placement::Task, &table, 1), Some(vec![127, 111, 95, 79, 63]));
        table = TableNeeds { numbers: &[50], sharers: 5, limit: 1000, ..TableNeeds::default() };
        assert_eq!(service_numbers(Placement::Task, &table, 1).unwrap()[0], 255);
        // A task without descriptors needs no number for them: 16 for each of 7, and 15 above.
        table = TableNeeds { sharers: 7, limit: 1000, ..TableNeeds::default() };
        assert_eq!(service_numbers(Placement::Task, &table, 1).unwrap()[0], 127);
    }

    #[test]
    fn late_takes_the_lowest_numbers_below_the_limit() {
        let late = |numbers: &[u32], count, limit| {
            let table = TableNeeds { numbers, limit, ..TableNeeds::default() };
            service_numbers(Placement::Late, &table, count)
        };
        assert_eq!(late(&[0, 1, 3], 3, 6), Some(vec![5, 4, 2]));
        assert_eq!(late(&[0, 1, 3], 3, 5), None);
        assert_eq!(lowest_free(&[0, 1, 3, 9], 4), [2, 4, 5, 6]);
        assert_eq!(lowest_free(&[], 2), [0, 1]);
        assert_eq!(lowest_free(&[1], 0), [0_u32; 0]);
    }

    #[test]
    fn each_policy_has_the_name_of_the_command_line() {
        let names = Placement::ALL.map(Placement::name);
        assert_eq!(names, ["rlimit", "task", "late", "tight"]);
        assert_eq!(Placement::default(), Placement::Tight);
    }

    #[test]
    fn a_range_that_moves_up_goes_highest_first_and_a_cycle_through_the_spare() {
        assert_eq!(moves(&[(3, 4), (4, 5), (5, 6)], 99), [(5, 6), (4, 5), (3, 4)]);
        assert_eq!(moves(&[(4, 3), (5, 4), (7, 7)], 99), [(4, 3), (5, 4)]);
        assert_eq!(moves(&[(1, 2), (2, 1)], 99), [(1, 99), (2, 1), (99, 2)]);
    }

    #[test]
    fn the_forecast_says_what_a_big_parent_does_to_its_children() {
        let parent =
            TablePlan { numbers: vec![0, 1, 2, 19000], services: 2, ..TablePlan::default() };
        let child = TablePlan {
            forker: Some(0),
            numbers: vec![0, 1, 2],
            highest_at_fork: Some(2),
            services: 2,
            ..TablePlan::default()
        };
        let child_of =
            |policy| forecast(policy, &[parent.clone(), child.clone()], 20000)[1].unwrap();
        assert_eq!(child_of(Placement::Rlimit), Size { peak: 32768, end: 32768 });
        assert_eq!(child_of(Placement::Task), Size { peak: 32768, end: 32768 });
        assert_eq!(child_of(Placement::Late), Size { peak: 64, end: 64 });
        assert_eq!(child_of(Placement::Tight), Size { peak: 64, end: 64 });
    }

    #[test]
    fn what_waits_for_a_queue_takes_room_and_gives_it_back() {
        let numbers: Vec<u32> = (0..64).collect();
        let task =
            TablePlan { numbers, temporary: vec![64, 65], services: 1, ..TablePlan::default() };
        let of = |policy| forecast(policy, std::slice::from_ref(&task), 1024)[0].unwrap();
        assert_eq!(of(Placement::Tight), Size { peak: 128, end: 64 });
        assert_eq!(of(Placement::Late), Size { peak: 128, end: 128 });
    }

    #[test]
    fn a_table_that_has_no_room_below_the_limit_has_no_size() {
        let of = |numbers: Vec<u32>, services, limit| {
            let task = TablePlan { numbers, services, ..TablePlan::default() };
            forecast(Placement::Late, &[task], limit)[0]
        };
        assert_eq!(of((0..64).collect(), 0, 64), Some(Size { peak: 64, end: 64 }));
        // The numbers fit, and a service descriptor does not.
        assert_eq!(of((0..64).collect(), 1, 64), None);
        // The service descriptor fits, and the numbers do not.
        assert_eq!(of(vec![64], 1, 64), None);
        assert_eq!(of(vec![63], 1, 64), Some(Size { peak: 64, end: 64 }));
    }

    #[test]
    fn a_task_that_shares_a_table_has_the_size_of_its_owner() {
        let owner =
            TablePlan { numbers: vec![200], sharers: 2, services: 1, ..TablePlan::default() };
        let sharer = TablePlan { owner: Some(0), ..TablePlan::default() };
        let child = TablePlan { forker: Some(1), ..TablePlan::default() };
        let sizes = forecast(Placement::Rlimit, &[owner.clone(), sharer.clone(), child], 1024);
        let shared = Some(Size { peak: 1024, end: 1024 });
        assert_eq!(sizes, [shared, shared, shared]);
        // Each who shares it has service descriptors of its own.
        let full = TablePlan { numbers: (0..63).collect(), ..owner.clone() };
        let sizes = forecast(Placement::Late, &[full, sharer.clone()], 1024);
        assert_eq!(sizes, [Some(Size { peak: 128, end: 128 }); 2]);
        // Nobody who shares a table makes it smaller.
        let mut high = owner;
        high.temporary = vec![300];
        let sizes = forecast(Placement::Tight, &[high, sharer], 1024);
        assert_eq!(sizes, [Some(Size { peak: 512, end: 512 }); 2]);
    }

    proptest! {
        #[test]
        fn no_service_collides_and_tight_stays_minimal_where_there_is_room(
            wanted in prop::collection::btree_set(0u32..300, 0..250),
            count in 0usize..15,
            sharers in 1u32..4,
            limit in 1u32..900,
        ) {
            let wanted: Vec<u32> = wanted.into_iter().collect();
            let all = count * sharers as usize;
            let room = |end: u64| {
                let end = end.min(limit.into());
                (0..end).filter(|n| !wanted.contains(&(*n as u32))).count()
            };
            let need = capacity(wanted.last().copied());
            let table = TableNeeds { numbers: &wanted, sharers, min_capacity: need, limit, ..TableNeeds::default() };
            for policy in Placement::ALL {
                let Some(placed) = service_numbers(policy, &table, count) else {
                    // The series gives up near the limit though there may be room.
                    prop_assert!(policy == Placement::Task || room(limit.into()) < all
                        || policy == Placement::Late);
                    continue;
                };
                prop_assert_eq!(placed.len(), all);
                for (at, number) in placed.iter().enumerate() {
                    prop_assert!(!wanted.contains(number) && *number < limit);
                    prop_assert!(!placed[..at].contains(number));
                    let minimal = u64::from(*number) < need || room(need) < all;
                    prop_assert!(policy != Placement::Tight || minimal);
                }
            }
        }

        #[test]
        fn moves_never_overwrite_what_still_waits(
            from in prop::collection::btree_set(0u32..30, 0..12),
            seed in prop::collection::vec(0u32..30, 12),
        ) {
            let mut targets: Vec<u32> = Vec::new();
            for to in seed {
                if !targets.contains(&to) { targets.push(to) }
            }
            let wanted: Vec<(u32, u32)> = from.into_iter().zip(targets).collect();
            // Each number holds what stood there, by its old number.
            let mut table: HashMap<u32, u32> = wanted.iter().map(|&(from, _)| (from, from)).collect();
            for (from, to) in moves(&wanted, 99) {
                prop_assert!(!table.contains_key(&to), "{to} is overwritten");
                let what = table.remove(&from).unwrap();
                table.insert(to, what);
            }
            for (from, to) in wanted {
                prop_assert_eq!(table.get(&to), Some(&from));
            }
        }

        #[test]
        fn a_forecast_is_never_below_what_the_numbers_need(
            sets in prop::collection::vec(prop::collection::btree_set(0u32..600, 0..40), 1..6),
            limit in 1000u32..3000,
        ) {
            let tasks: Vec<TablePlan> = sets.iter().enumerate().map(|(at, set)| TablePlan {
                forker: at.checked_sub(1),
                numbers: set.iter().copied().collect(),
                sharers: 1,
                services: 2,
                ..TablePlan::default()
            }).collect();
            for policy in Placement::ALL {
                for (task, size) in tasks.iter().zip(forecast(policy, &tasks, limit)) {
                    let need = capacity(task.numbers.last().copied());
                    let size = size.unwrap();
                    prop_assert!(size.end >= need && size.peak >= size.end);
                    prop_assert!(policy != Placement::Tight || size.end == need);
                }
            }
        }
    }
}
