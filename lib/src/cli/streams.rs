//! stdin and stdout for images and for text. An image is neither read from nor written to a terminal.

use super::progress::ProgressReader;
use super::{Arg, Tool};
use crate::error::{At, Error, Result, Status};
use crate::sys::start;
use crate::text::escape;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::fmt::{self, Display};
use std::fs::File;
use std::io::{self, IsTerminal, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// stdout without a buffer: every write is a write(2), and every error is reported.
#[derive(Debug)]
pub struct Out(io::Stdout);

/// stdin without a buffer: every read is a read(2).
#[derive(Debug)]
pub struct In(io::Stdin);

/// stdout for an image.
///
/// Fails with [`Status::Misuse`] on a terminal, with a message that ends in `cure`, and with
/// [`Status::System`] if stdout was closed when the process started: std has opened /dev/null in its
/// place, which would swallow the image.
pub fn binary_stdout(cure: &str) -> Result<Out> {
    let out = text_stdout()?;
    if out.0.is_terminal() {
        return Err(Error::misuse(format!(
            "refusing to write a binary image to the terminal; {cure}"
        )));
    }
    Ok(out)
}

/// stdin for an image. Fails as [`binary_stdout`] does.
pub fn binary_stdin(cure: &str) -> Result<In> {
    check_open(0, "standard input", cure)?;
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Err(Error::misuse(format!(
            "refusing to read a binary image from the terminal; {cure}"
        )));
    }
    Ok(In(stdin))
}

/// stdout for text. Fails with [`Status::System`] if it was closed when the process started.
pub fn text_stdout() -> Result<Out> {
    check_open(1, "standard output", "redirect it")?;
    Ok(Out(io::stdout()))
}

/// Writes a text to stdout. A reader that has closed its end of a pipe is no failure.
pub(super) fn print(text: &str) -> Result<Status> {
    match text_stdout()?.write_all(text.as_bytes()) {
        Err(err) if err.raw_os_error() != Some(Errno::EPIPE as i32) => {
            Err(Error::from(err).at("standard output"))
        }
        _ => Ok(Status::Done),
    }
}

fn check_open(fd: i32, name: &str, cure: &str) -> Result<()> {
    match start::closed_at_start(fd) {
        true => Err(Error::new(Status::System, format!("closed; {cure}")).at(name)),
        false => Ok(()),
    }
}

/// The image that a command line names: a file, or stdin for `-` and where no file is named.
#[derive(Clone, Copy, Debug)]
pub struct ImageInput<'a> {
    path: Option<&'a Path>,
}

impl<'a> ImageInput<'a> {
    /// The image on stdin.
    pub const STDIN: ImageInput<'static> = ImageInput { path: None };

    /// The image that this word names.
    pub fn new(word: Option<&'a Arg>) -> ImageInput<'a> {
        ImageInput { path: word.filter(|word| !word.is_dash()).map(Arg::as_path) }
    }

    /// The file, unless the image is on stdin.
    pub fn path(self) -> Option<&'a Path> {
        self.path
    }

    /// Opens the image; reading it shows the progress of `tool`.
    ///
    /// Fails as [`binary_stdin`] does, with `cure`, or as open(2) does.
    pub fn open(self, tool: &Tool, cure: &str) -> Result<Box<dyn Read>> {
        Ok(match self.path {
            Some(path) => {
                let file = File::open(path).at(|| self.to_string())?;
                Box::new(ProgressReader::new(tool.name(), file))
            }
            None => Box::new(ProgressReader::new(tool.name(), binary_stdin(cure)?)),
        })
    }

    /// Copies the image into an unnamed file in the folder TMPDIR, so that it can be read twice. `opened`
    /// is called once the image and the file are open, before the first byte is read.
    ///
    /// Fails as [`ImageInput::open`] does, and where TMPDIR has no room or no unnamed files
    /// (O_TMPFILE of open(2)).
    pub fn spool(self, tool: &Tool, cure: &str, opened: impl FnOnce()) -> Result<File> {
        let mut from = self.open(tool, cure)?;
        let dir = std::env::var_os("TMPDIR").unwrap_or("/tmp".into());
        let to = || format!("copy {self} into the folder {} (TMPDIR)", escape(dir.as_bytes()));
        let flags = OFlag::O_RDWR | OFlag::O_TMPFILE | OFlag::O_CLOEXEC;
        let file = open(dir.as_os_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR).at(to)?;
        opened();
        self.copy(&mut *from, File::from(file), &to)
    }

