//! What becomes of a system call in which a stop has interrupted a thread. Numbers are those of
//! x86_64.
//!
//! The result that the call has at the stop says what the kernel does when the thread continues:
//! include/linux/errno.h, arch_do_signal_or_restart in arch/x86/kernel/signal.c.
//!
//! - ERESTARTSYS, ERESTARTNOINTR and ERESTARTNOHAND: the call is made again. That is left as it is.
//! - ERESTART_RESTARTBLOCK: restart_syscall(2) resumes the call with the rest of its time. That is
//!   left as it is, unless a seccomp filter denies restart_syscall(2).
//! - EINTR: the program gets it, as it would after SIGSTOP and SIGCONT (signal(7)). The calls that
//!   end so without having done anything are made again: ERESTARTNOHAND, by which they still end with
//!   EINTR if a handler runs.

use crate::proc::ThreadStatus;
use crate::seccomp::{CallData, Instruction, allows};
use crate::sys::seccomp;
use crate::sys::trace::{self, AUDIT_ARCH_X86_64, InterruptedCall};
use nix::errno::Errno;
use nix::unistd::Pid;

/// Results of a call inside the kernel: include/linux/errno.h. No program sees them.
const ERESTARTNOHAND: i64 = 514;
const ERESTART_RESTARTBLOCK: i64 = 516;
const EINTR: i64 = 4;

/// The number of restart_syscall(2).
const RESTART_SYSCALL: i64 = 219;
/// The bit of the numbers of x32 programs, which have other numbers for many calls.
const X32_BIT: i64 = 1 << 30;

/// When a call that fails with EINTR has done nothing, so that it can be made again.
#[derive(Clone, Copy, Debug)]
enum Repeatable {
    Always,
    /// If the descriptor in this argument is a socket, which has SO_RCVTIMEO or SO_SNDTIMEO.
    OnSocket(usize),
    /// As OnSocket, with one of two arguments.
    OnEitherSocket(usize, usize),
    /// If this argument is zero.
    WithZero(usize),
}

/// The calls that end with EINTR when they are interrupted, even if no handler runs.
///
/// Socket calls do so if the socket has SO_RCVTIMEO or SO_SNDTIMEO (sock_intr_errno of
/// net/sock.h); without, their result is ERESTARTSYS.
const REPEATABLE: &[(i64, Repeatable)] = &[
    (0, Repeatable::OnSocket(0)),            // read
    (1, Repeatable::OnSocket(0)),            // write
    (19, Repeatable::OnSocket(0)),           // readv
    (20, Repeatable::OnSocket(0)),           // writev
    (40, Repeatable::OnSocket(0)),           // sendfile
    (42, Repeatable::Always),                // connect
    (43, Repeatable::Always),                // accept
    (44, Repeatable::Always),                // sendto
    (45, Repeatable::Always),                // recvfrom
    (46, Repeatable::Always),                // sendmsg
    (47, Repeatable::Always),                // recvmsg
    (65, Repeatable::Always),                // semop
    (128, Repeatable::Always),               // rt_sigtimedwait, for sigwaitinfo(3) too
    (208, Repeatable::Always),               // io_getevents
    (220, Repeatable::Always),               // semtimedop
    (232, Repeatable::Always),               // epoll_wait
    (275, Repeatable::OnEitherSocket(0, 2)), // splice
    (281, Repeatable::Always),               // epoll_pwait
    (288, Repeatable::Always),               // accept4
    (299, Repeatable::Always),               // recvmmsg
    (307, Repeatable::Always),               // sendmmsg
    (327, Repeatable::OnSocket(0)),          // preadv2
    (328, Repeatable::OnSocket(0)),          // pwritev2
    // Its number of submissions is its result, if there are any.
    (426, Repeatable::WithZero(1)), // io_uring_enter
    (441, Repeatable::Always),      // epoll_pwait2
];

/// The facts about a thread on which the result depends. They are looked up when they are needed.
trait Facts {
    /// Says whether a descriptor is a socket.
    fn is_socket(&self, fd: u64) -> bool;
    /// Says whether a signal is pending that will stop the thread. Then the call would have ended
    /// with EINTR without a tracer, too.
    fn will_stop(&self) -> bool;
    /// Says whether the thread can make the call with this number. Unknown means no.
    fn allows(&self, call: &InterruptedCall, number: i64) -> bool;
}

