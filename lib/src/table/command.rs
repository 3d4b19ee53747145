//! Command mode: the table of this process becomes that of a task, and an exec of COMMAND follows.

use crate::ctty;
use crate::error::{At, Error, Result, Status};
use crate::kind::context::CttyPlan;
use crate::operation::Operation;
use crate::placement::{self, Placement, TableNeeds};
use crate::plan::{Action, Missing, Plan, RestoreOptions, SingleTask, hard_limit, refuse};
use crate::proc::inode_of;
use crate::sys::own_table::{OwnTable, PlacedFd};
use crate::sys::{self, tty};
use crate::table::direct::DirectExecutor;
use crate::table::driver::{TableRestore, refuse_unlocked};
use crate::table::executor::{Executor, Paper};
use crate::table::services::{close_others, move_services, raise_limit};
use crate::table::shrink;
use crate::table::source::KindSource;
use crate::table::stats::Meter;
use crate::terminal;
use nix::sys::resource::{Resource, setrlimit};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd, RawFd};

/// Makes the table of this process what the plan says. `source` is the image. `meter` measures.
///
/// The descriptor that is given first is the stderr of the caller, if it has one: messages go there
/// although 2 may be COMMAND's by now; an exec closes it. The list that is given has the numbers
/// that were close-on-exec. Nothing outside this process is changed.
pub fn restore(
    plan: &Plan<'_>,
    options: &RestoreOptions,
    source: &[u8],
    root: Option<OwnedFd>,
    meter: Option<&mut Meter<'_>>,
) -> (Option<PlacedFd>, Result<Vec<RawFd>>) {
    let Some(table) = OwnTable::take() else {
        let why = "the descriptor table of this process was restored before";
        return (None, Err(Error::new(Status::System, why)));
    };
    let stderr = match sys::start::closed_at_start(2) {
        true => None,
        false => std::io::stderr().as_fd().try_clone_to_owned().ok(),
    };
    let mut services =
        Services { stderr: stderr.map(|fd| table.adopt(fd)), root: root.map(|fd| table.adopt(fd)) };
    let made = in_this_process(plan, options, source, &table, &mut services, meter);
    (services.stderr, made)
}

/// The operations that [`restore`] runs, without running them: by the executor on paper.
pub fn operations(plan: &Plan<'_>, options: &RestoreOptions) -> Result<Vec<Operation>> {
    let pids = SingleTask(plan.task);
    let cx = plan.context(&[], &pids, None, options.changed);
    let (mut paper, mut anew) = (Paper::default(), KindSource);
    let mut restore = TableRestore::new(plan, options, cx, &mut anew, None);
    restore.make_early(&mut paper);
    control(plan, options, &mut restore, &mut paper)?;
    restore.make(|_| true, &mut paper)?;
    restore.finish(&mut paper)?;
    if options.placement == Placement::Tight {
        paper.run(&Operation::Shrink { capacity: placement::capacity(plan.highest()) })?;
    }
    restore.end(plan).take_table_locks(&mut paper)?;
    Ok(paper.operations)
}

/// The service descriptors of command mode.
struct Services {
    stderr: Option<PlacedFd>,
    root: Option<PlacedFd>,
}

fn in_this_process(
    plan: &Plan<'_>,
    options: &RestoreOptions,
    source: &[u8],
    table: &OwnTable,
    services: &mut Services,
    mut meter: Option<&mut Meter<'_>>,
) -> Result<Vec<RawFd>> {
    // What stays at its number needs no service descriptor; what is copied waits behind one.
    let mut copied: Vec<RawFd> = Vec::new();
    let mut placed = vec![services.stderr.take(), services.root.take()];
    for step in &plan.steps {
        let Action::Inherit(from) = step.action else { continue };
        if from != step.fd && !copied.contains(&from) {
            let copy = table.at(from)?.as_fd().try_clone_to_owned()?;
            placed.push(Some(table.adopt(copy)));
            copied.push(from);
        }
    }
    let numbers: Vec<u32> = plan.steps.iter().map(|step| step.fd as u32).collect();
    let limits = raise_limit(numbers.last().copied())?;
    let wanted = TableNeeds {
        numbers: &numbers,
        highest_inherited: copied.iter().map(|&from| from as u32).max(),
        sharers: 1,
        min_capacity: placement::capacity(numbers.last().copied()),
        limit: limits.1.min(u64::from(u32::MAX)) as u32,
    };
    let outcome = move_services(table, &mut placed, options.placement, &wanted);
    let of_caller = placed.split_off(2);
    (services.root, services.stderr) = (placed.pop().flatten(), placed.pop().flatten());
    outcome?;
    if let Some(meter) = &mut meter {
        meter.services_placed();
    }
    let inherited: HashMap<RawFd, PlacedFd> =
        copied.into_iter().zip(of_caller.into_iter().flatten()).collect();
    let stays = plan.steps.iter().filter(|step| step.action == Action::Inherit(step.fd));
    let mut keep: Vec<RawFd> = stays.map(|step| step.fd).collect();
    let ours = services.stderr.iter().chain(&services.root).chain(inherited.values());
    keep.extend(ours.map(PlacedFd::number));
    keep.sort_unstable();
    close_others(table, &keep)?;
    let filler = services.stderr.as_ref().map(PlacedFd::number);
    let mut own = DirectExecutor::new(table, options.placement, filler).with_inherited(inherited);
    let pids = SingleTask(plan.task);
    let root = services.root.as_ref().map(AsFd::as_fd);
    let cx = plan.context(source, &pids, root, options.changed);
    let mut anew = KindSource;
    let mut restore = TableRestore::new(plan, options, cx, &mut anew, None);
    let stderr = services.stderr.as_ref();
    let built = build(plan, options, &mut restore, &mut own, &mut |line| say(stderr, line));
    restore.cx.warnings.iter().for_each(|line| say(stderr, line));
    let restored = restore.end(plan);
    own.close_inherited();
    let highest = plan.highest();
    services.root.take().into_iter().for_each(|root| table.close(root));
    // Above the table that COMMAND needs, the way to say that it cannot run is not worth a table.
    let above = |it: &PlacedFd| it.number() as u64 >= placement::capacity(highest);
    if built.is_ok() && services.stderr.as_ref().is_some_and(above) {
        services.stderr.take().into_iter().for_each(|stderr| table.close(stderr));
    }
    built?;
    if limits.0 != limits.1 {
        setrlimit(Resource::RLIMIT_NOFILE, limits.0, hard_limit()?)?;
    }
    if let Some(meter) = meter {
        meter.measure_size()?;
    }
    if options.placement == Placement::Tight {
        shrink::to(placement::capacity(highest)).at(|| "shrink the table")?;
    }
    // The exec closes it, and with it would go the locks of a log that COMMAND has locked.
    if services.stderr.as_ref().is_some_and(|stderr| is_locked(plan, table, stderr)) {
        services.stderr.take().into_iter().for_each(|stderr| table.close(stderr));
    }
    let unlocked = restored.take_table_locks(&mut own)?;
    if options.missing == Missing::Fail {
        refuse(&unlocked, &mut |line| say(services.stderr.as_ref(), line))?;
    }
    Ok(restored.close_on_exec())
}

