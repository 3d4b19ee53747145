//! fdimg read: checks an image file and writes it to stdout.

use crate::{CURE, TOOL, give_up_all_but};
use argh::{ArgsInfo, FromArgs};
use fdkit::cli::{self, Arg, ImageInput};
use fdkit::error::{At, Result, Status};
use fdkit::image::{Reader, Writer};
use fdkit::sandbox::Needs;

/// Check an image file and write it to stdout.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "read")]
pub(crate) struct Args {
    /// say what fdimg gives up before it reads the image
    #[argh(switch, short = 'v')]
    verbose: bool,
    /// the image
    #[argh(positional, arg_name = "FILE")]
    file: Arg,
}

pub(crate) fn run(args: &Args) -> Result<Status> {
    let input = ImageInput::new(Some(&args.file));
    let from = input.open(&TOOL, CURE)?;
    let out = cli::binary_stdout("use a pipe, or fdimg show FILE")?;
    give_up_all_but(Needs::Descriptors, args.verbose);
    let name = || input.to_string();
    let mut reader = Reader::new(from);
    let mut writer = Writer::new(out);
    let (_, head) = reader.head().at(name)?;
    writer.pass(&head)?;
    while let Some(entry) = reader.next().at(name)? {
        writer.pass(entry.whole)?;
    }
    writer.end()?;
    Ok(Status::Done)
}
