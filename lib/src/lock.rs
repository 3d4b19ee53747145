//! Locks: whether a record of one can be true, who has another in its way, and taking it again.
//!
//! What flock(2) locks, OFD record locks and leases belong to an open file description. POSIX record
//! locks belong to a descriptor table, which loses them as soon as *any* of its descriptors of that
//! inode is closed, or the table itself is left for a copy (fcntl(2)): they are taken last of all.

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

/// Whether two locks of one inode exclude each other, if they are not of one owner.
fn exclude(one: &Lock, other: &Lock) -> bool {
    let within = |a: &Lock, b: &Lock| b.end.is_none_or(|end| a.start <= end);
    let alike = match one.is_record() {
        true => other.is_record() && within(one, other) && within(other, one),
        false => one.class == "FLOCK" && other.class == "FLOCK",
    };
    alike && (one.write || other.write)
}

/// Whoever has a lock.
fn who(pid: i32) -> String {
    match std::fs::read(format!("/proc/{pid}/comm")) {
        Ok(comm) => format!("process {pid} ({})", escape(comm.trim_ascii_end())),
        // A description has its OFD locks whichever processes have it.
        Err(_) if pid < 0 => "an open file description".to_owned(),
        Err(_) => "another process".to_owned(),
    }
}

fn taken(pid: i32) -> Error {
    Error::unrestorable(format!("{} has it locked", who(pid)))
}

/// The locks that others have on what the path of a file leads to.
///
/// A record of another machine may have the same numbers: the path tells.
fn elsewhere<'h>(
    file: &OpenFile,
    held: &'h [HeldLock],
    cx: &RestoreContext<'_>,
) -> Vec<&'h HeldLock> {
    let Some(inode) = &file.inode else { return Vec::new() };
    let key = (inode.dev.0, inode.dev.1, inode.ino);
    let mut found: Vec<&HeldLock> = held.iter().filter(|held| held.inode == key).collect();
    if !found.is_empty() {
        let now = cx.open(&file.link.0, libc::O_PATH as u32).ok();
        let now = now.and_then(|fd| inode_of(fd.as_fd()).ok());
        if now.is_none_or(|now| (now.dev.0, now.dev.1, now.ino) != key) {
            found.clear();
        }
    }
    found
}

/// Fails with status 6 if somebody has a lease that opening this file would break, after a signal
/// to its holder and up to 45 seconds of waiting (/proc/sys/fs/lease-break-time).
pub(crate) fn may_open(file: &OpenFile, held: &[HeldLock], cx: &RestoreContext<'_>) -> Result<()> {
    let flags = file.flags as i32;
    if flags & libc::O_PATH != 0 {
        return Ok(());
    }
    let breaks = |it: &&HeldLock| {
        let lease = it.lock.class == "LEASE";
        lease && (it.lock.write || flags & libc::O_ACCMODE != libc::O_RDONLY)
    };
    match elsewhere(file, held, cx).into_iter().find(breaks) {
        None => Ok(()),
        Some(held) => {
            let (who, lease) = (who(held.pid), held.lock.describe());
            Err(Error::unrestorable(format!(
                "{who} has a {lease} on it, which opening would break"
            )))
        }
    }
}

/// Looks at a lock before anything is made: a line if somebody else has it.
pub(crate) fn foresee(
    lock: &Lock,
    file: &OpenFile,
    held: &[HeldLock],
    cx: &RestoreContext<'_>,
) -> Option<String> {
    let others = elsewhere(file, held, cx);
    let other = others.into_iter().find(|other| exclude(lock, &other.lock));
    other.map(|other| format!("{}: {}", lock.describe(), taken(other.pid)))
}

/// What fcntl(2) takes for a record lock; its numbers were looked at.
fn record(lock: &Lock) -> libc::flock {
    libc::flock {
        l_type: if lock.write { libc::F_WRLCK } else { libc::F_RDLCK } as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: lock.start as i64,
        l_len: lock.end.map_or(0, |end| (end - lock.start).saturating_add(1) as i64),
        l_pid: 0,
    }
}

