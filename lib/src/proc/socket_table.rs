//! The sockets of a network namespace as the tables in /proc/PID/net list them: all that can be known of
//! a socket without a copy of it.

use super::network::address;
use super::process::Process;
use super::sock_diag::Recent;
use crate::error::{Result, Status};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// A socket, as its line in a table tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketLine {
    /// The name of the table: `tcp6`, `unix`.
    pub table: &'static str,
    /// Of unix and packet sockets: `stream`, `dgram`, `raw` or `seqpacket`.
    pub class: Option<&'static str>,
    /// Of netlink and packet sockets: the protocol.
    pub protocol: Option<u32>,
    /// Of internet and unix sockets: `LISTEN` and so on.
    pub state: Option<&'static str>,
    /// Address and port; of a unix socket the name, in which each NUL is an `@`; of a netlink socket the
    /// port; of a packet socket the index of the network device. None if it is not bound.
    pub local: Option<Vec<u8>>,
    /// Address and port of the other end, of internet sockets. None if it is not connected.
    pub remote: Option<Vec<u8>>,
}

/// Sockets by their inode numbers.
type Lines = HashMap<u64, SocketLine>;

/// Parses a line of a table: the inode number and the socket.
type ParseLine<'a> = dyn Fn(&[u8]) -> Option<(u64, SocketLine)> + 'a;

/// What is known of the network namespaces of a scan, by their inode numbers.
#[derive(Default)]
pub struct SocketTables(Mutex<HashMap<u64, Recent<Arc<Result<Lines>>>>>);

/// The tables whose lines have addresses, state and inode number in the columns of proc_net_tcp(5).
const INTERNET: [&str; 10] =
    ["tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6", "icmp", "icmp6"];

impl Process {
    /// A socket of its network namespace by its inode number. None if no table has it, as for families
    /// without a table. Fails if a table cannot be read.
    pub fn socket_line(&self, inode: u64) -> Result<Option<SocketLine>> {
        let Some(netns) = self.netns_inode() else { return Ok(None) };
        let text = |table: &str| match self.read(&format!("net/{table}")) {
            // The kernel does not have each family.
            Err(err) if err.status() == Status::Gone => Ok(Vec::new()),
            other => other,
        };
        let read = || -> Result<Lines> {
            let mut lines = Lines::new();
            // The name of a unix socket may have a newline in it, and after that anything.
            let mut ambiguous = Vec::new();
            let mut add = |table: &str, parse: &ParseLine<'_>| -> Result<()> {
                for line in text(table)?.split(|&byte| byte == b'\n').skip(1) {
                    let Some((inode, line)) = parse(line) else { continue };
                    if lines.insert(inode, line).is_some() {
                        ambiguous.push(inode);
                    }
                }
                Ok(())
            };
            for table in INTERNET {
                add(table, &|line| internet(table, &String::from_utf8_lossy(line)))?;
            }
            add("unix", &unix)?;
            add("netlink", &|line| netlink_line(&String::from_utf8_lossy(line)))?;
            add("packet", &|line| packet_line(&String::from_utf8_lossy(line)))?;
            ambiguous.iter().for_each(|inode| drop(lines.remove(inode)));
            Ok(lines)
        };
        let mut tables = self.cache.socket_tables.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &**tables.entry(netns).or_default().get_or_read(|| Arc::new(read())) {
            Ok(lines) => Ok(lines.get(&inode).cloned()),
            Err(err) => Err(err.clone()),
        }
    }
}

/// The name of a state of include/net/tcp_states.h; none if it has no such number.
pub fn tcp_state_name(state: usize) -> Option<&'static str> {
    // From 1 on.
    const STATES: [&str; 12] = [
        "ESTABLISHED",
        "SYN_SENT",
        "SYN_RECV",
        "FIN_WAIT1",
        "FIN_WAIT2",
        "TIME_WAIT",
        "CLOSE",
        "CLOSE_WAIT",
        "LAST_ACK",
        "LISTEN",
        "CLOSING",
        "NEW_SYN_RECV",
    ];
    STATES.get(state.checked_sub(1)?).copied()
}

/// Parses a line of an internet table.
fn internet(table: &'static str, line: &str) -> Option<(u64, SocketLine)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let end = |at: usize| {
        let (ip, port) = words.get(at)?.split_once(':')?;
        let (ip, port) = (address(ip)?, u16::from_str_radix(port, 16).ok()?);
        let is_set = !ip.is_unspecified() || port != 0;
        is_set.then(|| SocketAddr::new(ip, port).to_string().into_bytes())
    };
    let state = usize::from_str_radix(words.get(3)?, 16).ok()?;
    let state = tcp_state_name(state);
    let (local, remote) = (end(1), end(2));
    let found = SocketLine { table, state, local, remote, ..SocketLine::default() };
    Some((words.get(9)?.parse().ok()?, found))
}

