//! timerfd_create(2): a timer that reports expirations by read(2). fdinfo shows all of it, except
//! the time of an absolute timer: the value shown is always relative to now.

use crate::error::{At, Error, Result};
use crate::image::OpenFile;
use crate::kind::Kind;
use crate::kind::context::{Opened, RestoreContext};
use crate::operation::Outcome;
use crate::proc::{Descriptor, FdInfo};
use crate::sys::timer;
use nix::errno::Errno;
use nix::libc;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, RawFd};

const NANOS_PER_SECOND: u64 = 1_000_000_000;
const ABSTIME: u32 = libc::TFD_TIMER_ABSTIME as u32;
const CANCEL_ON_SET: u32 = libc::TFD_TIMER_CANCEL_ON_SET as u32;
const NONBLOCK: u32 = libc::O_NONBLOCK as u32;

/// A time as seconds and nanoseconds, as in struct timespec.
type Time = (u64, u32);

/// The record of a timerfd.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Timerfd {
    /// The clock: CLOCK_REALTIME 0, MONOTONIC 1, BOOTTIME 7, REALTIME_ALARM 8 or BOOTTIME_ALARM 9.
    clock: i32,
    /// The flags of the last timerfd_settime(2): TFD_TIMER_ABSTIME 1, TFD_TIMER_CANCEL_ON_SET 2.
    flags: u32,
    /// The number of expirations since the last read(2).
    ticks: u64,
    /// The time from now to the next expiration; zero if the timer is disarmed.
    value: Time,
    /// The interval between further expirations; zero if there are none.
    interval: Time,
    /// The time of the clock when `value` was read: an absolute timer expires at their sum.
    now: Time,
}

/// A time in nanoseconds. None if it exceeds ktime_t, the 63 bits of which the kernel has for it.
fn nanoseconds((seconds, rest): Time) -> Option<u64> {
    let whole = seconds.checked_mul(NANOS_PER_SECOND)?.checked_add(rest.into())?;
    (u64::from(rest) < NANOS_PER_SECOND && whole <= i64::MAX as u64).then_some(whole)
}

fn time(nanoseconds: u64) -> Time {
    (nanoseconds / NANOS_PER_SECOND, (nanoseconds % NANOS_PER_SECOND) as u32)
}

/// The number from `low` to `high` with the most trailing zeroes.
///
/// The time of an absolute timer is known only to be between two bounds; a program usually sets a
/// whole second, millisecond or microsecond.
fn roundest(low: u64, high: u64) -> u64 {
    let steps = (0..20).rev().map(|digits| 10_u64.pow(digits));
    let mut last = steps.map(|step| high / step * step);
    last.find(|&number| number >= low).unwrap_or(high)
}

/// The next expiration and the number of expirations of a timer at the time `now`, if `next` was
/// its next expiration, and `ticks` their number, when it was scanned. All times in nanoseconds.
fn add_missed_ticks(next: u64, interval: u64, ticks: u64, now: u64) -> (Option<u64>, u64) {
    if next > now {
        return (Some(next), ticks);
    }
    let missed = 1 + (now - next).checked_div(interval).unwrap_or(0);
    let next = (interval > 0).then(|| next.saturating_add(missed.saturating_mul(interval)));
    (next, ticks.saturating_add(missed))
}

/// The time of a clock, in nanoseconds. clock_gettime(2) fails for an alarm clock if there is no
/// RTC that can wake the machine; its time is that of the clock without the alarm.
fn clock_time(clock: i32) -> Result<u64> {
    let clock = ClockId::from_raw(match clock {
        libc::CLOCK_REALTIME_ALARM => libc::CLOCK_REALTIME,
        libc::CLOCK_BOOTTIME_ALARM => libc::CLOCK_BOOTTIME,
        other => other,
    });
    let now = clock_gettime(clock).at(|| "clock_gettime")?;
    let now = (u64::try_from(now.tv_sec()).ok(), u32::try_from(now.tv_nsec()).ok());
    let now = now.0.zip(now.1).and_then(nanoseconds);
    now.ok_or_else(|| Error::unrestorable("the clock is before 1970"))
}

