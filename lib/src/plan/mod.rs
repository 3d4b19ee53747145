//! What will become of each number of a table, and why some of it cannot: decided from an image
//! and from what the caller asks for, before anything is touched.

use crate::ctty::{self, SessionRole};
use crate::error::{Error, Result};
use crate::image::{Lock, OpenFile, Slot, Task};
use crate::kind::DecodedImage;
use crate::kind::context::{Changed, CttyPlan, Number, PidMap, RestoreContext};
use crate::lock;
use crate::placement::{self, Placement};
use crate::proc::{self, HeldLock};
use crate::sys;
use crate::sys::own_table::is_open;
use crate::text::escape;
use nix::sys::resource::{Resource, getrlimit};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::fd::{BorrowedFd, RawFd};

/// What to do with a descriptor that cannot be restored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Missing {
    /// Refuse, with a list of all of them.
    #[default]
    Fail,
    /// /dev/null in its place.
    Null,
    /// Leave the number closed.
    Skip,
}

crate::word_enum!(Missing { Fail = "fail", Null = "null", Skip = "skip" });

/// A descriptor of the caller, in place of one of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inherit {
    /// The caller's own, at its own number, whatever the image says of it.
    SameNumber(RawFd),
    /// What readlink(2) shows of a description of the image, or a slot, becomes the caller's.
    Key(Vec<u8>, RawFd),
}

/// How to restore.
#[derive(Clone, Debug, Default)]
pub struct RestoreOptions {
    /// The task whose table is restored; the first if none is named.
    pub task: Option<i32>,
    /// For what cannot be restored.
    pub missing: Missing,
    /// For files that changed.
    pub changed: Changed,
    /// What the caller hands down.
    pub inherit: Vec<Inherit>,
    /// Whether a controlling terminal may be taken from another session.
    pub steal: bool,
    /// Where our own descriptors stand meanwhile.
    pub placement: Placement,
}

/// What becomes of a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// The description is made.
    #[default]
    Make,
    /// It stands already at another number, or will as the other end of a pipe: dup(2) or nothing.
    Dup,
    /// The caller's descriptor.
    Inherit(RawFd),
    /// /dev/null.
    Null,
    /// Nothing.
    Skip,
    /// It comes from the fdstore of a tree, where it was made for several tasks: which message.
    FromStore(u32),
    /// It is there already: the parent had it there.
    FromParent,
    /// The number is kept for an end that nobody has any more, until the queue is filled that it
    /// leads to: that of the file.
    Park,
}

impl Action {
    /// Whether the description of the image stands there in the end, and is no second number of it.
    fn is_of_image(self) -> bool {
        matches!(self, Action::Make | Action::FromStore(_) | Action::FromParent)
    }
}

/// A number of the restored table.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// The number.
    pub fd: RawFd,
    /// The file it names in the image; none for one of the caller's that the image does not have.
    pub file: Option<u32>,
    /// What becomes of it.
    pub action: Action,
    /// Whether it was close-on-exec.
    pub cloexec: bool,
    /// Whether children of a tree are born with it, so that it is made before them.
    pub before_fork: bool,
    /// Whether it stands there only until all queues are filled: the image has no number for it.
    pub temporary: bool,
}

/// Where a file is at home that is made elsewhere.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OwnerTask<'a> {
    pub task: &'a Task,
    /// Which of [`Plan::numbers`] are those of its table.
    pub numbers: usize,
    /// Its first number there.
    pub fd: RawFd,
}

/// What will be done, and why some of it cannot.
pub struct Plan<'a> {
    /// The image.
    pub image: &'a DecodedImage,
    /// The task.
    pub task: &'a Task,
    /// The numbers, ascending.
    pub steps: Vec<Step>,
    /// What cannot be restored, a line each.
    pub problems: Vec<String>,
    /// What becomes of the controlling terminal.
    pub terminal: CttyPlan,
    /// Where else files are at home.
    pub(crate) owner_tasks: HashMap<u32, OwnerTask<'a>>,
    /// What was made elsewhere and is at home here.
    pub(crate) owned_files: HashSet<u32>,
    /// The numbers of this table, then of others at home.
    pub(crate) numbers: Vec<Vec<Number>>,
    pub(crate) lowest: HashMap<u32, RawFd>,
    /// The numbers of [`Action::Park`] by the files, and ids that no file has for what stands there.
    pub(crate) parked: HashMap<u32, (u32, RawFd)>,
    objects: HashMap<u32, Vec<u32>>,
    sockets: HashMap<u64, u32>,
}

