//! `just bench`: the time, memory and system calls of the tools and of lsfd and lsof, in one run.
//! It prints ratios of medians and does not judge them.

mod mounts;
mod stop;

use fdkit::image::{Bytes, Credentials, Head, Item, OpenFile, Slot, Table, Task, VERSION, Writer};
use serde_cbor::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: usize = 15;

fn tool(name: &str) -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_mkfd")).with_file_name(name)
}

/// Runs a command, and gives the time that it took.
fn run(command: &[&str]) -> Option<Duration> {
    let begin = Instant::now();
    let mut child = Command::new(command[0]);
    child.args(&command[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    child.status().ok().map(|_| begin.elapsed())
}

/// The medians of commands that run in turn, in ms; none for a command that does not exist.
fn side_by_side(commands: &[Vec<&str>]) -> Vec<Option<f64>> {
    let mut times = vec![Vec::new(); commands.len()];
    for round in 0..=ROUNDS {
        for (command, times) in commands.iter().zip(&mut times) {
            // The first round only fills caches.
            times.extend(run(command).filter(|_| round > 0));
        }
    }
    let median = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times.get(times.len() / 2).map(|time| time.as_secs_f64() * 1e3)
    };
    times.into_iter().map(median).collect()
}

/// A process that prints its id, and waits. It is ended at the end.
struct Held {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    pid: String,
}

impl Held {
    /// Starts a program with no other descriptors than the standard ones. None if it prints no id.
    fn start(words: &[&str]) -> Option<Held> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_mkfd"))
            .args(["exec", "--"])
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("mkfd");
        let stdin = child.stdin.take().expect("piped");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut pid = String::new();
        stdout.read_line(&mut pid).expect("a pid");
        std::thread::sleep(Duration::from_millis(100));
        let pid = pid.trim().to_owned();
        (!pid.is_empty()).then_some(Held { child, stdin, stdout, pid })
    }

    /// Writes a line, and reads the number that answers it.
    fn ask(&mut self) -> u64 {
        let mut answer = String::new();
        self.stdin.write_all(b"\n").expect("a reader");
        self.stdout.read_line(&mut answer).expect("an answer");
        answer.trim().parse().expect("a number")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process with this many mixed descriptors.
fn holder(count: usize, dir: &str) -> Held {
    let count = count.to_string();
    let mkfd = env!("CARGO_BIN_EXE_mkfd");
    Held::start(&[mkfd, "many", &count, "--dir", dir, "--close-std"]).expect("a process")
}

/// An image of this many slots, each with a file of its own.
fn image(slots: u32, path: &Path) {
    let mut writer = Writer::new(std::fs::File::create(path).expect("an image"));
    let head = Head {
        version: VERSION,
        minor: 0,
        tool: "bench".into(),
        release: "0".into(),
        kernel: Bytes::default(),
        boot: String::new(),
        host: None,
        time: (0, 0),
        contents: false,
        frozen: false,
        passive: false,
    };
    let task = Task {
        pid: 1,
        tgid: None,
        ppid: 0,
        pgid: 1,
        sid: 1,
        start: 1,
        comm: Bytes(b"bench".to_vec()),
        exe: None,
        args: Vec::new(),
        cwd: None,
        root: None,
        umask: 0,
        credentials: Credentials { uids: [0; 4], gids: [0; 4], groups: Vec::new(), caps: [0; 5] },
        namespaces: BTreeMap::new(),
        cgroup: None,
        table: Table { id: 0, capacity: 64, highest: None, limit: (0, 0) },
        terminal: None,
        stopped: false,
    };
    writer.put(&Item::Head(head)).expect("written");
    writer.put(&Item::Task(task.into())).expect("written");
    let fields = [("count", Value::Integer(0)), ("semaphore", Value::Bool(false))];
    let eventfd = serde_cbor::to_vec(&BTreeMap::from(fields)).expect("a body");
    for fd in 0..slots {
        let (kind, link, body) = match fd % 2 == 0 {
            true => ("eventfd", "anon_inode:[eventfd]", eventfd.clone()),
            // The empty map.
            false => ("mem", "/dev/null", vec![0xa0]),
        };
        let file = OpenFile {
            id: fd,
            kind: kind.into(),
            flags: 2,
            pos: 0,
            link: Bytes(link.into()),
            mnt: 15,
            inode: None,
            signals: None,
            object: None,
            locks: Vec::new(),
            body,
        };
        writer.put(&Item::File(file.into())).expect("written");
        let slot = Slot { table: 0, fd, cloexec: true, file: fd, locks: Vec::new() };
        writer.put(&Item::Slot(slot)).expect("written");
    }
    writer.end().expect("written");
}

/// The peak of the resident memory of a command, in MiB, read while it runs.
fn peak(command: &[&str]) -> f64 {
    let mut child = Command::new(command[0]);
    let mut child = child.args(&command[1..]).stdout(Stdio::null()).spawn().expect("started");
    let mut peak = 0.0f64;
    while child.try_wait().expect("a child").is_none() {
        let text = std::fs::read_to_string(format!("/proc/{}/status", child.id()));
        let text = text.unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        peak = peak.max(kib.unwrap_or(0.0) / 1024.0);
        std::thread::sleep(Duration::from_millis(1));
    }
    peak
}

fn row(what: &str, ours: Option<f64>, peer: &str, theirs: Option<f64>) {
    match (ours, theirs) {
        (Some(ours), Some(theirs)) => {
            println!("{what:<34} {ours:8.2} ms  {:6.2} of {peer} ({theirs:.2} ms)", ours / theirs);
        }
        _ => println!("{what:<34} {peer} is not installed"),
    }
}

/// The system calls of a command by name, if strace exists.
fn system_calls(command: &[&str]) -> Option<BTreeMap<String, u64>> {
    let out = Command::new("strace").args(["-f", "-c", "--"]).args(command).output().ok()?;
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    let rows = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    Some(
        rows.filter_map(|row| Some((row.last()?.to_string(), row.get(3)?.parse().ok()?)))
            .filter(|(name, _)| name != "total")
            .collect(),
    )
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    match words.get(1).map(String::as_str) {
        Some("--test") => return,
        Some(mounts::OPEN) => mounts::open(&words[2]),
        Some(stop::WATCH) => stop::watch(),
        _ => (),
    }
    let dir = std::env::temp_dir().join(format!("fdkit-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a folder");
    let at = |name: &str| dir.join(name).to_str().expect("UTF-8").to_owned();
    let [scan, img, restore] =
        ["fdscan", "fdimg", "fdrestore"].map(|name| tool(name).to_str().expect("UTF-8").to_owned());
    let mkfd = env!("CARGO_BIN_EXE_mkfd");
    for count in [10, 1000, 10_000] {
        let files = at(&format!("files{count}"));
        std::fs::create_dir_all(&files).expect("a folder");
        let held = holder(count, &files);
        let pid = held.pid.as_str();
        let commands = [
            vec![&scan, "-o", "/dev/null", pid],
            vec!["lsfd", "-p", pid],
            vec!["lsof", "-n", "-P", "-p", pid],
            vec![mkfd, "list"],
        ];
        let times = side_by_side(&commands);
        row(&format!("fdscan, {count} descriptors"), times[0], "lsfd", times[1]);
        row(&format!("fdscan, {count} descriptors"), times[0], "lsof", times[2]);
        if let (10, Some(ours), Some(floor)) = (count, times[0], times[3]) {
            println!("{:<34} {:8.2} ms over a Rust program's whole run", "fdscan", ours - floor);
        }
        let (all, some) = (at("all.fdi"), at("some.fdi"));
        run(&[&scan, "-o", &all, pid]);
        // The program's own descriptors 0, 1 and 2 are left out.
        run(&["sh", "-c", &format!("'{img}' select -F '!0-2' '{all}' >'{some}'")]);
        drop(held);
        let restoring = [&restore, "-i", &some, "--", "true"];
        let times =
            side_by_side(&[restoring.to_vec(), vec!["env", "true"], vec![&img, "verify", &all]]);
        row(&format!("fdrestore -- true, of {count}"), times[0], "env true", times[1]);
        row(&format!("fdimg verify, {count} descriptors"), times[2], "env true", times[1]);
        match system_calls(&restoring) {
            Some(calls) if count == 10_000 => {
                let made = ["openat2", "pipe2", "eventfd2", "socketpair"];
                let made: u64 = made.iter().filter_map(|name| calls.get(*name)).sum();
                let rest = calls.values().sum::<u64>() - made;
                let descriptors = count as f64;
                println!(
                    "{:<34} {:8.2} system calls a descriptor beyond those that make it",
                    "fdrestore",
                    rest as f64 / descriptors
                );
            }
            Some(_) => (),
            None => println!("strace is not installed: system calls are not counted"),
        }
    }
    let files = at("files19000");
    std::fs::create_dir_all(&files).expect("a folder");
    let many = holder(19_000, &files);
    stop::measure(&scan, &at("stop.fdi"), "a process with 19,000 descriptors");
    drop(many);
    mounts::compare(&scan, &at("mounts"));
    let million = at("million.fdi");
    image(1_000_000, Path::new(&million));
    let select = [&img, "select", "-F", "0-499999,mem", &million];
    if let [Some(time)] = side_by_side(&[select.to_vec()])[..] {
        let peak = peak(&select);
        println!(
            "{:<34} {:8.2} million slots a second, peak {peak:.1} MiB",
            "fdimg select",
            1e3 / time
        );
    }
    let _ = std::fs::remove_dir_all(&dir);
}
