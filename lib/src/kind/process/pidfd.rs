//! pidfd_open(2): a descriptor of a process. If the process had not terminated at the scan, it must
//! still exist. If it had, a child that terminates with the same status replaces it.

use crate::error::{At, Error, Result};
use crate::image::OpenFile;
use crate::kind::context::{Opened, OpenedTogether, RestoreContext};
use crate::kind::{Kind, Prerequisite};
use crate::proc::{Descriptor, FdInfo, Stat, inode_of};
use crate::sys::process::{self, Ended};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, OwnedFd};

/// The record of a pidfd.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pidfd {
    /// The process or thread id; -1 if the process was reaped, 0 if it is in a pid namespace that
    /// the scan did not see.
    pid: i32,
    /// The start time in clock ticks since boot: field 22 of proc_pid_stat(5). Zero if it was
    /// reaped.
    start: u64,
    /// The status of wait(2), if the process has terminated. Of a reaped process it is known since
    /// Linux 6.15 (PIDFD_GET_INFO).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exit: Option<i32>,
}

/// The process of the new pidfd.
#[derive(Debug, PartialEq)]
enum Target {
    /// An existing process, by its id.
    Existing(i32),
    /// A new child that terminates with this status of wait(2).
    Terminated(i32),
}

/// The Pid line of fdinfo.
fn parse(info: &FdInfo) -> Result<i32> {
    let pid = info.get("Pid").and_then(|pid| pid.parse().ok());
    pid.ok_or_else(|| Error::unrestorable("fdinfo has no Pid"))
}

/// Reports whether /proc/PID/stat shows the exit status of a zombie to this process. To one without
/// the right PTRACE_MODE_READ_FSCREDS of ptrace(2) it shows zero (do_task_stat of fs/proc/array.c).
/// The links in /proc/PID/ns take the same right.
fn shows_exit_status(pid: i32) -> bool {
    // Of a zombie only the user namespace, and that of its process id, are still there.
    let link = |name: &str| std::fs::read_link(format!("/proc/{pid}/ns/{name}")).is_ok();
    link("user") || link("pid")
}

impl Pidfd {
    /// Reports whether a process is the recorded one, by its start time and, since Linux 6.9, by
    /// the inode of its pidfd.
    fn is_same_process(&self, pid: i32, file: &OpenFile) -> Result<bool> {
        let fd = process::open(pid, file.flags)?;
        let found = inode_of(fd.as_fd()).at(|| "stat")?;
        let same = file.inode.as_ref().is_none_or(|i| (i.dev, i.ino) == (found.dev, found.ino));
        Ok(same && Stat::of(pid).is_some_and(|stat| stat.field(22) as u64 == self.start))
    }

    /// The process of the new pidfd. Fails with status 6 if the recorded process does not exist.
    fn target(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<Target> {
        let Pidfd { pid, start, exit } = *self;
        let is_in_image = || cx.image.tasks.iter().any(|it| it.pid == pid && it.start == start);
        if let Some(role) = cx.current_id(1, pid).filter(|_| is_in_image()) {
            return Ok(Target::Existing(role));
        }
        if pid == 0 {
            let why = "its process is in a pid namespace that the scan did not see";
            return Err(Error::unrestorable(why));
        }
        if pid < 0 || exit.is_some() {
            return Ok(Target::Terminated(exit.unwrap_or(0)));
        }
        match cx.is_same_boot() && self.is_same_process(pid, file).unwrap_or(false) {
            true => Ok(Target::Existing(pid)),
            false => Err(Error::unrestorable(format!(
                "process {pid} has terminated, or its id is that of another process now"
            ))),
        }
    }
}

impl Kind for Pidfd {
    const NAME: &'static str = "pidfd";
    // Since Linux 6.9 each process has an inode for its pidfds; before, all pidfds have one inode.
    const SHARES_OBJECT: bool = true;

