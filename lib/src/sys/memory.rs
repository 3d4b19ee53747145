//! mmap(2): files that know no write(2), files that are read without a descriptor, and memory that
//! outlives the process which writes to it.

use super::fork;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::sys::wait::waitpid;
use nix::unistd::getpid;
use std::io::IoSliceMut;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicUsize;

/// Maps a whole file that nobody can change any more, until the process and its children end:
/// mmap(2).
///
/// Fails with EPERM unless it is a memfd that is sealed against growing, shrinking and writing.
pub fn map_sealed(fd: BorrowedFd<'_>) -> nix::Result<&'static [u8]> {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    let sealed = SealFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GET_SEALS)?);
    if !sealed.contains(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE) {
        return Err(Errno::EPERM);
    }
    let size = nix::sys::stat::fstat(fd)?.st_size as usize;
    let Some(len) = NonZeroUsize::new(size) else { return Ok(&[]) };
    // SAFETY: the mapping is new, is never unmapped, and the seals keep its bytes as they are.
    unsafe {
        let at = mmap(None, len, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, fd, 0)?;
        Ok(std::slice::from_raw_parts(at.as_ptr().cast::<u8>(), size))
    }
}

/// Writes to a file of hugetlbfs through a mapping of the pages it touches: such files know no
/// write(2). `page` is the size of its pages in bytes.
///
/// Fails with EINVAL for another size of pages, with ENOSPC if no huge page is free, with EFBIG if
/// the bytes are too many for a mapping.
pub fn write_mapped(fd: BorrowedFd<'_>, offset: i64, bytes: &[u8], page: u64) -> nix::Result<()> {
    let inside = u64::try_from(offset).map_err(|_| Errno::EINVAL)?.checked_rem(page);
    let inside = inside.ok_or(Errno::EINVAL)?;
    let start = offset - inside as libc::off_t;
    let len = (inside + bytes.len() as u64).checked_next_multiple_of(page).ok_or(Errno::EFBIG)?;
    let len = usize::try_from(len).map_err(|_| Errno::EFBIG)?;
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

/// Reads a file through a private mapping, at an offset in bytes. Gives the count of bytes.
///
/// No event of inotify(7) or fanotify(7) comes of it: those of read(2) come from that call alone. The
/// access time moves as by read(2), unless the description has O_NOATIME. The position stays. A page
/// of a hole of tmpfs or hugetlbfs is allocated.
///
/// Fails with EFAULT at a page that lies after the end of the file, or cannot be read.
pub fn read_mapped(fd: BorrowedFd<'_>, offset: u64, into: &mut [u8]) -> nix::Result<usize> {
    // SAFETY: it takes an integer.
    let page = Errno::result(unsafe { libc::sysconf(libc::_SC_PAGESIZE) })? as u64;
    let inside = (offset % page) as usize;
    let Some(len) = NonZeroUsize::new(into.len() + inside).filter(|_| !into.is_empty()) else {
        return Ok(0);
    };
    let start = libc::off_t::try_from(offset - inside as u64).map_err(|_| Errno::EFBIG)?;
    // SAFETY: the mapping is new, at an address that the kernel chooses, and no reference to it is
    // made: the kernel copies from it, so that a page behind the end of the file is EFAULT and no
    // SIGBUS.
    unsafe {
        let at = mmap(None, len, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE, fd, start)?;
        let from = RemoteIoVec { base: at.as_ptr() as usize + inside, len: into.len() };
        let read = process_vm_readv(getpid(), &mut [IoSliceMut::new(into)], &[from]);
        munmap(at, len.get())?;
        read
    }
}

/// Memory that one child at a time has in common with this process, which waits until it has ended:
/// two counters, zero at first, and bytes.
///
/// No other child has it (MADV_DONTFORK of madvise(2)), so that never two processes use it.
pub struct SharedBuffer {
    at: NonNull<u8>,
    size: NonZeroUsize,
}

/// The size of the counters in bytes.
const HEAD: usize = 2 * size_of::<AtomicUsize>();

/// Which of the two processes of [`SharedBuffer::fork`] this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forked {
    /// The child.
    Child,
    /// The parent, whose child has ended.
    Parent,
}

impl SharedBuffer {
    /// Makes one with room for so many bytes. Fails with ENOMEM.
    pub fn new(bytes: usize) -> nix::Result<SharedBuffer> {
        let size = bytes.checked_add(HEAD).and_then(NonZeroUsize::new).ok_or(Errno::ENOMEM)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let at = unsafe { mmap_anonymous(None, size, access, MapFlags::MAP_SHARED)? };
        let buffer = SharedBuffer { at: at.cast(), size };
        buffer.advise(MmapAdvise::MADV_DONTFORK)?;
        Ok(buffer)
    }

    fn advise(&self, advice: MmapAdvise) -> nix::Result<()> {
        // SAFETY: the mapping is ours, and neither advice that is given changes what is in it.
        unsafe { madvise(self.at.cast(), self.size.get(), advice) }
    }

    /// fork(2), with this memory in common. It comes back twice: in the child at once, and in the
    /// parent once the child has ended.
    ///
    /// Fails with EDEADLK in a process of several threads, as [`fork::fork`] does.
    pub fn fork(&mut self) -> nix::Result<Forked> {
        self.advise(MmapAdvise::MADV_DOFORK)?;
        let forked = fork::fork();
        let kept = self.advise(MmapAdvise::MADV_DONTFORK);
        match forked? {
            Some(child) => {
                // Without SIGCHLD ignored, which fork::fork sees to, this fails in no other way.
                while waitpid(child, None) == Err(Errno::EINTR) {}
                kept.map(|()| Forked::Parent)
            }
            None if kept.is_err() => fork::end(1),
            None => Ok(Forked::Child),
        }
    }

    /// The counters, and the bytes for reading.
    pub fn look(&self) -> (&[AtomicUsize; 2], &[u8]) {
        // SAFETY: as below, and who changes the bytes has this mutably.
        unsafe {
            let bytes = self.at.as_ptr().add(HEAD);
            (self.at.cast().as_ref(), std::slice::from_raw_parts(bytes, self.size.get() - HEAD))
        }
    }

    /// The counters and the bytes.
    pub fn parts(&mut self) -> (&[AtomicUsize; 2], &mut [u8]) {
        // SAFETY: the mapping is aligned to pages, has room for both, which do not overlap, and
        // lives as long as this; no other process has it, or that process waits in `fork`.
        unsafe {
            let bytes = self.at.as_ptr().add(HEAD);
            let bytes = std::slice::from_raw_parts_mut(bytes, self.size.get() - HEAD);
            (self.at.cast().as_ref(), bytes)
        }
    }
}

impl Drop for SharedBuffer {
    fn drop(&mut self) {
        // SAFETY: what was lent ends with this.
        let _ = unsafe { munmap(self.at.cast(), self.size.get()) };
    }
}
