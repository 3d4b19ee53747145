//! UDP and UDP-Lite sockets, with queued messages.

use crate::driver::{Bad, Difference, Fixture, ready};
use crate::inet::{self, BYTES, HOST, JOIN, SET, V6};
use crate::spec::{At, Result, Spec};
use crate::sys;
use fdkit::sys::socket;
use nix::errno::Errno;
use nix::libc;
use nix::poll::PollFlags;
use nix::sys::socket::{Shutdown, shutdown};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

pub(crate) struct Udp;

fn protocol(spec: &Spec) -> i32 {
    if spec.has("lite") { 136 } else { libc::IPPROTO_UDP }
}

fn messages(spec: &Spec) -> Vec<Vec<u8>> {
    match spec.data() {
        Some(data) if spec.bytes("data").is_some_and(|data| data.first() == Some(&b'@')) => {
            vec![data]
        }
        data => data.map_or(Vec::new(), |data| {
            data.split(|&byte| byte == b'+').map(<[u8]>::to_vec).collect()
        }),
    }
}

/// Another socket of the same protocol, without the options.
fn other(spec: &Spec, address: SocketAddr) -> Result<OwnedFd> {
    let family = if address.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET };
    let made = socket::new(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, protocol(spec));
    let made = made.at("socket")?;
    if spec.has("from") {
        let (level, name) = if address.is_ipv6() { (libc::IPPROTO_IPV6, 75) } else { (0, 19) };
        socket::set_option(made.as_fd(), level, name, 1)
            .at("IP_TRANSPARENT, which takes CAP_NET_RAW")?;
    }
    socket::bind(made.as_fd(), &inet::encode(address)).at("bind")?;
    Ok(made)
}

/// The address to which a sender of this family sends.
fn reached(fd: BorrowedFd<'_>, v6: bool) -> Result<SocketAddr, Errno> {
    let mut to = inet::name(fd)?;
    if to.ip().is_unspecified() || to.is_ipv6() != v6 {
        let local = if v6 { "::1" } else { "127.0.0.1" };
        to.set_ip(local.parse().expect("an address"));
    }
    Ok(to)
}

