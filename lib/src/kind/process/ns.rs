//! A namespace, as /proc/PID/ns/NAME opens it: namespaces(7). None is made anew; it must still be
//! somebody's, or be mounted.

use crate::error::{Error, Result};
use crate::image::OpenFile;
use crate::kind::Kind;
use crate::kind::context::{Opened, RestoreContext};
use crate::proc::{Descriptor, boot_id, inode_of};
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

const NAMES: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];
/// Below it are the numbers that the first namespaces have after every boot; above, a number means
/// one boot's namespace, and after that another's: fs/proc/generic.c.
const PROC_DYNAMIC_FIRST: u64 = 0xf000_0000;

/// A namespace; its type and inode number are in the link.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ns {
    /// NS_GET_ID: a number that no other namespace of this boot has had; the kernel tells it since
    /// 6.18.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
}

/// Type and inode number, from `net:[4026531840]`.
fn parse(link: &[u8]) -> Option<(&'static str, u64)> {
    let (name, _) = std::str::from_utf8(link).ok()?.split_once(":[")?;
    let name = NAMES.into_iter().find(|each| *each == name)?;
    Some((name, crate::proc::bracketed(link)?))
}

/// The directory entries of /proc/PID/ns that show namespaces of a type.
fn entries(name: &str) -> Vec<String> {
    let mut entries = vec![name.to_owned()];
    if matches!(name, "pid" | "time") {
        entries.push(format!("{name}_for_children"));
    }
    entries
}

/// The numbered entries of a directory of /proc.
fn numbered(dir: &Path) -> Vec<PathBuf> {
    let is_number = |name: &[u8]| name.iter().all(u8::is_ascii_digit);
    let all = read_dir(dir).into_iter().flatten().flatten();
    all.filter(|entry| is_number(entry.file_name().as_bytes())).map(|entry| entry.path()).collect()
}

/// Where a namespace is mounted, by the text of /proc/self/mountinfo.
fn mounts(mountinfo: &[u8], link: &[u8]) -> Vec<PathBuf> {
    let words = |line: &[u8]| -> Option<PathBuf> {
        let mut words = line.split(|&byte| byte == b' ').skip(3);
        let (root, place) = (words.next()?, words.next()?);
        words.find(|word| *word == b"-")?;
        (root == link && words.next()? == b"nsfs").then(|| unescape(place))
    };
    mountinfo.split(|&byte| byte == b'\n').filter_map(words).collect()
}

/// A path of mountinfo, in which `\040` stands for a blank.
fn unescape(text: &[u8]) -> PathBuf {
    let mut out = Vec::new();
    let mut rest = text;
    while let [first, more @ ..] = rest {
        let octal = more.get(..3).filter(|_| *first == b'\\');
        let octal = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => (out.push(byte), rest = &more[3..]),
            None => (out.push(*first), rest = more),
        };
    }
    OsString::from_vec(out).into()
}

impl Ns {
    /// Opens a path if it is that of this namespace.
    fn open(&self, path: &Path, ino: u64) -> Option<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let fd = open(path, flags, Mode::empty()).ok()?;
        let ids = self.id.zip(sys::ns::id(fd.as_fd()));
        let same = inode_of(fd.as_fd()).is_ok_and(|found| found.ino == ino);
        (same && ids.is_none_or(|(was, is)| was == is)).then_some(fd)
    }

    /// Finds it with a thread that is in it, our own first, or else where it is mounted: then
    /// readlink(2) shows that place, which is given, too.
    fn find(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<(OwnedFd, Option<PathBuf>)> {
        let link = &file.link.0;
        let (name, ino) = parse(link).ok_or(nix::errno::Errno::EINVAL)?;
        if ino >= PROC_DYNAMIC_FIRST && cx.image.head.boot != boot_id() {
            let why = "it was of another boot, and its number means nothing now";
            return Err(Error::unrestorable(why));
        }
        let tasks = numbered(Path::new("/proc"));
        let threads = tasks.iter().flat_map(|task| numbered(&task.join("task")));
        let entries = entries(name);
        for thread in std::iter::once(PathBuf::from("/proc/self")).chain(threads) {
            for path in entries.iter().map(|entry| thread.join("ns").join(entry)) {
                if read_link(&path).is_ok_and(|is| is.as_os_str().as_bytes() == link) {
                    if let Some(fd) = self.open(&path, ino) {
                        return Ok((fd, None));
                    }
                }
            }
        }
        for place in mounts(&read("/proc/self/mountinfo").unwrap_or_default(), link) {
            if let Some(fd) = self.open(&place, ino) {
                return Ok((fd, Some(place)));
            }
        }
        let why = "no process that can be looked at is in this namespace, and it is not mounted";
        Err(Error::unrestorable(why))
    }
}

impl Kind for Ns {
    const NAME: &'static str = "ns";

    fn claims(it: &Descriptor<'_>) -> bool {
        parse(&it.link.0).is_some()
    }

    fn capture(it: &Descriptor<'_>) -> Result<Self> {
        Ok(Ns { id: it.copy.as_ref().and_then(|copy| sys::ns::id(copy.as_fd())) })
    }

    fn validate(&self, file: &OpenFile) -> Result<()> {
        match parse(&file.link.0) {
            Some(_) => Ok(()),
            None => Err(Error::malformed("it names no namespace")),
        }
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        self.find(file, cx).map(drop)
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        let (fd, place) = self.find(file, cx)?;
        let Ns { id: _ } = self;
        if let Some(place) = place {
            let (name, place) = (&file.link.0, place.as_os_str().as_bytes());
            let (name, place) = (crate::text::escape(name), crate::text::escape(place));
            cx.warnings
                .push(format!("{name}: opened as {place}, which its link shows from now on"));
        }
        cx.reopen_descriptor(fd.as_fd(), file.flags & (libc::O_ACCMODE | libc::O_PATH) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_link_names_a_type_and_an_inode() {
        assert_eq!(parse(b"net:[4026531840]"), Some(("net", 4_026_531_840)));
        for other in [&b"pipe:[7]"[..], b"net:[]", b"net:[7", b"net:[x]", b"/net:[7]", b"\xff:[7]"]
        {
            assert_eq!(parse(other), None);
        }
    }

    #[test]
    fn a_mounted_namespace_is_found_and_nothing_else() {
        let text = b"36 35 0:4 net:[12] /run/netns/a\\040b rw shared:5 - nsfs nsfs rw\n\
            37 35 0:4 net:[13] /run/netns/c rw - nsfs nsfs rw\n\
            38 35 8:1 net:[12] /mnt rw - ext4 /dev/sda1 rw\nnet:[12]\n";
        assert_eq!(mounts(text, b"net:[12]"), [PathBuf::from("/run/netns/a b")]);
    }

    proptest! {
        #[test]
        fn an_escaped_path_is_itself_again(path in prop::collection::vec(any::<u8>(), 0..50)) {
            let escaped: Vec<u8> = path.iter().flat_map(|byte| match byte {
                b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
                &other => vec![other],
            }).collect();
            prop_assert_eq!(unescape(&escaped).into_os_string().into_vec(), path);
        }
    }
}
