//! A terminal that exists already: the slave of a pseudoterminal that another process has made.

use crate::driver::{Bad, Difference, Fixture, link, open, stat};
use crate::spec::{At, Result, Spec, Stop};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use std::os::fd::OwnedFd;

pub(crate) struct Tty;

impl Fixture for Tty {
    const NAME: &'static str = "tty";
    const ABOUT: &'static str = "a terminal that is there already";
    const KEYS: &'static [(&'static str, &'static str)] =
        &[("path", "where it is; needed"), ("noecho", "it does not show what is typed")];
    // A SPEC has the path of a terminal that the suite has open: see the suite's fixture.rs.
    const DIFFERENCES: &'static [Difference] = &[];

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        if !spec.has("path") {
            return Err(Stop::Misuse("tty: path= is needed".into()));
        }
        let fd = open(&spec.path()?, Self::flags(spec, 0) | OFlag::O_NOCTTY)?;
        if spec.has("noecho") {
            let mut line = tcgetattr(&fd).at("tcgetattr")?;
            line.local_flags.remove(LocalFlags::ECHO);
            tcsetattr(&fd, SetArg::TCSANOW, &line).at("tcsetattr")?;
        }
        Ok(vec![fd])
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let fd = sys::at(spec.fds[0])?;
        stat(fd, libc::S_IFCHR, bad)?;
        if let Ok(path) = spec.path() {
            bad.same("path", link(spec.fds[0]), path);
        }
        let echo = tcgetattr(fd)?.local_flags.contains(LocalFlags::ECHO);
        bad.same("echo", echo, !spec.has("noecho"));
        Ok(())
    }
}
