//! The processes that have an object open: a socket, a file or a terminal.
//!
//! The kernel keeps no such list. One walk of /proc finds the openers of many objects: it takes a
//! readlink(2) for each descriptor of the system, and a few calls more for each that may be of one.

mod terminal;

pub use terminal::{Opener, copy};

use super::fdinfo::FdInfo;
use super::read::{bracketed, read_at};
use super::stat::{self, Stat};
use crate::image::Inode;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, readlinkat};
use nix::sys::stat::{Mode, fstatat, major, minor};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStringExt;
use terminal::{Device, PTMX, TerminalEnd, TerminalUser, Terminals};

/// Flags of a directory that is read.
const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_CLOEXEC);

/// The openers of one terminal and the members of its session, by pid. `devpts` is the device of its
/// file system: each instance of devpts (each container) has terminals of the same device numbers.
///
/// Only links below /dev are followed: a network file system whose server is gone cannot hang this.
pub fn of_terminal(device: Device, devpts: Option<Device>) -> Vec<Opener> {
    let wanted = Wanted { terminals: Terminals::One(device), ..Wanted::default() };
    Walk::new(&wanted, &HashSet::new()).of_terminal(device, devpts)
}

/// The openers of the objects of a scan. The first question walks /proc, and the findings answer all
/// others.
///
/// A scan that stops its processes asks only when all are stopped: the findings do not change with
/// what a process opens later. A process outside the scan may open an object after the walk.
#[derive(Debug)]
pub struct Openers {
    captured: HashSet<i32>,
    state: RefCell<(Wanted, Option<Walk>)>,
}

impl Openers {
    /// The openers of `objects`, each given by its inode and what readlink(2) shows of it. A question
    /// about any other object walks again. `captured` are the processes of the scan.
    pub fn new<'o>(
        captured: impl IntoIterator<Item = i32>,
        objects: impl IntoIterator<Item = (&'o Inode, &'o [u8])>,
    ) -> Openers {
        let mut wanted = Wanted::default();
        for (inode, link) in objects {
            wanted.add(inode, link);
        }
        let captured = captured.into_iter().collect();
        Openers { captured, state: RefCell::new((wanted, None)) }
    }

    /// True if a process is one of the scan.
    pub fn is_captured(&self, pid: i32) -> bool {
        self.captured.contains(&pid)
    }

    /// A process outside the scan that has an object open, or may have, since it may not be looked
    /// at: the one with the lowest pid, this process left out. None if there is none.
    ///
    /// `link` is what readlink(2) shows of the object. A process that has a file open by another
    /// last name (a hard link, a bind mount) is not found.
    pub fn other_opener(&self, inode: &Inode, link: &[u8]) -> Option<i32> {
        let has = |walk: &Walk| [walk.other_opener(inode, link), walk.unreadable];
        let found = self.ask(|wanted| wanted.add(inode, link), has);
        found.into_iter().flatten().min()
    }

    /// A process outside the scan that may not be looked at: the one with the lowest pid.
    pub fn unreadable(&self) -> Option<i32> {
        self.ask(|_| false, |walk| walk.unreadable)
    }

    /// As the function [`of_terminal`], for a pseudo terminal. Captured processes, and this one, are
    /// among them.
    pub fn of_terminal(&self, device: Device, devpts: Option<Device>) -> Vec<Opener> {
        self.ask(Wanted::add_terminals, |walk| walk.of_terminal(device, devpts))
    }

    /// Answers from the findings of the walk. It is made first if there was none, or if `add` says
    /// that it did not look for this.
    fn ask<T>(&self, add: impl FnOnce(&mut Wanted) -> bool, answer: impl FnOnce(&Walk) -> T) -> T {
        let (wanted, walk) = &mut *self.state.borrow_mut();
        if add(wanted) {
            *walk = None;
        }
        answer(walk.get_or_insert_with(|| Walk::new(wanted, &self.captured)))
    }
}

/// The objects whose openers are looked for.
#[derive(Debug, Default)]
struct Wanted {
    /// All sockets.
    sockets: bool,
    /// Files by their last name, with the inode numbers of all that are called so.
    files: HashMap<Vec<u8>, HashSet<u64>>,
    terminals: Terminals,
}

