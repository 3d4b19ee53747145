//! A pair of connected unix sockets.

use crate::driver::{Bad, Fixture, drain, ready, signal_comes, stat, write_all};
use crate::spec::{At, Result, Spec, Stop};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::poll::PollFlags;
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, getsockopt, recv, send, setsockopt,
    shutdown, socketpair, sockopt,
};
use nix::unistd::write;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

pub(crate) struct Socketpair;

fn class(spec: &Spec) -> Result<SockType> {
    match spec.bytes("type").unwrap_or(b"stream") {
        b"stream" => Ok(SockType::Stream),
        b"dgram" => Ok(SockType::Datagram),
        b"seqpacket" => Ok(SockType::SeqPacket),
        _ => Err(Stop::Misuse("type: stream, dgram or seqpacket".into())),
    }
}

/// The messages of `data`, which `+` divides where there are bounds.
fn messages(spec: &Spec) -> Vec<Vec<u8>> {
    let data = spec.data();
    match (data, spec.has("type")) {
        (None, _) => Vec::new(),
        (Some(data), false) => vec![data],
        // A pattern has any byte, the divider too.
        (Some(data), _) if spec.bytes("data").is_some_and(|data| data[0] == b'@') => vec![data],
        (Some(data), true) => data.split(|&byte| byte == b'+').map(<[u8]>::to_vec).collect(),
    }
}

/// All messages that wait.
pub(crate) fn received(fd: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let mut all = Vec::new();
    let mut buffer = vec![0; 300_000];
    while ready(fd, PollFlags::POLLIN)? {
        let len = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT)?;
        all.push(buffer[..len].to_vec());
    }
    Ok(all)
}

impl Fixture for Socketpair {
    const NAME: &'static str = "socketpair";
    const ABOUT: &'static str = "two unix sockets connected to each other";
    const KEYS: &'static [(&'static str, &'static str)] = &[
        ("data", "bytes that wait in the first; @N for N bytes of a pattern; with type a+b+c"),
        ("type", "stream, dgram or seqpacket"),
        ("alone", "the second is closed, and the one number is the first"),
        ("shut", "the second is shut down for writing"),
        ("sndbuf", "SO_SNDBUF of the first"),
        ("passcred", "SO_PASSCRED of the second"),
    ];

    fn arity(spec: &Spec) -> usize {
        if spec.has("alone") { 1 } else { 2 }
    }

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        let (a, b) = socketpair(AddressFamily::Unix, class(spec)?, None, SockFlag::SOCK_CLOEXEC)
            .at("socketpair")?;
        match spec.has("type") {
            false => write_all(&b, &spec.data().unwrap_or_default()).at("write to the socket")?,
            true => {
                for message in messages(spec) {
                    send(b.as_raw_fd(), &message, MsgFlags::empty()).at("send")?;
                }
            }
        }
        if let Some(size) = spec.number("sndbuf")? {
            setsockopt(&a, sockopt::SndBuf, &(size as usize)).at("SO_SNDBUF")?;
        }
        setsockopt(&b, sockopt::PassCred, &spec.has("passcred")).at("SO_PASSCRED")?;
        if spec.has("shut") {
            shutdown(b.as_raw_fd(), Shutdown::Write).at("shutdown")?;
        }
        Ok(if spec.has("alone") { vec![a] } else { vec![a, b] })
    }

    fn flags(_: &Spec, _: usize) -> OFlag {
        OFlag::O_RDWR
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let a = sys::at(spec.fds[0])?;
        stat(a, libc::S_IFSOCK, bad)?;
        let wanted = class(spec).unwrap_or(SockType::Raw);
        bad.same("type", getsockopt(&a, sockopt::SockType)?, wanted);
        if let Some(size) = spec.known_number("sndbuf") {
            bad.same("SO_SNDBUF", getsockopt(&a, sockopt::SndBuf)? as u64, 2 * size);
        }
        match spec.has("type") {
            true => bad.same("messages", received(a)?, messages(spec)),
            // A stream that ends is readable for good, so it is read to its end only.
            false if spec.has("alone") || spec.has("shut") => {
                let mut data = vec![0; 100_000];
                let len = nix::unistd::read(a, &mut data)?;
                bad.same_bytes("data", &data[..len], &spec.data().unwrap_or_default());
                bad.same("end-of-file", nix::unistd::read(a, &mut data)?, 0);
            }
            false => bad.same_bytes("data", &drain(a)?, &spec.data().unwrap_or_default()),
        }
        if spec.has("alone") {
            let sent = send(a.as_raw_fd(), b"x", MsgFlags::MSG_NOSIGNAL);
            bad.unless(
                matches!(sent, Err(Errno::EPIPE | Errno::ECONNREFUSED)),
                format!("a send to nobody is {sent:?}"),
            );
            return Ok(());
        }
        let b = sys::at(spec.fds[1])?;
        stat(b, libc::S_IFSOCK, bad)?;
        bad.same("SO_PASSCRED", getsockopt(&b, sockopt::PassCred)?, spec.has("passcred"));
        if !spec.has("shut") {
            signal_comes(spec, 0, bad, || write(b, b"to a").map(drop))?;
            bad.same("what the second writes", received(a)?, vec![b"to a".to_vec()]);
        } else {
            let sent = send(b.as_raw_fd(), b"x", MsgFlags::MSG_NOSIGNAL);
            bad.same("a send after the shutdown", sent, Err(Errno::EPIPE));
        }
        write(a, b"to b")?;
        bad.same("what the first writes", received(b)?, vec![b"to b".to_vec()]);
        Ok(())
    }
}
