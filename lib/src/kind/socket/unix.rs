//! unix(7): connected pairs, bound and listening sockets. The peer is known by its inode number
//! (sock_diag(7)). Unread messages are captured with MSG_PEEK, and sent again through the peer.

use crate::error::{At, Error, Result};
use crate::image::{Bytes, OpenFile};
use crate::kind::context::{Opened, OpenedTogether, RestoreContext};
use crate::kind::effect::{Allow, Effect};
use crate::kind::socket::inet::{netns_text, require_same_netns};
use crate::kind::socket::option::{Phase, SocketClass, SocketOptions};
use crate::kind::socket::socket_file::{self, BindPlace, ModeAndOwner, name_in_use, sockaddr_un};
use crate::kind::socket::unix_queue::{
    QueueLosses, decode_name, for_each_message, peek_queue, send_message,
};
use crate::kind::socket::{NONBLOCK, events_without_error, listen, nonblock_flag, shut_down};
use crate::kind::{ContentsContext, ContentsPiece, Kind, ObjectCheck, Sink};
use crate::operation::Outcome;
use crate::proc::Descriptor;
use crate::sys;
use crate::sys::socket::MAX_FDS;
use crate::text::escape;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, socket, socketpair};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;

/// The length limit of a message, in bytes: beyond any that net.core.wmem_max allows by default.
const MAX_MESSAGE: usize = 4 << 20;

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
    node: Option<ModeAndOwner>,
    /// The path of the socket file: SIOCUNIXFILE, or, where that is not permitted, the name from the
    /// directories of the process, if it leads to the file. None if it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<Bytes>,
    /// The inode of its peer; zero if the peer is closed, none if it is not connected. If it `waits`,
    /// the inode of the listening socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    peer: Option<u32>,
    /// It is connected, and the listening socket has not accepted the connection yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    waits: bool,
    /// If it waits: the memory of what it has sent, in bytes (UNIX_DIAG_RQLEN). No descriptor reads it
    /// before the connection is accepted, and it is not kept.
    #[serde(default, skip_serializing_if = "is_zero")]
    sent: u32,
    /// Of a listening socket: the inodes of those that wait to be accepted, the first one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    clients: Vec<u32>,
    /// The backlog of a listening socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    backlog: Option<u32>,
    /// The number of connections that wait to be accepted. Those of sockets outside the image are not
    /// kept.
    pending: u32,
    /// Unread bytes; of a datagram socket, those of the first message.
    queued: u32,
    /// The directions that are shut down: receiving 1, sending 2.
    shutdown: u8,
    /// An out-of-band byte is unread (MSG_OOB, Linux 5.15). It is not kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    urgent: bool,
    /// The inode of its network namespace, if that is not its process's. Abstract names are those of
    /// one network namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    netns: Option<u64>,
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

    /// The listening socket by which it waits to be accepted, if that is restored too, and knows it.
    fn listener<'a>(
        &self,
        file: &OpenFile,
        cx: &RestoreContext<'a>,
    ) -> Option<(&'a OpenFile, &'a Unix)> {
        let (listener_file, listener) = self.restored_peer(cx).filter(|_| self.waits)?;
        let inode = file.inode.as_ref()?.ino;
        let is_client = listener.class == self.class
            && listener.clients.iter().any(|&client| u64::from(client) == inode);
        is_client.then_some((listener_file, listener))
    }

    /// The restored sockets that wait to be accepted by it, the first one first.
    fn restored_clients<'a>(
        &self,
        file: &OpenFile,
        cx: &RestoreContext<'a>,
    ) -> Vec<(&'a OpenFile, &'a Unix)> {
        let clients = self.clients.iter().filter_map(|&client| cx.socket(client));
        let clients = clients.filter_map(|it| Some((it, cx.image.record_as::<Unix>(it.id)?)));
        let is_its = |(client, record): &(&OpenFile, &Unix)| {
            record.listener(client, cx).is_some_and(|(listener, _)| listener.id == file.id)
        };
        clients.filter(is_its).collect()
    }

    /// Reports whether its peer is another socket that is connected to this one: a pair, as
    /// socketpair(2) and accept(2) make it.
    fn is_pair(&self, file: &OpenFile, (peer_file, peer): &(&OpenFile, &Unix)) -> bool {
        peer_file.id != file.id
            && self.class == peer.class
            && peer.peer.map(u64::from) == file.inode.as_ref().map(|inode| inode.ino)
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
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

    fn claims(descriptor: &Descriptor<'_>) -> bool {
        descriptor.socket_family() == Some(libc::AF_UNIX)
    }

    fn capture(descriptor: &Descriptor<'_>) -> Result<Self> {
        let copy = descriptor.require_copy()?;
        let inode = descriptor.inode.as_ref().ok_or(Errno::ENOTSOCK)?;
        let ino = u32::try_from(inode.ino).map_err(|_| Errno::EOVERFLOW)?;
        let (found, netns) = descriptor.process.unix_socket(ino, copy)?;
        let path = found.name.as_deref().filter(|name| name.first() != Some(&0));
        let file = match path {
            Some(path) => socket_file::find(descriptor, copy, path, found.file)?,
            None => socket_file::SocketFile::default(),
        };
        // A restore binds only these.
        if let (true, Some(path)) = (file.unknown && (found.listens || found.peer.is_none()), path)
        {
            descriptor.warn(format!(
                "its name {} is as it was bound, and leads to no file of it now: where that is can be \
                 read with CAP_NET_ADMIN (run as root), unless it is unlinked",
                escape(path)
            ));
        }
        Ok(Unix {
            class: found.class,
            node: file.node,
            file: file.path.map(Bytes),
            name: found.name.map(Bytes),
            peer: found.listener.or(found.peer),
            waits: found.listener.is_some(),
            sent: found.listener.map_or(0, |_| found.queue.1),
            backlog: found.listens.then_some(found.queue.1),
            pending: found.clients.len() as u32,
            clients: found.clients.into_iter().filter(|&client| client != 0).collect(),
            queued: if found.listens { 0 } else { found.queue.0 },
            shutdown: found.shutdown,
            urgent: found.queue.0 > 0 && sys::socket::urgent(copy).is_some(),
            netns,
            options: SocketOptions::read(copy, class_of(found.class))?,
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
        let readable = events_without_error(copy)? != 0;
        if readable && option(libc::SO_PEEK_OFF)? >= 0 {
            // The program uses SO_PEEK_OFF itself. While it runs, it would peek at another offset,
            // and bytes that it reads would not lower its own.
            cx.require_frozen()?;
        }
        peek_queue(copy, cx, option(libc::SO_TYPE)?, limit, to)
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
        if let Some(file) = self.file.as_ref().filter(|file| Some(*file) != self.name.as_ref()) {
            text += &format!(" (file {})", String::from_utf8_lossy(&file.0));
        }
        match self.peer {
            Some(0) => text += " -> closed",
            Some(peer) => text += &format!(" -> socket:[{peer}]"),
            None => (),
        }
        if self.waits {
            text += " not accepted yet";
        }
        if let Some(backlog) = self.backlog {
            text += &format!(" LISTEN backlog={backlog}");
        }
        for (name, count) in [("pending", self.pending), ("queued", self.queued)] {
            if count > 0 {
                text += &format!(" {name}={count}");
            }
        }
        Some(text + &netns_text(self.netns))
    }

    fn validate(&self, _: &OpenFile) -> Result<()> {
        self.socket_type()?;
        if let Some(name) = &self.name {
            unix_addr(&name.0)?;
            if name.0.is_empty() {
                return Err(Error::malformed("its name is empty, which bind(2) never makes"));
            }
        }
        if self
            .file
            .as_ref()
            .is_some_and(|file| file.0.first() != Some(&b'/') || file.0.contains(&0))
        {
            return Err(Error::malformed("the path of its file is not an absolute path"));
        }
        if self.waits && (self.peer.unwrap_or(0) == 0 || self.backlog.is_some()) {
            return Err(Error::malformed("it waits to be accepted, but not by a listening socket"));
        }
        let clients: HashSet<&u32> = self.clients.iter().collect();
        let are_distinct = clients.len() == self.clients.len();
        if !self.clients.is_empty() && (self.backlog.is_none() || !are_distinct) {
            return Err(Error::malformed("its clients are not those of a listening socket"));
        }
        self.options.validate()
    }

    fn object_check() -> Option<Box<dyn ObjectCheck<Self>>> {
        Some(Box::new(QueueCheck::default()))
    }

    fn effects(&self, _: &OpenFile, cx: &RestoreContext<'_>) -> Result<Vec<Effect>> {
        let path = self.name.as_ref().filter(|name| !name.0.starts_with(&[0]));
        let Some(path) = path.filter(|_| cx.root.is_none() && cx.asks_for_names()) else {
            return Ok(Vec::new());
        };
        if self.is_bound_alone() {
            let place = self.place(&path.0, cx)?;
            return Ok(vec![self.bound_at(&place, &path.0, cx)?]);
        }
        // The name of an end of a connection is only tried.
        let bound = || self.bound_at(&self.place(&path.0, cx)?, &path.0, cx);
        let allowed = |effect: &Effect| effect.permitted(cx.allow).is_ok();
        let tried = cx.checks_all.then(bound).and_then(Result::ok).filter(allowed);
        Ok(tried.into_iter().collect())
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        self.options.check(class_of(self.class))?;
        let bound = self.is_bound_alone();
        let path = self.name.as_ref().filter(|name| !name.0.starts_with(&[0]));
        if bound && path.is_some() && cx.root.is_some() {
            return Err(Error::unrestorable(
                "a socket cannot be bound to a path below --root: run fdrestore in that root (chroot(8))",
            ));
        }
        match path {
            // The restore finds its place when it is bound.
            _ if !bound || !cx.is_plan() => (),
            Some(path) => {
                self.place(&path.0, cx)?.check_free(self.node, &escape(&path.0))?;
            }
            None => {
                if let Some(name) = &self.name {
                    require_same_netns(self.netns, cx)?;
                    self.check_abstract(&name.0)?;
                }
            }
        }
        match self.peer {
            None | Some(0) => Ok(()),
            Some(_) if self.waits && self.listener(file, cx).is_some() => Ok(()),
            Some(peer) if self.waits => Err(Error::unrestorable(format!(
                "it waits to be accepted by socket:[{peer}], which is outside the image or has no such \
                 client"
            ))),
            Some(peer) => match self.restored_peer(cx) {
                Some(found) if self.is_pair(file, &found) => Ok(()),
                Some((_, found)) if found.name.is_some() && !self.is_stream() => Ok(()),
                _ => Err(Error::unrestorable(format!(
                    "the other end, socket:[{peer}], is outside the image"
                ))),
            },
        }
    }

    fn socket_inode(&self, file: &OpenFile) -> Option<u64> {
        file.inode.as_ref().map(|inode| inode.ino)
    }

    fn peer_inodes(&self) -> Vec<u64> {
        self.peer.filter(|&peer| peer != 0).map(u64::from).into_iter().collect()
    }

    fn has_closed_end(&self) -> bool {
        self.peer == Some(0)
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        self.check(file, cx)?;
        if let Some((listener_file, listener)) = self.listener(file, cx) {
            // The listening socket is opened with all its clients. One of them is this.
            let mut opened = listener.restore(listener_file, cx)?;
            let at = opened.others.iter().position(|other| other.file == file.id);
            let client = opened.others.swap_remove(at.ok_or(Errno::ENOTCONN)?);
            let (fd, flags) = (opened.fd, opened.flags);
            opened.others.push(OpenedTogether { file: listener_file.id, fd, flags });
            return Ok(Opened { fd: client.fd, flags: client.flags, ..opened });
        }
        let socket_type = self.socket_type()?;
        let pair = self.restored_peer(cx).filter(|found| self.is_pair(file, found));
        let Unix {
            class: _,
            name,
            // Self::bind
            node: _,
            file: _,
            peer,
            // Self::listener
            waits: _,
            sent: _,
            clients: _,
            backlog,
            pending,
            queued: _,
            shutdown: _,
            urgent,
            // Self::check
            netns: _,
            options: _,
        } = self;
        let mut socket_file = None;
        let mut made = match (&pair, peer) {
            (Some((peer_file, record)), _) => {
                let flags = file.flags & peer_file.flags & NONBLOCK;
                let (fd, peer_fd) = new_pair(socket_type, flags)?;
                record.options.restore(peer_fd.as_fd(), Phase::Created, peer_file, cx)?;
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
                match cx.has_closed_end(file) {
                    true => opened.closed_end = Some(closed_end),
                    false => self.fill(file, closed_end.as_fd(), cx)?,
                }
                opened
            }
            _ => {
                let flags = file.flags & NONBLOCK;
                let made = socket(AddressFamily::Unix, socket_type, socket_flags(flags), None)
                    .at(|| "socket")?;
                if let Some(name) = name {
                    socket_file = self.bind(&made, name, cx)?;
                }
                Opened::new(made, flags)
            }
        };
        self.options.restore(made.fd.as_fd(), Phase::Created, file, cx)?;
        if let Some(backlog) = backlog {
            listen(made.fd.as_fd(), *backlog, file, cx).at(|| "listen")?;
        }
        for (client_file, client) in self.restored_clients(file, cx) {
            let fd = client.connect_again(client_file, self, socket_file.as_ref(), cx)?;
            made.others.push(OpenedTogether { file: client_file.id, fd, flags: NONBLOCK });
        }
        let shown = || escape(&file.link.0).into_owned();
        let lost = (*pending as usize).saturating_sub(made.others.len());
        if lost > 0 && backlog.is_some() {
            cx.warnings.push(format!("{}: {lost} pending connections are lost", shown()));
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
        if self.waits {
            Ok(())
        } else if let Some(closed_end) = cx.closed_end(file.id) {
            self.fill(file, closed_end.as_fd(), cx)
        } else if let Some(peer) = self.restored_peer(cx) {
            let peer_fd = cx.held.get(&peer.0.id).cloned().ok_or(Errno::ENOTCONN)?;
            if self.is_pair(file, &peer) {
                self.fill(file, peer_fd.as_fd(), cx)?;
            } else if let Some(name) = &peer.1.name {
                let to = socket_file::address_of_socket(peer_fd.as_fd(), &name.0);
                sys::socket::connect(fd, &to.address).at(|| "connect")?;
                self.warn_if_no_contents(file, cx);
            }
            Ok(())
        } else if self.peer.is_none() && self.backlog.is_none() {
            self.fill_bound(file, fd, cx)
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
        self.options.restore(fd, Phase::Last, file, cx)?;
        match self.peer {
            Some(0) => Ok(()),
            // Not earlier: shutdown(2) at one end prevents filling the queue of the other.
            _ => shut_down(fd, self.shutdown),
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

/// [`nonblock_flag`] for the functions of nix.
fn socket_flags(flags: u32) -> SockFlag {
    SockFlag::from_bits_retain(nonblock_flag(flags))
}

/// Makes a connected pair. `flags` are status flags of open(2), of which O_NONBLOCK counts.
fn new_pair(socket_type: SockType, flags: u32) -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, socket_type, None, socket_flags(flags)).at(|| "socketpair")
}

impl Unix {
    /// Binds an end of a connection to its recorded name, or warns that it cannot be: an accepted
    /// socket has the name of its listening socket.
    fn bind_connected(&self, fd: &OwnedFd, file: &OpenFile, cx: &mut RestoreContext<'_>) {
        let Some(name) = &self.name else { return };
        let is_abstract = name.0.starts_with(&[0]);
        let bound = match is_abstract {
            _ if listening_names(cx).contains_key(&name.0) => {
                Err(Error::unrestorable("a listening socket has this name"))
            }
            false if cx.root.is_some() => Err(Error::unrestorable(
                "a socket cannot be bound to a path below --root: run fdrestore in that root (chroot(8))",
            )),
            _ if is_abstract => {
                require_same_netns(self.netns, cx).and_then(|()| self.bind(fd, name, cx).map(drop))
            }
            _ => self.bind(fd, name, cx).map(drop),
        };
        if let Err(why) = bound {
            let (link, name) = (escape(&file.link.0), escape(&name.0));
            cx.warnings.push(format!("{link}: it is not bound to its name {name}: {why}"));
        }
    }

    /// Fails with status 6 if another socket has this abstract name.
    fn check_abstract(&self, name: &[u8]) -> Result<()> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let probe =
            socket(AddressFamily::Unix, self.socket_type()?, flags, None).at(|| "socket")?;
        match sys::socket::bind(probe.as_fd(), &sockaddr_un(name)) {
            Err(Errno::EADDRINUSE) => Err(name_in_use(&escape(name))),
            // The restore says what else fails.
            _ => Ok(()),
        }
    }

    /// Reports whether its name, if it has one, must be bound: that of an end of a connection is only
    /// tried.
    fn is_bound_alone(&self) -> bool {
        self.backlog.is_some() || self.peer.is_none()
    }

    /// The place at which it can be bound to its path again.
    fn place(&self, path: &[u8], cx: &RestoreContext<'_>) -> Result<BindPlace> {
        BindPlace::find(path, self.file.as_ref().map(|file| file.0.as_slice()), cx.task)
    }

    /// The effect of binding it there. What takes another user to do needs `--allow names`: to remove
    /// the file that a socket of another user has left, and to give the new file to another user.
    fn bound_at(&self, place: &BindPlace, name: &[u8], cx: &RestoreContext<'_>) -> Result<Effect> {
        let shown = escape(name);
        let unused = place.owner_of_unused(self.node);
        let what = || match unused {
            Some(_) => format!("removes an unused socket file and binds a socket to {shown}"),
            None => format!("binds a socket to {shown}"),
        };
        let user = cx.task.credentials.uids[3];
        let others = [unused, self.node.map(|(_, owner, _)| owner)].into_iter().flatten();
        let other = others.into_iter().find(|&owner| owner != user);
        match other.filter(|_| cx.may_exceed_task()) {
            Some(owner) => {
                let what = format!("{}, as user {owner}, and its task is of user {user}", what());
                Ok(Effect::needing(Allow::Names, what))
            }
            None => cx.write_to(place.directory(), what),
        }
    }

    /// Binds a socket to its recorded name. Gives an O_PATH descriptor of its file, if the name is a
    /// path. Fails with status 6 if another socket has the name, or another file is at the path.
    fn bind(
        &self,
        fd: &OwnedFd,
        name: &Bytes,
        cx: &mut RestoreContext<'_>,
    ) -> Result<Option<OwnedFd>> {
        let shown = escape(&name.0).into_owned();
        let address = sockaddr_un(&name.0);
        if name.0.starts_with(&[0]) {
            return match sys::socket::bind(fd.as_fd(), &address) {
                Err(Errno::EADDRINUSE) => Err(name_in_use(&shown)),
                bound => bound.at(|| format!("bind to {shown}")).map(|()| None),
            };
        }
        let place = self.place(&name.0, cx)?;
        // The path may lead elsewhere since the plan was checked.
        if cx.may_exceed_task() {
            self.bound_at(&place, &name.0, cx)?.permitted(cx.allow)?;
        }
        if self.file.is_none() && self.node.is_none() {
            cx.warnings.push(format!(
                "{shown}: a socket is bound to this name and has no file: the image does not say whether \
                 its file was unlinked, or where it is (scan as root)"
            ));
        }
        place.bind(fd.as_fd(), &address, self.node, &shown, &mut cx.warnings).map(Some)
    }

    /// Makes the socket, which waits to be accepted, and connects it to its listening socket, whose
    /// file is `socket_file`. It has O_NONBLOCK, so that connect(2) does not wait.
    fn connect_again(
        &self,
        file: &OpenFile,
        listener: &Unix,
        socket_file: Option<&OwnedFd>,
        cx: &mut RestoreContext<'_>,
    ) -> Result<OwnedFd> {
        let flags = socket_flags(NONBLOCK);
        let fd = socket(AddressFamily::Unix, self.socket_type()?, flags, None).at(|| "socket")?;
        self.bind_connected(&fd, file, cx);
        self.options.restore(fd.as_fd(), Phase::Created, file, cx)?;
        let to = match (socket_file, &listener.name) {
            (Some(file), _) => socket_file::address_of(file.as_fd()),
            (None, name) => sockaddr_un(name.as_ref().map_or(&[], |name| &name.0)),
        };
        sys::socket::connect(fd.as_fd(), &to).map_err(|errno| match errno {
            Errno::EAGAIN => Error::unrestorable(
                "the queue of its listening socket is full: raise net.core.somaxconn with sysctl(8)",
            ),
            errno => Error::from(errno).at("connect"),
        })?;
        if self.sent > 0 {
            let shown = escape(&file.link.0);
            cx.warnings.push(format!(
                "{shown}: what it has sent is lost: nothing can read that before the connection is accepted"
            ));
        }
        Ok(fd)
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
    fn fill_bound(
        &self,
        file: &OpenFile,
        fd: BorrowedFd<'_>,
        cx: &mut RestoreContext<'_>,
    ) -> Result<()> {
        self.warn_if_no_contents(file, cx);
        let Some(name) = &self.name else { return Ok(()) };
        let to = socket_file::address_of_socket(fd, &name.0);
        let to = &to.address;
        let senders = restored_names(cx);
        let mut losses = QueueLosses::default();
        for_each_message(cx, file, false, |message| {
            let from = message.from;
            let held = from.and_then(|from| cx.held.get(senders.get(from)?)).cloned();
            if let Some(sender) = held {
                return send_message(message, sender.as_fd(), to, false, cx, &mut losses);
            }
            let sender = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::empty(), None)?;
            let abstract_name = from.filter(|from| from.starts_with(&[0]));
            let bound = match abstract_name {
                Some(from) => sys::socket::bind(sender.as_fd(), &sockaddr_un(from)).is_ok(),
                None => from.is_none(),
            };
            losses.senders += usize::from(!bound);
            send_message(message, sender.as_fd(), to, false, cx, &mut losses)
        })?;
        losses.warn(file, cx);
        Ok(())
    }
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
        let take =
            |piece: crate::kind::Piece<'_>| seen.push((piece.bytes.to_vec(), piece.fds.len()));
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
        // The default of net.core.wmem_max.
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
