//! netlink(7): sockets of the kernel's own protocols, with a port id and groups.

use crate::error::{At, Error, Result};
use crate::image::OpenFile;
use crate::kind::Kind;
use crate::kind::context::{Opened, RestoreContext};
use crate::kind::socket::inet::{NONBLOCK, is_at_home, said_if_elsewhere};
use crate::kind::socket::option::{Phase, SocketOptions};
use crate::proc::Descriptor;
use crate::sys::socket as sys;
use crate::text::escape;
use nix::errno::Errno;
use nix::libc;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd};

/// A netlink socket.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Netlink {
    /// SOCK_RAW 3 or SOCK_DGRAM 2, which mean the same.
    class: i32,
    /// NETLINK_ROUTE 0 and so on, as netlink(7) numbers them.
    protocol: i32,
    /// Its port id; none if it is not bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port: Option<u32>,
    /// The groups that it has joined, ascending, from 1 on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    groups: Vec<u32>,
    /// Port id and groups that it is connected to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    peer: Option<(u32, u32)>,
    /// The memory that messages take which wait to be read, in bytes. They are lost.
    queued: u32,
    /// The inode of its network namespace, if that is not the one of its process; zero if it could
    /// not be found out which one it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    netns: Option<u64>,
    /// What a fresh socket like it has not.
    #[serde(default, skip_serializing_if = "SocketOptions::is_empty")]
    options: SocketOptions,
}

/// The most groups that are asked for; no protocol has more than some hundreds.
const GROUPS: usize = 65536;
/// MAX_LINKS of linux/netlink.h
const PROTOCOLS: usize = 32;

/// The protocols by the names of ss(8), in their order; those without one are no more, or nobody's.
const NAMES: [&str; 23] = [
    "route",
    "",
    "usersock",
    "fw",
    "sock_diag",
    "nflog",
    "xfrm",
    "selinux",
    "iscsi",
    "audit",
    "fiblookup",
    "connector",
    "netfilter",
    "",
    "dec-rt",
    "uevent",
    "genl",
    "",
    "scsi-trans",
    "ecryptfs",
    "rdma",
    "crypto",
    "smc",
];

/// A struct sockaddr_nl.
fn address(port: u32, groups: u32) -> Vec<u8> {
    let family = (libc::AF_NETLINK as u16).to_ne_bytes();
    [&family[..], &[0; 2], &port.to_ne_bytes(), &groups.to_ne_bytes()].concat()
}

/// Port id and groups of a struct sockaddr_nl.
fn parse(address: &[u8]) -> Option<(u32, u32)> {
    let word = |at: usize| Some(u32::from_ne_bytes(*address.get(at..)?.first_chunk()?));
    Some((word(4)?, word(8)?))
}

/// The numbers of the bits that are set in words of 32, from 1 on.
fn members(bits: &[u8]) -> Vec<u32> {
    let words =
        bits.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    let set = |(nth, word): (usize, u32)| {
        (0..32).filter(move |bit| word >> bit & 1 != 0).map(move |bit| nth as u32 * 32 + bit + 1)
    };
    words.enumerate().flat_map(set).collect()
}

fn groups(fd: BorrowedFd<'_>) -> Result<Vec<u32>> {
    let mut bits = vec![0; GROUPS / 8];
    let len = sys::option_bytes(fd, libc::SOL_NETLINK, libc::NETLINK_LIST_MEMBERSHIPS, &mut bits)
        .at(|| "NETLINK_LIST_MEMBERSHIPS")?;
    Ok(members(bits.get(..len).ok_or(Errno::EOVERFLOW)?))
}

impl Kind for Netlink {
    const NAME: &'static str = "netlink";

    fn claims(it: &Descriptor<'_>) -> bool {
        it.is_socket() && it.family() == Some(libc::AF_NETLINK)
    }

    fn capture(it: &Descriptor<'_>) -> Result<Self> {
        let (Some(copy), Some(class)) = (&it.copy, it.class()) else {
            return Err(Error::unrestorable("a passive scan cannot ask a socket"));
        };
        let fd = copy.as_fd();
        let name = parse(&sys::name(fd).at(|| "getsockname")?).ok_or(Errno::EINVAL)?;
        let peer = parse(&sys::peer(fd).at(|| "getpeername")?).ok_or(Errno::EINVAL)?;
        Ok(Netlink {
            class: class.1,
            protocol: class.2,
            port: Some(name.0).filter(|&port| port != 0),
            groups: groups(fd)?,
            peer: Some(peer).filter(|&peer| peer != (0, 0)),
            // To look at a message could make the kernel go on with an answer in many parts.
            queued: sys::waiting(fd).at(|| "SO_MEMINFO")?,
            netns: it.other_netns(),
            options: SocketOptions::read(fd, class)?,
        })
    }

