//! Locks of files, for kinds with the key `lock`; a second process checks them.

use crate::driver::{Bad, reopen};
use crate::raw;
use crate::spec::{At, Result, Spec, Stop};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

/// The line of `mkfd list`.
pub(crate) const KEY: (&str, &str) =
    ("lock", "CLASS-r|w[:FIRST-[LAST]] with + between: posix, ofd, flock or lease, of the first");

struct Lock {
    class: String,
    write: bool,
    first: u64,
    last: Option<u64>,
}

/// The requested locks.
fn wanted(spec: &Spec) -> Result<Vec<Lock>> {
    let text = String::from_utf8_lossy(spec.bytes("lock").unwrap_or_default()).into_owned();
    let one = |text: &str| {
        let (name, range) = text.split_once(':').unwrap_or((text, "0-"));
        let (class, access) = name.split_once('-')?;
        let (first, last) = range.split_once('-')?;
        let known = ["posix", "ofd", "flock", "lease"].contains(&class);
        let last = if last.is_empty() { None } else { Some(last.parse().ok()?) };
        (known && ["r", "w"].contains(&access)).then_some(())?;
        Some(Lock { class: class.into(), write: access == "w", first: first.parse().ok()?, last })
    };
    let words = text.split('+').filter(|word| !word.is_empty());
    let lock = |word: &str| one(word).ok_or_else(|| Stop::Misuse(format!("lock={word}")));
    words.map(lock).collect()
}

fn record(write: bool, first: u64, last: Option<u64>) -> libc::flock {
    libc::flock {
        l_type: if write { libc::F_WRLCK } else { libc::F_RDLCK } as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: first as i64,
        l_len: last.map_or(0, |last| (last - first + 1) as i64),
        l_pid: 0,
    }
}

/// Acquires the locks. All descriptors have their numbers, and no descriptor of the file is closed
/// afterwards.
pub(crate) fn finish(spec: &Spec) -> Result<()> {
    for lock in wanted(spec)? {
        let fd = sys::at(spec.fds[0]).at("lock")?;
        let range = record(lock.write, lock.first, lock.last);
        let kind = if lock.write { libc::F_WRLCK } else { libc::F_RDLCK };
        match lock.class.as_str() {
            "posix" => fcntl(fd, FcntlArg::F_SETLK(&range)).map(drop),
            "ofd" => fcntl(fd, FcntlArg::F_OFD_SETLK(&range)).map(drop),
            "flock" => sys::flock(fd, lock.write),
            _ => sys::fcntl(fd, libc::F_SETLEASE, kind.into()).map(drop),
        }
        .at(format!("{} lock of {}", lock.class, spec.fds[0]))?;
    }
    Ok(())
}

/// Checks that a second process is excluded by these locks, and by no others. This must be called
/// before a descriptor of the file is closed. Leases are released.
pub(crate) fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
    if spec.has("opath") || spec.has("path") && !spec.has("lock") {
        return Ok(());
    }
    let fd = sys::at(spec.fds[0])?;
    let Ok(wanted) = wanted(spec) else { return Ok(()) };
    let lease = wanted.iter().find(|lock| lock.class == "lease").map(|lock| lock.write);
    let flock = wanted.iter().find(|lock| lock.class == "flock").map(|lock| lock.write);
    let pid = std::process::id() as i32;
    let mut made = String::new();
    for lock in wanted.iter().filter(|lock| ["posix", "ofd"].contains(&lock.class.as_str())) {
        let pid = if lock.class == "posix" { pid } else { -1 };
        made += &line(&libc::flock { l_pid: pid, ..record(lock.write, lock.first, lock.last) });
    }
    made += &match (lease, flock) {
        (Some(true), _) => format!("open {:?}\n", Errno::EWOULDBLOCK),
        (_, flock) => format!("flock {flock:?}\n"),
    };
    if lease == Some(false) {
        made += &format!("open to write {:?}\n", Errno::EWOULDBLOCK);
    }
    let held = match sys::fcntl(fd, libc::F_GETLEASE, 0) {
        Ok(libc::F_UNLCK) | Err(_) => None,
        Ok(kind) => Some(kind == libc::F_WRLCK),
    };
    bad.same("write lease", held, lease);
    bad.same("locks", in_a_child(|out| look(fd, lease == Some(false), out))?, made);
    if held.is_some() {
        sys::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK.into())?;
    }
    Ok(())
}

fn line(it: &libc::flock) -> String {
    let how = if it.l_type == libc::F_WRLCK as libc::c_short { "write" } else { "read" };
    format!("{how} from {} for {} of {}\n", it.l_start, it.l_len, it.l_pid)
}

/// The locks that a second process finds: record locks one after another, then whether flock(2)
/// succeeds.
fn look(fd: BorrowedFd<'_>, to_write: bool, out: &mut String) -> Result<(), Errno> {
    let mut from = 0;
    loop {
        let mut found = record(true, from, None);
        fcntl(fd, FcntlArg::F_GETLK(&mut found))?;
        if found.l_type == libc::F_UNLCK as libc::c_short {
            break;
        }
        *out += &line(&found);
        from = (found.l_start + found.l_len) as u64;
        if found.l_len == 0 {
            break;
        }
    }
    match reopen(fd, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
        Ok(other) => {
            let got = [true, false].map(|write| sys::flock(other.as_fd(), write).is_ok());
            let held = match got {
                [true, _] => None,
                [false, shared] => Some(!shared),
            };
            *out += &format!("flock {held:?}\n");
        }
        Err(errno) => *out += &format!("open {errno:?}\n"),
    }
    if to_write {
        let opened = reopen(fd, OFlag::O_WRONLY | OFlag::O_NONBLOCK);
        *out += &format!("open to write {:?}\n", opened.err().unwrap_or(Errno::UnknownErrno));
    }
    Ok(())
}

/// Runs this in a child, which has all descriptors and no POSIX locks, and gives its output.
fn in_a_child(work: impl FnOnce(&mut String) -> Result<(), Errno>) -> Result<String, Errno> {
    let (from, to) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    if let Some(child) = sys::fork()? {
        drop(to);
        let mut text = String::new();
        let read = File::from(from).read_to_string(&mut text);
        nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child), None)?;
        return read.map(|_| text).map_err(|_| Errno::EIO);
    }
    let mut text = String::new();
    if let Err(errno) = work(&mut text) {
        text += &format!("{}: {errno}\n", raw(&to));
    }
    let _ = File::from(to).write_all(text.as_bytes());
    std::process::exit(0)
}
