//! Restores one table in the process that will own it: plan, place, make in ascending order, late
//! steps. Nothing outside this process is touched before the plan is known to be possible.

use crate::ctty::{self, Heir};
use crate::error::{At, Error, Result, Status};
use crate::image::{Image, OpenFile, Slot, Task};
use crate::kind;
use crate::service;
use crate::shrink;
use crate::site::{Changed, Fate, Made, Site, set_flags};
use crate::sys::{self, Owner, Seat};
use crate::terminal;
use crate::text::escape;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// What to do with a descriptor that cannot be restored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Missing {
    /// Refuse, with a list of all of them.
    #[default]
    Fail,
    /// /dev/null in its place.
    Null,
    /// Leave the number closed.
    Skip,
}

/// A descriptor of the caller, in place of one of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inherit {
    /// The caller's own, at its own number, whatever the image says of it.
    Own(RawFd),
    /// What readlink(2) shows of a description of the image, or a slot, becomes the caller's.
    Key(Vec<u8>, RawFd),
}

/// How to restore.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The task whose table is restored; the first if none is named.
    pub task: Option<i32>,
    /// For what cannot be restored.
    pub missing: Missing,
    /// For files that changed.
    pub changed: Changed,
    /// What the caller hands down.
    pub inherit: Vec<Inherit>,
    /// Whether a controlling terminal may be taken from another session.
    pub steal: bool,
}

/// What becomes of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// The description is made.
    Make,
    /// It stands already at another number, or will as the other end of a pipe: dup(2) or nothing.
    Share,
    /// The caller's descriptor.
    Inherit(RawFd),
    /// /dev/null.
    Null,
    /// Nothing.
    Skip,
}

/// A number of the restored table.
#[derive(Clone, Debug)]
pub struct Step {
    /// The number.
    pub fd: RawFd,
    /// The file it names in the image; none for one of the caller's that the image does not have.
    pub file: Option<u32>,
    /// What becomes of it.
    pub deed: Deed,
    /// Whether it was close-on-exec.
    pub cloexec: bool,
}

/// What will be done, and why some of it cannot.
pub struct Plan<'a> {
    /// The image.
    pub image: &'a Image,
    /// The task.
    pub task: &'a Task,
    /// The numbers, ascending.
    pub steps: Vec<Step>,
    /// What cannot be restored, a line each.
    pub problems: Vec<String>,
    /// What becomes of the controlling terminal.
    pub terminal: Fate,
    lowest: HashMap<u32, RawFd>,
    objects: HashMap<u32, Vec<u32>>,
    sockets: HashMap<u64, u32>,
    numbers: Vec<RawFd>,
}

fn what(file: &OpenFile) -> String {
    escape(&file.link.0).into_owned()
}

impl<'a> Plan<'a> {
    /// Plans a table. `root` is where paths are looked up; `dry` also looks whether they are there.
    ///
    /// Fails with status 6 if the image has no such task.
    pub fn new(
        image: &'a Image,
        options: &Options,
        root: Option<BorrowedFd<'_>>,
        dry: bool,
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
        let slots = image.slots.iter().filter(|slot| slot.table == task.table.id);
        let mut plan = Plan {
            image,
            task,
            steps: Vec::new(),
            problems: Vec::new(),
            terminal: Fate::None,
            lowest: HashMap::new(),
            objects: HashMap::new(),
            sockets: HashMap::new(),
            numbers: Vec::new(),
        };
        plan.lay_out(slots, options)?;
        let heir = Heir::myself()?;
        plan.terminal = plan.fate(heir);
        plan.check(options, root, dry)?;
        // What controls COMMAND may be among what was refused.
        plan.terminal = plan.fate(heir);
        Ok(plan)
    }

    fn fate(&self, heir: Heir) -> Fate {
        let handed = |id| {
            let of = |step: &&Step| step.file == Some(id) && matches!(step.deed, Deed::Inherit(_));
            self.steps.iter().find(of).map(|step| step.fd)
        };
        ctty::fate(self.image, self.task, heir, |id| self.lowest.contains_key(&id), handed)
    }

