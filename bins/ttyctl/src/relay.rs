//! ttyctl open --new: a new pseudo terminal for COMMAND, relayed to the terminal of the caller.
//!
//! Bytes go both ways and changes of the size one way. The settings of the caller's terminal are
//! restored whether COMMAND ends, a signal ends ttyctl or SIGTSTP stops it.

use crate::open::{FORWARDED, begin_session, exit_code};
use fdkit::cli::{self, Exit, Tool};
use fdkit::error::{At, Error, Result};
use fdkit::sys::fork::fork;
use fdkit::sys::tty::{self, Termios};
use fdkit::terminal::Settings;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, read, write};
use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

/// The capacity of a buffer in bytes: nothing more is read into a buffer that has as many.
const BUFFER_FULL: usize = 64 << 10;
/// The time that the last output of COMMAND may take through the kernel after its end, and the poll
/// interval while no process has the slave open, in milliseconds.
const POLL_INTERVAL: u16 = 100;

/// Runs COMMAND on a new pseudo terminal and relays until it ends.
pub(crate) fn run(tool: &Tool, command: &[OsString]) -> Result<Exit> {
    cli::text_stdout()?;
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let master = open("/dev/ptmx", flags, Mode::empty()).at(|| "/dev/ptmx")?;
    tty::set_locked(&master, false).at(|| "unlock the new terminal")?;
    let caller = caller_terminal();
    if let Some(caller) = &caller {
        let settings = Settings::read(caller).at(|| "the terminal of the caller")?;
        // A line discipline such as PPP, and locks, are for the terminal of the caller alone.
        let settings = Settings { discipline: 0, locked: None, ..settings };
        for line in settings.apply(master.as_fd(), true)? {
            tool.warn(line);
        }
    }
    let mut signals = SigSet::empty();
    FORWARDED.iter().for_each(|&signal| signals.add(signal));
    for signal in [Signal::SIGCHLD, Signal::SIGWINCH, Signal::SIGTSTP, Signal::SIGCONT] {
        signals.add(signal);
    }
    let before = signals.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let Some(child) = fork().at(|| "fork")? else {
        before.thread_set_mask()?;
        let slave = tty::peer(&master, (libc::O_RDWR | libc::O_CLOEXEC) as u32);
        let slave = slave.at(|| "open the new terminal")?;
        drop(master);
        return begin_session(tool, slave, false, command, caller.is_none()).map(Exit::from);
    };
    let raw = caller.map(Raw::new).transpose();
    let relayed = raw.and_then(|raw| {
        let mut relay = Relay::new(master, signals, child, raw)?;
        let ended = relay.run()?;
        // This restores the settings of the caller's terminal, before any message is written to it.
        drop(relay);
        Ok(ended)
    });
    match relayed {
        Ok(End::Command(code)) => Ok(code.into()),
        Ok(End::Signal(signal)) => {
            // ttyctl ends by the same signal, so that its parent sees the true cause.
            let mut only = SigSet::empty();
            only.add(signal);
            raise(signal)?;
            only.thread_unblock()?;
            Ok(ExitCode::from(128 + signal as u8).into())
        }
        Err(why) => {
            let _ = kill(child, Signal::SIGHUP);
            Err(why)
        }
    }
}

/// The terminal of the caller: the first of stdin, stdout and stderr that is one.
fn caller_terminal() -> Option<OwnedFd> {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let all = [
        (stdin.is_terminal(), stdin.as_fd()),
        (stdout.is_terminal(), stdout.as_fd()),
        (stderr.is_terminal(), stderr.as_fd()),
    ];
    let (_, fd) = all.into_iter().find(|(terminal, _)| *terminal)?;
    fd.try_clone_to_owned().ok()
}

/// A terminal in raw mode. Dropping it restores the settings.
struct Raw {
    terminal: OwnedFd,
    original: Termios,
}

impl Raw {
    fn new(terminal: OwnedFd) -> Result<Raw> {
        let original = tty::line(&terminal).at(|| "the terminal of the caller")?;
        let raw = Raw { terminal, original };
        raw.set()?;
        Ok(raw)
    }

    fn set(&self) -> Result<()> {
        let mut line = self.original;
        // cfmakeraw(3)
        line.c_iflag &= !(libc::IGNBRK
            | libc::BRKINT
            | libc::PARMRK
            | libc::ISTRIP
            | libc::INLCR
            | libc::IGNCR
            | libc::ICRNL
            | libc::IXON);
        line.c_oflag &= !libc::OPOST;
        line.c_lflag &= !(libc::ECHO | libc::ECHONL | libc::ICANON | libc::ISIG | libc::IEXTEN);
        line.c_cflag = line.c_cflag & !(libc::CSIZE | libc::PARENB) | libc::CS8;
        (line.c_cc[libc::VMIN], line.c_cc[libc::VTIME]) = (1, 0);
        tty::set_line(&self.terminal, &line).at(|| "put the terminal of the caller into raw mode")
    }

