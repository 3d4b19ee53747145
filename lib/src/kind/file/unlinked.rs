//! Regular files without a name: unlinked, or created with O_TMPFILE. A restore needs the contents.

use crate::error::{At, Error, Result};
use crate::image::OpenFile;
use crate::kind::context::{Opened, RestoreContext, SETTABLE, expect_position, expect_type};
use crate::kind::effect::{Effect, set_id_bits};
use crate::kind::file::quiet::read_contents;
use crate::kind::{ContentsContext, Kind, Sink};
use crate::names;
use crate::proc::Descriptor;
use crate::sys::flags::O_LARGEFILE;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::libc;
use nix::sys::stat::Mode;
use nix::sys::uio::pwrite;
use nix::unistd::{UnlinkatFlags, ftruncate, unlinkat};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The record of a file without a name.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Unlinked {
    /// The file was created with O_TMPFILE: linkat(2) can give it a name.
    tmpfile: bool,
}

const TMPFILE: u32 = libc::O_TMPFILE as u32;

impl Kind for Unlinked {
    const NAME: &'static str = "unlinked";
    const SHARES_OBJECT: bool = true;
    const TAKES_CONTENTS_OUT: bool = true;
    const SEEKABLE: bool = true;

    fn claims(descriptor: &Descriptor<'_>) -> bool {
        // Files on internal mounts of the kernel: memfds, and shared memory.
        const INTERNAL: [&[u8]; 4] = [b"/memfd:", b"/SYSV", b"/dev/zero", b"/anon_hugepage"];
        descriptor.file_type() == Some(libc::S_IFREG)
            && descriptor.link.0.starts_with(b"/")
            && descriptor.deleted().is_some()
            && !descriptor.is_path()
            && !INTERNAL.iter().any(|prefix| descriptor.link.0.starts_with(prefix))
            && !descriptor.link.0.starts_with(b"/secretmem")
    }

    fn capture(descriptor: &Descriptor<'_>) -> Result<Self> {
        Ok(Unlinked { tmpfile: descriptor.info.flags & TMPFILE == TMPFILE })
    }

    fn contents(
        copy: BorrowedFd<'_>,
        cx: &ContentsContext<'_>,
        limit: u64,
        to: Sink<'_>,
    ) -> Result<()> {
        read_contents(copy, cx, limit, to)
    }

    fn validate(&self, file: &OpenFile) -> Result<()> {
        expect_path(file)?;
        expect_position(file)?;
        expect_type(file, libc::S_IFREG)?;
        match &file.inode {
            Some(inode) if inode.size > i64::MAX as u64 => {
                Err(Error::malformed("its size is more than a file can have"))
            }
            _ => Ok(()),
        }
    }

    fn effects(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<Vec<Effect>> {
        let made = name_made_for_a_moment(file, cx)?;
        Ok(made.into_iter().chain(set_id_bits(file)).collect())
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        let size = file.inode.as_ref().map_or(0, |inode| inode.size);
        if size > 0 && !cx.has_contents(file.object) {
            let why = "its contents are not in the image; scan with --data";
            return Err(Error::unrestorable(why));
        }
        Ok(())
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        let Unlinked { tmpfile } = *self;
        if let Some(peer) = cx.open_of_object(file) {
            return cx.reopen_descriptor(peer.as_fd(), file.flags);
        }
        let new = create(cx, file, tmpfile)?;
        if let Some(inode) = &file.inode {
            ftruncate(new.as_fd(), inode.size as i64).at(|| "ftruncate")?;
        }
        cx.contents(file.object, |chunk, bytes| write_at(new.as_fd(), chunk.offset, bytes))?;
        let created = libc::O_RDWR as u32 | O_LARGEFILE | SETTABLE | TMPFILE;
        let made = match file.flags & libc::O_ACCMODE as u32 == libc::O_RDWR as u32
            && file.flags & !created == 0
        {
            true => Opened::new(new, 0),
            false => cx.reopen_descriptor(new.as_fd(), file.flags)?,
        };
        cx.set_owner_and_mode(made.fd.as_fd(), file)?;
        Ok(made)
    }
}

/// Writes all bytes at an offset.
pub(crate) fn write_at(fd: BorrowedFd<'_>, offset: i64, bytes: &[u8]) -> Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        done += pwrite(fd, &bytes[done..], offset + done as i64).at(|| "write")?;
    }
    Ok(())
}

/// Creates an empty file that readlink(2) shows as the recorded path with ` (deleted)`.
fn create(cx: &mut RestoreContext<'_>, file: &OpenFile, tmpfile: bool) -> Result<OwnedFd> {
    let owner = Mode::S_IRUSR | Mode::S_IWUSR;
    if tmpfile {
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR;
        let (dir, _) = parent_directory(cx, file)?;
        // The path may lead elsewhere since the plan was checked.
        made_in(dir.as_fd(), file, cx)?.permitted(cx.allow)?;
        return openat(dir, ".", flags, owner).at(|| "O_TMPFILE");
    }
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR;
    create_and_unlink(cx, file, |dir, name| openat(dir, name, flags, owner))
}

