//! fifo(7): a pipe with a name. It is opened by that name, and its bytes are written back only if
//! it is empty. An unlinked fifo is created again, as a pipe is.

use crate::error::{Error, Result};
use crate::image::{Inode, OpenFile};
use crate::kind::context::{Opened, RestoreContext, expect_type, reopen};
use crate::kind::effect::{Effect, opening, set_id_bits};
use crate::kind::file::hardlink::OtherName;
use crate::kind::file::unlinked::{create_and_unlink, expect_path, name_made_for_a_moment};
use crate::kind::ipc::pipe;
use crate::kind::{ContentsContext, Kind, Sink};
use crate::names::{self, PrivateDirectory};
use crate::proc::Descriptor;
use crate::sys;
use nix::fcntl::{FcntlArg, OFlag, RenameFlags, fcntl, openat, renameat2};
use nix::libc;
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, mkfifoat, unlinkat};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The record of an end of a fifo.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Fifo {
    /// The capacity in bytes: F_GETPIPE_SZ of fcntl(2). Zero in a passive scan.
    size: u32,
    /// The number of unread bytes: FIONREAD.
    queued: u32,
    /// The record of an unlinked fifo; none if the fifo has a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unlinked: Option<UnlinkedFifo>,
    /// Its other name, if the one by which it was opened is unlinked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    renamed: Option<OtherName>,
}

/// The facts needed of a fifo that can no longer be opened by a name.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct UnlinkedFifo {
    /// The other end is closed: see the pipe's field of that name.
    alone: bool,
}

/// The flags with which open(2) does not wait for the other end: O_RDWR opens both ends.
const BOTH_ENDS: i32 = libc::O_RDWR | libc::O_NONBLOCK;

impl Kind for Fifo {
    const NAME: &'static str = "fifo";
    const SHARES_OBJECT: bool = true;

    fn claims(descriptor: &Descriptor<'_>) -> bool {
        descriptor.file_type() == Some(libc::S_IFIFO)
            && descriptor.link.0.starts_with(b"/")
            && !descriptor.is_path()
    }

    fn capture(descriptor: &Descriptor<'_>) -> Result<Self> {
        let (size, queued, alone) = pipe::read_state(descriptor)?;
        let unlinked = descriptor.deleted().map(|_| UnlinkedFifo { alone });
        let renamed = if unlinked.is_some() { None } else { OtherName::find(descriptor)? };
        Ok(Fifo { size, queued, unlinked, renamed })
    }

    fn search(descriptor: &Descriptor<'_>) {
        // The capture says what fails.
        let _ = OtherName::find(descriptor);
    }

    fn contents(
        copy: BorrowedFd<'_>,
        _: &ContentsContext<'_>,
        limit: u64,
        to: Sink<'_>,
    ) -> Result<()> {
        pipe::copy_contents(copy, limit, to)
    }

    fn validate(&self, file: &OpenFile) -> Result<()> {
        if file.inode.is_none() {
            return Err(Error::malformed("it has no inode, which every fifo has"));
        }
        if self.unlinked.is_some() {
            expect_path(file)?;
        }
        expect_type(file, libc::S_IFIFO)
    }

