//! Multicast groups that a socket has joined: ip(7), ipv6(7), RFC 3678. The kernel lists the groups
//! of each device (/proc/net/igmp, igmp6), but not those of a socket: each group is tried with
//! MCAST_MSFILTER.

use crate::error::{At, Error, Result};
use crate::kind::socket::inet::decode_ip;
use crate::kind::socket::option::SocketClass;
use crate::proc::Descriptor;
use crate::sys::socket as sys;
use crate::text::escape;
use nix::errno::Errno;
use nix::libc;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

/// The length of struct group_filter of linux/in.h without its sources, in bytes.
const FILTER_HEADER: usize = 144;
/// The length of a source, a struct sockaddr_storage, in bytes.
const ADDRESS: usize = sys::ADDRESS;
/// The highest number of sources that is read or joined: net.ipv4.igmp_max_msf allows 10,
/// net.ipv6.mld_max_msf 64.
const MAX_SOURCES: usize = 1024;

/// A membership in a multicast group on one device.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct MulticastGroup {
    /// The address of the group.
    group: String,
    /// The name of the device.
    device: String,
    /// The filter mode of `sources`: only these are received (MCAST_INCLUDE), or all but these
    /// (MCAST_EXCLUDE).
    only: bool,
    /// The addresses of the sources.
    sources: Vec<String>,
}

/// Reads the groups that a socket has joined, sorted by address and device. Source: ip(7),
/// MCAST_MSFILTER of linux/in.h.
pub(crate) fn read_groups(
    descriptor: &Descriptor<'_>,
    class: SocketClass,
) -> Result<Vec<MulticastGroup>> {
    let Some(copy) = &descriptor.copy else { return Ok(Vec::new()) };
    let fd = copy.as_fd();
    let mut groups = Vec::new();
    for &(group, device) in descriptor.process.groups().iter() {
        // An IPv6 socket can join an IPv4 group, unless it is a raw socket.
        let v6 = class.0 == libc::AF_INET6;
        if group.is_ipv6() && !v6 || group.is_ipv4() && v6 && class.1 == libc::SOCK_RAW {
            continue;
        }
        if let Some((only, sources)) = read_sources(fd, group, device).at(|| "MCAST_MSFILTER")? {
            let name = sys::device_name(fd, device as i32).at(|| format!("device {device}"))?;
            let device = String::from_utf8_lossy(&name).into_owned();
            let mut sources: Vec<String> = sources.iter().map(IpAddr::to_string).collect();
            sources.sort_unstable();
            groups.push(MulticastGroup { group: group.to_string(), device, only, sources });
        }
    }
    // The order of the kernel depends on the joins of all sockets.
    groups.sort_unstable_by(|a: &MulticastGroup, b| {
        (&a.group, &a.device).cmp(&(&b.group, &b.device))
    });
    Ok(groups)
}

/// The level of the MCAST_* options of a group.
fn option_level(group: IpAddr) -> i32 {
    if group.is_ipv6() { libc::IPPROTO_IPV6 } else { libc::IPPROTO_IP }
}

/// Encodes a struct sockaddr_storage.
fn sockaddr_storage(ip: IpAddr) -> [u8; ADDRESS] {
    let mut bytes = [0; ADDRESS];
    let (family, octets, at) = match ip {
        IpAddr::V4(ip) => (libc::AF_INET, ip.octets().to_vec(), 4),
        IpAddr::V6(ip) => (libc::AF_INET6, ip.octets().to_vec(), 8),
    };
    bytes[..2].copy_from_slice(&(family as u16).to_ne_bytes());
    bytes[at..at + octets.len()].copy_from_slice(&octets);
    bytes
}

/// Encodes a struct group_filter.
fn group_filter(group: IpAddr, device: u32, only: bool, sources: &[IpAddr]) -> Vec<u8> {
    let mut bytes = [&device.to_ne_bytes()[..], &[0; 4], &sockaddr_storage(group)].concat();
    // MCAST_INCLUDE 1, MCAST_EXCLUDE 0.
    bytes.extend(u32::from(only).to_ne_bytes());
    bytes.extend((sources.len() as u32).to_ne_bytes());
    bytes.extend(sources.iter().flat_map(|source| sockaddr_storage(*source)));
    bytes
}

