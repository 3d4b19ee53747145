//! The usual pipelines of fdscan, fdimg and fdrestore, with real programs.

use crate::harness::{Scratch, Target, image, pipeline, python, scan, settled, show, tool, which};
use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn python3_continues_with_its_descriptors_in_a_new_process() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let before = "import os, sys, time
os.chdir(sys.argv[1])
log = open('log', 'ab', buffering=0); log.write(b'first\\n')
data = open('data', 'w+b', buffering=0); data.write(b'0123456789'); data.seek(4)
gone = open('gone', 'w+b', buffering=0); gone.write(b'only here'); gone.seek(5); os.remove('gone')
r, w = os.pipe(); os.write(w, b'on the way')
for fd in (log, data, gone): os.set_inheritable(fd.fileno(), True)
print(log.fileno(), data.fileno(), gone.fileno(), r, w, flush=True)
time.sleep(1000)";
    let after = "import os, sys
log, data, gone, r, w = map(int, sys.argv[1:])
os.write(log, b'second\\n')
assert os.read(data, 3) == b'456', 'data'
assert os.read(gone, 9) == b'here', 'gone'
assert os.readlink(f'/proc/self/fd/{gone}').endswith('/gone (deleted)'), 'name'
assert os.read(r, 99) == b'on the way', 'pipe'
os.write(w, b'again'); assert os.read(r, 99) == b'again', 'pipe again'
print(os.environ.get('FDRESTORE_CLOEXEC'))";
    let target = Target::program(&[python, "-c", before, scratch.dir()]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    let numbers = target.said.clone();
    drop(target);
    let numbers: Vec<&str> = numbers.split(' ').collect();
    let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2", "--", python, "-c", after];
    let ran = pipeline(&[&[&restore[..], &numbers].concat()]).ok();
    // The pipe was close-on-exec, as python makes them; the files were made inheritable.
    assert_eq!(ran.text().trim(), format!("{},{}", numbers[3], numbers[4]));
    assert_eq!(fs::read_to_string(scratch.file("log")).unwrap(), "first\nsecond\n");
}

#[test]
fn a_shell_script_continues_to_read_at_its_old_position() {
    let scratch = Scratch::new();
    let (list, log) = (scratch.file("list"), scratch.file("log"));
    fs::write(&list, "one\ntwo\nthree\n").unwrap();
    let before = "exec 3<\"$1\" 4>>\"$2\"; read -r line <&3; echo \"$line\" >&4; echo ready
        while :; do sleep 1; done";
    let target = Target::program(&["sh", "-c", before, "sh", &list, &log]);
    let file = scratch.file("a.fdi");
    pipeline(&[&["fdscan", "-F", "3,4", &target.pid], &["fdimg", "write", &file]]).ok();
    drop(target);
    let after = "read -r line <&3; echo \"$line\" >&4; echo \"$line\"";
    let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2", "--", "sh", "-c", after];
    assert_eq!(pipeline(&[&restore]).quiet().text(), "two\n");
    assert_eq!(fs::read_to_string(&log).unwrap(), "one\ntwo\n");
}

#[test]
fn all_descriptors_of_redis_server_are_scanned_and_its_log_is_restored() {
    needs!(which("redis-server").is_some(), "redis-server is missing");
    let scratch = Scratch::new();
    let (dir, socket, log) = (scratch.dir(), scratch.file("sock"), scratch.file("redis.log"));
    let redis = ["redis-server", "--port", "0", "--unixsocket", &socket, "--dir", dir];
    let options = ["--appendonly", "yes", "--save", "", "--logfile", &log];
    // redis-server writes nothing to stdout once it logs to a file, so a shell prints the line for
    // it.
    let script = "\"$@\" & while ! [ -S \"$0\" ]; do sleep 0.05; done; echo $!; wait";
    let words = [&["sh", "-c", script, &socket], &redis[..], &options].concat();
    let shell = Target::program(&words);
    let pid = shell.said.as_str();
    settled(pid);

    let file = scratch.file("a.fdi");
    scan(pid, &file);
    let mut open: Vec<u64> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().parse().unwrap())
        .collect();
    open.sort_unstable();
    let shown = show(&file);
    let taken: Vec<u64> = shown["descriptors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|each| each["fd"].as_u64().unwrap())
        .collect();
    assert_eq!(taken, open);
    let aof = "path:*.aof";
    let links = "for fd in /proc/self/fd/*; do readlink $fd; done; true";
    let run = ["fdrestore", "--inherit", "0,1,2", "--", "sh", "-c", links];
    let ran = pipeline(&[&["fdimg", "select", "-F", aof, &file], &run]).ok();
    assert!(ran.text().contains(".aof"), "{}", ran.whole());
    // The server still works after the scan.
    needs!(which("redis-cli").is_some(), "redis-cli is missing");
    let ran = pipeline(&[&["redis-cli", "-s", &socket, "set", "key", "value"]]).ok();
    assert_eq!(ran.text().trim(), "OK");
}

