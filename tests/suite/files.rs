//! Memfds, memory and character devices, and files whose name has changed: real programs, what
//! cannot be restored, and forged records.

use crate::forged::{at, forged, refused, whole, with_body};
use crate::harness::{Scratch, Target, check, image, pipeline, python, restored, scan};
use crate::rights;
use fdkit::image::{Bytes, Inode, Item, OpenFile};
use nix::libc::S_IFCHR;
use serde_cbor::Value;
use std::fs;

/// The bytes of an image with its files changed.
fn with_file(file: &str, mut change: impl FnMut(&mut OpenFile)) -> Vec<u8> {
    forged(&fs::read(file).unwrap(), |items| {
        for item in items {
            if let Item::File(file) = item {
                change(file);
            }
        }
    })
}

fn with_inode(file: &str, change: impl Fn(&mut Inode)) -> Vec<u8> {
    with_file(file, |file| change(file.inode.as_mut().expect("an inode")))
}

#[test]
fn a_memfd_with_a_forged_record_is_refused() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["memfd@3:data=hello"]);
    let body = |key: &str, value: Value| {
        with_body(&file, "memfd", |body| *at(body, &[key]) = value.clone())
    };
    let link = |link: &[u8]| with_file(&file, |file| file.link = Bytes(link.to_vec()));
    refused(body("seals", whole(64)), 6, &["fd 3", "seals 0x40"]);
    refused(body("seals", whole(-1)), 3, &["fd 3", "body"]);
    for pages in [0, 3, 1 << 63] {
        refused(body("huge", whole(pages)), 3, &["fd 3", "huge pages"]);
    }
    refused(body("huge", whole(1)), 6, &["fd 3", "no huge pages of 1 bytes"]);
    refused(link(b"/memfd:a"), 3, &["fd 3", "name"]);
    refused(link(b"/memfd:a\0b (deleted)"), 3, &["fd 3", "name"]);
    refused(link(&[b"/memfd:", &[b'a'; 250][..], b" (deleted)"].concat()), 3, &["fd 3", "name"]);
    refused(with_inode(&file, |inode| inode.size = 4), 3, &["fd 3", "beyond its size"]);
    refused(with_inode(&file, |inode| inode.size = u64::MAX), 3, &["fd 3", "size"]);
    refused(with_inode(&file, |inode| inode.mode = S_IFCHR | 0o666), 3, &["fd 3", "type"]);
    refused(with_file(&file, |file| file.inode = None), 6, &["fd 3", "passive"]);
}

#[test]
fn without_data_a_memfd_is_refused_unless_it_is_empty() {
    let scratch = Scratch::new();
    let specs = ["memfd@3:data=secret", "memfd@5:data=,seals=grow", "memfd@6:data=,size=1"];
    let target = target!(scratch.dir(), &specs);
    let file = scratch.file("a.fdi");
    pipeline(&[&["fdscan", &target.pid], &["fdimg", "write", &file]]).quiet();
    drop(target);
    let ran = restored(&file, &[], &["true"]).refuses(125, &["fd 3", "fd 6", "scan with --data"]);
    assert!(!ran.stderr(0).contains("fd 5"), "{}", ran.whole());
    let check = ["mkfd", "check", "--std", "0,1,2", specs[1]];
    restored(&file, &["--missing", "skip"], &check).ok();
}

#[test]
fn a_memfd_above_the_limit_is_reported_and_holes_do_not_count() {
    let scratch = Scratch::new();
    let specs = ["memfd@3:data=@9000", "memfd@4:after=8388608,data=x,size=16777216"];
    let target = target!(scratch.dir(), &specs);
    let file = scratch.file("a.fdi");
    let scan = ["fdscan", "--data=8192", &target.pid];
    let ran = pipeline(&[&scan, &["fdimg", "write", &file]]);
    assert_eq!((ran.status(0), ran.status(1)), (1, 0), "{}", ran.whole());
    assert!(ran.stderr(0).contains("fd 3: its contents: its 9000 bytes"), "{}", ran.whole());
    drop(target);
    let check = ["mkfd", "check", "--std", "0,1,2", specs[1]];
    restored(&file, &["--missing", "skip"], &check).ok();
}

