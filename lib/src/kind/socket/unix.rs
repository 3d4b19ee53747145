//! unix(7): sockets of one machine. Who is connected to whom is known by inodes; what waits in a
//! queue is written again through the other end.

use crate::error::{At, Error, Result};
use crate::image::{Bytes, Chunk, MAX_CHUNK, MessageMeta, OpenFile};
use crate::kind::context::{Held, Opened, OpenedTogether, RestoreContext};
use crate::kind::socket::option::{Class, Phase, SocketOptions};
use crate::kind::{ContentsContext, ContentsPiece, Kind, ObjectCheck, Piece, Sink};
use crate::operation::Outcome;
use crate::proc::Descriptor;
use crate::sys;
use crate::sys::peek_guard::PeekOffset;
use crate::sys::socket::{Ancillary, Ucred};
use crate::table::fdstore::MAX_FDS;
use crate::text::escape;
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, UnixAddr, bind, connect, listen,
    shutdown, socket, socketpair,
};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

const NONBLOCK: u32 = libc::O_NONBLOCK as u32;
/// The longest queue that is read: beyond any that net.core.rmem_max allows by default.
const MAX_MESSAGE: usize = 4 << 20;
/// More messages without bytes do not follow each other: each takes some hundred of a buffer.
const MAX_MESSAGES: usize = 1 << 20;

/// A unix socket.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Unix {
    /// SOCK_STREAM 1, SOCK_DGRAM 2 or SOCK_SEQPACKET 5.
    class: u8,
    /// Its address without the family: a path, or an abstract name after a NUL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<Bytes>,
    /// Mode, owner and group of the path it is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<(u32, u32, u32)>,
    /// The inode of the socket it is connected to; zero if that is closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    peer: Option<u32>,
    /// The backlog, if it listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    backlog: Option<u32>,
    /// Connections that wait to be accepted; they are lost.
    pending: u32,
    /// Bytes that wait to be read; of a datagram socket, those of the first message.
    queued: u32,
    /// What is shut down: receiving 1, sending 2.
    shutdown: u8,
    /// Whether a byte waits out of band (MSG_OOB, Linux 5.15); it is lost.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    urgent: bool,
    /// What a fresh socket of its type has not.
    #[serde(default, skip_serializing_if = "SocketOptions::is_empty")]
    options: SocketOptions,
}

impl Unix {
    fn class(&self) -> Result<SockType> {
        match i32::from(self.class) {
            libc::SOCK_STREAM => Ok(SockType::Stream),
            libc::SOCK_DGRAM => Ok(SockType::Datagram),
            libc::SOCK_SEQPACKET => Ok(SockType::SeqPacket),
            other => Err(Error::malformed(format!("{other} is no type of a unix socket"))),
        }
    }

    /// Whether its bytes have no bounds.
    fn streams(&self) -> bool {
        i32::from(self.class) == libc::SOCK_STREAM
    }

    /// The socket that it is connected to, if that is restored too.
    fn other<'a>(&self, cx: &RestoreContext<'a>) -> Option<(&'a OpenFile, &'a Unix)> {
        let file = cx.socket(self.peer.filter(|&peer| peer != 0)?)?;
        Some((file, cx.image.record_as(file.id)?))
    }

    /// Whether that other one is connected to this one too, and is another.
    fn is_pair(&self, file: &OpenFile, (theirs, other): &(&OpenFile, &Unix)) -> bool {
        theirs.id != file.id
            && self.class == other.class
            && other.peer.map(u64::from) == file.inode.as_ref().map(|inode| inode.ino)
    }
}

/// The class of a unix socket of this type, for its options.
fn options_of(class: u8) -> Class {
    (libc::AF_UNIX, class.into(), 0)
}

fn address(name: &[u8]) -> Result<UnixAddr> {
    let made = match name.split_first() {
        Some((0, name)) => UnixAddr::new_abstract(name),
        _ => UnixAddr::new(name),
    };
    made.map_err(|_| Error::malformed("its name is too long for a unix socket"))
}

impl Kind for Unix {
    const NAME: &'static str = "unix";
    const SHARES_OBJECT: bool = true;
    const CARRIES_DESCRIPTORS: bool = true;

    fn claims(it: &Descriptor<'_>) -> bool {
        it.is_socket() && it.family() == Some(libc::AF_UNIX)
    }

