//! Unread bytes of a pseudo terminal: output that its master has not read, and input that its slave
//! has not read. Neither tee(2) nor MSG_PEEK works on terminals, so the bytes are read, and written
//! again at the other end.
//!
//! Source: drivers/tty/n_tty.c. In canonical mode the line discipline marks the end of each line. A
//! read(2) returns one line; VEOF ends a line without being a byte of it, so that the character
//! which ended a line is not always known. A switch of the mode drops all marks, so that the bytes
//! before it are one line. Therefore bytes are read and written under [`TransferSettings`], which
//! process nothing but the ends of lines, and the settings of the terminal are restored after that.

use crate::error::{At, Error, Result, Status};
use crate::image::Typed;
use crate::kind::journal::{Journal, RETRY_LIMIT};
use crate::sys::{self, poll_now, tty};
use nix::errno::Errno;
use nix::libc;
use nix::poll::PollFlags;
use nix::unistd::{read, write};
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// The capacity of the line discipline in bytes, one less than N_TTY_BUF_SIZE. In canonical mode an
/// unfinished line can have one byte more.
pub(crate) const LDISC_CAPACITY: usize = 4095;
/// The buffer size of a read(2), in bytes. No line is longer.
const READ_SIZE: usize = 2 * (LDISC_CAPACITY + 1);
/// An upper limit of the bytes in the flip buffer, which feeds the line discipline: the pty driver
/// limits it to 8192 bytes, rounded up.
pub(crate) const FLIP_BUFFER_CAPACITY: usize = 64 << 10;
/// The length of a write(2), in bytes: at POLLOUT it does not block.
const WRITE_SIZE: usize = 64;
/// The number and the interval of checks whether the kernel's worker has moved written bytes
/// to the line discipline.
const WORKER_POLLS: (u32, Duration) = (500, Duration::from_micros(200));

/// Unread bytes in the order in which they are read. Those without a [`Typed`] are unread at the
/// master, the others at the slave.
pub(crate) type Pieces = Vec<(Option<Typed>, Vec<u8>)>;

/// Both ends of a pseudo terminal.
#[derive(Clone, Copy)]
pub(crate) struct PtyEnds<'a> {
    /// A description of the program, which may be blocking.
    pub(crate) master: BorrowedFd<'a>,
    /// A description of this process, with O_NONBLOCK.
    pub(crate) slave: BorrowedFd<'a>,
}

/// Waits until a condition is true. Fails with ETIME if it is not after so many checks.
fn wait_until(
    (checks, interval): (u32, Duration),
    condition: impl Fn() -> nix::Result<bool>,
) -> nix::Result<()> {
    for _ in 0..checks {
        if condition()? {
            return Ok(());
        }
        std::thread::sleep(interval);
    }
    Err(Errno::ETIME)
}

/// The settings under which a terminal is read and filled: no echo, signals or editing. Canonical
/// mode has the line ends of the program's settings, and other special characters that differ from
/// those.
struct TransferSettings {
    canonical: tty::Termios,
    raw: tty::Termios,
    /// VLNEXT
    quote: u8,
    /// VEOF
    eof: u8,
    /// VSTOP
    stop: u8,
    /// VSTART
    start: u8,
    /// The characters that end a line: newline, VEOL and VEOL2.
    line_ends: Vec<u8>,
}

