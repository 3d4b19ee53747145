//! What /proc says of a process and of its descriptors. Parsing is apart from reading.

pub mod network;
pub mod openers;
pub mod sock_diag;

use crate::error::{At, Error, Result, Status};
use crate::image::{Bytes, Credentials, Inode, Lock, Signals, Table, Task, Terminal};
use crate::proc::network::{Network, Networks};
use crate::proc::sock_diag::{PacketSocket, Tunnel, UnixSocket};
use crate::sys;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{FileStat, Mode, fstatat};
use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::{Arc, Mutex, OnceLock};

/// FD_CLOEXEC as fdinfo shows it among the flags; for other processes it is shown nowhere else.
pub const CLOEXEC: u32 = libc::O_CLOEXEC as u32;

/// A process, held so that its pid cannot come to mean another one.
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Field 22 of /proc/PID/stat.
    pub start: u64,
    /// Whether a signal had stopped it when it was first looked at.
    stopped: bool,
    pidfd: OwnedFd,
    dir: OnceLock<OwnedFd>,
    links: OnceLock<OwnedFd>,
    infos: OnceLock<OwnedFd>,
    networks: Arc<Networks>,
    network: OnceLock<Arc<Network>>,
    /// The network namespaces of its sockets by their cookies: the inode of each that is not its own.
    others: Mutex<HashMap<u64, Option<u64>>>,
    /// The device number of pipefs.
    pipes: OnceLock<(u32, u32)>,
}

/// What changes when a process execs, although its pid and start time stay: where its code and its
/// stack begin, fields 26 and 28 of /proc/PID/stat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessIdentity {
    start: u64,
    program: (u64, u64),
}

/// A parsed /proc/PID/stat, by the names of proc_pid_stat(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    comm: Vec<u8>,
    state: u8,
    fields: Vec<i64>,
}

impl Stat {
    /// Parses the line. The name may hold blanks and parentheses, so its end is the last one.
    pub fn parse(text: &[u8]) -> Option<Stat> {
        let open = text.iter().position(|&byte| byte == b'(')?;
        let close = text.iter().rposition(|&byte| byte == b')')?;
        let rest = std::str::from_utf8(text.get(close + 1..)?).ok()?;
        let field = |word: &str| word.parse().or_else(|_| word.parse::<u64>().map(|n| n as i64));
        let fields: Vec<i64> = rest.split_whitespace().map(|w| field(w).unwrap_or(0)).collect();
        let state = *rest.trim_start().as_bytes().first()?;
        let comm = text.get(open + 1..close)?.to_vec();
        (fields.len() > 25).then_some(Stat { comm, state, fields })
    }

    /// The name of the program.
    pub fn name(&self) -> &[u8] {
        &self.comm
    }

