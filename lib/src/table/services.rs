//! The service descriptors of this process: what a restorer needs in a table while it restores it.

use crate::error::{At, Error, Result};
use crate::placement::{self, Placement, TableNeeds};
use crate::sys::own_table::{OwnTable, PlacedFd};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::os::fd::RawFd;

/// Raises the soft RLIMIT_NOFILE to the hard one if the highest number asks for it. Gives the soft
/// limit before and now.
pub(crate) fn raise_limit(highest: Option<u32>) -> Result<(u64, u64)> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    match highest {
        Some(highest) if u64::from(highest) >= soft => {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
            Ok((soft, hard))
        }
        _ => Ok((soft, soft)),
    }
}

/// The numbers of so many service descriptors. Fails with status 6 if a table has no room for them.
pub(crate) fn service_numbers(
    policy: Placement,
    table: &TableNeeds<'_>,
    count: usize,
) -> Result<Vec<u32>> {
    placement::service_numbers(policy, table, count).ok_or_else(|| {
        let limit = table.limit;
        let why = format!("no room for {count} service descriptors below the limit {limit}");
        Error::unrestorable(why)
    })
}

/// Moves service descriptors to their numbers. What is there is closed: it is neither a service nor
/// kept, since service numbers are not wanted ones.
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
        let is_there = |placed: &&mut Option<PlacedFd>| {
            placed.as_ref().is_some_and(|placed| placed.number() as u32 == from)
        };
        let Some(place) = services.iter_mut().find(is_there) else { continue };
        if let Some(placed) = place.take() {
            let placed = table.replace(placed, to as RawFd);
            *place = Some(placed.at(|| "place the service descriptors")?);
        }
    }
    Ok(())
}

/// Closes every number but these, which ascend.
pub(crate) fn close_others(table: &OwnTable, keep: &[RawFd]) -> Result<()> {
    let mut first = 0;
    for &number in keep.iter().chain([&RawFd::MAX]) {
        if first < number {
            table.close_range(first, number - 1).at(|| "close_range")?;
        }
        first = number.saturating_add(1);
    }
    Ok(())
}
