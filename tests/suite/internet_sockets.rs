//! Internet sockets: real servers and clients, connections, addresses in use, network namespaces,
//! and sender addresses.

use crate::harness::{
    MKFD, Pipeline, Scratch, Target, pipeline, python, restored, scan, show, tool, which,
};
use crate::rights;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// The output of `fdimg show`.
fn names(file: &str) -> String {
    pipeline(&[&["fdimg", "show", file]]).ok().text()
}

/// The first number in a line, which is the port.
fn port(said: &str) -> u16 {
    let word = said.split_whitespace().find_map(|word| word.parse().ok());
    word.unwrap_or_else(|| panic!("no port in {said:?}"))
}

#[test]
fn a_python_web_server_serves_clients_in_a_new_process() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    std::fs::write(scratch.file("page"), "what is served").unwrap();
    let web = [python, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"];
    let target = Target::program(&[&web[..], &["--directory", scratch.dir()]].concat());
    let at = port(target.said.split_once(" port ").expect("a port").1);
    let get = || {
        let mut client = TcpStream::connect(("127.0.0.1", at)).unwrap();
        client.write_all(b"GET /page HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(get().ends_with("what is served"));
    // The client may see the end of the connection before the server closes its socket.
    let sockets = || target.open().iter().filter(|(_, link)| link.starts_with("socket:")).count();
    let begun = Instant::now();
    while sockets() > 1 {
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", target.open());
    }
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    drop(target);
    assert!(names(&file).contains(&format!("tcp 127.0.0.1:{at} LISTEN backlog=5")));
    let script = "
import http.server, os, socket, sys
os.chdir(sys.argv[1])
s = http.server.HTTPServer(('', 0), http.server.SimpleHTTPRequestHandler, False)
s.socket.close()
s.socket = socket.socket(fileno=3)
print('ready', flush=True)
s.serve_forever()
";
    let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2", "--"];
    let again = Target::ready(&[&restore[..], &[python, "-c", script, scratch.dir()]].concat());
    assert!(get().ends_with("what is served"));
    drop(again);
}

#[test]
fn the_listening_socket_of_redis_server_is_restored_in_another_command() {
    needs!(which("redis-server").is_some(), "redis-server is missing");
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    // The port was free a moment ago; redis-server cannot let the kernel choose one.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let at = free.port().to_string();
    let script = "redis-server \"$@\" >/dev/null & p=$!; \
        for i in $(seq 500); do grep -qi \":$(printf %04X $0) .* 0A\" /proc/net/tcp && break; \
        sleep 0.02; done; echo $p; wait";
    let redis = ["--port", &at, "--bind", "127.0.0.1", "--save", "", "--dir", scratch.dir()];
    let target = Target::program(&[&["sh", "-c", script, &at], &redis[..]].concat());
    let mut client = TcpStream::connect(free).unwrap();
    client.write_all(b"PING\r\n").unwrap();
    let mut answer = [0; 7];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"+PONG\r\n");
    let file = scratch.file("a.fdi");
    scan(&target.said, &file);
    let shown = names(&file);
    let listener = format!("tcp 127.0.0.1:{at} LISTEN backlog=511");
    let connection = format!("tcp 127.0.0.1:{at} -> {} ESTABLISHED", client.local_addr().unwrap());
    for text in [&listener, &connection] {
        assert!(shown.contains(text), "{text}\n{shown}");
    }
    client.write_all(b"PING\r\n").unwrap();
    client.read_exact(&mut answer).unwrap();
    drop((client, target));
    let all = show(&file);
    let all = all["descriptors"].as_array().unwrap();
    let listens = |it: &&serde_json::Value| it["body"]["listens"].is_array();
    let number = all.iter().find(listens).expect("a listener")["fd"].to_string();
    let only = scratch.file("b.fdi");
    pipeline(&[&["fdimg", "select", "-F", &number, &file], &["fdimg", "write", &only]]).ok();
    let script = "
import os, socket, sys
n = int(sys.argv[1])
assert not os.get_blocking(n)
s = socket.socket(fileno=n)
s.setblocking(True)
print('ready', flush=True)
c, _ = s.accept()
c.sendall(c.recv(9))
";
    let restore = ["fdrestore", "-i", &only, "--inherit", "0,1,2", "--", python, "-c", script];
    let again = Target::ready(&[&restore[..], &[&number]].concat()).expect("no skip");
    // The connections in TIME_WAIT do not prevent the bind, since SO_REUSEADDR is restored.
    let mut client = TcpStream::connect(free).unwrap();
    client.write_all(b"hello").unwrap();
    let mut answer = [0; 5];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
    drop(again);
}

#[test]
fn a_connection_is_not_disturbed_by_a_scan_and_its_restore_is_refused_with_three_cures() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let script = "
import socket, sys, time
s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
print(s.fileno(), flush=True)
while len(s.recv(6, socket.MSG_PEEK)) < 6:
    time.sleep(0.01)
s.sendall(s.recv(6).upper())
time.sleep(60)
";
    let target = Target::program(&[python, "-c", script, &at.port().to_string()]);
    let number = &target.said.clone();
    let (mut server, from) = listener.accept().unwrap();
    server.write_all(b"abc").unwrap();
    let file = scratch.file("a.fdi");
    let title = format!("tcp {from} -> {at} ESTABLISHED queued=3");
    // The data may not have arrived yet.
    let begin = Instant::now();
    loop {
        scan(&target.pid, &file);
        let shown = names(&file);
        if shown.contains(&title) {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "{title}\n{shown}");
    }
    let shown = show(&file);
    let all = shown["descriptors"].as_array().unwrap();
    let it = all.iter().find(|it| it["kind"] == "tcp").unwrap();
    assert_eq!(it["body"]["connection"]["queued"], 3);
    assert_eq!(it["body"]["socket"]["options"]["TCP_NODELAY"], 1);
    server.write_all(b"def").unwrap();
    let mut answer = [0; 6];
    server.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"ABCDEF", "what the process read");
    drop((target, server));

    let refused = format!("fd {number} (socket:[");
    let why = format!("connections are not restored: its peer is {at} (ESTABLISHED)");
    let cures = ["--inherit KEY=FD", "--missing null", "--missing skip", "(status 6)"];
    restored(&file, &[], &["true"]).refuses(125, &[&[&*refused, &why], &cures[..]].concat());
    let look = "
