//! The shape of a tree: the forker of each task, the order of forks, sessions and process groups,
//! found from the tasks of an image alone. Values only, no system call.

use crate::error::{Error, Result};
use crate::image::Task;
use std::collections::{HashMap, HashSet};

/// The process group of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessGroup {
    /// The task leads its own group.
    Own,
    /// The group of another task, which leads it.
    Of(usize),
    /// The group of fdrestore: the group of the first task is outside the image.
    Coordinator,
    /// A group whose leader has ended: the index in [`Shape::leaderless`].
    Leaderless(usize),
}

/// A process group whose leader is not in the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderlessGroup {
    /// Its id in the image.
    pub pgid: i32,
    /// Its first member.
    pub first: usize,
}

/// The place of a task among the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its parent; `None` if that is not in the image, so that fdrestore is its parent.
    pub parent: Option<usize>,
    /// The task that forks it: its parent, or a sibling whose table it shares (CLONE_PARENT);
    /// `None` for fdrestore.
    pub forker: Option<usize>,
    /// The task that restores its table: itself unless the table is shared.
    pub owner: usize,
    /// True if it leads a session of its own.
    pub leads_session: bool,
    /// True if it is forked before its forker calls setsid(2).
    pub before_setsid: bool,
    /// Its process group.
    pub group: ProcessGroup,
    /// The tasks that it forks, in this order: those of the old session first, those that share its
    /// table last.
    pub forks: Vec<usize>,
}

/// One or several trees of tasks, which are named by their index in the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Each task.
    pub nodes: Vec<Node>,
    /// The process groups whose leader is not in the image.
    pub leaderless: Vec<LeaderlessGroup>,
    /// All tasks, each after its forker.
    pub order: Vec<usize>,
}

fn refused<T>(pid: i32, why: String) -> Result<T> {
    Err(Error::unrestorable(format!("task {pid}: {why}")))
}

/// What a scan of running tasks can find: setsid(2) between two looks.
const OTHER_SESSION: &str = "its process group was in another session when that was scanned; fdscan \
     --freeze stops the tasks";

impl Shape {
    /// Finds the shape of these tasks. The tasks of the sessions with these
    /// leaders (`joining`) join the session of fdrestore.
    ///
    /// Fails with status 6 if processes cannot be forked so: a session whose leader is no ancestor
    /// of its member, a table that is shared across branches of the tree.
    pub fn of(tasks: &[Task], joining: &HashSet<i32>) -> Result<Shape> {
        let mut by_pid = HashMap::new();
        for (at, task) in tasks.iter().enumerate() {
            by_pid.insert(task.pid, at);
        }
        let mut sids: Vec<i32> = tasks.iter().map(|task| task.sid).collect();
        let outside = sids.iter().copied().find(|sid| !by_pid.contains_key(sid)).unwrap_or(0);
        for sid in sids.iter_mut().filter(|sid| joining.contains(sid)) {
            *sid = outside;
        }
        let parents: Vec<Option<usize>> =
            tasks.iter().map(|task| by_pid.get(&task.ppid).copied()).collect();
        let mut shape = Shape { nodes: Vec::new(), leaderless: Vec::new(), order: Vec::new() };
        let mut owners: HashMap<u32, Vec<usize>> = HashMap::new();
        for at in topmost_first(&parents) {
            owners.entry(tasks[at].table.id).or_default().push(at);
        }
        let mut forkers: Vec<Option<(Option<usize>, usize)>> = vec![None; tasks.len()];
        for sharers in owners.values() {
            place_sharers(sharers, tasks, &parents, &mut forkers)?;
        }
        for (at, task) in tasks.iter().enumerate() {
            let (forker, owner) = forkers[at].unwrap_or((parents[at], at));
            let leads_session = sids[at] == task.pid;
            shape.nodes.push(Node {
                parent: parents[at],
                forker,
                owner,
                leads_session,
                before_setsid: false,
                group: ProcessGroup::Coordinator,
                forks: Vec::new(),
            });
        }
        for at in 0..tasks.len() {
            if let Some(forker) = shape.nodes[at].forker {
                shape.nodes[forker].forks.push(at);
            }
        }
        let forkers: Vec<Option<usize>> = shape.nodes.iter().map(|node| node.forker).collect();
        shape.order = topmost_first(&forkers);
        shape.find_sessions(tasks, &sids, &by_pid)?;
        shape.find_groups(tasks, &sids, &by_pid)?;
        for at in 0..tasks.len() {
            let mut forks = std::mem::take(&mut shape.nodes[at].forks);
            forks.sort_by_key(|&child| {
                let node = &shape.nodes[child];
                (!node.before_setsid, node.owner != child, child)
            });
            shape.nodes[at].forks = forks;
        }
        Ok(shape)
    }

