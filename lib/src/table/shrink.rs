//! Makes the table of this process the smallest that holds what is open.

use crate::error::Result;
use crate::proc;
use crate::sys;

/// Shrinks the table of this process if it has more than `capacity` slots.
///
/// The kernel makes a table smaller only when it copies it, and copies it only if it is shared:
/// dup_fd in fs/file.c takes the size that the highest open number asks for. So a child shares
/// the table while unshare(2) makes a copy. execve(2) alone keeps the size.
pub fn to(capacity: u64) -> Result<()> {
    if proc::own_capacity()? <= capacity {
        return Ok(());
    }
    now()
}

/// Shrinks the table of this process to what is open.
pub fn now() -> Result<()> {
    Ok(sys::clone_files::copy_table()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::{CloneFlags, unshare};

    #[test]
    fn a_table_shrinks_to_what_its_highest_number_asks_for() {
        // In a thread with a table of its own, so that other tests keep theirs.
        std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_FILES).unwrap();
            let file = std::fs::File::open("/dev/null").unwrap();
            let high =
                nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(900)).unwrap();
            assert_eq!(proc::own_capacity().unwrap(), 1024);
            nix::unistd::close(high).unwrap();
            assert_eq!(proc::own_capacity().unwrap(), 1024);
            to(64).unwrap();
            // What other tests have open was copied too.
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
