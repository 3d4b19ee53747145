//! Job control: sessions, process groups, controlling terminals, the foreground group.

use super::shape::ProcessGroup;
use super::state::{GONE, ServiceNumbers, TreeRestore};
use crate::ctty;
use crate::error::{At, Result};
use crate::image::Terminal;
use crate::kind::context::{CttyPlan, PidMap};
use crate::sys;
use crate::table::fdstore::Store;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpgrp, getpid, setpgid, setsid};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

impl TreeRestore<'_> {
    /// Becomes the leader of a new session, and takes its controlling terminal.
    pub(super) fn leave_session(
        &self,
        at: usize,
        services: ServiceNumbers,
        store: Option<&Store<'_>>,
    ) -> Result<()> {
        setsid().at(|| "setsid")?;
        let owner = self.tree.shape.nodes[at].owner;
        let plan = self.tree.tables[owner].as_ref().ok_or(Errno::EBADF)?;
        let task = &self.tree.image.tasks[at];
        let Some(old) = &task.terminal else { return Ok(()) };
        let name = crate::terminal::name(sys::tty::numbers(old.device));
        let steal = self.options.steal;
        let taken = match (&self.tree.ctty_plans[at], self.tree.ctty_messages[at]) {
            (_, Some((message, place))) => {
                let store = store.ok_or(Errno::EBADF)?;
                let count = self.tree.messages[message as usize].files.len();
                let fds = store.get(message, count).at(|| "the fdstore")?;
                ctty::seize(fds[place].as_fd(), steal)
            }
            (CttyPlan::FromPath(path), _) => {
                let root = services.root.map(|number| self.table.known(number));
                let root = root.as_ref().map(AsFd::as_fd);
                let cx = plan.context(self.source, self, root, self.options.changed);
                ctty::open(path, old.device, &cx).and_then(|fd| ctty::seize(fd.as_fd(), steal))
            }
            (CttyPlan::Unavailable(why), _) => {
                self.shared.say(at, why);
                return Ok(());
            }
            _ => return Ok(()),
        };
        if let Err(why) = taken {
            self.shared
                .say(at, &format!("{name}, its controlling terminal, is not its own: {why}"));
        }
        Ok(())
    }

    /// Joins its process group.
    pub(super) fn join(&self, at: usize) -> Result<()> {
        let nodes = &self.tree.shape.nodes[at];
        if nodes.group == ProcessGroup::Own {
            return Ok(());
        }
        setpgid(Pid::from_raw(0), Pid::from_raw(self.leader(nodes.group))).at(|| "setpgid")
    }

    /// The controlling terminal that it had, if it led its session and has one again.
    pub(super) fn governs(&self, at: usize) -> Option<&Terminal> {
        let task = &self.tree.image.tasks[at];
        let has = !matches!(self.tree.ctty_plans[at], CttyPlan::None | CttyPlan::Unavailable(_));
        task.terminal.as_ref().filter(|_| has && task.sid == task.pid)
    }

    /// Puts the foreground group of its session's terminal back, if it leads that and has one. Ours
    /// is given only to a program, and if it is ours to give.
    pub(super) fn foreground(&self, at: usize) -> Result<()> {
        let Some(old) = self.governs(at) else { return Ok(()) };
        let joins = !self.tree.shape.nodes[at].leads_session;
        if joins && (self.mode.holds() || !ctty::is_foreground(self.coordinator.1)) {
            return Ok(());
        }
        let name = crate::terminal::name(sys::tty::numbers(old.device));
        match self.group(old.foreground) {
            // The group of a job that has ended is gone as well.
            None if old.foreground <= 0 && !joins => Ok(()),
            None if joins => ctty::set_foreground(getpgrp()),
            None => {
                let line =
                    format!("{name}: its foreground group {} is not restored", old.foreground);
                self.shared.say(at, &line);
                Ok(())
            }
            Some(group) => {
                if let Err(why) = ctty::set_foreground(Pid::from_raw(group)) {
                    self.shared.say(at, &format!("{name}: {why}"));
                }
                Ok(())
            }
        }
    }

    /// Waits for the job that is in the foreground of its session's terminal, if it leads that and
    /// the job is its child's, until that has ended or is stopped, and takes the terminal back. One
    /// that only holds would never end.
    ///
    /// So does a shell, and a new one knows of no job: it would find itself in the background, where
    /// it can neither read nor, being nobody's job itself, be stopped.
    pub(super) fn await_job(&self, at: usize) -> Result<()> {
        let Some(old) = self.governs(at).filter(|_| self.mode.respawn) else { return Ok(()) };
        let job = self.group(old.foreground).map(Pid::from_raw);
        let Some(job) = job.filter(|job| *job != getpgrp()) else { return Ok(()) };
        let mut is_ours = false;
        loop {
            match waitpid(Pid::from_raw(-job.as_raw()), Some(WaitPidFlag::WUNTRACED)) {
                Ok(WaitStatus::Stopped(..)) => break,
                Ok(_) => is_ours = true,
                Err(Errno::EINTR) => (),
                Err(_) if is_ours => break,
                Err(_) => return Ok(()),
            }
        }
        ctty::set_foreground(getpgrp())
    }

    /// Stops this process, once what stood in for the leader of its group is gone: its end may
    /// orphan the group, and then the kernel ends those in it that are stopped (SIGHUP, setpgid(2)).
    pub(super) fn stop(&self, at: usize) -> Result<()> {
        if let ProcessGroup::Leaderless(group_index) = self.tree.shape.nodes[at].group {
            let cell = self.orphan_cell(group_index);
            loop {
                match self.shared.cell(cell).load(Ordering::Acquire) {
                    GONE => break,
                    pid => self.shared.wait(cell, pid, None),
                }
            }
        }
        Ok(kill(getpid(), Signal::SIGSTOP)?)
    }
}
