//! Input and output queued in pseudoterminals: they are read only while every process that has the
//! terminal open is stopped, and are queued again afterwards, for the process and after a restore.

use crate::canonical::records;
use crate::forged::{at, forged, refused, whole, with_body};
use crate::grammar::judged;
use crate::harness::{MKFD, Ran, Scratch, Target, check, command, pipeline, show, which};
use crate::rights;
use fdkit::image::{Data, Item, Typed};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

/// Runs `fdscan --freeze --data PID | fdimg write FILE`.
#[track_caller]
fn frozen(pids: &[&str], file: &str) -> Ran {
    let scan = [&["fdscan", "--freeze", "--data"], pids].concat();
    pipeline(&[&scan, &["fdimg", "write", file]])
}

/// The contents of all terminals in an image, in their order.
fn contents(file: &str) -> Vec<(Option<Typed>, Vec<u8>)> {
    let mut all = Vec::new();
    forged(&fs::read(file).unwrap(), |items| {
        let terminals: Vec<u32> = items
            .iter()
            .filter_map(|item| match item {
                Item::File(file) if file.kind == "pty" => file.object,
                _ => None,
            })
            .collect();
        for item in items {
            if let Item::Data(Data { object, with, bytes, .. }) = item {
                if !terminals.contains(object) {
                    continue;
                }
                all.push((with.as_ref().and_then(|with| with.typed), bytes.0.clone()));
            }
        }
    });
    all
}

const FDS: [u32; 2] = [3, 4];

/// Scans a target twice, restores it, and scans the restored process; mkfd checks both from inside.
#[track_caller]
fn round_trip(spec: &str) -> Vec<(Option<Typed>, Vec<u8>)> {
    let scratch = Scratch::new();
    let target = Target::make(scratch.dir(), &[spec]).unwrap();
    let (file, second) = (scratch.file("a.fdi"), scratch.file("b.fdi"));
    frozen(&[&target.pid], &file).quiet();
    judged(&file);
    // The bytes that were taken out are queued again.
    frozen(&[&target.pid], &second).quiet();
    assert_eq!(records(&show(&file), &FDS), records(&show(&second), &FDS));
    assert_eq!(contents(&file), contents(&second));
    drop(target);
    let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2", "--", "mkfd", "sleep"];
    let again = Target::ready(&restore).unwrap();
    frozen(&[&again.pid], &second).quiet();
    assert_eq!(records(&show(&file), &FDS), records(&show(&second), &FDS));
    assert_eq!(contents(&file), contents(&second));
    drop(again);
    for image in [&file, &second] {
        // Another test may have its number by now.
        let ran = check(&scratch, image, &[spec]).ok();
        let others = |line: &&str| !line.contains("its index is in use");
        assert_eq!(ran.stderr(0).lines().find(others), None, "{}", ran.whole());
    }
    contents(&file)
}

#[test]
fn lines_an_unfinished_line_and_output_are_queued_again() {
    may!(rights::all_processes());
    let seen = round_trip("pty@3,4:said=ready%0a,typed=one%0a%0atwo%04%04begun");
    let said = (None, b"ready\r\none\r\n\r\ntwobegun".to_vec());
    let typed = [
        (Typed::Line, &b"one\n"[..]),
        (Typed::Line, b"\n"),
        (Typed::Eof, b"two"),
        (Typed::Eof, b""),
        (Typed::Open, b"begun"),
    ];
    let typed = typed.map(|(what, bytes)| (Some(what), bytes.to_vec()));
    assert_eq!(seen, [vec![said], typed.to_vec()].concat());
}

#[test]
fn an_unfinished_line_is_found_although_the_kernel_does_not_count_it() {
    may!(rights::all_processes());
    let echo = (None, b"begun".to_vec());
    let begun = (Some(Typed::Open), b"begun".to_vec());
    assert_eq!(round_trip("pty@3,4:typed=begun"), [echo, begun]);
}

