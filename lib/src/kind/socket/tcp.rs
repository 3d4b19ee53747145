//! tcp(7) and MPTCP: listening sockets, and unconnected ones, are restored. Connections are
//! recorded and not restored.

use crate::error::{At, Error, Result};
use crate::image::OpenFile;
use crate::kind::Kind;
use crate::kind::context::{Opened, RestoreContext};
use crate::kind::socket::inet::{self, Inet};
use crate::kind::socket::option::Phase;
use crate::kind::socket::{NONBLOCK, listen, shutdown_even_unconnected};
use crate::operation::Outcome;
use crate::proc::Descriptor;
use crate::proc::socket_table::tcp_state_name;
use crate::sys;
use crate::text::escape;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::Shutdown;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

const CLOSE: u8 = 7;
const LISTEN: u8 = 10;

/// A TCP socket.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tcp {
    /// Its addresses and options.
    socket: Inet,
    /// Its state, tcpi_state of TCP_INFO; see [`tcp_state_name`].
    state: u8,
    /// The backlog of a listening socket, and the number of its pending connections, which are not
    /// kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    listens: Option<(u32, u32)>,
    /// The parameters of a connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    connection: Option<Connection>,
    /// The number of unread bytes before end-of-file, if the connection has ended and writes fail
    /// with EPIPE. The bytes are not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ended: Option<u32>,
}

/// Parameters of a connection: struct tcp_info of linux/tcp.h.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Connection {
    /// Unread bytes: SIOCINQ.
    queued: u32,
    /// Bytes that were written and are not yet acknowledged: SIOCOUTQ.
    unsent: u32,
    /// TCPI_OPT_TIMESTAMPS 1, SACK 2, WSCALE 4, ECN 8.
    options: u8,
    /// Window scales: tcpi_snd_wscale and tcpi_rcv_wscale.
    scales: (u8, u8),
    /// tcpi_snd_mss and tcpi_rcv_mss, in bytes.
    segments: (u32, u32),
    /// Smoothed round trip time, tcpi_rtt, in microseconds.
    rtt: u32,
}

/// Fields of struct tcp_info.
struct TcpInfo {
    state: u8,
    options: u8,
    scales: (u8, u8),
    segments: (u32, u32),
    /// tcpi_unacked and tcpi_sacked: of a listening socket, its pending connections and its
    /// backlog.
    queue: (u32, u32),
    rtt: u32,
}

impl TcpInfo {
    /// Parses a struct tcp_info; none if it is too short.
    fn parse(bytes: &[u8]) -> Option<TcpInfo> {
        let word = |at: usize| Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
        let scales = *bytes.get(6)?;
        Some(TcpInfo {
            state: *bytes.first()?,
            options: *bytes.get(5)?,
            // tcpi_snd_wscale, the first bit field, is the low half on little-endian machines.
            scales: match cfg!(target_endian = "little") {
                true => (scales & 15, scales >> 4),
                false => (scales >> 4, scales & 15),
            },
            segments: (word(16)?, word(20)?),
            queue: (word(24)?, word(28)?),
            rtt: word(68)?,
        })
    }

    /// Reads it from a socket: TCP_INFO of tcp(7).
    fn read(fd: BorrowedFd<'_>) -> Result<TcpInfo> {
        let mut bytes = [0; 104];
        let len = sys::socket::option_bytes(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut bytes);
        let len = len.at(|| "TCP_INFO")?;
        TcpInfo::parse(&bytes[..len.min(bytes.len())]).ok_or_else(|| Errno::EINVAL.into())
    }
}

impl Tcp {
    /// Reports whether its state is that of a connection.
    fn is_connection(&self) -> bool {
        !matches!(self.state, CLOSE | LISTEN)
    }

    /// The name of its state; `?` if there is no such state.
    fn state_name(&self) -> &'static str {
        tcp_state_name(self.state.into()).unwrap_or("?")
    }
}

impl Kind for Tcp {
    const NAME: &'static str = "tcp";

