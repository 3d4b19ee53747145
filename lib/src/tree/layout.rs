//! The layout of a tree: the steps of each table, the plan and the messages of the fdstore, the
//! order of forks. Values only, no system call.

use super::origin::FileOrigin;
use super::shape::Shape;
use crate::image::{OpenFile, Slot};
use crate::kind::DecodedImage;
use crate::kind::context::{CttyPlan, Number};
use crate::placement::TableNeeds;
use crate::plan::{self, Action, OwnerTask, Plan, Step};
use crate::sys::socket::MAX_FDS;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::RawFd;

/// A message of the fdstore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreMessage {
    /// The files, in the order of the numbers that they get.
    pub files: Vec<u32>,
    /// True if they can be made only when all tasks are forked.
    pub needs_processes: bool,
}

/// The step of a file that comes from the fdstore, until [`Layout::messages`] finds its message.
const NO_MESSAGE: Action = Action::FromStore(u32::MAX);

/// The first table that has each file, by the index of its owner, and the file's first number
/// there. `owners` are in the order of [`Shape::order`].
pub(super) fn first_slots(image: &DecodedImage, owners: &[usize]) -> HashMap<u32, (usize, RawFd)> {
    let mut first = HashMap::new();
    for &owner in owners {
        for slot in image.slots_of(image.tasks[owner].table.id) {
            first.entry(slot.file).or_insert((owner, slot.fd as RawFd));
        }
    }
    first
}

/// The plan of what fdrestore makes for the fdstore, each file as the first table that has it knows
/// it. The numbers of its steps are not those of any table.
pub(super) fn store_plan<'a>(
    image: &'a DecodedImage,
    origins: &HashMap<u32, FileOrigin>,
    first_slots: &HashMap<u32, (usize, RawFd)>,
) -> Plan<'a> {
    let origin = |file: &OpenFile| origins.get(&file.id);
    let stored: Vec<(&OpenFile, bool)> = image
        .files
        .iter()
        .filter_map(|file| match origin(file) {
            Some(FileOrigin::Store { needs_processes }) => Some((file, *needs_processes)),
            _ => None,
        })
        .collect();
    let step = |(at, (file, needs_processes)): (usize, &(&OpenFile, bool))| Step {
        fd: at as RawFd,
        file: Some(file.id),
        action: Action::Make,
        before_fork: !needs_processes,
        ..Step::default()
    };
    let mut steps: Vec<Step> = stored.iter().enumerate().map(step).collect();
    let inherited = |file: &OpenFile| matches!(origin(file), Some(FileOrigin::Inherited));
    plan::add_queued(image, &mut steps, &mut |file| (!inherited(file)).then_some(Action::Make));
    let mut plan = Plan::from_steps(image, &image.tasks[0], steps);
    let mut numbers: HashMap<usize, usize> = HashMap::new();
    for step in &plan.steps {
        let Some(id) = step.file else { continue };
        let Some(&(owner, fd)) = first_slots.get(&id) else { continue };
        let task = &image.tasks[owner];
        let tables = &mut plan.numbers;
        let at = *numbers.entry(owner).or_insert_with(|| {
            let number = |slot: &Slot| Number { fd: slot.fd as RawFd, file: Some(slot.file) };
            tables.push(image.slots_of(task.table.id).iter().map(number).collect());
            tables.len() - 1
        });
        plan.owner_tasks.insert(id, OwnerTask { task, numbers: at, fd });
    }
    plan
}

/// Facts from which the tables are laid out.
pub(super) struct Layout<'l, 'a> {
    pub(super) image: &'a DecodedImage,
    pub(super) shape: &'l Shape,
    pub(super) origins: &'l HashMap<u32, FileOrigin>,
    /// The files that cannot be made for the fdstore, and the action in their place.
    pub(super) lost: &'l HashMap<u32, Action>,
}

/// The steps of each table, by its owner, and for each owner the highest number that comes from its
/// forker's table.
type Steps = (Vec<Vec<Step>>, Vec<Option<RawFd>>);

