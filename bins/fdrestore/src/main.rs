#![forbid(unsafe_code)]
//! fdrestore: an image becomes the descriptors of a new command, or of a tree of processes.

mod show;
mod stats;
mod tree;

use argh::{ArgsInfo, FromArgs};
use fdkit::cli::progress::Reading;
use fdkit::cli::{self, Arg, FAILED_BEFORE_COMMAND, ImageInput, Outcome, Tool};
use fdkit::error::{At, Error, Result, Status};
use fdkit::kind::DecodedImage;
use fdkit::kind::context::Changed;
use fdkit::placement::Placement;
use fdkit::plan::{Inherit, Missing, Plan, RestoreOptions};
use fdkit::sys::memory::map_sealed;
use fdkit::table::command::restore;
use fdkit::table::stats::Meter;
use fdkit::text::escape;
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
    /// the image; - or none is stdin
    #[argh(option, short = 'i', arg_name = "IMAGE")]
    image: Option<Arg>,
    /// the task whose table is restored (the first)
    #[argh(option, arg_name = "PID")]
    task: Option<i32>,
    /// make all processes of the image, which hold their descriptors
    #[argh(switch)]
    tree: bool,
    /// each process of the tree runs the program that it ran
    #[argh(switch)]
    respawn: bool,
    /// each process of the tree gets the id that it had
    #[argh(switch)]
    same_pids: bool,
    /// where our own descriptors stand meanwhile: rlimit, task, late or tight; see fdkit(7)
    #[argh(option, arg_name = "rlimit|task|late|tight", default = "Placement::Tight")]
    placement: Placement,
    /// the caller's descriptor FD in place of KEY: what readlink shows, FD or PID:FD of the image; a bare list (0,1,2) keeps the caller's own
    #[argh(option, arg_name = "KEY=FD")]
    inherit: Vec<Arg>,
    /// what to do about a descriptor that cannot be restored: fail, null (/dev/null) or skip
    #[argh(option, arg_name = "fail|null|skip", default = "Missing::Fail")]
    missing: Missing,
    /// what to do about a file that is not what it was: fail, warn or ignore
    #[argh(option, arg_name = "fail|warn|ignore", default = "Changed::Warn")]
    changed: Changed,
    /// open paths below DIR
    #[argh(option, arg_name = "DIR")]
    root: Option<Arg>,
    /// take the controlling terminal from the session that has it
    #[argh(switch)]
    steal: bool,
    /// say what it took, on stderr: text or json
    #[argh(option, arg_name = "text|json")]
    stats: Option<stats::Form>,
    /// print the plan and stop
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

fn run(tool: &Tool, args: Args, command: Vec<OsString>) -> Result<Outcome> {
    if !args.tree && (args.respawn || args.same_pids) {
        return Err(Error::misuse("--respawn and --same-pids go with --tree"));
    }
    if args.tree && args.task.is_some() {
        return Err(Error::misuse("--task picks one task, and --tree takes all"));
    }
    if command.is_empty() && !args.dry_run && !args.tree {
        return Err(Error::misuse("COMMAND is not given; it goes after --"));
    }
    if args.json && !args.dry_run {
        return Err(Error::misuse("--json is of the plan; it goes with --dry-run"));
    }
    if args.stats.is_some() && args.dry_run {
        return Err(Error::misuse("--stats says what a restore took, and --dry-run is none"));
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
    let image = DecodedImage::load(Reading::new(tool.name(), &mut spool)).at(name)?;
    if image.head.passive {
        tool.warn("the image was made with --passive: what was shared is restored apart");
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
    if let (Some(counter), Some(meter), Some(form)) = (&counter, meter, &args.stats) {
        restored = restored.and_then(|it| stats::of_one(&plan, meter, counter, *form).map(|()| it));
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

/// `KEY=FD`, or a list of the caller's own.
fn inherit(word: &Arg) -> Result<Vec<Inherit>> {
    let bytes = word.as_os_str().as_bytes();
    let number = |bytes: &[u8]| {
        let number = std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<u32>().ok());
        let number = number.and_then(|number| i32::try_from(number).ok());
        number.ok_or_else(|| {
            Error::misuse(format!("--inherit: '{}' is no descriptor", escape(bytes)))
        })
    };
    match bytes.iter().rposition(|&byte| byte == b'=') {
        Some(at) => Ok(vec![Inherit::Key(bytes[..at].to_vec(), number(&bytes[at + 1..])?)]),
        None => bytes.split(|&byte| byte == b',').map(|it| Ok(Inherit::Own(number(it)?))).collect(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn completions_are_those_of_the_options() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/completions");
        fdkit_completions::hold::<super::Args>(&super::TOOL, dir);
    }
}