fn parse(info: &FdInfo) -> Option<Timerfd> {
    let pair = |key| -> Option<Time> {
        let text = info.get(key)?.strip_prefix('(')?.strip_suffix(')')?;
        let (seconds, rest) = text.split_once(", ")?;
        Some((seconds.parse().ok()?, rest.parse().ok()?))
    };
    Some(Timerfd {
        clock: info.get("clockid")?.parse().ok()?,
        flags: u32::from_str_radix(info.get("settime flags")?, 8).ok()?,
        ticks: info.get("ticks")?.parse().ok()?,
        value: pair("it_value")?,
        interval: pair("it_interval")?,
        now: (0, 0),
    })
}

impl Timerfd {
    /// Reads the timer from the fdinfo now.
    fn read_fdinfo(descriptor: &Descriptor<'_>) -> Result<Timerfd> {
        parse(&descriptor.info_now()?).ok_or_else(|| Error::unrestorable("fdinfo is not a timer's"))
    }

    /// Reports whether it is a periodic timer that has expired, and was not read or queried since.
    /// The kernel restarts its hrtimer only then (fs/timerfd.c), so fdinfo shows no next
    /// expiration.
    fn awaits_restart(&self) -> bool {
        self.ticks > 0 && self.value == (0, 0) && self.interval != (0, 0)
    }

    /// Reports whether the clock was set while the timer had TFD_TIMER_CANCEL_ON_SET: the next
    /// read(2) fails with ECANCELED.
    fn is_cancelled(&self) -> bool {
        let both = ABSTIME | CANCEL_ON_SET;
        let once = self.interval == (0, 0) && self.value != (0, 0);
        self.flags & both == both && self.ticks > 0 && once
    }

    /// The time of its next expiration by its clock, whose time is `now`, in nanoseconds; none if
    /// the timer is disarmed. `same_clock` says that the clock is the one of the scan.
    fn next_expiration(&self, now: u64, same_clock: bool) -> Option<u64> {
        let wait = match self.awaits_restart() {
            true => self.interval,
            false => self.value,
        };
        let wait = nanoseconds(wait).filter(|&wait| wait > 0)?;
        let from = match self.flags & ABSTIME != 0 && same_clock && !self.awaits_restart() {
            true => nanoseconds(self.now)?,
            false => now,
        };
        Some(from.saturating_add(wait))
    }
}

impl Kind for Timerfd {
    const NAME: &'static str = "timerfd";

    fn claims(descriptor: &Descriptor<'_>) -> bool {
        descriptor.link.0 == b"anon_inode:[timerfd]" && !descriptor.is_path()
    }

    fn capture(descriptor: &Descriptor<'_>) -> Result<Self> {
        let mut timer = Timerfd::read_fdinfo(descriptor)?;
        if let (true, Some(copy)) = (timer.awaits_restart(), &descriptor.copy) {
            // This counts the missed expirations and restarts the timer, as a read(2) would, but
            // leaves the number of expirations to be read.
            timer::get(copy.as_fd()).at(|| "timerfd_gettime")?;
            timer = Timerfd::read_fdinfo(descriptor)?;
        }
        let mut least = u64::MAX;
        for _ in 0..4 {
            let before = clock_time(timer.clock)?;
            let again = Timerfd::read_fdinfo(descriptor)?;
            let after = clock_time(timer.clock)?;
            let wait = nanoseconds(again.value).unwrap_or(0);
            let spent = after.saturating_sub(before);
            if spent < least {
                least = spent;
                let next = roundest(before + wait, after.max(before) + wait);
                timer = Timerfd { now: time(next - wait), ..again };
            }
            if timer.flags & ABSTIME == 0 || wait == 0 {
                break;
            }
        }
        Ok(timer)
    }

    fn validate(&self, _: &OpenFile) -> Result<()> {
        let times = [self.value, self.interval, self.now];
        match times.into_iter().any(|time| nanoseconds(time).is_none()) {
            true => Err(Error::malformed(
                "one of its times has 10^9 nanoseconds or more, or exceeds 2^63-1 nanoseconds",
            )),
            false => Ok(()),
        }
    }

