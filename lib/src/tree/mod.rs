//! A tree of processes: what each of them makes, what is made once for several, and who passes it
//! on to whom. Decided for all of them before the first is made.
//!
//! What one table alone has is made by the task that owns the table. What several have is made once
//! by fdrestore, waits in the [`store`](crate::table::fdstore), is taken from there by the topmost task that
//! has it, and is passed on by fork(2) wherever a child had it at its parent's number.

mod run;
mod shape;

pub use run::{Grown, Mode, foresee, grow};
pub use shape::{LeaderlessGroup, Node, ProcessGroup, Shape};

use crate::ctty::SessionRole;
use crate::error::{Error, Result};
use crate::image::{OpenFile, Slot, Task};
use crate::kind::context::{CttyPlan, PidMap};
use crate::kind::{DecodedImage, Need};
use crate::placement::TablePlan;
use crate::plan::{self, Action, Home, Inherit, Plan, RestoreOptions, Step};
use crate::sys::PlacedFd;
use crate::table::fdstore::MOST;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{BorrowedFd, RawFd};

/// Which descriptions are one message of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreMessage {
    /// The files, in the order of the numbers that they get.
    pub files: Vec<u32>,
    /// Whether they can be made only when all processes are there.
    pub last: bool,
}

/// How a description comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// One table has it, and makes it.
    Private,
    /// Made once, for the store.
    Common { last: bool },
    /// Made by the first task that has it, which is of the right session, before its children.
    Session,
    /// The caller's.
    Handed(RawFd),
}

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
struct Unborn<'a>(&'a HashMap<i32, usize>);

impl PidMap for Unborn<'_> {
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
        let check = |plan: &mut Plan<'a>| plan.check(options, &Unborn(&by_pid), root, dry, &held);
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
        let nobody = SessionRole { leader: false, has: false };
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
            plan.guests = plan
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

