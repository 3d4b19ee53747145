//! The frame of every tool: command line, messages, exit status, streams.

mod arg;
mod exec;
mod getopt;
pub mod progress;
mod screen;
mod streams;
mod units;
mod usage;

pub use arg::Arg;
pub use screen::{Color, terminal_width};
pub use streams::{In, Out, binary_stdin, binary_stdout, text_stdout};
pub use units::parse_size;

use crate::error::{Error, Result, Status};
use crate::sys::start;
use crate::text::one_line;
use argh::{ArgsInfo, FromArgs};
use getopt::Parsed;
use nix::errno::Errno;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;

/// A tool: its name, and what its command line has beyond argh's table.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    name: &'static str,
    chain: Chain,
    optional: &'static [(&'static str, &'static str)],
}

/// Where the words after `--` are a COMMAND.
#[derive(Clone, Copy, Debug)]
enum Chain {
    Never,
    Always,
    In(&'static [&'static str]),
}

/// How a tool's run ended, when it ended without an [`Error`].
///
/// Nobody needs to name it: a [`Status`] and the [`ExitCode`] of [`Tool::exec`] turn into it.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// The tool did its own work, with this status.
    Own(Status),
    /// COMMAND could not be become; the message is written.
    Exec(ExitCode),
}

impl From<Status> for End {
    fn from(status: Status) -> End {
        End::Own(status)
    }
}

impl From<ExitCode> for End {
    fn from(code: ExitCode) -> End {
        End::Exec(code)
    }
}

/// What a chain loader exits with when it fails before COMMAND: env(1), nice(1), timeout(1).
const OURS: u8 = 125;

impl Tool {
    /// A tool that runs nobody else: what stands after `--` are its own positionals.
    pub const fn new(name: &'static str) -> Tool {
        Tool { name, chain: Chain::Never, optional: &[] }
    }

    /// A tool that becomes the COMMAND after `--`.
    ///
    /// With a COMMAND each of its own failures exits 125, the failure's own status at the end of the
    /// message as `(status N)`, for 1 to 7 may be COMMAND's. Without one it exits with its own.
    pub const fn chain(name: &'static str) -> Tool {
        Tool { name, chain: Chain::Always, optional: &[] }
    }

    /// A tool of which only these subcommands become a COMMAND, as said at [`Tool::chain`].
    pub const fn chain_in(self, subcommands: &'static [&'static str]) -> Tool {
        Tool { chain: Chain::In(subcommands), ..self }
    }

    /// Long options whose value may be left out (`--data[=LIMIT]`), each with the value that then
    /// stands for it.
    ///
    /// The names are written without dashes, and hold in all subcommands. Such an option takes a
    /// value by `=` alone, as in getopt_long(3); its short form takes none.
    pub const fn optional(self, table: &'static [(&'static str, &'static str)]) -> Tool {
        Tool { optional: table, ..self }
    }

    /// The name that stands before each message.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The whole life of a tool: undoes std, parses, runs, says the error, gives the status.
    ///
    /// `run` gets the COMMAND that stood after `--`, empty if there was none. `-h`, `--help`, `-V`
    /// and `--version` are answered here on every level; argument structs need not declare them.
    /// Misuse is one line and status 2.
    pub fn main<A, E>(&self, run: fn(&Tool, A, Vec<OsString>) -> Result<E>) -> ExitCode
    where
        A: FromArgs + ArgsInfo,
        E: Into<End>,
    {
        start::sigpipe_default();
        let (ended, chained) = match self.parse::<A>(std::env::args_os().skip(1).collect()) {
            Ok(Parsed::Run(args, command)) => {
                let chained = !command.is_empty();
                (run(self, args, command).map(E::into), chained)
            }
            Ok(Parsed::Say(text)) => (say(&text).map(End::Own), false),
            Err(misuse) => (Err(Error::misuse(misuse.reason)), misuse.chained),
        };
        self.end(ended, chained)
    }

    fn end(&self, ended: Result<End>, chained: bool) -> ExitCode {
        let failed = match ended {
            Ok(End::Exec(code)) => return code,
            Ok(End::Own(status)) if !chained || status == Status::Done => {
                return ExitCode::from(status as u8);
            }
            Ok(End::Own(status)) => Error::new(status, "COMMAND was not run"),
            Err(err) => err,
        };
        let status = failed.status() as u8;
        if chained {
            self.warn(format_args!("{failed} (status {status})"));
            ExitCode::from(OURS)
        } else {
            self.warn(failed);
            ExitCode::from(status)
        }
    }

    /// Says `name: message` on stderr, in a single write(2), so that tools in one pipeline do not
    /// mix their lines.
    ///
    /// That it cannot be said is nobody's failure: the result of the write is dropped. What could
    /// break the line or drive the terminal is shown as in [`escape`]; backslashes stay.
    pub fn warn(&self, message: impl Display) {
        progress::hide();
        self.warn_to(io::stderr().as_fd(), message);
    }

    fn warn_to(&self, fd: BorrowedFd, message: impl Display) {
        let line = format!("{}: {}\n", self.name, one_line(&message.to_string()));
        let _ = nix::unistd::write(fd, line.as_bytes());
    }
}

/// Writes an asked-for text to stdout. A reader that has left has seen enough.
fn say(text: &str) -> Result<Status> {
    match text_stdout()?.write_all(text.as_bytes()) {
        Err(err) if err.raw_os_error() != Some(Errno::EPIPE as i32) => {
            Err(Error::from(err).at("standard output"))
        }
        _ => Ok(Status::Done),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::escape;

    const TOOL: Tool = Tool::new("tool");
    const CHAIN: Tool = Tool::new("tool").chain_in(&["open"]);

    #[test]
    fn a_message_is_one_line_and_keeps_what_is_escaped() {
        let (from, to) = nix::unistd::pipe().unwrap();
        TOOL.warn_to(to.as_fd(), format_args!("fd 3: {}: bad\nnews", escape(b"\x1b")));
        let mut buf = [0; 100];
        let n = nix::unistd::read(&from, &mut buf).unwrap();
        assert_eq!(&buf[..n], b"tool: fd 3: \\x1b: bad\\x0anews\n");
    }

    #[test]
    fn failures_before_a_command_exit_125() {
        let code = |ended: Result<End>, chained| format!("{:?}", CHAIN.end(ended, chained));
        let want = |code: u8| format!("{:?}", ExitCode::from(code));
        let gone = || Err(Error::from(Errno::ESRCH));
        assert_eq!(code(gone(), false), want(5));
        assert_eq!(code(gone(), true), want(125));
        assert_eq!(code(Ok(Status::No.into()), false), want(1));
        assert_eq!(code(Ok(Status::No.into()), true), want(125));
        assert_eq!(code(Ok(Status::Done.into()), true), want(0));
        assert_eq!(code(Ok(ExitCode::from(127).into()), true), want(127));
    }
}
