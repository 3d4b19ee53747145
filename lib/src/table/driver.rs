//! The driver: restores one table, in any mode, by operations that an executor runs.
//!
//! Descriptions are made in ascending order of their numbers, since the lowest free number is then
//! nearly always the right one. What needs the numbers of the whole table is done after that.

use crate::error::{At, Error, Result};
use crate::image::{Lock, OpenFile};
use crate::kind::Prerequisite;
use crate::kind::context::{Held, OpenedTogether, RestoreContext, set_flags};
use crate::lock;
use crate::operation::{Operation, Origin, Outcome};
use crate::plan::{Action, Missing, Plan, RestoreOptions, Step, refuse, what};
use crate::sys::own_table::PlacedFd;
use crate::table::executor::Executor;
use crate::table::fdstore::Store;
use crate::table::source::Source;
use nix::errno::Errno;
use nix::libc;
use nix::unistd::{Whence, lseek};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::rc::Rc;

/// A table on its way.
pub struct TableRestore<'w, 's> {
    plan: &'s Plan<'s>,
    options: &'w RestoreOptions,
    /// The context of its kinds.
    pub cx: RestoreContext<'s>,
    source: &'w mut dyn Source,
    store: Option<&'w Store<'w>>,
    /// What could not be made, a line each.
    problems: Vec<String>,
    /// The outcomes of files that were made before the others.
    early: HashMap<u32, Result<()>>,
    placed: Placed,
    /// Which steps are done.
    done: Vec<bool>,
}

/// What is in a table by now.
#[derive(Debug, Default)]
struct Placed {
    /// The first number of each file.
    numbers: HashMap<u32, RawFd>,
    /// What became of files that could not be made.
    replaced: HashMap<u32, Action>,
}

/// A table that is restored, but for the POSIX locks of the table.
pub struct RestoredTable<'p> {
    plan: &'p Plan<'p>,
    placed: Placed,
}

/// The locks that could not be taken, a line each.
pub type Unlocked = Vec<String>;

impl<'w, 's> TableRestore<'w, 's> {
    /// A restore of the table of a plan, in which nothing is done yet.
    pub fn new(
        plan: &'s Plan<'s>,
        options: &'w RestoreOptions,
        cx: RestoreContext<'s>,
        source: &'w mut dyn Source,
        store: Option<&'w Store<'w>>,
    ) -> Self {
        let done = plan.steps.iter().map(|step| step.action == Action::FromParent).collect();
        TableRestore {
            plan,
            options,
            cx,
            source,
            store,
            problems: Vec::new(),
            early: HashMap::new(),
            placed: Placed::default(),
            done,
        }
    }

    /// Takes notice of what the process was forked with.
    pub fn from_parent(&mut self, executor: &mut dyn Executor) -> Result<()> {
        let plan = self.plan;
        for step in plan.steps.iter().filter(|step| step.action == Action::FromParent) {
            let Some(id) = step.file else { continue };
            if let std::collections::hash_map::Entry::Vacant(first) = self.placed.numbers.entry(id)
            {
                first.insert(step.fd);
                if !executor.is_paper() {
                    self.cx.held.insert(id, Rc::new(executor.held(step.fd)?));
                }
            }
            if executor.is_paper() {
                let (number, origin) = (step.fd, Origin::Parent);
                executor.run(&Operation::Place { number, file: id, origin })?;
            }
        }
        Ok(())
    }

    /// Makes what paths and the controlling terminal lead to.
    pub fn make_early(&mut self, executor: &mut dyn Executor) {
        let plan = self.plan;
        for step in plan.steps.iter().filter(|step| step.action == Action::Make) {
            let Some(file) = step.file.and_then(|id| plan.image.file(id)) else { continue };
            if plan.image.record(file.id).is_some_and(|record| record.is_early()) {
                let outcome = self.make_file(file, step.fd, executor);
                self.early.insert(file.id, outcome);
            }
        }
    }