/// Puts those that a task makes into the order in which it makes them: each as soon as what it
/// passes on to it stands, those that share its table last. Gives [`Tree::reached`].
fn reached(
    shape: &mut Shape,
    tables: &[Option<Plan<'_>>],
    passed: &[Option<RawFd>],
) -> Vec<Option<RawFd>> {
    let mut reached = vec![None; tables.len()];
    for task in 0..tables.len() {
        let mut makes = std::mem::take(&mut shape.nodes[task].makes);
        makes.sort_by_key(|&child| {
            let nodes = &shape.nodes[child];
            (!nodes.before, nodes.owner != child, passed[child], child)
        });
        let owner = shape.nodes[task].owner;
        let all = tables[owner].iter().flat_map(|plan| &plan.steps).filter(|step| step.passed);
        let all = all.map(|step| step.fd).next_back();
        let mut highest = None;
        for &child in &makes {
            highest = highest.max(passed[child]);
            // One that shares a table has what its owner passes on to anybody.
            let shares = owner != task || shape.nodes[child].owner != child;
            reached[child] = if shares { all } else { highest };
        }
        shape.nodes[task].makes = makes;
    }
    reached
}

/// The files that the caller's descriptors stand for.
fn handed(
    image: &DecodedImage,
    options: &RestoreOptions,
    shape: &Shape,
) -> Result<HashMap<u32, RawFd>> {
    let mut used = vec![false; options.inherit.len()];
    let mut handed = HashMap::new();
    // A number alone means the first task's, whatever others have there.
    let first = &image.tasks[shape.order[0]];
    for inherit in &options.inherit {
        if let Inherit::Own(fd) = inherit {
            let there = slots_of(image, first).iter().find(|slot| slot.fd as RawFd == *fd);
            let Some(slot) = there else {
                let why =
                    format!("--inherit: the first task, {}, has no descriptor {fd}", first.pid);
                return Err(Error::misuse(why));
            };
            handed.insert(slot.file, *fd);
        }
    }
    if options.inherit.iter().any(|inherit| matches!(inherit, Inherit::Key(..))) {
        for task in &image.tasks {
            for slot in slots_of(image, task) {
                let Some(file) = image.file(slot.file) else { continue };
                let Some(at) = options.handed(task.pid, slot, file) else { continue };
                let Inherit::Key(key, from) = &options.inherit[at] else { continue };
                let bare = key.iter().all(u8::is_ascii_digit);
                if !bare || task.pid == first.pid {
                    used[at] = true;
                    handed.entry(file.id).or_insert(*from);
                }
            }
        }
    }
    // What waits in queues has no number by which it could be meant.
    for id in image.queued_fds.values().flat_map(|cargo| &cargo.files) {
        let named = image.file(*id).and_then(|file| options.named(file));
        if let Some(Inherit::Key(_, from)) = named.map(|at| &options.inherit[at]) {
            named.into_iter().for_each(|at| used[at] = true);
            handed.entry(*id).or_insert(*from);
        }
    }
    options.all_used(&used)?;
    Ok(handed)
}

/// How each file comes about. What belongs together (an object, the ends of a connection) is made
/// in one place.
fn origins(
    image: &DecodedImage,
    handed: &HashMap<u32, RawFd>,
    owners: &[usize],
) -> HashMap<u32, Origin> {
    let mut nodes = UnionFind((0..image.files.len()).collect());
    let index: HashMap<u32, usize> =
        image.files.iter().enumerate().map(|(at, file)| (file.id, at)).collect();
    let mut objects: HashMap<u32, usize> = HashMap::new();
    let sockets: HashMap<u64, usize> = image
        .files_and_records()
        .enumerate()
        .filter_map(|(at, (file, record))| Some((record.peer_id(file)?, at)))
        .collect();
    for (at, file) in image.files.iter().enumerate() {
        if let Some(object) = file.object {
            let first = *objects.entry(object).or_insert(at);
            nodes.join(first, at);
        }
        let peers = image.record(file.id).map(|record| record.peers()).unwrap_or_default();
        let peers = peers.iter().filter_map(|inode| sockets.get(inode)).copied();
        let queued = image.queued(file).filter_map(|id| index.get(&id).copied());
        peers.chain(queued).for_each(|other| nodes.join(other, at));
    }
    // The one table that has all of a group, if one has.
    let mut tables_of: HashMap<usize, Option<usize>> = HashMap::new();
    for &owner in owners {
        for slot in slots_of(image, &image.tasks[owner]) {
            let Some(&at) = index.get(&slot.file) else { continue };
            let group = nodes.of(at);
            let only = tables_of.entry(group).or_insert(Some(owner));
            *only = only.filter(|&only| only == owner);
        }
    }
    // A queue can be filled only when all that it carries is there: processes too, if its messages
    // name them, or if what waits has no table that would be told of them.
    let need =
        |file: &OpenFile| image.record(file.id).map_or(Need::Nothing, |record| record.need(file));
    let placed: HashSet<u32> = image.slots.iter().map(|slot| slot.file).collect();
    let mut queues: HashMap<usize, bool> = HashMap::new();
    for (at, file) in image.files.iter().enumerate() {
        if let Some(cargo) = file.object.and_then(|object| image.queued_fds.get(&object)) {
            *queues.entry(nodes.of(at)).or_default() |= cargo.credentials;
        }
    }
    for (at, file) in image.files.iter().enumerate() {
        if let Some(last) = queues.get_mut(&nodes.of(at)) {
            let told = file.signals.is_some() && !placed.contains(&file.id);
            *last |= told || need(file) == Need::Processes;
        }
    }
    let origin = |(at, file): (usize, &OpenFile)| {
        let need = match queues.get(&nodes.of(at)) {
            Some(true) => Need::Processes,
            _ => need(file),
        };
        let shared = tables_of.get(&nodes.of(at)).is_some_and(Option::is_none);
        let origin = match (handed.get(&file.id), shared, need) {
            (Some(&from), ..) => Origin::Handed(from),
            (None, false, _) => Origin::Private,
            (None, true, Need::Session) => Origin::Session,
            (None, true, need) => Origin::Common { last: need == Need::Processes },
        };
        (file.id, origin)
    };
    image.files.iter().enumerate().map(origin).collect()
}

/// Sets that grow together.
struct UnionFind(Vec<usize>);

impl UnionFind {
    fn of(&self, mut at: usize) -> usize {
        while self.0[at] != at {
            at = self.0[at];
        }
        at
    }

    fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.of(one), self.of(other));
        // The lower index leads, and paths are halved on the way.
        let (low, high) = (one.min(other), one.max(other));
        self.0[high] = low;
    }
}

