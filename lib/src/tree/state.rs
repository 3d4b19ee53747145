//! State that all tasks of a tree share while they are restored. Barriers, job control, credentials
//! and exec use this file, and not each other.

use super::Tree;
use super::shape::{ProcessGroup, Shape};
use crate::error::{At, Result};
use crate::image::{Credentials, Task};
use crate::kind::context::PidMap;
use crate::plan::RestoreOptions;
use crate::sys::own_table::{OwnTable, PlacedFd};
use crate::sys::shared_mem::SharedMem;
use crate::sys::title::Title;
use crate::table::fdstore::Store;
use crate::table::syscall_counter::Counter;
use nix::sys::signal::SigSet;
use nix::unistd::Pid;
use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// The options that all processes of a tree need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mode {
    /// Each task runs the program that it ran, in its recorded directory.
    pub respawn: bool,
    /// The program of the first task in place of its own; empty for none.
    pub command: Vec<OsString>,
    /// Each task gets the process id that it had.
    pub same_pids: bool,
    /// System calls, messages and table sizes are counted.
    pub stats: bool,
}

impl Mode {
    /// The mode that the options and COMMAND ask for.
    pub fn new(options: &RestoreOptions, command: Vec<OsString>) -> Mode {
        Mode {
            respawn: options.respawn,
            command,
            same_pids: options.same_pids,
            stats: options.stats.is_some(),
        }
    }

    /// True if no task runs a program: all hold their descriptors.
    pub fn holds(&self) -> bool {
        !self.respawn && self.command.is_empty()
    }

    /// True if a task, by its index in the image, runs COMMAND.
    pub(super) fn runs_command(&self, shape: &Shape, task: usize) -> bool {
        shape.order[0] == task && !self.command.is_empty()
    }
}

/// The cell with the last stage that the coordinator has released.
pub(super) const STAGE: usize = 0;
/// The cell that counts arrivals at stages, of all tasks and all stages.
pub(super) const ARRIVED: usize = 1;
/// The cell of the lock of the fdstore.
const STORE_LOCK: usize = 2;
/// The cell with the first task that failed, plus one.
pub(super) const FAILED: usize = 3;
/// The first cell of the first task: its process id, then the stage that it has reached.
const TASKS: usize = 4;
/// Cells of a task.
const TASK_CELLS: usize = 2;

/// Memory that the coordinator and all tasks share: process ids, stages, reports.
pub(super) struct SharedState {
    pub(super) memory: SharedMem,
    /// The process ids in the image, which messages name.
    pub(super) image_pids: Vec<i32>,
    leaderless: usize,
}

impl SharedState {
    /// The state for tasks with these process ids in the image, and for this many groups whose
    /// leader is gone.
    pub(super) fn new(image_pids: Vec<i32>, leaderless: usize) -> Result<SharedState> {
        let count = image_pids.len();
        let cells = TASKS + TASK_CELLS * count + leaderless;
        let memory = SharedMem::new(cells, count).at(|| "shared memory")?;
        Ok(SharedState { memory, image_pids, leaderless })
    }

    /// The number of tasks.
    pub(super) fn count(&self) -> usize {
        self.image_pids.len()
    }

    /// The name of a task in messages.
    pub(super) fn name(&self, task: usize) -> String {
        format!("task {}", self.image_pids[task])
    }

    pub(super) fn load(&self, cell: usize) -> i32 {
        self.memory.get(cell)
    }

    /// The lock of the fdstore, as [`crate::table::fdstore::Store`] takes it.
    pub(super) fn store_lock(&self) -> (&SharedMem, usize) {
        (&self.memory, STORE_LOCK)
    }

    /// The process id of a task; zero until it is forked.
    pub(super) fn pid(&self, task: usize) -> i32 {
        self.load(TASKS + TASK_CELLS * task)
    }

    pub(super) fn set_pid(&self, task: usize, pid: i32) {
        self.memory.set(TASKS + TASK_CELLS * task, pid);
    }

    /// The last stage that a task has reached; zero for none.
    pub(super) fn reached(&self, task: usize) -> i32 {
        self.load(TASKS + TASK_CELLS * task + 1)
    }

    pub(super) fn set_reached(&self, task: usize, stage: i32) {
        self.memory.cell(TASKS + TASK_CELLS * task + 1).store(stage, Ordering::Release);
    }

