//! Process attributes that belong to no table: limit of open files, umask, working and root
//! directory, user and group ids, capabilities.

use super::state::{TreeRestore, other_root};
use crate::error::{At, Error, Result, Status};
use crate::image::Credentials;
use crate::messages::Messages;
use crate::plan::hard_limit;
use crate::proc::Process;
use crate::sys::credentials;
use crate::text::escape;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, getpid, getppid};

/// Masks of capabilities, by their numbers in linux/capability.h.
pub(super) const CAP_KILL: u64 = 1 << 5;
pub(super) const CAP_SETGID: u64 = 1 << 6;
pub(super) const CAP_SETUID: u64 = 1 << 7;
pub(super) const CAP_SYS_CHROOT: u64 = 1 << 18;
pub(super) const CAP_SYS_ADMIN: u64 = 1 << 21;
pub(super) const CAP_CHECKPOINT_RESTORE: u64 = 1 << 40;

/// The places of the sets in [`Credentials::caps`].
pub(super) const PERMITTED: usize = 1;
pub(super) const EFFECTIVE: usize = 2;
const BOUNDING: usize = 3;

impl TreeRestore<'_> {
    /// Restores the process attributes of a task. The task that runs COMMAND keeps those of
    /// fdrestore, as any other COMMAND does.
    ///
    /// An attribute that cannot be restored is a failure for a task that runs a program, which
    /// might do harm in another directory or with more rights, and a warning for one that only
    /// holds.
    pub(super) fn restore_attributes(&self, task: usize) -> Result<()> {
        if self.runs_command(task) {
            if self.limits.0 != self.limits.1 {
                setrlimit(Resource::RLIMIT_NOFILE, self.limits.0, hard_limit()?)?;
            }
            return Ok(());
        }
        self.restore_limit(task)?;
        let umask = self.tree.image.tasks[task].umask;
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(umask));
        self.restore_directories(task)?;
        if self.tree.image.tasks[task].credentials != self.credentials {
            self.restore_credentials(task)?;
        }
        match getppid().as_raw() == self.parent_pid(task) {
            true => Ok(()),
            false => Err(Error::new(Status::System, "its parent has ended")),
        }
    }

    /// A failure, or a warning if nothing runs.
    fn fail_or_warn(&self, task: usize, what: String, why: Error) -> Result<()> {
        match self.mode.respawn {
            true => Err(why.at(what)),
            false => {
                self.state.warn(task, &format!("{what}: {why}"));
                Ok(())
            }
        }
    }

    /// Restores RLIMIT_NOFILE, as far as the hard limit of fdrestore reaches.
    fn restore_limit(&self, task: usize) -> Result<()> {
        let (soft, hard) = self.tree.image.tasks[task].table.limit;
        if setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard), hard).is_ok() {
            return Ok(());
        }
        let highest = hard_limit()?;
        let (new_soft, new_hard) = limit_within((soft, hard), highest);
        setrlimit(Resource::RLIMIT_NOFILE, new_soft, new_hard).at(|| "RLIMIT_NOFILE")?;
        if soft > highest {
            let why = "raising the hard limit takes CAP_SYS_RESOURCE";
            let line = format!("its limit of open files is {highest}, and was {soft}: {why}");
            self.state.warn(task, &line);
        }
        Ok(())
    }

    fn restore_directories(&self, task: usize) -> Result<()> {
        let record = &self.tree.image.tasks[task];
        if let Some(cwd) = &record.cwd {
            if let Err(errno) = nix::unistd::chdir(&self.path(&cwd.0)) {
                let what = format!("its working directory {}", escape(&cwd.0));
                self.fail_or_warn(task, what, errno.into())?;
            }
        }
        if let Some(root) = other_root(record) {
            if let Err(errno) = nix::unistd::chroot(&self.path(root)) {
                let what = format!("its root directory {}", escape(root));
                self.fail_or_warn(task, what, errno.into())?;
            }
        }
        Ok(())
    }

    fn restore_credentials(&self, task: usize) -> Result<()> {
        let wanted = &self.tree.image.tasks[task].credentials;
        match set_credentials(wanted, &self.credentials) {
            Err(why) if gains_capabilities(wanted, &self.credentials) => {
                self.fail_or_warn(task, "its credentials cannot be restored".to_owned(), why)?;
            }
            Err(why) => {
                self.state.warn(task, &format!("not all of its credentials are restored: {why}"));
            }
            Ok(()) => {
                let missing = missing_capabilities(wanted, &self.credentials);
                if missing != 0 {
                    let line = format!("its capabilities {missing:x} (hexadecimal) are missing");
                    self.state.warn(task, &format!("{line}: fdrestore does not have them"));
                }
            }
        }
        credentials::set_dumpable(true)?;
        // The kernel clears it when credentials change.
        credentials::die_with_parent(true)?;
        Ok(())
    }
}

