//! Checks that need no kind: every id that a record names has come before, and no number comes
//! twice in a table.

use super::read::{Summary, readable};
use super::record::Item;
use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// Ids that have come in ascending order, as ranges: an image as it was scanned has one.
#[derive(Debug, Default)]
struct Ids(Vec<(u32, u32)>);

impl Ids {
    /// Adds an id. False if it is not above all before it.
    fn add(&mut self, id: u32) -> bool {
        match self.0.last_mut() {
            Some((_, last)) if id <= *last => return false,
            Some((_, last)) if id - 1 == *last => *last = id,
            _ => self.0.push((id, id)),
        }
        true
    }

    fn has(&self, id: u32) -> bool {
        let after = self.0.partition_point(|&(first, _)| first <= id);
        after > 0 && id <= self.0[after - 1].1
    }
}

/// Checks the records of a stream one after another. Its memory grows with the number of tables and
/// of gaps between ids.
#[derive(Debug, Default)]
pub struct Checker {
    /// The head has come.
    started: bool,
    files: Ids,
    objects: Ids,
    /// The highest number of each table until now.
    tables: BTreeMap<u32, Option<u32>>,
    /// Contents have come.
    data: bool,
    summary: Summary,
}

fn broken<T>(why: String) -> Result<T> {
    Err(Error::malformed(why))
}

impl Checker {
    /// Checks a record. Fails with status 3 if it breaks a rule of fdimage(5), given those before
    /// it.
    pub fn add(&mut self, item: &Item) -> Result<()> {
        if self.started == matches!(item, Item::Head(_)) {
            return broken("not an fdkit image: a head stands first, and only there".into());
        }
        self.started = true;
        if self.data && !matches!(item, Item::Data(_) | Item::Other) {
            return broken("contents are followed by a task, file or slot".into());
        }
        match item {
            Item::Head(head) => readable(head)?,
            Item::Task(task) => {
                self.summary.tasks += 1;
                self.tables.entry(task.table.id).or_default();
            }
            Item::File(file) => {
                let id = file.id;
                self.summary.files += 1;
                self.summary.opaque += u64::from(file.is_opaque());
                if !self.files.add(id) {
                    return broken(format!("file {id} does not come after smaller ids"));
                }
                let object = file.object.filter(|&object| !self.objects.has(object));
                if object.is_some_and(|object| !self.objects.add(object)) {
                    return broken(format!(
                        "file {id}: its object does not come after smaller ids"
                    ));
                }
            }
            Item::Slot(slot) => {
                let (fd, table) = (slot.fd, slot.table);
                self.summary.slots += 1;
                if fd > i32::MAX as u32 {
                    return broken(format!("slot {fd}: no such number can exist"));
                }
                if !self.files.has(slot.file) {
                    return broken(format!(
                        "slot {fd} names file {}, which is not there",
                        slot.file
                    ));
                }
                let Some(last) = self.tables.get_mut(&table) else {
                    return broken(format!("slot {fd} is of table {table}, which no task has"));
                };
                if last.is_some_and(|last| last == fd) {
                    return broken(format!("slot {fd} comes twice in table {table}"));
                }
                if last.is_some_and(|last| last > fd) {
                    return broken(format!("slot {fd} of table {table} comes after a higher one"));
                }
                *last = Some(fd);
            }
            Item::Data(data) => {
                self.data = true;
                self.summary.contents += data.bytes.0.len() as u64;
                if !self.objects.has(data.object) {
                    return broken(format!("contents of object {}, not there", data.object));
                }
                let files = data.with.iter().flat_map(|with| &with.files);
                if let Some(missing) = files.copied().find(|&each| !self.files.has(each)) {
                    let object = data.object;
                    return broken(format!(
                        "file {missing}, queued in object {object}, is not there"
                    ));
                }
            }
            Item::Missing(_) => self.summary.missing += 1,
            Item::End(_) | Item::Other => (),
        }
        Ok(())
    }

    /// The numbers of records until now.
    pub fn summary(&self) -> Summary {
        self.summary
    }
}
