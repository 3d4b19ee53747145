//! udp(7) and udplite(7). What waits in a queue is looked at with SO_PEEK_OFF, and sent again in
//! the name of its senders.

use crate::error::{At, Error, Result};
use crate::image::{Bytes, Chunk, MAX_CHUNK, MessageMeta, OpenFile};
use crate::kind::context::{Held, Opened, RestoreContext};
use crate::kind::socket::inet::{self, Address, Inet, NONBLOCK};
use crate::kind::socket::option::Phase;
use crate::kind::{ContentsContext, Kind, Piece, Sink};
use crate::operation::Outcome;
use crate::proc::Descriptor;
use crate::sys::peek_guard::PeekOffset;
use crate::sys::socket;
use crate::text::escape;
use nix::errno::Errno;
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
    /// Addresses and options.
    socket: Inet,
    /// The bytes of the first message that waits to be read, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    queued: Option<u32>,
    /// Bytes that wait to be sent: UDP_CORK, MSG_MORE. They are lost.
    unsent: u32,
    /// What is shut down: receiving 1, both 3. Sending alone is shown nowhere.
    shutdown: u8,
}

impl Kind for Udp {
    const NAME: &'static str = "udp";
    const SHARES_OBJECT: bool = true;

    fn claims(it: &Descriptor<'_>) -> bool {
        matches!(inet::class(it), Some((_, libc::SOCK_DGRAM, libc::IPPROTO_UDP | UDPLITE)))
    }

    fn capture(it: &Descriptor<'_>) -> Result<Self> {
        let socket = Inet::capture(it)?;
        let fd = it.copy.as_ref().ok_or(Errno::EBADF)?.as_fd();
        let (queued, shutdown) = inet::waiting(fd)?;
        let unsent = socket::unsent(fd).at(|| "SIOCOUTQ")? as u32;
        Ok(Udp { socket, queued, unsent, shutdown })
    }

    fn contents(
        copy: BorrowedFd<'_>,
        cx: &ContentsContext<'_>,
        limit: u64,
        to: Sink<'_>,
    ) -> Result<()> {
        let ready = socket::ready(copy).at(|| "poll")?;
        if ready & libc::POLLERR != 0 {
            // Whoever reads next is told of it, and nobody else.
            return Err(Error::unrestorable("an error waits in it, which a look would take away"));
        }
        if ready & libc::POLLIN == 0 {
            return Ok(());
        }
        if socket::option(copy, libc::SOL_SOCKET, libc::SO_PEEK_OFF)? >= 0 {
            // A program that has set it itself would look at another message.
            cx.require_frozen()?;
        }
        for (from, bytes) in &queue(copy, limit, false)? {
            let from = from.as_ref().map(|from| Bytes(from.to_string().into_bytes()));
            let with = Some(MessageMeta { from, ..MessageMeta::default() });
            to(Piece { bytes, with, ..Piece::default() })?;
        }
        Ok(())
    }

    fn describe(&self, _: &OpenFile) -> Option<String> {
        let Udp { socket, queued, unsent, shutdown: _ } = self;
        let name = if socket.protocol() == UDPLITE { "udplite" } else { Self::NAME };
        let mut text = format!("{name} {}", socket.ends());
        if let Some(bytes) = queued {
            text += &format!(" queued={bytes}");
        }
        if *unsent > 0 {
            text += &format!(" unsent={unsent}");
        }
        Some(text)
    }

    fn validate(&self, _: &OpenFile) -> Result<()> {
        if !matches!(self.socket.protocol(), libc::IPPROTO_UDP | UDPLITE) {
            let protocol = self.socket.protocol();
            return Err(Error::malformed(format!("{protocol} is no protocol of UDP")));
        }
        self.socket.validate()
    }

    fn check(&self, _: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        self.socket.check(libc::SOCK_DGRAM, cx)
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        self.check(file, cx)?;
        let Udp { socket, queued, unsent, shutdown: _ } = self;
        let made = socket.make(libc::SOCK_DGRAM, file, cx)?;
        socket.connect(made.as_fd())?;
        let shown = escape(&file.link.0);
        if *unsent > 0 {
            let why = "bytes that waited to be sent are lost";
            cx.warnings.push(format!("{shown}: {unsent} {why}"));
        }
        if queued.is_some() && !cx.has_contents(file.object) {
            let why = "are not in the image (scan with --data): it is restored empty";
            cx.warnings.push(format!("{shown}: the messages in its queue {why}"));
        }
        Ok(Opened::new(made, file.flags & NONBLOCK))
    }