    /// That of a process or thread, if there is one with this id.
    pub fn of(pid: i32) -> Option<Stat> {
        Stat::parse(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Whether it has ended.
    pub fn is_zombie(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }

    /// Whether a signal has stopped it, and no tracer.
    pub fn is_stopped(&self) -> bool {
        self.state == b'T'
    }

    /// A field by its number in proc_pid_stat(5), which counts from 1.
    pub fn field(&self, number: usize) -> i64 {
        self.fields.get(number - 3).copied().unwrap_or(0)
    }
}

impl Process {
    /// Takes hold of a process.
    ///
    /// Fails with status 5 if there is none, and with 4 and the reason if its descriptors may not
    /// be looked at.
    pub fn open(pid: i32) -> Result<Process> {
        Process::among(pid, &Arc::default())
    }

    /// As [`Process::open`], one of several that are looked at together.
    pub fn among(pid: i32, networks: &Arc<Networks>) -> Result<Process> {
        let gone = || Error::new(Status::Gone, "no such process");
        let pidfd = sys::pidfd_open(pid).map_err(|errno| match errno {
            Errno::ESRCH | Errno::EINVAL => gone(),
            other => other.into(),
        })?;
        let dir = directory(nix::fcntl::AT_FDCWD, &format!("/proc/{pid}"))
            .map_err(|errno| if errno == Errno::ENOENT { gone() } else { errno.into() })?;
        let inside = |name: &str| {
            directory(dir.as_fd(), name).map_err(|errno| match errno {
                Errno::ENOENT | Errno::ESRCH => gone(),
                Errno::EACCES | Errno::EPERM if is_zombie(dir.as_fd()) => ended(),
                Errno::EACCES | Errno::EPERM => refusal(dir.as_fd(), pid),
                other => Error::from(other),
            })
        };
        let (links, infos) = (inside("fd")?, inside("fdinfo")?);
        let stat = read_at(dir.as_fd(), "stat").map_err(|errno| match errno {
            Errno::ENOENT | Errno::ESRCH => gone(),
            other => other.into(),
        })?;
        let stat = Stat::parse(&stat).ok_or_else(gone)?;
        if stat.is_zombie() {
            return Err(ended());
        }
        let start = stat.field(22) as u64;
        Ok(Process {
            pid,
            start,
            stopped: stat.is_stopped(),
            pidfd,
            dir: OnceLock::from(dir),
            links: OnceLock::from(links),
            infos: OnceLock::from(infos),
            networks: networks.clone(),
            network: OnceLock::new(),
            others: Mutex::default(),
            pipes: OnceLock::new(),
        })
    }

    /// What sock_diag(7) says of a unix socket of its network namespace.
    pub fn unix_socket(&self, inode: u32) -> Result<UnixSocket> {
        self.network().unix_socket(inode)
    }

    /// What sock_diag(7) says of a packet socket of its network namespace.
    pub fn packet_socket(&self, inode: u32) -> Result<PacketSocket> {
        self.network().packet_socket(inode)
    }

    /// What rtnetlink(7) says of a tunnel of its network namespace.
    pub fn tunnel(&self, name: &[u8]) -> Result<Tunnel> {
        self.network().tunnel(name)
    }

    /// The inode of its network namespace.
    pub fn netns_inode(&self) -> Option<u64> {
        self.link("ns/net").and_then(|link| bracketed(&link.0))
    }

    /// What is known of its network namespace.
    fn network(&self) -> &Network {
        self.network.get_or_init(|| {
            let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
            let inode = self.netns_inode();
            let open = || openat(self.dir().ok()?, "ns/net", flags, Mode::empty()).ok();
            self.networks.of(inode, || open().filter(|_| inode != own_netns()))
        })
    }

    /// The inode of the network namespace of a socket of its, if that is not its own; zero if it is
    /// not known which one it is then.
    fn other_netns(&self, socket: BorrowedFd<'_>) -> Option<u64> {
        let ask = || {
            let found = sys::socket::namespace(socket).and_then(|netns| inode_of(netns.as_fd()));
            match found {
                Ok(found) => Some(found.ino).filter(|&ino| self.netns_inode() != Some(ino)),
                // Only who may configure that namespace is told which one it is.
                Err(_) if self.network().is_ours() => {
                    let own =
                        sys::socket::new(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
                    let own = own.and_then(|own| sys::socket::netns_cookie(own.as_fd())).ok()?;
                    let other = sys::socket::netns_cookie(socket).is_ok_and(|cookie| cookie != own);
                    other.then_some(0)
                }
                Err(_) => None,
            }
        };
        let Ok(cookie) = sys::socket::netns_cookie(socket) else { return ask() };
        let Ok(mut others) = self.others.lock() else { return ask() };
        *others.entry(cookie).or_insert_with(ask)
    }

    /// The multicast groups that sockets of its network namespace may have joined, with the indices
    /// of their devices: /proc/PID/net/igmp and igmp6, without those that the kernel alone is in.
    pub fn groups(&self) -> Arc<Vec<(IpAddr, u32)>> {
        self.network().groups(|name| self.read(name))
    }

    /// What the socket with this inode is connected to, as a table of /proc/PID/net tells it.
    pub fn remote(&self, table: &str, inode: u64) -> Option<(IpAddr, u16)> {
        self.network().remotes(table, |name| self.read(name)).get(&inode).copied()
    }

    /// lstat(2) of a path as the process sees it, from its root or its working directory.
    pub fn stat_at(&self, path: &[u8]) -> Option<FileStat> {
        let (base, path) = match path.strip_prefix(b"/") {
            Some(path) => ("root", path),
            None => ("cwd", path),
        };
        let how = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let base = openat(self.dir().ok()?, base, how, Mode::empty()).ok()?;
        fstatat(base.as_fd(), path, AtFlags::AT_SYMLINK_NOFOLLOW | AtFlags::AT_NO_AUTOMOUNT).ok()
    }

    /// The pidfd.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// What tells this program in this process from any other.
    pub fn identity(&self) -> Result<ProcessIdentity> {
        let stat = self.stat()?;
        let program = (stat.field(26) as u64, stat.field(28) as u64);
        Ok(ProcessIdentity { start: stat.field(22) as u64, program })
    }

    fn stat(&self) -> Result<Stat> {
        let text = self.read("stat")?;
        Stat::parse(&text).ok_or_else(|| Error::new(Status::System, "stat: not understood"))
    }

    /// The content of a file in /proc/PID.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        self.dir().and_then(|dir| read_at(dir, name)).map_err(|errno| match errno {
            Errno::ENOENT | Errno::ESRCH => Error::new(Status::Gone, "the process is gone"),
            other => Error::from(other).at(name),
        })
    }

