//! System calls for which nix has no safe function; the only `unsafe` code of the tests.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::libc;
use nix::mqueue::MqdT;
use nix::sys::signal::SigEvent;
use std::ffi::{CStr, OsStr, OsString, c_char, c_int, c_long};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

type Result<T> = std::result::Result<T, Errno>;

/// The C entry point instead of Rust's: before `fn main` Rust opens /dev/null on any of 0, 1, 2
/// that is closed, and a fixture that says what is open must not open anything by itself.
// SAFETY: no other symbol of this name exists, since the crate is `no_main`.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[cfg_attr(test, allow(dead_code))]
extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    let args = (0..argc as usize)
        .map(|i| {
            // SAFETY: the C library gives argc pointers to strings that live as long as the process.
            let arg = unsafe { CStr::from_ptr(*argv.add(i)) };
            OsStr::from_bytes(arg.to_bytes()).to_owned()
        })
        .collect::<Vec<OsString>>();
    crate::run(&args)
}

/// The descriptor at a number, if it is open.
pub(crate) fn at(n: RawFd) -> Result<BorrowedFd<'static>> {
    // SAFETY: F_GETFD takes any number.
    Errno::result(unsafe { libc::fcntl(n, libc::F_GETFD) })?;
    // SAFETY: it is open, and mkfd closes no number that it looks up here before it is done with it.
    Ok(unsafe { BorrowedFd::borrow_raw(n) })
}

/// A copy of `fd` at the lowest free number from `n` on.
pub(crate) fn dup_above(fd: BorrowedFd<'_>, n: RawFd) -> Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes a number.
    let new = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, n) };
    let new = Errno::result(new)?;
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

/// Puts a copy of `fd` at this number, and replaces what is open there.
pub(crate) fn dup_to(fd: BorrowedFd<'_>, n: RawFd, cloexec: bool) -> Result<()> {
    let flags = if cloexec { libc::O_CLOEXEC } else { 0 };
    if fd.as_raw_fd() == n {
        let flags = if cloexec { libc::FD_CLOEXEC } else { 0 };
        // SAFETY: F_SETFD takes any number.
        return Errno::result(unsafe { libc::fcntl(n, libc::F_SETFD, flags) }).map(drop);
    }
    // SAFETY: what stood at `n` was either nothing or one of 0, 1, 2, which nothing here owns;
    // the caller keeps the numbers of its own open descriptors apart.
    Errno::result(unsafe { libc::dup3(fd.as_raw_fd(), n, flags) }).map(drop)
}

/// Moves `fd` to this number, where it stays open until the process ends.
pub(crate) fn move_to(fd: OwnedFd, n: RawFd, cloexec: bool) -> Result<()> {
    dup_to(fd.as_fd(), n, cloexec)?;
    if fd.as_raw_fd() == n {
        let _ = fd.into_raw_fd();
    }
    Ok(())
}

/// Closes a number, if it is open.
pub(crate) fn close(n: RawFd) {
    // SAFETY: called for 0, 1, 2 and for numbers given away by `move_to`; no OwnedFd holds them.
    let _ = unsafe { libc::close(n) };
}

/// Closes every number from this one on.
pub(crate) fn close_from(n: RawFd) -> Result<()> {
    // SAFETY: called before anything here is opened.
    let done = unsafe { libc::syscall(libc::SYS_close_range, n, u32::MAX, 0) };
    Errno::result(done).map(drop)
}

/// fcntl(2) with a number, for the commands that nix does not know.
pub(crate) fn fcntl(fd: BorrowedFd<'_>, command: c_int, arg: c_long) -> Result<c_int> {
    // SAFETY: called for F_SETSIG, F_GETSIG and F_DUPFD_QUERY alone, which take a number.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), command, arg) })
}

/// F_SETSIG of fcntl(2).
pub(crate) const F_SETSIG: c_int = 10;
/// F_GETSIG of fcntl(2).
pub(crate) const F_GETSIG: c_int = 11;
/// F_DUPFD_QUERY of fcntl(2), since 6.10: is the argument a dup of the descriptor?
const F_DUPFD_QUERY: c_int = 1027;

/// struct f_owner_ex.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) kind: c_int,
    pub(crate) pid: libc::pid_t,
}

/// F_SETOWN_EX.
pub(crate) fn set_owner(fd: BorrowedFd<'_>, owner: Owner) -> Result<()> {
    // SAFETY: command 15 is F_SETOWN_EX and reads a struct f_owner_ex, which `owner` is.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), 15, &raw const owner) }).map(drop)
}

