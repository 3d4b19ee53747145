//! unix(7): connected pairs, bound and listening sockets. The peer is known by its inode number
//! (sock_diag(7)). Unread messages are captured with MSG_PEEK, and sent again through the peer.

use crate::error::{At, Error, Result};
use crate::image::{Bytes, Chunk, MAX_CHUNK, MessageMeta, OpenFile};
use crate::kind::context::{Held, Opened, OpenedTogether, RestoreContext};
use crate::kind::socket::option::{Phase, SocketClass, SocketOptions};
use crate::kind::socket::{PASSIVE_REASON, over_limit};
use crate::kind::{ContentsContext, ContentsPiece, Kind, ObjectCheck, Piece, Sink};
use crate::operation::Outcome;
use crate::proc::Descriptor;
use crate::sys;
use crate::sys::peek_guard::PeekOffset;
use crate::sys::socket::MAX_FDS;
use crate::sys::socket::{Ancillary, Ucred};
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
/// The length limit of a message, in bytes: beyond any that net.core.wmem_max allows by default.
const MAX_MESSAGE: usize = 4 << 20;
/// The limit of successive messages without bytes: each takes a few hundred bytes of the buffer.
const MAX_EMPTY_MESSAGES: usize = 1 << 20;

/// A unix socket.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Unix {
    /// The socket type: SOCK_STREAM 1, SOCK_DGRAM 2 or SOCK_SEQPACKET 5.
    class: u8,
    /// The address that it is bound to, without the family: a path, or a NUL and an abstract name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<Bytes>,
    /// Permissions, owner and group of the socket file at its path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<(u32, u32, u32)>,
    /// The inode of its peer; zero if the peer is closed, none if it is not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    peer: Option<u32>,
    /// The backlog of a listening socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    backlog: Option<u32>,
    /// Pending connections. They are not kept.
    pending: u32,
    /// Unread bytes; of a datagram socket, those of the first message.
    queued: u32,
    /// The directions that are shut down: receiving 1, sending 2.
    shutdown: u8,
    /// An out-of-band byte is unread (MSG_OOB, Linux 5.15). It is not kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    urgent: bool,
    /// Socket options that differ from those of a new socket.
    #[serde(default, skip_serializing_if = "SocketOptions::is_empty")]
    options: SocketOptions,
}

impl Unix {
    /// The socket type. Fails with status 3 if it is not one of unix(7).
    fn socket_type(&self) -> Result<SockType> {
        match i32::from(self.class) {
            libc::SOCK_STREAM => Ok(SockType::Stream),
            libc::SOCK_DGRAM => Ok(SockType::Datagram),
            libc::SOCK_SEQPACKET => Ok(SockType::SeqPacket),
            other => Err(Error::malformed(format!("{other} is not a socket type of unix(7)"))),
        }
    }

    /// Reports whether it is SOCK_STREAM, which keeps no message boundaries.
    fn is_stream(&self) -> bool {
        i32::from(self.class) == libc::SOCK_STREAM
    }

    /// Its peer, if that is restored too.
    fn restored_peer<'a>(&self, cx: &RestoreContext<'a>) -> Option<(&'a OpenFile, &'a Unix)> {
        let file = cx.socket(self.peer.filter(|&peer| peer != 0)?)?;
        Some((file, cx.image.record_as(file.id)?))
    }

    /// Reports whether its peer is another socket that is connected to this one: a pair, as
    /// socketpair(2) and accept(2) make it.
    fn is_pair(&self, file: &OpenFile, (peer_file, peer): &(&OpenFile, &Unix)) -> bool {
        peer_file.id != file.id
            && self.class == peer.class
            && peer.peer.map(u64::from) == file.inode.as_ref().map(|inode| inode.ino)
    }
}

/// Family, type and protocol of a unix socket of this type.
fn class_of(socket_type: u8) -> SocketClass {
    (libc::AF_UNIX, socket_type.into(), 0)
}

