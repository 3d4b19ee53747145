//! The harness: runs the tools in pipelines, starts the processes to scan, and reports skips.

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::fmt::{Display, Write as _};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The time limit of a pipeline, and of a target until it is ready.
const LIMIT: Duration = Duration::from_secs(60);

/// The tools of fdkit.
pub(crate) const TOOLS: &[&str] = &["fdscan", "fdimg", "fdrestore", "ttyctl"];

/// The fixture.
pub(crate) const MKFD: &str = env!("CARGO_BIN_EXE_mkfd");

/// Ends a test that this machine cannot run, and reports it as skipped.
macro_rules! skip {
    ($($reason:tt)*) => {{
        $crate::harness::skipped(&format!($($reason)*));
        return;
    }};
}

/// Skips the test unless the condition holds.
macro_rules! needs {
    ($holds:expr, $($reason:tt)*) => {
        if !$holds {
            skip!($($reason)*);
        }
    };
}

/// `mkfd make` with these SPECs, or a skip where this kernel cannot.
macro_rules! target {
    ($dir:expr, $specs:expr) => {
        match $crate::harness::Target::make($dir, $specs) {
            Ok(target) => target,
            Err(reason) => skip!("{reason}"),
        }
    };
}

/// Reports that a test is skipped, past the output capture of libtest. With FDKIT_NO_SKIP=1 that is
/// a failure.
pub(crate) fn skipped(reason: &str) {
    let thread = thread::current();
    let line = format!("SKIP {}: {reason}\n", thread.name().unwrap_or("?"));
    assert!(std::env::var_os("FDKIT_NO_SKIP").is_none_or(|v| v != "1"), "{line}");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// A tool under test: in $FDKIT_BINDIR, or built here once.
pub(crate) fn tool(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT
        .get_or_init(|| std::env::var_os("FDKIT_BINDIR").map_or_else(build, PathBuf::from))
        .join(name)
}

/// Builds the tools: `cargo test` does not rebuild the binaries of other packages.
fn build() -> PathBuf {
    let bin = Path::new(MKFD).parent().expect("a folder").to_owned();
    let profile = match bin.file_name().and_then(OsStr::to_str) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--workspace", "--bins", "--profile", profile, "--target-dir"])
        .arg(bin.parent().expect("a target folder"))
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace"))
        .status();
    assert!(status.expect("cargo runs").success(), "the tools do not build");
    bin
}

/// Whether a program can be found.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// The python3 binary itself, not a wrapper that is a shell script.
pub(crate) fn python() -> Option<&'static str> {
    ["/usr/bin/python3", "/usr/local/bin/python3"]
        .into_iter()
        .find(|path| fs::exists(path).is_ok_and(|is| is))
}

/// Whether the tests run as root.
pub(crate) fn root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The program that a word of a command line names: a tool, mkfd, or any other program.
fn program(word: &str) -> String {
    match word {
        "mkfd" => MKFD.into(),
        "fdchild" => env!("CARGO_BIN_EXE_fdchild").into(),
        _ if TOOLS.contains(&word) => tool(word).to_string_lossy().into_owned(),
        _ => word.into(),
    }
}

/// Sets the close-on-exec flag of every descriptor but 0, 1 and 2: what the caller of the tests has
/// left open is not inherited by what they start. Descriptors that Rust opened have the flag.
fn close_inherited_on_exec() {
    let entries = fs::read_dir("/proc/self/fd").expect("/proc/self/fd");
    let fds = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    for fd in fds.collect::<Vec<i32>>().into_iter().filter(|fd| *fd > 2) {
        // SAFETY: the flag alone is changed. The call fails if the descriptor is closed by now, as
        // that of the directory is.
        #[expect(unsafe_code)]
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let _ = fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
    }
}

/// A command with these words. The first one, and the one after each `--`, may be the bare name of a
/// tool.
pub(crate) fn command(words: &[&str]) -> Command {
    static CLOSED: OnceLock<()> = OnceLock::new();
    CLOSED.get_or_init(close_inherited_on_exec);
    let mut command = Command::new(program(words[0]));
    for pair in words.windows(2) {
        command.arg(if pair[0] == "--" { program(pair[1]) } else { pair[1].into() });
    }
    command.env("LC_ALL", "C").env_remove("FDRESTORE_CLOEXEC").process_group(0);
    command
}

