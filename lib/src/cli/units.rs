//! Numbers as words of the command line: sizes, times, process ids, descriptors.

use super::Arg;
use crate::error::{Error, Result};
use crate::text::escape;
use std::os::fd::RawFd;
use std::time::Duration;

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

/// Parses a time in seconds: a decimal number above 0, such as 5 or 0.5, with at most nine digits
/// before and behind the point.
///
/// The error is the reason alone, as argh wants it.
pub fn seconds(s: &str) -> std::result::Result<Duration, String> {
    let (whole, fraction) = s.split_once('.').unwrap_or((s, "0"));
    let digits = |text: &str| {
        let good = (1..=9).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        good.then(|| text.parse::<u64>().unwrap_or(0))
    };
    let nanoseconds = digits(&format!("{fraction:0<9}")).filter(|_| !fraction.is_empty());
    let time = digits(whole).zip(nanoseconds);
    let time = time.map(|(whole, nanoseconds)| Duration::new(whole, nanoseconds as u32));
    let time = time.ok_or_else(|| "not a number of seconds, such as 5 or 0.5".to_owned())?;
    match time.is_zero() {
        true => Err("must be more than 0 seconds".to_owned()),
        false => Ok(time),
    }
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
    fn seconds_are_decimal_and_more_than_none() {
        for (text, milliseconds) in [("5", 5000), ("0.5", 500), ("1.250", 1250), ("0.001", 1)] {
            assert_eq!(seconds(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        assert_eq!(seconds("0.000000001"), Ok(Duration::from_nanos(1)));
        assert_eq!(seconds("999999999"), Ok(Duration::from_secs(999_999_999)));
        for text in ["0", "0.0", "000.000000000"] {
            assert_eq!(seconds(text), Err("must be more than 0 seconds".to_owned()), "{text}");
        }
        for text in [
            "",
            ".",
            "1.",
            ".5",
            "-1",
            "+1",
            "1e3",
            "inf",
            "nan",
            "5s",
            "1,5",
            "1.0000000001",
            "1000000000",
            "1.2.3",
            " 1",
        ] {
            assert!(seconds(text).unwrap_err().starts_with("not a number"), "{text}");
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
