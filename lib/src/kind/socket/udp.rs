//! udp(7) and udplite(7). Unread messages are captured with MSG_PEEK and SO_PEEK_OFF, and sent
//! again from the addresses of their senders.

use crate::error::{At, Error, Result};
use crate::image::{Bytes, Chunk, MAX_CHUNK, MessageMeta, OpenFile};
use crate::kind::context::{Held, Opened, RestoreContext};
use crate::kind::effect::{Allow, Effect};
use crate::kind::socket::inet::{self, Address, Inet};
use crate::kind::socket::option::Phase;
use crate::kind::socket::{
    NONBLOCK, check_queue_limit, check_stop, events_without_error, shut_down,
};
use crate::kind::{ContentsContext, Kind, Piece, Sink};
use crate::operation::Outcome;
use crate::proc::Descriptor;
use crate::sys::peek_guard::PeekOffset;
use crate::sys::socket;
use crate::text::escape;
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::libc;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;

const UDPLITE: i32 = libc::IPPROTO_UDPLITE;

/// A UDP or UDP-Lite socket.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Udp {
    /// Its addresses and options.
    socket: Inet,
    /// The length of the first unread message, in bytes: SIOCINQ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    queued: Option<u32>,
    /// Bytes that are not sent yet (UDP_CORK, MSG_MORE): SIOCOUTQ. They are not kept.
    unsent: u32,
    /// Shut down by shutdown(2): receiving 1, both directions 3. Sending alone cannot be read.
    shutdown: u8,
}

impl Kind for Udp {
    const NAME: &'static str = "udp";
    const SHARES_OBJECT: bool = true;

    fn claims(descriptor: &Descriptor<'_>) -> bool {
        matches!(inet::class(descriptor), Some((_, libc::SOCK_DGRAM, libc::IPPROTO_UDP | UDPLITE)))
    }

    fn capture(descriptor: &Descriptor<'_>) -> Result<Self> {
        let socket = Inet::capture(descriptor)?;
        let fd = descriptor.require_copy()?;
        let (queued, shutdown) = inet::queue_state(fd)?;
        let unsent = socket::unsent(fd).at(|| "SIOCOUTQ")? as u32;
        Ok(Udp { socket, queued, unsent, shutdown })
    }

    fn contents(
        copy: BorrowedFd<'_>,
        cx: &ContentsContext<'_>,
        limit: u64,
        to: Sink<'_>,
    ) -> Result<()> {
        if events_without_error(copy)? & libc::POLLIN == 0 {
            return Ok(());
        }
        if socket::option(copy, libc::SOL_SOCKET, libc::SO_PEEK_OFF)? >= 0 {
            // The program uses SO_PEEK_OFF itself. While it runs, it would peek at another message.
            cx.require_frozen()?;
        }
        for (from, bytes) in &peek_queue(copy, limit, Some(cx))? {
            let from = from.as_ref().map(|from| Bytes(from.to_string().into_bytes()));
            let with = Some(MessageMeta { from, ..MessageMeta::default() });
            to(Piece { bytes, with, ..Piece::default() })?;
        }
        Ok(())
    }

    fn describe(&self, _: &OpenFile) -> Option<String> {
        let Udp { socket, queued, unsent, shutdown: _ } = self;
        let name = if socket.protocol() == UDPLITE { "udplite" } else { Self::NAME };
        let mut text = format!("{name} {}", socket.endpoints());
        if let Some(bytes) = queued {
            text += &format!(" queued={bytes}");
        }
        if *unsent > 0 {
            text += &format!(" unsent={unsent}");
        }
        Some(text + &socket.netns_text())
    }

    fn validate(&self, _: &OpenFile) -> Result<()> {
        if !matches!(self.socket.protocol(), libc::IPPROTO_UDP | UDPLITE) {
            let protocol = self.socket.protocol();
            let why = format!("protocol {protocol} is not IPPROTO_UDP or IPPROTO_UDPLITE");
            return Err(Error::malformed(why));
        }
        self.socket.validate()
    }