#[test]
fn python3_finds_its_memfds_unchanged() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let before = "import fcntl, mmap, os, time
a = os.memfd_create('shared', os.MFD_ALLOW_SEALING); os.write(a, b'x' * 100000)
m = mmap.mmap(a, 100000); m[5:10] = b'hello'
b = os.open(f'/proc/self/fd/{a}', os.O_RDONLY); os.lseek(b, 5, os.SEEK_SET)
fcntl.fcntl(a, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
print(a, b, flush=True)
time.sleep(1000)";
    let after = "import fcntl, mmap, os, sys
a, b = map(int, sys.argv[1:])
assert os.read(b, 5) == b'hello', 'position'
m = mmap.mmap(a, 100000); m[10:15] = b'again'
assert os.read(b, 5) == b'again', 'one file'
assert fcntl.fcntl(b, fcntl.F_GET_SEALS) == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW, 'seals'
assert os.readlink(f'/proc/self/fd/{a}') == '/memfd:shared (deleted)', 'name'";
    let target = Target::program(&[python, "-c", before]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    let said = target.said.clone();
    drop(target);
    let (a, b) = said.split_once(' ').expect("two numbers");
    restored(&file, &[], &[python, "-c", after, a, b]).quiet();
}

#[test]
fn a_device_is_opened_only_if_its_number_is_the_recorded_one() {
    may!(rights::nodes());
    let scratch = Scratch::new();
    let node = scratch.file("node");
    let mknod = |minor: &str| pipeline(&[&["mknod", &node, "c", "10", minor]]).quiet();
    mknod("237");
    let spec = format!("chardev@3:path={node}");
    let target = target!(scratch.dir(), &[&spec, "chardev@4:dev=kmsg,read"]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    drop(target);
    // No file tells how much of the log a reader of /dev/kmsg has read.
    assert_eq!(crate::harness::show(&file)["descriptors"][1]["kind"], "opaque");
    let file3 = scratch.file("b.fdi");
    pipeline(&[&["fdimg", "select", "-F", "3", &file], &["fdimg", "write", &file3]]).quiet();
    restored(&file3, &["--allow", "devices"], &["mkfd", "check", "--std", "0,1,2", &spec]).quiet();
    fs::remove_file(&node).unwrap();
    // Another device of the table of devices, and one that starts a watchdog.
    for minor in ["235", "130"] {
        mknod(minor);
        refused(fs::read(&file3).unwrap(), 6, &["fd 3", "another type"]);
        fs::remove_file(&node).unwrap();
    }
    mknod("130");
    let watchdog = with_inode(&file3, |inode| inode.rdev = Some((10, 130)));
    refused(watchdog, 6, &["fd 3", "this version restores no such device"]);
    refused(with_file(&file3, |file| file.inode = None), 6, &["fd 3", "no such device"]);
    // Another kind that opens devices does not open it, either.
    let mem = |inode: bool| {
        with_file(&file3, |file| {
            file.kind = "mem".into();
            file.inode = file.inode.take().filter(|_| inode);
        })
    };
    refused(mem(true), 3, &["fd 3", "not a memory device"]);
    refused(mem(false), 3, &["fd 3", "not a memory device"]);
}

#[test]
fn a_file_whose_name_was_removed_is_opened_by_another_name_or_refused() {
    let scratch = Scratch::new();
    let specs = ["regular@3:renamed,pos=7", "regular@4:renamed,read", "regular@5:renamed,opath"];
    let file = image(&scratch, &specs);
    crate::grammar::judged(&file);
    let ran = check(&scratch, &file, &specs).ok();
    assert_eq!(ran.said(), "", "{}", ran.whole());
    // No other name of the file was found.
    let unfound = with_body(&file, "regular", |body| {
        *at(body, &["renamed"]) = Value::Map(Default::default());
    });
    refused(unfound, 6, &["regular.3 (deleted)", "the scan found no other name"]);
    // The other name that was found belongs to another file now.
    let other = scratch.file("others/regular.3");
    fs::remove_file(&other).unwrap();
    fs::write(&other, "else").unwrap();
    let ran = restored(&file, &["--changed", "fail"], &["true"]);
    ran.refuses(125, &["fd 3", "changed since the scan: "]);
}

#[test]
fn a_file_whose_name_ends_in_deleted_is_opened_by_its_name() {
    let scratch = Scratch::new();
    let spec = format!("regular@3:path={}", scratch.file("a (deleted)"));
    let file = image(&scratch, &[&spec]);
    restored(&file, &[], &["mkfd", "check", "--std", "0,1,2", &spec]).quiet();
}

#[test]
fn a_fifo_without_a_name_whose_other_end_is_outside_is_refused() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["fifo@3,4:unlinked"]);
    for (fd, end) in [("3", "write"), ("4", "read")] {
        let select: &[&[&str]] = &[&["fdimg", "select", "-F", fd, &file]];
        let bytes = pipeline(select).ok().stdout;
        refused(bytes, 6, &[&format!("fd {fd}"), &format!("its {end} end is outside")]);
    }
}

