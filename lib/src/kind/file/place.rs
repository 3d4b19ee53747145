//! What the link of a file does not tell of its place: the mount namespace, and the process whose
//! directory in a proc file system it is in.

use crate::error::{At, Result};
use crate::image::{Bytes, Inode, OpenFile};
use crate::kind::context::{Opened, RestoreContext};
use crate::proc::{Descriptor, inode_of, own_namespace};
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;

/// The place of a file, beside its link.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// The rest of the link after `/proc/PID/`, if that is the directory of the process itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    proc: Option<Bytes>,
    /// The inode number of the mount namespace of the process, if no path of the namespace of the
    /// scan leads to the mount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mntns: Option<u64>,
}

impl Place {
    /// True if the link tells all.
    pub(crate) fn is_plain(&self) -> bool {
        *self == Place::default()
    }

    /// Finds the place of a file. A passive scan has no inodes, and does not look.
    pub(crate) fn find(descriptor: &Descriptor<'_>) -> Place {
        if descriptor.inode.is_none() {
            return Place::default();
        }
        let process = descriptor.process;
        let mntns = match process.sees_alone(descriptor.info.mnt) {
            true => process.namespace("mnt"),
            false => None,
        };
        Place { proc: below_own_directory(descriptor), mntns }
    }

    /// Warns, once a restore for each namespace, if a file was opened in another mount namespace than that
    /// in which it was captured, and it is another file. A root directory of the restore means that of
    /// the namespace.
    pub(crate) fn warn_if_elsewhere(
        &self,
        file: &OpenFile,
        opened: &Opened,
        cx: &mut RestoreContext<'_>,
    ) -> Result<()> {
        let Some(recorded) = self.mntns.filter(|_| cx.root.is_none()) else { return Ok(()) };
        if own_namespace("mnt") == Some(recorded) && cx.is_same_boot() {
            return Ok(());
        }
        let found = inode_of(opened.fd.as_fd()).at(|| "stat")?;
        let same = |old: &Inode| (old.dev, old.ino) == (found.dev, found.ino);
        if file.inode.as_ref().is_some_and(same) {
            return Ok(());
        }
        let line = format!(
            "files of mount namespace mnt:[{recorded}] are opened in that of fdrestore, where paths \
             lead to other files: run it there (nsenter --mount), or use --root"
        );
        cx.warn_once(line);
        Ok(())
    }
}

/// The rest of the link after the directory of the process in a proc file system.
fn below_own_directory(descriptor: &Descriptor<'_>) -> Option<Bytes> {
    // Most links have no number after a slash, and need no look at the mounts.
    let link = &descriptor.link.0;
    let number_follows = |pair: &[u8]| matches!(pair, [b'/', digit] if digit.is_ascii_digit());
    if !link.windows(2).any(number_follows) {
        return None;
    }
    let process = descriptor.process;
    let point = process.mount_point(descriptor.info.mnt, b"proc")?;
    let rest = link.strip_prefix(&point[..])?.strip_prefix(b"/")?;
    let slash = rest.iter().position(|&byte| byte == b'/').unwrap_or(rest.len());
    let pid: i32 = std::str::from_utf8(&rest[..slash]).ok()?.parse().ok()?;
    let own = process.ids_in_proc(descriptor.inode.as_ref()?.dev);
    own.contains(&pid).then(|| Bytes(rest.get(slash + 1..).unwrap_or_default().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::Process;
    use std::fs::File;

    fn place_of(path: &str) -> Place {
        let file = File::open(path).unwrap();
        let process = Process::open(std::process::id() as i32).unwrap();
        let copy = file.as_fd().try_clone_to_owned().unwrap();
        Place::find(&Descriptor::queued(&process, copy).unwrap())
    }

    #[test]
    fn a_file_below_the_directory_of_its_process_is_recorded_as_that() {
        let below = |path: &str| place_of(path).proc.map(|rest| rest.0);
        assert_eq!(below("/proc/self/oom_score_adj"), Some(b"oom_score_adj".to_vec()));
        assert_eq!(below("/proc/net/unix"), Some(b"net/unix".to_vec()));
        assert_eq!(below("/proc/self"), Some(Vec::new()));
        let parent = std::os::unix::process::parent_id();
        for other in [format!("/proc/{parent}/stat"), "/proc/version".into(), "/dev/null".into()] {
            assert!(place_of(&other).is_plain(), "{other}");
        }
    }
}