/// The credentials of this process.
pub(super) fn own_credentials() -> Result<Credentials> {
    Ok(Process::open(getpid().as_raw())?.task(0, None, &mut Messages::kept())?.credentials)
}

/// A soft and a hard limit, lowered to the highest that may be set.
fn limit_within((soft, hard): (u64, u64), highest: u64) -> (u64, u64) {
    (soft.min(hard).min(highest), hard.min(highest))
}

/// The numbers of the capabilities in a mask.
fn capabilities(mask: u64) -> impl Iterator<Item = u32> {
    (0..64).filter(move |bit| mask >> bit & 1 != 0)
}

/// The permitted capabilities that a task had and that fdrestore, which has `own`, cannot give it.
fn missing_capabilities(wanted: &Credentials, own: &Credentials) -> u64 {
    wanted.caps[PERMITTED] & !own.caps[PERMITTED]
}

/// True if a task that keeps the credentials of fdrestore has capabilities that it did not have.
pub(super) fn gains_capabilities(wanted: &Credentials, own: &Credentials) -> bool {
    own.caps[PERMITTED] & !wanted.caps[PERMITTED] != 0
}

/// True if fdrestore cannot set the user and group ids of a task, which then would have
/// capabilities that it did not have.
pub(super) fn would_gain_capabilities(wanted: &Credentials, own: &Credentials) -> bool {
    let lacks = |capability| own.caps[EFFECTIVE] & capability == 0;
    let other_groups = wanted.groups != own.groups || wanted.gids != own.gids;
    let cannot_set =
        wanted.uids != own.uids && lacks(CAP_SETUID) || other_groups && lacks(CAP_SETGID);
    gains_capabilities(wanted, own) && cannot_set
}

/// True if a child may live on when its parent ends: PR_SET_PDEATHSIG is sent with the rights of
/// the parent, which kill(2) checks.
pub(super) fn may_outlive_parent(parent: &Credentials, child: &Credentials) -> bool {
    let [real, effective, ..] = parent.uids;
    let [child_real, _, child_saved, _] = child.uids;
    let may_kill = |uid: u32| uid == child_real || uid == child_saved;
    !may_kill(real) && !may_kill(effective) && parent.caps[EFFECTIVE] & CAP_KILL == 0
}

