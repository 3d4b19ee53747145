//! The image format, fdimage(5): its records, its reader and its writer.

mod check;
mod file;
mod inode;
mod load;
mod read;
mod record;
pub mod scan;
mod task_check;
mod write;

#[cfg(test)]
pub(crate) mod tests;

pub use check::Checker;
pub use file::NewFile;
pub use inode::{inode_at, inode_of};
pub use load::{Chunk, Image, QueuedFds};
pub use read::{RawItem, RawRecord, Reader, Summary};
pub use record::{
    Bytes, Credentials, Data, End, Head, Inode, Item, Lock, MAX_CHUNK, MINOR, MessageMeta, Missing,
    OPAQUE, OpenFile, Signals, Slot, Table, Task, Terminal, Typed, VERSION,
};
pub use task_check::TaskChecker;
pub use write::Writer;
