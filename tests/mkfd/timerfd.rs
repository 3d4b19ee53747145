//! timerfd_create(2): a timer that is read as a file.

use crate::driver::{Bad, Difference, Fixture, info, ready};
use crate::spec::{At, Result, Spec, Stop};
use crate::sys;
use nix::errno::Errno;
use nix::libc;
use nix::poll::PollFlags;
use nix::time::{ClockId, clock_gettime};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const NANO: u64 = 1_000_000_000;
/// The tolerance for the time of a timer, from the scan to the check.
const PATIENCE: u64 = 300 * NANO;

pub(crate) struct Timerfd;

impl Fixture for Timerfd {
    const NAME: &'static str = "timerfd";
    const ABOUT: &'static str = "a timer; times are seconds, with up to nine digits after a point";
    const KEYS: &'static [(&'static str, &'static str)] = &[
        ("clock", "realtime, monotonic (default), boottime, realtime-alarm or boottime-alarm"),
        ("at", "when it expires, by its clock: TFD_TIMER_ABSTIME; one in the past has expired"),
        ("in", "how long from now; 0.000000001 has expired"),
        ("every", "its interval"),
        ("cancel", "TFD_TIMER_CANCEL_ON_SET"),
        ("ticks", "its ticks, by TFD_IOC_SET_TICKS"),
    ];
    const DIFFERENCES: &'static [Difference] = &[
        ("timerfd@3:in=99", "timerfd@3", "time left is 9"),
        ("timerfd@3:in=900,every=5", "timerfd@3:in=900,every=5.5", "interval is 5000000000"),
        ("timerfd@3:in=900", "timerfd@3:in=1800", "time left"),
        ("timerfd@3:at=90000000", "timerfd@3:at=90000001", "time left"),
        ("timerfd@3:at=90000000", "timerfd@3:at=90000000.001", "time left"),
        ("timerfd@3:ticks=3", "timerfd@3:ticks=2", "ticks is \"3\""),
        ("timerfd@3:clock=boottime", "timerfd@3", "clock is \"7\""),
        ("timerfd@3:at=0", "timerfd@3", "flags is"),
    ];

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        let wanted = Wanted::of(spec)?;
        let fd = sys::timer(wanted.clock).at("timerfd_create, for alarms with CAP_WAKE_ALARM")?;
        let every = wanted.every;
        sys::set_timer(fd.as_fd(), wanted.flags, wanted.value, every).at("timerfd_settime")?;
        if wanted.expires_at_once() && !sys::becomes_readable(&fd, 5000).at("poll")? {
            return Err(Stop::Failed("the timer does not expire".into()));
        }
        if let Some(ticks) = spec.number("ticks")? {
            match sys::set_ticks(fd.as_fd(), ticks) {
                Err(Errno::ENOTTY) => {
                    return Err(Stop::Cannot("no CONFIG_CHECKPOINT_RESTORE".into()));
                }
                other => other.at("TFD_IOC_SET_TICKS")?,
            }
        }
        Ok(vec![fd])
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let fd = sys::at(spec.fds[0])?;
        let Ok(wanted) = Wanted::of(spec) else { return Err(Errno::EINVAL) };
        let told = |key| info(spec.fds[0], key);
        bad.same("clock", told("clockid"), wanted.clock.to_string());
        bad.same("flags", told("settime flags"), format!("0{:o}", wanted.flags));
        bad.same("ticks", told("ticks"), wanted.ticks.to_string());
        bad.same("readable", ready(fd, PollFlags::POLLIN)?, wanted.ticks > 0);
        let before = now(wanted.clock)?;
        let (left, every) = sys::timer_left(fd)?;
        let after = now(wanted.clock)?;
        bad.same("interval", every, wanted.every);
        let left_of = match wanted.next {
            None => {
                bad.same("time left", left, 0);
                None
            }
            // After the first expiration the remaining time is less than the interval.
            Some(Next::In(most)) => Some((most.saturating_sub(PATIENCE).max(1), most)),
            Some(Next::At(at)) => Some((at.saturating_sub(after), at.saturating_sub(before))),
        };
        if let Some((least, most)) = left_of {
            let says = format!("time left is {left}, was made {least} to {most}");
            bad.unless((least..=most).contains(&left), says);
        }
        if wanted.ticks > 0 {
            bad.same("a read", take(fd)?, wanted.ticks);
            bad.unless(!ready(fd, PollFlags::POLLIN)?, "readable again after a read");
        }
        if left > 0 && left < 10 * NANO {
            bad.unless(sys::becomes_readable(fd, 15_000)?, "does not expire");
            bad.same("a read once it expired", take(fd)?, 1);
            let (left, _) = sys::timer_left(fd)?;
            bad.same("goes on", left > 0, wanted.every > 0);
        }
        Ok(())
    }
}

