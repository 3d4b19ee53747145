//! The service descriptors: those that fdrestore needs in a table while it restores the table, such
//! as the caller's stderr and the root directory.

use crate::error::{At, Error, Result};
use crate::placement::{self, Placement, TableNeeds};
use crate::sys::own_table::{OwnTable, PlacedFd};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::os::fd::RawFd;

/// The soft limit RLIMIT_NOFILE of this process, and the one during a restore with this highest
/// number: it is raised to the hard limit if the number after it is not below it. A file that exists
/// is opened with O_PATH first, and has two numbers while it is opened again.
pub fn limits_for(highest: Option<u32>) -> Result<(u64, u64)> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let raised = highest.is_some_and(|highest| u64::from(highest) + 1 >= soft);
    Ok((soft, if raised { hard } else { soft }))
}

/// Sets the soft limit of a restore with this highest number. Returns [`limits_for`] it.
pub(crate) fn raise_limit(highest: Option<u32>) -> Result<(u64, u64)> {
    let (soft, raised) = limits_for(highest)?;
    if raised > soft {
        setrlimit(Resource::RLIMIT_NOFILE, raised, raised)?;
    }
    Ok((soft, raised))
}

/// The numbers of `count` service descriptors. Fails with status 6 if the limit of open files
/// leaves too few free numbers.
pub(crate) fn service_numbers(
    policy: Placement,
    table: &TableNeeds<'_>,
    count: usize,
) -> Result<Vec<u32>> {
    placement::service_numbers(policy, table, count).ok_or_else(|| {
        let limit = table.limit;
        let why = format!(
            "the limit of {limit} open files leaves too few numbers for {count} service descriptors; \
             raise it (ulimit -n)"
        );
        Error::unrestorable(why)
    })
}

/// Moves service descriptors to their numbers. A descriptor that is open there is closed; it is not
/// part of the restored table, which has none of the service numbers.
pub(crate) fn move_services(
    table: &OwnTable,
    services: &mut [Option<PlacedFd>],
    policy: Placement,
    wanted: &TableNeeds<'_>,
) -> Result<()> {
    let numbers = service_numbers(policy, wanted, services.iter().flatten().count())?;
    let held = services.iter().flatten().map(|placed| placed.number() as u32);
    let pairs: Vec<(u32, u32)> = held.zip(numbers).collect();
    let spare = pairs.iter().map(|&(from, to)| from.max(to)).max().unwrap_or(0) + 1;
    for (from, to) in placement::moves(&pairs, spare) {
        let is_at_number = |placed: &&mut PlacedFd| placed.number() as u32 == from;
        if let Some(service) = services.iter_mut().flatten().find(is_at_number) {
            let moved = table.replace(service, to as RawFd);
            moved.at(|| "place the service descriptors")?;
        }
    }
    Ok(())
}

/// Closes every number except those in `keep`, which ascend.
pub(crate) fn close_others(table: &OwnTable, keep: impl IntoIterator<Item = RawFd>) -> Result<()> {
    let mut first = 0;
    for number in keep.into_iter().chain([RawFd::MAX]) {
        if first < number {
            table.close_range(first, number - 1).at(|| "close_range")?;
        }
        first = number.saturating_add(1);
    }
    Ok(())
}
