//! epoll(7): a set of members. A member is an open file description, and the number by which it was
//! added; that number may be closed or reused since. fdinfo lists the members, and kcmp(2) finds
//! the numbers that their descriptions have now.

use crate::error::{At, Error, Result};
use crate::image::{OpenFile, Slot, Task};
use crate::kind::context::{Opened, RestoreContext};
use crate::kind::{ImageCheck, Kind, Prerequisite};
use crate::operation::{Operation, Outcome};
use crate::proc::{self, Descriptor, FdInfo};
use crate::sys;
use crate::sys::epoll::{self, NewMember};
use nix::errno::Errno;
use nix::libc;
use nix::sys::epoll::EpollCreateFlags;
use nix::sys::resource::{Resource, getrlimit};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, RawFd};

/// The record of an epoll.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Epoll {
    /// The process whose numbers the members refer to.
    pid: i32,
    /// The members, by ascending number.
    members: Vec<EpollMember>,
    /// The parameters of busy polling, if they were set: EPIOCSPARAMS, Linux 6.9.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    busy: Option<BusyPoll>,
}

/// A member of an epoll.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct EpollMember {
    /// The number by which it was added.
    fd: u32,
    /// The events, as fdinfo shows them: those of epoll_ctl(2) with EPOLLERR and EPOLLHUP, or only
    /// the flags of an EPOLLONESHOT member that is disabled.
    events: u32,
    /// The data that epoll_wait(2) returns.
    data: u64,
    /// The number that has its description, if the one by which it was added has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at: Option<u32>,
    /// The inode of a description for which the process has no number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lost: Option<UnopenedFile>,
}

/// The inode of a member that the process has open only through the epoll.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct UnopenedFile {
    /// The major and minor number of its device.
    dev: (u32, u32),
    /// The inode number.
    ino: u64,
}

/// struct epoll_params of ioctl_eventpoll(2).
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct BusyPoll {
    /// The time of busy polling in microseconds.
    usecs: u32,
    /// The number of packets to process at a time.
    budget: u16,
    /// Busy polling is preferred to interrupts.
    prefer: bool,
}

/// The events that EPOLL_CTL_ADD always adds.
const ALWAYS: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
const ONESHOT: u32 = libc::EPOLLONESHOT as u32;
/// The bits that a disabled EPOLLONESHOT member keeps: EP_PRIVATE_BITS of fs/eventpoll.c.
const PRIVATE_BITS: u32 =
    (libc::EPOLLWAKEUP | libc::EPOLLONESHOT | libc::EPOLLET | libc::EPOLLEXCLUSIVE) as u32;
/// All events of poll(2): an EPOLLONESHOT member that waits for them is disabled by any of them.
const ALL_EVENTS: u32 = (libc::EPOLLIN
    | libc::EPOLLPRI
    | libc::EPOLLOUT
    | libc::EPOLLERR
    | libc::EPOLLHUP
    | libc::EPOLLRDNORM
    | libc::EPOLLRDBAND
    | libc::EPOLLWRNORM
    | libc::EPOLLWRBAND
    | libc::EPOLLMSG
    | libc::EPOLLRDHUP) as u32;
/// The longest chain of nested epolls: EP_MAX_NESTS of fs/eventpoll.c, and the outermost one.
const MAX_DEPTH: usize = 5;

impl EpollMember {
    /// The number that has its description.
    fn source(&self) -> u32 {
        self.at.unwrap_or(self.fd)
    }

    /// Reports whether it is an EPOLLONESHOT member that has reported an event, and was not rearmed
    /// by EPOLL_CTL_MOD: it is disabled (epoll_ctl(2)).
    fn is_disabled(&self) -> bool {
        self.events & !PRIVATE_BITS == 0
    }

