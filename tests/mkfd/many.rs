//! Many descriptors of mixed kinds that share nothing, at all numbers from 3 on: the target of the
//! benchmark.

use crate::spec::{At, Result, Stop};
use crate::{driver, sys};
use nix::fcntl::OFlag;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::path::Path;

/// The number of descriptors of each kind among ten, in the order in which they are opened.
const MIX: &[(&str, usize)] = &[("files", 4), ("pipes", 2), ("socketpairs", 2), ("eventfds", 2)];

/// Opens exactly `n` descriptors, none of them shared and none of them close-on-exec.
pub(crate) fn make(n: usize, mix: Option<&str>, dir: Option<&Path>) -> Result<()> {
    let named: Vec<&str> = mix.map_or_else(Vec::new, |mix| mix.split(',').collect());
    if let Some(wrong) = named.iter().find(|name| !MIX.iter().any(|(known, _)| known == *name)) {
        return Err(Stop::Misuse(format!("{wrong}: files, pipes, socketpairs or eventfds")));
    }
    sys::close_from(3).at("close_range")?;
    driver::raise_limit(&BTreeSet::from([n as i32 + 3]))?;
    let mut open = 0;
    while open < n {
        let before = open;
        for &(name, share) in MIX {
            if !named.is_empty() && !named.contains(&name) {
                continue;
            }
            let mut left = share;
            while left > 0 && open < n {
                // There is no room for a pair at the last number.
                let single = n - open == 1;
                let made = match name {
                    "files" => vec![file(open, dir)?],
                    "pipes" if !single => {
                        let (r, w) = nix::unistd::pipe().at("pipe")?;
                        vec![r, w]
                    }
                    "socketpairs" if !single => {
                        let none = SockFlag::empty();
                        let pair = socketpair(AddressFamily::Unix, SockType::Stream, None, none);
                        let (a, b) = pair.at("socketpair")?;
                        vec![a, b]
                    }
                    _ => vec![eventfd()?],
                };
                left = left.saturating_sub(made.len());
                for fd in made {
                    assert_eq!(fd.as_raw_fd(), open as i32 + 3, "the table is not dense");
                    let _ = fd.into_raw_fd();
                    open += 1;
                }
            }
        }
        assert!(open > before, "nothing was opened");
    }
    Ok(())
}

fn file(nth: usize, dir: Option<&Path>) -> Result<OwnedFd> {
    let dir = dir.ok_or_else(|| Stop::Misuse("many: --dir is needed for files".into()))?;
    let path = dir.join(format!("many.{nth:07}"));
    fs::write(&path, format!("file {nth}\n")).at(path.display())?;
    // driver::open would set close-on-exec.
    let flags = if nth % 2 == 0 { OFlag::O_RDWR } else { OFlag::O_RDONLY };
    nix::fcntl::open(&path, flags, nix::sys::stat::Mode::empty()).at(path.display())
}

fn eventfd() -> Result<OwnedFd> {
    EventFd::from_value_and_flags(1, EfdFlags::empty()).map(OwnedFd::from).at("eventfd2")
}
