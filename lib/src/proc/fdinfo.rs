//! The text of /proc/PID/fdinfo/FD: proc_pid_fdinfo(5).

use super::locks;
use crate::image::Lock;
use nix::libc;
use std::os::fd::{AsFd, AsRawFd};

/// FD_CLOEXEC, which fdinfo shows among the flags. Of another process nothing else tells it.
pub const CLOEXEC: u32 = libc::O_CLOEXEC as u32;

/// Facts of a descriptor that fdinfo tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FdInfo {
    /// The file position.
    pub pos: i64,
    /// Access mode, status flags and [`CLOEXEC`].
    pub flags: u32,
    /// The id of the mount.
    pub mnt: i32,
    /// The number of the inode, since Linux 5.14; zero before.
    pub ino: u64,
    /// All other lines, those of locks included.
    pub rest: String,
}

impl FdInfo {
    /// Reads that of a descriptor of this process.
    pub fn of_own(fd: impl AsFd) -> std::io::Result<FdInfo> {
        let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
        Ok(FdInfo::parse(&std::fs::read(path)?))
    }

    /// Parses the text. Lines that are not understood stay in `rest`.
    pub fn parse(text: &[u8]) -> FdInfo {
        let text = String::from_utf8_lossy(text);
        let mut info = FdInfo::default();
        for line in text.lines() {
            let (key, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.trim();
            match key {
                "pos" => info.pos = value.parse().unwrap_or(0),
                "flags" => info.flags = u32::from_str_radix(value, 8).unwrap_or(0),
                "mnt_id" => info.mnt = value.parse().unwrap_or(0),
                "ino" => info.ino = value.parse().unwrap_or(0),
                _ => {
                    info.rest.push_str(line);
                    info.rest.push('\n');
                }
            }
        }
        info
    }

    /// The value of the first line with this key, without blanks around it.
    pub fn get(&self, key: &str) -> Option<&str> {
        let mut lines = self.rest.lines().filter_map(|line| line.split_once(':'));
        Some(lines.find(|(each, _)| *each == key)?.1.trim())
    }

    /// The locks held. A lock that is only waited for is not among them.
    pub fn locks(&self) -> Vec<Lock> {
        let held = |line: &str| Some(locks::parse(line.strip_prefix("lock:")?)?.lock);
        self.rest.lines().filter_map(held).collect()
    }
}

/// The value of a key in a line of fdinfo such as `tfd:  5 events:  19 data: 5  pos:0 ino:1a`.
pub fn word<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let mut words = line.split_ascii_whitespace();
    let value = words.by_ref().find_map(|word| word.strip_prefix(key)?.strip_prefix(':'))?;
    if value.is_empty() { words.next() } else { Some(value) }
}

/// The value of a key as [`word`] finds it, a number in base 16.
pub fn hex_word(line: &str, key: &str) -> Option<u64> {
    u64::from_str_radix(word(line, key)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_fdinfo_is_taken_apart() {
        let text = b"pos:\t5\nflags:\t02100001\nmnt_id:\t29\nino:\t77\n\
            lock:\t1: POSIX  ADVISORY  WRITE 27637 fe:00:10135418 10 14\n\
            lock:\t2: -> FLOCK  ADVISORY  WRITE 1 fe:00:1 0 EOF\neventfd-count:               2a\n";
        let info = FdInfo::parse(text);
        assert_eq!((info.pos, info.mnt, info.ino), (5, 29, 77));
        assert_eq!(info.flags, 0o2100001);
        assert_eq!(info.get("eventfd-count"), Some("2a"));
        let posix =
            Lock { class: "POSIX".into(), write: true, start: 10, end: Some(14), breaking: false };
        assert_eq!(info.locks(), [posix]);
    }

    #[test]
    fn a_word_is_found_by_its_key() {
        let line =
            "tfd:        5 events:       19 data:                5  pos:0 ino:1a sdev:fe00001";
        assert_eq!(
            (word(line, "tfd"), word(line, "pos"), word(line, "os")),
            (Some("5"), Some("0"), None)
        );
        assert_eq!((hex_word(line, "ino"), hex_word(line, "events")), (Some(0x1a), Some(0x19)));
        assert_eq!((word("wd:", "wd"), hex_word("ino:x", "ino")), (None, None));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_an_fdinfo(text in "((pos|flags|mnt_id|ino|lock):|[0-9: \n\t]|\\PC){0,80}", bytes: Vec<u8>) {
            for text in [text.as_bytes(), &bytes] {
                let info = FdInfo::parse(text);
                let _ = (info.locks(), info.get("ino"));
            }
        }
    }
}
