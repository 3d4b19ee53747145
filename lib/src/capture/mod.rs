//! A scan: the descriptor tables of processes become an image.

mod contents;
mod descriptors;
pub mod freeze;
mod gather;
mod identity;
mod interrupted;
mod options;
mod preview;
mod tables;
mod threads;
mod tracer;

pub use options::ScanOptions;

use crate::capture::contents::ContentsSource;
use crate::capture::freeze::{Frozen, STOP_LIMIT, leave_stopped};
use crate::capture::identity::{Descriptions, TaskFd};
use crate::capture::preview::Preview;
use crate::capture::tables::{Snapshot, Tables};
use crate::cli::progress::{Progress, Unit};
use crate::error::{At, Error, Result, Status};
use crate::image::{Bytes, Head, Item, Lock, MINOR, Missing, Summary, VERSION, Writer};
use crate::messages::Messages;
use crate::proc::{FoundPaths, Process};
use crate::sys;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::gethostname;
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Writes an image of processes to `out`. Says a line for each thing that could not be taken.
///
/// Gives `out` back, with the status and the counts of records. The status is 1 if some descriptors or
/// some of several processes could not be taken, and 5 if a process changed during the scan. An image of
/// stopped processes is written when they run again, since one of them may have to read it, or to serve
/// the file system that it is written to.
///
/// Fails, with nothing written, if a task does not stop, and if none of the processes is left: with
/// status 4 if one may not be looked at, and else as the last of them did.
pub fn capture<W: Write>(
    pids: &[i32],
    options: &ScanOptions,
    mut out: W,
    messages: &mut Messages<'_>,
) -> Result<(W, Status, Summary)> {
    let mut frozen = Frozen::new(options.timeout.unwrap_or(STOP_LIMIT));
    if !options.freezes() {
        return scan(pids, options, &mut frozen, out, messages);
    }
    let memory = memfd::MemfdOptions::default().create("image");
    let memory = memory.at(|| "keep the image in memory")?;
    // One of the stopped processes may read stderr.
    let mut kept = Messages::kept();
    let scanned = scan(pids, options, &mut frozen, memory.into_file(), &mut kept);
    drop(frozen);
    messages.extend(kept.take());
    let (memory, status, summary) = scanned?;
    (&memory).rewind()?;
    std::io::copy(&mut &memory, &mut out)?;
    out.flush()?;
    Ok((out, status, summary))
}

/// Stops the processes if that is asked, and writes their image.
fn scan<W: Write>(
    pids: &[i32],
    options: &ScanOptions,
    frozen: &mut Frozen,
    out: W,
    messages: &mut Messages<'_>,
) -> Result<(W, Status, Summary)> {
    let mut scan = Scan::new(options, messages, frozen, out);
    if options.freezes() {
        scan.preview = Preview::new(pids, options, scan.found_paths.clone());
        scan.found_paths.end_searches();
    }
    let processes = scan.gather(pids)?;
    if let Some(line) = scan.frozen.unkept() {
        let line = line.to_owned();
        scan.report(Status::Done, line);
    }
    scan.preview.end_watch();
    let processes = scan.tables(processes)?;
    scan.write_missing()?;
    scan.contents(&processes)?;
    scan.report_compare_failure();
    if let Err(err) = scan.frozen.check() {
        scan.report(err.status(), err.to_string());
    }
    if options.stop {
        for process in &processes {
            leave_stopped(process.pid)?;
        }
    }
    let (status, summary) = (scan.status, scan.summary);
    Ok((scan.out.end()?, status, summary))
}

/// Raises the soft RLIMIT_NOFILE of this process to the hard limit.
fn raise_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// The count of processes of which more than a pidfd stays open, which is four descriptors of each.
fn open_processes() -> Result<usize> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.0 as usize / 16)
}

/// The tool that makes images of processes.
const TOOL: &str = "fdscan";

