//! Character devices whose descriptions have no state: open(2) has no side effect. One table lists
//! them. All others are opaque, because opening them can start, consume or claim something.

use crate::error::{Error, Result};
use crate::image::{Inode, OpenFile};
use crate::kind::Kind;
use crate::kind::context::{Opened, RestoreContext};
use crate::kind::effect::{Allow, Effect};
use crate::proc::Descriptor;
use crate::text::escape;
use nix::libc;
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// A character device without state. Its record is empty: the inode of the file has the device
/// number.
#[derive(Serialize, Deserialize)]
pub(crate) struct Chardev {}

/// Devices of one major number: a row of [`STATELESS`].
struct StatelessDevices {
    major: u32,
    minors: RangeInclusive<u32>,
    /// The access modes in which a description has no state.
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

/// The devices, by the numbers of Documentation/admin-guide/devices.txt, and why each is listed.
/// Memory devices are of kind `mem`.
///
/// Not listed, among others: watchdog (10:130, open(2) starts it), rtc (one opener at a time), hpet
/// (10:228, a timer for each opener), cpu_dma_latency (a request that holds while it is open), fuse
/// and cuse (each is one end of a connection), uinput, uhid, input, snd, dri, vhost, ppp, net/tun
/// (objects made or attached through the descriptor are its state), kvm (of use only with the
/// virtual machines made through it, which cannot be restored), rfkill (its queue begins with an
/// event for each device), vga_arbiter, snapshot, nvram, mcelog (the driver counts their openers).
static STATELESS: &[StatelessDevices] = &[
    // kmsg: a writer has no position in the log. The position of a reader cannot be read, so
    // readers are not listed.
    StatelessDevices { major: 1, minors: 11..=11, access: &[WRITE] },
    // hwrng: each read(2) takes fresh bytes of the generator; the description keeps none.
    misc(183),
    // btrfs-control, autofs, loop-control: only ioctl(2), on objects that its argument names; the
    // description keeps nothing.
    misc(234),
    misc(235),
    misc(237),
    // mapper/control: the same, but poll(2) reports events since the open.
    misc(236),
    // cpu/N/msr and cpu/N/cpuid: the offset is the number of the register, or the leaf.
    StatelessDevices { major: 202, minors: 0..=u32::MAX, access: ANY },
    StatelessDevices { major: 203, minors: 0..=u32::MAX, access: ANY },
];

/// Reports whether [`STATELESS`] has this device, opened with these flags of open(2).
fn is_stateless(inode: &Inode, flags: u32) -> bool {
    let Some((major, minor)) = inode.rdev else { return false };
    inode.mode & libc::S_IFMT == libc::S_IFCHR
        && STATELESS.iter().any(|row| {
            row.major == major
                && row.minors.contains(&minor)
                && row.access.contains(&(flags & ACCESS))
        })
}

impl Kind for Chardev {
    const NAME: &'static str = "chardev";
    const SEEKABLE: bool = true;

    fn claims(descriptor: &Descriptor<'_>) -> bool {
        let stateless = |inode: &Inode| inode.nlink > 0 && is_stateless(inode, descriptor.flags());
        !descriptor.is_path() && descriptor.inode.as_ref().is_some_and(stateless)
    }

    fn capture(_: &Descriptor<'_>) -> Result<Self> {
        Ok(Chardev {})
    }

    fn effects(&self, file: &OpenFile, _: &RestoreContext<'_>) -> Result<Vec<Effect>> {
        let (major, minor) = file.inode.as_ref().and_then(|inode| inode.rdev).unwrap_or_default();
        let what = format!("opens the device {} ({major}:{minor})", escape(&file.link.0));
        Ok(vec![Effect::needing(Allow::Devices, what)])
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        if !file.inode.as_ref().is_some_and(|inode| is_stateless(inode, file.flags)) {
            return Err(Error::unrestorable("this version restores no such device"));
        }
        cx.check_path(file)
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        let Chardev {} = self;
        cx.open_file_if(file, |found| is_stateless(found, file.flags))
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
    fn a_device_is_recognised_by_its_number_and_access_mode() {
        for (major, minor, flags, stateless) in [
            (10, 237, BOTH, true),
            (10, 130, WRITE, false),
            (203, 5, READ, true),
            (1, 11, WRITE, true),
            (1, 11, READ, false),
            (1, 11, BOTH, false),
            (5, 2, BOTH, false),
        ] {
            assert_eq!(is_stateless(&device(major, minor), flags), stateless, "{major}:{minor}");
        }
        let mut block = device(10, 237);
        block.mode = libc::S_IFBLK;
        assert!(!is_stateless(&block, BOTH));
    }

    #[test]
    fn the_table_has_no_device_of_kind_mem() {
        assert!(STATELESS.iter().all(|row| row.major != 1 || row.minors.start() == &11));
    }
}
