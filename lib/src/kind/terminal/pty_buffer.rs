//! What waits in a pseudo terminal: what its master has not read yet, and what was typed and not
//! read. Neither tee(2) nor MSG_PEEK knows terminals, so it is read, and put back by whoever is at
//! the other end.
//!
//! Source: drivers/tty/n_tty.c. In canonical mode a line is marked where it ends, and what ends it
//! cannot be asked: a read gives one line, and gives VEOF as its end without a byte. Switching the
//! mode forgets all marks, so what was there by then is one line. So bytes go in as they came out,
//! under settings that make nothing of them but lines, and the true settings follow.

use crate::error::{At, Error, Result, Status};
use crate::image::Typed;
use crate::kind::journal::{Journal, RETRY_LIMIT};
use crate::sys::{self, tty};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// What the line discipline holds, one byte of N_TTY_BUF_SIZE being left out. In canonical mode one
/// more than that stands in a line that has no end yet.
pub(crate) const HOLDS: usize = 4095;
/// The most that is read at once; no line is longer.
const LONGEST: usize = 2 * (HOLDS + 1);
/// More than waits before the line discipline: the driver lets in 8192 bytes, rounded up.
pub(crate) const BEFORE: usize = 64 << 10;
/// What is written at once: a writer may do so without waiting if it may write at all.
const PART: usize = 64;
/// How long, and how often, it takes the kernel's worker to hand on what was written.
const SOON: (u32, Duration) = (500, Duration::from_micros(200));

/// Bytes in the order in which they are read; those without a mark wait at the master.
pub(crate) type Pieces = Vec<(Option<Typed>, Vec<u8>)>;

/// Both ends of a pseudo terminal.
#[derive(Clone, Copy)]
pub(crate) struct Ends<'a> {
    pub(crate) master: BorrowedFd<'a>,
    /// A description of ours, which does not wait.
    pub(crate) slave: BorrowedFd<'a>,
}

/// What a poll(2) says now.
pub(crate) fn ready(fd: BorrowedFd<'_>, events: PollFlags) -> nix::Result<PollFlags> {
    let mut polled = [PollFd::new(fd, events)];
    poll(&mut polled, PollTimeout::ZERO)?;
    Ok(polled[0].revents().unwrap_or_else(PollFlags::empty))
}

/// Tries until it is so; fails with ETIME if it does not become so.
fn until((times, apart): (u32, Duration), so: impl Fn() -> nix::Result<bool>) -> nix::Result<()> {
    for _ in 0..times {
        if so()? {
            return Ok(());
        }
        std::thread::sleep(apart);
    }
    Err(Errno::ETIME)
}

/// The settings under which a terminal is read and filled, and the characters that mean something.
struct Neutral {
    canonical: tty::Termios,
    raw: tty::Termios,
    quote: u8,
    eof: u8,
    stop: u8,
    start: u8,
    /// Ends of lines.
    ends: Vec<u8>,
}

impl Neutral {
    fn new(line: &tty::Termios) -> Neutral {
        let mut ends = vec![b'\n', line.c_cc[libc::VEOL]];
        if line.c_lflag & libc::IEXTEN != 0 {
            ends.push(line.c_cc[libc::VEOL2]);
        }
        // _POSIX_VDISABLE
        ends.retain(|&end| end != 0);
        let mut free = (1..).filter(|byte| !ends.contains(byte));
        let mut next = || free.next().unwrap_or_default();
        let (quote, eof, stop, start) = (next(), next(), next(), next());
        let mut raw = *line;
        (raw.c_iflag, raw.c_oflag, raw.c_lflag) = (0, line.c_oflag & !libc::OPOST, 0);
        raw.c_cc = [0; 19];
        raw.c_cc[libc::VMIN] = 1;
        let mut canonical = raw;
        // Only START lets a stopped terminal go on, not that it cannot be stopped any more.
        canonical.c_iflag = libc::IXON;
        canonical.c_lflag = libc::ICANON | libc::IEXTEN;
        canonical.c_cc = [0; 19];
        for (at, byte) in [
            (libc::VLNEXT, quote),
            (libc::VEOF, eof),
            (libc::VSTOP, stop),
            (libc::VSTART, start),
            (libc::VEOL, ends.get(1).copied().unwrap_or(0)),
            (libc::VEOL2, ends.get(2).copied().unwrap_or(0)),
        ] {
            canonical.c_cc[at] = byte;
        }
        Neutral { canonical, raw, quote, eof, stop, start, ends }
    }

