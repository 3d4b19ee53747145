//! Stops tasks while they are looked at: PTRACE_SEIZE and PTRACE_INTERRUPT (ptrace(2)).
//!
//! The kernel lets a task go when its tracer ends, however it ends, and a task that a signal had
//! stopped before stays stopped. What is blocked in epoll_wait(2) and the like may see EINTR, as it
//! may after SIGCONT (signal(7)).

use crate::error::{At, Result};
use crate::proc::Process;
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Tasks that stand still until this is dropped.
#[derive(Default)]
pub struct Frozen {
    threads: Vec<Pid>,
}

impl Frozen {
    /// Stops all threads of a process, those too that are born meanwhile.
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

    fn stop(&mut self, thread: Pid) -> nix::Result<()> {
        ptrace::seize(thread, ptrace::Options::empty())?;
        self.threads.push(thread);
        ptrace::interrupt(thread)?;
        loop {
            match waitpid(thread, Some(WaitPidFlag::__WALL))? {
                WaitStatus::PtraceEvent(..) => return Ok(()),
                // A signal came first: the task gets it, and stops before it runs anything.
                WaitStatus::Stopped(_, signal) => match ptrace::getsiginfo(thread) {
                    Ok(_) => ptrace::cont(thread, signal)?,
                    Err(_) => return Ok(()),
                },
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return Ok(()),
                _ => (),
            }
        }
    }

    /// Leaves a process stopped by SIGSTOP: it runs no instruction between now and then.
    pub fn leave_stopped(&self, process: &Process) -> Result<()> {
        kill(Pid::from_raw(process.pid), Signal::SIGSTOP).at(|| "SIGSTOP")
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for &thread in &self.threads {
            // A thread that is gone needs no letting go.
            let _ = ptrace::detach(thread, None);
        }
    }
}
