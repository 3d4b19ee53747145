//! ttyctl open: runs COMMAND in a new session with a given controlling terminal.

use crate::relay;
use crate::terminal::NamedTerminal;
use argh::{ArgsInfo, FromArgs};
use fdkit::cli::{Arg, Exit, Tool};
use fdkit::ctty;
use fdkit::error::{At, Error, Result};
use fdkit::sys::fork::fork;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, getpgrp, getpid, setsid};
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

/// Run COMMAND in a new session with a terminal as its controlling terminal and as 0, 1, 2: ttyctl open TTY -- COMMAND...
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "open")]
pub(crate) struct Args {
    /// use a new pseudo terminal, relayed to the caller's terminal
    #[argh(switch)]
    new: bool,
    /// take the terminal from the session that has it
    #[argh(switch)]
    steal: bool,
    /// the terminal
    #[argh(positional, arg_name = "TTY")]
    tty: Option<Arg>,
}

/// The signals that ttyctl forwards to COMMAND, which has a session of its own and so gets none from
/// the terminal of the caller.
pub(crate) const FORWARDED: [Signal; 4] =
    [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT];

pub(crate) fn run(tool: &Tool, args: &Args, command: &[OsString]) -> Result<Exit> {
    if command.is_empty() {
        return Err(Error::misuse("COMMAND is not given; put it after --"));
    }
    if args.new {
        if args.tty.is_some() || args.steal {
            return Err(Error::misuse("--new cannot be combined with TTY or --steal"));
        }
        return relay::run(tool, command);
    }
    let Some(word) = &args.tty else {
        return Err(Error::misuse("TTY is not given; name a terminal, or use --new"));
    };
    let named = NamedTerminal::find(Some(word))?;
    let terminal = named.open(OFlag::O_RDWR)?;
    // setsid(2) fails for the leader of a process group, as a job of a shell is; a child is none.
    if getpid() == getpgrp() {
        let mut signals = SigSet::empty();
        FORWARDED.iter().for_each(|&signal| signals.add(signal));
        signals.add(Signal::SIGCHLD);
        let before = signals.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)?;
        if let Some(child) = fork().at(|| "fork")? {
            drop(terminal);
            return wait_and_forward(child, &signals).map(Exit::from);
        }
        before.thread_set_mask()?;
    }
    let code = begin_session(tool, terminal, args.steal, command, true);
    code.at(|| named.shown()).map(Exit::from)
}

/// Begins the session and becomes COMMAND; returns only if that failed.
///
/// A failure of the exec is written to the stderr of the caller if `on_caller` is true, else to the
/// terminal.
pub(crate) fn begin_session(
    tool: &Tool,
    terminal: OwnedFd,
    steal: bool,
    command: &[OsString],
    on_caller: bool,
) -> Result<ExitCode> {
    setsid().at(|| "setsid")?;
    ctty::take(terminal.as_fd(), steal)?;
    let stderr = match on_caller {
        true => Some(std::io::stderr().as_fd().try_clone_to_owned()?),
        false => None,
    };
    dup2_stdin(&terminal)?;
    dup2_stdout(&terminal)?;
    dup2_stderr(&terminal)?;
    drop(terminal);
    let env: Vec<_> = std::env::vars_os().collect();
    Ok(tool.exec(command, &env, stderr.as_ref().map(AsFd::as_fd)))
}

/// Waits for the child, and passes on the signals that ttyctl gets for it.
fn wait_and_forward(child: Pid, signals: &SigSet) -> Result<ExitCode> {
    loop {
        match signals.wait()? {
            Signal::SIGCHLD => {
                let flags = nix::sys::wait::WaitPidFlag::WNOHANG;
                match waitpid(child, Some(flags)) {
                    Ok(status) => {
                        if let Some(code) = exit_code(status) {
                            return Ok(code);
                        }
                    }
                    Err(Errno::EINTR) => (),
                    Err(errno) => return Err(errno.into()),
                }
            }
            signal => drop(kill(child, signal)),
        }
    }
}

/// The exit status of a child that has ended, 128 and the signal if one ended it; none while it runs.
pub(crate) fn exit_code(status: WaitStatus) -> Option<ExitCode> {
    match status {
        WaitStatus::Exited(_, code) => Some(ExitCode::from(code as u8)),
        WaitStatus::Signaled(_, signal, _) => Some(ExitCode::from(128 + signal as u8)),
        _ => None,
    }
}