    /// Whether a mount is one of those that the process sees, or we do: a path leads there. None if
    /// that cannot be known.
    pub fn sees_mount(&self, mount: i32) -> Option<bool> {
        static OURS: OnceLock<Option<Vec<i32>>> = OnceLock::new();
        let ours = || mounts(directory(nix::fcntl::AT_FDCWD, "/proc/self").ok()?.as_fd());
        let has = |seen: &Vec<i32>| seen.binary_search(&mount).is_ok();
        if OURS.get_or_init(ours).as_ref().is_some_and(has) {
            return Some(true);
        }
        // It may have come since.
        Some(has(&mounts(self.dir().ok()?)?) || has(&ours()?))
    }

    /// What readlink(2) shows of a file in /proc/PID.
    pub fn link(&self, name: &str) -> Option<Bytes> {
        Some(Bytes(readlinkat(self.dir().ok()?, name).ok()?.into_vec()))
    }

    /// The numbers in use, ascending.
    pub fn numbers(&self) -> Result<Vec<RawFd>> {
        let dir = self.dir()?;
        let found = directory(dir, "fd").map_err(|errno| match errno {
            Errno::ENOENT => Errno::ESRCH.into(),
            Errno::EACCES | Errno::EPERM if is_zombie(dir) => Errno::ESRCH.into(),
            Errno::EACCES | Errno::EPERM => refusal(dir, self.pid),
            other => Error::from(other),
        })?;
        let mut dir = Dir::from_fd(found)?;
        let mut numbers = Vec::new();
        for entry in dir.iter() {
            numbers.extend(entry?.file_name().to_str().ok().and_then(|n| n.parse::<RawFd>().ok()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The threads, ascending; the children if `children`, of all threads.
    pub fn threads(&self) -> Result<Vec<i32>> {
        let mut dir = Dir::from_fd(directory(self.dir()?, "task")?)?;
        let mut threads = Vec::new();
        for entry in dir.iter() {
            threads.extend(entry?.file_name().to_str().ok().and_then(|n| n.parse::<i32>().ok()));
        }
        threads.sort_unstable();
        Ok(threads)
    }

    /// The children of all its threads, ascending: /proc/PID/task/TID/children.
    pub fn children(&self) -> Result<Vec<i32>> {
        let mut children = Vec::new();
        for thread in self.threads()? {
            // A thread may end meanwhile; its children are then those of another.
            let Ok(text) = self.read(&format!("task/{thread}/children")) else { continue };
            let text = String::from_utf8_lossy(&text).into_owned();
            children.extend(text.split_whitespace().filter_map(|word| word.parse::<i32>().ok()));
        }
        children.sort_unstable();
        Ok(children)
    }

    /// A directory that is kept open as long as descriptors are looked at.
    fn inside<'p>(&self, kept: &'p OnceLock<OwnedFd>, name: &str) -> nix::Result<BorrowedFd<'p>> {
        if let Some(kept) = kept.get() {
            return Ok(kept.as_fd());
        }
        let opened = directory(self.dir()?, name)?;
        Ok(kept.get_or_init(|| opened).as_fd())
    }

    /// Its directory in /proc.
    fn dir(&self) -> nix::Result<BorrowedFd<'_>> {
        if let Some(dir) = self.dir.get() {
            return Ok(dir.as_fd());
        }
        let opened = directory(nix::fcntl::AT_FDCWD, &format!("/proc/{}", self.pid))?;
        // As long as it has not ended its pid is nobody else's: so it was when this was opened.
        let mut polled = [PollFd::new(self.pidfd(), PollFlags::POLLIN)];
        match poll(&mut polled, PollTimeout::ZERO)? {
            0 => Ok(self.dir.get_or_init(|| opened).as_fd()),
            _ => Err(Errno::ESRCH),
        }
    }

    /// Keeps no more open than it takes to hold the process: of thousands that is not little.
    pub fn rest(&mut self) {
        // Our own table must not change while it is looked at.
        if self.pid != std::process::id() as i32 {
            (self.dir, self.links, self.infos) = Default::default();
        }
    }

    /// What readlink(2) shows of a number.
    pub fn descriptor_link(&self, name: &str) -> nix::Result<Vec<u8>> {
        let links = self.inside(&self.links, "fd")?;
        Ok(readlinkat(links, name)?.into_vec())
    }

    /// The text of a number's fdinfo, in a buffer that is used again.
    pub fn descriptor_info(&self, name: &str, into: &mut Vec<u8>) -> nix::Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let infos = self.inside(&self.infos, "fdinfo")?;
        let file = openat(infos, name, flags, Mode::empty())?;
        read_whole(file, into, true)
    }