/// A file, as messages name it.
pub(crate) fn what(file: &OpenFile) -> String {
    escape(&file.link.0).into_owned()
}

/// This process as the only task that is restored.
pub(crate) struct SingleTask<'a>(pub(crate) &'a Task);

impl PidMap for SingleTask<'_> {
    fn process(&self, pid: i32) -> Option<i32> {
        (pid == self.0.pid).then(|| nix::unistd::getpid().as_raw())
    }

    fn group(&self, pgid: i32) -> Option<i32> {
        (pgid == self.0.pgid).then(|| nix::unistd::getpgrp().as_raw())
    }
}

impl RestoreOptions {
    /// Fails with status 2 if a descriptor to hand down is not open.
    pub(crate) fn check_inherited(&self) -> Result<()> {
        for inherit in &self.inherit {
            let (Inherit::SameNumber(fd) | Inherit::Key(_, fd)) = inherit;
            if (0..3).contains(fd) && sys::start::closed_at_start(*fd) || !is_open(*fd) {
                return Err(Error::misuse(format!("--inherit: descriptor {fd} is not open")));
            }
        }
        Ok(())
    }

    /// The inheritance by key that a slot of a task of this id is meant by, if one is.
    pub(crate) fn inherited_by_slot(
        &self,
        pid: i32,
        slot: &Slot,
        file: &OpenFile,
    ) -> Option<usize> {
        let meant = |key: &[u8]| {
            key == file.link.0
                || key == slot.fd.to_string().as_bytes()
                || key == format!("{pid}:{}", slot.fd).as_bytes()
        };
        self.inherit.iter().position(|it| matches!(it, Inherit::Key(key, _) if meant(key)))
    }

    /// The inheritance by key that a file without a number is meant by, if one is.
    pub(crate) fn inherited_by_file(&self, file: &OpenFile) -> Option<usize> {
        let meant = |it: &Inherit| matches!(it, Inherit::Key(key, _) if *key == file.link.0);
        self.inherit.iter().position(meant)
    }

    /// Fails with status 2 if a key means nothing of the image.
    pub(crate) fn check_all_used(&self, used: &[bool]) -> Result<()> {
        for (inherit, used) in self.inherit.iter().zip(used) {
            if let (Inherit::Key(key, _), false) = (inherit, used) {
                let key = escape(key);
                return Err(Error::misuse(format!("--inherit: the image has no '{key}'")));
            }
        }
        Ok(())
    }
}

