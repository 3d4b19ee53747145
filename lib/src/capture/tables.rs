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
    /// The index of the table of a process, which has so many descriptors.
    ///
    /// `compare` orders the tables of two processes, as kcmp(2) does. A process that it fails for
    /// shares with nobody, as far as can be known.
    pub(super) fn add(
        &mut self,
        process: usize,
        pid: i32,
        descriptors: usize,
        compare: impl Fn(i32, i32) -> nix::Result<Ordering>,
    ) -> usize {
        let new = self.tables.len();
        let is_comparable = || compare(pid, pid).is_ok();
        let known = if is_comparable() {
            let first = |table: &usize| self.tables[*table].pids[0];
            let alike = self.alike.entry(descriptors).or_default();
            alike.find_or_insert(new, |table| compare(first(table), pid), is_comparable).copied()
        } else {
            None
        };
        match known {
            Some(table) => self.tables[table].pids.push(pid),
            None => self.tables.push(ScannedTable { first: process, pids: vec![pid] }),
        }
        known.unwrap_or(new)
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

    /// Says what has changed until `now`.
    pub(super) fn change(&self, now: Result<Snapshot>) -> Option<String> {
        let ended = || Some("it ended during the scan".to_owned());
        let Ok(now) = now else { return ended() };
        if now.identity != self.identity {
            return match now.identity.is_without_program() {
                true => ended(),
                false => Some("it became another program during the scan".to_owned()),
            };
        }
        if now.numbers == self.numbers {
            return None;
        }
        let only =
            |a: &[RawFd], b: &[RawFd]| a.iter().filter(|fd| b.binary_search(fd).is_err()).count();
        let (opened, closed) =
            (only(&now.numbers, &self.numbers), only(&self.numbers, &now.numbers));
        Some(format!(
            "it opened {opened} and closed {closed} descriptors during the scan; --freeze stops it"
        ))
    }
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
        let found = [0, 1, 2, 3, 4].map(|pid| tables.add(pid as usize, pid, 3, &compare));
        assert_eq!(found, [0, 1, 0, 2, 1]);
        let table = |first, pids: &[i32]| ScannedTable { first, pids: pids.to_vec() };
        assert_eq!(tables.into_vec(), [table(0, &[0, 2]), table(1, &[1, 4]), table(3, &[3])]);
    }

    #[test]
    fn tables_of_other_counts_are_others() {
        let compare = order(&[Some(7), Some(7)]);
        let mut tables = Tables::default();
        assert_eq!([3, 4].map(|count| tables.add(0, 0, count, &compare)), [0, 1]);
    }

    #[test]
    fn a_process_that_cannot_be_compared_shares_with_nobody() {
        let mut tables = Tables::default();
        let compare = order(&[Some(7), None, None, Some(7)]);
        let found = [0, 1, 2, 3].map(|pid| tables.add(pid as usize, pid, 3, &compare));
        assert_eq!(found, [0, 1, 2, 0]);
    }

    #[test]
    fn a_change_is_told_apart() {
        let state = |(start, code, stack): (u32, u32, u32), numbers: &[RawFd]| {
            let zeros = " 0".repeat(18);
            let stat = format!("7 (sh) S{zeros} {start} 0 0 0 {code} 0 {stack} 0 0");
            let identity = (&Stat::parse(stat.as_bytes()).unwrap()).into();
            Snapshot { identity, numbers: numbers.to_vec() }
        };
        let before = state((1, 2, 3), &[0, 1, 5]);
        assert_eq!(before.change(Ok(state((1, 2, 3), &[0, 1, 5]))), None);
        let text = before.change(Ok(state((1, 2, 3), &[0, 5, 6, 7]))).unwrap();
        assert!(text.starts_with("it opened 2 and closed 1 descriptors"), "{text}");
        for other in [(9, 2, 3), (1, 9, 3), (1, 2, 9)] {
            let text = before.change(Ok(state(other, &[0, 1, 5]))).unwrap();
            assert!(text.starts_with("it became another program"), "{text}");
        }
        let text = before.change(Ok(state((1, 0, 0), &[]))).unwrap();
        assert!(text.starts_with("it ended"), "{text}");
        let text = before.change(Err(Error::new(Status::Gone, "gone"))).unwrap();
        assert!(text.starts_with("it ended"), "{text}");
    }
}
