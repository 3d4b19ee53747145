//! memfd_create(2): a file in memory that only descriptors name. Its name is in the link, its seals
//! are asked of a copy, and its contents alone can bring it back.

use crate::error::{At, Error, Result, Status};
use crate::image::{MAX_CHUNK, OpenFile};
use crate::kind::context::{Opened, RestoreContext, SETTABLE};
use crate::kind::file::unlinked::{fill, reader};
use crate::kind::{ContentsContext, ContentsPiece, Kind, ObjectCheck, Piece, Sink};
use crate::proc::Descriptor;
use crate::sys::flags::O_LARGEFILE;
use crate::sys::memory;
use memfd::MemfdOptions;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use nix::sys::uio::pread;
use nix::unistd::{Whence, ftruncate, lseek};
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A file in memory.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Memfd {
    /// F_GET_SEALS; F_SEAL_SEAL alone if it was made without MFD_ALLOW_SEALING.
    seals: u32,
    /// MFD_HUGETLB: the size of its pages in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    huge: Option<u64>,
}

/// F_SEAL_EXEC, since Linux 6.3.
const SEAL_EXEC: u32 = libc::F_SEAL_EXEC as u32;
/// The seals that this version knows.
const SEALS: u32 = (libc::F_SEAL_SEAL
    | libc::F_SEAL_SHRINK
    | libc::F_SEAL_GROW
    | libc::F_SEAL_WRITE
    | libc::F_SEAL_FUTURE_WRITE
    | libc::F_SEAL_EXEC) as u32;
/// What a name may have beside the six bytes before it (NAME_MAX).
const NAME_MAX: usize = 249;
/// What stands before the name, and after it.
const LINK: (&[u8], &[u8]) = (b"/memfd:", b" (deleted)");

fn name(link: &[u8]) -> Option<&[u8]> {
    link.strip_prefix(LINK.0)?.strip_suffix(LINK.1)
}

/// The size of the pages if they are huge ones.
fn huge(fd: BorrowedFd<'_>) -> Result<Option<u64>> {
    let found = fstatfs(fd).at(|| "fstatfs")?;
    Ok((found.filesystem_type() == HUGETLBFS_MAGIC).then(|| found.block_size() as u64))
}

fn seals(fd: BorrowedFd<'_>) -> nix::Result<u32> {
    fcntl(fd, FcntlArg::F_GET_SEALS).map(|seals| seals as u32)
}

impl Kind for Memfd {
    const NAME: &'static str = "memfd";
    const SHARES_OBJECT: bool = true;
    const SEEKABLE: bool = true;

    fn claims(it: &Descriptor<'_>) -> bool {
        let is_sealable = |copy: &OwnedFd| seals(copy.as_fd()).is_ok();
        name(&it.link.0).is_some()
            && it.deleted().is_some()
            && !it.is_path()
            && it.copy.as_ref().is_none_or(is_sealable)
    }

    fn capture(it: &Descriptor<'_>) -> Result<Self> {
        let Some(copy) = &it.copy else { return Ok(Memfd { seals: 0, huge: None }) };
        let seals = seals(copy.as_fd()).at(|| "F_GET_SEALS")?;
        Ok(Memfd { seals, huge: huge(copy.as_fd())? })
    }

    fn contents(
        copy: BorrowedFd<'_>,
        _: &ContentsContext<'_>,
        limit: u64,
        to: Sink<'_>,
    ) -> Result<()> {
        let file = reader(copy)?;
        let mut ranges = Vec::new();
        let mut end = 0;
        loop {
            let start = match lseek(&file, end, Whence::SeekData) {
                Err(Errno::ENXIO) => break,
                start => start.at(|| "SEEK_DATA")?,
            };
            end = lseek(&file, start, Whence::SeekHole).at(|| "SEEK_HOLE")?;
            ranges.push(start..end);
        }
        let bytes: u64 = ranges.iter().map(|range| (range.end - range.start) as u64).sum();
        if bytes > limit {
            let why = format!("its {bytes} bytes are more than the limit {limit}");
            return Err(Error::unrestorable(why));
        }
        // The kernel takes all of a huge file for data; a page of zeroes costs as much as it can.
        let skips = huge(file.as_fd())?.is_some();
        let mut buffer = vec![0; MAX_CHUNK];
        for mut range in ranges {
            while !range.is_empty() {
                let most = buffer.len().min((range.end - range.start) as usize);
                let count = pread(&file, &mut buffer[..most], range.start).at(|| "read")?;
                if count == 0 {
                    break;
                }
                if !skips || buffer[..count].iter().any(|&byte| byte != 0) {
                    to(Piece { offset: range.start, bytes: &buffer[..count], ..Piece::default() })?;
                }
                range.start += count as i64;
            }
        }
        // One of nothing but holes is whole too.
        to(Piece::default())
    }

