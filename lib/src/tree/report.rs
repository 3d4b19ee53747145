//! What tasks report to the coordinator: warnings, failures, statistics.

use super::state::{ARRIVED, FAILED, STATS_CELLS, StatsPage, TreeRestore};
use crate::error::{Error, Result, Status};
use crate::placement::Size;
use crate::plan::Plan;
use crate::sys::fork::{self};
use crate::table::stats::{Meter, ProcessStats, TableStats};
use crate::table::syscall_counter::Calls;
use std::sync::atomic::Ordering;

/// How a tree came out.
pub struct Grown {
    /// For each task of the image its process id then and now.
    pub pids: Vec<(i32, i32)>,
    /// What was said on the way.
    pub said: Vec<String>,
    /// What it took, if that was asked for.
    pub stats: Option<Vec<ProcessStats>>,
}

impl TreeRestore<'_> {
    /// What counts for this process.
    pub(super) fn meter(&self) -> Meter<'_> {
        Meter::from_birth(self.stats_page.as_ref().map(|stats_page| &stats_page.counter))
    }

    /// FDSize of each task, as it is now.
    pub(super) fn sizes(&self) -> Result<Vec<u64>> {
        let tasks = 0..self.tree.image.tasks.len();
        tasks.map(|at| crate::proc::capacity_of(self.pid(at))).collect()
    }

    /// What all took. A table was larger than it is only before it was made smaller, when its task
    /// looked.
    pub(super) fn stats(
        &self,
        stats_page: &StatsPage,
        messages: u32,
        calls: Option<Calls>,
    ) -> Result<Vec<ProcessStats>> {
        let ends = self.sizes()?;
        let cell = |at: usize, which: usize| {
            stats_page.shared.cell(STATS_CELLS * at + which).load(Ordering::Acquire)
        };
        let row = |at: &usize| {
            let at = *at;
            let [all, dups, messages, seen] = [0, 1, 2, 3].map(|which| cell(at, which) as u32);
            let made = |plan: &Plan<'_>| TableStats {
                descriptors: plan.descriptors(),
                size: Size { peak: ends[at].max(seen.into()), end: ends[at] },
            };
            ProcessStats {
                pid: Some(self.tree.image.tasks[at].pid),
                table: self.tree.tables[at].as_ref().map(made),
                calls: calls.map(|_| Calls { all, dups }),
                messages,
            }
        };
        let own = ProcessStats { pid: None, table: None, calls, messages };
        Ok(self.tree.shape.order.iter().map(row).chain([own]).collect())
    }

    /// Puts down what a task took.
    pub(super) fn put_down(&self, at: usize, meter: &Meter<'_>, messages: u32) {
        let Some(stats_page) = &self.stats_page else { return };
        let Calls { all, dups } = meter.calls().unwrap_or_default();
        let values = [all, dups, messages, meter.peak as u32];
        for (which, value) in values.into_iter().enumerate() {
            stats_page.shared.cell(STATS_CELLS * at + which).store(value as i32, Ordering::Release);
        }
    }

    /// The error that a task has left behind: its last line, with the status before it.
    pub(super) fn failure(&self, task: usize) -> Error {
        let text = self.shared.said(task);
        let pid = self.tree.image.tasks[task].pid;
        let last = text.lines().last().unwrap_or_default();
        let (status, why) = last.split_once(' ').unwrap_or(("7", last));
        let status = match status {
            "3" => Status::Malformed,
            "4" => Status::Denied,
            "6" => Status::Unrestorable,
            _ => Status::System,
        };
        Error::new(status, why).at(format!("task {pid}"))
    }

    /// Says why, and ends this process; fdrestore ends the others.
    pub(super) fn fail(&self, at: usize, why: &Error) -> ! {
        self.shared.say(at, &format!("{} {why}", why.status() as u8));
        self.shared.set(FAILED, at as i32 + 1);
        self.shared.wake(ARRIVED);
        fork::end(1)
    }
}
