//! Restoring the table of a task, and filling the fdstore.

use super::exec::{LEFT, leaves_locks};
use super::layout::{numbers, ranges, wanted};
use super::state::{BORN, Before, LOCK, RESTORED, Services, TreeRestore};
use crate::error::{At, Error, Result};
use crate::kind::context::RestoreContext;
use crate::placement::{self, Placement};
use crate::plan::{Action, Plan};
use crate::sys::{self, PlacedFd};
use crate::table::driver::{self, With, Work, place};
use crate::table::fdstore::Store;
use crate::table::shrink;
use crate::table::stats::Meter;
use nix::errno::Errno;
use std::collections::HashMap;
use std::convert::Infallible;
use std::os::fd::{AsFd, RawFd};

impl TreeRestore<'_> {
    /// Makes what several tasks have, as far as it can be made by now, and puts it into the store.
    pub(super) fn stock<'s>(
        &'s self,
        store: &mut Store<'_>,
        cx: &mut RestoreContext<'s>,
        last: bool,
    ) -> Result<()> {
        let plan = &self.tree.common;
        let with = With::default();
        let mut problems = Vec::new();
        for (id, from) in &self.tree.handed {
            cx.handed.insert(*id, PlacedFd::inherited(*from)?);
        }
        let mut work = Work::new(plan, self.options, cx, &with);
        if !last {
            work.early();
        }
        work.make(|step| step.passed != last)?;
        let made = work.end(&mut |line| problems.push(line.to_owned()));
        made.map_err(|err| listed(err, &problems))?;
        let unlocked = driver::late(plan, cx)?;
        self.go_without(unlocked, cx)?;
        for message in self.tree.messages.iter().filter(|message| message.last == last) {
            let placed = |id: &u32| match cx.placed_fds.get(id) {
                Some(placed) => Ok(*placed),
                None => self.handed(*id),
            };
            let placed_fds = message.files.iter().map(placed).collect::<Result<Vec<PlacedFd>>>()?;
            store.put(&placed_fds.iter().map(AsFd::as_fd).collect::<Vec<_>>())?;
        }
        cx.placed_fds.drain().for_each(|(_, placed)| placed.close());
        Ok(())
    }

    /// Refuses what cannot be locked, or says it: [`driver::go_without`].
    pub(super) fn go_without(
        &self,
        unlocked: Vec<String>,
        cx: &mut RestoreContext<'_>,
    ) -> Result<()> {
        let mut problems = Vec::new();
        let mut say = |line: &str| problems.push(line.to_owned());
        let gone = driver::go_without(unlocked, self.options, &mut cx.warnings, &mut say);
        gone.map_err(|err| listed(err, &problems))
    }

    /// The caller's descriptor that stands for a file.
    pub(super) fn handed(&self, id: u32) -> Result<PlacedFd> {
        let from = self.tree.handed.get(&id).copied().ok_or(Errno::EBADF)?;
        Ok(PlacedFd::inherited(from)?)
    }

    /// One that has a table of its own.
    pub(super) fn own(&self, at: usize, before: Before<'_>) -> Result<Infallible> {
        let plan = self.tree.tables[at].as_ref().ok_or(Errno::EBADF)?;
        let mut meter = self.meter();
        let services = self.newborn(plan, before, &mut meter)?;
        meter.placed();
        let store = services.store.map(|placed| Store::seated(placed, (self.shared, LOCK)));
        let mut cx = plan.cx(self.source, self, services.root, self.options.changed);
        cx.moved = self.moved.borrow().clone();
        let with = With { handed: HashMap::new(), store: store.as_ref(), filler: services.store };
        let mut work = Work::new(plan, self.options, &mut cx, &with);
        self.children(at, services, &with, Some(&mut work))?;
        self.arrive(at, BORN);
        self.join(at)?;
        work.cx.anywhere = self.options.placement == Placement::Late;
        work.early();
        work.make(|_| true)?;
        let mut problems = Vec::new();
        let made = work.end(&mut |line| problems.push(line.to_owned()));
        made.map_err(|err| listed(err, &problems))?;
        work.settle()?;
        let mut unlocked = driver::late(plan, &mut cx)?;
        self.foreground(at)?;
        self.surround(at)?;
        services.all().for_each(PlacedFd::close);
        self.fit(at, plan, services, &mut meter)?;
        match leaves_locks(self.mode, self.tree.sharers[at], plan) {
            true => unlocked.push(LEFT.to_owned()),
            false => unlocked.extend(driver::of_table(plan, true)),
        }
        self.go_without(unlocked, &mut cx)?;
        cx.warnings.iter().for_each(|line| self.shared.say(at, line));
        self.arrive(at, RESTORED);
        self.reap_stand_ins(at);
        if self.mode.holds() {
            let cloexec = plan.steps.iter().filter(|step| step.cloexec && driver::stands(step));
            let cloexec: Vec<RawFd> = cloexec.map(|step| step.fd).collect();
            for (first, last) in ranges(&cloexec) {
                sys::close_on_exec(first, last).at(|| "FD_CLOEXEC")?;
            }
        }
        self.put_down(at, &meter, store.as_ref().map_or(0, Store::messages));
        self.go_on(at, plan)
    }

    /// Finds our own descriptors a place, closes what the task does not want of its parent's, and
    /// takes a smaller table if it was born with a larger one than it needs.
    pub(super) fn newborn(
        &self,
        plan: &Plan<'_>,
        before: Before<'_>,
        meter: &mut Meter<'_>,
    ) -> Result<Services> {
        let numbers = numbers(plan);
        let owner = self.by_pid.get(&plan.task.pid);
        let sharers = owner.map_or(1, |&owner| self.tree.sharers[owner]);
        let table = wanted(&numbers, sharers, self.limits.1);
        let Before { services: Services { store, root }, stands } = before;
        let mut placed = [store, root];
        place(&mut placed, self.options.placement, &table)?;
        let services = Services { store: placed[0], root: placed[1] };
        let stays = |fd: &RawFd| {
            let step = plan.steps.binary_search_by_key(fd, |step| step.fd);
            step.is_ok_and(|at| plan.steps[at].action == Action::FromParent) || services.has(*fd)
        };
        let strays: Vec<RawFd> = stands.iter().copied().filter(|fd| !stays(fd)).collect();
        for (first, last) in ranges(&strays) {
            sys::close_range(first, last).at(|| "close_range")?;
        }
        let highest = stands.last().map(|&fd| fd as u32);
        let born = placement::capacity(before.services.highest().max(highest));
        let need = placement::capacity(services.highest().max(numbers.last().copied()));
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
        services: Services,
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

/// An error with what led to it before it.
pub(super) fn listed(err: Error, problems: &[String]) -> Error {
    match problems {
        [] => err,
        _ => Error::new(err.status(), problems.join("; ")),
    }
}
