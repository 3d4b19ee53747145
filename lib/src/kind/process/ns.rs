//! A namespace, as opened by /proc/PID/ns/NAME: namespaces(7). A restore creates none: the
//! namespace must have a process, or be bind-mounted.

use crate::error::{Error, Result};
use crate::image::OpenFile;
use crate::kind::Kind;
use crate::kind::context::{Opened, RestoreContext};
use crate::proc::mounts;
use crate::proc::{Descriptor, inode_of};
use crate::sys;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::{read, read_dir, read_link};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The types of namespaces, as the links name them.
const NAMES: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];
/// The initial namespaces have inode numbers below it, which are the same after every boot. The
/// kernel gives numbers from it on to new namespaces, and reuses them: fs/proc/generic.c.
const PROC_DYNAMIC_FIRST: u64 = 0xf000_0000;

/// The record of a namespace. Its type and inode number are in the link.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ns {
    /// NS_GET_ID: a number that the kernel never reuses before a reboot; since Linux 6.18.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
}

/// The type and the inode number in a link such as `net:[4026531840]`.
fn parse(link: &[u8]) -> Option<(&'static str, u64)> {
    let (name, _) = std::str::from_utf8(link).ok()?.split_once(":[")?;
    let name = NAMES.into_iter().find(|each| *each == name)?;
    Some((name, crate::proc::bracketed(link)?))
}

/// The entries of /proc/PID/ns for namespaces of a type.
fn ns_entries(name: &str) -> Vec<String> {
    let mut entries = vec![name.to_owned()];
    if matches!(name, "pid" | "time") {
        entries.push(format!("{name}_for_children"));
    }
    entries
}

/// The entries of a directory of /proc whose names are numbers.
fn numbered_entries(dir: &Path) -> Vec<PathBuf> {
    let is_number = |name: &[u8]| name.iter().all(u8::is_ascii_digit);
    let all = read_dir(dir).into_iter().flatten().flatten();
    all.filter(|entry| is_number(entry.file_name().as_bytes())).map(|entry| entry.path()).collect()
}

/// The paths where a namespace is mounted, by the text of /proc/self/mountinfo.
fn nsfs_mounts(mountinfo: &[u8], link: &[u8]) -> Vec<PathBuf> {
    let mounts = mounts::parse(mountinfo).into_iter();
    let found = mounts.filter(|mount| mount.root == link && mount.file_system == b"nsfs");
    found.map(|mount| OsString::from_vec(mount.point).into()).collect()
}

impl Ns {
    /// Opens a path, if it leads to this namespace.
    fn open(&self, path: &Path, ino: u64) -> Option<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let fd = open(path, flags, Mode::empty()).ok()?;
        let ids = self.id.zip(sys::ns::id(fd.as_fd()));
        let same = inode_of(fd.as_fd()).is_ok_and(|found| found.ino == ino);
        (same && ids.is_none_or(|(recorded, found)| recorded == found)).then_some(fd)
    }

    /// Opens the namespace by a thread that is in it, this one first, or else by a path where it is
    /// mounted. Then the path is returned too, since readlink(2) shows it of the new descriptor.
    ///
    /// Fails with status 6 if neither is found, or if the inode number is of another boot.
    fn find(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<(OwnedFd, Option<PathBuf>)> {
        let link = &file.link.0;
        let (name, ino) = parse(link).ok_or(nix::errno::Errno::EINVAL)?;
        if ino >= PROC_DYNAMIC_FIRST && !cx.is_same_boot() {
            let why =
                "it is of another boot, and its inode number may be that of another namespace now";
            return Err(Error::unrestorable(why));
        }
        let tasks = numbered_entries(Path::new("/proc"));
        let threads = tasks.iter().flat_map(|task| numbered_entries(&task.join("task")));
        let entries = ns_entries(name);
        for thread in std::iter::once(PathBuf::from("/proc/self")).chain(threads) {
            for path in entries.iter().map(|entry| thread.join("ns").join(entry)) {
                if read_link(&path).is_ok_and(|found| found.as_os_str().as_bytes() == link) {
                    if let Some(fd) = self.open(&path, ino) {
                        return Ok((fd, None));
                    }
                }
            }
        }
        for point in nsfs_mounts(&read("/proc/self/mountinfo").unwrap_or_default(), link) {
            if let Some(fd) = self.open(&point, ino) {
                return Ok((fd, Some(point)));
            }
        }
        let why = "no process that can be read (CAP_SYS_PTRACE) is in this namespace, and it is not \
            mounted";
        Err(Error::unrestorable(why))
    }
}

impl Kind for Ns {
    const NAME: &'static str = "ns";

    fn claims(descriptor: &Descriptor<'_>) -> bool {
        parse(&descriptor.link.0).is_some()
    }

    fn capture(descriptor: &Descriptor<'_>) -> Result<Self> {
        Ok(Ns { id: descriptor.copy.as_ref().and_then(|copy| sys::ns::id(copy.as_fd())) })
    }

    fn validate(&self, file: &OpenFile) -> Result<()> {
        match parse(&file.link.0) {
            Some(_) => Ok(()),
            None => Err(Error::malformed("its link is not that of a namespace")),
        }
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        self.find(file, cx).map(drop)
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        let (fd, mount_point) = self.find(file, cx)?;
        let Ns { id: _ } = self;
        if let Some(path) = mount_point {
            let (name, path) = (&file.link.0, path.as_os_str().as_bytes());
            let (name, path) = (crate::text::escape(name), crate::text::escape(path));
            cx.warnings.push(format!("{name}: it was opened by {path}, which its link shows now"));
        }
        cx.reopen_descriptor(fd.as_fd(), file.flags & (libc::O_ACCMODE | libc::O_PATH) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_has_a_type_and_an_inode_number() {
        assert_eq!(parse(b"net:[4026531840]"), Some(("net", 4_026_531_840)));
        for other in [&b"pipe:[7]"[..], b"net:[]", b"net:[7", b"net:[x]", b"/net:[7]", b"\xff:[7]"]
        {
            assert_eq!(parse(other), None);
        }
    }

    #[test]
    fn the_mounts_of_one_namespace_are_found() {
        let text = b"36 35 0:4 net:[12] /run/netns/a\\040b rw shared:5 - nsfs nsfs rw\n\
            37 35 0:4 net:[13] /run/netns/c rw - nsfs nsfs rw\n\
            38 35 8:1 net:[12] /mnt rw - ext4 /dev/sda1 rw\nnet:[12]\n";
        assert_eq!(nsfs_mounts(text, b"net:[12]"), [PathBuf::from("/run/netns/a b")]);
    }
}
