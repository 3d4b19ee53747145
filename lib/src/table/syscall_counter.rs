//! Counts system calls from outside, so that none is forgotten: a child traces this process, and
//! with it all that it makes (ptrace(2)). Only for `--stats`: each call takes some µs longer.
//!
//! The child also keeps the stderr of our caller, and says what there is to say at the end, when
//! this process may have no descriptor of its own any more.

use crate::error::{At, Result};
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

/// What a process has called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// All system calls.
    pub all: u32,
    /// Those that make a second number of a descriptor: dup(2) and the like, F_DUPFD.
    pub dups: u32,
}

impl std::ops::Sub for Calls {
    type Output = Calls;

    fn sub(self, before: Calls) -> Calls {
        Calls { all: self.all - before.all, dups: self.dups - before.dups }
    }
}

const STATE: usize = 0;
/// What the tracer is told, and says; an errno is negative.
const COUNTING: i32 = 1;
const ENOUGH: i32 = 2;
/// The cells of a process: its id, then the counts.
const EACH: usize = 3;

/// Where the counts of a process are.
#[derive(Clone, Copy, Debug)]
pub struct CounterSlot(usize);

/// A count that goes on until it is told to end.
pub struct Counter {
    shared: SharedMem,
    places: usize,
    tracer: Pid,
    of: Pid,
    /// Why this process may not be traced.
    refused: Option<Errno>,
}

impl Counter {
    /// Begins to count for this process, and for up to so many that it makes, and they make.
    pub fn start(processes: usize) -> Result<Counter> {
        // Half of the places stay empty, so that each is found at once.
        let places = (2 * processes + 64).next_power_of_two();
        let shared = SharedMem::new(1 + EACH * places, 1).at(|| "shared memory")?;
        let of = getpid();
        let mut counter = Counter { shared, places, tracer: of, of, refused: None };
        match fork::clone3(CloneArgs::default()).at(|| "clone3")? {
            None => counter.trace(),
            Some(tracer) => counter.tracer = tracer,
        }
        trace::allow(counter.tracer);
        loop {
            match counter.shared.cell(STATE).load(Ordering::Acquire) {
                0 => counter.shared.wait(STATE, 0, None),
                COUNTING => return Ok(counter),
                errno => {
                    counter.refused = Some(Errno::from_raw(-errno));
                    return Ok(counter);
                }
            }
        }
    }

    /// The first cell of a process; none if there are too many.
    fn place(&self, pid: Pid) -> Option<usize> {
        let first = pid.as_raw() as usize;
        (0..self.places).map(|step| 1 + EACH * ((first + step) % self.places)).find(|&at| {
            let cell = self.shared.cell(at);
            let new = || {
                cell.compare_exchange(0, pid.as_raw(), Ordering::AcqRel, Ordering::Acquire).is_ok()
            };
            cell.load(Ordering::Acquire) == pid.as_raw() || new()
        })
    }

    /// Where the counts of this process are. It takes one system call.
    pub fn own_slot(&self) -> Option<CounterSlot> {
        self.place(getpid()).map(CounterSlot)
    }

    /// What a process has called since the count began, or since it was made. It takes no call.
    pub fn calls(&self, of: CounterSlot) -> Calls {
        let count = |at: usize| self.shared.cell(of.0 + at).load(Ordering::Acquire) as u32;
        Calls { all: count(1), dups: count(2) }
    }

    /// Why nothing is counted, if so: this process may not be traced, or is traced already.
    pub fn refusal(&self) -> Option<String> {
        let why = |errno: Errno| format!("system calls are not counted: ptrace: {}", errno.desc());
        self.refused.map(why)
    }

    /// Has this said once the count has ended.
    pub fn add_message(&self, text: &str) {
        self.shared.push(0, 0, text.as_bytes(), 0);
    }

    /// Lets all go, and waits until they are: nothing of it is left.
    pub fn end(&self) {
        if getpid() == self.of && self.shared.cell(STATE).load(Ordering::Acquire) != ENOUGH {
            self.shared.set(STATE, ENOUGH);
            while waitpid(self.tracer, None) == Err(Errno::EINTR) {}
        }
    }

