//! Operations on a descriptor table, as data: what a restore does to the table, in the process that
//! has it. The driver in `table` makes the list, an executor runs it.

use crate::image::Lock;
use crate::sys::epoll::NewMember;
use serde::{Deserialize, Serialize};
use std::os::fd::RawFd;

/// How a description comes to its first number in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// Its source opens it: it is made anew.
    Opened,
    /// It comes from the fdstore of a tree, in this message.
    Store(u32),
    /// The process is forked with it.
    Parent,
    /// /dev/null, or what is like it for its kind, stands in its place.
    Null,
    /// The other end of a file, which is closed when the queue of that is filled.
    Parked,
}

/// An operation on a table. Numbers are final: an executor may have a descriptor elsewhere until
/// the list is at its end, and may skip a dup whose number is right already.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Places a description of the image at a number.
    Place {
        /// The number.
        number: RawFd,
        /// The file.
        file: u32,
        /// How it comes about.
        origin: Origin,
    },
    /// Places a descriptor of the caller: it stays at its number, or is copied to another.
    Inherit {
        /// The number.
        number: RawFd,
        /// The caller's number.
        from: RawFd,
    },
    /// Makes a second number of a description: dup(2).
    Dup {
        /// A number that the description has.
        from: RawFd,
        /// The new number.
        number: RawFd,
    },
    /// Makes a terminal the controlling one of the process: TIOCSCTTY of ioctl_tty(2).
    ControllingTerminal {
        /// The name of the terminal.
        name: String,
        /// It may be taken from another session: CAP_SYS_ADMIN.
        steal: bool,
    },
    /// Adds members to an epoll, in this order.
    EpollMembers {
        /// The number of the epoll.
        number: RawFd,
        /// The members.
        members: Vec<NewMember>,
    },
    /// Finishes a description through a descriptor of the restorer: sets a timer, fills a queue.
    Finish {
        /// The number.
        number: RawFd,
        /// The file.
        file: u32,
        /// The words for it.
        what: String,
    },
    /// Sets who is told that it is ready, and by which signal: F_SETOWN_EX and F_SETSIG of fcntl(2).
    Owner {
        /// The number.
        number: RawFd,
        /// F_OWNER_TID 0, F_OWNER_PID 1 or F_OWNER_PGRP 2, and the id; none leaves it.
        owner: Option<(i32, i32)>,
        /// The signal in place of SIGIO; zero for SIGIO itself.
        signal: i32,
    },
    /// Sets status flags with O_ASYNC: F_SETFL registers the process for SIGIO. An O_ASYNC that is
    /// given to open(2) is set and dead (fcntl(2)).
    Async {
        /// The number.
        number: RawFd,
        /// The status flags.
        flags: u32,
    },
    /// Takes a lock without waiting: flock(2), F_OFD_SETLK, F_SETLEASE or F_SETLK of fcntl(2).
    Lock {
        /// The number.
        number: RawFd,
        /// The lock.
        lock: Lock,
    },
    /// Asks whether a record lock could be taken: F_GETLK of fcntl(2).
    TestLock {
        /// The number.
        number: RawFd,
        /// The lock.
        lock: Lock,
    },
    /// Closes what was placed for a time only.
    Close {
        /// The number.
        number: RawFd,
    },
    /// Sets FD_CLOEXEC on a range of numbers, both included.
    CloseOnExec {
        /// The first number.
        first: RawFd,
        /// The last number.
        last: RawFd,
    },
    /// Makes the table smaller, if it has more slots than this.
    Shrink {
        /// Slots.
        capacity: u64,
    },
}

/// The result of an operation that did not fail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It is done.
    Done,
    /// A lock cannot be had, for this reason.
    Refused(String),
    /// Of each member of an epoll: zero, or the errno with which it was refused.
    Members(Vec<i32>),
}
