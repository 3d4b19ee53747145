//! Every system call of the tools fails once, by the fault injection of strace(1): the result is the
//! same, or a line says what failed and the exit status is not 0.
//!
//! A test fails one call of each shape (name and arguments without numbers), of frozen scans one of eight
//! shapes; `FDKIT_SOAK=1` (`just soak`) fails all calls.

use crate::harness::{MKFD, Scratch, command, pipeline, tool, which};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What the tools call first in main: what comes before is the dynamic linker and the runtime.
const BEGINNING: &str = "rt_sigaction(SIGPIPE, {sa_handler=SIG_DFL";

/// Calls that are not failed: those that cannot fail, and those of the allocator, for which Rust's
/// runtime ends the program with a message of its own.
const LEFT_OUT: &[&str] = &[
    "brk",
    "exit",
    "exit_group",
    "futex",
    "getegid",
    "geteuid",
    "getrandom",
    "getpid",
    "getppid",
    "gettid",
    "madvise",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "restart_syscall",
    // It fails for a wrong argument only.
    "rt_sigprocmask",
    "rseq",
    "sched_yield",
    "set_robust_list",
    "sigaltstack",
    "write",
    "writev",
    "rt_sigreturn",
    "vfork",
    "execve",
];

/// A run of a tool, and the file that it writes: what both give if nothing fails is wanted.
struct Case {
    name: &'static str,
    words: Vec<String>,
    output: Option<String>,
    /// The file that is its stdin.
    stdin: Option<String>,
    /// Status 0 is right for a loss that is said: the status is that of a COMMAND, or of --missing null.
    may_go_on: bool,
}

/// How a run ended.
#[derive(PartialEq, Eq, Clone, Debug)]
struct Ended {
    status: Option<i32>,
    said: String,
    stdout: Vec<u8>,
    output: Option<Vec<u8>>,
}

impl Case {
    /// Runs it under strace with these options. `nth` makes the names of its files its own.
    fn run(&self, scratch: &Scratch, options: &[&str], nth: usize) -> (Ended, String) {
        let log = scratch.file(&format!("log{nth}"));
        let file = self.output.as_ref().map(|_| scratch.file(&format!("out{nth}")));
        let words: Vec<String> = self
            .words
            .iter()
            .map(|word| match &self.output {
                Some(output) if word == output => file.clone().expect("a file"),
                _ => word.clone(),
            })
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let all = [&["strace", "-f", "-qq", "-o", &log], options, &words].concat();
        let mut child = command(&all)
            .env("SOURCE_DATE_EPOCH", "0")
            .stdin(
                self.stdin
                    .as_ref()
                    .map_or(Stdio::null(), |file| fs::File::open(file).expect("its stdin").into()),
            )
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace");
        let begun = Instant::now();
        let hangs = loop {
            if child.try_wait().expect("wait").is_some() {
                break false;
            }
            if begun.elapsed() > Duration::from_secs(20) {
                // What strace traces is let go, and must end as well.
                let _ = nix::sys::signal::killpg(
                    nix::unistd::Pid::from_raw(child.id() as i32),
                    nix::sys::signal::Signal::SIGKILL,
                );
                break true;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let out = child.wait_with_output().expect("its output");
        let ended = Ended {
            status: out.status.code().filter(|_| !hangs),
            said: String::from_utf8_lossy(&out.stderr).into_owned(),
            stdout: out.stdout,
            output: file.as_ref().and_then(|file| fs::read(file).ok()),
        };
        let mut ended = ended;
        if self.name == "ttyctl save" {
            // The image has the process that made it, which is another one at each run.
            ended.stdout.truncate(1);
        }
        let text = fs::read_to_string(&log).unwrap_or_default();
        let _ = fs::remove_file(&log);
        file.map(fs::remove_file);
        (ended, text)
    }
}

/// A call of a run, and which one it is.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Call {
    name: String,
    /// Its ordinal among the calls of that name in its process, from 1.
    nth: usize,
    /// Its arguments, in which each number is `N`: calls of one shape do the same for another
    /// descriptor or process.
    shape: String,
}

/// Replaces each run of digits, and of an address, by `N`.
fn shape(call: &str) -> String {
    let mut shape = String::new();
    for letter in call.chars() {
        match letter {
            '0'..='9' if shape.ends_with('N') => (),
            '0'..='9' => shape.push('N'),
            'a'..='f' | 'x' if shape.ends_with('N') => (),
            other => shape.push(other),
        }
    }
    shape
}

/// The calls of a run after its beginning.
fn calls(log: &str) -> Vec<Call> {
    let mut counts: HashMap<(&str, &str), usize> = HashMap::new();
    let mut executed = HashSet::new();
    // How often the runtime of Rust has made a call before main. To fail such a call of another process
    // would fail that of the runtime, which ends the program with a message of its own.
    let mut before_main: HashMap<&str, usize> = HashMap::new();
    let (mut begun, mut found) = (false, Vec::new());
    for line in log.lines() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let Some((name, args)) = rest.trim_start().split_once('(') else { continue };
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            continue;
        }
        // After execve(2) the calls are those of another program.
        if begun && name == "execve" && rest.ends_with("= 0") {
            executed.insert(pid);
        }
        // strace counts the calls of each process by itself.
        let count = counts.entry((pid, name)).or_default();
        *count += 1;
        if !begun {
            before_main.insert(name, *count);
        }
        let of_runtime = before_main.get(name).is_some_and(|most| *count <= *most);
        if begun && !of_runtime && !executed.contains(pid) && !LEFT_OUT.contains(&name) {
            let args = args.rsplit_once(" = ").map_or(args, |(args, _)| args);
            found.push(Call { name: name.to_owned(), nth: *count, shape: shape(args) });
        }
        begun |= rest.contains(BEGINNING);
    }
    found.sort();
    found.dedup_by(|a, b| (&a.name, a.nth) == (&b.name, b.nth));
    found
}

