//! Locks of whole files: flock(2), and leases (fcntl(2)).

use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The lease of an open file description: F_RDLCK, F_WRLCK or F_UNLCK. F_GETLEASE of fcntl(2).
pub fn lease(fd: BorrowedFd<'_>) -> nix::Result<i32> {
    // SAFETY: F_GETLEASE takes no argument.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETLEASE) })
}

/// Takes a lease, or gives it up with F_UNLCK: F_SETLEASE of fcntl(2). Fails with EAGAIN if others
/// have the file open, with EACCES if it is another user's.
pub fn set_lease(fd: BorrowedFd<'_>, kind: i32) -> nix::Result<()> {
    // SAFETY: F_SETLEASE takes an integer.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETLEASE, kind) }).map(drop)
}

/// Takes or converts a lock of the whole file, LOCK_SH or LOCK_EX, for the open file description,
/// without waiting: flock(2). Fails with EAGAIN if another description has one.
pub fn flock(fd: BorrowedFd<'_>, how: i32) -> nix::Result<()> {
    // SAFETY: two integers.
    Errno::result(unsafe { libc::flock(fd.as_raw_fd(), how | libc::LOCK_NB) }).map(drop)
}
