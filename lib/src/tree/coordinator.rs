//! The coordinator: fdrestore itself while a tree is restored. The coordinator fills the fdstore,
//! forks the topmost tasks, waits for all at each stage, and then waits for the end of the tree, or
//! of the first task, or kills all of them.

use super::Tree;
use super::barrier::{Stage, Watcher, ending_signals};
use super::child::child_main;
use super::credentials::own_credentials;
use super::jobs::CallerTerminal;
use super::report::RestoredTree;
use super::shape::ProcessGroup;
use super::state::{
    Mode, STATS_CELLS, ServiceNumbers, SharedState, StatsPage, TableAtFork, TreeRestore,
};
use crate::error::{At, Error, Result, Status};
use crate::placement::Placement;
use crate::plan::RestoreOptions;
use crate::sys::own_table::OwnTable;
use crate::sys::shared_mem::SharedMem;
use crate::sys::title::Title;
use crate::sys::{credentials, fork};
use crate::table::direct::DirectExecutor;
use crate::table::driver::TableRestore;
use crate::table::fdstore::Store;
use crate::table::services::{close_others, raise_limit};
use crate::table::source::KindSource;
use crate::table::stats::Meter;
use crate::table::syscall_counter::Counter;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpgrp, getpid};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

/// The interval at which killed processes are looked for.
const KILL_INTERVAL: Duration = Duration::from_millis(1);

/// Restores the processes of a tree. `source` is the image; `root` the directory below which its
/// paths are, open and by name.
///
/// `ready` is called when all tasks are restored: those that hold are released by then, those that
/// run programs wait for its return. Then this process waits: for the end of all tasks, or of the
/// first if that runs a program, whose status is returned.
///
/// On failure no process of the tree is left. Fails with the status of the first task that failed,
/// and with status 7 if one was killed, or if a signal ends fdrestore before.
pub fn restore(
    tree: &Tree<'_>,
    options: &RestoreOptions,
    mode: &Mode,
    source: &[u8],
    root: Option<(OwnedFd, PathBuf)>,
    ready: &mut dyn FnMut(&RestoredTree) -> Result<()>,
) -> Result<Option<WaitStatus>> {
    let tasks = &tree.image.tasks;
    let pids: Vec<i32> = tasks.iter().map(|task| task.pid).collect();
    let by_pid = pids.iter().enumerate().map(|(task, pid)| (*pid, task)).collect();
    let state = SharedState::new(pids, tree.shape.leaderless.len())?;
    let (root, path) = root.map_or((None, None), |(root, path)| (Some(root), Some(path)));
    let mut signal_mask = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&awaited_signals()), Some(&mut signal_mask))?;
    fork::default_sigchld();
    credentials::become_subreaper().at(|| "PR_SET_CHILD_SUBREAPER")?;
    let stats = mode.stats.then(|| count_calls(tree)).transpose()?;
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
        state: &state,
        child_main,
        by_pid,
        groups: groups(tree),
        coordinator: (getpid(), getpgrp()),
        limits: raise_limit(tree.highest_number())?,
        signal_mask,
        credentials: own_credentials()?,
        renamed_paths: RefCell::default(),
        title: Title::find(),
        root: path,
        stats,
    };
    let coordinator =
        Coordinator { restore: &restore, watcher: Watcher::new(&state), ended: RefCell::default() };
    let terminal = CallerTerminal::in_foreground(&restore);
    let outcome = coordinator.coordinate(root, ready);
    if outcome.is_err() {
        coordinator.end_all();
    }
    if let Some(terminal) = terminal {
        terminal.restore();
    }
    outcome
}

/// The process group by its id in the image.
fn groups(tree: &Tree<'_>) -> HashMap<i32, ProcessGroup> {
    let mut groups = HashMap::new();
    for (task, node) in tree.image.tasks.iter().zip(&tree.shape.nodes) {
        groups.entry(task.pgid).or_insert(node.group);
    }
    groups
}

/// Begins to count the system calls of all processes.
fn count_calls(tree: &Tree<'_>) -> Result<StatsPage> {
    let count = tree.image.tasks.len();
    let shared = SharedMem::new(STATS_CELLS * count, 0).at(|| "shared memory")?;
    let counter = Counter::start(count + tree.shape.leaderless.len())?;
    Ok(StatsPage { counter, shared })
}

