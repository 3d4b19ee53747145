//! ip(7) and ipv6(7): the part of the record that internet sockets of all protocols share.
//! Addresses are text in the form of RFC 5952 and RFC 4007, where the zone is the name of a device
//! and not its index.

use crate::error::{At, Error, Result};
use crate::image::OpenFile;
use crate::kind::context::RestoreContext;
use crate::kind::effect::{Allow, Effect};
use crate::kind::socket::multicast::{self, MulticastGroup};
use crate::kind::socket::option::{Phase, SocketClass, SocketOptions};
use crate::kind::socket::{nonblock_flag, shutdown_even_unconnected};
use crate::messages::Messages;
use crate::proc::{Descriptor, own_netns};
use crate::sys::socket as sys;
use crate::text::escape;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::Shutdown;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

/// The record of an internet socket, whatever its protocol.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Inet {
    /// The address family, AF_INET 2 or AF_INET6 10.
    family: i32,
    /// The protocol, IPPROTO_*.
    protocol: i32,
    /// The address and port that it is bound to; none for INADDR_ANY and port 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    local: Option<String>,
    /// The address and port that it is connected to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    remote: Option<String>,
    /// The inode of its network namespace, if that is not its process's; zero if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    netns: Option<u64>,
    /// Socket options that differ from those of a new socket.
    #[serde(default, skip_serializing_if = "SocketOptions::is_empty")]
    options: SocketOptions,
    /// The multicast groups that it has joined.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    groups: Vec<MulticastGroup>,
}

/// An IP address and a port, with the zone (the device) of a link-local IPv6 address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    pub ip: IpAddr,
    pub port: u16,
    zone: Option<String>,
}

impl Address {
    /// Parses `192.0.2.1:80`, `[2001:db8::1]:80`, `[fe80::1%eth0]:80`.
    pub(crate) fn parse(text: &str) -> Option<Address> {
        let (ip, port) = text.rsplit_once(':')?;
        let port = port.parse().ok()?;
        let Some(ip) = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')) else {
            return Some(Address { ip: IpAddr::V4(ip.parse().ok()?), port, zone: None });
        };
        let (ip, zone) = match ip.split_once('%') {
            Some((ip, zone)) => (ip, Some(zone.to_owned()).filter(|zone| !zone.is_empty())),
            None => (ip, None),
        };
        Some(Address { ip: IpAddr::V6(ip.parse().ok()?), port, zone })
    }

    /// Decodes a struct sockaddr_in or sockaddr_in6. A scope id is the index of a device in the
    /// network namespace of `fd`, a socket; a device without a name stays a number.
    pub(crate) fn decode(fd: BorrowedFd<'_>, bytes: &[u8]) -> Option<Address> {
        let ip = decode_ip(bytes)?;
        let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
        if ip.is_ipv4() {
            return Some(Address { ip, port, zone: None });
        }
        let scope = i32::from_ne_bytes(*bytes.get(24..)?.first_chunk()?);
        let zone = (scope != 0).then(|| {
            let name = sys::device_name(fd, scope).ok();
            name.and_then(|name| String::from_utf8(name).ok()).unwrap_or_else(|| scope.to_string())
        });
        Some(Address { ip, port, zone })
    }

    /// Encodes a struct sockaddr_in or sockaddr_in6. Fails with ENODEV if there is no device with
    /// the name of the zone in the network namespace of `fd`, a socket.
    pub(crate) fn encode(&self, fd: BorrowedFd<'_>) -> nix::Result<Vec<u8>> {
        let head = |family: i32| [(family as u16).to_ne_bytes(), self.port.to_be_bytes()].concat();
        match self.ip {
            IpAddr::V4(ip) => Ok([&head(libc::AF_INET)[..], &ip.octets(), &[0; 8]].concat()),
            IpAddr::V6(ip) => {
                let scope = match &self.zone {
                    None => 0,
                    Some(zone) => match sys::device_index(fd, zone.as_bytes()) {
                        Ok(index) => index,
                        Err(errno) => zone.parse().map_err(|_| errno)?,
                    },
                };
                let head = head(libc::AF_INET6);
                Ok([&head[..], &[0; 4], &ip.octets(), &scope.to_ne_bytes()].concat())
            }
        }
    }

    /// The address with an IPv4-mapped IPv6 address, `[::ffff:1.2.3.4]`, made an IPv4 one.
    pub(crate) fn unmapped(&self) -> Address {
        Address { ip: self.ip.to_canonical(), ..self.clone() }
    }

    /// Reports whether it is the name of an unbound socket: INADDR_ANY or in6addr_any, and port 0.
    fn is_wildcard(&self) -> bool {
        self.ip.is_unspecified() && self.port == 0
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.ip, &self.zone) {
            (IpAddr::V4(ip), _) => write!(f, "{ip}:{}", self.port),
            (IpAddr::V6(ip), None) => write!(f, "[{ip}]:{}", self.port),
            (IpAddr::V6(ip), Some(zone)) => write!(f, "[{ip}%{zone}]:{}", self.port),
        }
    }
}

