//! Forking: the tasks, each as soon as the descriptors that it inherits are in place, and the
//! placeholder leaders of groups whose leader is gone.

use super::barrier::Stage;
use super::layout::numbers_at_fork;
use super::state::{ServiceNumbers, TableAtFork, TreeRestore};
use crate::error::{At, Error, Result, Status};
use crate::sys::credentials;
use crate::sys::fork::{self, CloneArgs};
use crate::table::fdstore::Store;
use crate::table::services::close_others;
use nix::errno::Errno;
use nix::sys::signal::killpg;
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getppid, setpgid};
use std::os::fd::RawFd;

impl TreeRestore<'_> {
    /// Forks a task from this process, whose table is `at_fork`.
    ///
    /// Fails with status 6 if the process id that it must have is taken, with 4 if this process may
    /// not choose one.
    pub(super) fn fork_task(&self, task: usize, at_fork: TableAtFork<'_>) -> Result<()> {
        let node = &self.tree.shape.nodes[task];
        let pid = self.state.image_pids[task];
        let args = CloneArgs {
            share_table: node.owner != task,
            sibling: node.forker != node.parent,
            pid: if self.mode.same_pids { pid } else { 0 },
        };
        let forked = fork::clone3(args).map_err(|errno| match errno {
            Errno::EEXIST => Error::unrestorable("its process id is taken").at("--same-pids"),
            Errno::EPERM => may_not_choose_pid(),
            errno => Error::no_process(errno),
        });
        match forked.at(|| self.state.name(task))? {
            // The child sets it as well, but may be killed before it does.
            Some(child) => self.state.set_pid(task, child.as_raw()),
            None => {
                let Err(why) = (self.child_main)(self, task, at_fork);
                self.exit_failed(task, &why)
            }
        }
        Ok(())
    }

    /// Forks the children of a task, in their order. A task that leads its session calls setsid(2)
    /// between the children of the old session and those of the new one.
    ///
    /// `place` makes the descriptors that children inherit, up to a highest number.
    pub(super) fn fork_children(
        &self,
        task: usize,
        services: ServiceNumbers,
        store: Option<&Store<'_>>,
        place: &mut dyn FnMut(Option<RawFd>) -> Result<()>,
    ) -> Result<()> {
        let node = &self.tree.shape.nodes[task];
        let plan = self.tree.tables[node.owner].as_ref().ok_or(Errno::EBADF)?;
        self.lead_group(task)?;
        let mut in_old_session = node.leads_session;
        let mut placed: Option<Option<RawFd>> = None;
        let mut numbers: Vec<RawFd> = Vec::new();
        for &child in &node.forks {
            if in_old_session && !self.tree.shape.nodes[child].before_setsid {
                in_old_session = false;
                self.lead_session(task, services, store)?;
            }
            let highest = self.tree.placed_at_fork[child];
            if placed != Some(highest) {
                placed = Some(highest);
                place(highest)?;
                numbers = numbers_at_fork(&plan.steps, highest);
            }
            self.fork_task(child, TableAtFork { services, numbers: &numbers })?;
        }
        if in_old_session {
            self.lead_session(task, services, store)?;
        }
        for (group, leaderless) in self.tree.shape.leaderless.iter().enumerate() {
            if leaderless.first == task {
                self.fork_placeholder_leader(group)?;
            }
        }
        Ok(())
    }

    /// Forks the process that leads a group until all members have joined it: a group lasts as long
    /// as any member, but only its leader can begin it (setpgid(2)).
    fn fork_placeholder_leader(&self, group: usize) -> Result<()> {
        let leaderless = &self.tree.shape.leaderless[group];
        // If the old leader was no task of the image, its process id may be another's by now.
        let pid = match self.mode.same_pids && !is_taken(leaderless.pgid) {
            true => leaderless.pgid,
            false => 0,
        };
        let forked = match fork::clone3(CloneArgs { pid, ..CloneArgs::default() }) {
            Err(Errno::EEXIST) => fork::clone3(CloneArgs::default()),
            forked => forked,
        };
        match forked.map_err(Error::no_process)? {
            Some(child) => {
                setpgid(child, child).at(|| "setpgid")?;
                self.state.set_placeholder(group, child.as_raw());
                Ok(())
            }
            None => {
                let _ = credentials::die_with_parent(true);
                if getppid().as_raw() != self.state.pid(leaderless.first) {
                    fork::end(1);
                }
                let _ = close_others(&self.table, []);
                self.state.await_release(Stage::Restored);
                fork::end(0)
            }
        }
    }

    /// Waits for the placeholder leaders that a task has forked, all of whose groups are complete.
    pub(super) fn reap_placeholder_leaders(&self, task: usize) {
        for (group, leaderless) in self.tree.shape.leaderless.iter().enumerate() {
            if leaderless.first == task {
                let _ = waitpid(Pid::from_raw(self.state.placeholder(group)), None);
                self.state.set_placeholder_ended(group);
            }
        }
    }
}

/// The refusal of a process that may not choose process ids.
pub(super) fn may_not_choose_pid() -> Error {
    let why = "choosing process ids takes CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN: run it as root, \
               or leave the option out";
    Error::new(Status::Denied, why).at("--same-pids")
}

/// True if a process or a process group has this id: a group keeps it after its leader has ended.
pub(super) fn is_taken(pid: i32) -> bool {
    crate::proc::Stat::of(pid).is_some() || killpg(Pid::from_raw(pid), None) != Err(Errno::ESRCH)
}