    fn finish_text(&self) -> Option<&'static str> {
        Some("fill the queue, set what is left of its options")
    }

    /// Senders are restored too by now, perhaps.
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
        self.socket.shut(fd, self.shutdown)?;
        self.socket.set(Phase::Last, fd, file, cx)
    }

    fn substitute(&self, _: &OpenFile) -> Result<OwnedFd> {
        inet::null(&self.socket, libc::SOCK_DGRAM, libc::IPPROTO_UDP)
    }
}

/// A message and who has sent it.
type Datagram = (Option<Address>, Vec<u8>);

/// The message that is looked at next, if there is one.
fn look(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Option<Datagram>> {
    match socket::peek(fd, buffer) {
        // A socket that is shut down for receiving goes on for ever.
        Ok((0, from)) if from.is_empty() => Ok(None),
        Ok((len, from)) => {
            let bytes = buffer.get(..len).ok_or(Errno::EMSGSIZE)?.to_vec();
            Ok(Some((Address::of(fd, &from), bytes)))
        }
        Err(Errno::EAGAIN) => Ok(None),
        Err(errno) => Err(errno).at(|| "peek"),
    }
}

/// What waits in a queue. `ours` says that nobody else has the socket.
///
/// SO_PEEK_OFF passes over empty messages that somebody has looked at before (Linux 4.13), which
/// only the first of a queue can be spared: it is looked at without.
fn queue(fd: BorrowedFd<'_>, limit: u64, ours: bool) -> Result<Vec<Datagram>> {
    let mut buffer = vec![0; MAX_CHUNK];
    let mut all = Vec::new();
    if socket::option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF)? < 0 {
        match look(fd, &mut buffer)? {
            None => return Ok(all),
            Some(first) if first.1.is_empty() => all.push(first),
            Some(_) => (),
        }
    }
    let set = |at| socket::set_option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, at);
    let lent = match ours {
        true => set(0).map(|()| None),
        false => PeekOffset::take(fd).map(Some),
    };
    let lent = lent.at(|| "SO_PEEK_OFF")?;
    let mut total = 0;
    while let Some(message) = look(fd, &mut buffer)? {
        total += message.1.len() as u64;
        if total > limit {
            return Err(Error::unrestorable(format!("its queue is more than the limit {limit}")));
        }
        all.push(message);
    }
    drop(lent);
    if ours {
        set(-1).at(|| "SO_PEEK_OFF")?;
    }
    Ok(all)
}

impl Udp {
    /// Sends what waited in its queue to it once more, and looks what came of it.
    fn fill(&self, file: &OpenFile, fd: BorrowedFd<'_>, cx: &mut RestoreContext<'_>) -> Result<()> {
        let mut messages: Vec<Datagram> = Vec::new();
        cx.contents(file.object, |chunk: &Chunk, bytes| {
            let from = chunk.with.as_ref().and_then(|with| with.from.as_ref());
            let from = from.and_then(|from| std::str::from_utf8(&from.0).ok());
            messages.push((from.and_then(Address::parse), bytes.to_vec()));
            Ok(())
        })?;
        let mut post = Post {
            inet: &self.socket,
            forgers: HashMap::new(),
            bound: HashMap::new(),
            moved: false,
        };
        for (from, bytes) in &messages {
            post.send(fd, from.as_ref(), bytes, cx);
        }
        if post.moved {
            self.socket.reconnect(fd, file, cx)?;
        }
        let there = queue(fd, u64::MAX, true)?;
        let (lost, nameless) = compared(&messages, &there);
        for (count, what) in [(lost, "are lost"), (nameless, "lose their senders")] {
            if count > 0 {
                let name = escape(&file.link.0);
                let line = format!("{name}: {count} of {} messages in its queue", messages.len());
                cx.warnings.push(format!("{line} {what}"));
            }
        }
        Ok(())
    }
}

/// How many of the messages did not come, and how many came from somebody else. What comes from
/// others meanwhile may stand between them.
fn compared(sent: &[Datagram], there: &[Datagram]) -> (usize, usize) {
    let mut rest = there.iter();
    let (mut lost, mut nameless) = (0, 0);
    for (from, bytes) in sent {
        let before = rest.clone();
        match rest.find(|(_, other)| other == bytes) {
            Some((other, _)) => nameless += usize::from(other != from),
            None => {
                lost += 1;
                rest = before;
            }
        }
    }
    (lost, nameless)
}

