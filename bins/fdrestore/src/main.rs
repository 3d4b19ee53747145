#![forbid(unsafe_code)]
//! fdrestore: recreates the descriptors of an image in a new command or a new tree of processes.

mod show;
mod stats;
mod tree;

use argh::{ArgsInfo, FromArgs};
use fdkit::cli::progress::ProgressReader;
use fdkit::cli::{self, Arg, Exit, FAILED_BEFORE_COMMAND, ImageInput, Tool, units};
use fdkit::error::{At, Error, Result, Status};
use fdkit::kind::DecodedImage;
use fdkit::kind::context::Changed;
use fdkit::placement::Placement;
use fdkit::plan::{Inherit, Missing, Plan, RestoreOptions};
use fdkit::sys::memory::map_sealed;
use fdkit::table::command::restore;
use fdkit::table::stats::Meter;
use nix::libc;
use std::ffi::OsString;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;

/// Recreate the file descriptors of an image in a new command, or in a tree of processes: fdrestore [OPTIONS] [-- COMMAND...]
#[derive(FromArgs, ArgsInfo)]
struct Args {
    /// the image; stdin if - or left out
    #[argh(option, short = 'i', arg_name = "IMAGE")]
    image: Option<Arg>,
    /// the task whose table is restored (default: the first)
    #[argh(option, arg_name = "PID")]
    task: Option<i32>,
    /// create all processes of the image; each one holds its descriptors
    #[argh(switch)]
    tree: bool,
    /// with --tree: each process runs its program again
    #[argh(switch)]
    respawn: bool,
    /// with --tree: each process gets its old process id, or all is refused
    #[argh(switch)]
    same_pids: bool,
    /// where fdrestore places its own descriptors during the restore; see fdkit(7)
    #[argh(option, arg_name = "rlimit|task|late|tight", default = "Placement::Tight")]
    placement: Placement,
    /// use the caller's descriptor FD for KEY: the text of readlink, or FD or PID:FD of the image; a bare list (0,1,2) keeps the caller's own
    #[argh(option, arg_name = "KEY=FD")]
    inherit: Vec<Arg>,
    /// for a descriptor that cannot be restored: fail, put /dev/null there, or skip it
    #[argh(option, arg_name = "fail|null|skip", default = "Missing::Fail")]
    missing: Missing,
    /// for a file that has changed since the scan: fail, warn or ignore it
    #[argh(option, arg_name = "fail|warn|ignore", default = "Changed::Warn")]
    changed: Changed,
    /// open all paths below DIR
    #[argh(option, arg_name = "DIR")]
    root: Option<Arg>,
    /// take the controlling terminal from the session that has it
    #[argh(switch)]
    steal: bool,
    /// print system calls, dups and table sizes of the restore to stderr
    #[argh(option, arg_name = "text|json")]
    stats: Option<stats::Format>,
    /// print the plan and restore nothing
    #[argh(switch, short = 'n')]
    dry_run: bool,
    /// print the plan as JSON
    #[argh(switch, short = 'J')]
    json: bool,
}

const TOOL: Tool = Tool::chain("fdrestore").optional(&[("stats", "text")]);

fn main() -> ExitCode {
    TOOL.main(run)
}