/// The IP address of a struct sockaddr_in or sockaddr_in6; none for another family.
pub(crate) fn decode_ip(bytes: &[u8]) -> Option<IpAddr> {
    match i32::from(u16::from_ne_bytes(*bytes.first_chunk()?)) {
        libc::AF_INET => Some(IpAddr::from(*bytes.get(4..)?.first_chunk::<4>()?)),
        libc::AF_INET6 => Some(IpAddr::from(*bytes.get(8..)?.first_chunk::<16>()?)),
        _ => None,
    }
}

/// Parses an address of a record. Fails with status 3 if it is not one of this family.
fn parse_address(family: i32, text: &str) -> Result<Address> {
    let address = Address::parse(text).filter(|it| it.ip.is_ipv6() == (family == libc::AF_INET6));
    let shown = || escape(text.as_bytes()).into_owned();
    address.ok_or_else(|| Error::malformed(format!("{} is not an address of its family", shown())))
}

/// Family, type and protocol of a descriptor, if it is an internet socket.
pub(crate) fn class(descriptor: &Descriptor<'_>) -> Option<SocketClass> {
    // The family is checked first: most sockets are of another, and need no more system calls.
    let is_internet = |family: &i32| matches!(*family, libc::AF_INET | libc::AF_INET6);
    descriptor.socket_family().filter(is_internet)?;
    descriptor.socket_class()
}

impl Inet {
    /// The network namespace, as [`netns_text`] shows it.
    pub(crate) fn netns_text(&self) -> String {
        netns_text(self.netns)
    }

    /// Captures a socket.
    pub(crate) fn capture(descriptor: &Descriptor<'_>) -> Result<Inet> {
        let fd = descriptor.require_copy()?;
        let class = class(descriptor).ok_or(Errno::ENOTSOCK)?;
        let local = Address::decode(fd, &sys::name(fd).at(|| "getsockname")?);
        let remote = match sys::peer(fd) {
            Ok(peer) => Address::decode(fd, &peer),
            Err(Errno::ENOTCONN) => None,
            Err(errno) => return Err(errno).at(|| "getpeername"),
        };
        let text = |address: Address| (!address.is_wildcard()).then(|| address.to_string());
        let netns = descriptor.other_netns();
        let mut options = SocketOptions::read(fd, class)?;
        if remote.is_some() {
            // On a connected socket this is the processor that last received, not the value set.
            options.remove(&["SO_INCOMING_CPU"]);
        }
        Ok(Inet {
            family: class.0,
            protocol: class.2,
            local: local.and_then(text),
            remote: remote.and_then(text),
            netns,
            options,
            // TCP sockets join no groups. /proc/PID/net lists only the groups of the namespace of
            // the process.
            groups: match class.1 {
                libc::SOCK_STREAM => Vec::new(),
                _ if netns.is_some() => Vec::new(),
                _ => multicast::read_groups(descriptor, class)?,
            },
        })
    }

    /// Reads the address of a peer without a port, for which getpeername(2) fails, from a table of
    /// /proc/PID/net: `table`, with `6` added for IPv6.
    pub(crate) fn read_remote(&mut self, descriptor: &Descriptor<'_>, table: &str) {
        let table = format!("{table}{}", if self.family == libc::AF_INET6 { "6" } else { "" });
        let Some(inode) = descriptor.inode.as_ref().filter(|_| self.remote.is_none()) else {
            return;
        };
        if let Some((ip, port)) = descriptor.process.remote(&table, inode.ino) {
            self.remote = Some(Address { ip, port, zone: None }.to_string());
            self.options.remove(&["SO_INCOMING_CPU"]);
        }
    }

