//! A scan: the descriptor tables of processes become an image.

mod contents;
pub mod freeze;
mod identity;
mod tables;
mod threads;

use crate::capture::contents::{ContentsSource, CopySource};
use crate::capture::freeze::Frozen;
use crate::capture::identity::{Descriptions, TaskFd};
use crate::capture::tables::{ScannedTable, Snapshot, Tables};
use crate::capture::threads::look;
use crate::cli::progress::{Progress, Unit};
use crate::error::{Error, Result, Status};
use crate::filter::{Filter, Subject};
use crate::image::{Bytes, Head, Item, Lock, OpenFile, Slot, Summary, VERSION, Writer};
use crate::kind::Captured;
use crate::proc::{CLOEXEC, FdInfo, Process, attach_refusal, boot_id};
use crate::sys;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io::Write;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Options of a scan.
#[derive(Clone, Debug, Default)]
pub struct ScanOptions {
    /// The descendants of the processes too.
    pub tree: bool,
    /// Only descriptors that pass all of these.
    pub filters: Vec<Filter>,
    /// The most bytes of contents of one object. None: no contents.
    pub data: Option<u64>,
    /// Only the text of /proc: no descriptor is copied or opened.
    pub passive: bool,
    /// Stop the tasks during the scan.
    pub freeze: bool,
    /// Stop the tasks, and leave them stopped by SIGSTOP.
    pub stop: bool,
}

impl ScanOptions {
    /// True if the tasks are stopped during the scan.
    fn freezes(&self) -> bool {
        self.freeze || self.stop
    }
}

/// Writes an image of processes to `out`. `say` gets a line for each thing that could not be taken.
///
/// Gives `out` back, with the status (1 if some descriptors could not be taken, 5 if a process changed
/// during the scan) and the counts of records. Fails, before anything is written, if a process cannot
/// be opened or stopped.
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
        descriptions: Descriptions::new(sys::compare_files),
        objects: HashMap::new(),
        locks: HashSet::new(),
        sources: Vec::new(),
        copies: Vec::new(),
        summary: Summary::default(),
    };
    scan.out.put(&Item::Head(Head {
        contents: options.data.is_some(),
        frozen: options.freezes(),
        passive: options.passive,
        ..head(TOOL)
    }))?;
    scan.tables(&mut processes)?;
    scan.contents(&processes)?;
    if options.stop {
        for process in &processes {
            frozen.leave_stopped(process)?;
        }
    }
    let (status, summary) = (scan.status, scan.summary);
    Ok((scan.out.end()?, status, summary))
}

/// Says in an error which process it is about.
fn named(pid: i32) -> impl Fn(Error) -> Error {
    move |err| err.at(pid.to_string())
}

/// Raises our own limit of open files as far as it goes.
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

/// Opens all processes, parents before children, and stops them if that is asked.
fn gather(
    pids: &[i32],
    options: &ScanOptions,
    frozen: &mut Frozen,
    progress: &mut Progress,
) -> Result<Vec<Process>> {
    if options.tree || pids.len() > 1 {
        raise_limit()?;
    }
    let most_open = open_processes()?;
    let cache = Arc::default();
    let mut processes: Vec<Process> = Vec::new();
    let mut known: HashSet<i32> = HashSet::new();
    let mut queue: VecDeque<(i32, bool)> = VecDeque::new();
    queue.extend(pids.iter().filter(|pid| known.insert(**pid)).map(|pid| (*pid, true)));
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
            let children = process.children().map_err(named(pid))?.into_iter();
            queue.extend(children.filter(|child| known.insert(*child)).map(|child| (child, false)));
        }
        if processes.len() >= most_open {
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

/// Orders two open file descriptions: kcmp(2).
type CompareFiles = fn(TaskFd, TaskFd) -> nix::Result<Ordering>;

/// A scan that goes on.
struct Scan<'a, W: Write> {
    options: &'a ScanOptions,
    say: &'a mut dyn FnMut(String),
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
    /// Of what waits in queues, one of each description that no table has.
    copies: Vec<OwnedFd>,
    summary: Summary,
}