/// Sends messages in the name of others: by forging them (CAP_NET_RAW), from a socket that is
/// bound to the address for the moment, or from the restored one that has it.
struct Post<'a> {
    inet: &'a Inet,
    /// SOCK_RAW sockets of both families, once they were asked for.
    forgers: HashMap<bool, Option<OwnedFd>>,
    /// Who is bound to an address.
    bound: HashMap<Option<Address>, Option<OwnedFd>>,
    /// Whether it was connected to a sender, so that no other socket of its address gets the
    /// message.
    moved: bool,
}

/// The restored socket of this protocol that has this address.
fn standing(cx: &mut RestoreContext<'_>, protocol: i32, address: &Address) -> Option<Rc<Held>> {
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

impl Post<'_> {
    /// Sends one. That it does not come is seen later.
    fn send(
        &mut self,
        to: BorrowedFd<'_>,
        from: Option<&Address>,
        bytes: &[u8],
        cx: &mut RestoreContext<'_>,
    ) {
        if let Some(from) = from.filter(|_| self.inet.shares_its_address()) {
            let there = from.encode(to).and_then(|from| socket::connect(to, &from));
            self.moved |= there.is_ok();
        }
        let name = socket::name(to).ok().and_then(|name| Address::of(to, &name));
        let Some(name) = name else { return };
        let to = destination(&name, from);
        if let Some(from) = from {
            if self.forge(from, &to, bytes) || self.by_bound(from, &to, bytes, cx) {
                return;
            }
        }
        let _ = self.by_any(&to, bytes);
    }

    fn forge(&mut self, from: &Address, to: &Address, bytes: &[u8]) -> bool {
        let (from, to) = (from.unmapped(), to.unmapped());
        let Some(packet) = packet(self.inet.protocol(), &from, &to, bytes) else { return false };
        let v6 = to.ip.is_ipv6();
        let forger = self.forgers.entry(v6).or_insert_with(|| {
            let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
            let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
            let made = socket::new(family, kind, libc::IPPROTO_RAW).ok()?;
            self.inet.stay_on_device(made.as_fd());
            Some(made)
        });
        let Some(forger) = forger else { return false };
        let mut there = to;
        there.port = 0;
        let there = there.encode(forger.as_fd());
        there.is_ok_and(|to| socket::send_to(forger.as_fd(), &packet, &to).is_ok())
    }

    fn by_bound(
        &mut self,
        from: &Address,
        to: &Address,
        bytes: &[u8],
        cx: &mut RestoreContext<'_>,
    ) -> bool {
        let bound = self.bound.entry(Some(from.clone())).or_insert_with(|| {
            let made = self.inet.another(from.ip.is_ipv6())?;
            let set = |name| socket::set_option(made.as_fd(), libc::SOL_SOCKET, name, 1);
            set(libc::SO_REUSEADDR).ok()?;
            socket::bind(made.as_fd(), &from.encode(made.as_fd()).ok()?).ok()?;
            Some(made)
        });
        let placed = match bound {
            Some(_) => None,
            None => standing(cx, self.inet.protocol(), from),
        };
        let fd = bound.as_ref().map(AsFd::as_fd).or(placed.as_ref().map(AsFd::as_fd));
        let Some(fd) = fd else { return false };
        to.encode(fd).is_ok_and(|to| socket::send_to(fd, bytes, &to).is_ok())
    }

    fn by_any(&mut self, to: &Address, bytes: &[u8]) -> Option<()> {
        let any = self.bound.entry(None).or_insert_with(|| self.inet.another(to.ip.is_ipv6()));
        let any = any.as_ref()?.as_fd();
        socket::send_to(any, bytes, &to.encode(any).ok()?).ok().map(drop)
    }
}

/// Where a socket with this name is reached by that sender.
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