impl<'a> Plan<'a> {
    /// Plans a table. `root` is where paths are looked up; `dry` also looks whether they are there.
    ///
    /// Fails with status 6 if the image has no such task.
    pub fn new(
        image: &'a DecodedImage,
        options: &RestoreOptions,
        root: Option<BorrowedFd<'_>>,
        dry: bool,
    ) -> Result<Plan<'a>> {
        let task = match options.task {
            Some(pid) => image.tasks.iter().find(|task| task.pid == pid),
            None => image.tasks.first(),
        };
        let task = task.ok_or_else(|| {
            Error::unrestorable(match options.task {
                Some(pid) => format!("the image has no task {pid}"),
                None => "the image has no task".to_owned(),
            })
        })?;
        options.check_inherited()?;
        let steps = lay_out(image, task, options)?;
        let mut plan = Plan::from_steps(image, task, steps);
        let role = SessionRole::myself()?;
        plan.terminal = plan.plan_ctty(role);
        plan.check(options, &SingleTask(task), root, dry, &proc::locks())?;
        // What controls COMMAND may be among what was refused.
        plan.terminal = plan.plan_ctty(role);
        Ok(plan)
    }

    /// The plan of these steps, whose numbers ascend.
    pub(crate) fn from_steps(
        image: &'a DecodedImage,
        task: &'a Task,
        steps: Vec<Step>,
    ) -> Plan<'a> {
        let mut plan = Plan {
            image,
            task,
            steps,
            problems: Vec::new(),
            terminal: CttyPlan::None,
            owner_tasks: HashMap::new(),
            owned_files: HashSet::new(),
            numbers: Vec::new(),
            lowest: HashMap::new(),
            parked: HashMap::new(),
            objects: HashMap::new(),
            sockets: HashMap::new(),
        };
        let lasting = plan.steps.iter().filter(|step| !step.temporary);
        let number = |step: &Step| Number { fd: step.fd, file: step.file };
        plan.numbers.push(lasting.map(number).collect());
        let unused = (0..=u32::MAX).rev().filter(|id| image.file(*id).is_none());
        let parks = plan.steps.iter().filter(|step| step.action == Action::Park);
        plan.parked =
            parks.zip(unused).filter_map(|(step, id)| Some((step.file?, (id, step.fd)))).collect();
        for step in &plan.steps {
            let Some(file) = step.file.and_then(|id| image.file(id)) else { continue };
            if !step.action.is_of_image() || plan.lowest.contains_key(&file.id) {
                continue;
            }
            plan.lowest.insert(file.id, step.fd);
            if let Some(object) = file.object {
                plan.objects.entry(object).or_default().push(file.id);
            }
            if let Some(peer) = image.record(file.id).and_then(|record| record.peer_id(file)) {
                plan.sockets.insert(peer, file.id);
            }
        }
        plan
    }

    pub(crate) fn plan_ctty(&self, role: SessionRole) -> CttyPlan {
        let handed = |id| {
            let of =
                |step: &&Step| step.file == Some(id) && matches!(step.action, Action::Inherit(_));
            self.steps.iter().find(of).map(|step| step.fd)
        };
        ctty::plan(self.image, self.task, role, |id| self.lowest.contains_key(&id), handed)
    }

    /// Asks each kind whether it can restore what is wanted of it. `held` are the locks of others.
    pub(crate) fn check(
        &mut self,
        options: &RestoreOptions,
        pids: &dyn PidMap,
        root: Option<BorrowedFd<'_>>,
        dry: bool,
        held: &[HeldLock],
    ) -> Result<()> {
        if let Some(step) = self.steps.last() {
            within_limit(step.fd as u32)?;
        }
        let mut failed: HashMap<u32, Action> = HashMap::new();
        let mut steps = std::mem::take(&mut self.steps);
        let mut problems = Vec::new();
        {
            let mut cx = self.context(&[], pids, root, options.changed);
            cx.dry_run = dry;
            for step in &mut steps {
                let Some(id) = step.file else { continue };
                if step.action == Action::Dup {
                    step.action = failed.get(&id).copied().unwrap_or(Action::Dup);
                    continue;
                }
                let (Action::Make, Some(file)) = (step.action, self.image.file(id)) else {
                    continue;
                };
                self.enter(&mut cx, id);
                let Some(record) = self.image.record(id) else { continue };
                let checked =
                    record.check(file, &cx).and_then(|()| lock::may_open(file, held, &cx));
                if let Err(err) = checked {
                    step.action = match options.missing {
                        Missing::Fail => {
                            problems.push(format!("{}: {err}", self.name(step)));
                            Action::Skip
                        }
                        Missing::Null => Action::Null,
                        Missing::Skip => Action::Skip,
                    };
                    failed.insert(id, step.action);
                }
            }
            // Where the numbers are those of a table, everything is at home.
            let own = self.owner_tasks.is_empty();
            for (step, file, lock, of_table) in self.locks(&steps) {
                if of_table && !own {
                    continue;
                }
                let line = lock::foresee(lock, file, held, &cx);
                let line = line.map(|line| format!("{}: {line}", self.name(step)));
                problems.extend(line.filter(|_| options.missing == Missing::Fail));
            }
        }
        self.steps = steps;
        self.problems.extend(problems);
        // What is not made cannot be the other end of anything.
        if !failed.is_empty() {
            self.lowest.retain(|id, _| !failed.contains_key(id));
            for files in self.objects.values_mut() {
                files.retain(|id| !failed.contains_key(id));
            }
        }
        Ok(())
    }

    /// The locks to take: those of the descriptions that are made, then those of the table, and
    /// which they are. Nothing is locked for the caller's own, or for nothing of the image.
    pub(crate) fn locks<'p>(
        &'p self,
        steps: &'p [Step],
    ) -> impl Iterator<Item = (&'p Step, &'p OpenFile, &'p Lock, bool)> {
        let table = self.task.table.id;
        let of_table = self.image.slots_of(table).iter().flat_map(move |slot| {
            let at = steps.binary_search_by_key(&(slot.fd as RawFd), |step| step.fd);
            let step = at.ok().map(|at| &steps[at]).filter(|step| {
                let kept = !matches!(step.action, Action::Inherit(_) | Action::Null | Action::Skip);
                kept && step.file == Some(slot.file)
            });
            let both = step.and_then(|step| Some((step, self.image.file(step.file?)?)));
            slot.locks
                .iter()
                .filter_map(move |lock| both.map(|(step, file)| (step, file, lock, true)))
        });
        let made = steps.iter().filter(|step| step.action == Action::Make);
        let made = made.filter_map(|step| Some((step, self.image.file(step.file?)?)));
        let of_files = made
            .flat_map(|(step, file)| file.locks.iter().map(move |lock| (step, file, lock, false)));
        of_files.chain(of_table)
    }

    /// The context in which the plan is checked, or carried out.
    pub fn context<'b>(
        &'b self,
        source: &'b [u8],
        pids: &'b dyn PidMap,
        root: Option<BorrowedFd<'b>>,
        changed: Changed,
    ) -> RestoreContext<'b> {
        RestoreContext {
            image: self.image,
            task: self.task,
            pids,
            source,
            root,
            dry_run: false,
            changed,
            warnings: Vec::new(),
            lowest: &self.lowest,
            parked: &self.parked,
            inherited: HashMap::new(),
            objects: &self.objects,
            sockets: &self.sockets,
            numbers: &self.numbers[0],
            held: HashMap::new(),
            ctty: &self.terminal,
            renamed_paths: HashMap::new(),
            addresses: HashMap::new(),
            nulled: HashSet::new(),
            set_terminals: HashSet::new(),
        }
    }

    /// Turns to a file: what the context says of its task and its numbers is of that file's home.
    pub(crate) fn enter<'b>(&'b self, cx: &mut RestoreContext<'b>, file: u32) {
        let home = self.owner_tasks.get(&file);
        cx.task = home.map_or(self.task, |home| home.task);
        cx.numbers = &self.numbers[home.map_or(0, |home| home.numbers)];
    }

    /// A step, as messages name it.
    pub(crate) fn name(&self, step: &Step) -> String {
        let file = step.file.and_then(|id| self.image.file(id)).map_or(String::new(), what);
        match step.file.and_then(|id| self.owner_tasks.get(&id)) {
            Some(home) => format!("task {}: fd {} ({file})", home.task.pid, home.fd),
            None => format!("{} ({file})", self.number(step)),
        }
    }

    /// The number of a step, or where else it stands in the image.
    fn number(&self, step: &Step) -> String {
        let Some(id) = step.file.filter(|id| self.image.slot_of(*id).is_none()) else {
            return format!("fd {}", step.fd);
        };
        let Some(carrier) = self.image.carrier_of(id) else { return "queued".to_owned() };
        let name = what(carrier);
        let Some(slot) = self.image.slot_of(carrier.id) else { return format!("queued in {name}") };
        let own = self.owner_tasks.is_empty() && slot.table == self.task.table.id;
        match self.image.owner_of(slot.table).filter(|_| !own) {
            Some(pid) => format!("queued in task {pid}: fd {} ({name})", slot.fd),
            None => format!("queued in fd {} ({name})", slot.fd),
        }
    }

    /// The highest number that the table has in the end.
    pub(crate) fn highest(&self) -> Option<u32> {
        let lasting = |step: &&Step| !step.temporary && step.action != Action::Skip;
        self.steps.iter().rev().find(lasting).map(|step| step.fd as u32)
    }

    /// How many descriptors the table will have.
    pub fn descriptors(&self) -> usize {
        self.steps.iter().filter(|step| !step.temporary && step.action != Action::Skip).count()
    }

    /// The refusal that lists all problems, if there are any. Each is said by `say`.
    pub fn refuse(&self, say: &mut dyn FnMut(&str)) -> Result<()> {
        refuse(&self.problems, say)
    }
}

