//! posix_openpt(3): both ends of a pseudoterminal, its settings, and a pseudoterminal with one end
//! closed.

use crate::driver::{Bad, Difference, Fixture, drain, open, ready, signal_comes, stat, write_all};
use crate::spec::{At, Result, Spec};
use crate::sys;
use fdkit::sys::tty;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::poll::PollFlags;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::{read, write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

pub(crate) struct Pty;

/// A speed without a name.
const BAUD: u32 = 12345;

impl Fixture for Pty {
    const NAME: &'static str = "pty";
    const ABOUT: &'static str = "a pseudo terminal: its master, its slave";
    const KEYS: &'static [(&'static str, &'static str)] = &[
        ("raw", "no echo, no lines, no CR, a character of its own, 12345 baud"),
        ("rows", "the height of the window; it is twice as wide"),
        ("packet", "TIOCPKT"),
        ("excl", "TIOCEXCL on the slave"),
        ("shut", "TIOCEXCL on the master"),
        ("locked", "TIOCSLCKTRMIOS: ECHO and one character"),
        ("mode", "permissions of the slave's node"),
        ("two", "a second description of the slave, at the third number: reads, does not wait"),
        ("place", "an O_PATH descriptor of the slave, at the number after these"),
        ("said", "bytes that were written to the slave, and that nobody has read"),
        ("typed", "bytes that were written to the master, likewise"),
        ("stopped", "the output is stopped, by ^S"),
        ("off", "the output is stopped, by TCOOFF, and without IXON"),
        ("slave", "only the slave is kept, at the one number: it has hung up"),
        ("master", "only the master is kept, at the one number; the slave was never open"),
        ("left", "only the master is kept, at the one number; the slave was open once"),
    ];
    const DIFFERENCES: &'static [Difference] = &[
        ("pty@3,4:raw", "pty@3,4", "echo is false"),
        ("pty@3,4:rows=3", "pty@3,4:rows=4", "size"),
        ("pty@3,4:packet", "pty@3,4", "packet mode"),
        ("pty@3,4:excl", "pty@3,4", "slave exclusive"),
        ("pty@3,4:shut", "pty@3,4", "master exclusive"),
        ("pty@3,4:locked", "pty@3,4", "what is locked"),
        ("pty@3,4:mode=384", "pty@3,4:mode=400", "mode"),
        ("pty@3,4:said=x", "pty@3,4", "what waits at the master"),
        ("pty@3,4:typed=a%0ab%04,raw", "pty@3,4:typed=a%0a,raw", "what was typed"),
        ("pty@3,4:typed=a%0ab%04", "pty@3,4:typed=a%0ac%04", "a line that was typed"),
        ("pty@3,4:typed=ab", "pty@3,4:typed=ac", "the line that was begun"),
        ("pty@3,4:stopped", "pty@3,4", "output stopped"),
        ("pty@3,4", "pty@3,4:off", "output stopped"),
        ("pty@3:master", "pty@3:left", "hung up"),
    ];

    fn arity(spec: &Spec) -> usize {
        let one = ["slave", "master", "left"].iter().any(|key| spec.has(key));
        usize::from(!one) + 1 + usize::from(spec.has("two")) + usize::from(spec.has("place"))
    }

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = posix_openpt(flags).at("posix_openpt")?;
        grantpt(&master).at("grantpt")?;
        let name = ptsname_r(&master).at("ptsname")?;
        let name = Path::new(&name);
        let master_fd = master.as_fd().try_clone_to_owned().at("dup")?;
        if spec.has("master") {
            return Ok(vec![master_fd]);
        }
        unlockpt(&master).at("unlockpt")?;
        let slave = open(name, OFlag::O_RDWR | OFlag::O_NOCTTY)?;
        dress(spec, slave.as_fd())?;
        wait_in(spec, &[master_fd.as_fd(), slave.as_fd()])?;
        let mut all = match (spec.has("slave"), spec.has("left")) {
            (true, _) => return Ok(vec![slave]),
            (_, true) => return Ok(vec![master_fd]),
            _ => vec![master_fd, slave],
        };
        if spec.has("two") {
            all.push(open(name, OFlag::O_RDONLY | OFlag::O_NOCTTY | OFlag::O_NONBLOCK)?);
        }
        if spec.has("place") {
            all.push(open(name, OFlag::O_PATH)?);
        }
        if spec.has("excl") {
            tty::set_exclusive(&all[1]).at("TIOCEXCL")?;
        }
        if spec.has("shut") {
            tty::set_exclusive(&all[0]).at("TIOCEXCL")?;
        }
        if spec.has("packet") {
            tty::set_packet(&all[0], true).at("TIOCPKT")?;
        }
        Ok(all)
    }

    fn flags(spec: &Spec, nth: usize) -> OFlag {
        match nth {
            2 if spec.has("two") => OFlag::O_RDONLY | OFlag::O_NONBLOCK,
            2 | 3 => OFlag::O_PATH,
            _ => OFlag::O_RDWR,
        }
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let first = sys::at(spec.fds[0])?;
        stat(first, libc::S_IFCHR, bad)?;
        if spec.has("slave") {
            bad.same("read", read(first, &mut [0; 8]), Ok(0));
            bad.same("write", write(first, b"x"), Err(Errno::EIO));
            return Ok(());
        }
        if spec.has("master") || spec.has("left") {
            bad.same("hung up", ready(first, PollFlags::POLLHUP)?, spec.has("left"));
            bad.same("locked", tty::locked(first)?, spec.has("master"));
            bad.same_bytes("what waits at the master", &drain_all(first)?, &said(spec));
            return Ok(());
        }
        let slave = sys::at(spec.fds[1])?;
        stat(slave, libc::S_IFCHR, bad)?;
        bad.same("its slave", tty::device(slave)?, tty::device(first)?);
        settings(spec, slave, bad)?;
        bad.same("packet mode", tty::packet(first)?, spec.has("packet"));
        bad.same("slave exclusive", tty::exclusive(slave)?, spec.has("excl"));
        bad.same("master exclusive", tty::exclusive(first)?, spec.has("shut"));
        if let Some(mode) = spec.known_number("mode") {
            bad.same("mode", u64::from(fstat(slave)?.st_mode & 0o777), mode);
        }
        if !waits(spec, first, slave, bad)? {
            return Ok(());
        }
        signal_comes(spec, 0, bad, || write_all(slave, b"out\n"))?;
        // No other process reads the terminal, so all output is still there.
        let raw = spec.has("raw");
        let seen: &[u8] = match (spec.has("packet"), raw) {
            (true, true) => b"\0out\n",
            (true, false) => b"\0out\r\n",
            (false, true) => b"out\n",
            (false, false) => b"out\r\n",
        };
        let head: &[u8] = if spec.has("packet") { b"\0" } else { b"" };
        bad.same_bytes("what the master reads", &wait(first, head, seen)?, seen);
        write_all(first, b"in\n")?;
        bad.same_bytes("what the slave reads", &wait(slave, b"", b"in\n")?, b"in\n");
        let echo = if raw { Vec::new() } else { drain(first)? };
        bad.unless(raw || !echo.is_empty(), "no echo");
        if spec.has("two") {
            write_all(first, b"2\n")?;
            let second = sys::at(spec.fds[2])?;
            bad.same_bytes("the second slave reads", &wait(second, b"", b"2\n")?, b"2\n");
        }
        if spec.has("place") {
            let place = fstat(sys::at(*spec.fds.last().unwrap_or(&-1))?)?;
            bad.same("its place", place.st_rdev, fstat(slave)?.st_rdev);
        }
        Ok(())
    }
}