/// The result to set for an interrupted call, so that it goes on. None: the result that it has.
fn result_for(call: &InterruptedCall, facts: &impl Facts) -> Option<i64> {
    match -call.result {
        _ if call.number < 0 => None,
        ERESTART_RESTARTBLOCK if !facts.allows(call, RESTART_SYSCALL) => {
            // A filter that came after an earlier restart: nothing tells which call it was.
            let known = call.number != RESTART_SYSCALL;
            Some(if known { -ERESTARTNOHAND } else { -EINTR })
        }
        EINTR => {
            let (_, when) = REPEATABLE.iter().find(|(number, _)| *number == call.number)?;
            let is_socket = |argument: usize| facts.is_socket(call.args[argument]);
            let repeatable = match *when {
                Repeatable::Always => true,
                Repeatable::OnSocket(argument) => is_socket(argument),
                Repeatable::OnEitherSocket(one, two) => is_socket(one) || is_socket(two),
                Repeatable::WithZero(argument) => call.args[argument] as u32 == 0,
            };
            (repeatable && !facts.will_stop()).then_some(-ERESTARTNOHAND)
        }
        _ => None,
    }
}

/// A stopped thread.
struct Stopped(Pid);

impl Facts for Stopped {
    fn is_socket(&self, fd: u64) -> bool {
        let path = format!("/proc/{}/fd/{}", self.0, fd as i32);
        std::fs::read_link(path)
            .is_ok_and(|link| link.as_os_str().as_encoded_bytes().starts_with(b"socket:"))
    }

    fn will_stop(&self) -> bool {
        ThreadStatus::of(self.0.as_raw()).is_some_and(|status| status.will_stop)
    }

    fn allows(&self, call: &InterruptedCall, number: i64) -> bool {
        match ThreadStatus::of(self.0.as_raw()).map(|status| status.seccomp) {
            Some(0) => true,
            Some(2) => {
                let InterruptedCall { args, ip, arch, .. } = *call;
                let call = CallData { number: number as i32, arch, ip, args };
                filters(self.0).is_ok_and(|all| allows(all.iter().map(Vec::as_slice), &call))
            }
            // Strict mode allows four calls: seccomp(2).
            _ => false,
        }
    }
}

/// All seccomp filters of a stopped thread. Fails as [`seccomp::filter`] does.
fn filters(thread: Pid) -> nix::Result<Vec<Vec<Instruction>>> {
    let mut filters = Vec::new();
    loop {
        match seccomp::filter(thread, filters.len()) {
            Ok(filter) => filters.push(filter),
            Err(Errno::ENOENT) if !filters.is_empty() => return Ok(filters),
            Err(errno) => return Err(errno),
        }
    }
}

