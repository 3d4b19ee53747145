//! inotify(7): watches, each of an inode under a number of its own. fdinfo lists them, without the
//! paths by which they were added.

use crate::error::{At, Error, Result};
use crate::image::OpenFile;
use crate::kind::context::{Opened, RestoreContext};
use crate::kind::watch::fsnotify::{Watched, finding, identity};
use crate::kind::{Kind, Prerequisite};
use crate::operation::Outcome;
use crate::proc::{Descriptor, hex_word};
use crate::sys::{self, notify};
use nix::errno::Errno;
use nix::libc;
use nix::sys::inotify::InitFlags;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, RawFd};

/// An instance.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Inotify {
    /// The process whose numbers `on` names.
    pid: i32,
    /// By number.
    watches: Vec<InotifyWatch>,
    /// How many bytes of events wait to be read: FIONREAD.
    queued: u32,
}

/// A watch.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct InotifyWatch {
    /// The watch descriptor: its number in this instance.
    wd: u32,
    /// The events, IN_ONESHOT and IN_EXCL_UNLINK.
    mask: u32,
    /// What is watched.
    on: Watched,
}

/// What a mask of fdinfo can have: INOTIFY_USER_MASK of fs/notify/inotify.
const MASK: u32 = libc::IN_ALL_EVENTS | libc::IN_ONESHOT | libc::IN_EXCL_UNLINK;
/// The highest number that is reached by counting.
const COUNTED: u32 = 100_000;

/// Parses an `inotify` line of fdinfo: number and mask.
fn watch(line: &str) -> Option<(u32, u32)> {
    let number = |key| u32::try_from(hex_word(line, key)?).ok();
    Some((number("wd")?, number("mask")?))
}

impl Kind for Inotify {
    const NAME: &'static str = "inotify";

    fn claims(it: &Descriptor<'_>) -> bool {
        it.link.0 == b"anon_inode:inotify" && !it.is_path()
    }

    fn capture(it: &Descriptor<'_>) -> Result<Self> {
        let lines = it.info.rest.lines().filter(|line| line.starts_with("inotify "));
        let mut watches = finding(it, |finder| {
            let watch = |line| {
                let odd = || Error::unrestorable("an inotify line of fdinfo is not understood");
                let ((wd, mask), inode) = watch(line).zip(identity(line)).ok_or_else(odd)?;
                Ok(InotifyWatch { wd, mask, on: finder.inode(&inode) })
            };
            lines.map(watch).collect::<Result<Vec<InotifyWatch>>>()
        })?;
        watches.sort_by_key(|watch| watch.wd);
        let queued = match &it.copy {
            Some(copy) => sys::readable(copy.as_fd()).at(|| "FIONREAD")? as u32,
            None => 0,
        };
        Ok(Inotify { pid: it.process.pid, watches, queued })
    }

    fn validate(&self, _: &OpenFile) -> Result<()> {
        let (mut last, mut seen) = (0, HashSet::new());
        for InotifyWatch { wd, mask, on } in &self.watches {
            let at = || format!("its watch {wd}");
            if *wd <= last || *wd > i32::MAX as u32 {
                return Err(Error::malformed("no number, or not above the one before").at(at()));
            }
            if mask & !MASK != 0 || mask & libc::IN_ALL_EVENTS == 0 {
                return Err(Error::malformed(format!("no mask: {mask:x}")).at(at()));
            }
            if !seen.insert(on.identity()) {
                return Err(Error::malformed("it is of one inode with another one").at(at()));
            }
            on.validate().at(at)?;
            last = *wd;
        }
        Ok(())
    }

    fn check(&self, _: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        let numbers = cx.numbers_of(self.pid)?;
        for InotifyWatch { wd, mask: _, on } in &self.watches {
            on.check(&numbers, cx).at(|| format!("its watch {wd}"))?;
        }
        Ok(())
    }

    fn prerequisite(&self, _: &OpenFile) -> Prerequisite {
        Prerequisite::Numbers
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        let Inotify { pid: _, watches: _, queued } = *self;
        if queued > 0 {
            let fd = cx.lowest[&file.id];
            cx.warnings.push(format!("fd {fd}: {queued} bytes of its events are lost"));
        }
        let new = nix::sys::inotify::Inotify::init(InitFlags::empty()).at(|| "inotify_init1")?;
        Ok(Opened::new(new.into(), 0))
    }

    fn finish_text(&self) -> Option<&'static str> {
        (!self.watches.is_empty()).then_some("add the watches")
    }

    fn finish(
        &self,
        _: &OpenFile,
        number: RawFd,
        fd: BorrowedFd<'_>,
        _: &Outcome,
        cx: &mut RestoreContext<'_>,
    ) -> Result<()> {
        let numbers = cx.numbers_of(self.pid)?;
        for InotifyWatch { wd, mask, on } in &self.watches {
            let what = format!("fd {}: its watch {wd}", number);
            let Some(place) = on.find(&what, &numbers, cx)? else { continue };
            let add = || notify::add_watch(fd, &place.path(), *mask);
            let added = match notify::set_next_watch(fd, *wd as i32) {
                Ok(()) => add().at(|| "inotify_add_watch"),
                Err(_) => count(fd, *wd, add),
            };
            let added = added.at(|| what)?;
            if added != *wd as i32 {
                let why = format!("its watches {added} and {wd} are of one inode");
                return Err(Error::unrestorable(why));
            }
        }
        Ok(())
    }
}

/// Adds a watch until it has the wanted number: each has one more than the one before.
fn count(inotify: BorrowedFd<'_>, wanted: u32, add: impl Fn() -> nix::Result<i32>) -> Result<i32> {
    if wanted > COUNTED {
        let why = "so high a number takes a kernel with CONFIG_CHECKPOINT_RESTORE";
        return Err(Error::unrestorable(why));
    }
    loop {
        let added = add().at(|| "inotify_add_watch")?;
        if added >= wanted as i32 {
            return Ok(added);
        }
        notify::remove_watch(inotify, added).at(|| "inotify_rm_watch")?;
        // The removal is an event of its own, which nobody is to see.
        let mut events = [0; 512];
        while sys::readable(inotify).at(|| "FIONREAD")? > 0 {
            match nix::unistd::read(inotify, &mut events) {
                Ok(_) | Err(Errno::EAGAIN) => (),
                Err(errno) => return Err(errno).at(|| "read"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::inotify::Inotify as Instance;
    use proptest::prelude::*;

    #[test]
    fn a_line_of_fdinfo_is_a_watch() {
        let line = "inotify wd:1a ino:998036 sdev:fe00000 mask:84000002 ignored_mask:0 \
            fhandle-bytes:8 fhandle-type:1 f_handle:36809900625af97a";
        assert_eq!(watch(line), Some((26, libc::IN_ONESHOT | libc::IN_EXCL_UNLINK | 2)));
        assert_eq!(watch("inotify wd:1"), None);
    }

    #[test]
    fn a_number_is_reached_by_counting_and_nothing_is_left_to_read() {
        let instance = Instance::init(InitFlags::empty()).unwrap();
        let add = || notify::add_watch(instance.as_fd(), c"/", libc::IN_DELETE_SELF);
        assert_eq!(count(instance.as_fd(), 40, add).unwrap(), 40);
        assert_eq!(sys::readable(instance.as_fd()).unwrap(), 0);
        assert!(count(instance.as_fd(), COUNTED + 1, add).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_a_watch_or_not(text in "(inotify|wd:|mask:|[0-9a-f ]|\\PC){0,40}") {
            let _ = watch(&text);
        }
    }
}
