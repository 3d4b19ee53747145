//! Ping sockets.

use crate::driver::{Bad, Difference, Fixture};
use crate::inet::{self, BYTES, HOST, JOIN, SET, V6};
use crate::spec::{Result, Spec};
use crate::sys;
use fdkit::sys::socket;
use nix::errno::Errno;
use nix::libc;
use std::os::fd::OwnedFd;

pub(crate) struct Icmp;

fn protocol(spec: &Spec) -> i32 {
    if spec.has("v6") { libc::IPPROTO_ICMPV6 } else { libc::IPPROTO_ICMP }
}

impl Fixture for Icmp {
    const NAME: &'static str = "icmp";
    const ABOUT: &'static str = "a ping socket, where ping_group_range has this group";
    const KEYS: &'static [(&'static str, &'static str)] = &[
        V6,
        HOST,
        SET,
        BYTES,
        JOIN,
        ("bound", "to the host, with an identifier of the kernel's choice"),
        ("connected", "to the host"),
    ];
    const DIFFERENCES: &'static [Difference] =
        &[("icmp@3:connected", "icmp@3", "connected is true")];

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        inet::lone(spec, libc::SOCK_DGRAM, protocol(spec))
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let fd = inet::at(spec, 0, libc::SOCK_DGRAM, protocol(spec), bad)?;
        inet::same_as_noted(spec, 0, fd, bad)?;
        // Echo request is 8, or 128 of ICMPv6; the kernel fills identifier and checksum.
        let request = [if spec.has("v6") { 128 } else { 8 }, 0, 0, 0, 0, 0, 0, 7, b'h', b'i'];
        let connected = inet::sends(fd, &request)?;
        bad.same("connected", connected, spec.has("connected"));
        if !connected {
            let to = inet::host(spec, 0).map_err(|_| Errno::EINVAL)?;
            socket::send_to(fd, &request, &inet::encode(to))?;
        }
        bad.same("an answer comes", sys::becomes_readable(fd, 5000)?, true);
        let mut answer = [0; 64];
        let len = nix::unistd::read(fd, &mut answer)?;
        bad.same_bytes("the answer", &answer[6..len], &request[6..]);
        Ok(())
    }
}
