//! The context of a restore, which is passed to the functions of a kind: the image, the root
//! directory, and the descriptions that are open already.

use crate::error::{At, Error, Result};
use crate::image::{Chunk, Inode, OpenFile, Task, inode_at};
use crate::kind::DecodedImage;
use crate::kind::effect::{Allow, AllowList, Effect, can_search, can_write};
use crate::messages::Messages;
use crate::names;
use crate::proc::{boot_id, inode_of, own_capabilities};
use crate::sys;
use crate::sys::own_table::PlacedFd;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::libc;
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::{Gid, Uid, dup2, fchownat, getegid, geteuid};
use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::OnceLock;

/// The status flags that F_SETFL can change.
pub const SETTABLE: u32 =
    (libc::O_APPEND | libc::O_ASYNC | libc::O_DIRECT | libc::O_NOATIME | libc::O_NONBLOCK) as u32;
const ASYNC: u32 = libc::O_ASYNC as u32;

/// A description that a kind has opened, and those that were opened by the same system call.
pub struct Opened {
    /// A descriptor of the description.
    pub fd: OwnedFd,
    /// Its status flags now. Only those in [`SETTABLE`] are compared with the recorded ones.
    pub flags: u32,
    /// The descriptions of other files that were opened with it, such as the other end of a pipe.
    pub others: Vec<OpenedTogether>,
    /// The other end, if it is closed in the image, and must be open until the queue is filled.
    pub closed_end: Option<OwnedFd>,
}

/// A description of another file that was opened together with one: see [`Opened::others`].
pub struct OpenedTogether {
    /// The id of the file.
    pub file: u32,
    /// A descriptor of the description.
    pub fd: OwnedFd,
    /// Its status flags now. Only those in [`SETTABLE`] are compared with the recorded ones.
    pub flags: u32,
}

impl Opened {
    /// A description that was opened alone.
    pub fn new(fd: OwnedFd, flags: u32) -> Opened {
        Opened { fd, flags, others: Vec::new(), closed_end: None }
    }
}

/// A descriptor in this process of a description that is restored.
#[derive(Debug)]
pub enum Held {
    /// The descriptor is in the restored table, which is that of this process.
    Placed(PlacedFd),
    /// The descriptor is not part of the restored table.
    Owned(OwnedFd),
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Held::Placed(placed) => placed.as_fd(),
            Held::Owned(fd) => fd.as_fd(),
        }
    }
}

/// The policy for a file whose inode, size, mtime or mode has changed since the scan: `--changed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Changed {
    /// The restore fails.
    Fail,
    /// The restore goes on, with a warning.
    #[default]
    Warn,
    /// The restore goes on, without a warning.
    Ignore,
}

crate::word_enum!(Changed { Fail = "fail", Warn = "warn", Ignore = "ignore" });

/// The planned controlling terminal of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CttyPlan {
    /// Neither the task nor the process has one.
    None,
    /// The process keeps the one it has.
    Kept,
    /// The task has that of its session; the field is the process id of the session leader.
    Session(i32),
    /// The terminal of the file with this id, a slave or a master, once that is open.
    FromImage(u32),
    /// The terminal of the caller's descriptor that is at this number in the restored table.
    FromCaller(RawFd),
    /// The terminal at this path.
    FromPath(Vec<u8>),
    /// The task gets none, for this reason.
    Unavailable(String),
}

/// The map from process ids of the image to those of the restored processes.
pub trait PidMap {
    /// The process id now of the task with this id; none if the task is not restored, zero if it is
    /// not forked yet.
    fn process(&self, pid: i32) -> Option<i32>;
    /// The process group id now of the group with this id; none if the group is not restored.
    fn group(&self, pgid: i32) -> Option<i32>;
}