/// fdrestore during the restore of a tree.
struct Coordinator<'a> {
    restore: &'a TreeRestore<'a>,
    watcher: Watcher<'a>,
    /// Process ids that were waited for, and may be those of other processes by now.
    ended: RefCell<HashSet<i32>>,
}

impl Coordinator<'_> {
    fn coordinate(
        &self,
        root: Option<OwnedFd>,
        ready: &mut dyn FnMut(&RestoredTree) -> Result<()>,
    ) -> Result<Option<WaitStatus>> {
        let (restore, state) = (self.restore, self.restore.state);
        let tree = restore.tree;
        let meter = restore.meter();
        let dir = root.as_ref().map(AsFd::as_fd);
        let mut store = Store::new(state.store_lock())?;
        let cx = tree.store_plan.context(restore.source, restore, dir, restore.options);
        // The numbers of descriptors in fdrestore do not matter: they stay where they come.
        let mut own = DirectExecutor::new(&restore.table, Placement::Late, None);
        let mut by_kind = KindSource;
        let mut shared =
            TableRestore::new(&tree.store_plan, restore.options, cx, &mut by_kind, None);
        restore.fill_store(&mut store, &mut shared, &mut own, false)?;
        restore.renamed_paths.replace(shared.cx.renamed_paths.clone());
        let number = |fd: BorrowedFd<'_>| fd.as_raw_fd();
        let services = ServiceNumbers { store: Some(number(store.as_fd())), root: dir.map(number) };
        // Another open descriptor of the caller would make the tables of all tasks larger.
        let mut numbers = BTreeSet::from([0, 1, 2]);
        if tree.opens_for_store(true) {
            numbers.extend(tree.inherited.values());
        }
        let keep: BTreeSet<RawFd> = numbers.iter().copied().chain(services.all()).collect();
        close_others(&restore.table, keep)?;
        let numbers: Vec<RawFd> = numbers.into_iter().collect();
        let usual_score = self.fork_topmost(TableAtFork { services, numbers: &numbers })?;
        self.watcher.wait_for(Stage::Forked)?;
        restore.fill_store(&mut store, &mut shared, &mut own, true)?;
        let mut warnings = shared.cx.warnings.take();
        warnings.extend(restore.stats.as_ref().and_then(|stats| stats.counter.refusal()));
        let messages = store.messages();
        drop(shared);
        drop(store);
        drop(root);
        // A reader of an inherited pipe would not get end-of-file while fdrestore has it open.
        close_others(&restore.table, [0, 1, 2])?;
        state.release(Stage::Forked);
        self.watcher.wait_for(Stage::Restored)?;
        warnings.extend(usual_score.iter().flat_map(|score| self.restore_oom_scores(score)));
        warnings.extend(state.warnings());
        let pids = tree.image.tasks.iter().enumerate();
        let pids = pids.map(|(at, task)| (task.pid, state.pid(at))).collect();
        let restored = RestoredTree { pids, warnings, stats: None };
        self.finish(restored, messages, &meter, ready)
    }

    /// Releases the tasks, and waits for them.
    fn finish(
        &self,
        mut restored: RestoredTree,
        messages: u32,
        meter: &Meter<'_>,
        ready: &mut dyn FnMut(&RestoredTree) -> Result<()>,
    ) -> Result<Option<WaitStatus>> {
        let (restore, state) = (self.restore, self.restore.state);
        if restore.mode.holds() || restore.stats.is_some() {
            state.release(Stage::Restored);
            self.watcher.wait_for(Stage::Released)?;
        }
        if let Some(stats) = &restore.stats {
            restored.stats = Some(restore.collect_stats(stats, messages, meter.calls())?);
            stats.counter.end();
        }
        ready(&restored)?;
        if restore.mode.holds() {
            return self.hold();
        }
        state.release(Stage::Released);
        let first = restore.tree.shape.order[0];
        self.follow(Pid::from_raw(state.pid(first))).map(Some)
    }

    /// Forks the tasks whose parent is not in the image. Until the restore is complete, the kernel
    /// kills the tasks before fdrestore for lack of memory, so that fdrestore can report it and kill
    /// the rest. Returns the usual score, if it could be changed.
    fn fork_topmost(&self, at_fork: TableAtFork<'_>) -> Result<Option<String>> {
        let shape = &self.restore.tree.shape;
        let raised = OomScore::raise();
        for &task in shape.order.iter().filter(|&&task| shape.nodes[task].forker.is_none()) {
            self.restore.fork_task(task, at_fork)?;
        }
        Ok(raised.lower())
    }

    /// Gives all tasks the usual score; returns a warning for each that keeps the raised one.
    fn restore_oom_scores(&self, score: &str) -> Vec<String> {
        let state = self.restore.state;
        let lower = |task: usize| {
            let path = format!("/proc/{}/oom_score_adj", state.pid(task));
            let why = std::fs::write(path, score).err()?;
            let risk = "it is the first to be killed for lack of memory: oom_score_adj";
            Some(format!("{}: {risk}: {why}", state.name(task)))
        };
        (0..state.count()).filter_map(lower).collect()
    }

    /// Kills all processes of the tree, and waits until none is left.
    fn end_all(&self) {
        let state = self.restore.state;
        let mut ended = self.ended.borrow_mut();
        // The process that counts is a child too, and would be waited for for ever.
        if let Some(stats) = &self.restore.stats {
            stats.counter.end();
        }
        let mut killed: HashSet<i32> = HashSet::new();
        // Orphans become our children, so that in the end all are. A process that is just being
        // forked has its cell soon, or dies with its forker.
        loop {
            for pid in state.pids().filter(|pid| !ended.contains(pid)) {
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
            std::thread::sleep(KILL_INTERVAL);
        }
    }

    /// Waits for the end of all tasks, or for a signal that ends fdrestore and all of them.
    fn hold(&self) -> Result<Option<WaitStatus>> {
        let state = self.restore.state;
        let mut left: HashSet<i32> = (0..state.count()).map(|task| state.pid(task)).collect();
        while !left.is_empty() {
            match awaited_signals().wait()? {
                Signal::SIGCHLD => {
                    while let Ok(ended) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                        let Some(pid) = ended.pid() else { break };
                        left.remove(&pid.as_raw());
                        self.ended.borrow_mut().insert(pid.as_raw());
                    }
                }
                signal => {
                    self.end_all();
                    let own = self.restore.coordinator.0;
                    return Ok(Some(WaitStatus::Signaled(own, signal, false)));
                }
            }
        }
        Ok(None)
    }

    /// Waits for the end of the first task, and passes on the signals that end fdrestore.
    fn follow(&self, first: Pid) -> Result<WaitStatus> {
        loop {
            match awaited_signals().wait()? {
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

/// The signals that the coordinator waits for.
fn awaited_signals() -> SigSet {
    let mut all = ending_signals();
    all.add(Signal::SIGCHLD);
    all
}

/// The OOM score adjustment of this process, inherited by its children: proc_pid_oom_score_adj(5).
const OOM_SCORE_ADJ: &str = "/proc/self/oom_score_adj";
/// The highest adjustment: killed first.
const HIGHEST_ADJ: &str = "1000";

/// The OOM score adjustment, raised for the children that this process forks meanwhile.
struct OomScore(Option<String>);

impl OomScore {
    fn raise() -> OomScore {
        let usual = std::fs::read_to_string(OOM_SCORE_ADJ).ok();
        // Without it the restore goes on as well.
        OomScore(usual.filter(|_| std::fs::write(OOM_SCORE_ADJ, HIGHEST_ADJ).is_ok()))
    }

    /// Lowers it to the usual one, which is returned if there is anything to lower.
    fn lower(mut self) -> Option<String> {
        let usual = self.0.take()?;
        let _ = std::fs::write(OOM_SCORE_ADJ, &usual);
        Some(usual)
    }
}

impl Drop for OomScore {
    fn drop(&mut self) {
        if let Some(usual) = self.0.take() {
            let _ = std::fs::write(OOM_SCORE_ADJ, usual);
        }
    }
}
