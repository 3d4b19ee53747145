//! Timers with a descriptor, on any clock, for borrowed descriptors: timerfd_create(2).

use nix::errno::Errno;
use nix::libc;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// linux/timerfd.h; Linux 3.17, with CONFIG_CHECKPOINT_RESTORE.
const TFD_IOC_SET_TICKS: libc::Ioctl = nix::request_code_write!(b'T', 0, size_of::<u64>());

/// A disarmed timer without close-on-exec: timerfd_create(2).
///
/// Fails with EINVAL for a clock that has no timers, with EPERM for an alarm clock without
/// CAP_WAKE_ALARM.
pub fn create(clock: i32, nonblock: bool) -> nix::Result<OwnedFd> {
    let flags = if nonblock { libc::TFD_NONBLOCK } else { 0 };
    // SAFETY: the call takes two integers and returns a new descriptor that nobody else owns.
    unsafe {
        let fd = Errno::result(libc::timerfd_create(clock, flags))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

fn timespec(nanoseconds: u64) -> libc::timespec {
    // SAFETY: a timespec is integers, of which some targets pad one; zeroes are a value.
    let mut time: libc::timespec = unsafe { MaybeUninit::zeroed().assume_init() };
    time.tv_sec = (nanoseconds / 1_000_000_000) as libc::time_t;
    time.tv_nsec = (nanoseconds % 1_000_000_000) as _;
    time
}

fn nanoseconds(time: libc::timespec) -> u64 {
    (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
}

/// Arms a timer, which expires at `value` and then every `interval`, both in nanoseconds; a `value`
/// of zero disarms it. Its ticks become zero. timerfd_settime(2).
pub fn set(fd: BorrowedFd<'_>, flags: u32, value: u64, interval: u64) -> nix::Result<()> {
    let new = libc::itimerspec { it_value: timespec(value), it_interval: timespec(interval) };
    // SAFETY: the call reads one itimerspec; a null pointer asks for no old one.
    Errno::result(unsafe {
        libc::timerfd_settime(fd.as_raw_fd(), flags as i32, &new, std::ptr::null_mut())
    })
    .map(drop)
}

/// The time until a timer expires next, zero if it is disarmed, and its interval, both in
/// nanoseconds: timerfd_gettime(2). Expirations until now are added to the ticks, as by a read.
pub fn get(fd: BorrowedFd<'_>) -> nix::Result<(u64, u64)> {
    let mut found = MaybeUninit::<libc::itimerspec>::uninit();
    // SAFETY: the call fills one itimerspec when it succeeds.
    let found = unsafe {
        Errno::result(libc::timerfd_gettime(fd.as_raw_fd(), found.as_mut_ptr()))?;
        found.assume_init()
    };
    Ok((nanoseconds(found.it_value), nanoseconds(found.it_interval)))
}

/// Sets the ticks, the number of expirations that a read gives: TFD_IOC_SET_TICKS of
/// timerfd_create(2). Fails with EINVAL for zero, with ENOTTY in a kernel without
/// CONFIG_CHECKPOINT_RESTORE.
pub fn set_ticks(fd: BorrowedFd<'_>, ticks: u64) -> nix::Result<()> {
    // SAFETY: TFD_IOC_SET_TICKS reads one u64, which is ours.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), TFD_IOC_SET_TICKS, &ticks) }).map(drop)
}
