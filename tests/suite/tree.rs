//! fdrestore --tree: real process trees are restored as they were, or no process is left.

use crate::canonical;
use crate::forged::forged;
use crate::harness::{
    MKFD, Pipeline, Scratch, Target, command, fdsize, open_descriptors, pipeline, python, tool,
    which,
};
use crate::rights;
use fdkit::image::{Image, Item};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The time limit for everything in these tests.
const LIMIT: Duration = Duration::from_secs(60);

/// Waits until the condition holds.
#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The state of a process in /proc/PID/stat; none if the process does not exist.
fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.chars().next()
}

fn is_gone(pid: i32) -> bool {
    state(pid).is_none_or(|state| state == 'Z')
}

/// A process and its descendants.
fn descendants(pid: i32) -> Vec<i32> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(&pid) = all.get(next) {
        next += 1;
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(children.split_whitespace().map(|pid| pid.parse::<i32>().expect("a pid")));
        }
    }
    all
}

/// A process tree to scan; all processes are killed when this is dropped.
struct ProcessTree {
    child: Child,
    pid: i32,
}

impl ProcessTree {
    /// Starts a command as a session leader with /dev/null at 0, 1 and 2 and no other descriptor.
    /// Waits until it has this many living descendants, including itself, and all of them sleep.
    #[track_caller]
    fn new(words: &[&str], count: usize) -> ProcessTree {
        let child = Command::new(MKFD)
            .args([&["exec", "--", "setsid"], words].concat())
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("mkfd runs");
        let processes = ProcessTree { pid: child.id() as i32, child };
        let mut before = Vec::new();
        until(&format!("{count} processes of {words:?}"), || {
            std::thread::sleep(Duration::from_millis(30));
            let all = processes.all();
            let living = all.iter().filter(|&&pid| !is_gone(pid)).count();
            let now: Vec<_> =
                all.iter().map(|&pid| (pid, open_descriptors(pid), state(pid))).collect();
            let rest = now.iter().all(|(.., state)| matches!(state, Some('S' | 'T' | 'Z')));
            living == count && rest && std::mem::replace(&mut before, now.clone()) == now
        });
        processes
    }

    fn sh(script: &str, count: usize) -> ProcessTree {
        ProcessTree::new(&["sh", "-c", script], count)
    }

    fn all(&self) -> Vec<i32> {
        descendants(self.pid)
    }

    /// The image of the tree.
    #[track_caller]
    fn scan(&self) -> Vec<u8> {
        pipeline(&[&["fdscan", "-t", "--data", &self.pid.to_string()]]).quiet().stdout
    }
}

impl Drop for ProcessTree {
    fn drop(&mut self) {
        let all = self.all();
        all.iter().for_each(|&pid| {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        });
        let _ = self.child.wait();
        until("no process of the tree is left", || all.iter().all(|&pid| is_gone(pid)));
    }
}

/// A restored tree that fdrestore holds; all processes are killed when this is dropped.
struct HeldTree {
    child: Child,
    /// The process ids in the image, and the new ones.
    pids: Vec<(i32, i32)>,
}

impl HeldTree {
    /// Restores a tree from an image with these options. Gives status and messages if that fails.
    fn restore(image: &[u8], options: &[&str]) -> Result<HeldTree, (Option<i32>, String)> {
        let count = Image::load(image).map_or(0, |image| image.tasks.len());
        let mut child = Command::new(MKFD)
            .args(["exec", "--"])
            .arg(tool("fdrestore"))
            .arg("--tree")
            .args(options)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("fdrestore runs");
        let mut stdin = child.stdin.take().expect("piped");
        let bytes = image.to_vec();
        let feeder =
            std::thread::spawn(move || drop(std::io::Write::write_all(&mut stdin, &bytes)));
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        let mut held = HeldTree { child, pids: Vec::new() };
        let mut line = String::new();
        while held.pids.len() < count && out.read_line(&mut line).is_ok_and(|got| got > 0) {
            let (old, new) = line.trim().split_once(' ').expect("OLD NEW");
            held.pids.push((old.parse().expect("a pid"), new.parse().expect("a pid")));
            line.clear();
        }
        feeder.join().expect("fed");
        if held.pids.len() == count && count > 0 {
            return Ok(held);
        }
        assert!(held.pids.is_empty(), "some lines only: {:?}", held.pids);
        let status = held.child.wait().expect("a status").code();
        Err((status, held.said()))
    }

    /// Restores a tree, which must succeed without a message.
    #[track_caller]
    fn quiet(image: &[u8], options: &[&str]) -> HeldTree {
        HeldTree::restore(image, options)
            .unwrap_or_else(|(status, said)| panic!("{status:?}: {said}"))
    }

    /// The messages of fdrestore after its end.
    fn said(&mut self) -> String {
        let mut text = String::new();
        let err = self.child.stderr.take();
        err.map(|mut err| err.read_to_string(&mut text).expect("text"));
        text
    }

    fn coordinator(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Scans the restored tree, and compares it with the image.
    #[track_caller]
    fn is_as(&self, image: &[u8]) {
        let root = self.pids.first().expect("a task").1;
        let again = pipeline(&[&["fdscan", "-t", "--data", &root.to_string()]]).quiet().stdout;
        let same = self.pids.iter().map(|&(old, _)| (old, old)).collect();
        let back = self.pids.iter().map(|&(old, new)| (new, old)).collect();
        let (was, is) = (canonical::tree(image, &same), canonical::tree(&again, &back));
        for (name, was) in &was {
            assert_eq!(is.get(name), Some(was), "{name}");
        }
        let more: Vec<&String> = is.keys().filter(|name| !was.contains_key(*name)).collect();
        assert!(more.is_empty(), "there is more than there was: {more:?}");
        self.is_small(image);
    }

    /// Fails unless each table has the recorded numbers only and the smallest size, and each
    /// process has the title of a held task.
    #[track_caller]
    fn is_small(&self, image: &[u8]) {
        let image = Image::load(image).expect("an image");
        let mut tables: HashMap<u32, Vec<u32>> = HashMap::new();
        for slot in &image.slots {
            tables.entry(slot.table).or_default().push(slot.fd);
        }
        let new: HashMap<i32, i32> = self.pids.iter().copied().collect();
        for task in &image.tasks {
            let new = new[&task.pid];
            let numbers = tables.remove(&task.table.id).unwrap_or_default();
            let found: Vec<u32> =
                open_descriptors(new).into_iter().map(|(number, _)| number).collect();
            assert_eq!(found, numbers, "the numbers of {}", task.pid);
            let capacity = fdkit::placement::capacity(numbers.last().copied());
            assert_eq!(fdsize(new), capacity, "FDSize of {} {numbers:?}", task.pid);
            tables.insert(task.table.id, numbers);
            let title = fs::read(format!("/proc/{new}/cmdline")).expect("its title");
            let title = String::from_utf8_lossy(&title);
            assert_eq!(title.trim_end_matches('\0'), format!("fdrestore: holding {}", task.pid));
        }
    }

    /// Sends this signal to fdrestore, waits until no process is left, and gives the status.
    #[track_caller]
    fn end(mut self, signal: Signal) -> (Option<i32>, String) {
        kill(self.coordinator(), signal).expect("it is there");
        let status = self.child.wait().expect("a status").code();
        self.are_gone();
        (status, self.said())
    }

    #[track_caller]
    fn are_gone(&self) {
        let left = || self.pids.iter().filter(|pids| !is_gone(pids.1)).collect::<Vec<_>>();
        until("all of a tree are gone", || left().is_empty());
    }
}

impl Drop for HeldTree {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !std::thread::panicking() {
            self.are_gone();
        }
    }
}

