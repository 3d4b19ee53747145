//! The operations of a tree, without running them: for `--dry-run`.

use super::exec::loses_locks;
use super::state::Mode;
use super::table::set_close_on_exec;
use super::{NotYetForked, Tree};
use crate::error::Result;
use crate::operation::Operation;
use crate::placement::Placement;
use crate::plan::{Plan, RestoreOptions};
use crate::table::driver::{RestoredTable, TableRestore};
use crate::table::executor::Paper;
use crate::table::source::KindSource;
use std::collections::HashSet;

/// The operations by which a tree is restored.
pub struct TreeOperations {
    /// The operations of fdrestore itself, which opens the files that several tasks have.
    pub common: Vec<Operation>,
    /// The operations of each task, by its index in the image; none for one that shares a table.
    pub tasks: Vec<Option<Vec<Operation>>>,
}

/// Lists the operations that a restore of the tree runs: by the executor on paper.
pub fn operations(
    tree: &Tree<'_>,
    options: &RestoreOptions,
    mode: &Mode,
) -> Result<TreeOperations> {
    let pids: HashSet<i32> = tree.image.tasks.iter().map(|task| task.pid).collect();
    let of_task = |(at, plan): (usize, &Option<Plan<'_>>)| {
        let Some(plan) = plan else { return Ok(None) };
        let (mut paper, restored) = on_paper(plan, options, &pids)?;
        if tree.sharers[at] == 1 && options.placement == Placement::Tight {
            restored.shrink(&mut paper);
        }
        if !loses_locks(mode, tree.sharers[at], plan) {
            restored.take_table_locks(&mut paper)?;
        }
        if mode.holds() {
            set_close_on_exec(&restored.close_on_exec(), &mut paper)?;
        }
        Ok(Some(paper.operations))
    };
    Ok(TreeOperations {
        common: on_paper(&tree.store_plan, options, &pids)?.0.operations,
        tasks: tree.tables.iter().enumerate().map(of_task).collect::<Result<_>>()?,
    })
}

/// The operations on a table up to those that need all others to be done.
fn on_paper<'p>(
    plan: &'p Plan<'p>,
    options: &RestoreOptions,
    pids: &HashSet<i32>,
) -> Result<(Paper, RestoredTable<'p>)> {
    let pid_map = NotYetForked(pids);
    let cx = plan.context(&[], &pid_map, None, options);
    let (mut paper, mut by_kind) = (Paper::default(), KindSource);
    let mut restore = TableRestore::new(plan, options, cx, &mut by_kind, None);
    restore.from_parent(&mut paper)?;
    restore.make(|step| step.before_fork, &mut paper)?;
    restore.make_early(&mut paper);
    restore.make(|_| true, &mut paper)?;
    restore.finish(&mut paper)?;
    Ok((paper, restore.end(plan)))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Builder, task};
    use super::*;

    #[test]
    fn numbers_that_are_close_on_exec_are_so_again_in_tasks_that_hold_their_descriptors() {
        let mut b = Builder::new([task(10, 1, 10, 10, 0)]);
        b.files(1).slot(0, 3, 0).slot(0, 4, 0).slot(0, 6, 0).slot(0, 7, 0);
        let image = b.changed(|image| {
            image.slots.iter_mut().for_each(|slot| slot.cloexec = slot.fd != 6);
        });
        let tree = Tree::unchecked(&image).unwrap();
        let listed = |mode: &Mode| {
            let all = operations(&tree, &RestoreOptions::default(), mode).unwrap();
            assert_eq!(all.common, []);
            all.tasks[0].clone().unwrap()
        };
        let holds = listed(&Mode::default());
        let wanted = [
            Operation::Shrink { capacity: 64 },
            Operation::CloseOnExec { first: 3, last: 4 },
            Operation::CloseOnExec { first: 7, last: 7 },
        ];
        assert_eq!(holds[4..], wanted);
        let runs = listed(&Mode { respawn: true, ..Mode::default() });
        assert_eq!(runs[..], holds[..5]);
    }
}
