//! The file that bind(2) makes for a unix socket with a path: where it is, and how a socket is bound
//! there again. The address of a socket is the string that was passed to bind(2), whatever directory
//! that led to then. The kernel keeps the file beside it: SIOCUNIXFILE of linux/un.h.
//!
//! Another user may be able to change what the name leads to. So a name is used once, by bind(2), and only
//! if nobody else can move a directory of its path. All else is done with the directory and the file.

use crate::error::{At, Error, Result, Status};
use crate::image::Task;
use crate::kind::context::set_owner;
use crate::messages::Messages;
use crate::names::{self, Changers, Directory, split};
use crate::proc::{Descriptor, FdInfo};
use crate::sys;
use crate::sys::socket::BindAs;
use crate::text::escape;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, RenameFlags, openat, readlink, renameat2};
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, fchmodat, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Permissions, owner and group of a file.
pub(super) type ModeAndOwner = (u32, u32, u32);

/// The socket file of a bound socket of another process.
#[derive(Debug, Default, PartialEq)]
pub(super) struct SocketFile {
    /// Its path, absolute; of an unlinked file the one that it had. None if it cannot be known.
    pub path: Option<Vec<u8>>,
    /// None if no path leads to it any more.
    pub node: Option<ModeAndOwner>,
    /// The name leads to no such file, and nothing says whether that is elsewhere or unlinked.
    pub unknown: bool,
}

/// Finds the file of a socket that is bound to the path `name`. `copy` is a copy of the socket, and
/// `inode` the low 32 bits of the inode number of the file, as sock_diag(7) tells it.
pub(super) fn find(
    descriptor: &Descriptor<'_>,
    copy: BorrowedFd<'_>,
    name: &[u8],
    inode: Option<u32>,
) -> Result<SocketFile> {
    match sys::socket::bound_file(copy) {
        Ok(file) => return of_file(descriptor, file.as_fd()),
        // EPERM: it takes CAP_NET_ADMIN in the user namespace of the network namespace of the socket.
        // Linux before 4.12 does not know the call.
        Err(Errno::EPERM | Errno::ENOTTY | Errno::EINVAL) => (),
        Err(errno) => return Err(errno).at(|| "SIOCUNIXFILE"),
    }
    let found = descriptor.process.stat_at(name).filter(is_socket);
    let Some(ino) = inode else {
        return Ok(SocketFile { node: found.as_ref().map(node), ..SocketFile::default() });
    };
    // sock_diag(7) also tells the device, but not as stat(2) does on btrfs and overlayfs.
    match found.filter(|stat| stat.st_ino as u32 == ino) {
        Some(stat) => {
            let base = if name.starts_with(b"/") { "root" } else { "cwd" };
            let base = descriptor.process.link(base).map(|base| base.0);
            let path = base.map(|base| join(&base, name));
            Ok(SocketFile { path, node: Some(node(&stat)), unknown: false })
        }
        None => Ok(SocketFile { unknown: true, ..SocketFile::default() }),
    }
}

/// The path and the node of a socket file, by an O_PATH descriptor of it.
fn of_file(descriptor: &Descriptor<'_>, file: BorrowedFd<'_>) -> Result<SocketFile> {
    let stat = fstat(file).at(|| "stat of its file")?;
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    let link = readlink(name.as_str()).at(|| "readlink of its file")?.into_vec();
    let info = FdInfo::of_own(file).at(|| "fdinfo")?;
    // The link names a place of the mount namespace that the mount is in.
    if descriptor.process.sees_mount(info.mnt) == Some(false) {
        return Ok(SocketFile { unknown: true, node: Some(node(&stat)), path: None });
    }
    let is_there = || {
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW | AtFlags::AT_NO_AUTOMOUNT;
        let there = fstatat(AT_FDCWD, link.as_slice(), flags);
        there.is_ok_and(|there| (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino))
    };
    Ok(match link.strip_suffix(b" (deleted)") {
        // A file that is there may be called so, too.
        Some(path) if !is_there() => {
            SocketFile { path: Some(path.to_vec()), node: None, unknown: false }
        }
        _ => SocketFile { node: Some(node(&stat)), path: Some(link), unknown: false },
    })
}

