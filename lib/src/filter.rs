//! The FILTER language of `-F`, which selects descriptors: `3`, `0-9`, a kind, `deleted`,
//! `path:GLOB`, `pid:N`. `!` negates a term, a comma means or, a repeated option means and.

use crate::sys::fnmatch;
use std::ffi::CString;

/// The properties of a descriptor that a filter asks for.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The number.
    pub fd: u32,
    /// The process ids of all that share its table.
    pub pids: &'a [i32],
    /// The name of its kind.
    pub kind: &'a str,
    /// The text of its link in /proc/PID/fd.
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

/// The terms of one `-F`: a descriptor passes if one of them holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(Vec<Term>);

impl Filter {
    /// Parses the text; `kinds` are the names of all kinds. The error is the text of a message.
    pub fn parse(text: &str, kinds: &[&str]) -> Result<Filter, String> {
        let terms = text.split(',').map(|term| Term::parse(term.trim(), kinds));
        let terms = terms.collect::<Result<Vec<_>, _>>()?;
        match terms.len() {
            0..=MAX_TERMS => Ok(Filter(terms)),
            more => Err(format!("{more} terms are more than {MAX_TERMS}")),
        }
    }

    /// Says whether the descriptor passes.
    pub fn passes(&self, subject: &Subject<'_>) -> bool {
        self.passes_with(subject.fd, subject.pids, self.file_terms(subject.kind, subject.link))
    }

    /// The terms that hold for a file, whatever its numbers: bit n for the nth term.
    pub fn file_terms(&self, kind: &str, link: &[u8]) -> u64 {
        let subject = Subject { fd: 0, pids: &[], kind, link };
        let bit = |(at, term): (usize, &Term)| {
            u64::from(term.asks_the_file() && term.holds(&subject)) << at
        };
        self.0.iter().enumerate().map(bit).sum()
    }

    /// Says whether a number of a file passes, given the [`Filter::file_terms`] of that file.
    pub fn passes_with(&self, fd: u32, pids: &[i32], file_terms: u64) -> bool {
        let subject = Subject { fd, pids, kind: "", link: b"" };
        self.0.iter().enumerate().any(|(at, term)| match term.asks_the_file() {
            true => file_terms >> at & 1 == 1,
            false => term.holds(&subject),
        })
    }

    /// Says whether a term asks for more than numbers and process ids.
    pub fn asks_the_file(&self) -> bool {
        self.0.iter().any(Term::asks_the_file)
    }

    /// False if the number alone tells, before anything else is known, that the descriptor does not
    /// pass.
    pub fn may_pass(&self, fd: u32) -> bool {
        self.0.iter().any(|term| match term.test {
            Test::Numbers(first, last) => term.not != (first..=last).contains(&fd),
            _ => true,
        })
    }
}

/// The most terms in one filter: [`Filter::file_terms`] has a bit for each.
const MAX_TERMS: usize = 64;

impl Term {
    fn holds(&self, subject: &Subject<'_>) -> bool {
        self.not != self.test.holds(subject)
    }

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
            Test::Pid(pid.parse().map_err(|_| format!("'{pid}' is not a process id"))?)
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
    fn terms_of_numbers_and_of_files_stand_in_any_order() {
        for yes in ["4,fifo,pipe", "fifo,4,5", "4,!pipe,path:pipe:*", "pid:8,deleted,!fifo", "5-5"]
        {
            assert!(passes(yes), "{yes}");
        }
        for no in ["4,fifo,!pipe", "fifo,4", "pid:8,deleted,4-4,fifo,path:/*", "!pid:7,!5,!pipe"] {
            assert!(!passes(no), "{no}");
        }
        let filter = Filter::parse("5,pipe,pid:7,!deleted", &["pipe"]).unwrap();
        assert_eq!(filter.file_terms("pipe", b"pipe:[3]"), 0b1010);
        assert_eq!(filter.file_terms("file", b"/x (deleted)"), 0);
        assert!(filter.passes_with(4, &[], 0b0010) && !filter.passes_with(4, &[], 0b0101));
    }

    #[test]
    fn a_filter_says_what_it_asks_for() {
        let filter = |text| Filter::parse(text, &["pipe"]).unwrap();
        for (text, asks) in [("5,pid:7", false), ("5,pipe", true), ("deleted", true), ("3", false)]
        {
            assert_eq!(filter(text).asks_the_file(), asks, "{text}");
        }
        for (text, fd, may) in [
            ("0-4", 4, true),
            ("0-4", 5, false),
            ("!0-4", 4, false),
            ("!0-4", 5, true),
            ("0-4,7", 7, true),
            ("pipe", 5, true),
            ("3,pid:7", 5, true),
        ] {
            assert_eq!(filter(text).may_pass(fd), may, "{text} {fd}");
        }
    }

    #[test]
    fn a_filter_has_at_most_as_many_terms_as_bits() {
        let terms = |count| vec!["pipe"; count].join(",");
        assert!(Filter::parse(&terms(64), &["pipe"]).is_ok());
        let why = Filter::parse(&terms(65), &["pipe"]).unwrap_err();
        assert_eq!(why, "65 terms are more than 64");
        let all = Filter::parse(&terms(64), &["pipe"]).unwrap();
        assert_eq!(all.file_terms("pipe", b""), u64::MAX);
    }

    #[test]
    fn a_word_that_is_not_of_the_language_is_refused() {
        for bad in ["", "pip", "9-5", "-5", "pid:x", "5,,6"] {
            assert!(Filter::parse(bad, &["pipe"]).is_err(), "{bad}");
        }
    }
}
