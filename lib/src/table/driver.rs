//! Makes one table in the process that will own it: place, make in ascending order, late steps.
//! Nothing outside this process is touched.

use crate::ctty;
use crate::error::{At, Error, Result};
use crate::image::{Lock, OpenFile};
use crate::kind::Need;
use crate::kind::context::{CttyPlan, Opened, RestoreContext, set_flags};
use crate::placement::{self, Placement, Wanted};
use crate::plan::{Action, Missing, Myself, Plan, RestoreOptions, Step, hard_limit, refuse, what};
use crate::proc::inode_of;
use crate::sys::{self, Owner, PlacedFd};
use crate::table::fdstore::Store;
use crate::table::lock;
use crate::table::shrink;
use crate::table::stats::Meter;
use crate::terminal;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd, RawFd};

/// What a table is made from beside the image.
#[derive(Default)]
pub(crate) struct With<'a> {
    /// Descriptors that the caller hands down to another number than theirs.
    pub handed: HashMap<RawFd, PlacedFd>,
    /// What was made for several tasks of a tree.
    pub store: Option<&'a Store<'a>>,
    /// Any open descriptor, which holds numbers for a while.
    pub filler: Option<PlacedFd>,
}

/// Makes the table of this process what the plan says. `source` is the image.
///
/// What is given first is where messages go although 2 may be COMMAND's by now; an exec closes it.
/// Nothing outside this process is changed. `meter` looks on.
pub fn restore(
    plan: &Plan<'_>,
    options: &RestoreOptions,
    source: &[u8],
    root: Option<OwnedFd>,
    meter: Option<&mut Meter<'_>>,
) -> (Option<PlacedFd>, Result<Vec<RawFd>>) {
    let err = match sys::start::closed_at_start(2) {
        true => None,
        false => std::io::stderr().as_fd().try_clone_to_owned().ok(),
    };
    let mut services = vec![err.map(PlacedFd::here), root.map(PlacedFd::here)];
    let made = in_place(plan, options, source, &mut services, meter);
    (services[0], made)
}

/// The work of [`restore`]: the services are where to say what, the root, what is handed down.
fn in_place(
    plan: &Plan<'_>,
    options: &RestoreOptions,
    source: &[u8],
    services: &mut Vec<Option<PlacedFd>>,
    mut meter: Option<&mut Meter<'_>>,
) -> Result<Vec<RawFd>> {
    let mut handed: Vec<RawFd> = Vec::new();
    for step in &plan.steps {
        // One that stays at its number needs no place; another waits among the services.
        let Action::Inherit(from) = step.action else { continue };
        if from != step.fd && !handed.contains(&from) {
            let copy = PlacedFd::inherited(from)?.as_fd().try_clone_to_owned()?;
            services.push(Some(PlacedFd::here(copy)));
            handed.push(from);
        }
    }
    let wanted: Vec<u32> = plan.steps.iter().map(|step| step.fd as u32).collect();
    let highest = plan.highest();
    let limits = raise_limit(wanted.last().copied())?;
    let table = Wanted {
        numbers: &wanted,
        handed: handed.iter().map(|&from| from as u32).max(),
        sharers: 1,
        floor: placement::capacity(wanted.last().copied()),
        limit: limits.1.min(u64::from(u32::MAX)) as u32,
    };
    place(services, options.placement, &table)?;
    if let Some(meter) = &mut meter {
        meter.placed();
    }
    let stays = |step: &&Step| step.action == Action::Inherit(step.fd);
    let mut keep: Vec<RawFd> = plan.steps.iter().filter(stays).map(|step| step.fd).collect();
    keep.extend(services.iter().flatten().map(|placed| placed.number()));
    keep.sort_unstable();
    close_others(&keep)?;
    let err = services[0];
    let of_caller = services.split_off(2);
    let with = With {
        handed: handed.into_iter().zip(of_caller.into_iter().flatten()).collect(),
        store: None,
        filler: err,
    };
    let pids = Myself(plan.task);
    let mut cx = plan.cx(source, &pids, services[1], options.changed);
    cx.anywhere = options.placement == Placement::Late;
    let built = build(plan, options, &mut cx, &with, &mut |line| say(err, line));
    for warning in &cx.warnings {
        say(err, warning);
    }
    let done = cx.root.into_iter().chain(with.handed.into_values());
    done.for_each(PlacedFd::close);
    // Above the table that COMMAND needs, the way to say that it cannot run is not worth a table.
    if let Some(err) = err.filter(|err| err.number() as u64 >= placement::capacity(highest)) {
        if built.is_ok() {
            err.close();
            services[0] = None;
        }
    }
    let cloexec = built?;
    if limits.0 != limits.1 {
        setrlimit(Resource::RLIMIT_NOFILE, limits.0, hard_limit()?)?;
    }
    if let Some(meter) = meter {
        meter.look()?;
    }
    if options.placement == Placement::Tight {
        shrink::to(placement::capacity(highest)).at(|| "shrink the table")?;
    }
    // The exec closes it, and with it would go the locks of a log that COMMAND has locked.
    if let Some(err) = services[0].filter(|err| is_locked(plan, *err)) {
        err.close();
        services[0] = None;
    }
    let unlocked = of_table(plan, true);
    if options.missing == Missing::Fail {
        refuse(&unlocked, &mut |line| say(services[0], line))?;
    }
    Ok(cloexec)
}