/// The context of the restore of one table, which is passed to [`crate::kind::Kind::restore`].
pub struct RestoreContext<'a> {
    /// The image.
    pub image: &'a DecodedImage,
    /// The task whose table is restored.
    pub task: &'a Task,
    /// The process ids of the restored tasks.
    pub pids: &'a dyn PidMap,
    /// The bytes of the image; empty while the plan is checked.
    pub source: &'a [u8],
    /// The directory below which paths are opened: `--root`.
    pub root: Option<BorrowedFd<'a>>,
    /// All that this system can tell beforehand is checked while the plan is made: for `--dry-run`, and
    /// if `--missing` replaces descriptors or leaves them out. Otherwise the restore finds out some of it
    /// when it opens the files.
    pub checks_all: bool,
    /// The policy for changed files.
    pub changed: Changed,
    /// The effects that the user allows: `--allow`.
    pub allow: &'a [AllowList],
    /// The warnings, which are printed before COMMAND is executed.
    pub warnings: Messages<'static>,
    /// The lowest number of each file that is restored, by the file's id.
    pub lowest: &'a HashMap<u32, RawFd>,
    /// By the id of a file: the id and the number of its other end, if that is closed in the image
    /// and open until the queue is filled.
    pub closed_ends: &'a HashMap<u32, (u32, RawFd)>,
    /// The caller's descriptors that replace files (`--inherit`), by the file's id.
    pub inherited: HashMap<u32, Rc<Held>>,
    /// The ids of the files that are restored, by their object.
    pub objects: &'a HashMap<u32, Vec<u32>>,
    /// The ids of the sockets that are restored, by [`crate::kind::Kind::socket_inode`].
    pub sockets: &'a HashMap<u64, u32>,
    /// The numbers of the table, ascending. Those that `--missing skip` leaves closed are included.
    pub numbers: &'a [Number],
    /// The descriptions that are open already, by the file's id.
    pub held: HashMap<u32, Rc<Held>>,
    /// The planned controlling terminal.
    pub ctty: &'a CttyPlan,
    /// The paths now of files that the restore has created by other paths, by those of the image.
    pub renamed_paths: HashMap<Vec<u8>, Vec<u8>>,
    /// An index for each question about socket addresses: the ids of files, by address.
    pub addresses: HashMap<&'static str, Rc<HashMap<Vec<u8>, u32>>>,
    /// The files that `--missing null` has replaced: no state of theirs is restored.
    pub nulled: HashSet<u32>,
    /// The terminals whose settings are restored already, by device number.
    pub set_terminals: HashSet<(u32, u32)>,
}

impl<'a> RestoreContext<'a> {
    /// True if the image was made in this boot: the inode numbers of namespaces, process ids and monotonic
    /// clocks mean something else in another.
    pub fn is_same_boot(&self) -> bool {
        static BOOT: OnceLock<String> = OnceLock::new();
        self.image.head.boot == *BOOT.get_or_init(boot_id)
    }

    /// Reports whether the plan is checked, and nothing is made yet.
    pub(crate) fn is_plan(&self) -> bool {
        self.source.is_empty()
    }

    /// Reports whether [`crate::kind::Kind::effects`] that touch the file system are asked for: to show
    /// them, or since one may need a word of `--allow`.
    pub(crate) fn asks_for_names(&self) -> bool {
        self.checks_all || self.may_exceed_task()
    }

    /// Reports whether this process may be able to make names where the task could not: as root for the
    /// task of another user. For an ordinary user the kernel decides.
    pub(crate) fn may_exceed_task(&self) -> bool {
        self.task.credentials.uids[3] != 0 && geteuid().is_root()
    }