    fn effects(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<Vec<Effect>> {
        let mut effects = self.socket.effects();
        // The queue is filled by sending the messages to the address of the socket.
        if let Some(to) = self.socket.local()?.filter(|_| cx.has_contents(file.object)) {
            if !is_of_this_machine(&to)? {
                let what = format!("sends messages to {to}, which is no address of this machine");
                effects.push(Effect::needing(Allow::Network, what));
            }
        }
        Ok(effects)
    }

    fn check(&self, _: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        self.socket.check(libc::SOCK_DGRAM, cx)
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        self.check(file, cx)?;
        let Udp { socket, queued, unsent, shutdown: _ } = self;
        let made = socket.make_bound(libc::SOCK_DGRAM, file, cx)?;
        socket.connect(made.as_fd())?;
        let shown = escape(&file.link.0);
        if *unsent > 0 {
            cx.warnings.push(format!("{shown}: {unsent} unsent bytes are lost"));
        }
        if queued.is_some() && !cx.has_contents(file.object) {
            let why = "are not in the image (scan with --data): its queue is restored empty";
            cx.warnings.push(format!("{shown}: its unread messages {why}"));
        }
        Ok(Opened::new(made, file.flags & NONBLOCK))
    }

    fn finish_text(&self) -> Option<&'static str> {
        Some("fill the queue, shut it down, set the remaining options")
    }

    /// Fills the queue, once the sockets of the senders are restored too.
    fn finish(
        &self,
        file: &OpenFile,
        _: RawFd,
        fd: BorrowedFd<'_>,
        _: &Outcome,
        cx: &mut RestoreContext<'_>,
    ) -> Result<()> {
        if cx.has_contents(file.object) {
            self.fill(file, fd, cx)?;
        }
        shut_down(fd, self.shutdown)?;
        self.socket.set_options(Phase::Last, fd, file, cx)
    }

    fn substitute(&self, _: &OpenFile) -> Result<OwnedFd> {
        inet::null_socket(&self.socket, libc::SOCK_DGRAM, libc::IPPROTO_UDP)
    }
}

/// A message: the address of its sender, and its bytes.
type Datagram = (Option<Address>, Vec<u8>);

/// Peeks at the next message; none if there is none. Fails with status 6 if an error is pending.
fn peek_message(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Option<Datagram>> {
    events_without_error(fd)?;
    match socket::peek(fd, buffer) {
        // Shut down for receiving: each call returns 0 bytes and no address.
        Ok((0, from)) if from.is_empty() => Ok(None),
        Ok((len, from)) => {
            let bytes = buffer.get(..len).ok_or(Errno::EMSGSIZE)?.to_vec();
            Ok(Some((Address::decode(fd, &from), bytes)))
        }
        Err(Errno::EAGAIN) => Ok(None),
        Err(errno) => Err(errno).at(|| "peek"),
    }
}

/// Reads the messages of a queue without consuming them. `scan` is absent if no other process has the
/// socket, so that no guard process needs to restore SO_PEEK_OFF. Fails with status 6 if they have
/// more than `limit` bytes, or are too many for a stop.
///
/// With SO_PEEK_OFF, empty messages that were peeked at before are skipped (Linux 4.13). So the
/// first message is peeked at without it; later ones cannot be.
fn peek_queue(
    fd: BorrowedFd<'_>,
    limit: u64,
    scan: Option<&ContentsContext<'_>>,
) -> Result<Vec<Datagram>> {
    let mut buffer = vec![0; MAX_CHUNK];
    let mut all = Vec::new();
    if socket::option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF)? < 0 {
        match peek_message(fd, &mut buffer)? {
            None => return Ok(all),
            Some(first) if first.1.is_empty() => all.push(first),
            Some(_) => (),
        }
    }
    let set = |at| socket::set_option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, at);
    let offset = match scan {
        None => set(0).map(|()| None),
        Some(_) => PeekOffset::take(fd).map(Some),
    };
    let offset = offset.at(|| "SO_PEEK_OFF")?;
    let mut total = 0;
    while let Some(message) = peek_message(fd, &mut buffer)? {
        total += message.1.len() as u64;
        check_queue_limit(total, limit)?;
        all.push(message);
        scan.map_or(Ok(()), |cx| check_stop(all.len(), cx))?;
    }
    drop(offset);
    if scan.is_none() {
        set(-1).at(|| "SO_PEEK_OFF")?;
    }
    Ok(all)
}