    fn placeholder_cell(&self, group: usize) -> usize {
        TASKS + TASK_CELLS * self.count() + group
    }

    /// The process id of the placeholder leader of a group, and so the id of the group, also after
    /// that process has ended; zero until it is forked.
    pub(super) fn placeholder(&self, group: usize) -> i32 {
        self.load(self.placeholder_cell(group)).abs()
    }

    pub(super) fn set_placeholder(&self, group: usize, pid: i32) {
        self.memory.set(self.placeholder_cell(group), pid);
    }

    /// Records that the placeholder leader of a group has ended: its process id becomes negative.
    pub(super) fn set_placeholder_ended(&self, group: usize) {
        self.memory.set(self.placeholder_cell(group), -self.placeholder(group));
    }

    /// Waits until the placeholder leader of a group has ended.
    pub(super) fn await_placeholder_end(&self, group: usize) {
        let cell = self.placeholder_cell(group);
        loop {
            match self.load(cell) {
                ..0 => return,
                pid => self.memory.wait(cell, pid, None),
            }
        }
    }

    /// The process ids of all tasks and placeholder leaders that are forked and not known to have
    /// ended.
    pub(super) fn pids(&self) -> impl Iterator<Item = i32> {
        let tasks = (0..self.count()).map(|task| self.pid(task));
        let placeholders =
            (0..self.leaderless).map(|group| self.load(self.placeholder_cell(group)));
        tasks.chain(placeholders).filter(|&pid| pid > 0)
    }
}

/// The code of a forked task, which returns only to fail. A pointer, since it forks tasks itself.
pub(super) type ChildMain = fn(&TreeRestore<'_>, usize, TableAtFork<'_>) -> Result<Infallible>;

/// The restore of a tree, as the coordinator and, by fork(2), every task knows it. Methods are in
/// the file of their concern.
pub(super) struct TreeRestore<'a> {
    pub(super) tree: &'a Tree<'a>,
    /// The descriptor table of this process; each task goes on with a copy of it.
    pub(super) table: OwnTable,
    pub(super) options: &'a RestoreOptions,
    pub(super) mode: &'a Mode,
    /// The image, mapped.
    pub(super) source: &'a [u8],
    pub(super) state: &'a SharedState,
    pub(super) child_main: ChildMain,
    /// The index of the task with each process id of the image.
    pub(super) by_pid: HashMap<i32, usize>,
    /// The process group by its id in the image.
    pub(super) groups: HashMap<i32, ProcessGroup>,
    /// Process id and process group of fdrestore.
    pub(super) coordinator: (Pid, Pid),
    /// The soft limit of open files: at the start of fdrestore, and during the restore.
    pub(super) limits: (u64, u64),
    /// The signal mask at the start of fdrestore.
    pub(super) signal_mask: SigSet,
    /// The credentials of fdrestore.
    pub(super) credentials: Credentials,
    /// [`crate::kind::context::RestoreContext::renamed_paths`] of the files that fdrestore opened.
    pub(super) renamed_paths: RefCell<HashMap<Vec<u8>, Vec<u8>>>,
    pub(super) title: Option<Title>,
    /// The directory below which paths of the image are.
    pub(super) root: Option<PathBuf>,
    pub(super) stats: Option<StatsPage>,
}

/// Cells in which each task leaves its statistics.
pub(super) struct StatsPage {
    pub(super) counter: Counter,
    /// [`STATS_CELLS`] cells of each task.
    pub(super) shared: SharedMem,
}

/// Cells of a task: system calls, dups, messages, and the largest FDSize that it saw.
pub(super) const STATS_CELLS: usize = 4;

/// The numbers of the service descriptors in a table.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ServiceNumbers {
    pub(super) store: Option<RawFd>,
    pub(super) root: Option<RawFd>,
}

impl ServiceNumbers {
    pub(super) fn all(self) -> impl Iterator<Item = RawFd> {
        [self.store, self.root].into_iter().flatten()
    }

    pub(super) fn highest(self) -> Option<u32> {
        self.all().max().map(|number| number as u32)
    }

    pub(super) fn has(self, number: RawFd) -> bool {
        self.all().any(|service| service == number)
    }
}

/// The service descriptors of a task.
#[derive(Debug, Default)]
pub(super) struct ServiceFds {
    pub(super) store: Option<PlacedFd>,
    pub(super) root: Option<PlacedFd>,
}

