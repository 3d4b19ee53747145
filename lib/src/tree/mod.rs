//! A tree of processes: the plan of all tables and forks, which is complete before the first fork,
//! and the restore that follows it ([`restore`]).
//!
//! A file that only one table has is made by the task that owns the table. A file that several
//! tables have is opened once by fdrestore, for the [`fdstore`](crate::table::fdstore). The topmost
//! task that has it receives it from there. A child inherits it by fork(2) if it had it at the same
//! number as its parent.
//!
//! The files, lowest first. The plan: `shape` (forkers, sessions, groups), `origin` (of each file),
//! `terminals` (controlling terminals), `layout` (the steps of each table), this one, and
//! `operations` (for --dry-run). The restore: `state` (what all tasks share), `report`, `barrier`;
//! `jobs`, `credentials`, `exec` (a task besides its table); `spawn` (forks), `table` (the table of
//! a task), `child` (a forked task); `feasible` (checks before), `coordinator` (fdrestore itself).

mod barrier;
mod child;
mod coordinator;
mod credentials;
mod exec;
mod feasible;
mod jobs;
mod layout;
mod operations;
mod origin;
mod report;
mod shape;
mod spawn;
mod state;
mod table;
mod terminals;
#[cfg(test)]
mod testing;

pub use coordinator::restore;
pub use feasible::check_feasible;
pub use layout::StoreMessage;
pub use operations::{TreeOperations, operations};
pub use report::RestoredTree;
pub use shape::{LeaderlessGroup, Node, ProcessGroup, Shape};
pub use state::Mode;

use crate::ctty::SessionRole;
use crate::error::{Error, Result};
use crate::kind::DecodedImage;
use crate::kind::context::{CttyPlan, PidMap};
use crate::messages::Messages;
use crate::placement::TablePlan;
use crate::plan::{Action, Plan, Problem, RestoreOptions, Step};
use layout::{Layout, first_slots, order_forks, store_plan};
use origin::{inherited_files, origins};
use std::collections::{HashMap, HashSet};
use std::os::fd::{BorrowedFd, RawFd};
use terminals::{plan_terminals, sessions_on_own_terminal};

/// The plan of a whole image. Tasks are named by their index in the image.
pub struct Tree<'a> {
    /// The image.
    pub image: &'a DecodedImage,
    /// Parents, forkers, sessions and process groups.
    pub shape: Shape,
    /// The plan of what fdrestore makes for the fdstore.
    pub store_plan: Plan<'a>,
    /// The messages of the fdstore, in the order of its queue.
    pub messages: Vec<StoreMessage>,
    /// The table of each task that owns one.
    pub tables: Vec<Option<Plan<'a>>>,
    /// For each task the highest number that it inherits from its parent.
    pub highest_from_parent: Vec<Option<RawFd>>,
    /// For each task the highest number that its forker has in place for its children when it forks
    /// this one.
    pub placed_at_fork: Vec<Option<RawFd>>,
    /// For each task that owns a table the number of tasks that share it, itself included; zero for
    /// others.
    pub sharers: Vec<u32>,
    /// The controlling terminal of each task.
    pub ctty_plans: Vec<CttyPlan>,
    /// For each task the place of its controlling terminal in the fdstore: message, and index in
    /// it.
    ctty_messages: Vec<Option<(u32, usize)>>,
    /// The files that descriptors of the caller replace, by their ids: the caller's numbers.
    inherited: HashMap<u32, RawFd>,
    /// The reasons why descriptors, locks or processes cannot be restored.
    pub problems: Vec<Problem>,
}

/// The descriptors that fdrestore has besides those of the tree: its own standard descriptors, the
/// fdstore, the root directory, and those that a kind opens for a while.
const OWN_DESCRIPTORS: u32 = 16;

/// The tasks of an image before any of them is forked: all will have a process and a group.
struct NotYetForked<'a>(&'a HashSet<i32>);

impl PidMap for NotYetForked<'_> {
    fn process(&self, pid: i32) -> Option<i32> {
        self.0.contains(&pid).then_some(0)
    }

    fn group(&self, _: i32) -> Option<i32> {
        Some(0)
    }
}

