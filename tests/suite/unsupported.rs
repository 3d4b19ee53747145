//! Descriptors that no kind supports: they are recorded as opaque without a message, and refused or
//! left out at the restore.

use crate::harness::{Scratch, Target, pipeline, restored, scan, show};
use crate::rights;

/// The descriptors that this test makes, and the first line of their fdinfo, where it has lines of
/// its own.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("io_uring", "SqMask:"),
    ("userfaultfd", "pending:"),
    ("bpf-map", "map_type:"),
    ("bpf-prog", "prog_type:"),
    ("perf", ""),
    ("secret", ""),
    ("landlock", ""),
    ("seccomp", ""),
    ("fscontext", ""),
    ("vsock", ""),
    ("fuse", ""),
    ("kvm", ""),
    ("vga_arbiter", ""),
];

/// Types of descriptors that kernels are often built without.
const OPTIONAL: &[&str] = &["alg", "xdp", "key", "can"];

#[test]
fn unsupported_descriptors_are_recorded_as_opaque_without_a_message() {
    let scratch = Scratch::new();
    let mut made = Vec::new();
    for (of, told) in UNSUPPORTED.iter().copied().chain(OPTIONAL.iter().map(|of| (*of, ""))) {
        let spec = format!("opaque@3:of={of}");
        match Target::make(scratch.dir(), &[&spec]) {
            Ok(_) => made.push((of, told)),
            Err(_) if OPTIONAL.contains(&of) => (),
            Err(reason) => crate::harness::skipped(&reason),
        }
    }
    let specs: Vec<String> =
        made.iter().zip(3..).map(|((of, _), n)| format!("opaque@{n}:of={of}")).collect();
    let mut specs: Vec<&str> = specs.iter().map(String::as_str).collect();
    specs.push("eventfd@40:count=5");
    let target = target!(scratch.dir(), &specs);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    for option in ["--freeze", "--passive"] {
        pipeline(&[&["fdscan", option, &target.pid], &["fdimg", "show"]]).quiet();
    }
    drop(target);
    let shown = show(&file);
    for ((of, told), n) in made.iter().zip(0..) {
        let record = &shown["descriptors"][n];
        assert_eq!(record["kind"], "opaque", "{of}: {record}");
        let info = record["body"]["info"].as_str().unwrap();
        assert!(info.contains(told), "{of}: {record}");
    }
    let text = pipeline(&[&["fdimg", "show", &file]]).quiet().text();
    assert_eq!(text.matches("opaque").count(), made.len(), "{text}");
    restored(&file, &[], &["true"]).refuses(125, &["fd 3", "(status 6)"]);
    let check = ["mkfd", "check", "--std", "0,1,2", "eventfd@40:count=5"];
    restored(&file, &["--missing", "skip"], &check).ok();
    needs!(made.len() >= 9, "only {} of them can be made", made.len());
}

#[test]
fn a_file_on_a_detached_mount_is_opaque_and_not_another_file_of_that_path() {
    let Some(python) = crate::harness::python() else { skip!("python3 is missing") };
    may!(rights::namespace("--mount"));
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.file("etc")).unwrap();
    std::fs::write(scratch.file("etc/passwd"), "not that of the system").unwrap();
    // A detached mount of OPEN_TREE_CLONE; then a file on a mount of the test's own mount
    // namespace, which the target has left; then a file on a mount of a namespace that no process
    // is in, though its path leads to the same file by another mount (CLONE_NEWNS twice).
    let script = "import ctypes, os, sys, time
libc = ctypes.CDLL(None)
SYS_open_tree, AT_FDCWD, OPEN_TREE_CLONE, CLONE_NEWNS = 428, -100, 1, 0x20000
tree = libc.syscall(SYS_open_tree, AT_FDCWD, sys.argv[1].encode(), OPEN_TREE_CLONE)
if tree < 0: raise SystemExit('open_tree')
there = [os.open(f'/proc/self/fd/{tree}/{name}', os.O_RDONLY) for name in ('etc', 'etc/passwd')]
here = []
for _ in range(2):
    here.append(os.open(sys.argv[1] + '/etc/passwd', os.O_RDONLY))
    if libc.unshare(CLONE_NEWNS) < 0: raise SystemExit('unshare')
