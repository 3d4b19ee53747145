//! Socket options: one table, walked to read them from a socket and to set them on another.
//!
//! What is recorded is only what a fresh socket of the same family, type and protocol has not; that
//! is found out by asking one, once a process. Which options it has at all is found out so too.

use crate::error::{At, Error, Result};
use crate::sys::socket as sys;
use nix::errno::Errno;
use nix::libc;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, RwLock};

/// Family, type and protocol: SO_DOMAIN, SO_TYPE, SO_PROTOCOL of socket(7).
pub(crate) type Class = (i32, i32, i32);

/// What an option has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OptionValue {
    /// A number; times are in microseconds, lingering in seconds with -1 for none.
    Int(i64),
    /// A name, a struct of the kernel, or the instructions of a filter.
    Bytes(Vec<u8>),
}

/// What a socket has and a fresh one has not, by the names of socket(7), ip(7), ipv6(7), tcp(7),
/// udp(7), raw(7), netlink(7), packet(7).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct SocketOptions(BTreeMap<String, OptionValue>);

/// When an option is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// On a new socket: some have a say in bind(2).
    Created,
    /// When it is bound, connected and filled: what would keep its queue from being filled.
    Last,
}

/// How a value stands in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    /// An int.
    Int,
    /// An unsigned 64 bit number.
    Long,
    /// The size of a buffer, which the kernel doubles when it is set. The forcing option goes
    /// beyond net.core.?mem_max (CAP_NET_ADMIN). Only one that was set (this bit of SO_BUF_LOCK,
    /// Linux 5.15) is recorded: the others grow and shrink on their own.
    Buffer { force: i32, lock: i32 },
    /// struct linger.
    Linger,
    /// struct timeval.
    Time,
    /// A name of at most 15 bytes.
    Name,
    /// The index of a network device, in network byte order if so said; recorded by its name.
    Device { swapped: bool },
    /// A classic filter.
    Filter,
    /// At most so many bytes.
    Bytes(usize),
}

/// What follows if it cannot be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IfRefused {
    /// The socket would do other things than before: it is refused.
    Must,
    /// It would be slower: that is said.
    May,
}

struct OptionSpec {
    name: &'static str,
    level: i32,
    number: i32,
    form: Encoding,
    phase: Phase,
    need: IfRefused,
}

use Encoding::{Int, Linger, Long, Name, Time};

const fn row(name: &'static str, level: i32, number: i32, form: Encoding) -> OptionSpec {
    OptionSpec { name, level, number, form, phase: Phase::Created, need: IfRefused::Must }
}

impl OptionSpec {
    const fn last(mut self) -> OptionSpec {
        self.phase = Phase::Last;
        self
    }

    const fn may(mut self) -> OptionSpec {
        self.need = IfRefused::May;
        self
    }
}

const SOCKET: i32 = libc::SOL_SOCKET;
const IP: i32 = libc::IPPROTO_IP;
const IPV6: i32 = libc::IPPROTO_IPV6;
const TCP: i32 = libc::IPPROTO_TCP;
const UDP: i32 = libc::IPPROTO_UDP;
const NETLINK: i32 = libc::SOL_NETLINK;
const PACKET: i32 = libc::SOL_PACKET;
const SO_BUF_LOCK: i32 = libc::SO_BUF_LOCK;
const SOL_UDPLITE: i32 = libc::IPPROTO_UDPLITE;
const SOL_RAW: i32 = libc::SOL_RAW;
const SNDBUF: Encoding = Encoding::Buffer { force: libc::SO_SNDBUFFORCE, lock: 1 };
const RCVBUF: Encoding = Encoding::Buffer { force: libc::SO_RCVBUFFORCE, lock: 2 };
const DEVICE: Encoding = Encoding::Device { swapped: false };
const SWAPPED_DEVICE: Encoding = Encoding::Device { swapped: true };
/// An extension header of IPv6 is at most 8 * 256 bytes (RFC 8200).
const HEADER: Encoding = Encoding::Bytes(2048);

