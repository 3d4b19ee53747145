//! Makes one table in the process that will own it: place, make in ascending order, late steps.
//! Nothing outside this process is touched.

use crate::ctty;
use crate::error::{At, Error, Result};
use crate::image::{Lock, OpenFile};
use crate::kind::context::{Fate, Made, Site, set_flags};
use crate::kind::{self, Need};
use crate::placement::{self, Placement, Wanted};
use crate::plan::{Deed, Missing, Myself, Options, Plan, Step, hard_limit, refuse, what};
use crate::proc::inode_of;
use crate::sys::{self, Owner, Seat};
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
    pub handed: HashMap<RawFd, Seat>,
    /// What was made for several tasks of a tree.
    pub store: Option<&'a Store<'a>>,
    /// Any open descriptor, which holds numbers for a while.
    pub filler: Option<Seat>,
}

/// Makes the table of this process what the plan says. `source` is the image.
///
/// What is given first is where messages go although 2 may be COMMAND's by now; an exec closes it.
/// Nothing outside this process is changed. `meter` looks on.
pub fn restore(
    plan: &Plan<'_>,
    options: &Options,
    source: &[u8],
    root: Option<OwnedFd>,
    meter: Option<&mut Meter<'_>>,
) -> (Option<Seat>, Result<Vec<RawFd>>) {
    let err = match sys::start::closed_at_start(2) {
        true => None,
        false => std::io::stderr().as_fd().try_clone_to_owned().ok(),
    };
    let mut services = vec![err.map(Seat::here), root.map(Seat::here)];
    let made = in_place(plan, options, source, &mut services, meter);
    (services[0], made)
}

