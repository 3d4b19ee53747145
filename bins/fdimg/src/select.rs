//! fdimg select: writes an image of the descriptors that pass a filter.
//!
//! The image is read twice; each record takes a few bits of memory. An image with queued descriptors
//! is read three times, and each file takes a few words of memory.

use crate::records::Records;
use crate::{CURE, TOOL, give_up_all_but};
use argh::{ArgsInfo, FromArgs};
use fdkit::cli::progress::ProgressReader;
use fdkit::cli::{self, Arg, ImageInput};
use fdkit::error::{At, Error, Result, Status};
use fdkit::filter::Filter;
use fdkit::image::scan::{self, Token};
use fdkit::image::{Item, RawItem, Reader, Writer};
use fdkit::kind;
use fdkit::sandbox::Needs;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, Write};

/// Write an image of the descriptors that pass a filter, with the files they name, to stdout.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "select")]
pub(crate) struct Args {
    /// keep only descriptors that pass: 3, 0-9, a kind, deleted, path:GLOB, pid:N; ! negates, commas mean or, repeated options mean and
    #[argh(option, short = 'F', arg_name = "FILTER", from_str_fn(kind::filter))]
    filter: Vec<Filter>,
    /// say what fdimg gives up before it reads the image
    #[argh(switch, short = 'v')]
    verbose: bool,
    /// the image; stdin if - or left out
    #[argh(positional, arg_name = "FILE")]
    file: Option<Arg>,
}

const TOO_MANY: &str =
    "too many filters: they divide the files into more than 65536 groups; select in several steps";

/// A set of small integers, a bit each.
#[derive(Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn set(&mut self, at: usize) {
        if self.0.len() <= at / 64 {
            self.0.resize(at / 64 + 1, 0);
        }
        self.0[at / 64] |= 1 << (at % 64);
    }

    fn has(&self, at: usize) -> bool {
        self.0.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 == 1)
    }
}

/// A map from ascending ids to their ordinals, stored as runs of ids without gaps.
#[derive(Default)]
struct Ordinals {
    runs: Vec<(u32, usize)>,
    count: usize,
}

impl Ordinals {
    /// Adds an id unless it is at most the last one.
    fn add(&mut self, id: u32) {
        match self.runs.last() {
            Some(&(first, at)) if (id as usize) < first as usize + self.count - at => return,
            Some(&(first, at)) if id as usize == first as usize + self.count - at => (),
            _ => self.runs.push((id, self.count)),
        }
        self.count += 1;
    }

    /// The ordinal of an id that was added.
    fn of(&self, id: u32) -> usize {
        let run = self.runs.partition_point(|&(first, _)| first <= id) - 1;
        self.runs[run].1 + (id - self.runs[run].0) as usize
    }
}

/// The result of the first pass: the records to keep, by their ordinals in the stream.
#[derive(Default)]
struct Kept {
    records: Bits,
    /// The files with an object, and contents.
    with_object: Bits,
    objects: Ordinals,
}

pub(crate) fn run(args: &Args) -> Result<Status> {
    if args.filter.is_empty() {
        return Err(Error::misuse("-F FILTER is not given; see fdimg select --help"));
    }
    let input = ImageInput::new(args.file.as_ref());
    let name = || input.to_string();
    let out = cli::binary_stdout("use a pipe, or fdimg show -F")?;
    let opened = || give_up_all_but(Needs::Descriptors, args.verbose);
    let mut file = match input.path() {
        Some(path) => {
            let file = File::open(path).at(name)?;
            opened();
            file
        }
        None => input.spool(&TOOL, CURE, opened)?,
    };
    if !file.metadata().at(name)?.is_file() {
        return Err(Error::misuse("not a regular file; pass the image on stdin").at(name()));
    }
    file.rewind().at(name)?;
    let kept = first_pass(&mut file, &args.filter, &name()).at(name)?;
    file.rewind().at(name)?;
    second_pass(&mut file, &kept, out).at(name)?;
    Ok(Status::Done)
}

