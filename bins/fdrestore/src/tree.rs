//! fdrestore --tree: recreates the processes of an image with their descriptors.

use fdkit::cli::{self, Exit, ImageInput, Tool};
use fdkit::ctty::SessionRole;
use fdkit::error::{At, Result, Status};
use fdkit::kind::DecodedImage;
use fdkit::plan::RestoreOptions;
use fdkit::sys::memory::map_sealed;
use fdkit::tree::{self, Mode, RestoredTree, Tree};
use nix::sys::wait::WaitStatus;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

pub(crate) fn restore(
    tool: &Tool,
    image: &DecodedImage,
    options: &RestoreOptions,
    mode: &Mode,
    spool: File,
    root: Option<OwnedFd>,
) -> Result<Exit> {
    for (task, tgid) in image.tasks.iter().filter_map(|task| Some((task, task.tgid?))) {
        tool.warn(format_args!(
            "task {}: it was a thread of process {tgid} with a descriptor table of its own, and \
             becomes a process",
            task.pid
        ));
    }
    let path = options.root.as_ref().map(|path| path.as_path().to_owned());
    let dir = root.as_ref().map(AsFd::as_fd);
    let at = || ImageInput::new(options.image.as_ref()).to_string();
    let mut tree =
        Tree::new(image, options, dir, SessionRole::myself()?, options.dry_run).at(at)?;
    tree::check_feasible(&mut tree, options, mode, path.as_deref()).at(at)?;
    if options.dry_run {
        let plan = crate::show::tree(&tree, options, mode, options.json)?;
        cli::text_stdout()?.write_all(plan.as_bytes())?;
        tool.messages().extend(tree.describe_losses());
        tree.refuse(&mut tool.messages())?;
        return Ok(Status::Done.into());
    }
    tree.refuse(&mut tool.messages())?;
    tool.messages().extend(tree.describe_losses());
    let source = map_sealed(spool.as_fd()).at(|| "map the image")?;
    drop(spool);
    let mut ready = |restored: &RestoredTree| {
        restored.warnings.iter().for_each(|line| tool.warn(line));
        if let (Some(rows), Some(form)) = (&restored.stats, &options.stats) {
            std::io::stderr().write_all(crate::stats::text(rows, *form).as_bytes())?;
        }
        if !mode.holds() {
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
    match tree::restore(&tree, options, mode, source, root, &mut ready)? {
        None => Ok(Status::Done.into()),
        Some(WaitStatus::Exited(_, status)) => Ok(ExitCode::from(status as u8).into()),
        Some(WaitStatus::Signaled(_, signal, _)) => Ok(ExitCode::from(128 + signal as u8).into()),
        Some(_) => Ok(Status::System.into()),
    }
}
