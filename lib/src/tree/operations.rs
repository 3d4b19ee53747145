//! The operations of a tree, without running them: for `--dry-run`.

use super::{NotYetForked, Tree};
use crate::error::Result;
use crate::operation::Operation;
use crate::placement::{self, Placement};
use crate::plan::{Plan, RestoreOptions};
use crate::table::driver::TableRestore;
use crate::table::executor::{Executor, Paper};
use crate::table::source::KindSource;
use std::collections::HashSet;

/// The operations by which a tree is restored.
pub struct TreeOperations {
    /// Those of fdrestore itself: it opens what several tasks have, for the fdstore.
    pub common: Vec<Operation>,
    /// Those of each task, by its index in the image; none for one that shares a table.
    pub tasks: Vec<Option<Vec<Operation>>>,
}

/// Lists the operations that a restore of the tree runs: by the executor on paper.
pub fn operations(tree: &Tree<'_>, options: &RestoreOptions) -> Result<TreeOperations> {
    let pids: HashSet<i32> = tree.image.tasks.iter().map(|task| task.pid).collect();
    let of_task = |(at, plan): (usize, &Option<Plan<'_>>)| {
        let shrinks = tree.sharers[at] == 1 && options.placement == Placement::Tight;
        plan.as_ref().map(|plan| of_plan(plan, options, &pids, shrinks)).transpose()
    };
    Ok(TreeOperations {
        common: of_plan(&tree.store_plan, options, &pids, false)?,
        tasks: tree.tables.iter().enumerate().map(of_task).collect::<Result<_>>()?,
    })
}

fn of_plan(
    plan: &Plan<'_>,
    options: &RestoreOptions,
    pids: &HashSet<i32>,
    shrinks: bool,
) -> Result<Vec<Operation>> {
    let pid_map = NotYetForked(pids);
    let cx = plan.context(&[], &pid_map, None, options.changed);
    let (mut paper, mut anew) = (Paper::default(), KindSource);
    let mut restore = TableRestore::new(plan, options, cx, &mut anew, None);
    restore.from_parent(&mut paper)?;
    restore.make(|step| step.before_fork, &mut paper)?;
    restore.make_early(&mut paper);
    restore.make(|_| true, &mut paper)?;
    restore.finish(&mut paper)?;
    if shrinks {
        paper.run(&Operation::Shrink { capacity: placement::capacity(plan.highest()) })?;
    }
    restore.end(plan).take_table_locks(&mut paper)?;
    Ok(paper.operations)
}
