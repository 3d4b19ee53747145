//! Forking the tasks and the placeholder leaders of groups, in order.

use super::layout::numbers_at_fork;
use super::shape::ProcessGroup;
use super::state::{Before, GONE, RESTORED, ServiceNumbers, TreeRestore};
use crate::error::{At, Error, Result, Status};
use crate::sys::credentials;
use crate::sys::fork::{self, CloneArgs};
use crate::table::driver::TableRestore;
use crate::table::executor::Executor;
use crate::table::fdstore::Store;
use crate::table::own::Own;
use crate::table::services::close_others;
use nix::errno::Errno;
use nix::sys::signal::killpg;
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getppid, setpgid};
use std::os::fd::RawFd;
use std::sync::atomic::Ordering;

impl TreeRestore<'_> {
    /// Makes a child that is to be a task, of a table with this in it.
    pub(super) fn make(&self, at: usize, before: Before<'_>) -> Result<()> {
        let nodes = &self.tree.shape.nodes[at];
        let pid = self.tree.image.tasks[at].pid;
        let how = CloneArgs {
            share_table: nodes.owner != at,
            sibling: nodes.forker != nodes.parent,
            pid: if self.mode.same_pids { pid } else { 0 },
        };
        let made = fork::clone3(how).map_err(|errno| match errno {
            Errno::EEXIST => Error::unrestorable("its process id is taken").at("--same-pids"),
            Errno::EPERM => no_choice(),
            errno => Error::from(errno).at("clone3"),
        });
        match made.at(|| format!("task {pid}"))? {
            // It says so itself as well, but it may be killed before it does.
            Some(child) => self.shared.set(self.pid_cell(at), child.as_raw()),
            None => {
                let Err(why) = self.live(at, before);
                self.fail(at, &why)
            }
        }
        Ok(())
    }

    /// Makes its children: each as soon as what it is born with stands. Between those of the old
    /// session and those of the new one it leaves the old.
    pub(super) fn children(
        &self,
        at: usize,
        services: ServiceNumbers,
        store: Option<&Store<'_>>,
        mut restore: Option<(&mut TableRestore<'_, '_>, &mut Own<'_>)>,
    ) -> Result<()> {
        let nodes = &self.tree.shape.nodes[at];
        let plan = self.tree.tables[nodes.owner].as_ref().ok_or(Errno::EBADF)?;
        if nodes.group == ProcessGroup::Own && !nodes.leads_session {
            setpgid(Pid::from_raw(0), Pid::from_raw(0)).at(|| "setpgid")?;
        }
        let mut leaves = nodes.leads_session;
        let mut made: Option<Option<RawFd>> = None;
        let mut stands: Vec<RawFd> = Vec::new();
        for &child in &nodes.forks {
            if leaves && !self.tree.shape.nodes[child].before_setsid {
                leaves = false;
                self.leave_session(at, services, store)?;
            }
            let reached = self.tree.placed_at_fork[child];
            if made != Some(reached) {
                made = Some(reached);
                if let Some((restore, own)) = restore.as_mut() {
                    restore.make(|step| step.passed && Some(step.fd) <= reached, *own)?;
                    own.release()?;
                }
                stands = numbers_at_fork(&plan.steps, reached);
            }
            self.make(child, Before { services, stands: &stands })?;
        }
        if leaves {
            self.leave_session(at, services, store)?;
        }
        for (index, group_index) in self.tree.shape.leaderless.iter().enumerate() {
            if group_index.first == at {
                self.stand_in(index)?;
            }
        }
        Ok(())
    }

    /// Makes the process that leads a group whose leader is gone, until all have joined it.
    pub(super) fn stand_in(&self, group_index: usize) -> Result<()> {
        let cell = self.orphan_cell(group_index);
        // The id of a group outlives its leader; if that was no task it may be another's by now.
        let old = self.tree.shape.leaderless[group_index].pgid;
        let pid = if self.mode.same_pids && !is_taken(old) { old } else { 0 };
        let made = match fork::clone3(CloneArgs { pid, ..CloneArgs::default() }) {
            Err(Errno::EEXIST) => fork::clone3(CloneArgs::default()),
            made => made,
        };
        match made.at(|| "clone3")? {
            Some(child) => {
                setpgid(child, child).at(|| "setpgid")?;
                self.shared.set(cell, child.as_raw());
                Ok(())
            }
            None => {
                let _ = credentials::die_with_parent(true);
                if getppid().as_raw() != self.pid(self.tree.shape.leaderless[group_index].first) {
                    fork::end(1);
                }
                let _ = close_others(&self.table, &[]);
                self.await_stage(RESTORED);
                fork::end(0)
            }
        }
    }

    pub(super) fn reap_stand_ins(&self, at: usize) {
        for (index, group_index) in self.tree.shape.leaderless.iter().enumerate() {
            if group_index.first == at {
                let cell = self.orphan_cell(index);
                let pid = self.shared.cell(cell).load(Ordering::Acquire);
                let _ = waitpid(Pid::from_raw(pid), None);
                self.shared.set(cell, GONE);
            }
        }
    }
}

/// Why we cannot choose a process id.
pub(super) fn no_choice() -> Error {
    let why = "it takes CAP_CHECKPOINT_RESTORE, or CAP_SYS_ADMIN";
    Error::new(Status::Denied, why).at("--same-pids")
}

/// Whether a process or a group has this id: that of a group is taken without its leader too.
pub(super) fn is_taken(pid: i32) -> bool {
    crate::proc::Stat::of(pid).is_some() || killpg(Pid::from_raw(pid), None) != Err(Errno::ESRCH)
}
