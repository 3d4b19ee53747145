//! The controlling terminal: it belongs to a session, not to a descriptor (credentials(7)).
//!
//! What becomes of it is decided here, from what the image says of a task and from what the process
//! is; a tree has as many of them as tasks.

use crate::error::{At, Error, Result, Status};
use crate::image::Task;
use crate::kind::DecodedImage;
use crate::kind::context::{CttyPlan, RestoreContext};
use crate::proc::Stat;
use crate::sys::tty;
use crate::terminal;
use crate::text::escape;
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd::{Pid, tcgetpgrp, tcsetpgrp};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

/// The process that will be a task of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionRole {
    /// Whether it leads its session: only such a one can take a controlling terminal.
    pub leader: bool,
    /// Whether it has one.
    pub has: bool,
}

impl SessionRole {
    /// This very process.
    pub fn myself() -> Result<SessionRole> {
        let stat = std::fs::read("/proc/self/stat").at(|| "/proc/self/stat")?;
        let stat = Stat::parse(&stat).ok_or_else(|| Error::new(Status::System, "stat"))?;
        Ok(SessionRole {
            leader: stat.field(6) == i64::from(std::process::id()),
            has: stat.field(7) != 0,
        })
    }
}

/// The device of our controlling terminal.
pub fn own() -> Option<(u32, u32)> {
    let stat = Stat::of(std::process::id() as i32)?;
    Some(tty::numbers(stat.field(7) as u32)).filter(|&device| device != (0, 0))
}

/// Decides. `made` says whether a file of the image is restored, `handed` at which number a
/// descriptor of the caller stands for it.
pub fn plan(
    image: &DecodedImage,
    task: &Task,
    role: SessionRole,
    made: impl Fn(u32) -> bool,
    handed: impl Fn(u32) -> Option<RawFd>,
) -> CttyPlan {
    let Some(old) = &task.terminal else {
        return if role.has { CttyPlan::Kept } else { CttyPlan::None };
    };
    let device = tty::numbers(old.device);
    // Files that are open on it, and whether it is an end of a pseudo terminal.
    let mut files = image.files_and_records().filter_map(|(file, record)| {
        let terminal = record.terminal().filter(|terminal| terminal.device == device)?;
        Some((file.id, terminal.is_pty))
    });
    let ctty_plan = match &old.path {
        Some(path) => Some(CttyPlan::FromPath(path.0.clone())),
        None => {
            let mut pair = files.clone().filter(|&(id, is_pty)| is_pty && made(id));
            let pair = pair.next().map(|(id, _)| CttyPlan::FromImage(id));
            pair.or_else(|| files.find_map(|(id, _)| handed(id)).map(CttyPlan::FromCaller))
        }
    };
    let name = terminal::name(device);
    match ctty_plan {
        Some(CttyPlan::FromImage(_)) if role.has => {
            let cure = "run it without a terminal of its own, by setsid(1)";
            CttyPlan::Unavailable(format!(
                "{name}, restored, cannot control COMMAND, which has another: {cure}"
            ))
        }
        _ if role.has => CttyPlan::Kept,
        Some(_) if !role.leader => CttyPlan::Unavailable(format!(
            "{name} cannot control COMMAND, which leads no session: setsid(1)"
        )),
        Some(ctty_plan) => ctty_plan,
        None => CttyPlan::Unavailable(format!(
            "its controlling terminal {name} is outside the image: COMMAND has none"
        )),
    }
}

/// Makes a terminal the controlling one of this process, which leads a session and has none.
/// `steal` takes it from another session, which takes CAP_SYS_ADMIN.
///
/// Fails with status 4 if it is another session's, and says whose.
pub fn take(terminal: BorrowedFd<'_>, steal: bool) -> Result<()> {
    match tty::control(terminal, steal) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) => {
            let device = tty::device(terminal).unwrap_or_default();
            let why = match (owner(device), steal) {
                (Some((sid, comm)), false) => {
                    format!("it is the controlling terminal of session {sid} ({comm})")
                }
                (Some((sid, comm)), true) => {
                    format!("it takes CAP_SYS_ADMIN to steal it from session {sid} ({comm})")
                }
                (None, _) => "we lead no session, or have a terminal already, or it is that of a \
                              session we cannot see"
                    .to_owned(),
            };
            Err(Error::new(Status::Denied, why))
        }
        Err(Errno::EIO) => Err(Error::new(Status::System, "it has hung up: its master is closed")),
        Err(errno) => Err(errno).at(|| "TIOCSCTTY"),
    }
}

/// Makes the terminal of a slave, or of a master, the controlling one of this process: [`take`].
pub fn seize(terminal: BorrowedFd<'_>, steal: bool) -> Result<()> {
    // Through a master it would be the master's; the slave is opened for the moment.
    match tty::index(terminal) {
        Ok(_) => slave(terminal).and_then(|fd| take(fd.as_fd(), steal)),
        Err(_) => take(terminal, steal),
    }
}

/// The slave of a master, unlocked for the moment if it must be.
fn slave(master: BorrowedFd<'_>) -> Result<OwnedFd> {
    let locked = tty::locked(master)?;
    if locked {
        tty::set_locked(master, false)?;
    }
    let slave = tty::peer(master, libc::O_RDWR as u32).at(|| "open the slave");
    if locked {
        tty::set_locked(master, true)?;
    }
    slave
}

/// Opens the terminal at a path below the root of a restore, if it is this device.
pub(crate) fn open(path: &[u8], device: u32, cx: &RestoreContext<'_>) -> Result<OwnedFd> {
    let place = cx.open(path, libc::O_PATH as u32)?;
    let node = crate::proc::inode_of(place.as_fd())?;
    if !terminal::is_node(&node) || node.rdev != Some(tty::numbers(device)) {
        return Err(Error::unrestorable("the path now names something else"));
    }
    cx.open(path, (libc::O_RDWR | libc::O_NONBLOCK) as u32)
}

/// Puts a process group of this session into the foreground of its controlling terminal.
pub fn set_foreground(group: Pid) -> Result<()> {
    // A background group that sets it gets SIGTTOU, unless that is blocked.
    let mut before = SigSet::empty();
    let stop: SigSet = [Signal::SIGTTOU].into_iter().collect();
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&stop), Some(&mut before))?;
    let set = std::fs::File::open("/dev/tty")
        .at(|| "/dev/tty")
        .and_then(|tty| tcsetpgrp(tty, group).at(|| "its foreground group"));
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    set
}

/// Whether a process group of this session is in the foreground of its controlling terminal.
pub fn is_foreground(group: Pid) -> bool {
    let terminal = std::fs::File::open("/dev/tty");
    terminal.is_ok_and(|terminal| tcgetpgrp(terminal) == Ok(group))
}

/// The session whose controlling terminal a device is, and the name of who leads it, or of one of
/// its members if the leader is gone.
pub fn owner(device: (u32, u32)) -> Option<(i32, String)> {
    let wanted = i64::from(tty::encoded(device) as i32);
    let mut found: Option<(i32, String)> = None;
    for (pid, stat) in crate::proc::all() {
        let sid = stat.field(6) as i32;
        if stat.field(7) == wanted && (found.is_none() || pid == sid) {
            found = Some((sid, escape(stat.name()).into_owned()));
            if pid == sid {
                break;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_this_terminal_is_found_by_its_number() {
        assert_eq!(owner((3, 77)), None);
    }
}
