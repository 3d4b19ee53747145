//! Processes that are stopped during a scan.
//!
//! A child of this process, the holder, is their tracer (ptrace(2)). It holds the stop until no process
//! has the other end of its socket any more: this process, and its children that put something back
//! ([`crate::kind`]: messages of a queue, bytes of a terminal, the peek offset of a socket), each of
//! which inherits that end. So none of the stopped processes runs while a part of its queue is
//! elsewhere, also if this process is killed.
//!
//! If the holder itself is killed, the kernel lets all processes go at once.

use super::tracer::Tracer;
use crate::error::{At, Error, Result, Status};
use crate::proc::Process;
use crate::sys::fork;
use crate::sys::own_table::close_all_but;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, setsid};
use std::io::{ErrorKind, Read};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// The time in which the threads of a process must stop, unless `--timeout` gives another.
pub const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Processes that are stopped until this is dropped.
///
/// A process of several threads has no holder, since it cannot fork: there the calling thread is the
/// tracer. If a process does not stop within the limit, it then stops later, and stays so until the
/// calling thread ends. So a caller that lives on after a failure of [`Frozen::add`] calls it in a
/// thread that ends.
pub struct Frozen {
    limit: Duration,
    stopper: Option<Stopper>,
    /// The first process whose system calls may end early, and the reason.
    unkept: Option<String>,
}

/// Who traces the processes.
enum Stopper {
    Holder(Holder),
    /// The calling thread.
    Here(Tracer),
}

impl Frozen {
    /// No process yet. The threads of each one may take so long to stop.
    pub fn new(limit: Duration) -> Frozen {
        Frozen { limit, stopper: None, unkept: None }
    }

    /// Stops all threads of a process, with those that they start meanwhile. A thread that ends
    /// meanwhile is left out.
    ///
    /// Fails with status 4 and the reason if they may not be traced, or another tracer has them; with
    /// status 5 if they have not stopped within the limit, or the process is gone. Those that are
    /// stopped by then stay so until this is dropped.
    pub fn add(&mut self, process: &Process) -> Result<()> {
        let stopper = match self.stopper.take() {
            Some(stopper) => stopper,
            None => match Holder::start(self.limit) {
                Err(Errno::EDEADLK) => Stopper::Here(Tracer::new(self.limit)),
                other => Stopper::Holder(other.map_err(Error::no_process)?),
            },
        };
        let unknown = match self.stopper.insert(stopper) {
            Stopper::Holder(holder) => holder.add(process.pid)?,
            Stopper::Here(tracer) => tracer.add(process.pid)?.map(str::to_owned),
        };
        // Otherwise another process may have its id by now.
        process.identity()?;
        if let (Some(why), None) = (unknown, &self.unkept) {
            let lost =
                "a call that the stop interrupts may fail with EINTR, or break a seccomp filter";
            self.unkept = Some(format!("{}: {why}: {lost}", process.pid));
        }
        Ok(())
    }

    /// The first process of which system calls may end early that the stop interrupts, and the
    /// reason.
    pub fn unkept(&self) -> Option<&str> {
        self.unkept.as_deref()
    }

    /// Tells the holder that the scan goes on. If it does not for the limit, the holder lets all go: the
    /// scan may wait for one of the stopped processes, in a call that no signal ends.
    pub fn go_on(&mut self) {
        if let Some(Stopper::Holder(holder)) = &mut self.stopper {
            if holder.told.elapsed() > self.limit / 8 {
                holder.tell(GOES_ON);
            }
        }
    }

    /// Sets no limit for what follows, until [`Frozen::limit_again`]: something is taken out of a queue,
    /// and nobody may run before it is back.
    pub fn without_limit(&mut self) {
        if let Some(Stopper::Holder(holder)) = &mut self.stopper {
            holder.tell(WITHOUT_LIMIT);
        }
    }

    /// Ends what [`Frozen::without_limit`] has begun.
    pub fn limit_again(&mut self) {
        if let Some(Stopper::Holder(holder)) = &mut self.stopper {
            holder.tell(GOES_ON);
        }
    }

    /// Fails with status 5 if the processes run again, since the holder was killed, or gave up.
    pub fn check(&self) -> Result<()> {
        match &self.stopper {
            Some(Stopper::Holder(holder)) => match holder.end() {
                None => Ok(()),
                Some(WaitStatus::Exited(_, STOOD_STILL)) => Err(stood_still(self.limit)),
                Some(_) => Err(lost()),
            },
            _ => Ok(()),
        }
    }
}

/// The failure of a stop that the holder gave up.
fn stood_still(limit: Duration) -> Error {
    let why = format!(
        "the processes ran during the scan: it stood still for {} seconds, perhaps since one of them had \
         to answer (FUSE, fanotify), and they were let go; scan without --freeze",
        limit.as_secs_f64()
    );
    Error::new(Status::Gone, why)
}

/// The failure of a stop whose holder was killed.
fn lost() -> Error {
    let why = "the processes ran during the scan: the process that held them stopped was killed";
    Error::new(Status::Gone, why)
}

