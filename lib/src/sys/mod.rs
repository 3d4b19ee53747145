//! System calls for which nix has no safe function. `unsafe` is in this module alone: a call that
//! safe code could misuse is an `unsafe fn` here, or behind a type that cannot be misused.
#![allow(unsafe_code)]

pub mod clone_files;
pub mod credentials;
pub mod device;
pub mod epoll;
pub mod flags;
pub mod fnmatch;
pub mod fork;
pub mod lock;
pub mod memory;
pub mod mqueue;
pub mod notify;
pub mod ns;
pub mod out_of_memory;
pub mod own_table;
pub mod peek_guard;
pub mod process;
pub mod quiet_read;
pub mod seccomp;
pub mod shared_mem;
pub mod signal;
pub mod socket;
pub mod start;
pub mod timer;
pub mod title;
pub mod trace;
pub mod tty;
pub mod tun;
mod undo;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::cmp::Ordering;
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Commands of fcntl(2) that libc does not have: asm-generic/fcntl.h, and on all architectures.
const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;
const F_SETOWN_EX: i32 = 15;
const F_GETOWN_EX: i32 = 16;

/// Types of kcmp(2): linux/kcmp.h.
const KCMP_FILE: i32 = 0;
const KCMP_FILES: i32 = 2;

/// Runs `work` in a thread of its own, for calls that change one thread only (setns(2), unshare(2)).
/// Fails if there can be no other thread, or if `work` panics.
pub fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, work)?;
        thread.join().map_err(|_| std::io::Error::other("a thread has panicked"))
    })
}

