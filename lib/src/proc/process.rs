//! A process, held by a pidfd and by its directory in /proc.

use super::fdinfo::FdInfo;
use super::mounts::{self, Mount, MountView};
use super::read::{bracketed, directory, read_at, read_whole};
use super::stat::Stat;
use super::status::{StatusText, ThreadStatus};
use crate::error::{Error, Result, Status};
use crate::image::{Bytes, inode_of};
use crate::proc::network::{Network, Networks};
use crate::proc::socket_table::SocketTables;
use crate::sys;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::poll::PollFlags;
use nix::sys::stat::{FileStat, Mode, fstatat};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// A process, held by a pidfd: it is never mixed up with a later one of the same pid.
///
/// It is looked at through one of its threads. That is the leader of the thread group (the thread whose
/// id is the process id), unless the leader has ended before the others. A thread with a descriptor
/// table of its own (unshare(2) with CLONE_FILES) counts as a process of its own.
pub struct Process {
    /// Its id; of a thread with a table of its own, the id of the thread.
    pub pid: i32,
    /// The id of the thread through which it is looked at, also for kcmp(2).
    pub thread: i32,
    /// The process that it is a thread of, if it is a thread with a table of its own.
    pub tgid: Option<i32>,
    /// Its start time in clock ticks since boot: field 22 of /proc/PID/stat.
    pub start: u64,
    /// True if a signal had stopped it when it was opened.
    pub(super) stopped: bool,
    /// The count of its threads when it was opened.
    thread_count: i64,
    /// Of the thread; of the process, if the kernel has no pidfds of threads.
    pidfd: OwnedFd,
    /// True if descriptors can be copied by the pidfd.
    pub can_copy: bool,
    /// /proc/PID, and in it fd and fdinfo: open until [`Process::release`], and when needed again.
    dir: OnceLock<OwnedFd>,
    links: OnceLock<OwnedFd>,
    infos: OnceLock<OwnedFd>,
    pub(super) cache: Arc<ScanCache>,
    pub(super) network: OnceLock<Arc<Network>>,
    mounts: OnceLock<Option<MountView>>,
    /// Network namespaces of its sockets by their cookies (SO_NETNS_COOKIE): the inode of each that is
    /// not its own, as [`Process::other_netns`] gives it.
    pub(super) socket_netns: Mutex<HashMap<u64, Option<u64>>>,
    /// The device number of pipefs, once a pipe has told it.
    pub(super) pipefs: OnceLock<(u32, u32)>,
}

/// The paths that searches have found for inodes.
///
/// A search opens directories and takes time. A scan that stops its processes searches before the stop,
/// and in the stop asks only what was found.
#[derive(Default)]
pub struct FoundPaths {
    /// By the device number of fdinfo and the inode number.
    paths: Mutex<HashMap<(u32, u64), Vec<u8>>>,
    ended: AtomicBool,
}

impl FoundPaths {
    /// From now on nothing is searched.
    pub fn end_searches(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// True if nothing is searched any more.
    pub fn searches_have_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// The path that was found for an inode.
    pub fn get(&self, inode: (u32, u64)) -> Option<Vec<u8>> {
        self.paths.lock().ok()?.get(&inode).cloned()
    }

    /// Records the path of an inode.
    pub fn add(&self, inode: (u32, u64), path: Vec<u8>) {
        if let Ok(mut paths) = self.paths.lock() {
            paths.insert(inode, path);
        }
    }
}

/// Facts that are read once for all processes of a scan.
#[derive(Default)]
pub struct ScanCache {
    pub(super) networks: Networks,
    pub(super) socket_tables: SocketTables,
    own_mounts: OnceLock<Option<MountView>>,
    found_paths: Arc<FoundPaths>,
}

impl ScanCache {
    /// A cache with the paths that were found before.
    pub fn with_paths(found_paths: Arc<FoundPaths>) -> ScanCache {
        ScanCache { found_paths, ..ScanCache::default() }
    }

