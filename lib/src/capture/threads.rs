//! Looks at the descriptors of a process, on several threads if they are many.

use crate::error::{Error, Result};
use crate::kind::Captured;
use crate::proc::{Descriptor, FdInfo, Process};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::RawFd;
use std::sync::mpsc::sync_channel;

/// Descriptors of one thread: for fewer it costs more than it saves.
const MIN_PER_THREAD: usize = 512;
/// Threads at most.
const MAX_THREADS: usize = 8;
/// Descriptors that a thread hands over at once.
const CHUNK: usize = 128;
/// Chunks of one thread that may wait to be written.
const WAITING: usize = 4;

/// How many threads look at so many descriptors.
fn threads_for(descriptors: usize) -> usize {
    match descriptors / MIN_PER_THREAD {
        // The count of cores takes reading some files of /proc and of the cgroup.
        few @ 0..2 => few,
        many => {
            let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
            cores.min(MAX_THREADS).min(many)
        }
    }
}

/// A descriptor as its kind has captured it, or its number and why it could not be.
pub(super) type Looked = std::result::Result<Captured, (RawFd, Error)>;

/// Captures these numbers of a process, and hands them on in their order. `fetch` asks for copies of
/// the descriptors (pidfd_getfd(2)). Fails as `each` does.
pub(super) fn look(
    process: &Process,
    numbers: &[RawFd],
    fetch: bool,
    each: &mut dyn FnMut(Looked) -> Result<()>,
) -> Result<()> {
    let threads = threads_for(numbers.len());
    let look = |fd, text: &mut Vec<u8>| {
        let it = Descriptor::read(process, fd, fetch, text).and_then(Captured::capture_or_opaque);
        it.map_err(|err| (fd, err))
    };
    in_order(numbers, threads, &look, each)
}

/// Facts from the text of /proc by which a second look finds that a number names another file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trace {
    fd: RawFd,
    flags: u32,
    mount: i32,
    inode: u64,
    link: u64,
}

impl Trace {
    /// The trace of a descriptor by its fdinfo and its link.
    pub(super) fn new(fd: RawFd, info: &FdInfo, link: &[u8]) -> Trace {
        let mut hasher = DefaultHasher::new();
        link.hash(&mut hasher);
        Trace { fd, flags: info.flags, mount: info.mnt, inode: info.ino, link: hasher.finish() }
    }

    /// True if the number still names what it did. Also if it is closed by now, which the list of
    /// numbers tells.
    fn holds(&self, process: &Process, text: &mut Vec<u8>) -> bool {
        let name = self.fd.to_string();
        let Ok(()) = process.descriptor_info(&name, text) else { return true };
        let Ok(link) = process.descriptor_link(&name) else { return true };
        *self == Trace::new(self.fd, &FdInfo::parse(text), &link)
    }
}

/// Looks at descriptors again, and counts those whose number names another file by now.
pub(super) fn look_again(process: &Process, before: &[Trace]) -> usize {
    let threads = threads_for(before.len());
    let mut others = 0;
    let work = |trace: Trace, text: &mut Vec<u8>| trace.holds(process, text);
    let mut each = |holds: bool| {
        others += usize::from(!holds);
        Ok(())
    };
    // `each` does not fail.
    let _ = in_order(before, threads, &work, &mut each);
    others
}

/// Applies `work` to all items on so many threads, and hands on what it gives in the order of the
/// items. Fails as `each` does, which then gets no more. `work` also gets a buffer of its thread.
fn in_order<T: Copy + Sync, R: Send>(
    items: &[T],
    threads: usize,
    work: &(impl Fn(T, &mut Vec<u8>) -> R + Sync),
    each: &mut dyn FnMut(R) -> Result<()>,
) -> Result<()> {
    let buffer = || Vec::with_capacity(4096);
    if threads < 2 {
        let mut buffer = buffer();
        return items.iter().try_for_each(|&item| each(work(item, &mut buffer)));
    }
    std::thread::scope(|scope| {
        // A full channel holds its thread up, so that memory does not grow with the items.
        let spawn = |first| {
            let (sender, receiver) = sync_channel::<Vec<R>>(WAITING);
            let thread = std::thread::Builder::new();
            let spawned = thread.spawn_scoped(scope, move || {
                let mut buffer = buffer();
                for chunk in items.chunks(CHUNK).skip(first).step_by(threads) {
                    let done = chunk.iter().map(|&item| work(item, &mut buffer)).collect();
                    // The receiver is gone once `each` has failed.
                    if sender.send(done).is_err() {
                        break;
                    }
                }
            });
            spawned.map(|thread| (receiver, thread))
        };
        let spawned = (0..threads).map(spawn).collect::<std::io::Result<Vec<_>>>();
        // Without a thread more, this one does all.
        let Ok(spawned) = spawned else {
            let mut buffer = buffer();
            return items.iter().try_for_each(|&item| each(work(item, &mut buffer)));
        };
        let (receivers, spawned): (Vec<_>, Vec<_>) = spawned.into_iter().unzip();
        let chunks = 0..items.len().div_ceil(CHUNK);
        let received = chunks.map(|nth| receivers[nth % threads].recv());
        let done = received.map_while(|chunk| chunk.ok()).flatten().try_for_each(each);
        drop(receivers);
        // The scope waits for the work alone, while the threads run on for a moment. This process
        // must not fork before they end.
        for thread in spawned {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        done
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    #[test]
    fn the_order_is_that_of_the_items_on_any_number_of_threads() {
        for (count, threads) in [(0, 4), (1, 1), (CHUNK, 2), (5 * CHUNK + 1, 3), (40 * CHUNK, 8)] {
            let items: Vec<usize> = (0..count).collect();
            let mut seen = Vec::new();
            let mut each = |it| {
                seen.push(it);
                Ok(())
            };
            in_order(&items, threads, &|item, _| item, &mut each).unwrap();
            assert_eq!(seen, items, "{count} items on {threads} threads");
        }
    }

    #[test]
    fn a_failure_ends_all_threads() {
        let items: Vec<usize> = (0..100 * CHUNK).collect();
        let mut left = 2 * CHUNK;
        let mut each = |_| match left {
            0 => Err(Error::new(Status::System, "full")),
            _ => {
                left -= 1;
                Ok(())
            }
        };
        assert!(in_order(&items, 4, &|item, _| item, &mut each).is_err());
        assert_eq!(left, 0);
    }
}
