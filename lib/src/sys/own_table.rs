//! The descriptor table of this process, when a restore takes it over.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the table was taken over.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The right to place, replace and close any number of this process's descriptor table.
///
/// There is one. Whoever takes it has first brought all that the process still needs under it
/// ([`OwnTable::adopt`]): other owners of numbers would find them closed, or to be another file. A
/// child made by fork(2) has the table of its parent, and this right to it.
#[derive(Debug)]
pub struct OwnTable(());

/// A descriptor at a number that [`OwnTable`] knows. Nothing closes it but the table, or an exec.
#[derive(Debug, PartialEq, Eq)]
pub struct PlacedFd(RawFd);

impl PlacedFd {
    /// The number.
    pub fn number(&self) -> RawFd {
        self.0
    }
}

impl AsFd for PlacedFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the table closes a PlacedFd by value, and ranges that have none.
        unsafe { BorrowedFd::borrow_raw(self.0) }
    }
}

/// Reports whether a number is open in this process: F_GETFD of fcntl(2).
pub fn is_open(number: RawFd) -> bool {
    // SAFETY: F_GETFD takes no pointer and changes nothing, whatever the number means.
    unsafe { libc::fcntl(number, libc::F_GETFD) != -1 }
}

/// Reports whether a number is open and was so before this program was executed: execve(2) closes
/// descriptors with FD_CLOEXEC, and all that this program opens before a restore have it.
pub fn was_inherited(number: RawFd) -> bool {
    // SAFETY: as in `is_open`.
    unsafe { libc::fcntl(number, libc::F_GETFD) == 0 }
}

/// Closes every number of this process but 2, in a child that only counts or waits.
pub fn close_all_but_stderr() -> nix::Result<()> {
    close_range(0, 1)?;
    close_range(3, RawFd::MAX)
}

/// Closes every number of this process but one, in a child that only holds something.
pub fn close_all_but(kept: RawFd) -> nix::Result<()> {
    if kept > 0 {
        close_range(0, kept - 1)?;
    }
    close_range(kept + 1, RawFd::MAX)
}

fn close_range(first: RawFd, last: RawFd) -> nix::Result<()> {
    let (first, last) = (first as libc::c_uint, last as libc::c_uint);
    // SAFETY: three integers; the callers say why nobody owns what is closed.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// Reports whether [`OwnTable::take`] was called: 0, 1 and 2 may be restored descriptors since.
pub(super) fn is_taken() -> bool {
    TAKEN.load(Ordering::Relaxed)
}

impl OwnTable {
    /// Takes the table over; none if that was done before.
    pub fn take() -> Option<OwnTable> {
        (!TAKEN.swap(true, Ordering::Relaxed)).then_some(OwnTable(()))
    }

    /// Brings a descriptor under the table, at the number that it has.
    pub fn adopt(&self, fd: OwnedFd) -> PlacedFd {
        PlacedFd(fd.into_raw_fd())
    }

    /// The descriptor at a number. Fails with EBADF if it is not open.
    pub fn at(&self, number: RawFd) -> nix::Result<PlacedFd> {
        if is_open(number) { Ok(PlacedFd(number)) } else { Err(Errno::EBADF) }
    }

    /// The descriptor at a number that is known to be open: this process's parent placed it.
    pub fn known(&self, number: RawFd) -> PlacedFd {
        PlacedFd(number)
    }

    /// Places a descriptor at a number. Fails with EBUSY if that is open, and leaves it.
    ///
    /// No system call if it is there already, two otherwise.
    pub fn place(&self, fd: OwnedFd, number: RawFd) -> nix::Result<PlacedFd> {
        if fd.as_raw_fd() == number {
            return Ok(self.adopt(fd));
        }
        self.dup(fd.as_fd(), number)
    }

    /// Makes a second number of a description, with one system call. Fails with EBUSY if the number
    /// is open, and leaves it.
    pub fn dup(&self, fd: BorrowedFd<'_>, number: RawFd) -> nix::Result<PlacedFd> {
        // SAFETY: fcntl returned a new descriptor that nobody else owns.
        let new = unsafe { OwnedFd::from_raw_fd(fcntl(fd, FcntlArg::F_DUPFD(number))?) };
        match new.as_raw_fd() {
            there if there == number => Ok(self.adopt(new)),
            _ => Err(Errno::EBUSY),
        }
    }

    /// Moves a descriptor to a number that is free, with two system calls.
    pub fn shift(&self, placed: PlacedFd, number: RawFd) -> nix::Result<PlacedFd> {
        let there = self.dup(placed.as_fd(), number)?;
        self.close(placed);
        Ok(there)
    }

    /// Moves a descriptor to a number with FD_CLOEXEC, and closes what is there. If that fails, the
    /// descriptor stays where it is.
    pub fn replace(&self, placed: &mut PlacedFd, number: RawFd) -> nix::Result<()> {
        if placed.0 != number {
            // SAFETY: dup3 takes integers; the table owns what it closes.
            Errno::result(unsafe { libc::dup3(placed.0, number, libc::O_CLOEXEC) })?;
            self.close(std::mem::replace(placed, PlacedFd(number)));
        }
        Ok(())
    }

    /// Closes a descriptor. An error of close(2) is ignored: the number is free after it.
    pub fn close(&self, placed: PlacedFd) {
        // SAFETY: the table owns it, and it was given up.
        unsafe { libc::close(placed.0) };
    }

    /// Closes every number from `first` to `last`, both included: close_range(2), Linux 5.9.
    pub fn close_range(&self, first: RawFd, last: RawFd) -> nix::Result<()> {
        close_range(first, last)
    }

    /// Sets FD_CLOEXEC from `first` to `last`, both included: CLOSE_RANGE_CLOEXEC, Linux 5.11.
    pub fn close_on_exec(&self, first: RawFd, last: RawFd) -> nix::Result<()> {
        let (first, last) = (first as libc::c_uint, last as libc::c_uint);
        let how = libc::CLOSE_RANGE_CLOEXEC;
        // SAFETY: three integers, and nothing is closed.
        Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, how) }).map(drop)
    }
}
