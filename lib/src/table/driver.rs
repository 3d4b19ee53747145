//! The driver: restores one table, in any mode, by operations that an executor runs.
//!
//! Descriptions are opened in ascending order of their numbers, because the lowest free number is
//! then nearly always the right one. Operations that need all numbers of the table come after that.

use crate::error::{At, Error, Result};
use crate::image::{Lock, OpenFile};
use crate::kind::Prerequisite;
use crate::kind::context::{Held, OpenedTogether, RestoreContext, set_flags};
use crate::lock;
use crate::messages::Messages;
use crate::operation::{Operation, Origin, Outcome};
use crate::placement;
use crate::plan::{Action, Cure, Missing, Plan, Problem, RestoreOptions, Step, link_of, refuse};
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

/// The restore of a table, in progress.
pub struct TableRestore<'w, 's> {
    plan: &'s Plan<'s>,
    options: &'w RestoreOptions,
    /// The context that is passed to kinds.
    pub cx: RestoreContext<'s>,
    source: &'w mut dyn Source,
    store: Option<&'w Store<'w>>,
    /// The reasons why descriptors could not be restored.
    problems: Vec<Problem>,
    /// The results for files that were opened before the others, by file id.
    early: HashMap<u32, Result<()>>,
    placed: Placed,
    /// For each step of the plan: it is done.
    done: Vec<bool>,
}

/// The descriptors that are placed in a table.
#[derive(Debug, Default)]
struct Placed {
    /// The first number of each file, by file id.
    numbers: HashMap<u32, RawFd>,
    /// The actions taken in place of [`Action::Make`] for files that could not be opened, by file
    /// id.
    replaced: HashMap<u32, Action>,
}

/// A table that is restored, except for its POSIX locks.
pub struct RestoredTable<'p> {
    plan: &'p Plan<'p>,
    placed: Placed,
}

/// The locks that could not be taken, a line for each.
pub type Unlocked = Vec<String>;

impl<'w, 's> TableRestore<'w, 's> {
    /// A restore of the table of a plan, of which no step is done.
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

