//! A descriptor of another process: the facts of it that all kinds use.

use super::fdinfo::{CLOEXEC, FdInfo};
use super::process::Process;
use crate::error::{At, Error, Result};
use crate::image::{Bytes, Inode, Signals, inode_of};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::readlinkat;
use nix::libc;
use nix::sys::stat::FileStat;
use std::cell::{OnceCell, RefCell};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;

/// A descriptor of another process: what /proc tells of it, and what a copy in this process tells.
pub struct Descriptor<'a> {
    /// The process that has it.
    pub process: &'a Process,
    /// Its number there; that of the copy, if it waits in a queue and has none.
    pub fd: RawFd,
    /// The thread that has it at that number, and the number.
    pub place: (i32, RawFd),
    /// The link text, by readlink(2).
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
    /// The messages of [`Descriptor::warn`].
    pub(crate) warnings: RefCell<Vec<String>>,
    /// [`Descriptor::socket_family`], read once.
    family: OnceCell<nix::Result<i32>>,
    /// [`Descriptor::socket_class`], read once.
    class: OnceCell<nix::Result<(i32, i32, i32)>>,
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
        Descriptor::of(process, (process.thread, fd), info, copy, &link)
    }

    /// Looks at a descriptor that waits in a queue of a process, by a copy in this process.
    pub fn queued(process: &'a Process, copy: OwnedFd) -> Result<Descriptor<'a>> {
        let fd = copy.as_raw_fd();
        let info = FdInfo::of_own(&copy).at(|| "fdinfo")?;
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
            warnings: RefCell::default(),
            family: OnceCell::new(),
            class: OnceCell::new(),
        })
    }

    /// Reads its fdinfo again, for facts that change by themselves. If there is a copy, it is that of
    /// the copy: the number may name another description by now.
    pub fn info_now(&self) -> Result<FdInfo> {
        if let Some(copy) = &self.copy {
            return FdInfo::of_own(copy).at(|| "fdinfo");
        }
        let (mut name, mut text) = ([0; 12], Vec::new());
        self.process.descriptor_info(decimal(self.fd, &mut name), &mut text).at(|| "fdinfo")?;
        Ok(FdInfo::parse(&text))
    }

    /// Access mode and status flags, without FD_CLOEXEC.
    pub fn flags(&self) -> u32 {
        self.info.flags & !CLOEXEC
    }

    /// True if it is a socket; false of an O_PATH descriptor of the file that a socket is bound to.
    pub fn is_socket(&self) -> bool {
        match self.file_type() {
            Some(file_type) => file_type == libc::S_IFSOCK && !self.is_path(),
            // A passive scan has no other sign of a socket.
            None => self.link.0.starts_with(b"socket:["),
        }
    }

    /// The copy. Fails with status 6 if there is none.
    pub fn require_copy(&self) -> Result<BorrowedFd<'_>> {
        let why = "the scan has no copy of it (pidfd_getfd)";
        let copy = self.copy.as_ref().ok_or_else(|| Error::unrestorable(why))?;
        Ok(copy.as_fd())
    }

    /// Adds a message about a fact that is not in the record, or may be wrong there. The scan shows
    /// it, and ends with status 1.
    pub fn warn(&self, message: String) {
        self.warnings.borrow_mut().push(message);
    }

    /// An option of a socket whose value is one int, read through the copy. Fails with ENOTSOCK if
    /// it is not a socket, or there is no copy.
    fn socket_option(&self, name: i32) -> nix::Result<i32> {
        let copy = self.copy.as_ref().filter(|_| self.is_socket()).ok_or(Errno::ENOTSOCK)?;
        sys::socket::option(copy.as_fd(), libc::SOL_SOCKET, name)
    }

    /// The address family of a socket: SO_DOMAIN. None of anything else, without a copy, and if it
    /// cannot be read.
    pub fn socket_family(&self) -> Option<i32> {
        self.family.get_or_init(|| self.socket_option(libc::SO_DOMAIN)).ok()
    }

    /// Family, type and protocol of a socket: SO_DOMAIN, SO_TYPE, SO_PROTOCOL. None as for
    /// [`Descriptor::socket_family`].
    pub fn socket_class(&self) -> Option<(i32, i32, i32)> {
        let read = || {
            let family = *self.family.get_or_init(|| self.socket_option(libc::SO_DOMAIN));
            let [socket_type, protocol] =
                [libc::SO_TYPE, libc::SO_PROTOCOL].map(|name| self.socket_option(name));
            Ok((family?, socket_type?, protocol?))
        };
        self.class.get_or_init(read).ok()
    }

    /// The errno with which reading the family, type or protocol of a socket failed, for
    /// descriptors that no kind claims therefore. None if none of them was read.
    pub fn socket_errno(&self) -> Option<Errno> {
        let class = self.class.get().and_then(|class| class.err());
        let errno = class.or(self.family.get().and_then(|family| family.err()));
        errno.filter(|_| self.copy.is_some() && self.is_socket())
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
        let Some(inode) = &self.inode else { return false };
        let is =
            |it: FileStat| (sys::device::from_stat(it.st_dev), it.st_ino) == (inode.dev, inode.ino);
        self.process.sees_mount(self.info.mnt) == Some(false)
            && !self.process.stat_at(&self.link.0).is_some_and(is)
    }

    /// The S_IFMT bits of its mode. None in a passive scan.
    pub fn file_type(&self) -> Option<u32> {
        self.inode.as_ref().map(|inode| inode.mode & libc::S_IFMT)
    }

    /// Its name without ` (deleted)`, if the kernel says that the name is gone, and the file has no
    /// other. None otherwise.
    pub fn deleted(&self) -> Option<&[u8]> {
        let name = self.link.0.strip_suffix(b" (deleted)")?;
        // A file that is there may be called so, too.
        let gone = match &self.inode {
            None => true,
            Some(inode) => inode.nlink == 0 || self.is_unlinked_on_overlay(inode),
        };
        gone.then_some(name)
    }

    /// True if it is a file of a lower layer of an overlay whose only name is unlinked. The overlay
    /// hides the name, and the link count, which is that of the lower layer, stays 1.
    fn is_unlinked_on_overlay(&self, inode: &Inode) -> bool {
        inode.nlink == 1
            && inode.mode & libc::S_IFMT != libc::S_IFDIR
            && self.process.file_system_of(self.info.mnt) == Some(b"overlay")
            && !self.process.stat_at(&self.link.0).is_some_and(|there| {
                (sys::device::from_stat(there.st_dev), there.st_ino) == (inode.dev, inode.ino)
            })
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