fn is_socket(stat: &FileStat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFSOCK
}

fn node(stat: &FileStat) -> ModeAndOwner {
    (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid)
}

/// A path below a directory, which may be the root directory. An absolute path counts from there.
pub(super) fn join(dir: &[u8], path: &[u8]) -> Vec<u8> {
    let dir = dir.strip_suffix(b"/").unwrap_or(dir);
    [dir, b"/", path.strip_prefix(b"/").unwrap_or(path)].concat()
}

/// The maximum length of a name that is a path, in bytes: sun_path of unix(7), less the NUL.
const MAX_NAME: usize = 107;

/// A place at which a socket can be bound to its recorded name.
pub(super) struct BindPlace {
    /// The directory of the file.
    dir: OwnedFd,
    /// The last component of the name.
    base: Vec<u8>,
    /// The name that the file had got by rename(2) since.
    renamed: Option<Vec<u8>>,
    /// How the name leads into the directory.
    via: Via,
    /// Who else can make the name lead elsewhere: then the descriptor of the directory is used.
    movers: Changers,
}

/// How a name leads into a directory.
enum Via {
    /// From the root directory of this process.
    Here,
    /// From this working directory.
    Cwd(OwnedFd),
    /// From this root directory.
    Root(OwnedFd),
    /// It is /proc/self/fd/NUMBER/BASE, and the directory is open at the number.
    Number(RawFd),
}

/// The directories in a directory that can be opened.
fn directories_in(path: &[u8]) -> impl Iterator<Item = OwnedFd> {
    let entries = std::fs::read_dir(std::ffi::OsStr::from_bytes(path)).into_iter().flatten();
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    entries.flatten().filter_map(move |it| openat(AT_FDCWD, &it.path(), flags, Mode::empty()).ok())
}

/// The number in a name /proc/self/fd/NUMBER/BASE or /dev/fd/NUMBER/BASE.
fn number_in(name: &[u8]) -> Option<RawFd> {
    let own: [&[u8]; 3] = [b"/proc/self/fd/", b"/proc/thread-self/fd/", b"/dev/fd/"];
    let rest = own.iter().find_map(|own| name.strip_prefix(*own))?;
    let (number, base) = split(rest);
    let number: RawFd = std::str::from_utf8(number).ok()?.parse().ok()?;
    (number >= 0 && !base.is_empty()).then_some(number)
}

