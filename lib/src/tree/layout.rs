//! The steps of each table, and the messages of the fdstore. Values only, no system call.

use super::origin::Origin;
use super::shape::Shape;
use super::slots_of;
use crate::image::{OpenFile, Slot};
use crate::kind::context::{CttyPlan, Number};
use crate::kind::{DecodedImage, Need};
use crate::placement::TableNeeds;
use crate::plan::{self, Action, FileOwner, Plan, Step};
use crate::table::fdstore::MOST;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::RawFd;

/// Which descriptions are one message of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreMessage {
    /// The files, in the order of the numbers that they get.
    pub files: Vec<u32>,
    /// Whether they can be made only when all processes are there.
    pub last: bool,
}

/// The plan of what is made for the store, each file as its home knows it.
pub(super) fn common<'a>(
    image: &'a DecodedImage,
    origins: &HashMap<u32, Origin>,
    homes: &HashMap<u32, (usize, RawFd)>,
) -> Plan<'a> {
    let is_common = |file: &&OpenFile| matches!(origins.get(&file.id), Some(Origin::Common { .. }));
    let step = |(at, file): (usize, &OpenFile)| {
        let last = origins.get(&file.id) == Some(&Origin::Common { last: true });
        let action = Action::Make;
        // Where they stand in fdrestore does not matter.
        Step { fd: at as RawFd, file: Some(file.id), action, passed: !last, ..Step::default() }
    };
    let mut steps: Vec<Step> = image.files.iter().filter(is_common).enumerate().map(step).collect();
    let handed = |file: &OpenFile| matches!(origins.get(&file.id), Some(Origin::Handed(_)));
    plan::wait(image, &mut steps, &mut |file| (!handed(file)).then_some(Action::Make));
    let mut plan = Plan::of(image, &image.tasks[0], steps);
    for step in &plan.steps {
        let file = step.file.filter(|id| !homes.contains_key(id)).and_then(|id| image.file(id));
        let Some(file) = file else { continue };
        if image.record(file.id).is_some_and(|record| record.need(file) == Need::Numbers) {
            let why = "it waits in a queue of several tables, and names numbers of one";
            plan.problems.push(format!("{}: {why}", plan.name(step)));
        }
    }
    let mut numbers: HashMap<usize, usize> = HashMap::new();
    for step in &plan.steps {
        let Some((id, &(home, fd))) = step.file.and_then(|id| Some((id, homes.get(&id)?))) else {
            continue;
        };
        let task = &image.tasks[home];
        let all = &mut plan.numbers;
        let at = *numbers.entry(home).or_insert_with(|| {
            let number = |slot: &Slot| Number { fd: slot.fd as RawFd, file: Some(slot.file) };
            all.push(slots_of(image, task).iter().map(number).collect());
            all.len() - 1
        });
        plan.file_owners.insert(id, FileOwner { task, numbers: at, fd });
    }
    plan
}

/// What is known when the numbers are laid out.
pub(super) struct Layout<'l, 'a> {
    pub(super) image: &'a DecodedImage,
    pub(super) shape: &'l Shape,
    pub(super) origins: &'l HashMap<u32, Origin>,
    /// What could not be made for the store.
    pub(super) lost: &'l HashMap<u32, Action>,
}

impl Layout<'_, '_> {
    /// The steps of each table, of which those that fetch have no message yet, and for each task the
    /// highest number that its parent passes on.
    pub(super) fn steps(&self, owners: &[usize]) -> (Vec<Vec<Step>>, Vec<Option<RawFd>>) {
        let count = self.image.tasks.len();
        let mut steps: Vec<Vec<Step>> = vec![Vec::new(); count];
        let mut passed: Vec<Option<RawFd>> = vec![None; count];
        for &owner in owners {
            let task = &self.image.tasks[owner];
            let above = self.shape.nodes[owner].maker.map(|maker| self.shape.nodes[maker].owner);
            let above = above.map(|above| slots_of(self.image, &self.image.tasks[above]));
            let of_parent = |fd: u32| {
                let slots = above.unwrap_or_default();
                let at = slots.binary_search_by_key(&fd, |slot| slot.fd).ok()?;
                Some(slots[at].file)
            };
            for slot in slots_of(self.image, task) {
                let origin = self.origins.get(&slot.file).copied().unwrap_or(Origin::Private);
                let passes = !matches!(origin, Origin::Private | Origin::Common { last: true });
                let there = of_parent(slot.fd) == Some(slot.file);
                let action = match self.lost.get(&slot.file) {
                    Some(Action::Skip) => Action::Skip,
                    _ if passes && there => Action::FromParent,
                    // Its message is found later.
                    _ if !matches!(origin, Origin::Private | Origin::Session) => {
                        Action::FromStore(u32::MAX)
                    }
                    _ => Action::Make,
                };
                if action == Action::FromParent {
                    passed[owner] = Some(slot.fd as RawFd);
                }
                let fd = slot.fd as RawFd;
                let (file, cloexec) = (Some(slot.file), slot.cloexec);
                steps[owner].push(Step { fd, file, action, cloexec, ..Step::default() });
            }
        }
        // What a child is born with must be there before it.
        for &owner in owners {
            let Some(maker) = self.shape.nodes[owner].maker else { continue };
            let above = self.shape.nodes[maker].owner;
            let there = steps[owner].iter().filter(|step| step.action == Action::FromParent);
            let there: Vec<RawFd> = there.map(|step| step.fd).collect();
            for fd in there {
                if let Ok(at) = steps[above].binary_search_by_key(&fd, |step| step.fd) {
                    steps[above][at].passed = true;
                }
            }
        }
        for steps in &mut steps {
            share(steps);
            plan::wait(self.image, steps, &mut |file| match self.origins.get(&file.id) {
                Some(Origin::Private) | None => Some(Action::Make),
                // Its message is found later.
                Some(_) => Some(Action::FromStore(u32::MAX)),
            });
        }
        (steps, passed)
    }