/// Encodes an address. Fails with status 3 if the name is too long.
fn unix_addr(name: &[u8]) -> Result<UnixAddr> {
    let address = match name.split_first() {
        Some((0, name)) => UnixAddr::new_abstract(name),
        _ => UnixAddr::new(name),
    };
    address.map_err(|_| Error::malformed("its name is too long for a unix socket"))
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
            return Err(Error::unrestorable(PASSIVE_REASON));
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
            options: SocketOptions::read(copy.as_fd(), class_of(found.class))?,
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
        let readable = poll(&mut polled, PollTimeout::ZERO).at(|| "poll")? > 0;
        if readable && option(libc::SO_PEEK_OFF)? >= 0 {
            // The program uses SO_PEEK_OFF itself. While it runs, it would peek at another offset,
            // and bytes that it reads would not lower its own.
            cx.require_frozen()?;
        }
        peek_queue(copy, option(libc::SO_TYPE)?, limit, to)
    }

    fn describe(&self, file: &OpenFile) -> Option<String> {
        let socket_type = match i32::from(self.class) {
            libc::SOCK_STREAM => "stream",
            libc::SOCK_DGRAM => "dgram",
            libc::SOCK_SEQPACKET => "seqpacket",
            _ => return None,
        };
        // Peers and --inherit name a socket by its link, `socket:[INODE]`.
        let link = String::from_utf8_lossy(&file.link.0);
        let mut text = format!("unix {socket_type} {link}");
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
        self.socket_type()?;
        if let Some(name) = &self.name {
            unix_addr(&name.0)?;
        }
        self.options.validate()
    }

    fn object_check() -> Option<Box<dyn ObjectCheck<Self>>> {
        Some(Box::new(QueueCheck::default()))
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        self.options.check(class_of(self.class))?;
        let bound = match self.backlog {
            Some(_) => true,
            None => self.peer.is_none(),
        };
        let path = self.name.as_ref().filter(|name| !name.0.starts_with(&[0]));
        if bound && path.is_some() && cx.root.is_some() {
            return Err(Error::unrestorable("a socket cannot be bound to a path below --root"));
        }
        match self.peer {
            None | Some(0) => Ok(()),
            Some(peer) => match self.restored_peer(cx) {
                Some(found) if self.is_pair(file, &found) => Ok(()),
                Some((_, found)) if found.name.is_some() && !self.is_stream() => Ok(()),
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
        let socket_type = self.socket_type()?;
        let pair = self.restored_peer(cx).filter(|found| self.is_pair(file, found));
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
            (Some((peer_file, record)), _) => {
                let flags = file.flags & peer_file.flags & NONBLOCK;
                let (fd, peer_fd) = new_pair(socket_type, flags)?;
                record.set_options(peer_fd.as_fd(), peer_file, cx)?;
                record.bind_connected(&peer_fd, peer_file, cx);
                self.bind_connected(&fd, file, cx);
                let mut opened = Opened::new(fd, flags);
                opened.others.push(OpenedTogether { file: peer_file.id, fd: peer_fd, flags });
                opened
            }
            (None, Some(0)) => {
                let flags = file.flags & NONBLOCK;
                let (fd, closed_end) = new_pair(socket_type, flags)?;
                self.bind_connected(&fd, file, cx);
                let mut opened = Opened::new(fd, flags);
                match cx.needs_parked_end(file) {
                    true => opened.parked = Some(closed_end),
                    false => self.fill(file, closed_end.as_fd(), cx)?,
                }
                opened
            }
            _ => {
                let flags = file.flags & NONBLOCK;
                let made = socket(AddressFamily::Unix, socket_type, socket_flags(flags), None)
                    .at(|| "socket")?;
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
            cx.warnings.push(format!("{}: {pending} pending connections are lost", shown()));
        }
        if *urgent {
            cx.warnings.push(format!("{}: an unread out-of-band byte (MSG_OOB) is lost", shown()));
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
        if let Some(closed_end) = cx.parked_end(file.id) {
            self.fill(file, closed_end.as_fd(), cx)
        } else if let Some(peer) = self.restored_peer(cx) {
            let peer_fd = cx.held.get(&peer.0.id).cloned().ok_or(Errno::ENOTCONN)?;
            if self.is_pair(file, &peer) {
                self.fill(file, peer_fd.as_fd(), cx)?;
            } else if let Some(name) = &peer.1.name {
                connect(fd.as_raw_fd(), &unix_addr(&name.0)?).at(|| "connect")?;
                self.warn_if_no_contents(file, cx);
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
            // Not earlier: shutdown(2) at one end prevents filling the queue of the other.
            _ => shutdown(fd.as_raw_fd(), how).at(|| "shutdown"),
        }
    }

    fn substitute(&self, file: &OpenFile) -> Result<OwnedFd> {
        // The peer is closed: reads return end-of-file, and writes fail with EPIPE.
        Ok(new_pair(SockType::Stream, file.flags)?.0)
    }
}

/// Checks that the pieces of a queue are messages that a socket of its type can hold.
#[derive(Default)]
struct QueueCheck {
    is_stream: bool,
    is_listening: bool,
    /// The next piece continues the message.
    in_message: bool,
    /// The length of the message so far, in bytes.
    len: usize,
}

impl ObjectCheck<Unix> for QueueCheck {
    fn file(&mut self, record: &Unix, _: &OpenFile) -> Result<()> {
        self.is_stream |= record.is_stream();
        self.is_listening |= record.backlog.is_some();
        Ok(())
    }

    fn contents(&mut self, piece: &ContentsPiece<'_>) -> Result<()> {
        let files = piece.meta.map_or(0, |meta| meta.files.len());
        let why = match files {
            _ if self.is_listening => "it listens, and so has no queue of messages",
            0 => "",
            _ if files > MAX_FDS => "a queued message has more than 253 descriptors (SCM_MAX_FD)",
            _ if self.in_message => "descriptors are queued in the middle of a message",
            _ if self.is_stream && piece.len == 0 => "descriptors are queued without a byte",
            _ => "",
        };
        if !why.is_empty() {
            return Err(Error::malformed(why));
        }
        self.len = if self.in_message { self.len } else { 0 } + piece.len;
        if self.len > MAX_MESSAGE {
            return Err(Error::malformed("a queued message is longer than 4 MiB"));
        }
        self.in_message = !self.is_stream && piece.meta.is_some_and(|meta| meta.more);
        Ok(())
    }
}

/// The flags of socket(2) for status flags of open(2): SOCK_NONBLOCK.
fn socket_flags(flags: u32) -> SockFlag {
    if flags & NONBLOCK != 0 { SockFlag::SOCK_NONBLOCK } else { SockFlag::empty() }
}

/// Makes a connected pair. `flags` are status flags of open(2), of which O_NONBLOCK counts.
fn new_pair(socket_type: SockType, flags: u32) -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, socket_type, None, socket_flags(flags)).at(|| "socketpair")
}

impl Unix {
    /// Sets the options of the first phase.
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

    /// Binds an end of a connection to its recorded name, or warns that it cannot be: an accepted
    /// socket has the name of its listening socket.
    fn bind_connected(&self, fd: &OwnedFd, file: &OpenFile, cx: &mut RestoreContext<'_>) {
        let Some(name) = &self.name else { return };
        let bound = match name.0.starts_with(&[0]) {
            _ if listening_names(cx).contains_key(&name.0) => {
                Err(Error::unrestorable("a listening socket has this name"))
            }
            false if cx.root.is_some() => {
                Err(Error::unrestorable("a socket cannot be bound to a path below --root"))
            }
            _ => self.bind(fd, name, self.node, cx),
        };
        if let Err(why) = bound {
            let (link, name) = (escape(&file.link.0), escape(&name.0));
            cx.warnings.push(format!("{link}: it is not bound to its name {name}: {why}"));
        }
    }

    /// Binds a socket to its recorded name. A socket file at the path that no socket is bound to
    /// (the old process left it) is unlinked first. Fails with status 6 if another socket or
    /// another file is at the path.
    fn bind(
        &self,
        fd: &OwnedFd,
        name: &Bytes,
        node: Option<(u32, u32, u32)>,
        cx: &mut RestoreContext<'_>,
    ) -> Result<()> {
        let at = unix_addr(&name.0)?;
        let shown = escape(&name.0).into_owned();
        if name.0.starts_with(&[0]) {
            return match bind(fd.as_raw_fd(), &at) {
                Err(Errno::EADDRINUSE) => {
                    Err(Error::unrestorable(format!("another socket is bound to {shown}")))
                }
                bound => bound.at(|| format!("bind to {shown}")),
            };
        }
        let path = Path::new(std::ffi::OsStr::from_bytes(&name.0));
        let here = std::env::current_dir().ok();
        let cwd = cx.task.cwd.as_ref().map(|cwd| Path::new(std::ffi::OsStr::from_bytes(&cwd.0)));
        let chdir = path.is_relative() && here.as_deref() != cwd;
        if chdir {
            let cwd = cwd.ok_or_else(|| {
                Error::unrestorable(format!(
                    "it is bound to the relative path {shown}, and the working directory of its task \
                     is not in the image"
                ))
            })?;
            std::env::set_current_dir(cwd).at(|| "working directory of its task")?;
        }
        let bound = (|| {
            if let Ok(found) = path.symlink_metadata() {
                use std::os::unix::fs::FileTypeExt;
                // connect(2) fails with ECONNREFUSED for any other file type too.
                if !found.file_type().is_socket() {
                    let why = format!("a file that is not a socket is at {shown}");
                    return Err(Error::unrestorable(why));
                }
                // A datagram socket: its connect(2) to a listening socket fails with EPROTOTYPE and
                // queues no connection there, and a datagram socket does not notice it.
                let no_flags = SockFlag::empty();
                let probe = socket(AddressFamily::Unix, SockType::Datagram, no_flags, None)?;
                match connect(probe.as_raw_fd(), &at) {
                    Err(Errno::ECONNREFUSED) => std::fs::remove_file(path)?,
                    Ok(()) | Err(Errno::EPERM | Errno::EPROTOTYPE) => {
                        let why = format!("another socket is bound to {shown}");
                        return Err(Error::unrestorable(why));
                    }
                    Err(errno) => return Err(errno).at(|| shown.clone()),
                }
            }
            bind(fd.as_raw_fd(), &at).at(|| format!("bind to {shown}"))?;
            let Some((mode, uid, gid)) = node else {
                // The path was unlinked already: only the socket still has the address.
                return std::fs::remove_file(path).at(|| format!("unlink {shown}"));
            };
            let own_ids = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
            if (uid, gid) != own_ids
                && std::os::unix::fs::lchown(path, Some(uid), Some(gid)).is_err()
            {
                cx.warnings.push(format!("{shown}: its owner {uid}:{gid} is not restored"));
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
        if let (true, Some(here)) = (chdir, here) {
            std::env::set_current_dir(here).at(|| "working directory of the caller")?;
        }
        bound
    }

    /// Warns if the image lacks the contents of its queue.
    fn warn_if_no_contents(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) {
        if self.queued > 0 && !cx.has_contents(file.object) {
            let name = escape(&file.link.0).into_owned();
            let why =
                "unread bytes are not in the image (scan with --data): its queue is restored empty";
            cx.warnings.push(format!("{name}: its {} {why}", self.queued));
        }
    }

    /// Fills its queue by sending the messages through its peer. An unbound peer that is to be
    /// closed is bound to the abstract name of the messages' sender.
    fn fill(
        &self,
        file: &OpenFile,
        peer: BorrowedFd<'_>,
        cx: &mut RestoreContext<'_>,
    ) -> Result<()> {
        self.warn_if_no_contents(file, cx);
        if !cx.has_contents(file.object) {
            return Ok(());
        }
        let mut losses = QueueLosses::default();
        let read_name = || sys::socket::name(peer).ok().and_then(|name| decode_name(&name));
        let mut bound_to = read_name();
        for_each_message(cx, file, self.is_stream(), |message| {
            // The name of a closed peer is known only from the messages that it sent.
            let from = message.from.filter(|from| bound_to.is_none() && from.starts_with(&[0]));
            if let Some(from) = from.filter(|_| self.peer == Some(0)) {
                let _ = sys::socket::bind(peer, &sockaddr_un(from));
                bound_to = read_name();
            }
            losses.senders += usize::from(message.from != bound_to.as_deref());
            send_message(message, peer, &[], self.is_stream(), cx, &mut losses)
        })?;
        losses.warn(file, cx);
        Ok(())
    }

    /// Fills the queue of a bound, unconnected datagram socket: each message is sent from the
    /// restored socket that has its sender's name, or from a temporary one bound to that name.
    fn fill_bound(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<()> {
        self.warn_if_no_contents(file, cx);
        let Some(name) = &self.name else { return Ok(()) };
        let to = sockaddr_un(&name.0);
        let senders = restored_names(cx);
        let mut losses = QueueLosses::default();
        for_each_message(cx, file, false, |message| {
            let from = message.from;
            let held = from.and_then(|from| cx.held.get(senders.get(from)?)).cloned();
            if let Some(sender) = held {
                return send_message(message, sender.as_fd(), &to, false, cx, &mut losses);
            }
            let sender = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::empty(), None)?;
            let abstract_name = from.filter(|from| from.starts_with(&[0]));
            let bound = match abstract_name {
                Some(from) => sys::socket::bind(sender.as_fd(), &sockaddr_un(from)).is_ok(),
                None => from.is_none(),
            };
            losses.senders += usize::from(!bound);
            send_message(message, sender.as_fd(), &to, false, cx, &mut losses)
        })?;
        losses.warn(file, cx);
        Ok(())
    }
}

/// Encodes a struct sockaddr_un.
fn sockaddr_un(name: &[u8]) -> Vec<u8> {
    let family = (libc::AF_UNIX as libc::sa_family_t).to_ne_bytes();
    // A path is terminated by a NUL, an abstract name by its length.
    let end: &[u8] = if name.starts_with(&[0]) { &[] } else { &[0] };
    [&family, name, end].concat()
}

/// The names of the listening sockets of the image, restored or not, with their files.
fn listening_names(cx: &mut RestoreContext<'_>) -> Rc<HashMap<Vec<u8>, u32>> {
    let image = cx.image;
    let all = cx.addresses.entry("unix listeners").or_insert_with(|| {
        let listening = image.of_kind().filter(|(_, record): &(_, &Unix)| record.backlog.is_some());
        Rc::new(listening.filter_map(name_and_file).collect())
    });
    all.clone()
}

/// The names of the restored sockets, with their files.
fn restored_names(cx: &mut RestoreContext<'_>) -> Rc<HashMap<Vec<u8>, u32>> {
    let (restored, image) = (cx.lowest, cx.image);
    let all = cx.addresses.entry(Unix::NAME).or_insert_with(|| {
        let restored = image.of_kind().filter(|(file, _)| restored.contains_key(&file.id));
        Rc::new(restored.filter_map(name_and_file).collect())
    });
    all.clone()
}

/// The name of a socket, if it has one, and the id of its file.
fn name_and_file((file, record): (&OpenFile, &Unix)) -> Option<(Vec<u8>, u32)> {
    Some((record.name.as_ref()?.0.clone(), file.id))
}

/// A message of a queue in the image.
struct QueuedMessage<'m> {
    /// The name of its sender, as [`Unix::name`].
    from: Option<&'m [u8]>,
    /// The files of the descriptors that it carries.
    files: &'m [u32],
    /// SCM_CREDENTIALS.
    credentials: Option<Ucred>,
    bytes: &'m [u8],
}

/// Numbers of messages and descriptors of a queue that are not restored as they were.
#[derive(Default)]
struct QueueLosses {
    /// Messages with another sender name.
    senders: usize,
    /// Descriptors that are not restored.
    descriptors: usize,
    /// Messages whose credentials name this process, since the sender is not restored.
    processes: usize,
    /// Messages without their credentials, for lack of a capability.
    credentials: usize,
}

impl QueueLosses {
    /// Warns of each number that is not zero.
    fn warn(self, file: &OpenFile, cx: &mut RestoreContext<'_>) {
        let QueueLosses { senders, descriptors, processes, credentials } = self;
        let name = escape(&file.link.0);
        for (count, why) in [
            (senders, "queued messages lose the names of their senders"),
            (descriptors, "queued descriptors are not restored, and are left out"),
            (
                processes,
                "queued messages name the restored process as sender: their own is not restored",
            ),
            (
                credentials,
                "queued messages lose their credentials: only root can send those of others",
            ),
        ] {
            if count > 0 {
                cx.warnings.push(format!("{name}: {count} {why}"));
            }
        }
    }
}

/// Sends a message of a queue through a socket to an address, or to its peer if `to` is empty.
/// Fails with status 6 if the queue does not take all of it.
fn send_message(
    message: QueuedMessage<'_>,
    through: BorrowedFd<'_>,
    to: &[u8],
    is_stream: bool,
    cx: &RestoreContext<'_>,
    losses: &mut QueueLosses,
) -> Result<()> {
    let QueuedMessage { from: _, files, credentials, mut bytes } = message;
    let held: Vec<Rc<Held>> = files.iter().filter_map(|&id| cx.descriptor(id)).collect();
    losses.descriptors += files.len() - held.len();
    let mut fds: Vec<BorrowedFd<'_>> = held.iter().map(|held| held.as_fd()).collect();
    let own_pid = nix::unistd::getpid().as_raw();
    // Pid 0: no end had SO_PASSCRED when it was sent, so that it has no credentials. No restored
    // socket has that option yet (Phase::Last).
    let mut credentials = credentials.filter(|&(pid, ..)| pid != 0).map(|(pid, uid, gid)| {
        let current = cx.pids.process(pid).filter(|&current| current > 0);
        losses.processes += usize::from(current.is_none());
        (current.unwrap_or(own_pid), uid, gid)
    });
    loop {
        match sys::socket::send(through, to, bytes, &fds, credentials) {
            Err(Errno::EPERM | Errno::ESRCH | Errno::EINVAL) if credentials.is_some() => {
                // Without CAP_SYS_ADMIN, CAP_SETUID and CAP_SETGID a process can send only its own.
                losses.credentials += 1;
                credentials = None;
            }
            Err(Errno::ETOOMANYREFS) => {
                let why = "more descriptors are queued than the limit of open files allows: raise it \
                           (ulimit -n)";
                return Err(Error::unrestorable(why));
            }
            Err(errno) => return Err(errno).at(|| "fill its queue"),
            Ok(sent) if sent == bytes.len() => return Ok(()),
            Ok(_) if !is_stream => {
                return Err(Error::unrestorable("a queued message does not fit its queue"));
            }
            Ok(sent) => {
                bytes = &bytes[sent..];
                fds.clear();
            }
        }
    }
}

/// Calls `take` with each message of a queue in the image, put together from its pieces.
fn for_each_message(
    cx: &RestoreContext<'_>,
    file: &OpenFile,
    is_stream: bool,
    mut take: impl FnMut(QueuedMessage<'_>) -> Result<()>,
) -> Result<()> {
    let mut bytes = Vec::new();
    let mut first = MessageMeta::default();
    let mut in_message = false;
    cx.contents(file.object, |chunk: &Chunk, more: &[u8]| {
        let with = chunk.with.as_deref();
        if !in_message {
            first = with.cloned().unwrap_or_default();
        }
        bytes.extend_from_slice(more);
        in_message = !is_stream && with.is_some_and(|with| with.more);
        if !in_message {
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

/// Reads the messages of a queue without consuming them. Fails with status 6 if they have more than
/// `limit` bytes.
///
/// MSG_PEEK returns the first message each time, unless SO_PEEK_OFF is set (socket(7), Linux 3.4).
/// That option belongs to the socket, so it is not set for an empty queue, nor for a stream that
/// one call returns whole.
fn peek_queue(copy: BorrowedFd<'_>, socket_type: i32, limit: u64, to: Sink<'_>) -> Result<()> {
    let is_stream = socket_type == libc::SOCK_STREAM;
    let no_peek_offset = sys::socket::option(copy, libc::SOL_SOCKET, libc::SO_PEEK_OFF)? < 0;
    let mut buffer = vec![0; 256 << 10];
    if is_stream {
        // Room for the whole queue: two calls for one message would each return its descriptors.
        let unread = sys::readable(copy)?;
        if unread as u64 > limit {
            return Err(over_limit(limit));
        }
        buffer.resize(buffer.len().max(unread + 1), 0);
    }
    if no_peek_offset {
        let Some(first) = peek_message(copy, &mut buffer)? else { return Ok(()) };
        let whole = first.len < buffer.len() && first.len >= sys::readable(copy)?;
        if is_stream && (first.len == 0 || whole && first.with.fds.is_empty()) {
            return emit(first, &buffer, is_stream, to);
        }
    }
    let inline = sys::socket::option(copy, libc::SOL_SOCKET, libc::SO_OOBINLINE)? != 0;
    let mut urgent = sys::socket::urgent(copy).filter(|_| is_stream && !inline);
    let offset = PeekOffset::take(copy).at(|| "SO_PEEK_OFF")?;
    let (mut total, mut empty) = (0, 0);
    // Whether the last call returned no descriptors, and its credentials. On a stream a call ends
    // after descriptors, and before bytes with other credentials.
    let mut before: Option<(bool, Option<Ucred>)> = None;
    while let Some(found) = peek_message(copy, &mut buffer)? {
        let PeekedMessage { len, ref with, .. } = found;
        empty = if len == 0 { empty + 1 } else { 0 };
        if len == 0 && (is_stream || is_at_end(copy, total)?) {
            return Ok(());
        }
        if with.cut {
            let why = "it has more queued descriptors than the limit of open files allows: raise it \
                       (ulimit -n)";
            return Err(Error::unrestorable(why));
        }
        if empty > MAX_EMPTY_MESSAGES || total + len as u64 > limit {
            return Err(over_limit(limit));
        }
        if len > buffer.len() || is_stream && len == buffer.len() && !with.fds.is_empty() {
            // The call has advanced the peek offset: it is set back, and a larger buffer is tried.
            let seen = len.min(buffer.len()) as i32;
            offset.set(offset.get()?.saturating_sub(seen).max(0))?;
            buffer.resize(len.max(2 * buffer.len()), 0);
            continue;
        }
        total += len as u64;
        // Unless it is the first byte of the queue, the out-of-band byte is returned like a byte of
        // the stream, at the start of a call: the call before has stopped at it.
        let credentials = with.credentials;
        let stopped = before.is_some_and(|(no_fds, of)| !no_fds || of == credentials);
        let is_urgent = stopped && urgent == Some(buffer[0]);
        before = Some((with.fds.is_empty(), credentials));
        match is_urgent {
            true => {
                urgent = None;
                let found = PeekedMessage { len: len - 1, ..found };
                emit(found, &buffer[1..], is_stream, to)?;
            }
            false => emit(found, &buffer, is_stream, to)?,
        }
    }
    Ok(())
}

/// Reports whether only end-of-file can follow after `total` bytes. At the end of a seqpacket queue
/// whose other end is closed each call returns 0 bytes, as it does for a message without bytes.
fn is_at_end(copy: BorrowedFd<'_>, total: u64) -> Result<bool> {
    let closed = sys::socket::reads_end(copy).at(|| "poll")?;
    Ok(closed && total >= sys::readable(copy)? as u64)
}

/// A message, or a part of a stream, that one recvmsg(2) with MSG_PEEK returned.
struct PeekedMessage {
    /// Its length in bytes, which may be more than the buffer took (MSG_TRUNC).
    len: usize,
    /// The name of its sender, as [`Unix::name`].
    from: Option<Vec<u8>>,
    with: Ancillary,
}

/// Peeks at the next message; none if there is none.
fn peek_message(copy: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Option<PeekedMessage>> {
    match sys::socket::peek_message(copy, buffer, true) {
        Ok((len, from, with)) => Ok(Some(PeekedMessage { len, from: decode_name(&from), with })),
        // EINVAL and ENOTCONN: it is not connected, and so has no queue.
        Err(Errno::EAGAIN | Errno::EINVAL | Errno::ENOTCONN) => Ok(None),
        Err(errno) => Err(errno).at(|| "peek"),
    }
}

/// Passes a message to the sink in pieces of at most [`MAX_CHUNK`] bytes. The first has its sender,
/// descriptors and credentials; each piece of a stream has the credentials.
fn emit(message: PeekedMessage, buffer: &[u8], is_stream: bool, to: Sink<'_>) -> Result<()> {
    let PeekedMessage { len, from, with } = message;
    let Ancillary { mut fds, credentials, cut: _ } = with;
    if is_stream && len == 0 {
        return Ok(());
    }
    let mut pieces = buffer[..len].chunks(MAX_CHUNK).peekable();
    let mut first = MessageMeta { from: from.map(Bytes), credentials, ..MessageMeta::default() };
    loop {
        let bytes = pieces.next().unwrap_or_default();
        let more = !is_stream && pieces.peek().is_some();
        let with = MessageMeta { more, ..std::mem::take(&mut first) };
        let with = (with != MessageMeta::default()).then_some(with);
        to(Piece { offset: 0, bytes, with, fds: std::mem::take(&mut fds) })?;
        if pieces.peek().is_none() {
            return Ok(());
        }
        if is_stream {
            first.credentials = credentials;
        }
    }
}

/// The name in a struct sockaddr_un, as [`Unix::name`]; none for an unbound socket.
fn decode_name(address: &[u8]) -> Option<Vec<u8>> {
    let name = address.get(size_of::<libc::sa_family_t>()..)?;
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
    fn the_peer_is_captured_and_zero_once_it_is_closed() {
        let (a, b) = UnixStream::pair().unwrap();
        let one: Unix = body_of(&a);
        assert!(one.is_stream() && one.peer.is_some_and(|peer| peer > 0));
        drop(b);
        let alone: Unix = body_of(&a);
        assert_eq!((alone.peer, alone.shutdown), (Some(0), 3));
    }

    /// The captured pieces of a queue: bytes, and the number of descriptors.
    fn contents(of: impl AsFd) -> Vec<(Vec<u8>, usize)> {
        let mut seen = Vec::new();
        let take = |piece: Piece<'_>| seen.push((piece.bytes.to_vec(), piece.fds.len()));
        contents_of::<Unix>(&of, 1 << 20, take).unwrap();
        let offset = sys::socket::option(of.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF);
        assert_eq!(offset, Ok(-1));
        seen
    }

    #[test]
    fn messages_are_peeked_one_by_one_and_the_peek_offset_is_restored() {
        let (a, b) = UnixDatagram::pair().unwrap();
        for message in [&b"one"[..], b"", b"three"] {
            b.send(message).unwrap();
        }
        let is = [(b"one".to_vec(), 0), (vec![], 0), (b"three".to_vec(), 0)];
        assert_eq!(contents(&a), is);
        assert_eq!(a.recv(&mut [0; 8]).unwrap(), 3);
    }

    #[test]
    fn descriptors_are_captured_once_with_their_message_in_a_long_queue() {
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
    fn a_seqpacket_queue_ends_where_the_peer_was_closed() {
        let (a, b) = new_pair(SockType::SeqPacket, 0).unwrap();
        for message in [&b"one"[..], b"", b"two", b""] {
            sys::socket::send(b.as_fd(), &[], message, &[], None).unwrap();
        }
        drop(b);
        // The last message, without bytes, cannot be told from end-of-file.
        assert_eq!(contents(&a), [(b"one".to_vec(), 0), (vec![], 0), (b"two".to_vec(), 0)]);
    }
}
