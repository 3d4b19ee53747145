//! The controlling terminal of each task of a tree.

use super::origin::FileOrigin;
use super::shape::Shape;
use crate::ctty::{self, SessionRole};
use crate::image::Task;
use crate::kind::DecodedImage;
use crate::kind::context::CttyPlan;
use crate::plan::{RestoreOptions, allowed_terminal};
use crate::sys::device;
use nix::sys::stat::stat;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;

/// /dev/tty, which stands for the controlling terminal of the process that opens it.
const DEV_TTY: (u32, u32) = (5, 0);

/// The sessions, by their leaders, whose controlling terminal is to be `own`, that of fdrestore.
/// One terminal cannot control two sessions, so the tasks of these join the session of fdrestore;
/// none does with `steal`, which takes the terminal from it.
pub(super) fn sessions_on_own_terminal(
    image: &DecodedImage,
    own: Option<(u32, u32)>,
    steal: bool,
    inherited: &HashMap<u32, RawFd>,
) -> HashSet<i32> {
    let Some(own) = own.filter(|_| !steal) else { return HashSet::new() };
    let is_own = |task: &&Task| {
        let role = SessionRole { leader: true, has_ctty: false };
        let made = |id| !inherited.contains_key(&id);
        let from_caller = |id| inherited.get(&id).copied();
        let found = match ctty::plan(image, task, role, made, from_caller) {
            CttyPlan::FromPath(path) => stat(OsStr::from_bytes(&path)),
            CttyPlan::FromCaller(fd) => stat(format!("/proc/self/fd/{fd}").as_str()),
            _ => return false,
        };
        let device = found.map(|it| device::from_stat(it.st_rdev));
        device.is_ok_and(|device| device == own || device == DEV_TTY)
    };
    let leads = |task: &&Task| task.sid == task.pid && task.terminal.is_some();
    image.tasks.iter().filter(leads).filter(is_own).map(|task| task.pid).collect()
}

/// Plans the controlling terminal of each task. `own` is fdrestore, whose session tasks may join.
///
/// A terminal of the image that controls a session must be in the fdstore: the leader takes it
/// before it forks the members of its session.
pub(super) fn plan_terminals(
    image: &DecodedImage,
    shape: &Shape,
    own: SessionRole,
    inherited: &HashMap<u32, RawFd>,
    origins: &mut HashMap<u32, FileOrigin>,
    options: &RestoreOptions,
) -> Vec<CttyPlan> {
    let mut plans = vec![CttyPlan::None; image.tasks.len()];
    // True for each new session that has a terminal.
    let mut sessions: HashMap<i32, bool> = HashMap::new();
    for &at in &shape.order {
        let task = &image.tasks[at];
        let leader = shape.nodes[at].leads_session;
        let session = sessions.get(&task.sid).copied();
        let plan = match session {
            Some(true) if task.terminal.is_some() => CttyPlan::Session(task.sid),
            _ => {
                let has = session.unwrap_or(!leader && own.has_ctty);
                let made = |id| !matches!(origins.get(&id), None | Some(FileOrigin::Inherited));
                let from_caller = |id| inherited.get(&id).copied();
                let role = SessionRole { leader, has_ctty: has };
                allowed_terminal(ctty::plan(image, task, role, made, from_caller), options)
            }
        };
        if leader {
            let has = !matches!(plan, CttyPlan::None | CttyPlan::Unavailable(_));
            sessions.insert(task.sid, has);
        }
        if let CttyPlan::FromImage(id) = plan {
            make_for_store(image, id, origins);
        }
        plans[at] = plan;
    }
    plans
}

/// Sets the origin of a terminal, and of the other end of its pair, to the fdstore, if one task would
/// make it.
fn make_for_store(image: &DecodedImage, terminal: u32, origins: &mut HashMap<u32, FileOrigin>) {
    let object = image.file(terminal).and_then(|file| file.object);
    for file in &image.files {
        let of_pair = object.is_some() && file.object == object;
        if file.id == terminal || of_pair {
            let origin = origins.entry(file.id).or_insert(FileOrigin::Private);
            if *origin == FileOrigin::Private {
                *origin = FileOrigin::Store { needs_processes: false };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Builder, task};
    use super::*;
    use crate::image::{Bytes, Terminal};
    use crate::kind::effect::AllowList;

    const NO_TERMINAL: SessionRole = SessionRole { leader: true, has_ctty: false };

    fn with_terminal(mut task: Task, path: Option<&str>) -> Task {
        let path = path.map(|path| Bytes(path.as_bytes().to_vec()));
        task.terminal = Some(Terminal { device: 0x8800, foreground: task.pgid, path });
        task
    }

    fn plans(image: &DecodedImage, own: SessionRole) -> Vec<CttyPlan> {
        let shape = Shape::of(&image.tasks, &HashSet::new()).unwrap();
        let options = RestoreOptions { allow: vec![AllowList::all()], ..RestoreOptions::default() };
        plan_terminals(image, &shape, own, &HashMap::new(), &mut HashMap::new(), &options)
    }

    #[test]
    fn the_leader_takes_the_terminal_and_its_session_shares_it() {
        let path = Some("/dev/pts/7");
        let tasks = [
            with_terminal(task(10, 1, 10, 10, 0), path),
            with_terminal(task(11, 10, 11, 10, 1), path),
            task(12, 10, 12, 12, 2),
        ];
        let image = Builder::new(tasks).image();
        let taken = CttyPlan::FromPath(b"/dev/pts/7".to_vec());
        let expected = [taken, CttyPlan::Session(10), CttyPlan::None];
        assert_eq!(plans(&image, NO_TERMINAL), expected);
    }

    #[test]
    fn a_terminal_that_nobody_can_open_is_said_once() {
        let tasks = [with_terminal(task(10, 1, 10, 10, 0), None), task(11, 10, 11, 10, 1)];
        let plans = plans(&Builder::new(tasks).image(), NO_TERMINAL);
        assert!(matches!(plans[..], [CttyPlan::Unavailable(_), CttyPlan::None]), "{plans:?}");
    }

    #[test]
    fn tasks_outside_a_session_of_the_image_have_the_callers_terminal() {
        let image = Builder::new([task(20, 7, 20, 3, 0)]).image();
        let own = SessionRole { leader: false, has_ctty: true };
        assert_eq!(plans(&image, own), [CttyPlan::Kept]);
        assert_eq!(plans(&image, NO_TERMINAL), [CttyPlan::None]);
    }

    #[test]
    fn both_ends_of_a_controlling_terminal_go_to_the_store() {
        let mut b = Builder::new([task(10, 1, 10, 10, 0)]);
        b.files(3);
        let image = b.changed(|image| {
            image.files[0].object = Some(1);
            image.files[1].object = Some(1);
        });
        let store = FileOrigin::Store { needs_processes: false };
        let private: HashMap<u32, FileOrigin> =
            image.files.iter().map(|file| (file.id, FileOrigin::Private)).collect();
        let mut origins = private.clone();
        make_for_store(&image, 100, &mut origins);
        assert_eq!([100, 101, 102].map(|id| origins[&id]), [store, store, FileOrigin::Private]);
        let mut origins = HashMap::from([(100, FileOrigin::Private), (101, FileOrigin::Inherited)]);
        make_for_store(&image, 100, &mut origins);
        assert_eq!([100, 101].map(|id| origins[&id]), [store, FileOrigin::Inherited]);
        let mut origins = private;
        make_for_store(&image, 102, &mut origins);
        assert_eq!([100, 102].map(|id| origins[&id]), [FileOrigin::Private, store]);
    }
}