/// Writes a line to the stderr of the caller.
fn say(stderr: Option<&PlacedFd>, line: &str) {
    if let Some(stderr) = stderr {
        let _ = nix::unistd::write(stderr.as_fd(), format!("fdrestore: {line}\n").as_bytes());
    }
}

/// Makes all that the plan says.
fn build(
    plan: &Plan<'_>,
    options: &RestoreOptions,
    restore: &mut TableRestore<'_, '_>,
    executor: &mut dyn Executor,
    say: &mut dyn FnMut(&str),
) -> Result<()> {
    restore.make_early(executor);
    control(plan, options, restore, executor)?;
    restore.make(|step| !step.before_fork, executor)?;
    restore.end_making(executor, say)?;
    restore.move_to_final(executor)?;
    let mut unlocked = restore.finish(executor)?;
    unlocked.extend(restore.test_table_locks(executor)?);
    refuse_unlocked(unlocked, options, &mut restore.cx.warnings, say)
}

/// Gives the process its controlling terminal, through a descriptor that is no part of the table. A
/// line says that it cannot be had; COMMAND runs without.
fn control(
    plan: &Plan<'_>,
    options: &RestoreOptions,
    restore: &mut TableRestore<'_, '_>,
    executor: &mut dyn Executor,
) -> Result<()> {
    let Some(old) = &plan.task.terminal else { return Ok(()) };
    let name = terminal::name(tty::numbers(old.device));
    let operation = Operation::ControllingTerminal { name: name.clone(), steal: options.steal };
    if executor.is_paper() {
        let takes = matches!(
            plan.terminal,
            CttyPlan::FromImage(_) | CttyPlan::FromCaller(_) | CttyPlan::FromPath(_)
        );
        return if takes { executor.run(&operation).map(drop) } else { Ok(()) };
    }
    let cx = &mut restore.cx;
    let taken = match &plan.terminal {
        CttyPlan::None | CttyPlan::Kept | CttyPlan::Session(_) => return Ok(()),
        CttyPlan::Unavailable(why) => {
            cx.warnings.push(why.clone());
            return Ok(());
        }
        CttyPlan::FromImage(id) => match cx.held.get(id) {
            Some(held) => executor.control(held.as_fd(), &operation),
            None => return Ok(()),
        },
        CttyPlan::FromCaller(fd) => {
            let step = plan.steps.iter().find(|step| step.fd == *fd);
            let from = match step.map(|step| step.action) {
                Some(Action::Inherit(from)) => from,
                _ => *fd,
            };
            let held = executor.inherited(from)?;
            executor.control(held.as_fd(), &operation)
        }
        CttyPlan::FromPath(path) => ctty::open(path, old.device, cx)
            .and_then(|terminal| executor.control(terminal.as_fd(), &operation)),
    };
    let cx = &mut restore.cx;
    if let Err(why) = taken {
        cx.warnings.push(format!("{name}, its controlling terminal, is not COMMAND's: {why}"));
    } else if old.foreground > 0 && cx.current_id(2, old.foreground).is_none() {
        // A session leader that takes a terminal is its foreground group too.
        let why = "is not restored: COMMAND is in the foreground";
        cx.warnings.push(format!("{name}: its foreground group {} {why}", old.foreground));
    }
    Ok(())
}

/// Reports whether to close this descriptor would drop a POSIX lock of the plan's table.
fn is_locked(plan: &Plan<'_>, table: &OwnTable, fd: &PlacedFd) -> bool {
    let key = |fd: &PlacedFd| inode_of(fd.as_fd()).map(|it| (it.dev, it.ino)).ok();
    let its = key(fd);
    let mut locks = plan.locks(&plan.steps);
    locks.any(|(step, .., of_table)| {
        of_table && table.at(step.fd).is_ok_and(|placed| key(&placed) == its)
    })
}
