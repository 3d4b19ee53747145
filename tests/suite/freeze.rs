//! What `fdscan --freeze` does to the processes that it stops, and which it cannot stop.

use crate::harness::{Scratch, Target, command, pipeline, python, root, tool};

use crate::rights;
use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Scans a process again and again for a time. Each scan must succeed without a message.
#[track_caller]
fn scan_for(time: Duration, options: &[&str], pid: &str) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        pipeline(&[&[&["fdscan"], options, &[pid]].concat()]).quiet();
    }
}

/// A line of /proc/PID/status, without its key.
fn status(pid: &str, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(":\t"));
    line.unwrap_or_else(|| panic!("no {key} in\n{text}")).to_owned()
}

/// Waits until a condition holds.
#[track_caller]
fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(30), "not {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Starts `fdscan --freeze` so that the look at each descriptor takes some milliseconds, and waits until
/// the process is stopped.
fn slow_scan(scratch: &Scratch, pid: &str) -> std::process::Child {
    let scan = Command::new("strace")
        .args(["-qq", "-o", &scratch.file("log"), "-e", "trace=pidfd_getfd"])
        .args(["-e", "inject=pidfd_getfd:delay_enter=5000"])
        .arg(tool("fdscan"))
        .args(["--freeze", pid])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("fdscan runs");
    until("traced", || status(pid, "State").starts_with('t'));
    scan
}

/// Blocks threads in all the calls of blocked.py, of which those with a time limit have this one,
/// calls `scan` with the process id, and gives the calls that did not end as they do without a scan.
/// None if this machine cannot run it.
fn disturbed(limit: u32, scan: impl FnOnce(&str)) -> Option<Vec<String>> {
    let Some(python) = python() else {
        crate::harness::skipped("python3 is missing");
        return None;
    };
    if !cfg!(target_arch = "x86_64") {
        crate::harness::skipped("the numbers of system calls are those of x86_64");
        return None;
    }
    let scratch = Scratch::new();
    let program = include_str!("blocked.py");
    let mut target = Target::program(&[python, "-c", program, &limit.to_string(), scratch.dir()]);
    let cases = target.said.strip_prefix("ready ").and_then(|count| count.parse().ok());
    assert!(cases >= Some(70), "{}", target.said);
    scan(&target.pid);
    let line = target.line();
    let odd: Vec<(String, bool, String)> =
        serde_json::from_str(&line).unwrap_or_else(|err| panic!("{err}: {line}"));
    // BUGS names those that are known.
    let odd = odd.into_iter().filter(|(_, known, _)| !known);
    Some(odd.map(|(name, _, how)| format!("{name}: {how}")).collect())
}

#[test]
fn blocked_calls_end_as_expected_without_a_scan() {
    let Some(odd) = disturbed(2, |_| ()) else { return };
    assert_eq!(odd, [""; 0]);
}

#[test]
fn no_blocked_call_notices_a_frozen_scan() {
    let scan = |pid: &str| drop(pipeline(&[&["fdscan", "--freeze", pid]]).quiet());
    let Some(odd) = disturbed(3, scan) else { return };
    assert_eq!(odd, [""; 0]);
}

#[test]
fn no_blocked_call_notices_a_loop_of_frozen_scans() {
    let scans = |pid: &str| scan_for(Duration::from_secs(2), &["--freeze"], pid);
    let Some(odd) = disturbed(5, scans) else { return };
    assert_eq!(odd, [""; 0]);
}

#[test]
fn no_blocked_call_notices_that_the_process_was_left_stopped_for_a_moment() {
    let scan = |pid: &str| {
        pipeline(&[&["fdscan", "--stop", pid]]).quiet();
        until("stopped", || status(pid, "State").starts_with('T'));
        pipeline(&[&["kill", "-CONT", pid]]).quiet();
    };
    let Some(odd) = disturbed(4, scan) else { return };
    assert_eq!(odd, [""; 0]);
}

/// A program of python3 that sleeps three seconds under a seccomp filter with these instructions,
/// and then prints the errno of nanosleep(2) and the seconds that it took.
const SLEEPER: &str = r#"
import ctypes, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
code = eval(sys.argv[1])
if code:
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *it) for it in code))
    size = (ctypes.sizeof(code) - 1) // 8
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", size, ctypes.addressof(code)))
    assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program) == 0
