//! Where a restorer's own (service) descriptors stand in a table while it is restored, and what a
//! table costs: integers only, no system call.

use std::collections::HashMap;

/// Where the service descriptors of a task are placed: fdkit(7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// Counted down from the soft RLIMIT_NOFILE, whatever the task needs.
    Rlimit,
    /// Above the task's own highest number, at the end of a table of a size that is rounded up.
    Task,
    /// As low as can be; everything is opened where it comes and moved to its number at the end.
    Late,
    /// In the holes of the smallest table that the task needs.
    #[default]
    Tight,
}

crate::word_enum!(Placement { Rlimit = "rlimit", Task = "task", Late = "late", Tight = "tight" });

/// The numbers that [`Placement::Task`] sets aside for each user of a table.
pub const SLOTS: u32 = 16;
/// The numbers that it leaves free above the task's own.
const PAD: u32 = 16;
/// The steps of its tables: 1024 bytes of pointers.
const STEP: u32 = 128;

/// Slots of the kernel's table for a highest number: FDSize of /proc/PID/status.
///
/// 64 are embedded in files_struct, then powers of two from 128 (alloc_fdtable in fs/file.c, 64-bit).
pub fn capacity(highest: Option<u32>) -> u64 {
    match highest {
        Some(highest) if highest >= 64 => (u64::from(highest) + 1).next_power_of_two(),
        _ => 64,
    }
}

/// The bytes that the kernel asks its allocator for a table of so many slots, beside files_struct,
/// which has 64 of them inside: a pointer a slot; two bits a slot and a bit for each 64 of them, a
/// cache line at least; struct fdtable (alloc_fdtable in fs/file.c, Linux 6.18, 64-bit).
pub fn bytes(capacity: u64) -> u64 {
    match capacity {
        0..=64 => 0,
        slots => 8 * slots + (slots / 4 + slots.div_ceil(64 * 64) * 8).max(64) + 56,
    }
}

/// A table as the placing sees it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// The numbers that the task will have, ascending.
    pub numbers: &'a [u32],
    /// The highest number that the caller handed down, which counts for [`Placement::Task`].
    pub handed: Option<u32>,
    /// The tasks that share the table, at least 1.
    pub sharers: u32,
    /// The slots that are not worth saving: the table has them, or will, before a service stands.
    pub floor: u64,
    /// The soft RLIMIT_NOFILE.
    pub limit: u32,
}

