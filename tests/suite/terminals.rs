//! Terminals and interactive programs: ttyctl, and what becomes of terminals and controlling
//! terminals in a scan and a restore.

use crate::harness::{MKFD, Pipeline, Scratch, Target, command, pipeline, scan, show, tool, which};
use crate::rights;
use fdkit::sys::tty;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, ttyname};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

/// The time limit for the answer of a program.
const LIMIT: Duration = Duration::from_secs(30);

/// The master of a pseudoterminal that a test types to and reads, and perhaps a program on its
/// slave.
pub(crate) struct Screen {
    master: fs::File,
    pub(crate) slave: Option<OwnedFd>,
    /// The path of the slave.
    tty: String,
    seen: Vec<u8>,
    /// All bytes that were read from the master.
    all: Vec<u8>,
    pub(crate) child: Option<Child>,
}

impl Screen {
    /// A terminal that controls no session.
    pub(crate) fn new() -> Screen {
        let size = libc::winsize { ws_row: 20, ws_col: 70, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(&size, None).expect("a pseudo terminal");
        for fd in [&pair.master, &pair.slave] {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("F_SETFD");
        }
        let tty = ttyname(&pair.slave).expect("its name").display().to_string();
        let (master, slave) = (pair.master.into(), Some(pair.slave));
        Screen { master, slave, tty, seen: Vec::new(), all: Vec::new(), child: None }
    }

    /// Starts a program as the leader of a new session on a new terminal.
    fn start(words: &[&str]) -> Screen {
        let mut screen = Screen::new();
        let clone = |fd: &OwnedFd| fd.try_clone().expect("dup");
        let slave = screen.slave.take().expect("a slave");
        let child = command(&[&["setsid", "--ctty", "--wait", MKFD, "exec", "--"], words].concat())
            .env("TERM", "xterm")
            .env("SHELL", "/bin/sh")
            .env("PS1", "$ ")
            .env("HISTFILE", "/dev/null")
            .stdin(clone(&slave))
            .stdout(clone(&slave))
            .stderr(slave)
            .spawn();
        screen.child = Some(child.unwrap_or_else(|err| panic!("{words:?}: {err}")));
        screen
    }

    fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("type");
    }

    /// Reads until this text has appeared since the last wait.
    #[track_caller]
    pub(crate) fn wait(&mut self, text: &str) {
        let begin = Instant::now();
        loop {
            let seen = String::from_utf8_lossy(&self.seen).into_owned();
            if let Some(at) = seen.find(text) {
                self.seen = seen.as_bytes()[at + text.len()..].to_vec();
                return;
            }
            assert!(begin.elapsed() < LIMIT, "{text:?} is not said, but {seen:?}");
            let more = self.more(100);
            self.seen.extend(more);
        }
    }

