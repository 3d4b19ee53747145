//! Operations on a descriptor table, as data. The driver in `table` makes a list of them, and an
//! executor runs it in the process that has the table.

use crate::image::Lock;
use crate::sys::epoll::NewMember;
use serde::{Deserialize, Serialize};
use std::os::fd::RawFd;

/// The origin of the description that is placed at its first number in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The source opens the description: [`crate::table::source::Source`].
    Opened,
    /// The description is received from the fdstore of a tree, in this message.
    Store(u32),
    /// The process is forked with it.
    Parent,
    /// The description is the substitute of `--missing null`.
    Null,
    /// The description is the other end of the file, which is closed when the queue of the file is
    /// filled.
    ClosedEnd,
}

/// An operation on a table. Numbers are final: an executor may keep a descriptor at another number
/// until the end of the list, and may skip a dup(2) if the number is right already.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Places a description of the image at a number.
    Place {
        /// The number.
        number: RawFd,
        /// The id of the file.
        file: u32,
        /// The origin of the description.
        origin: Origin,
    },
    /// Places a descriptor of the caller: it stays at its number, or is duplicated to another.
    Inherit {
        /// The number.
        number: RawFd,
        /// The caller's number.
        from: RawFd,
    },
    /// Adds another number of a description: dup(2).
    Dup {
        /// A number that the description has.
        from: RawFd,
        /// The new number.
        number: RawFd,
    },
    /// Makes a terminal the controlling terminal of the process: TIOCSCTTY of ioctl_tty(2).
    ControllingTerminal {
        /// The name of the terminal.
        name: String,
        /// The terminal may be taken from another session, which takes CAP_SYS_ADMIN.
        steal: bool,
    },
    /// Adds members to an epoll, in order: epoll_ctl(2).
    EpollMembers {
        /// The number of the epoll.
        number: RawFd,
        /// The members.
        members: Vec<NewMember>,
    },
    /// Finishes a description by a descriptor in fdrestore: [`crate::kind::Kind::finish`] sets a
    /// timer or fills a queue, for example.
    Finish {
        /// The number.
        number: RawFd,
        /// The id of the file.
        file: u32,
        /// The text of [`crate::kind::Kind::finish_text`].
        what: String,
    },
    /// Sets the owner of a description and its signal: F_SETOWN_EX and F_SETSIG of fcntl(2).
    Owner {
        /// The number.
        number: RawFd,
        /// The type, F_OWNER_TID 0, F_OWNER_PID 1 or F_OWNER_PGRP 2, and the id; none leaves the
        /// owner unchanged.
        owner: Option<(i32, i32)>,
        /// The signal; zero for SIGIO.
        signal: i32,
    },
    /// Sets status flags with O_ASYNC: F_SETFL of fcntl(2). O_ASYNC as a flag of open(2) has no
    /// effect (BUGS of open(2)).
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
    /// Tests whether a record lock could be taken: F_GETLK of fcntl(2).
    TestLock {
        /// The number.
        number: RawFd,
        /// The lock.
        lock: Lock,
    },
    /// Closes a number that was placed for a time only.
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
    /// Shrinks the table, if it has more slots than this.
    Shrink {
        /// The number of slots.
        capacity: u64,
    },
}

/// The result of an operation that did not fail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// There is no further result.
    Done,
    /// A lock cannot be taken, for this reason.
    Refused(String),
    /// For each member of an epoll: zero, or the errno of epoll_ctl(2).
    Members(Vec<i32>),
}
