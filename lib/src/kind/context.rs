//! What a kind may look around in while it restores a description: the image, the file system
//! below the root, and what was made already.

use crate::error::{At, Error, Result};
use crate::image::{Chunk, Inode, OpenFile, Task};
use crate::kind::DecodedImage;
use crate::proc::inode_of;
use crate::sys::own_table::PlacedFd;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::libc;
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, fchownat, getegid, geteuid};
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;

/// The status flags that F_SETFL can change.
pub const SETTABLE: u32 =
    (libc::O_APPEND | libc::O_ASYNC | libc::O_DIRECT | libc::O_NOATIME | libc::O_NONBLOCK) as u32;
const ASYNC: u32 = libc::O_ASYNC as u32;

/// A description just made, and what was made with it.
pub struct Opened {
    /// A descriptor of it.
    pub fd: OwnedFd,
    /// Its status flags, of which those in [`SETTABLE`] count.
    pub flags: u32,
    /// Descriptions that were made together with it, as the other end of a pipe is.
    pub others: Vec<OpenedTogether>,
    /// The other end, if that is closed in the image, and must be open until its queue is filled.
    pub parked: Option<OwnedFd>,
}

/// A description of another file that was made together with one.
pub struct OpenedTogether {
    /// The file.
    pub file: u32,
    /// A descriptor of it.
    pub fd: OwnedFd,
    /// Its status flags, of which those in [`SETTABLE`] count.
    pub flags: u32,
}

impl Opened {
    /// A description that was made alone.
    pub fn new(fd: OwnedFd, flags: u32) -> Opened {
        Opened { fd, flags, others: Vec::new(), parked: None }
    }
}

/// A descriptor in this process of a description that is restored.
#[derive(Debug)]
pub enum Held {
    /// It is at a number of the table that is restored, which is this process's own.
    Placed(PlacedFd),
    /// It is beside that table.
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

/// What to do about a file that is not what it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Changed {
    /// Refuse.
    Fail,
    /// Say so.
    #[default]
    Warn,
    /// Say nothing.
    Ignore,
}

crate::word_enum!(Changed { Fail = "fail", Warn = "warn", Ignore = "ignore" });

/// What becomes of the controlling terminal of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CttyPlan {
    /// It had none, and neither has the process.
    None,
    /// The process has one already, and keeps it.
    Kept,
    /// That of its session, which this task leads.
    Session(i32),
    /// The terminal of this file of the image, a slave or a master, once that stands.
    FromImage(u32),
    /// The caller's descriptor that has this number by then.
    FromCaller(RawFd),
    /// What is at this path.
    FromPath(Vec<u8>),
    /// It gets none, for this reason.
    Unavailable(String),
}

/// The processes that are, or will be, the tasks of the image.
pub trait PidMap {
    /// The process that is the task with this id now; none if that is not restored. Zero before
    /// there are any.
    fn process(&self, pid: i32) -> Option<i32>;
    /// The process group that is the one with this id now.
    fn group(&self, pgid: i32) -> Option<i32>;
}