/// Scans a tree, ends it, restores it, compares it with the image, and ends it by SIGTERM. Gives
/// the image.
#[track_caller]
fn round_trip(processes: ProcessTree) -> Vec<u8> {
    let image = processes.scan();
    drop(processes);
    let held = HeldTree::quiet(&image, &[]);
    held.is_as(&image);
    let (status, said) = held.end(Signal::SIGTERM);
    assert_eq!((status, said.as_str()), (Some(143), ""));
    // fdrestore cannot handle SIGKILL.
    HeldTree::quiet(&image, &[]).end(Signal::SIGKILL);
    image
}

#[test]
fn a_tree_of_shell_pipelines_is_restored() {
    let jobs = "sleep 1001 | sleep 1002 | sleep 1003 & sleep 1004 | sleep 1005 & \
                (sleep 1006; true) & sleep 1007 < /dev/zero | (sleep 1008 | sleep 1009) & wait";
    round_trip(ProcessTree::sh(jobs, 12));
}

#[test]
fn jobs_in_their_own_process_groups_are_restored_also_without_leaders() {
    let jobs = "set -m; sleep 1001 | sleep 1002 | sleep 1003 & sleep 0 | sleep 1004 | sleep 1005 & \
                (sleep 1006; true) & sleep 0 | sleep 1007 & wait";
    let image = round_trip(ProcessTree::new(&["bash", "-c", jobs], 9));
    let image = Image::load(&image[..]).unwrap();
    // The leaders of two process groups have ended.
    let led = |pgid: i32| image.tasks.iter().any(|task| task.pid == pgid);
    assert_eq!(image.tasks.iter().filter(|task| !led(task.pgid)).count(), 3);
}

#[test]
fn process_groups_without_leaders_get_their_previous_ids() {
    may!(rights::pids());
    needs!(which("bash").is_some(), "bash is missing");
    let jobs = "set -m; sleep 0 | sleep 1004 | sleep 1005 & sleep 0 | sleep 1007 & wait";
    let processes = ProcessTree::new(&["bash", "-c", jobs], 4);
    let image = processes.scan();
    end_and_free(processes);
    let held = HeldTree::quiet(&image, &["--same-pids"]);
    for task in Image::load(&image[..]).unwrap().tasks {
        let now = nix::unistd::getpgid(Some(Pid::from_raw(task.pid))).unwrap();
        assert_eq!(now.as_raw(), task.pgid, "{}", task.pid);
    }
    held.end(Signal::SIGTERM);
}

/// A server that forks workers. They inherit a listening socket, a pipe and an epoll instance, and
/// each has a socket pair to its parent and a file of its own. After a restore each process finds
/// its descriptors and continues.
const PREFORK: &str = "
import os, select, signal, socket, sys, time
path, workers = sys.argv[1], int(sys.argv[2])
try:
    server = socket.socket(fileno=3)
except OSError:
    server = None
if server:
    # Run again: whoever comes first serves, and tells who it is.
    while True:
        there, _ = server.accept()
        with there: there.sendall(b'%d' % os.getpid())
if sys.argv[3:]:
    server = socket.create_server(('127.0.0.1', 0), backlog=16)
    with open(path, 'w') as file: file.write(str(server.getsockname()[1]))
else:
    server = socket.socket(socket.AF_UNIX); server.bind(path); server.listen(16)
r, w = os.pipe(); os.write(w, b'a token')
ready = select.epoll(); ready.register(r, select.EPOLLIN | select.EPOLLEXCLUSIVE)
ready.register(server, select.EPOLLIN)
log = os.open(path + '.log', os.O_CREAT | os.O_WRONLY | os.O_APPEND)
ours = []
for n in range(workers):
    mine, its = socket.socketpair()
    if os.fork() == 0:
        mine.close()
        for each in ours: each.close()
        own = os.open(path + f'.{n}', os.O_CREAT | os.O_RDWR); os.write(own, b'x' * n)
        while True: signal.pause()
    its.close(); mine.send(b'for %d' % n); ours.append(mine)
while True: signal.pause()
";

#[test]
fn the_tree_of_a_prefork_server_is_restored() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let socket = scratch.file("socket");
    let processes = ProcessTree::new(&[python, "-c", PREFORK, &socket, "5"], 6);
    let image = processes.scan();
    drop(processes);
    fs::remove_file(&socket).unwrap();
    let held = HeldTree::quiet(&image, &[]);
    held.is_as(&image);
    held.end(Signal::SIGTERM);
}

/// Restores a PREFORK server with three workers by --respawn; each of the four processes must
/// answer a client.
#[track_caller]
fn run_again_and_serve<S: Read>(file: &str, image: &[u8], connect: impl Fn() -> S) {
    fs::write(file, image).unwrap();
    let restore = ["fdrestore", "--tree", "--respawn", "-i", file];
    let restored =
        ProcessTree::new(&[&[tool(restore[0]).to_str().unwrap()], &restore[1..]].concat(), 5);
    let all = restored.all();
    let mut answers = BTreeSet::new();
    until("each of the workers answers", || {
        let mut answer = String::new();
        // A process that is stopped may have accepted the connection.
        if connect().read_to_string(&mut answer).is_ok() {
            let pid: i32 = answer.parse().expect("a pid");
            // Processes that have answered are stopped, so that the others have to answer.
            if answers.insert(pid) && answers.len() < 4 {
                let _ = kill(Pid::from_raw(pid), Signal::SIGSTOP);
            }
        }
        answers.len() == 4
    });
    let workers: BTreeSet<i32> = all[1..].iter().copied().collect();
    assert_eq!(answers, workers);
}

/// The time limit for an answer.
const ANSWER_TIMEOUT: Option<Duration> = Some(Duration::from_millis(500));

#[test]
fn workers_that_run_again_serve_clients() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let socket = scratch.file("socket");
    let processes = ProcessTree::new(&[python, "-c", PREFORK, &socket, "3"], 4);
    let image = processes.scan();
    drop(processes);
    fs::remove_file(&socket).unwrap();
    run_again_and_serve(&scratch.file("a.fdi"), &image, || {
        let there = UnixStream::connect(&socket).expect("it is served");
        there.set_read_timeout(ANSWER_TIMEOUT).expect("SO_RCVTIMEO");
        there
    });
}