/// Finds the records to keep. A file is kept if a descriptor that passes names it, or if it waits in
/// the queue of a kept file. `name` is the name of the image.
fn first_pass(from: &mut File, filters: &[Filter], name: &str) -> Result<Kept> {
    let mut reader = Reader::new(ProgressReader::new(TOOL.name(), &mut *from));
    reader.head()?;
    let mut kept = Bits::default();
    let mut with_object = Bits::default();
    let mut objects = Ordinals::default();
    let mut wanted = Bits::default();
    // Files have ordinals, since their ids may have gaps.
    let mut files = Ordinals::default();
    let mut is_file = Bits::default();
    let mut pids: BTreeMap<u32, Vec<i32>> = BTreeMap::new();
    // The files that wait in the queue of each object.
    let mut queued: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
    // Few files differ in what the filters say of them: each different outcome is stored once, and
    // each file has its index.
    let mut outcomes: Vec<Vec<u64>> = Vec::new();
    let mut outcome: Vec<u16> = Vec::new();
    let by_file = filters.iter().any(Filter::asks_the_file);
    let mut records = Records::default();
    let mut record = 0;
    while let Some(entry) = reader.next()? {
        record += 1;
        match &entry.item {
            Item::Task(task) => {
                pids.entry(task.table.id).or_default().push(task.pid);
                kept.set(record);
            }
            Item::File(file) => {
                if let Some(record) = records.decode(file, name) {
                    records.warn_if_unread(&*record, file, name);
                }
                files.add(file.id);
                if let Some(object) = file.object {
                    objects.add(object);
                    with_object.set(record);
                }
                is_file.set(record);
                if by_file {
                    let link = &file.link.0;
                    let judged: Vec<u64> =
                        filters.iter().map(|filter| filter.file_terms(&file.kind, link)).collect();
                    let at = outcomes.iter().position(|each| *each == judged);
                    let at = at.unwrap_or_else(|| {
                        outcomes.push(judged);
                        outcomes.len() - 1
                    });
                    outcome.push(u16::try_from(at).map_err(|_| Error::misuse(TOO_MANY))?);
                }
            }
            Item::Slot(slot) => {
                let file = files.of(slot.file);
                let pids = pids.get(&slot.table).map_or(&[][..], Vec::as_slice);
                let judged = outcome.get(file).map(|&at| &outcomes[usize::from(at)]);
                let passes = |(at, filter): (usize, &Filter)| {
                    let judged = judged.map_or(0, |judged| judged[at]);
                    filter.passes_with(slot.fd, pids, judged)
                };
                if filters.iter().enumerate().all(passes) {
                    kept.set(record);
                    wanted.set(file);
                }
            }
            Item::Data(data) => {
                kept.set(record);
                with_object.set(record);
                if let Some(with) = data.with.as_ref().filter(|with| !with.files.is_empty()) {
                    queued.entry(objects.of(data.object)).or_default().extend(&with.files);
                }
            }
            Item::Missing(_) | Item::Other => kept.set(record),
            Item::Head(_) | Item::End(_) => (),
        }
    }
    if !queued.is_empty() {
        let owners = owners(from, &files, &objects)?;
        let mut todo: Vec<usize> = (0..files.count).filter(|&file| wanted.has(file)).collect();
        while let Some(file) = todo.pop() {
            let object = owners.binary_search_by_key(&file, |(owner, _)| *owner);
            let inside = object.ok().and_then(|at| queued.remove(&owners[at].1));
            for id in inside.unwrap_or_default() {
                if !wanted.has(files.of(id)) {
                    wanted.set(files.of(id));
                    todo.push(files.of(id));
                }
            }
        }
    }
    let mut file = 0;
    for at in 0..=record {
        if is_file.has(at) {
            if wanted.has(file) {
                kept.set(at);
            }
            file += 1;
        }
    }
    Ok(Kept { records: kept, with_object, objects })
}

/// The ordinals of the files that have objects, ascending, each with the ordinal of its object.
fn owners(from: &mut File, files: &Ordinals, objects: &Ordinals) -> Result<Vec<(usize, usize)>> {
    from.rewind()?;
    let mut reader = Reader::new(ProgressReader::new(TOOL.name(), from));
    let mut owners = Vec::new();
    while let Some(RawItem { item, .. }) = reader.next()? {
        if let Item::File(file) = item {
            let object = file.object.map(|object| (files.of(file.id), objects.of(object)));
            owners.extend(object);
        }
    }
    Ok(owners)
}

fn second_pass(from: &mut File, kept: &Kept, out: impl Write) -> Result<()> {
    let mut reader = Reader::new(ProgressReader::new(TOOL.name(), from));
    let mut writer = Writer::new(out);
    if let Some((_, _, head)) = reader.next_again()? {
        writer.pass(head)?;
    }
    let mut objects = Bits::default();
    let mut record = 0;
    while let Some((key, value, whole)) = reader.next_again()? {
        record += 1;
        if !kept.records.has(record) {
            continue;
        }
        let object = || match scan::tokens(scan::field(value, "object")?).next() {
            Some(Token::Uint(object)) => Some(kept.objects.of(object as u32)),
            _ => None,
        };
        if kept.with_object.has(record) {
            match (key, object()) {
                (b"file", Some(object)) => objects.set(object),
                // Contents are kept if a file of their object is.
                (_, object) if !object.is_some_and(|object| objects.has(object)) => continue,
                _ => (),
            }
        }
        writer.pass(whole)?;
    }
    writer.end().map(drop)
}
