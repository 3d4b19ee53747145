//! Facts about sockets and tunnels that no descriptor of them tells: sock_diag(7), rtnetlink(7).

use crate::error::{At, Error, Result, Status};
use crate::sys;
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NlasIterator,
};
use netlink_sys::protocols::{NETLINK_ROUTE, NETLINK_SOCK_DIAG};
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::libc;
use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A unix socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnixSocket {
    /// SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET.
    pub class: u8,
    /// True if it listens for connections.
    pub listens: bool,
    /// The address it is bound to, without the family: a path, or an abstract name after a NUL.
    pub name: Option<Vec<u8>>,
    /// The low 32 bits of the inode number of the file that it is bound to.
    pub file: Option<u32>,
    /// The inode number of the socket it is connected to; zero if that is closed.
    pub peer: Option<u32>,
    /// Of a listening socket: the inode numbers of the sockets that are connected to it and wait to be
    /// accepted, the first one first; zero for one that was closed meanwhile.
    pub clients: Vec<u32>,
    /// The inode number of the listening socket that it is connected to, if that has not accepted the
    /// connection yet. Its `peer` is then zero.
    pub listener: Option<u32>,
    /// The two numbers of UNIX_DIAG_RQLEN: of a listener pending connections and backlog, of others
    /// the bytes that can be read, and those that were written and are not read.
    pub queue: (u32, u32),
    /// SO_SNDBUF and SO_RCVBUF, in bytes.
    pub buffers: (u32, u32),
    /// Bits: RCV_SHUTDOWN 1, SEND_SHUTDOWN 2.
    pub shutdown: u8,
}

impl UnixSocket {
    /// Reports whether it is connected, and nobody has its other end open. That end is closed, or it
    /// was not accepted yet: it is then in the queue of a listening socket, and has no inode.
    fn has_no_peer(&self) -> bool {
        self.peer == Some(0) && i32::from(self.class) != libc::SOCK_DGRAM
    }

    /// True if it waits to be accepted, by a listening socket that is not known: it has no peer, and it
    /// is not shut down in both directions, as the kernel does when the other end is closed.
    fn lacks_listener(&self) -> bool {
        self.has_no_peer() && self.shutdown != 3 && self.listener.is_none()
    }
}

/// The state of a packet socket that getsockopt(2) does not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PacketSocket {
    /// Its memberships, in the order in which they were joined: PACKET_ADD_MEMBERSHIP of packet(7).
    pub members: Vec<PacketMembership>,
    /// True if it has a ring to receive into, and true if it has one to send from.
    pub rings: (bool, bool),
    /// True if it shares its packets with others: PACKET_FANOUT.
    pub fans: bool,
}

/// A membership of a packet socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PacketMembership {
    /// The index of the device.
    pub device: u32,
    /// The times that it was joined.
    pub count: u32,
    /// PACKET_MR_MULTICAST 0, PROMISC 1, ALLMULTI 2 or UNICAST 3.
    pub class: u16,
    /// The address, at most 32 bytes.
    pub address: Vec<u8>,
}

/// A device of /dev/net/tun.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tunnel {
    /// True if it is IFF_TAP, false if it is IFF_TUN.
    pub tap: bool,
    /// True if a header stands before each packet: no IFF_NO_PI.
    pub pi: bool,
    /// IFF_MULTI_QUEUE.
    pub several: bool,
    /// True if a descriptor is attached to it, as far as the carrier tells: the kernel takes the
    /// carrier away with the last one.
    pub used: bool,
    /// The user that may attach.
    pub owner: Option<u32>,
    /// The group that may attach.
    pub group: Option<u32>,
}

/// The count of questions from which on all sockets are asked for at once.
const DUMP_FROM: usize = 64;

/// The time for which an answer for all sockets is used. A scan takes minutes at most, and each
/// process that asked again would be told of the sockets of all others.
const VALID_FOR: Duration = Duration::from_secs(1);

/// Asks the kernel about the sockets of a network namespace.
#[derive(Default)]
pub struct Diag(Mutex<State>);

#[derive(Default)]
struct State {
    socket: Option<Socket>,
    asked: usize,
    all: Recent<HashMap<u32, UnixSocket>>,
    packets: Recent<HashMap<u32, PacketSocket>>,
}

/// A value and the time at which it was read.
pub(crate) struct Recent<T>(Option<(Instant, T)>);

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Recent(None)
    }
}