impl Udp {
    /// Sends the recorded messages to the socket, and warns of those that did not arrive, or
    /// arrived from another address.
    fn fill(&self, file: &OpenFile, fd: BorrowedFd<'_>, cx: &mut RestoreContext<'_>) -> Result<()> {
        let mut messages: Vec<Datagram> = Vec::new();
        cx.contents(file.object, |chunk: &Chunk, bytes| {
            let from = chunk.with.as_ref().and_then(|with| with.from.as_ref());
            let from = from.and_then(|from| std::str::from_utf8(&from.0).ok());
            messages.push((from.and_then(Address::parse), bytes.to_vec()));
            Ok(())
        })?;
        let mut resender = Resender {
            inet: &self.socket,
            raw_sockets: HashMap::new(),
            senders: HashMap::new(),
            reconnected: false,
        };
        for (from, bytes) in &messages {
            resender.send(fd, from.as_ref(), bytes, cx);
        }
        if resender.reconnected {
            self.socket.reconnect(fd, file, cx)?;
        }
        let received = peek_queue(fd, u64::MAX, None)?;
        let (lost, other_sender) = count_differences(&messages, &received);
        for (count, what) in [(lost, "are lost"), (other_sender, "lose their sender addresses")] {
            if count > 0 {
                let name = escape(&file.link.0);
                let line = format!("{name}: {count} of {} queued messages", messages.len());
                cx.warnings.push(format!("{line} {what}"));
            }
        }
        Ok(())
    }
}

/// Counts the messages that did not arrive, and those that arrived from another address. Messages
/// of other senders may be between them.
fn count_differences(sent: &[Datagram], received: &[Datagram]) -> (usize, usize) {
    let mut rest = received.iter();
    let (mut lost, mut other_sender) = (0, 0);
    for (from, bytes) in sent {
        let before = rest.clone();
        match rest.find(|(_, other)| other == bytes) {
            Some((other, _)) => other_sender += usize::from(other != from),
            None => {
                lost += 1;
                rest = before;
            }
        }
    }
    (lost, other_sender)
}

/// Sends messages from the addresses of their recorded senders: through a raw socket (CAP_NET_RAW),
/// a temporary socket bound to the address, or the restored socket that is bound to it.
struct Resender<'a> {
    /// The record of the receiving socket.
    inet: &'a Inet,
    /// A raw socket for IPv6 (true) and IPv4 (false), made at first use; none if that failed.
    raw_sockets: HashMap<bool, Option<OwnedFd>>,
    /// Temporary sockets by the address that they are bound to, made at first use; none if that
    /// failed. The key of the unbound one is none.
    senders: HashMap<Option<Address>, Option<OwnedFd>>,
    /// The receiving socket was connected to a sender, so that no other socket bound to its address
    /// receives the message.
    reconnected: bool,
}

/// The restored socket of this protocol that is bound to this address, if it is open already.
fn restored_sender(
    cx: &mut RestoreContext<'_>,
    protocol: i32,
    address: &Address,
) -> Option<Rc<Held>> {
    let (restored, image) = (cx.lowest, cx.image);
    let name = |protocol: i32, address: &str| format!("{protocol} {address}").into_bytes();
    let all = cx.addresses.entry(Udp::NAME).or_insert_with(|| {
        let address = |(file, record): (&OpenFile, &Udp)| {
            let local = record.socket.local().ok().flatten()?;
            Some((name(record.socket.protocol(), &local.to_string()), file.id))
        };
        let restored = image.of_kind().filter(|(file, _)| restored.contains_key(&file.id));
        Rc::new(restored.filter_map(address).collect())
    });
    let id = all.get(&name(protocol, &address.to_string()))?;
    cx.held.get(id).cloned()
}

