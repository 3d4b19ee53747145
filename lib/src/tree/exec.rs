//! What a task does after the restore: it runs a program, or holds its descriptors.

use super::state::{GONE_ON, Mode, PATIENCE, TreeRestore};
use crate::error::Result;
use crate::image::Bytes;
use crate::plan::Plan;
use crate::sys::fork::{self};
use crate::sys::{self, credentials};
use crate::text::escape;
use nix::errno::Errno;
use nix::unistd::getppid;
use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

impl TreeRestore<'_> {
    /// Puts back what is not in a table, and holds, or runs its command.
    pub(super) fn go_on(&self, at: usize, cloexec: &[RawFd]) -> Result<Infallible> {
        let task = &self.tree.image.tasks[at];
        let command = match (self.is_given(at), self.mode.respawn) {
            (true, _) => Some(Program::new(None, self.mode.command.iter().map(|it| it.as_bytes()))),
            (false, true) => {
                // By now the path starts at its own root.
                let exe = task.exe.as_ref().and_then(|exe| match &task.root {
                    Some(root) if root.0 != b"/" => below(&exe.0, &root.0).map(<[u8]>::to_vec),
                    _ => Some(self.place(&exe.0).into_os_string().into_vec()),
                });
                Some(Program::new(exe, task.args.iter().map(|arg| arg.0.as_slice())))
            }
            (false, false) => None,
        };
        let Some(command) = command else {
            if let Some(title) = &self.title {
                title.set(&format!("fdrestore: holding {}", task.pid));
            }
            // Others wait for all, so it says so before it stops.
            self.reached(at, GONE_ON);
            if task.stopped {
                self.stop(at)?;
            }
            if self.may_outlive(at) {
                while getppid().as_raw() == self.parent(at) {
                    std::thread::sleep(PATIENCE);
                }
                fork::end(1)
            }
            loop {
                nix::unistd::pause();
            }
        };
        if self.stats_page.is_some() {
            self.arrive(at, GONE_ON);
        }
        credentials::die_with_parent(false)?;
        let cloexec: Vec<String> = cloexec.iter().map(ToString::to_string).collect();
        if task.stopped {
            self.stop(at)?;
        }
        let awaited = self.await_job(at);
        sys::start::sigpipe_as_inherited();
        if let Err(why) = awaited {
            let line = format!("fdrestore: task {}: {why}\n", task.pid);
            let _ = nix::unistd::write(std::io::stderr(), line.as_bytes());
        }
        let why = command.run(&cloexec);
        let line = format!("fdrestore: task {}: {}: {}\n", task.pid, command.name(), why.desc());
        let _ = nix::unistd::write(std::io::stderr(), line.as_bytes());
        fork::end(if why == Errno::ENOENT { 127 } else { 126 })
    }
}

/// A program to be run.
pub(super) struct Program {
    /// Its path; the first argument is looked up if there is none.
    pub(super) path: Option<CString>,
    pub(super) args: Vec<CString>,
}

impl Program {
    pub(super) fn new<'w>(path: Option<Vec<u8>>, args: impl Iterator<Item = &'w [u8]>) -> Program {
        let word = |bytes: &[u8]| {
            CString::new(bytes.split(|&byte| byte == 0).next().unwrap_or_default())
                .unwrap_or_default()
        };
        Program { path: path.map(|path| word(&path)), args: args.map(word).collect() }
    }

    pub(super) fn name(&self) -> String {
        let name = self.path.as_ref().or(self.args.first());
        escape(name.map_or(&[], |name| name.to_bytes())).into_owned()
    }

    /// Becomes it; returns only if that failed.
    pub(super) fn run(&self, cloexec: &[String]) -> Errno {
        let mut env: Vec<CString> = std::env::vars_os()
            .filter(|(key, _)| key != "FDRESTORE_CLOEXEC")
            .filter_map(|(key, value)| {
                CString::new([key.as_bytes(), b"=", value.as_bytes()].concat()).ok()
            })
            .collect();
        if !cloexec.is_empty() {
            env.extend(CString::new(format!("FDRESTORE_CLOEXEC={}", cloexec.join(","))).ok());
        }
        let done = match (&self.path, self.args.first()) {
            (Some(path), _) => nix::unistd::execve(path, &self.args, &env),
            (None, Some(first)) => nix::unistd::execvpe(first, &self.args, &env),
            (None, None) => Err(Errno::ENOENT),
        };
        match done {
            Ok(never) => match never {},
            Err(errno) => errno,
        }
    }
}

/// Whether a program wrote over its arguments, as setproctitle(3) of nginx, postgres and sshd does:
/// one text of several words, which is not its name, and nothing but blank memory behind it.
pub(super) fn is_title(args: &[Bytes], exe: &[u8]) -> bool {
    let Some((Bytes(first), rest)) = args.split_first() else { return false };
    rest.iter().all(|arg| arg.0.is_empty()) && first.contains(&b' ') && !exe.ends_with(first)
}

/// An absolute path as one whose root directory is this one sees it.
pub(super) fn below<'p>(path: &'p [u8], root: &[u8]) -> Option<&'p [u8]> {
    path.strip_prefix(root).filter(|rest| rest.starts_with(b"/"))
}

pub(super) const LEFT: &str = "POSIX locks of a table that is shared end with an exec";

/// Whether a table has POSIX locks that would not stay with its tasks: whoever execs leaves a table
/// that is shared, and its locks with it.
pub(super) fn leaves_locks(mode: &Mode, sharers: u32, plan: &Plan<'_>) -> bool {
    let mut locks = plan.locks(&plan.steps);
    !mode.holds() && sharers > 1 && locks.any(|(.., of_table)| of_table)
}
