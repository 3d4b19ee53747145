//! Checks of programs, directories, process ids and limits before any process is forked.

use super::Tree;
use super::credentials::{
    CAP_CHECKPOINT_RESTORE, CAP_SYS_ADMIN, CAP_SYS_CHROOT, EFFECTIVE, own_credentials,
    would_gain_capabilities,
};
use super::exec::{LOCKS_LOST, below, is_title, loses_locks};
use super::layout::{placement_request, table_numbers};
use super::spawn::{is_taken, may_not_choose_pid};
use super::state::{Mode, below_root, other_root};
use crate::error::{At, Error, Result};
use crate::image::{Credentials, Task};
use crate::plan::{Cure, Missing, Problem, RestoreOptions};
use crate::table::services::{limits_for, service_numbers};
use crate::text::escape;
use std::path::Path;

/// Adds to the problems of the tree everything besides descriptors that cannot be restored: programs and
/// directories that are gone, process ids that are taken, capabilities that a program would gain.
///
/// Fails with status 6 if a table has no room for the service descriptors, with 4 if process ids
/// are to be chosen and this process may not.
pub fn check_feasible(
    tree: &mut Tree<'_>,
    options: &RestoreOptions,
    mode: &Mode,
    root: Option<&Path>,
) -> Result<()> {
    let own = own_credentials()?;
    if mode.same_pids && own.caps[EFFECTIVE] & (CAP_SYS_ADMIN | CAP_CHECKPOINT_RESTORE) == 0 {
        return Err(may_not_choose_pid());
    }
    let highest = tree.highest_number();
    let (_, limit) = limits_for(highest)?;
    if let Some(highest) = highest.filter(|&highest| u64::from(highest) >= limit) {
        let why = format!("{highest} files at once, above the hard limit of {limit} open files");
        return Err(Error::unrestorable(format!(
            "fdrestore needs to open {why}; raise it (ulimit -Hn)"
        )));
    }
    let services = 1 + usize::from(root.is_some());
    for (plan, &sharers) in tree.tables.iter().zip(&tree.sharers) {
        let Some(plan) = plan else { continue };
        let numbers = table_numbers(plan);
        let at = || format!("task {}", plan.task.pid);
        service_numbers(options.placement, &placement_request(&numbers, sharers, limit), services)
            .at(at)?;
    }
    let host = Host {
        credentials: &own,
        is_dir: &|path| below_root(root, path).is_dir(),
        may_run: &|path| {
            let path = below_root(root, path);
            nix::unistd::access(&path, nix::unistd::AccessFlags::X_OK).is_ok()
        },
        is_taken: &is_taken,
    };
    for &at in &tree.shape.order {
        let task = &tree.image.tasks[at];
        let runs_command = mode.runs_command(&tree.shape, at);
        let mut problems = host.problems(task, mode, runs_command);
        let plan = tree.tables[at].as_ref().filter(|_| options.missing == Missing::Fail);
        if plan.is_some_and(|plan| loses_locks(mode, tree.sharers[at], plan)) {
            problems.push(Problem { line: LOCKS_LOST.to_owned(), cure: Cure::Lock });
        }
        tree.problems.extend(problems.into_iter().map(|problem| problem.of_task(task.pid)));
    }
    Ok(())
}

/// The system on which a tree is restored. Paths are those of the image.
struct Host<'h> {
    /// The credentials of fdrestore.
    credentials: &'h Credentials,
    is_dir: &'h dyn Fn(&[u8]) -> bool,
    may_run: &'h dyn Fn(&[u8]) -> bool,
    /// True if a process or a group has this id.
    is_taken: &'h dyn Fn(i32) -> bool,
}