impl Resender<'_> {
    /// Sends a message to a socket. Failures are not reported: the caller counts what arrives.
    fn send(
        &mut self,
        to: BorrowedFd<'_>,
        from: Option<&Address>,
        bytes: &[u8],
        cx: &mut RestoreContext<'_>,
    ) {
        if let Some(from) = from.filter(|_| self.inet.allows_address_reuse()) {
            let connected = from.encode(to).and_then(|from| socket::connect(to, &from));
            self.reconnected |= connected.is_ok();
        }
        let name = socket::name(to).ok().and_then(|name| Address::decode(to, &name));
        let Some(name) = name else { return };
        let to = destination(&name, from);
        if let Some(from) = from {
            if self.send_raw(from, &to, bytes) || self.send_bound(from, &to, bytes, cx) {
                return;
            }
        }
        let _ = self.send_unbound(&to, bytes);
    }

    /// Sends through a raw socket, with the sender's address in the header. Reports success.
    fn send_raw(&mut self, from: &Address, to: &Address, bytes: &[u8]) -> bool {
        let (from, to) = (from.unmapped(), to.unmapped());
        let Some(packet) = ip_packet(self.inet.protocol(), &from, &to, bytes) else { return false };
        let v6 = to.ip.is_ipv6();
        let raw = self.raw_sockets.entry(v6).or_insert_with(|| {
            let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
            let socket_type = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
            let made = socket::new(family, socket_type, libc::IPPROTO_RAW).ok()?;
            self.inet.bind_to_same_device(made.as_fd());
            Some(made)
        });
        let Some(raw) = raw else { return false };
        let mut host = to;
        host.port = 0;
        let host = host.encode(raw.as_fd());
        host.is_ok_and(|to| socket::send_to(raw.as_fd(), &packet, &to).is_ok())
    }

    /// Sends from a socket that is bound to the sender's address: a temporary one, or the restored
    /// one that has the address. Reports success.
    fn send_bound(
        &mut self,
        from: &Address,
        to: &Address,
        bytes: &[u8],
        cx: &mut RestoreContext<'_>,
    ) -> bool {
        let temporary = self.senders.entry(Some(from.clone())).or_insert_with(|| {
            let made = self.inet.new_sender(from.ip.is_ipv6())?;
            let set = |name| socket::set_option(made.as_fd(), libc::SOL_SOCKET, name, 1);
            set(libc::SO_REUSEADDR).ok()?;
            socket::bind(made.as_fd(), &from.encode(made.as_fd()).ok()?).ok()?;
            Some(made)
        });
        let restored = match temporary {
            Some(_) => None,
            None => restored_sender(cx, self.inet.protocol(), from),
        };
        let fd = temporary.as_ref().map(AsFd::as_fd).or(restored.as_ref().map(AsFd::as_fd));
        let Some(fd) = fd else { return false };
        to.encode(fd).is_ok_and(|to| socket::send_to(fd, bytes, &to).is_ok())
    }

    /// Sends from an unbound socket, whose address the kernel chooses.
    fn send_unbound(&mut self, to: &Address, bytes: &[u8]) -> Option<()> {
        let v6 = to.ip.is_ipv6();
        let unbound = self.senders.entry(None).or_insert_with(|| self.inet.new_sender(v6));
        let unbound = unbound.as_ref()?.as_fd();
        socket::send_to(unbound, bytes, &to.encode(unbound).ok()?).ok().map(drop)
    }
}