/// A child that stops processes, and holds them stopped.
struct Holder {
    child: Pid,
    socket: UnixStream,
    /// When it was last told that the scan goes on.
    told: Instant,
}

/// The messages to the holder that are not the id of a process: the scan goes on, and the limit does
/// not apply until the next message.
const GOES_ON: i32 = 0;
const WITHOUT_LIMIT: i32 = -1;

/// Its exit status if it has heard nothing for the limit.
const STOOD_STILL: i32 = 3;

/// The bytes before the text of an answer: the status, and the length of the text.
const ANSWER_HEAD: usize = 5;

impl Holder {
    /// Forks it. Fails with EDEADLK in a process of several threads.
    fn start(limit: Duration) -> nix::Result<Holder> {
        let pair = UnixStream::pair();
        let (ours, theirs) =
            pair.map_err(|err| Errno::from_raw(err.raw_os_error().unwrap_or(0)))?;
        match fork::fork()? {
            Some(child) => Ok(Holder { child, socket: ours, told: Instant::now() }),
            None => {
                // A signal to the process group of its parent, or from the terminal, does not end it,
                // and it is no user of that terminal.
                let _ = setsid();
                let _ = close_all_but(theirs.as_raw_fd());
                std::mem::forget(ours);
                hold(theirs, limit);
                fork::end(0)
            }
        }
    }

    /// Has it stop a process. Gives the reason if nothing is known of the system calls that the stop
    /// interrupts. Fails as [`Tracer::add`] does.
    fn add(&mut self, process: i32) -> Result<Option<String>> {
        if process == getpid().as_raw() || process == self.child.as_raw() {
            let why = "it cannot be stopped: it is fdscan itself";
            return Err(Error::new(Status::Denied, why));
        }
        let (status, text) = self.ask(process).map_err(|_| lost())?;
        match Status::from_code(status) {
            Some(Status::Done) => Ok((!text.is_empty()).then_some(text)),
            status => Err(Error::new(status.unwrap_or(Status::System), text)),
        }
    }

    /// Sends the id of a process, and receives the answer.
    fn ask(&mut self, process: i32) -> std::io::Result<(u8, String)> {
        // Without MSG_NOSIGNAL the end of the holder would end this process.
        send(self.socket.as_raw_fd(), &process.to_ne_bytes(), MsgFlags::MSG_NOSIGNAL)?;
        let mut head = [0; ANSWER_HEAD];
        self.socket.read_exact(&mut head)?;
        let [status, len @ ..] = head;
        let mut text = vec![0; u32::from_ne_bytes(len) as usize];
        self.socket.read_exact(&mut text)?;
        Ok((status, String::from_utf8_lossy(&text).into_owned()))
    }

    /// Sends it a word that has no answer.
    fn tell(&mut self, word: i32) {
        self.told = Instant::now();
        // If it has ended, [`Frozen::check`] says so.
        let _ = send(self.socket.as_raw_fd(), &word.to_ne_bytes(), MsgFlags::MSG_NOSIGNAL);
    }

    /// How it has ended; none while it holds the processes. It is asked once.
    fn end(&self) -> Option<WaitStatus> {
        match waitpid(self.child, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => None,
            other => Some(other.unwrap_or(WaitStatus::Exited(self.child, 0))),
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // A child that has inherited this end does not keep it open.
        let _ = self.socket.shutdown(Shutdown::Both);
        while waitpid(self.child, None) == Err(Errno::EINTR) {}
    }
}

/// The work of the holder: stops each process whose id it receives, and returns when no process has
/// the other end of its socket any more. It ends if it hears nothing for the limit.
fn hold(mut socket: UnixStream, limit: Duration) {
    let mut tracer = Tracer::new(limit);
    let mut word = [0; 4];
    let mut limited = false;
    loop {
        if socket.set_read_timeout(limited.then_some(limit)).is_err() {
            return;
        }
        match socket.read_exact(&mut word) {
            Ok(()) => (),
            Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                fork::end(STOOD_STILL)
            }
            Err(_) => return,
        }
        let process = i32::from_ne_bytes(word);
        limited = process != WITHOUT_LIMIT;
        if matches!(process, GOES_ON | WITHOUT_LIMIT) {
            continue;
        }
        let (status, text) = match tracer.add(process) {
            Ok(unknown) => (Status::Done, unknown.unwrap_or_default().to_owned()),
            Err(err) => (err.status(), err.to_string()),
        };
        let mut answer = vec![status as u8];
        answer.extend((text.len() as u32).to_ne_bytes());
        answer.extend(text.as_bytes());
        // It succeeds as long as anybody has the other end. Nobody must wait for an answer that was
        // not sent.
        if send(socket.as_raw_fd(), &answer, MsgFlags::MSG_NOSIGNAL).is_err() {
            return;
        }
    }
}

/// Sends a stopped process SIGSTOP, so that it stays stopped when it is let go: it runs no instruction
/// in between.
pub fn leave_stopped(process: i32) -> Result<()> {
    kill(Pid::from_raw(process), Signal::SIGSTOP).at(|| "SIGSTOP")
}
