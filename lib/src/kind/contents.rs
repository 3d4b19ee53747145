//! Contents of objects on their way into an image: queues, memfds, unlinked files.

use crate::error::{Error, Result};
use crate::image::{Inode, MessageMeta};
use crate::proc::openers;
use std::os::fd::OwnedFd;

/// A piece of contents on its way into an image.
#[derive(Debug, Default)]
pub struct Piece<'a> {
    /// Where it stands in a file; zero in a queue.
    pub offset: i64,
    /// At most [`crate::image::MAX_CHUNK`] bytes.
    pub bytes: &'a [u8],
    /// What came with a message.
    pub with: Option<MessageMeta>,
    /// Copies of the descriptors that wait with it.
    pub fds: Vec<OwnedFd>,
}

/// Where contents are read.
#[derive(Debug)]
pub struct ContentsContext<'a> {
    /// What is open, as stat(2) says it now.
    pub inode: &'a Inode,
    /// What [`Kind::object`] said of it.
    pub object: (u32, u32, u64),
    /// What readlink(2) shows of it.
    pub link: &'a [u8],
    /// The processes that are captured.
    pub captured: &'a [i32],
    /// Whether those stand still.
    pub frozen: bool,
}

impl ContentsContext<'_> {
    /// For contents whose reading would be noticed, as when they are taken out for a moment: fails
    /// unless everybody who has the inode open stands still.
    pub fn require_frozen(&self) -> Result<()> {
        let name = self.link.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        self.require_frozen_by(|captured| openers::another(self.inode, name, captured))
    }

    /// Likewise where the inode is not all: `another` finds a process which has it open, or may
    /// have, and is not among those that are captured.
    pub fn require_frozen_by(&self, another: impl FnOnce(&[i32]) -> Option<i32>) -> Result<()> {
        if !self.frozen {
            let why = "to read them would disturb it: that takes --freeze";
            return Err(Error::unrestorable(why));
        }
        match another(self.captured) {
            None => Ok(()),
            Some(pid) if std::fs::read_dir(format!("/proc/{pid}/fd")).is_ok() => Err(
                Error::unrestorable(format!("process {pid}, which is not stopped, has it open")),
            ),
            Some(pid) => Err(Error::unrestorable(format!(
                "process {pid} may have it open, but may not be looked at; run as root \
                 (CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH)"
            ))),
        }
    }
}

/// Takes contents.
pub type Sink<'a> = &'a mut dyn FnMut(Piece<'_>) -> Result<()>;
