//! Raw sockets.

use crate::driver::{Bad, Difference, Fixture};
use crate::inet::{self, BYTES, HOST, JOIN, SET, V6};
use crate::spec::{Result, Spec};
use crate::sys;
use fdkit::sys::socket;
use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsFd, OwnedFd};

pub(crate) struct Raw;

/// A protocol number that RFC 3692 reserves for experiments and that nothing else sends; 255 is
/// IPPROTO_RAW.
fn protocol(spec: &Spec) -> i32 {
    spec.known_number("protocol").unwrap_or(253) as i32
}

impl Fixture for Raw {
    const NAME: &'static str = "raw";
    const ABOUT: &'static str = "a raw socket of protocol 253";
    const KEYS: &'static [(&'static str, &'static str)] = &[
        V6,
        HOST,
        SET,
        BYTES,
        JOIN,
        ("protocol", "of this one"),
        ("bound", "to the host"),
        ("connected", "to the host"),
    ];
    const DIFFERENCES: &'static [Difference] = &[
        ("raw@3", "raw@3:connected", "connected is false"),
        ("raw@3:protocol=254", "raw@3", "protocol is 254"),
    ];

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        inet::lone(spec, libc::SOCK_RAW, protocol(spec))
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let fd = inet::at(spec, 0, libc::SOCK_RAW, protocol(spec), bad)?;
        inet::same_as_noted(spec, 0, fd, bad)?;
        if protocol(spec) == 253 {
            bad.same("connected", inet::sends(fd, b"x")?, spec.has("connected"));
            // A packet that another socket sends to the host is received.
            let other = socket::new(inet::family(spec), libc::SOCK_RAW | libc::SOCK_CLOEXEC, 253)?;
            let to = inet::host(spec, 0).map_err(|_| Errno::EINVAL)?;
            socket::send_to(other.as_fd(), b"hello", &inet::encode(to))?;
            bad.same("a packet comes", sys::becomes_readable(fd, 5000)?, true);
        }
        Ok(())
    }
}
