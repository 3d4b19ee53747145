//! Which descriptors are of one open file description, by comparisons that are given.

use crate::kind::Captured;
use nix::errno::Errno;
use std::cell::Cell;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::os::fd::RawFd;

/// A process, and the number of a descriptor in it.
pub(super) type TaskFd = (i32, RawFd);

/// Members in the order of a comparison, which can fail: kcmp(2) does for a process that has ended.
#[derive(Debug)]
pub(super) struct Ordered<T>(Vec<T>);

impl<T> Default for Ordered<T> {
    fn default() -> Self {
        Ordered(Vec::new())
    }
}

impl<T> Ordered<T> {
    /// The member that is equal to `new`, found by log2(n) comparisons with n members. If none is,
    /// `new` becomes a member, and None is given.
    ///
    /// `compare` orders a member against `new`. Where it fails, one of both can no longer be
    /// compared. If that is `new`, which `is_comparable` says, it is equal to none and becomes no
    /// member; else the member is removed.
    pub(super) fn find_or_insert(
        &mut self,
        new: T,
        mut compare: impl FnMut(&T) -> nix::Result<Ordering>,
        is_comparable: impl Fn() -> bool,
    ) -> Option<&T> {
        let (mut low, mut high) = (0, self.0.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match compare(&self.0[middle]) {
                Ok(Ordering::Less) => low = middle + 1,
                Ok(Ordering::Greater) => high = middle,
                Ok(Ordering::Equal) => return Some(&self.0[middle]),
                Err(_) if is_comparable() => {
                    self.0.remove(middle);
                    high -= 1;
                }
                Err(_) => return None,
            }
        }
        self.0.insert(low, new);
        None
    }
}

/// Why the comparisons of a scan failed, if one did for another reason than that its process has ended or
/// its number is closed.
#[derive(Debug, Default)]
pub(super) struct CompareFailure(Cell<Option<Errno>>);

impl CompareFailure {
    /// Records why a comparison failed.
    pub(super) fn note(&self, errno: Errno) {
        if !matches!(errno, Errno::ESRCH | Errno::EBADF) {
            self.0.set(Some(errno));
        }
    }

    /// The reason.
    pub(super) fn errno(&self) -> Option<Errno> {
        self.0.get()
    }
}

/// The open file descriptions of a scan, numbered from 0 as they are found.
pub(super) struct Descriptions<C> {
    compare: C,
    /// Those that /proc cannot tell apart, by the hash of what it says of them.
    alike: HashMap<u64, Ordered<(TaskFd, u32)>>,
    count: u32,
    /// Why the comparisons failed, if they did.
    pub(super) failure: CompareFailure,
}

impl<C: Fn(TaskFd, TaskFd) -> nix::Result<Ordering>> Descriptions<C> {
    /// None yet. `compare` orders the descriptions behind two descriptors, as kcmp(2) does.
    pub(super) fn new(compare: C) -> Self {
        let (alike, failure) = Default::default();
        Descriptions { compare, alike, count: 0, failure }
    }

    /// The id of the description of a descriptor, and true if it is new. `facts` are those that all
    /// its descriptors have in common: only descriptors with the same facts are compared.
    pub(super) fn identify(&mut self, facts: &impl Hash, place: TaskFd) -> (u32, bool) {
        let mut hasher = DefaultHasher::new();
        facts.hash(&mut hasher);
        let alike = self.alike.entry(hasher.finish()).or_default();
        let (compare, failure) = (&self.compare, &self.failure);
        let compare = |a, b| compare(a, b).inspect_err(|errno| failure.note(*errno));
        let known = alike.find_or_insert(
            (place, self.count),
            |&(other, _)| compare(other, place),
            || compare(place, place).is_ok(),
        );
        match known {
            Some(&(_, id)) => (id, false),
            None => (self.add(), true),
        }
    }

    /// The id of a new description, which is compared with no other.
    pub(super) fn add(&mut self) -> u32 {
        self.count += 1;
        self.count - 1
    }
}

