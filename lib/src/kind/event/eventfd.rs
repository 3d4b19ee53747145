//! eventfd(2): a counter in the kernel. fdinfo shows the count, and whether it is a semaphore.

use crate::error::{At, Error, Result};
use crate::image::OpenFile;
use crate::kind::Kind;
use crate::kind::context::{Opened, RestoreContext};
use crate::proc::Descriptor;
use nix::libc;
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::{Deserialize, Serialize};

/// The record of an eventfd.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Eventfd {
    /// The count, up to 2^64 - 2.
    count: u64,
    /// The eventfd was created with EFD_SEMAPHORE; fdinfo shows it since Linux 6.5.
    semaphore: bool,
}

impl Kind for Eventfd {
    const NAME: &'static str = "eventfd";

    fn claims(descriptor: &Descriptor<'_>) -> bool {
        descriptor.link.0 == b"anon_inode:[eventfd]"
    }

    fn capture(descriptor: &Descriptor<'_>) -> Result<Self> {
        let count = descriptor
            .info
            .get("eventfd-count")
            .and_then(|text| u64::from_str_radix(text, 16).ok());
        Ok(Eventfd {
            count: count.ok_or_else(|| Error::unrestorable("fdinfo has no eventfd-count"))?,
            semaphore: descriptor.info.get("eventfd-semaphore") == Some("1"),
        })
    }

    fn validate(&self, _: &OpenFile) -> Result<()> {
        // write(2) never lets the count reach 2^64-1 (eventfd(2)).
        if self.count == u64::MAX {
            return Err(Error::malformed("its count is 2^64-1, and the highest is 2^64-2"));
        }
        Ok(())
    }

    fn restore(&self, file: &OpenFile, _: &mut RestoreContext<'_>) -> Result<Opened> {
        let Eventfd { count, semaphore } = *self;
        let mut flags = EfdFlags::empty();
        flags.set(EfdFlags::EFD_SEMAPHORE, semaphore);
        flags.set(EfdFlags::EFD_NONBLOCK, file.flags & libc::O_NONBLOCK as u32 != 0);
        // The argument of eventfd(2) has 32 bits; write(2) adds a 64-bit value.
        let initial = u32::try_from(count).unwrap_or(0);
        let new = EventFd::from_value_and_flags(initial, flags).at(|| "eventfd")?;
        if count > u64::from(initial) {
            new.write(count).at(|| "write the count")?;
        }
        Ok(Opened::new(new.into(), file.flags & libc::O_NONBLOCK as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::tests::body_of;

    #[test]
    fn a_64_bit_count_and_a_semaphore_are_captured() {
        let fd = EventFd::from_value_and_flags(0, EfdFlags::EFD_SEMAPHORE).unwrap();
        fd.write(1 << 40).unwrap();
        assert_eq!(body_of::<Eventfd>(fd), Eventfd { count: 1 << 40, semaphore: true });
        let fd = EventFd::from_value(7).unwrap();
        assert_eq!(body_of::<Eventfd>(fd), Eventfd { count: 7, semaphore: false });
    }
}