enum Next {
    In(u64),
    At(u64),
}

/// The requested timer, in nanoseconds.
struct Wanted {
    clock: i32,
    flags: u32,
    value: u64,
    every: u64,
    /// The next expiration after it was made.
    next: Option<Next>,
    ticks: u64,
}

impl Wanted {
    fn of(spec: &Spec) -> Result<Wanted> {
        let clock = match spec.bytes("clock").unwrap_or(b"monotonic") {
            b"realtime" => libc::CLOCK_REALTIME,
            b"monotonic" => libc::CLOCK_MONOTONIC,
            b"boottime" => libc::CLOCK_BOOTTIME,
            b"realtime-alarm" => libc::CLOCK_REALTIME_ALARM,
            b"boottime-alarm" => libc::CLOCK_BOOTTIME_ALARM,
            _ => return Err(Stop::Misuse("clock: no such clock".into())),
        };
        let (at, within) = (seconds(spec, "at")?, seconds(spec, "in")?);
        let every = seconds(spec, "every")?.unwrap_or(0);
        let mut flags = if spec.has("at") { libc::TFD_TIMER_ABSTIME as u32 } else { 0 };
        if spec.has("cancel") {
            flags |= libc::TFD_TIMER_CANCEL_ON_SET as u32;
        }
        let value = at.or(within).unwrap_or(0);
        let mut wanted = Wanted { clock, flags, value, every, next: None, ticks: 0 };
        let over = wanted.expires_at_once();
        wanted.next = match (at, within) {
            _ if over => (every > 0).then_some(Next::In(every)),
            (Some(at), _) if at > 0 => Some(Next::At(at)),
            (None, Some(within)) if within > 0 => Some(Next::In(within)),
            _ => None,
        };
        wanted.ticks = spec.number("ticks")?.unwrap_or(u64::from(over));
        Ok(wanted)
    }

    fn expires_at_once(&self) -> bool {
        self.value == 1
    }
}

/// Seconds with a fraction, in nanoseconds.
fn seconds(spec: &Spec, key: &str) -> Result<Option<u64>> {
    let Some(bytes) = spec.bytes(key) else { return Ok(None) };
    let text = String::from_utf8_lossy(bytes);
    let (whole, rest) = text.split_once('.').unwrap_or((&text, ""));
    let number = (rest.len() <= 9).then(|| format!("{whole}{rest:0<9}").parse().ok()).flatten();
    let wrong = || Stop::Misuse(format!("{key}={text}: no time"));
    number.map(Some).ok_or_else(wrong)
}

/// The time of a timer's clock; alarm clocks cannot be read on every machine.
fn now(clock: i32) -> Result<u64, Errno> {
    let clock = match clock {
        libc::CLOCK_REALTIME_ALARM => libc::CLOCK_REALTIME,
        libc::CLOCK_BOOTTIME_ALARM => libc::CLOCK_BOOTTIME,
        other => other,
    };
    let now = clock_gettime(ClockId::from_raw(clock))?;
    Ok(now.tv_sec() as u64 * NANO + now.tv_nsec() as u64)
}

fn take(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut bytes = [0; 8];
    nix::unistd::read(fd, &mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}
