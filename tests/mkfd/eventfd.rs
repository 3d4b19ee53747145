//! eventfd(2): a counter in the kernel, of which a read takes all or one.

use crate::driver::{Bad, Difference, Fixture, ready};
use crate::spec::{At, Result, Spec, Stop};
use crate::sys;
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::{read, write};
use std::os::fd::{BorrowedFd, OwnedFd};

/// The highest count; another write would block.
const HIGHEST: u64 = u64::MAX - 1;

pub(crate) struct Eventfd;

impl Fixture for Eventfd {
    const NAME: &'static str = "eventfd";
    const ABOUT: &'static str = "an event counter";
    const KEYS: &'static [(&'static str, &'static str)] =
        &[("count", "its count, up to 2^64-2"), ("semaphore", "EFD_SEMAPHORE: a read takes one")];
    const DIFFERENCES: &'static [Difference] = &[
        ("eventfd@3,4:dup", "eventfd@4", "3 is open"),
        ("eventfd@3", "eventfd@3:cloexec", "FDRESTORE_CLOEXEC"),
        ("eventfd@3", "eventfd@3:own", "owner"),
        ("eventfd@3", "eventfd@3:sig=10", "F_GETSIG"),
        ("eventfd@3:count=3,semaphore", "eventfd@3:count=3", "a read is Some(1)"),
        ("eventfd@3:count=4", "eventfd@3:count=3", "count is Some(4)"),
    ];

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        let mut flags = EfdFlags::EFD_CLOEXEC;
        flags.set(EfdFlags::EFD_SEMAPHORE, spec.has("semaphore"));
        let fd = EventFd::from_value_and_flags(0, flags).at("eventfd2")?;
        let count = spec.number("count")?.unwrap_or(0);
        if count > HIGHEST {
            return Err(Stop::Misuse("count is above 2^64-2".into()));
        }
        if count > 0 {
            fd.write(count).at("write to the eventfd")?;
        }
        Ok(vec![fd.into()])
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let fd = sys::at(spec.fds[0])?;
        let count = spec.known_number("count").unwrap_or(0);
        bad.same("count", told(spec), Some(count));
        bad.same("readable", ready(fd, PollFlags::POLLIN)?, count > 0);
        bad.same("writable", ready(fd, PollFlags::POLLOUT)?, count < HIGHEST);
        if count == 0 {
            write(fd, &1_u64.to_ne_bytes())?;
            bad.same("a read after a write of 1", take(fd)?, Some(1));
            return Ok(());
        }
        let (taken, left) = if spec.has("semaphore") { (1, count - 1) } else { (count, 0) };
        bad.same("a read", take(fd)?, Some(taken));
        bad.same("count after a read", told(spec), Some(left));
        write(fd, &taken.to_ne_bytes())?;
        bad.same("count after it was put back", told(spec), Some(count));
        Ok(())
    }
}

/// Reads, unless that would block.
fn take(fd: BorrowedFd<'_>) -> Result<Option<u64>, Errno> {
    if !ready(fd, PollFlags::POLLIN)? {
        return Ok(None);
    }
    let mut bytes = [0; 8];
    read(fd, &mut bytes)?;
    Ok(Some(u64::from_ne_bytes(bytes)))
}

/// The count in fdinfo.
fn told(spec: &Spec) -> Option<u64> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", spec.fds[0])).ok()?;
    let count = info.lines().find_map(|line| line.strip_prefix("eventfd-count:"))?;
    u64::from_str_radix(count.trim(), 16).ok()
}
