//! A descriptor of another process: the facts of it that all kinds use.

use super::fdinfo::{CLOEXEC, FdInfo};
use super::process::Process;
use super::read::read_at;
use crate::error::{At, Result};
use crate::image::{Bytes, Inode, Signals, inode_of};
use crate::sys;
use nix::fcntl::readlinkat;
use nix::libc;
use nix::sys::stat::FileStat;
use std::cell::OnceCell;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;

/// A descriptor of another process: what /proc tells of it, and what a copy in this process tells.
pub struct Descriptor<'a> {
    /// The process that has it.
    pub process: &'a Process,
    /// Its number there; that of the copy, if it waits in a queue and has none.
    pub fd: RawFd,
    /// The process that has it at that number, and the number.
    pub place: (i32, RawFd),
    /// What readlink(2) shows.
    pub link: Bytes,
    /// Its fdinfo.
    pub info: FdInfo,
    /// Its inode. None in a passive scan.
    pub inode: Option<Inode>,
    /// Owner and signal: F_GETOWN_EX and F_GETSIG of fcntl(2). None if neither is set, of an O_PATH
    /// descriptor, and in a passive scan.
    pub signals: Option<Signals>,
    /// A descriptor of this process for the same description (pidfd_getfd(2)). None in a passive
    /// scan.
    pub copy: Option<OwnedFd>,
    /// [`Descriptor::family`], asked once.
    family: OnceCell<Option<i32>>,
    /// [`Descriptor::class`], asked once.
    class: OnceCell<Option<(i32, i32, i32)>>,
}