    /// Restores the settings, with SIGTTOU blocked: it would stop a process in the background.
    fn restore(&self) {
        let mut stop = SigSet::empty();
        stop.add(Signal::SIGTTOU);
        let before = stop.thread_swap_mask(SigmaskHow::SIG_BLOCK);
        let _ = tty::set_line(&self.terminal, &self.original);
        let _ = before.and_then(|before| before.thread_set_mask());
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.restore();
    }
}

/// The reason why the relay ended.
enum End {
    Command(ExitCode),
    Signal(Signal),
}

/// The result of a poll(2).
#[derive(Default)]
struct Ready {
    signal: bool,
    master: bool,
    stdin: bool,
    timed_out: bool,
}

/// The two terminals, and the bytes on their way between them.
struct Relay {
    master: OwnedFd,
    /// True while no process has the slave open. COMMAND can open it again by /dev/tty.
    slave_closed: bool,
    signals: SignalFd,
    child: Pid,
    raw: Option<Raw>,
    /// stdin, none once it has ended.
    stdin: Option<OwnedFd>,
    out: OwnedFd,
    /// Bytes from stdin that the master has not taken yet.
    input: Vec<u8>,
    /// True while the last byte from stdin ends no line.
    partial_line: bool,
    /// Bytes from the master that stdout has not taken yet.
    output: Vec<u8>,
    /// The exit status of COMMAND once it has ended.
    ended: Option<ExitCode>,
}

impl Relay {
    fn new(master: OwnedFd, signals: SignalFd, child: Pid, raw: Option<Raw>) -> Result<Relay> {
        let stdin = std::io::stdin().as_fd().try_clone_to_owned()?;
        let stdin = (!fdkit::sys::start::closed_at_start(0)).then_some(stdin);
        let stdout = std::io::stdout();
        let out = match reopen_nonblocking(stdout.as_fd()) {
            Some(own) => own,
            None => stdout.as_fd().try_clone_to_owned()?,
        };
        Ok(Relay {
            master,
            slave_closed: false,
            signals,
            child,
            raw,
            stdin,
            out,
            input: Vec::new(),
            partial_line: false,
            output: Vec::new(),
            ended: None,
        })
    }

    fn run(&mut self) -> Result<End> {
        if self.stdin.is_none() {
            self.end_input();
        }
        loop {
            let limit = match &self.ended {
                Some(_) if self.output.is_empty() => PollTimeout::from(POLL_INTERVAL),
                _ if self.slave_closed => PollTimeout::from(POLL_INTERVAL),
                _ => PollTimeout::NONE,
            };
            let ready = self.wait(limit)?;
            if ready.signal {
                while let Some(info) = self.signals.read_signal()? {
                    let signal = Signal::try_from(info.ssi_signo as i32)?;
                    if let Some(ended) = self.signal(signal)? {
                        return Ok(ended);
                    }
                }
            }
            if ready.stdin {
                self.read_stdin()?;
            }
            if ready.master || self.slave_closed {
                self.read_master()?;
            }
            self.write_all()?;
            if self.output.is_empty() && (ready.timed_out || self.slave_closed) {
                if let Some(code) = self.ended.take() {
                    return Ok(End::Command(code));
                }
            }
        }
    }

    /// Waits with poll(2), at most for `limit`.
    fn wait(&self, limit: PollTimeout) -> Result<Ready> {
        let events = |wanted: [(bool, PollFlags); 2]| {
            wanted.iter().filter(|(on, _)| *on).fold(PollFlags::empty(), |all, (_, one)| all | *one)
        };
        let (readable, writable) = (PollFlags::POLLIN, PollFlags::POLLOUT);
        let mut polled = vec![PollFd::new(self.signals.as_fd(), readable)];
        let mut places = [None; 2];
        let wanted = events([
            (self.output.len() < BUFFER_FULL, readable),
            (!self.input.is_empty(), writable),
        ]);
        // poll(2) reports a hang-up whatever was asked for, and would return at once each time.
        if !wanted.is_empty() && !self.slave_closed {
            places[0] = Some(polled.len());
            polled.push(PollFd::new(self.master.as_fd(), wanted));
        }
        if let Some(stdin) = self.stdin.as_ref().filter(|_| self.input.len() < BUFFER_FULL) {
            places[1] = Some(polled.len());
            polled.push(PollFd::new(stdin.as_fd(), readable));
        }
        if !self.output.is_empty() {
            polled.push(PollFd::new(self.out.as_fd(), writable));
        }
        let count = match poll(&mut polled, limit) {
            Err(Errno::EINTR) => return Ok(Ready::default()),
            other => other?,
        };
        let ready = |at: usize| polled[at].revents().is_some_and(|got| !got.is_empty());
        let [master, stdin] = places.map(|place| place.is_some_and(ready));
        Ok(Ready { signal: ready(0), master, stdin, timed_out: count == 0 })
    }

