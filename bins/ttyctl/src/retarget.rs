//! ttyctl retarget: replaces the terminals of an image by another one.
//!
//! A terminal whose master is in the image is restored with it, and stays.

use crate::terminal::NamedTerminal;
use argh::{ArgsInfo, FromArgs};
use fdkit::cli::{self, Arg, ImageInput, Tool};
use fdkit::error::{At, Result, Status};
use fdkit::image::{Bytes, Item, OpenFile, RawItem, Reader, Writer};
use fdkit::kind;
use fdkit::sys::device;
use std::collections::HashSet;
use std::fs::File;
use std::io::Seek;
use std::os::unix::ffi::OsStrExt;

/// Copy the image on stdin to stdout with every terminal in it replaced by TTY.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "retarget")]
pub(crate) struct Args {
    /// the terminal; the caller's controlling terminal if left out
    #[argh(positional, arg_name = "TTY")]
    tty: Option<Arg>,
}

pub(crate) fn run(tool: &Tool, args: &Args) -> Result<Status> {
    let target = NamedTerminal::find(args.tty.as_ref())?;
    target.check_owner()?;
    let out = cli::binary_stdout("use a pipe")?;
    let mut spool = ImageInput::STDIN.spool(tool, "use a pipe", || ())?;
    let masters = masters(&mut spool).at(|| "stdin")?;
    spool.rewind()?;
    let mut reader = Reader::new(&mut spool);
    let mut writer = Writer::new(out);
    let mut replaced = 0;
    let record = record(&target);
    let path = record.link.clone();
    let (_, head) = reader.head()?;
    writer.pass(&head)?;
    while let Some(RawItem { item, whole, .. }) = reader.next()? {
        let new = match item {
            Item::Task(mut task) => match &mut task.terminal {
                Some(terminal) if !masters.devices.contains(&device::numbers(terminal.device)) => {
                    terminal.device = device::encoded(target.device);
                    terminal.path = Some(path.clone());
                    Some(Item::Task(task))
                }
                _ => None,
            },
            Item::File(file) if !file.object.is_some_and(|it| masters.objects.contains(&it)) => {
                kind::retarget(&file, &record).map(|file| Item::File(file.into()))
            }
            _ => None,
        };
        match new {
            Some(item) => {
                replaced += 1;
                writer.put(&item)?;
            }
            None => writer.pass(whole)?,
        }
    }
    writer.end()?;
    if replaced == 0 {
        tool.warn("stdin: the image has no terminal to replace; it is passed on unchanged");
        return Ok(Status::No);
    }
    Ok(Status::Done)
}

/// The pseudo terminals whose master is in the image.
#[derive(Default)]
struct Masters {
    objects: HashSet<u32>,
    devices: HashSet<(u32, u32)>,
}

fn masters(spool: &mut File) -> Result<Masters> {
    let mut reader = Reader::new(spool);
    reader.head()?;
    let mut found = Masters::default();
    while let Some(RawItem { item, .. }) = reader.next()? {
        let Item::File(file) = item else { continue };
        let terminal = kind::decode(&file).ok().and_then(|record| record.terminal());
        if let Some(terminal) = terminal.filter(|terminal| terminal.is_master) {
            found.objects.extend(file.object);
            found.devices.insert(terminal.device);
        }
    }
    Ok(found)
}

/// A record of the new terminal, from which the records of the image take its name and inode.
fn record(terminal: &NamedTerminal) -> OpenFile {
    OpenFile {
        id: 0,
        kind: String::new(),
        flags: 0,
        pos: 0,
        link: Bytes(terminal.path.as_os_str().as_bytes().to_vec()),
        mnt: 0,
        inode: Some(terminal.node.clone()),
        signals: None,
        object: None,
        locks: Vec::new(),
        body: Vec::new(),
    }
}
