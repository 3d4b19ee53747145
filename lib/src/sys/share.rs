//! A child that shares this process's memory and descriptor table while something is done.

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, clone};
use std::sync::atomic::{AtomicBool, Ordering};

/// Enough for a child that makes two system calls.
const STACK: usize = 16 << 10;

/// Does something while the descriptor table of this process has a second user.
///
/// A thread would do it too, but the C library brings signal handlers with its first one, and what
/// the caller had ignored would not be ignored any more after an exec.
pub fn with_shared_table<T>(work: impl FnOnce() -> T) -> nix::Result<T> {
    let parent = nix::unistd::getpid().as_raw();
    let done = AtomicBool::new(false);
    let mut stack = vec![0; STACK];
    // It also ends when this process does, however that comes about.
    let wait = || {
        while !done.load(Ordering::Acquire) && nix::unistd::getppid().as_raw() == parent {
            // SAFETY: no arguments, and it cannot fail, so errno, which is ours too, stays.
            unsafe { libc::sched_yield() };
        }
        0
    };
    let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_FILES;
    // SAFETY: the child has a stack of its own, calls nothing that allocates, locks or unwinds, and
    // has ended when this function returns, before the stack and `done` go.
    let child = unsafe { clone(Box::new(wait), &mut stack, flags, None)? };
    let outcome = work();
    done.store(true, Ordering::Release);
    // SAFETY: no status is asked for. Without an exit signal only __WALL finds the child.
    while Errno::result(unsafe {
        libc::waitpid(child.as_raw(), std::ptr::null_mut(), libc::__WALL)
    }) == Err(Errno::EINTR)
    {}
    Ok(outcome)
}
