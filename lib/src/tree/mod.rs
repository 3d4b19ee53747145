//! A tree of processes: what each of them makes, what is made once for several, and who passes it
//! on to whom. Decided for all of them before the first is made.
//!
//! What one table alone has is made by the task that owns the table. What several have is made once
//! by fdrestore, waits in the [`store`](crate::table::fdstore), is taken from there by the topmost task that
//! has it, and is passed on by fork(2) wherever a child had it at its parent's number.

mod run;
mod shape;

pub use run::{Grown, Mode, foresee, grow};
pub use shape::{Group, Kin, Orphan, Shape};

use crate::ctty::Heir;
use crate::error::{Error, Result};
use crate::image::{Image, OpenFile, Slot, Task};
use crate::kind::context::{Fate, Heirs};
use crate::kind::{self, Need};
use crate::placement::Course;
use crate::plan::{self, Deed, Home, Inherit, Options, Plan, Step};
use crate::sys::Seat;
use crate::table::fdstore::MOST;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{BorrowedFd, RawFd};

/// Which descriptions are one message of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The files, in the order of the numbers that they get.
    pub files: Vec<u32>,
    /// Whether they can be made only when all processes are there.
    pub last: bool,
}

/// How a description comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
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
    pub image: &'a Image,
    /// Who makes whom.
    pub shape: Shape,
    /// What is made for the store.
    pub common: Plan<'a>,
    /// The messages of the store; those of the first round come first.
    pub messages: Vec<Message>,
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
    pub fates: Vec<Fate>,
    /// Where in the store that is: message, and place in it.
    controls: Vec<Option<(u32, usize)>>,
    /// The files that the caller's descriptors stand for.
    handed: HashMap<u32, RawFd>,
    /// What cannot be restored, a line each.
    pub problems: Vec<String>,
}

/// The numbers of a task's table.
fn slots_of<'a>(image: &'a Image, task: &Task) -> &'a [Slot] {
    image.slots_of(task.table.id)
}

/// The tasks of an image before there are processes.
struct Unborn<'a>(&'a HashMap<i32, usize>);

