//! epoll(7): a set of members, each an open file description under the number by which it was
//! added, whatever that number means by now. fdinfo lists them; kcmp(2) tells where they are.

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
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

/// A set of members.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Epoll {
    /// The process whose numbers the members name.
    pid: i32,
    /// By number.
    members: Vec<EpollMember>,
    /// How it polls network devices, if that was set: EPIOCSPARAMS, Linux 6.9.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    busy: Option<BusyPoll>,
}

/// A member of the set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct EpollMember {
    /// The number by which it was added.
    fd: u32,
    /// The events, as fdinfo shows them: those of epoll_ctl(2) with EPOLLERR and EPOLLHUP, or only
    /// the flags of a one-shot member that has fired.
    events: u32,
    /// What epoll_wait(2) gives back.
    data: u64,
    /// The number that has its file, if the one by which it was added has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at: Option<u32>,
    /// What fdinfo tells of a file that the process has at no number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lost: Option<UnopenedFile>,
}

/// A file that only the epoll still knows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct UnopenedFile {
    /// Its device.
    dev: (u32, u32),
    /// Its inode number.
    ino: u64,
}

/// struct epoll_params of ioctl_eventpoll(2).
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct BusyPoll {
    /// Microseconds.
    usecs: u32,
    /// Packets at a time.
    budget: u16,
    /// In preference to interrupts.
    prefer: bool,
}

/// What EPOLL_CTL_ADD adds on its own.
const ALWAYS: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
const ONESHOT: u32 = libc::EPOLLONESHOT as u32;
/// What stays of a one-shot member that has fired: EP_PRIVATE_BITS of fs/eventpoll.c.
const FLAGS: u32 =
    (libc::EPOLLWAKEUP | libc::EPOLLONESHOT | libc::EPOLLET | libc::EPOLLEXCLUSIVE) as u32;
/// All that poll(2) can say, so that whatever a file is ready for makes a one-shot member fire.
const ANY: u32 = (libc::EPOLLIN
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
/// How deep epolls nest: EP_MAX_NESTS of fs/eventpoll.c, and the outermost.
const DEPTH: usize = 5;

impl EpollMember {
    fn source(&self) -> u32 {
        self.at.unwrap_or(self.fd)
    }

    /// A one-shot member that has fired and was not armed again waits for nothing.
    fn fired(&self) -> bool {
        self.events & !FLAGS == 0
    }

    /// As it is added, from this number.
    fn adding(&self, source: RawFd) -> NewMember {
        let fired = self.fired().then_some(ANY);
        let EpollMember { fd, events, data, at: _, lost: _ } = *self;
        NewMember { source, number: fd as RawFd, events, data, fired }
    }
}

/// Parses the `tfd:` lines of fdinfo. Nobody is known to hold the files yet, and so all are lost.
fn members(info: &str) -> Option<Vec<EpollMember>> {
    let lines = info.lines().filter(|line| line.starts_with("tfd:"));
    lines
        .map(|line| {
            Some(EpollMember {
                fd: proc::word(line, "tfd")?.parse().ok()?,
                events: u32::try_from(proc::hex_word(line, "events")?).ok()?,
                data: proc::hex_word(line, "data")?,
                at: None,
                lost: Some(UnopenedFile {
                    dev: proc::device(u32::try_from(proc::hex_word(line, "sdev")?).ok()?),
                    ino: proc::hex_word(line, "ino")?,
                }),
            })
        })
        .collect()
}

/// The numbers of a process in the order that kcmp(2) gives their files, the lowest of each file.
fn in_order(it: &Descriptor<'_>) -> Vec<RawFd> {
    let pid = it.process.pid;
    let compare = |a, b| sys::compare_files((pid, a), (pid, b)).unwrap_or(Ordering::Less);
    let mut sorted: Vec<RawFd> = Vec::new();
    // Not by sort(): a number that is closed meanwhile compares to nothing.
    for number in it.process.numbers().unwrap_or_default() {
        if let Err(place) = sorted.binary_search_by(|&other| compare(other, number)) {
            sorted.insert(place, number);
        }
    }
    sorted
}

/// Finds out which numbers have the files of the members.
fn find(it: &Descriptor<'_>, members: &mut [EpollMember]) {
    let mut before: HashMap<u32, u32> = HashMap::new();
    let mut sorted = None;
    for member in members {
        let offset = before.entry(member.fd).and_modify(|n| *n += 1).or_insert(0);
        let compare =
            |fd| epoll::compare_target((it.process.pid, fd), it.place, member.fd, *offset);
        match compare(member.fd as RawFd) {
            Ok(Ordering::Equal) => member.lost = None,
            Ok(_) | Err(Errno::EBADF) => {
                let sorted = sorted.get_or_insert_with(|| in_order(it));
                let order = |&fd: &RawFd| compare(fd).unwrap_or(Ordering::Less);
                if let Ok(place) = sorted.binary_search_by(order) {
                    member.at = Some(sorted[place] as u32);
                    member.lost = None;
                }
            }
            // Without kcmp(2), or for a member that is no more, the number has to do. Of two members
            // added by one number at most one is there.
            Err(_) if *offset == 0 => member.lost = None,
            Err(_) => (),
        }
    }
}

impl Kind for Epoll {
    const NAME: &'static str = "epoll";

    fn claims(it: &Descriptor<'_>) -> bool {
        it.link.0 == b"anon_inode:[eventpoll]" && !it.is_path()
    }

    fn capture(it: &Descriptor<'_>) -> Result<Self> {
        let mut members = members(&it.info.rest)
            .ok_or_else(|| Error::unrestorable("a tfd line of fdinfo is not understood"))?;
        let mut busy = None;
        match &it.copy {
            Some(copy) => {
                find(it, &mut members);
                let found = epoll::busy(copy.as_fd()).unwrap_or_default();
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
        // fdinfo has them in the order of kernel addresses.
        members.sort();
        Ok(Epoll { pid: it.process.pid, members, busy })
    }

    fn validate(&self, _: &OpenFile) -> Result<()> {
        let mut seen = HashSet::new();
        for member in &self.members {
            let EpollMember { fd, events, data: _, at, lost } = member;
            let armed = events & ALWAYS == ALWAYS;
            let why = if *fd > i32::MAX as u32 {
                "has a number that cannot exist"
            } else if !(armed || member.fired() && events & ONESHOT != 0) {
                "has events that no member can have"
            } else if at.is_some() && lost.is_some() {
                "is at a number and at none"
            } else if lost.is_none() && !seen.insert((*fd, member.source())) {
                "comes twice"
            } else {
                continue;
            };
            return Err(Error::malformed(format!("its member {fd} {why}")));
        }
        match self.busy.as_ref().is_some_and(|busy| busy.usecs > i32::MAX as u32) {
            true => Err(Error::malformed("it polls longer than can be")),
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
                    "is a file (inode {ino} on {major}:{minor}) that the process had at no number"
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
        nesting(file, cx)
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
                cx.warnings.push(format!("fd {fd}: it does not poll network devices: {why}"));
            }
        }
        Ok(Opened::new(new.0, 0))
    }

    fn operation(&self, number: RawFd, cx: &RestoreContext<'_>) -> Result<Option<Operation>> {
        let list = self.to_add(cx)?;
        let members: Vec<NewMember> = list.iter().map(|(from, it)| it.adding(*from)).collect();
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
                Errno::EPERM => "what is at its number cannot be waited for",
                errno => return Err(errno).at(|| format!("add its member {}", member.fd)),
            };
            let line = format!("fd {number}: its member {} is left out: {why}", member.fd);
            cx.warnings.push(line);
        }
        compare(fd, number, &added, cx);
        Ok(())
    }
}

