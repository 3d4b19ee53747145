//! Which terminal a word means, and how it is opened: never so that it could wait, and never
//! somebody else's.

use fdkit::cli::Arg;
use fdkit::error::{At, Error, Result, Status};
use fdkit::image::Inode;
use fdkit::proc::{Stat, inode_of};
use fdkit::sys::tty;
use fdkit::terminal;
use fdkit::text::escape;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A terminal by its path.
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    pub(crate) node: Inode,
    pub(crate) device: (u32, u32),
    /// The caller's own controlling terminal, which may be another user's after su(1).
    own: bool,
}

impl Place {
    /// A path, a name below /dev, or without a word the caller's controlling terminal.
    pub(crate) fn find(word: Option<&Arg>) -> Result<Place> {
        let Some(word) = word else { return Place::own() };
        let mut path = word.as_path().to_owned();
        if !path.exists() && path.is_relative() {
            path = Path::new("/dev").join(path);
        }
        let node = look(&path).map_err(|errno| {
            let said = word.as_os_str().as_bytes();
            match errno {
                Errno::ENOENT if said.windows(4).any(|part| part == b"pts/") => Error::new(
                    Status::System,
                    "no such terminal: its master is closed, or it never was",
                ),
                other => other.into(),
            }
            .at(escape(said))
        })?;
        let shown = || escape(path.as_os_str().as_bytes()).into_owned();
        let device = node.rdev.filter(|_| terminal::is_node(&node));
        let device = device.ok_or_else(|| Error::misuse("not a terminal").at(shown()))?;
        if device == (5, 0) {
            return Place::own();
        }
        Ok(Place { path, node, device, own: false })
    }

    fn own() -> Result<Place> {
        let stat = std::fs::read("/proc/self/stat").at(|| "/proc/self/stat")?;
        let number = Stat::parse(&stat).map_or(0, |stat| stat.field(7)) as u32;
        if number == 0 {
            return Err(Error::new(
                Status::No,
                "which terminal? We have no controlling terminal; name one",
            ));
        }
        let device = tty::numbers(number);
        let usual = terminal::usual_path(device).map(PathBuf::from);
        let usual = usual.filter(|path| look(path).is_ok_and(|node| node.rdev == Some(device)));
        let path = usual.unwrap_or("/dev/tty".into());
        let node = look(&path).at(|| path.display().to_string())?;
        Ok(Place { path, node, device, own: true })
    }

    pub(crate) fn shown(&self) -> String {
        escape(self.path.as_os_str().as_bytes()).into_owned()
    }

    /// Refuses a terminal of another user also where its permissions would allow it: what we put on
    /// it, or run there, would be under their fingers (TIOCSTI), and theirs under ours.
    pub(crate) fn check(&self) -> Result<()> {
        let us = nix::unistd::geteuid();
        let theirs = self.node.uid != us.as_raw() && !self.own;
        if theirs && !us.is_root() { Err(self.whose()) } else { Ok(()) }
    }

    fn whose(&self) -> Error {
        let us = nix::unistd::geteuid();
        let whose = format!("it belongs to uid {}, we run as uid {us}", self.node.uid);
        Error::new(Status::Denied, whose).at(self.shown())
    }

    /// Opens it, without making it anybody's controlling terminal.
    pub(crate) fn open(&self, flags: OFlag) -> Result<OwnedFd> {
        self.check()?;
        let path = if self.own { Path::new("/dev/tty") } else { &self.path };
        let flags = flags | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let fd = open(path, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::EACCES | Errno::EPERM => self.whose(),
            Errno::EIO => Error::new(Status::System, "its master is closed, or has it locked")
                .at(self.shown()),
            Errno::EBUSY => Error::new(Status::Denied, "it is open for exclusive use (TIOCEXCL)")
                .at(self.shown()),
            other => Error::from(other).at(self.shown()),
        })?;
        tty::device(&fd).map_err(|errno| match errno {
            Errno::EIO => Error::new(Status::System, "it has hung up"),
            _ => Error::misuse("not a terminal"),
        })?;
        let status = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(status - OFlag::O_NONBLOCK))?;
        Ok(fd)
    }
}

/// What is at a path; nothing is opened.
fn look(path: &Path) -> nix::Result<Inode> {
    let place = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    inode_of(place.as_fd())
}
