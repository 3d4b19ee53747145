//! Regular files: content, position, open flags, and O_TMPFILE.

use crate::driver::{Bad, Difference, Fixture, link, open, reopen, stat, write_all};
use crate::lock;
use crate::raw;
use crate::spec::{At, Result, Spec};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::libc;
use nix::unistd::{Whence, linkat, lseek};
use std::fs;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub(crate) struct Regular;

impl Fixture for Regular {
    const NAME: &'static str = "regular";
    const ABOUT: &'static str = "a regular file with content, at a position";
    const KEYS: &'static [(&'static str, &'static str)] = &[
        ("path", "this file; without data= one that exists is left as it is"),
        ("data", "its content; @N for N bytes of a pattern"),
        ("pos", "the position"),
        ("read", "O_RDONLY (neither or both of read and write: O_RDWR)"),
        ("write", "O_WRONLY"),
        ("append", "O_APPEND"),
        ("sync", "O_SYNC"),
        ("noatime", "O_NOATIME"),
        ("opath", "O_PATH"),
        ("tmpfile", "O_TMPFILE below --dir, still linkable"),
        ("renamed", "by a name that is gone then; it has another in a folder beside that"),
        lock::KEY,
    ];
    const DIFFERENCES: &'static [Difference] = &[
        ("regular@3:pos=2", "regular@3", "position is 2, was made 0"),
        ("regular@3:read", "regular@3", "F_GETFL"),
        ("regular@3:data=abcd", "regular@3:data=abcx", "content"),
        ("unlinked@3", "regular@3", "(deleted)"),
        ("regular@3", "regular@3:renamed", "ENOENT"),
        ("regular@3:lock=posix-w:0-9", "regular@3", "locks is"),
        ("regular@3", "regular@3:lock=posix-w:0-9", "locks is"),
        ("regular@3:lock=posix-w:0-9", "regular@3:lock=posix-w:0-8", "locks is"),
        ("regular@3:lock=posix-r:0-9", "regular@3:lock=posix-w:0-9", "locks is"),
        ("regular@3:lock=ofd-w:0-9", "regular@3:lock=posix-w:0-9", "locks is"),
        ("regular@3:lock=flock-r", "regular@3:lock=flock-w", "locks is"),
        ("regular@3:read,own,async,lock=lease-r", "regular@3:read,own,async", "write lease is"),
        ("regular@3:own,async,lock=lease-w", "regular@3:own,async,lock=lease-r", "write lease is"),
        ("regular@3,4:dup", "regular@3", "4 is open and should not be"),
        ("regular@3", "regular@3,4:dup", "4 regular: not open"),
    ];

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        let flags = Self::flags(spec, 0);
        let fd = if spec.has("tmpfile") {
            open(&spec.dir()?, flags)?
        } else {
            let path = spec.path()?;
            match content(spec) {
                Some(content) => fs::write(&path, content).at(path.display())?,
                None if path.exists() => {}
                None => fs::write(&path, default(spec)).at(path.display())?,
            }
            let fd = open(&path, flags)?;
            if spec.has("renamed") {
                let other = other_name(&path);
                fs::create_dir_all(other.parent().expect("a folder")).at(other.display())?;
                fs::hard_link(&path, &other).at(other.display())?;
                fs::remove_file(&path).at(path.display())?;
            }
            fd
        };
        if spec.has("tmpfile") {
            let content = content(spec).unwrap_or_else(|| default(spec));
            let filled = reopen(&fd, OFlag::O_WRONLY).at("open O_TMPFILE again")?;
            write_all(&filled, &content).at("write")?;
        }
        if let Some(pos) = spec.number("pos")? {
            lseek(&fd, pos as i64, Whence::SeekSet).at("lseek")?;
        }
        Ok(vec![fd])
    }

    fn finish(spec: &Spec) -> Result<()> {
        lock::finish(spec)
    }

    fn flags(spec: &Spec, _: usize) -> OFlag {
        if spec.has("opath") {
            return OFlag::O_PATH;
        }
        let mut flags = access(spec);
        for (key, flag) in [
            ("append", OFlag::O_APPEND),
            ("sync", OFlag::O_SYNC),
            ("noatime", OFlag::O_NOATIME),
            ("tmpfile", OFlag::O_TMPFILE),
        ] {
            flags.set(flag, flags.contains(flag) || spec.has(key));
        }
        flags
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let fd = sys::at(spec.fds[0])?;
        let found = stat(fd, libc::S_IFREG, bad)?;
        lock::check(spec, bad)?;
        match spec.path().ok().filter(|_| !spec.has("tmpfile")) {
            Some(path) if spec.has("renamed") => {
                let other = other_name(&path);
                let same = nix::sys::stat::stat(&other)?.st_ino;
                bad.same("inode of the other name", same, found.st_ino);
                let (shown, gone) = (link(spec.fds[0]), format!("{} (deleted)", path.display()));
                bad.unless(shown == other || shown == Path::new(&gone), "it has a third name");
            }
            Some(path) => bad.same("path", link(spec.fds[0]), path),
            None => (),
        }
        let mut made = content(spec);
        if spec.has("tmpfile") || spec.bytes("path").is_none() {
            made = made.or_else(|| Some(default(spec)));
        }
        let file = fs::File::from(reopen(fd, OFlag::O_RDONLY)?);
        let content = read_whole(&file)?;
        if let Some(made) = &made {
            bad.same_bytes("content", &content, made);
        }
        let mut byte = [0];
        if spec.has("opath") {
            bad.same("read", nix::unistd::read(fd, &mut byte), Err(Errno::EBADF));
            return Ok(());
        }
        position_and_access(spec, fd, &content, bad)?;
        if spec.has("tmpfile") {
            linkable(spec, fd, bad)?;
        }
        Ok(())
    }
}