pause = ctypes.create_string_buffer(struct.pack("qq", 3, 0))
print("ready", flush=True)
began = time.monotonic()
result = libc.syscall(ctypes.c_long(35), pause, None)
print(ctypes.get_errno() if result else 0, time.monotonic() - began, flush=True)
"#;

/// Loads the number of the call; if it is restart_syscall the next instruction is run.
const RESTART: &str = "(0x20, 0, 0, 0), (0x15, 0, 1, 219)";

/// The seconds that nanosleep(2) of three seconds takes in [`SLEEPER`], which is scanned again and
/// again during the first two.
#[track_caller]
fn slept(python: &str, filter: &str, scan: impl Fn(&str)) -> f64 {
    let mut target = Target::program(&[python, "-c", SLEEPER, filter]);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        scan(&target.pid);
        thread::sleep(Duration::from_millis(50));
    }
    let line = target.line();
    let (errno, seconds) = line.split_once(' ').unwrap_or_else(|| panic!("it was killed: {line}"));
    assert_eq!(errno, "0");
    seconds.parse().expect("seconds")
}

fn freeze(pid: &str) {
    pipeline(&[&["fdscan", "--freeze", pid]]).quiet();
}

#[test]
fn a_sleep_lasts_as_long_under_frozen_scans() {
    let Some(python) = python() else { skip!("python3 is missing") };
    needs!(cfg!(target_arch = "x86_64"), "the numbers of system calls are those of x86_64");
    let seconds = slept(python, "[]", freeze);
    assert!((3.0..4.5).contains(&seconds), "{seconds}");
}

#[test]
fn a_sandbox_that_denies_restart_syscall_survives_frozen_scans() {
    let Some(python) = python() else { skip!("python3 is missing") };
    needs!(cfg!(target_arch = "x86_64"), "the numbers of system calls are those of x86_64");
    // SECCOMP_RET_KILL_PROCESS, else SECCOMP_RET_ALLOW.
    let kill = format!("[{RESTART}, (6, 0, 0, 0x80000000), (6, 0, 0, 0x7fff0000)]");
    let seconds = slept(python, &kill, freeze);
    // The sleep starts anew at each scan.
    assert!(seconds > 4.5, "{seconds}");
    // SECCOMP_RET_ERRNO with EPERM: the sleep would have failed.
    let error = format!("[{RESTART}, (6, 0, 0, 0x50001), (6, 0, 0, 0x7fff0000)]");
    assert!(slept(python, &error, freeze) > 3.0);
}

#[test]
fn a_sandbox_whose_filter_cannot_be_read_survives_frozen_scans() {
    let Some(python) = python() else { skip!("python3 is missing") };
    needs!(cfg!(target_arch = "x86_64"), "the numbers of system calls are those of x86_64");
    may!(rights::less("-sys_admin"));
    let kill = format!("[{RESTART}, (6, 0, 0, 0x80000000), (6, 0, 0, 0x7fff0000)]");
    let scan = tool("fdscan").to_string_lossy().into_owned();
    let without = |pid: &str| {
        let less = ["setpriv", "--bounding-set=-sys_admin", &scan, "--freeze", pid];
        pipeline(&[&less]).quiet();
    };
    assert!(slept(python, &kill, without) > 3.0);
}

#[test]
fn a_sandbox_that_allows_restart_syscall_sleeps_as_long_under_frozen_scans() {
    let Some(python) = python() else { skip!("python3 is missing") };
    needs!(cfg!(target_arch = "x86_64"), "the numbers of system calls are those of x86_64");
    may!(rights::capability("sys_admin"));
    // It denies 218, set_tid_address.
    let filter = "[(0x20, 0, 0, 0), (0x15, 0, 1, 218), (6, 0, 0, 0), (6, 0, 0, 0x7fff0000)]";
    let seconds = slept(python, filter, freeze);
    assert!((3.0..4.5).contains(&seconds), "{seconds}");
}