    /// All that an image says of a task. `table` is the id of its table, `numbers` what is in it.
    pub fn task(&self, table: u32, highest: Option<RawFd>) -> Result<Task> {
        let stat = self.stat()?;
        let status = self.read("status")?;
        let status = StatusText(&status);
        let limits = self.read("limits")?;
        let number = |number: usize| stat.field(number) as i32;
        let device = stat.field(7) as u32;
        let cmdline = self.read("cmdline").unwrap_or_default();
        let args = match cmdline.strip_suffix(b"\0") {
            Some(args) => args.split(|&byte| byte == 0).map(Bytes::from).collect(),
            None => Vec::new(),
        };
        let mut namespaces = BTreeMap::new();
        for name in ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"] {
            let inode = self.link(&format!("ns/{name}")).and_then(|link| bracketed(&link.0));
            namespaces.extend(inode.map(|inode| (name.to_owned(), inode)));
        }
        Ok(Task {
            pid: self.pid,
            ppid: number(4),
            pgid: number(5),
            sid: number(6),
            start: self.start,
            comm: Bytes(stat.comm.clone()),
            exe: self.link("exe"),
            args,
            cwd: self.link("cwd"),
            root: self.link("root"),
            umask: status.octal("Umask"),
            credentials: Credentials {
                uids: status.four("Uid"),
                gids: status.four("Gid"),
                groups: status.words("Groups").filter_map(|word| word.parse().ok()).collect(),
                caps: ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
                    .map(|key| status.words(key).next().map_or(0, hex)),
            },
            namespaces,
            table: Table {
                id: table,
                capacity: status.words("FDSize").next().map_or(0, |n| n.parse().unwrap_or(0)),
                highest: highest.map(|highest| highest as u32),
                limit: open_files(&limits).unwrap_or((0, 0)),
            },
            terminal: (device != 0).then(|| Terminal { device, foreground: number(8), path: None }),
            stopped: self.stopped,
        })
    }
}

/// The mounts that a process sees, ascending: those of /proc/PID/mountinfo, and that on which its
/// root is, which is not there if the root is some directory in it (chroot(2)).
fn mounts(dir: BorrowedFd<'_>) -> Option<Vec<i32>> {
    let text = read_at(dir, "mountinfo").ok()?;
    let first = |line: &[u8]| {
        let id = line.split(|&byte| byte == b' ').next()?;
        std::str::from_utf8(id).ok()?.parse().ok()
    };
    let mut mounts: Vec<i32> = text.split(|&byte| byte == b'\n').filter_map(first).collect();
    let root = openat(dir, "root", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    let info = format!("/proc/self/fdinfo/{}", root.as_raw_fd());
    mounts.push(FdInfo::parse(&read_at(nix::fcntl::AT_FDCWD, &info).ok()?).mnt);
    mounts.sort_unstable();
    Some(mounts)
}

/// The inode of the network namespace of this process.
pub fn own_netns() -> Option<u64> {
    bracketed(std::fs::read_link("/proc/self/ns/net").ok()?.as_os_str().as_bytes())
}

/// FDSize of this thread's table.
pub fn own_capacity() -> Result<u64> {
    capacity_at("/proc/thread-self/status")
}

/// FDSize of a process.
pub fn capacity_of(pid: i32) -> Result<u64> {
    capacity_at(&format!("/proc/{pid}/status"))
}

fn capacity_at(path: &str) -> Result<u64> {
    Ok(capacity_in(&std::fs::read(path).at(|| path.to_owned())?))
}

/// FDSize in the text of /proc/PID/status; zero if it is not there.
pub fn capacity_in(status: &[u8]) -> u64 {
    StatusText(status).words("FDSize").next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// The effective capabilities of this thread, a bit each: capabilities(7).
pub fn own_capabilities() -> u64 {
    let text = std::fs::read("/proc/thread-self/status").unwrap_or_default();
    StatusText(&text).words("CapEff").next().map_or(0, hex)
}

/// All processes that /proc shows, ascending, with their stat; what ends meanwhile is left out.
pub fn all() -> impl Iterator<Item = (i32, Stat)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut pids: Vec<i32> = pids.collect();
    pids.sort_unstable();
    pids.into_iter().filter_map(|pid| {
        Some((pid, Stat::parse(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)?))
    })
}

/// Whether a process has ended: its descriptors are root's to look at then, of which it has none.
fn is_zombie(dir: BorrowedFd<'_>) -> bool {
    read_at(dir, "stat").ok().and_then(|text| Stat::parse(&text)).is_some_and(|it| it.is_zombie())
}

fn ended() -> Error {
    Error::new(Status::Gone, "it has ended and waits for its parent to notice (a zombie)")
}

/// Why the descriptors of a process may not be looked at, and the cure.
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

/// Why pidfd_getfd(2) was refused although /proc may be read.
pub fn attach_refusal() -> &'static str {
    match std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").as_deref().map(str::trim) {
        Ok("1") => "Yama's ptrace_scope is 1 and it is no descendant; run as root",
        Ok("2") => "Yama's ptrace_scope is 2; it takes CAP_SYS_PTRACE",
        Ok("3") => "Yama's ptrace_scope is 3, until the next boot",
        _ => "a security module or seccomp filter forbids it, or CAP_SYS_PTRACE is missing",
    }
}

