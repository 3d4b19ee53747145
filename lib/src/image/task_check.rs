//! Checks of tasks: by themselves, and of each other.
//!
//! They find what no scan writes. What the processes of a scan without `--freeze` can seem to be,
//! since they change while it reads them one after another, is no contradiction.

use super::Task;
use crate::error::{Error, Result};
use std::collections::{HashMap, HashSet};

/// Checks the tasks of an image one after another.
#[derive(Debug, Default)]
pub struct TaskChecker {
    /// The parent of each process.
    parents: HashMap<i32, i32>,
    /// The first task that has a table, and the highest number in it.
    tables: HashMap<u32, (i32, Option<u32>)>,
}

fn broken<T>(pid: i32, why: &str) -> Result<T> {
    Err(Error::malformed(format!("task {pid}: {why}")))
}

impl TaskChecker {
    /// Checks a task, given those before it. Fails with status 3.
    pub fn add(&mut self, task: &Task) -> Result<()> {
        let pid = task.pid;
        let ids = task.credentials.uids.iter().chain(&task.credentials.gids);
        if ids.chain(&task.credentials.groups).any(|&id| id == u32::MAX) {
            // setresuid(2) takes it for "leave unchanged".
            return broken(pid, "user or group id 4294967295 is not valid");
        }
        // A group or session of another pid namespace has the id 0 here.
        if pid <= 0 || task.ppid < 0 || task.pgid < 0 || task.sid < 0 {
            return broken(pid, "its process, group or session id is not valid");
        }
        if task.sid == pid && task.pgid != pid {
            return broken(pid, "it leads its session, but not its process group");
        }
        if self.parents.insert(pid, task.ppid).is_some() {
            return broken(pid, "its process id comes twice");
        }
        let highest = task.table.highest;
        let (first, of_first) = *self.tables.entry(task.table.id).or_insert((pid, highest));
        match of_first == highest {
            true => Ok(()),
            false => {
                let why = "but has another highest number";
                broken(pid, &format!("it shares the table of {first}, {why}"))
            }
        }
    }

    /// Checks that no task is its own ancestor, once all tasks were added. Fails with status 3.
    pub fn end(&self) -> Result<()> {
        let mut rooted: HashSet<i32> = HashSet::new();
        for &pid in self.parents.keys() {
            let mut path = HashSet::new();
            let mut at = pid;
            while let Some(&parent) = self.parents.get(&at).filter(|_| !rooted.contains(&at)) {
                if !path.insert(at) {
                    return broken(at, "it is its own ancestor");
                }
                at = parent;
            }
            rooted.extend(path);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::tests::task_of_root as task;

    /// Checks all tasks; the reason if they cannot be.
    fn check(tasks: &[Task]) -> std::result::Result<(), String> {
        let mut checker = TaskChecker::default();
        let added = tasks.iter().try_for_each(|task| checker.add(task));
        added.and_then(|()| checker.end()).map_err(|err| err.to_string())
    }

    fn reason(tasks: &[Task]) -> String {
        check(tasks).unwrap_err()
    }

    #[test]
    fn tasks_as_the_kernel_has_them_pass() {
        // A shell with a pipeline whose group has lost its leader, and a task outside.
        let tasks = [
            task(10, 1, 10, 10, 0),
            task(31, 10, 30, 10, 1),
            task(32, 10, 30, 10, 1),
            task(7, 0, 0, 0, 2),
        ];
        assert_eq!(check(&tasks), Ok(()));
        assert_eq!(check(&[]), Ok(()));
    }

    #[test]
    fn ids_that_no_process_has_are_malformed() {
        assert!(reason(&[task(0, 1, 10, 10, 0)]).contains("not valid"));
        assert!(reason(&[task(10, -1, 10, 10, 0)]).contains("not valid"));
        assert!(reason(&[task(10, 1, -10, 10, 0)]).contains("not valid"));
        assert!(reason(&[task(10, 1, 10, -10, 0)]).contains("not valid"));
        let mut nobody = task(10, 1, 10, 10, 0);
        nobody.credentials.groups.push(u32::MAX);
        assert!(reason(&[nobody]).contains("4294967295"));
        assert!(reason(&[task(10, 1, 9, 10, 0)]).contains("leads its session"));
    }

    #[test]
    fn a_process_id_that_comes_twice_is_malformed() {
        let tasks = [task(10, 1, 10, 10, 0), task(10, 1, 10, 10, 1)];
        assert!(reason(&tasks).contains("comes twice"));
    }

    #[test]
    fn a_table_with_two_highest_numbers_is_malformed() {
        let mut other = task(11, 10, 10, 10, 0);
        assert_eq!(check(&[task(10, 1, 10, 10, 0), other.clone()]), Ok(()));
        other.table.highest = Some(7);
        assert!(reason(&[task(10, 1, 10, 10, 0), other]).contains("shares the table of 10"));
    }

    #[test]
    fn a_task_that_is_its_own_ancestor_is_malformed() {
        assert!(reason(&[task(10, 10, 10, 10, 0)]).contains("its own ancestor"));
        let cycle = [task(10, 11, 10, 10, 0), task(11, 10, 11, 10, 1), task(12, 11, 11, 10, 2)];
        assert!(reason(&cycle).contains("its own ancestor"));
        let chain: Vec<Task> = (1..2000).map(|pid| task(pid, pid - 1, 1, 1, 0)).collect();
        assert_eq!(check(&chain), Ok(()));
    }
}