/// The head of an image that this tool begins now, without contents. Says what could not be read, and
/// is then empty.
pub fn head(tool: &str, messages: &mut Messages<'_>) -> Head {
    let mut text = |path: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_else(|err| {
            messages.push(format!("{path}: {}", Error::from(err)));
            String::new()
        });
        text.trim().to_owned()
    };
    let (kernel, boot) =
        (text("/proc/sys/kernel/osrelease"), text("/proc/sys/kernel/random/boot_id"));
    let host = gethostname().map_err(|errno| messages.push(format!("host name: {}", errno.desc())));
    // reproducible-builds.org: the time of an image can be given from outside.
    let given = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse().ok());
    let now = match given {
        Some(seconds) => Duration::from_secs(seconds),
        None => SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(),
    };
    Head {
        version: VERSION,
        minor: MINOR,
        tool: tool.into(),
        release: env!("CARGO_PKG_VERSION").into(),
        kernel: Bytes(kernel.into_bytes()),
        boot,
        host: host.ok().map(|host| Bytes(host.into_vec())),
        time: (now.as_secs(), now.subsec_nanos()),
        contents: false,
        frozen: false,
        passive: false,
    }
}

/// Orders two open file descriptions: kcmp(2).
type CompareFiles = fn(TaskFd, TaskFd) -> nix::Result<Ordering>;

/// The state of a scan.
struct Scan<'a, 'm, W: Write> {
    options: &'a ScanOptions,
    /// The link of the pipe that the image is written to. Of the descendants, those that read it are
    /// left out, with theirs.
    output_pipe: Option<Vec<u8>>,
    messages: &'a mut Messages<'m>,
    /// The processes that are stopped.
    frozen: &'a mut Frozen,
    /// A process that may have to answer before another can open a file: fanotify(7).
    answers_opens: Option<i32>,
    status: Status,
    progress: Progress,
    out: Writer<W>,
    descriptions: Descriptions<CompareFiles>,
    /// Ids of objects by [`crate::kind::Kind::object`].
    objects: HashMap<(u32, u32, u64), u32>,
    /// Locks that are in the image already: the table if it is a table's, link and mount.
    locks: HashSet<(Option<u32>, Bytes, i32, Lock)>,
    /// Objects whose contents are wanted.
    sources: Vec<ContentsSource>,
    /// A copy of each description that waits in a queue and that no table has.
    copies: Vec<OwnedFd>,
    /// The paths that were searched for.
    found_paths: Arc<FoundPaths>,
    /// What was found out before the processes were stopped.
    preview: Preview,
    /// The processes that are not in the image, or not whole, and why.
    missing: Vec<(Missing, Error)>,
    /// More than one process is scanned.
    several: bool,
    summary: Summary,
}

impl<'a, 'm, W: Write> Scan<'a, 'm, W> {
    /// The state before anything is read or written.
    fn new(
        options: &'a ScanOptions,
        messages: &'a mut Messages<'m>,
        frozen: &'a mut Frozen,
        out: W,
    ) -> Scan<'a, 'm, W> {
        Scan {
            options,
            output_pipe: options.output_pipe(),
            messages,
            frozen,
            answers_opens: None,
            status: Status::Done,
            progress: Progress::new(TOOL, Unit::Of("processes"), None),
            out: Writer::new(out),
            descriptions: Descriptions::new(sys::compare_files),
            objects: HashMap::new(),
            locks: HashSet::new(),
            sources: Vec::new(),
            copies: Vec::new(),
            found_paths: Arc::default(),
            preview: Preview::default(),
            missing: Vec::new(),
            several: false,
            summary: Summary::default(),
        }
    }

    /// Says what could not be taken. The scan ends with this status or a worse one.
    fn report(&mut self, status: Status, line: String) {
        self.status = self.status.max(status);
        self.messages.push(line);
    }

