//! fdrestore --tree: recreates the processes of an image with their descriptors.

use crate::Args;
use fdkit::cli::{self, Exit, ImageInput, Tool};
use fdkit::ctty::SessionRole;
use fdkit::error::{At, Result, Status};
use fdkit::kind::DecodedImage;
use fdkit::plan::RestoreOptions;
use fdkit::sys::memory::map_sealed;
use fdkit::tree::{self, Mode, RestoredTree, Tree};
use nix::sys::wait::WaitStatus;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

pub(crate) fn restore(
    tool: &Tool,
    args: &Args,
    image: &DecodedImage,
    options: &RestoreOptions,
    spool: File,
    root: Option<OwnedFd>,
    command: Vec<OsString>,
) -> Result<Exit> {
    let mode = Mode {
        respawn: args.respawn,
        same_pids: args.same_pids,
        stats: args.stats.is_some(),
        command,
    };
    let path = args.root.as_ref().map(|path| path.as_path().to_owned());
    let dir = root.as_ref().map(AsFd::as_fd);
    let at = || ImageInput::new(args.image.as_ref()).to_string();
    let mut tree = Tree::new(image, options, dir, SessionRole::myself()?, args.dry_run).at(at)?;
    tree::check_feasible(&mut tree, options, &mode, path.as_deref()).at(at)?;
    if args.dry_run {
        cli::text_stdout()?.write_all(crate::show::tree(&tree, options, args.json)?.as_bytes())?;
        tree.refuse(&mut |line| tool.warn(line))?;
        return Ok(Status::Done.into());
    }
    tree.refuse(&mut |line| tool.warn(line))?;
    let source = map_sealed(spool.as_fd()).at(|| "map the image")?;
    drop(spool);
    let holds = !mode.respawn && mode.command.is_empty();
    let mut ready = |restored: &RestoredTree| {
        restored.warnings.iter().for_each(|line| tool.warn(line));
        if let (Some(rows), Some(form)) = (&restored.stats, &args.stats) {
            std::io::stderr().write_all(crate::stats::text(rows, *form).as_bytes())?;
        }
        if !holds {
            return Ok(());
        }
        let mut out = cli::text_stdout()?;
        for (old, new) in &restored.pids {
            writeln!(out, "{old} {new}")?;
        }
        out.flush()?;
        Ok(())
    };
    let root = root.zip(path);
    match tree::restore(&tree, options, &mode, source, root, &mut ready)? {
        None => Ok(Status::Done.into()),
        Some(WaitStatus::Exited(_, status)) => Ok(ExitCode::from(status as u8).into()),
        Some(WaitStatus::Signaled(_, signal, _)) => Ok(ExitCode::from(128 + signal as u8).into()),
        Some(_) => Ok(Status::System.into()),
    }
}
