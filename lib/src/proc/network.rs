//! Facts about network namespaces, read once for all processes that are in them.

use super::process::{Process, own_namespace};
use crate::error::{At, Error, Result};
use crate::image::inode_of;
use crate::proc::sock_diag::{self, Diag, PacketSocket, Recent, Tunnel, UnixSocket};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::libc;
use nix::sys::stat::Mode;
use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

/// Address and port of the other end of each connected socket, by its inode number.
type Remotes = HashMap<u64, (IpAddr, u16)>;

/// Multicast groups, each with the index of its network device.
type Groups = Vec<(IpAddr, u32)>;

/// The network namespaces of a scan, by their inode numbers.
#[derive(Default)]
pub struct Networks(Mutex<HashMap<u64, Arc<Network>>>);

/// A network namespace.
#[derive(Default)]
pub(crate) struct Network {
    /// A descriptor of it, if it is not the one of this process.
    netns: Option<OwnedFd>,
    diag: Diag,
    groups: Mutex<Recent<Arc<Groups>>>,
    remotes: Mutex<HashMap<String, Recent<Arc<Remotes>>>>,
}

impl Networks {
    /// The namespace with this inode number. `open` opens it, unless it is the one of this process.
    /// One of unknown number is shared with no other process.
    pub(crate) fn of(
        &self,
        inode: Option<u64>,
        open: impl FnOnce() -> Option<OwnedFd>,
    ) -> Arc<Network> {
        let new = || Arc::new(Network { netns: open(), ..Network::default() });
        match (inode, self.0.lock()) {
            (Some(inode), Ok(mut known)) => known.entry(inode).or_insert_with(new).clone(),
            _ => new(),
        }
    }
}

impl Network {
    fn netns(&self) -> Option<BorrowedFd<'_>> {
        self.netns.as_ref().map(AsFd::as_fd)
    }

    /// True if it is the one of this process, or is taken for that.
    pub(crate) fn is_ours(&self) -> bool {
        self.netns.is_none()
    }

    /// The unix socket with this inode number, as sock_diag(7) tells it.
    pub(crate) fn unix_socket(&self, inode: u32) -> Result<UnixSocket> {
        self.diag.unix(inode, self.netns())
    }

    /// The packet socket with this inode number, as sock_diag(7) tells it.
    pub(crate) fn packet_socket(&self, inode: u32) -> Result<PacketSocket> {
        self.diag.packet(inode, self.netns())
    }

    /// The tunnel of this name, as rtnetlink(7) tells it.
    pub(crate) fn tunnel(&self, name: &[u8]) -> Result<Tunnel> {
        sock_diag::tunnel(name, self.netns())
    }

    /// The multicast groups that sockets may have joined: those of net/igmp and net/igmp6, without
    /// those that only the kernel is in. `read` reads a file in /proc/PID of a process of the
    /// namespace.
    pub(crate) fn groups(&self, read: impl Fn(&str) -> Result<Vec<u8>>) -> Arc<Groups> {
        let read = || {
            let text = |name| read(name).map(|text| String::from_utf8_lossy(&text).into_owned());
            let (v4, v6) = (text("net/igmp"), text("net/igmp6"));
            let mut groups = v4.map_or(Vec::new(), |text| igmp(&text));
            groups.extend(v6.map_or(Vec::new(), |text| igmp6(&text)));
            Arc::new(groups)
        };
        match self.groups.lock() {
            Ok(mut kept) => kept.get_or_read(read).clone(),
            Err(_) => read(),
        }
    }

    /// The other ends of the sockets of a table of /proc/PID/net, such as `udp`. `read` as for
    /// [`Network::groups`].
    pub(crate) fn remotes(
        &self,
        table: &str,
        read: impl Fn(&str) -> Result<Vec<u8>>,
    ) -> Arc<Remotes> {
        let read = || {
            let text = read(&format!("net/{table}")).unwrap_or_default();
            Arc::new(connected(&String::from_utf8_lossy(&text)))
        };
        match self.remotes.lock() {
            Ok(mut tables) => tables.entry(table.to_owned()).or_default().get_or_read(read).clone(),
            Err(_) => read(),
        }
    }
}

impl Process {
    /// A unix socket by its inode number: sock_diag(7). `copy` is a copy of it. Gives also the inode
    /// number of the network namespace of the socket, if it is not that of the process.
    pub fn unix_socket(
        &self,
        inode: u32,
        copy: BorrowedFd<'_>,
    ) -> Result<(UnixSocket, Option<u64>)> {
        self.ask_where_it_is(copy, &|network| network.unix_socket(inode))
    }

