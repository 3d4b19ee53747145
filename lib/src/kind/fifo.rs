//! fifo(7): a pipe with a name. It is opened by that name, and its bytes are put back only if
//! nobody else has filled it since.

use super::{Kind, Scene, Sink, pipe};
use crate::error::{At, Error, Result};
use crate::image::OpenFile;
use crate::proc::Descriptor;
use crate::site::{Made, Site};
use crate::sys;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd};

/// An open fifo.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Fifo {
    /// F_GETPIPE_SZ; zero if it could not be asked.
    size: u32,
    /// How many bytes wait in it: FIONREAD.
    queued: u32,
}

impl Kind for Fifo {
    const NAME: &'static str = "fifo";
    const SHARES: bool = true;

    fn claims(it: &Descriptor<'_>) -> bool {
        it.file_type() == Some(libc::S_IFIFO)
            && it.link.0.starts_with(b"/")
            && it.deleted().is_none()
            && !it.is_path()
    }

    fn capture(it: &Descriptor<'_>) -> Result<Self> {
        let (size, queued, _) = pipe::look(it)?;
        Ok(Fifo { size, queued })
    }

    fn contents(copy: BorrowedFd<'_>, _: &Scene<'_>, limit: u64, to: Sink<'_>) -> Result<()> {
        pipe::peek(copy, limit, to)
    }

    fn check(&self, file: &OpenFile, site: &Site<'_>) -> Result<()> {
        if file.inode.is_none() {
            return Err(Error::malformed("a fifo is known by its inode, which is not there"));
        }
        site.expect_type(file, libc::S_IFIFO)?;
        site.foresee(file)
    }

    fn restore(self, file: &OpenFile, site: &mut Site<'_>) -> Result<Made> {
        let Fifo { size, queued } = self;
        site.probe(file)?;
        // A reader or writer waits in open(2) for the other; with both ends open here, none does.
        let both = site.open(&file.link.0, (libc::O_RDWR | libc::O_NONBLOCK) as u32)?;
        let first = site.standing(file).is_none();
        let made = site.reopen(file)?;
        if first && queued > 0 {
            let name = crate::text::escape(&file.link.0).into_owned();
            if sys::readable(both.as_fd())? > 0 {
                site.warnings.push(format!("{name}: others have written to it: left as it is"));
            } else if !site.has_contents(file.object) {
                let why = "are not in the image (scan with --data): it is restored empty";
                site.warnings.push(format!("{name}: the {queued} bytes in it {why}"));
            } else {
                if size != 0 && fcntl(both.as_fd(), FcntlArg::F_GETPIPE_SZ)? as u32 != size {
                    fcntl(both.as_fd(), FcntlArg::F_SETPIPE_SZ(size as i32)).at(|| "its size")?;
                }
                pipe::fill(site, file, both.as_fd(), libc::O_NONBLOCK as u32)?;
            }
        }
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{body_of, file_of};
    use super::*;
    use std::io::Write;

    #[test]
    fn a_fifo_has_a_name_and_what_waits_in_it() {
        let path = std::env::temp_dir().join(format!("fdkit-fifo-{}", std::process::id()));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut both = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        both.write_all(b"four").unwrap();
        assert_eq!(body_of::<Fifo>(&both), Fifo { size: 65536, queued: 4 });
        // Without its name it cannot be opened again.
        std::fs::remove_file(&path).unwrap();
        assert_eq!(file_of(&both).kind, "opaque");
    }
}
