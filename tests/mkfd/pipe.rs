//! pipe(2): queued data, size, packet mode, and a pipe with one end closed.

use crate::driver::{
    Bad, Difference, Fixture, drain, ready, reopen, signal_comes, stat, write_all,
};
use crate::spec::{At, Result, Spec, Stop};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::PollFlags;
use nix::unistd::{read, write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub(crate) struct Pipe;

impl Fixture for Pipe {
    const NAME: &'static str = "pipe";
    const ABOUT: &'static str = "a pipe: its read end, its write end";
    const KEYS: &'static [(&'static str, &'static str)] = &[
        ("data", "bytes on the way; @N for N bytes of a pattern; packet: split at each +"),
        ("size", "F_SETPIPE_SZ"),
        ("packet", "O_DIRECT: each write is a packet"),
        ("two", "a second description of the read end, at the third number"),
        ("reader", "only the read end is kept, at the one number: end of file after the data"),
        ("writer", "only the write end is kept, at the one number: EPIPE"),
    ];
    const DIFFERENCES: &'static [Difference] = &[
        ("pipe@3,4:data=hello", "pipe@3,4:data=help", "data"),
        ("pipe@3,4:packet,data=a+b", "pipe@3,4:data=ab", "O_DIRECT"),
        ("pipe@3,4", "pipe@3,4:async", "O_ASYNC"),
        ("pipe@3,4", "pipe@3:reader", "a writer is still there"),
        ("pipe@3,4:size=4096", "pipe@3,4:size=8192", "size is 4096"),
    ];

    fn arity(spec: &Spec) -> usize {
        match (spec.has("reader") || spec.has("writer"), spec.has("two")) {
            (true, _) => 1,
            (false, false) => 2,
            (false, true) => 3,
        }
    }

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        let mut flags = OFlag::O_CLOEXEC;
        flags.set(OFlag::O_DIRECT, spec.has("packet"));
        let (r, w) = nix::unistd::pipe2(flags).at("pipe2")?;
        if let Some(size) = spec.number("size")? {
            fcntl(&w, FcntlArg::F_SETPIPE_SZ(size as i32)).at("F_SETPIPE_SZ")?;
        }
        let room = fcntl(&w, FcntlArg::F_GETPIPE_SZ).at("F_GETPIPE_SZ")? as usize;
        if spec.data().is_some_and(|data| data.len() > room) {
            return Err(Stop::Misuse(format!("data is longer than the pipe, which has {room}")));
        }
        for part in parts(spec) {
            write_all(&w, &part).at("write to the pipe")?;
        }
        Ok(match (spec.has("reader"), spec.has("writer"), spec.has("two")) {
            (true, ..) => vec![r],
            (_, true, _) => vec![w],
            (.., true) => {
                let second = reopen(&r, OFlag::O_RDONLY).at("open the read end again")?;
                vec![r, w, second]
            }
            _ => vec![r, w],
        })
    }

    fn flags(spec: &Spec, nth: usize) -> OFlag {
        // Only the write end has O_DIRECT; each buffer in the pipe has a mark of its own.
        if spec.has("writer") || nth == 1 {
            let mut flags = OFlag::O_WRONLY;
            flags.set(OFlag::O_DIRECT, spec.has("packet"));
            return flags;
        }
        OFlag::O_RDONLY
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let first = sys::at(spec.fds[0])?;
        let found = stat(first, libc::S_IFIFO, bad)?;
        if let Some(size) = spec.known_number("size") {
            bad.same("size", fcntl(first, FcntlArg::F_GETPIPE_SZ)? as u64, size);
        }
        if spec.has("writer") {
            let hint = "a reader is still there";
            bad.unless(ready(first, PollFlags::POLLERR)?, hint);
            bad.same("write", write(first, b"x"), Err(Errno::EPIPE));
            return Ok(());
        }
        contents(spec, first, bad)?;
        if spec.has("reader") {
            let hung = ready(first, PollFlags::POLLHUP)?;
            bad.unless(hung, "a writer is still there");
            if hung {
                bad.same("read at the end", read(first, &mut [0; 8]), Ok(0));
            }
            return Ok(());
        }
        let w = sys::at(spec.fds[1])?;
        let same = stat(w, libc::S_IFIFO, bad)?;
        bad.same("inode of the write end", same.st_ino, found.st_ino);
        signal_comes(spec, 0, bad, || write(w, b"again").map(drop))?;
        bad.same_bytes("what is written now", &drain(first)?, b"again");
        if spec.has("two") {
            let second = sys::at(spec.fds[2])?;
            let same = stat(second, libc::S_IFIFO, bad)?;
            bad.same("inode of the second read end", same.st_ino, found.st_ino);
            write(w, b"two")?;
            bad.same_bytes("what the second read end reads", &drain(second)?, b"two");
        }
        if spec.has("packet") {
            write(w, b"1")?;
            write(w, b"22")?;
            bad.same("a packet written now", read(first, &mut [0; 8]), Ok(1));
            drain(first)?;
        }
        Ok(())
    }
}

/// The data of each write.
fn parts(spec: &Spec) -> Vec<Vec<u8>> {
    let data = spec.data().unwrap_or_default();
    if spec.has("packet") && !data.is_empty() {
        return data.split(|&b| b == b'+').map(<[u8]>::to_vec).collect();
    }
    vec![data]
}

/// Checks that the queued data are what was written, and that packets have their boundaries.
fn contents(spec: &Spec, fd: BorrowedFd<'_>, bad: &mut Bad) -> Result<(), Errno> {
    if !spec.has("packet") {
        let data = spec.data().unwrap_or_default();
        bad.same("bytes on the way", sys::pending_bytes(fd)?, data.len());
        bad.same_bytes("data", &drain(fd)?, &data);
        return Ok(());
    }
    for part in parts(spec) {
        let mut buffer = [0; 4096];
        let got = if ready(fd.as_fd(), PollFlags::POLLIN)? { read(fd, &mut buffer)? } else { 0 };
        bad.same_bytes("packet", &buffer[..got], &part);
    }
    bad.same_bytes("data after the packets", &drain(fd)?, b"");
    Ok(())
}
