//! Notices that somebody opens an object: inotify(7).

use super::terminal::PTMX;
use crate::image::Inode;
use crate::proc::Process;
use crate::terminal;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::os::fd::RawFd;

/// Watches objects for open(2).
///
/// The event IN_OPEN comes for a path, for mq_open(3), for a link of /proc/PID/fd and for
/// TIOCGPTPEER of ioctl_tty(2). None comes if a process inherits a descriptor, or receives one.
#[derive(Debug)]
pub struct OpenWatch {
    /// None if an object could not be watched.
    inotify: Option<Inotify>,
}

impl OpenWatch {
    /// A watch of nothing.
    pub fn start() -> OpenWatch {
        OpenWatch { inotify: Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok() }
    }

    /// Watches the object that a number of a process refers to. Of a master of a terminal, which cannot
    /// be opened again, it is the slave with this index.
    pub fn add(&mut self, process: &Process, fd: RawFd, inode: &Inode, link: &[u8], index: u64) {
        let thread = process.thread;
        let path = match inode.rdev == Some(PTMX) {
            true => terminal::slave_path(thread, link, index as u32)
                .map(|slave| format!("/proc/{thread}/root{slave}")),
            false => Some(format!("/proc/{thread}/fd/{fd}")),
        };
        let watch = |(inotify, path): (Inotify, String)| {
            // There is a limit of watches for each user.
            inotify.add_watch(path.as_str(), AddWatchFlags::IN_OPEN).ok().map(|_| inotify)
        };
        self.inotify = self.inotify.take().zip(path).and_then(watch);
    }

    /// True if nobody has opened one of the objects since it is watched. False also if that cannot be
    /// known.
    pub fn is_quiet(&self) -> bool {
        // Fails with EAGAIN if there is no event.
        self.inotify
            .as_ref()
            .is_some_and(|inotify| matches!(inotify.read_events(), Err(Errno::EAGAIN)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::inode_of;
    use std::fs::File;
    use std::os::fd::{AsFd, AsRawFd};

    #[test]
    fn an_open_by_path_and_by_a_link_of_proc_is_noticed() {
        let path = std::env::temp_dir().join(format!("fdkit-watch-{}", std::process::id()));
        let file = File::create(&path).unwrap();
        let process = Process::open(std::process::id() as i32).unwrap();
        let inode = inode_of(file.as_fd()).unwrap();
        let watched = || {
            let mut watch = OpenWatch::start();
            watch.add(&process, file.as_raw_fd(), &inode, b"", 0);
            assert!(watch.is_quiet() && watch.is_quiet());
            watch
        };
        let watch = watched();
        let _copy = file.try_clone().unwrap();
        assert!(watch.is_quiet(), "dup(2) opens nothing");
        drop(File::open(&path).unwrap());
        assert!(!watch.is_quiet());
        let watch = watched();
        std::fs::remove_file(&path).unwrap();
        drop(File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap());
        assert!(!watch.is_quiet());
    }

    #[test]
    fn what_cannot_be_watched_is_not_quiet() {
        let process = Process::open(std::process::id() as i32).unwrap();
        let mut watch = OpenWatch::start();
        let inode = inode_of(File::open("/dev/null").unwrap().as_fd()).unwrap();
        watch.add(&process, 1_000_000, &inode, b"", 0);
        assert!(!watch.is_quiet());
    }
}
