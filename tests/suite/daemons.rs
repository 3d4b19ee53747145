//! Scans of unmodified daemons: each of their descriptors has a kind other than opaque, there is no
//! message, and each request is answered while the daemon is scanned frozen again and again.

use crate::harness::{
    MKFD, Pipeline, Scratch, Target, command, pipeline, python, root, settled, show, which,
};
use crate::rights;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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

/// Starts redis-server, which listens at this port, and at this path.
fn redis(scratch: &Scratch, port: &str, socket: &str) -> Target {
    let words = ["redis-server", "--port", port, "--unixsocket", socket, "--dir", scratch.dir()];
    daemon("[ -S \"$0\" ]", socket, &[&words[..], &["--appendonly", "yes"]].concat())
}

#[test]
fn redis_server_has_no_opaque_descriptor() {
    needs!(which("redis-server").is_some(), "redis-server is missing");
    let scratch = Scratch::new();
    let (port, socket) = (port(), scratch.file("redis.sock"));
    let target = redis(&scratch, &port, &socket);
    let mut client = TcpStream::connect(format!("127.0.0.1:{port}")).expect("a client");
    let mut other = std::os::unix::net::UnixStream::connect(&socket).expect("a client");
    // A client that gets an answer was accepted.
    client.write_all(b"PING\r\n").and_then(|()| client.read_exact(&mut [0; 7])).expect("PONG");
    other.write_all(b"PING\r\n").and_then(|()| other.read_exact(&mut [0; 7])).expect("PONG");
    let kinds = scanned(&scratch, &target.said, 1);
    has(&kinds, &[("epoll", 1), ("pipe", 2), ("regular", 1), ("tcp", 2), ("unix", 2)]);
}

/// Starts nginx with two workers, which listen at this port, and at this path. None if it is missing.
fn nginx(scratch: &Scratch, port: &str, socket: &str) -> Option<Target> {
    // PATH may lack this directory.
    let nginx = which("nginx").unwrap_or("/usr/sbin/nginx".into());
    if !nginx.is_file() {
        return None;
    }
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
    Some(daemon(ready, socket, &[&words[..], &["-g", "daemon off;"]].concat()))
}

#[test]
fn nginx_and_its_workers_have_no_opaque_descriptor() {
    let scratch = Scratch::new();
    let Some(target) = nginx(&scratch, &port(), &scratch.file("nginx.sock")) else {
        skip!("nginx is missing");
    };
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

/// The newest version of PostgreSQL, and the user who runs it.
struct Postgres {
    bin: std::path::PathBuf,
    user: &'static [&'static str],
    data: String,
    port: String,
}

impl Postgres {
    /// None if it is missing.
    fn new(scratch: &Scratch) -> Option<Postgres> {
        let newest = fs::read_dir("/usr/lib/postgresql").ok()?.flatten().map(|it| it.path()).max();
        let bin = newest.map(|dir| dir.join("bin")).filter(|bin| bin.join("initdb").is_file())?;
        // postgres refuses to run as root, and as a user without a name.
        let user = &["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"];
        let user: &[&str] = if root() { user } else { &[] };
        Some(Postgres { bin, user, data: scratch.file("data"), port: port() })
    }

    fn program(&self, name: &str) -> String {
        self.bin.join(name).to_str().unwrap().to_owned()
    }

    /// Makes a database, and starts the server.
    fn start(&self) -> Target {
        let Postgres { user, data, port, .. } = self;
        fs::create_dir(data).unwrap();
        if root() {
            pipeline(&[&["chown", "postgres:postgres", data]]).ok();
        }
        let initdb = self.program("initdb");
        let words = [&initdb, "-D", data, "-A", "trust", "--no-sync"];
        let init: &[&[&str]] = &[&[user, &words[..]].concat()];
        Pipeline::new(init).cwd("/").run().ok();
        let server = self.program("postgres");
        let words = [&server[..], "-D", data, "-k", data, "-h", "127.0.0.1", "-p", port];
        let pid_file = format!("{data}/postmaster.pid");
        daemon("grep -q '^ready' \"$0\"", &pid_file, &[user, &words[..]].concat())
    }

