//! POSIX message queues: mq_overview(7). The descriptors that nix has for them neither are closed
//! when they are dropped nor become an `OwnedFd`.

use nix::errno::Errno;
use nix::libc;
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The attributes of a queue: struct mq_attr of mq_getattr(3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// The most messages that it holds.
    pub maxmsg: i64,
    /// The most bytes of a message.
    pub msgsize: i64,
    /// The number of messages in it.
    pub curmsgs: i64,
}

/// A name for the C library, which wants a slash before it.
fn named(name: &[u8]) -> nix::Result<CString> {
    CString::new([b"/", name].concat()).map_err(|_| Errno::EINVAL)
}

/// Opens a queue by its name, which is given without its slash, or creates it with mode 0600 if
/// `new` has attributes: mq_open(3). Close-on-exec, which the kernel sets on all queues, is
/// cleared.
///
/// Fails with EEXIST if it is to be created and is there already, with ENOENT if it is not there;
/// with EINVAL if the attributes are above fs.mqueue.msg_max or msgsize_max (with CAP_SYS_RESOURCE,
/// above the kernel's own limits), and with EMFILE above RLIMIT_MSGQUEUE.
pub fn open(name: &[u8], flags: i32, new: Option<&Attributes>) -> nix::Result<OwnedFd> {
    let name = named(name)?;
    // SAFETY: mq_attr is integers, for which zeroes are a value. The call reads a C string and at
    // most one mq_attr, and gives a new descriptor that nobody else owns; F_SETFD takes an integer.
    unsafe {
        let mut attributes: libc::mq_attr = MaybeUninit::zeroed().assume_init();
        let (mut how, mut given) = (flags, std::ptr::null());
        if let Some(new) = new {
            (attributes.mq_maxmsg, attributes.mq_msgsize) = (new.maxmsg as _, new.msgsize as _);
            (how, given) = (flags | libc::O_CREAT | libc::O_EXCL, &raw const attributes);
        }
        let fd = Errno::result(libc::mq_open(name.as_ptr(), how, 0o600, given))?;
        let fd = OwnedFd::from_raw_fd(fd);
        Errno::result(libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0))?;
        Ok(fd)
    }
}

/// Removes the name of a queue, which is given without its slash: mq_unlink(3).
pub fn unlink(name: &[u8]) -> nix::Result<()> {
    let name = named(name)?;
    // SAFETY: the call reads a C string.
    Errno::result(unsafe { libc::mq_unlink(name.as_ptr()) }).map(drop)
}

/// The attributes of a queue: mq_getattr(3).
pub fn attributes(queue: BorrowedFd<'_>) -> nix::Result<Attributes> {
    let mut found = MaybeUninit::<libc::mq_attr>::uninit();
    // SAFETY: the call fills one mq_attr when it succeeds.
    let found = unsafe {
        Errno::result(libc::mq_getattr(queue.as_raw_fd(), found.as_mut_ptr()))?;
        found.assume_init()
    };
    #[allow(clippy::useless_conversion)] // Not useless on all targets.
    Ok(Attributes {
        maxmsg: found.mq_maxmsg.into(),
        msgsize: found.mq_msgsize.into(),
        curmsgs: found.mq_curmsgs.into(),
    })
}

/// Receives the oldest message of the highest priority: mq_receive(3). Gives its length and
/// priority.
///
/// Fails with EMSGSIZE if `into` is shorter than the longest message that the queue takes.
pub fn receive(queue: BorrowedFd<'_>, into: &mut [u8]) -> nix::Result<(usize, u32)> {
    let mut priority = [0; 4];
    let len = receive_with(queue, into, &mut priority)?;
    Ok((len, u32::from_ne_bytes(priority)))
}

/// As [`receive`], but the kernel writes the priority to `priority`. Gives the length.
pub fn receive_with(
    queue: BorrowedFd<'_>,
    into: &mut [u8],
    priority: &mut [u8; 4],
) -> nix::Result<usize> {
    // SAFETY: the kernel writes at most `len` bytes, which `into` has, and one number of four bytes,
    // which need not be aligned for it.
    let got = unsafe {
        let data = into.as_mut_ptr().cast();
        libc::mq_receive(queue.as_raw_fd(), data, into.len(), priority.as_mut_ptr().cast())
    };
    Errno::result(got).map(|len| len as usize)
}

/// Sends a message: mq_send(3).
pub fn send(queue: BorrowedFd<'_>, bytes: &[u8], priority: u32) -> nix::Result<()> {
    // SAFETY: the kernel reads `len` bytes, which `bytes` has.
    let sent =
        unsafe { libc::mq_send(queue.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), priority) };
    Errno::result(sent).map(drop)
}
