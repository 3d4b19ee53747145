//! The peek offset of a socket, which is restored even if this process is killed.

use super::fork;
use super::socket::{option, set_option};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2, read, setsid};
use std::os::fd::{BorrowedFd, OwnedFd};

/// SO_PEEK_OFF of socket(7), set to the beginning of the queue. The offset belongs to the socket,
/// and so to all processes that have it; it is set back when this is dropped.
///
/// A child in a session of its own waits for the end of this process and sets the offset back if it
/// is killed. A process of several threads has no such child, since it cannot fork.
pub struct PeekOffset<'a> {
    socket: BorrowedFd<'a>,
    before: i32,
    guard: Option<(Pid, OwnedFd)>,
}

impl<'a> PeekOffset<'a> {
    /// Saves the offset, and sets it to zero. Fails with EOPNOTSUPP if the socket has none.
    pub fn take(socket: BorrowedFd<'a>) -> nix::Result<PeekOffset<'a>> {
        let before = option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF)?;
        let (theirs, ours) = pipe2(OFlag::O_CLOEXEC)?;
        let guard = match fork::fork() {
            Ok(Some(child)) => Some((child, ours)),
            Ok(None) => {
                let _ = setsid();
                drop(ours);
                while read(&theirs, &mut [0]) == Err(Errno::EINTR) {}
                fork::end(i32::from(put(socket, before).is_err()))
            }
            Err(Errno::EDEADLK) => None,
            Err(errno) => return Err(errno),
        };
        let taken = PeekOffset { socket, before, guard };
        taken.set(0)?;
        Ok(taken)
    }

    /// The offset in the queue at which the next peek begins, in bytes.
    pub fn get(&self) -> nix::Result<i32> {
        option(self.socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF)
    }

    /// Sets the offset at which the next peek begins.
    pub fn set(&self, at: i32) -> nix::Result<()> {
        put(self.socket, at)
    }
}

fn put(socket: BorrowedFd<'_>, at: i32) -> nix::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, at)
}

impl Drop for PeekOffset<'_> {
    fn drop(&mut self) {
        let done = self.guard.take().is_some_and(|(child, pipe)| {
            drop(pipe);
            waitpid(child, None) == Ok(WaitStatus::Exited(child, 0))
        });
        if !done {
            let _ = put(self.socket, self.before);
        }
    }
}