#[test]
fn workers_with_a_tcp_port_are_restored_and_serve_clients() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let file = scratch.file("port");
    let processes = ProcessTree::new(&[python, "-c", PREFORK, &file, "3", "tcp"], 4);
    let port: u16 = fs::read_to_string(&file).unwrap().parse().unwrap();
    let image = processes.scan();
    drop(processes);
    let refused = TcpStream::connect(("127.0.0.1", port)).expect_err("it is closed");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    // The held tree listens already, and a connection waits in the queue of the socket.
    let held = HeldTree::quiet(&image, &[]);
    held.is_as(&image);
    drop(TcpStream::connect(("127.0.0.1", port)).expect("it listens"));
    held.end(Signal::SIGTERM);
    run_again_and_serve(&scratch.file("a.fdi"), &image, || {
        let there = TcpStream::connect(("127.0.0.1", port)).expect("it is served");
        there.set_read_timeout(ANSWER_TIMEOUT).expect("SO_RCVTIMEO");
        there
    });
}

#[test]
fn a_table_shared_by_five_tasks_is_restored() {
    let scratch = Scratch::new();
    let specs = ["pipe@3,4:data=hello", "eventfd@5:count=3", "unlinked@70:data=abc"];
    let make = [MKFD, "make", "--close-std", "--share", "4", "--dir", scratch.dir()];
    let image = round_trip(ProcessTree::new(&[&make[..], &specs].concat(), 5));
    let image = Image::load(&image[..]).unwrap();
    assert!(image.tasks.iter().all(|task| task.table.id == image.tasks[0].table.id));
}

#[test]
fn a_shared_table_in_a_tree_is_restored_and_inherited() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let mkfd = format!("{MKFD} make --share 2 --dir {} pipe@5,6:data=x eventfd@9", scratch.dir());
    // All descendants inherit the pipes and files of the shell.
    let script =
        format!("exec 7</dev/zero 8>>{}; {mkfd} & {mkfd} | sleep 1000 & wait", scratch.file("log"));
    round_trip(ProcessTree::sh(&script, 8));
    // Children of a task that shares a table have tables of their own.
    let script = "import ctypes, os, signal
libc = ctypes.CDLL(None)
r, w = os.pipe(); os.write(w, b'all have it')
def wait():
    while True: signal.pause()
# CLONE_FILES | SIGCHLD
if libc.syscall(56, 0x400 | 17, 0, 0, 0, 0) == 0:
    if os.fork() == 0:
        os.close(w); os.open('/dev/zero', 0); wait()
    wait()
if os.fork() == 0:
    os.close(r); wait()
wait()";
    if cfg!(target_arch = "x86_64") {
        round_trip(ProcessTree::new(&[python, "-c", script], 4));
    }
}

#[test]
fn daemons_in_their_own_sessions_are_restored() {
    let script = "setsid sleep 1001 & setsid sh -c 'sleep 1002 | sleep 1003; true' & \
                  sleep 1004 & exec sleep 1005";
    round_trip(ProcessTree::sh(script, 6));
}

#[test]
fn a_child_that_was_forked_before_setsid_is_restored_in_the_old_session() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let script = "import os, signal
def wait():
    while True: signal.pause()
r, w = os.pipe()
if os.fork() == 0:
    # Leads no group, so it may leave the session that its child stays in.
    if os.fork() == 0:
        os.close(r); wait()
    os.setsid()
    if os.fork() == 0:
        os.setpgid(0, 0)
        os.close(w)
        if os.fork() == 0: wait()
        wait()
    wait()
wait()";
    round_trip(ProcessTree::new(&[python, "-c", script], 5));
}

#[test]
fn children_forked_before_high_numbers_were_opened_have_small_tables() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let script = "import os, resource, signal, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (10000, 10000))
for n in range(20):
    if os.fork() == 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64 + n, 1000))
        while True: signal.pause()
for n in map(int, sys.argv[1:]): os.dup2(0, n)
while True: signal.pause()";
    for highest in ["63", "300", "4095", "9000"] {
        round_trip(ProcessTree::new(&[python, "-c", script, highest, "130"], 21));
        round_trip(ProcessTree::new(&[python, "-c", script, highest, "5", "62"], 21));
    }
}

#[test]
fn each_task_has_the_smallest_table_whatever_its_numbers() {
    let Some(python) = python() else { skip!("python3 is missing") };
    // Each child keeps every other number of its parent: inherited numbers, closed numbers and new
    // ones alternate, and below the highest number no number is free.
    let script = "import os, signal, sys
top, depth = int(sys.argv[1]), int(sys.argv[2])
for n in range(3, top + 1): os.dup2(os.dup(0) if n % 7 else 0, n)
for _ in range(depth):
    for _ in range(2):
        pid = os.fork()
        if pid == 0: break
    if pid: break
    for n in range(3, top + 1, 2): os.close(n)
    for n in range(3, top + 1, 2):
        if n % 3: os.dup2(os.pipe()[n % 2], n)
    os.closerange(top + 1, 1000)
else:
    for n in range(0, top + 1): os.dup2(2, n)
while True: signal.pause()";
    for top in ["63", "64", "127"] {
        round_trip(ProcessTree::new(&[python, "-c", script, top, "3"], 15));
    }
}

#[test]
fn a_task_of_another_user_is_restored_as_that_user() {
    may!(rights::other_user());
    let other = "setpriv --reuid 65534 --regid 65533 --groups 7,8";
    let script = format!(
        "{other} sleep 1001 & {other} sh -c 'sleep 1002; true' & \
         setpriv --bounding-set=-sys_admin,-net_raw --inh-caps=+kill --ambient-caps=+kill sleep 1003 & \
         setpriv --ruid 7 --rgid 8 --keep-groups sleep 1004 & wait"
    );
    round_trip(ProcessTree::sh(&script, 6));
}

#[test]
fn a_root_process_below_another_users_ends_with_fdrestore() {
    may!(rights::other_user());
    let Some(python) = python() else { skip!("python3 is missing") };
    // The parent of the child runs as another user, so its death sends no signal to the child,
    // which runs as root.
    let script = "import os, signal
r, w = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        while True: signal.pause()
    os.setresuid(65534, 65534, 65534)
    while True: signal.pause()
while True: signal.pause()";
    let processes = ProcessTree::new(&[python, "-c", script], 3);
    let image = processes.scan();
    drop(processes);
    let held = HeldTree::quiet(&image, &[]);
    held.is_as(&image);
    held.end(Signal::SIGKILL);
    let held = HeldTree::quiet(&image, &[]);
    held.end(Signal::SIGTERM);
}

#[test]
fn directory_umask_and_root_of_each_task_are_restored() {
    may!(rights::chroot());
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    for name in ["a", "b", "jail", "jail/inner"] {
        fs::create_dir(scratch.file(name)).unwrap();
    }
    let script = "import os, signal, sys
dir = sys.argv[1]
for name, mask in (('a', 0o77), ('b', 0o777), ('jail/inner', 0)):
    if os.fork() == 0:
        os.chdir(f'{dir}/{name}'); os.umask(mask)
        if name.startswith('jail'):
            os.chroot(f'{dir}/jail')
            os.open('/inner', os.O_RDONLY)
        while True: signal.pause()
while True: signal.pause()";
    round_trip(ProcessTree::new(&[python, "-c", script, scratch.dir()], 4));
}

#[test]
fn a_program_runs_only_in_its_previous_directory() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    fs::create_dir(scratch.file("gone")).unwrap();
    let script = "import os, signal, sys
