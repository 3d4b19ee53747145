//! Reads the contents of objects, with the descriptors that wait in queues.

use super::{Scan, identity, raise_limit};
use crate::cli::progress::Unit;
use crate::error::{Error, Result, Status};
use crate::image::{Bytes, Data, Inode, Item, inode_of};
use crate::kind::{Captured, ContentsContext, KindOps, Piece, Sink, Watches};
use crate::proc::openers::Openers;
use crate::proc::{Descriptor, Process};
use crate::sys;
use nix::libc;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

/// The place from which a copy of a description is taken.
pub(super) enum CopySource {
    /// From a process, by its index, and its number there.
    Number(usize, RawFd),
    /// From [`Scan::copies`]: the index of the process in one of whose queues it waits, and its index
    /// among the copies.
    Queued(usize, usize),
}

impl CopySource {
    /// The index of the process that has it.
    fn process(&self) -> usize {
        match self {
            CopySource::Number(process, _) | CopySource::Queued(process, _) => *process,
        }
    }
}

/// An object whose contents are wanted, by one of its descriptions.
pub(super) struct ContentsSource {
    /// Its id in the image.
    pub(super) object: u32,
    /// The place from which a copy of the description is taken.
    pub(super) copy: CopySource,
    /// The kind of the description.
    pub(super) kind: &'static KindOps,
    /// The inode of the description.
    pub(super) inode: Inode,
    /// [`kind::Kind::object`](crate::kind::Kind::object)
    pub(super) key: (u32, u32, u64),
    /// What readlink(2) shows of the description.
    pub(super) link: Bytes,
    /// The id of its mount.
    pub(super) mount: i32,
    /// True if descriptors may wait in it.
    pub(super) carries: bool,
    /// Its contents, if they were read already.
    pub(super) read: Option<Vec<Data>>,
}

/// The facts that reading the contents of any object needs.
struct Reading<'a> {
    processes: &'a [Process],
    /// Asked only while the processes are stopped, if they are to be stopped at all.
    openers: Openers,
    watches: Watches,
    /// True if the processes are stopped.
    frozen: bool,
    /// [`Scan::answers_opens`], if it is stopped.
    answers_opens: Option<i32>,
    /// The most bytes of one object.
    limit: u64,
}

impl<W: Write> Scan<'_, '_, W> {
    /// Writes the contents of all objects, if they are wanted, after all files and slots. What waits
    /// in queues comes first: it may be files that no table has, and those may be queues.
    pub(super) fn contents(&mut self, processes: &[Process]) -> Result<()> {
        let Some(limit) = self.options.data else { return Ok(()) };
        let found = self.preview.openers(processes, &self.sources);
        let openers = found.unwrap_or_else(|| self.openers(processes));
        let frozen = self.options.freezes();
        let answers_opens = self.answers_opens.filter(|_| frozen);
        let watches = Watches::default();
        let mut reading = Reading { processes, openers, watches, frozen, answers_opens, limit };
        let known = self.sources.len();
        self.read_queues(&reading)?;
        if self.sources.len() > known {
            // Descriptors of ours are all that some of those are open by.
            reading.openers = self.openers(processes);
        }
        self.write_contents(&reading)
    }

    /// The openers of the objects that are known by now.
    fn openers(&self, processes: &[Process]) -> Openers {
        let pids = processes.iter().map(|process| process.pid);
        Openers::new(pids, self.sources.iter().map(|it| (&it.inode, it.link.0.as_slice())))
    }

    /// Reads the queues in which descriptors wait, and writes the files that no table has.
    fn read_queues(&mut self, reading: &Reading<'_>) -> Result<()> {
        if self.sources.iter().any(|source| source.carries) {
            // A copy of each that waits is open here.
            raise_limit()?;
        }
        let mut at = 0;
        while at < self.sources.len() {
            if self.sources[at].carries {
                self.read_queue(at, reading)?;
            }
            at += 1;
        }
        Ok(())
    }