    fn ended(&self, line: &[u8]) -> bool {
        line.last().is_some_and(|byte| self.ends.contains(byte))
    }

    /// What must be typed for these bytes to be read, and none of them to mean anything.
    fn quoted(&self, bytes: &[u8]) -> Vec<u8> {
        let meant = [self.quote, self.eof, self.stop, self.start];
        let quote = |&byte: &u8| {
            let quoted = meant.contains(&byte) || self.ends.contains(&byte);
            quoted.then_some(self.quote).into_iter().chain([byte])
        };
        bytes.iter().flat_map(quote).collect()
    }

    /// What must be typed for this piece, in canonical mode.
    fn typed(&self, what: Typed, bytes: &[u8]) -> Vec<u8> {
        match (what, bytes) {
            (Typed::Line, [line @ .., end]) => [self.quoted(line), vec![*end]].concat(),
            (Typed::Eof, line) => [self.quoted(line), vec![self.eof]].concat(),
            (Typed::Open, line) => self.quoted(line),
            _ => Vec::new(),
        }
    }

    /// What was typed, from lines that were read one by one, the last of which we have ended, by
    /// so many newlines.
    fn lines(&self, mut lines: Vec<Vec<u8>>, newlines: usize) -> Pieces {
        let mut open = lines.pop().unwrap_or_default();
        open.pop();
        let mut quote = false;
        if newlines > 1 {
            match (open.is_empty(), lines.is_empty()) {
                // The first was slow.
                (true, false) => {
                    open = lines.pop().unwrap_or_default();
                    open.pop();
                }
                // It was taken as it is.
                _ => quote = open.pop().is_some(),
            }
        }
        let mut all: Pieces = Vec::new();
        for (nth, line) in lines.into_iter().enumerate() {
            let what = match (self.ended(&line), nth) {
                (true, _) => Typed::Line,
                // Whatever was there when the mode was switched stands before all else.
                (false, 0) if !line.is_empty() => Typed::Whole,
                (false, _) => Typed::Eof,
            };
            all.push((Some(what), line));
        }
        if !open.is_empty() {
            all.push((Some(Typed::Open), open));
        }
        if quote {
            all.push((Some(Typed::Quote), Vec::new()));
        }
        all
    }

    /// What was typed, from bytes that were read without regard to lines.
    fn bytes(&self, mut bytes: Vec<u8>, canonical: bool) -> Pieces {
        let late = bytes.split_off(bytes.len().min(HOLDS));
        let mut all: Pieces = Vec::new();
        if canonical {
            for line in bytes.split_inclusive(|byte| self.ends.contains(byte)) {
                let what = if self.ended(line) { Typed::Line } else { Typed::Open };
                all.push((Some(what), line.to_vec()));
            }
        } else if !bytes.is_empty() {
            all.push((Some(Typed::Open), bytes));
        }
        if !late.is_empty() {
            all.push((Some(Typed::Late), late));
        }
        all
    }
}

/// How many bytes of the line discipline these take; a VEOF takes one.
fn held(pieces: &Pieces) -> usize {
    let len = |(what, bytes): &(Option<Typed>, Vec<u8>)| match what {
        None | Some(Typed::Late) => 0,
        Some(Typed::Eof) => bytes.len() + 1,
        Some(_) => bytes.len(),
    };
    pieces.iter().map(len).sum()
}

/// The stages of [`Turn::over`].
const OUTPUT: usize = 0;
const LINES: usize = 1;
const BYTES: usize = 2;
const BACK: usize = 3;
const DONE: usize = 4;

/// The marks of entries in the log: bytes that waited at the master, a line, bytes without regard
/// to lines; that we have typed a newline, and that something could not be taken out.
const AT_MASTER: u32 = 0;
const LINE: u32 = 1;
const RAW: u32 = 2;
const NEWLINE: u32 = 3;
const FAILED: u32 = 4;

