//! Wrong input and wrong usage: one clear line, the documented status, and nothing lost or half
//! done.

use crate::forged::forged;
use crate::harness::{
    MKFD, Pipeline, Scratch, Target, image, pipeline, python, restored, scan, terminal, tool,
};
use crate::rights;
use fdkit::image::{Bytes, Data, Item};
use nix::fcntl::OFlag;
use nix::libc::{S_IFCHR, S_IFREG};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

/// A process id that no process has: it is above any pid_max.
const NO_PROCESS: &str = "2147483647";

/// Runs `fdimg write` with these bytes over an old file: it must fail with 3 and leave the old
/// file.
#[track_caller]
fn refused(scratch: &Scratch, bytes: &[u8], texts: &[&str]) {
    let old = scratch.file("old.fdi");
    fs::write(&old, "what was there before").unwrap();
    let before = names(scratch);
    let write: &[&[&str]] = &[&["fdimg", "write", &old]];
    Pipeline::new(write)
        .stdin(bytes)
        .run()
        .refuses(3, &["fdimg: "])
        .refuses(3, texts)
        .in_one_line();
    assert_eq!(fs::read_to_string(&old).unwrap(), "what was there before");
    assert_eq!(names(scratch), before, "a file is left behind");
    for stage in [
        &["fdimg", "verify"][..],
        &["fdimg", "show"],
        &["fdimg", "select", "-F", "3"],
        &["fdrestore", "--dry-run"],
    ] {
        Pipeline::new(&[stage]).stdin(bytes).run().refuses(3, texts);
    }
    let restore: &[&[&str]] = &[&["fdrestore", "--", "echo", "run"]];
    let ran = Pipeline::new(restore).stdin(bytes).run();
    assert_eq!(ran.text(), "", "COMMAND ran\n{}", ran.whole());
    ran.refuses(125, &["(status 3)"]).refuses(125, texts);
}

#[test]
fn write_makes_no_file_for_a_dash() {
    let scratch = Scratch::new();
    let fdimg = tool("fdimg").to_string_lossy().into_owned();
    let script = "cd \"$1\" && exec \"$2\" write -";
    let write: &[&[&str]] = &[&["sh", "-c", script, "sh", scratch.dir(), &fdimg]];
    Pipeline::new(write).stdin(b"").run().refuses(2, &["fdimg: -: ", "fdimg read -", "./-"]);
    assert_eq!(names(&scratch), [""; 0]);
}

fn names(scratch: &Scratch) -> Vec<String> {
    let entries = fs::read_dir(scratch.dir()).unwrap().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The bytes of a small image with contents.
fn bytes(scratch: &Scratch) -> Vec<u8> {
    fs::read(image(scratch, &["pipe@3,4:data=hello", "regular@5"])).unwrap()
}

#[test]
fn a_process_that_does_not_exist_is_status_5() {
    let said = format!("fdscan: {NO_PROCESS}: no such process\n");
    pipeline(&[&["fdscan", NO_PROCESS]]).refuses(5, &[&said]).in_one_line();
}

#[test]
fn a_process_that_has_ended_is_status_5() {
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["eventfd@3"]);
    let pid = target.pid.clone();
    drop(target);
    pipeline(&[&["fdscan", &pid]]).refuses(5, &[&pid]).in_one_line();
}

#[test]
fn a_zombie_is_status_5() {
    let script = "sleep 0 & echo $!; exec sleep 100";
    let mut command = std::process::Command::new("sh");
    let mut parent =
        command.args(["-c", script]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let out = parent.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
    let pid = line.trim();
    for _ in 0..3000 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if stat.contains(") Z ") {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let ran = pipeline(&[&["fdscan", pid]]);
    let _ = parent.kill();
    let _ = parent.wait();
    ran.refuses(5, &[pid]).in_one_line();
}

#[test]
fn a_pid_that_is_not_a_number_is_wrong_usage() {
    for bad in ["x", "-5", "0", "1e3", "99999999999999999999"] {
        pipeline(&[&["fdscan", "--", bad]]).refuses(2, &["fdscan: "]);
    }
    pipeline(&[&["fdscan"]]).refuses(2, &["fdscan: "]);
}

#[test]
fn unknown_words_are_named() {
    pipeline(&[&["fdscan", "x"]]).refuses(2, &["'x' is not a process id"]);
    pipeline(&[&["fdscan"]]).refuses(2, &["PID is not given"]);
    pipeline(&[&["fdscan", "-F", "pip", "1"]]).refuses(2, &["'pip' is neither"]);
    pipeline(&[&["fdimg", "frobnicate"]]).refuses(2, &["frobnicate"]);
    pipeline(&[&["fdrestore"]]).refuses(2, &["COMMAND is not given"]);
}

#[test]
fn a_process_of_another_user_is_denied_with_the_reason() {
    may!(rights::other_user());
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["eventfd@3"]);
    // Other users may not be able to read the directory in which the tools were built.
    let copy = scratch.file("fdscan-copy");
    fs::copy(tool("fdscan"), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", &copy];
    pipeline(&[&[&nobody[..], &[&target.pid]].concat()])
        .refuses(4, &[&target.pid, "it runs as uid 0, we as 65534"])
        .in_one_line();
    // A user may scan the own process.
    pipeline(&[&[&nobody[..4], &["sh", "-c", "exec \"$0\" $$", &copy]].concat()]).ok();
}

#[test]
fn a_dry_run_refuses_a_file_that_the_user_may_not_open_as_the_restore_does() {
    may!(rights::other_user());
    let scratch = Scratch::for_all_users();
    let (path, copy) = (scratch.file("readable"), scratch.file("fdrestore-copy"));
    fs::copy(tool("fdrestore"), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", &copy];
    let (denied, no_owner) = ("Permission denied", "Operation not permitted");
    for (access, why) in [("read", None), ("write", Some(denied)), ("read,noatime", Some(no_owner))]
    {
        fs::write(&path, "text").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let target = target!(scratch.dir(), &[&format!("regular@3:path={path},{access}")]);
        let file = scratch.file("a.fdi");
        scan(&target.pid, &file);
        let image = fs::read(&file).unwrap();
        let run = |words: &[&str]| {
            Pipeline::new(&[&[&nobody[..], words].concat()]).stdin(&image[..]).run()
        };
        let Some(why) = why else {
            run(&["-n"]).ok();
            run(&["--", "true"]).ok();
            continue;
        };
        run(&["-n"]).refuses(6, &["fd 3", &path, why]);
        run(&["--", "true"]).refuses(125, &["fd 3", &path, why]);
        let skip = ["--missing", "skip"];
        let planned = run(&[&skip[..], &["-n"]].concat()).ok();
        let ran = run(&[&skip[..], &["--", "true"]].concat()).ok();
        assert!(planned.stderr(0).contains(why), "{}", planned.whole());
        assert_eq!(planned.stderr(0), ran.stderr(0));
    }
}

#[test]
fn a_missing_capability_is_named() {
    may!(rights::less("-sys_ptrace"));
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["pipe@3,4"]);
    // The scanner may not attach to a process that has more capabilities.
    let scan = tool("fdscan").to_string_lossy().into_owned();
    let less = ["setpriv", "--bounding-set=-sys_ptrace", &scan, &target.pid];
    let ran = pipeline(&[&less, &["fdimg", "show"]]);
    match ran.status(0) {
        0 | 1 => {}
        _ => drop(pipeline(&[&less]).refuses(4, &["CAP_SYS_PTRACE"])),
    }
}

#[test]
fn a_binary_stream_is_not_written_to_a_terminal() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["eventfd@3"]);
    let target = target!(scratch.dir(), &["eventfd@3"]);
    for stage in [
        &["fdscan", &target.pid][..],
        &["fdimg", "read", &file],
        &["fdimg", "select", "-F", "3", &file],
    ] {
        let (slave, _master) = terminal();
        Pipeline::new(&[stage]).stdout_to(slave).run().refuses(2, &["terminal"]).in_one_line();
    }
}