    /// A packet socket by its inode number: sock_diag(7). `copy` is a copy of it.
    pub fn packet_socket(&self, inode: u32, copy: BorrowedFd<'_>) -> Result<PacketSocket> {
        Ok(self.ask_where_it_is(copy, &|network| network.packet_socket(inode))?.0)
    }

    /// Asks about a socket in the network namespace of the process, and if it is not known there, in
    /// that of the socket.
    fn ask_where_it_is<T>(
        &self,
        copy: BorrowedFd<'_>,
        ask: &dyn Fn(&Network) -> Result<T>,
    ) -> Result<(T, Option<u64>)> {
        let not_here = match ask(self.network()) {
            Ok(found) => return Ok((found, None)),
            Err(err) => err,
        };
        let netns = match sys::socket::namespace(copy) {
            Ok(netns) => netns,
            Err(Errno::EPERM) if not_here.errno().is_none() => {
                let why = "sock_diag does not know it in the network namespace of its process, and to ask \
                           in that of the socket takes CAP_NET_ADMIN and CAP_SYS_ADMIN (run as root)";
                return Err(Error::unrestorable(why));
            }
            Err(_) => return Err(not_here),
        };
        let inode = inode_of(netns.as_fd()).at(|| "its network namespace")?.ino;
        if self.netns_inode() == Some(inode) {
            return Err(not_here);
        }
        let open = || Some(netns).filter(|_| own_netns() != Some(inode));
        let network = self.cache.networks.of(Some(inode), open);
        Ok((ask(&network)?, Some(inode)))
    }

    /// A tunnel of its network namespace, by its name: rtnetlink(7).
    pub fn tunnel(&self, name: &[u8]) -> Result<Tunnel> {
        self.network().tunnel(name)
    }

    /// The inode number of its network namespace. None if it cannot be read.
    pub fn netns_inode(&self) -> Option<u64> {
        self.namespace("net")
    }

    /// Its network namespace.
    fn network(&self) -> &Network {
        self.network.get_or_init(|| {
            let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
            let inode = self.netns_inode();
            let open = || openat(self.dir().ok()?, "ns/net", flags, Mode::empty()).ok();
            self.cache.networks.of(inode, || open().filter(|_| inode != own_netns()))
        })
    }

    /// The inode number of the network namespace of one of its sockets, if it is not that of the
    /// process; zero if it is another, and unknown which.
    pub(super) fn other_netns(&self, socket: BorrowedFd<'_>) -> Option<u64> {
        let ask = || {
            let found = sys::socket::namespace(socket).and_then(|netns| inode_of(netns.as_fd()));
            match found {
                Ok(found) => Some(found.ino).filter(|&ino| self.netns_inode() != Some(ino)),
                // SIOCGSKNS takes CAP_NET_ADMIN in that namespace.
                Err(_) if self.network().is_ours() => {
                    let own =
                        sys::socket::new(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
                    let own = own.and_then(|own| sys::socket::netns_cookie(own.as_fd())).ok()?;
                    let other = sys::socket::netns_cookie(socket).is_ok_and(|cookie| cookie != own);
                    other.then_some(0)
                }
                Err(_) => None,
            }
        };
        let Ok(cookie) = sys::socket::netns_cookie(socket) else { return ask() };
        let Ok(mut known) = self.socket_netns.lock() else { return ask() };
        *known.entry(cookie).or_insert_with(ask)
    }

    /// The multicast groups that sockets of its network namespace may have joined, each with the
    /// index of its network device.
    pub fn groups(&self) -> Arc<Vec<(IpAddr, u32)>> {
        self.network().groups(|name| self.read(name))
    }

    /// Address and port of the other end of the socket with this inode number, as a table of
    /// /proc/PID/net such as `udp` tells them. None if it is not connected.
    pub fn remote(&self, table: &str, inode: u64) -> Option<(IpAddr, u16)> {
        self.network().remotes(table, |name| self.read(name)).get(&inode).copied()
    }
}

/// The inode number of the network namespace of this process. None if it cannot be read.
pub fn own_netns() -> Option<u64> {
    own_namespace("net")
}

/// Parses an address as the kernel prints it: words of 32 bits in base 16, whose bytes in memory are
/// the address.
pub(super) fn address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    match hex.len() {
        8 => Some(IpAddr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            <[u8; 16]>::try_from(words.concat()).ok().map(IpAddr::from)
        }
        _ => None,
    }
}