impl<T> Recent<T> {
    fn new(now: T) -> Self {
        Recent(Some((Instant::now(), now)))
    }

    /// The value, unless it is too old.
    fn known(&self) -> Option<&T> {
        self.0.as_ref().filter(|(since, _)| since.elapsed() < VALID_FOR).map(|(_, known)| known)
    }

    /// The value, read again if it is too old.
    pub(crate) fn get_or_read(&mut self, read: impl FnOnce() -> T) -> &T {
        if self.known().is_none() {
            self.0 = None;
        }
        &self.0.get_or_insert_with(|| (Instant::now(), read())).1
    }
}

impl Diag {
    /// The unix socket with this inode number. `netns` is its network namespace, if that is not the
    /// one of this process.
    ///
    /// Fails if it waits to be accepted by a socket that the namespace does not have, if the kernel does
    /// not know it, or if the namespace may not be entered: [`sys::ns::netlink_socket`].
    pub fn unix(&self, inode: u32, netns: Option<BorrowedFd<'_>>) -> Result<UnixSocket> {
        // A connection may be accepted or closed between two answers.
        for _ in 0..4 {
            let found = self.unix_now(inode, netns)?;
            if !found.lacks_listener() {
                return Ok(found);
            }
        }
        let why = "it waits to be accepted by a listening socket of another network namespace";
        Err(Error::unrestorable(why))
    }

    fn unix_now(&self, inode: u32, netns: Option<BorrowedFd<'_>>) -> Result<UnixSocket> {
        let mut state = self.0.lock().map_err(|_| Error::new(Status::System, "sock_diag"))?;
        let known = state.all.known();
        let stale = known.is_none();
        let known = known.and_then(|all| all.get(&inode)).cloned();
        if let Some(known) = known.filter(|known| !known.lacks_listener()) {
            return Ok(known);
        }
        let State { socket, asked, all, .. } = &mut *state;
        let socket = match socket {
            Some(socket) => socket,
            None => socket.insert(open(NETLINK_SOCK_DIAG, netns).at(|| "sock_diag")?),
        };
        *asked += 1;
        // A socket that came after all were asked for is asked for alone.
        let whole = *asked >= DUMP_FROM && stale;
        let ask_for = |one: Option<u32>| {
            let mut found = HashMap::new();
            let take = &mut |message: &[u8]| found.extend(parse_unix(message));
            ask(socket, &unix_request(one), one.is_none(), take).at(|| "sock_diag")?;
            Ok::<_, Error>(found)
        };
        let unknown = || Error::unrestorable("sock_diag does not know it");
        if !whole {
            let found = ask_for(Some(inode))?.remove(&inode).ok_or_else(unknown)?;
            let is_closed = found.has_no_peer() && !found.lacks_listener() && !stale;
            if !found.has_no_peer() || is_closed {
                return Ok(found);
            }
        }
        // Only the listening socket tells which connections wait in its queue.
        let mut found = ask_for(None)?;
        let waiting = |(listener, socket): (&u32, &UnixSocket)| {
            let clients = socket.clients.iter().filter(|client| **client != 0);
            clients.map(|client| (*client, *listener)).collect::<Vec<_>>()
        };
        let waiting: Vec<(u32, u32)> = found.iter().flat_map(waiting).collect();
        for (client, listener) in waiting {
            if let Some(client) = found.get_mut(&client).filter(|client| client.has_no_peer()) {
                client.listener = Some(listener);
            }
        }
        let socket = found.get(&inode).cloned();
        *all = Recent::new(found);
        socket.ok_or_else(unknown)
    }

    /// The packet socket with this inode number. `netns` and failures as for [`Diag::unix`]. The
    /// kernel tells of all of them or of none.
    pub fn packet(&self, inode: u32, netns: Option<BorrowedFd<'_>>) -> Result<PacketSocket> {
        let mut state = self.0.lock().map_err(|_| Error::new(Status::System, "sock_diag"))?;
        if let Some(known) = state.packets.known().and_then(|all| all.get(&inode)) {
            return Ok(known.clone());
        }
        let socket = match &mut state.socket {
            Some(socket) => socket,
            none => none.insert(open(NETLINK_SOCK_DIAG, netns).at(|| "sock_diag")?),
        };
        let mut all = HashMap::new();
        ask(socket, &packet_request(), true, &mut |message| all.extend(parse_packet(message)))
            .at(|| "sock_diag")?;
        let found = all.get(&inode).cloned();
        state.packets = Recent::new(all);
        found.ok_or_else(|| Error::unrestorable("sock_diag does not know it"))
    }
}