#[test]
fn a_signal_that_comes_during_the_stop_still_interrupts_a_call() {
    let Some(python) = python() else { skip!("python3 is missing") };
    // So many descriptors that the scan takes a while.
    let program = "
import ctypes, os, select, signal
signal.signal(signal.SIGUSR1, lambda number, frame: None)
libc = ctypes.CDLL(None, use_errno=True)
many = [os.eventfd(0) for _ in range(900)]
events = select.epoll()
print('ready', flush=True)
result = libc.epoll_wait(events.fileno(), ctypes.create_string_buffer(16), 1, -1)
print(result, ctypes.get_errno(), flush=True)";
    let mut target = Target::program(&[python, "-c", program]);
    until("asleep", || status(&target.pid, "State").starts_with('S'));
    needs!(crate::harness::which("strace").is_some(), "strace is missing");
    let scratch = Scratch::new();
    let scan = slow_scan(&scratch, &target.pid);
    pipeline(&[&["kill", "-USR1", &target.pid]]).quiet();
    assert!(status(&target.pid, "State").starts_with('t'), "it was stopped when the signal came");
    scan.wait_with_output().expect("it ends");
    assert_eq!(target.line(), format!("-1 {}", nix::libc::EINTR));
}

#[test]
fn a_process_that_does_not_stop_in_time_is_named_and_all_are_let_go() {
    let Some(python) = python() else { skip!("python3 is missing") };
    needs!(cfg!(target_arch = "x86_64"), "the number of vfork(2) is that of x86_64");
    let scratch = Scratch::new();
    let other = target!(scratch.dir(), &["pipe@4,5"]);
    // The child has the memory of its parent, which waits for it, and prints.
    let program = "
import ctypes, os, time
libc = ctypes.CDLL(None)
pid = libc.syscall(58)
if pid == 0:
    print('ready', flush=True)
    time.sleep(60)
    os._exit(0)";
    let target = Target::program(&[python, "-c", program]);
    // The tools are built before the time is taken.
    tool("fdscan");
    let begun = Instant::now();
    let words = ["fdscan", "--freeze", "--timeout", "0.5", &other.pid, &target.pid];
    let ran = pipeline(&[&words]);
    let took = begun.elapsed();
    assert!(ran.stdout.is_empty(), "{}", ran.whole());
    let named = format!("{}: it has not stopped within 0.5 seconds", target.pid);
    ran.refuses(5, &[&named, "--timeout", "vfork(2)"]).in_one_line();
    assert!(took >= Duration::from_millis(500) && took < Duration::from_secs(20), "{took:?}");
    for pid in [&other.pid, &target.pid] {
        assert_eq!(status(pid, "TracerPid"), "0");
    }
    until("running", || status(&other.pid, "State").starts_with('S'));
}

#[test]
fn a_process_that_starts_threads_all_the_time_is_stopped_or_named_in_time() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let program = "
import threading, time
def go():
    while True:
        try:
            return threading.Thread(target=go, daemon=True).start()
        except RuntimeError:
            time.sleep(0.001)
for _ in range(10):
    threading.Thread(target=go, daemon=True).start()
print('ready', flush=True)
time.sleep(60)";
    let target = Target::program(&[python, "-c", program]);
    for _ in 0..10 {
        let ran = pipeline(&[&["fdscan", "--freeze", "--timeout", "2", &target.pid]]);
        // A thread that was not seen in time changes the table of the process at most.
        let stopped = ran.status(0) == 0 && !ran.stdout.is_empty();
        let named = ran.status(0) == 5 && ran.stdout.is_empty() && ran.said().contains("--timeout");
        assert!(stopped || named, "{}", ran.whole());
    }
    until("running", || status(&target.pid, "TracerPid") == "0");
}

#[test]
fn the_tracer_of_a_process_is_named() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let program = "
import ctypes, os, time
pid = os.fork()
if pid == 0:
    time.sleep(60)
    os._exit(0)
seized = ctypes.CDLL(None).ptrace(0x4206, pid, None, None)
print(pid if seized == 0 else 'no', flush=True)
time.sleep(60)";
    let tracer = Target::program(&[python, "-c", program]);
    needs!(tracer.said != "no", "ptrace(2) is not permitted here");
    let named = format!("it is traced by process {} (python", tracer.pid);
    pipeline(&[&["fdscan", "--freeze", &tracer.said]]).refuses(4, &[&named]).in_one_line();
    // Nothing has changed for the tracer, nor for a scan that does not stop it.
    assert_eq!(status(&tracer.said, "TracerPid"), tracer.pid);
    pipeline(&[&["fdscan", &tracer.said]]).ok();
}

