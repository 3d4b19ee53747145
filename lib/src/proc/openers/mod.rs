//! The processes that have an object open: a socket, a file or a terminal.
//!
//! The kernel keeps no such list. One walk of /proc finds the openers of many objects: it takes a
//! readlink(2) for each descriptor of the system, and a few calls more for each that may be of one.

mod terminal;
mod watch;

pub use terminal::{Opener, copy};
pub use watch::OpenWatch;

use super::fdinfo::FdInfo;
use super::read::{bracketed, read_at};
use super::stat::{self, Stat};
use crate::error::Error;
use crate::image::Inode;
use crate::sys::device;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, readlinkat};
use nix::sys::stat::{Mode, fstatat};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStringExt;
use terminal::{Device, PTMX, TerminalEnd, TerminalUser, Terminals};

/// Flags of a directory that is read.
const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_CLOEXEC);

/// The openers of one terminal and the members of its session, by pid; and the first call that failed,
/// if one did: the list may then lack openers. `devpts` is the device of the file system of the
/// terminal, since every instance of devpts (every container) has terminals of the same device numbers.
///
/// Only links below /dev are followed: a network file system whose server is gone cannot hang this.
pub fn of_terminal(device: Device, devpts: Option<Device>) -> (Vec<Opener>, Option<String>) {
    let wanted = Wanted { terminals: Terminals::One(device), ..Wanted::default() };
    let walk = Walk::new(&wanted, &HashSet::new());
    (walk.of_terminal(device, devpts), walk.failed)
}

/// The openers of the objects of a scan. The first question walks /proc, and the findings answer all
/// others.
///
/// The walk takes time for each descriptor of the system. A scan that stops its processes makes it
/// before ([`Openers::walk`]), and looks again only at what may have changed when all are stopped
/// ([`Openers::update`]).
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

    /// Looks for the openers now, and for those of all sockets and pseudo terminals too.
    pub fn walk(&mut self) {
        let (wanted, walk) = self.state.get_mut();
        wanted.sockets = true;
        wanted.add_terminals();
        *walk = Some(Walk::new(wanted, &self.captured));
    }

    /// Brings the findings up to date: looks at the processes of the scan, which are stopped by now,
    /// and at those that have begun since. Another process cannot have come to an object, unless it has
    /// opened it or received a descriptor of it.
    ///
    /// `opened` says that one was opened, or may have been: then all is looked for again.
    pub fn update(&mut self, captured: impl IntoIterator<Item = i32>, opened: bool) {
        let captured: HashSet<i32> = captured.into_iter().collect();
        let before = std::mem::replace(&mut self.captured, captured);
        let (wanted, found) = self.state.get_mut();
        let Some(walk) = found else { return };
        // One that counts as outside the scan is in the findings with what it has open.
        let joined =
            self.captured.iter().any(|pid| !before.contains(pid) && walk.seen.contains(pid));
        match opened || joined || before.iter().any(|pid| !self.captured.contains(pid)) {
            true => *found = None,
            false => walk.look_again(wanted, &self.captured),
        }
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
    /// The processes that were looked at.
    seen: HashSet<i32>,
    /// The first call that has failed, other than for lack of a right or since a process has ended.
    failed: Option<String>,
}

impl Walk {
    /// Looks at all processes. Captured ones, and this one, count as users of terminals only.
    fn new(wanted: &Wanted, captured: &HashSet<i32>) -> Walk {
        let mut walk = Walk::default();
        let pids = walk.pids();
        let users = walk.look_at(pids, wanted, captured);
        walk.set_users(users);
        walk
    }

    /// Looks again at captured processes, and at those that have begun since.
    fn look_again(&mut self, wanted: &Wanted, captured: &HashSet<i32>) {
        let pids = self.pids().into_iter();
        let pids = pids.filter(|pid| captured.contains(pid) || !self.seen.contains(pid)).collect();
        let mut users = std::mem::take(&mut self.users);
        users.retain(|user| !captured.contains(&user.pid));
        users.extend(self.look_at(pids, wanted, captured));
        self.set_users(users);
    }