impl Layout<'_, '_> {
    /// Lays out the steps of each table. Those that take a file from the fdstore have no message
    /// yet.
    pub(super) fn steps(&self, owners: &[usize]) -> Steps {
        let count = self.image.tasks.len();
        let mut steps: Vec<Vec<Step>> = vec![Vec::new(); count];
        let mut from_parent: Vec<Option<RawFd>> = vec![None; count];
        for &owner in owners {
            steps[owner] = self.table_steps(owner);
            let inherited = steps[owner].iter().filter(|step| step.action == Action::FromParent);
            from_parent[owner] = inherited.map(|step| step.fd).next_back();
        }
        // A descriptor that a child inherits must be in place before the fork.
        for &owner in owners {
            let Some(above) = self.owner_above(owner) else { continue };
            let inherited = steps[owner].iter().filter(|step| step.action == Action::FromParent);
            for fd in inherited.map(|step| step.fd).collect::<Vec<RawFd>>() {
                if let Ok(at) = steps[above].binary_search_by_key(&fd, |step| step.fd) {
                    steps[above][at].before_fork = true;
                }
            }
        }
        for steps in &mut steps {
            dup_repeated_files(steps);
            plan::add_queued(self.image, steps, &mut |file| match self.origins.get(&file.id) {
                Some(FileOrigin::Private) | None => Some(Action::Make),
                Some(_) => Some(NO_MESSAGE),
            });
        }
        (steps, from_parent)
    }

    /// The owner of the table that the forker of a task has.
    fn owner_above(&self, task: usize) -> Option<usize> {
        self.shape.nodes[task].forker.map(|forker| self.shape.nodes[forker].owner)
    }

    /// A step for each number of a table.
    fn table_steps(&self, owner: usize) -> Vec<Step> {
        let slots_of = |task: usize| self.image.slots_of(self.image.tasks[task].table.id);
        let above = self.owner_above(owner).map(slots_of).unwrap_or_default();
        let file_above = |fd: u32| {
            let at = above.binary_search_by_key(&fd, |slot| slot.fd).ok()?;
            Some(above[at].file)
        };
        let mut steps = Vec::new();
        for slot in slots_of(owner) {
            let origin = self.origins.get(&slot.file).copied().unwrap_or(FileOrigin::Private);
            let before_forks = !matches!(
                origin,
                FileOrigin::Private | FileOrigin::Store { needs_processes: true }
            );
            let action = match (self.lost.get(&slot.file), origin) {
                (Some(Action::Skip), _) => Action::Skip,
                _ if before_forks && file_above(slot.fd) == Some(slot.file) => Action::FromParent,
                (_, FileOrigin::Private | FileOrigin::Session) => Action::Make,
                (_, FileOrigin::Store { .. } | FileOrigin::Inherited) => NO_MESSAGE,
            };
            let (fd, file, cloexec) = (slot.fd as RawFd, Some(slot.file), slot.cloexec);
            steps.push(Step { fd, file, action, cloexec, ..Step::default() });
        }
        steps
    }

