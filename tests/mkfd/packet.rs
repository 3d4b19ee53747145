//! packet(7): frames of the loopback device.

use crate::driver::{Bad, Difference, Fixture};
use crate::inet::{self, BYTES, SET, class};
use crate::spec::{At, Result, Spec, Stop};
use crate::sys;
use fdkit::sys::socket;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, recv};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

const SOL_PACKET: i32 = 263;
const ADD_MEMBERSHIP: i32 = 1;
const RX_RING: i32 = 5;
const FANOUT: i32 = 18;
/// A multicast address that no process sends to.
const GROUP: [u8; 6] = [1, 0, 0x5e, 0x7f, 0, 9];
const MULTICAST: i32 = 0;

pub(crate) struct Packet;

impl Fixture for Packet {
    const NAME: &'static str = "packet";
    const ABOUT: &'static str = "a packet socket";
    const KEYS: &'static [(&'static str, &'static str)] = &[
        ("dgram", "SOCK_DGRAM"),
        ("unbound", "it gets no packets"),
        ("any", "it is bound to no device; to lo otherwise"),
        ("dev", "the device it is bound to"),
        ("protocol", "whose frames it gets; one of --dir's own otherwise"),
        ("members", "it joins a group of lo, as often"),
        ("all", "it joins all groups of lo: PACKET_MR_ALLMULTI"),
        ("fanout", "PACKET_FANOUT, as getsockopt(2) gives it"),
        ("ring", "PACKET_RX_RING"),
        ("data", "bytes of a frame that waits"),
        SET,
        BYTES,
    ];
    const DIFFERENCES: &'static [Difference] = &[
        ("packet@3:protocol=2048", "packet@3:protocol=2054", "protocol and device"),
        ("packet@3:any", "packet@3", "protocol and device"),
        ("packet@3:dgram", "packet@3", "type is"),
        ("packet@3:set=263.8.1", "packet@3:set=263.8.0", "option 263.8"),
        ("packet@3:fanout=0x1234", "packet@3", "fanout is"),
    ];

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        let made = new(class(spec)).at("a packet socket, which takes CAP_NET_RAW")?;
        let fd = made.as_fd();
        inet::set(spec, fd)?;
        let lo = device(fd, b"lo")?;
        let join = |class: u16, address: &[u8]| {
            let len = (address.len() as u16).to_ne_bytes();
            let mut request = [&lo.to_ne_bytes()[..], &class.to_ne_bytes(), &len, address].concat();
            request.resize(16, 0);
            socket_bytes(fd, ADD_MEMBERSHIP, &request).at("join a group")
        };
        for _ in 0..spec.number("members")?.unwrap_or(0) {
            join(MULTICAST as u16, &GROUP)?;
        }
        if spec.has("all") {
            join(2, &[])?;
        }
        if spec.has("ring") {
            // struct tpacket_req: one block of a page with two frames.
            let ring = [4096_u32, 1, 2048, 2].map(u32::to_ne_bytes).concat();
            socket_bytes(fd, RX_RING, &ring).at("PACKET_RX_RING")?;
        }
        if !spec.has("unbound") {
            socket::bind(fd, &address(protocol(spec), bound_to(spec, fd)?)).at("bind")?;
        }
        if let Some(fanout) = spec.number("fanout")? {
            socket::set_option(fd, SOL_PACKET, FANOUT, fanout as i32).at("PACKET_FANOUT")?;
        }
        if let Some(data) = spec.bytes("data") {
            send(spec, data)?;
        }
        Ok(vec![made])
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let fd = inet::at(spec, 0, class(spec), 0, bad)?;
        let wanted = match spec.has("unbound") {
            true => address(0, 0),
            false => address(protocol(spec), bound_to(spec, fd).unwrap_or(-1)),
        };
        bad.same("protocol and device", &socket::name(fd)?[..8], &wanted[..8]);
        inet::check_options(spec, fd, bad)?;
        let fanout = spec.known_number("fanout").unwrap_or(0);
        bad.same("fanout", socket::option(fd, SOL_PACKET, FANOUT)? as u64, fanout);
        if spec.has("members") {
            let text = std::fs::read_to_string("/proc/net/dev_mcast").unwrap_or_default();
            let group: String = GROUP.iter().map(|byte| format!("{byte:02x}")).collect();
            bad.unless(text.contains(&group), format!("lo is not in the group {group}"));
        }
        let works = !spec.has("unbound") && !spec.has("protocol") && bound_to(spec, fd).is_ok();
        if works && spec.bytes("dev").unwrap_or(b"lo") == b"lo" && fanout == 0 {
            let frame = format!("{:>60}", std::process::id());
            if send(spec, frame.as_bytes()).is_err() {
                bad.say("no frame is sent");
            }
            // A frame arrives twice: when it leaves the device and when it arrives there.
            let head = if spec.has("dgram") { 0 } else { 14 };
            let frame = Some(frame.into_bytes());
            bad.same("a frame", received(fd, head)?, frame);
        }
        Ok(())
    }
}

fn new(class: i32) -> Result<OwnedFd, Errno> {
    socket::new(libc::AF_PACKET, class | libc::SOCK_CLOEXEC, 0)
}

fn socket_bytes(fd: BorrowedFd<'_>, name: i32, value: &[u8]) -> Result<(), Errno> {
    sys::set_option(fd, SOL_PACKET, name, value)
}

fn device(fd: BorrowedFd<'_>, name: &[u8]) -> Result<i32> {
    socket::device_index(fd, name).map_err(|errno| Stop::Failed(format!("SIOCGIFINDEX: {errno}")))
}

fn bound_to(spec: &Spec, fd: BorrowedFd<'_>) -> Result<i32> {
    match spec.has("any") {
        true => Ok(0),
        false => device(fd, spec.bytes("dev").unwrap_or(b"lo")),
    }
}

/// A protocol that no other test uses.
fn protocol(spec: &Spec) -> u16 {
    let given = spec.known_number("protocol");
    given.map_or_else(
        || {
            let mut hasher = DefaultHasher::new();
            (spec.dir().unwrap_or_default(), spec.fds[0]).hash(&mut hasher);
            0xa000 + (hasher.finish() % 0x4000) as u16
        },
        |given| given as u16,
    )
}

/// A struct sockaddr_ll.
fn address(protocol: u16, device: i32) -> Vec<u8> {
    let family = 17_u16.to_ne_bytes();
    [&family[..], &protocol.to_be_bytes(), &device.to_ne_bytes(), &[0, 0, 0, 6], &[0; 8]].concat()
}

/// Sends a frame to the loopback device.
fn send(spec: &Spec, bytes: &[u8]) -> Result<()> {
    let sender = new(libc::SOCK_DGRAM).at("socket")?;
    let to = address(protocol(spec), device(sender.as_fd(), b"lo")?);
    socket::send_to(sender.as_fd(), bytes, &to).at("send a frame").map(drop)
}

/// Receives frames, and gives the last one without its header.
fn received(fd: BorrowedFd<'_>, head: usize) -> Result<Option<Vec<u8>>, Errno> {
    let mut buffer = vec![0; 2048];
    let mut last = None;
    let mut patience = 5000;
    while sys::becomes_readable(fd, patience)? {
        let len = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT)?;
        last = buffer.get(head..len).map(<[u8]>::to_vec);
        patience = 100;
    }
    Ok(last)
}
