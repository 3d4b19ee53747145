//! Looks at the descriptors of a process, on several threads if they are many.

use crate::error::{Error, Result};
use crate::kind::Captured;
use crate::proc::{Descriptor, Process};
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
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let threads = cores.min(MAX_THREADS).min(numbers.len() / MIN_PER_THREAD);
    let look = |fd, text: &mut Vec<u8>| {
        let it = Descriptor::read(process, fd, fetch, text).and_then(Captured::capture_or_opaque);
        it.map_err(|err| (fd, err))
    };
    in_order(numbers, threads, &look, each)
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
            scope.spawn(move || {
                let mut buffer = buffer();
                for chunk in items.chunks(CHUNK).skip(first).step_by(threads) {
                    let done = chunk.iter().map(|&item| work(item, &mut buffer)).collect();
                    // The receiver is gone once `each` has failed.
                    if sender.send(done).is_err() {
                        break;
                    }
                }
            });
            receiver
        };
        let receivers: Vec<_> = (0..threads).map(spawn).collect();
        let chunks = 0..items.len().div_ceil(CHUNK);
        let received = chunks.map(|nth| receivers[nth % threads].recv());
        received.map_while(|chunk| chunk.ok()).flatten().try_for_each(each)
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
