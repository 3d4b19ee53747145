//! epoll(7): members with the numbers with which they were added, and with what these numbers refer
//! to now.

use crate::driver::{Bad, Difference, Fixture};
use crate::spec::{At, Result, Spec, Stop};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::epoll::EpollCreateFlags;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::{read, write};
use std::os::fd::{AsFd, OwnedFd, RawFd};

pub(crate) struct Epoll;

const ADD: i32 = libc::EPOLL_CTL_ADD;
const MOD: i32 = libc::EPOLL_CTL_MOD;
const OUT: u32 = libc::EPOLLOUT as u32;
const ONESHOT: u32 = libc::EPOLLONESHOT as u32;
/// EPOLLERR and EPOLLHUP, which the kernel adds.
const ALWAYS: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
/// The flags of each key.
const FLAGS: &[(&str, u32)] = &[
    ("et", libc::EPOLLET as u32),
    ("oneshot", ONESHOT),
    ("exclusive", libc::EPOLLEXCLUSIVE as u32),
];
/// struct epoll_params: 50 microseconds, 8 packets, preferred.
const BUSY: [u8; 8] = [50, 0, 0, 0, 8, 0, 1, 0];

/// A member: the epoll instance, the number with which it was added, and the number of its file
/// now.
#[derive(Clone, Copy, PartialEq)]
struct Member {
    of: RawFd,
    by: RawFd,
    at: RawFd,
}

fn member(of: RawFd, by: RawFd, at: RawFd) -> Member {
    Member { of, by, at }
}

