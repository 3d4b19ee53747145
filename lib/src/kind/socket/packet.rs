//! packet(7): sockets that send and receive frames of a network device. Memberships and rings are
//! read by sock_diag(7), since no option of getsockopt(2) returns them.

use crate::error::{At, Error, Result};
use crate::image::{Bytes, OpenFile};
use crate::kind::Kind;
use crate::kind::context::{Opened, RestoreContext};
use crate::kind::effect::{Allow, Effect};
use crate::kind::socket::inet::{netns_text, require_same_netns, warn_if_other_netns};
use crate::kind::socket::option::{Phase, SocketOptions};
use crate::kind::socket::{NONBLOCK, nonblock_flag};
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
    /// The socket type, SOCK_RAW 3 or SOCK_DGRAM 2.
    class: i32,
    /// The protocol of linux/if_ether.h whose frames it receives; zero for none.
    protocol: u16,
    /// The device that it is bound to; none for all devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device: Option<BoundDevice>,
    /// Its memberships, as sock_diag(7) lists them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    members: Vec<Membership>,
    /// PACKET_FANOUT: the group in the low 16 bits, its mode and flags in the high 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fanout: Option<u32>,
    /// The socket has a PACKET_RX_RING, and a PACKET_TX_RING.
    rings: (bool, bool),
    /// The memory of its unread packets, in bytes: SK_MEMINFO_RMEM_ALLOC. The packets are not kept.
    queued: u32,
    /// The inode of its network namespace, if that is not its process's; zero if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    netns: Option<u64>,
    /// Socket options that differ from those of a new socket.
    #[serde(default, skip_serializing_if = "SocketOptions::is_empty")]
    options: SocketOptions,
}

/// The network device that a socket is bound to.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct BoundDevice {
    /// Its index; -1 for a device that was removed.
    index: i32,
    /// Its name, by which a restore finds it; empty for a device that was removed.
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
    /// The number of times that it was joined.
    count: u32,
}

/// PACKET_FANOUT_CBPF and PACKET_FANOUT_EBPF: a BPF program distributes the packets. It cannot be
/// read.
const BPF_FANOUT_MODES: [u8; 2] = [6, 7];
/// MAX_ADDR_LEN of linux/netdevice.h, in bytes.
const MAX_ADDRESS: usize = 32;
/// IFNAMSIZ without the NUL, in bytes.
const MAX_NAME: usize = 15;

/// Encodes a struct sockaddr_ll for bind(2).
fn sockaddr_ll(protocol: u16, device: i32) -> Vec<u8> {
    let family = (libc::AF_PACKET as u16).to_ne_bytes();
    [&family[..], &protocol.to_be_bytes(), &device.to_ne_bytes(), &[0; 12]].concat()
}

/// Protocol and index of a struct sockaddr_ll.
fn parse_sockaddr_ll(address: &[u8]) -> Option<(u16, i32)> {
    let protocol = u16::from_be_bytes(*address.get(2..)?.first_chunk()?);
    Some((protocol, i32::from_ne_bytes(*address.get(4..)?.first_chunk()?)))
}

/// Reports whether a device can have this name.
fn is_device_name(name: &Bytes) -> bool {
    (1..=MAX_NAME).contains(&name.0.len()) && !name.0.contains(&0)
}

/// The index of a device in the network namespace of `fd`, a socket. Fails with status 6 if there
/// is no such device.
fn device_index(fd: BorrowedFd<'_>, name: &Bytes) -> Result<i32> {
    sys::device_index(fd, &name.0).map_err(|errno| match errno {
        Errno::ENODEV => {
            Error::unrestorable(format!("there is no network device {}", escape(&name.0)))
        }
        errno => errno.into(),
    })
}

impl Membership {
    /// The record of a membership. The name of the device is that in the network namespace of `fd`.
    fn from_diag(fd: BorrowedFd<'_>, found: sock_diag::PacketMembership) -> Result<Membership> {
        let sock_diag::PacketMembership { device, count, class, address } = found;
        let name = sys::device_name(fd, device as i32).at(|| format!("device {device}"))?;
        Ok(Membership { device: Bytes(name), class, address: Bytes(address), count })
    }