#[test]
fn a_fifo_without_a_name_gets_another_name_if_its_own_is_in_use() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["fifo@3,4:unlinked"]);
    fs::write(scratch.file("fifo.3"), "not ours").unwrap();
    let ran = restored(&file, &[], &["readlink", "/proc/self/fd/3"]).ok();
    assert!(ran.text().contains("fifo.3.fdrestore-") && ran.text().ends_with(" (deleted)\n"));
    assert!(ran.said().contains("another file has its name now"), "{}", ran.whole());
    assert_eq!(fs::read_to_string(scratch.file("fifo.3")).unwrap(), "not ours");
}

#[test]
fn an_unlinked_file_of_the_lower_layer_of_an_overlay_comes_back_with_its_contents() {
    let Some(python) = python() else { skip!("python3 is missing") };
    may!(rights::mounts());
    let scratch = Scratch::new();
    let script = format!(
        "mount -t tmpfs none {0} && cd {0} && mkdir l u w o && echo contents >l/a && echo other >l/b \
         && mount -t overlay none -o lowerdir=l,upperdir=u,workdir=w o && cd o && exec \"$@\"",
        scratch.dir()
    );
    let open = "
import os, time
a = os.open('a', os.O_RDONLY)
os.unlink('a')
os.rename('b', 'b (deleted)')
b = os.open('b (deleted)', os.O_RDONLY)
print(a, b, flush=True)
time.sleep(1000)";
    let start = ["unshare", "--mount", "sh", "-c", &script, "sh", python, "-c", open];
    let made = Target::ready(&start);
    let Ok(target) = made else { skip!("no overlay: {}", made.err().unwrap_or_default()) };
    needs!(!target.said.is_empty(), "an overlay cannot be mounted");
    let (a, b) = target.said.split_once(' ').expect("two numbers");
    let file = scratch.file("a.fdi");
    let scan = ["fdscan", "--data", &target.pid];
    pipeline(&[&scan, &["fdimg", "write", &file]]).quiet();
    let kind = |fd: &str| row_of(&file, fd)["kind"].as_str().expect("a kind").to_owned();
    assert_eq!((kind(a), kind(b)), ("unlinked".to_owned(), "regular".to_owned()));
    // The directory of the file exists here, too, but not the file.
    fs::create_dir(scratch.file("o")).unwrap();
    let fd = format!("/proc/self/fd/{a}");
    let ran = restored(&file, &["--missing", "skip"], &["cat", &fd]);
    assert_eq!(ran.text(), "contents\n", "{}", ran.whole());
}

/// The descriptor with this number as `fdimg show` prints it.
fn row_of(file: &str, fd: &str) -> serde_json::Value {
    let shown = crate::harness::show(file);
    let number: u32 = fd.parse().expect("a number");
    let rows = shown["descriptors"].as_array().expect("rows");
    rows.iter().find(|row| row["fd"] == number).expect("a row").clone()
}

#[test]
fn a_file_below_the_directory_of_the_process_in_proc_is_recorded_as_that() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let script = "
import os, time
paths = '/proc/self/oom_score_adj', '/proc/self/fd', '/proc/net/unix', f'/proc/{os.getppid()}/stat'
print(*(os.open(path, os.O_RDONLY) for path in paths), flush=True)
time.sleep(1000)";
    let target = Target::program(&[python, "-c", script]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    crate::grammar::judged(&file);
    let numbers = target.said.split(' ');
    let found: Vec<String> =
        numbers.map(|fd| row_of(&file, fd)["body"]["place"]["proc"].to_string()).collect();
    assert_eq!(found, ["\"oom_score_adj\"", "\"fd\"", "\"net/unix\"", "null"]);
}