impl Fixture for Epoll {
    const NAME: &'static str = "epoll";
    const ABOUT: &'static str = "an epoll and its member, an eventfd";
    const KEYS: &'static [(&'static str, &'static str)] = &[
        ("events", "what it waits for; EPOLLIN if not given"),
        ("value", "the data of the member, above its number"),
        ("et", "EPOLLET"),
        ("oneshot", "EPOLLONESHOT"),
        ("fired", "EPOLLONESHOT, and the event was taken"),
        ("exclusive", "EPOLLEXCLUSIVE"),
        ("busy", "EPIOCSPARAMS: 50 microseconds, 8 packets, preferred"),
        ("pipe", "the member is a read end; the third number is the write end"),
        ("two", "with dup: the dup of the member is a member too"),
        ("pair", "the second number is another epoll with the same member, the third"),
        ("nested", "the second number is an epoll, the member, with the third for its member"),
        ("moved", "the member was added by this number, closed since"),
        ("reused", "the member was added by the third number, another eventfd's since"),
        ("twice", "as reused, and that one is a member too"),
        ("swapped", "two members, each was added by the number of the other"),
        ("replaced", "the member was added by the number that the epoll has now"),
    ];
    const DIFFERENCES: &'static [Difference] = &[
        ("epoll@3,4:et", "epoll@3,4", "members of 3"),
        ("epoll@3,4:value=7", "epoll@3,4", "members of 3"),
        ("epoll@3,4:moved=9", "epoll@3,4", "members of 3"),
        ("epoll@3,4:replaced", "epoll@3,4", "members of 3"),
        ("epoll@3,4", "epoll@3,4:busy", "busy polling"),
        ("epoll@3,4,5:reused", "epoll@3,4,5:twice", "members of 3"),
    ];

    fn arity(spec: &Spec) -> usize {
        let three = ["pipe", "pair", "nested", "reused", "twice", "swapped"];
        if three.iter().any(|key| spec.has(key)) { 3 } else { 2 }
    }

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        let epoll = || -> Result<OwnedFd> {
            let flags = EpollCreateFlags::EPOLL_CLOEXEC;
            Ok(nix::sys::epoll::Epoll::new(flags).at("epoll_create1")?.0)
        };
        let counter = || -> Result<OwnedFd> {
            Ok(EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC).at("eventfd2")?.into())
        };
        let first = epoll()?;
        if spec.has("busy") {
            match sys::set_busy(sys::at(crate::raw(&first)).at("fcntl")?, BUSY) {
                Err(Errno::ENOTTY | Errno::EINVAL) => {
                    return Err(Stop::Cannot("EPIOCSPARAMS: Linux 6.9 is needed".into()));
                }
                done => done.at("EPIOCSPARAMS")?,
            }
        }
        if spec.has("pipe") {
            let (r, w) = nix::unistd::pipe2(OFlag::O_CLOEXEC).at("pipe2")?;
            return Ok(vec![first, r, w]);
        }
        Ok(match (Self::arity(spec), spec.has("pair") || spec.has("nested")) {
            (2, _) => vec![first, counter()?],
            (_, true) => vec![first, epoll()?, counter()?],
            (_, false) => vec![first, counter()?, counter()?],
        })
    }

    fn finish(spec: &Spec) -> Result<()> {
        for it in members(spec) {
            let epoll = sys::at(it.of).at("fcntl")?;
            let aside = match sys::at(it.by) {
                Ok(there) if it.by != it.at => Some(sys::dup_above(there, 300).at("F_DUPFD")?),
                _ => None,
            };
            let epoll = match &aside {
                Some(aside) if it.by == it.of => aside.as_fd(),
                _ => epoll,
            };
            let file = sys::at(it.at).at("fcntl")?;
            if it.by != it.at {
                sys::dup_to(file, it.by, true).at("dup3")?;
            }
            let mut events = wanted(spec);
            if spec.has("fired") {
                events |= OUT;
                fill(spec, 1).at("write")?;
            }
            sys::epoll_ctl(epoll, ADD, it.by, events, value(spec, it)).at("EPOLL_CTL_ADD")?;
            if spec.has("fired") {
                sys::epoll_wait(epoll).at("epoll_wait")?;
                drain(spec).at("read")?;
            }
            match aside {
                Some(aside) => sys::move_to(aside, it.by, spec.has("cloexec")).at("dup3")?,
                None if it.by != it.at => sys::close(it.by),
                None => {}
            }
        }
        Ok(())
    }

    fn flags(spec: &Spec, nth: usize) -> OFlag {
        match (spec.has("pipe"), nth) {
            (true, 1) => OFlag::O_RDONLY,
            (true, 2) => OFlag::O_WRONLY,
            _ => OFlag::O_RDWR,
        }
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let all = members(spec);
        let mut epolls: Vec<RawFd> = all.iter().map(|it| it.of).collect();
        epolls.dedup();
        if spec.has("busy") {
            bad.same("busy polling", sys::busy(sys::at(spec.fds[0])?)?, BUSY);
        }
        let of = |epoll| all.iter().filter(move |it| it.of == epoll);
        for &epoll in &epolls {
            let row = |it: &Member| (it.by as u64, shown(spec), value(spec, *it));
            let mut made: Vec<_> = of(epoll).map(row).collect();
            made.sort_unstable();
            bad.same(format!("members of {epoll}"), told(epoll), made);
            let ready = sys::epoll_wait(sys::at(epoll)?)?;
            bad.same(format!("what is ready in {epoll}"), ready, Vec::new());
        }
        // The events of all members when there is something to read.
        fill(spec, 1)?;
        for &epoll in epolls.iter().rev() {
            let fd = sys::at(epoll)?;
            if spec.has("fired") {
                bad.same("ready although it has fired", sys::epoll_wait(fd)?, Vec::new());
                for it in of(epoll) {
                    // EPOLL_CTL_MOD finds a member by the number with which it was added, if its
                    // file has that number.
                    sys::dup_to(sys::at(it.at)?, it.by, false)?;
                    sys::epoll_ctl(fd, MOD, it.by, wanted(spec), value(spec, *it))?;
                    if it.by != it.at {
                        sys::close(it.by);
                    }
                }
            }
            let mut ready = sys::epoll_wait(fd)?;
            ready.sort_unstable();
            let mut made: Vec<_> = of(epoll).map(|it| (value(spec, *it), 1)).collect();
            made.sort_unstable();
            bad.same(format!("what is ready in {epoll} then"), ready, made.clone());
            let once = spec.has("et") || spec.has("oneshot") || spec.has("fired");
            let again = if once { 0 } else { made.len() };
            // The event of an inner instance is consumed before the outer one is checked again.
            if !spec.has("nested") {
                bad.same("ready the second time", sys::epoll_wait(fd)?.len(), again);
            }
        }
        drain(spec)
    }
}

