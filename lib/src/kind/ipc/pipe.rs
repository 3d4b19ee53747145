//! pipe(7): two ends of one queue. Its bytes are read with tee(2), so that they stay.

use crate::error::{At, Error, Result};
use crate::image::{MAX_CHUNK, OpenFile};
use crate::kind::context::{Opened, OpenedTogether, RestoreContext};
use crate::kind::{ContentsContext, Kind, Piece, Sink};
use crate::proc::Descriptor;
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, open, tee};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::{pipe2, read, write};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

const ACCESS: u32 = libc::O_ACCMODE as u32;
const RDONLY: u32 = libc::O_RDONLY as u32;
const WRONLY: u32 = libc::O_WRONLY as u32;
/// What pipe2(2) can give both ends at birth.
const BIRTH: u32 = (libc::O_NONBLOCK | libc::O_DIRECT) as u32;
/// The size of a pipe that nobody has changed: 16 pages.
const USUAL: u32 = 65536;

/// An end of a pipe.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pipe {
    /// F_GETPIPE_SZ; zero if it could not be asked.
    size: u32,
    /// How many bytes wait in it: FIONREAD.
    queued: u32,
    /// Whether nobody had the other end open: the reader sees end-of-file, the writer EPIPE.
    alone: bool,
}

/// What pipes and fifos have in common, asked of a copy.
pub(crate) fn look(it: &Descriptor<'_>) -> Result<(u32, u32, bool)> {
    let Some(copy) = &it.copy else { return Ok((0, 0, false)) };
    let size = fcntl(copy.as_fd(), FcntlArg::F_GETPIPE_SZ).at(|| "F_GETPIPE_SZ")? as u32;
    let queued = sys::readable(copy.as_fd()).at(|| "FIONREAD")? as u32;
    let mut polled = [PollFd::new(copy.as_fd(), PollFlags::empty())];
    poll(&mut polled, PollTimeout::ZERO).at(|| "poll")?;
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
    Ok((size, queued, polled[0].revents().is_some_and(|events| events.intersects(gone))))
}

/// Hands on what waits in a pipe without taking it out. Packets stay apart: one piece each.
pub(crate) fn peek(copy: BorrowedFd<'_>, limit: u64, to: Sink<'_>) -> Result<()> {
    let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
    let how = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    // Only a reader can be teed, and the description we were lent may be a writer.
    let reader = open(path.as_str(), how, Mode::empty()).at(|| "open the read end")?;
    let waiting = sys::readable(reader.as_fd())? as u64;
    if waiting > limit {
        return Err(Error::unrestorable(format!(
            "{waiting} bytes are more than the limit {limit}"
        )));
    }
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

    fn claims(it: &Descriptor<'_>) -> bool {
        it.link.0.starts_with(b"pipe:[") && !it.is_path()
    }

    fn capture(it: &Descriptor<'_>) -> Result<Self> {
        let (size, queued, alone) = look(it)?;
        Ok(Pipe { size, queued, alone })
    }

    fn contents(
        copy: BorrowedFd<'_>,
        _: &ContentsContext<'_>,
        limit: u64,
        to: Sink<'_>,
    ) -> Result<()> {
        peek(copy, limit, to)
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        other_end(file, self.alone, cx)
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        let Pipe { size, queued, alone: _ } = *self;
        if let Some(peer) = cx.open_of_object(file) {
            return cx.reopen_descriptor(peer.as_fd(), file.flags);
        }
        let ours = file.flags & ACCESS;
        let other = cx.others_of_object(file).into_iter().find(|peer| {
            ours <= WRONLY && peer.flags & ACCESS <= WRONLY && peer.flags & ACCESS != ours
        });
        // Packet mode is a flag of the writer; a lone reader's packets still have bounds.
        let born = match other {
            Some(other) => file.flags & other.flags & BIRTH,
            None => 0,
        };
        let (reader, writer) = pipe2(OFlag::from_bits_retain(born as i32)).at(|| "pipe")?;
        let has = fcntl(writer.as_fd(), FcntlArg::F_GETPIPE_SZ)? as u32;
        if size != 0 && size != has && (size > USUAL || size < has || has < USUAL) {
            fcntl(writer.as_fd(), FcntlArg::F_SETPIPE_SZ(size as i32)).at(|| "set its size")?;
        }
        if queued > 0 && !cx.has_contents(file.object) {
            let name = crate::text::escape(&file.link.0).into_owned();
            let why = "bytes in it are not in the image (scan with --data): it is restored empty";
            cx.warnings.push(format!("{name}: the {queued} {why}"));
        }
        fill(cx, file, writer.as_fd(), born)?;
        if ours > WRONLY {
            return cx.reopen_descriptor(reader.as_fd(), file.flags);
        }
        let (mine, theirs) = if ours == RDONLY { (reader, writer) } else { (writer, reader) };
        let mut opened = Opened::new(mine, born);
        if let Some(other) = other {
            opened.others.push(OpenedTogether { file: other.id, fd: theirs, flags: born });
        }
        Ok(opened)
    }
}