/// The work of [`restore`]: the services are where to say what, the root, what is handed down.
fn in_place(
    plan: &Plan<'_>,
    options: &Options,
    source: &[u8],
    services: &mut Vec<Option<Seat>>,
    mut meter: Option<&mut Meter<'_>>,
) -> Result<Vec<RawFd>> {
    let mut handed: Vec<RawFd> = Vec::new();
    for step in &plan.steps {
        // One that stays at its number needs no place; another waits among the services.
        let Deed::Inherit(from) = step.deed else { continue };
        if from != step.fd && !handed.contains(&from) {
            let copy = Seat::inherited(from)?.as_fd().try_clone_to_owned()?;
            services.push(Some(Seat::here(copy)));
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
    let stays = |step: &&Step| step.deed == Deed::Inherit(step.fd);
    let mut keep: Vec<RawFd> = plan.steps.iter().filter(stays).map(|step| step.fd).collect();
    keep.extend(services.iter().flatten().map(|seat| seat.number()));
    keep.sort_unstable();
    close_others(&keep)?;
    let err = services[0];
    let of_caller = services.split_off(2);
    let with = With {
        handed: handed.into_iter().zip(of_caller.into_iter().flatten()).collect(),
        store: None,
        filler: err,
    };
    let heirs = Myself(plan.task);
    let mut site = plan.site(source, &heirs, services[1], options.changed);
    site.anywhere = options.placement == Placement::Late;
    let built = build(plan, options, &mut site, &with, &mut |line| say(err, line));
    for warning in &site.warnings {
        say(err, warning);
    }
    let done = site.root.into_iter().chain(with.handed.into_values());
    done.for_each(Seat::close);
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
fn say(err: Option<Seat>, line: &str) {
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
    services: &mut [Option<Seat>],
    policy: Placement,
    table: &Wanted<'_>,
) -> Result<()> {
    let numbers = room(policy, table, services.iter().flatten().count())?;
    let held = services.iter().flatten().map(|seat| seat.number() as u32);
    let wanted: Vec<(u32, u32)> = held.zip(numbers).collect();
    let spare = wanted.iter().map(|&(from, to)| from.max(to)).max().unwrap_or(0) + 1;
    for (from, to) in placement::moves(&wanted, spare) {
        let stands = |seat: &&mut Seat| seat.number() as u32 == from;
        if let Some(seat) = services.iter_mut().flatten().find(stands) {
            *seat = seat.oust(to as RawFd).at(|| "place the service descriptors")?;
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
    options: &Options,
    site: &mut Site<'s>,
    with: &With<'_>,
    say: &mut dyn FnMut(&str),
) -> Result<Vec<RawFd>> {
    let mut work = Work::new(plan, options, site, with);
    work.early();
    control(plan, options, work.site, &with.handed)?;
    work.make(|step| !step.passed)?;
    work.end(say)?;
    work.settle()?;
    let mut unlocked = late(plan, site)?;
    unlocked.extend(of_table(plan, false));
    go_without(unlocked, options, &mut site.warnings, say)?;
    Ok(plan.steps.iter().filter(|step| step.cloexec && stands(step)).map(|step| step.fd).collect())
}

/// Refuses what cannot be locked, with status 6, or says it where descriptors may be missing too.
pub(crate) fn go_without(
    unlocked: Vec<String>,
    options: &Options,
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
        && !matches!(step.deed, Deed::Skip | Deed::Inherit(_))
        && Seat::inherited(step.fd).is_ok()
}

/// A table on the way.
pub(crate) struct Work<'w, 's> {
    plan: &'s Plan<'s>,
    options: &'w Options,
    pub(crate) site: &'w mut Site<'s>,
    with: &'w With<'w>,
    problems: Vec<String>,
    /// What became of files that could not be made.
    lost: HashMap<u32, Deed>,
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
        options: &'w Options,
        site: &'w mut Site<'s>,
        with: &'w With<'w>,
    ) -> Self {
        for step in plan.steps.iter().filter(|step| step.deed == Deed::Stand) {
            if let Some(id) = step.file {
                site.seats.entry(id).or_insert(Seat::known(step.fd));
            }
        }
        let (early, lost) = (HashMap::new(), HashMap::new());
        let (problems, fillers, unsettled) = (Vec::new(), Vec::new(), Vec::new());
        let done = plan.steps.iter().map(|step| step.deed == Deed::Stand).collect();
        Work { plan, options, site, with, problems, lost, early, fillers, unsettled, done }
    }

    /// Makes what others lead to.
    pub(crate) fn early(&mut self) {
        for step in self.plan.steps.iter().filter(|step| step.deed == Deed::Make) {
            let Some(file) = step.file.and_then(|id| self.plan.image.file(id)) else { continue };
            if kind::named(&file.kind).is_some_and(|kind| kind.is_early) {
                self.plan.enter(self.site, file.id);
                let outcome = make(file, step.fd, self.site);
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
            if !self.site.anywhere {
                self.fill_hole(at - 1, expected)?;
            }
            expected = step.fd + 1;
            match step.deed {
                Deed::Fetch(message) => {
                    let of = |step: &&Step| step.deed == Deed::Fetch(message);
                    let run = &self.plan.steps[at - 1..];
                    let run = &run[..run.iter().take_while(of).count()];
                    self.fetch(message, run)?;
                    self.done[at - 1..at - 1 + run.len()].fill(true);
                    at += run.len() - 1;
                    expected = step.fd + run.len() as RawFd;
                }
                deed => {
                    self.done[at - 1] = true;
                    self.one(step, deed)?;
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
            let seat = self.site.seat(fd, step.fd)?;
            if let Some(id) = step.file {
                self.unsettled.extend(self.site.anywhere.then_some((id, step.fd)));
                self.site.seats.insert(id, seat);
            }
        }
        Ok(())
    }

    fn one(&mut self, step: &Step, mut deed: Deed) -> Result<()> {
        let fd = step.fd;
        let file = step.file.and_then(|id| self.plan.image.file(id));
        if let (Deed::Share, Some(file)) = (deed, file) {
            deed = self.lost.get(&file.id).copied().unwrap_or(deed);
        }
        if let (Deed::Make, Some(file)) = (deed, file) {
            self.plan.enter(self.site, file.id);
            let made = self.early.remove(&file.id).unwrap_or_else(|| make(file, fd, self.site));
            if let Err(why) = made {
                if self.options.missing == Missing::Fail {
                    self.problems.push(format!("{}: {why}", self.plan.name(step)));
                }
                deed = match self.options.missing {
                    Missing::Null => Deed::Null,
                    _ => Deed::Skip,
                };
                self.lost.insert(file.id, deed);
            }
        }
        match (deed, file) {
            (Deed::Make, Some(file)) => {
                self.unsettled.extend(self.site.anywhere.then_some((file.id, fd)));
            }
            (Deed::Share, Some(file)) if self.site.anywhere => self.unsettled.push((file.id, fd)),
            (Deed::Share, Some(file)) => {
                if let Some(seat) = self.site.seats.get(&file.id) {
                    Seat::copy(seat.as_fd(), fd).at(|| format!("dup to {fd}"))?;
                }
            }
            (Deed::Inherit(from), file) => {
                if let Some(copy) = self.with.handed.get(&from).filter(|_| from != fd) {
                    Seat::copy(copy.as_fd(), fd).at(|| format!("dup {from} to {fd}"))?;
                }
                self.site.handed.extend(file.map(|file| (file.id, Seat::known(fd))));
            }
            (Deed::Null, Some(file)) => {
                let kind = kind::named(&file.kind).unwrap_or(&kind::KINDS[kind::KINDS.len() - 1]);
                let seat = self.site.seat((kind.null)(file)?, fd)?;
                self.site.seats.insert(file.id, seat);
                self.site.stand_ins.insert(file.id);
                self.unsettled.extend(self.site.anywhere.then_some((file.id, fd)));
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
        let makes = |step: &&Step| matches!(step.deed, Deed::Make | Deed::Fetch(_));
        let run = self.plan.steps[at..].iter().take(hole).filter(makes).count();
        let standing = self.site.seats.values().next().copied();
        let Some(filler) = standing.or(self.with.filler).filter(|_| hole < 2 * run) else {
            return Ok(());
        };
        for number in expected..fd {
            // A service may stand in the hole; it fills its number as well.
            match Seat::copy(filler.as_fd(), number) {
                Ok(seat) => match self.fillers.last_mut() {
                    Some((_, last)) if *last + 1 == seat.number() => *last = seat.number(),
                    _ => self.fillers.push((seat.number(), seat.number())),
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

    /// Moves what stands where it was born. The first number of a file is its seat's.
    pub(crate) fn settle(&mut self) -> Result<()> {
        let mut unsettled = std::mem::take(&mut self.unsettled);
        if self.site.anywhere {
            unsettled.extend(self.plan.parks.values());
        }
        let mut moved: HashMap<u32, RawFd> = HashMap::new();
        let mut copies = Vec::new();
        for (id, fd) in unsettled {
            match self.site.seats.get(&id) {
                Some(seat) if seat.number() != fd && !moved.contains_key(&id) => {
                    moved.insert(id, fd);
                }
                Some(seat) if seat.number() != fd => copies.push((id, fd)),
                _ => (),
            }
        }
        let by_number: HashMap<u32, u32> =
            moved.keys().map(|id| (self.site.seats[id].number() as u32, *id)).collect();
        let mut pairs: Vec<(u32, u32)> =
            by_number.iter().map(|(from, id)| (*from, moved[id] as u32)).collect();
        pairs.sort_unstable();
        let highest = pairs.iter().map(|&(from, to)| from.max(to)).max().unwrap_or(0);
        let mut aside = None;
        // What stands where it belongs is moved by nobody, and is in nobody's way.
        let free = |number: &u32| Seat::inherited(*number as RawFd).is_err();
        let spare = (highest + 1..).find(|number| pairs.is_empty() || free(number));
        let spare = spare.unwrap_or(highest + 1);
        for (from, to) in placement::moves(&pairs, spare) {
            match by_number.get(&from).copied().or(aside) {
                Some(id) => {
                    let seat = self.site.seats[&id].shift(to as RawFd);
                    let seat = seat.at(|| format!("move {from} to {to}"))?;
                    self.site.seats.insert(id, seat);
                    aside = if to > highest { Some(id) } else { aside };
                }
                None => return Err(nix::errno::Errno::EBADF.into()),
            }
        }
        for (id, fd) in copies {
            let seat = self.site.seats[&id];
            Seat::copy(seat.as_fd(), fd).at(|| format!("dup to {fd}"))?;
        }
        Ok(())
    }
}

/// Gives this process its controlling terminal, through a descriptor that is no part of the table.
/// That it cannot be had is said; COMMAND runs without.
fn control(
    plan: &Plan<'_>,
    options: &Options,
    site: &mut Site<'_>,
    handed: &HashMap<RawFd, Seat>,
) -> Result<()> {
    let Some(old) = &plan.task.terminal else { return Ok(()) };
    let name = terminal::name(sys::tty::numbers(old.device));
    let taken = match &plan.terminal {
        Fate::None | Fate::Kept | Fate::Session(_) => return Ok(()),
        Fate::Lost(why) => {
            site.warnings.push(why.clone());
            return Ok(());
        }
        Fate::Made(id) => match site.seats.get(id) {
            Some(seat) => seize(*seat, options.steal),
            None => return Ok(()),
        },
        Fate::Handed(fd) => {
            let from = plan.steps.iter().find(|step| step.fd == *fd).map(|step| step.deed);
            match from {
                Some(Deed::Inherit(from)) if from != *fd => match handed.get(&from) {
                    Some(copy) => ctty::take(copy.as_fd(), options.steal),
                    None => return Ok(()),
                },
                _ => ctty::take(Seat::inherited(*fd)?.as_fd(), options.steal),
            }
        }
        Fate::Opened(path) => control_by_path(path, old.device, site, options.steal),
    };
    if let Err(why) = taken {
        site.warnings.push(format!("{name}, its controlling terminal, is not COMMAND's: {why}"));
    } else if old.foreground > 0 && site.heir(2, old.foreground).is_none() {
        // A session leader that takes a terminal is its foreground group too.
        let why = "is not restored: COMMAND is in the foreground";
        site.warnings.push(format!("{name}: its foreground group {} {why}", old.foreground));
    }
    Ok(())
}

/// Makes the terminal at a path the controlling one of this process, if it is that device.
pub(crate) fn control_by_path(
    path: &[u8],
    device: u32,
    site: &Site<'_>,
    steal: bool,
) -> Result<()> {
    let place = site.open(path, libc::O_PATH as u32)?;
    let node = crate::proc::inode_of(place.as_fd())?;
    if !terminal::is_node(&node) || node.rdev != Some(sys::tty::numbers(device)) {
        return Err(Error::unrestorable("the path now names something else"));
    }
    let fd = site.open(path, (libc::O_RDWR | libc::O_NONBLOCK) as u32)?;
    ctty::take(fd.as_fd(), steal)
}

/// Makes the terminal of a slave, or of a master, the controlling one of this process.
pub(crate) fn seize(seat: Seat, steal: bool) -> Result<()> {
    // Through a master it would be the master's; the slave is opened for the moment.
    match sys::tty::index(seat) {
        Ok(_) => slave(seat).and_then(|fd| ctty::take(fd.as_fd(), steal)),
        Err(_) => ctty::take(seat.as_fd(), steal),
    }
}

/// The slave of a master, unlocked for the moment if it must be.
fn slave(master: Seat) -> Result<OwnedFd> {
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
fn make(file: &OpenFile, fd: RawFd, site: &mut Site<'_>) -> Result<()> {
    if site.seats.contains_key(&file.id) {
        return seek(file, site);
    }
    let kind = kind::named(&file.kind)
        .ok_or_else(|| Error::unrestorable(format!("kind {} is not known here", file.kind)))?;
    let Made { fd: new, flags } = (kind.restore)(file, site)?;
    set_flags(new.as_fd(), flags, file.flags)?;
    let seat = site.seat(new, fd)?;
    site.seats.insert(file.id, seat);
    if kind.seeks { seek(file, site) } else { Ok(()) }
}

fn seek(file: &OpenFile, site: &Site<'_>) -> Result<()> {
    let path = file.flags & libc::O_PATH as u32 != 0;
    if file.pos == 0 || path || !kind::named(&file.kind).is_some_and(|kind| kind.seeks) {
        return Ok(());
    }
    let whence = nix::unistd::Whence::SeekSet;
    nix::unistd::lseek(site.seats[&file.id].as_fd(), file.pos, whence).at(|| "lseek").map(drop)
}

/// What can be done only when all numbers stand: what kinds left for then, owners, O_ASYNC. F_SETFL
/// registers the process for SIGIO; an O_ASYNC given to open(2) would be set and dead (fcntl(2)).
///
/// What was made for several tasks is finished where it was made, but for what names numbers or
/// processes, which is left to the task where it is at home. So are locks, last of all; gives a line
/// for each that cannot be had.
pub(crate) fn late(plan: &Plan<'_>, site: &mut Site<'_>) -> Result<Vec<String>> {
    let mut locked = Vec::new();
    for step in &plan.steps {
        let file = step.file.and_then(|id| plan.image.file(id));
        let Some(file) = file.filter(|file| !site.stand_ins.contains(&file.id)) else { continue };
        let Some(seat) = site.seats.get(&file.id).copied() else { continue };
        let kind = kind::named(&file.kind);
        let of_numbers = kind.is_some_and(|kind| (kind.need)(file) == Need::Numbers);
        let (made, home) = match step.deed {
            Deed::Make => (true, !plan.homes.contains_key(&file.id)),
            Deed::Fetch(_) | Deed::Stand => (false, plan.guests.contains(&file.id)),
            _ => continue,
        };
        let due = if of_numbers { home } else { made };
        if let Some(kind) = kind.filter(|kind| kind.is_late && due) {
            (kind.late)(file, seat, site).at(|| format!("fd {}: {}", seat.number(), what(file)))?;
        }
        if home && plan.lowest.get(&file.id) == Some(&step.fd) {
            signals(file, seat, site)?;
            if !file.locks.is_empty() {
                locked.push((step, file, seat));
            }
        }
    }
    for left in std::mem::take(&mut site.after) {
        left(&mut site.warnings)?;
    }
    // A lease is broken by whoever opens the file after it was taken.
    let take = |(step, file, seat)| lock::of_description(file, seat, &plan.name(step), site);
    let unlocked = locked.into_iter().flat_map(take).collect();
    for step in plan.steps.iter().filter(|step| step.waits) {
        let parked = step.file.and_then(|id| plan.parks.get(&id)).map(|(id, _)| *id);
        let id = if step.deed == Deed::Park { parked } else { step.file };
        let seat = id.and_then(|id| site.seats.remove(&id).or_else(|| site.handed.remove(&id)));
        if let Some(seat) = seat {
            seat.close();
        }
    }
    Ok(unlocked)
}

/// Takes the POSIX locks of the table of this process, or looks whether they can be had: a line for
/// each that cannot. The last of all steps, see [`lock::of_table`].
pub(crate) fn of_table(plan: &Plan<'_>, really: bool) -> Vec<String> {
    let of_table = plan.locks(&plan.steps).filter(|(.., of_table)| *of_table);
    let line = |(step, file, lock, _): (&Step, &OpenFile, &Lock, bool)| {
        let seat = Seat::inherited(step.fd).ok()?;
        let line = lock::of_table(file, lock, seat, really)?;
        Some(format!("{}: {line}", plan.name(step)))
    };
    of_table.filter_map(line).collect()
}

/// Whether to close this descriptor drops a POSIX lock of the plan's table.
fn is_locked(plan: &Plan<'_>, fd: Seat) -> bool {
    let key = |fd: Seat| inode_of(fd.as_fd()).map(|it| (it.dev, it.ino)).ok();
    let its = key(fd);
    let mut locks = plan.locks(&plan.steps);
    locks.any(|(step, .., of_table)| {
        of_table && Seat::inherited(step.fd).is_ok_and(|seat| key(seat) == its)
    })
}

/// Who is told that it is ready, and by which signal.
fn signals(file: &OpenFile, seat: Seat, site: &mut Site<'_>) -> Result<()> {
    if let Some(signals) = &file.signals {
        if signals.signal != 0 {
            sys::set_signal(seat.as_fd(), signals.signal).at(|| "F_SETSIG")?;
        }
        match site.heir(signals.kind, signals.id) {
            Some(id) => sys::set_owner(seat.as_fd(), Owner { kind: signals.kind, id })
                .at(|| "F_SETOWN_EX")?,
            None if signals.id != 0 => {
                let id = signals.id;
                let line = format!("fd {}: its owner {id} is not restored", seat.number());
                site.warnings.push(line);
            }
            None => (),
        }
    }
    if file.flags & libc::O_ASYNC as u32 != 0 {
        let flags = OFlag::from_bits_retain(file.flags as i32);
        fcntl(seat.as_fd(), FcntlArg::F_SETFL(flags)).at(|| "O_ASYNC")?;
    }
    Ok(())
}
