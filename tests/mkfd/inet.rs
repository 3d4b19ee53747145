//! What the fixtures of internet sockets have in common. The kernel chooses the ports; `make`
//! writes them to a file in --dir, where `check` finds them.

use crate::driver::{Bad, stat};
use crate::spec::{At, Result, Spec, Stop};
use crate::sys;
use fdkit::sys::socket;
use nix::errno::Errno;
use nix::libc;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The keys of all internet sockets.
pub(crate) const V6: (&str, &str) = ("v6", "of AF_INET6");
pub(crate) const HOST: (&str, &str) = ("host", "bound to this address; the loopback otherwise");
pub(crate) const SET: (&str, &str) = ("set", "options that are one int: LEVEL.NAME.VALUE+...");
pub(crate) const BYTES: (&str, &str) = ("bytes", "options that are bytes: LEVEL.NAME.BYTES");

pub(crate) const JOIN: (&str, &str) =
    ("join", "groups on lo, with what is heard or !not: GROUP/SOURCE/!SOURCE+...");

/// AF_INET or AF_INET6.
pub(crate) fn family(spec: &Spec) -> i32 {
    if spec.has("v6") { libc::AF_INET6 } else { libc::AF_INET }
}

/// The type of a socket whose packets may come without IP headers.
pub(crate) fn class(spec: &Spec) -> i32 {
    if spec.has("dgram") { libc::SOCK_DGRAM } else { libc::SOCK_RAW }
}

/// Level, name and value of each requested option.
fn options(spec: &Spec) -> Result<Vec<(i32, i32, Vec<u8>)>> {
    let text = |key| String::from_utf8_lossy(spec.bytes(key).unwrap_or_default()).into_owned();
    let number = |part: Option<&str>| part.and_then(|part| part.parse::<i32>().ok());
    let mut all = Vec::new();
    for (key, ints) in [("set", true), ("bytes", false)] {
        for each in text(key).split('+').filter(|each| !each.is_empty()) {
            let mut parts = each.splitn(3, '.');
            let (level, name) = (number(parts.next()), number(parts.next()));
            let value = parts.next().and_then(|value| match ints {
                true => Some(number(Some(value))?.to_ne_bytes().to_vec()),
                false => Some(value.as_bytes().to_vec()),
            });
            match (level, name, value) {
                (Some(level), Some(name), Some(value)) => all.push((level, name, value)),
                _ => return Err(Stop::Misuse(format!("{key}: LEVEL.NAME.VALUE, not {each}"))),
            }
        }
    }
    Ok(all)
}

/// Each group to join, whether only its sources are received, and the sources.
fn groups(spec: &Spec) -> Vec<(IpAddr, bool, Vec<IpAddr>)> {
    let text = String::from_utf8_lossy(spec.bytes("join").unwrap_or_default()).into_owned();
    let parse = |text: &str| text.trim_start_matches('!').parse().expect("an address");
    let group = |each: &str| {
        let mut parts = each.split('/');
        let group = parse(parts.next().expect("a group"));
        let sources: Vec<&str> = parts.collect();
        let only = sources.first().is_some_and(|source| !source.starts_with('!'));
        (group, only, sources.into_iter().map(parse).collect())
    };
    text.split('+').filter(|each| !each.is_empty()).map(group).collect()
}

/// The level of a group's options, and struct group_req: the group on lo, whose index is 1.
fn group_req(group: IpAddr) -> (i32, Vec<u8>) {
    let level = if group.is_ipv6() { libc::IPPROTO_IPV6 } else { libc::IPPROTO_IP };
    (level, [&1_u32.to_ne_bytes()[..], &[0; 4], &storage(group)].concat())
}

/// A struct sockaddr_storage.
fn storage(ip: IpAddr) -> Vec<u8> {
    let mut bytes = encode(SocketAddr::new(ip, 0));
    bytes.resize(128, 0);
    bytes
}

fn join(spec: &Spec, fd: BorrowedFd<'_>) -> Result<()> {
    // MCAST_JOIN_GROUP 42, MCAST_BLOCK_SOURCE 43, MCAST_JOIN_SOURCE_GROUP 46.
    for (group, only, sources) in groups(spec) {
        let (level, request) = group_req(group);
        if !only {
            sys::set_option(fd, level, 42, &request).at("MCAST_JOIN_GROUP")?;
        }
        for source in sources {
            let with = [&request[..], &storage(source)].concat();
            sys::set_option(fd, level, if only { 46 } else { 43 }, &with).at("a source")?;
        }
    }
    Ok(())
}

