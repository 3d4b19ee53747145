//! posix_openpt(3): both ends of a pseudo terminal, its settings, and what is left of one end.

use crate::driver::{Bad, Fixture, drain, open, ready, signal_comes, stat, write_all};
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
        ("slave", "only the slave is kept, at the one number: it has hung up"),
        ("master", "only the master is kept, at the one number; the slave was never open"),
        ("left", "only the master is kept, at the one number; the slave was open once"),
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
        signal_comes(spec, 0, bad, || write_all(slave, b"out\n"))?;
        // The terminal is read by nobody who could have left an answer.
        let raw = spec.has("raw");
        let seen: &[u8] = match (spec.has("packet"), raw) {
            (true, true) => b"\0out\n",
            (true, false) => b"\0out\r\n",
            (false, true) => b"out\n",
            (false, false) => b"out\r\n",
        };
        bad.same_bytes("what the master reads", &wait(first)?, seen);
        write_all(first, b"in\n")?;
        bad.same_bytes("what the slave reads", &wait(slave)?, b"in\n");
        let echo = if raw { Vec::new() } else { drain(first)? };
        bad.unless(raw || !echo.is_empty(), "no echo");
        if spec.has("two") {
            write_all(first, b"2\n")?;
            bad.same_bytes("the second slave reads", &wait(sys::at(spec.fds[2])?)?, b"2\n");
        }
        if spec.has("place") {
            let place = fstat(sys::at(*spec.fds.last().unwrap_or(&-1))?)?;
            bad.same("its place", place.st_rdev, fstat(slave)?.st_rdev);
        }
        Ok(())
    }
}

/// What can be read within a moment: it takes the kernel one to hand it on.
fn wait(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let mut polled = [nix::poll::PollFd::new(fd, PollFlags::POLLIN)];
    nix::poll::poll(&mut polled, 2000_u16)?;
    let mut buffer = [0; 64];
    let got = read(fd, &mut buffer)?;
    Ok(buffer[..got].to_vec())
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
        tty::set_line_lock(slave, &lock).at("TIOCSLCKTRMIOS")?;
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
