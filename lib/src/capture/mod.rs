//! Walks the tables of processes, finds what dup(2) and fork(2) share, and writes the image.

mod contents;
pub mod freeze;
mod threads;

use crate::capture::contents::{ContentsSource, CopySource};
use crate::capture::freeze::Frozen;
use crate::capture::threads::look;
use crate::cli::progress::{Progress, Unit};
use crate::error::{Error, Result, Status};
use crate::filter::{Filter, Subject};
use crate::image::{Bytes, Head, Item, Lock, OpenFile, Slot, Summary, VERSION, Writer};
use crate::kind::Captured;
use crate::proc::{CLOEXEC, FdInfo, Process, ProcessIdentity, attach_refusal, boot_id};
use crate::sys;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::cmp::Ordering;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::io::Write;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// What to take.
#[derive(Clone, Debug, Default)]
pub struct ScanOptions {
    /// The descendants too.
    pub tree: bool,
    /// Only what passes all of these.
    pub filters: Vec<Filter>,
    /// The most bytes of contents of one object; none takes no contents.
    pub data: Option<u64>,
    /// Only the text of /proc.
    pub passive: bool,
    /// Stop the tasks meanwhile.
    pub freeze: bool,
    /// Leave them stopped.
    pub stop: bool,
}

impl ScanOptions {
    /// Whether the tasks stand still while they are looked at.
    fn freezes(&self) -> bool {
        self.freeze || self.stop
    }
}

/// Where a description was seen, to compare others with.
#[derive(Clone, Copy)]
struct KnownFile {
    file: u32,
    pid: i32,
    fd: RawFd,
}

/// Captures processes into an image. `say` gets what could not be taken, a line each.
///
/// Gives `out` back with the status: 1 if some descriptors could not be taken, 5 if a process changed meanwhile.
/// Fails, before anything is written, if a process cannot be looked at.
pub fn capture<W: Write>(
    pids: &[i32],
    options: &ScanOptions,
    out: W,
    say: &mut dyn FnMut(String),
) -> Result<(W, Status, Summary)> {
    let mut frozen = Frozen::default();
    let mut progress = Progress::new(TOOL, Unit::Of("processes"), None);
    let mut processes = gather(pids, options, &mut frozen, &mut progress)?;
    let mut scan = Scan {
        options,
        say,
        status: Status::Done,
        progress,
        out: Writer::new(out),
        seen: HashMap::new(),
        objects: HashMap::new(),
        locks: HashSet::new(),
        holders: Vec::new(),
        copies: Vec::new(),
        files: 0,
        summary: Summary::default(),
    };
    scan.out.put(&Item::Head(Head {
        contents: options.data.is_some(),
        frozen: options.freezes(),
        passive: options.passive,
        ..head(TOOL)
    }))?;
    scan.tables(&mut processes)?;
    scan.queues(&processes)?;
    scan.contents(&processes)?;
    if options.stop {
        for process in &processes {
            frozen.leave_stopped(process)?;
        }
    }
    let (status, summary) = (scan.status, scan.summary);
    Ok((scan.out.end()?, status, summary))
}

fn named(pid: i32) -> impl Fn(Error) -> Error {
    move |err| err.at(pid.to_string())
}

/// Our limit of open files is as high as it can be.
fn raise_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// So many processes stay ready to be looked at, which takes four descriptors of each; the others
/// are only held.
fn ready() -> Result<usize> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.0 as usize / 16)
}

/// Who makes images of processes.
const TOOL: &str = "fdscan";

/// Takes hold of all processes, parents before children, and stops them if that is asked.
fn gather(
    pids: &[i32],
    options: &ScanOptions,
    frozen: &mut Frozen,
    progress: &mut Progress,
) -> Result<Vec<Process>> {
    if options.tree || pids.len() > 1 {
        // Each takes a few descriptors.
        raise_limit()?;
    }
    let ready = ready()?;
    let cache = Arc::default();
    let mut processes: Vec<Process> = Vec::new();
    let mut known: std::collections::HashSet<i32> = pids.iter().copied().collect();
    let mut queue: std::collections::VecDeque<(i32, bool)> = Default::default();
    for (at, &pid) in pids.iter().enumerate() {
        if !pids[..at].contains(&pid) {
            queue.push_back((pid, true));
        }
    }
    while let Some((pid, asked)) = queue.pop_front() {
        let mut process = match Process::open_with(pid, &cache) {
            // A child that has ended meanwhile is no longer of the tree.
            Err(err) if !asked && err.status() == Status::Gone => continue,
            other => other.map_err(named(pid))?,
        };
        if options.freezes() {
            frozen.add(&process).map_err(named(pid))?;
        }
        if options.tree {
            for child in process.children().map_err(named(pid))? {
                if known.insert(child) {
                    queue.push_back((child, false));
                }
            }
        }
        if processes.len() >= ready {
            process.release();
        }
        processes.push(process);
        progress.add(1);
    }
    Ok(processes)
}