    fn capture(it: &Descriptor<'_>) -> Result<Self> {
        let (Some(copy), Some(inode)) = (&it.copy, &it.inode) else {
            return Err(Error::unrestorable("a passive scan cannot ask a socket"));
        };
        let ino = u32::try_from(inode.ino).map_err(|_| Errno::EOVERFLOW)?;
        let found = it.process.unix_socket(ino)?;
        let path = found.name.as_deref().filter(|name| name.first() != Some(&0));
        let stat = path.and_then(|path| it.process.stat_at(path));
        Ok(Unix {
            class: found.class,
            node: stat.map(|stat| (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid)),
            name: found.name.map(Bytes),
            peer: found.peer,
            backlog: found.listens.then_some(found.queue.1),
            pending: found.pending,
            queued: if found.listens { 0 } else { found.queue.0 },
            shutdown: found.shutdown,
            urgent: found.queue.0 > 0 && sys::socket::urgent(copy.as_fd()).is_some(),
            options: SocketOptions::read(copy.as_fd(), options_of(found.class))?,
        })
    }

    fn contents(
        copy: BorrowedFd<'_>,
        cx: &ContentsContext<'_>,
        limit: u64,
        to: Sink<'_>,
    ) -> Result<()> {
        let option = |name| sys::socket::option(copy, libc::SOL_SOCKET, name);
        if option(libc::SO_ACCEPTCONN)? != 0 {
            return Ok(());
        }
        let mut polled = [PollFd::new(copy, PollFlags::POLLIN)];
        let waits = poll(&mut polled, PollTimeout::ZERO).at(|| "poll")? > 0;
        if waits && option(libc::SO_PEEK_OFF)? >= 0 {
            // A program that has set it itself would look at another message, or go on from an
            // offset that what it took meanwhile did not lower.
            cx.require_frozen()?;
        }
        peek(copy, option(libc::SO_TYPE)?, limit, to)
    }

    fn describe(&self, file: &OpenFile) -> Option<String> {
        let class = match i32::from(self.class) {
            libc::SOCK_STREAM => "stream",
            libc::SOCK_DGRAM => "dgram",
            libc::SOCK_SEQPACKET => "seqpacket",
            _ => return None,
        };
        // The link is how its peer, and --inherit, call it.
        let link = String::from_utf8_lossy(&file.link.0);
        let mut text = format!("unix {class} {link}");
        match self.name.as_ref().map(|name| name.0.as_slice()) {
            Some([0, name @ ..]) => text += &format!(" @{}", String::from_utf8_lossy(name)),
            Some(name) => text += &format!(" {}", String::from_utf8_lossy(name)),
            None => (),
        }
        match self.peer {
            Some(0) => text += " -> closed",
            Some(peer) => text += &format!(" -> socket:[{peer}]"),
            None => (),
        }
        if let Some(backlog) = self.backlog {
            text += &format!(" LISTEN backlog={backlog}");
        }
        for (name, count) in [("pending", self.pending), ("queued", self.queued)] {
            if count > 0 {
                text += &format!(" {name}={count}");
            }
        }
        Some(text)
    }

    fn validate(&self, _: &OpenFile) -> Result<()> {
        self.class()?;
        if let Some(name) = &self.name {
            address(&name.0)?;
        }
        self.options.validate()
    }

    fn object_check() -> Option<Box<dyn ObjectCheck<Self>>> {
        Some(Box::new(QueueCheck::default()))
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        self.options.check(options_of(self.class))?;
        let bound = match self.backlog {
            Some(_) => true,
            None => self.peer.is_none(),
        };
        let path = self.name.as_ref().filter(|name| !name.0.starts_with(&[0]));
        if bound && path.is_some() && cx.root.is_some() {
            return Err(Error::unrestorable("a socket cannot get its name below --root"));
        }
        match self.peer {
            None | Some(0) => Ok(()),
            Some(peer) => match self.other(cx) {
                Some(other) if self.is_pair(file, &other) => Ok(()),
                Some((_, other)) if other.name.is_some() && !self.streams() => Ok(()),
                _ => Err(Error::unrestorable(format!(
                    "the other end, socket:[{peer}], is outside the image"
                ))),
            },
        }
    }

    fn peer_id(&self, file: &OpenFile) -> Option<u64> {
        file.inode.as_ref().map(|inode| inode.ino)
    }

    fn peer_ids(&self) -> Vec<u64> {
        self.peer.filter(|&peer| peer != 0).map(u64::from).into_iter().collect()
    }