    fn describe(&self, _: &OpenFile) -> Option<String> {
        let name = usize::try_from(self.protocol).ok().and_then(|at| NAMES.get(at));
        let mut text = match name.filter(|name| !name.is_empty()) {
            Some(name) => format!("netlink {name}"),
            None => format!("netlink {}", self.protocol),
        };
        if let Some(port) = self.port {
            text += &format!(" port={port}");
        }
        if !self.groups.is_empty() {
            let groups: Vec<String> = self.groups.iter().map(u32::to_string).collect();
            text += &format!(" groups={}", groups.join(","));
        }
        if self.queued > 0 {
            text += &format!(" queued={}", self.queued);
        }
        Some(text)
    }

    fn validate(&self, _: &OpenFile) -> Result<()> {
        let protocol = usize::try_from(self.protocol).is_ok_and(|number| number < PROTOCOLS);
        if !matches!(self.class, libc::SOCK_RAW | libc::SOCK_DGRAM) || !protocol {
            return Err(Error::malformed("no netlink socket is of such a type or protocol"));
        }
        let possible = |group: &u32| (1..=GROUPS as u32).contains(group);
        if self.port == Some(0) || !self.groups.iter().all(possible) {
            return Err(Error::malformed("no netlink socket has such a port id or group"));
        }
        self.options.validate()
    }

    fn check(&self, _: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        is_at_home(self.netns, cx)?;
        self.options.check((libc::AF_NETLINK, self.class, self.protocol))
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        let Netlink { class, protocol, port, ref groups, peer, queued, netns, ref options } = *self;
        if netns.is_none() {
            said_if_elsewhere(cx);
        }
        let shown = escape(&file.link.0).into_owned();
        let nonblock = if file.flags & NONBLOCK != 0 { libc::SOCK_NONBLOCK } else { 0 };
        let made = sys::new(libc::AF_NETLINK, class | nonblock, protocol).at(|| "socket")?;
        let fd = made.as_fd();
        // The filter comes before the groups, so that nothing slips in before it.
        for phase in [Phase::Created, Phase::Last] {
            options.set(fd, phase, &mut |line| cx.warnings.push(format!("{shown}: {line}")))?;
        }
        if let Some(port) = port {
            match sys::bind(fd, &address(port, 0)) {
                Err(Errno::EADDRINUSE) => {
                    sys::bind(fd, &address(0, 0)).at(|| "bind")?;
                    let now = parse(&sys::name(fd)?).map_or(0, |(port, _)| port);
                    let line = format!("{shown}: port id {port} is in use, and it has {now}");
                    cx.warnings.push(line);
                }
                bound => bound.at(|| format!("bind to port id {port}"))?,
            }
        }
        for &group in groups {
            match sys::set_option(fd, libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group as i32)
            {
                Err(Errno::EINVAL) => {
                    let why = format!("this kernel has no group {group} of protocol {protocol}");
                    return Err(Error::unrestorable(why));
                }
                joined => joined.at(|| format!("join group {group}"))?,
            }
        }
        if let Some((port, groups)) = peer {
            sys::connect(fd, &address(port, groups)).at(|| "connect")?;
        }
        if queued > 0 {
            let why = "bytes of messages that were not read are lost";
            cx.warnings.push(format!("{shown}: {queued} {why}"));
        }
        Ok(Opened::new(made, file.flags & NONBLOCK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::tests::{body_of, describe_of};

    #[test]
    fn groups_are_the_bits_of_words() {
        let bits = [0x8000_0001_u32.to_ne_bytes(), 2_u32.to_ne_bytes()].concat();
        assert_eq!(members(&bits), [1, 32, 34]);
        assert_eq!(members(&[]), Vec::<u32>::new());
    }

    #[test]
    fn a_socket_has_its_port_id_groups_and_peer() {
        // Anybody may join groups of rtnetlink(7), and connect within NETLINK_USERSOCK.
        let listener = sys::new(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE).unwrap();
        let sender = sys::new(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_USERSOCK).unwrap();
        for socket in [&listener, &sender] {
            let body: Netlink = body_of(socket);
            assert_eq!((body.port, body.peer, body.queued), (None, None, 0));
        }
        sys::bind(listener.as_fd(), &address(0, 1)).unwrap();
        sys::connect(sender.as_fd(), &address(7, 0)).unwrap();
        let body: Netlink = body_of(&listener);
        assert_eq!((body.groups.as_slice(), body.peer), (&[1][..], None));
        let title = format!("netlink route port={} groups=1", body.port.unwrap());
        assert_eq!(describe_of(&listener), title);
        let body: Netlink = body_of(&sender);
        assert_eq!((body.groups.as_slice(), body.peer), (&[][..], Some((7, 0))));
        let title = format!("netlink usersock port={}", body.port.unwrap());
        assert_eq!(describe_of(&sender), title);
    }
}
