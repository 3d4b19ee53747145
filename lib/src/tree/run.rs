//! The processes of a tree: made, set up, and let go together, or ended together.
//!
//! Three stages, at each of which all wait for the last: *born* (every process is there, with its
//! session, its controlling terminal and what its children are to be born with), *restored* (every
//! table stands), *gone on* (our own descriptors are closed, credentials are put back; it holds, or
//! runs its command). Until the last stage whatever dies takes all others along.

use super::{ProcessGroup, Tree};
use crate::cli::progress::{Progress, Unit};
use crate::ctty;
use crate::error::{At, Error, Result, Status};
use crate::image::{Bytes, Credentials, Task, Terminal};
use crate::kind::context::{CttyPlan, PidMap, RestoreContext};
use crate::placement::{self, Placement, Size, Wanted};
use crate::plan::{Action, Missing, Plan, RestoreOptions, Step, hard_limit};
use crate::proc::Process;
use crate::sys::fork::{self, CloneArgs};
use crate::sys::shared_mem::SharedMem;
use crate::sys::title::Title;
use crate::sys::{self, PlacedFd, credentials};
use crate::table::driver::{self, With, Work, close_others, place, raise_limit, room, seize};
use crate::table::fdstore::Store;
use crate::table::shrink;
use crate::table::stats::{Meter, ProcessStats, TableStats};
use crate::table::syscall_counter::{Calls, Counter};
use crate::terminal::Settings;
use crate::text::escape;
use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, killpg, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpgrp, getpid, getppid, setpgid, setsid};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
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
    fn holds(&self) -> bool {
        !self.respawn && self.command.is_empty()
    }
}

/// The cells of the shared memory before those of the tasks.
const STAGE: usize = 0;
const ARRIVED: usize = 1;
const LOCK: usize = 2;
const FAILED: usize = 3;
const FIXED: usize = 4;

/// All must be there.
const BORN: i32 = 1;
const RESTORED: i32 = 2;
const GONE_ON: i32 = 3;

/// In the cell of what stands in for the leader of a group: it has ended.
const GONE: i32 = -1;

/// Bits of capabilities(7).
const CAP_KILL: u64 = 1 << 5;
const CAP_SETGID: u64 = 1 << 6;
const CAP_SETUID: u64 = 1 << 7;
const CAP_SYS_CHROOT: u64 = 1 << 18;
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_CHECKPOINT_RESTORE: u64 = 1 << 40;

/// How long we let those breathe who are to die.
const BREATH: Duration = Duration::from_millis(1);

/// How long we wait before we look whether somebody has died.
const PATIENCE: Duration = Duration::from_millis(100);

/// What a process of the tree knows.
struct TreeRestore<'a> {
    tree: &'a Tree<'a>,
    options: &'a RestoreOptions,
    mode: &'a Mode,
    source: &'a [u8],
    shared: &'a SharedMem,
    by_pid: HashMap<i32, usize>,
    groups: HashMap<i32, ProcessGroup>,
    /// Process and group of fdrestore.
    coordinator: (Pid, Pid),
    /// The soft limit of open files before and now.
    limits: (u64, u64),
    /// The signals that were blocked when we were started.
    mask: SigSet,
    /// Who we run as.
    credentials: Credentials,
    /// Paths of the image that are others now.
    moved: RefCell<HashMap<Vec<u8>, Vec<u8>>>,
    title: Option<Title>,
    root: Option<PathBuf>,
    stats_page: Option<StatsPage>,
    /// Those that we have waited for, whose numbers may be those of others by now.
    ended: RefCell<HashSet<i32>>,
    /// How many the kernel had killed for want of memory when we began.
    killed: u64,
}

/// Where the tasks put down what they took, for `--stats`.
struct StatsPage {
    counter: Counter,
    /// For each task [`STATS_CELLS`] cells.
    shared: SharedMem,
}

/// Of a task: system calls, dups, messages, and the largest table that it saw itself.
const STATS_CELLS: usize = 4;

/// Our own descriptors in a table.
#[derive(Clone, Copy, Debug, Default)]
struct Services {
    store: Option<PlacedFd>,
    root: Option<PlacedFd>,
}

impl Services {
    fn all(self) -> impl Iterator<Item = PlacedFd> {
        [self.store, self.root].into_iter().flatten()
    }

    fn highest(self) -> Option<u32> {
        self.all().map(|placed| placed.number() as u32).max()
    }

    fn has(self, number: RawFd) -> bool {
        self.all().any(|placed| placed.number() == number)
    }
}

/// What is in a table when a child is made.
#[derive(Clone, Copy, Debug)]
struct Before<'b> {
    services: Services,
    /// The numbers that the task of the table has by then, ascending.
    stands: &'b [RawFd],
}