impl Host<'_> {
    /// The reasons why a task cannot be restored.
    fn problems(&self, task: &Task, mode: &Mode, runs_command: bool) -> Vec<Problem> {
        let mut lines = Vec::new();
        if mode.respawn && !runs_command {
            if would_gain_capabilities(&task.credentials, self.credentials) {
                let ids = "its user and group ids cannot be restored (that takes CAP_SETUID and";
                let why = "CAP_SETGID), and its program would gain capabilities";
                lines.push(format!("{ids} {why}"));
            }
            lines.extend(self.directory_problems(task));
            lines.extend(self.program_problem(task));
        }
        let problem = |line| Problem { line, cure: Cure::NoProgram };
        let mut problems: Vec<Problem> = lines.into_iter().map(problem).collect();
        if mode.same_pids && (self.is_taken)(task.pid) {
            let line = "its process id is taken (--same-pids)".to_owned();
            problems.push(Problem { line, cure: Cure::AnyPid });
        }
        problems
    }

    fn directory_problems(&self, task: &Task) -> Vec<String> {
        let mut problems = Vec::new();
        for (which, path) in [("working", &task.cwd), ("root", &task.root)] {
            let Some(path) = path else { continue };
            if !(self.is_dir)(&path.0) {
                problems.push(format!("its {which} directory {} is not there", escape(&path.0)));
            }
        }
        let may_chroot = self.credentials.caps[EFFECTIVE] & CAP_SYS_CHROOT != 0;
        if let Some(root) = other_root(task).filter(|root| !may_chroot && (self.is_dir)(root)) {
            let why = "cannot be restored: chroot(2) takes CAP_SYS_CHROOT";
            problems.push(format!("its root directory {} {why}", escape(root)));
        }
        problems
    }

    /// The reason why the program of a task cannot be run again, if there is one.
    fn program_problem(&self, task: &Task) -> Option<String> {
        if let Some(tgid) = task.tgid {
            let why = "with a descriptor table of its own, and cannot be run as a program";
            return Some(format!("it is a thread of process {tgid} {why}"));
        }
        let inside = |exe: &[u8]| other_root(task).is_none_or(|root| below(exe, root).is_some());
        match &task.exe {
            Some(exe) if is_title(&task.args, &exe.0) => {
                let line = escape(&task.args[0].0);
                let why = "is a title that it gave itself: its arguments are lost, and it cannot be \
                           run again";
                Some(format!("its command line '{line}' {why}"))
            }
            Some(exe) if !task.args.is_empty() && inside(&exe.0) => {
                let why = "is not there, or may not be executed";
                let gone = !(self.may_run)(&exe.0);
                gone.then(|| format!("its program {} {why}", escape(&exe.0)))
            }
            Some(exe) if !task.args.is_empty() => {
                let why = "is outside its root directory, and cannot be run again";
                Some(format!("its program {} {why}", escape(&exe.0)))
            }
            _ => Some("the image does not say which program it ran".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::task;
    use super::*;
    use crate::image::Bytes;
    use crate::messages::Messages;

    const RESPAWN: Mode =
        Mode { respawn: true, command: Vec::new(), same_pids: false, stats: false };

    fn host(credentials: &Credentials) -> Host<'_> {
        Host {
            credentials,
            is_dir: &|path| !path.ends_with(b"gone"),
            may_run: &|path| path == b"/bin/sh" || path == b"/box/bin/sh",
            is_taken: &|pid| pid == 11,
        }
    }

    fn root() -> Credentials {
        Credentials {
            caps: [0, u64::MAX, u64::MAX, u64::MAX, 0],
            ..task(1, 0, 1, 1, 0).credentials
        }
    }

    /// The lines of the problems of a task.
    fn lines(host: &Host<'_>, task: &Task, mode: &Mode, runs_command: bool) -> Vec<String> {
        let problems = host.problems(task, mode, runs_command);
        problems.into_iter().map(|problem| problem.line).collect()
    }

    fn bytes(text: &str) -> Bytes {
        Bytes(text.as_bytes().to_vec())
    }

    fn shell() -> Task {
        let mut shell = task(10, 1, 10, 10, 0);
        (shell.exe, shell.args) = (Some(bytes("/bin/sh")), vec![bytes("sh")]);
        (shell.cwd, shell.root) = (Some(bytes("/")), Some(bytes("/")));
        shell
    }

    /// The one problem of a task that is to run again.
    fn only_problem(task: &Task, own: &Credentials) -> String {
        let [problem] = &lines(&host(own), task, &RESPAWN, false)[..] else {
            panic!("{:?}", lines(&host(own), task, &RESPAWN, false));
        };
        problem.clone()
    }

    #[test]
    fn a_task_that_holds_needs_no_program() {
        let own = root();
        let unknown = task(10, 1, 10, 10, 0);
        assert_eq!(lines(&host(&own), &unknown, &Mode::default(), false), [""; 0]);
        assert_eq!(lines(&host(&own), &unknown, &RESPAWN, true), [""; 0]);
        assert_eq!(lines(&host(&own), &shell(), &RESPAWN, false), [""; 0]);
        assert_eq!(only_problem(&unknown, &own), "the image does not say which program it ran");
    }

    #[test]
    fn a_program_is_looked_for() {
        let own = root();
        let mut gone = shell();
        gone.exe = Some(bytes("/bin/gone"));
        assert!(only_problem(&gone, &own).contains("/bin/gone is not there"));
        let mut titled = shell();
        titled.args = vec![bytes("sh: worker 1"), bytes("")];
        assert!(only_problem(&titled, &own).contains("'sh: worker 1' is a title"));
        let mut empty = shell();
        empty.args = Vec::new();
        assert!(only_problem(&empty, &own).contains("which program"));
    }

    #[test]
    fn directories_and_programs_of_another_root_are_looked_for() {
        let own = root();
        let mut lost = shell();
        lost.cwd = Some(bytes("/gone"));
        assert_eq!(only_problem(&lost, &own), "its working directory /gone is not there");
        let mut boxed = shell();
        (boxed.root, boxed.exe) = (Some(bytes("/box")), Some(bytes("/box/bin/sh")));
        assert_eq!(lines(&host(&own), &boxed, &RESPAWN, false), [""; 0]);
        let user = Credentials { caps: [0; 5], ..root() };
        assert!(only_problem(&boxed, &user).contains("chroot(2) takes CAP_SYS_CHROOT"));
        boxed.root = Some(bytes("/gone"));
        boxed.exe = Some(bytes("/gone/bin/sh"));
        let problems = lines(&host(&user), &boxed, &RESPAWN, false);
        assert!(problems[0].contains("its root directory /gone is not there"), "{problems:?}");
        assert_eq!(problems.len(), 2, "{problems:?}");
        boxed.root = Some(bytes("/other"));
        boxed.exe = Some(bytes("/box/bin/sh"));
        assert!(only_problem(&boxed, &own).contains("is outside its root directory"));
    }

    #[test]
    fn a_program_gains_no_capabilities_and_a_taken_id_is_said() {
        let mut own = root();
        own.caps[EFFECTIVE] = 0;
        let mut user = shell();
        user.credentials.uids = [7; 4];
        assert!(only_problem(&user, &own).contains("would gain capabilities"));
        let same = Mode { same_pids: true, ..Mode::default() };
        assert_eq!(lines(&host(&own), &task(10, 1, 10, 10, 0), &same, false), [""; 0]);
        let taken = lines(&host(&own), &task(11, 1, 11, 11, 0), &same, false);
        assert_eq!(taken, ["its process id is taken (--same-pids)"]);
    }

    #[test]
    fn a_refusal_has_the_cures_that_fit_and_no_others() {
        let own = root();
        let mode = Mode { same_pids: true, ..RESPAWN };
        let mut gone = Task { pid: 11, ..shell() };
        gone.exe = Some(bytes("/bin/gone"));
        let refusal = |problems: &[Problem]| {
            crate::plan::refuse(problems, &mut Messages::kept()).unwrap_err()
        };
        let said = refusal(&host(&own).problems(&gone, &mode, false)).to_string();
        let cures = "leave --respawn out for processes that only hold their descriptors; leave \
                     --same-pids out for any process ids";
        assert_eq!(said, format!("2 cannot be restored here; {cures}"));
        let said = refusal(&host(&own).problems(&gone, &RESPAWN, false)).to_string();
        assert!(said.contains("--respawn") && !said.contains("--same-pids"), "{said}");
        let lock = Problem { line: String::new(), cure: Cure::Lock };
        let said = refusal(&[lock]).to_string();
        assert!(said.contains("--missing skip") && !said.contains("--inherit"), "{said}");
    }
}