#[test]
fn a_binary_stream_is_not_read_from_a_terminal() {
    for stage in [&["fdimg", "write", "x.fdi"][..], &["fdimg", "show"], &["fdrestore", "-n"]] {
        let (slave, _master) = terminal();
        let scratch = Scratch::new();
        let ran = Pipeline::new(&[stage]).cwd(scratch.dir()).stdin_from(slave).run();
        ran.refuses(2, &["terminal"]).in_one_line();
        assert!(names(&scratch).is_empty());
    }
}

#[test]
fn text_is_written_to_a_terminal() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["eventfd@3"]);
    let (slave, master) = terminal();
    Pipeline::new(&[&["fdimg", "show", &file]]).stdout_to(slave).run().ok();
    let mut seen = [0; 4096];
    let got = nix::unistd::read(&master, &mut seen).unwrap();
    assert!(String::from_utf8_lossy(&seen[..got]).contains("eventfd"));
}

#[test]
fn an_incomplete_image_is_reported_as_truncated() {
    let scratch = Scratch::new();
    let bytes = bytes(&scratch);
    for keep in [1, 3, 20, bytes.len() / 2, bytes.len() - 20, bytes.len() - 1] {
        refused(&scratch, &bytes[..keep], &["truncated"]);
    }
}

#[test]
fn an_empty_image_is_reported_as_empty() {
    refused(&Scratch::new(), b"", &["empty"]);
}

#[test]
fn truncation_and_flipped_bits_are_always_detected() {
    let scratch = Scratch::new();
    let bytes = bytes(&scratch);
    // Each of these takes a process, so not every byte is tried; the property test of the reader
    // tries all.
    for at in (0..bytes.len()).step_by(bytes.len() / 60 + 1) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        let verify: &[&[&str]] = &[&["fdimg", "verify"]];
        Pipeline::new(verify).stdin(flipped).run().refuses(3, &["fdimg: "]).in_one_line();
        Pipeline::new(verify).stdin(&bytes[..at]).run().refuses(3, &["fdimg: "]).in_one_line();
    }
}

#[test]
fn a_flipped_bit_in_the_contents_is_detected_by_the_checksum() {
    let scratch = Scratch::new();
    let mut bytes = bytes(&scratch);
    let at = bytes.windows(5).position(|window| window == b"hello").expect("the data");
    bytes[at] ^= 4;
    refused(&scratch, &bytes, &["checksum"]);
}

#[test]
fn input_that_is_no_image_is_refused() {
    let scratch = Scratch::new();
    for bytes in [
        &b"#!/bin/sh\necho hello\n"[..],
        b"\0",
        b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0",
        b"\xd9\xd9\xf7",
        b"\xd9\xd9\xf7\xa0",
        b"\xff\xff\xff\xff",
        b"{\"head\": {}}\n",
    ] {
        refused(&scratch, bytes, &[]);
    }
}

#[test]
fn a_length_above_the_limit_is_refused_at_once() {
    let scratch = Scratch::new();
    // A byte string of 2^63 bytes, one of 4 GiB, an array of that length, and 10,000 nested arrays.
    for item in [
        &b"\x5b\x7f\xff\xff\xff\xff\xff\xff\xff"[..],
        b"\x5a\xff\xff\xff\xff",
        b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        refused(&scratch, &[b"\xd9\xd9\xf7\xa1\x64head", item].concat(), &[]);
    }
    let deep = [&b"\xd9\xd9\xf7\xa1\x64head"[..], &[0x81; 10_000]].concat();
    refused(&scratch, &deep, &[]);
    // An item without an end, of which 100 MB are sent.
    let long = [&b"\xd9\xd9\xf7\xa1\x64head\x5a\x7f\xff\xff\xff"[..], &vec![0; 100 << 20]].concat();
    let verify: &[&[&str]] = &[&["fdimg", "verify"]];
    Pipeline::new(verify).stdin(long).run().refuses(3, &[]).in_one_line();
}

