//! Stops processes: PTRACE_SEIZE and PTRACE_INTERRUPT (ptrace(2)).
//!
//! The kernel lets a thread go when its tracer ends, however it ends. A thread that a signal had
//! stopped before stays stopped. [`super::interrupted`] has what becomes of blocked system calls.

use super::interrupted::keep_call;
use crate::error::{At, Error, Result, Status};
use crate::proc::{ProcessIdentity, Stat, ThreadStatus, attach_refusal};
use crate::sys::trace::{self, TraceStop};
use crate::text::escape;
use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace;
use nix::unistd::{Pid, getpid};
use std::collections::HashSet;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

/// Pauses between two looks at threads that have not stopped yet: the first, which is doubled again
/// and again, and the longest.
///
/// SIGCHLD does not end the pause: the caller may ignore it, or have another thread that gets it.
const PAUSES: (Duration, Duration) = (Duration::from_micros(20), Duration::from_millis(2));
/// After such a pause a thread is also checked for having ended.
const LONG_PAUSE: Duration = Duration::from_millis(1);

/// The reason why nothing is known of the system calls of a process.
const UNKNOWN_CALLS: &str = match cfg!(target_arch = "x86_64") {
    true => "it is a 32-bit program",
    false => "this machine is no x86_64",
};

/// The tracer of processes, which are stopped until this is dropped.
///
/// It is the calling thread, which alone can use or drop this. A thread that did not stop within the
/// limit cannot be detached (ESRCH). It stays a tracee, and stops when it can, until the calling
/// thread ends: the kernel then lets it go.
pub(super) struct Tracer {
    threads: HashSet<Pid>,
    limit: Duration,
    /// ptrace(2) requests fail in any thread but the tracer.
    not_send: PhantomData<*const ()>,
}

impl Tracer {
    /// No process yet. The threads of each one may take so long to stop.
    pub(super) fn new(limit: Duration) -> Tracer {
        Tracer { threads: HashSet::new(), limit, not_send: PhantomData }
    }