    /// Makes those steps that are not done yet, in ascending order.
    pub fn make(
        &mut self,
        which: impl Fn(&Step) -> bool,
        executor: &mut dyn Executor,
    ) -> Result<()> {
        let plan = self.plan;
        let makes = |step: &&Step| matches!(step.action, Action::Make | Action::FromStore(_));
        let mut expected = 0;
        let mut at = 0;
        while let Some(step) = plan.steps.get(at) {
            if self.done[at] || !which(step) {
                expected = if self.done[at] { step.fd + 1 } else { expected };
                at += 1;
                continue;
            }
            let hole = (step.fd - expected) as usize;
            if hole > 0 {
                let run = plan.steps[at..].iter().take(hole).filter(makes).count();
                executor.prepare(expected, step.fd, run)?;
            }
            let count = match step.action {
                Action::FromStore(message) => {
                    let of = |step: &&Step| step.action == Action::FromStore(message);
                    let run = &plan.steps[at..];
                    let run = &run[..run.iter().take_while(of).count()];
                    self.receive(message, run, executor)?;
                    run.len()
                }
                _ => {
                    self.step(step, executor)?;
                    1
                }
            };
            self.done[at..at + count].fill(true);
            expected = step.fd + count as RawFd;
            at += count;
        }
        Ok(())
    }

    /// Receives a run of descriptions from the fdstore.
    fn receive(&mut self, message: u32, run: &[Step], executor: &mut dyn Executor) -> Result<()> {
        let files: Vec<u32> = run.iter().filter_map(|step| step.file).collect();
        let place = |step: &Step| Operation::Place {
            number: step.fd,
            file: step.file.unwrap_or_default(),
            origin: Origin::Store(message),
        };
        let operations: Vec<Operation> = run.iter().map(place).collect();
        let fds = match executor.is_paper() {
            true => Vec::new(),
            false => {
                let store = self.store.ok_or(Errno::EBADF)?;
                store.get(message, run.len()).at(|| "the fdstore")?
            }
        };
        let held = executor.place(fds, &operations)?;
        for (id, step) in files.iter().zip(run) {
            self.placed.numbers.entry(*id).or_insert(step.fd);
        }
        self.cx.held.extend(files.into_iter().zip(held.into_iter().map(Rc::new)));
        Ok(())
    }

    /// Does one step.
    fn step(&mut self, step: &Step, executor: &mut dyn Executor) -> Result<()> {
        let plan = self.plan;
        let number = step.fd;
        let file = step.file.and_then(|id| plan.image.file(id));
        let mut action = step.action;
        if let (Action::Dup, Some(file)) = (action, file) {
            action = self.placed.replaced.get(&file.id).copied().unwrap_or(action);
        }
        if let (Action::Make, Some(file)) = (action, file) {
            let early = self.early.remove(&file.id);
            let made = early.unwrap_or_else(|| self.make_file(file, number, executor));
            if let Err(why) = made {
                if self.options.missing == Missing::Fail {
                    self.problems.push(format!("{}: {why}", plan.name(step)));
                }
                action = match self.options.missing {
                    Missing::Null => Action::Null,
                    _ => Action::Skip,
                };
                self.placed.replaced.insert(file.id, action);
            }
        }
        match (action, file) {
            (Action::Dup, Some(file)) => {
                if let Some(&from) = self.placed.numbers.get(&file.id) {
                    executor.run(&Operation::Dup { from, number })?;
                }
            }
            (Action::Inherit(from), file) => {
                executor.run(&Operation::Inherit { number, from })?;
                if let (Some(file), false) = (file, executor.is_paper()) {
                    self.cx.inherited.insert(file.id, Rc::new(executor.held(number)?));
                }
            }
            (Action::Null, Some(file)) => self.make_null(file, number, executor)?,
            (Action::Park, _) if executor.is_paper() => {
                let file = step.file.unwrap_or_default();
                executor.run(&Operation::Place { number, file, origin: Origin::Parked })?;
            }
            _ => (),
        }
        Ok(())
    }

