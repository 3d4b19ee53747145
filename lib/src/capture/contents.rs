//! Reads the contents of objects.

use super::{Scan, ScanOptions, raise_limit};
use crate::cli::progress::Unit;
use crate::error::{Error, Result, Status};
use crate::image::{Bytes, Data, Inode, Item};
use crate::kind::{Captured, ContentsContext, KindOps, Piece};
use crate::proc::{Descriptor, Process};
use crate::sys;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

/// How something can be had once more.
pub(super) enum CopySource {
    /// A process, and its number there.
    Number(usize, RawFd),
    /// It waits in a queue of a process, and this one of our copies is of it.
    Queued(usize, usize),
}

impl CopySource {
    /// The process that has it.
    fn process(&self) -> usize {
        match self {
            CopySource::Number(process, _) | CopySource::Queued(process, _) => *process,
        }
    }
}

/// An object whose contents are wanted, and who holds it.
pub(super) struct ContentsSource {
    pub(super) object: u32,
    pub(super) source: CopySource,
    pub(super) kind: &'static KindOps,
    pub(super) inode: Inode,
    /// What [`kind::Kind::object`] says of it.
    pub(super) key: (u32, u32, u64),
    pub(super) link: Bytes,
    /// Whether descriptors wait among them.
    pub(super) carries: bool,
    /// What was read already.
    pub(super) read: Option<Vec<Data>>,
}

impl<W: Write> Scan<'_, W> {
    /// Reads the queues in which descriptors wait, and writes the files that those name and no table
    /// has; of what is found so the queues too.
    pub(super) fn queues(&mut self, processes: &[Process]) -> Result<()> {
        if self.holders.iter().any(|holder| holder.carries) {
            // Each that waits is open here until it is known.
            raise_limit()?;
        }
        let mut at = 0;
        while at < self.holders.len() {
            if self.holders[at].carries {
                self.queue(at, processes)?;
            }
            at += 1;
        }
        Ok(())
    }

    fn queue(&mut self, at: usize, processes: &[Process]) -> Result<()> {
        let Some(limit) = self.options.data else { return Ok(()) };
        let mut found: Vec<(Data, Vec<OwnedFd>)> = Vec::new();
        let object = self.holders[at].object;
        let mut put = |piece: Piece<'_>| {
            let Piece { offset, bytes, with, fds } = piece;
            let (bytes, with) = (Bytes(bytes.to_vec()), with.map(Box::new));
            found.push((Data { object, offset, with, bytes }, fds));
            Ok(())
        };
        let holder = &self.holders[at];
        if let Err(err) = holder.read(processes, &self.copies, self.options, limit, &mut put) {
            self.trouble(Status::No, err.to_string());
        }
        let process = self.holders[at].source.process();
        let mut read = Vec::with_capacity(found.len());
        for (mut data, fds) in found {
            let files = fds.into_iter().map(|copy| self.queued(process, &processes[process], copy));
            let files = files.collect::<Result<Vec<u32>>>()?;
            if !files.is_empty() {
                data.with.get_or_insert_default().files = files;
            }
            read.push(data);
        }
        self.holders[at].read = Some(read);
        Ok(())
    }

    /// The file of a descriptor that waits in a queue, which is written if it is not known yet.
    fn queued(&mut self, process: usize, holder: &Process, copy: OwnedFd) -> Result<u32> {
        let ours = std::process::id() as i32;
        let again = copy.try_clone()?;
        let taken = Descriptor::queued(holder, copy).and_then(Captured::capture_or_opaque);
        let taken = taken.unwrap_or_else(|err| {
            let line = format!("{}: a queued descriptor: {err}", holder.pid);
            self.trouble(Status::No, line);
            Captured::unreadable(again.as_raw_fd(), &err)
        });
        let (id, new) = self.identify(&taken, ours, again.as_raw_fd(), true);
        if new {
            self.copies.push(again);
            let locks = taken.info.locks();
            self.file(id, taken, &locks, CopySource::Queued(process, self.copies.len() - 1))?;
        }
        Ok(id)
    }

    /// Writes the contents of all objects, after all files and slots.
    pub(super) fn contents(&mut self, processes: &[Process]) -> Result<()> {
        let Some(limit) = self.options.data else { return Ok(()) };
        self.progress.turn(Unit::Bytes, None);
        for at in 0..self.holders.len() {
            let object = self.holders[at].object;
            if let Some(read) = self.holders[at].read.take() {
                for data in read {
                    let count = data.bytes.0.len() as u64;
                    self.summary.contents += count;
                    self.progress.add(count);
                    self.out.put(&Item::Data(data))?;
                }
                continue;
            }
            let mut failed = None;
            let (out, summary) = (&mut self.out, &mut self.summary);
            let progress = &mut self.progress;
            let mut put = |piece: Piece<'_>| {
                let Piece { offset, bytes, with, fds } = piece;
                if !fds.is_empty() {
                    let why = "descriptors were queued in it during the scan; --freeze stops it";
                    return Err(Error::new(Status::Gone, why));
                }
                summary.contents += bytes.len() as u64;
                progress.add(bytes.len() as u64);
                let bytes = Bytes(bytes.to_vec());
                let data = Data { object, offset, with: with.map(Box::new), bytes };
                out.put(&Item::Data(data)).inspect_err(|err| failed = Some(err.clone()))
            };
            let read =
                self.holders[at].read(processes, &self.copies, self.options, limit, &mut put);
            if let Some(err) = failed {
                return Err(err);
            }
            if let Err(err) = read {
                self.trouble(Status::No, err.to_string());
            }
        }
        Ok(())
    }
}

impl ContentsSource {
    /// Hands on its contents.
    fn read(
        &self,
        processes: &[Process],
        copies: &[OwnedFd],
        options: &ScanOptions,
        limit: u64,
        to: &mut dyn FnMut(Piece<'_>) -> Result<()>,
    ) -> Result<()> {
        let process = &processes[self.source.process()];
        let (copy, what) = match self.source {
            CopySource::Number(_, fd) => {
                (sys::pidfd_getfd(process.pidfd(), fd).map_err(Error::from), format!("fd {fd}"))
            }
            CopySource::Queued(_, copy) => {
                (copies[copy].try_clone().map_err(Error::from), "a queued descriptor".to_owned())
            }
        };
        let read = copy.and_then(|copy| {
            let found = crate::proc::inode_of(copy.as_fd())?;
            if (found.dev, found.ino) != (self.inode.dev, self.inode.ino) {
                return Err(Error::new(Status::Gone, "the number names another file by now"));
            }
            let captured: Vec<i32> = processes.iter().map(|process| process.pid).collect();
            let (link, frozen) = (self.link.0.as_slice(), options.freezes());
            let (inode, object) = (&found, self.key);
            let cx = ContentsContext { inode, object, link, captured: &captured, frozen };
            (self.kind.contents)(copy.as_fd(), &cx, limit, to)
        });
        read.map_err(|err| err.at("its contents").at(what).at(process.pid.to_string()))
    }
}
