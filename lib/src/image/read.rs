//! The reader of an image: one pass in constant memory, with each record checked before it is
//! given.

use super::record::{Item, VERSION};
use super::scan::{self, Found, MARK};
use super::{Checker, Head};
use crate::error::{Error, Result};
use std::io::{ErrorKind, Read};

const BUFFER: usize = 64 << 10;

/// A reader of the records of a stream.
pub struct Reader<R: Read> {
    from: R,
    buffer: Vec<u8>,
    /// The range of the buffer that has bytes which were not given yet.
    begin: usize,
    filled: usize,
    /// The number of bytes of the stream before `begin`.
    offset: u64,
    crc: crc32fast::Hasher,
    items: u64,
    checker: Checker,
    ended: bool,
}

/// A record, decoded, with its bytes.
pub struct RawItem<'a> {
    /// All its bytes, with the mark if it is the first.
    pub whole: &'a [u8],
    /// Their offset in the stream.
    pub offset: u64,
    /// The record.
    pub item: Item,
}

/// The key of a record, its encoded value, and all its bytes.
pub type RawRecord<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// The numbers of records of an image.
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
    /// Processes that the image lacks, in whole or in part.
    pub missing: u64,
}

impl<R: Read> Reader<R> {
    /// Makes a reader of a stream that begins with an image.
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

    /// The next record. None after the end, whose count and checksum were compared.
    ///
    /// Fails with status 3 if the stream breaks a rule of fdimage(5) or stops before the end. After
    /// a failure, nothing can be read any more.
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

    /// The next record, neither decoded nor checked: for a stream that was read to its end before.
    pub fn next_again(&mut self) -> Result<Option<RawRecord<'_>>> {
        if self.ended {
            return Ok(None);
        }
        // It has kept the rules before, so only its length is asked for, if it is in the buffer
        // whole.
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

    /// The head, which comes first, and its bytes. Fails with status 3 if there is none, or if its
    /// major version is another.
    pub fn head(&mut self) -> Result<(Head, Vec<u8>)> {
        match self.next()? {
            Some(RawItem { item: Item::Head(head), whole, .. }) => Ok((head, whole.to_vec())),
            _ => Err(Error::malformed("not an fdkit image: it has no head")),
        }
    }

    /// The numbers of records until now.
    pub fn summary(&self) -> Summary {
        self.checker.summary()
    }

    /// Reads the next item into the buffer, and gives its length.
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

    /// Reads until the buffer has at least `least` bytes. False if the stream ends before.
    fn fill(&mut self, least: usize) -> Result<bool> {
        self.buffer.copy_within(self.begin..self.filled, 0);
        self.filled -= self.begin;
        self.begin = 0;
        // The buffer grows with the bytes that have come, not with the length that was announced.
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

/// Fails with status 3 if the major version of an image is another than this reader's.
pub(super) fn readable(head: &Head) -> Result<()> {
    if head.version == VERSION {
        return Ok(());
    }
    let why = format!("version {} of the format; this fdkit reads {VERSION}", head.version);
    Err(Error::malformed(why))
}
