//! stdin and stdout, as images and as text. An image neither comes from a terminal nor goes to one.

use crate::error::{Error, Result, Status};
use crate::sys::start;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

/// stdout, for data: every write is a write(2), and its error an error.
#[derive(Debug)]
pub struct Out(io::Stdout);

/// stdin, for data: every read is a read(2).
#[derive(Debug)]
pub struct In(io::Stdin);

/// stdout for an image.
///
/// Refuses a terminal as misuse, in one line that ends with this cure, and fails with
/// [`Status::System`] if stdout was closed when we started, where std would let /dev/null swallow
/// the image.
pub fn binary_stdout(cure: &str) -> Result<Out> {
    let out = text_stdout()?;
    if out.0.is_terminal() {
        return Err(Error::misuse(format!(
            "refusing to write a binary image to the terminal; {cure}"
        )));
    }
    Ok(out)
}

/// stdin for an image. Refuses what [`binary_stdout`] refuses, in the same way.
pub fn binary_stdin(cure: &str) -> Result<In> {
    open_at_start(0, "standard input")?;
    let from = io::stdin();
    if from.is_terminal() {
        return Err(Error::misuse(format!(
            "refusing to read a binary image from the terminal; {cure}"
        )));
    }
    Ok(In(from))
}

/// stdout for text. Fails with [`Status::System`] if it was closed when we started.
pub fn text_stdout() -> Result<Out> {
    open_at_start(1, "standard output")?;
    Ok(Out(io::stdout()))
}

fn open_at_start(fd: i32, name: &str) -> Result<()> {
    match start::closed_at_start(fd) {
        true => Err(Error::new(Status::System, "closed").at(name)),
        false => Ok(()),
    }
}

impl Write for Out {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(nix::unistd::write(&self.0, buf)?)
    }

    fn write_vectored(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        // More than IOV_MAX are an error to writev(2); the rest comes with the next call.
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
