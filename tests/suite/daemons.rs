//! Scans of unmodified daemons: each of their descriptors has a kind other than opaque, and there
//! is no message.

use crate::harness::{Pipeline, Scratch, Target, pipeline, root, settled, show, which};
use crate::pipelines::python;
use crate::rights;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

/// A free TCP port.
fn port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port().to_string()
}

/// Starts a daemon that is ready once the shell command `ready` succeeds; `about` is its `$0`. The
/// first line printed is the process id of the daemon.
fn daemon(ready: &str, about: &str, words: &[&str]) -> Target {
    let script = format!("\"$@\" >&2 & while ! {{ {ready}; }}; do sleep 0.05; done; echo $!; wait");
    Target::program(&[&["sh", "-c", &script, about], words].concat())
}

/// Waits until a daemon and all its children have started.
fn all_settled(pid: &str) {
    let children = || fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("them");
    loop {
        let before = children();
        [pid].into_iter().chain(before.split_whitespace()).for_each(settled);
        if children() == before {
            return;
        }
    }
}

/// Scans a tree with and without contents, and gives the number of descriptors of each kind.
#[track_caller]
fn scanned(scratch: &Scratch, pid: &str, tasks: usize) -> BTreeMap<String, usize> {
    all_settled(pid);
    let mut kinds = BTreeMap::new();
    for options in [&["--tree", pid][..], &["--tree", "--data", pid]] {
        let file = scratch.file("a.fdi");
        let ran = pipeline(&[&[&["fdscan"], options].concat(), &["fdimg", "write", &file]]).quiet();
        let shown = show(&file);
        let of = |key: &str| shown[key].as_array().expect("a list").clone();
        assert!(of("tasks").len() >= tasks, "{} tasks\n{}", of("tasks").len(), ran.whole());
        kinds.clear();
        for each in of("descriptors") {
            let kind = each["kind"].as_str().expect("a kind").to_owned();
            assert_ne!(kind, "opaque", "{each:#}");
            *kinds.entry(kind).or_default() += 1;
        }
        pipeline(&[&["fdimg", "verify", &file]]).quiet();
    }
    kinds
}

/// Fails unless there are at least this many descriptors of each kind.
#[track_caller]
fn has(kinds: &BTreeMap<String, usize>, wanted: &[(&str, usize)]) {
    for (kind, least) in wanted {
        assert!(kinds.get(*kind) >= Some(least), "fewer of {kind} than {least}: {kinds:?}");
    }
}

#[test]
fn redis_server_has_no_opaque_descriptor() {
    needs!(which("redis-server").is_some(), "redis-server is missing");
    let scratch = Scratch::new();
    let (port, socket) = (port(), scratch.file("redis.sock"));
    let words = ["redis-server", "--port", &port, "--unixsocket", &socket, "--dir", scratch.dir()];
    let target = daemon("[ -S \"$0\" ]", &socket, &[&words[..], &["--appendonly", "yes"]].concat());
    let mut client = std::net::TcpStream::connect(format!("127.0.0.1:{port}")).expect("a client");
    let mut other = std::os::unix::net::UnixStream::connect(&socket).expect("a client");
    // A client that gets an answer was accepted.
    client.write_all(b"PING\r\n").and_then(|()| client.read_exact(&mut [0; 7])).expect("PONG");
    other.write_all(b"PING\r\n").and_then(|()| other.read_exact(&mut [0; 7])).expect("PONG");
    let kinds = scanned(&scratch, &target.said, 1);
    has(&kinds, &[("epoll", 1), ("pipe", 2), ("regular", 1), ("tcp", 2), ("unix", 2)]);
}

#[test]
fn nginx_and_its_workers_have_no_opaque_descriptor() {
    // PATH may lack this directory.
    let nginx = which("nginx").unwrap_or("/usr/sbin/nginx".into());
    needs!(nginx.is_file(), "nginx is missing");
    let scratch = Scratch::new();
    let (port, socket) = (port(), scratch.file("nginx.sock"));
    let text = format!(
        "worker_processes 2; pid nginx.pid; error_log error.log info;
events {{ worker_connections 64; }}
http {{
  access_log access.log; client_body_temp_path body; proxy_temp_path proxy;
  fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  server {{ listen 127.0.0.1:{port} reuseport; listen [::1]:{port}; listen unix:{socket};
    location / {{ return 204; }} }}
}}"
    );
    let conf = scratch.file("nginx.conf");
    fs::write(&conf, text).unwrap();
    let words = [nginx.to_str().unwrap(), "-p", scratch.dir(), "-c", &conf, "-e", "error.log"];
    let ready = "[ -S \"$0\" ] && [ -n \"$(cat /proc/$!/task/$!/children)\" ]";
    let target = daemon(ready, &socket, &[&words[..], &["-g", "daemon off;"]].concat());
    let kinds = scanned(&scratch, &target.said, 3);
    has(&kinds, &[("epoll", 2), ("eventfd", 2), ("regular", 4), ("tcp", 4), ("unix", 4)]);
}

