//! Descriptors that no other kind claims, or that could not be read: recorded with the facts that
//! /proc gives of every descriptor, and not restored.

use super::Kind;
use crate::error::{At, Error, Result};
use crate::image::{Bytes, OpenFile};
use crate::kind::context::{Opened, RestoreContext};
use crate::proc::socket_table::SocketLine;
use crate::proc::{Descriptor, bracketed};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// The facts of a descriptor that no other kind restores.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Opaque {
    /// The lines of fdinfo that are not common to all kinds.
    pub info: Bytes,
    /// The errno with which reading the descriptor failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
    /// The error with which reading the descriptor failed, as the scan showed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The descriptor is a socket, and the scan had no copy of it: a passive scan, or one without the
    /// right to make copies. The class of a socket, and its state, can only be read from a copy.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub uncopied: bool,
    /// The name of the table in /proc/PID/net that has a socket without a copy, such as `tcp6`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    /// The type of such a unix or packet socket: `stream`, `dgram`, `raw` or `seqpacket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// The protocol of such a netlink or packet socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<u32>,
    /// The state of such an internet or unix socket: `LISTEN` and so on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// The address that such a socket is bound to, as [`SocketLine::local`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<Bytes>,
    /// The address that such an internet socket is connected to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<Bytes>,
}

impl Opaque {
    /// The record of a descriptor whose reading failed.
    fn failed(info: Bytes, err: &Error) -> Opaque {
        let errno = err.errno().map(|errno| errno as i32);
        Opaque { info, errno, error: Some(err.to_string()), ..Opaque::default() }
    }

    /// The encoded record.
    fn encode(&self) -> Vec<u8> {
        serde_cbor::to_vec(self).unwrap_or_default()
    }

    /// The reason why the scan did not read the descriptor; none if it did.
    fn unread_reason(&self) -> Option<String> {
        let desc = |errno| Errno::from_raw(errno).desc().to_owned();
        let error = self.error.clone().or(self.errno.map(desc));
        error.or(self.uncopied.then(|| "scan without --passive, as root".to_owned()))
    }

    /// The error of a restore. `passive`: the image was made with `--passive`.
    fn refusal(&self, passive: bool) -> Error {
        Error::unrestorable(match self.unread_reason() {
            _ if self.uncopied && passive => {
                "the scan was passive, and does not read sockets: scan without --passive".to_owned()
            }
            _ if self.uncopied => {
                "the scan could not copy it, and so not read it: scan as root (CAP_SYS_PTRACE)"
                    .to_owned()
            }
            Some(why) => format!("the scan could not read it: {why}"),
            None => "no kind of this version restores it".to_owned(),
        })
    }
}

/// The encoded record of a descriptor that could not be looked at.
pub(crate) fn unreadable(err: &Error) -> Vec<u8> {
    Opaque::failed(Bytes::default(), err).encode()
}

/// The encoded record of a descriptor that its kind could not capture.
pub(crate) fn failed(descriptor: &Descriptor<'_>, err: &Error) -> Vec<u8> {
    Opaque::failed(descriptor.info.rest.as_bytes().into(), err).encode()
}

impl Kind for Opaque {
    const NAME: &'static str = crate::image::OPAQUE;

    fn claims(_: &Descriptor<'_>) -> bool {
        true
    }

    fn capture(descriptor: &Descriptor<'_>) -> Result<Self> {
        if let Some(errno) = descriptor.socket_errno() {
            return Err(errno).at(|| "SO_DOMAIN, SO_TYPE or SO_PROTOCOL");
        }
        let info = descriptor.info.rest.as_bytes().into();
        if !descriptor.is_socket() || descriptor.copy.is_some() {
            return Ok(Opaque { info, ..Opaque::default() });
        }
        let line = bracketed(&descriptor.link.0).map(|ino| descriptor.process.socket_line(ino));
        let line = line.unwrap_or(Ok(None)).unwrap_or_else(|err| {
            descriptor.warn(format!("its family, state and addresses are not known: {err}"));
            None
        });
        let SocketLine { table, class, protocol, state, local, remote } = line.unwrap_or_default();
        Ok(Opaque {
            info,
            uncopied: true,
            family: (!table.is_empty()).then(|| table.to_owned()),
            class: class.map(str::to_owned),
            protocol,
            state: state.map(str::to_owned),
            local: local.map(Bytes),
            remote: remote.map(Bytes),
            ..Opaque::default()
        })
    }

    fn describe(&self, file: &OpenFile) -> Option<String> {
        let why = self.unread_reason()?;
        let bytes = |bytes: &Bytes| String::from_utf8_lossy(&bytes.0).into_owned();
        let words = [
            self.family.clone(),
            self.class.clone(),
            self.protocol.map(|protocol| format!("protocol={protocol}")),
            Some(bytes(&file.link)),
            self.local.as_ref().map(bytes),
            self.remote.as_ref().map(|remote| format!("-> {}", bytes(remote))),
            self.state.clone(),
            Some(format!("(not read: {why})")),
        ];
        Some(words.into_iter().flatten().collect::<Vec<_>>().join(" "))
    }

    fn unread_reason(&self) -> Option<String> {
        Opaque::unread_reason(self)
    }

    fn check(&self, _: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        Err(self.refusal(cx.image.head.passive))
    }

    fn restore(&self, _: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        let Opaque {
            info: _,
            errno: _,
            error: _,
            uncopied: _,
            family: _,
            class: _,
            protocol: _,
            state: _,
            local: _,
            remote: _,
        } = self;
        Err(self.refusal(cx.image.head.passive))
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
        assert_eq!((body.errno, body.error), (None, None));
        assert!(file_of(&vsock).link.0.starts_with(b"socket:["));
    }
}
