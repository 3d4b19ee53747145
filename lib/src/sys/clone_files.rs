//! A child that shares this process's memory, and its descriptor table or not, while something is
//! done.

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, clone};
use std::sync::atomic::{AtomicBool, Ordering};

/// Enough for a child that makes two system calls.
const STACK: usize = 16 << 10;

/// What the child of [`with_shared_table`] looks at.
struct WaitState {
    parent: libc::pid_t,
    done: AtomicBool,
}

/// Stays until it is done, or until the parent has ended, however that comes about.
extern "C" fn wait(watch: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the parent keeps it until this child has ended.
    let watch = unsafe { &*watch.cast::<WaitState>() };
    // SAFETY: neither call takes an argument or can fail, so errno, which is the parent's too, stays.
    unsafe {
        while !watch.done.load(Ordering::Acquire) && libc::getppid() == watch.parent {
            libc::sched_yield();
        }
    }
    0
}

/// Does something while the descriptor table of this process has a second user.
///
/// A thread would do it too, but the C library brings signal handlers with its first one, and what
/// the caller had ignored would not be ignored any more after an exec.
pub fn with_shared_table<T>(work: impl FnOnce() -> T) -> nix::Result<T> {
    let watch = WaitState { parent: nix::unistd::getpid().as_raw(), done: AtomicBool::new(false) };
    let mut stack = vec![0u8; STACK];
    // The end of the stack, where it begins, aligned as every ABI wants it.
    let top = stack.as_mut_ptr_range().end.map_addr(|at| at & !15);
    let data = (&raw const watch).cast_mut().cast();
    // SAFETY: the child has a stack of its own, calls nothing that allocates, locks or unwinds, and
    // has ended when this function returns, before the stack and what it looks at go. (nix's clone
    // would drop the closure that the child runs as soon as it returns here.)
    let child = unsafe {
        Errno::result(libc::clone(wait, top.cast(), libc::CLONE_VM | libc::CLONE_FILES, data))?
    };
    let outcome = work();
    watch.done.store(true, Ordering::Release);
    reap(nix::unistd::Pid::from_raw(child));
    Ok(outcome)
}

/// Does something with a copy of the descriptor table, in which any number may be used: what is
/// closed there drops no record lock of this process, and this table does not grow.
///
/// This process waits meanwhile. `work` must not unwind.
pub fn with_copied_table<T>(work: impl FnOnce() -> T) -> nix::Result<T> {
    // Enough for what is built without optimisation.
    let mut stack = vec![0; 16 * STACK];
    let mut work = Some(work);
    let mut outcome = None;
    let run = || {
        outcome = work.take().map(|work| work());
        0
    };
    let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
    // SAFETY: as for vfork(2) nothing else runs in this memory until the child has ended, and it
    // has a stack of its own; what unwinds there is stopped by nix's C function.
    let child = unsafe { clone(Box::new(run), &mut stack, flags, None)? };
    reap(child);
    outcome.ok_or(Errno::ECHILD)
}

fn reap(child: nix::unistd::Pid) {
    // SAFETY: no status is asked for. Without an exit signal only __WALL finds the child.
    while Errno::result(unsafe {
        libc::waitpid(child.as_raw(), std::ptr::null_mut(), libc::__WALL)
    }) == Err(Errno::EINTR)
    {}
}