/// The answer of MCAST_MSFILTER (48) for each group: struct group_filter, with room for four
/// sources.
fn filters(spec: &Spec, fd: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let ask = |(group, ..): &(IpAddr, bool, Vec<IpAddr>)| {
        let (level, mut filter) = group_req(*group);
        filter.extend([&[0; 4][..], &4_u32.to_ne_bytes(), &[0; 4 * 128]].concat());
        sys::option_into(fd, level, 48, &mut filter)?;
        Ok(filter.into_iter().rev().skip_while(|&byte| byte == 0).collect())
    };
    groups(spec).iter().map(ask).collect()
}

/// The options as the kernel returns them, which may differ from the values that were set.
fn values(spec: &Spec, fd: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let ask = |(level, name, _): &(i32, i32, Vec<u8>)| sys::option(fd, *level, *name);
    options(spec).unwrap_or_default().iter().map(ask).collect()
}

/// Makes a socket of this type with the options.
pub(crate) fn new(spec: &Spec, kind: i32, protocol: i32) -> Result<OwnedFd> {
    let made = socket::new(family(spec), kind | libc::SOCK_CLOEXEC, protocol);
    let made = made.map_err(|errno| match errno {
        Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT => Stop::Cannot(format!("socket: {errno}")),
        Errno::EPERM => Stop::Cannot("socket: a raw one takes CAP_NET_RAW".into()),
        Errno::EACCES => {
            let why = "socket: net.ipv4.ping_group_range lets none of our groups have this one";
            Stop::Cannot(why.into())
        }
        _ => Stop::Failed(format!("socket: {errno}")),
    })?;
    if spec.has("two") {
        let (level, name) = (libc::SOL_SOCKET, libc::SO_REUSEPORT);
        socket::set_option(made.as_fd(), level, name, 1).at("SO_REUSEPORT")?;
    }
    set(spec, made.as_fd())?;
    join(spec, made.as_fd())?;
    Ok(made)
}

/// Makes a single socket, bound and connected as requested, and records it.
pub(crate) fn lone(spec: &Spec, kind: i32, protocol: i32) -> Result<Vec<OwnedFd>> {
    let made = new(spec, kind, protocol)?;
    if spec.has("bound") {
        bind(spec, &made, 0)?;
    }
    if spec.has("connected") {
        socket::connect(made.as_fd(), &encode(host(spec, 0)?)).at("connect")?;
    }
    note(spec, 0, &made)?;
    Ok(vec![made])
}

/// The socket at the nth number, which must be of this type and protocol.
pub(crate) fn at<'s>(
    spec: &Spec,
    nth: usize,
    kind: i32,
    protocol: i32,
    bad: &mut Bad,
) -> Result<BorrowedFd<'s>, Errno> {
    let fd = sys::at(spec.fds[nth])?;
    stat(fd, libc::S_IFSOCK, bad)?;
    let option = |name| socket::option(fd, libc::SOL_SOCKET, name);
    bad.same("type", option(libc::SO_TYPE)?, kind);
    bad.same("protocol", option(libc::SO_PROTOCOL)?, protocol);
    Ok(fd)
}

/// Sets the requested options.
pub(crate) fn set(spec: &Spec, fd: BorrowedFd<'_>) -> Result<()> {
    for (level, name, value) in options(spec)? {
        let set = sys::set_option(fd, level, name, &value);
        let takes = if set == Err(Errno::EPERM) { ", which takes CAP_NET_ADMIN" } else { "" };
        set.at(format!("setsockopt {level}.{name}{takes}"))?;
    }
    Ok(())
}

/// Adds an expectation for each option that is not as requested. The kernel doubles the sizes of
/// buffers.
pub(crate) fn check_options(spec: &Spec, fd: BorrowedFd<'_>, bad: &mut Bad) -> Result<(), Errno> {
    for (level, name, mut value) in options(spec).unwrap_or_default() {
        if (level, name) == (libc::SOL_SOCKET, libc::SO_RCVBUF) {
            let size = value.first_chunk().map_or(0, |size| i32::from_ne_bytes(*size));
            value = (2 * size).to_ne_bytes().to_vec();
        }
        let mut got = sys::option(fd, level, name)?;
        got.truncate(value.len());
        bad.same(format!("option {level}.{name}"), got, value);
    }
    Ok(())
}