/// A program of python3 with a message queue of 2000 numbered messages. It receives the oldest, sends
/// the one that comes after the newest, and ends with status 1 when a number is missing.
const ROTATOR: &str = r#"
import ctypes, os, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
count = 2000
attributes = ctypes.create_string_buffer(struct.pack("8q", 0, count, 8, 0, 0, 0, 0, 0))
name = b"/fdkit-rotator-%d" % os.getpid()
queue = libc.mq_open(name, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o600, attributes)
if queue < 0:
    print("no: errno", ctypes.get_errno(), flush=True)
    time.sleep(600)
libc.mq_unlink(name)
number = ctypes.c_uint64(0)
for number.value in range(count):
    libc.mq_send(queue, ctypes.byref(number), 8, 0)
print("ready", flush=True)
expected = 0
while True:
    if libc.mq_receive(queue, ctypes.byref(number), 8, None) != 8 or number.value != expected:
        sys.exit(1)
    number.value += count
    if libc.mq_send(queue, ctypes.byref(number), 8, 0) != 0:
        sys.exit(1)
    expected += 1
"#;

/// A program of python3 with 300 numbers of eight bytes in each direction of a raw pseudoterminal. It
/// reads the oldest, writes the one that comes after the newest, and ends with status 1 when a number
/// is missing.
const TERMINAL_ROTATOR: &str = r#"
import os, struct, sys, time, tty
count = 300
master, slave = os.openpty()
tty.setraw(slave)
os.set_blocking(master, False)
os.set_blocking(slave, False)
number = lambda at: struct.pack("Q", at)
for at in range(count):
    os.write(slave, number(at))
    os.write(master, number(at))
print("ready", flush=True)

def read(end):
    # The kernel moves what is written by a worker.
    got, late = b"", time.monotonic() + 2
    while len(got) < 8 and time.monotonic() < late:
        try:
            got += os.read(end, 8 - len(got))
        except BlockingIOError:
            pass
    return got

expected = 0
while True:
    for end, other in ((master, slave), (slave, master)):
        if read(end) != number(expected):
            sys.exit(1)
        os.write(other, number(expected + count))
    expected += 1
"#;

/// What is killed while a helper has a part of a queue.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Fdscan,
    Group,
    Helper,
}

/// Scans a process that checks its own queues all the time, so often, and kills one of the victims as
/// soon as there is a helper. Fails if the process has ended.
#[track_caller]
fn keeps_its_queues(target: &Target, victims: &[Victim], rounds: usize) {
    let has_ended = || status(&target.pid, "State").starts_with('Z');
    let mut hits = 0;
    for victim in victims.iter().cycle().take(rounds) {
        let mut scan = command(&["fdscan", "--freeze", "--data", &target.pid])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("fdscan runs");
        let pid = scan.id();
        // A child that is not the tracer is the helper.
        let helper = loop {
            let path = format!("/proc/{pid}/task/{pid}/children");
            let children = fs::read_to_string(path).unwrap_or_default();
            let tracer = status(&target.pid, "TracerPid");
            let mut children = children.split_whitespace();
            let helper = children.find(|child| tracer != "0" && **child != tracer);
            if helper.is_some() {
                break helper.map(str::to_owned);
            }
            if scan.try_wait().expect("a status").is_some() {
                break None;
            }
        };
        let Some(helper) = helper else { continue };
        hits += 1;
        let id = match victim {
            Victim::Fdscan => pid.to_string(),
            Victim::Group => format!("-{pid}"),
            Victim::Helper => helper,
        };
        // The helper may have ended by itself.
        pipeline(&[&["kill", "-KILL", "--", &id]]);
        scan.wait().expect("it ends");
        until("let go", || status(&target.pid, "TracerPid") == "0");
        let ran = || fs::read_to_string(format!("/proc/{}/schedstat", target.pid)).expect("times");
        let before = ran();
        until("running", || has_ended() || ran() != before);
        thread::sleep(Duration::from_millis(20));
        assert!(!has_ended(), "{victim:?} was killed");
    }
    assert!(hits * 10 >= rounds, "only {hits} of {rounds} kills came in time");
    // What is missing is noticed late.
    thread::sleep(Duration::from_secs(3));
    assert!(!has_ended(), "something is missing");
}

