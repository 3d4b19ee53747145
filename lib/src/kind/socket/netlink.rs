//! netlink(7): sockets to the kernel's subsystems, with a port id and multicast groups.

use crate::error::{At, Error, Result};
use crate::image::OpenFile;
use crate::kind::Kind;
use crate::kind::context::{Opened, RestoreContext};
use crate::kind::socket::inet::{netns_text, require_same_netns, warn_if_other_netns};
use crate::kind::socket::option::{Phase, SocketOptions};
use crate::kind::socket::{NONBLOCK, nonblock_flag};
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
    /// The socket type, SOCK_RAW 3 or SOCK_DGRAM 2, which netlink does not tell apart.
    class: i32,
    /// The netlink family of netlink(7): NETLINK_ROUTE 0 and so on.
    protocol: i32,
    /// Its port id; none if it is not bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port: Option<u32>,
    /// The numbers of the groups that it has joined, from 1, ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    groups: Vec<u32>,
    /// The port id and the groups (a bit mask) that it is connected to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    peer: Option<(u32, u32)>,
    /// The memory of its unread messages, in bytes: SK_MEMINFO_RMEM_ALLOC. The messages are not
    /// kept.
    queued: u32,
    /// The inode of its network namespace, if that is not its process's; zero if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    netns: Option<u64>,
    /// Socket options that differ from those of a new socket.
    #[serde(default, skip_serializing_if = "SocketOptions::is_empty")]
    options: SocketOptions,
}

/// The highest group number that is read; no protocol has more than a few hundred groups.
const MAX_GROUPS: usize = 65536;
/// MAX_LINKS of linux/netlink.h: protocols are below this.
const MAX_PROTOCOLS: usize = 32;

