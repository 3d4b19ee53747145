//! The system calls that remain: a filter of seccomp(2), on the machines that the crate seccompiler knows.

use super::Needs;
use nix::libc;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

/// Gives up all system calls but those of [`rules`]. Returns how many remain.
pub(super) fn restrict(needs: Needs<'_>) -> Result<usize, seccompiler::Error> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let rules = rules(needs)?;
    let count = rules.len();
    // A call that is not in the list fails, and does not end the process: a version of libc may make
    // one that this list does not know, and then the tool goes on or has a message and a status. For
    // code that an image has brought in there is no difference, since the call does nothing.
    let denied = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, denied, SeccompAction::Allow, arch)?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program)?;
    Ok(count)
}

/// The system calls that are allowed, each with the rules of which one must hold; none if its arguments
/// do not matter.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The system calls on open descriptors, on memory and on the process itself, of glibc and of musl.
const CALLS: &[i64] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_ppoll,
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    // The kernel has poll(2) go on with it after SIGCONT.
    libc::SYS_restart_syscall,
    libc::SYS_getpid,
    libc::SYS_gettid,
    // getpgrp(2) on a machine that has no system call of this name.
    libc::SYS_getpgid,
    // The seeds of hash tables.
    libc::SYS_getrandom,
    // Where the vDSO has no clock.
    libc::SYS_clock_gettime,
    libc::SYS_sched_yield,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Those of x86_64 that newer machines do not have.
#[cfg(target_arch = "x86_64")]
const OLD_CALLS: &[i64] = &[libc::SYS_poll, libc::SYS_getpgrp];
#[cfg(not(target_arch = "x86_64"))]
const OLD_CALLS: &[i64] = &[];

/// The calls that publish a file: see `NewFile`.
const NAMING_CALLS: &[i64] =
    &[libc::SYS_fsync, libc::SYS_linkat, libc::SYS_renameat, libc::SYS_unlinkat];

/// TCGETS, TIOCGPGRP and TIOCGWINSZ of asm-generic/ioctls.h, which have one type here for each libc, and
/// TCGETS2, with which isatty(3) asks in newer versions of glibc. TIOCSTI, which types, is not among them.
const REQUESTS: [u64; 4] = [0x5401, 0x540f, 0x5413, 0x802c_542a];

fn rules(needs: Needs<'_>) -> Result<Rules, BackendError> {
    let pid = u64::from(std::process::id());
    let abort = is(1, libc::SIGABRT as u64);
    let mut rules: Rules = [CALLS, OLD_CALLS].concat().into_iter().map(|n| (n, vec![])).collect();
    if let Needs::NamesIn(_) = needs {
        rules.extend(NAMING_CALLS.iter().map(|&number| (number, vec![])));
    }
    // fstat(3) of newer versions of glibc: AT_EMPTY_PATH, so that it looks at no name.
    for (number, flags) in [(libc::SYS_newfstatat, 3), (libc::SYS_statx, 2)] {
        let flag = libc::AT_EMPTY_PATH as u64;
        let has = SeccompCmpOp::MaskedEq(flag);
        let rule = SeccompCondition::new(flags, SeccompCmpArgLen::Dword, has, flag)?;
        rules.insert(number, vec![SeccompRule::new(vec![rule])?]);
    }
    // No memory becomes code.
    for number in [libc::SYS_mmap, libc::SYS_mprotect] {
        let exec = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
        let none = SeccompCondition::new(2, SeccompCmpArgLen::Dword, exec, 0)?;
        rules.insert(number, vec![SeccompRule::new(vec![none])?]);
    }
    // The lock of the progress line, and std, which looks whether a descriptor is open before it closes
    // it. Other commands have signals sent, for example.
    let commands = [libc::F_GETFD, libc::F_GETFL, libc::F_GETLK, libc::F_SETLK];
    let commands = commands.map(|command| one(is(1, command as u64)));
    rules.insert(libc::SYS_fcntl, commands.into_iter().collect::<Result<_, _>>()?);
    let requests = REQUESTS.map(|request| one(is(1, request)));
    rules.insert(libc::SYS_ioctl, requests.into_iter().collect::<Result<_, _>>()?);
    // The limit of open files is read, of this process, and not set.
    let no_limit = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    rules.insert(libc::SYS_prlimit64, vec![SeccompRule::new(vec![is(0, 0)?, no_limit])?]);
    // abort(3) of glibc and of musl.
    let last = is(2, libc::SIGABRT as u64)?;
    rules.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![is(0, pid)?, last])?]);
    rules.insert(libc::SYS_tkill, vec![SeccompRule::new(vec![is(0, pid)?, abort?])?]);
    Ok(rules)
}

/// The condition that the low 32 bits of an argument have a value.
fn is(argument: u8, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

fn one(condition: Result<SeccompCondition, BackendError>) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![condition?])
}
