//! ip(7) and ipv6(7): what the sockets of all their protocols have in common. Addresses are text,
//! as RFC 5952 and RFC 4007 write them, with the name of the device and not its index.

use crate::error::{At, Error, Result};
use crate::image::OpenFile;
use crate::kind::context::RestoreContext;
use crate::kind::socket::multicast::{self, MulticastGroup};
use crate::kind::socket::option::{Class, Phase, SocketOptions};
use crate::proc::{Descriptor, boot_id, own_netns};
use crate::sys::socket as sys;
use crate::text::escape;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{Shutdown, shutdown};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

pub(crate) const NONBLOCK: u32 = libc::O_NONBLOCK as u32;

/// What any socket of these families has.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Inet {
    /// AF_INET 2 or AF_INET6 10.
    family: i32,
    /// Its protocol, by the number that IANA has given it.
    protocol: i32,
    /// The address and port it is bound to; none if that is nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    local: Option<String>,
    /// The address and port it is connected to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    remote: Option<String>,
    /// The inode of its network namespace, if that is not the one of its process; zero if it could
    /// not be found out which one it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    netns: Option<u64>,
    /// What a fresh socket like it has not.
    #[serde(default, skip_serializing_if = "SocketOptions::is_empty")]
    options: SocketOptions,
    /// The multicast groups that it has joined.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    groups: Vec<MulticastGroup>,
}

