//! The kinds of descriptors: one file each, one table that names them all.
//!
//! A kind is read top to bottom: record, claims, capture, restore, tests. What is the same for all
//! (flags, owner, position, sharing, numbers) is in `capture` and `restore`.

pub mod context;
mod device;
mod event;
mod file;
mod ipc;
mod journal;
mod opaque;
mod process;
mod socket;
mod terminal;
mod watch;

use crate::error::{At, Error, Result};
use crate::image::{Bytes, Inode, MessageMeta, OpenFile, Signals};
use crate::kind::context::{Opened, RestoreContext};
use crate::proc::openers;
use crate::proc::{CLOEXEC, Descriptor, FdInfo};
use crate::sys::PlacedFd;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::Mode;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use opaque::unreadable;

/// A piece of contents on its way into an image.
#[derive(Debug, Default)]
pub struct Piece<'a> {
    /// Where it stands in a file; zero in a queue.
    pub offset: i64,
    /// At most [`crate::image::MAX_CHUNK`] bytes.
    pub bytes: &'a [u8],
    /// What came with a message.
    pub with: Option<MessageMeta>,
    /// Copies of the descriptors that wait with it.
    pub fds: Vec<OwnedFd>,
}

/// Where contents are read.
#[derive(Debug)]
pub struct ContentsContext<'a> {
    /// What is open, as stat(2) says it now.
    pub inode: &'a Inode,
    /// What [`Kind::object`] said of it.
    pub object: (u32, u32, u64),
    /// What readlink(2) shows of it.
    pub link: &'a [u8],
    /// The processes that are captured.
    pub captured: &'a [i32],
    /// Whether those stand still.
    pub frozen: bool,
}

impl ContentsContext<'_> {
    /// For contents whose reading would be noticed, as when they are taken out for a moment: fails
    /// unless everybody who has the inode open stands still.
    pub fn require_frozen(&self) -> Result<()> {
        let name = self.link.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        self.require_frozen_by(|captured| openers::another(self.inode, name, captured))
    }

    /// Likewise where the inode is not all: `another` finds a process which has it open, or may
    /// have, and is not among those that are captured.
    pub fn require_frozen_by(&self, another: impl FnOnce(&[i32]) -> Option<i32>) -> Result<()> {
        if !self.frozen {
            let why = "to read them would disturb it: that takes --freeze";
            return Err(Error::unrestorable(why));
        }
        match another(self.captured) {
            None => Ok(()),
            Some(pid) => Err(Error::unrestorable(format!(
                "process {pid}, which is not stopped, has it open or may have"
            ))),
        }
    }
}

/// Takes contents.
pub type Sink<'a> = &'a mut dyn FnMut(Piece<'_>) -> Result<()>;

/// What must be there before a description can be made, or finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// What it is made from.
    Nothing,
    /// The numbers of its table, for [`Kind::late`].
    Numbers,
    /// The processes that are restored.
    Processes,
    /// The controlling terminal: its process makes it.
    Session,
}

/// What every kind does. The record is the type itself.
pub trait Kind: Serialize + DeserializeOwned {
    /// Its name in images and filters.
    const NAME: &'static str;
    /// Whether its descriptions share an object, known by device and inode number.
    const SHARES: bool = false;
    /// Whether lseek(2) brings its position back.
    const SEEKS: bool = false;
    /// Whether it is made before all that is not: paths and the controlling terminal may lead to it.
    const EARLY: bool = false;
    /// Whether it has something left to do when all numbers stand: [`Kind::late`].
    const LATE: bool = false;
    /// Whether descriptors can wait in its queue.
    const CARRIES: bool = false;

