//! Memory devices whose open(2) has no side effect: null, zero, full, random, urandom (null(4),
//! full(4), random(4)).

use crate::error::{Error, Result};
use crate::image::{Inode, OpenFile};
use crate::kind::Kind;
use crate::kind::context::{Opened, RestoreContext};
use crate::kind::effect::{Effect, opening};
use crate::proc::Descriptor;
use nix::libc;
use serde::{Deserialize, Serialize};

/// A memory device. Its record is empty: the inode of the file has the device number.
#[derive(Serialize, Deserialize)]
pub(crate) struct Mem {}

/// Minor numbers of /dev/null, zero, full, random and urandom, under major 1:
/// Documentation/admin-guide/devices.txt of the kernel.
const MINORS: [u32; 5] = [3, 5, 7, 8, 9];

/// Reports whether an inode is one of these devices. Without an inode (passive scan) the path
/// decides.
fn is_stateless(inode: Option<&Inode>, path: &[u8]) -> bool {
    let Some(inode) = inode else {
        let names = ["null", "zero", "full", "random", "urandom"];
        return names.iter().any(|name| path.strip_prefix(b"/dev/") == Some(name.as_bytes()));
    };
    inode.mode & libc::S_IFMT == libc::S_IFCHR
        && inode.rdev.is_some_and(|(major, minor)| major == 1 && MINORS.contains(&minor))
}

impl Kind for Mem {
    const NAME: &'static str = "mem";

    fn claims(descriptor: &Descriptor<'_>) -> bool {
        descriptor.inode.as_ref().is_none_or(|inode| inode.nlink > 0)
            && is_stateless(descriptor.inode.as_ref(), &descriptor.link.0)
    }

    fn capture(_: &Descriptor<'_>) -> Result<Self> {
        Ok(Mem {})
    }

    fn validate(&self, file: &OpenFile) -> Result<()> {
        match is_stateless(file.inode.as_ref(), &file.link.0) {
            true => Ok(()),
            false => Err(Error::malformed("it is not a memory device")),
        }
    }

    fn effects(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<Vec<Effect>> {
        Ok(opening(file, file, cx))
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        cx.check_path(file)
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        let Mem {} = self;
        cx.open_file_if(file, |found| is_stateless(Some(found), &file.link.0))
    }
}

#[cfg(test)]
mod tests {
    use crate::kind::tests::file_of;
    use std::fs::File;

    #[test]
    fn memory_devices_are_recognised_by_their_numbers() {
        for name in ["null", "zero", "full", "random", "urandom"] {
            let file = file_of(File::open(format!("/dev/{name}")).unwrap());
            assert_eq!(file.kind, "mem", "{name}");
            assert_eq!(file.inode.and_then(|inode| inode.rdev).map(|(major, _)| major), Some(1));
        }
    }
}
