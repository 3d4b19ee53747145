//! /dev/net/tun: a descriptor is one queue of a tun or tap device, whose packets a process reads
//! and writes. Source: Documentation/networking/tuntap.rst. rtnetlink(7) has what no ioctl tells.

use crate::error::{At, Error, Result};
use crate::image::{Bytes, Inode, OpenFile};
use crate::kind::Kind;
use crate::kind::context::{Opened, RestoreContext};
use crate::kind::effect::{Allow, Effect};
use crate::kind::socket::inet::warn_if_other_netns;
use crate::operation::Outcome;
use crate::proc::Descriptor;
use crate::proc::sock_diag;
use crate::sys::poll_now;
use crate::sys::socket::{self, device_index};
use crate::sys::tun::{self, TunParameter};
use crate::text::escape;
use nix::errno::Errno;
use nix::libc;
use nix::poll::PollFlags;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, RawFd};

/// A descriptor of /dev/net/tun.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tun {
    /// The device that it is attached to; none before TUNSETIFF.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device: Option<TunDevice>,
}

/// A device, and the state of this queue of it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct TunDevice {
    /// The name of the device.
    name: Bytes,
    /// IFF_TUN 1 or IFF_TAP 2, IFF_NAPI 0x10, IFF_NAPI_FRAGS 0x20, IFF_MULTI_QUEUE 0x100, IFF_NO_PI
    /// 0x1000, IFF_VNET_HDR 0x4000, as TUNSETIFF takes them.
    flags: u32,
    /// The queue is detached from the device: IFF_DETACH_QUEUE.
    detached: bool,
    /// The device stays when no queue is attached to it: TUNSETPERSIST.
    persist: bool,
    /// A tap device has a filter (TUNSETTXFILTER), which cannot be read.
    filtered: bool,
    /// The user that may attach to it: TUNSETOWNER.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<u32>,
    /// The group that may attach to it: TUNSETGROUP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group: Option<u32>,
    /// TUNGETSNDBUF, in bytes.
    sndbuf: i32,
    /// TUNGETVNETHDRSZ, in bytes, and TUNGETVNETLE.
    header: (i32, bool),
    /// The hardware address of a tap device: its type (ARPHRD_*), and 14 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hardware: Option<(u16, Bytes)>,
    /// A packet can be read: POLLIN. Unread packets are not kept.
    waiting: bool,
}

const TUN: u32 = libc::IFF_TUN as u32;
const TAP: u32 = libc::IFF_TAP as u32;
const NAPI: u32 = (libc::IFF_NAPI | libc::IFF_NAPI_FRAGS) as u32;
const MULTI_QUEUE: u32 = libc::IFF_MULTI_QUEUE as u32;
const DETACH_QUEUE: u32 = libc::IFF_DETACH_QUEUE as u32;
const PERSIST: u32 = libc::IFF_PERSIST as u32;
const NO_PI: u32 = libc::IFF_NO_PI as u32;
const NOFILTER: u32 = libc::IFF_NOFILTER as u32;
const VNET_HDR: u32 = libc::IFF_VNET_HDR as u32;
/// The flags that TUNSETIFF takes.
const SETTABLE: u32 = TUN | TAP | NAPI | MULTI_QUEUE | NO_PI | VNET_HDR;
/// The device number of /dev/net/tun.
const DEV_NET_TUN: (u32, u32) = (10, 200);

/// Reports whether an inode is /dev/net/tun.
fn is_tun(inode: &Inode) -> bool {
    inode.mode & libc::S_IFMT == libc::S_IFCHR && inode.rdev == Some(DEV_NET_TUN)
}

