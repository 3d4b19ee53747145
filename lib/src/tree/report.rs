//! Reports of the tasks to the coordinator: warnings, failures, statistics.

use super::state::{ARRIVED, FAILED, STATS_CELLS, SharedState, StatsPage, TreeRestore};
use crate::error::{Error, Result, Status};
use crate::placement::Size;
use crate::plan::Plan;
use crate::sys::fork;
use crate::sys::shared_mem::{ROOM, more};
use crate::table::stats::{Meter, ProcessStats, TableStats};
use crate::table::syscall_counter::Calls;
use std::sync::atomic::Ordering;

/// A tree that was restored.
pub struct RestoredTree {
    /// The process id of each task: in the image, and now.
    pub pids: Vec<(i32, i32)>,
    /// Warnings, a line each.
    pub warnings: Vec<String>,
    /// System calls, messages and table sizes, if they were asked for.
    pub stats: Option<Vec<ProcessStats>>,
}

/// The tag of a warning. The tag of a failure is the code of its status.
const WARNING: u8 = 255;
/// The tag of one of several reasons of a failure that follows.
const PROBLEM: u8 = 254;

/// Room that warnings leave for a failure, and problems for its status.
const FAILURE_RESERVE: usize = ROOM / 2;
const STATUS_RESERVE: usize = 256;

impl SharedState {
    /// Reports a warning of a task.
    pub(super) fn warn(&self, task: usize, line: &str) {
        self.memory.push(task, WARNING, line.as_bytes(), FAILURE_RESERVE);
    }

    /// Reports one of several reasons why a task will fail: [`SharedState::fail`] follows.
    pub(super) fn problem(&self, task: usize, line: &str) {
        self.memory.push(task, PROBLEM, line.as_bytes(), STATUS_RESERVE);
    }

    /// Reports that a task has failed, and wakes the coordinator. The first failure of all counts.
    pub(super) fn fail(&self, task: usize, err: &Error) {
        let (status, why) = (err.status() as u8, err.to_string());
        if !self.memory.push(task, status, why.as_bytes(), 0) {
            self.memory.push(task, status, b"its message is too long to be shown", 0);
        }
        let cell = self.memory.cell(FAILED);
        let _ = cell.compare_exchange(0, task as i32 + 1, Ordering::AcqRel, Ordering::Acquire);
        self.memory.wake(ARRIVED);
    }

    /// The error that a task has reported.
    pub(super) fn failure(&self, task: usize) -> Error {
        let records = self.memory.records(task);
        let mut status = Status::System;
        let (mut why, mut problems) = (String::new(), Vec::new());
        for record in &records.records {
            let text = String::from_utf8_lossy(&record.bytes).into_owned();
            match (record.tag, Status::from_code(record.tag)) {
                (PROBLEM, _) => problems.push(text),
                (_, Some(of_failure)) => (status, why) = (of_failure, text),
                _ => (),
            }
        }
        if !problems.is_empty() {
            problems.extend((records.dropped > 0).then(|| more(records.dropped)));
            why = problems.join("; ");
        }
        Error::new(status, why).at(self.name(task))
    }

    /// The warnings of all tasks, each with the name of its task.
    pub(super) fn warnings(&self) -> Vec<String> {
        let of_task = |task: usize| {
            let records = self.memory.records(task);
            let warnings = records.records.into_iter().filter(|record| record.tag == WARNING);
            let lines = warnings.map(|record| String::from_utf8_lossy(&record.bytes).into_owned());
            let lines = lines.chain((records.dropped > 0).then(|| more(records.dropped)));
            lines.map(|line| format!("{}: {line}", self.name(task))).collect::<Vec<String>>()
        };
        (0..self.count()).flat_map(of_task).collect()
    }
}

