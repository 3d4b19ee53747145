//! Arguments of any bytes, though argh takes only UTF-8.
//!
//! A word that argh cannot carry is *protected*: replaced by a mark and its bytes in hex, which
//! [`Arg`] undoes. Any other type would take the hex for the word; so protected words are recorded
//! while argh runs, and one that no [`Arg`] has taken is a misuse.

use crate::text::escape;
use argh::FromArgValue;
use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::fmt::{self, Display, Write as _};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// The first character of a protected word.
const MARK: char = '\x01';

thread_local! {
    /// The protected words that no [`Arg`] has taken yet.
    static NOT_TAKEN: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// A record of protected words while argh parses them.
pub(super) struct Protected(());

impl Protected {
    /// Begins the record with those of these words that are protected.
    pub(super) fn expect<'w>(words: impl Iterator<Item = &'w String>) -> Protected {
        NOT_TAKEN.set(words.filter(|word| is_protected(word)).cloned().collect());
        Protected(())
    }

    /// Ends the record: the protected words that no [`Arg`] has taken.
    pub(super) fn not_taken(self) -> Vec<String> {
        NOT_TAKEN.take()
    }
}

/// A word as argh can carry it: itself if it is UTF-8 and begins with no mark, else protected.
pub(super) fn protect(word: &[u8]) -> String {
    if let Ok(text) = std::str::from_utf8(word) {
        if !is_protected(text) {
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

fn is_protected(word: &str) -> bool {
    word.starts_with(MARK)
}

/// The bytes that the user typed, protected or not.
fn unprotect(word: &str) -> Vec<u8> {
    let digit = |hex: u8| char::from(hex).to_digit(16).map(|digit| digit as u8);
    let byte = |pair: &[u8]| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?);
    let bytes =
        word.strip_prefix(MARK).and_then(|hex| hex.as_bytes().chunks(2).map(byte).collect());
    bytes.unwrap_or_else(|| word.as_bytes().to_vec())
}

/// A word, protected or not, in quotes and safe to show.
pub(super) fn quoted(word: &str) -> String {
    format!("'{}'", escape(&unprotect(word)))
}

/// The reason why a protected word is no value of any type but [`Arg`].
pub(super) fn why_protected(word: &str) -> &'static str {
    match std::str::from_utf8(&unprotect(word)) {
        Ok(_) => "begins with a control character",
        Err(_) => "not UTF-8",
    }
}

/// An argument as the user typed it, of any bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Arg(OsString);

impl Arg {
    /// The argument as the system takes it.
    pub fn as_os_str(&self) -> &OsStr {
        &self.0
    }

    /// The argument as the name of a file.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// Returns true for `-`, which stands for stdin or stdout.
    pub fn is_dash(&self) -> bool {
        self.0 == "-"
    }
}

impl From<OsString> for Arg {
    fn from(word: OsString) -> Arg {
        Arg(word)
    }
}

/// Escaped as by [`escape`].
impl Display for Arg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&escape(self.0.as_bytes()))
    }
}

/// Never fails. A type that needs all bytes of an argument is built on this one.
impl FromArgValue for Arg {
    fn from_arg_value(value: &str) -> std::result::Result<Arg, String> {
        if is_protected(value) {
            NOT_TAKEN.with_borrow_mut(|words| {
                if let Some(at) = words.iter().position(|word| word == value) {
                    words.swap_remove(at);
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

    #[test]
    fn a_protected_word_is_recorded_until_an_argument_takes_it() {
        let words = [protect(b"\xff"), protect(b"plain")];
        let record = Protected::expect(words.iter());
        assert_eq!(record.not_taken(), [words[0].clone()]);
        let record = Protected::expect(words.iter());
        assert_eq!(Arg::from_arg_value(&words[0]).unwrap().as_os_str().as_bytes(), b"\xff");
        assert!(record.not_taken().is_empty());
    }

    #[test]
    fn a_protected_word_says_why_it_is_no_text() {
        assert_eq!((quoted("\x01ff").as_str(), why_protected("\x01ff")), ("'\\xff'", "not UTF-8"));
        assert_eq!(why_protected(&protect(b"\x01")), "begins with a control character");
    }

    proptest! {
        #[test]
        fn every_word_comes_back_from_its_protected_form(
            bytes in prop::collection::vec(any::<u8>(), 0..9),
        ) {
            prop_assert_eq!(unprotect(&protect(&bytes)), bytes);
        }
    }
}