impl<'a> Descriptor<'a> {
    /// Looks at a number of a process. `fetch` asks for a copy; `text` is a buffer that may have been
    /// used before.
    ///
    /// Fails with ENOENT or EBADF if the number is closed by now, with EPERM if no copy may be had,
    /// and as the calls that look at the copy do.
    pub fn read(
        process: &'a Process,
        fd: RawFd,
        fetch: bool,
        text: &mut Vec<u8>,
    ) -> Result<Descriptor<'a>> {
        let mut name = [0; 12];
        let name = decimal(fd, &mut name);
        process.descriptor_info(name, text).at(|| "fdinfo")?;
        let info = FdInfo::parse(text);
        let copy = match fetch {
            true => Some(sys::pidfd_getfd(process.pidfd(), fd).at(|| "pidfd_getfd")?),
            false => None,
        };
        let link = || process.descriptor_link(name);
        Descriptor::of(process, (process.pid, fd), info, copy, &link)
    }

    /// Looks at a descriptor that waits in a queue of a process, by a copy in this process.
    pub fn queued(process: &'a Process, copy: OwnedFd) -> Result<Descriptor<'a>> {
        let fd = copy.as_raw_fd();
        let text = read_at(nix::fcntl::AT_FDCWD, &format!("/proc/self/fdinfo/{fd}"));
        let info = FdInfo::parse(&text.at(|| "fdinfo")?);
        let name = format!("/proc/self/fd/{fd}");
        let link = || Ok(readlinkat(nix::fcntl::AT_FDCWD, name.as_str())?.into_vec());
        let place = (std::process::id() as i32, fd);
        Descriptor::of(process, place, info, Some(copy), &link)
    }

    fn of(
        process: &'a Process,
        place: (i32, RawFd),
        info: FdInfo,
        copy: Option<OwnedFd>,
        read_link: &dyn Fn() -> nix::Result<Vec<u8>>,
    ) -> Result<Descriptor<'a>> {
        let fd = place.1;
        let (mut inode, mut signals) = (None, None);
        if let Some(copy) = &copy {
            inode = Some(inode_of(copy.as_fd()).at(|| "stat")?);
            // An O_PATH descriptor has none of both: EBADF.
            if info.flags & libc::O_PATH as u32 == 0 {
                let owner = sys::owner(copy.as_fd()).at(|| "F_GETOWN_EX")?;
                let signal = sys::signal(copy.as_fd()).at(|| "F_GETSIG")?;
                signals = (owner.id != 0 || signal != 0).then_some(Signals {
                    kind: owner.kind,
                    id: owner.id,
                    signal,
                });
            }
        }
        let link = match &inode {
            // Every socket has this link (sockfs), so that it need not be read.
            Some(inode)
                if inode.mode & libc::S_IFMT == libc::S_IFSOCK
                    && info.flags & libc::O_PATH as u32 == 0 =>
            {
                format!("socket:[{}]", inode.ino).into_bytes()
            }
            // So has every pipe (pipefs): the first one tells the device of all.
            Some(inode) if process.pipefs.get() == Some(&inode.dev) => {
                format!("pipe:[{}]", inode.ino).into_bytes()
            }
            _ => read_link().at(|| "readlink")?,
        };
        if let Some(inode) = inode.as_ref().filter(|_| link.starts_with(b"pipe:[")) {
            let _ = process.pipefs.set(inode.dev);
        }
        Ok(Descriptor {
            process,
            fd,
            place,
            link: Bytes(link),
            info,
            inode,
            signals,
            copy,
            family: OnceCell::new(),
            class: OnceCell::new(),
        })
    }

    /// Reads its fdinfo again, for facts that change by themselves. If there is a copy, it is that of
    /// the copy: the number may name another description by now.
    pub fn info_now(&self) -> Result<FdInfo> {
        let mut text = Vec::new();
        match &self.copy {
            Some(copy) => {
                let path = format!("/proc/self/fdinfo/{}", copy.as_raw_fd());
                text = read_at(nix::fcntl::AT_FDCWD, &path).at(|| "fdinfo")?;
            }
            None => self
                .process
                .descriptor_info(decimal(self.fd, &mut [0; 12]), &mut text)
                .at(|| "fdinfo")?,
        }
        Ok(FdInfo::parse(&text))
    }

    /// Access mode and status flags, without FD_CLOEXEC.
    pub fn flags(&self) -> u32 {
        self.info.flags & !CLOEXEC
    }

    /// True if it is a socket; false of an O_PATH descriptor of the file that a socket is bound to.
    pub fn is_socket(&self) -> bool {
        self.link.0.starts_with(b"socket:[")
    }

    /// The address family of a socket: SO_DOMAIN. None of anything else, and without a copy.
    pub fn family(&self) -> Option<i32> {
        let copy = self.copy.as_ref().filter(|_| self.is_socket())?;
        let ask = || sys::socket::option(copy.as_fd(), libc::SOL_SOCKET, libc::SO_DOMAIN).ok();
        *self.family.get_or_init(ask)
    }

    /// Family, type and protocol of a socket: SO_DOMAIN, SO_TYPE, SO_PROTOCOL. None as for
    /// [`Descriptor::family`].
    pub fn class(&self) -> Option<(i32, i32, i32)> {
        *self.class.get_or_init(|| {
            let (family, copy) = (self.family()?, self.copy.as_ref()?);
            let ask = |name| sys::socket::option(copy.as_fd(), libc::SOL_SOCKET, name).ok();
            Some((family, ask(libc::SO_TYPE)?, ask(libc::SO_PROTOCOL)?))
        })
    }

    /// The inode number of the network namespace of a socket, if it is not that of its process; zero
    /// if it is another, and unknown which.
    pub fn other_netns(&self) -> Option<u64> {
        self.process.other_netns(self.copy.as_ref()?.as_fd())
    }

    /// True if it is only a place in the file system: O_PATH.
    pub fn is_path(&self) -> bool {
        self.info.flags & libc::O_PATH as u32 != 0
    }

    /// True if no path leads to its mount: it is detached (open_tree(2), fsmount(2)), or of a mount
    /// namespace that neither its process nor this one is in. Its link then names something else,
    /// unless it leads to the same inode by another mount.
    pub fn on_detached_mount(&self) -> bool {
        use nix::sys::stat::{major, minor};
        let Some(inode) = &self.inode else { return false };
        let is = |it: FileStat| {
            let dev = (major(it.st_dev) as u32, minor(it.st_dev) as u32);
            (dev, it.st_ino) == (inode.dev, inode.ino)
        };
        self.process.sees_mount(self.info.mnt) == Some(false)
            && !self.process.stat_at(&self.link.0).is_some_and(is)
    }

    /// The S_IFMT bits of its mode. None in a passive scan.
    pub fn file_type(&self) -> Option<u32> {
        self.inode.as_ref().map(|inode| inode.mode & libc::S_IFMT)
    }

    /// Its name without ` (deleted)`, if the kernel says that the name is gone. None otherwise.
    pub fn deleted(&self) -> Option<&[u8]> {
        let name = self.link.0.strip_suffix(b" (deleted)")?;
        // A file that is there may be called so, too.
        self.inode.as_ref().is_none_or(|inode| inode.nlink == 0).then_some(name)
    }
}

/// A number as text, in a buffer: each descriptor takes three of it.
fn decimal(number: RawFd, into: &mut [u8; 12]) -> &str {
    let mut at = into.len();
    let mut rest = number.unsigned_abs();
    loop {
        at -= 1;
        into[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    std::str::from_utf8(&into[at..]).unwrap_or("")
}