fn directory(at: BorrowedFd<'_>, name: &str) -> nix::Result<OwnedFd> {
    openat(at, name, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

fn read_at(dir: BorrowedFd<'_>, name: &str) -> nix::Result<Vec<u8>> {
    let file = openat(dir, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut text = Vec::new();
    read_whole(file, &mut text, false)?;
    Ok(text)
}

/// Reads a file of /proc to its end. One that is a `single` record comes whole as far as there is
/// room; of any other the kernel gives no more than fits a page at a time (seq_read in
/// fs/seq_file.c), so only nothing is the end.
fn read_whole(file: OwnedFd, into: &mut Vec<u8>, single: bool) -> nix::Result<()> {
    const STEP: usize = 4096;
    let mut have = 0;
    loop {
        into.resize((have + STEP).max(into.capacity()), 0);
        let count = nix::unistd::read(file.as_fd(), &mut into[have..])?;
        have += count;
        if count == 0 || single && have < into.len() {
            into.truncate(have);
            return Ok(());
        }
    }
}

/// What is another after every boot: /proc/sys/kernel/random/boot_id, empty if it cannot be read.
pub fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

/// The number in `name:[number]`.
pub fn bracketed(link: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(link).ok()?;
    text.split_once(":[")?.1.strip_suffix(']')?.parse().ok()
}

fn hex(word: &str) -> u64 {
    u64::from_str_radix(word, 16).unwrap_or(0)
}

struct StatusText<'a>(&'a [u8]);

impl StatusText<'_> {
    fn words(&self, key: &str) -> impl Iterator<Item = &str> {
        let lines = self.0.split(|&byte| byte == b'\n');
        let mut values = lines.filter_map(|line| std::str::from_utf8(line).ok()?.split_once(':'));
        values.find(|(each, _)| *each == key).map_or("", |(_, value)| value).split_whitespace()
    }

    fn octal(&self, key: &str) -> u32 {
        self.words(key).next().map_or(0, |word| u32::from_str_radix(word, 8).unwrap_or(0))
    }

    fn four(&self, key: &str) -> [u32; 4] {
        let mut words = self.words(key).map(|word| word.parse().unwrap_or(u32::MAX));
        [(); 4].map(|()| words.next().unwrap_or(u32::MAX))
    }
}

/// Soft and hard limit of open files in /proc/PID/limits.
fn open_files(limits: &[u8]) -> Option<(u64, u64)> {
    let text = std::str::from_utf8(limits).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let mut words = line.split_whitespace().map(|word| word.parse().unwrap_or(u64::MAX));
    Some((words.next()?, words.next()?))
}

/// The text of an fdinfo, taken apart: proc_pid_fdinfo(5).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FdInfo {
    /// The file position.
    pub pos: i64,
    /// Access mode, status flags and [`CLOEXEC`].
    pub flags: u32,
    /// The mount.
    pub mnt: i32,
    /// The inode, since 5.14.
    pub ino: u64,
    /// All other lines, locks included.
    pub rest: String,
}

