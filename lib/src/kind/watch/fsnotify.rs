//! The inodes that inotify watches and fanotify marks. fdinfo shows the device, the inode number
//! and a file handle, but no path. A scan finds a path, and a restore opens the inode by that path.

use crate::error::{At, Error, Result};
use crate::image::{Bytes, Inode, OpenFile};
use crate::kind::context::{Changed, Held, Number, Numbers, RestoreContext};
use crate::kind::watch::watches::READS;
use crate::proc::mounts::Mount;
use crate::proc::{self, Descriptor, FdInfo, Process, hex_word, inode_of};
use crate::sys::device::from_sdev;
use crate::sys::{self, notify};
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::inotify::{InitFlags, Inotify};
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::rc::Rc;

/// The record of an inode that is watched or marked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct WatchedInode {
    /// The device as stat(2) shows it, or as fdinfo shows it if no path was found.
    dev: (u32, u32),
    /// The inode number.
    ino: u64,
    /// The type: the S_IFMT bits of the mode; zero if no path was found.
    kind: u32,
    /// A path of the inode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<Bytes>,
    /// A number by which the process has the inode open, if it has no path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fd: Option<u32>,
}

impl WatchedInode {
    /// An inode that was found by a path or a number.
    fn new(inode: &Inode, path: Option<Vec<u8>>, fd: Option<u32>) -> WatchedInode {
        let kind = inode.mode & libc::S_IFMT;
        WatchedInode { dev: inode.dev, ino: inode.ino, kind, path: path.map(Bytes), fd }
    }

    /// An inode that was not found. `sdev` is the device as fdinfo shows it.
    pub(crate) fn not_found(sdev: u32, ino: u64) -> WatchedInode {
        WatchedInode { dev: from_sdev(sdev), ino, kind: 0, path: None, fd: None }
    }

    /// True if neither a path nor a number was found.
    pub(crate) fn is_not_found(&self) -> bool {
        self.path.is_none() && self.fd.is_none()
    }

    /// The device and the inode number.
    pub(crate) fn device_and_number(&self) -> ((u32, u32), u64) {
        (self.dev, self.ino)
    }

    /// Fails with status 3 if it has both a path and a number.
    pub(crate) fn validate(&self) -> Result<()> {
        match (&self.path, self.fd) {
            (Some(_), Some(_)) => Err(Error::malformed("it has both a path and a number")),
            _ => Ok(()),
        }
    }

    /// Opens the inode for a check. Fails with status 6 if it cannot be opened, or has changed and
    /// [`Changed::Fail`] is set.
    pub(crate) fn check(
        &self,
        numbers: &Numbers<'_>,
        cx: &RestoreContext<'_>,
    ) -> Result<WatchedFd> {
        match self.open(numbers, cx)? {
            (_, Some(why)) if cx.changed == Changed::Fail => Err(Error::unrestorable(why)),
            (target, _) => Ok(target),
        }
    }

    /// Opens the inode. Also returns a message if the path leads to another inode now.
    fn open(
        &self,
        numbers: &Numbers<'_>,
        cx: &RestoreContext<'_>,
    ) -> Result<(WatchedFd, Option<String>)> {
        let WatchedInode { dev: (major, minor), ino, kind, path, fd } = self;
        let path = match (path, fd) {
            (Some(path), _) => path,
            (None, Some(fd)) => {
                let number = numbers.find(*fd).ok_or_else(|| {
                    Error::unrestorable(format!(
                        "descriptor {fd}, which has it open, is not in the image"
                    ))
                })?;
                return Ok((WatchedFd::Number(number), None));
            }
            (None, None) => {
                return Err(Error::unrestorable(format!(
                    "the scan found no path of inode {ino} on device {major}:{minor}"
                )));
            }
        };
        let name = crate::text::escape(&path.0);
        let nofollow = if *kind == libc::S_IFLNK { libc::O_NOFOLLOW } else { 0 };
        let opened = cx.open(&path.0, (libc::O_PATH | nofollow) as u32).at(|| name.as_ref())?;
        let found = inode_of(opened.as_fd()).at(|| name.as_ref())?;
        if found.mode & libc::S_IFMT != *kind {
            let why = "the path now leads to a file of another type";
            return Err(Error::unrestorable(why).at(name));
        }
        let other = (found.dev, found.ino) != (self.dev, *ino);
        let changed = other.then(|| format!("{name}: changed since the scan: it is another inode"));
        Ok((WatchedFd::Path(opened), changed))
    }