    /// The member as it is added, from the number that has its description in the restored table.
    fn to_new_member(&self, source: RawFd) -> NewMember {
        let reported = self.is_disabled().then_some(ALL_EVENTS);
        let EpollMember { fd, events, data, at: _, lost: _ } = *self;
        NewMember { source, number: fd as RawFd, events, data, reported }
    }
}

/// Parses the `tfd:` lines of fdinfo. No number is known yet to have the descriptions, so each
/// member has `lost` set.
fn parse_members(info: &str) -> Option<Vec<EpollMember>> {
    let lines = info.lines().filter(|line| line.starts_with("tfd:"));
    lines
        .map(|line| {
            Some(EpollMember {
                fd: proc::word(line, "tfd")?.parse().ok()?,
                events: u32::try_from(proc::hex_word(line, "events")?).ok()?,
                data: proc::hex_word(line, "data")?,
                at: None,
                lost: Some(UnopenedFile {
                    dev: sys::device::from_sdev(u32::try_from(proc::hex_word(line, "sdev")?).ok()?),
                    ino: proc::hex_word(line, "ino")?,
                }),
            })
        })
        .collect()
}

/// The lowest number of each description of a process, in the order that kcmp(2) gives
/// descriptions.
fn numbers_in_kcmp_order(descriptor: &Descriptor<'_>) -> Vec<RawFd> {
    let pid = descriptor.process.thread;
    let compare = |a, b| sys::compare_files((pid, a), (pid, b)).unwrap_or(Ordering::Less);
    let mut sorted: Vec<RawFd> = Vec::new();
    // sort() could panic: the comparison fails for a number that is closed in the meantime.
    for number in descriptor.process.numbers().unwrap_or_default() {
        if let Err(index) = sorted.binary_search_by(|&other| compare(other, number)) {
            sorted.insert(index, number);
        }
    }
    sorted
}

/// Finds the numbers that have the descriptions of the members, by KCMP_EPOLL_TFD of kcmp(2).
fn find_numbers(descriptor: &Descriptor<'_>, members: &mut [EpollMember]) {
    // Several members can have one number; the offset selects one of them.
    let mut offsets: HashMap<u32, u32> = HashMap::new();
    let (mut sorted, mut failed) = (None, None);
    for member in members {
        let offset = offsets.entry(member.fd).and_modify(|n| *n += 1).or_insert(0);
        let compare = |fd| {
            epoll::compare_target(
                (descriptor.process.thread, fd),
                descriptor.place,
                member.fd,
                *offset,
            )
        };
        match compare(member.fd as RawFd) {
            Ok(Ordering::Equal) => member.lost = None,
            Ok(_) | Err(Errno::EBADF) => {
                let sorted = sorted.get_or_insert_with(|| numbers_in_kcmp_order(descriptor));
                let order = |&fd: &RawFd| compare(fd).unwrap_or(Ordering::Less);
                if let Ok(index) = sorted.binary_search_by(order) {
                    member.at = Some(sorted[index] as u32);
                    member.lost = None;
                }
            }
            // The number by which it was added is taken. Of several members with one number, only
            // the first can have its description there.
            Err(errno) => {
                if *offset == 0 {
                    member.lost = None;
                }
                // ENOENT: the member was removed in the meantime.
                if errno != Errno::ENOENT {
                    failed = Some(errno);
                }
            }
        }
    }
    if let Some(errno) = failed {
        let why = "its members are recorded by the numbers by which they were added, which may name \
                   other files now";
        descriptor.warn(format!("kcmp: {}: {why}", errno.desc()));
    }
}

impl Kind for Epoll {
    const NAME: &'static str = "epoll";

    fn claims(descriptor: &Descriptor<'_>) -> bool {
        descriptor.link.0 == b"anon_inode:[eventpoll]" && !descriptor.is_path()
    }

