//! The peek offset of a socket, which is restored even if this process is killed.

use super::socket::{option, set_option};
use super::undo::UndoGuard;
use nix::libc;
use std::os::fd::BorrowedFd;

/// SO_PEEK_OFF of socket(7), set to the beginning of the queue. The offset belongs to the socket,
/// and so to all processes that have it; it is set back when this is dropped, or this process is killed.
/// (A process of several threads cannot fork, so there is nobody to set it back if that is killed.)
pub struct PeekOffset<'a> {
    socket: BorrowedFd<'a>,
    _guard: UndoGuard<'a>,
}

impl<'a> PeekOffset<'a> {
    /// Saves the offset, and sets it to zero. Fails with EOPNOTSUPP if the socket has none.
    pub fn take(socket: BorrowedFd<'a>) -> nix::Result<PeekOffset<'a>> {
        let before = option(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF)?;
        let _guard = UndoGuard::start(move || put(socket, before).is_ok())?;
        let taken = PeekOffset { socket, _guard };
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
