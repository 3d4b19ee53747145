//! The plan of a restore: an action for each number of a descriptor table, and the problems found.
//! It is made from an image and the caller's options, before the restore changes anything.

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

/// The policy for a descriptor that cannot be restored: `--missing`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Missing {
    /// The restore fails, and lists all of them.
    #[default]
    Fail,
    /// The substitute of its kind is opened: [`crate::kind::Kind::substitute`].
    Null,
    /// The number stays closed.
    Skip,
}

crate::word_enum!(Missing { Fail = "fail", Null = "null", Skip = "skip" });

/// A descriptor of the caller that replaces one of the image: `--inherit`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inherit {
    /// The descriptor stays at its number, and replaces what the image has there.
    SameNumber(RawFd),
    /// The descriptor replaces the one of the image with this key: a link text, a number, or
    /// `PID:NUMBER`.
    Key(Vec<u8>, RawFd),
}

/// The options of a restore.
#[derive(Clone, Debug, Default)]
pub struct RestoreOptions {
    /// The process id in the image of the task whose table is restored; the first task if none.
    pub task: Option<i32>,
    /// The policy for descriptors that cannot be restored.
    pub missing: Missing,
    /// The policy for files that have changed.
    pub changed: Changed,
    /// The descriptors of the caller that replace some of the image.
    pub inherit: Vec<Inherit>,
    /// A controlling terminal may be taken from another session.
    pub steal: bool,
    /// The policy for the numbers of service descriptors.
    pub placement: Placement,
}

/// The action of a restore for a number of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// The description is opened; this is its first number.
    #[default]
    Make,
    /// The description has another number already, of which this is a dup(2).
    Dup,
    /// The caller's descriptor with this number is placed.
    Inherit(RawFd),
    /// The substitute of `--missing null` is placed.
    Null,
    /// The number stays closed.
    Skip,
    /// The description is received from the fdstore of a tree, in this message: several tasks have
    /// it.
    FromStore(u32),
    /// The process is forked with the description at this number.
    FromParent,
    /// The other end of the file is placed, which is closed in the image, until the queue of the
    /// file is filled.
    Park,
}

impl Action {
    /// Reports whether this is the first number of a description of the image.
    fn is_first_number(self) -> bool {
        matches!(self, Action::Make | Action::FromStore(_) | Action::FromParent)
    }
}

/// A number of a table, and the action for it.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// The number.
    pub fd: RawFd,
    /// The id of its file; none for a descriptor of the caller at a number that the image does not
    /// have.
    pub file: Option<u32>,
    /// The action.
    pub action: Action,
    /// FD_CLOEXEC is set in the image.
    pub cloexec: bool,
    /// The action comes before the children of the task are forked, because they inherit the
    /// number.
    pub before_fork: bool,
    /// The number is open only until all queues are filled: the image has no number for the file.
    pub temporary: bool,
}

/// The owner of a file that fdrestore opens for several tasks: the task that finishes it, and to
/// whose numbers its record refers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OwnerTask<'a> {
    pub task: &'a Task,
    /// The index in [`Plan::numbers`] of the numbers of its table.
    pub numbers: usize,
    /// The first number of the file in that table.
    pub fd: RawFd,
}

/// The plan for one table.
pub struct Plan<'a> {
    /// The image.
    pub image: &'a DecodedImage,
    /// The task.
    pub task: &'a Task,
    /// The steps, by ascending number.
    pub steps: Vec<Step>,
    /// The descriptors that cannot be restored, a line each.
    pub problems: Vec<String>,
    /// The planned controlling terminal.
    pub terminal: CttyPlan,
    /// In the plan of the files that fdrestore opens for several tasks: the owner of each, by file
    /// id. Empty in the plan of a task's table.
    pub(crate) owner_tasks: HashMap<u32, OwnerTask<'a>>,
    /// The files that this task owns, though another process opens them.
    pub(crate) owned_files: HashSet<u32>,
    /// The numbers of this table, and after them those of the tables of [`Plan::owner_tasks`].
    pub(crate) numbers: Vec<Vec<Number>>,
    /// The lowest number of each file that is restored, by file id.
    pub(crate) lowest: HashMap<u32, RawFd>,
    /// The other ends of [`Action::Park`], by file id: an id that no file has, and the number.
    pub(crate) parked: HashMap<u32, (u32, RawFd)>,
    /// The files that are restored, by object.
    objects: HashMap<u32, Vec<u32>>,
    /// The sockets that are restored, by [`crate::kind::Kind::peer_id`].
    sockets: HashMap<u64, u32>,
}

