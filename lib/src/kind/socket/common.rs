//! What the kinds of sockets have in common: reasons, errors, calls.

use crate::error::{At, Error, Result};
use crate::image::OpenFile;
use crate::kind::ContentsContext;
use crate::kind::context::RestoreContext;
use crate::sys::socket as sys;
use crate::text::escape;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{Shutdown, shutdown};
use std::os::fd::{AsRawFd, BorrowedFd};

/// The status flag O_NONBLOCK of a file.
pub(super) const NONBLOCK: u32 = libc::O_NONBLOCK as u32;

/// The flag of socket(2) for the status flags of a file: SOCK_NONBLOCK, or zero.
pub(super) fn nonblock_flag(flags: u32) -> i32 {
    if flags & NONBLOCK != 0 { libc::SOCK_NONBLOCK } else { 0 }
}

/// Fails with status 6 if so many bytes, the first of a queue, are more than `--data` allows.
pub(super) fn check_queue_limit(first: u64, limit: u64) -> Result<()> {
    match first <= limit {
        true => Ok(()),
        false => Err(Error::unrestorable(format!(
            "its queue is longer than the limit {limit}: raise it (--data=BYTES)"
        ))),
    }
}

/// The most messages of one queue that are peeked at while the processes are stopped. The kernel looks
/// for each message from the first one on, so that the time grows with the square of their number: 0.1
/// seconds for so many.
const MAX_MESSAGES_IN_STOP: usize = 4096;

/// Fails with status 6 if the messages of a queue are so many that peeking at them would make a stop
/// long. `so_far` have been seen.
pub(super) fn check_stop(so_far: usize, cx: &ContentsContext<'_>) -> Result<()> {
    match cx.frozen && so_far > MAX_MESSAGES_IN_STOP {
        false => Ok(()),
        true => Err(Error::unrestorable(format!(
            "it has more than {MAX_MESSAGES_IN_STOP} messages, which would take long while its \
             processes are stopped; scan without --freeze"
        ))),
    }
}

/// The events of poll(2) that a socket has now. Fails with status 6 if an error is pending on it:
/// recv(2) returns SO_ERROR and clears it, also with MSG_PEEK, and the program would miss it.
pub(super) fn events_without_error(socket: BorrowedFd<'_>) -> Result<i16> {
    match sys::ready(socket).at(|| "poll")? {
        events if events & libc::POLLERR == 0 => Ok(events),
        _ => {
            Err(Error::unrestorable("an error is pending on it; reading it would clear the error"))
        }
    }
}

/// Makes a socket listen with the recorded backlog. Warns if net.core.somaxconn of its network
/// namespace limits the backlog.
pub(super) fn listen(
    socket: BorrowedFd<'_>,
    backlog: u32,
    file: &OpenFile,
    cx: &mut RestoreContext<'_>,
) -> nix::Result<()> {
    sys::listen(socket, i32::try_from(backlog).unwrap_or(i32::MAX))?;
    let text = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap_or_default();
    if let Some(limit) = text.trim().parse().ok().filter(|limit: &u32| backlog > *limit) {
        let name = escape(&file.link.0);
        cx.warnings.push(format!(
            "{name}: its backlog was {backlog} and is {limit}: set net.core.somaxconn with sysctl(8)"
        ));
    }
    Ok(())
}

/// Shuts down directions of a socket: receiving 1, sending 2.
pub(super) fn shut_down(fd: BorrowedFd<'_>, directions: u8) -> Result<()> {
    match directions & 3 {
        0 => Ok(()),
        1 => shutdown_even_unconnected(fd, Shutdown::Read),
        2 => shutdown_even_unconnected(fd, Shutdown::Write),
        _ => shutdown_even_unconnected(fd, Shutdown::Both),
    }
}

/// Calls shutdown(2), also on a socket without a connection. After Shutdown::Both reads return
/// end-of-file, and writes fail with EPIPE.
pub(super) fn shutdown_even_unconnected(fd: BorrowedFd<'_>, how: Shutdown) -> Result<()> {
    // Linux shuts an unconnected socket down, and returns ENOTCONN.
    match shutdown(fd.as_raw_fd(), how) {
        Ok(()) | Err(Errno::ENOTCONN) => Ok(()),
        Err(errno) => Err(errno).at(|| "shutdown"),
    }
}
