//! The process as its caller made it, before Rust's runtime improved on it.
//!
//! Before `main`, std opens /dev/null on each of 0, 1 and 2 that is closed, and ignores SIGPIPE. The
//! first hides what descriptor tools must see, the second turns `| head` into an error and would be
//! inherited by a program we exec. A function in `.init_array` runs before both and remembers.

use nix::libc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};

/// A bit for each of 0, 1 and 2 that was closed.
static CLOSED: AtomicU8 = AtomicU8::new(0);
/// Whether the caller had SIGPIPE ignored.
static IGNORED: AtomicBool = AtomicBool::new(false);

/// What libc calls before `main`, and so before std's own start. glibc passes (argc, argv, envp),
/// musl nothing; in C's calling convention a function may leave arguments unread.
#[used]
#[unsafe(link_section = ".init_array")]
static REMEMBER: extern "C" fn() = remember;

extern "C" fn remember() {
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

/// Keeps [`REMEMBER`] reachable from each reader of what it remembers, or a linker could drop it.
fn keep() {
    std::hint::black_box(&REMEMBER);
}

/// Whether this descriptor, 0, 1 or 2, was closed when the process started.
///
/// std has put /dev/null there since. It cannot fail; any other number is answered with false.
/// Source: fcntl(2) F_GETFD before std's start.
pub fn closed_at_start(fd: i32) -> bool {
    keep();
    (0..3).contains(&fd) && CLOSED.load(Relaxed) & (1 << fd) != 0
}

/// Lets SIGPIPE end this process quietly, as it ends every other filter: undoes std.
///
/// It cannot fail. Source: signal(7).
pub fn sigpipe_default() {
    set_sigpipe(libc::SIG_DFL);
}

/// Puts SIGPIPE back to what our caller gave us, for the program that we are about to exec.
///
/// It cannot fail. Source: execve(2), "ignored signals stay ignored", and sigaction(2) at the start.
pub fn sigpipe_as_inherited() {
    keep();
    set_sigpipe(if IGNORED.load(Relaxed) { libc::SIG_IGN } else { libc::SIG_DFL });
}

/// Ignores SIGPIPE, for the last words of one whose exit status matters more than its reader.
///
/// It cannot fail. Source: signal(7).
pub fn sigpipe_ignored() {
    set_sigpipe(libc::SIG_IGN);
}

fn set_sigpipe(action: libc::sighandler_t) {
    // SAFETY: SIG_DFL and SIG_IGN are no handlers: no code of ours runs in signal context.
    unsafe { libc::signal(libc::SIGPIPE, action) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Whether the kernel says that SIGPIPE is ignored: SigIgn of proc_pid_status(5).
    fn sigpipe_is_ignored() -> bool {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap();
        u64::from_str_radix(mask, 16).unwrap() & (1 << (libc::SIGPIPE - 1)) != 0
    }

    /// The shell starts this very test again, with the table and the signals under test.
    fn started_by(shell: &str) -> String {
        let name = "sys::start::tests::what_the_caller_gave_is_remembered_despite_std";
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
    fn what_the_caller_gave_is_remembered_despite_std() {
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
