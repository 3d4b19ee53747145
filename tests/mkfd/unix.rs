//! Unix sockets with a name: a listening one, or one that receives datagrams.

use crate::driver::{Bad, Difference, Fixture};
use crate::inet;
use crate::socketpair::received;
use crate::spec::{At, Result, Spec};
use crate::sys;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept, bind, connect,
    getsockname, listen, sendto, socket,
};
use std::os::fd::{AsRawFd, OwnedFd};

pub(crate) struct Unix;

fn address(spec: &Spec) -> Result<UnixAddr> {
    match spec.bytes("abstract") {
        Some(name) => UnixAddr::new_abstract(name).at("its name"),
        None => UnixAddr::new(&spec.path()?).at("its name"),
    }
}

fn class(spec: &Spec) -> SockType {
    if spec.has("dgram") { SockType::Datagram } else { SockType::Stream }
}

fn messages(spec: &Spec) -> Vec<Vec<u8>> {
    let data = spec.data();
    data.map(|data| data.split(|&b| b == b'+').map(<[u8]>::to_vec).collect()).unwrap_or_default()
}

impl Fixture for Unix {
    const NAME: &'static str = "unix";
    const ABOUT: &'static str = "a unix socket with a name, which listens";
    const KEYS: &'static [(&'static str, &'static str)] = &[
        ("abstract", "this name that is in no file system"),
        ("path", "this path"),
        ("dgram", "takes datagrams, and listens not"),
        ("data", "datagrams that wait in it: a+b+c"),
        ("backlog", "of listen(2)"),
        ("unnamed", "a stream socket that is neither bound nor connected"),
    ];
    const DIFFERENCES: &'static [Difference] =
        &[("unix@3:abstract=fdkit-a", "unix@3:abstract=fdkit-b", "name")];

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        let new = || socket(AddressFamily::Unix, class(spec), SockFlag::SOCK_CLOEXEC, None);
        let made = new().at("socket")?;
        if spec.has("unnamed") {
            return Ok(vec![made]);
        }
        let at = address(spec)?;
        bind(made.as_raw_fd(), &at).at("bind")?;
        if !spec.has("dgram") {
            let backlog = spec.number("backlog")?.unwrap_or(5) as i32;
            listen(&made, Backlog::new(backlog).at("backlog")?).at("listen")?;
        }
        for message in messages(spec) {
            let sender = new().at("socket")?;
            sendto(sender.as_raw_fd(), &message, &at, MsgFlags::empty()).at("sendto")?;
        }
        Ok(vec![made])
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let fd = inet::at(spec, 0, class(spec) as i32, 0, bad)?;
        let name = getsockname::<UnixAddr>(fd.as_raw_fd())?;
        if spec.has("unnamed") {
            bad.same("name", name.path_len(), 0);
            return Ok(());
        }
        let Ok(at) = address(spec) else { return Ok(()) };
        bad.same("name", name, at);
        let client = socket(AddressFamily::Unix, class(spec), SockFlag::SOCK_CLOEXEC, None)?;
        if spec.has("dgram") {
            bad.same("messages", received(fd)?, messages(spec));
            sendto(client.as_raw_fd(), b"new", &at, MsgFlags::empty())?;
            bad.same("a new message", received(fd)?, vec![b"new".to_vec()]);
            return Ok(());
        }
        connect(client.as_raw_fd(), &at)?;
        sys::close(accept(fd.as_raw_fd())?);
        Ok(())
    }
}
