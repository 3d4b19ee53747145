//! The plan of a restore: an action for each number of a descriptor table, and the problems found.
//! A plan is made from an image and the caller's options, before the restore changes anything.

mod options;

pub use options::{Inherit, Missing, RestoreOptions, StatsFormat};

use crate::ctty::{self, SessionRole};
use crate::error::{Error, Result};
use crate::image::{Lock, OpenFile, Slot, Task};
use crate::kind::context::{CttyPlan, Number, PidMap, RestoreContext};
use crate::kind::effect::{Allow, Effect};
use crate::kind::{DecodedImage, Prerequisite, Record};
use crate::lock;
use crate::messages::Messages;
use crate::placement;
use crate::proc::{self, HeldLock};
use crate::sys;
use crate::sys::own_table::was_inherited;
use crate::text::escape;
use nix::sys::resource::{Resource, getrlimit};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::fd::{BorrowedFd, RawFd};

/// The way to restore the rest of an image in spite of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cure {
    /// A descriptor can be replaced, or left out.
    Descriptor,
    /// A descriptor can be restored without its lock.
    Lock,
    /// A process can hold its descriptors, and not run its program again.
    NoProgram,
    /// A process can get another process id.
    AnyPid,
}

impl Cure {
    /// The options to use, as text.
    fn text(self) -> &'static str {
        match self {
            Cure::Descriptor => {
                "use --inherit KEY=FD to replace one, --missing null or --missing skip to go on \
                 without"
            }
            Cure::Lock => "use --missing skip to restore descriptors without their locks",
            Cure::NoProgram => "leave --respawn out for processes that only hold their descriptors",
            Cure::AnyPid => "leave --same-pids out for any process ids",
        }
    }
}

/// A reason why something in an image cannot be restored here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The reason, in a line that names the descriptor or the task.
    pub line: String,
    /// The way to restore the rest.
    pub cure: Cure,
}

impl Problem {
    /// The problem with the task of this process id named in front.
    pub(crate) fn of_task(self, pid: i32) -> Problem {
        Problem { line: format!("task {pid}: {}", self.line), ..self }
    }
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
    ClosedEnd,
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
    /// The reasons why descriptors or locks cannot be restored.
    pub problems: Vec<Problem>,
    /// The reason for each file that is replaced or left out, by the file's id.
    pub(crate) losses: HashMap<u32, String>,
    /// What the restore does beyond the descriptors of the image, by the file's id.
    pub effects: HashMap<u32, Vec<Effect>>,
    /// A line for each lock that is not taken again. A restore finds them out by trying, so that only
    /// the plan of a dry run has them.
    lost_locks: Vec<String>,
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
    /// The other ends of [`Action::ClosedEnd`], by file id: an id that no file has, and the number.
    pub(crate) closed_ends: HashMap<u32, (u32, RawFd)>,
    /// The files that are restored, by object.
    objects: HashMap<u32, Vec<u32>>,
    /// The sockets that are restored, by [`crate::kind::Kind::socket_inode`].
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

    /// None if this process does not lead its group: the other processes in it are not restored.
    fn group(&self, pgid: i32) -> Option<i32> {
        let group = nix::unistd::getpgrp();
        (pgid == self.0.pgid && group == nix::unistd::getpid()).then(|| group.as_raw())
    }
}

impl RestoreOptions {
    /// Fails with status 2 if a descriptor to inherit is not open.
    pub(crate) fn check_inherited(&self) -> Result<()> {
        let of_keys = self.inherit_keys().map(|(_, fd)| fd);
        for fd in self.same_numbers().chain(of_keys) {
            if (0..3).contains(&fd) && sys::start::closed_at_start(fd) || !was_inherited(fd) {
                return Err(Error::misuse(format!("--inherit: descriptor {fd} is not open")));
            }
        }
        Ok(())
    }
}

/// A key of `--inherit` that matches a descriptor of the image. The lowest match counts: a key with
/// `PID:FD` comes before one with `FD`, and that before a link text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct KeyMatch {
    precision: u8,
    /// The index in [`InheritKeys::keys`].
    key: usize,
}

