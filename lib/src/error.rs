//! The error type of the library: the text of the message, and the exit status.

use nix::errno::Errno;
use std::fmt;

/// The exit statuses of all tools: EXIT STATUS of fdkit(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Status {
    /// The work is done.
    Done = 0,
    /// The answer is no: images differ, a rule is broken, or some descriptors were not captured.
    No = 1,
    /// The command line is wrong, or an image would be written to or read from a terminal.
    Misuse = 2,
    /// The image is malformed, is truncated, or has an unknown major version.
    Malformed = 3,
    /// The kernel does not permit it; the message names the cause and the cure.
    Denied = 4,
    /// The process has ended, or has changed during the work.
    Gone = 5,
    /// The image has something that cannot be restored here; nothing was changed.
    Unrestorable = 6,
    /// Another system call has failed.
    System = 7,
}

impl Status {
    /// All of them, by ascending code.
    pub const ALL: [Status; 8] = [
        Status::Done,
        Status::No,
        Status::Misuse,
        Status::Malformed,
        Status::Denied,
        Status::Gone,
        Status::Unrestorable,
        Status::System,
    ];

    /// The status with this code; `None` if there is none.
    pub fn from_code(code: u8) -> Option<Status> {
        Status::ALL.get(usize::from(code)).copied()
    }
}

/// A result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure: the operations that were going on, the reason, and the exit status.
///
/// Its text is `operation: reason`, the outermost operation first, without a full stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    status: Status,
    errno: Option<Errno>,
    /// The operations, innermost first.
    doing: Vec<String>,
    reason: String,
}

impl Error {
    /// A failure with this status and this reason.
    pub fn new(status: Status, reason: impl Into<String>) -> Self {
        Error { status, errno: None, doing: Vec::new(), reason: reason.into() }
    }

    /// A failure with [`Status::Misuse`].
    pub fn misuse(reason: impl Into<String>) -> Self {
        Self::new(Status::Misuse, reason)
    }

    /// A failure with [`Status::Malformed`].
    pub fn malformed(reason: impl Into<String>) -> Self {
        Self::new(Status::Malformed, reason)
    }

    /// A failure with [`Status::Unrestorable`].
    pub fn unrestorable(reason: impl Into<String>) -> Self {
        Self::new(Status::Unrestorable, reason)
    }

    /// A failure to make a process: fork(2) and clone(2).
    pub fn no_process(errno: Errno) -> Self {
        let mut failed = Error::from(errno).at("fork");
        if errno == Errno::EAGAIN {
            failed.reason =
                "the limit of processes is reached (ulimit -u, or pids.max of the cgroup)"
                    .to_owned();
        }
        failed
    }

    /// The exit status.
    pub fn status(&self) -> Status {
        self.status
    }

    /// The errno, if a system call has failed: errno(3).
    pub fn errno(&self) -> Option<Errno> {
        self.errno
    }

    /// The same failure with another status.
    pub fn with_status(mut self, status: Status) -> Self {
        self.status = status;
        self
    }

    /// Adds an operation, outside those that are there already.
    pub fn at(mut self, doing: impl Into<String>) -> Self {
        self.doing.push(doing.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for doing in self.doing.iter().rev() {
            write!(f, "{doing}: ")?;
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Error {}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        let status = match errno {
            Errno::EPERM | Errno::EACCES => Status::Denied,
            Errno::ESRCH => Status::Gone,
            _ => Status::System,
        };
        Error { status, errno: Some(errno), doing: Vec::new(), reason: errno.desc().to_owned() }
    }
}

impl From<std::io::Error> for Error {
    fn from(err: std::io::Error) -> Self {
        match err.raw_os_error() {
            Some(raw) => Errno::from_raw(raw).into(),
            None => Error::new(Status::System, err.to_string()),
        }
    }
}

impl From<memfd::Error> for Error {
    fn from(err: memfd::Error) -> Self {
        let (memfd::Error::Create(err) | memfd::Error::AddSeals(err) | memfd::Error::GetSeals(err)) =
            err;
        err.into()
    }
}

/// `.at(|| …)` on a result, which adds the operation to a failure. It is called where the operation
/// is known.
pub trait At<T> {
    /// Adds an operation to a failure, as [`Error::at`] does.
    fn at<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Error>> At<T> for std::result::Result<T, E> {
    fn at<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|err| err.into().at(doing()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_beyond_the_limit_is_told_the_limit() {
        let limit = Error::no_process(Errno::EAGAIN);
        assert!(
            limit.to_string().starts_with("fork: the limit of processes is reached (ulimit -u")
        );
        assert_eq!(limit.status(), Status::System);
        assert_eq!(Error::no_process(Errno::ENOMEM).to_string(), "fork: Out of memory");
    }

    #[test]
    fn the_outermost_operation_is_named_first() {
        let failed: Result<()> = Err(Errno::ENOENT).at(|| "open /x").at(|| "fd 3");
        assert_eq!(failed.unwrap_err().to_string(), "fd 3: open /x: No such file or directory");
    }

    #[test]
    fn every_status_is_found_by_its_code() {
        for status in Status::ALL {
            assert_eq!(Status::from_code(status as u8), Some(status));
        }
        assert_eq!(Status::from_code(8), None);
    }

    #[test]
    fn an_errno_has_the_status_of_its_kind() {
        assert_eq!(Error::from(Errno::EPERM).status(), Status::Denied);
        assert_eq!(Error::from(Errno::ESRCH).status(), Status::Gone);
        assert_eq!(Error::from(Errno::EIO).status(), Status::System);
    }
}
