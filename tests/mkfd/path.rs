//! O_PATH descriptors of a symbolic link, a socket or a fifo.

use crate::driver::{Bad, Difference, Fixture, link, open, stat};
use crate::spec::{At, Result, Spec, Stop};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::stat::Mode;
use std::os::fd::OwnedFd;

pub(crate) struct Path;

fn of(spec: &Spec) -> &[u8] {
    spec.bytes("of").unwrap_or(b"link")
}

impl Fixture for Path {
    const NAME: &'static str = "path";
    const ABOUT: &'static str = "O_PATH of what is neither a file nor a directory";
    const KEYS: &'static [(&'static str, &'static str)] = &[("of", "link (default), fifo, socket")];
    const DIFFERENCES: &'static [Difference] = &[
        ("path@3", "path@3:of=fifo", "F_GETFL"),
        ("path@3:of=fifo", "path@3:of=socket", "file type"),
    ];

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        let path = spec.path()?;
        match of(spec) {
            _ if path.symlink_metadata().is_ok() => (),
            b"link" => std::os::unix::fs::symlink("nowhere", &path).at(path.display())?,
            b"fifo" => nix::unistd::mkfifo(&path, Mode::S_IRUSR).at(path.display())?,
            b"socket" => {
                drop(std::os::unix::net::UnixListener::bind(&path).at(path.display())?);
            }
            _ => return Err(Stop::Misuse("of: link, fifo or socket".into())),
        }
        Ok(vec![open(&path, Self::flags(spec, 0))?])
    }

    fn flags(spec: &Spec, _: usize) -> OFlag {
        let mut flags = OFlag::O_PATH;
        flags.set(OFlag::O_NOFOLLOW, of(spec) == b"link");
        flags
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let fd = sys::at(spec.fds[0])?;
        let kind = match of(spec) {
            b"link" => libc::S_IFLNK,
            b"fifo" => libc::S_IFIFO,
            _ => libc::S_IFSOCK,
        };
        stat(fd, kind, bad)?;
        if let Ok(path) = spec.path() {
            bad.same("path", link(spec.fds[0]), path);
        }
        bad.same("F_GETPIPE_SZ", fcntl(fd, FcntlArg::F_GETPIPE_SZ), Err(Errno::EBADF));
        Ok(())
    }
}