fn members(spec: &Spec) -> Vec<Member> {
    let (e, t) = (spec.fds[0], spec.fds[1]);
    let third = spec.fds.get(2).copied().unwrap_or(-1);
    match spec.known_number("moved") {
        Some(number) => vec![member(e, number as RawFd, t)],
        None if spec.has("replaced") => vec![member(e, e, t)],
        None if spec.has("two") => vec![member(e, t, t), member(e, spec.fds[3], spec.fds[3])],
        None if spec.has("pair") => vec![member(e, third, third), member(t, third, third)],
        None if spec.has("nested") => vec![member(e, t, t), member(t, third, third)],
        None if spec.has("reused") => vec![member(e, third, t)],
        None if spec.has("twice") => vec![member(e, third, t), member(e, third, third)],
        None if spec.has("swapped") => vec![member(e, third, t), member(e, t, third)],
        None => vec![member(e, t, t)],
    }
}

/// The requested events.
fn wanted(spec: &Spec) -> u32 {
    let given = FLAGS.iter().filter(|(key, _)| spec.has(key)).map(|(_, flag)| flag);
    let once = if spec.has("fired") { ONESHOT } else { 0 };
    given.fold(spec.known_number("events").unwrap_or(1) as u32 | once, |all, flag| all | flag)
}

/// The events as fdinfo shows them.
fn shown(spec: &Spec) -> u64 {
    let flags = FLAGS.iter().map(|(_, flag)| flag).sum::<u32>();
    let events = if spec.has("fired") { wanted(spec) & flags } else { wanted(spec) | ALWAYS };
    events.into()
}

/// Two members that were added with one number are distinguished by the numbers of their files.
fn value(spec: &Spec, it: Member) -> u64 {
    spec.known_number("value").unwrap_or(0xfeed_0000_0000_0000) + (it.by * 1000 + it.at) as u64
}

/// The numbers to write to, so that the members become ready.
fn sources(spec: &Spec) -> Vec<RawFd> {
    let members = members(spec);
    match spec.has("pipe") {
        true => vec![spec.fds[2]],
        false => {
            let inner = |n| members.iter().any(|it| it.of == n);
            let mut all: Vec<RawFd> =
                members.iter().map(|it| it.at).filter(|&n| !inner(n)).collect();
            all.dedup();
            // A dup has the same count.
            if spec.has("two") {
                all.truncate(1);
            }
            all
        }
    }
}

fn fill(spec: &Spec, count: u64) -> Result<(), Errno> {
    for n in sources(spec) {
        write(sys::at(n)?, &count.to_ne_bytes())?;
    }
    Ok(())
}

fn drain(spec: &Spec) -> Result<(), Errno> {
    for n in sources(spec) {
        let n = if spec.has("pipe") { spec.fds[1] } else { n };
        read(sys::at(n)?, &mut [0; 8])?;
    }
    Ok(())
}

/// The members in fdinfo: number, events, data.
fn told(epoll: RawFd) -> Vec<(u64, u64, u64)> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{epoll}")).unwrap_or_default();
    let number = |word: Option<&str>, base| u64::from_str_radix(word?, base).ok();
    let row = |line: &str| {
        let words: Vec<&str> = line.strip_prefix("tfd:")?.split_ascii_whitespace().collect();
        let at = |n: usize| words.get(n).copied();
        Some((number(at(0), 10)?, number(at(2), 16)?, number(at(4), 16)?))
    };
    let mut all: Vec<_> = info.lines().filter_map(row).collect();
    all.sort_unstable();
    all
}