/// All options that can be read and set, in the order in which they are set. Numbers without a name
/// in libc are those of linux/*.h and asm-generic/socket.h, for all but mips,
/// parisc, sparc and alpha.
///
/// Left out: what only says something (SO_ERROR, which asking would clear; SO_PEERCRED, TCP_INFO),
/// what is a state of the moment (TCP_QUICKACK), what is a secret (TCP_FASTOPEN_KEY), and what
/// settles by itself when the socket listens (SO_TXREHASH).
static ROWS: &[OptionSpec] = &[
    // IP_TOS sets SO_PRIORITY too, so that comes after it.
    row("IP_TOS", IP, libc::IP_TOS, Int),
    row("IP_TTL", IP, libc::IP_TTL, Int),
    row("IP_HDRINCL", IP, libc::IP_HDRINCL, Int),
    row("IP_OPTIONS", IP, libc::IP_OPTIONS, Encoding::Bytes(40)),
    row("IP_RECVOPTS", IP, libc::IP_RECVOPTS, Int),
    row("IP_RETOPTS", IP, libc::IP_RETOPTS, Int),
    row("IP_PKTINFO", IP, libc::IP_PKTINFO, Int),
    row("IP_MTU_DISCOVER", IP, libc::IP_MTU_DISCOVER, Int),
    row("IP_RECVERR", IP, libc::IP_RECVERR, Int),
    row("IP_RECVTTL", IP, libc::IP_RECVTTL, Int),
    row("IP_RECVTOS", IP, libc::IP_RECVTOS, Int),
    row("IP_FREEBIND", IP, libc::IP_FREEBIND, Int),
    row("IP_TRANSPARENT", IP, libc::IP_TRANSPARENT, Int),
    row("IP_PASSSEC", IP, libc::IP_PASSSEC, Int),
    row("IP_RECVORIGDSTADDR", IP, libc::IP_RECVORIGDSTADDR, Int),
    row("IP_MINTTL", IP, libc::IP_MINTTL, Int),
    row("IP_NODEFRAG", IP, libc::IP_NODEFRAG, Int),
    row("IP_CHECKSUM", IP, libc::IP_CHECKSUM, Int),
    row("IP_BIND_ADDRESS_NO_PORT", IP, libc::IP_BIND_ADDRESS_NO_PORT, Int),
    row("IP_RECVFRAGSIZE", IP, libc::IP_RECVFRAGSIZE, Int),
    row("IP_RECVERR_RFC4884", IP, 26, Int),
    row("IP_LOCAL_PORT_RANGE", IP, 51, Int),
    row("IP_MULTICAST_IF", IP, libc::IP_MULTICAST_IF, Encoding::Bytes(4)),
    row("IP_MULTICAST_TTL", IP, libc::IP_MULTICAST_TTL, Int),
    row("IP_MULTICAST_LOOP", IP, libc::IP_MULTICAST_LOOP, Int),
    row("IP_MULTICAST_ALL", IP, libc::IP_MULTICAST_ALL, Int),
    row("IP_UNICAST_IF", IP, libc::IP_UNICAST_IF, SWAPPED_DEVICE),
    row("IPV6_V6ONLY", IPV6, libc::IPV6_V6ONLY, Int),
    row("IPV6_UNICAST_HOPS", IPV6, libc::IPV6_UNICAST_HOPS, Int),
    row("IPV6_MULTICAST_IF", IPV6, libc::IPV6_MULTICAST_IF, DEVICE),
    row("IPV6_MULTICAST_HOPS", IPV6, libc::IPV6_MULTICAST_HOPS, Int),
    row("IPV6_MULTICAST_LOOP", IPV6, libc::IPV6_MULTICAST_LOOP, Int),
    row("IPV6_MULTICAST_ALL", IPV6, libc::IPV6_MULTICAST_ALL, Int),
    row("IPV6_UNICAST_IF", IPV6, libc::IPV6_UNICAST_IF, SWAPPED_DEVICE),
    row("IPV6_MTU_DISCOVER", IPV6, libc::IPV6_MTU_DISCOVER, Int),
    row("IPV6_RECVERR", IPV6, libc::IPV6_RECVERR, Int),
    row("IPV6_RECVERR_RFC4884", IPV6, 31, Int),
    row("IPV6_RECVPKTINFO", IPV6, libc::IPV6_RECVPKTINFO, Int),
    row("IPV6_2292PKTINFO", IPV6, libc::IPV6_2292PKTINFO, Int),
    row("IPV6_RECVHOPLIMIT", IPV6, libc::IPV6_RECVHOPLIMIT, Int),
    row("IPV6_2292HOPLIMIT", IPV6, libc::IPV6_2292HOPLIMIT, Int),
    row("IPV6_RECVRTHDR", IPV6, libc::IPV6_RECVRTHDR, Int),
    row("IPV6_2292RTHDR", IPV6, libc::IPV6_2292RTHDR, Int),
    row("IPV6_RECVHOPOPTS", IPV6, libc::IPV6_RECVHOPOPTS, Int),
    row("IPV6_2292HOPOPTS", IPV6, libc::IPV6_2292HOPOPTS, Int),
    row("IPV6_RECVDSTOPTS", IPV6, libc::IPV6_RECVDSTOPTS, Int),
    row("IPV6_2292DSTOPTS", IPV6, libc::IPV6_2292DSTOPTS, Int),
    row("IPV6_RECVTCLASS", IPV6, libc::IPV6_RECVTCLASS, Int),
    row("IPV6_TCLASS", IPV6, libc::IPV6_TCLASS, Int),
    row("IPV6_RECVPATHMTU", IPV6, libc::IPV6_RECVPATHMTU, Int),
    row("IPV6_RECVORIGDSTADDR", IPV6, libc::IPV6_RECVORIGDSTADDR, Int),
    row("IPV6_RECVFRAGSIZE", IPV6, libc::IPV6_RECVFRAGSIZE, Int),
    row("IPV6_FLOWINFO", IPV6, libc::IPV6_FLOWINFO, Int),
    row("IPV6_FLOWINFO_SEND", IPV6, libc::IPV6_FLOWINFO_SEND, Int),
    row("IPV6_AUTOFLOWLABEL", IPV6, libc::IPV6_AUTOFLOWLABEL, Int),
    row("IPV6_DONTFRAG", IPV6, libc::IPV6_DONTFRAG, Int),
    row("IPV6_TRANSPARENT", IPV6, libc::IPV6_TRANSPARENT, Int),
    row("IPV6_FREEBIND", IPV6, libc::IPV6_FREEBIND, Int),
    row("IPV6_ADDR_PREFERENCES", IPV6, libc::IPV6_ADDR_PREFERENCES, Int),
    row("IPV6_MINHOPCOUNT", IPV6, libc::IPV6_MINHOPCOUNT, Int),
    row("IPV6_ROUTER_ALERT_ISOLATE", IPV6, libc::IPV6_ROUTER_ALERT_ISOLATE, Int),
    row("IPV6_HDRINCL", IPV6, libc::IPV6_HDRINCL, Int),
    row("IPV6_HOPOPTS", IPV6, libc::IPV6_HOPOPTS, HEADER),
    row("IPV6_RTHDRDSTOPTS", IPV6, libc::IPV6_RTHDRDSTOPTS, HEADER),
    row("IPV6_RTHDR", IPV6, libc::IPV6_RTHDR, HEADER),
    row("IPV6_DSTOPTS", IPV6, libc::IPV6_DSTOPTS, HEADER),
    row("ICMP_FILTER", SOL_RAW, 1, Int),
    row("IPV6_CHECKSUM", SOL_RAW, 7, Int),
    row("ICMPV6_FILTER", libc::IPPROTO_ICMPV6, 1, Encoding::Bytes(32)),
    row("SO_DEBUG", SOCKET, libc::SO_DEBUG, Int).may(),
    row("SO_REUSEADDR", SOCKET, libc::SO_REUSEADDR, Int),
    row("SO_REUSEPORT", SOCKET, libc::SO_REUSEPORT, Int),
    row("SO_KEEPALIVE", SOCKET, libc::SO_KEEPALIVE, Int),
    row("SO_LINGER", SOCKET, libc::SO_LINGER, Linger),
    row("SO_BROADCAST", SOCKET, libc::SO_BROADCAST, Int),
    row("SO_OOBINLINE", SOCKET, libc::SO_OOBINLINE, Int),
    row("SO_DONTROUTE", SOCKET, libc::SO_DONTROUTE, Int),
    row("SO_PRIORITY", SOCKET, libc::SO_PRIORITY, Int).may(),
    row("SO_RCVLOWAT", SOCKET, libc::SO_RCVLOWAT, Int),
    row("SO_SNDBUF", SOCKET, libc::SO_SNDBUF, SNDBUF).may(),
    row("SO_RCVBUF", SOCKET, libc::SO_RCVBUF, RCVBUF).may(),
    row("SO_RESERVE_MEM", SOCKET, libc::SO_RESERVE_MEM, Int).may(),
    row("SO_RCVTIMEO", SOCKET, libc::SO_RCVTIMEO, Time),
    row("SO_SNDTIMEO", SOCKET, libc::SO_SNDTIMEO, Time),
    // With these set more than what was sent would wait in the queue, or less could be sent.
    row("SO_PASSCRED", SOCKET, libc::SO_PASSCRED, Int).last(),
    row("SO_PASSSEC", SOCKET, libc::SO_PASSSEC, Int).last(),
    row("SO_PASSPIDFD", SOCKET, libc::SO_PASSPIDFD, Int).last(),
    row("SO_PASSRIGHTS", SOCKET, 83, Int).last(),
    row("SO_TIMESTAMP", SOCKET, libc::SO_TIMESTAMP, Int),
    row("SO_TIMESTAMPNS", SOCKET, libc::SO_TIMESTAMPNS, Int),
    row("SO_TIMESTAMPING", SOCKET, libc::SO_TIMESTAMPING, Encoding::Bytes(8)),
    // These say that the times are of 64 bits everywhere, the ones above too.
    row("SO_TIMESTAMP_NEW", SOCKET, 63, Int),
    row("SO_TIMESTAMPNS_NEW", SOCKET, 64, Int),
    row("SO_TIMESTAMPING_NEW", SOCKET, 65, Encoding::Bytes(8)),
    row("SO_MARK", SOCKET, libc::SO_MARK, Int),
    row("SO_RCVMARK", SOCKET, libc::SO_RCVMARK, Int),
    row("SO_RCVPRIORITY", SOCKET, 82, Int),
    row("SO_BINDTODEVICE", SOCKET, libc::SO_BINDTODEVICE, Name),
    row("SO_BUSY_POLL", SOCKET, libc::SO_BUSY_POLL, Int).may(),
    row("SO_PREFER_BUSY_POLL", SOCKET, libc::SO_PREFER_BUSY_POLL, Int).may(),
    row("SO_BUSY_POLL_BUDGET", SOCKET, libc::SO_BUSY_POLL_BUDGET, Int).may(),
    row("SO_NO_CHECK", SOCKET, libc::SO_NO_CHECK, Int),
    row("SO_RXQ_OVFL", SOCKET, libc::SO_RXQ_OVFL, Int),
    row("SO_WIFI_STATUS", SOCKET, libc::SO_WIFI_STATUS, Int),
    row("SO_NOFCS", SOCKET, libc::SO_NOFCS, Int),
    row("SO_SELECT_ERR_QUEUE", SOCKET, libc::SO_SELECT_ERR_QUEUE, Int),
    row("SO_MAX_PACING_RATE", SOCKET, libc::SO_MAX_PACING_RATE, Long).may(),
    row("SO_INCOMING_CPU", SOCKET, libc::SO_INCOMING_CPU, Int).may(),
    row("SO_ZEROCOPY", SOCKET, libc::SO_ZEROCOPY, Int),
    row("SO_TXTIME", SOCKET, libc::SO_TXTIME, Encoding::Bytes(8)),
    row("SO_INQ", SOCKET, 84, Int),
    row("TCP_NODELAY", TCP, libc::TCP_NODELAY, Int),
    row("TCP_MAXSEG", TCP, libc::TCP_MAXSEG, Int),
    row("TCP_CORK", TCP, libc::TCP_CORK, Int),
    row("TCP_KEEPIDLE", TCP, libc::TCP_KEEPIDLE, Int),
    row("TCP_KEEPINTVL", TCP, libc::TCP_KEEPINTVL, Int),
    row("TCP_KEEPCNT", TCP, libc::TCP_KEEPCNT, Int),
    row("TCP_SYNCNT", TCP, libc::TCP_SYNCNT, Int),
    row("TCP_LINGER2", TCP, libc::TCP_LINGER2, Int),
    row("TCP_DEFER_ACCEPT", TCP, libc::TCP_DEFER_ACCEPT, Int),
    row("TCP_WINDOW_CLAMP", TCP, libc::TCP_WINDOW_CLAMP, Int),
    row("TCP_CONGESTION", TCP, libc::TCP_CONGESTION, Name).may(),
    row("TCP_THIN_LINEAR_TIMEOUTS", TCP, libc::TCP_THIN_LINEAR_TIMEOUTS, Int),
    row("TCP_USER_TIMEOUT", TCP, libc::TCP_USER_TIMEOUT, Int),
    row("TCP_FASTOPEN", TCP, libc::TCP_FASTOPEN, Int),
    row("TCP_FASTOPEN_CONNECT", TCP, libc::TCP_FASTOPEN_CONNECT, Int),
    row("TCP_FASTOPEN_NO_COOKIE", TCP, libc::TCP_FASTOPEN_NO_COOKIE, Int),
    row("TCP_NOTSENT_LOWAT", TCP, libc::TCP_NOTSENT_LOWAT, Int),
    row("TCP_SAVE_SYN", TCP, libc::TCP_SAVE_SYN, Int),
    row("TCP_INQ", TCP, libc::TCP_INQ, Int),
    row("TCP_TX_DELAY", TCP, 37, Int),
    row("TCP_RTO_MAX_MS", TCP, 44, Int),
    row("TCP_RTO_MIN_US", TCP, 45, Int),
    row("TCP_DELACK_MAX_US", TCP, 46, Int),
    row("UDP_ENCAP", UDP, libc::UDP_ENCAP, Int).last(),
    row("UDP_NO_CHECK6_TX", UDP, libc::UDP_NO_CHECK6_TX, Int),
    row("UDP_NO_CHECK6_RX", UDP, libc::UDP_NO_CHECK6_RX, Int),
    row("UDP_SEGMENT", UDP, libc::UDP_SEGMENT, Int),
    row("UDP_GRO", UDP, libc::UDP_GRO, Int).last(),
    row("UDP_CORK", UDP, libc::UDP_CORK, Int).last(),
    row("UDPLITE_SEND_CSCOV", SOL_UDPLITE, 10, Int),
    row("UDPLITE_RECV_CSCOV", SOL_UDPLITE, 11, Int),
    row("NETLINK_PKTINFO", NETLINK, libc::NETLINK_PKTINFO, Int),
    row("NETLINK_BROADCAST_ERROR", NETLINK, libc::NETLINK_BROADCAST_ERROR, Int),
    row("NETLINK_NO_ENOBUFS", NETLINK, libc::NETLINK_NO_ENOBUFS, Int),
    row("NETLINK_LISTEN_ALL_NSID", NETLINK, libc::NETLINK_LISTEN_ALL_NSID, Int),
    row("NETLINK_CAP_ACK", NETLINK, libc::NETLINK_CAP_ACK, Int),
    row("NETLINK_EXT_ACK", NETLINK, libc::NETLINK_EXT_ACK, Int),
    row("NETLINK_GET_STRICT_CHK", NETLINK, libc::NETLINK_GET_STRICT_CHK, Int),
    row("PACKET_COPY_THRESH", PACKET, 7, Int),
    row("PACKET_AUXDATA", PACKET, libc::PACKET_AUXDATA, Int),
    row("PACKET_ORIGDEV", PACKET, 9, Int),
    row("PACKET_VERSION", PACKET, libc::PACKET_VERSION, Int),
    row("PACKET_RESERVE", PACKET, libc::PACKET_RESERVE, Int),
    row("PACKET_LOSS", PACKET, libc::PACKET_LOSS, Int),
    // It also says whether there is a header at all, which is PACKET_VNET_HDR.
    row("PACKET_VNET_HDR_SZ", PACKET, 24, Int),
    row("PACKET_VNET_HDR", PACKET, 15, Int),
    row("PACKET_TIMESTAMP", PACKET, libc::PACKET_TIMESTAMP, Int),
    row("PACKET_TX_HAS_OFF", PACKET, 19, Int),
    row("PACKET_QDISC_BYPASS", PACKET, libc::PACKET_QDISC_BYPASS, Int),
    row("PACKET_IGNORE_OUTGOING", PACKET, libc::PACKET_IGNORE_OUTGOING, Int),
    row("SO_ATTACH_FILTER", SOCKET, libc::SO_ATTACH_FILTER, Encoding::Filter).last(),
    row("SO_PEEK_OFF", SOCKET, libc::SO_PEEK_OFF, Int).last(),
    // After this one no filter can be changed, by nobody.
    row("SO_LOCK_FILTER", SOCKET, libc::SO_LOCK_FILTER, Int).last(),
];