/// What /proc says alike of all descriptors of one description. The position is left out: it may
/// move during the scan.
pub(super) fn facts(captured: &Captured) -> impl Hash + '_ {
    let Captured { link, info, .. } = captured;
    // All eventfds have one inode; the kernel numbers them.
    (link, info.ino, info.mnt, captured.flags(), info.get("eventfd-id"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::collections::HashSet;

    /// Stands for the kernel: the address of the description at each place.
    #[derive(Default)]
    struct Kernel {
        addresses: RefCell<HashMap<TaskFd, u64>>,
        ended: RefCell<HashSet<i32>>,
        calls: Cell<usize>,
    }

    impl Kernel {
        fn with(places: &[(TaskFd, u64)]) -> Kernel {
            let addresses = RefCell::new(places.iter().copied().collect());
            Kernel { addresses, ..Kernel::default() }
        }

        fn compare(&self, a: TaskFd, b: TaskFd) -> nix::Result<Ordering> {
            self.calls.set(self.calls.get() + 1);
            let ended = self.ended.borrow();
            if ended.contains(&a.0) || ended.contains(&b.0) {
                return Err(Errno::ESRCH);
            }
            let addresses = self.addresses.borrow();
            let address = |place| addresses.get(&place).copied().ok_or(Errno::EBADF);
            Ok(address(a)?.cmp(&address(b)?))
        }
    }

    #[test]
    fn dups_are_one_description_in_all_processes() {
        let places = [((1, 3), 50), ((1, 4), 70), ((1, 5), 50), ((2, 3), 70), ((2, 9), 60)];
        let kernel = Kernel::with(&places);
        let mut files = Descriptions::new(|a, b| kernel.compare(a, b));
        let ids = places.map(|(place, _)| files.identify(&"same", place));
        assert_eq!(ids, [(0, true), (1, true), (0, false), (1, false), (2, true)]);
    }

    #[test]
    fn what_differs_in_its_facts_is_not_compared() {
        let kernel = Kernel::with(&[((1, 3), 50), ((1, 4), 70)]);
        let mut files = Descriptions::new(|a, b| kernel.compare(a, b));
        assert_eq!(files.identify(&"/a", (1, 3)), (0, true));
        assert_eq!(files.identify(&"/b", (1, 4)), (1, true));
        assert_eq!((files.add(), kernel.calls.get()), (2, 0));
    }

    #[test]
    fn n_descriptions_take_n_log_n_comparisons() {
        // In an order that is not theirs.
        let places: Vec<(TaskFd, u64)> =
            (0..1000).map(|at| ((1, at), at as u64 * 607 % 1009)).collect();
        let kernel = Kernel::with(&places);
        let mut files = Descriptions::new(|a, b| kernel.compare(a, b));
        let new = |files: &mut Descriptions<_>| {
            places.iter().filter(|(place, _)| files.identify(&(), *place).1).count()
        };
        assert_eq!(new(&mut files), 1000);
        assert!(kernel.calls.get() < 1000 * 10, "{}", kernel.calls.get());
        assert_eq!(new(&mut files), 0);
        assert!(kernel.calls.get() < 2 * 1000 * 10, "{}", kernel.calls.get());
    }

    #[test]
    fn an_ended_process_hides_no_description_of_another() {
        let places = [((1, 3), 10), ((2, 3), 20), ((3, 3), 30), ((1, 4), 40)];
        let kernel = Kernel::with(&places);
        let mut files = Descriptions::new(|a, b| kernel.compare(a, b));
        for (place, _) in places {
            assert!(files.identify(&(), place).1);
        }
        kernel.ended.borrow_mut().extend([2, 3]);
        kernel.addresses.borrow_mut().extend([((1, 7), 10), ((1, 8), 40), ((1, 9), 30)]);
        assert_eq!(files.identify(&(), (1, 7)), (0, false));
        assert_eq!(files.identify(&(), (1, 8)), (3, false));
        // The only one who had it is gone.
        assert_eq!(files.identify(&(), (1, 9)), (4, true));
    }

    #[test]
    fn what_cannot_be_compared_is_a_description_of_its_own() {
        let kernel = Kernel::with(&[((1, 3), 10), ((1, 4), 20)]);
        let mut files = Descriptions::new(|a, b| kernel.compare(a, b));
        assert_eq!(files.identify(&(), (1, 3)), (0, true));
        kernel.ended.borrow_mut().insert(2);
        assert_eq!(files.identify(&(), (2, 3)), (1, true));
        assert_eq!(files.identify(&(), (2, 3)), (2, true));
        // Nothing was forgotten for that.
        kernel.addresses.borrow_mut().insert((1, 5), 10);
        assert_eq!(files.identify(&(), (1, 5)), (0, false));
        assert_eq!(files.failure.errno(), None);
        // A kernel without kcmp(2) tells nothing at all.
        let mut files = Descriptions::new(|_, _| Err(Errno::ENOSYS));
        assert_eq!([3, 3].map(|fd| files.identify(&(), (1, fd))), [(0, true), (1, true)]);
        assert_eq!(files.failure.errno(), Some(Errno::ENOSYS));
    }
}
