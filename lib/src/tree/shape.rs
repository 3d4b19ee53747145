//! Who makes whom, when, in which session and group: from what an image says of its tasks to an
//! order in which processes can be made so. Values only, no system call.

use crate::error::{Error, Result};
use crate::image::Task;
use std::collections::{HashMap, HashSet};

/// The process group of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessGroup {
    /// It leads its own.
    Own,
    /// That of this task.
    Of(usize),
    /// That of fdrestore: it was outside the image, as was the first task's.
    Ours,
    /// One whose leader has ended, by its index.
    LeaderlessGroup(usize),
}

/// A process group without a leader in the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderlessGroup {
    /// Its id in the image.
    pub pgid: i32,
    /// Its first member.
    pub first: usize,
}

/// A task among the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its parent, if that is in the image; fdrestore otherwise.
    pub parent: Option<usize>,
    /// Who makes it: the parent, or a sibling whose table it shares (CLONE_PARENT).
    pub maker: Option<usize>,
    /// The task that restores its table; itself unless the table is shared.
    pub owner: usize,
    /// Whether it leads its session.
    pub leads: bool,
    /// Whether it is made before its maker calls setsid(2).
    pub before: bool,
    /// Its process group.
    pub group: ProcessGroup,
    /// Those that it makes, in this order: those of the old session first, those that share its
    /// table last.
    pub makes: Vec<usize>,
}

/// A tree, or several, whose tasks have the indices that they have in the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Each task.
    pub nodes: Vec<Node>,
    /// The groups whose leaders are gone.
    pub leaderless: Vec<LeaderlessGroup>,
    /// All tasks, makers before those that they make.
    pub order: Vec<usize>,
}

fn refused<T>(pid: i32, why: String) -> Result<T> {
    Err(Error::unrestorable(format!("task {pid}: {why}")))
}

fn contradicts<T>(pid: i32, why: &str) -> Result<T> {
    Err(Error::malformed(format!("task {pid}: {why}")))
}

impl Shape {
    /// Finds the shape of these tasks. The sessions that `joined` has are not made anew: they are
    /// part of that which was outside the image.
    ///
    /// Fails with status 3 if what they say of each other cannot be, with 6 if they cannot be made
    /// so: a session whose leader is in no way a maker of its member, a table shared across
    /// branches.
    pub fn of(tasks: &[Task], joined: &HashSet<i32>) -> Result<Shape> {
        let mut by_pid = HashMap::new();
        for (at, task) in tasks.iter().enumerate() {
            let ids = task.credentials.uids.iter().chain(&task.credentials.gids);
            if ids.chain(&task.credentials.groups).any(|&id| id == u32::MAX) {
                // setresuid(2) would take it for "as it is".
                return contradicts(task.pid, "it runs as nobody that can be");
            }
            if task.pid <= 0 || by_pid.insert(task.pid, at).is_some() {
                return contradicts(task.pid, "it comes twice, or is no process id");
            }
        }
        let mut sids: Vec<i32> = tasks.iter().map(|task| task.sid).collect();
        let outside = sids.iter().copied().find(|sid| !by_pid.contains_key(sid)).unwrap_or(0);
        for sid in sids.iter_mut().filter(|sid| joined.contains(sid)) {
            *sid = outside;
        }
        let parents: Vec<Option<usize>> =
            tasks.iter().map(|task| by_pid.get(&task.ppid).copied()).collect();
        let mut shape = Shape { nodes: Vec::new(), leaderless: Vec::new(), order: Vec::new() };
        let mut owners: HashMap<u32, Vec<usize>> = HashMap::new();
        for at in from_the_top(tasks, &parents)? {
            owners.entry(tasks[at].table.id).or_default().push(at);
        }
        let mut makers: Vec<Option<(Option<usize>, usize)>> = vec![None; tasks.len()];
        for sharers in owners.values() {
            share(sharers, tasks, &parents, &mut makers)?;
        }
        for (at, task) in tasks.iter().enumerate() {
            let (maker, owner) = makers[at].unwrap_or((parents[at], at));
            let leads = sids[at] == task.pid;
            if leads && task.pgid != task.pid {
                return contradicts(task.pid, "it leads its session, but not its group");
            }
            shape.nodes.push(Node {
                parent: parents[at],
                maker,
                owner,
                leads,
                before: false,
                group: ProcessGroup::Ours,
                makes: Vec::new(),
            });
        }
        for at in 0..tasks.len() {
            if let Some(maker) = shape.nodes[at].maker {
                shape.nodes[maker].makes.push(at);
            }
        }
        let makers: Vec<Option<usize>> = shape.nodes.iter().map(|nodes| nodes.maker).collect();
        shape.order = from_the_top(tasks, &makers)?;
        shape.sessions(tasks, &sids, &by_pid)?;
        shape.groups(tasks, &sids, &by_pid)?;
        for at in 0..tasks.len() {
            let mut makes = std::mem::take(&mut shape.nodes[at].makes);
            makes.sort_by_key(|&child| {
                let nodes = &shape.nodes[child];
                (!nodes.before, nodes.owner != child, child)
            });
            shape.nodes[at].makes = makes;
        }
        Ok(shape)
    }