impl TreeRestore<'_> {
    /// Reports why a task fails, and ends its process; the coordinator ends the others.
    pub(super) fn exit_failed(&self, task: usize, err: &Error) -> ! {
        self.state.fail(task, err);
        fork::end(1)
    }

    /// The meter of the system calls of this process.
    pub(super) fn meter(&self) -> Meter<'_> {
        Meter::from_process_start(self.stats.as_ref().map(|stats| &stats.counter))
    }

    /// Reports the statistics of a task.
    pub(super) fn report_stats(&self, task: usize, meter: &Meter<'_>, messages: u32) {
        let Some(stats) = &self.stats else { return };
        let Calls { all, dups } = meter.calls().unwrap_or_default();
        let values = [all, dups, messages, meter.peak as u32];
        for (which, value) in values.into_iter().enumerate() {
            let cell = stats.shared.cell(STATS_CELLS * task + which);
            cell.store(value as i32, Ordering::Release);
        }
    }

    /// The statistics of all tasks, in the order in which they were forked, then of the
    /// coordinator, which put so many messages into the fdstore.
    ///
    /// A table shrinks only where its task looked at it before, so that the larger of that size and
    /// of today's is its peak.
    pub(super) fn collect_stats(
        &self,
        stats: &StatsPage,
        messages: u32,
        calls: Option<Calls>,
    ) -> Result<Vec<ProcessStats>> {
        let sizes =
            (0..self.state.count()).map(|task| crate::proc::capacity_of(self.state.pid(task)));
        let sizes = sizes.collect::<Result<Vec<u64>>>()?;
        let cell = |at: usize, which: usize| stats.shared.get(STATS_CELLS * at + which);
        let row = |at: &usize| {
            let at = *at;
            let [all, dups, messages, seen] = [0, 1, 2, 3].map(|which| cell(at, which) as u32);
            let table = |plan: &Plan<'_>| TableStats {
                descriptors: plan.descriptors(),
                size: Size { peak: sizes[at].max(seen.into()), end: sizes[at] },
            };
            ProcessStats {
                pid: Some(self.state.image_pids[at]),
                table: self.tree.tables[at].as_ref().map(table),
                calls: calls.map(|_| Calls { all, dups }),
                messages,
            }
        };
        let own = ProcessStats { pid: None, table: None, calls, messages };
        Ok(self.tree.shape.order.iter().map(row).chain([own]).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::shared_mem::SharedRecords;

    fn state() -> SharedState {
        SharedState::new(vec![10, 20], 0).unwrap()
    }

    #[test]
    fn every_status_and_its_text_arrive() {
        for status in Status::ALL {
            let state = state();
            state.fail(1, &Error::new(status, "no: reason").at("fd 3"));
            let err = Error::new(status, "fd 3: no: reason").at("task 20");
            assert_eq!((state.failure(1), state.failed()), (err, Some(1)));
        }
    }

    #[test]
    fn the_first_failure_counts() {
        let state = state();
        state.fail(1, &Error::new(Status::Gone, "first"));
        state.fail(0, &Error::new(Status::Denied, "second"));
        assert_eq!(state.failed(), Some(1));
    }

    #[test]
    fn a_failure_has_all_its_problems() {
        let state = state();
        state.warn(0, "a warning");
        state.problem(0, "fd 3: gone");
        state.problem(0, "fd 4: gone");
        state.fail(0, &Error::unrestorable("2 cannot be restored"));
        let err = Error::unrestorable("fd 3: gone; fd 4: gone").at("task 10");
        assert_eq!(state.failure(0), err);
    }

    #[test]
    fn no_line_is_cut_and_what_has_no_room_is_counted() {
        let state = state();
        let line = format!("fd 3: {}", "x".repeat(600));
        for _ in 0..100 {
            state.warn(0, &line);
        }
        let warnings = state.warnings();
        let (last, whole) = warnings.split_last().unwrap();
        assert!(whole.iter().all(|it| *it == format!("task 10: {line}")));
        assert_eq!(*last, format!("task 10: ... and {} more lines", 100 - whole.len()));
        // Warnings leave room for problems and a failure.
        state.problem(0, &line);
        state.fail(0, &Error::malformed("no"));
        let err = state.failure(0);
        let shown = format!("task 10: {line}; ... and {} more lines", 100 - whole.len());
        assert_eq!((err.status(), err.to_string()), (Status::Malformed, shown));
    }

    #[test]
    fn a_status_arrives_however_long_its_text_and_its_problems_are() {
        let state = state();
        for _ in 0..100 {
            state.problem(0, &"y".repeat(1000));
        }
        state.fail(0, &Error::new(Status::Denied, "z".repeat(ROOM)));
        let err = state.failure(0);
        assert_eq!(err.status(), Status::Denied);
        assert!(err.to_string().ends_with(" more lines"), "{err}");
        state.fail(1, &Error::new(Status::Gone, "z".repeat(ROOM)));
        let err = state.failure(1);
        assert_eq!(err.status(), Status::Gone);
        assert_eq!(err.to_string(), "task 20: its message is too long to be shown");
    }

    #[test]
    fn bytes_that_are_no_text_are_shown() {
        let state = state();
        state.memory.push(0, WARNING, b"\xff\n", 0);
        state.memory.push(0, 77, b"of a tag that nobody knows", 0);
        state.memory.push(0, Status::No as u8, b"\xfe", 0);
        assert_eq!(state.warnings(), ["task 10: \u{fffd}\n"]);
        assert_eq!(state.failure(0), Error::new(Status::No, "\u{fffd}").at("task 10"));
        assert_eq!(state.memory.records(1), SharedRecords::default());
        assert_eq!(state.failure(1), Error::new(Status::System, "").at("task 20"));
    }
}
