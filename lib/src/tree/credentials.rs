//! Process attributes that are no descriptors: limits, umask, directories, credentials.

use super::state::{TreeRestore, below_root};
use crate::error::{At, Error, Result};
use crate::image::{Credentials, Task};
use crate::plan::hard_limit;
use crate::proc::Process;
use crate::sys::credentials;
use crate::text::escape;
use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{getpid, getppid};
use std::path::Path;

/// Bits of capabilities(7).
pub(super) const CAP_KILL: u64 = 1 << 5;
pub(super) const CAP_SETGID: u64 = 1 << 6;
pub(super) const CAP_SETUID: u64 = 1 << 7;
pub(super) const CAP_SYS_CHROOT: u64 = 1 << 18;
pub(super) const CAP_SYS_ADMIN: u64 = 1 << 21;
pub(super) const CAP_CHECKPOINT_RESTORE: u64 = 1 << 40;

impl TreeRestore<'_> {
    /// The limit of open files that the task had, as far as ours reaches.
    pub(super) fn limit(&self, at: usize) -> Result<()> {
        let (soft, hard) = self.tree.image.tasks[at].table.limit;
        let ours = hard_limit()?;
        if setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard), hard).is_err() {
            setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard).min(ours), hard.min(ours))
                .at(|| "RLIMIT_NOFILE")?;
            if soft > ours {
                self.shared.say(at, &format!("its limit of open files was {soft} and is {ours}"));
            }
        }
        Ok(())
    }

    /// Puts back where the task is and who it runs as. A command that is given runs where and as
    /// whom we do, like any other COMMAND.
    pub(super) fn surround(&self, at: usize) -> Result<()> {
        if self.is_given(at) {
            if self.limits.0 != self.limits.1 {
                setrlimit(Resource::RLIMIT_NOFILE, self.limits.0, hard_limit()?)?;
            }
            return Ok(());
        }
        self.limit(at)?;
        let task = &self.tree.image.tasks[at];
        // What only holds does no harm with more rights, or elsewhere; a program might.
        let amiss = |what: String, why: Error| match self.mode.respawn {
            true => Err(why.at(what)),
            false => {
                self.shared.say(at, &format!("{what}: {why}"));
                Ok(())
            }
        };
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(task.umask));
        if let Some(cwd) = &task.cwd {
            if let Err(errno) = nix::unistd::chdir(&self.place(&cwd.0)) {
                amiss(format!("its working directory {}", escape(&cwd.0)), errno.into())?;
            }
        }
        if let Some(root) = task.root.as_ref().filter(|root| root.0 != b"/") {
            if let Err(errno) = nix::unistd::chroot(&self.place(&root.0)) {
                amiss(format!("its root directory {}", escape(&root.0)), errno.into())?;
            }
        }
        if task.credentials != self.credentials {
            let more = self.credentials.caps[1] & !task.credentials.caps[1];
            match become_them(&task.credentials, &self.credentials) {
                Err(why) if more != 0 => amiss("it cannot run as before".to_owned(), why)?,
                Err(why) => self.shared.say(at, &format!("it does not run as before: {why}")),
                Ok(0) => (),
                Ok(lack) => {
                    let line = format!("it runs without capabilities {lack:x}, which we have not");
                    self.shared.say(at, &line);
                }
            }
            credentials::set_dumpable(true)?;
            // The kernel forgets it when credentials change.
            credentials::die_with_parent(true)?;
        }
        match getppid().as_raw() == self.parent(at) {
            true => Ok(()),
            false => Err(Errno::ESRCH.into()),
        }
    }

    /// Whether the end of its parent may not end this one: PR_SET_PDEATHSIG is sent with the rights
    /// of that parent (kill(2)).
    pub(super) fn may_outlive(&self, at: usize) -> bool {
        let tasks = &self.tree.image.tasks;
        let Some(parent) = self.tree.shape.nodes[at].parent else { return false };
        let (theirs, ours) = (&tasks[parent].credentials, &tasks[at].credentials);
        let same = |uid: u32| uid == ours.uids[0] || uid == ours.uids[2];
        !theirs.uids[..2].iter().copied().any(same) && theirs.caps[2] & CAP_KILL == 0
    }
}

/// Who we run as.
pub(super) fn ours() -> Result<Credentials> {
    Ok(Process::open(getpid().as_raw())?.task(0, None)?.credentials)
}

/// Becomes whom a task ran as, as far as our capabilities reach. Gives those that are missing.
pub(super) fn become_them(they: &Credentials, us: &Credentials) -> Result<u64> {
    use nix::unistd::{Gid, Uid};
    let [inheritable, permitted, effective, bounding, ambient] = they.caps;
    let bits = |set: u64| (0..64).filter(move |bit| set >> bit & 1 != 0);
    for capability in bits(us.caps[3] & !bounding) {
        credentials::drop_from_bounding_set(capability).at(|| "the bounding set")?;
    }
    let groups: Vec<Gid> = they.groups.iter().copied().map(Gid::from_raw).collect();
    if they.groups != us.groups {
        nix::unistd::setgroups(&groups).at(|| "its groups")?;
    }
    let [real, own, saved, _] = they.gids.map(Gid::from_raw);
    if they.gids != us.gids {
        nix::unistd::setresgid(real, own, saved).at(|| "its group ids")?;
    }
    let [real, own, saved, _] = they.uids.map(Uid::from_raw);
    if they.uids != us.uids {
        credentials::keep_capabilities(true)?;
        nix::unistd::setresuid(real, own, saved).at(|| "its user ids")?;
        credentials::keep_capabilities(false)?;
    }
    let has = us.caps[1];
    credentials::set_capabilities(effective & has, permitted & has, inheritable & has)
        .at(|| "its capabilities")?;
    for capability in bits(ambient & has) {
        credentials::raise_ambient(capability).at(|| "its ambient capabilities")?;
    }
    Ok(permitted & !has)
}

/// Says what of a task whose program would run here would not be as it was, with rights or in
/// places that it had not.
pub(super) fn out_of_place(
    task: &Task,
    us: &Credentials,
    root: Option<&Path>,
    problem: &mut dyn FnMut(String),
) {
    let they = &task.credentials;
    let lacks = |capability| us.caps[2] & capability == 0;
    if us.caps[1] & !they.caps[1] != 0 {
        let others = (they.groups != us.groups, they.gids != us.gids, they.uids != us.uids);
        if others.2 && lacks(CAP_SETUID) || (others.0 || others.1) && lacks(CAP_SETGID) {
            problem("it cannot run as before, and would have rights that it had not".to_owned());
        }
    }
    for (which, path) in [("working", &task.cwd), ("root", &task.root)] {
        let Some(path) = path else { continue };
        if !below_root(root, &path.0).is_dir() {
            problem(format!("its {which} directory {} is not there", escape(&path.0)));
        } else if which == "root" && path.0 != b"/" && lacks(CAP_SYS_CHROOT) {
            problem(format!("its root directory {} takes CAP_SYS_CHROOT", escape(&path.0)));
        }
    }
}
