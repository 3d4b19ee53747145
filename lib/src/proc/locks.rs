//! Locks on files: proc_locks(5), and the `lock:` lines of fdinfo, which are alike.

use super::read::read_whole;
use crate::image::Lock;
use std::collections::HashSet;
use std::fs::File;

/// A lock that a process or an open file description has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldLock {
    /// The lock.
    pub lock: Lock,
    /// The process that took it. Locks of an open file description (F_OFD_SETLK) have -1; those of
    /// flock(2) have the process although they are of a description too.
    pub pid: i32,
    /// Major and minor device number, and inode number, as the file system has them: stat(2) may
    /// show another device.
    pub inode: (u32, u32, u64),
}

/// The most bytes that the kernel gives at a time of a file of several records (fs/seq_file.c).
const PAGE: usize = 4096;

/// All locks of the system of which this pid namespace is told: /proc/locks. Empty if it cannot be
/// read.
///
/// The kernel gives a page of them at a time, and counts them from the start for the next page. If one
/// is released meanwhile, another is passed over. So a list of several pages is read twice, and a lock
/// counts that is in either.
pub fn locks() -> Vec<HeldLock> {
    let mut text = read();
    if text.len() > PAGE / 2 {
        text.extend(read());
    }
    let mut seen = HashSet::new();
    let text = String::from_utf8_lossy(&text);
    // The number in front is that in the list.
    let lines = text.lines().filter(|line| seen.insert(line.split_once(':').map(|(_, rest)| rest)));
    lines.filter_map(parse).collect()
}

fn read() -> Vec<u8> {
    let mut text = Vec::new();
    let file = File::open("/proc/locks");
    let done = file.is_ok_and(|file| read_whole(file.into(), &mut text, false).is_ok());
    if done { text } else { Vec::new() }
}

/// Parses `1: POSIX  ADVISORY  WRITE 27637 fe:00:10135418 0 EOF`. None if it is not understood, as a
/// lock that is only waited for (`1: -> POSIX ...`).
pub(super) fn parse(line: &str) -> Option<HeldLock> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [_, class, state, access, pid, inode, start, end] = words[..] else { return None };
    let mut inode = inode.split(':');
    let mut device = || u32::from_str_radix(inode.next()?, 16).ok();
    let (major, minor) = (device()?, device()?);
    Some(HeldLock {
        lock: Lock {
            class: class.to_owned(),
            write: access == "WRITE",
            start: start.parse().ok()?,
            end: end.parse().ok(),
            breaking: state == "BREAKING",
        },
        pid: pid.parse().ok()?,
        inode: (major, minor, inode.next()?.parse().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_is_broken_has_no_end_and_no_access() {
        let lease = parse("3: LEASE  BREAKING  UNLCK 7 00:1f:12 0 EOF").unwrap();
        assert!(lease.lock.breaking && !lease.lock.write && lease.lock.end.is_none());
        assert_eq!((lease.pid, lease.inode), (7, (0, 0x1f, 12)));
    }

    #[test]
    fn a_lock_of_a_description_has_no_process() {
        let held = parse("1: OFDLCK  ADVISORY  READ -1 fe:00:7 10 14").unwrap();
        assert_eq!((held.pid, held.lock.start, held.lock.end), (-1, 10, Some(14)));
        assert!(!held.lock.write && !held.lock.breaking && held.lock.class == "OFDLCK");
    }

    #[test]
    fn what_is_waited_for_is_no_lock() {
        for line in
            ["2: -> FLOCK  ADVISORY  WRITE 1 fe:00:1 0 EOF", "", "1: POSIX ADVISORY WRITE x"]
        {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_line_is_a_lock_or_not(line in "([0-9a-f: ]|EOF|\\PC){0,60}") {
            let _ = parse(&line);
        }
    }
}
