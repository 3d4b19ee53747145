//! Stops processes during a scan: PTRACE_SEIZE and PTRACE_INTERRUPT (ptrace(2)).
//!
//! The kernel lets a thread go when its tracer ends, however it ends. A thread that a signal had
//! stopped before stays stopped. A blocked epoll_wait(2) and the like may fail with EINTR, as after
//! SIGCONT (signal(7)).

use crate::error::{At, Result};
use crate::proc::Process;
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::HashSet;

/// Processes that are stopped until this is dropped.
#[derive(Default)]
pub struct Frozen {
    threads: HashSet<Pid>,
}

impl Frozen {
    /// Stops all threads of a process, with those that they start meanwhile. A thread that ends
    /// meanwhile is left out.
    ///
    /// Fails with EPERM if they may not be traced, or another tracer has them. Those that are stopped
    /// by then stay so until this is dropped.
    pub fn add(&mut self, process: &Process) -> Result<()> {
        loop {
            let threads = process.threads()?.into_iter().map(Pid::from_raw);
            let new: Vec<Pid> = threads.filter(|thread| !self.threads.contains(thread)).collect();
            if new.is_empty() {
                return Ok(());
            }
            for thread in new {
                match self.stop(thread) {
                    Ok(()) | Err(Errno::ESRCH) => (),
                    Err(errno) => return Err(errno).at(|| format!("stop thread {thread}")),
                }
            }
        }
    }

    /// Stops a thread. Fails with ESRCH if it has ended.
    fn stop(&mut self, thread: Pid) -> nix::Result<()> {
        ptrace::seize(thread, ptrace::Options::empty())?;
        self.threads.insert(thread);
        ptrace::interrupt(thread)?;
        loop {
            match waitpid(thread, Some(WaitPidFlag::__WALL))? {
                WaitStatus::PtraceEvent(..) => return Ok(()),
                // A signal came first. The thread gets it, and stops before it runs an instruction.
                WaitStatus::Stopped(_, signal) => match ptrace::getsiginfo(thread) {
                    Ok(_) => ptrace::cont(thread, signal)?,
                    Err(_) => return Ok(()),
                },
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return Ok(()),
                _ => (),
            }
        }
    }

    /// Sends a stopped process SIGSTOP, so that it stays stopped when this is dropped: it runs no
    /// instruction in between.
    pub fn leave_stopped(&self, process: &Process) -> Result<()> {
        kill(Pid::from_raw(process.pid), Signal::SIGSTOP).at(|| "SIGSTOP")
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for &thread in &self.threads {
            // Fails of a thread that has ended.
            let _ = ptrace::detach(thread, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::Stat;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

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

        fn process(&self) -> Process {
            Process::open(self.pid()).unwrap()
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
    fn freeze(process: &Process) -> Option<Frozen> {
        let mut frozen = Frozen::default();
        match frozen.add(process) {
            Err(err) if err.errno() == Some(Errno::EPERM) => {
                eprintln!("SKIP: ptrace(2) is not permitted here");
                None
            }
            other => other.map(|()| Some(frozen)).unwrap(),
        }
    }

    #[test]
    fn a_process_is_stopped_until_it_is_let_go() {
        let child = Counter::new();
        assert!(child.runs());
        let Some(frozen) = freeze(&child.process()) else { return };
        assert_eq!(frozen.threads, HashSet::from([Pid::from_raw(child.pid())]));
        // t: stopped by a tracer. It runs nothing.
        let ran = child.ran();
        std::thread::sleep(Duration::from_millis(50));
        assert!(!child.stat().is_stopped() && child.ran() == ran);
        drop(frozen);
        assert!(child.runs());
    }

    #[test]
    fn a_process_that_was_stopped_stays_stopped() {
        let child = Counter::new();
        child.signal(Signal::SIGSTOP);
        assert!(until(|| child.stat().is_stopped()));
        let Some(frozen) = freeze(&child.process()) else { return };
        drop(frozen);
        assert!(until(|| child.stat().is_stopped()));
        let ran = child.ran();
        std::thread::sleep(Duration::from_millis(50));
        assert!(child.stat().is_stopped() && child.ran() == ran);
        child.signal(Signal::SIGCONT);
        assert!(child.runs());
    }

    #[test]
    fn a_process_can_be_left_stopped() {
        let child = Counter::new();
        let process = child.process();
        let Some(frozen) = freeze(&process) else { return };
        frozen.leave_stopped(&process).unwrap();
        drop(frozen);
        assert!(until(|| child.stat().is_stopped()));
        child.signal(Signal::SIGCONT);
        assert!(child.runs());
    }

    #[test]
    fn a_signal_to_a_stopped_process_is_not_lost() {
        let child = Counter::new();
        let Some(frozen) = freeze(&child.process()) else { return };
        child.signal(Signal::SIGTERM);
        std::thread::sleep(Duration::from_millis(50));
        assert!(!child.stat().is_zombie());
        drop(frozen);
        assert!(until(|| child.stat().is_zombie()));
    }

    #[test]
    fn a_process_that_ends_meanwhile_is_no_error() {
        let mut child = Counter::new();
        let process = child.process();
        let Some(mut frozen) = freeze(&process) else { return };
        // A stopped process ends by SIGKILL alone.
        child.signal(Signal::SIGKILL);
        assert!(until(|| child.stat().is_zombie()));
        assert!(frozen.add(&process).is_ok());
        drop(frozen);
        child.0.wait().unwrap();
        assert!(Frozen::default().add(&process).is_err());
    }
}
