//! What takes a second process for a moment, with this one's memory: to make the descriptor table
//! of this process a smaller copy, or to do something in a copy of it.
//!
//! A thread would do too, but the C library brings signal handlers with its first one, and what the
//! caller had ignored would not be ignored any more after an exec.

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, clone, unshare};
use nix::unistd::Pid;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Enough for a child that makes two system calls.
const STACK: usize = 16 << 10;

/// What the second user of the table looks at.
struct WaitState {
    parent: libc::pid_t,
    done: AtomicBool,
}

/// Stays until it is done, or until the parent has ended, however that comes about.
extern "C" fn wait(watch: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the parent keeps it until this child has ended.
    let watch = unsafe { &*watch.cast::<WaitState>() };
    // SAFETY: neither call takes an argument or can fail, so errno, which is the parent's too,
    // stays.
    unsafe {
        while !watch.done.load(Ordering::Acquire) && libc::getppid() == watch.parent {
            libc::sched_yield();
        }
    }
    0
}

/// Gives this thread a copy of its descriptor table, of the size that the highest open number asks
/// for: unshare(2) with CLONE_FILES, or, where a filter denies that, as that of docker does,
/// close_range(2) of no number with CLOSE_RANGE_UNSHARE.
///
/// The kernel copies a table only if somebody shares it, so a child does meanwhile.
pub fn copy_table() -> nix::Result<()> {
    let watch = WaitState { parent: nix::unistd::getpid().as_raw(), done: AtomicBool::new(false) };
    let mut stack = vec![0u8; STACK];
    // The end of the stack, where it begins, aligned as every ABI wants it.
    let top = stack.as_mut_ptr_range().end.map_addr(|at| at & !15);
    let data = (&raw const watch).cast_mut().cast();
    // SAFETY: the child has a stack of its own, calls nothing that allocates, locks or unwinds, and
    // has ended when this function returns, before the stack and what it looks at go: nothing
    // between here and there unwinds. (nix's clone would drop the closure that the child runs as
    // soon as it returns here.)
    let child = unsafe {
        Errno::result(libc::clone(wait, top.cast(), libc::CLONE_VM | libc::CLONE_FILES, data))?
    };
    let outcome = unshare(CloneFlags::CLONE_FILES).or_else(|_| {
        let (none, how) = (libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE);
        // SAFETY: three integers; no number is that high, so that nothing is closed.
        Errno::result(unsafe { libc::syscall(libc::SYS_close_range, none, none, how) }).map(drop)
    });
    watch.done.store(true, Ordering::Release);
    reap(Pid::from_raw(child));
    outcome
}

/// Reads a file whole by a copy of the descriptor table, so that this table has room for one number
/// less and does not grow: what FDSize of proc_pid_status(5) says stays true.
pub fn read_aside(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let read = || {
        // All numbers below the soft limit of open files may be in use: one is closed in the copy.
        // SAFETY: nothing in the copy uses it.
        unsafe { libc::close(0) };
        std::fs::File::open(path)?.read_to_end(&mut text)
    };
    // SAFETY: the file is closed where it was opened, and what is given back owns no descriptor.
    unsafe { with_copied_table(read)?? };
    Ok(text)
}

/// Does something with a copy of the descriptor table, in which any number may be used: what is
/// closed there drops no record lock of this process, and this table does not grow. This thread
/// waits meanwhile.
///
/// # Safety
///
/// No descriptor that `work` opens may be owned by anything that it leaves behind, in its result or
/// elsewhere: here the number is free, or means another file. What `work` closes or replaces stays
/// as it was here.
pub(super) unsafe fn with_copied_table<T>(work: impl FnOnce() -> T) -> nix::Result<T> {
    // Enough for what is built without optimisation.
    let mut stack = vec![0; 16 * STACK];
    let mut work = Some(work);
    let mut outcome = None;
    let run = || {
        // What unwinds may not leave the child's stack.
        outcome = work.take().map(|work| catch_unwind(AssertUnwindSafe(work)));
        0
    };
    let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
    // SAFETY: as for vfork(2) this thread stands still until the child, which has its thread-local
    // memory, has ended; the child has a stack of its own.
    let child = unsafe { clone(Box::new(run), &mut stack, flags, None)? };
    reap(child);
    match outcome {
        Some(Ok(outcome)) => Ok(outcome),
        Some(Err(panic)) => resume_unwind(panic),
        None => Err(Errno::ECHILD),
    }
}

fn reap(child: Pid) {
    // SAFETY: no status is asked for. Without an exit signal only __WALL finds the child.
    while Errno::result(unsafe {
        libc::waitpid(child.as_raw(), std::ptr::null_mut(), libc::__WALL)
    }) == Err(Errno::EINTR)
    {}
}

/// Runs a test in a thread that has a descriptor table of its own, with 0, 1 and 2 alone: numbers that
/// other tests open and close do not affect it.
#[cfg(test)]
pub(crate) fn in_own_table(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        let flags = libc::CLOSE_RANGE_UNSHARE;
        // SAFETY: three integers. The numbers are closed in the copy of the table that the flag makes
        // for this thread; the owners of the descriptors are in the table of the other threads.
        Errno::result(unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, flags) }).unwrap();
        test();
    });
    if let Err(panic) = thread.join() {
        resume_unwind(panic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn what_is_done_aside_changes_nothing_here() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let fd = file.as_raw_fd();
        // SAFETY: nothing that is opened there is given back.
        let closed = unsafe { with_copied_table(|| libc::close(fd)) };
        assert_eq!(closed, Ok(0));
        assert!(file.metadata().is_ok());
        assert_eq!(read_aside(Path::new("/dev/null")).unwrap(), b"");
        assert_eq!(read_aside(Path::new("/no/such")).unwrap_err().raw_os_error(), Some(2));
    }

    #[test]
    fn what_unwinds_aside_unwinds_here() {
        // SAFETY: nothing is opened.
        let caught = catch_unwind(|| unsafe { with_copied_table(|| panic!("told")) });
        let told = caught.unwrap_err();
        assert_eq!(told.downcast_ref::<&str>(), Some(&"told"));
    }
}