    /// Finds the messages of the fdstore, and enters them in the steps: files at consecutive
    /// numbers are one message if every table that takes one of them takes all, in the same order
    /// and in the same round. Files that need no processes come first.
    pub(super) fn messages(
        &self,
        owners: &[usize],
        steps: &mut [Vec<Step>],
        ctty_plans: &[CttyPlan],
    ) -> Vec<StoreMessage> {
        let takers = takers(owners, steps);
        let needs_processes =
            |id: u32| self.origins.get(&id) == Some(&FileOrigin::Store { needs_processes: true });
        let follows = |last: u32, next: u32| {
            let (last_by, next_by) = (&takers[&last], &takers[&next]);
            needs_processes(last) == needs_processes(next)
                && last_by.len() == next_by.len()
                && last_by.iter().zip(next_by).all(|(last, next)| last.is_followed_by(next))
        };
        let mut messages: Vec<StoreMessage> = Vec::new();
        let mut message_of: HashMap<u32, usize> = HashMap::new();
        for &owner in owners {
            let mut before: Option<(RawFd, u32)> = None;
            for step in &steps[owner] {
                let (Action::FromStore(_), Some(id)) = (step.action, step.file) else { continue };
                if message_of.contains_key(&id) {
                    continue;
                }
                let open = messages.last_mut().filter(|open| {
                    before.is_some_and(|(fd, last)| fd + 1 == step.fd && follows(last, id))
                        && open.files.len() < MAX_FDS
                });
                match open {
                    Some(open) => open.files.push(id),
                    None => messages.push(StoreMessage {
                        files: vec![id],
                        needs_processes: needs_processes(id),
                    }),
                }
                message_of.insert(id, messages.len() - 1);
                before = Some((step.fd, id));
            }
        }
        // A controlling terminal may be in no table at all.
        for ctty_plan in ctty_plans {
            let CttyPlan::FromImage(id) = ctty_plan else { continue };
            if !message_of.contains_key(id) && !self.lost.contains_key(id) {
                message_of.insert(*id, messages.len());
                messages.push(StoreMessage { files: vec![*id], needs_processes: false });
            }
        }
        // The order of the queue.
        let mut order: Vec<usize> = (0..messages.len()).collect();
        order.sort_by_key(|&at| messages[at].needs_processes);
        let mut places = vec![0; messages.len()];
        order.iter().enumerate().for_each(|(place, &at)| places[at] = place as u32);
        for step in steps.iter_mut().flatten() {
            if let (Action::FromStore(message), Some(id)) = (&mut step.action, step.file) {
                *message = places[message_of[&id]];
            }
        }
        order.into_iter().map(|at| messages[at].clone()).collect()
    }
}

/// A number at which a table takes a file from the fdstore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Taker {
    owner: usize,
    fd: RawFd,
    /// True if it is taken before children are forked.
    passed: bool,
}

impl Taker {
    /// True if the same table takes the next file at the next number, and in the same round.
    fn is_followed_by(&self, next: &Taker) -> bool {
        *next == Taker { fd: self.fd + 1, ..*self }
    }
}

/// The takers of each file, table after table.
fn takers(owners: &[usize], steps: &[Vec<Step>]) -> HashMap<u32, Vec<Taker>> {
    let mut takers: HashMap<u32, Vec<Taker>> = HashMap::new();
    for &owner in owners {
        for step in &steps[owner] {
            let (Action::FromStore(_), Some(id)) = (step.action, step.file) else { continue };
            let taker = Taker { owner, fd: step.fd, passed: step.before_fork };
            takers.entry(id).or_default().push(taker);
        }
    }
    takers
}

/// Makes all numbers of a file but one copies of that one: of a number that comes from the parent,
/// else of one that children inherit, else of the lowest.
fn dup_repeated_files(steps: &mut [Step]) {
    let mut first: BTreeMap<u32, usize> = BTreeMap::new();
    let rounds: [fn(&Step) -> bool; 3] =
        [|step| step.action == Action::FromParent, |step| step.before_fork, |_| true];
    for of_round in rounds {
        for (at, step) in steps.iter_mut().enumerate() {
            let wanted = of_round(step) && step.action != Action::Skip;
            let Some(id) = step.file.filter(|_| wanted) else { continue };
            let original = *first.entry(id).or_insert(at);
            if original != at && step.action != Action::FromParent {
                step.action = Action::Dup;
            }
        }
    }
}