/// The path that an unlinked file had.
fn former_path(file: &OpenFile) -> &[u8] {
    file.link.0.strip_suffix(b" (deleted)").unwrap_or(&file.link.0)
}

/// Fails with status 3 if the link of an unlinked file is not the path of a name in a directory.
pub(crate) fn expect_path(file: &OpenFile) -> Result<()> {
    let path = former_path(file);
    // d_path() of fs/d_path.c gives none of these.
    let is_name = |part: &[u8]| ![&b""[..], b".", b".."].contains(&part);
    let mut parts = path.split(|&byte| byte == b'/').skip(1);
    match path.starts_with(b"/") && !path.contains(&0) && parts.all(is_name) {
        true => Ok(()),
        false => Err(Error::malformed("its link is not the path of a file")),
    }
}

/// The directory of a file's path, opened with O_PATH, and the last component of the path.
fn parent_directory<'f>(
    cx: &RestoreContext<'_>,
    file: &'f OpenFile,
) -> Result<(OwnedFd, &'f [u8])> {
    let (dir, name) = names::split(former_path(file));
    let dir = names::open_directory_below(cx.root, dir).at(|| "its directory")?;
    Ok((dir, name))
}

/// The effect of [`create_and_unlink`], and of O_TMPFILE.
pub(crate) fn name_made_for_a_moment(
    file: &OpenFile,
    cx: &RestoreContext<'_>,
) -> Result<Option<Effect>> {
    if !cx.asks_for_names() {
        return Ok(None);
    }
    made_in(parent_directory(cx, file)?.0.as_fd(), file, cx).map(Some)
}

/// The effect of the file that is made in this directory.
fn made_in(dir: BorrowedFd<'_>, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<Effect> {
    let path = crate::text::escape(former_path(file));
    cx.write_to(dir, || format!("creates {path} for a moment"))
}

/// Creates a file by the unlinked name, and unlinks it. If the name is taken now, another name is
/// used, with a warning. `make` fails with EEXIST if its name is taken.
pub(crate) fn create_and_unlink(
    cx: &mut RestoreContext<'_>,
    file: &OpenFile,
    make: impl Fn(BorrowedFd<'_>, &[u8]) -> nix::Result<OwnedFd>,
) -> Result<OwnedFd> {
    let (dir, name) = parent_directory(cx, file)?;
    made_in(dir.as_fd(), file, cx)?.permitted(cx.allow)?;
    let (new, name) = match make(dir.as_fd(), name) {
        Err(Errno::EEXIST) => {
            // A new file has the name, as after a log rotation. It is not moved away.
            let mut other = name.to_vec();
            other.extend(format!(".fdrestore-{}", std::process::id()).bytes());
            let shown = crate::text::escape(&file.link.0).into_owned();
            let why = "another file has its name now; it is restored under a different one";
            cx.warnings.push(format!("{shown}: {why}"));
            (make(dir.as_fd(), &other), other)
        }
        other => (other, name.to_vec()),
    };
    let new = new.at(|| "create it")?;
    unlinkat(dir.as_fd(), name.as_slice(), UnlinkatFlags::NoRemoveDir).at(|| "unlink it")?;
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Piece;
    use crate::kind::tests::{body_of, contents_of, file_of};
    use nix::fcntl::open;

    fn tmpfile() -> OwnedFd {
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        open(&std::env::temp_dir(), flags, Mode::S_IRUSR).unwrap()
    }

    #[test]
    fn an_o_tmpfile_file_is_distinguished_from_an_unlinked_one() {
        assert_eq!(body_of::<Unlinked>(tmpfile()), Unlinked { tmpfile: true });
        let path = std::env::temp_dir().join(format!("fdkit-unlinked-{}", std::process::id()));
        let file = std::fs::File::create(&path).unwrap();
        assert_eq!(file_of(&file).kind, "regular");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(body_of::<Unlinked>(&file), Unlinked { tmpfile: false });
    }

    #[test]
    fn contents_are_read_from_the_start() {
        let file = tmpfile();
        pwrite(&file, b"data", 3).unwrap();
        let mut seen = Vec::new();
        let take = |piece: Piece<'_>| seen.push((piece.offset, piece.bytes.to_vec()));
        contents_of::<Unlinked>(&file, 7, take).unwrap();
        assert_eq!(seen, [(0, b"\0\0\0data".to_vec()), (0, Vec::new())]);
        assert!(contents_of::<Unlinked>(&file, 6, |_| ()).is_err());
    }
}
