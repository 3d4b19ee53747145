//! The processes that have to do with a terminal: the members of its session, and those that have
//! either end open.

use super::OpenerFd;
use crate::image::Bytes;
use crate::proc::stat::Stat;
use crate::sys::{self, tty};
use crate::terminal;
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::libc;
use nix::sys::stat::{fstatat, major, minor};
use std::os::fd::{AsFd, OwnedFd, RawFd};

/// Major and minor number of a device.
pub(super) type Device = (u32, u32);

/// /dev/tty: the controlling terminal of the process that opens it.
const DEV_TTY: Device = (5, 0);
/// /dev/ptmx, and the node `ptmx` of a devpts.
pub(super) const PTMX: Device = (5, 2);

/// A process that has a terminal open, or is of its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opener {
    /// Its id.
    pub pid: i32,
    /// Its session.
    pub sid: i32,
    /// Its process group.
    pub pgid: i32,
    /// The foreground process group of its controlling terminal; -1 if there is none.
    pub foreground: i32,
    /// The name of its program.
    pub comm: Bytes,
    /// True if the terminal is its controlling terminal.
    pub member: bool,
    /// Its descriptors of the terminal, ascending; none if they may not be looked at.
    pub fds: Option<Vec<RawFd>>,
    /// Its descriptors of the master of the terminal, ascending.
    pub masters: Vec<RawFd>,
}

/// A copy of a descriptor of a terminal, or of its master, from one of its openers (pidfd_getfd(2)).
/// None if no opener gives one that has not hung up. Fails if there is none since a call failed, other
/// than for lack of a right.
///
/// To open the terminal could block, and would be noticed at the other end.
pub fn copy(openers: &[Opener]) -> nix::Result<Option<OwnedFd>> {
    let ends =
        |it: &Opener| it.fds.iter().flatten().chain(&it.masters).copied().collect::<Vec<_>>();
    let mut failed = None;
    for opener in openers {
        let copies = ends(opener).into_iter().map(|fd| {
            let pidfd = sys::pidfd_open(opener.pid)?;
            sys::pidfd_getfd(pidfd.as_fd(), fd)
        });
        for copy in copies {
            match copy {
                Ok(copy) if tty::winsize(&copy) == Err(Errno::EIO) => (),
                Ok(copy) => return Ok(Some(copy)),
                Err(Errno::EPERM | Errno::ESRCH | Errno::EBADF) => (),
                Err(errno) => failed = Some(errno),
            }
        }
    }
    failed.map_or(Ok(None), Err)
}

/// The terminals whose openers are looked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Terminals {
    #[default]
    None,
    /// That of this device.
    One(Device),
    /// All pseudo terminals.
    Pseudo,
}

impl Terminals {
    /// True if a node of this device number may be an end of one of them.
    pub(super) fn may_have(&self, rdev: Device) -> bool {
        match self {
            Terminals::None => false,
            Terminals::One(device) => [*device, DEV_TTY, PTMX].contains(&rdev),
            Terminals::Pseudo => {
                [DEV_TTY, PTMX].contains(&rdev) || terminal::slave_index(rdev).is_some()
            }
        }
    }
}

/// A process that has to do with terminals.
#[derive(Debug)]
pub(super) struct TerminalUser {
    pub(super) pid: i32,
    pub(super) stat: Stat,
    /// Its descriptors of terminals, ascending; none if they may not be looked at.
    pub(super) ends: Option<Vec<(RawFd, TerminalEnd)>>,
}

/// An end of a terminal.
#[derive(Debug)]
pub(super) enum TerminalEnd {
    /// A node with this device number, on a file system with the other one.
    Slave { device: Device, devpts: Device },
    /// /dev/tty.
    Controlling,
    /// The master of the terminal with this index, by the path that readlink(2) shows.
    Master { index: u32, link: Vec<u8> },
}

impl TerminalUser {
    /// The device of its controlling terminal.
    pub(super) fn controlling_terminal(&self) -> Option<Device> {
        let device = self.stat.field(7) as u32;
        (device != 0).then(|| tty::numbers(device))
    }

    /// The terminals that it has to do with.
    pub(super) fn devices(&self) -> Vec<Device> {
        let of_end = |(_, end): &(RawFd, TerminalEnd)| match end {
            TerminalEnd::Slave { device, .. } => Some(*device),
            TerminalEnd::Controlling => None,
            TerminalEnd::Master { index, .. } => Some(terminal::slave_device(*index)),
        };
        let ends = self.ends.iter().flatten().filter_map(of_end);
        self.controlling_terminal().into_iter().chain(ends).collect()
    }

    /// Its descriptors of one terminal. None if it is not of its session and has none.
    pub(super) fn opener(&self, device: Device, devpts: Option<Device>) -> Option<Opener> {
        let member = self.controlling_terminal() == Some(device);
        let (mut fds, mut masters) = (Vec::new(), Vec::new());
        for (fd, end) in self.ends.iter().flatten() {
            match end {
                TerminalEnd::Slave { device: has, devpts: on } => {
                    let is = *has == device && devpts.is_none_or(|devpts| devpts == *on);
                    fds.extend(is.then_some(*fd));
                }
                TerminalEnd::Controlling => fds.extend(member.then_some(*fd)),
                TerminalEnd::Master { index, link } => {
                    let node = || terminal::slave_node(self.pid, link, *index);
                    let is = terminal::slave_device(*index) == device
                        && devpts.is_none_or(|devpts| node().is_none_or(|it| it.dev == devpts));
                    masters.extend(is.then_some(*fd));
                }
            }
        }
        if !member && fds.is_empty() && masters.is_empty() {
            return None;
        }
        Some(Opener {
            pid: self.pid,
            sid: self.stat.field(6) as i32,
            pgid: self.stat.field(5) as i32,
            foreground: self.stat.field(8) as i32,
            comm: self.stat.name().into(),
            member,
            fds: self.ends.is_some().then_some(fds),
            masters,
        })
    }
}

impl OpenerFd<'_> {
    /// The end of a terminal that it is. None of another file, and of a mere path (O_PATH).
    pub(super) fn end(
        &self,
        link: Vec<u8>,
        terminals: &Terminals,
    ) -> nix::Result<Option<TerminalEnd>> {
        let found = fstatat(self.dir, self.name, AtFlags::empty())?;
        let device = |device| (major(device) as u32, minor(device) as u32);
        let rdev = device(found.st_rdev);
        if found.st_mode & libc::S_IFMT != libc::S_IFCHR || !terminals.may_have(rdev) {
            return Ok(None);
        }
        let info = self.info()?;
        if info.flags & libc::O_PATH as u32 != 0 {
            return Ok(None);
        }
        Ok(match rdev {
            DEV_TTY => Some(TerminalEnd::Controlling),
            PTMX => {
                let index = info.get("tty-index").and_then(|index| index.parse().ok());
                index.map(|index| TerminalEnd::Master { index, link })
            }
            _ => Some(TerminalEnd::Slave { device: rdev, devpts: device(found.st_dev) }),
        })
    }
}
