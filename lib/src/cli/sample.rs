//! The command line of an imaginary tool, for the unit tests of [`super::getopt`] and
//! [`super::parse`].

use super::arg::Arg;
use super::getopt::{Chain, Syntax};
use argh::{ArgsInfo, FromArgs};
use std::ffi::OsString;

pub(super) const SYNTAX: Syntax =
    Syntax { tool: "tool", chain: Chain::Never, optional: &[("data", "1M")] };

/// The same tool, where `open` becomes COMMAND.
pub(super) const CHAIN: Syntax = Syntax { chain: Chain::In(&["open"]), ..SYNTAX };

/// The words of a line.
pub(super) fn words(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}

/// finds things
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
pub(super) struct Top {
    /// be loud
    #[argh(switch, short = 'v')]
    pub(super) verbose: u8,
    #[argh(subcommand)]
    pub(super) verb: Verb,
}

#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(subcommand)]
pub(super) enum Verb {
    Show(Show),
    Open(Open),
}

/// show a thing
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(subcommand, name = "show", help_triggers("-h", "--help"))]
pub(super) struct Show {
    /// as JSON
    #[argh(switch, short = 'J')]
    pub(super) json: bool,
    /// all of them
    #[argh(switch, short = 'a')]
    pub(super) all: bool,
    /// where to
    #[argh(option, short = 'o')]
    pub(super) output: Option<Arg>,
    /// how deep
    #[argh(option, short = 'n')]
    pub(super) depth: Option<i32>,
    /// with contents
    #[argh(option, short = 'd')]
    pub(super) data: Option<String>,
    /// only these
    #[argh(option, short = 'F', long = "filter")]
    pub(super) filters: Vec<String>,
    #[argh(positional)]
    pub(super) files: Vec<Arg>,
}

/// open a thing
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(subcommand, name = "open")]
pub(super) struct Open {
    /// where to
    #[argh(option, short = 'o')]
    pub(super) output: Option<Arg>,
    #[argh(positional)]
    pub(super) pid: u32,
}