    fn parks_other_end(&self) -> bool {
        self.peer == Some(0)
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        self.check(file, cx)?;
        let class = self.class()?;
        let pair = self.other(cx).filter(|other| self.is_pair(file, other));
        let Unix {
            class: _,
            name,
            node,
            peer,
            backlog,
            pending,
            queued: _,
            shutdown: _,
            urgent,
            options: _,
        } = self;
        let made = match (&pair, peer) {
            (Some((theirs, record)), _) => {
                let both = file.flags & theirs.flags & NONBLOCK;
                let (mine, other) = new_pair(class, both)?;
                record.set_options(other.as_fd(), theirs, cx)?;
                record.keep_name(&other, theirs, cx);
                self.keep_name(&mine, file, cx);
                let mut opened = Opened::new(mine, both);
                opened.others.push(OpenedTogether { file: theirs.id, fd: other, flags: both });
                opened
            }
            (None, Some(0)) => {
                let both = file.flags & NONBLOCK;
                let (mine, gone) = new_pair(class, both)?;
                self.keep_name(&mine, file, cx);
                let mut opened = Opened::new(mine, both);
                match cx.needs_parked_end(file) {
                    true => opened.parked = Some(gone),
                    false => self.fill(file, gone.as_fd(), cx)?,
                }
                opened
            }
            _ => {
                let flags = file.flags & NONBLOCK;
                let made =
                    socket(AddressFamily::Unix, class, birth(flags), None).at(|| "socket")?;
                if let Some(name) = name {
                    self.bind(&made, name, *node, cx)?;
                }
                Opened::new(made, flags)
            }
        };
        self.set_options(made.fd.as_fd(), file, cx)?;
        if let Some(backlog) = backlog {
            let backlog = Backlog::new(i32::try_from(*backlog).unwrap_or(i32::MAX));
            listen(&made.fd, backlog.unwrap_or(Backlog::MAXCONN)).at(|| "listen")?;
        }
        let shown = || escape(&file.link.0).into_owned();
        if *pending > 0 {
            let why = "connections that waited to be accepted are lost";
            cx.warnings.push(format!("{}: {pending} {why}", shown()));
        }
        if *urgent {
            cx.warnings.push(format!("{}: a byte out of band (MSG_OOB) is lost", shown()));
        }
        Ok(made)
    }

    fn finish_text(&self) -> Option<&'static str> {
        (self.backlog.is_none()).then_some("connect it, fill the queue, shut it down")
    }

    fn finish(
        &self,
        file: &OpenFile,
        _: RawFd,
        fd: BorrowedFd<'_>,
        _: &Outcome,
        cx: &mut RestoreContext<'_>,
    ) -> Result<()> {
        if let Some(gone) = cx.parked_end(file.id) {
            self.fill(file, gone.as_fd(), cx)
        } else if let Some(other) = self.other(cx) {
            let theirs = cx.held.get(&other.0.id).cloned().ok_or(Errno::ENOTCONN)?;
            if self.is_pair(file, &other) {
                self.fill(file, theirs.as_fd(), cx)?;
            } else if let Some(name) = &other.1.name {
                connect(fd.as_raw_fd(), &address(&name.0)?).at(|| "connect")?;
                self.lost(file, cx);
            }
            Ok(())
        } else if self.peer.is_none() && self.backlog.is_none() {
            self.fill_bound(file, cx)
        } else {
            Ok(())
        }
    }

    fn finish_last(
        &self,
        file: &OpenFile,
        fd: BorrowedFd<'_>,
        cx: &mut RestoreContext<'_>,
    ) -> Result<()> {
        if !self.options.is_empty() {
            let name = escape(&file.link.0);
            let mut warn = |line| cx.warnings.push(format!("{name}: {line}"));
            self.options.set(fd, Phase::Last, &mut warn)?;
        }
        let how = match self.shutdown & 3 {
            0 => return Ok(()),
            1 => Shutdown::Read,
            2 => Shutdown::Write,
            _ => Shutdown::Both,
        };
        match self.peer {
            Some(0) => Ok(()),
            // The last of two ends to be shut down would keep the queue of the other from being
            // filled.
            _ => shutdown(fd.as_raw_fd(), how).at(|| "shutdown"),
        }
    }

    fn substitute(&self, file: &OpenFile) -> Result<OwnedFd> {
        // Reads end, and writes fail with EPIPE.
        Ok(new_pair(SockType::Stream, file.flags)?.0)
    }
}

/// The queue of a socket has messages as its type has them.
#[derive(Default)]
struct QueueCheck {
    streams: bool,
    listens: bool,
    /// The message before goes on in the next piece.
    inside: bool,
    /// Bytes of the message so far.
    len: usize,
}

