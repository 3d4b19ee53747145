//! Locks: which processes a restored lock excludes, and which locks cannot be acquired again.

use crate::forged::{forged, refused};
use crate::harness::{Scratch, Target, image, pipeline, python, restored, scan, show, skipped};
use fdkit::image::{Item, Lock, OpenFile, Slot};
use nix::libc;
use std::fs;

/// The keys of a lock of each class, and its name in messages.
const EACH: &[(&str, &str)] = &[
    ("lock=posix-w:0-9", "POSIX write lock on bytes 0 to 9"),
    ("read,lock=posix-r:5-", "POSIX read lock from byte 5 on"),
    ("lock=ofd-w", "OFD write lock"),
    ("lock=flock-w", "exclusive flock"),
];

#[test]
fn a_lock_that_another_process_has_is_refused_and_the_process_named() {
    for (key, name) in EACH {
        let scratch = Scratch::new();
        let held = key.replace("-r", "-w").replace("read,", "");
        let spec = format!("regular@3:path={},{held}", scratch.file("locked"));
        let (own, file) =
            (format!("{},{key}", &spec[..spec.find(',').unwrap()]), scratch.file("a.fdi"));
        let first = target!(scratch.dir(), &[&own, "eventfd@5"]);
        scan(&first.pid, &file);
        drop(first);
        let other = target!(scratch.dir(), &[&spec]);
        let by = match held.contains("ofd") {
            true => "an open file description has it locked".to_owned(),
            false => format!("process {} (mkfd) has it locked", other.pid),
        };
        let texts = ["fd 3", name, &by];
        refused(fs::read(&file).unwrap(), 6, &texts);
        let show = ["mkfd", "show"];
        let ran = restored(&file, &["--missing", "skip"], &show).ok();
        // The descriptor is restored, and a message says that it is not locked.
        assert!(ran.text().contains("\n3 /"), "{}", ran.whole());
        assert!(ran.stderr(0).contains(name) && ran.stderr(0).contains(&by), "{}", ran.whole());
        let info = fs::read_to_string(format!("/proc/{}/fdinfo/3", other.pid)).unwrap();
        assert!(info.contains("lock:"), "{info}");
    }
}

#[test]
fn the_captured_process_keeps_its_lease() {
    let scratch = Scratch::new();
    for (key, name) in
        [("own,async,lock=lease-w", "write lease"), ("read,own,async,lock=lease-r", "read lease")]
    {
        let target = target!(scratch.dir(), &[&format!("regular@3:{key}")]);
        let file = scratch.file("a.fdi");
        scan(&target.pid, &file);
        let bytes = fs::read(&file).unwrap();
        let by = format!("process {} (mkfd)", target.pid);
        match name {
            // Opening the file for reading does not break a read lease, and a second read lease is
            // possible.
            "read lease" => drop(restored(&file, &[], &["mkfd", "show"]).ok()),
            _ => refused(bytes, 6, &["fd 3", &by, name, "opening it would break"]),
        }
        let info = fs::read_to_string(format!("/proc/{}/fdinfo/3", target.pid)).unwrap();
        assert!(info.contains("LEASE  ACTIVE"), "{info}");
    }
}

#[test]
fn a_lease_that_is_being_broken_is_reported() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let spec = "regular@3:own,async,lock=lease-w";
    let target = target!(scratch.dir(), &[spec]);
    let breaks = "import os, sys
try: os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)
except BlockingIOError: print('breaks')";
    let path = scratch.file("regular.3");
    assert_eq!(pipeline(&[&[python, "-c", breaks, &path]]).ok().text(), "breaks\n");
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    drop(target);
    assert_eq!(show(&file)["descriptors"][0]["locks"][0]["breaking"], true);
    let ran = restored(&file, &[], &["mkfd", "show"]).ok();
    let line = "lease that is being broken: it is not taken again\n";
    assert!(ran.stderr(0).ends_with(line), "{}", ran.whole());
}

#[test]
fn restored_locks_exclude_real_programs() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let path = scratch.file("pid file");
    let daemon = "import fcntl, os, sys, time
a = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600); fcntl.lockf(a, fcntl.LOCK_EX)
b = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT, 0o600); fcntl.flock(b, fcntl.LOCK_EX)
print(a, b, flush=True)
time.sleep(1000)";
    let flocked = scratch.file("flocked");
    let target = Target::program(&[python, "-c", daemon, &path, &flocked]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    let keeps_out = |pid: &str| {
        let wants = "import fcntl, os, sys, struct
a = os.open(sys.argv[1], os.O_RDWR)
try: fcntl.lockf(a, fcntl.LOCK_EX | fcntl.LOCK_NB); print('free')
except BlockingIOError: pass
who = fcntl.fcntl(a, fcntl.F_GETLK, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0))
print(struct.unpack('hhqqi4x', who)[4])";
        let asked = pipeline(&[&[python, "-c", wants, &path]]).ok().text();
        assert_eq!(asked, format!("{pid}\n"));
        assert_eq!(pipeline(&[&["flock", "-n", "-E", "9", &flocked, "true"]]).status(0), 9);
    };
    keeps_out(&target.pid);
    drop(target);
    pipeline(&[&["flock", "-n", "-E", "9", &flocked, "true"]]).ok();
    let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2", "--", "mkfd", "sleep"];
    let again = Target::ready(&restore).unwrap();
    keeps_out(&again.pid);
    drop(again);
    pipeline(&[&["flock", "-n", "-E", "9", &flocked, "true"]]).ok();
}

#[test]
fn a_description_that_is_only_queued_in_a_socket_is_locked_again() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let path = scratch.file("locked");
    let sender = "import fcntl, os, socket, sys, time
a, b = socket.socketpair()
f = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600); fcntl.flock(f, fcntl.LOCK_EX)
socket.send_fds(a, [b'x'], [f]); os.close(f)
print('ready', flush=True); time.sleep(1000)";
    let target = Target::program(&[python, "-c", sender, &path]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    drop(target);
    let asks = ["flock", "-n", "-E", "9", &path, "true"];
    pipeline(&[&asks]).ok();
    assert_eq!(restored(&file, &[], &asks).status(0), 9);
}

#[test]
fn a_lock_survives_the_descriptors_that_fdrestore_closes() {
    let scratch = Scratch::new();
    let spec = format!("regular@3:append,path={},lock=posix-w:0-9", scratch.file("log"));
    let file = image(&scratch, &[&spec]);
    // stderr of fdrestore is the locked file, and COMMAND does not get it.
    let restore = crate::harness::tool("fdrestore");
    let script = "exec \"$0\" -i \"$1\" --inherit 0,1 -- \"$2\" check --std 0,1 \"$3\" 2>>\"$4\"";
    let words =
        [restore.to_str().unwrap(), &file, crate::harness::MKFD, &spec, &scratch.file("log")];
    let ran = pipeline(&[&[&["sh", "-c", script], &words[..]].concat()]);
    assert_eq!(fs::read_to_string(scratch.file("log")).unwrap().matches("mkfd:").count(), 0);
    ran.ok();
    // The table is shrunk, which copies it.
    let start = ["mkfd", "exec", "--leak", "5000", "--"];
    let restore =
        ["fdrestore", "-i", &file, "--inherit", "0,1,2", "--", "mkfd", "check", "--fdsize", "64"];
    pipeline(&[&[&start[..], &restore, &["--std", "0,1,2", &spec]].concat()]).ok();
}

#[test]
fn each_process_of_a_tree_has_its_own_locks() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let path = scratch.file("locked");
    fs::write(&path, "0123456789").unwrap();
    let script = "import fcntl, os, sys, time
f = os.open(sys.argv[1], os.O_RDWR); g = os.open(sys.argv[1], os.O_RDWR)
fcntl.flock(g, fcntl.LOCK_EX); fcntl.lockf(f, fcntl.LOCK_EX, 2, 0)
r, w = os.pipe()
if os.fork() == 0:
    fcntl.lockf(f, fcntl.LOCK_EX, 3, 5); os.write(w, b'x'); time.sleep(1000)