impl Wanted {
    /// Adds an object. True if it was not wanted before.
    fn add(&mut self, inode: &Inode, link: &[u8]) -> bool {
        if socket(link).is_some() {
            return !std::mem::replace(&mut self.sockets, true);
        }
        match inode.rdev {
            Some(device) if device == PTMX || crate::terminal::slave_index(device).is_some() => {
                self.add_terminals()
            }
            _ => self.files.entry(last_name(link).to_vec()).or_default().insert(inode.ino),
        }
    }

    /// Adds all pseudo terminals. True if they were not wanted before.
    fn add_terminals(&mut self) -> bool {
        std::mem::replace(&mut self.terminals, Terminals::Pseudo) != Terminals::Pseudo
    }
}

/// The inode number of `socket:[7]`.
fn socket(link: &[u8]) -> Option<u64> {
    bracketed(link).filter(|_| link.starts_with(b"socket:["))
}

/// The part of a link behind its last slash, without the mark of a name that is gone: it may go
/// between two looks.
fn last_name(link: &[u8]) -> &[u8] {
    let link = link.strip_suffix(b" (deleted)").unwrap_or(link);
    link.rsplit(|&byte| byte == b'/').next().unwrap_or_default()
}

/// The findings of one walk of /proc.
#[derive(Debug, Default)]
struct Walk {
    /// Inode numbers of sockets, each with the lowest pid that has it open.
    sockets: HashMap<u64, i32>,
    /// Device and inode numbers of files, each with the lowest pid that has it open.
    files: HashMap<(Device, u64), i32>,
    /// The lowest pid of the processes that may not be looked at.
    unreadable: Option<i32>,
    /// Processes with a controlling terminal or an open end of a terminal, ascending.
    users: Vec<TerminalUser>,
    /// Terminals, each with the indices of its users.
    terminals: HashMap<Device, BTreeSet<usize>>,
}

impl Walk {
    /// Looks at all processes. Captured ones, and this one, count as users of terminals only.
    fn new(wanted: &Wanted, captured: &HashSet<i32>) -> Walk {
        let mut walk = Walk::default();
        let us = std::process::id() as i32;
        let terminals = wanted.terminals != Terminals::None;
        for pid in stat::pids() {
            let is_other = pid != us && !captured.contains(&pid);
            if !is_other && !terminals {
                continue;
            }
            let ends = match Dir::open(format!("/proc/{pid}/fd").as_str(), DIRECTORY, Mode::empty())
            {
                Ok(dir) => Some(walk.look(pid, dir, wanted, is_other)),
                // One that has ended meanwhile has nothing open.
                Err(Errno::ENOENT | Errno::ESRCH) => continue,
                // Root alone may look at one that is not waited for yet.
                Err(_) if Stat::of(pid).is_none_or(|stat| stat.is_zombie()) => Some(Vec::new()),
                Err(_) => {
                    walk.unreadable = walk.unreadable.or(is_other.then_some(pid));
                    None
                }
            };
            // None of one that has ended meanwhile.
            if let Some(stat) = terminals.then(|| Stat::of(pid)).flatten() {
                walk.add_user(TerminalUser { pid, stat, ends });
            }
        }
        walk
    }

    /// Looks at the descriptors of a process. Gives those of terminals.
    fn look(
        &mut self,
        pid: i32,
        mut dir: Dir,
        wanted: &Wanted,
        is_other: bool,
    ) -> Vec<(RawFd, TerminalEnd)> {
        let mut numbers: Vec<RawFd> = Vec::new();
        for entry in dir.iter().flatten() {
            numbers.extend(entry.file_name().to_str().ok().and_then(|n| n.parse::<RawFd>().ok()));
        }
        numbers.sort_unstable();
        let mut ends = Vec::new();
        for fd in numbers {
            let name = fd.to_string();
            let Ok(link) = readlinkat(&dir, name.as_str()) else { continue };
            let link = link.into_vec();
            let at = OpenerFd { pid, dir: &dir, name: &name };
            if is_other {
                match socket(&link) {
                    Some(inode) if wanted.sockets => {
                        self.sockets.entry(inode).or_insert(pid);
                    }
                    Some(_) => (),
                    None => {
                        let inodes = wanted.files.get(last_name(&link));
                        if let Some(key) = inodes.and_then(|inodes| at.file(inodes)) {
                            self.files.entry(key).or_insert(pid);
                        }
                    }
                }
            }
            if wanted.terminals != Terminals::None && link.starts_with(b"/dev/") {
                ends.extend(at.end(link, &wanted.terminals).map(|end| (fd, end)));
            }
        }
        ends
    }