    /// Reports whether the user of the task can write a file, or make names in a directory. For a
    /// directory that takes the permission to search it and each one above it.
    fn can_write(&self, file: BorrowedFd<'_>) -> Result<bool> {
        let who = &self.task.credentials;
        let stat = fstat(file).at(|| "stat")?;
        if !can_write(who, &stat) {
            return Ok(false);
        }
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFDIR => names::holds_up_to_root(self.root, file, |dir| can_search(who, dir)),
            _ => Ok(true),
        }
    }

    /// The effect of a name that is made in a directory, or of bytes that are written to a file. It
    /// needs `--allow names` if the user of the task cannot do that.
    pub(crate) fn write_to(
        &self,
        file: BorrowedFd<'_>,
        what: impl FnOnce() -> String,
    ) -> Result<Effect> {
        let who = &self.task.credentials;
        if !self.may_exceed_task() || self.can_write(file)? {
            return Ok(Effect::allowed(what()));
        }
        let what = format!("{}, which user {} of its task cannot do there", what(), who.uids[3]);
        Ok(Effect::needing(Allow::Names, what))
    }

    /// Adds a warning, unless it is there already.
    pub fn warn_once(&mut self, line: String) {
        if !self.warnings.lines().contains(&line) {
            self.warnings.push(line);
        }
    }

    /// Opens a path of the image below the root. The file is never created or truncated, and no
    /// magic link of /proc is followed: RESOLVE_NO_MAGICLINKS of openat2(2), Linux 5.6.
    ///
    /// Without O_PATH this is for files that are not opened otherwise: what exists at a path of the
    /// image is opened by [`RestoreContext::look`] and [`RestoreContext::open_seen`].
    pub fn open(&self, path: &[u8], flags: u32) -> Result<OwnedFd> {
        // openat2(2) fails with EINVAL if O_PATH comes with any other flag than these.
        let path_only = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let flags = match flags as i32 {
            flags if flags & libc::O_PATH != 0 => OFlag::from_bits_retain(flags & path_only),
            _ => opening_flags(flags),
        };
        let path = self.renamed_paths.get(path).map_or(path, Vec::as_slice);
        let mut resolve = ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let dir = match &self.root {
            Some(root) => {
                resolve |= ResolveFlag::RESOLVE_IN_ROOT;
                *root
            }
            None => nix::fcntl::AT_FDCWD,
        };
        openat2(dir, path, OpenHow::new().flags(flags).resolve(resolve)).at(|| "open")
    }

    /// Opens what is at a path of the image with O_PATH, and reads its inode. `directory` is true if
    /// it must be a directory, which is then mounted if it is an automount point (open(2)).
    pub fn look(&self, path: &[u8], directory: bool) -> Result<(OwnedFd, Inode)> {
        let directory = if directory { libc::O_DIRECTORY } else { 0 };
        let place = self.open(path, (libc::O_PATH | directory) as u32)?;
        let found = inode_of(place.as_fd()).at(|| "stat")?;
        Ok((place, found))
    }

    /// [`RestoreContext::look`] for the path of a file. If it leads to another file than the recorded
    /// one, no other user may have led it there: then symbolic links of other users are not followed.
    fn look_recorded(&self, file: &OpenFile, directory: bool) -> Result<(OwnedFd, Inode)> {
        let (place, found) = self.look(&file.link.0, directory)?;
        let is_recorded = |old: &Inode| (old.dev, old.ino) == (found.dev, found.ino);
        if file.inode.as_ref().is_none_or(is_recorded) {
            return Ok((place, found));
        }
        let path = self.renamed_paths.get(&file.link.0).unwrap_or(&file.link.0);
        let place = names::open_place(self.root, path)?;
        let found = inode_of(place.as_fd()).at(|| "stat")?;
        Ok((place, found))
    }

    /// Opens the file at a path of the image that [`RestoreContext::look`] has opened with O_PATH.
    /// The path is not resolved again: it may lead to another file by now. With O_NOFOLLOW the name is
    /// opened in its directory, and the file must still be the same.
    ///
    /// Fails with status 6 for O_NOFOLLOW if another user can replace the name.
    pub fn open_seen(&self, path: &[u8], place: BorrowedFd<'_>, flags: u32) -> Result<Opened> {
        if flags & libc::O_NOFOLLOW as u32 == 0 {
            return self.reopen_descriptor(place, flags);
        }
        // The links of /proc/self/fd cannot be opened with O_NOFOLLOW, which the description must
        // have. So the name is opened again, in its directory, where it cannot lead elsewhere.
        let (dir, name) = self.directory_of_unfollowed(path)?;
        let beneath = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
        let how = OpenHow::new().flags(opening_flags(flags)).resolve(beneath);
        let fd = openat2(&dir, name, how).at(|| "open")?;
        let (seen, found) = (inode_of(place).at(|| "stat")?, inode_of(fd.as_fd()).at(|| "stat")?);
        match (seen.dev, seen.ino) == (found.dev, found.ino) {
            true => Ok(Opened::new(fd, flags & !ASYNC)),
            false => Err(Error::unrestorable("the path now leads to another file")),
        }
    }

    /// The directory of a file that is opened with O_NOFOLLOW, and its name there. Fails with status 6
    /// if another user can replace the name: opening what that user has put there meanwhile can have
    /// any effect.
    fn directory_of_unfollowed<'p>(&'p self, path: &'p [u8]) -> Result<(OwnedFd, &'p [u8])> {
        let path = self.renamed_paths.get(path).map_or(path, Vec::as_slice);
        let (dir, name) = names::split(path);
        let name = if name.is_empty() { b"." } else { name };
        let dir = names::open_directory_below(self.root, dir)?;
        match names::can_be_replaced_in(dir.as_fd()).at(|| "stat")? {
            true => Err(Error::unrestorable(
                "it was opened with O_NOFOLLOW, and another user can replace it in its directory",
            )),
            false => Ok((dir, name)),
        }
    }

    /// Opens the path of a file with O_PATH, and compares the inode found with the recorded one.
    ///
    /// Fails with status 6 if the inode found is not `allowed`, if the type or device number differs,
    /// and if the inode, size, mtime or mode differs as [`Changed`] says.
    pub fn look_for(
        &mut self,
        file: &OpenFile,
        allowed: impl Fn(&Inode) -> bool,
    ) -> Result<(OwnedFd, Inode)> {
        let type_of = |inode: &Inode| inode.mode & libc::S_IFMT;
        let directory = file.inode.as_ref().is_some_and(|it| type_of(it) == libc::S_IFDIR);
        let (place, found) =
            self.look_recorded(file, directory).map_err(|err| match err.errno() {
                Some(Errno::ENOTDIR) if directory => another_type(),
                _ => err,
            })?;
        if !allowed(&found) {
            return Err(another_type());
        }
        self.compare(file, &found)?;
        Ok((place, found))
    }

    /// Opens the path of a file, if the inode found is `allowed`, and compares it with the recorded
    /// one as [`RestoreContext::look_for`].
    ///
    /// The path may now lead to a device or fifo, and opening one can have any effect. So the path
    /// is opened with O_PATH, its inode is checked, and then that descriptor is opened again.
    pub fn open_file_if(
        &mut self,
        file: &OpenFile,
        allowed: impl Fn(&Inode) -> bool,
    ) -> Result<Opened> {
        let (place, found) = self.look_for(file, allowed)?;
        if file.flags & libc::O_PATH as u32 != 0 {
            return match file.flags & libc::O_NOFOLLOW as u32 {
                0 => Ok(Opened::new(place, file.flags)),
                _ => Ok(Opened::new(self.open(&file.link.0, file.flags)?, file.flags)),
            };
        }
        // A process may have a lease on a regular file, for which open(2) would wait.
        let regular = found.mode & libc::S_IFMT == libc::S_IFREG;
        let nonblock = if regular { libc::O_NONBLOCK as u32 } else { 0 };
        let mut opened = self.open_seen(&file.link.0, place.as_fd(), file.flags | nonblock)?;
        // The first number is nearly always the final one: it was the lowest free number.
        let mut place = place;
        dup2(&opened.fd, &mut place).at(|| "dup2")?;
        opened.fd = place;
        Ok(opened)
    }

    /// [`RestoreContext::open_file_if`] for a kind whose files are all of one type: S_IFREG or another
    /// of inode(7).
    pub fn open_file_of_type(&mut self, file: &OpenFile, class: libc::mode_t) -> Result<Opened> {
        self.open_file_if(file, |found| found.mode & libc::S_IFMT == class)
    }

    /// Compares an inode with the recorded one: warns or fails as [`Changed`] says.
    fn compare(&mut self, file: &OpenFile, found: &Inode) -> Result<()> {
        let what = file.inode.as_ref().map(|old| differences(old, found)).transpose()?;
        match (self.changed, what.unwrap_or_default()) {
            (Changed::Warn, what) if !what.is_empty() => {
                let name = crate::text::escape(&file.link.0).into_owned();
                self.warnings.push(format!("{name}: changed since the scan: {what}"));
            }
            (Changed::Fail, what) if !what.is_empty() => return Err(changed_error(&what)),
            _ => (),
        }
        Ok(())
    }

    /// Checks that the path of a file exists and is of the recorded type, without opening it.
    ///
    /// A device number must be the same too: opening another device can have any effect. Fails with
    /// status 6, and for other changes too if [`Changed::Fail`] is set. With
    /// [`RestoreContext::checks_all`] it also fails if this process may not open the file.
    pub fn check_path(&self, file: &OpenFile) -> Result<()> {
        self.check_path_for(file, file.flags)
    }

    /// [`RestoreContext::check_path`] for a file that is opened with these flags.
    pub fn check_path_for(&self, file: &OpenFile, flags: u32) -> Result<()> {
        if !self.checks_all && self.is_unchanged(file) {
            return Ok(());
        }
        let (place, found) = match &file.inode {
            Some(inode) if inode.mode & libc::S_IFMT == libc::S_IFLNK => {
                let fd = self.open(&file.link.0, (libc::O_PATH | libc::O_NOFOLLOW) as u32)?;
                let found = inode_of(fd.as_fd()).at(|| "stat")?;
                (fd, found)
            }
            _ => self.look_recorded(file, false)?,
        };
        let what = file.inode.as_ref().map(|old| differences(old, &found)).transpose()?;
        match what.unwrap_or_default() {
            what if self.changed == Changed::Fail && !what.is_empty() => Err(changed_error(&what)),
            _ if self.checks_all => self.check_opening(file, place.as_fd(), flags),
            _ => Ok(()),
        }
    }

    /// Reports whether the path of a file leads to the recorded inode, and nothing that
    /// [`Changed::Fail`] refuses has changed. It is one system call, which follows the magic links of
    /// /proc: opening the path refuses those.
    fn is_unchanged(&self, file: &OpenFile) -> bool {
        let path = self.renamed_paths.get(&file.link.0).unwrap_or(&file.link.0);
        let (Some(old), None, Ok(path)) = (&file.inode, self.root, CString::new(&path[..])) else {
            return false;
        };
        let found = inode_at(&path).ok().filter(|found| found.key() == old.key());
        found.is_some_and(|found| match self.changed {
            Changed::Fail => differences(old, &found).is_ok_and(|what| what.is_empty()),
            _ => differences(old, &found).is_ok(),
        })
    }

    /// Checks that this process may open the file of an O_PATH descriptor with these flags: faccessat2(2)
    /// with AT_EMPTY_PATH, Linux 5.8.
    fn check_opening(&self, file: &OpenFile, place: BorrowedFd<'_>, flags: u32) -> Result<()> {
        if flags & libc::O_PATH as u32 != 0 {
            return Ok(());
        }
        let access = match flags as i32 & libc::O_ACCMODE {
            libc::O_RDONLY => libc::R_OK,
            libc::O_WRONLY => libc::W_OK,
            _ => libc::R_OK | libc::W_OK,
        };
        match sys::may_access(place, access) {
            Ok(()) | Err(Errno::ENOSYS | Errno::EINVAL) => (),
            Err(errno) => return Err(errno).at(|| "open"),
        }
        // What may_open of fs/namei.c refuses besides.
        let stat = sys::stat(place).at(|| "stat")?;
        let only_appends = stat.stx_attributes & libc::STATX_ATTR_APPEND as u64 != 0;
        let appends = flags & libc::O_APPEND as u32 != 0;
        let keeps_access_time = flags & libc::O_NOATIME as u32 != 0;
        if only_appends && access & libc::W_OK != 0 && !appends
            || keeps_access_time && stat.stx_uid != geteuid().as_raw() && !owns_all_files()
        {
            return Err(Errno::EPERM).at(|| "open");
        }
        match flags & libc::O_NOFOLLOW as u32 {
            0 => Ok(()),
            _ => self.directory_of_unfollowed(&file.link.0).map(drop),
        }
    }

    /// Opens a new description of the file that a descriptor has open, by /proc/self/fd. The flags may
    /// be those of a record.
    pub fn reopen_descriptor(&self, fd: BorrowedFd<'_>, flags: u32) -> Result<Opened> {
        let fd = reopen(fd, flags).at(|| "open another description of it")?;
        Ok(Opened::new(fd, flags & !ASYNC))
    }

    /// Sets the recorded owner, group and permissions of a file that was created. Warns if the
    /// owner cannot be set.
    pub fn set_owner_and_mode(&mut self, fd: BorrowedFd<'_>, file: &OpenFile) -> Result<()> {
        let Some(inode) = &file.inode else { return Ok(()) };
        if let Some(why) = set_owner(fd, inode.uid, inode.gid) {
            let name = crate::text::escape(&file.link.0);
            self.warnings.push(format!("{name}: {why}"));
        }
        fchmod(fd, Mode::from_bits_truncate(inode.mode & 0o7777)).at(|| "fchmod")
    }

    /// The id now of a thread, process or process group of the image; none if it is not restored.
    /// `kind` is F_OWNER_TID 0, F_OWNER_PID 1 or F_OWNER_PGRP 2 of fcntl(2).
    pub fn current_id(&self, kind: i32, id: i32) -> Option<i32> {
        match kind {
            0 | 1 => self.pids.process(id),
            2 => self.pids.group(id),
            _ => None,
        }
    }

    /// The map from the numbers of a process of the image to those of this table, for kinds whose
    /// body refers to numbers. After fork(2) two tables may have one description at different
    /// numbers. Fails with status 6 if the image does not have the process.
    pub fn numbers_of(&self, pid: i32) -> Result<Numbers<'a>> {
        let task = self.image.tasks.iter().find(|task| task.pid == pid).ok_or_else(|| {
            Error::unrestorable(format!(
                "it refers to descriptors of process {pid}, which is not in the image"
            ))
        })?;
        if task.table.id == self.task.table.id {
            return Ok(Numbers { table: self.numbers, other: None });
        }
        let here = self.image.slots_of(self.task.table.id).iter().rev();
        let here: HashMap<u32, u32> = here.map(|slot| (slot.file, slot.fd)).collect();
        let there = self.image.slots_of(task.table.id).iter();
        let there = there.filter_map(|slot| Some((slot.fd, *here.get(&slot.file)?)));
        Ok(Numbers { table: self.numbers, other: Some(there.collect()) })
    }

    /// The other files of the same object that are restored.
    pub fn others_of_object(&self, file: &OpenFile) -> Vec<&'a OpenFile> {
        let ids = file.object.and_then(|object| self.objects.get(&object));
        let others = ids.into_iter().flatten().filter(|&&id| id != file.id);
        others.filter_map(|&id| self.image.file(id)).collect()
    }

    /// The file of the socket with this inode number, if it is restored.
    pub fn socket(&self, inode: u32) -> Option<&'a OpenFile> {
        let id = self.sockets.get(&u64::from(inode))?;
        self.lowest.contains_key(id).then(|| self.image.file(*id))?
    }

    /// A descriptor of a file, if it is open already: restored, or inherited from the caller.
    pub fn descriptor(&self, file: u32) -> Option<Rc<Held>> {
        self.held.get(&file).or_else(|| self.inherited.get(&file)).cloned()
    }

    /// Reports whether the closed other end of a file must be open until its queue is filled:
    /// [`Opened::closed_end`].
    pub fn has_closed_end(&self, file: &OpenFile) -> bool {
        self.closed_ends.contains_key(&file.id)
    }

    /// The other end of a file, if [`RestoreContext::has_closed_end`] holds and it is open
    /// already.
    pub fn closed_end(&self, file: u32) -> Option<Rc<Held>> {
        self.held.get(&self.closed_ends.get(&file)?.0).cloned()
    }

    /// Another description of the same object, if one is open already.
    pub fn open_of_object(&self, file: &OpenFile) -> Option<Rc<Held>> {
        self.others_of_object(file).iter().find_map(|peer| self.held.get(&peer.id).cloned())
    }

    /// Calls `take` for each piece of the contents of an object, in order. Fails with status 3 if
    /// the image was truncated.
    pub fn contents(
        &self,
        object: Option<u32>,
        mut take: impl FnMut(&Chunk, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let chunks = object.and_then(|object| self.image.contents.get(&object));
        for chunk in chunks.into_iter().flatten() {
            let bytes = self.source.get(chunk.at as usize..).and_then(|rest| rest.get(..chunk.len));
            take(
                chunk,
                bytes
                    .ok_or_else(|| Error::malformed("the image was truncated while it was read"))?,
            )?;
        }
        Ok(())
    }

    /// Reports whether contents of this object are in the image.
    pub fn has_contents(&self, object: Option<u32>) -> bool {
        object.is_some_and(|object| self.image.contents.contains_key(&object))
    }
}

