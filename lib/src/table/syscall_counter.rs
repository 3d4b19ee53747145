//! Counts system calls by ptrace(2): a child traces this process and its later children. Only for
//! `--stats`, because each call takes some microseconds longer.
//!
//! The child also keeps the stderr of the caller, and prints the messages at the end, when this
//! process may have no service descriptors.

use crate::error::{At, Error, Result};
use crate::sys::credentials;
use crate::sys::fork::{self, CloneArgs};
use crate::sys::own_table::close_all_but_stderr;
use crate::sys::shared_mem::SharedMem;
use crate::sys::trace::{self, TraceStop};
use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getpid};
use std::collections::HashSet;
use std::sync::atomic::Ordering;

/// The number of system calls of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// All system calls.
    pub all: u32,
    /// The calls that duplicate a descriptor: dup(2), dup2(2), dup3(2), and F_DUPFD of fcntl(2).
    pub dups: u32,
}

impl std::ops::Sub for Calls {
    type Output = Calls;

    fn sub(self, before: Calls) -> Calls {
        Calls { all: self.all - before.all, dups: self.dups - before.dups }
    }
}

/// The index of the shared cell with the state of the tracer: zero at first, a negative errno if it
/// cannot trace.
const STATE: usize = 0;
/// The state after the tracer has attached.
const COUNTING: i32 = 1;
/// The state that tells the tracer to end.
const ENDING: i32 = 2;
/// The number of shared cells of a process: its id, and the two counts of [`Calls`].
const CELLS_PER_PROCESS: usize = 3;

/// The index of the first shared cell of a process.
#[derive(Clone, Copy, Debug)]
pub struct CounterSlot(usize);

/// A running counter, which ends when it is dropped in the process that started it.
pub struct Counter {
    shared: SharedMem,
    /// The size of the hash table of processes.
    slots: usize,
    tracer: Pid,
    /// The process that started the counter.
    starter: Pid,
    /// The errno with which ptrace(2) failed, if it did.
    refused: Option<Errno>,
}

impl Counter {
    /// Starts to count the calls of this process, and of up to `processes` descendants.
    ///
    /// Returns a counter with [`Counter::refusal`] if this process may not be traced.
    pub fn start(processes: usize) -> Result<Counter> {
        // At least half of the slots stay empty, so that probing is short.
        let slots = (2 * processes + 64).next_power_of_two();
        let shared = SharedMem::new(1 + CELLS_PER_PROCESS * slots, 1).at(|| "shared memory")?;
        let starter = getpid();
        let mut counter = Counter { shared, slots, tracer: starter, starter, refused: None };
        match fork::clone3(CloneArgs::default()).map_err(Error::no_process)? {
            None => counter.trace(),
            Some(tracer) => counter.tracer = tracer,
        }
        trace::allow(counter.tracer);
        loop {
            match counter.shared.get(STATE) {
                0 => counter.shared.wait(STATE, 0, None),
                COUNTING => return Ok(counter),
                errno => {
                    counter.refused = Some(Errno::from_raw(-errno));
                    return Ok(counter);
                }
            }
        }
    }

    /// The index of the first cell of a process, by linear probing; none if the table is full.
    fn slot_of(&self, pid: Pid) -> Option<usize> {
        let first = pid.as_raw() as usize;
        (0..self.slots).map(|step| 1 + CELLS_PER_PROCESS * ((first + step) % self.slots)).find(
            |&at| {
                let cell = self.shared.cell(at);
                let claim = || {
                    cell.compare_exchange(0, pid.as_raw(), Ordering::AcqRel, Ordering::Acquire)
                        .is_ok()
                };
                cell.load(Ordering::Acquire) == pid.as_raw() || claim()
            },
        )
    }

    /// The slot of this process. Makes one system call.
    pub fn own_slot(&self) -> Option<CounterSlot> {
        self.slot_of(getpid()).map(CounterSlot)
    }

    /// The calls of a process since the counter was started, or since it was forked. Makes no
    /// system call.
    pub fn calls(&self, slot: CounterSlot) -> Calls {
        let count = |at: usize| self.shared.get(slot.0 + at) as u32;
        Calls { all: count(1), dups: count(2) }
    }

    /// The message that says why no calls are counted, if so: this process may not be traced, or is
    /// traced already.
    pub fn refusal(&self) -> Option<String> {
        let why = |errno: Errno| format!("system calls are not counted: ptrace: {}", errno.desc());
        self.refused.map(why)
    }

    /// Adds text that the tracer prints on stderr when the counter ends.
    pub fn add_message(&self, text: &str) {
        self.shared.push(0, 0, text.as_bytes(), 0);
    }

    /// Ends the counter, and waits until the tracer has detached from all processes and has exited.
    /// Does nothing in other processes than the one that started it.
    pub fn end(&self) {
        if getpid() == self.starter && self.shared.get(STATE) != ENDING {
            self.shared.set(STATE, ENDING);
            while waitpid(self.tracer, None) == Err(Errno::EINTR) {}
        }
    }

