//! epoll(7): members by any number, and what nix has no name for.

use super::clone_files;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Compares the open file description of a descriptor to that of a member of an epoll, in the order
/// of [`super::compare_files`]: kcmp(2) KCMP_EPOLL_TFD, Linux 4.13.
///
/// Both descriptors are given as a process and a number. `target` is the number by which the member
/// was added, `offset` its index among those that were added by it, in the order of fdinfo.
pub fn compare_target(
    (pid, fd): (i32, RawFd),
    (holder, epoll): (i32, RawFd),
    target: u32,
    offset: u32,
) -> nix::Result<Ordering> {
    // linux/kcmp.h
    const KCMP_EPOLL_TFD: i32 = 7;
    let slot = [epoll as u32, target, offset];
    let kind = KCMP_EPOLL_TFD;
    // SAFETY: the kernel reads one kcmp_epoll_slot, which is three 32 bit numbers.
    let order =
        unsafe { libc::syscall(libc::SYS_kcmp, pid, holder, kind, fd as libc::c_ulong, &slot) };
    match Errno::result(order)? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        _ => Ok(Ordering::Greater),
    }
}

/// The busy polling of an epoll: struct epoll_params of ioctl_eventpoll(2), Linux 6.9.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Params {
    /// The time for which network devices are polled, in microseconds.
    pub usecs: u32,
    /// The most packets at a time.
    pub budget: u16,
    /// 1 if polling is preferred to interrupts.
    pub prefer: u8,
    pad: u8,
}

impl Params {
    /// The parameters to set.
    pub fn new(usecs: u32, budget: u16, prefer: bool) -> Params {
        Params { usecs, budget, prefer: prefer.into(), pad: 0 }
    }
}

/// Reads the busy polling of an epoll: EPIOCGPARAMS of ioctl_eventpoll(2). Fails with ENOTTY before
/// Linux 6.9.
pub fn busy(epoll: BorrowedFd<'_>) -> nix::Result<Params> {
    let mut busy = Params::default();
    // SAFETY: the kernel fills one epoll_params, which Params is.
    Errno::result(unsafe { libc::ioctl(epoll.as_raw_fd(), libc::EPIOCGPARAMS, &mut busy) })?;
    Ok(busy)
}

/// Sets the busy polling of an epoll: EPIOCSPARAMS of ioctl_eventpoll(2). More than 64 packets take
/// CAP_NET_ADMIN.
pub fn set_busy(epoll: BorrowedFd<'_>, busy: Params) -> nix::Result<()> {
    // SAFETY: the kernel reads one epoll_params, which Params is.
    Errno::result(unsafe { libc::ioctl(epoll.as_raw_fd(), libc::EPIOCSPARAMS, &busy) }).map(drop)
}

/// What is to be added to an epoll.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewMember {
    /// The number in this table of what is added.
    pub source: RawFd,
    /// The number by which it is added, and which the epoll has for it from then on. It may mean
    /// something else here, or be free.
    pub number: RawFd,
    /// The events, with EPOLLONESHOT and the like.
    pub events: u32,
    /// The data.
    pub data: u64,
    /// It has reported an event, with EPOLLONESHOT: it is added with these events, of which one is taken if any is
    /// there. No other member may be ready meanwhile.
    pub reported: Option<u32>,
}

