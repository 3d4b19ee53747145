//! An image whose records are decoded once, when it is loaded.

use crate::error::Result;
use crate::image::{Image, OpenFile};
use crate::kind::validate::Validator;
use crate::kind::{Kind, Record};
use std::io::Read;
use std::ops::Deref;

/// A whole image in memory, with the decoded record of each file. All checks with status 3 were
/// made: no record needs one later.
pub struct DecodedImage {
    image: Image,
    /// The records, in the order of [`Image::files`].
    records: Vec<Box<dyn Record>>,
}

impl DecodedImage {
    /// Reads a whole image, decodes its records and validates them.
    ///
    /// Fails with status 3 as [`crate::image::Reader::next`] and [`Validator`] do.
    pub fn load(from: impl Read) -> Result<DecodedImage> {
        DecodedImage::new(Image::load(from)?)
    }

    /// Decodes the records of an image and validates them. Fails with status 3 as [`Validator`]
    /// does.
    pub fn new(image: Image) -> Result<DecodedImage> {
        let mut validator = Validator::naming(|file| image.number_of(file.id));
        image.tasks.iter().try_for_each(|task| validator.task(task))?;
        let records = image.files.iter().map(|file| validator.file(file));
        let records = records.collect::<Result<Vec<_>>>()?;
        image.slots.iter().try_for_each(|slot| validator.slot(slot))?;
        for (object, chunks) in &image.contents {
            for chunk in chunks {
                validator.contents(*object, chunk.offset, chunk.len, chunk.with.as_deref())?;
            }
        }
        validator.end()?;
        drop(validator);
        Ok(DecodedImage { image, records })
    }

    /// The record of a file of this image.
    pub fn record(&self, id: u32) -> Option<&dyn Record> {
        let at = self.image.files.binary_search_by_key(&id, |file| file.id).ok()?;
        Some(&*self.records[at])
    }

    /// The record of a file, if it is of kind K.
    pub(crate) fn record_as<K: Kind>(&self, id: u32) -> Option<&K> {
        self.record(id)?.as_any().downcast_ref()
    }

    /// All files with their records, by ascending id.
    pub fn files_and_records(&self) -> impl Iterator<Item = (&OpenFile, &dyn Record)> + Clone {
        self.image.files.iter().zip(self.records.iter().map(|record| &**record))
    }

    /// The files of kind K with their records, by ascending id.
    pub(crate) fn of_kind<K: Kind>(&self) -> impl Iterator<Item = (&OpenFile, &K)> {
        self.files_and_records()
            .filter_map(|(file, record)| Some((file, record.as_any().downcast_ref()?)))
    }
}

impl Deref for DecodedImage {
    type Target = Image;

    fn deref(&self) -> &Image {
        &self.image
    }
}
