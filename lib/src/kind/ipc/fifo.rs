//! fifo(7): a pipe with a name. It is opened by that name, and its bytes are put back only if
//! nobody else has filled it since. One whose name is gone is made anew, as a pipe is.

use crate::error::{At, Error, Result};
use crate::image::OpenFile;
use crate::kind::context::{Opened, RestoreContext, expect_type};
use crate::kind::file::hardlink::Renamed;
use crate::kind::file::unlinked::nameless;
use crate::kind::ipc::pipe;
use crate::kind::{ContentsContext, Kind, Sink};
use crate::proc::Descriptor;
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, openat};
use nix::libc;
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::mkfifoat;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// An open fifo.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Fifo {
    /// F_GETPIPE_SZ; zero if it could not be asked.
    size: u32,
    /// How many bytes wait in it: FIONREAD.
    queued: u32,
    /// That it has no name any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unlinked: Option<NamelessFifo>,
    /// That its name is gone, and which other it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    renamed: Option<Renamed>,
}

/// What must be known of a fifo that nobody else can open.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct NamelessFifo {
    /// Whether nobody had the other end open.
    alone: bool,
}

/// With both ends open nobody waits in open(2) for the other.
const BOTH: i32 = libc::O_RDWR | libc::O_NONBLOCK;

impl Kind for Fifo {
    const NAME: &'static str = "fifo";
    const SHARES_OBJECT: bool = true;

    fn claims(it: &Descriptor<'_>) -> bool {
        it.file_type() == Some(libc::S_IFIFO) && it.link.0.starts_with(b"/") && !it.is_path()
    }

    fn capture(it: &Descriptor<'_>) -> Result<Self> {
        let (size, queued, alone) = pipe::look(it)?;
        let unlinked = it.deleted().map(|_| NamelessFifo { alone });
        let renamed = if unlinked.is_some() { None } else { Renamed::find(it)? };
        Ok(Fifo { size, queued, unlinked, renamed })
    }

    fn contents(
        copy: BorrowedFd<'_>,
        _: &ContentsContext<'_>,
        limit: u64,
        to: Sink<'_>,
    ) -> Result<()> {
        pipe::peek(copy, limit, to)
    }

    fn validate(&self, file: &OpenFile) -> Result<()> {
        if file.inode.is_none() {
            return Err(Error::malformed("a fifo is known by its inode, which is not there"));
        }
        expect_type(file, libc::S_IFIFO)
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        match &self.unlinked {
            Some(NamelessFifo { alone }) => pipe::other_end(file, *alone, cx),
            None => cx.check_path_in_dry_run(&*Renamed::living(&self.renamed, file)?),
        }
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        let Fifo { size, queued, ref unlinked, ref renamed } = *self;
        let peer = cx.open_of_object(file);
        let (both, made) = match (unlinked, &peer) {
            (None, _) => {
                let file = Renamed::living(renamed, file)?;
                cx.check_path(&file)?;
                let both = cx.open(&file.link.0, BOTH as u32)?;
                (both, cx.open_file(&file)?)
            }
            (Some(NamelessFifo { alone: _ }), stands) => {
                let both = match stands {
                    Some(peer) => cx.reopen_descriptor(peer.as_fd(), BOTH as u32)?.fd,
                    None => nameless(cx, file, create)?,
                };
                let made = cx.reopen_descriptor(both.as_fd(), file.flags)?;
                if stands.is_none() {
                    resize(both.as_fd(), size)?;
                    cx.set_owner_and_mode(both.as_fd(), file)?;
                }
                (both, made)
            }
        };
        if peer.is_none() && queued > 0 {
            let name = crate::text::escape(&file.link.0).into_owned();
            if sys::readable(both.as_fd())? > 0 {
                cx.warnings.push(format!("{name}: others have written to it: left as it is"));
            } else if !cx.has_contents(file.object) {
                let why = "are not in the image (scan with --data): it is restored empty";
                cx.warnings.push(format!("{name}: the {queued} bytes in it {why}"));
            } else {
                resize(both.as_fd(), size)?;
                pipe::fill(cx, file, both.as_fd(), libc::O_NONBLOCK as u32)?;
            }
        }
        Ok(made)
    }
}

/// Gives it its size, if that is known.
fn resize(both: BorrowedFd<'_>, size: u32) -> Result<()> {
    if size != 0 && fcntl(both, FcntlArg::F_GETPIPE_SZ)? as u32 != size {
        fcntl(both, FcntlArg::F_SETPIPE_SZ(size as i32)).at(|| "its size")?;
    }
    Ok(())
}

/// Makes one, and opens both its ends.
fn create(dir: BorrowedFd<'_>, name: &[u8]) -> nix::Result<OwnedFd> {
    mkfifoat(dir, name, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let both = OFlag::from_bits_retain(BOTH) | OFlag::O_NOFOLLOW;
    let new = openat(dir, name, both, Mode::empty())?;
    let mode = SFlag::from_bits_truncate(fstat(&new)?.st_mode) & SFlag::S_IFMT;
    if mode == SFlag::S_IFIFO { Ok(new) } else { Err(Errno::ESTALE) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::tests::body_of;
    use std::io::Write;

    #[test]
    fn a_fifo_has_a_name_and_what_waits_in_it() {
        let path = std::env::temp_dir().join(format!("fdkit-fifo-{}", std::process::id()));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut both = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        both.write_all(b"four").unwrap();
        let named = Fifo { size: 65536, queued: 4, unlinked: None, renamed: None };
        assert_eq!(body_of::<Fifo>(&both), named);
        std::fs::remove_file(&path).unwrap();
        let unlinked = Some(NamelessFifo { alone: false });
        assert_eq!(body_of::<Fifo>(&both), Fifo { unlinked, ..named });
    }
}