#[test]
fn another_major_version_is_refused_and_named() {
    let scratch = Scratch::new();
    let forged = forged(&bytes(&scratch), |items| match &mut items[0] {
        Item::Head(head) => head.version = 999,
        other => panic!("{other:?}"),
    });
    refused(&scratch, &forged, &["version 999"]);
}

#[test]
fn data_after_the_end_is_refused() {
    let scratch = Scratch::new();
    let bytes = bytes(&scratch);
    refused(&scratch, &[&bytes[..], b"\0"].concat(), &["end"]);
    refused(&scratch, &[&bytes[..], &bytes].concat(), &["end"]);
}

#[test]
fn a_slot_without_its_file_is_refused() {
    let scratch = Scratch::new();
    let forged = forged(&bytes(&scratch), |items| {
        items.iter_mut().for_each(|item| {
            if let Item::Slot(slot) = item {
                slot.file = 77;
            }
        });
    });
    refused(&scratch, &forged, &["77"]);
}

#[test]
fn two_slots_with_one_number_are_refused() {
    let scratch = Scratch::new();
    let forged = forged(&bytes(&scratch), |items| {
        let slot = items.iter().position(|item| matches!(item, Item::Slot(_))).expect("a slot");
        items.insert(slot, items[slot].clone());
    });
    refused(&scratch, &forged, &["twice"]);
}

#[test]
fn contents_of_an_unknown_object_are_refused() {
    let scratch = Scratch::new();
    let forged = forged(&bytes(&scratch), |items| {
        items.push(Item::Data(Data { object: 99, offset: 0, with: None, bytes: b"x"[..].into() }));
    });
    refused(&scratch, &forged, &["99"]);
}

#[test]
fn a_number_above_any_limit_is_refused() {
    let scratch = Scratch::new();
    let raised = |fd: u32| {
        forged(&bytes(&scratch), |items| {
            let slots = items.iter_mut().rev().filter_map(|item| match item {
                Item::Slot(slot) => Some(slot),
                _ => None,
            });
            slots.take(1).for_each(|slot| slot.fd = fd);
        })
    };
    refused(&scratch, &raised(u32::MAX), &[]);
    // A valid number, but above the hard limit of this process.
    let file = scratch.file("high.fdi");
    fs::write(&file, raised(i32::MAX as u32 - 7)).unwrap();
    let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2", "--", "echo", "run"];
    let ran = pipeline(&[&restore]);
    assert_eq!(ran.text(), "", "COMMAND ran\n{}", ran.whole());
    ran.refuses(125, &["limit", "(status 6)"]);
    pipeline(&[&["fdrestore", "-n", "-i", &file]]).refuses(6, &["limit"]);
}

#[test]
fn a_full_disk_keeps_the_old_file() {
    may!(rights::mounts());
    let scratch = Scratch::new();
    let file = image(&scratch, &["unlinked@3:data=@3000000"]);
    let script = "mount -t tmpfs -o size=1m none \"$1\" || exit
        echo old > \"$1/a.fdi\"
        \"$2\" write \"$1/a.fdi\" < \"$3\"
        status=$?
        ls -A \"$1\"
        cat \"$1/a.fdi\"
        exit $status";
    let fdimg = tool("fdimg").to_string_lossy().into_owned();
    let dir = scratch.file("small");
    fs::create_dir(&dir).unwrap();
    let ran = pipeline(&[&["unshare", "-m", "sh", "-c", script, "sh", &dir, &fdimg, &file]]);
    assert_eq!(ran.text(), "a.fdi\nold\n", "{}", ran.whole());
    ran.refuses(7, &["fdimg: ", "No space left"]).in_one_line();
}

#[test]
fn a_stream_that_cannot_be_written_is_a_system_error() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["eventfd@3"]);
    let target = target!(scratch.dir(), &["eventfd@3"]);
    for stage in [
        &["fdscan", &target.pid][..],
        &["fdimg", "show", &file],
        &["fdimg", "show", "-J", &file],
        &["fdimg", "read", &file],
        &["fdimg", "select", "-F", "3", &file],
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let ran = Pipeline::new(&[stage]).stdout_to(OwnedFd::from(full)).run();
        ran.refuses(7, &["No space left"]).in_one_line();
    }
}

#[test]
fn a_missing_directory_is_named() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["eventfd@3"]);
    let wrong = scratch.file("nowhere/a.fdi");
    pipeline(&[&["fdimg", "read", &file], &["fdimg", "write", &wrong]])
        .refuses(7, &["nowhere"])
        .in_one_line();
    pipeline(&[&["fdimg", "show", &wrong]]).refuses(7, &["nowhere"]).in_one_line();
    pipeline(&[&["fdrestore", "-i", &wrong, "--", "true"]])
        .refuses(125, &["nowhere", "(status 7)"])
        .in_one_line();
}

#[test]
fn an_image_file_is_readable_by_its_owner_only() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["eventfd@3"]);
    assert_eq!(fs::metadata(file).unwrap().mode() & 0o7777, 0o600);
}

#[test]
fn a_command_that_does_not_exist_is_status_127() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["eventfd@3"]);
    let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2", "--"];
    // A directory in PATH that may not be searched would give 126.
    let path = std::env::var("PATH").unwrap();
    let folders = path.split(':').filter(|folder| fs::metadata(format!("{folder}/.")).is_ok());
    let path = folders.collect::<Vec<_>>().join(":");
    for command in ["no-such-command", "/no/such/command"] {
        let words = [&restore[..], &[command]].concat();
        let ran = Pipeline::new(&[&words]).env("PATH", &path).run();
        ran.refuses(127, &[command]).in_one_line();
    }
}

