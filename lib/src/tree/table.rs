//! Restoring the table of a task, and filling the fdstore.

use super::exec::{LEFT, leaves_locks};
use super::layout::{placement_request, ranges, table_numbers};
use super::state::{BORN, Before, RESTORED, ServiceNumbers, Services, TreeRestore};
use crate::error::{At, Result};
use crate::kind::context::Held;
use crate::operation::Operation;
use crate::placement::{self, Placement};
use crate::plan::{Action, Plan};
use crate::table::driver::{TableRestore, refuse_unlocked, with_lines};
use crate::table::executor::Executor;
use crate::table::fdstore::Store;
use crate::table::own::Own;
use crate::table::services::place;
use crate::table::shrink;
use crate::table::source::Anew;
use crate::table::stats::Meter;
use nix::errno::Errno;
use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::rc::Rc;

impl TreeRestore<'_> {
    /// Makes what several tasks have, as far as it can be made by now, and puts it into the store.
    pub(super) fn stock(
        &self,
        store: &mut Store<'_>,
        common: &mut TableRestore<'_, '_>,
        own: &mut Own<'_>,
        last: bool,
    ) -> Result<()> {
        for (id, from) in &self.tree.inherited {
            let held = Held::Placed(self.table.at(*from)?);
            common.cx.inherited.insert(*id, Rc::new(held));
        }
        if !last {
            common.make_early(own);
        }
        common.make(|step| step.passed != last, own)?;
        let mut problems = Vec::new();
        let made = common.end_making(own, &mut |line| problems.push(line.to_owned()));
        made.map_err(|err| with_lines(err, &problems))?;
        let unlocked = common.finish(own)?;
        self.go_without(unlocked, &mut common.cx.warnings)?;
        for message in self.tree.messages.iter().filter(|message| message.needs_processes == last) {
            let held = |id: &u32| common.cx.descriptor(*id).ok_or(Errno::EBADF);
            let held = message.files.iter().map(held).collect::<nix::Result<Vec<Rc<Held>>>>()?;
            let fds: Vec<BorrowedFd<'_>> = held.iter().map(|held| held.as_fd()).collect();
            store.put(&fds)?;
        }
        common.forget(|placed| self.table.close(placed));
        own.forget_moves();
        Ok(())
    }

    /// Refuses what cannot be locked, or says it: [`refuse_unlocked`].
    pub(super) fn go_without(
        &self,
        unlocked: Vec<String>,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        let mut problems = Vec::new();
        let mut say = |line: &str| problems.push(line.to_owned());
        let gone = refuse_unlocked(unlocked, self.options, warnings, &mut say);
        gone.map_err(|err| with_lines(err, &problems))
    }

    /// One that has a table of its own.
    pub(super) fn own(&self, at: usize, before: Before<'_>) -> Result<Infallible> {
        let plan = self.tree.tables[at].as_ref().ok_or(Errno::EBADF)?;
        let mut meter = self.meter();
        let services = self.newborn(plan, before, &mut meter)?;
        meter.placed();
        let service_numbers = services.numbers();
        let store = services.store(self.shared);
        let root = services.root.as_ref().map(AsFd::as_fd);
        let mut cx = plan.context(self.source, self, root, self.options.changed);
        cx.moved = self.moved.borrow().clone();
        let mut own = Own::new(&self.table, Placement::Tight, service_numbers.store);
        let mut anew = Anew;
        let mut restore = TableRestore::new(plan, self.options, cx, &mut anew, store.as_ref());
        restore.from_parent(&mut own)?;
        self.children(at, service_numbers, store.as_ref(), Some((&mut restore, &mut own)))?;
        self.arrive(at, BORN);
        self.join(at)?;
        own.set_late(self.options.placement == Placement::Late);
        restore.make_early(&mut own);
        restore.make(|_| true, &mut own)?;
        let mut problems = Vec::new();
        let made = restore.end_making(&mut own, &mut |line| problems.push(line.to_owned()));
        made.map_err(|err| with_lines(err, &problems))?;
        restore.settle(&mut own)?;
        let mut unlocked = restore.finish(&mut own)?;
        self.foreground(at)?;
        self.surround(at)?;
        let messages = store.as_ref().map_or(0, Store::messages);
        let mut warnings = std::mem::take(&mut restore.cx.warnings);
        let restored = restore.end(plan);
        services.close(&self.table);
        self.fit(at, plan, service_numbers, &mut meter)?;
        match leaves_locks(self.mode, self.tree.sharers[at], plan) {
            true => unlocked.push(LEFT.to_owned()),
            false => unlocked.extend(restored.take_table_locks(&mut own)?),
        }
        self.go_without(unlocked, &mut warnings)?;
        warnings.iter().for_each(|line| self.shared.say(at, line));
        self.arrive(at, RESTORED);
        self.reap_stand_ins(at);
        let cloexec = restored.close_on_exec();
        if self.mode.holds() {
            for (first, last) in ranges(&cloexec) {
                own.run(&Operation::CloseOnExec { first, last })?;
            }
        }
        self.put_down(at, &meter, messages);
        self.go_on(at, &cloexec)
    }

    /// Finds our own descriptors a place, closes what the task does not want of its parent's, and
    /// takes a smaller table if it was born with a larger one than it needs.
    pub(super) fn newborn(
        &self,
        plan: &Plan<'_>,
        before: Before<'_>,
        meter: &mut Meter<'_>,
    ) -> Result<Services> {
        let numbers = table_numbers(plan);
        let owner = self.by_pid.get(&plan.task.pid);
        let sharers = owner.map_or(1, |&owner| self.tree.sharers[owner]);
        let table = placement_request(&numbers, sharers, self.limits.1);
        let Before { services, stands } = before;
        let known = |number: Option<RawFd>| number.map(|number| self.table.known(number));
        let mut placed = [known(services.store), known(services.root)];
        place(&self.table, &mut placed, self.options.placement, &table)?;
        let [store, root] = placed;
        let services = Services { store, root };
        let service_numbers = services.numbers();
        let stays = |fd: &RawFd| {
            let step = plan.steps.binary_search_by_key(fd, |step| step.fd);
            step.is_ok_and(|at| plan.steps[at].action == Action::FromParent)
                || service_numbers.has(*fd)
        };
        let strays: Vec<RawFd> = stands.iter().copied().filter(|fd| !stays(fd)).collect();
        for (first, last) in ranges(&strays) {
            self.table.close_range(first, last).at(|| "close_range")?;
        }
        let highest = stands.last().map(|&fd| fd as u32);
        let born = placement::capacity(before.services.highest().max(highest));
        let need = placement::capacity(service_numbers.highest().max(numbers.last().copied()));
        if self.options.placement == Placement::Tight && born > need {
            if self.stats_page.is_some() {
                meter.look()?;
            }
            shrink::now().at(|| "shrink the table")?;
        }
        Ok(services)
    }

    /// Takes a smaller table if our own descriptors, or those on the way, may have made it larger
    /// than it must be. A table that is shared cannot be made smaller by one of those who share it.
    pub(super) fn fit(
        &self,
        at: usize,
        plan: &Plan<'_>,
        services: ServiceNumbers,
        meter: &mut Meter<'_>,
    ) -> Result<()> {
        let wanted = plan.steps.iter().filter(|step| step.action != Action::Skip);
        let need = placement::capacity(plan.highest());
        // What is made needs a few numbers for a moment.
        let crowded = need.saturating_sub(wanted.count() as u64) < 4;
        let waited = plan.steps.last().map(|step| step.fd as u32);
        let grown = placement::capacity(services.highest().max(waited)) > need;
        let alone = self.tree.sharers[at] == 1;
        if self.options.placement == Placement::Tight && alone && (crowded || grown) {
            if self.stats_page.is_some() {
                meter.look()?;
            }
            shrink::now().at(|| "shrink the table")?;
        }
        Ok(())
    }
}
