//! What a restore took, for `--stats`: measured, not derived from the plan.

use crate::error::{At, Result};
use crate::placement::Size;
use crate::proc;
use crate::sys;
use crate::table::syscall_counter::{Calls, Counter, CounterSlot};

/// Looks on while a table is restored by this process.
pub struct Meter<'c> {
    counter: Option<(&'c Counter, CounterSlot)>,
    /// The calls before, and those that the looking took.
    aside: Calls,
    /// FDSize at its largest, as far as it was looked at.
    pub peak: u64,
}

impl<'c> Meter<'c> {
    /// One that began when the count did, or this process.
    pub fn from_process_start(counter: Option<&'c Counter>) -> Meter<'c> {
        let counter = counter.filter(|counter| counter.refusal().is_none());
        let counter = counter.and_then(|counter| Some((counter, counter.own_slot()?)));
        // To find the place took a call.
        Meter { counter, aside: Calls { all: 1, dups: 0 }, peak: 0 }
    }

    /// One that begins now.
    pub fn new(counter: Option<&'c Counter>) -> Meter<'c> {
        let mut meter = Meter::from_process_start(counter);
        meter.aside = meter.all();
        meter
    }

    fn all(&self) -> Calls {
        self.counter.map_or(Calls::default(), |(counter, place)| counter.calls(place))
    }

    /// Says that the service descriptors stand: what was copied for that is not the table's.
    pub fn services_placed(&mut self) {
        self.aside.dups = self.all().dups;
    }

    /// Looks how large the table is: before it is made smaller, and at the end. It is looked at from
    /// a copy, since a descriptor more could make it larger.
    pub fn measure_size(&mut self) -> Result<u64> {
        let before = self.all();
        // Not "self", which is the process that reads.
        let path = format!("/proc/{}/status", nix::unistd::getpid());
        let status = sys::clone_files::read_aside(path.as_ref()).at(|| path.clone())?;
        let size = proc::capacity_in(&status);
        self.peak = self.peak.max(size);
        let took = self.all() - before;
        self.aside.all += took.all;
        self.aside.dups += took.dups;
        Ok(size)
    }

    /// The calls until now, without those for looking; none if they are not counted.
    pub fn calls(&self) -> Option<Calls> {
        self.counter.map(|_| self.all() - self.aside)
    }
}

/// A table as it came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableStats {
    /// How many descriptors.
    pub descriptors: usize,
    /// FDSize.
    pub size: Size,
}

/// What one process took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessStats {
    /// The id of its task in the image; none for fdrestore, which makes what several tasks have.
    pub pid: Option<i32>,
    /// Its table; none for one that shares another's, and for fdrestore.
    pub table: Option<TableStats>,
    /// Its system calls, if they could be counted.
    pub calls: Option<Calls>,
    /// Messages put into the fdstore, or taken from it.
    pub messages: u32,
}