impl ServiceFds {
    pub(super) fn numbers(&self) -> ServiceNumbers {
        let number = |placed: &Option<PlacedFd>| placed.as_ref().map(PlacedFd::number);
        ServiceNumbers { store: number(&self.store), root: number(&self.root) }
    }

    /// The fdstore of the tree.
    pub(super) fn fdstore<'b>(&'b self, state: &'b SharedState) -> Option<Store<'b>> {
        self.store.as_ref().map(|store| Store::borrowed(store.as_fd(), state.store_lock()))
    }

    pub(super) fn close(self, table: &OwnTable) {
        [self.store, self.root].into_iter().flatten().for_each(|placed| table.close(placed));
    }
}

/// The table of the forking process at the fork.
#[derive(Clone, Copy, Debug)]
pub(super) struct TableAtFork<'b> {
    pub(super) services: ServiceNumbers,
    /// The other open numbers, ascending.
    pub(super) numbers: &'b [RawFd],
}

impl TreeRestore<'_> {
    /// The process id that the parent of a task must have.
    pub(super) fn parent_pid(&self, task: usize) -> i32 {
        let parent = self.tree.shape.nodes[task].parent;
        parent.map_or(self.coordinator.0.as_raw(), |parent| self.state.pid(parent))
    }

    /// The id of a process group now; zero stands for the caller's own process id.
    pub(super) fn group_id(&self, group: ProcessGroup) -> i32 {
        match group {
            ProcessGroup::Own => 0,
            ProcessGroup::Of(task) => self.state.pid(task),
            ProcessGroup::Coordinator => self.coordinator.1.as_raw(),
            ProcessGroup::Leaderless(group) => self.state.placeholder(group),
        }
    }

    /// True if a task runs COMMAND.
    pub(super) fn runs_command(&self, task: usize) -> bool {
        self.mode.runs_command(&self.tree.shape, task)
    }

    /// A path of the image, below the root directory of the restore.
    pub(super) fn path(&self, path: &[u8]) -> PathBuf {
        below_root(self.root.as_deref(), path)
    }
}

impl PidMap for TreeRestore<'_> {
    fn process(&self, pid: i32) -> Option<i32> {
        self.by_pid.get(&pid).map(|&task| self.state.pid(task))
    }

    fn group(&self, pgid: i32) -> Option<i32> {
        match self.groups.get(&pgid)? {
            ProcessGroup::Own => self.process(pgid),
            other => Some(self.group_id(*other)),
        }
    }
}

/// The root directory of a task, if it is another than `/`.
pub(super) fn other_root(task: &Task) -> Option<&[u8]> {
    task.root.as_ref().map(|root| root.0.as_slice()).filter(|root| *root != b"/")
}

/// A path of the image, below this root directory.
pub(super) fn below_root(root: Option<&Path>, path: &[u8]) -> PathBuf {
    let path = Path::new(OsStr::from_bytes(path));
    match root {
        Some(root) => root.join(path.strip_prefix("/").unwrap_or(path)),
        None => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_and_placeholder_has_cells_of_its_own() {
        let state = SharedState::new(vec![10, 20, 30], 2).unwrap();
        for task in 0..3 {
            state.set_pid(task, 100 + task as i32);
            state.set_reached(task, 1 + task as i32);
        }
        state.set_placeholder(0, 200);
        state.set_placeholder(1, 201);
        assert_eq!(state.pids().collect::<Vec<i32>>(), [100, 101, 102, 200, 201]);
        assert_eq!([0, 1, 2].map(|task| state.reached(task)), [1, 2, 3]);
        assert_eq!((state.load(STAGE), state.load(ARRIVED), state.load(FAILED)), (0, 0, 0));
        state.set_placeholder_ended(0);
        state.await_placeholder_end(0);
        assert_eq!((state.pids().count(), state.placeholder(0)), (4, 200));
        assert_eq!(state.name(2), "task 30");
    }

    #[test]
    fn paths_of_the_image_are_below_the_root() {
        assert_eq!(below_root(None, b"/etc/passwd"), Path::new("/etc/passwd"));
        let root = Some(Path::new("/srv/box"));
        assert_eq!(below_root(root, b"/etc/passwd"), Path::new("/srv/box/etc/passwd"));
        assert_eq!(below_root(root, b"/"), Path::new("/srv/box/"));
    }
}
