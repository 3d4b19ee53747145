//! Arguments of any bytes, though argh takes only UTF-8.

use crate::text::escape;
use argh::FromArgValue;
use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::fmt::{self, Display, Write as _};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// What stands before the hex of a word that argh could not carry.
const MARK: char = '\x01';

thread_local! {
    /// Protected words that no [`Arg`] has taken yet: another type may have taken the hex for text.
    pub(super) static PROTECTED: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// A word as argh can carry it: itself, or if it is not UTF-8 (or looks like a mark) its hex.
pub(super) fn protect(word: &[u8]) -> String {
    if let Ok(text) = std::str::from_utf8(word) {
        if !raw(text) {
            return text.to_owned();
        }
    }
    let mut hex = String::with_capacity(1 + 2 * word.len());
    hex.push(MARK);
    for byte in word {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// Whether a word is a protected one.
pub(super) fn raw(word: &str) -> bool {
    word.starts_with(MARK)
}

/// The bytes that the user typed.
pub(super) fn unprotect(word: &str) -> Vec<u8> {
    let digit = |hex: u8| char::from(hex).to_digit(16).map(|digit| digit as u8);
    let byte = |pair: &[u8]| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?);
    let bytes =
        word.strip_prefix(MARK).and_then(|hex| hex.as_bytes().chunks(2).map(byte).collect());
    bytes.unwrap_or_else(|| word.as_bytes().to_vec())
}

/// A word in quotes, safe to show.
pub(super) fn quoted(word: &str) -> String {
    format!("'{}'", escape(&unprotect(word)))
}

/// Why a protected word cannot be the value of any type but [`Arg`].
pub(super) fn why_raw(word: &str) -> &'static str {
    match std::str::from_utf8(&unprotect(word)) {
        Ok(_) => "begins with a control character",
        Err(_) => "not UTF-8",
    }
}

/// An argument as the user typed it, any bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Arg(pub(super) OsString);

impl Arg {
    /// The argument as the system takes it.
    pub fn as_os_str(&self) -> &OsStr {
        &self.0
    }

    /// The argument as the name of a file.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// Whether it is `-`, which stands for stdin or stdout.
    pub fn is_dash(&self) -> bool {
        self.0 == "-"
    }
}

impl From<OsString> for Arg {
    fn from(word: OsString) -> Arg {
        Arg(word)
    }
}

/// Shown as [`escape`] does.
impl Display for Arg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&escape(self.0.as_bytes()))
    }
}

/// It never fails. A type that needs all bytes of an argument is built on this one.
impl FromArgValue for Arg {
    fn from_arg_value(value: &str) -> std::result::Result<Arg, String> {
        if raw(value) {
            PROTECTED.with_borrow_mut(|untaken| {
                if let Some(at) = untaken.iter().position(|word| word == value) {
                    untaken.swap_remove(at);
                }
            });
        }
        Ok(Arg(OsString::from_vec(unprotect(value))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_word_comes_back_from_its_protected_form(bytes in prop::collection::vec(any::<u8>(), 0..9)) {
            prop_assert_eq!(unprotect(&protect(&bytes)), bytes);
        }
    }
}