/// The other name of a file whose first name was removed.
fn other_name(path: &Path) -> PathBuf {
    let name = path.file_name().expect("a name");
    path.with_file_name("others").join(name)
}

/// O_RDONLY, O_WRONLY or O_RDWR.
pub(crate) fn access(spec: &Spec) -> OFlag {
    match (spec.has("read"), spec.has("write")) {
        (true, false) => OFlag::O_RDONLY,
        (false, true) => OFlag::O_WRONLY,
        _ => OFlag::O_RDWR,
    }
}

/// Checks the position, and that reading, writing and appending work there as the flags say.
pub(crate) fn position_and_access(
    spec: &Spec,
    fd: BorrowedFd<'_>,
    content: &[u8],
    bad: &mut Bad,
) -> Result<(), Errno> {
    let pos = spec.known_number("pos").unwrap_or(0);
    bad.same("position", lseek(fd, 0, Whence::SeekCur)? as u64, pos);
    let mut byte = [0];
    let got = nix::unistd::read(fd, &mut byte);
    let here = content.get(pos as usize);
    if access(spec) == OFlag::O_WRONLY {
        bad.same("read", got, Err(Errno::EBADF));
    } else {
        bad.same("read", got, Ok(here.map_or(0, |_| 1)));
        bad.unless(here.is_none_or(|&here| here == byte[0]), "another byte is at the position");
    }
    lseek(fd, pos as i64, Whence::SeekSet)?;
    if access(spec) == OFlag::O_RDONLY {
        bad.same("write", nix::unistd::write(fd, b"x"), Err(Errno::EBADF));
        return Ok(());
    }
    bad.same("write", nix::unistd::write(fd, b"+"), Ok(1));
    let lands = if spec.has("append") { content.len() as u64 } else { pos };
    bad.same("position after write", lseek(fd, 0, Whence::SeekCur)? as u64, lands + 1);
    // The write is undone, so that a second check finds the same content.
    nix::unistd::ftruncate(fd, content.len() as i64)?;
    if let Some(here) = content.get(lands as usize) {
        lseek(fd, lands as i64, Whence::SeekSet)?;
        nix::unistd::write(fd, &[*here])?;
    }
    lseek(fd, pos as i64, Whence::SeekSet)?;
    Ok(())
}

/// All bytes of a file, read without changing a position.
pub(crate) fn read_whole(file: &fs::File) -> Result<Vec<u8>, Errno> {
    let mut out = Vec::new();
    let mut buffer = [0; 65536];
    loop {
        let got = file.read_at(&mut buffer, out.len() as u64);
        let got = got.map_err(|err| Errno::from_raw(err.raw_os_error().unwrap_or(libc::EIO)))?;
        if got == 0 {
            return Ok(out);
        }
        out.extend_from_slice(&buffer[..got]);
    }
}

/// The requested content; none if an existing file is used as it is.
fn content(spec: &Spec) -> Option<Vec<u8>> {
    match spec.data() {
        None if spec.bytes("path").is_none() => Some(default(spec)),
        data => data,
    }
}

/// The default content of a file. It contains the number, so that files differ.
pub(crate) fn default(spec: &Spec) -> Vec<u8> {
    format!("{} {}: 0123456789 abcdefghijklmnopqrstuvwxyz\n", spec.name, spec.fds[0]).into_bytes()
}

/// Checks that a file of O_TMPFILE can be given a name, once.
fn linkable(spec: &Spec, fd: BorrowedFd<'_>, bad: &mut Bad) -> Result<(), Errno> {
    let Ok(dir) = spec.dir() else { return Ok(()) };
    let name = dir.join(format!("linked.{}", spec.fds[0]));
    let of = format!("/proc/self/fd/{}", raw(fd));
    match linkat(AT_FDCWD, of.as_str(), AT_FDCWD, &name, AtFlags::AT_SYMLINK_FOLLOW) {
        Ok(()) => {
            let linked = nix::sys::stat::stat(&name)?;
            bad.same("inode of the link", linked.st_ino, nix::sys::stat::fstat(fd)?.st_ino);
            nix::unistd::unlink(&name)?;
        }
        Err(errno) => bad.say(format!("linkat: {errno}")),
    }
    Ok(())
}