    fn validate(&self, file: &OpenFile) -> Result<()> {
        name(&file.link.0)
            .filter(|name| name.len() <= NAME_MAX && !name.contains(&0))
            .ok_or_else(|| Error::malformed("the name of a memfd is /memfd:NAME (deleted)"))?;
        let Some(inode) = &file.inode else { return Ok(()) };
        if inode.mode & libc::S_IFMT != libc::S_IFREG || inode.size > i64::MAX as u64 {
            return Err(Error::malformed("no memfd is of this type or size"));
        }
        match self.huge {
            Some(page) if !page.is_power_of_two() || inode.size % page != 0 => {
                Err(Error::malformed("huge pages of a size that cannot be"))
            }
            _ => Ok(()),
        }
    }

    fn object_check() -> Option<Box<dyn ObjectCheck<Self>>> {
        Some(Box::new(SizeCheck::default()))
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        let Some(inode) = &file.inode else {
            return Err(Error::unrestorable("a passive scan tells neither its size nor its seals"));
        };
        if self.seals & !SEALS != 0 {
            let unknown = self.seals & !SEALS;
            return Err(Error::unrestorable(format!("seals {unknown:#x} are not known here")));
        }
        if let Some(page) = self.huge {
            let of = format!("/sys/kernel/mm/hugepages/hugepages-{}kB", page / 1024);
            if !std::path::Path::new(&of).exists() {
                return Err(Error::unrestorable(format!("there are no pages of {page} bytes")));
            }
        }
        if inode.size > 0 && !cx.has_contents(file.object) {
            let why = "its contents are not in the image; scan with --data";
            return Err(Error::unrestorable(why));
        }
        Ok(())
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        if let Some(peer) = cx.open_of_object(file) {
            return cx.reopen_descriptor(peer.as_fd(), file.flags);
        }
        let Memfd { seals: sealed, huge } = *self;
        let name = name(&file.link.0).unwrap_or_default();
        let mut new = create(name, huge, MFdFlags::empty())?;
        if seals(new.as_fd())? & !sealed & SEAL_EXEC != 0 {
            new = create(name, huge, MFdFlags::from_bits_retain(libc::MFD_EXEC))?;
        }
        if let Some(inode) = &file.inode {
            ftruncate(new.as_fd(), inode.size as i64).at(|| "ftruncate")?;
        }
        cx.contents(file.object, |chunk, bytes| match huge {
            Some(page) => memory::write_mapped(new.as_fd(), chunk.offset, bytes, page)
                .at(|| format!("fill pages of {page} bytes")),
            None => fill(new.as_fd(), chunk.offset, bytes),
        })?;
        cx.set_owner_and_mode(new.as_fd(), file)?;
        // Only now, since they forbid what was just done; a second description needs nothing of it.
        let seals = SealFlag::from_bits_retain(sealed as i32);
        fcntl(new.as_fd(), FcntlArg::F_ADD_SEALS(seals)).at(|| "F_ADD_SEALS")?;
        let born = libc::O_RDWR as u32 | O_LARGEFILE;
        match file.flags & !SETTABLE == born {
            true => Ok(Opened::new(new, 0)),
            false => cx.reopen_descriptor(new.as_fd(), file.flags),
        }
    }
}

/// Contents end where the file does, as each of its descriptions has it.
#[derive(Default)]
struct SizeCheck {
    size: Option<u64>,
}

impl ObjectCheck<Memfd> for SizeCheck {
    fn file(&mut self, _: &Memfd, file: &OpenFile) -> Result<()> {
        let size = file.inode.as_ref().map(|inode| inode.size);
        self.size = self.size.into_iter().chain(size).min();
        Ok(())
    }

    fn contents(&mut self, piece: &ContentsPiece<'_>) -> Result<()> {
        let end = (piece.offset as u64).saturating_add(piece.len as u64);
        match self.size.is_some_and(|size| end > size) {
            true => Err(Error::malformed("its contents go past its size")),
            false => Ok(()),
        }
    }
}

/// Makes an empty one that can be sealed. The crate takes names in UTF-8 and some page sizes; the
/// kernel takes any.
fn create(name: &[u8], huge: Option<u64>, more: MFdFlags) -> Result<OwnedFd> {
    let doing = || "memfd_create";
    match (std::str::from_utf8(name), huge) {
        (Ok(name), None) if more.is_empty() => {
            let options = MemfdOptions::new().allow_sealing(true).close_on_exec(false);
            let made = options.create(name).map_err(|err| match err {
                memfd::Error::Create(err) => Error::from(err),
                other => Error::new(Status::System, other.to_string()),
            });
            Ok(made.at(doing)?.into_file().into())
        }
        _ => {
            let pages =
                huge.map_or(0, |page| libc::MFD_HUGETLB | page.ilog2() << libc::MFD_HUGE_SHIFT);
            let flags = more | MFdFlags::MFD_ALLOW_SEALING | MFdFlags::from_bits_retain(pages);
            let name = CString::new(name).map_err(|_| Error::malformed("a name with a zero"))?;
            memfd_create(name.as_c_str(), flags).at(doing)
        }
    }
}
