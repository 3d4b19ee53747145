//! A fifo: a pipe with a name.

use crate::driver::{
    Bad, Difference, Fixture, drain, link, open, signal_comes, stat, status, write_all,
};
use crate::spec::{At, Result, Spec};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::stat::Mode;
use nix::unistd::write;
use std::os::fd::{AsFd, OwnedFd};

pub(crate) struct Fifo;

impl Fixture for Fifo {
    const NAME: &'static str = "fifo";
    const ABOUT: &'static str = "a named pipe: its read end, its write end";
    const KEYS: &'static [(&'static str, &'static str)] = &[
        ("path", "this fifo; one that exists is used"),
        ("data", "bytes on the way; @N for N bytes of a pattern"),
        ("size", "F_SETPIPE_SZ"),
        ("rdwr", "one description, O_RDWR, at the one number"),
        ("unlinked", "its name is removed"),
    ];
    const DIFFERENCES: &'static [Difference] = &[("fifo@3,4:unlinked", "fifo@3,4", "link count")];

    fn arity(spec: &Spec) -> usize {
        if spec.has("rdwr") { 1 } else { 2 }
    }

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        let path = spec.path()?;
        if !path.exists() {
            nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600)).at(path.display())?;
        }
        let made = if spec.has("rdwr") {
            vec![open(&path, OFlag::O_RDWR)?]
        } else {
            // Without O_NONBLOCK, opening the first end would wait for the other end.
            let r = open(&path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
            let w = open(&path, OFlag::O_WRONLY)?;
            let flags = status(r.as_fd()).at("F_GETFL")? - OFlag::O_NONBLOCK;
            fcntl(&r, FcntlArg::F_SETFL(flags)).at("F_SETFL")?;
            vec![r, w]
        };
        let w = made.last().expect("an end");
        if let Some(size) = spec.number("size")? {
            fcntl(w, FcntlArg::F_SETPIPE_SZ(size as i32)).at("F_SETPIPE_SZ")?;
        }
        write_all(w, &spec.data().unwrap_or_default()).at("write to the fifo")?;
        if spec.has("unlinked") {
            std::fs::remove_file(&path).at(path.display())?;
        }
        Ok(made)
    }

    fn flags(spec: &Spec, nth: usize) -> OFlag {
        match (spec.has("rdwr"), nth) {
            (true, _) => OFlag::O_RDWR,
            (false, 0) => OFlag::O_RDONLY,
            (false, _) => OFlag::O_WRONLY,
        }
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let r = sys::at(spec.fds[0])?;
        let w = sys::at(spec.fds[Self::arity(spec) - 1])?;
        let found = stat(r, libc::S_IFIFO, bad)?;
        let same = stat(w, libc::S_IFIFO, bad)?;
        bad.same("inode of the write end", same.st_ino, found.st_ino);
        let unlinked = spec.has("unlinked");
        bad.same("link count", found.st_nlink == 0, unlinked);
        if let Ok(path) = spec.path() {
            let gone = if unlinked { " (deleted)" } else { "" };
            bad.same("path", link(spec.fds[0]), format!("{}{gone}", path.display()).into());
        }
        if let Some(size) = spec.known_number("size") {
            bad.same("size", fcntl(r, FcntlArg::F_GETPIPE_SZ)? as u64, size);
        }
        bad.same_bytes("data", &drain(r)?, &spec.data().unwrap_or_default());
        signal_comes(spec, 0, bad, || write(w, b"again").map(drop))?;
        bad.same_bytes("what is written now", &drain(r)?, b"again");
        Ok(())
    }
}