    /// Removes options whose value is not the one that was set.
    pub(crate) fn remove_options(&mut self, names: &[&str]) {
        self.options.remove(names);
    }

    /// The protocol, IPPROTO_*.
    pub(crate) fn protocol(&self) -> i32 {
        self.protocol
    }

    /// The address that it is bound to. Fails with status 3 if it is malformed.
    pub(crate) fn local(&self) -> Result<Option<Address>> {
        self.local.as_deref().map(|text| parse_address(self.family, text)).transpose()
    }

    /// The address that it is connected to. Fails with status 3 if it is malformed.
    pub(crate) fn remote(&self) -> Result<Option<Address>> {
        self.remote.as_deref().map(|text| parse_address(self.family, text)).transpose()
    }

    /// Its addresses as text: `LOCAL -> REMOTE`, or `LOCAL`, which is `0.0.0.0:0` or `[::]:0` if it
    /// is not bound.
    pub(crate) fn endpoints(&self) -> String {
        let none = if self.family == libc::AF_INET6 { "[::]:0" } else { "0.0.0.0:0" };
        let local = self.local.as_deref().unwrap_or(none);
        match &self.remote {
            Some(remote) => format!("{local} -> {remote}"),
            None => local.to_owned(),
        }
    }

    /// Fails with status 3 if a field is not valid.
    pub(crate) fn validate(&self) -> Result<()> {
        if !matches!(self.family, libc::AF_INET | libc::AF_INET6) {
            let family = self.family;
            let why = format!("address family {family} is not AF_INET or AF_INET6");
            return Err(Error::malformed(why));
        }
        let (_, _) = (self.local()?, self.remote()?);
        self.options.validate()?;
        self.groups.iter().try_for_each(MulticastGroup::validate)
    }

    /// The effects of the groups that it joins.
    pub(crate) fn effects(&self) -> Vec<Effect> {
        let joins = |group: &MulticastGroup| {
            Effect::needing(Allow::Network, format!("joins the group {}", group.shown()))
        };
        self.groups.iter().map(joins).collect()
    }

    /// Fails with status 6 if a socket of this type cannot be made here. A thorough check also binds a
    /// socket to the address and closes it.
    pub(crate) fn check(&self, socket_type: i32, cx: &RestoreContext<'_>) -> Result<()> {
        let local = self.local()?;
        self.options.check((self.family, socket_type, self.protocol))?;
        if !self.groups.is_empty() {
            let probe = self.new_socket(socket_type, 0)?;
            self.groups.iter().try_for_each(|group| group.check(&probe))?;
        }
        require_same_netns(self.netns, cx)?;
        // A second datagram socket on a shared address could receive messages of the first.
        let try_address = socket_type == libc::SOCK_STREAM || !self.allows_address_reuse();
        if let (true, Some(local)) = (cx.checks_all && try_address, local) {
            let probe = self.new_socket(socket_type, 0)?;
            self.options.set(probe.as_fd(), Phase::Created, &mut Messages::kept())?;
            self.bind(&probe, &local)?;
        }
        Ok(())
    }

    /// A new socket of its family and protocol. `flags` are SOCK_NONBLOCK and SOCK_CLOEXEC.
    fn new_socket(&self, socket_type: i32, flags: i32) -> Result<OwnedFd> {
        sys::new(self.family, socket_type | flags, self.protocol).at(|| "socket")
    }

    /// Makes a socket with the options of the first phase and the groups, bound to the address.
    /// Fails with status 6 if the address is in use or not one of this machine.
    pub(crate) fn make_bound(
        &self,
        socket_type: i32,
        file: &OpenFile,
        cx: &mut RestoreContext<'_>,
    ) -> Result<OwnedFd> {
        let Inet { family: _, protocol: _, local: _, remote: _, netns, options: _, groups } = self;
        if netns.is_none() {
            warn_if_other_netns(cx);
        }
        let made = self.new_socket(socket_type, nonblock_flag(file.flags))?;
        self.set_options(Phase::Created, made.as_fd(), file, cx)?;
        groups.iter().try_for_each(|group| group.join(made.as_fd()))?;
        if let Some(local) = self.local()? {
            self.bind(&made, &local)?;
        }
        Ok(made)
    }

    /// Sets the options of a phase.
    pub(crate) fn set_options(
        &self,
        phase: Phase,
        fd: BorrowedFd<'_>,
        file: &OpenFile,
        cx: &mut RestoreContext<'_>,
    ) -> Result<()> {
        self.options.restore(fd, phase, file, cx)
    }

