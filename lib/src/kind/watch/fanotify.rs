//! fanotify(7): a group and its marks on inodes, mounts and file systems. fdinfo lists them, without
//! the paths by which they were added.

use crate::error::{At, Error, Result};
use crate::image::OpenFile;
use crate::kind::context::{Opened, RestoreContext};
use crate::kind::watch::fsnotify::{Watched, finding, identity};
use crate::kind::{Kind, Prerequisite};
use crate::operation::Outcome;
use crate::proc::{Descriptor, FdInfo, hex_word};
use crate::sys::{self, notify};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::fanotify::{EventFFlags, InitFlags};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// A group.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Fanotify {
    /// The process whose numbers `on` names.
    pid: i32,
    /// The flags of fanotify_init(2).
    flags: u32,
    /// The status flags of the descriptors in its events.
    event_flags: u32,
    /// In an order of their own.
    marks: Vec<Mark>,
    /// How many bytes of events wait to be read: FIONREAD.
    queued: u32,
}

/// A mark.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Mark {
    /// What kind of object is marked.
    #[serde(rename = "type")]
    scope: Scope,
    /// FAN_MARK_IGNORED_SURV_MODIFY, FAN_MARK_EVICTABLE and FAN_MARK_IGNORE.
    flags: u32,
    /// The events.
    mask: u64,
    /// The events that are ignored.
    ignored: u64,
    /// The inode, the root of the mount, or that of a mount of the file system.
    on: Watched,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Scope {
    Inode,
    Mount,
    Filesystem,
}

const SURVIVES: u32 = libc::FAN_MARK_IGNORED_SURV_MODIFY;
const EVICTABLE: u32 = libc::FAN_MARK_EVICTABLE;
const IGNORE: u32 = libc::FAN_MARK_IGNORE;
/// linux/fanotify.h, since Linux 6.14.
const FAN_PRE_ACCESS: u64 = 0x10_0000;
/// The events of which the group is asked whether they may happen.
const PERMISSION: u64 =
    libc::FAN_OPEN_PERM | libc::FAN_ACCESS_PERM | libc::FAN_OPEN_EXEC_PERM | FAN_PRE_ACCESS;

/// What a line of fdinfo says of a mark, but for what is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct MarkLine {
    scope: Scope,
    flags: u32,
    mask: u64,
    ignored: u64,
}

/// Parses a line of a mark. Marks on mount namespaces (Linux 6.14) are not understood.
fn row(line: &str) -> Option<MarkLine> {
    let scope = match line.split_once(' ')?.1.split_once(':')?.0 {
        "ino" => Scope::Inode,
        "mnt_id" => Scope::Mount,
        "sdev" => Scope::Filesystem,
        _ => return None,
    };
    Some(MarkLine {
        scope,
        flags: u32::try_from(hex_word(line, "mflags")?).ok()?,
        mask: hex_word(line, "mask")?,
        ignored: hex_word(line, "ignored_mask")?,
    })
}

/// The lines of the marks, and of the group itself.
fn lines(info: &str) -> impl Iterator<Item = &str> {
    info.lines().filter(|line| line.starts_with("fanotify "))
}

fn is_group(line: &&str) -> bool {
    line.starts_with("fanotify flags:")
}

impl Mark {
    fn row(&self) -> MarkLine {
        let Mark { scope, flags, mask, ignored, on: _ } = *self;
        MarkLine { scope, flags, mask, ignored }
    }

    /// The calls of fanotify_mark(2) that make it: flags and mask.
    fn calls(&self) -> impl Iterator<Item = (u32, u64)> {
        let scope = match self.scope {
            Scope::Inode => 0,
            Scope::Mount => libc::FAN_MARK_MOUNT,
            Scope::Filesystem => libc::FAN_MARK_FILESYSTEM,
        };
        let common = libc::FAN_MARK_ADD | scope | self.flags & EVICTABLE;
        let how = match self.flags & IGNORE {
            0 => libc::FAN_MARK_IGNORED_MASK,
            _ => IGNORE,
        };
        let ignore = common | how | self.flags & SURVIVES;
        [(common, self.mask), (ignore, self.ignored)].into_iter().filter(|(_, mask)| *mask != 0)
    }
}

impl Kind for Fanotify {
    const NAME: &'static str = "fanotify";

    fn claims(it: &Descriptor<'_>) -> bool {
        it.link.0 == b"anon_inode:[fanotify]" && !it.is_path()
    }

    fn capture(it: &Descriptor<'_>) -> Result<Self> {
        let odd = || Error::unrestorable("a fanotify line of fdinfo is not understood");
        let group = lines(&it.info.rest).find(is_group).ok_or_else(odd)?;
        let number = |key| u32::try_from(hex_word(group, key)?).ok();
        let (flags, event_flags) = number("flags").zip(number("event-flags")).ok_or_else(odd)?;
        let lines = lines(&it.info.rest).filter(|line| !is_group(line));
        let mut marks = finding(it, |finder| {
            let mark = |line| {
                let MarkLine { scope, flags, mask, ignored } = row(line).ok_or_else(odd)?;
                let on = match scope {
                    Scope::Inode => finder.inode(&identity(line).ok_or_else(odd)?),
                    Scope::Mount => finder.mount(hex_word(line, "mnt_id").ok_or_else(odd)?),
                    Scope::Filesystem => {
                        let sdev = hex_word(line, "sdev").and_then(|sdev| u32::try_from(sdev).ok());
                        finder.file_system(sdev.ok_or_else(odd)?)
                    }
                };
                Ok(Mark { scope, flags, mask, ignored, on })
            };
            lines.map(mark).collect::<Result<Vec<Mark>>>()
        })?;
        marks.sort_by_cached_key(|mark| format!("{mark:?}"));
        let queued = match &it.copy {
            Some(copy) => sys::readable(copy.as_fd()).at(|| "FIONREAD")? as u32,
            None => 0,
        };
        Ok(Fanotify { pid: it.process.pid, flags, event_flags, marks, queued })
    }