/// Lets the call in which a thread has stopped go on when the thread continues. The thread must be
/// at a PTRACE_EVENT_STOP: at the exit of a system call the kernel looks at the result no more.
///
/// No register but the result is changed, and that only inside a system call. So a restartable
/// sequence (rseq(2)), which contains no system call, is left alone.
///
/// Gives false if nothing is known of its call: it is a 32-bit program, or this machine is no
/// x86_64. Fails with ESRCH if it has ended.
pub(super) fn keep_call(thread: Pid) -> nix::Result<bool> {
    let Some(call) = trace::interrupted_call(thread)? else { return Ok(false) };
    if call.number >= 0 && (call.arch != AUDIT_ARCH_X86_64 || call.number & X32_BIT != 0) {
        return Ok(false);
    }
    if let Some(result) = result_for(&call, &Stopped(thread)) {
        trace::set_result(thread, result)?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Known {
        socket: bool,
        will_stop: bool,
        restarts: bool,
    }

    const PLAIN: Known = Known { socket: false, will_stop: false, restarts: true };

    impl Facts for Known {
        fn is_socket(&self, fd: u64) -> bool {
            self.socket && fd == 7
        }

        fn will_stop(&self) -> bool {
            self.will_stop
        }

        fn allows(&self, _: &InterruptedCall, number: i64) -> bool {
            assert_eq!(number, RESTART_SYSCALL);
            self.restarts
        }
    }

    fn call(number: i64, result: i64, args: [u64; 6]) -> InterruptedCall {
        InterruptedCall { number, result, args, ip: 0, arch: AUDIT_ARCH_X86_64 }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_numbers_are_those_of_the_calls() {
        use nix::libc::*;
        let numbers: Vec<i64> = REPEATABLE.iter().map(|(number, _)| *number).collect();
        let calls = [
            SYS_read,
            SYS_write,
            SYS_readv,
            SYS_writev,
            SYS_sendfile,
            SYS_connect,
            SYS_accept,
            SYS_sendto,
            SYS_recvfrom,
            SYS_sendmsg,
            SYS_recvmsg,
            SYS_semop,
            SYS_rt_sigtimedwait,
            SYS_io_getevents,
            SYS_semtimedop,
            SYS_epoll_wait,
            SYS_splice,
            SYS_epoll_pwait,
            SYS_accept4,
            SYS_recvmmsg,
            SYS_sendmmsg,
            SYS_preadv2,
            SYS_pwritev2,
            SYS_io_uring_enter,
            SYS_epoll_pwait2,
        ];
        assert_eq!(numbers, calls);
        assert_eq!(RESTART_SYSCALL, SYS_restart_syscall);
    }

    #[test]
    fn an_interrupted_wait_is_made_again_unless_a_signal_will_stop_the_thread() {
        let wait = call(232, -4, [3, 0, 0, 0, 0, 0]);
        assert_eq!(result_for(&wait, &PLAIN), Some(-514));
        assert_eq!(result_for(&wait, &Known { will_stop: true, ..PLAIN }), None);
        // No errno, another errno, no system call, a call that is not in the list.
        for other in [
            call(232, 1, [0; 6]),
            call(232, -11, [0; 6]),
            call(-1, -4, [0; 6]),
            call(35, -4, [0; 6]),
        ] {
            assert_eq!(result_for(&other, &PLAIN), None, "{other:?}");
        }
    }

    #[test]
    fn results_by_which_the_kernel_makes_a_call_again_are_left() {
        for result in [-512, -513, -514] {
            assert_eq!(
                result_for(&call(0, result, [7; 6]), &Known { socket: true, ..PLAIN }),
                None
            );
        }
    }

    #[test]
    fn a_read_is_made_again_on_a_socket_alone() {
        let socket = Known { socket: true, ..PLAIN };
        let read = |fd| call(0, -4, [fd, 0, 0, 0, 0, 0]);
        assert_eq!(result_for(&read(7), &socket), Some(-514));
        assert_eq!((result_for(&read(8), &socket), result_for(&read(7), &PLAIN)), (None, None));
        let splice = |from, to| call(275, -4, [from, 0, to, 0, 0, 0]);
        assert_eq!(result_for(&splice(7, 8), &socket), Some(-514));
        assert_eq!(result_for(&splice(8, 7), &socket), Some(-514));
        assert_eq!(result_for(&splice(8, 9), &socket), None);
    }

    #[test]
    fn io_uring_enter_is_made_again_if_it_submits_nothing() {
        let enter = |submit| call(426, -4, [3, submit, 1, 1, 0, 0]);
        assert_eq!(
            (result_for(&enter(0), &PLAIN), result_for(&enter(2), &PLAIN)),
            (Some(-514), None)
        );
    }

    #[test]
    fn a_sleep_starts_anew_only_if_it_could_not_be_resumed() {
        let sleep = call(35, -516, [0; 6]);
        let denied = Known { restarts: false, ..PLAIN };
        assert_eq!((result_for(&sleep, &PLAIN), result_for(&sleep, &denied)), (None, Some(-514)));
        // Sleep that was resumed before: restart_syscall would be made again, which is denied.
        let resumed = call(RESTART_SYSCALL, -516, [0; 6]);
        assert_eq!((result_for(&resumed, &PLAIN), result_for(&resumed, &denied)), (None, Some(-4)));
    }
}
