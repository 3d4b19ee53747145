//! An unlinked file: only descriptors keep its content.

use crate::driver::{Bad, Difference, Fixture, link, open, reopen, stat};
use crate::lock;
use crate::regular::{access, default, position_and_access, read_whole};
use crate::spec::{At, Result, Spec};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::unistd::{Whence, lseek};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

pub(crate) struct Unlinked;

impl Fixture for Unlinked {
    const NAME: &'static str = "unlinked";
    const ABOUT: &'static str = "a file that was unlinked while it is open";
    const KEYS: &'static [(&'static str, &'static str)] = &[
        ("path", "its old name"),
        ("data", "its content; @N for N bytes of a pattern"),
        ("pos", "the position"),
        ("pos2", "the position of the second description"),
        ("read", "O_RDONLY (neither or both of read and write: O_RDWR)"),
        ("write", "O_WRONLY"),
        ("append", "O_APPEND"),
        ("two", "a second description of the inode, O_RDWR, at the second number"),
        lock::KEY,
    ];
    const DIFFERENCES: &'static [Difference] = &[
        ("regular@3", "unlinked@3", "link count"),
        ("unlinked@3:data=ab", "unlinked@3:data=ac", "content"),
    ];

    fn arity(spec: &Spec) -> usize {
        if spec.has("two") { 2 } else { 1 }
    }

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        let path = spec.path()?;
        fs::write(&path, content(spec)).at(path.display())?;
        let mut made = Vec::new();
        for nth in 0..Self::arity(spec) {
            let fd = open(&path, Self::flags(spec, nth))?;
            let pos = spec.number(["pos", "pos2"][nth])?.unwrap_or(0);
            lseek(&fd, pos as i64, Whence::SeekSet).at("lseek")?;
            made.push(fd);
        }
        fs::remove_file(&path).at(path.display())?;
        Ok(made)
    }

    fn finish(spec: &Spec) -> Result<()> {
        lock::finish(spec)
    }

    fn flags(spec: &Spec, nth: usize) -> OFlag {
        if nth == 1 {
            return OFlag::O_RDWR;
        }
        let mut flags = access(spec);
        flags.set(OFlag::O_APPEND, spec.has("append"));
        flags
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let fd = sys::at(spec.fds[0])?;
        let found = stat(fd, libc::S_IFREG, bad)?;
        lock::check(spec, bad)?;
        bad.same("link count", found.st_nlink, 0);
        if let Ok(path) = spec.path() {
            let mut gone = path.clone().into_os_string();
            gone.push(" (deleted)");
            bad.same("path", link(spec.fds[0]), PathBuf::from(gone));
            bad.unless(!path.exists(), "the old name exists again");
        }
        let file = fs::File::from(reopen(fd, OFlag::O_RDONLY)?);
        let made = content(spec);
        bad.same_bytes("content", &read_whole(&file)?, &made);
        position_and_access(spec, fd, &made, bad)?;
        if !spec.has("two") {
            return Ok(());
        }
        let second = sys::at(spec.fds[1])?;
        let same = stat(second, libc::S_IFREG, bad)?;
        bad.same("inode of the second", same.st_ino, found.st_ino);
        let pos2 = spec.known_number("pos2").unwrap_or(0) as i64;
        bad.same("position of the second", lseek(second, 0, Whence::SeekCur)?, pos2);
        // A write through the second description is read through the first.
        lseek(second, made.len() as i64, Whence::SeekSet)?;
        bad.same("write through the second", nix::unistd::write(second, b"two"), Ok(3));
        let both = [&made[..], b"two"].concat();
        bad.same_bytes("content after a write through the second", &read_whole(&file)?, &both);
        let first = spec.known_number("pos").unwrap_or(0) as i64;
        bad.same("position of the first after it", lseek(fd, 0, Whence::SeekCur)?, first);
        nix::unistd::ftruncate(second, made.len() as i64)?;
        lseek(second, pos2, Whence::SeekSet)?;
        Ok(())
    }
}

fn content(spec: &Spec) -> Vec<u8> {
    spec.data().unwrap_or_else(|| default(spec))
}