/// The flags for open(2), given those of a record.
///
/// O_CREAT, O_EXCL and O_TRUNC would create or change a file. The kernel keeps none of them in the
/// flags of a description (do_dentry_open of fs/open.c), so only a forged image has them. O_TMPFILE,
/// which it keeps, would create another file; O_DIRECTORY is a part of it. O_ASYNC is set later.
fn opening_flags(flags: u32) -> OFlag {
    const TMPFILE: i32 = libc::O_TMPFILE & !libc::O_DIRECTORY;
    let flags = flags as i32;
    let tmpfile = if flags & TMPFILE != 0 { libc::O_TMPFILE } else { 0 };
    let unwanted = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_ASYNC | tmpfile;
    OFlag::from_bits_retain(flags & !unwanted | libc::O_NOCTTY)
}

/// Opens a new description of the file that a descriptor has open, by /proc/self/fd, with flags that
/// may be those of a record. O_NOFOLLOW is left out: the name there is a symbolic link.
pub(crate) fn reopen(fd: BorrowedFd<'_>, flags: u32) -> nix::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let nofollow = OFlag::O_NOFOLLOW;
    // open(2) ignores O_NOCTTY with O_PATH.
    open(path.as_str(), opening_flags(flags).difference(nofollow), Mode::empty())
}

