//! The kinds of descriptors: one file each, one table that names them all.
//!
//! A kind is read top to bottom: record, claims, capture, validate, check, restore, tests. What is
//! the same for all kinds (flags, owner, position, sharing, numbers) is in `capture` and `table`.

mod captured;
mod contents;
pub mod context;
mod decoded;
mod device;
mod event;
mod file;
mod ipc;
mod journal;
mod opaque;
mod process;
mod record;
mod socket;
mod terminal;
mod validate;
mod watch;

pub use captured::{Captured, record_of};
pub use contents::{ContentsContext, Piece, Sink};
pub use decoded::DecodedImage;
pub use record::{Record, decode};
pub use validate::Validator;

use crate::error::{At, Error, Result};
use crate::image::{MessageMeta, OpenFile, Slot, Task};
use crate::kind::context::{Opened, RestoreContext};
use crate::kind::validate::{ErasedImageCheck, ErasedObjectCheck};
use crate::operation::{Operation, Outcome};
use crate::proc::Descriptor;
use crate::terminal::Settings;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::Mode;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

/// The step of a restore that must be done before a description can be made, or finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prerequisite {
    /// None.
    None,
    /// The descriptors of its table are placed: what finishes it names their numbers.
    Numbers,
    /// The processes of the image exist.
    Processes,
    /// The process has its controlling terminal: it opens /dev/tty.
    ControllingTerminal,
}

/// A terminal that a descriptor is open on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenTerminal {
    /// Major and minor number of the terminal; of a master, those of its slave.
    pub device: (u32, u32),
    /// The restore makes this terminal anew: it is an end of a pseudo terminal.
    pub is_pty: bool,
    /// The descriptor is the master of a pseudo terminal.
    pub is_master: bool,
}

/// A piece of the contents of an object, for [`ObjectCheck`].
#[derive(Clone, Copy, Debug)]
pub struct ContentsPiece<'a> {
    /// The offset in a file, in bytes; zero in a queue.
    pub offset: i64,
    /// The length in bytes.
    pub len: usize,
    /// What came with a message.
    pub meta: Option<&'a MessageMeta>,
}

/// Checks what the records of one object, and its contents, say of each other.
///
/// All errors have status 3. It sees the files of the object first, then its contents, in the order
/// of the stream; what it keeps must not grow with the contents.
pub trait ObjectCheck<K> {
    /// Checks a description of the object.
    fn file(&mut self, record: &K, file: &OpenFile) -> Result<()>;

    /// Checks a piece of its contents.
    fn contents(&mut self, piece: &ContentsPiece<'_>) -> Result<()>;
}

/// Checks what the records of a kind say of each other across objects.
///
/// All errors have status 3. It sees the tasks, the files of its kind and all slots in the order of
/// the stream; what it keeps must not grow with the slots of other kinds.
pub trait ImageCheck<K> {
    /// Takes notice of a task.
    fn task(&mut self, task: &Task);

    /// Takes notice of a file of the kind.
    fn file(&mut self, record: &K, file: &OpenFile);

    /// Takes notice of a slot that names a file of the kind.
    fn slot(&mut self, slot: &Slot);

    /// Checks all of them. `name` is how messages name a file.
    fn end(&mut self, name: &dyn Fn(&OpenFile) -> String) -> Result<()>;
}

/// A kind of descriptor. The implementing type is the record: the body of a `file` item.
pub trait Kind: Serialize + DeserializeOwned + 'static {
    /// The name in images and filters.
    const NAME: &'static str;
    /// Its descriptions share an object, known by device and inode number.
    const SHARES_OBJECT: bool = false;
    /// lseek(2) sets its position.
    const SEEKABLE: bool = false;
    /// It is made before all others: paths and the controlling terminal may lead to it.
    const EARLY: bool = false;
    /// Descriptors can be queued in it (SCM_RIGHTS).
    const CARRIES_DESCRIPTORS: bool = false;