#[test]
fn an_image_goes_from_the_scan_to_the_restore_without_a_file() {
    let scratch = Scratch::new();
    let specs = ["pipe@3,4:data=hello", "unlinked@5:pos=2", "eventfd@6:count=9"];
    let target = target!(scratch.dir(), &specs);
    let check = ["mkfd", "check", "--std", "1,2", "--dir", scratch.dir()];
    let restore = ["fdrestore", "--inherit", "1,2", "--"];
    pipeline(&[&["fdscan", "--data", &target.pid], &[&restore[..], &check, &specs].concat()])
        .quiet();
}

#[test]
fn a_verbose_scan_says_what_it_captured() {
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["pipe@3,4:data=hello", "eventfd@5,6:dup"]);
    let words = ["fdscan", "-v", "--data", "-F", "3-6", "-o", &scratch.file("a.fdi"), &target.pid];
    let ran = pipeline(&[&words]).ok();
    let said = "fdscan: 1 tasks, 4 descriptors, 3 descriptions (0 opaque), 5 bytes of contents\n";
    assert_eq!(ran.said(), said, "{}", ran.whole());
}

#[test]
fn select_keeps_matching_descriptors_and_their_files() {
    let scratch = Scratch::new();
    let specs = ["pipe@3,4:data=hello", "eventfd@5,6:dup,count=2", "regular@7"];
    let file = image(&scratch, &specs);
    let numbers = |filter: &[&str]| {
        let select = [&["fdimg", "select"], filter, &[&file]].concat();
        let ran = pipeline(&[&select, &["fdimg", "show", "-J"]]).quiet();
        let shown: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
        shown["descriptors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|each| each["fd"].as_u64().unwrap())
            .collect::<Vec<u64>>()
    };
    assert_eq!(numbers(&["-F", "5"]), [5]);
    assert_eq!(numbers(&["-F", "0-4,7"]), [3, 4, 7]);
    assert_eq!(numbers(&["-F", "eventfd"]), [5, 6]);
    assert_eq!(numbers(&["-F", "!pipe"]), [5, 6, 7]);
    assert_eq!(numbers(&["-F", "eventfd", "-F", "6-9"]), [6]);
    assert_eq!(numbers(&["-F", "path:*/regular.7"]), [7]);
    assert_eq!(numbers(&["-F", "99"]), [0; 0]);
    // The selected descriptors are restored with their contents.
    let restore = ["fdrestore", "--inherit", "1,2", "--", "mkfd", "check", "--std", "1,2"];
    pipeline(&[
        &["fdimg", "select", "-F", "pipe", &file],
        &[&restore[..], &["pipe@3,4:data=hello"]].concat(),
    ])
    .quiet();
    // A filter of fdscan has the same effect.
    pipeline(&[&["fdimg", "select", "-F", "%", &file]]).refuses(2, &["%"]);
}

#[test]
fn a_filter_of_fdscan_captures_only_matching_descriptors() {
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["pipe@3,4", "eventfd@5", "regular@6"]);
    for (filter, expected) in [("5", "5"), ("pipe", "3 4"), ("!pipe,5", "5 6"), ("3-5", "3 4 5")] {
        let scan = ["fdscan", "-F", filter, &target.pid];
        let ran = pipeline(&[&scan, &["fdimg", "show", "-J"]]).ok();
        let shown: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
        let fds: Vec<String> = shown["descriptors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|each| each["fd"].to_string())
            .collect();
        assert_eq!(fds.join(" "), expected, "-F {filter}");
    }
}

#[test]
fn read_writes_the_bytes_of_the_file() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["pipe@3,4:data=hello"]);
    let ran = pipeline(&[&["fdimg", "read", &file]]).quiet();
    assert_eq!(ran.stdout, fs::read(&file).unwrap());
    let copy = scratch.file("copy.fdi");
    pipeline(&[&["fdimg", "read", &file], &["fdimg", "write", &copy]]).quiet();
    assert_eq!(fs::read(copy).unwrap(), ran.stdout);
}

#[test]
fn verify_reports_opaque_descriptors() {
    let scratch = Scratch::new();
    let ran = pipeline(&[&["fdimg", "verify", &image(&scratch, &["eventfd@3"])]]).quiet();
    assert!(ran.text().contains("whole") && !ran.text().contains("opaque"), "{}", ran.whole());
    let target = target!(scratch.dir(), &["opaque@3"]);
    let file = scratch.file("b.fdi");
    scan(&target.pid, &file);
    let ran = pipeline(&[&["fdimg", "verify", &file]]).quiet();
    assert!(ran.text().contains("1 opaque, which cannot be restored"), "{}", ran.whole());
}

