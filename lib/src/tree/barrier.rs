//! Stages of the restore, at each of which all tasks wait for the last, and the search for tasks
//! that died on the way.
//!
//! Until the last stage, the death of one task ends the restore.

use super::state::{ARRIVED, FAILED, STAGE, SharedState};
use crate::cli::progress::{Progress, Unit};
use crate::error::{Error, Result, Status};
use crate::sys;
use nix::sys::signal::{SigSet, Signal};
use std::time::Duration;

/// A stage of the restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i32)]
pub(super) enum Stage {
    /// Every process is forked, is in its session with its controlling terminal, and has forked its
    /// children.
    Forked = 1,
    /// Every table and every process attribute is restored.
    Restored = 2,
    /// The service descriptors are closed; the task holds its descriptors, or runs its program.
    Released = 3,
}

/// The interval at which a waiting coordinator looks for tasks that died and for signals.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(100);

impl SharedState {
    /// Records that a task has come to a stage, and does not wait.
    pub(super) fn reach(&self, task: usize, stage: Stage) {
        self.set_reached(task, stage as i32);
        self.memory.add(ARRIVED);
    }

    /// Records that a task has come to a stage, and waits until all tasks may go on.
    pub(super) fn arrive(&self, task: usize, stage: Stage) {
        self.reach(task, stage);
        self.await_release(stage);
    }

    /// Lets all tasks that wait at a stage go on.
    pub(super) fn release(&self, stage: Stage) {
        self.memory.set(STAGE, stage as i32);
    }

    /// Waits until tasks that have come to a stage may go on.
    pub(super) fn await_release(&self, stage: Stage) {
        loop {
            let now = self.load(STAGE);
            if now >= stage as i32 {
                return;
            }
            self.memory.wait(STAGE, now, None);
        }
    }

    /// The first task that failed, if one did.
    pub(super) fn failed(&self) -> Option<usize> {
        usize::try_from(self.load(FAILED) - 1).ok()
    }

    /// The first task that has died before it reached a stage.
    fn first_dead(&self, stage: Stage) -> Option<usize> {
        (0..self.count()).find(|&task| self.reached(task) < stage as i32 && self.has_died(task))
    }

    fn has_died(&self, task: usize) -> bool {
        match self.pid(task) {
            0 => false,
            pid => crate::proc::Stat::of(pid).is_none_or(|stat| stat.is_zombie()),
        }
    }
}

/// Waits for all tasks, on behalf of the coordinator.
pub(super) struct Watcher<'a> {
    state: &'a SharedState,
    /// Processes that the kernel had killed for lack of memory when the restore began.
    oom_kills: u64,
}

impl<'a> Watcher<'a> {
    pub(super) fn new(state: &'a SharedState) -> Watcher<'a> {
        Watcher { state, oom_kills: oom_kills() }
    }

    /// Waits until all tasks have come to a stage.
    ///
    /// Fails with the error of a task that failed, or with status 7 if a task was killed or if a
    /// signal of [`ending_signals`] is pending.
    pub(super) fn wait_for(&self, stage: Stage) -> Result<()> {
        let state = self.state;
        let count = state.count() as i32;
        let mut progress = Progress::new("fdrestore", Unit::Of("tasks"), u64::try_from(count).ok());
        let mut shown = count * (stage as i32 - 1);
        loop {
            let arrived = state.load(ARRIVED);
            progress.add(u64::try_from(arrived - shown).unwrap_or(0));
            shown = shown.max(arrived);
            if let Some(task) = state.failed() {
                return Err(state.failure(task));
            }
            if arrived >= count * stage as i32 {
                return Ok(());
            }
            state.memory.wait(ARRIVED, arrived, Some(POLL_INTERVAL));
            if state.load(ARRIVED) != arrived {
                continue;
            }
            let dead = state.first_dead(stage);
            // A task that fails says why before it ends, and its descendants are killed then.
            if state.failed().is_some() {
                continue;
            }
            if let Some(signal) = sys::signal::take_pending(&ending_signals()) {
                let why = format!("{signal} has ended fdrestore before all tasks were restored");
                return Err(Error::new(Status::System, why));
            }
            if let Some(task) = dead {
                let why = match oom_kills() > self.oom_kills {
                    true => "it was killed: the system, or its memory cgroup, is out of memory",
                    false => "it was killed by a signal",
                };
                return Err(Error::new(Status::System, why).at(state.name(task)));
            }
        }
    }
}

/// The signals that end fdrestore, and the tree with it.
pub(super) fn ending_signals() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT].into_iter().collect()
}

/// The number of processes that the kernel has killed for lack of memory: `oom_kill` of
/// /proc/vmstat, Linux 4.13.
fn oom_kills() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|count| count.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fork::fork_in_test;
    use nix::sys::wait::waitpid;
    use nix::unistd::Pid;

    /// Tasks that run this, each in a process of its own, given its index.
    fn tasks(count: usize, run: impl Fn(&SharedState, usize)) -> SharedState {
        let state = SharedState::new((0..count as i32).map(|task| 10 + task).collect(), 0).unwrap();
        for task in 0..count {
            let pid = fork_in_test(|| run(&state, task));
            state.set_pid(task, pid.as_raw());
        }
        state
    }

    fn reap(state: &SharedState) {
        for task in 0..state.count() {
            let _ = waitpid(Pid::from_raw(state.pid(task)), None);
        }
    }

    #[test]
    fn all_tasks_wait_for_the_last_and_are_released() {
        let state = tasks(3, |state, task| {
            if task == 0 {
                std::thread::sleep(Duration::from_millis(50));
            }
            state.arrive(task, Stage::Forked);
            state.arrive(task, Stage::Restored);
            state.reach(task, Stage::Released);
        });
        let watcher = Watcher::new(&state);
        watcher.wait_for(Stage::Forked).unwrap();
        let reached = || [0, 1, 2].map(|task| state.reached(task));
        assert_eq!(reached(), [1; 3]);
        state.release(Stage::Forked);
        watcher.wait_for(Stage::Restored).unwrap();
        assert_eq!(reached(), [2; 3]);
        // A later stage releases an earlier one as well.
        state.release(Stage::Released);
        watcher.wait_for(Stage::Released).unwrap();
        reap(&state);
    }

    #[test]
    fn a_task_that_dies_is_found_and_named() {
        let state = tasks(3, |state, task| {
            if task != 1 {
                state.arrive(task, Stage::Forked);
            }
        });
        let err = Watcher::new(&state).wait_for(Stage::Forked).unwrap_err();
        assert_eq!(err.status(), Status::System);
        assert!(err.to_string().starts_with("task 11: it was killed"), "{err}");
        // A task that has come to the stage may end.
        assert_eq!(state.first_dead(Stage::Forked), Some(1));
        state.release(Stage::Forked);
        reap(&state);
        assert_eq!(state.first_dead(Stage::Restored), Some(0));
    }

    #[test]
    fn the_status_and_text_of_a_task_that_fails_arrive_whole() {
        let state = tasks(2, |state, task| match task {
            0 => state.arrive(task, Stage::Forked),
            _ => {
                state.problem(task, "fd 3: busy");
                state.problem(task, "fd 4: busy");
                state.fail(task, &Error::new(Status::Denied, "not reached"));
            }
        });
        let err = Watcher::new(&state).wait_for(Stage::Forked).unwrap_err();
        assert_eq!(err.status(), Status::Denied);
        assert_eq!(err.to_string(), "task 11: fd 3: busy; fd 4: busy");
        state.release(Stage::Forked);
        reap(&state);
    }
}