impl FdInfo {
    /// Parses the text; what is not understood stays in `rest`.
    pub fn parse(text: &[u8]) -> FdInfo {
        let text = String::from_utf8_lossy(text);
        let mut info = FdInfo::default();
        for line in text.lines() {
            let (key, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.trim();
            match key {
                "pos" => info.pos = value.parse().unwrap_or(0),
                "flags" => info.flags = u32::from_str_radix(value, 8).unwrap_or(0),
                "mnt_id" => info.mnt = value.parse().unwrap_or(0),
                "ino" => info.ino = value.parse().unwrap_or(0),
                _ => {
                    info.rest.push_str(line);
                    info.rest.push('\n');
                }
            }
        }
        info
    }

    /// The value of a line, without blanks around it.
    pub fn get(&self, key: &str) -> Option<&str> {
        let mut lines = self.rest.lines().filter_map(|line| line.split_once(':'));
        Some(lines.find(|(each, _)| *each == key)?.1.trim())
    }

    /// The locks held; a lock that is only waited for is shown with `->` and is not among them.
    pub fn locks(&self) -> Vec<Lock> {
        let held = |line: &str| Some(lock(line.strip_prefix("lock:")?)?.lock);
        self.rest.lines().filter_map(held).collect()
    }
}

/// The value of a word in a line of fdinfo such as `tfd:  5 events:  19 data: 5  pos:0 ino:1a`.
pub fn word<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let mut words = line.split_ascii_whitespace();
    let value = words.by_ref().find_map(|word| word.strip_prefix(key)?.strip_prefix(':'))?;
    if value.is_empty() { words.next() } else { Some(value) }
}

/// As [`word`], a number in base 16.
pub fn hex_word(line: &str, key: &str) -> Option<u64> {
    u64::from_str_radix(word(line, key)?, 16).ok()
}

/// Major and minor number of a device as the kernel keeps it, which `sdev:` shows: 12 and 20 bits.
pub fn device(sdev: u32) -> (u32, u32) {
    (sdev >> 20, sdev & 0xfffff)
}

/// A lock that somebody has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldLock {
    /// The lock.
    pub lock: Lock,
    /// The process that took it; -1 if it belongs to a description, but for flock(2).
    pub pid: i32,
    /// Device and inode number, as the file system has them: stat(2) may show another device.
    pub inode: (u32, u32, u64),
}

/// All locks of the system that this pid namespace may know of: /proc/locks.
pub fn locks() -> Vec<HeldLock> {
    let text = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    text.lines().filter_map(lock).collect()
}

/// Parses `1: POSIX  ADVISORY  WRITE 27637 fe:00:10135418 0 EOF`.
fn lock(line: &str) -> Option<HeldLock> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [_, class, state, access, pid, inode, start, end] = words[..] else { return None };
    let mut inode = inode.split(':');
    let mut device = || u32::from_str_radix(inode.next()?, 16).ok();
    let (major, minor) = (device()?, device()?);
    Some(HeldLock {
        lock: Lock {
            class: class.to_owned(),
            write: access == "WRITE",
            start: start.parse().ok()?,
            end: end.parse().ok(),
            breaking: state == "BREAKING",
        },
        pid: pid.parse().ok()?,
        inode: (major, minor, inode.next()?.parse().ok()?),
    })
}

/// A descriptor of another process: what /proc tells of it, and what a copy of ours tells more.
pub struct Descriptor<'a> {
    /// Whose it is.
    pub process: &'a Process,
    /// Its number there; that of our copy if it is in no table.
    pub fd: RawFd,
    /// The process that has it at that number, and the number.
    pub place: (i32, RawFd),
    /// What readlink(2) shows.
    pub link: Bytes,
    /// Its fdinfo.
    pub info: FdInfo,
    /// What stat(2) says.
    pub inode: Option<Inode>,
    /// Owner and signal.
    pub signals: Option<Signals>,
    /// A descriptor of ours for the same description; not for a passive scan.
    pub copy: Option<OwnedFd>,
    /// [`Descriptor::family`], asked once.
    family: OnceCell<Option<i32>>,
    /// [`Descriptor::class`], asked once.
    class: OnceCell<Option<(i32, i32, i32)>>,
}

