//! /dev/net/tun: queues of network devices.

use crate::driver::{Bad, Difference, Fixture, link, open_device, ready, stat};
use crate::spec::{At, Result, Spec};
use crate::sys;
use fdkit::sys::tun::{self, TunParameter};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::poll::PollFlags;
use nix::unistd::write;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

const TUN: u32 = libc::IFF_TUN as u32;
const TAP: u32 = libc::IFF_TAP as u32;
const MULTI_QUEUE: u32 = libc::IFF_MULTI_QUEUE as u32;
const DETACH_QUEUE: u32 = libc::IFF_DETACH_QUEUE as u32;
const PERSIST: u32 = libc::IFF_PERSIST as u32;
const NO_PI: u32 = libc::IFF_NO_PI as u32;
const VNET_HDR: u32 = libc::IFF_VNET_HDR as u32;
/// The hardware address with `address`.
const ADDRESS: [u8; 6] = [2, 0, 0, 0x12, 0x34, 0x56];

pub(crate) struct Tun;

impl Fixture for Tun {
    const NAME: &'static str = "tun";
    const ABOUT: &'static str =
        "a tunnel; but for the first key, for a network namespace of its own";
    const KEYS: &'static [(&'static str, &'static str)] = &[
        ("unattached", "it is attached to nothing"),
        ("name", "the name of the device; fdk-N otherwise"),
        ("tap", "IFF_TAP"),
        ("pi", "without IFF_NO_PI"),
        ("vnet", "IFF_VNET_HDR, with headers of so many bytes, little-endian"),
        ("queues", "IFF_MULTI_QUEUE, and a second queue at the second number"),
        ("detached", "the second queue is detached"),
        ("persist", "it lives on when nobody is attached"),
        ("owner", "the user and the group that may attach to it"),
        ("sndbuf", "the most bytes that wait to be sent"),
        ("address", "a hardware address of its own"),
    ];
    const DIFFERENCES: &'static [Difference] = &[("chardev@3", "tun@3:unattached", "path is")];

    fn arity(spec: &Spec) -> usize {
        if spec.has("queues") { 2 } else { 1 }
    }

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        let new = || open_device(Path::new("/dev/net/tun"), OFlag::O_RDWR);
        let mut made = vec![new()?];
        if spec.has("unattached") {
            return Ok(made);
        }
        if spec.has("queues") {
            made.push(new()?);
        }
        for queue in &made {
            tun::attach(queue.as_fd(), &name(spec), flags(spec)).at("TUNSETIFF")?;
        }
        let fd = made[0].as_fd();
        if let Some(size) = spec.number("vnet")? {
            tun::set_number(fd, TunParameter::Header, size as i32).at("TUNSETVNETHDRSZ")?;
            tun::set_number(fd, TunParameter::Little, 1).at("TUNSETVNETLE")?;
        }
        if let Some(size) = spec.number("sndbuf")? {
            tun::set_number(fd, TunParameter::Sndbuf, size as i32).at("TUNSETSNDBUF")?;
        }
        if let Some(owner) = spec.number("owner")? {
            let owner = Some(owner as u32);
            tun::set_owner(fd, owner, owner).at("TUNSETOWNER")?;
        }
        if spec.has("address") {
            let (class, mut address) = tun::hardware(fd).at("SIOCGIFHWADDR")?;
            address[..6].copy_from_slice(&ADDRESS);
            tun::set_hardware(fd, class, address).at("SIOCSIFHWADDR")?;
        }
        if spec.has("persist") {
            tun::persist(fd).at("TUNSETPERSIST")?;
        }
        if spec.has("detached") {
            tun::set_queue(made[1].as_fd(), DETACH_QUEUE).at("TUNSETQUEUE")?;
        }
        Ok(made)
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let fd = sys::at(spec.fds[0])?;
        stat(fd, libc::S_IFCHR, bad)?;
        bad.same("path", link(spec.fds[0]), PathBuf::from("/dev/net/tun"));
        if spec.has("unattached") {
            bad.same("device", tun::interface(fd).err(), Some(Errno::EBADFD));
            return Ok(());
        }
        let persist = if spec.has("persist") { PERSIST } else { 0 };
        // The bit of IFF_NO_PI is that of IFF_NOFILTER too.
        let wanted = flags(spec) | NO_PI | persist;
        bad.same("device", tun::interface(fd)?, (name(spec), wanted));
        if let Some(&second) = spec.fds.get(1).filter(|_| spec.has("queues")) {
            let detached = if spec.has("detached") { DETACH_QUEUE } else { 0 };
            let is = tun::interface(sys::at(second)?)?;
            bad.same("device of the second", is, (name(spec), wanted | detached));
        }
        let header = spec.known_number("vnet").unwrap_or(10) as i32;
        bad.same("header", tun::number(fd, TunParameter::Header)?, header);
        let little = i32::from(spec.has("vnet"));
        bad.same("little-endian", tun::number(fd, TunParameter::Little)?, little);
        let sndbuf = spec.known_number("sndbuf").unwrap_or(i32::MAX as u64);
        bad.same("sndbuf", tun::number(fd, TunParameter::Sndbuf)? as u64, sndbuf);
        if spec.has("address") {
            bad.same("hardware address", &tun::hardware(fd)?.1[..6], &ADDRESS);
        }
        let name = String::from_utf8_lossy(&name(spec)).into_owned();
        // sysfs shows the network namespace in which it was mounted.
        let told = |file: &str| fs::read_to_string(format!("/sys/class/net/{name}/{file}"));
        if let Ok(shown) = told("tun_flags") {
            let shown = u32::from_str_radix(shown.trim().trim_start_matches("0x"), 16);
            bad.same("flags", shown, Ok(flags(spec) | persist));
            let owner = spec.known_number("owner").map_or("-1".into(), |owner| owner.to_string());
            for file in ["owner", "group"] {
                bad.same(file, told(file).unwrap_or_default().trim(), &owner);
            }
        } else {
            bad.say(format!("/sys/class/net/{name} is not there"));
        }
        works(spec, &name, bad)
    }
}