fn another_type() -> Error {
    Error::unrestorable("the path now leads to a file of another type")
}

/// Fails with status 3 if the recorded inode of a file is not of this type of inode(7).
pub(crate) fn expect_type(file: &OpenFile, class: libc::mode_t) -> Result<()> {
    match &file.inode {
        Some(inode) if inode.mode & libc::S_IFMT != class => {
            Err(Error::malformed(format!("its inode has a type that kind {} never has", file.kind)))
        }
        _ => Ok(()),
    }
}

/// Fails with status 3 if the position of a file is negative: vfs_setpos of fs/read_write.c accepts
/// that only of files whose offsets are addresses, such as /proc/PID/mem.
pub(crate) fn expect_position(file: &OpenFile) -> Result<()> {
    match file.pos < 0 {
        true => Err(Error::malformed("its position is negative")),
        false => Ok(()),
    }
}

/// A number of a table, and the id of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    /// The number.
    pub fd: RawFd,
    /// The file; none for a descriptor of the caller that the image does not have.
    pub file: Option<u32>,
}

/// The result of [`RestoreContext::numbers_of`].
pub struct Numbers<'a> {
    table: &'a [Number],
    /// The numbers of this table by those of another; none if both are the same table.
    other: Option<HashMap<u32, u32>>,
}