#[test]
fn special_characters_are_queued_again_as_data() {
    may!(rights::all_processes());
    let seen = round_trip("pty@4,3:raw,said=%03%0a%0d%ff,typed=%04%0a%7f%16%ff");
    assert_eq!(seen[1].0, Some(Typed::Open));
}

#[test]
fn output_in_packet_mode_is_queued_again() {
    may!(rights::all_processes());
    round_trip("pty@3,4:packet,said=hello,typed=one%0a");
}

#[test]
fn stopped_output_is_stopped_again_until_it_is_continued() {
    may!(rights::all_processes());
    // The first may have an unfinished line, and no terminal is read while its output is stopped.
    let why = "its output is stopped";
    let specs = [("pty@3,4:stopped", "pty@3,4", why), ("pty@3,4:raw,off", "pty@3,4:raw", "")];
    for (spec, on, why) in specs {
        let scratch = Scratch::new();
        let target = Target::make(scratch.dir(), &[spec]).unwrap();
        let (file, loose) = (scratch.file("a.fdi"), scratch.file("b.fdi"));
        let ran = frozen(&[&target.pid], &file);
        assert!(ran.stderr(0).contains(why), "{}", ran.whole());
        assert_eq!(ran.status(0), i32::from(!why.is_empty()), "{}", ran.whole());
        assert_eq!(show(&file)["descriptors"][1]["body"]["blocked"], true);
        pipeline(&[&["fdscan", &target.pid], &["fdimg", "write", &loose]]).quiet();
        drop(target);
        check(&scratch, &file, &[spec]).ok();
        // Without --freeze nothing tells whether it is stopped or is just being read.
        let ran = check(&scratch, &loose, &[on]).ok();
        assert!(ran.stderr(0).contains("its output was blocked"), "{}", ran.whole());
    }
}

#[test]
fn unread_output_of_a_closed_slave_is_queued_again() {
    may!(rights::all_processes());
    let scratch = Scratch::new();
    let spec = "pty@3:left,said=the end%0a";
    let target = Target::make(scratch.dir(), &[spec]).unwrap();
    let (file, second) = (scratch.file("a.fdi"), scratch.file("b.fdi"));
    frozen(&[&target.pid], &file).quiet();
    frozen(&[&target.pid], &second).quiet();
    assert_eq!(contents(&file), [(None, b"the end\r\n".to_vec())]);
    assert_eq!(contents(&file), contents(&second));
    drop(target);
    check(&scratch, &file, &[spec]).ok();
}

#[test]
fn without_freeze_queued_bytes_are_counted_and_not_read() {
    let scratch = Scratch::new();
    let target = Target::make(scratch.dir(), &["pty@3,4:said=hello"]).unwrap();
    let file = scratch.file("a.fdi");
    let ran = pipeline(&[&["fdscan", "--data", &target.pid], &["fdimg", "write", &file]]);
    assert!(ran.status(0) == 1 && ran.stderr(0).contains("--freeze"), "{}", ran.whole());
    assert_eq!(show(&file)["descriptors"][0]["body"]["queued"], 5);
    // Contents were not requested, so there is no message about them.
    pipeline(&[&["fdscan", &target.pid], &["fdimg", "write", &file]]).quiet();
    drop(target);
    let ran = check(&scratch, &file, &["pty@3,4"]).ok();
    assert!(ran.stderr(0).contains("its unread bytes are not in the image"), "{}", ran.whole());
}

#[test]
fn a_terminal_that_another_process_has_open_is_not_read() {
    may!(rights::all_processes());
    let scratch = Scratch::new();
    let file = scratch.file("a.fdi");
    let target = Target::make(scratch.dir(), &["pty@3,4:said=hello"]).unwrap();
    let slave = fs::read_link(format!("/proc/{}/fd/4", target.pid)).unwrap();
    let spec = format!("regular@5:path={}", slave.display());
    let other = Target::make(scratch.dir(), &[&spec]).unwrap();
    let ran = frozen(&[&target.pid], &file);
    let why = format!("process {}, which is not frozen", other.pid);
    assert!(ran.status(0) == 1 && ran.stderr(0).contains(&why), "{}", ran.whole());
    assert_eq!(contents(&file), []);
    // If both are stopped, the contents are read.
    frozen(&[&target.pid, &other.pid], &file).quiet();
    // A process that has only the slave has nothing that could be restored.
    let ran = frozen(&[&other.pid], &file).quiet();
    assert_eq!(contents(&file), [], "{}", ran.whole());
}

