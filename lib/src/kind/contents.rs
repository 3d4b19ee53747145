//! The contents of objects, as a scan reads them: queues, memfds, unlinked files.

use crate::error::{Error, Result};
use crate::image::{Inode, MessageMeta};
pub use crate::kind::watch::watches::Watches;
use crate::proc::Process;
use crate::proc::openers::Openers;
use std::os::fd::OwnedFd;

/// A piece of the contents of an object, as a scan reads it.
#[derive(Debug, Default)]
pub struct Piece<'a> {
    /// The offset in a file, in bytes; zero in a queue.
    pub offset: i64,
    /// The bytes: at most [`crate::image::MAX_CHUNK`].
    pub bytes: &'a [u8],
    /// The addresses, priority and so on of a message.
    pub with: Option<MessageMeta>,
    /// Copies of the descriptors that are queued with a message.
    pub fds: Vec<OwnedFd>,
}

/// The context passed to [`Kind::contents`](crate::kind::Kind::contents).
pub struct ContentsContext<'a> {
    /// The process that has it open.
    pub process: &'a Process,
    /// The inode of the object, by fstat(2) when its contents are read.
    pub inode: &'a Inode,
    /// The key of the object: [`Kind::object`](crate::kind::Kind::object).
    pub object: (u32, u32, u64),
    /// The link text of a descriptor of it, by readlink(2).
    pub link: &'a [u8],
    /// The scanned processes, and the other openers of their objects.
    pub openers: &'a Openers,
    /// What processes watch for reads.
    pub watches: &'a Watches,
    /// The scanned processes are frozen: `--freeze`.
    pub frozen: bool,
}

impl ContentsContext<'_> {
    /// Fails unless every process that has the inode open is frozen. For contents that can be read
    /// only by removing them from a queue for a moment.
    pub fn require_frozen(&self) -> Result<()> {
        self.require_frozen_with(|| self.openers.other_opener(self.inode, self.link))
    }

    /// [`ContentsContext::require_frozen`] for an object that several inodes lead to.
    /// `other_opener` finds a process that has it open, or may have it open, and is not scanned.
    pub fn require_frozen_with(&self, other_opener: impl FnOnce() -> Option<i32>) -> Result<()> {
        if !self.frozen {
            let why = "reading them would disturb its users; scan with --freeze";
            return Err(Error::unrestorable(why));
        }
        match other_opener() {
            None => Ok(()),
            Some(pid) if std::fs::read_dir(format!("/proc/{pid}/fd")).is_ok() => {
                Err(Error::unrestorable(format!(
                    "process {pid}, which is not frozen, has it open; scan it too"
                )))
            }
            Some(pid) => Err(Error::unrestorable(format!(
                "process {pid} may have it open, but its descriptors cannot be read; run as root \
                 (CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH)"
            ))),
        }
    }
}

/// Fails with status 6 if contents have more bytes than `--data` allows.
pub(crate) fn check_limit(bytes: u64, limit: u64) -> Result<()> {
    match bytes <= limit {
        true => Ok(()),
        false => Err(Error::unrestorable(format!(
            "its {bytes} bytes are more than the limit {limit}: raise it (--data=BYTES)"
        ))),
    }
}

/// The function that [`Kind::contents`](crate::kind::Kind::contents) calls with each piece.
pub type Sink<'a> = &'a mut dyn FnMut(Piece<'_>) -> Result<()>;