    fn claims(descriptor: &Descriptor<'_>) -> bool {
        (descriptor.link.0 == b"anon_inode:[pidfd]" || descriptor.link.0.starts_with(b"pidfd:["))
            && !descriptor.is_path()
    }

    fn capture(descriptor: &Descriptor<'_>) -> Result<Self> {
        let mut pid = parse(&descriptor.info)?;
        while pid > 0 {
            let stat = Stat::of(pid);
            // If fdinfo shows the same id before and after stat is read, stat is of that process.
            let now = parse(&descriptor.info_now()?)?;
            if let (true, Some(stat)) = (now == pid, stat) {
                let start = stat.field(22) as u64;
                let exit = stat.is_zombie().then(|| stat.field(52) as i32);
                let hidden = exit == Some(0) && !shows_exit_status(pid);
                if hidden {
                    let why = "its process has terminated, and the kernel does not show the exit \
                               status to this user: scan as root (CAP_SYS_PTRACE)";
                    descriptor.warn(why.to_owned());
                }
                return Ok(Pidfd { pid, start, exit: exit.filter(|_| !hidden) });
            }
            if now == pid {
                return Err(Error::unrestorable(
                    "its process is not visible in /proc (mount option hidepid)",
                ));
            }
            pid = now;
        }
        let exit = descriptor.copy.as_ref().and_then(|copy| process::exit_status(copy.as_fd()));
        Ok(Pidfd { pid, start: 0, exit })
    }

    fn validate(&self, _: &OpenFile) -> Result<()> {
        let pid = self.pid;
        if pid < -1 {
            return Err(Error::malformed(format!("its process id {pid} is not valid")));
        }
        if pid > 0 && self.start == 0 {
            return Err(Error::malformed(format!("its process {pid} has no start time")));
        }
        if self.exit.is_some_and(|status| !process::is_exit_status(status)) {
            return Err(Error::malformed("its exit status is not one of wait(2)"));
        }
        Ok(())
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        self.target(file, cx).map(drop)
    }

    fn prerequisite(&self, _: &OpenFile) -> Prerequisite {
        Prerequisite::Processes
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        let status = match self.target(file, cx)? {
            Target::Existing(pid) => {
                let fd = process::open(pid, file.flags).at(|| "pidfd_open")?;
                return Ok(Opened::new(fd, 0));
            }
            Target::Terminated(status) => status,
        };
        let child = Ended::new(status).map_err(Error::no_process)?;
        let mut opened = Opened::new(child.open(file.flags).at(|| "pidfd_open")?, 0);
        // All pidfds of the process are opened now: pidfd_open(2) fails once the process is reaped.
        for peer in cx.others_of_object(file) {
            let same_process =
                cx.image.record_as(peer.id).is_some_and(|other: &Pidfd| other == self);
            if same_process && !cx.held.contains_key(&peer.id) {
                let fd = child.open(peer.flags).at(|| "pidfd_open")?;
                opened.others.push(OpenedTogether { file: peer.id, fd, flags: 0 });
            }
        }
        let Pidfd { pid: _, start: _, exit } = *self;
        let ended = child.reap().at(|| "wait")?;
        if exit.is_some_and(|exit| exit != ended) {
            let name = crate::text::escape(&file.link.0).into_owned();
            let why = format!("its process had the status {status:#x}, its substitute {ended:#x}");
            cx.warnings.push(format!("{name}: {why}"));
        }
        Ok(opened)
    }

    fn substitute(&self, file: &OpenFile) -> Result<OwnedFd> {
        let child = Ended::new(0).map_err(Error::no_process)?;
        child.open(file.flags).at(|| "pidfd_open")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pid_line_is_parsed() {
        let pid = |text: &str| parse(&FdInfo::parse(text.as_bytes())).ok();
        assert_eq!(pid("pos:\t0\nPid:\t20721\nNSpid:\t20721\t7\n"), Some(20721));
        assert_eq!(pid("Pid:\t-1\nNSpid:\t-1\n"), Some(-1));
        assert_eq!(pid("pos:\t0\n"), None);
    }
}