/// Says a line where stderr was.
fn say(err: Option<PlacedFd>, line: &str) {
    if let Some(err) = err {
        let _ = nix::unistd::write(err.as_fd(), format!("fdrestore: {line}\n").as_bytes());
    }
}

/// Raises the soft limit if the highest number asks for it: (before, now).
pub(crate) fn raise_limit(highest: Option<u32>) -> Result<(u64, u64)> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    match highest {
        Some(highest) if u64::from(highest) >= soft => {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
            Ok((soft, hard))
        }
        _ => Ok((soft, soft)),
    }
}

/// The numbers of so many services; fails with status 6 if a table has no room for them.
pub(crate) fn room(policy: Placement, table: &Wanted<'_>, count: usize) -> Result<Vec<u32>> {
    placement::numbers(policy, table, count).ok_or_else(|| {
        let limit = table.limit;
        let why = format!("no room for {count} descriptors of our own below the limit {limit}");
        Error::unrestorable(why)
    })
}

/// Moves the services to their numbers. Whoever else stands there is closed: nobody that is kept
/// does, since service numbers are not wanted ones.
pub(crate) fn place(
    services: &mut [Option<PlacedFd>],
    policy: Placement,
    table: &Wanted<'_>,
) -> Result<()> {
    let numbers = room(policy, table, services.iter().flatten().count())?;
    let held = services.iter().flatten().map(|placed| placed.number() as u32);
    let wanted: Vec<(u32, u32)> = held.zip(numbers).collect();
    let spare = wanted.iter().map(|&(from, to)| from.max(to)).max().unwrap_or(0) + 1;
    for (from, to) in placement::moves(&wanted, spare) {
        let stands = |placed: &&mut PlacedFd| placed.number() as u32 == from;
        if let Some(placed) = services.iter_mut().flatten().find(stands) {
            *placed = placed.oust(to as RawFd).at(|| "place the service descriptors")?;
        }
    }
    Ok(())
}

/// Closes every number but these, which ascend.
pub(crate) fn close_others(keep: &[RawFd]) -> Result<()> {
    let mut first = 0;
    for &number in keep.iter().chain([&RawFd::MAX]) {
        if first < number {
            sys::close_range(first, number - 1).at(|| "close_range")?;
        }
        first = number.saturating_add(1);
    }
    Ok(())
}

