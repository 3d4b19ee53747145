//! The memory devices: null, zero, full, random, urandom.

use crate::driver::{Bad, Difference, Fixture, link, open, stat};
use crate::regular::access;
use crate::spec::{Result, Spec, Stop};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::stat::{major, minor};
use nix::unistd::{read, write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Name and minor number; the major one is 1.
const DEVICES: &[(&str, u64)] =
    &[("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)];

pub(crate) struct Mem;

impl Fixture for Mem {
    const NAME: &'static str = "mem";
    const ABOUT: &'static str = "a memory device";
    const KEYS: &'static [(&'static str, &'static str)] = &[
        ("dev", "null (as without), zero, full, random or urandom"),
        ("read", "O_RDONLY (neither or both of read and write: O_RDWR)"),
        ("write", "O_WRONLY"),
        ("append", "O_APPEND"),
    ];
    const DIFFERENCES: &'static [Difference] = &[("mem@3", "mem@3:dev=zero", "device")];

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        let Some((name, _)) = device(spec) else {
            return Err(Stop::Misuse("dev: null, zero, full, random or urandom".into()));
        };
        Ok(vec![open(&Path::new("/dev").join(name), Self::flags(spec, 0))?])
    }

    fn flags(spec: &Spec, _: usize) -> OFlag {
        let mut flags = access(spec);
        flags.set(OFlag::O_APPEND, spec.has("append"));
        flags
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let Some((name, number)) = device(spec) else { return Ok(()) };
        let fd = sys::at(spec.fds[0])?;
        let found = stat(fd, libc::S_IFCHR, bad)?;
        bad.same("device", (major(found.st_rdev), minor(found.st_rdev)), (1, number));
        bad.same("path", link(spec.fds[0]), PathBuf::from(format!("/dev/{name}")));
        let mut bytes = [0xff; 32];
        let expected = match (access(spec), name) {
            (OFlag::O_WRONLY, _) => Err(Errno::EBADF),
            (_, "null") => Ok(0),
            _ => Ok(32),
        };
        bad.same("read", read(fd, &mut bytes), expected);
        if expected == Ok(32) {
            let zeros = bytes == [0; 32];
            bad.same("reads zeros", zeros, name == "zero" || name == "full");
        }
        let expected = match (access(spec), name) {
            (OFlag::O_RDONLY, _) => Err(Errno::EBADF),
            (_, "full") => Err(Errno::ENOSPC),
            _ => Ok(1),
        };
        bad.same("write", write(fd, b"x"), expected);
        Ok(())
    }
}

fn device(spec: &Spec) -> Option<(&'static str, u64)> {
    let name = spec.bytes("dev").unwrap_or(b"null");
    DEVICES.iter().copied().find(|(known, _)| known.as_bytes() == name)
}