    /// The tracer. It has no descriptor except stderr, and blocks all signals.
    fn trace(&self) -> ! {
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
        let _ = credentials::die_with_parent(true);
        let _ = close_all_but_stderr();
        if let Err(errno) = self.seize() {
            self.shared.set(STATE, -(errno as i32));
            while self.shared.get(STATE) != ENDING {
                self.shared.wait(STATE, -(errno as i32), None);
            }
        } else {
            self.count_calls();
        }
        let _ = nix::unistd::write(std::io::stderr(), self.shared.records(0).text().as_bytes());
        fork::end(0)
    }

    /// Attaches to the process that started the counter.
    fn seize(&self) -> nix::Result<()> {
        let which = ptrace::Options::PTRACE_O_TRACESYSGOOD
            | ptrace::Options::PTRACE_O_TRACEFORK
            | ptrace::Options::PTRACE_O_TRACEVFORK
            | ptrace::Options::PTRACE_O_TRACECLONE;
        // Until PR_SET_PTRACER of that process has taken effect, Yama refuses with EPERM.
        let seized = (0..1000).find_map(|_| match ptrace::seize(self.starter, which) {
            Err(Errno::EPERM) => {
                std::thread::sleep(std::time::Duration::from_micros(100));
                None
            }
            other => Some(other),
        });
        seized.unwrap_or(Err(Errno::EPERM)).and_then(|()| ptrace::interrupt(self.starter))
    }

    /// Counts until all tracees have terminated, or are detached.
    fn count_calls(&self) {
        let mut tracees = HashSet::from([self.starter]);
        let mut ending = false;
        while let Ok((pid, stop)) = trace::wait() {
            match stop {
                TraceStop::Ended => {
                    tracees.remove(&pid);
                    continue;
                }
                TraceStop::Call => self.count_one(pid),
                TraceStop::Child => {
                    if let Ok(child) = ptrace::getevent(pid) {
                        tracees.insert(Pid::from_raw(child as libc::pid_t));
                    }
                }
                _ => drop(tracees.insert(pid)),
            }
            if !ending && self.shared.get(STATE) == ENDING {
                ending = true;
                tracees.iter().filter(|&&other| other != pid).for_each(|&other| {
                    let _ = ptrace::interrupt(other);
                });
            }
            let signal = if let TraceStop::Signal(signal) = stop { signal } else { 0 };
            // These fail with ESRCH for a tracee that was killed.
            let _ = match (ending, stop) {
                (true, _) => {
                    tracees.remove(&pid);
                    trace::detach(pid, signal)
                }
                (_, TraceStop::Group) => trace::listen(pid),
                _ => trace::to_next_syscall(pid, signal),
            };
            if pid == self.starter && self.shared.get(STATE) == 0 {
                self.shared.set(STATE, COUNTING);
            }
            if ending && tracees.is_empty() {
                break;
            }
        }
    }

    /// Counts the system call at whose entry a tracee has stopped.
    fn count_one(&self, pid: Pid) {
        let (Ok(Some((number, args))), Some(slot)) = (trace::call(pid), self.slot_of(pid)) else {
            return;
        };
        let add = |at: usize| self.shared.cell(at).fetch_add(1, Ordering::AcqRel);
        add(slot + 1);
        if duplicates_a_descriptor(number, args) {
            add(slot + 2);
        }
    }
}

/// Reports whether a system call duplicates a descriptor.
fn duplicates_a_descriptor(number: libc::c_long, args: [u64; 6]) -> bool {
    let command = args[1] as i32;
    #[cfg(any(target_arch = "x86_64", target_arch = "x86", target_arch = "arm"))]
    if number == libc::SYS_dup2 {
        return true;
    }
    number == libc::SYS_dup
        || number == libc::SYS_dup3
        || number == libc::SYS_fcntl && [libc::F_DUPFD, libc::F_DUPFD_CLOEXEC].contains(&command)
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_found_again_and_the_table_can_be_full() {
        let shared = SharedMem::new(1 + CELLS_PER_PROCESS * 4, 0).unwrap();
        let none = Pid::from_raw(0);
        let counter = Counter { shared, slots: 4, tracer: none, starter: none, refused: None };
        let at = |pid| counter.slot_of(Pid::from_raw(pid));
        assert_eq!((at(5), at(9), at(5), at(9)), (Some(4), Some(7), Some(4), Some(7)));
        assert_eq!((at(2), at(4)), (Some(10), Some(1)));
        assert_eq!(at(6), None);
        assert_eq!(at(4), Some(1));
    }

    #[test]
    fn only_calls_that_duplicate_a_descriptor_are_dups() {
        let fcntl = |command: i32| {
            duplicates_a_descriptor(libc::SYS_fcntl, [3, command as u64, 0, 0, 0, 0])
        };
        assert!(fcntl(libc::F_DUPFD) && fcntl(libc::F_DUPFD_CLOEXEC) && !fcntl(libc::F_SETFL));
        assert!(duplicates_a_descriptor(libc::SYS_dup3, [3, 4, 0, 0, 0, 0]));
        assert!(!duplicates_a_descriptor(libc::SYS_openat, [0; 6]));
    }
}
