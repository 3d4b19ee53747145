//! inotify(7): watches, each with a number of its own.

use crate::driver::{Bad, Difference, Fixture, open, ready};
use crate::spec::{At, Result, Spec};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::poll::PollFlags;
use nix::sys::inotify::{AddWatchFlags, InitFlags};
use nix::unistd::{read, write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

pub(crate) struct Inotify;

impl Fixture for Inotify {
    const NAME: &'static str = "inotify";
    const ABOUT: &'static str = "an inotify that watches a folder, or a file in it";
    const KEYS: &'static [(&'static str, &'static str)] = &[
        ("mask", "the events; IN_MODIFY and IN_CREATE if not given"),
        ("oneshot", "IN_ONESHOT"),
        ("unlinks", "IN_EXCL_UNLINK"),
        ("wd", "the number of the watch; 1 if not given"),
        ("none", "no watch at all"),
        ("file", "the watch is on a file in the folder"),
        ("link", "the watch is on a symbolic link in the folder"),
        ("both", "another watch, seven numbers higher, on a file in the folder"),
        ("gone", "the watch is on an unlinked file, open at the second number"),
        ("queued", "an event waits"),
    ];
    const DIFFERENCES: &'static [Difference] = &[
        ("inotify@3:wd=2", "inotify@3", "watches"),
        ("inotify@3:oneshot", "inotify@3", "watches"),
        ("inotify@3:file", "inotify@3", "watches"),
        ("inotify@3:queued", "inotify@3", "events"),
    ];

    fn arity(spec: &Spec) -> usize {
        if spec.has("gone") { 2 } else { 1 }
    }

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        let folder = spec.path()?;
        std::fs::create_dir(&folder).at(folder.display())?;
        std::fs::write(folder.join("file"), "x").at("file")?;
        std::os::unix::fs::symlink("nowhere", folder.join("link")).at("link")?;
        let new = nix::sys::inotify::Inotify::init(InitFlags::IN_CLOEXEC).at("inotify_init1")?;
        let mut made = Vec::new();
        if spec.has("gone") {
            made.push(open(&folder.join("file"), OFlag::O_RDWR)?);
        }
        let mut next = 1;
        for (wd, path) in watches(spec)? {
            let add = |mask| new.add_watch(&path, mask).at("inotify_add_watch");
            while next < wd {
                let other = add(AddWatchFlags::IN_DELETE_SELF)?;
                new.rm_watch(other).at("inotify_rm_watch")?;
                next += 1;
            }
            add(AddWatchFlags::from_bits_retain(mask(spec)) | AddWatchFlags::IN_DONT_FOLLOW)?;
            next += 1;
        }
        if spec.has("gone") {
            std::fs::remove_file(folder.join("file")).at("unlink")?;
        }
        // The removal is an event in the queue, which is read here.
        take(new.as_fd()).at("read")?;
        if spec.has("queued") {
            std::fs::write(folder.join("new"), "x").at("new")?;
        }
        made.insert(0, new.into());
        Ok(made)
    }

    fn flags(_: &Spec, nth: usize) -> OFlag {
        if nth == 0 { OFlag::O_RDONLY } else { OFlag::O_RDWR }
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let fd = sys::at(spec.fds[0])?;
        let Ok(made) = watches(spec) else { return Err(Errno::EINVAL) };
        let shown = mask(spec);
        let row = |(wd, path): &(u64, PathBuf)| {
            let path = match spec.has("gone") {
                true => format!("/proc/self/fd/{}", spec.fds[1]).into(),
                false => path.clone(),
            };
            let found = if spec.has("gone") { path.metadata() } else { path.symlink_metadata() };
            (*wd, found.map_or(0, |found| found.ino()), u64::from(shown))
        };
        let mut rows: Vec<_> = made.iter().map(row).collect();
        rows.sort_unstable();
        bad.same("watches", told(spec), rows);
        bad.same("events", take(fd)?, Vec::new());
        let Ok(folder) = spec.path() else { return Err(Errno::EINVAL) };
        let wd = spec.known_number("wd").unwrap_or(1) as u32;
        let event = match made.is_empty() {
            true => return Ok(()),
            false if spec.has("gone") => {
                write(sys::at(spec.fds[1])?, b"y")?;
                vec![(wd, libc::IN_MODIFY)]
            }
            false if spec.has("file") => {
                write(file(&folder, "file")?, b"y")?;
                vec![(wd, libc::IN_MODIFY)]
            }
            // Only removing a symbolic link would cause an event.
            false if spec.has("link") => return Ok(()),
            false => {
                let name = format!("new.{}", std::process::id());
                std::fs::write(folder.join(&name), "").map_err(|_| Errno::EIO)?;
                vec![(wd, libc::IN_CREATE)]
            }
        };
        let mut got = take(fd)?;
        if spec.has("oneshot") {
            bad.same("watches afterwards", told(spec), Vec::new());
            got.retain(|(_, mask)| *mask != libc::IN_IGNORED);
        }
        bad.same("events then", got, event);
        if spec.has("both") {
            write(file(&folder, "file")?, b"y")?;
            // The directory gets the event, too.
            let events = vec![(wd, libc::IN_MODIFY), (wd + 7, libc::IN_MODIFY)];
            let mut got = take(fd)?;
            got.sort_unstable();
            bad.same("events of both", got, events);
        }
        Ok(())
    }
}

