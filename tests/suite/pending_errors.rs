//! Errors that are pending on sockets: a scan does not take them from the program.

use crate::harness::{Scratch, Target, pipeline, which};
use crate::rights;

/// Defines `pending`, the sockets on which poll(2) reports an error, by name. The part that makes
/// them is put before it.
const CHECK: &str = "
import os, select, signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
def reports(s):
    poll = select.poll()
    poll.register(s, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))
for _ in range(200):
    if all(map(reports, sockets.values())): break
    time.sleep(.01)
print(*(f'{name}={s.fileno()}' for name, s in sockets.items() if reports(s)), flush=True)
signal.sigwait([signal.SIGUSR1])
errors = {name: s.getsockopt(SOL_SOCKET, SO_ERROR) for name, s in sockets.items()}
print(*(f'{name}={os.strerror(error)}' for name, error in errors.items()), flush=True)
time.sleep(1000)
";

/// Scans a program that makes `sockets` by a script, in all modes. Each of them must keep its
/// error. Gives what the last scan with `--data` said, and the numbers of the sockets.
#[track_caller]
fn assert_errors_are_kept(make: &str, expected: &[(&str, &str)]) -> (String, Vec<String>) {
    let scratch = Scratch::new();
    let file = scratch.file("a.fdi");
    let script = format!("from socket import *\n{make}\n{CHECK}");
    let mut target = Target::program(&["python3", "-c", &script]);
    let names = |line: &str| {
        let words = line.split_whitespace().filter_map(|word| word.split_once('='));
        words.map(|(name, fd)| (name.to_owned(), fd.to_owned())).unzip()
    };
    let (made, numbers): (Vec<String>, Vec<String>) = names(&target.said);
    let wanted: Vec<&str> = expected.iter().map(|(name, _)| *name).collect();
    assert_eq!(made, wanted, "no error is pending on the others");
    pipeline(&[&["fdscan", &target.pid], &["fdimg", "write", &file]]).quiet();
    let mut said = String::new();
    for options in [&["--data"][..], &["--data", "--freeze"]] {
        let scan = [&["fdscan"], options, &[&target.pid]].concat();
        let ran = pipeline(&[&scan, &["fdimg", "write", &file]]);
        said = ran.stderr(0).to_owned();
        assert!(matches!(ran.status(0), 0 | 1), "{}", ran.whole());
    }
    pipeline(&[&["fdscan", "--passive", &target.pid], &["fdimg", "write", &file]]).ok();
    pipeline(&[&["kill", "-USR1", &target.pid]]).ok();
    let errors = expected.iter().map(|(name, error)| format!("{name}={error}"));
    assert_eq!(target.line(), errors.collect::<Vec<_>>().join(" "));
    (said, numbers)
}

#[test]
fn a_scan_does_not_take_the_error_of_a_unix_udp_or_tcp_socket() {
    needs!(which("python3").is_some(), "python3 is missing");
    let make = "
sockets = {}
for name, kind in ('stream', SOCK_STREAM), ('seqpacket', SOCK_SEQPACKET):
    for queued in b'', b'unread':
        one, other = socketpair(AF_UNIX, kind)
        one.send(b'never read')
        if queued: other.send(queued)
        other.close()
        sockets[name + queued.decode()] = one
# A peer that connects elsewhere drops its queue, and reports that.
one, other = socketpair(AF_UNIX, SOCK_DGRAM)
third = socket(AF_UNIX, SOCK_DGRAM)
third.bind('')
one.send(b'never read'); other.send(b'unread')
other.connect(third.getsockname())
sockets['dgram'] = one
# The port of a socket that is closed now.
gone = socket(AF_INET, SOCK_DGRAM); gone.bind(('127.0.0.1', 0))
udp = socket(AF_INET, SOCK_DGRAM)
udp.connect(gone.getsockname())
gone.close()
udp.send(b'refused')
sockets['udp'] = udp
# A close with unread bytes resets the connection.
listener = create_server(('127.0.0.1', 0))
tcp = create_connection(listener.getsockname())
server, _ = listener.accept()
tcp.send(b'never read'); server.send(b'unread')
# The close resets the connection only if the bytes have arrived.
server.recv(1, MSG_PEEK)
server.close()
sockets['tcp'] = tcp
";
    let reset = "Connection reset by peer";
    let (said, numbers) = assert_errors_are_kept(
        make,
        &[
            ("stream", reset),
            ("streamunread", reset),
            ("seqpacket", reset),
            ("seqpacketunread", reset),
            ("dgram", reset),
            ("udp", "Connection refused"),
            ("tcp", reset),
        ],
    );
    for number in &numbers[..6] {
        let line = format!("fd {number}: its contents: an error is pending on it");
        assert!(said.contains(&line), "{line}\n{said}");
    }
}

#[test]
fn a_scan_does_not_take_the_error_of_a_raw_netlink_or_packet_socket() {
    needs!(which("python3").is_some(), "python3 is missing");
    may!(rights::devices(), rights::capability("net_raw"));
    let make = "
import ctypes, fcntl, struct
CLONE_NEWNET = 0x40000000
assert ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0
control = socket(AF_INET, SOCK_DGRAM)
def set_lo(flags):
    SIOCSIFFLAGS = 0x8914
    fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack('16sh22x', b'lo', flags))
IFF_UP = 1
set_lo(IFF_UP)
raw = socket(AF_INET, SOCK_RAW, IPPROTO_UDP)
raw.connect(('127.0.0.1', 0))
# A datagram without a checksum, from port 9 to port 9, which no socket has.
raw.send(struct.pack('!HHHH', 9, 9, 8, 0))
NETLINK_USERSOCK = 2
sender = socket(AF_NETLINK, SOCK_RAW, NETLINK_USERSOCK)
netlink = socket(AF_NETLINK, SOCK_RAW, NETLINK_USERSOCK)
netlink.setsockopt(SOL_SOCKET, SO_RCVBUF, 2000)
netlink.bind((0, 1))
for _ in range(100):
    # It is also sent to the kernel, which does not receive this protocol.
    try: sender.sendto(b'x' * 1000, (0, 1))
    except ConnectionRefusedError: pass
packet = socket(AF_PACKET, SOCK_RAW, 0)
packet.bind(('lo', 0x0300))
set_lo(0)
sockets = {'raw': raw, 'netlink': netlink, 'packet': packet}
";
    assert_errors_are_kept(
        make,
        &[
            ("raw", "Connection refused"),
            ("netlink", "No buffer space available"),
            ("packet", "Network is down"),
        ],
    );
}