impl Epoll {
    /// The members that can be added, and the numbers of the table that have them, in the order in
    /// which they are added: those that have fired must be alone when they fire again.
    fn to_add(&self, cx: &RestoreContext<'_>) -> Result<Vec<(RawFd, &EpollMember)>> {
        let numbers = cx.numbers_of(self.pid)?;
        let place = |member| Some((numbers.get(EpollMember::source(member))?, member));
        let mut list: Vec<(RawFd, &EpollMember)> = self.members.iter().filter_map(place).collect();
        list.sort_by_key(|(_, member)| !member.fired());
        Ok(list)
    }
}

/// Tells of members that are not what they were: fdinfo of a descriptor shows what the kernel took.
fn compare(fd: BorrowedFd<'_>, number: RawFd, added: &[&EpollMember], cx: &mut RestoreContext<'_>) {
    let text = std::fs::read(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap_or_default();
    let is = members(&FdInfo::parse(&text).rest).unwrap_or_default();
    let is: HashSet<_> = is.iter().map(|member| (member.fd, member.events, member.data)).collect();
    for member in added {
        if is.contains(&(member.fd, member.events, member.data)) {
            continue;
        }
        let why = match member.fired() {
            true => "had fired (EPOLLONESHOT), and wakes again on errors and hang-ups only",
            false => {
                "has other events: EPOLLWAKEUP takes CAP_BLOCK_SUSPEND and a kernel that suspends"
            }
        };
        let line = format!("fd {number}: its member {} {why}", member.fd);
        cx.warnings.push(line);
    }
}

/// Refuses an epoll in which others nest deeper than they can.
fn nesting(file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
    let mut level = HashSet::from([file.id]);
    for _ in 0..DEPTH {
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
        false => Err(Error::unrestorable("epolls nest deeper in it than the kernel lets them")),
    }
}

/// No epoll is a member of itself, nor of one of its members: epoll_ctl(2) fails with ELOOP.
#[derive(Default)]
struct CycleCheck {
    /// The tables of tasks by their process ids.
    tables: HashMap<i32, u32>,
    /// The epolls by file id: the process and its numbers that the members name.
    epolls: BTreeMap<u32, (OpenFile, i32, Vec<u32>)>,
    /// The epolls by table and number.
    slots: HashMap<(u32, u32), u32>,
}

impl CycleCheck {
    /// The epolls that are members of one.
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
        // Epolls all of whose members were seen to lead into no cycle.
        let mut done: HashSet<u32> = HashSet::new();
        for &first in self.epolls.keys() {
            let mut path = vec![(first, self.members(first).collect::<Vec<u32>>())];
            while let Some((id, members)) = path.last_mut() {
                let (id, member) = (*id, members.pop());
                match member {
                    Some(member) if path.iter().any(|(outer, _)| *outer == member) => {
                        let at = name(&self.epolls[&member].0);
                        return Err(Error::malformed("it is a member of itself").at(at));
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
        assert!(two.fired() && !one.fired());
        assert_eq!(members(text), Some(vec![one, two]));
    }

    #[test]
    fn a_line_that_is_not_understood_is_not_passed_over() {
        for text in ["tfd:", "tfd: 5 events: 19 data: 5 pos:0 ino:7", "tfd: -1 events: 0 data: 0"] {
            assert_eq!(members(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_not(text in "(tfd:|events:|data:|ino:|sdev:|[0-9a-f ]|\n|\\PC){0,60}") {
            let _ = members(&text);
        }
    }
}
