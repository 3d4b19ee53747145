//! A journal of entries that are removed from a queue and put back, because they cannot be read in
//! any other way. The journal is in shared memory, so that it outlives the process that removed
//! them.

use crate::error::{At, Error, Result};
use crate::sys::fork;
use crate::sys::memory::{Forked, SharedBuffer};
use nix::errno::Errno;
use nix::unistd::setsid;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The number of retries of an operation that fails for the moment, and the interval between them.
pub(crate) const RETRY_LIMIT: (u32, Duration) = (200, Duration::from_millis(5));
/// The size of the header of an entry, in bytes: its mark and its length, 4 bytes each.
const HEADER: usize = 8;

/// The removed entries, in order, and the stage that the work has reached.
pub(crate) struct Journal {
    /// The entries, and two counters: the number of entries, and the stage.
    memory: SharedBuffer,
    /// The length of the longest entry, in bytes.
    longest: usize,
    /// The offset of the end of the entries, once this process has determined it.
    end: Option<usize>,
}

impl Journal {
    /// An empty journal with room for `entries` entries of `bytes` bytes together, none of which is
    /// longer than `longest` bytes.
    pub(crate) fn new(entries: usize, bytes: usize, longest: usize) -> Result<Journal> {
        let size = bytes + HEADER * (entries + 1) + longest;
        let memory = SharedBuffer::new(size).at(|| "shared memory for the contents of a queue")?;
        Ok(Journal { memory, longest, end: None })
    }

    /// The stage that the work has reached, which its caller numbers; zero at first.
    pub(crate) fn stage(&self) -> usize {
        self.memory.look().0[1].load(Ordering::Acquire)
    }

    /// Sets the stage.
    pub(crate) fn set_stage(&self, stage: usize) {
        self.memory.look().0[1].store(stage, Ordering::Release);
    }

    /// Adds an entry. `read` writes it to its argument, and returns its mark and its length. Fails
    /// with ENOBUFS, before `read` is called, if there is no room for a longest entry.
    pub(crate) fn add(
        &mut self,
        read: impl FnOnce(&mut [u8]) -> nix::Result<(u32, usize)>,
    ) -> nix::Result<usize> {
        let sum = || self.entries().map(|(_, bytes)| HEADER + bytes.len()).sum();
        let end = self.end.unwrap_or_else(sum);
        let longest = self.longest;
        let ([count, _], bytes) = self.memory.parts();
        let room = bytes.get_mut(end..end + HEADER + longest).ok_or(Errno::ENOBUFS)?;
        let (mark, len) = read(&mut room[HEADER..])?;
        room[..4].copy_from_slice(&mark.to_ne_bytes());
        room[4..HEADER].copy_from_slice(&(len as u32).to_ne_bytes());
        count.fetch_add(1, Ordering::Release);
        self.end = Some(end + HEADER + len);
        Ok(len)
    }

    /// All entries: the mark and the bytes of each.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (u32, &[u8])> {
        let ([count, _], mut bytes) = self.memory.look();
        let entries = std::iter::from_fn(move || {
            let (head, rest) = bytes.split_at_checked(HEADER)?;
            let word = |at: usize| {
                u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
            };
            let (entry, rest) = rest.split_at_checked(word(4) as usize)?;
            bytes = rest;
            Some((word(0), entry))
        });
        entries.take(count.load(Ordering::Acquire))
    }

    /// Runs `work`, which removes the entries and puts them back, in a child, and then in this
    /// process.
    ///
    /// The child is in a session of its own: a signal that kills this process, or its group, does
    /// not leave the queue empty. The second run completes the work of a child that was killed. So
    /// `work` must continue from the stage of the journal, and do nothing when that is the last.
    pub(crate) fn run_in_child_then_here<T>(
        &mut self,
        work: impl Fn(&mut Journal) -> T,
    ) -> Result<T> {
        let mut forked = self.memory.fork();
        // fork fails with EDEADLK while this process has other threads, and the kernel counts a
        // thread for a moment after it was joined.
        for _ in 0..RETRY_LIMIT.0 {
            if !matches!(forked, Err(Errno::EDEADLK)) {
                break;
            }
            std::thread::sleep(RETRY_LIMIT.1);
            forked = self.memory.fork();
        }
        if forked.map_err(Error::no_process)? == Forked::Child {
            let _ = setsid();
            work(self);
            fork::end(0)
        }
        self.end = None;
        Ok(work(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(journal: &mut Journal, mark: u32, entry: &[u8]) -> nix::Result<usize> {
        journal.add(|room| {
            room[..entry.len()].copy_from_slice(entry);
            Ok((mark, entry.len()))
        })
    }

    #[test]
    fn entries_of_another_process_are_read_and_added_to() {
        let mut journal = Journal::new(3, 9, 5).unwrap();
        put(&mut journal, 7, b"one").unwrap();
        journal.set_stage(2);
        // As in another process, which has not determined the end.
        journal.end = None;
        put(&mut journal, 8, b"").unwrap();
        assert_eq!(journal.add(|_| Err(Errno::EAGAIN)), Err(Errno::EAGAIN));
        put(&mut journal, 9, b"three").unwrap();
        let all: Vec<(u32, Vec<u8>)> =
            journal.entries().map(|(mark, bytes)| (mark, bytes.to_vec())).collect();
        assert_eq!(all, [(7, b"one".to_vec()), (8, vec![]), (9, b"three".to_vec())]);
        assert_eq!(journal.stage(), 2);
    }

    #[test]
    fn an_entry_that_might_not_fit_is_not_read() {
        let mut journal = Journal::new(1, 5, 5).unwrap();
        put(&mut journal, 0, b"whole").unwrap();
        put(&mut journal, 0, b"").unwrap();
        let added = journal.add(|_| unreachable!("there is no room"));
        assert_eq!(added, Err(Errno::ENOBUFS));
    }
}
