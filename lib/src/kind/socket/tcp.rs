//! tcp(7): sockets that listen, that are bound or fresh, and connections, which are recorded only.

use crate::error::{At, Error, Result};
use crate::image::OpenFile;
use crate::kind::Kind;
use crate::kind::context::{Opened, RestoreContext};
use crate::kind::socket::inet::{self, Inet, NONBLOCK};
use crate::kind::socket::option::Phase;
use crate::operation::Outcome;
use crate::proc::Descriptor;
use crate::sys;
use crate::text::escape;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{Backlog, Shutdown, listen};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

/// The states of include/net/tcp_states.h, from 1 on, by the names that ss(8) gives them.
const STATES: [&str; 12] = [
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
];
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;

/// A TCP socket.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tcp {
    /// Addresses and options.
    socket: Inet,
    /// One of [`STATES`], as tcpi_state has it.
    state: u8,
    /// If it listens: the backlog, and how many connections wait to be accepted, which are lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    listens: Option<(u32, u32)>,
    /// If it is a connection: what is known of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    connection: Option<Connection>,
    /// If its connection is no more, so that writes fail with EPIPE: how many bytes can be read
    /// before reads end. They are lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ended: Option<u32>,
}

/// What a connection has, as struct tcp_info of linux/tcp.h tells it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Connection {
    /// Bytes that wait to be read: SIOCINQ.
    queued: u32,
    /// Bytes that were written and are not acknowledged: SIOCOUTQ.
    unsent: u32,
    /// TCPI_OPT_TIMESTAMPS 1, SACK 2, WSCALE 4, ECN 8.
    options: u8,
    /// Window scales, of what is sent and of what is received.
    scales: (u8, u8),
    /// Largest segments sent and received, in bytes.
    segments: (u32, u32),
    /// Smoothed round trip time, in microseconds.
    rtt: u32,
}

/// The part of struct tcp_info that is wanted.
struct TcpInfo {
    state: u8,
    options: u8,
    scales: (u8, u8),
    segments: (u32, u32),
    /// tcpi_unacked and tcpi_sacked; of a listening socket these are its pending connections and
    /// its backlog.
    queue: (u32, u32),
    rtt: u32,
}

impl TcpInfo {
    fn parse(bytes: &[u8]) -> Option<TcpInfo> {
        let word = |at: usize| Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
        let scales = *bytes.get(6)?;
        Some(TcpInfo {
            state: *bytes.first()?,
            options: *bytes.get(5)?,
            // The first of two bit fields is the low half where the lowest byte comes first.
            scales: match cfg!(target_endian = "little") {
                true => (scales & 15, scales >> 4),
                false => (scales >> 4, scales & 15),
            },
            segments: (word(16)?, word(20)?),
            queue: (word(24)?, word(28)?),
            rtt: word(68)?,
        })
    }

    fn ask(fd: BorrowedFd<'_>) -> Result<TcpInfo> {
        let mut bytes = [0; 104];
        let len = sys::socket::option_bytes(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut bytes);
        let len = len.at(|| "TCP_INFO")?;
        TcpInfo::parse(&bytes[..len.min(bytes.len())]).ok_or_else(|| Errno::EINVAL.into())
    }
}

impl Tcp {
    fn is_connection(&self) -> bool {
        !matches!(self.state, CLOSE | LISTEN)
    }

    fn state(&self) -> &'static str {
        let at = usize::from(self.state).wrapping_sub(1);
        STATES.get(at).copied().unwrap_or("?")
    }
}

impl Kind for Tcp {
    const NAME: &'static str = "tcp";

    fn claims(it: &Descriptor<'_>) -> bool {
        matches!(
            inet::class(it),
            Some((_, libc::SOCK_STREAM, libc::IPPROTO_TCP | libc::IPPROTO_MPTCP))
        )
    }