/// Adds members in this order: EPOLL_CTL_ADD of epoll_ctl(2). Gives what came of each.
///
/// Numbers that mean something else here get their meaning in a copy of the descriptor table, below
/// the soft RLIMIT_NOFILE. Fails if that cannot be made. A member fails with EBADF if its source is
/// not open, with EPERM if that cannot be waited for, with EEXIST if it is there already.
pub fn add_members(
    epoll: BorrowedFd<'_>,
    members: &[NewMember],
) -> nix::Result<Vec<nix::Result<()>>> {
    let add = |epoll: BorrowedFd<'_>| members.iter().map(|member| member.add(epoll)).collect();
    if members.iter().all(|member| member.source == member.number) {
        return Ok(add(epoll));
    }
    let is_needed = |number| members.iter().any(|member| member.number == number);
    let all = || match is_needed(epoll.as_raw_fd()) {
        // Its own number will mean a member for a moment, so it is called by another.
        true => {
            let mut copy = epoll.try_clone_to_owned()?;
            while is_needed(copy.as_raw_fd()) {
                let above = FcntlArg::F_DUPFD_CLOEXEC(copy.as_raw_fd() + 1);
                // SAFETY: fcntl returned a new descriptor that nobody else owns.
                copy = unsafe { OwnedFd::from_raw_fd(fcntl(epoll, above)?) };
            }
            Ok(add(copy.as_fd()))
        }
        false => Ok(add(epoll)),
    };
    // SAFETY: what is opened there is owned by nobody but those who close it there.
    let done: std::io::Result<_> = unsafe { clone_files::with_copied_table(all)? };
    done.map_err(|err| err.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
}

impl NewMember {
    /// In a copy of the table, if its numbers differ.
    fn add(&self, epoll: BorrowedFd<'_>) -> nix::Result<()> {
        if self.source == self.number {
            return self.add_by_number(epoll);
        }
        // Before the copy below, which could come to stand at this number.
        // SAFETY: F_GETFD takes no pointer and changes nothing, whatever the number means.
        Errno::result(unsafe { libc::fcntl(self.source, libc::F_GETFD) })?;
        // SAFETY: dup takes an integer.
        let replaced = match Errno::result(unsafe { libc::dup(self.number) }) {
            // SAFETY: dup returned a new descriptor that nobody else owns.
            Ok(copy) => Some(unsafe { OwnedFd::from_raw_fd(copy) }),
            Err(Errno::EBADF) => None,
            Err(errno) => return Err(errno),
        };
        // SAFETY: dup3 takes integers; whoever owns the number owns it in the table that this one
        // is a copy of, and what stood there is put back below.
        Errno::result(unsafe { libc::dup3(self.source, self.number, libc::O_CLOEXEC) })?;
        let outcome = self.add_by_number(epoll);
        match replaced {
            // SAFETY: as above.
            Some(fd) => Errno::result(unsafe { libc::dup3(fd.as_raw_fd(), self.number, 0) })?,
            // SAFETY: the number was free before, so nobody owns what stands there now.
            None => Errno::result(unsafe { libc::close(self.number) })?,
        };
        outcome
    }

    fn add_by_number(&self, epoll: BorrowedFd<'_>) -> nix::Result<()> {
        let Some(ready) = self.reported else {
            return self.control(epoll, libc::EPOLL_CTL_ADD, self.events);
        };
        self.control(epoll, libc::EPOLL_CTL_ADD, self.events | ready)?;
        match take_event(epoll)? {
            true => Ok(()),
            false => self.control(epoll, libc::EPOLL_CTL_MOD, self.events),
        }
    }

    fn control(&self, epoll: BorrowedFd<'_>, operation: i32, events: u32) -> nix::Result<()> {
        let mut event = libc::epoll_event { events, u64: self.data };
        // SAFETY: the kernel reads one epoll_event, and takes any number.
        Errno::result(unsafe {
            libc::epoll_ctl(epoll.as_raw_fd(), operation, self.number, &raw mut event)
        })
        .map(drop)
    }
}

/// Takes an event, if there is one: epoll_wait(2) without waiting.
fn take_event(epoll: BorrowedFd<'_>) -> nix::Result<bool> {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: the kernel fills one epoll_event at most.
    let count = unsafe { libc::epoll_wait(epoll.as_raw_fd(), &raw mut event, 1, 0) };
    Ok(Errno::result(count)? > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::epoll::{Epoll, EpollCreateFlags};
    use nix::sys::eventfd::EventFd;

    /// The `tfd:` lines of fdinfo: number, events and data.
    fn members(epoll: &Epoll) -> Vec<String> {
        let path = format!("/proc/self/fdinfo/{}", epoll.0.as_raw_fd());
        let text = std::fs::read_to_string(path).unwrap();
        let words = |line: &str| line.split_whitespace().take(6).collect::<Vec<_>>().join(" ");
        text.lines().filter(|line| line.starts_with("tfd:")).map(words).collect()
    }

    #[test]
    fn a_member_is_added_by_a_number_that_means_something_else() {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let (event, other) = (EventFd::new().unwrap(), std::fs::File::open("/dev/null").unwrap());
        let source = event.as_fd().as_raw_fd();
        let member = |source, number, data| NewMember {
            source,
            number,
            events: libc::EPOLLIN as u32,
            data,
            reported: None,
        };
        let taken = other.as_raw_fd();
        let free = 1000;
        let list = [
            member(source, taken, 1),
            member(source, free, 2),
            member(source, source, 3),
            member(999, taken, 4),
            member(source, source, 5),
            member(taken, taken, 6),
            member(source, epoll.0.as_raw_fd(), 7),
        ];
        let outcomes = add_members(epoll.0.as_fd(), &list).unwrap();
        let errors = [Ok(()), Ok(()), Ok(()), Err(Errno::EBADF), Err(Errno::EEXIST)];
        assert_eq!(outcomes[..5], errors);
        assert_eq!(outcomes[5..], [Err(Errno::EPERM), Ok(())]);
        let line = |number, data| format!("tfd: {number} events: 19 data: {data:x}");
        let mut wanted =
            [line(taken, 1), line(free, 2), line(source, 3), line(epoll.0.as_raw_fd(), 7)];
        let mut found = members(&epoll);
        wanted.sort();
        found.sort();
        assert_eq!(found, wanted);
        // Here the numbers mean what they meant.
        assert!(other.metadata().unwrap().len() == 0 && !other.metadata().unwrap().is_file());
        assert!(std::fs::read_link(format!("/proc/self/fd/{free}")).is_err());
    }

    #[test]
    fn a_member_that_has_fired_waits_for_nothing() {
        let once = libc::EPOLLONESHOT as u32;
        for count in [0, 1] {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
            let event = EventFd::from_value(count).unwrap();
            let number = event.as_fd().as_raw_fd();
            let ready = Some(libc::EPOLLIN as u32);
            let member =
                NewMember { source: number, number, events: once, data: 0, reported: ready };
            assert_eq!(add_members(epoll.0.as_fd(), &[member]), Ok(vec![Ok(())]));
            // The kernel adds EPOLLERR and EPOLLHUP to what is set, and takes all from what was reported.
            let events = if count > 0 { once } else { once | 0x18 };
            assert_eq!(members(&epoll), [format!("tfd: {number} events: {events:x} data: 0")]);
        }
    }
}
