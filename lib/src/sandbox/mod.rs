//! What a process gives up before it reads input that it does not trust: landlock(7) and seccomp(2).
//!
//! Both are best effort. What the kernel, or a filter that the process has already, does not permit is
//! left out, and a line says so. A tool does the same work with and without them.

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope,
};
use seccompiler::BackendError;
use std::os::fd::BorrowedFd;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
mod calls;

/// The machines that the crate seccompiler does not know.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
mod calls {
    use super::{BackendError, Needs};

    pub(super) fn restrict(_: Needs<'_>) -> Result<usize, seccompiler::Error> {
        Err(BackendError::InvalidTargetArch(std::env::consts::ARCH.to_owned()).into())
    }
}

/// What a process still needs besides its open descriptors.
#[derive(Clone, Copy, Debug)]
pub enum Needs<'a> {
    /// Nothing.
    Descriptors,
    /// To give a file a name in this directory, and to replace and remove names of files there. landlock(7)
    /// has no right for a directory without those below it.
    NamesIn(BorrowedFd<'a>),
}

/// The newest ABI of which rights are given up; an older kernel gives up those that it knows.
const NEWEST: ABI = ABI::V10;

/// Gives up everything but `needs`, for this thread and those that it starts later. Returns a line for
/// landlock(7) and one for seccomp(2), which say what was possible; nothing that fails is an error.
///
/// PR_SET_NO_NEW_PRIVS of prctl(2) is set, since an unprivileged process may do neither without it.
pub fn give_up_all_but(needs: Needs<'_>) -> [String; 2] {
    // The filter comes last: it does not permit the system calls of landlock.
    let files = restrict_files(needs).unwrap_or_else(|err| not_possible(&err.to_string()));
    let calls = match calls::restrict(needs) {
        Ok(count) => format!("{count} system calls remain"),
        Err(seccompiler::Error::Backend(BackendError::InvalidTargetArch(arch))) => {
            not_possible(&format!("the crate seccompiler does not support {arch}"))
        }
        Err(seccompiler::Error::Prctl(err)) => not_possible(&format!("PR_SET_NO_NEW_PRIVS: {err}")),
        Err(seccompiler::Error::Seccomp(err)) => not_possible(&err.to_string()),
        Err(err) => not_possible(&err.to_string()),
    };
    [format!("landlock: {files}"), format!("seccomp: {calls}")]
}

/// A reason, without the number that std puts after the name of an errno.
fn not_possible(reason: &str) -> String {
    let reason = reason.split(" (os error").next().unwrap_or_default();
    format!("not possible: {reason}")
}