/// What is wrong with the end of a run in which a call has failed, if anything is.
fn fault(ended: &Ended, wanted: &Ended, may_go_on: bool) -> Option<&'static str> {
    match ended.status {
        None => Some("it hangs, or a signal ended it"),
        Some(0) if ended.said == wanted.said && ended == wanted => None,
        Some(0) if ended.said != wanted.said && may_go_on => None,
        Some(0) if ended.said != wanted.said => Some("status 0, although it says something"),
        Some(0) => Some("SILENT: another result, and not a word"),
        // The runtime ends a program with a message of its own, for example if it cannot poll(2).
        Some(101) => Some("it panics"),
        Some(_) if ended.said.is_empty() => Some("SILENT: it fails without a message"),
        Some(_) => None,
    }
}

/// Fails each call of a case once, or one call of each shape, and gives the faults.
fn sweep(case: &Case, scratch: &Scratch) -> Vec<String> {
    let (wanted, log) = case.run(scratch, &[], 0);
    assert_eq!(wanted.status, Some(0), "{}: {wanted:?}", case.name);
    let (again, _) = case.run(scratch, &[], 0);
    assert_eq!(wanted, again, "{}: two runs differ", case.name);
    let all = calls(&log);
    let freezes = case.name.contains("--freeze");
    let mut shapes = HashSet::new();
    let fail_all = std::env::var_os("FDKIT_SOAK").is_some();
    // A run of a frozen scan takes half a second, and only one can run at a time.
    let step = if freezes && !fail_all { 8 } else { 1 };
    let sample: Vec<&Call> = all
        .iter()
        .filter(|call| fail_all || shapes.insert((call.name.as_str(), call.shape.as_str())))
        .step_by(step)
        .collect();
    println!("{}: {} calls, {} of them fail", case.name, all.len(), sample.len());
    let run = |at: usize| {
        let Call { name, nth, .. } = sample[at];
        let error = ["EPERM", "ENOMEM", "EIO", "EMFILE"][at % 4];
        let inject = format!("inject={name}:error={error}:when={nth}");
        let (ended, log) = case.run(scratch, &["-e", &inject], at + 1);
        let call = log.lines().find(|line| line.contains("(INJECTED)"));
        (ended, call.unwrap_or_default().to_owned())
    };
    let (next, faulty) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let kinds: Mutex<BTreeMap<String, usize>> = Mutex::default();
    // Two scans that stop one process would meet each other.
    let runners = if freezes { 1 } else { 2 };
    std::thread::scope(|scope| {
        for _ in 0..runners {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= sample.len() {
                        break;
                    }
                    let (ended, _) = run(at);
                    let fault = fault(&ended, &wanted, case.may_go_on);
                    let kind = match (fault, ended.status) {
                        (Some(fault), _) => fault.to_owned(),
                        (None, Some(0)) if ended.said == wanted.said => {
                            "the same result".to_owned()
                        }
                        (None, status) => format!("said, status {}", status.unwrap_or_default()),
                    };
                    *kinds.lock().unwrap().entry(kind).or_default() += 1;
                    if fault.is_some() {
                        faulty.lock().unwrap().push(at);
                    }
                }
            });
        }
    });
    println!("{}: {:?}", case.name, kinds.into_inner().unwrap());
    // What is at fault in a run beside another one, and not alone, is not the tool's.
    let again = |at: usize| {
        let (ended, call) = run(at);
        let fault = fault(&ended, &wanted, case.may_go_on)?;
        let Ended { status, said, .. } = &ended;
        Some(format!("{}: {call}: {fault}: status {status:?}: {said}", case.name))
    };
    let faults: Vec<String> = faulty.into_inner().unwrap().into_iter().filter_map(again).collect();
    faults.iter().for_each(|fault| println!("{fault}"));
    faults
}

fn words(words: &[&str]) -> Vec<String> {
    let program = tool(words[0]).to_string_lossy().into_owned();
    std::iter::once(program).chain(words[1..].iter().map(|word| (*word).to_owned())).collect()
}