    /// The mounts that this process sees itself. None if they cannot be read.
    fn own_mounts(&self) -> Option<&MountView> {
        let read = || {
            let dir = directory(nix::fcntl::AT_FDCWD, "/proc/self").ok()?;
            Some(MountView::new(read_mounts(dir.as_fd(), || None)?, Vec::new(), true))
        };
        self.own_mounts.get_or_init(read).as_ref()
    }
}

/// The identity of a program in a process. execve(2) changes it, although pid and start time stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessIdentity {
    start: u64,
    /// Where its code and its stack begin: fields 26 and 28 of /proc/PID/stat.
    program: (u64, u64),
    ended: bool,
}

impl From<&Stat> for ProcessIdentity {
    fn from(stat: &Stat) -> Self {
        let program = (stat.field(26) as u64, stat.field(28) as u64);
        ProcessIdentity { start: stat.field(22) as u64, program, ended: stat.is_zombie() }
    }
}

impl ProcessIdentity {
    /// True if the process has ended and is not waited for yet. (In the middle of execve(2) it has no
    /// program, either.)
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// True if there is no program: a thread of the kernel, and for a moment any process in execve(2).
    pub fn is_without_program(&self) -> bool {
        self.program == (0, 0)
    }
}

impl Process {
    /// Opens a process, or a thread by its id.
    ///
    /// Fails with status 5 if there is none or it has ended, and with 4 and the reason if its
    /// descriptors may not be looked at.
    pub fn open(pid: i32) -> Result<Process> {
        Process::open_with(pid, &Arc::default())
    }

    /// As [`Process::open`], for one of the processes of a scan.
    ///
    /// A thread that shares the table of its process means the process.
    pub fn open_with(pid: i32, cache: &Arc<ScanCache>) -> Result<Process> {
        let err = match Process::open_thread((pid, pid), None, cache) {
            Ok(process) => return Ok(process),
            Err(err) => err,
        };
        // pidfd_open(2): it is the id of a thread, and not of a process.
        if let Some(Errno::EINVAL | Errno::ENOENT) = err.errno() {
            let tgid = ThreadStatus::of(pid).ok_or_else(gone)?.process;
            let own_table = sys::compare_tables(tgid, pid).is_ok_and(|order| order.is_ne());
            let of_leader = Stat::of(tgid).ok_or_else(gone)?;
            return match own_table && !of_leader.is_zombie() {
                true => Process::open_thread((pid, pid), Some(tgid), cache),
                false => Process::open_thread((tgid, pid), None, cache),
            };
        }
        if Stat::of(pid).is_none_or(|stat| !stat.is_zombie()) {
            return Err(err);
        }
        // Other threads may run on after the first: pthread_exit(3) in main.
        let threads = directory(nix::fcntl::AT_FDCWD, &format!("/proc/{pid}/task"));
        let threads = threads.and_then(numbered).map_err(|_| gone())?;
        let runs = |thread: &&i32| Stat::of(**thread).is_some_and(|stat| !stat.is_zombie());
        let thread = threads.iter().find(runs).ok_or_else(ended)?;
        Process::open_thread((pid, *thread), None, cache)
    }

    /// Opens a process to look at it through this thread.
    fn open_thread(
        (pid, thread): (i32, i32),
        tgid: Option<i32>,
        cache: &Arc<ScanCache>,
    ) -> Result<Process> {
        let leader = tgid.unwrap_or(pid);
        let opened = match thread == leader {
            true => sys::pidfd_open(thread).map(|pidfd| (pidfd, true)),
            false => match sys::pidfd_open_thread(thread) {
                Err(Errno::EINVAL) => sys::pidfd_open(leader).map(|pidfd| (pidfd, false)),
                other => other.map(|pidfd| (pidfd, true)),
            },
        };
        let (pidfd, can_copy) = opened.map_err(|errno| match errno {
            Errno::ESRCH => gone(),
            other => other.into(),
        })?;
        let dir = directory(nix::fcntl::AT_FDCWD, &format!("/proc/{thread}"))
            .map_err(|errno| if errno == Errno::ENOENT { gone() } else { errno.into() })?;
        let open = |name: &str| {
            directory(dir.as_fd(), name).map_err(|errno| match errno {
                Errno::ENOENT | Errno::ESRCH => gone(),
                Errno::EACCES | Errno::EPERM if is_zombie(dir.as_fd()) => ended(),
                Errno::EACCES | Errno::EPERM => refusal(dir.as_fd(), pid),
                other => Error::from(other),
            })
        };
        let (links, infos) = (open("fd")?, open("fdinfo")?);
        let stat = read_at(dir.as_fd(), "stat").map_err(|errno| match errno {
            Errno::ENOENT | Errno::ESRCH => gone(),
            other => other.into(),
        })?;
        let stat = Stat::parse(&stat).ok_or_else(gone)?;
        if stat.is_zombie() {
            return Err(ended());
        }
        let start = match thread == pid {
            true => stat.field(22) as u64,
            false => Stat::of(pid).ok_or_else(gone)?.field(22) as u64,
        };
        Ok(Process {
            pid,
            thread,
            tgid,
            start,
            stopped: stat.is_stopped(),
            thread_count: stat.field(20),
            pidfd,
            can_copy,
            dir: OnceLock::from(dir),
            links: OnceLock::from(links),
            infos: OnceLock::from(infos),
            cache: cache.clone(),
            network: OnceLock::new(),
            mounts: OnceLock::new(),
            socket_netns: Mutex::default(),
            pipefs: OnceLock::new(),
        })
    }

