//! The directory in which a restore makes, binds, renames or removes a name. Its path is in an image, and
//! another user may be able to change where that path leads: path_resolution(7).
//!
//! What is done in a directory is done relative to its descriptor. The directory is found without a
//! symbolic link that another user could have made.

use crate::error::{At, Error, Result};
use crate::sys;
use crate::text::escape;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, fstat, mkdirat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

/// The users other than root and this one who can change something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changers {
    /// Nobody.
    Nobody,
    /// The user with this id.
    User(u32),
    /// Several users, such as a group.
    Several,
}

impl Changers {
    /// Who can do one thing or the other.
    pub(crate) fn or(self, other: Changers) -> Changers {
        match (self, other) {
            (one, Changers::Nobody) => one,
            (Changers::Nobody, other) => other,
            (one, other) if one == other => one,
            _ => Changers::Several,
        }
    }
}

/// The mode and the owner of a directory, on which it depends who can change its names.
#[derive(Clone, Copy, Debug)]
struct Access {
    mode: libc::mode_t,
    owner: u32,
}

impl From<FileStat> for Access {
    fn from(stat: FileStat) -> Access {
        Access { mode: stat.st_mode, owner: stat.st_uid }
    }
}

impl Access {
    /// The user as one who can change something, if it is not root or `me`.
    fn user(uid: u32, me: u32) -> Changers {
        if uid == 0 || uid == me { Changers::Nobody } else { Changers::User(uid) }
    }

    /// Who can rename, replace or remove a name that is in the directory. `entry` is the owner of what
    /// the name is of: in a directory with the sticky bit only that user and the owner of the directory
    /// can (unlink(2)). The mode has the group bits of an access list too: acl(5) calls them its mask.
    fn changers(self, entry: u32, me: u32) -> Changers {
        let others = match (self.mode & 0o022, self.mode & libc::S_ISVTX) {
            (0, _) => Changers::Nobody,
            (_, 0) => Changers::Several,
            _ => Access::user(entry, me),
        };
        Access::user(self.owner, me).or(others)
    }

    /// Who can make a name in the directory.
    fn makers(self, me: u32) -> Changers {
        let others = if self.mode & 0o022 == 0 { Changers::Nobody } else { Changers::Several };
        Access::user(self.owner, me).or(others)
    }
}

/// The directory of a path, `.` if it has none, and the last component.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(0) => (b"/", &path[1..]),
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b".", path),
    }
}

/// A directory that was found by its path.
#[derive(Debug)]
pub struct Directory {
    /// An O_PATH descriptor of it.
    pub fd: OwnedFd,
    /// Who can make the path lead to another directory.
    pub movers: Changers,
}

const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// The maximum number of symbolic links in a path: MAXSYMLINKS of include/linux/namei.h.
const MAX_LINKS: usize = 40;

/// Opens the root directory of this process.
pub fn open_root() -> Result<OwnedFd> {
    openat(AT_FDCWD, "/", DIRECTORY, Mode::empty()).at(|| "/")
}

/// Opens a directory by its path component by component. An absolute path counts from `root`, another
/// one from `start`; `..` and symbolic links do not lead out of `root`.
///
/// Fails with status 6 if a symbolic link belongs to another user, or stands in a directory in which
/// another user can make names, and if it is a magic link of /proc (path_resolution(7)).
pub fn open_directory(
    root: BorrowedFd<'_>,
    start: BorrowedFd<'_>,
    path: &[u8],
) -> Result<Directory> {
    walk(root, start, path, false)
}

/// Opens what is at an absolute path with O_PATH as [`open_directory`], below `root` if there is one. It
/// may be a file of any type.
pub fn open_place(root: Option<BorrowedFd<'_>>, path: &[u8]) -> Result<OwnedFd> {
    walk_below(root, path, true)
}

/// [`walk`] from `root`, or from the root directory of this process.
fn walk_below(root: Option<BorrowedFd<'_>>, path: &[u8], any: bool) -> Result<OwnedFd> {
    let Some(root) = root else {
        let root = open_root()?;
        return walk_below(Some(root.as_fd()), path, any);
    };
    Ok(walk(root, root, path, any)?.fd)
}