if os.fork() == 0: os.chdir(sys.argv[1])
while True: signal.pause()";
    let image = ProcessTree::new(&[python, "-c", script, &scratch.file("gone")], 2).scan();
    fs::remove_dir(scratch.file("gone")).unwrap();
    for option in ["--respawn", "-n"] {
        let restore = ["fdrestore", "--tree", "--respawn", option];
        let ran = Pipeline::new(&[&restore]).stdin(&*image).run();
        let said = format!("its working directory {} is not there", scratch.file("gone"));
        ran.refuses(6, &[&said]);
    }
    // A process that is only held may be in another directory.
    let held = HeldTree::quiet(&image, &[]);
    let (_, said) = held.end(Signal::SIGTERM);
    assert!(said.contains("its working directory"), "{said}");
}

#[test]
fn a_program_that_overwrote_its_arguments_is_not_run_again() {
    needs!(which("bash").is_some(), "bash is missing");
    let named = |name: &str| {
        let image =
            ProcessTree::new(&["bash", "-c", &format!("exec -a '{name}' sleep 1001")], 1).scan();
        let restore = ["fdrestore", "--tree", "--respawn", "-n"];
        Pipeline::new(&[&restore]).stdin(&*image).run()
    };
    named("-sleep").quiet();
    let script = "import ctypes, signal
ctypes.CDLL(None).prctl(15, b'server') # PR_SET_NAME
libc, text = ctypes.CDLL(None), b'server: waits'
area = open('/proc/self/stat').read().rsplit(') ', 1)[1].split()
begin, end = int(area[45]), int(area[46])
ctypes.memset(begin, 0, end - begin); ctypes.memmove(begin, text, len(text))
while True: signal.pause()";
    let Some(python) = python() else { skip!("python3 is missing") };
    let image = ProcessTree::new(&[python, "-c", script], 1).scan();
    let is_refused = |restore: &[&str]| {
        let words = [&["fdrestore", "--tree"][..], restore].concat();
        let ran = Pipeline::new(&[&words]).stdin(&*image).run();
        ran.refuses(6, &["its command line 'server: waits' is a title"]);
    };
    is_refused(&["-n", "--respawn"]);
    let held = HeldTree::quiet(&image, &[]);
    held.end(Signal::SIGTERM);
    may!(rights::pids());
    is_refused(&["--respawn", "--same-pids"]);
}

#[test]
fn an_invalid_uid_is_refused_and_json_requires_dry_run() {
    let image = pipeline_image();
    let forged = crate::forged::forged(&image, |items| {
        for task in tasks(items) {
            task.credentials.uids = [u32::MAX; 4];
        }
    });
    is_refused(&forged, &[], 3, "user or group id 4294967295 is not valid");
    let ran = Pipeline::new(&[&["fdrestore", "--tree", "-J"]]).stdin(&*image).run();
    ran.refuses(2, &["--json", "--dry-run"]);
}

#[test]
fn a_program_gets_no_additional_capabilities() {
    may!(rights::other_user(), rights::less("-setuid"));
    let other = "setpriv --reuid 65534 --regid 65533 --clear-groups sleep 1001 & wait";
    let image = ProcessTree::sh(other, 2).scan();
    let fdrestore = tool("fdrestore").to_string_lossy().into_owned();
    let restore = [&fdrestore[..], "--tree", "--respawn"];
    let less = ["setpriv", "--bounding-set=-setuid"];
    let ran = Pipeline::new(&[&[&less[..], &restore].concat()]).stdin(&*image).run();
    let why = "its user and group ids cannot be restored (that takes CAP_SETUID and CAP_SETGID)";
    ran.refuses(6, &[why, "and its program would gain capabilities"]);
    may!(rights::user_namespace());
    // The user does not exist in that namespace, which only the attempt shows.
    let ran = Pipeline::new(&[&[&["unshare", "-r"][..], &restore].concat()]).stdin(&*image).run();
    ran.refuses(7, &["its credentials cannot be restored", "its group ids"]);
}

#[test]
fn stopped_tasks_are_restored_as_stopped() {
    let script =
        "sleep 1001 | sleep 1002 & a=$!; (sleep 1003; true) & sleep 0.3; kill -STOP $a $!; wait";
    let image = round_trip(ProcessTree::sh(script, 5));
    let image = Image::load(&image[..]).unwrap();
    assert_eq!(image.tasks.iter().filter(|task| task.stopped).count(), 2);
}

#[test]
fn a_missing_file_of_several_tasks_is_left_out_as_the_dry_run_says() {
    let scratch = Scratch::new();
    let path = scratch.file("shared");
    let script = format!("exec 3>{path}; sleep 1001 & wait");
    let image = ProcessTree::sh(&script, 2).scan();
    fs::remove_file(&path).unwrap();
    let restore = ["fdrestore", "--tree"];
    let run =
        |words: &[&str]| Pipeline::new(&[&[&restore[..], words].concat()]).stdin(&image[..]).run();
    run(&["-n"]).refuses(6, &["fd 3", &path, "No such file"]);
    run(&["--", "true"]).refuses(125, &["fd 3", &path, "No such file"]);
    for missing in ["skip", "null"] {
        let missing = ["--missing", missing];
        let planned = run(&[&missing[..], &["-n"]].concat()).ok();
        let ran = run(&[&missing[..], &["--", "true"]].concat()).ok();
        assert_eq!(planned.stderr(0), ran.stderr(0));
        assert!(ran.stderr(0).contains("fd 3"), "{}", ran.whole());
    }
}

#[test]
fn zombies_are_skipped_and_threads_are_not_tasks() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let script = "import os, signal, threading
if os.fork() == 0: os._exit(0)
r, w = os.pipe()
def thread():
    # A child of a thread is a child of the process.
    if os.fork() == 0:
        os.close(r)
    while True: signal.pause()
threading.Thread(target=thread).start()
while True: signal.pause()";
    let image = round_trip(ProcessTree::new(&[python, "-c", script], 2));
    assert_eq!(Image::load(&image[..]).unwrap().tasks.len(), 2);
}

#[test]
fn queued_data_are_restored_in_whichever_tasks_the_ends_are() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let script = "import os, signal, socket
def wait():
    while True: signal.pause()
a, b = socket.socketpair()
c, d = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
r, w = os.pipe()
a.send(b'one way'); b.send(b'and the other'); c.send(b'one'); c.send(b'two'); os.write(w, b'three')
if os.fork() == 0:
    a.close(); c.close(); os.close(w); wait()
b.close(); d.close(); os.close(r)
if os.fork() == 0:
    a.close(); wait()
wait()";
    round_trip(ProcessTree::new(&[python, "-c", script], 3));
}

/// One end of a pipe is queued in a socket pair. Parent and child have both sockets, and only the
/// parent has the other end of the pipe. After a restore the child receives the queued end and
/// writes down what it reads from it.
const QUEUED: &str = "
import array, os, signal, socket, sys
try:
    pair = socket.socket(fileno=3), socket.socket(fileno=4)
except OSError:
    pair = None
def wait():
    while True: signal.pause()