/// The most instructions of a filter: BPF_MAXINSNS.
const MAX_FILTER: usize = 4096 * 8;
/// The longest name of a device or algorithm, with its NUL: IFNAMSIZ, TCP_CA_NAME_MAX.
const MAX_NAME: usize = 16;
/// The most bytes that any option but a filter has.
const MAX: usize = 2048;

impl OptionSpec {
    /// How many bytes are asked for. Some options change their meaning with the length.
    fn room(&self) -> usize {
        match self.form {
            Encoding::Int | Encoding::Buffer { .. } | Encoding::Device { .. } => 4,
            Encoding::Long | Encoding::Linger => 8,
            Encoding::Time | Encoding::Name => 16,
            Encoding::Filter => 0,
            Encoding::Bytes(most) => most,
        }
    }

    /// Asks a socket: the bytes, in their number.
    fn ask(&self, fd: BorrowedFd<'_>, into: &mut [u8; MAX]) -> nix::Result<usize> {
        let room = self.room();
        match self.form {
            // An extended filter has no instructions to give.
            Encoding::Filter => match sys::option_bytes(fd, self.level, self.number, &mut []) {
                Err(Errno::EACCES) => Ok(MAX),
                count => count.map(|count| (count * 8).min(MAX)),
            },
            _ => sys::option_bytes(fd, self.level, self.number, &mut into[..room])
                .map(|len| len.min(room)),
        }
    }