#[test]
fn no_process_runs_while_its_messages_are_out_of_their_queue() {
    let Some(python) = python() else { skip!("python3 is missing") };
    needs!(root(), "who is not root may not set the limit of messages");
    may!(rights::all_processes(), rights::namespace("--ipc"));
    needs!(fs::exists("/proc/thread-self/children").is_ok_and(|is| is), "no CONFIG_PROC_CHILDREN");
    // The limit is one of the namespace.
    let script = "echo 2000 >/proc/sys/fs/mqueue/msg_max; exec \"$0\" -c \"$1\"";
    let target = Target::program(&["unshare", "--ipc", "sh", "-c", script, python, ROTATOR]);
    needs!(target.said == "ready", "no message queue: {}", target.said);
    keeps_its_queues(&target, &[Victim::Fdscan, Victim::Group, Victim::Helper], 60);
}

#[test]
fn no_process_runs_while_bytes_are_out_of_its_terminal() {
    let Some(python) = python() else { skip!("python3 is missing") };
    may!(rights::all_processes());
    needs!(fs::exists("/proc/thread-self/children").is_ok_and(|is| is), "no CONFIG_PROC_CHILDREN");
    let target = Target::program(&[python, "-c", TERMINAL_ROTATOR]);
    // BUGS: what a helper has just read is lost when it is killed alone.
    keeps_its_queues(&target, &[Victim::Fdscan, Victim::Group], 40);
}

#[test]
fn a_scan_says_that_the_stop_ended_before_it() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let program = "
import os, time
many = [os.eventfd(0) for _ in range(900)]
print('ready', flush=True)
time.sleep(600)";
    let target = Target::program(&[python, "-c", program]);
    needs!(crate::harness::which("strace").is_some(), "strace is missing");
    let scratch = Scratch::new();
    let mut scan = slow_scan(&scratch, &target.pid);
    let holder = status(&target.pid, "TracerPid");
    assert!(holder != "0" && holder != scan.id().to_string());
    pipeline(&[&["kill", "-KILL", &holder]]).quiet();
    let mut image = Vec::new();
    std::io::Read::read_to_end(&mut scan.stdout.take().expect("piped"), &mut image).expect("it");
    let ended = scan.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(said.contains("the processes ran during the scan"), "{said}");
    assert_eq!(ended.status.code(), Some(5));
}

#[test]
fn a_thread_of_the_kernel_and_fdscan_itself_are_not_stopped() {
    pipeline(&[&["fdscan", "--freeze", "self"]]).refuses(4, &["it is fdscan itself"]).in_one_line();
    needs!(root(), "who is not root may not look at a thread of the kernel");
    let is_kernel = fs::read("/proc/2/comm").is_ok_and(|name| name == b"kthreadd\n");
    needs!(is_kernel, "no thread of the kernel has a process id here");
    pipeline(&[&["fdscan", "--freeze", "2"]]).refuses(4, &["a thread of the kernel"]).in_one_line();
}

#[test]
fn a_time_limit_is_more_than_none_and_belongs_to_a_stop() {
    for (time, why) in [("0", "more than 0 seconds"), ("-1", "such as 5 or 0.5"), ("x", "5 or 0.5")]
    {
        let option = format!("--timeout={time}");
        pipeline(&[&["fdscan", "--freeze", &option, "self"]]).refuses(2, &["--timeout", why]);
    }
    pipeline(&[&["fdscan", "--timeout", "1", "self"]]).refuses(2, &["--timeout requires --freeze"]);
}