impl ObjectCheck<Unix> for QueueCheck {
    fn file(&mut self, record: &Unix, _: &OpenFile) -> Result<()> {
        self.streams |= record.streams();
        self.listens |= record.backlog.is_some();
        Ok(())
    }

    fn contents(&mut self, piece: &ContentsPiece<'_>) -> Result<()> {
        let files = piece.meta.map_or(0, |meta| meta.files.len());
        let why = match files {
            _ if self.listens => "it listens, and has no queue",
            0 => "",
            _ if files > MAX_FDS => "more descriptors than a message can have are queued in it",
            _ if self.inside => "descriptors are queued in the middle of a message",
            _ if self.streams && piece.len == 0 => "descriptors without a byte are queued",
            _ => "",
        };
        if !why.is_empty() {
            return Err(Error::malformed(why));
        }
        self.len = if self.inside { self.len } else { 0 } + piece.len;
        if self.len > MAX_MESSAGE {
            return Err(Error::malformed("a message of its queue is beyond any limit"));
        }
        self.inside = !self.streams && piece.meta.is_some_and(|meta| meta.more);
        Ok(())
    }
}

fn birth(flags: u32) -> SockFlag {
    if flags & NONBLOCK != 0 { SockFlag::SOCK_NONBLOCK } else { SockFlag::empty() }
}

fn new_pair(class: SockType, flags: u32) -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, class, None, birth(flags)).at(|| "socketpair")
}

impl Unix {
    /// Sets those of its options whose turn it is.
    fn set_options(
        &self,
        fd: BorrowedFd<'_>,
        file: &OpenFile,
        cx: &mut RestoreContext<'_>,
    ) -> Result<()> {
        let name = escape(&file.link.0);
        let mut warn = |line| cx.warnings.push(format!("{name}: {line}"));
        self.options.set(fd, Phase::Created, &mut warn)
    }

    /// Binds an end of a connection to the name that it had, or says that it could not be: what was
    /// accepted has its listener's.
    fn keep_name(&self, fd: &OwnedFd, file: &OpenFile, cx: &mut RestoreContext<'_>) {
        let Some(name) = &self.name else { return };
        let bound = match name.0.starts_with(&[0]) {
            _ if listeners(cx).contains_key(&name.0) => Err(Error::unrestorable("its listener's")),
            false if cx.root.is_some() => Err(Error::unrestorable("not below --root")),
            _ => self.bind(fd, name, self.node, cx),
        };
        if let Err(why) = bound {
            let (link, name) = (escape(&file.link.0), escape(&name.0));
            cx.warnings.push(format!("{link}: it had the name {name}: {why}"));
        }
    }

    /// Binds it to its name. A socket file that nobody listens at is of the old process, and goes.
    fn bind(
        &self,
        fd: &OwnedFd,
        name: &Bytes,
        node: Option<(u32, u32, u32)>,
        cx: &mut RestoreContext<'_>,
    ) -> Result<()> {
        let at = address(&name.0)?;
        let shown = escape(&name.0).into_owned();
        if name.0.starts_with(&[0]) {
            return match bind(fd.as_raw_fd(), &at) {
                Err(Errno::EADDRINUSE) => {
                    Err(Error::unrestorable(format!("another socket has the name {shown}")))
                }
                bound => bound.at(|| format!("bind to {shown}")),
            };
        }
        let path = Path::new(std::ffi::OsStr::from_bytes(&name.0));
        let here = std::env::current_dir().ok();
        let cwd = cx.task.cwd.as_ref().map(|cwd| Path::new(std::ffi::OsStr::from_bytes(&cwd.0)));
        let moved = path.is_relative() && here.as_deref() != cwd;
        if moved {
            let cwd = cwd.ok_or_else(|| Error::unrestorable("its folder is not known"))?;
            std::env::set_current_dir(cwd).at(|| "the folder of its task")?;
        }
        let bound = (|| {
            if let Ok(found) = path.symlink_metadata() {
                use std::os::unix::fs::FileTypeExt;
                // To connect to what is no socket is refused like to a dead one.
                if !found.file_type().is_socket() {
                    let why = format!("{shown} is something else by now");
                    return Err(Error::unrestorable(why));
                }
                // Of another type than a listener's: that is refused before anybody notices, while
                // to connect to a datagram socket tells it nothing.
                let probe = socket(AddressFamily::Unix, SockType::Datagram, birth(0), None)?;
                match connect(probe.as_raw_fd(), &at) {
                    Err(Errno::ECONNREFUSED) => std::fs::remove_file(path)?,
                    Ok(()) | Err(Errno::EPERM | Errno::EPROTOTYPE) => {
                        let why = format!("another process has a socket at {shown}");
                        return Err(Error::unrestorable(why));
                    }
                    Err(errno) => return Err(errno).at(|| shown.clone()),
                }
            }
            bind(fd.as_raw_fd(), &at).at(|| format!("bind to {shown}"))?;
            let Some((mode, uid, gid)) = node else {
                // Its name was gone already, and only the address is left.
                return std::fs::remove_file(path).at(|| format!("unlink {shown}"));
            };
            let ours = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
            if (uid, gid) != ours && std::os::unix::fs::lchown(path, Some(uid), Some(gid)).is_err()
            {
                cx.warnings.push(format!("{shown}: its owner {uid}:{gid} was not put back"));
            }
            let mode = Mode::from_bits_truncate(mode);
            nix::sys::stat::fchmodat(
                nix::fcntl::AT_FDCWD,
                path,
                mode,
                nix::sys::stat::FchmodatFlags::FollowSymlink,
            )
            .at(|| format!("chmod {shown}"))
        })();
        if let (true, Some(here)) = (moved, here) {
            std::env::set_current_dir(here).at(|| "back to the folder of the caller")?;
        }
        bound
    }

