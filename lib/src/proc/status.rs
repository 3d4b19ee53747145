//! The texts of /proc/PID/status and /proc/PID/limits: proc_pid_status(5), proc_pid_limits(5).

use crate::error::{At, Result};
use nix::libc;

/// The capacity of this thread's descriptor table: FDSize. Fails if /proc cannot be read.
pub fn own_capacity() -> Result<u64> {
    capacity_at("/proc/thread-self/status")
}

/// The capacity of the descriptor table of a process: FDSize. Fails if there is no such process.
pub fn capacity_of(pid: i32) -> Result<u64> {
    capacity_at(&format!("/proc/{pid}/status"))
}

fn capacity_at(path: &str) -> Result<u64> {
    Ok(capacity_in(&std::fs::read(path).at(|| path.to_owned())?))
}

/// FDSize in the text of /proc/PID/status; zero if it is not there.
pub fn capacity_in(status: &[u8]) -> u64 {
    StatusText(status).words("FDSize").next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// The effective capabilities of this thread, a bit each as capabilities(7) numbers them. Zero if
/// /proc cannot be read.
pub fn own_capabilities() -> u64 {
    let text = std::fs::read("/proc/thread-self/status").unwrap_or_default();
    StatusText(&text).words("CapEff").next().map_or(0, hex)
}

/// The state of a thread that matters to its tracer: lines of /proc/PID/status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadStatus {
    /// The id of the process that it is of: Tgid.
    pub process: i32,
    /// The thread that traces it; zero if none does: TracerPid.
    pub tracer: i32,
    /// 0 without seccomp(2), 1 in strict mode, 2 with filters: Seccomp.
    pub seccomp: u8,
    /// True if a signal is pending that stops it: SIGSTOP, or SIGTSTP, SIGTTIN or SIGTTOU if that is
    /// neither blocked, nor ignored, nor caught.
    pub will_stop: bool,
}

impl ThreadStatus {
    /// Reads it. None if there is no thread with this id.
    pub fn of(thread: i32) -> Option<ThreadStatus> {
        Some(ThreadStatus::parse(&std::fs::read(format!("/proc/{thread}/status")).ok()?))
    }

    fn parse(text: &[u8]) -> ThreadStatus {
        let status = StatusText(text);
        let number = |key| status.words(key).next().map_or(0, |word| word.parse().unwrap_or(0));
        let signals = |key| status.words(key).next().map_or(0, hex);
        let stops = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
        let stops = stops.iter().fold(0, |set, signal| set | 1_u64 << (signal - 1));
        let pending = signals("SigPnd") | signals("ShdPnd");
        let kept = signals("SigBlk") | signals("SigIgn") | signals("SigCgt");
        ThreadStatus {
            process: number("Tgid"),
            tracer: number("TracerPid"),
            seccomp: number("Seccomp") as u8,
            will_stop: pending & stops & !kept != 0,
        }
    }
}

/// A number in base 16; zero if it is none.
pub(super) fn hex(word: &str) -> u64 {
    u64::from_str_radix(word, 16).unwrap_or(0)
}

/// The text of /proc/PID/status.
pub(super) struct StatusText<'a>(pub(super) &'a [u8]);

impl StatusText<'_> {
    /// The words of the line with this key; none if there is no such line.
    pub(super) fn words(&self, key: &str) -> impl Iterator<Item = &str> {
        let lines = self.0.split(|&byte| byte == b'\n');
        let mut values = lines.filter_map(|line| std::str::from_utf8(line).ok()?.split_once(':'));
        values.find(|(each, _)| *each == key).map_or("", |(_, value)| value).split_whitespace()
    }

    /// The first word of a line as a number in base 8; zero if there is none.
    pub(super) fn octal(&self, key: &str) -> u32 {
        self.words(key).next().map_or(0, |word| u32::from_str_radix(word, 8).unwrap_or(0))
    }

    /// The four ids of a line: real, effective, saved set and file system id.
    pub(super) fn four(&self, key: &str) -> [u32; 4] {
        let mut words = self.words(key).map(|word| word.parse().unwrap_or(u32::MAX));
        [(); 4].map(|()| words.next().unwrap_or(u32::MAX))
    }
}

/// Soft and hard RLIMIT_NOFILE in the text of /proc/PID/limits; RLIM_INFINITY is [`u64::MAX`].
pub(super) fn open_files(limits: &[u8]) -> Option<(u64, u64)> {
    let text = std::str::from_utf8(limits).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let mut words = line.split_whitespace().map(|word| word.parse().unwrap_or(u64::MAX));
    Some((words.next()?, words.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_may_be_unlimited() {
        let text =
            b"Limit  Soft Limit  Hard Limit  Units\nMax open files  20000  unlimited  files\n";
        assert_eq!(open_files(text), Some((20000, u64::MAX)));
        assert_eq!(open_files(b"Max cpu time  unlimited  unlimited  seconds\n"), None);
    }

    #[test]
    fn a_pending_stop_signal_counts_unless_it_is_blocked_ignored_or_caught() {
        let text = |pending: &str, blocked: &str, ignored: &str, caught: &str| {
            let text = format!(
                "Tgid:\t7\nTracerPid:\t12\nSigPnd:\t{pending}\nShdPnd:\t0\nSigBlk:\t{blocked}\n\
                 SigIgn:\t{ignored}\nSigCgt:\t{caught}\nSeccomp:\t2\n"
            );
            ThreadStatus::parse(text.as_bytes())
        };
        let none = "0000000000000000";
        // SIGTSTP is signal 20, SIGCHLD 17.
        let (stop, child) = ("0000000000080000", "0000000000010000");
        let status = text(stop, none, none, none);
        assert_eq!(status, ThreadStatus { process: 7, tracer: 12, seccomp: 2, will_stop: true });
        for status in [
            text(child, none, none, none),
            text(stop, stop, none, none),
            text(stop, none, stop, none),
            text(stop, none, none, stop),
            text(none, none, none, none),
        ] {
            assert!(!status.will_stop);
        }
        let shared = ThreadStatus::parse(format!("ShdPnd:\t{stop}\n").as_bytes());
        assert_eq!(shared, ThreadStatus { process: 0, tracer: 0, seccomp: 0, will_stop: true });
    }

    #[test]
    fn a_line_is_found_by_its_key() {
        let text =
            b"Name:\ta: b\nUmask:\t0027\nUid:\t1\t2\t3\nGroups:\t\nCapEff:\t00000000000000ff\n";
        let status = StatusText(text);
        assert_eq!((status.octal("Umask"), status.octal("Gid")), (0o27, 0));
        assert_eq!(status.four("Uid"), [1, 2, 3, u32::MAX]);
        assert_eq!(status.words("Groups").next(), None);
        assert_eq!(status.words("CapEff").next().map(hex), Some(0xff));
        assert_eq!(status.words("Nam").next(), None);
    }
}
