//! Character devices that can be opened without side effects.

use crate::driver::{Bad, Difference, Fixture, link, open_device, stat};
use crate::regular::access;
use crate::spec::{At, Result, Spec, Stop};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::stat::{major, minor};
use nix::unistd::{Whence, lseek, read};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// The name below /dev, and the major and minor number.
const DEVICES: &[(&str, (u64, u64))] = &[
    ("loop-control", (10, 237)),
    ("btrfs-control", (10, 234)),
    ("autofs", (10, 235)),
    ("hwrng", (10, 183)),
    ("kmsg", (1, 11)),
    ("cpu/0/cpuid", (203, 0)),
];

pub(crate) struct Chardev;

impl Fixture for Chardev {
    const NAME: &'static str = "chardev";
    const ABOUT: &'static str = "a character device that can be opened again";
    const KEYS: &'static [(&'static str, &'static str)] = &[
        ("dev", "loop-control (as without), btrfs-control, autofs, hwrng, kmsg or cpu/0/cpuid"),
        ("path", "another path to it"),
        ("read", "O_RDONLY (neither or both of read and write: O_RDWR)"),
        ("write", "O_WRONLY"),
        ("pos", "the position"),
    ];
    const DIFFERENCES: &'static [Difference] = &[
        ("chardev@3", "chardev@3:dev=autofs", "device"),
        ("chardev@3:dev=cpu/0/cpuid,read,pos=1", "chardev@3:dev=cpu/0/cpuid,read", "position is 1"),
        ("chardev@3:read", "chardev@3", "F_GETFL"),
    ];

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        device(spec).ok_or_else(|| Stop::Misuse("dev: see mkfd list".into()))?;
        let new = open_device(&path(spec), Self::flags(spec, 0))?;
        if let Some(pos) = spec.number("pos")? {
            lseek(&new, pos as i64, Whence::SeekSet).at("lseek")?;
        }
        Ok(vec![new])
    }

    fn flags(spec: &Spec, _: usize) -> OFlag {
        access(spec)
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let Some((name, number)) = device(spec) else { return Ok(()) };
        let fd = sys::at(spec.fds[0])?;
        let found = stat(fd, libc::S_IFCHR, bad)?;
        bad.same("device", (major(found.st_rdev), minor(found.st_rdev)), number);
        bad.same("path", link(spec.fds[0]), path(spec));
        if name == "cpu/0/cpuid" {
            let pos = spec.known_number("pos").unwrap_or(0);
            bad.same("position", lseek(fd, 0, Whence::SeekCur)? as u64, pos);
            let (mut one, mut two) = ([0; 16], [0; 16]);
            read(fd, &mut one)?;
            nix::sys::uio::pread(fd, &mut two, pos as i64)?;
            bad.same("a leaf", one, two);
        }
        Ok(())
    }
}

fn device(spec: &Spec) -> Option<(&'static str, (u64, u64))> {
    let name = spec.bytes("dev").unwrap_or(b"loop-control");
    DEVICES.iter().copied().find(|(known, _)| known.as_bytes() == name)
}

fn path(spec: &Spec) -> PathBuf {
    let name = device(spec).map_or("", |(name, _)| name);
    match spec.has("path") {
        true => spec.path().unwrap_or_default(),
        false => PathBuf::from("/dev").join(name),
    }
}
