//! Files as memory: those that know no write(2), and those that are read without a descriptor; and
//! memory that outlives the process which writes to it.

use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicUsize;

/// A whole file that nobody can change any more, mapped for as long as the process lives, and for
/// its children. Fails with EPERM unless it is a memfd sealed against growing, shrinking, writing.
pub fn map_sealed(fd: BorrowedFd<'_>) -> nix::Result<&'static [u8]> {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    let sealed = SealFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GET_SEALS)?);
    if !sealed.contains(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE) {
        return Err(nix::errno::Errno::EPERM);
    }
    let size = nix::sys::stat::fstat(fd)?.st_size as usize;
    let Some(len) = NonZeroUsize::new(size) else { return Ok(&[]) };
    // SAFETY: the mapping is new, is never unmapped, and the seals keep its bytes as they are.
    unsafe {
        let at = mmap(None, len, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, fd, 0)?;
        Ok(std::slice::from_raw_parts(at.as_ptr().cast::<u8>(), size))
    }
}

/// Writes to a file of hugetlbfs through a mapping of the pages it touches. `page` is the size of
/// a page, and the file is long enough.
pub fn write_mapped(fd: BorrowedFd<'_>, offset: i64, bytes: &[u8], page: u64) -> nix::Result<()> {
    let inside = offset as u64 % page;
    let start = offset - inside as libc::off_t;
    let len = (inside + bytes.len() as u64).next_multiple_of(page) as usize;
    let Some(len) = NonZeroUsize::new(len) else { return Ok(()) };
    // With its pages allocated, touching the mapping cannot raise SIGBUS.
    fallocate(fd, FallocateFlags::empty(), start, len.get() as libc::off_t)?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: the mapping is new, at an address that the kernel chooses, and longer than `inside`
    // and the bytes together; nothing refers to it when it is unmapped.
    unsafe {
        let at = mmap(None, len, access, MapFlags::MAP_SHARED, fd, start)?;
        let into = at.as_ptr().cast::<u8>().add(inside as usize);
        into.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        munmap(at, len.get())
    }
}

/// Memory that this process has in common with the children that it makes from now on: two counters,
/// zero at first, and bytes.
pub struct Common {
    at: NonNull<u8>,
    size: NonZeroUsize,
}

/// What the counters take.
const HEAD: usize = 2 * size_of::<AtomicUsize>();

impl Common {
    /// Makes it with room for so many bytes.
    pub fn new(bytes: usize) -> nix::Result<Common> {
        let size = bytes.checked_add(HEAD).and_then(NonZeroUsize::new);
        let size = size.ok_or(nix::errno::Errno::ENOMEM)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let at = unsafe { mmap_anonymous(None, size, access, MapFlags::MAP_SHARED)? };
        Ok(Common { at: at.cast(), size })
    }

    /// The counters, and the bytes to look at.
    pub fn look(&self) -> (&[AtomicUsize; 2], &[u8]) {
        // SAFETY: as below, and who changes the bytes has this mutably.
        unsafe {
            let bytes = self.at.as_ptr().add(HEAD);
            (self.at.cast().as_ref(), std::slice::from_raw_parts(bytes, self.size.get() - HEAD))
        }
    }

    /// The counters and the bytes. Only one process at a time may change the bytes.
    pub fn parts(&mut self) -> (&[AtomicUsize; 2], &mut [u8]) {
        // SAFETY: the mapping is aligned to pages, has room for both, which do not overlap, and
        // lives as long as this.
        unsafe {
            let bytes = self.at.as_ptr().add(HEAD);
            let bytes = std::slice::from_raw_parts_mut(bytes, self.size.get() - HEAD);
            (self.at.cast().as_ref(), bytes)
        }
    }
}

impl Drop for Common {
    fn drop(&mut self) {
        // SAFETY: what was lent ends with this.
        let _ = unsafe { munmap(self.at.cast(), self.size.get()) };
    }
}
