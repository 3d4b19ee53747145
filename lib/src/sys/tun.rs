//! Tunnels: the requests of /dev/net/tun, linux/if_tun.h.

use nix::errno::Errno;
use nix::libc;
use nix::libc::{
    Ioctl, TUNGETDEVNETNS, TUNGETIFF, TUNGETSNDBUF, TUNGETVNETHDRSZ, TUNGETVNETLE, TUNSETGROUP,
    TUNSETIFF, TUNSETOWNER, TUNSETPERSIST, TUNSETQUEUE, TUNSETSNDBUF, TUNSETVNETHDRSZ,
    TUNSETVNETLE,
};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// struct ifreq of netdevice(7), with flags or a hardware address.
#[repr(C)]
struct TunRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    data: [u8; 22],
}

fn request(fd: BorrowedFd<'_>, number: Ioctl, request: &mut TunRequest) -> nix::Result<()> {
    // SAFETY: all requests that come here read and write one ifreq, which TunRequest is.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), number, &raw mut *request) }).map(drop)
}

fn named(name: &[u8], flags: u16) -> nix::Result<TunRequest> {
    let mut request = TunRequest { name: [0; libc::IFNAMSIZ], flags, data: [0; 22] };
    if name.len() >= request.name.len() {
        return Err(Errno::EINVAL);
    }
    request.name[..name.len()].copy_from_slice(name);
    Ok(request)
}

/// The name of the device that a descriptor is attached to, and its flags: TUNGETIFF.
///
/// Fails with EBADFD if it is attached to none. IFF_NOFILTER and IFF_NO_PI are one bit, so that the
/// latter is known only of a device with a filter.
pub fn interface(fd: BorrowedFd<'_>) -> nix::Result<(Vec<u8>, u32)> {
    let mut found = named(b"", 0)?;
    request(fd, TUNGETIFF, &mut found)?;
    let name = found.name.iter().copied().take_while(|&byte| byte != 0).collect();
    Ok((name, found.flags.into()))
}

/// Attaches a descriptor to the device with this name, which is created if it is not there:
/// TUNSETIFF.
///
/// Fails with EBUSY if another descriptor is attached, with EINVAL if the device is of another
/// type.
pub fn attach(fd: BorrowedFd<'_>, name: &[u8], flags: u32) -> nix::Result<()> {
    request(fd, TUNSETIFF, &mut named(name, flags as u16)?)
}

/// Removes a descriptor from the queues of its device (IFF_DETACH_QUEUE), or adds it again
/// (IFF_ATTACH_QUEUE): TUNSETQUEUE.
pub fn set_queue(fd: BorrowedFd<'_>, flags: u32) -> nix::Result<()> {
    request(fd, TUNSETQUEUE, &mut named(b"", flags as u16)?)
}

/// The type of the hardware address of a tap device, and its at most 14 bytes: SIOCGIFHWADDR.
pub fn hardware(fd: BorrowedFd<'_>) -> nix::Result<(u16, [u8; 14])> {
    let mut found = named(b"", 0)?;
    request(fd, libc::SIOCGIFHWADDR as Ioctl, &mut found)?;
    let mut address = [0; 14];
    address.copy_from_slice(&found.data[..14]);
    Ok((found.flags, address))
}

/// Sets the hardware address of a tap device: SIOCSIFHWADDR.
pub fn set_hardware(fd: BorrowedFd<'_>, class: u16, address: [u8; 14]) -> nix::Result<()> {
    let mut wanted = named(b"", class)?;
    wanted.data[..14].copy_from_slice(&address);
    request(fd, libc::SIOCSIFHWADDR as Ioctl, &mut wanted)
}

/// The settings of a device that are one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunParameter {
    /// The most bytes that wait to be sent: TUNGETSNDBUF.
    Sndbuf,
    /// The bytes of the header before each packet: TUNGETVNETHDRSZ.
    Header,
    /// 1 if that header is little-endian: TUNGETVNETLE.
    Little,
}

/// Reads one of the settings.
pub fn number(fd: BorrowedFd<'_>, which: TunParameter) -> nix::Result<i32> {
    let asked = match which {
        TunParameter::Sndbuf => TUNGETSNDBUF,
        TunParameter::Header => TUNGETVNETHDRSZ,
        TunParameter::Little => TUNGETVNETLE,
    };
    let mut value: libc::c_int = 0;
    // SAFETY: each of them fills one int, which is ours.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), asked, &raw mut value) })?;
    Ok(value)
}

/// Sets one of the settings: TUNSETSNDBUF, TUNSETVNETHDRSZ, TUNSETVNETLE.
pub fn set_number(fd: BorrowedFd<'_>, which: TunParameter, value: i32) -> nix::Result<()> {
    let asked = match which {
        TunParameter::Sndbuf => TUNSETSNDBUF,
        TunParameter::Header => TUNSETVNETHDRSZ,
        TunParameter::Little => TUNSETVNETLE,
    };
    // SAFETY: each of them reads one int, which is ours.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), asked, &raw const value) }).map(drop)
}

fn value(fd: BorrowedFd<'_>, number: Ioctl, value: u32) -> nix::Result<()> {
    let value = libc::c_ulong::from(value);
    // SAFETY: the requests that come here take a number and no pointer.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), number, value) }).map(drop)
}

/// Keeps a device when no descriptor is attached to it any more: TUNSETPERSIST.
pub fn persist(fd: BorrowedFd<'_>) -> nix::Result<()> {
    value(fd, TUNSETPERSIST, 1)
}

/// Permits a user, and a group, to attach descriptors to a device: TUNSETOWNER, TUNSETGROUP.
pub fn set_owner(fd: BorrowedFd<'_>, user: Option<u32>, group: Option<u32>) -> nix::Result<()> {
    user.map_or(Ok(()), |user| value(fd, TUNSETOWNER, user))?;
    group.map_or(Ok(()), |group| value(fd, TUNSETGROUP, group))
}

/// A descriptor of the network namespace of the device: TUNGETDEVNETNS, Linux 5.9. It takes
/// CAP_NET_ADMIN in that namespace.
pub fn namespace(fd: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    // SAFETY: TUNGETDEVNETNS takes no argument and returns a new descriptor that nobody else owns.
    unsafe {
        let fd = Errno::result(libc::ioctl(fd.as_raw_fd(), TUNGETDEVNETNS))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}
