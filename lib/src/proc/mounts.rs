//! /proc/PID/mountinfo.

use super::fdinfo::FdInfo;
use super::read::read_at;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The mounts that a process sees, ascending: those of /proc/PID/mountinfo, and that on which its
/// root is, which is not there if the root is some directory in it (chroot(2)).
pub(super) fn mounts(dir: BorrowedFd<'_>) -> Option<Vec<i32>> {
    let text = read_at(dir, "mountinfo").ok()?;
    let first = |line: &[u8]| {
        let id = line.split(|&byte| byte == b' ').next()?;
        std::str::from_utf8(id).ok()?.parse().ok()
    };
    let mut mounts: Vec<i32> = text.split(|&byte| byte == b'\n').filter_map(first).collect();
    let root = openat(dir, "root", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    let info = format!("/proc/self/fdinfo/{}", root.as_raw_fd());
    mounts.push(FdInfo::parse(&read_at(nix::fcntl::AT_FDCWD, &info).ok()?).mnt);
    mounts.sort_unstable();
    Some(mounts)
}