fn file(folder: &std::path::Path, name: &str) -> Result<OwnedFd, Errno> {
    nix::fcntl::open(&folder.join(name), OFlag::O_WRONLY, nix::sys::stat::Mode::empty())
}

/// The watches: number and path.
fn watches(spec: &Spec) -> Result<Vec<(u64, PathBuf)>> {
    let folder = spec.path()?;
    let wd = spec.number("wd")?.unwrap_or(1);
    Ok(match () {
        () if spec.has("none") => Vec::new(),
        () if spec.has("file") || spec.has("gone") => vec![(wd, folder.join("file"))],
        () if spec.has("link") => vec![(wd, folder.join("link"))],
        () if spec.has("both") => vec![(wd, folder.clone()), (wd + 7, folder.join("file"))],
        () => vec![(wd, folder)],
    })
}

fn mask(spec: &Spec) -> u32 {
    let given = spec.known_number("mask").map(|mask| mask as u32);
    let mut mask = given.unwrap_or(libc::IN_MODIFY | libc::IN_CREATE);
    for (key, flag) in [("oneshot", libc::IN_ONESHOT), ("unlinks", libc::IN_EXCL_UNLINK)] {
        mask |= if spec.has(key) { flag } else { 0 };
    }
    mask
}

/// Reads the queued events: number of the watch and mask.
fn take(fd: BorrowedFd<'_>) -> Result<Vec<(u32, u32)>, Errno> {
    let mut events = Vec::new();
    let mut buffer = [0; 4096];
    while ready(fd, PollFlags::POLLIN)? {
        let got = read(fd, &mut buffer)?;
        let mut rest = &buffer[..got];
        while rest.len() >= 16 {
            let word = |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().expect("four"));
            events.push((word(0), word(4)));
            rest = &rest[16 + word(12) as usize..];
        }
    }
    Ok(events)
}

/// The watches in fdinfo: number, inode, mask.
fn told(spec: &Spec) -> Vec<(u64, u64, u64)> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", spec.fds[0]));
    let row = |line: &str| {
        let word = |key: &str| {
            let mut words = line.split_ascii_whitespace();
            let value = words.find_map(|word| word.strip_prefix(key)?.strip_prefix(':'))?;
            u64::from_str_radix(value, 16).ok()
        };
        Some((word("wd")?, word("ino")?, word("mask")?))
    };
    let mut all: Vec<_> = info.unwrap_or_default().lines().filter_map(row).collect();
    all.sort_unstable();
    all
}