impl BindPlace {
    /// The place of a socket with this name. `path` is the recorded path of its file; without one,
    /// the name counts from the directories of its task.
    ///
    /// Fails with status 6 if the name does not lead to the file, and cannot be made to.
    pub(super) fn find(name: &[u8], path: Option<&[u8]>, task: &Task) -> Result<BindPlace> {
        let shown = escape(name);
        let (dir, base) = split(name);
        let base = base.to_vec();
        let here = names::open_root()?;
        let open =
            |start: &OwnedFd, path: &[u8]| names::open_directory(here.as_fd(), start.as_fd(), path);
        // `..` leads to where the working directory is by then.
        let below = |cwd: &Directory, dir: &[u8]| {
            let mut found = open(&cwd.fd, dir)?;
            if dir.split(|&byte| byte == b'/').any(|part| part == b"..") {
                found.movers = found.movers.or(cwd.movers);
            }
            Ok(found)
        };
        let open_in = |root: &OwnedFd| names::open_directory(root.as_fd(), root.as_fd(), dir);
        let other_root = task.root.as_ref().map(|root| root.0.as_slice());
        let other_root = other_root.filter(|root| *root != b"/");
        let Some(path) = path else {
            let (via, found) = match (name.starts_with(b"/"), other_root, &task.cwd) {
                (true, None, _) => (Via::Here, open(&here, dir)),
                (true, Some(root), _) => {
                    let root = open(&here, root).at(|| "root directory of its task")?.fd;
                    let found = open_in(&root);
                    (Via::Root(root), found)
                }
                (false, _, Some(cwd)) => {
                    let cwd = open(&here, &cwd.0).at(|| "working directory of its task")?;
                    let found = below(&cwd, dir);
                    (Via::Cwd(cwd.fd), found)
                }
                (false, _, None) => {
                    let why = format!(
                        "it is bound to the relative path {shown}, and the working directory of its \
                         task is not in the image"
                    );
                    return Err(Error::unrestorable(why));
                }
            };
            let Directory { fd, movers } = found.at(|| format!("directory of {shown}"))?;
            return Ok(BindPlace { dir: fd, base, renamed: None, via, movers });
        };
        let (true_dir, true_base) = split(path);
        let target = open(&here, true_dir).at(|| escape(true_dir).into_owned())?;
        let leads = |opened: Result<Directory>| {
            let opened = opened.ok()?;
            names::is_same(opened.fd.as_fd(), target.fd.as_fd()).then_some(opened.movers)
        };
        let found = if name.starts_with(b"/") {
            match open(&here, dir) {
                // A symbolic link of another user.
                Err(err) if err.status() == Status::Unrestorable && number_in(name).is_none() => {
                    Some((Via::Here, Changers::Several))
                }
                opened => leads(opened).map(|movers| (Via::Here, movers)),
            }
            .or_else(|| Some((Via::Number(number_in(name)?), Changers::Nobody)))
            .or_else(|| {
                let root = open(&here, other_root?).ok()?.fd;
                let movers = leads(open_in(&root))?;
                Some((Via::Root(root), movers))
            })
        } else {
            // That of its task, or whatever it was when the socket was bound.
            let cwd = task.cwd.as_ref().map(|cwd| cwd.0.as_slice());
            let above = std::iter::successors(Some(true_dir), |dir| match *dir {
                b"/" => None,
                dir => Some(split(dir).0),
            });
            let opened = cwd.into_iter().chain(above).filter_map(|cwd| open(&here, cwd).ok());
            let leads_from = |cwd: Directory| {
                let movers = leads(below(&cwd, dir))?;
                Some((Via::Cwd(cwd.fd), movers))
            };
            // From each of its directories `..` leads there.
            let inside = directories_in(true_dir).filter(|_| dir.starts_with(b".."));
            let inside = inside.filter_map(|fd| {
                let movers = names::movers_in(target.fd.as_fd(), fd.as_fd()).ok()?;
                Some(Directory { fd, movers: movers.or(target.movers) })
            });
            opened.chain(inside).find_map(leads_from)
        };
        let Some((via, movers)) = found else {
            let why = format!(
                "it is bound to the name {shown}, its file is {}, and no name like this leads there \
                 any more",
                escape(path)
            );
            return Err(Error::unrestorable(why));
        };
        let renamed = (base != true_base).then(|| true_base.to_vec());
        Ok(BindPlace { dir: target.fd, base, renamed, via, movers })
    }

    /// The directory of the file.
    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The address through the descriptor of the directory. Fails with status 6 if it is too long.
    fn own_address(&self) -> Result<Vec<u8>> {
        let name =
            [format!("/proc/self/fd/{}/", self.dir.as_raw_fd()).as_bytes(), &self.base].concat();
        match name.len() <= MAX_NAME {
            true => Ok(name),
            false => Err(Error::unrestorable(format!(
                "{}, and its name is too long to be bound otherwise",
                self.who_can_move()
            ))),
        }
    }

    /// Who can make the name lead elsewhere, as a sentence.
    fn who_can_move(&self) -> String {
        match self.movers {
            Changers::User(uid) => format!("user {uid} can move a directory of its path"),
            _ => "other users can move a directory of its path".to_owned(),
        }
    }