    /// Records the descriptors with which the process was forked.
    pub fn from_parent(&mut self, executor: &mut dyn Executor) -> Result<()> {
        let plan = self.plan;
        for step in plan.steps.iter().filter(|step| step.action == Action::FromParent) {
            let Some(id) = step.file else { continue };
            if let std::collections::hash_map::Entry::Vacant(entry) = self.placed.numbers.entry(id)
            {
                entry.insert(step.fd);
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

    /// Opens the files of kinds that are [`crate::kind::Kind::EARLY`].
    pub fn make_early(&mut self, executor: &mut dyn Executor) {
        let plan = self.plan;
        for step in plan.steps.iter().filter(|step| step.action == Action::Make) {
            let Some(file) = step.file.and_then(|id| plan.image.file(id)) else { continue };
            if plan.image.record(file.id).is_some_and(|record| record.is_early()) {
                let result = self.make_file(file, step.fd, executor);
                self.early.insert(file.id, result);
            }
        }
    }

    /// Does the steps that `which` selects and that are not done yet, by ascending number.
    pub fn make(
        &mut self,
        which: impl Fn(&Step) -> bool,
        executor: &mut dyn Executor,
    ) -> Result<()> {
        let plan = self.plan;
        let opens = |step: &&Step| matches!(step.action, Action::Make | Action::FromStore(_));
        let mut expected = 0;
        let mut at = 0;
        while let Some(step) = plan.steps.get(at) {
            if self.done[at] || !which(step) {
                expected = if self.done[at] { step.fd + 1 } else { expected };
                at += 1;
                continue;
            }
            let gap = (step.fd - expected) as usize;
            if gap > 0 {
                let run = plan.steps[at..].iter().take(gap).filter(opens).count();
                executor.fill_gap(expected, step.fd, run)?;
            }
            let count = match step.action {
                Action::FromStore(message) => {
                    let of_message = |step: &&Step| step.action == Action::FromStore(message);
                    let run = &plan.steps[at..];
                    let run = &run[..run.iter().take_while(of_message).count()];
                    self.receive(message, run, executor)?;
                    run.len()
                }
                _ => {
                    self.run_step(step, executor)?;
                    1
                }
            };
            self.done[at..at + count].fill(true);
            expected = step.fd + count as RawFd;
            at += count;
        }
        Ok(())
    }

    /// Receives the descriptions of a run of steps from the fdstore, in one message.
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
        self.place(&files, fds, &operations, executor)
    }

    /// Places descriptors, each by its operation. `ids` are the files, or the ids of
    /// [`Plan::closed_ends`]. On paper there are no descriptors.
    fn place(
        &mut self,
        ids: &[u32],
        fds: Vec<OwnedFd>,
        operations: &[Operation],
        executor: &mut dyn Executor,
    ) -> Result<()> {
        let held = executor.place(fds, operations)?;
        for (id, operation) in ids.iter().zip(operations) {
            if let Operation::Place { number, .. } = operation {
                self.placed.numbers.entry(*id).or_insert(*number);
            }
        }
        self.cx.held.extend(ids.iter().copied().zip(held.into_iter().map(Rc::new)));
        Ok(())
    }

    /// Does one step.
    fn run_step(&mut self, step: &Step, executor: &mut dyn Executor) -> Result<()> {
        let plan = self.plan;
        let number = step.fd;
        let file = step.file.and_then(|id| plan.image.file(id));
        let mut action = step.action;
        if let (Action::Dup, Some(file)) = (action, file) {
            action = self.placed.replaced.get(&file.id).copied().unwrap_or(action);
        }
        if let (Action::Make, Some(file)) = (action, file) {
            let early = self.early.remove(&file.id);
            let result = early.unwrap_or_else(|| self.make_file(file, number, executor));
            if let Err(why) = result {
                self.take_away(file, executor)?;
                action = self.options.missing.instead();
                if self.options.missing == Missing::Fail {
                    let line = format!("{}: {why}", plan.name(step));
                    self.problems.push(Problem { line, cure: Cure::Descriptor });
                } else {
                    let line = plan.describe_loss(step, action, &why.to_string());
                    self.cx.warnings.push(line);
                }
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
            (Action::Null, Some(file)) => self.make_substitute(file, number, executor)?,
            (Action::ClosedEnd, _) if executor.is_paper() => {
                let file = step.file.unwrap_or_default();
                executor.run(&Operation::Place { number, file, origin: Origin::ClosedEnd })?;
            }
            _ => (),
        }
        Ok(())
    }

    /// Opens a description and places it, unless it was opened together with another.
    fn make_file(
        &mut self,
        file: &OpenFile,
        number: RawFd,
        executor: &mut dyn Executor,
    ) -> Result<()> {
        self.plan.select_owner(&mut self.cx, file.id);
        if self.cx.held.contains_key(&file.id) {
            return self.seek(file);
        }
        let place = |file: u32, number| Operation::Place { number, file, origin: Origin::Opened };
        if executor.is_paper() {
            return self.place(&[file.id], Vec::new(), &[place(file.id, number)], executor);
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
        if let (Some(end), Some(&(id, number))) =
            (opened.closed_end, self.plan.closed_ends.get(&file.id))
        {
            ids.push(id);
            fds.push(end);
            operations.push(Operation::Place { number, file: file.id, origin: Origin::ClosedEnd });
        }
        self.place(&ids, fds, &operations, executor)?;
        self.seek(file)
    }

    /// Closes the descriptor of a file that failed after it was placed.
    fn take_away(&mut self, file: &OpenFile, executor: &mut dyn Executor) -> Result<()> {
        let placed = self.placed.numbers.remove(&file.id);
        let Some(number) = placed.filter(|_| self.cx.held.remove(&file.id).is_some()) else {
            return Ok(());
        };
        executor.run(&Operation::Close { number }).map(drop)
    }

    /// Opens and places the substitute of a file that cannot be restored.
    fn make_substitute(
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
        self.place(&[file.id], fds, &[place], executor)?;
        self.cx.nulled.insert(file.id);
        Ok(())
    }

    /// Sets the recorded position of a description, if its kind is seekable.
    fn seek(&self, file: &OpenFile) -> Result<()> {
        let path = file.flags & libc::O_PATH as u32 != 0;
        let is_seekable =
            || self.plan.image.record(file.id).is_some_and(|record| record.is_seekable());
        if file.pos == 0 || path || !is_seekable() {
            return Ok(());
        }
        let held = self.cx.held.get(&file.id).ok_or(Errno::EBADF)?;
        lseek(held.as_fd(), file.pos, Whence::SeekSet).at(|| "lseek").map(drop)
    }

    /// Ends the opening of descriptions. Fails with status 6 if some could not be restored, and says
    /// a line for each.
    pub fn end_making(
        &mut self,
        executor: &mut dyn Executor,
        messages: &mut Messages<'_>,
    ) -> Result<()> {
        executor.close_gaps()?;
        refuse(&self.problems, messages)
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

    /// Runs the operations that need all descriptors of the table to be placed: it finishes
    /// descriptions, sets owners and O_ASYNC, and then takes the locks of descriptions.
    ///
    /// The process that opens a file for several tasks also finishes it. A file whose record refers
    /// to numbers is finished by the task that owns it, which also sets its owner and takes its
    /// locks.
    pub fn finish(&mut self, executor: &mut dyn Executor) -> Result<Unlocked> {
        let plan = self.plan;
        let mut with_locks: Vec<(&Step, &OpenFile, RawFd)> = Vec::new();
        let mut finished: Vec<&OpenFile> = Vec::new();
        for step in &plan.steps {
            let Some(file) = step.file.and_then(|id| plan.image.file(id)) else { continue };
            let Some(record) = plan.image.record(file.id) else { continue };
            let number = self.placed.numbers.get(&file.id).copied();
            let Some(number) = number.filter(|_| !self.cx.nulled.contains(&file.id)) else {
                continue;
            };
            let refers_to_numbers = record.prerequisite(file) == Prerequisite::Numbers;
            let (opened, owned) = match step.action {
                Action::Make => (true, !plan.owner_tasks.contains_key(&file.id)),
                Action::FromStore(_) | Action::FromParent => {
                    (false, plan.owned_files.contains(&file.id))
                }
                _ => continue,
            };
            if self.placed.replaced.contains_key(&file.id) {
                continue;
            }
            if if refers_to_numbers { owned } else { opened } {
                self.finish_file(file, number, executor)
                    .at(|| format!("fd {number}: {}", link_of(file)))?;
                finished.push(file);
            }
            if owned && plan.lowest.get(&file.id) == Some(&step.fd) {
                self.set_signal_owner(file, number, executor)?;
                if !file.locks.is_empty() {
                    with_locks.push((step, file, number));
                }
            }
        }
        for file in finished {
            let held = self.cx.held.get(&file.id).cloned();
            let record = plan.image.record(file.id);
            if let (Some(held), Some(record)) = (held, record) {
                record.finish_last(file, held.as_fd(), &mut self.cx)?;
            }
        }
        // open(2) of the same file after a lease was taken would break the lease.
        let mut unlocked = Vec::new();
        for (step, file, number) in with_locks {
            self.take_file_locks(step, file, number, executor, &mut unlocked)?;
        }
        self.close_temporary(executor)?;
        Ok(unlocked)
    }

    /// Runs the operation of a description, and finishes it.
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

    /// Sets the owner and the signal of a description, and O_ASYNC.
    fn set_signal_owner(
        &mut self,
        file: &OpenFile,
        number: RawFd,
        executor: &mut dyn Executor,
    ) -> Result<()> {
        if let Some(signals) = &file.signals {
            let id = self.cx.current_id(signals.kind, signals.id);
            if id.is_none() && signals.id != 0 {
                let line = format!(
                    "fd {number}: its owner, process or group {}, is not restored: it is not made \
                     here; run fdrestore by setsid(1), if it is the group of COMMAND",
                    signals.id
                );
                self.cx.warnings.push(line);
            }
            // No process can handle these: the first input would end or stop it. Only a forged image
            // has them.
            if [libc::SIGKILL, libc::SIGSTOP].contains(&signals.signal) {
                let signal = signals.signal;
                let line = format!("fd {number}: signal {signal} for its owner is not restored");
                self.cx.warnings.push(line);
                return Ok(());
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

    /// Takes the locks of a description. This is run in the task that owns the file: /proc/locks
    /// shows that process, and the kernel sends it the signal of a lease, with the number.
    fn take_file_locks(
        &mut self,
        step: &Step,
        file: &OpenFile,
        number: RawFd,
        executor: &mut dyn Executor,
        unlocked: &mut Unlocked,
    ) -> Result<()> {
        if let Some(held) = self.cx.held.get(&file.id) {
            if lock::is_substitute(file, held.as_fd()) {
                return Ok(());
            }
        }
        let name = self.plan.name(step);
        for lock in &file.locks {
            let line = |why: &str| format!("{name}: {}: {why}", lock.describe());
            // A lease that is being broken has lost its former type, and the process that breaks it
            // waits in open(2). A lock of another class is from a newer version.
            if lock.breaking || !["FLOCK", "OFDLCK", "LEASE"].contains(&lock.class.as_str()) {
                self.cx.warnings.push(line("it is not taken again"));
                continue;
            }
            let outcome = executor.run(&Operation::Lock { number, lock: lock.clone() })?;
            if let Outcome::Refused(why) = outcome {
                unlocked.push(line(&why));
            } else if lock.class == "LEASE" {
                let signals = file.signals.as_ref();
                let owner = signals.and_then(|it| self.cx.current_id(it.kind, it.id));
                // F_SETLEASE makes the calling process the owner, if the description has none.
                let no_owner = Operation::Owner { number, owner: Some((1, 0)), signal: 0 };
                if owner.is_none() && executor.run(&no_owner).is_err() {
                    unlocked.push(line("its owner is now fdrestore, and could not be cleared"));
                }
            }
        }
        Ok(())
    }

    /// Closes the numbers that were needed only until all queues were filled.
    fn close_temporary(&mut self, executor: &mut dyn Executor) -> Result<()> {
        for step in self.plan.steps.iter().filter(|step| step.temporary) {
            let closed_end =
                step.file.and_then(|id| self.plan.closed_ends.get(&id)).map(|(id, _)| *id);
            let id = if step.action == Action::ClosedEnd { closed_end } else { step.file };
            let Some(id) = id else { continue };
            let held = self.cx.held.remove(&id).or_else(|| self.cx.inherited.remove(&id));
            if held.is_some() || executor.is_paper() {
                executor.run(&Operation::Close { number: step.fd })?;
            }
        }
        Ok(())
    }

    /// Closes all descriptions that were placed, after they were sent to the fdstore: calls `close`
    /// with those in the table.
    pub(crate) fn close_placed(&mut self, mut close: impl FnMut(PlacedFd)) {
        self.placed.numbers.clear();
        for (_, held) in self.cx.held.drain() {
            if let Some(Held::Placed(placed)) = Rc::into_inner(held) {
                close(placed);
            }
        }
    }

    /// Ends the restore. The rest, the POSIX locks of the table, needs only the plan.
    pub fn end<'p>(self, plan: &'p Plan<'p>) -> RestoredTable<'p> {
        RestoredTable { plan, placed: self.placed }
    }

    /// Tests whether the POSIX locks of the table can be taken.
    pub fn test_table_locks(&self, executor: &mut dyn Executor) -> Result<Unlocked> {
        self.placed.table_locks(self.plan, false, executor)
    }
}

impl RestoredTable<'_> {
    /// Takes the POSIX locks of the table. These are the last operations: to close a descriptor of
    /// the inode, or to copy the table, would drop the locks (fcntl(2)).
    pub fn take_table_locks(&self, executor: &mut dyn Executor) -> Result<Unlocked> {
        self.placed.table_locks(self.plan, true, executor)
    }

    /// Shrinks the table to the size for its highest number. A larger table only takes memory: if
    /// that fails, for example because a filter denies it, the result is a warning.
    pub fn shrink(&self, executor: &mut dyn Executor) -> Option<String> {
        let capacity = placement::capacity(self.plan.highest());
        let failed = executor.run(&Operation::Shrink { capacity }).err()?;
        Some(format!("the descriptor table stays larger than needed: {failed}"))
    }

    /// The restored numbers that are close-on-exec in the image.
    pub fn close_on_exec(&self) -> Vec<RawFd> {
        let restored = |step: &&Step| step.cloexec && self.placed.has(step);
        self.plan.steps.iter().filter(restored).map(|step| step.fd).collect()
    }
}

impl Placed {
    /// Reports whether a step has placed a descriptor of the image, which stays open.
    fn has(&self, step: &Step) -> bool {
        let replaced = step.file.and_then(|id| self.replaced.get(&id));
        let action = replaced.copied().unwrap_or(step.action);
        let known = step.file.is_some_and(|id| self.numbers.contains_key(&id));
        !step.temporary && known && !matches!(action, Action::Skip | Action::Inherit(_))
    }

    /// Takes the POSIX locks of the table, or tests whether they can be taken.
    fn table_locks(
        &self,
        plan: &Plan<'_>,
        take: bool,
        executor: &mut dyn Executor,
    ) -> Result<Unlocked> {
        let mut unlocked = Vec::new();
        for (step, file, lock, of_table) in plan.locks(&plan.steps) {
            if of_table && (executor.is_paper() || self.has(step)) {
                let refused = table_lock(step.fd, file, lock, take, executor)?;
                unlocked.extend(refused.map(|line| format!("{}: {line}", plan.name(step))));
            }
        }
        Ok(unlocked)
    }
}

/// Takes a POSIX lock, or tests whether it can be taken. Returns a line if not.
fn table_lock(
    number: RawFd,
    file: &OpenFile,
    lock: &Lock,
    take: bool,
    executor: &mut dyn Executor,
) -> Result<Option<String>> {
    if !executor.is_paper() && lock::is_substitute(file, executor.held(number)?.as_fd()) {
        return Ok(None);
    }
    let lock = lock.clone();
    let name = lock.describe();
    let operation = match take {
        true => Operation::Lock { number, lock },
        false => Operation::TestLock { number, lock },
    };
    match executor.run(&operation)? {
        Outcome::Refused(why) => Ok(Some(format!("{name}: {why}"))),
        _ => Ok(None),
    }
}

/// Fails with status 6 if locks could not be taken, and adds each to the problems. Unless
/// [`Missing::Fail`] is set, adds them to the warnings instead.
pub(crate) fn refuse_unlocked(
    unlocked: Unlocked,
    options: &RestoreOptions,
    warnings: &mut Messages<'_>,
    problems: &mut Messages<'_>,
) -> Result<()> {
    if options.missing == Missing::Fail {
        let problem = |line| Problem { line, cure: Cure::Lock };
        return refuse(&unlocked.into_iter().map(problem).collect::<Vec<Problem>>(), problems);
    }
    warnings.extend(unlocked);
    Ok(())
}

/// An error whose text is these lines; the error itself if there are none.
pub(crate) fn with_lines(err: Error, lines: &[String]) -> Error {
    match lines {
        [] => err,
        _ => Error::new(err.status(), lines.join("; ")),
    }
}
