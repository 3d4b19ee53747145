//! The origin of each file of a tree: made by one task for its own table, made once for the
//! fdstore, made by a member of its session, or inherited from the caller. No system call.

use crate::error::{Error, Result};
use crate::image::{OpenFile, Task};
use crate::kind::{DecodedImage, Prerequisite};
use crate::plan::{InheritKeys, KeyMatch, RestoreOptions};
use std::collections::{HashMap, HashSet};
use std::os::fd::RawFd;

/// The origin of an open file description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileOrigin {
    /// Only one table has it; the owner of that table makes it.
    Private,
    /// Several tables have it; fdrestore makes it once, for the fdstore.
    Store {
        /// True if it can be made only when all tasks are forked.
        needs_processes: bool,
    },
    /// Several tables have it, and only a member of its session can make it: the first task that
    /// has it does, before it forks its children.
    Session,
    /// A descriptor of the caller replaces it: `--inherit`.
    Inherited,
}

/// The files that descriptors of the caller replace. `first` is the first task of the tree.
///
/// Fails with status 2 if an option means no descriptor of the image.
pub(super) fn inherited_files(
    image: &DecodedImage,
    options: &RestoreOptions,
    first: &Task,
) -> Result<HashMap<u32, RawFd>> {
    let mut inherited: HashMap<u32, RawFd> = HashMap::new();
    for fd in options.same_numbers() {
        let slots = image.slots_of(first.table.id);
        let Some(slot) = slots.iter().find(|slot| slot.fd as RawFd == fd) else {
            let why = format!("--inherit: the first task, {}, has no descriptor {fd}", first.pid);
            return Err(Error::misuse(why));
        };
        inherited.insert(slot.file, fd);
    }
    let mut keys = InheritKeys::new(options);
    let mut found: Vec<(KeyMatch, u32)> = Vec::new();
    if options.inherit_keys().next().is_some() {
        for task in &image.tasks {
            for slot in image.slots_of(task.table.id) {
                let Some(file) = image.file(slot.file) else { continue };
                // A number alone is one of the first task.
                let is_first = task.pid == first.pid;
                let of_slot = keys.of_slot(task.pid, is_first, slot, file);
                found.extend(of_slot.map(|of_slot| (of_slot, file.id)));
            }
        }
        // A file in a queue has no number that could be a key.
        for id in image.queued_fds.values().flat_map(|queued| &queued.files) {
            let of_file = image.file(*id).and_then(|file| keys.of_file(file));
            found.extend(of_file.map(|of_file| (of_file, *id)));
        }
    }
    // Two keys can name two descriptors of one description, which only one can replace.
    found.sort_unstable();
    for (found, file) in found {
        if *inherited.entry(file).or_insert(keys.fd(found)) == keys.fd(found) {
            keys.replace_by(found);
        }
    }
    keys.check_all_used()?;
    Ok(inherited)
}

/// The origin of each file, by its id. Files that belong together (one object, the two ends of a
/// connection, a queue and what waits in it) are made in one place. `owners` are the tasks that
/// restore a table, in the order of [`super::Shape::order`].
pub(super) fn origins(
    image: &DecodedImage,
    inherited: &HashMap<u32, RawFd>,
    owners: &[usize],
) -> HashMap<u32, FileOrigin> {
    let index = file_index(image);
    let sets = connected_files(image, &index);
    let tables = only_tables(image, owners, &index, &sets);
    let queues = queues_need_processes(image, &sets);
    let origin = |(at, file): (usize, &OpenFile)| {
        let needed = match queues.get(&sets[at]) {
            Some(true) => Prerequisite::Processes,
            _ => need(image, file),
        };
        let shared = tables.get(&sets[at]).is_some_and(Option::is_none);
        let origin = match (inherited.contains_key(&file.id), shared, needed) {
            (true, ..) => FileOrigin::Inherited,
            (false, false, _) => FileOrigin::Private,
            (false, true, Prerequisite::ControllingTerminal) => FileOrigin::Session,
            (false, true, needed) => {
                FileOrigin::Store { needs_processes: needed == Prerequisite::Processes }
            }
        };
        (file.id, origin)
    };
    image.files.iter().enumerate().map(origin).collect()
}