/// The head of an image that this tool begins now, without contents.
pub fn head(tool: &str) -> Head {
    let text = |path| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    // reproducible-builds.org: the time of an image can be given from outside.
    let given = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse().ok());
    let now = match given {
        Some(seconds) => Duration::from_secs(seconds),
        None => SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(),
    };
    Head {
        version: VERSION,
        minor: 0,
        tool: tool.into(),
        release: env!("CARGO_PKG_VERSION").into(),
        kernel: Bytes(text("/proc/sys/kernel/osrelease").into_bytes()),
        boot: boot_id(),
        time: (now.as_secs(), now.subsec_nanos()),
        contents: false,
        frozen: false,
        passive: false,
    }
}

struct Scan<'a, W: Write> {
    options: &'a ScanOptions,
    say: &'a mut dyn FnMut(String),
    status: Status,
    progress: Progress,
    out: Writer<W>,
    /// Files by what /proc tells of them; those of one key are ordered by kcmp(2).
    seen: HashMap<u64, Vec<KnownFile>>,
    objects: HashMap<(u32, u32, u64), u32>,
    /// Locks that are in the image already: the table if it is a table's, link and mount.
    locks: HashSet<(Option<u32>, Bytes, i32, Lock)>,
    holders: Vec<ContentsSource>,
    /// Of what waits in queues, one of each description that no table has.
    copies: Vec<OwnedFd>,
    files: u32,
    summary: Summary,
}

