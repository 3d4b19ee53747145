//! What all tasks of a tree share while they are restored: the cells of the shared memory, process
//! ids, service descriptors, the options.

use super::Tree;
use super::shape::ProcessGroup;
use crate::image::Credentials;
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
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What the processes do once all stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mode {
    /// Each runs its recorded command, in its recorded directory.
    pub respawn: bool,
    /// What the first task runs in place of that.
    pub command: Vec<OsString>,
    /// Each gets the process id that it had.
    pub same_pids: bool,
    /// What it takes is looked at.
    pub stats: bool,
}

impl Mode {
    /// Whether nobody runs anything.
    pub(super) fn holds(&self) -> bool {
        !self.respawn && self.command.is_empty()
    }
}

/// The cells of the shared memory before those of the tasks.
pub(super) const STAGE: usize = 0;
pub(super) const ARRIVED: usize = 1;
pub(super) const LOCK: usize = 2;
pub(super) const FAILED: usize = 3;
pub(super) const FIXED: usize = 4;

/// All must be there.
pub(super) const BORN: i32 = 1;
pub(super) const RESTORED: i32 = 2;
pub(super) const GONE_ON: i32 = 3;

/// In the cell of what stands in for the leader of a group: it has ended.
pub(super) const GONE: i32 = -1;

/// How long we wait before we look whether somebody has died.
pub(super) const PATIENCE: Duration = Duration::from_millis(100);

/// What a process of the tree knows.
pub(super) struct TreeRestore<'a> {
    pub(super) tree: &'a Tree<'a>,
    /// The descriptor table of this process; each task goes on with a copy of it.
    pub(super) table: OwnTable,
    pub(super) options: &'a RestoreOptions,
    pub(super) mode: &'a Mode,
    pub(super) source: &'a [u8],
    pub(super) shared: &'a SharedMem,
    pub(super) by_pid: HashMap<i32, usize>,
    pub(super) groups: HashMap<i32, ProcessGroup>,
    /// Process and group of fdrestore.
    pub(super) coordinator: (Pid, Pid),
    /// The soft limit of open files before and now.
    pub(super) limits: (u64, u64),
    /// The signals that were blocked when we were started.
    pub(super) mask: SigSet,
    /// Who we run as.
    pub(super) credentials: Credentials,
    /// Paths of the image that are others now.
    pub(super) moved: RefCell<HashMap<Vec<u8>, Vec<u8>>>,
    pub(super) title: Option<Title>,
    pub(super) root: Option<PathBuf>,
    pub(super) stats_page: Option<StatsPage>,
    /// Those that we have waited for, whose numbers may be those of others by now.
    pub(super) ended: RefCell<HashSet<i32>>,
    /// How many the kernel had killed for want of memory when we began.
    pub(super) killed: u64,
}

/// Where the tasks put down what they took, for `--stats`.
pub(super) struct StatsPage {
    pub(super) counter: Counter,
    /// For each task [`STATS_CELLS`] cells.
    pub(super) shared: SharedMem,
}

/// Of a task: system calls, dups, messages, and the largest table that it saw itself.
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
pub(super) struct Services {
    pub(super) store: Option<PlacedFd>,
    pub(super) root: Option<PlacedFd>,
}

impl Services {
    pub(super) fn numbers(&self) -> ServiceNumbers {
        let number = |placed: &Option<PlacedFd>| placed.as_ref().map(PlacedFd::number);
        ServiceNumbers { store: number(&self.store), root: number(&self.root) }
    }

    /// The fdstore of the tree.
    pub(super) fn store<'b>(&'b self, shared: &'b SharedMem) -> Option<Store<'b>> {
        self.store.as_ref().map(|store| Store::of(store.as_fd(), (shared, LOCK)))
    }

    pub(super) fn close(self, table: &OwnTable) {
        [self.store, self.root].into_iter().flatten().for_each(|placed| table.close(placed));
    }
}

/// What is in a table when a child is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Before<'b> {
    pub(super) services: ServiceNumbers,
    /// The numbers that the task of the table has by then, ascending.
    pub(super) stands: &'b [RawFd],
}

impl TreeRestore<'_> {
    pub(super) fn pid_cell(&self, task: usize) -> usize {
        FIXED + 2 * task
    }

    pub(super) fn reached_cell(&self, task: usize) -> usize {
        FIXED + 2 * task + 1
    }

    pub(super) fn orphan_cell(&self, group_index: usize) -> usize {
        FIXED + 2 * self.tree.image.tasks.len() + group_index
    }

    pub(super) fn pid(&self, task: usize) -> i32 {
        self.shared.cell(self.pid_cell(task)).load(Ordering::Acquire)
    }

    pub(super) fn leader(&self, group: ProcessGroup) -> i32 {
        match group {
            ProcessGroup::Own => 0,
            ProcessGroup::Of(task) => self.pid(task),
            ProcessGroup::Coordinator => self.coordinator.1.as_raw(),
            ProcessGroup::Leaderless(at) => {
                self.shared.cell(self.orphan_cell(at)).load(Ordering::Acquire)
            }
        }
    }

    /// Who is to be its parent.
    pub(super) fn parent(&self, at: usize) -> i32 {
        let parent = self.tree.shape.nodes[at].parent;
        parent.map_or(self.coordinator.0.as_raw(), |parent| self.pid(parent))
    }

    /// Whether it runs the command that was given.
    pub(super) fn is_given(&self, at: usize) -> bool {
        self.tree.shape.order[0] == at && !self.mode.command.is_empty()
    }

    /// A path of the image as it is here.
    pub(super) fn place(&self, path: &[u8]) -> PathBuf {
        below_root(self.root.as_deref(), path)
    }
}

impl PidMap for TreeRestore<'_> {
    fn process(&self, pid: i32) -> Option<i32> {
        self.by_pid.get(&pid).map(|&task| self.pid(task))
    }

    fn group(&self, pgid: i32) -> Option<i32> {
        match self.groups.get(&pgid)? {
            ProcessGroup::Own => self.process(pgid),
            other => Some(self.leader(*other)),
        }
    }
}

/// A path of the image as it is here.
pub(super) fn below_root(root: Option<&Path>, path: &[u8]) -> PathBuf {
    let path = Path::new(OsStr::from_bytes(path));
    match root {
        Some(root) => root.join(path.strip_prefix("/").unwrap_or(path)),
        None => path.to_owned(),
    }
}
