//! The costs of a restore, for `--stats`: measured, not computed from the plan.

use crate::error::{At, Result};
use crate::placement::Size;
use crate::proc;
use crate::sys;
use crate::table::syscall_counter::{Calls, Counter, CounterSlot};

/// Measures the restore of a table by this process.
pub struct Meter<'c> {
    counter: Option<(&'c Counter, CounterSlot)>,
    /// The calls that are not counted: those before the restore, and those of the measuring.
    excluded: Calls,
    /// The largest FDSize of proc_pid_status(5) that was measured.
    pub peak: u64,
}

impl<'c> Meter<'c> {
    /// A meter that counts from the start of this process, or of the counter if that is later.
    pub fn from_process_start(counter: Option<&'c Counter>) -> Meter<'c> {
        let counter = counter.filter(|counter| counter.refusal().is_none());
        let counter = counter.and_then(|counter| Some((counter, counter.own_slot()?)));
        // Counter::own_slot has made one system call.
        Meter { counter, excluded: Calls { all: 1, dups: 0 }, peak: 0 }
    }

    /// A meter that counts from now on.
    pub fn new(counter: Option<&'c Counter>) -> Meter<'c> {
        let mut meter = Meter::from_process_start(counter);
        meter.excluded = meter.all();
        meter
    }

    fn all(&self) -> Calls {
        self.counter.map_or(Calls::default(), |(counter, slot)| counter.calls(slot))
    }

    /// Excludes the dups until now: they were made for service descriptors.
    pub fn services_placed(&mut self) {
        self.excluded.dups = self.all().dups;
    }

    /// Measures FDSize, the number of slots of the table; called before the table is shrunk, and at
    /// the end. A child with a copy of the table reads it, because another open number could make
    /// the table larger.
    pub fn measure_size(&mut self) -> Result<u64> {
        let before = self.all();
        // /proc/self would be the process that reads.
        let path = format!("/proc/{}/status", nix::unistd::getpid());
        let status = sys::clone_files::read_aside(path.as_ref()).at(|| path.clone())?;
        let size = proc::capacity_in(&status);
        self.peak = self.peak.max(size);
        let measuring = self.all() - before;
        self.excluded.all += measuring.all;
        self.excluded.dups += measuring.dups;
        Ok(size)
    }

    /// The calls until now, without the excluded ones; none if they are not counted.
    pub fn calls(&self) -> Option<Calls> {
        self.counter.map(|_| self.all() - self.excluded)
    }
}

/// The restored table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableStats {
    /// The number of descriptors.
    pub descriptors: usize,
    /// FDSize of proc_pid_status(5), in slots.
    pub size: Size,
}

/// The costs of one process of a restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessStats {
    /// The process id of its task in the image; none for fdrestore, which opens the files that
    /// several tasks have.
    pub pid: Option<i32>,
    /// Its table; none for a task that shares the table of another, and for fdrestore.
    pub table: Option<TableStats>,
    /// Its system calls; none if they could not be counted.
    pub calls: Option<Calls>,
    /// The number of messages sent to the fdstore, or received from it.
    pub messages: u32,
}