/// Puts the forks of each task into order: each child as soon as the descriptors that it inherits
/// are in place, those that share its table last. `from_parent` is as [`Layout::steps`] finds it.
///
/// Returns for each task the highest number that its forker has in place for its children when it
/// forks this one.
pub(super) fn order_forks(
    shape: &mut Shape,
    tables: &[Option<Plan<'_>>],
    from_parent: &[Option<RawFd>],
) -> Vec<Option<RawFd>> {
    let mut placed_at_fork = vec![None; tables.len()];
    for task in 0..tables.len() {
        let mut forks = std::mem::take(&mut shape.nodes[task].forks);
        forks.sort_by_key(|&child| {
            let node = &shape.nodes[child];
            (!node.before_setsid, node.owner != child, from_parent[child], child)
        });
        let owner = shape.nodes[task].owner;
        let passed =
            tables[owner].iter().flat_map(|plan| &plan.steps).filter(|step| step.before_fork);
        let all = passed.map(|step| step.fd).next_back();
        let mut highest = None;
        for &child in &forks {
            highest = highest.max(from_parent[child]);
            // A task that shares a table has all that the owner passes to any child.
            let shares = owner != task || shape.nodes[child].owner != child;
            placed_at_fork[child] = if shares { all } else { highest };
        }
        shape.nodes[task].forks = forks;
    }
    placed_at_fork
}

/// The numbers of a table, beside service descriptors, when its task forks a child before which the
/// descriptors up to `highest` are in place: those that came from the parent, and those to pass on.
pub(super) fn numbers_at_fork(steps: &[Step], highest: Option<RawFd>) -> Vec<RawFd> {
    let is_there = |step: &&Step| {
        let made = step.before_fork && Some(step.fd) <= highest && step.action != Action::Skip;
        step.action == Action::FromParent || made
    };
    steps.iter().filter(is_there).map(|step| step.fd).collect()
}

/// The numbers that a table will have, ascending.
pub(super) fn table_numbers(plan: &Plan<'_>) -> Vec<u32> {
    let stays = plan.steps.iter().filter(|step| step.action != Action::Skip);
    stays.map(|step| step.fd as u32).collect()
}

/// The request for numbers of the service descriptors in a table. `sharers` is how many tasks share
/// it, `limit` the soft limit of open files during the restore.
pub(super) fn placement_request(numbers: &[u32], sharers: u32, limit: u64) -> TableNeeds<'_> {
    let limit = limit.min(u64::from(u32::MAX)) as u32;
    TableNeeds { numbers, sharers, limit, ..TableNeeds::default() }
}

