//! fdimg verify: checks that an image is complete and correct, and counts the descriptions that cannot
//! be restored.

use crate::{CURE, TOOL, give_up_all_but};
use argh::{ArgsInfo, FromArgs};
use fdkit::cli::{self, Arg, ImageInput};
use fdkit::error::{At, Result, Status};
use fdkit::image::{Item, Reader};
use fdkit::kind::{self, Validator};
use fdkit::sandbox::Needs;
use fdkit::text::escape;
use std::collections::BTreeMap;
use std::io::Write;

/// Check that an image is whole: structure, references, checksum.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "verify")]
pub(crate) struct Args {
    /// say what fdimg gives up before it reads the image
    #[argh(switch, short = 'v')]
    verbose: bool,
    /// the image; stdin if - or left out
    #[argh(positional, arg_name = "FILE")]
    file: Option<Arg>,
}

pub(crate) fn run(args: &Args) -> Result<Status> {
    let input = ImageInput::new(args.file.as_ref());
    let from = input.open(&TOOL, CURE)?;
    give_up_all_but(Needs::Descriptors, args.verbose);
    let name = || input.to_string();
    let mut reader = Reader::new(from);
    reader.head().at(name)?;
    let mut validator = Validator::default();
    // The kinds that this version does not know, and the number of their descriptions.
    let mut unknown: BTreeMap<String, u64> = BTreeMap::new();
    let mut missing: Vec<String> = Vec::new();
    while let Some(entry) = reader.next().at(name)? {
        match entry.item {
            Item::Task(task) => validator.task(&task).at(name)?,
            Item::File(file) => {
                validator.file(&file).at(name)?;
                if kind::named(&file.kind).is_none() && unknown.len() < 100 {
                    *unknown.entry(file.kind).or_default() += 1;
                }
            }
            Item::Slot(slot) => validator.slot(&slot).at(name)?,
            Item::Data(data) => {
                let (len, meta) = (data.bytes.0.len(), data.with.as_deref());
                validator.contents(data.object, data.offset, len, meta).at(name)?;
            }
            Item::Missing(lacks) if missing.len() < 100 => missing.push(lacks.describe()),
            Item::Missing(_) | Item::Head(_) | Item::End(_) | Item::Other => (),
        }
    }
    validator.end().at(name)?;
    let sum = reader.summary();
    let mut text = format!(
        "{}: whole: {} tasks, {} descriptors, {} descriptions, {} bytes of contents\n",
        name(),
        sum.tasks,
        sum.slots,
        sum.files,
        sum.contents
    );
    if sum.opaque > 0 {
        text.push_str(&format!("{}: {} opaque, which cannot be restored\n", name(), sum.opaque));
    }
    for line in &missing {
        text.push_str(&format!("{}: {line}\n", name()));
    }
    if let Some(more) = sum.missing.checked_sub(missing.len() as u64).filter(|&more| more > 0) {
        text.push_str(&format!("{}: {more} more processes are missing\n", name()));
    }
    for (kind, count) in unknown {
        let kind = escape(kind.as_bytes()).into_owned();
        text.push_str(&format!(
            "{}: {count} of kind {kind}, which this version does not know\n",
            name()
        ));
    }
    cli::text_stdout()?.write_all(text.as_bytes())?;
    Ok(Status::Done)
}
