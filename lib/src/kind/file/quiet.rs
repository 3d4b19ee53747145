//! Reads the contents of a file without a name so that no process notices it: no event of inotify(7) or
//! fanotify(7) comes of it, and neither the access time nor the position changes.

use crate::error::{At, Error, Result};
use crate::image::MAX_CHUNK;
use crate::kind::{ContentsContext, Piece, Sink, check_limit};
use crate::sys::quiet_read::QuietRead;
use crate::sys::{self, memory};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::sys::uio::pread;
use nix::unistd::{Whence, lseek};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

/// Hands on the contents of a file, which may be the copy of a description of other processes, without
/// its holes. Fails with status 6 if they cannot be read unnoticed, and if they have more than `limit`
/// bytes.
pub(crate) fn read_contents(
    copy: BorrowedFd<'_>,
    cx: &ContentsContext<'_>,
    limit: u64,
    to: Sink<'_>,
) -> Result<()> {
    let file = QuietFile::open(copy, cx)?;
    let ranges = file.data()?;
    check_limit(ranges.iter().map(|range| range.end - range.start).sum(), limit)?;
    let mut buffer = vec![0; MAX_CHUNK];
    for mut range in ranges {
        while !range.is_empty() {
            let most = buffer.len().min((range.end - range.start) as usize);
            let count = file.read(range.start, &mut buffer[..most])?;
            if count == 0 {
                break;
            }
            let bytes = &buffer[..count];
            // A chunk of zeroes is a hole in the restored file. On hugetlbfs all of a file is data.
            if bytes.iter().any(|&byte| byte != 0) {
                to(Piece { offset: range.start as i64, bytes, ..Piece::default() })?;
            }
            range.start += count as u64;
        }
    }
    // This marks the contents as captured if the file has nothing but holes.
    to(Piece::default())
}

/// A file that is read unnoticed.
struct QuietFile<'a> {
    /// A description that is not that of the processes, if one was opened.
    opened: Option<OwnedFd>,
    copy: BorrowedFd<'a>,
    /// Present if the position of `copy` may be moved.
    taken: Option<QuietRead<'a>>,
    stat: FileStat,
    /// On hugetlbfs, where read(2) does not move the access time, and a mapping would allocate the
    /// pages of holes.
    huge: bool,
}

