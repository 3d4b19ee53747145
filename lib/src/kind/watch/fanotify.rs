//! fanotify(7): a notification group, and its marks on inodes, mounts and file systems. fdinfo
//! lists the marks, without the paths by which they were added.

use crate::error::{At, Error, Result};
use crate::image::OpenFile;
use crate::kind::context::{Opened, RestoreContext};
use crate::kind::watch::fsnotify::{
    WatchedInode, parse_inode_id, warn_if_not_found, warn_of_lost_events, with_path_finder,
};
use crate::kind::{Kind, Prerequisite};
use crate::operation::Outcome;
use crate::proc::{Descriptor, FdInfo, hex_word};
use crate::sys::{self, notify};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::fanotify::{EventFFlags, InitFlags};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

/// The record of a notification group.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Fanotify {
    /// The process whose numbers `on` refers to.
    pid: i32,
    /// The flags of fanotify_init(2).
    flags: u32,
    /// The flags of the descriptors in its events: event_f_flags of fanotify_init(2).
    event_flags: u32,
    /// The marks, sorted by their contents: fdinfo lists them in no order.
    marks: Vec<Mark>,
    /// The number of bytes of unread events: FIONREAD.
    queued: u32,
}

/// A mark of a group.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Mark {
    /// The type of the marked object.
    #[serde(rename = "type")]
    scope: Scope,
    /// The flags FAN_MARK_IGNORED_SURV_MODIFY, FAN_MARK_EVICTABLE and FAN_MARK_IGNORE.
    flags: u32,
    /// The mask of events.
    mask: u64,
    /// The mask of ignored events.
    ignored: u64,
    /// The inode, the root of the mount, or the root of a mount of the file system.
    on: WatchedInode,
}

/// The type of a marked object.
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
/// FAN_PRE_ACCESS of linux/fanotify.h, since Linux 6.14.
const FAN_PRE_ACCESS: u64 = 0x10_0000;
/// The permission events, which block until the group answers (fanotify(7)).
const PERMISSION: u64 =
    libc::FAN_OPEN_PERM | libc::FAN_ACCESS_PERM | libc::FAN_OPEN_EXEC_PERM | FAN_PRE_ACCESS;

/// The fields of a mark in its line of fdinfo, without the marked object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct MarkLine {
    scope: Scope,
    flags: u32,
    mask: u64,
    ignored: u64,
}

