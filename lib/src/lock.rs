//! File locks: finding the locks that conflict with a recorded one, and taking it.
//!
//! Locks of flock(2), OFD record locks and leases belong to an open file description. POSIX record
//! locks belong to a descriptor table, which loses them when *any* of its descriptors of the inode
//! is closed, or when the table is copied by unshare(2) (fcntl(2)): they are taken last of all.

use crate::error::{Error, Result};
use crate::image::{Lock, OpenFile};
use crate::kind::context::RestoreContext;
use crate::proc::{self, HeldLock, inode_of};
use crate::sys;
use crate::text::escape;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::os::fd::{AsFd, BorrowedFd};

/// Reports whether two locks of one inode, which have different owners, conflict.
fn conflict(one: &Lock, other: &Lock) -> bool {
    let starts_before_end = |a: &Lock, b: &Lock| b.end.is_none_or(|end| a.start <= end);
    let overlap = match one.is_record() {
        true => other.is_record() && starts_before_end(one, other) && starts_before_end(other, one),
        false => one.class == "FLOCK" && other.class == "FLOCK",
    };
    overlap && (one.write || other.write)
}

/// The name in messages of the holder of a lock.
fn holder_name(pid: i32) -> String {
    match std::fs::read(format!("/proc/{pid}/comm")) {
        Ok(comm) => format!("process {pid} ({})", escape(comm.trim_ascii_end())),
        // F_OFD_GETLK and /proc/locks show -1 for an OFD lock.
        Err(_) if pid < 0 => "an open file description".to_owned(),
        Err(_) => "another process".to_owned(),
    }
}

fn locked_by(pid: i32) -> Error {
    Error::unrestorable(format!("{} has it locked", holder_name(pid)))
}

/// The locks that processes have now on the file that the path of a record leads to.
///
/// The inode at the path is compared, because an image of another machine may have the same device
/// and inode number for another file.
fn held_on_path<'h>(
    file: &OpenFile,
    held: &'h [HeldLock],
    cx: &RestoreContext<'_>,
) -> Vec<&'h HeldLock> {
    let Some(inode) = &file.inode else { return Vec::new() };
    let key = inode.key();
    let mut found: Vec<&HeldLock> = held.iter().filter(|held| held.inode == key).collect();
    if !found.is_empty() {
        let now = cx.open(&file.link.0, libc::O_PATH as u32).ok();
        let now = now.and_then(|fd| inode_of(fd.as_fd()).ok());
        if now.is_none_or(|now| now.key() != key) {
            found.clear();
        }
    }
    found
}

/// Fails with status 6 if a process has a lease that opening the file would break: open(2) would
/// send a signal to the holder, and block for up to 45 seconds (/proc/sys/fs/lease-break-time).
pub(crate) fn check_lease(
    file: &OpenFile,
    held: &[HeldLock],
    cx: &RestoreContext<'_>,
) -> Result<()> {
    let flags = file.flags as i32;
    if flags & libc::O_PATH != 0 {
        return Ok(());
    }
    let breaks = |it: &&HeldLock| {
        let lease = it.lock.class == "LEASE";
        lease && (it.lock.write || flags & libc::O_ACCMODE != libc::O_RDONLY)
    };
    match held_on_path(file, held, cx).into_iter().find(breaks) {
        None => Ok(()),
        Some(held) => {
            let (holder, lease) = (holder_name(held.pid), held.lock.describe());
            Err(Error::unrestorable(format!(
                "{holder} has a {lease} on it, which opening it would break"
            )))
        }
    }
}

/// Finds a lock of another process that conflicts with a recorded one, before anything is opened.
/// Returns a line for messages.
pub(crate) fn find_conflict(
    lock: &Lock,
    file: &OpenFile,
    held: &[HeldLock],
    cx: &RestoreContext<'_>,
) -> Option<String> {
    let others = held_on_path(file, held, cx);
    let other = others.into_iter().find(|other| conflict(lock, &other.lock));
    other.map(|other| format!("{}: {}", lock.describe(), locked_by(other.pid)))
}

/// The struct flock of fcntl(2) for a record lock, whose range was validated.
fn to_flock(lock: &Lock) -> libc::flock {
    libc::flock {
        l_type: if lock.write { libc::F_WRLCK } else { libc::F_RDLCK } as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: lock.start as i64,
        l_len: lock.end.map_or(0, |end| (end - lock.start).saturating_add(1) as i64),
        l_pid: 0,
    }
}

/// Fails with status 6 if another process or description has a record lock that conflicts with this
/// one.
pub(crate) fn test(fd: BorrowedFd<'_>, lock: &Lock) -> Result<()> {
    let mut found = to_flock(lock);
    match lock.class.as_str() {
        "POSIX" => fcntl(fd, FcntlArg::F_GETLK(&mut found))?,
        _ => fcntl(fd, FcntlArg::F_OFD_GETLK(&mut found))?,
    };
    match found.l_type == libc::F_UNLCK as libc::c_short {
        true => Ok(()),
        false => Err(locked_by(found.l_pid)),
    }
}