impl TreeRestore<'_> {
    fn pid_cell(&self, task: usize) -> usize {
        FIXED + 2 * task
    }

    fn reached_cell(&self, task: usize) -> usize {
        FIXED + 2 * task + 1
    }

    fn orphan_cell(&self, group_index: usize) -> usize {
        FIXED + 2 * self.tree.image.tasks.len() + group_index
    }

    fn pid(&self, task: usize) -> i32 {
        self.shared.cell(self.pid_cell(task)).load(Ordering::Acquire)
    }

    fn leader(&self, group: ProcessGroup) -> i32 {
        match group {
            ProcessGroup::Own => 0,
            ProcessGroup::Of(task) => self.pid(task),
            ProcessGroup::Ours => self.coordinator.1.as_raw(),
            ProcessGroup::LeaderlessGroup(at) => {
                self.shared.cell(self.orphan_cell(at)).load(Ordering::Acquire)
            }
        }
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

/// How a tree came out.
pub struct Grown {
    /// For each task of the image its process id then and now.
    pub pids: Vec<(i32, i32)>,
    /// What was said on the way.
    pub said: Vec<String>,
    /// What it took, if that was asked for.
    pub stats: Option<Vec<ProcessStats>>,
}

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
    fork::wait_for_children();
    credentials::adopt_orphans().at(|| "PR_SET_CHILD_SUBREAPER")?;
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
    let restore = TreeRestore {
        tree,
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
    let joins = |at: usize| tasks[at].sid == tasks[at].pid && !tree.shape.nodes[at].leads;
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
    fn lead(
        &self,
        root: Option<OwnedFd>,
        ready: &mut dyn FnMut(&Grown) -> Result<()>,
    ) -> Result<Option<WaitStatus>> {
        let tree = self.tree;
        let meter = self.meter();
        let root = root.map(PlacedFd::here);
        let mut store = Store::new((self.shared, LOCK))?;
        let mut cx = tree.common.cx(self.source, self, root, self.options.changed);
        cx.anywhere = true;
        self.stock(&mut store, &mut cx, false)?;
        self.moved.replace(cx.moved.clone());
        let services = Services { store: Some(store.place()), root };
        // What our caller left open would make the tables of all larger.
        let mut keep = vec![0, 1, 2];
        keep.extend(services.all().map(PlacedFd::number));
        keep.sort_unstable();
        close_others(&keep)?;
        let ours = OomGuard::children();
        for &at in tree.shape.order.iter().filter(|&&at| tree.shape.nodes[at].maker.is_none()) {
            self.make(at, Before { services, stands: &[0, 1, 2] })?;
        }
        let usual = ours.end();
        self.wait_for(BORN)?;
        self.stock(&mut store, &mut cx, true)?;
        let mut said = std::mem::take(&mut cx.warnings);
        said.extend(self.stats_page.as_ref().and_then(|stats_page| stats_page.counter.why_not()));
        services.all().for_each(PlacedFd::close);
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
            grown.stats = Some(self.stats(stats_page, &store, meter.calls())?);
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

    /// What counts for this process.
    fn meter(&self) -> Meter<'_> {
        Meter::from_birth(self.stats_page.as_ref().map(|stats_page| &stats_page.counter))
    }

    /// FDSize of each task, as it is now.
    fn sizes(&self) -> Result<Vec<u64>> {
        let tasks = 0..self.tree.image.tasks.len();
        tasks.map(|at| crate::proc::capacity_of(self.pid(at))).collect()
    }

    /// What all took. A table was larger than it is only before it was made smaller, when its task
    /// looked.
    fn stats(
        &self,
        stats_page: &StatsPage,
        store: &Store<'_>,
        calls: Option<Calls>,
    ) -> Result<Vec<ProcessStats>> {
        let ends = self.sizes()?;
        let cell = |at: usize, which: usize| {
            stats_page.shared.cell(STATS_CELLS * at + which).load(Ordering::Acquire)
        };
        let row = |at: &usize| {
            let at = *at;
            let [all, dups, messages, seen] = [0, 1, 2, 3].map(|which| cell(at, which) as u32);
            let made = |plan: &Plan<'_>| TableStats {
                descriptors: plan.descriptors(),
                size: Size { peak: ends[at].max(seen.into()), end: ends[at] },
            };
            ProcessStats {
                pid: Some(self.tree.image.tasks[at].pid),
                table: self.tree.tables[at].as_ref().map(made),
                calls: calls.map(|_| Calls { all, dups }),
                messages,
            }
        };
        let own = ProcessStats { pid: None, table: None, calls, messages: store.messages() };
        Ok(self.tree.shape.order.iter().map(row).chain([own]).collect())
    }

    /// Puts down what a task took.
    fn put_down(&self, at: usize, meter: &Meter<'_>, messages: u32) {
        let Some(stats_page) = &self.stats_page else { return };
        let Calls { all, dups } = meter.calls().unwrap_or_default();
        let values = [all, dups, messages, meter.peak as u32];
        for (which, value) in values.into_iter().enumerate() {
            stats_page.shared.cell(STATS_CELLS * at + which).store(value as i32, Ordering::Release);
        }
    }

    /// Makes what several tasks have, as far as it can be made by now, and puts it into the store.
    fn stock<'s>(
        &'s self,
        store: &mut Store<'_>,
        cx: &mut RestoreContext<'s>,
        last: bool,
    ) -> Result<()> {
        let plan = &self.tree.common;
        let with = With::default();
        let mut problems = Vec::new();
        for (id, from) in &self.tree.handed {
            cx.handed.insert(*id, PlacedFd::inherited(*from)?);
        }
        let mut work = Work::new(plan, self.options, cx, &with);
        if !last {
            work.early();
        }
        work.make(|step| step.passed != last)?;
        let made = work.end(&mut |line| problems.push(line.to_owned()));
        made.map_err(|err| listed(err, &problems))?;
        let unlocked = driver::late(plan, cx)?;
        self.go_without(unlocked, cx)?;
        for message in self.tree.messages.iter().filter(|message| message.last == last) {
            let placed = |id: &u32| match cx.placed_fds.get(id) {
                Some(placed) => Ok(*placed),
                None => self.handed(*id),
            };
            let placed_fds = message.files.iter().map(placed).collect::<Result<Vec<PlacedFd>>>()?;
            store.put(&placed_fds.iter().map(AsFd::as_fd).collect::<Vec<_>>())?;
        }
        cx.placed_fds.drain().for_each(|(_, placed)| placed.close());
        Ok(())
    }

    /// Refuses what cannot be locked, or says it: [`driver::go_without`].
    fn go_without(&self, unlocked: Vec<String>, cx: &mut RestoreContext<'_>) -> Result<()> {
        let mut problems = Vec::new();
        let mut say = |line: &str| problems.push(line.to_owned());
        let gone = driver::go_without(unlocked, self.options, &mut cx.warnings, &mut say);
        gone.map_err(|err| listed(err, &problems))
    }

    /// The caller's descriptor that stands for a file.
    fn handed(&self, id: u32) -> Result<PlacedFd> {
        let from = self.tree.handed.get(&id).copied().ok_or(Errno::EBADF)?;
        Ok(PlacedFd::inherited(from)?)
    }

    /// Waits until all tasks have come to a stage; fails if one has died.
    fn wait_for(&self, stage: i32) -> Result<()> {
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
            if let Some(signal) = sys::signal::taken(&enders()) {
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

    fn has_died(&self, task: usize) -> bool {
        match self.pid(task) {
            0 => false,
            pid => crate::proc::Stat::of(pid).is_none_or(|stat| stat.is_zombie()),
        }
    }

    /// The error that a task has left behind: its last line, with the status before it.
    fn failure(&self, task: usize) -> Error {
        let text = self.shared.said(task);
        let pid = self.tree.image.tasks[task].pid;
        let last = text.lines().last().unwrap_or_default();
        let (status, why) = last.split_once(' ').unwrap_or(("7", last));
        let status = match status {
            "3" => Status::Malformed,
            "4" => Status::Denied,
            "6" => Status::Unrestorable,
            _ => Status::System,
        };
        Error::new(status, why).at(format!("task {pid}"))
    }

    /// Ends all processes of the tree, and waits until nothing is left of them.
    fn end_all(&self) {
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
    fn hold(&self) -> Result<Option<WaitStatus>> {
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
    fn follow(&self, first: Pid) -> Result<WaitStatus> {
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

    /// Makes a child that is to be a task, of a table with this in it.
    fn make(&self, at: usize, before: Before<'_>) -> Result<()> {
        let nodes = &self.tree.shape.nodes[at];
        let pid = self.tree.image.tasks[at].pid;
        let how = CloneArgs {
            share: nodes.owner != at,
            sibling: nodes.maker != nodes.parent,
            pid: if self.mode.same_pids { pid } else { 0 },
        };
        let made = fork::birth(how).map_err(|errno| match errno {
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

    /// Says why, and ends this process; fdrestore ends the others.
    fn fail(&self, at: usize, why: &Error) -> ! {
        self.shared.say(at, &format!("{} {why}", why.status() as u8));
        self.shared.set(FAILED, at as i32 + 1);
        self.shared.wake(ARRIVED);
        fork::end(1)
    }

    /// What a process of the tree does; it returns only to fail.
    fn live(&self, at: usize, before: Before<'_>) -> Result<Infallible> {
        let nodes = &self.tree.shape.nodes[at];
        self.shared.set(self.pid_cell(at), getpid().as_raw());
        credentials::die_with_parent(true).at(|| "PR_SET_PDEATHSIG")?;
        if getppid().as_raw() != self.parent(at) {
            fork::end(1);
        }
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.mask), None)?;
        match nodes.owner == at {
            true => self.own(at, before),
            false => self.share(at, before),
        }
    }

    /// One that has a table of its own.
    fn own(&self, at: usize, before: Before<'_>) -> Result<Infallible> {
        let plan = self.tree.tables[at].as_ref().ok_or(Errno::EBADF)?;
        let mut meter = self.meter();
        let services = self.newborn(plan, before, &mut meter)?;
        meter.placed();
        let store = services.store.map(|placed| Store::seated(placed, (self.shared, LOCK)));
        let mut cx = plan.cx(self.source, self, services.root, self.options.changed);
        cx.moved = self.moved.borrow().clone();
        let with = With { handed: HashMap::new(), store: store.as_ref(), filler: services.store };
        let mut work = Work::new(plan, self.options, &mut cx, &with);
        self.children(at, services, &with, Some(&mut work))?;
        self.arrive(at, BORN);
        self.join(at)?;
        work.cx.anywhere = self.options.placement == Placement::Late;
        work.early();
        work.make(|_| true)?;
        let mut problems = Vec::new();
        let made = work.end(&mut |line| problems.push(line.to_owned()));
        made.map_err(|err| listed(err, &problems))?;
        work.settle()?;
        let mut unlocked = driver::late(plan, &mut cx)?;
        self.foreground(at)?;
        self.surround(at)?;
        services.all().for_each(PlacedFd::close);
        self.fit(at, plan, services, &mut meter)?;
        match leaves_locks(self.mode, self.tree.sharers[at], plan) {
            true => unlocked.push(LEFT.to_owned()),
            false => unlocked.extend(driver::of_table(plan, true)),
        }
        self.go_without(unlocked, &mut cx)?;
        cx.warnings.iter().for_each(|line| self.shared.say(at, line));
        self.arrive(at, RESTORED);
        self.reap_stand_ins(at);
        if self.mode.holds() {
            let cloexec = plan.steps.iter().filter(|step| step.cloexec && driver::stands(step));
            let cloexec: Vec<RawFd> = cloexec.map(|step| step.fd).collect();
            for (first, last) in ranges(&cloexec) {
                sys::close_on_exec(first, last).at(|| "FD_CLOEXEC")?;
            }
        }
        self.put_down(at, &meter, store.as_ref().map_or(0, Store::messages));
        self.go_on(at, plan)
    }

    /// One that shares the table of another, who restores it.
    fn share(&self, at: usize, before: Before<'_>) -> Result<Infallible> {
        let plan =
            self.tree.tables[self.tree.shape.nodes[at].owner].as_ref().ok_or(Errno::EBADF)?;
        let meter = self.meter();
        let store = before.services.store.map(|placed| Store::seated(placed, (self.shared, LOCK)));
        let with = With { handed: HashMap::new(), store: store.as_ref(), filler: None };
        self.children(at, before.services, &with, None)?;
        self.arrive(at, BORN);
        self.join(at)?;
        self.foreground(at)?;
        self.surround(at)?;
        self.arrive(at, RESTORED);
        self.reap_stand_ins(at);
        self.put_down(at, &meter, store.as_ref().map_or(0, Store::messages));
        self.go_on(at, plan)
    }

    /// Finds our own descriptors a place, closes what the task does not want of its parent's, and
    /// takes a smaller table if it was born with a larger one than it needs.
    fn newborn(
        &self,
        plan: &Plan<'_>,
        before: Before<'_>,
        meter: &mut Meter<'_>,
    ) -> Result<Services> {
        let numbers = numbers(plan);
        let owner = self.by_pid.get(&plan.task.pid);
        let sharers = owner.map_or(1, |&owner| self.tree.sharers[owner]);
        let table = wanted(&numbers, sharers, self.limits.1);
        let Before { services: Services { store, root }, stands } = before;
        let mut placed = [store, root];
        place(&mut placed, self.options.placement, &table)?;
        let services = Services { store: placed[0], root: placed[1] };
        let stays = |fd: &RawFd| {
            let step = plan.steps.binary_search_by_key(fd, |step| step.fd);
            step.is_ok_and(|at| plan.steps[at].action == Action::FromParent) || services.has(*fd)
        };
        let strays: Vec<RawFd> = stands.iter().copied().filter(|fd| !stays(fd)).collect();
        for (first, last) in ranges(&strays) {
            sys::close_range(first, last).at(|| "close_range")?;
        }
        let highest = stands.last().map(|&fd| fd as u32);
        let born = placement::capacity(before.services.highest().max(highest));
        let need = placement::capacity(services.highest().max(numbers.last().copied()));
        if self.options.placement == Placement::Tight && born > need {
            if self.stats_page.is_some() {
                meter.look()?;
            }
            shrink::now().at(|| "shrink the table")?;
        }
        Ok(services)
    }

    /// Takes a smaller table if our own descriptors, or those on the way, may have made it larger
    /// than it must be. A table that is shared cannot be made smaller by one of those who share it.
    fn fit(
        &self,
        at: usize,
        plan: &Plan<'_>,
        services: Services,
        meter: &mut Meter<'_>,
    ) -> Result<()> {
        let wanted = plan.steps.iter().filter(|step| step.action != Action::Skip);
        let need = placement::capacity(plan.highest());
        // What is made needs a few numbers for a moment.
        let crowded = need.saturating_sub(wanted.count() as u64) < 4;
        let waited = plan.steps.last().map(|step| step.fd as u32);
        let grown = placement::capacity(services.highest().max(waited)) > need;
        let alone = self.tree.sharers[at] == 1;
        if self.options.placement == Placement::Tight && alone && (crowded || grown) {
            if self.stats_page.is_some() {
                meter.look()?;
            }
            shrink::now().at(|| "shrink the table")?;
        }
        Ok(())
    }

    /// Makes its children: each as soon as what it is born with stands. Between those of the old
    /// session and those of the new one it leaves the old.
    fn children(
        &self,
        at: usize,
        services: Services,
        with: &With<'_>,
        mut work: Option<&mut Work<'_, '_>>,
    ) -> Result<()> {
        let nodes = &self.tree.shape.nodes[at];
        let plan = self.tree.tables[nodes.owner].as_ref().ok_or(Errno::EBADF)?;
        if nodes.group == ProcessGroup::Own && !nodes.leads {
            setpgid(Pid::from_raw(0), Pid::from_raw(0)).at(|| "setpgid")?;
        }
        let mut leaves = nodes.leads;
        let mut made: Option<Option<RawFd>> = None;
        let mut stands: Vec<RawFd> = Vec::new();
        for &child in &nodes.makes {
            if leaves && !self.tree.shape.nodes[child].before {
                leaves = false;
                self.leave_session(at, services, with)?;
            }
            let reached = self.tree.reached[child];
            if made != Some(reached) {
                made = Some(reached);
                if let Some(work) = work.as_mut() {
                    work.make(|step| step.passed && Some(step.fd) <= reached)?;
                    work.let_go()?;
                }
                let there = |step: &&Step| {
                    step.action == Action::FromParent
                        || step.passed && Some(step.fd) <= reached && step.action != Action::Skip
                };
                stands = plan.steps.iter().filter(there).map(|step| step.fd).collect();
            }
            self.make(child, Before { services, stands: &stands })?;
        }
        if leaves {
            self.leave_session(at, services, with)?;
        }
        for (index, group_index) in self.tree.shape.leaderless.iter().enumerate() {
            if group_index.first == at {
                self.stand_in(index)?;
            }
        }
        Ok(())
    }

    /// Becomes the leader of a new session, and takes its controlling terminal.
    fn leave_session(&self, at: usize, services: Services, with: &With<'_>) -> Result<()> {
        setsid().at(|| "setsid")?;
        let owner = self.tree.shape.nodes[at].owner;
        let plan = self.tree.tables[owner].as_ref().ok_or(Errno::EBADF)?;
        let task = &self.tree.image.tasks[at];
        let Some(old) = &task.terminal else { return Ok(()) };
        let name = crate::terminal::name(sys::tty::numbers(old.device));
        let steal = self.options.steal;
        let taken = match (&self.tree.ctty_plans[at], self.tree.controls[at]) {
            (_, Some((message, place))) => {
                let store = with.store.ok_or(Errno::EBADF)?;
                let count = self.tree.messages[message as usize].files.len();
                let fds = store.get(message, count).at(|| "the fdstore")?;
                seize(PlacedFd::known(fds[place].as_raw_fd()), steal)
            }
            (CttyPlan::FromPath(path), _) => {
                let root = services.root;
                let cx = plan.cx(self.source, self, root, self.options.changed);
                driver::control_by_path(&path.clone(), old.device, &cx, steal)
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

    /// Makes the process that leads a group whose leader is gone, until all have joined it.
    fn stand_in(&self, group_index: usize) -> Result<()> {
        let cell = self.orphan_cell(group_index);
        // The id of a group outlives its leader; if that was no task it may be another's by now.
        let old = self.tree.shape.leaderless[group_index].pgid;
        let pid = if self.mode.same_pids && !is_taken(old) { old } else { 0 };
        let made = match fork::birth(CloneArgs { pid, ..CloneArgs::default() }) {
            Err(Errno::EEXIST) => fork::birth(CloneArgs::default()),
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
                let _ = close_others(&[]);
                self.await_stage(RESTORED);
                fork::end(0)
            }
        }
    }

    fn reap_stand_ins(&self, at: usize) {
        for (index, group_index) in self.tree.shape.leaderless.iter().enumerate() {
            if group_index.first == at {
                let cell = self.orphan_cell(index);
                let pid = self.shared.cell(cell).load(Ordering::Acquire);
                let _ = waitpid(Pid::from_raw(pid), None);
                self.shared.set(cell, GONE);
            }
        }
    }

    /// Says that it has come to a stage, and waits until all may go on.
    fn arrive(&self, at: usize, stage: i32) {
        self.shared.cell(self.reached_cell(at)).store(stage, Ordering::Release);
        self.shared.add(ARRIVED);
        self.await_stage(stage);
    }

    fn await_stage(&self, stage: i32) {
        loop {
            let now = self.shared.cell(STAGE).load(Ordering::Acquire);
            if now >= stage {
                return;
            }
            self.shared.wait(STAGE, now, None);
        }
    }

    /// Joins its process group.
    fn join(&self, at: usize) -> Result<()> {
        let nodes = &self.tree.shape.nodes[at];
        if nodes.group == ProcessGroup::Own {
            return Ok(());
        }
        setpgid(Pid::from_raw(0), Pid::from_raw(self.leader(nodes.group))).at(|| "setpgid")
    }

    /// The controlling terminal that it had, if it led its session and has one again.
    fn governs(&self, at: usize) -> Option<&Terminal> {
        let task = &self.tree.image.tasks[at];
        let has = !matches!(self.tree.ctty_plans[at], CttyPlan::None | CttyPlan::Unavailable(_));
        task.terminal.as_ref().filter(|_| has && task.sid == task.pid)
    }

    /// Puts the foreground group of its session's terminal back, if it leads that and has one. Ours
    /// is given only to a program, and if it is ours to give.
    fn foreground(&self, at: usize) -> Result<()> {
        let Some(old) = self.governs(at) else { return Ok(()) };
        let joins = !self.tree.shape.nodes[at].leads;
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
    fn await_job(&self, at: usize) -> Result<()> {
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

    /// Puts back what is not in a table, and holds, or runs its command.
    fn go_on(&self, at: usize, plan: &Plan<'_>) -> Result<Infallible> {
        let task = &self.tree.image.tasks[at];
        let command = match (self.is_given(at), self.mode.respawn) {
            (true, _) => Some(Program::new(None, self.mode.command.iter().map(|it| it.as_bytes()))),
            (false, true) => {
                // By now the path starts at its own root.
                let exe = task.exe.as_ref().and_then(|exe| match &task.root {
                    Some(root) if root.0 != b"/" => below(&exe.0, &root.0).map(<[u8]>::to_vec),
                    _ => Some(self.place(&exe.0).into_os_string().into_vec()),
                });
                Some(Program::new(exe, task.args.iter().map(|arg| arg.0.as_slice())))
            }
            (false, false) => None,
        };
        let Some(command) = command else {
            if let Some(title) = &self.title {
                title.set(&format!("fdrestore: holding {}", task.pid));
            }
            // Others wait for all, so it says so before it stops.
            self.reached(at, GONE_ON);
            if task.stopped {
                self.stop(at)?;
            }
            if self.may_outlive(at) {
                while getppid().as_raw() == self.parent(at) {
                    std::thread::sleep(PATIENCE);
                }
                fork::end(1)
            }
            loop {
                nix::unistd::pause();
            }
        };
        if self.stats_page.is_some() {
            self.arrive(at, GONE_ON);
        }
        credentials::die_with_parent(false)?;
        let owner = self.tree.shape.nodes[at].owner == at;
        let cloexec =
            plan.steps.iter().filter(|step| owner && step.cloexec && driver::stands(step));
        let cloexec: Vec<String> = cloexec.map(|step| step.fd.to_string()).collect();
        if task.stopped {
            self.stop(at)?;
        }
        let awaited = self.await_job(at);
        sys::start::sigpipe_as_inherited();
        if let Err(why) = awaited {
            let line = format!("fdrestore: task {}: {why}\n", task.pid);
            let _ = nix::unistd::write(PlacedFd::known(2), line.as_bytes());
        }
        let why = command.run(&cloexec);
        let line = format!("fdrestore: task {}: {}: {}\n", task.pid, command.name(), why.desc());
        let _ = nix::unistd::write(PlacedFd::known(2), line.as_bytes());
        fork::end(if why == Errno::ENOENT { 127 } else { 126 })
    }

    /// Stops this process, once what stood in for the leader of its group is gone: its end may
    /// orphan the group, and then the kernel ends those in it that are stopped (SIGHUP, setpgid(2)).
    fn stop(&self, at: usize) -> Result<()> {
        if let ProcessGroup::LeaderlessGroup(group_index) = self.tree.shape.nodes[at].group {
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

    /// Who is to be its parent.
    fn parent(&self, at: usize) -> i32 {
        let parent = self.tree.shape.nodes[at].parent;
        parent.map_or(self.coordinator.0.as_raw(), |parent| self.pid(parent))
    }

    /// Whether the end of its parent may not end this one: PR_SET_PDEATHSIG is sent with the rights
    /// of that parent (kill(2)).
    fn may_outlive(&self, at: usize) -> bool {
        let tasks = &self.tree.image.tasks;
        let Some(parent) = self.tree.shape.nodes[at].parent else { return false };
        let (theirs, ours) = (&tasks[parent].credentials, &tasks[at].credentials);
        let same = |uid: u32| uid == ours.uids[0] || uid == ours.uids[2];
        !theirs.uids[..2].iter().copied().any(same) && theirs.caps[2] & CAP_KILL == 0
    }

    /// The limit of open files that the task had, as far as ours reaches.
    fn limit(&self, at: usize) -> Result<()> {
        let (soft, hard) = self.tree.image.tasks[at].table.limit;
        let ours = hard_limit()?;
        if setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard), hard).is_err() {
            setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard).min(ours), hard.min(ours))
                .at(|| "RLIMIT_NOFILE")?;
            if soft > ours {
                self.shared.say(at, &format!("its limit of open files was {soft} and is {ours}"));
            }
        }
        Ok(())
    }

    /// Puts back where the task is and who it runs as. A command that is given runs where and as
    /// whom we do, like any other COMMAND.
    fn surround(&self, at: usize) -> Result<()> {
        if self.is_given(at) {
            if self.limits.0 != self.limits.1 {
                setrlimit(Resource::RLIMIT_NOFILE, self.limits.0, hard_limit()?)?;
            }
            return Ok(());
        }
        self.limit(at)?;
        let task = &self.tree.image.tasks[at];
        // What only holds does no harm with more rights, or elsewhere; a program might.
        let amiss = |what: String, why: Error| match self.mode.respawn {
            true => Err(why.at(what)),
            false => {
                self.shared.say(at, &format!("{what}: {why}"));
                Ok(())
            }
        };
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(task.umask));
        if let Some(cwd) = &task.cwd {
            if let Err(errno) = nix::unistd::chdir(&self.place(&cwd.0)) {
                amiss(format!("its working directory {}", escape(&cwd.0)), errno.into())?;
            }
        }
        if let Some(root) = task.root.as_ref().filter(|root| root.0 != b"/") {
            if let Err(errno) = nix::unistd::chroot(&self.place(&root.0)) {
                amiss(format!("its root directory {}", escape(&root.0)), errno.into())?;
            }
        }
        if task.credentials != self.credentials {
            let more = self.credentials.caps[1] & !task.credentials.caps[1];
            match become_them(&task.credentials, &self.credentials) {
                Err(why) if more != 0 => amiss("it cannot run as before".to_owned(), why)?,
                Err(why) => self.shared.say(at, &format!("it does not run as before: {why}")),
                Ok(0) => (),
                Ok(lack) => {
                    let line = format!("it runs without capabilities {lack:x}, which we have not");
                    self.shared.say(at, &line);
                }
            }
            credentials::set_dumpable(true)?;
            // The kernel forgets it when credentials change.
            credentials::die_with_parent(true)?;
        }
        match getppid().as_raw() == self.parent(at) {
            true => Ok(()),
            false => Err(Errno::ESRCH.into()),
        }
    }

    /// Whether it runs the command that was given.
    fn is_given(&self, at: usize) -> bool {
        self.tree.shape.order[0] == at && !self.mode.command.is_empty()
    }

    fn reached(&self, at: usize, stage: i32) {
        self.shared.cell(self.reached_cell(at)).store(stage, Ordering::Release);
        self.shared.add(ARRIVED);
    }

    /// A path of the image as it is here.
    fn place(&self, path: &[u8]) -> PathBuf {
        below_root(self.root.as_deref(), path)
    }
}

/// A path of the image as it is here.
fn below_root(root: Option<&Path>, path: &[u8]) -> PathBuf {
    let path = Path::new(OsStr::from_bytes(path));
    match root {
        Some(root) => root.join(path.strip_prefix("/").unwrap_or(path)),
        None => path.to_owned(),
    }
}

/// The numbers that a table will have.
fn numbers(plan: &Plan<'_>) -> Vec<u32> {
    let stays = plan.steps.iter().filter(|step| step.action != Action::Skip);
    stays.map(|step| step.fd as u32).collect()
}

/// What is asked of the placement of our own descriptors in a table.
fn wanted(numbers: &[u32], sharers: u32, limit: u64) -> Wanted<'_> {
    let limit = limit.min(u64::from(u32::MAX)) as u32;
    Wanted { numbers, handed: None, sharers, floor: 0, limit }
}

/// How many processes the kernel has killed for want of memory: /proc/vmstat, Linux 4.13.
fn killed_for_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// As long as it is there, what this process makes is what the kernel kills first for want of
/// memory: somebody must be left to say so, and to end the rest (proc(5), oom_score_adj).
struct OomGuard(Option<String>);

const ADJUST: &str = "/proc/self/oom_score_adj";

impl OomGuard {
    fn children() -> OomGuard {
        let usual = std::fs::read_to_string(ADJUST).ok();
        // Without it all goes on as well.
        OomGuard(usual.filter(|_| std::fs::write(ADJUST, "1000").is_ok()))
    }

    /// What is usual, for those that were made meanwhile.
    fn end(mut self) -> Option<String> {
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

/// The signals that end us.
fn enders() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT].into_iter().collect()
}

/// The signals that we wait for.
fn awaited() -> SigSet {
    let mut all = enders();
    all.add(Signal::SIGCHLD);
    all
}

const LEFT: &str = "POSIX locks of a table that is shared end with an exec";

/// Whether a table has POSIX locks that would not stay with its tasks: whoever execs leaves a table
/// that is shared, and its locks with it.
fn leaves_locks(mode: &Mode, sharers: u32, plan: &Plan<'_>) -> bool {
    let mut locks = plan.locks(&plan.steps);
    !mode.holds() && sharers > 1 && locks.any(|(.., of_table)| of_table)
}

/// An error with what led to it before it.
fn listed(err: Error, problems: &[String]) -> Error {
    match problems {
        [] => err,
        _ => Error::new(err.status(), problems.join("; ")),
    }
}

/// An absolute path as one whose root directory is this one sees it.
fn below<'p>(path: &'p [u8], root: &[u8]) -> Option<&'p [u8]> {
    path.strip_prefix(root).filter(|rest| rest.starts_with(b"/"))
}

/// Numbers that ascend, as ranges without a gap.
fn ranges(numbers: &[RawFd]) -> Vec<(RawFd, RawFd)> {
    let mut ranges: Vec<(RawFd, RawFd)> = Vec::new();
    for &number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    ranges
}

/// Who we run as.
fn ours() -> Result<Credentials> {
    Ok(Process::open(getpid().as_raw())?.task(0, None)?.credentials)
}

/// Why we cannot choose a process id.
fn no_choice() -> Error {
    let why = "it takes CAP_CHECKPOINT_RESTORE, or CAP_SYS_ADMIN";
    Error::new(Status::Denied, why).at("--same-pids")
}

/// Whether a process or a group has this id: that of a group is taken without its leader too.
fn is_taken(pid: i32) -> bool {
    crate::proc::Stat::of(pid).is_some() || killpg(Pid::from_raw(pid), None) != Err(Errno::ESRCH)
}

/// Becomes whom a task ran as, as far as our capabilities reach. Gives those that are missing.
fn become_them(they: &Credentials, us: &Credentials) -> Result<u64> {
    use nix::unistd::{Gid, Uid};
    let [inheritable, permitted, effective, bounding, ambient] = they.caps;
    let bits = |set: u64| (0..64).filter(move |bit| set >> bit & 1 != 0);
    for capability in bits(us.caps[3] & !bounding) {
        credentials::drop_bound(capability).at(|| "the bounding set")?;
    }
    let groups: Vec<Gid> = they.groups.iter().copied().map(Gid::from_raw).collect();
    if they.groups != us.groups {
        nix::unistd::setgroups(&groups).at(|| "its groups")?;
    }
    let [real, own, saved, _] = they.gids.map(Gid::from_raw);
    if they.gids != us.gids {
        nix::unistd::setresgid(real, own, saved).at(|| "its group ids")?;
    }
    let [real, own, saved, _] = they.uids.map(Uid::from_raw);
    if they.uids != us.uids {
        credentials::keep_capabilities(true)?;
        nix::unistd::setresuid(real, own, saved).at(|| "its user ids")?;
        credentials::keep_capabilities(false)?;
    }
    let has = us.caps[1];
    credentials::set_capabilities(effective & has, permitted & has, inheritable & has)
        .at(|| "its capabilities")?;
    for capability in bits(ambient & has) {
        credentials::raise_ambient(capability).at(|| "its ambient capabilities")?;
    }
    Ok(permitted & !has)
}

/// Whether a program wrote over its arguments, as setproctitle(3) of nginx, postgres and sshd does:
/// one text of several words, which is not its name, and nothing but blank memory behind it.
fn is_title(args: &[Bytes], exe: &[u8]) -> bool {
    let Some((Bytes(first), rest)) = args.split_first() else { return false };
    rest.iter().all(|arg| arg.0.is_empty()) && first.contains(&b' ') && !exe.ends_with(first)
}

/// Says what of a task whose program would run here would not be as it was, with rights or in
/// places that it had not.
fn out_of_place(
    task: &Task,
    us: &Credentials,
    root: Option<&Path>,
    problem: &mut dyn FnMut(String),
) {
    let they = &task.credentials;
    let lacks = |capability| us.caps[2] & capability == 0;
    if us.caps[1] & !they.caps[1] != 0 {
        let others = (they.groups != us.groups, they.gids != us.gids, they.uids != us.uids);
        if others.2 && lacks(CAP_SETUID) || (others.0 || others.1) && lacks(CAP_SETGID) {
            problem("it cannot run as before, and would have rights that it had not".to_owned());
        }
    }
    for (which, path) in [("working", &task.cwd), ("root", &task.root)] {
        let Some(path) = path else { continue };
        if !below_root(root, &path.0).is_dir() {
            problem(format!("its {which} directory {} is not there", escape(&path.0)));
        } else if which == "root" && path.0 != b"/" && lacks(CAP_SYS_CHROOT) {
            problem(format!("its root directory {} takes CAP_SYS_CHROOT", escape(&path.0)));
        }
    }
}

/// A program to be run.
struct Program {
    /// Its path; the first argument is looked up if there is none.
    path: Option<CString>,
    args: Vec<CString>,
}

impl Program {
    fn new<'w>(path: Option<Vec<u8>>, args: impl Iterator<Item = &'w [u8]>) -> Program {
        let word = |bytes: &[u8]| {
            CString::new(bytes.split(|&byte| byte == 0).next().unwrap_or_default())
                .unwrap_or_default()
        };
        Program { path: path.map(|path| word(&path)), args: args.map(word).collect() }
    }

    fn name(&self) -> String {
        let name = self.path.as_ref().or(self.args.first());
        escape(name.map_or(&[], |name| name.to_bytes())).into_owned()
    }

    /// Becomes it; returns only if that failed.
    fn run(&self, cloexec: &[String]) -> Errno {
        let mut env: Vec<CString> = std::env::vars_os()
            .filter(|(key, _)| key != "FDRESTORE_CLOEXEC")
            .filter_map(|(key, value)| {
                CString::new([key.as_bytes(), b"=", value.as_bytes()].concat()).ok()
            })
            .collect();
        if !cloexec.is_empty() {
            env.extend(CString::new(format!("FDRESTORE_CLOEXEC={}", cloexec.join(","))).ok());
        }
        let done = match (&self.path, self.args.first()) {
            (Some(path), _) => nix::unistd::execve(path, &self.args, &env),
            (None, Some(first)) => nix::unistd::execvpe(first, &self.args, &env),
            (None, None) => Err(Errno::ENOENT),
        };
        match done {
            Ok(never) => match never {},
            Err(errno) => errno,
        }
    }
}

/// What in the surroundings of a tree cannot be as it was, before anything is made: programs to run
/// that are gone, process ids that are taken. Each becomes a problem of the tree.
///
/// Fails with status 6 if a table has no room for our own descriptors, with 4 if process ids are to
/// be chosen and we may not.
pub fn foresee(
    tree: &mut Tree<'_>,
    options: &RestoreOptions,
    mode: &Mode,
    root: Option<&Path>,
) -> Result<()> {
    let may_choose = CAP_SYS_ADMIN | CAP_CHECKPOINT_RESTORE;
    let us = ours()?;
    if mode.same_pids && us.caps[2] & may_choose == 0 {
        return Err(no_choice());
    }
    let limit = hard_limit()?;
    let services = 1 + usize::from(root.is_some());
    for (plan, &sharers) in tree.tables.iter().zip(&tree.sharers) {
        let Some(plan) = plan else { continue };
        let numbers = numbers(plan);
        let at = || format!("task {}", plan.task.pid);
        room(options.placement, &wanted(&numbers, sharers, limit), services).at(at)?;
    }
    for (place, &at) in tree.shape.order.iter().enumerate() {
        let task = &tree.image.tasks[at];
        let mut problem = |why: String| tree.problems.push(format!("task {}: {why}", task.pid));
        let given = place == 0 && !mode.command.is_empty();
        if mode.respawn && !given {
            out_of_place(task, &us, root, &mut problem);
            let inside = |exe: &[u8]| match &task.root {
                Some(root) if root.0 != b"/" => below(exe, &root.0).is_some(),
                _ => true,
            };
            match &task.exe {
                Some(exe) if is_title(&task.args, &exe.0) => {
                    let why = "is a title that it gave itself, and cannot be run again";
                    problem(format!("its command line '{}' {why}", escape(&task.args[0].0)));
                }
                Some(exe) if !task.args.is_empty() && inside(&exe.0) => {
                    let path = below_root(root, &exe.0);
                    if nix::unistd::access(&path, nix::unistd::AccessFlags::X_OK).is_err() {
                        problem(format!("its program {} cannot be run", escape(&exe.0)));
                    }
                }
                _ => problem("its program is not known, and cannot be run again".to_owned()),
            }
        }
        if mode.same_pids && is_taken(task.pid) {
            problem("its process id is taken (--same-pids)".to_owned());
        }
        let plan = tree.tables[at].as_ref().filter(|_| options.missing == Missing::Fail);
        if plan.is_some_and(|plan| leaves_locks(mode, tree.sharers[at], plan)) {
            problem(LEFT.to_owned());
        }
    }
    Ok(())
}