    fn lay_out(&mut self, slots: impl Iterator<Item = &'a Slot>, options: &Options) -> Result<()> {
        let mut own: BTreeSet<RawFd> = BTreeSet::new();
        let mut used = vec![false; options.inherit.len()];
        for (at, inherit) in options.inherit.iter().enumerate() {
            let (Inherit::Own(fd) | Inherit::Key(_, fd)) = inherit;
            if (0..3).contains(fd) && sys::start::closed_at_start(*fd)
                || Seat::inherited(*fd).is_err()
            {
                return Err(Error::misuse(format!("--inherit: descriptor {fd} is not open")));
            }
            if let Inherit::Own(fd) = inherit {
                own.insert(*fd);
                used[at] = true;
            }
        }
        for slot in slots {
            let Some(file) = self.image.file(slot.file) else { continue };
            let fd = slot.fd as RawFd;
            let number = slot.fd.to_string().into_bytes();
            let full = format!("{}:{}", self.task.pid, slot.fd).into_bytes();
            let keys = [&file.link.0, &number, &full];
            let handed = options
                .inherit
                .iter()
                .position(|inherit| matches!(inherit, Inherit::Key(key, _) if keys.contains(&key)));
            let deed = match handed {
                _ if own.remove(&fd) => Deed::Inherit(fd),
                Some(at) => {
                    used[at] = true;
                    match &options.inherit[at] {
                        Inherit::Key(_, from) | Inherit::Own(from) => Deed::Inherit(*from),
                    }
                }
                None if self.lowest.contains_key(&file.id) => Deed::Share,
                None => {
                    self.lowest.insert(file.id, fd);
                    if let Some(object) = file.object {
                        self.objects.entry(object).or_default().push(file.id);
                    }
                    let socket = file.link.0.starts_with(b"socket:[");
                    if let Some(inode) = file.inode.as_ref().filter(|_| socket) {
                        self.sockets.insert(inode.ino, file.id);
                    }
                    Deed::Make
                }
            };
            let file = Some(file.id);
            self.steps.push(Step { fd, file, deed, cloexec: slot.cloexec });
        }
        let unused = used.iter().position(|used| !used).map(|at| &options.inherit[at]);
        if let Some(Inherit::Key(key, _)) = unused {
            let key = escape(key);
            return Err(Error::misuse(format!("--inherit: the image has no '{key}'")));
        }
        for fd in own {
            self.steps.push(Step { fd, file: None, deed: Deed::Inherit(fd), cloexec: false });
        }
        self.steps.sort_by_key(|step| step.fd);
        self.numbers = self.steps.iter().map(|step| step.fd).collect();
        Ok(())
    }

    /// Asks each kind whether it can restore what is wanted of it.
    fn check(&mut self, options: &Options, root: Option<BorrowedFd<'_>>, dry: bool) -> Result<()> {
        if let Some(step) = self.steps.last() {
            within_limit(step.fd as u32)?;
        }
        let mut failed: HashMap<u32, Deed> = HashMap::new();
        let mut steps = std::mem::take(&mut self.steps);
        let mut problems = Vec::new();
        {
            let root = root.map(|root| root.try_clone_to_owned()).transpose()?;
            let site = self.site(None, root, options.changed, dry);
            for step in &mut steps {
                let Some(id) = step.file else { continue };
                if step.deed == Deed::Share {
                    step.deed = failed.get(&id).copied().unwrap_or(Deed::Share);
                    continue;
                }
                let (Deed::Make, Some(file)) = (step.deed, self.image.file(id)) else { continue };
                let checked = match kind::named(&file.kind) {
                    Some(kind) => (kind.check)(file, &site),
                    None => {
                        let why =
                            format!("kind {} is not known here", escape(file.kind.as_bytes()));
                        Err(Error::unrestorable(why))
                    }
                };
                if let Err(err) = checked {
                    if err.status() == Status::Malformed {
                        return Err(err.at(format!("fd {}", step.fd)));
                    }
                    step.deed = match options.missing {
                        Missing::Fail => {
                            problems.push(format!("fd {} ({}): {err}", step.fd, what(file)));
                            Deed::Skip
                        }
                        Missing::Null => Deed::Null,
                        Missing::Skip => Deed::Skip,
                    };
                    failed.insert(id, step.deed);
                }
            }
        }
        self.steps = steps;
        self.problems = problems;
        // What is not made cannot be the other end of anything.
        for id in failed.keys() {
            self.lowest.remove(id);
            for files in self.objects.values_mut() {
                files.retain(|file| file != id);
            }
        }
        Ok(())
    }