    fn capture(descriptor: &Descriptor<'_>) -> Result<Self> {
        let mut members = parse_members(&descriptor.info.rest)
            .ok_or_else(|| Error::unrestorable("a tfd line of fdinfo is not understood"))?;
        let mut busy = None;
        match &descriptor.copy {
            Some(copy) => {
                find_numbers(descriptor, &mut members);
                let found = match epoll::busy(copy.as_fd()) {
                    // A kernel before 6.9.
                    Err(Errno::ENOTTY | Errno::EINVAL) => epoll::Params::default(),
                    found => found.at(|| "EPIOCGPARAMS")?,
                };
                let epoll::Params { usecs, budget, prefer, .. } = found;
                busy = (found != epoll::Params::default()).then_some(BusyPoll {
                    usecs,
                    budget,
                    prefer: prefer != 0,
                });
            }
            None => {
                let mut seen = HashSet::new();
                let first = |member: &&mut EpollMember| seen.insert(member.fd);
                members.iter_mut().filter(first).for_each(|member| member.lost = None);
            }
        }
        // fdinfo lists them in the order of kernel addresses, which differs between boots.
        members.sort();
        Ok(Epoll { pid: descriptor.process.pid, members, busy })
    }

    fn validate(&self, _: &OpenFile) -> Result<()> {
        let mut seen = HashSet::new();
        for member in &self.members {
            let EpollMember { fd, events, data: _, at, lost } = member;
            let armed = events & ALWAYS == ALWAYS;
            let why = if *fd > i32::MAX as u32 {
                "has a number above 2147483647"
            } else if !(armed || member.is_disabled() && events & ONESHOT != 0) {
                "has events that epoll_ctl(2) does not permit"
            } else if at.is_some() && lost.is_some() {
                "has both the keys at and lost"
            } else if lost.is_none() && !seen.insert((*fd, member.source())) {
                "is listed twice"
            } else {
                continue;
            };
            return Err(Error::malformed(format!("its member {fd} {why}")));
        }
        match self.busy.as_ref().is_some_and(|busy| busy.usecs > i32::MAX as u32) {
            true => {
                Err(Error::malformed("its time of busy polling is above 2147483647 microseconds"))
            }
            false => Ok(()),
        }
    }

    fn image_check() -> Option<Box<dyn ImageCheck<Self>>> {
        Some(Box::new(CycleCheck::default()))
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        let numbers = cx.numbers_of(self.pid)?;
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        for member in &self.members {
            let EpollMember { fd, events: _, data: _, at, lost } = member;
            let refused = |why: String| Err(Error::unrestorable(format!("its member {fd} {why}")));
            if let Some(UnopenedFile { dev: (major, minor), ino }) = lost {
                return refused(format!(
                    "is inode {ino} on device {major}:{minor}, for which the process had no descriptor"
                ));
            }
            if numbers.get(member.source()).is_none() {
                return refused(format!("(at {}) is not in the image", member.source()));
            }
            if at.is_some() && u64::from(*fd) >= hard {
                return refused(format!(
                    "is above the hard limit of {hard} open files (ulimit -Hn)"
                ));
            }
        }
        check_nesting(file, cx)
    }

    fn prerequisite(&self, _: &OpenFile) -> Prerequisite {
        Prerequisite::Numbers
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        let Epoll { pid: _, members: _, ref busy } = *self;
        let new = nix::sys::epoll::Epoll::new(EpollCreateFlags::empty()).at(|| "epoll_create1")?;
        if let Some(BusyPoll { usecs, budget, prefer }) = *busy {
            let set = epoll::set_busy(new.0.as_fd(), epoll::Params::new(usecs, budget, prefer));
            if let Err(errno) = set {
                let fd = cx.lowest[&file.id];
                let why = errno.desc();
                cx.warnings
                    .push(format!("fd {fd}: busy polling of network devices is not set: {why}"));
            }
        }
        Ok(Opened::new(new.0, 0))
    }

