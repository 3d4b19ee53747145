//! raw(7): raw sockets of IPv4 and IPv6, which receive all packets of one protocol.

use crate::error::Result;
use crate::image::OpenFile;
use crate::kind::Kind;
use crate::kind::context::{Opened, RestoreContext};
use crate::kind::effect::Effect;
use crate::kind::socket::inet;
use crate::kind::socket::portless::{self, PortlessSocket};
use crate::proc::Descriptor;
use nix::libc;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;

/// A raw socket. The port of its local address is its protocol, as getsockname(2) returns it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Raw(PortlessSocket);

impl Kind for Raw {
    const NAME: &'static str = "raw";

    fn claims(descriptor: &Descriptor<'_>) -> bool {
        portless::class(descriptor, libc::SOCK_RAW).is_some()
    }

    fn capture(descriptor: &Descriptor<'_>) -> Result<Self> {
        PortlessSocket::capture(descriptor, "raw").map(Raw)
    }

    fn describe(&self, _: &OpenFile) -> Option<String> {
        Some(self.0.describe(Self::NAME))
    }

    fn validate(&self, _: &OpenFile) -> Result<()> {
        self.0.socket.validate()
    }

    fn effects(&self, _: &OpenFile, _: &RestoreContext<'_>) -> Result<Vec<Effect>> {
        Ok(self.0.socket.effects())
    }

    fn check(&self, _: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        self.0.socket.check(libc::SOCK_RAW, cx)
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        self.check(file, cx)?;
        let Raw(socket) = self;
        socket.make(libc::SOCK_RAW, file, cx)
    }

    fn substitute(&self, _: &OpenFile) -> Result<OwnedFd> {
        // A UDP socket needs no CAP_NET_RAW.
        inet::null_socket(&self.0.socket, libc::SOCK_DGRAM, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::tests::describe_of;
    use crate::sys::socket;
    use nix::errno::Errno;
    use std::os::fd::AsFd;

    #[test]
    fn the_peer_address_is_captured_although_it_has_no_port() {
        let raw = match socket::new(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP) {
            Err(Errno::EPERM) => return,
            raw => raw.unwrap(),
        };
        let description = || describe_of(&raw);
        assert_eq!(description(), "raw 0.0.0.0:1");
        let to = inet::Address::parse("127.0.0.1:0").unwrap().encode(raw.as_fd()).unwrap();
        socket::connect(raw.as_fd(), &to).unwrap();
        assert_eq!(description(), "raw 127.0.0.1:1 -> 127.0.0.1:0");
    }
}
