//! Terminals that are there without us: /dev/tty, the console, virtual consoles, serial lines
//! (tty(4), console(4)). Opening a device does something to it, so one is opened only when asked.

use crate::error::{At, Error, Result};
use crate::image::OpenFile;
use crate::kind::context::{CttyPlan, Opened, RestoreContext};
use crate::kind::{Kind, OpenTerminal, Prerequisite, decode};
use crate::proc::Descriptor;
use crate::sys::{self, tty};
use crate::terminal::{self, Settings};
use nix::errno::Errno;
use nix::libc;
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;

/// /dev/tty: whatever the controlling terminal of the opener is.
const OWN: (u32, u32) = (5, 0);

/// A terminal.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tty {
    /// Major and minor number of what is really open, behind /dev/tty and /dev/console: TIOCGDEV.
    device: (u32, u32),
    /// Whether it may be opened by its path: somebody asked for it by name (ttyctl(1) retarget).
    asked: bool,
    /// It has hung up: all that is left of it is EIO.
    hung: bool,
    /// How many bytes wait to be read.
    queued: u32,
    /// TIOCGEXCL.
    exclusive: bool,
    /// None of one that has hung up, and in a passive scan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    settings: Option<Settings>,
}

fn is_own(file: &OpenFile) -> bool {
    match &file.inode {
        Some(inode) => inode.rdev == Some(OWN),
        None => file.link.0 == b"/dev/tty",
    }
}

impl Kind for Tty {
    const NAME: &'static str = "tty";

    fn claims(it: &Descriptor<'_>) -> bool {
        if it.is_path() {
            return false;
        }
        let Some(inode) = &it.inode else {
            let name = it.link.0.strip_prefix(b"/dev/").unwrap_or_default();
            return name.starts_with(b"tty") || name == b"console" || name.starts_with(b"hvc");
        };
        let is = |rdev| terminal::is_terminal(rdev) || it.copy.as_ref().is_some_and(answers);
        inode.mode & libc::S_IFMT == libc::S_IFCHR && inode.rdev.is_some_and(is)
    }

    fn capture(it: &Descriptor<'_>) -> Result<Self> {
        let device = it.inode.as_ref().and_then(|inode| inode.rdev).unwrap_or_default();
        let mut this =
            Tty { device, asked: false, hung: false, queued: 0, exclusive: false, settings: None };
        let Some(copy) = &it.copy else { return Ok(this) };
        match tty::device(copy) {
            Ok(device) => this.device = device,
            Err(Errno::EIO) => {
                this.hung = true;
                return Ok(this);
            }
            Err(errno) => return Err(errno).at(|| "TIOCGDEV"),
        }
        this.queued = sys::readable(copy.as_fd())? as u32;
        this.exclusive = tty::exclusive(copy)?;
        this.settings = Some(Settings::read(copy)?);
        Ok(this)
    }

    fn terminal(&self) -> Option<OpenTerminal> {
        let terminal = OpenTerminal { device: self.device, is_pty: false, is_master: false };
        (!self.hung).then_some(terminal)
    }

    fn settings(&self) -> Option<&Settings> {
        self.settings.as_ref()
    }

    fn validate(&self, _: &OpenFile) -> Result<()> {
        self.settings.as_ref().map_or(Ok(()), Settings::check)
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        if self.hung {
            return Err(Error::unrestorable("it has hung up, and cannot be made to again"));
        }
        match (is_own(file), cx.ctty) {
            (true, CttyPlan::Unavailable(why)) => Err(Error::unrestorable(why)),
            (true, CttyPlan::None) => {
                Err(Error::unrestorable("COMMAND has no controlling terminal"))
            }
            (true, _) => Ok(()),
            (false, _) if self.asked && !file.inode.as_ref().is_some_and(terminal::is_node) => {
                Err(Error::unrestorable("the device is no terminal here"))
            }
            (false, _) if self.asked => cx.check_path(file),
            (false, _) => Err(Error::unrestorable(
                "it is opened only when asked: by --inherit, or after ttyctl retarget",
            )),
        }
    }

    fn prerequisite(&self, file: &OpenFile) -> Prerequisite {
        if is_own(file) { Prerequisite::ControllingTerminal } else { Prerequisite::None }
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        let Tty { device, asked: _, hung: _, queued, exclusive, ref settings } = *self;
        let own = is_own(file);
        // A serial line without a carrier would wait for one.
        let wait = libc::O_NONBLOCK as u32;
        let fd = cx.open(&file.link.0, file.flags | wait).map_err(|err| match err.errno() {
            Some(Errno::ENXIO) => Error::unrestorable("COMMAND has no controlling terminal"),
            Some(Errno::EIO) => Error::unrestorable("it has hung up, or is locked"),
            _ => err,
        })?;
        let is = tty::device(&fd).at(|| "TIOCGDEV")?;
        let mut lost = Vec::new();
        if !own {
            if crate::proc::inode_of(fd.as_fd())?.rdev == Some(OWN) {
                return Err(Error::unrestorable("the path now names something of another type"));
            }
            if cx.set_terminals.insert(is) {
                // Its window is as large as it is; the rest is what the program expects.
                let apply = |it: &Settings| it.apply(fd.as_fd(), false);
                lost = settings.as_ref().map(apply).transpose()?.unwrap_or_default();
            }
            if exclusive {
                tty::set_exclusive(&fd).at(|| "make it exclusive")?;
            }
        }
        if queued > 0 && device == is {
            lost.push(format!("{queued} bytes waited in it; they are as they are now"));
        }
        for line in lost {
            cx.warnings.push(format!("{}: {line}", terminal::name(is)));
        }
        Ok(Opened::new(fd, file.flags & !(libc::O_ASYNC as u32) | wait))
    }
}

/// The record of a terminal outside the image, opened by the path that `to` has; none of what needs
/// no other: masters, what has hung up, what is no terminal. /dev/tty stays.
pub(crate) fn retarget(file: &OpenFile, to: &OpenFile) -> Option<OpenFile> {
    let record = decode(file).ok()?;
    let terminal = record.terminal().filter(|terminal| !terminal.is_master)?;
    let mut new = file.clone();
    let own = !terminal.is_pty && is_own(file);
    if !own {
        (new.link, new.inode, new.mnt) = (to.link.clone(), to.inode.clone(), to.mnt);
    }
    let device = to.inode.as_ref()?.rdev?;
    let settings = record.settings().cloned();
    let body = Tty { device, asked: !own, hung: false, queued: 0, exclusive: false, settings };
    (new.kind, new.object) = (Tty::NAME.to_owned(), None);
    new.body = serde_cbor::to_vec(&body).ok()?;
    Some(new)
}

/// Whether it says that it is a terminal: no other driver answers TIOCGDEV with a device, though
/// that of btrfs-control says that any request of a size it does not know was done.
fn answers(copy: impl AsFd) -> bool {
    tty::device(copy).is_ok_and(|device| device != (0, 0))
}