/// The keys of `--inherit`, and what each of them has matched so far.
pub(crate) struct InheritKeys<'o> {
    /// Each key, and the caller's descriptor.
    keys: Vec<(&'o [u8], RawFd)>,
    /// For each key: it matches a descriptor of the image.
    matched: Vec<bool>,
    /// For each key: its descriptor replaces one of the image.
    used: Vec<bool>,
}

impl<'o> InheritKeys<'o> {
    pub(crate) fn new(options: &'o RestoreOptions) -> InheritKeys<'o> {
        let keys: Vec<(&[u8], RawFd)> = options.inherit_keys().collect();
        let none = vec![false; keys.len()];
        InheritKeys { keys, matched: none.clone(), used: none }
    }

    /// The lowest match for a slot of the task with this process id. Keys that are a number alone
    /// are for the slots of one task, for which `number_alone` is true.
    pub(crate) fn of_slot(
        &mut self,
        pid: i32,
        number_alone: bool,
        slot: &Slot,
        file: &OpenFile,
    ) -> Option<KeyMatch> {
        if self.keys.is_empty() {
            return None;
        }
        let number = slot.fd.to_string();
        let of_task = format!("{pid}:{number}");
        self.lowest(|key| match key {
            key if key == of_task.as_bytes() => Some(0),
            key if number_alone && key == number.as_bytes() => Some(1),
            key => (key == file.link.0).then_some(2),
        })
    }

    /// The lowest match for a file that has no number.
    pub(crate) fn of_file(&mut self, file: &OpenFile) -> Option<KeyMatch> {
        self.lowest(|key| (key == file.link.0).then_some(2))
    }

    fn lowest(&mut self, precision: impl Fn(&[u8]) -> Option<u8>) -> Option<KeyMatch> {
        let mut lowest: Option<KeyMatch> = None;
        for (at, (key, _)) in self.keys.iter().enumerate() {
            let Some(precision) = precision(key) else { continue };
            self.matched[at] = true;
            let found = KeyMatch { precision, key: at };
            lowest = Some(lowest.map_or(found, |lowest| lowest.min(found)));
        }
        lowest
    }

    /// The caller's descriptor of a key.
    pub(crate) fn fd(&self, found: KeyMatch) -> RawFd {
        self.keys[found.key].1
    }

    /// The caller's descriptor of a key, which replaces a descriptor of the image.
    pub(crate) fn replace_by(&mut self, found: KeyMatch) -> RawFd {
        self.used[found.key] = true;
        self.fd(found)
    }

    /// Fails with status 2 if a key matches nothing in the image, or only what other options
    /// replace.
    pub(crate) fn check_all_used(&self) -> Result<()> {
        for (((key, _), matched), used) in self.keys.iter().zip(&self.matched).zip(&self.used) {
            if *used {
                continue;
            }
            let key = escape(key);
            return Err(Error::misuse(match matched {
                true => format!("--inherit: another --inherit replaces '{key}' already"),
                false => format!("--inherit: the image has no descriptor '{key}'"),
            }));
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
        plan.terminal = plan.plan_ctty(role, options);
        plan.check(options, &SingleTask(task), root, dry_run, &proc::locks())?;
        // The file of the controlling terminal may be one of those that cannot be restored.
        plan.terminal = plan.plan_ctty(role, options);
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
            losses: HashMap::new(),
            effects: HashMap::new(),
            lost_locks: Vec::new(),
            terminal: CttyPlan::None,
            owner_tasks: HashMap::new(),
            owned_files: HashSet::new(),
            numbers: Vec::new(),
            lowest: HashMap::new(),
            closed_ends: HashMap::new(),
            objects: HashMap::new(),
            sockets: HashMap::new(),
        };
        let permanent = plan.steps.iter().filter(|step| !step.temporary);
        let number = |step: &Step| Number { fd: step.fd, file: step.file };
        plan.numbers.push(permanent.map(number).collect());
        let unused = (0..=u32::MAX).rev().filter(|id| image.file(*id).is_none());
        let closed = plan.steps.iter().filter(|step| step.action == Action::ClosedEnd);
        plan.closed_ends =
            closed.zip(unused).filter_map(|(step, id)| Some((step.file?, (id, step.fd)))).collect();
        for step in &plan.steps {
            let Some(file) = step.file.and_then(|id| image.file(id)) else { continue };
            if !step.action.is_first_number() || plan.lowest.contains_key(&file.id) {
                continue;
            }
            plan.lowest.insert(file.id, step.fd);
            if let Some(object) = file.object {
                plan.objects.entry(object).or_default().push(file.id);
            }
            if let Some(peer) = image.record(file.id).and_then(|record| record.socket_inode(file)) {
                plan.sockets.insert(peer, file.id);
            }
        }
        plan
    }

    /// Plans the controlling terminal, for a process that has this role in its session.
    pub(crate) fn plan_ctty(&self, role: SessionRole, options: &RestoreOptions) -> CttyPlan {
        let inherited = |id| {
            let replaces =
                |step: &&Step| step.file == Some(id) && matches!(step.action, Action::Inherit(_));
            self.steps.iter().find(replaces).map(|step| step.fd)
        };
        let made = |id| self.lowest.contains_key(&id);
        allowed_terminal(ctty::plan(self.image, self.task, role, made, inherited), options)
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
        let (mut problems, mut lost_locks) = (Vec::new(), Vec::new());
        let (mut losses, mut effects) = (HashMap::new(), HashMap::new());
        {
            let mut cx = self.context(&[], pids, root, options);
            cx.checks_all = dry_run || options.missing != Missing::Fail;
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
                let checked = record
                    .check(file, &cx)
                    .and_then(|()| lock::check_lease(file, held, &cx))
                    .and_then(|()| self.check_has_table(file))
                    .and_then(|()| allowed_effects(record, file, &cx));
                match checked {
                    Ok(found) if found.is_empty() => (),
                    Ok(found) => drop(effects.insert(id, found)),
                    Err(err) => {
                        step.action = options.missing.instead();
                        if options.missing == Missing::Fail {
                            let line = format!("{}: {err}", self.name(step));
                            problems.push(Problem { line, cure: Cure::Descriptor });
                        } else {
                            losses.insert(id, err.to_string());
                        }
                        failed.insert(id, step.action);
                    }
                }
            }
            // A lock of a table is checked only in the plan of that table.
            let is_table = self.owner_tasks.is_empty();
            for (step, file, lock, of_table) in self.locks(&steps) {
                if of_table && !is_table {
                    continue;
                }
                let line = lock::find_conflict(lock, file, held, &cx);
                let Some(line) = line.map(|line| format!("{}: {line}", self.name(step))) else {
                    continue;
                };
                if options.missing == Missing::Fail {
                    problems.push(Problem { line, cure: Cure::Lock });
                } else if dry_run {
                    lost_locks.push(line);
                }
            }
        }
        self.steps = steps;
        self.problems.extend(problems);
        self.losses.extend(losses);
        self.effects.extend(effects);
        self.lost_locks.extend(lost_locks);
        // A file that is not restored is not another's peer.
        if !failed.is_empty() {
            self.lowest.retain(|id, _| !failed.contains_key(id));
            for files in self.objects.values_mut() {
                files.retain(|id| !failed.contains_key(id));
            }
        }
        Ok(())
    }

