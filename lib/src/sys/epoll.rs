//! epoll(7) by descriptors that are not ours to own.

use nix::errno::Errno;
use nix::libc;
use std::cmp::Ordering;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// How what a number has open compares, in the order of [`super::compare_files`], to what an epoll
/// watches: the member that was added as `target`, and of several such the `offset`th in fdinfo.
/// Both are a process and a number. kcmp(2) KCMP_EPOLL_TFD, Linux 4.13.
pub fn compare_target(
    (pid, fd): (i32, RawFd),
    (holder, epoll): (i32, RawFd),
    target: u32,
    offset: u32,
) -> nix::Result<Ordering> {
    const KCMP_EPOLL_TFD: i32 = 7;
    let slot = [epoll as u32, target, offset];
    let kind = KCMP_EPOLL_TFD;
    // SAFETY: the kernel reads one kcmp_epoll_slot, which is three 32 bit numbers.
    let order =
        unsafe { libc::syscall(libc::SYS_kcmp, pid, holder, kind, fd as libc::c_ulong, &slot) };
    match Errno::result(order)? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        _ => Ok(Ordering::Greater),
    }
}

/// How an epoll polls the network devices of its members: struct epoll_params, Linux 6.9.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Params {
    /// Microseconds.
    pub usecs: u32,
    /// Packets at a time.
    pub budget: u16,
    /// 1: in preference to interrupts.
    pub prefer: u8,
    pad: u8,
}

impl Params {
    /// What to set.
    pub fn new(usecs: u32, budget: u16, prefer: bool) -> Params {
        Params { usecs, budget, prefer: prefer.into(), pad: 0 }
    }
}

/// EPIOCGPARAMS of ioctl_eventpoll(2).
pub fn busy(epoll: BorrowedFd<'_>) -> nix::Result<Params> {
    let mut busy = Params::default();
    // SAFETY: the kernel fills one epoll_params, which Params is.
    Errno::result(unsafe { libc::ioctl(epoll.as_raw_fd(), libc::EPIOCGPARAMS, &mut busy) })?;
    Ok(busy)
}

/// EPIOCSPARAMS of ioctl_eventpoll(2).
pub fn set_busy(epoll: BorrowedFd<'_>, busy: Params) -> nix::Result<()> {
    // SAFETY: the kernel reads one epoll_params, which Params is.
    Errno::result(unsafe { libc::ioctl(epoll.as_raw_fd(), libc::EPIOCSPARAMS, &busy) }).map(drop)
}

/// Adds what a number has open, whatever that is: EPOLL_CTL_ADD of epoll_ctl(2).
pub fn epoll_add(epoll: BorrowedFd<'_>, fd: RawFd, events: u32, data: u64) -> nix::Result<()> {
    epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, events, data)
}

/// Changes a member: EPOLL_CTL_MOD of epoll_ctl(2).
pub fn epoll_modify(epoll: BorrowedFd<'_>, fd: RawFd, events: u32, data: u64) -> nix::Result<()> {
    epoll_ctl(epoll, libc::EPOLL_CTL_MOD, fd, events, data)
}

fn epoll_ctl(
    epoll: BorrowedFd<'_>,
    how: i32,
    fd: RawFd,
    events: u32,
    data: u64,
) -> nix::Result<()> {
    let mut event = libc::epoll_event { events, u64: data };
    // SAFETY: the kernel reads one epoll_event, and takes any number as `fd`.
    Errno::result(unsafe { libc::epoll_ctl(epoll.as_raw_fd(), how, fd, &mut event) }).map(drop)
}

/// Takes an event, if there is one: epoll_wait(2) without waiting.
pub fn epoll_take(epoll: BorrowedFd<'_>) -> nix::Result<bool> {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: the kernel fills one epoll_event at most.
    let count = unsafe { libc::epoll_wait(epoll.as_raw_fd(), &mut event, 1, 0) };
    Ok(Errno::result(count)? > 0)
}

/// Does something while `number` means what `fd` has open, and then means again what it meant.
///
/// Only in a copy of the table ([`super::share::with_copied_table`]): a close drops record locks.
pub fn lend<T>(
    fd: BorrowedFd<'_>,
    number: RawFd,
    work: impl FnOnce() -> nix::Result<T>,
) -> nix::Result<T> {
    let aside = match super::PlacedFd::inherited(number) {
        Ok(placed) => {
            // SAFETY: dup returned a new descriptor that nobody else owns.
            let copy = unsafe { Errno::result(libc::dup(placed.number()))? };
            // SAFETY: as above.
            Some(unsafe { OwnedFd::from_raw_fd(copy) })
        }
        Err(_) => None,
    };
    // SAFETY: dup3 takes integers; who stood at the number is put back below.
    Errno::result(unsafe { libc::dup3(fd.as_raw_fd(), number, libc::O_CLOEXEC) })?;
    let outcome = work();
    match aside {
        // SAFETY: as above.
        Some(aside) => Errno::result(unsafe { libc::dup3(aside.as_raw_fd(), number, 0) })?,
        // SAFETY: the number was free before, so nobody owns what stands there now.
        None => Errno::result(unsafe { libc::close(number) })?,
    };
    outcome
}