    /// What the bytes mean.
    fn value(&self, fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<OptionValue> {
        let int = |at: usize| {
            let four = bytes.get(at..at + 4).and_then(|four| <[u8; 4]>::try_from(four).ok());
            four.map_or(0, i32::from_ne_bytes)
        };
        let long = |at: usize| {
            let eight = bytes.get(at..at + 8).and_then(|eight| <[u8; 8]>::try_from(eight).ok());
            eight.map_or(0, i64::from_ne_bytes)
        };
        Ok(match self.form {
            Encoding::Int | Encoding::Buffer { .. } if bytes.len() == 1 => {
                OptionValue::Int(bytes[0].into())
            }
            Encoding::Int | Encoding::Buffer { .. } => OptionValue::Int(int(0).into()),
            Encoding::Long => {
                OptionValue::Int(if bytes.len() < 8 { int(0).into() } else { long(0) })
            }
            Encoding::Linger => OptionValue::Int(if int(0) == 0 { -1 } else { int(4).into() }),
            Encoding::Time => {
                OptionValue::Int(long(0).saturating_mul(1_000_000).saturating_add(long(8)))
            }
            Encoding::Name => {
                OptionValue::Bytes(bytes.iter().copied().take_while(|&b| b != 0).collect())
            }
            Encoding::Device { swapped } => {
                let index = if swapped { i32::from_be(int(0)) } else { int(0) };
                OptionValue::Bytes(sys::device_name(fd, index).at(|| format!("device {index}"))?)
            }
            Encoding::Filter => {
                let mut program = vec![0; MAX_FILTER];
                let count = sys::option_bytes(fd, self.level, self.number, &mut program);
                let count = match count {
                    Err(Errno::EACCES) => {
                        return Err(Error::unrestorable("its extended filter cannot be read"));
                    }
                    count => count?,
                };
                program.truncate(count * 8);
                OptionValue::Bytes(program)
            }
            Encoding::Bytes(_) => OptionValue::Bytes(bytes.to_vec()),
        })
    }

    /// Whether a value of an image is one that this option can have.
    fn check(&self, value: &OptionValue) -> Result<()> {
        let good = match (self.form, value) {
            (Encoding::Int, OptionValue::Int(value)) => i32::try_from(*value).is_ok(),
            (Encoding::Buffer { .. }, OptionValue::Int(value)) => {
                (0..=i32::MAX.into()).contains(value)
            }
            (Encoding::Long, OptionValue::Int(_)) => true,
            (Encoding::Linger, OptionValue::Int(value)) => (-1..=i32::MAX.into()).contains(value),
            (Encoding::Time, OptionValue::Int(value)) => *value >= 0,
            (Encoding::Name | Encoding::Device { .. }, OptionValue::Bytes(name)) => {
                !name.is_empty() && name.len() < MAX_NAME && !name.contains(&0)
            }
            (Encoding::Filter, OptionValue::Bytes(program)) => {
                !program.is_empty() && program.len() <= MAX_FILTER && program.len() % 8 == 0
            }
            (Encoding::Bytes(most), OptionValue::Bytes(bytes)) => bytes.len() <= most,
            _ => false,
        };
        if good { Ok(()) } else { Err(Error::malformed(format!("no value of {}", self.name))) }
    }

    /// Sets it.
    fn set(&self, fd: BorrowedFd<'_>, value: &OptionValue) -> nix::Result<()> {
        let put = |bytes: &[u8]| sys::set_option_bytes(fd, self.level, self.number, bytes);
        match (self.form, value) {
            (Encoding::Int, &OptionValue::Int(value)) => put(&(value as i32).to_ne_bytes()),
            (Encoding::Long, OptionValue::Int(value)) => put(&value.to_ne_bytes()),
            (Encoding::Buffer { force, .. }, &OptionValue::Int(value)) => {
                let half = value as i32 / 2;
                match sys::set_option(fd, self.level, force, half) {
                    Err(Errno::EPERM) => put(&half.to_ne_bytes())?,
                    done => done?,
                }
                match sys::option(fd, self.level, self.number)? {
                    now if now == value as i32 => Ok(()),
                    // Its limit is net.core.wmem_max or rmem_max.
                    _ => Err(Errno::EPERM),
                }
            }
            (Encoding::Linger, &OptionValue::Int(value)) => {
                let (on, seconds) = (i32::from(value >= 0), value.max(0) as i32);
                put(&[on.to_ne_bytes(), seconds.to_ne_bytes()].concat())
            }
            (Encoding::Time, &OptionValue::Int(value)) => {
                let (seconds, rest) = (value / 1_000_000, value % 1_000_000);
                put(&[seconds.to_ne_bytes(), rest.to_ne_bytes()].concat())
            }
            (Encoding::Device { swapped }, OptionValue::Bytes(name)) => {
                let index = sys::device_index(fd, name)?;
                put(&(if swapped { index.to_be() } else { index }).to_ne_bytes())
            }
            (Encoding::Filter, OptionValue::Bytes(program)) => sys::set_filter(fd, program),
            (Encoding::Name | Encoding::Bytes(_), OptionValue::Bytes(bytes)) => put(bytes),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// What every socket has, and no code of a unix socket asks for (net/unix/af_unix.c, Linux 6.18):
/// devices, ports and packets are of networks.
const OF_NETWORKS: &[&str] = &[
    "SO_DEBUG",
    "SO_REUSEADDR",
    "SO_REUSEPORT",
    "SO_KEEPALIVE",
    "SO_BROADCAST",
    "SO_DONTROUTE",
    "SO_RESERVE_MEM",
    "SO_MARK",
    "SO_RCVMARK",
    "SO_RCVPRIORITY",
    "SO_BINDTODEVICE",
    "SO_BUSY_POLL",
    "SO_PREFER_BUSY_POLL",
    "SO_BUSY_POLL_BUDGET",
    "SO_NO_CHECK",
    "SO_RXQ_OVFL",
    "SO_WIFI_STATUS",
    "SO_NOFCS",
    "SO_SELECT_ERR_QUEUE",
    "SO_MAX_PACING_RATE",
    "SO_INCOMING_CPU",
    "SO_ZEROCOPY",
    "SO_TXTIME",
];

/// What sockets with messages have, and no code of a stream of bytes asks for: what is said of a
/// packet, and what may keep it out.
const OF_MESSAGES: &[&str] = &[
    "SO_TIMESTAMP",
    "SO_TIMESTAMPNS",
    "SO_TIMESTAMPING",
    "SO_TIMESTAMP_NEW",
    "SO_TIMESTAMPNS_NEW",
    "SO_TIMESTAMPING_NEW",
    "SO_ATTACH_FILTER",
    "SO_LOCK_FILTER",
];

/// What a stream of networks takes from the packet by which it was begun, and nobody can set (EINVAL
/// of do_ip_setsockopt, net/ipv4/ip_sockglue.c).
const OF_GROUPS: &[&str] = &["IP_MULTICAST_IF", "IP_MULTICAST_TTL"];

/// An option that sockets of a class have, and what a fresh one has.
struct Usual {
    row: &'static OptionSpec,
    bytes: Vec<u8>,
}

/// What fresh sockets of a class have; made and asked once a process.
fn usual(class: Class) -> Result<Arc<[Usual]>> {
    static KNOWN: RwLock<Option<HashMap<Class, Arc<[Usual]>>>> = RwLock::new(None);
    if let Ok(known) = KNOWN.read() {
        if let Some(usual) = known.as_ref().and_then(|known| known.get(&class)) {
            return Ok(usual.clone());
        }
    }
    let (family, kind, protocol) = class;
    let fresh = sys::new(family, kind | libc::SOCK_CLOEXEC, protocol).at(|| "a socket like it")?;
    let mut buffer = [0; MAX];
    let ask = |row: &'static OptionSpec| {
        let len = row.ask(fresh.as_fd(), &mut buffer).ok()?;
        let bytes = buffer[..len].to_vec();
        // Some can be asked of any socket and set on few.
        let same = || sys::set_option_bytes(fresh.as_fd(), row.level, row.number, &bytes);
        let fixed = !matches!(row.form, Encoding::Buffer { .. } | Encoding::Filter)
            && matches!(same(), Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP));
        (!fixed).then_some(Usual { row, bytes })
    };
    let streams = kind == libc::SOCK_STREAM;
    let of_unix = |row: &OptionSpec| {
        row.level == SOCKET
            && !OF_NETWORKS.contains(&row.name)
            && !(streams && OF_MESSAGES.contains(&row.name))
    };
    let serves = |row: &&OptionSpec| match family {
        libc::AF_UNIX => of_unix(row),
        _ => !(streams && OF_GROUPS.contains(&row.name)),
    };
    let usual: Arc<[Usual]> = ROWS.iter().filter(serves).filter_map(ask).collect();
    if let Ok(mut known) = KNOWN.write() {
        known.get_or_insert_default().insert(class, usual.clone());
    }
    Ok(usual)
}

impl SocketOptions {
    /// Reads from a socket what a fresh one of its class has not.
    ///
    /// Costs one getsockopt(2) for each option of the class, a quarter of a microsecond: 11 for a
    /// unix stream socket, 69 for UDP over IPv4, 86 for TCP; IPv6 has 38 more.
    pub(crate) fn read(fd: BorrowedFd<'_>, class: Class) -> Result<SocketOptions> {
        let mut options = BTreeMap::new();
        let mut buffer = [0; MAX];
        let locked = sys::option(fd, SOCKET, SO_BUF_LOCK).ok();
        let settles = |form| match form {
            Encoding::Buffer { lock, .. } => locked.is_some_and(|locked| locked & lock == 0),
            _ => false,
        };
        let usual = usual(class)?;
        for Usual { row, bytes } in usual.iter().filter(|usual| !settles(usual.row.form)) {
            let len = match row.ask(fd, &mut buffer) {
                Ok(len) => len,
                // Some go away with the state: a listening socket has no pacing, say.
                Err(_) => continue,
            };
            match row.form {
                Encoding::Buffer { .. } if locked.is_some() => (),
                Encoding::Filter if len > 0 => (),
                _ if buffer[..len] == bytes[..] => continue,
                _ => (),
            }
            let value = row.value(fd, &buffer[..len]).at(|| row.name)?;
            options.insert(row.name.to_owned(), value);
        }
        Ok(SocketOptions(options))
    }

    /// Fails with status 3 if an option that is known here cannot have its value.
    pub(crate) fn validate(&self) -> Result<()> {
        self.0.iter().try_for_each(|(name, value)| {
            let row = ROWS.iter().find(|row| row.name == name);
            row.map_or(Ok(()), |row| row.check(value))
        })
    }

    /// Says why they cannot be set on a socket of this class.
    pub(crate) fn check(&self, class: Class) -> Result<()> {
        let usual = usual(class)?;
        for name in self.0.keys() {
            let row = ROWS.iter().find(|row| row.name == name);
            let shown = || crate::text::escape(name.as_bytes()).into_owned();
            let row = row.ok_or_else(|| {
                Error::unrestorable(format!("socket option {} is not known here", shown()))
            })?;
            // Any socket takes what its family does not heed.
            let unheeded = class.0 == libc::AF_UNIX && row.level == SOCKET;
            if !unheeded && !usual.iter().any(|usual| std::ptr::eq(usual.row, row)) {
                let why = format!("such a socket has no option {} here", shown());
                return Err(Error::unrestorable(why));
            }
        }
        Ok(())
    }

    /// Sets those whose turn it is. What only makes it slower when it is missing is told to `warn`.
    pub(crate) fn set(
        &self,
        fd: BorrowedFd<'_>,
        phase: Phase,
        warn: &mut dyn FnMut(String),
    ) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        for row in ROWS.iter().filter(|row| row.phase == phase) {
            let Some(value) = self.0.get(row.name) else { continue };
            // What is so already may be more than we are allowed to set.
            let mut buffer = [0; MAX];
            let has = row.ask(fd, &mut buffer).map_err(Error::from);
            let has = has.and_then(|len| row.value(fd, &buffer[..len]));
            if !matches!(row.form, Encoding::Buffer { .. }) && has.is_ok_and(|has| has == *value) {
                continue;
            }
            match (row.set(fd, value), row.need) {
                (Ok(()), _) => (),
                (Err(errno), IfRefused::May) => {
                    warn(format!("{} is not put back: {}", row.name, errno.desc()));
                }
                (Err(errno), IfRefused::Must) => return Err(errno).at(|| row.name),
            }
        }
        Ok(())
    }

    /// Leaves out what is none of the socket's own by now.
    pub(crate) fn forget(&mut self, names: &[&str]) {
        self.0.retain(|name, _| !names.contains(&name.as_str()));
    }

    /// A number, if it is not the usual one.
    pub(crate) fn int(&self, name: &str) -> Option<i64> {
        match self.0.get(name) {
            Some(OptionValue::Int(value)) => Some(*value),
            _ => None,
        }
    }

    /// Bytes, if they are not the usual ones.
    pub(crate) fn bytes(&self, name: &str) -> Option<&[u8]> {
        match self.0.get(name) {
            Some(OptionValue::Bytes(value)) => Some(value),
            _ => None,
        }
    }

    /// For `skip_serializing_if`.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for OptionValue {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            OptionValue::Int(value) => to.serialize_i64(*value),
            OptionValue::Bytes(bytes) => to.serialize_bytes(bytes),
        }
    }
}

