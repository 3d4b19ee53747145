//! Looks at the descriptors of a process on several threads.

use crate::error::{Error, Result};
use crate::kind::Captured;
use crate::proc::{Descriptor, Process};
use std::os::fd::RawFd;

/// Below this many descriptors a second thread costs more than it saves.
const WORTH_A_THREAD: usize = 512;
/// So many are handed over at once by a thread to the one that writes them.
const HANDFUL: usize = 128;

pub(super) type Looked = std::result::Result<Captured, (RawFd, Error)>;

/// Looks at numbers of a process, on several processors if they are many, and hands them on in
/// their order.
pub(super) fn look(
    process: &Process,
    numbers: &[RawFd],
    fetch: bool,
    each: &mut dyn FnMut(Looked) -> Result<()>,
) -> Result<()> {
    let take = |fd, text: &mut Vec<u8>| take(process, fd, fetch, text).map_err(|err| (fd, err));
    let most = numbers.len() / WORTH_A_THREAD;
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get()).min(8);
    if most < 2 || threads < 2 {
        let mut text = Vec::with_capacity(4096);
        return numbers.iter().try_for_each(|&fd| each(take(fd, &mut text)));
    }
    let threads = threads.min(most);
    std::thread::scope(|scope| {
        // What is looked at and not yet written is a few handfuls of each thread, however many
        // there are.
        let spawn = |first| {
            let (to, from) = std::sync::mpsc::sync_channel::<Vec<Looked>>(4);
            scope.spawn(move || {
                let mut text = Vec::with_capacity(4096);
                for some in numbers.chunks(HANDFUL).skip(first).step_by(threads) {
                    let looked = some.iter().map(|&fd| take(fd, &mut text)).collect();
                    // Nobody wants more once it cannot be written.
                    if to.send(looked).is_err() {
                        break;
                    }
                }
            });
            from
        };
        let from: Vec<_> = (0..threads).map(spawn).collect();
        let handfuls = (0..numbers.len().div_ceil(HANDFUL)).map(|nth| from[nth % threads].recv());
        handfuls.map_while(|it| it.ok()).flatten().try_for_each(each)
    })
}

fn take(process: &Process, fd: RawFd, fetch: bool, text: &mut Vec<u8>) -> Result<Captured> {
    Descriptor::read(process, fd, fetch, text).and_then(Captured::capture_or_opaque)
}