/// An address, its port, and the device that an address of this link is of.
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

    /// From a struct sockaddr_in or sockaddr_in6, whose device is one where `fd` is.
    pub(crate) fn of(fd: BorrowedFd<'_>, bytes: &[u8]) -> Option<Address> {
        let family = u16::from_ne_bytes(*bytes.first_chunk()?);
        let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
        if i32::from(family) == libc::AF_INET {
            let ip = Ipv4Addr::from(*bytes.get(4..)?.first_chunk::<4>()?);
            return Some(Address { ip: ip.into(), port, zone: None });
        }
        let ip = Ipv6Addr::from(*bytes.get(8..)?.first_chunk::<16>()?);
        let scope = i32::from_ne_bytes(*bytes.get(24..)?.first_chunk()?);
        let zone = (scope != 0).then(|| {
            let name = sys::device_name(fd, scope).ok();
            name.and_then(|name| String::from_utf8(name).ok()).unwrap_or_else(|| scope.to_string())
        });
        (i32::from(family) == libc::AF_INET6).then_some(Address { ip: ip.into(), port, zone })
    }

    /// As the kernel has it. Fails with ENODEV if its device is not where `fd` is.
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

    /// The same, as one of IPv4 if it is one of those that IPv6 has for them: `[::ffff:1.2.3.4]`.
    pub(crate) fn unmapped(&self) -> Address {
        Address { ip: self.ip.to_canonical(), ..self.clone() }
    }

    /// Whether it says nothing: any address, and no port.
    fn is_none(&self) -> bool {
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

/// An address of an image.
fn parse(family: i32, text: &str) -> Result<Address> {
    let address = Address::parse(text).filter(|it| it.ip.is_ipv6() == (family == libc::AF_INET6));
    let shown = || escape(text.as_bytes()).into_owned();
    address.ok_or_else(|| Error::malformed(format!("{} is no address of its family", shown())))
}

/// Family, type and protocol of a descriptor, if it is a socket of these families.
pub(crate) fn class(it: &Descriptor<'_>) -> Option<Class> {
    // Other families are most sockets of a process, and are not asked for more.
    let ours = |family: &i32| matches!(*family, libc::AF_INET | libc::AF_INET6);
    it.family().filter(ours)?;
    it.class()
}

impl Inet {
    /// What a socket has.
    pub(crate) fn capture(it: &Descriptor<'_>) -> Result<Inet> {
        let (Some(copy), Some(class)) = (&it.copy, class(it)) else {
            return Err(Error::unrestorable("a passive scan cannot ask a socket"));
        };
        let fd = copy.as_fd();
        let local = Address::of(fd, &sys::name(fd).at(|| "getsockname")?);
        let remote = match sys::peer(fd) {
            Ok(peer) => Address::of(fd, &peer),
            Err(Errno::ENOTCONN) => None,
            Err(errno) => return Err(errno).at(|| "getpeername"),
        };
        let text = |it: Address| (!it.is_none()).then(|| it.to_string());
        let netns = it.other_netns();
        let mut options = SocketOptions::read(fd, class)?;
        if remote.is_some() {
            // Of what is connected it is the processor that has last taken something in.
            options.forget(&["SO_INCOMING_CPU"]);
        }
        Ok(Inet {
            family: class.0,
            protocol: class.2,
            local: local.and_then(text),
            remote: remote.and_then(text),
            netns,
            options,
            // TCP is in none; and those of another namespace are not listed for the process.
            groups: match class.1 {
                libc::SOCK_STREAM => Vec::new(),
                _ if netns.is_some() => Vec::new(),
                _ => multicast::read(it, class)?,
            },
        })
    }

    /// Finds what it is connected to if that has no port, in this table of /proc/net.
    pub(crate) fn look_up(&mut self, it: &Descriptor<'_>, table: &str) {
        let table = format!("{table}{}", if self.family == libc::AF_INET6 { "6" } else { "" });
        let Some(inode) = it.inode.as_ref().filter(|_| self.remote.is_none()) else { return };
        if let Some((ip, port)) = it.process.remote(&table, inode.ino) {
            self.remote = Some(Address { ip, port, zone: None }.to_string());
            self.options.forget(&["SO_INCOMING_CPU"]);
        }
    }

    /// Leaves out options that tell something else in its state.
    pub(crate) fn forget(&mut self, options: &[&str]) {
        self.options.forget(options);
    }

    /// The number of its protocol.
    pub(crate) fn protocol(&self) -> i32 {
        self.protocol
    }

    /// What it is bound to.
    pub(crate) fn local(&self) -> Result<Option<Address>> {
        self.local.as_deref().map(|text| parse(self.family, text)).transpose()
    }

    /// What it is connected to.
    pub(crate) fn remote(&self) -> Result<Option<Address>> {
        self.remote.as_deref().map(|text| parse(self.family, text)).transpose()
    }

    /// Its addresses, as people write them: `0.0.0.0:0` for none, an arrow to the other end.
    pub(crate) fn ends(&self) -> String {
        let none = if self.family == libc::AF_INET6 { "[::]:0" } else { "0.0.0.0:0" };
        let local = self.local.as_deref().unwrap_or(none);
        match &self.remote {
            Some(remote) => format!("{local} -> {remote}"),
            None => local.to_owned(),
        }
    }

    /// Fails with status 3 if no socket of a protocol has this.
    pub(crate) fn validate(&self) -> Result<()> {
        if !matches!(self.family, libc::AF_INET | libc::AF_INET6) {
            let family = self.family;
            return Err(Error::malformed(format!("{family} is no family of an internet socket")));
        }
        let (_, _) = (self.local()?, self.remote()?);
        self.options.validate()?;
        self.groups.iter().try_for_each(MulticastGroup::validate)
    }

    /// Says why a socket of this type cannot be made here. A dry run also tries its address.
    pub(crate) fn check(&self, kind: i32, cx: &RestoreContext<'_>) -> Result<()> {
        let local = self.local()?;
        self.options.check((self.family, kind, self.protocol))?;
        if !self.groups.is_empty() {
            let probe = self.fresh(kind, 0)?;
            self.groups.iter().try_for_each(|group| group.check(&probe))?;
        }
        is_at_home(self.netns, cx)?;
        // To try an address that others have too could take a message away from them.
        let alone = kind == libc::SOCK_STREAM || !self.shares_its_address();
        if let (true, Some(local)) = (cx.dry_run && alone, local) {
            let probe = self.fresh(kind, 0)?;
            self.options.set(probe.as_fd(), Phase::Created, &mut drop)?;
            self.bind_to(&probe, &local)?;
        }
        Ok(())
    }

    fn fresh(&self, kind: i32, flags: i32) -> Result<OwnedFd> {
        sys::new(self.family, kind | flags, self.protocol).at(|| "socket")
    }

    /// A new socket with its options, bound to its address.
    pub(crate) fn make(
        &self,
        kind: i32,
        file: &OpenFile,
        cx: &mut RestoreContext<'_>,
    ) -> Result<OwnedFd> {
        let Inet { family: _, protocol: _, local: _, remote: _, netns, options: _, groups } = self;
        if netns.is_none() {
            said_if_elsewhere(cx);
        }
        let nonblock = if file.flags & NONBLOCK != 0 { libc::SOCK_NONBLOCK } else { 0 };
        let made = self.fresh(kind, nonblock)?;
        self.set(Phase::Created, made.as_fd(), file, cx)?;
        groups.iter().try_for_each(|group| group.join(made.as_fd()))?;
        if let Some(local) = self.local()? {
            self.bind_to(&made, &local)?;
        }
        Ok(made)
    }

    /// Sets those of its options whose turn it is.
    pub(crate) fn set(
        &self,
        phase: Phase,
        fd: BorrowedFd<'_>,
        file: &OpenFile,
        cx: &mut RestoreContext<'_>,
    ) -> Result<()> {
        let name = escape(&file.link.0);
        self.options.set(fd, phase, &mut |line| cx.warnings.push(format!("{name}: {line}")))
    }

    /// Whether other sockets may be bound to its address too.
    pub(crate) fn shares_its_address(&self) -> bool {
        let set = |name| self.options.int(name).is_some_and(|value| value != 0);
        set("SO_REUSEADDR") || set("SO_REUSEPORT")
    }

    /// Disconnects it, and connects it to its own other end, if it has one.
    pub(crate) fn reconnect(
        &self,
        fd: BorrowedFd<'_>,
        file: &OpenFile,
        cx: &mut RestoreContext<'_>,
    ) -> Result<()> {
        let unspec = (libc::AF_UNSPEC as u16).to_ne_bytes();
        sys::connect(fd, &[&unspec[..], &[0; 14]].concat()).at(|| "disconnect")?;
        // That has also taken its device away.
        self.set(Phase::Created, fd, file, cx)?;
        let processor = self.options.int("SO_INCOMING_CPU").unwrap_or(-1);
        sys::set_option(fd, libc::SOL_SOCKET, libc::SO_INCOMING_CPU, processor as i32)
            .at(|| "SO_INCOMING_CPU")?;
        self.connect(fd)
    }

    /// Another socket of its protocol, on its device.
    pub(crate) fn another(&self, v6: bool) -> Option<OwnedFd> {
        let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
        let made = sys::new(family, kind, self.protocol).ok()?;
        self.stay_on_device(made.as_fd());
        Some(made)
    }

    /// Binds a socket to its device, if it is bound to one: no other can send to it.
    pub(crate) fn stay_on_device(&self, fd: BorrowedFd<'_>) {
        if let Some(device) = self.options.bytes("SO_BINDTODEVICE") {
            // If not, it will be seen that nothing comes.
            let _ = sys::set_option_bytes(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, device);
        }
    }

    /// Shuts down receiving (1), sending (2), both or nothing.
    pub(crate) fn shut(&self, fd: BorrowedFd<'_>, what: u8) -> Result<()> {
        match what & 3 {
            0 => Ok(()),
            1 => end(fd, Shutdown::Read),
            2 => end(fd, Shutdown::Write),
            _ => end(fd, Shutdown::Both),
        }
    }

    /// Connects it to its other end, if it has one.
    pub(crate) fn connect(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let Some(remote) = self.remote()? else { return Ok(()) };
        match remote.encode(fd).and_then(|to| sys::connect(fd, &to)) {
            Ok(()) => Ok(()),
            Err(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::ENODEV) => {
                Err(Error::unrestorable(format!("{remote} cannot be reached from here")))
            }
            Err(errno) => Err(errno).at(|| format!("connect to {remote}")),
        }
    }

    fn bind_to(&self, fd: &OwnedFd, local: &Address) -> Result<()> {
        let fd = fd.as_fd();
        // Without this, bind(2) chooses a port where none is given (Linux 4.2).
        let aside = local.port == 0 && self.options.int("IP_BIND_ADDRESS_NO_PORT").is_none();
        let set = |on| sys::set_option(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, on);
        if aside {
            set(1).at(|| "IP_BIND_ADDRESS_NO_PORT")?;
        }
        let bound = local.encode(fd).and_then(|address| sys::bind(fd, &address));
        match bound {
            Ok(()) if aside => set(0).at(|| "IP_BIND_ADDRESS_NO_PORT"),
            Ok(()) => Ok(()),
            Err(Errno::EADDRINUSE) => Err(Error::unrestorable(format!(
                "{local} is in use, perhaps by the process that was scanned"
            ))),
            Err(Errno::EADDRNOTAVAIL | Errno::ENODEV) => {
                Err(Error::unrestorable(format!("{local} is no address of this machine")))
            }
            Err(errno) => Err(errno).at(|| format!("bind to {local}")),
        }
    }
}

/// The bytes of the first message that waits to be read, if one does; and what is shut down:
/// receiving 1, both 3.
pub(crate) fn waiting(fd: BorrowedFd<'_>) -> Result<(Option<u32>, u8)> {
    let ready = sys::ready(fd).at(|| "poll")?;
    let shutdown = match ready {
        ready if ready & libc::POLLHUP != 0 => 3,
        ready => u8::from(ready & libc::POLLRDHUP != 0),
    };
    if ready & libc::POLLIN == 0 {
        return Ok((None, shutdown));
    }
    // One that is shut down is always readable.
    let bytes = crate::sys::readable(fd).at(|| "SIOCINQ")? as u32;
    Ok(((bytes > 0 || shutdown == 0).then_some(bytes), shutdown))
}

/// Makes a socket one whose connection has ended: reads end, and writes fail with EPIPE.
pub(crate) fn end(fd: BorrowedFd<'_>, how: Shutdown) -> Result<()> {
    // It says that there is no connection, and shuts the socket down all the same.
    match shutdown(fd.as_raw_fd(), how) {
        Ok(()) | Err(Errno::ENOTCONN) => Ok(()),
        Err(errno) => Err(errno).at(|| "shutdown"),
    }
}

/// What stands in the place of a socket of this type and protocol: one at its end, so that all
/// that is asked of such a socket still has an answer.
pub(crate) fn null(inet: &Inet, kind: i32, protocol: i32) -> Result<OwnedFd> {
    let v6 = inet.family == libc::AF_INET6;
    let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
    let made = sys::new(family, kind, protocol).at(|| "socket")?;
    end(made.as_fd(), Shutdown::Both)?;
    Ok(made)
}

/// Whether the image is of this boot, so that inodes of namespaces mean what they meant.
fn same_boot(cx: &RestoreContext<'_>) -> bool {
    static BOOT: OnceLock<String> = OnceLock::new();
    cx.image.head.boot == *BOOT.get_or_init(boot_id)
}

/// Fails if a socket was of another network namespace than its process, and ours is not that one.
pub(crate) fn is_at_home(netns: Option<u64>, cx: &RestoreContext<'_>) -> Result<()> {
    match netns {
        Some(netns) if netns == 0 || !same_boot(cx) || own_netns() != Some(netns) => {
            let which = if netns == 0 { "another".into() } else { format!("net:[{netns}]") };
            let why = format!("it is of {which}, not of its process's network namespace");
            Err(Error::unrestorable(why))
        }
        _ => Ok(()),
    }
}

/// Says once if the sockets of the task were of another network namespace than they are now.
pub(crate) fn said_if_elsewhere(cx: &mut RestoreContext<'_>) {
    static OURS: OnceLock<Option<u64>> = OnceLock::new();
    let ours = *OURS.get_or_init(own_netns);
    let theirs = cx.task.namespaces.get("net").copied();
    let (Some(ours), Some(theirs)) = (ours, theirs) else { return };
    if ours != theirs && same_boot(cx) {
        let line = format!("sockets of network namespace net:[{theirs}] are made in net:[{ours}]");
        if !cx.warnings.contains(&line) {
            cx.warnings.push(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn an_address_is_text_and_comes_back_from_it() {
        for text in ["192.0.2.1:80", "0.0.0.0:0", "[2001:db8::1]:443", "[::]:9", "[fe80::1%lo]:1"] {
            let address = Address::parse(text).unwrap();
            assert_eq!(address.to_string(), text);
            let socket = UdpSocket::bind("[::1]:0").unwrap();
            let bytes = address.encode(socket.as_fd()).unwrap();
            assert_eq!(Address::of(socket.as_fd(), &bytes), Some(address));
        }
        for text in ["", ":", "192.0.2.1", "::1:80", "[::1]", "[::1]:65536", "[::1%lo:80", "a:1"] {
            assert_eq!(Address::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_device_that_is_not_here_is_noticed() {
        let socket = UdpSocket::bind("[::1]:0").unwrap();
        let gone = Address::parse("[fe80::1%no-such-device]:1").unwrap();
        assert_eq!(gone.encode(socket.as_fd()), Err(Errno::ENODEV));
    }

    proptest::proptest! {
        #[test]
        fn no_text_and_no_bytes_make_it_panic(
            text in ".*", bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..40),
        ) {
            let socket = UdpSocket::bind("[::1]:0").unwrap();
            if let Some(address) = Address::parse(&text) {
                let _ = address.encode(socket.as_fd());
            }
            let _ = Address::of(socket.as_fd(), &bytes);
        }
    }
}
