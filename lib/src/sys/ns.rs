//! ioctl_nsfs(2).

use nix::libc;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The number of a namespace, which is never given to another one as inode numbers are: NS_GET_ID,
/// Linux 6.18. None where the kernel does not say.
pub fn id(fd: BorrowedFd<'_>) -> Option<u64> {
    // linux/nsfs.h
    const NS_GET_ID: libc::Ioctl = nix::request_code_read!(0xb7, 13, size_of::<u64>());
    let mut id = 0_u64;
    // SAFETY: NS_GET_ID fills one u64, which is ours.
    let asked = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_ID, &mut id) };
    (asked == 0).then_some(id)
}
