//! A pair of connected unix sockets.

use crate::driver::{Bad, Difference, Fixture, drain, ready, signal_comes, stat, write_all};
use crate::spec::{At, Result, Spec, Stop};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::poll::PollFlags;
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockType,
    getsockopt, recv, recvmsg, send, sendmsg, setsockopt, shutdown, socketpair, sockopt,
};
use nix::unistd::{pipe2, write};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;

pub(crate) struct Socketpair;

fn class(spec: &Spec) -> Result<SockType> {
    match spec.bytes("type").unwrap_or(b"stream") {
        b"stream" => Ok(SockType::Stream),
        b"dgram" => Ok(SockType::Datagram),
        b"seqpacket" => Ok(SockType::SeqPacket),
        _ => Err(Stop::Misuse("type: stream, dgram or seqpacket".into())),
    }
}

/// The messages of `data`, separated by `+` if the socket has message boundaries.
fn messages(spec: &Spec) -> Vec<Vec<u8>> {
    let data = spec.data();
    match (data, spec.has("type")) {
        (None, _) => Vec::new(),
        (Some(data), false) => vec![data],
        // A pattern may contain any byte, also the separator.
        (Some(data), _) if spec.bytes("data").is_some_and(|data| data[0] == b'@') => vec![data],
        (Some(data), true) => data.split(|&byte| byte == b'+').map(<[u8]>::to_vec).collect(),
    }
}

/// Receives all queued messages.
pub(crate) fn received(fd: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let mut all = Vec::new();
    let mut buffer = vec![0; 300_000];
    while ready(fd, PollFlags::POLLIN)? {
        let len = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT)?;
        all.push(buffer[..len].to_vec());
    }
    Ok(all)
}

/// SO_RCVTIMEO of 90.5 s, SO_LINGER of 3 s, SO_RCVLOWAT, SO_PRIORITY, SO_PASSSEC, SO_PASSPIDFD, and
/// SO_PASSRIGHTS off (Linux 6.16).
const OPTIONS: &[(i32, &[u8])] = &[
    (libc::SO_RCVTIMEO, &[90, 0, 0, 0, 0, 0, 0, 0, 0x20, 0xa1, 7, 0, 0, 0, 0, 0]),
    (libc::SO_LINGER, &[1, 0, 0, 0, 3, 0, 0, 0]),
    (libc::SO_RCVLOWAT, &[3, 0, 0, 0]),
    (libc::SO_PRIORITY, &[5, 0, 0, 0]),
    (libc::SO_PASSSEC, &[1, 0, 0, 0]),
    (76, &[1, 0, 0, 0]),
    (83, &[0, 0, 0, 0]),
];

/// What a queued descriptor reads.
const QUEUED: &[u8] = b"it was queued";

fn words(spec: &Spec) -> Vec<String> {
    let words = spec.bytes("scm").unwrap_or_default().split(|&byte| byte == b'+');
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// The read end of a pipe without a write end.
fn reader() -> Result<OwnedFd> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).at("pipe2")?;
    write_all(&writer, QUEUED).at("write to the pipe")?;
    Ok(reader)
}

fn send_with(to: &OwnedFd, fds: &[RawFd]) -> Result<()> {
    let rights = [ControlMessage::ScmRights(fds)];
    let (bytes, flags) = ([IoSlice::new(b"scm")], MsgFlags::empty());
    sendmsg::<()>(to.as_raw_fd(), &bytes, &rights, flags, None).at("sendmsg").map(drop)
}

/// Sends descriptors that are then open nowhere else, except the socket itself.
fn queue(spec: &Spec, a: &OwnedFd, b: &OwnedFd) -> Result<()> {
    if !spec.has("scm") {
        return Ok(());
    }
    let one = |word: &String| match word.as_str() {
        "pipe" => reader(),
        "self" => a.try_clone().map_err(|_| Errno::EMFILE).at("dup"),
        "nested" => {
            let (inner, outer) =
                socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                    .at("socketpair")?;
            send_with(&outer, &[reader()?.as_raw_fd(), inner.as_raw_fd()])?;
            Ok(inner)
        }
        "epoll" => {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).at("epoll_create1")?;
            Ok(epoll.0)
        }
        _ => Err(Stop::Misuse("scm: pipe, self, nested or epoll".into())),
    };
    let fds = words(spec).iter().map(one).collect::<Result<Vec<_>>>()?;
    send_with(b, &fds.iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>())
}

/// The next message with its descriptors.
fn received_with(from: BorrowedFd<'_>) -> Result<(Vec<u8>, Vec<OwnedFd>), Errno> {
    let mut buffer = vec![0; 300_000];
    let mut space = nix::cmsg_space!([RawFd; 20]);
    let (len, raw) = {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let got = recvmsg::<()>(from.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        let mut raw = Vec::new();
        for control in got.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                raw.extend(fds);
            }
        }
        (got.bytes, raw)
    };
    buffer.truncate(len);
    Ok((buffer, raw.into_iter().map(sys::own).collect()))
}

