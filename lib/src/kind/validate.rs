//! Checks that the records of an image are possible: each by itself, and together.
//!
//! Every check that ends with status 3 is made here, once, in one pass over the stream. The memory
//! it takes grows with tasks, objects and epolls, and by one byte for each file. `image` has
//! checked before that every id that a record refers to exists.

use crate::error::{At, Error, Result};
use crate::image::{Lock, MessageMeta, OpenFile, Slot, Task, TaskChecker};
use crate::kind::{ContentsPiece, ImageCheck, Kind, ObjectCheck, Record, decode, named};
use crate::text::escape;
use nix::libc;
use std::collections::{BTreeMap, HashMap};

/// [`ObjectCheck`] without its type.
pub(crate) trait ErasedObjectCheck {
    fn file(&mut self, record: &dyn Record, file: &OpenFile) -> Result<()>;
    fn contents(&mut self, piece: &ContentsPiece<'_>) -> Result<()>;
}

/// [`ImageCheck`] without its type.
pub(crate) trait ErasedImageCheck {
    fn task(&mut self, task: &Task);
    fn file(&mut self, record: &dyn Record, file: &OpenFile);
    fn slot(&mut self, slot: &Slot);
    fn end(&mut self, name: &dyn Fn(&OpenFile) -> String) -> Result<()>;
}

/// The adapter from a check of records of one kind to one of records of any kind.
pub(crate) struct OfKind<T: ?Sized>(pub(crate) Box<T>);

fn of_kind<K: Kind>(record: &dyn Record) -> Option<&K> {
    record.as_any().downcast_ref()
}

impl<K: Kind> ErasedObjectCheck for OfKind<dyn ObjectCheck<K>> {
    fn file(&mut self, record: &dyn Record, file: &OpenFile) -> Result<()> {
        of_kind(record).map_or(Ok(()), |record| self.0.file(record, file))
    }

    fn contents(&mut self, piece: &ContentsPiece<'_>) -> Result<()> {
        self.0.contents(piece)
    }
}

impl<K: Kind> ErasedImageCheck for OfKind<dyn ImageCheck<K>> {
    fn task(&mut self, task: &Task) {
        self.0.task(task);
    }

    fn file(&mut self, record: &dyn Record, file: &OpenFile) {
        if let Some(record) = of_kind(record) {
            self.0.file(record, file);
        }
    }

    fn slot(&mut self, slot: &Slot) {
        self.0.slot(slot);
    }

    fn end(&mut self, name: &dyn Fn(&OpenFile) -> String) -> Result<()> {
        self.0.end(name)
    }
}

/// The facts of an object that its files have in common.
struct Object {
    /// The name of the kind of all its files.
    kind: String,
    /// The name of its first file in messages.
    name: String,
    /// Descriptors can be queued in it.
    carries: bool,
    check: Option<Box<dyn ErasedObjectCheck>>,
}

/// Checks the records of an image one after another, in the order of the stream.
pub struct Validator<'n> {
    /// Gives the name of a file in messages.
    name: Box<dyn Fn(&OpenFile) -> String + 'n>,
    objects: HashMap<u32, Object>,
    files: FileFacts,
    tasks: Vec<Task>,
    task_checker: TaskChecker,
    by_kind: BTreeMap<&'static str, Box<dyn ErasedImageCheck>>,
}

impl Default for Validator<'_> {
    /// A validator that names a file by its id: in a stream its descriptors follow it.
    fn default() -> Self {
        Validator::naming(|file| format!("file {} ({})", file.id, escape(&file.link.0)))
    }
}

impl<'n> Validator<'n> {
    /// A validator whose errors name files by this function.
    pub fn naming(name: impl Fn(&OpenFile) -> String + 'n) -> Self {
        Validator {
            name: Box::new(name),
            objects: HashMap::new(),
            files: FileFacts::default(),
            tasks: Vec::new(),
            task_checker: TaskChecker::default(),
            by_kind: BTreeMap::new(),
        }
    }

    /// Checks a task, given those before it. Fails with status 3.
    pub fn task(&mut self, task: &Task) -> Result<()> {
        self.task_checker.add(task)?;
        self.by_kind.values_mut().for_each(|check| check.task(task));
        self.tasks.push(Task { args: Vec::new(), exe: None, ..task.clone() });
        Ok(())
    }