    /// An O_PATH descriptor of the file that a socket was bound to just now. Fails with status 6 if
    /// another user has replaced it.
    fn new_file(&self, fd: BorrowedFd<'_>) -> Result<OwnedFd> {
        match sys::socket::bound_file(fd) {
            // See `find`.
            Err(Errno::EPERM | Errno::ENOTTY | Errno::EINVAL) => (),
            found => return Ok(found?),
        }
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&self.dir, self.base.as_slice(), flags, Mode::empty())?;
        let stat = fstat(&file)?;
        match is_socket(&stat) && stat.st_uid == geteuid().as_raw() {
            true => Ok(file),
            false => Err(Error::unrestorable("another user has replaced its file")),
        }
    }

    /// Binds a socket to `address`, which has the recorded name. `shown` is this name in messages. A
    /// socket file that no socket is bound to (the old process left it) is unlinked first. Gives an
    /// O_PATH descriptor of the new file.
    ///
    /// Fails with status 6 if another socket or another file is there.
    pub(super) fn bind(
        &self,
        fd: BorrowedFd<'_>,
        address: &[u8],
        node: Option<ModeAndOwner>,
        shown: &str,
        messages: &mut Messages<'_>,
    ) -> Result<OwnedFd> {
        let name = self.final_name(node);
        if self.check_free(node, shown)? {
            unlinkat(&self.dir, name, UnlinkatFlags::NoRemoveDir)
                .at(|| format!("unlink {shown}"))?;
        }
        let at = || format!("bind to {shown}");
        match &self.via {
            _ if self.movers != Changers::Nobody => {
                let name = self.own_address().at(at)?;
                messages.push(format!(
                    "{shown}: its address is {} now: {}",
                    escape(&name),
                    self.who_can_move()
                ));
                sys::socket::bind(fd, &sockaddr_un(&name))
            }
            Via::Here => sys::socket::bind(fd, address),
            Via::Cwd(cwd) => sys::socket::bind_as(fd, address, BindAs::Cwd(cwd.as_fd())),
            Via::Root(root) => sys::socket::bind_as(fd, address, BindAs::Root(root.as_fd())),
            Via::Number(number) => {
                sys::socket::bind_as(fd, address, BindAs::Number(*number, self.dir.as_fd()))
            }
        }
        .at(at)?;
        let base = self.base.as_slice();
        let file = self.new_file(fd).at(at)?;
        let Some((mode, uid, gid)) = node else {
            // The path was unlinked already: only the socket still has the address.
            unlinkat(&self.dir, base, UnlinkatFlags::NoRemoveDir)
                .at(|| format!("unlink {shown}"))?;
            return Ok(file);
        };
        if let Some(why) = set_owner(file.as_fd(), uid, gid) {
            messages.push(format!("{shown}: {why}"));
        }
        // fchmod(2) fails with EBADF for an O_PATH descriptor.
        let by_number = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mode = Mode::from_bits_truncate(mode);
        fchmodat(AT_FDCWD, by_number.as_str(), mode, FchmodatFlags::FollowSymlink)
            .at(|| format!("chmod {shown}"))?;
        if name != base {
            let flags = RenameFlags::RENAME_NOREPLACE;
            renameat2(&self.dir, base, &self.dir, name, flags)
                .at(|| format!("rename {shown} to {}", escape(name)))?;
        }
        Ok(file)
    }

    /// lstat(2) of a name in the directory. None if there is no such file.
    fn stat(&self, name: &[u8]) -> Result<Option<FileStat>> {
        match fstatat(&self.dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno).at(|| escape(name).into_owned()),
        }
    }

    /// Reports whether the file of a socket that nobody is bound to has this name in the directory. Fails
    /// with status 6 if another socket or another file has it.
    fn is_unused(&self, name: &[u8], shown: &str) -> Result<bool> {
        let Some(found) = self.stat(name)? else { return Ok(false) };
        // connect(2) fails with ECONNREFUSED for any other file type too.
        if !is_socket(&found) {
            let why = format!("a file that is not a socket is at {shown}");
            return Err(Error::unrestorable(why));
        }
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&self.dir, name, flags, Mode::empty()).at(|| shown.to_owned())?;
        // A datagram socket: its connect(2) to a listening socket fails with EPROTOTYPE and queues no
        // connection there, and a datagram socket does not notice it.
        let probe = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        match sys::socket::connect(probe.as_fd(), &address_of(file.as_fd())) {
            Err(Errno::ECONNREFUSED) => Ok(true),
            Ok(()) | Err(Errno::EPERM | Errno::EPROTOTYPE) => Err(name_in_use(shown)),
            Err(errno) => Err(errno).at(|| shown.to_owned()),
        }
    }

    /// The owner of the file of a socket that nobody is bound to, which [`BindPlace::bind`] removes.
    pub(super) fn owner_of_unused(&self, node: Option<ModeAndOwner>) -> Option<u32> {
        let found = self.stat(self.final_name(node)).ok()??;
        is_socket(&found).then_some(found.st_uid)
    }

    /// The name that the file will have. A name that was renamed since does not matter if the file is
    /// unlinked then.
    fn final_name(&self, node: Option<ModeAndOwner>) -> &[u8] {
        self.renamed.as_deref().filter(|_| node.is_some()).unwrap_or(&self.base)
    }

    /// Fails with status 6 if another socket or another file is where [`BindPlace::bind`] would make
    /// the file. True if the file of a socket that nobody is bound to is there.
    pub(super) fn check_free(&self, node: Option<ModeAndOwner>, shown: &str) -> Result<bool> {
        let name = self.final_name(node);
        let unused = self.is_unused(name, shown)?;
        if name != self.base && self.stat(&self.base)?.is_some() {
            let why = format!("a file is at {shown}, where its file was before it was renamed");
            return Err(Error::unrestorable(why));
        }
        Ok(unused)
    }
}

