//! A change to an object of other processes that is undone even if this process is killed.

use super::fork;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2, read, setsid};
use std::os::fd::OwnedFd;

/// Undoes a change when it is dropped, or when this process ends: by a child in a session of its own,
/// which waits for that. A process of several threads has no such child, since it cannot fork, and
/// undoes the change itself when this is dropped.
pub(super) struct UndoGuard<'a> {
    child: Option<(Pid, OwnedFd)>,
    undo: Box<dyn Fn() -> bool + 'a>,
}

impl<'a> UndoGuard<'a> {
    /// Starts the child, before anything is changed. `undo` is true if it has undone the change.
    pub(super) fn start(undo: impl Fn() -> bool + 'a) -> nix::Result<UndoGuard<'a>> {
        let undo = Box::new(undo);
        let (theirs, ours) = pipe2(OFlag::O_CLOEXEC)?;
        match fork::fork() {
            Ok(Some(child)) => Ok(UndoGuard { child: Some((child, ours)), undo }),
            Ok(None) => {
                let _ = setsid();
                drop(ours);
                while read(&theirs, &mut [0]) == Err(Errno::EINTR) {}
                fork::end(i32::from(!undo()))
            }
            Err(Errno::EDEADLK) => Ok(UndoGuard { child: None, undo }),
            Err(errno) => Err(errno),
        }
    }
}

impl Drop for UndoGuard<'_> {
    fn drop(&mut self) {
        let undone = self.child.take().is_some_and(|(child, pipe)| {
            drop(pipe);
            waitpid(child, None) == Ok(WaitStatus::Exited(child, 0))
        });
        if !undone {
            (self.undo)();
        }
    }
}