    fn validate(&self, _: &OpenFile) -> Result<()> {
        for Mark { scope, flags, mask, ignored, on } in &self.marks {
            if flags & !(SURVIVES | EVICTABLE | IGNORE) != 0 || mask | ignored == 0 {
                return Err(Error::malformed("one of its marks has flags or a mask of none"));
            }
            on.validate().at(|| format!("its mark on {}", scope.name()))?;
        }
        Ok(())
    }

    fn check(&self, _: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        let numbers = cx.numbers_of(self.pid)?;
        for Mark { scope, flags: _, mask, ignored: _, on } in &self.marks {
            if mask & PERMISSION != 0 {
                let why = "it asks for permission events, and the exec of COMMAND would wait for an \
                    answer that nobody gives";
                return Err(Error::unrestorable(why));
            }
            let place = on.check(&numbers, cx);
            let place = match scope {
                // Another mount would be marked in its place.
                Scope::Mount => place.and_then(|place| place.is_mount()),
                Scope::Inode | Scope::Filesystem => place.map(drop),
            };
            place.at(|| format!("its mark on {}", scope.name()))?;
        }
        Ok(())
    }

    fn prerequisite(&self, _: &OpenFile) -> Prerequisite {
        Prerequisite::Numbers
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        let Fanotify { pid: _, flags, event_flags, marks: _, queued } = *self;
        if queued > 0 {
            let fd = cx.lowest[&file.id];
            cx.warnings.push(format!("fd {fd}: {queued} bytes of its events are lost"));
        }
        let flags = InitFlags::from_bits_retain(flags);
        let event_flags = EventFFlags::from_bits_retain(event_flags);
        let new = nix::sys::fanotify::Fanotify::init(flags, event_flags);
        let fd: OwnedFd = new.at(|| "fanotify_init")?.into();
        // Given with the flags even if it is not wanted, so that fdinfo shows them as they were.
        fcntl(fd.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
        let born = flags.contains(InitFlags::FAN_NONBLOCK);
        Ok(Opened::new(fd, if born { libc::O_NONBLOCK as u32 } else { 0 }))
    }

    fn finish_text(&self) -> Option<&'static str> {
        (!self.marks.is_empty()).then_some("add the marks")
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
        for mark in &self.marks {
            let what = format!("fd {}: its mark on {}", number, mark.scope.name());
            let Some(place) = mark.on.find(&what, &numbers, cx)? else { continue };
            let at = || what.as_str();
            for (flags, mask) in mark.calls() {
                notify::mark(fd, &place.path(), flags, mask).at(at)?;
            }
        }
        let text =
            std::fs::read(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap_or_default();
        let info = FdInfo::parse(&text);
        let is: HashSet<MarkLine> = lines(&info.rest).filter_map(row).collect();
        for mark in self.marks.iter().filter(|mark| !is.contains(&mark.row())) {
            let what = mark.scope.name();
            let line =
                format!("fd {number}: the kernel keeps its mark on {what} otherwise than it was");
            cx.warnings.push(line);
        }
        Ok(())
    }
}

impl Scope {
    fn name(self) -> &'static str {
        match self {
            Scope::Inode => "an inode",
            Scope::Mount => "a mount",
            Scope::Filesystem => "a file system",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_of_fdinfo_is_a_mark() {
        for (line, scope, flags, mask, ignored) in [
            (
                "fanotify sdev:1b mflags:0 mask:8000100 ignored_mask:0",
                Scope::Filesystem,
                0,
                0x8000100,
                0,
            ),
            ("fanotify mnt_id:1e mflags:440 mask:8 ignored_mask:2", Scope::Mount, 0x440, 8, 2),
            (
                "fanotify ino:998037 sdev:fe00000 mflags:40 mask:0 ignored_mask:20 fhandle-bytes:8",
                Scope::Inode,
                SURVIVES,
                0,
                0x20,
            ),
        ] {
            assert_eq!(row(line), Some(MarkLine { scope, flags, mask, ignored }), "{line}");
        }
        assert_eq!(row("fanotify mnt_ns:4026531832 mflags:0 mask:3000000 ignored_mask:0"), None);
        assert!(is_group(&"fanotify flags:e00 event-flags:8000"));
    }

    #[test]
    fn a_mark_is_made_by_what_it_has() {
        let on = Watched::lost(0, 0);
        let mut mark =
            Mark { scope: Scope::Mount, flags: IGNORE | SURVIVES, mask: 8, ignored: 2, on };
        assert_eq!(mark.calls().collect::<Vec<_>>(), [(0x11, 8), (0x451, 2)]);
        (mark.scope, mark.flags, mark.mask) = (Scope::Inode, 0, 0);
        assert_eq!(mark.calls().collect::<Vec<_>>(), [(0x21, 2)]);
    }

    proptest! {
        #[test]
        fn any_text_is_a_mark_or_not(
            text in "fanotify (ino:|mnt_id:|sdev:|mflags:|mask:|ignored_mask:|[0-9a-f ]|\\PC){0,40}",
        ) {
            let _ = row(&text);
        }
    }
}