    /// Makes a description and places it, unless it came with another.
    fn make_file(
        &mut self,
        file: &OpenFile,
        number: RawFd,
        executor: &mut dyn Executor,
    ) -> Result<()> {
        self.plan.enter(&mut self.cx, file.id);
        if self.cx.held.contains_key(&file.id) {
            return self.seek(file);
        }
        let place = |file: u32, number| Operation::Place { number, file, origin: Origin::Opened };
        if executor.is_paper() {
            self.placed.numbers.entry(file.id).or_insert(number);
            executor.place(Vec::new(), &[place(file.id, number)])?;
            return Ok(());
        }
        let opened = self.source.open(file, &mut self.cx)?;
        set_flags(opened.fd.as_fd(), opened.flags, file.flags)?;
        let mut ids = vec![file.id];
        let mut fds: Vec<OwnedFd> = vec![opened.fd];
        let mut operations = vec![place(file.id, number)];
        for OpenedTogether { file, fd, flags } in opened.others {
            let other = self.plan.image.file(file).ok_or(Errno::EBADF)?;
            set_flags(fd.as_fd(), flags, other.flags)?;
            ids.push(file);
            fds.push(fd);
            operations.push(place(file, self.plan.lowest[&file]));
        }
        if let (Some(end), Some(&(id, number))) = (opened.parked, self.plan.parked.get(&file.id)) {
            ids.push(id);
            fds.push(end);
            operations.push(Operation::Place { number, file: file.id, origin: Origin::Parked });
        }
        let held = executor.place(fds, &operations)?;
        for ((id, operation), held) in ids.into_iter().zip(&operations).zip(held) {
            if let Operation::Place { number, .. } = operation {
                self.placed.numbers.entry(id).or_insert(*number);
            }
            self.cx.held.insert(id, Rc::new(held));
        }
        self.seek(file)
    }

    /// Places what is in the place of a file that cannot be restored.
    fn make_null(
        &mut self,
        file: &OpenFile,
        number: RawFd,
        executor: &mut dyn Executor,
    ) -> Result<()> {
        let place = Operation::Place { number, file: file.id, origin: Origin::Null };
        let fds = match executor.is_paper() {
            true => Vec::new(),
            false => {
                let record = self.plan.image.record(file.id).ok_or(Errno::EBADF)?;
                vec![record.substitute(file)?]
            }
        };
        let held = executor.place(fds, &[place])?;
        self.placed.numbers.entry(file.id).or_insert(number);
        self.cx.held.extend(held.into_iter().map(|held| (file.id, Rc::new(held))));
        self.cx.nulled.insert(file.id);
        Ok(())
    }

    /// Sets the position of a description.
    fn seek(&self, file: &OpenFile) -> Result<()> {
        let path = file.flags & libc::O_PATH as u32 != 0;
        let seeks = || self.plan.image.record(file.id).is_some_and(|record| record.is_seekable());
        if file.pos == 0 || path || !seeks() {
            return Ok(());
        }
        let held = self.cx.held.get(&file.id).ok_or(Errno::EBADF)?;
        lseek(held.as_fd(), file.pos, Whence::SeekSet).at(|| "lseek").map(drop)
    }

    /// Fails with status 6 if something could not be made; `say` gets a line each.
    pub fn end_making(
        &mut self,
        executor: &mut dyn Executor,
        say: &mut dyn FnMut(&str),
    ) -> Result<()> {
        executor.release()?;
        refuse(&self.problems, say)
    }

    /// Moves all descriptors to their final numbers.
    pub fn move_to_final(&mut self, executor: &mut dyn Executor) -> Result<()> {
        let moved: HashMap<RawFd, RawFd> = executor.move_to_final()?.into_iter().collect();
        if moved.is_empty() {
            return Ok(());
        }
        for held in self.cx.held.values_mut() {
            let Held::Placed(placed) = &**held else { continue };
            if let Some(&number) = moved.get(&placed.number()) {
                *held = Rc::new(executor.held(number)?);
            }
        }
        Ok(())
    }

    /// Does what can be done only when all descriptors of the table are placed: what finishes
    /// descriptions, owners, O_ASYNC, and last the locks of descriptions.
    ///
    /// What was made for several tasks is finished where it was made; but what names numbers or
    /// processes is left to the task that owns the file.
    pub fn finish(&mut self, executor: &mut dyn Executor) -> Result<Unlocked> {
        let plan = self.plan;
        let mut locked: Vec<(&Step, &OpenFile, RawFd)> = Vec::new();
        let mut last: Vec<&OpenFile> = Vec::new();
        for step in &plan.steps {
            let Some(file) = step.file.and_then(|id| plan.image.file(id)) else { continue };
            let Some(record) = plan.image.record(file.id) else { continue };
            let here = self.placed.numbers.get(&file.id).copied();
            let Some(number) = here.filter(|_| !self.cx.nulled.contains(&file.id)) else {
                continue;
            };
            let of_numbers = record.prerequisite(file) == Prerequisite::Numbers;
            let (made, owned) = match step.action {
                Action::Make => (true, !plan.owner_tasks.contains_key(&file.id)),
                Action::FromStore(_) | Action::FromParent => {
                    (false, plan.owned_files.contains(&file.id))
                }
                _ => continue,
            };
            if self.placed.replaced.contains_key(&file.id) {
                continue;
            }
            if if of_numbers { owned } else { made } {
                self.finish_file(file, number, executor)
                    .at(|| format!("fd {number}: {}", what(file)))?;
                last.push(file);
            }
            if owned && plan.lowest.get(&file.id) == Some(&step.fd) {
                self.owner(file, number, executor)?;
                if !file.locks.is_empty() {
                    locked.push((step, file, number));
                }
            }
        }
        for file in last {
            let held = self.cx.held.get(&file.id).cloned();
            let record = plan.image.record(file.id);
            if let (Some(held), Some(record)) = (held, record) {
                record.finish_last(file, held.as_fd(), &mut self.cx)?;
            }
        }
        // A lease is broken by whoever opens the file after it was taken.
        let mut unlocked = Vec::new();
        for (step, file, number) in locked {
            self.locks(step, file, number, executor, &mut unlocked)?;
        }
        self.close_temporary(executor)?;
        Ok(unlocked)
    }

