//! Terminals that a restore does not make: /dev/tty, the console, virtual consoles, serial lines
//! (tty(4), console(4)). Opening a terminal device has side effects, so it is opened only if the
//! user asks for it: ttyctl(1) retarget.

use crate::error::{At, Error, Result};
use crate::image::OpenFile;
use crate::kind::context::{CttyPlan, Opened, RestoreContext};
use crate::kind::effect::{Allow, Effect};
use crate::kind::{Kind, OpenTerminal, Prerequisite, decode};
use crate::proc::Descriptor;
use crate::sys::{self, tty};
use crate::terminal::{self, Settings};
use crate::text::escape;
use nix::errno::Errno;
use nix::libc;
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;

/// The device number of /dev/tty, the controlling terminal of the process that opens it (tty(4)).
const DEV_TTY: (u32, u32) = (5, 0);

/// A terminal that is not a pseudo terminal, or one that an image was retargeted to.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tty {
    /// Major and minor number of the terminal, also behind /dev/tty and /dev/console: TIOCGDEV.
    device: (u32, u32),
    /// A restore may open the terminal by its path: the user asked for it (ttyctl(1) retarget).
    asked: bool,
    /// The terminal has hung up: system calls on it fail with EIO.
    hung: bool,
    /// Unread bytes: FIONREAD. They are not kept.
    queued: u32,
    /// Exclusive mode: TIOCGEXCL.
    exclusive: bool,
    /// Its settings; none of a terminal that has hung up, and in a passive scan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    settings: Option<Settings>,
}

/// Reports whether a file is /dev/tty.
fn is_dev_tty(file: &OpenFile) -> bool {
    match &file.inode {
        Some(inode) => inode.rdev == Some(DEV_TTY),
        None => file.link.0 == b"/dev/tty",
    }
}

impl Kind for Tty {
    const NAME: &'static str = "tty";

    fn claims(descriptor: &Descriptor<'_>) -> bool {
        if descriptor.is_path() {
            return false;
        }
        let Some(inode) = &descriptor.inode else {
            let name = descriptor.link.0.strip_prefix(b"/dev/").unwrap_or_default();
            return name.starts_with(b"tty") || name == b"console" || name.starts_with(b"hvc");
        };
        let is_terminal = |rdev| {
            terminal::is_terminal(rdev) || descriptor.copy.as_ref().is_some_and(has_tiocgdev)
        };
        inode.mode & libc::S_IFMT == libc::S_IFCHR && inode.rdev.is_some_and(is_terminal)
    }

    fn capture(descriptor: &Descriptor<'_>) -> Result<Self> {
        let device = descriptor.inode.as_ref().and_then(|inode| inode.rdev).unwrap_or_default();
        let mut this =
            Tty { device, asked: false, hung: false, queued: 0, exclusive: false, settings: None };
        let Some(copy) = &descriptor.copy else { return Ok(this) };
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
        self.settings.as_ref().map_or(Ok(()), Settings::validate)
    }

    fn effects(&self, file: &OpenFile, _: &RestoreContext<'_>) -> Result<Vec<Effect>> {
        if self.hung || !self.asked || is_dev_tty(file) {
            return Ok(Vec::new());
        }
        let shown = escape(&file.link.0);
        let device = file.inode.as_ref().and_then(|inode| inode.rdev);
        let (what, before) = match settings_of_caller(device) {
            None => {
                let what = format!("opens the terminal {shown}, which is not open at 0, 1 or 2");
                (what, Settings::of_new_pty())
            }
            Some(now) => {
                let differs = |new: &Settings| Settings { size: now.size, ..new.clone() } != now;
                if !self.exclusive && !self.settings.as_ref().is_some_and(differs) {
                    return Ok(Vec::new());
                }
                (format!("changes the settings of the terminal {shown}"), now)
            }
        };
        let mut set =
            self.settings.as_ref().map(|it| it.changes(&before, false)).unwrap_or_default();
        if self.exclusive {
            set.push("exclusive mode".to_owned());
        }
        let what = if set.is_empty() { what } else { format!("{what}: {}", set.join(", ")) };
        Ok(vec![Effect::needing(Allow::Tty, what)])
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        if self.hung {
            return Err(Error::unrestorable("it has hung up, which cannot be restored"));
        }
        self.settings.as_ref().map_or(Ok(()), Settings::check)?;
        match (is_dev_tty(file), cx.ctty) {
            (true, CttyPlan::Unavailable(why)) => Err(Error::unrestorable(why)),
            (true, CttyPlan::None) => {
                Err(Error::unrestorable("COMMAND has no controlling terminal"))
            }
            (true, _) => Ok(()),
            (false, _)
                if self.asked && !file.inode.as_ref().is_some_and(terminal::is_terminal_inode) =>
            {
                Err(Error::unrestorable("its path does not name a terminal here"))
            }
            (false, _) if self.asked => cx.check_path(file),
            (false, _) => Err(Error::unrestorable(
                "a terminal is opened only when asked: use --inherit, or ttyctl retarget on the image",
            )),
        }
    }

