//! A description of other processes that is read through a copy, as if nobody had read it.

use super::undo::UndoGuard;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Whence, lseek};
use std::os::fd::BorrowedFd;

/// A regular file whose position may be moved, and whose access time stays, while this lives.
///
/// Position and status flags belong to the description, and so to all processes that have it: none of
/// them may run meanwhile. Both are set back when this is dropped, or this process is killed. (A
/// process of several threads cannot fork, so there is nobody to set them back if that is killed.)
pub struct QuietRead<'a> {
    _guard: UndoGuard<'a>,
}

/// The state of a description.
#[derive(Clone, Copy)]
struct Before {
    flags: OFlag,
    position: i64,
}

impl Before {
    /// Gives the description this state.
    fn put(self, copy: BorrowedFd<'_>) -> nix::Result<()> {
        fcntl(copy, FcntlArg::F_SETFL(self.flags))?;
        lseek(copy, self.position, Whence::SeekSet).map(drop)
    }
}

impl<'a> QuietRead<'a> {
    /// Saves flags and position, and sets O_NOATIME. Fails with EPERM if this process neither owns the
    /// file nor has CAP_FOWNER.
    pub fn take(copy: BorrowedFd<'a>) -> nix::Result<QuietRead<'a>> {
        let flags = OFlag::from_bits_retain(fcntl(copy, FcntlArg::F_GETFL)?);
        let before = Before { flags, position: lseek(copy, 0, Whence::SeekCur)? };
        let _guard = UndoGuard::start(move || before.put(copy).is_ok())?;
        let taken = QuietRead { _guard };
        if !flags.contains(OFlag::O_NOATIME) {
            fcntl(copy, FcntlArg::F_SETFL(flags | OFlag::O_NOATIME))?;
        }
        Ok(taken)
    }
}