fn run(tool: &Tool, args: Args, command: Vec<OsString>) -> Result<Exit> {
    if !args.tree && (args.respawn || args.same_pids) {
        return Err(Error::misuse("--respawn and --same-pids need --tree"));
    }
    if args.tree && args.task.is_some() {
        return Err(Error::misuse(
            "--task cannot be combined with --tree, which restores all tasks",
        ));
    }
    if command.is_empty() && !args.dry_run && !args.tree {
        return Err(Error::misuse("COMMAND is not given; put it after --"));
    }
    if args.json && !args.dry_run {
        return Err(Error::misuse("--json needs --dry-run, since it prints the plan"));
    }
    if args.stats.is_some() && args.dry_run {
        return Err(Error::misuse(
            "--stats cannot be combined with --dry-run, which restores nothing",
        ));
    }
    let inherit = args.inherit.iter().map(inherit).collect::<Result<Vec<_>>>()?.concat();
    let options = RestoreOptions {
        task: args.task,
        missing: args.missing,
        changed: args.changed,
        inherit,
        steal: args.steal,
        placement: args.placement,
    };
    let input = ImageInput::new(args.image.as_ref());
    let name = || input.to_string();
    let mut spool = input.spool_sealed(tool, "use a pipe or -i IMAGE")?;
    let image = DecodedImage::load(ProgressReader::new(tool.name(), &mut spool)).at(name)?;
    if image.head.passive {
        tool.warn(
            "the image was made with --passive: what descriptors shared, they no longer share; \
             scan without --passive to keep it",
        );
    }
    let root = match &args.root {
        Some(path) => {
            let mut how = std::fs::OpenOptions::new();
            let dir =
                how.read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(path.as_path());
            Some(OwnedFd::from(dir.at(|| path.to_string())?))
        }
        None => None,
    };
    if args.tree {
        return tree::restore(tool, &args, &image, &options, spool, root, command);
    }
    let plan =
        Plan::new(&image, &options, root.as_ref().map(AsFd::as_fd), args.dry_run).at(name)?;
    if args.dry_run {
        cli::text_stdout()?.write_all(show::plan(&plan, &options, args.json)?.as_bytes())?;
        plan.refuse(&mut |line| tool.warn(line))?;
        return Ok(Status::Done.into());
    }
    plan.refuse(&mut |line| tool.warn(line))?;
    let source = map_sealed(spool.as_fd()).at(|| "map the image")?;
    drop(spool);
    let counter = args.stats.as_ref().map(|_| stats::count(tool)).transpose()?;
    let mut meter = counter.as_ref().map(|counter| Meter::new(Some(counter)));
    let (err, mut restored) = restore(&plan, &options, source, root, meter.as_mut());
    if let (Some(counter), Some(meter), Some(format)) = (&counter, meter, &args.stats) {
        restored =
            restored.and_then(|it| stats::of_one(&plan, meter, counter, *format).map(|()| it));
    }
    drop(counter);
    let cloexec = match restored {
        Ok(cloexec) => cloexec,
        Err(why) => {
            // Where the caller had closed stderr, descriptor 2 is COMMAND's, and nothing is written.
            let code = match &err {
                Some(err) => tool.failed_before_command(&why, Some(err.as_fd())),
                None => ExitCode::from(FAILED_BEFORE_COMMAND),
            };
            return Ok(code.into());
        }
    };
    let mut env: Vec<(OsString, OsString)> =
        std::env::vars_os().filter(|(key, _)| key != "FDRESTORE_CLOEXEC").collect();
    if !cloexec.is_empty() {
        let list: Vec<String> = cloexec.iter().map(ToString::to_string).collect();
        env.push(("FDRESTORE_CLOEXEC".into(), list.join(",").into()));
    }
    Ok(tool.exec(&command, &env, err.as_ref().map(AsFd::as_fd)).into())
}

/// Parses the value of --inherit: `KEY=FD`, or a list of numbers of the caller's descriptors.
fn inherit(word: &Arg) -> Result<Vec<Inherit>> {
    let bytes = word.as_os_str().as_bytes();
    let fd = |word: &[u8]| units::fd(word).at(|| "--inherit");
    match bytes.iter().rposition(|&byte| byte == b'=') {
        Some(at) => Ok(vec![Inherit::Key(bytes[..at].to_vec(), fd(&bytes[at + 1..])?)]),
        None => bytes
            .split(|&byte| byte == b',')
            .map(|word| Ok(Inherit::SameNumber(fd(word)?)))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inherit_takes_a_key_or_a_list() {
        let parse = |word: &str| inherit(&Arg::from(OsString::from(word)));
        let key = |key: &str, fd| Ok(vec![Inherit::Key(key.into(), fd)]);
        assert_eq!(parse("pipe:[7]=3"), key("pipe:[7]", 3));
        assert_eq!(parse("/a=b=4"), key("/a=b", 4));
        assert_eq!(parse("0,2"), Ok(vec![Inherit::SameNumber(0), Inherit::SameNumber(2)]));
        let why = parse("0,x").unwrap_err().to_string();
        assert_eq!(why, "--inherit: 'x' is not a descriptor number");
    }

    #[test]
    fn completions_are_those_of_the_options() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/completions");
        fdkit_completions::hold::<super::Args>(&super::TOOL, dir);
    }
}
