//! What fdrestore itself does while a tree is restored: it fills the fdstore, forks the topmost
//! tasks, waits at each stage, and then holds, follows the first task, or ends all.

use super::Tree;
use super::barrier::{enders, killed_for_memory};
use super::credentials::ours;
use super::report::Grown;
use super::state::{
    BORN, Before, FIXED, GONE_ON, LOCK, Mode, RESTORED, STAGE, STATS_CELLS, ServiceNumbers,
    StatsPage, TreeRestore,
};
use crate::ctty;
use crate::error::{At, Error, Result, Status};
use crate::image::Task;
use crate::placement::Placement;
use crate::plan::RestoreOptions;
use crate::sys::credentials;
use crate::sys::fork::{self};
use crate::sys::own_table::OwnTable;
use crate::sys::shared_mem::SharedMem;
use crate::sys::title::Title;
use crate::table::driver::TableRestore;
use crate::table::fdstore::Store;
use crate::table::own::Own;
use crate::table::services::{close_others, raise_limit};
use crate::table::source::Anew;
use crate::table::syscall_counter::Counter;
use crate::terminal::Settings;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpgrp, getpid};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long we let those breathe who are to die.
pub(super) const BREATH: Duration = Duration::from_millis(1);

/// Makes the processes of a tree. `source` is the image.
///
/// `ready` is called when all stands and nothing has been let go yet. Then this process waits: for
/// the end of all, or of the first if that runs a command, whose exit status is given. On failure
/// nothing is left of any of them.
pub fn grow(
    tree: &Tree<'_>,
    options: &RestoreOptions,
    mode: &Mode,
    source: &[u8],
    root: Option<(OwnedFd, PathBuf)>,
    ready: &mut dyn FnMut(&Grown) -> Result<()>,
) -> Result<Option<WaitStatus>> {
    let count = tree.image.tasks.len();
    let cells = FIXED + 2 * count + tree.shape.leaderless.len();
    let shared = SharedMem::new(cells, count + 1).at(|| "shared memory")?;
    let index = |(at, task): (usize, &Task)| (task.pid, at);
    let (root, path) = root.map_or((None, None), |(root, path)| (Some(root), Some(path)));
    let tasks = &tree.image.tasks;
    let highest = tree.tables.iter().flatten().filter_map(|plan| plan.steps.last());
    let highest = highest.map(|step| step.fd as u32).max();
    let mut mask = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&awaited()), Some(&mut mask))?;
    fork::default_sigchld();
    credentials::become_subreaper().at(|| "PR_SET_CHILD_SUBREAPER")?;
    let stats_page = match mode.stats {
        true => {
            let shared = SharedMem::new(STATS_CELLS * count, 0).at(|| "shared memory")?;
            Some(StatsPage {
                counter: Counter::start(count + tree.shape.leaderless.len())?,
                shared,
            })
        }
        false => None,
    };
    let Some(table) = OwnTable::take() else {
        let why = "the descriptor table of this process was restored before";
        return Err(Error::new(Status::System, why));
    };
    let restore = TreeRestore {
        tree,
        table,
        options,
        mode,
        source,
        shared: &shared,
        by_pid: tasks.iter().enumerate().map(index).collect(),
        groups: tasks
            .iter()
            .zip(&tree.shape.nodes)
            .map(|(task, nodes)| (task.pgid, nodes.group))
            .fold(HashMap::new(), |mut groups, (pgid, group)| {
                groups.entry(pgid).or_insert(group);
                groups
            }),
        coordinator: (getpid(), getpgrp()),
        limits: raise_limit(highest)?,
        mask,
        credentials: ours()?,
        moved: RefCell::default(),
        title: Title::find(),
        root: path,
        stats_page,
        ended: RefCell::default(),
        killed: killed_for_memory(),
    };
    let joins = |at: usize| tasks[at].sid == tasks[at].pid && !tree.shape.nodes[at].leads_session;
    let front = (0..count).any(joins) && ctty::is_foreground(restore.coordinator.1);
    let terminal = || std::fs::File::open("/dev/tty").ok();
    let settings = front.then(terminal).flatten().and_then(|it| Settings::read(it).ok());
    let outcome = restore.lead(root, ready);
    if outcome.is_err() {
        restore.end_all();
    }
    // Programs that were part of our session had our terminal.
    if front {
        if !ctty::is_foreground(restore.coordinator.1) {
            let _ = ctty::set_foreground(restore.coordinator.1);
        }
        if let (Some(settings), Some(terminal)) = (settings, terminal()) {
            let _ = settings.apply(terminal.as_fd(), false);
        }
    }
    outcome
}

