//! eventfd(2): a counter in the kernel. Its count and flavour are in fdinfo.

use crate::error::{At, Error, Result};
use crate::image::OpenFile;
use crate::kind::Kind;
use crate::kind::context::{Opened, RestoreContext};
use crate::proc::Descriptor;
use nix::libc;
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::{Deserialize, Serialize};

/// A counter.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Eventfd {
    /// The count, up to 2^64 - 2.
    count: u64,
    /// EFD_SEMAPHORE; fdinfo has it since 6.5.
    semaphore: bool,
}

impl Kind for Eventfd {
    const NAME: &'static str = "eventfd";

    fn claims(it: &Descriptor<'_>) -> bool {
        it.link.0 == b"anon_inode:[eventfd]"
    }

    fn capture(it: &Descriptor<'_>) -> Result<Self> {
        let count =
            it.info.get("eventfd-count").and_then(|text| u64::from_str_radix(text, 16).ok());
        Ok(Eventfd {
            count: count.ok_or_else(|| Error::unrestorable("fdinfo has no eventfd-count"))?,
            semaphore: it.info.get("eventfd-semaphore") == Some("1"),
        })
    }

    fn validate(&self, _: &OpenFile) -> Result<()> {
        // The kernel refuses to add up to it (eventfd(2)).
        if self.count == u64::MAX {
            return Err(Error::malformed("an eventfd cannot count to 2^64-1"));
        }
        Ok(())
    }

    fn restore(&self, file: &OpenFile, _: &mut RestoreContext<'_>) -> Result<Opened> {
        let Eventfd { count, semaphore } = *self;
        let mut flags = EfdFlags::empty();
        flags.set(EfdFlags::EFD_SEMAPHORE, semaphore);
        flags.set(EfdFlags::EFD_NONBLOCK, file.flags & libc::O_NONBLOCK as u32 != 0);
        // eventfd(2) takes 32 bits; write(2) reaches all 64.
        let first = u32::try_from(count).unwrap_or(0);
        let new = EventFd::from_value_and_flags(first, flags).at(|| "eventfd")?;
        if count > u64::from(first) {
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
    fn a_count_has_64_bits_and_a_semaphore_is_known() {
        let fd = EventFd::from_value_and_flags(0, EfdFlags::EFD_SEMAPHORE).unwrap();
        fd.write(1 << 40).unwrap();
        assert_eq!(body_of::<Eventfd>(fd), Eventfd { count: 1 << 40, semaphore: true });
        let fd = EventFd::from_value(7).unwrap();
        assert_eq!(body_of::<Eventfd>(fd), Eventfd { count: 7, semaphore: false });
    }
}
