//! fdimg write: writes the image on stdin to a file, whole or not at all.

use crate::{TOOL, give_up_all_but};
use argh::{ArgsInfo, FromArgs};
use fdkit::cli::{self, Arg, ImageInput};
use fdkit::error::{At, Error, Result, Status};
use fdkit::image::{Item, NewFile, RawItem, Reader, Task, Writer};
use fdkit::sandbox::Needs;
use fdkit::text::escape;
use std::io::Write;
use std::path::Path;

/// Write the image on stdin to a file, mode 0600. The file is replaced only by a whole image.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "write")]
pub(crate) struct Args {
    /// say what fdimg gives up before it reads the image
    #[argh(switch, short = 'v')]
    verbose: bool,
    /// the file; if left out, COMM.PID.fdi of the first task, and the name is printed
    #[argh(positional, arg_name = "FILE")]
    file: Option<Arg>,
}

pub(crate) fn run(args: &Args) -> Result<Status> {
    if args.file.as_ref().is_some_and(Arg::is_dash) {
        // On stdout a part of an image cannot be taken back.
        let why = "write makes a file, whole or not at all, and does not write to stdout; use fdimg \
                   read - for that, or ./- for a file of this name";
        return Err(Error::misuse(why).at("-"));
    }
    let from = ImageInput::STDIN.open(&TOOL, "use a pipe: fdscan PID | fdimg write")?;
    let name = || ImageInput::STDIN.to_string();
    // The name may come from the first task; until then the file has none (O_TMPFILE), and nothing is
    // left behind if this fails.
    let given = args.file.as_ref().map(|file| file.as_path().to_owned());
    let here = Path::new(".");
    let shown = || given.as_deref().unwrap_or(here).display().to_string();
    let new = match &given {
        Some(target) => NewFile::beside(target),
        None => NewFile::create(here),
    };
    let new = new.at(shown)?;
    give_up_all_but(new.directory().map_or(Needs::Descriptors, Needs::NamesIn), args.verbose);
    let mut reader = Reader::new(from);
    let (_, head) = reader.head().at(name)?;
    let mut writer = Writer::new(new);
    writer.pass(&head).at(shown)?;
    let mut first = None;
    while let Some(RawItem { whole, item, .. }) = reader.next().at(name)? {
        if let (None, Item::Task(task)) = (&first, item) {
            first = Some(file_name(&task));
        }
        writer.pass(whole).at(shown)?;
    }
    let new = writer.end().at(shown)?;
    let target = given.clone().unwrap_or_else(|| first.unwrap_or("image.fdi".into()).into());
    new.publish(&target).at(|| target.display().to_string())?;
    if given.is_none() {
        let line = format!("{}\n", escape(target.as_os_str().as_encoded_bytes()));
        cli::text_stdout()?.write_all(line.as_bytes())?;
    }
    Ok(Status::Done)
}

/// COMM.PID.fdi, with `_` for each byte of COMM that a shell could take for something else.
fn file_name(task: &Task) -> String {
    let plain = |byte: &u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'+' => *byte as char,
        b'-' | b'.' => *byte as char,
        _ => '_',
    };
    let comm: String = task.comm.0.iter().map(plain).collect();
    let comm = comm.trim_start_matches(['.', '-']);
    format!("{}.{}.fdi", if comm.is_empty() { "image" } else { comm }, task.pid)
}