    fn lost(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) {
        if self.queued > 0 && !cx.has_contents(file.object) {
            let name = escape(&file.link.0).into_owned();
            let why = "in its queue are not in the image (scan with --data): it is restored empty";
            cx.warnings.push(format!("{name}: the {} bytes {why}", self.queued));
        }
    }

    /// Writes what waited to be read into the other end.
    fn fill(
        &self,
        file: &OpenFile,
        other: BorrowedFd<'_>,
        cx: &mut RestoreContext<'_>,
    ) -> Result<()> {
        self.lost(file, cx);
        if !cx.has_contents(file.object) {
            return Ok(());
        }
        let mut differs = Differs::default();
        let name = || sys::socket::name(other).ok().and_then(|name| sender(&name));
        let mut named = name();
        messages(cx, file, self.streams(), |message| {
            // One that is gone has told its name to nobody but these messages.
            let from = message.from.filter(|from| named.is_none() && from.starts_with(&[0]));
            if let Some(from) = from.filter(|_| self.peer == Some(0)) {
                let _ = sys::socket::bind(other, &sockaddr(from));
                named = name();
            }
            differs.senders += usize::from(message.from != named.as_deref());
            post(message, other, &[], self.streams(), cx, &mut differs)
        })?;
        differs.tell(file, cx);
        Ok(())
    }

    /// Sends a bound datagram socket what waited in it, from the names that had sent it.
    fn fill_bound(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<()> {
        self.lost(file, cx);
        let Some(name) = &self.name else { return Ok(()) };
        let to = sockaddr(&name.0);
        let senders = names(cx);
        let mut differs = Differs::default();
        messages(cx, file, false, |message| {
            let from = message.from;
            let held = from.and_then(|from| cx.held.get(senders.get(from)?)).cloned();
            if let Some(placed) = held {
                return post(message, placed.as_fd(), &to, false, cx, &mut differs);
            }
            let sender = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::empty(), None)?;
            let named = from.filter(|from| from.starts_with(&[0]));
            let bound = match named {
                Some(from) => sys::socket::bind(sender.as_fd(), &sockaddr(from)).is_ok(),
                None => from.is_none(),
            };
            differs.senders += usize::from(!bound);
            post(message, sender.as_fd(), &to, false, cx, &mut differs)
        })?;
        differs.tell(file, cx);
        Ok(())
    }
}

/// A struct sockaddr_un of this name.
fn sockaddr(name: &[u8]) -> Vec<u8> {
    let family = (libc::AF_UNIX as libc::sa_family_t).to_ne_bytes();
    // A path ends with a NUL.
    let end: &[u8] = if name.starts_with(&[0]) { &[] } else { &[0] };
    [&family, name, end].concat()
}

/// The sockets of the image that listen, restored or not, by their names.
fn listeners(cx: &mut RestoreContext<'_>) -> Rc<HashMap<Vec<u8>, u32>> {
    let image = cx.image;
    let all = cx.addresses.entry("unix listeners").or_insert_with(|| {
        let listening = image.of_kind().filter(|(_, record): &(_, &Unix)| record.backlog.is_some());
        Rc::new(listening.filter_map(named).collect())
    });
    all.clone()
}