/// Reads what arrives within a moment, until that is `wanted`. The kernel needs some time to pass it
/// on, perhaps in parts, each of which begins with `head`.
fn wait(fd: BorrowedFd<'_>, head: &[u8], wanted: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut seen = Vec::new();
    loop {
        let mut polled = [nix::poll::PollFd::new(fd, PollFlags::POLLIN)];
        let comes = nix::poll::poll(&mut polled, 2000_u16)? > 0;
        if !comes && !seen.is_empty() {
            return Ok(seen);
        }
        let mut buffer = [0; 64];
        let got = read(fd, &mut buffer)?;
        let part = &buffer[..got];
        let rest = part.strip_prefix(head).filter(|_| !seen.is_empty());
        seen.extend_from_slice(rest.unwrap_or(part));
        if seen.len() >= wanted.len() || got == 0 {
            return Ok(seen);
        }
    }
}

/// The bytes queued at the master: the output, and the echo of the input.
fn said(spec: &Spec) -> Vec<u8> {
    let raw = spec.has("raw");
    let echoed = spec.bytes("typed").filter(|_| !raw).unwrap_or_default();
    let echoed = echoed.iter().filter(|&&byte| byte != EOF);
    let all = spec.bytes("said").unwrap_or_default().iter().chain(echoed);
    all.flat_map(|&byte| match (byte, raw) {
        (b'\n', false) => b"\r\n".to_vec(),
        _ => vec![byte],
    })
    .collect()
}

/// VEOF.
const EOF: u8 = 4;

