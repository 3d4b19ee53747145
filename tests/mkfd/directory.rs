//! A directory that has been read up to some entry.

use crate::driver::{Bad, Difference, Fixture, link, open, stat};
use crate::lock;
use crate::spec::{At, Result, Spec};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::stat::Mode;
use nix::unistd::{Whence, lseek};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The size of the buffer of a getdents64(2), in bytes: room for a few entries.
const STEP: usize = 128;
/// The number of entries in a directory that mkfd makes.
const ENTRIES: usize = 40;

pub(crate) struct Directory;

impl Fixture for Directory {
    const NAME: &'static str = "directory";
    const ABOUT: &'static str = "a directory, read up to some entry";
    const KEYS: &'static [(&'static str, &'static str)] = &[
        ("path", "this directory; one that exists is left as it is"),
        ("steps", "how many getdents64 of 128 bytes it is read"),
        ("opath", "O_PATH|O_DIRECTORY"),
        ("plain", "opened without O_DIRECTORY"),
        lock::KEY,
    ];
    const DIFFERENCES: &'static [Difference] = &[
        ("directory@3", "directory@3:lock=flock-w", "locks is"),
        ("directory@3:steps=2", "directory@3", "position"),
    ];

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        let path = spec.path()?;
        if !path.exists() {
            fs::create_dir(&path).at(path.display())?;
            for n in 0..ENTRIES {
                fs::write(path.join(format!("entry {n:02}")), b"").at(path.display())?;
            }
        }
        let fd = open(&path, Self::flags(spec, 0))?;
        read_steps(fd.as_fd(), spec.number("steps")?.unwrap_or(0)).at("getdents64")?;
        Ok(vec![fd])
    }

    fn finish(spec: &Spec) -> Result<()> {
        lock::finish(spec)
    }

    fn flags(spec: &Spec, _: usize) -> OFlag {
        let mut flags = OFlag::O_RDONLY;
        flags.set(OFlag::O_DIRECTORY, !spec.has("plain"));
        flags.set(OFlag::O_PATH, spec.has("opath"));
        flags
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let fd = sys::at(spec.fds[0])?;
        let found = stat(fd, libc::S_IFDIR, bad)?;
        lock::check(spec, bad)?;
        let Ok(path) = spec.path() else { return Ok(()) };
        bad.same("path", link(spec.fds[0]), path.clone());
        if spec.has("opath") {
            bad.same("getdents64", sys::getdents(fd, &mut [0; STEP]), Err(Errno::EBADF));
            return Ok(());
        }
        // A new open file description of the directory, read as far, must have the same position
        // and the same next entries.
        let fresh = nix::fcntl::open(&path, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        bad.same("inode", found.st_ino, nix::sys::stat::fstat(&fresh)?.st_ino);
        read_steps(fresh.as_fd(), spec.known_number("steps").unwrap_or(0))?;
        let position = lseek(fd, 0, Whence::SeekCur)?;
        bad.same("position", position, lseek(&fresh, 0, Whence::SeekCur)?);
        let (rest, made) = (rest(fd)?, rest(fresh.as_fd())?);
        bad.same("entries left", rest, made);
        lseek(fd, position, Whence::SeekSet)?;
        Ok(())
    }
}

fn read_steps(fd: BorrowedFd<'_>, steps: u64) -> Result<(), Errno> {
    for _ in 0..steps {
        sys::getdents(fd, &mut [0; STEP])?;
    }
    Ok(())
}

/// The names of the entries from the position on.
fn rest(fd: BorrowedFd<'_>) -> Result<Vec<String>, Errno> {
    let mut names = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let got = sys::getdents(fd, &mut buffer)?;
        if got == 0 {
            return Ok(names);
        }
        // struct linux_dirent64: inode 8, offset 8, length 2, type 1, name to a NUL.
        let mut at = 0;
        while at < got {
            let length = u16::from_ne_bytes([buffer[at + 16], buffer[at + 17]]) as usize;
            let name = buffer[at + 19..at + length].split(|&b| b == 0).next().unwrap_or_default();
            names.push(String::from_utf8_lossy(name).into_owned());
            at += length;
        }
    }
}