    /// One thread for each descriptor table that threads of the process have for themselves. Those
    /// that end meanwhile are left out.
    pub fn own_tables(&self) -> Vec<Process> {
        if self.thread_count < 2 || self.tgid.is_some() {
            return Vec::new();
        }
        let mut found: Vec<Process> = Vec::new();
        for thread in self.threads().unwrap_or_default() {
            let shares =
                |other: i32| sys::compare_tables(other, thread).is_ok_and(|order| order.is_eq());
            // A thread that has ended compares with none.
            if !shares(thread) || shares(self.thread) || found.iter().any(|own| shares(own.thread))
            {
                continue;
            }
            found.extend(Process::open_thread((thread, thread), Some(self.pid), &self.cache).ok());
        }
        found
    }

    /// lstat(2) of a path as the process sees it: from its root directory, or from its working
    /// directory if it is relative. None if it fails.
    pub fn stat_at(&self, path: &[u8]) -> Option<FileStat> {
        let (base, path) = match path.strip_prefix(b"/") {
            Some(path) => ("root", path),
            None => ("cwd", path),
        };
        let how = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let base = openat(self.dir().ok()?, base, how, Mode::empty()).ok()?;
        fstatat(base.as_fd(), path, AtFlags::AT_SYMLINK_NOFOLLOW | AtFlags::AT_NO_AUTOMOUNT).ok()
    }

    /// Opens a path that readlink(2) has shown, in the mount namespace of the process, with O_PATH. A
    /// symbolic link is not followed.
    pub fn open_path(&self, path: &[u8]) -> Option<OwnedFd> {
        let view = self.mounts()?;
        if view.is_own_namespace {
            return open_place(path);
        }
        let inside = path.strip_prefix(&view.root[..])?;
        open_place(&[format!("/proc/{}/root", self.thread).as_bytes(), inside].concat())
    }

    /// As [`Process::open_path`], in the mount namespace that a mount is in: that of this process or
    /// that of the process. None if it is in neither.
    pub fn open_path_on(&self, mount: i32, path: &[u8]) -> Option<OwnedFd> {
        if self.cache.own_mounts()?.has(mount) {
            return open_place(path);
        }
        self.mounts()?.has(mount).then(|| self.open_path(path))?
    }

    /// The paths that searches of this scan have found.
    pub fn found_paths(&self) -> &FoundPaths {
        &self.cache.found_paths
    }

    /// The pidfd.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The identity of its program. Fails with status 5 if the process has ended.
    pub fn identity(&self) -> Result<ProcessIdentity> {
        Ok(ProcessIdentity::from(&self.stat()?))
    }

    pub(super) fn stat(&self) -> Result<Stat> {
        let text = self.read("stat")?;
        Stat::parse(&text).ok_or_else(|| Error::new(Status::System, "stat: not understood"))
    }