/// A temporary directory of a test, removed at its end.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// A directory that other users can enter.
    pub(crate) fn for_all_users() -> Scratch {
        let scratch = Scratch::new();
        fs::set_permissions(scratch.dir(), fs::Permissions::from_mode(0o755)).expect("chmod");
        scratch
    }

    pub(crate) fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("fdkit.{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().canonicalize().expect("a temporary folder").join(name);
        fs::create_dir(&path).expect("a scratch folder");
        Scratch(path)
    }

    /// The path of the directory, for command lines.
    pub(crate) fn dir(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }

    /// The path of a file in the directory.
    pub(crate) fn file(&self, name: &str) -> String {
        format!("{}/{name}", self.dir())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A process to scan. The process and its process group are killed when this is dropped.
pub(crate) struct Target {
    child: Child,
    /// Its pid, for command lines.
    pub(crate) pid: String,
    /// The line that it printed when it was ready.
    pub(crate) said: String,
    /// The read end of its stdout, held open so that a later write does not kill it by SIGPIPE.
    stdout: BufReader<std::process::ChildStdout>,
}

impl Target {
    /// Starts `mkfd make --close-std`, which has nothing open but the SPECs. Gives the reason if
    /// this machine cannot make them.
    pub(crate) fn make(dir: &str, specs: &[&str]) -> Result<Target, String> {
        Self::ready(&[&["mkfd", "make", "--close-std", "--dir", dir], specs].concat())
    }

    /// Starts any command that prints a line once it is ready. Gives the reason if it exits with
    /// 77.
    pub(crate) fn ready(words: &[&str]) -> Result<Target, String> {
        let mut child = command(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|err| panic!("{words:?}: {err}"));
        let pid = child.id().to_string();
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        // A timer kills a target that does not get ready, which ends the read below.
        let group = Pid::from_raw(child.id() as i32);
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let guard = thread::spawn(move || {
            if wait.recv_timeout(LIMIT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                let _ = killpg(group, Signal::SIGKILL);
            }
        });
        let mut line = String::new();
        let _ = stdout.read_line(&mut line);
        drop(done);
        guard.join().expect("the guard ends");
        if !line.is_empty() {
            return Ok(Target { child, pid, said: line.trim_end().into(), stdout });
        }
        let status = child.wait().expect("a status");
        let mut text = String::new();
        let _ = child.stderr.take().map(|mut err| err.read_to_string(&mut text));
        match status.code() {
            Some(77) => Err(text.trim().into()),
            _ => panic!("{words:?} is not ready: {}\n{text}", told(status)),
        }
    }

    /// Starts a program by `mkfd exec`: of this process's own descriptors it has only 0, 1 and 2.
    pub(crate) fn program(words: &[&str]) -> Target {
        Self::ready(&[&["mkfd", "exec", "--"], words].concat()).expect("no reason to skip")
    }

    /// The target, once it has executed this program after its line.
    #[track_caller]
    pub(crate) fn executing(self, program: &str) -> Target {
        wait_for_program(&self.pid, program);
        self
    }

    /// The next line that it prints.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("its stdout");
        line.trim_end().to_owned()
    }

    /// The open descriptors of the target: see [`open_descriptors`].
    pub(crate) fn open(&self) -> Vec<(u32, String)> {
        open_descriptors(&self.pid)
    }

    /// FDSize of the target: see [`fdsize`].
    pub(crate) fn fdsize(&self) -> u64 {
        fdsize(&self.pid)
    }
}

/// Waits until a process has executed this program: a scan says if that happens meanwhile.
#[track_caller]
pub(crate) fn wait_for_program(pid: &str, program: &str) {
    let comm = || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let until = Instant::now() + LIMIT;
    while comm().trim_end() != program {
        assert!(Instant::now() < until, "{pid} does not run {program}");
        thread::sleep(Duration::from_millis(1));
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let group = Pid::from_raw(self.child.id() as i32);
        let _ = killpg(group, Signal::SIGKILL);
        // A member that is not our child may still have descriptors, and so locks, for a moment.
        // The leader's id is not used anew before the wait below.
        let until = Instant::now() + LIMIT;
        while has_living_member(group) && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
        let _ = self.child.wait();
    }
}

