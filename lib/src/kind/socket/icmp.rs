//! icmp(7): ping sockets, of type SOCK_DGRAM and protocol IPPROTO_ICMP or IPPROTO_ICMPV6.

use crate::error::{Error, Result};
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

/// A ping socket. The port of its local address is the identifier of its echo requests.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Icmp(PortlessSocket);

/// Reports whether a protocol is that of a ping socket.
fn is_icmp(protocol: i32) -> bool {
    matches!(protocol, libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6)
}

impl Kind for Icmp {
    const NAME: &'static str = "icmp";

    fn claims(descriptor: &Descriptor<'_>) -> bool {
        portless::class(descriptor, libc::SOCK_DGRAM)
            .is_some_and(|(_, _, protocol)| is_icmp(protocol))
    }

    fn capture(descriptor: &Descriptor<'_>) -> Result<Self> {
        PortlessSocket::capture(descriptor, "icmp").map(Icmp)
    }

    fn describe(&self, _: &OpenFile) -> Option<String> {
        Some(self.0.describe(Self::NAME))
    }

    fn validate(&self, _: &OpenFile) -> Result<()> {
        let protocol = self.0.socket.protocol();
        if !is_icmp(protocol) {
            let why = format!("protocol {protocol} is not IPPROTO_ICMP or IPPROTO_ICMPV6");
            return Err(Error::malformed(why));
        }
        self.0.socket.validate()
    }

    fn effects(&self, _: &OpenFile, _: &RestoreContext<'_>) -> Result<Vec<Effect>> {
        Ok(self.0.socket.effects())
    }

    fn check(&self, _: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        self.0.socket.check(libc::SOCK_DGRAM, cx)
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        self.check(file, cx)?;
        let Icmp(socket) = self;
        socket.make(libc::SOCK_DGRAM, file, cx)
    }

    fn substitute(&self, _: &OpenFile) -> Result<OwnedFd> {
        // A UDP socket needs no membership in net.ipv4.ping_group_range.
        inet::null_socket(&self.0.socket, libc::SOCK_DGRAM, 0)
    }
}