    /// Fails with status 6 for a file whose record refers to numbers of a table, if fdrestore opens
    /// it and no table has it.
    fn check_has_table(&self, file: &OpenFile) -> Result<()> {
        let of_no_table = !self.owner_tasks.is_empty() && !self.owner_tasks.contains_key(&file.id);
        let record = self.image.record(file.id).filter(|_| of_no_table);
        match record.is_some_and(|record| record.prerequisite(file) == Prerequisite::Numbers) {
            true => Err(Error::unrestorable(
                "it refers to descriptors by their numbers, and is itself only in a queue that \
                 several tasks have",
            )),
            false => Ok(()),
        }
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
        options: &'b RestoreOptions,
    ) -> RestoreContext<'b> {
        RestoreContext {
            image: self.image,
            task: self.task,
            pids,
            source,
            root,
            checks_all: false,
            changed: options.changed,
            allow: &options.allow,
            warnings: Messages::kept(),
            lowest: &self.lowest,
            closed_ends: &self.closed_ends,
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

    /// A line for each file that is replaced or left out, and for which `wanted` is true, and for each
    /// lock that is not taken again.
    pub fn describe_losses(&self, wanted: impl Fn(u32) -> bool) -> Vec<String> {
        let mut told = HashSet::new();
        let mut is_first = |id: u32| wanted(id) && told.insert(id);
        let steps = self.steps.iter().filter(|step| step.file.is_some_and(&mut is_first));
        let line = |step: &Step| {
            let why = self.losses.get(&step.file?)?;
            Some(self.describe_loss(step, step.action, why))
        };
        steps.filter_map(line).chain(self.lost_locks.iter().cloned()).collect()
    }

    /// The line for a descriptor that is not restored: `action` is what is done instead.
    pub(crate) fn describe_loss(&self, step: &Step, action: Action, why: &str) -> String {
        let instead = match action {
            Action::Null => "replaced",
            _ => "left out",
        };
        format!("{}: {instead}: {why}", self.name(step))
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
    pub fn highest(&self) -> Option<u32> {
        let permanent = |step: &&Step| !step.temporary && step.action != Action::Skip;
        self.steps.iter().rev().find(permanent).map(|step| step.fd as u32)
    }

    /// The number of descriptors of the restored table.
    pub fn descriptors(&self) -> usize {
        self.steps.iter().filter(|step| !step.temporary && step.action != Action::Skip).count()
    }

    /// Fails with status 6 if there are problems, and says each.
    pub fn refuse(&self, messages: &mut Messages<'_>) -> Result<()> {
        refuse(&self.problems, messages)
    }
}

/// [`Plan::refuse`] for these problems. The error has the cures that fit.
pub(crate) fn refuse(problems: &[Problem], messages: &mut Messages<'_>) -> Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    for problem in problems {
        messages.push(problem.line.as_str());
    }
    let cures: BTreeSet<Cure> = problems.iter().map(|problem| problem.cure).collect();
    let cures = cures.into_iter().map(Cure::text).collect::<Vec<&str>>().join("; ");
    Err(Error::unrestorable(format!("{} cannot be restored here; {cures}", problems.len())))
}

/// The steps for the table of a task. Fails with status 2 if an option matches nothing.
fn table_steps(image: &DecodedImage, task: &Task, options: &RestoreOptions) -> Result<Vec<Step>> {
    let mut same_number: BTreeSet<RawFd> = options.same_numbers().collect();
    let mut keys = InheritKeys::new(options);
    let mut steps = Vec::new();
    let mut seen = HashSet::new();
    for slot in image.slots_of(task.table.id) {
        let Some(file) = image.file(slot.file) else { continue };
        let fd = slot.fd as RawFd;
        let action = match keys.of_slot(task.pid, true, slot, file) {
            _ if same_number.remove(&fd) => Action::Inherit(fd),
            Some(found) => Action::Inherit(keys.replace_by(found)),
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
        let found = keys.of_file(file);
        Some(found.map_or(Action::Make, |found| Action::Inherit(keys.replace_by(found))))
    });
    keys.check_all_used()?;
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
        if queued.peek().is_some() && record.has_closed_end() {
            added.push((file.id, Action::ClosedEnd));
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

/// The planned controlling terminal, unless it is opened by a path of the image and `--allow` does not
/// permit that.
pub(crate) fn allowed_terminal(planned: CttyPlan, options: &RestoreOptions) -> CttyPlan {
    match planned {
        CttyPlan::FromPath(path) if !options.allows(Allow::Tty) => {
            let shown = escape(&path);
            let why = format!("{shown} is opened only if it is allowed: --allow tty permits that");
            CttyPlan::Unavailable(why)
        }
        planned => planned,
    }
}

/// What the restore of a file does beyond the descriptors of the image. Fails with status 6 if `--allow`
/// does not permit it.
fn allowed_effects(
    record: &dyn Record,
    file: &OpenFile,
    cx: &RestoreContext<'_>,
) -> Result<Vec<Effect>> {
    let effects = record.effects(file, cx)?;
    effects.iter().try_for_each(|effect| effect.permitted(cx.allow))?;
    Ok(effects)
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
mod tests;
