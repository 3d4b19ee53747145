//! packet(7): frames of a network device. What getsockopt(2) does not tell of it, sock_diag(7) does.

use crate::error::{At, Error, Result};
use crate::image::{Bytes, OpenFile};
use crate::kind::Kind;
use crate::kind::context::{Opened, RestoreContext};
use crate::kind::socket::inet::{NONBLOCK, is_at_home, said_if_elsewhere};
use crate::kind::socket::option::{Phase, SocketOptions};
use crate::proc::Descriptor;
use crate::proc::sock_diag;
use crate::sys::socket as sys;
use crate::text::escape;
use nix::errno::Errno;
use nix::libc;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd};

/// A packet socket.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Packet {
    /// SOCK_RAW 3 or SOCK_DGRAM 2.
    class: i32,
    /// The protocol of linux/if_ether.h whose frames it gets; zero for none.
    protocol: u16,
    /// The device that it is bound to; none if that is any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device: Option<BoundDevice>,
    /// What it has joined, in that order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    members: Vec<Membership>,
    /// PACKET_FANOUT: its group, and how packets are shared in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fanout: Option<u32>,
    /// PACKET_RX_RING and PACKET_TX_RING.
    rings: (bool, bool),
    /// The memory that packets take which wait to be read, in bytes. They are lost.
    queued: u32,
    /// The inode of its network namespace, if that is not the one of its process; zero if it could
    /// not be found out which one it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    netns: Option<u64>,
    /// What a fresh socket like it has not.
    #[serde(default, skip_serializing_if = "SocketOptions::is_empty")]
    options: SocketOptions,
}

/// A network device.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct BoundDevice {
    /// Its index; -1 for one that was taken away.
    index: i32,
    /// Its name, by which it is found again; empty for one that was taken away.
    name: Bytes,
}

/// A membership: PACKET_ADD_MEMBERSHIP.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Membership {
    /// The name of the device.
    device: Bytes,
    /// PACKET_MR_MULTICAST 0, PROMISC 1, ALLMULTI 2 or UNICAST 3.
    class: u16,
    /// The address.
    address: Bytes,
    /// How often it was joined.
    count: u32,
}

/// PACKET_FANOUT_CBPF and PACKET_FANOUT_EBPF: a program shares the packets, and cannot be read.
const PROGRAMS: [u8; 2] = [6, 7];
/// MAX_ADDR_LEN of linux/netdevice.h
const MAX_ADDRESS: usize = 32;
/// IFNAMSIZ, without its NUL.
const MAX_NAME: usize = 15;

/// A struct sockaddr_ll to bind to.
fn address(protocol: u16, device: i32) -> Vec<u8> {
    let family = (libc::AF_PACKET as u16).to_ne_bytes();
    [&family[..], &protocol.to_be_bytes(), &device.to_ne_bytes(), &[0; 12]].concat()
}

/// Protocol and index of a struct sockaddr_ll.
fn parse(address: &[u8]) -> Option<(u16, i32)> {
    let protocol = u16::from_be_bytes(*address.get(2..)?.first_chunk()?);
    Some((protocol, i32::from_ne_bytes(*address.get(4..)?.first_chunk()?)))
}

fn is_name(name: &Bytes) -> bool {
    (1..=MAX_NAME).contains(&name.0.len()) && !name.0.contains(&0)
}

/// The index that a device has here.
fn index(fd: BorrowedFd<'_>, name: &Bytes) -> Result<i32> {
    sys::device_index(fd, &name.0).map_err(|errno| match errno {
        Errno::ENODEV => Error::unrestorable(format!("there is no device {}", escape(&name.0))),
        errno => errno.into(),
    })
}

impl Membership {
    fn of(fd: BorrowedFd<'_>, found: sock_diag::PacketMembership) -> Result<Membership> {
        let sock_diag::PacketMembership { device, count, class, address } = found;
        let name = sys::device_name(fd, device as i32).at(|| format!("device {device}"))?;
        Ok(Membership { device: Bytes(name), class, address: Bytes(address), count })
    }

    /// A struct packet_mreq, as long as its address asks for.
    fn encode(&self, fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
        let index = index(fd, &self.device)?.to_ne_bytes();
        let len = self.address.0.len() as u16;
        let mut bytes = [&index[..], &self.class.to_ne_bytes(), &len.to_ne_bytes()].concat();
        bytes.extend(&self.address.0);
        bytes.resize(bytes.len().max(16), 0);
        Ok(bytes)
    }
}

impl Kind for Packet {
    const NAME: &'static str = "packet";

    fn claims(it: &Descriptor<'_>) -> bool {
        it.is_socket()
            && it.family() == Some(libc::AF_PACKET)
            && matches!(it.class(), Some((_, libc::SOCK_RAW | libc::SOCK_DGRAM, _)))
    }

    fn capture(it: &Descriptor<'_>) -> Result<Self> {
        let (Some(copy), Some(inode), Some(class)) = (&it.copy, &it.inode, it.class()) else {
            return Err(Error::unrestorable("a passive scan cannot ask a socket"));
        };
        let fd = copy.as_fd();
        let name = sys::name(fd).at(|| "getsockname")?;
        let (protocol, index) = parse(&name).ok_or(Errno::EINVAL)?;
        let ino = u32::try_from(inode.ino).map_err(|_| Errno::EOVERFLOW)?;
        let found = it.process.packet_socket(ino)?;
        let fanout =
            || sys::option(fd, libc::SOL_PACKET, libc::PACKET_FANOUT).at(|| "PACKET_FANOUT");
        let members = found.members.into_iter().map(|member| Membership::of(fd, member));
        Ok(Packet {
            class: class.1,
            protocol,
            device: (index != 0).then(|| BoundDevice {
                index,
                name: Bytes(sys::device_name(fd, index).unwrap_or_default()),
            }),
            members: members.collect::<Result<_>>()?,
            fanout: found.fans.then(fanout).transpose()?.map(|fanout| fanout as u32),
            rings: found.rings,
            queued: sys::waiting(fd).at(|| "SO_MEMINFO")?,
            netns: it.other_netns(),
            options: SocketOptions::read(fd, class)?,
        })
    }

