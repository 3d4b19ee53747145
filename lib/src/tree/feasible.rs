//! Checks of the whole tree before any process is made.

use super::Tree;
use super::credentials::{CAP_CHECKPOINT_RESTORE, CAP_SYS_ADMIN, ours, out_of_place};
use super::exec::{LEFT, below, is_title, leaves_locks};
use super::layout::{placement_request, table_numbers};
use super::spawn::{is_taken, no_choice};
use super::state::{Mode, below_root};
use crate::error::{At, Result};
use crate::plan::{Missing, RestoreOptions, hard_limit};
use crate::table::services::room;
use crate::text::escape;
use std::path::Path;

/// What in the surroundings of a tree cannot be as it was, before anything is made: programs to run
/// that are gone, process ids that are taken. Each becomes a problem of the tree.
///
/// Fails with status 6 if a table has no room for our own descriptors, with 4 if process ids are to
/// be chosen and we may not.
pub fn foresee(
    tree: &mut Tree<'_>,
    options: &RestoreOptions,
    mode: &Mode,
    root: Option<&Path>,
) -> Result<()> {
    let may_choose = CAP_SYS_ADMIN | CAP_CHECKPOINT_RESTORE;
    let us = ours()?;
    if mode.same_pids && us.caps[2] & may_choose == 0 {
        return Err(no_choice());
    }
    let limit = hard_limit()?;
    let services = 1 + usize::from(root.is_some());
    for (plan, &sharers) in tree.tables.iter().zip(&tree.sharers) {
        let Some(plan) = plan else { continue };
        let numbers = table_numbers(plan);
        let at = || format!("task {}", plan.task.pid);
        room(options.placement, &placement_request(&numbers, sharers, limit), services).at(at)?;
    }
    for (place, &at) in tree.shape.order.iter().enumerate() {
        let task = &tree.image.tasks[at];
        let mut problem = |why: String| tree.problems.push(format!("task {}: {why}", task.pid));
        let given = place == 0 && !mode.command.is_empty();
        if mode.respawn && !given {
            out_of_place(task, &us, root, &mut problem);
            let inside = |exe: &[u8]| match &task.root {
                Some(root) if root.0 != b"/" => below(exe, &root.0).is_some(),
                _ => true,
            };
            match &task.exe {
                Some(exe) if is_title(&task.args, &exe.0) => {
                    let why = "is a title that it gave itself, and cannot be run again";
                    problem(format!("its command line '{}' {why}", escape(&task.args[0].0)));
                }
                Some(exe) if !task.args.is_empty() && inside(&exe.0) => {
                    let path = below_root(root, &exe.0);
                    if nix::unistd::access(&path, nix::unistd::AccessFlags::X_OK).is_err() {
                        problem(format!("its program {} cannot be run", escape(&exe.0)));
                    }
                }
                _ => problem("its program is not known, and cannot be run again".to_owned()),
            }
        }
        if mode.same_pids && is_taken(task.pid) {
            problem("its process id is taken (--same-pids)".to_owned());
        }
        let plan = tree.tables[at].as_ref().filter(|_| options.missing == Missing::Fail);
        if plan.is_some_and(|plan| leaves_locks(mode, tree.sharers[at], plan)) {
            problem(LEFT.to_owned());
        }
    }
    Ok(())
}