    /// A command that asks the server.
    fn client(&self, query: &str) -> std::process::Command {
        let Postgres { user, data, port, .. } = self;
        let psql = self.program("psql");
        let words = [&psql, "-At", "-h", data, "-p", port, "-c", query, "postgres"];
        command(&[user, &words[..]].concat())
    }

    /// Ends the server regularly, so that it leaves no shared memory.
    fn stop(target: &Target) {
        let stop = "kill -INT \"$0\"; while kill -0 \"$0\" 2>/dev/null; do sleep 0.05; done";
        pipeline(&[&["sh", "-c", stop, &target.said]]).ok();
    }
}

#[test]
fn postgres_and_its_backends_have_no_opaque_descriptor() {
    let scratch = Scratch::new();
    let Some(postgres) = Postgres::new(&scratch) else { skip!("postgresql is missing") };
    may!(rights::user_has_a_name(postgres.user));
    let target = postgres.start();
    let mut client = postgres.client("select pg_sleep(1000)");
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
    Postgres::stop(&target);
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

/// Tells the other thread to end, also if this one panics.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends requests until `until` is true for their number. Gives the number, and the longest time that
/// an answer took. Fails if one is not answered.
fn ask(
    request: &mut dyn FnMut() -> Result<(), String>,
    until: impl Fn(usize) -> bool,
) -> (usize, Duration) {
    let (mut count, mut longest) = (0, Duration::ZERO);
    while !until(count) {
        let begun = Instant::now();
        request().unwrap_or_else(|why| panic!("request {count}: {why}"));
        longest = longest.max(begun.elapsed());
        count += 1;
    }
    (count, longest)
}

/// A daemon answers each request while its tree is scanned frozen, with contents, again and again: at
/// least 5 scans and 5 requests, or 50 and 50 with `FDKIT_SOAK=1`. Prints the longest time of an answer,
/// without scans and with them.
#[track_caller]
fn answers(name: &str, pid: &str, mut request: impl FnMut() -> Result<(), String>) {
    let scratch = Scratch::new();
    let least = if std::env::var_os("FDKIT_SOAK").is_some() { 50 } else { 5 };
    let begun = Instant::now();
    let (alone, longest_alone) =
        ask(&mut request, |count| count >= 5 && begun.elapsed() > Duration::from_secs(1));
    let (scans, ended) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (scanned, longest) = thread::scope(|scope| {
        scope.spawn(|| {
            let _ends = Ends(&ended);
            let file = scratch.file("a.fdi");
            let scan = ["fdscan", "--freeze", "--data", "--tree", "-o", &file, pid];
            while !ended.load(Ordering::Relaxed) {
                // Status 1: a child of the daemon has ended meanwhile.
                let ran = pipeline(&[&scan]);
                assert!(ran.status(0) <= 1, "{name}: {}", ran.whole());
                scans.fetch_add(1, Ordering::Relaxed);
            }
        });
        let _ends = Ends(&ended);
        let enough = |count| count >= least && scans.load(Ordering::Relaxed) >= least;
        ask(&mut request, |count| enough(count) || ended.load(Ordering::Relaxed))
    });
    let scans = scans.into_inner();
    println!(
        "{name}: {alone} requests in a second, the longest {longest_alone:?}; \
         {scanned} during {scans} scans, the longest {longest:?}"
    );
}

/// Sends a request on a new connection, and reads the answer to its end.
fn exchange(port: &str, request: &str) -> Result<String, String> {
    let mut answer = String::new();
    let mut connection =
        TcpStream::connect(format!("127.0.0.1:{port}")).map_err(|why| why.to_string())?;
    let exchanged = connection
        .write_all(request.as_bytes())
        .and_then(|()| connection.read_to_string(&mut answer));
    exchanged.map(|_| answer).map_err(|why| why.to_string())
}

/// Runs a client that prints one line.
fn prints(mut client: std::process::Command, wanted: &str) -> Result<(), String> {
    let out = client.stdin(Stdio::null()).output().map_err(|why| why.to_string())?;
    match String::from_utf8_lossy(&out.stdout).trim() == wanted {
        true => Ok(()),
        false => Err(format!("{}: {}", out.status, String::from_utf8_lossy(&out.stderr))),
    }
}

#[test]
fn redis_server_answers_while_it_is_scanned() {
    needs!(which("redis-server").is_some(), "redis-server is missing");
    let scratch = Scratch::new();
    let port = port();
    let target = redis(&scratch, &port, &scratch.file("redis.sock"));
    let mut number = 0;
    answers("redis-server", &target.said, || {
        number += 1;
        let answer = exchange(&port, &format!("SET n {number}\r\nGET n\r\nQUIT\r\n"))?;
        let length = number.to_string().len();
        let wanted = format!("+OK\r\n${length}\r\n{number}\r\n+OK\r\n");
        if answer == wanted { Ok(()) } else { Err(answer) }
    });
}

#[test]
fn nginx_answers_while_it_is_scanned() {
    let scratch = Scratch::new();
    let port = port();
    let Some(target) = nginx(&scratch, &port, &scratch.file("nginx.sock")) else {
        skip!("nginx is missing");
    };
    answers("nginx", &target.said, || {
        let answer = exchange(&port, "GET / HTTP/1.0\r\n\r\n")?;
        if answer.starts_with("HTTP/1.1 204") { Ok(()) } else { Err(answer) }
    });
}

#[test]
fn postgres_answers_while_it_is_scanned() {
    let scratch = Scratch::new();
    let Some(postgres) = Postgres::new(&scratch) else { skip!("postgresql is missing") };
    may!(rights::user_has_a_name(postgres.user));
    let target = postgres.start();
    answers("postgres", &target.said, || prints(postgres.client("select 41 + 1"), "42"));
    Postgres::stop(&target);
}

#[test]
fn tmux_answers_while_it_is_scanned() {
    needs!(which("tmux").is_some(), "tmux is missing");
    let scratch = Scratch::new();
    let socket = scratch.file("tmux.sock");
    let tmux = ["tmux", "-f", "/dev/null", "-S", &socket];
    let session = [&tmux[..], &["new-session", "-d", "sh"]].concat();
    pipeline(&[&[&[MKFD, "exec", "--"], &session[..]].concat()]).ok();
    let pid = pipeline(&[&[&tmux[..], &["display-message", "-p", "#{pid}"]].concat()]).ok().text();
    answers("tmux", pid.trim(), || {
        prints(command(&[&tmux[..], &["display-message", "-p", "#{window_panes}"]].concat()), "1")
    });
    pipeline(&[&[&tmux[..], &["kill-server"]].concat()]).ok();
}

#[test]
fn sshd_admits_every_login_while_it_is_scanned() {
    // PATH may lack this directory.
    let sshd = which("sshd").unwrap_or("/usr/sbin/sshd".into());
    needs!(sshd.is_file() && which("ssh").is_some(), "sshd or ssh is missing");
    needs!(root(), "sshd that admits others takes root");
    let scratch = Scratch::new();
    let (port, key, host) = (port(), scratch.file("key"), scratch.file("host"));
    for file in [&key, &host] {
        pipeline(&[&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file]]).ok();
    }
    // The directory that sshd's unit makes: its unprivileged child changes its root to it.
    fs::create_dir_all("/run/sshd").unwrap();
    let (keys, conf) = (format!("{key}.pub"), scratch.file("sshd_config"));
    let text = format!(
        "ListenAddress 127.0.0.1\nPort {port}\nHostKey {host}\nAuthorizedKeysFile {keys}
PermitRootLogin yes\nStrictModes no\nPidFile none\nUsePAM no\nMaxStartups 100\n"
    );
    fs::write(&conf, text).unwrap();
    let sshd = sshd.to_str().unwrap();
    let ready = format!("bash -c ': <>/dev/tcp/127.0.0.1/{port}' 2>/dev/null");
    let target = daemon(&ready, "", &[sshd, "-D", "-e", "-f", &conf]);
    let ssh = format!(
        "ssh -F none -i {key} -p {port} -o BatchMode=yes -o StrictHostKeyChecking=no \
         -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR root@127.0.0.1 echo welcome"
    );
    let words: Vec<&str> = ssh.split_whitespace().collect();
    answers("sshd", &target.said, || prints(command(&words), "welcome"));
}
