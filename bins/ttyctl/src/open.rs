//! ttyctl open: COMMAND in a session of its own, with a terminal as its controlling one.

use crate::place::Place;
use crate::relay;
use argh::{ArgsInfo, FromArgs};
use fdkit::cli::{Arg, Outcome, Tool};
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
    /// a fresh pseudo terminal, shown on the caller's
    #[argh(switch)]
    new: bool,
    /// take the terminal from the session that has it
    #[argh(switch)]
    steal: bool,
    /// the terminal
    #[argh(positional, arg_name = "TTY")]
    tty: Option<Arg>,
}

/// What ends us: COMMAND, in a session of its own, would not hear of it.
pub(crate) const ENDING: [Signal; 4] =
    [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT];

pub(crate) fn run(tool: &Tool, args: &Args, command: &[OsString]) -> Result<Outcome> {
    if command.is_empty() {
        return Err(Error::misuse("COMMAND is not given; it goes after --"));
    }
    if args.new {
        if args.tty.is_some() || args.steal {
            return Err(Error::misuse("--new goes with neither TTY nor --steal"));
        }
        return relay::run(tool, command);
    }
    let Some(word) = &args.tty else {
        return Err(Error::misuse("which terminal? TTY is not given; --new makes one"));
    };
    let place = Place::find(Some(word))?;
    let terminal = place.open(OFlag::O_RDWR)?;
    // A process group leader, as a shell makes its jobs, can begin no session: setsid(2).
    if getpid() == getpgrp() {
        let mut signals = SigSet::empty();
        ENDING.iter().for_each(|&signal| signals.add(signal));
        signals.add(Signal::SIGCHLD);
        let before = signals.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)?;
        if let Some(child) = fork().at(|| "fork")? {
            drop(terminal);
            return watch(child, &signals).map(Outcome::from);
        }
        before.thread_set_mask()?;
    }
    begin(tool, terminal, args.steal, command, true).at(|| place.shown()).map(Outcome::from)
}

/// Begins the session and becomes COMMAND; returns only if that failed.
///
/// `aside` says failures of the exec where our stderr was, not on the terminal.
pub(crate) fn begin(
    tool: &Tool,
    terminal: OwnedFd,
    steal: bool,
    command: &[OsString],
    aside: bool,
) -> Result<ExitCode> {
    setsid().at(|| "setsid")?;
    ctty::take(terminal.as_fd(), steal)?;
    let err = match aside {
        true => Some(std::io::stderr().as_fd().try_clone_to_owned()?),
        false => None,
    };
    dup2_stdin(&terminal)?;
    dup2_stdout(&terminal)?;
    dup2_stderr(&terminal)?;
    drop(terminal);
    let env: Vec<_> = std::env::vars_os().collect();
    Ok(tool.exec(command, &env, err.as_ref().map(AsFd::as_fd)))
}

/// Waits for the child, and hands on what would have ended it in our place.
fn watch(child: Pid, signals: &SigSet) -> Result<ExitCode> {
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

/// The status that a shell would make of it, once the child has ended.
pub(crate) fn exit_code(status: WaitStatus) -> Option<ExitCode> {
    match status {
        WaitStatus::Exited(_, code) => Some(ExitCode::from(code as u8)),
        WaitStatus::Signaled(_, signal, _) => Some(ExitCode::from(128 + signal as u8)),
        _ => None,
    }
}
