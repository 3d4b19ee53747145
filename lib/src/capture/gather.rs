//! Which processes a scan takes, and which of them are missing.

use super::{Scan, open_processes, raise_limit};
use crate::error::{Error, Result, Status};
use crate::image::{Bytes, Item, Missing};
use crate::proc::{FdInfo, Process, ScanCache};
use nix::libc;
use std::collections::{HashSet, VecDeque};
use std::io::Write;
use std::sync::Arc;

impl<W: Write> Scan<'_, '_, W> {
    /// Opens all processes, parents before children, and stops them if that is asked. Those that cannot
    /// be taken are missing. Fails if none is left.
    pub(super) fn gather(&mut self, pids: &[i32]) -> Result<Vec<Process>> {
        if self.options.tree || pids.len() > 1 {
            raise_limit()?;
        }
        let most_open = open_processes()?;
        let cache = Arc::new(ScanCache::with_paths(self.found_paths.clone()));
        let mut processes: Vec<Process> = Vec::new();
        let mut known: HashSet<i32> = HashSet::new();
        let mut queue: VecDeque<(i32, bool)> = VecDeque::new();
        queue.extend(pids.iter().filter(|pid| known.insert(**pid)).map(|pid| (*pid, true)));
        while let Some((pid, asked)) = queue.pop_front() {
            if !asked && pid == std::process::id() as i32 {
                continue;
            }
            let process = match Process::open_with(pid, &cache) {
                // A thread without a table of its own means its process.
                Ok(process) if process.pid != pid && !known.insert(process.pid) => continue,
                Ok(process) => process,
                // A child that has ended meanwhile is no longer of the tree.
                Err(err) if !asked && err.status() == Status::Gone => continue,
                Err(err) => {
                    self.lacks(pid, None, false, err);
                    continue;
                }
            };
            if !asked && self.reads_output(&process) {
                continue;
            }
            if self.options.freezes() {
                match self.frozen.add(&process) {
                    // One that did not stop in time ends the scan; one that has ended does not.
                    Err(err)
                        if err.status() == Status::Denied
                            || process.identity().map_or(true, |now| now.has_ended()) =>
                    {
                        self.lacks(pid, None, false, err);
                        continue;
                    }
                    other => other.map_err(|err| err.at(pid.to_string()))?,
                }
            }
            if self.options.tree {
                // Those of a process that ends now have another parent, and are not found.
                let children = process.children().unwrap_or_default().into_iter();
                queue.extend(children.filter(|pid| known.insert(*pid)).map(|pid| (pid, false)));
            }
            // A passive scan does not compare tables.
            let mut threads = if self.options.passive { Vec::new() } else { process.own_tables() };
            // One of them may have been asked for beside its process.
            threads.retain(|thread| known.insert(thread.pid));
            for mut process in std::iter::once(process).chain(threads) {
                if processes.len() >= most_open {
                    process.release();
                }
                processes.push(process);
                self.progress.add(1);
            }
        }
        self.several = processes.len() + self.missing.len() > 1;
        match processes.is_empty() {
            true => Err(self.nothing_left()),
            false => Ok(processes),
        }
    }

    /// True if a process reads the pipe into which the image is written. It is not part of what the
    /// user looks at, and if it were stopped, it could not read.
    fn reads_output(&self, process: &Process) -> bool {
        let Some(output) = &self.output_pipe else { return false };
        let numbers = process.numbers().unwrap_or_default();
        let mut text = Vec::new();
        numbers.into_iter().map(|fd| fd.to_string()).any(|name| {
            process.descriptor_link(&name).is_ok_and(|link| link == *output)
                && process.descriptor_info(&name, &mut text).is_ok()
                && FdInfo::parse(&text).flags & libc::O_ACCMODE as u32 == libc::O_RDONLY as u32
        })
    }

    /// Records that a process is not in the image, or not whole, and says why.
    pub(super) fn lacks(&mut self, pid: i32, comm: Option<Bytes>, partial: bool, err: Error) {
        let (why, errno) = (err.to_string(), err.errno().map(|errno| errno as i32));
        self.missing.push((Missing { pid, comm, partial, why, errno }, err));
    }

    /// The failure of a scan that has no process left. The others are said.
    pub(super) fn nothing_left(&mut self) -> Error {
        let mut lost = std::mem::take(&mut self.missing);
        let denied = lost.iter().any(|(_, err)| err.status() == Status::Denied);
        let Some((last, why)) = lost.pop() else {
            return Error::new(Status::Gone, "no such process");
        };
        for (missing, err) in lost {
            self.messages.push(err.at(missing.pid.to_string()).to_string());
        }
        let why = why.at(last.pid.to_string());
        if denied { why.with_status(Status::Denied) } else { why }
    }

    /// Says what is missing, and writes it.
    pub(super) fn write_missing(&mut self) -> Result<()> {
        for (missing, err) in std::mem::take(&mut self.missing) {
            // Of several processes the others are in the image. Of one, the image is a part.
            let status = if self.several { Status::No } else { err.status() };
            self.report(status, err.at(missing.pid.to_string()).to_string());
            self.summary.missing += 1;
            self.out.put(&Item::Missing(missing))?;
        }
        Ok(())
    }
}