impl Fixture for Udp {
    const NAME: &'static str = "udp";
    const ABOUT: &'static str = "a UDP socket bound to a port of the kernel's choice";
    const KEYS: &'static [(&'static str, &'static str)] = &[
        V6,
        HOST,
        SET,
        BYTES,
        JOIN,
        ("lite", "of UDP-Lite"),
        ("fresh", "not bound"),
        ("connected", "to a socket that is closed since"),
        ("data", "messages that wait in it: a+b+c; @N for one of N bytes"),
        ("from", "their senders have this address, which need not be of this machine"),
        ("two", "two of one port (SO_REUSEPORT); the first has the messages"),
        ("shut", "shut down for receiving, or =2: for both"),
    ];
    const DIFFERENCES: &'static [Difference] = &[
        ("udp@3:fresh", "udp@3:fresh,join=239.255.77.1", "EADDRNOTAVAIL"),
        ("udp@3:fresh,join=239.255.77.1", "udp@3:fresh", "what it is"),
        ("udp@3", "udp@3:lite", "protocol is 17"),
        ("udp@3:data=a+b", "udp@3:data=ab", "messages"),
        ("udp@3", "udp@3:shut", "shut down for receiving is false"),
        ("udp@3:shut", "udp@3:shut=2", "shut down for both is false"),
        ("udp@3:fresh", "udp@3:fresh,set=1.6.1", "option 1.6 is none is true"),
    ];

    fn arity(spec: &Spec) -> usize {
        if spec.has("two") { 2 } else { 1 }
    }

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        let mut all = Vec::new();
        let (mut port, mut senders) = (0, String::new());
        for nth in 0..Self::arity(spec) {
            let made = inet::new(spec, libc::SOCK_DGRAM, protocol(spec))?;
            if !spec.has("fresh") {
                inet::bind(spec, &made, port)?;
                port = inet::name(made.as_fd()).at("getsockname")?.port();
            }
            let mut peer = None;
            if spec.has("connected") {
                let it = other(spec, inet::host(spec, 0)?)?;
                let name = inet::name(it.as_fd()).at("getsockname")?;
                socket::connect(made.as_fd(), &inet::encode(name)).at("connect")?;
                peer = Some(it);
            }
            for message in messages(spec).iter().filter(|_| nth == 0) {
                let new;
                let from = match (&peer, spec.bytes("from")) {
                    (Some(peer), _) => peer,
                    (None, from) => {
                        let text = from.map(|from| String::from_utf8_lossy(from).into_owned());
                        let host = inet::host(spec, 0)?.ip().to_string();
                        let ip = text.unwrap_or(host).parse().expect("an address");
                        new = other(spec, SocketAddr::new(ip, 0))?;
                        &new
                    }
                };
                let name = inet::name(from.as_fd()).at("getsockname")?;
                let to = reached(made.as_fd(), name.is_ipv6()).at("getsockname")?;
                socket::send_to(from.as_fd(), message, &inet::encode(to)).at("sendto")?;
                senders += &format!("{name}\n");
            }
            match spec.bytes("shut") {
                _ if !spec.has("shut") => {}
                Some(_) => drop(shutdown(made.as_raw_fd(), Shutdown::Both)),
                None => drop(shutdown(made.as_raw_fd(), Shutdown::Read)),
            }
            inet::note(spec, nth, &made)?;
            all.push(made);
        }
        let file = spec.dir()?.join(format!("udp.{}.senders", spec.fds[0]));
        std::fs::write(&file, senders).at(file.display())?;
        Ok(all)
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let io = |err: std::io::Error| Errno::from_raw(err.raw_os_error().unwrap_or(0));
        let mut sockets = Vec::new();
        for nth in 0..Self::arity(spec) {
            let fd = inet::at(spec, nth, libc::SOCK_DGRAM, protocol(spec), bad)?;
            inet::same_as_noted(spec, nth, fd, bad)?;
            sockets.push(UdpSocket::from(fd.try_clone_to_owned().map_err(io)?));
        }
        if spec.has("shut") {
            let ready = socket::ready(sockets[0].as_fd())?;
            let both = spec.bytes("shut").is_some();
            bad.same("shut down for receiving", ready & libc::POLLRDHUP != 0, true);
            bad.same("shut down for both", ready & libc::POLLHUP != 0, both);
            return Ok(());
        }
        let file = spec.dir().map(|dir| dir.join(format!("udp.{}.senders", spec.fds[0])));
        let senders = file.ok().and_then(|file| std::fs::read_to_string(file).ok());
        let (mut from, mut got) = (String::new(), Vec::new());
        let mut buffer = vec![0; 65536];
        for (nth, socket) in sockets.iter().enumerate() {
            while ready(socket.as_fd(), PollFlags::POLLIN)? {
                let (len, sender) = socket.recv_from(&mut buffer).map_err(io)?;
                let ip = sender.ip().to_canonical();
                from += &format!("{}\n", SocketAddr::new(ip, sender.port()));
                got.push((nth, buffer[..len].to_vec()));
            }
        }
        let made: Vec<_> = messages(spec).into_iter().map(|message| (0, message)).collect();
        bad.same("messages", got, made);
        bad.same("senders", from, senders.unwrap_or_default());
        if !spec.has("fresh") && !spec.has("connected") && !spec.has("bytes") {
            let client = other_plain(spec, sockets[0].as_fd())?;
            let to = reached(sockets[0].as_fd(), client.1)?;
            socket::send_to(client.0.as_fd(), b"new", &inet::encode(to))?;
            let mut came = Vec::new();
            // On a busy machine even the loopback device takes a while.
            for _ in 0..100 {
                for socket in
                    sockets.iter().filter(|it| sys::becomes_readable(it, 50).unwrap_or(false))
                {
                    let len = socket.recv(&mut buffer).map_err(io)?;
                    came.push(buffer[..len].to_vec());
                }
                if !came.is_empty() {
                    break;
                }
            }
            bad.same("a new message", came, vec![b"new".to_vec()]);
        }
        Ok(())
    }
}

/// A client of the family of that socket.
fn other_plain(spec: &Spec, of: BorrowedFd<'_>) -> Result<(OwnedFd, bool), Errno> {
    let v6 = inet::name(of)?.is_ipv6();
    let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
    Ok((socket::new(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, protocol(spec))?, v6))
}
