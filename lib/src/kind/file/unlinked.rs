//! Regular files without a name: unlinked, or created with O_TMPFILE. A restore needs the contents.

use crate::error::{At, Error, Result};
use crate::image::{MAX_CHUNK, OpenFile};
use crate::kind::context::{Opened, RestoreContext, SETTABLE};
use crate::kind::{ContentsContext, Kind, Piece, Sink};
use crate::proc::Descriptor;
use crate::sys;
use crate::sys::flags::O_LARGEFILE;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::libc;
use nix::sys::stat::Mode;
use nix::sys::uio::{pread, pwrite};
use nix::unistd::{UnlinkatFlags, ftruncate, unlinkat};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

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
    const SEEKABLE: bool = true;

    fn claims(it: &Descriptor<'_>) -> bool {
        // Files on internal mounts of the kernel: memfds, and shared memory.
        const INTERNAL: [&[u8]; 4] = [b"/memfd:", b"/SYSV", b"/dev/zero", b"/anon_hugepage"];
        it.file_type() == Some(libc::S_IFREG)
            && it.link.0.starts_with(b"/")
            && it.deleted().is_some()
            && !it.is_path()
            && !INTERNAL.iter().any(|prefix| it.link.0.starts_with(prefix))
            && !it.link.0.starts_with(b"/secretmem")
    }

    fn capture(it: &Descriptor<'_>) -> Result<Self> {
        Ok(Unlinked { tmpfile: it.info.flags & TMPFILE == TMPFILE })
    }

    fn contents(
        copy: BorrowedFd<'_>,
        cx: &ContentsContext<'_>,
        limit: u64,
        to: Sink<'_>,
    ) -> Result<()> {
        let size = cx.inode.size;
        if size > limit {
            let why = format!("its {size} bytes are more than the limit {limit}");
            return Err(Error::unrestorable(why));
        }
        let file = open_for_reading(copy)?;
        let mut buffer = vec![0; MAX_CHUNK];
        let mut at = 0i64;
        loop {
            let count = pread(file.as_fd(), &mut buffer, at).at(|| "read")?;
            if count == 0 {
                return Ok(());
            }
            // A chunk of zeroes is left out, and is a hole in the restored file, as a hole is.
            if at == 0 || buffer[..count].iter().any(|&byte| byte != 0) {
                to(Piece { offset: at, bytes: &buffer[..count], ..Piece::default() })?;
            }
            at += count as i64;
        }
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

/// Opens a new description for reading, whose position is not shared with the scanned process.
///
/// Fails with status 6 if the file has a write lease.
pub(crate) fn open_for_reading(copy: BorrowedFd<'_>) -> Result<OwnedFd> {
    // open(2) would break the lease, and wait until its holder releases it (fcntl(2)).
    if sys::lock::lease(copy) == Ok(libc::F_WRLCK) {
        return Err(Error::unrestorable(
            "it has a write lease, which opening it for reading would break",
        ));
    }
    let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
    let how = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    open(path.as_str(), how, Mode::empty()).at(|| "open it for reading")
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
        return openat(parent_directory(cx, file)?.0, ".", flags, owner).at(|| "O_TMPFILE");
    }
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR;
    create_and_unlink(cx, file, |dir, name| openat(dir, name, flags, owner))
}

/// The directory of a file's path, opened with O_PATH, and the last component of the path.
fn parent_directory<'f>(
    cx: &RestoreContext<'_>,
    file: &'f OpenFile,
) -> Result<(OwnedFd, &'f [u8])> {
    let path = file.link.0.strip_suffix(b" (deleted)").unwrap_or(&file.link.0);
    let slash = path.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
    let (dir, name) = (&path[..slash.max(1)], path.get(slash + 1..).unwrap_or_default());
    let dir = cx.open(dir, (libc::O_PATH | libc::O_DIRECTORY) as u32).at(|| "its directory")?;
    Ok((dir, name))
}

/// Creates a file by the unlinked name, and unlinks it. If the name is taken now, another name is
/// used, with a warning. `make` fails with EEXIST if its name is taken.
pub(crate) fn create_and_unlink(
    cx: &mut RestoreContext<'_>,
    file: &OpenFile,
    make: impl Fn(BorrowedFd<'_>, &[u8]) -> nix::Result<OwnedFd>,
) -> Result<OwnedFd> {
    let (dir, name) = parent_directory(cx, file)?;
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
    use crate::kind::tests::{body_of, contents_of, file_of};

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
        assert_eq!(seen, [(0, b"\0\0\0data".to_vec())]);
        assert!(contents_of::<Unlinked>(&file, 6, |_| ()).is_err());
    }
}