impl<'a> QuietFile<'a> {
    /// Chooses how the file is read.
    ///
    /// A mapping of the copy raises no event, but moves the access time, and finds no holes. If nobody
    /// who has the description runs, QuietRead keeps the access time and may move the position to find
    /// holes. Otherwise the file is opened again, which is an event, so nobody may watch it.
    fn open(copy: BorrowedFd<'a>, cx: &ContentsContext<'_>) -> Result<QuietFile<'a>> {
        let stat = fstat(copy).at(|| "stat")?;
        let flags = OFlag::from_bits_retain(fcntl(copy, FcntlArg::F_GETFL).at(|| "F_GETFL")?);
        let huge = fstatfs(copy).at(|| "fstatfs")?.filesystem_type() == HUGETLBFS_MAGIC;
        let file = QuietFile { opened: None, copy, taken: None, stat, huge };
        let readable = flags & OFlag::O_ACCMODE != OFlag::O_WRONLY;
        let unwatched = |cure: &str| match cx.watches.of_reads(copy, cx.link, cx.process) {
            None => Ok(()),
            Some(pid) => Err(Error::unrestorable(format!(
                "process {pid} watches for reads of it, or may (inotify, fanotify); {cure}"
            ))),
        };
        let mut cure = "end that process first".to_owned();
        if readable && huge {
            unwatched(&cure)?;
            return Ok(file);
        }
        let keeps_access_time = flags.contains(OFlag::O_NOATIME) || keeps_access_time(copy, &stat);
        let has_holes = (stat.st_blocks as u64).saturating_mul(512) < stat.st_size as u64;
        if readable && keeps_access_time && !has_holes {
            return Ok(file);
        }
        if readable {
            cure = match cx.require_frozen().map(|()| QuietRead::take(copy)) {
                Ok(Ok(taken)) => return Ok(QuietFile { taken: Some(taken), ..file }),
                Ok(Err(Errno::EPERM)) => "run as its owner or as root (CAP_FOWNER)".to_owned(),
                Ok(Err(errno)) => return Err(errno).at(|| "O_NOATIME"),
                Err(not_frozen) if cx.frozen => not_frozen.to_string(),
                Err(_) => "scan with --freeze".to_owned(),
            };
        }
        unwatched(&cure)?;
        let opened = open_again(copy, keeps_access_time).map_err(|err| match cx.frozen {
            false if readable => Error::unrestorable(format!("{err}; {cure}")),
            _ => err,
        })?;
        Ok(QuietFile { opened: Some(opened), ..file })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.opened.as_ref().map_or(self.copy, AsFd::as_fd)
    }

    /// The ranges of the file that are no holes: all of it if its position may not be moved.
    fn data(&self) -> Result<Vec<Range<u64>>> {
        if self.opened.is_none() && self.taken.is_none() {
            let size = self.stat.st_size as u64;
            return Ok(Some(0..size).into_iter().filter(|range| !range.is_empty()).collect());
        }
        let mut ranges = Vec::new();
        let mut end = 0;
        loop {
            let start = match lseek(self.fd(), end, Whence::SeekData) {
                Err(Errno::ENXIO) => return Ok(ranges),
                start => start.at(|| "SEEK_DATA")?,
            };
            end = lseek(self.fd(), start, Whence::SeekHole).at(|| "SEEK_HOLE")?;
            ranges.push(start as u64..end as u64);
        }
    }

    /// Reads at an offset. Gives the count of bytes: zero at the end of the file.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<usize> {
        if self.huge {
            return pread(self.fd(), into, offset as i64).at(|| "read");
        }
        match memory::read_mapped(self.fd(), offset, into) {
            // It may have become shorter.
            Err(Errno::EFAULT) if fstat(self.copy)?.st_size as u64 <= offset => Ok(0),
            Err(Errno::EFAULT) => Err(Errno::EIO).at(|| "read"),
            // process_vm_readv(2) may be denied by a filter, or the file system may have no mmap(2). Of
            // this description nobody gets events.
            Err(Errno::ENOSYS | Errno::EPERM | Errno::ENODEV) if self.opened.is_some() => {
                pread(self.fd(), into, offset as i64).at(|| "read")
            }
            read => read.at(|| "read it by mmap(2) and process_vm_readv(2)"),
        }
    }
}

/// True if a read does not move the access time: because of the options of the mount, or with
/// `relatime` because it is later than the last change, and not older than a day (mount(8)).
fn keeps_access_time(fd: BorrowedFd<'_>, stat: &FileStat) -> bool {
    /// The kernel compares with a day; a minute is room for the time until the read.
    const ALMOST_A_DAY: i64 = (24 * 60 - 1) * 60;
    let Ok(mount) = fstatvfs(fd) else { return false };
    if mount.flags().intersects(FsFlags::ST_RDONLY | FsFlags::ST_NOATIME) {
        return true;
    }
    let accessed = (stat.st_atime, stat.st_atime_nsec);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64);
    mount.flags().contains(FsFlags::ST_RELATIME)
        && accessed > (stat.st_mtime, stat.st_mtime_nsec)
        && accessed > (stat.st_ctime, stat.st_ctime_nsec)
        && now - stat.st_atime < ALMOST_A_DAY
}

/// Opens a new description for reading, whose position is not shared with the scanned process.
///
/// Fails with status 6 if the file has a write lease, and if its access time would move.
fn open_again(copy: BorrowedFd<'_>, keeps_access_time: bool) -> Result<OwnedFd> {
    // open(2) would break the lease, and wait until its holder releases it (fcntl(2)).
    if sys::lock::lease(copy) == Ok(libc::F_WRLCK) {
        return Err(Error::unrestorable(
            "it has a write lease, which opening it for reading would break",
        ));
    }
    let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
    let how = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    match open(path.as_str(), how | OFlag::O_NOATIME, Mode::empty()) {
        Err(Errno::EPERM) if keeps_access_time => open(path.as_str(), how, Mode::empty()),
        Err(Errno::EPERM) => {
            return Err(Error::unrestorable(
                "reading it would change its access time: only its owner, or CAP_FOWNER, may prevent \
                 that",
            ));
        }
        other => other,
    }
    .at(|| "open it for reading")
}