/// The work in progress.
pub struct RestoreContext<'a> {
    /// The image.
    pub image: &'a DecodedImage,
    /// The task whose table is restored.
    pub task: &'a Task,
    /// Who its tasks are now.
    pub pids: &'a dyn PidMap,
    /// Its bytes; empty as long as nothing is made.
    pub source: &'a [u8],
    /// The directory below which paths are opened.
    pub root: Option<BorrowedFd<'a>>,
    /// Whether nothing will be made.
    pub dry_run: bool,
    /// What to do about changed files.
    pub changed: Changed,
    /// Said before COMMAND runs.
    pub warnings: Vec<String>,
    /// The lowest number of each file that is restored.
    pub lowest: &'a HashMap<u32, RawFd>,
    /// By file: the id and the number of its other end, if that is closed in the image and is open
    /// until the queue is filled.
    pub parked: &'a HashMap<u32, (u32, RawFd)>,
    /// The caller's descriptors that stand for files.
    pub inherited: HashMap<u32, Rc<Held>>,
    /// The files of each object that are restored.
    pub objects: &'a HashMap<u32, Vec<u32>>,
    /// The sockets that are restored, by inode.
    pub sockets: &'a HashMap<u64, u32>,
    /// The numbers of the table, ascending; those left out by `--missing skip` too.
    pub numbers: &'a [Number],
    /// The descriptions that are open by now, by file.
    pub held: HashMap<u32, Rc<Held>>,
    /// What becomes of the controlling terminal.
    pub ctty: &'a CttyPlan,
    /// Paths of the image that are others now.
    pub renamed_paths: HashMap<Vec<u8>, Vec<u8>>,
    /// The files of sockets by their addresses, for each question of who has one.
    pub addresses: HashMap<&'static str, Rc<HashMap<Vec<u8>, u32>>>,
    /// The files in whose place is something else (`--missing null`): nothing of theirs is put back.
    pub nulled: HashSet<u32>,
    /// Terminals whose settings are put back already.
    pub set_terminals: HashSet<(u32, u32)>,
}