    fn site<'b>(
        &'b self,
        source: Option<OwnedFd>,
        root: Option<OwnedFd>,
        changed: Changed,
        dry: bool,
    ) -> Site<'b> {
        Site {
            image: self.image,
            task: self.task,
            source,
            root,
            dry,
            changed,
            warnings: Vec::new(),
            lowest: &self.lowest,
            objects: &self.objects,
            sockets: &self.sockets,
            numbers: &self.numbers,
            seats: HashMap::new(),
            after: Vec::new(),
            terminal: &self.terminal,
            moved: HashMap::new(),
            dressed: Default::default(),
        }
    }

    /// The refusal that lists all problems, if there are any. Each is said by `say`.
    pub fn refuse(&self, say: &mut dyn FnMut(&str)) -> Result<()> {
        refuse(&self.problems, say)
    }
}

fn refuse(problems: &[String], say: &mut dyn FnMut(&str)) -> Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    for problem in problems {
        say(problem);
    }
    let cures = "--inherit KEY=FD hands one over, --missing null or --missing skip goes on without";
    Err(Error::unrestorable(format!("{} cannot be restored here; {cures}", problems.len())))
}

/// What is left when the table stands: COMMAND can run now.
pub struct Restored {
    /// Where messages go although 2 may be COMMAND's by now; closed by the exec.
    pub err: Option<OwnedFd>,
    /// The numbers that were close-on-exec, for FDRESTORE_CLOEXEC.
    pub cloexec: Vec<RawFd>,
}

/// A service descriptor on its way to its number.
struct Service {
    fd: Option<OwnedFd>,
    to: RawFd,
}

/// Makes the table of this process what the plan says. `source` is the image as a descriptor.
///
/// On failure the error comes with where it can be said. Nothing outside this process was changed.
pub fn restore(
    plan: &Plan<'_>,
    options: &Options,
    source: OwnedFd,
    root: Option<OwnedFd>,
) -> (Option<OwnedFd>, Result<Vec<RawFd>>) {
    let err = match sys::start::closed_at_start(2) {
        true => None,
        false => std::io::stderr().as_fd().try_clone_to_owned().ok(),
    };
    let mut services = vec![Some(source), err, root];
    let mut handed: Vec<(RawFd, Option<OwnedFd>)> = Vec::new();
    for step in &plan.steps {
        // One that stays at its number needs no place; another waits among the services.
        let Deed::Inherit(from) = step.deed else { continue };
        if from != step.fd && !handed.iter().any(|(each, _)| *each == from) {
            let copy = Seat::inherited(from)
                .map_err(Error::from)
                .and_then(|seat| seat.as_fd().try_clone_to_owned().map_err(Error::from));
            match copy {
                Ok(copy) => handed.push((from, Some(copy))),
                Err(why) => return (services.swap_remove(1), Err(why)),
            }
        }
    }
    let wanted: Vec<u32> = plan.steps.iter().map(|step| step.fd as u32).collect();
    let limits = match raise_limit(&wanted) {
        Ok(limits) => limits,
        Err(why) => return (services.swap_remove(1), Err(why)),
    };
    services.extend(handed.iter_mut().map(|(_, copy)| copy.take()));
    let placed = place(services, &wanted, limits.1, plan);
    let (mut services, placed) = placed;
    let err = services.get_mut(1).and_then(Option::take);
    if let Err(why) = placed {
        return (err, Err(why));
    }
    let mut rest = services.drain(..);
    let source = rest.next().flatten();
    let _ = rest.next();
    let root = rest.next().flatten();
    let handed: HashMap<RawFd, OwnedFd> = handed
        .iter()
        .map(|(from, _)| *from)
        .zip(rest)
        .filter_map(|(from, fd)| Some((from, fd?)))
        .collect();
    let mut site = plan.site(source, root, options.changed, false);
    let built = build(plan, options, &mut site, &handed, err.as_ref());
    for warning in &site.warnings {
        say(err.as_ref(), warning);
    }
    drop((site, handed));
    let highest = wanted.last().copied();
    // Above the table that COMMAND needs, the way to say that it cannot run is not worth a table.
    let err = err.filter(|err| (err.as_raw_fd() as u64) < service::capacity(highest));
    let built = built.and_then(|cloexec| {
        if limits.0 != limits.1 {
            setrlimit(Resource::RLIMIT_NOFILE, limits.0, hard_limit()?)?;
        }
        shrink::to(service::capacity(highest)).at(|| "shrink the table")?;
        Ok(cloexec)
    });
    (err, built)
}

