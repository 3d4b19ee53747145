//! The frame of every tool: the command line, messages, the exit status, streams and COMMAND.

mod arg;
mod exec;
mod getopt;
mod parse;
pub mod progress;
#[cfg(test)]
mod sample;
mod screen;
mod streams;
pub mod units;

pub use arg::Arg;
pub use exec::FAILED_BEFORE_COMMAND;
pub use screen::{Color, terminal_width};
pub use streams::{ImageInput, In, Out, binary_stdin, binary_stdout, text_stdout};

use crate::error::{Error, Result, Status};
use crate::messages::{self, Messages};
use crate::sys::{out_of_memory, start};
use argh::{ArgsInfo, FlagInfo, FromArgs};
use getopt::{Chain, Syntax};
use parse::{Parsed, parse};
use std::ffi::OsString;
use std::fmt::Display;
use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;

/// A tool: its name, and the rules of its command line that argh's table does not hold.
#[derive(Clone, Copy, Debug)]
pub struct Tool(Syntax);

/// The end of a tool's run that is not an [`Error`]. A [`Status`] and an [`ExitCode`] convert to it.
#[derive(Clone, Copy, Debug)]
pub enum Exit {
    /// The tool did its own work, with this status.
    Status(Status),
    /// The exit status of COMMAND, or of the exec of it that failed; its message is written.
    Command(ExitCode),
}

impl From<Status> for Exit {
    fn from(status: Status) -> Exit {
        Exit::Status(status)
    }
}

impl From<ExitCode> for Exit {
    fn from(code: ExitCode) -> Exit {
        Exit::Command(code)
    }
}

impl Tool {
    /// A tool that runs no COMMAND: the words after `--` are positionals.
    pub const fn new(name: &'static str) -> Tool {
        Tool(Syntax { tool: name, chain: Chain::Never, optional: &[] })
    }

    /// A tool that becomes the COMMAND after `--`.
    ///
    /// Where a COMMAND is given, every failure before it exits with 125, since 1 to 7 may be
    /// COMMAND's own, and the message ends in `(status N)`. Where none is given, the exit status is
    /// that of the failure. Source: env(1), timeout(1).
    pub const fn chain(name: &'static str) -> Tool {
        Tool(Syntax { tool: name, chain: Chain::Always, optional: &[] })
    }

    /// A tool of which only these subcommands become a COMMAND, in the way of [`Tool::chain`].
    pub const fn chain_in(self, subcommands: &'static [&'static str]) -> Tool {
        Tool(Syntax { chain: Chain::In(subcommands), ..self.0 })
    }

    /// Long options whose value may be left out (`--data[=LIMIT]`), each with the value that is then
    /// meant.
    ///
    /// The names are written without dashes, and hold in all subcommands. Such an option takes a
    /// value by `=` alone, as in getopt_long(3); its short form takes none.
    pub const fn optional(self, table: &'static [(&'static str, &'static str)]) -> Tool {
        Tool(Syntax { optional: table, ..self.0 })
    }

    /// Returns true if the value of this option of argh's table may be left out.
    pub fn is_optional(&self, option: &FlagInfo) -> bool {
        self.0.default_value(option).is_some()
    }

    /// The name of the tool, with which each message begins.
    pub fn name(&self) -> &'static str {
        self.0.tool
    }

    /// Parses the command line, runs the tool, writes the message of an error, returns the exit
    /// status.
    ///
    /// `run` gets the words of COMMAND, none if there is no COMMAND. `-h`, `--help`, `-V` and
    /// `--version` are answered here, also behind a subcommand: argument structs declare none of
    /// them. A misuse is one line and status 2.
    pub fn main<A, E>(&self, run: fn(&Tool, A, Vec<OsString>) -> Result<E>) -> ExitCode
    where
        A: FromArgs + ArgsInfo,
        E: Into<Exit>,
    {
        start::sigpipe_default();
        start::sigxfsz_handled();
        out_of_memory::set_name(self.name());
        let (ended, chained) = match parse::<A>(&self.0, std::env::args_os().skip(1).collect()) {
            Ok(Parsed::Run(args, command)) => {
                let chained = !command.is_empty();
                if chained {
                    out_of_memory::set_status(FAILED_BEFORE_COMMAND);
                }
                (run(self, args, command).map(E::into), chained)
            }
            Ok(Parsed::Print(text)) => (streams::print(&text).map(Exit::Status), false),
            Err(misuse) => (Err(Error::misuse(misuse.reason)), misuse.chained),
        };
        self.exit_code(ended, chained)
    }

    /// The exit status; `chained` is true where a COMMAND was given.
    fn exit_code(&self, ended: Result<Exit>, chained: bool) -> ExitCode {
        let failure = match ended {
            Ok(Exit::Command(code)) => return code,
            Ok(Exit::Status(status)) if !chained || status == Status::Done => {
                return ExitCode::from(status as u8);
            }
            Ok(Exit::Status(status)) => Error::new(status, "COMMAND was not run"),
            Err(failure) => failure,
        };
        if chained {
            return self.failed_before_command(&failure, None);
        }
        self.warn(&failure);
        ExitCode::from(failure.status() as u8)
    }

    /// Writes `name: message` to stderr, as [`messages::write`] does.
    pub fn warn(&self, message: impl Display) {
        progress::hide();
        messages::write(io::stderr().as_fd(), self.name(), &message);
    }

    /// Messages that this tool writes to stderr at once.
    pub fn messages(&self) -> Messages<'static> {
        let tool = *self;
        Messages::passed(move |line| tool.warn(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;

    const TOOL: Tool = Tool::chain("tool");

    #[test]
    fn failures_before_a_command_exit_125() {
        let code = |ended: Result<Exit>, chained| format!("{:?}", TOOL.exit_code(ended, chained));
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