    /// Reports whether other sockets may be bound to the same address: SO_REUSEADDR or
    /// SO_REUSEPORT.
    pub(crate) fn allows_address_reuse(&self) -> bool {
        let set = |name| self.options.int(name).is_some_and(|value| value != 0);
        set("SO_REUSEADDR") || set("SO_REUSEPORT")
    }

    /// Disconnects a socket (AF_UNSPEC of connect(2)), and connects it to the recorded peer, if
    /// there is one.
    pub(crate) fn reconnect(
        &self,
        fd: BorrowedFd<'_>,
        file: &OpenFile,
        cx: &mut RestoreContext<'_>,
    ) -> Result<()> {
        let unspec = (libc::AF_UNSPEC as u16).to_ne_bytes();
        sys::connect(fd, &[&unspec[..], &[0; 14]].concat()).at(|| "disconnect")?;
        // Disconnecting has reset SO_BINDTODEVICE.
        self.set_options(Phase::Created, fd, file, cx)?;
        let processor = self.options.int("SO_INCOMING_CPU").unwrap_or(-1);
        sys::set_option(fd, libc::SOL_SOCKET, libc::SO_INCOMING_CPU, processor as i32)
            .at(|| "SO_INCOMING_CPU")?;
        self.connect(fd)
    }

    /// A new datagram socket of its protocol, bound to the same device (SO_BINDTODEVICE); none if
    /// it cannot be made.
    pub(crate) fn new_sender(&self, v6: bool) -> Option<OwnedFd> {
        let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
        let socket_type = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
        let made = sys::new(family, socket_type, self.protocol).ok()?;
        self.bind_to_same_device(made.as_fd());
        Some(made)
    }

    /// Binds another socket to the device of this one (SO_BINDTODEVICE), if it has one: packets
    /// from other devices do not reach it.
    pub(crate) fn bind_to_same_device(&self, fd: BorrowedFd<'_>) {
        if let Some(device) = self.options.bytes("SO_BINDTODEVICE") {
            // After a failure the messages do not arrive, which the caller counts.
            let _ = sys::set_option_bytes(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, device);
        }
    }

    /// Connects a socket to the recorded peer, if there is one. Fails with status 6 if the peer is
    /// not reachable.
    pub(crate) fn connect(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let Some(remote) = self.remote()? else { return Ok(()) };
        match remote.encode(fd).and_then(|to| sys::connect(fd, &to)) {
            Ok(()) => Ok(()),
            Err(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::ENODEV) => {
                Err(Error::unrestorable(format!("its peer {remote} is not reachable from here")))
            }
            Err(errno) => Err(errno).at(|| format!("connect to {remote}")),
        }
    }

    /// Binds a socket to an address, without a port if the record has none.
    fn bind(&self, fd: &OwnedFd, local: &Address) -> Result<()> {
        let fd = fd.as_fd();
        // With port 0 bind(2) chooses a port, except under this option (ip(7), Linux 4.2).
        let without_port = local.port == 0 && self.options.int("IP_BIND_ADDRESS_NO_PORT").is_none();
        let set = |on| sys::set_option(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, on);
        if without_port {
            set(1).at(|| "IP_BIND_ADDRESS_NO_PORT")?;
        }
        let bound = local.encode(fd).and_then(|address| sys::bind(fd, &address));
        match bound {
            Ok(()) if without_port => set(0).at(|| "IP_BIND_ADDRESS_NO_PORT"),
            Ok(()) => Ok(()),
            Err(Errno::EADDRINUSE) => Err(Error::unrestorable(format!(
                "{local} is in use, perhaps by the process that was scanned: end it first"
            ))),
            Err(Errno::EADDRNOTAVAIL | Errno::ENODEV) => {
                Err(Error::unrestorable(format!("{local} is not an address of this machine")))
            }
            Err(errno) => Err(errno).at(|| format!("bind to {local}")),
        }
    }
}