    fn finish_file(
        &mut self,
        file: &OpenFile,
        number: RawFd,
        executor: &mut dyn Executor,
    ) -> Result<()> {
        let Some(record) = self.plan.image.record(file.id) else { return Ok(()) };
        let outcome = match record.operation(number, &self.cx)? {
            Some(operation) => executor.run(&operation)?,
            None => Outcome::Done,
        };
        if executor.is_paper() {
            if let Some(what) = record.finish_text() {
                let (file, what) = (file.id, what.to_owned());
                executor.run(&Operation::Finish { number, file, what })?;
            }
            return Ok(());
        }
        let held = self.cx.held.get(&file.id).cloned().ok_or(Errno::EBADF)?;
        record.finish(file, number, held.as_fd(), &outcome, &mut self.cx)
    }

    /// Sets who is told that a description is ready, and by which signal.
    fn owner(&mut self, file: &OpenFile, number: RawFd, executor: &mut dyn Executor) -> Result<()> {
        if let Some(signals) = &file.signals {
            let id = self.cx.current_id(signals.kind, signals.id);
            if id.is_none() && signals.id != 0 {
                let line = format!("fd {number}: its owner {} is not restored", signals.id);
                self.cx.warnings.push(line);
            }
            let owner = id.map(|id| (signals.kind, id));
            if owner.is_some() || signals.signal != 0 {
                executor.run(&Operation::Owner { number, owner, signal: signals.signal })?;
            }
        }
        if file.flags & libc::O_ASYNC as u32 != 0 {
            executor.run(&Operation::Async { number, flags: file.flags })?;
        }
        Ok(())
    }

    /// Takes the locks of a description, in the process that owns the file: /proc/locks names that
    /// process, and a lease tells it by a signal, with the number.
    fn locks(
        &mut self,
        step: &Step,
        file: &OpenFile,
        number: RawFd,
        executor: &mut dyn Executor,
        unlocked: &mut Unlocked,
    ) -> Result<()> {
        if let Some(held) = self.cx.held.get(&file.id) {
            if !lock::is_of(file, held.as_fd()) {
                return Ok(());
            }
        }
        let called = self.plan.name(step);
        for lock in &file.locks {
            let line = |why: &str| format!("{called}: {}: {why}", lock.describe());
            // How a lease was before it was to end, and who waits, is not known; or we know no such
            // lock.
            if lock.breaking || !["FLOCK", "OFDLCK", "LEASE"].contains(&lock.class.as_str()) {
                self.cx.warnings.push(line("it is not taken again"));
                continue;
            }
            let taken = executor.run(&Operation::Lock { number, lock: lock.clone() })?;
            if let Outcome::Refused(why) = taken {
                unlocked.push(line(&why));
            } else if lock.class == "LEASE" {
                let signals = file.signals.as_ref();
                let owner = signals.and_then(|it| self.cx.current_id(it.kind, it.id));
                // The kernel makes whoever takes it the owner, if the description has none.
                let nobody = Operation::Owner { number, owner: Some((1, 0)), signal: 0 };
                if owner.is_none() && executor.run(&nobody).is_err() {
                    unlocked.push(line("its owner is this process"));
                }
            }
        }
        Ok(())
    }