/// Says a line where stderr was.
fn say(err: Option<&OwnedFd>, line: &str) {
    if let Some(err) = err {
        let _ = nix::unistd::write(err.as_fd(), format!("fdrestore: {line}\n").as_bytes());
    }
}

fn hard_limit() -> Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.1)
}

/// Fails with status 6 if a number is above any limit that this process can have.
fn within_limit(highest: u32) -> Result<()> {
    let hard = hard_limit()?;
    if u64::from(highest) < hard {
        return Ok(());
    }
    Err(Error::unrestorable(format!(
        "descriptor {highest} is above the hard limit of {hard} open files (ulimit -Hn)"
    )))
}

/// Raises the soft limit if the highest number asks for it: (before, now).
fn raise_limit(wanted: &[u32]) -> Result<(u64, u64)> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    match wanted.last() {
        Some(&highest) if u64::from(highest) >= soft => {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
            Ok((soft, hard))
        }
        _ => Ok((soft, soft)),
    }
}

/// Moves the services to their numbers and closes what is neither service nor inherited in place.
fn place(
    services: Vec<Option<OwnedFd>>,
    wanted: &[u32],
    limit: u64,
    plan: &Plan<'_>,
) -> (Vec<Option<OwnedFd>>, Result<()>) {
    let count = services.iter().flatten().count();
    let limit = limit.min(u64::from(u32::MAX)) as u32;
    let Some(numbers) = service::base(wanted, count, limit) else {
        let why = format!("no room for {count} descriptors of our own below the limit {limit}");
        return (services, Err(Error::unrestorable(why)));
    };
    let mut numbers = numbers.into_iter().map(|number| number as RawFd);
    let mut all: Vec<Service> = services
        .into_iter()
        .map(|fd| {
            let to = if fd.is_some() { numbers.next().unwrap_or(-1) } else { -1 };
            Service { fd, to }
        })
        .collect();
    // Whoever stays at its number is moved nowhere and must not be overwritten either; service
    // numbers are not wanted ones, so it never is.
    let mut left: Vec<usize> = (0..all.len()).filter(|&at| all[at].fd.is_some()).collect();
    let mut outcome = Ok(());
    while !left.is_empty() && outcome.is_ok() {
        let pairs: Vec<(RawFd, RawFd)> = left
            .iter()
            .map(|&at| (all[at].fd.as_ref().map_or(-1, AsRawFd::as_raw_fd), all[at].to))
            .collect();
        outcome = (|| {
            match service::next_move(&pairs) {
                Some(next) => {
                    let at = left.swap_remove(next);
                    if let Some(fd) = all[at].fd.take() {
                        all[at].fd = Some(sys::move_to(fd, all[at].to)?);
                    }
                }
                // A cycle: one of them steps aside, to a number that is free.
                None => {
                    if let Some(fd) = all[left[0]].fd.take() {
                        all[left[0]].fd = Some(fd.try_clone()?);
                    }
                }
            }
            Ok::<(), Error>(())
        })()
        .at(|| "place the service descriptors");
    }
    let stays = |step: &&Step| step.deed == Deed::Inherit(step.fd);
    let mut kept: Vec<RawFd> = all.iter().filter(|s| s.fd.is_some()).map(|s| s.to).collect();
    kept.extend(plan.steps.iter().filter(stays).map(|step| step.fd));
    kept.sort_unstable();
    let mut first = 0;
    for number in kept.into_iter().chain([RawFd::MAX]) {
        if first < number && outcome.is_ok() {
            outcome = sys::close_range(first, number - 1).at(|| "close_range");
        }
        first = number.saturating_add(1);
    }
    (all.into_iter().map(|service| service.fd).collect(), outcome)
}

