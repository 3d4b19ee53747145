//! What raw and ping sockets have in common: no ports of their own, and queues that cannot be
//! looked at, since they have no SO_PEEK_OFF.

use crate::error::Result;
use crate::image::OpenFile;
use crate::kind::context::{Opened, RestoreContext};
use crate::kind::socket::inet::{self, Inet, NONBLOCK};
use crate::kind::socket::option::{Class, Phase};
use crate::proc::Descriptor;
use crate::text::escape;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;

/// A socket without ports.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plain {
    /// Addresses and options.
    pub socket: Inet,
    /// The bytes of the first message that waits to be read, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    queued: Option<u32>,
    /// What is shut down: receiving 1, both 3. Sending alone is shown nowhere.
    shutdown: u8,
}

impl Plain {
    /// `table` names its kind in /proc/net: what is connected to no port is told of only there.
    pub(crate) fn capture(it: &Descriptor<'_>, table: &str) -> Result<Plain> {
        let mut socket = Inet::capture(it)?;
        socket.look_up(it, table);
        let fd = it.copy.as_ref().ok_or(Errno::EBADF)?.as_fd();
        let (queued, shutdown) = inet::waiting(fd)?;
        Ok(Plain { socket, queued, shutdown })
    }

    pub(crate) fn describe(&self, name: &str) -> String {
        let queued = self.queued.map_or(String::new(), |bytes| format!(" queued={bytes}"));
        format!("{name} {}{queued}", self.socket.ends())
    }

    pub(crate) fn make(
        &self,
        kind: i32,
        file: &OpenFile,
        cx: &mut RestoreContext<'_>,
    ) -> Result<Opened> {
        let Plain { socket, queued, shutdown } = self;
        let made = socket.make(kind, file, cx)?;
        socket.set(Phase::Last, made.as_fd(), file, cx)?;
        socket.connect(made.as_fd())?;
        socket.shut(made.as_fd(), *shutdown)?;
        if queued.is_some() {
            let why = "the messages in its queue cannot be looked at, and are lost";
            cx.warnings.push(format!("{}: {why}", escape(&file.link.0)));
        }
        Ok(Opened::new(made, file.flags & NONBLOCK))
    }
}

/// The family, type and protocol of a descriptor, if it is a socket of this type.
pub(crate) fn class(it: &Descriptor<'_>, kind: i32) -> Option<Class> {
    inet::class(it).filter(|class| class.1 == kind)
}
