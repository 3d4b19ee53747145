//! Job control: sessions, process groups, controlling terminals, foreground groups; see
//! credentials(7) and the chapter on job control of POSIX.

use super::shape::ProcessGroup;
use super::state::{ServiceNumbers, TreeRestore};
use crate::ctty;
use crate::error::{At, Result};
use crate::image::Terminal;
use crate::kind::context::{CttyPlan, PidMap};
use crate::sys;
use crate::table::fdstore::Store;
use crate::terminal::Settings;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpgrp, getpid, setpgid, setsid};
use std::collections::HashSet;
use std::fs::File;
use std::os::fd::AsFd;

impl TreeRestore<'_> {
    /// Makes this process the leader of a process group, if the task led one. setsid(2) does so for
    /// a session leader.
    pub(super) fn lead_group(&self, task: usize) -> Result<()> {
        let node = &self.tree.shape.nodes[task];
        if node.group != ProcessGroup::Own || node.leads_session {
            return Ok(());
        }
        setpgid(Pid::from_raw(0), Pid::from_raw(0)).at(|| "setpgid")
    }

    /// Moves this process into the process group of its task, once that group's leader is there.
    pub(super) fn join_group(&self, task: usize) -> Result<()> {
        let node = &self.tree.shape.nodes[task];
        if node.group == ProcessGroup::Own {
            return Ok(());
        }
        let group = Pid::from_raw(self.group_id(node.group));
        setpgid(Pid::from_raw(0), group).at(|| "setpgid")
    }

    /// Makes this process the leader of a new session, and gives it its controlling terminal. A
    /// terminal that cannot be had is a warning.
    pub(super) fn lead_session(
        &self,
        task: usize,
        services: ServiceNumbers,
        store: Option<&Store<'_>>,
    ) -> Result<()> {
        setsid().at(|| "setsid")?;
        let Some(old) = &self.tree.image.tasks[task].terminal else { return Ok(()) };
        let steal = self.options.steal;
        let taken = match (&self.tree.ctty_plans[task], self.tree.ctty_messages[task]) {
            (_, Some((message, place))) => {
                let store = store.ok_or(Errno::EBADF)?;
                let count = self.tree.messages[message as usize].files.len();
                let fds = store.get(message, count).at(|| "the fdstore")?;
                ctty::seize(fds[place].as_fd(), steal)
            }
            (CttyPlan::FromPath(path), _) => {
                let owner = self.tree.shape.nodes[task].owner;
                let plan = self.tree.tables[owner].as_ref().ok_or(Errno::EBADF)?;
                let root = services.root.map(|number| self.table.known(number));
                let root = root.as_ref().map(AsFd::as_fd);
                let cx = plan.context(self.source, self, root, self.options);
                ctty::open(path, old.device, &cx).and_then(|fd| ctty::seize(fd.as_fd(), steal))
            }
            (CttyPlan::Unavailable(why), _) => {
                self.state.warn(task, why);
                return Ok(());
            }
            _ => return Ok(()),
        };
        if let Err(why) = taken {
            let name = terminal_name(old);
            let line = format!("it does not get its controlling terminal {name}: {why}");
            self.state.warn(task, &line);
        }
        Ok(())
    }

    /// The controlling terminal of a task that led its session, if the session has one again.
    fn session_terminal(&self, task: usize) -> Option<&Terminal> {
        let record = &self.tree.image.tasks[task];
        let has = !matches!(self.tree.ctty_plans[task], CttyPlan::None | CttyPlan::Unavailable(_));
        record.terminal.as_ref().filter(|_| has && record.sid == record.pid)
    }

    /// Restores the foreground process group of the terminal of a task's session, if the task led
    /// that session. The terminal of fdrestore's own session is given only to a program, and only
    /// by a fdrestore in the foreground.
    pub(super) fn set_foreground(&self, task: usize) -> Result<()> {
        let Some(old) = self.session_terminal(task) else { return Ok(()) };
        let in_our_session = !self.tree.shape.nodes[task].leads_session;
        if in_our_session && (self.mode.holds() || !ctty::is_foreground(self.coordinator.1)) {
            return Ok(());
        }
        let name = terminal_name(old);
        match self.group(old.foreground) {
            // The group of a job that has ended is gone as well.
            None if old.foreground <= 0 && !in_our_session => Ok(()),
            None if in_our_session => ctty::set_foreground(getpgrp()),
            None => {
                let group = old.foreground;
                let line = format!("{name}: its foreground group {group} is not in the image");
                self.state.warn(task, &line);
                Ok(())
            }
            Some(group) => {
                if let Err(why) = ctty::set_foreground(Pid::from_raw(group)) {
                    self.state.warn(task, &format!("{name}: {why}"));
                }
                Ok(())
            }
        }
    }

    /// Waits until the job in the foreground of the session's terminal has ended or is stopped, all
    /// its processes, and takes the terminal back, if the task led the session and the job is its
    /// child's. A job that only holds descriptors is not waited for: it would never end.
    ///
    /// A shell does the same for its jobs, but a new shell knows of none: it would find itself in
    /// the background, where it cannot read, and where nobody would continue it. A process of the
    /// job that is about to stop may still read what is typed next, so that the first stop is too
    /// early.
    pub(super) fn await_foreground_job(&self, task: usize) -> Result<()> {
        let terminal = self.session_terminal(task).filter(|_| self.mode.respawn);
        let Some(old) = terminal else { return Ok(()) };
        let job = self.group(old.foreground).map(Pid::from_raw);
        let Some(job) = job.filter(|job| *job != getpgrp()) else { return Ok(()) };
        let children = self.tree.shape.children(task);
        let of_job = children.filter(|&child| self.tree.image.tasks[child].pgid == old.foreground);
        let mut running: HashSet<i32> = of_job.map(|child| self.state.pid(child)).collect();
        if running.is_empty() {
            return Ok(());
        }
        while !running.is_empty() {
            match waitpid(Pid::from_raw(-job.as_raw()), Some(WaitPidFlag::WUNTRACED)) {
                Ok(status) => drop(status.pid().map(|pid| running.remove(&pid.as_raw()))),
                Err(Errno::EINTR) => (),
                // Another parent has all that is left of it.
                Err(_) => break,
            }
        }
        ctty::set_foreground(getpgrp())
    }

    /// Stops this process, as its task was stopped, once the placeholder leader of its group has
    /// ended: that end may orphan the group, and the kernel sends SIGHUP to the stopped members of
    /// a newly orphaned group (setpgid(2)).
    pub(super) fn stop(&self, task: usize) -> Result<()> {
        if let ProcessGroup::Leaderless(group) = self.tree.shape.nodes[task].group {
            self.state.await_placeholder_end(group);
        }
        Ok(kill(getpid(), Signal::SIGSTOP)?)
    }

    /// True if a task that led a session joins that of fdrestore, whose terminal it had.
    fn shares_our_terminal(&self) -> bool {
        let tasks = self.tree.image.tasks.iter().zip(&self.tree.shape.nodes);
        tasks.into_iter().any(|(task, node)| task.sid == task.pid && !node.leads_session)
    }
}

fn terminal_name(terminal: &Terminal) -> String {
    crate::terminal::name(sys::tty::numbers(terminal.device))
}

/// The controlling terminal of fdrestore while tasks may have it: its settings and foreground group
/// are put back at the end.
pub(super) struct CallerTerminal {
    group: Pid,
    settings: Option<Settings>,
}

impl CallerTerminal {
    /// The terminal, if fdrestore is in its foreground and tasks join its session.
    pub(super) fn in_foreground(restore: &TreeRestore<'_>) -> Option<CallerTerminal> {
        let group = restore.coordinator.1;
        if !restore.shares_our_terminal() || !ctty::is_foreground(group) {
            return None;
        }
        let settings = File::open("/dev/tty").ok().and_then(|tty| Settings::read(tty).ok());
        Some(CallerTerminal { group, settings })
    }

    /// Restores the foreground group and the settings, if the terminal still exists.
    pub(super) fn restore(self) {
        if !ctty::is_foreground(self.group) {
            let _ = ctty::set_foreground(self.group);
        }
        if let (Some(settings), Ok(terminal)) = (self.settings, File::open("/dev/tty")) {
            let _ = settings.apply(terminal.as_fd(), false);
        }
    }
}
