//! Reads an image in one pass and constant memory, and believes nothing that it has not checked.

use super::record::{Item, VERSION};
use super::scan::{self, Found, MARK};
use super::{Checker, Head};
use crate::error::{Error, Result};
use std::io::{ErrorKind, Read};

const BUFFER: usize = 64 << 10;

/// Reads the records of a stream.
pub struct Reader<R: Read> {
    from: R,
    buffer: Vec<u8>,
    /// What of the buffer holds bytes not yet taken.
    begin: usize,
    filled: usize,
    /// Bytes of the stream before `begin`.
    offset: u64,
    crc: crc32fast::Hasher,
    items: u64,
    checker: Checker,
    ended: bool,
}

/// A record: its bytes in the stream, and what they mean.
pub struct RawItem<'a> {
    /// All its bytes, the mark of the first one included.
    pub whole: &'a [u8],
    /// Where they stand in the stream.
    pub offset: u64,
    /// What they mean.
    pub item: Item,
}

/// A record that is not decoded: its key, its value, and all its bytes.
pub type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// What was in a whole image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Tasks.
    pub tasks: u64,
    /// Open file descriptions.
    pub files: u64,
    /// Descriptors.
    pub slots: u64,
    /// Descriptions of kind `opaque`.
    pub opaque: u64,
    /// Bytes of contents.
    pub contents: u64,
}

impl<R: Read> Reader<R> {
    /// Begins to read.
    pub fn new(from: R) -> Self {
        Reader {
            from,
            buffer: vec![0; BUFFER],
            begin: 0,
            filled: 0,
            offset: 0,
            crc: crc32fast::Hasher::new(),
            items: 0,
            checker: Checker::default(),
            ended: false,
        }
    }

    /// The next record, or none after the end has been seen and found true.
    ///
    /// Fails with status 3 if the stream breaks a rule of fdimage(5), or stops before its end.
    /// Nothing may be read after a failure.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<RawItem<'_>>> {
        if self.ended {
            return Ok(None);
        }
        let len = self.find()?;
        let at = self.offset;
        let here = |err: Error| err.at(format!("byte {at}"));
        let range = self.begin..self.begin + len;
        let whole = &self.buffer[range.clone()];
        let bare = if self.items == 0 { &whole[MARK.len()..] } else { whole };
        let Some((key, value)) = scan::record(bare) else {
            return Err(here(Error::malformed("not a record with one key")));
        };
        let item = Item::decode(key, value).map_err(here)?;
        if let Item::End(end) = &item {
            if end.items != self.items {
                let count = self.items;
                let why = format!("{count} records where the end counts {}", end.items);
                return Err(Error::malformed(why));
            }
            if end.crc != self.crc.clone().finalize() {
                return Err(Error::malformed("the checksum does not match: some bytes are wrong"));
            }
            self.begin += len;
            self.offset += len as u64;
            if self.begin < self.filled || self.fill(1)? {
                return Err(Error::malformed("something follows the end"));
            }
            self.ended = true;
            return Ok(None);
        }
        self.checker.add(&item).map_err(here)?;
        self.crc.update(&self.buffer[range.clone()]);
        self.items += 1;
        self.begin += len;
        self.offset += len as u64;
        Ok(Some(RawItem { whole: &self.buffer[range], offset: at, item }))
    }

    /// The next record as its key, its value and all its bytes, for a stream that was read to its
    /// end before: it is neither decoded nor checked again.
    pub fn next_again(&mut self) -> Result<Option<Record<'_>>> {
        if self.ended {
            return Ok(None);
        }
        // What was found to keep the rules is only measured, where it is whole.
        let known = &self.buffer[self.begin..self.filled];
        let len = match scan::span(known).filter(|_| self.items > 0) {
            Some(len) => len,
            None => self.find()?,
        };
        let range = self.begin..self.begin + len;
        self.items += 1;
        self.begin += len;
        self.offset += len as u64;
        let whole = &self.buffer[range];
        let bare = if self.items == 1 { &whole[MARK.len()..] } else { whole };
        let (key, value) = scan::record(bare).ok_or_else(|| Error::malformed("not a record"))?;
        self.ended = key == b"end";
        Ok((!self.ended).then_some((key, value, whole)))
    }

    /// The head, which must come first and be of our major version.
    pub fn head(&mut self) -> Result<(Head, Vec<u8>)> {
        match self.next()? {
            Some(RawItem { item: Item::Head(head), whole, .. }) => Ok((head, whole.to_vec())),
            _ => Err(Error::malformed("not an fdkit image: it has no head")),
        }
    }

    /// What was in it so far.
    pub fn summary(&self) -> Summary {
        self.checker.summary()
    }

    /// The length of the next item, which then is in the buffer as a whole.
    fn find(&mut self) -> Result<usize> {
        loop {
            let have = &self.buffer[self.begin..self.filled];
            let found = if self.items == 0 { scan::first(have) } else { scan::item(have) };
            match found {
                Ok(Found::Whole(len)) => return Ok(len),
                Ok(Found::Short(least)) => {
                    if !self.fill(least)? {
                        return Err(match self.offset + (self.filled - self.begin) as u64 {
                            0 => Error::malformed("empty: there is no image"),
                            at => Error::malformed(format!("truncated after {at} bytes")),
                        });
                    }
                }
                Err(bad) => {
                    let at = self.offset + bad.at as u64;
                    return Err(Error::malformed(bad.why).at(format!("byte {at}")));
                }
            }
        }
    }

    /// Reads until at least `least` bytes are there; false if the stream ends before.
    fn fill(&mut self, least: usize) -> Result<bool> {
        self.buffer.copy_within(self.begin..self.filled, 0);
        self.filled -= self.begin;
        self.begin = 0;
        // Room grows with what has come, not with what was announced.
        while self.filled < least {
            if self.filled == self.buffer.len() {
                self.buffer.resize((self.buffer.len() * 2).min(scan::MAX_ITEM + BUFFER), 0);
            }
            match self.from.read(&mut self.buffer[self.filled..]) {
                Ok(0) => return Ok(false),
                Ok(count) => self.filled += count,
                Err(err) if err.kind() == ErrorKind::Interrupted => (),
                Err(err) => return Err(err.into()),
            }
        }
        Ok(true)
    }
}

/// Whether a reader of this version can read an image with this head.
pub(super) fn readable(head: &Head) -> Result<()> {
    if head.version == VERSION {
        return Ok(());
    }
    let why = format!("version {} of the format; this fdkit reads {VERSION}", head.version);
    Err(Error::malformed(why))
}