    fn add_user(&mut self, user: TerminalUser) {
        let mut devices: Vec<Device> = Vec::new();
        devices.extend(user.controlling_terminal());
        for (_, end) in user.ends.iter().flatten() {
            match end {
                TerminalEnd::Slave { device, .. } => devices.push(*device),
                TerminalEnd::Controlling => (),
                TerminalEnd::Master { index, .. } => {
                    devices.push(crate::terminal::slave_device(*index))
                }
            }
        }
        if devices.is_empty() {
            return;
        }
        for device in devices {
            self.terminals.entry(device).or_default().insert(self.users.len());
        }
        self.users.push(user);
    }

    fn other_opener(&self, inode: &Inode, link: &[u8]) -> Option<i32> {
        match socket(link) {
            Some(inode) => self.sockets.get(&inode).copied(),
            None => self.files.get(&(inode.dev, inode.ino)).copied(),
        }
    }

    fn of_terminal(&self, device: Device, devpts: Option<Device>) -> Vec<Opener> {
        let users = self.terminals.get(&device).into_iter().flatten();
        users.filter_map(|&at| self.users[at].opener(device, devpts)).collect()
    }
}

/// A descriptor of another process.
struct OpenerFd<'a> {
    /// The process.
    pid: i32,
    /// Its /proc/PID/fd.
    dir: &'a Dir,
    /// Its number there.
    name: &'a str,
}

