//! fdchild, an executor that sends every operation to another process: it restores every fixture
//! there.

use crate::canonical::records;
use crate::harness::{
    Ran, Scratch, Target, fdsize, image, pipeline, python, scan, show, skipped, which,
};
use crate::kinds::{CASES, PLACES, at};
use crate::terminals::{TTY_AND_GROUPS, ended_session};
use fdkit::operation::Operation;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;

/// Restores a case in a child process to which every operation is sent over a socket.
fn restored_over_a_socket(name: &str, templates: &[&str], place: &[u32; 4]) {
    let scratch = Scratch::new();
    let specs: Vec<String> = templates.iter().map(|spec| at(spec, place)).collect();
    let specs: Vec<&str> = specs.iter().map(String::as_str).collect();
    let target = match Target::make(scratch.dir(), &specs) {
        Ok(target) => target,
        Err(reason) => return skipped(&format!("{name}: {reason}")),
    };
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    drop(target);
    let check = ["fdchild", &file, "--", "mkfd", "check", "--std", "0,1,2", "--dir", scratch.dir()];
    pipeline(&[&[&check[..], &specs].concat()]).ok();
}

/// A share of all cases, so that several tests take them at once.
fn share(nth: usize) {
    for (name, templates) in CASES.iter().skip(nth).step_by(4) {
        for place in [&PLACES[0], &PLACES[2]] {
            restored_over_a_socket(name, templates, place);
        }
    }
}

#[test]
fn every_fixture_is_restored_by_operations_over_a_socket_1() {
    share(0);
}

#[test]
fn every_fixture_is_restored_by_operations_over_a_socket_2() {
    share(1);
}

#[test]
fn every_fixture_is_restored_by_operations_over_a_socket_3() {
    share(2);
}

#[test]
fn every_fixture_is_restored_by_operations_over_a_socket_4() {
    share(3);
}

/// Runs fdchild with a log. Gives what it did, and the operations that the child has run, with the
/// outcome and the capacity of its table after each.
#[track_caller]
fn logged(scratch: &Scratch, words: &[&str]) -> (Ran, Vec<Value>) {
    let log = scratch.file("log");
    let (before, fdchild) = words.split_at(words.iter().position(|&it| it == "fdchild").unwrap());
    let ran = pipeline(&[&[before, &["fdchild", "--log", &log], &fdchild[1..]].concat()]);
    (ran, operations(&log))
}

/// The lines of a log of fdchild.
fn operations(log: &str) -> Vec<Value> {
    let lines = fs::read_to_string(log).expect("a log");
    lines.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// The lines of operations of this type.
fn of_type<'l>(log: &'l [Value], name: &str) -> Vec<&'l Value> {
    log.iter().filter(|line| !line["operation"][name].is_null()).collect()
}

#[test]
fn the_table_of_another_process_is_shrunk_before_the_locks_are_taken() {
    let scratch = Scratch::new();
    let spec = "regular@3:lock=posix-w:0-9";
    let file = image(&scratch, &[spec]);
    let check = ["mkfd", "check", "--std", "0,1,2", "--fdsize", "64", "--dir", scratch.dir(), spec];
    let words = ["fdchild", "--highest", "1000", &file, "--"];
    let (ran, log) = logged(&scratch, &[&words[..], &check].concat());
    ran.ok();
    let shrink = of_type(&log, "shrink");
    assert_eq!(shrink.len(), 1, "{log:#?}");
    assert_eq!(
        (&shrink[0]["operation"]["shrink"]["capacity"], &shrink[0]["capacity"]),
        (&json!(64), &json!(64))
    );
    let at = log.iter().position(|line| line == shrink[0]).unwrap();
    assert!(log[..at].iter().all(|line| line["capacity"] == 1024), "{log:#?}");
    // The copy of a table has no locks, so they are taken last.
    let last: Vec<&str> = log[at..].iter().map(type_of).collect();
    assert_eq!(last, ["shrink", "lock"]);
}

#[test]
fn a_lock_of_another_process_is_found_by_the_test_in_the_child() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let spec = format!("regular@3:path={},lock=posix-w:2-4", scratch.file("locked"));
    let file = image(&scratch, &[&spec]);
    let script = "import fcntl, os, sys, time
f = os.open(sys.argv[1], os.O_RDWR); fcntl.lockf(f, fcntl.LOCK_EX, 3, 2)
print('ready', flush=True); time.sleep(1000)";
    let free = ["fdchild", "--skip", &file, "--", "true"];
    let (ran, log) = logged(&scratch, &free);
    ran.quiet();
    let outcomes = |log: &[Value], name: &str| -> Vec<Value> {
        of_type(log, name).iter().map(|line| line["outcome"].clone()).collect()
    };
    assert_eq!(outcomes(&log, "test-lock"), [json!("Done")]);
    assert_eq!(outcomes(&log, "lock"), [json!("Done")]);
    let rival = Target::program(&[python, "-c", script, &scratch.file("locked")]);
    let (ran, log) = logged(&scratch, &free);
    let ran = ran.ok();
    for name in ["test-lock", "lock"] {
        let [outcome] = &outcomes(&log, name)[..] else { panic!("{name}: {log:#?}") };
        let why = outcome["Refused"].as_str().unwrap_or_default();
        assert!(why.contains(&rival.pid), "{name}: {outcome}\n{}", ran.whole());
    }
    assert!(ran.stderr(0).contains(&rival.pid), "{}", ran.whole());
}