/// [`open_directory`]; with `any` the last component can be a file of another type.
fn walk(root: BorrowedFd<'_>, start: BorrowedFd<'_>, path: &[u8], any: bool) -> Result<Directory> {
    let me = geteuid().as_raw();
    let is_absolute = |path: &[u8]| path.starts_with(b"/");
    let components = |path: &[u8]| -> Vec<Vec<u8>> {
        let all = path.rsplit(|&byte| byte == b'/');
        all.filter(|it| !it.is_empty() && *it != b".").map(<[u8]>::to_vec).collect()
    };
    let mut fd = if is_absolute(path) { root } else { start }.try_clone_to_owned()?;
    let mut movers = Changers::Nobody;
    let mut pending = components(path);
    let mut links = 0;
    while let Some(component) = pending.pop() {
        if component == b".." && is_root(fd.as_fd(), root)? {
            continue;
        }
        let name = component.as_slice();
        let next = match openat(&fd, name, DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty()) {
            Err(Errno::ENOTDIR) => {
                let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                openat(&fd, name, flags, Mode::empty())?
            }
            opened => opened?,
        };
        let stat = fstat(&next)?;
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFLNK => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::ELOOP.into());
                }
                let target = read_link(fd.as_fd(), name, next.as_fd(), me)?;
                pending.extend(components(&target));
                if is_absolute(&target) {
                    fd = root.try_clone_to_owned()?;
                }
                continue;
            }
            libc::S_IFDIR => (),
            _ if any && pending.is_empty() => (),
            _ => return Err(Errno::ENOTDIR.into()),
        }
        // `..` is not a name: who moves a directory was counted on the way into it.
        if name != b".." {
            movers = movers.or(Access::from(fstat(&fd)?).changers(stat.st_uid, me));
        }
        fd = next;
    }
    Ok(Directory { fd, movers })
}

/// Opens a directory by its absolute path as [`open_directory`], below `root` if there is one. A path
/// without symbolic links takes one system call.
pub fn open_directory_below(root: Option<BorrowedFd<'_>>, path: &[u8]) -> Result<OwnedFd> {
    let none = ResolveFlag::RESOLVE_NO_SYMLINKS;
    let (from, resolve) = match root {
        Some(root) => (root, none | ResolveFlag::RESOLVE_IN_ROOT),
        None => (AT_FDCWD, none),
    };
    match openat2(from, path, OpenHow::new().flags(DIRECTORY).resolve(resolve)) {
        Err(Errno::ELOOP) => walk_below(root, path, false),
        opened => Ok(opened?),
    }
}

/// The text of the symbolic link `name` in `dir`, if nobody else can have made it. `link` is an O_PATH
/// descriptor of it.
fn read_link(dir: BorrowedFd<'_>, name: &[u8], link: BorrowedFd<'_>, me: u32) -> Result<Vec<u8>> {
    let stat = fstat(link)?;
    let shown = escape(name);
    if fstatfs(link)?.filesystem_type() == PROC_SUPER_MAGIC {
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC);
        let how = how.resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
        if openat2(dir, name, how).err() == Some(Errno::ELOOP) {
            let why = format!("{shown} on the way there is a magic link of /proc, not a directory");
            return Err(Error::unrestorable(why));
        }
    }
    let why = match (Access::user(stat.st_uid, me), Access::from(fstat(dir)?).makers(me)) {
        (Changers::Nobody, Changers::Nobody) => return Ok(readlinkat(link, c"")?.into_vec()),
        (Changers::User(uid), _) => format!("belongs to user {uid}"),
        (_, Changers::User(uid)) => format!("is in a directory of user {uid}"),
        _ => "is in a directory that others can write".to_owned(),
    };
    Err(Error::unrestorable(format!(
        "the symbolic link {shown} on the way there {why}, and is not followed: run fdrestore as that \
         user, or use the path without the link"
    )))
}

