//! Forking this program: fork(2), clone3(2).

use nix::errno::Errno;
use nix::libc;
use nix::unistd::{ForkResult, Pid};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long [`fork`] waits until the kernel has removed threads that end.
const THREAD_END_LIMIT: Duration = Duration::from_secs(1);

/// fork(2): returns the child's process id in the parent, `None` in the child.
///
/// Fails with EDEADLK in a process of several threads: a lock that another thread holds would stay
/// locked in the child.
///
/// A thread that ends counts as one of several until the kernel has removed it, which is a moment after
/// pthread_join(3) returns. That moment is waited for. The leader of the thread group is not removed
/// before this thread, however: if it has ended, fork fails after [`THREAD_END_LIMIT`].
pub fn fork() -> nix::Result<Option<Pid>> {
    let began = Instant::now();
    while require_single_thread().is_err() {
        if began.elapsed() > THREAD_END_LIMIT || !other_threads_end() {
            return Err(Errno::EDEADLK);
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    default_sigchld();
    // SAFETY: there is no other thread, so the child may do all that the parent may.
    match unsafe { nix::unistd::fork()? } {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// Arguments of [`clone3`].
#[derive(Clone, Copy, Debug, Default)]
pub struct CloneArgs {
    /// The child shares the descriptor table of this process: CLONE_FILES.
    pub share_table: bool,
    /// The child's parent is the parent of this process: CLONE_PARENT.
    pub sibling: bool,
    /// The child's process id (`set_tid`, Linux 5.5); zero for any. A number takes
    /// CAP_CHECKPOINT_RESTORE (Linux 5.9) or CAP_SYS_ADMIN.
    pub pid: i32,
}

/// struct clone_args of clone3(2), in its second size (Linux 5.5).
#[repr(C)]
#[derive(Default)]
struct RawCloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
}

/// clone3(2) without CLONE_VM: returns the child's process id in the parent, `None` in the child.
///
/// The C library is not told, and takes the child for a thread of its parent: neither raise(3) nor
/// a lock that records its owner may be used in the child.
///
/// Fails with EDEADLK in a process of several threads, with EEXIST if the process id is taken, with
/// EPERM if this process may not choose one.
pub fn clone3(how: CloneArgs) -> nix::Result<Option<Pid>> {
    require_single_thread()?;
    let pid = how.pid;
    let mut args = RawCloneArgs { exit_signal: libc::SIGCHLD as u64, ..RawCloneArgs::default() };
    if how.share_table {
        args.flags |= libc::CLONE_FILES as u64;
    }
    if how.sibling {
        // The kernel takes the exit signal of the caller itself.
        args.flags |= libc::CLONE_PARENT as u64;
        args.exit_signal = 0;
    }
    if pid != 0 {
        args.set_tid = (&raw const pid) as u64;
        args.set_tid_size = 1;
    }
    // SAFETY: the kernel reads the arguments and one pid. Without CLONE_VM the child has memory of
    // its own, and there is no other thread, so it may do all that the parent may.
    let child =
        unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<RawCloneArgs>()) };
    match Errno::result(child)? {
        0 => Ok(None),
        child => Ok(Some(Pid::from_raw(child as i32))),
    }
}

/// Fails with EDEADLK if this process has other threads. A look into /proc would take a descriptor,
/// and the table may have no free number.
fn require_single_thread() -> nix::Result<()> {
    // CLONE_THREAD changes nothing, and fails with EINVAL in a process of several threads:
    // unshare(2).
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_THREAD).map_err(|_| Errno::EDEADLK)
}

/// True if all other threads of this process are about to end, or have ended. False also if that cannot
/// be known.
fn other_threads_end() -> bool {
    // linux/sched.h; in field 9 of /proc/PID/stat.
    const PF_EXITING: u64 = 4;
    let own = nix::unistd::gettid().to_string();
    let ends = |name: &std::ffi::OsStr| {
        let text = std::fs::read_to_string(Path::new("/proc/self/task").join(name).join("stat"));
        // One that has gone meanwhile has no file.
        text.map_or(true, |text| {
            let after_name = text.rsplit_once(')').map_or("", |(_, rest)| rest);
            let flags = after_name.split_ascii_whitespace().nth(6).and_then(|it| it.parse().ok());
            flags.is_some_and(|flags: u64| flags & PF_EXITING != 0)
        })
    };
    std::fs::read_dir("/proc/self/task").is_ok_and(|mut threads| {
        threads.all(|it| it.is_ok_and(|it| it.file_name() == *own || ends(&it.file_name())))
    })
}

/// Ends this process by _exit(2): no buffer or exit handler inherited from the parent is flushed or
/// run.
pub fn end(status: i32) -> ! {
    // SAFETY: it takes an integer and does not return.
    unsafe { libc::_exit(status) }
}

/// Sets SIGCHLD to its default. While a process ignores SIGCHLD, as our caller may have, the kernel
/// keeps no exit status of its children: wait(2).
pub fn default_sigchld() {
    // SAFETY: SIG_DFL is no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Runs `child` in a forked process, which then ends. For tests, whose harness has threads: `child`
/// must take no lock that another thread may hold; malloc(3) is there for it, fork(3) sees to that.
#[cfg(test)]
pub(crate) fn fork_in_test(child: impl FnOnce()) -> Pid {
    // SAFETY: the child takes no lock of another thread, and ends before it returns from here.
    match unsafe { nix::unistd::fork().unwrap() } {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            child();
            end(0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_whose_other_threads_have_just_ended_forks() {
        // The test harness has threads, but no child of it has.
        let child = fork_in_test(|| {
            for _ in 0..200 {
                let threads = [(); 4].map(|()| std::thread::spawn(|| ()));
                threads.into_iter().for_each(|thread| thread.join().unwrap());
                match fork() {
                    Ok(None) => end(0),
                    Ok(Some(child)) => drop(nix::sys::wait::waitpid(child, None)),
                    Err(_) => end(1),
                }
            }
        });
        let ended = nix::sys::wait::waitpid(child, None);
        assert_eq!(ended, Ok(nix::sys::wait::WaitStatus::Exited(child, 0)));
    }

    #[test]
    fn a_process_whose_leader_has_ended_does_not_fork() {
        let child = fork_in_test(|| {
            std::thread::spawn(|| {
                std::thread::sleep(Duration::from_millis(50));
                end(i32::from(fork() != Err(Errno::EDEADLK)))
            });
            // SAFETY: it ends this thread alone, and does not return.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
        });
        let ended = (0..100).find_map(|_| {
            std::thread::sleep(Duration::from_millis(100));
            let how = nix::sys::wait::WaitPidFlag::WNOHANG;
            let status = nix::sys::wait::waitpid(child, Some(how)).unwrap();
            (status != nix::sys::wait::WaitStatus::StillAlive).then_some(status)
        });
        let _ = nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL);
        assert_eq!(ended, Some(nix::sys::wait::WaitStatus::Exited(child, 0)));
    }

    #[test]
    fn a_process_of_several_threads_does_not_fork() {
        // The test harness runs tests on threads.
        let other = std::thread::spawn(std::thread::park);
        assert_eq!(fork(), Err(Errno::EDEADLK));
        assert_eq!(clone3(CloneArgs::default()), Err(Errno::EDEADLK));
        other.thread().unpark();
        other.join().unwrap();
    }
}