/// Sets the credentials of this process, which has `own`, to those of a task, as far as the
/// permitted capabilities reach. Ids before capabilities, since setting them takes capabilities.
fn set_credentials(wanted: &Credentials, own: &Credentials) -> Result<()> {
    let [inheritable, permitted, effective, bounding, ambient] = wanted.caps;
    for capability in capabilities(own.caps[BOUNDING] & !bounding) {
        credentials::drop_from_bounding_set(capability).at(|| "the bounding set")?;
    }
    let groups: Vec<Gid> = wanted.groups.iter().copied().map(Gid::from_raw).collect();
    if wanted.groups != own.groups {
        nix::unistd::setgroups(&groups).at(|| "its groups")?;
    }
    let [real, effective_id, saved, _] = wanted.gids.map(Gid::from_raw);
    if wanted.gids != own.gids {
        nix::unistd::setresgid(real, effective_id, saved).at(|| "its group ids")?;
    }
    let [real, effective_id, saved, _] = wanted.uids.map(Uid::from_raw);
    if wanted.uids != own.uids {
        credentials::keep_capabilities(true)?;
        nix::unistd::setresuid(real, effective_id, saved).at(|| "its user ids")?;
        credentials::keep_capabilities(false)?;
    }
    let has = own.caps[PERMITTED];
    credentials::set_capabilities(effective & has, permitted & has, inheritable & has)
        .at(|| "its capabilities")?;
    for capability in capabilities(ambient & has) {
        credentials::raise_ambient(capability).at(|| "its ambient capabilities")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = (1 << 41) - 1;

    fn user(uid: u32, caps: u64) -> Credentials {
        let caps = [0, caps, caps, ALL, 0];
        Credentials { uids: [uid; 4], gids: [uid; 4], groups: Vec::new(), caps }
    }

    #[test]
    fn a_child_of_another_user_outlives_its_parent() {
        assert!(!may_outlive_parent(&user(1, 0), &user(1, 0)));
        assert!(may_outlive_parent(&user(1, 0), &user(2, 0)));
        assert!(!may_outlive_parent(&user(0, CAP_KILL), &user(2, 0)));
        let mut child = user(2, 0);
        child.uids = [2, 2, 1, 2];
        assert!(!may_outlive_parent(&user(1, 0), &child), "the saved user id counts");
        child.uids = [2, 1, 2, 1];
        assert!(may_outlive_parent(&user(1, 0), &child), "the effective user id does not");
        let mut parent = user(1, 0);
        parent.uids[1] = 2;
        assert!(!may_outlive_parent(&parent, &user(2, 0)), "the parent's effective id counts");
    }

    #[test]
    fn a_program_gains_capabilities_only_if_ids_cannot_be_set() {
        let own = user(0, ALL);
        assert!(gains_capabilities(&user(1, 0), &own) && !gains_capabilities(&own, &own));
        assert!(!would_gain_capabilities(&user(1, 0), &own));
        assert!(would_gain_capabilities(&user(1, 0), &user(0, ALL & !CAP_SETUID)));
        assert!(would_gain_capabilities(&user(1, 0), &user(0, ALL & !CAP_SETGID)));
        let mut same_group = user(1, 0);
        same_group.gids = [0; 4];
        assert!(!would_gain_capabilities(&same_group, &user(0, ALL & !CAP_SETGID)));
        same_group.groups = vec![7];
        assert!(would_gain_capabilities(&same_group, &user(0, ALL & !CAP_SETGID)));
        // Without capabilities of ours there is nothing to gain.
        assert!(!would_gain_capabilities(&user(1, 0), &user(2, 0)));
    }

    #[test]
    fn capabilities_are_bits() {
        assert_eq!(capabilities(0).count(), 0);
        assert_eq!(capabilities(1 << 63 | 1 << 40 | 1).collect::<Vec<u32>>(), [0, 40, 63]);
        assert_eq!(missing_capabilities(&user(0, 0b1110), &user(0, 0b0111)), 0b1000);
        assert_eq!(missing_capabilities(&user(0, 0b0110), &user(0, ALL)), 0);
    }

    #[test]
    fn limits_are_lowered_to_the_highest_that_may_be_set() {
        assert_eq!(limit_within((1024, 4096), 65536), (1024, 4096));
        assert_eq!(limit_within((1024, 1 << 20), 4096), (1024, 4096));
        assert_eq!(limit_within((1 << 19, 1 << 20), 4096), (4096, 4096));
        // An image may say what no kernel would.
        assert_eq!(limit_within((2048, 1024), 4096), (1024, 1024));
    }

    #[test]
    fn the_credentials_of_this_process_lack_nothing() {
        let own = own_credentials().unwrap();
        assert_eq!(own.uids[0], nix::unistd::getuid().as_raw());
        assert_eq!(missing_capabilities(&own, &own), 0);
    }
}
