//! pidfd_open(2): a process, living or gone. A living one must still be there; one that is gone is
//! replaced by a child that ends the same way.

use crate::error::{At, Error, Result};
use crate::image::OpenFile;
use crate::kind::context::{Opened, OpenedTogether, RestoreContext};
use crate::kind::{Kind, Prerequisite};
use crate::proc::{Descriptor, FdInfo, Stat, boot_id, inode_of};
use crate::sys::process::{self, Ended};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, OwnedFd};

/// A process or thread.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pidfd {
    /// Its id; -1 if it is gone, 0 if it is in a pid namespace that the scan did not see.
    pid: i32,
    /// Clock ticks between boot and its start: field 22 of /proc/PID/stat. Zero if it is gone.
    start: u64,
    /// How it ended, as wait(2) tells it; none while it lives. Of a process that was waited for the
    /// kernel tells it since 6.15.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exit: Option<i32>,
}

/// Where the new descriptor's process comes from.
#[derive(Debug, PartialEq)]
enum Target {
    /// It is there.
    Living(i32),
    /// A child that ends so.
    Ended(i32),
}

fn parse(info: &FdInfo) -> Result<i32> {
    let pid = info.get("Pid").and_then(|pid| pid.parse().ok());
    pid.ok_or_else(|| Error::unrestorable("fdinfo has no Pid"))
}

impl Pidfd {
    /// Whether a process is the one that was seen: since 6.9 a pidfd's inode is that of its process.
    fn is(&self, pid: i32, file: &OpenFile) -> Result<bool> {
        let fd = process::open(pid, file.flags)?;
        let found = inode_of(fd.as_fd()).at(|| "stat")?;
        let same = file.inode.as_ref().is_none_or(|i| (i.dev, i.ino) == (found.dev, found.ino));
        Ok(same && Stat::of(pid).is_some_and(|stat| stat.field(22) as u64 == self.start))
    }

    fn source(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<Target> {
        let Pidfd { pid, start, exit } = *self;
        let of_image = || cx.image.tasks.iter().any(|it| it.pid == pid && it.start == start);
        if let Some(role) = cx.current_id(1, pid).filter(|_| of_image()) {
            return Ok(Target::Living(role));
        }
        if pid == 0 {
            let why = "its process is in a pid namespace that the scan did not see";
            return Err(Error::unrestorable(why));
        }
        if pid < 0 || exit.is_some() {
            return Ok(Target::Ended(exit.unwrap_or(0)));
        }
        match cx.image.head.boot == boot_id() && self.is(pid, file).unwrap_or(false) {
            true => Ok(Target::Living(pid)),
            false => Err(Error::unrestorable(format!(
                "process {pid} is not there any more, or is another one by now"
            ))),
        }
    }
}

impl Kind for Pidfd {
    const NAME: &'static str = "pidfd";
    // Of one process, since 6.9; before, all anonymous inodes are one.
    const SHARES_OBJECT: bool = true;

    fn claims(it: &Descriptor<'_>) -> bool {
        (it.link.0 == b"anon_inode:[pidfd]" || it.link.0.starts_with(b"pidfd:[")) && !it.is_path()
    }

    fn capture(it: &Descriptor<'_>) -> Result<Self> {
        let mut pid = parse(&it.info)?;
        while pid > 0 {
            let stat = Stat::of(pid);
            // While the descriptor names it, its id is nobody else's.
            let now = parse(&it.info_now()?)?;
            if let (true, Some(stat)) = (now == pid, stat) {
                let start = stat.field(22) as u64;
                let exit = stat.is_zombie().then(|| stat.field(52) as i32);
                return Ok(Pidfd { pid, start, exit });
            }
            if now == pid {
                return Err(Error::unrestorable("its process is hidden"));
            }
            pid = now;
        }
        let exit = it.copy.as_ref().and_then(|copy| process::exit_status(copy.as_fd()));
        Ok(Pidfd { pid, start: 0, exit })
    }

    fn validate(&self, _: &OpenFile) -> Result<()> {
        if self.pid < -1 || self.pid > 0 && self.start == 0 {
            return Err(Error::malformed(format!("no process {} can have been", self.pid)));
        }
        if self.exit.is_some_and(|status| !process::is_exit_status(status)) {
            return Err(Error::malformed("no process ends like that"));
        }
        Ok(())
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        self.source(file, cx).map(drop)
    }

    fn prerequisite(&self, _: &OpenFile) -> Prerequisite {
        Prerequisite::Processes
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        let status = match self.source(file, cx)? {
            Target::Living(pid) => {
                let fd = process::open(pid, file.flags).at(|| "pidfd_open")?;
                return Ok(Opened::new(fd, 0));
            }
            Target::Ended(status) => status,
        };
        let child = Ended::new(status).at(|| "fork")?;
        let mut opened = Opened::new(child.open(file.flags).at(|| "pidfd_open")?, 0);
        // All descriptions of one process, since once it is waited for nobody can open another.
        for peer in cx.others_of_object(file) {
            let alike = cx.image.record_as(peer.id).is_some_and(|other: &Pidfd| other == self);
            if alike && !cx.held.contains_key(&peer.id) {
                let fd = child.open(peer.flags).at(|| "pidfd_open")?;
                opened.others.push(OpenedTogether { file: peer.id, fd, flags: 0 });
            }
        }
        let Pidfd { pid: _, start: _, exit } = *self;
        let ended = child.reap().at(|| "wait")?;
        if exit.is_some_and(|exit| exit != ended) {
            let name = crate::text::escape(&file.link.0).into_owned();
            cx.warnings.push(format!("{name}: its process ended with {status:#x}, now {ended:#x}"));
        }
        Ok(opened)
    }

    fn substitute(&self, file: &OpenFile) -> Result<OwnedFd> {
        let child = Ended::new(0).at(|| "fork")?;
        child.open(file.flags).at(|| "pidfd_open")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fdinfo_is_understood() {
        let pid = |text: &str| parse(&FdInfo::parse(text.as_bytes())).ok();
        assert_eq!(pid("pos:\t0\nPid:\t20721\nNSpid:\t20721\t7\n"), Some(20721));
        assert_eq!(pid("Pid:\t-1\nNSpid:\t-1\n"), Some(-1));
        assert_eq!(pid("pos:\t0\n"), None);
    }
}