/// True if a process of this process group has not ended. The descriptors of a zombie are closed.
fn has_living_member(group: Pid) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.into_iter().any(|entry| {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // State, parent and process group: fields 3 to 5 of proc_pid_stat(5).
        let words: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        !matches!(words[0], "Z" | "X")
            && words.get(2).is_some_and(|pgrp| *pgrp == group.to_string())
    })
}

/// The open descriptors of a process, and what readlink(2) shows of each; none if the process does
/// not exist.
pub(crate) fn open_descriptors(pid: impl Display) -> Vec<(u32, String)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut open: Vec<(u32, String)> = entries
        .map(|entry| {
            let number = entry.file_name().to_string_lossy().parse().expect("a number");
            let link = fs::read_link(entry.path()).unwrap_or_default();
            (number, link.to_string_lossy().into_owned())
        })
        .collect();
    open.sort();
    open
}

/// FDSize of a process in /proc/PID/status: the slots of its table.
pub(crate) fn fdsize(pid: impl Display) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("FDSize:"));
    line.and_then(|n| n.trim().parse().ok()).expect("FDSize")
}

/// Waits until a program has started: it sleeps, and its descriptors do not change any more.
pub(crate) fn settled(pid: &str) {
    let asleep = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("its stat");
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S'))
    };
    let numbers = || fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors").count();
    let (begin, mut before, mut quiet) = (Instant::now(), 0, 0);
    while quiet < 15 {
        assert!(begin.elapsed() < LIMIT, "{pid} does not settle");
        thread::sleep(Duration::from_millis(20));
        let now = numbers();
        quiet = if asleep() && now == before { quiet + 1 } else { 0 };
        before = now;
    }
}

/// An exit status as a shell shows it: 128 plus the number of the signal that ended the process.
fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

fn told(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("signal {signal}"),
        None => format!("status {}", code(status)),
    }
}

/// Commands connected by pipes.
pub(crate) struct Pipeline<'a> {
    stages: &'a [&'a [&'a str]],
    stdin: Option<Vec<u8>>,
    terminal_in: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    cwd: Option<&'a str>,
    env: Vec<(&'a str, &'a str)>,
}

/// Runs commands connected by pipes, with /dev/null as the first one's stdin.
pub(crate) fn pipeline(stages: &[&[&str]]) -> Ran {
    Pipeline::new(stages).run()
}