    fn describe(&self, _: &OpenFile) -> Option<String> {
        let mut text = format!("packet protocol={:#06x}", self.protocol);
        if let Some(device) = &self.device {
            text += &format!(" device={}", escape(&device.name.0));
        }
        if self.queued > 0 {
            text += &format!(" queued={}", self.queued);
        }
        Some(text)
    }

    fn validate(&self, _: &OpenFile) -> Result<()> {
        if !matches!(self.class, libc::SOCK_RAW | libc::SOCK_DGRAM) {
            return Err(Error::malformed("no packet socket is of such a type"));
        }
        // The name of one that was taken away is empty.
        let named = self.device.iter().map(|device| &device.name).filter(|name| !name.0.is_empty());
        let mut named = named.chain(self.members.iter().map(|member| &member.device));
        let usual = |member: &Membership| member.address.0.len() <= MAX_ADDRESS && member.count > 0;
        if !named.all(is_name) || !self.members.iter().all(usual) {
            return Err(Error::malformed("no packet socket has such a device or membership"));
        }
        // Each one is joined as often as it was.
        if self.members.iter().map(|member| u64::from(member.count)).sum::<u64>() > 65536 {
            return Err(Error::malformed("it has joined more than anybody would"));
        }
        self.options.validate()
    }

    fn check(&self, _: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        let gone = self.device.as_ref().is_some_and(|device| device.name.0.is_empty());
        if gone {
            return Err(Error::unrestorable("the device that it was bound to was taken away"));
        }
        if self.rings != (false, false) {
            return Err(Error::unrestorable(
                "its ring is memory that its process has mapped, which is not kept",
            ));
        }
        if self.fanout.is_some_and(|fanout| PROGRAMS.contains(&((fanout >> 16) as u8))) {
            return Err(Error::unrestorable("the program that shares its packets cannot be read"));
        }
        is_at_home(self.netns, cx)?;
        let probe = sys::new(libc::AF_PACKET, self.class | libc::SOCK_CLOEXEC, 0);
        let probe = probe.at(|| "socket")?;
        let named = self.device.iter().map(|device| &device.name);
        for name in named.chain(self.members.iter().map(|member| &member.device)) {
            index(probe.as_fd(), name)?;
        }
        self.options.check((libc::AF_PACKET, self.class, 0))
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        let Packet {
            class,
            protocol,
            ref device,
            ref members,
            fanout,
            rings: _,
            queued,
            netns,
            ref options,
        } = *self;
        if netns.is_none() {
            said_if_elsewhere(cx);
        }
        let shown = escape(&file.link.0).into_owned();
        let nonblock = if file.flags & NONBLOCK != 0 { libc::SOCK_NONBLOCK } else { 0 };
        // Without a protocol it gets nothing before it is bound, when all its options are set.
        let made = sys::new(libc::AF_PACKET, class | nonblock, 0).at(|| "socket")?;
        let fd = made.as_fd();
        for phase in [Phase::Created, Phase::Last] {
            options.set(fd, phase, &mut |line| cx.warnings.push(format!("{shown}: {line}")))?;
        }
        let device = match device {
            Some(BoundDevice { index: _, name }) => index(fd, name)?,
            None => 0,
        };
        for member in members {
            let member = (member.encode(fd)?, member.count);
            for _ in 0..member.1 {
                sys::set_option_bytes(fd, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &member.0)
                    .at(|| "PACKET_ADD_MEMBERSHIP")?;
            }
        }
        if (protocol, device) != (0, 0) {
            sys::bind(fd, &address(protocol, device)).at(|| "bind")?;
        }
        if let Some(fanout) = fanout {
            sys::set_option(fd, libc::SOL_PACKET, libc::PACKET_FANOUT, fanout as i32)
                .at(|| "PACKET_FANOUT")?;
        }
        if queued > 0 {
            let why = "bytes of packets that were not read are lost";
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
    fn an_address_goes_both_ways() {
        assert_eq!(parse(&address(0x0806, 3)), Some((0x0806, 3)));
        assert_eq!(parse(&[0; 7]), None);
    }

    #[test]
    fn a_socket_has_its_protocol_device_and_memberships() {
        // To make one takes CAP_NET_RAW.
        let Ok(socket) = sys::new(libc::AF_PACKET, libc::SOCK_DGRAM, 0) else { return };
        let lo = Bytes(b"lo".to_vec());
        let device = index(socket.as_fd(), &lo).unwrap();
        let member =
            Membership { device: lo.clone(), class: 2, address: Bytes::default(), count: 2 };
        for _ in 0..2 {
            let request = member.encode(socket.as_fd()).unwrap();
            sys::set_option_bytes(
                socket.as_fd(),
                libc::SOL_PACKET,
                libc::PACKET_ADD_MEMBERSHIP,
                &request,
            )
            .unwrap();
        }
        sys::bind(socket.as_fd(), &address(0x88b5, device)).unwrap();
        let body: Packet = body_of(&socket);
        assert_eq!((body.class, body.protocol), (libc::SOCK_DGRAM, 0x88b5));
        assert_eq!(body.device, Some(BoundDevice { index: device, name: lo }));
        assert_eq!(body.members, [member]);
        assert_eq!((body.fanout, body.rings), (None, (false, false)));
        assert_eq!(describe_of(&socket), "packet protocol=0x88b5 device=lo");
    }
}
