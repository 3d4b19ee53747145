//! What inotify watches and what fanotify marks: an inode, of which fdinfo tells device, number and
//! handle, but no path. It is found at the scan, and opened by that path at the restore.

use crate::error::{At, Error, Result, Status};
use crate::image::{Bytes, Inode};
use crate::kind::context::{Changed, Held, Number, Numbers, RestoreContext};
use crate::proc::{self, Descriptor, FdInfo, Process, device, hex_word, inode_of};
use crate::sys::{self, notify};
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::inotify::{InitFlags, Inotify};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::rc::Rc;

/// An inode that is watched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Watched {
    /// Its device as stat(2) says, or as fdinfo does if it was not found.
    dev: (u32, u32),
    /// Its number.
    ino: u64,
    /// Its type: the S_IFMT bits of its mode; zero if it was not found.
    kind: u32,
    /// A path that leads to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<Bytes>,
    /// A number of the process that has it open, if no path leads to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fd: Option<u32>,
}

impl Watched {
    /// One that was found.
    fn new(inode: &Inode, path: Option<Vec<u8>>, fd: Option<u32>) -> Watched {
        let kind = inode.mode & libc::S_IFMT;
        Watched { dev: inode.dev, ino: inode.ino, kind, path: path.map(Bytes), fd }
    }

    /// One that was not.
    pub(crate) fn lost(sdev: u32, ino: u64) -> Watched {
        Watched { dev: device(sdev), ino, kind: 0, path: None, fd: None }
    }

    /// What tells it from others.
    pub(crate) fn identity(&self) -> ((u32, u32), u64) {
        (self.dev, self.ino)
    }

    /// Fails with status 3 if it has both a path and a number.
    pub(crate) fn validate(&self) -> Result<()> {
        match (&self.path, self.fd) {
            (Some(_), Some(_)) => Err(Error::malformed("it has both a path and a number")),
            _ => Ok(()),
        }
    }

    /// Says why it cannot be opened, and gives where it could be.
    pub(crate) fn check(
        &self,
        numbers: &Numbers<'_>,
        cx: &RestoreContext<'_>,
    ) -> Result<WatchTarget> {
        match self.open(numbers, cx)? {
            (_, Some(what)) if cx.changed == Changed::Fail => Err(Error::unrestorable(what)),
            (place, _) => Ok(place),
        }
    }

    /// Opens it, and says what about it has changed.
    fn open(
        &self,
        numbers: &Numbers<'_>,
        cx: &RestoreContext<'_>,
    ) -> Result<(WatchTarget, Option<String>)> {
        let Watched { dev: (major, minor), ino, kind, path, fd } = self;
        let path = match (path, fd) {
            (Some(path), _) => path,
            (None, Some(fd)) => {
                let number = numbers.find(*fd).ok_or_else(|| {
                    Error::unrestorable(format!(
                        "descriptor {fd}, which has it, is not in the image"
                    ))
                })?;
                return Ok((WatchTarget::Number(number), None));
            }
            (None, None) => {
                return Err(Error::unrestorable(format!(
                    "no path was found to inode {ino} on device {major}:{minor}"
                )));
            }
        };
        let name = crate::text::escape(&path.0);
        let nofollow = if *kind == libc::S_IFLNK { libc::O_NOFOLLOW } else { 0 };
        let opened = cx.open(&path.0, (libc::O_PATH | nofollow) as u32).at(|| name.as_ref())?;
        let found = inode_of(opened.as_fd()).at(|| name.as_ref())?;
        if found.mode & libc::S_IFMT != *kind {
            let why = "the path now names something of another type";
            return Err(Error::unrestorable(why).at(name));
        }
        let other = (found.dev, found.ino) != (self.dev, *ino);
        let what = other.then(|| format!("{name}: changed since the scan: it is another inode"));
        Ok((WatchTarget::Path(opened), what))
    }