/// The sessions whose controlling terminal is to be ours, by their leaders. It cannot be that of a
/// second session, so they are part of ours; `steal` takes it from us.
fn joined(
    image: &DecodedImage,
    own: Option<(u32, u32)>,
    steal: bool,
    handed: &HashMap<u32, RawFd>,
) -> HashSet<i32> {
    use nix::sys::stat::{fstat, major, minor, stat};
    use std::os::unix::ffi::OsStrExt;
    let Some(own) = own.filter(|_| !steal) else { return HashSet::new() };
    let is_ours = |task: &&Task| {
        let role = SessionRole { leader: true, has: false };
        let made = |id| !handed.contains_key(&id);
        let found = match crate::ctty::plan(image, task, role, made, |id| handed.get(&id).copied())
        {
            CttyPlan::FromPath(path) => stat(std::ffi::OsStr::from_bytes(&path)),
            CttyPlan::FromCaller(fd) => fstat(PlacedFd::known(fd)),
            _ => return false,
        };
        let device = found.map(|it| (major(it.st_rdev) as u32, minor(it.st_rdev) as u32));
        // /dev/tty
        device.is_ok_and(|device| device == own || device == (5, 0))
    };
    let leads = |task: &&Task| task.sid == task.pid && task.terminal.is_some();
    image.tasks.iter().filter(leads).filter(is_ours).map(|task| task.pid).collect()
}

/// What becomes of the controlling terminal of each task. What becomes one must be in the store:
/// the leader takes it before it makes the members of its session.
fn terminals(
    image: &DecodedImage,
    shape: &Shape,
    ours: SessionRole,
    handed: &HashMap<u32, RawFd>,
    origins: &mut HashMap<u32, Origin>,
) -> Vec<CttyPlan> {
    let mut ctty_plans = vec![CttyPlan::None; image.tasks.len()];
    let mut led: HashMap<i32, bool> = HashMap::new();
    for &at in &shape.order {
        let task = &image.tasks[at];
        let leads = shape.nodes[at].leads;
        let has = match led.get(&task.sid) {
            Some(&has) => has,
            None if leads => false,
            None => ours.has,
        };
        let made = |id: u32| !matches!(origins.get(&id), None | Some(Origin::Handed(_)));
        let role = SessionRole { leader: leads, has };
        let ctty_plan = match led.get(&task.sid) {
            Some(true) if task.terminal.is_some() => CttyPlan::Session(task.sid),
            _ => crate::ctty::plan(image, task, role, made, |id| handed.get(&id).copied()),
        };
        if leads {
            led.insert(task.sid, !matches!(ctty_plan, CttyPlan::None | CttyPlan::Unavailable(_)));
        }
        if let CttyPlan::FromImage(id) = ctty_plan {
            let object = image.file(id).and_then(|file| file.object);
            for file in image
                .files
                .iter()
                .filter(|file| file.id == id || object.is_some() && file.object == object)
            {
                if origins.get(&file.id) == Some(&Origin::Private) {
                    origins.insert(file.id, Origin::Common { last: false });
                }
            }
        }
        ctty_plans[at] = ctty_plan;
    }
    ctty_plans
}