/// Parses the line of a mark. None for a mark on a mount namespace (Linux 6.14), too.
fn parse_mark(line: &str) -> Option<MarkLine> {
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

/// The lines of fdinfo for the group and its marks.
fn lines(info: &str) -> impl Iterator<Item = &str> {
    info.lines().filter(|line| line.starts_with("fanotify "))
}

/// True if a line is that of the group.
fn is_group(line: &&str) -> bool {
    line.starts_with("fanotify flags:")
}

impl Mark {
    fn line(&self) -> MarkLine {
        let Mark { scope, flags, mask, ignored, on: _ } = *self;
        MarkLine { scope, flags, mask, ignored }
    }

    /// The calls of fanotify_mark(2) that add the mark: flags and mask of each.
    fn calls(&self) -> impl Iterator<Item = (u32, u64)> {
        let scope = match self.scope {
            Scope::Inode => 0,
            Scope::Mount => libc::FAN_MARK_MOUNT,
            Scope::Filesystem => libc::FAN_MARK_FILESYSTEM,
        };
        let common = libc::FAN_MARK_ADD | scope | self.flags & EVICTABLE;
        let ignore_flag = match self.flags & IGNORE {
            0 => libc::FAN_MARK_IGNORED_MASK,
            _ => IGNORE,
        };
        let ignore = common | ignore_flag | self.flags & SURVIVES;
        [(common, self.mask), (ignore, self.ignored)].into_iter().filter(|(_, mask)| *mask != 0)
    }
}

impl Kind for Fanotify {
    const NAME: &'static str = "fanotify";

    fn claims(descriptor: &Descriptor<'_>) -> bool {
        descriptor.link.0 == b"anon_inode:[fanotify]" && !descriptor.is_path()
    }

    fn answers_opens(info: &FdInfo) -> bool {
        // The classes of groups that can have permission events: fanotify_init(2).
        let classes = libc::FAN_CLASS_CONTENT | libc::FAN_CLASS_PRE_CONTENT;
        let group = lines(&info.rest).find(is_group);
        let flags = group.and_then(|line| hex_word(line, "flags"));
        flags.is_some_and(|flags| flags & u64::from(classes) != 0)
    }

    fn capture(descriptor: &Descriptor<'_>) -> Result<Self> {
        let unknown = || Error::unrestorable("a fanotify line of fdinfo is not understood");
        let group = lines(&descriptor.info.rest).find(is_group).ok_or_else(unknown)?;
        let number = |key| u32::try_from(hex_word(group, key)?).ok();
        let (flags, event_flags) =
            number("flags").zip(number("event-flags")).ok_or_else(unknown)?;
        let lines = lines(&descriptor.info.rest).filter(|line| !is_group(line));
        let mut marks = with_path_finder(descriptor, |finder| {
            let mark = |line| {
                let MarkLine { scope, flags, mask, ignored } =
                    parse_mark(line).ok_or_else(unknown)?;
                let on = match scope {
                    Scope::Inode => finder.inode(&parse_inode_id(line).ok_or_else(unknown)?),
                    Scope::Mount => finder.mount(hex_word(line, "mnt_id").ok_or_else(unknown)?),
                    Scope::Filesystem => {
                        let sdev = hex_word(line, "sdev").and_then(|sdev| u32::try_from(sdev).ok());
                        finder.file_system(sdev.ok_or_else(unknown)?)
                    }
                };
                Ok(Mark { scope, flags, mask, ignored, on })
            };
            lines.map(mark).collect::<Result<Vec<Mark>>>()
        })?;
        marks.sort_by_cached_key(|mark| format!("{mark:?}"));
        for mark in &marks {
            warn_if_not_found(&mark.on, &format!("its mark on {}", mark.scope.name()), descriptor);
        }
        let queued = match &descriptor.copy {
            Some(copy) => sys::readable(copy.as_fd()).at(|| "FIONREAD")? as u32,
            None => 0,
        };
        Ok(Fanotify { pid: descriptor.process.pid, flags, event_flags, marks, queued })
    }

    fn search(descriptor: &Descriptor<'_>) {
        // The capture in the stop says what fails.
        let _ = Self::capture(descriptor);
    }

    fn validate(&self, _: &OpenFile) -> Result<()> {
        for Mark { scope, flags, mask, ignored, on } in &self.marks {
            if flags & !(SURVIVES | EVICTABLE | IGNORE) != 0 || mask | ignored == 0 {
                return Err(Error::malformed("one of its marks has unknown flags or no events"));
            }
            on.validate().at(|| format!("its mark on {}", scope.name()))?;
        }
        Ok(())
    }

    fn check(&self, _: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        let numbers = cx.numbers_of(self.pid)?;
        for Mark { scope, flags: _, mask, ignored: _, on } in &self.marks {
            if mask & PERMISSION != 0 {
                let why = "one of its marks has permission events; the exec of COMMAND would block, \
                    as no process answers them";
                return Err(Error::unrestorable(why));
            }
            let target = on.check(&numbers, cx);
            let checked = match scope {
                // If nothing is mounted there, fanotify_mark(2) would mark the mount above.
                Scope::Mount => target.and_then(|target| target.is_mount_point()),
                Scope::Inode | Scope::Filesystem => target.map(drop),
            };
            checked.at(|| format!("its mark on {}", scope.name()))?;
        }
        Ok(())
    }

    fn prerequisite(&self, _: &OpenFile) -> Prerequisite {
        Prerequisite::Numbers
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        let Fanotify { pid: _, flags, event_flags, marks: _, queued } = *self;
        warn_of_lost_events(queued, file, cx);
        let flags = InitFlags::from_bits_retain(flags);
        let event_flags = EventFFlags::from_bits_retain(event_flags);
        let new = nix::sys::fanotify::Fanotify::init(flags, event_flags);
        let fd: OwnedFd = new.at(|| "fanotify_init")?.into();
        // FAN_CLOEXEC is passed as recorded, because fdinfo shows it; FD_CLOEXEC is cleared again,
        // as no new description has it.
        fcntl(fd.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
        let nonblock = flags.contains(InitFlags::FAN_NONBLOCK);
        Ok(Opened::new(fd, if nonblock { libc::O_NONBLOCK as u32 } else { 0 }))
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
            let name = format!("fd {}: its mark on {}", number, mark.scope.name());
            let Some(target) = mark.on.find(&name, &numbers, cx)? else { continue };
            let at = || name.as_str();
            for (flags, mask) in mark.calls() {
                notify::mark(fd, &target.path(), flags, mask).at(at)?;
            }
        }
        let info = FdInfo::of_own(fd).unwrap_or_default();
        let now: HashSet<MarkLine> = lines(&info.rest).filter_map(parse_mark).collect();
        for mark in self.marks.iter().filter(|mark| !now.contains(&mark.line())) {
            let name = mark.scope.name();
            let line =
                format!("fd {number}: its mark on {name} has other events or flags than recorded");
            cx.warnings.push(line);
        }
        Ok(())
    }
}

impl Scope {
    /// The name in messages.
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
            assert_eq!(parse_mark(line), Some(MarkLine { scope, flags, mask, ignored }), "{line}");
        }
        assert_eq!(
            parse_mark("fanotify mnt_ns:4026531832 mflags:0 mask:3000000 ignored_mask:0"),
            None
        );
        assert!(is_group(&"fanotify flags:e00 event-flags:8000"));
    }

    #[test]
    fn the_calls_that_add_a_mark() {
        let on = WatchedInode::not_found(0, 0);
        let mut mark =
            Mark { scope: Scope::Mount, flags: IGNORE | SURVIVES, mask: 8, ignored: 2, on };
        assert_eq!(mark.calls().collect::<Vec<_>>(), [(0x11, 8), (0x451, 2)]);
        (mark.scope, mark.flags, mark.mask) = (Scope::Inode, 0, 0);
        assert_eq!(mark.calls().collect::<Vec<_>>(), [(0x21, 2)]);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(
            text in "fanotify (ino:|mnt_id:|sdev:|mflags:|mask:|ignored_mask:|[0-9a-f ]|\\PC){0,40}",
        ) {
            let _ = parse_mark(&text);
        }
    }
}
