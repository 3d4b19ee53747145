//! What is taken out of a queue and put back, since there is no other way to look at it, where it
//! outlives whoever took it out.

use crate::error::{At, Result};
use crate::sys::fork;
use crate::sys::memory::{Forked, SharedBuffer};
use nix::errno::Errno;
use nix::unistd::setsid;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How often, and how long apart, what cannot be done yet is tried again.
pub(crate) const RETRY_LIMIT: (u32, Duration) = (200, Duration::from_millis(5));
/// What stands before an entry: its mark and its length.
const HEAD: usize = 8;

/// What was taken out, entry by entry, and how far the work has come.
pub(crate) struct Journal {
    /// The counters are how many entries there are, and the stage.
    memory: SharedBuffer,
    longest: usize,
    /// Where the entries end, once this process has looked.
    end: Option<usize>,
}

impl Journal {
    /// Has room for so many entries of so many bytes together, none of which is longer than this.
    pub(crate) fn new(entries: usize, bytes: usize, longest: usize) -> Result<Journal> {
        let size = bytes + HEAD * (entries + 1) + longest;
        let memory = SharedBuffer::new(size).at(|| "memory for what is taken out")?;
        Ok(Journal { memory, longest, end: None })
    }

    /// How far the work has come, as those who do it count: zero at first.
    pub(crate) fn stage(&self) -> usize {
        self.memory.look().0[1].load(Ordering::Acquire)
    }

    pub(crate) fn set_stage(&self, stage: usize) {
        self.memory.look().0[1].store(stage, Ordering::Release);
    }

    /// Adds what `take` writes: it says with what mark, and how long it is. Fails with ENOBUFS,
    /// and takes nothing, if there is no room.
    pub(crate) fn add(
        &mut self,
        take: impl FnOnce(&mut [u8]) -> nix::Result<(u32, usize)>,
    ) -> nix::Result<usize> {
        let walk = || self.entries().map(|(_, bytes)| HEAD + bytes.len()).sum();
        let end = self.end.unwrap_or_else(walk);
        let longest = self.longest;
        let ([count, _], bytes) = self.memory.parts();
        let room = bytes.get_mut(end..end + HEAD + longest).ok_or(Errno::ENOBUFS)?;
        let (mark, len) = take(&mut room[HEAD..])?;
        room[..4].copy_from_slice(&mark.to_ne_bytes());
        room[4..HEAD].copy_from_slice(&(len as u32).to_ne_bytes());
        count.fetch_add(1, Ordering::Release);
        self.end = Some(end + HEAD + len);
        Ok(len)
    }

    /// All entries: mark and bytes.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (u32, &[u8])> {
        let ([count, _], mut bytes) = self.memory.look();
        let entries = std::iter::from_fn(move || {
            let (head, rest) = bytes.split_at_checked(HEAD)?;
            let word = |at: usize| {
                u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
            };
            let (entry, rest) = rest.split_at_checked(word(4) as usize)?;
            bytes = rest;
            Some((word(0), entry))
        });
        entries.take(count.load(Ordering::Acquire))
    }

    /// Has the work done that takes out and puts back: by a child in a session of its own, so that
    /// nothing that ends us leaves the queue empty, and then here, in case it is the child that
    /// ended. So it must go on where it is, and know when it is done.
    pub(crate) fn run_in_child_then_here<T>(
        &mut self,
        work: impl Fn(&mut Journal) -> T,
    ) -> Result<T> {
        let mut forked = self.memory.fork();
        // A thread that was joined is still counted for a moment.
        for _ in 0..RETRY_LIMIT.0 {
            if !matches!(forked, Err(Errno::EDEADLK)) {
                break;
            }
            std::thread::sleep(RETRY_LIMIT.1);
            forked = self.memory.fork();
        }
        if forked.at(|| "fork")? == Forked::Child {
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

    fn put(log: &mut Journal, mark: u32, entry: &[u8]) -> nix::Result<usize> {
        log.add(|room| {
            room[..entry.len()].copy_from_slice(entry);
            Ok((mark, entry.len()))
        })
    }

    #[test]
    fn what_a_process_that_ended_has_taken_out_is_known_and_added_to() {
        let mut log = Journal::new(3, 9, 5).unwrap();
        put(&mut log, 7, b"one").unwrap();
        log.set_stage(2);
        // What another process knows of the end, this one does not.
        log.end = None;
        put(&mut log, 8, b"").unwrap();
        assert_eq!(log.add(|_| Err(Errno::EAGAIN)), Err(Errno::EAGAIN));
        put(&mut log, 9, b"three").unwrap();
        let all: Vec<(u32, Vec<u8>)> =
            log.entries().map(|(mark, bytes)| (mark, bytes.to_vec())).collect();
        assert_eq!(all, [(7, b"one".to_vec()), (8, vec![]), (9, b"three".to_vec())]);
        assert_eq!(log.stage(), 2);
    }

    #[test]
    fn nothing_is_taken_that_might_not_fit() {
        let mut log = Journal::new(1, 5, 5).unwrap();
        put(&mut log, 0, b"whole").unwrap();
        put(&mut log, 0, b"").unwrap();
        let taken = log.add(|_| unreachable!("there is no room"));
        assert_eq!(taken, Err(Errno::ENOBUFS));
    }
}
