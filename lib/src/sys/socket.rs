//! Socket options by their numbers.

use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsRawFd, BorrowedFd};

/// An option that is one int: getsockopt(2).
pub fn option(fd: BorrowedFd<'_>, level: i32, name: i32) -> nix::Result<i32> {
    let mut value: libc::c_int = 0;
    let mut len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, which `value` has.
    let got = unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len)
    };
    Errno::result(got)?;
    Ok(value)
}

/// Sets an option that is one int: setsockopt(2).
pub fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> nix::Result<()> {
    let len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes, which `value` has.
    let set =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), len) };
    Errno::result(set).map(drop)
}
