//! The kinds of descriptors: a file for each, and the table [`KINDS`], which lists them all.
//!
//! A kind's file is read from top to bottom: record, claims, capture, validate, check, restore,
//! tests. The code that is the same for all kinds (flags, owner, position, sharing, numbers) is in
//! `capture` and `table`.

mod captured;
mod contents;
pub mod context;
mod decoded;
pub mod effect;
mod journal;
mod opaque;
mod record;
mod validate;

/// Character devices: memory devices, devices without state, tun and tap.
mod device {
    pub(super) mod chardev;
    pub(super) mod mem;
    pub(super) mod tun;
}

/// Descriptors that report events: eventfd, timerfd, signalfd, epoll.
mod event {
    pub(super) mod epoll;
    pub(super) mod eventfd;
    pub(super) mod signalfd;
    pub(super) mod timerfd;
}

/// Files of a file system: regular, unlinked, directories, O_PATH descriptors, memfds.
mod file {
    pub(super) mod directory;
    pub(super) mod hardlink;
    pub(super) mod memfd;
    pub(super) mod path;
    pub(super) mod place;
    pub(super) mod quiet;
    pub(super) mod regular;
    pub(super) mod unlinked;
}

/// Pipes, fifos and POSIX message queues.
mod ipc {
    pub(super) mod fifo;
    pub(super) mod mqueue;
    pub(super) mod pipe;
}

/// Descriptors of processes and namespaces.
mod process {
    pub(super) mod ns;
    pub(super) mod pidfd;
}

/// Sockets: unix, internet, netlink and packet sockets, and the socket options of all of them.
mod socket {
    mod common;
    pub(super) mod icmp;
    pub(super) mod inet;
    pub(super) mod multicast;
    pub(super) mod netlink;
    pub(super) mod option;
    pub(super) mod packet;
    pub(super) mod portless;
    pub(super) mod raw;
    mod socket_file;
    pub(super) mod tcp;
    pub(super) mod udp;
    pub(super) mod unix;
    mod unix_queue;

    use self::common::{
        NONBLOCK, check_queue_limit, check_stop, events_without_error, listen, nonblock_flag,
        shut_down, shutdown_even_unconnected,
    };
}

/// Terminals: pseudo terminals and other terminal devices.
mod terminal {
    pub(super) mod pty;
    pub(super) mod pty_buffer;
    pub(super) mod tty;
}

/// File system watches: inotify and fanotify.
mod watch {
    pub(super) mod fanotify;
    pub(super) mod fsnotify;
    pub(super) mod inotify;
    pub(super) mod watches;
}

pub use captured::{Captured, record_of};
use contents::check_limit;
pub use contents::{ContentsContext, Piece, Sink, Watches};
pub use decoded::DecodedImage;
pub use record::{Record, decode};
pub use validate::Validator;

use crate::error::{At, Error, Result};
use crate::filter::Filter;
use crate::image::{MessageMeta, OpenFile, Slot, Task};
use crate::kind::context::{Opened, RestoreContext};
use crate::kind::effect::Effect;
use crate::kind::validate::{ErasedImageCheck, ErasedObjectCheck};
use crate::operation::{Operation, Outcome};
use crate::proc::{Descriptor, FdInfo};
use crate::terminal::Settings;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::Mode;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

/// The stage of a restore that must be complete before a description can be opened, or finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prerequisite {
    /// There is none.
    None,
    /// All descriptors of the table are placed: [`Kind::finish`] uses their numbers.
    Numbers,
    /// All processes of the image are forked.
    Processes,
    /// The process has its controlling terminal: /dev/tty is opened.
    ControllingTerminal,
}

/// A terminal that a descriptor is open on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenTerminal {
    /// Major and minor number of the terminal; of a master, those of its slave.
    pub device: (u32, u32),
    /// The restore creates this terminal: the descriptor is an end of a pseudo terminal.
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
    /// The addresses, descriptors and so on of a message.
    pub meta: Option<&'a MessageMeta>,
}

/// Checks that the records of one object, and its contents, agree with each other.
///
/// All errors have status 3. The methods are called in the order of the stream: with the files of
/// the object, then with its contents. The state kept must not grow with the contents.
pub trait ObjectCheck<K> {
    /// Checks a description of the object.
    fn file(&mut self, record: &K, file: &OpenFile) -> Result<()>;