/// Parses /proc/net/igmp: a line for each device, then a line for each of its groups.
fn igmp(text: &str) -> Vec<(IpAddr, u32)> {
    let mut groups = Vec::new();
    let mut device = None;
    for line in text.lines().skip(1) {
        let mut words = line.split_whitespace();
        if !line.starts_with(char::is_whitespace) {
            device = words.next().and_then(|word| word.parse().ok());
            continue;
        }
        let (group, users) = (words.next().and_then(address), words.next());
        let (Some(group), Some(device)) = (group, device) else { continue };
        // Every host is in 224.0.0.1.
        if group != IpAddr::from([224, 0, 0, 1]) || users != Some("1") {
            groups.push((group, device));
        }
    }
    groups
}

/// Parses /proc/net/igmp6: a line for each device and group.
fn igmp6(text: &str) -> Vec<(IpAddr, u32)> {
    let group = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [device, _, group, users, ..] = words[..] else { return None };
        let ip = u128::from_str_radix(group, 16).ok().map(std::net::Ipv6Addr::from_bits)?;
        // Every node is in ff01::1 and ff02::1, and in the ff02::1:ff00:0/104 of its addresses.
        let own = ["ff010000000000000000000000000001", "ff020000000000000000000000000001"];
        let of_kernel = own.contains(&group) || group.starts_with("ff0200000000000000000001ff");
        (!of_kernel || users != "1").then_some((ip.into(), device.parse().ok()?))
    };
    text.lines().filter_map(group).collect()
}

/// Parses a table of sockets of /proc/net. Those that are not connected are left out.
fn connected(text: &str) -> Remotes {
    let socket = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (ip, port) = words.get(2)?.split_once(':')?;
        let (ip, port) = (address(ip)?, u16::from_str_radix(port, 16).ok()?);
        let inode = words.get(9)?.parse().ok()?;
        (!ip.is_unspecified()).then_some((inode, (ip, port)))
    };
    text.lines().skip(1).filter_map(socket).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn processes_of_one_namespace_share_what_is_known_of_it_for_a_while() {
        let networks = Networks::default();
        let of = |inode| networks.of(inode, || None);
        assert!(Arc::ptr_eq(&of(Some(1)), &of(Some(1))));
        assert!(!Arc::ptr_eq(&of(Some(1)), &of(Some(2))) && !Arc::ptr_eq(&of(None), &of(None)));
        let of_process = |name: &str| Ok(format!("{name} is read").into_bytes());
        let begun = Instant::now();
        let first = of(Some(1)).remotes("udp", of_process);
        let again = of(Some(1)).remotes("udp", of_process);
        assert!(Arc::ptr_eq(&first, &again) || begun.elapsed() > Duration::from_secs(1));
        assert!(!Arc::ptr_eq(&first, &of(Some(1)).remotes("raw", of_process)));
    }

    #[test]
    fn tables_of_the_network_are_taken_apart() {
        let group = |ip: &str, device| (ip.parse::<IpAddr>().unwrap(), device);
        let text = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
            1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n\
            4\teth0      :     2      V3\n\t\t\t\t014DFFEF     1 0:00000000\t\t0\n\
            \t\t\t\t010000E0     2 0:00000000\t\t0\n";
        assert_eq!(igmp(text), [group("239.255.77.1", 4), group("224.0.0.1", 4)]);
        let text = "1    lo    ff020000000000000000000000000001     1 0000000C 0\n\
            4    eth0  ff0200000000000000000001ff000002     1 00000004 0\n\
            4    eth0  ff150000000000000000000000770001     1 00000004 0\n";
        assert_eq!(igmp6(text), [group("ff15::77:1", 4)]);
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt\n\
            1: 0100007F:0001 0100007F:0000 01 00000000:00000000 00:00000000 00000000 0 0 77 2 0 0\n\
            2: 00000000:0001 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 78 2 0 0\n";
        let found = connected(text);
        assert_eq!((found.len(), found[&77]), (1, ("127.0.0.1".parse().unwrap(), 0)));
    }

    proptest::proptest! {
        #[test]
        fn no_table_makes_it_panic(text in "[0-9A-Fa-f:\t\n ]{0,200}") {
            let _ = (igmp(&text), igmp6(&text), connected(&text));
        }
    }
}
