//! Opens and reads files and directories of /proc.

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Opens a directory to read it, or to open what is in it.
pub(super) fn directory(at: BorrowedFd<'_>, name: &str) -> nix::Result<OwnedFd> {
    openat(at, name, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// Reads a whole file of a directory of /proc.
pub(super) fn read_at(dir: BorrowedFd<'_>, name: &str) -> nix::Result<Vec<u8>> {
    let file = openat(dir, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut text = Vec::new();
    read_whole(file, &mut text, false)?;
    Ok(text)
}

/// Reads a file of /proc to its end, into a buffer that may have been used before.
///
/// The kernel gives a file that is a `single` record whole, as far as there is room. Of any other it
/// gives a page at most at a time, of whole records (seq_read in fs/seq_file.c), so that only a read
/// of nothing is the end.
pub(super) fn read_whole(file: OwnedFd, into: &mut Vec<u8>, single: bool) -> nix::Result<()> {
    const STEP: usize = 4096;
    let mut have = 0;
    loop {
        into.resize((have + STEP).max(into.capacity()), 0);
        let count = nix::unistd::read(file.as_fd(), &mut into[have..])?;
        have += count;
        if count == 0 || single && have < into.len() {
            into.truncate(have);
            return Ok(());
        }
    }
}

/// The number of `name:[number]`, as links of sockets, pipes and namespaces have it. None if the link
/// is another.
pub fn bracketed(link: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(link).ok()?;
    text.split_once(":[")?.1.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_in_brackets_is_found() {
        assert_eq!(bracketed(b"socket:[4711]"), Some(4711));
        for other in
            [&b"socket:[]"[..], b"socket:[7", b"/tmp/7", b"anon_inode:[eventfd]", b"\xff:[7]"]
        {
            assert_eq!(bracketed(other), None, "{}", other.escape_ascii());
        }
    }

    #[test]
    fn a_file_of_many_pages_and_records_is_read_to_its_end() {
        let dir = openat(nix::fcntl::AT_FDCWD, "/proc", OFlag::O_PATH, Mode::empty()).unwrap();
        for name in ["kallsyms", "cpuinfo"] {
            let Ok(text) = std::fs::read(format!("/proc/{name}")) else { continue };
            let ours = read_at(dir.as_fd(), name).unwrap();
            let lines = |text: &[u8]| text.iter().filter(|&&byte| byte == b'\n').count();
            assert_eq!(lines(&ours), lines(&text), "{name}");
        }
    }
}
