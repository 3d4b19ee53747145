//! The controlling terminal of each task.

use super::origin::Origin;
use super::shape::Shape;
use crate::ctty::SessionRole;
use crate::image::Task;
use crate::kind::DecodedImage;
use crate::kind::context::CttyPlan;
use crate::sys::device;
use std::collections::{HashMap, HashSet};
use std::os::fd::RawFd;

/// The sessions whose controlling terminal is to be ours, by their leaders. It cannot be that of a
/// second session, so they are part of ours; `steal` takes it from us.
pub(super) fn joined(
    image: &DecodedImage,
    own: Option<(u32, u32)>,
    steal: bool,
    handed: &HashMap<u32, RawFd>,
) -> HashSet<i32> {
    use nix::sys::stat::stat;
    use std::os::unix::ffi::OsStrExt;
    let Some(own) = own.filter(|_| !steal) else { return HashSet::new() };
    let is_ours = |task: &&Task| {
        let role = SessionRole { leader: true, has_ctty: false };
        let made = |id| !handed.contains_key(&id);
        let found = match crate::ctty::plan(image, task, role, made, |id| handed.get(&id).copied())
        {
            CttyPlan::FromPath(path) => stat(std::ffi::OsStr::from_bytes(&path)),
            CttyPlan::FromCaller(fd) => stat(format!("/proc/self/fd/{fd}").as_str()),
            _ => return false,
        };
        let device = found.map(|it| device::from_stat(it.st_rdev));
        // /dev/tty
        device.is_ok_and(|device| device == own || device == (5, 0))
    };
    let leads = |task: &&Task| task.sid == task.pid && task.terminal.is_some();
    image.tasks.iter().filter(leads).filter(is_ours).map(|task| task.pid).collect()
}

/// What becomes of the controlling terminal of each task. What becomes one must be in the store:
/// the leader takes it before it makes the members of its session.
pub(super) fn terminals(
    image: &DecodedImage,
    shape: &Shape,
    ours: SessionRole,
    handed: &HashMap<u32, RawFd>,
    origins: &mut HashMap<u32, Origin>,
) -> Vec<CttyPlan> {
    let mut ctty_plans = vec![CttyPlan::None; image.tasks.len()];
    let mut led: HashMap<i32, bool> = HashMap::new();
    for &at in &shape.order {
        let task = &image.tasks[at];
        let leads = shape.nodes[at].leads;
        let has_ctty = match led.get(&task.sid) {
            Some(&has_ctty) => has_ctty,
            None if leads => false,
            None => ours.has_ctty,
        };
        let made = |id: u32| !matches!(origins.get(&id), None | Some(Origin::Handed(_)));
        let role = SessionRole { leader: leads, has_ctty };
        let ctty_plan = match led.get(&task.sid) {
            Some(true) if task.terminal.is_some() => CttyPlan::Session(task.sid),
            _ => crate::ctty::plan(image, task, role, made, |id| handed.get(&id).copied()),
        };
        if leads {
            led.insert(task.sid, !matches!(ctty_plan, CttyPlan::None | CttyPlan::Unavailable(_)));
        }
        if let CttyPlan::FromImage(id) = ctty_plan {
            let object = image.file(id).and_then(|file| file.object);
            for file in image
                .files
                .iter()
                .filter(|file| file.id == id || object.is_some() && file.object == object)
            {
                if origins.get(&file.id) == Some(&Origin::Private) {
                    origins.insert(file.id, Origin::Common { last: false });
                }
            }
        }
        ctty_plans[at] = ctty_plan;
    }
    ctty_plans
}
