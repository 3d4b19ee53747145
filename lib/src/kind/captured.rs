//! A descriptor of a scanned process, after its kind has captured it.

use crate::error::{Error, Result};
use crate::image::{Bytes, Inode, OpenFile, Signals};
use crate::kind::{KindOps, OPAQUE, claimed_by, opaque};
use crate::proc::{CLOEXEC, Descriptor, FdInfo};
use nix::errno::Errno;
use std::os::fd::RawFd;

/// The facts of a descriptor, including those that its kind has captured. Unlike [`Descriptor`] it
/// can be sent to another thread.
pub struct Captured {
    /// The number.
    pub fd: RawFd,
    /// The link text, by readlink(2).
    pub link: Bytes,
    /// The fdinfo.
    pub info: FdInfo,
    /// The inode, by fstat(2).
    pub inode: Option<Inode>,
    /// The owner and the signal of F_GETOWN_EX and F_GETSIG.
    pub signals: Option<Signals>,
    /// The kind.
    pub kind: &'static KindOps,
    /// The kind that claimed it, and could not capture it: then [`Captured::kind`] is `opaque`.
    pub failed_kind: Option<&'static KindOps>,
    /// The facts that could not be captured, as messages; with [`Captured::failed_kind`], the error.
    pub warnings: Vec<String>,
    /// The key of the object: [`crate::kind::Kind::object`].
    pub object: Option<(u32, u32, u64)>,
    body: Vec<u8>,
}

impl Captured {
    /// Captures a descriptor by its kind. If the kind fails, the descriptor is captured as `opaque`,
    /// with the error in its record and in [`Captured::warnings`].
    ///
    /// Fails with ENOENT or EBADF if the number was closed in the meantime.
    pub fn capture_or_opaque(descriptor: Descriptor<'_>) -> Result<Captured> {
        let kind = claimed_by(&descriptor);
        let err = match (kind.capture)(&descriptor) {
            Ok(body) => return Ok(Captured::new(kind, descriptor, body)),
            Err(err) => err,
        };
        // A copy stays open when the number is closed.
        if descriptor.copy.is_none() && matches!(err.errno(), Some(Errno::ENOENT | Errno::EBADF)) {
            return Err(err);
        }
        let body = opaque::failed(&descriptor, &err);
        let mut captured = Captured::new(OPAQUE, descriptor, body);
        captured.failed_kind = Some(kind);
        captured.warnings = vec![format!("it is recorded as opaque: {err}")];
        Ok(captured)
    }

    fn new(kind: &'static KindOps, descriptor: Descriptor<'_>, body: Vec<u8>) -> Captured {
        let object = (kind.object)(&descriptor);
        let warnings = descriptor.warnings.take();
        let Descriptor { fd, link, info, inode, signals, .. } = descriptor;
        Captured { fd, link, info, inode, signals, kind, failed_kind: None, warnings, object, body }
    }

    /// The facts of a descriptor that could not be read, with the errno of `err`.
    pub fn unreadable(fd: RawFd, err: &Error) -> Captured {
        Captured {
            fd,
            link: Bytes::default(),
            info: FdInfo::default(),
            inode: None,
            signals: None,
            kind: OPAQUE,
            failed_kind: None,
            warnings: Vec::new(),
            object: None,
            body: opaque::unreadable(err),
        }
    }

    /// Reports whether the descriptor is of no other kind than `opaque`.
    pub fn is_opaque(&self) -> bool {
        std::ptr::eq(self.kind, OPAQUE)
    }

    /// The access mode and the status flags, without O_CLOEXEC, which fdinfo adds.
    pub fn flags(&self) -> u32 {
        self.info.flags & !CLOEXEC
    }

    /// The record of the descriptor, with no object and no locks yet.
    pub fn into_file(self, id: u32) -> OpenFile {
        OpenFile {
            id,
            kind: self.kind.name.to_owned(),
            flags: self.flags(),
            pos: self.info.pos,
            link: self.link,
            mnt: self.info.mnt,
            inode: self.inode,
            signals: self.signals,
            object: None,
            locks: Vec::new(),
            body: self.body,
        }
    }
}

/// Captures a descriptor of this process and makes its record. Fails if its kind fails.
pub fn record_of(descriptor: Descriptor<'_>, id: u32) -> Result<OpenFile> {
    let kind = claimed_by(&descriptor);
    let body = (kind.capture)(&descriptor)?;
    Ok(Captured::new(kind, descriptor, body).into_file(id))
}