impl Heirs for Unborn<'_> {
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
        image: &'a Image,
        options: &Options,
        root: Option<BorrowedFd<'_>>,
        ours: Heir,
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
    pub fn unchecked(image: &'a Image) -> Result<Tree<'a>> {
        // Whether we have a terminal moves no number.
        let nobody = Heir { leader: false, has: false };
        Tree::planned(image, &Options::default(), (nobody, None), |_| Ok(()))
    }

    fn planned(
        image: &'a Image,
        options: &Options,
        (ours, own): (Heir, Option<(u32, u32)>),
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
            shape.order.iter().copied().filter(|&at| shape.kin[at].owner == at).collect();
        // The first owner of a table that has each file, and where it has it.
        let mut homes: HashMap<u32, (usize, RawFd)> = HashMap::new();
        for &owner in &owners {
            for slot in slots_of(image, &image.tasks[owner]) {
                homes.entry(slot.file).or_insert((owner, slot.fd as RawFd));
            }
        }
        let mut ways = ways(image, &handed, &owners);
        let fates = terminals(image, &shape, ours, &handed, &mut ways);
        let mut common = common(image, &ways, &homes);
        check(&mut common)?;
        let lost: HashMap<u32, Deed> = common
            .steps
            .iter()
            .filter(|step| matches!(step.deed, Deed::Null | Deed::Skip))
            .filter_map(|step| Some((step.file?, step.deed)))
            .collect();
        let mut problems = std::mem::take(&mut common.problems);
        let laid = Layout { image, shape: &shape, ways: &ways, lost: &lost };
        let (mut steps, passed) = laid.steps(&owners);
        let messages = laid.messages(&owners, &mut steps, &fates);
        let mut plans: Vec<Option<Plan<'a>>> = image.tasks.iter().map(|_| None).collect();
        for &owner in &owners {
            let task = &image.tasks[owner];
            let mut plan = Plan::of(image, task, std::mem::take(&mut steps[owner]));
            plan.terminal = fates[owner].clone();
            let away = |step: &&Step| matches!(step.deed, Deed::Fetch(_) | Deed::Stand);
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
        let control = |fate: &Fate| match fate {
            Fate::Made(id) => places.get(id).copied(),
            Fate::Handed(from) => {
                let of_caller = handed.iter().filter(|(_, given)| *given == from);
                of_caller.filter_map(|(id, _)| places.get(id)).next().copied()
            }
            _ => None,
        };
        let controls = fates.iter().map(control).collect();
        let tables = plans;
        let reached = reached(&mut shape, &tables, &passed);
        let mut sharers = vec![0; shape.kin.len()];
        shape.kin.iter().for_each(|kin| sharers[kin.owner] += 1);
        Ok(Tree {
            image,
            shape,
            common,
            messages,
            tables,
            passed,
            reached,
            sharers,
            fates,
            controls,
            handed,
            problems,
        })
    }

    /// The highest number that stands in the maker's table when it makes this task.
    fn before(&self, task: usize) -> Option<RawFd> {
        let maker = self.shape.kin[task].maker?;
        self.passed[self.shape.kin[maker].owner].max(self.reached[task])
    }

    /// The refusal that lists all problems, if there are any. Each is said by `say`.
    pub fn refuse(&self, say: &mut dyn FnMut(&str)) -> Result<()> {
        crate::plan::refuse(&self.problems, say)
    }

    /// What the tables are as [`crate::placement::forecast`] wants to know it, in the order
    /// [`Shape::order`]; `services` is how many descriptors of our own a task has meanwhile.
    pub fn courses(&self, services: usize) -> Vec<Course> {
        let mut places = vec![0; self.image.tasks.len()];
        let order = &self.shape.order;
        order.iter().enumerate().for_each(|(place, &at)| places[at] = place);
        let course = |&at: &usize| {
            let kin = &self.shape.kin[at];
            let plan = self.tables[at].as_ref();
            let steps = plan.into_iter().flat_map(|plan| &plan.steps);
            let steps = steps.filter(|it| it.deed != Deed::Skip);
            let (waits, steps): (Vec<&Step>, Vec<&Step>) = steps.partition(|it| it.waits);
            let numbers = |steps: Vec<&Step>| steps.iter().map(|it| it.fd as u32).collect();
            Course {
                parent: kin.maker.map(|maker| places[maker]),
                owner: (kin.owner != at).then(|| places[kin.owner]),
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
        let mut makes = std::mem::take(&mut shape.kin[task].makes);
        makes.sort_by_key(|&child| {
            let kin = &shape.kin[child];
            (!kin.before, kin.owner != child, passed[child], child)
        });
        let owner = shape.kin[task].owner;
        let all = tables[owner].iter().flat_map(|plan| &plan.steps).filter(|step| step.passed);
        let all = all.map(|step| step.fd).next_back();
        let mut highest = None;
        for &child in &makes {
            highest = highest.max(passed[child]);
            // One that shares a table has what its owner passes on to anybody.
            let shares = owner != task || shape.kin[child].owner != child;
            reached[child] = if shares { all } else { highest };
        }
        shape.kin[task].makes = makes;
    }
    reached
}

/// The files that the caller's descriptors stand for.
fn handed(image: &Image, options: &Options, shape: &Shape) -> Result<HashMap<u32, RawFd>> {
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
    for id in image.cargo.values().flat_map(|cargo| &cargo.files) {
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
fn ways(image: &Image, handed: &HashMap<u32, RawFd>, owners: &[usize]) -> HashMap<u32, Way> {
    let mut kin = Together((0..image.files.len()).collect());
    let index: HashMap<u32, usize> =
        image.files.iter().enumerate().map(|(at, file)| (file.id, at)).collect();
    let mut objects: HashMap<u32, usize> = HashMap::new();
    let sockets: HashMap<u64, usize> = image
        .files
        .iter()
        .enumerate()
        .filter(|(_, file)| file.link.0.starts_with(b"socket:["))
        .filter_map(|(at, file)| Some((file.inode.as_ref()?.ino, at)))
        .collect();
    for (at, file) in image.files.iter().enumerate() {
        if let Some(object) = file.object {
            let first = *objects.entry(object).or_insert(at);
            kin.join(first, at);
        }
        let others = file.refs.iter().filter_map(|id| index.get(id)).copied();
        let peers = kind::named(&file.kind).map(|kind| (kind.peers)(file)).unwrap_or_default();
        let peers = peers.iter().filter_map(|inode| sockets.get(inode)).copied();
        let queued = image.queued(file).filter_map(|id| index.get(&id).copied());
        others.chain(peers).chain(queued).for_each(|other| kin.join(other, at));
    }
    // The one table that has all of a group, if one has.
    let mut tables_of: HashMap<usize, Option<usize>> = HashMap::new();
    for &owner in owners {
        for slot in slots_of(image, &image.tasks[owner]) {
            let Some(&at) = index.get(&slot.file) else { continue };
            let group = kin.of(at);
            let only = tables_of.entry(group).or_insert(Some(owner));
            *only = only.filter(|&only| only == owner);
        }
    }
    // A queue can be filled only when all that it carries is there: processes too, if its messages
    // name them, or if what waits has no table that would be told of them.
    let need =
        |file: &OpenFile| kind::named(&file.kind).map_or(Need::Nothing, |kind| (kind.need)(file));
    let placed: HashSet<u32> = image.slots.iter().map(|slot| slot.file).collect();
    let mut queues: HashMap<usize, bool> = HashMap::new();
    for (at, file) in image.files.iter().enumerate() {
        if let Some(cargo) = file.object.and_then(|object| image.cargo.get(&object)) {
            *queues.entry(kin.of(at)).or_default() |= cargo.credentials;
        }
    }
    for (at, file) in image.files.iter().enumerate() {
        if let Some(last) = queues.get_mut(&kin.of(at)) {
            let told = file.signals.is_some() && !placed.contains(&file.id);
            *last |= told || need(file) == Need::Processes;
        }
    }
    let way = |(at, file): (usize, &OpenFile)| {
        let need = match queues.get(&kin.of(at)) {
            Some(true) => Need::Processes,
            _ => need(file),
        };
        let shared = tables_of.get(&kin.of(at)).is_some_and(Option::is_none);
        let way = match (handed.get(&file.id), shared, need) {
            (Some(&from), ..) => Way::Handed(from),
            (None, false, _) => Way::Private,
            (None, true, Need::Session) => Way::Session,
            (None, true, need) => Way::Common { last: need == Need::Processes },
        };
        (file.id, way)
    };
    image.files.iter().enumerate().map(way).collect()
}

/// Sets that grow together.
struct Together(Vec<usize>);

impl Together {
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
    image: &Image,
    own: Option<(u32, u32)>,
    steal: bool,
    handed: &HashMap<u32, RawFd>,
) -> HashSet<i32> {
    use nix::sys::stat::{fstat, major, minor, stat};
    use std::os::unix::ffi::OsStrExt;
    let Some(own) = own.filter(|_| !steal) else { return HashSet::new() };
    let is_ours = |task: &&Task| {
        let heir = Heir { leader: true, has: false };
        let made = |id| !handed.contains_key(&id);
        let found = match crate::ctty::fate(image, task, heir, made, |id| handed.get(&id).copied())
        {
            Fate::Opened(path) => stat(std::ffi::OsStr::from_bytes(&path)),
            Fate::Handed(fd) => fstat(Seat::known(fd)),
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
    image: &Image,
    shape: &Shape,
    ours: Heir,
    handed: &HashMap<u32, RawFd>,
    ways: &mut HashMap<u32, Way>,
) -> Vec<Fate> {
    let mut fates = vec![Fate::None; image.tasks.len()];
    let mut led: HashMap<i32, bool> = HashMap::new();
    for &at in &shape.order {
        let task = &image.tasks[at];
        let leads = shape.kin[at].leads;
        let has = match led.get(&task.sid) {
            Some(&has) => has,
            None if leads => false,
            None => ours.has,
        };
        let made = |id: u32| !matches!(ways.get(&id), None | Some(Way::Handed(_)));
        let heir = Heir { leader: leads, has };
        let fate = match led.get(&task.sid) {
            Some(true) if task.terminal.is_some() => Fate::Session(task.sid),
            _ => crate::ctty::fate(image, task, heir, made, |id| handed.get(&id).copied()),
        };
        if leads {
            led.insert(task.sid, !matches!(fate, Fate::None | Fate::Lost(_)));
        }
        if let Fate::Made(id) = fate {
            let object = image.file(id).and_then(|file| file.object);
            for file in image
                .files
                .iter()
                .filter(|file| file.id == id || object.is_some() && file.object == object)
            {
                if ways.get(&file.id) == Some(&Way::Private) {
                    ways.insert(file.id, Way::Common { last: false });
                }
            }
        }
        fates[at] = fate;
    }
    fates
}

/// The plan of what is made for the store, each file as its home knows it.
fn common<'a>(
    image: &'a Image,
    ways: &HashMap<u32, Way>,
    homes: &HashMap<u32, (usize, RawFd)>,
) -> Plan<'a> {
    let is_common = |file: &&OpenFile| matches!(ways.get(&file.id), Some(Way::Common { .. }));
    let step = |(at, file): (usize, &OpenFile)| {
        let last = ways.get(&file.id) == Some(&Way::Common { last: true });
        let deed = Deed::Make;
        // Where they stand in fdrestore does not matter.
        Step { fd: at as RawFd, file: Some(file.id), deed, passed: !last, ..Step::default() }
    };
    let mut steps: Vec<Step> = image.files.iter().filter(is_common).enumerate().map(step).collect();
    let handed = |file: &OpenFile| matches!(ways.get(&file.id), Some(Way::Handed(_)));
    plan::wait(image, &mut steps, &mut |file| (!handed(file)).then_some(Deed::Make));
    let mut plan = Plan::of(image, &image.tasks[0], steps);
    for step in &plan.steps {
        let file = step.file.filter(|id| !homes.contains_key(id)).and_then(|id| image.file(id));
        let Some(kind) = file.and_then(|file| kind::named(&file.kind)) else { continue };
        if file.is_some_and(|file| (kind.need)(file) == Need::Numbers) {
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
    image: &'a Image,
    shape: &'l Shape,
    ways: &'l HashMap<u32, Way>,
    /// What could not be made for the store.
    lost: &'l HashMap<u32, Deed>,
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
            let above = self.shape.kin[owner].maker.map(|maker| self.shape.kin[maker].owner);
            let above = above.map(|above| slots_of(self.image, &self.image.tasks[above]));
            let of_parent = |fd: u32| {
                let slots = above.unwrap_or_default();
                let at = slots.binary_search_by_key(&fd, |slot| slot.fd).ok()?;
                Some(slots[at].file)
            };
            for slot in slots_of(self.image, task) {
                let way = self.ways.get(&slot.file).copied().unwrap_or(Way::Private);
                let passes = !matches!(way, Way::Private | Way::Common { last: true });
                let there = of_parent(slot.fd) == Some(slot.file);
                let deed = match self.lost.get(&slot.file) {
                    Some(Deed::Skip) => Deed::Skip,
                    _ if passes && there => Deed::Stand,
                    // Its message is found later.
                    _ if !matches!(way, Way::Private | Way::Session) => Deed::Fetch(u32::MAX),
                    _ => Deed::Make,
                };
                if deed == Deed::Stand {
                    passed[owner] = Some(slot.fd as RawFd);
                }
                let fd = slot.fd as RawFd;
                let (file, cloexec) = (Some(slot.file), slot.cloexec);
                steps[owner].push(Step { fd, file, deed, cloexec, ..Step::default() });
            }
        }
        // What a child is born with must be there before it.
        for &owner in owners {
            let Some(maker) = self.shape.kin[owner].maker else { continue };
            let above = self.shape.kin[maker].owner;
            let there = steps[owner].iter().filter(|step| step.deed == Deed::Stand);
            let there: Vec<RawFd> = there.map(|step| step.fd).collect();
            for fd in there {
                if let Ok(at) = steps[above].binary_search_by_key(&fd, |step| step.fd) {
                    steps[above][at].passed = true;
                }
            }
        }
        for steps in &mut steps {
            share(steps);
            plan::wait(self.image, steps, &mut |file| match self.ways.get(&file.id) {
                Some(Way::Private) | None => Some(Deed::Make),
                // Its message is found later.
                Some(_) => Some(Deed::Fetch(u32::MAX)),
            });
        }
        (steps, passed)
    }

    /// Finds runs of numbers that are alike wherever they are fetched: they are one message.
    fn messages(&self, owners: &[usize], steps: &mut [Vec<Step>], fates: &[Fate]) -> Vec<Message> {
        // Who fetches each file, at which number, before or after its children.
        let mut takers: HashMap<u32, Vec<(usize, RawFd, bool)>> = HashMap::new();
        for &owner in owners {
            for step in steps[owner].iter().filter(|step| matches!(step.deed, Deed::Fetch(_))) {
                let Some(id) = step.file else { continue };
                takers.entry(id).or_default().push((owner, step.fd, step.passed));
            }
        }
        let is_last = |id: u32| self.ways.get(&id) == Some(&Way::Common { last: true });
        let follows = |last: u32, next: u32| {
            let (last_by, next_by) = (&takers[&last], &takers[&next]);
            is_last(last) == is_last(next)
                && last_by.len() == next_by.len()
                && last_by
                    .iter()
                    .zip(next_by)
                    .all(|(&(by, at, when), &next)| (by, at + 1, when) == next)
        };
        let mut messages: Vec<Message> = Vec::new();
        let mut known: HashMap<u32, u32> = HashMap::new();
        for &owner in owners {
            let mut before: Option<(RawFd, u32)> = None;
            for step in &steps[owner] {
                let (Deed::Fetch(_), Some(id)) = (step.deed, step.file) else { continue };
                if known.contains_key(&id) {
                    continue;
                }
                let open = messages.last_mut().filter(|open| {
                    before.is_some_and(|(fd, last)| fd + 1 == step.fd && follows(last, id))
                        && open.files.len() < MOST
                });
                match open {
                    Some(open) => open.files.push(id),
                    None => messages.push(Message { files: vec![id], last: is_last(id) }),
                }
                known.insert(id, messages.len() as u32 - 1);
                before = Some((step.fd, id));
            }
        }
        // A controlling terminal may be in no table at all.
        for fate in fates {
            let Fate::Made(id) = fate else { continue };
            if !known.contains_key(id) && !self.lost.contains_key(id) {
                known.insert(*id, messages.len() as u32);
                messages.push(Message { files: vec![*id], last: false });
            }
        }
        // Those of the first round come first in the queue too.
        let mut order: Vec<usize> = (0..messages.len()).collect();
        order.sort_by_key(|&at| messages[at].last);
        let mut places = vec![0; messages.len()];
        order.iter().enumerate().for_each(|(place, &at)| places[at] = place as u32);
        for step in steps.iter_mut().flatten() {
            if let (Deed::Fetch(message), Some(id)) = (&mut step.deed, step.file) {
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
                0 => step.deed == Deed::Stand,
                1 => step.passed,
                _ => true,
            };
            let Some(id) = step.file.filter(|_| of_round && step.deed != Deed::Skip) else {
                continue;
            };
            let leader = *first.entry(id).or_insert(at);
            if leader != at && step.deed != Deed::Stand {
                step.deed = Deed::Share;
            }
        }
    }
}