/// The tunnel of this name. `netns` and failures as for [`Diag::unix`]; fails also if the name is that
/// of another device.
pub fn tunnel(name: &[u8], netns: Option<BorrowedFd<'_>>) -> Result<Tunnel> {
    let socket = open(NETLINK_ROUTE, netns).at(|| "rtnetlink")?;
    let mut found = None;
    ask(&socket, &link_request(name), false, &mut |message| found = parse_tunnel(message))
        .at(|| "rtnetlink")?;
    found.ok_or_else(|| Error::unrestorable("rtnetlink knows no such tunnel"))
}

/// Opens a netlink socket in a network namespace.
fn open(protocol: isize, netns: Option<BorrowedFd<'_>>) -> Result<Socket> {
    let mut socket = match netns {
        Some(netns) => {
            sys::ns::netlink_socket(netns, protocol).at(|| "its network namespace (setns)")?
        }
        None => Socket::new(protocol)?,
    };
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

const NEWLINK: u16 = libc::RTM_NEWLINK;
const GETLINK: u16 = libc::RTM_GETLINK;
/// SOCK_DIAG_BY_FAMILY and the attributes of linux/unix_diag.h.
const BY_FAMILY: u16 = 20;
const NAME: u16 = 0;
const VFS: u16 = 1;
const PEER: u16 = 2;
const ICONS: u16 = 3;
const RQLEN: u16 = 4;
const MEMINFO: u16 = 5;
const SHUTDOWN: u16 = 6;
/// The facts that are asked of unix sockets: linux/unix_diag.h.
const SHOW: u32 = UDIAG_SHOW_NAME
    | UDIAG_SHOW_VFS
    | UDIAG_SHOW_PEER
    | UDIAG_SHOW_ICONS
    | UDIAG_SHOW_RQLEN
    | UDIAG_SHOW_MEMINFO;
const UDIAG_SHOW_NAME: u32 = 0x01;
const UDIAG_SHOW_VFS: u32 = 0x02;
const UDIAG_SHOW_PEER: u32 = 0x04;
const UDIAG_SHOW_ICONS: u32 = 0x08;
const UDIAG_SHOW_RQLEN: u32 = 0x10;
const UDIAG_SHOW_MEMINFO: u32 = 0x20;
/// The facts that are asked of packet sockets: linux/packet_diag.h.
const PACKET_SHOW_MCLIST: u32 = 0x02;
const PACKET_SHOW_RING_CFG: u32 = 0x04;
const PACKET_SHOW_FANOUT: u32 = 0x08;

/// A request: `body` after its netlink header. `dump` asks for all objects.
fn request(kind: u16, body: &[u8], dump: bool) -> Vec<u8> {
    let mut bytes = vec![0; 16 + body.len()];
    let mut packet = NetlinkBuffer::new(&mut bytes);
    packet.set_length(16 + body.len() as u32);
    packet.set_message_type(kind);
    packet.set_flags(NLM_F_REQUEST | if dump { NLM_F_DUMP } else { 0 });
    packet.payload_mut().copy_from_slice(body);
    bytes
}

/// A request with a struct unix_diag_req (linux/unix_diag.h), for one socket or for all.
fn unix_request(inode: Option<u32>) -> Vec<u8> {
    let mut body = vec![libc::AF_UNIX as u8, 0, 0, 0];
    for word in [u32::MAX, inode.unwrap_or(0), SHOW, u32::MAX, u32::MAX] {
        body.extend(word.to_ne_bytes());
    }
    request(BY_FAMILY, &body, inode.is_none())
}

/// A request with a struct packet_diag_req (linux/packet_diag.h) for all packet sockets.
fn packet_request() -> Vec<u8> {
    let mut body = vec![libc::AF_PACKET as u8, 0, 0, 0];
    let show = PACKET_SHOW_MCLIST | PACKET_SHOW_RING_CFG | PACKET_SHOW_FANOUT;
    for word in [0, show, u32::MAX, u32::MAX] {
        body.extend(word.to_ne_bytes());
    }
    request(BY_FAMILY, &body, true)
}

/// A request with a struct ifinfomsg (linux/rtnetlink.h) for the device of this name: IFLA_IFNAME.
fn link_request(name: &[u8]) -> Vec<u8> {
    const IFNAME: u16 = libc::IFLA_IFNAME;
    let len = 4 + name.len() as u16 + 1;
    let mut body = vec![0; 16];
    body.extend([len.to_ne_bytes(), IFNAME.to_ne_bytes()].concat());
    body.extend(name);
    body.push(0);
    body.resize(body.len().next_multiple_of(4), 0);
    request(GETLINK, &body, false)
}

/// Sends a request and hands on the payload of each answer: of one, unless it is a `dump`.
fn ask(socket: &Socket, request: &[u8], dump: bool, take: &mut dyn FnMut(&[u8])) -> Result<()> {
    socket.send(request, 0)?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let len = socket.recv(&mut &mut buffer[..], 0)?;
        let mut rest = &buffer[..len];
        while let Ok(packet) = NetlinkBuffer::new_checked(rest) {
            let payload = packet.payload();
            match packet.message_type() {
                BY_FAMILY | NEWLINK => take(payload),
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let code = word(payload).unwrap_or(0) as i32;
                    return match Errno::from_raw(-code) {
                        // No such socket or device, or one of another family.
                        Errno::ENOENT | Errno::ENODEV => Ok(()),
                        errno => Err(errno.into()),
                    };
                }
                _ => (),
            }
            let len = (packet.length() as usize).next_multiple_of(4);
            rest = rest.get(len..).unwrap_or_default();
        }
        if !dump {
            return Ok(());
        }
    }
}

