//! What no tool can put back: an io_uring.

use crate::driver::{Bad, Fixture, link};
use crate::spec::{At, Result, Spec};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

pub(crate) struct Opaque;

impl Fixture for Opaque {
    const NAME: &'static str = "opaque";
    const ABOUT: &'static str = "an io_uring, which no tool restores; check wants it as it was";
    const KEYS: &'static [(&'static str, &'static str)] = &[];

    fn arity(_: &Spec) -> usize {
        1
    }

    fn make(_: &Spec) -> Result<Vec<OwnedFd>> {
        Ok(vec![sys::io_uring(4).at("io_uring_setup")?])
    }

    fn flags(_: &Spec, _: usize) -> OFlag {
        OFlag::O_RDWR
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        bad.same("link", link(spec.fds[0]), PathBuf::from("anon_inode:[io_uring]"));
        Ok(())
    }
}