impl Numbers<'_> {
    /// The number in this table; none if the table does not have the description. The number is
    /// closed if `--missing skip` left it out.
    pub fn get(&self, number: u32) -> Option<RawFd> {
        self.find(number).map(|number| number.fd)
    }

    /// The number in this table and its file, as [`Numbers::get`].
    pub fn find(&self, number: u32) -> Option<Number> {
        let here = match &self.other {
            None => number,
            Some(other) => *other.get(&number)?,
        };
        let here = RawFd::try_from(here).ok()?;
        let at = self.table.binary_search_by_key(&here, |number| number.fd).ok()?;
        Some(self.table[at])
    }
}

/// Sets the owner and group of a file that was created. Gives a warning if they cannot be set.
pub(crate) fn set_owner(fd: BorrowedFd<'_>, uid: u32, gid: u32) -> Option<String> {
    let (owner, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    if (owner, group) == (geteuid(), getegid()) {
        return None;
    }
    let set = fchownat(fd, "", Some(owner), Some(group), AtFlags::AT_EMPTY_PATH);
    Some(owner_not_restored(uid, gid, set.err()?))
}

/// The warning about a file whose recorded owner and group could not be set.
pub(crate) fn owner_not_restored(uid: u32, gid: u32, errno: Errno) -> String {
    let why = match errno {
        Errno::EPERM => "run as root (CAP_CHOWN)",
        // EINVAL: a user namespace without this id.
        errno => errno.desc(),
    };
    format!("its owner {uid}:{gid} is not restored: {why}")
}

/// CAP_FOWNER of capabilities(7).
const CAP_FOWNER: u32 = 3;

/// Reports whether this process is permitted what the owner of a file is.
fn owns_all_files() -> bool {
    own_capabilities() & 1 << CAP_FOWNER != 0
}

fn changed_error(what: &str) -> Error {
    Error::unrestorable(format!("changed since the scan: {what}"))
}

/// The differences between the recorded inode and the one found, as text. Fails with status 6 if
/// the type or the device number differs.
fn differences(old: &Inode, new: &Inode) -> Result<String> {
    if (old.mode ^ new.mode) & libc::S_IFMT != 0 || old.rdev != new.rdev {
        return Err(another_type());
    }
    let regular = new.mode & libc::S_IFMT == libc::S_IFREG;
    let mut what = Vec::new();
    if (old.dev, old.ino) != (new.dev, new.ino) {
        what.push("it is another inode".to_owned());
    }
    if regular && old.size != new.size {
        what.push(format!("its size was {} and is {}", old.size, new.size));
    } else if regular && old.mtime != new.mtime {
        what.push("it was written to".to_owned());
    }
    if old.mode != new.mode {
        what.push(format!("its mode was {:o} and is {:o}", old.mode, new.mode));
    }
    Ok(what.join(", "))
}

/// Sets the status flags of a descriptor to `want`, if `now` differs from them. O_ASYNC is set
/// later: fcntl(2) registers the process for SIGIO only with F_SETFL, after the owner is set.
pub fn set_flags(fd: BorrowedFd<'_>, now: u32, want: u32) -> Result<()> {
    if (now ^ want) & SETTABLE & !ASYNC != 0 && want & libc::O_PATH as u32 == 0 {
        let flags = OFlag::from_bits_retain((want & !ASYNC) as i32);
        nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFL(flags)).at(|| "F_SETFL")?;
    }
    Ok(())
}
