//! Memory that processes share: cells to wait on (futex(2)), and records that each writer leaves
//! for another process to read.

use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::Duration;

/// The alignment of the areas of the writers, so that no two share a page.
const PAGE: usize = 4096;

/// Bytes of the area of one writer. Pages that are never written to take no memory.
const AREA: usize = 4 * PAGE;

/// The head of an area: bytes used by records, and the number of records that found no room.
const AREA_HEAD: usize = 2 * size_of::<AtomicU32>();

/// The head of a record: one byte for the tag, four for the length.
const RECORD_HEAD: usize = 1 + size_of::<u32>();

/// Bytes that the records of one writer can take, each with its head.
pub const ROOM: usize = AREA - AREA_HEAD;

/// A message of a writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedRecord {
    /// The meaning of the bytes; writer and reader agree on it.
    pub tag: u8,
    /// The bytes, whole.
    pub bytes: Vec<u8>,
}

/// All records of one writer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SharedRecords {
    /// The records that had room, in the order in which they were written.
    pub records: Vec<SharedRecord>,
    /// The number of records that had no room.
    pub dropped: u32,
}

impl SharedRecords {
    /// The records as text, a line each, and a last line that counts those without room.
    pub fn text(&self) -> String {
        let line =
            |record: &SharedRecord| String::from_utf8_lossy(&record.bytes).into_owned() + "\n";
        let mark = (self.dropped > 0).then(|| more(self.dropped) + "\n");
        self.records.iter().map(line).chain(mark).collect()
    }
}

/// The mark in place of lines that had no room.
pub fn more(lines: u32) -> String {
    format!("... and {lines} more {}", if lines == 1 { "line" } else { "lines" })
}

/// Memory shared with all processes that this one forks from now on (MAP_SHARED, MAP_ANONYMOUS). It
/// takes no descriptor, and lasts as long as the processes.
pub struct SharedMem {
    start: NonNull<u8>,
    cells: usize,
    writers: usize,
}

impl SharedMem {
    /// Maps memory for this many cells, all zero, and writers, all without records.
    pub fn new(cells: usize, writers: usize) -> nix::Result<SharedMem> {
        let size = SharedMem::areas_start(cells) + writers * AREA;
        let size = NonZeroUsize::new(size).ok_or(Errno::EINVAL)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping, at an address that the kernel chooses, which is never unmapped.
        let start = unsafe { mmap_anonymous(None, size, access, flags)? };
        Ok(SharedMem { start: start.cast(), cells, writers })
    }

    /// The offset of the area of the first writer.
    fn areas_start(cells: usize) -> usize {
        (cells * size_of::<AtomicI32>()).next_multiple_of(PAGE)
    }

    /// One of the cells.
    pub fn cell(&self, at: usize) -> &AtomicI32 {
        assert!(at < self.cells, "there is no such cell");
        // SAFETY: the mapping is aligned to pages, has so many of them, zero at first, and lives
        // on.
        unsafe { self.start.cast::<AtomicI32>().add(at).as_ref() }
    }

    /// The value of a cell.
    pub fn get(&self, at: usize) -> i32 {
        self.cell(at).load(Ordering::Acquire)
    }

    /// Sets a cell and wakes all who wait on it: FUTEX_WAKE of futex(2).
    pub fn set(&self, at: usize, value: i32) {
        self.cell(at).store(value, Ordering::Release);
        self.wake(at);
    }

    /// Adds one to a cell, wakes all who wait on it, and returns its new value.
    pub fn add(&self, at: usize) -> i32 {
        let now = self.cell(at).fetch_add(1, Ordering::AcqRel) + 1;
        self.wake(at);
        now
    }

    /// Wakes all who wait on a cell.
    pub fn wake(&self, at: usize) {
        self.wake_some(at, i32::MAX);
    }

    /// Wakes at most `most` of those who wait on a cell.
    pub fn wake_some(&self, at: usize, most: i32) {
        let cell = self.cell(at).as_ptr();
        // SAFETY: FUTEX_WAKE takes an address, which it does not read, and integers.
        unsafe { libc::syscall(libc::SYS_futex, cell, libc::FUTEX_WAKE, most, 0, 0, 0) };
    }

    /// Waits while a cell has this value, but no longer than `limit`. It may return early, as
    /// FUTEX_WAIT of futex(2) does.
    pub fn wait(&self, at: usize, value: i32, limit: Option<Duration>) {
        let limit = limit.map(|limit| libc::timespec {
            tv_sec: limit.as_secs() as libc::time_t,
            tv_nsec: limit.subsec_nanos().into(),
        });
        let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let cell = self.cell(at).as_ptr();
        // SAFETY: FUTEX_WAIT reads the number, which is ours, and the time, which outlives the
        // call.
        unsafe { libc::syscall(libc::SYS_futex, cell, libc::FUTEX_WAIT, value, limit, 0, 0) };
    }

