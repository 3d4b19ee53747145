//! Terminals: the requests of ioctl_tty(2) for which nix has no function, with struct termios2,
//! which has all 19 control characters and speeds in baud.

pub use super::device::{encoded, numbers};
use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// struct termios2 of the kernel: asm/termbits.h.
pub type Termios = libc::termios2;

/// A termios2 of zeroes.
pub fn no_termios() -> Termios {
    // SAFETY: termios2 is integers only, for which zeroes are a value.
    unsafe { std::mem::zeroed() }
}

/// An ioctl that fills one int.
fn get(fd: impl AsFd, request: libc::Ioctl) -> nix::Result<i32> {
    let mut value: libc::c_int = 0;
    // SAFETY: the callers name requests that fill one int, which is ours.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, &mut value) })?;
    Ok(value)
}

/// An ioctl that reads one int.
fn put(fd: impl AsFd, request: libc::Ioctl, value: i32) -> nix::Result<()> {
    let value: libc::c_int = value;
    // SAFETY: the callers name requests that read one int.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, &value) }).map(drop)
}

/// An ioctl whose argument is an integer, or nothing.
fn command(fd: impl AsFd, request: libc::Ioctl, value: libc::c_int) -> nix::Result<i32> {
    // SAFETY: the callers name requests that take an integer itself, and touch no memory.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, value) })
}

fn termios(fd: impl AsFd, request: libc::Ioctl) -> nix::Result<Termios> {
    let mut found = no_termios();
    // SAFETY: the callers name requests that fill one termios2 or its beginning.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, &mut found) })?;
    Ok(found)
}

fn set_termios(fd: impl AsFd, request: libc::Ioctl, to: &Termios) -> nix::Result<()> {
    // SAFETY: the callers name requests that read one termios2 or its beginning.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, to) }).map(drop)
}

/// Reads the line settings of a terminal; through the master of a pseudo terminal, those of its
/// slave: TCGETS2.
pub fn line(fd: impl AsFd) -> nix::Result<Termios> {
    termios(fd, libc::TCGETS2)
}

/// Sets the line settings at once; input and output that waits is kept: TCSETS2.
pub fn set_line(fd: impl AsFd, to: &Termios) -> nix::Result<()> {
    set_termios(fd, libc::TCSETS2, to)
}

/// Reads the mask of the line settings that are locked, so that only CAP_SYS_ADMIN can change them:
/// TIOCGLCKTRMIOS.
pub fn line_lock(fd: impl AsFd) -> nix::Result<Termios> {
    termios(fd, libc::TIOCGLCKTRMIOS)
}

/// Sets the mask of the line settings that are locked: TIOCSLCKTRMIOS. It takes CAP_SYS_ADMIN.
pub fn set_line_lock(fd: impl AsFd, to: &Termios) -> nix::Result<()> {
    set_termios(fd, libc::TIOCSLCKTRMIOS, to)
}

/// Reads the size of the window of a terminal: TIOCGWINSZ. Zeroes mean that nobody has set it.
/// Fails with ENOTTY if this is no terminal.
pub fn winsize(fd: impl AsFd) -> nix::Result<libc::winsize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open, and TIOCGWINSZ fills one winsize, which is ours.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &mut size) })?;
    Ok(size)
}

/// Sets the size of the window: TIOCSWINSZ. The foreground process group gets SIGWINCH if it
/// changes.
pub fn set_winsize(fd: impl AsFd, size: &libc::winsize) -> nix::Result<()> {
    // SAFETY: TIOCSWINSZ reads one winsize.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCSWINSZ, size) }).map(drop)
}

/// The major and minor number of the terminal that is open, also by /dev/tty and /dev/console:
/// TIOCGDEV, Linux 2.6.38.
pub fn device(fd: impl AsFd) -> nix::Result<(u32, u32)> {
    Ok(numbers(get(fd, libc::TIOCGDEV)? as u32))
}

/// Reads the line discipline: TIOCGETD. Zero is N_TTY.
pub fn discipline(fd: impl AsFd) -> nix::Result<i32> {
    get(fd, libc::TIOCGETD)
}

/// Reads exclusive mode, in which further opens fail with EBUSY: TIOCGEXCL, Linux 3.8.
pub fn exclusive(fd: impl AsFd) -> nix::Result<bool> {
    Ok(get(fd, libc::TIOCGEXCL)? != 0)
}