/// The link text of a file, by which messages name it.
pub(crate) fn link_of(file: &OpenFile) -> String {
    escape(&file.link.0).into_owned()
}

/// The map of process ids for a restore in this process: of one task.
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
    /// Fails with status 2 if a descriptor to inherit is not open.
    pub(crate) fn check_inherited(&self) -> Result<()> {
        for inherit in &self.inherit {
            let (Inherit::SameNumber(fd) | Inherit::Key(_, fd)) = inherit;
            if (0..3).contains(fd) && sys::start::closed_at_start(*fd) || !is_open(*fd) {
                return Err(Error::misuse(format!("--inherit: descriptor {fd} is not open")));
            }
        }
        Ok(())
    }

    /// The index in `inherit` of a key that matches a slot of the task with this process id.
    pub(crate) fn inherited_by_slot(
        &self,
        pid: i32,
        slot: &Slot,
        file: &OpenFile,
    ) -> Option<usize> {
        let matches_slot = |key: &[u8]| {
            key == file.link.0
                || key == slot.fd.to_string().as_bytes()
                || key == format!("{pid}:{}", slot.fd).as_bytes()
        };
        self.inherit.iter().position(|it| matches!(it, Inherit::Key(key, _) if matches_slot(key)))
    }

    /// The index in `inherit` of a key that matches a file which has no number.
    pub(crate) fn inherited_by_file(&self, file: &OpenFile) -> Option<usize> {
        let matches_file = |it: &Inherit| matches!(it, Inherit::Key(key, _) if *key == file.link.0);
        self.inherit.iter().position(matches_file)
    }

    /// Fails with status 2 if a key matches nothing in the image. `used` says which keys have
    /// matched.
    pub(crate) fn check_all_used(&self, used: &[bool]) -> Result<()> {
        for (inherit, used) in self.inherit.iter().zip(used) {
            if let (Inherit::Key(key, _), false) = (inherit, used) {
                let key = escape(key);
                return Err(Error::misuse(format!(
                    "--inherit: the image has no descriptor '{key}'"
                )));
            }
        }
        Ok(())
    }
}

impl<'a> Plan<'a> {
    /// Plans the restore of a task's table. Paths are resolved below `root`; with `dry_run` their
    /// existence is checked.
    ///
    /// Fails with status 6 if the image does not have the task, and with status 2 for wrong
    /// options.
    pub fn new(
        image: &'a DecodedImage,
        options: &RestoreOptions,
        root: Option<BorrowedFd<'_>>,
        dry_run: bool,
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
        let steps = table_steps(image, task, options)?;
        let mut plan = Plan::from_steps(image, task, steps);
        let role = SessionRole::myself()?;
        plan.terminal = plan.plan_ctty(role);
        plan.check(options, &SingleTask(task), root, dry_run, &proc::locks())?;
        // The file of the controlling terminal may be one of those that cannot be restored.
        plan.terminal = plan.plan_ctty(role);
        Ok(plan)
    }