impl<'de> Deserialize<'de> for OptionValue {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = OptionValue;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer or a byte string")
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<OptionValue, E> {
                Ok(OptionValue::Int(value))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<OptionValue, E> {
                i64::try_from(value).map(OptionValue::Int).map_err(E::custom)
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<OptionValue, E> {
                Ok(OptionValue::Bytes(bytes.to_vec()))
            }
        }
        from.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    const UDP4: Class = (libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDP);
    const TCP6: Class = (libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP);
    const UDP6: Class = (libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP);
    const UNIX: Class = (libc::AF_UNIX, libc::SOCK_DGRAM, 0);

    fn socket(class: Class) -> OwnedFd {
        sys::new(class.0, class.1, class.2).unwrap()
    }

    fn options(pairs: &[(&str, OptionValue)]) -> SocketOptions {
        SocketOptions(pairs.iter().map(|(name, value)| ((*name).into(), value.clone())).collect())
    }

    fn goes_round(class: Class, pairs: &[(&str, OptionValue)]) {
        let wanted = options(pairs);
        wanted.check(class).unwrap();
        let one = socket(class);
        let mut said = Vec::new();
        for phase in [Phase::Created, Phase::Last] {
            wanted.set(one.as_fd(), phase, &mut |line| said.push(line)).unwrap();
        }
        assert_eq!(said, Vec::<String>::new());
        assert_eq!(SocketOptions::read(one.as_fd(), class).unwrap(), wanted);
    }

    #[test]
    fn a_fresh_socket_has_nothing_to_record() {
        for class in [UDP4, TCP6, UNIX] {
            assert_eq!(
                SocketOptions::read(socket(class).as_fd(), class).unwrap(),
                SocketOptions::default()
            );
        }
    }

    #[test]
    fn what_is_set_is_read_and_set_again() {
        // ret #0: it takes nothing.
        let none = vec![6, 0, 0, 0, 0, 0, 0, 0];
        goes_round(
            UDP4,
            &[
                ("SO_RCVBUF", OptionValue::Int(8192)),
                ("SO_RCVTIMEO", OptionValue::Int(1_500_000)),
                ("SO_BROADCAST", OptionValue::Int(1)),
                // The kernel shows both for either.
                ("SO_TIMESTAMP_NEW", OptionValue::Int(1)),
                ("SO_TIMESTAMPNS_NEW", OptionValue::Int(1)),
                ("SO_BINDTODEVICE", OptionValue::Bytes(b"lo".to_vec())),
                ("IP_MULTICAST_IF", OptionValue::Bytes(vec![127, 0, 0, 1])),
                ("IP_UNICAST_IF", OptionValue::Bytes(b"lo".to_vec())),
                ("IP_RECVERR", OptionValue::Int(1)),
                ("SO_ATTACH_FILTER", OptionValue::Bytes(none)),
                ("SO_LOCK_FILTER", OptionValue::Int(1)),
                ("SO_PEEK_OFF", OptionValue::Int(3)),
            ],
        );
        goes_round(
            TCP6,
            &[
                ("SO_LINGER", OptionValue::Int(0)),
                ("SO_KEEPALIVE", OptionValue::Int(1)),
                ("TCP_KEEPIDLE", OptionValue::Int(17)),
                ("TCP_CONGESTION", OptionValue::Bytes(b"reno".to_vec())),
                ("IPV6_V6ONLY", OptionValue::Int(1)),
            ],
        );
        goes_round(
            UDP6,
            &[
                ("IPV6_MULTICAST_IF", OptionValue::Bytes(b"lo".to_vec())),
                ("IPV6_RECVPKTINFO", OptionValue::Int(1)),
                ("SO_TIMESTAMPING", OptionValue::Bytes(vec![0x18, 0, 0, 0, 0, 0, 0, 0])),
            ],
        );
        goes_round(
            UNIX,
            &[("SO_PASSCRED", OptionValue::Int(1)), ("SO_SNDBUF", OptionValue::Int(65536))],
        );
    }

    #[test]
    fn what_is_no_option_or_no_value_of_it_is_refused() {
        let refused = |class, name, value| {
            let options = options(&[(name, value)]);
            let checked = options.validate().and_then(|()| options.check(class));
            checked.unwrap_err().status() as u8
        };
        assert_eq!(refused(UDP4, "SO_NONSENSE", OptionValue::Int(1)), 6);
        assert_eq!(refused(UDP4, "TCP_NODELAY", OptionValue::Int(1)), 6);
        assert_eq!(refused(UDP4, "SO_MARK", OptionValue::Int(1 << 40)), 3);
        assert_eq!(refused(UDP4, "SO_MARK", OptionValue::Bytes(vec![1])), 3);
        assert_eq!(refused(UDP4, "SO_RCVBUF", OptionValue::Int(-1)), 3);
        assert_eq!(refused(UDP4, "SO_ATTACH_FILTER", OptionValue::Bytes(vec![6; 7])), 3);
        assert_eq!(refused(UDP4, "SO_BINDTODEVICE", OptionValue::Bytes(vec![b'x'; 16])), 3);
    }

    #[test]
    fn an_accepted_socket_has_nothing_that_cannot_be_set() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let class = (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_TCP);
        let mut read = SocketOptions::read(accepted.as_fd(), class).unwrap();
        // Of the connection, which kind tcp leaves out.
        read.forget(&["TCP_MAXSEG", "TCP_WINDOW_CLAMP"]);
        let fresh = socket(class);
        for phase in [Phase::Created, Phase::Last] {
            read.set(fresh.as_fd(), phase, &mut |line| panic!("{line}")).unwrap();
        }
        assert_eq!((read.int("IP_MULTICAST_TTL"), read.bytes("IP_MULTICAST_IF")), (None, None));
    }

    #[test]
    fn no_option_is_named_twice() {
        let mut names: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ROWS.len());
    }
}