    /// Reads what arrives within this many milliseconds.
    fn more(&mut self, limit: u16) -> Vec<u8> {
        let mut polled = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, limit).expect("poll");
        if !polled[0].revents().is_some_and(|got| got.contains(PollFlags::POLLIN)) {
            return Vec::new();
        }
        let mut buffer = [0; 4096];
        let got = self.master.read(&mut buffer).unwrap_or(0);
        self.all.extend_from_slice(&buffer[..got]);
        buffer[..got].to_vec()
    }

    /// All that was written to the terminal so far.
    pub(crate) fn all(&mut self) -> Vec<u8> {
        while !self.more(0).is_empty() {}
        self.all.clone()
    }

    /// Types a line to a shell, and gives the output up to the next prompt.
    #[track_caller]
    fn ask(&mut self, line: &str) -> String {
        self.type_in(&format!("{line}; echo en''d\r"));
        let mut all = Vec::new();
        let begin = Instant::now();
        while !String::from_utf8_lossy(&all).contains("end\r\n") {
            assert!(begin.elapsed() < LIMIT, "{line:?}: {:?}", String::from_utf8_lossy(&all));
            all.extend(self.more(100));
        }
        let text = String::from_utf8_lossy(&all).replace('\r', "");
        let text = text.rsplit_once("end\n").map_or(text.as_str(), |(text, _)| text).to_owned();
        self.seen.clear();
        text
    }

    /// The output of `ttyctl show -J` for the terminal.
    #[track_caller]
    fn show(&self) -> Value {
        shown(&self.tty)
    }

    fn has(&self, flag: u32) -> bool {
        tty::line(&self.master).expect("its line").c_lflag & flag != 0
    }

    /// The process id of the leader of the session on the terminal, once it runs its program.
    #[track_caller]
    fn leader(&self) -> String {
        let begin = Instant::now();
        loop {
            if let Some(sid) = self.show()["session"].as_i64() {
                let comm = fs::read_to_string(format!("/proc/{sid}/comm")).expect("its name");
                if !["setsid", "mkfd"].contains(&comm.trim_end()) {
                    return sid.to_string();
                }
            }
            assert!(begin.elapsed() < LIMIT, "no session");
        }
    }

    /// Waits until this flag of the line settings is set, or clear.
    #[track_caller]
    fn until(&self, flag: u32, on: bool) {
        let begin = Instant::now();
        while self.has(flag) != on {
            assert!(begin.elapsed() < LIMIT, "the line stays as it is: {}", self.show());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[track_caller]
    pub(crate) fn ends(&mut self) -> ExitStatus {
        let begin = Instant::now();
        let child = self.child.as_mut().expect("a program");
        loop {
            if let Some(status) = child.try_wait().expect("a status") {
                return status;
            }
            assert!(begin.elapsed() < LIMIT, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        // The processes are in sessions of their own, and some of them ignore SIGHUP.
        kill_descendants(child.id() as i32);
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Waits until a program of this name is in the foreground of the shell's terminal, where signals
/// from the keyboard go to it.
#[track_caller]
fn wait_for_foreground(shell: &str, name: &str) {
    let begin = Instant::now();
    loop {
        let stat = fs::read_to_string(format!("/proc/{shell}/stat")).expect("a shell");
        // The foreground process group is field 8 of proc_pid_stat(5); the first field here is the
        // one after the name.
        let front = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(5));
        let comm = fs::read_to_string(format!("/proc/{}/comm", front.unwrap_or_default()));
        if comm.as_ref().is_ok_and(|comm| comm.trim_end() == name) {
            return;
        }
        assert!(begin.elapsed() < LIMIT, "{comm:?} is in the foreground: {stat}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The descendants of a process.
fn descendants(pid: i32) -> Vec<i32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut all: Vec<i32> = text.split_whitespace().filter_map(|it| it.parse().ok()).collect();
    let deeper: Vec<i32> = all.iter().flat_map(|&child| descendants(child)).collect();
    all.extend(deeper);
    all
}

/// Kills the descendants of a process.
fn kill_descendants(pid: i32) {
    for pid in descendants(pid) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

#[track_caller]
fn shown(which: &str) -> Value {
    let ran = pipeline(&[&["ttyctl", "show", "-J", which]]).quiet();
    serde_json::from_slice(&ran.stdout).expect("JSON")
}

/// The image of a session of [`session`], which has ended.
pub(crate) fn ended_session(scratch: &Scratch, keep: &str) -> String {
    let target = session(keep);
    let pid = target.said.split(' ').next().unwrap();
    let file = scratch.file("a.fdi");
    scan(pid, &file);
    let _ = kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL);
    file
}

/// Starts a session leader that has made its own terminal, and prints the number of the terminal.
/// It keeps the descriptors in `keep` open, at fixed numbers: slave 5, master 7, /dev/tty 4, an
/// O_PATH descriptor 6.
pub(crate) fn session(keep: &str) -> Target {
    let script = "
import os, fcntl, struct, termios, time, sys, ctypes
r, w = os.pipe()
pid = os.fork()
if pid:
    os.close(w)
    print(pid, os.read(r, 100).decode(), flush=os.read(r, 1) == b'')
    time.sleep(1000)
ctypes.CDLL(None).prctl(1, 9) # PR_SET_PDEATHSIG, SIGKILL
os.setsid()
m = os.open('/dev/ptmx', os.O_RDWR | os.O_NOCTTY)
TIOCSPTLCK, TIOCGPTN = 0x40045431, 0x80045430
fcntl.ioctl(m, TIOCSPTLCK, struct.pack('i', 0))
n = struct.unpack('i', fcntl.ioctl(m, TIOCGPTN, b'0000'))[0]
s = os.open('/dev/pts/%d' % n, os.O_RDWR | os.O_NOCTTY)
fcntl.ioctl(s, termios.TIOCSCTTY, 0)
t = os.open('/dev/tty', os.O_RDWR)
o = os.open('/dev/pts/%d' % n, os.O_PATH)
mode = termios.tcgetattr(s); mode[3] &= ~termios.ECHO; termios.tcsetattr(s, termios.TCSANOW, mode)
fcntl.ioctl(s, termios.TIOCSWINSZ, struct.pack('HHHH', 33, 99, 0, 0))
for have, number in ((s, 105), (m, 107), (t, 104), (o, 106), (w, 110)): os.dup2(have, number)
os.closerange(0, 100)
for c in sys.argv[1].split(','): os.dup2(100 + int(c), int(c))
os.write(110, b'%d' % n)
os.closerange(100, 120)
time.sleep(1000)
";
    Target::program(&["python3", "-c", script, keep])
}

/// Runs `fdrestore` as the leader of a new session without a terminal; COMMAND is a shell script
/// that prints what it finds. Gives its output, and the messages of fdrestore.
#[track_caller]
fn restored(file: &str, options: &[&str], script: &str) -> (String, String) {
    let restore = ["setsid", "--wait", "fdrestore", "-i", file, "--inherit", "0,1,2"];
    let tool = crate::harness::tool("fdrestore").to_string_lossy().into_owned();
    let mut words: Vec<&str> = restore.to_vec();
    words[2] = &tool;
    let ran = pipeline(&[&[&words[..], options, &["--", "sh", "-c", script]].concat()]).ok();
    (ran.text(), ran.stderr(0).to_owned())
}

pub(crate) const TTY_AND_GROUPS: &str = "read a b c d pg sid tty fg rest < /proc/self/stat; \
    test $tty != 0 && stty size < /dev/tty && stty -a < /dev/tty | grep -o -e '-echo '; \
    test $pg = $fg && echo foreground; readlink /proc/self/fd/5 /proc/self/fd/4; true";

#[test]
fn a_session_leader_gets_its_terminal_back_with_its_settings() {
    needs!(which("python3").is_some(), "python3 is missing");
    let scratch = Scratch::new();
    let file = ended_session(&scratch, "4,5,6,7");
    let (said, warned) = restored(&file, &[], TTY_AND_GROUPS);
    assert!(said.starts_with("33 99\n-echo \nforeground\n/dev/pts/"), "{said}{warned}");
    assert!(said.ends_with("\n/dev/tty\n"), "{said}");
}

#[test]
fn a_controlling_terminal_without_a_descriptor_is_restored() {
    needs!(which("python3").is_some(), "python3 is missing");
    let scratch = Scratch::new();
    let file = ended_session(&scratch, "7");
    let (said, warned) = restored(&file, &[], TTY_AND_GROUPS);
    assert!(said.starts_with("33 99\n-echo \nforeground\n"), "{said}{warned}");
    assert!(!said.contains("/dev/"), "{said}");
}

#[test]
fn a_terminal_gets_another_number_if_its_own_is_in_use_and_paths_follow() {
    needs!(which("python3").is_some(), "python3 is missing");
    let scratch = Scratch::new();
    let target = session("4,5,6,7");
    let (pid, index) = target.said.split_once(' ').unwrap();
    let file = scratch.file("a.fdi");
    scan(pid, &file);
    // The old terminal still exists and keeps its number.
    let script = "readlink /proc/self/fd/5 /proc/self/fd/6";
    let (said, warned) = restored(&file, &[], script);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], lines[1]);
    assert_ne!(lines[0], format!("/dev/pts/{index}"));
    assert!(warned.contains(&format!("/dev/pts/{index}: its index is in use; it is {}", lines[0])));
    let _ = kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL);
}

#[test]
fn a_process_that_leads_no_session_is_told_why_it_gets_no_terminal() {
    needs!(which("python3").is_some(), "python3 is missing");
    let scratch = Scratch::new();
    let file = ended_session(&scratch, "5,7");
    // The suite may have a terminal or none. In both cases there is a message, and COMMAND runs.
    let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2", "--", "echo", "ran"];
    let ran = pipeline(&[&restore]).ok();
    assert!(ran.stderr(0).contains("setsid(1)"), "{}", ran.whole());
    assert_eq!(ran.text(), "ran\n");
}

#[test]
fn dev_tty_without_a_controlling_terminal_is_refused() {
    needs!(which("python3").is_some(), "python3 is missing");
    let scratch = Scratch::new();
    let target = session("4,7");
    let pid = target.said.split(' ').next().unwrap().to_owned();
    let file = scratch.file("a.fdi");
    pipeline(&[&["fdscan", "-F", "4", &pid], &["fdimg", "write", &file]]).quiet();
    let _ = kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL);
    let tool = crate::harness::tool("fdrestore").to_string_lossy().into_owned();
    let words = ["setsid", "--wait", &tool, "-i", &file, "--inherit", "0,1,2", "--", "true"];
    pipeline(&[&words])
        .refuses(125, &["/dev/tty", "is outside the image, and COMMAND has none", "(status 6)"]);
}

#[test]
fn a_job_of_a_shell_is_refused_with_cures_and_restored_on_another_terminal() {
    needs!(which("bash").is_some(), "bash is missing");
    let scratch = Scratch::new();
    let (file, moved) = (scratch.file("a.fdi"), scratch.file("b.fdi"));
    let mut old = Screen::start(&["bash", "--norc", "--noediting"]);
    assert!(old.ask("echo $((6*7))").contains("42"));
    scan(&old.leader(), &file);
    pipeline(&[&["fdrestore", "-i", &file, "--", "true"]])
        .refuses(125, &["its master is outside the image", "--inherit", "(status 6)"]);

    // The image is restored on another terminal, with descriptors and controlling terminal.
    let new = Screen::new();
    pipeline(&[
        &["fdimg", "read", &file],
        &["ttyctl", "retarget", &new.tty],
        &["fdimg", "write", &moved],
    ])
    .quiet();
    drop(old);
    let tool = crate::harness::tool("fdrestore").to_string_lossy().into_owned();
    let bash = ["bash", "--norc", "--noediting"];
    let words = [&["setsid", &tool, "--allow", "tty", "-i", &moved, "--"][..], &bash].concat();
    let mut child = command(&words).env("PS1", "$ ").spawn().unwrap();
    let mut new = new;
    let _ = child.wait();
    let begin = Instant::now();
    while new.show()["session"].is_null() {
        assert!(begin.elapsed() < LIMIT, "no session: {}", new.show());
    }
    let said = new.ask("tty; echo $((6*7)); readlink /proc/$$/fd/255");
    assert!(said.contains("42") && said.matches(&new.tty).count() >= 2, "{said}");
    // Job control works on the new terminal.
    new.type_in("sleep 100\r");
    new.until_foreground("sleep");
    new.type_in("\x1a");
    new.wait("Stopped");
    assert!(new.ask("bg; jobs").contains("Running"));
}

impl Screen {
    /// Waits until the command of the foreground process group begins with this text.
    #[track_caller]
    fn until_foreground(&self, command: &str) {
        let begin = Instant::now();
        while !self.show()["command"].as_str().is_some_and(|it| it.starts_with(command)) {
            assert!(begin.elapsed() < LIMIT, "{}", self.show());
        }
    }
}

#[test]
fn show_prints_the_session_of_a_terminal_and_its_unusual_settings() {
    needs!(which("bash").is_some(), "bash is missing");
    let mut screen = Screen::start(&["bash", "--norc", "--noediting"]);
    screen.ask("stty tostop erase ^H min 3; sleep 1000 & sleep 1000 < /dev/null & true");
    screen.type_in("sleep 1001\r");
    screen.until_foreground("sleep 1001");
    let shown = screen.show();
    assert_eq!(shown["terminal"], screen.tty.as_str());
    assert_eq!(shown["leader"], "bash");
    assert_eq!(shown["size"]["rows"], 20);
    let settings: Vec<&str> =
        shown["settings"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
    assert_eq!(settings, ["tostop", "erase ^H"]);
    let holders = shown["holders"].as_array().unwrap();
    let members = holders.iter().filter(|it| it["member"] == true).count();
    assert_eq!(members, 4, "{shown}");
    let foreground = holders.iter().filter(|it| it["foreground"] == true).count();
    assert_eq!(foreground, 1);
    // The suite has the master open.
    let us = i64::from(std::process::id());
    let masters = |it: &&Value| it["masters"].as_array().is_some_and(|it| !it.is_empty());
    assert!(holders.iter().filter(masters).all(|it| it["pid"] == us), "{shown}");
    // The same for a process, and as text.
    assert_eq!(shown_session(&screen.leader()), shown["session"]);
    let text = pipeline(&[&["ttyctl", "show", &screen.tty]]).quiet().text();
    for word in ["session", "bash", "sleep 1001", "20 rows, 70 columns", "tostop", "master"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

fn shown_session(which: &str) -> Value {
    shown(which)["session"].clone()
}

#[test]
fn line_settings_are_saved_and_loaded_also_from_a_scan() {
    needs!(which("vi").is_some(), "vi is missing");
    let scratch = Scratch::new();
    let (file, other) = (scratch.file("a.fdi"), Screen::new());
    let mut vi = Screen::start(&["vi", "-u", "NONE", &scratch.file("text")]);
    vi.until(libc::ICANON, false);
    vi.type_in("ione\x1b");
    // The settings of the terminal of vi, from a scan, are loaded on another terminal.
    scan(&vi.leader(), &file);
    pipeline(&[&["fdimg", "read", &file], &["ttyctl", "load", &other.tty]]).quiet();
    assert!(!other.has(libc::ICANON) && !other.has(libc::ECHO));
    let was = pipeline(&[&["ttyctl", "show", "-J", &vi.tty]]).text();
    let was: Value = serde_json::from_str(&was).unwrap();
    assert_eq!(was["settings"], other.show()["settings"]);
    assert_eq!(was["size"], other.show()["size"]);
    // vi was not disturbed.
    vi.type_in("atwo\x1b:wq\r");
    assert!(vi.ends().success());
    assert_eq!(fs::read_to_string(scratch.file("text")).unwrap(), "onetwo\n");

    let saved = scratch.file("b.fdi");
    pipeline(&[&["ttyctl", "save", &other.tty], &["fdimg", "write", &saved]]).quiet();
    pipeline(&[&["fdimg", "verify", &saved]]).quiet();
    let third = Screen::new();
    pipeline(&[&["fdimg", "read", &saved], &["ttyctl", "load", &third.tty]]).quiet();
    assert_eq!(third.show()["settings"], other.show()["settings"]);
    assert_eq!(show(&saved)["descriptors"][0]["name"], other.tty.as_str());
}

#[test]
fn a_python_prompt_is_restored_on_another_terminal() {
    needs!(which("python3").is_some(), "python3 is missing");
    let scratch = Scratch::new();
    let (file, new) = (scratch.file("a.fdi"), Screen::new());
    let mut old = Screen::start(&["python3", "-q"]);
    old.wait(">>> ");
    old.type_in("6*7\r");
    old.wait("42");
    let sid = old.leader();
    scan(&sid, &file);
    old.type_in("40+3\r");
    old.wait("43");
    let tool = crate::harness::tool("fdrestore").to_string_lossy().into_owned();
    let ttyctl = crate::harness::tool("ttyctl").to_string_lossy().into_owned();
    let script =
        format!("{ttyctl} retarget {} < {file} | setsid {tool} --allow tty -- python3 -q", new.tty);
    let mut new = new;
    new.child = Some(command(&["sh", "-c", &script]).spawn().unwrap());
    new.wait(">>> ");
    new.type_in("import os; os.ttyname(0), os.tcgetpgrp(0) == os.getpgrp()\r");
    let tty = new.tty.clone();
    new.wait(&format!("('{tty}', True)"));
    new.type_in("exit()\r");
}

/// The server of tmux(1) at a socket, which is a daemon. It is ended when this is dropped.
struct TmuxServer<'a>(&'a str);

impl Drop for TmuxServer<'_> {
    fn drop(&mut self) {
        pipeline(&[&["tmux", "-S", self.0, "kill-server"]]);
    }
}

#[test]
fn a_pane_of_tmux_is_shown_and_both_ends_are_one_object_in_the_image() {
    needs!(which("tmux").is_some(), "tmux is missing");
    let scratch = Scratch::new();
    let socket = scratch.file("socket");
    let tmux = |words: &[&str]| {
        pipeline(&[&[&["tmux", "-f", "/dev/null", "-S", &socket], words].concat()])
    };
    let _server = TmuxServer(&socket);
    tmux(&["new-session", "-d", "-x", "60", "-y", "15", "bash --norc --noediting"]).ok();
    let tty = tmux(&["display-message", "-p", "#{pane_tty}"]).ok().text().trim().to_owned();
    let server = tmux(&["display-message", "-p", "#{pid}"]).ok().text().trim().to_owned();
    tmux(&["send-keys", "less /etc/passwd", "Enter"]).ok();
    let begin = Instant::now();
    let shown = loop {
        let shown = shown(&tty);
        if shown["command"].as_str().is_some_and(|it| it.starts_with("less")) {
            break shown;
        }
        assert!(begin.elapsed() < LIMIT, "{shown}");
    };
    assert_eq!(shown["size"]["columns"], 60);
    let holder = |it: &&Value| it["pid"].as_i64() == server.parse().ok();
    let holders = shown["holders"].as_array().unwrap();
    let master = holders.iter().find(holder).expect("the server");
    assert_eq!(master["masters"].as_array().unwrap().len(), 1, "{shown}");
    // In an image of the whole tree both ends are one object. The contents of the pane's terminal
    // are not taken out.
    let file = scratch.file("a.fdi");
    pipeline(&[&["fdscan", "-t", "-F", "pty", &server], &["fdimg", "write", &file]]).ok();
    let image = crate::harness::show(&file);
    let objects: std::collections::BTreeSet<_> = image["descriptors"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|it| it["body"]["hung"] == false)
        .map(|it| it["object"].to_string())
        .collect();
    assert_eq!(objects.len(), 1, "{image:#}");
    // less still works: it has neither lost a key nor received a signal.
    tmux(&["send-keys", "q"]).ok();
    tmux(&["send-keys", "echo $((6*7))", "Enter"]).ok();
    let begin = Instant::now();
    while !tmux(&["capture-pane", "-p"]).text().contains("42") {
        assert!(begin.elapsed() < LIMIT, "{}", tmux(&["capture-pane", "-p"]).text());
    }
}

#[test]
fn a_shell_with_jobs_is_scanned_under_script_without_disturbance() {
    needs!(which("script").is_some(), "script is missing");
    let scratch = Scratch::new();
    let log = scratch.file("typescript");
    let mut outer = Screen::start(&["script", "-q", "-c", "exec bash --norc --noediting", &log]);
    outer.type_in("sleep 1000 &\r");
    outer.wait("[1]");
    let shell = outer.ask("echo $$");
    let shell = shell.split_whitespace().last().expect("a pid");
    outer.type_in("sleep 2000\r");
    wait_for_foreground(shell, "sleep");
    outer.type_in("\x1a");
    outer.wait("Stopped");
    let tty = outer.ask("tty").split_whitespace().last().unwrap().to_owned();
    let inner = shown(&tty);
    assert_eq!(inner["leader"], "bash");
    assert_eq!(inner["holders"].as_array().unwrap().len(), 4, "{inner}");
    let file = scratch.file("a.fdi");
    pipeline(&[&["fdscan", "-t", "--freeze", &outer.leader()], &["fdimg", "write", &file]]).ok();
    let image = show(&file);
    let sessions: std::collections::BTreeSet<String> =
        image["tasks"].as_array().unwrap().iter().map(|it| it["terminal"].to_string()).collect();
    assert_eq!(sessions.len(), 2, "{image:#}");
    // The terminal outside the image is replaced; the pseudoterminal with both ends in the image is
    // not.
    let new = Screen::new();
    let moved = scratch.file("b.fdi");
    pipeline(&[
        &["fdimg", "read", &file],
        &["ttyctl", "retarget", &new.tty],
        &["fdimg", "write", &moved],
    ])
    .quiet();
    let names: Vec<String> = show(&moved)["descriptors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["name"].as_str().unwrap().to_owned())
        .collect();
    assert!(names.contains(&tty) && names.contains(&new.tty), "{names:?}");
    assert!(!names.contains(&outer.tty), "{names:?}");
    // The shell still runs with both jobs.
    let jobs = outer.ask("jobs");
    assert!(jobs.contains("Running") && jobs.contains("Stopped"), "{jobs}");
}

/// A python program that has the master of a terminal on which a shell with job control runs, types
/// to the shell, and prints its process id.
fn emulator(types: &str) -> String {
    let before = "
import os, pty
pid, master = pty.fork()
if pid == 0:
    os.environ['PS1'] = '$ '
    os.execvp('bash', ['bash', '--norc', '--noprofile', '--noediting', '-i'])
seen = b''
def until(text):
    global seen
    while text not in seen: seen += os.read(master, 4096)
    seen = seen.split(text, 1)[1]
until(b'$ ')";
    let after = "
print(pid, flush=True)
for fd in (1, 2): os.dup2(os.open('/dev/null', os.O_WRONLY), fd)
os.read(os.pipe()[0], 1)";
    [before, types, after].concat()
}

/// Types a job that is stopped and a job that runs in the background.
const JOBS: &str = "
for line, answer in ((b'stty cols 91 rows 33 erase ^H\\n', b'$ '), (b'sleep 1001\\n', b'1001'),
                     (b'\x1a', b'Stopped'), (b'sleep 1002 | sleep 1003 &\\n', b'[2]'),
                     (b'stty -echo; printf rea%sy d\\n', b'ready')):
    if line == b'\x1a':
        # Before its exec the job ignores it, as the shell does.
        while open(f'/proc/{os.tcgetpgrp(master)}/comm').read() != 'sleep\\n': pass
    os.write(master, line); until(answer)
until(b'$ ')";

/// Fails unless the processes of a session have the process groups and states of the jobs of the
/// shell.
#[track_caller]
fn has_its_jobs(sid: i32) {
    let field = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let rest = stat.rsplit(") ").next().unwrap_or_default().to_owned();
        let words: Vec<String> = rest.split(' ').map(str::to_owned).collect();
        (words[0].clone(), words[2].clone(), words[3].clone(), words[5].clone())
    };
    let begin = Instant::now();
    loop {
        let mut jobs: Vec<i32> = descendants(sid);
        jobs.sort_unstable();
        let told: Vec<_> = jobs.iter().map(|&pid| field(pid)).collect();
        let state = |state: &str| told.iter().filter(|it| it.0 == state).count();
        let groups: std::collections::BTreeSet<&String> = told.iter().map(|it| &it.1).collect();
        // A job that its shell has just forked still has to execute its program.
        let sleep = [libc::SYS_nanosleep, libc::SYS_clock_nanosleep].map(|call| call.to_string());
        let asleep = |pid: &i32| {
            let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
            call.split(' ').next().is_some_and(|number| sleep.iter().any(|it| it == number))
        };
        let running = jobs.iter().zip(&told).filter(|(_, it)| it.0 != "T");
        let whole = told.len() == 3
            && state("T") == 1
            && state("S") == 2
            && groups.len() == 2
            && running.map(|(pid, _)| pid).all(asleep);
        if whole && told.iter().all(|it| it.2 == sid.to_string() && it.3 == sid.to_string()) {
            return;
        }
        if begin.elapsed() >= LIMIT {
            let status = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/status"));
            let all: Vec<String> = jobs.iter().filter_map(|pid| status(pid).ok()).collect();
            panic!("the jobs of {sid} are {told:?}: {}", all.concat());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A restored tree that runs on a terminal whose master is descriptor 3 of the first task. A relay
/// between this terminal and two pipes runs in place of that task.
struct Relayed {
    child: Child,
    stdin: std::process::ChildStdin,
    stdout: std::process::ChildStdout,
    seen: String,
}

impl Relayed {
    fn restore(file: &str) -> Relayed {
        let relay = "import os, select
def read(fd):
    # When its last slave is closed a master fails with EIO.
    try: return os.read(fd, 4096)
    except OSError: return b''
while True:
    for fd in select.select([0, 3], [], [])[0]:
        data = read(fd)
        if not data: raise SystemExit
        os.write({0: 3, 3: 1}[fd], data)";
        let restore = ["fdrestore", "--tree", "--respawn", "--inherit", "0=0", "--inherit", "1=1"];
        let words = [&restore[..], &["-i", file, "--", "python3", "-c", relay]].concat();
        let mut child = command(&[&["mkfd", "exec", "--"], &words[..]].concat())
            .env("PS1", "$ ")
            .env("TERM", "xterm")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Relayed { child, stdin, stdout, seen: String::new() }
    }

    fn type_in(&mut self, text: &str) {
        self.stdin.write_all(text.as_bytes()).expect("type");
    }

    /// Reads until this text has appeared since the last wait, and gives all output since then.
    #[track_caller]
    fn wait(&mut self, text: &str) -> String {
        let mut buffer = [0; 4096];
        while !self.seen.contains(text) {
            let mut polled = [PollFd::new(self.stdout.as_fd(), PollFlags::POLLIN)];
            let limit = PollTimeout::try_from(LIMIT).expect("a limit");
            let comes = poll(&mut polled, limit).expect("poll") > 0;
            assert!(comes, "{text:?} is not said, but {:?}", self.seen);
            let got = self.stdout.read(&mut buffer).unwrap();
            assert!(got > 0, "{text:?} is not said, but {:?}", self.seen);
            self.seen += &String::from_utf8_lossy(&buffer[..got]);
        }
        std::mem::take(&mut self.seen)
    }
}

impl Drop for Relayed {
    fn drop(&mut self) {
        kill_descendants(self.child.id() as i32);
        let _ = self.child.wait();
    }
}

#[test]
fn a_shell_and_its_jobs_run_again_on_a_terminal_restored_with_its_master() {
    needs!(which("python3").is_some() && which("bash").is_some(), "python3 or bash is missing");
    let scratch = Scratch::new();
    let target = Target::program(&["python3", "-c", &emulator(JOBS)]);
    has_its_jobs(target.said.parse().unwrap());
    // It opens /dev/null after its line.
    crate::harness::settled(&target.pid);
    let file = scratch.file("a.fdi");
    pipeline(&[&["fdscan", "-t", &target.pid], &["fdimg", "write", &file]]).quiet();
    kill_descendants(target.pid.parse().unwrap());
    drop(target);
    let mut relayed = Relayed::restore(&file);
    relayed.wait("$ ");
    relayed.type_in("stty size; stty -a | grep -o -e ' -echo ' -e 'erase = ..'; echo $$ en''d\n");
    let said = relayed.wait("end\r\n");
    assert!(said.contains("33 91\r\n") && said.contains("erase = ^H"), "{said}");
    assert!(said.contains(" -echo "), "{said}");
    let words: Vec<&str> = said.split_whitespace().collect();
    let end = words.iter().rposition(|&word| word == "end").unwrap();
    let shell = words[end - 1].parse().unwrap();
    // The shell is in the foreground, since otherwise stty would have been stopped.
    has_its_jobs(shell);
    // The shell has job control, and a signal from the keyboard goes to the job alone.
    relayed.type_in("sleep 1000\n");
    wait_for_foreground(&shell.to_string(), "sleep");
    relayed.type_in("\x03echo still the''re\n");
    relayed.wait("still there");
}

/// Types a job, and waits until its shell has given it the terminal and its two cats run.
fn busy(job: &str) -> String {
    let types = "
os.write(master, JOB + b'\\n')
until(JOB)
def names():
    children = open(f'/proc/{pid}/task/{pid}/children').read().split()
    # The first of them may have ended meanwhile.
    try: return [open(f'/proc/{child}/comm').read() for child in children]
    except OSError: return []
while os.tcgetpgrp(master) == pid or names() != ['cat\\n', 'cat\\n']: pass";
    types.replace("JOB", &format!("b'{job}'"))
}

#[test]
fn a_shell_runs_after_its_foreground_job_has_ended_or_stopped() {
    needs!(which("python3").is_some() && which("bash").is_some(), "python3 or bash is missing");
    let scratch = Scratch::new();
    let target = Target::program(&["python3", "-c", &emulator(&busy("cat | cat"))]);
    // The emulator names its shell before it has opened all of its descriptors.
    crate::harness::settled(&target.pid);
    let (file, shell) = (scratch.file("a.fdi"), scratch.file("b.fdi"));
    pipeline(&[&["fdscan", "-t", &target.pid], &["fdimg", "write", &file]]).quiet();
    pipeline(&[&["fdscan", "-t", &target.said], &["fdimg", "write", &shell]]).quiet();
    let link = fs::read_link(format!("/proc/{}/fd/0", target.said)).unwrap();
    kill_descendants(target.pid.parse().unwrap());
    drop(target);
    // A job that fdrestore holds would never end, so COMMAND does not wait for it.
    let mut held = Screen::new();
    let key = format!("{}=0", link.display());
    let hold = ["fdrestore", "--tree", "-i", &shell, "--inherit", &key, "--", "echo", "run"];
    let slave = held.slave.as_ref().unwrap().try_clone().unwrap();
    held.child = Some(command(&hold).stdin(slave).spawn().unwrap());
    held.wait("run");
    drop(held);
    waits_for_its_job(&file);
}

#[test]
fn a_shell_runs_after_its_foreground_job_without_a_leader_has_ended_or_stopped() {
    needs!(which("python3").is_some() && which("bash").is_some(), "python3 or bash is missing");
    let scratch = Scratch::new();
    let target = Target::program(&["python3", "-c", &emulator(&busy("true | cat 0<&2 | cat"))]);
    // The emulator names its shell before it has opened all of its descriptors.
    crate::harness::settled(&target.pid);
    let file = scratch.file("a.fdi");
    pipeline(&[&["fdscan", "-t", &target.pid], &["fdimg", "write", &file]]).quiet();
    kill_descendants(target.pid.parse().unwrap());
    drop(target);
    waits_for_its_job(&file);
}

/// Fails unless a restored shell waits for its foreground job, two cats, three times: until the job
/// has read to its end, is interrupted, is stopped.
#[track_caller]
fn waits_for_its_job(file: &str) {
    for (end, jobs) in [("\x04", 0), ("\x03", 0), ("\x1a", 2)] {
        let mut relayed = Relayed::restore(file);
        // The job has the terminal, and the shell does not read from it.
        relayed.type_in("hello\n");
        let said = relayed.wait("hello\r\nhello\r\n");
        assert!(!said.contains('$'), "{said}");
        relayed.type_in(end);
        relayed.wait("$ ");
        relayed.type_in("echo $$ en''d\n");
        let said = relayed.wait("end\r\n");
        assert!(!said.contains("no job control"), "{said}");
        let words: Vec<&str> = said.split_whitespace().collect();
        let last = words.iter().rposition(|&word| word == "end").unwrap();
        let shell: i32 = words[last - 1].parse().unwrap();
        assert_eq!(descendants(shell).len(), jobs, "{said}");
        // The new shell has job control.
        relayed.type_in("sleep 1000\n");
        wait_for_foreground(&shell.to_string(), "sleep");
        relayed.type_in("\x03echo still the''re\n");
        relayed.wait("still there");
    }
}

/// SIGHUP and SIGCONT: signal n is bit n - 1.
const HANG_UP: u64 = 1 | 1 << 17;

/// Which of these signals are pending, from /proc/PID/status of a process that blocks both.
#[track_caller]
fn hang_ups(status: &str) -> u64 {
    let mask = |key: &str| {
        let line = status.lines().find_map(|line| line.trim().strip_prefix(key)).expect(status);
        u64::from_str_radix(line.trim(), 16).expect("a mask") & HANG_UP
    };
    assert_eq!(mask("SigBlk:"), HANG_UP, "{status}");
    mask("SigPnd:") | mask("ShdPnd:")
}

#[track_caller]
fn hang_ups_of(pid: &str) -> u64 {
    hang_ups(&fs::read_to_string(format!("/proc/{pid}/status")).expect("a status"))
}

/// The command line of a tool that leads a session of its own and blocks both signals. With `own` a
/// SIGHUP is pending already.
fn blocked(own: bool, words: &[&str]) -> Vec<String> {
    let script = "
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGCONT})
if sys.argv[1] == 'own': os.kill(os.getpid(), signal.SIGHUP)
os.execvp(sys.argv[2], sys.argv[2:])
";
    let tool = crate::harness::tool(words[0]).display().to_string();
    let own = if own { "own" } else { "none" };
    let python = ["setsid", "--wait", "python3", "-c", script, own, &tool];
    python.iter().chain(&words[1..]).map(|&word| word.to_owned()).collect()
}

/// A session leader that blocks both signals, with unread input and output on its terminal, and a
/// child that leads another session and has only the master of its terminal open. Both have a slave
/// that has hung up.
const HUNG: &str = "
import fcntl, os, signal, termios, time
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGCONT})
if os.fork(): time.sleep(1000)
os.setsid()
m, s = os.openpty(); fcntl.ioctl(s, termios.TIOCSCTTY, 0)
os.write(m, b'begun'); os.write(s, b'said')
hm, hs = os.openpty(); os.close(hm)
r, w = os.pipe()
child = os.fork()
if child == 0:
    os.setsid()
    m2, s2 = os.openpty(); fcntl.ioctl(s2, termios.TIOCSCTTY, 0); os.close(s2)
    os.write(w, b'x')
    time.sleep(1000)
os.read(r, 1)
os.close(r); os.close(w)
print(os.getpid(), child, flush=True)
time.sleep(1000)
";

/// The process ids of the two session leaders of [`HUNG`].
struct Leaders(Vec<String>);

impl Leaders {
    fn start() -> Leaders {
        let target = Target::program(&["python3", "-c", HUNG]);
        Leaders(target.said.split_whitespace().map(str::to_owned).collect())
    }

    /// Scans both with the contents of their terminals, and gives the signals that are pending
    /// then.
    #[track_caller]
    fn scan(&self, file: &str) -> Vec<u64> {
        let scan = ["fdscan", "--freeze", "--data", "-t", "-F", "pty", &self.0[0]];
        pipeline(&[&scan, &["fdimg", "write", file]]).quiet();
        self.0.iter().map(|pid| hang_ups_of(pid)).collect()
    }
}

impl Drop for Leaders {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL);
        }
    }
}

