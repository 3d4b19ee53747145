//! An output file that gets its name only when it is complete.

use crate::error::Result;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{fsync, linkat};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

/// A file that has no name until it is complete (O_TMPFILE of open(2)). On a file system without
/// O_TMPFILE it has a temporary name, which is removed when this is dropped.
pub struct NewFile {
    file: File,
    /// The temporary name.
    named: Option<PathBuf>,
    /// The directory in which it gets its name; none for a device or a fifo, which is written
    /// directly.
    dir: Option<PathBuf>,
}

impl NewFile {
    /// Makes it in the directory in which it will get its name.
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

    /// Makes it in the directory of the file that it will replace. If that file is there and is not
    /// a regular file (/dev/stdout, a fifo), it is written directly.
    pub fn beside(target: &Path) -> Result<NewFile> {
        let target = resolved(target);
        if std::fs::metadata(&target).is_ok_and(|found| !found.is_file()) {
            let file = File::options().write(true).open(&target)?;
            return Ok(NewFile { file, named: None, dir: None });
        }
        let dir = target.parent().filter(|dir| !dir.as_os_str().is_empty());
        NewFile::create(dir.unwrap_or(Path::new(".")))
    }

    /// Gives it the name, once its bytes are on the disk (fsync(2)). It replaces a file of that
    /// name.
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

/// The file that a symbolic link refers to, so that the link is kept.
fn resolved(target: &Path) -> PathBuf {
    target.canonicalize().unwrap_or_else(|_| target.to_owned())
}

fn temporary(dir: &Path) -> PathBuf {
    dir.join(format!(".fdkit.{}.tmp", std::process::id()))
}