impl OpenerFd<'_> {
    /// Its fdinfo. None if it is closed meanwhile.
    fn info(&self) -> Option<FdInfo> {
        let path = format!("/proc/{}/fdinfo/{}", self.pid, self.name);
        Some(FdInfo::parse(&read_at(AT_FDCWD, &path).ok()?))
    }

    /// Device and inode number of a file whose inode number is among these. No other is asked for
    /// its device, which could wait for a server (FUSE, NFS).
    fn file(&self, inodes: &HashSet<u64>) -> Option<(Device, u64)> {
        // Before Linux 5.14 fdinfo does not tell.
        let ino = self.info()?.ino;
        if ino != 0 && !inodes.contains(&ino) {
            return None;
        }
        let found = fstatat(self.dir, self.name, AtFlags::empty()).ok()?;
        Some(((major(found.st_dev) as u32, minor(found.st_dev) as u32), found.st_ino))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::inode_of;
    use crate::sys::tty;
    use nix::fcntl::readlink;
    use nix::pty::{posix_openpt, unlockpt};
    use nix::sys::stat::fstat;
    use std::fs::File;
    use std::os::fd::{AsFd, AsRawFd, OwnedFd};
    use std::os::unix::net::UnixStream;
    use std::process::{Child, Command};

    /// A child that has only this open, at 0, until it is dropped.
    struct Holder(Child);

    impl Holder {
        fn new(of: impl Into<OwnedFd>) -> Holder {
            Holder(Command::new("sleep").arg("600").stdin(of.into()).spawn().unwrap())
        }

        fn pid(&self) -> i32 {
            self.0.id() as i32
        }
    }

    impl Drop for Holder {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// Inode and link of a descriptor of ours.
    fn object(fd: impl AsFd) -> (Inode, Vec<u8>) {
        let link = readlink(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()).as_str());
        (inode_of(fd.as_fd()).unwrap(), link.unwrap().into_vec())
    }

    /// The pid that has an object open, those aside that may not be looked at. A child of another
    /// test has copies of all that is open here, until it executes a program.
    fn opener(captured: &[i32], (inode, link): &(Inode, Vec<u8>)) -> Option<i32> {
        let find = || {
            let openers = Openers::new(captured.iter().copied(), []);
            let add = |wanted: &mut Wanted| wanted.add(inode, link);
            openers.ask(add, |walk| walk.other_opener(inode, link))
        };
        let same = |_: &i32| {
            let found = find();
            (found == find()).then_some(found)
        };
        (0..100).find_map(|at| same(&at)).unwrap()
    }

    #[test]
    fn a_socket_is_found_by_its_inode_unless_its_opener_is_captured() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mine, other) = (object(&ours), object(&theirs));
        let child = Holder::new(theirs);
        assert_eq!(opener(&[], &other), Some(child.pid()));
        assert_eq!(opener(&[child.pid()], &other), None);
        // We have it, and are no other.
        assert_eq!(opener(&[], &mine), None);
    }

    #[test]
    fn a_file_is_found_by_name_and_inode_even_when_its_name_is_gone() {
        let path = std::env::temp_dir().join(format!("fdkit-openers-{}", std::process::id()));
        let of = |text: &str| {
            std::fs::write(&path, text).unwrap();
            File::open(&path).unwrap()
        };
        let first = of("first");
        let wanted = object(&first);
        let child = Holder::new(first);
        std::fs::remove_file(&path).unwrap();
        // Another of the same name.
        let second = of("second");
        let _child = Holder::new(second.try_clone().unwrap());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(opener(&[], &wanted), Some(child.pid()));
        assert_eq!(opener(&[child.pid()], &wanted), None);
    }

    #[test]
    fn one_walk_answers_for_all_objects() {
        let pairs: Vec<_> = (0..3).map(|_| UnixStream::pair().unwrap()).collect();
        let objects: Vec<_> = pairs.iter().map(|(_, theirs)| object(theirs)).collect();
        let _children: Vec<_> =
            pairs[..2].iter().map(|(_, theirs)| Holder::new(theirs.try_clone().unwrap())).collect();
        let all = objects.iter().map(|(inode, link)| (inode, link.as_slice()));
        let openers = Openers::new([], all);
        assert!(openers.state.borrow().1.is_none(), "nobody has asked yet");
        let ask = |at: usize| {
            let (inode, link) = &objects[at];
            openers.ask(|wanted| wanted.add(inode, link), |walk| walk.other_opener(inode, link))
        };
        assert!(ask(0).is_some() && ask(1).is_some());
        // What came after the walk is not seen, so there was no other.
        let _late = Holder::new(pairs[2].1.try_clone().unwrap());
        assert_eq!(ask(2), None);
        // An object that is not known takes another.
        let (inode, link) = object(File::open("/dev/zero").unwrap());
        openers.other_opener(&inode, &link);
        assert!(ask(2).is_some());
    }

    #[test]
    fn processes_of_others_may_not_be_looked_at() {
        let openers = Openers::new([], []);
        match nix::unistd::geteuid().is_root() {
            true => assert_eq!(openers.unreadable(), None),
            false => {
                let (inode, link) = object(File::open("/dev/zero").unwrap());
                assert!(openers.unreadable().is_some());
                assert!(openers.other_opener(&inode, &link).is_some());
            }
        }
    }

    #[test]
    fn a_terminal_is_found_by_either_end() {
        let close_on_exec = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master_end = posix_openpt(close_on_exec).unwrap();
        unlockpt(&master_end).unwrap();
        let slave_end = tty::peer(&master_end, close_on_exec.bits() as u32).unwrap();
        let found = fstat(&slave_end).unwrap();
        let device = (major(found.st_rdev) as u32, minor(found.st_rdev) as u32);
        let devpts = (major(found.st_dev) as u32, minor(found.st_dev) as u32);
        let slave = Holder::new(slave_end.try_clone().unwrap());
        let master = Holder::new(master_end.as_fd().try_clone_to_owned().unwrap());
        let openers = Openers::new([slave.pid()], []);
        let ends = |devpts| {
            let found = openers.of_terminal(device, Some(devpts));
            let of = |pid| found.iter().find(|it| it.pid == pid).cloned();
            (of(slave.pid()), of(master.pid()))
        };
        let (Some(slave_found), Some(master_found)) = ends(devpts) else { panic!() };
        assert_eq!(
            (slave_found.fds.as_deref(), &slave_found.masters[..]),
            (Some(&[0][..]), &[][..])
        );
        assert_eq!(
            (master_found.fds.as_deref(), &master_found.masters[..]),
            (Some(&[][..]), &[0][..])
        );
        assert!(!slave_found.member && slave_found.comm.0 == b"sleep");
        assert!(openers.is_captured(slave.pid()) && !openers.is_captured(master.pid()));
        // That of the same number in another devpts.
        assert_eq!(ends((devpts.0, devpts.1 + 1)), (None, None));
        let alone = of_terminal(device, Some(devpts));
        assert!(alone.iter().any(|it| it == &slave_found));
        assert!(copy(&alone).is_some_and(|fd| tty::winsize(&fd).is_ok()));
    }
}
