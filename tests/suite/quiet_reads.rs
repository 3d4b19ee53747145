//! Contents that are read unnoticed: files without a name, memfds, queues of datagrams.

use crate::harness::{Scratch, Target, command, pipeline, python, restored, root, which};
use crate::rights;
use std::fs;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

/// Makes files without a name in a folder, with or without watches, and says what is changed of them
/// when a signal comes. The two arguments are the folder, and `watch`, `parent` for a watch of the
/// folder, or `no`.
const FILES: &str = "
import ctypes, fcntl, os, signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
folder, watch = sys.argv[1:]
libc = ctypes.CDLL(None)
inotify = libc.inotify_init1(os.O_NONBLOCK)
def state(fd):
    stat = os.fstat(fd)
    times = (stat.st_atime_ns, stat.st_mtime_ns, stat.st_ctime_ns)
    return (*times, stat.st_blocks, os.lseek(fd, 0, os.SEEK_CUR), fcntl.fcntl(fd, fcntl.F_GETFL))
files = {}
for name, flags in ('both', os.O_RDWR), ('sparse', os.O_RDWR), ('write', os.O_WRONLY):
    path = f'{folder}/{name}'
    files[name] = os.open(path, flags | os.O_CREAT, 0o600)
    os.write(files[name], name.encode() * 1000)
    if name == 'sparse': os.ftruncate(files[name], 1 << 36)
    os.utime(path, (1, 1))
    os.unlink(path)
files['memfd'] = os.memfd_create('m')
os.write(files['memfd'], b'memfd' * 1000)
for fd in files.values():
    path = f'/proc/self/fd/{fd}'.encode()
    if watch == 'watch' and libc.inotify_add_watch(inotify, path, 0x31) < 0: sys.exit('no watch')
if watch == 'parent' and libc.inotify_add_watch(inotify, folder.encode(), 0x31) < 0: sys.exit('no')
before = {name: state(fd) for name, fd in files.items()}
print(*(f'{name}={fd}' for name, fd in files.items()), flush=True)
signal.sigwait([signal.SIGUSR1])
changed = [name for name, fd in files.items() if state(fd) != before[name]]
try: changed.append(f'events: {len(os.read(inotify, 4096))} bytes')
except BlockingIOError: pass
print('changed:', *changed, flush=True)
time.sleep(1000)";

/// Runs FILES, scans it, and asserts that it has noticed nothing. Gives the names of the files whose
/// contents were not read.
#[track_caller]
fn not_read(start: &[&str], folder: &str, watch: &str, options: &[&str]) -> Vec<String> {
    let python = python().expect("python3");
    let words = [start, &[python, "-c", FILES, folder, watch]].concat();
    let mut target = Target::program(&words);
    let scan = [&["fdscan", "--data=20000"], options, &[&target.pid]].concat();
    let ran = pipeline(&[&scan, &["fdimg", "verify"]]);
    assert!(ran.status(1) == 0, "{}", ran.whole());
    pipeline(&[&["kill", "-USR1", &target.pid]]).ok();
    assert_eq!(target.line(), "changed:", "{options:?} {watch}: {}", ran.whole());
    let names = target.said.split_whitespace().filter_map(|word| word.split_once('='));
    let unread = |fd: &str| ran.stderr(0).contains(&format!("fd {fd}: its contents"));
    let unread = names.filter(|(_, fd)| unread(fd)).map(|(name, _)| name.to_owned());
    let unread: Vec<String> = unread.collect();
    assert_eq!(ran.status(0), i32::from(!unread.is_empty()), "{}", ran.whole());
    unread
}

#[test]
fn no_access_time_tells_that_the_contents_of_a_file_were_read() {
    needs!(python().is_some(), "python3 is missing");
    let scratch = Scratch::new();
    for options in [&[][..], &["--freeze"]] {
        assert_eq!(not_read(&[], scratch.dir(), "no", options), [""; 0]);
    }
}

