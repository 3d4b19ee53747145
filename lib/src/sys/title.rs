//! What ps(1) shows as the arguments of this process.

use std::ptr::NonNull;

/// Where the arguments stand in memory, followed by the environment.
pub struct Title {
    start: NonNull<u8>,
    room: usize,
}

impl Title {
    /// Finds them: fields 48 and 51 of /proc/self/stat, arg_start and env_end.
    pub fn find() -> Option<Title> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // The name, which may hold anything, ends with the last parenthesis; field 3 comes next.
        let field = |number: usize| {
            stat.rsplit(')').next()?.split_whitespace().nth(number - 3)?.parse::<usize>().ok()
        };
        let (start, end) = (field(48)?, field(51)?);
        let start = NonNull::new(std::ptr::with_exposed_provenance_mut(start))?;
        Some(Title { start, room: end.checked_sub(start.as_ptr().addr())? })
    }

    /// Overwrites arguments and environment, which nobody may ask for any more. The kernel takes
    /// arguments that do not end with a NUL for a title that goes on where the environment was
    /// (get_mm_cmdline in fs/proc/base.c).
    pub fn set(&self, title: &str) {
        let title = title.as_bytes();
        let len = title.len().min(self.room.saturating_sub(1));
        // SAFETY: the kernel put the strings there, on the stack, for this process to do with them as
        // it likes, and the range ends where they do.
        unsafe {
            self.start.copy_from_nonoverlapping(NonNull::from(title).cast(), len);
            self.start.add(len).write_bytes(0, self.room - len);
        }
    }
}