/// Reports whether messages to this address stay on this machine: it is INADDR_ANY or in6addr_any, a
/// loopback address, or one of a device in the network namespace of this process.
fn is_of_this_machine(address: &Address) -> Result<bool> {
    let ip = address.unmapped().ip;
    if ip.is_unspecified() || ip.is_loopback() {
        return Ok(true);
    }
    let mut all = getifaddrs().at(|| "getifaddrs")?;
    Ok(all.any(|device| {
        let Some(own) = device.address else { return false };
        let v4 = own.as_sockaddr_in().map(|own| IpAddr::V4(own.ip()));
        v4.or_else(|| own.as_sockaddr_in6().map(|own| IpAddr::V6(own.ip()))) == Some(ip)
    }))
}

/// The address by which a sender reaches a socket with this local address: for INADDR_ANY and
/// in6addr_any, the loopback address of the sender's family.
fn destination(name: &Address, from: Option<&Address>) -> Address {
    let mut to = name.clone();
    if name.ip.is_unspecified() {
        let v4 = from.map_or(name.ip, |from| from.unmapped().ip).is_ipv4();
        to.ip = match (v4, name.ip) {
            (true, IpAddr::V4(_)) => Ipv4Addr::LOCALHOST.into(),
            (true, IpAddr::V6(_)) => Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(),
            (false, _) => Ipv6Addr::LOCALHOST.into(),
        };
    }
    to
}

/// Encodes an IP packet (RFC 791, RFC 8200) with a UDP or UDP-Lite datagram (RFC 768, RFC 3828).
/// None if the addresses are of two families, or the packet would be too long.
fn ip_packet(protocol: i32, from: &Address, to: &Address, bytes: &[u8]) -> Option<Vec<u8>> {
    let lite = protocol == UDPLITE;
    let protocol = protocol as u8;
    let len = u16::try_from(bytes.len() + 8).ok()?;
    // UDP-Lite has the checksum coverage in place of the length: zero is the whole datagram.
    let length_field = if lite { 0 } else { len };
    let ports =
        [from.port.to_be_bytes(), to.port.to_be_bytes(), length_field.to_be_bytes()].concat();
    let (head, addresses) = match (from.ip, to.ip) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let addresses = [from.octets(), to.octets()].concat();
            let whole = len.checked_add(20)?.to_be_bytes();
            // Version 4 and a header of 5 words, no fragments, TTL 64. The kernel fills in the id
            // and the checksum (raw(7)).
            let head = [0x45, 0, whole[0], whole[1], 0, 0, 0, 0, 64, protocol, 0, 0];
            ([&head[..], &addresses].concat(), addresses)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let addresses = [from.octets(), to.octets()].concat();
            let len = len.to_be_bytes();
            let head = [0x60, 0, 0, 0, len[0], len[1], protocol, 64];
            ([&head[..], &addresses].concat(), addresses)
        }
        _ => return None,
    };
    let pseudo = [&addresses[..], &[0, protocol], &len.to_be_bytes(), &ports, &[0, 0], bytes];
    let sum = checksum(&pseudo.concat());
    Some([&head[..], &ports, &sum.to_be_bytes(), bytes].concat())
}

