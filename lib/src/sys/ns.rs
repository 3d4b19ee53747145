//! Namespaces: ioctl_nsfs(2).

use nix::libc;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The id of a namespace, which no other namespace gets until the next boot, as it may get the
/// inode number: NS_GET_ID, Linux 6.18. None where the kernel does not tell it.
pub fn id(fd: BorrowedFd<'_>) -> Option<u64> {
    // linux/nsfs.h
    const NS_GET_ID: libc::Ioctl = nix::request_code_read!(0xb7, 13, size_of::<u64>());
    let mut id = 0_u64;
    // SAFETY: NS_GET_ID fills one u64, which is ours.
    let asked = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_ID, &mut id) };
    (asked == 0).then_some(id)
}
