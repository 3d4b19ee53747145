//! What went wrong, in words for the user, and the exit status that says what to do about it.

use nix::errno::Errno;
use std::fmt;

/// What every fdkit tool's exit status means. One table for all four; see fdkit(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Done = 0,
    /// The answer is no: differs, a rule is broken, or some descriptors could not be taken.
    No = 1,
    /// The command line is wrong, or a binary stream would have gone to or come from a terminal.
    Misuse = 2,
    /// The image is malformed, truncated, or of an unknown major version.
    Malformed = 3,
    /// Not permitted; the message names the cause and the cure.
    Denied = 4,
    /// The process is gone, or changed during the work.
    Gone = 5,
    /// The image holds what cannot be restored here; nothing was touched.
    Unrestorable = 6,
    /// Any other failure of the system.
    System = 7,
}

/// The result of everything here that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure: what was being done to what, why it failed, and the status that follows.
///
/// It is shown as `doing: reason`, outermost first, without a full stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    status: Status,
    errno: Option<Errno>,
    doing: Vec<String>,
    reason: String,
}

impl Error {
    /// A failure with this status, for this reason.
    pub fn new(status: Status, reason: impl Into<String>) -> Self {
        Error { status, errno: None, doing: Vec::new(), reason: reason.into() }
    }

    /// Wrong use of a command line.
    pub fn misuse(reason: impl Into<String>) -> Self {
        Self::new(Status::Misuse, reason)
    }

    /// An image that breaks a rule of fdimage(5).
    pub fn malformed(reason: impl Into<String>) -> Self {
        Self::new(Status::Malformed, reason)
    }

    /// Something that an image holds and that cannot be restored here.
    pub fn unrestorable(reason: impl Into<String>) -> Self {
        Self::new(Status::Unrestorable, reason)
    }

    /// The exit status that this failure asks for.
    pub fn status(&self) -> Status {
        self.status
    }

    /// The errno of the system call that failed, if one did.
    pub fn errno(&self) -> Option<Errno> {
        self.errno
    }

    /// The same failure under another status.
    pub fn with_status(mut self, status: Status) -> Self {
        self.status = status;
        self
    }

    /// Adds what was being done, outside what is already said.
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

/// `.at(|| …)` on a result: says what was being done where that is known.
pub trait At<T> {
    /// Adds what was being done to a failure.
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
    fn the_outermost_deed_is_named_first() {
        let failed: Result<()> = Err(Errno::ENOENT).at(|| "open /x").at(|| "fd 3");
        assert_eq!(failed.unwrap_err().to_string(), "fd 3: open /x: No such file or directory");
    }

    #[test]
    fn a_refusal_and_a_vanished_process_have_their_own_statuses() {
        assert_eq!(Error::from(Errno::EPERM).status(), Status::Denied);
        assert_eq!(Error::from(Errno::ESRCH).status(), Status::Gone);
        assert_eq!(Error::from(Errno::EIO).status(), Status::System);
    }
}
