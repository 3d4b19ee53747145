//! Which processes share a descriptor table, and whether a table changed during the scan.

use super::identity::Ordered;
use crate::error::Result;
use crate::proc::{Process, ProcessIdentity};
use std::cmp::Ordering;
use std::collections::HashMap;
use std::os::fd::RawFd;

/// A descriptor table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ScannedTable {
    /// The first process that has it, as its index in the scan.
    pub(super) first: usize,
    /// The thread through which that is looked at.
    pub(super) thread: i32,
    /// The ids of all that have it, in the order of the scan.
    pub(super) pids: Vec<i32>,
}

/// The tables of a scan.
#[derive(Default)]
pub(super) struct Tables {
    tables: Vec<ScannedTable>,
    /// Indices of tables by the count of their descriptors: only those of one count can be one.
    alike: HashMap<usize, Ordered<usize>>,
}

impl Tables {
    /// The index of the table of a process, which has so many descriptors. It is looked at through a
    /// thread.
    ///
    /// `compare` orders the tables of two threads, as kcmp(2) does. A process that it fails for
    /// shares with nobody, as far as can be known.
    pub(super) fn add(
        &mut self,
        process: usize,
        (pid, thread): (i32, i32),
        descriptors: usize,
        compare: impl Fn(i32, i32) -> nix::Result<Ordering>,
    ) -> usize {
        let new = self.tables.len();
        let is_comparable = || compare(thread, thread).is_ok();
        let first = |table: &usize| self.tables[*table].thread;
        let alike = self.alike.entry(descriptors).or_default();
        let known = alike
            .find_or_insert(new, |table| compare(first(table), thread), is_comparable)
            .copied();
        match known {
            Some(table) => self.tables[table].pids.push(pid),
            None => self.tables.push(ScannedTable { first: process, thread, pids: vec![pid] }),
        }
        known.unwrap_or(new)
    }

    /// The first process that has a table, as its index in the scan.
    pub(super) fn first(&self, table: usize) -> usize {
        self.tables[table].first
    }

    /// All tables, in the order of their indices.
    pub(super) fn into_vec(self) -> Vec<ScannedTable> {
        self.tables
    }
}

/// The state of a process that a scan must find again at its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Snapshot {
    /// Tells its program from any other.
    pub(super) identity: ProcessIdentity,
    /// The numbers in use, ascending.
    pub(super) numbers: Vec<RawFd>,
}

impl Snapshot {
    /// The state of a process now. Fails as reading /proc does.
    pub(super) fn take(process: &Process) -> Result<Snapshot> {
        Ok(Snapshot { identity: process.identity()?, numbers: process.numbers()? })
    }

    /// What has changed until `now`, if anything has. So many numbers name another file than before.
    pub(super) fn change(&self, now: Result<Snapshot>, others: usize) -> Option<Change> {
        let ended = || Some(Change { ended: true, what: "it ended during the scan".to_owned() });
        let changed = |what| Some(Change { ended: false, what });
        let Ok(now) = now else { return ended() };
        if now.identity != self.identity {
            return match now.identity.has_ended() {
                true => ended(),
                false => changed("it became another program during the scan".to_owned()),
            };
        }
        if now.numbers == self.numbers && others == 0 {
            return None;
        }
        let only =
            |a: &[RawFd], b: &[RawFd]| a.iter().filter(|fd| b.binary_search(fd).is_err()).count();
        let (opened, closed) =
            (only(&now.numbers, &self.numbers), only(&self.numbers, &now.numbers));
        let opened_or_closed = match (opened, closed) {
            (0, 0) => String::new(),
            _ => format!("it opened {opened} and closed {closed} descriptors"),
        };
        let others = match others {
            0 => String::new(),
            _ => format!("{others} of its descriptors became other files, or changed their flags"),
        };
        let what: Vec<String> =
            [opened_or_closed, others].into_iter().filter(|what| !what.is_empty()).collect();
        changed(format!("{} during the scan; --freeze stops it", what.join(", and ")))
    }
}