/// The length of the first unread message (SIOCINQ), if there is one, and the directions that are
/// shut down: receiving 1, both 3.
pub(crate) fn queue_state(fd: BorrowedFd<'_>) -> Result<(Option<u32>, u8)> {
    let ready = sys::ready(fd).at(|| "poll")?;
    let shutdown = match ready {
        ready if ready & libc::POLLHUP != 0 => 3,
        ready => u8::from(ready & libc::POLLRDHUP != 0),
    };
    if ready & libc::POLLIN == 0 {
        return Ok((None, shutdown));
    }
    // A socket that is shut down for receiving always has POLLIN, with or without a message.
    let bytes = crate::sys::readable(fd).at(|| "SIOCINQ")? as u32;
    Ok(((bytes > 0 || shutdown == 0).then_some(bytes), shutdown))
}

/// Makes the replacement of a socket under `--missing null`: one of the same family that is shut
/// down, so that socket options and getsockname(2) still work on it.
pub(crate) fn null_socket(inet: &Inet, socket_type: i32, protocol: i32) -> Result<OwnedFd> {
    let v6 = inet.family == libc::AF_INET6;
    let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
    let made = sys::new(family, socket_type, protocol).at(|| "socket")?;
    shutdown_even_unconnected(made.as_fd(), Shutdown::Both)?;
    Ok(made)
}

/// ` net:[INODE]` for a socket in another network namespace than its process; nothing for any other.
pub(crate) fn netns_text(netns: Option<u64>) -> String {
    match netns {
        None => String::new(),
        Some(0) => " net:[?]".to_owned(),
        Some(netns) => format!(" net:[{netns}]"),
    }
}

/// Fails with status 6 if a socket is in another network namespace than its process, and this
/// process is not in that namespace. `netns` is the recorded inode: zero if it is not known, none
/// if it is the namespace of its process.
pub(crate) fn require_same_netns(netns: Option<u64>, cx: &RestoreContext<'_>) -> Result<()> {
    let why = match netns {
        None => return Ok(()),
        Some(0) => {
            "it is in a network namespace that the scan could not identify, and not in that \
                    of its process"
                .to_owned()
        }
        Some(netns) if !cx.is_same_boot() => format!(
            "it is in network namespace net:[{netns}] of another boot, and not in that of its process"
        ),
        Some(netns) if own_netns() != Some(netns) => format!(
            "it is in network namespace net:[{netns}], and not in that of its process: run \
             fdrestore in that namespace (nsenter --net)"
        ),
        Some(_) => return Ok(()),
    };
    Err(Error::unrestorable(why))
}

/// Warns, once a restore, that the sockets of the task are made in another network namespace than
/// the one they were captured in.
pub(crate) fn warn_if_other_netns(cx: &mut RestoreContext<'_>) {
    static OWN: OnceLock<Option<u64>> = OnceLock::new();
    let own = *OWN.get_or_init(own_netns);
    let recorded = cx.task.namespaces.get("net").copied();
    let (Some(own), Some(recorded)) = (own, recorded) else { return };
    if own != recorded && cx.is_same_boot() {
        let line = format!("sockets of network namespace net:[{recorded}] are made in net:[{own}]");
        cx.warn_once(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn addresses_are_parsed_printed_encoded_and_decoded() {
        for text in ["192.0.2.1:80", "0.0.0.0:0", "[2001:db8::1]:443", "[::]:9", "[fe80::1%lo]:1"] {
            let address = Address::parse(text).unwrap();
            assert_eq!(address.to_string(), text);
            let socket = UdpSocket::bind("[::1]:0").unwrap();
            let bytes = address.encode(socket.as_fd()).unwrap();
            assert_eq!(Address::decode(socket.as_fd(), &bytes), Some(address));
        }
        for text in ["", ":", "192.0.2.1", "::1:80", "[::1]", "[::1]:65536", "[::1%lo:80", "a:1"] {
            assert_eq!(Address::parse(text), None, "{text}");
        }
    }

    #[test]
    fn encoding_fails_without_the_device_of_the_zone() {
        let socket = UdpSocket::bind("[::1]:0").unwrap();
        let address = Address::parse("[fe80::1%no-such-device]:1").unwrap();
        assert_eq!(address.encode(socket.as_fd()), Err(Errno::ENODEV));
    }

    proptest::proptest! {
        #[test]
        fn parsing_and_decoding_never_panic(
            text in ".*", bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..40),
        ) {
            let socket = UdpSocket::bind("[::1]:0").unwrap();
            if let Some(address) = Address::parse(&text) {
                let _ = address.encode(socket.as_fd());
            }
            let _ = Address::decode(socket.as_fd(), &bytes);
        }
    }
}
