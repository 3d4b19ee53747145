//! Sockets of any family: options by their numbers, addresses as bytes, and messages with what
//! comes with them.

use super::clone_files::with_copied_table;
use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Reads an option whose value is one int: getsockopt(2).
pub fn option(fd: BorrowedFd<'_>, level: i32, name: i32) -> nix::Result<i32> {
    let mut value = [0; 4];
    option_bytes(fd, level, name, &mut value)?;
    Ok(i32::from_ne_bytes(value))
}

/// Sets an option whose value is one int: setsockopt(2).
pub fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> nix::Result<()> {
    set_option_bytes(fd, level, name, &value.to_ne_bytes())
}

/// EBT_SO_SET_ENTRIES to EBT_SO_GET_INIT_ENTRIES of linux/netfilter_bridge/ebtables.h.
const BRIDGE_TABLES: std::ops::RangeInclusive<i32> = 128..=131;

/// Reports whether an option that is read has an address in its value, at which the kernel would write.
fn get_has_an_address(level: i32, name: i32) -> bool {
    /// linux/tcp.h
    const TCP_ZEROCOPY_RECEIVE: i32 = 35;
    match level {
        libc::IPPROTO_IP => BRIDGE_TABLES.contains(&name),
        libc::IPPROTO_TCP => name == TCP_ZEROCOPY_RECEIVE,
        _ => false,
    }
}

/// Reports whether an option that is set has an address in its value, at which the kernel would read or
/// write.
fn set_has_an_address(level: i32, name: i32) -> bool {
    /// IPT_SO_SET_REPLACE of linux/netfilter_ipv4/ip_tables.h, and that of ip6_tables.h.
    const TABLES: i32 = 64;
    /// ARPT_SO_SET_REPLACE of linux/netfilter_arp/arp_tables.h.
    const ARP_TABLES: i32 = 96;
    match level {
        libc::SOL_SOCKET => {
            matches!(name, libc::SO_ATTACH_FILTER | libc::SO_ATTACH_REUSEPORT_CBPF)
        }
        libc::IPPROTO_IP => matches!(name, TABLES | ARP_TABLES) || BRIDGE_TABLES.contains(&name),
        libc::IPPROTO_IPV6 => name == TABLES,
        libc::SOL_PACKET => name == libc::PACKET_FANOUT_DATA,
        _ => false,
    }
}

/// Reads an option: getsockopt(2). Gives the length that the kernel says, which for SO_GET_FILTER
/// is in instructions of eight bytes.
///
/// Fails with EOPNOTSUPP, and without a call, for an option whose value has an address in it.
pub(crate) fn option_bytes(
    fd: BorrowedFd<'_>,
    level: i32,
    name: i32,
    into: &mut [u8],
) -> nix::Result<usize> {
    if get_has_an_address(level, name) {
        return Err(Errno::EOPNOTSUPP);
    }
    // SO_GET_FILTER takes the length in instructions too, and writes eight times as much.
    let filter = (level, name) == (libc::SOL_SOCKET, libc::SO_GET_FILTER);
    let mut len = (if filter { into.len() / 8 } else { into.len() }) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, or instructions, which `into` has, and takes
    // none of them for an address.
    let got = unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, into.as_mut_ptr().cast(), &raw mut len)
    };
    Errno::result(got)?;
    Ok(len as usize)
}

/// Sets an option: setsockopt(2).
///
/// Fails with EOPNOTSUPP, and without a call, for an option whose value has an address in it; for
/// SO_ATTACH_FILTER there is [`set_filter`].
pub(crate) fn set_option_bytes(
    fd: BorrowedFd<'_>,
    level: i32,
    name: i32,
    value: &[u8],
) -> nix::Result<()> {
    if set_has_an_address(level, name) {
        return Err(Errno::EOPNOTSUPP);
    }
    let len = value.len() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes, which `value` has, and takes none of them for an
    // address.
    let set = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), len) };
    Errno::result(set).map(drop)
}

