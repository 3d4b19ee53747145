//! The state of 0, 1, 2 and SIGPIPE in which the caller started this process.
//!
//! Before `main`, std opens /dev/null at each of 0, 1 and 2 that is closed, and ignores SIGPIPE.
//! The first hides what the tools must see; the second turns `| head` into an error, and a program
//! that we exec would inherit it. A function in `.init_array` runs before both and records the
//! state.

use nix::libc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};

/// The descriptors 0, 1 and 2 that were closed, a bit each.
static CLOSED: AtomicU8 = AtomicU8::new(0);
/// SIGPIPE was ignored.
static IGNORED: AtomicBool = AtomicBool::new(false);

/// The function that libc calls before `main`, and so before the start of std. glibc passes (argc,
/// argv, envp), musl nothing; in the calling convention of C a function may leave arguments unread.
#[used]
#[unsafe(link_section = ".init_array")]
static RECORD: extern "C" fn() = record;

extern "C" fn record() {
    let mut closed = 0;
    for fd in 0..3 {
        // SAFETY: F_GETFD takes no pointer and changes nothing, whatever the number means.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
            closed |= 1 << fd;
        }
    }
    CLOSED.store(closed, Relaxed);
    // SAFETY: sigaction is plain data, for which zeroes are a value.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: without a new action this is a query, and `old` is ours to fill.
    let asked = unsafe { libc::sigaction(libc::SIGPIPE, std::ptr::null(), &mut old) };
    IGNORED.store(asked == 0 && old.sa_sigaction == libc::SIG_IGN, Relaxed);
}

/// Keeps [`RECORD`] reachable from each reader of the state, or a linker could drop it.
fn keep() {
    std::hint::black_box(&RECORD);
}

/// Says whether this descriptor, 0, 1 or 2, was closed when the process started: F_GETFD of
/// fcntl(2) before the start of std, which has put /dev/null there since. False for any other
/// number.
pub fn closed_at_start(fd: i32) -> bool {
    keep();
    (0..3).contains(&fd) && CLOSED.load(Relaxed) & (1 << fd) != 0
}

/// Sets SIGPIPE to its default action, so that it ends this process as it ends other filters:
/// signal(7).
pub fn sigpipe_default() {
    set_sigpipe(libc::SIG_DFL);
}

/// Sets SIGPIPE to what it was when the process started, for a program that is about to be
/// executed: ignored signals stay ignored over execve(2).
pub fn sigpipe_as_inherited() {
    keep();
    set_sigpipe(if IGNORED.load(Relaxed) { libc::SIG_IGN } else { libc::SIG_DFL });
}

/// Ignores SIGPIPE, so that a last message to a pipe without a reader does not change the exit
/// status: signal(7).
pub fn sigpipe_ignored() {
    set_sigpipe(libc::SIG_IGN);
}

/// Sets a handler of SIGXFSZ that does nothing, unless the signal is ignored or has a handler: a write
/// beyond RLIMIT_FSIZE then fails with EFBIG, and does not end the process (setrlimit(2)). A program that
/// is executed has the default action again.
pub fn sigxfsz_handled() {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: sigaction is plain data, for which zeroes are a value: no flags, an empty mask.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler = libc::sigaction {
        sa_sigaction: nothing as extern "C" fn(libc::c_int) as libc::sighandler_t,
        sa_flags: libc::SA_RESTART,
        ..old
    };
    // SAFETY: `old` is ours to fill. The handler does nothing, which is safe in signal context.
    unsafe {
        if libc::sigaction(libc::SIGXFSZ, std::ptr::null(), &mut old) == 0
            && old.sa_sigaction == libc::SIG_DFL
        {
            libc::sigaction(libc::SIGXFSZ, &raw const handler, std::ptr::null_mut());
        }
    }
}

fn set_sigpipe(action: libc::sighandler_t) {
    // SAFETY: SIG_DFL and SIG_IGN are no handlers: no code of ours runs in signal context.
    unsafe { libc::signal(libc::SIGPIPE, action) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Says whether SIGPIPE is ignored: SigIgn of proc_pid_status(5).
    fn sigpipe_is_ignored() -> bool {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap();
        u64::from_str_radix(mask, 16).unwrap() & (1 << (libc::SIGPIPE - 1)) != 0
    }

    /// The shell starts this very test again, with the table and the signals under test.
    fn started_by(shell: &str) -> String {
        let name = "sys::start::tests::the_state_at_the_start_is_known_despite_std";
        let out = Command::new("sh")
            .args(["-c", &format!("{shell} exec \"$0\" --exact {name} --nocapture 2>&4")])
            .arg(std::env::current_exe().unwrap())
            .env("FDKIT_STARTED", "yes")
            .output()
            .unwrap();
        let (said, _) = String::from_utf8_lossy(&out.stderr)
            .split_once(" end")
            .map(|(said, rest)| (said.to_owned(), rest.to_owned()))
            .unwrap_or_else(|| panic!("{out:?}"));
        said
    }

    #[test]
    fn the_state_at_the_start_is_known_despite_std() {
        if std::env::var_os("FDKIT_STARTED").is_some() {
            let std = sigpipe_is_ignored();
            sigpipe_default();
            let default = sigpipe_is_ignored();
            sigpipe_as_inherited();
            let closed = [0, 1, 2, 3].map(closed_at_start);
            eprintln!("{closed:?} {std} {default} {} end", sigpipe_is_ignored());
            return;
        }
        let open = "[false, false, false, false] true false";
        assert_eq!(started_by("exec 4>&2;"), format!("{open} false"));
        assert_eq!(started_by("exec 4>&2; trap '' PIPE;"), format!("{open} true"));
        let closed = "[true, true, false, false] true false false";
        assert_eq!(started_by("exec 4>&2 <&- >&-;"), closed);
    }
}