#[test]
fn a_process_that_gets_sigio_for_a_terminal_is_not_disturbed() {
    may!(rights::all_processes());
    let scratch = Scratch::new();
    let file = scratch.file("a.fdi");
    let spec = "pty@3,4:raw,own,async=0,sig=12,typed=hello";
    let target = Target::make(scratch.dir(), &[spec]).unwrap();
    let ran = frozen(&[&target.pid], &file);
    let why = format!("process {} would get a signal", target.pid);
    assert!(ran.status(0) == 1 && ran.stderr(0).contains(&why), "{}", ran.whole());
}

#[test]
fn the_limit_of_data_applies_to_terminals() {
    may!(rights::all_processes());
    let scratch = Scratch::new();
    let target = Target::make(scratch.dir(), &["pty@3,4:raw,said=hello"]).unwrap();
    let scan = |limit| {
        let limit = format!("--data={limit}");
        let file = scratch.file("a.fdi");
        pipeline(&[&["fdscan", "--freeze", &limit, &target.pid], &["fdimg", "write", &file]])
    };
    scan(5).quiet();
    let ran = scan(4);
    assert!(ran.status(0) == 1 && ran.stderr(0).contains("limit 4"), "{}", ran.whole());
    scan(5).quiet();
}

#[test]
fn impossible_contents_of_a_terminal_are_refused() {
    may!(rights::all_processes());
    let scratch = Scratch::new();
    let target = Target::make(scratch.dir(), &["pty@3,4:said=x,typed=one%0abegun"]).unwrap();
    let file = scratch.file("a.fdi");
    frozen(&[&target.pid], &file).quiet();
    drop(target);
    let bytes = fs::read(&file).unwrap();
    let with = |change: &dyn Fn(&mut Data)| {
        forged(&bytes, |items| {
            for item in items {
                if let Item::Data(data) = item {
                    change(data);
                }
            }
        })
    };
    let typed = |data: &mut Data, what| {
        if let Some(with) = &mut data.with {
            with.typed = Some(what);
        }
    };
    for what in [Typed::Quote, Typed::Whole] {
        refused(with(&|data| typed(data, what)), 3, &["fd 3", "cannot hold its contents"]);
    }
    refused(
        with(&|data| data.bytes.0 = vec![b'x'; 4097]),
        3,
        &["fd 3", "longer than a terminal can hold"],
    );
    // In noncanonical mode there are no lines.
    let raw = with_body(&file, "pty", |body| {
        *at(body, &["settings", "line", "lflag"]) = whole(0);
    });
    refused(raw, 3, &["fd 3", "cannot hold its contents"]);
}