/// The Internet checksum of RFC 1071. Zero, which in UDP means no checksum, becomes 0xffff (RFC
/// 768).
fn checksum(bytes: &[u8]) -> u16 {
    let pair = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let sum: u32 = bytes.chunks(2).map(pair).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    match !((sum & 0xffff) + (sum >> 16)) as u16 {
        0 => 0xffff,
        sum => sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::tests::{body_of, contents_of, describe_of};
    use nix::sys::socket::Shutdown;
    use std::net::UdpSocket;

    fn captured(socket: &UdpSocket) -> Vec<Datagram> {
        let mut captured = Vec::new();
        let take = |piece: Piece<'_>| {
            let from = piece.with.unwrap().from.unwrap();
            captured.push((
                Address::parse(std::str::from_utf8(&from.0).unwrap()),
                piece.bytes.to_vec(),
            ));
        };
        contents_of::<Udp>(socket, 1 << 20, take).unwrap();
        captured
    }

    #[test]
    fn messages_are_captured_with_their_senders_and_stay_queued() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let (a, b) = (UdpSocket::bind(host).unwrap(), UdpSocket::bind(host).unwrap());
            let from = Address::parse(&b.local_addr().unwrap().to_string());
            let sent: Vec<Datagram> = [&b""[..], b"", b"one", b"", b"three"]
                .map(|bytes| (from.clone(), bytes.to_vec()))
                .into();
            for (_, bytes) in &sent {
                b.send_to(bytes, a.local_addr().unwrap()).unwrap();
            }
            assert_eq!(captured(&a), sent);
            let offset = socket::option(a.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF);
            assert_eq!(offset, Ok(-1));
            for (_, bytes) in &sent {
                assert_eq!(a.recv(&mut [0; 8]).unwrap(), bytes.len());
            }
        }
    }

    #[test]
    fn a_pending_error_is_not_cleared() {
        let (a, b) =
            (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        a.connect(b.local_addr().unwrap()).unwrap();
        drop(b);
        a.send(b"refused").unwrap();
        let captured = contents_of::<Udp>(&a, 1, |_| ());
        assert!(captured.unwrap_err().to_string().contains("an error is pending"));
        assert_eq!(a.recv(&mut [0]).unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
    }

    #[test]
    fn the_queue_and_the_shutdown_are_captured() {
        let (a, b) = (UdpSocket::bind("[::1]:0").unwrap(), UdpSocket::bind("[::1]:0").unwrap());
        b.send_to(b"hello", a.local_addr().unwrap()).unwrap();
        let udp: Udp = body_of(&a);
        assert_eq!((udp.queued, udp.shutdown), (Some(5), 0));
        let description = format!("udp {} queued=5", a.local_addr().unwrap());
        assert_eq!(describe_of(&a), description);
        crate::kind::socket::shutdown_even_unconnected(b.as_fd(), Shutdown::Read).unwrap();
        let udp: Udp = body_of(&b);
        assert_eq!((udp.queued, udp.shutdown), (None, 1));
    }

    #[test]
    fn a_packet_has_the_headers_of_the_rfcs() {
        let at = |text| Address::parse(text).unwrap();
        let made = ip_packet(17, &at("192.0.2.1:53"), &at("127.0.0.1:4096"), b"abc").unwrap();
        let head = [0x45, 0, 0, 31, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 127, 0, 0, 1];
        assert_eq!(made[..20], head);
        assert_eq!(made[20..26], [0, 53, 16, 0, 0, 11]);
        // The sum over a datagram with its checksum is all ones, and the complement zero.
        let whole = [&made[12..20], &[0, 17, 0, 11], &made[20..]].concat();
        assert_eq!(checksum(&whole), 0xffff);
        let long = vec![0; 65508];
        assert!(ip_packet(17, &at("192.0.2.1:53"), &at("127.0.0.1:1"), &long).is_none());
        assert!(ip_packet(17, &at("[::1]:53"), &at("127.0.0.1:1"), b"").is_none());
        assert_eq!(ip_packet(136, &at("[::1]:53"), &at("[::1]:1"), b"").unwrap()[44..46], [0, 0]);
    }

    #[test]
    fn messages_that_are_lost_or_have_another_sender_are_counted() {
        let from = |port: u16| Address::parse(&format!("127.0.0.1:{port}"));
        let message = |port, text: &str| (from(port), text.as_bytes().to_vec());
        let sent = [message(1, "a"), message(2, "b"), message(3, "c")];
        assert_eq!(count_differences(&sent, &sent), (0, 0));
        assert_eq!(
            count_differences(&sent, &[message(9, "new"), message(1, "a"), message(7, "c")]),
            (1, 1)
        );
        assert_eq!(count_differences(&sent, &[]), (3, 0));
    }
}