/// The plan of what is made for the store, each file as its home knows it.
fn common<'a>(
    image: &'a DecodedImage,
    origins: &HashMap<u32, Origin>,
    homes: &HashMap<u32, (usize, RawFd)>,
) -> Plan<'a> {
    let is_common = |file: &&OpenFile| matches!(origins.get(&file.id), Some(Origin::Common { .. }));
    let step = |(at, file): (usize, &OpenFile)| {
        let last = origins.get(&file.id) == Some(&Origin::Common { last: true });
        let action = Action::Make;
        // Where they stand in fdrestore does not matter.
        Step { fd: at as RawFd, file: Some(file.id), action, passed: !last, ..Step::default() }
    };
    let mut steps: Vec<Step> = image.files.iter().filter(is_common).enumerate().map(step).collect();
    let handed = |file: &OpenFile| matches!(origins.get(&file.id), Some(Origin::Handed(_)));
    plan::wait(image, &mut steps, &mut |file| (!handed(file)).then_some(Action::Make));
    let mut plan = Plan::of(image, &image.tasks[0], steps);
    for step in &plan.steps {
        let file = step.file.filter(|id| !homes.contains_key(id)).and_then(|id| image.file(id));
        let Some(file) = file else { continue };
        if image.record(file.id).is_some_and(|record| record.need(file) == Need::Numbers) {
            let why = "it waits in a queue of several tables, and names numbers of one";
            plan.problems.push(format!("{}: {why}", plan.name(step)));
        }
    }
    let mut numbers: HashMap<usize, usize> = HashMap::new();
    for step in &plan.steps {
        let Some((id, &(home, fd))) = step.file.and_then(|id| Some((id, homes.get(&id)?))) else {
            continue;
        };
        let task = &image.tasks[home];
        let all = &mut plan.numbers;
        let at = *numbers.entry(home).or_insert_with(|| {
            all.push(slots_of(image, task).iter().map(|slot| slot.fd as RawFd).collect());
            all.len() - 1
        });
        plan.homes.insert(id, Home { task, numbers: at, fd });
    }
    plan
}

/// What is known when the numbers are laid out.
struct Layout<'l, 'a> {
    image: &'a DecodedImage,
    shape: &'l Shape,
    origins: &'l HashMap<u32, Origin>,
    /// What could not be made for the store.
    lost: &'l HashMap<u32, Action>,
}

impl Layout<'_, '_> {
    /// The steps of each table, of which those that fetch have no message yet, and for each task the
    /// highest number that its parent passes on.
    fn steps(&self, owners: &[usize]) -> (Vec<Vec<Step>>, Vec<Option<RawFd>>) {
        let count = self.image.tasks.len();
        let mut steps: Vec<Vec<Step>> = vec![Vec::new(); count];
        let mut passed: Vec<Option<RawFd>> = vec![None; count];
        for &owner in owners {
            let task = &self.image.tasks[owner];
            let above = self.shape.nodes[owner].maker.map(|maker| self.shape.nodes[maker].owner);
            let above = above.map(|above| slots_of(self.image, &self.image.tasks[above]));
            let of_parent = |fd: u32| {
                let slots = above.unwrap_or_default();
                let at = slots.binary_search_by_key(&fd, |slot| slot.fd).ok()?;
                Some(slots[at].file)
            };
            for slot in slots_of(self.image, task) {
                let origin = self.origins.get(&slot.file).copied().unwrap_or(Origin::Private);
                let passes = !matches!(origin, Origin::Private | Origin::Common { last: true });
                let there = of_parent(slot.fd) == Some(slot.file);
                let action = match self.lost.get(&slot.file) {
                    Some(Action::Skip) => Action::Skip,
                    _ if passes && there => Action::FromParent,
                    // Its message is found later.
                    _ if !matches!(origin, Origin::Private | Origin::Session) => {
                        Action::FromStore(u32::MAX)
                    }
                    _ => Action::Make,
                };
                if action == Action::FromParent {
                    passed[owner] = Some(slot.fd as RawFd);
                }
                let fd = slot.fd as RawFd;
                let (file, cloexec) = (Some(slot.file), slot.cloexec);
                steps[owner].push(Step { fd, file, action, cloexec, ..Step::default() });
            }
        }
        // What a child is born with must be there before it.
        for &owner in owners {
            let Some(maker) = self.shape.nodes[owner].maker else { continue };
            let above = self.shape.nodes[maker].owner;
            let there = steps[owner].iter().filter(|step| step.action == Action::FromParent);
            let there: Vec<RawFd> = there.map(|step| step.fd).collect();
            for fd in there {
                if let Ok(at) = steps[above].binary_search_by_key(&fd, |step| step.fd) {
                    steps[above][at].passed = true;
                }
            }
        }
        for steps in &mut steps {
            share(steps);
            plan::wait(self.image, steps, &mut |file| match self.origins.get(&file.id) {
                Some(Origin::Private) | None => Some(Action::Make),
                // Its message is found later.
                Some(_) => Some(Action::FromStore(u32::MAX)),
            });
        }
        (steps, passed)
    }

