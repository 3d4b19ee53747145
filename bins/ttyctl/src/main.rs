#![forbid(unsafe_code)]
//! ttyctl: terminals. The list of its subcommands.

mod show;

use argh::{ArgsInfo, FromArgs};
use fdkit::cli::Tool;
use fdkit::error::{Result, Status};
use std::ffi::OsString;
use std::process::ExitCode;

/// Work with terminals.
#[derive(FromArgs, ArgsInfo)]
struct Args {
    #[argh(subcommand)]
    command: Command,
}

#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand)]
enum Command {
    Show(show::Args),
}

const TOOL: Tool = Tool::new("ttyctl");

fn main() -> ExitCode {
    TOOL.main(run)
}

fn run(_: &Tool, args: Args, _: Vec<OsString>) -> Result<Status> {
    match args.command {
        Command::Show(args) => show::run(&args),
    }
}