    /// Stops all threads of a process, with those that they start meanwhile. A thread that ends
    /// meanwhile is left out. Gives the reason if nothing is known of the system calls that the stop
    /// interrupts.
    ///
    /// Fails with status 4 and the reason if they may not be traced, or another tracer has them; with
    /// status 5 if they have not stopped within the limit. Those that are stopped by then stay so
    /// until this is dropped.
    pub(super) fn add(&mut self, process: i32) -> Result<Option<&'static str>> {
        let deadline = Instant::now() + self.limit;
        let (mut rounds, mut kept) = (0, true);
        loop {
            let mut running = Vec::new();
            for thread in threads(process)? {
                if self.interrupt(process, thread)? {
                    running.push(thread);
                }
            }
            if running.is_empty() {
                return Ok((!kept).then_some(UNKNOWN_CALLS));
            }
            if rounds > 0 && Instant::now() >= deadline {
                return Err(self.overdue("it", "it starts threads faster than they stop"));
            }
            kept &= self.wait(process, running, deadline)?;
            rounds += 1;
        }
    }

    /// Makes a thread stop, unless it is stopped already. False if it is stopped, or has ended.
    fn interrupt(&mut self, process: i32, thread: Pid) -> Result<bool> {
        if self.threads.contains(&thread) {
            if trace::is_stopped(thread) {
                return Ok(false);
            }
            if ptrace::interrupt(thread).is_ok() {
                return Ok(!has_ended(thread));
            }
            // After execve(2) in another thread that one has the id of the leader.
            self.threads.remove(&thread);
        }
        let seized = ptrace::seize(thread, ptrace::Options::empty());
        match seized.and_then(|()| ptrace::interrupt(thread)) {
            Ok(()) => Ok(self.threads.insert(thread)),
            Err(Errno::ESRCH) => Ok(false),
            // The kernel says EPERM of a thread that has ended, too.
            Err(_) if has_ended(thread) => Ok(false),
            Err(Errno::EPERM) => Err(refusal(thread)),
            Err(errno) => Err(errno).at(|| format!("stop {}", named(process, thread))),
        }
    }

    /// Waits until all of these threads have stopped or ended. False if nothing is known of the calls
    /// of one. Fails with status 5 at the deadline.
    fn wait(&mut self, process: i32, mut running: Vec<Pid>, deadline: Instant) -> Result<bool> {
        let (mut pause, mut kept) = (PAUSES.0, true);
        loop {
            let mut failed = Ok(());
            running.retain(|&thread| match self.look(thread, pause) {
                Ok(Look::Stopped { known }) => {
                    kept &= known;
                    false
                }
                Ok(Look::Ended) => {
                    self.threads.remove(&thread);
                    false
                }
                Ok(Look::Running) => true,
                Err(errno) => {
                    failed = Err(errno).at(|| format!("stop {}", named(process, thread)));
                    true
                }
            });
            failed?;
            let Some(&first) = running.first() else { return Ok(kept) };
            if Instant::now() >= deadline {
                return Err(self.overdue(&named(process, first), &obstacle(first)));
            }
            std::thread::sleep(pause);
            pause = PAUSES.1.min(pause * 2);
        }
    }

    /// The failure of a process that was not stopped within the limit.
    fn overdue(&self, what: &str, why: &str) -> Error {
        let limit = self.limit.as_secs_f64();
        let line = format!("{what} has not stopped within {limit} seconds (--timeout): {why}");
        Error::new(Status::Gone, line)
    }

    /// Looks at a thread after a pause of this length.
    fn look(&self, thread: Pid, pause: Duration) -> nix::Result<Look> {
        let found = match trace::stop_of(thread) {
            Ok(Some(TraceStop::Begun)) => keep_call(thread).map(|known| Look::Stopped { known }),
            Ok(Some(TraceStop::Group)) => Ok(Look::Stopped { known: true }),
            // A signal came first. The thread gets it, and stops before it runs an instruction.
            Ok(Some(TraceStop::Signal(signal))) => {
                trace::resume(thread, signal).map(|()| Look::Running)
            }
            Ok(Some(_)) => trace::resume(thread, 0).map(|()| Look::Running),
            Ok(None) if pause >= LONG_PAUSE && has_ended(thread) => {
                // The parent of a process is told of its end. A child of ours is waited for elsewhere.
                let parent = Stat::of(thread.as_raw()).map(|stat| stat.parent());
                if parent != Some(getpid().as_raw()) {
                    trace::reap(thread);
                }
                Ok(Look::Ended)
            }
            Ok(None) => Ok(Look::Running),
            Err(errno) => Err(errno),
        };
        match found {
            Err(Errno::ESRCH | Errno::ECHILD) => Ok(Look::Ended),
            other => other,
        }
    }
}

/// What a look at a thread has found.
enum Look {
    Running,
    /// True if it is known what becomes of its system call.
    Stopped {
        known: bool,
    },
    Ended,
}

impl Drop for Tracer {
    fn drop(&mut self) {
        for &thread in &self.threads {
            // Fails of a thread that has ended, or has not stopped.
            let _ = ptrace::detach(thread, None);
        }
    }
}

/// A thread as a message names it, after the process that it is of.
fn named(process: i32, thread: Pid) -> String {
    match thread.as_raw() == process {
        true => "it".to_owned(),
        false => format!("its thread {thread}"),
    }
}

/// Says whether a thread has ended, waited for or not.
fn has_ended(thread: Pid) -> bool {
    Stat::of(thread.as_raw()).is_none_or(|stat| stat.is_zombie())
}

/// The reason why a thread may not be traced, and the cure.
fn refusal(thread: Pid) -> Error {
    let tracer = ThreadStatus::of(thread.as_raw()).map_or(0, |status| status.tracer);
    let stat = Stat::of(thread.as_raw());
    let without_program = |stat| ProcessIdentity::from(stat).is_without_program();
    let why = match tracer {
        0 if stat.as_ref().is_some_and(without_program) => {
            "it is a thread of the kernel".to_owned()
        }
        0 if thread == getpid() => "a process cannot stop itself".to_owned(),
        0 => attach_refusal().to_owned(),
        _ => {
            let tracer = ThreadStatus::of(tracer).map_or(tracer, |status| status.process);
            let name = Stat::of(tracer).map(|stat| stat.name().to_vec()).unwrap_or_default();
            let name = escape(&name).into_owned();
            format!("it is traced by process {tracer} ({name}); end that, or scan without --freeze")
        }
    };
    Error::new(Status::Denied, format!("it cannot be stopped: {why}"))
}

