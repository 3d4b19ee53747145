//! Writing to files that know no write(2).

use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;

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
