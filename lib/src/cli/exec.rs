//! Chain loading: the tool becomes COMMAND.

use super::Tool;
use crate::sys::start;
use crate::text::escape;
use nix::errno::Errno;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

impl Tool {
    /// Becomes COMMAND with this environment; returns only if that failed.
    ///
    /// COMMAND is looked up in our own PATH, and gets SIGPIPE as our caller had it. The failure is
    /// said as `name: COMMAND: reason` on `err_fd`, since 2 may by then be COMMAND's, and is 127 if
    /// there is no such program, else 126. Source: execvpe(3), env(1).
    pub fn exec(
        &self,
        command: &[OsString],
        env: &[(OsString, OsString)],
        err_fd: Option<BorrowedFd>,
    ) -> ExitCode {
        let Some(file) = command.first() else {
            return self.exec_failed(OsStr::new("COMMAND"), Errno::ENOENT, err_fd);
        };
        match exec(file, command, env) {
            Ok(never) => match never {},
            Err(errno) => self.exec_failed(file, errno, err_fd),
        }
    }

    fn exec_failed(&self, file: &OsStr, errno: Errno, err_fd: Option<BorrowedFd>) -> ExitCode {
        let message = format!("{}: {}", escape(file.as_bytes()), errno.desc());
        match err_fd {
            Some(fd) => self.warn_to(fd, message),
            None => self.warn(message),
        }
        ExitCode::from(if errno == Errno::ENOENT { 127 } else { 126 })
    }
}

/// execvpe(3) with the strings of an `OsString` world.
fn exec(
    file: &OsStr,
    command: &[OsString],
    env: &[(OsString, OsString)],
) -> nix::Result<std::convert::Infallible> {
    // Of words of our own command line none can hold a NUL; of an image's, one could.
    let c = |bytes: Vec<u8>| CString::new(bytes).map_err(|_| Errno::EINVAL);
    let file = c(file.as_bytes().to_vec())?;
    let args = command.iter().map(|arg| c(arg.as_bytes().to_vec()));
    let args = args.collect::<nix::Result<Vec<_>>>()?;
    let env = env.iter().map(|(name, value)| c([name.as_bytes(), b"=", value.as_bytes()].concat()));
    let env = env.collect::<nix::Result<Vec<_>>>()?;
    start::sigpipe_as_inherited();
    let failed = nix::unistd::execvpe(&file, &args, &env);
    // A message that nobody reads must not turn 127 into a death by SIGPIPE.
    start::sigpipe_ignored();
    failed
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