    /// Finds out in which session each task must be born.
    fn sessions(
        &mut self,
        tasks: &[Task],
        sids: &[i32],
        by_pid: &HashMap<i32, usize>,
    ) -> Result<()> {
        // None: any, since it makes its own and none of its children was before that.
        let mut born: Vec<Option<i32>> = vec![None; tasks.len()];
        for &at in self.order.iter().rev() {
            let (pid, sid) = (tasks[at].pid, sids[at]);
            let mut need = (!self.nodes[at].leads).then_some(sid);
            for child in self.nodes[at].makes.clone() {
                let Some(of_child) = born[child].filter(|&of_child| of_child != sid) else {
                    continue;
                };
                // Born before its maker left that session, so that is where the maker was born.
                if !self.nodes[at].leads || need.is_some_and(|need| need != of_child) {
                    let why =
                        format!("it cannot be born in session {of_child}, where {pid} is not");
                    return refused(tasks[child].pid, why);
                }
                need = Some(of_child);
                self.nodes[child].before = true;
            }
            born[at] = need;
        }
        let ours =
            tasks.first().and_then(|_| self.nodes.iter().position(|nodes| nodes.maker.is_none()));
        let ours = ours.and_then(|first| born[first]);
        for (at, nodes) in self.nodes.iter().enumerate().filter(|(_, nodes)| nodes.maker.is_none())
        {
            let Some(sid) = born[at] else { continue };
            debug_assert!(nodes.parent.is_none());
            if by_pid.get(&sid).is_some_and(|&leader| self.nodes[leader].leads) {
                let why = format!("it is in the session of {sid}, but no descendant of it");
                return refused(tasks[at].pid, why);
            }
            if Some(sid) != ours {
                let why = format!("the leader of its session {sid} is not in the image");
                return refused(tasks[at].pid, why);
            }
        }
        Ok(())
    }

    fn groups(&mut self, tasks: &[Task], sids: &[i32], by_pid: &HashMap<i32, usize>) -> Result<()> {
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
                    return contradicts(pid, "its group is that of another session");
                }
                None if outside => ProcessGroup::Ours,
                None => {
                    let next = self.leaderless.len();
                    let index = *leaderless.entry(pgid).or_insert(next);
                    if index == next {
                        self.leaderless.push(LeaderlessGroup { pgid, first: at });
                    } else if sids[self.leaderless[index].first] != sid {
                        return contradicts(pid, "its group is that of another session");
                    }
                    ProcessGroup::LeaderlessGroup(index)
                }
            };
        }
        Ok(())
    }
}