os.read(r, 1); print('ready', flush=True); time.sleep(1000)";
    let target = Target::program(&[python, "-c", script, &path]);
    let child = children(&target.pid);
    let file = scratch.file("a.fdi");
    let scan = |pid: &str, file: &str| {
        pipeline(&[&["fdscan", "--tree", "-F", "!0-2", pid], &["fdimg", "write", file]]).quiet();
    };
    scan(&target.pid, &file);
    let was = (locked(&path), (target.pid.clone(), child));
    drop(target);
    let tree = match Target::ready(&["fdrestore", "--tree", "-i", &file]) {
        Ok(tree) => tree,
        Err(reason) => return skipped(&reason),
    };
    let new = tree.said.split(' ').nth(1).expect("OLD NEW").to_owned();
    let is = (locked(&path), (new.clone(), children(&new)));
    let of = |(locks, (parent, child)): (Vec<String>, (String, String))| -> Vec<String> {
        let words = |it: &String| it.replace(&parent, "parent").replace(&child, "child");
        locks.iter().map(words).collect()
    };
    let was = of(was);
    let wanted = ["FLOCK WRITE 0 EOF parent", "POSIX WRITE 0 1 parent", "POSIX WRITE 5 7 child"];
    assert_eq!((&was[..], of(is)), (&wanted.map(str::to_owned)[..], was.clone()));
    let second = scratch.file("b.fdi");
    scan(&new, &second);
    let locks = |file: &str| -> Vec<serde_json::Value> {
        let shown = show(file);
        let all = shown["descriptors"].as_array().unwrap().clone();
        all.iter().map(|each| each["locks"].clone()).collect()
    };
    assert_eq!(locks(&file), locks(&second));
    assert_eq!(pipeline(&[&["flock", "-n", "-E", "9", &path, "true"]]).status(0), 9);
}

/// A program that shares its descriptor table with a child, by clone(2) with CLONE_FILES alone.
const SHARER: &str = "import ctypes, fcntl, os, signal, sys, time
f = os.open(sys.argv[1], os.O_RDWR); fcntl.lockf(f, fcntl.LOCK_EX, 3, 4)
if ctypes.CDLL(None).syscall(56, 0x400 | signal.SIGCHLD, 0, 0, 0, 0) != 0:
    print('ready', flush=True)
time.sleep(1000)";

#[test]
fn the_locks_of_a_shared_table_are_acquired_only_if_no_task_executes_a_program() {
    let Some(python) = python() else { skip!("python3 is missing") };
    needs!(cfg!(target_arch = "x86_64"), "clone(2) has another number here");
    let scratch = Scratch::new();
    let path = scratch.file("locked");
    fs::write(&path, "0123456789").unwrap();
    let target = Target::program(&[python, "-c", SHARER, &path]);
    let file = scratch.file("a.fdi");
    let write = ["fdimg", "write", &file];
    pipeline(&[&["fdscan", "--tree", "-F", "!0-2", &target.pid], &write]).quiet();
    assert_eq!(show(&file)["tasks"].as_array().unwrap().len(), 2);
    drop(target);
    let restore = ["fdrestore", "--tree", "-i", &file];
    let tree = Target::ready(&restore).expect("no skip");
    let new = tree.said.split(' ').nth(1).expect("OLD NEW").to_owned();
    assert_eq!(locked(&path), [format!("POSIX WRITE 4 6 {new}")]);
    drop(tree);
    let why = "POSIX locks of a table that is shared end with an exec";
    pipeline(&[&[&restore[..], &["--dry-run", "--", "true"]].concat()]).refuses(125, &[why]);
    pipeline(&[&[&restore[..], &["--", "true"]].concat()]).refuses(125, &[why, "(status 6)"]);
    let skip = ["--missing", "skip", "--", "true"];
    let plan = |end: &[&str]| pipeline(&[&[&restore[..], &["-n"], end].concat()]).ok().text();
    assert!(plan(&[]).contains("POSIX write lock"), "{}", plan(&[]));
    assert!(!plan(&skip).contains("POSIX write lock"), "{}", plan(&skip));
    let ran = pipeline(&[&[&restore[..], &skip].concat()]).ok();
    assert!(ran.stderr(0).contains(why), "{}", ran.whole());
    assert_eq!(locked(&path), Vec::<String>::new());
}