    /// The area of a writer: bytes used, records dropped, and the first byte behind its head.
    fn area(&self, writer: usize) -> (&AtomicU32, &AtomicU32, NonNull<u8>) {
        assert!(writer < self.writers, "there is no such writer");
        // SAFETY: the mapping has so many areas behind its cells, each aligned to a page, whose
        // bytes are zero at first, and it lives on.
        unsafe {
            let area = self.start.add(SharedMem::areas_start(self.cells) + writer * AREA);
            let head = area.cast::<AtomicU32>();
            (head.as_ref(), head.add(1).as_ref(), area.add(AREA_HEAD))
        }
    }

    /// Adds a record, whole, if `reserve` bytes of [`ROOM`] stay free behind it; it is counted as
    /// dropped otherwise. Returns whether it was added. Only one process writes for each writer.
    pub fn push(&self, writer: usize, tag: u8, bytes: &[u8], reserve: usize) -> bool {
        let (used, dropped, area) = self.area(writer);
        let start = used.load(Ordering::Relaxed) as usize;
        let end = bytes.len().saturating_add(RECORD_HEAD).saturating_add(start);
        if end.saturating_add(reserve) > ROOM {
            dropped.fetch_add(1, Ordering::AcqRel);
            return false;
        }
        let record = [&[tag], &(bytes.len() as u32).to_ne_bytes()[..], bytes].concat();
        // SAFETY: `start + record.len()` is `end`, at most the room of the area; no other process
        // writes there, and none reads above `start` before `used` says that it may.
        unsafe {
            area.add(start)
                .copy_from_nonoverlapping(NonNull::from(&record[..]).cast(), record.len());
        }
        used.store(end as u32, Ordering::Release);
        true
    }

    /// The records that a writer has added until now.
    pub fn records(&self, writer: usize) -> SharedRecords {
        let (used, dropped, area) = self.area(writer);
        let mut bytes = vec![0; (used.load(Ordering::Acquire) as usize).min(ROOM)];
        // SAFETY: so many bytes were written, are inside the area, and are not written to again.
        unsafe { area.copy_to_nonoverlapping(NonNull::from(&mut bytes[..]).cast(), bytes.len()) };
        SharedRecords { records: parse(&bytes), dropped: dropped.load(Ordering::Acquire) }
    }
}

/// Takes records apart. A record that is not whole ends the list.
fn parse(mut bytes: &[u8]) -> Vec<SharedRecord> {
    let mut records = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<RECORD_HEAD>() {
        let [tag, len @ ..] = *head;
        let len = u32::from_ne_bytes(len) as usize;
        let Some(text) = rest.get(..len) else { break };
        records.push(SharedRecord { tag, bytes: text.to_vec() });
        bytes = &rest[len..];
    }
    records
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cells_count_and_a_wait_ends() {
        let shared = SharedMem::new(2000, 0).unwrap();
        shared.set(1999, 7);
        // The value is another already, so that there is no wait.
        shared.wait(1999, 0, None);
        shared.wait(0, 0, Some(Duration::from_millis(1)));
        assert_eq!((shared.add(0), shared.add(0)), (1, 2));
    }

    #[test]
    fn a_record_is_kept_whole_or_counted_as_dropped() {
        let shared = SharedMem::new(1, 2).unwrap();
        assert_eq!(shared.records(1), SharedRecords::default());
        let line = b"a line of some length";
        let fit = ROOM / (RECORD_HEAD + line.len());
        for at in 0..fit + 3 {
            assert_eq!(shared.push(1, 9, line, 0), at < fit);
        }
        let SharedRecords { records, dropped } = shared.records(1);
        assert_eq!((records.len(), dropped), (fit, 3));
        assert!(records.iter().all(|record| record.tag == 9 && record.bytes == line));
        let text = shared.records(1).text();
        assert!(text.ends_with("a line of some length\n... and 3 more lines\n"), "{text}");
        assert_eq!(shared.records(0), SharedRecords::default());
    }

    #[test]
    fn the_reserve_is_for_later_records() {
        let shared = SharedMem::new(0, 1).unwrap();
        let half = vec![b'x'; ROOM / 2];
        assert!(shared.push(0, 0, &half, 100));
        assert!(!shared.push(0, 0, &half[..ROOM / 2 - 2 * RECORD_HEAD - 99], 100));
        assert!(shared.push(0, 0, &half[..ROOM / 2 - 2 * RECORD_HEAD - 100], 100));
        assert!(!shared.push(0, 1, &[0; 101], 0) && shared.push(0, 2, &[0; 95], 0));
        assert!(!shared.push(0, 3, b"", 0));
        assert_eq!(shared.records(0).dropped, 3);
    }

    #[test]
    fn a_line_may_be_any_bytes() {
        let shared = SharedMem::new(0, 1).unwrap();
        assert!(shared.push(0, 255, b"\xff\xfe\nx", 0) && shared.push(0, 0, b"", 0));
        assert_eq!(shared.records(0).records[0].bytes, b"\xff\xfe\nx");
        assert_eq!(shared.records(0).text(), "\u{fffd}\u{fffd}\nx\n\n");
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_apart(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let whole: usize = parse(&bytes).iter().map(|it| it.bytes.len() + RECORD_HEAD).sum();
            prop_assert!(whole <= bytes.len());
        }
    }
}