import os, socket, sys
n = int(sys.argv[1])
if not os.path.exists(f'/proc/self/fd/{n}'):
    sys.exit('closed')
s = socket.socket(fileno=n)
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
print(s.family.name, s.type.name, s.recv(5))
try:
    s.send(b'x')
except BrokenPipeError:
    print('broken')
";
    let look = [python, "-c", look, number];
    let null = restored(&file, &["--missing", "null"], &look).ok();
    assert_eq!(null.text(), "AF_INET SOCK_STREAM b''\nbroken\n");
    restored(&file, &["--missing", "skip"], &look).refuses(1, &["closed"]);
    let key = format!("{number}=0");
    let handed = restored(&file, &["--inherit", &key], &["readlink", &format!("/dev/fd/{number}")]);
    assert_eq!(handed.ok().text(), "/dev/null\n");
}

#[test]
fn an_address_in_use_or_of_another_machine_is_refused_by_name() {
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["tcp@3", "udp@4"]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    let taken = [
        "fd 3",
        "fd 4",
        "127.0.0.1:",
        "is in use, perhaps by the process that was scanned: end it first",
    ];
    restored(&file, &[], &["echo", "run"]).refuses(125, &[&taken[..], &["(status 6)"]].concat());
    pipeline(&[&["fdrestore", "-n", "-i", &file, "--inherit", "0,1,2"]]).refuses(6, &taken);
    drop(target);
    restored(&file, &[], &["mkfd", "check", "--dir", scratch.dir(), "tcp@3", "udp@4"]).quiet();
    // IP_FREEBIND permits to bind to an address that the machine does not have; the forged record
    // lacks this option.
    let target = target!(scratch.dir(), &["udp@3:host=192.0.2.77,set=0.15.1"]);
    scan(&target.pid, &file);
    drop(target);
    let gone = "is not an address of this machine";
    let mut body = show(&file)["descriptors"][0]["body"].clone();
    body["socket"].as_object_mut().unwrap().remove("options");
    let forged = crate::forged::forged(&std::fs::read(&file).unwrap(), |items| {
        for item in items {
            if let fdkit::image::Item::File(file) = item {
                file.body = serde_cbor::to_vec(&body).unwrap();
            }
        }
    });
    let restore: &[&[&str]] = &[&["fdrestore", "--", "echo", "run"]];
    Pipeline::new(restore).stdin(forged).run().refuses(125, &["fd 3", "192.0.2.77:", gone]);
}

#[test]
fn a_socket_of_another_network_namespace_is_reported_or_refused() {
    may!(rights::namespace("--net"));
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let file = scratch.file("a.fdi");
    // The process is in another network namespace than fdrestore.
    let make = ["unshare", "--net", "--", "mkfd", "make", "--close-std", "--dir", scratch.dir()];
    let target = Target::ready(&[&make[..], &["tcp@3:host=0.0.0.0"]].concat()).unwrap();
    scan(&target.pid, &file);
    drop(target);
    let check = ["mkfd", "check", "--dir", scratch.dir(), "tcp@3:host=0.0.0.0"];
    let ran = restored(&file, &[], &check).ok();
    let said = ran.stderr(0);
    assert!(said.contains("sockets of network namespace net:["), "{said}");
    assert!(said.contains("are made in net:[") && said.lines().count() == 1, "{said}");
    // The socket is in another network namespace than its process.
    let script = "
import ctypes, socket, time
libc = ctypes.CDLL(None)
home = open('/proc/self/ns/net')
CLONE_NEWNET = 0x40000000
assert libc.unshare(CLONE_NEWNET) == 0
s = socket.socket()
assert libc.setns(home.fileno(), 0) == 0
print(s.fileno(), flush=True)
time.sleep(60)
";
    let target = Target::program(&[python, "-c", script]);
    let fd = format!("fd {} ", target.said);
    pipeline(&[&["fdscan", "-F", "tcp", &target.pid], &["fdimg", "write", &file]]).quiet();
    drop(target);
    let why = "not in that of its process: run fdrestore in that namespace (nsenter --net)";
    restored(&file, &[], &["true"])
        .refuses(125, &[&fd, "it is in network namespace net:[", why, "(status 6)"]);
}

