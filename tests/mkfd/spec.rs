//! `NAME@FD[,FD...][:KEY[=VALUE][,...]]`: what to make, and at which numbers.

use nix::errno::Errno;
use std::fmt::Display;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Why mkfd stops.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The command line is wrong.
    Misuse(String),
    /// This kernel or machine cannot make it: status 77.
    Cannot(String),
    /// A call failed that should succeed: status 1.
    Failed(String),
}

pub(crate) type Result<T, E = Stop> = std::result::Result<T, E>;

/// `.at("what was done")` on a failed call.
pub(crate) trait At<T> {
    fn at(self, doing: impl Display) -> Result<T>;
}

impl<T> At<T> for std::result::Result<T, Errno> {
    fn at(self, doing: impl Display) -> Result<T> {
        self.map_err(|errno| {
            let text = format!("{doing}: {}", errno.desc());
            match errno {
                Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EPERM => Stop::Cannot(text),
                _ => Stop::Failed(text),
            }
        })
    }
}

impl<T> At<T> for std::io::Result<T> {
    fn at(self, doing: impl Display) -> Result<T> {
        self.map_err(|err| match err.raw_os_error() {
            Some(raw) => Err::<T, _>(Errno::from_raw(raw)).at(doing).err().expect("an error"),
            None => Stop::Failed(format!("{doing}: {err}")),
        })
    }
}

/// One SPEC of the command line.
#[derive(Debug)]
pub(crate) struct Spec {
    /// The fixture kind.
    pub(crate) name: String,
    /// The numbers, in the order of the command line.
    pub(crate) fds: Vec<RawFd>,
    keys: Vec<(String, Option<Vec<u8>>)>,
    dir: Option<PathBuf>,
}

impl Spec {
    /// Parses a SPEC. `%HH` in a value stands for a byte, so a value can contain any byte.
    pub(crate) fn parse(text: &[u8], dir: Option<PathBuf>) -> Result<Spec> {
        let shown = String::from_utf8_lossy(text).into_owned();
        let wrong = |why: &str| Stop::Misuse(format!("{shown}: {why}"));
        let at = text.iter().position(|&b| b == b'@').ok_or_else(|| wrong("NAME@FD expected"))?;
        let (name, rest) = (&text[..at], &text[at + 1..]);
        let (numbers, keys) = match rest.iter().position(|&b| b == b':') {
            Some(colon) => (&rest[..colon], &rest[colon + 1..]),
            None => (rest, &b""[..]),
        };
        let utf8 = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| wrong("not UTF-8"));
        let fds = utf8(numbers)?
            .split(',')
            .map(|n| n.parse().ok().filter(|&n: &RawFd| n >= 0).ok_or_else(|| wrong("bad number")))
            .collect::<Result<Vec<_>>>()?;
        let mut pairs = Vec::new();
        for pair in keys.split(|&b| b == b',').filter(|pair| !pair.is_empty()) {
            let (key, value) = match pair.iter().position(|&b| b == b'=') {
                Some(eq) => (&pair[..eq], Some(&pair[eq + 1..])),
                None => (pair, None),
            };
            let value = value.map(unescape).transpose().map_err(|()| wrong("bad %HH"))?;
            pairs.push((utf8(key)?, value));
        }
        Ok(Spec { name: utf8(name)?, fds, keys: pairs, dir })
    }

    /// The names of the keys that were given.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|(key, _)| key.as_str())
    }

    /// Reports whether this key was given.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.keys().any(|k| k == key)
    }

    /// The bytes given to a key.
    pub(crate) fn bytes(&self, key: &str) -> Option<&[u8]> {
        self.keys.iter().find(|(k, _)| k == key).and_then(|(_, value)| value.as_deref())
    }

    /// The number given to a key, also as 0x….
    pub(crate) fn number(&self, key: &str) -> Result<Option<u64>> {
        let Some(bytes) = self.bytes(key) else { return Ok(None) };
        let text = String::from_utf8_lossy(bytes);
        let number = match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => text.parse(),
        };
        number.map(Some).map_err(|_| Stop::Misuse(format!("{key}={text}: not a number")))
    }

    /// As `number`, for a key that was checked before.
    pub(crate) fn known_number(&self, key: &str) -> Option<u64> {
        self.number(key).ok().flatten()
    }

    /// Reports whether this key applies to the nth description: `key` alone means all of them,
    /// `key=N` the nth.
    pub(crate) fn applies(&self, key: &str, nth: usize) -> bool {
        self.has(key) && self.known_number(key).is_none_or(|n| n == nth as u64)
    }

    /// The directory given by --dir.
    pub(crate) fn dir(&self) -> Result<PathBuf> {
        self.dir.clone().ok_or_else(|| Stop::Misuse(format!("{}: --dir is needed", self.name)))
    }

    /// The path given by `path=`, or one below --dir that is the same for make and check.
    pub(crate) fn path(&self) -> Result<PathBuf> {
        match self.bytes("path") {
            Some(path) => Ok(std::ffi::OsString::from_vec(path.to_vec()).into()),
            None => Ok(self.dir()?.join(format!("{}.{}", self.name, self.fds[0]))),
        }
    }

    /// `data=`: bytes, or `data=@N` for N bytes of a pattern that never repeats by blocks.
    pub(crate) fn data(&self) -> Option<Vec<u8>> {
        let bytes = self.bytes("data")?;
        match bytes.strip_prefix(b"@").map(|n| String::from_utf8_lossy(n).parse()) {
            Some(Ok(n)) => Some(pattern(n)),
            _ => Some(bytes.to_vec()),
        }
    }
}

/// N bytes that differ from block to block.
pub(crate) fn pattern(n: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..n).map(step).collect()
}

fn unescape(text: &[u8]) -> std::result::Result<Vec<u8>, ()> {
    let mut out = Vec::new();
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|&b| (b as char).to_digit(16)).ok_or(());
        out.push((digit()? * 16 + digit()?) as u8);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Spec {
        Spec::parse(text.as_bytes(), None).unwrap()
    }

    #[test]
    fn a_spec_has_a_name_numbers_and_keys() {
        let spec = parsed("pipe@4,5:data=hello,size=131072,packet");
        assert_eq!((spec.name.as_str(), spec.fds.as_slice()), ("pipe", &[4, 5][..]));
        assert_eq!(spec.data().unwrap(), b"hello");
        assert_eq!(spec.number("size").unwrap(), Some(131072));
        assert!(spec.has("packet") && !spec.has("two"));
    }

    #[test]
    fn a_value_holds_any_byte() {
        assert_eq!(parsed("regular@3:data=a%2cb%00%ff").data().unwrap(), b"a,b\0\xff");
    }

    #[test]
    fn a_key_applies_to_all_descriptions_or_to_the_one_it_names() {
        let spec = parsed("pipe@4,5:nonblock=1,async");
        assert_eq!([0, 1].map(|n| spec.applies("nonblock", n)), [false, true]);
        assert_eq!([0, 1].map(|n| spec.applies("async", n)), [true, true]);
    }

    #[test]
    fn a_spec_that_cannot_be_read_is_refused() {
        for bad in ["pipe", "pipe@", "pipe@x", "pipe@-1", "pipe@3:data=%f"] {
            assert!(Spec::parse(bad.as_bytes(), None).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pattern_differs_from_page_to_page() {
        let bytes = pattern(8192);
        assert_ne!(bytes[..4096], bytes[4096..]);
    }
}
