//! The seccomp filters of a tracee: ptrace(2).

use nix::errno::Errno;
use nix::libc;
use nix::unistd::Pid;

/// linux/ptrace.h
const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;

/// The instructions of the filter with this index of a stopped tracee: PTRACE_SECCOMP_GET_FILTER,
/// Linux 4.4.
///
/// Fails with ENOENT if there are not so many filters, with EMEDIUMTYPE if the filter is not a
/// program of classic BPF, and with EACCES without CAP_SYS_ADMIN or if this process has a seccomp
/// filter itself.
pub fn filter(tracee: Pid, index: usize) -> nix::Result<Vec<libc::sock_filter>> {
    let get = |into: *mut libc::sock_filter| {
        // SAFETY: the kernel writes nothing if the address is null, and otherwise the whole filter,
        // for which there is room: a stopped tracee cannot change its filters.
        let count =
            unsafe { libc::ptrace(PTRACE_SECCOMP_GET_FILTER as _, tracee.as_raw(), index, into) };
        Errno::result(count).map(|count| count as usize)
    };
    let none = libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 };
    let mut filter = vec![none; get(std::ptr::null_mut())?];
    get(filter.as_mut_ptr())?;
    Ok(filter)
}

/// What became of a call of a number that no kernel has, under a filter.
#[cfg(test)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    /// The calling convention of this machine: AUDIT_ARCH_*.
    pub(crate) arch: u32,
    /// The address of the instruction after the call.
    pub(crate) ip: u64,
    /// The errno of the call, zero if it succeeded. None if the filter killed the process.
    pub(crate) errno: Option<i32>,
}

#[cfg(test)]
impl Probe {
    /// The number of the call.
    pub(crate) const NUMBER: i32 = 4095;
}

/// Makes a system call. Gives its result, and the address of the instruction after it.
#[cfg(all(test, target_arch = "x86_64"))]
#[inline(never)]
fn call(number: i32, args: [u64; 6]) -> (i64, u64) {
    let (result, ip);
    // SAFETY: no caller gives the number of a call that reads or changes memory.
    unsafe {
        std::arch::asm!(
            "lea {ip}, [rip + 2f]",
            "syscall",
            "2:",
            ip = out(reg) ip,
            inlateout("rax") i64::from(number) => result,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            out("rcx") _,
            out("r11") _,
        );
    }
    (result, ip)
}

/// Makes the call of [`Probe`] in a child that has a filter. None if this machine has no filters.
#[cfg(all(test, target_arch = "x86_64"))]
pub(crate) fn probe(filter: &[libc::sock_filter], args: [u64; 6]) -> Option<Probe> {
    use super::fork::{end, fork_in_test};
    use nix::sys::wait::{WaitStatus, waitpid};
    use std::io::Read;
    use std::os::fd::AsRawFd;

    let mut filter = filter.to_vec();
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    let (read, write) = nix::unistd::pipe().ok()?;
    let child = fork_in_test(|| {
        // SAFETY: prctl reads the program, which outlives it, and write reads an array of its size.
        unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            if libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0
            {
                end(77);
            }
            let result = call(Probe::NUMBER, args).0.to_ne_bytes();
            libc::write(write.as_raw_fd(), result.as_ptr().cast(), result.len());
        }
    });
    drop(write);
    let mut found = Vec::new();
    std::fs::File::from(read).read_to_end(&mut found).ok()?;
    let errno = match waitpid(child, None) {
        Ok(WaitStatus::Exited(_, 77)) => return None,
        Ok(WaitStatus::Exited(..)) => {
            Some(-(i64::from_ne_bytes(found.try_into().expect("a result")) as i32))
        }
        _ => None,
    };
    // The call is made at the same address here.
    let (_, ip) = call(libc::SYS_getpid as i32, [0; 6]);
    Some(Probe { arch: super::trace::AUDIT_ARCH_X86_64, ip, errno })
}

/// None: the address of a call is known on x86_64 only.
#[cfg(all(test, not(target_arch = "x86_64")))]
pub(crate) fn probe(_: &[libc::sock_filter], _: [u64; 6]) -> Option<Probe> {
    None
}

/// Enters the strict mode of seccomp(2), waits for a byte, and ends this thread with the number of
/// bytes that were read. Without seccomp(2) it ends at once.
#[cfg(test)]
pub(crate) fn read_in_strict_mode(fd: std::os::fd::BorrowedFd<'_>) {
    use std::os::fd::AsRawFd;

    let mut byte = 0_u8;
    // SAFETY: read fills one byte; the others take integers. exit_group(2), which _exit would
    // call, is not allowed in this mode.
    unsafe {
        if libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT) == 0 {
            let read = libc::read(fd.as_raw_fd(), (&raw mut byte).cast(), 1);
            libc::syscall(libc::SYS_exit, read);
        }
    }
}
