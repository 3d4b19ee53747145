//! Terminals that a command line names. They are opened in a way that cannot block, and a terminal of
//! another user is refused.

use fdkit::cli::Arg;
use fdkit::error::{At, Error, Result, Status};
use fdkit::image::Inode;
use fdkit::proc::{Stat, inode_of};
use fdkit::sys::{device, tty};
use fdkit::terminal;
use fdkit::text::escape;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A terminal that the command line names, or the controlling terminal of ttyctl.
pub(crate) struct NamedTerminal {
    pub(crate) path: PathBuf,
    /// The device file at the path.
    pub(crate) node: Inode,
    /// Major and minor number.
    pub(crate) device: (u32, u32),
    /// True for the controlling terminal of ttyctl, which may be another user's after su(1).
    controlling: bool,
}

impl NamedTerminal {
    /// Finds a terminal by its path or its name below /dev; without a word, the controlling terminal.
    ///
    /// Fails with [`Status::Misuse`] on what is no terminal, with [`Status::No`] where there is no
    /// controlling terminal, and as open(2) with O_PATH does.
    pub(crate) fn find(word: Option<&Arg>) -> Result<NamedTerminal> {
        let Some(word) = word else { return NamedTerminal::controlling() };
        let mut path = word.as_path().to_owned();
        if !path.exists() && path.is_relative() {
            path = Path::new("/dev").join(path);
        }
        let node = inode_at(&path).map_err(|errno| {
            let given = word.as_os_str().as_bytes();
            match errno {
                Errno::ENOENT if given.windows(4).any(|part| part == b"pts/") => Error::new(
                    Status::System,
                    "no such terminal: its master is closed, or it never existed",
                ),
                other => other.into(),
            }
            .at(escape(given))
        })?;
        let shown = || escape(path.as_os_str().as_bytes()).into_owned();
        let device = node.rdev.filter(|_| terminal::is_terminal_inode(&node));
        let device = device.ok_or_else(|| Error::misuse("not a terminal").at(shown()))?;
        if device == (5, 0) {
            return NamedTerminal::controlling();
        }
        Ok(NamedTerminal { path, node, device, controlling: false })
    }

    fn controlling() -> Result<NamedTerminal> {
        let stat = std::fs::read("/proc/self/stat").at(|| "/proc/self/stat")?;
        let number = Stat::parse(&stat).map_or(0, |stat| stat.field(7)) as u32;
        if number == 0 {
            return Err(Error::new(Status::No, "there is no controlling terminal; name a TTY"));
        }
        let device = device::numbers(number);
        let usual = terminal::default_path(device).map(PathBuf::from);
        let usual = usual.filter(|path| inode_at(path).is_ok_and(|node| node.rdev == Some(device)));
        let path = usual.unwrap_or("/dev/tty".into());
        let node = inode_at(&path).at(|| path.display().to_string())?;
        Ok(NamedTerminal { path, node, device, controlling: true })
    }

    /// The path, escaped for messages.
    pub(crate) fn shown(&self) -> String {
        escape(self.path.as_os_str().as_bytes()).into_owned()
    }

    /// Fails with [`Status::Denied`] on a terminal of another user, unless this process is root's.
    ///
    /// Its permissions do not count: who shares a terminal can type for the other (TIOCSTI).
    pub(crate) fn check_owner(&self) -> Result<()> {
        let uid = nix::unistd::geteuid();
        let foreign = self.node.uid != uid.as_raw() && !self.controlling;
        if foreign && !uid.is_root() { Err(self.denied()) } else { Ok(()) }
    }

    fn denied(&self) -> Error {
        let (owner, uid) = (self.node.uid, nix::unistd::geteuid());
        let why = format!(
            "it belongs to uid {owner}, and ttyctl runs as uid {uid}; \
             name a terminal of your own, or run ttyctl as root"
        );
        Error::new(Status::Denied, why).at(self.shown())
    }

    /// Opens the terminal without making it a controlling terminal (O_NOCTTY).
    ///
    /// Fails as [`NamedTerminal::check_owner`] and open(2) do, and on a terminal that has hung up.
    pub(crate) fn open(&self, flags: OFlag) -> Result<OwnedFd> {
        self.check_owner()?;
        let path = if self.controlling { Path::new("/dev/tty") } else { &self.path };
        let flags = flags | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let fd = open(path, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::EACCES | Errno::EPERM => self.denied(),
            Errno::EIO => {
                Error::new(Status::System, "its master is closed, or has locked it (TIOCSPTLCK)")
                    .at(self.shown())
            }
            Errno::EBUSY => Error::new(
                Status::Denied,
                "it is open for exclusive use (TIOCEXCL), which root may ignore",
            )
            .at(self.shown()),
            other => Error::from(other).at(self.shown()),
        })?;
        tty::device(&fd).map_err(|errno| {
            let why = match errno {
                Errno::EIO => Error::new(Status::System, "the terminal has hung up"),
                _ => Error::misuse("not a terminal"),
            };
            why.at(self.shown())
        })?;
        let status = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(status - OFlag::O_NONBLOCK))?;
        Ok(fd)
    }
}

/// The inode at a path; the device is not opened (O_PATH).
fn inode_at(path: &Path) -> nix::Result<Inode> {
    let found = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    inode_of(found.as_fd())
}