    fn claims(descriptor: &Descriptor<'_>) -> bool {
        matches!(
            inet::class(descriptor),
            Some((_, libc::SOCK_STREAM, libc::IPPROTO_TCP | libc::IPPROTO_MPTCP))
        )
    }

    fn capture(descriptor: &Descriptor<'_>) -> Result<Self> {
        let socket = Inet::capture(descriptor)?;
        let fd = descriptor.require_copy()?;
        let info = TcpInfo::read(fd)?;
        let mut tcp =
            Tcp { socket, state: info.state, listens: None, connection: None, ended: None };
        match info.state {
            LISTEN => tcp.listens = Some((info.queue.1, info.queue.0)),
            CLOSE => {
                // POLLIN: unread bytes or end-of-file. A socket that was never connected has
                // neither.
                if sys::socket::ready(fd).at(|| "poll")? & libc::POLLIN != 0 {
                    tcp.ended = Some(sys::readable(fd).at(|| "SIOCINQ")? as u32);
                }
            }
            _ => {
                tcp.connection = Some(Connection {
                    queued: sys::readable(fd).at(|| "SIOCINQ")? as u32,
                    unsent: sys::socket::unsent(fd).at(|| "SIOCOUTQ")? as u32,
                    options: info.options,
                    scales: info.scales,
                    segments: info.segments,
                    rtt: info.rtt,
                });
            }
        }
        if tcp.connection.is_some() || tcp.ended.is_some() {
            // On a connection these have the values in use, not those that were set.
            tcp.socket.remove_options(&["TCP_MAXSEG", "TCP_WINDOW_CLAMP", "SO_INCOMING_CPU"]);
        }
        Ok(tcp)
    }

    fn describe(&self, _: &OpenFile) -> Option<String> {
        let mut text = format!("{} {} {}", Self::NAME, self.socket.endpoints(), self.state_name());
        if let Some((backlog, pending)) = self.listens {
            text += &format!(" backlog={backlog}");
            if pending > 0 {
                text += &format!(" pending={pending}");
            }
        }
        if let Some(Connection { queued, unsent, .. }) = self.connection {
            let queues = [("queued", queued), ("unsent", unsent)];
            for (name, bytes) in queues.iter().filter(|(_, bytes)| *bytes > 0) {
                text += &format!(" {name}={bytes}");
            }
        }
        Some(text + &self.socket.netns_text())
    }

    fn validate(&self, _: &OpenFile) -> Result<()> {
        if !matches!(self.socket.protocol(), libc::IPPROTO_TCP | libc::IPPROTO_MPTCP) {
            let protocol = self.socket.protocol();
            return Err(Error::malformed(format!(
                "protocol {protocol} is not IPPROTO_TCP or IPPROTO_MPTCP"
            )));
        }
        let present = (self.listens.is_some(), self.connection.is_some());
        if self.state_name() == "?" || present != (self.state == LISTEN, self.is_connection()) {
            return Err(Error::malformed("its state contradicts its other fields"));
        }
        if self.ended.is_some() && self.state != CLOSE {
            return Err(Error::malformed("its connection has ended, but its state is not CLOSE"));
        }
        if !self.is_connection() && self.socket.remote()?.is_some() {
            return Err(Error::malformed("it has a peer address in a state without a connection"));
        }
        self.socket.validate()
    }