    /// Opens the inode for inotify_add_watch(2) or fanotify_mark(2). None, with a warning, if the
    /// descriptor that has it open is not restored. `name` names the watch in messages.
    pub(crate) fn find(
        &self,
        name: &str,
        numbers: &Numbers<'_>,
        cx: &mut RestoreContext<'_>,
    ) -> Result<Option<WatchedFd>> {
        let (target, changed) = self.open(numbers, cx).at(|| name)?;
        if cx.changed == Changed::Warn {
            cx.warnings.extend(changed.map(|changed| format!("{name}: {changed}")));
        }
        match target {
            WatchedFd::Number(Number { fd, file }) => {
                match file.and_then(|file| cx.descriptor(file)) {
                    Some(held) => Ok(Some(WatchedFd::Held(held))),
                    None => {
                        cx.warnings
                            .push(format!("{name} is left out: descriptor {fd} is not restored"));
                        Ok(None)
                    }
                }
            }
            target => Ok(Some(target)),
        }
    }
}

/// A descriptor of a watched inode.
pub(crate) enum WatchedFd {
    /// A descriptor of this process, opened by the path.
    Path(OwnedFd),
    /// A number of the restored table, which may not be open yet.
    Number(Number),
    /// A descriptor of this process for a number of the restored table.
    Held(Rc<Held>),
}

impl WatchedFd {
    /// A path that leads to the inode: that of the descriptor in /proc/self/fd.
    pub(crate) fn path(&self) -> CString {
        proc_fd_path(match self {
            WatchedFd::Path(fd) => fd.as_raw_fd(),
            WatchedFd::Held(held) => held.as_fd().as_raw_fd(),
            WatchedFd::Number(number) => number.fd,
        })
    }

    /// Fails with status 6 unless the path is a mount point.
    pub(crate) fn is_mount_point(&self) -> Result<()> {
        let is_mount_point = match self {
            WatchedFd::Path(fd) => notify::mount(fd.as_fd())?.1,
            WatchedFd::Number(_) | WatchedFd::Held(_) => false,
        };
        if is_mount_point {
            Ok(())
        } else {
            Err(Error::unrestorable("its path is not a mount point now"))
        }
    }
}

/// The path of a number of this process in /proc/self/fd.
fn proc_fd_path(number: i32) -> CString {
    CString::new(format!("/proc/self/fd/{number}")).unwrap_or_default()
}

/// An inode as a line of fdinfo shows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct InodeId {
    /// The device number of the superblock (s_dev), which can differ from that of stat(2).
    pub(super) sdev: u32,
    /// The inode number.
    ino: u64,
    /// The type and the bytes of the file handle, if the file system has handles.
    handle: Option<(i32, Vec<u8>)>,
}

impl InodeId {
    /// True if both are inodes of one file system.
    pub(super) fn is_on_same_device(&self, other: &InodeId) -> bool {
        self.sdev == other.sdev
    }
}

