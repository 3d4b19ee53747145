//! The writer of an image, which counts the records and computes the checksum.

use super::record::{End, Item};
use super::scan::MARK;
use crate::error::Result;
use std::io::Write;

/// The bytes that are gathered for one write(2).
const BUFFER: usize = 64 << 10;

/// A writer of records to a stream, which ends it with an `end` record.
pub struct Writer<W: Write> {
    out: W,
    buffer: Vec<u8>,
    crc: crc32fast::Hasher,
    items: u64,
}

impl<W: Write> Writer<W> {
    /// Makes a writer. The first record has to be the head.
    pub fn new(out: W) -> Self {
        let buffer = Vec::with_capacity(BUFFER + (4 << 10));
        Writer { out, buffer, crc: crc32fast::Hasher::new(), items: 0 }
    }

    /// Encodes and writes a record.
    pub fn put(&mut self, item: &Item) -> Result<()> {
        if self.items == 0 {
            self.buffer.extend(MARK);
        }
        let (key, value) = item.encode();
        self.buffer.push(0xa1);
        self.buffer.push(0x60 | key.len() as u8);
        self.buffer.extend_from_slice(key.as_bytes());
        self.buffer.extend_from_slice(&value);
        self.counted()
    }

    /// Writes the bytes of a record as they are. Those of the head have the mark.
    pub fn pass(&mut self, whole: &[u8]) -> Result<()> {
        self.buffer.extend_from_slice(whole);
        self.counted()
    }

    fn counted(&mut self) -> Result<()> {
        self.items += 1;
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        self.crc.update(&self.buffer);
        self.out.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    /// Ends the stream: writes the `end` record and all that is still gathered.
    pub fn end(mut self) -> Result<W> {
        self.flush()?;
        let end = End { items: self.items, crc: self.crc.clone().finalize() };
        self.put(&Item::End(end))?;
        self.out.write_all(&self.buffer)?;
        self.out.flush()?;
        Ok(self.out)
    }
}