/// The files of the restored sockets by their names.
fn names(cx: &mut RestoreContext<'_>) -> Rc<HashMap<Vec<u8>, u32>> {
    let (restored, image) = (cx.lowest, cx.image);
    let all = cx.addresses.entry(Unix::NAME).or_insert_with(|| {
        let restored = image.of_kind().filter(|(file, _)| restored.contains_key(&file.id));
        Rc::new(restored.filter_map(named).collect())
    });
    all.clone()
}

/// The name of a socket, and its file.
fn named((file, record): (&OpenFile, &Unix)) -> Option<(Vec<u8>, u32)> {
    Some((record.name.as_ref()?.0.clone(), file.id))
}

/// A message on its way into a queue.
struct QueuedMessage<'m> {
    from: Option<&'m [u8]>,
    files: &'m [u32],
    credentials: Option<Ucred>,
    bytes: &'m [u8],
}

/// In how many messages, or descriptors, a queue is not what it was.
#[derive(Default)]
struct Differs {
    senders: usize,
    left_out: usize,
    processes: usize,
    credentials: usize,
}

impl Differs {
    fn tell(self, file: &OpenFile, cx: &mut RestoreContext<'_>) {
        let Differs { senders, left_out, processes, credentials } = self;
        let name = escape(&file.link.0);
        for (count, why) in [
            (senders, "messages in its queue lose the names of their senders"),
            (left_out, "descriptors queued in it are not restored, and are left out"),
            (processes, "messages in its queue came from processes not restored, and name us"),
            (credentials, "messages in its queue lose their credentials: those take root"),
        ] {
            if count > 0 {
                cx.warnings.push(format!("{name}: {count} {why}"));
            }
        }
    }
}

/// Sends a message of a queue to this address, or to whom the socket is connected to.
fn post(
    message: QueuedMessage<'_>,
    through: BorrowedFd<'_>,
    to: &[u8],
    streams: bool,
    cx: &RestoreContext<'_>,
    differs: &mut Differs,
) -> Result<()> {
    let QueuedMessage { from: _, files, credentials, mut bytes } = message;
    let held: Vec<Rc<Held>> = files.iter().filter_map(|&id| cx.descriptor(id)).collect();
    differs.left_out += files.len() - held.len();
    let mut fds: Vec<BorrowedFd<'_>> = held.iter().map(|held| held.as_fd()).collect();
    let ours = nix::unistd::getpid().as_raw();
    // Without a process nobody asked for credentials when it was sent, and nobody does so yet.
    let mut said = credentials.filter(|&(pid, ..)| pid != 0).map(|(pid, uid, gid)| {
        let role = cx.pids.process(pid).filter(|&role| role > 0);
        differs.processes += usize::from(role.is_none());
        (role.unwrap_or(ours), uid, gid)
    });
    loop {
        match sys::socket::send(through, to, bytes, &fds, said) {
            Err(Errno::EPERM | Errno::ESRCH | Errno::EINVAL) if said.is_some() => {
                // Who may not speak for others speaks for itself.
                differs.credentials += 1;
                said = None;
            }
            Err(Errno::ETOOMANYREFS) => {
                let why = "more descriptors are queued than may be on the way (ulimit -n)";
                return Err(Error::unrestorable(why));
            }
            Err(errno) => return Err(errno).at(|| "fill its queue"),
            Ok(sent) if sent == bytes.len() => return Ok(()),
            Ok(_) if !streams => {
                return Err(Error::unrestorable("a message of its queue does not fit"));
            }
            Ok(sent) => {
                bytes = &bytes[sent..];
                fds.clear();
            }
        }
    }
}