    /// Whether a descriptor is of this kind.
    fn claims(it: &Descriptor<'_>) -> bool;

    /// What is the same for all descriptions of its object: device and inode number if it
    /// [`Kind::SHARES`], unless a kind knows better.
    fn object(it: &Descriptor<'_>) -> Option<(u32, u32, u64)> {
        let inode = it.inode.as_ref().filter(|_| Self::SHARES)?;
        Some((inode.dev.0, inode.dev.1, inode.ino))
    }

    /// Takes what is its own from a descriptor.
    fn capture(it: &Descriptor<'_>) -> Result<Self>;

    /// Reads the contents of its object without consuming them. `copy` is a descriptor of ours for
    /// one of its descriptions; its position is not ours and must not be moved.
    fn contents(
        _copy: BorrowedFd<'_>,
        _scene: &ContentsContext<'_>,
        _limit: u64,
        _to: Sink<'_>,
    ) -> Result<()> {
        Ok(())
    }

    /// What it is, as lsof(8) and ss(8) say it, where that is more than readlink(2) shows.
    fn describe(&self, _: &OpenFile) -> Option<String> {
        None
    }

    /// The terminal that it leads to: major and minor number.
    fn terminal(&self) -> Option<(u32, u32)> {
        None
    }

    /// Says why a description cannot be restored here, before anything is touched.
    fn check(&self, _file: &OpenFile, _site: &RestoreContext<'_>) -> Result<()> {
        Ok(())
    }

    /// What must be there first.
    fn need(&self, _file: &OpenFile) -> Need {
        Need::Nothing
    }

    /// The inodes of sockets that it is connected to, with which it is made.
    fn peers(&self) -> Vec<u64> {
        Vec::new()
    }

    /// Whether an end that nobody has any more must stand until the queue is filled:
    /// [`RestoreContext::park`].
    fn parks(&self) -> bool {
        false
    }

    /// Makes the description anew. Takes the record apart by name, so that no field is forgotten.
    fn restore(self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened>;

    /// What can be done only when all numbers of the table stand. `placed` is its lowest number.
    fn late(
        &self,
        _file: &OpenFile,
        _seat: PlacedFd,
        _site: &mut RestoreContext<'_>,
    ) -> Result<()> {
        Ok(())
    }

    /// What stands in its place under `--missing null`: reads end, writes go nowhere.
    fn null(file: &OpenFile) -> Result<OwnedFd> {
        let flags = OFlag::from_bits_retain(file.flags as i32 & libc::O_ACCMODE);
        open("/dev/null", flags, Mode::empty()).at(|| "/dev/null")
    }
}

/// A kind without its type.
pub struct KindOps {
    /// [`Kind::NAME`]
    pub name: &'static str,
    /// [`Kind::object`]
    pub object: fn(&Descriptor<'_>) -> Option<(u32, u32, u64)>,
    /// [`Kind::SEEKS`]
    pub seeks: bool,
    /// [`Kind::claims`]
    pub claims: fn(&Descriptor<'_>) -> bool,
    /// [`Kind::capture`], as the encoded body.
    pub capture: fn(&Descriptor<'_>) -> Result<Vec<u8>>,
    /// [`Kind::contents`]
    pub contents: fn(BorrowedFd<'_>, &ContentsContext<'_>, u64, Sink<'_>) -> Result<()>,
    /// [`Kind::describe`], from the encoded body.
    pub describe: fn(&OpenFile) -> Option<String>,
    /// [`Kind::terminal`], from the encoded body.
    pub terminal: fn(&OpenFile) -> Option<(u32, u32)>,
    /// [`Kind::check`], from the encoded body.
    pub check: fn(&OpenFile, &RestoreContext<'_>) -> Result<()>,
    /// [`Kind::need`], from the encoded body.
    pub need: fn(&OpenFile) -> Need,
    /// [`Kind::peers`], from the encoded body.
    pub peers: fn(&OpenFile) -> Vec<u64>,
    /// [`Kind::parks`], from the encoded body.
    pub parks: fn(&OpenFile) -> bool,
    /// [`Kind::restore`], from the encoded body.
    pub restore: fn(&OpenFile, &mut RestoreContext<'_>) -> Result<Opened>,
    /// [`Kind::EARLY`]
    pub is_early: bool,
    /// [`Kind::LATE`]
    pub is_late: bool,
    /// [`Kind::CARRIES`]
    pub carries: bool,
    /// [`Kind::late`], from the encoded body.
    pub late: fn(&OpenFile, PlacedFd, &mut RestoreContext<'_>) -> Result<()>,
    /// [`Kind::null`]
    pub null: fn(&OpenFile) -> Result<OwnedFd>,
}

const fn ops<K: Kind>() -> KindOps {
    KindOps {
        name: K::NAME,
        object: K::object,
        seeks: K::SEEKS,
        claims: K::claims,
        capture: |it| {
            serde_cbor::to_vec(&K::capture(it)?).map_err(|err| Error::malformed(err.to_string()))
        },
        contents: K::contents,
        describe: |file| body::<K>(file).ok()?.describe(file),
        terminal: |file| body::<K>(file).ok()?.terminal(),
        check: |file, cx| body::<K>(file)?.check(file, cx),
        need: |file| body::<K>(file).map_or(Need::Nothing, |it| it.need(file)),
        peers: |file| body::<K>(file).map(|it| it.peers()).unwrap_or_default(),
        parks: |file| body::<K>(file).is_ok_and(|it| it.parks()),
        restore: |file, cx| body::<K>(file)?.restore(file, cx),
        is_early: K::EARLY,
        is_late: K::LATE,
        carries: K::CARRIES,
        late: |file, placed, cx| body::<K>(file)?.late(file, placed, cx),
        null: K::null,
    }
}

fn body<K: Kind>(file: &OpenFile) -> Result<K> {
    serde_cbor::from_slice(&file.body)
        .map_err(|err| Error::malformed(format!("its body is not one of kind {}: {err}", K::NAME)))
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

/// The kind with this name.
pub fn named(name: &str) -> Option<&'static KindOps> {
    KINDS.iter().find(|kind| kind.name == name)
}

/// The names of all kinds.
pub fn names() -> Vec<&'static str> {
    KINDS.iter().map(|kind| kind.name).collect()
}

/// A terminal outside the image as the one that `to` is the record of, which is then opened by its
/// path; none if it is no terminal, or needs no other.
pub fn retarget(file: &OpenFile, to: &OpenFile) -> Option<OpenFile> {
    terminal::tty::retarget(file, to)
}

/// Whether it is a master of a pseudo terminal: the slaves of its object are restored with it.
pub fn is_master(file: &OpenFile) -> bool {
    terminal::pty::is_master(file)
}

/// A descriptor as its kind has taken it, without what cannot leave its thread.
pub struct Captured {
    /// Its number.
    pub fd: RawFd,
    /// What readlink(2) shows of it.
    pub link: Bytes,
    /// Its fdinfo.
    pub info: FdInfo,
    /// What stat(2) says of it.
    pub inode: Option<Inode>,
    /// Whom it signals.
    pub signals: Option<Signals>,
    /// Its kind.
    pub kind: &'static KindOps,
    /// What is the same for all descriptions of its object.
    pub object: Option<(u32, u32, u64)>,
    body: Vec<u8>,
}

impl Captured {
    /// By its kind. What a kind does not understand is kept as it is.
    pub fn capture_or_opaque(it: Descriptor<'_>) -> Result<Captured> {
        let kind = of(&it);
        let opaque = &KINDS[KINDS.len() - 1];
        match (kind.capture)(&it) {
            Ok(body) => Ok(Captured::by(kind, it, body)),
            Err(_) => (opaque.capture)(&it).map(|body| Captured::by(opaque, it, body)),
        }
    }

    fn by(kind: &'static KindOps, it: Descriptor<'_>, body: Vec<u8>) -> Captured {
        let object = (kind.object)(&it);
        let Descriptor { fd, link, info, inode, signals, .. } = it;
        Captured { fd, link, info, inode, signals, kind, object, body }
    }

    /// What an image has of one that could not be looked at.
    pub fn unreadable(fd: RawFd, err: &Error) -> Captured {
        Captured {
            fd,
            link: Bytes::default(),
            info: FdInfo::default(),
            inode: None,
            signals: None,
            kind: &KINDS[KINDS.len() - 1],
            object: None,
            body: unreadable(err.errno().map_or(0, |errno| errno as i32)),
        }
    }

    /// Access mode and status flags, without FD_CLOEXEC.
    pub fn flags(&self) -> u32 {
        self.info.flags & !CLOEXEC
    }

    /// Its record, with no object and no locks yet.
    pub fn file(self, id: u32) -> OpenFile {
        OpenFile {
            id,
            kind: self.kind.name.to_owned(),
            flags: self.flags(),
            pos: self.info.pos,
            link: self.link,
            mnt: self.info.mnt,
            inode: self.inode,
            signals: self.signals,
            object: None,
            refs: Vec::new(),
            locks: Vec::new(),
            body: self.body,
        }
    }
}

/// The record of a descriptor of this very process, by the rules of a scan, which its kind must
/// understand.
pub fn record(it: Descriptor<'_>, id: u32) -> Result<OpenFile> {
    let kind = of(&it);
    let body = (kind.capture)(&it)?;
    Ok(Captured::by(kind, it, body).file(id))
}

/// The kind that claims a descriptor.
pub fn of(it: &Descriptor<'_>) -> &'static KindOps {
    KINDS.iter().find(|kind| (kind.claims)(it)).unwrap_or(&KINDS[KINDS.len() - 1])
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::proc::{Process, inode_of};
    use std::os::fd::{AsFd, AsRawFd};

    /// The file that a scan of this process makes of a descriptor.
    pub(crate) fn file_of(fd: impl AsFd) -> OpenFile {
        let process = Process::open(std::process::id() as i32).unwrap();
        let number = fd.as_fd().as_raw_fd();
        record(Descriptor::read(&process, number, true, &mut Vec::new()).unwrap(), 0).unwrap()
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
        (named(&file.kind).unwrap().describe)(&file).unwrap()
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
            let read = (kind.terminal)(&file);
            assert!(read.is_none(), "{}", kind.name);
        }
    }
}
