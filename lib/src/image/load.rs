//! A whole image in memory, but for its contents, of which only the place is kept.

use super::{Head, Item, MessageMeta, Missing, OpenFile, RawItem, Reader, Slot, Task, scan};
use crate::error::Result;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read;
use std::sync::OnceLock;

/// Where a piece of contents stands in the stream, and in its object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The offset of its bytes in the stream.
    pub at: u64,
    /// The number of bytes.
    pub len: usize,
    /// Their offset in the file; zero in a queue.
    pub offset: i64,
    /// The properties of the message, if it has any.
    pub with: Option<Box<MessageMeta>>,
}

/// The queued descriptors of an object, and whether its messages have credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueuedFds {
    /// The files queued with them, each once.
    pub files: BTreeSet<u32>,
    /// True if a message has the credentials of its sender.
    pub credentials: bool,
}

/// An image that was read to its end and found whole.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its head.
    pub head: Head,
    /// Its tasks, parents first.
    pub tasks: Vec<Task>,
    /// Its open file descriptions, by ascending id.
    pub files: Vec<OpenFile>,
    /// Its descriptors, table after table, and those of one table ascend.
    pub slots: Vec<Slot>,
    /// Where the contents of each object stand.
    pub contents: BTreeMap<u32, Vec<Chunk>>,
    /// What their messages carry, of those objects where they carry anything.
    pub queued_fds: BTreeMap<u32, QueuedFds>,
    /// The processes that it lacks, in whole or in part.
    pub missing: Vec<Missing>,
    places: OnceLock<Places>,
}

/// Where files are, for messages: looked up once for all of them.
#[derive(Clone, Debug)]
struct Places {
    /// The first slot that names a file.
    slots: HashMap<u32, usize>,
    /// The first file in whose queue one waits.
    carriers: HashMap<u32, u32>,
    /// The first task that has a table, by its process id.
    owners: HashMap<u32, i32>,
}

impl Image {
    /// Reads a whole image. Fails with status 3 as [`Reader::next`] does.
    pub fn load(from: impl Read) -> Result<Image> {
        let mut reader = Reader::new(from);
        let (head, _) = reader.head()?;
        let (mut tasks, mut files) = (Vec::new(), Vec::new());
        let mut slots: Vec<Slot> = Vec::new();
        let mut missing = Vec::new();
        let mut contents: BTreeMap<u32, Vec<Chunk>> = BTreeMap::new();
        let mut queued_fds: BTreeMap<u32, QueuedFds> = BTreeMap::new();
        while let Some(RawItem { item, whole, offset }) = reader.next()? {
            match item {
                Item::Task(task) => tasks.push(*task),
                Item::File(file) => files.push(*file),
                Item::Slot(slot) => slots.push(slot),
                Item::Data(data) => {
                    let len = data.bytes.0.len();
                    let with = data.with.as_ref();
                    if let Some(with) =
                        with.filter(|with| !with.files.is_empty() || with.credentials.is_some())
                    {
                        let queued = queued_fds.entry(data.object).or_default();
                        queued.files.extend(&with.files);
                        queued.credentials |= with.credentials.is_some();
                    }
                    let value = scan::record(whole).map_or(&[][..], |(_, value)| value);
                    let bytes = scan::field(value, "bytes").unwrap_or_default();
                    // The bytes are the last of the field, and the field is part of the record.
                    let end = bytes.as_ptr() as usize - whole.as_ptr() as usize + bytes.len();
                    let at = offset + (end - len) as u64;
                    let chunk = Chunk { at, len, offset: data.offset, with: data.with };
                    contents.entry(data.object).or_default().push(chunk);
                }
                Item::Missing(lacks) => missing.push(lacks),
                Item::Head(_) | Item::End(_) | Item::Other => (),
            }
        }
        slots.sort_by_key(|slot| slot.table);
        let places = OnceLock::new();
        Ok(Image { head, tasks, files, slots, contents, queued_fds, missing, places })
    }

    /// The files that wait in the queue of a file.
    pub fn queued(&self, file: &OpenFile) -> impl Iterator<Item = u32> + '_ {
        let cargo = file.object.and_then(|object| self.queued_fds.get(&object));
        cargo.into_iter().flat_map(|cargo| cargo.files.iter().copied())
    }

    fn places(&self) -> &Places {
        self.places.get_or_init(|| {
            let mut places =
                Places { slots: HashMap::new(), carriers: HashMap::new(), owners: HashMap::new() };
            for (at, slot) in self.slots.iter().enumerate() {
                places.slots.entry(slot.file).or_insert(at);
            }
            for file in &self.files {
                for id in self.queued(file) {
                    places.carriers.entry(id).or_insert(file.id);
                }
            }
            for task in &self.tasks {
                places.owners.entry(task.table.id).or_insert(task.pid);
            }
            places
        })
    }

    /// The lowest descriptor of the first table that names a file; none if it only waits in a queue.
    pub fn slot_of(&self, file: u32) -> Option<&Slot> {
        self.places().slots.get(&file).map(|at| &self.slots[*at])
    }

    /// A file by its lowest number, as messages name it: `fd 3`, or `queued` for one that has none.
    pub fn number_of(&self, file: u32) -> String {
        match self.slot_of(file) {
            Some(slot) => format!("fd {}", slot.fd),
            None => "queued".to_owned(),
        }
    }

    /// The first file in whose queue one waits.
    pub fn carrier_of(&self, file: u32) -> Option<&OpenFile> {
        self.places().carriers.get(&file).and_then(|id| self.file(*id))
    }

    /// The process id of the first task that has a table.
    pub fn owner_of(&self, table: u32) -> Option<i32> {
        self.places().owners.get(&table).copied()
    }

    /// The descriptors of a table.
    pub fn slots_of(&self, table: u32) -> &[Slot] {
        let from = self.slots.partition_point(|slot| slot.table < table);
        let count = self.slots[from..].partition_point(|slot| slot.table == table);
        &self.slots[from..from + count]
    }

    /// The file with this id. A checked image has every file that its slots name.
    pub fn file(&self, id: u32) -> Option<&OpenFile> {
        self.files.binary_search_by_key(&id, |file| file.id).ok().map(|at| &self.files[at])
    }
}
