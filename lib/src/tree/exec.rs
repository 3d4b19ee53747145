//! The end of a restore: a task runs a program, or holds its descriptors.

use super::barrier::{POLL_INTERVAL, Stage};
use super::credentials::may_outlive_parent;
use super::state::{Mode, TreeRestore, other_root};
use crate::error::Result;
use crate::image::Bytes;
use crate::messages;
use crate::plan::Plan;
use crate::sys::{self, credentials, fork};
use crate::table::TOOL;
use crate::text::escape;
use nix::errno::Errno;
use nix::unistd::getppid;
use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Exit statuses of a program that cannot be run, as env(1) has them.
const NOT_EXECUTABLE: i32 = 126;
const NOT_FOUND: i32 = 127;

impl TreeRestore<'_> {
    /// Runs the program of a task, or holds its descriptors. `cloexec` are the numbers that were
    /// close-on-exec. It returns only to fail.
    pub(super) fn run_or_hold(&self, task: usize, cloexec: &[RawFd]) -> Result<Infallible> {
        match self.program(task) {
            Some(program) => self.run(task, &program, cloexec),
            None => self.hold_descriptors(task),
        }
    }

    /// The program that a task runs; none if it holds its descriptors.
    fn program(&self, task: usize) -> Option<Program> {
        let record = &self.tree.image.tasks[task];
        if self.runs_command(task) {
            return Some(Program::new(None, self.mode.command.iter().map(|it| it.as_bytes())));
        }
        if !self.mode.respawn {
            return None;
        }
        // By now the task has its own root directory, where paths start.
        let exe = record.exe.as_ref().and_then(|exe| match other_root(record) {
            Some(root) => below(&exe.0, root).map(<[u8]>::to_vec),
            None => Some(self.path(&exe.0).into_os_string().into_vec()),
        });
        Some(Program::new(exe, record.args.iter().map(|arg| arg.0.as_slice())))
    }

    /// Waits for signals, until the parent has ended or this process is killed.
    fn hold_descriptors(&self, task: usize) -> Result<Infallible> {
        let record = &self.tree.image.tasks[task];
        if let Some(title) = &self.title {
            title.set(&format!("fdrestore: holding {}", record.pid));
        }
        // All wait for this report, so that it comes before the task stops.
        self.state.reach(task, Stage::Released);
        if record.stopped {
            self.stop(task)?;
        }
        if let Some(parent) = self.tree.shape.nodes[task].parent {
            let parent = &self.tree.image.tasks[parent];
            if may_outlive_parent(&parent.credentials, &record.credentials) {
                while getppid().as_raw() == self.parent_pid(task) {
                    std::thread::sleep(POLL_INTERVAL);
                }
                fork::end(1)
            }
        }
        loop {
            nix::unistd::pause();
        }
    }

    fn run(&self, task: usize, program: &Program, cloexec: &[RawFd]) -> Result<Infallible> {
        if self.stats.is_some() {
            self.state.arrive(task, Stage::Released);
        }
        credentials::die_with_parent(false)?;
        let cloexec: Vec<String> = cloexec.iter().map(ToString::to_string).collect();
        if self.tree.image.tasks[task].stopped {
            self.stop(task)?;
        }
        let say = |line: String| {
            let line = format_args!("{}: {line}", self.state.name(task));
            messages::write(std::io::stderr().as_fd(), TOOL, &line);
        };
        let awaited = self.await_foreground_job(task);
        sys::start::sigpipe_as_inherited();
        if let Err(why) = awaited {
            say(why.to_string());
        }
        let why = program.execute(&cloexec);
        say(format!("{}: {}", program.name(), why.desc()));
        fork::end(if why == Errno::ENOENT { NOT_FOUND } else { NOT_EXECUTABLE })
    }
}

/// A program to run.
struct Program {
    /// Its path; without one the first argument is looked up in PATH.
    path: Option<CString>,
    args: Vec<CString>,
}