fn file_index(image: &DecodedImage) -> HashMap<u32, usize> {
    image.files.iter().enumerate().map(|(at, file)| (file.id, at)).collect()
}

/// The need of a file: the numbers, the session, or the processes without which it cannot be made.
fn need(image: &DecodedImage, file: &OpenFile) -> Prerequisite {
    image.record(file.id).map_or(Prerequisite::None, |record| record.prerequisite(file))
}

/// For each file the set of files that it must be made together with, named by one of them.
fn connected_files(image: &DecodedImage, index: &HashMap<u32, usize>) -> Vec<usize> {
    let mut sets = UnionFind::new(image.files.len());
    let mut objects: HashMap<u32, usize> = HashMap::new();
    let sockets: HashMap<u64, usize> = image
        .files_and_records()
        .enumerate()
        .filter_map(|(at, (file, record))| Some((record.socket_inode(file)?, at)))
        .collect();
    for (at, file) in image.files.iter().enumerate() {
        if let Some(object) = file.object {
            sets.join(*objects.entry(object).or_insert(at), at);
        }
        let peers = image.record(file.id).map(|record| record.peer_inodes()).unwrap_or_default();
        let peers = peers.iter().filter_map(|inode| sockets.get(inode)).copied();
        let queued = image.queued(file).filter_map(|id| index.get(&id).copied());
        peers.chain(queued).for_each(|other| sets.join(other, at));
    }
    (0..image.files.len()).map(|at| sets.find(at)).collect()
}

/// For each set of files the owner of the only table that has any of them; `None` for several.
fn only_tables(
    image: &DecodedImage,
    owners: &[usize],
    index: &HashMap<u32, usize>,
    sets: &[usize],
) -> HashMap<usize, Option<usize>> {
    let mut tables: HashMap<usize, Option<usize>> = HashMap::new();
    for &owner in owners {
        for slot in image.slots_of(image.tasks[owner].table.id) {
            let Some(&at) = index.get(&slot.file) else { continue };
            let only = tables.entry(sets[at]).or_insert(Some(owner));
            *only = only.filter(|&only| only == owner);
        }
    }
    tables
}

/// For each set of files with a queue, whether the queue can be filled only when all tasks are
/// forked: its messages name processes, or a file that waits in it does, or has an owner and is in
/// no table whose task could set it.
fn queues_need_processes(image: &DecodedImage, sets: &[usize]) -> HashMap<usize, bool> {
    let in_tables: HashSet<u32> = image.slots.iter().map(|slot| slot.file).collect();
    let mut queues: HashMap<usize, bool> = HashMap::new();
    for (at, file) in image.files.iter().enumerate() {
        if let Some(queued) = file.object.and_then(|object| image.queued_fds.get(&object)) {
            *queues.entry(sets[at]).or_default() |= queued.credentials;
        }
    }
    for (at, file) in image.files.iter().enumerate() {
        if let Some(needed) = queues.get_mut(&sets[at]) {
            let owned = file.signals.is_some() && !in_tables.contains(&file.id);
            *needed |= owned || need(image, file) == Prerequisite::Processes;
        }
    }
    queues
}

/// Disjoint sets of indices, with union by size and path halving: nearly linear in all.
struct UnionFind {
    parents: Vec<usize>,
    sizes: Vec<usize>,
}

impl UnionFind {
    /// Each index below `count` in a set of its own.
    fn new(count: usize) -> UnionFind {
        UnionFind { parents: (0..count).collect(), sizes: vec![1; count] }
    }

    /// The index that names the set of an index.
    fn find(&mut self, mut at: usize) -> usize {
        while self.parents[at] != at {
            self.parents[at] = self.parents[self.parents[at]];
            at = self.parents[at];
        }
        at
    }

