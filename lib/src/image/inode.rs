//! The inode of an open file, as an image has it.

use super::Inode;
use crate::sys;
use nix::libc;
use std::ffi::CStr;
use std::os::fd::BorrowedFd;

impl Inode {
    /// The key by which an inode is found: major and minor device number, and inode number.
    pub fn key(&self) -> (u32, u32, u64) {
        (self.dev.0, self.dev.1, self.ino)
    }
}

/// The record of the inode that a descriptor of this process has open. Fails as statx(2) does.
pub fn inode_of(fd: BorrowedFd<'_>) -> nix::Result<Inode> {
    sys::stat(fd).map(from_statx)
}

/// The record of the inode that a path leads to. Fails as statx(2) does.
pub fn inode_at(path: &CStr) -> nix::Result<Inode> {
    sys::stat_path(path).map(from_statx)
}

fn from_statx(stat: libc::statx) -> Inode {
    let mode = u32::from(stat.stx_mode);
    let device = matches!(mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK);
    Inode {
        dev: (stat.stx_dev_major, stat.stx_dev_minor),
        ino: stat.stx_ino,
        mode,
        nlink: stat.stx_nlink,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        size: stat.stx_size,
        mtime: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
        rdev: device.then_some((stat.stx_rdev_major, stat.stx_rdev_minor)),
    }
}
