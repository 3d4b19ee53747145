//! Plans as tables and as JSON.

use fdkit::kind::context::CttyPlan;
use fdkit::plan::{Action, Plan, Step};
use fdkit::text::escape;
use fdkit::tree::Tree;
use serde_json::{Value, json};
use std::borrow::Cow;

/// The plan of one table.
pub(crate) fn plan(plan: &Plan<'_>, json: bool) -> String {
    match json {
        true => format!("{:#}\n", value(plan)),
        false => table(plan),
    }
}

/// The plans of all tables of a tree.
pub(crate) fn tree(tree: &Tree<'_>, json: bool) -> String {
    let owner = |task: usize| &tree.image.tasks[tree.shape.nodes[task].owner];
    let mut out = String::new();
    let mut tasks = Vec::new();
    for &at in &tree.shape.order {
        let task = &tree.image.tasks[at];
        let name = escape(&task.comm.0);
        match (&tree.tables[at], json) {
            (Some(plan), true) => tasks.push(value(plan)),
            (None, true) => tasks.push(json!({"pid": task.pid, "shares": owner(at).pid})),
            (Some(plan), false) => out += &format!("{} {name}\n{}", task.pid, table(plan)),
            (None, false) => {
                out += &format!("{} {name}\n       the table of {}\n", task.pid, owner(at).pid);
            }
        }
    }
    match json {
        true => format!("{:#}\n", json!({"tasks": tasks, "problems": tree.problems})),
        false => out,
    }
}

fn deed(step: &Step) -> String {
    match step.action {
        Action::Make => "make".to_owned(),
        Action::Dup => "dup".to_owned(),
        Action::Inherit(from) => format!("inherit {from}"),
        Action::Null => "/dev/null".to_owned(),
        Action::Skip => "none".to_owned(),
        Action::FromStore(_) => "fetch".to_owned(),
        Action::FromParent => "inherited".to_owned(),
        Action::Park => "fill".to_owned(),
    }
}

/// Kind and name of what a step is about.
fn what<'p>(plan: &'p Plan<'_>, step: &Step) -> (Cow<'p, str>, Cow<'p, str>) {
    match step.file.and_then(|id| plan.image.file(id)) {
        Some(file) => (escape(file.kind.as_bytes()), escape(&file.link.0)),
        None => ("-".into(), "the caller's own".into()),
    }
}

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

fn table(plan: &Plan<'_>) -> String {
    let line = |step: &Step| {
        let (kind, link) = what(plan, step);
        let number = if step.waits { "queue".to_owned() } else { step.fd.to_string() };
        format!("{number:>5}  {:<10}  {kind:<9}  {link}\n", deed(step))
    };
    let terminal = terminal(plan).map(|is| format!("controlling terminal: {is}\n"));
    plan.steps.iter().map(line).chain(terminal).collect()
}

fn value(plan: &Plan<'_>) -> Value {
    let row = |step: &Step| {
        let (kind, link) = what(plan, step);
        json!({
            "fd": (!step.waits).then_some(step.fd), "deed": deed(step), "kind": kind, "name": link, "cloexec": step.cloexec,
        })
    };
    json!({
        "pid": plan.task.pid, "steps": plan.steps.iter().map(row).collect::<Vec<_>>(),
        "terminal": terminal(plan), "problems": plan.problems,
    })
}