    fn operation(&self, number: RawFd, cx: &RestoreContext<'_>) -> Result<Option<Operation>> {
        let list = self.to_add(cx)?;
        let members: Vec<NewMember> =
            list.iter().map(|(from, it)| it.to_new_member(*from)).collect();
        Ok((!members.is_empty()).then_some(Operation::EpollMembers { number, members }))
    }

    fn finish(
        &self,
        _: &OpenFile,
        number: RawFd,
        fd: BorrowedFd<'_>,
        outcome: &Outcome,
        cx: &mut RestoreContext<'_>,
    ) -> Result<()> {
        let Outcome::Members(outcomes) = outcome else { return Ok(()) };
        let mut added = Vec::new();
        for ((_, member), outcome) in self.to_add(cx)?.into_iter().zip(outcomes) {
            let why = match Errno::from_raw(*outcome) {
                _ if *outcome == 0 => {
                    added.push(member);
                    continue;
                }
                Errno::EBADF => "it is not restored",
                Errno::EPERM => "the file at its number does not support epoll",
                errno => return Err(errno).at(|| format!("add its member {}", member.fd)),
            };
            let line = format!("fd {number}: its member {} is left out: {why}", member.fd);
            cx.warnings.push(line);
        }
        warn_of_changed_members(fd, number, &added, cx);
        Ok(())
    }
}

impl Epoll {
    /// The members that can be added, and the numbers of the restored table that have their
    /// descriptions, in the order in which they are added. Disabled members come first: adding one
    /// makes it report an event, which must be the only one of the epoll then.
    fn to_add(&self, cx: &RestoreContext<'_>) -> Result<Vec<(RawFd, &EpollMember)>> {
        let numbers = cx.numbers_of(self.pid)?;
        let place = |member| Some((numbers.get(EpollMember::source(member))?, member));
        let mut list: Vec<(RawFd, &EpollMember)> = self.members.iter().filter_map(place).collect();
        list.sort_by_key(|(_, member)| !member.is_disabled());
        Ok(list)
    }
}

/// Warns of members whose number, events or data differ from the record in fdinfo now.
fn warn_of_changed_members(
    fd: BorrowedFd<'_>,
    number: RawFd,
    added: &[&EpollMember],
    cx: &mut RestoreContext<'_>,
) {
    let info = FdInfo::of_own(fd).unwrap_or_default();
    let now = parse_members(&info.rest).unwrap_or_default();
    let now: HashSet<_> =
        now.iter().map(|member| (member.fd, member.events, member.data)).collect();
    for member in added {
        if now.contains(&(member.fd, member.events, member.data)) {
            continue;
        }
        let why = match member.is_disabled() {
            true => "was disabled (EPOLLONESHOT), and now reports EPOLLERR and EPOLLHUP",
            false => "has other events: EPOLLWAKEUP takes CAP_BLOCK_SUSPEND and CONFIG_PM_SLEEP",
        };
        let line = format!("fd {number}: its member {} {why}", member.fd);
        cx.warnings.push(line);
    }
}

/// Fails with status 6 if epolls are nested in this one more deeply than the kernel permits.
fn check_nesting(file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
    let mut level = HashSet::from([file.id]);
    for _ in 0..MAX_DEPTH {
        let mut next = HashSet::new();
        for outer in level.iter().filter_map(|&id| cx.image.record_as(id)) {
            let Epoll { pid, members, busy: _ } = outer;
            let Some(task) = cx.image.tasks.iter().find(|task| task.pid == *pid) else { continue };
            let wanted: HashSet<u32> = members.iter().map(EpollMember::source).collect();
            let slots = cx.image.slots_of(task.table.id).iter();
            next.extend(slots.filter(|slot| wanted.contains(&slot.fd)).map(|slot| slot.file));
        }
        next.retain(|&id| cx.image.record_as::<Epoll>(id).is_some());
        level = next;
    }
    match level.is_empty() {
        true => Ok(()),
        false => {
            Err(Error::unrestorable("epolls are nested in it more deeply than the kernel permits"))
        }
    }
}

