//! inotify(7) and fanotify(7) by descriptors that are not ours to own, and what finds the inodes
//! that they watch.

use super::stat;
use nix::errno::Errno;
use nix::libc;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Adds a watch, and gives its number: inotify_add_watch(2).
pub fn add_watch(inotify: BorrowedFd<'_>, path: &CStr, mask: u32) -> nix::Result<i32> {
    // SAFETY: the path is a C string.
    Errno::result(unsafe { libc::inotify_add_watch(inotify.as_raw_fd(), path.as_ptr(), mask) })
}

/// Removes a watch, which leaves an IN_IGNORED in the queue: inotify_rm_watch(2).
pub fn remove_watch(inotify: BorrowedFd<'_>, wd: i32) -> nix::Result<()> {
    // SAFETY: two integers.
    Errno::result(unsafe { libc::inotify_rm_watch(inotify.as_raw_fd(), wd) }).map(drop)
}

/// Sets the number of the next watch: INOTIFY_IOC_SETNEXTWD, in kernels with
/// CONFIG_CHECKPOINT_RESTORE since Linux 4.16.
pub fn set_next_watch(inotify: BorrowedFd<'_>, wd: i32) -> nix::Result<()> {
    // linux/inotify.h
    const INOTIFY_IOC_SETNEXTWD: libc::Ioctl = nix::request_code_write!(b'I', 0, size_of::<i32>());
    // SAFETY: the argument is the number itself.
    let done = unsafe { libc::ioctl(inotify.as_raw_fd(), INOTIFY_IOC_SETNEXTWD, wd) };
    Errno::result(done).map(drop)
}

/// Adds to or makes a mark: fanotify_mark(2).
pub fn mark(group: BorrowedFd<'_>, path: &CStr, flags: u32, mask: u64) -> nix::Result<()> {
    let (fd, cwd) = (group.as_raw_fd(), libc::AT_FDCWD);
    // SAFETY: the path is a C string.
    Errno::result(unsafe { libc::fanotify_mark(fd, flags, mask, cwd, path.as_ptr()) }).map(drop)
}

/// A struct file_handle with room for any handle: MAX_HANDLE_SZ.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    handle: [u8; 128],
}

/// The inode that a handle means, as an O_PATH descriptor whose path leads through the mount of the
/// working directory: open_by_handle_at(2).
///
/// Any descriptor that names a mount would have to be opened, which whoever watches it is told of.
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

/// The mount by which something is open, as /proc/PID/mountinfo numbers it, and whether it is the
/// root of that mount. statx(2) STATX_MNT_ID and STATX_ATTR_MOUNT_ROOT, Linux 5.8.
pub fn mount(fd: BorrowedFd<'_>) -> nix::Result<(u64, bool)> {
    let found = stat(fd)?;
    Ok((found.stx_mnt_id, found.stx_attributes & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0))
}