    /// The contents of a file in /proc/PID. Fails with status 5 if the process has ended.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        self.dir().and_then(|dir| read_at(dir, name)).map_err(|errno| match errno {
            Errno::ENOENT | Errno::ESRCH => Error::new(Status::Gone, "the process is gone"),
            other => Error::from(other).at(name),
        })
    }

    /// The mounts that it sees: /proc/PID/mountinfo, read once. None if it cannot be read.
    pub fn mounts(&self) -> Option<&MountView> {
        let read = || {
            let mounts = read_mounts(self.dir().ok()?, || self.cache.own_mounts())?;
            let root = self.link("root").map(|root| root.0).filter(|root| root != b"/");
            let is_own_namespace = self.namespace("mnt") == own_namespace("mnt");
            Some(MountView::new(mounts, root.unwrap_or_default(), is_own_namespace))
        };
        self.mounts.get_or_init(read).as_ref()
    }

    /// True if a path leads to this mount, in the process or in this one. None if that cannot be
    /// known.
    ///
    /// Both lists are read once a scan: a mount that came later is not in them.
    pub fn sees_mount(&self, mount: i32) -> Option<bool> {
        let own = self.cache.own_mounts();
        if own.is_some_and(|own| own.has(mount)) || self.mounts()?.has(mount) {
            return Some(true);
        }
        own.map(|_| false)
    }

    /// True if paths of this process lead to a mount, and none of the scanning one.
    pub fn sees_alone(&self, mount: i32) -> bool {
        self.cache.own_mounts().is_some_and(|own| !own.has(mount))
            && self.mounts().is_some_and(|its| !its.is_own_namespace && its.has(mount))
    }

    /// The mount point of a mount of this type of file system, as readlink(2) shows it here. None of
    /// one that mounts only a part of it.
    pub fn mount_point(&self, mount: i32, file_system: &[u8]) -> Option<Vec<u8>> {
        let point = |view: &MountView| {
            let found = view.mount(mount)?;
            let whole = found.root == b"/" && found.file_system == file_system;
            whole.then(|| [&view.root[..], &found.point].concat())
        };
        self.cache.own_mounts().and_then(point).or_else(|| self.mounts().and_then(point))
    }

    /// The ids by which a proc file system on this device may name the process: that which this
    /// process sees, or those in the innermost pid namespace.
    pub fn ids_in_proc(&self, device: (u32, u32)) -> Vec<i32> {
        let ours = nix::sys::stat::stat("/proc").map(|it| sys::device::from_stat(it.st_dev));
        if ours == Ok(device) {
            return [Some(self.pid), self.tgid].into_iter().flatten().collect();
        }
        let status = self.read("status").unwrap_or_default();
        let innermost = |key| StatusText(&status).words(key).last()?.parse().ok();
        [innermost("NSpid"), innermost("NStgid")].into_iter().flatten().collect()
    }

    /// The type of the file system of a mount, if it or this process sees the mount.
    pub fn file_system_of(&self, mount: i32) -> Option<&[u8]> {
        let views = [self.mounts(), self.cache.own_mounts()];
        views.into_iter().flatten().find_map(|view| Some(&view.mount(mount)?.file_system[..]))
    }

    /// The link that a file in /proc/PID is, as readlink(2) shows it. None if that fails.
    pub fn link(&self, name: &str) -> Option<Bytes> {
        self.read_link(name).ok()
    }

    /// As [`Process::link`]. Fails as readlink(2) does.
    pub(super) fn read_link(&self, name: &str) -> nix::Result<Bytes> {
        Ok(Bytes(readlinkat(self.dir()?, name)?.into_vec()))
    }

    /// The inode number of one of its namespaces, by its name in /proc/PID/ns. None if it cannot be read.
    pub fn namespace(&self, name: &str) -> Option<u64> {
        bracketed(&self.link(&format!("ns/{name}"))?.0)
    }

    /// The numbers in use in its descriptor table, ascending. Fails with status 5 if the process has
    /// ended, and with 4 if they may not be looked at.
    pub fn numbers(&self) -> Result<Vec<RawFd>> {
        let dir = self.dir()?;
        let found = directory(dir, "fd").map_err(|errno| match errno {
            Errno::ENOENT => Errno::ESRCH.into(),
            Errno::EACCES | Errno::EPERM if is_zombie(dir) => Errno::ESRCH.into(),
            Errno::EACCES | Errno::EPERM => refusal(dir, self.pid),
            other => Error::from(other),
        })?;
        Ok(numbered(found)?)
    }

    /// The ids of its threads, ascending. Fails if it has ended.
    pub fn threads(&self) -> Result<Vec<i32>> {
        Ok(numbered(directory(self.dir()?, "task")?)?)
    }

    /// The ids of the children of all its threads, ascending: /proc/PID/task/TID/children. Fails if
    /// it has ended.
    pub fn children(&self) -> Result<Vec<i32>> {
        let mut children = Vec::new();
        for thread in self.threads()? {
            // A thread may end meanwhile: another of the process is then the parent of its children.
            let Ok(text) = self.read(&format!("task/{thread}/children")) else { continue };
            let text = String::from_utf8_lossy(&text).into_owned();
            children.extend(text.split_whitespace().filter_map(|word| word.parse::<i32>().ok()));
        }
        children.sort_unstable();
        Ok(children)
    }

    /// A directory in /proc/PID, which is kept open from its first use on.
    fn kept_directory<'p>(
        &self,
        kept: &'p OnceLock<OwnedFd>,
        name: &str,
    ) -> nix::Result<BorrowedFd<'p>> {
        if let Some(kept) = kept.get() {
            return Ok(kept.as_fd());
        }
        let opened = directory(self.dir()?, name)?;
        Ok(kept.get_or_init(|| opened).as_fd())
    }

    /// Its directory in /proc. Fails with ESRCH if it has ended.
    pub(super) fn dir(&self) -> nix::Result<BorrowedFd<'_>> {
        if let Some(dir) = self.dir.get() {
            return Ok(dir.as_fd());
        }
        let opened = directory(nix::fcntl::AT_FDCWD, &format!("/proc/{}", self.thread))?;
        // A pid is not used again before its process has ended. If it has not ended now, this
        // directory was its own when it was opened.
        match sys::poll_now(self.pidfd(), PollFlags::POLLIN)?.is_empty() {
            true => Ok(self.dir.get_or_init(|| opened).as_fd()),
            false => Err(Errno::ESRCH),
        }
    }

    /// Closes all but the pidfd and forgets the mounts, which would be much for thousands of
    /// processes. They are opened and read again when they are needed.
    pub fn release(&mut self) {
        self.mounts = OnceLock::new();
        // Our own table must not change while it is looked at.
        if self.pid != std::process::id() as i32 {
            (self.dir, self.links, self.infos) = Default::default();
        }
    }

    /// What readlink(2) shows of a descriptor. `name` is its number.
    pub fn descriptor_link(&self, name: &str) -> nix::Result<Vec<u8>> {
        let links = self.kept_directory(&self.links, "fd")?;
        Ok(readlinkat(links, name)?.into_vec())
    }

    /// Reads the fdinfo of a descriptor into a buffer that may have been used before. `name` is its
    /// number.
    pub fn descriptor_info(&self, name: &str, into: &mut Vec<u8>) -> nix::Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let infos = self.kept_directory(&self.infos, "fdinfo")?;
        let file = openat(infos, name, flags, Mode::empty())?;
        read_whole(file, into, true)
    }
}

