//! pipe(7): two ends of one queue. Its bytes are read with tee(2), which does not consume them.

use crate::error::{At, Error, Result};
use crate::image::{MAX_CHUNK, OpenFile};
use crate::kind::context::{Opened, OpenedTogether, RestoreContext};
use crate::kind::{ContentsContext, Kind, Piece, Sink, check_limit};
use crate::proc::Descriptor;
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, open, tee};
use nix::libc;
use nix::poll::PollFlags;
use nix::sys::stat::Mode;
use nix::unistd::{pipe2, read, write};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

const ACCESS: u32 = libc::O_ACCMODE as u32;
const RDONLY: u32 = libc::O_RDONLY as u32;
const WRONLY: u32 = libc::O_WRONLY as u32;
/// The status flags that pipe2(2) can set on both ends.
const PIPE2_FLAGS: u32 = (libc::O_NONBLOCK | libc::O_DIRECT) as u32;
/// The default capacity in bytes: 16 pages of 4096 (pipe(7)).
const DEFAULT_CAPACITY: u32 = 65536;

/// The record of an end of a pipe.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pipe {
    /// The capacity in bytes: F_GETPIPE_SZ of fcntl(2). Zero in a passive scan.
    size: u32,
    /// The number of unread bytes: FIONREAD.
    queued: u32,
    /// The other end is closed: a reader sees end-of-file, a writer EPIPE.
    alone: bool,
}

/// The capacity, the number of unread bytes, and whether the other end is closed, of a pipe or
/// fifo. Zeroes in a passive scan.
pub(crate) fn read_state(descriptor: &Descriptor<'_>) -> Result<(u32, u32, bool)> {
    let Some(copy) = &descriptor.copy else { return Ok((0, 0, false)) };
    let size = fcntl(copy.as_fd(), FcntlArg::F_GETPIPE_SZ).at(|| "F_GETPIPE_SZ")? as u32;
    let queued = sys::readable(copy.as_fd()).at(|| "FIONREAD")? as u32;
    let events = sys::poll_now(copy.as_fd(), PollFlags::empty()).at(|| "poll")?;
    Ok((size, queued, events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR)))
}

/// Sets the capacity in bytes. Fails with status 6 if this user may not set it.
pub(crate) fn set_capacity(pipe: BorrowedFd<'_>, size: u32) -> Result<()> {
    match fcntl(pipe, FcntlArg::F_SETPIPE_SZ(size as i32)) {
        Err(Errno::EPERM) => Err(Error::unrestorable(format!(
            "its capacity of {size} bytes is above fs.pipe-max-size, or the user has too many pipes \
             (fs.pipe-user-pages-soft): raise them with sysctl(8), or run as root (CAP_SYS_RESOURCE)"
        ))),
        set => set.map(drop).at(|| "F_SETPIPE_SZ"),
    }
}

/// Copies the unread bytes of a pipe without consuming them. Each packet is a piece of its own.
///
/// Fails with status 6 if there are more than `limit` bytes.
pub(crate) fn copy_contents(copy: BorrowedFd<'_>, limit: u64, to: Sink<'_>) -> Result<()> {
    let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
    let how = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    // tee(2) reads from a read end; `copy` may be a write end.
    let reader = open(path.as_str(), how, Mode::empty()).at(|| "open the read end")?;
    check_limit(sys::readable(reader.as_fd())? as u64, limit)?;
    let (out, into) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).at(|| "pipe")?;
    let size = fcntl(reader.as_fd(), FcntlArg::F_GETPIPE_SZ)?;
    if fcntl(into.as_fd(), FcntlArg::F_GETPIPE_SZ)? < size {
        fcntl(into.as_fd(), FcntlArg::F_SETPIPE_SZ(size)).at(|| "F_SETPIPE_SZ")?;
    }
    match tee(reader.as_fd(), into.as_fd(), size as usize, SpliceFFlags::SPLICE_F_NONBLOCK) {
        Ok(_) | Err(Errno::EAGAIN) => (),
        Err(errno) => return Err(errno).at(|| "tee"),
    }
    let mut buffer = vec![0; MAX_CHUNK];
    loop {
        match read(out.as_fd(), &mut buffer) {
            Ok(0) | Err(Errno::EAGAIN) => return Ok(()),
            Ok(count) => to(Piece { bytes: &buffer[..count], ..Piece::default() })?,
            Err(errno) => return Err(errno).at(|| "read"),
        }
    }
}

impl Kind for Pipe {
    const NAME: &'static str = "pipe";
    const SHARES_OBJECT: bool = true;

    fn claims(descriptor: &Descriptor<'_>) -> bool {
        descriptor.link.0.starts_with(b"pipe:[") && !descriptor.is_path()
    }

    fn capture(descriptor: &Descriptor<'_>) -> Result<Self> {
        let (size, queued, alone) = read_state(descriptor)?;
        Ok(Pipe { size, queued, alone })
    }

