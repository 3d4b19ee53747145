//! How far long work is: a line on the terminal that stderr is, drawn after a second, and gone without
//! a trace before anything else is said there.
//!
//! Who works draws it, between two pieces of the work: no thread, no descriptor and no signal handler
//! could be left to whoever is forked or executed.

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

/// Work that takes less is not talked about.
const LONG: Duration = Duration::from_secs(1);

/// How often the line is drawn anew.
const AGAIN: Duration = Duration::from_millis(100);

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// These things.
    Of(&'static str),
    /// Bytes.
    Bytes,
}

/// Work that may be long. Its line goes when it is dropped.
#[derive(Debug)]
pub struct Progress(Option<Count>);

#[derive(Debug)]
struct Count {
    tool: &'static str,
    unit: Unit,
    done: u64,
    all: Option<u64>,
    /// When to draw.
    next: Instant,
}

impl Progress {
    /// Work of a tool that begins now. Unless stderr is a terminal it is never looked at again.
    pub fn new(tool: &'static str, unit: Unit, all: Option<u64>) -> Progress {
        let next = Instant::now() + LONG;
        let watch = Count { tool, unit, done: 0, all, next };
        Progress(io::stderr().is_terminal().then_some(watch))
    }

    /// The same work goes on with other things, of which there are so many where that is known.
    pub fn turn(&mut self, unit: Unit, all: Option<u64>) {
        if let Some(watch) = &mut self.0 {
            (watch.unit, watch.done, watch.all) = (unit, 0, all);
        }
    }

    /// So many more are done.
    pub fn add(&mut self, count: u64) {
        if let Some(watch) = &mut self.0 {
            watch.done += count;
            watch.look();
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
    fn look(&mut self) {
        let now = Instant::now();
        if now >= self.next {
            self.next = now + AGAIN;
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

/// Something that is read, and how far that is: of all its bytes if it is a file. The line goes at
/// its end.
pub struct Reading<R> {
    from: R,
    progress: Progress,
}

impl<R: Read + AsFd> Reading<R> {
    /// A tool begins to read it.
    pub fn new(tool: &'static str, from: R) -> Reading<R> {
        let is_file = |mode| SFlag::from_bits_truncate(mode) & SFlag::S_IFMT == SFlag::S_IFREG;
        let found = fstat(from.as_fd()).ok().filter(|found| is_file(found.st_mode));
        let all = found.map(|found| found.st_size as u64);
        Reading { from, progress: Progress::new(tool, Unit::Bytes, all) }
    }
}

impl<R: Read + AsFd> Read for Reading<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(watch) = &mut self.progress.0 {
            // What nobody writes to for long is told too, once.
            let left = watch.next.saturating_duration_since(Instant::now());
            let left = left + Duration::from_millis(1);
            let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            let mut polled = [PollFd::new(self.from.as_fd(), PollFlags::POLLIN)];
            if SHOWN.with_borrow(Option::is_none) && poll(&mut polled, left) == Ok(0) {
                watch.look();
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

/// A line that stands on the terminal.
struct ProgressLine {
    bar: ProgressBar,
    /// The signals that were blocked before.
    mask: Option<SigSet>,
}

thread_local! {
    /// There is one stderr, and one thread that says anything.
    static SHOWN: RefCell<Option<ProgressLine>> = const { RefCell::new(None) };
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        let _ = lock(libc::F_UNLCK);
        if let Some(mask) = &self.mask {
            // If nobody reads our output any more, this is where that ends us.
            let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(mask), None);
        }
    }
}

/// Draws the line, unless the terminal is somebody else's at the moment: of a job in the foreground
/// while we are none, or of another tool of our pipeline that has its line there.
fn draw(text: String) {
    SHOWN.with_borrow_mut(|shown| {
        // A terminal that does not control us has no foreground for us.
        let behind = tcgetpgrp(io::stderr()).is_ok_and(|group| group != getpgrp());
        if behind || shown.is_none() && !lock(libc::F_WRLCK).is_ok_and(|free| free) {
            return;
        }
        let line = shown.get_or_insert_with(|| {
            // SIGPIPE would end us with the line still there, so it waits until that is gone.
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

/// Takes the line away, for now: before anything else is written to stderr.
pub(crate) fn hide() {
    if SHOWN.take().is_some() || !io::stderr().is_terminal() {
        return;
    }
    // That of another tool of our pipeline, which draws it again below what we say.
    if lock(libc::F_RDLCK).is_ok_and(|free| !free) {
        let _ = io::stderr().write_all(b"\r\x1b[K");
    }
}

/// Takes the lock of the terminal for its line, gives it back, or (F_RDLCK) only looks; whether it
/// was to be had. It is the process's, so it is no other tool's that has the same description.
///
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
    fn what_is_done_is_said_with_what_there_is_where_that_is_known() {
        let tasks = Unit::Of("tasks");
        assert_eq!(text(tasks, 1234, Some(20_000)), "tool: 1,234 of 20,000 tasks");
        assert_eq!(text(tasks, 7, None), "tool: 7 tasks");
        assert_eq!(text(Unit::Bytes, 3 << 19, Some(2 << 20)), "tool: 1.50 MiB of 2.00 MiB");
        // A file that grows meanwhile.
        assert_eq!(text(Unit::Bytes, 3 << 20, Some(2 << 20)), "tool: 3.00 MiB of 3.00 MiB");
    }
}