/// Names of the protocols as ss(8) prints them, by number; empty for a removed or unused number.
const PROTOCOL_NAMES: [&str; 23] = [
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

/// Encodes a struct sockaddr_nl.
fn sockaddr_nl(port: u32, groups: u32) -> Vec<u8> {
    let family = (libc::AF_NETLINK as u16).to_ne_bytes();
    [&family[..], &[0; 2], &port.to_ne_bytes(), &groups.to_ne_bytes()].concat()
}

/// Port id and groups of a struct sockaddr_nl.
/// The port id and the groups in a struct sockaddr_nl.
fn parse_sockaddr_nl(address: &[u8]) -> Option<(u32, u32)> {
    let word = |at: usize| Some(u32::from_ne_bytes(*address.get(at..)?.first_chunk()?));
    Some((word(4)?, word(8)?))
}

/// The numbers of the set bits in an array of 32-bit words, from 1.
fn set_bits(bits: &[u8]) -> Vec<u32> {
    let words =
        bits.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    let set = |(nth, word): (usize, u32)| {
        (0..32).filter(move |bit| word >> bit & 1 != 0).map(move |bit| nth as u32 * 32 + bit + 1)
    };
    words.enumerate().flat_map(set).collect()
}

/// The numbers of the groups that a socket has joined: NETLINK_LIST_MEMBERSHIPS, Linux 4.2. Fails
/// with EOVERFLOW beyond [`MAX_GROUPS`].
fn joined_groups(fd: BorrowedFd<'_>) -> Result<Vec<u32>> {
    let mut bits = vec![0; MAX_GROUPS / 8];
    let len = sys::option_bytes(fd, libc::SOL_NETLINK, libc::NETLINK_LIST_MEMBERSHIPS, &mut bits)
        .at(|| "NETLINK_LIST_MEMBERSHIPS")?;
    Ok(set_bits(bits.get(..len).ok_or(Errno::EOVERFLOW)?))
}

impl Kind for Netlink {
    const NAME: &'static str = "netlink";

    fn claims(descriptor: &Descriptor<'_>) -> bool {
        descriptor.socket_family() == Some(libc::AF_NETLINK)
    }

    fn capture(descriptor: &Descriptor<'_>) -> Result<Self> {
        let fd = descriptor.require_copy()?;
        let class = descriptor.socket_class().ok_or(Errno::ENOTSOCK)?;
        let name = parse_sockaddr_nl(&sys::name(fd).at(|| "getsockname")?).ok_or(Errno::EINVAL)?;
        let peer = parse_sockaddr_nl(&sys::peer(fd).at(|| "getpeername")?).ok_or(Errno::EINVAL)?;
        Ok(Netlink {
            class: class.1,
            protocol: class.2,
            port: Some(name.0).filter(|&port| port != 0),
            groups: joined_groups(fd)?,
            peer: Some(peer).filter(|&peer| peer != (0, 0)),
            // MSG_PEEK could make the kernel continue a dump, so the messages are not read.
            queued: sys::receive_memory(fd).at(|| "SO_MEMINFO")?,
            netns: descriptor.other_netns(),
            options: SocketOptions::read(fd, class)?,
        })
    }

    fn describe(&self, _: &OpenFile) -> Option<String> {
        let name = usize::try_from(self.protocol).ok().and_then(|at| PROTOCOL_NAMES.get(at));
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
        Some(text + &netns_text(self.netns))
    }

    fn validate(&self, _: &OpenFile) -> Result<()> {
        let valid_protocol =
            usize::try_from(self.protocol).is_ok_and(|number| number < MAX_PROTOCOLS);
        if !matches!(self.class, libc::SOCK_RAW | libc::SOCK_DGRAM) || !valid_protocol {
            return Err(Error::malformed("its socket type or protocol is not one of netlink(7)"));
        }
        let valid_group = |group: &u32| (1..=MAX_GROUPS as u32).contains(group);
        if self.port == Some(0) || !self.groups.iter().all(valid_group) {
            return Err(Error::malformed("its port id or group is not valid for netlink(7)"));
        }
        self.options.validate()
    }

    fn check(&self, _: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        require_same_netns(self.netns, cx)?;
        self.options.check((libc::AF_NETLINK, self.class, self.protocol))
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        let Netlink { class, protocol, port, ref groups, peer, queued, netns, ref options } = *self;
        if netns.is_none() {
            warn_if_other_netns(cx);
        }
        let shown = escape(&file.link.0).into_owned();
        let nonblock = nonblock_flag(file.flags);
        let made = sys::new(libc::AF_NETLINK, class | nonblock, protocol).at(|| "socket")?;
        let fd = made.as_fd();
        // The filter is attached before the groups are joined, so that no message passes
        // unfiltered.
        for phase in [Phase::Created, Phase::Last] {
            options.restore(fd, phase, file, cx)?;
        }
        if let Some(port) = port {
            match sys::bind(fd, &sockaddr_nl(port, 0)) {
                Err(Errno::EADDRINUSE) => {
                    sys::bind(fd, &sockaddr_nl(0, 0)).at(|| "bind")?;
                    let now = parse_sockaddr_nl(&sys::name(fd)?).map_or(0, |(port, _)| port);
                    let line =
                        format!("{shown}: port id {port} is in use; it is bound to {now} instead");
                    cx.warnings.push(line);
                }
                bound => bound.at(|| format!("bind to port id {port}"))?,
            }
        }
        for &group in groups {
            match sys::set_option(fd, libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group as i32)
            {
                Err(Errno::EINVAL) => {
                    let why =
                        format!("this kernel has no group {group} of netlink protocol {protocol}");
                    return Err(Error::unrestorable(why));
                }
                joined => joined.at(|| format!("join group {group}"))?,
            }
        }
        if let Some((port, groups)) = peer {
            sys::connect(fd, &sockaddr_nl(port, groups)).at(|| "connect")?;
        }
        if queued > 0 {
            cx.warnings.push(format!("{shown}: {queued} bytes of unread messages are lost"));
        }
        Ok(Opened::new(made, file.flags & NONBLOCK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::tests::{body_of, describe_of};

    #[test]
    fn group_numbers_are_read_from_a_bit_array() {
        let bits = [0x8000_0001_u32.to_ne_bytes(), 2_u32.to_ne_bytes()].concat();
        assert_eq!(set_bits(&bits), [1, 32, 34]);
        assert_eq!(set_bits(&[]), Vec::<u32>::new());
    }

    #[test]
    fn port_id_groups_and_peer_are_captured() {
        // Joining groups of rtnetlink(7), and connecting within NETLINK_USERSOCK, need no
        // capability.
        let listener = sys::new(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE).unwrap();
        let sender = sys::new(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_USERSOCK).unwrap();
        for socket in [&listener, &sender] {
            let body: Netlink = body_of(socket);
            assert_eq!((body.port, body.peer, body.queued), (None, None, 0));
        }
        sys::bind(listener.as_fd(), &sockaddr_nl(0, 1)).unwrap();
        sys::connect(sender.as_fd(), &sockaddr_nl(7, 0)).unwrap();
        let body: Netlink = body_of(&listener);
        assert_eq!((body.groups.as_slice(), body.peer), (&[1][..], None));
        let description = format!("netlink route port={} groups=1", body.port.unwrap());
        assert_eq!(describe_of(&listener), description);
        let body: Netlink = body_of(&sender);
        assert_eq!((body.groups.as_slice(), body.peer), (&[][..], Some((7, 0))));
        let description = format!("netlink usersock port={}", body.port.unwrap());
        assert_eq!(describe_of(&sender), description);
    }
}