    /// Joins the sets of two indices.
    fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.find(one), self.find(other));
        if one == other {
            return;
        }
        let (small, large) = match self.sizes[one] < self.sizes[other] {
            true => (one, other),
            false => (other, one),
        };
        self.parents[small] = large;
        self.sizes[large] += self.sizes[small];
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Builder, task};
    use super::*;
    use crate::image::{QueuedFds, Signals};
    use crate::plan::Inherit;
    use serde_cbor::Value;
    use std::collections::BTreeMap;

    const STORE: FileOrigin = FileOrigin::Store { needs_processes: false };
    const STORE_LATE: FileOrigin = FileOrigin::Store { needs_processes: true };

    fn origins_of(image: &DecodedImage, owners: &[usize]) -> Vec<FileOrigin> {
        let origins = origins(image, &HashMap::new(), owners);
        image.files.iter().map(|file| origins[&file.id]).collect()
    }

    #[test]
    fn joined_sets_are_one() {
        let mut sets = UnionFind::new(6);
        sets.join(4, 5);
        sets.join(0, 1);
        sets.join(1, 5);
        sets.join(5, 0);
        let same = [0, 1, 4, 5].map(|at| sets.find(at));
        assert!(same.iter().all(|set| *set == same[0]), "{same:?}");
        assert_eq!((sets.find(2), sets.find(3)), (2, 3));
        assert_eq!(sets.sizes[same[0]], 4);
    }

    #[test]
    fn a_chain_of_any_length_is_found_in_few_steps() {
        // Without union by size this order makes one chain, of half a million steps a look.
        let count = 1 << 20;
        let mut sets = UnionFind::new(count);
        (1..count).rev().for_each(|at| sets.join(at, at - 1));
        let longest = (0..count).map(|mut at| {
            let mut steps = 0;
            while sets.parents[at] != at {
                (at, steps) = (sets.parents[at], steps + 1);
            }
            steps
        });
        assert!(longest.max().unwrap() <= 20);
    }

    #[test]
    fn a_file_of_one_table_is_private_and_one_of_two_is_shared() {
        let mut b = Builder::new([task(10, 1, 10, 10, 0), task(11, 10, 10, 10, 1)]);
        b.files(3);
        b.slot(0, 0, 0).slot(0, 1, 1).slot(1, 1, 1).slot(1, 2, 2);
        assert_eq!(
            origins_of(&b.image(), &[0, 1]),
            [FileOrigin::Private, STORE, FileOrigin::Private]
        );
        // A table that both tasks share is one table.
        let mut b = Builder::new([task(10, 1, 10, 10, 0), task(11, 10, 10, 10, 0)]);
        b.files(1).slot(0, 0, 0);
        assert_eq!(origins_of(&b.image(), &[0]), [FileOrigin::Private]);
    }

    #[test]
    fn files_of_one_object_are_made_in_one_place() {
        let mut b = Builder::new([task(10, 1, 10, 10, 0), task(11, 10, 10, 10, 1)]);
        b.files(3).slot(0, 3, 0).slot(1, 4, 1).slot(1, 5, 2);
        let image = b.changed(|image| {
            image.files[0].object = Some(7);
            image.files[1].object = Some(7);
        });
        assert_eq!(origins_of(&image, &[0, 1]), [STORE, STORE, FileOrigin::Private]);
        assert_eq!(origins_of(&b.image(), &[0, 1]), [FileOrigin::Private; 3]);
    }

    #[test]
    fn queued_files_are_made_with_their_queue_and_after_the_processes_that_it_names() {
        let mut b = Builder::new([task(10, 1, 10, 10, 0), task(11, 10, 10, 10, 1)]);
        // 0 and 1 are the ends of a queue in which 2 waits.
        b.files(3).slot(0, 3, 0).slot(1, 3, 1);
        let queue = |credentials: bool, owner: Option<i32>| {
            let image = b.changed(|image| {
                image.files[0].object = Some(0);
                image.files[1].object = Some(0);
                let files = [image.files[2].id].into();
                image.queued_fds.insert(0, QueuedFds { files, credentials });
                image.files[2].signals = owner.map(|id| Signals { kind: 1, id, signal: 0 });
            });
            origins_of(&image, &[0, 1])
        };
        assert_eq!(queue(false, None), [STORE; 3]);
        assert_eq!(queue(true, None), [STORE_LATE; 3]);
        assert_eq!(queue(false, Some(10)), [STORE_LATE; 3]);
    }

    #[test]
    fn what_only_a_session_or_all_processes_allow_is_made_there() {
        let mut b = Builder::new([task(10, 1, 10, 10, 0), task(11, 10, 10, 10, 1)]);
        let tty: BTreeMap<&str, Value> = BTreeMap::from([
            ("device", Value::Array(vec![Value::Integer(136), Value::Integer(0)])),
            ("asked", Value::Bool(false)),
            ("hung", Value::Bool(false)),
            ("queued", Value::Integer(0)),
            ("exclusive", Value::Bool(false)),
        ]);
        let pidfd = BTreeMap::from([("pid", 10), ("start", 1)]);
        b.file("tty", "/dev/tty", &tty).file("pidfd", "anon_inode:[pidfd]", &pidfd);
        b.slot(0, 0, 0).slot(0, 1, 1).slot(1, 0, 0).slot(1, 1, 1);
        assert_eq!(origins_of(&b.image(), &[0, 1]), [FileOrigin::Session, STORE_LATE]);
        // In one table they need nothing of the others.
        assert_eq!(origins_of(&b.image(), &[0]), [FileOrigin::Private; 2]);
    }

    #[test]
    fn what_the_caller_gives_is_inherited() {
        let mut b = Builder::new([task(10, 1, 10, 10, 0), task(11, 10, 10, 10, 1)]);
        b.files(2).slot(0, 3, 0).slot(1, 3, 1).slot(1, 4, 0);
        let image = b.changed(|image| image.files[1].link = b"pipe:[77]"[..].into());
        let files = |inherit: Vec<Inherit>| {
            let options = RestoreOptions { inherit, ..RestoreOptions::default() };
            inherited_files(&image, &options, &image.tasks[0])
        };
        let [first, second] = [0, 1].map(|at: usize| image.files[at].id);
        assert_eq!(
            files(vec![Inherit::SameNumbers(vec![3])]).unwrap(),
            HashMap::from([(first, 3)])
        );
        assert_eq!(files(vec![Inherit::SameNumbers(vec![4])]).unwrap_err().status() as u8, 2);
        let key = |key: &[u8]| vec![Inherit::Key(key.to_vec(), 9)];
        assert_eq!(files(key(b"3")).unwrap(), HashMap::from([(first, 9)]));
        assert_eq!(files(key(b"11:3")).unwrap(), HashMap::from([(second, 9)]));
        assert_eq!(files(key(b"pipe:[77]")).unwrap(), HashMap::from([(second, 9)]));
        assert_eq!(files(key(b"pipe:[78]")).unwrap_err().status() as u8, 2);
        let given = HashMap::from([(first, 9)]);
        let origins = origins(&image, &given, &[0, 1]);
        assert_eq!(
            (origins[&first], origins[&second]),
            (FileOrigin::Inherited, FileOrigin::Private)
        );
    }
    #[test]
    fn a_key_with_a_process_id_comes_before_a_number_and_a_number_before_a_link() {
        let mut b = Builder::new([task(10, 1, 10, 10, 0), task(11, 10, 10, 10, 1)]);
        b.files(3).slot(0, 3, 0).slot(1, 3, 1).slot(1, 4, 0).slot(1, 5, 2);
        let image = b.changed(|image| {
            [1, 2].into_iter().for_each(|at| image.files[at].link = b"pipe:[77]"[..].into());
        });
        let files = |keys: &[(&str, RawFd)]| {
            let key = |(key, fd): &(&str, RawFd)| Inherit::Key(key.as_bytes().to_vec(), *fd);
            let inherit = keys.iter().map(key).collect();
            let options = RestoreOptions { inherit, ..RestoreOptions::default() };
            inherited_files(&image, &options, &image.tasks[0])
        };
        let [first, second, third] = [0, 1, 2].map(|at: usize| image.files[at].id);
        let numbers = [("3", 8), ("11:3", 9)];
        let wanted = HashMap::from([(first, 8), (second, 9)]);
        assert_eq!(files(&numbers).unwrap(), wanted);
        assert_eq!(files(&[numbers[1], numbers[0]]).unwrap(), wanted);
        let with_link = HashMap::from([(second, 9), (third, 7)]);
        assert_eq!(files(&[("pipe:[77]", 7), ("11:3", 9)]).unwrap(), with_link);
        // One description has one replacement, which two keys may name.
        assert_eq!(files(&[("10:3", 8), ("11:4", 8)]).unwrap(), HashMap::from([(first, 8)]));
        let why = files(&[("11:4", 9), ("10:3", 8)]).unwrap_err();
        assert_eq!(why.to_string(), "--inherit: another --inherit replaces '10:3' already");
        assert_eq!(why.status() as u8, 2);
    }
}