    /// Finds runs of numbers that are alike wherever they are fetched: they are one message.
    fn messages(
        &self,
        owners: &[usize],
        steps: &mut [Vec<Step>],
        ctty_plans: &[CttyPlan],
    ) -> Vec<StoreMessage> {
        // Who fetches each file, at which number, before or after its children.
        let mut takers: HashMap<u32, Vec<(usize, RawFd, bool)>> = HashMap::new();
        for &owner in owners {
            for step in
                steps[owner].iter().filter(|step| matches!(step.action, Action::FromStore(_)))
            {
                let Some(id) = step.file else { continue };
                takers.entry(id).or_default().push((owner, step.fd, step.passed));
            }
        }
        let is_last = |id: u32| self.origins.get(&id) == Some(&Origin::Common { last: true });
        let follows = |last: u32, next: u32| {
            let (last_by, next_by) = (&takers[&last], &takers[&next]);
            is_last(last) == is_last(next)
                && last_by.len() == next_by.len()
                && last_by
                    .iter()
                    .zip(next_by)
                    .all(|(&(by, at, when), &next)| (by, at + 1, when) == next)
        };
        let mut messages: Vec<StoreMessage> = Vec::new();
        let mut known: HashMap<u32, u32> = HashMap::new();
        for &owner in owners {
            let mut before: Option<(RawFd, u32)> = None;
            for step in &steps[owner] {
                let (Action::FromStore(_), Some(id)) = (step.action, step.file) else { continue };
                if known.contains_key(&id) {
                    continue;
                }
                let open = messages.last_mut().filter(|open| {
                    before.is_some_and(|(fd, last)| fd + 1 == step.fd && follows(last, id))
                        && open.files.len() < MOST
                });
                match open {
                    Some(open) => open.files.push(id),
                    None => messages.push(StoreMessage { files: vec![id], last: is_last(id) }),
                }
                known.insert(id, messages.len() as u32 - 1);
                before = Some((step.fd, id));
            }
        }
        // A controlling terminal may be in no table at all.
        for ctty_plan in ctty_plans {
            let CttyPlan::FromImage(id) = ctty_plan else { continue };
            if !known.contains_key(id) && !self.lost.contains_key(id) {
                known.insert(*id, messages.len() as u32);
                messages.push(StoreMessage { files: vec![*id], last: false });
            }
        }
        // Those of the first round come first in the queue too.
        let mut order: Vec<usize> = (0..messages.len()).collect();
        order.sort_by_key(|&at| messages[at].last);
        let mut places = vec![0; messages.len()];
        order.iter().enumerate().for_each(|(place, &at)| places[at] = place as u32);
        for step in steps.iter_mut().flatten() {
            if let (Action::FromStore(message), Some(id)) = (&mut step.action, step.file) {
                *message = places[known[&id] as usize];
            }
        }
        order.into_iter().map(|at| messages[at].clone()).collect()
    }
}

/// All but the first number of a file are copies of that one: the first of those that children are
/// born with, if any is.
fn share(steps: &mut [Step]) {
    let mut first: BTreeMap<u32, usize> = BTreeMap::new();
    for round in [0, 1, 2] {
        for (at, step) in steps.iter_mut().enumerate() {
            let of_round = match round {
                0 => step.action == Action::FromParent,
                1 => step.passed,
                _ => true,
            };
            let Some(id) = step.file.filter(|_| of_round && step.action != Action::Skip) else {
                continue;
            };
            let leader = *first.entry(id).or_insert(at);
            if leader != at && step.action != Action::FromParent {
                step.action = Action::Dup;
            }
        }
    }
}
