//! inotify(7): an instance, and its watches of inodes. fdinfo lists the watches, without the paths
//! by which they were added.

use crate::error::{At, Error, Result};
use crate::image::OpenFile;
use crate::kind::context::{Opened, RestoreContext};
use crate::kind::watch::fsnotify::{
    WatchedInode, parse_inode_id, warn_if_not_found, warn_of_lost_events, with_path_finder,
};
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

/// The record of an inotify instance.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Inotify {
    /// The process whose numbers `on` refers to.
    pid: i32,
    /// The watches, by ascending watch descriptor.
    watches: Vec<InotifyWatch>,
    /// The number of bytes of unread events: FIONREAD.
    queued: u32,
}

/// A watch of an instance.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct InotifyWatch {
    /// The watch descriptor.
    wd: u32,
    /// The mask of events, with IN_ONESHOT and IN_EXCL_UNLINK.
    mask: u32,
    /// The watched inode.
    on: WatchedInode,
}

/// The bits that a mask in fdinfo can have: INOTIFY_USER_MASK of fs/notify/inotify/inotify.h.
const USER_MASK: u32 = libc::IN_ALL_EVENTS | libc::IN_ONESHOT | libc::IN_EXCL_UNLINK;
/// The highest watch descriptor that [`add_by_counting`] tries to reach.
const MAX_COUNTED: u32 = 100_000;

/// Parses an `inotify` line of fdinfo: the watch descriptor and the mask.
fn parse_watch(line: &str) -> Option<(u32, u32)> {
    let number = |key| u32::try_from(hex_word(line, key)?).ok();
    Some((number("wd")?, number("mask")?))
}

impl Kind for Inotify {
    const NAME: &'static str = "inotify";

    fn claims(descriptor: &Descriptor<'_>) -> bool {
        descriptor.link.0 == b"anon_inode:inotify" && !descriptor.is_path()
    }

    fn capture(descriptor: &Descriptor<'_>) -> Result<Self> {
        let lines = descriptor.info.rest.lines().filter(|line| line.starts_with("inotify "));
        let mut watches = with_path_finder(descriptor, |finder| {
            let watch = |line| {
                let unknown = || Error::unrestorable("an inotify line of fdinfo is not understood");
                let ((wd, mask), inode) =
                    parse_watch(line).zip(parse_inode_id(line)).ok_or_else(unknown)?;
                Ok(InotifyWatch { wd, mask, on: finder.inode(&inode) })
            };
            lines.map(watch).collect::<Result<Vec<InotifyWatch>>>()
        })?;
        watches.sort_by_key(|watch| watch.wd);
        for InotifyWatch { wd, mask: _, on } in &watches {
            warn_if_not_found(on, &format!("its watch {wd}"), descriptor);
        }
        let queued = match &descriptor.copy {
            Some(copy) => sys::readable(copy.as_fd()).at(|| "FIONREAD")? as u32,
            None => 0,
        };
        Ok(Inotify { pid: descriptor.process.pid, watches, queued })
    }

    fn search(descriptor: &Descriptor<'_>) {
        // The capture in the stop says what fails.
        let _ = Self::capture(descriptor);
    }

    fn validate(&self, _: &OpenFile) -> Result<()> {
        let (mut last, mut seen) = (0, HashSet::new());
        for InotifyWatch { wd, mask, on } in &self.watches {
            let at = || format!("its watch {wd}");
            if *wd <= last || *wd > i32::MAX as u32 {
                return Err(
                    Error::malformed("its number is zero, or not above the one before it").at(at())
                );
            }
            if mask & !USER_MASK != 0 || mask & libc::IN_ALL_EVENTS == 0 {
                return Err(Error::malformed(format!(
                    "its mask {mask:#x} has no events, or unknown bits"
                ))
                .at(at()));
            }
            if !seen.insert(on.device_and_number()) {
                return Err(Error::malformed("it is a second watch of one inode").at(at()));
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
        warn_of_lost_events(queued, file, cx);
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
            let name = format!("fd {}: its watch {wd}", number);
            let Some(target) = on.find(&name, &numbers, cx)? else { continue };
            let add = || notify::add_watch(fd, &target.path(), *mask);
            let added = match notify::set_next_watch(fd, *wd as i32) {
                Ok(()) => add().at(|| "inotify_add_watch"),
                Err(_) => add_by_counting(fd, *wd, add),
            };
            let added = added.at(|| name)?;
            if added != *wd as i32 {
                let why = format!("its watches {added} and {wd} are now of the same inode");
                return Err(Error::unrestorable(why));
            }
        }
        Ok(())
    }
}

/// Adds and removes a watch until it has the wanted watch descriptor: the kernel gives each watch
/// the next number. Fails with status 6 if that is above [`MAX_COUNTED`].
fn add_by_counting(
    inotify: BorrowedFd<'_>,
    wanted: u32,
    add: impl Fn() -> nix::Result<i32>,
) -> Result<i32> {
    if wanted > MAX_COUNTED {
        let why = "a watch descriptor above 100000 takes a kernel with CONFIG_CHECKPOINT_RESTORE";
        return Err(Error::unrestorable(why));
    }
    loop {
        let added = add().at(|| "inotify_add_watch")?;
        if added >= wanted as i32 {
            return Ok(added);
        }
        notify::remove_watch(inotify, added).at(|| "inotify_rm_watch")?;
        // The removal queues an IN_IGNORED event, which the restored program must not read.
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
        assert_eq!(parse_watch(line), Some((26, libc::IN_ONESHOT | libc::IN_EXCL_UNLINK | 2)));
        assert_eq!(parse_watch("inotify wd:1"), None);
    }

    #[test]
    fn counting_reaches_a_watch_descriptor_and_leaves_no_events() {
        let instance = Instance::init(InitFlags::empty()).unwrap();
        let add = || notify::add_watch(instance.as_fd(), c"/", libc::IN_DELETE_SELF);
        assert_eq!(add_by_counting(instance.as_fd(), 40, add).unwrap(), 40);
        assert_eq!(sys::readable(instance.as_fd()).unwrap(), 0);
        assert!(add_by_counting(instance.as_fd(), MAX_COUNTED + 1, add).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(inotify|wd:|mask:|[0-9a-f ]|\\PC){0,40}") {
            let _ = parse_watch(&text);
        }
    }
}