/// F_GETOWN_EX.
pub(crate) fn owner(fd: BorrowedFd<'_>) -> Result<Owner> {
    let mut owner = Owner { kind: -1, pid: -1 };
    // SAFETY: command 16 is F_GETOWN_EX and writes a struct f_owner_ex, which `owner` is.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), 16, &raw mut owner) })?;
    Ok(owner)
}

/// Whether both numbers refer to one open file description; None if the kernel does not tell.
pub(crate) fn same(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> Option<bool> {
    match fcntl(a, F_DUPFD_QUERY, b.as_raw_fd().into()) {
        Ok(answer) => return Some(answer == 1),
        Err(Errno::EINVAL | Errno::EBADF) => {}
        Err(_) => return None,
    }
    let pid = std::process::id();
    // SAFETY: kcmp(2) with KCMP_FILE (0) takes numbers only.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, 0, a.as_raw_fd(), b.as_raw_fd()) };
    (order >= 0).then_some(order == 0)
}

/// getdents64(2) into a buffer of a size that the caller chooses, which limits the number of
/// entries.
pub(crate) fn getdents(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel writes no more than `len` bytes to the buffer.
    let got = unsafe {
        libc::syscall(libc::SYS_getdents64, fd.as_raw_fd(), buffer.as_mut_ptr(), buffer.len())
    };
    Errno::result(got).map(|n| n as usize)
}

/// FIONREAD: the bytes that a read would find.
pub(crate) fn pending_bytes(fd: BorrowedFd<'_>) -> Result<usize> {
    let mut n: c_int = 0;
    // SAFETY: FIONREAD writes an int.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut n) })?;
    Ok(n as usize)
}

/// Types of descriptors that no tool restores.
pub(crate) enum Unsupported {
    IoUring,
    Userfaultfd,
    BpfMap,
    BpfProgram,
    Perf,
    Secret,
    Landlock,
    Seccomp,
    Fscontext,
    /// A socket: family, type and protocol.
    Socket(c_int, c_int, c_int),
    /// A device, O_RDWR.
    Device(&'static CStr),
}

/// Makes a descriptor of this type.
pub(crate) fn unsupported(what: &Unsupported) -> Result<OwnedFd> {
    // The buffer is longer than any struct that is read or written below; the rest is zero.
    let mut words = [0_u64; 16];
    // Two instructions for the kernel: r0 = 0, and exit.
    let bpf = [0xb7_u64, 0x95];
    let license = c"GPL";
    // One for seccomp(2): SECCOMP_RET_ALLOW.
    let allow = [libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: libc::SECCOMP_RET_ALLOW,
    }];
    // SAFETY: each call reads or writes one struct, which `words` has room for and which is laid out
    // as its manual page says, and what it points to, which outlives the call.
    let fd = unsafe {
        match *what {
            Unsupported::IoUring => libc::syscall(libc::SYS_io_uring_setup, 4, words.as_mut_ptr()),
            Unsupported::Userfaultfd => libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC),
            Unsupported::BpfMap => {
                // BPF_MAP_TYPE_ARRAY, keys and values of four bytes, one of them.
                (words[0], words[1]) = (2 | 4 << 32, 4 | 1 << 32);
                libc::syscall(libc::SYS_bpf, 0, words.as_mut_ptr(), 128)
            }
            Unsupported::BpfProgram => {
                // BPF_PROG_TYPE_SOCKET_FILTER
                words[0] = 1 | (bpf.len() as u64) << 32;
                (words[1], words[2]) = (bpf.as_ptr() as u64, license.as_ptr() as u64);
                libc::syscall(libc::SYS_bpf, 5, words.as_mut_ptr(), 128)
            }
            Unsupported::Perf => {
                // PERF_TYPE_SOFTWARE, and the size of the struct.
                words[0] = 1 | 64 << 32;
                libc::syscall(libc::SYS_perf_event_open, words.as_mut_ptr(), 0, -1, -1, 0)
            }
            Unsupported::Secret => libc::syscall(libc::SYS_memfd_secret, 0),
            Unsupported::Landlock => {
                // LANDLOCK_ACCESS_FS_EXECUTE
                words[0] = 1;
                libc::syscall(libc::SYS_landlock_create_ruleset, words.as_mut_ptr(), 8, 0)
            }
            Unsupported::Seccomp => {
                (words[0], words[1]) = (allow.len() as u64, allow.as_ptr() as u64);
                // SECCOMP_SET_MODE_FILTER with SECCOMP_FILTER_FLAG_NEW_LISTENER
                libc::syscall(libc::SYS_seccomp, 1, 8, words.as_mut_ptr())
            }
            Unsupported::Fscontext => libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), 0),
            Unsupported::Socket(family, class, protocol) => {
                libc::socket(family, class, protocol).into()
            }
            Unsupported::Device(path) => libc::open(path.as_ptr(), libc::O_RDWR).into(),
        }
    };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// A descriptor received with a message, which nothing else owns.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made it for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// fork(2): None in the child.