assert os.readlink(f'/proc/self/fd/{there[1]}') == '/etc/passwd'
print(tree, *there, *here, flush=True); time.sleep(1000)";
    let target = Target::program(&[python, "-c", script, scratch.dir()]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    let shown = show(&file);
    let kind = |number: &str| {
        let all = shown["descriptors"].as_array().unwrap();
        let found = all.iter().find(|it| it["fd"].as_u64() == number.parse().ok()).unwrap();
        (found["kind"].as_str().unwrap().to_owned(), found["name"].as_str().unwrap().to_owned())
    };
    let kinds: Vec<_> = target.said.split(' ').map(kind).collect();
    let nowhere = |name: &str| ("opaque".to_owned(), name.to_owned());
    assert_eq!(kinds[..3], [nowhere("/"), nowhere("/etc"), nowhere("/etc/passwd")]);
    let regular = ("regular".to_owned(), scratch.file("etc/passwd"));
    assert_eq!(kinds[3..], [regular.clone(), regular]);
}

#[test]
fn sockets_of_a_passive_scan_are_refused_with_the_cure() {
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["udp@3", "unix@4", "eventfd@5"]);
    let file = scratch.file("a.fdi");
    pipeline(&[&["fdscan", "--passive", &target.pid], &["fdimg", "write", &file]]).quiet();
    let shown = pipeline(&[&["fdimg", "show", &file]]).quiet().text();
    assert_eq!(shown.matches("(not read: scan without --passive, as root)").count(), 2, "{shown}");
    let ran = pipeline(&[&["fdimg", "select", "-F", "unix", &file], &["fdimg", "show"]]);
    let why = "of kind opaque, since the scan did not read it: scan without --passive, as root";
    assert_eq!(ran.stderr(0).matches(why).count(), 1, "{}", ran.whole());
    drop(target);
    let why = "the scan was passive, and does not read sockets: scan without --passive";
    pipeline(&[&["fdrestore", "-n", "-i", &file, "--inherit", "0,1,2"]])
        .refuses(6, &["fd 3", "fd 4", why]);
}

#[test]
fn sockets_of_a_passive_scan_are_shown_as_proc_tells_them() {
    let Some(python) = crate::harness::python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let script = "import os, socket, sys, time
os.chdir(sys.argv[1])
tcp = socket.create_server(('127.0.0.1', 0)); client = socket.create_connection(tcp.getsockname())
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); udp.bind(('::1', 0))
unix = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); unix.bind('a b'); unix.listen(1)
a, b = socket.socketpair()
netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15); netlink.bind((0, 0))
# A name that looks like the line of another socket.
line = '0: 00000002 00000000 00010000 0001 01 %d /false' % os.fstat(b.fileno()).st_ino
false = socket.socket(socket.AF_UNIX); false.bind('\\0x\\n' + line)
ports = (s.getsockname()[1] for s in (tcp, client, udp)), (netlink.getsockname()[0],)
print(*(p for each in ports for p in each), *(s.fileno() for s in (tcp, client, udp, unix, a, netlink, b)))
sys.stdout.flush(); time.sleep(1000)";
    let target = Target::program(&[python, "-c", script, scratch.dir()]);
    let file = scratch.file("a.fdi");
    pipeline(&[&["fdscan", "--passive", &target.pid], &["fdimg", "write", &file]]).quiet();
    let said: Vec<&str> = target.said.split(' ').collect();
    let [tcp, client, udp, netlink] = said[..4] else { panic!("{}", target.said) };
    let shown = pipeline(&[&["fdimg", "show", &file]]).quiet().text();
    let begins_and_ends = |number: &str, begin: &str, end: &str| {
        let mut lines = shown.lines();
        let line = lines.find(|line| line.split_whitespace().next() == Some(number));
        let line = line.expect("a line for the number");
        let (begin, end) = (format!("  {begin}socket:["), format!("{end} (not read: "));
        assert!(line.contains(&begin) && line.contains(&end), "{begin} {end} in {line}");
    };
    begins_and_ends(said[4], "tcp ", &format!("] 127.0.0.1:{tcp} LISTEN"));
    let connected = format!("] 127.0.0.1:{client} -> 127.0.0.1:{tcp} ESTABLISHED");
    begins_and_ends(said[5], "tcp ", &connected);
    begins_and_ends(said[6], "udp6 ", &format!("] [::1]:{udp} CLOSE"));
    begins_and_ends(said[7], "unix seqpacket ", "] a b LISTEN");
    begins_and_ends(said[8], "unix stream ", "] CONNECTED");
    begins_and_ends(said[9], "netlink protocol=15 ", &format!("] {netlink}"));
    begins_and_ends(said[10], "", "]");
}