    /// Finds runs of numbers that are alike wherever they are fetched: they are one message.
    pub(super) fn messages(
        &self,
        owners: &[usize],
        steps: &mut [Vec<Step>],
        ctty_plans: &[CttyPlan],
    ) -> Vec<StoreMessage> {
        // Who fetches each file, at which number, before or after its children.
        let mut takers: HashMap<u32, Vec<(usize, RawFd, bool)>> = HashMap::new();
        for &owner in owners {
            for step in
                steps[owner].iter().filter(|step| matches!(step.action, Action::FromStore(_)))
            {
                let Some(id) = step.file else { continue };
                takers.entry(id).or_default().push((owner, step.fd, step.passed));
            }
        }
        let is_last = |id: u32| self.origins.get(&id) == Some(&Origin::Common { last: true });
        let follows = |last: u32, next: u32| {
            let (last_by, next_by) = (&takers[&last], &takers[&next]);
            is_last(last) == is_last(next)
                && last_by.len() == next_by.len()
                && last_by
                    .iter()
                    .zip(next_by)
                    .all(|(&(by, at, when), &next)| (by, at + 1, when) == next)
        };
        let mut messages: Vec<StoreMessage> = Vec::new();
        let mut known: HashMap<u32, u32> = HashMap::new();
        for &owner in owners {
            let mut before: Option<(RawFd, u32)> = None;
            for step in &steps[owner] {
                let (Action::FromStore(_), Some(id)) = (step.action, step.file) else { continue };
                if known.contains_key(&id) {
                    continue;
                }
                let open = messages.last_mut().filter(|open| {
                    before.is_some_and(|(fd, last)| fd + 1 == step.fd && follows(last, id))
                        && open.files.len() < MOST
                });
                match open {
                    Some(open) => open.files.push(id),
                    None => messages.push(StoreMessage { files: vec![id], last: is_last(id) }),
                }
                known.insert(id, messages.len() as u32 - 1);
                before = Some((step.fd, id));
            }
        }
        // A controlling terminal may be in no table at all.
        for ctty_plan in ctty_plans {
            let CttyPlan::FromImage(id) = ctty_plan else { continue };
            if !known.contains_key(id) && !self.lost.contains_key(id) {
                known.insert(*id, messages.len() as u32);
                messages.push(StoreMessage { files: vec![*id], last: false });
            }
        }
        // Those of the first round come first in the queue too.
        let mut order: Vec<usize> = (0..messages.len()).collect();
        order.sort_by_key(|&at| messages[at].last);
        let mut places = vec![0; messages.len()];
        order.iter().enumerate().for_each(|(place, &at)| places[at] = place as u32);
        for step in steps.iter_mut().flatten() {
            if let (Action::FromStore(message), Some(id)) = (&mut step.action, step.file) {
                *message = places[known[&id] as usize];
            }
        }
        order.into_iter().map(|at| messages[at].clone()).collect()
    }
}

/// All but the first number of a file are copies of that one: the first of those that children are
/// born with, if any is.
pub(super) fn share(steps: &mut [Step]) {
    let mut first: BTreeMap<u32, usize> = BTreeMap::new();
    for round in [0, 1, 2] {
        for (at, step) in steps.iter_mut().enumerate() {
            let of_round = match round {
                0 => step.action == Action::FromParent,
                1 => step.passed,
                _ => true,
            };
            let Some(id) = step.file.filter(|_| of_round && step.action != Action::Skip) else {
                continue;
            };
            let leader = *first.entry(id).or_insert(at);
            if leader != at && step.action != Action::FromParent {
                step.action = Action::Dup;
            }
        }
    }
}

/// Puts those that a task makes into the order in which it makes them: each as soon as what it
/// passes on to it stands, those that share its table last. Gives [`Tree::reached`].
pub(super) fn reached(
    shape: &mut Shape,
    tables: &[Option<Plan<'_>>],
    passed: &[Option<RawFd>],
) -> Vec<Option<RawFd>> {
    let mut reached = vec![None; tables.len()];
    for task in 0..tables.len() {
        let mut makes = std::mem::take(&mut shape.nodes[task].makes);
        makes.sort_by_key(|&child| {
            let nodes = &shape.nodes[child];
            (!nodes.before, nodes.owner != child, passed[child], child)
        });
        let owner = shape.nodes[task].owner;
        let all = tables[owner].iter().flat_map(|plan| &plan.steps).filter(|step| step.passed);
        let all = all.map(|step| step.fd).next_back();
        let mut highest = None;
        for &child in &makes {
            highest = highest.max(passed[child]);
            // One that shares a table has what its owner passes on to anybody.
            let shares = owner != task || shape.nodes[child].owner != child;
            reached[child] = if shares { all } else { highest };
        }
        shape.nodes[task].makes = makes;
    }
    reached
}

/// The numbers that a table will have.
pub(super) fn numbers(plan: &Plan<'_>) -> Vec<u32> {
    let stays = plan.steps.iter().filter(|step| step.action != Action::Skip);
    stays.map(|step| step.fd as u32).collect()
}

/// What is asked of the placement of our own descriptors in a table.
pub(super) fn wanted(numbers: &[u32], sharers: u32, limit: u64) -> TableNeeds<'_> {
    let limit = limit.min(u64::from(u32::MAX)) as u32;
    TableNeeds { numbers, sharers, limit, ..TableNeeds::default() }
}

/// Numbers that ascend, as ranges without a gap.
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