if pair:
    # Who has the writing end is the parent.
    if os.path.exists('/proc/self/fd/9'): wait()
    data, fds, flags, _ = socket.recv_fds(pair[1], 100, 4)
    with open(sys.argv[1], 'w') as file:
        file.write(f'{data} {len(fds)} {os.read(fds[0], 100)}')
    wait()
for fd in (5, 6): os.dup2(0, fd)
pair = socket.socketpair()
assert [it.fileno() for it in pair] == [3, 4]
for fd in (5, 6): os.close(fd)
r, w = os.pipe()
os.dup2(w, 9); os.close(w)
os.write(9, b'from the pipe')
socket.send_fds(pair[0], [b'with it'], [r]); os.close(r)
if os.fork() == 0:
    os.close(9); wait()
wait()
";

#[test]
fn a_queued_descriptor_is_restored_in_a_tree() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let (told, file) = (scratch.file("told"), scratch.file("a.fdi"));
    let image = round_trip(ProcessTree::new(&[python, "-c", QUEUED, &told], 2));
    let whole = Image::load(&image[..]).unwrap();
    let queued: Vec<u32> = whole
        .contents
        .values()
        .flatten()
        .flat_map(|chunk| chunk.with.iter().flat_map(|with| with.files.clone()))
        .collect();
    assert_eq!(queued.len(), 1);
    assert!(whole.slots.iter().all(|slot| slot.file != queued[0]), "it is in a table too");
    fs::write(&file, &image).unwrap();
    let fdrestore = tool("fdrestore");
    let restore = [fdrestore.to_str().unwrap(), "--tree", "--respawn", "-i", &file];
    let _restored = ProcessTree::new(&restore, 3);
    let whole = "b'with it' 1 b'from the pipe'";
    until("the child has what waited", || fs::read_to_string(&told).is_ok_and(|it| it == whole));
    // Two tasks that share a table, made by the fixture.
    let spec = "socketpair@5,6:scm=pipe,data=x";
    let make = [MKFD, "make", "--close-std", "--share", "2", "--dir", scratch.dir(), spec];
    round_trip(ProcessTree::new(&make, 3));
}

/// The image of a shell with a pipeline: the tasks are the shell, cat, cat and two of sleep.
fn pipeline_image() -> Vec<u8> {
    ProcessTree::sh("cat /dev/zero | cat | sleep 1000 & sleep 1001 & wait", 5).scan()
}

fn tasks(items: &mut [Item]) -> Vec<&mut fdkit::image::Task> {
    items
        .iter_mut()
        .filter_map(|item| match item {
            Item::Task(task) => Some(&mut **task),
            _ => None,
        })
        .collect()
}

/// Removes the slots of tables that no task has any more.
fn without_unused_slots(items: &mut Vec<Item>) {
    let tables: Vec<u32> = tasks(items).iter().map(|task| task.table.id).collect();
    items.retain(|item| !matches!(item, Item::Slot(slot) if !tables.contains(&slot.table)));
}

/// Fails unless a restore is refused with this status and one line that contains this text, with
/// and without --dry-run, and leaves no process.
#[track_caller]
fn is_refused(image: &[u8], start: &[&str], status: i32, text: &str) {
    let fdrestore = tool("fdrestore").to_string_lossy().into_owned();
    for option in [&["-n"][..], &[], &["--respawn"], &["--placement", "rlimit"]] {
        let restore = [start, &[&fdrestore, "--tree"], option].concat();
        let stages: &[&[&str]] = &[&restore];
        let ran = Pipeline::new(stages).stdin(image).run().refuses(status, &[text]);
        assert!(option == ["-n"] || ran.text().is_empty(), "{}", ran.whole());
        assert_eq!(ran.stderr(0).lines().count(), 1, "{}", ran.whole());
    }
}

/// Ends a tree, and waits until its process ids are free.
#[track_caller]
fn end_and_free(processes: ProcessTree) {
    let all = processes.all();
    drop(processes);
    until("the pids are free", || all.iter().all(|&pid| state(pid).is_none()));
}

#[test]
fn a_tree_is_restored_with_its_previous_pids() {
    may!(rights::pids());
    let jobs = "sleep 1001 | sleep 1002 & setsid sh -c 'sleep 1003; true' & \
                (sleep 1004; true) & wait";
    let processes = ProcessTree::sh(jobs, 7);
    let mut pids = processes.all();
    let image = processes.scan();
    let same: &[&str] = &["--same-pids"];
    // While the tree runs it cannot be restored a second time, and it continues to run.
    let (status, said) = HeldTree::restore(&image, same).err().expect("a refusal");
    assert_eq!(status, Some(6), "{said}");
    let taken = "its process id is taken (--same-pids)";
    assert_eq!(said.matches(taken).count(), pids.len(), "{said}");
    assert_eq!(processes.all(), pids);
    end_and_free(processes);
    let held = HeldTree::quiet(&image, same);
    assert!(held.pids.iter().all(|(old, new)| old == new), "{:?}", held.pids);
    held.is_as(&image);
    let root = held.pids[0].0;
    let mut now = descendants(root);
    pids.sort_unstable();
    now.sort_unstable();
    assert_eq!(now, pids);
    assert_eq!(HeldTree::restore(&image, same).err().expect("a refusal").0, Some(6));
    held.is_as(&image);
    held.end(Signal::SIGTERM);
}

#[test]
fn a_pid_in_use_is_refused_and_nothing_is_created() {
    may!(rights::pids());
    let processes = ProcessTree::sh("sleep 1001 | sleep 1002 & sleep 1003 & wait", 4);
    let image = processes.scan();
    end_and_free(processes);
    // A process group without a leader: no process has its id, but the id cannot be used.
    let group = ProcessTree::new(&["bash", "-c", "set -m; true | sleep 1004 & wait"], 2);
    let stat = fs::read_to_string(format!("/proc/{}/stat", group.all()[1])).unwrap();
    let pgid = stat.rsplit(") ").next().unwrap().split(' ').nth(2).unwrap().parse().unwrap();
    assert_eq!(state(pgid), None);
    for taken in [group.pid, pgid] {
        let forged = forged(&image, |items| tasks(items).last_mut().unwrap().pid = taken);
        let fdrestore = tool("fdrestore").to_string_lossy().into_owned();
        for option in ["-n", "--respawn", "--placement=late"] {
            let words: &[&[&str]] = &[&[&fdrestore, "--tree", "--same-pids", option]];
            let said = [&*format!("task {taken}: "), "its process id is taken", "--same-pids"];
            let ran = Pipeline::new(words).stdin(&forged[..]).run();
            let ran = ran.refuses(6, &said);
            assert!(option == "-n" || ran.text().is_empty(), "{}", ran.whole());
        }
    }
}