/// Whether a backend of this server executes a query.
fn asks(server: &str) -> bool {
    let children = fs::read_to_string(format!("/proc/{server}/task/{server}/children"));
    let title = |pid: &str| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let selects = |pid: &str| String::from_utf8_lossy(&title(pid)).contains("SELECT");
    children.unwrap_or_default().split_whitespace().any(selects)
}

#[test]
fn postgres_and_its_backends_have_no_opaque_descriptor() {
    let newest = || fs::read_dir("/usr/lib/postgresql").ok()?.flatten().map(|it| it.path()).max();
    let Some(bin) = newest().map(|dir| dir.join("bin")).filter(|bin| bin.join("initdb").is_file())
    else {
        skip!("postgresql is missing");
    };
    // postgres refuses to run as root, and as a user without a name.
    let user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"];
    let user: &[&str] = if root() { &user } else { &[] };
    may!(rights::user_has_a_name(user));
    let scratch = Scratch::new();
    let (port, data) = (port(), scratch.file("data"));
    fs::create_dir(&data).unwrap();
    if root() {
        pipeline(&[&["chown", "postgres:postgres", &data]]).ok();
    }
    let program = |name: &str| bin.join(name).to_str().unwrap().to_owned();
    let words = [&program("initdb"), "-D", &data, "-A", "trust", "--no-sync"];
    let init: &[&[&str]] = &[&[user, &words].concat()];
    Pipeline::new(init).cwd("/").run().ok();
    let server = program("postgres");
    let words = [&server[..], "-D", &data, "-k", &data, "-h", "127.0.0.1", "-p", &port];
    let ready = "grep -q '^ready' \"$0\"";
    let pid_file = format!("{data}/postmaster.pid");
    let target = daemon(ready, &pid_file, &[user, &words].concat());
    let words =
        [&program("psql"), "-h", &data, "-p", &port, "-c", "select pg_sleep(1000)", "postgres"];
    let mut client = crate::harness::command(&[user, &words].concat());
    let mut client = client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("psql");
    let begin = Instant::now();
    while !asks(&target.said) {
        assert!(begin.elapsed() < Duration::from_secs(60), "no backend answers psql");
        thread::sleep(Duration::from_millis(10));
    }
    let kinds = scanned(&scratch, &target.said, 6);
    has(
        &kinds,
        &[("epoll", 3), ("pipe", 6), ("regular", 2), ("signalfd", 3), ("tcp", 1), ("unix", 2)],
    );
    // postgres ends regularly, so that it leaves no shared memory.
    let stop = "kill -INT \"$0\"; while kill -0 \"$0\" 2>/dev/null; do sleep 0.05; done";
    pipeline(&[&["sh", "-c", stop, &target.said]]).ok();
    let _ = client.wait();
}

#[test]
fn an_asyncio_program_has_no_opaque_descriptor() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let program = "import asyncio, signal, sys
async def serve(reader, writer):
    writer.write(await reader.readline()); await writer.drain()
async def main():
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, lambda: None)
    tcp = await asyncio.start_server(serve, '127.0.0.1', 0)
    await asyncio.start_unix_server(serve, sys.argv[1])
    await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=('127.0.0.1', 0))
    child = await asyncio.create_subprocess_exec('cat', stdin=-1, stdout=-1)
    child.stdin.write(b'hello'); await child.stdout.readexactly(5)
    port = tcp.sockets[0].getsockname()[1]
    await asyncio.open_connection('127.0.0.1', port)
    await asyncio.open_unix_connection(sys.argv[1])
    print('ready', flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())";
    let target = Target::program(&[python, "-c", program, &scratch.file("sock")]);
    let kinds = scanned(&scratch, &target.pid, 2);
    has(&kinds, &[("epoll", 1), ("pipe", 6), ("tcp", 3), ("udp", 1), ("unix", 5)]);
}
