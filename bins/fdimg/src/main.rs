#![forbid(unsafe_code)]
//! fdimg: stores, shows, verifies and filters images. Each subcommand has a file of its own.

mod place;
mod read;
mod records;
mod select;
mod show;
mod verify;
mod write;

use argh::{ArgsInfo, FromArgs};
use fdkit::cli::Tool;
use fdkit::error::{Result, Status};
use fdkit::sandbox::{self, Needs};
use std::ffi::OsString;
use std::process::ExitCode;

/// Work with images of file descriptors.
#[derive(FromArgs, ArgsInfo)]
struct Args {
    #[argh(subcommand)]
    command: Command,
}

#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand)]
enum Command {
    Write(write::Args),
    Read(read::Args),
    Show(show::Args),
    Verify(verify::Args),
    Select(select::Args),
    Place(place::Args),
}

const TOOL: Tool = Tool::new("fdimg");

/// The advice where an image would be read from a terminal.
const CURE: &str = "name a FILE or use a pipe";

/// Gives up what is not needed any more, once all inputs and outputs are open, and before anything of an
/// image is read. With `verbose` it says what was possible.
fn give_up_all_but(needs: Needs<'_>, verbose: bool) {
    for line in sandbox::give_up_all_but(needs) {
        if verbose {
            TOOL.warn(line);
        }
    }
}

fn main() -> ExitCode {
    TOOL.main(run)
}

fn run(_: &Tool, args: Args, _: Vec<OsString>) -> Result<Status> {
    match args.command {
        Command::Write(args) => write::run(&args),
        Command::Read(args) => read::run(&args),
        Command::Show(args) => show::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Select(args) => select::run(&args),
        Command::Place(args) => place::run(&args),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn completions_are_those_of_the_options() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/completions");
        fdkit_completions::hold::<super::Args>(&super::TOOL, dir);
    }
}
