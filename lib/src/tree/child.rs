//! A forked task, from the fork until it has a table of its own to restore, or shares one.

use super::barrier::Stage;
use super::state::{ServiceFds, TableAtFork, TreeRestore};
use crate::error::{At, Result};
use crate::sys::{credentials, fork};
use crate::table::fdstore::Store;
use nix::sys::signal::{SigmaskHow, sigprocmask};
use nix::unistd::{getpid, getppid};
use std::convert::Infallible;

/// The whole of a task, as [`super::state::ChildMain`]. It returns only to fail.
pub(super) fn child_main(
    restore: &TreeRestore<'_>,
    task: usize,
    at_fork: TableAtFork<'_>,
) -> Result<Infallible> {
    restore.state.set_pid(task, getpid().as_raw());
    credentials::die_with_parent(true).at(|| "PR_SET_PDEATHSIG")?;
    // A parent that ended before sends no signal.
    if getppid().as_raw() != restore.parent_pid(task) {
        fork::end(1);
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&restore.signal_mask), None)?;
    match restore.tree.shape.nodes[task].owner == task {
        true => restore.restore_table(task, at_fork),
        false => restore.share_table(task, at_fork),
    }
}

impl TreeRestore<'_> {
    /// Restores a task that shares the table of another task, which restores that table.
    fn share_table(&self, task: usize, at_fork: TableAtFork<'_>) -> Result<Infallible> {
        let meter = self.meter();
        let socket = at_fork.services.store.map(|number| self.table.known(number));
        let services = ServiceFds { store: socket, root: None };
        let store = services.fdstore(self.state);
        self.fork_children(task, at_fork.services, store.as_ref(), &mut |_| Ok(()))?;
        self.state.arrive(task, Stage::Forked);
        self.join_group(task)?;
        self.set_foreground(task)?;
        self.restore_attributes(task)?;
        self.state.arrive(task, Stage::Restored);
        self.reap_placeholder_leaders(task);
        let messages = store.as_ref().map_or(0, Store::messages);
        self.report_stats(task, &meter, messages);
        self.run_or_hold(task, &[])
    }
}