/// Attaches a classic BPF filter, of eight bytes an instruction: SO_ATTACH_FILTER of socket(7).
pub fn set_filter(fd: BorrowedFd<'_>, program: &[u8]) -> nix::Result<()> {
    let instruction = |b: &[u8]| libc::sock_filter {
        code: u16::from_ne_bytes([b[0], b[1]]),
        jt: b[2],
        jf: b[3],
        k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
    };
    let mut program: Vec<libc::sock_filter> = program.chunks_exact(8).map(instruction).collect();
    let len = u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
    let program = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    let size = size_of_val(&program) as libc::socklen_t;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER);
    // SAFETY: the kernel reads one sock_fprog, and the `len` instructions that it points to.
    let set =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const program).cast(), size) };
    Errno::result(set).map(drop)
}

/// A new socket: socket(2). It has close-on-exec only if `class` has SOCK_CLOEXEC.
pub fn new(family: i32, class: i32, protocol: i32) -> nix::Result<OwnedFd> {
    // SAFETY: three integers; the kernel returns a new descriptor that nobody else owns.
    unsafe {
        let fd = Errno::result(libc::socket(family, class, protocol))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// The size of struct sockaddr_storage in bytes: no address is longer.
pub const ADDRESS: usize = size_of::<libc::sockaddr_storage>();

/// getsockname(2) or getpeername(2).
type AddressOf =
    unsafe extern "C" fn(libc::c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int;

fn address(fd: BorrowedFd<'_>, of: AddressOf) -> nix::Result<Vec<u8>> {
    let mut bytes = vec![0; ADDRESS];
    let mut len = bytes.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, which `bytes` has.
    Errno::result(unsafe { of(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), &raw mut len) })?;
    bytes.truncate(len as usize);
    Ok(bytes)
}

/// The address that a socket is bound to, a struct sockaddr: getsockname(2).
pub fn name(fd: BorrowedFd<'_>) -> nix::Result<Vec<u8>> {
    address(fd, libc::getsockname)
}

/// The address that a socket is connected to, a struct sockaddr: getpeername(2).
pub fn peer(fd: BorrowedFd<'_>) -> nix::Result<Vec<u8>> {
    address(fd, libc::getpeername)
}

/// Binds a socket to an address, a struct sockaddr: bind(2).
pub fn bind(fd: BorrowedFd<'_>, to: &[u8]) -> nix::Result<()> {
    let len = to.len() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes, which `to` has.
    Errno::result(unsafe { libc::bind(fd.as_raw_fd(), to.as_ptr().cast(), len) }).map(drop)
}

/// What a path in an address of unix(7) counts from, other than the directories of this process.
#[derive(Clone, Copy, Debug)]
pub enum BindAs<'a> {
    /// A working directory.
    Cwd(BorrowedFd<'a>),
    /// A root directory: chroot(2), which takes CAP_SYS_CHROOT.
    Root(BorrowedFd<'a>),
    /// A directory that is open at this number, for names below /proc/self/fd.
    Number(RawFd, BorrowedFd<'a>),
}

/// [`bind`] as a process with other directories would call it: in a child, so that nothing changes
/// here.
pub fn bind_as(fd: BorrowedFd<'_>, to: &[u8], how: BindAs<'_>) -> nix::Result<()> {
    let work = || {
        let mut socket = fd.as_raw_fd();
        match how {
            BindAs::Cwd(dir) => nix::unistd::fchdir(dir)?,
            BindAs::Root(dir) => {
                nix::unistd::fchdir(dir)?;
                nix::unistd::chroot(".")?;
            }
            BindAs::Number(number, dir) => {
                // SAFETY: both calls take integers; the numbers are those of a copy of the table, in
                // which nothing else uses them.
                unsafe {
                    if number == socket {
                        socket = Errno::result(libc::fcntl(socket, libc::F_DUPFD, number + 1))?;
                    }
                    Errno::result(libc::dup2(dir.as_raw_fd(), number))?;
                }
            }
        }
        let len = to.len() as libc::socklen_t;
        // SAFETY: the kernel reads `len` bytes, which `to` has.
        Errno::result(unsafe { libc::bind(socket, to.as_ptr().cast(), len) }).map(drop)
    };
    // SAFETY: an errno owns no descriptor. The child has directories of its own, as it is made without
    // CLONE_FS.
    unsafe { with_copied_table(work)? }
}

/// An O_PATH descriptor of the file that a unix socket is bound to: SIOCUNIXFILE, Linux 4.12.
///
/// Fails with EPERM without CAP_NET_ADMIN in the user namespace of the network namespace of the socket,
/// and with ENOENT if it is not bound to a path.
pub fn bound_file(fd: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    /// linux/un.h
    const SIOCUNIXFILE: i32 = 0x89e0;
    // SAFETY: SIOCUNIXFILE takes no argument and returns a new descriptor that nobody else owns.
    unsafe {
        let fd = Errno::result(libc::ioctl(fd.as_raw_fd(), SIOCUNIXFILE as _))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Connects a socket to an address, a struct sockaddr: connect(2).
pub fn connect(fd: BorrowedFd<'_>, to: &[u8]) -> nix::Result<()> {
    let len = to.len() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes, which `to` has.
    Errno::result(unsafe { libc::connect(fd.as_raw_fd(), to.as_ptr().cast(), len) }).map(drop)
}

/// Makes a socket listen for connections: listen(2). The kernel limits the backlog to
/// net.core.somaxconn; `Backlog` of nix limits it to 4096 in addition.
pub fn listen(fd: BorrowedFd<'_>, backlog: i32) -> nix::Result<()> {
    // SAFETY: the call takes two integers.
    Errno::result(unsafe { libc::listen(fd.as_raw_fd(), backlog) }).map(drop)
}

/// Sends a message to an address without waiting: sendto(2). Gives the number of bytes sent.
pub fn send_to(fd: BorrowedFd<'_>, bytes: &[u8], to: &[u8]) -> nix::Result<usize> {
    let len = to.len() as libc::socklen_t;
    // SAFETY: the kernel reads both slices, each with its length.
    let sent = unsafe {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let (data, to) = (bytes.as_ptr().cast(), to.as_ptr().cast());
        libc::sendto(fd.as_raw_fd(), data, bytes.len(), flags, to, len)
    };
    Errno::result(sent).map(|sent| sent as usize)
}

/// Reads the next message and leaves it in the queue: recvfrom(2) with MSG_PEEK and MSG_TRUNC.
/// Gives the length of the message, however much of it fits, and the address of its sender.
pub fn peek(fd: BorrowedFd<'_>, into: &mut [u8]) -> nix::Result<(usize, Vec<u8>)> {
    let mut from = vec![0; ADDRESS];
    let mut len = from.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most the given lengths to both buffers.
    let got = unsafe {
        let flags = libc::MSG_PEEK | libc::MSG_TRUNC | libc::MSG_DONTWAIT;
        let (data, from) = (into.as_mut_ptr().cast(), from.as_mut_ptr().cast());
        libc::recvfrom(fd.as_raw_fd(), data, into.len(), flags, from, &raw mut len)
    };
    let got = Errno::result(got)? as usize;
    from.truncate(len as usize);
    Ok((got, from))
}

/// The number of bytes that were written and not yet sent or acknowledged: SIOCOUTQ of tcp(7),
/// udp(7).
pub fn unsent(fd: BorrowedFd<'_>) -> nix::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ fills one int, which is ours.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) })?;
    Ok(bytes.max(0) as usize)
}

/// Says whether the end of what can be read is known, since one of the ends is closed or shut down:
/// POLLRDHUP of poll(2).
pub fn reads_end(fd: BorrowedFd<'_>) -> nix::Result<bool> {
    Ok(ready(fd)? & libc::POLLRDHUP != 0)
}

/// The events POLLIN, POLLRDHUP, POLLHUP and POLLERR that there are now: poll(2) without waiting.
/// nix has no POLLRDHUP.
pub fn ready(fd: BorrowedFd<'_>) -> nix::Result<i16> {
    let events = libc::POLLIN | libc::POLLRDHUP;
    let mut polled = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: the kernel reads and writes one pollfd, which is ours.
    Errno::result(unsafe { libc::poll(&raw mut polled, 1, 0) })?;
    Ok(polled.revents)
}

/// The memory of what was received and not read, in bytes: SK_MEMINFO_RMEM_ALLOC, the first number
/// of SO_MEMINFO, Linux 4.12.
pub fn receive_memory(fd: BorrowedFd<'_>) -> nix::Result<u32> {
    let mut numbers = [0; 64];
    option_bytes(fd, libc::SOL_SOCKET, libc::SO_MEMINFO, &mut numbers)?;
    Ok(u32::from_ne_bytes([numbers[0], numbers[1], numbers[2], numbers[3]]))
}

/// The out-of-band byte of a socket, if it has one, which is left there: MSG_OOB and MSG_PEEK of
/// recv(2).
pub fn urgent(fd: BorrowedFd<'_>) -> Option<u8> {
    let mut byte = [0_u8];
    let flags = libc::MSG_OOB | libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the kernel writes at most one byte, which is ours.
    let got = unsafe { libc::recv(fd.as_raw_fd(), byte.as_mut_ptr().cast(), 1, flags) };
    (got == 1).then_some(byte[0])
}

/// A descriptor of the network namespace of a socket: SIOCGSKNS, Linux 4.9. It takes CAP_NET_ADMIN
/// in that namespace.
pub fn namespace(fd: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    // SAFETY: SIOCGSKNS takes no argument and returns a new descriptor that nobody else owns.
    unsafe {
        let fd = Errno::result(libc::ioctl(fd.as_raw_fd(), libc::SIOCGSKNS as _))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// The cookie of the network namespace of a socket, which no other namespace gets until the next
/// boot: SO_NETNS_COOKIE, Linux 5.14.
pub fn netns_cookie(fd: BorrowedFd<'_>) -> nix::Result<u64> {
    let mut cookie = [0; 8];
    option_bytes(fd, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, &mut cookie)?;
    Ok(u64::from_ne_bytes(cookie))
}

/// struct ifreq of netdevice(7), with the index of the device.
#[repr(C)]
struct IfRequest {
    name: [u8; libc::IFNAMSIZ],
    index: libc::c_int,
    rest: [u8; 20],
}

/// The name of the network device with this index in the namespace of a socket: SIOCGIFNAME of
/// netdevice(7). Fails with ENODEV if there is none.
pub fn device_name(fd: BorrowedFd<'_>, index: i32) -> nix::Result<Vec<u8>> {
    let mut request = IfRequest { name: [0; libc::IFNAMSIZ], index, rest: [0; 20] };
    // SAFETY: SIOCGIFNAME reads and writes one ifreq, which IfRequest is.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFNAME as _, &raw mut request) };
    Errno::result(done)?;
    Ok(request.name.iter().copied().take_while(|&byte| byte != 0).collect())
}

/// The index of the network device with this name in the namespace of a socket: SIOCGIFINDEX of
/// netdevice(7). Fails with ENODEV if there is none.
pub fn device_index(fd: BorrowedFd<'_>, name: &[u8]) -> nix::Result<i32> {
    let mut request = IfRequest { name: [0; libc::IFNAMSIZ], index: 0, rest: [0; 20] };
    if name.len() >= request.name.len() {
        return Err(Errno::ENODEV);
    }
    request.name[..name.len()].copy_from_slice(name);
    // SAFETY: SIOCGIFINDEX reads and writes one ifreq, which IfRequest is.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFINDEX as _, &raw mut request) };
    Errno::result(done)?;
    Ok(request.index)
}

/// The size of a buffer for all ancillary data of a message, in bytes: 253 descriptors,
/// credentials, a pidfd, a security context and times. See cmsg(3).
const CONTROL: usize = 4096;

/// linux/socket.h
const SCM_PIDFD: i32 = 4;

/// The maximum number of descriptors of one message: SCM_MAX_FD of include/net/scm.h.
pub const MAX_FDS: usize = 253;

/// A buffer for ancillary data, aligned as struct cmsghdr must be.
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// The process, user and group id of a sender: struct ucred of unix(7).
pub type Ucred = (i32, u32, u32);

/// The ancillary data of a message: cmsg(3).
#[derive(Debug, Default)]
pub struct Ancillary {
    /// Duplicates of the descriptors that were sent: SCM_RIGHTS of unix(7).
    pub fds: Vec<OwnedFd>,
    /// The credentials of the sender: SCM_CREDENTIALS.
    pub credentials: Option<Ucred>,
    /// Some of it is missing: MSG_CTRUNC, as where the limit of open files is reached.
    pub cut: bool,
}

/// Sends a message with descriptors and credentials without waiting: sendmsg(2). `to` is a struct
/// sockaddr, or empty for the peer that the socket is connected to. Gives the number of bytes sent.
///
/// Fails with E2BIG for more descriptors than a message can have.
pub fn send(
    from: BorrowedFd<'_>,
    to: &[u8],
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    credentials: Option<Ucred>,
) -> nix::Result<usize> {
    let rights: Vec<u8> = fds.iter().flat_map(|fd| fd.as_raw_fd().to_ne_bytes()).collect();
    let credentials = credentials
        .map(|(pid, uid, gid)| [pid.to_ne_bytes(), uid.to_ne_bytes(), gid.to_ne_bytes()].concat());
    let parts = [
        (libc::SCM_RIGHTS, (!rights.is_empty()).then_some(rights)),
        (libc::SCM_CREDENTIALS, credentials),
    ];
    let mut control = Control([0; CONTROL]);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: msghdr is plain data, for which zeroes are a value. All it points to outlives the
    // call, which only reads it. CMSG_FIRSTHDR and CMSG_NXTHDR give places inside `control`, which
    // has room for the headers and bytes, for more than it has room for are refused.
    unsafe {
        let space = |bytes: &Vec<u8>| libc::CMSG_SPACE(bytes.len() as u32) as usize;
        let space: usize = parts.iter().filter_map(|(_, bytes)| bytes.as_ref()).map(space).sum();
        if space > CONTROL {
            return Err(Errno::E2BIG);
        }
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        if !to.is_empty() {
            message.msg_name = to.as_ptr().cast_mut().cast();
            message.msg_namelen = to.len() as libc::socklen_t;
        }
        if space > 0 {
            message.msg_control = control.0.as_mut_ptr().cast();
            message.msg_controllen = space as _;
        }
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        for (kind, bytes) in &parts {
            let Some(bytes) = bytes else { continue };
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = *kind;
            (*header).cmsg_len = libc::CMSG_LEN(bytes.len() as u32) as _;
            libc::CMSG_DATA(header).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let sent = libc::sendmsg(from.as_raw_fd(), &raw const message, flags);
        Errno::result(sent).map(|sent| sent as usize)
    }
}

/// Reads the next message and leaves it in the queue: recvmsg(2) with MSG_PEEK and MSG_TRUNC. Gives
/// the length of the message, the address of its sender, and its ancillary data, with duplicates of
/// the descriptors at the lowest free numbers, with close-on-exec if `cloexec` says so.
pub fn peek_message(
    from: BorrowedFd<'_>,
    into: &mut [u8],
    cloexec: bool,
) -> nix::Result<(usize, Vec<u8>, Ancillary)> {
    let mut control = Control([0; CONTROL]);
    let mut name = vec![0; ADDRESS];
    let mut part = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let mut ancillary = Ancillary::default();
    // SAFETY: msghdr is plain data, for which zeroes are a value; the kernel writes at most as much
    // as it is told, and CMSG_NXTHDR stays within that. What SCM_RIGHTS and SCM_PIDFD bring are new
    // descriptors that nobody else owns.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_name = name.as_mut_ptr().cast();
        message.msg_namelen = name.len() as libc::socklen_t;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = CONTROL as _;
        let mut flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        if cloexec {
            flags |= libc::MSG_CMSG_CLOEXEC;
        }
        let len = Errno::result(libc::recvmsg(from.as_raw_fd(), &raw mut message, flags))?;
        ancillary.cut = message.msg_flags & libc::MSG_CTRUNC != 0;
        name.truncate(message.msg_namelen as usize);
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            let data = libc::CMSG_DATA(header).cast::<i32>();
            let count = ((*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize) / 4;
            let int = |at: usize| data.add(at).read_unaligned();
            match ((*header).cmsg_level, (*header).cmsg_type) {
                (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                    ancillary.fds.extend((0..count).map(|at| OwnedFd::from_raw_fd(int(at))));
                }
                (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if count >= 3 => {
                    ancillary.credentials = Some((int(0), int(1) as u32, int(2) as u32));
                }
                // SO_PASSPIDFD: the kernel makes one for whoever reads. Negative if it could not.
                (libc::SOL_SOCKET, SCM_PIDFD) if count >= 1 && int(0) >= 0 => {
                    drop(OwnedFd::from_raw_fd(int(0)));
                }
                _ => (),
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
        Ok((len as usize, name, ancillary))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_path_counts_from_a_given_directory_and_this_process_stays_in_its_own() {
        let dir = std::env::temp_dir().join(format!("fdkit-bind-as-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let opened = std::fs::File::open(&dir).unwrap();
        let new = || new(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0).unwrap();
        let address = |name: &str| [&1_u16.to_ne_bytes()[..], name.as_bytes(), b"\0"].concat();
        let here = std::env::current_dir().unwrap();
        let (one, two) = (new(), new());
        bind_as(one.as_fd(), &address("one"), BindAs::Cwd(opened.as_fd())).unwrap();
        let number = two.as_raw_fd();
        let named = address(&format!("/proc/self/fd/{number}/two"));
        bind_as(two.as_fd(), &named, BindAs::Number(number, opened.as_fd())).unwrap();
        assert_eq!(std::env::current_dir().unwrap(), here);
        assert!(dir.join("one").exists() && dir.join("two").exists());
        assert_eq!((name(one.as_fd()), name(two.as_fd())), (Ok(address("one")), Ok(named)));
        if let Ok(file) = bound_file(two.as_fd()) {
            let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
            assert_eq!(link, dir.canonicalize().unwrap().join("two"));
        }
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn no_option_that_has_an_address_in_it_reaches_the_kernel() {
        let socket = new(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0).unwrap();
        for (level, name) in [
            (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER),
            (libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF),
            (libc::IPPROTO_IP, 64),
            (libc::IPPROTO_IP, 96),
            (libc::IPPROTO_IP, 128),
            (libc::IPPROTO_IPV6, 64),
            (libc::SOL_PACKET, libc::PACKET_FANOUT_DATA),
        ] {
            let set = set_option_bytes(socket.as_fd(), level, name, &[1; 64]);
            assert_eq!(set, Err(Errno::EOPNOTSUPP), "{level} {name}");
        }
        for (level, name) in [(libc::IPPROTO_IP, 129), (libc::IPPROTO_TCP, 35)] {
            let got = option_bytes(socket.as_fd(), level, name, &mut [0; 64]);
            assert_eq!(got, Err(Errno::EOPNOTSUPP), "{level} {name}");
        }
        // SO_GET_FILTER, which has the number of SO_ATTACH_FILTER, fills the bytes.
        let (level, name) = (libc::SOL_SOCKET, libc::SO_GET_FILTER);
        assert_eq!(option_bytes(socket.as_fd(), level, name, &mut []), Ok(0));
        assert_eq!(option(socket.as_fd(), level, libc::SO_TYPE), Ok(libc::SOCK_DGRAM));
    }
}
