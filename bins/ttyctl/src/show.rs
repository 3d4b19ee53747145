//! ttyctl show: the session, the openers and the settings of a terminal.

use crate::TOOL;
use crate::terminal::NamedTerminal;
use argh::{ArgsInfo, FromArgs};
use fdkit::cli::{self, Arg};
use fdkit::error::{At, Error, Result, Status};
use fdkit::image::Inode;
use fdkit::proc::Process;
use fdkit::proc::openers::{self, Opener};
use fdkit::sys::{device, tty};
use fdkit::terminal::{self, Settings};
use fdkit::text::escape;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::Write;
use std::os::fd::OwnedFd;

/// Show a terminal: session, foreground group, processes that have it open, settings and size.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "show")]
pub(crate) struct Args {
    /// print JSON
    #[argh(switch, short = 'J')]
    json: bool,
    /// a terminal, or a process for its controlling terminal; the caller's controlling terminal if left out
    #[argh(positional, arg_name = "PID|TTY")]
    of: Option<Arg>,
}

/// All that is shown of a terminal.
struct View {
    name: String,
    device: (u32, u32),
    holders: Vec<Opener>,
    settings: Option<Settings>,
    /// What could not be found out, as lines for the user.
    lost: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<Status> {
    let pid = args.of.as_ref().and_then(|word| word.as_os_str().to_str()?.parse::<i32>().ok());
    let view = match pid {
        Some(pid) => of_process(pid).at(|| pid.to_string())?,
        None => of_terminal(&NamedTerminal::find(args.of.as_ref())?),
    };
    let text = match args.json {
        true => format!("{:#}\n", view.json()),
        false => view.text(),
    };
    cli::text_stdout()?.write_all(text.as_bytes())?;
    for line in &view.lost {
        TOOL.warn(format_args!("{}: {line}", view.name));
    }
    Ok(if view.lost.is_empty() { Status::Done } else { Status::No })
}

fn of_process(pid: i32) -> Result<View> {
    let task = Process::open(pid).and_then(|it| it.task(0, None, &mut TOOL.messages()))?;
    let Some(terminal) = &task.terminal else {
        return Err(Error::new(Status::No, "the process has no controlling terminal"));
    };
    let device = device::numbers(terminal.device);
    let node = terminal::slave_index(device)
        .and_then(|index| terminal::slave_node(pid, b"/dev/ptmx", index));
    Ok(view(terminal::name(device), device, node.as_ref(), None))
}

fn of_terminal(terminal: &NamedTerminal) -> View {
    // /dev/console and /dev/tty lead to another device, which TIOCGDEV tells of the open terminal.
    let open = || terminal.open(OFlag::O_RDONLY).ok();
    let device = match terminal.device {
        (5, _) => open().and_then(|fd| tty::device(&fd).ok()).unwrap_or(terminal.device),
        device => device,
    };
    let node = Some(&terminal.node).filter(|_| terminal::slave_index(device).is_some());
    view(terminal.shown(), device, node, Some(terminal))
}

fn view(
    name: String,
    device: (u32, u32),
    node: Option<&Inode>,
    terminal: Option<&NamedTerminal>,
) -> View {
    let (holders, failed) = openers::of_terminal(device, node.map(|it| it.dev));
    let failed = failed.map(|why| format!("not all that have it open are shown: {why}"));
    let mut lost: Vec<String> = failed.into_iter().collect();
    let mut read = |fd: nix::Result<Option<OwnedFd>>| {
        let read = fd.and_then(|fd| fd.map(Settings::read).transpose());
        read.unwrap_or_else(|errno| {
            // A terminal that has hung up has no settings.
            if errno != Errno::EIO || !holders.is_empty() {
                lost.push(format!("its settings cannot be read: {}", errno.desc()));
            }
            None
        })
    };
    let mut settings = read(openers::copy(&holders));
    // If nobody else has a slave open, opening and closing it would show at its master as a hang-up.
    let safe = terminal::slave_index(device).is_none() || holders.iter().any(|it| it.member);
    if settings.is_none() && safe {
        let fd = terminal.and_then(|terminal| terminal.open(OFlag::O_RDONLY).ok());
        settings = read(Ok(fd));
    }
    View { name, device, holders, settings, lost }
}

impl View {
    /// The processes of the session whose controlling terminal it is.
    fn members(&self) -> impl Iterator<Item = &Opener> {
        self.holders.iter().filter(|it| it.member)
    }

    fn session(&self) -> Option<i32> {
        self.members().next().map(|it| it.sid)
    }

    fn leader(&self) -> Option<&Opener> {
        self.members().find(|it| it.pid == it.sid)
    }

    fn foreground(&self) -> Option<i32> {
        self.members().next().map(|it| it.foreground).filter(|&group| group > 0)
    }

