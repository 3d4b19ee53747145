//! ttyctl save: writes the settings and the size of a terminal as an image.

use crate::TOOL;
use crate::terminal::NamedTerminal;
use argh::{ArgsInfo, FromArgs};
use fdkit::capture::head;
use fdkit::cli::{self, Arg};
use fdkit::error::{At, Result, Status};
use fdkit::image::{Bytes, Item, Slot, Writer};
use fdkit::kind;
use fdkit::proc::{Descriptor, Process};
use nix::fcntl::OFlag;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;

/// Write a terminal's settings and size as an image to stdout.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "save")]
pub(crate) struct Args {
    /// the terminal; the caller's controlling terminal if left out
    #[argh(positional, arg_name = "TTY")]
    tty: Option<Arg>,
}

pub(crate) fn run(args: &Args) -> Result<Status> {
    let terminal = NamedTerminal::find(args.tty.as_ref())?;
    let out = cli::binary_stdout("use a pipe or a file")?;
    let fd = terminal.open(OFlag::O_RDONLY)?;
    let process = Process::open(std::process::id() as i32)?;
    let it = Descriptor::read(&process, fd.as_raw_fd(), true, &mut Vec::new())
        .at(|| terminal.shown())?;
    let mut file = kind::record_of(it, 0).at(|| terminal.shown())?;
    file.link = Bytes(terminal.path.as_os_str().as_bytes().to_vec());
    let task = process.task(0, Some(0), &mut TOOL.messages())?;
    let mut out = Writer::new(out);
    out.put(&Item::Head(head("ttyctl", &mut TOOL.messages())))?;
    out.put(&Item::Task(task.into()))?;
    out.put(&Item::File(file.into()))?;
    out.put(&Item::Slot(Slot { table: 0, fd: 0, cloexec: false, file: 0, locks: Vec::new() }))?;
    out.end()?;
    Ok(Status::Done)
}