#[test]
fn no_process_gets_sighup_from_a_terminal_that_fdkit_closes() {
    may!(rights::all_processes());
    needs!(which("python3").is_some(), "python3 is missing");
    let scratch = Scratch::new();
    let file = scratch.file("a.fdi");
    let leaders = Leaders::start();
    assert_eq!(leaders.scan(&file), [0, 0]);
    for task in &leaders.0 {
        let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2", "--task", task, "--"];
        let words = blocked(false, &[&restore[..], &["cat", "/proc/self/status"]].concat());
        let ran = pipeline(&[&words.iter().map(String::as_str).collect::<Vec<_>>()]).ok();
        assert_eq!(hang_ups(&ran.text()), 0, "{}", ran.whole());
    }
    let words = blocked(false, &["fdrestore", "--tree", "-i", &file]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut held = Target::ready(&words).unwrap();
    let lines = [held.said.clone(), held.line()];
    for line in &lines {
        let pid = line.split_whitespace().nth(1).expect("OLD NEW");
        assert_eq!(hang_ups_of(pid), 0, "{line}");
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let terminal = stat.rsplit(") ").next().unwrap().split(' ').nth(4).unwrap().to_owned();
        assert_ne!(terminal, "0", "{line}: it has no controlling terminal");
    }
    // The second ends with the first, its parent.
    for line in lines {
        let pid = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

#[test]
fn a_pending_sighup_of_a_process_is_kept() {
    may!(rights::all_processes());
    needs!(which("python3").is_some(), "python3 is missing");
    let scratch = Scratch::new();
    let file = scratch.file("a.fdi");
    let leaders = Leaders::start();
    kill(Pid::from_raw(leaders.0[0].parse().unwrap()), Signal::SIGHUP).unwrap();
    assert_eq!(leaders.scan(&file), [1, 0]);
    let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2", "--"];
    let words = blocked(true, &[&restore[..], &["cat", "/proc/self/status"]].concat());
    let ran = pipeline(&[&words.iter().map(String::as_str).collect::<Vec<_>>()]).ok();
    assert_eq!(hang_ups(&ran.text()), 1, "{}", ran.whole());
    // COMMAND of `open` runs in a child here, to which ttyctl forwards its pending SIGHUP.
    let mut screen = Screen::new();
    let script = "import signal; signal.sigwait([signal.SIGHUP]); print('HUP')";
    let words = blocked(true, &["ttyctl", "open", &screen.tty, "--", "python3", "-c", script]);
    pipeline(&[&words.iter().map(String::as_str).collect::<Vec<_>>()]).ok();
    screen.wait("HUP\r\n");
}

#[test]
fn a_shell_and_its_jobs_run_again_on_the_terminal_of_the_caller() {
    needs!(which("python3").is_some() && which("bash").is_some(), "python3 or bash is missing");
    let scratch = Scratch::new();
    let target = Target::program(&["python3", "-c", &emulator(JOBS)]);
    let shell = target.said.clone();
    has_its_jobs(shell.parse().unwrap());
    let (file, moved) = (scratch.file("a.fdi"), scratch.file("b.fdi"));
    pipeline(&[&["fdscan", "-t", &shell], &["fdimg", "write", &file]]).quiet();
    let link = fs::read_link(format!("/proc/{shell}/fd/0")).unwrap().display().to_string();
    kill_descendants(target.pid.parse().unwrap());
    drop(target);
    let restore = ["fdrestore", "--allow", "tty", "--tree", "--respawn", "-i"];
    pipeline(&[&[&restore[..], &[&file]].concat()]).refuses(6, &[&link, "--inherit"]);
    for named in [true, false] {
        let mut screen = Screen::new();
        let key = format!("{link}=0");
        let (words, stdin) = if named {
            let retarget = ["ttyctl", "retarget", &screen.tty];
            pipeline(&[&["fdimg", "read", &file], &retarget, &["fdimg", "write", &moved]]).quiet();
            let null = fs::File::open("/dev/null").unwrap();
            ([&restore[..], &[&moved]].concat(), OwnedFd::from(null))
        } else {
            let slave = screen.slave.as_ref().unwrap().try_clone().unwrap();
            ([&restore[..], &[&file, "--inherit", &key]].concat(), slave)
        };
        screen.child = Some(command(&words).env("PS1", "$ ").stdin(stdin).spawn().unwrap());
        screen.wait("$ ");
        let said = screen.ask("stty -a | grep -o -e ' -echo ' -e 'erase = ..'; echo $$");
        if named {
            assert!(said.contains(" -echo ") && said.contains("erase = ^H"), "{said}");
        }
        let shell = screen.leader();
        assert!(said.contains(&shell), "{said}");
        assert_eq!(screen.show()["leader"], "bash");
        has_its_jobs(shell.parse().unwrap());
        let jobs = screen.ask("sleep 1000 & jobs");
        assert!(jobs.contains("Running"), "{jobs}");
    }
}

#[test]
fn a_shell_and_its_jobs_run_again_on_the_terminal_of_the_shell_that_runs_fdrestore() {
    needs!(which("python3").is_some() && which("bash").is_some(), "python3 or bash is missing");
    let scratch = Scratch::new();
    let target = Target::program(&["python3", "-c", &emulator(JOBS)]);
    let shell = target.said.clone();
    has_its_jobs(shell.parse().unwrap());
    let file = scratch.file("a.fdi");
    pipeline(&[&["fdscan", "-t", &shell], &["fdimg", "write", &file]]).quiet();
    let link = fs::read_link(format!("/proc/{shell}/fd/0")).unwrap().display().to_string();
    kill_descendants(target.pid.parse().unwrap());
    drop(target);
    let [ttyctl, fdrestore] = ["ttyctl", "fdrestore"].map(|name| tool(name).display().to_string());
    let restore = format!("{fdrestore} --allow tty --tree --respawn");
    let mut screen = Screen::start(&["bash", "--norc", "--noediting"]);
    let outer = screen.leader();
    let plan = screen.ask(&format!("{ttyctl} retarget < {file} | {restore} -n | grep control"));
    assert!(plan.contains("caller's own") && !plan.contains("none"), "{plan}");
    for line in [
        format!("{ttyctl} retarget < {file} | PS1='re''> ' {restore}"),
        format!("PS1='re''> ' {restore} -i {file} --inherit {link}=0 <> $(tty)"),
    ] {
        screen.type_in(&format!("{line}\r"));
        screen.wait("re> ");
        let said = screen.ask("stty -a | grep -o -e 'erase = ..'; echo $$");
        let inner = said.split_whitespace().last().unwrap().to_owned();
        assert_ne!(inner, outer, "{said}");
        assert_eq!(screen.leader(), outer);
        assert!(screen.ask("sleep 1000 & jobs").contains("Running"));
        // The shell makes its jobs the foreground process group, and itself again afterwards.
        screen.type_in("sleep 1001\r");
        screen.until_foreground("sleep 1001");
        screen.type_in("\x1a");
        screen.wait("Stopped");
        assert!(screen.ask("kill %1 %2; wait; echo al''one").contains("alone"));
        // The restored jobs are not in the job table of the new shell, which would leave them running.
        kill_descendants(inner.parse().unwrap());
        screen.type_in("exit\r");
        assert!(screen.ask("echo ba''ck $$").contains(&format!("back {outer}")));
        screen.until_foreground("bash --norc --noediting");
        assert!(screen.ask("stty -a | grep -o -e ' echo '").contains(" echo "));
    }
}

/// Scans a program with its terminal to `file`, types to it, and waits for its end. Gives the line
/// settings at the scan.
#[track_caller]
fn scan_with_terminal(mut screen: Screen, file: &str, typed: &str) -> Value {
    let size = libc::winsize { ws_row: 31, ws_col: 81, ws_xpixel: 0, ws_ypixel: 0 };
    tty::set_winsize(&screen.master, &size).unwrap();
    screen.until(libc::ICANON, false);
    let leader = screen.leader();
    crate::harness::settled(&leader);
    let was = screen.show();
    assert!(!screen.has(libc::ECHO) && was["size"]["rows"] == 31);
    pipeline(&[&["fdscan", "-t", "--data", &leader], &["fdimg", "write", file]]).quiet();
    assert_eq!(screen.show(), was);
    // The program still gets the input, so it has the terminal as before; at its end it sets the
    // line settings that it found at its start.
    screen.type_in(typed);
    assert!(screen.ends().success());
    screen.until(libc::ICANON, true);
    assert!(screen.has(libc::ECHO));
    was["settings"].clone()
}

/// Restores the image of a session leader on another terminal: first without running the program,
/// to check the terminal before a program changes it, then with the program. The size is that of
/// the other terminal.
#[track_caller]
fn on_another_terminal(file: &str, moved: &str, was: &Value) -> Screen {
    let restore = |screen: &mut Screen, option: &[&str]| {
        pipeline(&[
            &["fdimg", "read", file],
            &["ttyctl", "retarget", &screen.tty],
            &["fdimg", "write", moved],
        ])
        .quiet();
        let words = [&["fdrestore", "--allow", "tty", "--tree", "-i", moved], option].concat();
        let null = std::process::Stdio::null;
        let child = command(&words).env("TERM", "xterm").stdin(null()).stdout(null()).spawn();
        screen.child = Some(child.unwrap());
        screen.leader()
    };
    let mut held = Screen::new();
    assert_ne!(&held.show()["settings"], was);
    let leader = restore(&mut held, &[]);
    held.until(libc::ICANON, false);
    held.until_foreground("fdrestore: holding");
    let shown = held.show();
    assert_eq!((&shown["settings"], &shown["size"]["rows"]), (was, &20.into()));
    let leads = |key: &str| shown[key].as_i64() == leader.parse().ok();
    assert!(leads("session") && leads("foreground"), "{shown}");
    // Input that is typed now is queued and not echoed.
    held.type_in("x");
    let mut polled = [PollFd::new(held.master.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut polled, 200_u16), Ok(0), "an echo");
    drop(held);
    let mut again = Screen::new();
    restore(&mut again, &["--respawn"]);
    again
}

#[test]
fn vi_is_restored_on_another_terminal_with_its_line_settings() {
    needs!(which("vi").is_some(), "vi is missing");
    let scratch = Scratch::new();
    let (file, moved, text) = (scratch.file("a.fdi"), scratch.file("b.fdi"), scratch.file("text"));
    let written = || fs::read_to_string(&text).unwrap_or_default();
    // vi runs without a swap file, which the first vi would remove.
    let mut vi = Screen::start(&["vi", "-u", "NONE", "-n", &text]);
    vi.until(libc::ICANON, false);
    vi.type_in("ione");
    vi.wait("one");
    assert_eq!(written(), "");
    let was = scan_with_terminal(vi, &file, "two\x1b:wq\r");
    assert_eq!(written(), "onetwo\n");

    let mut vi = on_another_terminal(&file, &moved, &was);
    vi.wait("onetwo");
    vi.until_foreground("vi -u NONE");
    vi.type_in("Athree\x1b:wq\r");
    assert!(vi.ends().success());
    assert_eq!(written(), "onetwothree\n");
    // The second vi was started on a terminal in raw mode, and restores that mode at its end.
    assert_eq!(vi.show()["settings"], was);
}

#[test]
fn less_is_restored_on_another_terminal_with_its_line_settings() {
    needs!(which("less").is_some(), "less is missing");
    let scratch = Scratch::new();
    let (file, moved, text) = (scratch.file("a.fdi"), scratch.file("b.fdi"), scratch.file("text"));
    let lines: Vec<String> = (1..200).map(|line| format!("line {line}.\n")).collect();
    fs::write(&text, lines.concat()).unwrap();
    let mut less = Screen::start(&["less", &text]);
    less.wait("line 19.");
    less.type_in(" ");
    less.wait("line 38.");
    let was = scan_with_terminal(less, &file, " q");

    let mut less = on_another_terminal(&file, &moved, &was);
    less.wait("line 19.");
    less.until_foreground("less");
    less.type_in(" ");
    less.wait("line 38.");
    less.type_in("q");
    assert!(less.ends().success());
    assert_eq!(less.show()["settings"], was);
}

/// A program on a terminal of 31 rows and 81 columns, whose master is descriptor 3 of a python
/// program.
const WINDOW: &str = "
import fcntl, os, pty, struct, sys, termios
pid, master = pty.fork()
if pid == 0: os.execvp(sys.argv[1], sys.argv[1:])
while os.tcgetpgrp(master) != pid: pass # its own terminal is the child's doing
fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack('HHHH', 31, 81, 0, 0))
print(pid, flush=True)
for fd in (0, 1, 2): os.dup2(os.open('/dev/null', os.O_RDWR), fd)
while True: os.read(master, 4096)
";

#[test]
fn a_raw_terminal_is_restored_with_its_size_if_its_master_is() {
    needs!(which("python3").is_some() && which("vi").is_some(), "python3 or vi is missing");
    let scratch = Scratch::new();
    let (file, text) = (scratch.file("a.fdi"), scratch.file("text"));
    let window = ["env", "TERM=xterm", "python3", "-c", WINDOW, "vi", "-u", "NONE", "-n", &text];
    let target = Target::program(&window);
    let vi = target.said.clone();
    let begin = Instant::now();
    let looks = |which: &str| {
        let shown = shown(which);
        serde_json::json!([shown["settings"], shown["size"]])
    };
    while !looks(&vi).to_string().contains("-icanon") {
        assert!(begin.elapsed() < LIMIT, "{}", shown(&vi));
    }
    crate::harness::settled(&vi);
    let was = looks(&vi);
    assert_eq!(was[1]["rows"], 31);
    pipeline(&[&["fdscan", "-t", "--data", &target.pid], &["fdimg", "write", &file]]).quiet();
    kill_descendants(target.pid.parse().unwrap());
    drop(target);
    // The tree is held, so no program has changed the terminal after fdrestore.
    let mut held = command(&["fdrestore", "--tree", "-i", &file])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufReader::new(held.stdout.take().unwrap()).lines();
    let new = lines.map_while(Result::ok).find_map(|line| {
        let (old, new) = line.split_once(' ')?;
        (old == vi).then(|| new.to_owned())
    });
    let new = new.expect("its new pid");
    assert_eq!(looks(&new), was);
    assert_eq!(
        [&shown(&new)["session"], &shown(&new)["foreground"]].map(Value::as_i64),
        [new.parse().ok(); 2]
    );
    kill(Pid::from_raw(held.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(held.wait().unwrap().code(), Some(143));

    let mut relayed = Relayed::restore(&file);
    // vi uses all rows: the last but one shows a tilde, as rows after the end of the text do.
    relayed.wait("\x1b[30;1H~");
    relayed.type_in("ione\x1b:wq\r");
    assert!(relayed.child.wait().unwrap().success());
    assert_eq!(fs::read_to_string(&text).unwrap(), "one\n");
}

#[test]
fn open_runs_a_command_with_a_controlling_terminal() {
    let mut screen = Screen::new();
    let script = "tty; stty size; read a b c d pg sid tty fg rest < /proc/$$/stat; \
                  test $fg = $$ && echo in front; exit 7";
    let words = ["ttyctl", "open", &screen.tty, "--", "sh", "-c", script];
    let ran = pipeline(&[&words]);
    assert_eq!(ran.status(0), 7, "{}", ran.whole());
    screen.wait(&screen.tty.clone());
    screen.wait("20 70");
    screen.wait("in front");
    // `open` works for a process that leads its process group, as a job of a shell does, and for
    // one that does not.
    let ttyctl = crate::harness::tool("ttyctl").to_string_lossy().into_owned();
    let line = format!("{ttyctl} open {} -- sh -c 'exit 9'; exit $?", screen.tty);
    assert_eq!(pipeline(&[&["sh", "-c", &line]]).status(0), 9);
    pipeline(&[&["ttyctl", "open", &screen.tty, "--", "/nowhere"]]).refuses(127, &["/nowhere"]);
}

#[test]
fn open_new_copies_both_ways_and_restores_the_callers_terminal() {
    needs!(which("bash").is_some(), "bash is missing");
    let ttyctl = crate::harness::tool("ttyctl").to_string_lossy().into_owned();
    let mut screen = Screen::start(&["bash", "--norc", "--noediting"]);
    let outer = screen.ask("tty").split_whitespace().last().unwrap().to_owned();
    screen.type_in(&format!("{ttyctl} open --new -- bash --norc --noediting\r"));
    screen.until(libc::ICANON, false);
    let inner = screen.ask("tty").split_whitespace().last().unwrap().to_owned();
    assert!(inner.starts_with("/dev/pts/") && inner != outer, "{inner} {outer}");
    assert!(screen.ask("stty size").contains("20 70"));
    // A new size is forwarded, ^C goes to the program on the inner terminal, and that terminal has
    // echo while the outer one has not.
    let size = libc::winsize { ws_row: 31, ws_col: 81, ws_xpixel: 0, ws_ypixel: 0 };
    tty::set_winsize(&screen.master, &size).unwrap();
    let begin = Instant::now();
    while !screen.ask("stty size").contains("31 81") {
        assert!(begin.elapsed() < LIMIT, "the size stays");
    }
    let shell = screen.ask("echo $$");
    screen.type_in("sleep 1000\r");
    wait_for_foreground(shell.split_whitespace().last().expect("a pid"), "sleep");
    screen.type_in("\x03");
    assert!(screen.ask("echo $?").contains("130"));
    screen.type_in("exit 9\r");
    screen.until(libc::ICANON, true);
    assert!(screen.has(libc::ECHO));
    assert!(screen.ask("echo status $?").contains("status 9"));
}

#[test]
fn a_signal_to_open_new_restores_the_terminal_and_shows_in_the_status() {
    needs!(which("bash").is_some(), "bash is missing");
    let ttyctl = crate::harness::tool("ttyctl").to_string_lossy().into_owned();
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        let mut screen = Screen::start(&["bash", "--norc", "--noediting"]);
        screen.ask("true");
        // An interactive shell ignores SIGTERM, but gets a hangup of its terminal.
        screen.type_in(&format!("{ttyctl} open --new -- bash --norc --noediting\r"));
        screen.until(libc::ICANON, false);
        let inner = screen.ask("tty").split_whitespace().last().unwrap().to_owned();
        screen.until_foreground(&ttyctl);
        let pid = screen.show()["foreground"].as_i64().unwrap() as i32;
        kill(Pid::from_raw(pid), signal).unwrap();
        screen.until(libc::ICANON, true);
        let status = 128 + signal as i32;
        assert!(screen.ask("echo status $?").contains(&format!("status {status}")));
        let begin = Instant::now();
        while fs::metadata(&inner).is_ok() {
            assert!(begin.elapsed() < LIMIT, "{inner} is still there");
        }
    }
}

#[test]
fn open_new_ends_its_input_also_in_an_unfinished_line() {
    for line in ["printf hello |", "printf 'hel\\nlo\\n' |", "printf 'hel\\nlo' |", "true |"] {
        let ttyctl = tool("ttyctl").display().to_string();
        let whole = format!("{line} {ttyctl} open --new -- cat");
        pipeline(&[&["timeout", "20", "sh", "-c", &whole]]).ok();
    }
    let ttyctl = tool("ttyctl").display().to_string();
    let closed = |what: &str| format!("exec {ttyctl} open --new -- cat {what}");
    pipeline(&[&["timeout", "20", "sh", "-c", &closed("<&-")]]).ok();
    let ran = pipeline(&[&["sh", "-c", &closed("</dev/null >&-")]]);
    ran.refuses(125, &["standard output: closed"]);
}

#[test]
fn open_new_works_with_pipes() {
    let words: &[&[&str]] = &[&["ttyctl", "open", "--new", "--", "sh", "-c", "cat; tty; exit 3"]];
    let ran = Pipeline::new(words).stdin("one\ntwo\n").run();
    assert_eq!(ran.status(0), 3, "{}", ran.whole());
    let text = ran.text().replace('\r', "");
    assert!(
        text.contains("one\n") && text.contains("two\n") && text.contains("/dev/pts/"),
        "{text}"
    );
    pipeline(&[&["ttyctl", "open", "--new", "--", "/nowhere"]]).refuses(127, &["/nowhere"]);
    pipeline(&[&["ttyctl", "open", "--new", "--", "sh", "-c", "kill -9 $$"]]).refuses(137, &[]);
}

#[test]
fn a_file_that_is_no_terminal_is_refused() {
    let scratch = Scratch::new();
    let file = scratch.file("file");
    fs::write(&file, "").unwrap();
    for place in ["/dev/null", "/", &file, "/dev/ptmx"] {
        for verb in [&["show"][..], &["save"], &["load"], &["retarget"]] {
            let words = [&["ttyctl"], verb, &[place]].concat();
            pipeline(&[&words]).refuses(2, &["not a terminal", place]).in_one_line();
        }
        pipeline(&[&["ttyctl", "open", place, "--", "true"]])
            .refuses(125, &["not a terminal", "(status 2)"])
            .in_one_line();
    }
    pipeline(&[&["ttyctl", "show", "/dev/pts/999999"]])
        .refuses(7, &["no such terminal: its master is closed"])
        .in_one_line();
}

#[test]
fn the_terminal_of_another_session_is_refused_and_the_session_named() {
    let screen = Screen::start(&["sleep", "1000"]);
    let sid = screen.leader();
    let open = ["ttyctl", "open", &screen.tty, "--", "true"];
    pipeline(&[&open])
        .refuses(125, &[&format!("controlling terminal of session {sid} (sleep)"), "(status 4)"]);
    // TIOCSCTTY with 1.
    may!(rights::capability("sys_admin"));
    pipeline(&[&["ttyctl", "open", "--steal", &screen.tty, "--", "sh", "-c", "exit 5"]])
        .refuses(5, &[]);
}

#[test]
fn another_users_terminal_is_refused_whatever_its_permissions() {
    may!(rights::other_user());
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new();
    let copy = scratch.file("ttyctl-copy");
    // Another process makes the copy: a child that another test forks meanwhile would have the copy
    // open for writing.
    pipeline(&[&["cp", &crate::harness::tool("ttyctl").to_string_lossy(), &copy]]).ok();
    fs::set_permissions(scratch.dir(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let screen = Screen::new();
    fs::set_permissions(&screen.tty, fs::Permissions::from_mode(0o666)).unwrap();
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", &copy];
    let [save, retarget] = ["save", "retarget"].map(|what| [what, &screen.tty]);
    for words in [&save[..], &retarget, &["open", &screen.tty, "--", "true"]] {
        let ran = pipeline(&[&[&nobody[..], words].concat()]);
        let status = if words[0] == "open" { 125 } else { 4 };
        ran.refuses(status, &["it belongs to uid 0, and ttyctl runs as uid 65534"]).in_one_line();
    }
}

#[test]
fn an_image_without_a_terminal_has_nothing_to_load_or_to_retarget() {
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["eventfd@3"]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    let screen = Screen::new();
    pipeline(&[&["fdimg", "read", &file], &["ttyctl", "load", &screen.tty]])
        .refuses(1, &["no terminal"])
        .in_one_line();
    let ran = pipeline(&[&["fdimg", "read", &file], &["ttyctl", "retarget", &screen.tty]]);
    assert_eq!(ran.stdout, fs::read(&file).unwrap(), "the image is passed on");
    ran.refuses(1, &["no terminal"]).in_one_line();
}

#[test]
fn a_terminal_device_is_opened_only_if_it_is_named() {
    if let Err(err) = fs::File::options().read(true).write(true).open("/dev/tty9") {
        skip!("no virtual console can be opened: /dev/tty9: {err}");
    }
    let scratch = Scratch::new();
    let file = scratch.file("a.fdi");
    let target =
        Target::program(&["sh", "-c", "exec 5<>/dev/tty9; echo ready; while :; do sleep 9; done"]);
    scan(&target.pid, &file);
    drop(target);
    pipeline(&[&["fdrestore", "-i", &file, "--inherit", "0,1,2", "--", "true"]])
        .refuses(125, &["opened only when asked", "(status 6)"]);
    let script = format!(
        "{} retarget /dev/tty9 < {file} | {} $0 --inherit 0,1,2 -- readlink /proc/self/fd/5",
        crate::harness::tool("ttyctl").display(),
        crate::harness::tool("fdrestore").display()
    );
    let asked = ["opens the terminal /dev/tty9", "--allow tty permits that"];
    pipeline(&[&["sh", "-c", &script, "--steal"]]).refuses(125, &asked);
    let ran = pipeline(&[&["sh", "-c", &script, "--allow=tty"]]);
    assert_eq!(ran.ok().text(), "/dev/tty9\n");
}

#[test]
fn a_forged_record_is_refused_and_nothing_is_created() {
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["pty@3,4"]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    drop(target);
    let bytes = fs::read(&file).unwrap();
    for (key, to, status) in [
        ("index", serde_cbor::Value::Integer(1 << 21), 3),
        ("index", serde_cbor::Value::Integer(-1), 3),
        ("index", serde_cbor::Value::Text("x".into()), 3),
        ("settings", serde_cbor::Value::Integer(1), 3),
        ("master", serde_cbor::Value::Bool(true), 3),
        ("cc", serde_cbor::Value::Bytes(vec![0; 40]), 3),
        ("discipline", serde_cbor::Value::Integer(3), 6),
    ] {
        let lie = forged(&bytes, key, &to);
        let restore: &[&[&str]] = &[&["fdrestore", "--inherit", "0,1,2", "--", "echo", "ran"]];
        let ran = Pipeline::new(restore).stdin(lie).run();
        assert_eq!(ran.text(), "", "{key}");
        ran.refuses(125, &[&format!("(status {status})")]);
    }
}

/// The image with this key set to this value, wherever it occurs in a body.
fn forged(bytes: &[u8], key: &str, to: &serde_cbor::Value) -> Vec<u8> {
    use fdkit::image::{Item, Reader, Writer};
    use serde_cbor::Value::{self, Map, Text};
    fn set(value: &mut Value, key: &str, to: &Value) {
        let Map(map) = value else { return };
        for (name, value) in map.iter_mut() {
            match name {
                Text(name) if name == key => *value = to.clone(),
                _ => set(value, key, to),
            }
        }
    }
    let mut reader = Reader::new(bytes);
    let mut writer = Writer::new(Vec::new());
    while let Some(entry) = reader.next().unwrap() {
        let mut item = entry.item;
        match &mut item {
            Item::File(file) => {
                let mut body = serde_cbor::from_slice(&file.body).unwrap();
                set(&mut body, key, to);
                file.body = serde_cbor::to_vec(&body).unwrap();
            }
            Item::End(_) => continue,
            _ => (),
        }
        writer.put(&item).unwrap();
    }
    writer.end().unwrap()
}

#[test]
fn a_master_whose_slave_is_open_outside_the_image_is_refused() {
    let scratch = Scratch::new();
    let file = scratch.file("a.fdi");
    let target = target!(scratch.dir(), &["pty@3,4"]);
    pipeline(&[&["fdscan", "-F", "3", &target.pid], &["fdimg", "write", &file]]).ok();
    let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2"];
    pipeline(&[&[&restore[..], &["--", "true"]].concat()])
        .refuses(125, &["/dev/ptmx", "outside the image", "(status 6)"]);
    let skip = ["--missing", "skip", "--", MKFD, "check", "--std", "0,1,2"];
    pipeline(&[&[&restore[..], &skip].concat()]).ok();
}
