//! A tree of processes: what each of them makes, what is made once for several, and who passes it
//! on to whom. Decided for all of them before the first is made.
//!
//! What one table alone has is made by the task that owns the table. What several have is made once
//! by fdrestore, waits in the [`store`](crate::table::fdstore), is taken from there by the topmost task that
//! has it, and is passed on by fork(2) wherever a child had it at its parent's number.

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

pub use coordinator::grow;
pub use feasible::foresee;
pub use layout::StoreMessage;
pub use operations::{TreeOperations, operations};
pub use report::Grown;
pub use shape::{LeaderlessGroup, Node, ProcessGroup, Shape};
pub use state::Mode;

use crate::ctty::SessionRole;
use crate::error::{Error, Result};
use crate::image::{Slot, Task};
use crate::kind::DecodedImage;
use crate::kind::context::{CttyPlan, PidMap};
use crate::placement::TablePlan;
use crate::plan::{Action, Plan, RestoreOptions, Step};
use layout::{Layout, common, reached};
use origin::{handed, origins};
use std::collections::{HashMap, HashSet};
use std::os::fd::{BorrowedFd, RawFd};
use terminals::{joined, terminals};

/// What will be done for a whole image.
pub struct Tree<'a> {
    /// The image.
    pub image: &'a DecodedImage,
    /// Who makes whom.
    pub shape: Shape,
    /// What is made for the store.
    pub common: Plan<'a>,
    /// The messages of the store; those of the first round come first.
    pub messages: Vec<StoreMessage>,
    /// The table of each task that owns one.
    pub tables: Vec<Option<Plan<'a>>>,
    /// For each task the highest number that its parent passes on to it.
    pub passed: Vec<Option<RawFd>>,
    /// For each task the highest number, of those that are passed on, that its maker has made when
    /// it makes this one.
    pub reached: Vec<Option<RawFd>>,
    /// How many tasks share the table that each owns.
    pub sharers: Vec<u32>,
    /// What becomes of the controlling terminal of each task.
    pub ctty_plans: Vec<CttyPlan>,
    /// Where in the store that is: message, and place in it.
    controls: Vec<Option<(u32, usize)>>,
    /// The files that the caller's descriptors stand for.
    handed: HashMap<u32, RawFd>,
    /// What cannot be restored, a line each.
    pub problems: Vec<String>,
}

/// The numbers of a task's table.
fn slots_of<'a>(image: &'a DecodedImage, task: &Task) -> &'a [Slot] {
    image.slots_of(task.table.id)
}

/// The tasks of an image before there are processes.
struct NotYetForked<'a>(&'a HashMap<i32, usize>);

impl PidMap for NotYetForked<'_> {
    fn process(&self, pid: i32) -> Option<i32> {
        self.0.contains_key(&pid).then_some(0)
    }

    fn group(&self, _: i32) -> Option<i32> {
        Some(0)
    }
}

