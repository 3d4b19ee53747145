//! Numbers as words of the command line: sizes, process ids, descriptors.

use super::Arg;
use crate::error::{Error, Result};
use crate::text::escape;
use std::os::fd::RawFd;

/// Parses a size in bytes: a number, with K, M, G or T for powers of 1024 (lower case too), and `B`
/// or `iB` behind that or not.
///
/// The error is the reason alone, as argh wants it: not a size, or more than 64 bits.
pub fn size(s: &str) -> std::result::Result<u64, String> {
    let end = s.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(s.len());
    let (number, unit) = s.split_at(end);
    let mut unit = unit.to_ascii_lowercase();
    if unit.ends_with('b') {
        unit.pop();
        if unit.len() > 1 && unit.ends_with('i') {
            unit.pop();
        }
    }
    let shift = match unit.as_str() {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err("not a size, such as 64, 16K or 1M".to_owned()),
    };
    if number.is_empty() {
        return Err("not a size, such as 64, 16K or 1M".to_owned());
    }
    let number = number.parse::<u64>().ok();
    number.and_then(|n| n.checked_mul(1 << shift)).ok_or_else(|| "too large a size".to_owned())
}

/// Parses a process id. Fails with [`crate::error::Status::Misuse`] on anything but 1 to 2^31 - 1.
pub fn pid(word: &Arg) -> Result<i32> {
    let number = word.as_os_str().to_str().and_then(|text| text.parse().ok());
    let number = number.filter(|&pid: &i32| pid > 0);
    number.ok_or_else(|| Error::misuse(format!("'{word}' is not a process id")))
}

/// Parses the number of a descriptor. Fails with [`crate::error::Status::Misuse`] on anything but 0
/// to 2^31 - 1.
pub fn fd(word: &[u8]) -> Result<RawFd> {
    let number = std::str::from_utf8(word).ok().and_then(|text| text.parse().ok());
    let number = number.filter(|&fd: &RawFd| fd >= 0);
    number.ok_or_else(|| Error::misuse(format!("'{}' is not a descriptor number", escape(word))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_counted_by_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("64", 64),
            ("64B", 64),
            ("16K", 16 << 10),
            ("16kib", 16 << 10),
            ("1MB", 1 << 20),
            ("2g", 2 << 30),
            ("1TiB", 1 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "K", "B", "-1", "+1", "1.5M", " 1", "1 K", "64iB", "1KK", "1KiBB", "1P", "1é"]
        {
            assert!(size(text).unwrap_err().starts_with("not a size"), "{text}");
        }
        for text in ["18446744073709551616", "18014398509481984K", "99999999999T"] {
            assert_eq!(size(text), Err("too large a size".to_owned()), "{text}");
        }
    }

    #[test]
    fn a_process_id_is_positive_and_a_descriptor_is_not_negative() {
        let arg = |word: &str| Arg::from(std::ffi::OsString::from(word));
        assert_eq!(pid(&arg("4711")), Ok(4711));
        for word in ["0", "-1", "x", "", "2147483648"] {
            let why = pid(&arg(word)).unwrap_err();
            assert_eq!(why, Error::misuse(format!("'{word}' is not a process id")));
        }
        assert_eq!((fd(b"0"), fd(b"300")), (Ok(0), Ok(300)));
        for word in [&b"-1"[..], b"", b"3,4", b"\xff", b"2147483648"] {
            let why = fd(word).unwrap_err().to_string();
            assert_eq!(why, format!("'{}' is not a descriptor number", escape(word)));
        }
    }
}
