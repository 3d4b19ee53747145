//! Flags of open(2) as the kernel has them, where the C library's are others.

use nix::libc;

/// O_LARGEFILE of the kernel, which open(2) adds to the flags of all files on a machine of 64 bits:
/// asm/fcntl.h of the architecture. In libc it is 0 there, since a program need not give it.
pub const O_LARGEFILE: u32 =
    if cfg!(any(target_arch = "aarch64", target_arch = "arm", target_arch = "m68k",)) {
        0o400000
    } else if cfg!(any(target_arch = "powerpc", target_arch = "powerpc64")) {
        0o200000
    } else if cfg!(any(target_arch = "mips", target_arch = "mips64")) {
        0x2000
    } else if cfg!(any(target_arch = "sparc", target_arch = "sparc64")) {
        0x40000
    } else {
        // asm-generic/fcntl.h
        0o100000
    };

// Where libc has it, it is this one.
const _: () = assert!(libc::O_LARGEFILE == 0 || libc::O_LARGEFILE as u32 == O_LARGEFILE);

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::sys::eventfd::EventFd;

    #[test]
    #[cfg(target_pointer_width = "64")]
    fn the_kernel_adds_it_to_what_is_opened_and_to_nothing_else() {
        let flags = |fd| fcntl(fd, FcntlArg::F_GETFL).unwrap() as u32;
        let null = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(flags(std::os::fd::AsFd::as_fd(&null)), O_LARGEFILE);
        let event = EventFd::new().unwrap();
        assert_eq!(flags(std::os::fd::AsFd::as_fd(&event)), libc::O_RDWR as u32);
    }
}
