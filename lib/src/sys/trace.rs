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

impl TraceStop {
    /// The reason for which a tracee has stopped: a signal, and above its 8 bits an event.
    fn new(code: i32) -> TraceStop {
        let (signal, event) = (code & 0xff, code >> 8);
        match event {
            PTRACE_EVENT_STOP if signal == libc::SIGTRAP => TraceStop::Begun,
            PTRACE_EVENT_STOP => TraceStop::Group,
            0 if signal == libc::SIGTRAP | 0x80 => TraceStop::Call,
            0 => TraceStop::Signal(signal),
            _ => TraceStop::Child,
        }
    }
}

/// Waits for any tracee or child to stop or end: waitpid(2) with __WALL. Fails with ECHILD if there
/// is none.
pub fn wait() -> nix::Result<(Pid, TraceStop)> {
    let mut status = 0;
    // SAFETY: the call fills one int.
    let pid = Errno::result(unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL) })?;
    let stop = match libc::WIFSTOPPED(status) {
        true => TraceStop::new(status >> 8),
        false => TraceStop::Ended,
    };
    Ok((Pid::from_raw(pid), stop))
}

/// The reason for which a tracee has stopped, told once for each stop, without waiting: waitid(2).
/// None if it runs, or has ended. Fails with ECHILD if it is no tracee of this thread.
pub fn stop_of(tracee: Pid) -> nix::Result<Option<TraceStop>> {
    // SAFETY: a siginfo_t is plain data, for which zero is valid; the call fills it.
    let (found, info) = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let how = libc::WSTOPPED | libc::WNOHANG | libc::__WALL;
        (libc::waitid(libc::P_PID, tracee.as_raw() as libc::id_t, &raw mut info, how), info)
    };
    Errno::result(found)?;
    // SAFETY: the kernel has filled these fields, or left them zero.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    Ok((pid != 0).then(|| TraceStop::new(status)))
}

/// Takes note that a tracee has ended, so that its parent is told: waitpid(2) with WNOHANG.
pub fn reap(tracee: Pid) {
    let how = libc::__WALL | libc::WNOHANG;
    // SAFETY: no status is asked for.
    unsafe { libc::waitpid(tracee.as_raw(), std::ptr::null_mut(), how) };
}

/// AUDIT_ARCH_X86_64 of linux/audit.h: the calling convention of 64-bit programs, and of x32.
pub const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

/// A system call as the registers of a stopped tracee show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptedCall {
    /// Its number; negative if the tracee is in no system call.
    pub number: i64,
    /// Its result, or a negative errno.
    pub result: i64,
    /// Its arguments.
    pub args: [u64; 6],
    /// The address of the instruction after it.
    pub ip: u64,
    /// Its calling convention: [`AUDIT_ARCH_X86_64`] or another.
    pub arch: u32,
}

/// The system call that a stopped tracee is in: PTRACE_GETREGSET, PTRACE_GET_SYSCALL_INFO (Linux
/// 5.3). None for a 32-bit program, and on machines other than x86_64.
#[cfg(target_arch = "x86_64")]
pub fn interrupted_call(tracee: Pid) -> nix::Result<Option<InterruptedCall>> {
    let mut regs = std::mem::MaybeUninit::<libc::user_regs_struct>::uninit();
    let size = size_of::<libc::user_regs_struct>();
    let mut into = libc::iovec { iov_base: regs.as_mut_ptr().cast(), iov_len: size };
    let mut info = SyscallInfo::default();
    // SAFETY: the kernel fills at most as many bytes as each of the two is told.
    unsafe {
        let request = libc::PTRACE_GETREGSET as _;
        Errno::result(libc::ptrace(request, tracee.as_raw(), libc::NT_PRSTATUS, &raw mut into))?;
        let size = size_of::<SyscallInfo>();
        let request = PTRACE_GET_SYSCALL_INFO as _;
        Errno::result(libc::ptrace(request, tracee.as_raw(), size, &raw mut info))?;
    }
    // The registers of a 32-bit program are 68 bytes.
    if into.iov_len != size {
        return Ok(None);
    }
    // SAFETY: the kernel has filled all of them.
    let regs = unsafe { regs.assume_init() };
    Ok(Some(InterruptedCall {
        number: regs.orig_rax as i64,
        result: regs.rax as i64,
        args: [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9],
        ip: regs.rip,
        arch: info.arch,
    }))
}

/// The system call that a stopped tracee is in: none is known on this machine.
#[cfg(not(target_arch = "x86_64"))]
pub fn interrupted_call(_: Pid) -> nix::Result<Option<InterruptedCall>> {
    Ok(None)
}

/// Sets the result of the system call that a stopped tracee is in: PTRACE_POKEUSER, which changes no
/// other register.
#[cfg(target_arch = "x86_64")]
pub fn set_result(tracee: Pid, result: i64) -> nix::Result<()> {
    let at = std::mem::offset_of!(libc::user_regs_struct, rax);
    let request = libc::PTRACE_POKEUSER as _;
    // SAFETY: the request reads and writes no memory of ours.
    Errno::result(unsafe { libc::ptrace(request, tracee.as_raw(), at, result) }).map(drop)
}

/// Sets the result of a system call: not on this machine.
#[cfg(not(target_arch = "x86_64"))]
pub fn set_result(_: Pid, _: i64) -> nix::Result<()> {
    Err(Errno::ENOSYS)
}

/// Says whether a tracee is stopped: PTRACE_GETSIGINFO fails with ESRCH if it runs or has ended.
pub fn is_stopped(tracee: Pid) -> bool {
    nix::sys::ptrace::getsiginfo(tracee) != Err(Errno::ESRCH)
}

/// Restarts a tracee that has stopped for a signal, and delivers this signal to it unless it is zero:
/// PTRACE_CONT.
pub fn resume(tracee: Pid, signal: i32) -> nix::Result<()> {
    request(libc::PTRACE_CONT, tracee, signal)
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