    fn contents(
        copy: BorrowedFd<'_>,
        _: &ContentsContext<'_>,
        limit: u64,
        to: Sink<'_>,
    ) -> Result<()> {
        copy_contents(copy, limit, to)
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        check_other_end(file, self.alone, cx)
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        let Pipe { size, queued, alone: _ } = *self;
        if let Some(peer) = cx.open_of_object(file) {
            return cx.reopen_descriptor(peer.as_fd(), file.flags);
        }
        let access = file.flags & ACCESS;
        let other = cx.others_of_object(file).into_iter().find(|peer| {
            access <= WRONLY && peer.flags & ACCESS <= WRONLY && peer.flags & ACCESS != access
        });
        let flags = match other {
            Some(other) => file.flags & other.flags & PIPE2_FLAGS,
            None => 0,
        };
        let (reader, writer) = pipe2(OFlag::from_bits_retain(flags as i32)).at(|| "pipe")?;
        let capacity = fcntl(writer.as_fd(), FcntlArg::F_GETPIPE_SZ)? as u32;
        if size != 0
            && size != capacity
            && (size > DEFAULT_CAPACITY || size < capacity || capacity < DEFAULT_CAPACITY)
        {
            set_capacity(writer.as_fd(), size)?;
        }
        if queued > 0 && !cx.has_contents(file.object) {
            let name = crate::text::escape(&file.link.0).into_owned();
            let why = "bytes in it are not in the image (scan with --data): it is restored empty";
            cx.warnings.push(format!("{name}: the {queued} {why}"));
        }
        fill(cx, file, writer.as_fd(), flags)?;
        if access > WRONLY {
            return cx.reopen_descriptor(reader.as_fd(), file.flags);
        }
        let (this_end, other_end) =
            if access == RDONLY { (reader, writer) } else { (writer, reader) };
        let mut opened = Opened::new(this_end, flags);
        if let Some(other) = other {
            opened.others.push(OpenedTogether { file: other.id, fd: other_end, flags });
        }
        Ok(opened)
    }
}

/// Fails with status 6 if the other end of a pipe, or an unlinked fifo, is open (it is not `alone`)
/// but not in the image.
pub(crate) fn check_other_end(file: &OpenFile, alone: bool, cx: &RestoreContext<'_>) -> Result<()> {
    let access = file.flags & ACCESS;
    let is_other_end = |peer: &&OpenFile| access > WRONLY || peer.flags & ACCESS != access;
    if access > WRONLY || alone || cx.others_of_object(file).iter().any(is_other_end) {
        return Ok(());
    }
    let other = if access == RDONLY { "write" } else { "read" };
    Err(Error::unrestorable(format!(
        "its {other} end is outside the image; scan the process that has it open too"
    )))
}

/// Writes the contents of the object into a pipe, and then sets the status flags of the write end
/// to `flags`. In packet mode (O_DIRECT of pipe(7)), each piece is written as a packet.
pub(crate) fn fill(
    cx: &RestoreContext<'_>,
    file: &OpenFile,
    writer: BorrowedFd<'_>,
    flags: u32,
) -> Result<()> {
    if !cx.has_contents(file.object) {
        return Ok(());
    }
    // A scan reads a byte stream in full pieces, except the last, and a packet in a shorter one. A
    // pipe can have packets though no write end is in packet mode now.
    let chunks = file.object.and_then(|object| cx.image.contents.get(&object));
    let short = |chunks: &Vec<crate::image::Chunk>| {
        chunks.iter().rev().skip(1).any(|chunk| chunk.len < MAX_CHUNK)
    };
    let mut peers = cx.others_of_object(file);
    peers.push(file);
    let direct = libc::O_DIRECT as u32;
    let packets = chunks.is_some_and(short) || peers.iter().any(|end| end.flags & direct != 0);
    let set = |flags: u32| {
        fcntl(writer, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags as i32))).at(|| "F_SETFL")
    };
    set(libc::O_NONBLOCK as u32 | if packets { direct } else { 0 })?;
    cx.contents(file.object, |_, bytes: &[u8]| {
        match write(writer, bytes).at(|| "write its contents")? {
            count if count == bytes.len() => Ok(()),
            _ => Err(Error::unrestorable("its contents do not fit its capacity")),
        }
    })?;
    set(flags)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::tests::body_of;

    #[test]
    fn capacity_unread_bytes_and_a_closed_end_are_captured() {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        write(&writer, b"seven b").unwrap();
        let both = Pipe { size: DEFAULT_CAPACITY, queued: 7, alone: false };
        assert_eq!(body_of::<Pipe>(&writer), both);
        assert_eq!(body_of::<Pipe>(&reader), both);
        drop(writer);
        assert!(body_of::<Pipe>(&reader).alone);
    }

    #[test]
    fn unread_bytes_are_copied_and_stay_in_the_pipe() {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        write(&writer, b"hello").unwrap();
        for _ in 0..2 {
            let mut seen = Vec::new();
            let mut take = |piece: Piece<'_>| {
                seen.extend_from_slice(piece.bytes);
                Ok(())
            };
            copy_contents(writer.as_fd(), 5, &mut take).unwrap();
            assert_eq!(seen, b"hello");
        }
        assert!(copy_contents(reader.as_fd(), 4, &mut |_| Ok(())).is_err(), "more than the limit");
    }
}