fn word(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|word| u32::from_ne_bytes(*word))
}

/// Parses a struct unix_diag_msg with its attributes: the inode number and the socket.
fn parse_unix(message: &[u8]) -> Option<(u32, UnixSocket)> {
    // TCP_LISTEN of include/net/tcp_states.h
    const LISTEN: u8 = 10;
    let (head, attributes) = message.split_at_checked(16)?;
    let mut socket =
        UnixSocket { class: head[1], listens: head[2] == LISTEN, ..Default::default() };
    for nla in NlasIterator::new(attributes).map_while(|nla| nla.ok()) {
        let value = nla.value();
        match nla.kind() {
            NAME => socket.name = Some(name(value)),
            VFS => socket.file = word(value),
            PEER => socket.peer = word(value),
            ICONS => socket.clients = value.chunks_exact(4).filter_map(word).collect(),
            RQLEN => socket.queue = (word(value)?, word(value.get(4..)?)?),
            // SK_MEMINFO_SNDBUF and SK_MEMINFO_RCVBUF of linux/sock_diag.h.
            MEMINFO => socket.buffers = (word(value.get(12..)?)?, word(value.get(4..)?)?),
            SHUTDOWN => socket.shutdown = *value.first()?,
            _ => (),
        }
    }
    Some((word(&head[4..])?, socket))
}

/// Parses a struct ifinfomsg with its attributes (linux/if_link.h). None if it is no tunnel.
fn parse_tunnel(message: &[u8]) -> Option<Tunnel> {
    const LINKINFO: u16 = libc::IFLA_LINKINFO;
    const CARRIER: u16 = libc::IFLA_CARRIER;
    /// Attributes within attributes have this bit.
    const NESTED: u16 = libc::NLA_F_NESTED as u16;
    let inside = |bytes| NlasIterator::new(bytes).map_while(|nla| nla.ok());
    let info = inside(message.get(16..)?).find(|nla| nla.kind() & !NESTED == LINKINFO)?;
    let value = |kind: u16| {
        let found = inside(info.value()).find(|nla| nla.kind() & !NESTED == kind)?;
        Some(found.value().to_vec())
    };
    if value(1)?.strip_suffix(b"\0") != Some(b"tun") {
        return None;
    }
    let carrier = inside(message.get(16..)?).find(|nla| nla.kind() == CARRIER);
    let used = carrier.is_some_and(|nla| nla.value() == [1]);
    let mut tunnel = Tunnel { used, ..Tunnel::default() };
    for nla in inside(&value(2)?) {
        let value = nla.value();
        let on = value.first().is_some_and(|&byte| byte != 0);
        match nla.kind() {
            1 => tunnel.owner = word(value),
            2 => tunnel.group = word(value),
            3 => tunnel.tap = value.first() == Some(&2),
            4 => tunnel.pi = on,
            7 => tunnel.several = on,
            _ => (),
        }
    }
    Some(tunnel)
}