/// Makes everything in ascending order; gives the numbers that were close-on-exec.
fn build(
    plan: &Plan<'_>,
    options: &Options,
    site: &mut Site<'_>,
    handed: &HashMap<RawFd, OwnedFd>,
    err: Option<&OwnedFd>,
) -> Result<Vec<RawFd>> {
    let mut problems = Vec::new();
    let mut cloexec = Vec::new();
    let mut lost: HashMap<u32, Deed> = HashMap::new();
    let mut fillers: Vec<(RawFd, RawFd)> = Vec::new();
    let mut expected = 0;
    let mut early = make_early(plan, site);
    control(plan, options, site, handed)?;
    for (at, step) in plan.steps.iter().enumerate() {
        let fd = step.fd;
        fill_hole(plan, at, expected, site, &mut fillers)?;
        expected = fd + 1;
        let file = step.file.and_then(|id| plan.image.file(id));
        let mut deed = step.deed;
        if let (Deed::Share, Some(file)) = (deed, file) {
            deed = lost.get(&file.id).copied().unwrap_or(deed);
        }
        if let (Deed::Make, Some(file)) = (deed, file) {
            if let Err(why) = early.remove(&file.id).unwrap_or_else(|| make(file, fd, site)) {
                if options.missing == Missing::Fail {
                    problems.push(format!("fd {fd} ({}): {why}", what(file)));
                }
                deed = match options.missing {
                    Missing::Null => Deed::Null,
                    _ => Deed::Skip,
                };
                lost.insert(file.id, deed);
            }
        }
        match (deed, file) {
            (Deed::Share, Some(file)) => {
                if let Some(seat) = site.seats.get(&file.id) {
                    Seat::copy(seat.as_fd(), fd).at(|| format!("dup to {fd}"))?;
                }
            }
            (Deed::Inherit(from), _) if from != fd => {
                if let Some(copy) = handed.get(&from) {
                    Seat::copy(copy.as_fd(), fd).at(|| format!("dup {from} to {fd}"))?;
                }
            }
            (Deed::Null, Some(file)) => {
                let kind = kind::named(&file.kind).unwrap_or(&kind::KINDS[kind::KINDS.len() - 1]);
                let seat = Seat::take((kind.null)(file)?, fd).at(|| format!("put it at {fd}"))?;
                site.seats.insert(file.id, seat);
            }
            _ => (),
        }
        if step.cloexec && !matches!(deed, Deed::Skip | Deed::Inherit(_)) {
            cloexec.push(fd);
        }
    }
    for (first, last) in fillers {
        sys::close_range(first, last).at(|| "close_range")?;
    }
    refuse(&problems, &mut |line| say(err, line))?;
    late(plan, site)?;
    Ok(cloexec)
}

/// Makes what others lead to; what came of it, by the files it failed for.
fn make_early(plan: &Plan<'_>, site: &mut Site<'_>) -> HashMap<u32, Result<()>> {
    let mut outcomes = HashMap::new();
    for step in plan.steps.iter().filter(|step| step.deed == Deed::Make) {
        let Some(file) = step.file.and_then(|id| plan.image.file(id)) else { continue };
        if kind::named(&file.kind).is_some_and(|kind| kind.is_early) {
            outcomes.insert(file.id, make(file, step.fd, site));
        }
    }
    outcomes
}

