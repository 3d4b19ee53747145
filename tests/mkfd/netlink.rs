//! netlink(7): port ids, groups, and messages.

use crate::driver::{Bad, Difference, Fixture, ready};
use crate::inet::{self, BYTES, SET, class};
use crate::spec::{At, Result, Spec, Stop};
use crate::sys;
use fdkit::sys::socket;
use nix::errno::Errno;
use nix::libc;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, recv};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

const SOL_NETLINK: i32 = 270;
const ADD_MEMBERSHIP: i32 = 1;
const LIST_MEMBERSHIPS: i32 = 9;
/// Messages between processes.
const USERSOCK: i32 = 2;
const ROUTE: i32 = 0;

pub(crate) struct Netlink;

impl Fixture for Netlink {
    const NAME: &'static str = "netlink";
    const ABOUT: &'static str = "a netlink socket";
    const KEYS: &'static [(&'static str, &'static str)] = &[
        ("protocol", "its number; 0, NETLINK_ROUTE, without"),
        ("dgram", "SOCK_DGRAM"),
        ("unbound", "it has no port id"),
        ("port", "its port id; any otherwise"),
        ("groups", "the groups it joins: 1+33"),
        ("peer", "the port id that it is connected to"),
        ("data", "bytes that wait in one of protocol 2"),
        SET,
        BYTES,
    ];
    const DIFFERENCES: &'static [Difference] = &[
        ("netlink@3:groups=1+5", "netlink@3:groups=1+33", "groups is [1, 5]"),
        ("netlink@3:protocol=16", "netlink@3", "protocol is 16"),
        ("netlink@3:unbound", "netlink@3", "bound is false"),
        ("netlink@3:dgram", "netlink@3", "type is"),
        ("netlink@3:peer=7,protocol=2", "netlink@3:peer=8,protocol=2", "peer is 7"),
        ("netlink@3:set=270.3.1", "netlink@3:set=270.3.0", "option 270.3"),
    ];

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        let made = new(class(spec), protocol(spec)).at("socket")?;
        let fd = made.as_fd();
        inet::set(spec, fd)?;
        if !spec.has("unbound") {
            let port = spec.number("port")?.unwrap_or(0) as u32;
            socket::bind(fd, &address(port)).at("bind")?;
        }
        for group in groups(spec)? {
            socket::set_option(fd, SOL_NETLINK, ADD_MEMBERSHIP, group)
                .at("to join a group, which takes CAP_NET_ADMIN")?;
        }
        if let Some(peer) = spec.number("peer")? {
            socket::connect(fd, &address(peer as u32)).at("connect")?;
        }
        if let Some(data) = spec.bytes("data") {
            send_to(fd, data).at("send")?;
        }
        Ok(vec![made])
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let protocol = protocol(spec);
        let fd = inet::at(spec, 0, class(spec), protocol, bad)?;
        let port = word(&socket::name(fd)?);
        match spec.known_number("port") {
            Some(wanted) => bad.same("port id", u64::from(port), wanted),
            None => bad.same("bound", port != 0, !spec.has("unbound")),
        }
        let bits = sys::option(fd, SOL_NETLINK, LIST_MEMBERSHIPS)?;
        let set = |n: &i32| bits[(*n - 1) as usize / 8] >> ((*n - 1) % 8) & 1 == 1;
        let joined: Vec<i32> = (1..=bits.len() as i32 * 8).filter(set).collect();
        bad.same("groups", joined, groups(spec).unwrap_or_default());
        let peer = spec.known_number("peer").unwrap_or(0);
        bad.same("peer", u64::from(word(&socket::peer(fd)?)), peer);
        inet::check_options(spec, fd, bad)?;
        if spec.has("peer") {
            return Ok(());
        }
        match protocol {
            USERSOCK if !spec.has("unbound") => {
                send_to(fd, b"a message")?;
                bad.same("a message", received(fd)?, b"a message".to_vec());
            }
            ROUTE if groups(spec).is_ok_and(|groups| groups.is_empty()) => {
                // RTM_GETLINK for all devices; there is at least one.
                let mut request = [0_u8; 32];
                (request[0], request[4], request[6], request[7]) = (32, 18, 1, 3);
                socket::send_to(fd, &request, &address(0))?;
                let answer = received(fd)?;
                // RTM_NEWLINK
                bad.same("an answer", answer.get(4).copied(), Some(16));
                while ready(fd, PollFlags::POLLIN)? {
                    received(fd)?;
                }
            }
            _ => (),
        }
        Ok(())
    }
}

fn new(class: i32, protocol: i32) -> Result<OwnedFd, Errno> {
    socket::new(libc::AF_NETLINK, class | libc::SOCK_CLOEXEC, protocol)
}

fn protocol(spec: &Spec) -> i32 {
    spec.known_number("protocol").unwrap_or(0) as i32
}

fn groups(spec: &Spec) -> Result<Vec<i32>> {
    let text = String::from_utf8_lossy(spec.bytes("groups").unwrap_or_default()).into_owned();
    let parse = |group: &str| group.parse().map_err(|_| Stop::Misuse(format!("groups={text}")));
    text.split('+').filter(|group| !group.is_empty()).map(parse).collect()
}

/// A struct sockaddr_nl.
fn address(port: u32) -> Vec<u8> {
    [&16_u16.to_ne_bytes()[..], &[0; 2], &port.to_ne_bytes(), &[0; 4]].concat()
}

/// The port id of a socket.
fn word(address: &[u8]) -> u32 {
    address.get(4..8).map_or(0, |four| u32::from_ne_bytes([four[0], four[1], four[2], four[3]]))
}

/// Sends a message to a socket from another one.
fn send_to(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<(), Errno> {
    let sender = new(libc::SOCK_RAW, USERSOCK)?;
    socket::send_to(sender.as_fd(), bytes, &socket::name(fd)?).map(drop)
}

/// The next message; nothing after five seconds.
fn received(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 65536];
    if !sys::becomes_readable(fd, 5000)? {
        return Ok(Vec::new());
    }
    let len = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT)?;
    buffer.truncate(len);
    Ok(buffer)
}
