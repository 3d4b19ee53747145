//! fdrestore --dry-run: the operations of a restore, as a table and as JSON.

use fdkit::error::Result;
use fdkit::kind::context::CttyPlan;
use fdkit::kind::effect::{Allow, Effect};
use fdkit::operation::{Operation, Origin};
use fdkit::plan::{Action, Plan, Problem, RestoreOptions};
use fdkit::table::command;
use fdkit::text::escape;
use fdkit::tree::{self, Mode, Tree};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::os::fd::RawFd;

/// The operations on the table of one task, as text or JSON.
pub(crate) fn plan(plan: &Plan<'_>, options: &RestoreOptions, json: bool) -> Result<String> {
    let operations = command::operations(plan, options)?;
    let limit = command::raised_limit(plan)?;
    if json {
        let mut value = value(plan, &operations);
        value["limit"] = limit.into();
        return Ok(format!("{value:#}\n"));
    }
    let limit = limit.map(|limit| format!("limit of open files during the restore: {limit}\n"));
    Ok(table(plan, &operations) + &limit.unwrap_or_default())
}

/// The operations on all tables of a tree, as text or JSON.
pub(crate) fn tree(
    tree: &Tree<'_>,
    options: &RestoreOptions,
    mode: &Mode,
    json: bool,
) -> Result<String> {
    let all = tree::operations(tree, options, mode)?;
    let owner = |task: usize| &tree.image.tasks[tree.shape.nodes[task].owner];
    let mut out = String::new();
    let mut tasks = Vec::new();
    if !all.common.is_empty() && !json {
        out += &format!("fdrestore\n{}", table(&tree.store_plan, &all.common));
    }
    for &at in &tree.shape.order {
        let task = &tree.image.tasks[at];
        let name = escape(&task.comm.0);
        match (tree.tables[at].as_ref().zip(all.tasks[at].as_ref()), json) {
            (Some((plan, operations)), true) => tasks.push(value(plan, operations)),
            (None, true) => tasks.push(json!({"pid": task.pid, "shares": owner(at).pid})),
            (Some((plan, operations)), false) => {
                out += &format!("{} {name}\n{}", task.pid, table(plan, operations));
            }
            (None, false) => {
                out += &format!("{} {name}\n       the table of {}\n", task.pid, owner(at).pid);
            }
        }
    }
    Ok(match json {
        true => {
            let common = list(&tree.store_plan, &all.common);
            format!(
                "{:#}\n",
                json!({"common": common, "tasks": tasks, "problems": lines(&tree.problems)})
            )
        }
        false => out,
    })
}

/// An operation as a line of the table.
struct Line {
    number: Option<RawFd>,
    verb: String,
    /// The id of the file at the number.
    file: Option<u32>,
    /// The arguments, as text.
    detail: String,
}

/// The line for an operation.
fn line(plan: &Plan<'_>, operation: &Operation) -> Line {
    let file_at = |number: RawFd| {
        let at = plan.steps.binary_search_by_key(&number, |step| step.fd).ok()?;
        plan.steps[at].file
    };
    let of = |number: RawFd, verb: &str, detail: String| Line {
        number: Some(number),
        verb: verb.to_owned(),
        file: file_at(number),
        detail,
    };
    match operation {
        Operation::Place { number, file, origin } => Line {
            number: Some(*number),
            verb: match origin {
                Origin::Opened | Origin::ClosedEnd => "open",
                Origin::Store(_) => "receive",
                Origin::Parent => "inherited",
                Origin::Null => "null",
            }
            .to_owned(),
            file: Some(*file),
            detail: match origin {
                Origin::ClosedEnd => "the other end, until the queue is filled".to_owned(),
                Origin::Opened => {
                    let effects = effects_of(plan, *file).iter();
                    effects.map(|effect| effect.what.as_str()).collect::<Vec<_>>().join(", ")
                }
                _ => String::new(),
            },
        },
        Operation::Inherit { number, from } => {
            of(*number, &format!("inherit {from}"), String::new())
        }
        Operation::Dup { from, number } => of(*number, "dup", format!("of {from}")),
        Operation::ControllingTerminal { name, .. } => Line {
            number: None,
            verb: "control".to_owned(),
            file: None,
            detail: format!("controlling terminal {name}"),
        },
        Operation::EpollMembers { number, members } => {
            of(*number, "epoll", format!("{} members", members.len()))
        }
        Operation::Finish { number, what, .. } => of(*number, "finish", what.clone()),
        Operation::Owner { number, owner, signal } => {
            let owner = owner.map_or("as it is".to_owned(), |(_, id)| match id {
                0 => "not forked yet".to_owned(),
                id => id.to_string(),
            });
            of(*number, "owner", format!("{owner}, signal {signal}"))
        }
        Operation::Async { number, .. } => of(*number, "async", String::new()),
        Operation::Lock { number, lock } => of(*number, "lock", lock.describe()),
        Operation::TestLock { number, lock } => of(*number, "test", lock.describe()),
        Operation::Close { number } => of(*number, "close", String::new()),
        Operation::CloseOnExec { first, last } => of(*first, "cloexec", format!("to {last}")),
        Operation::Shrink { capacity } => Line {
            number: None,
            verb: "shrink".to_owned(),
            file: None,
            detail: format!("to {capacity} slots if it has more"),
        },
    }
}