    /// Copies the image into sealed memory, so that nobody changes between the check and the restore
    /// what the file holds.
    ///
    /// Fails as [`ImageInput::open`] does, and for want of memory. Source: memfd_create(2).
    pub fn spool_sealed(self, tool: &Tool, cure: &str) -> Result<File> {
        use memfd::FileSeal::{SealGrow, SealSeal, SealShrink, SealWrite};
        let mut from = self.open(tool, cure)?;
        let to = || format!("copy {self} into memory");
        let options = memfd::MemfdOptions::default().allow_sealing(true);
        let memory = options.create("image").at(to)?;
        self.copy(&mut *from, memory.as_file(), &to)?;
        memory.add_seals(&[SealShrink, SealGrow, SealWrite, SealSeal]).at(to)?;
        Ok(memory.into_file())
    }

    /// Copies all of the image and goes back to the beginning of the copy.
    ///
    /// Fails with status 3 at the first bytes of a stream that is no image, before the rest of it takes
    /// room.
    fn copy<F: Write + Seek>(
        self,
        from: &mut dyn Read,
        mut to: F,
        doing: &dyn Fn() -> String,
    ) -> Result<F> {
        let mut buffer = vec![0; 256 << 10];
        let mut first = Vec::new();
        loop {
            let count = from.read(&mut buffer).at(|| self.to_string())?;
            if count == 0 {
                break;
            }
            if first.len() < HEAD.len() {
                first.extend_from_slice(&buffer[..count.min(HEAD.len())]);
                check_first(&first[..first.len().min(HEAD.len())]).at(|| self.to_string())?;
            }
            to.write_all(&buffer[..count]).at(doing)?;
        }
        to.rewind().at(doing)?;
        Ok(to)
    }
}

/// The first bytes of every image: the mark, and a map of one key, which is `head`.
const HEAD: &[u8] = b"\xd9\xd9\xf7\xa1\x64head";

/// Fails with status 3 if a stream that begins with these bytes is no image.
fn check_first(bytes: &[u8]) -> Result<()> {
    match HEAD.starts_with(bytes) {
        true => Ok(()),
        false => Err(Error::malformed("not an fdkit image").at("byte 0")),
    }
}

/// The name of the image in messages.
impl Display for ImageInput<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path {
            Some(path) => f.write_str(&escape(path.as_os_str().as_bytes())),
            None => f.write_str("stdin"),
        }
    }
}

impl Write for Out {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(nix::unistd::write(&self.0, buf)?)
    }

    fn write_vectored(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        // writev(2) fails for more than IOV_MAX; the caller writes the rest with the next call.
        Ok(nix::sys::uio::writev(&self.0, &bufs[..bufs.len().min(1024)])?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Out {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Read for In {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(nix::unistd::read(&self.0, buf)?)
    }
}

impl AsFd for In {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    use std::ffi::OsString;

    const TOOL: Tool = Tool::new("tool");

    fn arg(word: &str) -> Arg {
        OsString::from(word).into()
    }

    #[test]
    fn a_dash_and_no_word_are_stdin() {
        let (dash, odd) = (arg("-"), arg("/odd\nname"));
        assert_eq!(ImageInput::new(None).to_string(), "stdin");
        assert_eq!(ImageInput::new(Some(&dash)).to_string(), "stdin");
        assert_eq!(ImageInput::new(Some(&odd)).to_string(), "/odd\\x0aname");
        assert_eq!(ImageInput::new(Some(&odd)).path(), Some(Path::new("/odd\nname")));
    }

    #[test]
    fn a_copy_begins_at_its_beginning_and_one_in_memory_is_sealed() {
        let name = arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/images/0.1.0.fdi"));
        let image = ImageInput::new(Some(&name));
        let want = std::fs::read(name.as_path()).unwrap();
        let copies =
            [image.spool(&TOOL, "", || ()).unwrap(), image.spool_sealed(&TOOL, "").unwrap()];
        for mut copy in &copies {
            let mut bytes = Vec::new();
            copy.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes, want);
        }
        let seals = SealFlag::from_bits_retain(fcntl(&copies[1], FcntlArg::F_GET_SEALS).unwrap());
        let all = ["SHRINK", "GROW", "WRITE", "SEAL"].map(|name| format!("F_SEAL_{name}"));
        let all = all.iter().filter_map(|name| SealFlag::from_name(name)).collect();
        assert!(seals.contains(all), "{seals:?}");
        let gone = arg("/no/such");
        let why = ImageInput::new(Some(&gone)).spool(&TOOL, "", || ()).unwrap_err();
        assert_eq!(why.to_string(), "/no/such: No such file or directory");
    }
}