    fn signal(&mut self, signal: Signal) -> Result<Option<End>> {
        match signal {
            Signal::SIGCHLD => match waitpid(self.child, Some(WaitPidFlag::WNOHANG)) {
                Ok(status) => self.ended = exit_code(status).or(self.ended.take()),
                Err(Errno::ECHILD) => (),
                Err(errno) => return Err(errno.into()),
            },
            Signal::SIGWINCH => self.resize(),
            Signal::SIGTSTP => {
                if let Some(raw) = &self.raw {
                    raw.restore();
                }
                raise(Signal::SIGSTOP)?;
            }
            Signal::SIGCONT => {
                if let Some(raw) = &self.raw {
                    raw.set()?;
                }
                self.resize();
            }
            ending => {
                // Closing the master hangs up on what COMMAND has left behind.
                let _ = kill(self.child, ending);
                return Ok(Some(End::Signal(ending)));
            }
        }
        Ok(None)
    }

    /// Copies the size of the caller's terminal; the kernel sends SIGWINCH to COMMAND if it is new.
    fn resize(&self) {
        if let Some(raw) = &self.raw {
            let size = tty::winsize(&raw.terminal);
            let _ = size.and_then(|size| tty::set_winsize(&self.master, &size));
        }
    }

    fn read_stdin(&mut self) -> Result<()> {
        let Some(stdin) = &self.stdin else { return Ok(()) };
        let mut buffer = [0; 4096];
        match read(stdin, &mut buffer) {
            Ok(0) | Err(Errno::EIO) => {
                self.stdin = None;
                self.end_input();
            }
            Ok(count) => {
                self.partial_line = buffer[count - 1] != b'\n';
                self.input.extend_from_slice(&buffer[..count]);
            }
            Err(Errno::EAGAIN | Errno::EINTR) => (),
            Err(errno) => return Err(errno).at(|| "stdin"),
        }
        Ok(())
    }

    /// Sends VEOF to COMMAND at the end of stdin: twice in a partial line, where the first one only
    /// hands over that line.
    fn end_input(&mut self) {
        let line = tty::line(&self.master).ok();
        let end = line.filter(|line| line.c_lflag & libc::ICANON != 0);
        let count = if self.partial_line { 2 } else { 1 };
        self.input.extend(end.into_iter().flat_map(|line| vec![line.c_cc[libc::VEOF]; count]));
    }

    fn read_master(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        let got = read(&self.master, &mut buffer);
        self.slave_closed = got == Err(Errno::EIO);
        match got {
            Ok(count) => self.output.extend_from_slice(&buffer[..count]),
            Err(Errno::EIO | Errno::EAGAIN | Errno::EINTR) => (),
            Err(errno) => return Err(errno).at(|| "the new terminal"),
        }
        Ok(())
    }

    /// Writes as much as the master and stdout take.
    fn write_all(&mut self) -> Result<()> {
        match write_some(self.master.as_fd(), &mut self.input) {
            Ok(()) => (),
            Err(Errno::EIO) => self.input.clear(),
            Err(errno) => return Err(errno).at(|| "the new terminal"),
        }
        write_some(self.out.as_fd(), &mut self.output)
            .map_err(|errno| Error::from(errno).at("stdout"))
    }
}

/// Writes the first of these bytes, as many as are taken without waiting, and removes them.
fn write_some(to: BorrowedFd<'_>, bytes: &mut Vec<u8>) -> nix::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    match write(to, bytes) {
        Ok(count) => drop(bytes.drain(..count)),
        Err(Errno::EAGAIN | Errno::EINTR) => (),
        Err(errno) => return Err(errno),
    }
    Ok(())
}

/// Opens a terminal or pipe once more with O_NONBLOCK. On the given descriptor the flag would be set
/// for every process that shares the open file description.
fn reopen_nonblocking(fd: BorrowedFd<'_>) -> Option<OwnedFd> {
    use std::os::fd::AsRawFd;
    let kind = SFlag::from_bits_truncate(fstat(fd).ok()?.st_mode) & SFlag::S_IFMT;
    if kind != SFlag::S_IFCHR && kind != SFlag::S_IFIFO {
        return None;
    }
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    open(path.as_str(), flags, Mode::empty()).ok()
}