/// Gives up opening and making files, TCP, and signals and abstract unix sockets of other processes, as
/// far as the kernel can: Linux 5.13, 6.7 and 6.12. Returns what was given up.
fn restrict_files(needs: Needs<'_>) -> Result<String, RulesetError> {
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    let (ruleset, files) = match needs {
        Needs::Descriptors => (ruleset, "no files"),
        Needs::NamesIn(dir) => {
            // linkat(2) makes a regular file. rename(2) removes the old name and the file that it
            // replaces. LANDLOCK_ACCESS_FS_REFER is for two directories only, and O_TMPFILE has put the
            // file into this one.
            let access: BitFlags<AccessFs> = AccessFs::MakeReg | AccessFs::RemoveFile;
            let rule = PathBeneath::new(dir, access);
            (ruleset.add_rule(rule)?, "no files but new names in one directory and below")
        }
    };
    Ok(match ruleset.restrict_self()?.landlock {
        LandlockStatus::NotImplemented => {
            "not supported by this kernel, or forbidden by a filter".to_owned()
        }
        LandlockStatus::NotEnabled => {
            "not enabled in this kernel; add landlock to its lsm= option".to_owned()
        }
        LandlockStatus::Available { effective_abi, kernel_abi } => {
            let tcp = if effective_abi >= ABI::V4 { ", no TCP" } else { "" };
            let scopes = match effective_abi >= ABI::V6 {
                true => ", no signals, no abstract unix sockets",
                false => "",
            };
            let abi = kernel_abi.unwrap_or(effective_abi as i32);
            format!("ABI {abi}: {files}{tcp}{scopes}")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;
    use nix::fcntl::{AT_FDCWD, renameat};
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::{Pid, UnlinkatFlags, getppid, unlinkat};
    use std::fs::{self, File};
    use std::io;
    use std::net::TcpListener;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;
    use std::path::PathBuf;
    use std::thread;

    /// A directory with a file `old`, in which nobody else makes names.
    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("fdkit-sandbox-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("old"), "old").unwrap();
        dir
    }

    fn errno<T>(result: io::Result<T>) -> Option<i32> {
        result.err().and_then(|err| err.raw_os_error())
    }

    // landlock_restrict_self(2) and seccomp(2) are of a thread.

    #[test]
    fn landlock_leaves_names_in_one_directory_and_nothing_else() {
        let (dir, other) = (scratch("names"), scratch("other"));
        let at = File::open(&dir).unwrap();
        let (inside, outside) = (dir.clone(), other.clone());
        let run = move || {
            let said = restrict_files(Needs::NamesIn(at.as_fd())).unwrap();
            let denied = [
                errno(File::open(inside.join("old"))),
                errno(fs::read_dir(&inside)),
                errno(fs::create_dir(inside.join("dir"))),
                errno(fs::write(outside.join("new"), "")),
                errno(fs::remove_file(outside.join("old"))),
            ];
            let tcp = errno(TcpListener::bind(("127.0.0.1", 0)));
            let signal = kill(getppid(), None);
            let renamed = renameat(&at, "old", &at, "new");
            (said, denied, tcp, signal, renamed, unlinkat(&at, "new", UnlinkatFlags::NoRemoveDir))
        };
        let (said, denied, tcp, signal, renamed, removed) = thread::spawn(run).join().unwrap();
        for dir in [dir, other] {
            fs::remove_dir_all(dir).unwrap();
        }
        if !said.starts_with("ABI") {
            eprintln!("SKIP landlock(7) is {said}");
            return;
        }
        assert_eq!(denied, [Some(Errno::EACCES as i32); 5]);
        assert_eq!((renamed, removed), (Ok(()), Ok(())));
        assert_eq!(tcp == Some(Errno::EACCES as i32), said.contains("no TCP"), "{said}");
        assert_eq!(signal == Err(Errno::EPERM), said.contains("no signals"), "{said}");
    }

    #[test]
    fn the_filter_denies_what_is_not_in_the_list_and_the_thread_goes_on() {
        let dir = scratch("calls");
        let (here, at) = (dir.clone(), File::open(&dir).unwrap());
        let run = move || {
            let count = calls::restrict(Needs::Descriptors).ok()?;
            let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
            let set = setrlimit(Resource::RLIMIT_NOFILE, soft, hard);
            let renamed = renameat(AT_FDCWD, &here.join("old"), AT_FDCWD, &here.join("new"));
            let denied = [
                errno(File::open(&here)),
                errno(UnixDatagram::unbound()),
                errno(at.set_len(0)),
                errno(std::process::Command::new("true").status()),
                errno(thread::Builder::new().spawn(|| ())),
                errno(kill(Pid::this(), Some(Signal::SIGTERM)).map_err(io::Error::from)),
                errno(set.map_err(io::Error::from)),
                errno(renamed.map_err(io::Error::from)),
            ];
            Some((count, denied, at.metadata().is_ok()))
        };
        let found = thread::spawn(run).join().unwrap();
        fs::remove_dir_all(dir).unwrap();
        let Some((count, denied, looks)) = found else {
            eprintln!("SKIP seccomp(2) takes no filter here");
            return;
        };
        assert_eq!(denied, [Some(Errno::EPERM as i32); 8]);
        assert!(looks && (30..50).contains(&count), "{count}");
    }
}