    /// The command line of the leader of the foreground group, or of another member of the group.
    fn command(&self) -> Option<String> {
        let group = self.foreground()?;
        let members = || self.members().filter(|it| it.pgid == group);
        let one = members().find(|it| it.pid == group).or_else(|| members().next())?;
        let args = std::fs::read(format!("/proc/{}/cmdline", one.pid)).unwrap_or_default();
        let args = args.strip_suffix(b"\0").unwrap_or(&args);
        let words: Vec<_> = args.split(|&byte| byte == 0).map(escape).collect();
        let line = words.join(" ");
        Some(if line.is_empty() { escape(&one.comm.0).into_owned() } else { line })
    }

    fn masters(&self) -> impl Iterator<Item = &Opener> {
        self.holders.iter().filter(|it| !it.masters.is_empty())
    }

    fn json(&self) -> Value {
        let holder = |it: &Opener| {
            json!({
                "pid": it.pid, "comm": escape(&it.comm.0), "sid": it.sid, "pgid": it.pgid,
                "member": it.member, "foreground": it.member && Some(it.pgid) == self.foreground(),
                "fds": it.fds, "masters": it.masters,
            })
        };
        json!({
            "terminal": self.name, "device": [self.device.0, self.device.1],
            "session": self.session(),
            "leader": self.leader().map(|it| escape(&it.comm.0)),
            "foreground": self.foreground(), "command": self.command(),
            "size": self.settings.as_ref().map(|it| json!({
                "rows": it.size[0], "columns": it.size[1], "x": it.size[2], "y": it.size[3],
            })),
            "settings": self.settings.as_ref().map(|it| it.line.stty_arguments()),
            "discipline": self.settings.as_ref().map(|it| it.discipline),
            "locked": self.settings.as_ref().map(|it| it.locked.is_some()),
            "holders": self.holders.iter().map(holder).collect::<Vec<_>>(),
        })
    }

    fn text(&self) -> String {
        let mut out = String::new();
        let mut row = |name: &str, value: String| {
            let _ = writeln!(out, "{name:<11} {value}");
        };
        row("terminal", self.name.clone());
        match (self.session(), self.leader()) {
            (Some(sid), Some(leader)) => {
                row("session", format!("{sid} {}", escape(&leader.comm.0)))
            }
            (Some(sid), None) => row("session", format!("{sid}, its leader is gone")),
            (None, _) => row("session", "none visible".to_owned()),
        }
        if let Some(group) = self.foreground() {
            let command = self.command().unwrap_or("(gone)".to_owned());
            row("foreground", format!("{group} {command}"));
        }
        match &self.settings {
            Some(settings) => {
                let [rows, columns, ..] = settings.size;
                row("size", format!("{rows} rows, {columns} columns"));
                let unusual = settings.line.stty_arguments();
                let shown = match unusual.is_empty() {
                    true => "those of a new terminal".to_owned(),
                    false => unusual.join(" "),
                };
                row("settings", shown);
                if settings.locked.is_some() {
                    row("", "some settings are locked (TIOCSLCKTRMIOS)".to_owned());
                }
                if settings.discipline != 0 {
                    row("discipline", settings.discipline.to_string());
                }
            }
            None => row(
                "settings",
                "unknown: this user cannot read them, or reading them would be noticed".to_owned(),
            ),
        }
        for it in self.masters() {
            let numbers = list(Some(&it.masters));
            row("master", format!("{} {}, descriptor {numbers}", it.pid, escape(&it.comm.0)));
        }
        let open = |it: &&Opener| it.member || it.fds.as_ref().is_none_or(|fds| !fds.is_empty());
        let rows: Vec<&Opener> = self.holders.iter().filter(open).collect();
        if !rows.is_empty() {
            let _ =
                writeln!(out, "{:>8} {:>8} {:>8}    {:<12} COMMAND", "PID", "SID", "PGID", "FD");
        }
        for it in rows {
            let mark = match it.member {
                true if Some(it.pgid) == self.foreground() => '+',
                true => ' ',
                false => '-',
            };
            let (fds, comm) = (list(it.fds.as_ref()), escape(&it.comm.0));
            let _ = writeln!(
                out,
                "{:>8} {:>8} {:>8} {mark}  {fds:<12} {comm}",
                it.pid, it.sid, it.pgid
            );
        }
        out
    }
}

/// Descriptor numbers as `0-2,7`; `?` where they are not known, `-` where there are none.
fn list(fds: Option<&Vec<i32>>) -> String {
    let Some(fds) = fds else { return "?".to_owned() };
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for &fd in fds {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == fd => *last = fd,
            _ => runs.push((fd, fd)),
        }
    }
    let run = |&(first, last): &(i32, i32)| match last - first {
        0 => first.to_string(),
        _ => format!("{first}-{last}"),
    };
    match runs.is_empty() {
        true => "-".to_owned(),
        false => runs.iter().map(run).collect::<Vec<_>>().join(","),
    }
}
