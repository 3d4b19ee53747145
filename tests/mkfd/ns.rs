//! namespaces(7): a namespace, opened below /proc.

use crate::driver::{Bad, Difference, Fixture, link, open};
use crate::spec::{Result, Spec};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{fstat, stat};
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

pub(crate) struct Ns;

impl Fixture for Ns {
    const NAME: &'static str = "ns";
    const ABOUT: &'static str = "a namespace of mkfd itself";
    const KEYS: &'static [(&'static str, &'static str)] = &[
        ("of", "which: an entry of /proc/self/ns, net by default"),
        ("path", "another path of one"),
        ("opath", "O_PATH"),
    ];
    const DIFFERENCES: &'static [Difference] = &[
        ("ns@3", "ns@3:of=uts", "inode is"),
        ("regular@3:read,path=/dev/null", "ns@3", "no namespace"),
    ];

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        Ok(vec![open(&path(spec), Self::flags(spec, 0))?])
    }

    fn flags(spec: &Spec, _: usize) -> OFlag {
        if spec.has("opath") { OFlag::O_PATH } else { OFlag::O_RDONLY }
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let fd = sys::at(spec.fds[0])?;
        let (is, was) = (fstat(fd)?, stat(&path(spec))?);
        bad.same("inode", (is.st_dev, is.st_ino), (was.st_dev, was.st_ino));
        let name = std::fs::read_link(path(spec)).unwrap_or_default();
        bad.same("link", link(spec.fds[0]), name);
        if !spec.has("opath") {
            bad.unless(sys::is_namespace(fd), "no namespace");
        }
        Ok(())
    }
}

fn path(spec: &Spec) -> PathBuf {
    match spec.bytes("path") {
        Some(path) => OsString::from_vec(path.to_vec()).into(),
        None => {
            let of = spec.bytes("of").unwrap_or(b"net");
            PathBuf::from("/proc/self/ns").join(OsString::from_vec(of.to_vec()))
        }
    }
}
