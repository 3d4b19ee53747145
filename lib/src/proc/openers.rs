//! Who has a terminal: the members of its session, and whoever has a descriptor of either end. And
//! who else has an object open.

use crate::image::{Bytes, Inode};
use crate::proc::{self, FdInfo};
use crate::sys::{self, tty};
use crate::terminal;
use nix::errno::Errno;
use nix::libc;
use nix::sys::stat::{major, minor, stat};
use std::fs::ReadDir;
use std::os::fd::{AsFd, OwnedFd, RawFd};

/// A process that has to do with a terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opener {
    /// Its id.
    pub pid: i32,
    /// Its session.
    pub sid: i32,
    /// Its process group.
    pub pgid: i32,
    /// The foreground group of its session.
    pub foreground: i32,
    /// The name of its program.
    pub comm: Bytes,
    /// Whether the terminal is its controlling terminal.
    pub member: bool,
    /// Its descriptors of the terminal; none if we may not look.
    pub fds: Option<Vec<RawFd>>,
    /// Its descriptors of the master of the terminal.
    pub masters: Vec<RawFd>,
}

/// All that have to do with a terminal, ascending. `devpts` is the device of its file system, where
/// there may be another with its device number in another one (a container).
///
/// Only links below /dev are looked at closer: a dead network file system cannot hang this.
pub fn of(device: (u32, u32), devpts: Option<(u32, u32)>) -> Vec<Opener> {
    let wanted = i64::from(tty::encoded(device) as i32);
    let known = |pid: i32, stat: proc::Stat| {
        let member = stat.field(7) == wanted;
        let found = descriptors(pid, device, devpts, member);
        let has = |(fds, masters): &(Vec<_>, Vec<_>)| fds.len() + masters.len() > 0;
        if !member && !found.as_ref().is_some_and(has) {
            return None;
        }
        let (fds, masters) = found.map_or((None, Vec::new()), |(fds, m)| (Some(fds), m));
        Some(Opener {
            pid,
            sid: stat.field(6) as i32,
            pgid: stat.field(5) as i32,
            foreground: stat.field(8) as i32,
            comm: stat.name().into(),
            member,
            fds,
            masters,
        })
    };
    proc::all().filter_map(|(pid, stat)| known(pid, stat)).collect()
}

/// The numbers of a process that are the terminal, and its master.
fn descriptors(
    pid: i32,
    device: (u32, u32),
    devpts: Option<(u32, u32)>,
    member: bool,
) -> Option<(Vec<RawFd>, Vec<RawFd>)> {
    let (mut fds, mut masters) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten() {
        let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(link) = std::fs::read_link(entry.path()) else { continue };
        if !link.starts_with("/dev") {
            continue;
        }
        let Ok(is) = stat(&entry.path()) else { continue };
        let rdev = (major(is.st_rdev) as u32, minor(is.st_rdev) as u32);
        let info =
            || std::fs::read(format!("/proc/{pid}/fdinfo/{fd}")).map(|it| FdInfo::parse(&it));
        if is.st_mode & libc::S_IFMT != libc::S_IFCHR
            || info().is_ok_and(|it| it.flags & libc::O_PATH as u32 != 0)
        {
            continue;
        }
        let here = devpts.is_none_or(|it| it == (major(is.st_dev) as u32, minor(is.st_dev) as u32));
        match rdev {
            (5, 0) if member => fds.push(fd),
            (5, 2) => {
                let index = info().ok().and_then(|it| it.get("tty-index")?.parse().ok());
                let at =
                    |index| terminal::slave_node(pid, link.as_os_str().as_encoded_bytes(), index);
                let same = |index| match (devpts, at(index)) {
                    (Some(devpts), Some(found)) => devpts == found.dev,
                    _ => true,
                };
                if index.is_some()
                    && index == terminal::slave_index(device)
                    && index.is_some_and(same)
                {
                    masters.push(fd);
                }
            }
            _ if rdev == device && here => fds.push(fd),
            _ => (),
        }
    }
    fds.sort_unstable();
    masters.sort_unstable();
    Some((fds, masters))
}

/// A descriptor of ours for the terminal, or for its master, from one of those that have it: to
/// open it could wait, and would show at the other end.
pub fn copy(holders: &[Opener]) -> Option<OwnedFd> {
    let ends =
        |it: &Opener| it.fds.iter().flatten().chain(&it.masters).copied().collect::<Vec<_>>();
    holders.iter().find_map(|holder| {
        let pidfd = sys::pidfd_open(holder.pid).ok()?;
        let alive = |fd: &OwnedFd| tty::winsize(fd) != Err(Errno::EIO);
        let fetch = |fd| sys::pidfd_getfd(pidfd.as_fd(), fd).ok();
        ends(holder).into_iter().filter_map(fetch).find(alive)
    })
}

/// A process that is neither us nor one of these and has an object open, or may have, since it may
/// not be looked at. `name` is the last part of what readlink(2) shows of the object: only what is
/// called so is looked at closer.
pub fn another(inode: &Inode, name: &[u8], known: &[i32]) -> Option<i32> {
    stranger(known, |dir| {
        dir.flatten().any(|entry| {
            let link = std::fs::read_link(entry.path()).unwrap_or_default();
            link.as_os_str().as_encoded_bytes().ends_with(name)
                && stat(&entry.path()).is_ok_and(|it| {
                    let dev = (major(it.st_dev) as u32, minor(it.st_dev) as u32);
                    (dev, it.st_ino) == (inode.dev, inode.ino)
                })
        })
    })
}

/// A process that is neither us nor one of these and may not be looked at.
pub fn hidden(known: &[i32]) -> Option<i32> {
    stranger(known, |_| false)
}

/// A process that is neither us nor one of these, and whose numbers are such, or may not be known.
fn stranger(known: &[i32], has: impl Fn(ReadDir) -> bool) -> Option<i32> {
    let us = std::process::id() as i32;
    let others = proc::all().map(|(pid, _)| pid).filter(|pid| *pid != us && !known.contains(pid));
    others.into_iter().find(|pid| match std::fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(dir) => has(dir),
        // One that has ended has nothing open.
        Err(err) => {
            err.kind() != std::io::ErrorKind::NotFound
                && !proc::Stat::of(*pid).is_none_or(|stat| stat.is_zombie())
        }
    })
}