    /// Says that what is shared is not known, if a comparison failed. A passive scan makes none.
    fn report_compare_failure(&mut self) {
        let Some(errno) = self.descriptions.failure.errno().filter(|_| !self.options.passive)
        else {
            return;
        };
        let why = match errno {
            Errno::EPERM => "a security module or seccomp filter forbids it",
            Errno::ENOSYS => "it takes a kernel with CONFIG_KCMP",
            other => other.desc(),
        };
        let lost = "what descriptors and processes share may be missing in the image";
        self.report(Status::No, format!("kcmp: {why}: {lost}"));
    }

    /// Writes the head and all tasks, then the descriptors of each table once. Gives those processes
    /// that have not ended before. Fails if none is left.
    fn tables(&mut self, processes: Vec<Process>) -> Result<Vec<Process>> {
        let mut tables = Tables::default();
        let mut before: Vec<Snapshot> = Vec::new();
        self.progress.turn(Unit::Of("tasks"), Some(processes.len() as u64));
        let most_open = open_processes()?;
        let mut kept: Vec<Process> = Vec::with_capacity(processes.len());
        let mut names: Vec<Bytes> = Vec::with_capacity(processes.len());
        for mut process in processes {
            let (pid, at) = (process.pid, kept.len());
            self.frozen.go_on();
            let mut unread = Messages::kept();
            let read = Snapshot::take(&process).and_then(|snapshot| {
                let highest = snapshot.numbers.last().copied();
                Ok((snapshot, process.task(0, highest, &mut unread)?))
            });
            let (snapshot, mut task) = match read {
                Ok(read) => read,
                Err(err) => {
                    self.lacks(pid, None, false, err);
                    continue;
                }
            };
            for line in unread.take() {
                self.report(Status::No, format!("{pid}: {line}"));
            }
            let (compare, failure) = (self.compare_tables(), &self.descriptions.failure);
            let table =
                tables.add(at, (pid, process.thread), snapshot.numbers.len(), |one, other| {
                    compare(one, other).inspect_err(|errno| failure.note(*errno))
                });
            before.push(snapshot);
            // A shared table may have changed since its first task was looked at. The image has one
            // state of it.
            let highest = before[tables.first(table)].numbers.last();
            (task.table.id, task.table.highest) = (table as u32, highest.map(|fd| *fd as u32));
            if at == 0 {
                let head = head(TOOL, &mut unread);
                for line in unread.take() {
                    self.report(Status::No, line);
                }
                self.out.put(&Item::Head(Head {
                    contents: self.options.data.is_some(),
                    frozen: self.options.freezes(),
                    passive: self.options.passive,
                    ..head
                }))?;
            }
            self.summary.tasks += 1;
            names.push(task.comm.clone());
            self.out.put(&Item::Task(task.into()))?;
            if at >= most_open {
                process.release();
            }
            kept.push(process);
            self.progress.add(1);
        }
        if kept.is_empty() {
            return Err(self.nothing_left());
        }
        let tables = tables.into_vec();
        let all = tables.iter().map(|table| before[table.first].numbers.len() as u64).sum();
        self.progress.turn(Unit::Of("descriptors"), Some(all));
        for (id, table) in tables.iter().enumerate() {
            let (process, before) = (&kept[table.first], &before[table.first]);
            let traces = self.table(id as u32, table, process, &before.numbers)?;
            // A stopped process changes nothing.
            let others =
                if self.options.freezes() { 0 } else { threads::look_again(process, &traces) };
            match before.change(Snapshot::take(process), others) {
                None => (),
                Some(change) if change.ended => {
                    let comm = Some(names[table.first].clone());
                    self.lacks(process.pid, comm, true, Error::new(Status::Gone, change.what));
                }
                Some(change) => {
                    self.report(Status::Gone, format!("{}: {}", process.pid, change.what));
                }
            }
            kept[table.first].release();
        }
        Ok(kept)
    }

    /// Orders the tables of two processes: kcmp(2), which a passive scan does not call.
    fn compare_tables(&self) -> fn(i32, i32) -> nix::Result<Ordering> {
        match self.options.passive {
            true => |_, _| Err(Errno::ENOSYS),
            false => sys::compare_tables,
        }
    }
}

#[cfg(test)]
mod tests;
