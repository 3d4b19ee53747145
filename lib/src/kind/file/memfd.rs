//! memfd_create(2): a file in memory that has no path. The name is read from the link, and the
//! seals by F_GET_SEALS. A restore needs the contents.

use crate::error::{At, Error, Result};
use crate::image::OpenFile;
use crate::kind::context::{Opened, RestoreContext, SETTABLE, expect_position};
use crate::kind::effect::{Effect, set_id_bits};
use crate::kind::file::quiet::read_contents;
use crate::kind::file::unlinked::write_at;
use crate::kind::{ContentsContext, ContentsPiece, Kind, ObjectCheck, Sink};
use crate::proc::Descriptor;
use crate::sys::flags::O_LARGEFILE;
use crate::sys::memory;
use memfd::MemfdOptions;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use nix::unistd::ftruncate;
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The record of a memfd.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Memfd {
    /// The seals: F_GET_SEALS of fcntl(2). Without MFD_ALLOW_SEALING they are F_SEAL_SEAL.
    seals: u32,
    /// The page size in bytes, if it was created with MFD_HUGETLB.
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
/// The longest name, in bytes: MFD_NAME_MAX_LEN of mm/memfd.c, NAME_MAX less the prefix `memfd:`.
const NAME_MAX: usize = 249;
/// The parts of the link before and after the name.
const LINK: (&[u8], &[u8]) = (b"/memfd:", b" (deleted)");

fn name(link: &[u8]) -> Option<&[u8]> {
    link.strip_prefix(LINK.0)?.strip_suffix(LINK.1)
}

/// The page size in bytes, if the file is on hugetlbfs.
fn huge_page_size(fd: BorrowedFd<'_>) -> Result<Option<u64>> {
    let found = fstatfs(fd).at(|| "fstatfs")?;
    Ok((found.filesystem_type() == HUGETLBFS_MAGIC).then(|| found.block_size() as u64))
}

fn seals(fd: BorrowedFd<'_>) -> nix::Result<u32> {
    fcntl(fd, FcntlArg::F_GET_SEALS).map(|seals| seals as u32)
}

impl Kind for Memfd {
    const NAME: &'static str = "memfd";
    const SHARES_OBJECT: bool = true;
    const TAKES_CONTENTS_OUT: bool = true;
    const SEEKABLE: bool = true;

    fn claims(descriptor: &Descriptor<'_>) -> bool {
        // EINVAL: it is no file of tmpfs or hugetlbfs.
        let is_sealable = |copy: &OwnedFd| seals(copy.as_fd()) != Err(Errno::EINVAL);
        name(&descriptor.link.0).is_some()
            && descriptor.deleted().is_some()
            && !descriptor.is_path()
            && descriptor.copy.as_ref().is_none_or(is_sealable)
    }

    fn capture(descriptor: &Descriptor<'_>) -> Result<Self> {
        let Some(copy) = &descriptor.copy else { return Ok(Memfd { seals: 0, huge: None }) };
        let seals = seals(copy.as_fd()).at(|| "F_GET_SEALS")?;
        Ok(Memfd { seals, huge: huge_page_size(copy.as_fd())? })
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
        expect_position(file)?;
        name(&file.link.0).filter(|name| name.len() <= NAME_MAX && !name.contains(&0)).ok_or_else(
            || {
                Error::malformed(
                    "its link is not /memfd:NAME (deleted) with a name of up to 249 bytes",
                )
            },
        )?;
        let Some(inode) = &file.inode else { return Ok(()) };
        if inode.mode & libc::S_IFMT != libc::S_IFREG || inode.size > i64::MAX as u64 {
            return Err(Error::malformed("its inode has a type or size that a memfd never has"));
        }
        match self.huge {
            Some(page) if !page.is_power_of_two() || inode.size % page != 0 => {
                Err(Error::malformed(
                    "the size of its huge pages is not a power of two, or does not divide its size",
                ))
            }
            _ => Ok(()),
        }
    }

    fn object_check() -> Option<Box<dyn ObjectCheck<Self>>> {
        Some(Box::new(SizeCheck::default()))
    }

    fn effects(&self, file: &OpenFile, _: &RestoreContext<'_>) -> Result<Vec<Effect>> {
        Ok(set_id_bits(file).into_iter().collect())
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        let Some(inode) = &file.inode else {
            return Err(Error::unrestorable(
                "a passive scan does not record its size and seals; scan without --passive",
            ));
        };
        if self.seals & !SEALS != 0 {
            let unknown = self.seals & !SEALS;
            return Err(Error::unrestorable(format!(
                "this version does not know its seals {unknown:#x}"
            )));
        }
        if let Some(page) = self.huge {
            let of = format!("/sys/kernel/mm/hugepages/hugepages-{}kB", page / 1024);
            if !std::path::Path::new(&of).exists() {
                return Err(Error::unrestorable(format!(
                    "this kernel has no huge pages of {page} bytes"
                )));
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
            None => write_at(new.as_fd(), chunk.offset, bytes),
        })?;
        cx.set_owner_and_mode(new.as_fd(), file)?;
        // The seals come last: they forbid ftruncate(2) and write(2).
        let seals = SealFlag::from_bits_retain(sealed as i32);
        fcntl(new.as_fd(), FcntlArg::F_ADD_SEALS(seals)).at(|| "F_ADD_SEALS")?;
        let created = libc::O_RDWR as u32 | O_LARGEFILE;
        match file.flags & !SETTABLE == created {
            true => Ok(Opened::new(new, 0)),
            false => cx.reopen_descriptor(new.as_fd(), file.flags),
        }
    }
}

/// Checks that the contents end within the size that each description of the memfd records.
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
            true => Err(Error::malformed("its contents extend beyond its size")),
            false => Ok(()),
        }
    }
}

/// Creates an empty memfd that can be sealed. The memfd crate accepts only names in UTF-8 and some
/// page sizes; the kernel accepts any.
fn create(name: &[u8], huge: Option<u64>, more: MFdFlags) -> Result<OwnedFd> {
    let doing = || "memfd_create";
    match (std::str::from_utf8(name), huge) {
        (Ok(name), None) if more.is_empty() => {
            let options = MemfdOptions::new().allow_sealing(true).close_on_exec(false);
            Ok(options.create(name).at(doing)?.into_file().into())
        }
        _ => {
            let pages =
                huge.map_or(0, |page| libc::MFD_HUGETLB | page.ilog2() << libc::MFD_HUGE_SHIFT);
            let flags = more | MFdFlags::MFD_ALLOW_SEALING | MFdFlags::from_bits_retain(pages);
            let name =
                CString::new(name).map_err(|_| Error::malformed("its name has a zero byte"))?;
            memfd_create(name.as_c_str(), flags).at(doing)
        }
    }
}