#[test]
fn same_pids_requires_a_capability() {
    may!(rights::less("-sys_admin,-checkpoint_restore"));
    let scratch = Scratch::new();
    // This process cannot give capabilities that it has not, so the tree has none of them, either.
    let less = ["setpriv", "--bounding-set=-sys_admin,-checkpoint_restore"];
    let processes = ProcessTree::new(&[&less[..], &["sh", "-c", "sleep 1001 & wait"]].concat(), 2);
    let file = scratch.file("a.fdi");
    fs::write(&file, processes.scan()).unwrap();
    end_and_free(processes);
    let fdrestore = tool("fdrestore").to_string_lossy().into_owned();
    let restore = [&less[..], &[&fdrestore, "--tree", "-i", &file]].concat();
    for option in ["-n", "--respawn", "--placement=late"] {
        let words = [&restore[..], &["--same-pids", option]].concat();
        let ran = pipeline(&[&words]).refuses(4, &["--same-pids", "CAP_CHECKPOINT_RESTORE"]);
        assert_eq!(ran.in_one_line().text(), "");
    }
    // New process ids need no capability.
    pipeline(&[&[&restore[..], &["-n"]].concat()]).ok();
}

/// What is changed in the tasks of an image, and how the restore refuses the image: status and
/// text.
type Forgery = (&'static str, fn(Vec<&mut fdkit::image::Task>), i32, &'static str);

const FORGED: &[Forgery] = &[
    ("its own parent", |mut tasks| tasks[1].ppid = tasks[1].pid, 3, "its own ancestor"),
    (
        "a cycle",
        |mut tasks| {
            tasks[1].ppid = tasks[2].pid;
            tasks[2].ppid = tasks[1].pid;
        },
        3,
        "its own ancestor",
    ),
    ("all a cycle", |mut tasks| tasks[0].ppid = tasks[1].pid, 3, "its own ancestor"),
    ("a pid twice", |mut tasks| tasks[2].pid = tasks[1].pid, 3, "comes twice"),
    ("no pid", |mut tasks| tasks[2].pid = 0, 3, "id is not valid"),
    ("a negative pid", |mut tasks| tasks[2].pid = -7, 3, "id is not valid"),
    (
        "a session of nobody",
        |mut tasks| {
            // The first task may belong to a session outside the image, together with other members
            // of that session.
            (tasks[1].sid, tasks[1].pgid) = (77, 77);
            (tasks[2].sid, tasks[2].pgid) = (78, 78);
        },
        6,
        "session 78",
    ),
    (
        "a session below another",
        |mut tasks| {
            tasks[0].sid = 77;
            tasks[0].pgid = 77;
        },
        6,
        "session",
    ),
    ("a leader in no group", |mut tasks| tasks[0].pgid = 77, 3, "leads its session"),
    (
        "a group across sessions",
        |mut tasks| {
            let pid = tasks[1].pid;
            tasks[1].sid = pid;
            tasks[1].pgid = pid;
            tasks[2].pgid = pid;
        },
        6,
        "was in another session",
    ),
    (
        "a table of different numbers",
        |mut tasks| {
            tasks[2].table.id = tasks[1].table.id;
            tasks[2].table.highest = Some(77);
        },
        3,
        "another highest number",
    ),
];

#[test]
fn impossible_tasks_are_refused_before_anything_is_created() {
    let image = pipeline_image();
    for (what, change, status, text) in FORGED {
        let forged = forged(&image, |items| {
            change(tasks(items));
            without_unused_slots(items);
        });
        println!("{what}");
        is_refused(&forged, &[], *status, text);
        // What `verify` calls whole, a restore does not call malformed.
        let verified = Pipeline::new(&[&["fdimg", "verify"]]).stdin(&*forged).run();
        match status {
            3 => drop(verified.refuses(3, &[text])),
            _ => drop(verified.ok()),
        }
    }
}

#[test]
fn a_table_shared_across_branches_and_duplicate_numbers_are_refused() {
    let image = pipeline_image();
    let across = forged(&image, |items| {
        let mut tasks = tasks(items);
        let (one, other) = (tasks[1].pid, tasks[2].pid);
        let table = tasks[3].table.clone();
        tasks[3].ppid = one;
        tasks[4].ppid = other;
        tasks[4].table = table;
        without_unused_slots(items);
    });
    is_refused(&across, &[], 6, "but not with its parent or a sibling");
    // No tool writes such an image, so it is made here.
    let twice = |items: &mut Vec<Item>| {
        let slot = items.iter().rposition(|item| matches!(item, Item::Slot(_))).unwrap();
        let again = items[slot].clone();
        items.insert(slot, again);
    };
    is_refused(&forged(&image, twice), &[], 3, "comes twice");
}

#[test]
fn numbers_above_the_limit_are_refused() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let script = "import os, signal
os.dup2(0, 99)
if os.fork() == 0: os.dup2(0, 700)
while True: signal.pause()";
    let image = ProcessTree::new(&[python, "-c", script], 2).scan();
    // The limits just permit, or do not permit, the highest number.
    for (limit, fits) in [("701", true), ("700", false), ("100", false)] {
        let start = ["sh", "-c", "ulimit -n \"$0\"; exec \"$@\"", limit];
        if !fits {
            is_refused(&image, &start, 6, &format!("hard limit of {limit} open files"));
            continue;
        }
        for policy in ["tight", "task", "rlimit", "late"] {
            let fdrestore = tool("fdrestore").to_string_lossy().into_owned();
            let restore = [&fdrestore, "--tree", "--placement", policy];
            let stages: &[&[&str]] =
                &[&[&start[..], &restore, &["--", "grep", "FDSize", "/proc/self/status"]].concat()];
            let ran = Pipeline::new(stages).stdin(&image[..]).run();
            // There is no room for the range of this policy above the highest number.
            match policy {
                "task" => drop(ran.refuses(125, &["too few numbers", "(status 6)"]).in_one_line()),
                _ => drop(ran.ok()),
            }
        }
    }
    let far = forged(&image, |items| {
        for item in items {
            match item {
                Item::Slot(slot) if slot.fd == 700 => slot.fd = i32::MAX as u32,
                _ => (),
            }
        }
    });
    is_refused(&far, &[], 6, "2147483647 is above the hard limit");
}

#[test]
fn a_descriptor_of_the_caller_replaces_one_of_a_tree_whatever_its_number() {
    let Some(python) = python() else { skip!("python3 is missing") };
    // The pidfd can be opened only when all processes are forked; the socket has a descriptor that
    // the caller replaces in its queue, and is filled then, too.
    let script = "import os, signal, socket
def wait():
    while True: signal.pause()
child = os.fork()
if child == 0: wait()
pidfd = os.pidfd_open(child)
r, w = os.pipe()
os.dup2(r, 20)
os.close(w)
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
b.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
socket.send_fds(a, [b'x'], [r])
os.close(r)
if os.fork() == 0: wait()
wait()";
    let processes = ProcessTree::new(&[python, "-c", script], 3);
    let image = processes.scan();
    let numbers = |pid: i32| -> Vec<u32> {
        open_descriptors(pid).iter().map(|(number, _)| *number).collect()
    };
    let first = processes.pid;
    let before: HashMap<i32, Vec<u32>> =
        processes.all().into_iter().map(|pid| (pid, numbers(pid))).collect();
    drop(processes);
    let scratch = Scratch::new();
    let (file, given) = (scratch.file("a.fdi"), scratch.file("given"));
    fs::write(&file, &image).expect("the image");
    fs::write(&given, "").expect("a file");
    for number in [7, 63, 700] {
        let fdrestore = tool("fdrestore").to_string_lossy().into_owned();
        let line = format!(
            "import os, sys
os.dup2(os.open('{given}', os.O_RDONLY), {number})
os.execv('{fdrestore}', ['fdrestore', '--tree', '-i', '{file}', '--inherit', '{first}:20={number}'])"
        );
        let mut target = Target::ready(&[python, "-c", &line]).expect("no skip");
        let mut lines = vec![target.said.clone()];
        lines.extend((1..3).map(|_| target.line()));
        for line in &lines {
            let (old, new) = line.split_once(' ').expect("OLD NEW");
            let [old, new] = [old, new].map(|pid| pid.parse::<i32>().expect("a pid"));
            assert_eq!(numbers(new), before[&old], "{number}: {:?}", open_descriptors(new));
            let replaced = open_descriptors(new).into_iter().filter(|(_, link)| *link == given);
            assert!(replaced.clone().all(|(number, _)| number == 20), "{number}: {line}");
            assert_eq!(replaced.count(), usize::from(before[&old].contains(&20)), "{number}");
            assert_eq!(fdsize(new), 64, "{number}: {line}");
        }
        // The coordinator keeps no descriptor for which a reader could wait.
        assert_eq!(numbers(target.pid.parse().expect("a pid")), [0, 1, 2], "{number}");
    }
}

