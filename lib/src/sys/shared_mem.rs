//! Memory that processes share: a number each, on which they wait for each other, and some text.

use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::time::Duration;

/// The bytes of text that each writer has.
const TEXT: usize = 4096;

/// What is shared with all children made from now on. It has no descriptor, and its pages take
/// memory only once they are written to.
pub struct SharedMem {
    at: NonNull<u8>,
    cells: usize,
    texts: usize,
}

impl SharedMem {
    /// Makes one with so many numbers, all zero, and texts, all empty.
    pub fn new(cells: usize, texts: usize) -> nix::Result<SharedMem> {
        let size = SharedMem::texts_at(cells) + texts * TEXT;
        let size = NonZeroUsize::new(size).ok_or(Errno::EINVAL)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping, at an address that the kernel chooses, which is never unmapped.
        let at = unsafe { mmap_anonymous(None, size, access, flags)? };
        Ok(SharedMem { at: at.cast(), cells, texts })
    }

    fn texts_at(cells: usize) -> usize {
        (cells * size_of::<AtomicI32>()).next_multiple_of(TEXT)
    }

    /// One of the numbers.
    pub fn cell(&self, at: usize) -> &AtomicI32 {
        assert!(at < self.cells, "there is no such cell");
        // SAFETY: the mapping is aligned to pages, has so many of them, zero at first, and lives on.
        unsafe { self.at.cast::<AtomicI32>().add(at).as_ref() }
    }

    /// Sets a number and wakes all who wait for it: futex(2).
    pub fn set(&self, at: usize, value: i32) {
        self.cell(at).store(value, Ordering::Release);
        self.wake(at);
    }

    /// Adds one to a number, wakes all who wait for it, and gives what it is now.
    pub fn add(&self, at: usize) -> i32 {
        let now = self.cell(at).fetch_add(1, Ordering::AcqRel) + 1;
        self.wake(at);
        now
    }

    /// Wakes all who wait for a number.
    pub fn wake(&self, at: usize) {
        self.wake_some(at, i32::MAX);
    }

    /// Wakes at most so many who wait for a number.
    pub fn wake_some(&self, at: usize, most: i32) {
        let cell = self.cell(at).as_ptr();
        // SAFETY: FUTEX_WAKE takes an address, which it does not read, and integers.
        unsafe { libc::syscall(libc::SYS_futex, cell, libc::FUTEX_WAKE, most, 0, 0, 0) };
    }

    /// Waits as long as a number is this one, but no longer than that. It may return early.
    pub fn wait(&self, at: usize, value: i32, limit: Option<Duration>) {
        let limit = limit.map(|limit| libc::timespec {
            tv_sec: limit.as_secs() as libc::time_t,
            tv_nsec: limit.subsec_nanos().into(),
        });
        let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let cell = self.cell(at).as_ptr();
        // SAFETY: FUTEX_WAIT reads the number, which is ours, and the time, which outlives the call.
        unsafe { libc::syscall(libc::SYS_futex, cell, libc::FUTEX_WAIT, value, limit, 0, 0) };
    }

    fn text(&self, who: usize) -> (&AtomicUsize, NonNull<u8>) {
        assert!(who < self.texts, "there is no such text");
        // SAFETY: the mapping has so many texts behind its cells, each aligned to a page.
        unsafe {
            let at = self.at.add(SharedMem::texts_at(self.cells) + who * TEXT);
            (at.cast::<AtomicUsize>().as_ref(), at.add(size_of::<AtomicUsize>()))
        }
    }

    /// Adds a line to one's text; what does not fit is cut off. Only one process writes each text.
    pub fn say(&self, who: usize, line: &str) {
        let (len, text) = self.text(who);
        let room = TEXT - size_of::<AtomicUsize>();
        let old = len.load(Ordering::Relaxed).min(room);
        let line = line.as_bytes();
        let new = line.len().min(room - old);
        // SAFETY: `old + new` is at most the room behind `text`, and nobody else writes there, nor
        // reads above `old` before the length says so.
        unsafe { text.add(old).copy_from_nonoverlapping(NonNull::from(line).cast(), new) };
        len.store(old + new, Ordering::Release);
        if old + new < room {
            // SAFETY: there is room for one byte more.
            unsafe { text.add(old + new).write(b'\n') };
            len.store(old + new + 1, Ordering::Release);
        }
    }

    /// What one has said.
    pub fn said(&self, who: usize) -> String {
        let (len, text) = self.text(who);
        let len = len.load(Ordering::Acquire).min(TEXT - size_of::<AtomicUsize>());
        // SAFETY: so many bytes were written, and are not written to again.
        let text = unsafe { std::slice::from_raw_parts(text.as_ptr(), len) };
        String::from_utf8_lossy(text).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_count_and_text_that_does_not_fit_is_cut() {
        let shared = SharedMem::new(2000, 2).unwrap();
        shared.set(1999, 7);
        // It is another number already, so nobody waits.
        shared.wait(1999, 0, None);
        shared.wait(0, 0, Some(Duration::from_millis(1)));
        assert_eq!((shared.add(0), shared.add(0)), (1, 2));
        assert_eq!(shared.said(1), "");
        for _ in 0..1000 {
            shared.say(1, "a line");
        }
        assert_eq!(shared.said(1).len(), TEXT - size_of::<AtomicUsize>());
        assert!(shared.said(1).starts_with("a line\na line\n") && shared.said(0).is_empty());
    }
}