/// [`Plan::refuse`] of these problems.
pub(crate) fn refuse(problems: &[String], say: &mut dyn FnMut(&str)) -> Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    for problem in problems {
        say(problem);
    }
    let cures = "--inherit KEY=FD hands one over, --missing null or --missing skip goes on without";
    Err(Error::unrestorable(format!("{} cannot be restored here; {cures}", problems.len())))
}

/// What becomes of the numbers of a task's own table.
fn lay_out(image: &DecodedImage, task: &Task, options: &RestoreOptions) -> Result<Vec<Step>> {
    let mut own: BTreeSet<RawFd> = BTreeSet::new();
    let mut used = vec![false; options.inherit.len()];
    for inherit in &options.inherit {
        if let Inherit::SameNumber(fd) = inherit {
            own.insert(*fd);
        }
    }
    let mut steps = Vec::new();
    let mut made = HashSet::new();
    for slot in image.slots_of(task.table.id) {
        let Some(file) = image.file(slot.file) else { continue };
        let fd = slot.fd as RawFd;
        let handed = options.inherited_by_slot(task.pid, slot, file);
        let action = match handed {
            _ if own.remove(&fd) => Action::Inherit(fd),
            Some(at) => {
                used[at] = true;
                match &options.inherit[at] {
                    Inherit::Key(_, from) | Inherit::SameNumber(from) => Action::Inherit(*from),
                }
            }
            None if made.insert(file.id) => Action::Make,
            None => Action::Dup,
        };
        let step = Step { fd, file: Some(file.id), action, ..Step::default() };
        steps.push(Step { cloexec: slot.cloexec, ..step });
    }
    for fd in own {
        steps.push(Step { fd, action: Action::Inherit(fd), ..Step::default() });
    }
    steps.sort_by_key(|step| step.fd);
    add_queued(image, &mut steps, &mut |file| {
        let Some(at) = options.inherited_by_file(file) else { return Some(Action::Make) };
        used[at] = true;
        match &options.inherit[at] {
            Inherit::Key(_, from) | Inherit::SameNumber(from) => Some(Action::Inherit(*from)),
        }
    });
    options.check_all_used(&used)?;
    Ok(steps)
}

