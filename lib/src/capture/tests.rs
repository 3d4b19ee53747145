//! Scans of a shell that changes in the middle of them.

use super::threads::Trace;
use super::*;
use crate::proc::{FdInfo, Stat, attach_refusal};
use std::io::{BufRead, BufReader};
use std::os::fd::RawFd;
use std::os::unix::fs::FileExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A shell that does what it is told: its table changes when a test wants it to.
struct Shell {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Shell {
    /// One with an argument of this length, which is in the record of its task.
    fn new(argument: usize) -> Shell {
        let script = "while read -r line; do eval \"$line\"; echo; done";
        let mut child = Command::new("sh")
            .args(["-c", script, "sh", &"x".repeat(argument)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Shell { child, stdin, stdout: BufReader::new(stdout) }
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
    }

    /// Waits until a line is done.
    fn run(&mut self, line: &str) {
        self.tell(line);
        self.stdout.read_line(&mut String::new()).unwrap();
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An image, and something that is done when the first of it is written.
struct Interrupted<'a> {
    image: Vec<u8>,
    act: Option<&'a mut dyn FnMut()>,
}

impl Write for Interrupted<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if let Some(act) = self.act.take() {
            act();
        }
        self.image.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Scans a shell, which `act` changes once the first 64 KiB are written: image, status, and what
/// was said.
fn scan(
    shell: &mut Shell,
    options: &ScanOptions,
    act: impl Fn(&mut Shell),
) -> (Vec<u8>, Status, Vec<String>) {
    let mut messages = Messages::kept();
    let pid = shell.pid();
    let mut act = || act(shell);
    let out = Interrupted { image: Vec::new(), act: Some(&mut act) };
    let (out, status, _) = capture(&[pid], options, out, &mut messages).unwrap();
    assert!(out.act.is_none());
    (out.image, status, messages.take())
}

/// Says that this machine allows no copies of descriptors, and gives true.
fn skips(said: &[String]) -> bool {
    let skips = said.iter().any(|line| line.contains(attach_refusal()));
    if skips {
        eprintln!("SKIP: pidfd_getfd(2) is not permitted here");
    }
    skips
}

/// A scan of a shell that changes between the list of its numbers and the last look at them.
fn changed(act: impl Fn(&mut Shell)) -> (Status, String) {
    let mut shell = Shell::new(100 << 10);
    shell.run("exec 4</dev/null");
    let (_, status, said) = scan(&mut shell, &ScanOptions::default(), act);
    (status, said.last().cloned().unwrap_or_default())
}

#[test]
fn a_table_that_changes_during_the_scan_is_said() {
    let (status, said) = changed(|shell| shell.run("exec 5</dev/null 6</dev/null 4<&-"));
    assert!(said.contains("it opened 2 and closed 1 descriptors"), "{said}");
    assert_eq!(status, Status::Gone);
    let (status, said) = changed(|shell| shell.run(":"));
    assert_eq!((status, said.as_str()), (Status::Done, ""));
}

#[test]
fn a_number_that_names_another_file_is_noticed() {
    let mut shell = Shell::new(0);
    shell.run("exec 4</dev/null 5</dev/null");
    let process = Process::open(shell.pid()).unwrap();
    let trace = |fd: RawFd| {
        let mut text = Vec::new();
        process.descriptor_info(&fd.to_string(), &mut text).unwrap();
        let link = process.descriptor_link(&fd.to_string()).unwrap();
        Trace::new(fd, &FdInfo::parse(&text), &link)
    };
    let traces = [trace(4), trace(5)];
    assert_eq!(threads::look_again(&process, &traces), 0);
    shell.run("exec 4</dev/zero");
    assert_eq!(threads::look_again(&process, &traces), 1);
    shell.run("exec 4</dev/null 5<>/dev/null");
    assert_eq!(threads::look_again(&process, &traces), 1);
    // The list of numbers tells that one is closed.
    shell.run("exec 5<&-");
    assert_eq!(threads::look_again(&process, &traces), 0);
}

#[test]
fn a_process_that_execs_or_ends_during_the_scan_is_said() {
    let until = |pid, holds: fn(&Stat) -> bool| {
        while !Stat::of(pid).is_none_or(|stat| holds(&stat)) {
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let (status, said) = changed(|shell| {
        shell.tell("exec sleep 600");
        until(shell.pid(), |stat| stat.name() == b"sleep");
    });
    assert!(said.ends_with(": it became another program during the scan"), "{said}");
    assert_eq!(status, Status::Gone);
    let (status, said) = changed(|shell| {
        shell.tell("exit");
        until(shell.pid(), Stat::is_zombie);
    });
    assert!(said.ends_with(": it ended during the scan"), "{said}");
    assert_eq!(status, Status::Gone);
}

#[test]
fn contents_of_a_number_that_names_another_file_by_now_are_not_taken() {
    let dir = std::env::temp_dir();
    let path = |name: &str| {
        let path = dir.join(format!("fdkit-scan-{name}-{}", std::process::id()));
        path.to_str().unwrap().to_owned()
    };
    let (large, small, other) = (path("large"), path("small"), path("other"));
    // More than is written at once, so that there is a moment between the two.
    std::fs::File::create(&large).unwrap().write_all_at(&[b'l'; 192 << 10], 0).unwrap();
    std::fs::write(&small, "the text of the small file").unwrap();
    std::fs::write(&other, "the text of the other file").unwrap();
    let mut shell = Shell::new(0);
    shell.run(&format!("exec 3<{large} 4<{small}; rm {large} {small}"));
    let options = ScanOptions { data: Some(1 << 20), ..ScanOptions::default() };
    let line = format!("exec 4<{other}");
    let (image, status, said) = scan(&mut shell, &options, |shell| shell.run(&line));
    std::fs::remove_file(&other).unwrap();
    if skips(&said) {
        return;
    }
    let has = |text: &str| image.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(has(&"l".repeat(1000)) && !has("the text of"));
    let line = format!("{}: fd 4: its contents: the number names another file by now", shell.pid());
    // Of what the shell has inherited, more may be said.
    assert!(status == Status::No && said.contains(&line), "{said:?}");
}
