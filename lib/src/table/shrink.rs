//! Shrinks the descriptor table of this process to the smallest size for its open numbers.

use crate::error::Result;
use crate::proc;
use crate::sys;

/// Shrinks the table of this process if it has more than `capacity` slots.
///
/// The kernel never shrinks a table in place. It copies a shared table on unshare(2), and dup_fd of
/// fs/file.c then allocates only the size that the highest open number needs. So a child shares the
/// table while unshare(2) is called. execve(2) copies only a shared table, and otherwise keeps the
/// size.
pub fn to(capacity: u64) -> Result<()> {
    if proc::own_capacity()? <= capacity {
        return Ok(());
    }
    now()
}

/// Shrinks the table of this process to the size for its open numbers.
pub fn now() -> Result<()> {
    Ok(sys::clone_files::copy_table()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::{CloneFlags, unshare};

    #[test]
    fn a_table_shrinks_to_the_size_for_its_highest_number() {
        // A thread with its own table, so that other tests are not affected.
        std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_FILES).unwrap();
            let file = std::fs::File::open("/dev/null").unwrap();
            let high =
                nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(900)).unwrap();
            assert_eq!(proc::own_capacity().unwrap(), 1024);
            nix::unistd::close(high).unwrap();
            assert_eq!(proc::own_capacity().unwrap(), 1024);
            to(64).unwrap();
            // The copy has the descriptors of other tests too.
            let open = std::fs::read_dir("/proc/thread-self/fd").unwrap();
            let number = |entry: std::io::Result<std::fs::DirEntry>| {
                entry.unwrap().file_name().to_str().unwrap().parse::<u32>().unwrap()
            };
            let highest = open.map(number).max();
            assert_eq!(proc::own_capacity().unwrap(), crate::placement::capacity(highest));
            assert!(highest < Some(512));
        })
        .join()
        .unwrap();
    }
}