/// Runs `fdrestore --tree -n` and `fdrestore --tree` with a soft limit of open files: both succeed,
/// or both refuse with status 6 and this text.
#[track_caller]
fn both_with_soft_limit(image: &[u8], limit: &str, options: &[&str], refused: Option<&str>) {
    let fdrestore = tool("fdrestore").to_string_lossy().into_owned();
    let start = ["sh", "-c", "ulimit -Sn \"$0\"; exec \"$@\"", limit, &fdrestore, "--tree"];
    for mode in [&["-n"][..], &["--", "true"]] {
        let stages: &[&[&str]] = &[&[&start[..], options, mode].concat()];
        let ran = Pipeline::new(stages).stdin(image).run();
        match refused {
            None => drop(ran.ok()),
            Some(why) => drop(ran.refuses(if mode == ["-n"] { 6 } else { 125 }, &[why])),
        }
    }
}

#[test]
fn a_dry_run_counts_with_the_soft_limit_of_the_restore() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let script = "import os, signal
os.dup2(0, 99)
if os.fork() == 0: os.dup2(0, 251)
while True: signal.pause()";
    let image = ProcessTree::new(&[python, "-c", script], 2).scan();
    // The soft limit is raised only if the highest number is not below it.
    let too_few = Some("the limit of 260 open files leaves too few numbers");
    both_with_soft_limit(&image, "260", &["--placement", "task"], too_few);
    both_with_soft_limit(&image, "251", &["--placement", "task"], None);
    both_with_soft_limit(&image, "260", &[], None);
}

#[test]
fn the_soft_limit_is_raised_for_the_files_that_several_tasks_have() {
    let Some(python) = python() else { skip!("python3 is missing") };
    // Two pairs of processes: each pair shares 40 files, and no table has more.
    let script = "import os, signal
for pair in range(2):
    if os.fork() == 0:
        for n in range(40): os.open('/dev/zero', os.O_RDONLY)
        os.fork()
        signal.pause()
signal.pause()";
    let image = ProcessTree::new(&[python, "-c", script], 5).scan();
    both_with_soft_limit(&image, "60", &[], None);
}

/// An image of a task with `inherited` eventfds, and of `count - 1` children that inherit them and
/// have one pipe more.
fn wide(count: usize, inherited: usize) -> Vec<u8> {
    let python = python().expect("python3");
    let script = "import os, signal, sys
for n in range(int(sys.argv[1])): os.dup2(os.eventfd(n), 3 + n)
if os.fork() == 0: os.pipe()
while True: signal.pause()";
    let image = ProcessTree::new(&[python, "-c", script, &inherited.to_string()], 2).scan();
    forged(&image, |items| {
        let slots = items.iter().filter_map(|item| match item {
            Item::Slot(slot) if slot.table == 1 => Some(slot.clone()),
            _ => None,
        });
        let slots: Vec<_> = slots.collect();
        let child = tasks(items)[1].clone();
        for n in 2..count as u32 {
            let mut task = child.clone();
            task.pid = 1_000_000 + n as i32;
            task.table.id = n;
            items.insert(1, Item::Task(task.into()));
            for slot in &slots {
                let mut slot = slot.clone();
                slot.table = n;
                items.push(Item::Slot(slot));
            }
        }
        // Contents come last in an image.
        items.sort_by_key(|item| matches!(item, Item::Data(_)));
    })
}

#[test]
fn thousands_of_tasks_are_restored_with_small_tables() {
    needs!(python().is_some(), "python3 is missing");
    let image = wide(2000, 20);
    let held = HeldTree::quiet(&image, &[]);
    assert_eq!(held.pids.len(), 2000);
    held.is_small(&image);
    held.end(Signal::SIGTERM);
}

#[test]
fn a_tree_with_more_tasks_than_half_the_limit_is_scanned() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let script = "import os, signal
for _ in range(179):
    if os.fork() == 0: break
while True: signal.pause()";
    let processes = ProcessTree::new(&[python, "-c", script], 180);
    let (fdscan, pid) = (tool("fdscan").to_string_lossy().into_owned(), processes.pid.to_string());
    for scan in ["-t", "-t --freeze"] {
        let line = format!("ulimit -n 256; exec {fdscan} {scan} {pid}");
        let ran = pipeline(&[&["sh", "-c", &line], &["fdimg", "verify"]]).quiet();
        assert!(ran.text().contains("180 tasks"), "{}", ran.whole());
    }
}

/// The living processes that run this program.
fn running(exe: &str) -> Vec<i32> {
    let pids = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let runs = |pid: &i32| {
        fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|link| link.as_os_str() == exe)
    };
    pids.filter(runs).collect()
}

/// A pseudorandom number generator.
struct Random(u64);

