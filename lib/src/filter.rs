//! The language of `-F`: `3`, `0-9`, a kind, `deleted`, `path:GLOB`, `pid:N`; `!` negates, a comma
//! is or, a repeated option is and.

use crate::sys::fnmatch;
use std::ffi::CString;

/// A descriptor as a filter sees it.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Its number.
    pub fd: u32,
    /// The processes whose table it is in.
    pub pids: &'a [i32],
    /// Its kind.
    pub kind: &'a str,
    /// What readlink(2) shows.
    pub link: &'a [u8],
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Numbers(u32, u32),
    Kind(String),
    Deleted,
    Path(CString),
    Pid(i32),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    not: bool,
    test: Test,
}

/// One `-F`: a descriptor passes if any of its terms holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(Vec<Term>);

impl Filter {
    /// Parses the text; `kinds` are the names that can be meant. Fails with what is not understood.
    pub fn parse(text: &str, kinds: &[&str]) -> Result<Filter, String> {
        let terms = text.split(',').map(|term| Term::parse(term.trim(), kinds));
        let terms = terms.collect::<Result<Vec<_>, _>>()?;
        match terms.len() {
            0..=MAX_TERMS => Ok(Filter(terms)),
            more => Err(format!("{more} terms are more than {MAX_TERMS}")),
        }
    }

    /// Whether the descriptor passes.
    pub fn passes(&self, subject: &Subject<'_>) -> bool {
        self.passes_judged(subject.fd, subject.pids, self.judge(subject.kind, subject.link))
    }

    /// What its terms say of a file, whatever numbers it has: a bit for each that holds.
    pub fn judge(&self, kind: &str, link: &[u8]) -> u64 {
        let subject = Subject { fd: 0, pids: &[], kind, link };
        let holds = |bits: u64, (at, term): (usize, &Term)| {
            bits | u64::from(term.asks_the_file() && term.not != term.test.holds(&subject)) << at
        };
        self.0.iter().enumerate().fold(0, holds)
    }

    /// Whether a number of a file that was judged passes.
    pub fn passes_judged(&self, fd: u32, pids: &[i32], judged: u64) -> bool {
        let subject = Subject { fd, pids, kind: "", link: b"" };
        self.0.iter().enumerate().any(|(at, term)| match term.asks_the_file() {
            true => judged >> at & 1 == 1,
            false => term.not != term.test.holds(&subject),
        })
    }

    /// Whether it asks for more than numbers and processes.
    pub fn asks_the_file(&self) -> bool {
        self.0.iter().any(Term::asks_the_file)
    }

    /// False only if the number alone says that the descriptor cannot pass, before it is looked at.
    pub fn may_pass(&self, fd: u32) -> bool {
        self.0.iter().any(|term| match term.test {
            Test::Numbers(first, last) => term.not != (first..=last).contains(&fd),
            _ => true,
        })
    }
}

/// The most terms in one filter: a bit each.
const MAX_TERMS: usize = 64;

impl Term {
    fn asks_the_file(&self) -> bool {
        !matches!(self.test, Test::Numbers(..) | Test::Pid(_))
    }

    fn parse(text: &str, kinds: &[&str]) -> Result<Term, String> {
        let (not, word) = match text.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let number = |text: &str| text.parse::<u32>().ok();
        let test = if word == "deleted" {
            Test::Deleted
        } else if let Some(glob) = word.strip_prefix("path:") {
            Test::Path(CString::new(glob).map_err(|_| "a pattern cannot hold a NUL".to_owned())?)
        } else if let Some(pid) = word.strip_prefix("pid:") {
            Test::Pid(pid.parse().map_err(|_| format!("'{pid}' is no process id"))?)
        } else if let Some(one) = number(word) {
            Test::Numbers(one, one)
        } else if let Some((Some(first), Some(last))) =
            word.split_once('-').map(|(first, last)| (number(first), number(last)))
        {
            if first > last {
                return Err(format!("'{word}' ends before it begins"));
            }
            Test::Numbers(first, last)
        } else if kinds.contains(&word) {
            Test::Kind(word.to_owned())
        } else {
            return Err(format!(
                "'{word}' is neither a number, a range, 'deleted', path:GLOB, pid:N nor a kind ({})",
                kinds.join(" ")
            ));
        };
        Ok(Term { not, test })
    }
}

impl Test {
    fn holds(&self, subject: &Subject<'_>) -> bool {
        match self {
            Test::Numbers(first, last) => (first..=last).contains(&&subject.fd),
            Test::Kind(kind) => kind == subject.kind,
            Test::Deleted => subject.link.ends_with(b" (deleted)"),
            Test::Path(glob) => fnmatch::matches(glob, subject.link),
            Test::Pid(pid) => subject.pids.contains(pid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(filter: &str) -> bool {
        let subject = Subject { fd: 5, pids: &[7], kind: "pipe", link: b"pipe:[3]" };
        Filter::parse(filter, &["pipe", "fifo"]).unwrap().passes(&subject)
    }

    #[test]
    fn each_word_of_the_language_means_what_it_says() {
        for yes in ["5", "0-9", "pipe", "!fifo", "path:pipe:*", "pid:7", "9,5", "!deleted", "!0-4"]
        {
            assert!(passes(yes), "{yes}");
        }
        for no in ["4", "6-9", "fifo", "!pipe", "path:/*", "pid:8", "deleted", "!5", "8,fifo"] {
            assert!(!passes(no), "{no}");
        }
    }

    #[test]
    fn a_word_that_is_not_of_the_language_is_refused() {
        for bad in ["", "pip", "9-5", "-5", "pid:x", "5,,6"] {
            assert!(Filter::parse(bad, &["pipe"]).is_err(), "{bad}");
        }
    }
}
