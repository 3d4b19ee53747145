//! Watches of inotify(7), marks of fanotify(7), and the calls that find the inodes which they
//! watch.

use super::stat;
use nix::errno::Errno;
use nix::libc;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Adds a watch, or changes that of the same inode: inotify_add_watch(2). Gives its number.
pub fn add_watch(inotify: BorrowedFd<'_>, path: &CStr, mask: u32) -> nix::Result<i32> {
    // SAFETY: the path is a C string.
    Errno::result(unsafe { libc::inotify_add_watch(inotify.as_raw_fd(), path.as_ptr(), mask) })
}

/// Removes a watch, which puts an IN_IGNORED event into the queue: inotify_rm_watch(2).
pub fn remove_watch(inotify: BorrowedFd<'_>, wd: i32) -> nix::Result<()> {
    // SAFETY: two integers.
    Errno::result(unsafe { libc::inotify_rm_watch(inotify.as_raw_fd(), wd) }).map(drop)
}

/// Sets the number of the next watch: INOTIFY_IOC_SETNEXTWD, Linux 4.16. Fails with ENOTTY in a
/// kernel without CONFIG_CHECKPOINT_RESTORE.
pub fn set_next_watch(inotify: BorrowedFd<'_>, wd: i32) -> nix::Result<()> {
    // linux/inotify.h
    const INOTIFY_IOC_SETNEXTWD: libc::Ioctl = nix::request_code_write!(b'I', 0, size_of::<i32>());
    // SAFETY: the argument is the number itself.
    let done = unsafe { libc::ioctl(inotify.as_raw_fd(), INOTIFY_IOC_SETNEXTWD, wd) };
    Errno::result(done).map(drop)
}

/// Adds a mark, or changes that of the same object: fanotify_mark(2).
pub fn mark(group: BorrowedFd<'_>, path: &CStr, flags: u32, mask: u64) -> nix::Result<()> {
    let (fd, cwd) = (group.as_raw_fd(), libc::AT_FDCWD);
    // SAFETY: the path is a C string.
    Errno::result(unsafe { libc::fanotify_mark(fd, flags, mask, cwd, path.as_ptr()) }).map(drop)
}

/// A struct file_handle with room for any handle: MAX_HANDLE_SZ of linux/exportfs.h.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    handle: [u8; 128],
}

/// Opens the inode of a file handle with O_PATH, on the mount of the working directory:
/// open_by_handle_at(2). It takes CAP_DAC_READ_SEARCH. Fails with ESTALE if the inode is gone.
///
/// Another mount would have to be opened first, and an open is an event for a watch on it.
pub fn open_by_handle(kind: i32, handle: &[u8]) -> nix::Result<OwnedFd> {
    let mut room = Handle { bytes: handle.len() as u32, kind, handle: [0; 128] };
    room.handle.get_mut(..handle.len()).ok_or(Errno::EOVERFLOW)?.copy_from_slice(handle);
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: Handle is a file_handle with as many bytes as it says; the result is a new descriptor
    // that nobody else owns.
    unsafe {
        let fd = libc::open_by_handle_at(libc::AT_FDCWD, (&raw mut room).cast(), flags);
        Ok(OwnedFd::from_raw_fd(Errno::result(fd)?))
    }
}

/// The mount by which a file is open, as /proc/PID/mountinfo numbers it, and true if the file is
/// the root of that mount: STATX_MNT_ID and STATX_ATTR_MOUNT_ROOT of statx(2), Linux 5.8.
pub fn mount(fd: BorrowedFd<'_>) -> nix::Result<(u64, bool)> {
    let found = stat(fd)?;
    Ok((found.stx_mnt_id, found.stx_attributes & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0))
}
