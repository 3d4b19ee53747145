//! signalfd(2): a descriptor that reads signals. fdinfo shows the set of signals. The pending
//! signals and the signal mask belong to the process, and are not recorded.

use crate::error::{At, Error, Result};
use crate::image::OpenFile;
use crate::kind::Kind;
use crate::kind::context::{Opened, RestoreContext};
use crate::proc::{Descriptor, FdInfo};
use crate::sys;
use nix::libc;
use serde::{Deserialize, Serialize};

const NONBLOCK: u32 = libc::O_NONBLOCK as u32;

/// The record of a signalfd.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Signalfd {
    /// The set of signals: signal n is bit n - 1.
    mask: u64,
}

fn parse(info: &FdInfo) -> Option<Signalfd> {
    let mask = u64::from_str_radix(info.get("sigmask")?, 16).ok()?;
    Some(Signalfd { mask })
}

impl Kind for Signalfd {
    const NAME: &'static str = "signalfd";

    fn claims(descriptor: &Descriptor<'_>) -> bool {
        descriptor.link.0 == b"anon_inode:[signalfd]" && !descriptor.is_path()
    }

    fn capture(descriptor: &Descriptor<'_>) -> Result<Self> {
        parse(&descriptor.info).ok_or_else(|| Error::unrestorable("fdinfo has no sigmask"))
    }

    fn validate(&self, _: &OpenFile) -> Result<()> {
        match [libc::SIGKILL, libc::SIGSTOP].iter().any(|n| self.mask & 1 << (n - 1) != 0) {
            true => {
                Err(Error::malformed("its set has SIGKILL or SIGSTOP, which no signalfd can read"))
            }
            false => Ok(()),
        }
    }

    fn restore(&self, file: &OpenFile, _: &mut RestoreContext<'_>) -> Result<Opened> {
        let Signalfd { mask } = *self;
        let nonblock = file.flags & NONBLOCK;
        let fd = sys::signal::signalfd(mask, nonblock != 0).at(|| "signalfd")?;
        Ok(Opened::new(fd, nonblock))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_set_of_signals_is_parsed(mask in any::<u64>()) {
            let text = format!("pos:\t0\nflags:\t02\nsigmask:\t{mask:016x}\n");
            prop_assert_eq!(parse(&FdInfo::parse(text.as_bytes())), Some(Signalfd { mask }));
        }
    }
}