    /// Encodes a struct packet_mreq, or packet_mreq_max for an address of more than 8 bytes.
    fn encode(&self, fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
        let index = device_index(fd, &self.device)?.to_ne_bytes();
        let len = self.address.0.len() as u16;
        let mut bytes = [&index[..], &self.class.to_ne_bytes(), &len.to_ne_bytes()].concat();
        bytes.extend(&self.address.0);
        bytes.resize(bytes.len().max(16), 0);
        Ok(bytes)
    }
}

/// The device that a socket is bound to, by its index in a struct sockaddr_ll; zero is no device.
fn bound_device(fd: BorrowedFd<'_>, index: i32) -> Result<Option<BoundDevice>> {
    if index == 0 {
        return Ok(None);
    }
    let name = match sys::device_name(fd, index) {
        // The device was removed.
        Err(Errno::ENODEV) => Vec::new(),
        name => name.at(|| format!("device {index}"))?,
    };
    Ok(Some(BoundDevice { index, name: Bytes(name) }))
}

impl Kind for Packet {
    const NAME: &'static str = "packet";

    fn claims(descriptor: &Descriptor<'_>) -> bool {
        descriptor.socket_family() == Some(libc::AF_PACKET)
            && matches!(descriptor.socket_class(), Some((_, libc::SOCK_RAW | libc::SOCK_DGRAM, _)))
    }