    /// What the child does. It has no descriptor but stderr, and no signal ends it.
    fn trace(&self) -> ! {
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
        let _ = credentials::die_with_parent(true);
        let _ = close_all_but_stderr();
        if let Err(errno) = self.seize() {
            self.shared.set(STATE, -(errno as i32));
            while self.shared.cell(STATE).load(Ordering::Acquire) != ENOUGH {
                self.shared.wait(STATE, -(errno as i32), None);
            }
        } else {
            self.follow();
        }
        let _ = nix::unistd::write(std::io::stderr(), self.shared.records(0).text().as_bytes());
        fork::end(0)
    }

    fn seize(&self) -> nix::Result<()> {
        let which = ptrace::Options::PTRACE_O_TRACESYSGOOD
            | ptrace::Options::PTRACE_O_TRACEFORK
            | ptrace::Options::PTRACE_O_TRACEVFORK
            | ptrace::Options::PTRACE_O_TRACECLONE;
        // Yama may not have been told yet.
        let seized = (0..1000).find_map(|_| match ptrace::seize(self.of, which) {
            Err(Errno::EPERM) => {
                std::thread::sleep(std::time::Duration::from_micros(100));
                None
            }
            other => Some(other),
        });
        seized.unwrap_or(Err(Errno::EPERM)).and_then(|()| ptrace::interrupt(self.of))
    }

    /// Counts until all tracees are gone, or let go.
    fn follow(&self) {
        let mut tracees = HashSet::from([self.of]);
        let mut ending = false;
        while let Ok((pid, stop)) = trace::wait() {
            match stop {
                TraceStop::Ended => {
                    tracees.remove(&pid);
                    continue;
                }
                TraceStop::Call => self.count(pid),
                TraceStop::Child => {
                    if let Ok(child) = ptrace::getevent(pid) {
                        tracees.insert(Pid::from_raw(child as libc::pid_t));
                    }
                }
                _ => drop(tracees.insert(pid)),
            }
            if !ending && self.shared.cell(STATE).load(Ordering::Acquire) == ENOUGH {
                ending = true;
                tracees.iter().filter(|&&other| other != pid).for_each(|&other| {
                    let _ = ptrace::interrupt(other);
                });
            }
            let signal = if let TraceStop::Signal(signal) = stop { signal } else { 0 };
            // One that was killed meanwhile is not there to go on.
            let _ = match (ending, stop) {
                (true, _) => {
                    tracees.remove(&pid);
                    trace::detach(pid, signal)
                }
                (_, TraceStop::Group) => trace::listen(pid),
                _ => trace::to_next_syscall(pid, signal),
            };
            if pid == self.of && self.shared.cell(STATE).load(Ordering::Acquire) == 0 {
                self.shared.set(STATE, COUNTING);
            }
            if ending && tracees.is_empty() {
                break;
            }
        }
    }

    fn count(&self, pid: Pid) {
        let (Ok(Some((number, args))), Some(place)) = (trace::call(pid), self.place(pid)) else {
            return;
        };
        let add = |at: usize| self.shared.cell(at).fetch_add(1, Ordering::AcqRel);
        add(place + 1);
        if makes_a_second_number(number, args) {
            add(place + 2);
        }
    }
}

fn makes_a_second_number(number: libc::c_long, args: [u64; 6]) -> bool {
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
    fn places_are_found_again_and_end() {
        let shared = SharedMem::new(1 + EACH * 4, 0).unwrap();
        let none = Pid::from_raw(0);
        let counter = Counter { shared, places: 4, tracer: none, of: none, refused: None };
        let at = |pid| counter.place(Pid::from_raw(pid));
        assert_eq!((at(5), at(9), at(5), at(9)), (Some(4), Some(7), Some(4), Some(7)));
        assert_eq!((at(2), at(4)), (Some(10), Some(1)));
        assert_eq!(at(6), None);
        assert_eq!(at(4), Some(1));
    }

    #[test]
    fn only_dups_are_dups() {
        let fcntl =
            |command: i32| makes_a_second_number(libc::SYS_fcntl, [3, command as u64, 0, 0, 0, 0]);
        assert!(fcntl(libc::F_DUPFD) && fcntl(libc::F_DUPFD_CLOEXEC) && !fcntl(libc::F_SETFL));
        assert!(makes_a_second_number(libc::SYS_dup3, [3, 4, 0, 0, 0, 0]));
        assert!(!makes_a_second_number(libc::SYS_openat, [0; 6]));
    }
}
