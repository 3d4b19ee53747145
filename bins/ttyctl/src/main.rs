#![forbid(unsafe_code)]
//! ttyctl: shows, saves, loads and retargets terminals, and runs a COMMAND on them. Each
//! subcommand has a file of its own.

mod load;
mod open;
mod relay;
mod retarget;
mod save;
mod show;
mod terminal;

use argh::{ArgsInfo, FromArgs};
use fdkit::cli::{Exit, Tool};
use fdkit::error::Result;
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
    Save(save::Args),
    Load(load::Args),
    Retarget(retarget::Args),
    Open(open::Args),
}

const TOOL: Tool = Tool::new("ttyctl").chain_in(&["open"]);

fn main() -> ExitCode {
    TOOL.main(run)
}

fn run(tool: &Tool, args: Args, command: Vec<OsString>) -> Result<Exit> {
    Ok(match args.command {
        Command::Show(args) => show::run(&args)?.into(),
        Command::Save(args) => save::run(&args)?.into(),
        Command::Load(args) => load::run(tool, &args)?.into(),
        Command::Retarget(args) => retarget::run(tool, &args)?.into(),
        Command::Open(args) => open::run(tool, &args, &command)?,
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn completions_are_those_of_the_options() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/completions");
        fdkit_completions::hold::<super::Args>(&super::TOOL, dir);
    }
}