    /// The tasks whose parent is this one.
    pub fn children(&self, task: usize) -> impl Iterator<Item = usize> + '_ {
        let is_child = move |(_, node): &(usize, &Node)| node.parent == Some(task);
        self.nodes.iter().enumerate().filter(is_child).map(|(at, _)| at)
    }

    /// Finds which tasks must be forked before their forker calls setsid(2), so that they are in
    /// the session that it leaves.
    fn find_sessions(
        &mut self,
        tasks: &[Task],
        sids: &[i32],
        by_pid: &HashMap<i32, usize>,
    ) -> Result<()> {
        // The session in which each task must be forked. None: any, since the task makes its own,
        // and has forked no child before that.
        let mut forked_in: Vec<Option<i32>> = vec![None; tasks.len()];
        for &at in self.order.iter().rev() {
            let (pid, sid) = (tasks[at].pid, sids[at]);
            let mut needed = (!self.nodes[at].leads_session).then_some(sid);
            for child in self.nodes[at].forks.clone() {
                let Some(of_child) = forked_in[child].filter(|&of_child| of_child != sid) else {
                    continue;
                };
                // It was forked before its forker left that session, which the forker began in.
                if !self.nodes[at].leads_session || needed.is_some_and(|it| it != of_child) {
                    let why = format!(
                        "it is in session {of_child}, and {pid}, which has to fork it, never was"
                    );
                    return refused(tasks[child].pid, why);
                }
                needed = Some(of_child);
                self.nodes[child].before_setsid = true;
            }
            forked_in[at] = needed;
        }
        let topmost = |(_, node): &(usize, &Node)| node.forker.is_none();
        let first = self.nodes.iter().enumerate().find(topmost);
        let outside = first.and_then(|(first, _)| forked_in[first]);
        for (at, node) in self.nodes.iter().enumerate().filter(topmost) {
            let Some(sid) = forked_in[at] else { continue };
            debug_assert!(node.parent.is_none());
            if by_pid.get(&sid).is_some_and(|&leader| self.nodes[leader].leads_session) {
                let why = format!("it is in the session of {sid}, but not a descendant of it");
                return refused(tasks[at].pid, why);
            }
            if Some(sid) != outside {
                let why = format!("the leader of its session {sid} is not in the image");
                return refused(tasks[at].pid, why);
            }
        }
        Ok(())
    }

    /// Finds the process group of each task.
    fn find_groups(
        &mut self,
        tasks: &[Task],
        sids: &[i32],
        by_pid: &HashMap<i32, usize>,
    ) -> Result<()> {
        let first = self.order.first().map(|&at| (tasks[at].pgid, sids[at]));
        let mut leaderless: HashMap<i32, usize> = HashMap::new();
        for &at in &self.order {
            let (pid, pgid, sid) = (tasks[at].pid, tasks[at].pgid, sids[at]);
            let leader = by_pid.get(&pgid).copied().filter(|&it| tasks[it].pgid == pgid);
            let outside = first == Some((pgid, sid)) && !by_pid.contains_key(&sid);
            self.nodes[at].group = match leader {
                _ if pgid == pid => ProcessGroup::Own,
                Some(leader) if sids[leader] == sid => ProcessGroup::Of(leader),
                Some(_) => {
                    return refused(pid, OTHER_SESSION.to_owned());
                }
                None if outside => ProcessGroup::Coordinator,
                None => {
                    let next = self.leaderless.len();
                    let index = *leaderless.entry(pgid).or_insert(next);
                    if index == next {
                        self.leaderless.push(LeaderlessGroup { pgid, first: at });
                    } else if sids[self.leaderless[index].first] != sid {
                        return refused(pid, OTHER_SESSION.to_owned());
                    }
                    ProcessGroup::Leaderless(index)
                }
            };
        }
        Ok(())
    }
}