/// Adds the steps for what waits in queues that are filled and has no number of its own, and for
/// the ends through which they are filled. `how` says what becomes of a file; none if it stands
/// elsewhere.
pub(crate) fn add_queued(
    image: &DecodedImage,
    steps: &mut Vec<Step>,
    how: &mut dyn FnMut(&OpenFile) -> Option<Action>,
) {
    let mut known: HashSet<u32> = steps.iter().filter_map(|step| step.file).collect();
    let made = steps.iter().filter(|step| step.action == Action::Make);
    let mut todo: Vec<u32> = made.filter_map(|step| step.file).collect();
    let mut waiting = Vec::new();
    while let Some(file) = todo.pop().and_then(|id| image.file(id)) {
        let Some(record) = image.record(file.id).filter(|it| it.carries_descriptors()) else {
            continue;
        };
        let mut queued = image.queued(file).peekable();
        if queued.peek().is_some() && record.parks_other_end() {
            waiting.push((file.id, Action::Park));
        }
        for inside in queued.filter_map(|id| image.file(id)) {
            if known.insert(inside.id) {
                let action = how(inside);
                waiting.extend(action.map(|action| (inside.id, action)));
                todo.extend((action == Some(Action::Make)).then_some(inside.id));
            }
        }
    }
    if waiting.is_empty() {
        return;
    }
    waiting.sort_unstable_by_key(|(id, _)| *id);
    let wanted: Vec<u32> = steps.iter().map(|step| step.fd as u32).collect();
    let numbers = placement::lowest_free(&wanted, waiting.len());
    steps.extend(numbers.into_iter().zip(waiting).map(|(number, (id, action))| {
        let fd = number as RawFd;
        Step { fd, file: Some(id), action, temporary: true, ..Step::default() }
    }));
    steps.sort_by_key(|step| step.fd);
}

