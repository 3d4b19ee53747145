//! The terminal that stdout is: its width, and whether to colour what is shown there.

use crate::sys::tty;
use argh::FromArgValue;
use std::io::{self, IsTerminal};

/// When to colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Color {
    /// On a terminal, if neither NO_COLOR nor `TERM=dumb` asks otherwise.
    #[default]
    Auto,
    /// Even in a pipe.
    Always,
    /// Not at all.
    Never,
}

impl Color {
    /// Whether to colour what goes to stdout.
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

/// `auto`, `always` or `never`.
impl FromArgValue for Color {
    fn from_arg_value(value: &str) -> std::result::Result<Color, String> {
        match value {
            "auto" => Ok(Color::Auto),
            "always" => Ok(Color::Always),
            "never" => Ok(Color::Never),
            _ => Err("not auto, always or never".to_owned()),
        }
    }
}

/// The columns of the terminal that stdout is, if it is one and they are known.
///
/// Source: ioctl_tty(2) TIOCGWINSZ; COLUMNS for a terminal that was never told its size.
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
    fn a_colour_is_one_of_three_words() {
        assert_eq!(Color::from_arg_value("auto"), Ok(Color::Auto));
        assert!(Color::from_arg_value("always").unwrap().on());
        assert!(!Color::from_arg_value("never").unwrap().on());
        assert!(Color::from_arg_value("yes").is_err());
    }
}
