//! fanotify(7): marks on an inode, a mount and a file system.

use crate::driver::{Bad, Difference, Fixture, open, ready};
use crate::spec::{At, Result, Spec};
use crate::sys;
use fdkit::sys::flags::O_LARGEFILE;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::poll::PollFlags;
use nix::sys::fanotify::{EventFFlags, InitFlags, MarkFlags, MaskFlags};
use nix::unistd::write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

pub(crate) struct Fanotify;

/// A mount point that every machine has.
const SHM: &str = "/dev/shm";
/// FAN_CLOSE_WRITE.
const MASK: u32 = libc::FAN_CLOSE_WRITE as u32;
/// The flags of the mark in fdinfo, by key.
const HOW: &[(&str, u32)] = &[
    ("surv", libc::FAN_MARK_IGNORED_SURV_MODIFY),
    ("evictable", libc::FAN_MARK_EVICTABLE),
    ("ignore", libc::FAN_MARK_IGNORE),
];

impl Fixture for Fanotify {
    const NAME: &'static str = "fanotify";
    const ABOUT: &'static str = "a fanotify with a mark on a file";
    const KEYS: &'static [(&'static str, &'static str)] = &[
        ("flags", "the flags of fanotify_init"),
        ("events", "the flags of the descriptors in events, beside O_LARGEFILE"),
        ("mask", "the events; FAN_CLOSE_WRITE if not given, 0 for none"),
        ("ignored", "events that are ignored"),
        ("surv", "FAN_MARK_IGNORED_SURV_MODIFY"),
        ("ignore", "FAN_MARK_IGNORE"),
        ("evictable", "FAN_MARK_EVICTABLE"),
        ("mount", "the mark is on the mount at /dev/shm"),
        ("filesystem", "the mark is on the file system at /dev/shm"),
        ("gone", "the mark is on an unlinked file, open at the second number"),
    ];
    const DIFFERENCES: &'static [Difference] = &[
        ("fanotify@3:flags=4", "fanotify@3", "group"),
        ("fanotify@3:mount", "fanotify@3", "mark"),
        ("fanotify@3:ignored=2", "fanotify@3", "mark"),
    ];

    fn arity(spec: &Spec) -> usize {
        if spec.has("gone") { 2 } else { 1 }
    }

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        let path = spec.path()?;
        std::fs::write(&path, "x").at(path.display())?;
        let flags = InitFlags::from_bits_retain(init(spec));
        let events = spec.number("events")?.unwrap_or(0) as u32;
        let new = nix::sys::fanotify::Fanotify::init(flags, EventFFlags::from_bits_retain(events))
            .at("fanotify_init, which takes CAP_SYS_ADMIN")?;
        let mut made = Vec::new();
        if spec.has("gone") {
            made.push(open(&path, OFlag::O_RDWR)?);
        }
        let marked = marked(spec)?;
        for (flags, mask) in calls(spec) {
            let flags = MarkFlags::from_bits_retain(flags);
            let mask = MaskFlags::from_bits_retain(mask.into());
            new.mark(flags, mask, nix::fcntl::AT_FDCWD, Some(&marked)).at("fanotify_mark")?;
        }
        if spec.has("gone") {
            std::fs::remove_file(&path).at("unlink")?;
        }
        made.insert(0, new.into());
        Ok(made)
    }

    fn flags(spec: &Spec, nth: usize) -> OFlag {
        let mut flags = OFlag::O_RDWR;
        // FAN_NONBLOCK; the flags are those of the group's own descriptor.
        flags.set(OFlag::O_NONBLOCK, nth == 0 && init(spec) & 2 != 0);
        flags
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let fd = sys::at(spec.fds[0])?;
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", spec.fds[0]));
        let info = info.unwrap_or_default();
        let lines: Vec<&str> =
            info.lines().filter_map(|line| line.strip_prefix("fanotify ")).collect();
        let event_flags = u64::from(O_LARGEFILE) | spec.known_number("events").unwrap_or(0);
        let group = format!("flags:{:x} event-flags:{event_flags:x}", init(spec));
        bad.same("group", lines.first().copied(), Some(group.as_str()));
        let how = HOW.iter().filter(|(key, _)| spec.has(key)).fold(0, |all, (_, flag)| all | flag);
        let (mask, ignored) = masks(spec);
        let made = format!("mflags:{how:x} mask:{mask:x} ignored_mask:{ignored:x}");
        let start = match (spec.has("mount"), spec.has("filesystem")) {
            (true, _) => "mnt_id:",
            (_, true) => "sdev:",
            _ => "ino:",
        };
        let mark = lines.get(1).copied().unwrap_or_default();
        bad.unless(mark.starts_with(start) && mark.contains(&made), format!("mark is {mark:?}"));
        bad.same("marks", lines.len(), 2);
        if ready(fd, PollFlags::POLLIN)? {
            sys::drop_events(fd)?;
        }
        let path = match spec.has("mount") || spec.has("filesystem") {
            true => PathBuf::from(format!("{SHM}/fdkit.{}", std::process::id())),
            false if spec.has("gone") => format!("/proc/self/fd/{}", spec.fds[1]).into(),
            false => spec.path().map_err(|_| Errno::EINVAL)?,
        };
        let file = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(|_| Errno::EIO)?;
        write(&file, b"y")?;
        drop(file);
        bad.same("event", ready(fd, PollFlags::POLLIN)?, mask & MASK != 0);
        if path.starts_with(SHM) {
            let _ = std::fs::remove_file(path);
        }
        Ok(())
    }
}

/// FAN_CLOEXEC is given as well, since fdinfo shows it.
fn init(spec: &Spec) -> u32 {
    spec.known_number("flags").unwrap_or(0) as u32 | 1
}

fn masks(spec: &Spec) -> (u32, u32) {
    let mask = spec.known_number("mask").map_or(MASK, |mask| mask as u32);
    (mask, spec.known_number("ignored").unwrap_or(0) as u32)
}

fn marked(spec: &Spec) -> Result<PathBuf> {
    if spec.has("mount") || spec.has("filesystem") { Ok(SHM.into()) } else { spec.path() }
}

/// The calls of fanotify_mark: flags and mask.
fn calls(spec: &Spec) -> Vec<(u32, u32)> {
    let (mask, ignored) = masks(spec);
    let flag = |key, flag| if spec.has(key) { flag } else { 0 };
    let base = libc::FAN_MARK_ADD
        | flag("mount", libc::FAN_MARK_MOUNT)
        | flag("filesystem", libc::FAN_MARK_FILESYSTEM)
        | flag("evictable", libc::FAN_MARK_EVICTABLE);
    let how = match spec.has("ignore") {
        true => libc::FAN_MARK_IGNORE,
        false => libc::FAN_MARK_IGNORED_MASK,
    };
    let surviving = flag("surv", libc::FAN_MARK_IGNORED_SURV_MODIFY);
    let calls = [(base, mask), (base | how | surviving, ignored)];
    calls.into_iter().filter(|(_, mask)| *mask != 0).collect()
}