impl<'a> Descriptor<'a> {
    /// Looks at a number. `fetch` asks for a copy.
    pub fn read(
        process: &'a Process,
        fd: RawFd,
        fetch: bool,
        text: &mut Vec<u8>,
    ) -> Result<Descriptor<'a>> {
        let mut name = [0; 12];
        let name = decimal(fd, &mut name);
        process.descriptor_info(name, text).at(|| "fdinfo")?;
        let info = FdInfo::parse(text);
        let copy = match fetch {
            true => Some(sys::pidfd_getfd(process.pidfd(), fd).at(|| "pidfd_getfd")?),
            false => None,
        };
        let link = || process.descriptor_link(name);
        Descriptor::of(process, (process.pid, fd), info, copy, &link)
    }

    /// Looks at what is in no table: a copy of ours of what waits in a queue of this process.
    pub fn queued(process: &'a Process, copy: OwnedFd) -> Result<Descriptor<'a>> {
        let fd = copy.as_raw_fd();
        let text = read_at(nix::fcntl::AT_FDCWD, &format!("/proc/self/fdinfo/{fd}"));
        let info = FdInfo::parse(&text.at(|| "fdinfo")?);
        let name = format!("/proc/self/fd/{fd}");
        let link = || Ok(readlinkat(nix::fcntl::AT_FDCWD, name.as_str())?.into_vec());
        let place = (std::process::id() as i32, fd);
        Descriptor::of(process, place, info, Some(copy), &link)
    }

    fn of(
        process: &'a Process,
        place: (i32, RawFd),
        info: FdInfo,
        copy: Option<OwnedFd>,
        read_link: &dyn Fn() -> nix::Result<Vec<u8>>,
    ) -> Result<Descriptor<'a>> {
        let fd = place.1;
        let (mut inode, mut signals) = (None, None);
        if let Some(copy) = &copy {
            inode = Some(inode_of(copy.as_fd()).at(|| "stat")?);
            // An O_PATH descriptor has neither.
            if info.flags & libc::O_PATH as u32 == 0 {
                let owner = sys::owner(copy.as_fd()).at(|| "F_GETOWN_EX")?;
                let signal = sys::signal(copy.as_fd()).at(|| "F_GETSIG")?;
                signals = (owner.id != 0 || signal != 0).then_some(Signals {
                    kind: owner.kind,
                    id: owner.id,
                    signal,
                });
            }
        }
        let link = match &inode {
            // On sockfs every inode is a socket and its link is this text.
            Some(inode)
                if inode.mode & libc::S_IFMT == libc::S_IFSOCK
                    && info.flags & libc::O_PATH as u32 == 0 =>
            {
                format!("socket:[{}]", inode.ino).into_bytes()
            }
            // So it is on pipefs, which is known by the first of its pipes.
            Some(inode) if process.pipes.get() == Some(&inode.dev) => {
                format!("pipe:[{}]", inode.ino).into_bytes()
            }
            _ => read_link().at(|| "readlink")?,
        };
        if let Some(inode) = inode.as_ref().filter(|_| link.starts_with(b"pipe:[")) {
            let _ = process.pipes.set(inode.dev);
        }
        Ok(Descriptor {
            process,
            fd,
            place,
            link: Bytes(link),
            info,
            inode,
            signals,
            copy,
            family: OnceCell::new(),
            class: OnceCell::new(),
        })
    }

    /// Its fdinfo once more, for what changes by itself: of the copy, if there is one, since the
    /// number may name another description by now.
    pub fn info_now(&self) -> Result<FdInfo> {
        let mut text = Vec::new();
        match &self.copy {
            Some(copy) => {
                let path = format!("/proc/self/fdinfo/{}", copy.as_raw_fd());
                text = read_at(nix::fcntl::AT_FDCWD, &path).at(|| "fdinfo")?;
            }
            None => self
                .process
                .descriptor_info(decimal(self.fd, &mut [0; 12]), &mut text)
                .at(|| "fdinfo")?,
        }
        Ok(FdInfo::parse(&text))
    }

    /// Access mode and status flags, without FD_CLOEXEC.
    pub fn flags(&self) -> u32 {
        self.info.flags & !CLOEXEC
    }

    /// Whether it is a socket, and not only the place of one.
    pub fn is_socket(&self) -> bool {
        self.link.0.starts_with(b"socket:[")
    }

    /// The address family of a socket: SO_DOMAIN.
    pub fn family(&self) -> Option<i32> {
        let copy = self.copy.as_ref().filter(|_| self.is_socket())?;
        let ask = || sys::socket::option(copy.as_fd(), libc::SOL_SOCKET, libc::SO_DOMAIN).ok();
        *self.family.get_or_init(ask)
    }

    /// Family, type and protocol of a socket: SO_DOMAIN, SO_TYPE, SO_PROTOCOL.
    pub fn class(&self) -> Option<(i32, i32, i32)> {
        *self.class.get_or_init(|| {
            let (family, copy) = (self.family()?, self.copy.as_ref()?);
            let ask = |name| sys::socket::option(copy.as_fd(), libc::SOL_SOCKET, name).ok();
            Some((family, ask(libc::SO_TYPE)?, ask(libc::SO_PROTOCOL)?))
        })
    }

    /// The inode of the network namespace of a socket, if that is not its process's; zero if it is
    /// not known which one it is then.
    pub fn other_netns(&self) -> Option<u64> {
        self.process.other_netns(self.copy.as_ref()?.as_fd())
    }

    /// Whether it is only a place in the file system: O_PATH.
    pub fn is_path(&self) -> bool {
        self.info.flags & libc::O_PATH as u32 != 0
    }

    /// Whether it is on a mount to which no path leads: one that is detached (open_tree(2),
    /// fsmount(2)), or of another mount namespace. What its link says is then the name of something
    /// else, unless it leads to the same by another mount.
    pub fn is_nowhere(&self) -> bool {
        use nix::sys::stat::{major, minor};
        let Some(inode) = &self.inode else { return false };
        let is = |it: FileStat| {
            let dev = (major(it.st_dev) as u32, minor(it.st_dev) as u32);
            (dev, it.st_ino) == (inode.dev, inode.ino)
        };
        self.process.sees_mount(self.info.mnt) == Some(false)
            && !self.process.stat_at(&self.link.0).is_some_and(is)
    }

    /// The file type bits of its mode, if stat(2) was asked.
    pub fn file_type(&self) -> Option<u32> {
        self.inode.as_ref().map(|inode| inode.mode & libc::S_IFMT)
    }

    /// The name without ` (deleted)`, if the kernel says that the name is gone.
    pub fn deleted(&self) -> Option<&[u8]> {
        let name = self.link.0.strip_suffix(b" (deleted)")?;
        // A living file may be called so; one without any name cannot live.
        self.inode.as_ref().is_none_or(|inode| inode.nlink == 0).then_some(name)
    }
}

