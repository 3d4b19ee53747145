//! fdimg write: a stream becomes a file, whole or not at all.

use crate::source;
use argh::{ArgsInfo, FromArgs};
use fdkit::cli::{self, Arg};
use fdkit::error::{At, Result, Status};
use fdkit::image::{Entry, Item, Reader, Task, Writer};
use fdkit::text::escape;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{fsync, linkat};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

/// Write the image on stdin to a file, mode 0600. The file is replaced only by a whole image.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "write")]
pub(crate) struct Args {
    /// the file; without it COMM.PID.fdi of the first task, and the name is printed
    #[argh(positional, arg_name = "FILE")]
    file: Option<Arg>,
}

pub(crate) fn run(args: &Args) -> Result<Status> {
    let from = cli::binary_stdin("use a pipe: fdscan PID | fdimg write")?;
    let name = || source::name(None);
    let mut reader = Reader::new(from);
    let (_, head) = reader.head().at(name)?;
    // The folder is known before the name is, and a file without a name is no litter.
    let given = args.file.as_ref().map(|file| file.as_path().to_owned());
    let dir = given.as_deref().and_then(Path::parent).filter(|dir| !dir.as_os_str().is_empty());
    let dir = dir.unwrap_or(Path::new(".")).to_owned();
    let shown = || given.as_deref().unwrap_or(&dir).display().to_string();
    let new = Unnamed::create(&dir).at(shown)?;
    let mut writer = Writer::new(&new.file);
    writer.pass(&head).at(shown)?;
    let mut first = None;
    while let Some(Entry { whole, item, .. }) = reader.next().at(name)? {
        if let (None, Item::Task(task)) = (&first, item) {
            first = Some(file_name(&task));
        }
        writer.pass(whole).at(shown)?;
    }
    writer.end().at(shown)?;
    let target = given.clone().unwrap_or_else(|| first.unwrap_or("image.fdi".into()).into());
    new.publish(&target).at(|| target.display().to_string())?;
    if given.is_none() {
        let line = format!("{}\n", escape(target.as_os_str().as_encoded_bytes()));
        cli::text_stdout()?.write_all(line.as_bytes())?;
    }
    Ok(Status::Done)
}

/// COMM.PID.fdi, where COMM keeps only what is plain in a file name.
fn file_name(task: &Task) -> String {
    let plain = |byte: &u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'+' => *byte as char,
        b'-' | b'.' => *byte as char,
        _ => '_',
    };
    let comm: String = task.comm.0.iter().map(plain).collect();
    let comm = comm.trim_start_matches(['.', '-']);
    format!("{}.{}.fdi", if comm.is_empty() { "image" } else { comm }, task.pid)
}

/// A file that has no name until it is whole (O_TMPFILE), or where a file system knows no such
/// thing, a name that goes when this is dropped.
struct Unnamed {
    file: File,
    named: Option<PathBuf>,
    dir: PathBuf,
}

impl Unnamed {
    fn create(dir: &Path) -> Result<Unnamed> {
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let (file, named) = match open(dir, flags | OFlag::O_TMPFILE, mode) {
            Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::ENOSYS) => {
                let path = temporary(dir);
                (open(&path, flags | OFlag::O_CREAT | OFlag::O_EXCL, mode)?, Some(path))
            }
            other => (other?, None),
        };
        Ok(Unnamed { file: file.into(), named, dir: dir.to_owned() })
    }

    /// Puts it in place of whatever had the name, once its bytes are safe on the disk.
    fn publish(mut self, target: &Path) -> Result<()> {
        fsync(self.file.as_fd())?;
        if self.named.is_none() {
            let path = temporary(&self.dir);
            let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            linkat(AT_FDCWD, own.as_str(), AT_FDCWD, &path, AtFlags::AT_SYMLINK_FOLLOW)?;
            self.named = Some(path);
        }
        if let Some(path) = &self.named {
            std::fs::rename(path, target)?;
            self.named = None;
        }
        let dir = open(&self.dir, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())?;
        Ok(fsync(dir.as_fd())?)
    }
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        if let Some(path) = &self.named {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn temporary(dir: &Path) -> PathBuf {
    dir.join(format!(".fdimg.{}.tmp", std::process::id()))
}