    /// Decodes and checks the record of a file. Fails with status 3.
    pub fn file(&mut self, file: &OpenFile) -> Result<Box<dyn Record>> {
        let name = || (self.name)(file);
        let record = decode(file).at(name)?;
        for lock in &file.locks {
            check_lock(lock, file.flags, false).at(name)?;
        }
        if let Some(object) = file.object {
            self.object(object, &*record, file)?;
        }
        let by_kind = match named(&file.kind) {
            Some(kind) if !self.by_kind.contains_key(kind.name) => {
                (kind.image_check)().map(|mut check| {
                    self.tasks.iter().for_each(|task| check.task(task));
                    self.by_kind.entry(kind.name).or_insert(check)
                })
            }
            Some(kind) => self.by_kind.get_mut(kind.name),
            None => None,
        };
        if let Some(check) = by_kind {
            check.file(&*record, file);
        }
        self.files.add(file);
        Ok(record)
    }

    /// Checks that a file can be a description of an object, given those before it.
    fn object(&mut self, id: u32, record: &dyn Record, file: &OpenFile) -> Result<()> {
        let known = |kind: &str| named(kind).is_some();
        let new = || Object {
            kind: file.kind.clone(),
            name: (self.name)(file),
            carries: record.carries_descriptors(),
            check: named(&file.kind).and_then(|kind| (kind.object_check)()),
        };
        let object = self.objects.entry(id).or_insert_with(new);
        // Two kinds of a newer version may share an object. The kinds of this version may not, whichever
        // comes first.
        if !known(&object.kind) && known(&file.kind) {
            *object = new();
        }
        if object.kind != file.kind && known(&object.kind) && known(&file.kind) {
            let (kind, other) = (escape(file.kind.as_bytes()), escape(object.kind.as_bytes()));
            let why =
                format!("its object {id} is of kind {other} and cannot also be of kind {kind}");
            return Err(Error::malformed(why).at((self.name)(file)));
        }
        match &mut object.check {
            Some(check) => check.file(record, file).at(|| (self.name)(file)),
            None => Ok(()),
        }
    }

    /// Checks the locks of a slot. Fails with status 3.
    pub fn slot(&mut self, slot: &Slot) -> Result<()> {
        if !slot.locks.is_empty() {
            let flags = self.files.flags(slot.file);
            for lock in &slot.locks {
                check_lock(lock, flags, true).at(|| format!("fd {}", slot.fd))?;
            }
        }
        self.by_kind.values_mut().for_each(|check| check.slot(slot));
        Ok(())
    }

    /// Checks a piece of the contents of an object. Fails with status 3.
    pub fn contents(
        &mut self,
        object: u32,
        offset: i64,
        len: usize,
        meta: Option<&MessageMeta>,
    ) -> Result<()> {
        let Some(object) = self.objects.get_mut(&object) else { return Ok(()) };
        let queued = meta.is_some_and(|meta| !meta.files.is_empty());
        if queued && !object.carries {
            let why = "descriptors are queued in it, but its kind has no queue for them";
            return Err(Error::malformed(why).at(&object.name));
        }
        match &mut object.check {
            Some(check) => {
                check.contents(&ContentsPiece { offset, len, meta }).at(|| object.name.as_str())
            }
            None => Ok(()),
        }
    }

    /// Makes the checks that need all records. Fails with status 3.
    pub fn end(&mut self) -> Result<()> {
        self.task_checker.end()?;
        self.by_kind.values_mut().try_for_each(|check| check.end(&*self.name))
    }
}

/// The access mode and O_PATH of each file, in one byte.
#[derive(Default)]
struct FileFacts {
    /// Runs of consecutive ids: the first id, and its index in `facts`.
    runs: Vec<(u32, usize)>,
    facts: Vec<u8>,
}

/// The bit for O_PATH in [`FileFacts`]; the bits of O_ACCMODE are below it.
const IS_PATH: u8 = 1 << 2;

impl FileFacts {
    fn add(&mut self, file: &OpenFile) {
        let next = self.facts.len();
        let follows = self.runs.last().is_some_and(|&(first, at)| {
            file.id.checked_sub(first).is_some_and(|nth| nth as usize == next - at)
        });
        if !follows {
            self.runs.push((file.id, next));
        }
        let path = if file.flags & libc::O_PATH as u32 != 0 { IS_PATH } else { 0 };
        self.facts.push((file.flags & libc::O_ACCMODE as u32) as u8 | path);
    }

    /// The access mode and O_PATH of a file.
    fn flags(&self, id: u32) -> u32 {
        let run = self.runs.partition_point(|&(first, _)| first <= id).checked_sub(1);
        let place = run.map(|run| self.runs[run].1 + (id - self.runs[run].0) as usize);
        let fact = place.and_then(|place| self.facts.get(place)).copied().unwrap_or(0);
        let path = if fact & IS_PATH != 0 { libc::O_PATH as u32 } else { 0 };
        u32::from(fact & !IS_PATH) | path
    }
}