    fn capture(descriptor: &Descriptor<'_>) -> Result<Self> {
        let fd = descriptor.require_copy()?;
        let class = descriptor.socket_class().ok_or(Errno::ENOTSOCK)?;
        let inode = descriptor.inode.as_ref().ok_or(Errno::ENOTSOCK)?;
        let name = sys::name(fd).at(|| "getsockname")?;
        let (protocol, index) = parse_sockaddr_ll(&name).ok_or(Errno::EINVAL)?;
        let ino = u32::try_from(inode.ino).map_err(|_| Errno::EOVERFLOW)?;
        let found = descriptor.process.packet_socket(ino, fd)?;
        let fanout =
            || sys::option(fd, libc::SOL_PACKET, libc::PACKET_FANOUT).at(|| "PACKET_FANOUT");
        let members = found.members.into_iter().map(|member| Membership::from_diag(fd, member));
        Ok(Packet {
            class: class.1,
            protocol,
            device: bound_device(fd, index)?,
            members: members.collect::<Result<_>>()?,
            fanout: found.fans.then(fanout).transpose()?.map(|fanout| fanout as u32),
            rings: found.rings,
            queued: sys::receive_memory(fd).at(|| "SO_MEMINFO")?,
            netns: descriptor.other_netns(),
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
        Some(text + &netns_text(self.netns))
    }

    fn validate(&self, _: &OpenFile) -> Result<()> {
        if !matches!(self.class, libc::SOCK_RAW | libc::SOCK_DGRAM) {
            return Err(Error::malformed("its socket type is not one of packet(7)"));
        }
        // A device that was removed has no name.
        let named = self.device.iter().map(|device| &device.name).filter(|name| !name.0.is_empty());
        let mut named = named.chain(self.members.iter().map(|member| &member.device));
        let valid = |member: &Membership| member.address.0.len() <= MAX_ADDRESS && member.count > 0;
        if !named.all(is_device_name) || !self.members.iter().all(valid) {
            return Err(Error::malformed("its device or membership is not valid for packet(7)"));
        }
        // A restore joins each membership `count` times.
        if self.members.iter().map(|member| u64::from(member.count)).sum::<u64>() > 65536 {
            return Err(Error::malformed("it has more than 65536 memberships"));
        }
        self.options.validate()
    }

    fn effects(&self, _: &OpenFile, _: &RestoreContext<'_>) -> Result<Vec<Effect>> {
        let joins = |member: &Membership| {
            let device = escape(&member.device.0).into_owned();
            let what = format!("receives from the device {device} what is not for it");
            Effect::needing(Allow::Network, format!("{what} (PACKET_ADD_MEMBERSHIP)"))
        };
        Ok(self.members.iter().map(joins).collect())
    }

    fn check(&self, _: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        let removed = self.device.as_ref().is_some_and(|device| device.name.0.is_empty());
        if removed {
            return Err(Error::unrestorable("the network device that it was bound to was removed"));
        }
        if self.rings != (false, false) {
            return Err(Error::unrestorable(
                "its ring buffer is memory that its process has mapped, which is not in the image",
            ));
        }
        if self.fanout.is_some_and(|fanout| BPF_FANOUT_MODES.contains(&((fanout >> 16) as u8))) {
            return Err(Error::unrestorable(
                "its fanout mode has a BPF program, which cannot be read",
            ));
        }
        require_same_netns(self.netns, cx)?;
        let probe = sys::new(libc::AF_PACKET, self.class | libc::SOCK_CLOEXEC, 0);
        let probe = probe.at(|| "socket")?;
        let named = self.device.iter().map(|device| &device.name);
        for name in named.chain(self.members.iter().map(|member| &member.device)) {
            device_index(probe.as_fd(), name)?;
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
            warn_if_other_netns(cx);
        }
        let shown = escape(&file.link.0).into_owned();
        let nonblock = nonblock_flag(file.flags);
        // Protocol 0 receives nothing until bind(2) sets the protocol, after all options.
        let made = sys::new(libc::AF_PACKET, class | nonblock, 0).at(|| "socket")?;
        let fd = made.as_fd();
        for phase in [Phase::Created, Phase::Last] {
            options.restore(fd, phase, file, cx)?;
        }
        let device = match device {
            Some(BoundDevice { index: _, name }) => device_index(fd, name)?,
            None => 0,
        };
        for member in members {
            let request = member.encode(fd)?;
            for _ in 0..member.count {
                sys::set_option_bytes(fd, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &request)
                    .at(|| "PACKET_ADD_MEMBERSHIP")?;
            }
        }
        if (protocol, device) != (0, 0) {
            sys::bind(fd, &sockaddr_ll(protocol, device)).at(|| "bind")?;
        }
        if let Some(fanout) = fanout {
            sys::set_option(fd, libc::SOL_PACKET, libc::PACKET_FANOUT, fanout as i32)
                .at(|| "PACKET_FANOUT")?;
        }
        if queued > 0 {
            cx.warnings.push(format!("{shown}: {queued} bytes of unread packets are lost"));
        }
        Ok(Opened::new(made, file.flags & NONBLOCK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::tests::{body_of, describe_of};

    #[test]
    fn a_sockaddr_ll_is_encoded_and_parsed() {
        assert_eq!(parse_sockaddr_ll(&sockaddr_ll(0x0806, 3)), Some((0x0806, 3)));
        assert_eq!(parse_sockaddr_ll(&[0; 7]), None);
    }

    #[test]
    fn protocol_device_and_memberships_are_captured() {
        // Skipped without CAP_NET_RAW.
        let Ok(socket) = sys::new(libc::AF_PACKET, libc::SOCK_DGRAM, 0) else { return };
        let lo = Bytes(b"lo".to_vec());
        let device = device_index(socket.as_fd(), &lo).unwrap();
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
        sys::bind(socket.as_fd(), &sockaddr_ll(0x88b5, device)).unwrap();
        let body: Packet = body_of(&socket);
        assert_eq!((body.class, body.protocol), (libc::SOCK_DGRAM, 0x88b5));
        assert_eq!(body.device, Some(BoundDevice { index: device, name: lo }));
        assert_eq!(body.members, [member]);
        assert_eq!((body.fanout, body.rings), (None, (false, false)));
        assert_eq!(describe_of(&socket), "packet protocol=0x88b5 device=lo");
    }
}
