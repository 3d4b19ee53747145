//! POSIX message queues: mq_overview(7). nix's descriptors of them neither close themselves nor
//! become an `OwnedFd`.

use nix::errno::Errno;
use nix::libc;
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// What a queue is made with, and how many messages are in it: mq_getattr(3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// The most messages.
    pub maxmsg: i64,
    /// The most bytes of one.
    pub msgsize: i64,
    /// The messages that are in it.
    pub curmsgs: i64,
}

/// A name for the C library, which wants a slash before it.
fn named(name: &[u8]) -> nix::Result<CString> {
    CString::new([b"/", name].concat()).map_err(|_| Errno::EINVAL)
}

/// Opens a queue by its name, without the slash, and makes it if attributes are given: mq_open(3).
/// It has no close-on-exec, which the kernel sets on all that it opens.
///
/// Fails with EEXIST if it is to be made and is there, and with ENOENT if it is not there. With
/// EINVAL if the attributes are beyond fs.mqueue.msg_max or msgsize_max, to which
/// CAP_SYS_RESOURCE is not bound, and with EMFILE beyond RLIMIT_MSGQUEUE.
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

/// Takes away the name of a queue, given without the slash: mq_unlink(3).
pub fn unlink(name: &[u8]) -> nix::Result<()> {
    let name = named(name)?;
    // SAFETY: the call reads a C string.
    Errno::result(unsafe { libc::mq_unlink(name.as_ptr()) }).map(drop)
}

/// mq_getattr(3).
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

/// Takes out the oldest message of the highest priority: its length and priority, mq_receive(3).
/// `into` must have room for the longest that the queue can have.
pub fn receive(queue: BorrowedFd<'_>, into: &mut [u8]) -> nix::Result<(usize, u32)> {
    let mut priority = 0;
    // SAFETY: the kernel writes at most `len` bytes, which `into` has, and one number.
    let got = unsafe {
        let data = into.as_mut_ptr().cast();
        libc::mq_receive(queue.as_raw_fd(), data, into.len(), &raw mut priority)
    };
    Errno::result(got).map(|len| (len as usize, priority))
}

/// Puts in a message: mq_send(3).
pub fn send(queue: BorrowedFd<'_>, bytes: &[u8], priority: u32) -> nix::Result<()> {
    // SAFETY: the kernel reads `len` bytes, which `bytes` has.
    let sent =
        unsafe { libc::mq_send(queue.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), priority) };
    Errno::result(sent).map(drop)
}