/// Sets exclusive mode, in which further opens fail with EBUSY but for CAP_SYS_ADMIN: TIOCEXCL.
pub fn set_exclusive(fd: impl AsFd) -> nix::Result<()> {
    command(fd, libc::TIOCEXCL, 0).map(drop)
}

/// Reads the index of a pseudo terminal by its master: TIOCGPTN. Fails with ENOTTY if this is no
/// master.
pub fn index(master: impl AsFd) -> nix::Result<u32> {
    Ok(get(master, libc::TIOCGPTN)? as u32)
}

/// Reads the packet mode of a master: TIOCGPKT, Linux 3.8.
pub fn packet(master: impl AsFd) -> nix::Result<bool> {
    Ok(get(master, libc::TIOCGPKT)? != 0)
}

/// Sets the packet mode of a master: TIOCPKT.
pub fn set_packet(master: impl AsFd, on: bool) -> nix::Result<()> {
    put(master, libc::TIOCPKT, on.into())
}

/// Reads the lock of a slave by its master; a locked slave cannot be opened: TIOCGPTLCK, Linux 3.8.
pub fn locked(master: impl AsFd) -> nix::Result<bool> {
    Ok(get(master, libc::TIOCGPTLCK)? != 0)
}

/// Sets the lock of a slave by its master: TIOCSPTLCK.
pub fn set_locked(master: impl AsFd, on: bool) -> nix::Result<()> {
    put(master, libc::TIOCSPTLCK, on.into())
}

/// Stops the output of a terminal, so that no VSTART character restarts it, or restarts it after
/// that: TCXONC with TCOOFF or TCOON.
pub fn set_stopped(fd: impl AsFd, on: bool) -> nix::Result<()> {
    command(fd, libc::TCXONC, if on { libc::TCOOFF } else { libc::TCOON }).map(drop)
}

/// Opens the slave of a master without a path: TIOCGPTPEER, Linux 4.13. `flags` are those of
/// open(2), to which O_NOCTTY is added.
pub fn peer(master: impl AsFd, flags: u32) -> nix::Result<OwnedFd> {
    let flags = flags as libc::c_int | libc::O_NOCTTY;
    let fd = command(master, libc::TIOCGPTPEER, flags)?;
    // SAFETY: the call returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The session whose controlling terminal this is: TIOCGSID. Any process can ask through a master;
/// through a slave, only one whose controlling terminal it is. Fails with ENOTTY if it controls no
/// session.
pub fn session(fd: impl AsFd) -> nix::Result<i32> {
    get(fd, libc::TIOCGSID)
}

/// The foreground process group: TIOCGPGRP. The same processes can ask as for [`session`].
pub fn foreground(fd: impl AsFd) -> nix::Result<i32> {
    get(fd, libc::TIOCGPGRP)
}

/// Makes a terminal the controlling terminal of this process, which leads a session and has none:
/// TIOCSCTTY. `steal` takes it from the session that has it; that needs CAP_SYS_ADMIN.
pub fn control(fd: impl AsFd, steal: bool) -> nix::Result<()> {
    command(fd, libc::TIOCSCTTY, steal.into()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::pty::openpty;

    #[test]
    fn a_window_has_a_size_and_a_file_has_none() {
        let size = libc::winsize { ws_row: 5, ws_col: 7, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(&size, None).unwrap();
        let seen = winsize(&pair.slave).unwrap();
        assert_eq!((seen.ws_row, seen.ws_col), (5, 7));
        let null = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(winsize(&null).unwrap_err(), Errno::ENOTTY);
    }

    #[test]
    fn the_slave_of_a_master_needs_no_path() {
        let pair = openpty(None, None).unwrap();
        let peer = peer(&pair.master, libc::O_RDWR as u32).unwrap();
        assert_eq!(device(&peer), device(&pair.slave));
        assert_eq!(index(&pair.slave), Err(Errno::ENOTTY));
        assert_eq!(session(&pair.master), Err(Errno::ENOTTY));
        let mut line = line(&pair.master).unwrap();
        line.c_cc[18] = 7;
        set_line(&peer, &line).unwrap();
        assert_eq!(super::line(&pair.slave).unwrap().c_cc[18], 7);
    }
}