#[test]
fn a_command_that_cannot_be_executed_is_status_126() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["eventfd@3"]);
    let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2", "--"];
    let plain = scratch.file("plain");
    fs::write(&plain, "no program").unwrap();
    for command in [plain.as_str(), scratch.dir()] {
        pipeline(&[&[&restore[..], &[command]].concat()]).refuses(126, &[command]).in_one_line();
    }
}

#[test]
fn fdrestore_has_the_status_of_the_command() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["eventfd@3"]);
    let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2", "--", "sh", "-c"];
    for (script, status) in [("exit 42", 42), ("exit 3", 3), ("kill -9 $$", 137)] {
        let ran = pipeline(&[&[&restore[..], &[script]].concat()]);
        assert_eq!(ran.status(0), status, "{}", ran.whole());
    }
}

#[test]
fn a_missing_command_and_a_wrong_option_are_wrong_usage() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["eventfd@3"]);
    let ran = pipeline(&[&["fdrestore", "-i", &file]]);
    assert!([2, 125].contains(&ran.status(0)), "{}", ran.whole());
    for tool in ["fdscan", "fdimg", "ttyctl"] {
        pipeline(&[&[tool, "--no-such-option"]]).refuses(2, &["no-such-option"]);
    }
    pipeline(&[&["fdrestore", "--no-such-option", "--", "true"]])
        .refuses(125, &["no-such-option", "(status 2)"]);
}

#[test]
fn a_missing_file_is_refused_with_cures() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["regular@3", "eventfd@4:count=3", "regular@5"]);
    fs::remove_file(scratch.file("regular.3")).unwrap();
    let cures = ["regular.3", "--inherit", "--missing null", "--missing skip"];
    pipeline(&[&["fdrestore", "--dry-run", "-i", &file]]).refuses(6, &cures);
    let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2"];
    let run = |options: &[&str], command: &[&str]| {
        pipeline(&[&[&restore[..], options, &["--"], command].concat()])
    };
    let ran = run(&[], &["echo", "run"]);
    assert_eq!(ran.text(), "", "COMMAND ran\n{}", ran.whole());
    ran.refuses(125, &cures).refuses(125, &["(status 6)"]);

    let check = ["mkfd", "check", "--std", "0,1,2", "--dir", scratch.dir()];
    let rest = ["eventfd@4:count=3", "regular@5"];
    run(&["--missing", "skip"], &[&check[..], &rest].concat()).ok();
    run(&["--missing=null"], &[&check[..], &["mem@3"], &rest].concat()).ok();
}

#[test]
fn all_missing_files_are_listed() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["regular@3", "regular@4", "directory@5", "fifo@6:rdwr"]);
    for name in ["regular.3", "regular.4", "fifo.6"] {
        fs::remove_file(scratch.file(name)).unwrap();
    }
    fs::remove_dir_all(scratch.file("directory.5")).unwrap();
    let all = ["regular.3", "regular.4", "directory.5", "fifo.6"];
    pipeline(&[&["fdrestore", "-n", "-i", &file]]).refuses(6, &all);
    pipeline(&[&["fdrestore", "-i", &file, "--", "true"]]).refuses(125, &all);
}

#[test]
fn another_file_with_the_same_name_is_reported() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["regular@3:data=abc"]);
    // A new inode with the old name. The old one is held open until the new one exists, so that the
    // inode number is not reused.
    let held = File::open(scratch.file("regular.3")).unwrap();
    fs::remove_file(scratch.file("regular.3")).unwrap();
    fs::write(scratch.file("regular.3"), "abcdef").unwrap();
    drop(held);
    let run = |policy: &[&str]| {
        let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2"];
        pipeline(&[&[&restore[..], policy, &["--", "true"]].concat()])
    };
    let ran = run(&[]).ok();
    assert!(ran.stderr(0).contains("regular.3"), "{}", ran.whole());
    run(&["--changed", "ignore"]).quiet();
    run(&["--changed", "fail"]).refuses(125, &["regular.3", "(status 6)"]);
    pipeline(&[&["fdrestore", "-n", "--changed=fail", "-i", &file]]).refuses(6, &["regular.3"]);
}

#[test]
fn a_file_that_has_grown_is_reported_with_both_sizes() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["regular@3:read,data=abc"]);
    fs::write(scratch.file("regular.3"), [b'x'; 999]).unwrap();
    let run = |policy| {
        let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2", "--changed", policy];
        pipeline(&[&[&restore[..], &["--", "true"]].concat()])
    };
    let ran = run("warn").ok();
    assert!(ran.stderr(0).contains("is 999"), "{}", ran.whole());
    run("fail").refuses(125, &["is 999"]);
    run("ignore").quiet();
}

#[test]
fn a_fifo_in_place_of_a_file_does_not_block() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["regular@3:read"]);
    fs::remove_file(scratch.file("regular.3")).unwrap();
    nix::unistd::mkfifo(scratch.file("regular.3").as_str(), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2", "--", "true"];
    pipeline(&[&restore]).refuses(125, &["regular.3", "(status 6)"]);
}