/// Reports whether a network device with this name exists in the network namespace of this process.
fn exists(name: &[u8]) -> Result<bool> {
    let socket = socket::new(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
    Ok(device_index(socket.at(|| "socket")?.as_fd(), name).is_ok())
}

impl TunDevice {
    /// Reads the device that a descriptor is attached to; none if it is not attached. Fails with
    /// status 6 if the device is in another network namespace than the process.
    fn capture(descriptor: &Descriptor<'_>, fd: BorrowedFd<'_>) -> Result<Option<TunDevice>> {
        let (name, flags) = match tun::interface(fd) {
            Err(Errno::EBADFD) => return Ok(None),
            found => found.at(|| "TUNGETIFF")?,
        };
        if let Ok(netns) = tun::namespace(fd) {
            let netns = crate::proc::inode_of(netns.as_fd())?;
            if descriptor.process.netns_inode().is_some_and(|own| own != netns.ino) {
                return Err(Error::unrestorable(
                    "its device is in another network namespace than its process",
                ));
            }
        }
        let found = descriptor.process.tunnel(&name)?;
        let mut set = flags & SETTABLE & !NO_PI;
        if !found.pi {
            set |= NO_PI;
        }
        let events = poll_now(fd, PollFlags::POLLIN).at(|| "poll")?;
        let number = |which| tun::number(fd, which);
        let tap = flags & TAP != 0;
        Ok(Some(TunDevice {
            name: Bytes(name),
            flags: set,
            detached: flags & DETACH_QUEUE != 0,
            persist: flags & PERSIST != 0,
            filtered: tap && flags & NOFILTER == 0,
            owner: found.owner,
            group: found.group,
            sndbuf: number(TunParameter::Sndbuf).at(|| "TUNGETSNDBUF")?,
            header: (
                number(TunParameter::Header).at(|| "TUNGETVNETHDRSZ")?,
                number(TunParameter::Little).at(|| "TUNGETVNETLE")? != 0,
            ),
            hardware: tap
                .then(|| tun::hardware(fd).map(|(class, bytes)| (class, Bytes(bytes.to_vec()))))
                .transpose()
                .at(|| "SIOCGIFHWADDR")?,
            waiting: events.contains(PollFlags::POLLIN),
        }))
    }

    /// Fails with status 3 if a field cannot be that of a device.
    fn validate(&self) -> Result<()> {
        let name = &self.name.0;
        let valid_name = (1..libc::IFNAMSIZ).contains(&name.len())
            && !name.iter().any(|&byte| matches!(byte, 0 | b'/' | b'%' | b':'));
        let valid_type = matches!(self.flags & (TUN | TAP), TUN | TAP);
        // At least a struct virtio_net_hdr, at most what the kernel has room for.
        let valid_sizes = (10..=0xffff).contains(&self.header.0) && self.sndbuf > 0;
        let valid_hardware = self.hardware.as_ref().is_none_or(|(_, bytes)| bytes.0.len() == 14);
        if !valid_name
            || !valid_type
            || !valid_sizes
            || !valid_hardware
            || self.flags & !SETTABLE != 0
        {
            return Err(Error::malformed(
                "its name, type or a size is not valid for a tun or tap device",
            ));
        }
        if self.detached && self.flags & MULTI_QUEUE == 0 {
            return Err(Error::malformed(
                "it is detached, but its device is not multi-queue (IFF_MULTI_QUEUE)",
            ));
        }
        Ok(())
    }

    /// Fails with status 6 if no descriptor can be attached to the device here: it has a filter, a
    /// device of its name is of another type, or it is in use.
    fn check(&self) -> Result<()> {
        let name = &self.name.0;
        if self.filtered {
            return Err(Error::unrestorable("its packet filter (TUNSETTXFILTER) cannot be read"));
        }
        if !exists(name)? {
            return Ok(());
        }
        let shown = escape(name);
        let other = || Error::unrestorable(format!("the device {shown} is of another type"));
        let found = sock_diag::tunnel(name, None).map_err(|_| other())?;
        let several = self.flags & MULTI_QUEUE != 0;
        if found.tap != (self.flags & TAP != 0) || found.several != several {
            return Err(other());
        }
        if !several && found.used {
            return Err(Error::unrestorable(format!(
                "the device {shown} is in use, perhaps by the process that was scanned: end it first"
            )));
        }
        Ok(())
    }
}

impl Kind for Tun {
    const NAME: &'static str = "tun";

    fn claims(descriptor: &Descriptor<'_>) -> bool {
        !descriptor.is_path()
            && descriptor.copy.is_some()
            && descriptor.inode.as_ref().is_some_and(is_tun)
    }

    fn capture(descriptor: &Descriptor<'_>) -> Result<Self> {
        Ok(Tun { device: TunDevice::capture(descriptor, descriptor.require_copy()?)? })
    }

    fn describe(&self, _: &OpenFile) -> Option<String> {
        let device = self.device.as_ref()?;
        let class = if device.flags & TAP != 0 { "tap" } else { "tun" };
        Some(format!("{class} {}", escape(&device.name.0)))
    }

    fn validate(&self, file: &OpenFile) -> Result<()> {
        if !file.inode.as_ref().is_some_and(is_tun) {
            return Err(Error::malformed("it is not /dev/net/tun (device 10:200)"));
        }
        self.device.as_ref().map_or(Ok(()), TunDevice::validate)
    }

    fn effects(&self, _: &OpenFile, _: &RestoreContext<'_>) -> Result<Vec<Effect>> {
        let what = match &self.device {
            Some(device) => {
                format!("attaches to the network device {}, or makes it", escape(&device.name.0))
            }
            None => "opens /dev/net/tun".to_owned(),
        };
        Ok(vec![Effect::needing(Allow::Tun, what)])
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        self.device.as_ref().map_or(Ok(()), TunDevice::check)?;
        cx.check_path(file)
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        self.check(file, cx)?;
        let made = cx.open_file_if(file, is_tun)?;
        let Tun { device: Some(device) } = self else { return Ok(made) };
        warn_if_other_netns(cx);
        let TunDevice {
            name,
            flags,
            detached,
            persist: _,
            filtered: _,
            owner,
            group,
            sndbuf,
            header,
            hardware,
            waiting,
        } = device;
        let (flags, header) = (*flags, *header);
        let (fd, shown) = (made.fd.as_fd(), escape(&name.0).into_owned());
        let exists = exists(&name.0)?;
        tun::attach(fd, &name.0, flags).map_err(|errno| match errno {
            Errno::EBUSY => Error::unrestorable(format!("the device {shown} is in use")),
            Errno::EINVAL => Error::unrestorable(format!("the device {shown} is of another type")),
            errno => Error::from(errno).at("TUNSETIFF"),
        })?;
        if !exists {
            tun::set_owner(fd, *owner, *group).at(|| "TUNSETOWNER")?;
            if let Some((class, bytes)) = hardware {
                let bytes = bytes.0.as_slice().try_into().map_err(|_| Errno::EINVAL)?;
                tun::set_hardware(fd, *class, bytes).at(|| "SIOCSIFHWADDR")?;
            }
            let why = "the device is created anew: it is down, and has no addresses or routes";
            cx.warnings.push(format!("{shown}: {why}"));
        }
        let wanted = [
            (TunParameter::Sndbuf, *sndbuf, "TUNSETSNDBUF"),
            (TunParameter::Header, header.0, "TUNSETVNETHDRSZ"),
            (TunParameter::Little, i32::from(header.1), "TUNSETVNETLE"),
        ];
        for (which, value, name) in wanted {
            if tun::number(fd, which).at(|| name)? != value {
                tun::set_number(fd, which, value).at(|| name)?;
            }
        }
        if *detached {
            tun::set_queue(fd, DETACH_QUEUE).at(|| "TUNSETQUEUE")?;
        }
        if *waiting {
            cx.warnings.push(format!("{shown}: unread packets are lost"));
        }
        Ok(made)
    }

    fn finish_text(&self) -> Option<&'static str> {
        self.device.as_ref().filter(|device| device.persist).map(|_| "make the device persistent")
    }

    /// Makes the device persistent. Not before the rest of the restore has succeeded, so that a
    /// failed restore leaves no device.
    fn finish(
        &self,
        _: &OpenFile,
        _: RawFd,
        fd: BorrowedFd<'_>,
        _: &Outcome,
        _: &mut RestoreContext<'_>,
    ) -> Result<()> {
        match &self.device {
            Some(device) if device.persist => tun::persist(fd).at(|| "TUNSETPERSIST"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::tests::body_of;

    #[test]
    fn a_descriptor_without_a_device_is_captured() {
        let how = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
        // Skipped without the device, or without permission to open it.
        let Ok(fd) = how else { return };
        assert_eq!(body_of::<Tun>(&fd), Tun { device: None });
    }

    fn device() -> TunDevice {
        TunDevice {
            name: Bytes(b"fdk-nowhere".to_vec()),
            flags: TAP | NO_PI,
            detached: false,
            persist: false,
            filtered: false,
            owner: None,
            group: None,
            sndbuf: i32::MAX,
            header: (10, false),
            hardware: None,
            waiting: false,
        }
    }

    #[test]
    fn a_device_with_an_invalid_field_is_malformed() {
        assert!(device().validate().is_ok());
        for bad in [
            TunDevice { name: Bytes(b"a/b".to_vec()), ..device() },
            TunDevice { name: Bytes(b"a%d".to_vec()), ..device() },
            TunDevice { name: Bytes(vec![b'x'; 16]), ..device() },
            TunDevice { flags: 0, ..device() },
            TunDevice { flags: TUN | TAP, ..device() },
            TunDevice { flags: TUN | PERSIST, ..device() },
            TunDevice { sndbuf: 0, ..device() },
            TunDevice { header: (9, false), ..device() },
            TunDevice { detached: true, ..device() },
            TunDevice { hardware: Some((1, Bytes(vec![0; 6]))), ..device() },
        ] {
            let why = bad.validate().unwrap_err();
            assert_eq!(why.status(), crate::error::Status::Malformed, "{bad:?}");
        }
    }
}
