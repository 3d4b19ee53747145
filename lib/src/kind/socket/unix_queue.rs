//! The queue of a unix socket: read with MSG_PEEK by a scan, and sent again by a restore.

use crate::error::{At, Error, Result};
use crate::image::{Bytes, Chunk, MAX_CHUNK, MessageMeta, OpenFile};
use crate::kind::context::{Held, RestoreContext};
use crate::kind::socket::{check_queue_limit, check_stop, events_without_error};
use crate::kind::{ContentsContext, Piece, Sink};
use crate::sys;
use crate::sys::peek_guard::PeekOffset;
use crate::sys::socket::{Ancillary, Ucred};
use crate::text::escape;
use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;

/// The limit of successive messages without bytes: each takes a few hundred bytes of the buffer.
const MAX_EMPTY_MESSAGES: usize = 1 << 20;

/// A message of a queue in the image.
pub(super) struct QueuedMessage<'m> {
    /// The name of its sender, as [`Unix::name`].
    pub(super) from: Option<&'m [u8]>,
    /// The files of the descriptors that it carries.
    pub(super) files: &'m [u32],
    /// SCM_CREDENTIALS.
    pub(super) credentials: Option<Ucred>,
    pub(super) bytes: &'m [u8],
}

/// Numbers of messages and descriptors of a queue that are not restored as they were.
#[derive(Default)]
pub(super) struct QueueLosses {
    /// Messages with another sender name.
    pub(super) senders: usize,
    /// Messages whose credentials name this process, since the sender is not restored.
    pub(super) processes: usize,
    /// Messages without their credentials, for lack of a capability.
    pub(super) credentials: usize,
}

impl QueueLosses {
    /// Warns of each number that is not zero.
    pub(super) fn warn(self, file: &OpenFile, cx: &mut RestoreContext<'_>) {
        let QueueLosses { senders, processes, credentials } = self;
        let name = escape(&file.link.0);
        for (count, why) in [
            (senders, "queued messages lose the names of their senders"),
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
pub(super) fn send_message(
    message: QueuedMessage<'_>,
    through: BorrowedFd<'_>,
    to: &[u8],
    is_stream: bool,
    cx: &RestoreContext<'_>,
    losses: &mut QueueLosses,
) -> Result<()> {
    let QueuedMessage { from: _, files, credentials, mut bytes } = message;
    let held: Vec<Rc<Held>> = files.iter().filter_map(|&id| cx.descriptor(id)).collect();
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
                return Err(Error::unrestorable(
                    "a queued message does not fit its queue: raise net.core.wmem_max with sysctl(8), or run as \
                     root (CAP_NET_ADMIN)",
                ));
            }
            Ok(sent) => {
                bytes = &bytes[sent..];
                fds.clear();
            }
        }
    }
}

/// Calls `take` with each message of a queue in the image, put together from its pieces.
pub(super) fn for_each_message(
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
/// `limit` bytes, or are too many for a stop.
///
/// MSG_PEEK returns the first message each time, unless SO_PEEK_OFF is set (socket(7), Linux 3.4).
/// The option belongs to the socket, so it is not set for an empty queue, nor for a stream that
/// one call returns whole.
pub(super) fn peek_queue(
    copy: BorrowedFd<'_>,
    cx: &ContentsContext<'_>,
    socket_type: i32,
    limit: u64,
    to: Sink<'_>,
) -> Result<()> {
    let is_stream = socket_type == libc::SOCK_STREAM;
    let no_peek_offset = sys::socket::option(copy, libc::SOL_SOCKET, libc::SO_PEEK_OFF)? < 0;
    let mut buffer = vec![0; 256 << 10];
    if is_stream {
        // Room for the whole queue: two calls for one message would each return its descriptors.
        let unread = sys::readable(copy)?;
        check_queue_limit(unread as u64, limit)?;
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
    let (mut total, mut empty, mut messages) = (0, 0, 0);
    // The last call: true if it returned no descriptors, and its credentials. On a stream a call ends
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
        if empty > MAX_EMPTY_MESSAGES {
            let why = format!("it has more than {MAX_EMPTY_MESSAGES} messages without bytes");
            return Err(Error::unrestorable(why));
        }
        check_queue_limit(total + len as u64, limit)?;
        messages += 1;
        check_stop(messages, cx)?;
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

/// Peeks at the next message; none if there is none. Fails with status 6 if an error is pending.
fn peek_message(copy: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Option<PeekedMessage>> {
    events_without_error(copy)?;
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
pub(super) fn decode_name(address: &[u8]) -> Option<Vec<u8>> {
    let name = address.get(size_of::<libc::sa_family_t>()..)?;
    match name.first()? {
        0 => Some(name.to_vec()),
        _ => Some(name.iter().copied().take_while(|&byte| byte != 0).collect()),
    }
}