#[test]
fn the_tools_end_quietly_when_their_reader_closes_the_pipe() {
    let scratch = Scratch::new();
    let words = ["mkfd", "many", "2000", "--close-std", "--dir", scratch.dir()];
    let target = Target::ready(&words).unwrap();
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    for stage in [
        &["fdscan", &target.pid][..],
        &["fdimg", "show", &file],
        &["fdimg", "show", "-J", &file],
        &["fdimg", "read", &file],
        &["fdimg", "select", "-F", "!pipe", &file],
    ] {
        let ran = pipeline(&[stage, &["head", "-c", "1"]]);
        assert_eq!(ran.stderr(0), "", "{}", ran.whole());
        assert!([0, 141].contains(&ran.status(0)), "{}", ran.whole());
    }
}

#[test]
fn show_prints_a_line_for_each_descriptor() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["regular@3,8:dup,pos=7,append", "pipe@4,5", "unlinked@6"]);
    let text = pipeline(&[&["fdimg", "show", &file]]).quiet().text();
    let line = |fd: &str| {
        let found = text.lines().find(|line| line.split_whitespace().next() == Some(fd));
        found.unwrap_or_else(|| panic!("no line of {fd}\n{text}")).to_owned()
    };
    for (fd, parts) in [
        ("3", &["regular", "rw", "7", "append", "8", "regular.3"][..]),
        ("4", &["pipe", "r"]),
        ("5", &["pipe", "w"]),
        ("6", &["unlinked", "(deleted)"]),
        ("8", &["regular", "3"]),
    ] {
        let line = line(fd);
        assert!(parts.iter().all(|part| line.contains(part)), "{line}\nlacks some of {parts:?}");
    }
}

#[test]
fn the_image_has_the_host_and_the_cgroup_of_each_task_also_after_a_selection() {
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["eventfd@3"]);
    let [whole, part] = ["a.fdi", "b.fdi"].map(|name| scratch.file(name));
    scan(&target.pid, &whole);
    pipeline(&[&["fdimg", "select", "-F", "3", &whole], &["fdimg", "write", &part]]).quiet();
    let host = nix::unistd::gethostname().unwrap().into_string().expect("UTF-8");
    let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", target.pid)).expect("cgroups");
    let cgroup = cgroups.lines().find_map(|line| line.strip_prefix("0::"));
    for file in [whole, part] {
        let shown = show(&file);
        assert_eq!(shown["head"]["host"].as_str(), Some(&*host));
        assert_eq!(shown["tasks"][0]["cgroup"].as_str(), cgroup);
        let text = pipeline(&[&["fdimg", "show", &file]]).quiet().text();
        let first = text.lines().next().unwrap_or_default();
        assert!(first.contains(&format!("  host {host}")), "{first}");
        let cgroup = cgroup.map(|path| format!("  cgroup {path}")).unwrap_or_default();
        assert!(first.ends_with(&cgroup), "{first}");
    }
}

#[test]
fn a_name_with_a_newline_does_not_break_a_line() {
    let scratch = Scratch::new();
    let spec = format!("regular@3:path={}/a%0ab%1b[31m%ff", scratch.dir());
    let file = image(&scratch, &[&spec]);
    let text = pipeline(&[&["fdimg", "show", &file]]).quiet().text();
    assert!(!text.contains("\nb") && !text.contains('\x1b'), "{text:?}");
    let check = ["mkfd", "check", "--std", "0,1,2", &spec];
    let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2", "--"];
    pipeline(&[&[&restore[..], &check].concat()]).quiet();
}

#[test]
fn two_processes_and_a_tree_are_in_one_image() {
    let scratch = Scratch::new();
    let one = target!(scratch.dir(), &["eventfd@3:count=1"]);
    let two = target!(scratch.dir(), &["eventfd@3:count=2"]);
    let file = scratch.file("a.fdi");
    pipeline(&[&["fdscan", &one.pid, &two.pid], &["fdimg", "write", &file]]).quiet();
    let (first, second) = (one.pid.clone(), two.pid.clone());
    drop((one, two));
    for (task, count) in [(&[][..], "1"), (&["--task", &first], "1"), (&["--task", &second], "2")] {
        let restore = [&["fdrestore", "-i", &file, "--inherit", "1,2"], task].concat();
        let spec = format!("eventfd@3:count={count}");
        pipeline(&[&[&restore[..], &["--", "mkfd", "check", "--std", "1,2", &spec]].concat()]).ok();
    }
    let script = "exec 7</dev/null; sleep 1000 & sleep 1000 & sleep 0.3; echo ready; wait";
    let tree = Target::program(&["sh", "-c", script]);
    let ran = pipeline(&[&["fdscan", "-t", &tree.pid], &["fdimg", "show", "-J"]]).ok();
    let shown: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(shown["tasks"].as_array().unwrap().len(), 3, "{}", ran.whole());
    // The description that the parent opened is one and the same in all three tasks.
    let rows = shown["descriptors"].as_array().unwrap();
    let sevens: Vec<_> = rows.iter().filter(|row| row["fd"] == 7).map(|row| &row["file"]).collect();
    assert_eq!(sevens.len(), 3);
    assert!(sevens.iter().all(|file| *file == sevens[0]), "{sevens:?}");
}

