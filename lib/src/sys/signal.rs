//! Signals that are waited for or read: nix has no names for the real-time ones.

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes one of these signals, which are blocked, if one is pending: sigtimedwait(2) without
/// waiting.
pub fn take_pending(set: &SigSet) -> Option<Signal> {
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the set and the time outlive the call, and nothing is asked to be filled.
    let got = unsafe { libc::sigtimedwait(set.as_ref(), std::ptr::null_mut(), &now) };
    Signal::try_from(got).ok()
}

/// A signalfd without close-on-exec for the signals of a mask, of which signal n is bit n - 1:
/// signalfd4(2), Linux 2.6.27. The kernel leaves SIGKILL and SIGSTOP out and reports no error.
pub fn signalfd(mask: u64, nonblock: bool) -> nix::Result<OwnedFd> {
    // Two words of 32 bits where a long has no more; the lower one is first in the kernel's set.
    #[cfg(all(target_endian = "big", target_pointer_width = "32"))]
    let mask = mask.rotate_left(32);
    let flags = if nonblock { libc::SFD_NONBLOCK } else { 0 };
    // SAFETY: the call reads a kernel sigset of as many bytes as it is told, which is the u64; it
    // returns a new descriptor that nobody else owns.
    unsafe {
        let size = std::mem::size_of_val(&mask);
        let fd = Errno::result(libc::syscall(libc::SYS_signalfd4, -1, &mask, size, flags))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}