    /// Checks a piece of its contents.
    fn contents(&mut self, piece: &ContentsPiece<'_>) -> Result<()>;
}

/// Checks that the records of a kind agree with each other across objects.
///
/// All errors have status 3. The methods are called in the order of the stream: with the tasks, the
/// files of the kind, and all slots. The state kept must not grow with the slots of other kinds.
pub trait ImageCheck<K> {
    /// Records a task.
    fn task(&mut self, task: &Task);

    /// Records a file of the kind.
    fn file(&mut self, record: &K, file: &OpenFile);

    /// Records a slot. Its file may be of another kind.
    fn slot(&mut self, slot: &Slot);

    /// Checks all records. `name` gives the name of a file in messages.
    fn end(&mut self, name: &dyn Fn(&OpenFile) -> String) -> Result<()>;
}

/// A kind of descriptor. The implementing type is the record: the body of a `file` item.
///
/// To add a kind, write or extend:
///
/// 1. its file in the directory of its family (`file`, `ipc`, `event`, `watch`, `process`,
///    `device`, `terminal`, `socket`), with a struct that implements this trait, and unit tests;
/// 2. in this file `pub(super) mod NAME;` in its family, and `ops::<FAMILY::NAME::Name>()` in
///    [`KINDS`], before every kind that would claim it too;
/// 3. its fixture `tests/mkfd/NAME.rs`, with the differences that the fixture must report, and the
///    two lines of the fixture in `tests/mkfd/main.rs`;
/// 4. its rule in the grammar, and its paragraph, in `man/fdimage.5`;
/// 5. its row in the table of `README.md`;
/// 6. its test lines: the round trips in `tests/suite/kinds.rs`, and each error and warning in the
///    other files of `tests/suite`.
///
/// Only NAME, `claims`, `capture` and `restore` are required; every other item has a default.
pub trait Kind: Serialize + DeserializeOwned + 'static {
    /// The name in images and filters.
    const NAME: &'static str;
    /// Several descriptions can share one object, known by device and inode number.
    const SHARES_OBJECT: bool = false;
    /// lseek(2) sets the position.
    const SEEKABLE: bool = false;
    /// The description is opened before those of other kinds: a path of another file, or the
    /// controlling terminal, may lead to it.
    const EARLY: bool = false;
    /// Descriptors can be queued in the object: SCM_RIGHTS of unix(7).
    const CARRIES_DESCRIPTORS: bool = false;
    /// The contents can be read unnoticed only, or best, while all processes that have the object open
    /// are stopped: they are taken out for a moment, or a state of the description is changed.
    const TAKES_CONTENTS_OUT: bool = false;

