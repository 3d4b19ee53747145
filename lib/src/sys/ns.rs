//! Namespaces: ioctl_nsfs(2), setns(2).

use super::clone_files::with_copied_table;
use netlink_sys::Socket;
use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

/// The id of a namespace, which no other namespace gets until the next boot, as it may get the
/// inode number: NS_GET_ID, Linux 6.18. None where the kernel does not tell it.
pub fn id(fd: BorrowedFd<'_>) -> Option<u64> {
    // linux/nsfs.h
    const NS_GET_ID: libc::Ioctl = nix::request_code_read!(0xb7, 13, size_of::<u64>());
    let mut id = 0_u64;
    // SAFETY: NS_GET_ID fills one u64, which is ours.
    let asked = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_ID, &mut id) };
    (asked == 0).then_some(id)
}

/// The user namespace that owns a namespace: NS_GET_USERNS, Linux 4.9. Fails with EPERM if it is not
/// ours, nor below ours.
fn owner(namespace: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    // linux/nsfs.h
    const NS_GET_USERNS: libc::Ioctl = nix::request_code_none!(0xb7, 1);
    // SAFETY: NS_GET_USERNS takes no argument and returns a new descriptor that nobody else owns.
    unsafe {
        let fd = Errno::result(libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// A netlink socket in a network namespace, where it stays. A child enters the namespace, so that
/// this process is where it was.
///
/// Fails with EPERM unless this process has CAP_SYS_ADMIN in both its user namespace and the one that
/// owns the network namespace, or has made the latter, which is then entered first.
pub fn netlink_socket(netns: BorrowedFd<'_>, protocol: isize) -> nix::Result<Socket> {
    let (ours, to_us) =
        socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::SOCK_CLOEXEC)?;
    let work = || {
        if let Err(errno) = setns(netns, CloneFlags::CLONE_NEWNET) {
            // setns(2) into the user namespace in which we are fails with EINVAL.
            let owner = owner(netns).map_err(|_| errno)?;
            setns(owner, CloneFlags::CLONE_NEWUSER).map_err(|_| errno)?;
            setns(netns, CloneFlags::CLONE_NEWNET)?;
        }
        let class = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
        let made = super::socket::new(libc::AF_NETLINK, class, protocol as i32)?;
        super::socket::send(to_us.as_fd(), &[], b"s", &[made.as_fd()], None).map(drop)
    };
    // SAFETY: all that is opened in the child is closed there; what is given back owns nothing.
    unsafe { with_copied_table(work)?? };
    let (_, _, ancillary) = super::socket::peek_message(ours.as_fd(), &mut [0], true)?;
    let made = ancillary.fds.into_iter().next().ok_or(Errno::EMFILE)?;
    // SAFETY: the descriptor is that of a netlink socket, and nobody else owns it.
    Ok(unsafe { Socket::from_raw_fd(made.into_raw_fd()) })
}