/// Queues bytes in both directions, and stops the output.
fn wait_in(spec: &Spec, ends: &[BorrowedFd<'_>; 2]) -> Result<()> {
    let [master, slave] = *ends;
    write_all(slave, spec.bytes("said").unwrap_or_default()).at("write to the slave")?;
    write_all(master, spec.bytes("typed").unwrap_or_default()).at("write to the master")?;
    if spec.has("typed") || spec.has("said") {
        // The kernel needs some time to pass the bytes on.
        sleep(Duration::from_millis(20));
    }
    if spec.has("off") {
        let mut line = tty::line(slave).at("TCGETS2")?;
        line.c_iflag &= !libc::IXON;
        tty::set_line(slave, &line).at("TCSETS2")?;
        tty::set_stopped(slave, true).at("TCOOFF")?;
    }
    if spec.has("stopped") {
        write_all(master, b"\x13").at("type ^S")?;
        while ready(slave, PollFlags::POLLOUT).at("poll")? {
            sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}

/// Checks the queued bytes, whether the output is stopped, and whether it continues.
fn waits(
    spec: &Spec,
    master: BorrowedFd<'_>,
    slave: BorrowedFd<'_>,
    bad: &mut Bad,
) -> Result<bool, Errno> {
    let stopped = spec.has("stopped") || spec.has("off");
    bad.same("output stopped", ready(slave, PollFlags::POLLOUT)?, !stopped);
    if spec.has("stopped") {
        write_all(master, b"\x11")?;
    } else if spec.has("off") {
        tty::set_stopped(slave, false)?;
    }
    sleep(Duration::from_millis(if stopped { 20 } else { 0 }));
    if !ready(slave, PollFlags::POLLOUT)? {
        bad.unless(false, "the output does not go on");
        return Ok(false);
    }
    let mut seen = drain_all(master)?;
    if spec.has("packet") && !seen.is_empty() {
        seen.remove(0);
    }
    bad.same_bytes("what waits at the master", &seen, &said(spec));
    let Some(typed) = spec.bytes("typed") else { return Ok(true) };
    if spec.has("raw") {
        bad.same_bytes("what was typed", &drain(slave)?, typed);
        return Ok(true);
    }
    let end = typed.iter().rposition(|byte| matches!(*byte, b'\n' | EOF)).map_or(0, |at| at + 1);
    let (lines, begun) = typed.split_at(end);
    for line in lines.split_inclusive(|byte| matches!(*byte, b'\n' | EOF)) {
        let line = line.strip_suffix(&[EOF]).unwrap_or(line);
        bad.same_bytes("a line that was typed", &wait(slave, b"", line)?, line);
    }
    bad.same("more was typed", ready(slave, PollFlags::POLLIN)?, false);
    write_all(master, b"x\x7f!\n")?;
    let whole = [begun, b"!\n"].concat();
    bad.same_bytes("the line that was begun", &wait(slave, b"", &whole)?, &whole);
    drain(master)?;
    Ok(true)
}

/// Checks also an end whose other end is closed, which is always readable.
fn drain_all(master: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let mut all = Vec::new();
    while ready(master, PollFlags::POLLIN)? {
        let mut buffer = [0; 8192];
        match read(master, &mut buffer) {
            Ok(0) | Err(Errno::EIO) => break,
            got => all.extend_from_slice(&buffer[..got?]),
        }
    }
    Ok(all)
}

fn dress(spec: &Spec, slave: BorrowedFd<'_>) -> Result<()> {
    if spec.has("raw") {
        let mut line = tty::line(slave).at("TCGETS2")?;
        line.c_lflag &= !(libc::ICANON | libc::ECHO);
        line.c_oflag &= !libc::OPOST;
        line.c_cc[18] = 7;
        line.c_cflag = line.c_cflag & !libc::CBAUD | libc::BOTHER;
        (line.c_ispeed, line.c_ospeed) = (BAUD, BAUD);
        tty::set_line(slave, &line).at("TCSETS2")?;
    }
    if let Some(rows) = spec.number("rows")? {
        let (ws_row, ws_col) = (rows as u16, 2 * rows as u16);
        let size = libc::winsize { ws_row, ws_col, ws_xpixel: 1, ws_ypixel: 2 };
        tty::set_winsize(slave, &size).at("TIOCSWINSZ")?;
    }
    if spec.has("locked") {
        let mut lock = tty::no_termios();
        (lock.c_lflag, lock.c_cc[2]) = (libc::ECHO, 1);
        tty::set_line_lock(slave, &lock).at("TIOCSLCKTRMIOS, which takes CAP_SYS_ADMIN")?;
    }
    if let Some(mode) = spec.number("mode")? {
        fchmod(slave, Mode::from_bits_truncate(mode as u32)).at("fchmod")?;
    }
    Ok(())
}

fn settings(spec: &Spec, slave: BorrowedFd<'_>, bad: &mut Bad) -> Result<(), Errno> {
    let line = tty::line(slave)?;
    bad.same("echo", line.c_lflag & libc::ECHO != 0, !spec.has("raw"));
    bad.same("lines", line.c_lflag & libc::ICANON != 0, !spec.has("raw"));
    bad.same("the last character", line.c_cc[18], if spec.has("raw") { 7 } else { 0 });
    let speed = if spec.has("raw") { BAUD } else { 38400 };
    bad.same("speeds", (line.c_ispeed, line.c_ospeed), (speed, speed));
    let size = tty::winsize(slave)?;
    let rows = spec.known_number("rows").unwrap_or(0) as u16;
    bad.same("size", (size.ws_row, size.ws_col), (rows, 2 * rows));
    let lock = tty::line_lock(slave)?;
    let (flags, character) = if spec.has("locked") { (libc::ECHO, 1) } else { (0, 0) };
    bad.same("what is locked", (lock.c_lflag, lock.c_cc[2]), (flags, character));
    Ok(())
}