/// The numbers of `count` service descriptors of each sharer of a table, highest first: sharer k
/// has those from `k * count` on. None if there is no room below the limit.
///
/// - `rlimit`: the highest free numbers below the limit.
/// - `task`: n = max(highest, handed) + 16 for each sharer + 16; below the smallest 128·2^k above n,
///   or if that is beyond the limit, below the limit rounded down to 128s if n fits there.
/// - `late`: the lowest numbers that nobody wants.
/// - `tight`: the highest free numbers inside the smallest capacity that has room, from the
///   [`Wanted::floor`] on: nearly always the one that the task's own highest number asks for.
pub fn numbers(policy: Placement, table: &Wanted<'_>, count: usize) -> Option<Vec<u32>> {
    let Wanted { numbers: wanted, handed, sharers, floor, limit } = *table;
    let all = count * sharers.max(1) as usize;
    let found = match policy {
        Placement::Rlimit => free_below(limit, wanted, all),
        Placement::Late => free_from(0, wanted, all),
        Placement::Tight => {
            let mut top = capacity(None).max(floor);
            loop {
                let end = top.min(limit.into()) as u32;
                let numbers = free_below(end, wanted, all);
                if numbers.len() == all || top >= limit.into() {
                    break numbers;
                }
                top *= 2;
            }
        }
        Placement::Task => {
            let highest = wanted.last().copied().max(handed).map_or(-1, i64::from);
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

/// The highest numbers below `end` that nobody wants, at most `count`, highest first.
fn free_below(end: u32, wanted: &[u32], count: usize) -> Vec<u32> {
    let mut taken =
        wanted[..wanted.partition_point(|&number| number < end)].iter().rev().peekable();
    let free = |number: &u32| taken.next_if_eq(&number).is_none();
    (0..end).rev().filter(free).take(count).collect()
}

/// The lowest numbers that nobody wants, ascending: for what stands in a table for a while.
pub fn lowest_free(wanted: &[u32], count: usize) -> Vec<u32> {
    let mut found = free_from(0, wanted, count);
    found.reverse();
    found
}

/// The lowest numbers from `start` on that nobody wants, highest first.
fn free_from(start: u32, wanted: &[u32], count: usize) -> Vec<u32> {
    let mut taken = wanted[wanted.partition_point(|&number| number < start)..].iter().peekable();
    let free = |number: &u32| taken.next_if_eq(&number).is_none();
    let mut found: Vec<u32> = (start..=i32::MAX as u32).filter(free).take(count).collect();
    found.reverse();
    found
}

/// The order in which descriptors are moved `(from, to)` so that none is overwritten before it was
/// moved itself: of ranges that overlap, the end that is ahead goes first. Neither two sources nor
/// two targets are equal. `spare` is a number that nobody has: a cycle is opened through it.
pub fn moves(wanted: &[(u32, u32)], spare: u32) -> Vec<(u32, u32)> {
    let waiting: HashMap<u32, usize> =
        wanted.iter().enumerate().map(|(at, &(from, _))| (from, at)).collect();
    let mut done = vec![false; wanted.len()];
    let mut order = Vec::with_capacity(wanted.len());
    for first in 0..wanted.len() {
        // Whoever stands where one wants to go must go first, and so on.
        let mut chain = Vec::new();
        let mut next = Some(first);
        while let Some(at) = next.filter(|&at| !done[at]) {
            done[at] = true;
            chain.push(at);
            next = waiting.get(&wanted[at].1).copied();
        }
        let closed = next == Some(first) && !chain.is_empty();
        match &chain[..] {
            [at] if wanted[*at].0 == wanted[*at].1 => continue,
            [.., last] if closed => {
                // Its way is free once the first of the chain has stepped aside.
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

/// A task of a tree as the forecast sees it. Parents come before children.
#[derive(Clone, Debug, Default)]
pub struct TablePlan {
    /// Its parent, if that is in the tree.
    pub parent: Option<usize>,
    /// The owner of its table, if it shares another's.
    pub owner: Option<usize>,
    /// The numbers of its table, ascending.
    pub numbers: Vec<u32>,
    /// The numbers that it has only meanwhile, for what goes into queues, ascending.
    pub waits: Vec<u32>,
    /// The highest number that its parent had, of the parent's own, when it was made.
    pub passed: Option<u32>,
    /// The tasks that share its table.
    pub sharers: u32,
    /// Its service descriptors.
    pub services: usize,
}

/// FDSize of a task while it is restored at its largest, and in the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// At its largest.
    pub peak: u64,
    /// In the end.
    pub end: u64,
}

/// What becomes of the tables of a tree, or none for a task whose numbers, or our own beside them,
/// have no room below the limit.
pub fn forecast(policy: Placement, tasks: &[TablePlan], limit: u32) -> Vec<Option<Size>> {
    let mut sizes: Vec<Option<Size>> = Vec::with_capacity(tasks.len());
    // The highest service number of each task, which its children are born with.
    let mut tops: Vec<Option<u32>> = Vec::with_capacity(tasks.len());
    for task in tasks {
        if let Some(owner) = task.owner {
            tops.push(tops[owner]);
            sizes.push(sizes[owner]);
            continue;
        }
        let mut all = [&task.numbers[..], &task.waits].concat();
        all.sort_unstable();
        let table = Wanted { numbers: &all, handed: None, sharers: task.sharers, floor: 0, limit };
        let placed = numbers(policy, &table, task.services);
        let top = placed.as_ref().and_then(|numbers| numbers.first().copied());
        let of_parent = task.parent.and_then(|parent| tops[parent]).max(task.passed);
        // Everything but the highest may be open at once wherever it comes.
        let crowd = (all.len() + task.services).checked_sub(1).map(|n| n as u32);
        let crowd = crowd.filter(|_| policy == Placement::Late);
        let highest = task.numbers.last().copied();
        let peak = capacity(of_parent).max(capacity(top.max(all.last().copied()).max(crowd)));
        // One of those who share a table cannot make it smaller.
        let alone = policy == Placement::Tight && task.sharers <= 1;
        let end = if alone { capacity(highest) } else { peak };
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

    fn tight(wanted: &[u32], count: usize, limit: u32) -> Option<Vec<u32>> {
        let floor = capacity(wanted.last().copied());
        let table = Wanted { numbers: wanted, handed: None, sharers: 1, floor, limit };
        numbers(Placement::Tight, &table, count)
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
        let table = Wanted { numbers: &[0, 1, 19000], limit: 20000, ..Wanted::default() };
        assert_eq!(numbers(Placement::Tight, &table, 2), Some(vec![63, 62]));
    }

    #[test]
    fn task_gives_the_sizes_of_the_series() {
        let size = |highest: u32, limit: u32| {
            let table = Wanted { numbers: &[highest], limit, ..Wanted::default() };
            let placed = numbers(Placement::Task, &table, 15)?;
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
        // Handed down numbers count, and each sharer has 16 of its own.
        let mut table = Wanted { numbers: &[3], handed: Some(96), ..Wanted::default() };
        table.limit = 1000;
        assert_eq!(numbers(Placement::Task, &table, 1), Some(vec![255]));
        table = Wanted { numbers: &[3], sharers: 5, limit: 1000, ..Wanted::default() };
        assert_eq!(numbers(Placement::Task, &table, 1), Some(vec![127, 111, 95, 79, 63]));
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
            parent: Some(0),
            numbers: vec![0, 1, 2],
            passed: Some(2),
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
        let task = TablePlan { numbers, waits: vec![64, 65], services: 1, ..TablePlan::default() };
        let of = |policy| forecast(policy, std::slice::from_ref(&task), 1024)[0].unwrap();
        assert_eq!(of(Placement::Tight), Size { peak: 128, end: 64 });
        assert_eq!(of(Placement::Late), Size { peak: 128, end: 128 });
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
            let table = Wanted { numbers: &wanted, handed: None, sharers, floor: need, limit };
            for policy in Placement::ALL {
                let Some(placed) = numbers(policy, &table, count) else {
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
                parent: at.checked_sub(1),
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