impl<W: Write> Scan<'_, W> {
    fn trouble(&mut self, status: Status, line: String) {
        self.status = self.status.max(status);
        (self.say)(line);
    }

    /// Writes all tasks, then the descriptors of each table once.
    fn tables(&mut self, processes: &mut [Process]) -> Result<()> {
        // The first process of each table, and all its pids.
        let mut tables: Vec<(usize, Vec<i32>)> = Vec::new();
        let mut before: Vec<(ProcessIdentity, Vec<RawFd>)> = Vec::new();
        // Only tables of as many numbers can be one; the first tables of each, as kcmp(2) orders them.
        let mut alike: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        self.progress.turn(Unit::Of("tasks"), Some(processes.len() as u64));
        let ready = ready()?;
        for at in 0..processes.len() {
            let process = &processes[at];
            let pid = process.pid;
            let identity = process.identity().map_err(named(pid))?;
            let numbers = process.numbers().map_err(named(pid))?;
            let candidates = alike.entry(numbers.len()).or_default();
            // One that kcmp(2) may not look at is shared with nobody, as far as we can know.
            let known = !self.options.passive && sys::compare_tables(pid, pid).is_ok();
            let place = match known {
                true => candidates.binary_search_by(|&table| {
                    let first = processes[tables[table].0].pid;
                    sys::compare_tables(first, pid).unwrap_or(Ordering::Less)
                }),
                false => Err(candidates.len()),
            };
            let table = match place {
                Ok(place) => candidates[place],
                Err(place) => {
                    if known {
                        candidates.insert(place, tables.len());
                    }
                    tables.push((at, Vec::new()));
                    tables.len() - 1
                }
            };
            tables[table].1.push(pid);
            let highest = numbers.last().copied();
            let task = process.task(table as u32, highest).map_err(named(pid))?;
            self.summary.tasks += 1;
            self.out.put(&Item::Task(task.into()))?;
            before.push((identity, numbers));
            if at >= ready {
                processes[at].release();
            }
            self.progress.add(1);
        }
        let all = tables.iter().map(|(at, _)| before[*at].1.len() as u64).sum();
        self.progress.turn(Unit::Of("descriptors"), Some(all));
        for (table, (at, pids)) in tables.iter().enumerate() {
            let process = &processes[*at];
            let (identity, numbers) = &before[*at];
            self.table(table as u32, *at, process, pids, numbers)?;
            self.look_again(process, identity, numbers);
            processes[*at].release();
        }
        Ok(())
    }

    /// Says if a table, or the program that has it, is not what it was.
    fn look_again(&mut self, process: &Process, identity: &ProcessIdentity, numbers: &[RawFd]) {
        let pid = process.pid;
        let line = match (process.identity(), process.numbers()) {
            (Ok(now), Ok(_)) if now != *identity => {
                "it became another program during the scan".to_owned()
            }
            (Ok(_), Ok(now)) if now != numbers => {
                let only = |a: &[RawFd], b: &[RawFd]| {
                    a.iter().filter(|fd| b.binary_search(fd).is_err()).count()
                };
                let (new, old) = (only(&now, numbers), only(numbers, &now));
                format!(
                    "it opened {new} and closed {old} descriptors during the scan; --freeze stops it"
                )
            }
            (Ok(_), Ok(_)) => return,
            _ => "it ended during the scan".to_owned(),
        };
        self.trouble(Status::Gone, format!("{pid}: {line}"));
    }

    fn table(
        &mut self,
        table: u32,
        at: usize,
        process: &Process,
        pids: &[i32],
        numbers: &[RawFd],
    ) -> Result<()> {
        let filters = &self.options.filters;
        let wanted = |fd: &RawFd| filters.iter().all(|filter| filter.may_pass(*fd as u32));
        let all = numbers.len();
        let numbers: Vec<RawFd> = numbers.iter().copied().filter(wanted).collect();
        self.progress.add((all - numbers.len()) as u64);
        let mut fetch = !self.options.passive;
        let refused = |&first| sys::pidfd_getfd(process.pidfd(), first).err() == Some(Errno::EPERM);
        if fetch && numbers.first().is_some_and(refused) {
            fetch = false;
            let why = attach_refusal();
            let lost = "sharing, owners and sizes are not in the image";
            self.trouble(Status::No, format!("{}: {lost}: {why}", process.pid));
        }
        look(process, &numbers, fetch, &mut |looked| {
            // What the clock takes is nothing beside a look.
            self.progress.add(1);
            match looked {
                Ok(taken) => self.write(table, at, process, pids, taken, fetch),
                // A number closed since it was listed is a change, which is told below.
                Err((_, err)) if matches!(err.errno(), Some(Errno::ENOENT | Errno::EBADF)) => {
                    Ok(())
                }
                Err((fd, err)) => {
                    self.trouble(Status::No, format!("{}: fd {fd}: {err}", process.pid));
                    self.write(table, at, process, pids, Captured::unreadable(fd, &err), false)
                }
            }
        })
    }

    /// Writes a slot, and its file if that is not in the image yet.
    fn write(
        &mut self,
        table: u32,
        process: usize,
        holder: &Process,
        pids: &[i32],
        taken: Captured,
        known: bool,
    ) -> Result<()> {
        let Captured { fd, ref link, ref info, kind, .. } = taken;
        let subject = Subject { fd: fd as u32, pids, kind: kind.name, link: &link.0 };
        if !self.options.filters.iter().all(|filter| filter.passes(&subject)) {
            return Ok(());
        }
        let locks = self.locks(table, link, info, known);
        let cloexec = info.flags & CLOEXEC != 0;
        let (id, new) = self.identify(&taken, holder.pid, fd, known);
        if new {
            self.file(id, taken, &locks, CopySource::Number(process, fd))?;
        }
        self.summary.slots += 1;
        self.out.put(&Item::Slot(Slot {
            table,
            fd: fd as u32,
            cloexec,
            file: id,
            locks: locks.into_iter().filter(|lock| lock.class == "POSIX").collect(),
        }))
    }

    /// The locks of a number that are not in the image yet.
    fn locks(&mut self, table: u32, link: &Bytes, info: &FdInfo, known: bool) -> Vec<Lock> {
        let mut locks = info.locks();
        locks.retain(|lock| {
            let owner = (lock.class == "POSIX").then_some(table);
            // Every dup shows what belongs to the table. What belongs to a description stands with
            // that; where dups look like descriptions of their own, an exclusive lock is of one.
            let once = owner.is_some() || !known && lock.write;
            !once || self.locks.insert((owner, link.clone(), info.mnt, lock.clone()))
        });
        locks
    }

    /// Writes a file that is not in the image yet.
    fn file(&mut self, id: u32, taken: Captured, locks: &[Lock], source: CopySource) -> Result<()> {
        let object = match (&taken.inode, taken.object) {
            (Some(inode), Some(key)) => {
                let next = self.objects.len() as u32;
                let object = *self.objects.entry(key).or_insert(next);
                if object == next && self.options.data.is_some() {
                    let (kind, inode, link) = (taken.kind, inode.clone(), taken.link.clone());
                    // fdinfo counts them, since Linux 5.13.
                    let carries =
                        kind.carries_descriptors && taken.info.get("scm_fds") != Some("0");
                    let read = None;
                    let holder =
                        ContentsSource { object, source, kind, inode, key, link, carries, read };
                    self.holders.push(holder);
                }
                Some(object)
            }
            _ => None,
        };
        self.summary.files += 1;
        self.summary.opaque += u64::from(taken.is_opaque());
        let locks = locks.iter().filter(|lock| lock.class != "POSIX").cloned().collect();
        let file = OpenFile { object, locks, ..taken.into_file(id) };
        self.out.put(&Item::File(file.into()))
    }

    /// The id of the description behind a number, and whether it is new.
    ///
    /// Only descriptions that /proc cannot tell apart are compared, and since kcmp(2) orders them
    /// a search among n takes log n comparisons. Positions are no part of the key: they move.
    fn identify(&mut self, taken: &Captured, pid: i32, fd: RawFd, known: bool) -> (u32, bool) {
        let next = self.files;
        if !known {
            self.files += 1;
            return (next, true);
        }
        let mut hasher = DefaultHasher::new();
        let Captured { link, info, .. } = taken;
        // Two eventfds have one inode; only this number is their own.
        (link, info.ino, info.mnt, taken.flags(), info.get("eventfd-id")).hash(&mut hasher);
        let seen = self.seen.entry(hasher.finish()).or_default();
        let place = seen.binary_search_by(|other| {
            // A process that ends meanwhile cannot be compared; what it had is then its own.
            sys::compare_files((other.pid, other.fd), (pid, fd)).unwrap_or(Ordering::Less)
        });
        match place {
            Ok(at) => (seen[at].file, false),
            Err(at) => {
                seen.insert(at, KnownFile { file: next, pid, fd });
                self.files += 1;
                (next, true)
            }
        }
    }
}