/// Ascending numbers as ranges without a gap, each by its first and last number.
pub(super) fn ranges(numbers: &[RawFd]) -> Vec<(RawFd, RawFd)> {
    let mut ranges: Vec<(RawFd, RawFd)> = Vec::new();
    for &number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::super::Tree;
    use super::super::testing::{Builder, task};
    use super::*;
    use crate::ctty::SessionRole;
    use crate::image::QueuedFds;
    use crate::plan::{Missing, RestoreOptions};
    use serde_cbor::Value;

    /// Number, action, and whether children inherit it, of the steps of a task.
    fn steps(tree: &Tree<'_>, task: usize) -> Vec<(RawFd, Action, bool)> {
        let plan = tree.tables[task].as_ref().unwrap();
        plan.steps.iter().map(|step| (step.fd, step.action, step.before_fork)).collect()
    }

    fn files(tree: &Tree<'_>) -> Vec<Vec<u32>> {
        tree.messages.iter().map(|message| message.files.clone()).collect()
    }

    #[test]
    fn a_file_at_its_parents_number_is_inherited_and_elsewhere_taken_from_the_store() {
        let mut b = Builder::new([task(10, 1, 10, 10, 0), task(11, 10, 10, 10, 1)]);
        // 0 stays, 1 moves, 2 is the parent's alone, 3 the child's.
        b.files(4).slot(0, 0, 0).slot(0, 1, 1).slot(0, 2, 2);
        b.slot(1, 0, 0).slot(1, 2, 3).slot(1, 5, 1);
        let image = b.image();
        let tree = Tree::unchecked(&image).unwrap();
        use Action::{FromParent, FromStore, Make};
        let of_parent = [(0, FromStore(0), true), (1, FromStore(1), false), (2, Make, false)];
        assert_eq!(steps(&tree, 0), of_parent);
        let of_child = [(0, FromParent, false), (2, Make, false), (5, FromStore(1), false)];
        assert_eq!(steps(&tree, 1), of_child);
        assert_eq!(files(&tree), [[100], [101]]);
        assert_eq!((tree.highest_from_parent[1], tree.placed_at_fork[1]), (Some(0), Some(0)));
    }

    #[test]
    fn the_lowest_of_several_inherited_numbers_is_that_of_the_file() {
        let mut b = Builder::new([task(10, 1, 10, 10, 0), task(11, 10, 10, 10, 1)]);
        b.files(1).slot(0, 3, 0).slot(0, 5, 0).slot(1, 3, 0).slot(1, 5, 0);
        let image = b.image();
        let tree = Tree::unchecked(&image).unwrap();
        assert_eq!(
            steps(&tree, 1).iter().map(|step| step.1).collect::<Vec<_>>(),
            [Action::FromParent, Action::FromParent]
        );
        assert_eq!(tree.tables[1].as_ref().unwrap().lowest, HashMap::from([(100, 3)]));
    }

    #[test]
    fn files_that_are_taken_alike_are_one_message() {
        let mut b = Builder::new([task(10, 1, 10, 10, 0), task(11, 10, 10, 10, 1)]);
        // 3-5 of the one are 13-15 of the other, where 6 and 7 stand apart.
        b.files(6);
        for at in 0..5 {
            b.slot(0, 3 + at, at as usize);
        }
        for at in 0..3 {
            b.slot(1, 13 + at, at as usize);
        }
        b.slot(1, 17, 3).slot(1, 20, 4);
        let image = b.image();
        let tree = Tree::unchecked(&image).unwrap();
        assert_eq!(files(&tree), [vec![100, 101, 102], vec![103], vec![104]]);
        let messages: Vec<Action> = steps(&tree, 1).iter().map(|step| step.1).collect();
        assert_eq!(messages, [0, 0, 0, 1, 2].map(Action::FromStore));
    }

    #[test]
    fn a_message_has_no_more_files_than_the_kernel_takes() {
        let mut b = Builder::new([task(10, 1, 10, 10, 0), task(11, 10, 10, 10, 1)]);
        let count = MAX_FDS as u32 + 7;
        b.files(count as usize);
        for at in 0..count {
            b.slot(0, at, at as usize);
        }
        for at in 0..count {
            b.slot(1, count + at, at as usize);
        }
        let image = b.image();
        let tree = Tree::unchecked(&image).unwrap();
        let sizes: Vec<usize> = files(&tree).iter().map(Vec::len).collect();
        assert_eq!(sizes, [MAX_FDS, 7]);
    }

    #[test]
    fn messages_that_need_processes_come_last() {
        let pidfd = BTreeMap::from([("pid", 10), ("start", 1)]);
        let mut b = Builder::new([task(10, 1, 10, 10, 0), task(11, 10, 10, 10, 1)]);
        b.file("pidfd", "anon_inode:[pidfd]", &pidfd).files(1);
        b.slot(0, 3, 0).slot(0, 4, 1).slot(1, 3, 0).slot(1, 7, 1);
        let image = b.image();
        let tree = Tree::unchecked(&image).unwrap();
        let rounds: Vec<bool> = tree.messages.iter().map(|it| it.needs_processes).collect();
        assert_eq!((files(&tree), rounds), (vec![vec![101], vec![100]], vec![false, true]));
        // It is not there at the fork, so that the child takes it as well.
        let taken = [(3, Action::FromStore(1), false), (7, Action::FromStore(0), false)];
        assert_eq!(steps(&tree, 1), taken);
        assert_eq!(tree.store_plan.steps.len(), 2);
    }

    #[test]
    fn repeated_files_are_dups_of_one_that_is_there_first() {
        let step = |fd, file, action, before_fork| Step {
            fd,
            file: Some(file),
            action,
            before_fork,
            ..Step::default()
        };
        use Action::{Dup, FromParent, Make, Skip};
        let mut steps = [
            step(0, 1, Make, false),
            step(1, 1, Make, true),
            step(2, 2, Make, false),
            step(3, 2, FromParent, false),
            step(4, 2, FromParent, false),
            step(5, 3, Skip, false),
            step(6, 3, Make, false),
        ];
        dup_repeated_files(&mut steps);
        let actions = steps.map(|step| step.action);
        assert_eq!(actions, [Dup, Make, Dup, FromParent, FromParent, Skip, Make]);
        let highest = |highest| numbers_at_fork(&steps_of(&actions), highest);
        assert_eq!((highest(None), highest(Some(1))), (vec![3, 4], vec![1, 3, 4]));
    }

    /// Steps with these actions, of which children inherit number 1.
    fn steps_of(actions: &[Action]) -> Vec<Step> {
        let step = |(fd, &action): (usize, &Action)| Step {
            fd: fd as RawFd,
            action,
            before_fork: fd == 1,
            ..Step::default()
        };
        actions.iter().enumerate().map(step).collect()
    }

    #[test]
    fn children_are_forked_as_soon_as_what_they_inherit_is_in_place() {
        let mut b = Builder::new([
            task(10, 1, 10, 10, 0),
            task(11, 10, 10, 10, 1),
            task(12, 10, 10, 10, 2),
            task(13, 10, 10, 10, 0),
        ]);
        // 11 inherits 9, 12 only 3, 13 shares the table.
        b.files(2).slot(0, 3, 0).slot(0, 9, 1).slot(1, 3, 0).slot(1, 9, 1).slot(2, 3, 0);
        let image = b.image();
        let tree = Tree::unchecked(&image).unwrap();
        assert_eq!(tree.shape.nodes[0].forks, [2, 1, 3]);
        assert_eq!(tree.placed_at_fork, [None, Some(9), Some(3), Some(9)]);
        assert_eq!(tree.sharers, [2, 1, 1, 0]);
    }

    #[test]
    fn numbers_without_a_gap_are_one_range() {
        assert_eq!(ranges(&[]), []);
        assert_eq!(ranges(&[0]), [(0, 0)]);
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), [(0, 2), (5, 5), (7, 8)]);
    }
    #[test]
    fn an_epoll_that_only_a_queue_of_several_tables_has_is_left_out_as_missing_says() {
        let mut b = Builder::new([task(10, 1, 10, 10, 0), task(11, 10, 10, 10, 1)]);
        // 0 and 1 are the ends of a queue in which 2 waits.
        let epoll =
            BTreeMap::from([("pid", Value::Integer(10)), ("members", Value::Array(Vec::new()))]);
        b.files(2).file("epoll", "anon_inode:[eventpoll]", &epoll);
        b.slot(0, 3, 0).slot(1, 3, 1);
        let image = b.changed(|image| {
            image.files[0].object = Some(0);
            image.files[1].object = Some(0);
            let files = [image.files[2].id].into();
            image.queued_fds.insert(0, QueuedFds { files, credentials: false });
        });
        let own = SessionRole { leader: false, has_ctty: false };
        let planned = |missing| {
            let options = RestoreOptions { missing, ..RestoreOptions::default() };
            Tree::new(&image, &options, None, own, false).unwrap()
        };
        let refused = planned(Missing::Fail);
        let lines = refused.problems.iter().map(|problem| &problem.line);
        let of_epoll = lines.filter(|line| line.contains("(anon_inode:[eventpoll]): it refers to"));
        assert_eq!(of_epoll.count(), 1, "{:?}", refused.problems);
        let skipped = planned(Missing::Skip);
        assert_eq!(skipped.problems, []);
        assert!(skipped.store_plan.steps.iter().all(|step| step.action == Action::Skip));
    }
}
