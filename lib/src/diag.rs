//! What the kernel says of sockets that no descriptor of theirs can be asked: sock_diag(7).

use crate::error::{At, Error, Result, Status};
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::unix::nlas::{Nla, UnixDiagName};
use netlink_packet_sock_diag::unix::{ShowFlags, StateFlags, UnixRequest, UnixResponse};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
use nix::libc;
use nix::sched::{CloneFlags, setns};
use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;
use std::sync::Mutex;

/// A unix socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnixSocket {
    /// SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET.
    pub class: u8,
    /// Whether it waits for connections.
    pub listens: bool,
    /// The address it is bound to, without the family: a path, or an abstract name after a NUL.
    pub name: Option<Vec<u8>>,
    /// The inode of the socket it is connected to; zero if that is closed.
    pub peer: Option<u32>,
    /// Connections that wait to be accepted.
    pub pending: u32,
    /// The two numbers of UNIX_DIAG_RQLEN: bytes that can be read or pending connections, and bytes
    /// that are written and not read or the backlog.
    pub queue: (u32, u32),
    /// RCV_SHUTDOWN 1, SEND_SHUTDOWN 2.
    pub shutdown: u8,
}

/// From so many questions on it is cheaper to ask for all sockets at once.
const MANY: usize = 64;

/// A way to ask the kernel about the sockets of a network namespace.
#[derive(Default)]
pub struct Diag(Mutex<State>);

#[derive(Default)]
struct State {
    socket: Option<Socket>,
    asked: usize,
    all: HashMap<u32, UnixSocket>,
}

impl Diag {
    /// What is known of the unix socket with this inode. `netns` is its namespace if that is not
    /// ours; entering it takes CAP_SYS_ADMIN.
    pub fn unix(&self, inode: u32, netns: Option<BorrowedFd<'_>>) -> Result<UnixSocket> {
        let mut state = self.0.lock().map_err(|_| Error::new(Status::System, "sock_diag"))?;
        if let Some(known) = state.all.get(&inode) {
            return Ok(known.clone());
        }
        let State { socket, asked, all } = &mut *state;
        let socket = match socket {
            Some(socket) => socket,
            None => socket.insert(open(netns).at(|| "sock_diag")?),
        };
        *asked += 1;
        let whole = *asked == MANY;
        let mut found = None;
        ask(socket, (!whole).then_some(inode), &mut |response| {
            let socket = understood(&response);
            match whole {
                true => drop(all.insert(response.header.inode, socket)),
                false => found = Some(socket),
            }
        })
        .at(|| "sock_diag")?;
        let found = found.or_else(|| all.get(&inode).cloned());
        found.ok_or_else(|| Error::unrestorable("sock_diag does not know it"))
    }
}

fn open(netns: Option<BorrowedFd<'_>>) -> Result<Socket> {
    let open = || -> Result<Socket> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(socket)
    };
    let Some(netns) = netns else { return open() };
    // A socket stays in the namespace in which it was made; a thread of its own goes there and ends.
    let inside = std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            setns(netns, CloneFlags::CLONE_NEWNET).at(|| "its network namespace")?;
            open()
        });
        there.join()
    });
    inside.unwrap_or_else(|_| Err(Error::new(Status::System, "sock_diag")))
}

fn ask(socket: &Socket, inode: Option<u32>, take: &mut dyn FnMut(UnixResponse)) -> Result<()> {
    let request = UnixRequest {
        state_flags: StateFlags::from_bits_retain(u32::MAX),
        inode: inode.unwrap_or(0),
        show_flags: ShowFlags::NAME | ShowFlags::PEER | ShowFlags::ICONS | ShowFlags::RQLEN,
        cookie: [0xff; 8],
    };
    let mut message = NetlinkMessage::from(SockDiagMessage::UnixRequest(request));
    message.header.flags = NLM_F_REQUEST | if inode.is_none() { NLM_F_DUMP } else { 0 };
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let len = socket.recv(&mut &mut buffer[..], 0)?;
        let mut rest = &buffer[..len];
        while rest.len() >= 16 {
            let head = rest.first_chunk().map_or(0, |len| u32::from_ne_bytes(*len)) as usize;
            let Some(one) = rest.get(..head.max(16)) else { break };
            rest = rest.get(head.max(16).next_multiple_of(4)..).unwrap_or_default();
            // What the crate does not understand is a socket that is not found.
            let Ok(message) = NetlinkMessage::<SockDiagMessage>::deserialize(one) else { continue };
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::UnixResponse(response)) => {
                    take(*response);
                    if inode.is_some() {
                        return Ok(());
                    }
                }
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(err) => match err.raw_code() {
                    code if code == -libc::ENOENT => return Ok(()),
                    _ => return Err(err.to_io().into()),
                },
                _ => (),
            }
        }
        if inode.is_some() {
            return Ok(());
        }
    }
}

fn understood(response: &UnixResponse) -> UnixSocket {
    // TCP_LISTEN of include/net/tcp_states.h
    const LISTEN: u8 = 10;
    let header = &response.header;
    let mut socket =
        UnixSocket { class: header.kind, listens: header.state == LISTEN, ..UnixSocket::default() };
    for nla in &response.nlas {
        match nla {
            Nla::Name(UnixDiagName::Pathname(path)) => {
                socket.name = Some(path.clone().into_vec());
            }
            Nla::Name(UnixDiagName::Abstract(name)) => {
                socket.name = Some([&[0], name.as_slice()].concat());
            }
            Nla::Peer(inode) => socket.peer = Some(*inode),
            Nla::PendingConnections(waiting) => socket.pending = waiting.len() as u32,
            Nla::ReceiveQueueLength(read, write) => socket.queue = (*read, *write),
            Nla::Shutdown(halves) => socket.shutdown = *halves,
            _ => (),
        }
    }
    socket
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::fstat;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    fn inode(socket: impl AsFd) -> u32 {
        fstat(socket.as_fd()).unwrap().st_ino as u32
    }

    #[test]
    fn a_pair_is_known_by_its_peers_and_queue_one_by_one_and_all_at_once() {
        let diag = Diag::default();
        for _ in 0..2 * MANY {
            let (mut a, b) = UnixStream::pair().unwrap();
            a.write_all(b"hello").unwrap();
            let of = |socket: &UnixStream| diag.unix(inode(socket), None).unwrap();
            assert_eq!((of(&a).peer, of(&b).peer), (Some(inode(&b)), Some(inode(&a))));
            assert_eq!((of(&b).queue.0, of(&b).class), (5, libc::SOCK_STREAM as u8));
        }
    }

    #[test]
    fn a_listener_is_known_by_its_name_backlog_and_pending_connections() {
        let dir = std::env::temp_dir().join(format!("fdkit-diag-{}", std::process::id()));
        let listener = UnixListener::bind(&dir).unwrap();
        let client = UnixStream::connect(&dir).unwrap();
        let found = Diag::default().unix(inode(&listener), None).unwrap();
        std::fs::remove_file(&dir).unwrap();
        assert!(found.listens && found.pending == 1);
        assert_eq!(found.name.as_deref(), Some(dir.as_os_str().as_encoded_bytes()));
        drop(client);
    }

    #[test]
    fn what_is_no_unix_socket_is_not_found() {
        assert!(Diag::default().unix(1, None).is_err());
    }
}
