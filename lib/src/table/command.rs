//! Command mode: this process restores the table of one task in itself, and then executes COMMAND.

use crate::ctty;
use crate::error::{At, Error, Result, Status};
use crate::kind::context::CttyPlan;
use crate::messages::{self, Messages};
use crate::operation::Operation;
use crate::placement::{self, Placement, TableNeeds};
use crate::plan::{Action, Plan, RestoreOptions, SingleTask, hard_limit};
use crate::proc::inode_of;
use crate::sys::own_table::{OwnTable, PlacedFd};
use crate::sys::{self, tty};
use crate::table::TOOL;
use crate::table::direct::DirectExecutor;
use crate::table::driver::{TableRestore, refuse_unlocked};
use crate::table::executor::{Executor, Paper};
use crate::table::services::{
    close_others, limits_for, move_services, raise_limit, service_numbers,
};
use crate::table::source::KindSource;
use crate::table::stats::Meter;
use crate::terminal;
use nix::sys::resource::{Resource, setrlimit};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd, RawFd};

/// Restores the table of a plan in this process. `source` has the bytes of the image.
///
/// Returns the stderr of the caller, if it has one, for further messages: number 2 may be one of
/// the restored descriptors. It is close-on-exec. The result is the list of numbers that are
/// close-on-exec in the image. Fails with status 6 if something cannot be restored, and with 7 for
/// other errors of the system.
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
        false => match std::io::stderr().as_fd().try_clone_to_owned() {
            Ok(stderr) => Some(table.adopt(stderr)),
            Err(why) => return (table.at(2).ok(), Err(why).at(|| "copy the descriptor of stderr")),
        },
    };
    let mut services = Services { stderr, root: root.map(|fd| table.adopt(fd)) };
    let made = in_this_process(plan, options, source, &table, &mut services, meter);
    (services.stderr, made)
}

/// The operations that [`restore`] would run: by the executor on paper.
///
/// The list does not contain the service descriptors. It has no close-on-exec flags, because COMMAND
/// gets the descriptors without them. Whether the table is larger than [`Operation::Shrink`] says is
/// known only when all operations before it have run.
pub fn operations(plan: &Plan<'_>, options: &RestoreOptions) -> Result<Vec<Operation>> {
    let pids = SingleTask(plan.task);
    let cx = plan.context(&[], &pids, None, options);
    let (mut paper, mut by_kind) = (Paper::default(), KindSource);
    let mut restore = TableRestore::new(plan, options, cx, &mut by_kind, None);
    restore.make_early(&mut paper);
    set_controlling_terminal(plan, options, &mut restore, &mut paper)?;
    restore.make(|_| true, &mut paper)?;
    restore.finish(&mut paper)?;
    restore.test_table_locks(&mut paper)?;
    let restored = restore.end(plan);
    if options.placement == Placement::Tight {
        restored.shrink(&mut paper);
    }
    restored.take_table_locks(&mut paper)?;
    Ok(paper.operations)
}

/// Fails with status 6 if the limit of open files leaves too few numbers for the service
/// descriptors of [`restore`]. `root` says whether the root directory is one of them.
pub fn check_room(plan: &Plan<'_>, options: &RestoreOptions, root: bool) -> Result<()> {
    let stderr = usize::from(!sys::start::closed_at_start(2));
    let request = ServiceRequest::new(plan, limits_for(last_number(plan))?);
    let count = stderr + usize::from(root) + request.copied.len();
    service_numbers(options.placement, &request.needs(), count).map(drop)
}

/// The soft limit of open files during a restore, if it is raised for it: RLIMIT_NOFILE.
pub fn raised_limit(plan: &Plan<'_>) -> Result<Option<u64>> {
    let (soft, during) = limits_for(last_number(plan))?;
    Ok((during > soft).then_some(during))
}

/// The highest number that is open in the table at any time.
fn last_number(plan: &Plan<'_>) -> Option<u32> {
    plan.steps.last().map(|step| step.fd as u32)
}

/// The table of a plan, for which numbers of service descriptors are sought.
struct ServiceRequest {
    numbers: Vec<u32>,
    /// The numbers of the caller's descriptors that are placed at other numbers. A copy of each is
    /// a service descriptor until then.
    copied: Vec<RawFd>,
    /// The soft limit of open files: before and during the restore.
    limits: (u64, u64),
}

impl ServiceRequest {
    fn new(plan: &Plan<'_>, limits: (u64, u64)) -> ServiceRequest {
        let mut copied: Vec<RawFd> = Vec::new();
        for step in &plan.steps {
            let Action::Inherit(from) = step.action else { continue };
            if from != step.fd && !copied.contains(&from) {
                copied.push(from);
            }
        }
        let numbers: Vec<u32> = plan.steps.iter().map(|step| step.fd as u32).collect();
        ServiceRequest { numbers, copied, limits }
    }

