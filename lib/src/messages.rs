//! Messages for the user: `tool: what: reason`, one line each, on stderr.
//!
//! Whatever may have something to say gets [`Messages`], and its caller decides where the lines go: a tool
//! writes those of a scan at once; a task of a tree reports to the coordinator. The library itself writes
//! messages where it has taken over the process: a restore keeps its warnings until stderr is in place
//! again, and then writes them to it; and a task of a tree that cannot run its program says so.

use crate::text::one_line;
use std::fmt::Display;
use std::os::fd::BorrowedFd;

/// A function that gets each line.
type Receiver<'to> = Box<dyn FnMut(&str) + 'to>;

/// Takes lines without the name of the tool, and keeps them or passes them on.
#[derive(Default)]
pub struct Messages<'to> {
    to: Option<Receiver<'to>>,
    kept: Vec<String>,
}

impl<'to> Messages<'to> {
    /// Keeps the lines, until [`Messages::take`] gives them.
    pub fn kept() -> Messages<'static> {
        Messages::default()
    }

    /// Passes each line on at once.
    pub fn passed(to: impl FnMut(&str) + 'to) -> Messages<'to> {
        Messages { to: Some(Box::new(to)), kept: Vec::new() }
    }

    /// Says a line.
    pub fn push(&mut self, line: impl Into<String>) {
        match &mut self.to {
            Some(to) => to(&line.into()),
            None => self.kept.push(line.into()),
        }
    }

    /// Says several lines.
    pub fn extend(&mut self, lines: impl IntoIterator<Item = String>) {
        lines.into_iter().for_each(|line| self.push(line));
    }

    /// The lines that are kept.
    pub fn lines(&self) -> &[String] {
        &self.kept
    }

    /// Gives the lines that are kept, and forgets them.
    pub fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.kept)
    }
}

/// Writes `tool: message` to a descriptor in a single write(2), so that the lines of the tools of a
/// pipeline do not mix.
///
/// A message that cannot be written is dropped. Control characters are escaped; backslashes stay, since
/// the names in a message are escaped already.
pub fn write(fd: BorrowedFd<'_>, tool: &str, message: &dyn Display) {
    let line = format!("{tool}: {}\n", one_line(&message.to_string()));
    let _ = nix::unistd::write(fd, line.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::escape;
    use std::os::fd::AsFd;

    #[test]
    fn lines_are_kept_or_passed_on() {
        let mut kept = Messages::kept();
        kept.push("one");
        kept.extend(["two".to_owned()]);
        assert_eq!(kept.lines(), ["one", "two"]);
        assert_eq!(kept.take(), ["one", "two"]);
        assert_eq!(kept.lines(), [""; 0]);
        let mut got = Vec::new();
        let mut passed = Messages::passed(|line| got.push(line.to_owned()));
        passed.push("three");
        assert_eq!(passed.take(), [""; 0]);
        drop(passed);
        assert_eq!(got, ["three"]);
    }

    #[test]
    fn a_message_is_one_line_and_keeps_what_is_escaped() {
        let (from, to) = nix::unistd::pipe().unwrap();
        write(to.as_fd(), "tool", &format_args!("fd 3: {}: bad\nnews", escape(b"\x1b")));
        let mut buf = [0; 100];
        let n = nix::unistd::read(&from, &mut buf).unwrap();
        assert_eq!(&buf[..n], b"tool: fd 3: \\x1b: bad\\x0anews\n");
    }
}
