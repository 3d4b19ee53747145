//! A second process of this program.

use nix::errno::Errno;
use nix::libc;
use nix::unistd::{ForkResult, Pid};

/// fork(2): the child's id in the parent, none in the child.
///
/// Fails with EDEADLK in a process of several threads, of whose locks the child could hold any.
pub fn fork() -> nix::Result<Option<Pid>> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if !status.lines().any(|line| line.split_whitespace().eq(["Threads:", "1"])) {
        return Err(Errno::EDEADLK);
    }
    // SAFETY: SIG_DFL is no handler. Had our caller SIGCHLD ignored, the kernel would keep no status.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    // SAFETY: there is no other thread, so the child may do all that the parent may.
    match unsafe { nix::unistd::fork()? } {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}