    /// Opens it for inotify_add_watch(2) and fanotify_mark(2). None if it is left out with the
    /// descriptor that has it, which is said.
    pub(crate) fn find(
        &self,
        what: &str,
        numbers: &Numbers<'_>,
        cx: &mut RestoreContext<'_>,
    ) -> Result<Option<WatchTarget>> {
        let (place, changed) = self.open(numbers, cx).at(|| what)?;
        if cx.changed == Changed::Warn {
            cx.warnings.extend(changed.map(|changed| format!("{what}: {changed}")));
        }
        match place {
            WatchTarget::Number(Number { fd, file }) => {
                match file.and_then(|file| cx.descriptor(file)) {
                    Some(held) => Ok(Some(WatchTarget::Held(held))),
                    None => {
                        cx.warnings.push(format!("{what} is left out: {fd} is not restored"));
                        Ok(None)
                    }
                }
            }
            place => Ok(Some(place)),
        }
    }
}

/// Where a watched inode is open.
pub(crate) enum WatchTarget {
    /// At a number of ours.
    Path(OwnedFd),
    /// At a number of the restored table.
    Number(Number),
    /// At that number, by a descriptor of this process.
    Held(Rc<Held>),
}

impl WatchTarget {
    /// A path that leads to it whatever its own path is.
    pub(crate) fn path(&self) -> CString {
        magic(match self {
            WatchTarget::Path(fd) => fd.as_raw_fd(),
            WatchTarget::Held(held) => held.as_fd().as_raw_fd(),
            WatchTarget::Number(number) => number.fd,
        })
    }

    /// Fails unless something is mounted there.
    pub(crate) fn is_mount(&self) -> Result<()> {
        let mount = match self {
            WatchTarget::Path(fd) => notify::mount(fd.as_fd())?.1,
            WatchTarget::Number(_) | WatchTarget::Held(_) => false,
        };
        if mount { Ok(()) } else { Err(Error::unrestorable("nothing is mounted there")) }
    }
}

fn magic(number: i32) -> CString {
    CString::new(format!("/proc/self/fd/{number}")).unwrap_or_default()
}

/// What a line of fdinfo tells of an inode: `sdev`, `ino`, and a handle by type and bytes, where
/// its file system has them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct InodeId {
    sdev: u32,
    ino: u64,
    handle: Option<(i32, Vec<u8>)>,
}

/// Parses the end of an `inotify` or `fanotify` line.
pub(crate) fn identity(line: &str) -> Option<InodeId> {
    let handle = || {
        let kind = hex_word(line, "fhandle-type")? as u32 as i32;
        let text = proc::word(line, "f_handle")?;
        let digits = |at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
        let bytes: Option<Vec<u8>> = (0..text.len()).step_by(2).map(digits).collect();
        Some((kind, bytes?))
    };
    Some(InodeId {
        sdev: u32::try_from(hex_word(line, "sdev")?).ok()?,
        ino: hex_word(line, "ino")?,
        handle: handle(),
    })
}

/// A line of /proc/PID/mountinfo.
#[derive(Debug, PartialEq)]
struct Mount {
    id: u64,
    dev: (u32, u32),
    root: Vec<u8>,
    point: Vec<u8>,
    /// Whether a lookup asks a server, which may never answer.
    remote: bool,
}

/// File systems whose lookups ask a server.
const REMOTE: [&str; 8] = ["nfs", "nfs4", "cifs", "smb3", "ceph", "afs", "9p", "fuse.sshfs"];

/// Parses a line of proc_pid_mountinfo(5).
fn mount(line: &[u8]) -> Option<Mount> {
    let words: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    let text = |at: usize| std::str::from_utf8(words.get(at)?).ok();
    let (major, minor) = text(2)?.split_once(':')?;
    let dash = words.iter().position(|word| *word == b"-")?;
    Some(Mount {
        id: text(0)?.parse().ok()?,
        dev: (major.parse().ok()?, minor.parse().ok()?),
        root: unescape(words.get(3)?),
        point: unescape(words.get(4)?),
        remote: REMOTE.contains(&text(dash + 1)?),
    })
}

