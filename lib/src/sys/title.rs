//! What ps(1) shows as the arguments of this process: /proc/PID/cmdline.

use nix::libc;
use std::ptr::NonNull;

/// The memory of the arguments, which the environment follows.
pub struct Title {
    start: NonNull<u8>,
    room: usize,
}

impl Title {
    /// Finds it: arg_start and env_end, fields 48 and 51 of proc_pid_stat(5). None where /proc does
    /// not say, and in a process of several threads (field 20), which might read the environment
    /// while it is written to.
    pub fn find() -> Option<Title> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // The name, which may hold anything, ends with the last parenthesis; field 3 comes next.
        let field = |number: usize| {
            stat.rsplit(')').next()?.split_whitespace().nth(number - 3)?.parse::<usize>().ok()
        };
        let (start, end) = (field(48)?, field(51)?);
        let start = NonNull::new(std::ptr::with_exposed_provenance_mut::<u8>(start))?;
        let room = end.checked_sub(start.as_ptr().addr())?;
        (field(20)? == 1).then_some(Title { start, room })
    }

    /// Overwrites the arguments and the environment, which is empty from now on. What does not fit
    /// is cut off.
    ///
    /// The kernel takes arguments that do not end with a NUL for a title that goes on where the
    /// environment was (get_mm_cmdline in fs/proc/base.c).
    pub fn set(&self, title: &str) {
        let title = title.as_bytes();
        let len = title.len().min(self.room.saturating_sub(1));
        // SAFETY: the kernel put the strings there, on the stack, for this process to do with them
        // as it likes, and the range ends where they do. Nobody finds the environment any more, and
        // an argument ends before the range does, since a NUL is last in it.
        unsafe {
            libc::clearenv();
            self.start.copy_from_nonoverlapping(NonNull::from(title).cast(), len);
            self.start.add(len).write_bytes(0, self.room - len);
        }
    }
}