/// The address to bind to, with this port.
pub(crate) fn host(spec: &Spec, port: u16) -> Result<SocketAddr> {
    let loopback: &[u8] = if spec.has("v6") { b"::1" } else { b"127.0.0.1" };
    let host = String::from_utf8_lossy(spec.bytes("host").unwrap_or(loopback)).into_owned();
    let host = host.parse().map_err(|_| Stop::Misuse(format!("host: {host}")))?;
    Ok(SocketAddr::new(host, port))
}

/// A struct sockaddr_in or sockaddr_in6.
pub(crate) fn encode(address: SocketAddr) -> Vec<u8> {
    let head = |family: i32| [(family as u16).to_ne_bytes(), address.port().to_be_bytes()].concat();
    match address {
        SocketAddr::V4(it) => [&head(libc::AF_INET)[..], &it.ip().octets(), &[0; 8]].concat(),
        SocketAddr::V6(it) => {
            let (ip, scope) = (it.ip().octets(), it.scope_id().to_ne_bytes());
            [&head(libc::AF_INET6)[..], &[0; 4], &ip, &scope].concat()
        }
    }
}

/// Binds the socket to the host, at this port or any.
pub(crate) fn bind(spec: &Spec, fd: &OwnedFd, port: u16) -> Result<()> {
    socket::bind(fd.as_fd(), &encode(host(spec, port)?)).at("bind")
}

/// The local and the remote address of a socket.
fn ends(fd: BorrowedFd<'_>) -> Result<(SocketAddr, Option<SocketAddr>), Errno> {
    let io = |err: std::io::Error| Errno::from_raw(err.raw_os_error().unwrap_or(0));
    let socket = UdpSocket::from(fd.try_clone_to_owned().map_err(io)?);
    Ok((socket.local_addr().map_err(io)?, socket.peer_addr().ok()))
}

/// The local address of a socket.
pub(crate) fn name(fd: BorrowedFd<'_>) -> Result<SocketAddr, Errno> {
    Ok(ends(fd)?.0)
}

/// The text that is recorded and compared.
fn told(spec: &Spec, fd: BorrowedFd<'_>) -> Result<String, Errno> {
    Ok(format!("{:?} {:?} {:?}", ends(fd)?, values(spec, fd)?, filters(spec, fd)?))
}

/// Whether the kernel sends packets for such a socket by itself.
pub(crate) fn sends(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<bool, Errno> {
    match nix::sys::socket::send(fd.as_raw_fd(), bytes, nix::sys::socket::MsgFlags::empty()) {
        Ok(_) => Ok(true),
        Err(Errno::EDESTADDRREQ | Errno::ENOTCONN) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Records one of the descriptions.
pub(crate) fn note(spec: &Spec, nth: usize, fd: &OwnedFd) -> Result<()> {
    let file = spec.dir()?.join(format!("{}.{}.{nth}", spec.name, spec.fds[0]));
    std::fs::write(&file, told(spec, fd.as_fd()).at("getsockopt")?).at(file.display())
}

/// Checks a description against its record.
pub(crate) fn same_as_noted(
    spec: &Spec,
    nth: usize,
    fd: BorrowedFd<'_>,
    bad: &mut Bad,
) -> Result<(), Errno> {
    let file = spec.dir().map(|dir| dir.join(format!("{}.{}.{nth}", spec.name, spec.fds[0])));
    let noted = file.ok().and_then(|file| std::fs::read_to_string(file).ok());
    bad.same("what it is", told(spec, fd)?, noted.unwrap_or_default());
    let reused = socket::option(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT)? != 0;
    bad.same("SO_REUSEPORT", reused, spec.has("two"));
    for (level, name, value) in options(spec).unwrap_or_default() {
        // Sizes are doubled and times rounded, so only whether the option is set is compared for
        // all.
        let none = sys::option(fd, level, name)?.iter().all(|&byte| byte == 0);
        bad.same(format!("option {level}.{name} is none"), none, value.iter().all(|&b| b == 0));
    }
    Ok(())
}
