//! signalfd(2): signals that are read from a descriptor.

use crate::driver::{Bad, Difference, Fixture, info, ready};
use crate::spec::{At, Result, Spec, Stop};
use crate::sys;
use nix::errno::Errno;
use nix::libc;
use nix::poll::PollFlags;
use std::os::fd::OwnedFd;

/// Signals that are not sent: mkfd does not block the first ones, and the C library uses the last
/// two.
const NOT_BLOCKED: &[i32] = &[libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, 32, 33];

pub(crate) struct Signalfd;

impl Fixture for Signalfd {
    const NAME: &'static str = "signalfd";
    const ABOUT: &'static str = "signals that are read";
    const KEYS: &'static [(&'static str, &'static str)] =
        &[("signals", "their numbers, from 1 to 64, with + between them; none by default")];
    const DIFFERENCES: &'static [Difference] = &[
        ("signalfd@3:signals=10", "signalfd@3:signals=10+64", "mask is"),
        ("signalfd@3:signals=12", "signalfd@3:signals=10", "not readable after signal 10"),
    ];

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        Ok(vec![sys::signalfd(mask(spec)?).at("signalfd")?])
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let fd = sys::at(spec.fds[0])?;
        let Ok(mask) = mask(spec) else { return Err(Errno::EINVAL) };
        bad.same("mask", info(spec.fds[0], "sigmask"), format!("{mask:016x}"));
        let has = |n: &i32| mask & 1 << (n - 1) != 0;
        let safe =
            |n: &i32| !NOT_BLOCKED.contains(n) && ![libc::SIGKILL, libc::SIGSTOP].contains(n);
        bad.unless(!ready(fd, PollFlags::POLLIN)?, "readable before a signal came");
        if let Some(other) = (34..65).rev().find(|n| !has(n)) {
            sys::send_signal(other)?;
            bad.unless(!ready(fd, PollFlags::POLLIN)?, format!("readable after signal {other}"));
            sys::wait_signal(other, 0);
        }
        if let Some(signal) = (1..65).filter(safe).find(has) {
            sys::send_signal(signal)?;
            if !ready(fd, PollFlags::POLLIN)? {
                bad.say(format!("not readable after signal {signal}"));
                return Ok(());
            }
            // struct signalfd_siginfo begins with the number.
            let mut bytes = [0; 128];
            nix::unistd::read(fd, &mut bytes)?;
            bad.same("a read", i32::from(bytes[0]), signal);
        }
        Ok(())
    }
}

fn mask(spec: &Spec) -> Result<u64> {
    let text = String::from_utf8_lossy(spec.bytes("signals").unwrap_or_default());
    let mut mask = 0;
    for number in text.split('+').filter(|text| !text.is_empty()) {
        let bit = number.parse().ok().filter(|n| (1..65).contains(n));
        let bit: u32 = bit.ok_or_else(|| Stop::Misuse(format!("{number}: no signal")))?;
        mask |= 1 << (bit - 1);
    }
    Ok(mask)
}