/// A change of a process during the scan.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// The process has ended.
    pub(super) ended: bool,
    /// What has changed, as a message says it.
    pub(super) what: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Status};
    use crate::proc::Stat;
    use nix::errno::Errno;

    /// Orders tables by these addresses, which pids index.
    fn order(addresses: &[Option<u32>]) -> impl Fn(i32, i32) -> nix::Result<Ordering> {
        let address = |pid: i32| addresses[pid as usize].ok_or(Errno::ESRCH);
        move |a, b| Ok(address(a)?.cmp(&address(b)?))
    }

    #[test]
    fn processes_that_share_a_table_are_found() {
        let compare = order(&[Some(7), Some(5), Some(7), Some(9), Some(5)]);
        let mut tables = Tables::default();
        let found = [0, 1, 2, 3, 4].map(|pid| tables.add(pid as usize, (pid, pid), 3, &compare));
        assert_eq!(found, [0, 1, 0, 2, 1]);
        let table =
            |first, pids: &[i32]| ScannedTable { first, thread: pids[0], pids: pids.to_vec() };
        assert_eq!(tables.into_vec(), [table(0, &[0, 2]), table(1, &[1, 4]), table(3, &[3])]);
    }

    #[test]
    fn tables_of_other_counts_are_others() {
        let compare = order(&[Some(7), Some(7)]);
        let mut tables = Tables::default();
        assert_eq!([3, 4].map(|count| tables.add(0, (0, 0), count, &compare)), [0, 1]);
    }

    #[test]
    fn a_process_that_cannot_be_compared_shares_with_nobody() {
        let mut tables = Tables::default();
        let compare = order(&[Some(7), None, None, Some(7)]);
        let found = [0, 1, 2, 3].map(|pid| tables.add(pid as usize, (pid, pid), 3, &compare));
        assert_eq!(found, [0, 1, 2, 0]);
    }

    #[test]
    fn a_change_is_told_apart() {
        let state = |(start, code, stack): (u32, u32, u32), numbers: &[RawFd]| {
            let zeros = " 0".repeat(18);
            let letter = if code == 0 { 'Z' } else { 'S' };
            let stat = format!("7 (sh) {letter}{zeros} {start} 0 0 0 {code} 0 {stack} 0 0");
            let identity = (&Stat::parse(stat.as_bytes()).unwrap()).into();
            Snapshot { identity, numbers: numbers.to_vec() }
        };
        let before = state((1, 2, 3), &[0, 1, 5]);
        assert_eq!(before.change(Ok(state((1, 2, 3), &[0, 1, 5])), 0), None);
        let change = |now| before.change(now, 0).map(|change| (change.ended, change.what)).unwrap();
        let (ended, text) = change(Ok(state((1, 2, 3), &[0, 5, 6, 7])));
        assert!(!ended && text.starts_with("it opened 2 and closed 1 descriptors"), "{text}");
        let same = before.change(Ok(state((1, 2, 3), &[0, 1, 5])), 2).unwrap();
        assert!(same.what.starts_with("2 of its descriptors became other files"), "{}", same.what);
        let both = before.change(Ok(state((1, 2, 3), &[0, 5])), 1).unwrap();
        let text = "it opened 0 and closed 1 descriptors, and 1 of its descriptors became other";
        assert!(both.what.starts_with(text), "{}", both.what);
        for other in [(9, 2, 3), (1, 9, 3), (1, 2, 9)] {
            let (ended, text) = change(Ok(state(other, &[0, 1, 5])));
            assert!(!ended && text.starts_with("it became another program"), "{text}");
        }
        let (ended, text) = change(Ok(state((1, 0, 0), &[])));
        assert!(ended && text.starts_with("it ended"), "{text}");
        let (ended, text) = change(Err(Error::new(Status::Gone, "gone")));
        assert!(ended && text.starts_with("it ended"), "{text}");
    }
}