    fn needs(&self) -> TableNeeds<'_> {
        TableNeeds {
            numbers: &self.numbers,
            highest_inherited: self.copied.iter().map(|&from| from as u32).max(),
            sharers: 1,
            min_capacity: placement::capacity(self.numbers.last().copied()),
            limit: self.limits.1.min(u64::from(u32::MAX)) as u32,
        }
    }
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
    let request = ServiceRequest::new(plan, raise_limit(last_number(plan))?);
    let (copied, limits) = (&request.copied, request.limits);
    let mut placed = vec![services.stderr.take(), services.root.take()];
    for &from in copied {
        let copy = table.at(from)?.as_fd().try_clone_to_owned()?;
        placed.push(Some(table.adopt(copy)));
    }
    let moved = move_services(table, &mut placed, options.placement, &request.needs());
    let of_caller = placed.split_off(2);
    (services.root, services.stderr) = (placed.pop().flatten(), placed.pop().flatten());
    moved?;
    if let Some(meter) = &mut meter {
        meter.services_placed();
    }
    let inherited: HashMap<RawFd, PlacedFd> =
        copied.iter().copied().zip(of_caller.into_iter().flatten()).collect();
    let stays = plan.steps.iter().filter(|step| step.action == Action::Inherit(step.fd));
    let mut keep: Vec<RawFd> = stays.map(|step| step.fd).collect();
    let service_fds = services.stderr.iter().chain(&services.root).chain(inherited.values());
    keep.extend(service_fds.map(PlacedFd::number));
    keep.sort_unstable();
    close_others(table, keep)?;
    let filler = services.stderr.as_ref().map(PlacedFd::number);
    let mut executor =
        DirectExecutor::new(table, options.placement, filler).with_inherited(inherited);
    let pids = SingleTask(plan.task);
    let root = services.root.as_ref().map(AsFd::as_fd);
    let cx = plan.context(source, &pids, root, options);
    let mut by_kind = KindSource;
    let mut restore = TableRestore::new(plan, options, cx, &mut by_kind, None);
    let stderr = services.stderr.as_ref();
    let mut messages = to_stderr(stderr);
    let built = build(plan, options, &mut restore, &mut executor, &mut messages);
    messages.extend(restore.cx.warnings.take());
    drop(messages);
    let restored = restore.end(plan);
    executor.close_inherited();
    let highest = plan.highest();
    services.root.take().into_iter().for_each(|root| table.close(root));
    // If stderr is above the table that COMMAND needs, it is closed, so that the table can be
    // shrunk. An error of execve(2) is then not reported by a message.
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
    let mut warnings = Messages::kept();
    if options.placement == Placement::Tight {
        warnings.extend(restored.shrink(&mut executor));
    }
    // execve(2) closes stderr, which would drop the POSIX locks of the table on the same file.
    if services.stderr.as_ref().is_some_and(|stderr| is_locked(plan, table, stderr)) {
        services.stderr.take().into_iter().for_each(|stderr| table.close(stderr));
    }
    let unlocked = restored.take_table_locks(&mut executor)?;
    let stderr = services.stderr.as_ref();
    let mut messages = to_stderr(stderr);
    refuse_unlocked(unlocked, options, &mut warnings, &mut messages)?;
    messages.extend(warnings.take());
    Ok(restored.close_on_exec())
}

/// Messages that are written to the stderr of the caller.
fn to_stderr(stderr: Option<&PlacedFd>) -> Messages<'_> {
    Messages::passed(move |line| {
        if let Some(stderr) = stderr {
            messages::write(stderr.as_fd(), TOOL, &line);
        }
    })
}

/// Runs the driver for the plan, up to the POSIX locks of the table, which are only tested.
fn build(
    plan: &Plan<'_>,
    options: &RestoreOptions,
    restore: &mut TableRestore<'_, '_>,
    executor: &mut dyn Executor,
    messages: &mut Messages<'_>,
) -> Result<()> {
    restore.make_early(executor);
    set_controlling_terminal(plan, options, restore, executor)?;
    restore.make(|step| !step.before_fork, executor)?;
    restore.end_making(executor, messages)?;
    restore.move_to_final(executor)?;
    let mut unlocked = restore.finish(executor)?;
    unlocked.extend(restore.test_table_locks(executor)?);
    refuse_unlocked(unlocked, options, &mut restore.cx.warnings, messages)
}

/// Gives the process its controlling terminal. If that is not possible, a warning says so, and
/// COMMAND runs without one.
pub fn set_controlling_terminal(
    plan: &Plan<'_>,
    options: &RestoreOptions,
    restore: &mut TableRestore<'_, '_>,
    executor: &mut dyn Executor,
) -> Result<()> {
    let Some(recorded) = &plan.task.terminal else { return Ok(()) };
    let name = terminal::name(tty::numbers(recorded.device));
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
        CttyPlan::FromPath(path) => ctty::open(path, recorded.device, cx)
            .and_then(|terminal| executor.control(terminal.as_fd(), &operation)),
    };
    let cx = &mut restore.cx;
    if let Err(why) = taken {
        cx.warnings.push(format!("{name} is not the controlling terminal of COMMAND: {why}"));
    } else if recorded.foreground > 0 && cx.current_id(2, recorded.foreground).is_none() {
        // TIOCSCTTY makes the group of the session leader the foreground group of the terminal.
        let why = "is not restored: COMMAND is in the foreground";
        cx.warnings.push(format!("{name}: its foreground group {} {why}", recorded.foreground));
    }
    Ok(())
}

/// Reports whether closing a descriptor would drop a POSIX lock of the restored table: whether the
/// table has a lock on the same inode.
fn is_locked(plan: &Plan<'_>, table: &OwnTable, fd: &PlacedFd) -> bool {
    let key = |fd: &PlacedFd| inode_of(fd.as_fd()).map(|inode| inode.key()).ok();
    let inode = key(fd);
    let mut locks = plan.locks(&plan.steps);
    locks.any(|(step, .., of_table)| {
        of_table && table.at(step.fd).is_ok_and(|placed| key(&placed) == inode)
    })
}
