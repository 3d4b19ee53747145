//! Chain loading: the tool becomes COMMAND, as env(1) and nice(1) do.

use super::Tool;
use crate::error::Error;
use crate::sys::start;
use crate::text::escape;
use nix::errno::Errno;
use std::ffi::{CString, OsStr, OsString};
use std::fmt::Display;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

/// The exit status of a chain loader that fails before COMMAND runs: env(1), nice(1), timeout(1).
pub const FAILED_BEFORE_COMMAND: u8 = 125;
/// COMMAND was found and could not be executed.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

impl Tool {
    /// Becomes COMMAND with this environment; returns only if that failed.
    ///
    /// COMMAND is looked up in the PATH of this process, and SIGPIPE is set as the caller had it.
    /// A failure is written to `stderr`, or to descriptor 2 where none is given, and is 127 if there
    /// is no such program, else 126. Source: execvpe(3), env(1).
    pub fn exec(
        &self,
        command: &[OsString],
        env: &[(OsString, OsString)],
        stderr: Option<BorrowedFd>,
    ) -> ExitCode {
        let file = command.first().map_or(OsStr::new("COMMAND"), OsString::as_os_str);
        let errno = match command.is_empty() {
            true => Errno::ENOENT,
            false => exec(file, command, env),
        };
        self.warn_where(stderr, format_args!("{}: {}", escape(file.as_bytes()), errno.desc()));
        ExitCode::from(if errno == Errno::ENOENT { NOT_FOUND } else { NOT_EXECUTABLE })
    }

    /// Writes a failure that came before COMMAND, with its status, and returns 125.
    ///
    /// The message goes to `stderr`, or to descriptor 2 where none is given.
    pub fn failed_before_command(&self, why: &Error, stderr: Option<BorrowedFd>) -> ExitCode {
        self.warn_where(stderr, format_args!("{why} (status {})", why.status() as u8));
        ExitCode::from(FAILED_BEFORE_COMMAND)
    }

    fn warn_where(&self, stderr: Option<BorrowedFd>, message: impl Display) {
        match stderr {
            Some(fd) => crate::messages::write(fd, self.name(), &message),
            None => self.warn(message),
        }
    }
}

/// execvpe(3); returns only if it failed.
fn exec(file: &OsStr, command: &[OsString], env: &[(OsString, OsString)]) -> Errno {
    // No word of a command line holds a NUL; a word of an image could.
    let c = |bytes: Vec<u8>| CString::new(bytes).map_err(|_| Errno::EINVAL);
    let pair =
        |(name, value): &(OsString, OsString)| [name.as_bytes(), b"=", value.as_bytes()].concat();
    let args = command.iter().map(|arg| c(arg.as_bytes().to_vec()));
    let strings = || -> nix::Result<_> {
        let env = env.iter().map(|variable| c(pair(variable)));
        Ok((
            c(file.as_bytes().to_vec())?,
            args.collect::<nix::Result<Vec<_>>>()?,
            env.collect::<nix::Result<Vec<_>>>()?,
        ))
    };
    let (file, args, env) = match strings() {
        Ok(strings) => strings,
        Err(errno) => return errno,
    };
    start::sigpipe_as_inherited();
    let Err(errno) = nix::unistd::execvpe(&file, &args, &env);
    // If nobody reads the message, the exit status must still be 127 and not that of SIGPIPE.
    start::sigpipe_ignored();
    errno
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    const TOOL: Tool = Tool::new("tool");

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn a_command_that_cannot_run_says_why() {
        let (from, to) = nix::unistd::pipe().unwrap();
        let code = TOOL.exec(&words("/no/such"), &[], Some(to.as_fd()));
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(127)));
        let code = TOOL.exec(&words("/dev/null"), &[], Some(to.as_fd()));
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(126)));
        let nul = [(OsString::from("A"), OsString::from("\0"))];
        let code = TOOL.exec(&words("/bin/true"), &nul, Some(to.as_fd()));
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(126)));
        let mut buf = [0; 200];
        let n = nix::unistd::read(&from, &mut buf).unwrap();
        let lines = "tool: /no/such: No such file or directory\n\
                     tool: /dev/null: Permission denied\n\
                     tool: /bin/true: Invalid argument\n";
        assert_eq!(std::str::from_utf8(&buf[..n]).unwrap(), lines);
        drop(from);
        let code = TOOL.exec(&words("/no/such"), &[], Some(to.as_fd()));
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(127)));
    }
}
