//! Restoring the table of a task that has one of its own, and filling the fdstore.

use super::barrier::Stage;
use super::exec::{LOCKS_LOST, loses_locks};
use super::layout::{placement_request, ranges, table_numbers};
use super::state::{ServiceFds, ServiceNumbers, TableAtFork, TreeRestore};
use crate::error::{At, Error, Result};
use crate::kind::context::Held;
use crate::messages::Messages;
use crate::operation::Operation;
use crate::placement::{self, Placement};
use crate::plan::{Action, Plan, link_of};
use crate::table::direct::DirectExecutor;
use crate::table::driver::{TableRestore, refuse_unlocked, with_lines};
use crate::table::executor::Executor;
use crate::table::fdstore::Store;
use crate::table::services::move_services;
use crate::table::shrink;
use crate::table::source::KindSource;
use crate::table::stats::Meter;
use nix::errno::Errno;
use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::rc::Rc;

impl TreeRestore<'_> {
    /// Makes the files that several tasks have, and queues them in the fdstore. There are two
    /// rounds: files that name processes can be made only when all tasks are forked
    /// (`needs_processes`).
    ///
    /// Fails with status 6 if one cannot be made.
    pub(super) fn fill_store(
        &self,
        store: &mut Store<'_>,
        restore: &mut TableRestore<'_, '_>,
        own: &mut DirectExecutor<'_>,
        needs_processes: bool,
    ) -> Result<()> {
        if !needs_processes {
            for (id, from) in &self.tree.inherited {
                let held = Held::Placed(self.table.at(*from)?);
                restore.cx.inherited.insert(*id, Rc::new(held));
            }
            restore.make_early(own);
        }
        restore.make(|step| step.before_fork != needs_processes, own)?;
        let mut problems = Messages::kept();
        let made = restore.end_making(own, &mut problems);
        made.map_err(|err| with_lines(err, &problems.take()))?;
        let unlocked = restore.finish(own)?;
        let warnings = &mut restore.cx.warnings;
        let refused = refuse_unlocked(unlocked, self.options, warnings, &mut problems);
        refused.map_err(|err| with_lines(err, &problems.take()))?;
        for message in &self.tree.messages {
            if message.needs_processes != needs_processes {
                continue;
            }
            let held = |id: &u32| restore.cx.descriptor(*id).ok_or_else(|| self.lost_file(*id));
            let held = message.files.iter().map(held).collect::<Result<Vec<Rc<Held>>>>();
            let held = held.map_err(|err| with_lines(err, restore.cx.warnings.lines()))?;
            let fds: Vec<BorrowedFd<'_>> = held.iter().map(|held| held.as_fd()).collect();
            store.put(&fds)?;
        }
        restore.close_placed(|placed| self.table.close(placed));
        own.forget_moves();
        Ok(())
    }

    /// The error for a file of several tasks that could be restored when it was checked, and not when it
    /// was made. The tasks are planned with it by then, so that `--missing skip` cannot leave it out.
    fn lost_file(&self, id: u32) -> Error {
        let link = self.tree.image.file(id).map(link_of).unwrap_or_default();
        Error::unrestorable(format!("several tasks have it, and it has changed meanwhile: {link}"))
    }

    /// Restores a task that has a table of its own. It returns only to fail.
    pub(super) fn restore_table(
        &self,
        task: usize,
        at_fork: TableAtFork<'_>,
    ) -> Result<Infallible> {
        let state = self.state;
        let plan = self.tree.tables[task].as_ref().ok_or(Errno::EBADF)?;
        let mut meter = self.meter();
        let services = self.place_services(task, plan, at_fork, &mut meter)?;
        meter.services_placed();
        let service_numbers = services.numbers();
        let store = services.fdstore(state);
        let root = services.root.as_ref().map(AsFd::as_fd);
        let mut cx = plan.context(self.source, self, root, self.options);
        cx.renamed_paths = self.renamed_paths.borrow().clone();
        let mut own = DirectExecutor::new(&self.table, Placement::Tight, service_numbers.store);
        let mut by_kind = KindSource;
        let mut restore = TableRestore::new(plan, self.options, cx, &mut by_kind, store.as_ref());
        restore.from_parent(&mut own)?;
        self.fork_children(task, service_numbers, store.as_ref(), &mut |highest| {
            restore.make(|step| step.before_fork && Some(step.fd) <= highest, &mut own)?;
            own.close_gaps()
        })?;
        state.arrive(task, Stage::Forked);
        self.join_group(task)?;
        own.set_late(self.options.placement == Placement::Late);
        restore.make_early(&mut own);
        restore.make(|_| true, &mut own)?;
        let mut problems = Messages::passed(|line| state.problem(task, line));
        restore.end_making(&mut own, &mut problems)?;
        restore.move_to_final(&mut own)?;
        let mut unlocked = restore.finish(&mut own)?;
        self.set_foreground(task)?;
        self.restore_attributes(task)?;
        let messages = store.as_ref().map_or(0, Store::messages);
        let mut warnings = std::mem::take(&mut restore.cx.warnings);
        let restored = restore.end(plan);
        services.close(&self.table);
        if self.may_shrink(task, plan, service_numbers) {
            if self.stats.is_some() {
                meter.measure_size()?;
            }
            warnings.extend(restored.shrink(&mut own));
        }
        match loses_locks(self.mode, self.tree.sharers[task], plan) {
            true => unlocked.push(LOCKS_LOST.to_owned()),
            false => unlocked.extend(restored.take_table_locks(&mut own)?),
        }
        refuse_unlocked(unlocked, self.options, &mut warnings, &mut problems)?;
        warnings.lines().iter().for_each(|line| state.warn(task, line));
        state.arrive(task, Stage::Restored);
        self.reap_placeholder_leaders(task);
        let cloexec = restored.close_on_exec();
        if self.mode.holds() {
            set_close_on_exec(&cloexec, &mut own)?;
        }
        self.report_stats(task, &meter, messages);
        self.run_or_hold(task, &cloexec)
    }

    /// Moves the service descriptors to their numbers, closes what the task does not keep of its
    /// parent's table, and shrinks the table if fork(2) made it larger than the task needs.
    fn place_services(
        &self,
        task: usize,
        plan: &Plan<'_>,
        at_fork: TableAtFork<'_>,
        meter: &mut Meter<'_>,
    ) -> Result<ServiceFds> {
        let numbers = table_numbers(plan);
        let table = placement_request(&numbers, self.tree.sharers[task], self.limits.1);
        let known = |number: Option<RawFd>| number.map(|number| self.table.known(number));
        let mut placed = [known(at_fork.services.store), known(at_fork.services.root)];
        move_services(&self.table, &mut placed, self.options.placement, &table)?;
        let [store, root] = placed;
        let services = ServiceFds { store, root };
        let service_numbers = services.numbers();
        let stays = |fd: &RawFd| {
            let step = plan.steps.binary_search_by_key(fd, |step| step.fd);
            step.is_ok_and(|at| plan.steps[at].action == Action::FromParent)
                || service_numbers.has(*fd)
        };
        let others: Vec<RawFd> = at_fork.numbers.iter().copied().filter(|fd| !stays(fd)).collect();
        for (first, last) in ranges(&others) {
            self.table.close_range(first, last).at(|| "close_range")?;
        }
        let highest = at_fork.numbers.last().map(|&fd| fd as u32);
        let copied = placement::capacity(at_fork.services.highest().max(highest));
        let needed = placement::capacity(service_numbers.highest().max(numbers.last().copied()));
        if self.options.placement == Placement::Tight && copied > needed {
            if self.stats.is_some() {
                meter.measure_size()?;
            }
            if let Err(why) = shrink::now() {
                self.state.warn(task, &format!("its table stays larger than needed: {why}"));
            }
        }
        Ok(services)
    }

    /// Reports whether service descriptors, or descriptors that were open for a while, may have made
    /// the table larger than its highest number needs. A task cannot shrink a table that it shares.
    fn may_shrink(&self, task: usize, plan: &Plan<'_>, services: ServiceNumbers) -> bool {
        let wanted = plan.steps.iter().filter(|step| step.action != Action::Skip);
        let needed = placement::capacity(plan.highest());
        // Making a descriptor takes a few numbers for a moment.
        let crowded = needed.saturating_sub(wanted.count() as u64) < 4;
        let waiting = plan.steps.last().map(|step| step.fd as u32);
        let grown = placement::capacity(services.highest().max(waiting)) > needed;
        let alone = self.tree.sharers[task] == 1;
        self.options.placement == Placement::Tight && alone && (crowded || grown)
    }
}

/// Sets FD_CLOEXEC on ascending numbers.
pub(super) fn set_close_on_exec(numbers: &[RawFd], executor: &mut dyn Executor) -> Result<()> {
    for (first, last) in ranges(numbers) {
        executor.run(&Operation::CloseOnExec { first, last })?;
    }
    Ok(())
}