    fn check(&self, _: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        match (self.is_connection(), self.socket.remote()?) {
            (true, Some(remote)) => Err(Error::unrestorable(format!(
                "TCP connections are not restored: its peer is {remote} ({})",
                self.state_name()
            ))),
            (true, None) => Err(Error::unrestorable(format!(
                "TCP connections are not restored: its state is {}",
                self.state_name()
            ))),
            (false, _) => self.socket.check(libc::SOCK_STREAM, cx),
        }
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        self.check(file, cx)?;
        let Tcp { socket, state: _, listens, connection: _, ended } = self;
        let made = socket.make_bound(libc::SOCK_STREAM, file, cx)?;
        // No queue is filled, so the options of the last phase are set at once.
        socket.set_options(Phase::Last, made.as_fd(), file, cx)?;
        let mut warn_if_lost = |count: u32, what: &str| {
            if count > 0 {
                cx.warnings.push(format!("{}: {count} {what} are lost", escape(&file.link.0)));
            }
        };
        if let Some(unread) = *ended {
            shutdown_even_unconnected(made.as_fd(), Shutdown::Both)?;
            warn_if_lost(unread, "unread bytes");
        }
        if let Some((_, pending)) = *listens {
            warn_if_lost(pending, "pending connections");
        }
        Ok(Opened::new(made, file.flags & NONBLOCK))
    }

    fn finish_text(&self) -> Option<&'static str> {
        self.listens.map(|_| "listen")
    }

    /// Listens, after all other sockets are bound: nothing can connect to a half restored table,
    /// and a listening socket keeps others from binding to its port even with SO_REUSEADDR
    /// (socket(7)).
    fn finish(
        &self,
        file: &OpenFile,
        _: RawFd,
        fd: BorrowedFd<'_>,
        _: &Outcome,
        cx: &mut RestoreContext<'_>,
    ) -> Result<()> {
        let Some((backlog, _)) = self.listens else { return Ok(()) };
        match listen(fd, backlog, file, cx) {
            Err(Errno::EADDRINUSE) => Err(Error::unrestorable(
                "another socket now listens on its address: end its process first (ss -tlp)",
            )),
            done => done.at(|| "listen"),
        }
    }

    fn substitute(&self, _: &OpenFile) -> Result<OwnedFd> {
        inet::null_socket(&self.socket, libc::SOCK_STREAM, libc::IPPROTO_TCP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::tests::{body_of, describe_of, file_of};
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_listening_socket_is_captured_with_backlog_and_pending_connections() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        sys::socket::listen(listener.as_fd(), 7).unwrap();
        let address = listener.local_addr().unwrap();
        let _client = TcpStream::connect(address).unwrap();
        let tcp: Tcp = body_of(&listener);
        assert_eq!((tcp.state, tcp.listens, tcp.ended), (LISTEN, Some((7, 1)), None));
        let description = format!("tcp {address} LISTEN backlog=7 pending=1");
        assert_eq!(describe_of(&listener), description);
    }

    #[test]
    fn a_connection_is_captured_with_its_queue_and_a_reset_one_as_ended() {
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, from) = listener.accept().unwrap();
        server.write_all(b"hello").unwrap();
        let tcp: Tcp = body_of(&client);
        assert_eq!(tcp.connection.as_ref().unwrap().queued, 5);
        let endpoints = format!("{from} -> {}", listener.local_addr().unwrap());
        assert_eq!(describe_of(&client), format!("tcp {endpoints} ESTABLISHED queued=5"));
        // A close with unread bytes resets the connection.
        client.write_all(b"never read").unwrap();
        drop(server);
        let _ = client.read_to_end(&mut Vec::new());
        let tcp: Tcp = body_of(&client);
        assert_eq!((tcp.state, tcp.ended), (CLOSE, Some(0)));
    }

    #[test]
    fn the_null_socket_has_the_same_family_and_is_at_end_of_file() {
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let mut null = TcpStream::from(
            Kind::substitute(&body_of::<Tcp>(&listener), &file_of(&listener)).unwrap(),
        );
        let domain = sys::socket::option(null.as_fd(), libc::SOL_SOCKET, libc::SO_DOMAIN);
        assert_eq!(domain, Ok(libc::AF_INET6));
        assert_eq!(null.read(&mut [0]).unwrap(), 0);
        assert_eq!(null.write(b"x").unwrap_err().raw_os_error(), Some(libc::EPIPE));
    }

    proptest::proptest! {
        #[test]
        fn parsing_never_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..104)) {
            let _ = TcpInfo::parse(&bytes);
        }
    }
}
