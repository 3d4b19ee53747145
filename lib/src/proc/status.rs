//! /proc/PID/status and /proc/PID/limits.

use crate::error::{At, Result};

/// FDSize of this thread's table.
pub fn own_capacity() -> Result<u64> {
    capacity_at("/proc/thread-self/status")
}

/// FDSize of a process.
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

/// The effective capabilities of this thread, a bit each: capabilities(7).
pub fn own_capabilities() -> u64 {
    let text = std::fs::read("/proc/thread-self/status").unwrap_or_default();
    StatusText(&text).words("CapEff").next().map_or(0, hex)
}

pub(super) fn hex(word: &str) -> u64 {
    u64::from_str_radix(word, 16).unwrap_or(0)
}

pub(super) struct StatusText<'a>(pub(super) &'a [u8]);

impl StatusText<'_> {
    pub(super) fn words(&self, key: &str) -> impl Iterator<Item = &str> {
        let lines = self.0.split(|&byte| byte == b'\n');
        let mut values = lines.filter_map(|line| std::str::from_utf8(line).ok()?.split_once(':'));
        values.find(|(each, _)| *each == key).map_or("", |(_, value)| value).split_whitespace()
    }

    pub(super) fn octal(&self, key: &str) -> u32 {
        self.words(key).next().map_or(0, |word| u32::from_str_radix(word, 8).unwrap_or(0))
    }

    pub(super) fn four(&self, key: &str) -> [u32; 4] {
        let mut words = self.words(key).map(|word| word.parse().unwrap_or(u32::MAX));
        [(); 4].map(|()| words.next().unwrap_or(u32::MAX))
    }
}

/// Soft and hard limit of open files in /proc/PID/limits.
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
    }
}