#[test]
fn an_image_can_be_made_with_passive_and_with_freeze() {
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["regular@3:pos=5", "pipe@4,5:data=hello"]);
    // A task that is let go has to be run once before it sleeps or stops.
    let becomes = |state: &str| {
        let mut status = String::new();
        for _ in 0..3000 {
            status = fs::read_to_string(format!("/proc/{}/status", target.pid)).unwrap();
            if status.contains(&format!("State:\t{state}")) && status.contains("TracerPid:\t0") {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it is not {state}\n{status}");
    };
    for option in ["--passive", "--freeze"] {
        let ran = pipeline(&[&["fdscan", option, &target.pid], &["fdimg", "show", "-J"]]).ok();
        let shown: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
        assert_eq!(shown["descriptors"].as_array().unwrap().len(), 3, "{option}");
        assert_eq!(shown["head"]["frozen"], option == "--freeze");
        becomes("S");
    }
    pipeline(&[&["fdscan", "--stop", &target.pid], &["fdimg", "verify"]]).ok();
    becomes("T (stopped)");
}

#[test]
fn a_process_continues_when_its_scan_is_killed() {
    let scratch = Scratch::new();
    let words = ["mkfd", "many", "3000", "--close-std", "--dir", scratch.dir()];
    let target = Target::ready(&words).unwrap();
    for delay in (0..40).map(Duration::from_millis) {
        // The output is not read, so the scan cannot end before it is killed.
        let mut scan = Command::new(tool("fdscan"))
            .args(["--freeze", &target.pid])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        thread::sleep(delay);
        scan.kill().unwrap();
        scan.wait().unwrap();
        let free = |status: &str| status.contains("State:\tS") && status.contains("TracerPid:\t0");
        let status = || fs::read_to_string(format!("/proc/{}/status", target.pid)).unwrap();
        let begun = Instant::now();
        while !free(&status()) {
            let late = begun.elapsed() > Duration::from_secs(30);
            assert!(!late, "killed after {delay:?}\n{}", status());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn every_process_is_scanned_or_refused_with_a_documented_status() {
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|name| name.parse::<u32>().is_ok()) else { continue };
        let ran = pipeline(&[&["fdscan", pid], &["fdimg", "verify"]]);
        assert!([0, 1, 4, 5].contains(&ran.status(0)), "{}", ran.whole());
        assert!(!ran.stderr(0).contains("panicked"), "{}", ran.whole());
        if ran.status(0) <= 1 {
            assert!([0, 1].contains(&ran.status(1)), "{}", ran.whole());
        }
    }
}

#[test]
fn a_stdin_that_is_closed_is_refused() {
    let scratch = Scratch::new();
    let file = scratch.file("a.fdi");
    fs::write(&file, "old").unwrap();
    let exec = ["mkfd", "exec", "--close", "0", "--"];
    let ran = pipeline(&[&[&exec[..], &["fdimg", "write", &file]].concat()]);
    assert!([2, 3, 7].contains(&ran.status(0)), "{}", ran.whole());
    assert_eq!(fs::read_to_string(&file).unwrap(), "old");
}

#[test]
fn a_closed_stdout_harms_no_file() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["eventfd@3"]);
    let before = fs::read(&file).unwrap();
    for close in ["1", "0,1", "0,1,2"] {
        let exec = ["mkfd", "exec", "--close", close, "--"];
        for stage in [&["fdimg", "show", &file][..], &["fdimg", "read", &file]] {
            let ran = pipeline(&[&[&exec[..], stage].concat()]);
            assert!([0, 7].contains(&ran.status(0)), "{}", ran.whole());
        }
    }
    assert_eq!(fs::read(&file).unwrap(), before);
}

#[test]
fn each_tool_prints_its_version_and_its_help() {
    for tool in ["fdscan", "fdimg", "fdrestore", "ttyctl"] {
        for option in ["-V", "--version"] {
            let text = pipeline(&[&[tool, option]]).quiet().text();
            assert!(text.starts_with(&format!("{tool} ")), "{text}");
        }
        for option in ["-h", "--help"] {
            let text = pipeline(&[&[tool, option]]).quiet().text();
            assert!(text.contains(tool), "{text}");
        }
    }
}