impl Program {
    /// Takes each word up to its first NUL.
    fn new<'w>(path: Option<Vec<u8>>, args: impl Iterator<Item = &'w [u8]>) -> Program {
        let word = |bytes: &[u8]| {
            CString::new(bytes.split(|&byte| byte == 0).next().unwrap_or_default())
                .unwrap_or_default()
        };
        Program { path: path.map(|path| word(&path)), args: args.map(word).collect() }
    }

    fn name(&self) -> String {
        let name = self.path.as_ref().or(self.args.first());
        escape(name.map_or(&[], |name| name.to_bytes())).into_owned()
    }

    /// Replaces this process by the program: execve(2). FDRESTORE_CLOEXEC names the descriptors
    /// that were close-on-exec. It returns only the error.
    fn execute(&self, cloexec: &[String]) -> Errno {
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

/// True if a program wrote a title over its arguments, as setproctitle(3) of nginx, postgres and
/// sshd does: one text of several words that is not its name, with nothing but NUL behind it.
pub(super) fn is_title(args: &[Bytes], exe: &[u8]) -> bool {
    let Some((Bytes(first), rest)) = args.split_first() else { return false };
    rest.iter().all(|arg| arg.0.is_empty()) && first.contains(&b' ') && !exe.ends_with(first)
}

/// An absolute path as a process with this root directory sees it; none if it is outside.
pub(super) fn below<'p>(path: &'p [u8], root: &[u8]) -> Option<&'p [u8]> {
    path.strip_prefix(root).filter(|rest| rest.starts_with(b"/"))
}

/// The reason why POSIX locks of a shared table cannot be restored.
pub(super) const LOCKS_LOST: &str = "POSIX locks of a table that is shared end with an exec";

/// True if a table has POSIX locks that its tasks would lose: an exec unshares the table, and the
/// locks stay with the table that nobody has any more (fcntl(2), execve(2)).
pub(super) fn loses_locks(mode: &Mode, sharers: u32, plan: &Plan<'_>) -> bool {
    let mut locks = plan.locks(&plan.steps);
    !mode.holds() && sharers > 1 && locks.any(|(.., of_table)| of_table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&[u8]]) -> Vec<Bytes> {
        words.iter().map(|word| Bytes::from(*word)).collect()
    }

    #[test]
    fn a_title_is_one_text_that_is_not_the_programs_name() {
        let exe = b"/usr/sbin/nginx";
        assert!(is_title(&args(&[b"nginx: master process", b"", b""]), exe));
        assert!(is_title(&args(&[b"sshd: user [priv]"]), b"/usr/sbin/sshd"));
        assert!(!is_title(&args(&[b"nginx", b"-g", b"daemon off;"]), exe));
        assert!(!is_title(&args(&[b"nginx"]), exe));
        assert!(!is_title(&args(&[b"two words", b"-x"]), exe));
        assert!(!is_title(&args(&[b"my program"]), b"/opt/my program"));
        assert!(!is_title(&[], exe));
    }

    #[test]
    fn a_path_is_below_a_root_only_as_a_whole_component() {
        assert_eq!(below(b"/srv/box/bin/sh", b"/srv/box"), Some(&b"/bin/sh"[..]));
        assert_eq!(below(b"/srv/boxes/bin/sh", b"/srv/box"), None);
        assert_eq!(below(b"/bin/sh", b"/srv/box"), None);
    }

    #[test]
    fn a_program_has_its_words_up_to_the_first_nul() {
        let program = Program::new(None, [&b"a\0b"[..], b"c d", b""].into_iter());
        let words: Vec<&[u8]> = program.args.iter().map(|word| word.to_bytes()).collect();
        assert_eq!(words, [&b"a"[..], b"c d", b""]);
        assert_eq!(program.name(), "a");
        let gone = Program::new(Some(b"/nonexistent/x".to_vec()), [&b"x"[..]].into_iter());
        assert_eq!((gone.name().as_str(), gone.execute(&[])), ("/nonexistent/x", Errno::ENOENT));
        assert_eq!(Program::new(None, [].into_iter()).execute(&[]), Errno::ENOENT);
    }
}