    /// The plan with these steps, which are sorted by number.
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
        let permanent = plan.steps.iter().filter(|step| !step.temporary);
        let number = |step: &Step| Number { fd: step.fd, file: step.file };
        plan.numbers.push(permanent.map(number).collect());
        let unused = (0..=u32::MAX).rev().filter(|id| image.file(*id).is_none());
        let parks = plan.steps.iter().filter(|step| step.action == Action::Park);
        plan.parked =
            parks.zip(unused).filter_map(|(step, id)| Some((step.file?, (id, step.fd)))).collect();
        for step in &plan.steps {
            let Some(file) = step.file.and_then(|id| image.file(id)) else { continue };
            if !step.action.is_first_number() || plan.lowest.contains_key(&file.id) {
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

    /// Plans the controlling terminal, for a process that has this role in its session.
    pub(crate) fn plan_ctty(&self, role: SessionRole) -> CttyPlan {
        let inherited = |id| {
            let replaces =
                |step: &&Step| step.file == Some(id) && matches!(step.action, Action::Inherit(_));
            self.steps.iter().find(replaces).map(|step| step.fd)
        };
        ctty::plan(self.image, self.task, role, |id| self.lowest.contains_key(&id), inherited)
    }

    /// Checks by the kind of each file whether it can be restored. Files that cannot are replaced,
    /// left out, or added to the problems, as [`Missing`] says. `held` are the locks that processes
    /// have now.
    ///
    /// Fails with status 6 if a number is above the hard limit of open files.
    pub(crate) fn check(
        &mut self,
        options: &RestoreOptions,
        pids: &dyn PidMap,
        root: Option<BorrowedFd<'_>>,
        dry_run: bool,
        held: &[HeldLock],
    ) -> Result<()> {
        if let Some(step) = self.steps.last() {
            check_hard_limit(step.fd as u32)?;
        }
        let mut failed: HashMap<u32, Action> = HashMap::new();
        let mut steps = std::mem::take(&mut self.steps);
        let mut problems = Vec::new();
        {
            let mut cx = self.context(&[], pids, root, options.changed);
            cx.dry_run = dry_run;
            for step in &mut steps {
                let Some(id) = step.file else { continue };
                if step.action == Action::Dup {
                    step.action = failed.get(&id).copied().unwrap_or(Action::Dup);
                    continue;
                }
                let (Action::Make, Some(file)) = (step.action, self.image.file(id)) else {
                    continue;
                };
                self.select_owner(&mut cx, id);
                let Some(record) = self.image.record(id) else { continue };
                let checked =
                    record.check(file, &cx).and_then(|()| lock::check_lease(file, held, &cx));
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
            // A lock of a table is checked only in the plan of that table.
            let is_table = self.owner_tasks.is_empty();
            for (step, file, lock, of_table) in self.locks(&steps) {
                if of_table && !is_table {
                    continue;
                }
                let line = lock::find_conflict(lock, file, held, &cx);
                let line = line.map(|line| format!("{}: {line}", self.name(step)));
                problems.extend(line.filter(|_| options.missing == Missing::Fail));
            }
        }
        self.steps = steps;
        self.problems.extend(problems);
        // A file that is not restored is not another's peer.
        if !failed.is_empty() {
            self.lowest.retain(|id, _| !failed.contains_key(id));
            for files in self.objects.values_mut() {
                files.retain(|id| !failed.contains_key(id));
            }
        }
        Ok(())
    }

    /// The locks to take: first those of descriptions, then those of the table, for which the last
    /// value is true. Descriptors of the caller, substitutes and closed numbers get none.
    pub(crate) fn locks<'p>(
        &'p self,
        steps: &'p [Step],
    ) -> impl Iterator<Item = (&'p Step, &'p OpenFile, &'p Lock, bool)> {
        let table = self.task.table.id;
        let of_table = self.image.slots_of(table).iter().flat_map(move |slot| {
            let at = steps.binary_search_by_key(&(slot.fd as RawFd), |step| step.fd);
            let step = at.ok().map(|at| &steps[at]).filter(|step| {
                let restored =
                    !matches!(step.action, Action::Inherit(_) | Action::Null | Action::Skip);
                restored && step.file == Some(slot.file)
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

    /// A context to check the plan, or to run it. `source` has the bytes of the image.
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

    /// Sets the task and the numbers of the context to those of the owner of a file.
    pub(crate) fn select_owner<'b>(&'b self, cx: &mut RestoreContext<'b>, file: u32) {
        let owner = self.owner_tasks.get(&file);
        cx.task = owner.map_or(self.task, |owner| owner.task);
        cx.numbers = &self.numbers[owner.map_or(0, |owner| owner.numbers)];
    }

    /// The name of a step in messages.
    pub(crate) fn name(&self, step: &Step) -> String {
        let file = step.file.and_then(|id| self.image.file(id)).map_or(String::new(), link_of);
        match step.file.and_then(|id| self.owner_tasks.get(&id)) {
            Some(owner) => format!("task {}: fd {} ({file})", owner.task.pid, owner.fd),
            None => format!("{} ({file})", self.location(step)),
        }
    }

    /// The number of a step in messages, or the number of the socket in whose queue its file is.
    fn location(&self, step: &Step) -> String {
        let Some(id) = step.file.filter(|id| self.image.slot_of(*id).is_none()) else {
            return format!("fd {}", step.fd);
        };
        let Some(carrier) = self.image.carrier_of(id) else { return "queued".to_owned() };
        let name = link_of(carrier);
        let Some(slot) = self.image.slot_of(carrier.id) else { return format!("queued in {name}") };
        let same_table = self.owner_tasks.is_empty() && slot.table == self.task.table.id;
        match self.image.owner_of(slot.table).filter(|_| !same_table) {
            Some(pid) => format!("queued in task {pid}: fd {} ({name})", slot.fd),
            None => format!("queued in fd {} ({name})", slot.fd),
        }
    }

    /// The highest number of the restored table.
    pub(crate) fn highest(&self) -> Option<u32> {
        let permanent = |step: &&Step| !step.temporary && step.action != Action::Skip;
        self.steps.iter().rev().find(permanent).map(|step| step.fd as u32)
    }

    /// The number of descriptors of the restored table.
    pub fn descriptors(&self) -> usize {
        self.steps.iter().filter(|step| !step.temporary && step.action != Action::Skip).count()
    }

    /// Fails with status 6 if there are problems, after `say` was called with each.
    pub fn refuse(&self, say: &mut dyn FnMut(&str)) -> Result<()> {
        refuse(&self.problems, say)
    }
}

/// [`Plan::refuse`] for these problems.
pub(crate) fn refuse(problems: &[String], say: &mut dyn FnMut(&str)) -> Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    for problem in problems {
        say(problem);
    }
    let cure =
        "use --inherit KEY=FD to replace one, --missing null or --missing skip to go on without";
    Err(Error::unrestorable(format!("{} cannot be restored here; {cure}", problems.len())))
}

/// The steps for the table of a task. Fails with status 2 if an option matches nothing.
fn table_steps(image: &DecodedImage, task: &Task, options: &RestoreOptions) -> Result<Vec<Step>> {
    let mut same_number: BTreeSet<RawFd> = BTreeSet::new();
    let mut used = vec![false; options.inherit.len()];
    for inherit in &options.inherit {
        if let Inherit::SameNumber(fd) = inherit {
            same_number.insert(*fd);
        }
    }
    let mut steps = Vec::new();
    let mut seen = HashSet::new();
    for slot in image.slots_of(task.table.id) {
        let Some(file) = image.file(slot.file) else { continue };
        let fd = slot.fd as RawFd;
        let inherited = options.inherited_by_slot(task.pid, slot, file);
        let action = match inherited {
            _ if same_number.remove(&fd) => Action::Inherit(fd),
            Some(at) => {
                used[at] = true;
                match &options.inherit[at] {
                    Inherit::Key(_, from) | Inherit::SameNumber(from) => Action::Inherit(*from),
                }
            }
            None if seen.insert(file.id) => Action::Make,
            None => Action::Dup,
        };
        let step = Step { fd, file: Some(file.id), action, ..Step::default() };
        steps.push(Step { cloexec: slot.cloexec, ..step });
    }
    for fd in same_number {
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

/// Adds steps for the files that are queued in sockets and have no number, and for the closed ends
/// through which the queues are filled. `action` gives the action for a queued file; none if
/// another process opens it.
pub(crate) fn add_queued(
    image: &DecodedImage,
    steps: &mut Vec<Step>,
    action: &mut dyn FnMut(&OpenFile) -> Option<Action>,
) {
    let mut known: HashSet<u32> = steps.iter().filter_map(|step| step.file).collect();
    let opened = steps.iter().filter(|step| step.action == Action::Make);
    let mut todo: Vec<u32> = opened.filter_map(|step| step.file).collect();
    let mut added = Vec::new();
    while let Some(file) = todo.pop().and_then(|id| image.file(id)) {
        let Some(record) = image.record(file.id).filter(|it| it.carries_descriptors()) else {
            continue;
        };
        let mut queued = image.queued(file).peekable();
        if queued.peek().is_some() && record.parks_other_end() {
            added.push((file.id, Action::Park));
        }
        for file in queued.filter_map(|id| image.file(id)) {
            if known.insert(file.id) {
                let action = action(file);
                added.extend(action.map(|action| (file.id, action)));
                todo.extend((action == Some(Action::Make)).then_some(file.id));
            }
        }
    }
    if added.is_empty() {
        return;
    }
    added.sort_unstable_by_key(|(id, _)| *id);
    let wanted: Vec<u32> = steps.iter().map(|step| step.fd as u32).collect();
    let numbers = placement::lowest_free(&wanted, added.len());
    steps.extend(numbers.into_iter().zip(added).map(|(number, (id, action))| {
        let fd = number as RawFd;
        Step { fd, file: Some(id), action, temporary: true, ..Step::default() }
    }));
    steps.sort_by_key(|step| step.fd);
}

/// The hard limit of open files of this process: RLIMIT_NOFILE of getrlimit(2).
pub(crate) fn hard_limit() -> Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.1)
}

/// Fails with status 6 if a number is above the hard limit of open files.
fn check_hard_limit(highest: u32) -> Result<()> {
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

    /// An image of one task with a socket at 0, `count` descriptors that cannot be restored, and
    /// `count` more of them in the queue of the socket.
    fn unrestorable(count: u32) -> DecodedImage {
        let (socket, _peer) = UnixStream::pair().unwrap();
        let myself = Process::open(std::process::id() as i32).unwrap();
        let task = Task { pid: 700, ..myself.task(0, None).unwrap() };
        let mut carrier = crate::kind::tests::file_of(&socket);
        carrier.object = Some(0);
        let unreadable = crate::kind::Captured::unreadable(0, &nix::errno::Errno::EIO.into());
        let opaque =
            OpenFile { link: Bytes(b"anon_inode:[odd]".to_vec()), ..unreadable.into_file(0) };
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

    /// The problems of an image, and the CPU time that finding them takes.
    fn problems(image: &DecodedImage) -> (Vec<String>, Duration) {
        let now = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
        let begun = now();
        let plan = Plan::new(image, &RestoreOptions::default(), None, false).unwrap();
        (plan.problems, now() - begun)
    }

    #[test]
    fn each_problem_names_its_number_or_that_of_the_socket_in_whose_queue_it_is() {
        let (said, _) = problems(&unrestorable(2));
        let begins = |line: &str, with: &str| assert!(line.starts_with(with), "{said:?}");
        let carried = said.iter().filter(|line| line.starts_with("queued in fd 0 (socket:["));
        assert_eq!(carried.count(), 2, "{said:?}");
        begins(&said[1], "fd 1 (anon_inode:[odd]): ");
        begins(&said[2], "fd 2 (anon_inode:[odd]): ");
    }

    #[test]
    fn the_time_for_many_problems_is_linear() {
        let most = hard_limit().unwrap().min(20_000) as u32 / 2 - 8;
        let least = most / 16;
        let took = |count: u32| {
            let image = unrestorable(count);
            let cost = (0..3).map(|_| problems(&image)).map(|(said, took)| {
                assert!(said.len() as u32 >= 2 * count, "{}", said.len());
                took
            });
            cost.min().unwrap_or_default()
        };
        let (few, many) = (took(least), took(most));
        // There are 16 times as many; quadratic time would be 256 times as long.
        assert!(many < few * 40, "{least}: {few:?}, {most}: {many:?}");
    }
}
