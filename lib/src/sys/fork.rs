//! A second process of this program.

use nix::errno::Errno;
use nix::libc;
use nix::unistd::{ForkResult, Pid};

/// fork(2): the child's id in the parent, none in the child.
///
/// Fails with EDEADLK in a process of several threads, of whose locks the child could hold any.
pub fn fork() -> nix::Result<Option<Pid>> {
    be_alone()?;
    wait_for_children();
    // SAFETY: there is no other thread, so the child may do all that the parent may.
    match unsafe { nix::unistd::fork()? } {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// How a child is made that is to be a task of a tree.
#[derive(Clone, Copy, Debug, Default)]
pub struct CloneArgs {
    /// It shares the descriptor table: CLONE_FILES.
    pub share: bool,
    /// Its parent is this process's parent: CLONE_PARENT.
    pub sibling: bool,
    /// The id it must have; zero for any. It takes CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN.
    pub pid: i32,
}

/// struct clone_args of clone3(2), in its second size (Linux 5.5).
#[repr(C)]
#[derive(Default)]
struct RawCloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
}

/// clone3(2) without memory in common: the child's id in the parent, none in the child. The C
/// library does not know of it, and believes the child to be its parent's thread: neither raise(3)
/// nor any lock that knows its owner may be used in the child.
///
/// Fails with EDEADLK in a process of several threads, and with EEXIST if the id is taken.
pub fn birth(how: CloneArgs) -> nix::Result<Option<Pid>> {
    be_alone()?;
    let pid = how.pid;
    let mut args = RawCloneArgs { exit_signal: libc::SIGCHLD as u64, ..RawCloneArgs::default() };
    if how.share {
        args.flags |= libc::CLONE_FILES as u64;
    }
    if how.sibling {
        // The kernel takes the exit signal of the caller itself.
        args.flags |= libc::CLONE_PARENT as u64;
        args.exit_signal = 0;
    }
    if pid != 0 {
        args.set_tid = (&raw const pid) as u64;
        args.set_tid_size = 1;
    }
    // SAFETY: the kernel reads the arguments and one pid. Without CLONE_VM the child has memory of
    // its own, and there is no other thread, so it may do all that the parent may.
    let child =
        unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<RawCloneArgs>()) };
    match Errno::result(child)? {
        0 => Ok(None),
        child => Ok(Some(Pid::from_raw(child as i32))),
    }
}

/// Fails where there are other threads. To look into /proc would take a number, and the table may
/// have none that is free.
fn be_alone() -> nix::Result<()> {
    // It changes nothing.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_THREAD).map_err(|_| Errno::EDEADLK)
}

/// Ends this process at once, with nothing of its parent's flushed or run.
pub fn end(status: i32) -> ! {
    // SAFETY: it takes an integer and does not return.
    unsafe { libc::_exit(status) }
}

/// Lets children end as they do by default: had our caller SIGCHLD ignored, the kernel would keep
/// no status of them.
pub fn wait_for_children() {
    // SAFETY: SIG_DFL is no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}