/// Parses the inode in an `inotify` or `fanotify` line of fdinfo.
pub(crate) fn parse_inode_id(line: &str) -> Option<InodeId> {
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

/// The maximum number of paths of a device that a search tries.
const MAX_PATHS: usize = 1 << 10;

/// A breadth-first search through the directories of one device, for inodes whose file handle
/// cannot be opened.
///
/// On some file systems (btrfs, overlayfs) stat(2) and fdinfo show different device or inode
/// numbers. So each path is watched by an inotify instance of this process for a moment, and the
/// inode is read from its fdinfo.
struct Search {
    inotify: Inotify,
    /// The paths, by watch descriptor of `inotify`.
    paths: HashMap<i32, Vec<u8>>,
    /// The paths found, by inode.
    found: HashMap<InodeId, Vec<u8>>,
    /// The paths of the next level.
    next: Vec<Vec<u8>>,
    /// The number of paths that may still be tried.
    remaining: usize,
    /// Directories may be read: the scanned process has no watch that would report it.
    reads_directories: bool,
}

impl Search {
    /// A search that begins with these paths and their parent directories. None if inotify_init1(2)
    /// fails.
    fn new(mut next: Vec<Vec<u8>>, reads_directories: bool) -> Option<Search> {
        let parent = |path: &Vec<u8>| {
            let slash = path.iter().rposition(|&byte| byte == b'/')?;
            Some(path[..slash.max(1)].to_vec())
        };
        let parents: Vec<Vec<u8>> = next.iter().filter_map(parent).collect();
        next.extend(parents);
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC).ok()?;
        let (paths, found) = Default::default();
        Some(Search { inotify, paths, found, next, remaining: MAX_PATHS, reads_directories })
    }

    /// Searches one more level. False if there is none.
    fn search_level(&mut self, finder: &PathFinder<'_>, sdev: u32) -> bool {
        let level = std::mem::take(&mut self.next);
        if level.is_empty() {
            return false;
        }
        for path in level.into_iter().take(self.remaining) {
            self.remaining -= 1;
            self.add_path(&path, finder, sdev);
        }
        let info = FdInfo::of_own(&self.inotify).unwrap_or_default();
        for line in info.rest.lines() {
            let path = hex_word(line, "wd").and_then(|wd| self.paths.get(&(wd as i32)));
            self.found.extend(parse_inode_id(line).zip(path.cloned()));
        }
        true
    }

    /// Watches a path, if it is on the device, and queues the entries of a directory for the next
    /// level.
    fn add_path(&mut self, path: &[u8], finder: &PathFinder<'_>, sdev: u32) -> Option<()> {
        let fd = finder.is_on(path, sdev).then(|| finder.open_path(path))??;
        let fd_path = proc_fd_path(fd.as_raw_fd());
        let wd = add_temporary_watch(&self.inotify, fd.as_raw_fd())?;
        if self.paths.contains_key(&wd) {
            return None;
        }
        // The path as the kernel shows it, without the dots and symbolic links of an argument.
        let path = nix::fcntl::readlink(fd_path.as_c_str()).ok()?.into_vec();
        let directory = self
            .reads_directories
            .then(|| std::fs::read_dir(OsStr::from_bytes(fd_path.as_bytes())));
        let room = self.remaining.saturating_sub(self.next.len());
        for entry in directory.into_iter().flatten().flatten().flatten().take(room) {
            let parent = path.strip_suffix(b"/").unwrap_or(&path);
            self.next.push([parent, b"/", entry.file_name().as_bytes()].concat());
        }
        self.paths.insert(wd, path);
        Some(())
    }
}

/// Finds paths of the inodes that one descriptor of a process watches.
pub(crate) struct PathFinder<'a> {
    process: &'a Process,
    /// The mounts of the process; none in a passive scan, which searches no paths.
    mounts: &'a [Mount],
    /// The root directory of the process; empty if it is that of the mount namespace.
    root: &'a [u8],
    /// The mount id of the working directory of this thread, if it was changed.
    cwd_mount: Cell<Option<u64>>,
    /// The searches, by device number of fdinfo.
    searches: HashMap<(u32, SearchStart), Search>,
}

/// Where a search begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum SearchStart {
    /// The paths that the process uses.
    Process,
    /// The mount points of the device.
    Mounts,
}