    /// Reports whether a descriptor is of this kind.
    fn claims(it: &Descriptor<'_>) -> bool;

    /// The key that all descriptions of its object have in common: device and inode number if it
    /// [`Kind::SHARES_OBJECT`], unless a kind has a better one.
    fn object(it: &Descriptor<'_>) -> Option<(u32, u32, u64)> {
        let inode = it.inode.as_ref().filter(|_| Self::SHARES_OBJECT)?;
        Some((inode.dev.0, inode.dev.1, inode.ino))
    }

    /// Captures the facts that only this kind has. Fails if they are not understood; the descriptor
    /// is then recorded as `opaque`.
    fn capture(it: &Descriptor<'_>) -> Result<Self>;

    /// Reads the contents of its object without consuming them. `copy` is a descriptor of ours for
    /// one of its descriptions; its position is the program's and must not move. `limit` is in
    /// bytes.
    fn contents(
        _copy: BorrowedFd<'_>,
        _cx: &ContentsContext<'_>,
        _limit: u64,
        _to: Sink<'_>,
    ) -> Result<()> {
        Ok(())
    }

    /// A description as lsof(8) and ss(8) print it, where that is more than readlink(2) shows.
    fn describe(&self, _: &OpenFile) -> Option<String> {
        None
    }

    /// The terminal that it is open on, if it is one and has not hung up.
    fn terminal(&self) -> Option<OpenTerminal> {
        None
    }

    /// The settings of that terminal, if they are in the record.
    fn settings(&self) -> Option<&Settings> {
        None
    }

    /// Checks every field of the record, and those fields of the file that the kind depends on.
    /// Called once, when the record is decoded; fails with status 3.
    fn validate(&self, _file: &OpenFile) -> Result<()> {
        Ok(())
    }

    /// Starts the check of an object whose first description is of this kind.
    fn object_check() -> Option<Box<dyn ObjectCheck<Self>>> {
        None
    }

    /// Starts the check of all records of this kind in an image.
    fn image_check() -> Option<Box<dyn ImageCheck<Self>>> {
        None
    }

    /// Fails with status 6, and says why, if the description cannot be restored here. Called before
    /// anything is touched.
    fn check(&self, _file: &OpenFile, _cx: &RestoreContext<'_>) -> Result<()> {
        Ok(())
    }

    /// The step that must be done before it can be made, or finished.
    fn prerequisite(&self, _file: &OpenFile) -> Prerequisite {
        Prerequisite::None
    }

    /// The inode number by which the records of its peers name it.
    fn peer_id(&self, _file: &OpenFile) -> Option<u64> {
        None
    }

    /// The [`Kind::peer_id`]s of the sockets with which it is made together.
    fn peer_ids(&self) -> Vec<u64> {
        Vec::new()
    }

    /// Its other end is closed, and must be open until its queue is filled: [`Opened::parked`].
    fn parks_other_end(&self) -> bool {
        false
    }

    /// Makes the description anew. Takes the record apart by name, without `..`, so that no field
    /// is forgotten.
    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened>;

    /// The operation of its own on the table, once all descriptors of that are placed: the members
    /// of an epoll. `number` is the lowest number of the description.
    fn operation(&self, _number: RawFd, _cx: &RestoreContext<'_>) -> Result<Option<Operation>> {
        Ok(None)
    }

    /// The words for what [`Kind::finish`] does, if it does anything: `set the timer`.
    fn finish_text(&self) -> Option<&'static str> {
        None
    }

    /// Finishes the description once all descriptors of its table are placed and its operation, if
    /// it has one, has this outcome. `number` is its lowest number, `fd` a descriptor of it in this
    /// process.
    fn finish(
        &self,
        _file: &OpenFile,
        _number: RawFd,
        _fd: BorrowedFd<'_>,
        _outcome: &Outcome,
        _cx: &mut RestoreContext<'_>,
    ) -> Result<()> {
        Ok(())
    }

    /// Does what would keep queues from being filled, once all of them are.
    fn finish_last(
        &self,
        _file: &OpenFile,
        _fd: BorrowedFd<'_>,
        _cx: &mut RestoreContext<'_>,
    ) -> Result<()> {
        Ok(())
    }

    /// Makes what stands in its place under `--missing null`: reads return end-of-file, and what is
    /// written is discarded.
    fn substitute(&self, file: &OpenFile) -> Result<OwnedFd> {
        null_device(file)
    }
}

/// /dev/null with the access mode of a file.
fn null_device(file: &OpenFile) -> Result<OwnedFd> {
    let flags = OFlag::from_bits_retain(file.flags as i32 & libc::O_ACCMODE);
    open("/dev/null", flags, Mode::empty()).at(|| "/dev/null")
}

/// The functions of a kind that need no record: for the scan, and to decode a body.
pub struct KindOps {
    /// [`Kind::NAME`]
    pub name: &'static str,
    /// [`Kind::CARRIES_DESCRIPTORS`]
    pub carries_descriptors: bool,
    /// [`Kind::claims`]
    pub(crate) claims: fn(&Descriptor<'_>) -> bool,
    /// [`Kind::object`]
    pub(crate) object: fn(&Descriptor<'_>) -> Option<(u32, u32, u64)>,
    /// [`Kind::capture`], as the encoded body.
    pub(crate) capture: fn(&Descriptor<'_>) -> Result<Vec<u8>>,
    /// [`Kind::contents`]
    pub(crate) contents: fn(BorrowedFd<'_>, &ContentsContext<'_>, u64, Sink<'_>) -> Result<()>,
    /// Decodes the body of a file. Fails with status 3.
    pub(crate) decode: fn(&OpenFile) -> Result<Box<dyn Record>>,
    /// [`Kind::object_check`]
    pub(crate) object_check: fn() -> Option<Box<dyn ErasedObjectCheck>>,
    /// [`Kind::image_check`]
    pub(crate) image_check: fn() -> Option<Box<dyn ErasedImageCheck>>,
}

const fn ops<K: Kind>() -> KindOps {
    KindOps {
        name: K::NAME,
        carries_descriptors: K::CARRIES_DESCRIPTORS,
        claims: K::claims,
        object: K::object,
        capture: |it| {
            serde_cbor::to_vec(&K::capture(it)?).map_err(|err| Error::malformed(err.to_string()))
        },
        contents: K::contents,
        decode: |file| Ok(Box::new(record::body::<K>(file)?)),
        object_check: || Some(Box::new(validate::OfKind(K::object_check()?))),
        image_check: || Some(Box::new(validate::OfKind(K::image_check()?))),
    }
}

/// All kinds. The first that claims a descriptor has it; `opaque` claims whatever is left.
pub static KINDS: &[KindOps] = &[
    ops::<ipc::mqueue::Mqueue>(),
    ops::<file::regular::Regular>(),
    ops::<file::unlinked::Unlinked>(),
    ops::<file::memfd::Memfd>(),
    ops::<file::directory::Directory>(),
    ops::<ipc::pipe::Pipe>(),
    ops::<ipc::fifo::Fifo>(),
    ops::<terminal::pty::Pty>(),
    ops::<terminal::tty::Tty>(),
    ops::<event::eventfd::Eventfd>(),
    ops::<event::signalfd::Signalfd>(),
    ops::<event::timerfd::Timerfd>(),
    ops::<event::epoll::Epoll>(),
    ops::<watch::inotify::Inotify>(),
    ops::<watch::fanotify::Fanotify>(),
    ops::<process::pidfd::Pidfd>(),
    ops::<process::ns::Ns>(),
    ops::<device::mem::Mem>(),
    ops::<device::chardev::Chardev>(),
    ops::<device::tun::Tun>(),
    ops::<socket::unix::Unix>(),
    ops::<socket::tcp::Tcp>(),
    ops::<socket::udp::Udp>(),
    ops::<socket::raw::Raw>(),
    ops::<socket::icmp::Icmp>(),
    ops::<socket::netlink::Netlink>(),
    ops::<socket::packet::Packet>(),
    ops::<file::path::Path>(),
    ops::<opaque::Opaque>(),
];

/// The last of [`KINDS`], which claims every descriptor.
static OPAQUE: &KindOps = &KINDS[KINDS.len() - 1];

/// The kind with this name.
pub fn named(name: &str) -> Option<&'static KindOps> {
    KINDS.iter().find(|kind| kind.name == name)
}

/// The names of all kinds.
pub fn names() -> Vec<&'static str> {
    KINDS.iter().map(|kind| kind.name).collect()
}

/// Makes the record of a terminal outside the image one of the terminal that `to` describes, which
/// is then opened by its path. None if the file is no terminal, or is restored without it.
pub fn retarget(file: &OpenFile, to: &OpenFile) -> Option<OpenFile> {
    terminal::tty::retarget(file, to)
}

/// The kind that claims a descriptor.
pub fn claimed_by(it: &Descriptor<'_>) -> &'static KindOps {
    KINDS.iter().find(|kind| (kind.claims)(it)).unwrap_or(OPAQUE)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::kind::record::body;
    use crate::proc::{Process, inode_of};
    use std::os::fd::{AsFd, AsRawFd};

    /// The file that a scan of this process makes of a descriptor.
    pub(crate) fn file_of(fd: impl AsFd) -> OpenFile {
        let process = Process::open(std::process::id() as i32).unwrap();
        let number = fd.as_fd().as_raw_fd();
        record_of(Descriptor::read(&process, number, true, &mut Vec::new()).unwrap(), 0).unwrap()
    }

    /// The body of it, which must be of this kind.
    pub(crate) fn body_of<K: Kind>(fd: impl AsFd) -> K {
        let file = file_of(fd);
        assert_eq!(file.kind, K::NAME);
        body(&file).unwrap()
    }

    /// What a kind finds in what only we have open.
    pub(crate) fn contents_of<K: Kind>(
        fd: impl AsFd,
        limit: u64,
        mut take: impl FnMut(Piece<'_>),
    ) -> Result<()> {
        let inode = &inode_of(fd.as_fd()).unwrap();
        let object = (0, 0, 0);
        let cx = ContentsContext { inode, object, link: b"", captured: &[], frozen: false };
        K::contents(fd.as_fd(), &cx, limit, &mut |piece| {
            take(piece);
            Ok(())
        })
    }

    /// What a descriptor is, as `fdimg show` says it.
    pub(crate) fn describe_of(fd: impl AsFd) -> String {
        let file = file_of(fd);
        decode(&file).unwrap().describe(&file).unwrap()
    }

    #[test]
    fn names_are_told_apart_and_the_last_kind_takes_what_is_left() {
        let names = names();
        for (at, name) in names.iter().enumerate() {
            assert!(!names[..at].contains(name) && named(name).is_some(), "{name}");
        }
        assert_eq!(names.last(), Some(&"opaque"));
    }

    #[test]
    fn a_body_of_another_kind_is_malformed_whatever_the_kind() {
        let mut file = file_of(std::fs::File::open("/dev/null").unwrap());
        file.body = serde_cbor::to_vec(&["not a map"]).unwrap();
        for kind in KINDS {
            file.kind = kind.name.to_owned();
            let why = decode(&file).map(drop).unwrap_err();
            assert_eq!(why.status(), crate::error::Status::Malformed, "{}", kind.name);
        }
    }
}