#[test]
fn a_record_with_a_file_type_of_another_kind_opens_nothing() {
    let scratch = Scratch::new();
    let regular = fs::read(image(&scratch, &["regular@3:read"])).unwrap();
    let fifo = scratch.file("fifo");
    nix::unistd::mkfifo(fifo.as_str(), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let refused = |mode: Option<u32>, kind: &str, link: &str, texts: &[&str]| {
        let bytes = forged(&regular, |items| {
            for item in items {
                let Item::File(file) = item else { continue };
                file.kind = kind.into();
                file.link = Bytes(link.as_bytes().to_vec());
                match (&mut file.inode, mode) {
                    (Some(inode), Some(mode)) => inode.mode = mode,
                    _ => file.inode = None,
                }
            }
        });
        let restore = ["fdrestore", "--inherit", "0,1,2", "--", "true"];
        Pipeline::new(&[&restore]).stdin(bytes).run().refuses(125, texts);
    };
    // Opening a fifo for reading would block: without a recorded type nothing is opened as a file.
    refused(None, "regular", &fifo, &["fd 3", "another type", "(status 6)"]);
    refused(Some(S_IFCHR | 0o600), "regular", "/dev/null", &["fd 3", "(status 3)"]);
    refused(Some(S_IFREG | 0o600), "regular", "/dev/null", &["fd 3", "another type", "(status 6)"]);
    refused(Some(S_IFCHR | 0o600), "directory", "/dev/null", &["fd 3", "(status 3)"]);
    refused(Some(S_IFREG | 0o600), "fifo", "/dev/null", &["fd 3", "(status 3)"]);
    refused(None, "fifo", "/dev/null", &["fd 3", "(status 3)"]);
}

#[test]
fn a_directory_or_symbolic_link_in_place_of_a_file_is_refused() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["regular@3:read"]);
    fs::remove_file(scratch.file("regular.3")).unwrap();
    fs::create_dir(scratch.file("regular.3")).unwrap();
    let dry = ["fdrestore", "-n", "-i", &file];
    pipeline(&[&dry]).refuses(6, &["regular.3"]);
}

#[test]
fn an_end_outside_the_image_is_refused_with_cures_that_work() {
    let scratch = Scratch::new();
    // Its stdout is a pipe whose other end is in this process.
    let words = ["mkfd", "make", "--dir", scratch.dir(), "eventfd@3:count=3"];
    let target = Target::program(&words.map(|word| if word == "mkfd" { MKFD } else { word }));
    let file = scratch.file("a.fdi");
    let filter = ["fdscan", "-F", "1,3", &target.pid];
    pipeline(&[&filter, &["fdimg", "write", &file]]).ok();
    let key = target.open().into_iter().find(|(n, _)| *n == 1).expect("stdout").1;
    let pid = target.pid.clone();
    drop(target);

    let run = |options: &[&str], command: &[&str]| {
        pipeline(&[&[&["fdrestore", "-i", &file], options, &["--"], command].concat()])
    };
    let cures = [&key[..], "--inherit", "--missing null", "--missing skip", "(status 6)"];
    run(&[], &["echo", "run"]).refuses(125, &cures);
    for key in [format!("{key}=1"), "1=1".into(), format!("{pid}:1=1"), "1".into()] {
        let ran = run(&["--inherit", &key], &["echo", "run"]).ok();
        assert_eq!(ran.text(), "run\n", "--inherit {key}\n{}", ran.whole());
    }
    let log = scratch.file("log");
    let check = ["mkfd", "check", "--log", &log, "--std", "none", "eventfd@3:count=3"];
    run(&["--missing", "skip"], &check).ok();
    run(&["--missing", "null"], &[&check[..], &["mem@1:write"]].concat()).ok();
    assert_eq!(fs::read_to_string(&log).unwrap_or_default(), "");
}

#[test]
fn an_inherit_key_that_is_not_in_the_image_is_wrong_usage() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["eventfd@3"]);
    for key in ["pipe:[1]=1", "77=1", "3=77", "3=x", "x", "3="] {
        pipeline(&[&["fdrestore", "-i", &file, "--inherit", key, "-n"]]).refuses(2, &["--inherit"]);
    }
}

#[test]
fn a_task_that_is_not_in_the_image_is_named() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["eventfd@3"]);
    let ran = pipeline(&[&["fdrestore", "-i", &file, "--task", NO_PROCESS, "-n"]]);
    assert!([2, 6].contains(&ran.status(0)), "{}", ran.whole());
    let status = ran.status(0);
    ran.refuses(status, &[NO_PROCESS]).in_one_line();
}

#[test]
fn no_path_leads_out_of_the_root_directory() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["regular@3:data=inside"]);
    // In an empty root directory the file does not exist; if the root has the same path, that file
    // is opened.
    let empty = scratch.file("empty");
    fs::create_dir(&empty).unwrap();
    pipeline(&[&["fdrestore", "-n", "--root", &empty, "-i", &file]]).refuses(6, &["regular.3"]);
    let inner = format!("{empty}{}", scratch.dir());
    fs::create_dir_all(&inner).unwrap();
    fs::rename(scratch.file("regular.3"), format!("{inner}/regular.3")).unwrap();
    let restore = ["fdrestore", "--root", &empty, "-i", &file, "--inherit", "0,1,2", "--"];
    let ran = pipeline(&[&[&restore[..], &["cat", "/proc/self/fd/3"]].concat()]).ok();
    assert_eq!(ran.text(), "inside");
    // A symbolic link that leads out of the root is not followed.
    fs::remove_file(format!("{inner}/regular.3")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", format!("{inner}/regular.3")).unwrap();
    pipeline(&[&["fdrestore", "-n", "--root", &empty, "-i", &file]]).refuses(6, &["regular.3"]);
}

#[test]
fn root_must_be_a_directory() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["regular@3"]);
    for stage in [&["fdrestore", "-n"][..], &["fdrestore"]] {
        let rest = ["--root", &file, "-i", &file, "--inherit", "0,1,2", "--", "echo", "run"];
        let ran = pipeline(&[&[stage, &rest[..]].concat()]);
        assert_eq!(ran.text(), "", "COMMAND ran\n{}", ran.whole());
        ran.refuses(125, &[&file, "Not a directory"]).in_one_line();
    }
}