#[test]
fn no_access_time_tells_of_a_read_with_any_option_of_the_mount() {
    needs!(python().is_some(), "python3 is missing");
    may!(rights::mounts());
    let scratch = Scratch::new();
    for mount in ["relatime", "strictatime", "noatime"] {
        let script = format!("mount -t tmpfs -o {mount} none {}; exec \"$@\"", scratch.dir());
        let start = ["unshare", "--mount", "sh", "-c", &script, "sh"];
        for options in [&[][..], &["--freeze"]] {
            assert_eq!(not_read(&start, scratch.dir(), "no", options), [""; 0], "{mount}");
        }
    }
}

#[test]
fn no_event_tells_that_the_contents_of_a_file_were_read() {
    needs!(python().is_some(), "python3 is missing");
    let scratch = Scratch::new();
    // To open them again would be an event, and another read moves the access time.
    let unread = not_read(&[], scratch.dir(), "watch", &[]);
    assert_eq!(unread, ["both", "sparse", "write", "memfd"]);
    let unread = not_read(&[], scratch.dir(), "watch", &["--freeze"]);
    may!(rights::all_processes());
    assert_eq!(unread, ["write"]);
}

#[test]
fn a_watch_of_the_folder_of_a_file_is_found_in_another_mount_namespace() {
    needs!(python().is_some(), "python3 is missing");
    may!(rights::mounts());
    let scratch = Scratch::new();
    let (there, here) = (scratch.file("there"), scratch.file("here"));
    for dir in [&there, &here] {
        fs::create_dir(dir).unwrap();
    }
    // For the scan, the path of the folder leads to another folder of the same file system.
    let script = format!("mount --bind {there} {here}; exec \"$@\"");
    let start = ["unshare", "--mount", "sh", "-c", &script, "sh"];
    let unread = not_read(&start, &here, "parent", &[]);
    assert_eq!(unread, ["both", "sparse", "write"]);
}