pub(crate) fn fork() -> Result<Option<libc::pid_t>> {
    // SAFETY: there is one thread only, so the child may do whatever the parent may.
    let pid = Errno::result(unsafe { libc::fork() })?;
    Ok((pid != 0).then_some(pid))
}

/// flock(2) without waiting: exclusive, or shared.
pub(crate) fn flock(fd: BorrowedFd<'_>, write: bool) -> Result<()> {
    let how = if write { libc::LOCK_EX } else { libc::LOCK_SH };
    // SAFETY: flock takes two numbers.
    Errno::result(unsafe { libc::flock(fd.as_raw_fd(), how | libc::LOCK_NB) }).map(drop)
}

/// fork(2) of a child that shares the descriptor table: None in the child, which may not exit by
/// the C library's ways, since that believes it to be its parent.
pub(crate) fn fork_with_table() -> Result<Option<libc::pid_t>> {
    let flags = libc::CLONE_FILES | libc::SIGCHLD;
    // SAFETY: as in `fork`; without a stack of its own the child goes on on a copy of this one.
    let pid = Errno::result(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })?;
    Ok((pid != 0).then_some(pid as libc::pid_t))
}

/// Blocks every signal except those by which a terminal ends a process.
pub(crate) fn block_signals() {
    // SAFETY: the set is initialised by sigfillset before it is used; null is allowed for the old.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
            libc::sigdelset(&raw mut set, signal);
        }
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Unblocks all signals, for the program that is executed next.
pub(crate) fn unblock_signals() {
    // SAFETY: as in `block_signals`.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Waits for a blocked signal, and gives the descriptor number that it names (`si_fd`).
pub(crate) fn wait_signal(signal: c_int, milliseconds: i64) -> Option<RawFd> {
    let limit = libc::timespec {
        tv_sec: milliseconds / 1000,
        tv_nsec: (milliseconds % 1000 * 1_000_000) as c_long,
    };
    // struct siginfo is 128 bytes; on 64 bit machines si_fd is its seventh int.
    let mut info = [0_u64; 16];
    // SAFETY: the set is initialised by sigemptyset, the kernel writes 128 bytes at `info`.
    let got = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::sigtimedwait(&raw const set, info.as_mut_ptr().cast(), &raw const limit)
    };
    (got == signal).then_some((info[3] & 0xffff_ffff) as u32 as RawFd)
}

/// timerfd_create(2).
pub(crate) fn timer(clock: c_int) -> Result<OwnedFd> {
    // SAFETY: timerfd_create takes two numbers.
    let fd = Errno::result(unsafe { libc::timerfd_create(clock, libc::TFD_CLOEXEC) })?;
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// timerfd_settime(2), in nanoseconds.
pub(crate) fn set_timer(fd: BorrowedFd<'_>, flags: u32, value: u64, every: u64) -> Result<()> {
    let time = |n: u64| libc::timespec {
        tv_sec: (n / 1_000_000_000) as libc::time_t,
        tv_nsec: (n % 1_000_000_000) as c_long,
    };
    let new = libc::itimerspec { it_value: time(value), it_interval: time(every) };
    // SAFETY: the kernel reads one itimerspec, and a null pointer asks for no old one.
    let done = unsafe {
        libc::timerfd_settime(fd.as_raw_fd(), flags as c_int, &raw const new, std::ptr::null_mut())
    };
    Errno::result(done).map(drop)
}

/// timerfd_gettime(2), in nanoseconds: what is left, and the interval.
pub(crate) fn timer_left(fd: BorrowedFd<'_>) -> Result<(u64, u64)> {
    let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let mut found = libc::itimerspec { it_value: zero, it_interval: zero };
    // SAFETY: the kernel writes one itimerspec.
    Errno::result(unsafe { libc::timerfd_gettime(fd.as_raw_fd(), &raw mut found) })?;
    let time = |t: libc::timespec| t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64;
    Ok((time(found.it_value), time(found.it_interval)))
}

/// TFD_IOC_SET_TICKS of timerfd_create(2).
pub(crate) fn set_ticks(fd: BorrowedFd<'_>, ticks: u64) -> Result<()> {
    // linux/timerfd.h
    const TFD_IOC_SET_TICKS: libc::Ioctl = nix::request_code_write!(b'T', 0, size_of::<u64>());
    // SAFETY: TFD_IOC_SET_TICKS reads a u64.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), TFD_IOC_SET_TICKS, &raw const ticks) };
    Errno::result(done).map(drop)
}

/// signalfd4(2); signal n is bit n - 1.
pub(crate) fn signalfd(mask: u64) -> Result<OwnedFd> {
    // SAFETY: the kernel reads a set of 8 bytes.
    let fd =
        unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, 8, libc::SFD_CLOEXEC) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// kill(2) of this process, with any number.
pub(crate) fn send_signal(signal: c_int) -> Result<()> {
    // SAFETY: kill takes two numbers.
    Errno::result(unsafe { libc::kill(libc::getpid(), signal) }).map(drop)
}

/// epoll_ctl(2): 1 adds, 3 modifies what a number has open.
pub(crate) fn epoll_ctl(
    epoll: BorrowedFd<'_>,
    how: c_int,
    n: RawFd,
    events: u32,
    data: u64,
) -> Result<()> {
    let mut event = libc::epoll_event { events, u64: data };
    // SAFETY: the kernel reads one epoll_event and takes any number.
    Errno::result(unsafe { libc::epoll_ctl(epoll.as_raw_fd(), how, n, &raw mut event) }).map(drop)
}

/// epoll_wait(2) without waiting: the data and events of all that are ready.
pub(crate) fn epoll_wait(epoll: BorrowedFd<'_>) -> Result<Vec<(u64, u32)>> {
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
    // SAFETY: the kernel fills 16 epoll_events at most.
    let n = unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), 16, 0) };
    let n = Errno::result(n)? as usize;
    Ok(events[..n].iter().map(|event| (event.u64, event.events)).collect())
}

