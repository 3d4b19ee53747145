//! A descriptor of a scanned process, after its kind has captured it.

use crate::error::{Error, Result};
use crate::image::{Bytes, Inode, OpenFile, Signals};
use crate::kind::{KindOps, OPAQUE, claimed_by, opaque};
use crate::proc::{CLOEXEC, Descriptor, FdInfo};
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
    /// The key of the object: [`crate::kind::Kind::object`].
    pub object: Option<(u32, u32, u64)>,
    body: Vec<u8>,
}

impl Captured {
    /// Captures a descriptor by its kind, or as `opaque` if the kind fails.
    pub fn capture_or_opaque(it: Descriptor<'_>) -> Result<Captured> {
        let kind = claimed_by(&it);
        match (kind.capture)(&it) {
            Ok(body) => Ok(Captured::new(kind, it, body)),
            Err(_) => (OPAQUE.capture)(&it).map(|body| Captured::new(OPAQUE, it, body)),
        }
    }

    fn new(kind: &'static KindOps, it: Descriptor<'_>, body: Vec<u8>) -> Captured {
        let object = (kind.object)(&it);
        let Descriptor { fd, link, info, inode, signals, .. } = it;
        Captured { fd, link, info, inode, signals, kind, object, body }
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
            object: None,
            body: opaque::unreadable(err.errno().map_or(0, |errno| errno as i32)),
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
pub fn record_of(it: Descriptor<'_>, id: u32) -> Result<OpenFile> {
    let kind = claimed_by(&it);
    let body = (kind.capture)(&it)?;
    Ok(Captured::new(kind, it, body).into_file(id))
}
