//! A decoded record of any kind.

use crate::error::{Error, Result};
use crate::image::OpenFile;
use crate::kind::context::{Opened, RestoreContext};
use crate::kind::effect::Effect;
use crate::kind::{Kind, OpenTerminal, Prerequisite, named};
use crate::operation::{Operation, Outcome};
use crate::proc::Descriptor;
use crate::terminal::Settings;
use crate::text::escape;
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

/// A record whose body was decoded and validated: [`Kind`] without its type.
pub trait Record: Any {
    /// The record as a value whose type can be asked for. A cast to it takes Rust 1.86.
    fn as_any(&self) -> &dyn Any;
    /// [`Kind::SEEKABLE`]
    fn is_seekable(&self) -> bool;
    /// [`Kind::EARLY`]
    fn is_early(&self) -> bool;
    /// [`Kind::CARRIES_DESCRIPTORS`]
    fn carries_descriptors(&self) -> bool;
    /// [`Kind::describe`]
    fn describe(&self, file: &OpenFile) -> Option<String>;
    /// [`Kind::unread_reason`]
    fn unread_reason(&self) -> Option<String>;
    /// [`Kind::terminal`]
    fn terminal(&self) -> Option<OpenTerminal>;
    /// [`Kind::settings`]
    fn settings(&self) -> Option<&Settings>;
    /// [`Kind::validate`]
    fn validate(&self, file: &OpenFile) -> Result<()>;
    /// [`Kind::check`]
    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()>;
    /// [`Kind::effects`]
    fn effects(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<Vec<Effect>>;
    /// [`Kind::prerequisite`]
    fn prerequisite(&self, file: &OpenFile) -> Prerequisite;
    /// [`Kind::socket_inode`]
    fn socket_inode(&self, file: &OpenFile) -> Option<u64>;
    /// [`Kind::peer_inodes`]
    fn peer_inodes(&self) -> Vec<u64>;
    /// [`Kind::has_closed_end`]
    fn has_closed_end(&self) -> bool;
    /// [`Kind::restore`]
    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened>;
    /// [`Kind::operation`]
    fn operation(&self, number: RawFd, cx: &RestoreContext<'_>) -> Result<Option<Operation>>;
    /// [`Kind::finish_text`]
    fn finish_text(&self) -> Option<&'static str>;
    /// [`Kind::finish`]
    fn finish(
        &self,
        file: &OpenFile,
        number: RawFd,
        fd: BorrowedFd<'_>,
        outcome: &Outcome,
        cx: &mut RestoreContext<'_>,
    ) -> Result<()>;
    /// [`Kind::finish_last`]
    fn finish_last(
        &self,
        file: &OpenFile,
        fd: BorrowedFd<'_>,
        cx: &mut RestoreContext<'_>,
    ) -> Result<()>;
    /// [`Kind::substitute`]
    fn substitute(&self, file: &OpenFile) -> Result<OwnedFd>;
}

impl<K: Kind> Record for K {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn is_seekable(&self) -> bool {
        K::SEEKABLE
    }

    fn is_early(&self) -> bool {
        K::EARLY
    }

    fn carries_descriptors(&self) -> bool {
        K::CARRIES_DESCRIPTORS
    }

    fn describe(&self, file: &OpenFile) -> Option<String> {
        Kind::describe(self, file)
    }

    fn unread_reason(&self) -> Option<String> {
        Kind::unread_reason(self)
    }

    fn terminal(&self) -> Option<OpenTerminal> {
        Kind::terminal(self)
    }

    fn settings(&self) -> Option<&Settings> {
        Kind::settings(self)
    }

    fn validate(&self, file: &OpenFile) -> Result<()> {
        Kind::validate(self, file)
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        Kind::check(self, file, cx)
    }

    fn effects(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<Vec<Effect>> {
        Kind::effects(self, file, cx)
    }

    fn prerequisite(&self, file: &OpenFile) -> Prerequisite {
        Kind::prerequisite(self, file)
    }

    fn socket_inode(&self, file: &OpenFile) -> Option<u64> {
        Kind::socket_inode(self, file)
    }

    fn peer_inodes(&self) -> Vec<u64> {
        Kind::peer_inodes(self)
    }

    fn has_closed_end(&self) -> bool {
        Kind::has_closed_end(self)
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        Kind::restore(self, file, cx)
    }

    fn operation(&self, number: RawFd, cx: &RestoreContext<'_>) -> Result<Option<Operation>> {
        Kind::operation(self, number, cx)
    }

    fn finish_text(&self) -> Option<&'static str> {
        Kind::finish_text(self)
    }

    fn finish(
        &self,
        file: &OpenFile,
        number: RawFd,
        fd: BorrowedFd<'_>,
        outcome: &Outcome,
        cx: &mut RestoreContext<'_>,
    ) -> Result<()> {
        Kind::finish(self, file, number, fd, outcome, cx)
    }

    fn finish_last(
        &self,
        file: &OpenFile,
        fd: BorrowedFd<'_>,
        cx: &mut RestoreContext<'_>,
    ) -> Result<()> {
        Kind::finish_last(self, file, fd, cx)
    }

    fn substitute(&self, file: &OpenFile) -> Result<OwnedFd> {
        Kind::substitute(self, file)
    }
}

/// The record of a kind that this version does not know. It is copied as it is, and not restored.
#[derive(Serialize, Deserialize)]
struct UnknownKind;

impl UnknownKind {
    fn refusal(file: &OpenFile) -> Error {
        let kind = escape(file.kind.as_bytes());
        Error::unrestorable(format!("this version does not know the kind {kind}"))
    }
}

/// This kind is not in [`crate::kind::KINDS`]: no descriptor and no image names it.
impl Kind for UnknownKind {
    const NAME: &'static str = "";
    const CARRIES_DESCRIPTORS: bool = true;

    fn claims(_: &Descriptor<'_>) -> bool {
        false
    }

    fn capture(_: &Descriptor<'_>) -> Result<Self> {
        Ok(UnknownKind)
    }

    fn check(&self, file: &OpenFile, _: &RestoreContext<'_>) -> Result<()> {
        Err(UnknownKind::refusal(file))
    }

    fn restore(&self, file: &OpenFile, _: &mut RestoreContext<'_>) -> Result<Opened> {
        Err(UnknownKind::refusal(file))
    }
}

/// Decodes the body of a file and checks every field of it. Fails with status 3.
///
/// The record of a kind that this version does not know passes, and fails with status 6 when it is
/// to be restored.
pub fn decode(file: &OpenFile) -> Result<Box<dyn Record>> {
    let record = match named(&file.kind) {
        Some(kind) => (kind.decode)(file)?,
        None => Box::new(UnknownKind),
    };
    record.validate(file)?;
    Ok(record)
}

/// Decodes the body of a file of kind K. Fails with status 3.
pub(crate) fn decode_body<K: Kind>(file: &OpenFile) -> Result<K> {
    serde_cbor::from_slice(&file.body)
        .map_err(|err| Error::malformed(format!("its body is not that of kind {}: {err}", K::NAME)))
}