/// All tasks, each after the one that it comes from. There is no cycle: the tasks were checked by
/// [`crate::image::TaskChecker`].
fn topmost_first(from: &[Option<usize>]) -> Vec<usize> {
    let mut below: Vec<Vec<usize>> = vec![Vec::new(); from.len()];
    let mut order: Vec<usize> = Vec::with_capacity(from.len());
    for (at, from) in from.iter().enumerate() {
        match from {
            Some(from) => below[*from].push(at),
            None => order.push(at),
        }
    }
    let mut next = 0;
    while let Some(&at) = order.get(next) {
        order.append(&mut below[at]);
        next += 1;
    }
    debug_assert_eq!(order.len(), from.len());
    order
}

/// Finds, for each of the tasks that share a table, its forker and the owner of the table, which is
/// the first of them.
fn place_sharers(
    sharers: &[usize],
    tasks: &[Task],
    parents: &[Option<usize>],
    forkers: &mut [Option<(Option<usize>, usize)>],
) -> Result<()> {
    let owner = sharers[0];
    // The first of them below each parent.
    let mut first: HashMap<Option<usize>, usize> = HashMap::new();
    for &at in sharers {
        let (parent, pid, other) = (parents[at], tasks[at].pid, tasks[owner].pid);
        let sibling = first.get(&parent).copied();
        first.entry(parent).or_insert(at);
        let by_parent =
            parent.filter(|&parent| forkers[parent].is_some_and(|(_, its)| its == owner));
        let forker = match (by_parent, sibling) {
            _ if at == owner => parent,
            (Some(parent), _) => Some(parent),
            (None, Some(sibling)) => Some(sibling),
            (None, None) => {
                let why =
                    format!("it shares the table of {other}, but not with its parent or a sibling");
                return refused(pid, why);
            }
        };
        forkers[at] = Some((forker, owner));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::task;
    use super::*;
    use crate::image::TaskChecker;
    use proptest::prelude::*;

    fn status(tasks: &[Task]) -> u8 {
        Shape::of(tasks, &HashSet::new()).map_or_else(|err| err.status() as u8, |_| 0)
    }

    #[test]
    fn a_pipeline_of_a_shell_has_its_groups() {
        // bash 10 leads; `20 | 21` in the background, `30 | 31` whose leader has ended.
        let tasks = [
            task(10, 1, 10, 10, 0),
            task(20, 10, 20, 10, 1),
            task(21, 10, 20, 10, 2),
            task(31, 10, 30, 10, 3),
            task(32, 10, 30, 10, 4),
        ];
        let shape = Shape::of(&tasks, &HashSet::new()).unwrap();
        let groups: Vec<ProcessGroup> = shape.nodes.iter().map(|node| node.group).collect();
        use ProcessGroup::{Leaderless, Of, Own};
        assert_eq!(groups, [Own, Own, Of(1), Leaderless(0), Leaderless(0)]);
        assert!(shape.nodes[0].leads_session && shape.nodes[0].forks == [1, 2, 3, 4]);
        assert_eq!(shape.leaderless, [LeaderlessGroup { pgid: 30, first: 3 }]);
    }

    #[test]
    fn a_child_of_the_old_session_is_forked_before_its_forker_leaves_that() {
        // 11 was forked before 10 called setsid; 12 after.
        let tasks = [
            task(5, 1, 5, 5, 0),
            task(10, 5, 10, 10, 1),
            task(11, 10, 5, 5, 2),
            task(12, 10, 10, 10, 3),
        ];
        let shape = Shape::of(&tasks, &HashSet::new()).unwrap();
        assert!(shape.nodes[2].before_setsid && !shape.nodes[3].before_setsid);
        assert_eq!(shape.nodes[1].forks, [2, 3]);
        assert_eq!(shape.nodes[2].group, ProcessGroup::Of(0));
    }

    #[test]
    fn the_session_and_group_of_the_first_task_may_be_outside_no_other() {
        let job = [task(20, 7, 20, 3, 0), task(21, 20, 20, 3, 1)];
        assert_eq!(Shape::of(&job, &HashSet::new()).unwrap().nodes[1].group, ProcessGroup::Of(0));
        let member = [task(20, 7, 9, 3, 0), task(21, 20, 9, 3, 1), task(22, 20, 8, 3, 2)];
        let shape = Shape::of(&member, &HashSet::new()).unwrap();
        assert_eq!(shape.nodes[1].group, ProcessGroup::Coordinator);
        assert_eq!(shape.nodes[2].group, ProcessGroup::Leaderless(0));
        assert_eq!(status(&[task(20, 7, 20, 3, 0), task(30, 7, 30, 4, 1)]), 6);
        assert_eq!(status(&[task(20, 7, 20, 20, 0), task(30, 7, 30, 20, 1)]), 6);
    }

    #[test]
    fn sharers_of_a_table_are_forked_by_one_that_has_it() {
        let tasks = [
            task(10, 1, 10, 10, 0),
            task(11, 10, 10, 10, 1),
            task(12, 10, 10, 10, 1),
            task(13, 11, 10, 10, 1),
            task(14, 11, 10, 10, 2),
        ];
        let shape = Shape::of(&tasks, &HashSet::new()).unwrap();
        assert_eq!((shape.nodes[2].forker, shape.nodes[2].parent), (Some(1), Some(0)));
        assert_eq!((shape.nodes[3].forker, shape.nodes[3].owner), (Some(1), 1));
        // Those that share come last, so that the others inherit a smaller table.
        assert_eq!(shape.nodes[1].forks, [4, 2, 3]);
        assert_eq!(shape.children(1).collect::<Vec<usize>>(), [3, 4]);
        let across = [
            task(10, 1, 10, 10, 0),
            task(11, 10, 10, 10, 1),
            task(12, 10, 10, 10, 2),
            task(13, 12, 10, 10, 1),
        ];
        assert_eq!(status(&across), 6);
    }

    #[test]
    fn a_group_that_was_seen_in_two_sessions_is_refused() {
        let of_leader = [task(10, 1, 10, 10, 0), task(11, 10, 11, 11, 1), task(12, 10, 11, 10, 2)];
        assert_eq!(status(&of_leader), 6);
        let leaderless = [
            task(10, 1, 10, 10, 0),
            task(11, 10, 11, 11, 1),
            task(12, 10, 9, 10, 2),
            task(13, 11, 9, 11, 3),
        ];
        assert_eq!(status(&leaderless), 6);
        assert_eq!(status(&[]), 0);
    }

    proptest! {
        #[test]
        fn any_tasks_have_a_shape_or_a_reason(
            ids in prop::collection::vec((1i32..12, 0i32..12, 1i32..12, 1i32..12, 0u32..6), 0..10)
        ) {
            let tasks: Vec<Task> =
                ids.iter().map(|&(pid, ppid, pgid, sid, table)| task(pid, ppid, pgid, sid, table)).collect();
            let mut checker = TaskChecker::default();
            let checked = tasks.iter().try_for_each(|task| checker.add(task));
            prop_assume!(checked.and_then(|()| checker.end()).is_ok());
            let Ok(shape) = Shape::of(&tasks, &HashSet::new()) else { return Ok(()) };
            // Each is forked once, after its forker; each is in the session that it was in.
            let mut made: Vec<usize> = Vec::new();
            for &at in &shape.order {
                let node = &shape.nodes[at];
                prop_assert!(node.forker.is_none_or(|forker| made.contains(&forker)));
                prop_assert!(node.owner == at || made.contains(&node.owner));
                prop_assert!(!made.contains(&at));
                made.push(at);
            }
            prop_assert_eq!(made.len(), tasks.len());
            prop_assert_eq!(
                shape.nodes.iter().map(|node| node.forks.len()).sum::<usize>(),
                shape.nodes.iter().filter(|node| node.forker.is_some()).count()
            );
        }
    }
}
