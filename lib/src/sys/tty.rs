//! ioctl_tty(2), as far as nix has no name for it.

use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsFd, AsRawFd};

/// The size of a terminal's window, or of what says it is one: TIOCGWINSZ.
///
/// Zeroes mean that nobody has told the terminal its size. Fails with ENOTTY on what is no terminal.
/// Source: ioctl_tty(2).
pub fn winsize(fd: impl AsFd) -> nix::Result<libc::winsize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open, and TIOCGWINSZ fills one winsize, which is ours.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &mut size) })?;
    Ok(size)
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
}
