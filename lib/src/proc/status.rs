//! The texts of /proc/PID/status and /proc/PID/limits: proc_pid_status(5), proc_pid_limits(5).

use crate::error::{At, Result};

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
