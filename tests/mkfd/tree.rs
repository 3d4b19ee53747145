//! A process tree with tables of different sizes: children that were forked before their parent
//! opened more numbers.

use crate::spec::{At, Result, Stop};
use crate::{driver, sys};
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, RawFd};

/// The numbers of a tree.
pub(crate) struct Tree<'a> {
    /// The number of children.
    pub(crate) children: usize,
    /// The numbers that the parent opens before it forks the children, who inherit them.
    pub(crate) first: &'a [RawFd],
    /// The numbers that the parent opens afterwards.
    pub(crate) later: &'a [RawFd],
    /// The bytes of memory that each process writes to.
    pub(crate) memory: usize,
}

/// Makes the tree; each process has /dev/null at 0, 1 and 2. `say` is called when everything is
/// made, in a process that is not part of the tree.
pub(crate) fn make(tree: &Tree<'_>, say: impl FnOnce()) -> Result<()> {
    sys::close_from(3).at("close_range")?;
    let all = tree.first.iter().chain(tree.later).copied().collect();
    driver::raise_limit(&all)?;
    if all.iter().any(|number| *number < 3) {
        return Err(Stop::Misuse("tree: 0, 1 and 2 are taken".into()));
    }
    let (r, w) = nix::unistd::pipe2(OFlag::O_CLOEXEC).at("pipe2")?;
    match sys::fork().at("fork")? {
        // The process that calls `say` is no child of a process of the tree.
        None => {
            if matches!(sys::fork(), Ok(None)) {
                drop(w);
                let _ = nix::unistd::read(&r, &mut [0]);
                say();
            }
            sys::end(0);
        }
        Some(child) => drop(nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child), None)),
    }
    drop(r);
    let null = driver::open("/dev/null".as_ref(), OFlag::O_RDWR)?;
    (0..3).try_for_each(|n| sys::dup_to(null.as_fd(), n, false)).at("dup3")?;
    drop(null);
    // The pipe is moved to a number that was not requested.
    let mut held = w;
    while all.contains(&held.as_raw_fd()) {
        held = sys::dup_above(held.as_fd(), held.as_raw_fd() + 1).at("F_DUPFD")?;
    }
    tree.first.iter().try_for_each(|&number| open(number))?;
    for _ in 0..tree.children {
        if sys::fork().at("fork")?.is_none() {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).at("PR_SET_PDEATHSIG")?;
            let _own = std::hint::black_box(vec![1u8; tree.memory]);
            drop(held);
            loop {
                nix::unistd::pause();
            }
        }
    }
    tree.later.iter().try_for_each(|&number| open(number))
    // Here `held` is closed, which lets the other process call `say`.
}

/// Opens a new eventfd at this number.
fn open(number: RawFd) -> Result<()> {
    let event = nix::sys::eventfd::EventFd::new().at("eventfd")?;
    let event = std::os::fd::OwnedFd::from(event);
    match event.as_raw_fd() == number {
        true => drop(event.into_raw_fd()),
        false => sys::move_to(event, number, false).at(format!("dup3 to {number}"))?,
    }
    Ok(())
}