/// A packet with its headers: RFC 791 or 8200, and RFC 768 or 3828. None if the addresses are of
/// two families, or it would be too long.
fn packet(protocol: i32, from: &Address, to: &Address, bytes: &[u8]) -> Option<Vec<u8>> {
    let lite = protocol == UDPLITE;
    let protocol = protocol as u8;
    let len = u16::try_from(bytes.len() + 8).ok()?;
    // The length of UDP-Lite is how much of it the checksum covers: zero is all.
    let told = if lite { 0 } else { len };
    let ports = [from.port.to_be_bytes(), to.port.to_be_bytes(), told.to_be_bytes()].concat();
    let (head, addresses) = match (from.ip, to.ip) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let addresses = [from.octets(), to.octets()].concat();
            let whole = len.checked_add(20)?.to_be_bytes();
            // Version and length of the header, no fragments, 64 hops; the kernel fills the rest.
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

/// The checksum of RFC 1071; zero would mean that there is none.
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

    fn seen(socket: &UdpSocket) -> Vec<Datagram> {
        let mut seen = Vec::new();
        let take = |piece: Piece<'_>| {
            let from = piece.with.unwrap().from.unwrap();
            seen.push((
                Address::parse(std::str::from_utf8(&from.0).unwrap()),
                piece.bytes.to_vec(),
            ));
        };
        contents_of::<Udp>(socket, 1 << 20, take).unwrap();
        seen
    }

    #[test]
    fn messages_are_looked_at_with_their_senders_and_stay() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let (a, b) = (UdpSocket::bind(host).unwrap(), UdpSocket::bind(host).unwrap());
            let from = Address::parse(&b.local_addr().unwrap().to_string());
            let sent: Vec<Datagram> = [&b""[..], b"", b"one", b"", b"three"]
                .map(|bytes| (from.clone(), bytes.to_vec()))
                .into();
            for (_, bytes) in &sent {
                b.send_to(bytes, a.local_addr().unwrap()).unwrap();
            }
            assert_eq!(seen(&a), sent);
            let offset = socket::option(a.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF);
            assert_eq!(offset, Ok(-1));
            for (_, bytes) in &sent {
                assert_eq!(a.recv(&mut [0; 8]).unwrap(), bytes.len());
            }
        }
    }

    #[test]
    fn an_error_that_waits_is_left_there() {
        let (a, b) =
            (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        a.connect(b.local_addr().unwrap()).unwrap();
        drop(b);
        a.send(b"to nobody").unwrap();
        let looked = contents_of::<Udp>(&a, 1, |_| ());
        assert!(looked.unwrap_err().to_string().contains("an error waits"));
        assert_eq!(a.recv(&mut [0]).unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
    }

    #[test]
    fn what_is_shut_down_is_known_and_what_waits() {
        let (a, b) = (UdpSocket::bind("[::1]:0").unwrap(), UdpSocket::bind("[::1]:0").unwrap());
        b.send_to(b"hello", a.local_addr().unwrap()).unwrap();
        let udp: Udp = body_of(&a);
        assert_eq!((udp.queued, udp.shutdown), (Some(5), 0));
        let title = format!("udp {} queued=5", a.local_addr().unwrap());
        assert_eq!(describe_of(&a), title);
        inet::end(b.as_fd(), Shutdown::Read).unwrap();
        let udp: Udp = body_of(&b);
        assert_eq!((udp.queued, udp.shutdown), (None, 1));
    }

    #[test]
    fn a_packet_is_as_the_rfcs_say() {
        let at = |text| Address::parse(text).unwrap();
        let made = packet(17, &at("192.0.2.1:53"), &at("127.0.0.1:4096"), b"abc").unwrap();
        let head = [0x45, 0, 0, 31, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 127, 0, 0, 1];
        assert_eq!(made[..20], head);
        assert_eq!(made[20..26], [0, 53, 16, 0, 0, 11]);
        // With its own checksum in it the sum is all ones, of which the complement is zero.
        let whole = [&made[12..20], &[0, 17, 0, 11], &made[20..]].concat();
        assert_eq!(checksum(&whole), 0xffff);
        let long = vec![0; 65508];
        assert!(packet(17, &at("192.0.2.1:53"), &at("127.0.0.1:1"), &long).is_none());
        assert!(packet(17, &at("[::1]:53"), &at("127.0.0.1:1"), b"").is_none());
        assert_eq!(packet(136, &at("[::1]:53"), &at("[::1]:1"), b"").unwrap()[44..46], [0, 0]);
    }

    #[test]
    fn what_does_not_come_is_counted() {
        let from = |port: u16| Address::parse(&format!("127.0.0.1:{port}"));
        let message = |port, text: &str| (from(port), text.as_bytes().to_vec());
        let sent = [message(1, "a"), message(2, "b"), message(3, "c")];
        assert_eq!(compared(&sent, &sent), (0, 0));
        assert_eq!(compared(&sent, &[message(9, "new"), message(1, "a"), message(7, "c")]), (1, 1));
        assert_eq!(compared(&sent, &[]), (3, 0));
    }
}