/// Parses a struct packet_diag_msg with its attributes: the inode number and the socket.
fn parse_packet(message: &[u8]) -> Option<(u32, PacketSocket)> {
    const MCLIST: u16 = 1;
    const RX_RING: u16 = 2;
    const TX_RING: u16 = 3;
    const FANOUT: u16 = 4;
    /// The size of struct packet_diag_mclist.
    const ENTRY: usize = 44;
    let (head, attributes) = message.split_at_checked(16)?;
    let mut socket = PacketSocket::default();
    let half = |bytes: &[u8]| bytes.first_chunk().map(|half| u16::from_ne_bytes(*half));
    for nla in NlasIterator::new(attributes).map_while(|nla| nla.ok()) {
        let value = nla.value();
        match nla.kind() {
            MCLIST => {
                for entry in value.chunks_exact(ENTRY) {
                    let len = usize::from(half(&entry[10..])?);
                    socket.members.push(PacketMembership {
                        device: word(entry)?,
                        count: word(&entry[4..])?,
                        class: half(&entry[8..])?,
                        address: entry.get(12..12 + len)?.to_vec(),
                    });
                }
            }
            RX_RING => socket.rings.0 = true,
            TX_RING => socket.rings.1 = true,
            FANOUT => socket.fans = true,
            _ => (),
        }
    }
    // The kernel tells the last one first.
    socket.members.reverse();
    Some((word(&head[4..])?, socket))
}

/// The name in a unix address. A path ends with a NUL that is not part of it; an abstract name begins
/// with one.
fn name(address: &[u8]) -> Vec<u8> {
    match address.first() {
        Some(0) | None => address.to_vec(),
        _ => address.strip_suffix(&[0]).unwrap_or(address).to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::fstat;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    fn inode(socket: impl AsFd) -> u32 {
        fstat(socket.as_fd()).unwrap().st_ino as u32
    }

    #[test]
    fn a_pair_is_known_by_its_peers_and_queue_one_by_one_and_all_at_once() {
        let diag = Diag::default();
        for _ in 0..2 * DUMP_FROM {
            let (mut a, b) = UnixStream::pair().unwrap();
            a.write_all(b"hello").unwrap();
            let of = |socket: &UnixStream| diag.unix(inode(socket), None).unwrap();
            assert_eq!((of(&a).peer, of(&b).peer), (Some(inode(&b)), Some(inode(&a))));
            assert_eq!((of(&b).queue.0, of(&b).class), (5, libc::SOCK_STREAM as u8));
        }
    }

    #[test]
    fn a_listener_is_known_by_its_name_backlog_and_pending_connections() {
        let dir = std::env::temp_dir().join(format!("fdkit-diag-{}", std::process::id()));
        let listener = UnixListener::bind(&dir).unwrap();
        let client = UnixStream::connect(&dir).unwrap();
        let found = Diag::default().unix(inode(&listener), None).unwrap();
        std::fs::remove_file(&dir).unwrap();
        assert!(found.listens && found.clients == [inode(&client)]);
        let diag = Diag::default();
        let of_client = || diag.unix(inode(&client), None).unwrap();
        assert_eq!((of_client().peer, of_client().listener), (Some(0), Some(inode(&listener))));
        let (accepted, _) = listener.accept().unwrap();
        // What is known of all sockets may be a second old.
        std::thread::sleep(VALID_FOR);
        assert_eq!((of_client().peer, of_client().listener), (Some(inode(&accepted)), None));
        drop(accepted);
        std::thread::sleep(VALID_FOR);
        assert_eq!((of_client().peer, of_client().listener), (Some(0), None));
        assert_eq!(found.name.as_deref(), Some(dir.as_os_str().as_encoded_bytes()));
        drop(client);
    }

    proptest::proptest! {
        #[test]
        fn no_answer_makes_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..80)) {
            let _ = (parse_unix(&bytes), parse_packet(&bytes), parse_tunnel(&bytes));
        }
    }

    #[test]
    fn what_was_read_is_read_again_after_a_while() {
        let mut recent = Recent::new(1);
        let begun = Instant::now();
        assert!(*recent.get_or_read(|| 2) == 1 || begun.elapsed() >= VALID_FOR);
        recent.0 = Some((begun - VALID_FOR, 1));
        assert!(recent.known().is_none() && *recent.get_or_read(|| 3) == 3);
    }

    #[test]
    fn what_is_no_unix_socket_is_not_found() {
        assert!(Diag::default().unix(1, None).is_err());
    }
}