/// The flags and the position of a descriptor, as fdinfo shows them.
fn flags_and_position(pid: &str, fd: &str) -> String {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
    info.lines().take(2).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_scan_that_is_killed_while_it_reads_a_file_leaves_its_flags_and_position() {
    let Some(python) = python() else { skip!("python3 is missing") };
    may!(rights::all_processes());
    let scratch = Scratch::new();
    let script = "
import os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
os.write(fd, b'x' * (32 << 20))
os.lseek(fd, 4711, os.SEEK_SET)
os.unlink(sys.argv[1])
print(fd, flush=True)
time.sleep(1000)";
    let target = Target::program(&[python, "-c", script, &scratch.file("a")]);
    let fd = target.said.clone();
    let before = flags_and_position(&target.pid, &fd);
    assert!(before.contains("4711"), "{before}");
    let mut hits = 0;
    for _ in 0..20 {
        let mut scan = command(&["fdscan", "--freeze", "--data=1G", &target.pid])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("fdscan runs");
        while flags_and_position(&target.pid, &fd) == before
            && scan.try_wait().expect("a status").is_none()
        {}
        hits += usize::from(scan.try_wait().expect("a status").is_none());
        // It may have ended by itself.
        let _ = scan.kill();
        scan.wait().expect("it ends");
        let status =
            || fs::read_to_string(format!("/proc/{}/status", target.pid)).expect("it lives");
        while !status().contains("TracerPid:\t0\n") {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(flags_and_position(&target.pid, &fd), before, "when the process runs again");
    }
    assert!(hits >= 5, "only {hits} kills came in time");
}

#[test]
fn a_scan_of_a_large_table_that_is_killed_while_it_peeks_leaves_the_peek_offset() {
    let Some(python) = python() else { skip!("python3 is missing") };
    // A table of this size is looked at by several threads.
    needs!(
        thread::available_parallelism().is_ok_and(|cores| cores.get() > 1),
        "one core has no threads to end"
    );
    let script = "
import os, resource, subprocess, sys, time
from socket import *
SO_PEEK_OFF = 42
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
if hard < 2200: sys.exit('skip')
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
queue, sender = socket(AF_INET, SOCK_DGRAM), socket(AF_INET, SOCK_DGRAM)
queue.bind(('127.0.0.1', 0))
for _ in range(250): sender.sendto(b'x', queue.getsockname())
null = os.open('/dev/null', os.O_RDONLY)
for _ in range(2000): os.dup(null)
is_set = lambda: queue.getsockopt(SOL_SOCKET, SO_PEEK_OFF) >= 0
seen = left = 0
for _ in range(20):
    scan = subprocess.Popen([sys.argv[1], '--data', str(os.getpid())],
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not is_set() and scan.poll() is None: pass
    seen += is_set()
    scan.kill(); scan.wait()
    end = time.monotonic() + 1
    while is_set() and time.monotonic() < end: time.sleep(.001)
    left += is_set()
    queue.setsockopt(SOL_SOCKET, SO_PEEK_OFF, -1)
print(seen, left)";
    let tool = crate::harness::tool("fdscan");
    let ran = pipeline(&[&[python, "-c", script, tool.to_str().expect("a path")]]);
    needs!(!ran.stderr(0).contains("skip"), "the limit of open files is below 2200");
    let said = ran.text();
    let (seen, left) = said.trim().split_once(' ').expect("two counts");
    assert!(seen.parse::<u32>().expect("a count") >= 5, "only {seen} scans were seen to peek");
    assert_eq!(left, "0", "peek offsets left of {seen}");
}

#[test]
fn a_queue_of_very_many_messages_is_read_only_while_its_process_runs() {
    let Some(python) = python() else { skip!("python3 is missing") };
    needs!(root(), "who is not root may not make so long a queue");
    let script = "
import time
from socket import *
queue, sender = socket(AF_INET, SOCK_DGRAM), socket(AF_INET, SOCK_DGRAM)
queue.setsockopt(SOL_SOCKET, 33, 1 << 26)
queue.bind(('127.0.0.1', 0))
for _ in range(5000): sender.sendto(b'x', queue.getsockname())
print(queue.fileno(), flush=True)
time.sleep(1000)";
    let target = Target::program(&[python, "-c", script]);
    let scratch = Scratch::new();
    let file = scratch.file("a.fdi");
    let frozen = ["fdscan", "--freeze", "--data", &target.pid];
    let ran = pipeline(&[&frozen, &["fdimg", "write", &file]]);
    let name = format!("fd {}: its contents: it has more than 4096 messages", target.said);
    assert!(ran.status(0) == 1 && ran.stderr(0).contains(&name), "{}", ran.whole());
    pipeline(&[&["fdscan", "--data", &target.pid], &["fdimg", "write", &file]]).quiet();
}

#[test]
fn contents_are_read_also_where_process_vm_readv_is_denied() {
    needs!(which("strace").is_some(), "strace is missing");
    let scratch = Scratch::new();
    let spec = "memfd@3:data=hello";
    let target = target!(scratch.dir(), &[spec]);
    let (log, file) = (scratch.file("log"), scratch.file("a.fdi"));
    let tool = crate::harness::tool("fdscan");
    let tool = tool.to_str().expect("a path");
    let strace = |what: &str| {
        let scan = ["strace", "-f", "-qq", "-o", &log, "-e", what, tool, "--data", &target.pid];
        let ran = pipeline(&[&scan, &["fdimg", "write", &file]]);
        (ran, fs::read_to_string(&log).unwrap_or_default())
    };
    let (ran, calls) = strace("trace=process_vm_readv");
    needs!(ran.status(0) == 0, "strace cannot run fdscan: {}", ran.stderr(0));
    assert!(calls.contains("process_vm_readv("), "{calls}");
    let (ran, calls) = strace("inject=process_vm_readv:error=ENOSYS");
    ran.quiet();
    assert!(calls.contains("(INJECTED)"), "{calls}");
    drop(target);
    restored(&file, &[], &["mkfd", "check", "--std", "0,1,2", spec]).quiet();
}