/// Descriptors of many kinds, none of which changes by itself.
const SPECS: &[&str] = &[
    "regular@3:pos=7",
    "unlinked@4:pos=4",
    "pipe@5,6:data=hello",
    "eventfd@7:count=5",
    "unix@8",
    "udp@9",
    "memfd@10:data=abc",
    "inotify@11",
    "epoll@12,13",
    "socketpair@14,15:data=abc",
    "directory@16",
    "signalfd@17",
    "tcp@18",
];

#[test]
fn a_system_call_that_fails_is_said_or_changes_nothing() {
    needs!(which("strace").is_some(), "strace is missing");
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), SPECS);
    let pid = target.pid.as_str();
    let file = scratch.file("whole.fdi");
    pipeline(&[&["fdscan", "--data", "-o", &file, pid]]).quiet();
    // What a restore binds must be free.
    let (ended, image) = (Scratch::new(), scratch.file("ended.fdi"));
    // An address of the network may be in use by then.
    let specs: Vec<&str> = SPECS
        .iter()
        .copied()
        .filter(|spec| !["udp@", "tcp@"].iter().any(|it| spec.starts_with(it)))
        .collect();
    let other = target!(ended.dir(), &specs);
    pipeline(&[&["fdscan", "--data", "-o", &image, &other.pid]]).quiet();
    drop(other);
    let out = "OUTPUT";
    let check = [&[MKFD, "check", "--std", "0,1,2", "--dir", ended.dir()][..], &specs[..]].concat();
    let scan = |name, options: &[&str]| Case {
        name,
        words: words(&[&["fdscan", "-o", out], options, &[pid]].concat()),
        output: Some(out.to_owned()),
        stdin: None,
        may_go_on: false,
    };
    let read = |name, all: &[&str]| Case {
        name,
        words: words(all),
        output: None,
        stdin: None,
        may_go_on: name.starts_with("fdrestore"),
    };
    let cases = [
        scan("fdscan", &[]),
        scan("fdscan --data", &["--data"]),
        scan("fdscan --freeze --data", &["--freeze", "--data"]),
        scan("fdscan --passive", &["--passive"]),
        read("fdimg show", &["fdimg", "show", &file]),
        read("fdimg verify", &["fdimg", "verify", &file]),
        read("fdimg select", &["fdimg", "select", "-F", "3-8", &file]),
        Case {
            name: "fdimg write",
            words: words(&["fdimg", "write", out]),
            output: Some(out.to_owned()),
            stdin: Some(file.clone()),
            may_go_on: false,
        },
        read("fdimg place", &["fdimg", "place", &file]),
        read("fdrestore -n", &["fdrestore", "-n", "--missing", "null", "-i", &file]),
        read(
            "fdrestore",
            &[
                &["fdrestore", "--changed", "ignore", "--inherit", "0,1,2", "-i", &image, "--"],
                &check[..],
            ]
            .concat(),
        ),
    ];
    let first = cases[0].run(&scratch, &[], 0).0;
    if first.status != Some(0) {
        skip!("strace cannot run fdscan: {}", first.said);
    }
    let faults: Vec<String> = cases.iter().flat_map(|case| sweep(case, &scratch)).collect();
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn a_system_call_of_ttyctl_that_fails_is_said_or_changes_nothing() {
    needs!(which("strace").is_some(), "strace is missing");
    let scratch = Scratch::new();
    // The holder of the master is in the table of `ttyctl show`: nobody else may have it.
    let target = target!(scratch.dir(), &["pty@3,4"]);
    let tty = fs::read_link(format!("/proc/{}/fd/4", target.pid)).expect("the slave");
    let tty = tty.to_str().expect("UTF-8");
    let saved = scratch.file("saved.fdi");
    fs::write(&saved, pipeline(&[&["ttyctl", "save", tty]]).quiet().stdout).unwrap();
    let case = |name, all: &[&str], stdin: Option<&String>| Case {
        name,
        words: words(all),
        output: None,
        stdin: stdin.cloned(),
        // What is lost then are facts of ttyctl itself, and not of the terminal.
        may_go_on: name == "ttyctl save",
    };
    let cases = [
        case("ttyctl show", &["ttyctl", "show", tty], None),
        case("ttyctl show -J", &["ttyctl", "show", "-J", tty], None),
        case("ttyctl save", &["ttyctl", "save", tty], None),
        case("ttyctl load", &["ttyctl", "load", tty], Some(&saved)),
        case("ttyctl retarget", &["ttyctl", "retarget", tty], Some(&saved)),
        // The sweep may fail a call of COMMAND as well: that one closes nothing that it would miss.
        case("ttyctl open", &["ttyctl", "open", tty, "--", "sh", "-c", ":"], None),
        case(
            "ttyctl open --new",
            &["ttyctl", "open", "--new", "--", "sh", "-c", "echo hello"],
            None,
        ),
    ];
    let first = cases[0].run(&scratch, &[], 0).0;
    if first.status != Some(0) {
        skip!("strace cannot run ttyctl: {}", first.said);
    }
    let faults: Vec<String> = cases.iter().flat_map(|case| sweep(case, &scratch)).collect();
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}