#[test]
fn without_privileges_a_message_keeps_only_a_sender_address_of_this_machine() {
    // It takes CAP_NET_RAW to have what is scanned come from elsewhere.
    may!(rights::less("-net_raw,-net_admin"));
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let file = scratch.file("a.fdi");
    let plain = ["setpriv", "--bounding-set=-net_raw,-net_admin", "--"];
    let run = |specs: &[&str]| {
        let target = Target::make(scratch.dir(), specs).expect("no skip");
        scan(&target.pid, &file);
        drop(target);
        let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2", "--"];
        let check = ["mkfd", "check", "--dir", scratch.dir()];
        pipeline(&[&[&plain[..], &restore, &check, specs].concat()])
    };
    run(&["udp@3:data=a++b", "udp@4:v6,data=c,host=::,from=127.0.0.1"]).quiet();
    run(&["udp@3:host=0.0.0.0,data=a+b,from=198.51.100.7"])
        .refuses(1, &["2 of 2 queued messages lose their sender addresses", "senders is"]);
    // The sender is restored, too, and has its address again.
    let before = "
import socket, time
a, b = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
for s in a, b:
    s.bind(('127.0.0.1', 0))
b.sendto(b'hello', a.getsockname())
a.sendto(b'answer', b.getsockname())
print(a.fileno(), b.fileno(), flush=True)
time.sleep(60)
";
    let after = "
import socket, sys
a, b = (socket.socket(fileno=int(n)) for n in sys.argv[1].split())
assert a.recvfrom(9) == (b'hello', b.getsockname())
assert b.recvfrom(9) == (b'answer', a.getsockname())
";
    let target = Target::program(&[python, "-c", before]);
    let numbers = target.said.clone();
    scan(&target.pid, &file);
    drop(target);
    let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2", "--", python, "-c", after];
    pipeline(&[&[&plain[..], &restore, &[&numbers]].concat()]).quiet();
}

#[test]
fn a_backlog_above_4096_is_restored_and_one_above_the_limit_is_reported() {
    may!(rights::namespace("--net"));
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let raise = "echo 10000 >/proc/sys/net/core/somaxconn || exit 77; exec \"$@\"";
    let raised = ["unshare", "--net", "sh", "-c", raise, "sh"];
    let script = "
import socket, time
tcp = socket.socket(); tcp.bind(('0.0.0.0', 0)); tcp.listen(9000)
unix = socket.socket(socket.AF_UNIX); unix.bind('\\0fdkit-backlog'); unix.listen(9000)
print(flush=True)
time.sleep(1000)
";
    let mkfd = [MKFD, "exec", "--", python, "-c", script];
    let target = match Target::ready(&[&raised[..], &mkfd].concat()) {
        Ok(target) => target,
        Err(reason) => skip!("net.core.somaxconn cannot be set: {reason}"),
    };
    let (file, again) = (scratch.file("a.fdi"), scratch.file("b.fdi"));
    scan(&target.pid, &file);
    drop(target);
    let count = |file: &str| names(file).matches(" LISTEN backlog=9000").count();
    assert_eq!(count(&file), 2, "{}", names(&file));
    let restore = tool("fdrestore").to_string_lossy().into_owned();
    let restore = [&*restore, "-i", &file, "--inherit", "0,1,2", "--"];
    let sleep = [python, "-c", "import time; print(flush=True); time.sleep(1000)"];
    let target = Target::ready(&[&raised[..], &restore, &sleep].concat()).expect("no skip");
    scan(&target.pid, &again);
    assert_eq!(count(&again), 2, "{}", names(&again));
    let low = "echo 100 >/proc/sys/net/core/somaxconn; exec \"$@\"";
    let ran = pipeline(&[
        &[&["unshare", "--net", "sh", "-c", low, "sh"], &restore[..], &["true"]].concat()
    ])
    .ok();
    let why = "its backlog was 9000 and is 100: set net.core.somaxconn with sysctl(8)";
    assert_eq!(ran.said().matches(why).count(), 2, "{}", ran.whole());
}