/// Makes all that the plan says; gives the numbers that were close-on-exec.
fn build<'s>(
    plan: &'s Plan<'s>,
    options: &RestoreOptions,
    cx: &mut RestoreContext<'s>,
    with: &With<'_>,
    say: &mut dyn FnMut(&str),
) -> Result<Vec<RawFd>> {
    let mut work = Work::new(plan, options, cx, with);
    work.early();
    control(plan, options, work.cx, &with.handed)?;
    work.make(|step| !step.passed)?;
    work.end(say)?;
    work.settle()?;
    let mut unlocked = late(plan, cx)?;
    unlocked.extend(of_table(plan, false));
    go_without(unlocked, options, &mut cx.warnings, say)?;
    Ok(plan.steps.iter().filter(|step| step.cloexec && stands(step)).map(|step| step.fd).collect())
}

/// Refuses what cannot be locked, with status 6, or says it where descriptors may be missing too.
pub(crate) fn go_without(
    unlocked: Vec<String>,
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

/// Whether what stands there was restored, and is not the caller's.
pub(crate) fn stands(step: &Step) -> bool {
    !step.waits
        && !matches!(step.action, Action::Skip | Action::Inherit(_))
        && PlacedFd::inherited(step.fd).is_ok()
}

/// A table on the way.
pub(crate) struct Work<'w, 's> {
    plan: &'s Plan<'s>,
    options: &'w RestoreOptions,
    pub(crate) cx: &'w mut RestoreContext<'s>,
    with: &'w With<'w>,
    problems: Vec<String>,
    /// What became of files that could not be made.
    lost: HashMap<u32, Action>,
    /// What became of files that others lead to.
    early: HashMap<u32, Result<()>>,
    /// Numbers that are held only for a while.
    fillers: Vec<(RawFd, RawFd)>,
    /// What waits for the end to be moved, or copied, to its number.
    unsettled: Vec<(u32, RawFd)>,
    /// Which steps are done.
    done: Vec<bool>,
}

impl<'w, 's> Work<'w, 's> {
    pub(crate) fn new(
        plan: &'s Plan<'s>,
        options: &'w RestoreOptions,
        cx: &'w mut RestoreContext<'s>,
        with: &'w With<'w>,
    ) -> Self {
        for step in plan.steps.iter().filter(|step| step.action == Action::FromParent) {
            if let Some(id) = step.file {
                cx.placed_fds.entry(id).or_insert(PlacedFd::known(step.fd));
            }
        }
        let (early, lost) = (HashMap::new(), HashMap::new());
        let (problems, fillers, unsettled) = (Vec::new(), Vec::new(), Vec::new());
        let done = plan.steps.iter().map(|step| step.action == Action::FromParent).collect();
        Work { plan, options, cx, with, problems, lost, early, fillers, unsettled, done }
    }

    /// Makes what others lead to.
    pub(crate) fn early(&mut self) {
        for step in self.plan.steps.iter().filter(|step| step.action == Action::Make) {
            let Some(file) = step.file.and_then(|id| self.plan.image.file(id)) else { continue };
            if self.plan.image.record(file.id).is_some_and(|record| record.is_early()) {
                self.plan.enter(self.cx, file.id);
                let outcome = make(file, step.fd, self.cx);
                self.early.insert(file.id, outcome);
            }
        }
    }

    /// Makes those numbers, in ascending order.
    pub(crate) fn make(&mut self, which: impl Fn(&Step) -> bool) -> Result<()> {
        let mut expected = 0;
        let mut at = 0;
        while let Some(step) = self.plan.steps.get(at) {
            at += 1;
            if self.done[at - 1] || !which(step) {
                expected = if self.done[at - 1] { step.fd + 1 } else { expected };
                continue;
            }
            if !self.cx.anywhere {
                self.fill_hole(at - 1, expected)?;
            }
            expected = step.fd + 1;
            match step.action {
                Action::FromStore(message) => {
                    let of = |step: &&Step| step.action == Action::FromStore(message);
                    let run = &self.plan.steps[at - 1..];
                    let run = &run[..run.iter().take_while(of).count()];
                    self.fetch(message, run)?;
                    self.done[at - 1..at - 1 + run.len()].fill(true);
                    at += run.len() - 1;
                    expected = step.fd + run.len() as RawFd;
                }
                action => {
                    self.done[at - 1] = true;
                    self.one(step, action)?;
                }
            }
        }
        Ok(())
    }

    /// Takes a run of numbers out of the store.
    fn fetch(&mut self, message: u32, run: &[Step]) -> Result<()> {
        let store = self.with.store.ok_or(nix::errno::Errno::EBADF)?;
        let fds = store.get(message, run.len()).at(|| "the fdstore")?;
        // From the end: what came too low may stand where an earlier one of the run belongs.
        for (fd, step) in fds.into_iter().zip(run).rev() {
            let placed = self.cx.place(fd, step.fd)?;
            if let Some(id) = step.file {
                self.unsettled.extend(self.cx.anywhere.then_some((id, step.fd)));
                self.cx.placed_fds.insert(id, placed);
            }
        }
        Ok(())
    }

    fn one(&mut self, step: &Step, mut action: Action) -> Result<()> {
        let fd = step.fd;
        let file = step.file.and_then(|id| self.plan.image.file(id));
        if let (Action::Dup, Some(file)) = (action, file) {
            action = self.lost.get(&file.id).copied().unwrap_or(action);
        }
        if let (Action::Make, Some(file)) = (action, file) {
            self.plan.enter(self.cx, file.id);
            let made = self.early.remove(&file.id).unwrap_or_else(|| make(file, fd, self.cx));
            if let Err(why) = made {
                if self.options.missing == Missing::Fail {
                    self.problems.push(format!("{}: {why}", self.plan.name(step)));
                }
                action = match self.options.missing {
                    Missing::Null => Action::Null,
                    _ => Action::Skip,
                };
                self.lost.insert(file.id, action);
            }
        }
        match (action, file) {
            (Action::Make, Some(file)) => {
                self.unsettled.extend(self.cx.anywhere.then_some((file.id, fd)));
            }
            (Action::Dup, Some(file)) if self.cx.anywhere => self.unsettled.push((file.id, fd)),
            (Action::Dup, Some(file)) => {
                if let Some(placed) = self.cx.placed_fds.get(&file.id) {
                    PlacedFd::copy(placed.as_fd(), fd).at(|| format!("dup to {fd}"))?;
                }
            }
            (Action::Inherit(from), file) => {
                if let Some(copy) = self.with.handed.get(&from).filter(|_| from != fd) {
                    PlacedFd::copy(copy.as_fd(), fd).at(|| format!("dup {from} to {fd}"))?;
                }
                self.cx.handed.extend(file.map(|file| (file.id, PlacedFd::known(fd))));
            }
            (Action::Null, Some(file)) => {
                let record = self.plan.image.record(file.id).ok_or(nix::errno::Errno::EBADF)?;
                let placed = self.cx.place(record.null(file)?, fd)?;
                self.cx.placed_fds.insert(file.id, placed);
                self.cx.stand_ins.insert(file.id);
                self.unsettled.extend(self.cx.anywhere.then_some((file.id, fd)));
            }
            _ => (),
        }
        Ok(())
    }

    /// Fills the numbers before a step with placeholders if that costs less than moving what comes
    /// after the hole: the lowest free number is then the right one again.
    fn fill_hole(&mut self, at: usize, expected: RawFd) -> Result<()> {
        let fd = self.plan.steps[at].fd;
        let hole = (fd - expected) as usize;
        if hole == 0 {
            return Ok(());
        }
        let makes = |step: &&Step| matches!(step.action, Action::Make | Action::FromStore(_));
        let run = self.plan.steps[at..].iter().take(hole).filter(makes).count();
        let standing = self.cx.placed_fds.values().next().copied();
        let Some(filler) = standing.or(self.with.filler).filter(|_| hole < 2 * run) else {
            return Ok(());
        };
        for number in expected..fd {
            // A service may stand in the hole; it fills its number as well.
            match PlacedFd::copy(filler.as_fd(), number) {
                Ok(placed) => match self.fillers.last_mut() {
                    Some((_, last)) if *last + 1 == placed.number() => *last = placed.number(),
                    _ => self.fillers.push((placed.number(), placed.number())),
                },
                Err(nix::errno::Errno::EBUSY) => (),
                Err(errno) => return Err(errno).at(|| format!("hold number {number}")),
            }
        }
        Ok(())
    }

    /// Lets go of what held numbers, which no child is to be born with.
    pub(crate) fn let_go(&mut self) -> Result<()> {
        for (first, last) in std::mem::take(&mut self.fillers) {
            sys::close_range(first, last).at(|| "close_range")?;
        }
        Ok(())
    }

    /// Lets go of what held numbers; fails with status 6 if something could not be made.
    pub(crate) fn end(&mut self, say: &mut dyn FnMut(&str)) -> Result<()> {
        self.let_go()?;
        refuse(&self.problems, say)
    }

    /// Moves what stands where it was born. The first number of a file is where it is placed.
    pub(crate) fn settle(&mut self) -> Result<()> {
        let mut unsettled = std::mem::take(&mut self.unsettled);
        if self.cx.anywhere {
            unsettled.extend(self.plan.parks.values());
        }
        let mut moved: HashMap<u32, RawFd> = HashMap::new();
        let mut copies = Vec::new();
        for (id, fd) in unsettled {
            match self.cx.placed_fds.get(&id) {
                Some(placed) if placed.number() != fd && !moved.contains_key(&id) => {
                    moved.insert(id, fd);
                }
                Some(placed) if placed.number() != fd => copies.push((id, fd)),
                _ => (),
            }
        }
        let by_number: HashMap<u32, u32> =
            moved.keys().map(|id| (self.cx.placed_fds[id].number() as u32, *id)).collect();
        let mut pairs: Vec<(u32, u32)> =
            by_number.iter().map(|(from, id)| (*from, moved[id] as u32)).collect();
        pairs.sort_unstable();
        let highest = pairs.iter().map(|&(from, to)| from.max(to)).max().unwrap_or(0);
        let mut aside = None;
        // What stands where it belongs is moved by nobody, and is in nobody's way.
        let free = |number: &u32| PlacedFd::inherited(*number as RawFd).is_err();
        let spare = (highest + 1..).find(|number| pairs.is_empty() || free(number));
        let spare = spare.unwrap_or(highest + 1);
        for (from, to) in placement::moves(&pairs, spare) {
            match by_number.get(&from).copied().or(aside) {
                Some(id) => {
                    let placed = self.cx.placed_fds[&id].shift(to as RawFd);
                    let placed = placed.at(|| format!("move {from} to {to}"))?;
                    self.cx.placed_fds.insert(id, placed);
                    aside = if to > highest { Some(id) } else { aside };
                }
                None => return Err(nix::errno::Errno::EBADF.into()),
            }
        }
        for (id, fd) in copies {
            let placed = self.cx.placed_fds[&id];
            PlacedFd::copy(placed.as_fd(), fd).at(|| format!("dup to {fd}"))?;
        }
        Ok(())
    }
}

/// Gives this process its controlling terminal, through a descriptor that is no part of the table.
/// That it cannot be had is said; COMMAND runs without.
fn control(
    plan: &Plan<'_>,
    options: &RestoreOptions,
    cx: &mut RestoreContext<'_>,
    handed: &HashMap<RawFd, PlacedFd>,
) -> Result<()> {
    let Some(old) = &plan.task.terminal else { return Ok(()) };
    let name = terminal::name(sys::tty::numbers(old.device));
    let taken = match &plan.terminal {
        CttyPlan::None | CttyPlan::Kept | CttyPlan::Session(_) => return Ok(()),
        CttyPlan::Unavailable(why) => {
            cx.warnings.push(why.clone());
            return Ok(());
        }
        CttyPlan::FromImage(id) => match cx.placed_fds.get(id) {
            Some(placed) => seize(*placed, options.steal),
            None => return Ok(()),
        },
        CttyPlan::FromCaller(fd) => {
            let from = plan.steps.iter().find(|step| step.fd == *fd).map(|step| step.action);
            match from {
                Some(Action::Inherit(from)) if from != *fd => match handed.get(&from) {
                    Some(copy) => ctty::take(copy.as_fd(), options.steal),
                    None => return Ok(()),
                },
                _ => ctty::take(PlacedFd::inherited(*fd)?.as_fd(), options.steal),
            }
        }
        CttyPlan::FromPath(path) => control_by_path(path, old.device, cx, options.steal),
    };
    if let Err(why) = taken {
        cx.warnings.push(format!("{name}, its controlling terminal, is not COMMAND's: {why}"));
    } else if old.foreground > 0 && cx.current_id(2, old.foreground).is_none() {
        // A session leader that takes a terminal is its foreground group too.
        let why = "is not restored: COMMAND is in the foreground";
        cx.warnings.push(format!("{name}: its foreground group {} {why}", old.foreground));
    }
    Ok(())
}

/// Makes the terminal at a path the controlling one of this process, if it is that device.
pub(crate) fn control_by_path(
    path: &[u8],
    device: u32,
    cx: &RestoreContext<'_>,
    steal: bool,
) -> Result<()> {
    let place = cx.open(path, libc::O_PATH as u32)?;
    let node = crate::proc::inode_of(place.as_fd())?;
    if !terminal::is_node(&node) || node.rdev != Some(sys::tty::numbers(device)) {
        return Err(Error::unrestorable("the path now names something else"));
    }
    let fd = cx.open(path, (libc::O_RDWR | libc::O_NONBLOCK) as u32)?;
    ctty::take(fd.as_fd(), steal)
}

/// Makes the terminal of a slave, or of a master, the controlling one of this process.
pub(crate) fn seize(placed: PlacedFd, steal: bool) -> Result<()> {
    // Through a master it would be the master's; the slave is opened for the moment.
    match sys::tty::index(placed) {
        Ok(_) => slave(placed).and_then(|fd| ctty::take(fd.as_fd(), steal)),
        Err(_) => ctty::take(placed.as_fd(), steal),
    }
}

/// The slave of a master, unlocked for the moment if it must be.
fn slave(master: PlacedFd) -> Result<OwnedFd> {
    let locked = sys::tty::locked(master)?;
    if locked {
        sys::tty::set_locked(master, false)?;
    }
    let slave = sys::tty::peer(master, libc::O_RDWR as u32).at(|| "open the slave");
    if locked {
        sys::tty::set_locked(master, true)?;
    }
    slave
}

/// Makes a description at its number, unless it stands there already as another's other end.
fn make(file: &OpenFile, fd: RawFd, cx: &mut RestoreContext<'_>) -> Result<()> {
    if cx.placed_fds.contains_key(&file.id) {
        return seek(file, cx);
    }
    let record = cx.image.record(file.id).ok_or(nix::errno::Errno::EBADF)?;
    let Opened { fd: new, flags } = record.restore(file, cx)?;
    set_flags(new.as_fd(), flags, file.flags)?;
    let placed = cx.place(new, fd)?;
    cx.placed_fds.insert(file.id, placed);
    seek(file, cx)
}

fn seek(file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
    let path = file.flags & libc::O_PATH as u32 != 0;
    if file.pos == 0 || path || !cx.image.record(file.id).is_some_and(|record| record.seeks()) {
        return Ok(());
    }
    let whence = nix::unistd::Whence::SeekSet;
    nix::unistd::lseek(cx.placed_fds[&file.id].as_fd(), file.pos, whence).at(|| "lseek").map(drop)
}

/// What can be done only when all numbers stand: what kinds left for then, owners, O_ASYNC. F_SETFL
/// registers the process for SIGIO; an O_ASYNC given to open(2) would be set and dead (fcntl(2)).
///
/// What was made for several tasks is finished where it was made, but for what names numbers or
/// processes, which is left to the task where it is at home. So are locks, last of all; gives a line
/// for each that cannot be had.
pub(crate) fn late(plan: &Plan<'_>, cx: &mut RestoreContext<'_>) -> Result<Vec<String>> {
    let mut locked = Vec::new();
    for step in &plan.steps {
        let file = step.file.and_then(|id| plan.image.file(id));
        let Some(file) = file.filter(|file| !cx.stand_ins.contains(&file.id)) else { continue };
        let Some(placed) = cx.placed_fds.get(&file.id).copied() else { continue };
        let Some(record) = plan.image.record(file.id) else { continue };
        let of_numbers = record.need(file) == Need::Numbers;
        let (made, home) = match step.action {
            Action::Make => (true, !plan.homes.contains_key(&file.id)),
            Action::FromStore(_) | Action::FromParent => (false, plan.guests.contains(&file.id)),
            _ => continue,
        };
        let due = if of_numbers { home } else { made };
        if record.is_late() && due {
            record
                .late(file, placed, cx)
                .at(|| format!("fd {}: {}", placed.number(), what(file)))?;
        }
        if home && plan.lowest.get(&file.id) == Some(&step.fd) {
            signals(file, placed, cx)?;
            if !file.locks.is_empty() {
                locked.push((step, file, placed));
            }
        }
    }
    for left in std::mem::take(&mut cx.after) {
        left(&mut cx.warnings)?;
    }
    // A lease is broken by whoever opens the file after it was taken.
    let take = |(step, file, placed)| lock::of_description(file, placed, &plan.name(step), cx);
    let unlocked = locked.into_iter().flat_map(take).collect();
    for step in plan.steps.iter().filter(|step| step.waits) {
        let parked = step.file.and_then(|id| plan.parks.get(&id)).map(|(id, _)| *id);
        let id = if step.action == Action::Park { parked } else { step.file };
        let placed = id.and_then(|id| cx.placed_fds.remove(&id).or_else(|| cx.handed.remove(&id)));
        if let Some(placed) = placed {
            placed.close();
        }
    }
    Ok(unlocked)
}

/// Takes the POSIX locks of the table of this process, or looks whether they can be had: a line for
/// each that cannot. The last of all steps, see [`lock::of_table`].
pub(crate) fn of_table(plan: &Plan<'_>, really: bool) -> Vec<String> {
    let of_table = plan.locks(&plan.steps).filter(|(.., of_table)| *of_table);
    let line = |(step, file, lock, _): (&Step, &OpenFile, &Lock, bool)| {
        let placed = PlacedFd::inherited(step.fd).ok()?;
        let line = lock::of_table(file, lock, placed, really)?;
        Some(format!("{}: {line}", plan.name(step)))
    };
    of_table.filter_map(line).collect()
}

/// Whether to close this descriptor drops a POSIX lock of the plan's table.
fn is_locked(plan: &Plan<'_>, fd: PlacedFd) -> bool {
    let key = |fd: PlacedFd| inode_of(fd.as_fd()).map(|it| (it.dev, it.ino)).ok();
    let its = key(fd);
    let mut locks = plan.locks(&plan.steps);
    locks.any(|(step, .., of_table)| {
        of_table && PlacedFd::inherited(step.fd).is_ok_and(|placed| key(placed) == its)
    })
}

/// Who is told that it is ready, and by which signal.
fn signals(file: &OpenFile, placed: PlacedFd, cx: &mut RestoreContext<'_>) -> Result<()> {
    if let Some(signals) = &file.signals {
        if signals.signal != 0 {
            sys::set_signal(placed.as_fd(), signals.signal).at(|| "F_SETSIG")?;
        }
        match cx.current_id(signals.kind, signals.id) {
            Some(id) => sys::set_owner(placed.as_fd(), Owner { kind: signals.kind, id })
                .at(|| "F_SETOWN_EX")?,
            None if signals.id != 0 => {
                let id = signals.id;
                let line = format!("fd {}: its owner {id} is not restored", placed.number());
                cx.warnings.push(line);
            }
            None => (),
        }
    }
    if file.flags & libc::O_ASYNC as u32 != 0 {
        let flags = OFlag::from_bits_retain(file.flags as i32);
        fcntl(placed.as_fd(), FcntlArg::F_SETFL(flags)).at(|| "O_ASYNC")?;
    }
    Ok(())
}
