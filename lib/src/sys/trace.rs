//! Tracing of system calls: ptrace(2), with signals of any number, which nix does not have.

use nix::errno::Errno;
use nix::libc;
use nix::unistd::Pid;

/// struct ptrace_syscall_info of linux/ptrace.h, without the parts that a stop at the entry of a
/// system call does not have.
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

/// The reason for which a tracee has stopped, or its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceStop {
    /// The entry or the exit of a system call: syscall-stop.
    Call,
    /// It has made a child, which is a tracee too: PTRACE_EVENT stop.
    Child,
    /// It has been attached, or interrupted: PTRACE_EVENT_STOP.
    Begun,
    /// A signal has stopped it and all its threads: group-stop.
    Group,
    /// A signal is to be delivered: signal-delivery-stop.
    Signal(i32),
    /// It has ended.
    Ended,
}

/// Waits for any tracee or child to stop or end: waitpid(2) with __WALL. Fails with ECHILD if there
/// is none.
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

/// The number and arguments of the system call at whose entry a tracee has stopped; none at its
/// exit: PTRACE_GET_SYSCALL_INFO, Linux 5.3.
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

/// Restarts a tracee until its next system call, and delivers this signal to it unless it is zero:
/// PTRACE_SYSCALL.
pub fn to_next_syscall(pid: Pid, signal: i32) -> nix::Result<()> {
    request(libc::PTRACE_SYSCALL, pid, signal)
}

/// Leaves a tracee in its group-stop, but lets it be continued by SIGCONT: PTRACE_LISTEN.
pub fn listen(pid: Pid) -> nix::Result<()> {
    request(libc::PTRACE_LISTEN as libc::c_uint, pid, 0)
}

/// Detaches a tracee, and delivers this signal to it unless it is zero: PTRACE_DETACH.
pub fn detach(pid: Pid, signal: i32) -> nix::Result<()> {
    request(libc::PTRACE_DETACH, pid, signal)
}

/// Permits a process to trace this one where Yama permits it to ancestors only: PR_SET_PTRACER of
/// prctl(2). Without Yama the call fails, and is not needed.
pub fn allow(tracer: Pid) {
    // SAFETY: an integer.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, tracer.as_raw() as libc::c_ulong, 0, 0, 0) };
}