impl<W: Write> Scan<'_, W> {
    /// Says what could not be taken. The scan ends with this status or a worse one.
    fn report(&mut self, status: Status, line: String) {
        self.status = self.status.max(status);
        (self.say)(line);
    }

    /// Writes all tasks, then the descriptors of each table once.
    fn tables(&mut self, processes: &mut [Process]) -> Result<()> {
        let mut tables = Tables::default();
        let mut before: Vec<Snapshot> = Vec::new();
        self.progress.turn(Unit::Of("tasks"), Some(processes.len() as u64));
        let most_open = open_processes()?;
        let compare: fn(i32, i32) -> nix::Result<Ordering> = match self.options.passive {
            true => |_, _| Err(Errno::ENOSYS),
            false => sys::compare_tables,
        };
        for (at, process) in processes.iter_mut().enumerate() {
            let pid = process.pid;
            let snapshot = Snapshot::take(process).map_err(named(pid))?;
            let table = tables.add(at, pid, snapshot.numbers.len(), compare);
            let highest = snapshot.numbers.last().copied();
            let task = process.task(table as u32, highest).map_err(named(pid))?;
            self.summary.tasks += 1;
            self.out.put(&Item::Task(task.into()))?;
            before.push(snapshot);
            if at >= most_open {
                process.release();
            }
            self.progress.add(1);
        }
        let tables = tables.into_vec();
        let all = tables.iter().map(|table| before[table.first].numbers.len() as u64).sum();
        self.progress.turn(Unit::Of("descriptors"), Some(all));
        for (id, table) in tables.iter().enumerate() {
            let (process, before) = (&processes[table.first], &before[table.first]);
            self.table(id as u32, table, process, &before.numbers)?;
            if let Some(change) = before.change(Snapshot::take(process)) {
                self.report(Status::Gone, format!("{}: {change}", process.pid));
            }
            processes[table.first].release();
        }
        Ok(())
    }

    /// Writes the descriptors of a table that pass the filters. `process` is the first that has it.
    fn table(
        &mut self,
        id: u32,
        table: &ScannedTable,
        process: &Process,
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
            self.report(Status::No, format!("{}: {lost}: {why}", process.pid));
        }
        look(process, &numbers, fetch, &mut |looked| {
            // A call for the time is little beside a look.
            self.progress.add(1);
            match looked {
                Ok(captured) => self.slot(id, table, process, captured, fetch),
                // A number closed since it was listed is a change, which is told at the end.
                Err((_, err)) if matches!(err.errno(), Some(Errno::ENOENT | Errno::EBADF)) => {
                    Ok(())
                }
                Err((fd, err)) => {
                    self.report(Status::No, format!("{}: fd {fd}: {err}", process.pid));
                    self.slot(id, table, process, Captured::unreadable(fd, &err), false)
                }
            }
        })
    }

    /// Writes a slot, and its file if that is not in the image yet. `fetched` is true if there was a
    /// copy of it: then it can be compared with others.
    fn slot(
        &mut self,
        id: u32,
        table: &ScannedTable,
        process: &Process,
        captured: Captured,
        fetched: bool,
    ) -> Result<()> {
        let Captured { fd, ref link, ref info, kind, .. } = captured;
        let subject = Subject { fd: fd as u32, pids: &table.pids, kind: kind.name, link: &link.0 };
        if !self.options.filters.iter().all(|filter| filter.passes(&subject)) {
            return Ok(());
        }
        let locks = self.locks(id, link, info, fetched);
        let cloexec = info.flags & CLOEXEC != 0;
        let (file, new) = match fetched {
            true => self.descriptions.identify(&identity::facts(&captured), (process.pid, fd)),
            false => (self.descriptions.add(), true),
        };
        if new {
            self.file(file, captured, &locks, CopySource::Number(table.first, fd))?;
        }
        self.summary.slots += 1;
        self.out.put(&Item::Slot(Slot {
            table: id,
            fd: fd as u32,
            cloexec,
            file,
            locks: locks.into_iter().filter(|lock| lock.class == "POSIX").collect(),
        }))
    }

    /// The locks of a number that are not in the image yet.
    fn locks(&mut self, table: u32, link: &Bytes, info: &FdInfo, fetched: bool) -> Vec<Lock> {
        let mut locks = info.locks();
        locks.retain(|lock| {
            let owner = (lock.class == "POSIX").then_some(table);
            // Each dup shows the locks of the table. Those of a description stand with that; where
            // dups look like descriptions of their own, an exclusive lock can be of one alone.
            let once = owner.is_some() || !fetched && lock.write;
            !once || self.locks.insert((owner, link.clone(), info.mnt, lock.clone()))
        });
        locks
    }

    /// Writes a file that is not in the image yet.
    fn file(
        &mut self,
        id: u32,
        captured: Captured,
        locks: &[Lock],
        copy: CopySource,
    ) -> Result<()> {
        let object = match (&captured.inode, captured.object) {
            (Some(inode), Some(key)) => {
                let next = self.objects.len() as u32;
                let object = *self.objects.entry(key).or_insert(next);
                if object == next && self.options.data.is_some() {
                    let kind = captured.kind;
                    // fdinfo counts them, since Linux 5.13.
                    let carries =
                        kind.carries_descriptors && captured.info.get("scm_fds") != Some("0");
                    self.sources.push(ContentsSource {
                        object,
                        copy,
                        kind,
                        inode: inode.clone(),
                        key,
                        link: captured.link.clone(),
                        carries,
                        read: None,
                    });
                }
                Some(object)
            }
            _ => None,
        };
        self.summary.files += 1;
        self.summary.opaque += u64::from(captured.is_opaque());
        let locks = locks.iter().filter(|lock| lock.class != "POSIX").cloned().collect();
        let file = OpenFile { object, locks, ..captured.into_file(id) };
        self.out.put(&Item::File(file.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::Stat;
    use std::io::{BufRead, BufReader};
    use std::os::unix::fs::FileExt;
    use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

    /// A shell that does what it is told: its table changes when a test wants it to.
    struct Shell {
        child: Child,
        stdin: ChildStdin,
        stdout: BufReader<ChildStdout>,
    }

    impl Shell {
        /// One with an argument of this length, which is in the record of its task.
        fn new(argument: usize) -> Shell {
            let script = "while read -r line; do eval \"$line\"; echo; done";
            let mut child = Command::new("sh")
                .args(["-c", script, "sh", &"x".repeat(argument)])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
            Shell { child, stdin, stdout: BufReader::new(stdout) }
        }

        fn pid(&self) -> i32 {
            self.child.id() as i32
        }

        fn tell(&mut self, line: &str) {
            writeln!(self.stdin, "{line}").unwrap();
        }

        /// Waits until a line is done.
        fn run(&mut self, line: &str) {
            self.tell(line);
            self.stdout.read_line(&mut String::new()).unwrap();
        }
    }

    impl Drop for Shell {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    /// An image, and something that is done when the first of it is written.
    struct Interrupted<'a> {
        image: Vec<u8>,
        act: Option<&'a mut dyn FnMut()>,
    }

    impl Write for Interrupted<'_> {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if let Some(act) = self.act.take() {
                act();
            }
            self.image.write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Scans a shell, which `act` changes once the first 64 KiB are written: image, status, and what
    /// was said.
    fn scan(
        shell: &mut Shell,
        options: &ScanOptions,
        act: impl Fn(&mut Shell),
    ) -> (Vec<u8>, Status, Vec<String>) {
        let mut said = Vec::new();
        let pid = shell.pid();
        let mut act = || act(shell);
        let out = Interrupted { image: Vec::new(), act: Some(&mut act) };
        let mut say = |line| said.push(line);
        let (out, status, _) = capture(&[pid], options, out, &mut say).unwrap();
        assert!(out.act.is_none());
        (out.image, status, said)
    }

    /// Says that this machine allows no copies of descriptors, and gives true.
    fn skips(said: &[String]) -> bool {
        let skips = said.iter().any(|line| line.contains(attach_refusal()));
        if skips {
            eprintln!("SKIP: pidfd_getfd(2) is not permitted here");
        }
        skips
    }

    /// A scan of a shell that changes between the list of its numbers and the last look at them.
    fn changed(act: impl Fn(&mut Shell)) -> (Status, String) {
        let mut shell = Shell::new(100 << 10);
        shell.run("exec 4</dev/null");
        let (_, status, said) = scan(&mut shell, &ScanOptions::default(), act);
        (status, said.last().cloned().unwrap_or_default())
    }

    #[test]
    fn a_table_that_changes_during_the_scan_is_said() {
        let (status, said) = changed(|shell| shell.run("exec 5</dev/null 6</dev/null 4<&-"));
        assert!(said.contains("it opened 2 and closed 1 descriptors"), "{said}");
        assert_eq!(status, Status::Gone);
        let (status, said) = changed(|shell| shell.run(":"));
        assert_eq!((status, said.as_str()), (Status::Done, ""));
    }

    #[test]
    fn a_process_that_execs_or_ends_during_the_scan_is_said() {
        let until = |pid, holds: fn(&Stat) -> bool| {
            while !Stat::of(pid).is_none_or(|stat| holds(&stat)) {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let (status, said) = changed(|shell| {
            shell.tell("exec sleep 600");
            until(shell.pid(), |stat| stat.name() == b"sleep");
        });
        assert!(said.ends_with(": it became another program during the scan"), "{said}");
        assert_eq!(status, Status::Gone);
        let (status, said) = changed(|shell| {
            shell.tell("exit");
            until(shell.pid(), Stat::is_zombie);
        });
        assert!(said.ends_with(": it ended during the scan"), "{said}");
        assert_eq!(status, Status::Gone);
    }

    #[test]
    fn contents_of_a_number_that_names_another_file_by_now_are_not_taken() {
        let dir = std::env::temp_dir();
        let path = |name: &str| {
            let path = dir.join(format!("fdkit-scan-{name}-{}", std::process::id()));
            path.to_str().unwrap().to_owned()
        };
        let (large, small, other) = (path("large"), path("small"), path("other"));
        // More than is written at once, so that there is a moment between the two.
        std::fs::File::create(&large).unwrap().write_all_at(&[b'l'; 192 << 10], 0).unwrap();
        std::fs::write(&small, "the text of the small file").unwrap();
        std::fs::write(&other, "the text of the other file").unwrap();
        let mut shell = Shell::new(0);
        shell.run(&format!("exec 3<{large} 4<{small}; rm {large} {small}"));
        let options = ScanOptions { data: Some(1 << 20), ..ScanOptions::default() };
        let line = format!("exec 4<{other}");
        let (image, status, said) = scan(&mut shell, &options, |shell| shell.run(&line));
        std::fs::remove_file(&other).unwrap();
        if skips(&said) {
            return;
        }
        let has = |text: &str| image.windows(text.len()).any(|part| part == text.as_bytes());
        assert!(has(&"l".repeat(1000)) && !has("the text of"));
        let line =
            format!("{}: fd 4: its contents: the number names another file by now", shell.pid());
        // Of what the shell has inherited, more may be said.
        assert!(status == Status::No && said.contains(&line), "{said:?}");
    }
}
