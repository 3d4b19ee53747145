//! The progress line: it appears on a terminal after a second, and is removed at the end.

use crate::harness::{Pipeline, Scratch, Target, command, image, tool, which};
use crate::terminals::Screen;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

/// A tool whose stderr is a terminal.
struct Tool {
    screen: Screen,
    begun: Instant,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
}

impl Tool {
    /// Starts a tool with a pipe as stdin, and with the terminal also as stdout if `out` is set.
    fn start(words: &[&str], dir: &str, stdout: bool) -> Tool {
        Tool::on(Screen::new(), words, dir, stdout)
    }

    fn on(mut screen: Screen, words: &[&str], dir: &str, stdout: bool) -> Tool {
        let slave = || screen.slave.as_ref().expect("a slave").try_clone().expect("dup");
        let begun = Instant::now();
        let mut child = command(words)
            .current_dir(dir)
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(if stdout { slave().into() } else { Stdio::piped() })
            .stderr(slave())
            .spawn()
            .expect("it starts");
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        screen.child = Some(child);
        Tool { screen, begun, stdin, stdout }
    }

    /// Starts another tool on the same terminal, whose output is read through this one.
    fn beside(&self, words: &[&str], dir: &str) -> Tool {
        let mut screen = Screen::new();
        screen.slave = self.screen.slave.as_ref().map(|slave| slave.try_clone().expect("dup"));
        Tool::on(screen, words, dir, true)
    }

    fn feed(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().expect("its stdin").write_all(bytes).expect("it reads");
    }

    /// Waits for the progress line, which must not appear too early.
    #[track_caller]
    fn shows(&mut self, text: &str) {
        self.screen.wait(text);
        assert!(self.begun.elapsed() >= SECOND, "{text:?} after {:?}", self.begun.elapsed());
    }

    /// The status of the tool, or the signal that ended it, and what the terminal shows then.
    #[track_caller]
    fn ends(&mut self) -> (Result<i32, i32>, Vec<String>) {
        self.stdin = None;
        let status = self.screen.ends();
        let status = status.code().ok_or_else(|| status.signal().unwrap_or(0));
        (status, standing(&self.screen.all()))
    }
}

/// The rows that a terminal shows after these bytes.
fn standing(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let (mut rows, mut row, mut column) = (vec![Vec::new()], 0, 0);
    let mut rest = text.chars();
    while let Some(letter) = rest.next() {
        match letter {
            '\r' => column = 0,
            '\n' => {
                row += 1;
                rows.resize(rows.len().max(row + 1), Vec::new());
            }
            '\x1b' => {
                assert_eq!(rest.next(), Some('['), "{text:?}");
                let mut number = String::new();
                match rest.by_ref().find(|&it| {
                    it.is_ascii_alphabetic()
                        || !{
                            number.push(it);
                            true
                        }
                }) {
                    Some('K') if number == "2" => rows[row].clear(),
                    Some('K') => rows[row].truncate(column),
                    Some('A') => row -= number.parse::<usize>().unwrap_or(1).min(row),
                    other => panic!("{other:?} of {text:?}"),
                }
            }
            letter => {
                let cells: &mut Vec<char> = &mut rows[row];
                cells.resize(cells.len().max(column + 1), ' ');
                cells[column] = letter;
                column += 1;
            }
        }
    }
    let rows =
        rows.into_iter().map(|row| row.into_iter().collect::<String>().trim_end().to_owned());
    let mut rows: Vec<String> = rows.collect();
    while rows.last().is_some_and(String::is_empty) {
        rows.pop();
    }
    rows
}

/// The image of a process with this many bytes of contents.
fn bytes(scratch: &Scratch, size: usize) -> Vec<u8> {
    fs::read(image(scratch, &[&format!("unlinked@3:data=@{size}")])).expect("the image")
}

#[test]
fn slow_input_shows_progress_after_a_second_and_the_line_is_removed() {
    let scratch = Scratch::new();
    let bytes = bytes(&scratch, 300 << 10);
    let mut writing = Tool::start(&["fdimg", "write"], scratch.dir(), true);
    writing.feed(&bytes[..200 << 10]);
    writing.shows("fdimg: 200.00 KiB");
    writing.feed(&bytes[200 << 10..]);
    let (status, rows) = writing.ends();
    let name = rows.concat();
    assert!(status == Ok(0) && rows.len() == 1 && name.ends_with(".fdi"), "{status:?} {rows:?}");
    assert_eq!(fs::read(scratch.file(&name)).expect("it was written"), bytes);
}

#[test]
fn work_of_less_than_a_second_shows_no_progress() {
    let scratch = Scratch::new();
    let bytes = bytes(&scratch, 100);
    // On a busy machine one run may take more than a second.
    let unseen = (0..30).any(|_| {
        let mut writing = Tool::start(&["fdimg", "write", "b.fdi"], scratch.dir(), true);
        writing.feed(&bytes);
        assert_eq!(writing.ends(), (Ok(0), Vec::new()));
        let (quick, seen) = (writing.begun.elapsed() < SECOND, writing.screen.all());
        assert!(!quick || seen.is_empty(), "{:?}", String::from_utf8_lossy(&seen));
        quick
    });
    assert!(unseen, "fdimg write takes a second");
}

