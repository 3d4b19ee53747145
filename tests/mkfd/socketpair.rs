//! A pair of connected unix stream sockets.

use crate::driver::{Bad, Fixture, drain, signal_comes, stat, write_all};
use crate::spec::{At, Result, Spec};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::write;
use std::os::fd::OwnedFd;

pub(crate) struct Socketpair;

impl Fixture for Socketpair {
    const NAME: &'static str = "socketpair";
    const ABOUT: &'static str = "two unix stream sockets connected to each other";
    const KEYS: &'static [(&'static str, &'static str)] =
        &[("data", "bytes that wait in the first; @N for N bytes of a pattern")];

    fn arity(_: &Spec) -> usize {
        2
    }

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        let (a, b) =
            socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
                .at("socketpair")?;
        write_all(&b, &spec.data().unwrap_or_default()).at("write to the socket")?;
        Ok(vec![a, b])
    }

    fn flags(_: &Spec, _: usize) -> OFlag {
        OFlag::O_RDWR
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let (a, b) = (sys::at(spec.fds[0])?, sys::at(spec.fds[1])?);
        stat(a, libc::S_IFSOCK, bad)?;
        stat(b, libc::S_IFSOCK, bad)?;
        bad.same_bytes("data", &drain(a)?, &spec.data().unwrap_or_default());
        signal_comes(spec, 0, bad, || write(b, b"to a").map(drop))?;
        bad.same_bytes("what the second writes", &drain(a)?, b"to a");
        write(a, b"to b")?;
        bad.same_bytes("what the first writes", &drain(b)?, b"to b");
        Ok(())
    }
}
