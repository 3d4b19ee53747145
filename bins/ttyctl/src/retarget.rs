//! ttyctl retarget: every terminal of an image that is outside it becomes the given one.

use crate::place::Place;
use argh::{ArgsInfo, FromArgs};
use fdkit::cli::{self, Arg, ImageInput, Tool};
use fdkit::error::{At, Result, Status};
use fdkit::image::{Bytes, Item, OpenFile, RawItem, Reader, Writer};
use fdkit::kind;
use fdkit::sys::tty;
use std::collections::HashSet;
use std::fs::File;
use std::io::Seek;
use std::os::unix::ffi::OsStrExt;

/// Pass on the image on stdin with its terminals, descriptors and controlling, replaced by one.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "retarget")]
pub(crate) struct Args {
    /// the terminal; the caller's own if none is given
    #[argh(positional, arg_name = "TTY")]
    tty: Option<Arg>,
}

pub(crate) fn run(tool: &Tool, args: &Args) -> Result<Status> {
    let place = Place::find(args.tty.as_ref())?;
    place.check()?;
    let out = cli::binary_stdout("use a pipe")?;
    let mut spool = ImageInput::STDIN.spool(tool, "use a pipe")?;
    let masters = masters(&mut spool).at(|| "stdin")?;
    spool.rewind()?;
    let mut reader = Reader::new(&mut spool);
    let mut writer = Writer::new(out);
    let mut count = 0;
    let target = target(&place);
    let path = Bytes(place.path.as_os_str().as_bytes().to_vec());
    let (_, head) = reader.head()?;
    writer.pass(&head)?;
    while let Some(RawItem { item, whole, .. }) = reader.next()? {
        let new = match item {
            Item::Task(mut task) => match &mut task.terminal {
                Some(terminal) if !masters.devices.contains(&tty::numbers(terminal.device)) => {
                    terminal.device = tty::encoded(place.device);
                    terminal.path = Some(path.clone());
                    Some(Item::Task(task))
                }
                _ => None,
            },
            Item::File(file) if !file.object.is_some_and(|it| masters.objects.contains(&it)) => {
                kind::retarget(&file, &target).map(|file| Item::File(file.into()))
            }
            _ => None,
        };
        match new {
            Some(item) => {
                count += 1;
                writer.put(&item)?;
            }
            None => writer.pass(whole)?,
        }
    }
    writer.end()?;
    if count == 0 {
        tool.warn("stdin: no terminal that needs another is in the image");
        return Ok(Status::No);
    }
    Ok(Status::Done)
}

/// The pairs that are whole in the image, which need no other terminal.
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

/// What the records of the terminals are made like.
fn target(place: &Place) -> OpenFile {
    OpenFile {
        id: 0,
        kind: String::new(),
        flags: 0,
        pos: 0,
        link: Bytes(place.path.as_os_str().as_bytes().to_vec()),
        mnt: 0,
        inode: Some(place.node.clone()),
        signals: None,
        object: None,
        locks: Vec::new(),
        body: Vec::new(),
    }
}