#[test]
fn a_file_below_proc_of_another_pid_namespace_is_that_of_the_process_by_its_id_there() {
    let Some(python) = python() else { skip!("python3 is missing") };
    may!(rights::mounts(), rights::namespace("--pid"));
    let scratch = Scratch::new();
    // Of the ids of the process the first is that of this namespace, and 1 the one inside.
    let script = "
import os, time
print(os.open('/proc/self/stat', os.O_RDONLY), flush=True)
time.sleep(1000)";
    let start =
        ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", python, "-c", script];
    let target = Target::ready(&start).expect("it starts");
    let file = scratch.file("a.fdi");
    let scan = ["fdscan", "--tree", &target.pid];
    pipeline(&[&scan, &["fdimg", "write", &file]]).ok();
    let shown = crate::harness::show(&file);
    let rows = shown["descriptors"].as_array().expect("rows");
    let row = rows.iter().find(|row| row["body"]["place"]["proc"] == "stat").expect("a row");
    assert_eq!(row["fd"].to_string(), target.said);
    assert!(row["body"]["place"]["mntns"].is_u64(), "{row}");
}

#[test]
fn a_file_of_another_mount_namespace_is_recorded_as_that_and_opened_elsewhere_with_a_line() {
    let Some(python) = python() else { skip!("python3 is missing") };
    may!(rights::mounts());
    let scratch = Scratch::new();
    fs::create_dir(scratch.file("d")).unwrap();
    fs::write(scratch.file("d/a"), "of the host").unwrap();
    let open = "
import os, sys, time
print(os.open(sys.argv[1], os.O_RDWR), flush=True)
time.sleep(1000)";
    let (folder, path) = (scratch.file("d"), scratch.file("d/a"));
    for (mount, other) in [("mount -t tmpfs none", true), (":", false)] {
        let script = format!("{mount} {folder}; : >>{path}; exec \"$@\"");
        let start = ["unshare", "--mount", "sh", "-c", &script, "sh", python, "-c", open, &path];
        let target = Target::program(&start);
        let file = scratch.file("a.fdi");
        let fd = format!("{},0-2", target.said);
        let words = ["fdscan", "-F", &fd, &target.pid];
        pipeline(&[&words, &["fdimg", "write", &file]]).quiet();
        crate::grammar::judged(&file);
        let place = row_of(&file, &target.said)["body"]["place"].clone();
        let namespace = fs::read_link(format!("/proc/{}/ns/mnt", target.pid)).unwrap();
        let ran = restored(&file, &["--inherit", "0,1,2"], &["true"]).ok();
        let line = format!("files of mount namespace {} are opened", namespace.display());
        // A mount namespace has copies of all mounts, so that every mount of it is another, and the
        // file can be the same.
        assert!(place["mntns"].is_u64(), "{place}");
        assert_eq!(ran.stderr(0).contains(&line), other, "{}", ran.whole());
        // Inside, and below a root directory that was named, the paths are right.
        let mount = format!("--mount=/proc/{}/ns/mnt", target.pid);
        let fdrestore = crate::harness::tool("fdrestore").to_string_lossy().into_owned();
        let there =
            ["nsenter", &mount, &fdrestore, "-i", &file, "--inherit", "0,1,2", "--", "true"];
        pipeline(&[&there]).quiet();
    }
}

#[test]
fn a_descriptor_that_may_have_a_psi_trigger_is_said() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let script = "
import os, sys, time
try:
    f = os.open('/proc/pressure/memory', os.O_RDWR | os.O_NONBLOCK)
    os.write(f, b'some 150000 2000000\\0')
except OSError as error:
    print('no', error, flush=True)
    sys.exit()
print(f, os.open('/proc/pressure/memory', os.O_RDONLY), flush=True)
time.sleep(1000)";
    let target = Target::program(&[python, "-c", script]);
    needs!(!target.said.starts_with("no"), "no PSI trigger can be set: {}", target.said);
    let (set, read) = target.said.split_once(' ').expect("two numbers");
    let ran = pipeline(&[&["fdscan", &target.pid], &["fdimg", "verify"]]);
    assert_eq!(ran.status(0), 1, "{}", ran.whole());
    assert!(ran.stderr(0).contains(&format!("fd {set}: a PSI trigger")), "{}", ran.whole());
    assert!(!ran.stderr(0).contains(&format!("fd {read}: ")), "{}", ran.whole());
}