impl TransferSettings {
    /// The settings to transfer the contents of a terminal whose own settings are `line`.
    fn new(line: &tty::Termios) -> TransferSettings {
        let mut line_ends = vec![b'\n', line.c_cc[libc::VEOL]];
        if line.c_lflag & libc::IEXTEN != 0 {
            line_ends.push(line.c_cc[libc::VEOL2]);
        }
        // _POSIX_VDISABLE
        line_ends.retain(|&end| end != 0);
        let mut free = (1..).filter(|byte| !line_ends.contains(byte));
        let mut next = || free.next().unwrap_or_default();
        let (quote, eof, stop, start) = (next(), next(), next(), next());
        let mut raw = *line;
        (raw.c_iflag, raw.c_oflag, raw.c_lflag) = (0, line.c_oflag & !libc::OPOST, 0);
        raw.c_cc = [0; 19];
        raw.c_cc[libc::VMIN] = 1;
        let mut canonical = raw;
        // IXON stays set: output that STOP has stopped is resumed by START, and not by clearing
        // IXON.
        canonical.c_iflag = libc::IXON;
        canonical.c_lflag = libc::ICANON | libc::IEXTEN;
        canonical.c_cc = [0; 19];
        for (at, byte) in [
            (libc::VLNEXT, quote),
            (libc::VEOF, eof),
            (libc::VSTOP, stop),
            (libc::VSTART, start),
            (libc::VEOL, line_ends.get(1).copied().unwrap_or(0)),
            (libc::VEOL2, line_ends.get(2).copied().unwrap_or(0)),
        ] {
            canonical.c_cc[at] = byte;
        }
        TransferSettings { canonical, raw, quote, eof, stop, start, line_ends }
    }

    /// Reports whether the last byte of a line ends it.
    fn is_terminated(&self, line: &[u8]) -> bool {
        line.last().is_some_and(|byte| self.line_ends.contains(byte))
    }

    /// The input by which these bytes are read as they are: special characters are quoted.
    fn quoted(&self, bytes: &[u8]) -> Vec<u8> {
        let special = [self.quote, self.eof, self.stop, self.start];
        let quote = |&byte: &u8| {
            let quoted = special.contains(&byte) || self.line_ends.contains(&byte);
            quoted.then_some(self.quote).into_iter().chain([byte])
        };
        bytes.iter().flat_map(quote).collect()
    }

    /// The input for a piece in canonical mode; empty for a piece that is written otherwise.
    fn input_for(&self, what: Typed, bytes: &[u8]) -> Vec<u8> {
        match (what, bytes) {
            (Typed::Line, [line @ .., end]) => [self.quoted(line), vec![*end]].concat(),
            (Typed::Eof, line) => [self.quoted(line), vec![self.eof]].concat(),
            (Typed::Open, line) => self.quoted(line),
            _ => Vec::new(),
        }
    }

