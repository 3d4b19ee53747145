//! ttyctl load: sets a terminal to the settings and the size recorded in an image.

use crate::terminal::NamedTerminal;
use argh::{ArgsInfo, FromArgs};
use fdkit::cli::{Arg, ImageInput, Tool};
use fdkit::error::{At, Error, Result, Status};
use fdkit::kind::DecodedImage;
use fdkit::sys::device;
use nix::fcntl::OFlag;
use std::os::fd::AsFd;

/// Set a terminal to the settings and size that the image on stdin has of a terminal.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "load")]
pub(crate) struct Args {
    /// the terminal; the caller's controlling terminal if left out
    #[argh(positional, arg_name = "TTY")]
    tty: Option<Arg>,
}

pub(crate) fn run(tool: &Tool, args: &Args) -> Result<Status> {
    let terminal = NamedTerminal::find(args.tty.as_ref())?;
    let image = DecodedImage::load(ImageInput::STDIN.open(tool, "use a pipe")?).at(|| "stdin")?;
    // The controlling terminal of the first task that has one, else the first terminal of the image.
    let controlling = image.tasks.iter().find_map(|task| task.terminal.as_ref());
    let controlling = controlling.map(|it| device::numbers(it.device));
    let with_settings =
        || image.files_and_records().filter_map(|(_, record)| Some((record, record.settings()?)));
    let first = with_settings().find(|(record, _)| {
        controlling.is_some() && record.terminal().map(|terminal| terminal.device) == controlling
    });
    let Some((_, settings)) = first.or_else(|| with_settings().next()) else {
        let reason = "the image has no terminal with settings; save one with ttyctl save";
        return Err(Error::new(Status::No, reason).at("stdin"));
    };
    let fd = terminal.open(OFlag::O_RDWR)?;
    for line in settings.apply(fd.as_fd(), true).at(|| terminal.shown())? {
        tool.warn(format_args!("{}: {line}", terminal.shown()));
    }
    Ok(Status::Done)
}
