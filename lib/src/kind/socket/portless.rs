//! Raw and ping sockets: they have no ports, and their queues cannot be captured, since they have
//! no SO_PEEK_OFF.

use crate::error::Result;
use crate::image::OpenFile;
use crate::kind::context::{Opened, RestoreContext};
use crate::kind::socket::inet::{self, Inet};
use crate::kind::socket::option::{Phase, SocketClass};
use crate::kind::socket::{NONBLOCK, shut_down};
use crate::proc::Descriptor;
use crate::text::escape;
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;

/// The record of a raw or ping socket.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PortlessSocket {
    /// Its addresses and options.
    pub socket: Inet,
    /// The length of the first unread message, in bytes: SIOCINQ. The messages are not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    queued: Option<u32>,
    /// Shut down by shutdown(2): receiving 1, both directions 3. Sending alone cannot be read.
    shutdown: u8,
}

impl PortlessSocket {
    /// Captures a socket. `table` is its table in /proc/PID/net (`raw`, `icmp`): getpeername(2)
    /// fails for a peer without a port, and only this table has its address.
    pub(crate) fn capture(descriptor: &Descriptor<'_>, table: &str) -> Result<PortlessSocket> {
        let mut socket = Inet::capture(descriptor)?;
        socket.read_remote(descriptor, table);
        let fd = descriptor.require_copy()?;
        let (queued, shutdown) = inet::queue_state(fd)?;
        Ok(PortlessSocket { socket, queued, shutdown })
    }

    /// The text of [`crate::kind::Kind::describe`]; `name` is the name of the kind.
    pub(crate) fn describe(&self, name: &str) -> String {
        let queued = self.queued.map_or(String::new(), |bytes| format!(" queued={bytes}"));
        format!("{name} {}{queued}{}", self.socket.endpoints(), self.socket.netns_text())
    }

    /// Makes the socket, with its options, addresses and shutdown. Warns of lost messages.
    pub(crate) fn make(
        &self,
        socket_type: i32,
        file: &OpenFile,
        cx: &mut RestoreContext<'_>,
    ) -> Result<Opened> {
        let PortlessSocket { socket, queued, shutdown } = self;
        let made = socket.make_bound(socket_type, file, cx)?;
        socket.set_options(Phase::Last, made.as_fd(), file, cx)?;
        socket.connect(made.as_fd())?;
        shut_down(made.as_fd(), *shutdown)?;
        if queued.is_some() {
            let why =
                "its unread messages cannot be captured (it has no SO_PEEK_OFF), and are lost";
            cx.warnings.push(format!("{}: {why}", escape(&file.link.0)));
        }
        Ok(Opened::new(made, file.flags & NONBLOCK))
    }
}

/// Family, type and protocol of a descriptor, if it is an internet socket of this type.
pub(crate) fn class(descriptor: &Descriptor<'_>, socket_type: i32) -> Option<SocketClass> {
    inet::class(descriptor).filter(|class| class.1 == socket_type)
}
