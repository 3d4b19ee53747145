//! TCP sockets that listen, that are bound, that are new, or whose connection has ended.

use crate::driver::{Bad, Difference, Fixture};
use crate::inet::{self, BYTES, HOST, SET, V6};
use crate::spec::{At, Result, Spec};
use crate::sys;
use fdkit::sys::socket;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{Backlog, listen};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

pub(crate) struct Tcp;

fn protocol(spec: &Spec) -> i32 {
    if spec.has("mptcp") { 262 } else { libc::IPPROTO_TCP }
}

/// Whether the socket listens.
fn listens(spec: &Spec) -> bool {
    !["fresh", "bound", "ended"].iter().any(|key| spec.has(key))
}

impl Fixture for Tcp {
    const NAME: &'static str = "tcp";
    const ABOUT: &'static str = "a TCP socket that listens at a port of the kernel's choice";
    const KEYS: &'static [(&'static str, &'static str)] = &[
        V6,
        HOST,
        SET,
        BYTES,
        ("backlog", "of listen(2)"),
        ("bound", "does not listen"),
        ("fresh", "neither bound nor listening"),
        ("ended", "a connection that was reset"),
        ("two", "two that listen at one port (SO_REUSEPORT)"),
        ("mptcp", "of IPPROTO_MPTCP"),
    ];
    const DIFFERENCES: &'static [Difference] = &[
        ("tcp@3", "tcp@3:bound", "listens is true"),
        ("tcp@3:set=1.15.1", "tcp@3", "SO_REUSEPORT is true"),
        ("tcp@3:fresh", "tcp@3:ended", "a read is None"),
        ("tcp@3", "tcp@3:mptcp", "protocol is 6"),
        ("tcp@3:set=1.9.0", "tcp@3:set=1.9.1", "option 1.9 is none is true"),
        ("tcp@3", "tcp@3:set=1.2.1", "what it is"),
    ];

    fn arity(spec: &Spec) -> usize {
        if spec.has("two") { 2 } else { 1 }
    }

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        let mut all = Vec::new();
        let mut port = 0;
        for nth in 0..Self::arity(spec) {
            let mut made = inet::new(spec, libc::SOCK_STREAM, protocol(spec))?;
            if spec.has("ended") {
                made = ended(spec, made)?;
            } else if !spec.has("fresh") {
                inet::bind(spec, &made, port)?;
                port = inet::name(made.as_fd()).at("getsockname")?.port();
            }
            if listens(spec) {
                let backlog = spec.number("backlog")?.unwrap_or(5) as i32;
                listen(&made, Backlog::new(backlog).at("backlog")?).at("listen")?;
            }
            inet::note(spec, nth, &made)?;
            all.push(made);
        }
        Ok(all)
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        for nth in 0..Self::arity(spec) {
            let fd = inet::at(spec, nth, libc::SOCK_STREAM, protocol(spec), bad)?;
            let accepts = socket::option(fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN)? != 0;
            bad.same("listens", accepts, listens(spec));
            inet::same_as_noted(spec, nth, fd, bad)?;
        }
        let fd = sys::at(spec.fds[0])?;
        if spec.has("ended") {
            let mut stream = TcpStream::from(fd.try_clone_to_owned().map_err(|_| Errno::EBADF)?);
            bad.same("a read", stream.read(&mut [0]).ok(), Some(0));
            let errno = stream.write(b"x").err().and_then(|err| err.raw_os_error());
            bad.same("a write", errno, Some(libc::EPIPE));
        }
        if listens(spec) {
            let fds: Vec<_> = (0..Self::arity(spec)).map(|nth| sys::at(spec.fds[nth])).collect();
            let fds = fds.into_iter().collect::<Result<Vec<_>, _>>()?;
            answers(&fds, bad)?;
        }
        Ok(())
    }
}

/// Makes a socket whose connection was reset by its peer, and whose error was read.
fn ended(spec: &Spec, made: OwnedFd) -> Result<OwnedFd> {
    let listener = TcpListener::bind(inet::host(spec, 0)?).at("listen")?;
    let to = inet::encode(listener.local_addr().at("getsockname")?);
    socket::connect(made.as_fd(), &to).at("connect")?;
    let (server, _) = listener.accept().at("accept")?;
    let mut client = TcpStream::from(made);
    client.write_all(b"never read").at("write")?;
    drop(server);
    client.set_read_timeout(Some(Duration::from_secs(5))).at("SO_RCVTIMEO")?;
    let _ = client.read(&mut [0]);
    client.set_read_timeout(None).at("SO_RCVTIMEO")?;
    Ok(client.into())
}

/// Checks that each of the sockets that share a port accepts a client after a while, and exchanges
/// data with it.
fn answers(fds: &[BorrowedFd<'_>], bad: &mut Bad) -> Result<(), Errno> {
    let mut took = vec![false; fds.len()];
    for _ in 0..100 {
        let mut to = inet::name(fds[0])?;
        if to.ip().is_unspecified() {
            let v6 = to.is_ipv6();
            to.set_ip(if v6 {
                IpAddr::V6(Ipv6Addr::LOCALHOST)
            } else {
                Ipv4Addr::LOCALHOST.into()
            });
        }
        let io = |err: std::io::Error| Errno::from_raw(err.raw_os_error().unwrap_or(0));
        let mut client = TcpStream::connect_timeout(&to, Duration::from_secs(5)).map_err(io)?;
        // A socket with TCP_DEFER_ACCEPT waits for these data.
        client.write_all(b"ping").map_err(io)?;
        for (fd, took) in fds.iter().zip(&mut took) {
            let patience = if fds.len() == 1 { 5000 } else { 50 };
            if sys::becomes_readable(fd, patience)? {
                let listener = TcpListener::from(fd.try_clone_to_owned().map_err(io)?);
                let (mut server, _) = listener.accept().map_err(io)?;
                let mut said = [0; 4];
                server.read_exact(&mut said).map_err(io)?;
                bad.same("what a client says", said, *b"ping");
                *took = true;
                break;
            }
        }
        if took.iter().all(|&took| took) {
            return Ok(());
        }
    }
    bad.same("who took a client", took, vec![true; fds.len()]);
    Ok(())
}