/// Fails with status 6 if somebody else has a record lock in the way of this one.
pub(crate) fn test(fd: BorrowedFd<'_>, lock: &Lock) -> Result<()> {
    let mut found = record(lock);
    match lock.class.as_str() {
        "POSIX" => fcntl(fd, FcntlArg::F_GETLK(&mut found))?,
        _ => fcntl(fd, FcntlArg::F_OFD_GETLK(&mut found))?,
    };
    match found.l_type == libc::F_UNLCK as libc::c_short {
        true => Ok(()),
        false => Err(taken(found.l_pid)),
    }
}

/// Takes a lock without waiting; fails with status 6 if it cannot be had, and says why.
pub(crate) fn take(fd: BorrowedFd<'_>, lock: &Lock) -> Result<()> {
    let done = match lock.class.as_str() {
        "FLOCK" => sys::lock::flock(fd, if lock.write { libc::LOCK_EX } else { libc::LOCK_SH }),
        "LEASE" => sys::lock::set_lease(fd, if lock.write { libc::F_WRLCK } else { libc::F_RDLCK }),
        "POSIX" => fcntl(fd, FcntlArg::F_SETLK(&record(lock))).map(drop),
        _ => fcntl(fd, FcntlArg::F_OFD_SETLK(&record(lock))).map(drop),
    };
    let Err(errno) = done else { return Ok(()) };
    Err(match (lock.class.as_str(), errno) {
        ("LEASE", Errno::EAGAIN) => Error::unrestorable("the file is open elsewhere"),
        ("LEASE", Errno::EACCES) => Error::unrestorable("the file is another's (CAP_LEASE)"),
        ("LEASE", Errno::EINVAL) => Error::unrestorable("this file system has no leases"),
        ("FLOCK", Errno::EWOULDBLOCK) => {
            let inode = inode_of(fd)?;
            let key = (inode.dev.0, inode.dev.1, inode.ino);
            let held = proc::locks().into_iter();
            let mut held = held.filter(|it| it.inode == key && exclude(lock, &it.lock));
            taken(held.next().map_or(0, |held| held.pid))
        }
        (_, Errno::EAGAIN | Errno::EACCES) => test(fd, lock).err().unwrap_or_else(|| taken(0)),
        (_, errno) => Error::unrestorable(errno.desc()),
    })
}

/// Reports whether a descriptor is of a file, and not of what is in its place: /dev/null.
pub(crate) fn is_of(file: &OpenFile, fd: BorrowedFd<'_>) -> bool {
    let (Some(old), Ok(new)) = (&file.inode, inode_of(fd)) else { return true };
    old.mode & libc::S_IFMT == new.mode & libc::S_IFMT && old.rdev == new.rdev
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
    fn locks_exclude_each_other_by_class_access_and_range() {
        let posix = |write, start, end| lock("POSIX", write, start, end);
        assert!(exclude(&posix(true, 0, Some(9)), &lock("OFDLCK", false, 9, None)));
        assert!(!exclude(&posix(true, 0, Some(9)), &posix(true, 10, None)));
        assert!(!exclude(&posix(false, 0, None), &posix(false, 0, None)));
        assert!(exclude(&posix(false, 5, Some(5)), &posix(true, 0, None)));
        assert!(exclude(&lock("FLOCK", true, 0, None), &lock("FLOCK", false, 0, None)));
        assert!(!exclude(&lock("FLOCK", true, 0, None), &posix(true, 0, None)));
        assert!(!exclude(&lock("LEASE", true, 0, None), &lock("LEASE", true, 0, None)));
    }

    #[test]
    fn the_last_byte_of_all_is_locked_without_overflow() {
        let whole = record(&lock("POSIX", true, 0, Some(i64::MAX as u64)));
        assert_eq!((whole.l_start, whole.l_len), (0, i64::MIN));
        let last = record(&lock("POSIX", true, 7, Some(i64::MAX as u64)));
        assert_eq!((last.l_start, last.l_len), (7, i64::MAX - 6));
    }

    #[test]
    fn what_was_taken_is_recorded_as_it_was_and_in_the_way_of_others() {
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
