//! Writes the descriptors of a table, and the files that they name.

use super::Scan;
use super::contents::{ContentsSource, CopySource};
use super::identity;
use super::preview::served_numbers;
use super::tables::ScannedTable;
use super::threads::{Looked, Trace, look};
use crate::error::{Result, Status};
use crate::filter::Subject;
use crate::image::{Bytes, Item, Lock, OpenFile, Slot};
use crate::kind::{Captured, KindOps};
use crate::proc::{CLOEXEC, FdInfo, Process, attach_refusal};
use crate::sys;
use nix::errno::Errno;
use std::io::Write;
use std::os::fd::RawFd;

impl<W: Write> Scan<'_, '_, W> {
    /// Writes the descriptors of a table that pass the filters. `process` is the first that has it.
    /// Gives what tells later whether their numbers name other files.
    pub(super) fn table(
        &mut self,
        id: u32,
        table: &ScannedTable,
        process: &Process,
        numbers: &[RawFd],
    ) -> Result<Vec<Trace>> {
        let filters = &self.options.filter;
        let wanted = |fd: &RawFd| filters.iter().all(|filter| filter.may_pass(*fd as u32));
        let all = numbers.len();
        let numbers: Vec<RawFd> = numbers.iter().copied().filter(wanted).collect();
        self.progress.add((all - numbers.len()) as u64);
        let mut fetch = !self.options.passive;
        if fetch && !process.can_copy {
            fetch = false;
            let why =
                "it is looked at through a thread, whose descriptors can be copied since Linux 6.9";
            let lost = "sharing, owners and sizes are not in the image";
            self.report(Status::No, format!("{}: {lost}: {why}", process.pid));
        }
        let served = match self.options.freezes() {
            true => served_numbers(process, &numbers),
            false => Vec::new(),
        };
        let is_served = |fd: &RawFd| served.binary_search(fd).is_ok();
        let refused = |&first| sys::pidfd_getfd(process.pidfd(), first).err() == Some(Errno::EPERM);
        if fetch && numbers.iter().find(|fd| !is_served(fd)).is_some_and(refused) {
            fetch = false;
            let why = attach_refusal();
            let lost = "sharing, owners and sizes are not in the image";
            self.report(Status::No, format!("{}: {lost}: {why}", process.pid));
        }
        let mut traces = Vec::with_capacity(numbers.len());
        let mut each = |looked: Looked| {
            // A call for the time is little beside a look.
            self.progress.add(1);
            self.frozen.go_on();
            match looked {
                Ok(captured) => {
                    let Captured { fd, info, link, .. } = &captured;
                    traces.push(Trace::new(*fd, info, &link.0));
                    if !is_served(fd) {
                        return self.slot(id, table, process, captured, fetch);
                    }
                    let before = self.preview.take_served(process.pid, &captured);
                    let fetched = fetch && before.is_some();
                    if fetch && !fetched {
                        let why = "a process that is stopped may have to answer for it: only the text \
                                   of /proc is read";
                        self.report(Status::No, format!("{}: fd {fd}: {why}", process.pid));
                    }
                    let captured = before.unwrap_or(captured);
                    self.slot(id, table, process, captured, fetched)
                }
                // A number closed since it was listed is a change, which is told at the end.
                Err((_, err))
                    if matches!(err.errno(), Some(Errno::ENOENT | Errno::EBADF | Errno::ESRCH)) =>
                {
                    Ok(())
                }
                Err((fd, err)) => {
                    self.report(Status::No, format!("{}: fd {fd}: {err}", process.pid));
                    self.slot(id, table, process, Captured::unreadable(fd, &err), false)
                }
            }
        };
        for run in numbers.chunk_by(|a, b| is_served(a) == is_served(b)) {
            look(process, run, fetch && !run.first().is_some_and(is_served), &mut each)?;
        }
        Ok(traces)
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
        let Captured { fd, ref link, ref info, kind, failed_kind, .. } = captured;
        let passes = |kind: &KindOps| {
            let (fd, pids, link) = (fd as u32, &table.pids, &link.0);
            let subject = Subject { fd, pids, kind: kind.name, link };
            self.options.filter.iter().all(|filter| filter.passes(&subject))
        };
        if !passes(kind) && !failed_kind.is_some_and(passes) {
            return Ok(());
        }
        for warning in &captured.warnings {
            self.report(Status::No, format!("{}: fd {fd}: {warning}", process.pid));
        }
        if (kind.answers_opens)(info) {
            self.answers_opens = Some(process.pid);
        }
        let locks = self.locks(id, link, info, fetched);
        let cloexec = info.flags & CLOEXEC != 0;
        let (file, new) = match fetched {
            true => self.descriptions.identify(&identity::facts(&captured), (process.thread, fd)),
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
    pub(super) fn file(
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
                        mount: captured.info.mnt,
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