fn check_queue(spec: &Spec, a: BorrowedFd<'_>, bad: &mut Bad) -> Result<(), Errno> {
    let mut before = messages(spec);
    let mut fds = Vec::new();
    let mut last = Vec::new();
    while ready(a, PollFlags::POLLIN)? && fds.is_empty() {
        (last, fds) = received_with(a)?;
        if fds.is_empty() && !before.is_empty() {
            bad.same("a message", last.clone(), before.remove(0));
        }
    }
    // A stream has no message boundaries.
    let wanted = if spec.has("type") { Vec::new() } else { before.concat() };
    bad.same("the message with descriptors", last, [wanted, b"scm".to_vec()].concat());
    let words = words(spec);
    bad.same("descriptors queued", fds.len(), words.len());
    for (word, fd) in words.iter().zip(&fds) {
        match word.as_str() {
            "pipe" => bad.same_bytes("queued pipe", &drain(fd.as_fd())?, QUEUED),
            "self" => bad.same("one with the queued", sys::same(fd.as_fd(), a), Some(true)),
            "nested" => {
                let (bytes, inner) = received_with(fd.as_fd())?;
                bad.same("nested message", bytes, b"scm".to_vec());
                bad.same("descriptors queued in it", inner.len(), 2);
                if let [pipe, own] = &inner[..] {
                    bad.same_bytes("nested pipe", &drain(pipe.as_fd())?, QUEUED);
                    bad.same("one with itself", sys::same(own.as_fd(), fd.as_fd()), Some(true));
                }
            }
            _ => {
                let link = crate::driver::link(fd.as_raw_fd());
                bad.same("link", link, PathBuf::from("anon_inode:[eventpoll]"));
            }
        }
    }
    Ok(())
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
        ("options", "the first has a timeout, lingers, and wants 3 bytes and no descriptors"),
        ("scm", "descriptors that wait after the data: pipe, self, nested, epoll, joined by +"),
    ];
    const DIFFERENCES: &'static [Difference] = &[
        ("socketpair@3,4:data=a", "socketpair@3,4:data=b", "data"),
        ("socketpair@3,4:type=dgram,data=a+b", "socketpair@3,4:type=dgram,data=ab", "messages"),
        ("socketpair@3,4", "socketpair@3,4:type=seqpacket", "type"),
        ("socketpair@3,4:scm=pipe", "socketpair@3,4:scm=pipe+pipe", "descriptors queued is 1"),
        ("socketpair@3,4:scm=pipe", "socketpair@3,4", "data"),
        ("socketpair@3,4", "socketpair@3,4:options", "option 13"),
        ("socketpair@3,4:scm=self", "socketpair@3,4:scm=pipe", "queued pipe"),
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
        queue(spec, &a, &b)?;
        if let Some(size) = spec.number("sndbuf")? {
            setsockopt(&a, sockopt::SndBuf, &(size as usize)).at("SO_SNDBUF")?;
        }
        setsockopt(&b, sockopt::PassCred, &spec.has("passcred")).at("SO_PASSCRED")?;
        if spec.has("options") {
            for (name, value) in OPTIONS {
                match sys::set_option(a.as_fd(), libc::SOL_SOCKET, *name, value) {
                    Err(Errno::ENOPROTOOPT) => {
                        return Err(Stop::Cannot(format!("no socket option {name}")));
                    }
                    set => set.at("setsockopt")?,
                }
            }
        }
        if spec.has("shut") {
            shutdown(b.as_raw_fd(), Shutdown::Write).at("shutdown")?;
        }
        Ok(if spec.has("alone") { vec![a] } else { vec![a, b] })
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let a = sys::at(spec.fds[0])?;
        stat(a, libc::S_IFSOCK, bad)?;
        let wanted = class(spec).unwrap_or(SockType::Raw);
        bad.same("type", getsockopt(&a, sockopt::SockType)?, wanted);
        if let Some(size) = spec.known_number("sndbuf") {
            bad.same("SO_SNDBUF", getsockopt(&a, sockopt::SndBuf)? as u64, 2 * size);
        }
        for (name, value) in OPTIONS.iter().filter(|_| spec.has("options")) {
            bad.same(
                format!("option {name}"),
                sys::option(a, libc::SOL_SOCKET, *name)?,
                value.to_vec(),
            );
        }
        if spec.has("scm") {
            check_queue(spec, a, bad)?;
        }
        match spec.has("type") {
            _ if spec.has("scm") => (),
            true => bad.same("messages", received(a)?, messages(spec)),
            // A stream that has ended is always readable, so it is read up to its end only.
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
