//! Checks of the surroundings of a tree before any process is made.

use super::Tree;
use super::credentials::{
    CAP_CHECKPOINT_RESTORE, CAP_SYS_ADMIN, CAP_SYS_CHROOT, EFFECTIVE, own_credentials,
    would_gain_capabilities,
};
use super::exec::{LOCKS_LOST, below, is_title, loses_locks};
use super::layout::{placement_request, table_numbers};
use super::spawn::{is_taken, may_not_choose_pid};
use super::state::{Mode, below_root, other_root};
use crate::error::{At, Result};
use crate::image::{Credentials, Task};
use crate::plan::{Missing, RestoreOptions, hard_limit};
use crate::table::services::service_numbers;
use crate::text::escape;
use std::path::Path;

/// Finds what cannot be as the image has it, and adds it to the problems of the tree: programs and
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
    let limit = hard_limit()?;
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
    for (place, &at) in tree.shape.order.iter().enumerate() {
        let task = &tree.image.tasks[at];
        let runs_command = place == 0 && !mode.command.is_empty();
        let mut problems = host.problems(task, mode, runs_command);
        let plan = tree.tables[at].as_ref().filter(|_| options.missing == Missing::Fail);
        if plan.is_some_and(|plan| loses_locks(mode, tree.sharers[at], plan)) {
            problems.push(LOCKS_LOST.to_owned());
        }
        let named = problems.into_iter().map(|why| format!("task {}: {why}", task.pid));
        tree.problems.extend(named);
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
    /// The reasons why a task cannot be restored, a line each.
    fn problems(&self, task: &Task, mode: &Mode, runs_command: bool) -> Vec<String> {
        let mut problems = Vec::new();
        if mode.respawn && !runs_command {
            if would_gain_capabilities(&task.credentials, self.credentials) {
                let ids = "its user and group ids cannot be restored (that takes CAP_SETUID and";
                let why = "CAP_SETGID), and its program would gain capabilities";
                problems.push(format!("{ids} {why}"));
            }
            problems.extend(self.directory_problems(task));
            problems.extend(self.program_problem(task));
        }
        if mode.same_pids && (self.is_taken)(task.pid) {
            problems.push("its process id is taken (--same-pids)".to_owned());
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
        let [problem] = &host(own).problems(task, &RESPAWN, false)[..] else {
            panic!("{:?}", host(own).problems(task, &RESPAWN, false));
        };
        problem.clone()
    }

    #[test]
    fn a_task_that_holds_needs_no_program() {
        let own = root();
        let unknown = task(10, 1, 10, 10, 0);
        assert_eq!(host(&own).problems(&unknown, &Mode::default(), false), [""; 0]);
        assert_eq!(host(&own).problems(&unknown, &RESPAWN, true), [""; 0]);
        assert_eq!(host(&own).problems(&shell(), &RESPAWN, false), [""; 0]);
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
        assert_eq!(host(&own).problems(&boxed, &RESPAWN, false), [""; 0]);
        let user = Credentials { caps: [0; 5], ..root() };
        assert!(only_problem(&boxed, &user).contains("chroot(2) takes CAP_SYS_CHROOT"));
        boxed.root = Some(bytes("/gone"));
        boxed.exe = Some(bytes("/gone/bin/sh"));
        let problems = host(&user).problems(&boxed, &RESPAWN, false);
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
        assert_eq!(host(&own).problems(&task(10, 1, 10, 10, 0), &same, false), [""; 0]);
        let taken = host(&own).problems(&task(11, 1, 11, 11, 0), &same, false);
        assert_eq!(taken, ["its process id is taken (--same-pids)"]);
    }
}