    fn check(&self, file: &OpenFile, _: &RestoreContext<'_>) -> Result<()> {
        if self.flags & !(ABSTIME | CANCEL_ON_SET) != 0 {
            return Err(Error::unrestorable(format!(
                "this version does not know its flags {:#o}",
                self.flags
            )));
        }
        let clock = self.clock;
        match timer::create(clock, file.flags & NONBLOCK != 0) {
            Err(Errno::EPERM) => Err(Error::unrestorable(format!(
                "a timer of alarm clock {clock} takes CAP_WAKE_ALARM"
            ))),
            Err(Errno::EINVAL) => {
                Err(Error::unrestorable(format!("this kernel has no timers of clock {clock}")))
            }
            other => other.at(|| "timerfd_create").map(drop),
        }
    }

    fn restore(&self, file: &OpenFile, _: &mut RestoreContext<'_>) -> Result<Opened> {
        let nonblock = file.flags & NONBLOCK;
        let fd = timer::create(self.clock, nonblock != 0).at(|| "timerfd_create")?;
        Ok(Opened::new(fd, nonblock))
    }

    fn finish_text(&self) -> Option<&'static str> {
        Some("set the timer")
    }

    fn finish(
        &self,
        file: &OpenFile,
        number: RawFd,
        fd: BorrowedFd<'_>,
        _: &Outcome,
        cx: &mut RestoreContext<'_>,
    ) -> Result<()> {
        let Timerfd { clock, flags, ticks, value: _, interval, now: _ } = *self;
        let real_time = matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM);
        let same_clock = real_time || cx.is_same_boot();
        let mut warn = |why: &str| {
            let name = crate::text::escape(&file.link.0).into_owned();
            cx.warnings.push(format!("fd {} ({name}): {why}", number));
        };
        if self.awaits_restart() {
            warn(
                "the time of its next expiration is not recorded: it expires an interval from now",
            );
        }
        if self.is_cancelled() {
            warn("its clock was set before the scan: a read gives expirations, not ECANCELED");
        }
        let interval = nanoseconds(interval).unwrap_or(0);
        let begin = clock_time(clock)?;
        let next = self.next_expiration(begin, same_clock);
        // TFD_IOC_SET_TICKS would overwrite an expiration after timerfd_settime(2): then both are
        // repeated.
        for _ in 0..4 {
            let now = clock_time(clock)?;
            let (next, ticks) = match next {
                Some(next) if ticks > 0 => add_missed_ticks(next, interval, ticks, now),
                other => (other, ticks),
            };
            let value = match next {
                Some(next) if flags & ABSTIME == 0 => next.saturating_sub(now).max(1),
                Some(next) => next,
                None => 0,
            };
            timer::set(fd, flags, value, interval).at(|| "timerfd_settime")?;
            if ticks == 0 {
                break;
            }
            match timer::set_ticks(fd, ticks) {
                Err(Errno::ENOTTY) => {
                    let why =
                        "unread expirations are lost: the kernel lacks CONFIG_CHECKPOINT_RESTORE";
                    warn(&format!("its {ticks} {why}"));
                    break;
                }
                other => other.at(|| "TFD_IOC_SET_TICKS")?,
            }
            if next.is_none_or(|next| next > clock_time(clock).unwrap_or(0)) {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn timer(flags: u32, ticks: u64, value: Time, interval: Time) -> Timerfd {
        Timerfd { clock: 1, flags, ticks, value, interval, now: (1000, 5) }
    }

    #[test]
    fn fdinfo_is_parsed() {
        let text = b"pos:\t0\nflags:\t02\nclockid: 7\nticks: 42\nsettime flags: 03\n\
            it_value: (99, 624073351)\nit_interval: (3, 5)\n";
        let wanted = Timerfd {
            clock: 7,
            flags: 3,
            ticks: 42,
            value: (99, 624_073_351),
            interval: (3, 5),
            now: (0, 0),
        };
        assert_eq!(parse(&FdInfo::parse(text)), Some(wanted));
        assert_eq!(parse(&FdInfo::parse(b"clockid: 7\n")), None);
    }

    #[test]
    fn an_absolute_timer_keeps_its_time_and_a_relative_one_its_remaining_time() {
        let later = 5000 * NANOS_PER_SECOND;
        let next =
            |flags, same| timer(flags, 0, (10, 7), (0, 0)).next_expiration(later, same).map(time);
        assert_eq!(next(ABSTIME, true), Some((1010, 12)));
        assert_eq!(next(ABSTIME, false), Some((5010, 7)));
        assert_eq!(next(0, true), Some((5010, 7)));
    }

    #[test]
    fn a_disarmed_timer_stays_disarmed() {
        for (flags, ticks, interval) in [(0, 0, (0, 0)), (ABSTIME, 1, (0, 0)), (ABSTIME, 0, (3, 0))]
        {
            assert_eq!(timer(flags, ticks, (0, 0), interval).next_expiration(9, true), None);
        }
    }

    #[test]
    fn an_expiration_before_the_restore_is_counted_once() {
        assert_eq!(add_missed_ticks(100, 0, 2, 99), (Some(100), 2));
        assert_eq!(add_missed_ticks(100, 0, 2, 100), (None, 3));
        assert_eq!(add_missed_ticks(100, 10, 2, 100), (Some(110), 3));
        assert_eq!(add_missed_ticks(100, 10, 2, 129), (Some(130), 5));
    }

    #[test]
    fn the_roundest_time_between_two_bounds_is_found() {
        assert_eq!(roundest(1_999_999_990, 2_000_000_007), 2 * NANOS_PER_SECOND);
        assert_eq!(roundest(1_234_567_001, 1_234_568_999), 1_234_568_000);
        assert_eq!(roundest(7, 7), 7);
        assert_eq!(roundest(0, u64::MAX), 10_u64.pow(19));
    }

    proptest! {
        #[test]
        fn the_roundest_is_between_the_bounds_and_has_the_most_trailing_zeroes(
            low in 1..u64::MAX / 2, more in 0_u64..5000
        ) {
            let high = low + more;
            let found = roundest(low, high);
            prop_assert!((low..=high).contains(&found));
            let zeroes = |n: u64| (1..20).take_while(|&d| n % 10_u64.pow(d) == 0).count();
            prop_assert!((low..=high).all(|n| zeroes(n) <= zeroes(found)));
        }

        #[test]
        fn missed_ticks_are_counted_exactly(
            next in 1..i64::MAX as u64, interval in 0..i64::MAX as u64,
            ticks in 0..u64::MAX, now in 0..i64::MAX as u64
        ) {
            let (then, have) = add_missed_ticks(next, interval, ticks, now);
            prop_assert!(then.is_none_or(|then| then > now));
            match then {
                Some(then) => {
                    let missed = u128::from(then - next).checked_div(interval.into()).unwrap_or(0);
                    let all = u128::from(ticks) + missed;
                    prop_assert_eq!(u128::from(have), all.min(u64::MAX.into()));
                    prop_assert!(then - next <= now.saturating_sub(next) + interval);
                }
                None => prop_assert_eq!(have, ticks + 1),
            }
        }

        #[test]
        fn a_time_survives_the_conversion_to_nanoseconds(whole in 0..=i64::MAX as u64) {
            prop_assert_eq!(nanoseconds(time(whole)), Some(whole));
        }

        #[test]
        fn no_record_makes_the_arithmetic_panic(
            clock in any::<i32>(), flags in any::<u32>(), ticks in any::<u64>(),
            value in any::<Time>(), interval in any::<Time>(), now in any::<Time>(),
            clock_now in any::<u64>(), same in any::<bool>()
        ) {
            let it = Timerfd { clock, flags, ticks, value, interval, now };
            if let Some(next) = it.next_expiration(clock_now, same) {
                add_missed_ticks(next, nanoseconds(interval).unwrap_or(0), ticks, clock_now);
            }
        }
    }
}
