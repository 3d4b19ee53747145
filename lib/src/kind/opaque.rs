//! Descriptors that no other kind claims, or that could not be read: recorded with the facts that
//! /proc gives of every descriptor, and not restored.

use super::Kind;
use crate::error::{Error, Result};
use crate::image::{Bytes, OpenFile};
use crate::kind::context::{Opened, RestoreContext};
use crate::proc::Descriptor;
use serde::{Deserialize, Serialize};

/// The facts of a descriptor that no other kind restores.
#[derive(Serialize, Deserialize)]
pub(crate) struct Opaque {
    /// The lines of fdinfo that are not common to all kinds.
    pub info: Bytes,
    /// The errno with which reading the descriptor failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
}

/// The body of a descriptor whose reading failed with an errno.
pub(crate) fn unreadable(errno: i32) -> Vec<u8> {
    serde_cbor::to_vec(&Opaque { info: Bytes::default(), errno: Some(errno) }).unwrap_or_default()
}

impl Kind for Opaque {
    const NAME: &'static str = crate::image::OPAQUE;

    fn claims(_: &Descriptor<'_>) -> bool {
        true
    }

    fn capture(it: &Descriptor<'_>) -> Result<Self> {
        Ok(Opaque { info: it.info.rest.as_bytes().into(), errno: None })
    }

    fn check(&self, _: &OpenFile, _: &RestoreContext<'_>) -> Result<()> {
        Err(Error::unrestorable(match self.errno {
            Some(errno) => format!("the scan could not read it (errno {errno})"),
            None => "no kind of this version restores it".to_owned(),
        }))
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        let Opaque { info: _, errno: _ } = self;
        self.check(file, cx)?;
        Err(Error::unrestorable("no kind of this version restores it"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::tests::{body_of, file_of};

    #[test]
    fn a_descriptor_of_no_kind_is_recorded_with_its_link() {
        let vsock = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Vsock,
            nix::sys::socket::SockType::Stream,
            nix::sys::socket::SockFlag::SOCK_CLOEXEC,
            None,
        );
        let Ok(vsock) = vsock else { return };
        let body: Opaque = body_of(&vsock);
        assert_eq!(body.errno, None);
        assert!(file_of(&vsock).link.0.starts_with(b"socket:["));
    }
}