/// All tasks, those that come from nobody first. Fails with status 3 on a cycle.
fn from_the_top(tasks: &[Task], from: &[Option<usize>]) -> Result<Vec<usize>> {
    let mut below: Vec<Vec<usize>> = vec![Vec::new(); tasks.len()];
    let mut order: Vec<usize> = Vec::with_capacity(tasks.len());
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
    if order.len() < tasks.len() {
        let mut reached = vec![false; tasks.len()];
        order.iter().for_each(|&at| reached[at] = true);
        let lost = reached.iter().position(|reached| !reached).unwrap_or_default();
        return contradicts(tasks[lost].pid, "it is its own ancestor");
    }
    Ok(order)
}

/// For each of those that share a table, who makes it, and who restores the table: the first.
fn share(
    sharers: &[usize],
    tasks: &[Task],
    parents: &[Option<usize>],
    makers: &mut [Option<(Option<usize>, usize)>],
) -> Result<()> {
    let owner = sharers[0];
    // The first of them below each parent.
    let mut first: HashMap<Option<usize>, usize> = HashMap::new();
    for &at in sharers {
        let (parent, pid, other) = (parents[at], tasks[at].pid, tasks[owner].pid);
        if tasks[at].table.highest != tasks[owner].table.highest {
            let why = format!("it shares the table of {other}, which has another highest number");
            return contradicts(pid, &why);
        }
        let sibling = first.get(&parent).copied();
        first.entry(parent).or_insert(at);
        let by_parent =
            parent.filter(|&parent| makers[parent].is_some_and(|(_, its)| its == owner));
        let maker = match (by_parent, sibling) {
            _ if at == owner => parent,
            (Some(parent), _) => Some(parent),
            (None, Some(sibling)) => Some(sibling),
            (None, None) => {
                let why = format!("it shares the table of {other}, no parent or sibling of it");
                return refused(pid, why);
            }
        };
        makers[at] = Some((maker, owner));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Bytes, Credentials, Table};
    use proptest::prelude::*;

    fn task(pid: i32, ppid: i32, pgid: i32, sid: i32, table: u32) -> Task {
        Task {
            pid,
            ppid,
            pgid,
            sid,
            start: 0,
            comm: Bytes::default(),
            exe: None,
            args: Vec::new(),
            cwd: None,
            root: None,
            umask: 0o22,
            credentials: Credentials {
                uids: [0; 4],
                gids: [0; 4],
                groups: Vec::new(),
                caps: [0; 5],
            },
            namespaces: Default::default(),
            table: Table { id: table, capacity: 64, highest: None, limit: (1024, 1024) },
            terminal: None,
            stopped: false,
        }
    }

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
        let groups: Vec<ProcessGroup> = shape.nodes.iter().map(|nodes| nodes.group).collect();
        use ProcessGroup::{LeaderlessGroup, Of, Own};
        assert_eq!(groups, [Own, Own, Of(1), LeaderlessGroup(0), LeaderlessGroup(0)]);
        assert!(shape.nodes[0].leads && shape.nodes[0].makes == [1, 2, 3, 4]);
        assert_eq!(shape.leaderless, [super::LeaderlessGroup { pgid: 30, first: 3 }]);
    }

    #[test]
    fn a_child_of_the_old_session_is_made_before_its_maker_leaves_that() {
        // 11 was forked before 10 called setsid; 12 after.
        let tasks = [
            task(5, 1, 5, 5, 0),
            task(10, 5, 10, 10, 1),
            task(11, 10, 5, 5, 2),
            task(12, 10, 10, 10, 3),
        ];
        let shape = Shape::of(&tasks, &HashSet::new()).unwrap();
        assert!(shape.nodes[2].before && !shape.nodes[3].before);
        assert_eq!(shape.nodes[1].makes, [2, 3]);
        assert_eq!(shape.nodes[2].group, ProcessGroup::Of(0));
    }

    #[test]
    fn the_session_and_group_of_the_first_task_may_be_outside_no_other() {
        let job = [task(20, 7, 20, 3, 0), task(21, 20, 20, 3, 1)];
        assert_eq!(Shape::of(&job, &HashSet::new()).unwrap().nodes[1].group, ProcessGroup::Of(0));
        let member = [task(20, 7, 9, 3, 0), task(21, 20, 9, 3, 1), task(22, 20, 8, 3, 2)];
        let shape = Shape::of(&member, &HashSet::new()).unwrap();
        assert_eq!(shape.nodes[1].group, ProcessGroup::Ours);
        assert_eq!(shape.nodes[2].group, ProcessGroup::LeaderlessGroup(0));
        assert_eq!(status(&[task(20, 7, 20, 3, 0), task(30, 7, 30, 4, 1)]), 6);
        assert_eq!(status(&[task(20, 7, 20, 20, 0), task(30, 7, 30, 20, 1)]), 6);
    }

    #[test]
    fn sharers_of_a_table_are_made_by_one_that_has_it() {
        let tasks = [
            task(10, 1, 10, 10, 0),
            task(11, 10, 10, 10, 1),
            task(12, 10, 10, 10, 1),
            task(13, 11, 10, 10, 1),
            task(14, 11, 10, 10, 2),
        ];
        let shape = Shape::of(&tasks, &HashSet::new()).unwrap();
        assert_eq!((shape.nodes[2].maker, shape.nodes[2].parent), (Some(1), Some(0)));
        assert_eq!((shape.nodes[3].maker, shape.nodes[3].owner), (Some(1), 1));
        // Those that share come last, so that the others are born of a smaller table.
        assert_eq!(shape.nodes[1].makes, [4, 2, 3]);
        let across = [
            task(10, 1, 10, 10, 0),
            task(11, 10, 10, 10, 1),
            task(12, 10, 10, 10, 2),
            task(13, 12, 10, 10, 1),
        ];
        assert_eq!(status(&across), 6);
    }

    #[test]
    fn what_cannot_be_is_malformed() {
        assert_eq!(status(&[task(10, 11, 10, 10, 0), task(11, 10, 10, 10, 1)]), 3);
        assert_eq!(status(&[task(10, 10, 10, 10, 0)]), 3);
        assert_eq!(status(&[task(10, 1, 10, 10, 0), task(10, 1, 10, 10, 1)]), 3);
        assert_eq!(status(&[task(0, 1, 10, 10, 0)]), 3);
        assert_eq!(status(&[task(10, 1, 9, 10, 0)]), 3);
        assert_eq!(
            status(&[task(10, 1, 10, 10, 0), task(11, 10, 11, 11, 1), task(12, 10, 11, 10, 2)]),
            3
        );
        assert_eq!(status(&[]), 0);
        let mut other = task(11, 10, 10, 10, 0);
        assert_eq!(status(&[task(10, 1, 10, 10, 0), other.clone()]), 0);
        other.table.highest = Some(7);
        assert_eq!(status(&[task(10, 1, 10, 10, 0), other]), 3);
    }

    proptest! {
        #[test]
        fn any_tasks_have_a_shape_or_a_reason(
            ids in prop::collection::vec((1i32..12, 0i32..12, 1i32..12, 1i32..12, 0u32..6), 0..10)
        ) {
            let tasks: Vec<Task> =
                ids.iter().map(|&(pid, ppid, pgid, sid, table)| task(pid, ppid, pgid, sid, table)).collect();
            let Ok(shape) = Shape::of(&tasks, &HashSet::new()) else { return Ok(()) };
            // Each is made once, after its maker; each is in the session that it was in.
            let mut made: Vec<usize> = Vec::new();
            for &at in &shape.order {
                let nodes = &shape.nodes[at];
                prop_assert!(nodes.maker.is_none_or(|maker| made.contains(&maker)));
                prop_assert!(nodes.owner == at || made.contains(&nodes.owner));
                prop_assert!(!made.contains(&at));
                made.push(at);
            }
            prop_assert_eq!(made.len(), tasks.len());
            prop_assert_eq!(
                shape.nodes.iter().map(|nodes| nodes.makes.len()).sum::<usize>(),
                shape.nodes.iter().filter(|nodes| nodes.maker.is_some()).count()
            );
        }
    }
}
