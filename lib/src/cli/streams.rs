//! stdin and stdout for images and for text. An image is neither read from nor written to a terminal.

use crate::error::{Error, Result, Status};
use crate::sys::start;
use nix::errno::Errno;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

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
