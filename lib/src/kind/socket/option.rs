//! Socket options: one table, by which they are read from a socket and set on another.
//!
//! Only values that differ from those of a new socket of the same family, type and protocol are
//! recorded. The values of a new socket, and the options that it supports, are read from one, once
//! a process.

use crate::error::{At, Error, Result};
use crate::image::OpenFile;
use crate::kind::context::RestoreContext;
use crate::messages::Messages;
use crate::sys::socket as sys;
use nix::errno::Errno;
use nix::libc;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, RwLock};

/// Family, type and protocol: SO_DOMAIN, SO_TYPE, SO_PROTOCOL of socket(7).
pub(crate) type SocketClass = (i32, i32, i32);

/// The value of an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OptionValue {
    /// An integer. Timeouts are in microseconds; SO_LINGER is in seconds, or -1 if it is off.
    Int(i64),
    /// A name, a struct of the kernel, or the instructions of a classic BPF filter.
    Bytes(Vec<u8>),
}

/// The options of a socket that differ from those of a new one, by their names in socket(7), ip(7),
/// ipv6(7), tcp(7), udp(7), raw(7), netlink(7) and packet(7).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct SocketOptions(BTreeMap<String, OptionValue>);

/// The step of a restore in which an option is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// On a new socket, before bind(2), which some options affect.
    Created,
    /// On a bound and connected socket with its queue filled: options that would prevent that.
    Last,
}

/// The form of a value in the buffer of getsockopt(2) and setsockopt(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    /// An int.
    Int,
    /// A 64-bit integer.
    Int64,
    /// The size of a buffer in bytes, which the kernel doubles when it is set. The option `force`
    /// exceeds net.core.wmem_max and rmem_max (CAP_NET_ADMIN). A size is recorded only if the
    /// program has set it (the bit `lock` of SO_BUF_LOCK, Linux 5.15): the kernel tunes the others.
    Buffer { force: i32, lock: i32 },
    /// struct linger.
    Linger,
    /// struct timeval.
    Timeval,
    /// A name of at most 15 bytes.
    Name,
    /// The index of a network device, recorded as its name.
    Device { big_endian: bool },
    /// A classic BPF filter: SO_ATTACH_FILTER and SO_GET_FILTER.
    Filter,
    /// A struct or array of at most so many bytes.
    Bytes(usize),
}

/// The consequence if an option cannot be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IfRefused {
    /// The restore fails: the socket would behave differently.
    Fail,
    /// A warning: only the performance of the socket differs.
    Warn,
}

/// An option: a row of [`OPTIONS`].
struct OptionSpec {
    name: &'static str,
    level: i32,
    number: i32,
    encoding: Encoding,
    phase: Phase,
    if_refused: IfRefused,
}

use Encoding::{Int, Int64, Linger, Name, Timeval};

const fn row(name: &'static str, level: i32, number: i32, encoding: Encoding) -> OptionSpec {
    let (phase, if_refused) = (Phase::Created, IfRefused::Fail);
    OptionSpec { name, level, number, encoding, phase, if_refused }
}

impl OptionSpec {
    /// The option is set in [`Phase::Last`].
    const fn set_last(mut self) -> OptionSpec {
        self.phase = Phase::Last;
        self
    }