#[test]
fn a_program_reads_a_line_that_was_unfinished_at_the_scan() {
    may!(rights::all_processes(), rights::programs(&["python3"]));
    let scratch = Scratch::new();
    let script = "
import os, pty, sys
pid, master = pty.fork()
if pid == 0:
    os.execlp('cat', 'cat')
os.write(master, b'hel')
while open(f'/proc/{pid}/comm').read() != 'cat\\n': pass
print(os.getpid(), flush=True)
sys.stdin.readline()
os.write(master, b'p\\x7flo\\n')
seen = b''
while seen.count(b'\\n') < 2:
    seen += os.read(master, 100)
print(seen, flush=True)
os.close(master)
";
    let mut child = command(&[MKFD, "exec", "--", "python3", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap());
    let mut pid = String::new();
    said.read_line(&mut pid).unwrap();
    let file = scratch.file("a.fdi");
    frozen(&["-t", "-F", "pty", pid.trim()], &file).quiet();
    let seen = contents(&file);
    assert_eq!(seen, [(None, b"hel".to_vec()), (Some(Typed::Open), b"hel".to_vec())]);
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    child.wait().unwrap();
    assert_eq!(line.trim(), r"b'help\x08 \x08lo\r\nhello\r\n'");
}

#[test]
fn contents_that_could_not_be_restored_exactly_are_not_read() {
    may!(rights::all_processes());
    needs!(which("python3").is_some(), "python3 is missing");
    let scratch = Scratch::new();
    let (file, second) = (scratch.file("a.fdi"), scratch.file("b.fdi"));
    let script = "
import fcntl, os, struct, sys, termios, time
master, slave = os.openpty()
fcntl.ioctl(master, termios.TIOCPKT, struct.pack('i', 1))
for how in (termios.TCOOFF, termios.TCOON): termios.tcflow(slave, how)
os.write(slave, b'said')
m, s = os.openpty()
EXTPROC = 0o200000
mode = termios.tcgetattr(s); mode[3] |= EXTPROC; termios.tcsetattr(s, termios.TCSANOW, mode)
m, s = os.openpty()
os.set_blocking(s, False)
written = 0
while written < 5000 or fcntl.ioctl(m, termios.FIONREAD, b'0000') < b'\\xff\\x0f':
    # Until the kernel has handed on what was written before there may be no room.
    try: written += os.write(s, b'x' * 1000)
    except BlockingIOError: pass
m = os.open('/dev/ptmx', os.O_RDWR | os.O_NOCTTY)
os.write(m, b'typed')
time.sleep(.1)
print(flush=True)
time.sleep(1000)
";
    let target = Target::program(&["python3", "-c", script]);
    let ran = frozen(&[&target.pid], &file);
    assert_eq!(ran.status(0), 1, "{}", ran.whole());
    let said = ran.stderr(0);
    let whys = ["a status byte is pending", "EXTPROC", "its master is full", "was never opened"];
    for why in whys {
        assert!(said.contains(why), "{why}: {}", ran.whole());
    }
    assert_eq!(said.lines().count(), whys.len(), "{}", ran.whole());
    assert_eq!(contents(&file), []);
    frozen(&[&target.pid], &second);
    let fds: Vec<u32> = (3..10).collect();
    assert_eq!(records(&show(&file), &fds), records(&show(&second), &fds));
    let waits = |file: &str| -> Vec<u64> {
        let shown = show(file);
        let all = shown["descriptors"].as_array().unwrap();
        let terminals = all.iter().filter(|each| each["kind"] == "pty");
        terminals.filter_map(|each| each["body"]["queued"].as_u64()).collect()
    };
    assert_eq!(waits(&file), [4, 0, 0, 0, 4095, 0, 5]);
}

#[test]
fn bytes_that_wait_at_a_raw_slave_are_reported_without_freeze() {
    needs!(which("python3").is_some(), "python3 is missing");
    let scratch = Scratch::new();
    let script = "
import fcntl, os, struct, sys, termios, time, tty
master, slave = os.openpty()
tty.setraw(slave)
if sys.argv[1:]: os.write(master, b'typed')
while sys.argv[1:] and fcntl.ioctl(slave, termios.FIONREAD, b'0000') != struct.pack('i', 5):
    time.sleep(.01)
print(flush=True)
time.sleep(1000)
";
    for (typed, status) in [(&[][..], 0), (&["typed"], 1)] {
        let target = Target::program(&[&["python3", "-c", script], typed].concat());
        let file = scratch.file("a.fdi");
        let ran = pipeline(&[&["fdscan", "--data", &target.pid], &["fdimg", "write", &file]]);
        assert_eq!(ran.status(0), status, "{}", ran.whole());
        let why = "its contents: reading them would disturb its users; scan with --freeze";
        assert_eq!(ran.stderr(0).contains(why), status == 1, "{}", ran.whole());
    }
}
