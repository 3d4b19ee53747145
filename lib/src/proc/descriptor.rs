//! A descriptor of another process.

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

/// A descriptor of another process: what /proc tells of it, and what a copy of ours tells more.
pub struct Descriptor<'a> {
    /// Whose it is.
    pub process: &'a Process,
    /// Its number there; that of our copy if it is in no table.
    pub fd: RawFd,
    /// The process that has it at that number, and the number.
    pub place: (i32, RawFd),
    /// What readlink(2) shows.
    pub link: Bytes,
    /// Its fdinfo.
    pub info: FdInfo,
    /// What stat(2) says.
    pub inode: Option<Inode>,
    /// Owner and signal.
    pub signals: Option<Signals>,
    /// A descriptor of ours for the same description; not for a passive scan.
    pub copy: Option<OwnedFd>,
    /// [`Descriptor::family`], asked once.
    family: OnceCell<Option<i32>>,
    /// [`Descriptor::class`], asked once.
    class: OnceCell<Option<(i32, i32, i32)>>,
}

impl<'a> Descriptor<'a> {
    /// Looks at a number. `fetch` asks for a copy.
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

    /// Looks at what is in no table: a copy of ours of what waits in a queue of this process.
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
            // An O_PATH descriptor has neither.
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
            // On sockfs every inode is a socket and its link is this text.
            Some(inode)
                if inode.mode & libc::S_IFMT == libc::S_IFSOCK
                    && info.flags & libc::O_PATH as u32 == 0 =>
            {
                format!("socket:[{}]", inode.ino).into_bytes()
            }
            // So it is on pipefs, which is known by the first of its pipes.
            Some(inode) if process.pipes.get() == Some(&inode.dev) => {
                format!("pipe:[{}]", inode.ino).into_bytes()
            }
            _ => read_link().at(|| "readlink")?,
        };
        if let Some(inode) = inode.as_ref().filter(|_| link.starts_with(b"pipe:[")) {
            let _ = process.pipes.set(inode.dev);
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

    /// Its fdinfo once more, for what changes by itself: of the copy, if there is one, since the
    /// number may name another description by now.
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

    /// Whether it is a socket, and not only the place of one.
    pub fn is_socket(&self) -> bool {
        self.link.0.starts_with(b"socket:[")
    }

    /// The address family of a socket: SO_DOMAIN.
    pub fn family(&self) -> Option<i32> {
        let copy = self.copy.as_ref().filter(|_| self.is_socket())?;
        let ask = || sys::socket::option(copy.as_fd(), libc::SOL_SOCKET, libc::SO_DOMAIN).ok();
        *self.family.get_or_init(ask)
    }

    /// Family, type and protocol of a socket: SO_DOMAIN, SO_TYPE, SO_PROTOCOL.
    pub fn class(&self) -> Option<(i32, i32, i32)> {
        *self.class.get_or_init(|| {
            let (family, copy) = (self.family()?, self.copy.as_ref()?);
            let ask = |name| sys::socket::option(copy.as_fd(), libc::SOL_SOCKET, name).ok();
            Some((family, ask(libc::SO_TYPE)?, ask(libc::SO_PROTOCOL)?))
        })
    }

    /// The inode of the network namespace of a socket, if that is not its process's; zero if it is
    /// not known which one it is then.
    pub fn other_netns(&self) -> Option<u64> {
        self.process.other_netns(self.copy.as_ref()?.as_fd())
    }

    /// Whether it is only a place in the file system: O_PATH.
    pub fn is_path(&self) -> bool {
        self.info.flags & libc::O_PATH as u32 != 0
    }

    /// Whether it is on a mount to which no path leads: one that is detached (open_tree(2),
    /// fsmount(2)), or of another mount namespace. What its link says is then the name of something
    /// else, unless it leads to the same by another mount.
    pub fn is_nowhere(&self) -> bool {
        use nix::sys::stat::{major, minor};
        let Some(inode) = &self.inode else { return false };
        let is = |it: FileStat| {
            let dev = (major(it.st_dev) as u32, minor(it.st_dev) as u32);
            (dev, it.st_ino) == (inode.dev, inode.ino)
        };
        self.process.sees_mount(self.info.mnt) == Some(false)
            && !self.process.stat_at(&self.link.0).is_some_and(is)
    }

    /// The file type bits of its mode, if stat(2) was asked.
    pub fn file_type(&self) -> Option<u32> {
        self.inode.as_ref().map(|inode| inode.mode & libc::S_IFMT)
    }

    /// The name without ` (deleted)`, if the kernel says that the name is gone.
    pub fn deleted(&self) -> Option<&[u8]> {
        let name = self.link.0.strip_suffix(b" (deleted)")?;
        // A living file may be called so; one without any name cannot live.
        self.inode.as_ref().is_none_or(|inode| inode.nlink == 0).then_some(name)
    }
}

/// A number as text, without allocation: it is needed thrice a descriptor.
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
