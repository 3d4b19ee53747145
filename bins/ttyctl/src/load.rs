//! ttyctl load: the settings and the size of a terminal from an image.

use crate::place::Place;
use argh::{ArgsInfo, FromArgs};
use fdkit::cli::{Arg, ImageInput, Tool};
use fdkit::error::{At, Error, Result, Status};
use fdkit::kind::DecodedImage;
use fdkit::sys::tty;
use nix::fcntl::OFlag;
use std::os::fd::AsFd;

/// Put the settings and the size of a terminal in an image on stdin on a terminal.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "load")]
pub(crate) struct Args {
    /// the terminal; the caller's own if none is given
    #[argh(positional, arg_name = "TTY")]
    tty: Option<Arg>,
}

pub(crate) fn run(tool: &Tool, args: &Args) -> Result<Status> {
    let place = Place::find(args.tty.as_ref())?;
    let image = DecodedImage::load(ImageInput::STDIN.open(tool, "use a pipe")?).at(|| "stdin")?;
    // The controlling terminal of the first task that has one, or else the first in the image.
    let wanted = image.tasks.iter().find_map(|task| task.terminal.as_ref());
    let wanted = wanted.map(|it| tty::numbers(it.device));
    let with_settings =
        || image.files_and_records().filter_map(|(_, record)| Some((record, record.settings()?)));
    let control = with_settings().find(|(record, _)| {
        wanted.is_some() && record.terminal().map(|terminal| terminal.device) == wanted
    });
    let Some((_, settings)) = control.or_else(|| with_settings().next()) else {
        return Err(Error::new(Status::No, "no terminal with settings is in the image").at("stdin"));
    };
    let fd = place.open(OFlag::O_RDWR)?;
    for line in settings.apply(fd.as_fd(), true).at(|| place.shown())? {
        tool.warn(format_args!("{}: {line}", place.shown()));
    }
    Ok(Status::Done)
}
