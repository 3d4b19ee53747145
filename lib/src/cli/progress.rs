//! The progress of long work: a line on stderr where that is a terminal, drawn after a second and
//! erased before anything else is written there.
//!
//! The line is drawn by the thread that works, between two pieces of its work: a thread, a descriptor
//! or a signal handler would be inherited by processes that are forked or executed.

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{getpgrp, tcgetpgrp};
use std::cell::RefCell;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// The time from the beginning of the work to the first line.
const FIRST_LINE: Duration = Duration::from_secs(1);

/// The time between two lines.
const REDRAW_INTERVAL: Duration = Duration::from_millis(100);

/// The unit of the count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Things of this name, in the plural.
    Of(&'static str),
    /// Bytes.
    Bytes,
}

/// The progress of work that may be long. Dropping it erases the line.
#[derive(Debug)]
pub struct Progress(Option<Count>);

#[derive(Debug)]
struct Count {
    tool: &'static str,
    unit: Unit,
    done: u64,
    all: Option<u64>,
    /// The time of the next line.
    next: Instant,
}

impl Progress {
    /// The progress of work that a tool begins now; `all` is how much there is, where that is known.
    ///
    /// Nothing is shown unless stderr is a terminal now.
    pub fn new(tool: &'static str, unit: Unit, all: Option<u64>) -> Progress {
        let next = Instant::now() + FIRST_LINE;
        let count = Count { tool, unit, done: 0, all, next };
        Progress(io::stderr().is_terminal().then_some(count))
    }

    /// Begins to count anew, in another unit.
    pub fn turn(&mut self, unit: Unit, all: Option<u64>) {
        if let Some(counter) = &mut self.0 {
            (counter.unit, counter.done, counter.all) = (unit, 0, all);
        }
    }

    /// Adds to what is done.
    pub fn add(&mut self, count: u64) {
        if let Some(counter) = &mut self.0 {
            counter.done += count;
            counter.draw_if_due();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.0.is_some() {
            SHOWN.take();
        }
    }
}

impl Count {
    fn draw_if_due(&mut self) {
        let now = Instant::now();
        if now >= self.next {
            self.next = now + REDRAW_INTERVAL;
            draw(self.text());
        }
    }

    fn text(&self) -> String {
        let count = |count: u64| match self.unit {
            Unit::Of(_) => HumanCount(count).to_string(),
            Unit::Bytes => HumanBytes(count).to_string(),
        };
        let all = self.all.map(|all| format!(" of {}", count(all.max(self.done))));
        let things = match self.unit {
            Unit::Of(things) => format!(" {things}"),
            Unit::Bytes => String::new(),
        };
        format!("{}: {}{}{things}", self.tool, count(self.done), all.unwrap_or_default())
    }
}

/// A reader that shows its progress, for a regular file out of its size. The end of the file erases
/// the line.
pub struct ProgressReader<R> {
    from: R,
    progress: Progress,
}

impl<R: Read + AsFd> ProgressReader<R> {
    /// Wraps a reader; `tool` stands before the line.
    pub fn new(tool: &'static str, from: R) -> ProgressReader<R> {
        let is_file = |mode| SFlag::from_bits_truncate(mode) & SFlag::S_IFMT == SFlag::S_IFREG;
        let found = fstat(from.as_fd()).ok().filter(|found| is_file(found.st_mode));
        let all = found.map(|found| found.st_size as u64);
        ProgressReader { from, progress: Progress::new(tool, Unit::Bytes, all) }
    }
}

impl<R: Read + AsFd> Read for ProgressReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(counter) = &mut self.progress.0 {
            // One line is drawn even if the first bytes of a pipe take long.
            let left = counter.next.saturating_duration_since(Instant::now());
            let left = left + Duration::from_millis(1);
            let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            let mut polled = [PollFd::new(self.from.as_fd(), PollFlags::POLLIN)];
            if SHOWN.with_borrow(Option::is_none) && poll(&mut polled, left) == Ok(0) {
                counter.draw_if_due();
            }
        }
        let count = self.from.read(buffer)?;
        match count {
            0 if !buffer.is_empty() => self.progress = Progress(None),
            _ => self.progress.add(count as u64),
        }
        Ok(count)
    }
}

/// The line on the terminal.
struct ProgressLine {
    bar: ProgressBar,
    /// The signal mask from before the line was drawn.
    mask: Option<SigSet>,
}

thread_local! {
    /// The line of this process: there is one stderr, and one thread writes to it.
    static SHOWN: RefCell<Option<ProgressLine>> = const { RefCell::new(None) };
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        let _ = lock(libc::F_UNLCK);
        if let Some(mask) = &self.mask {
            // A SIGPIPE that is pending ends the process here.
            let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(mask), None);
        }
    }
}

/// Draws the line, unless this process is in the background, or another tool of the pipeline has its
/// line on the terminal.
fn draw(text: String) {
    SHOWN.with_borrow_mut(|shown| {
        // tcgetpgrp(3) fails on a terminal that is not the controlling one: there is no background.
        let in_background = tcgetpgrp(io::stderr()).is_ok_and(|group| group != getpgrp());
        if in_background || shown.is_none() && !lock(libc::F_WRLCK).is_ok_and(|free| free) {
            return;
        }
        let line = shown.get_or_insert_with(|| {
            // SIGPIPE would end the process and leave the line, so it is blocked until it is erased.
            let pipe = SigSet::from_iter([Signal::SIGPIPE]);
            let mut mask = SigSet::empty();
            let blocked = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&pipe), Some(&mut mask));
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            ProgressLine { bar, mask: blocked.is_ok().then_some(mask) }
        });
        line.bar.set_message(text);
    });
}

/// Erases the line, before anything else is written to stderr. The work draws it again.
pub(crate) fn hide() {
    if SHOWN.take().is_some() || !io::stderr().is_terminal() {
        return;
    }
    // Another tool of the pipeline has a line there, and draws it again below the message.
    if lock(libc::F_RDLCK).is_ok_and(|free| !free) {
        let _ = io::stderr().write_all(b"\r\x1b[K");
    }
}

/// Takes (F_WRLCK), releases (F_UNLCK) or tests (F_RDLCK) the lock of the terminal's line. Returns
/// true if no other process has it.
///
/// The lock belongs to the process, so it excludes the other tools of a pipeline, which have the same
/// open file description.
/// Source: fcntl(2), F_SETLK and F_GETLK.
fn lock(kind: i32) -> nix::Result<bool> {
    let mut how = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    if kind == libc::F_RDLCK {
        fcntl(io::stderr(), FcntlArg::F_GETLK(&mut how))?;
        return Ok(how.l_type == libc::F_UNLCK as libc::c_short);
    }
    match fcntl(io::stderr(), FcntlArg::F_SETLK(&how)) {
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        other => other.map(|_| true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(unit: Unit, done: u64, all: Option<u64>) -> String {
        Count { tool: "tool", unit, done, all, next: Instant::now() }.text()
    }

    #[test]
    fn a_line_has_what_is_done_and_the_whole_where_that_is_known() {
        let tasks = Unit::Of("tasks");
        assert_eq!(text(tasks, 1234, Some(20_000)), "tool: 1,234 of 20,000 tasks");
        assert_eq!(text(tasks, 7, None), "tool: 7 tasks");
        assert_eq!(text(Unit::Bytes, 3 << 19, Some(2 << 20)), "tool: 1.50 MiB of 2.00 MiB");
        // A file that grows while it is read.
        assert_eq!(text(Unit::Bytes, 3 << 20, Some(2 << 20)), "tool: 3.00 MiB of 3.00 MiB");
    }
}