/// Opens a path in the mount namespace of this process, with O_PATH. A symbolic link is not followed.
fn open_place(path: &[u8]) -> Option<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(nix::fcntl::AT_FDCWD, path, flags, Mode::empty()).ok()
}

/// The mounts that a process sees. `dir` is its directory in /proc, `own` gives the mounts that this
/// process sees.
///
/// After chroot(2) into a directory that is no mount point, mountinfo leaves out the mount that the
/// directory is on. That is added.
fn read_mounts<'a>(
    dir: BorrowedFd<'_>,
    own: impl FnOnce() -> Option<&'a MountView>,
) -> Option<Vec<Mount>> {
    let mut mounts = mounts::parse(&read_at(dir, "mountinfo").ok()?);
    if !mounts.iter().any(|mount| mount.point == b"/") {
        mounts.extend(root_mount(dir, own()));
    }
    Some(mounts)
}

/// The mount that the root directory of a process is on. Its file system is looked up in `own`.
fn root_mount(dir: BorrowedFd<'_>, own: Option<&MountView>) -> Option<Mount> {
    let root = openat(dir, "root", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    let id = FdInfo::of_own(&root).ok()?.mnt as u64;
    let known = own.and_then(|own| own.mounts.iter().find(|mount| mount.id == id));
    let (dev, file_system) = match known {
        Some(mount) => (mount.dev, mount.file_system.clone()),
        None => (inode_of(root.as_fd()).ok()?.dev, Vec::new()),
    };
    Some(Mount { id, dev, root: Vec::new(), point: b"/".to_vec(), file_system })
}

/// True if a process has ended. It has no descriptors then, and root alone may look at them.
fn is_zombie(dir: BorrowedFd<'_>) -> bool {
    read_at(dir, "stat").ok().and_then(|text| Stat::parse(&text)).is_some_and(|it| it.is_zombie())
}

/// The error for a process that does not exist.
fn gone() -> Error {
    Error::new(Status::Gone, "no such process")
}

/// The error for a process that has ended and is not waited for yet.
fn ended() -> Error {
    Error::new(Status::Gone, "it has ended and waits for its parent to notice (a zombie)")
}

/// The entries of a directory that are numbers, ascending.
fn numbered(dir: OwnedFd) -> nix::Result<Vec<i32>> {
    let mut numbers = Vec::new();
    for entry in Dir::from_fd(dir)?.iter() {
        numbers.extend(entry?.file_name().to_str().ok().and_then(|name| name.parse::<i32>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The error for a process whose descriptors may not be looked at: why, and the cure. `dir` is its
/// directory in /proc.
fn refusal(dir: BorrowedFd<'_>, pid: i32) -> Error {
    let status = read_at(dir, "status").unwrap_or_default();
    let theirs = StatusText(&status).four("Uid")[0];
    let ours = nix::unistd::geteuid().as_raw();
    let why = if theirs != ours {
        format!("not permitted: it runs as uid {theirs}, we as {ours}; run as that user or as root")
    } else {
        format!(
            "not permitted: process {pid} is of our uid, but has capabilities that we lack or is \
             not dumpable; run as root (CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH)"
        )
    };
    Error::new(Status::Denied, why)
}

/// The reason why pidfd_getfd(2) is refused where /proc may be read: ptrace(2), Yama.
pub fn attach_refusal() -> &'static str {
    match std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").as_deref().map(str::trim) {
        Ok("1") => "Yama's ptrace_scope is 1 and it is no descendant; run as root",
        Ok("2") => "Yama's ptrace_scope is 2; it takes CAP_SYS_PTRACE",
        Ok("3") => "Yama's ptrace_scope is 3, until the next boot",
        _ => "a security module or seccomp filter forbids it, or CAP_SYS_PTRACE is missing",
    }
}

/// The inode number of a namespace of this process, by its name in /proc/PID/ns. None if it cannot be
/// read.
pub fn own_namespace(name: &str) -> Option<u64> {
    let link = std::fs::read_link(format!("/proc/self/ns/{name}")).ok()?;
    bracketed(link.as_os_str().as_bytes())
}

/// The id of this boot: /proc/sys/kernel/random/boot_id. Empty if it cannot be read.
pub fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn the_namespaces_of_a_process_are_found_by_their_names() {
        let process = Process::open(std::process::id() as i32).unwrap();
        for name in ["net", "mnt"] {
            let inode = std::fs::metadata(format!("/proc/self/ns/{name}")).unwrap().ino();
            let found = (process.namespace(name), own_namespace(name));
            assert_eq!(found, (Some(inode), Some(inode)), "{name}");
        }
        assert_eq!((process.namespace("none"), own_namespace("none")), (None, None));
    }

    #[test]
    fn the_mounts_of_a_process_are_read_once_until_it_is_released() {
        let mut process = Process::open(std::process::id() as i32).unwrap();
        let file = File::open("/proc/self/status").unwrap();
        let mount = FdInfo::of_own(&file).unwrap().mnt;
        let first: *const MountView = process.mounts().unwrap();
        assert!(process.mounts().unwrap().has(mount) && process.mounts().unwrap().is_own_namespace);
        assert!(std::ptr::eq(first, process.mounts().unwrap()));
        assert_eq!(
            (process.sees_mount(mount), process.sees_mount(i32::MAX)),
            (Some(true), Some(false))
        );
        process.release();
        assert!(process.mounts.get().is_none() && process.mounts().unwrap().has(mount));
    }
}