#[test]
fn a_dry_run_lists_the_operations_of_the_restore_in_their_order() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["epoll@3,4", "eventfd@5,6:dup", "regular@7:lock=posix-w:0-9"]);
    let words = ["fdrestore", "-n", "-i", &file, "--inherit", "0,1,2"];
    let text = pipeline(&[&words]).quiet().text();
    let word = |line: &str, n: usize| line.split_whitespace().nth(n).unwrap_or("").to_owned();
    let lines: Vec<(String, String)> =
        text.lines().map(|line| (word(line, 0), word(line, 1))).collect();
    let pairs: Vec<(&str, &str)> = lines.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let wanted = [
        ("0", "inherit"),
        ("1", "inherit"),
        ("2", "inherit"),
        ("3", "open"),
        ("4", "open"),
        ("5", "open"),
        ("6", "dup"),
        ("7", "open"),
        ("3", "epoll"),
        ("7", "test"),
        ("-", "shrink"),
        ("7", "lock"),
    ];
    assert_eq!(pairs, wanted, "{text}");
    assert!(text.contains("(POSIX write lock on bytes 0 to 9)"), "{text}");
    let json = pipeline(&[&[&words[..], &["-J"]].concat()]).quiet();
    let plan: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    let listed = plan["operations"].as_array().unwrap();
    let verbs: Vec<&str> = listed.iter().map(|row| row["verb"].as_str().unwrap()).collect();
    assert_eq!(verbs.len(), wanted.len(), "{plan:#}");
    assert!(verbs.iter().zip(wanted).all(|(verb, (_, wanted))| verb.starts_with(wanted)));
    assert_eq!(listed[8]["operation"]["epoll-members"]["members"][0]["source"], 4);
}

#[test]
fn a_dry_run_of_a_tree_lists_close_on_exec_flags_only_if_no_program_runs() {
    let scratch = Scratch::new();
    let specs = ["eventfd@3:cloexec", "eventfd@4:cloexec", "eventfd@5", "eventfd@6:cloexec"];
    let file = image(&scratch, &specs);
    let listed = |command: &[&str]| -> Vec<(String, String)> {
        let words = [&["fdrestore", "--tree", "-n", "-J", "-i", &file], command].concat();
        let plan: serde_json::Value =
            serde_json::from_slice(&pipeline(&[&words]).quiet().stdout).unwrap();
        let rows = plan["tasks"][0]["operations"].as_array().unwrap();
        let flags = rows.iter().filter(|row| row["verb"] == "cloexec");
        flags.map(|row| (row["fd"].to_string(), row["detail"].to_string())).collect()
    };
    let range = |first: &str, last: &str| (first.to_owned(), format!("\"to {last}\""));
    assert_eq!(listed(&[]), [range("3", "4"), range("6", "6")]);
    assert_eq!(listed(&["--", "true"]), []);
}

#[test]
fn fdscan_with_output_leaves_no_partial_file() {
    let scratch = Scratch::new();
    let file = scratch.file("a.fdi");
    fs::write(&file, "old").unwrap();
    pipeline(&[&["fdscan", "-o", &file, NO_PROCESS]]).refuses(5, &[NO_PROCESS]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "old");
    let target = target!(scratch.dir(), &["eventfd@3"]);
    pipeline(&[&["fdscan", "-o", &file, &target.pid]]).ok();
    pipeline(&[&["fdimg", "verify", &file]]).ok();
}

#[test]
fn write_without_a_file_names_it_after_the_task() {
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["eventfd@3"]);
    let stages: &[&[&str]] = &[&["fdscan", &target.pid], &["fdimg", "write"]];
    let ran = Pipeline::new(stages).cwd(scratch.dir()).run().ok();
    assert_eq!(ran.text(), format!("mkfd.{}.fdi\n", target.pid));
    pipeline(&[&["fdimg", "verify", &scratch.file(ran.text().trim())]]).ok();
}

#[test]
fn an_argument_that_is_not_utf8_is_passed_to_the_command() {
    use std::os::unix::ffi::OsStrExt;
    let scratch = Scratch::new();
    let file = image(&scratch, &["eventfd@3"]);
    let out = std::process::Command::new(tool("fdrestore"))
        .args(["-i", &file, "--inherit", "0,1,2", "--", "printf", "%s"])
        .arg(std::ffi::OsStr::from_bytes(b"\xff\xfe"))
        .output()
        .unwrap();
    assert_eq!(out.stdout, b"\xff\xfe");
    let odd = std::path::Path::new(scratch.dir()).join(std::ffi::OsStr::from_bytes(b"\xff.fdi"));
    fs::copy(&file, &odd).unwrap();
    let verify = std::process::Command::new(tool("fdimg")).arg("verify").arg(odd).output().unwrap();
    assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stderr));
}

#[test]
fn a_restore_creates_and_truncates_no_file() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["regular@3:write,data=content", "regular@4"]);
    fs::remove_file(scratch.file("regular.4")).unwrap();
    let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2", "--missing", "skip", "--"];
    pipeline(&[&[&restore[..], &["true"]].concat()]).ok();
    assert_eq!(fs::read_to_string(scratch.file("regular.3")).unwrap(), "content");
    assert!(!fs::exists(scratch.file("regular.4")).unwrap());
}