    fn capture(it: &Descriptor<'_>) -> Result<Self> {
        let socket = Inet::capture(it)?;
        let fd = it.copy.as_ref().ok_or(Errno::EBADF)?.as_fd();
        let info = TcpInfo::ask(fd)?;
        let mut tcp =
            Tcp { socket, state: info.state, listens: None, connection: None, ended: None };
        match info.state {
            LISTEN => tcp.listens = Some((info.queue.1, info.queue.0)),
            CLOSE => {
                // One that was never connected has nothing to read, not even its end.
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
            // Of a connection these are what came out of it, whatever was asked for.
            tcp.socket.forget(&["TCP_MAXSEG", "TCP_WINDOW_CLAMP", "SO_INCOMING_CPU"]);
        }
        Ok(tcp)
    }

    fn describe(&self, _: &OpenFile) -> Option<String> {
        let mut text = format!("{} {} {}", Self::NAME, self.socket.ends(), self.state());
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
        Some(text)
    }

    fn validate(&self, _: &OpenFile) -> Result<()> {
        if !matches!(self.socket.protocol(), libc::IPPROTO_TCP | libc::IPPROTO_MPTCP) {
            let protocol = self.socket.protocol();
            return Err(Error::malformed(format!("{protocol} is no protocol of TCP")));
        }
        let told = (self.listens.is_some(), self.connection.is_some());
        if self.state() == "?" || told != (self.state == LISTEN, self.is_connection()) {
            return Err(Error::malformed("its state contradicts what it has"));
        }
        if self.ended.is_some() && self.state != CLOSE {
            return Err(Error::malformed("its state contradicts that it has ended"));
        }
        if !self.is_connection() && self.socket.remote()?.is_some() {
            return Err(Error::malformed("it is connected in a state without"));
        }
        self.socket.validate()
    }

    fn check(&self, _: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        match (self.is_connection(), self.socket.remote()?) {
            (true, Some(remote)) => Err(Error::unrestorable(format!(
                "its connection to {remote} ({}) is not made anew",
                self.state()
            ))),
            (true, None) => Err(Error::unrestorable(format!(
                "its connection ({}) is not made anew",
                self.state()
            ))),
            (false, _) => self.socket.check(libc::SOCK_STREAM, cx),
        }
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        self.check(file, cx)?;
        let Tcp { socket, state: _, listens, connection: _, ended } = self;
        let made = socket.make(libc::SOCK_STREAM, file, cx)?;
        // Its queue is filled by none of ours.
        socket.set(Phase::Last, made.as_fd(), file, cx)?;
        let mut lost = |count: u32, what: &str| {
            if count > 0 {
                cx.warnings.push(format!("{}: {count} {what} lost", escape(&file.link.0)));
            }
        };
        if let Some(unread) = *ended {
            inet::end(made.as_fd(), Shutdown::Both)?;
            lost(unread, "bytes that were not read are");
        }
        if let Some((_, pending)) = *listens {
            lost(pending, "connections that waited to be accepted are");
        }
        Ok(Opened::new(made, file.flags & NONBLOCK))
    }

    fn finish_text(&self) -> Option<&'static str> {
        self.listens.map(|_| "listen")
    }

    /// Nobody connects before all stands; and what listens keeps others from binding to its port,
    /// whatever they share (SO_REUSEADDR).
    fn finish(
        &self,
        _: &OpenFile,
        _: RawFd,
        fd: BorrowedFd<'_>,
        _: &Outcome,
        _: &mut RestoreContext<'_>,
    ) -> Result<()> {
        let Some((backlog, _)) = self.listens else { return Ok(()) };
        let backlog = Backlog::new(i32::try_from(backlog).unwrap_or(i32::MAX));
        match listen(&fd, backlog.unwrap_or(Backlog::MAXCONN)) {
            Err(Errno::EADDRINUSE) => {
                Err(Error::unrestorable("another socket has come to listen at its address"))
            }
            done => done.at(|| "listen"),
        }
    }

    fn substitute(&self, _: &OpenFile) -> Result<OwnedFd> {
        inet::null(&self.socket, libc::SOCK_STREAM, libc::IPPROTO_TCP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::tests::{body_of, describe_of, file_of};
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_listener_tells_its_address_its_backlog_and_who_waits() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listen(&listener, Backlog::new(7).unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let _client = TcpStream::connect(address).unwrap();
        let tcp: Tcp = body_of(&listener);
        assert_eq!((tcp.state, tcp.listens, tcp.ended), (LISTEN, Some((7, 1)), None));
        let title = format!("tcp {address} LISTEN backlog=7 pending=1");
        assert_eq!(describe_of(&listener), title);
    }

    #[test]
    fn a_connection_tells_both_ends_and_what_waits_and_a_dead_one_that_it_has_ended() {
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, from) = listener.accept().unwrap();
        server.write_all(b"hello").unwrap();
        let tcp: Tcp = body_of(&client);
        assert_eq!(tcp.connection.as_ref().unwrap().queued, 5);
        let ends = format!("{from} -> {}", listener.local_addr().unwrap());
        assert_eq!(describe_of(&client), format!("tcp {ends} ESTABLISHED queued=5"));
        // A close with unread bytes resets the connection.
        client.write_all(b"never read").unwrap();
        drop(server);
        let _ = client.read_to_end(&mut Vec::new());
        let tcp: Tcp = body_of(&client);
        assert_eq!((tcp.state, tcp.ended), (CLOSE, Some(0)));
    }

    #[test]
    fn the_null_socket_is_of_the_same_family_and_at_its_end() {
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
        fn no_answer_makes_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..104)) {
            let _ = TcpInfo::parse(&bytes);
        }
    }
}