impl<'a> Pipeline<'a> {
    pub(crate) fn new(stages: &'a [&'a [&'a str]]) -> Self {
        Pipeline {
            stages,
            stdin: None,
            terminal_in: None,
            stdout: None,
            cwd: None,
            env: Vec::new(),
        }
    }

    /// Sets the bytes that the first stage reads from stdin.
    pub(crate) fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Sets a file or terminal as stdin of the first stage.
    pub(crate) fn stdin_from(mut self, fd: OwnedFd) -> Self {
        self.terminal_in = Some(fd);
        self
    }

    /// Sets a file or terminal as stdout of the last stage.
    pub(crate) fn stdout_to(mut self, fd: OwnedFd) -> Self {
        self.stdout = Some(fd);
        self
    }

    /// Sets the working directory.
    pub(crate) fn cwd(mut self, dir: &'a str) -> Self {
        self.cwd = Some(dir);
        self
    }

    /// Adds an environment variable.
    pub(crate) fn env(mut self, key: &'a str, value: &'a str) -> Self {
        self.env.push((key, value));
        self
    }

    /// Runs it and waits for all stages.
    pub(crate) fn run(mut self) -> Ran {
        let mut before: Option<Stdio> = None;
        let mut children: Vec<(Child, JoinHandle<Vec<u8>>)> = Vec::new();
        let mut feeder = None;
        let mut out = None;
        let last = self.stages.len() - 1;
        for (i, words) in self.stages.iter().enumerate() {
            let mut command = command(words);
            command.envs(self.env.iter().copied()).stderr(Stdio::piped());
            if let Some(dir) = self.cwd {
                command.current_dir(dir);
            }
            command.stdin(match (before.take(), &self.stdin, self.terminal_in.take()) {
                (Some(pipe), ..) => pipe,
                (None, Some(_), _) => Stdio::piped(),
                (None, None, Some(fd)) => fd.into(),
                (None, None, None) => Stdio::null(),
            });
            command.stdout(match self.stdout.take() {
                Some(fd) if i == last => fd.into(),
                fd => {
                    self.stdout = fd;
                    Stdio::piped()
                }
            });
            let mut child = command.spawn().unwrap_or_else(|err| panic!("{words:?}: {err}"));
            if let (0, Some(bytes)) = (i, self.stdin.take()) {
                let mut stdin = child.stdin.take().expect("piped");
                // A stage that does not read all of its input is no failure.
                feeder = Some(thread::spawn(move || drop(stdin.write_all(&bytes))));
                self.stdin = None;
            }
            match child.stdout.take() {
                Some(pipe) if i == last => out = Some(reader(pipe)),
                pipe => before = pipe.map(Stdio::from),
            }
            let err: ChildStderr = child.stderr.take().expect("piped");
            children.push((child, reader(err)));
        }
        let statuses = wait(&mut children);
        let late = statuses.iter().any(Option::is_none);
        // A process that a stage has left behind would hold the pipes open.
        for (child, _) in &children {
            let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
        }
        let mut stages = Vec::new();
        for (((mut child, err), status), words) in
            children.into_iter().zip(statuses).zip(self.stages)
        {
            let status = status.unwrap_or_else(|| child.wait().expect("a status"));
            let stderr = String::from_utf8_lossy(&err.join().expect("read")).into_owned();
            stages.push(Stage { words: words.join(" "), status, stderr });
        }
        drop(feeder.map(JoinHandle::join));
        let stdout = out.map(|out| out.join().expect("read")).unwrap_or_default();
        let ran = Ran { stages, stdout };
        assert!(!late, "takes more than {LIMIT:?}\n{}", ran.whole());
        ran
    }
}

fn reader(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

fn wait(children: &mut [(Child, JoinHandle<Vec<u8>>)]) -> Vec<Option<ExitStatus>> {
    let begin = Instant::now();
    let mut statuses = vec![None; children.len()];
    while begin.elapsed() < LIMIT && statuses.iter().any(Option::is_none) {
        for ((child, _), status) in children.iter_mut().zip(&mut statuses) {
            if status.is_none() {
                *status = child.try_wait().expect("a status");
            }
        }
        thread::sleep(Duration::from_millis(2));
    }
    statuses
}

struct Stage {
    words: String,
    status: ExitStatus,
    stderr: String,
}

/// A pipeline that has ended.
pub(crate) struct Ran {
    stages: Vec<Stage>,
    /// What the last stage wrote.
    pub(crate) stdout: Vec<u8>,
}

impl Ran {
    /// The exit status of a stage; 128 plus the number of the signal that ended it.
    pub(crate) fn status(&self, stage: usize) -> i32 {
        code(self.stages[stage].status)
    }

    /// What a stage wrote to stderr.
    pub(crate) fn stderr(&self, stage: usize) -> &str {
        &self.stages[stage].stderr
    }

    /// What the last stage wrote, as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Fails unless every stage ended with 0.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        let good = self.stages.iter().all(|stage| stage.status.success());
        assert!(good, "a stage failed\n{}", self.whole());
        self
    }

    /// What the last stage wrote to stderr.
    pub(crate) fn said(&self) -> &str {
        &self.stages.last().expect("a stage").stderr
    }

    /// Fails unless every stage ended with 0 and wrote nothing to stderr.
    #[track_caller]
    pub(crate) fn quiet(self) -> Self {
        let quiet = self.stages.iter().all(|stage| stage.stderr.is_empty());
        assert!(quiet, "a stage has something to say\n{}", self.whole());
        self.ok()
    }

    /// Fails unless the last stage ended with this status, without a panic, and its stderr contains
    /// each of these texts.
    #[track_caller]
    pub(crate) fn refuses(self, status: i32, texts: &[&str]) -> Self {
        let last = self.stages.last().expect("a stage");
        assert_eq!(code(last.status), status, "the last status\n{}", self.whole());
        assert!(!last.stderr.contains("panicked"), "a panic\n{}", self.whole());
        for text in texts {
            assert!(last.stderr.contains(text), "stderr lacks {text:?}\n{}", self.whole());
        }
        self
    }

    /// Fails unless the last stage wrote exactly one line to stderr.
    #[track_caller]
    pub(crate) fn in_one_line(self) -> Self {
        let lines = self.stages.last().expect("a stage").stderr.lines().count();
        assert_eq!(lines, 1, "lines on stderr\n{}", self.whole());
        self
    }

    /// Commands, statuses and output of all stages, for the message of a failure.
    pub(crate) fn whole(&self) -> String {
        let mut text = String::new();
        for (i, stage) in self.stages.iter().enumerate() {
            let bar = if i == 0 { " " } else { "|" };
            let _ = writeln!(text, "{bar} {}   ({})", stage.words, told(stage.status));
            for line in stage.stderr.lines() {
                let _ = writeln!(text, "      {line}");
            }
        }
        let shown = &self.stdout[..self.stdout.len().min(2000)];
        let printable = |b: &u8| b.is_ascii_graphic() || b.is_ascii_whitespace();
        let shown = match shown.iter().all(printable) {
            true => String::from_utf8_lossy(shown).into_owned(),
            false => format!("{} bytes", self.stdout.len()),
        };
        let _ = writeln!(text, "stdout: {shown}");
        text
    }
}

/// Runs `fdscan PID | fdimg write FILE`, which must succeed without a message.
#[track_caller]
pub(crate) fn scan(pid: &str, file: &str) {
    pipeline(&[&["fdscan", "--data", pid], &["fdimg", "write", file]]).quiet();
}

/// The image of a process that had these SPECs and has ended.
pub(crate) fn image(scratch: &Scratch, specs: &[&str]) -> String {
    image_if_can(scratch, specs).expect("these can be made everywhere")
}

/// As [`image`], but gives the reason if this machine cannot make the SPECs.
pub(crate) fn image_if_can(scratch: &Scratch, specs: &[&str]) -> Result<String, String> {
    let target = Target::make(scratch.dir(), specs)?;
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    Ok(file)
}

/// fdrestore in command mode; COMMAND has 0, 1 and 2 of the caller.
pub(crate) const RESTORE: &[&str] = &["fdrestore", "--inherit", "0,1,2"];

/// Runs `fdrestore --inherit 0,1,2 -i FILE OPTIONS -- COMMAND`.
pub(crate) fn restored(file: &str, options: &[&str], command: &[&str]) -> Ran {
    pipeline(&[&[RESTORE, &["-i", file], options, &["--"], command].concat()])
}

/// Restores an image in `mkfd check`, which compares its descriptors with these SPECs.
pub(crate) fn check(scratch: &Scratch, file: &str, specs: &[&str]) -> Ran {
    check_with(scratch, file, &[], specs)
}

/// [`check`] with these options of fdrestore.
pub(crate) fn check_with(scratch: &Scratch, file: &str, options: &[&str], specs: &[&str]) -> Ran {
    let check = ["mkfd", "check", "--std", "0,1,2", "--dir", scratch.dir()];
    restored(file, options, &[&check[..], specs].concat())
}

/// `fdimg show -J FILE`.
#[track_caller]
pub(crate) fn show(file: &str) -> serde_json::Value {
    let ran = pipeline(&[&["fdimg", "show", "-J", file]]).ok();
    serde_json::from_slice(&ran.stdout).unwrap_or_else(|err| panic!("{err}\n{}", ran.whole()))
}

/// A pseudoterminal: the slave for a program, and the master for the test.
pub(crate) fn terminal() -> (OwnedFd, File) {
    let pty = nix::pty::openpty(None, None).expect("a pseudo terminal");
    (pty.slave, pty.master.into())
}