impl Random {
    fn new() -> Random {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seed = now.expect("after 1970").as_nanos() as u64;
        println!("seed {seed}");
        Random(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % limit
    }
}

/// An image of a tree with process groups without leaders, sessions, shared tables, stopped tasks,
/// and pipes between siblings and more distant relatives.
fn varied_tree(scratch: &Scratch) -> Vec<u8> {
    let make = format!("{MKFD} make --share 2 --dir {}", scratch.dir());
    let jobs = format!(
        "set -m; sleep 0 | sleep 1001 | cat & sleep 1002 | (sleep 1003; true) | cat & \
         setsid -w sh -c 'sleep 1004 | cat & sleep 1005; true' & {make} pipe@5,6:data=x eventfd@90 | cat & \
         sleep 1006 | sleep 1007 & sleep 0.3; kill -STOP %%; wait"
    );
    ProcessTree::new(&["bash", "-c", &jobs], 18).scan()
}

#[test]
fn no_process_is_left_whichever_process_is_killed_at_any_moment() {
    needs!(which("bash").is_some(), "bash is missing");
    let scratch = Scratch::new();
    let image = varied_tree(&scratch);
    let file = scratch.file("a.fdi");
    fs::write(&file, &image).unwrap();
    let exe = scratch.file("fdrestore");
    fs::copy(tool("fdrestore"), &exe).unwrap();
    let count = Image::load(&image[..]).unwrap().tasks.len();
    let mut random = Random::new();
    let (mut early, mut late) = (0, 0);
    for round in 0..120 {
        let restore = [&exe, "--tree", "-i", &file];
        let out = Stdio::piped();
        let mut command = command(&restore);
        let mut coordinator = command.stdout(out).stderr(Stdio::piped()).spawn().unwrap();
        let pid = coordinator.id() as i32;
        // In one of ten rounds fdrestore itself gets the signal.
        let (at_coordinator, gently) = (round % 10 == 9, round % 20 == 19);
        let wait = Duration::from_micros(random.below(60_000));
        let begin = Instant::now();
        let victim = loop {
            let all = descendants(pid);
            if begin.elapsed() >= wait && (all.len() > 1 || at_coordinator) {
                break if at_coordinator {
                    pid
                } else {
                    all[1 + random.below(all.len() as u64 - 1) as usize]
                };
            }
        };
        let signal = if gently { Signal::SIGTERM } else { Signal::SIGKILL };
        let _ = kill(Pid::from_raw(victim), signal);
        let mut err = coordinator.stderr.take().unwrap();
        let mut lines = BufReader::new(coordinator.stdout.take().unwrap()).lines();
        let told = lines.by_ref().take(count).count();
        if told == count {
            // The signal came late: everything is restored, and the other processes are held until
            // fdrestore is told to end.
            late += 1;
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let mut status = None;
        until(&format!("fdrestore ends after {victim} was killed"), || {
            status = coordinator.try_wait().unwrap();
            status.is_some()
        });
        let mut said = String::new();
        err.read_to_string(&mut said).unwrap();
        until("nothing is left", || running(&exe).is_empty());
        if told < count && !at_coordinator {
            early += 1;
            assert_eq!(told, 0, "some lines only: {said}");
            assert_eq!(status.unwrap().code(), Some(7), "{said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    }
    println!("{early} early, {late} late");
    assert!(early > 10, "nobody was killed in the middle: {early} early, {late} late");
}

/// During the restore one task is stopped, so that all others sleep until it continues.
#[test]
fn a_task_during_a_restore_has_no_extra_descriptors_but_service_descriptors() {
    needs!(which("bash").is_some(), "bash is missing");
    let scratch = Scratch::new();
    let bytes = varied_tree(&scratch);
    let file = scratch.file("a.fdi");
    fs::write(&file, &bytes).unwrap();
    let image = Image::load(&bytes[..]).unwrap();
    let wanted: HashMap<i32, BTreeSet<u32>> = image
        .tasks
        .iter()
        .map(|task| {
            let own = image.slots.iter().filter(|slot| slot.table == task.table.id);
            (task.pid, own.map(|slot| slot.fd).collect())
        })
        .collect();
    let mut random = Random::new();
    for (root, services) in [(&[][..], 1), (&["--root", "/"], 2)] {
        let (mut rounds, mut middles, mut looked) = (0, 0, 0);
        // If everything is restored already, the service descriptors are closed already.
        while middles < 10 {
            rounds += 1;
            assert!(rounds <= 200, "{middles} in the middle, {looked} tables, {root:?}");
            let child = command(&[&["fdrestore", "--tree", "-i", &file], root].concat())
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut held = HeldTree { child, pids: Vec::new() };
            let pid = held.coordinator().as_raw();
            let many = 2 + random.below(8) as usize;
            let mut all = Vec::new();
            until("they are made", || {
                all = descendants(pid);
                all.len() >= many
            });
            let victim = all[1 + random.below(all.len() as u64 - 1) as usize];
            kill(Pid::from_raw(victim), Signal::SIGSTOP).unwrap();
            let mut before = Vec::new();
            until("all rest", || {
                std::thread::sleep(Duration::from_millis(10));
                let all = descendants(pid);
                let now: Vec<_> =
                    all.iter().map(|&pid| (pid, open_descriptors(pid), state(pid))).collect();
                // The placeholder of a group leader may have ended already, and its parent may be
                // the stopped task.
                let rest = now.iter().all(|(.., state)| matches!(state, Some('S' | 'T' | 'Z')));
                rest && std::mem::replace(&mut before, now.clone()) == now
            });
            let mut out = held.child.stdout.take().unwrap();
            let mut polled = [PollFd::new(out.as_fd(), PollFlags::POLLIN)];
            let late = poll(&mut polled, PollTimeout::ZERO).unwrap() > 0;
            kill(Pid::from_raw(victim), Signal::SIGCONT).unwrap();
            let lines = BufReader::new(&mut out).lines().take(image.tasks.len());
            for line in lines.map_while(Result::ok) {
                let (old, new) = line.split_once(' ').expect("OLD NEW");
                held.pids.push((old.parse().unwrap(), new.parse().unwrap()));
            }
            assert_eq!(held.pids.len(), image.tasks.len());
            let old: HashMap<i32, i32> = held.pids.iter().map(|&(old, new)| (new, old)).collect();
            let mut most = 0;
            let table = |old: &i32| {
                image.tasks.iter().find(|task| task.pid == *old).map(|task| task.table.id)
            };
            // The tasks that share the table of the stopped task see its unfinished table.
            let stopped = old.get(&victim).and_then(table);
            for (pid, open, _) in before.iter().filter(|_| !late) {
                // Not all processes are tasks: some are placeholders of group leaders.
                let Some(old) = old.get(pid) else { continue };
                if table(old) == stopped {
                    continue;
                }
                let more: Vec<_> =
                    open.iter().filter(|(number, _)| !wanted[old].contains(number)).collect();
                assert!(more.len() <= services, "{old} has {more:?} as well, {root:?}");
                looked += 1;
                most = most.max(more.len());
            }
            middles += usize::from(most == services);
            held.is_small(&bytes);
            assert_eq!(held.end(Signal::SIGTERM).0, Some(143));
        }
        println!("{root:?}: {middles} of {rounds} in the middle, {looked} tables");
    }
}

#[test]
fn a_held_tree_ends_with_its_first_task() {
    let image = pipeline_image();
    let held = HeldTree::quiet(&image, &[]);
    let root = held.pids[0].1;
    let (inner, leaves): (Vec<i32>, Vec<i32>) =
        held.pids[1..].iter().map(|pids| pids.1).partition(|&pid| descendants(pid).len() > 1);
    assert!(inner.is_empty() && leaves.len() == 4);
    kill(Pid::from_raw(leaves[0]), Signal::SIGKILL).unwrap();
    until("it is dead", || is_gone(leaves[0]));
    assert!(leaves[1..].iter().all(|&pid| !is_gone(pid)) && !is_gone(root));
    // The descendants of the first task end with it, and fdrestore ends after the last process.
    kill(Pid::from_raw(root), Signal::SIGKILL).unwrap();
    held.are_gone();
    let coordinator = held.coordinator();
    until("fdrestore ends", || is_gone(coordinator.as_raw()));
}