    /// Reports whether a descriptor is of this kind.
    fn claims(descriptor: &Descriptor<'_>) -> bool;

    /// True if the process that has such a descriptor may have to answer before another process can open
    /// a file.
    fn answers_opens(_info: &FdInfo) -> bool {
        false
    }

    /// The key of the object, which all its descriptions have in common. The default is the device
    /// and inode number if the kind [`Kind::SHARES_OBJECT`], and none if not.
    fn object(descriptor: &Descriptor<'_>) -> Option<(u32, u32, u64)> {
        descriptor.inode.as_ref().filter(|_| Self::SHARES_OBJECT).map(|inode| inode.key())
    }

    /// Reads the facts that only this kind has. Fails if they cannot be read or parsed; the
    /// descriptor is then recorded as `opaque`.
    fn capture(descriptor: &Descriptor<'_>) -> Result<Self>;

    /// Searches for the paths that [`Kind::capture`] needs: before the processes are stopped, after which
    /// nothing is searched. What is found is kept ([`crate::proc::FoundPaths`]).
    fn search(_descriptor: &Descriptor<'_>) {}

    /// Reads the contents of the object without consuming them. `copy` is a descriptor in this
    /// process of one of its descriptions: its position is shared with the scanned process and must
    /// not move. `limit` is in bytes. Fails if the contents are longer, or cannot be read.
    fn contents(
        _copy: BorrowedFd<'_>,
        _cx: &ContentsContext<'_>,
        _limit: u64,
        _to: Sink<'_>,
    ) -> Result<()> {
        Ok(())
    }

    /// The text for the description, as lsof(8) and ss(8) print it, if readlink(2) shows less.
    fn describe(&self, _: &OpenFile) -> Option<String> {
        None
    }

    /// The reason why the scan did not read the descriptor, with the cure; none if it did.
    fn unread_reason(&self) -> Option<String> {
        None
    }

    /// The terminal that the descriptor is open on, unless it has hung up.
    fn terminal(&self) -> Option<OpenTerminal> {
        None
    }

    /// The settings of [`Kind::terminal`], if they are in the record.
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

    /// Fails with status 6 if the description cannot be restored here; the error says why. Called
    /// before the restore changes anything.
    fn check(&self, _file: &OpenFile, _cx: &RestoreContext<'_>) -> Result<()> {
        Ok(())
    }

    /// What the restore does beyond the descriptors of the image. Called after [`Kind::check`].
    fn effects(&self, _file: &OpenFile, _cx: &RestoreContext<'_>) -> Result<Vec<Effect>> {
        Ok(Vec::new())
    }

    /// The stage that must be complete before the description can be opened, or finished.
    fn prerequisite(&self, _file: &OpenFile) -> Prerequisite {
        Prerequisite::None
    }

    /// The inode number by which the records of other sockets refer to this one.
    fn socket_inode(&self, _file: &OpenFile) -> Option<u64> {
        None
    }

    /// The [`Kind::socket_inode`]s of the sockets that [`Kind::restore`] opens together with this one.
    fn peer_inodes(&self) -> Vec<u64> {
        Vec::new()
    }

    /// Reports whether the other end is closed in the image, and must be open until the queue is
    /// filled: [`Opened::closed_end`].
    fn has_closed_end(&self) -> bool {
        false
    }

    /// Opens the description. Fails with status 6 if that is not possible here.
    ///
    /// An implementation destructures the record by field names, without `..`, so that the compiler
    /// reports a field that is not restored.
    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened>;

    /// The operation on the table that is run when all its descriptors are placed: it adds the
    /// members of an epoll. `number` is the lowest number of the description.
    fn operation(&self, _number: RawFd, _cx: &RestoreContext<'_>) -> Result<Option<Operation>> {
        Ok(None)
    }

    /// The text for [`Kind::finish`] in a dry run, such as `set the timer`; none if it does
    /// nothing.
    fn finish_text(&self) -> Option<&'static str> {
        None
    }

    /// Finishes the description when all descriptors of its table are placed. `number` is its
    /// lowest number, `fd` a descriptor of it in this process, and `outcome` that of
    /// [`Kind::operation`], which was run before.
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

    /// Makes the last changes, when all queues of the table are filled: shutdown(2), and options
    /// that would keep a queue from being filled.
    fn finish_last(
        &self,
        _file: &OpenFile,
        _fd: BorrowedFd<'_>,
        _cx: &mut RestoreContext<'_>,
    ) -> Result<()> {
        Ok(())
    }

    /// Opens the substitute of `--missing null`: read(2) returns end-of-file, and write(2) discards
    /// its bytes.
    fn substitute(&self, file: &OpenFile) -> Result<OwnedFd> {
        null_device(file)
    }
}

/// Opens /dev/null with the access mode of a file.
fn null_device(file: &OpenFile) -> Result<OwnedFd> {
    let flags = OFlag::from_bits_retain(file.flags as i32 & libc::O_ACCMODE);
    open("/dev/null", flags, Mode::empty()).at(|| "/dev/null")
}

/// The functions of a kind that need no record: those of the scan, and the decoder of a body.
pub struct KindOps {
    /// [`Kind::NAME`]
    pub name: &'static str,
    /// [`Kind::CARRIES_DESCRIPTORS`]
    pub carries_descriptors: bool,
    /// [`Kind::TAKES_CONTENTS_OUT`]
    pub(crate) takes_contents_out: bool,
    /// [`Kind::claims`]
    pub(crate) claims: fn(&Descriptor<'_>) -> bool,
    /// [`Kind::answers_opens`]
    pub(crate) answers_opens: fn(&FdInfo) -> bool,
    /// [`Kind::object`]
    pub(crate) object: fn(&Descriptor<'_>) -> Option<(u32, u32, u64)>,
    /// [`Kind::capture`], as the encoded body.
    pub(crate) capture: fn(&Descriptor<'_>) -> Result<Vec<u8>>,
    /// [`Kind::search`]
    pub(crate) search: fn(&Descriptor<'_>),
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
        takes_contents_out: K::TAKES_CONTENTS_OUT,
        claims: K::claims,
        answers_opens: K::answers_opens,
        object: K::object,
        capture: |descriptor| {
            serde_cbor::to_vec(&K::capture(descriptor)?)
                .map_err(|err| Error::malformed(err.to_string()))
        },
        search: K::search,
        contents: K::contents,
        decode: |file| Ok(Box::new(record::decode_body::<K>(file)?)),
        object_check: || Some(Box::new(validate::OfKind(K::object_check()?))),
        image_check: || Some(Box::new(validate::OfKind(K::image_check()?))),
    }
}

/// All kinds. A descriptor is of the first kind that claims it; `opaque`, the last, claims any.
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

/// The kind `opaque`: the last of [`KINDS`], which claims every descriptor.
static OPAQUE: &KindOps = &KINDS[KINDS.len() - 1];

/// The kind with this name.
pub fn named(name: &str) -> Option<&'static KindOps> {
    KINDS.iter().find(|kind| kind.name == name)
}

/// The names of all kinds.
pub fn names() -> Vec<&'static str> {
    KINDS.iter().map(|kind| kind.name).collect()
}

/// Parses a FILTER. The error is the reason alone, as argh wants it.
pub fn filter(text: &str) -> std::result::Result<Filter, String> {
    Filter::parse(text, &names())
}

/// Replaces the terminal of a record by the one that `to` describes, which a restore then opens by
/// its path. None if the file is not a terminal, or is restored without one.
pub fn retarget(file: &OpenFile, to: &OpenFile) -> Option<OpenFile> {
    terminal::tty::retarget(file, to)
}

/// The kind that claims a descriptor.
pub fn claimed_by(descriptor: &Descriptor<'_>) -> &'static KindOps {
    KINDS.iter().find(|kind| (kind.claims)(descriptor)).unwrap_or(OPAQUE)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::kind::record::decode_body;
    use crate::proc::openers::Openers;
    use crate::proc::{Process, inode_of};
    use std::os::fd::{AsFd, AsRawFd};

    /// The record of a descriptor of this process, as a scan writes it.
    pub(crate) fn file_of(fd: impl AsFd) -> OpenFile {
        let process = Process::open(std::process::id() as i32).unwrap();
        let number = fd.as_fd().as_raw_fd();
        record_of(Descriptor::read(&process, number, true, &mut Vec::new()).unwrap(), 0).unwrap()
    }

    /// The decoded body of that record, which must be of kind K.
    pub(crate) fn body_of<K: Kind>(fd: impl AsFd) -> K {
        let file = file_of(fd);
        assert_eq!(file.kind, K::NAME);
        decode_body(&file).unwrap()
    }

    /// Reads the contents of an object that only this process has open.
    pub(crate) fn contents_of<K: Kind>(
        fd: impl AsFd,
        limit: u64,
        mut take: impl FnMut(Piece<'_>),
    ) -> Result<()> {
        let process = &Process::open(std::process::id() as i32).unwrap();
        let inode = &inode_of(fd.as_fd()).unwrap();
        let object = (0, 0, 0);
        let openers = &Openers::new([], []);
        let watches = &Watches::default();
        let link = b"";
        let cx = ContentsContext { process, inode, object, link, openers, watches, frozen: false };
        K::contents(fd.as_fd(), &cx, limit, &mut |piece| {
            take(piece);
            Ok(())
        })
    }

    /// The text for a descriptor, as `fdimg show` prints it.
    pub(crate) fn describe_of(fd: impl AsFd) -> String {
        let file = file_of(fd);
        decode(&file).unwrap().describe(&file).unwrap()
    }

    #[test]
    fn names_are_unique_and_the_last_kind_is_opaque() {
        let names = names();
        for (at, name) in names.iter().enumerate() {
            assert!(!names[..at].contains(name) && named(name).is_some(), "{name}");
        }
        assert_eq!(names.last(), Some(&"opaque"));
    }

    #[test]
    fn a_body_that_is_not_a_map_is_malformed_for_every_kind() {
        let mut file = file_of(std::fs::File::open("/dev/null").unwrap());
        file.body = serde_cbor::to_vec(&["not a map"]).unwrap();
        for kind in KINDS {
            file.kind = kind.name.to_owned();
            let why = decode(&file).map(drop).unwrap_err();
            assert_eq!(why.status(), crate::error::Status::Malformed, "{}", kind.name);
        }
    }
}