/// The reason why a thread does not stop, as far as /proc tells it.
fn obstacle(thread: Pid) -> String {
    let state = Stat::of(thread.as_raw()).map_or('?', |stat| stat.state());
    if state != 'D' {
        return format!("its state is {state}");
    }
    let read = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/{thread}/{name}")).unwrap_or_default();
        text.trim().to_owned()
    };
    let number = read("syscall").split(' ').next().and_then(|number| number.parse().ok());
    #[cfg(target_arch = "x86_64")]
    let vfork = number == Some(libc::SYS_vfork);
    #[cfg(not(target_arch = "x86_64"))]
    let vfork = false;
    // posix_spawn(3) uses the others.
    if vfork || matches!(number, Some(libc::SYS_clone | libc::SYS_clone3)) {
        return "it waits in vfork(2) until its child has ended or called execve(2)".to_owned();
    }
    // proc_pid_wchan(5): 0 if it may not be told.
    let place = match read("wchan").as_str() {
        "" | "0" => String::new(),
        name => format!(" in {name}"),
    };
    format!("it sleeps uninterruptibly (state D){place}")
}

/// The threads of a process. Fails with status 5 if it has ended.
fn threads(process: i32) -> Result<Vec<Pid>> {
    let gone = |err: std::io::Error| match err.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => Error::from(Errno::ESRCH),
        _ => Error::from(err),
    };
    let mut threads = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{process}/task")).map_err(gone)? {
        let name = entry.map_err(gone)?.file_name();
        threads.extend(name.to_str().and_then(|name| name.parse().ok()).map(Pid::from_raw));
    }
    Ok(threads)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::freeze::leave_stopped;
    use crate::sys::clone_files::read_aside;
    use crate::sys::fork::fork_in_test;
    use crate::sys::seccomp::read_in_strict_mode;
    use nix::sys::signal::{Signal, kill};
    use nix::sys::stat::Mode;
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{mkfifo, pipe};
    use std::os::fd::AsFd;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    const LIMIT: Duration = Duration::from_secs(20);

    /// A child that counts up in a shell, until it is dropped.
    struct Counter(Child);

    impl Counter {
        fn new() -> Counter {
            let script = "while :; do :; done";
            Counter(Command::new("sh").args(["-c", script]).stdin(Stdio::null()).spawn().unwrap())
        }

        fn pid(&self) -> i32 {
            self.0.id() as i32
        }

        fn stat(&self) -> Stat {
            Stat::of(self.pid()).unwrap()
        }

        /// The time that it ran, in ticks: utime and stime of proc_pid_stat(5).
        fn ran(&self) -> i64 {
            self.stat().field(14) + self.stat().field(15)
        }

        /// True if it runs within some seconds.
        fn runs(&self) -> bool {
            let before = self.ran();
            until(|| self.ran() > before)
        }

        fn signal(&self, signal: Signal) {
            kill(Pid::from_raw(self.pid()), signal).unwrap();
        }
    }

    impl Drop for Counter {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn until(holds: impl Fn() -> bool) -> bool {
        let begun = Instant::now();
        while !holds() {
            if begun.elapsed() > Duration::from_secs(20) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Stops a process, or says why this machine does not allow it.
    fn freeze(process: i32) -> Option<Tracer> {
        let mut tracer = Tracer::new(LIMIT);
        match tracer.add(process) {
            Err(err) if err.status() == Status::Denied => {
                eprintln!("SKIP: ptrace(2) is not permitted here");
                None
            }
            other => other.map(|_| Some(tracer)).unwrap(),
        }
    }

    #[test]
    fn a_process_is_stopped_until_it_is_let_go() {
        let child = Counter::new();
        assert!(child.runs());
        let Some(tracer) = freeze(child.pid()) else { return };
        assert_eq!(tracer.threads, HashSet::from([Pid::from_raw(child.pid())]));
        // t: stopped by a tracer. It runs nothing.
        let ran = child.ran();
        std::thread::sleep(Duration::from_millis(50));
        assert!(!child.stat().is_stopped() && child.ran() == ran);
        drop(tracer);
        assert!(child.runs());
    }

    #[test]
    fn a_process_that_was_stopped_stays_stopped() {
        let child = Counter::new();
        child.signal(Signal::SIGSTOP);
        assert!(until(|| child.stat().is_stopped()));
        let Some(tracer) = freeze(child.pid()) else { return };
        drop(tracer);
        assert!(until(|| child.stat().is_stopped()));
        let ran = child.ran();
        std::thread::sleep(Duration::from_millis(50));
        assert!(child.stat().is_stopped() && child.ran() == ran);
        child.signal(Signal::SIGCONT);
        assert!(child.runs());
    }

    #[test]
    fn a_thread_with_a_known_id_that_runs_is_stopped_too() {
        let child = Counter::new();
        let pid = Pid::from_raw(child.pid());
        // As after execve(2) in a thread that was not stopped yet.
        let mut tracer = Tracer::new(LIMIT);
        tracer.threads.insert(pid);
        match tracer.add(child.pid()) {
            Err(err) if err.status() == Status::Denied => {
                return eprintln!("SKIP: ptrace(2) is not permitted here");
            }
            other => assert_eq!(other.unwrap(), None),
        }
        assert!(trace::is_stopped(pid) && tracer.threads.contains(&pid));
        drop(tracer);
        assert!(child.runs());
    }

    #[test]
    fn a_thread_that_did_not_stop_is_let_go_when_its_tracer_ends() {
        let fifo = std::env::temp_dir().join(format!("fdkit-freeze-{}", std::process::id()));
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        // Its child opens the fifo, and it waits as in vfork(2) until that has ended.
        let child = fork_in_test(|| drop(read_aside(&fifo)));
        let state = || Stat::of(child.as_raw()).map(|stat| stat.state());
        assert!(until(|| state() == Some('D')));
        let process = child.as_raw();
        let traced_by = move || ThreadStatus::of(child.as_raw()).unwrap().tracer;
        let stop = move || {
            let mut tracer = Tracer::new(Duration::from_millis(100));
            let failed = tracer.add(process).unwrap_err();
            drop(tracer);
            (failed, traced_by() != 0)
        };
        let (failed, traced) = std::thread::spawn(stop).join().unwrap();
        let let_go = until(|| traced_by() == 0);
        drop(std::fs::OpenOptions::new().write(true).open(&fifo).unwrap());
        std::fs::remove_file(&fifo).unwrap();
        assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
        if failed.status() == Status::Denied {
            return eprintln!("SKIP: ptrace(2) is not permitted here");
        }
        let why = "it has not stopped within 0.1 seconds (--timeout): it waits in vfork(2)";
        assert!(failed.status() == Status::Gone && failed.to_string().starts_with(why), "{failed}");
        assert!(traced && let_go);
    }

    #[test]
    fn a_process_in_the_strict_mode_of_seccomp_lives_on() {
        let (read, write) = pipe().unwrap();
        let child = fork_in_test(|| read_in_strict_mode(read.as_fd()));
        let status = || ThreadStatus::of(child.as_raw()).unwrap();
        let asleep = || Stat::of(child.as_raw()).is_some_and(|stat| stat.state() == 'S');
        if !until(|| status().seccomp == 1 && asleep()) {
            let _ = waitpid(child, None);
            return eprintln!("SKIP: this kernel has no seccomp(2)");
        }
        drop(freeze(child.as_raw()));
        assert_eq!(nix::unistd::write(&write, b"x"), Ok(1));
        assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 1)));
    }

    #[test]
    fn a_process_can_be_left_stopped() {
        let child = Counter::new();
        let process = child.pid();
        let Some(tracer) = freeze(process) else { return };
        leave_stopped(process).unwrap();
        drop(tracer);
        assert!(until(|| child.stat().is_stopped()));
        child.signal(Signal::SIGCONT);
        assert!(child.runs());
    }

    #[test]
    fn a_signal_to_a_stopped_process_is_not_lost() {
        let child = Counter::new();
        let Some(tracer) = freeze(child.pid()) else { return };
        child.signal(Signal::SIGTERM);
        std::thread::sleep(Duration::from_millis(50));
        assert!(!child.stat().is_zombie());
        drop(tracer);
        assert!(until(|| child.stat().is_zombie()));
    }

    #[test]
    fn a_process_that_ends_meanwhile_is_no_error() {
        let mut child = Counter::new();
        let process = child.pid();
        let Some(mut tracer) = freeze(process) else { return };
        // A stopped process ends by SIGKILL alone.
        child.signal(Signal::SIGKILL);
        assert!(until(|| child.stat().is_zombie()));
        assert!(tracer.add(process).is_ok());
        drop(tracer);
        child.0.wait().unwrap();
        assert!(Tracer::new(LIMIT).add(process).is_err());
    }
}