/// Takes a lock without waiting. Fails with status 6 if it cannot be taken; the error says why.
pub(crate) fn take(fd: BorrowedFd<'_>, lock: &Lock) -> Result<()> {
    let done = match lock.class.as_str() {
        "FLOCK" => sys::lock::flock(fd, if lock.write { libc::LOCK_EX } else { libc::LOCK_SH }),
        "LEASE" => sys::lock::set_lease(fd, if lock.write { libc::F_WRLCK } else { libc::F_RDLCK }),
        "POSIX" => fcntl(fd, FcntlArg::F_SETLK(&to_flock(lock))).map(drop),
        _ => fcntl(fd, FcntlArg::F_OFD_SETLK(&to_flock(lock))).map(drop),
    };
    let Err(errno) = done else { return Ok(()) };
    Err(match (lock.class.as_str(), errno) {
        ("LEASE", Errno::EAGAIN) => {
            Error::unrestorable("another process or description has the file open")
        }
        ("LEASE", Errno::EACCES) => {
            Error::unrestorable("the file is owned by another user (CAP_LEASE)")
        }
        ("LEASE", Errno::EINVAL) => Error::unrestorable("this file system has no leases"),
        ("FLOCK", Errno::EWOULDBLOCK) => {
            let key = inode_of(fd)?.key();
            let held = proc::locks().into_iter();
            let mut held = held.filter(|it| it.inode == key && conflict(lock, &it.lock));
            locked_by(held.next().map_or(0, |held| held.pid))
        }
        (_, Errno::EAGAIN | Errno::EACCES) => test(fd, lock).err().unwrap_or_else(|| locked_by(0)),
        (_, errno) => Error::unrestorable(errno.desc()),
    })
}

/// Reports whether a descriptor is a substitute of a file, such as /dev/null: its type is another.
pub(crate) fn is_substitute(file: &OpenFile, fd: BorrowedFd<'_>) -> bool {
    let (Some(old), Ok(new)) = (&file.inode, inode_of(fd)) else { return false };
    old.mode & libc::S_IFMT != new.mode & libc::S_IFMT || old.rdev != new.rdev
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::{Descriptor, Process};
    use std::fs::File;
    use std::os::fd::AsRawFd;

    fn lock(class: &str, write: bool, start: u64, end: Option<u64>) -> Lock {
        Lock { class: class.into(), write, start, end, breaking: false }
    }

    fn scratch(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("fdkit-lock-{name}-{}", std::process::id()))
    }

    #[test]
    fn locks_conflict_by_class_access_and_range() {
        let posix = |write, start, end| lock("POSIX", write, start, end);
        assert!(conflict(&posix(true, 0, Some(9)), &lock("OFDLCK", false, 9, None)));
        assert!(!conflict(&posix(true, 0, Some(9)), &posix(true, 10, None)));
        assert!(!conflict(&posix(false, 0, None), &posix(false, 0, None)));
        assert!(conflict(&posix(false, 5, Some(5)), &posix(true, 0, None)));
        assert!(conflict(&lock("FLOCK", true, 0, None), &lock("FLOCK", false, 0, None)));
        assert!(!conflict(&lock("FLOCK", true, 0, None), &posix(true, 0, None)));
        assert!(!conflict(&lock("LEASE", true, 0, None), &lock("LEASE", true, 0, None)));
    }

    #[test]
    fn a_lock_up_to_the_last_byte_does_not_overflow() {
        let whole = to_flock(&lock("POSIX", true, 0, Some(i64::MAX as u64)));
        assert_eq!((whole.l_start, whole.l_len), (0, i64::MIN));
        let last = to_flock(&lock("POSIX", true, 7, Some(i64::MAX as u64)));
        assert_eq!((last.l_start, last.l_len), (7, i64::MAX - 6));
    }

    #[test]
    fn a_lock_that_was_taken_is_recorded_and_conflicts_with_others() {
        let path = scratch("taken");
        let open = || {
            File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap()
        };
        let (one, two) = (open(), open());
        for wanted in [
            lock("FLOCK", true, 0, None),
            lock("OFDLCK", true, 5, Some(9)),
            lock("OFDLCK", false, 20, None),
        ] {
            take(one.as_fd(), &wanted).unwrap();
            let process = Process::open(std::process::id() as i32).unwrap();
            let it = Descriptor::read(&process, one.as_raw_fd(), true, &mut Vec::new()).unwrap();
            assert!(it.info.locks().contains(&wanted), "{:?}", it.info.locks());
            let mut other = wanted.clone();
            other.write = true;
            let why = take(two.as_fd(), &other).unwrap_err().to_string();
            assert!(why.ends_with("has it locked"), "{why}");
        }
        std::fs::remove_file(path).unwrap();
    }
}
