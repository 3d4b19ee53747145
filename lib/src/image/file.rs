//! An output file that gets its name only when it is complete.

use crate::error::{At, Error, Result, Status};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, fsync, geteuid, linkat, unlinkat};
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A file that has no name until it is complete (O_TMPFILE of open(2)). On a file system without
/// O_TMPFILE it has a temporary name, which is removed when this is dropped.
pub struct NewFile {
    file: File,
    /// The temporary name, in the directory.
    named: Option<String>,
    /// The directory in which it gets its name, opened once, since its path may lead to another one
    /// later; none for a device or a fifo, which is written directly.
    dir: Option<OwnedFd>,
    /// The directory again, for fsync(2), which O_PATH does not permit. Opened before anything is read,
    /// so that no file has to be opened after that; whether it failed matters at the end only.
    sync: nix::Result<OwnedFd>,
    /// The name that it gets; none if [`NewFile::publish`] is told.
    name: Option<OsString>,
}

impl NewFile {
    /// Makes it in the directory in which it will get its name.
    pub fn create(dir: &Path) -> Result<NewFile> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir = open(dir, flags, Mode::empty())?;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let (file, named) = match openat(&dir, ".", flags | OFlag::O_TMPFILE, mode) {
            Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::ENOSYS) => {
                let name = temporary();
                let flags = flags | OFlag::O_CREAT | OFlag::O_EXCL;
                (openat(&dir, name.as_str(), flags, mode)?, Some(name))
            }
            other => (other?, None),
        };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let sync = openat(&dir, ".", flags, Mode::empty());
        Ok(NewFile { file: file.into(), named, dir: Some(dir), sync, name: None })
    }

    /// Makes it in the directory of the file that it will replace. If that file is there and is not
    /// a regular file (/dev/stdout, a fifo), it is written directly.
    ///
    /// Fails with status 4 if the path leads by a symbolic link of another user in a directory that
    /// everybody can write.
    pub fn beside(target: &Path) -> Result<NewFile> {
        let target = resolved(target)?;
        if std::fs::metadata(&target).is_ok_and(|found| !found.is_file()) {
            let file = File::options().write(true).open(&target)?;
            return Ok(NewFile {
                file,
                named: None,
                dir: None,
                sync: Err(Errno::ENOTDIR),
                name: None,
            });
        }
        let dir = target.parent().filter(|dir| !dir.as_os_str().is_empty());
        let name = target.file_name().map(OsStr::to_owned);
        let mut new = NewFile::create(dir.unwrap_or(Path::new(".")))?;
        new.name = name;
        Ok(new)
    }

    /// Gives it the name of the file that it replaces, or else `name`, once its bytes are on the disk
    /// (fsync(2)). It replaces a file of that name, and a symbolic link of that name itself.
    pub fn publish(mut self, name: &Path) -> Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        fsync(self.file.as_fd())?;
        if self.named.is_none() {
            let new = temporary();
            let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            linkat(AT_FDCWD, own.as_str(), dir, new.as_str(), AtFlags::AT_SYMLINK_FOLLOW)?;
            self.named = Some(new);
        }
        if let Some(new) = &self.named {
            let name = self.name.as_deref().unwrap_or(name.as_os_str());
            renameat(dir, new.as_str(), dir, name)?;
            self.named = None;
        }
        match &self.sync {
            Ok(dir) => Ok(fsync(dir)?),
            Err(errno) => Err((*errno).into()),
        }
    }

    /// The directory in which it gets its name; none for a device or a fifo, which is written directly.
    pub fn directory(&self) -> Option<BorrowedFd<'_>> {
        self.dir.as_ref().map(AsFd::as_fd)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let (Some(dir), Some(name)) = (&self.dir, &self.named) {
            let _ = unlinkat(dir, name.as_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The file that a path leads to, so that a symbolic link is kept; the path as it is if it leads to
/// something without a path, such as a pipe by /dev/stdout.
///
/// Fails with status 4 as [`check_link`] does, and with ELOOP.
fn resolved(target: &Path) -> Result<PathBuf> {
    let mut at = std::env::current_dir().at(|| "the working directory")?;
    let mut left: Vec<OsString> = Vec::new();
    let mut links = 0;
    let push = |left: &mut Vec<OsString>, path: &Path| {
        left.extend(path.components().rev().map(|component| component.as_os_str().to_owned()));
    };
    push(&mut left, target);
    while let Some(name) = left.pop() {
        let next = match name.as_bytes() {
            b"." => continue,
            b".." => {
                at.pop();
                continue;
            }
            // join() of an absolute path gives that path.
            _ => at.join(&name),
        };
        match next.symlink_metadata() {
            Ok(link) if link.is_symlink() => {
                check_link(&at, &link).at(|| next.display().to_string())?;
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::ELOOP.into());
                }
                push(&mut left, &next.read_link()?);
            }
            // A new file, or nothing with a path: the link itself is replaced.
            Err(_) if !left.is_empty() || links > 0 => return Ok(target.to_owned()),
            _ => at = next,
        }
    }
    Ok(at)
}

/// The most symbolic links of a path that are followed: MAXSYMLINKS of the kernel.
const MAX_LINKS: u32 = 40;

/// Fails with status 4 if a symbolic link may have been put there by another user to have a file
/// replaced: it is in a directory with the sticky bit that everybody can write, and belongs neither to
/// this user nor to the owner of the directory. The kernel refuses to follow such a link only if
/// fs.protected_symlinks is set (proc_sys_fs(5)).
fn check_link(dir: &Path, link: &Metadata) -> Result<()> {
    let found = dir.metadata()?;
    let shared = found.mode() & 0o1002 == 0o1002;
    match shared && link.uid() != geteuid().as_raw() && link.uid() != found.uid() {
        true => {
            let why = format!(
                "a symbolic link of uid {} in a directory that everybody can write is not followed; \
                 name the file that it leads to",
                link.uid()
            );
            Err(Error::new(Status::Denied, why))
        }
        false => Ok(()),
    }
}

fn temporary() -> String {
    format!(".fdkit.{}.tmp", std::process::id())
}