/// A pidfd, which refers to this process and never to another: pidfd_open(2), Linux 5.3.
///
/// It has close-on-exec. Fails with ESRCH if there is no such process.
pub fn pidfd_open(pid: i32) -> nix::Result<OwnedFd> {
    // SAFETY: the call takes two integers and returns a new descriptor that nobody else owns.
    unsafe {
        let fd = Errno::result(libc::syscall(libc::SYS_pidfd_open, pid, 0))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// A pidfd of a thread, which need not lead its thread group: PIDFD_THREAD of pidfd_open(2), Linux
/// 6.9.
///
/// It has close-on-exec. Fails with EINVAL before Linux 6.9, and with ESRCH if there is no such thread.
pub fn pidfd_open_thread(thread: i32) -> nix::Result<OwnedFd> {
    // SAFETY: the call takes two integers and returns a new descriptor that nobody else owns.
    unsafe {
        let flags = process::PIDFD_THREAD;
        let fd = Errno::result(libc::syscall(libc::SYS_pidfd_open, thread, flags))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// A duplicate of descriptor `fd` of another process: pidfd_getfd(2), Linux 5.6.
///
/// It has close-on-exec. Fails with EPERM where ptrace(2) would not be permitted, with EBADF if
/// that number is not open there.
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: the call takes three integers and returns a new descriptor that nobody else owns.
    unsafe {
        let fd = Errno::result(libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

fn kcmp(one: i32, two: i32, kind: i32, a: RawFd, b: RawFd) -> nix::Result<Ordering> {
    // SAFETY: KCMP_FILE and KCMP_FILES take five integers and touch no memory.
    match Errno::result(unsafe { libc::syscall(libc::SYS_kcmp, one, two, kind, a, b) })? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        _ => Ok(Ordering::Greater),
    }
}

/// Compares the open file descriptions of two descriptors, each given as a process and a number:
/// kcmp(2) KCMP_FILE. Equal ones are one description; the order of others holds until the next
/// boot.
pub fn compare_files(a: (i32, RawFd), b: (i32, RawFd)) -> nix::Result<Ordering> {
    kcmp(a.0, b.0, KCMP_FILE, a.1, b.1)
}

/// Compares the descriptor tables of two processes: kcmp(2) KCMP_FILES. Equal ones are one table,
/// shared by CLONE_FILES.
pub fn compare_tables(a: i32, b: i32) -> nix::Result<Ordering> {
    kcmp(a, b, KCMP_FILES, 0, 0)
}

/// The attributes of a file: statx(2) with AT_STATX_DONT_SYNC, which asks no server.
pub fn stat(fd: BorrowedFd<'_>) -> nix::Result<libc::statx> {
    statx(fd.as_raw_fd(), c"", libc::AT_EMPTY_PATH)
}

/// [`stat`] of the file at a path; symbolic links are followed.
pub fn stat_path(path: &CStr) -> nix::Result<libc::statx> {
    statx(libc::AT_FDCWD, path, 0)
}

fn statx(dir: RawFd, path: &CStr, flags: i32) -> nix::Result<libc::statx> {
    let mut found = MaybeUninit::<libc::statx>::uninit();
    let flags = flags | libc::AT_STATX_DONT_SYNC | libc::AT_NO_AUTOMOUNT;
    // SAFETY: the path is a C string, and statx fills the whole struct when it succeeds.
    unsafe {
        let mask = libc::STATX_BASIC_STATS;
        Errno::result(libc::statx(dir, path.as_ptr(), flags, mask, found.as_mut_ptr()))?;
        Ok(found.assume_init())
    }
}

/// Checks that this process may use a file, by an O_PATH descriptor of it: faccessat2(2) with
/// AT_EACCESS and AT_EMPTY_PATH, Linux 5.8. `access` is of R_OK, W_OK and X_OK.
pub fn may_access(file: BorrowedFd<'_>, access: i32) -> nix::Result<()> {
    let flags = libc::AT_EACCESS | libc::AT_EMPTY_PATH;
    let fd = file.as_raw_fd();
    // SAFETY: the path is an empty C string.
    let done = unsafe { libc::syscall(libc::SYS_faccessat2, fd, c"".as_ptr(), access, flags) };
    Errno::result(done).map(drop)
}

/// The owner of an open file description: struct f_owner_ex of fcntl(2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// F_OWNER_TID 0, F_OWNER_PID 1 or F_OWNER_PGRP 2.
    pub kind: i32,
    /// The id of the thread, process or process group; zero if there is no owner.
    pub id: i32,
}

/// The owner of an open file description, which gets SIGIO and SIGURG: F_GETOWN_EX of fcntl(2).
pub fn owner(fd: BorrowedFd<'_>) -> nix::Result<Owner> {
    let mut owner = Owner::default();
    // SAFETY: F_GETOWN_EX fills one f_owner_ex, which Owner is.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, &mut owner) })?;
    Ok(owner)
}

/// Sets the owner of an open file description: F_SETOWN_EX of fcntl(2).
pub fn set_owner(fd: BorrowedFd<'_>, owner: Owner) -> nix::Result<()> {
    // SAFETY: F_SETOWN_EX reads one f_owner_ex, which Owner is.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), F_SETOWN_EX, &owner) }).map(drop)
}

/// The signal that the owner gets; zero means SIGIO: F_GETSIG of fcntl(2).
pub fn signal(fd: BorrowedFd<'_>) -> nix::Result<i32> {
    // SAFETY: F_GETSIG takes no argument.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETSIG) })
}

/// Sets the signal that the owner gets: F_SETSIG of fcntl(2).
pub fn set_signal(fd: BorrowedFd<'_>, signal: i32) -> nix::Result<()> {
    // SAFETY: F_SETSIG takes an integer.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), F_SETSIG, signal) }).map(drop)
}

/// The events that a descriptor has now, of those asked for, POLLHUP and POLLERR: poll(2) without
/// waiting.
pub fn poll_now(fd: BorrowedFd<'_>, events: PollFlags) -> nix::Result<PollFlags> {
    let mut polled = [PollFd::new(fd, events)];
    poll(&mut polled, PollTimeout::ZERO)?;
    Ok(polled[0].revents().unwrap_or_else(PollFlags::empty))
}

/// The number of bytes that can be read now: FIONREAD of ioctl(2).
pub fn readable(fd: BorrowedFd<'_>) -> nix::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD fills one int, which is ours.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &mut bytes) })?;
    Ok(bytes.max(0) as usize)
}