/// Runs `work` with a path finder for the process of a descriptor, in a thread that shares its
/// working directory with no other thread (CLONE_FS of unshare(2)): the finder changes it.
pub(crate) fn with_path_finder<T: Send>(
    descriptor: &Descriptor<'_>,
    work: impl FnOnce(&mut PathFinder<'_>) -> Result<T> + Send,
) -> Result<T> {
    let (process, passive) = (descriptor.process, descriptor.copy.is_none());
    let find = || {
        unshare(CloneFlags::CLONE_FS).at(|| "unshare")?;
        work(&mut PathFinder::new(process, passive))
    };
    sys::in_thread(find).at(|| "the search for a path")?
}

impl<'a> PathFinder<'a> {
    fn new(process: &'a Process, passive: bool) -> PathFinder<'a> {
        let view = if passive { None } else { process.mounts() };
        let (mounts, root) = match view {
            Some(it) => (&it.mounts[..], &it.root[..]),
            None => Default::default(),
        };
        let (cwd_mount, searches) = Default::default();
        PathFinder { process, mounts, root, cwd_mount, searches }
    }

    /// Finds an inode by a path, or else by a number of the process.
    pub(crate) fn inode(&mut self, wanted: &InodeId) -> WatchedInode {
        if self.mounts.is_empty() {
            return WatchedInode::not_found(wanted.sdev, wanted.ino);
        }
        let at_path = |(inode, path)| WatchedInode::new(&inode, Some(path), None);
        let near = self.by_handle(wanted).or_else(|| self.by_search(wanted, SearchStart::Process));
        near.map(at_path)
            .or_else(|| self.by_number(wanted))
            .or_else(|| self.by_search(wanted, SearchStart::Mounts).map(at_path))
            .unwrap_or_else(|| WatchedInode::not_found(wanted.sdev, wanted.ino))
    }

    /// A path of the file that a descriptor of this process has open: `path` if that leads to it,
    /// or else another. None if none is found.
    pub(crate) fn path_of(&mut self, copy: BorrowedFd<'_>, path: &[u8]) -> Option<Vec<u8>> {
        let inode = inode_of(copy).ok()?;
        let there = self.open_path(path).and_then(|fd| inode_of(fd.as_fd()).ok());
        if there.is_some_and(|there| (there.dev, there.ino) == (inode.dev, inode.ino)) {
            return Some(path.to_vec());
        }
        let wanted = inode_id_of(copy)?;
        let found =
            self.by_handle(&wanted).or_else(|| self.by_search(&wanted, SearchStart::Process));
        found.map(|(_, path)| path)
    }

    /// Finds the root of a mount by its id.
    pub(crate) fn mount(&self, id: u64) -> WatchedInode {
        let mount = self.mounts.iter().find(|mount| mount.id == id && !mount.root.is_empty());
        let found = mount.and_then(|mount| {
            let path = self.path_outside_root(&mount.point);
            let fd = self.open_path(&path)?;
            // Another mount may cover it.
            let same = notify::mount(fd.as_fd()).is_ok_and(|(found, _)| found == id);
            same.then(|| inode_of(fd.as_fd()).ok()).flatten().map(|inode| (inode, path))
        });
        match found {
            Some((inode, path)) => WatchedInode::new(&inode, Some(path), None),
            None => WatchedInode::not_found(0, 0),
        }
    }

    /// Finds the root of a mount of a file system, preferably one of the whole file system.
    pub(crate) fn file_system(&self, sdev: u32) -> WatchedInode {
        let mut mounts: Vec<&Mount> =
            self.mounts_of(sdev).filter(|mount| !mount.root.is_empty()).collect();
        mounts.sort_by_key(|mount| mount.root.len());
        let found = mounts.into_iter().find_map(|mount| {
            let path = self.path_outside_root(&mount.point);
            let fd = self.open_path(&path)?;
            let (found, _) = notify::mount(fd.as_fd()).ok()?;
            Some((inode_of(fd.as_fd()).ok().filter(|_| found == mount.id)?, path))
        });
        match found {
            Some((inode, path)) => WatchedInode::new(&inode, Some(path), None),
            None => WatchedInode::not_found(sdev, 0),
        }
    }

    /// The mounts of a device, unless a lookup there asks a server.
    fn mounts_of(&self, sdev: u32) -> impl Iterator<Item = &Mount> {
        let dev = from_sdev(sdev);
        self.mounts.iter().filter(move |mount| mount.dev == dev && !mount.is_remote())
    }

    /// A path below the root directory of the process, as a path outside it: as readlink(2) shows
    /// it.
    fn path_outside_root(&self, path: &[u8]) -> Vec<u8> {
        [self.root, path].concat()
    }

    /// Opens a path that readlink(2) has shown, in the mount namespace of the process, with O_PATH.
    fn open_path(&self, path: &[u8]) -> Option<OwnedFd> {
        self.process.open_path(path)
    }

    /// Opens the file handle of an inode by open_by_handle_at(2), and reads its path.
    fn by_handle(&self, wanted: &InodeId) -> Option<(Inode, Vec<u8>)> {
        let (kind, handle) = wanted.handle.as_ref()?;
        self.mounts_of(wanted.sdev).find_map(|mount| {
            if self.cwd_mount.get() != Some(mount.id) {
                let path = self.open_path(&self.path_outside_root(&mount.point))?;
                nix::unistd::fchdir(path.as_fd()).ok()?;
                self.cwd_mount.set(Some(mount.id));
            }
            let opened = notify::open_by_handle(*kind, handle).ok()?;
            let inode = inode_of(opened.as_fd()).ok()?;
            let path =
                nix::fcntl::readlink(proc_fd_path(opened.as_raw_fd()).as_c_str()).ok()?.into_vec();
            // The path may be outside the directory that is mounted, or be deleted.
            let there = inode_of(self.open_path(&path)?.as_fd()).ok()?;
            ((there.dev, there.ino) == (inode.dev, inode.ino)).then_some((inode, path))
        })
    }

    /// Searches paths, and the directories beside and below them.
    fn by_search(&mut self, wanted: &InodeId, from: SearchStart) -> Option<(Inode, Vec<u8>)> {
        let (known, key) = (self.process.found_paths(), (wanted.sdev, wanted.ino));
        if known.searches_have_ended() {
            let path = known.get(key)?;
            return Some((inode_of(self.open_path(&path)?.as_fd()).ok()?, path));
        }
        let mut search = match self.searches.remove(&(wanted.sdev, from)) {
            Some(search) => search,
            None => {
                let paths = match from {
                    SearchStart::Process => self.paths_of_process(),
                    SearchStart::Mounts => {
                        let points = self.mounts_of(wanted.sdev).map(|mount| &mount.point[..]);
                        points.map(|point| self.path_outside_root(point)).collect()
                    }
                };
                Search::new(paths, !self.watches_reads())?
            }
        };
        while !search.found.contains_key(wanted) && search.search_level(self, wanted.sdev) {}
        let path = search.found.get(wanted).cloned();
        self.searches.insert((wanted.sdev, from), search);
        let path = path?;
        self.process.found_paths().add(key, path.clone());
        Some((inode_of(self.open_path(&path)?.as_fd()).ok()?, path))
    }

    /// True if a path is on a device: if the mount with the longest mount point that
    /// is a prefix of the path is one of the device, and not remote.
    fn is_on(&self, path: &[u8], sdev: u32) -> bool {
        let below = |mount: &&Mount| {
            let point = self.path_outside_root(&mount.point);
            let point = point.strip_suffix(b"/").unwrap_or(&point);
            path.strip_prefix(point).is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
        };
        let mounts = self.mounts.iter().filter(below);
        let mount = mounts.max_by_key(|mount| mount.point.len());
        mount.is_some_and(|mount| mount.dev == from_sdev(sdev) && !mount.is_remote())
    }

    /// The paths of the working directory, the program, the arguments and the descriptors of the
    /// process, as paths outside its root directory.
    fn paths_of_process(&self) -> Vec<Vec<u8>> {
        let process = self.process;
        let mut paths: Vec<Vec<u8>> =
            ["cwd", "exe"].iter().filter_map(|name| Some(process.link(name)?.0)).collect();
        let cwd = paths.first().cloned().unwrap_or_default();
        let args = process.read("cmdline").unwrap_or_default();
        for arg in args.split(|&byte| byte == 0).filter(|arg| !arg.is_empty()) {
            // An argument may be `--file=/path`.
            let path = arg.iter().position(|&byte| byte == b'/').map(|at| &arg[at..]);
            paths.extend(path.map(|path| self.path_outside_root(path)));
            paths.push([&cwd[..], b"/", arg].concat());
        }
        for number in process.numbers().unwrap_or_default() {
            paths.extend(process.descriptor_link(&number.to_string()));
        }
        paths.retain(|path| path.starts_with(b"/"));
        paths
    }

    /// True if the process has a watch or mark that reports the reading of a directory.
    fn watches_reads(&self) -> bool {
        let process = self.process;
        let mut text = Vec::new();
        process.numbers().unwrap_or_default().into_iter().any(|number| {
            let read = process.descriptor_info(&number.to_string(), &mut text);
            let has_reads =
                |line: &str| hex_word(line, "mask").is_some_and(|mask| mask & READS != 0);
            read.is_ok() && FdInfo::parse(&text).rest.lines().any(has_reads)
        })
    }

    /// Finds a number by which the process has the inode open: an unlinked file, or one without a
    /// name.
    fn by_number(&self, wanted: &InodeId) -> Option<WatchedInode> {
        let process = self.process;
        let mut text = Vec::new();
        process.numbers().ok()?.into_iter().find_map(|number| {
            process.descriptor_info(&number.to_string(), &mut text).ok()?;
            if FdInfo::parse(&text).ino != wanted.ino {
                return None;
            }
            let copy = sys::pidfd_getfd(process.pidfd(), number).ok()?;
            let inode = inode_of(copy.as_fd()).ok()?;
            (inode_id_of(copy.as_fd())? == *wanted)
                .then(|| WatchedInode::new(&inode, None, Some(number as u32)))
        })
    }
}

/// The inode that a descriptor of this process has open, as fdinfo shows it: by a temporary watch.
pub(crate) fn inode_id_of(copy: BorrowedFd<'_>) -> Option<InodeId> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).ok()?;
    add_temporary_watch(&inotify, copy.as_raw_fd())?;
    let info = FdInfo::of_own(&inotify).ok()?;
    parse_inode_id(info.rest.lines().next()?)
}

/// Watches the file that a number of this process has open, until the instance is closed. Returns
/// the watch descriptor.
fn add_temporary_watch(inotify: &Inotify, number: i32) -> Option<i32> {
    notify::add_watch(inotify.as_fd(), &proc_fd_path(number), libc::IN_DELETE_SELF).ok()
}

/// Warns, at the scan, of a watch or mark whose object was not found. `name` names it in messages. A
/// passive scan does not search.
pub(crate) fn warn_if_not_found(on: &WatchedInode, name: &str, descriptor: &Descriptor<'_>) {
    if on.is_not_found() && descriptor.copy.is_some() {
        let WatchedInode { dev: (major, minor), ino, .. } = on;
        let why = "cannot be restored: no path was found of inode";
        descriptor.warn(format!("{name} {why} {ino} on device {major}:{minor}"));
    }
}

/// Warns of unread events, which no call can queue again. `queued` is their length in bytes.
pub(crate) fn warn_of_lost_events(queued: u32, file: &OpenFile, cx: &mut RestoreContext<'_>) {
    if queued > 0 {
        let fd = cx.lowest[&file.id];
        cx.warnings.push(format!("fd {fd}: {queued} bytes of its events are lost"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;
    use nix::sys::fanotify;
    use proptest::prelude::*;

    #[test]
    fn a_line_of_fdinfo_has_a_device_an_inode_and_a_handle() {
        let line = "inotify wd:1 ino:998036 sdev:fe00000 mask:84000002 ignored_mask:0 \
            fhandle-bytes:8 fhandle-type:1 f_handle:36809900625af97a";
        let handle = Some((1, vec![0x36, 0x80, 0x99, 0, 0x62, 0x5a, 0xf9, 0x7a]));
        assert_eq!(parse_inode_id(line), Some(InodeId { sdev: 0xfe00000, ino: 0x998036, handle }));
        let bare = parse_inode_id("inotify wd:1 ino:7 sdev:1b mask:2 ignored_mask:0");
        assert_eq!(bare, Some(InodeId { sdev: 0x1b, ino: 7, handle: None }));
        assert_eq!(parse_inode_id("inotify wd:1 ino:7 mask:2"), None);
    }

    #[test]
    fn a_mark_that_permits_reads_is_one_for_reads() {
        let flags = fanotify::InitFlags::FAN_CLASS_CONTENT | fanotify::InitFlags::FAN_CLOEXEC;
        let group = match fanotify::Fanotify::init(flags, fanotify::EventFFlags::O_RDONLY) {
            Err(Errno::EPERM | Errno::ENOSYS) => return,
            group => group.unwrap(),
        };
        // Nobody opens the name of a file without one.
        let file = memfd::MemfdOptions::default().create("marked").unwrap();
        let path = proc_fd_path(file.as_raw_fd());
        let added = notify::mark(
            group.as_fd(),
            &path,
            libc::FAN_MARK_ADD,
            libc::FAN_OPEN_PERM | libc::FAN_ACCESS_PERM,
        );
        added.unwrap();
        let mut child =
            std::process::Command::new("sleep").arg("600").stdin(OwnedFd::from(group)).spawn();
        let child = child.as_mut().unwrap();
        let process = Process::open(child.id() as i32).unwrap();
        let watches = PathFinder::new(&process, true).watches_reads();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(watches);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_inode_parser_panic(text in "(ino:|sdev:|f_handle:|fhandle-type:|[0-9a-f ]|é|\\PC){0,60}") {
            let _ = parse_inode_id(&text);
        }
    }
}