    fn prerequisite(&self, file: &OpenFile) -> Prerequisite {
        if is_dev_tty(file) { Prerequisite::ControllingTerminal } else { Prerequisite::None }
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        let Tty { device, asked: _, hung: _, queued, exclusive, ref settings } = *self;
        let dev_tty = is_dev_tty(file);
        // Without O_NONBLOCK, open(2) of a serial line blocks until there is a carrier.
        let nonblock = libc::O_NONBLOCK as u32;
        let (place, found) = cx.look(&file.link.0, false)?;
        let recorded = file.inode.as_ref().and_then(|inode| inode.rdev);
        if !terminal::is_terminal_inode(&found)
            || dev_tty != (found.rdev == Some(DEV_TTY))
            || !dev_tty && found.rdev != recorded
        {
            return Err(Error::unrestorable("the path now names something of another type"));
        }
        let opened = cx.open_seen(&file.link.0, place.as_fd(), file.flags | nonblock);
        let fd = opened.map(|opened| opened.fd).map_err(|err| match err.errno() {
            Some(Errno::ENXIO) => Error::unrestorable("COMMAND has no controlling terminal"),
            Some(Errno::EIO) => Error::unrestorable("it has hung up, or is a slave that is locked"),
            _ => err,
        })?;
        let opened = tty::device(&fd).at(|| "TIOCGDEV")?;
        let mut warnings = Vec::new();
        if !dev_tty {
            if cx.set_terminals.insert(opened) {
                // Not the window size, which is that of the terminal here.
                let apply = |it: &Settings| it.apply(fd.as_fd(), false);
                warnings = settings.as_ref().map(apply).transpose()?.unwrap_or_default();
            }
            if exclusive {
                tty::set_exclusive(&fd).at(|| "TIOCEXCL")?;
            }
        }
        if queued > 0 && device == opened {
            warnings.push(format!("the {queued} bytes that were unread in it are not restored"));
        }
        for line in warnings {
            cx.warnings.push(format!("{}: {line}", terminal::name(opened)));
        }
        Ok(Opened::new(fd, file.flags & !(libc::O_ASYNC as u32) | nonblock))
    }
}

/// The settings of the terminal with this device number, if the caller has it open at 0, 1 or 2.
fn settings_of_caller(device: Option<(u32, u32)>) -> Option<Settings> {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let all = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    let found = all.into_iter().find(|fd| tty::device(fd).ok() == device)?;
    Settings::read(found).ok()
}

/// Makes the record of a terminal one of the terminal that `to` describes, which a restore opens by
/// its path. None for a master, a terminal that has hung up, and a file that is no terminal. A
/// record of /dev/tty keeps its path.
pub(crate) fn retarget(file: &OpenFile, to: &OpenFile) -> Option<OpenFile> {
    let record = decode(file).ok()?;
    let terminal = record.terminal().filter(|terminal| !terminal.is_master)?;
    let mut new = file.clone();
    let dev_tty = !terminal.is_pty && is_dev_tty(file);
    if !dev_tty {
        (new.link, new.inode, new.mnt) = (to.link.clone(), to.inode.clone(), to.mnt);
    }
    let device = to.inode.as_ref()?.rdev?;
    let settings = record.settings().cloned();
    let body = Tty { device, asked: !dev_tty, hung: false, queued: 0, exclusive: false, settings };
    (new.kind, new.object) = (Tty::NAME.to_owned(), None);
    new.body = serde_cbor::to_vec(&body).ok()?;
    Some(new)
}

/// Reports whether a device is a terminal: no other driver returns a device number for TIOCGDEV.
/// The driver of btrfs-control returns success for unknown requests, and leaves the number zero.
fn has_tiocgdev(copy: impl AsFd) -> bool {
    tty::device(copy).is_ok_and(|device| device != (0, 0))
}