    fn effects(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<Vec<Effect>> {
        if self.unlinked.is_none() {
            // The check of its path says what fails.
            let Ok(named) = OtherName::with_existing_name(&self.renamed, file) else {
                return Ok(Vec::new());
            };
            let mut effects = opening(file, &named, cx);
            if cx.asks_for_names() && self.is_filled(&named, cx) {
                if let Ok((place, _)) = cx.look(&named.link.0, false) {
                    effects.push(self.filled(place.as_fd(), cx)?);
                }
            }
            return Ok(effects);
        }
        let made = name_made_for_a_moment(file, cx)?;
        Ok(made.into_iter().chain(set_id_bits(file)).collect())
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        match &self.unlinked {
            Some(UnlinkedFifo { alone }) => pipe::check_other_end(file, *alone, cx),
            None => {
                let file = OtherName::with_existing_name(&self.renamed, file)?;
                cx.check_path_for(&file, BOTH_ENDS as u32)
            }
        }
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        let Fifo { size, queued, ref unlinked, ref renamed } = *self;
        let peer = cx.open_of_object(file);
        let (both, made) = match (unlinked, &peer) {
            (None, _) => {
                let file = OtherName::with_existing_name(renamed, file)?;
                let is_fifo = |found: &Inode| found.mode & libc::S_IFMT == libc::S_IFIFO;
                let (place, _) = cx.look_for(&file, is_fifo)?;
                if peer.is_none() && self.is_filled(&file, cx) {
                    self.filled(place.as_fd(), cx)?.permitted(cx.allow)?;
                }
                let both = cx.reopen_descriptor(place.as_fd(), BOTH_ENDS as u32)?.fd;
                (both, cx.open_seen(&file.link.0, place.as_fd(), file.flags)?)
            }
            (Some(UnlinkedFifo { alone: _ }), peer) => {
                let both = match peer {
                    Some(peer) => cx.reopen_descriptor(peer.as_fd(), BOTH_ENDS as u32)?.fd,
                    None => create_and_unlink(cx, file, create)?,
                };
                let made = cx.reopen_descriptor(both.as_fd(), file.flags)?;
                if peer.is_none() {
                    set_capacity(both.as_fd(), size)?;
                    cx.set_owner_and_mode(both.as_fd(), file)?;
                }
                (both, made)
            }
        };
        if peer.is_none() && queued > 0 {
            let name = crate::text::escape(&file.link.0).into_owned();
            if sys::readable(both.as_fd())? > 0 {
                cx.warnings.push(format!(
                    "{name}: it is not empty now; its {queued} recorded bytes are not written to it"
                ));
            } else if !cx.has_contents(file.object) {
                let why = "are not in the image (scan with --data): it is restored empty";
                cx.warnings.push(format!("{name}: the {queued} bytes in it {why}"));
            } else {
                set_capacity(both.as_fd(), size)?;
                pipe::fill(cx, file, both.as_fd(), libc::O_NONBLOCK as u32)?;
            }
        }
        Ok(made)
    }
}

impl Fifo {
    /// Reports whether the image has bytes that are written to it.
    fn is_filled(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> bool {
        self.queued > 0 && cx.has_contents(file.object)
    }

    /// The effect of the bytes that are written to a fifo that exists.
    fn filled(&self, place: BorrowedFd<'_>, cx: &RestoreContext<'_>) -> Result<Effect> {
        cx.write_to(place, || format!("writes {} bytes to it if it is empty", self.queued))
    }
}

/// Sets the capacity, if it is recorded and differs.
fn set_capacity(both: BorrowedFd<'_>, size: u32) -> Result<()> {
    if size != 0 && fcntl(both, FcntlArg::F_GETPIPE_SZ)? as u32 != size {
        pipe::set_capacity(both, size)?;
    }
    Ok(())
}

/// Creates a fifo, and opens both ends.
fn create(dir: BorrowedFd<'_>, name: &[u8]) -> nix::Result<OwnedFd> {
    let create = |dir: BorrowedFd<'_>| {
        mkfifoat(dir, name, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let place = openat(dir, name, OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty())?;
        reopen(place.as_fd(), BOTH_ENDS as u32)
    };
    if !names::can_be_replaced_in(dir)? {
        return create(dir);
    }
    // Another user can put a device or a fifo of someone else in its place, before it is opened.
    let private = PrivateDirectory::new_in(dir)?;
    let both = create(private.as_fd());
    let moved = renameat2(&private, name, dir, name, RenameFlags::RENAME_NOREPLACE);
    if moved.is_err() {
        // There is none if the first call has failed.
        let _ = unlinkat(&private, name, UnlinkatFlags::NoRemoveDir);
    }
    both.and_then(|both| moved.map(|()| both))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::tests::body_of;
    use std::io::Write;

    #[test]
    fn capacity_and_unread_bytes_are_captured_with_and_without_a_name() {
        let path = std::env::temp_dir().join(format!("fdkit-fifo-{}", std::process::id()));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut both = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        both.write_all(b"four").unwrap();
        let named = Fifo { size: 65536, queued: 4, unlinked: None, renamed: None };
        assert_eq!(body_of::<Fifo>(&both), named);
        std::fs::remove_file(&path).unwrap();
        let unlinked = Some(UnlinkedFifo { alone: false });
        assert_eq!(body_of::<Fifo>(&both), Fifo { unlinked, ..named });
    }
}
