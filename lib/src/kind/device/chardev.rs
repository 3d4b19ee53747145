//! Character devices whose open does nothing but give a descriptor, named by one table. All others
//! are opaque: to open them could start, take, or claim something.

use crate::error::{Error, Result};
use crate::image::{Inode, OpenFile};
use crate::kind::Kind;
use crate::kind::context::{Opened, RestoreContext};
use crate::proc::Descriptor;
use nix::libc;
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// The device number is that of the inode.
#[derive(Serialize, Deserialize)]
pub(crate) struct Chardev {}

/// Some devices of the table.
struct StatelessDevices {
    major: u32,
    minors: RangeInclusive<u32>,
    /// The only access modes with which it is stateless.
    access: &'static [u32],
}

const READ: u32 = libc::O_RDONLY as u32;
const WRITE: u32 = libc::O_WRONLY as u32;
const BOTH: u32 = libc::O_RDWR as u32;
const ANY: &[u32] = &[READ, WRITE, BOTH];
const ACCESS: u32 = libc::O_ACCMODE as u32;

const fn misc(minor: u32) -> StatelessDevices {
    StatelessDevices { major: 10, minors: minor..=minor, access: ANY }
}

/// The devices, by the numbers of Documentation/admin-guide/devices.txt, and why each is here. The
/// devices of memory are a kind of their own: `mem`.
///
/// Not here, among others: watchdog (10:130, to open it starts it), rtc (one opener at a time), hpet
/// (10:228, a timer for each opener), cpu_dma_latency (a request that lasts as long as it is open),
/// fuse and cuse (each is one end of a connection), uinput, uhid, input, snd, dri, vhost, ppp, net/tun
/// (what was made or attached through the descriptor is its state), kvm (of use only with the virtual
/// machines that were made through it, which cannot come back), rfkill (its queue begins with all
/// there is), vga_arbiter, snapshot, nvram, mcelog (who has them open is counted).
static TABLE: &[StatelessDevices] = &[
    // kmsg: a writer has no place in the log; that of a reader is told nowhere, so it is not here.
    StatelessDevices { major: 1, minors: 11..=11, access: &[WRITE] },
    // hwrng: each read takes what the generator gives then; nothing is kept for the descriptor.
    misc(183),
    // btrfs-control, autofs, loop-control: ioctl(2) alone, on what it names, never on the opener.
    misc(234),
    misc(235),
    misc(237),
    // mapper/control: as those, but that poll(2) tells of the events since the open.
    misc(236),
    // cpu/N/msr and cpu/N/cpuid: the position is the number of the register, or the leaf.
    StatelessDevices { major: 202, minors: 0..=u32::MAX, access: ANY },
    StatelessDevices { major: 203, minors: 0..=u32::MAX, access: ANY },
];

/// Whether this device, opened so, is of the table.
fn is_known(inode: &Inode, flags: u32) -> bool {
    let Some((major, minor)) = inode.rdev else { return false };
    inode.mode & libc::S_IFMT == libc::S_IFCHR
        && TABLE.iter().any(|row| {
            row.major == major
                && row.minors.contains(&minor)
                && row.access.contains(&(flags & ACCESS))
        })
}

impl Kind for Chardev {
    const NAME: &'static str = "chardev";
    const SEEKABLE: bool = true;

    fn claims(it: &Descriptor<'_>) -> bool {
        let known = |inode: &Inode| inode.nlink > 0 && is_known(inode, it.flags());
        !it.is_path() && it.inode.as_ref().is_some_and(known)
    }

    fn capture(_: &Descriptor<'_>) -> Result<Self> {
        Ok(Chardev {})
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        if !file.inode.as_ref().is_some_and(|inode| is_known(inode, file.flags)) {
            return Err(Error::unrestorable("no device that this version opens"));
        }
        cx.check_path(file)
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        let Chardev {} = self;
        cx.open_file_if(file, |found| is_known(found, file.flags))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(major: u32, minor: u32) -> Inode {
        let mut inode = crate::proc::inode_of(std::os::fd::AsFd::as_fd(
            &std::fs::File::open("/dev/null").unwrap(),
        ))
        .unwrap();
        inode.rdev = Some((major, minor));
        inode
    }

    #[test]
    fn a_device_is_known_by_its_number_and_how_it_is_open() {
        for (major, minor, flags, known) in [
            (10, 237, BOTH, true),
            (10, 130, WRITE, false),
            (203, 5, READ, true),
            (1, 11, WRITE, true),
            (1, 11, READ, false),
            (1, 11, BOTH, false),
            (5, 2, BOTH, false),
        ] {
            assert_eq!(is_known(&device(major, minor), flags), known, "{major}:{minor}");
        }
        let mut block = device(10, 237);
        block.mode = libc::S_IFBLK;
        assert!(!is_known(&block, BOTH));
    }

    #[test]
    fn no_device_is_of_two_kinds() {
        assert!(TABLE.iter().all(|row| row.major != 1 || row.minors.start() == &11));
    }
}