/// Hands on each message of a queue, whole.
fn messages(
    cx: &RestoreContext<'_>,
    file: &OpenFile,
    streams: bool,
    mut take: impl FnMut(QueuedMessage<'_>) -> Result<()>,
) -> Result<()> {
    let mut bytes = Vec::new();
    let mut first = MessageMeta::default();
    let mut inside = false;
    cx.contents(file.object, |chunk: &Chunk, more: &[u8]| {
        let with = chunk.with.as_deref();
        if !inside {
            first = with.cloned().unwrap_or_default();
        }
        bytes.extend_from_slice(more);
        inside = !streams && with.is_some_and(|with| with.more);
        if !inside {
            take(QueuedMessage {
                from: first.from.as_ref().map(|from| from.0.as_slice()),
                files: &first.files,
                credentials: first.credentials,
                bytes: &bytes,
            })?;
            bytes.clear();
        }
        Ok(())
    })
}

/// Hands on what waits in a queue.
///
/// MSG_PEEK shows the first message again and again unless SO_PEEK_OFF says where to look, which
/// belongs to the socket (socket(7), Linux 3.4): it is not touched for an empty queue, nor for a
/// stream of bytes that is seen whole in one look.
fn peek(copy: BorrowedFd<'_>, class: i32, limit: u64, to: Sink<'_>) -> Result<()> {
    let streams = class == libc::SOCK_STREAM;
    let usual = sys::socket::option(copy, libc::SOL_SOCKET, libc::SO_PEEK_OFF)? < 0;
    let mut buffer = vec![0; 256 << 10];
    if streams {
        // All at once, or what is cut in two would bring its descriptors twice.
        let waits = sys::readable(copy)?;
        if waits as u64 > limit {
            return Err(Error::unrestorable(format!("its queue is more than the limit {limit}")));
        }
        buffer.resize(buffer.len().max(waits + 1), 0);
    }
    if usual {
        let Some(look) = look(copy, &mut buffer)? else { return Ok(()) };
        let whole = look.len < buffer.len() && look.len >= sys::readable(copy)?;
        if streams && (look.len == 0 || whole && look.with.fds.is_empty()) {
            return hand_on(look, &buffer, streams, to);
        }
    }
    let inline = sys::socket::option(copy, libc::SOL_SOCKET, libc::SO_OOBINLINE)? != 0;
    let mut urgent = sys::socket::urgent(copy).filter(|_| streams && !inline);
    let offset = PeekOffset::take(copy).at(|| "SO_PEEK_OFF")?;
    let (mut total, mut empty) = (0, 0);
    // Whether the look before had no descriptors, and its credentials: with others it ends.
    let mut before: Option<(bool, Option<Ucred>)> = None;
    while let Some(found) = look(copy, &mut buffer)? {
        let Look { len, ref with, .. } = found;
        empty = if len == 0 { empty + 1 } else { 0 };
        if len == 0 && (streams || ended(copy, total)?) {
            return Ok(());
        }
        if with.cut {
            let why = "more descriptors wait in it than may be opened (ulimit -n)";
            return Err(Error::unrestorable(why));
        }
        if empty > MAX_MESSAGES || total + len as u64 > limit {
            return Err(Error::unrestorable(format!("its queue is more than the limit {limit}")));
        }
        if len > buffer.len() || streams && len == buffer.len() && !with.fds.is_empty() {
            // It has moved the offset on already.
            let seen = len.min(buffer.len()) as i32;
            offset.set(offset.get()?.saturating_sub(seen).max(0))?;
            buffer.resize(len.max(2 * buffer.len()), 0);
            continue;
        }
        total += len as u64;
        // Once it is not the first of all, the byte begins a look as if it were one of the stream.
        let credentials = with.credentials;
        let stopped = before.is_some_and(|(plain, of)| !plain || of == credentials);
        let marked = stopped && urgent == Some(buffer[0]);
        before = Some((with.fds.is_empty(), credentials));
        match marked {
            true => {
                urgent = None;
                let found = Look { len: len - 1, ..found };
                hand_on(found, &buffer[1..], streams, to)?;
            }
            false => hand_on(found, &buffer, streams, to)?,
        }
    }
    Ok(())
}

/// Whether nothing but the end can follow. Of a seqpacket socket whose other end is closed every
/// look shows no bytes, and a message without any looks the same to whoever reads it.
fn ended(copy: BorrowedFd<'_>, total: u64) -> Result<bool> {
    let hung = sys::socket::reads_end(copy).at(|| "poll")?;
    Ok(hung && total >= sys::readable(copy)? as u64)
}

/// What one look at a queue shows.
struct Look {
    len: usize,
    from: Option<Vec<u8>>,
    with: Ancillary,
}

/// Looks at the next message; none if there is no more.
fn look(copy: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Option<Look>> {
    match sys::socket::peek_message(copy, buffer, true) {
        Ok((len, from, with)) => Ok(Some(Look { len, from: sender(&from), with })),
        // A socket that is not connected has nothing either.
        Err(Errno::EAGAIN | Errno::EINVAL | Errno::ENOTCONN) => Ok(None),
        Err(errno) => Err(errno).at(|| "peek"),
    }
}

/// Hands on a message in pieces, the first of which has what came with it.
fn hand_on(look: Look, buffer: &[u8], streams: bool, to: Sink<'_>) -> Result<()> {
    let Look { len, from, with: Ancillary { mut fds, credentials, cut: _ } } = look;
    if streams && len == 0 {
        return Ok(());
    }
    let mut pieces = buffer[..len].chunks(MAX_CHUNK).peekable();
    let mut first = MessageMeta { from: from.map(Bytes), credentials, ..MessageMeta::default() };
    loop {
        let bytes = pieces.next().unwrap_or_default();
        let more = !streams && pieces.peek().is_some();
        let with = MessageMeta { more, ..std::mem::take(&mut first) };
        let with = (with != MessageMeta::default()).then_some(with);
        to(Piece { offset: 0, bytes, with, fds: std::mem::take(&mut fds) })?;
        if pieces.peek().is_none() {
            return Ok(());
        }
        if streams {
            first.credentials = credentials;
        }
    }
}

/// The name of a sender, as [`Unix::name`] has it, from a struct sockaddr_un.
fn sender(from: &[u8]) -> Option<Vec<u8>> {
    let name = from.get(size_of::<libc::sa_family_t>()..)?;
    match name.first()? {
        0 => Some(name.to_vec()),
        _ => Some(name.iter().copied().take_while(|&byte| byte != 0).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::tests::{body_of, contents_of};
    use std::os::unix::net::{UnixDatagram, UnixStream};

    #[test]
    fn two_ends_name_each_other_and_a_closed_one_is_zero() {
        let (a, b) = UnixStream::pair().unwrap();
        let one: Unix = body_of(&a);
        assert!(one.streams() && one.peer.is_some_and(|peer| peer > 0));
        drop(b);
        let alone: Unix = body_of(&a);
        assert_eq!((alone.peer, alone.shutdown), (Some(0), 3));
    }

    /// What is found in a queue: bytes, and how many descriptors come with them.
    fn contents(of: impl AsFd) -> Vec<(Vec<u8>, usize)> {
        let mut seen = Vec::new();
        let take = |piece: Piece<'_>| seen.push((piece.bytes.to_vec(), piece.fds.len()));
        contents_of::<Unix>(&of, 1 << 20, take).unwrap();
        let offset = sys::socket::option(of.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF);
        assert_eq!(offset, Ok(-1));
        seen
    }

    #[test]
    fn messages_are_looked_at_one_by_one_and_the_offset_is_put_back() {
        let (a, b) = UnixDatagram::pair().unwrap();
        for message in [&b"one"[..], b"", b"three"] {
            b.send(message).unwrap();
        }
        let is = [(b"one".to_vec(), 0), (vec![], 0), (b"three".to_vec(), 0)];
        assert_eq!(contents(&a), is);
        assert_eq!(a.recv(&mut [0; 8]).unwrap(), 3);
    }

    #[test]
    fn descriptors_are_found_with_their_message_once_however_long_the_queue() {
        let (a, b) = UnixStream::pair().unwrap();
        // What net.core.wmem_max usually lets anybody have.
        sys::socket::set_option(b.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, 212_992).unwrap();
        let room = sys::socket::option(b.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF).unwrap();
        assert!(room > 400_000, "net.core.wmem_max is {}", room / 2);
        let send = |bytes: &[u8], fds: &[BorrowedFd<'_>]| {
            sys::socket::send(b.as_fd(), &[], bytes, fds, None).unwrap()
        };
        let long = vec![7; 30_000];
        (0..10).for_each(|_| assert_eq!(send(&long, &[]), long.len()));
        send(&long, &[a.as_fd(), b.as_fd()]);
        send(b"rest", &[]);
        send(b"x", &[b.as_fd()]);
        for _ in 0..2 {
            let seen = contents(&a);
            let fds: Vec<usize> = seen.iter().map(|(_, fds)| *fds).filter(|fds| *fds > 0).collect();
            assert_eq!(fds, [2, 1]);
            assert_eq!(seen.iter().map(|(bytes, _)| bytes.len()).sum::<usize>(), 330_005);
        }
    }

    #[test]
    fn a_queue_of_messages_ends_where_its_other_end_was_closed() {
        let (a, b) = new_pair(SockType::SeqPacket, 0).unwrap();
        for message in [&b"one"[..], b"", b"two", b""] {
            sys::socket::send(b.as_fd(), &[], message, &[], None).unwrap();
        }
        drop(b);
        // That one without bytes came before the end cannot be told.
        assert_eq!(contents(&a), [(b"one".to_vec(), 0), (vec![], 0), (b"two".to_vec(), 0)]);
    }
}
