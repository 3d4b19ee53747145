//! Multicast groups that a socket has joined: ip(7), ipv6(7), RFC 3678. The kernel lists the groups
//! of a device, and tells of a socket only whether it is in a group that it is asked about.

use crate::error::{At, Error, Result};
use crate::kind::socket::option::Class;
use crate::proc::Descriptor;
use crate::sys::socket as sys;
use crate::text::escape;
use nix::errno::Errno;
use nix::libc;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

/// struct group_filter of linux/in.h before its sources, and what one of those takes.
const HEAD: usize = 144;
const ADDRESS: usize = sys::ADDRESS;
/// The most sources that are read: net.ipv4.igmp_max_msf allows 10, net.ipv6.mld_max_msf 64.
const MOST: usize = 1024;

/// A group on a device.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct MulticastGroup {
    /// Its address.
    group: String,
    /// The name of the device.
    device: String,
    /// Whether only these sources are heard, or all but these.
    only: bool,
    /// Addresses of sources.
    sources: Vec<String>,
}

/// Reads the groups that a socket has joined.
pub(crate) fn read(it: &Descriptor<'_>, class: Class) -> Result<Vec<MulticastGroup>> {
    let Some(copy) = &it.copy else { return Ok(Vec::new()) };
    let fd = copy.as_fd();
    let mut groups = Vec::new();
    for &(group, device) in it.process.groups().iter() {
        // A socket of IPv6 can be in a group of IPv4, unless it is raw.
        let v6 = class.0 == libc::AF_INET6;
        if group.is_ipv6() && !v6 || group.is_ipv4() && v6 && class.1 == libc::SOCK_RAW {
            continue;
        }
        if let Some((only, sources)) = sources(fd, group, device).at(|| "MCAST_MSFILTER")? {
            let name = sys::device_name(fd, device as i32).at(|| format!("device {device}"))?;
            let device = String::from_utf8_lossy(&name).into_owned();
            let mut sources: Vec<String> = sources.iter().map(IpAddr::to_string).collect();
            sources.sort_unstable();
            groups.push(MulticastGroup { group: group.to_string(), device, only, sources });
        }
    }
    // The kernel has them in the order in which they were joined, on any socket.
    groups.sort_unstable_by(|a: &MulticastGroup, b| {
        (&a.group, &a.device).cmp(&(&b.group, &b.device))
    });
    Ok(groups)
}

fn level(group: IpAddr) -> i32 {
    if group.is_ipv6() { libc::IPPROTO_IPV6 } else { libc::IPPROTO_IP }
}

/// A struct sockaddr_storage.
fn storage(ip: IpAddr) -> [u8; ADDRESS] {
    let mut bytes = [0; ADDRESS];
    let (family, octets, at) = match ip {
        IpAddr::V4(ip) => (libc::AF_INET, ip.octets().to_vec(), 4),
        IpAddr::V6(ip) => (libc::AF_INET6, ip.octets().to_vec(), 8),
    };
    bytes[..2].copy_from_slice(&(family as u16).to_ne_bytes());
    bytes[at..at + octets.len()].copy_from_slice(&octets);
    bytes
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match i32::from(u16::from_ne_bytes(*bytes.first_chunk()?)) {
        libc::AF_INET => Some(IpAddr::from(*bytes.get(4..)?.first_chunk::<4>()?)),
        libc::AF_INET6 => Some(IpAddr::from(*bytes.get(8..)?.first_chunk::<16>()?)),
        _ => None,
    }
}

/// A struct group_filter.
fn filter(group: IpAddr, device: u32, only: bool, sources: &[IpAddr]) -> Vec<u8> {
    let mut bytes = [&device.to_ne_bytes()[..], &[0; 4], &storage(group)].concat();
    // MCAST_INCLUDE 1, MCAST_EXCLUDE 0.
    bytes.extend(u32::from(only).to_ne_bytes());
    bytes.extend((sources.len() as u32).to_ne_bytes());
    bytes.extend(sources.iter().flat_map(|source| storage(*source)));
    bytes
}