impl<'a> Tree<'a> {
    /// Plans a tree. `root` is the directory below which paths are looked up; `own` the session of
    /// fdrestore, which the first tasks may join; with `dry` the existence of paths is checked.
    ///
    /// Fails with status 6 as [`Shape::of`] does.
    pub fn new(
        image: &'a DecodedImage,
        options: &RestoreOptions,
        root: Option<BorrowedFd<'_>>,
        own: SessionRole,
        dry: bool,
    ) -> Result<Tree<'a>> {
        options.check_inherited()?;
        let pids = image.tasks.iter().map(|task| task.pid).collect();
        let held = crate::proc::locks();
        let check =
            |plan: &mut Plan<'a>| plan.check(options, &NotYetForked(&pids), root, dry, &held);
        // Below another root a path leads to another terminal.
        let terminal = crate::ctty::own().filter(|_| root.is_none());
        Tree::planned(image, options, (own, terminal), check)
    }

    /// Plans a tree from the image alone. Nothing is looked up on this system, so that every number
    /// can be restored.
    ///
    /// Fails with status 6 as [`Shape::of`] does.
    pub fn unchecked(image: &'a DecodedImage) -> Result<Tree<'a>> {
        // A terminal of ours would move no number.
        let nobody = SessionRole { leader: false, has_ctty: false };
        Tree::planned(image, &RestoreOptions::default(), (nobody, None), |_| Ok(()))
    }

    fn planned(
        image: &'a DecodedImage,
        options: &RestoreOptions,
        (own, terminal): (SessionRole, Option<(u32, u32)>),
        mut check: impl FnMut(&mut Plan<'a>) -> Result<()>,
    ) -> Result<Tree<'a>> {
        if image.tasks.is_empty() {
            return Err(Error::unrestorable("the image has no task"));
        }
        let mut shape = Shape::of(&image.tasks, &HashSet::new())?;
        let inherited = inherited_files(image, options, &image.tasks[shape.order[0]])?;
        let joining = sessions_on_own_terminal(image, terminal, options.steal, &inherited);
        if !joining.is_empty() {
            shape = Shape::of(&image.tasks, &joining)?;
        }
        let owners: Vec<usize> =
            shape.order.iter().copied().filter(|&at| shape.nodes[at].owner == at).collect();
        let first_slots = first_slots(image, &owners);
        let mut origins = origins(image, &inherited, &owners);
        let ctty_plans = plan_terminals(image, &shape, own, &inherited, &mut origins, options);
        let mut store_plan = store_plan(image, &origins, &first_slots);
        check(&mut store_plan)?;
        let lost: HashMap<u32, Action> = store_plan
            .steps
            .iter()
            .filter(|step| matches!(step.action, Action::Null | Action::Skip))
            .filter_map(|step| Some((step.file?, step.action)))
            .collect();
        let mut problems = std::mem::take(&mut store_plan.problems);
        let layout = Layout { image, shape: &shape, origins: &origins, lost: &lost };
        let (mut steps, highest_from_parent) = layout.steps(&owners);
        let messages = layout.messages(&owners, &mut steps, &ctty_plans);
        let mut tables: Vec<Option<Plan<'a>>> = image.tasks.iter().map(|_| None).collect();
        for &owner in &owners {
            let task = &image.tasks[owner];
            let mut plan = Plan::from_steps(image, task, std::mem::take(&mut steps[owner]));
            plan.terminal = ctty_plans[owner].clone();
            let comes_from_elsewhere =
                |step: &&Step| matches!(step.action, Action::FromStore(_) | Action::FromParent);
            let is_first = |id: &u32| {
                let slot = first_slots.get(id);
                slot.is_some_and(|slot| slot.0 == owner) && !inherited.contains_key(id)
            };
            let elsewhere = plan.steps.iter().filter(comes_from_elsewhere);
            plan.owned_files = elsewhere.filter_map(|step| step.file).filter(is_first).collect();
            check(&mut plan)?;
            plan.losses.extend(store_plan.losses.clone());
            problems.extend(plan.problems.drain(..).map(|problem| problem.of_task(task.pid)));
            tables[owner] = Some(plan);
        }
        let ctty_messages = ctty_messages(&ctty_plans, &messages, &inherited);
        let placed_at_fork = order_forks(&mut shape, &tables, &highest_from_parent);
        let mut sharers = vec![0; shape.nodes.len()];
        shape.nodes.iter().for_each(|node| sharers[node.owner] += 1);
        Ok(Tree {
            image,
            shape,
            store_plan,
            messages,
            tables,
            highest_from_parent,
            placed_at_fork,
            sharers,
            ctty_plans,
            ctty_messages,
            inherited,
            problems,
        })
    }

    /// The highest number in the table of a task's forker, service descriptors aside, at the fork.
    fn highest_at_fork(&self, task: usize) -> Option<RawFd> {
        let forker = self.shape.nodes[task].forker?;
        self.highest_from_parent[self.shape.nodes[forker].owner].max(self.placed_at_fork[task])
    }

    /// True if fdrestore opens files for the fdstore in a round: before any task is forked, or
    /// when all are (`needs_processes`).
    fn opens_for_store(&self, needs_processes: bool) -> bool {
        let mut steps = self.store_plan.steps.iter();
        steps.any(|step| step.action == Action::Make && step.before_fork != needs_processes)
    }

    /// The highest number that any process of the restore has open at once: a task, or fdrestore,
    /// which has all files open that are for the fdstore.
    pub fn highest_number(&self) -> Option<u32> {
        let in_tables = self.tables.iter().flatten().filter_map(|plan| plan.steps.last());
        let in_tables = in_tables.map(|step| step.fd as u32).max();
        let stored = self.store_plan.steps.iter().filter(|step| step.action == Action::Make);
        let stored = Some(stored.count() as u32).filter(|&stored| stored > 0);
        in_tables.max(stored.map(|stored| stored + self.inherited.len() as u32 + OWN_DESCRIPTORS))
    }

    /// A line for each file that is replaced or left out.
    pub fn describe_losses(&self) -> Vec<String> {
        let mut lines = self.store_plan.describe_losses(|_| true);
        for plan in self.tables.iter().flatten() {
            let of_table = plan.describe_losses(|id| !self.store_plan.losses.contains_key(&id));
            lines
                .extend(of_table.into_iter().map(|line| format!("task {}: {line}", plan.task.pid)));
        }
        lines
    }

    /// Fails with status 6 if there are problems, and adds a line for each to `messages`.
    pub fn refuse(&self, messages: &mut Messages<'_>) -> Result<()> {
        crate::plan::refuse(&self.problems, messages)
    }

    /// The tables as [`crate::placement::forecast`] takes them, in the order of [`Shape::order`].
    /// `services` is the number of service descriptors that each has during the restore.
    pub fn table_plans(&self, services: usize) -> Vec<TablePlan> {
        let mut places = vec![0; self.image.tasks.len()];
        let order = &self.shape.order;
        order.iter().enumerate().for_each(|(place, &at)| places[at] = place);
        let table_plan = |&at: &usize| {
            let node = &self.shape.nodes[at];
            let steps = self.tables[at].iter().flat_map(|plan| &plan.steps);
            let steps = steps.filter(|step| step.action != Action::Skip);
            let (temporary, steps): (Vec<&Step>, Vec<&Step>) =
                steps.partition(|step| step.temporary);
            let numbers = |steps: Vec<&Step>| steps.iter().map(|step| step.fd as u32).collect();
            TablePlan {
                forker: node.forker.map(|forker| places[forker]),
                owner: (node.owner != at).then(|| places[node.owner]),
                numbers: numbers(steps),
                temporary: numbers(temporary),
                highest_at_fork: self.highest_at_fork(at).map(|fd| fd as u32),
                sharers: self.sharers[at],
                services,
            }
        };
        order.iter().map(table_plan).collect()
    }
}

/// For each task the place of its controlling terminal in the fdstore: message, and index in it.
fn ctty_messages(
    ctty_plans: &[CttyPlan],
    messages: &[StoreMessage],
    inherited: &HashMap<u32, RawFd>,
) -> Vec<Option<(u32, usize)>> {
    let mut places: HashMap<u32, (u32, usize)> = HashMap::new();
    for (message, files) in messages.iter().map(|message| &message.files).enumerate() {
        for (at, &file) in files.iter().enumerate() {
            places.insert(file, (message as u32, at));
        }
    }
    let place = |ctty_plan: &CttyPlan| match ctty_plan {
        CttyPlan::FromImage(file) => places.get(file).copied(),
        CttyPlan::FromCaller(from) => {
            let of_caller = inherited.iter().filter(|(_, given)| *given == from);
            of_caller.filter_map(|(file, _)| places.get(file)).min().copied()
        }
        _ => None,
    };
    ctty_plans.iter().map(place).collect()
}
