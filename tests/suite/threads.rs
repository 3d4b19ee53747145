//! Scans of processes whose threads have descriptor tables of their own, or whose leader has ended.

use crate::harness::{Scratch, Target, pipeline, show, which};
use serde_json::Value;
use std::fs;
use std::time::Duration;

/// A program whose second thread has a table of its own (unshare(2), CLONE_FILES) with 77 in it, and
/// that prints the id of that thread.
const OWN_TABLE: &str = "import ctypes, os, threading, time
def run():
    ctypes.CDLL(None).unshare(0x400)
    os.dup2(0, 77)
    print(threading.get_native_id(), flush=True)
    time.sleep(100)
threading.Thread(target=run).start()";

/// A program whose first thread ends (SYS_exit), while another runs on.
const LEADER_ENDS: &str = "import ctypes, os, threading, time
def run():
    while open('/proc/self/stat').read().split()[2] != 'Z': time.sleep(0.01)
    print(threading.get_native_id(), flush=True)
    time.sleep(100)
os.dup2(0, 30)
threading.Thread(target=run).start()
ctypes.CDLL(None).syscall(60, 0)";

fn program(text: &str) -> Option<Target> {
    Some(Target::program(&[which("python3")?.to_str()?, "-c", text]))
}

/// The numbers of a task in what `fdimg show -J` shows.
fn numbers(shown: &Value, pid: &str) -> Vec<u64> {
    let all = shown["descriptors"].as_array().expect("descriptors").iter();
    let of_task = all.filter(|it| {
        it["pids"].as_array().unwrap().iter().any(|it| it.as_i64() == pid.parse().ok())
    });
    of_task.map(|it| it["fd"].as_u64().expect("a number")).collect()
}

#[test]
fn a_thread_with_a_table_of_its_own_is_a_task() {
    let Some(target) = program(OWN_TABLE) else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let file = scratch.file("a.fdi");
    let thread = target.said.as_str();
    for options in [&[][..], &["--freeze"], &["-t"]] {
        pipeline(&[&[&["fdscan", "-o", &file], options, &[&target.pid]].concat()]).quiet();
        let shown = show(&file);
        assert_eq!(shown["tasks"].as_array().unwrap().len(), 2, "{options:?}");
        assert_eq!(shown["tasks"][1]["pid"].to_string(), thread);
        assert_eq!(shown["tasks"][1]["tgid"].to_string(), target.pid);
        assert!(!numbers(&shown, &target.pid).contains(&77));
        assert_eq!(numbers(&shown, thread), [0, 1, 2, 77]);
        // What both tables have they share.
        let shared = shown["descriptors"][0]["shared"].to_string();
        assert_eq!(shared, format!("[\"{thread}:0\",\"{thread}:77\"]"));
    }
    // The thread alone, beside its process, and named twice.
    for (pids, count) in [(&[thread][..], 1), (&[thread, &target.pid], 2), (&[thread, thread], 1)] {
        pipeline(&[&[&["fdscan", "-o", &file], pids].concat()]).quiet();
        assert_eq!(show(&file)["tasks"].as_array().unwrap().len(), count, "{pids:?}");
    }
    let line = format!("{thread} python3 (a thread of {})", target.pid);
    let text = pipeline(&[&["fdimg", "show", &file]]).quiet().text();
    assert!(text.contains(&line), "{text}");
    pipeline(&[&["fdscan", "-o", &file, &target.pid]]).quiet();
    let restore = ["fdrestore", "-n", "--tree", "--missing", "null", "-i", &file];
    pipeline(&[&restore]).ok();
    let refused = pipeline(&[&[&restore[..], &["--respawn"]].concat()]);
    refused.refuses(6, &[&format!("it is a thread of process {}", target.pid)]);
}

#[test]
fn a_process_whose_leader_has_ended_is_captured_through_another_thread() {
    let Some(target) = program(LEADER_ENDS) else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let file = scratch.file("a.fdi");
    let status = fs::read_to_string(format!("/proc/{}/stat", target.pid)).unwrap();
    assert!(status.contains(") Z "), "{status}");
    for options in [&[][..], &["--freeze"], &["-t"], &["--passive"], &["--data"]] {
        for pid in [&target.pid, &target.said] {
            pipeline(&[&[&["fdscan", "-o", &file], options, &[pid]].concat()]).quiet();
            let shown = show(&file);
            assert_eq!(shown["tasks"].as_array().unwrap().len(), 1, "{options:?}");
            assert_eq!(shown["tasks"][0]["pid"].to_string(), target.pid);
            assert_eq!(numbers(&shown, &target.pid), [0, 1, 2, 30]);
        }
    }
    // It runs on.
    std::thread::sleep(Duration::from_millis(50));
    assert!(fs::read_dir(format!("/proc/{}/task/{}", target.pid, target.said)).is_ok());
}

#[test]
fn a_thread_that_shares_the_table_of_its_process_means_the_process() {
    let scratch = Scratch::new();
    let file = scratch.file("a.fdi");
    let text = "import threading, time
def run():
    print(threading.get_native_id(), flush=True)
    time.sleep(100)
threading.Thread(target=run).start()";
    let Some(target) = program(text) else { skip!("python3 is missing") };
    for pids in
        [&[&*target.said][..], &[&*target.said, &*target.pid], &[&*target.pid, &*target.said]]
    {
        pipeline(&[&[&["fdscan", "-o", &file], pids].concat()]).quiet();
        let shown = show(&file);
        assert_eq!(shown["tasks"].as_array().unwrap().len(), 1, "{pids:?}");
        assert_eq!(shown["tasks"][0]["pid"].to_string(), target.pid);
    }
}
