//! A descriptor of a scanned process, as its kind has captured it.

use crate::error::{Error, Result};
use crate::image::{Bytes, Inode, OpenFile, Signals};
use crate::kind::{KindOps, OPAQUE, claimed_by, opaque};
use crate::proc::{CLOEXEC, Descriptor, FdInfo};
use std::os::fd::RawFd;

/// A descriptor as its kind has taken it, without what cannot leave its thread.
pub struct Captured {
    /// Its number.
    pub fd: RawFd,
    /// What readlink(2) shows of it.
    pub link: Bytes,
    /// Its fdinfo.
    pub info: FdInfo,
    /// What stat(2) says of it.
    pub inode: Option<Inode>,
    /// Whom it signals.
    pub signals: Option<Signals>,
    /// Its kind.
    pub kind: &'static KindOps,
    /// What is the same for all descriptions of its object.
    pub object: Option<(u32, u32, u64)>,
    body: Vec<u8>,
}

impl Captured {
    /// By its kind. What a kind does not understand is kept as it is.
    pub fn capture_or_opaque(it: Descriptor<'_>) -> Result<Captured> {
        let kind = claimed_by(&it);
        match (kind.capture)(&it) {
            Ok(body) => Ok(Captured::by(kind, it, body)),
            Err(_) => (OPAQUE.capture)(&it).map(|body| Captured::by(OPAQUE, it, body)),
        }
    }

    fn by(kind: &'static KindOps, it: Descriptor<'_>, body: Vec<u8>) -> Captured {
        let object = (kind.object)(&it);
        let Descriptor { fd, link, info, inode, signals, .. } = it;
        Captured { fd, link, info, inode, signals, kind, object, body }
    }

    /// What an image has of one that could not be looked at.
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

    /// Reports whether no kind claimed it.
    pub fn is_opaque(&self) -> bool {
        std::ptr::eq(self.kind, OPAQUE)
    }

    /// Access mode and status flags, without FD_CLOEXEC.
    pub fn flags(&self) -> u32 {
        self.info.flags & !CLOEXEC
    }

    /// Its record, with no object and no locks yet.
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

/// The record of a descriptor of this very process, by the rules of a scan, which its kind must
/// understand.
pub fn record_of(it: Descriptor<'_>, id: u32) -> Result<OpenFile> {
    let kind = claimed_by(&it);
    let body = (kind.capture)(&it)?;
    Ok(Captured::by(kind, it, body).into_file(id))
}
