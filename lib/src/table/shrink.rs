//! Shrinks the descriptor table of this process to the smallest size for its open numbers.

use crate::error::{Error, Result};
use crate::proc;
use crate::sys;

/// Shrinks the table of this process if it has more than `capacity` slots.
///
/// The kernel never shrinks a table in place. It copies a shared table on unshare(2), and dup_fd of
/// fs/file.c then allocates only the size that the highest open number needs. So a child shares the
/// table while unshare(2) is called. execve(2) copies only a shared table, and otherwise keeps the
/// size.
pub fn to(capacity: u64) -> Result<()> {
    match proc::own_capacity() {
        Ok(current) if current <= capacity => Ok(()),
        // A table with no free number below the soft limit has no room for a file of /proc.
        _ => now(),
    }
}

/// Shrinks the table of this process to the size for its open numbers.
pub fn now() -> Result<()> {
    sys::clone_files::copy_table().map_err(Error::no_process)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clone_files::in_own_table;
    use nix::fcntl::{FcntlArg, fcntl};

    #[test]
    fn a_table_shrinks_to_the_size_for_its_highest_number() {
        in_own_table(|| {
            let file = std::fs::File::open("/dev/null").unwrap();
            assert_eq!(proc::own_capacity().unwrap(), 64);
            let high = fcntl(&file, FcntlArg::F_DUPFD_CLOEXEC(900)).unwrap();
            let middle = fcntl(&file, FcntlArg::F_DUPFD_CLOEXEC(200)).unwrap();
            assert_eq!(proc::own_capacity().unwrap(), 1024);
            nix::unistd::close(high).unwrap();
            assert_eq!(proc::own_capacity().unwrap(), 1024);
            // A larger capacity changes nothing.
            to(1024).unwrap();
            assert_eq!(proc::own_capacity().unwrap(), 1024);
            to(64).unwrap();
            assert_eq!(proc::own_capacity().unwrap(), 256);
            nix::unistd::close(middle).unwrap();
            to(64).unwrap();
            assert_eq!(proc::own_capacity().unwrap(), 64);
        });
    }
}
