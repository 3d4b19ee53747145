//! The stages at which all tasks wait for the last, and the search for those that died.
//!
//! Three stages, at each of which all wait for the last: *born* (every process is there, with its
//! session, its controlling terminal and what its children are to be born with), *restored* (every
//! table stands), *gone on* (our own descriptors are closed, credentials are put back; it holds, or
//! runs its command). Until the last stage whatever dies takes all others along.

use super::state::{ARRIVED, FAILED, PATIENCE, STAGE, TreeRestore};
use crate::cli::progress::{Progress, Unit};
use crate::error::{Error, Result, Status};
use crate::sys::{self};
use nix::sys::signal::{SigSet, Signal};
use std::sync::atomic::Ordering;

impl TreeRestore<'_> {
    /// Waits until all tasks have come to a stage; fails if one has died.
    pub(super) fn wait_for(&self, stage: i32) -> Result<()> {
        let count = self.tree.image.tasks.len() as i32;
        let mut progress = Progress::new("fdrestore", Unit::Of("tasks"), u64::try_from(count).ok());
        let mut told = count * (stage - 1);
        loop {
            let arrived = self.shared.cell(ARRIVED).load(Ordering::Acquire);
            progress.add(u64::try_from(arrived - told).unwrap_or(0));
            told = told.max(arrived);
            let failed = self.shared.cell(FAILED).load(Ordering::Acquire);
            if failed != 0 {
                return Err(self.failure(failed as usize - 1));
            }
            if arrived >= count * stage {
                return Ok(());
            }
            self.shared.wait(ARRIVED, arrived, Some(PATIENCE));
            if self.shared.cell(ARRIVED).load(Ordering::Acquire) != arrived {
                continue;
            }
            let dead = (0..count as usize).find(|&at| {
                let reached = self.shared.cell(self.reached_cell(at)).load(Ordering::Acquire);
                reached < stage && self.has_died(at)
            });
            // One that fails says why before it ends, and those below it die of that.
            if self.shared.cell(FAILED).load(Ordering::Acquire) != 0 {
                continue;
            }
            if let Some(signal) = sys::signal::take_pending(&enders()) {
                let why = format!("{signal} came before all was restored");
                return Err(Error::new(Status::System, why));
            }
            if let Some(at) = dead {
                let why = match killed_for_memory() > self.killed {
                    true => "it was killed for want of memory",
                    false => "it was killed",
                };
                let pid = self.tree.image.tasks[at].pid;
                return Err(Error::new(Status::System, why).at(format!("task {pid}")));
            }
        }
    }

    pub(super) fn has_died(&self, task: usize) -> bool {
        match self.pid(task) {
            0 => false,
            pid => crate::proc::Stat::of(pid).is_none_or(|stat| stat.is_zombie()),
        }
    }

    /// Says that it has come to a stage, and waits until all may go on.
    pub(super) fn arrive(&self, at: usize, stage: i32) {
        self.shared.cell(self.reached_cell(at)).store(stage, Ordering::Release);
        self.shared.add(ARRIVED);
        self.await_stage(stage);
    }

    pub(super) fn await_stage(&self, stage: i32) {
        loop {
            let now = self.shared.cell(STAGE).load(Ordering::Acquire);
            if now >= stage {
                return;
            }
            self.shared.wait(STAGE, now, None);
        }
    }

    pub(super) fn reached(&self, at: usize, stage: i32) {
        self.shared.cell(self.reached_cell(at)).store(stage, Ordering::Release);
        self.shared.add(ARRIVED);
    }
}

/// The signals that end us.
pub(super) fn enders() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT].into_iter().collect()
}

/// How many processes the kernel has killed for want of memory: /proc/vmstat, Linux 4.13.
pub(super) fn killed_for_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|count| count.parse().ok()).unwrap_or(0)
}