/// Fails if the other end of what has no name is outside the image. It may be nowhere: `alone`.
pub(crate) fn other_end(file: &OpenFile, alone: bool, cx: &RestoreContext<'_>) -> Result<()> {
    let ours = file.flags & ACCESS;
    let answers = |peer: &&OpenFile| ours > WRONLY || peer.flags & ACCESS != ours;
    if ours > WRONLY || alone || cx.others_of_object(file).iter().any(answers) {
        return Ok(());
    }
    let other = if ours == RDONLY { "write" } else { "read" };
    Err(Error::unrestorable(format!("its {other} end is outside the image")))
}

/// Writes the contents of the object into a pipe, each piece that is no full one as a packet if
/// packets were seen.
pub(crate) fn fill(
    cx: &RestoreContext<'_>,
    file: &OpenFile,
    writer: BorrowedFd<'_>,
    born: u32,
) -> Result<()> {
    if !cx.has_contents(file.object) {
        return Ok(());
    }
    // A stream comes back from read(2) in full pieces but for the last; packets never do.
    let chunks = file.object.and_then(|object| cx.image.contents.get(&object));
    let short = |chunks: &Vec<crate::image::Chunk>| {
        chunks.iter().rev().skip(1).any(|chunk| chunk.len < MAX_CHUNK)
    };
    let mut peers = cx.others_of_object(file);
    peers.push(file);
    let direct = libc::O_DIRECT as u32;
    let packets = chunks.is_some_and(short) || peers.iter().any(|end| end.flags & direct != 0);
    let flags = libc::O_NONBLOCK as u32 | if packets { direct } else { 0 };
    let set = |flags: u32| {
        fcntl(writer, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags as i32))).at(|| "F_SETFL")
    };
    set(flags)?;
    cx.contents(file.object, |_, bytes: &[u8]| match write(writer, bytes).at(|| "fill it")? {
        count if count == bytes.len() => Ok(()),
        _ => Err(Error::unrestorable("its contents do not fit")),
    })?;
    set(born)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::tests::body_of;

    #[test]
    fn a_pipe_has_its_size_what_waits_and_whether_an_end_is_alone() {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        write(&writer, b"seven b").unwrap();
        let both = Pipe { size: USUAL, queued: 7, alone: false };
        assert_eq!(body_of::<Pipe>(&writer), both);
        assert_eq!(body_of::<Pipe>(&reader), both);
        drop(writer);
        assert!(body_of::<Pipe>(&reader).alone);
    }

    #[test]
    fn what_waits_is_read_and_still_waits() {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        write(&writer, b"hello").unwrap();
        for _ in 0..2 {
            let mut seen = Vec::new();
            let mut take = |piece: Piece<'_>| {
                seen.extend_from_slice(piece.bytes);
                Ok(())
            };
            peek(writer.as_fd(), 5, &mut take).unwrap();
            assert_eq!(seen, b"hello");
        }
        assert!(peek(reader.as_fd(), 4, &mut |_| Ok(())).is_err(), "more than the limit");
    }
}