    /// The pieces of lines that were read one by one. The last was unfinished until
    /// [`BufferRoundTrip`] typed so many newlines, one or two.
    fn pieces_of_lines(&self, mut lines: Vec<Vec<u8>>, newlines: usize) -> Pieces {
        let mut open = lines.pop().unwrap_or_default();
        open.pop();
        let mut quote = false;
        if newlines > 1 {
            match (open.is_empty(), lines.is_empty()) {
                // The first newline had ended the line too late to be noticed; the second is an
                // empty line.
                (true, false) => {
                    open = lines.pop().unwrap_or_default();
                    open.pop();
                }
                // The first newline was quoted: VLNEXT had been typed before it.
                _ => quote = open.pop().is_some(),
            }
        }
        let mut all: Pieces = Vec::new();
        for (nth, line) in lines.into_iter().enumerate() {
            let what = match (self.is_terminated(&line), nth) {
                (true, _) => Typed::Line,
                // Bytes from before a switch to canonical mode are the first line.
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

    /// The pieces of bytes that were read in raw mode; `canonical` is the mode of the program.
    fn pieces_of_bytes(&self, mut bytes: Vec<u8>, canonical: bool) -> Pieces {
        let late = bytes.split_off(bytes.len().min(LDISC_CAPACITY));
        let mut all: Pieces = Vec::new();
        if canonical {
            for line in bytes.split_inclusive(|byte| self.line_ends.contains(byte)) {
                let what = if self.is_terminated(line) { Typed::Line } else { Typed::Open };
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

/// The number of bytes that pieces take in the line discipline; a VEOF takes one.
fn ldisc_len(pieces: &Pieces) -> usize {
    let len = |(what, bytes): &(Option<Typed>, Vec<u8>)| match what {
        None | Some(Typed::Late) => 0,
        Some(Typed::Eof) => bytes.len() + 1,
        Some(_) => bytes.len(),
    };
    pieces.iter().map(len).sum()
}

/// The stages of [`BufferRoundTrip::run`]: the next thing to do.
const READ_MASTER: usize = 0;
const READ_LINES: usize = 1;
const READ_RAW: usize = 2;
const PUT_BACK: usize = 3;
const DONE: usize = 4;

/// The marks of entries in the log: bytes read at the master, a line read at the slave, bytes read
/// there in raw mode; a newline was typed; reading has failed.
const AT_MASTER: u32 = 0;
const LINE: u32 = 1;
const RAW: u32 = 2;
const NEWLINE: u32 = 3;
const FAILED: u32 = 4;

/// Reads all unread bytes of a pseudo terminal in use, and puts them back.
///
/// All processes that have it open are frozen, its output is not stopped, and the unread bytes at
/// its master fit the line discipline.
pub(crate) struct BufferRoundTrip<'a> {
    ends: PtyEnds<'a>,
    /// The settings of the program.
    line: tty::Termios,
    transfer: TransferSettings,
    /// The master is in packet mode. No status byte is pending.
    packet: bool,
}

impl<'a> BufferRoundTrip<'a> {
    /// Reads the settings of the terminal.
    pub(crate) fn new(ends: PtyEnds<'a>) -> nix::Result<BufferRoundTrip<'a>> {
        let line = tty::line(ends.slave)?;
        let packet = tty::packet(ends.master)?;
        Ok(BufferRoundTrip { ends, line, transfer: TransferSettings::new(&line), packet })
    }

    /// A log with room for all unread bytes that a terminal can have.
    pub(crate) fn log() -> Result<Journal> {
        Journal::new(2 * READ_SIZE, 2 * FLIP_BUFFER_CAPACITY, READ_SIZE)
    }

    /// Reports whether the program's settings have ICANON.
    fn is_canonical(&self) -> bool {
        self.line.c_lflag & libc::ICANON != 0
    }

    /// Reads all unread bytes into the log, and puts them back. Continues from the stage in the
    /// log, where a process that was killed has left it. Fails with status 7 if not all could be
    /// read.
    pub(crate) fn run(&self, log: &mut Journal) -> Result<()> {
        let first_stage = log.stage();
        if first_stage < PUT_BACK {
            if self.read_all(log).is_err() {
                let _ = log.add(|_| Ok((FAILED, 0)));
            }
            log.set_stage(PUT_BACK);
        }
        if log.stage() == PUT_BACK {
            if first_stage == PUT_BACK {
                self.ends.discard(&self.transfer).at(|| "discard what was put back in part")?;
            }
            let restore = || Ok(tty::set_line(self.ends.slave, &self.line)?);
            let filled =
                self.ends.fill(&self.transfer, self.is_canonical(), &self.pieces(log), restore);
            if self.packet {
                tty::set_packet(self.ends.master, true).at(|| "TIOCPKT")?;
            }
            filled.at(|| "put its contents back")?;
            log.set_stage(DONE);
        }
        match log.entries().any(|(mark, _)| mark == FAILED) {
            true => Err(Error::new(Status::System, "not all of its contents could be read")),
            false => Ok(()),
        }
    }

    /// Reads all unread bytes into the log.
    fn read_all(&self, log: &mut Journal) -> Result<()> {
        let PtyEnds { master, slave } = self.ends;
        let TransferSettings { canonical, raw, .. } = &self.transfer;
        if log.stage() == READ_MASTER {
            if self.packet {
                // In packet mode a read(2) begins with a status byte, and new settings cause one.
                tty::set_packet(master, false).at(|| "TIOCPKT")?;
            }
            let settings = if self.is_canonical() { canonical } else { raw };
            tty::set_line(slave, settings).at(|| "TCSETS2")?;
            while poll_now(master, PollFlags::POLLIN)?.contains(PollFlags::POLLIN) {
                // The description of the program may be blocking: only available bytes are read.
                let unread = sys::readable(master)?.min(READ_SIZE);
                log.add(|room| Ok((AT_MASTER, read(master, &mut room[..unread])?)))?;
            }
            log.set_stage(if self.is_canonical() { READ_LINES } else { READ_RAW });
        }
        if log.stage() == READ_LINES {
            if self.end_line(log)? {
                return until_empty(|| log.add(|room| Ok((LINE, read(slave, room)?))).map(drop));
            }
            // The line discipline is full, and the flip buffer has more. In canonical mode, reading
            // would let it in as part of a line that is too long, whose end is discarded.
            tty::set_line(slave, raw).at(|| "TCSETS2")?;
            log.set_stage(READ_RAW);
        }
        until_empty(|| log.add(|room| Ok((RAW, read(slave, room)?))).map(drop))
    }

    /// Ends the unfinished line with a newline, so that it can be read. Returns false if the line
    /// discipline does not take the newline. If VLNEXT was typed last, the newline is quoted, and a
    /// second one is typed.
    fn end_line(&self, log: &mut Journal) -> Result<bool> {
        let PtyEnds { master, slave } = self.ends;
        if log.entries().any(|(mark, _)| mark == NEWLINE) {
            return Ok(true);
        }
        let before = sys::readable(slave)?;
        for _ in 0..2 {
            if !poll_now(master, PollFlags::POLLOUT)?.contains(PollFlags::POLLOUT) {
                return Ok(false);
            }
            log.add(|_| Ok((NEWLINE, 0)))?;
            self.ends.type_in(b"\n")?;
            if wait_until(WORKER_POLLS, || Ok(sys::readable(slave)? > before)).is_ok() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The bytes that were read, from the log.
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
            pieces.extend(self.transfer.pieces_of_bytes(bytes, self.is_canonical()));
        } else {
            pieces.extend(self.transfer.pieces_of_lines(lines, newlines));
        }
        pieces
    }
}

/// Writes bytes to an end, whose description may be blocking. Fails with ETIME if it takes no more.
fn write_all(end: BorrowedFd<'_>, bytes: &[u8]) -> nix::Result<()> {
    for mut part in bytes.chunks(WRITE_SIZE) {
        while !part.is_empty() {
            let writable = || Ok(poll_now(end, PollFlags::POLLOUT)?.contains(PollFlags::POLLOUT));
            wait_until(RETRY_LIMIT, writable)?;
            match write(end, part) {
                Ok(len) => part = &part[len..],
                Err(Errno::EAGAIN | Errno::EINTR) => (),
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(())
}

/// Calls `take` until it fails with EAGAIN, or with EIO after a hangup.
fn until_empty(mut take: impl FnMut() -> nix::Result<()>) -> Result<()> {
    loop {
        match take() {
            Ok(()) | Err(Errno::EINTR) => (),
            Err(Errno::EAGAIN | Errno::EIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

impl PtyEnds<'_> {
    /// Fills a new pair with contents. `restore` then applies the settings of the program, of which
    /// `line` is a part.
    pub(crate) fn fill_new(
        self,
        pieces: &Pieces,
        line: &tty::Termios,
        restore: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let canonical = line.c_lflag & libc::ICANON != 0;
        self.fill(&TransferSettings::new(line), canonical, pieces, restore)
    }

    /// Fills an empty pair, calls `restore`, which applies the settings of the program, and types
    /// the bytes that the line discipline had not processed.
    fn fill(
        self,
        transfer: &TransferSettings,
        canonical: bool,
        pieces: &Pieces,
        restore: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let filled = self.fill_processed(transfer, canonical, pieces);
        restore()?;
        filled?;
        for (_, bytes) in pieces.iter().filter(|(what, _)| *what == Some(Typed::Late)) {
            self.type_in(bytes)?;
        }
        Ok(())
    }

    /// Fills an empty pair with all bytes but those that the line discipline had not processed.
    fn fill_processed(
        self,
        transfer: &TransferSettings,
        canonical: bool,
        pieces: &Pieces,
    ) -> Result<()> {
        let PtyEnds { master, slave } = self;
        tty::set_line(slave, &transfer.raw).at(|| "TCSETS2")?;
        for (what, bytes) in pieces {
            let raw = match what {
                Some(Typed::Whole) => true,
                Some(Typed::Open) => !canonical,
                _ => false,
            };
            if raw {
                self.type_in(bytes)?;
                wait_until(RETRY_LIMIT, || Ok(sys::readable(slave)? >= bytes.len()))?;
            }
        }
        if canonical {
            tty::set_line(slave, &transfer.canonical).at(|| "TCSETS2")?;
            self.type_lines(transfer, pieces)?;
        }
        for (_, bytes) in pieces.iter().filter(|(what, _)| what.is_none()) {
            write_all(slave, bytes)?;
            wait_until(RETRY_LIMIT, || {
                poll_now(master, PollFlags::POLLIN)?;
                Ok(sys::readable(master)? >= bytes.len().min(LDISC_CAPACITY))
            })?;
        }
        Ok(())
    }

    /// Types lines in canonical mode, and waits until the line discipline has them.
    fn type_lines(self, transfer: &TransferSettings, pieces: &Pieces) -> Result<()> {
        let PtyEnds { master, slave } = self;
        let input =
            |(what, bytes): &(Option<Typed>, Vec<u8>)| Some(transfer.input_for((*what)?, bytes));
        let mut typed: Vec<u8> = pieces.iter().filter_map(input).flatten().collect();
        let mut last = Vec::new();
        if ldisc_len(pieces) >= LDISC_CAPACITY {
            // A full line discipline would not process STOP and START, so the last byte is
            // typed after them.
            let quoted = typed.len() >= 2 && typed[typed.len() - 2] == transfer.quote;
            last = typed.split_off(typed.len().saturating_sub(if quoted { 2 } else { 1 }));
        }
        self.type_in(&typed)?;
        // Once STOP and START take effect, all bytes before them are processed.
        self.type_stop(transfer.stop)?;
        self.type_in(&[transfer.start])?;
        let writable = || Ok(poll_now(slave, PollFlags::POLLOUT)?.contains(PollFlags::POLLOUT));
        wait_until(RETRY_LIMIT, writable)?;
        if !last.is_empty() {
            self.type_in(&last)?;
            std::thread::sleep(RETRY_LIMIT.1);
        }
        if pieces.iter().any(|(what, _)| *what == Some(Typed::Quote)) {
            // VLNEXT is echoed as two bytes, which tell that it was processed.
            let mut echoing = transfer.canonical;
            echoing.c_lflag |= libc::ECHO | libc::ECHOCTL;
            tty::set_line(slave, &echoing).at(|| "TCSETS2")?;
            self.type_in(&[transfer.quote])?;
            wait_until(RETRY_LIMIT, || {
                poll_now(master, PollFlags::POLLIN)?;
                Ok(sys::readable(master)? >= 2)
            })?;
            read(master, &mut [0; 2])?;
            tty::set_line(slave, &transfer.canonical).at(|| "TCSETS2")?;
        }
        Ok(())
    }

    /// Writes bytes to the master, as if they were typed at the terminal.
    fn type_in(self, bytes: &[u8]) -> nix::Result<()> {
        write_all(self.master, bytes)
    }

    /// Types the STOP character, and waits until output is stopped.
    pub(crate) fn type_stop(self, character: u8) -> Result<()> {
        self.type_in(&[character])?;
        let blocked =
            || Ok(!poll_now(self.slave, PollFlags::POLLOUT)?.contains(PollFlags::POLLOUT));
        Ok(wait_until(RETRY_LIMIT, blocked)?)
    }

    /// Reads and discards all unread bytes, which the log has.
    fn discard(self, transfer: &TransferSettings) -> Result<()> {
        let PtyEnds { master, slave } = self;
        tty::set_line(slave, &transfer.raw)?;
        let mut room = vec![0; READ_SIZE];
        until_empty(|| read(slave, &mut room).map(drop))?;
        while poll_now(master, PollFlags::POLLIN)?.contains(PollFlags::POLLIN) {
            let unread = sys::readable(master)?.min(READ_SIZE);
            read(master, &mut room[..unread])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::pty::{OpenptyResult, openpty};
    use std::os::fd::{AsFd, OwnedFd};

    /// The time in which the kernel hands written bytes to the line discipline, also under load: a
    /// worker does it, and no call waits for that while a line can be read.
    const SETTLE: Duration = Duration::from_millis(200);

    /// A pseudo terminal.
    struct Pair {
        ends: OpenptyResult,
        /// Another description of the slave, with O_NONBLOCK.
        slave: OwnedFd,
    }

    impl Pair {
        /// A new pair with changed settings.
        fn new(change: impl Fn(&mut tty::Termios)) -> Pair {
            let ends = openpty(None, None).unwrap();
            let flags = (libc::O_RDWR | libc::O_NONBLOCK) as u32;
            let slave = tty::peer(&ends.master, flags).unwrap();
            let pair = Pair { ends, slave };
            pair.change_settings(change);
            pair
        }

        fn ends(&self) -> PtyEnds<'_> {
            PtyEnds { master: self.ends.master.as_fd(), slave: self.slave.as_fd() }
        }

        fn change_settings(&self, change: impl Fn(&mut tty::Termios)) {
            let mut line = tty::line(&self.slave).unwrap();
            change(&mut line);
            tty::set_line(&self.slave, &line).unwrap();
        }

        /// Writes to the master, and gives the kernel time to process it.
        fn with_input(self, bytes: &[u8]) -> Pair {
            self.ends().type_in(bytes).unwrap();
            std::thread::sleep(SETTLE);
            self
        }

        /// Writes to the slave, and gives the kernel time to process it.
        fn with_output(self, bytes: &[u8]) -> Pair {
            write_all(self.ends.slave.as_fd(), bytes).unwrap();
            std::thread::sleep(SETTLE);
            self
        }

        /// Reads the contents, and puts them back.
        fn round_trip(self) -> (Pair, Pieces) {
            let round_trip = BufferRoundTrip::new(self.ends()).unwrap();
            let mut log = BufferRoundTrip::log().unwrap();
            round_trip.run(&mut log).unwrap();
            let pieces = round_trip.pieces(&log);
            (self, pieces)
        }

        /// A new pair with the same settings, filled with these contents.
        fn filled_copy(&self, pieces: &Pieces) -> Pair {
            let line = tty::line(&self.slave).unwrap();
            let new = Pair::new(|_| ());
            let restore = || Ok(tty::set_line(&new.slave, &line)?);
            new.ends().fill_new(pieces, &line, restore).unwrap();
            let packet = tty::packet(&self.ends.master).unwrap();
            tty::set_packet(&new.ends.master, packet).unwrap();
            new
        }

        /// All that programs can observe: counts, settings, the bytes that the master reads, the
        /// lines that the slave reads before and after `edit` is typed, and the rest in raw mode.
        fn observe(&self, edit: &[u8]) -> Observed {
            let PtyEnds { master, slave } = self.ends();
            let counts = [master, slave].map(|end| sys::readable(end).unwrap());
            let line = tty::line(slave).unwrap();
            let mut output = vec![0; READ_SIZE];
            let len = if counts[0] > 0 { read(master, &mut output).unwrap() } else { 0 };
            output.truncate(len);
            let mut reads = self.reads();
            reads.push(b"edit:".to_vec());
            self.ends().type_in(edit).unwrap();
            std::thread::sleep(SETTLE);
            reads.extend(self.reads());
            self.change_settings(|line| (line.c_lflag, line.c_cc[libc::VMIN]) = (0, 1));
            reads.push(b"raw:".to_vec());
            reads.extend(self.reads());
            let line = (line.c_iflag, line.c_oflag, line.c_cflag, line.c_lflag, line.c_cc.to_vec());
            Observed { counts, line, output, reads }
        }

        fn reads(&self) -> Vec<Vec<u8>> {
            let mut all = Vec::new();
            let mut room = vec![0; READ_SIZE];
            while let Ok(len) = read(&self.slave, &mut room) {
                all.push(room[..len].to_vec());
            }
            all
        }
    }

    #[derive(Debug, PartialEq)]
    struct Observed {
        counts: [usize; 2],
        line: (u32, u32, u32, u32, Vec<u8>),
        output: Vec<u8>,
        reads: Vec<Vec<u8>>,
    }

    /// Asserts that a pair after a round trip, and a new pair filled with its contents, are
    /// observed like an untouched pair. Returns the contents.
    #[track_caller]
    fn assert_round_trip(make: impl Fn() -> Pair, edit: &[u8]) -> Pieces {
        let wanted = make().observe(edit);
        let (pair, pieces) = make().round_trip();
        let copy = pair.filled_copy(&pieces);
        assert_eq!(pair.observe(edit), wanted, "{pieces:?}");
        assert_eq!(copy.observe(edit), wanted, "{pieces:?}");
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

    /// Special characters of most settings, some of them quoted.
    const SPECIAL: &[u8] = b"\x01\x02\x03\x04\x05\x16\x03\x16\x04\x16\n\x16\x13\x16\x16\0\xff\r";

    #[test]
    fn lines_keep_their_ends_and_an_unfinished_one_can_still_be_edited() {
        let typed = b"one\n\nended\x04\x04begun\x16\x03 here";
        let make = || Pair::new(|_| ()).with_input(typed).with_output(b"out\nput");
        let pieces = assert_round_trip(make, b"\x7f\x7f!\n");
        let all = [Typed::Line, Typed::Line, Typed::Eof, Typed::Eof, Typed::Open].map(Some);
        assert_eq!(kinds(&pieces), [&[None], &all[..]].concat());
    }

    #[test]
    fn special_characters_are_not_processed_a_second_time() {
        let echo = |line: &mut tty::Termios| line.c_lflag &= !libc::ECHO;
        assert_round_trip(
            || Pair::new(echo).with_input(&[SPECIAL, b"\n", SPECIAL].concat()),
            b"x\n",
        );
        let ends = |line: &mut tty::Termios| {
            (line.c_cc[libc::VEOL], line.c_cc[libc::VEOL2]) = (1, b';');
            line.c_iflag = libc::IUTF8 | libc::IXANY;
            line.c_lflag |= libc::ISIG;
        };
        assert_round_trip(
            || Pair::new(ends).with_input(b"a;b\x16;c\x01\x16\x01d\ne\x16\x03"),
            b";\n",
        );
        assert_round_trip(
            || Pair::new(raw).with_input(&[SPECIAL, b"\n"].concat()).with_output(SPECIAL),
            b"x\n",
        );
    }

    #[test]
    fn input_from_before_the_switch_to_canonical_mode_is_one_line() {
        let make = || {
            let pair = Pair::new(raw).with_input(b"ls\nwhoami");
            pair.change_settings(|line| line.c_lflag |= libc::ICANON);
            pair.with_input(b"more\nopen")
        };
        let pieces = assert_round_trip(make, b"\n");
        assert_eq!(kinds(&pieces), [Typed::Whole, Typed::Line, Typed::Open].map(Some));
    }

    #[test]
    fn a_pending_vlnext_is_kept() {
        for typed in [&b"one\npart\x16"[..], b"\x16", b"one\n\x16"] {
            let echo = |line: &mut tty::Termios| line.c_lflag &= !libc::ECHO;
            let pieces = assert_round_trip(|| Pair::new(echo).with_input(typed), b"\x04\n");
            assert_eq!(pieces.last(), Some(&(Some(Typed::Quote), vec![])));
        }
    }

    #[test]
    fn an_empty_terminal_has_no_contents() {
        assert_eq!(assert_round_trip(|| Pair::new(|_| ()), b"a\n"), []);
        assert_eq!(assert_round_trip(|| Pair::new(raw), b"a\n"), []);
    }

    #[test]
    fn input_beyond_the_capacity_of_the_line_discipline_keeps_its_order() {
        let silent = |line: &mut tty::Termios| line.c_lflag &= !libc::ECHO;
        let lines: Vec<u8> =
            (0..700).flat_map(|n| format!("line {n}\x16\x03\n").into_bytes()).collect();
        let pieces = assert_round_trip(|| Pair::new(silent).with_input(&lines), b"end\n");
        assert_eq!(kinds(&pieces).last(), Some(&Some(Typed::Late)));
        let long = [b"short\n", &[b'x'; 4082][..], b"\n", &[b'y'; 3000], b"\nz"].concat();
        assert_round_trip(|| Pair::new(silent).with_input(&long), b"\n");
        assert_round_trip(|| Pair::new(silent).with_input(&[b'x'; 4095]), b"\n");
        let pieces = assert_round_trip(|| Pair::new(raw).with_input(&long), b"end\n");
        assert_eq!(kinds(&pieces), [Typed::Open, Typed::Late].map(Some));
    }

    #[test]
    fn a_second_process_continues_from_any_stage() {
        let make = || Pair::new(|_| ()).with_input(b"one\ntwo\x04par").with_output(b"out");
        let wanted = make().observe(b"\n");
        let stopped_at = |stop: usize| {
            let pair = make();
            let round_trip = BufferRoundTrip::new(pair.ends()).unwrap();
            let mut log = BufferRoundTrip::log().unwrap();
            match stop {
                0 => (),
                // The first process was killed after it had read a line.
                1 => {
                    tty::set_line(&pair.slave, &round_trip.transfer.canonical).unwrap();
                    let room = &mut [0; 100];
                    let len = read(&pair.ends.master, room).unwrap();
                    log.add(|to| {
                        to[..len].copy_from_slice(&room[..len]);
                        Ok((AT_MASTER, len))
                    })
                    .unwrap();
                    log.set_stage(READ_LINES);
                    assert!(round_trip.end_line(&mut log).unwrap());
                    log.add(|room| Ok((LINE, read(&pair.slave, room)?))).unwrap();
                }
                // The first process was killed after it had put a part back.
                _ => {
                    round_trip.read_all(&mut log).unwrap();
                    log.set_stage(PUT_BACK);
                    pair.ends().type_in(b"on").unwrap();
                }
            }
            round_trip.run(&mut log).unwrap();
            round_trip.run(&mut log).unwrap();
            pair.observe(b"\n")
        };
        for stop in 0..3 {
            assert_eq!(stopped_at(stop), wanted, "{stop}");
        }
    }

    #[test]
    fn packet_mode_is_restored_without_a_status_byte() {
        let make = || {
            let pair = Pair::new(|_| ()).with_input(b"one\n").with_output(b"out");
            tty::set_packet(&pair.ends.master, true).unwrap();
            pair
        };
        let pieces = assert_round_trip(make, b"x\n");
        assert_eq!(pieces[0], (None, b"one\r\nout".to_vec()));
        let (pair, _) = make().round_trip();
        assert!(tty::packet(&pair.ends.master).unwrap());
        let status = poll_now(pair.ends.master.as_fd(), PollFlags::POLLPRI).unwrap();
        assert!(!status.contains(PollFlags::POLLPRI));
    }
}
