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
    /// To give a file a name in this directory, and to replace and remove names of files there.
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
            (ruleset.add_rule(rule)?, "no files but new names in one directory")
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