/// EPIOCSPARAMS of ioctl_eventpoll(2), since 6.9.
pub(crate) fn set_busy(epoll: BorrowedFd<'_>, params: [u8; 8]) -> Result<()> {
    // SAFETY: the kernel reads a struct epoll_params, which is 8 bytes.
    let done = unsafe { libc::ioctl(epoll.as_raw_fd(), libc::EPIOCSPARAMS, params.as_ptr()) };
    Errno::result(done).map(drop)
}

/// EPIOCGPARAMS of ioctl_eventpoll(2).
pub(crate) fn busy(epoll: BorrowedFd<'_>) -> Result<[u8; 8]> {
    let mut params = [0; 8];
    // SAFETY: the kernel writes a struct epoll_params, which is 8 bytes.
    let done = unsafe { libc::ioctl(epoll.as_raw_fd(), libc::EPIOCGPARAMS, params.as_mut_ptr()) };
    Errno::result(done).map(|_| params)
}

/// pidfd_open(2).
pub(crate) fn pidfd(pid: c_int, thread: bool) -> Result<OwnedFd> {
    let flags = if thread { libc::O_EXCL } else { 0 };
    // SAFETY: pidfd_open takes two numbers.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) })?;
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// pidfd_send_signal(2).
pub(crate) fn pidfd_signal(fd: BorrowedFd<'_>, signal: c_int) -> Result<()> {
    // SAFETY: a null pointer asks for no siginfo of ours.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            fd.as_raw_fd(),
            signal,
            std::ptr::null::<u8>(),
            0,
        )
    };
    Errno::result(sent).map(drop)
}

/// The exit status of a pidfd's process, if the kernel tells it: PIDFD_GET_INFO.
pub(crate) fn exit_status(fd: BorrowedFd<'_>) -> Option<c_int> {
    // linux/pidfd.h: struct pidfd_info in its first size, a mask first, the exit status last.
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    const PIDFD_GET_INFO: libc::Ioctl = nix::request_code_readwrite!(0xff, 11, 64);
    let mut info = [0_u64; 8];
    info[0] = PIDFD_INFO_EXIT;
    // SAFETY: the number says how many bytes the kernel may write, which are 64.
    let asked = unsafe { libc::ioctl(fd.as_raw_fd(), PIDFD_GET_INFO, info.as_mut_ptr()) };
    (asked == 0 && info[0] & PIDFD_INFO_EXIT != 0).then_some((info[7] >> 32) as c_int)
}

/// Ends this process so that wait(2) returns this status.
pub(crate) fn end(status: c_int) -> ! {
    unblock_signals();
    // SAFETY: all of these take numbers.
    unsafe {
        let signal = status & 0x7f;
        // Signals that dump core (signal(7)). Whoever may trace the process sees how it ended.
        if matches!(signal, 3..=8 | 11 | 24 | 25 | 31) {
            libc::prctl(libc::PR_SET_DUMPABLE, 0);
        }
        if signal != 0 {
            libc::kill(libc::getpid(), signal);
        }
        libc::_exit(status >> 8)
    }
}