#[test]
fn a_child_that_holds_its_descriptors_has_their_close_on_exec_flags() {
    let scratch = Scratch::new();
    let specs = ["eventfd@3:cloexec", "pipe@4,70:cloexec,data=x", "eventfd@60", "regular@5"];
    let numbers = [3, 4, 5, 60, 70];
    let file = image(&scratch, &specs);
    let log = scratch.file("log");
    let held = Target::ready(&["fdchild", "--log", &log, &file]).expect("no skip");
    let child = held.said.clone();
    let flags = |fd: u32| {
        let info = fs::read_to_string(format!("/proc/{child}/fdinfo/{fd}")).expect("its fdinfo");
        let line = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("flags");
        u32::from_str_radix(line.trim(), 8).expect("octal") & nix::libc::O_CLOEXEC as u32 != 0
    };
    assert_eq!(numbers.map(flags), [true, true, false, false, true]);
    assert_eq!(fdsize(&child), 128);
    assert_eq!(of_type(&operations(&log), "close-on-exec").len(), 3);
    let second = scratch.file("b.fdi");
    scan(&child, &second);
    assert_eq!(records(&show(&file), &numbers), records(&show(&second), &numbers));
}

#[test]
fn a_child_takes_its_controlling_terminal() {
    needs!(which("python3").is_some(), "python3 is missing");
    let scratch = Scratch::new();
    let file = ended_session(&scratch, "5,7");
    let fdchild = env!("CARGO_BIN_EXE_fdchild");
    let log = scratch.file("log");
    let words =
        ["setsid", "--wait", fdchild, "--log", &log, &file, "--", "sh", "-c", TTY_AND_GROUPS];
    let ran = pipeline(&[&words]).ok();
    assert!(ran.text().starts_with("33 99\n-echo \nforeground\n/dev/pts/"), "{}", ran.whole());
    assert_eq!(of_type(&operations(&log), "controlling-terminal").len(), 1);
}

#[test]
fn every_operation_is_run_in_the_child() {
    let scratch = Scratch::new();
    let specs = [
        "epoll@3,4",
        "eventfd@5,6:dup,cloexec",
        "pipe@7,8:own,async=0,sig=12",
        "regular@9:lock=posix-w:0-9",
        "socketpair@10:alone,scm=pipe",
    ];
    let file = image(&scratch, &specs);
    let log = scratch.file("log");
    drop(Target::ready(&["fdchild", "--log", &log, &file]).expect("no skip"));
    let log = operations(&log);
    let run: BTreeSet<&str> = log.iter().map(type_of).collect();
    // See a_child_takes_its_controlling_terminal.
    let with_terminal = run.into_iter().chain(["controlling-terminal"]);
    let run: BTreeSet<&str> = with_terminal.collect();
    let wanted: BTreeSet<&str> = TYPES.iter().copied().collect();
    assert_eq!(run, wanted);
}

/// The type of the operation of a line.
fn type_of(line: &Value) -> &'static str {
    let operation = line["operation"].clone();
    let at = place_of(&serde_json::from_value(operation).expect("an operation"));
    TYPES[at.expect("a type that an executor runs")]
}

/// The types of operations that an executor runs, as they are encoded.
const TYPES: [&str; 12] = [
    "place",
    "inherit",
    "dup",
    "controlling-terminal",
    "epoll-members",
    "owner",
    "async",
    "lock",
    "test-lock",
    "close",
    "close-on-exec",
    "shrink",
];

/// The place of a type of operation in [`TYPES`]; none for one that is only listed, because the driver
/// finishes descriptions by its own descriptors. A new operation does not compile here.
fn place_of(operation: &Operation) -> Option<usize> {
    match operation {
        Operation::Place { .. } => Some(0),
        Operation::Inherit { .. } => Some(1),
        Operation::Dup { .. } => Some(2),
        Operation::ControllingTerminal { .. } => Some(3),
        Operation::EpollMembers { .. } => Some(4),
        Operation::Owner { .. } => Some(5),
        Operation::Async { .. } => Some(6),
        Operation::Lock { .. } => Some(7),
        Operation::TestLock { .. } => Some(8),
        Operation::Close { .. } => Some(9),
        Operation::CloseOnExec { .. } => Some(10),
        Operation::Shrink { .. } => Some(11),
        Operation::Finish { .. } => None,
    }
}
