#![forbid(unsafe_code)]
//! fdrestore: recreates the descriptors of an image in a new command or a new tree of processes.

mod show;
mod stats;
mod tree;

use fdkit::cli::progress::ProgressReader;
use fdkit::cli::{self, Exit, FAILED_BEFORE_COMMAND, ImageInput, Tool};
use fdkit::error::{At, Error, Result, Status};
use fdkit::kind::DecodedImage;
use fdkit::plan::{Plan, RestoreOptions};
use fdkit::sys::memory::map_sealed;
use fdkit::table::command::{check_room, restore};
use fdkit::table::stats::Meter;
use fdkit::tree::Mode;
use nix::libc;
use std::ffi::OsString;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;

const TOOL: Tool = Tool::chain("fdrestore").optional(&[("stats", "text")]);

fn main() -> ExitCode {
    TOOL.main(run)
}

fn run(tool: &Tool, options: RestoreOptions, command: Vec<OsString>) -> Result<Exit> {
    if !options.tree && (options.respawn || options.same_pids) {
        return Err(Error::misuse("--respawn and --same-pids need --tree"));
    }
    if options.tree && options.task.is_some() {
        return Err(Error::misuse(
            "--task cannot be combined with --tree, which restores all tasks",
        ));
    }
    if command.is_empty() && !options.dry_run && !options.tree {
        return Err(Error::misuse("COMMAND is not given; put it after --"));
    }
    if options.json && !options.dry_run {
        return Err(Error::misuse("--json needs --dry-run, since it prints the plan"));
    }
    if options.stats.is_some() && options.dry_run {
        return Err(Error::misuse(
            "--stats cannot be combined with --dry-run, which restores nothing",
        ));
    }
    let input = ImageInput::new(options.image.as_ref());
    let name = || input.to_string();
    let mut spool = input.spool_sealed(tool, "use a pipe or -i IMAGE")?;
    let image = DecodedImage::load(ProgressReader::new(tool.name(), &mut spool)).at(name)?;
    if image.head.passive {
        tool.warn(
            "the image was made with --passive: what descriptors shared, they no longer share; \
             scan without --passive to keep it",
        );
    }
    for lacks in &image.missing {
        tool.warn(format_args!("{input}: {}", lacks.describe()));
    }
    let root = match &options.root {
        Some(path) => {
            let mut how = std::fs::OpenOptions::new();
            let dir =
                how.read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(path.as_path());
            Some(OwnedFd::from(dir.at(|| path.to_string())?))
        }
        None => None,
    };
    if options.tree {
        let mode = Mode::new(&options, command);
        return tree::restore(tool, &image, &options, &mode, spool, root);
    }
    let plan =
        Plan::new(&image, &options, root.as_ref().map(AsFd::as_fd), options.dry_run).at(name)?;
    check_room(&plan, &options, root.is_some()).at(name)?;
    if options.dry_run {
        cli::text_stdout()?.write_all(show::plan(&plan, &options, options.json)?.as_bytes())?;
        tool.messages().extend(plan.describe_losses(|_| true));
        plan.refuse(&mut tool.messages())?;
        return Ok(Status::Done.into());
    }
    plan.refuse(&mut tool.messages())?;
    tool.messages().extend(plan.describe_losses(|_| true));
    let source = map_sealed(spool.as_fd()).at(|| "map the image")?;
    drop(spool);
    let counter = options.stats.as_ref().map(|_| stats::count(tool)).transpose()?;
    let mut meter = counter.as_ref().map(|counter| Meter::new(Some(counter)));
    let (err, mut restored) = restore(&plan, &options, source, root, meter.as_mut());
    if let (Some(counter), Some(meter), Some(format)) = (&counter, meter, &options.stats) {
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

#[cfg(test)]
mod tests {
    #[test]
    fn completions_are_those_of_the_options() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/completions");
        fdkit_completions::hold::<super::RestoreOptions>(&super::TOOL, dir);
    }
}