impl<'a> RestoreContext<'a> {
    /// Opens a path of the image below the root. It is never created nor truncated, and no magic
    /// link of /proc is followed (openat2(2), Linux 5.6).
    pub fn open(&self, path: &[u8], flags: u32) -> Result<OwnedFd> {
        let unwanted = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_ASYNC;
        // openat2 takes O_PATH with nothing but these.
        let path_only = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let flags = match flags as i32 {
            flags if flags & libc::O_PATH != 0 => flags & path_only,
            flags => flags & !unwanted | libc::O_NOCTTY,
        };
        let flags = OFlag::from_bits_retain(flags);
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

    /// Opens what a file of the image names, and holds it against what was recorded.
    ///
    /// The type must be the same; another inode, size, mode or time is what [`Changed`] is about.
    pub fn open_file(&mut self, file: &OpenFile) -> Result<Opened> {
        let regular = |old: &Inode| old.mode & libc::S_IFMT == libc::S_IFREG;
        // By now the path may be that of a fifo, which would wait for its other end.
        let flags = match file.inode.as_ref().is_some_and(regular) {
            true => file.flags | libc::O_NONBLOCK as u32,
            false => file.flags,
        };
        let fd = self.open(&file.link.0, flags)?;
        let found = inode_of(fd.as_fd()).at(|| "stat")?;
        self.compare(file, &found)?;
        Ok(Opened::new(fd, flags & !ASYNC))
    }

    /// [`RestoreContext::open_file`] for a kind whose files are all of one type, S_IFREG or another of inode(7).
    ///
    /// Where devices are, or if nothing was recorded to hold it against, it is looked at first.
    pub fn open_file_of_type(&mut self, file: &OpenFile, class: libc::mode_t) -> Result<Opened> {
        let flags = file.flags as i32;
        // To open what is a place only, or nothing but a directory, runs no driver.
        let harmless = flags & (libc::O_PATH | libc::O_DIRECTORY) != 0;
        let known = file.inode.is_some() && !file.link.0.windows(5).any(|part| part == b"/dev/");
        match harmless || known {
            true => self.open_file(file),
            false => self.open_file_if(file, |found| found.mode & libc::S_IFMT == class),
        }
    }

    /// Opens what a file of the image names, if what is there is `allowed` and, for a device, has
    /// the same number.
    ///
    /// The path could be that of any device by now, and to open it could do anything. So it is
    /// looked at as a place, and then that place is opened.
    pub fn open_file_if(
        &mut self,
        file: &OpenFile,
        allowed: impl Fn(&Inode) -> bool,
    ) -> Result<Opened> {
        let place = self.open(&file.link.0, libc::O_PATH as u32)?;
        let found = inode_of(place.as_fd()).at(|| "stat")?;
        if !allowed(&found) {
            return Err(Error::unrestorable("the path now names something of another type"));
        }
        self.compare(file, &found)?;
        let unwanted = (libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC) as u32;
        self.reopen_descriptor(place.as_fd(), file.flags & !unwanted | libc::O_NOCTTY as u32)
    }

    /// Holds what is there against what was recorded.
    fn compare(&mut self, file: &OpenFile, found: &Inode) -> Result<()> {
        let what = file.inode.as_ref().map(|old| differences(old, found)).transpose()?;
        match (self.changed, what.unwrap_or_default()) {
            (Changed::Warn, what) if !what.is_empty() => {
                let name = crate::text::escape(&file.link.0).into_owned();
                self.warnings.push(format!("{name}: changed since the scan: {what}"));
            }
            (Changed::Fail, what) if !what.is_empty() => return Err(changed(&what)),
            _ => (),
        }
        Ok(())
    }

    /// [`RestoreContext::check_path`] for a dry run only: a real one finds out by opening.
    pub fn check_path_in_dry_run(&self, file: &OpenFile) -> Result<()> {
        if self.dry_run { self.check_path(file) } else { Ok(()) }
    }

    /// Looks whether the path of a file is there and of the same type, without opening it.
    ///
    /// A device number must be the same too: opening another device could do anything.
    pub fn check_path(&self, file: &OpenFile) -> Result<()> {
        let nofollow = match &file.inode {
            Some(inode) if inode.mode & libc::S_IFMT == libc::S_IFLNK => libc::O_NOFOLLOW,
            _ => 0,
        };
        let fd = self.open(&file.link.0, (libc::O_PATH | nofollow) as u32)?;
        let found = inode_of(fd.as_fd()).at(|| "stat")?;
        let what = file.inode.as_ref().map(|old| differences(old, &found)).transpose()?;
        match what.unwrap_or_default() {
            what if self.changed == Changed::Fail && !what.is_empty() => Err(changed(&what)),
            _ => Ok(()),
        }
    }

    /// A second description of what a descriptor has open.
    pub fn reopen_descriptor(&self, fd: BorrowedFd<'_>, flags: u32) -> Result<Opened> {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let unwanted = libc::O_ASYNC | libc::O_TMPFILE;
        let how = OFlag::from_bits_retain(flags as i32 & !unwanted);
        let fd = open(path.as_str(), how, Mode::empty()).at(|| "open a second description")?;
        Ok(Opened::new(fd, flags & !ASYNC))
    }

    /// Gives what was made anew its owner and permissions.
    pub fn set_owner_and_mode(&mut self, fd: BorrowedFd<'_>, file: &OpenFile) -> Result<()> {
        let Some(inode) = &file.inode else { return Ok(()) };
        let (uid, gid) = (Uid::from_raw(inode.uid), Gid::from_raw(inode.gid));
        if (uid, gid) != (geteuid(), getegid())
            && fchownat(fd, "", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH).is_err()
        {
            let name = crate::text::escape(&file.link.0).into_owned();
            self.warnings.push(format!("{name}: its owner {uid}:{gid} was not put back"));
        }
        fchmod(fd, Mode::from_bits_truncate(inode.mode & 0o7777)).at(|| "fchmod")
    }

    /// The process (kind 0 or 1: a thread or a process) or group (2) that an id of the image means
    /// now, if it is restored.
    pub fn current_id(&self, kind: i32, id: i32) -> Option<i32> {
        match kind {
            0 | 1 => self.pids.process(id),
            2 => self.pids.group(id),
            _ => None,
        }
    }

    /// Where in this table stands what a process of the image had at its numbers, for kinds whose
    /// body names numbers: a table made by fork(2) may have them elsewhere.
    pub fn numbers_of(&self, pid: i32) -> Result<Numbers<'a>> {
        let task = self.image.tasks.iter().find(|task| task.pid == pid).ok_or_else(|| {
            Error::unrestorable(format!(
                "process {pid}, whose numbers it names, is not in the image"
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

    /// A descriptor of a file, if it is open by now: restored, or the caller's.
    pub fn descriptor(&self, file: u32) -> Option<Rc<Held>> {
        self.held.get(&file).or_else(|| self.inherited.get(&file)).cloned()
    }

    /// Reports whether the closed other end of a file must be open until its queue is filled:
    /// [`Opened::parked`].
    pub fn needs_parked_end(&self, file: &OpenFile) -> bool {
        self.parked.contains_key(&file.id)
    }

    /// The other end of a file, if that is parked.
    pub fn parked_end(&self, file: u32) -> Option<Rc<Held>> {
        self.held.get(&self.parked.get(&file)?.0).cloned()
    }

    /// A description of the same object, if one is open by now.
    pub fn open_of_object(&self, file: &OpenFile) -> Option<Rc<Held>> {
        self.others_of_object(file).iter().find_map(|peer| self.held.get(&peer.id).cloned())
    }

    /// Hands the contents of an object to `take`, piece by piece.
    pub fn contents(
        &self,
        object: Option<u32>,
        mut take: impl FnMut(&Chunk, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let chunks = object.and_then(|object| self.image.contents.get(&object));
        for chunk in chunks.into_iter().flatten() {
            let bytes = self.source.get(chunk.at as usize..).and_then(|rest| rest.get(..chunk.len));
            take(chunk, bytes.ok_or_else(|| Error::malformed("the image became shorter"))?)?;
        }
        Ok(())
    }

    /// Whether contents of this object are in the image.
    pub fn has_contents(&self, object: Option<u32>) -> bool {
        object.is_some_and(|object| self.image.contents.contains_key(&object))
    }
}

/// Fails with status 3 if a file is recorded with another type of inode(7) than its kind has.
pub(crate) fn expect_type(file: &OpenFile, class: libc::mode_t) -> Result<()> {
    match &file.inode {
        Some(inode) if inode.mode & libc::S_IFMT != class => {
            Err(Error::malformed(format!("its inode is not of kind {}", file.kind)))
        }
        _ => Ok(()),
    }
}

/// A number of a table, and the file that it names in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    /// The number.
    pub fd: RawFd,
    /// The file; none for a descriptor of the caller that the image does not have.
    pub file: Option<u32>,
}

/// What [`RestoreContext::numbers_of`] found.
pub struct Numbers<'a> {
    table: &'a [Number],
    /// From the numbers of another table.
    other: Option<HashMap<u32, u32>>,
}

impl Numbers<'_> {
    /// The number in this table, if it has one. It may be closed: `--missing skip`.
    pub fn get(&self, number: u32) -> Option<RawFd> {
        self.find(number).map(|number| number.fd)
    }

    /// The number in this table and its file, if it has one.
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

fn changed(what: &str) -> Error {
    Error::unrestorable(format!("changed: {what}"))
}

/// In which ways a file is not what it was; fails if it is not even of the same type.
fn differences(old: &Inode, new: &Inode) -> Result<String> {
    if (old.mode ^ new.mode) & libc::S_IFMT != 0 || old.rdev != new.rdev {
        return Err(Error::unrestorable("the path now names something of another type"));
    }
    let regular = new.mode & libc::S_IFMT == libc::S_IFREG;
    let mut what = Vec::new();
    if (old.dev, old.ino) != (new.dev, new.ino) {
        what.push("it is another inode".to_owned());
    }
    if regular && old.size != new.size {
        what.push(format!("its size was {} and is {}", old.size, new.size));
    } else if regular && old.mtime != new.mtime {
        what.push("its contents were written to".to_owned());
    }
    if old.mode != new.mode {
        what.push(format!("its mode was {:o} and is {:o}", old.mode, new.mode));
    }
    Ok(what.join(", "))
}

/// Sets the status flags where they differ, O_ASYNC aside: it works only once the owner is set.
pub fn set_flags(fd: BorrowedFd<'_>, born: u32, want: u32) -> Result<()> {
    if (born ^ want) & SETTABLE & !ASYNC != 0 && want & libc::O_PATH as u32 == 0 {
        let flags = OFlag::from_bits_retain((want & !ASYNC) as i32);
        nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFL(flags)).at(|| "F_SETFL")?;
    }
    Ok(())
}