/// The mount on which the root of a process is, which its mountinfo has not if that is some directory
/// of it (chroot(2)). We may see the mount itself; else its root is not known, and left empty.
fn mount_of_root(pid: i32) -> Option<Mount> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(format!("/proc/{pid}/root").as_str(), flags, Mode::empty()).ok()?;
    let (id, _) = notify::mount(root.as_fd()).ok()?;
    let seen = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let seen = seen.split(|&byte| byte == b'\n').filter_map(mount).find(|mount| mount.id == id);
    let (dev, remote) = match seen {
        Some(mount) => (mount.dev, mount.remote),
        None => (inode_of(root.as_fd()).ok()?.dev, false),
    };
    Some(Mount { id, dev, root: Vec::new(), point: b"/".to_vec(), remote })
}

/// Blanks, newlines and backslashes are shown as three octal digits.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let digits = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok();
        let byte = if first == b'\\' { after.get(..3).and_then(digits) } else { None };
        out.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &after[3..] } else { after };
    }
    out
}

/// The most paths of a device that are tried where a handle is of no use.
const TRIES: usize = 16 << 10;

/// A search through the folders of one device, level by level.
///
/// stat(2) and fdinfo do not agree on every file system (btrfs, overlayfs), so the kernel is asked
/// in its own words: we watch each path ourselves for a moment, and read our own fdinfo.
struct Search {
    inotify: Inotify,
    /// By the number of our watch.
    paths: HashMap<i32, Vec<u8>>,
    found: HashMap<InodeId, Vec<u8>>,
    next: Vec<Vec<u8>>,
    left: usize,
    /// Whether folders may be read: somebody may be told of that.
    reads: bool,
}

impl Search {
    /// Begins with these paths and the folders in which they are.
    fn new(mut next: Vec<Vec<u8>>, reads: bool) -> Option<Search> {
        let above = |path: &Vec<u8>| {
            let slash = path.iter().rposition(|&byte| byte == b'/')?;
            Some(path[..slash.max(1)].to_vec())
        };
        let folders: Vec<Vec<u8>> = next.iter().filter_map(above).collect();
        next.extend(folders);
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC).ok()?;
        let (paths, found) = Default::default();
        Some(Search { inotify, paths, found, next, left: TRIES, reads })
    }

    /// Tries one level more; false if there is none.
    fn go_down(&mut self, finder: &Finder<'_>, sdev: u32) -> bool {
        let level = std::mem::take(&mut self.next);
        if level.is_empty() {
            return false;
        }
        for path in level.into_iter().take(self.left) {
            self.left -= 1;
            self.try_one(&path, finder, sdev);
        }
        let number = self.inotify.as_fd().as_raw_fd();
        let info = std::fs::read(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
        for line in FdInfo::parse(&info).rest.lines() {
            let path = hex_word(line, "wd").and_then(|wd| self.paths.get(&(wd as i32)));
            self.found.extend(identity(line).zip(path.cloned()));
        }
        true
    }

    fn try_one(&mut self, path: &[u8], finder: &Finder<'_>, sdev: u32) -> Option<()> {
        let fd = finder.is_on(path, sdev).then(|| finder.look(path))??;
        let magic = magic(fd.as_raw_fd());
        let wd = watch_for_a_moment(&self.inotify, fd.as_raw_fd())?;
        if self.paths.contains_key(&wd) {
            return None;
        }
        // Without the dots and links of an argument.
        let path = nix::fcntl::readlink(magic.as_c_str()).ok()?.into_vec();
        let folder = self.reads.then(|| std::fs::read_dir(OsStr::from_bytes(magic.as_bytes())));
        let room = self.left.saturating_sub(self.next.len());
        for entry in folder.into_iter().flatten().flatten().flatten().take(room) {
            let above = path.strip_suffix(b"/").unwrap_or(&path);
            self.next.push([above, b"/", entry.file_name().as_bytes()].concat());
        }
        self.paths.insert(wd, path);
        Some(())
    }
}

/// Finds the inodes that one descriptor watches.
pub(crate) struct Finder<'a> {
    process: &'a Process,
    /// None are known to a passive scan, which looks for nothing.
    mounts: Vec<Mount>,
    /// Its root directory, where that is not the one of its mount namespace.
    root: Vec<u8>,
    /// Whether its mount namespace is ours.
    ours: bool,
    /// The mount of our working directory.
    here: Cell<Option<u64>>,
    /// By device.
    searches: HashMap<u32, Search>,
}

