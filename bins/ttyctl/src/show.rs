//! ttyctl show: the controlling terminal of a process, from /proc alone.

use argh::{ArgsInfo, FromArgs};
use fdkit::cli;
use fdkit::error::{At, Error, Result, Status};
use fdkit::proc::Process;
use fdkit::text::escape;
use std::io::Write;

/// Show the session, controlling terminal and foreground group of a process.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "show")]
pub(crate) struct Args {
    /// print JSON
    #[argh(switch, short = 'J')]
    json: bool,
    /// the process; the caller's parent if none is given
    #[argh(positional, arg_name = "PID")]
    pid: Option<i32>,
}

pub(crate) fn run(args: &Args) -> Result<Status> {
    let pid = args.pid.unwrap_or_else(|| std::os::unix::process::parent_id() as i32);
    let task = Process::open(pid).and_then(|it| it.task(0, None)).at(|| pid.to_string())?;
    let Some(terminal) = &task.terminal else {
        return Err(Error::new(Status::No, "it has no controlling terminal").at(pid.to_string()));
    };
    // proc_pid_stat(5): minor in bits 31-20 and 7-0, major in 15-8.
    let (major, minor) =
        (terminal.device >> 8 & 0xfff, terminal.device >> 12 & 0xfff00 | terminal.device & 0xff);
    let name = match major {
        136..=143 => format!("/dev/pts/{}", (major - 136) * 256 + minor),
        4 if minor < 64 => format!("/dev/tty{minor}"),
        _ => format!("char {major}:{minor}"),
    };
    let comm = escape(&task.comm.0);
    let group = terminal.foreground;
    let text = match args.json {
        true => format!(
            "{:#}\n",
            serde_json::json!({
                "pid": pid, "comm": comm, "terminal": name, "session": task.sid,
                "group": task.pgid, "foreground": group,
            })
        ),
        false => format!(
            "{pid} {comm}: terminal {name}, session {}, group {}, foreground group {group}\n",
            task.sid, task.pgid
        ),
    };
    cli::text_stdout()?.write_all(text.as_bytes())?;
    Ok(Status::Done)
}
