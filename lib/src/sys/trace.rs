//! What a tracer of system calls needs and nix has not: ptrace(2) with signals of any number.

use nix::errno::Errno;
use nix::libc;
use nix::unistd::Pid;

/// struct ptrace_syscall_info of linux/ptrace.h, as far as the entry into a system call fills it.
#[repr(C)]
#[derive(Default)]
struct SyscallInfo {
    op: u8,
    pad: [u8; 3],
    arch: u32,
    instruction: u64,
    stack: u64,
    number: u64,
    args: [u64; 6],
}

/// linux/ptrace.h, for the musl library too, which has no name for it in libc.
const PTRACE_GET_SYSCALL_INFO: libc::c_uint = 0x420e;
const PTRACE_SYSCALL_INFO_ENTRY: u8 = 1;
const PTRACE_EVENT_STOP: i32 = 128;

/// Why a tracee has stopped, or that it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceStop {
    /// Before or after a system call.
    Call,
    /// It made a child, which is a tracee too.
    Child,
    /// It was made, or interrupted.
    Begun,
    /// A signal has stopped it, and all its threads.
    Group,
    /// A signal is about to be delivered.
    Signal(i32),
    /// It is no more.
    Ended,
}

/// Waits for any tracee: waitpid(2) with __WALL. Fails with ECHILD if there is none.
pub fn wait() -> nix::Result<(Pid, TraceStop)> {
    let mut status = 0;
    // SAFETY: the call fills one int.
    let pid = Errno::result(unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL) })?;
    let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
    let stop = match (libc::WIFSTOPPED(status), event) {
        (false, _) => TraceStop::Ended,
        (_, PTRACE_EVENT_STOP) if signal == libc::SIGTRAP => TraceStop::Begun,
        (_, PTRACE_EVENT_STOP) => TraceStop::Group,
        (_, 0) if signal == libc::SIGTRAP | 0x80 => TraceStop::Call,
        (_, 0) => TraceStop::Signal(signal),
        _ => TraceStop::Child,
    };
    Ok((Pid::from_raw(pid), stop))
}

/// Number and arguments of the system call that a tracee is about to make; none if it has made it.
/// PTRACE_GET_SYSCALL_INFO, Linux 5.3.
pub fn call(pid: Pid) -> nix::Result<Option<(libc::c_long, [u64; 6])>> {
    let mut info = SyscallInfo::default();
    // SAFETY: the kernel fills at most as many bytes as it is told, which are those of the struct.
    Errno::result(unsafe {
        libc::ptrace(PTRACE_GET_SYSCALL_INFO, pid.as_raw(), size_of::<SyscallInfo>(), &raw mut info)
    })?;
    let entry = info.op == PTRACE_SYSCALL_INFO_ENTRY;
    Ok(entry.then_some((info.number as libc::c_long, info.args)))
}

fn request(what: libc::c_uint, pid: Pid, signal: i32) -> nix::Result<()> {
    // SAFETY: none of the requests used here reads or writes memory of ours.
    Errno::result(unsafe { libc::ptrace(what, pid.as_raw(), 0, libc::c_long::from(signal)) })
        .map(drop)
}

/// Lets a tracee go on, with this signal unless it is zero, to its next system call.
pub fn go_on(pid: Pid, signal: i32) -> nix::Result<()> {
    request(libc::PTRACE_SYSCALL, pid, signal)
}

/// Leaves a tracee stopped as the signal left it: PTRACE_LISTEN.
pub fn listen(pid: Pid) -> nix::Result<()> {
    request(libc::PTRACE_LISTEN as libc::c_uint, pid, 0)
}

/// Lets a tracee go for good, with this signal unless it is zero.
pub fn let_go(pid: Pid, signal: i32) -> nix::Result<()> {
    request(libc::PTRACE_DETACH, pid, signal)
}

/// Lets a process trace this one where Yama lets only ancestors do so: PR_SET_PTRACER. Without
/// Yama it fails, and nothing is lost.
pub fn allow(tracer: Pid) {
    // SAFETY: an integer.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, tracer.as_raw() as libc::c_ulong, 0, 0, 0) };
}
