//! A fresh pseudo terminal, shown on the caller's: bytes both ways, its size, and the caller's
//! terminal put back however it ends.

use crate::open::{ENDING, begin, exit_code};
use fdkit::cli::{self, Outcome, Tool};
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

/// The most bytes that wait for a reader on either side.
const ROOM: usize = 64 << 10;
/// In milliseconds: how long the last words of COMMAND may take through the kernel after its end, and
/// how often a terminal that nobody has open is looked at.
const A_MOMENT: u16 = 100;

/// COMMAND on a terminal of its own.
pub(crate) fn run(tool: &Tool, command: &[OsString]) -> Result<Outcome> {
    cli::text_stdout()?;
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let master = open("/dev/ptmx", flags, Mode::empty()).at(|| "/dev/ptmx")?;
    tty::set_locked(&master, false).at(|| "unlock the terminal")?;
    let outer = outer();
    if let Some(outer) = &outer {
        let settings = Settings::read(outer).at(|| "our terminal")?;
        // A discipline that moves packets, or locks, are our terminal's own affair.
        let settings = Settings { discipline: 0, locked: None, ..settings };
        for line in settings.apply(master.as_fd(), true)? {
            tool.warn(line);
        }
    }
    let mut signals = SigSet::empty();
    ENDING.iter().for_each(|&signal| signals.add(signal));
    for signal in [Signal::SIGCHLD, Signal::SIGWINCH, Signal::SIGTSTP, Signal::SIGCONT] {
        signals.add(signal);
    }
    let before = signals.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let watched = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let Some(child) = fork().at(|| "fork")? else {
        before.thread_set_mask()?;
        let slave = tty::peer(&master, (libc::O_RDWR | libc::O_CLOEXEC) as u32);
        let slave = slave.at(|| "open the terminal")?;
        drop(master);
        return begin(tool, slave, false, command, outer.is_none()).map(Outcome::from);
    };
    let raw = outer.map(Raw::new).transpose();
    let relayed = raw.and_then(|raw| {
        let mut relay = Relay::new(master, watched, child, raw)?;
        let ended = relay.run()?;
        // Before anything else is said or done, the terminal is as it was.
        drop(relay);
        Ok(ended)
    });
    match relayed {
        Ok(Ended::Command(code)) => Ok(code.into()),
        Ok(Ended::Signal(signal)) => {
            // Whoever sent it sees that we died of it.
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

/// The terminal that we are used on.
fn outer() -> Option<OwnedFd> {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let all = [
        (stdin.is_terminal(), stdin.as_fd()),
        (stdout.is_terminal(), stdout.as_fd()),
        (stderr.is_terminal(), stderr.as_fd()),
    ];
    let (_, fd) = all.into_iter().find(|(terminal, _)| *terminal)?;
    fd.try_clone_to_owned().ok()
}

/// A terminal in raw mode, until this is dropped.
struct Raw {
    terminal: OwnedFd,
    before: Termios,
}

impl Raw {
    fn new(terminal: OwnedFd) -> Result<Raw> {
        let before = tty::line(&terminal).at(|| "our terminal")?;
        let raw = Raw { terminal, before };
        raw.begin()?;
        Ok(raw)
    }

    fn begin(&self) -> Result<()> {
        let mut line = self.before;
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
        tty::set_line(&self.terminal, &line).at(|| "make our terminal raw")
    }

    /// Puts it back, also if we are in the background by now, where SIGTTOU would stop us.
    fn end(&self) {
        let mut stop = SigSet::empty();
        stop.add(Signal::SIGTTOU);
        let before = stop.thread_swap_mask(SigmaskHow::SIG_BLOCK);
        let _ = tty::set_line(&self.terminal, &self.before);
        let _ = before.and_then(|before| before.thread_set_mask());
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.end();
    }
}

/// How the relay ended.
enum Ended {
    Command(ExitCode),
    Signal(Signal),
}

struct Relay {
    master: OwnedFd,
    /// Nobody has the slave open, for now: /dev/tty can be opened again.
    hung: bool,
    signals: SignalFd,
    child: Pid,
    raw: Option<Raw>,
    /// stdin, until its end.
    stdin: Option<OwnedFd>,
    out: OwnedFd,
    /// Typed, not yet taken by the master.
    typed: Vec<u8>,
    /// Whether a line was begun, and not ended.
    begun: bool,
    /// Said, not yet taken by stdout.
    said: Vec<u8>,
    ended: Option<ExitCode>,
}

impl Relay {
    fn new(master: OwnedFd, signals: SignalFd, child: Pid, raw: Option<Raw>) -> Result<Relay> {
        let stdin = std::io::stdin().as_fd().try_clone_to_owned()?;
        let stdin = (!fdkit::sys::start::closed_at_start(0)).then_some(stdin);
        let stdout = std::io::stdout();
        let out = match own_description(stdout.as_fd()) {
            Some(own) => own,
            None => stdout.as_fd().try_clone_to_owned()?,
        };
        let (typed, said) = (Vec::new(), Vec::new());
        let (begun, hung, ended) = (false, false, None);
        Ok(Relay { master, hung, signals, child, raw, stdin, out, typed, begun, said, ended })
    }

    fn run(&mut self) -> Result<Ended> {
        if self.stdin.is_none() {
            self.end_input();
        }
        loop {
            let limit = match &self.ended {
                Some(_) if self.said.is_empty() => PollTimeout::from(A_MOMENT),
                _ if self.hung => PollTimeout::from(A_MOMENT),
                _ => PollTimeout::NONE,
            };
            let (signalled, master, stdin, quiet) = self.wait(limit)?;
            if signalled {
                while let Some(info) = self.signals.read_signal()? {
                    let signal = Signal::try_from(info.ssi_signo as i32)?;
                    if let Some(ended) = self.signal(signal)? {
                        return Ok(ended);
                    }
                }
            }
            if stdin {
                self.read_stdin()?;
            }
            if master || self.hung {
                self.read_master()?;
            }
            self.write_all()?;
            if self.said.is_empty() && (quiet || self.hung) {
                if let Some(code) = self.ended.take() {
                    return Ok(Ended::Command(code));
                }
            }
        }
    }

    /// Waits for something to do: a signal, the master, stdin; or nothing within the limit.
    fn wait(&self, limit: PollTimeout) -> Result<(bool, bool, bool, bool)> {
        let events = |wanted: [(bool, PollFlags); 2]| {
            wanted.iter().filter(|(on, _)| *on).fold(PollFlags::empty(), |all, (_, one)| all | *one)
        };
        let (input, output) = (PollFlags::POLLIN, PollFlags::POLLOUT);
        let mut polled = vec![PollFd::new(self.signals.as_fd(), input)];
        let mut places = [None; 2];
        let wanted = events([(self.said.len() < ROOM, input), (!self.typed.is_empty(), output)]);
        // A hang-up is reported whatever is wanted, again and again.
        if !wanted.is_empty() && !self.hung {
            places[0] = Some(polled.len());
            polled.push(PollFd::new(self.master.as_fd(), wanted));
        }
        if let Some(stdin) = self.stdin.as_ref().filter(|_| self.typed.len() < ROOM) {
            places[1] = Some(polled.len());
            polled.push(PollFd::new(stdin.as_fd(), input));
        }
        if !self.said.is_empty() {
            polled.push(PollFd::new(self.out.as_fd(), output));
        }
        let count = match poll(&mut polled, limit) {
            Err(Errno::EINTR) => return Ok((false, false, false, false)),
            other => other?,
        };
        let ready = |at: usize| polled[at].revents().is_some_and(|got| !got.is_empty());
        let [master, stdin] = places.map(|place| place.is_some_and(ready));
        Ok((ready(0), master, stdin, count == 0))
    }

    fn signal(&mut self, signal: Signal) -> Result<Option<Ended>> {
        match signal {
            Signal::SIGCHLD => match waitpid(self.child, Some(WaitPidFlag::WNOHANG)) {
                Ok(status) => self.ended = exit_code(status).or(self.ended.take()),
                Err(Errno::ECHILD) => (),
                Err(errno) => return Err(errno.into()),
            },
            Signal::SIGWINCH => self.resize(),
            Signal::SIGTSTP => {
                if let Some(raw) = &self.raw {
                    raw.end();
                }
                raise(Signal::SIGSTOP)?;
            }
            Signal::SIGCONT => {
                if let Some(raw) = &self.raw {
                    raw.begin()?;
                }
                self.resize();
            }
            ending => {
                // The terminal is put back at once; its end is COMMAND's hang-up.
                let _ = kill(self.child, ending);
                return Ok(Some(Ended::Signal(ending)));
            }
        }
        Ok(None)
    }

    /// As large as ours; the kernel tells COMMAND if that is new.
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
                self.begun = buffer[count - 1] != b'\n';
                self.typed.extend_from_slice(&buffer[..count]);
            }
            Err(Errno::EAGAIN | Errno::EINTR) => (),
            Err(errno) => return Err(errno).at(|| "stdin"),
        }
        Ok(())
    }

    /// To COMMAND, the end of a pipe is what ^D is at a terminal: in a line that was begun the first
    /// only ends that.
    fn end_input(&mut self) {
        let line = tty::line(&self.master).ok();
        let end = line.filter(|line| line.c_lflag & libc::ICANON != 0);
        let count = if self.begun { 2 } else { 1 };
        self.typed.extend(end.into_iter().flat_map(|line| vec![line.c_cc[libc::VEOF]; count]));
    }

    fn read_master(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        let got = read(&self.master, &mut buffer);
        self.hung = got == Err(Errno::EIO);
        match got {
            Ok(count) => self.said.extend_from_slice(&buffer[..count]),
            Err(Errno::EIO | Errno::EAGAIN | Errno::EINTR) => (),
            Err(errno) => return Err(errno).at(|| "the terminal"),
        }
        Ok(())
    }

    /// Writes what either side takes.
    fn write_all(&mut self) -> Result<()> {
        match put(self.master.as_fd(), &mut self.typed) {
            Ok(()) => (),
            Err(Errno::EIO) => self.typed.clear(),
            Err(errno) => return Err(errno).at(|| "the terminal"),
        }
        put(self.out.as_fd(), &mut self.said).map_err(|errno| Error::from(errno).at("stdout"))
    }
}

fn put(to: BorrowedFd<'_>, bytes: &mut Vec<u8>) -> nix::Result<()> {
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

/// A description of our own of a terminal or pipe, on which a write never waits: O_NONBLOCK on the
/// given one would be everybody's.
fn own_description(fd: BorrowedFd<'_>) -> Option<OwnedFd> {
    use std::os::fd::AsRawFd;
    let kind = SFlag::from_bits_truncate(fstat(fd).ok()?.st_mode) & SFlag::S_IFMT;
    if kind != SFlag::S_IFCHR && kind != SFlag::S_IFIFO {
        return None;
    }
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    open(path.as_str(), flags, Mode::empty()).ok()
}