    /// Closes what was in the table only until all queues were filled.
    fn close_temporary(&mut self, executor: &mut dyn Executor) -> Result<()> {
        for step in self.plan.steps.iter().filter(|step| step.temporary) {
            let parked = step.file.and_then(|id| self.plan.parked.get(&id)).map(|(id, _)| *id);
            let id = if step.action == Action::Park { parked } else { step.file };
            let Some(id) = id else { continue };
            let held = self.cx.held.remove(&id).or_else(|| self.cx.inherited.remove(&id));
            if held.is_some() || executor.is_paper() {
                executor.run(&Operation::Close { number: step.fd })?;
            }
        }
        Ok(())
    }

    /// Forgets all descriptions that were made, after they were sent away; `close` gets those that
    /// are under the table.
    pub(crate) fn close_placed(&mut self, mut close: impl FnMut(PlacedFd)) {
        self.placed.numbers.clear();
        for (_, held) in self.cx.held.drain() {
            if let Some(Held::Placed(placed)) = Rc::into_inner(held) {
                close(placed);
            }
        }
    }

    /// Ends the restore: what is left needs the plan alone.
    pub fn end<'p>(self, plan: &'p Plan<'p>) -> RestoredTable<'p> {
        RestoredTable { plan, placed: self.placed }
    }

    /// Tests whether the POSIX locks of the table can be taken.
    pub fn test_table_locks(&self, executor: &mut dyn Executor) -> Result<Unlocked> {
        self.placed.table_locks(self.plan, false, executor)
    }
}

impl RestoredTable<'_> {
    /// Takes the POSIX locks of the table. The last of all operations: once a lock is taken, no
    /// descriptor of the inode may be closed any more, nor the table be copied (fcntl(2)).
    pub fn take_table_locks(&self, executor: &mut dyn Executor) -> Result<Unlocked> {
        self.placed.table_locks(self.plan, true, executor)
    }

    /// The numbers that are close-on-exec in the image, of those that were restored.
    pub fn close_on_exec(&self) -> Vec<RawFd> {
        let restored = |step: &&Step| step.cloexec && self.placed.has(step);
        self.plan.steps.iter().filter(restored).map(|step| step.fd).collect()
    }
}

impl Placed {
    /// Reports whether a step has put a descriptor of the image into the table, which stays there.
    fn has(&self, step: &Step) -> bool {
        let replaced = step.file.and_then(|id| self.replaced.get(&id));
        let action = replaced.copied().unwrap_or(step.action);
        let known = step.file.is_some_and(|id| self.numbers.contains_key(&id));
        !step.temporary && known && !matches!(action, Action::Skip | Action::Inherit(_))
    }

    fn table_locks(
        &self,
        plan: &Plan<'_>,
        really: bool,
        executor: &mut dyn Executor,
    ) -> Result<Unlocked> {
        let mut unlocked = Vec::new();
        for (step, file, lock, of_table) in plan.locks(&plan.steps) {
            if of_table && (executor.is_paper() || self.has(step)) {
                let refused = table_lock(step.fd, file, lock, really, executor)?;
                unlocked.extend(refused.map(|line| format!("{}: {line}", plan.name(step))));
            }
        }
        Ok(unlocked)
    }
}

/// Takes a POSIX lock, or tests whether it can be taken. Gives a line if not.
fn table_lock(
    number: RawFd,
    file: &OpenFile,
    lock: &Lock,
    really: bool,
    executor: &mut dyn Executor,
) -> Result<Option<String>> {
    if !executor.is_paper() && !lock::is_of(file, executor.held(number)?.as_fd()) {
        return Ok(None);
    }
    let lock = lock.clone();
    let called = lock.describe();
    let operation = match really {
        true => Operation::Lock { number, lock },
        false => Operation::TestLock { number, lock },
    };
    match executor.run(&operation)? {
        Outcome::Refused(why) => Ok(Some(format!("{called}: {why}"))),
        _ => Ok(None),
    }
}

/// Refuses what cannot be locked, with status 6, or says it where descriptors may be missing too.
pub(crate) fn refuse_unlocked(
    unlocked: Unlocked,
    options: &RestoreOptions,
    warnings: &mut Vec<String>,
    say: &mut dyn FnMut(&str),
) -> Result<()> {
    if options.missing == Missing::Fail {
        return refuse(&unlocked, say);
    }
    warnings.extend(unlocked);
    Ok(())
}

/// An error with the lines that led to it before it.
pub(crate) fn with_lines(err: Error, lines: &[String]) -> Error {
    match lines {
        [] => err,
        _ => Error::new(err.status(), lines.join("; ")),
    }
}