/// Reports whether two descriptors are of the same file.
pub fn is_same(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    let key = |fd| fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
    matches!((key(one), key(other)), (Ok(one), Ok(other)) if one == other)
}

/// Reports whether a directory is this root directory. Another mount of it is not: `..` leads out of
/// that one.
fn is_root(dir: BorrowedFd<'_>, root: BorrowedFd<'_>) -> nix::Result<bool> {
    let key = |fd| {
        let stat = sys::stat(fd)?;
        Ok((stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino, stat.stx_mnt_id))
    };
    nix::Result::Ok(key(dir)? == key(root)?)
}

/// Reports whether a condition holds for a directory and for those above it, up to `root`, or to the root
/// directory of this process.
pub fn holds_up_to_root(
    root: Option<BorrowedFd<'_>>,
    dir: BorrowedFd<'_>,
    mut condition: impl FnMut(&FileStat) -> bool,
) -> Result<bool> {
    let Some(root) = root else {
        let root = open_root()?;
        return holds_up_to_root(Some(root.as_fd()), dir, condition);
    };
    let mut dir = dir.try_clone_to_owned()?;
    loop {
        if !condition(&fstat(&dir)?) {
            return Ok(false);
        }
        if is_root(dir.as_fd(), root)? {
            return Ok(true);
        }
        let above = openat(&dir, "..", DIRECTORY, Mode::empty())?;
        // A directory outside `root`, such as one of another mount namespace, has another root.
        if is_root(above.as_fd(), dir.as_fd())? {
            return Ok(true);
        }
        dir = above;
    }
}

/// Who can move a directory that is in another one: with the sticky bit its owner is one of them.
pub fn movers_in(parent: BorrowedFd<'_>, dir: BorrowedFd<'_>) -> nix::Result<Changers> {
    Ok(Access::from(fstat(parent)?).changers(fstat(dir)?.st_uid, geteuid().as_raw()))
}

/// Reports whether another user can rename or replace a file of this user in a directory.
pub fn can_be_replaced_in(dir: BorrowedFd<'_>) -> nix::Result<bool> {
    let me = geteuid().as_raw();
    Ok(Access::from(fstat(dir)?).changers(me, me) != Changers::Nobody)
}

/// A new directory in another one. Only this user can make and replace names in it, so that a file made
/// there by one system call is still the same in the next. It is removed when it is dropped, if it is empty.
#[derive(Debug)]
pub struct PrivateDirectory<'a> {
    parent: BorrowedFd<'a>,
    name: Vec<u8>,
    fd: OwnedFd,
}

