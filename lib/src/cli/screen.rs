//! stdout as a terminal: its width, and its colours.

use crate::sys::tty;
use std::io::{self, IsTerminal};

/// Whether the output on stdout has colours: the value of `--color`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set or TERM is `dumb`.
    #[default]
    Auto,
    /// Also where stdout is no terminal.
    Always,
    /// Nowhere.
    Never,
}

impl Color {
    /// Returns true if the output on stdout gets colours.
    ///
    /// Source: isatty(3) and <https://no-color.org>: NO_COLOR counts when it is not empty.
    pub fn on(self) -> bool {
        match self {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty())
                    && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
                    && io::stdout().is_terminal()
            }
        }
    }
}

crate::word_enum!(Color { Auto = "auto", Always = "always", Never = "never" });

/// The width in columns of the terminal that stdout is; none if it is no terminal.
///
/// Source: TIOCGWINSZ of ioctl_tty(2), or COLUMNS where the terminal was never told its size.
pub fn terminal_width() -> Option<usize> {
    let columns = tty::winsize(io::stdout()).ok()?.ws_col;
    let columns = match columns {
        0 => std::env::var("COLUMNS").ok()?.parse().ok()?,
        known => known.into(),
    };
    (columns > 0).then_some(columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colour_that_is_asked_for_needs_no_terminal() {
        assert!(Color::Always.on());
        assert!(!Color::Never.on());
    }
}