/// Checks that the device counts a packet that is written, and that a packet sent to the device can
/// be read.
fn works(spec: &Spec, name: &str, bad: &mut Bad) -> Result<(), Errno> {
    let run = |args: &[&str]| std::process::Command::new("ip").args(args).status();
    let up = run(&["link", "set", name, "up"]);
    bad.unless(up.is_ok_and(|status| status.success()), "ip link set up");
    let fd = sys::at(spec.fds[0])?;
    let count = || {
        let text = fs::read_to_string(format!("/sys/class/net/{name}/statistics/rx_packets"));
        text.ok().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    let before = count();
    let mut packet =
        vec![0; if spec.has("vnet") { spec.known_number("vnet").unwrap_or(0) } else { 0 } as usize];
    if spec.has("pi") {
        packet.extend([0, 0, 0x86, 0xdd]);
    }
    if spec.has("tap") {
        packet.extend([0xff; 6].iter().chain(&ADDRESS).chain(&[0x86, 0xdd]));
    }
    packet.extend([0x60, 0, 0, 0, 0, 0, 59, 1]);
    packet.extend([0; 32]);
    bad.same("a write", write(fd, &packet), Ok(packet.len()));
    bad.same("packets of the device", count(), before + 1);
    // A device that comes up sends packets to its neighbours (RFC 4861) on one of its queues.
    let queues = spec.fds.iter().filter_map(|&n| sys::at(n).ok());
    let queues: Vec<_> = queues.collect();
    let came = (0..100).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        queues.iter().any(|&queue| ready(queue, PollFlags::POLLIN).unwrap_or(false))
    });
    bad.unless(came, "no packet can be read");
    Ok(())
}

fn name(spec: &Spec) -> Vec<u8> {
    let usual = || format!("fdk-{}", spec.fds[0]).into_bytes();
    spec.bytes("name").map_or_else(usual, <[u8]>::to_vec)
}

/// The flags for TUNSETIFF.
fn flags(spec: &Spec) -> u32 {
    let on = |key, flag| if spec.has(key) { flag } else { 0 };
    let class = if spec.has("tap") { TAP } else { TUN };
    let pi = if spec.has("pi") { 0 } else { NO_PI };
    class | pi | on("vnet", VNET_HDR) | on("queues", MULTI_QUEUE)
}