impl<'a> PrivateDirectory<'a> {
    /// Makes it. Fails with ESTALE if another user has put something in its place.
    pub fn new_in(parent: BorrowedFd<'a>) -> nix::Result<PrivateDirectory<'a>> {
        let names =
            (0..1000).map(|n| format!(".fdrestore-{}.{n}", std::process::id()).into_bytes());
        let make = |name: Vec<u8>| match mkdirat(parent, name.as_slice(), Mode::S_IRWXU) {
            Err(Errno::EEXIST) => None,
            made => Some(made.map(|()| name)),
        };
        let name = names.filter_map(make).next().unwrap_or(Err(Errno::EEXIST))?;
        let fd = openat(parent, name.as_slice(), DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty())?;
        let stat = fstat(&fd)?;
        let private = PrivateDirectory { parent, name, fd };
        match stat.st_uid == geteuid().as_raw() && stat.st_mode & 0o077 == 0 {
            true => Ok(private),
            false => Err(Errno::ESTALE),
        }
    }
}

impl AsFd for PrivateDirectory<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for PrivateDirectory<'_> {
    fn drop(&mut self) {
        let _ = unlinkat(self.parent, self.name.as_slice(), UnlinkatFlags::RemoveDir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;

    const NOBODY: Changers = Changers::Nobody;

    #[test]
    fn the_mode_and_the_owner_of_a_directory_tell_who_can_change_its_names() {
        let of = |mode, owner, entry| Access { mode, owner }.changers(entry, 7);
        assert_eq!((of(0o755, 0, 9), of(0o700, 7, 9)), (NOBODY, NOBODY));
        assert_eq!(of(0o755, 9, 0), Changers::User(9));
        assert_eq!((of(0o775, 0, 0), of(0o757, 7, 7)), (Changers::Several, Changers::Several));
        // The sticky bit: the owner of the entry, and of the directory.
        assert_eq!((of(0o1777, 0, 0), of(0o1777, 0, 7)), (NOBODY, NOBODY));
        assert_eq!((of(0o1777, 0, 9), of(0o1777, 9, 7)), (Changers::User(9), Changers::User(9)));
        assert_eq!((of(0o1777, 9, 9), of(0o1777, 9, 8)), (Changers::User(9), Changers::Several));
        let makers = |mode, owner| Access { mode, owner }.makers(7);
        assert_eq!((makers(0o755, 0), makers(0o1777, 0)), (NOBODY, Changers::Several));
    }

    #[test]
    fn a_path_is_split_at_its_last_slash() {
        let bytes = |text: &'static str| text.as_bytes();
        assert_eq!(split(b"/a/b/c"), (bytes("/a/b"), bytes("c")));
        assert_eq!(
            (split(b"/c"), split(b"c")),
            ((bytes("/"), bytes("c")), (bytes("."), bytes("c")))
        );
    }

    /// A directory in which nobody else can make names, with the path that leads there.
    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("fdkit-names-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("a/b")).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        dir
    }

    fn open(root: &PathBuf, path: &str) -> Result<Directory> {
        let root = fs::File::open(root).unwrap();
        open_directory(root.as_fd(), root.as_fd(), path.as_bytes())
    }

    #[test]
    fn a_path_is_followed_below_its_root() {
        let dir = scratch("below");
        let inode = |fd: &OwnedFd| fstat(fd).unwrap().st_ino;
        let expected = inode(&fs::File::open(dir.join("a/b")).unwrap().into());
        symlink("/a/./b", dir.join("absolute")).unwrap();
        symlink("../../a", dir.join("a/relative")).unwrap();
        for path in ["a/b", "/a//b/", "../a/b/.", "absolute", "/a/relative/b", "a/b/../b"] {
            let found = open(&dir, path).unwrap();
            assert_eq!((inode(&found.fd), found.movers), (expected, NOBODY), "{path}");
            let root = fs::File::open(&dir).unwrap();
            let place = open_place(Some(root.as_fd()), path.as_bytes()).unwrap();
            assert_eq!(inode(&place), expected, "{path}");
            let below = open_directory_below(Some(root.as_fd()), path.as_bytes()).unwrap();
            assert_eq!(inode(&below), expected, "{path}");
        }
        fs::write(dir.join("file"), "").unwrap();
        symlink("loop", dir.join("loop")).unwrap();
        let errno = |path| open(&dir, path).unwrap_err().errno();
        assert_eq!((errno("file"), errno("file/..")), (Some(Errno::ENOTDIR), Some(Errno::ENOTDIR)));
        symlink("file", dir.join("to-file")).unwrap();
        let root = fs::File::open(&dir).unwrap();
        for path in ["/file", "a/../to-file"] {
            let place = open_place(Some(root.as_fd()), path.as_bytes()).unwrap();
            assert_eq!(fstat(&place).unwrap().st_mode & libc::S_IFMT, libc::S_IFREG, "{path}");
        }
        assert_eq!((errno("none"), errno("loop")), (Some(Errno::ENOENT), Some(Errno::ELOOP)));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_link_is_followed_only_where_nobody_else_makes_names() {
        let dir = scratch("links");
        let shared = dir.join("a");
        symlink("b", shared.join("link")).unwrap();
        assert!(open(&dir, "a/link").is_ok());
        for mode in [0o770, 0o1777] {
            fs::set_permissions(&shared, fs::Permissions::from_mode(mode)).unwrap();
            let refused = open(&dir, "a/link").unwrap_err();
            assert!(refused.to_string().contains("others can write"), "{refused}");
        }
        // With the sticky bit nobody else can rename our directory.
        assert_eq!(open(&dir, "a/b").unwrap().movers, NOBODY);
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(open(&dir, "a/b").unwrap().movers, Changers::Several);
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o700)).unwrap();
        if geteuid().is_root() {
            std::os::unix::fs::lchown(shared.join("link"), Some(1), None).unwrap();
            let refused = open(&dir, "a/link").unwrap_err();
            assert!(refused.to_string().contains("belongs to user 1"), "{refused}");
            std::os::unix::fs::chown(&shared, Some(1), None).unwrap();
            assert_eq!(open(&dir, "a/b").unwrap().movers, Changers::User(1));
        }
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_condition_is_asked_of_each_directory_up_to_the_root() {
        let dir = scratch("up");
        let [root, below] = ["", "a/b"].map(|path| fs::File::open(dir.join(path)).unwrap());
        let inode =
            |path: &str| std::os::unix::fs::MetadataExt::ino(&dir.join(path).metadata().unwrap());
        let mut seen = Vec::new();
        let mut see = |stat: &FileStat| {
            seen.push(stat.st_ino);
            true
        };
        assert!(holds_up_to_root(Some(root.as_fd()), below.as_fd(), &mut see).unwrap());
        assert_eq!(seen, [inode("a/b"), inode("a"), inode("")]);
        let middle = inode("a");
        let other = |stat: &FileStat| stat.st_ino != middle;
        assert!(!holds_up_to_root(Some(root.as_fd()), below.as_fd(), other).unwrap());
        assert!(holds_up_to_root(None, below.as_fd(), |_| true).unwrap());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn two_dots_lead_out_of_another_mount_of_the_root_directory() {
        use nix::sched::{CloneFlags, unshare};
        let dir = scratch("mount");
        fs::create_dir(dir.join("a/other")).unwrap();
        let inode =
            |path: &str| std::os::unix::fs::MetadataExt::ino(&dir.join(path).metadata().unwrap());
        let expected = inode("a");
        let (at, root) = (dir.join("a/other"), dir.clone());
        // A thread of its own, since its mount namespace changes.
        let found = std::thread::spawn(move || {
            let flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS;
            unshare(flags).ok()?;
            let mount = |args: &[&std::ffi::OsStr]| {
                let done = std::process::Command::new("mount").args(args).status();
                done.is_ok_and(|status| status.success()).then_some(())
            };
            mount(&["--make-rprivate".as_ref(), "/".as_ref()])?;
            mount(&["--bind".as_ref(), root.as_ref(), at.as_ref()])?;
            let found = open(&root, "a/other/..").unwrap();
            Some(fstat(&found.fd).unwrap().st_ino)
        });
        match found.join().unwrap() {
            Some(found) => assert_eq!(found, expected),
            None => eprintln!("SKIP to mount takes CAP_SYS_ADMIN"),
        }
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_magic_link_of_proc_is_not_followed() {
        let root = PathBuf::from("/");
        let refused = open(&root, "/proc/self/cwd").unwrap_err();
        assert!(refused.to_string().contains("magic link"), "{refused}");
        assert!(open(&root, "/proc/self/fd").is_ok());
    }

    #[test]
    fn a_private_directory_is_removed_when_it_is_empty() {
        let dir = scratch("private");
        let parent = fs::File::open(&dir).unwrap();
        let private = PrivateDirectory::new_in(parent.as_fd()).unwrap();
        assert_eq!(fstat(private.as_fd()).unwrap().st_mode & 0o7777, 0o700);
        let flags = OFlag::O_CREAT | OFlag::O_WRONLY;
        openat(private.as_fd(), "left", flags, Mode::empty()).unwrap();
        let other = PrivateDirectory::new_in(parent.as_fd()).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 3);
        drop((private, other));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
        fs::remove_dir_all(dir).unwrap();
    }
}