/// Gives this process its controlling terminal, through a descriptor that is no part of the table.
/// That it cannot be had is said; COMMAND runs without.
fn control(
    plan: &Plan<'_>,
    options: &Options,
    site: &mut Site<'_>,
    handed: &HashMap<RawFd, OwnedFd>,
) -> Result<()> {
    let Some(old) = &plan.task.terminal else { return Ok(()) };
    let name = terminal::name(sys::tty::numbers(old.device));
    let opened = |path: &[u8]| {
        let place = site.open(path, libc::O_PATH as u32)?;
        let node = crate::proc::inode_of(place.as_fd())?;
        if !terminal::is_node(&node) || node.rdev != Some(sys::tty::numbers(old.device)) {
            return Err(Error::unrestorable("the path now names something else"));
        }
        let fd = site.open(path, (libc::O_RDWR | libc::O_NONBLOCK) as u32)?;
        ctty::take(fd.as_fd(), options.steal)
    };
    let taken = match &plan.terminal {
        Fate::None | Fate::Kept => return Ok(()),
        Fate::Lost(why) => {
            site.warnings.push(why.clone());
            return Ok(());
        }
        Fate::Made(id) => match site.seats.get(id) {
            // Through a master it would be the master's; the slave is opened for the moment.
            Some(seat) => match sys::tty::index(seat) {
                Ok(_) => slave(*seat).and_then(|fd| ctty::take(fd.as_fd(), options.steal)),
                Err(_) => ctty::take(seat.as_fd(), options.steal),
            },
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
        Fate::Opened(path) => opened(path),
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

/// Fills the numbers before a step with placeholders if that costs less than moving what comes
/// after the hole: the lowest free number is then the right one again.
fn fill_hole(
    plan: &Plan<'_>,
    at: usize,
    expected: RawFd,
    site: &Site<'_>,
    fillers: &mut Vec<(RawFd, RawFd)>,
) -> Result<()> {
    let fd = plan.steps[at].fd;
    let hole = (fd - expected) as usize;
    if hole == 0 {
        return Ok(());
    }
    let makes = |step: &&Step| step.deed == Deed::Make;
    let run = plan.steps[at..].iter().take(hole).filter(makes).count();
    let Some(source) = site.source.as_ref().filter(|_| hole < 2 * run) else { return Ok(()) };
    for number in expected..fd {
        // A service may stand in the hole; it fills its number as well.
        match Seat::copy(source.as_fd(), number) {
            Ok(seat) => match fillers.last_mut() {
                Some((_, last)) if *last + 1 == seat.number() => *last = seat.number(),
                _ => fillers.push((seat.number(), seat.number())),
            },
            Err(nix::errno::Errno::EBUSY) => (),
            Err(errno) => return Err(errno).at(|| format!("hold number {number}")),
        }
    }
    Ok(())
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
    let seat = Seat::take(new, fd).at(|| format!("put it at {fd}"))?;
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

/// What can be done only when all numbers stand: what kinds left for then, owners, O_ASYNC. F_SETFL registers the process
/// for SIGIO; an O_ASYNC given to open(2) would be set and dead (fcntl(2)).
fn late(plan: &Plan<'_>, site: &mut Site<'_>) -> Result<()> {
    let ids = plan.steps.iter().filter(|step| step.deed == Deed::Make).filter_map(|step| step.file);
    for file in ids.filter_map(|id| plan.image.file(id)) {
        let Some(seat) = site.seats.get(&file.id).copied() else { continue };
        if let Some(kind) = kind::named(&file.kind).filter(|kind| kind.is_late) {
            (kind.late)(file, seat, site).at(|| format!("fd {}: {}", seat.number(), what(file)))?;
        }
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
        if !file.locks.is_empty() {
            site.warnings.push(format!("fd {}: its locks are not taken", seat.number()));
        }
    }
    for (seat, how) in std::mem::take(&mut site.after) {
        nix::sys::socket::shutdown(seat.as_fd().as_raw_fd(), how).at(|| "shutdown")?;
    }
    Ok(())
}