/// Contents of a pseudo terminal that lives: all who have it open stand still, its output is not
/// stopped, and what waits at its master fits the line discipline.
pub(crate) struct Turn<'a> {
    ends: Ends<'a>,
    line: tty::Termios,
    neutral: Neutral,
    /// Whether the master reads in packets: no status waits.
    packet: bool,
}

impl<'a> Turn<'a> {
    pub(crate) fn new(ends: Ends<'a>) -> nix::Result<Turn<'a>> {
        let line = tty::line(ends.slave)?;
        let packet = tty::packet(ends.master)?;
        Ok(Turn { ends, line, neutral: Neutral::new(&line), packet })
    }

    /// A log with room for all that can wait.
    pub(crate) fn log() -> Result<Journal> {
        Journal::new(2 * LONGEST, 2 * BEFORE, LONGEST)
    }

    fn is_canonical(&self) -> bool {
        self.line.c_lflag & libc::ICANON != 0
    }

    /// Takes all out and puts it back. Goes on where another has ended.
    pub(crate) fn over(&self, log: &mut Journal) -> Result<()> {
        let begun = log.stage();
        if begun < BACK {
            if self.take(log).is_err() {
                let _ = log.add(|_| Ok((FAILED, 0)));
            }
            log.set_stage(BACK);
        }
        if log.stage() == BACK {
            if begun == BACK {
                self.ends.empty(&self.neutral).at(|| "take out what was put back")?;
            }
            let settle = || Ok(tty::set_line(self.ends.slave, &self.line)?);
            let back =
                self.ends.fill(&self.neutral, self.is_canonical(), &self.pieces(log), settle);
            if self.packet {
                tty::set_packet(self.ends.master, true).at(|| "packet mode")?;
            }
            back.at(|| "put it back")?;
            log.set_stage(DONE);
        }
        match log.entries().any(|(mark, _)| mark == FAILED) {
            true => Err(Error::new(Status::System, "not all of it could be taken out")),
            false => Ok(()),
        }
    }

    fn take(&self, log: &mut Journal) -> Result<()> {
        let Ends { master, slave } = self.ends;
        let Neutral { canonical, raw, .. } = &self.neutral;
        if log.stage() == OUTPUT {
            if self.packet {
                // A read would begin with a byte of status, and new settings would be a status.
                tty::set_packet(master, false).at(|| "packet mode")?;
            }
            let neutral = if self.is_canonical() { canonical } else { raw };
            tty::set_line(slave, neutral).at(|| "set the line")?;
            while ready(master, PollFlags::POLLIN)?.contains(PollFlags::POLLIN) {
                // The description is theirs, and may wait: it is read for what is there.
                let waits = sys::readable(master)?.min(LONGEST);
                log.add(|room| Ok((AT_MASTER, read(master, &mut room[..waits])?)))?;
            }
            log.set_stage(if self.is_canonical() { LINES } else { BYTES });
        }
        if log.stage() == LINES {
            if self.end_line(log)? {
                return drain(|| log.add(|room| Ok((LINE, read(slave, room)?))).map(drop));
            }
            // The line discipline is full, and more waits before it. That must not be taken for a
            // line too long, whose end is thrown away, when there is room for it.
            tty::set_line(slave, raw).at(|| "set the line")?;
            log.set_stage(BYTES);
        }
        drain(|| log.add(|room| Ok((RAW, read(slave, room)?))).map(drop))
    }

    /// Ends the line that was begun, if one was, so that it can be read: whether that came through.
    /// A newline is taken as it is if VLNEXT was typed before, so there may have to be another.
    fn end_line(&self, log: &mut Journal) -> Result<bool> {
        let Ends { master, slave } = self.ends;
        if log.entries().any(|(mark, _)| mark == NEWLINE) {
            return Ok(true);
        }
        let before = sys::readable(slave)?;
        for _ in 0..2 {
            if !ready(master, PollFlags::POLLOUT)?.contains(PollFlags::POLLOUT) {
                return Ok(false);
            }
            log.add(|_| Ok((NEWLINE, 0)))?;
            self.ends.type_in(b"\n")?;
            if until(SOON, || Ok(sys::readable(slave)? > before)).is_ok() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What was taken out.
    pub(crate) fn pieces(&self, log: &Journal) -> Pieces {
        let of = |wanted: u32| log.entries().filter(move |(mark, _)| *mark == wanted);
        let all = |mark| of(mark).flat_map(|(_, bytes)| bytes.to_vec()).collect::<Vec<u8>>();
        let newlines = of(NEWLINE).count();
        let mut pieces: Pieces = Vec::new();
        let output = all(AT_MASTER);
        if !output.is_empty() {
            pieces.push((None, output));
        }
        let lines: Vec<Vec<u8>> = of(LINE).map(|(_, line)| line.to_vec()).collect();
        if lines.is_empty() {
            let mut bytes = all(RAW);
            bytes.truncate(bytes.len().saturating_sub(newlines));
            pieces.extend(self.neutral.bytes(bytes, self.is_canonical()));
        } else {
            pieces.extend(self.neutral.lines(lines, newlines));
        }
        pieces
    }
}

/// Writes all to an end whose description may be one that waits.
fn put_in(end: BorrowedFd<'_>, bytes: &[u8]) -> nix::Result<()> {
    for mut part in bytes.chunks(PART) {
        while !part.is_empty() {
            until(
                RETRY_LIMIT,
                || Ok(ready(end, PollFlags::POLLOUT)?.contains(PollFlags::POLLOUT)),
            )?;
            match write(end, part) {
                Ok(len) => part = &part[len..],
                Err(Errno::EAGAIN | Errno::EINTR) => (),
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(())
}

/// Does it until there is nothing left.
fn drain(mut take: impl FnMut() -> nix::Result<()>) -> Result<()> {
    loop {
        match take() {
            Ok(()) | Err(Errno::EINTR) => (),
            Err(Errno::EAGAIN | Errno::EIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

impl Ends<'_> {
    /// Fills an empty pair, whose line `settle` then makes this.
    pub(crate) fn put(
        self,
        pieces: &Pieces,
        line: &tty::Termios,
        settle: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.fill(&Neutral::new(line), line.c_lflag & libc::ICANON != 0, pieces, settle)
    }

    /// Fills it, has the true settings made, and types what was not processed under them.
    fn fill(
        self,
        neutral: &Neutral,
        canonical: bool,
        pieces: &Pieces,
        settle: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let filled = self.fill_neutral(neutral, canonical, pieces);
        settle()?;
        filled?;
        for (_, bytes) in pieces.iter().filter(|(what, _)| *what == Some(Typed::Late)) {
            self.type_in(bytes)?;
        }
        Ok(())
    }

    fn fill_neutral(self, neutral: &Neutral, canonical: bool, pieces: &Pieces) -> Result<()> {
        let Ends { master, slave } = self;
        tty::set_line(slave, &neutral.raw).at(|| "set the line")?;
        for (what, bytes) in pieces {
            let at_once = match what {
                Some(Typed::Whole) => true,
                Some(Typed::Open) => !canonical,
                _ => false,
            };
            if at_once {
                self.type_in(bytes)?;
                until(RETRY_LIMIT, || Ok(sys::readable(slave)? >= bytes.len()))?;
            }
        }
        if canonical {
            tty::set_line(slave, &neutral.canonical).at(|| "set the line")?;
            self.type_lines(neutral, pieces)?;
        }
        for (_, bytes) in pieces.iter().filter(|(what, _)| what.is_none()) {
            put_in(slave, bytes)?;
            until(RETRY_LIMIT, || {
                ready(master, PollFlags::POLLIN)?;
                Ok(sys::readable(master)? >= bytes.len().min(HOLDS))
            })?;
        }
        Ok(())
    }

    /// Types lines, and waits until they are taken.
    fn type_lines(self, neutral: &Neutral, pieces: &Pieces) -> Result<()> {
        let Ends { master, slave } = self;
        let typed = pieces.iter().filter_map(|(what, bytes)| Some(neutral.typed((*what)?, bytes)));
        let mut typed: Vec<u8> = typed.flatten().collect();
        let mut last = Vec::new();
        if held(pieces) >= HOLDS {
            // Once it is full, nothing that is typed can tell us that it came through.
            let quoted = typed.len() >= 2 && typed[typed.len() - 2] == neutral.quote;
            last = typed.split_off(typed.len().saturating_sub(if quoted { 2 } else { 1 }));
        }
        self.type_in(&typed)?;
        self.stop(neutral.stop)?;
        self.type_in(&[neutral.start])?;
        until(RETRY_LIMIT, || Ok(ready(slave, PollFlags::POLLOUT)?.contains(PollFlags::POLLOUT)))?;
        if !last.is_empty() {
            self.type_in(&last)?;
            std::thread::sleep(RETRY_LIMIT.1);
        }
        if pieces.iter().any(|(what, _)| *what == Some(Typed::Quote)) {
            // It is echoed as two bytes, by which we know.
            let mut echoing = neutral.canonical;
            echoing.c_lflag |= libc::ECHO | libc::ECHOCTL;
            tty::set_line(slave, &echoing).at(|| "set the line")?;
            self.type_in(&[neutral.quote])?;
            until(RETRY_LIMIT, || {
                ready(master, PollFlags::POLLIN)?;
                Ok(sys::readable(master)? >= 2)
            })?;
            read(master, &mut [0; 2])?;
            tty::set_line(slave, &neutral.canonical).at(|| "set the line")?;
        }
        Ok(())
    }

    fn type_in(self, bytes: &[u8]) -> nix::Result<()> {
        put_in(self.master, bytes)
    }

    /// Types STOP, and waits until it is heeded.
    pub(crate) fn stop(self, character: u8) -> Result<()> {
        self.type_in(&[character])?;
        let blocked = || Ok(!ready(self.slave, PollFlags::POLLOUT)?.contains(PollFlags::POLLOUT));
        Ok(until(RETRY_LIMIT, blocked)?)
    }

    /// Takes out all, of a pair whose log has it.
    fn empty(self, neutral: &Neutral) -> Result<()> {
        let Ends { master, slave } = self;
        tty::set_line(slave, &neutral.raw)?;
        let mut room = vec![0; LONGEST];
        drain(|| read(slave, &mut room).map(drop))?;
        while ready(master, PollFlags::POLLIN)?.contains(PollFlags::POLLIN) {
            let waits = sys::readable(master)?.min(LONGEST);
            read(master, &mut room[..waits])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::pty::{OpenptyResult, openpty};
    use std::os::fd::{AsFd, OwnedFd};

    /// A pair on which something was typed under these settings, and said.
    struct Pair {
        ends: OpenptyResult,
        ours: OwnedFd,
    }

    impl Pair {
        fn new(change: impl Fn(&mut tty::Termios)) -> Pair {
            let ends = openpty(None, None).unwrap();
            let flags = (libc::O_RDWR | libc::O_NONBLOCK) as u32;
            let ours = tty::peer(&ends.master, flags).unwrap();
            let pair = Pair { ends, ours };
            pair.set(change);
            pair
        }

        fn ends(&self) -> Ends<'_> {
            Ends { master: self.ends.master.as_fd(), slave: self.ours.as_fd() }
        }

        fn set(&self, change: impl Fn(&mut tty::Termios)) {
            let mut line = tty::line(&self.ours).unwrap();
            change(&mut line);
            tty::set_line(&self.ours, &line).unwrap();
        }

        /// Types, and gives the kernel time.
        fn typed(self, bytes: &[u8]) -> Pair {
            self.ends().type_in(bytes).unwrap();
            std::thread::sleep(Duration::from_millis(20));
            self
        }

        fn said(self, bytes: &[u8]) -> Pair {
            put_in(self.ends.slave.as_fd(), bytes).unwrap();
            std::thread::sleep(Duration::from_millis(20));
            self
        }

        /// Takes all out and puts it back.
        fn turned(self) -> (Pair, Pieces) {
            let turn = Turn::new(self.ends()).unwrap();
            let mut log = Turn::log().unwrap();
            turn.over(&mut log).unwrap();
            let pieces = turn.pieces(&log);
            (self, pieces)
        }

        /// Another pair with the same settings that has these.
        fn filled(&self, pieces: &Pieces) -> Pair {
            let line = tty::line(&self.ours).unwrap();
            let new = Pair::new(|_| ());
            let settle = || Ok(tty::set_line(&new.ours, &line)?);
            new.ends().put(pieces, &line, settle).unwrap();
            let packet = tty::packet(&self.ends.master).unwrap();
            tty::set_packet(&new.ends.master, packet).unwrap();
            new
        }

        /// All that can be seen of it: counts, settings, what the master reads, the lines that are
        /// read until `edit` is typed and after that, and what is left then without regard to lines.
        fn seen(&self, edit: &[u8]) -> Observed {
            let Ends { master, slave } = self.ends();
            let counts = [master, slave].map(|end| sys::readable(end).unwrap());
            let line = tty::line(slave).unwrap();
            let mut said = vec![0; LONGEST];
            let len = if counts[0] > 0 { read(master, &mut said).unwrap() } else { 0 };
            said.truncate(len);
            let mut reads = self.reads();
            reads.push(b"edit:".to_vec());
            self.ends().type_in(edit).unwrap();
            std::thread::sleep(Duration::from_millis(20));
            reads.extend(self.reads());
            self.set(|line| (line.c_lflag, line.c_cc[libc::VMIN]) = (0, 1));
            reads.push(b"raw:".to_vec());
            reads.extend(self.reads());
            let line = (line.c_iflag, line.c_oflag, line.c_cflag, line.c_lflag, line.c_cc.to_vec());
            Observed { counts, line, said, reads }
        }

        fn reads(&self) -> Vec<Vec<u8>> {
            let mut all = Vec::new();
            let mut room = vec![0; LONGEST];
            while let Ok(len) = read(&self.ours, &mut room) {
                all.push(room[..len].to_vec());
            }
            all
        }
    }

    #[derive(Debug, PartialEq)]
    struct Observed {
        counts: [usize; 2],
        line: (u32, u32, u32, u32, Vec<u8>),
        said: Vec<u8>,
        reads: Vec<Vec<u8>>,
    }

    /// Makes three: one is left alone, of one all is taken out and put back, one is filled with it.
    #[track_caller]
    fn same(make: impl Fn() -> Pair, edit: &[u8]) -> Pieces {
        let wanted = make().seen(edit);
        let (turned, pieces) = make().turned();
        let filled = turned.filled(&pieces);
        assert_eq!(turned.seen(edit), wanted, "{pieces:?}");
        assert_eq!(filled.seen(edit), wanted, "{pieces:?}");
        pieces
    }

    fn raw(line: &mut tty::Termios) {
        line.c_iflag &= !libc::IXON;
        line.c_lflag &= !(libc::ICANON | libc::ECHO);
        (line.c_cc[libc::VMIN], line.c_cc[libc::VTIME]) = (5, 3);
    }

    fn kinds(pieces: &Pieces) -> Vec<Option<Typed>> {
        pieces.iter().map(|(what, _)| *what).collect()
    }

    const MEANT: &[u8] = b"\x01\x02\x03\x04\x05\x16\x03\x16\x04\x16\n\x16\x13\x16\x16\0\xff\r";

    #[test]
    fn lines_wait_again_as_they_ended_and_the_one_that_was_begun_can_still_be_edited() {
        let typed = b"one\n\nended\x04\x04begun\x16\x03 here";
        let make = || Pair::new(|_| ()).typed(typed).said(b"out\nput");
        let pieces = same(make, b"\x7f\x7f!\n");
        let all = [Typed::Line, Typed::Line, Typed::Eof, Typed::Eof, Typed::Open].map(Some);
        assert_eq!(kinds(&pieces), [&[None], &all[..]].concat());
    }

    #[test]
    fn no_byte_means_anything_a_second_time() {
        let echo = |line: &mut tty::Termios| line.c_lflag &= !libc::ECHO;
        same(|| Pair::new(echo).typed(&[MEANT, b"\n", MEANT].concat()), b"x\n");
        let ends = |line: &mut tty::Termios| {
            (line.c_cc[libc::VEOL], line.c_cc[libc::VEOL2]) = (1, b';');
            line.c_iflag = libc::IUTF8 | libc::IXANY;
            line.c_lflag |= libc::ISIG;
        };
        same(|| Pair::new(ends).typed(b"a;b\x16;c\x01\x16\x01d\ne\x16\x03"), b";\n");
        same(|| Pair::new(raw).typed(&[MEANT, b"\n"].concat()).said(MEANT), b"x\n");
    }

    #[test]
    fn what_was_typed_before_the_mode_was_switched_is_one_line() {
        let make = || {
            let pair = Pair::new(raw).typed(b"ls\nwhoami");
            pair.set(|line| line.c_lflag |= libc::ICANON);
            pair.typed(b"more\nopen")
        };
        let pieces = same(make, b"\n");
        assert_eq!(kinds(&pieces), [Typed::Whole, Typed::Line, Typed::Open].map(Some));
    }

    #[test]
    fn a_character_that_will_be_taken_as_it_is_is_known() {
        for typed in [&b"one\npart\x16"[..], b"\x16", b"one\n\x16"] {
            let echo = |line: &mut tty::Termios| line.c_lflag &= !libc::ECHO;
            let pieces = same(|| Pair::new(echo).typed(typed), b"\x04\n");
            assert_eq!(pieces.last(), Some(&(Some(Typed::Quote), vec![])));
        }
    }

    #[test]
    fn nothing_is_nothing() {
        assert_eq!(same(|| Pair::new(|_| ()), b"a\n"), []);
        assert_eq!(same(|| Pair::new(raw), b"a\n"), []);
    }

    #[test]
    fn more_than_the_line_discipline_holds_comes_back_in_its_order() {
        let silent = |line: &mut tty::Termios| line.c_lflag &= !libc::ECHO;
        let lines: Vec<u8> =
            (0..700).flat_map(|n| format!("line {n}\x16\x03\n").into_bytes()).collect();
        let pieces = same(|| Pair::new(silent).typed(&lines), b"end\n");
        assert_eq!(kinds(&pieces).last(), Some(&Some(Typed::Late)));
        let long = [b"short\n", &[b'x'; 4082][..], b"\n", &[b'y'; 3000], b"\nz"].concat();
        same(|| Pair::new(silent).typed(&long), b"\n");
        same(|| Pair::new(silent).typed(&[b'x'; 4095]), b"\n");
        let pieces = same(|| Pair::new(raw).typed(&long), b"end\n");
        assert_eq!(kinds(&pieces), [Typed::Open, Typed::Late].map(Some));
    }

    #[test]
    fn whoever_ends_leaves_it_to_another_to_go_on() {
        let make = || Pair::new(|_| ()).typed(b"one\ntwo\x04par").said(b"out");
        let wanted = make().seen(b"\n");
        let of = |stop: usize| {
            let pair = make();
            let turn = Turn::new(pair.ends()).unwrap();
            let mut log = Turn::log().unwrap();
            match stop {
                0 => (),
                // It ended when it had read a line.
                1 => {
                    tty::set_line(&pair.ours, &turn.neutral.canonical).unwrap();
                    let room = &mut [0; 100];
                    let len = read(&pair.ends.master, room).unwrap();
                    log.add(|to| {
                        to[..len].copy_from_slice(&room[..len]);
                        Ok((AT_MASTER, len))
                    })
                    .unwrap();
                    log.set_stage(LINES);
                    assert!(turn.end_line(&mut log).unwrap());
                    log.add(|room| Ok((LINE, read(&pair.ours, room)?))).unwrap();
                }
                // It ended when it had put back a part.
                _ => {
                    turn.take(&mut log).unwrap();
                    log.set_stage(BACK);
                    pair.ends().type_in(b"on").unwrap();
                }
            }
            turn.over(&mut log).unwrap();
            turn.over(&mut log).unwrap();
            pair.seen(b"\n")
        };
        for stop in 0..3 {
            assert_eq!(of(stop), wanted, "{stop}");
        }
    }

    #[test]
    fn packets_begin_as_before() {
        let make = || {
            let pair = Pair::new(|_| ()).typed(b"one\n").said(b"out");
            tty::set_packet(&pair.ends.master, true).unwrap();
            pair
        };
        let pieces = same(make, b"x\n");
        assert_eq!(pieces[0], (None, b"one\r\nout".to_vec()));
        let (pair, _) = make().turned();
        assert!(tty::packet(&pair.ends.master).unwrap());
        let status = ready(pair.ends.master.as_fd(), PollFlags::POLLPRI).unwrap();
        assert!(!status.contains(PollFlags::POLLPRI));
    }
}