/// Checks that no epoll is a member of itself, directly or through other epolls: epoll_ctl(2) fails
/// with ELOOP.
#[derive(Default)]
struct CycleCheck {
    /// The table ids of tasks, by process id.
    tables: HashMap<i32, u32>,
    /// The epolls by file id: the file, the process, and its numbers that the members refer to.
    epolls: BTreeMap<u32, (OpenFile, i32, Vec<u32>)>,
    /// The file ids of epolls, by table id and number.
    slots: HashMap<(u32, u32), u32>,
}

impl CycleCheck {
    /// The file ids of the epolls that are members of an epoll.
    fn members(&self, id: u32) -> impl Iterator<Item = u32> {
        let epoll = self.epolls.get(&id);
        let table = epoll.and_then(|(_, pid, _)| self.tables.get(pid));
        let numbers = epoll.zip(table).into_iter().flat_map(|((_, _, numbers), table)| {
            numbers.iter().map(move |number| (*table, *number))
        });
        numbers.filter_map(|place| self.slots.get(&place).copied())
    }
}

impl ImageCheck<Epoll> for CycleCheck {
    fn task(&mut self, task: &Task) {
        self.tables.insert(task.pid, task.table.id);
    }

    fn file(&mut self, record: &Epoll, file: &OpenFile) {
        let numbers = record.members.iter().map(EpollMember::source).collect();
        let named = OpenFile { body: Vec::new(), ..file.clone() };
        self.epolls.insert(file.id, (named, record.pid, numbers));
    }

    fn slot(&mut self, slot: &Slot) {
        if self.epolls.contains_key(&slot.file) {
            self.slots.insert((slot.table, slot.fd), slot.file);
        }
    }

    fn end(&mut self, name: &dyn Fn(&OpenFile) -> String) -> Result<()> {
        // Epolls that are not part of a cycle.
        let mut done: HashSet<u32> = HashSet::new();
        for &first in self.epolls.keys() {
            let mut path = vec![(first, self.members(first).collect::<Vec<u32>>())];
            while let Some((id, members)) = path.last_mut() {
                let (id, member) = (*id, members.pop());
                match member {
                    Some(member) if path.iter().any(|(outer, _)| *outer == member) => {
                        let at = name(&self.epolls[&member].0);
                        return Err(Error::malformed(
                            "it is a member of itself, directly or through another epoll",
                        )
                        .at(at));
                    }
                    Some(member) if !done.contains(&member) => {
                        path.push((member, self.members(member).collect()));
                    }
                    Some(_) => (),
                    None => {
                        done.insert(id);
                        path.pop();
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_of_fdinfo_becomes_a_member() {
        let text = "tfd:       12 events:       19 data: ffffffff0000000c  pos:0 ino:1a2b sdev:fe00001\n\
            tfd:        5 events: 40000000 data:                5  pos:0 ino:7 sdev:10\n";
        let lost = |major, minor, ino| Some(UnopenedFile { dev: (major, minor), ino });
        let data = 0xffff_ffff_0000_000c;
        let one = EpollMember { fd: 12, events: 0x19, data, at: None, lost: lost(254, 1, 0x1a2b) };
        let two = EpollMember { fd: 5, events: ONESHOT, data: 5, at: None, lost: lost(0, 16, 7) };
        assert!(two.is_disabled() && !one.is_disabled());
        assert_eq!(parse_members(text), Some(vec![one, two]));
    }

    #[test]
    fn a_line_that_cannot_be_parsed_is_an_error() {
        for text in ["tfd:", "tfd: 5 events: 19 data: 5 pos:0 ino:7", "tfd: -1 events: 0 data: 0"] {
            assert_eq!(parse_members(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(tfd:|events:|data:|ino:|sdev:|[0-9a-f ]|\n|\\PC){0,60}") {
            let _ = parse_members(&text);
        }
    }
}
