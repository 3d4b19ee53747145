//! How each file of the image comes about: private to a table, made for the fdstore, or inherited.

use super::shape::Shape;
use super::slots_of;
use crate::error::{Error, Result};
use crate::image::OpenFile;
use crate::kind::{DecodedImage, Need};
use crate::plan::{Inherit, RestoreOptions};
use std::collections::{HashMap, HashSet};
use std::os::fd::RawFd;

/// How a description comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// One table has it, and makes it.
    Private,
    /// Made once, for the store.
    Common { last: bool },
    /// Made by the first task that has it, which is of the right session, before its children.
    Session,
    /// The caller's.
    Handed(RawFd),
}

/// The files that the caller's descriptors stand for.
pub(super) fn handed(
    image: &DecodedImage,
    options: &RestoreOptions,
    shape: &Shape,
) -> Result<HashMap<u32, RawFd>> {
    let mut used = vec![false; options.inherit.len()];
    let mut handed = HashMap::new();
    // A number alone means the first task's, whatever others have there.
    let first = &image.tasks[shape.order[0]];
    for inherit in &options.inherit {
        if let Inherit::Own(fd) = inherit {
            let there = slots_of(image, first).iter().find(|slot| slot.fd as RawFd == *fd);
            let Some(slot) = there else {
                let why =
                    format!("--inherit: the first task, {}, has no descriptor {fd}", first.pid);
                return Err(Error::misuse(why));
            };
            handed.insert(slot.file, *fd);
        }
    }
    if options.inherit.iter().any(|inherit| matches!(inherit, Inherit::Key(..))) {
        for task in &image.tasks {
            for slot in slots_of(image, task) {
                let Some(file) = image.file(slot.file) else { continue };
                let Some(at) = options.handed(task.pid, slot, file) else { continue };
                let Inherit::Key(key, from) = &options.inherit[at] else { continue };
                let bare = key.iter().all(u8::is_ascii_digit);
                if !bare || task.pid == first.pid {
                    used[at] = true;
                    handed.entry(file.id).or_insert(*from);
                }
            }
        }
    }
    // What waits in queues has no number by which it could be meant.
    for id in image.queued_fds.values().flat_map(|cargo| &cargo.files) {
        let named = image.file(*id).and_then(|file| options.named(file));
        if let Some(Inherit::Key(_, from)) = named.map(|at| &options.inherit[at]) {
            named.into_iter().for_each(|at| used[at] = true);
            handed.entry(*id).or_insert(*from);
        }
    }
    options.all_used(&used)?;
    Ok(handed)
}

/// How each file comes about. What belongs together (an object, the ends of a connection) is made
/// in one place.
pub(super) fn origins(
    image: &DecodedImage,
    handed: &HashMap<u32, RawFd>,
    owners: &[usize],
) -> HashMap<u32, Origin> {
    let mut nodes = UnionFind((0..image.files.len()).collect());
    let index: HashMap<u32, usize> =
        image.files.iter().enumerate().map(|(at, file)| (file.id, at)).collect();
    let mut objects: HashMap<u32, usize> = HashMap::new();
    let sockets: HashMap<u64, usize> = image
        .files_and_records()
        .enumerate()
        .filter_map(|(at, (file, record))| Some((record.peer_id(file)?, at)))
        .collect();
    for (at, file) in image.files.iter().enumerate() {
        if let Some(object) = file.object {
            let first = *objects.entry(object).or_insert(at);
            nodes.join(first, at);
        }
        let peers = image.record(file.id).map(|record| record.peers()).unwrap_or_default();
        let peers = peers.iter().filter_map(|inode| sockets.get(inode)).copied();
        let queued = image.queued(file).filter_map(|id| index.get(&id).copied());
        peers.chain(queued).for_each(|other| nodes.join(other, at));
    }
    // The one table that has all of a group, if one has.
    let mut tables_of: HashMap<usize, Option<usize>> = HashMap::new();
    for &owner in owners {
        for slot in slots_of(image, &image.tasks[owner]) {
            let Some(&at) = index.get(&slot.file) else { continue };
            let group = nodes.of(at);
            let only = tables_of.entry(group).or_insert(Some(owner));
            *only = only.filter(|&only| only == owner);
        }
    }
    // A queue can be filled only when all that it carries is there: processes too, if its messages
    // name them, or if what waits has no table that would be told of them.
    let need =
        |file: &OpenFile| image.record(file.id).map_or(Need::Nothing, |record| record.need(file));
    let placed: HashSet<u32> = image.slots.iter().map(|slot| slot.file).collect();
    let mut queues: HashMap<usize, bool> = HashMap::new();
    for (at, file) in image.files.iter().enumerate() {
        if let Some(cargo) = file.object.and_then(|object| image.queued_fds.get(&object)) {
            *queues.entry(nodes.of(at)).or_default() |= cargo.credentials;
        }
    }
    for (at, file) in image.files.iter().enumerate() {
        if let Some(last) = queues.get_mut(&nodes.of(at)) {
            let told = file.signals.is_some() && !placed.contains(&file.id);
            *last |= told || need(file) == Need::Processes;
        }
    }
    let origin = |(at, file): (usize, &OpenFile)| {
        let need = match queues.get(&nodes.of(at)) {
            Some(true) => Need::Processes,
            _ => need(file),
        };
        let shared = tables_of.get(&nodes.of(at)).is_some_and(Option::is_none);
        let origin = match (handed.get(&file.id), shared, need) {
            (Some(&from), ..) => Origin::Handed(from),
            (None, false, _) => Origin::Private,
            (None, true, Need::Session) => Origin::Session,
            (None, true, need) => Origin::Common { last: need == Need::Processes },
        };
        (file.id, origin)
    };
    image.files.iter().enumerate().map(origin).collect()
}

/// Sets that grow together.
pub(super) struct UnionFind(Vec<usize>);

impl UnionFind {
    pub(super) fn of(&self, mut at: usize) -> usize {
        while self.0[at] != at {
            at = self.0[at];
        }
        at
    }

    pub(super) fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.of(one), self.of(other));
        // The lower index leads, and paths are halved on the way.
        let (low, high) = (one.min(other), one.max(other));
        self.0[high] = low;
    }
}
