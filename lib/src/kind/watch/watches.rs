//! The watches of inotify(7) and the marks of fanotify(7) of all processes, as far as /proc shows them.

use crate::kind::watch::fsnotify::{InodeId, inode_id_of, parse_inode_id};
use crate::proc::{self, FdInfo, Process, hex_word};
use nix::libc;
use std::cell::OnceCell;
use std::os::fd::{AsFd, BorrowedFd};

/// The events of opening, reading and closing a file. Those of fanotify have the same values, and
/// FAN_OPEN_PERM and FAN_ACCESS_PERM in addition.
pub(super) const READS: u64 = (libc::IN_ACCESS | libc::IN_OPEN | libc::IN_CLOSE_NOWRITE) as u64
    | libc::FAN_OPEN_PERM
    | libc::FAN_ACCESS_PERM;

/// What is watched for reads. It is looked up once, when it is first needed.
#[derive(Debug, Default)]
pub struct Watches(OnceCell<Vec<(i32, Watched)>>);

/// What one watch or mark is on.
#[derive(Debug, PartialEq)]
enum Watched {
    Inode(InodeId),
    /// A mount, by its id.
    Mount(u64),
    /// A file system, by its device.
    FileSystem(u32),
}

impl Watched {
    /// What a line of fdinfo watches for reads.
    fn parse(line: &str) -> Option<Watched> {
        if !line.starts_with("inotify ") && !line.starts_with("fanotify ") {
            return None;
        }
        if hex_word(line, "mask")? & READS == 0 {
            return None;
        }
        match (parse_inode_id(line), hex_word(line, "mnt_id"), hex_word(line, "sdev")) {
            (Some(inode), _, _) => Some(Watched::Inode(inode)),
            (None, Some(mount), _) => Some(Watched::Mount(mount)),
            (None, None, Some(device)) => Some(Watched::FileSystem(device as u32)),
            (None, None, None) => None,
        }
    }
}

impl Watches {
    /// A process that gets an event if a file is opened and read, or may get one. None if there is
    /// none among those that may be looked at. `link` is what readlink(2) shows of the file, which `process` has open.
    ///
    /// A watch of a directory reports the files in it, also when they are unlinked. If the directory is
    /// not found, each watch on the file system counts.
    pub(crate) fn of_reads(
        &self,
        file: BorrowedFd<'_>,
        link: &[u8],
        process: &Process,
    ) -> Option<i32> {
        let all = self.0.get_or_init(all);
        let first = all.first()?.0;
        let Some(inode) = inode_id_of(file) else { return Some(first) };
        let mount = FdInfo::of_own(file).unwrap_or_default().mnt;
        let slash = link.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
        let parent = process.open_path_on(mount, &link[..slash.max(1)]);
        let parent = parent.and_then(|parent| inode_id_of(parent.as_fd()));
        let parent = parent.filter(|parent| parent.is_on_same_device(&inode));
        // A memfd is in no directory.
        let in_directory = !link.starts_with(b"/memfd:");
        let reports = |watched: &Watched| match (watched, &parent) {
            (Watched::Inode(watched), _) if *watched == inode => true,
            (Watched::Inode(watched), Some(parent)) => watched == parent,
            (Watched::Inode(watched), None) => in_directory && watched.is_on_same_device(&inode),
            (Watched::Mount(id), _) => u64::try_from(mount) == Ok(*id),
            (Watched::FileSystem(device), _) => inode.sdev == *device,
        };
        all.iter().find(|(_, watched)| reports(watched)).map(|(pid, _)| *pid)
    }
}

/// What all processes that may be looked at watch for reads, by their ids.
fn all() -> Vec<(i32, Watched)> {
    let numbers = |path: &str| {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.filter_map(|it| it.file_name().to_str()?.parse::<i32>().ok()).collect::<Vec<_>>()
    };
    let mut found = Vec::new();
    for pid in proc::pids().unwrap_or_default() {
        for fd in numbers(&format!("/proc/{pid}/fd")) {
            let link = nix::fcntl::readlink(format!("/proc/{pid}/fd/{fd}").as_str());
            let link = link.unwrap_or_default();
            if link != "anon_inode:inotify" && link != "anon_inode:[fanotify]" {
                continue;
            }
            let info = std::fs::read(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
            let info = FdInfo::parse(&info);
            found.extend(info.rest.lines().filter_map(Watched::parse).map(|it| (pid, it)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

    #[test]
    fn only_watches_for_reads_count_and_also_those_of_the_directory() {
        let dir = std::env::temp_dir().canonicalize().unwrap();
        let dir = dir.join(format!("fdkit-watches-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("file");
        let file = std::fs::File::create(&path).unwrap();
        let link = [path.as_os_str().as_encoded_bytes(), b" (deleted)"].concat();
        let process = Process::open(std::process::id() as i32).unwrap();
        let watcher = |path, mask| {
            let inotify = Inotify::init(InitFlags::IN_CLOEXEC).unwrap();
            inotify.add_watch(path, mask).unwrap();
            Watches::default().of_reads(file.as_fd(), &link, &process)
        };
        let own = Some(std::process::id() as i32);
        assert_eq!(watcher(&path, AddWatchFlags::IN_MODIFY), None);
        assert_eq!(watcher(&path, AddWatchFlags::IN_OPEN), own);
        assert_eq!(watcher(&dir, AddWatchFlags::IN_ACCESS), own);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_line_of_fdinfo_is_what_it_watches() {
        assert_eq!(
            Watched::parse("fanotify mnt_id:1e mflags:0 mask:20 ignored_mask:0"),
            Some(Watched::Mount(0x1e))
        );
        assert_eq!(
            Watched::parse("fanotify sdev:1b mflags:0 mask:10000 ignored_mask:0"),
            Some(Watched::FileSystem(0x1b))
        );
        for other in
            ["fanotify flags:0 event-flags:8000", "inotify wd:1 ino:1 sdev:1b mask:2", "tfd: 5"]
        {
            assert_eq!(Watched::parse(other), None, "{other}");
        }
    }
}
