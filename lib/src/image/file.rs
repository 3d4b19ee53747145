//! A file that appears whole or not at all.

use crate::error::Result;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{fsync, linkat};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

/// A file that has no name until it is whole (O_TMPFILE), or where a file system knows no such
/// thing, a name that goes when this is dropped.
pub struct NewFile {
    file: File,
    named: Option<PathBuf>,
    /// The folder where it gets its name; none for a device or a fifo, which is written as it is.
    dir: Option<PathBuf>,
}

impl NewFile {
    /// Makes it in the folder where it is going to have its name.
    pub fn create(dir: &Path) -> Result<NewFile> {
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let (file, named) = match open(dir, flags | OFlag::O_TMPFILE, mode) {
            Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::ENOSYS) => {
                let path = temporary(dir);
                (open(&path, flags | OFlag::O_CREAT | OFlag::O_EXCL, mode)?, Some(path))
            }
            other => (other?, None),
        };
        Ok(NewFile { file: file.into(), named, dir: Some(dir.to_owned()) })
    }

    /// Makes it in the folder of the file that it is going to replace. What is there and no regular
    /// file (/dev/stdout, a fifo) is written directly.
    pub fn beside(target: &Path) -> Result<NewFile> {
        let target = resolved(target);
        if std::fs::metadata(&target).is_ok_and(|found| !found.is_file()) {
            let file = File::options().write(true).open(&target)?;
            return Ok(NewFile { file, named: None, dir: None });
        }
        let dir = target.parent().filter(|dir| !dir.as_os_str().is_empty());
        NewFile::create(dir.unwrap_or(Path::new(".")))
    }

    /// Puts it in place of whatever had the name, once its bytes are safe on the disk.
    pub fn publish(mut self, target: &Path) -> Result<()> {
        let Some(dir) = self.dir.clone() else { return Ok(()) };
        fsync(self.file.as_fd())?;
        if self.named.is_none() {
            let path = temporary(&dir);
            let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            linkat(AT_FDCWD, own.as_str(), AT_FDCWD, &path, AtFlags::AT_SYMLINK_FOLLOW)?;
            self.named = Some(path);
        }
        if let Some(path) = &self.named {
            std::fs::rename(path, resolved(target))?;
            self.named = None;
        }
        let dir = open(&dir, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())?;
        Ok(fsync(dir.as_fd())?)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(path) = &self.named {
            let _ = std::fs::remove_file(path);
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

/// The file that a symbolic link leads to, so that the link stays.
fn resolved(target: &Path) -> PathBuf {
    target.canonicalize().unwrap_or_else(|_| target.to_owned())
}

fn temporary(dir: &Path) -> PathBuf {
    dir.join(format!(".fdkit.{}.tmp", std::process::id()))
}