    /// The restore goes on, with a warning, if the option cannot be set.
    const fn optional(mut self) -> OptionSpec {
        self.if_refused = IfRefused::Warn;
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
const DEVICE: Encoding = Encoding::Device { big_endian: false };
const BIG_ENDIAN_DEVICE: Encoding = Encoding::Device { big_endian: true };
/// An IPv6 extension header, at most 8 * 256 bytes (RFC 8200).
const HEADER: Encoding = Encoding::Bytes(2048);

/// All options that can be read and set, in the order in which they are set. Numbers without a name
/// in libc are those of linux/*.h and asm-generic/socket.h, which do not hold for mips, parisc,
/// sparc and alpha.
///
/// Left out: read-only options (SO_ERROR, which getsockopt(2) clears; SO_PEERCRED, TCP_INFO),
/// transient state (TCP_QUICKACK), secrets (TCP_FASTOPEN_KEY), and SO_TXREHASH, which listen(2)
/// sets.
static OPTIONS: &[OptionSpec] = &[
    // Setting IP_TOS sets SO_PRIORITY too, so SO_PRIORITY is set after it.
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
    row("IP_UNICAST_IF", IP, libc::IP_UNICAST_IF, BIG_ENDIAN_DEVICE),
    row("IPV6_V6ONLY", IPV6, libc::IPV6_V6ONLY, Int),
    row("IPV6_UNICAST_HOPS", IPV6, libc::IPV6_UNICAST_HOPS, Int),
    row("IPV6_MULTICAST_IF", IPV6, libc::IPV6_MULTICAST_IF, DEVICE),
    row("IPV6_MULTICAST_HOPS", IPV6, libc::IPV6_MULTICAST_HOPS, Int),
    row("IPV6_MULTICAST_LOOP", IPV6, libc::IPV6_MULTICAST_LOOP, Int),
    row("IPV6_MULTICAST_ALL", IPV6, libc::IPV6_MULTICAST_ALL, Int),
    row("IPV6_UNICAST_IF", IPV6, libc::IPV6_UNICAST_IF, BIG_ENDIAN_DEVICE),
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
    row("SO_DEBUG", SOCKET, libc::SO_DEBUG, Int).optional(),
    row("SO_REUSEADDR", SOCKET, libc::SO_REUSEADDR, Int),
    row("SO_REUSEPORT", SOCKET, libc::SO_REUSEPORT, Int),
    row("SO_KEEPALIVE", SOCKET, libc::SO_KEEPALIVE, Int),
    row("SO_LINGER", SOCKET, libc::SO_LINGER, Linger),
    row("SO_BROADCAST", SOCKET, libc::SO_BROADCAST, Int),
    row("SO_OOBINLINE", SOCKET, libc::SO_OOBINLINE, Int),
    row("SO_DONTROUTE", SOCKET, libc::SO_DONTROUTE, Int),
    row("SO_PRIORITY", SOCKET, libc::SO_PRIORITY, Int).optional(),
    row("SO_RCVLOWAT", SOCKET, libc::SO_RCVLOWAT, Int),
    row("SO_SNDBUF", SOCKET, libc::SO_SNDBUF, SNDBUF).optional(),
    row("SO_RCVBUF", SOCKET, libc::SO_RCVBUF, RCVBUF).optional(),
    row("SO_RESERVE_MEM", SOCKET, libc::SO_RESERVE_MEM, Int).optional(),
    row("SO_RCVTIMEO", SOCKET, libc::SO_RCVTIMEO, Timeval),
    row("SO_SNDTIMEO", SOCKET, libc::SO_SNDTIMEO, Timeval),
    // While the queue is filled, these would add to each message, or prevent it from being sent.
    row("SO_PASSCRED", SOCKET, libc::SO_PASSCRED, Int).set_last(),
    row("SO_PASSSEC", SOCKET, libc::SO_PASSSEC, Int).set_last(),
    row("SO_PASSPIDFD", SOCKET, libc::SO_PASSPIDFD, Int).set_last(),
    row("SO_PASSRIGHTS", SOCKET, 83, Int).set_last(),
    row("SO_TIMESTAMP", SOCKET, libc::SO_TIMESTAMP, Int),
    row("SO_TIMESTAMPNS", SOCKET, libc::SO_TIMESTAMPNS, Int),
    row("SO_TIMESTAMPING", SOCKET, libc::SO_TIMESTAMPING, Encoding::Bytes(8)),
    // The _NEW variants make the timestamps above 64 bits wide on 32-bit machines too.
    row("SO_TIMESTAMP_NEW", SOCKET, 63, Int),
    row("SO_TIMESTAMPNS_NEW", SOCKET, 64, Int),
    row("SO_TIMESTAMPING_NEW", SOCKET, 65, Encoding::Bytes(8)),
    row("SO_MARK", SOCKET, libc::SO_MARK, Int),
    row("SO_RCVMARK", SOCKET, libc::SO_RCVMARK, Int),
    row("SO_RCVPRIORITY", SOCKET, 82, Int),
    row("SO_BINDTODEVICE", SOCKET, libc::SO_BINDTODEVICE, Name),
    row("SO_BUSY_POLL", SOCKET, libc::SO_BUSY_POLL, Int).optional(),
    row("SO_PREFER_BUSY_POLL", SOCKET, libc::SO_PREFER_BUSY_POLL, Int).optional(),
    row("SO_BUSY_POLL_BUDGET", SOCKET, libc::SO_BUSY_POLL_BUDGET, Int).optional(),
    row("SO_NO_CHECK", SOCKET, libc::SO_NO_CHECK, Int),
    row("SO_RXQ_OVFL", SOCKET, libc::SO_RXQ_OVFL, Int),
    row("SO_WIFI_STATUS", SOCKET, libc::SO_WIFI_STATUS, Int),
    row("SO_NOFCS", SOCKET, libc::SO_NOFCS, Int),
    row("SO_SELECT_ERR_QUEUE", SOCKET, libc::SO_SELECT_ERR_QUEUE, Int),
    row("SO_MAX_PACING_RATE", SOCKET, libc::SO_MAX_PACING_RATE, Int64).optional(),
    row("SO_INCOMING_CPU", SOCKET, libc::SO_INCOMING_CPU, Int).optional(),
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
    row("TCP_CONGESTION", TCP, libc::TCP_CONGESTION, Name).optional(),
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
    row("UDP_ENCAP", UDP, libc::UDP_ENCAP, Int).set_last(),
    row("UDP_NO_CHECK6_TX", UDP, libc::UDP_NO_CHECK6_TX, Int),
    row("UDP_NO_CHECK6_RX", UDP, libc::UDP_NO_CHECK6_RX, Int),
    row("UDP_SEGMENT", UDP, libc::UDP_SEGMENT, Int),
    row("UDP_GRO", UDP, libc::UDP_GRO, Int).set_last(),
    row("UDP_CORK", UDP, libc::UDP_CORK, Int).set_last(),
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
    // Its value also implies PACKET_VNET_HDR: zero is no header.
    row("PACKET_VNET_HDR_SZ", PACKET, 24, Int),
    row("PACKET_VNET_HDR", PACKET, 15, Int),
    row("PACKET_TIMESTAMP", PACKET, libc::PACKET_TIMESTAMP, Int),
    row("PACKET_TX_HAS_OFF", PACKET, 19, Int),
    row("PACKET_QDISC_BYPASS", PACKET, libc::PACKET_QDISC_BYPASS, Int),
    row("PACKET_IGNORE_OUTGOING", PACKET, libc::PACKET_IGNORE_OUTGOING, Int),
    row("SO_ATTACH_FILTER", SOCKET, libc::SO_ATTACH_FILTER, Encoding::Filter).set_last(),
    row("SO_PEEK_OFF", SOCKET, libc::SO_PEEK_OFF, Int).set_last(),
    // Once this is set, no filter can be attached.
    row("SO_LOCK_FILTER", SOCKET, libc::SO_LOCK_FILTER, Int).set_last(),
];

/// The longest filter in bytes: BPF_MAXINSNS instructions of 8 bytes.
const MAX_FILTER: usize = 4096 * 8;
/// The longest name of a device or congestion control algorithm in bytes, with the NUL: IFNAMSIZ,
/// TCP_CA_NAME_MAX.
const MAX_NAME: usize = 16;
/// The longest value of all options but filters, in bytes.
const MAX_VALUE: usize = 2048;

impl OptionSpec {
    /// The buffer length for getsockopt(2), in bytes. Some options return another value for another
    /// length.
    fn buffer_len(&self) -> usize {
        match self.encoding {
            Encoding::Int | Encoding::Buffer { .. } | Encoding::Device { .. } => 4,
            Encoding::Int64 | Encoding::Linger => 8,
            Encoding::Timeval | Encoding::Name => 16,
            Encoding::Filter => 0,
            Encoding::Bytes(most) => most,
        }
    }

    /// Reads the value of a socket into a buffer, and returns its length; none if the socket has no
    /// such option. For a filter the buffer is left alone, and the length is not zero if there is one.
    fn get(&self, fd: BorrowedFd<'_>, into: &mut [u8; MAX_VALUE]) -> Result<Option<usize>> {
        let len = self.buffer_len();
        let got = match self.encoding {
            // EACCES: the filter is an eBPF program.
            Encoding::Filter => match sys::option_bytes(fd, self.level, self.number, &mut []) {
                Err(Errno::EACCES) => Ok(MAX_VALUE),
                count => count.map(|count| (count * 8).min(MAX_VALUE)),
            },
            _ => sys::option_bytes(fd, self.level, self.number, &mut into[..len])
                .map(|got| got.min(len)),
        };
        match got {
            // What getsockopt(2) answers for an option of another class of sockets, of another state
            // of the socket, or of a kernel that is built with it.
            Err(
                Errno::ENOPROTOOPT
                | Errno::EOPNOTSUPP
                | Errno::EINVAL
                | Errno::ENOTCONN
                | Errno::EADDRNOTAVAIL
                | Errno::ENODEV,
            ) => Ok(None),
            got => got.map(Some).at(|| self.name),
        }
    }

    /// Decodes the bytes that [`OptionSpec::get`] returned, and reads the filter. Fails with status
    /// 6 if that is an eBPF program.
    fn decode(&self, fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<OptionValue> {
        let int = |at: usize| {
            let four = bytes.get(at..at + 4).and_then(|four| <[u8; 4]>::try_from(four).ok());
            four.map_or(0, i32::from_ne_bytes)
        };
        let long = |at: usize| {
            let eight = bytes.get(at..at + 8).and_then(|eight| <[u8; 8]>::try_from(eight).ok());
            eight.map_or(0, i64::from_ne_bytes)
        };
        Ok(match self.encoding {
            Encoding::Int | Encoding::Buffer { .. } if bytes.len() == 1 => {
                OptionValue::Int(bytes[0].into())
            }
            Encoding::Int | Encoding::Buffer { .. } => OptionValue::Int(int(0).into()),
            Encoding::Int64 => {
                OptionValue::Int(if bytes.len() < 8 { int(0).into() } else { long(0) })
            }
            Encoding::Linger => OptionValue::Int(if int(0) == 0 { -1 } else { int(4).into() }),
            Encoding::Timeval => {
                OptionValue::Int(long(0).saturating_mul(1_000_000).saturating_add(long(8)))
            }
            Encoding::Name => {
                OptionValue::Bytes(bytes.iter().copied().take_while(|&b| b != 0).collect())
            }
            Encoding::Device { big_endian } => {
                let index = if big_endian { i32::from_be(int(0)) } else { int(0) };
                OptionValue::Bytes(sys::device_name(fd, index).at(|| format!("device {index}"))?)
            }
            Encoding::Filter => {
                let mut program = vec![0; MAX_FILTER];
                let count = sys::option_bytes(fd, self.level, self.number, &mut program);
                let count = match count {
                    Err(Errno::EACCES) => {
                        return Err(Error::unrestorable(
                            "its eBPF filter (SO_ATTACH_BPF) cannot be read",
                        ));
                    }
                    count => count?,
                };
                program.truncate(count * 8);
                OptionValue::Bytes(program)
            }
            Encoding::Bytes(_) => OptionValue::Bytes(bytes.to_vec()),
        })
    }

    /// Fails with status 3 if the option cannot have this value.
    fn validate(&self, value: &OptionValue) -> Result<()> {
        let valid = match (self.encoding, value) {
            (Encoding::Int, OptionValue::Int(value)) => i32::try_from(*value).is_ok(),
            (Encoding::Buffer { .. }, OptionValue::Int(value)) => {
                (0..=i32::MAX.into()).contains(value)
            }
            (Encoding::Int64, OptionValue::Int(_)) => true,
            (Encoding::Linger, OptionValue::Int(value)) => (-1..=i32::MAX.into()).contains(value),
            (Encoding::Timeval, OptionValue::Int(value)) => *value >= 0,
            (Encoding::Name | Encoding::Device { .. }, OptionValue::Bytes(name)) => {
                !name.is_empty() && name.len() < MAX_NAME && !name.contains(&0)
            }
            (Encoding::Filter, OptionValue::Bytes(program)) => {
                !program.is_empty() && program.len() <= MAX_FILTER && program.len() % 8 == 0
            }
            (Encoding::Bytes(most), OptionValue::Bytes(bytes)) => bytes.len() <= most,
            _ => false,
        };
        match valid {
            true => Ok(()),
            false => Err(Error::malformed(format!("the value of {} is not valid", self.name))),
        }
    }

    /// Sets the option. Fails with EPERM if the limit on a buffer prevents its size.
    fn set(&self, fd: BorrowedFd<'_>, value: &OptionValue) -> nix::Result<()> {
        let put = |bytes: &[u8]| sys::set_option_bytes(fd, self.level, self.number, bytes);
        match (self.encoding, value) {
            (Encoding::Int, &OptionValue::Int(value)) => put(&(value as i32).to_ne_bytes()),
            (Encoding::Int64, OptionValue::Int(value)) => put(&value.to_ne_bytes()),
            (Encoding::Buffer { force, .. }, &OptionValue::Int(value)) => {
                let half = value as i32 / 2;
                match sys::set_option(fd, self.level, force, half) {
                    Err(Errno::EPERM) => put(&half.to_ne_bytes())?,
                    done => done?,
                }
                match sys::option(fd, self.level, self.number)? {
                    now if now == value as i32 => Ok(()),
                    // net.core.wmem_max or rmem_max limits it.
                    _ => Err(Errno::EPERM),
                }
            }
            (Encoding::Linger, &OptionValue::Int(value)) => {
                let (on, seconds) = (i32::from(value >= 0), value.max(0) as i32);
                put(&[on.to_ne_bytes(), seconds.to_ne_bytes()].concat())
            }
            (Encoding::Timeval, &OptionValue::Int(value)) => {
                let (seconds, micros) = (value / 1_000_000, value % 1_000_000);
                put(&[seconds.to_ne_bytes(), micros.to_ne_bytes()].concat())
            }
            (Encoding::Device { big_endian }, OptionValue::Bytes(name)) => {
                let index = sys::device_index(fd, name)?;
                put(&(if big_endian { index.to_be() } else { index }).to_ne_bytes())
            }
            (Encoding::Filter, OptionValue::Bytes(program)) => sys::set_filter(fd, program),
            (Encoding::Name | Encoding::Bytes(_), OptionValue::Bytes(bytes)) => put(bytes),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// SOL_SOCKET options that unix sockets accept and ignore (net/unix/af_unix.c, Linux 6.18): they
/// are about devices, ports and packets.
const IGNORED_BY_UNIX: &[&str] = &[
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

/// More options that unix stream sockets accept and ignore: timestamps and filters of messages.
const IGNORED_BY_UNIX_STREAM: &[&str] = &[
    "SO_TIMESTAMP",
    "SO_TIMESTAMPNS",
    "SO_TIMESTAMPING",
    "SO_TIMESTAMP_NEW",
    "SO_TIMESTAMPNS_NEW",
    "SO_TIMESTAMPING_NEW",
    "SO_ATTACH_FILTER",
    "SO_LOCK_FILTER",
];

/// Options that an accepted TCP socket gets from the first packet, and that cannot be set on a
/// stream socket (EINVAL of do_ip_setsockopt, net/ipv4/ip_sockglue.c).
const READ_ONLY_ON_STREAM: &[&str] = &["IP_MULTICAST_IF", "IP_MULTICAST_TTL"];

/// An option that sockets of a class support, with the value of a new socket.
struct DefaultOption {
    spec: &'static OptionSpec,
    bytes: Vec<u8>,
}

/// The options that sockets of a class support, with the values of a new socket. Makes one and
/// reads them, once a process.
fn defaults(class: SocketClass) -> Result<Arc<[DefaultOption]>> {
    static CACHE: RwLock<Option<HashMap<SocketClass, Arc<[DefaultOption]>>>> = RwLock::new(None);
    if let Ok(cache) = CACHE.read() {
        if let Some(defaults) = cache.as_ref().and_then(|cache| cache.get(&class)) {
            return Ok(defaults.clone());
        }
    }
    let (family, socket_type, protocol) = class;
    let new = sys::new(family, socket_type | libc::SOCK_CLOEXEC, protocol)
        .at(|| "a new socket of its type")?;
    let mut buffer = [0; MAX_VALUE];
    let mut read = |spec: &'static OptionSpec| -> Result<Option<DefaultOption>> {
        let Some(len) = spec.get(new.as_fd(), &mut buffer)? else { return Ok(None) };
        let bytes = buffer[..len].to_vec();
        // Some can be read from any socket, and set only on some.
        let set = || sys::set_option_bytes(new.as_fd(), spec.level, spec.number, &bytes);
        let read_only = !matches!(spec.encoding, Encoding::Buffer { .. } | Encoding::Filter)
            && matches!(set(), Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP));
        Ok((!read_only).then_some(DefaultOption { spec, bytes }))
    };
    let is_stream = socket_type == libc::SOCK_STREAM;
    let is_used_by_unix = |spec: &OptionSpec| {
        spec.level == SOCKET
            && !IGNORED_BY_UNIX.contains(&spec.name)
            && !(is_stream && IGNORED_BY_UNIX_STREAM.contains(&spec.name))
    };
    let is_used = |spec: &&OptionSpec| match family {
        libc::AF_UNIX => is_used_by_unix(spec),
        _ => !(is_stream && READ_ONLY_ON_STREAM.contains(&spec.name)),
    };
    let used = OPTIONS.iter().filter(is_used);
    let defaults: Arc<[DefaultOption]> =
        used.filter_map(|spec| read(spec).transpose()).collect::<Result<_>>()?;
    if let Ok(mut cache) = CACHE.write() {
        cache.get_or_insert_default().insert(class, defaults.clone());
    }
    Ok(defaults)
}

impl SocketOptions {
    /// Reads the options of a socket that differ from those of a new one of its class. Fails with
    /// status 6 if it has an eBPF filter.
    ///
    /// Costs one getsockopt(2) for each option of the class, a quarter of a microsecond: 11 for a
    /// unix stream socket, 69 for UDP over IPv4, 86 for TCP; IPv6 has 38 more.
    pub(crate) fn read(fd: BorrowedFd<'_>, class: SocketClass) -> Result<SocketOptions> {
        let mut options = BTreeMap::new();
        let mut buffer = [0; MAX_VALUE];
        let locked = sys::option(fd, SOCKET, SO_BUF_LOCK).ok();
        let is_tuned = |encoding| match encoding {
            Encoding::Buffer { lock, .. } => locked.is_some_and(|locked| locked & lock == 0),
            _ => false,
        };
        let defaults = defaults(class)?;
        for DefaultOption { spec, bytes } in defaults.iter() {
            if is_tuned(spec.encoding) {
                continue;
            }
            // A listening socket, for example, has no SO_MAX_PACING_RATE.
            let Some(len) = spec.get(fd, &mut buffer)? else { continue };
            match spec.encoding {
                Encoding::Buffer { .. } if locked.is_some() => (),
                Encoding::Filter if len > 0 => (),
                _ if buffer[..len] == bytes[..] => continue,
                _ => (),
            }
            let value = spec.decode(fd, &buffer[..len]).at(|| spec.name)?;
            options.insert(spec.name.to_owned(), value);
        }
        Ok(SocketOptions(options))
    }

    /// Fails with status 3 if an option of [`OPTIONS`] cannot have its value.
    pub(crate) fn validate(&self) -> Result<()> {
        self.0.iter().try_for_each(|(name, value)| {
            let spec = OPTIONS.iter().find(|spec| spec.name == name);
            spec.map_or(Ok(()), |spec| spec.validate(value))
        })
    }

    /// Fails with status 6 if an option is not in [`OPTIONS`], or sockets of this class do not have
    /// it.
    pub(crate) fn check(&self, class: SocketClass) -> Result<()> {
        let defaults = defaults(class)?;
        for name in self.0.keys() {
            let spec = OPTIONS.iter().find(|spec| spec.name == name);
            let shown = || crate::text::escape(name.as_bytes()).into_owned();
            let spec = spec.ok_or_else(|| {
                let why = format!("this version does not know socket option {}", shown());
                Error::unrestorable(why)
            })?;
            // A unix socket accepts the SOL_SOCKET options that it ignores.
            let accepted = class.0 == libc::AF_UNIX && spec.level == SOCKET;
            if !accepted && !defaults.iter().any(|default| std::ptr::eq(default.spec, spec)) {
                let why = format!("this kernel has no option {} for such a socket", shown());
                return Err(Error::unrestorable(why));
            }
        }
        Ok(())
    }

    /// Sets the options of a phase. Warns of an option that cannot be set and affects only
    /// performance; fails for any other.
    pub(crate) fn set(
        &self,
        fd: BorrowedFd<'_>,
        phase: Phase,
        warnings: &mut Messages<'_>,
    ) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        for spec in OPTIONS.iter().filter(|spec| spec.phase == phase) {
            let Some(value) = self.0.get(spec.name) else { continue };
            // A value that the socket has already may need a privilege to set.
            let mut buffer = [0; MAX_VALUE];
            let current = match spec.get(fd, &mut buffer)? {
                Some(len) => spec.decode(fd, &buffer[..len]).ok(),
                None => None,
            };
            let same = current.is_some_and(|current| current == *value);
            if same && !matches!(spec.encoding, Encoding::Buffer { .. }) {
                continue;
            }
            match (spec.set(fd, value), spec.if_refused) {
                (Ok(()), _) => (),
                (Err(errno), IfRefused::Warn) => {
                    warnings.push(format!("{} is not restored: {}", spec.name, errno.desc()));
                }
                (Err(errno), IfRefused::Fail) => return Err(errno).at(|| spec.name),
            }
        }
        Ok(())
    }

    /// Sets the options of a phase on the socket of a file. Adds the warnings of
    /// [`SocketOptions::set`] to those of the restore.
    pub(crate) fn restore(
        &self,
        fd: BorrowedFd<'_>,
        phase: Phase,
        file: &OpenFile,
        cx: &mut RestoreContext<'_>,
    ) -> Result<()> {
        let name = crate::text::escape(&file.link.0);
        let mut warnings = Messages::passed(|line| cx.warnings.push(format!("{name}: {line}")));
        self.set(fd, phase, &mut warnings)
    }

    /// Removes options by name.
    pub(crate) fn remove(&mut self, names: &[&str]) {
        self.0.retain(|name, _| !names.contains(&name.as_str()));
    }

    /// The value of an integer option, if it is recorded.
    pub(crate) fn int(&self, name: &str) -> Option<i64> {
        match self.0.get(name) {
            Some(OptionValue::Int(value)) => Some(*value),
            _ => None,
        }
    }

    /// The value of a byte string option, if it is recorded.
    pub(crate) fn bytes(&self, name: &str) -> Option<&[u8]> {
        match self.0.get(name) {
            Some(OptionValue::Bytes(value)) => Some(value),
            _ => None,
        }
    }

    /// Reports whether none is recorded.
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

    const UDP4: SocketClass = (libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDP);
    const TCP6: SocketClass = (libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP);
    const UDP6: SocketClass = (libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP);
    const UNIX: SocketClass = (libc::AF_UNIX, libc::SOCK_DGRAM, 0);

    fn socket(class: SocketClass) -> OwnedFd {
        sys::new(class.0, class.1, class.2).unwrap()
    }

    fn options(pairs: &[(&str, OptionValue)]) -> SocketOptions {
        SocketOptions(pairs.iter().map(|(name, value)| ((*name).into(), value.clone())).collect())
    }

    /// Sets options on a new socket, and asserts that they are read back.
    #[track_caller]
    fn assert_round_trip(class: SocketClass, pairs: &[(&str, OptionValue)]) {
        let wanted = options(pairs);
        wanted.check(class).unwrap();
        let one = socket(class);
        let mut warnings = Messages::kept();
        for phase in [Phase::Created, Phase::Last] {
            wanted.set(one.as_fd(), phase, &mut warnings).unwrap();
        }
        assert_eq!(warnings.lines(), [""; 0]);
        assert_eq!(SocketOptions::read(one.as_fd(), class).unwrap(), wanted);
    }

    #[test]
    fn a_new_socket_has_no_options_to_record() {
        for class in [UDP4, TCP6, UNIX] {
            assert_eq!(
                SocketOptions::read(socket(class).as_fd(), class).unwrap(),
                SocketOptions::default()
            );
        }
    }

    #[test]
    fn options_that_are_set_are_read_back() {
        // ret #0: it drops every packet.
        let drop_all = vec![6, 0, 0, 0, 0, 0, 0, 0];
        assert_round_trip(
            UDP4,
            &[
                ("SO_RCVBUF", OptionValue::Int(8192)),
                ("SO_RCVTIMEO", OptionValue::Int(1_500_000)),
                ("SO_BROADCAST", OptionValue::Int(1)),
                // getsockopt(2) returns both once either is set.
                ("SO_TIMESTAMP_NEW", OptionValue::Int(1)),
                ("SO_TIMESTAMPNS_NEW", OptionValue::Int(1)),
                ("SO_BINDTODEVICE", OptionValue::Bytes(b"lo".to_vec())),
                ("IP_MULTICAST_IF", OptionValue::Bytes(vec![127, 0, 0, 1])),
                ("IP_UNICAST_IF", OptionValue::Bytes(b"lo".to_vec())),
                ("IP_RECVERR", OptionValue::Int(1)),
                ("SO_ATTACH_FILTER", OptionValue::Bytes(drop_all)),
                ("SO_LOCK_FILTER", OptionValue::Int(1)),
                ("SO_PEEK_OFF", OptionValue::Int(3)),
            ],
        );
        assert_round_trip(
            TCP6,
            &[
                ("SO_LINGER", OptionValue::Int(0)),
                ("SO_KEEPALIVE", OptionValue::Int(1)),
                ("TCP_KEEPIDLE", OptionValue::Int(17)),
                ("TCP_CONGESTION", OptionValue::Bytes(b"reno".to_vec())),
                ("IPV6_V6ONLY", OptionValue::Int(1)),
            ],
        );
        assert_round_trip(
            UDP6,
            &[
                ("IPV6_MULTICAST_IF", OptionValue::Bytes(b"lo".to_vec())),
                ("IPV6_RECVPKTINFO", OptionValue::Int(1)),
                ("SO_TIMESTAMPING", OptionValue::Bytes(vec![0x18, 0, 0, 0, 0, 0, 0, 0])),
            ],
        );
        assert_round_trip(
            UNIX,
            &[("SO_PASSCRED", OptionValue::Int(1)), ("SO_SNDBUF", OptionValue::Int(65536))],
        );
    }

    #[test]
    fn unknown_options_and_invalid_values_are_refused() {
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
    fn all_options_of_an_accepted_socket_can_be_set() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let class = (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_TCP);
        let mut read = SocketOptions::read(accepted.as_fd(), class).unwrap();
        // Kind tcp removes these, which belong to the connection.
        read.remove(&["TCP_MAXSEG", "TCP_WINDOW_CLAMP"]);
        let new = socket(class);
        for phase in [Phase::Created, Phase::Last] {
            read.set(new.as_fd(), phase, &mut Messages::passed(|line| panic!("{line}"))).unwrap();
        }
        assert_eq!((read.int("IP_MULTICAST_TTL"), read.bytes("IP_MULTICAST_IF")), (None, None));
    }

    #[test]
    fn no_option_is_named_twice() {
        let mut names: Vec<&str> = OPTIONS.iter().map(|spec| spec.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), OPTIONS.len());
    }
}