/// The filter mode (true: only these sources) and the sources of a group; none if the socket has
/// not joined it. Fails with E2BIG beyond [`MAX_SOURCES`].
fn read_sources(
    fd: BorrowedFd<'_>,
    group: IpAddr,
    device: u32,
) -> nix::Result<Option<(bool, Vec<IpAddr>)>> {
    // Most sockets have not joined the group, or have no sources: so a buffer without
    // sources is tried first.
    for room in [0, MAX_SOURCES] {
        let mut bytes = group_filter(group, device, false, &[]);
        bytes[FILTER_HEADER - 4..].copy_from_slice(&(room as u32).to_ne_bytes());
        bytes.resize(FILTER_HEADER + room * ADDRESS, 0);
        match sys::option_bytes(fd, option_level(group), libc::MCAST_MSFILTER, &mut bytes) {
            Ok(_) => (),
            Err(Errno::EADDRNOTAVAIL | Errno::ENODEV) => return Ok(None),
            Err(errno) => return Err(errno),
        }
        let word = |at: usize| {
            bytes[at..].first_chunk().map_or(0, |word: &[u8; 4]| u32::from_ne_bytes(*word))
        };
        let (mode, count) = (word(FILTER_HEADER - 8), word(FILTER_HEADER - 4) as usize);
        if count <= room {
            let sources = bytes[FILTER_HEADER..].chunks(ADDRESS).take(count);
            let found = sources.filter_map(decode_ip);
            return Ok(Some((mode == 1, found.collect())));
        }
    }
    Err(Errno::E2BIG)
}

impl MulticastGroup {
    /// The addresses of the group and its sources. Fails with status 3 if one is not an address,
    /// the group is not a multicast address, a source is of the other family, or there are too
    /// many.
    fn parse(&self) -> Result<(IpAddr, Vec<IpAddr>)> {
        let parse = |text: &String| {
            let shown = || escape(text.as_bytes()).into_owned();
            text.parse::<IpAddr>()
                .map_err(|_| Error::malformed(format!("{} is not an IP address", shown())))
        };
        let group = parse(&self.group)?;
        let sources = self.sources.iter().map(parse).collect::<Result<Vec<_>>>()?;
        let same_family = sources.iter().all(|source| source.is_ipv6() == group.is_ipv6());
        if !group.is_multicast() || !same_family || sources.len() > MAX_SOURCES {
            let shown = escape(self.group.as_bytes());
            return Err(Error::malformed(format!(
                "{shown} is not a multicast group, or its sources are not valid"
            )));
        }
        Ok((group, sources))
    }

    /// The group and its device, for messages.
    pub(crate) fn shown(&self) -> String {
        let (group, device) = (escape(self.group.as_bytes()), escape(self.device.as_bytes()));
        format!("{group} on device {device}")
    }

    /// Fails with status 3 if the addresses are not valid.
    pub(crate) fn validate(&self) -> Result<()> {
        self.parse().map(drop)
    }

    /// Fails with status 6 if the device does not exist in the network namespace of `fd`, a socket.
    pub(crate) fn check(&self, fd: impl AsFd) -> Result<()> {
        sys::device_index(fd.as_fd(), self.device.as_bytes())
            .map_err(|_| {
                let shown = escape(self.device.as_bytes());
                Error::unrestorable(format!(
                    "it has joined a group on device {shown}, which does not exist here"
                ))
            })
            .map(drop)
    }

    /// Joins the group: MCAST_JOIN_GROUP and MCAST_JOIN_SOURCE_GROUP.
    pub(crate) fn join(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let MulticastGroup { group: _, device, only, sources: _ } = self;
        let (group, sources) = self.parse()?;
        let level = option_level(group);
        let device = sys::device_index(fd, device.as_bytes()).at(|| self.device.clone())? as u32;
        let head = [&device.to_ne_bytes()[..], &[0; 4], &sockaddr_storage(group)].concat();
        let set = |name, bytes: &[u8]| {
            sys::set_option_bytes(fd, level, name, bytes).at(|| format!("join {group}"))
        };
        if *only {
            for source in sources {
                set(
                    libc::MCAST_JOIN_SOURCE_GROUP,
                    &[&head[..], &sockaddr_storage(source)].concat(),
                )?;
            }
            return Ok(());
        }
        set(libc::MCAST_JOIN_GROUP, &head)?;
        match sources.is_empty() {
            true => Ok(()),
            false => set(libc::MCAST_MSFILTER, &group_filter(group, device, false, &sources)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::Process;
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;

    #[test]
    fn joined_groups_are_read_with_their_sources() {
        for (host, group, source) in [
            ("127.0.0.1:0", "239.255.77.1", "192.0.2.9"),
            ("[::1]:0", "ff15::77:1", "2001:db8::9"),
            ("[::1]:0", "239.255.77.2", "192.0.2.9"),
        ] {
            for (only, sources) in [(false, vec![]), (false, vec![source]), (true, vec![source])] {
                let socket = UdpSocket::bind(host).unwrap();
                let sources = sources.into_iter().map(str::to_owned).collect();
                let wanted = MulticastGroup {
                    group: group.to_owned(),
                    device: "lo".to_owned(),
                    only,
                    sources,
                };
                wanted.check(&socket).unwrap();
                wanted.join(socket.as_fd()).unwrap();
                let process = Process::open(std::process::id() as i32).unwrap();
                let fd = socket.as_raw_fd();
                let it = Descriptor::read(&process, fd, true, &mut Vec::new()).unwrap();
                let found = read_groups(&it, it.socket_class().unwrap()).unwrap();
                assert_eq!(found, [wanted]);
            }
        }
    }
}