/// Whether a descriptor becomes readable within this time.
pub(crate) fn becomes_readable(fd: impl AsFd, milliseconds: u16) -> Result<bool> {
    use nix::poll::{PollFd, PollFlags, poll};
    Ok(poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], milliseconds)? > 0)
}

/// Whether it is a namespace: NS_GET_NSTYPE of ioctl_nsfs(2).
pub(crate) fn is_namespace(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: NS_GET_NSTYPE takes no argument.
    unsafe { libc::ioctl(fd.as_raw_fd(), libc::NS_GET_NSTYPE) > 0 }
}

/// Reads the events of a fanotify group, and closes the descriptors in them.
pub(crate) fn drop_events(fd: BorrowedFd<'_>) -> Result<()> {
    let mut buffer = [0_u8; 4096];
    let got = nix::unistd::read(fd, &mut buffer)?;
    let mut rest = &buffer[..got];
    // struct fanotify_event_metadata: its length first, the descriptor at 16.
    while rest.len() >= 24 {
        let word =
            |at: usize| u32::from_ne_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
        if word(16) as RawFd >= 0 {
            close(word(16) as RawFd);
        }
        rest = rest.get(word(0) as usize..).unwrap_or_default();
    }
    Ok(())
}

/// Writes bytes to the beginning of a file through a mapping, for files that have no write(2):
/// hugetlbfs.
pub(crate) fn fill_mapped(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<()> {
    let Some(len) = std::num::NonZeroUsize::new(bytes.len().next_multiple_of(2 << 20)) else {
        return Ok(());
    };
    let flags = libc::MAP_SHARED;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // A fallocate(2) first: with its pages allocated, the mapping cannot raise SIGBUS.
    let how = nix::fcntl::FallocateFlags::empty();
    nix::fcntl::fallocate(fd, how, 0, len.get() as libc::off_t)?;
    // SAFETY: a new mapping at an address that the kernel chooses, as long as is written to.
    unsafe {
        let at = libc::mmap(std::ptr::null_mut(), len.get(), access, flags, fd.as_raw_fd(), 0);
        if at == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        at.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        Errno::result(libc::munmap(at, len.get())).map(drop)
    }
}

/// getsockopt(2) for an option whose value contains no pointer.
pub(crate) fn option(fd: BorrowedFd<'_>, level: c_int, name: c_int) -> Result<Vec<u8>> {
    let mut value = vec![0; 64];
    option_into(fd, level, name, &mut value)?;
    Ok(value)
}

/// As `option`, with bytes that are part of the question.
pub(crate) fn option_into(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &mut Vec<u8>,
) -> Result<()> {
    let mut len = value.len() as libc::socklen_t;
    // SAFETY: the kernel reads and writes at most `len` bytes, which `value` has.
    let got = unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut len)
    };
    Errno::result(got)?;
    value.truncate(len as usize);
    Ok(())
}

/// setsockopt(2) with a value that contains no pointer.
pub(crate) fn set_option(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &[u8],
) -> Result<()> {
    let len = value.len() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes, which `value` has.
    let set = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), len) };
    Errno::result(set).map(drop)
}

/// A message queue for the functions of nix, valid as long as its descriptor is open.
pub(crate) fn queue(fd: &impl AsFd) -> MqdT {
    // SAFETY: nix's type closes nothing by itself, and mkfd hands it on at once.
    unsafe { MqdT::from_raw_fd(fd.as_fd().as_raw_fd()) }
}

/// The descriptor of a message queue that mq_open(3) has just opened.
pub(crate) fn owned_queue(queue: MqdT) -> OwnedFd {
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    unsafe { OwnedFd::from_raw_fd(queue.into_raw_fd()) }
}

/// mq_notify(3).
pub(crate) fn mq_notify(fd: BorrowedFd<'_>, how: &SigEvent) -> Result<()> {
    let how = how.sigevent();
    // SAFETY: the C library reads one sigevent.
    Errno::result(unsafe { libc::mq_notify(fd.as_raw_fd(), &raw const how) }).map(drop)
}

/// Sets SIGINT and SIGQUIT to their default action: a shell script starts background commands with
/// both ignored, and a keyboard could then interrupt nothing.
pub(crate) fn reset_keyboard_signals() {
    for signal in [libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: SIG_DFL is no handler: no code of ours runs in signal context.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}