/// The record of what is open.
pub fn inode_of(fd: BorrowedFd<'_>) -> nix::Result<Inode> {
    let stat = sys::stat(fd)?;
    let mode = u32::from(stat.stx_mode);
    let device = matches!(mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK);
    Ok(Inode {
        dev: (stat.stx_dev_major, stat.stx_dev_minor),
        ino: stat.stx_ino,
        mode,
        nlink: stat.stx_nlink,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        size: stat.stx_size,
        mtime: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
        rdev: device.then_some((stat.stx_rdev_major, stat.stx_rdev_minor)),
    })
}

/// A number as text, without allocation: it is needed thrice a descriptor.
fn decimal(number: RawFd, into: &mut [u8; 12]) -> &str {
    let mut at = into.len();
    let mut rest = number.unsigned_abs();
    loop {
        at -= 1;
        into[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    std::str::from_utf8(&into[at..]).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_parentheses_does_not_shift_the_fields() {
        let line = b"7 (a) b) S 1 7 7 34816 7 0 0 0 0 0 0 0 0 0 20 0 1 0 4711 1 1 1 10 0 30 0 0";
        let stat = Stat::parse(line).unwrap();
        assert_eq!(stat.comm, b"a) b");
        assert_eq!((stat.field(4), stat.field(7), stat.field(22)), (1, 34816, 4711));
        let back = [b"7 )(".as_slice(), &b" S 1".repeat(20)].concat();
        assert_eq!(Stat::parse(&back), None);
    }

    #[test]
    fn a_file_of_many_pages_and_records_is_read_to_its_end() {
        let dir = openat(nix::fcntl::AT_FDCWD, "/proc", OFlag::O_PATH, Mode::empty()).unwrap();
        for name in ["kallsyms", "cpuinfo"] {
            let Ok(text) = std::fs::read(format!("/proc/{name}")) else { continue };
            let ours = read_at(dir.as_fd(), name).unwrap();
            let lines = |text: &[u8]| text.iter().filter(|&&byte| byte == b'\n').count();
            assert_eq!(lines(&ours), lines(&text), "{name}");
        }
    }

    #[test]
    fn an_fdinfo_is_taken_apart() {
        let text = b"pos:\t5\nflags:\t02100001\nmnt_id:\t29\nino:\t77\n\
            lock:\t1: POSIX  ADVISORY  WRITE 27637 fe:00:10135418 10 14\n\
            lock:\t2: -> FLOCK  ADVISORY  WRITE 1 fe:00:1 0 EOF\neventfd-count:               2a\n";
        let info = FdInfo::parse(text);
        assert_eq!((info.pos, info.mnt, info.ino), (5, 29, 77));
        assert_eq!(info.flags, 0o2100001);
        assert_eq!(info.get("eventfd-count"), Some("2a"));
        let posix =
            Lock { class: "POSIX".into(), write: true, start: 10, end: Some(14), breaking: false };
        assert_eq!(info.locks(), [posix]);
        let lease = lock("3: LEASE  BREAKING  UNLCK 7 00:1f:12 0 EOF").unwrap();
        assert!(lease.lock.breaking && !lease.lock.write && lease.lock.end.is_none());
        assert_eq!((lease.pid, lease.inode), (7, (0, 0x1f, 12)));
    }

    #[test]
    fn limits_may_be_unlimited() {
        let text =
            b"Limit  Soft Limit  Hard Limit  Units\nMax open files  20000  unlimited  files\n";
        assert_eq!(open_files(text), Some((20000, u64::MAX)));
    }
}