    fn read_queue(&mut self, at: usize, reading: &Reading<'_>) -> Result<()> {
        let mut found: Vec<(Data, Vec<OwnedFd>)> = Vec::new();
        let source = &self.sources[at];
        let (object, process) = (source.object, source.copy.process());
        let mut put = |piece: Piece<'_>| {
            let Piece { offset, bytes, with, fds } = piece;
            let (bytes, with) = (Bytes(bytes.to_vec()), with.map(Box::new));
            found.push((Data { object, offset, with, bytes }, fds));
            Ok(())
        };
        self.frozen.go_on();
        if let Err(err) = source.read(reading, &self.copies, &mut put) {
            self.report(Status::No, err.to_string());
        }
        let mut read = Vec::with_capacity(found.len());
        for (mut data, fds) in found {
            let holder = &reading.processes[process];
            let files = fds.into_iter().map(|copy| self.queued_file(process, holder, copy));
            let files = files.collect::<Result<Vec<u32>>>()?;
            if !files.is_empty() {
                data.with.get_or_insert_default().files = files;
            }
            read.push(data);
        }
        self.sources[at].read = Some(read);
        Ok(())
    }

    /// The id of the file of a descriptor that waits in a queue of a process, which has this index.
    /// The file is written if it is not in the image yet.
    fn queued_file(&mut self, index: usize, process: &Process, copy: OwnedFd) -> Result<u32> {
        let kept = copy.try_clone()?;
        let captured = Descriptor::queued(process, copy).and_then(Captured::capture_or_opaque);
        let captured = captured.unwrap_or_else(|err| {
            self.report(Status::No, format!("{}: a queued descriptor: {err}", process.pid));
            Captured::unreadable(kept.as_raw_fd(), &err)
        });
        for warning in &captured.warnings {
            self.report(Status::No, format!("{}: a queued descriptor: {warning}", process.pid));
        }
        let place = (std::process::id() as i32, kept.as_raw_fd());
        let (id, new) = self.descriptions.identify(&identity::facts(&captured), place);
        if new {
            self.copies.push(kept);
            let locks = captured.info.locks();
            self.file(id, captured, &locks, CopySource::Queued(index, self.copies.len() - 1))?;
        }
        Ok(id)
    }

    /// Writes the contents of all objects, those that were read already as they are.
    fn write_contents(&mut self, reading: &Reading<'_>) -> Result<()> {
        self.progress.turn(Unit::Bytes, None);
        for source in &mut self.sources {
            let object = source.object;
            let (out, summary, progress) = (&mut self.out, &mut self.summary, &mut self.progress);
            let mut write = |data: Data| {
                summary.contents += data.bytes.0.len() as u64;
                progress.add(data.bytes.0.len() as u64);
                out.put(&Item::Data(data))
            };
            if let Some(read) = source.read.take() {
                read.into_iter().try_for_each(write)?;
                continue;
            }
            let mut failed = None;
            let mut put = |piece: Piece<'_>| {
                let Piece { offset, bytes, with, fds } = piece;
                if !fds.is_empty() {
                    let why = "descriptors were queued in it during the scan; --freeze stops it";
                    return Err(Error::new(Status::Gone, why));
                }
                let (bytes, with) = (Bytes(bytes.to_vec()), with.map(Box::new));
                let written = write(Data { object, offset, with, bytes });
                written.inspect_err(|err| failed = Some(err.clone()))
            };
            match source.kind.takes_contents_out {
                true => self.frozen.without_limit(),
                false => self.frozen.go_on(),
            }
            let read = source.read(reading, &self.copies, &mut put);
            if source.kind.takes_contents_out {
                self.frozen.limit_again();
            }
            if let Some(err) = failed {
                return Err(err);
            }
            if let Err(err) = read {
                self.status = self.status.max(Status::No);
                self.messages.push(err.to_string());
            }
        }
        Ok(())
    }
}

impl ContentsSource {
    /// Passes its contents to `to`. Fails with status 5 if its number names another file by now, as its
    /// kind does, and as `to` does.
    fn read(&self, reading: &Reading<'_>, copies: &[OwnedFd], to: Sink<'_>) -> Result<()> {
        let process = &reading.processes[self.copy.process()];
        let is_served = || process.mounts().is_some_and(|mounts| mounts.is_served(self.mount));
        let permits = reading.answers_opens;
        let is_file = self.inode.mode & libc::S_IFMT == libc::S_IFREG;
        let (copy, what) = match self.copy {
            CopySource::Number(_, fd) if permits.is_some() && is_file => {
                let why = "is stopped, and may have to permit the read (fanotify); scan without \
                           --freeze";
                let why = format!("process {} {why}", permits.unwrap_or_default());
                (Err(Error::unrestorable(why)), format!("fd {fd}"))
            }
            CopySource::Number(_, fd) if reading.frozen && is_served() => {
                let why = "a process that is stopped may have to answer; scan without --freeze";
                (Err(Error::unrestorable(why)), format!("fd {fd}"))
            }
            CopySource::Number(_, fd) => {
                (sys::pidfd_getfd(process.pidfd(), fd).map_err(Error::from), format!("fd {fd}"))
            }
            CopySource::Queued(_, copy) => {
                (copies[copy].try_clone().map_err(Error::from), "a queued descriptor".to_owned())
            }
        };
        let read = copy.and_then(|copy| {
            let found = inode_of(copy.as_fd())?;
            if (found.dev, found.ino) != (self.inode.dev, self.inode.ino) {
                return Err(Error::new(Status::Gone, "the number names another file by now"));
            }
            let cx = ContentsContext {
                process,
                inode: &found,
                object: self.key,
                link: &self.link.0,
                openers: &reading.openers,
                watches: &reading.watches,
                frozen: reading.frozen,
            };
            (self.kind.contents)(copy.as_fd(), &cx, reading.limit, to)
        });
        read.map_err(|err| err.at("its contents").at(what).at(process.pid.to_string()))
    }
}