/// Finds what a descriptor watches, in a thread with a working directory of its own.
pub(crate) fn finding<T: Send>(
    it: &Descriptor<'_>,
    work: impl FnOnce(&mut Finder<'_>) -> Result<T> + Send,
) -> Result<T> {
    let (process, passive) = (it.process, it.copy.is_none());
    let find = || {
        unshare(CloneFlags::CLONE_FS).at(|| "unshare")?;
        work(&mut Finder::new(process, passive))
    };
    std::thread::scope(|scope| scope.spawn(find).join())
        .unwrap_or_else(|_| Err(Error::new(Status::System, "the search for a path failed")))
}

impl<'a> Finder<'a> {
    fn new(process: &'a Process, passive: bool) -> Finder<'a> {
        let text = if passive { None } else { process.read("mountinfo").ok() };
        let text = text.unwrap_or_default();
        let mut mounts: Vec<Mount> = text.split(|&byte| byte == b'\n').filter_map(mount).collect();
        if !passive && !mounts.iter().any(|mount| mount.point == b"/") {
            mounts.extend(mount_of_root(process.pid));
        }
        let root = process.link("root").map(|root| root.0).filter(|root| root != b"/");
        let namespace = std::fs::read_link("/proc/self/ns/mnt").ok();
        let ours = process.link("ns/mnt").map(|link| link.0)
            == namespace.map(|link| link.into_os_string().into_vec());
        let (here, searches) = Default::default();
        Finder { process, mounts, root: root.unwrap_or_default(), ours, here, searches }
    }

    /// Finds an inode.
    pub(crate) fn inode(&mut self, wanted: &InodeId) -> Watched {
        if self.mounts.is_empty() {
            return Watched::lost(wanted.sdev, wanted.ino);
        }
        let path = self.by_handle(wanted).or_else(|| self.by_search(wanted));
        let path = path.map(|(inode, path)| Watched::new(&inode, Some(path), None));
        path.or_else(|| self.by_number(wanted))
            .unwrap_or_else(|| Watched::lost(wanted.sdev, wanted.ino))
    }

    /// A path that leads to what a descriptor of ours has open: this one, or another.
    pub(crate) fn path_of(&mut self, copy: BorrowedFd<'_>, path: &[u8]) -> Option<Vec<u8>> {
        let inode = inode_of(copy).ok()?;
        let there = self.look(path).and_then(|fd| inode_of(fd.as_fd()).ok());
        if there.is_some_and(|there| (there.dev, there.ino) == (inode.dev, inode.ino)) {
            return Some(path.to_vec());
        }
        let wanted = identity_of(copy)?;
        let found = self.by_handle(&wanted).or_else(|| self.by_search(&wanted));
        found.map(|(_, path)| path)
    }

    /// Finds where a mount is.
    pub(crate) fn mount(&self, id: u64) -> Watched {
        let mount = self.mounts.iter().find(|it| it.id == id && !it.root.is_empty());
        let found = mount.and_then(|mount| {
            let path = self.seen_from_here(&mount.point);
            let fd = self.look(&path)?;
            // Another may be mounted over it.
            let same = notify::mount(fd.as_fd()).is_ok_and(|(found, _)| found == id);
            same.then(|| inode_of(fd.as_fd()).ok()).flatten().map(|inode| (inode, path))
        });
        match found {
            Some((inode, path)) => Watched::new(&inode, Some(path), None),
            None => Watched::lost(0, 0),
        }
    }

    /// Finds a place where a file system is mounted whole.
    pub(crate) fn file_system(&self, sdev: u32) -> Watched {
        let mut mounts: Vec<&Mount> = self.of(sdev).filter(|it| !it.root.is_empty()).collect();
        mounts.sort_by_key(|mount| mount.root.len());
        let found = mounts.into_iter().find_map(|mount| {
            let path = self.seen_from_here(&mount.point);
            let fd = self.look(&path)?;
            let (found, _) = notify::mount(fd.as_fd()).ok()?;
            Some((inode_of(fd.as_fd()).ok().filter(|_| found == mount.id)?, path))
        });
        match found {
            Some((inode, path)) => Watched::new(&inode, Some(path), None),
            None => Watched::lost(sdev, 0),
        }
    }

    /// The mounts of a device that can be looked at without asking a server.
    fn of(&self, sdev: u32) -> impl Iterator<Item = &Mount> {
        let dev = device(sdev);
        self.mounts.iter().filter(move |mount| mount.dev == dev && !mount.remote)
    }

    /// A path of the process as readlink(2) shows it here.
    fn seen_from_here(&self, path: &[u8]) -> Vec<u8> {
        [&self.root[..], path].concat()
    }

    /// Opens a path as readlink(2) shows it here, in the mount namespace of the process.
    fn look(&self, path: &[u8]) -> Option<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        if self.ours {
            return open(path, flags, Mode::empty()).ok();
        }
        let inside = path.strip_prefix(&self.root[..])?;
        let root = format!("/proc/{}/root", self.process.pid);
        open(&[root.as_bytes(), inside].concat()[..], flags, Mode::empty()).ok()
    }

    /// Has the file system open its own handle, and asks what the path is.
    fn by_handle(&self, wanted: &InodeId) -> Option<(Inode, Vec<u8>)> {
        let (kind, handle) = wanted.handle.as_ref()?;
        self.of(wanted.sdev).find_map(|mount| {
            if self.here.get() != Some(mount.id) {
                let path = self.look(&self.seen_from_here(&mount.point))?;
                nix::unistd::fchdir(path.as_fd()).ok()?;
                self.here.set(Some(mount.id));
            }
            let opened = notify::open_by_handle(*kind, handle).ok()?;
            let inode = inode_of(opened.as_fd()).ok()?;
            let path = nix::fcntl::readlink(magic(opened.as_raw_fd()).as_c_str()).ok()?.into_vec();
            // The mount may show only a part of its file system, and a name may be gone.
            let there = inode_of(self.look(&path)?.as_fd()).ok()?;
            ((there.dev, there.ino) == (inode.dev, inode.ino)).then_some((inode, path))
        })
    }

    /// Looks among the paths that the process has itself, and beside and below them.
    fn by_search(&mut self, wanted: &InodeId) -> Option<(Inode, Vec<u8>)> {
        let mut search = match self.searches.remove(&wanted.sdev) {
            Some(search) => search,
            None => Search::new(self.own_paths(), !self.sees_reads())?,
        };
        while !search.found.contains_key(wanted) && search.go_down(self, wanted.sdev) {}
        let path = search.found.get(wanted).cloned();
        self.searches.insert(wanted.sdev, search);
        let path = path?;
        Some((inode_of(self.look(&path)?.as_fd()).ok()?, path))
    }

    /// Whether the last mount whose point is a part of the path is one of the device.
    fn is_on(&self, path: &[u8], sdev: u32) -> bool {
        let below = |mount: &&Mount| {
            let point = self.seen_from_here(&mount.point);
            let point = point.strip_suffix(b"/").unwrap_or(&point);
            path.strip_prefix(point).is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
        };
        let mounts = self.mounts.iter().filter(below);
        let mount = mounts.max_by_key(|mount| mount.point.len());
        mount.is_some_and(|mount| mount.dev == device(sdev) && !mount.remote)
    }

    /// The paths of working directory, program, arguments and descriptors, as seen from here.
    fn own_paths(&self) -> Vec<Vec<u8>> {
        let process = self.process;
        let mut paths: Vec<Vec<u8>> =
            ["cwd", "exe"].iter().filter_map(|name| Some(process.link(name)?.0)).collect();
        let cwd = paths.first().cloned().unwrap_or_default();
        let args = process.read("cmdline").unwrap_or_default();
        for arg in args.split(|&byte| byte == 0).filter(|arg| !arg.is_empty()) {
            // Also `--file=/path`.
            let path = arg.iter().position(|&byte| byte == b'/').map(|at| &arg[at..]);
            paths.extend(path.map(|path| self.seen_from_here(path)));
            paths.push([&cwd[..], b"/", arg].concat());
        }
        for number in process.numbers().unwrap_or_default() {
            paths.extend(process.descriptor_link(&number.to_string()));
        }
        paths.retain(|path| path.starts_with(b"/"));
        paths
    }

    /// Whether the process is told when somebody reads a folder.
    fn sees_reads(&self) -> bool {
        const READS: u64 = (libc::IN_ACCESS | libc::IN_OPEN | libc::IN_CLOSE_NOWRITE) as u64;
        let process = self.process;
        let mut text = Vec::new();
        process.numbers().unwrap_or_default().into_iter().any(|number| {
            let read = process.descriptor_info(&number.to_string(), &mut text);
            // The masks of fanotify have the same bits.
            let told = |line: &str| hex_word(line, "mask").is_some_and(|mask| mask & READS != 0);
            read.is_ok() && FdInfo::parse(&text).rest.lines().any(told)
        })
    }

    /// Looks whether a number of the process has it: a deleted file, or one that never had a name.
    fn by_number(&self, wanted: &InodeId) -> Option<Watched> {
        let process = self.process;
        let mut text = Vec::new();
        process.numbers().ok()?.into_iter().find_map(|number| {
            process.descriptor_info(&number.to_string(), &mut text).ok()?;
            if FdInfo::parse(&text).ino != wanted.ino {
                return None;
            }
            let copy = sys::pidfd_getfd(process.pidfd(), number).ok()?;
            let inode = inode_of(copy.as_fd()).ok()?;
            (identity_of(copy.as_fd())? == *wanted)
                .then(|| Watched::new(&inode, None, Some(number as u32)))
        })
    }
}

/// What fdinfo would tell of what a descriptor of ours has open.
fn identity_of(copy: BorrowedFd<'_>) -> Option<InodeId> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).ok()?;
    watch_for_a_moment(&inotify, copy.as_raw_fd())?;
    let own = inotify.as_fd().as_raw_fd();
    let info = FdInfo::parse(&std::fs::read(format!("/proc/self/fdinfo/{own}")).ok()?);
    identity(info.rest.lines().next()?)
}

/// Watches what a number of ours has open, until the inotify is closed.
fn watch_for_a_moment(inotify: &Inotify, number: i32) -> Option<i32> {
    notify::add_watch(inotify.as_fd(), &magic(number), libc::IN_DELETE_SELF).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_inode_is_told_by_device_number_and_handle() {
        let line = "inotify wd:1 ino:998036 sdev:fe00000 mask:84000002 ignored_mask:0 \
            fhandle-bytes:8 fhandle-type:1 f_handle:36809900625af97a";
        let handle = Some((1, vec![0x36, 0x80, 0x99, 0, 0x62, 0x5a, 0xf9, 0x7a]));
        assert_eq!(identity(line), Some(InodeId { sdev: 0xfe00000, ino: 0x998036, handle }));
        let bare = identity("inotify wd:1 ino:7 sdev:1b mask:2 ignored_mask:0");
        assert_eq!(bare, Some(InodeId { sdev: 0x1b, ino: 7, handle: None }));
        assert_eq!(identity("inotify wd:1 ino:7 mask:2"), None);
    }

    #[test]
    fn a_mount_point_may_have_blanks() {
        let line = b"36 35 98:0 /a\\040b /mnt\\0401 rw,noatime master:1 - nfs4 server:/x rw";
        let (root, point) = (b"/a b".to_vec(), b"/mnt 1".to_vec());
        assert_eq!(mount(line), Some(Mount { id: 36, dev: (98, 0), root, point, remote: true }));
        assert_eq!(mount(b"36 35 98:0 / /mnt"), None);
        assert_eq!(unescape(b"\\134\\04\\999\\"), b"\\\\04\\999\\");
    }

    proptest! {
        #[test]
        fn any_text_is_an_inode_or_not(text in "(ino:|sdev:|f_handle:|fhandle-type:|[0-9a-f ]|é|\\PC){0,60}") {
            let _ = identity(&text);
        }

        #[test]
        fn any_line_is_a_mount_or_not(line in "([0-9:/ \\\\-]|\\PC){0,80}", bytes: Vec<u8>) {
            let _ = mount(line.as_bytes());
            let _ = mount(&bytes);
        }
    }
}
