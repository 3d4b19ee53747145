//! pidfd_open(2): a process.

use crate::driver::{Bad, Difference, Fixture, info, ready};
use crate::spec::{At, Result, Spec, Stop};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::PollFlags;
use nix::sys::signal::kill;
use nix::sys::stat::fstat;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use std::os::fd::OwnedFd;

pub(crate) struct Pidfd;

impl Fixture for Pidfd {
    const NAME: &'static str = "pidfd";
    const ABOUT: &'static str = "a process: mkfd itself if none is named";
    const KEYS: &'static [(&'static str, &'static str)] = &[
        ("pid", "that process"),
        ("dead", "a child that has ended"),
        ("zombie", "one that was not waited for"),
        ("exit", "how it ended, as wait(2) tells it: 256 times the status, or a signal"),
        ("two", "two descriptions of it"),
        ("thread", "PIDFD_THREAD"),
    ];
    const DIFFERENCES: &'static [Difference] = &[
        ("pidfd@3", "pidfd@3:thread", "F_GETFL"),
        ("pidfd@3", "pidfd@3:dead", "readable is false"),
        ("pidfd@3", "pidfd@3:pid=1", "process is"),
        ("pidfd@3:dead", "pidfd@3", "a signal is Err(ESRCH)"),
        ("pidfd@3:dead,exit=9", "pidfd@3:dead,exit=256", "exit is 9"),
    ];

    fn arity(spec: &Spec) -> usize {
        if spec.has("two") { 2 } else { 1 }
    }

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        let (pid, child) = match spec.number("pid")? {
            Some(pid) => (pid as i32, None),
            None if spec.has("dead") || spec.has("zombie") => {
                let exit = spec.number("exit")?.unwrap_or(0) as i32;
                let child = sys::fork().at("fork")?.unwrap_or_else(|| sys::end(exit));
                (child, Some(Pid::from_raw(child)))
            }
            None => (std::process::id() as i32, None),
        };
        let open = |_| sys::pidfd(pid, spec.has("thread"));
        let opened: Result<Vec<OwnedFd>, Errno> = (0..Self::arity(spec)).map(open).collect();
        let opened = match opened {
            Err(Errno::EINVAL) => return Err(Stop::Cannot("no PIDFD_THREAD".into())),
            other => other.at("pidfd_open")?,
        };
        if let Some(child) = child.filter(|_| spec.has("dead")) {
            waitpid(child, None).at("wait")?;
        }
        if child.is_some() && !sys::becomes_readable(&opened[0], 5000).at("poll")? {
            return Err(Stop::Failed("the child does not end".into()));
        }
        Ok(opened)
    }

    fn flags(spec: &Spec, _: usize) -> OFlag {
        if spec.has("thread") { OFlag::O_RDWR | OFlag::O_EXCL } else { OFlag::O_RDWR }
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let own = i64::from(std::process::id());
        let dead = spec.has("dead");
        for &n in &spec.fds[..Self::arity(spec)] {
            let fd = sys::at(n)?;
            let pid = match spec.known_number("pid") {
                Some(pid) => pid as i64,
                None => own,
            };
            let pid = if dead { -1 } else { pid };
            bad.same("process", info(n, "Pid"), pid.to_string());
            bad.same("readable", ready(fd, PollFlags::POLLIN)?, dead);
            // Signal 0 succeeds if the process exists, or fails with EPERM, as that of kill(2).
            let reached = match dead {
                true => Err(Errno::ESRCH),
                false => kill(Pid::from_raw(pid as i32), None),
            };
            bad.same("a signal", sys::pidfd_signal(fd, 0), reached);
            if let (true, Some(told)) = (dead, sys::exit_status(fd)) {
                bad.same("exit", told, spec.known_number("exit").unwrap_or(0) as i32);
            }
        }
        if spec.has("two") {
            let inode = |n| sys::at(n).and_then(fstat).map(|stat| stat.st_ino);
            bad.same("second inode", inode(spec.fds[1]), inode(spec.fds[0]));
        }
        Ok(())
    }
}
