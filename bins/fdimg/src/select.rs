//! fdimg select: an image of the descriptors that pass. Two passes, in memory of a few bits a file;
//! three, with a few words a file, if descriptors are queued.

use crate::records::Records;
use crate::{CURE, TOOL};
use argh::{ArgsInfo, FromArgs};
use fdkit::cli::progress::Reading;
use fdkit::cli::{self, Arg, ImageInput};
use fdkit::error::{At, Error, Result, Status};
use fdkit::filter::Filter;
use fdkit::image::scan::{self, Token};
use fdkit::image::{Item, RawItem, Reader, Writer};
use fdkit::kind;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, Write};

/// Keep the descriptors that pass a filter, with the files they name, on stdout.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "select")]
pub(crate) struct Args {
    /// what passes: 3, 0-9, a kind, deleted, path:GLOB, pid:N; ! negates, a comma is or, repeated is and
    #[argh(option, short = 'F', arg_name = "FILTER")]
    filter: Vec<String>,
    /// the image; - or none is stdin
    #[argh(positional, arg_name = "FILE")]
    file: Option<Arg>,
}

const TOO_MANY: &str = "the filters tell more than 65536 sorts of files apart";

/// A bit for each of the records of a stream.
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

/// The places of ascending ids among those that there are, kept as runs without gaps.
#[derive(Default)]
struct Ordinals {
    runs: Vec<(u32, usize)>,
    count: usize,
}

impl Ordinals {
    /// Adds an id if it is above all before it.
    fn add(&mut self, id: u32) {
        match self.runs.last() {
            Some(&(first, at)) if (id as usize) < first as usize + self.count - at => return,
            Some(&(first, at)) if id as usize == first as usize + self.count - at => (),
            _ => self.runs.push((id, self.count)),
        }
        self.count += 1;
    }

    /// The place of an id that was added.
    fn of(&self, id: u32) -> usize {
        let run = self.runs.partition_point(|&(first, _)| first <= id) - 1;
        self.runs[run].1 + (id - self.runs[run].0) as usize
    }
}

/// What the first pass finds out.
#[derive(Default)]
struct Kept {
    /// Which records.
    records: Bits,
    /// Which of them are files with objects, or contents.
    with_object: Bits,
    objects: Ordinals,
}

pub(crate) fn run(args: &Args) -> Result<Status> {
    if args.filter.is_empty() {
        return Err(Error::misuse("which descriptors? -F FILTER is not given"));
    }
    let kinds = kind::names();
    let parse = |text: &String| Filter::parse(text, &kinds).map_err(Error::misuse);
    let filters = args.filter.iter().map(parse).collect::<Result<Vec<_>>>()?;
    let input = ImageInput::new(args.file.as_ref());
    let name = || input.to_string();
    let out = cli::binary_stdout("use a pipe, or fdimg show -F")?;
    let mut file = match input.path() {
        Some(path) => File::open(path).at(name)?,
        None => input.spool(&TOOL, CURE)?,
    };
    if !file.metadata().at(name)?.is_file() {
        return Err(Error::misuse("not a regular file; use a pipe").at(name()));
    }
    file.rewind().at(name)?;
    let kept = first_pass(&mut file, &filters, &name()).at(name)?;
    file.rewind().at(name)?;
    second_pass(&mut file, &kept, out).at(name)?;
    Ok(Status::Done)
}

/// Which records are kept: a file because a slot that passes names it, or because it waits in the
/// queue of a kept file.
fn first_pass(from: &mut File, filters: &[Filter], name: &str) -> Result<Kept> {
    let mut reader = Reader::new(Reading::new(TOOL.name(), &mut *from));
    reader.head()?;
    let mut kept = Bits::default();
    let mut with_object = Bits::default();
    let mut objects = Ordinals::default();
    let mut wanted = Bits::default();
    // By the order of files in the stream, since ids may have gaps.
    let mut files = Ordinals::default();
    let mut places = Bits::default();
    let mut pids: BTreeMap<u32, Vec<i32>> = BTreeMap::new();
    // The files that wait in the queue of each object.
    let mut queued: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
    // What the filters say of each file: which of the few outcomes there are.
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
                records.decode(file, name);
                files.add(file.id);
                if let Some(object) = file.object {
                    objects.add(object);
                    with_object.set(record);
                }
                places.set(record);
                if by_file {
                    let link = &file.link.0;
                    let judged: Vec<u64> =
                        filters.iter().map(|filter| filter.judge(&file.kind, link)).collect();
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
                    filter.passes_judged(slot.fd, pids, judged)
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
            Item::Other => kept.set(record),
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
        if places.has(at) {
            if wanted.has(file) {
                kept.set(at);
            }
            file += 1;
        }
    }
    Ok(Kept { records: kept, with_object, objects })
}

/// The files that have objects, each with its object, by their places.
fn owners(from: &mut File, files: &Ordinals, objects: &Ordinals) -> Result<Vec<(usize, usize)>> {
    from.rewind()?;
    let mut reader = Reader::new(Reading::new(TOOL.name(), from));
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
    let mut reader = Reader::new(Reading::new(TOOL.name(), from));
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
                // Contents go with the files that they belong to.
                (_, object) if !object.is_some_and(|object| objects.has(object)) => continue,
                _ => (),
            }
        }
        writer.pass(whole)?;
    }
    writer.end().map(drop)
}