impl<'a> Tree<'a> {
    /// Plans a tree. `ours` says what fdrestore itself is, whose session the first tasks may join.
    ///
    /// Fails with status 3 or 6 as [`Shape::of`] does.
    pub fn new(
        image: &'a DecodedImage,
        options: &RestoreOptions,
        root: Option<BorrowedFd<'_>>,
        ours: SessionRole,
        dry: bool,
    ) -> Result<Tree<'a>> {
        options.look_at_handed()?;
        let by_pid = image.tasks.iter().enumerate().map(|(at, task)| (task.pid, at)).collect();
        let held = crate::proc::locks();
        let check =
            |plan: &mut Plan<'a>| plan.check(options, &NotYetForked(&by_pid), root, dry, &held);
        // Below another root a path leads to another terminal.
        let own = crate::ctty::own().filter(|_| root.is_none());
        Tree::planned(image, options, (ours, own), check)
    }

    /// The tree as the image alone has it: nothing is looked for on this system, so no number is
    /// found to be one that cannot be restored.
    ///
    /// Fails with status 3 or 6 as [`Shape::of`] does.
    pub fn unchecked(image: &'a DecodedImage) -> Result<Tree<'a>> {
        // Whether we have a terminal moves no number.
        let nobody = SessionRole { leader: false, has_ctty: false };
        Tree::planned(image, &RestoreOptions::default(), (nobody, None), |_| Ok(()))
    }

    fn planned(
        image: &'a DecodedImage,
        options: &RestoreOptions,
        (ours, own): (SessionRole, Option<(u32, u32)>),
        mut check: impl FnMut(&mut Plan<'a>) -> Result<()>,
    ) -> Result<Tree<'a>> {
        if image.tasks.is_empty() {
            return Err(Error::unrestorable("the image has no task"));
        }
        let mut shape = Shape::of(&image.tasks, &HashSet::new())?;
        let handed = handed(image, options, &shape)?;
        let joined = joined(image, own, options.steal, &handed);
        if !joined.is_empty() {
            shape = Shape::of(&image.tasks, &joined)?;
        }
        let owners: Vec<usize> =
            shape.order.iter().copied().filter(|&at| shape.nodes[at].owner == at).collect();
        // The first owner of a table that has each file, and where it has it.
        let mut homes: HashMap<u32, (usize, RawFd)> = HashMap::new();
        for &owner in &owners {
            for slot in slots_of(image, &image.tasks[owner]) {
                homes.entry(slot.file).or_insert((owner, slot.fd as RawFd));
            }
        }
        let mut origins = origins(image, &handed, &owners);
        let ctty_plans = terminals(image, &shape, ours, &handed, &mut origins);
        let mut common = common(image, &origins, &homes);
        check(&mut common)?;
        let lost: HashMap<u32, Action> = common
            .steps
            .iter()
            .filter(|step| matches!(step.action, Action::Null | Action::Skip))
            .filter_map(|step| Some((step.file?, step.action)))
            .collect();
        let mut problems = std::mem::take(&mut common.problems);
        let laid = Layout { image, shape: &shape, origins: &origins, lost: &lost };
        let (mut steps, passed) = laid.steps(&owners);
        let messages = laid.messages(&owners, &mut steps, &ctty_plans);
        let mut plans: Vec<Option<Plan<'a>>> = image.tasks.iter().map(|_| None).collect();
        for &owner in &owners {
            let task = &image.tasks[owner];
            let mut plan = Plan::of(image, task, std::mem::take(&mut steps[owner]));
            plan.terminal = ctty_plans[owner].clone();
            let away =
                |step: &&Step| matches!(step.action, Action::FromStore(_) | Action::FromParent);
            let at_home = |id: &u32| {
                homes.get(id).is_some_and(|home| home.0 == owner) && !handed.contains_key(id)
            };
            plan.owned_here = plan
                .steps
                .iter()
                .filter(away)
                .filter_map(|step| step.file)
                .filter(at_home)
                .collect();
            check(&mut plan)?;
            let of_task = |line: String| format!("task {}: {line}", task.pid);
            problems.extend(std::mem::take(&mut plan.problems).into_iter().map(of_task));
            plans[owner] = Some(plan);
        }
        let places: HashMap<u32, (u32, usize)> = messages
            .iter()
            .enumerate()
            .flat_map(|(message, it)| {
                let place = move |(at, &id)| (id, (message as u32, at));
                it.files.iter().enumerate().map(place)
            })
            .collect();
        let control = |ctty_plan: &CttyPlan| match ctty_plan {
            CttyPlan::FromImage(id) => places.get(id).copied(),
            CttyPlan::FromCaller(from) => {
                let of_caller = handed.iter().filter(|(_, given)| *given == from);
                of_caller.filter_map(|(id, _)| places.get(id)).next().copied()
            }
            _ => None,
        };
        let controls = ctty_plans.iter().map(control).collect();
        let tables = plans;
        let reached = reached(&mut shape, &tables, &passed);
        let mut sharers = vec![0; shape.nodes.len()];
        shape.nodes.iter().for_each(|nodes| sharers[nodes.owner] += 1);
        Ok(Tree {
            image,
            shape,
            common,
            messages,
            tables,
            passed,
            reached,
            sharers,
            ctty_plans,
            controls,
            handed,
            problems,
        })
    }

    /// The highest number that stands in the maker's table when it makes this task.
    fn before(&self, task: usize) -> Option<RawFd> {
        let maker = self.shape.nodes[task].maker?;
        self.passed[self.shape.nodes[maker].owner].max(self.reached[task])
    }

    /// The refusal that lists all problems, if there are any. Each is said by `say`.
    pub fn refuse(&self, say: &mut dyn FnMut(&str)) -> Result<()> {
        crate::plan::refuse(&self.problems, say)
    }

    /// What the tables are as [`crate::placement::forecast`] wants to know it, in the order
    /// [`Shape::order`]; `services` is how many descriptors of our own a task has meanwhile.
    pub fn table_plans(&self, services: usize) -> Vec<TablePlan> {
        let mut places = vec![0; self.image.tasks.len()];
        let order = &self.shape.order;
        order.iter().enumerate().for_each(|(place, &at)| places[at] = place);
        let course = |&at: &usize| {
            let nodes = &self.shape.nodes[at];
            let plan = self.tables[at].as_ref();
            let steps = plan.into_iter().flat_map(|plan| &plan.steps);
            let steps = steps.filter(|it| it.action != Action::Skip);
            let (waits, steps): (Vec<&Step>, Vec<&Step>) = steps.partition(|it| it.waits);
            let numbers = |steps: Vec<&Step>| steps.iter().map(|it| it.fd as u32).collect();
            TablePlan {
                parent: nodes.maker.map(|maker| places[maker]),
                owner: (nodes.owner != at).then(|| places[nodes.owner]),
                numbers: numbers(steps),
                waits: numbers(waits),
                passed: self.before(at).map(|fd| fd as u32),
                sharers: self.sharers[at],
                services,
            }
        };
        order.iter().map(course).collect()
    }
}