/// The name of a socket type of socket(2).
fn class(number: u32) -> Option<&'static str> {
    match number {
        1 => Some("stream"),
        2 => Some("dgram"),
        3 => Some("raw"),
        5 => Some("seqpacket"),
        _ => None,
    }
}

/// Parses a line of /proc/net/unix: proc_net(5).
fn unix(line: &[u8]) -> Option<(u64, SocketLine)> {
    // __SO_ACCEPTCON of linux/net.h, and the values of socket_state there.
    const LISTENS: u32 = 1 << 16;
    const STATES: [&str; 5] = ["FREE", "UNCONNECTED", "CONNECTING", "CONNECTED", "DISCONNECTING"];
    // The name is the rest of the line after one space. It may have spaces, too.
    let mut rest = line;
    let mut word = || {
        let start = rest.iter().position(|&byte| byte != b' ')?;
        let text = &rest[start..];
        let end = text.iter().position(|&byte| byte == b' ').unwrap_or(text.len());
        rest = &text[end..];
        std::str::from_utf8(&text[..end]).ok()
    };
    let (_, _, _) = (word()?, word()?, word()?);
    let mut hex = || u32::from_str_radix(word()?, 16).ok();
    let (flags, number, state) = (hex()?, hex()?, hex()?);
    let inode = word()?.parse().ok()?;
    let state = match flags & LISTENS {
        0 => STATES.get(state as usize).copied(),
        _ => Some("LISTEN"),
    };
    let local = rest.strip_prefix(b" ").map(<[u8]>::to_vec).filter(|name| !name.is_empty());
    let found =
        SocketLine { table: "unix", class: class(number), state, local, ..SocketLine::default() };
    Some((inode, found))
}

/// A number that is not zero, as text.
fn set(number: &str) -> Option<Vec<u8>> {
    (number != "0").then(|| number.as_bytes().to_vec())
}

/// Parses a line of /proc/net/netlink: address, protocol, port, and so on; the inode number is the last.
fn netlink_line(line: &str) -> Option<(u64, SocketLine)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (protocol, local) = (words.get(1)?.parse().ok(), set(words.get(2)?));
    let found = SocketLine { table: "netlink", protocol, local, ..SocketLine::default() };
    Some((words.get(9)?.parse().ok()?, found))
}

/// Parses a line of /proc/net/packet: address, references, type, protocol, device, and so on; the inode
/// number is the last.
fn packet_line(line: &str) -> Option<(u64, SocketLine)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let found = SocketLine {
        table: "packet",
        class: words.get(2)?.parse().ok().and_then(class),
        protocol: u32::from_str_radix(words.get(3)?, 16).ok(),
        local: set(words.get(4)?),
        ..SocketLine::default()
    };
    Some((words.get(8)?.parse().ok()?, found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_all_tables_are_taken_apart() {
        let text =
            "0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 77 1";
        let (inode, found) = internet("tcp", text).unwrap();
        assert_eq!((inode, found.table, found.state), (77, "tcp", Some("LISTEN")));
        assert_eq!((found.local.unwrap(), found.remote), (b"127.0.0.1:8080".to_vec(), None));
        let text = "1: 00000000000000000000000001000000:0050 00000000000000000000000001000000:0051 01 \
                    0:0 0:0 0 0 0 78 1";
        let (_, found) = internet("tcp6", text).unwrap();
        let ends = (found.local.unwrap(), found.remote.unwrap());
        assert_eq!(ends, (b"[::1]:80".to_vec(), b"[::1]:81".to_vec()));
        let text = b"0000000000000000: 00000002 00000000 00010000 0005 01 79 /a b ";
        let (inode, found) = unix(text).unwrap();
        assert_eq!((inode, found.class, found.state), (79, Some("seqpacket"), Some("LISTEN")));
        assert_eq!(found.local.unwrap(), b"/a b ");
        let (_, found) = unix(b"0: 00000003 00000000 00000000 0001 03 80").unwrap();
        assert_eq!((found.state, found.local), (Some("CONNECTED"), None));
        let text =
            "0000000000000000 15  4242       00000002 0        0        0     2        0        81";
        let (inode, found) = netlink_line(text).unwrap();
        assert_eq!((inode, found.protocol, found.local), (81, Some(15), Some(b"4242".to_vec())));
        let text = "0000000000000000 3      3    0003   2     1 0      0      82";
        let (inode, found) = packet_line(text).unwrap();
        assert_eq!((inode, found.class, found.protocol), (82, Some("raw"), Some(3)));
        assert_eq!(found.local.unwrap(), b"2");
    }

    proptest::proptest! {
        #[test]
        fn no_line_makes_it_panic(text in "[0-9A-Fa-f:@/ ]{0,120}") {
            let _ = (internet("udp", &text), unix(text.as_bytes()));
            let _ = (netlink_line(&text), packet_line(&text));
        }
    }
}