/// A server of a FUSE file system with one empty file, by /dev/fuse alone, and a child that has the file
/// open. Prints its id and that of the child.
const FUSE: &str = "
import ctypes, os, struct, sys, time
os.chdir(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
os.makedirs('mnt', exist_ok=True)
try: fuse = os.open('/dev/fuse', os.O_RDWR)
except OSError as error: print('skip: /dev/fuse:', error.strerror, flush=True); time.sleep(600)
options = b'fd=%d,rootmode=40000,user_id=0,group_id=0' % fuse
if libc.unshare(0x20000) or libc.mount(None, b'/', None, 0x44000, None) or \\
   libc.mount(b'test', b'mnt', b'fuse', 0, options):
    print('skip: mount:', os.strerror(ctypes.get_errno()), flush=True); time.sleep(600)
child = os.fork()
if child == 0:
    os.close(fuse)
    file = os.open('mnt/file', os.O_RDONLY)
    open('opened', 'w')
    time.sleep(600)
attr = lambda ino: struct.pack('<6Q10I', ino, 0, 0, 0, 0, 0, 0, 0, 0,
                               0o40755 if ino == 1 else 0o100644, 1, 0, 0, 0, 4096, 0)
said = False
import select
while True:
    if not said and os.path.exists('opened'):
        print(os.getpid(), child, flush=True); said = True
    if not select.select([fuse], [], [], .02)[0]: continue
    request = os.read(fuse, 1 << 17)
    length, op, unique, node = struct.unpack_from('<IIQQ', request)
    answer = {26: struct.pack('<4I2H2I2H4I8x', 7, 31, 65536, 0, 16, 12, 65536, 1, 256, 0, 0, 0, 0, 0),
              1: struct.pack('<4Q2I', 2, 0, 0, 0, 0, 0) + attr(2),
              3: struct.pack('<Q2I', 0, 0, 0) + attr(node),
              14: struct.pack('<Q2I', 1, 0, 0)}.get(op, b'')
    os.write(fuse, struct.pack('<IiQ', 16 + len(answer), 0, unique) + answer)";

#[test]
fn a_process_that_serves_a_file_system_and_its_client_are_captured_while_both_are_stopped() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let target = Target::program(&[python, "-c", FUSE, scratch.dir()]);
    if let Some(reason) = target.said.strip_prefix("skip: ") {
        skip!("a FUSE file system cannot be mounted: {reason}");
    }
    let file = scratch.file("a.fdi");
    for options in [&["--freeze"][..], &["--freeze", "--data"]] {
        let begun = std::time::Instant::now();
        let words = [&["fdscan", "-t", "-o", &file], options, &[&target.pid]].concat();
        let ran = pipeline(&[&words]);
        assert!(begun.elapsed() < std::time::Duration::from_secs(60), "{}", ran.whole());
        assert_eq!((ran.status(0), ran.stderr(0)), (0, ""), "{}", ran.whole());
        let shown = crate::harness::show(&file);
        let all = shown["descriptors"].as_array().unwrap().iter();
        let served: Vec<_> =
            all.filter(|it| it["name"].as_str().unwrap().ends_with("/mnt/file")).collect();
        // It was captured before the stop, with what only a copy tells.
        assert_eq!(served.len(), 1, "{shown}");
        assert_eq!(
            (served[0]["kind"].as_str(), &served[0]["inode"]["ino"]),
            (Some("regular"), &2.into())
        );
    }
}

#[test]
fn a_process_that_permits_each_open_is_captured_and_the_file_is_not_read_while_it_is_stopped() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let program = "
import ctypes, os, sys, time
os.chdir(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
file = os.open('file', os.O_RDWR | os.O_CREAT); os.write(file, b'contents')
group = libc.fanotify_init(4, 2)
if group < 0 or libc.fanotify_mark(group, 1, ctypes.c_uint64(0x10000), -100, b'file'):
    print('skip:', os.strerror(ctypes.get_errno()), flush=True); time.sleep(600)
os.unlink('file')
print('ready', flush=True)
while True:
    event = os.read(group, 24)
    os.write(group, event[16:20] + b'\\1\\0\\0\\0')
    os.close(int.from_bytes(event[16:20], 'little'))";
    let target = Target::program(&[python, "-c", program, scratch.dir()]);
    if let Some(reason) = target.said.strip_prefix("skip: ") {
        skip!("fanotify gives no permission events here: {reason}");
    }
    let file = scratch.file("a.fdi");
    pipeline(&[&["fdscan", "--freeze", "--data", "-o", &file, &target.pid]])
        .refuses(1, &["its contents", "may have to permit the read (fanotify)"])
        .in_one_line();
    pipeline(&[&["fdimg", "verify", &file]]).ok();
}
