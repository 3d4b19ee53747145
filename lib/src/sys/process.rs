//! pidfds: of processes, of threads, and of a child that has ended.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// A flag of pidfd_open(2), Linux 6.9: the pidfd is of a thread, which need not be a leader of its
/// thread group. F_GETFL shows it.
pub const PIDFD_THREAD: u32 = libc::PIDFD_THREAD;

/// The signals whose default action does not end a process: signal(7).
const HARMLESS: [i32; 8] = [
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGSTOP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGURG,
    libc::SIGWINCH,
];

/// A pidfd without close-on-exec, of a process, or of a thread with [`PIDFD_THREAD`]:
/// pidfd_open(2). The kernel always sets the flag, and kinds open descriptors without it: COMMAND gets
/// them all, and a descriptor that is opened at its final number is not duplicated.
pub fn open(pid: i32, flags: u32) -> nix::Result<OwnedFd> {
    // SAFETY: the call takes two integers and returns a new descriptor that nobody else owns.
    let fd = unsafe {
        let fd = Errno::result(libc::syscall(libc::SYS_pidfd_open, pid, flags & PIDFD_THREAD))?;
        OwnedFd::from_raw_fd(fd as RawFd)
    };
    fcntl(fd.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(fd)
}

/// struct pidfd_info of linux/pidfd.h, in its first size.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit: i32,
}

/// The wait status (wait(2)) of a process that has ended and was waited for: PIDFD_GET_INFO of
/// ioctl_pidfd(2), Linux 6.15. None of any other process, and where the kernel does not tell it.
pub fn exit_status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    // linux/pidfd.h
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    const PIDFD_GET_INFO: libc::Ioctl =
        nix::request_code_readwrite!(0xff, 11, size_of::<PidfdInfo>());
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the number says that the struct has 64 bytes, which PidfdInfo has, and the kernel
    // fills no more of it.
    let asked = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &mut info) };
    (asked == 0 && info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit)
}

/// Says whether a number is the wait status of a process that has ended: an exit status, or a
/// signal that ends a process. A core dump is not told apart and is none.
pub fn is_exit_status(status: i32) -> bool {
    match status & 0x7f {
        0 => status & !0xff00 == 0,
        signal => signal <= 64 && status & !0xff == 0 && !HARMLESS.contains(&signal),
    }
}

/// A child that ends at once and is not waited for yet, so that pidfds of it can be opened. It
/// sends no SIGCHLD, which COMMAND would get.
pub struct Ended(i32);

impl Ended {
    /// Makes a child that ends with this wait status. If [`is_exit_status`] says that it is none,
    /// it exits with bits 8 to 15 of it.
    pub fn new(status: i32) -> nix::Result<Ended> {
        // SAFETY: clone without flags and with exit signal 0 is fork(2) without SIGCHLD; all
        // arguments are zero, so that their order on this machine does not matter.
        let pid = Errno::result(unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) })?;
        if pid == 0 {
            end(status);
        }
        Ok(Ended(pid as i32))
    }

    /// A pidfd of it: [`open`].
    pub fn open(&self, flags: u32) -> nix::Result<OwnedFd> {
        open(self.0, flags)
    }

    /// Waits for it, after which only its pidfds are left. Gives its wait status.
    pub fn reap(self) -> nix::Result<i32> {
        let status = wait(self.0);
        std::mem::forget(self);
        status
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = wait(self.0);
    }
}

fn wait(pid: i32) -> nix::Result<i32> {
    let mut status = 0;
    loop {
        // SAFETY: the call fills one int. Without an exit signal only __WALL finds the child.
        match Errno::result(unsafe { libc::waitpid(pid, &mut status, libc::__WALL) }) {
            Err(Errno::EINTR) => (),
            other => return other.map(|_| status),
        }
    }
}

/// Ends this process, a child that shares nothing with its parent but open files. Only functions of
/// signal-safety(7) are called, and prctl(2), which takes no lock either.
fn end(status: i32) -> ! {
    let signal = status & 0x7f;
    // SAFETY: all of these take integers, but for sigprocmask, which reads a set that
    // sigfillset has filled; SIG_DFL is no handler; _exit runs nothing of ours.
    unsafe {
        if signal != 0 && is_exit_status(status) {
            // No core file, whatever the limits.
            libc::prctl(libc::PR_SET_DUMPABLE, 0);
            libc::signal(signal, libc::SIG_DFL);
            let mut all = std::mem::MaybeUninit::uninit();
            libc::sigfillset(all.as_mut_ptr());
            libc::sigprocmask(libc::SIG_UNBLOCK, all.as_ptr(), std::ptr::null_mut());
            libc::kill(libc::getpid(), signal);
        }
        libc::_exit(status >> 8 & 0xff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_ends_as_it_is_told() {
        for status in [0, 3 << 8, 255 << 8, libc::SIGKILL, libc::SIGTERM, libc::SIGSEGV, 64] {
            assert!(is_exit_status(status));
            let child = Ended::new(status).unwrap();
            let fd = child.open(0).unwrap();
            assert_eq!(child.reap(), Ok(status));
            // Where the kernel tells it, it tells the same.
            assert_eq!(exit_status(fd.as_fd()).unwrap_or(status), status);
        }
    }

    #[test]
    fn no_process_ends_by_a_signal_that_stops_it() {
        for status in [libc::SIGSTOP, libc::SIGCHLD, 0x7f, 65, 0x10000, -1, 1 << 8 | 9] {
            assert!(!is_exit_status(status), "{status:#x}");
            assert!(Ended::new(status).unwrap().reap().is_ok());
        }
    }
}
