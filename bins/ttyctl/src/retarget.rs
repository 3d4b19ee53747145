//! ttyctl retarget: every terminal of an image that is outside it becomes the given one.

use crate::place::Place;
use argh::{ArgsInfo, FromArgs};
use fdkit::cli::progress::Reading;
use fdkit::cli::{self, Arg, Tool};
use fdkit::error::{At, Result, Status};
use fdkit::image::{Bytes, Item, OpenFile, RawItem, Reader, Writer};
use fdkit::kind;
use fdkit::sys::tty;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek, Write};
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
    let mut spool = spool().at(|| "spool stdin")?;
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

/// stdin in a file without a name, so that it can be read twice.
fn spool() -> Result<File> {
    let mut from = Reading::new(crate::TOOL.name(), cli::binary_stdin("use a pipe")?);
    let dir = std::env::var_os("TMPDIR").unwrap_or("/tmp".into());
    let flags = OFlag::O_RDWR | OFlag::O_TMPFILE | OFlag::O_CLOEXEC;
    let mut file = File::from(open(dir.as_os_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match from.read(&mut buffer)? {
            0 => break,
            count => file.write_all(&buffer[..count])?,
        }
    }
    file.rewind()?;
    Ok(file)
}
