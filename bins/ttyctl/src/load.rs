//! ttyctl load: the settings and the size of a terminal from an image.

use crate::place::Place;
use argh::{ArgsInfo, FromArgs};
use fdkit::cli::{self, Arg, Tool};
use fdkit::error::{At, Error, Result, Status};
use fdkit::image::Image;
use fdkit::kind;
use fdkit::sys::tty;
use fdkit::terminal::settings_of;
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
    let image = Image::load(cli::binary_stdin("use a pipe")?).at(|| "stdin")?;
    // The controlling terminal of the first task that has one, or else the first in the image.
    let wanted = image.tasks.iter().find_map(|task| task.terminal.as_ref());
    let wanted = wanted.map(|it| tty::numbers(it.device));
    let found = || image.files.iter().filter_map(|file| Some((file, settings_of(file)?)));
    let leads = |kind: &str| kind::named(kind).map(|kind| kind.terminal);
    let control = found().find(|(file, _)| {
        wanted.is_some() && leads(&file.kind).and_then(|terminal| terminal(file)) == wanted
    });
    let Some((_, settings)) = control.or_else(|| found().next()) else {
        return Err(Error::new(Status::No, "no terminal with settings is in the image").at("stdin"));
    };
    settings.check().at(|| "stdin")?;
    let fd = place.open(OFlag::O_RDWR)?;
    for line in settings.apply(fd.as_fd(), true).at(|| place.shown())? {
        tool.warn(format_args!("{}: {line}", place.shown()));
    }
    Ok(Status::Done)
}
