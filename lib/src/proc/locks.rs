//! /proc/locks.

use crate::image::Lock;

/// A lock that somebody has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldLock {
    /// The lock.
    pub lock: Lock,
    /// The process that took it; -1 if it belongs to a description, but for flock(2).
    pub pid: i32,
    /// Device and inode number, as the file system has them: stat(2) may show another device.
    pub inode: (u32, u32, u64),
}

/// All locks of the system that this pid namespace may know of: /proc/locks.
pub fn locks() -> Vec<HeldLock> {
    let text = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    text.lines().filter_map(lock).collect()
}

/// Parses `1: POSIX  ADVISORY  WRITE 27637 fe:00:10135418 0 EOF`.
pub(super) fn lock(line: &str) -> Option<HeldLock> {
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
