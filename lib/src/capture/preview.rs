//! What a scan finds out before it stops the processes.
//!
//! Only descriptors that need it are captured here. A look at another may wait for the process: a blocked
//! splice(2) holds the lock of its pipe, for which F_GETPIPE_SZ waits, until the stop interrupts it.

use super::{Frozen, STOP_LIMIT, Scan, ScanOptions};
use crate::capture::contents::ContentsSource;
use crate::capture::threads::Trace;
use crate::image::{Bytes, Inode};
use crate::kind::{Captured, claimed_by};
use crate::messages::Messages;
use crate::proc::openers::{OpenWatch, Openers};
use crate::proc::{Descriptor, FdInfo, FoundPaths, Process};
use std::collections::{HashMap, HashSet};
use std::os::fd::RawFd;
use std::sync::Arc;

/// Facts that were found before the stop, so that the processes are stopped for a shorter time.
#[derive(Default)]
pub(super) struct Preview {
    openers: Option<FoundOpeners>,
    served: Served,
}

/// The openers of the objects whose contents have to be taken out. To find them takes time for each
/// descriptor of the system.
struct FoundOpeners {
    openers: Openers,
    watch: OpenWatch,
    /// Somebody has opened one of these objects since, or may have.
    opened: bool,
    /// The keys of these objects.
    keys: HashSet<(u32, u32, u64)>,
}

/// An object whose contents have to be taken out, by one of its descriptors.
struct Object<'p> {
    process: &'p Process,
    fd: RawFd,
    inode: Inode,
    link: Bytes,
    key: (u32, u32, u64),
}

/// Descriptors of files for which a process may have to answer: those of FUSE, of an automounter, of a
/// network file system. What was captured of them, by process and number.
///
/// close(2) of a copy of such a descriptor waits for the answer of the server (FUSE_FLUSH), and cannot be
/// interrupted, even by SIGKILL. If the server is one of the stopped processes, or waits for one, that is
/// for ever. So they are captured while all run, and in the stop only the text of /proc is read.
type Served = HashMap<(i32, RawFd), (Trace, Captured)>;

impl Preview {
    /// Looks for what takes long, while the processes run.
    ///
    /// What cannot be taken is not said: the scan will.
    pub(super) fn new(
        pids: &[i32],
        options: &ScanOptions,
        found_paths: Arc<FoundPaths>,
    ) -> Preview {
        let options = ScanOptions { freeze: false, stop: false, ..options.clone() };
        let mut ignored = Messages::kept();
        let mut nobody = Frozen::new(STOP_LIMIT);
        let mut scan = Scan::new(&options, &mut ignored, &mut nobody, std::io::sink());
        scan.found_paths = found_paths;
        let processes = scan.gather(pids).unwrap_or_default();
        let (mut served, mut objects, mut text) = (Served::new(), Vec::new(), Vec::new());
        for process in processes.iter().filter(|process| process.can_copy) {
            for fd in process.numbers().unwrap_or_default() {
                if !options.filter.iter().all(|filter| filter.may_pass(fd as u32)) {
                    continue;
                }
                let Ok(descriptor) = Descriptor::read(process, fd, true, &mut text) else {
                    continue;
                };
                let kind = claimed_by(&descriptor);
                (kind.search)(&descriptor);
                if is_served(process, &descriptor.info) {
                    if let Ok(captured) = Captured::capture_or_opaque(descriptor) {
                        let trace = Trace::new(fd, &captured.info, &captured.link.0);
                        served.insert((process.pid, fd), (trace, captured));
                    }
                } else if options.data.is_some() && kind.takes_contents_out {
                    let key = (kind.object)(&descriptor);
                    let object = key.zip(descriptor.inode).map(|(key, inode)| Object {
                        process,
                        fd,
                        inode,
                        link: descriptor.link,
                        key,
                    });
                    objects.extend(object);
                }
            }
        }
        let openers = FoundOpeners::find(&processes, &objects);
        Preview { openers, served }
    }

    /// What was captured of a served descriptor before the stop, with its position of now. None if its
    /// number names another file by now. `now` is what the text of /proc tells.
    pub(super) fn take_served(&mut self, process: i32, now: &Captured) -> Option<Captured> {
        let (trace, mut captured) = self.served.remove(&(process, now.fd))?;
        if trace != Trace::new(now.fd, &now.info, &now.link.0) {
            return None;
        }
        captured.info.clone_from(&now.info);
        Some(captured)
    }

    /// Asks the watch, once the processes are stopped: the scan itself opens some of the objects.
    pub(super) fn end_watch(&mut self) {
        if let Some(found) = &mut self.openers {
            found.opened = !found.watch.is_quiet();
        }
    }

    /// The openers now that the processes are stopped, and these sources are known. None if nothing was
    /// looked for.
    pub(super) fn openers(
        &mut self,
        processes: &[Process],
        sources: &[ContentsSource],
    ) -> Option<Openers> {
        let mut found = self.openers.take()?;
        let new = sources.iter().filter(taken_out).any(|source| !found.keys.contains(&source.key));
        let pids = processes.iter().map(|process| process.pid);
        found.openers.update(pids, new || found.opened);
        Some(found.openers)
    }
}

impl FoundOpeners {
    /// None if there are no such objects.
    fn find(processes: &[Process], objects: &[Object<'_>]) -> Option<FoundOpeners> {
        if objects.is_empty() {
            return None;
        }
        // First the watch: whoever comes during the walk is seen by one of both.
        let mut watch = OpenWatch::start();
        for Object { process, fd, inode, link, key } in objects {
            watch.add(process, *fd, inode, &link.0, key.2);
        }
        let pids = processes.iter().map(|process| process.pid);
        let wanted = objects.iter().map(|object| (&object.inode, object.link.0.as_slice()));
        let mut openers = Openers::new(pids, wanted);
        openers.walk();
        let keys = objects.iter().map(|object| object.key).collect();
        Some(FoundOpeners { openers, watch, opened: false, keys })
    }
}

fn taken_out(source: &&ContentsSource) -> bool {
    source.kind.takes_contents_out
}

/// Reports whether a process may have to answer for a file. Its mount tells, which fdinfo shows.
fn is_served(process: &Process, info: &FdInfo) -> bool {
    process.mounts().is_some_and(|mounts| mounts.is_served(info.mnt))
}

/// Those of the numbers of a process that are descriptors of served files.
pub(super) fn served_numbers(process: &Process, all: &[RawFd]) -> Vec<RawFd> {
    if !process.mounts().is_some_and(|mounts| mounts.has_served()) {
        return Vec::new();
    }
    let mut text = Vec::new();
    let mut is_served_now = |fd: &RawFd| {
        let read = process.descriptor_info(&fd.to_string(), &mut text);
        read.is_ok() && is_served(process, &FdInfo::parse(&text))
    };
    all.iter().copied().filter(|fd| is_served_now(fd)).collect()
}