/// The kind and the link text of a file.
fn kind_and_link<'p>(plan: &'p Plan<'_>, file: Option<u32>) -> (Cow<'p, str>, Cow<'p, str>) {
    match file.and_then(|id| plan.image.file(id)) {
        Some(file) => (escape(file.kind.as_bytes()), escape(&file.link.0)),
        None => ("-".into(), "".into()),
    }
}

/// The planned controlling terminal as text; none if the task has none.
fn terminal(plan: &Plan<'_>) -> Option<String> {
    match &plan.terminal {
        CttyPlan::None => None,
        CttyPlan::Kept => Some("the caller's own".to_owned()),
        CttyPlan::Session(leader) => Some(format!("that of session {leader}")),
        CttyPlan::FromImage(id) => {
            let link = plan.image.file(*id).map(|file| escape(&file.link.0).into_owned());
            Some(format!("that of {}", link.unwrap_or_default()))
        }
        CttyPlan::FromCaller(fd) => Some(format!("that of {fd}")),
        CttyPlan::FromPath(path) => Some(escape(path).into_owned()),
        CttyPlan::Unavailable(why) => Some(format!("none: {why}")),
    }
}

/// The lines for operations, for numbers that stay closed, and for the controlling terminal.
fn table(plan: &Plan<'_>, operations: &[Operation]) -> String {
    let row = |operation: &Operation| {
        let Line { number, verb, file, detail } = line(plan, operation);
        let (kind, link) = kind_and_link(plan, file);
        let number = number.map_or("-".to_owned(), |number| match is_temporary(plan, number) {
            true => "queue".to_owned(),
            false => number.to_string(),
        });
        let name = match (link.is_empty(), detail.is_empty()) {
            (_, true) => link.into_owned(),
            (true, false) => detail,
            (false, false) => format!("{link}  ({detail})"),
        };
        format!("{number:>5}  {verb:<10}  {kind:<9}  {name}\n")
    };
    let skipped = plan.steps.iter().filter(|step| step.action == Action::Skip).map(|step| {
        let (kind, link) = kind_and_link(plan, step.file);
        format!("{:>5}  {:<10}  {kind:<9}  {link}\n", step.fd, "none")
    });
    let terminal = terminal(plan).map(|is| format!("controlling terminal: {is}\n"));
    operations.iter().map(row).chain(skipped).chain(terminal).collect()
}

/// Reports whether a number is open only until all queues are filled.
fn is_temporary(plan: &Plan<'_>, number: RawFd) -> bool {
    let at = plan.steps.binary_search_by_key(&number, |step| step.fd);
    at.is_ok_and(|at| plan.steps[at].temporary)
}

/// The operations as JSON objects.
fn list(plan: &Plan<'_>, operations: &[Operation]) -> Vec<Value> {
    let row = |operation: &Operation| {
        let Line { number, verb, file, detail } = line(plan, operation);
        let (kind, link) = kind_and_link(plan, file);
        let number = number.filter(|number| !is_temporary(plan, *number));
        let mut row = json!({"fd": number, "verb": verb, "kind": kind, "name": link});
        if !detail.is_empty() {
            row["detail"] = detail.into();
        }
        row["operation"] = serde_json::to_value(operation).unwrap_or_default();
        if let Operation::Place { file, origin: Origin::Opened, .. } = operation {
            let effects = effects_of(plan, *file);
            if !effects.is_empty() {
                row["effects"] = effects.iter().map(effect).collect();
            }
        }
        row
    };
    operations.iter().map(row).collect()
}

/// What the restore of a file does besides.
fn effects_of<'p>(plan: &'p Plan<'_>, file: u32) -> &'p [Effect] {
    plan.effects.get(&file).map_or(&[], Vec::as_slice)
}

fn effect(effect: &Effect) -> Value {
    json!({"allow": effect.needs.map(Allow::name), "what": effect.what})
}

fn lines(problems: &[Problem]) -> Vec<&str> {
    problems.iter().map(|problem| problem.line.as_str()).collect()
}

/// The operations and problems of one table as a JSON object.
fn value(plan: &Plan<'_>, operations: &[Operation]) -> Value {
    json!({
        "pid": plan.task.pid, "operations": list(plan, operations),
        "terminal": terminal(plan), "problems": lines(&plan.problems),
        "losses": plan.describe_losses(|_| true),
    })
}