/// An address that leads to a socket file, by a descriptor of it, whatever its names are: a struct
/// sockaddr_un.
pub(super) fn address_of(file: BorrowedFd<'_>) -> Vec<u8> {
    sockaddr_un(format!("/proc/self/fd/{}", file.as_raw_fd()).as_bytes())
}

/// An address that leads to a bound socket.
pub(super) struct SocketAddress {
    /// A struct sockaddr_un.
    pub address: Vec<u8>,
    /// The file of the socket, which the address names by its descriptor; none if the address is the
    /// name.
    _file: Option<OwnedFd>,
}

/// The address that leads to a socket with this name: that of its file, if the kernel tells which it is, as
/// the name may lead to another one.
pub(super) fn address_of_socket(socket: BorrowedFd<'_>, name: &[u8]) -> SocketAddress {
    let file = match name.starts_with(&[0]) {
        true => None,
        false => sys::socket::bound_file(socket).ok(),
    };
    let address = file.as_ref().map_or_else(|| sockaddr_un(name), |file| address_of(file.as_fd()));
    SocketAddress { address, _file: file }
}

/// The error for a name that another socket is bound to.
pub(super) fn name_in_use(shown: &str) -> Error {
    let why = format!("another socket is bound to {shown}: end its process first (ss -xp)");
    Error::unrestorable(why)
}

/// Encodes a struct sockaddr_un.
pub(super) fn sockaddr_un(name: &[u8]) -> Vec<u8> {
    let family = (libc::AF_UNIX as libc::sa_family_t).to_ne_bytes();
    // A path is terminated by a NUL, an abstract name by its length.
    let end: &[u8] = if name.starts_with(&[0]) { &[] } else { &[0] };
    [&family, name, end].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_joined_and_their_numbers_found() {
        assert_eq!((join(b"/", b"/s"), join(b"/a", b"s")), (b"/s".to_vec(), b"/a/s".to_vec()));
        assert_eq!(number_in(b"/proc/self/fd/3/s"), Some(3));
        assert_eq!(number_in(b"/dev/fd/12/s"), Some(12));
        for other in [&b"/proc/self/fd/3/a/s"[..], b"/proc/self/fd/3", b"/proc/self/fd/-3/s", b"s"]
        {
            assert_eq!(number_in(other), None);
        }
    }
}