/// Which sources of a group a socket hears, and whether only those; none if it is not in it.
fn sources(
    fd: BorrowedFd<'_>,
    group: IpAddr,
    device: u32,
) -> nix::Result<Option<(bool, Vec<IpAddr>)>> {
    // Nearly all have none, and are asked in vain.
    for most in [0, MOST] {
        let mut bytes = filter(group, device, false, &[]);
        bytes[HEAD - 4..].copy_from_slice(&(most as u32).to_ne_bytes());
        bytes.resize(HEAD + most * ADDRESS, 0);
        match sys::option_bytes(fd, level(group), libc::MCAST_MSFILTER, &mut bytes) {
            Ok(_) => (),
            Err(Errno::EADDRNOTAVAIL | Errno::ENODEV) => return Ok(None),
            Err(errno) => return Err(errno),
        }
        let word = |at: usize| {
            bytes[at..].first_chunk().map_or(0, |word: &[u8; 4]| u32::from_ne_bytes(*word))
        };
        let (mode, count) = (word(HEAD - 8), word(HEAD - 4) as usize);
        if count <= most {
            let found = bytes[HEAD..].chunks(ADDRESS).take(count).filter_map(address);
            return Ok(Some((mode == 1, found.collect())));
        }
    }
    Err(Errno::E2BIG)
}

impl MulticastGroup {
    fn parse(&self) -> Result<(IpAddr, Vec<IpAddr>)> {
        let parse = |text: &String| {
            let shown = || escape(text.as_bytes()).into_owned();
            text.parse::<IpAddr>()
                .map_err(|_| Error::malformed(format!("{} is no address", shown())))
        };
        let group = parse(&self.group)?;
        let sources = self.sources.iter().map(parse).collect::<Result<Vec<_>>>()?;
        let alike = sources.iter().all(|source| source.is_ipv6() == group.is_ipv6());
        if !group.is_multicast() || !alike || sources.len() > MOST {
            let shown = escape(self.group.as_bytes());
            return Err(Error::malformed(format!(
                "{shown} is no multicast group with its sources"
            )));
        }
        Ok((group, sources))
    }

    /// Fails with status 3 if it names no group.
    pub(crate) fn validate(&self) -> Result<()> {
        self.parse().map(drop)
    }

    /// Says why no socket can join it here.
    pub(crate) fn check(&self, fd: impl AsFd) -> Result<()> {
        sys::device_index(fd.as_fd(), self.device.as_bytes())
            .map_err(|_| {
                let shown = escape(self.device.as_bytes());
                Error::unrestorable(format!("it hears a group on {shown}, which is not here"))
            })
            .map(drop)
    }

    /// Joins it.
    pub(crate) fn join(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let MulticastGroup { group: _, device, only, sources: _ } = self;
        let (group, sources) = self.parse()?;
        let level = level(group);
        let device = sys::device_index(fd, device.as_bytes()).at(|| self.device.clone())? as u32;
        let head = [&device.to_ne_bytes()[..], &[0; 4], &storage(group)].concat();
        let set = |name, bytes: &[u8]| {
            sys::set_option_bytes(fd, level, name, bytes).at(|| format!("join {group}"))
        };
        if *only {
            for source in sources {
                set(libc::MCAST_JOIN_SOURCE_GROUP, &[&head[..], &storage(source)].concat())?;
            }
            return Ok(());
        }
        set(libc::MCAST_JOIN_GROUP, &head)?;
        match sources.is_empty() {
            true => Ok(()),
            false => set(libc::MCAST_MSFILTER, &filter(group, device, false, &sources)),
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
    fn a_group_that_is_joined_is_known_with_its_sources() {
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
                let found = read(&it, it.class().unwrap()).unwrap();
                assert_eq!(found, [wanted]);
            }
        }
    }
}