    /// The ids of all processes.
    fn pids(&mut self) -> Vec<i32> {
        stat::pids().unwrap_or_else(|err| {
            self.fail(None, "/proc".to_owned(), err.into());
            Vec::new()
        })
    }

    /// Records a call that has failed. What this process has open is then not known whole.
    fn fail(&mut self, pid: Option<i32>, what: String, err: Error) {
        self.failed.get_or_insert_with(|| format!("{what}: {err}"));
        self.unreadable = self.unreadable.into_iter().chain(pid).min();
    }

    /// Looks at processes. Gives those that have to do with a terminal.
    fn look_at(
        &mut self,
        pids: Vec<i32>,
        wanted: &Wanted,
        captured: &HashSet<i32>,
    ) -> Vec<TerminalUser> {
        let us = std::process::id() as i32;
        let terminals = wanted.terminals != Terminals::None;
        let mut users = Vec::new();
        for pid in pids {
            self.seen.insert(pid);
            let is_other = pid != us && !captured.contains(&pid);
            if !is_other && !terminals {
                continue;
            }
            let ends = match Dir::open(format!("/proc/{pid}/fd").as_str(), DIRECTORY, Mode::empty())
            {
                Ok(dir) => Some(self.look(pid, dir, wanted, is_other)),
                // One that has ended meanwhile has nothing open.
                Err(Errno::ENOENT | Errno::ESRCH) => continue,
                // Root alone may look at one that is not waited for yet.
                Err(_) if Stat::of(pid).is_none_or(|stat| stat.is_zombie()) => Some(Vec::new()),
                Err(errno) => {
                    if !matches!(errno, Errno::EACCES | Errno::EPERM) {
                        self.fail(None, format!("/proc/{pid}/fd"), errno.into());
                    }
                    let others = self.unreadable.into_iter().chain(is_other.then_some(pid));
                    self.unreadable = others.min();
                    None
                }
            };
            // None of one that has ended meanwhile.
            match if terminals { Stat::read(pid) } else { Ok(None) } {
                Ok(Some(stat)) => users.push(TerminalUser { pid, stat, ends }),
                Ok(None) => (),
                Err(err) => self.fail(Some(pid), format!("/proc/{pid}/stat"), err.into()),
            }
        }
        users
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
        for entry in dir.iter() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(Errno::ENOENT | Errno::ESRCH) => break,
                Err(errno) => {
                    self.fail(is_other.then_some(pid), format!("/proc/{pid}/fd"), errno.into());
                    break;
                }
            };
            numbers.extend(entry.file_name().to_str().ok().and_then(|n| n.parse::<RawFd>().ok()));
        }
        numbers.sort_unstable();
        let mut ends = Vec::new();
        for fd in numbers {
            let name = fd.to_string();
            let fail = |walk: &mut Walk, errno: Errno| {
                if !is_expected(errno) {
                    walk.fail(
                        is_other.then_some(pid),
                        format!("/proc/{pid}/fd/{fd}"),
                        errno.into(),
                    );
                }
            };
            let link = match readlinkat(&dir, name.as_str()) {
                Ok(link) => link.into_vec(),
                Err(errno) => {
                    fail(self, errno);
                    continue;
                }
            };
            let at = OpenerFd { pid, dir: &dir, name: &name };
            if is_other {
                match socket(&link) {
                    Some(inode) if wanted.sockets => keep_lowest(&mut self.sockets, inode, pid),
                    Some(_) => (),
                    None => {
                        let inodes = wanted.files.get(last_name(&link));
                        match inodes.map_or(Ok(None), |inodes| at.file(inodes)) {
                            Ok(Some(key)) => keep_lowest(&mut self.files, key, pid),
                            Ok(None) => (),
                            Err(errno) => fail(self, errno),
                        }
                    }
                }
            }
            if wanted.terminals != Terminals::None && link.starts_with(b"/dev/") {
                match at.end(link, &wanted.terminals) {
                    Ok(end) => ends.extend(end.map(|end| (fd, end))),
                    Err(errno) => fail(self, errno),
                }
            }
        }
        ends
    }

    /// Sets the processes that have to do with terminals.
    fn set_users(&mut self, mut users: Vec<TerminalUser>) {
        users.sort_unstable_by_key(|user| user.pid);
        self.users.clear();
        self.terminals.clear();
        for user in users {
            let devices = user.devices();
            for device in &devices {
                self.terminals.entry(*device).or_default().insert(self.users.len());
            }
            if !devices.is_empty() {
                self.users.push(user);
            }
        }
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

/// Records an opener, unless one with a lower pid is known.
fn keep_lowest<K: Eq + Hash>(openers: &mut HashMap<K, i32>, key: K, pid: i32) {
    openers.entry(key).and_modify(|known| *known = pid.min(*known)).or_insert(pid);
}

/// Reports whether a call has failed since a number was closed, its process has ended, or may not be
/// looked at (EACCES: proc_fd_permission() and proc_pid_readlink() of the kernel).
fn is_expected(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::ESRCH | Errno::EBADF | Errno::EACCES)
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
    /// Its fdinfo.
    fn info(&self) -> nix::Result<FdInfo> {
        let path = format!("/proc/{}/fdinfo/{}", self.pid, self.name);
        Ok(FdInfo::parse(&read_at(AT_FDCWD, &path)?))
    }

    /// Device and inode number of a file whose inode number is among these. No other is asked for
    /// its device, which could wait for a server (FUSE, NFS).
    fn file(&self, inodes: &HashSet<u64>) -> nix::Result<Option<(Device, u64)>> {
        // Before Linux 5.14 fdinfo does not tell.
        let ino = self.info()?.ino;
        if ino != 0 && !inodes.contains(&ino) {
            return Ok(None);
        }
        let found = fstatat(self.dir, self.name, AtFlags::empty())?;
        Ok(Some((device::from_stat(found.st_dev), found.st_ino)))
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
        let device = device::from_stat(found.st_rdev);
        let devpts = device::from_stat(found.st_dev);
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
        let (alone, _) = of_terminal(device, Some(devpts));
        assert!(alone.iter().any(|it| it == &slave_found));
        assert!(copy(&alone).unwrap().is_some_and(|fd| tty::winsize(&fd).is_ok()));
    }

    #[test]
    fn an_update_finds_who_has_begun_since_and_what_a_captured_process_has_now() {
        let close_on_exec = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = posix_openpt(close_on_exec).unwrap();
        unlockpt(&master).unwrap();
        let slave = tty::peer(&master, close_on_exec.bits() as u32).unwrap();
        let rdev = fstat(&slave).unwrap().st_rdev;
        let device = device::from_stat(rdev);
        let text = "read line; exec 5<&0 </dev/null; echo; exec sleep 600";
        let mut shell = Command::new("sh")
            .args(["-c", text])
            .stdin(slave.try_clone().unwrap())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let captured = shell.id() as i32;
        let mut openers = Openers::new([captured], []);
        openers.walk();
        let of = |openers: &Openers, pid: i32| {
            let found = openers.of_terminal(device, None);
            found.into_iter().find(|it| it.pid == pid).and_then(|it| it.fds)
        };
        assert_eq!(of(&openers, captured), Some(vec![0]));
        let late = Holder::new(slave.try_clone().unwrap());
        assert_eq!(of(&openers, late.pid()), None);
        nix::unistd::write(&master, b"\n").unwrap();
        let mut line = [0];
        std::io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut line).unwrap();
        openers.update([captured], false);
        assert_eq!(
            (of(&openers, captured), of(&openers, late.pid())),
            (Some(vec![5]), Some(vec![0]))
        );
        // One that was outside the scan, and is of it now.
        openers.update([captured, late.pid()], false);
        assert!(openers.is_captured(late.pid()) && of(&openers, late.pid()).is_some());
        shell.kill().unwrap();
        shell.wait().unwrap();
        // All is looked for again.
        openers.update([late.pid()], true);
        assert_eq!(of(&openers, captured), None);
    }
}