#[test]
fn an_open_that_would_block_does_not_stop_a_restore() {
    let scratch = Scratch::new();
    // Only a read end of the fifo is in the image: opening that end alone would wait for a writer.
    let path = scratch.file("fifo");
    nix::unistd::mkfifo(path.as_str(), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let flags = OFlag::O_RDWR;
    let keep = nix::fcntl::open(path.as_str(), flags, nix::sys::stat::Mode::empty()).unwrap();
    let reader = format!("regular@3:read,path={path}");
    let target = target!(scratch.dir(), &[&reader]);
    let file = scratch.file("a.fdi");
    crate::harness::scan(&target.pid, &file);
    drop((target, keep));
    let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2", "--", "sh", "-c"];
    pipeline(&[&[&restore[..], &["readlink /proc/self/fd/3"]].concat()]).ok();
}

/// A SPEC, the changed keys in the body of its record, and how the restore refuses the record:
/// status and text.
type Forgery = (&'static str, &'static str, &'static str, &'static str);

/// Bodies that no scan writes: they contradict themselves, or no kernel can have them.
const FORGED: &[Forgery] = &[
    ("ns@3", r#"{"id": 77}"#, "(status 6)", "in this namespace"),
    ("ns@3", r#"{"id": "x"}"#, "(status 3)", "kind ns"),
    ("pidfd@3", r#"{"pid": -2}"#, "(status 3)", "process id -2 is not valid"),
    ("pidfd@3", r#"{"start": 0}"#, "(status 3)", "has no start time"),
    ("pidfd@3", r#"{"pid": 0}"#, "(status 6)", "pid namespace"),
    ("pidfd@3", r#"{"pid": 1}"#, "(status 6)", "process 1 has terminated"),
    ("pidfd@3:pid=1", r#"{"start": 77}"#, "(status 6)", "its id is that of another process now"),
    ("pidfd@3:dead", r#"{"exit": 19}"#, "(status 3)", "its exit status is not one of wait(2)"),
    ("pidfd@3:dead", r#"{"exit": -1}"#, "(status 3)", "its exit status is not one of wait(2)"),
    ("signalfd@3", r#"{"mask": 256}"#, "(status 3)", "SIGKILL"),
    ("signalfd@3", r#"{"mask": 262144}"#, "(status 3)", "SIGSTOP"),
    ("signalfd@3", r#"{"mask": "10"}"#, "(status 3)", "kind signalfd"),
    ("timerfd@3", r#"{"clock": 77}"#, "(status 6)", "clock 77"),
    ("timerfd@3", r#"{"clock": -6}"#, "(status 6)", "clock -6"),
    ("timerfd@3", r#"{"clock": 2}"#, "(status 6)", "clock 2"),
    ("timerfd@3", r#"{"flags": 4}"#, "(status 6)", "flags 0o4"),
    (
        "timerfd@3",
        r#"{"value": [0, 1000000000]}"#,
        "(status 3)",
        "one of its times has 10^9 nanoseconds or more, or exceeds",
    ),
    (
        "timerfd@3",
        r#"{"interval": [9223372037, 0]}"#,
        "(status 3)",
        "one of its times has 10^9 nanoseconds or more, or exceeds",
    ),
    (
        "timerfd@3",
        r#"{"now": [18446744073709551615, 0]}"#,
        "(status 3)",
        "one of its times has 10^9 nanoseconds or more, or exceeds",
    ),
    ("timerfd@3", r#"{"value": [1]}"#, "(status 3)", "kind timerfd"),
    ("timerfd@3", r#"{"ticks": -1}"#, "(status 3)", "kind timerfd"),
    ("tcp@3", r#"{"state": 7}"#, "(status 3)", "contradicts"),
    ("tcp@3", r#"{"state": 1}"#, "(status 3)", "contradicts"),
    ("tcp@3", r#"{"state": 77}"#, "(status 3)", "contradicts"),
    ("tcp@3", r#"{"ended": 1}"#, "(status 3)", "has ended"),
    ("tcp@3", r#"{"listens": [-1, 0]}"#, "(status 3)", "kind tcp"),
    (
        "tcp@3",
        r#"{"socket": {"family": 1, "protocol": 6}}"#,
        "(status 3)",
        "family 1 is not AF_INET",
    ),
    (
        "tcp@3",
        r#"{"socket": {"family": 2, "protocol": 17}}"#,
        "(status 3)",
        "protocol 17 is not IPPROTO_TCP",
    ),
    (
        "tcp@3",
        r#"{"socket": {"family": 2, "protocol": 6, "local": "[::1]:1"}}"#,
        "(status 3)",
        "[::1]:1 is not an address of its family",
    ),
    (
        "tcp@3",
        r#"{"socket": {"family": 2, "protocol": 6, "remote": "127.0.0.1:1"}}"#,
        "(status 3)",
        "a peer address in a state without a connection",
    ),
    (
        "tcp@3",
        r#"{"socket": {"family": 2, "protocol": 6, "options": {"SO_NONSENSE": 1}}}"#,
        "(status 6)",
        "does not know socket option SO_NONSENSE",
    ),
    ("tcp@3", r#"{"socket": {"family": 2, "protocol": 6, "netns": 77}}"#, "(status 6)", "net:[77]"),
    (
        "udp@3",
        r#"{"socket": {"family": 2, "protocol": 6}}"#,
        "(status 3)",
        "protocol 6 is not IPPROTO_UDP",
    ),
    (
        "udp@3",
        r#"{"socket": {"family": 2, "protocol": 17, "groups": [
            {"group": "10.0.0.1", "device": "lo", "only": false, "sources": []}]}}"#,
        "(status 3)",
        "10.0.0.1 is not a multicast group",
    ),
    (
        "udp@3",
        r#"{"socket": {"family": 2, "protocol": 17, "groups": [
            {"group": "239.255.77.1", "device": "x/y", "only": false, "sources": []}]}}"#,
        "(status 6)",
        "device x/y, which does not exist here",
    ),
    ("raw@3", r#"{"socket": {"family": 2}}"#, "(status 3)", "kind raw"),
    (
        "icmp@3",
        r#"{"socket": {"family": 2, "protocol": 17}}"#,
        "(status 3)",
        "protocol 17 is not IPPROTO_ICMP",
    ),
];

#[test]
fn an_impossible_body_is_refused_with_its_number_before_anything_is_created() {
    for (spec, change, status, text) in FORGED {
        let scratch = Scratch::new();
        let bytes = match crate::harness::image_if_can(&scratch, &[spec]) {
            Ok(file) => fs::read(file).unwrap(),
            Err(reason) => {
                crate::harness::skipped(&format!("{spec}: {reason}"));
                continue;
            }
        };
        let change: serde_json::Map<_, _> = serde_json::from_str(change).unwrap();
        let forged = forged(&bytes, |items| {
            let files = items.iter_mut().filter_map(|item| match item {
                Item::File(file) => Some(file),
                _ => None,
            });
            for file in files {
                let mut body: serde_json::Map<_, _> = serde_cbor::from_slice(&file.body).unwrap();
                body.extend(change.clone());
                file.body = serde_cbor::to_vec(&body).unwrap();
            }
        });
        let restore: &[&[&str]] = &[&["fdrestore", "--", "echo", "run"]];
        let ran = Pipeline::new(restore).stdin(forged).run();
        assert_eq!(ran.text(), "", "COMMAND ran\n{}", ran.whole());
        ran.refuses(125, &["fd 3", status, text]);
    }
}

#[test]
fn a_process_of_another_boot_does_not_exist_any_more() {
    let scratch = Scratch::new();
    let bytes = fs::read(image(&scratch, &["pidfd@3:pid=1", "pidfd@4"])).unwrap();
    let forged = forged(&bytes, |items| match &mut items[0] {
        Item::Head(head) => head.boot = "another".into(),
        other => panic!("{other:?}"),
    });
    let dry: &[&[&str]] = &[&["fdrestore", "--dry-run", "--inherit", "0,1,2"]];
    let ran = Pipeline::new(dry).stdin(forged).run();
    // The pidfd of the task itself leads to the new process, whatever the boot id is.
    assert!(!ran.stderr(0).contains("fd 4"), "{}", ran.whole());
    ran.refuses(6, &["fd 3", "process 1 has terminated"]);
}

#[test]
fn a_write_beyond_the_limit_of_file_sizes_is_a_message_and_no_signal() {
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["memfd@3:data=100000"]);
    let (file, new) = (scratch.file("a.fdi"), scratch.file("b.fdi"));
    scan(&target.pid, &file);
    let bytes = fs::read(&file).unwrap();
    let limited = |words: &[&str]| {
        let tool = tool(words[0]).to_string_lossy().into_owned();
        let run = ["sh", "-c", "ulimit -f 1; exec \"$@\"", "sh", &tool];
        Pipeline::new(&[&[&run, &words[1..]].concat()]).stdin(bytes.clone()).run()
    };
    limited(&["fdscan", "--data", "-o", &new, &target.pid]).refuses(7, &["File too large"]);
    limited(&["fdimg", "write", &new]).refuses(7, &["File too large"]);
    limited(&["fdrestore", "-i", &file, "--", "true"])
        .refuses(125, &["File too large", "(status 7)"]);
    assert!(!std::path::Path::new(&new).exists(), "a part of an image was left");
    // COMMAND has the default action of the signal: it is killed.
    let small = image(&scratch, &["eventfd@3"]);
    let write = "trap - XFSZ; ulimit -f 1; head -c 100000 /dev/zero >\"$0\"; echo $?";
    let ran = restored(&small, &[], &["sh", "-c", write, &new]).ok();
    assert_eq!(ran.text().trim(), (128 + nix::libc::SIGXFSZ).to_string());
}

#[test]
fn a_restore_that_may_make_no_process_says_so() {
    may!(rights::other_user());
    let Some(python) = python() else { skip!("python3 is missing") };
    let start = "import os, sys; os.dup2(2, 200); os.execvp(sys.argv[1], sys.argv[1:])";
    let scratch = Scratch::for_all_users();
    let copy = scratch.file("fdrestore-copy");
    fs::copy(tool("fdrestore"), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let image = fs::read(image(&scratch, &["eventfd@3"])).unwrap();
    // No other process has this user id.
    let alone = ["--reuid=64321", "--regid=64321", "--clear-groups"];
    let run = |words: &[&str]| {
        let limit = [python, "-c", start, "prlimit", "--nproc=1", "setpriv"];
        Pipeline::new(&[&[&limit[..], &alone, &[&copy], words].concat()]).stdin(&image[..]).run()
    };
    let why = "fork: the limit of processes is reached (ulimit -u, or pids.max of the cgroup)";
    run(&["--tree", "--", "true"]).refuses(125, &[why, "(status 7)"]);
    // A table that is larger than needed only takes memory. The caller's descriptor 200 makes it so.
    assert!(run(&["--", "true"]).ok().stderr(0).contains(why));
}

#[test]
fn a_tool_that_gets_no_memory_says_so() {
    let scratch = Scratch::new();
    let target = Target::ready(&["mkfd", "many", "900", "--close-std", "--dir", scratch.dir()]);
    let target = target.unwrap_or_else(|why| panic!("{why}"));
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    drop(target);
    let tool = tool("fdrestore").to_string_lossy().into_owned();
    // With less memory than the first of these, no program starts; with the last there is enough.
    let said = |end: &[&str]| -> BTreeSet<i32> {
        let runs = (4..40).map(|limit| {
            let limit = format!("ulimit -d {}; exec \"$@\"", limit * 100);
            let run = [&["sh", "-c", &limit, "sh", &tool, "-i", &file][..], end].concat();
            pipeline(&[&run])
        });
        let told = runs.filter(|ran| {
            assert!(!ran.stderr(0).contains("memory allocation"), "{}", ran.whole());
            ran.stderr(0) == "fdrestore: out of memory\n"
        });
        told.map(|ran| ran.status(0)).collect()
    };
    assert_eq!(said(&["-n"]), [7].into());
    assert_eq!(said(&["--", "true"]), [125].into());
}