/// The hard limit of open files: RLIMIT_NOFILE of getrlimit(2).
pub(crate) fn hard_limit() -> Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.1)
}

/// Fails with status 6 if a number is above any limit that this process can have.
fn within_limit(highest: u32) -> Result<()> {
    let hard = hard_limit()?;
    if u64::from(highest) < hard {
        return Ok(());
    }
    Err(Error::unrestorable(format!(
        "descriptor {highest} is above the hard limit of {hard} open files (ulimit -Hn)"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Bytes, Data, Item, MessageMeta, Writer};
    use crate::proc::Process;
    use nix::time::{ClockId, clock_gettime};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    /// The image of one task with a socket at 0, so many descriptors that cannot be restored, and as
    /// many more of them in its queue.
    fn refused(count: u32) -> DecodedImage {
        let (socket, _peer) = UnixStream::pair().unwrap();
        let myself = Process::open(std::process::id() as i32).unwrap();
        let task = Task { pid: 700, ..myself.task(0, None).unwrap() };
        let mut carrier = crate::kind::tests::file_of(&socket);
        carrier.object = Some(0);
        let unread = crate::kind::Captured::unreadable(0, &nix::errno::Errno::EIO.into());
        let opaque = OpenFile { link: Bytes(b"anon_inode:[odd]".to_vec()), ..unread.into_file(0) };
        let head = crate::image::Head { contents: true, ..crate::capture::head("test") };
        let mut items = vec![Item::Head(head), Item::Task(task.into()), Item::File(carrier.into())];
        items
            .extend((1..=2 * count).map(|id| Item::File(OpenFile { id, ..opaque.clone() }.into())));
        items.extend((0..=count).map(|at| {
            Item::Slot(Slot { table: 0, fd: at, cloexec: false, file: at, locks: Vec::new() })
        }));
        let queued: Vec<u32> = (count + 1..=2 * count).collect();
        items.extend(queued.chunks(250).map(|files| {
            let with = MessageMeta { files: files.to_vec(), ..MessageMeta::default() };
            let bytes = Bytes(b"x".to_vec());
            Item::Data(Data { object: 0, offset: 0, with: Some(with.into()), bytes })
        }));
        let mut writer = Writer::new(Vec::new());
        items.iter().for_each(|item| writer.put(item).unwrap());
        DecodedImage::load(&writer.end().unwrap()[..]).unwrap()
    }

    /// What is said of an image, and what that took of the processor.
    fn problems(image: &DecodedImage) -> (Vec<String>, Duration) {
        let now = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
        let begun = now();
        let plan = Plan::new(image, &RestoreOptions::default(), None, false).unwrap();
        (plan.problems, now() - begun)
    }

    #[test]
    fn each_refusal_names_its_number_or_that_of_the_socket_that_carries_it() {
        let (said, _) = problems(&refused(2));
        let begins = |line: &str, with: &str| assert!(line.starts_with(with), "{said:?}");
        let carried = said.iter().filter(|line| line.starts_with("queued in fd 0 (socket:["));
        assert_eq!(carried.count(), 2, "{said:?}");
        begins(&said[1], "fd 1 (anon_inode:[odd]): ");
        begins(&said[2], "fd 2 (anon_inode:[odd]): ");
    }

    #[test]
    fn many_refusals_take_time_in_proportion() {
        let most = hard_limit().unwrap().min(20_000) as u32 / 2 - 8;
        let least = most / 16;
        let took = |count: u32| {
            let image = refused(count);
            let cost = (0..3).map(|_| problems(&image)).map(|(said, took)| {
                assert!(said.len() as u32 >= 2 * count, "{}", said.len());
                took
            });
            cost.min().unwrap_or_default()
        };
        let (few, many) = (took(least), took(most));
        // 16 times as much; 256 times if each looked at all.
        assert!(many < few * 40, "{least}: {few:?}, {most}: {many:?}");
    }
}