impl TreeRestore<'_> {
    /// What fdrestore itself does.
    pub(super) fn lead(
        &self,
        root: Option<OwnedFd>,
        ready: &mut dyn FnMut(&Grown) -> Result<()>,
    ) -> Result<Option<WaitStatus>> {
        let tree = self.tree;
        let meter = self.meter();
        let mut store = Store::new((self.shared, LOCK))?;
        let dir = root.as_ref().map(AsFd::as_fd);
        let cx = tree.store_plan.context(self.source, self, dir, self.options.changed);
        // Where descriptors are in fdrestore does not matter: they stay where they come.
        let mut own = Own::new(&self.table, Placement::Late, None);
        let mut anew = Anew;
        let mut common = TableRestore::new(&tree.store_plan, self.options, cx, &mut anew, None);
        self.stock(&mut store, &mut common, &mut own, false)?;
        self.moved.replace(common.cx.moved.clone());
        let number = |fd: BorrowedFd<'_>| fd.as_raw_fd();
        let services = ServiceNumbers { store: Some(number(store.as_fd())), root: dir.map(number) };
        // What our caller left open would make the tables of all larger.
        let mut keep = vec![0, 1, 2];
        keep.extend(services.all());
        keep.sort_unstable();
        close_others(&self.table, &keep)?;
        let ours = OomGuard::children();
        for &at in tree.shape.order.iter().filter(|&&at| tree.shape.nodes[at].forker.is_none()) {
            self.make(at, Before { services, stands: &[0, 1, 2] })?;
        }
        let usual = ours.end();
        self.wait_for(BORN)?;
        self.stock(&mut store, &mut common, &mut own, true)?;
        let mut said = std::mem::take(&mut common.cx.warnings);
        said.extend(self.stats_page.as_ref().and_then(|stats_page| stats_page.counter.why_not()));
        let messages = store.messages();
        drop(common);
        drop(store);
        drop(root);
        self.shared.set(STAGE, BORN);
        self.wait_for(RESTORED)?;
        if let Some(usual) = usual {
            for at in 0..tree.image.tasks.len() {
                let pid = self.pid(at);
                if let Err(why) = std::fs::write(format!("/proc/{pid}/oom_score_adj"), &usual) {
                    let pid = tree.image.tasks[at].pid;
                    said.push(format!(
                        "task {pid}: it is the first to be killed for memory: {why}"
                    ));
                }
            }
        }
        for (at, task) in tree.image.tasks.iter().enumerate() {
            let lines = self.shared.said(at);
            said.extend(lines.lines().map(|line| format!("task {}: {line}", task.pid)));
        }
        let pids = tree.image.tasks.iter().enumerate().map(|(at, task)| (task.pid, self.pid(at)));
        let mut grown = Grown { pids: pids.collect(), said, stats: None };
        if let Some(stats_page) = &self.stats_page {
            self.shared.set(STAGE, RESTORED);
            self.wait_for(GONE_ON)?;
            grown.stats = Some(self.stats(stats_page, messages, meter.calls())?);
            stats_page.counter.end();
        }
        if self.mode.holds() {
            self.shared.set(STAGE, RESTORED);
            self.wait_for(GONE_ON)?;
            ready(&grown)?;
            return self.hold();
        }
        ready(&grown)?;
        self.shared.set(STAGE, GONE_ON);
        self.follow(Pid::from_raw(self.pid(tree.shape.order[0]))).map(Some)
    }

    /// Ends all processes of the tree, and waits until nothing is left of them.
    pub(super) fn end_all(&self) {
        let leaderless = 0..self.tree.shape.leaderless.len();
        let cells = self.tree.shape.order.iter().map(|&at| self.pid_cell(at));
        let cells: Vec<usize> = cells.chain(leaderless.map(|at| self.orphan_cell(at))).collect();
        let mut ended = self.ended.borrow_mut();
        let mut killed: HashSet<i32> = HashSet::new();
        // Orphans come to us, so that in the end all are our children. Who was just being made has
        // its cell soon, or dies with its maker.
        loop {
            let living = cells.iter().map(|&cell| self.shared.cell(cell).load(Ordering::Acquire));
            for pid in living.filter(|pid| *pid > 0 && !ended.contains(pid)) {
                if killed.insert(pid) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
            loop {
                match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                    Ok(WaitStatus::StillAlive) => break,
                    Ok(status) => ended.extend(status.pid().map(Pid::as_raw)),
                    Err(_) => return,
                }
            }
            std::thread::sleep(BREATH);
        }
    }

    /// Waits for the end of all, or for a signal that ends us and them.
    pub(super) fn hold(&self) -> Result<Option<WaitStatus>> {
        let order = &self.tree.shape.order;
        let mut left: HashSet<i32> = order.iter().map(|&at| self.pid(at)).collect();
        while !left.is_empty() {
            match awaited().wait()? {
                Signal::SIGCHLD => {
                    while let Ok(ended) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                        let Some(pid) = ended.pid() else { break };
                        left.remove(&pid.as_raw());
                        self.ended.borrow_mut().insert(pid.as_raw());
                    }
                }
                signal => {
                    self.end_all();
                    return Ok(Some(WaitStatus::Signaled(self.coordinator.0, signal, false)));
                }
            }
        }
        Ok(None)
    }

    /// Waits for one task, and passes on what signals come to us.
    pub(super) fn follow(&self, first: Pid) -> Result<WaitStatus> {
        loop {
            match awaited().wait()? {
                Signal::SIGCHLD => {
                    while let Ok(ended) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                        match ended.pid() {
                            Some(pid) if pid == first => return Ok(ended),
                            Some(_) => (),
                            None => break,
                        }
                    }
                }
                signal => drop(kill(first, signal)),
            }
        }
    }
}

/// The signals that we wait for.
pub(super) fn awaited() -> SigSet {
    let mut all = enders();
    all.add(Signal::SIGCHLD);
    all
}

/// As long as it is there, what this process makes is what the kernel kills first for want of
/// memory: somebody must be left to say so, and to end the rest (proc(5), oom_score_adj).
pub(super) struct OomGuard(Option<String>);

pub(super) const ADJUST: &str = "/proc/self/oom_score_adj";

impl OomGuard {
    pub(super) fn children() -> OomGuard {
        let usual = std::fs::read_to_string(ADJUST).ok();
        // Without it all goes on as well.
        OomGuard(usual.filter(|_| std::fs::write(ADJUST, "1000").is_ok()))
    }

    /// What is usual, for those that were made meanwhile.
    pub(super) fn end(mut self) -> Option<String> {
        let usual = self.0.take()?;
        let _ = std::fs::write(ADJUST, &usual);
        Some(usual)
    }
}

impl Drop for OomGuard {
    fn drop(&mut self) {
        if let Some(usual) = self.0.take() {
            let _ = std::fs::write(ADJUST, usual);
        }
    }
}