#[test]
fn a_command_in_a_tree_has_the_locks_of_the_first_task() {
    let scratch = Scratch::new();
    let spec = format!("regular@3:path={},lock=posix-w:2-3+flock-w", scratch.file("locked"));
    let target = target!(scratch.dir(), &[&spec]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    drop(target);
    let check = ["mkfd", "check", "--std", "none", "--log", &scratch.file("log"), &spec];
    pipeline(&[&[&["fdrestore", "--tree", "-i", &file, "--"], &check[..]].concat()]).ok();
    assert_eq!(fs::read_to_string(scratch.file("log")).unwrap(), "");
}

fn children(pid: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    text.trim().to_owned()
}

/// The locks of a file in /proc/locks: class, access, range, process.
fn locked(path: &str) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let inode = format!(":{}", fs::metadata(path).unwrap().ino());
    let text = fs::read_to_string("/proc/locks").unwrap();
    let of_it = |line: &&str| line.split_whitespace().nth(5).is_some_and(|it| it.ends_with(&inode));
    let shown = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        [words[1], words[3], words[6], words[7], words[4]].join(" ")
    };
    let mut locks: Vec<String> = text.lines().filter(of_it).map(shown).collect();
    locks.sort();
    locks
}

#[test]
fn a_lock_that_dups_share_is_recorded_once() {
    let scratch = Scratch::new();
    let specs = ["regular@3,4,5:dup,lock=posix-w:0-0", "regular@6,7:dup,lock=flock-w"];
    let target = target!(scratch.dir(), &specs);
    for (option, flocks) in [("--data", [1, 1]), ("--passive", [1, 0])] {
        let file = scratch.file("a.fdi");
        pipeline(&[&["fdscan", option, &target.pid], &["fdimg", "write", &file]]).quiet();
        let shown = show(&file);
        let count = |fd: usize| shown["descriptors"][fd]["locks"].as_array().unwrap().len();
        assert_eq!([0, 1, 2].map(count), [1, 0, 0], "{option}");
        // A lock of a description is shown with each of its numbers, if these are known to refer to
        // one description.
        assert_eq!([3, 4].map(count), flocks, "{option}");
    }
}

fn with_locks(
    file: &str,
    mut change: impl FnMut(&mut OpenFile),
    mut slots: impl FnMut(&mut Slot),
) -> Vec<u8> {
    forged(&fs::read(file).unwrap(), |items| {
        for item in items {
            match item {
                Item::File(file) => change(file),
                Item::Slot(slot) => slots(slot),
                _ => (),
            }
        }
    })
}

#[test]
fn a_forged_lock_is_refused_with_its_number() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["regular@3:read,lock=posix-r:5-9+flock-r"]);
    let shown = pipeline(&[&["fdimg", "show", &file]]).quiet().text();
    assert!(shown.contains(" locks=FLOCK-r,POSIX-r:5-9\n"), "{shown}");
    let posix = |change: &dyn Fn(&mut Lock)| {
        with_locks(&file, |_| (), |slot| slot.locks.iter_mut().for_each(change))
    };
    let flock = |change: &dyn Fn(&mut Lock)| {
        with_locks(&file, |file| file.locks.iter_mut().for_each(change), |_| ())
    };
    refused(posix(&|lock| lock.write = true), 3, &["fd 3", "access mode"]);
    refused(posix(&|lock| lock.end = Some(4)), 3, &["fd 3", "before it starts, or beyond"]);
    refused(
        posix(&|lock| (lock.start, lock.end) = (u64::MAX, None)),
        3,
        &["fd 3", "before it starts, or beyond"],
    );
    refused(posix(&|lock| lock.end = Some(u64::MAX)), 3, &["fd 3", "before it starts, or beyond"]);
    refused(
        posix(&|lock| lock.class = "OFDLCK".into()),
        3,
        &["fd 3", "belongs to a descriptor table"],
    );
    refused(
        flock(&|lock| lock.class = "POSIX".into()),
        3,
        &["fd 3", "belongs to a descriptor table"],
    );
    refused(flock(&|lock| lock.start = 1), 3, &["fd 3", "it covers a part"]);
    let opath = |file: &mut OpenFile| file.flags = libc::O_PATH as u32;
    refused(with_locks(&file, opath, |_| ()), 3, &["fd 3", "O_PATH"]);
    // A class of locks that only a later kernel has is reported.
    let other = scratch.file("b.fdi");
    fs::write(&other, flock(&|lock| lock.class = "a\nlock".into())).unwrap();
    let ran = restored(&other, &[], &["true"]).ok();
    assert!(ran.stderr(0).contains("a\\x0alock lock: it is not taken again"), "{}", ran.whole());
}