#[test]
fn no_progress_is_shown_if_stderr_is_no_terminal() {
    let scratch = Scratch::new();
    let bytes = bytes(&scratch, 100);
    let mut child = command(&["fdimg", "write", "b.fdi"])
        .current_dir(scratch.dir())
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(&bytes[..50]).expect("it reads");
    std::thread::sleep(SECOND + SECOND / 4);
    stdin.write_all(&bytes[50..]).expect("it reads");
    drop(stdin);
    let ran = child.wait_with_output().expect("it ends");
    assert!(ran.status.success() && ran.stderr.is_empty(), "{ran:?}");
}

#[test]
fn a_message_replaces_the_progress_line() {
    let scratch = Scratch::new();
    let mut writing = Tool::start(&["fdimg", "write"], scratch.dir(), true);
    writing.feed(&bytes(&scratch, 100)[..50]);
    writing.shows("fdimg: 50 B");
    let said = vec!["fdimg: stdin: truncated after 50 bytes".to_owned()];
    assert_eq!(writing.ends(), (Ok(3), said));
}

#[test]
fn a_tool_ended_by_sigpipe_removes_its_progress_line() {
    let scratch = Scratch::new();
    let bytes = bytes(&scratch, 300 << 10);
    let mut reading = Tool::start(&["fdimg", "read", "-"], scratch.dir(), false);
    reading.feed(&bytes[..50]);
    reading.shows("fdimg: 50 B");
    reading.stdout = None;
    // The reader ends before it has read everything.
    let _ = reading.stdin.as_mut().expect("piped").write_all(&bytes[50..]);
    assert_eq!(reading.ends(), (Err(nix::libc::SIGPIPE), Vec::new()));
}

#[test]
fn the_tools_of_a_pipeline_share_one_progress_line() {
    let scratch = Scratch::new();
    let bytes = bytes(&scratch, 100);
    let mut first = Tool::start(&["fdimg", "write", "b.fdi"], scratch.dir(), true);
    first.feed(&bytes[..50]);
    first.shows("fdimg: 50 B");
    let mut second = first.beside(&["fdimg", "verify"], scratch.dir());
    second.feed(&bytes[..60]);
    std::thread::sleep(SECOND + SECOND / 4);
    let seen = first.screen.all();
    assert!(!String::from_utf8_lossy(&seen).contains("60 B"), "{seen:?}");
    second.stdin = None;
    assert_eq!(second.screen.ends().code(), Some(3));
    first.feed(&bytes[50..]);
    let said = vec!["fdimg: stdin: truncated after 60 bytes".to_owned()];
    assert_eq!(first.ends(), (Ok(0), said));
}

#[test]
fn a_scan_shows_its_progress_in_descriptors_and_only_messages_remain() {
    let scratch = Scratch::new();
    let many = Target::ready(&["mkfd", "many", "9000", "--close-std", "--dir", scratch.dir()]);
    let many = many.expect("it can be made everywhere");
    let other = Target::make(scratch.dir(), &["eventfd@3"]).expect("this too");
    let gone = other.pid.clone();
    let mut scan = Tool::start(&["fdscan", &many.pid, &gone], scratch.dir(), false);
    // Writing blocks once the pipe is full, since it is not read.
    let mut out = scan.stdout.take().expect("piped");
    while fdkit::sys::readable(out.as_fd()).expect("FIONREAD") < 65536 {
        assert!(scan.begun.elapsed() < 60 * SECOND, "it writes no image");
        std::thread::sleep(SECOND / 100);
    }
    std::thread::sleep(SECOND + SECOND / 4);
    drop(other);
    let out = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        out.read_to_end(&mut bytes).map(|_| bytes)
    });
    scan.shows(" of 9,001 descriptors");
    let (status, rows) = scan.ends();
    let said = |row: &String| row.starts_with(&format!("fdscan: {gone}: "));
    assert!(status == Ok(1) && !rows.is_empty() && rows.iter().all(said), "{status:?} {rows:?}");
    let bytes = out.join().expect("read").expect("read");
    let ran = Pipeline::new(&[&["fdimg", "verify"]]).stdin(bytes).run().quiet();
    assert!(ran.text().contains("whole: 2 tasks, 9"), "{}", ran.whole());
}

#[test]
fn a_command_starts_without_a_progress_line_and_without_blocked_signals() {
    let scratch = Scratch::new();
    let bytes = bytes(&scratch, 100);
    let script = "grep -q 'SigBlk:.0*$' /proc/self/status && ls /proc/self/task | wc -l";
    let words = ["fdrestore", "--inherit", "0,1,2", "--", "sh", "-c", script];
    let mut restore = Tool::start(&words, scratch.dir(), true);
    restore.feed(&bytes[..50]);
    restore.shows("fdrestore: 50 B");
    restore.feed(&bytes[50..]);
    assert_eq!(restore.ends(), (Ok(0), vec!["1".to_owned()]));
}

#[test]
fn a_long_restore_of_a_tree_shows_its_progress_in_tasks() {
    needs!(which("strace").is_some(), "strace is missing");
    let scratch = Scratch::new();
    let file = image(&scratch, &["eventfd@3"]);
    let tool = tool("fdrestore");
    let slow = "inject=eventfd2:delay_enter=1500000";
    let mut words =
        vec!["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=eventfd2", "-e", slow];
    words.extend([tool.to_str().expect("UTF-8"), "--tree", "-i", &file, "--", "true"]);
    let mut tree = Tool::start(&words, scratch.dir(), true);
    tree.shows("fdrestore: 0 of 1 tasks");
    assert_eq!(tree.ends(), (Ok(0), Vec::new()));
}