/// Fails with status 3 if no descriptor with these flags can have this lock. `of_table` is true for
/// a lock of a slot, and false for one of a file.
fn check_lock(lock: &Lock, flags: u32, of_table: bool) -> Result<()> {
    let flags = flags as i32;
    let access = flags & libc::O_ACCMODE;
    let last = lock.end.unwrap_or(lock.start);
    let why = if last < lock.start || last > i64::MAX as u64 {
        "it ends before it starts, or beyond the last byte that a file can have"
    } else if (lock.class == "POSIX") != of_table {
        "a POSIX lock belongs to a descriptor table, and every other lock to a description"
    } else if flags & libc::O_PATH != 0 {
        "an O_PATH descriptor has no locks"
    } else if lock.is_record() && access == if lock.write { libc::O_RDONLY } else { libc::O_WRONLY }
    {
        "the access mode of its descriptor does not permit it"
    } else if !lock.is_record() && (lock.start, lock.end) != (0, None) {
        "it covers a part of the file, but a lock of this class always covers all of it"
    } else {
        return Ok(());
    };
    Err(Error::malformed(why).at(lock.describe()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Bytes;
    use crate::kind::tests::file_of;
    use std::fs::File;

    fn lock(class: &str, write: bool, start: u64, end: Option<u64>) -> Lock {
        Lock { class: class.into(), write, start, end, breaking: false }
    }

    #[test]
    fn a_lock_that_its_descriptor_cannot_have_is_malformed() {
        let bad =
            |lock: Lock, of_table, flags: i32| check_lock(&lock, flags as u32, of_table).is_err();
        let read = libc::O_RDONLY;
        assert!(!bad(lock("POSIX", false, 3, Some(3)), true, read));
        assert!(bad(lock("POSIX", true, 3, Some(3)), true, read), "a write lock, read only");
        assert!(!bad(lock("FLOCK", true, 0, None), false, read));
        assert!(bad(lock("POSIX", false, 3, Some(2)), true, read), "it ends before it starts");
        assert!(bad(lock("POSIX", false, 1 << 63, None), true, read), "it starts too late");
        assert!(bad(lock("POSIX", false, 0, Some(u64::MAX)), true, read), "it ends too late");
        assert!(bad(lock("POSIX", false, 0, None), false, read), "not of a description");
        assert!(bad(lock("OFDLCK", false, 0, None), true, read), "not of a table");
        assert!(bad(lock("FLOCK", false, 1, None), false, read), "a part");
        assert!(bad(lock("FLOCK", false, 0, None), false, libc::O_PATH), "O_PATH");
    }

    #[test]
    fn the_flags_of_a_file_are_found_across_gaps_between_ids() {
        let file = file_of(File::open("/dev/null").unwrap());
        let mut facts = FileFacts::default();
        let all = [(0, libc::O_RDONLY), (1, libc::O_WRONLY), (5, libc::O_PATH), (6, libc::O_RDWR)];
        for (id, flags) in all {
            facts.add(&OpenFile { id, flags: flags as u32, ..file.clone() });
        }
        for (id, flags) in all {
            assert_eq!(facts.flags(id), flags as u32, "{id}");
        }
        assert_eq!(facts.runs, [(0, 0), (5, 2)]);
    }

    #[test]
    fn an_object_of_two_kinds_is_malformed() {
        let one = File::open("/dev/null").unwrap();
        let mut file = OpenFile { object: Some(7), ..file_of(&one) };
        let mut validator = Validator::default();
        assert!(validator.file(&file).is_ok());
        (file.id, file.kind, file.link) = (1, "pipe".into(), Bytes(b"pipe:[1]".to_vec()));
        file.body = serde_cbor::to_vec(&std::collections::BTreeMap::from([
            ("size", serde_cbor::Value::from(0)),
            ("queued", serde_cbor::Value::from(0)),
            ("alone", serde_cbor::Value::from(false)),
        ]))
        .unwrap();
        let why = validator.file(&file).map(drop).unwrap_err();
        assert!(why.to_string().contains("object 7 is of kind mem"), "{why}");
        // A kind that this version does not know, before them, changes nothing.
        let unknown = OpenFile { id: 0, kind: "new".into(), ..file.clone() };
        let mut validator = Validator::default();
        assert!(validator.file(&unknown).is_ok());
        assert!(validator.file(&OpenFile { id: 1, object: Some(7), ..file_of(&one) }).is_ok());
        assert!(validator.file(&OpenFile { id: 2, ..file }).is_err());
    }
}
