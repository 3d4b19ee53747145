//! mq_open(3): a queue of messages with priorities.

use crate::driver::{Bad, Difference, Fixture, link, reopen, stat};
use crate::spec::{At, Result, Spec};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::mqueue::{MQ_OFlag, MqAttr, mq_getattr, mq_open, mq_receive, mq_send, mq_unlink};
use nix::sys::signal::{SigEvent, SigevNotify};
use nix::sys::stat::{Mode, fchmod, fstat};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

pub(crate) struct Mqueue;

/// The default maximum of messages and of bytes in a message.
const USUAL: (u64, u64) = (10, 8192);

impl Fixture for Mqueue {
    const NAME: &'static str = "mqueue";
    const ABOUT: &'static str = "a message queue, whose name is gone unless it is kept";
    const KEYS: &'static [(&'static str, &'static str)] = &[
        ("name", "its name, without the slash"),
        ("kept", "its name is not unlinked"),
        ("old", "it is opened, not made, and what is in it is left alone"),
        ("maxmsg", "the most messages"),
        ("msgsize", "the most bytes of a message"),
        ("data", "PRIORITY.MESSAGE+PRIORITY.MESSAGE, in the order in which they are received"),
        ("read", "O_RDONLY (neither or both of read and write: O_RDWR)"),
        ("write", "O_WRONLY"),
        ("two", "a second description, O_RDONLY, at the second number"),
        ("mode", "its permissions, in decimal"),
        ("notify", "mq_notify(3) with SIGEV_NONE"),
    ];
    const DIFFERENCES: &'static [Difference] = &[
        ("mqueue@3:maxmsg=3", "mqueue@3", "attributes"),
        ("mqueue@3:data=1.a+0.b", "mqueue@3:data=2.a+0.b", "messages"),
        ("mqueue@3:data=1.a+1.b", "mqueue@3:data=1.b+1.a", "messages"),
        ("mqueue@3:mode=416", "mqueue@3", "mode is"),
        ("mqueue@3:name=fdkit-a", "mqueue@3:name=fdkit-b", "link is"),
        ("unlinked@3", "mqueue@3", "link is"),
    ];

    fn arity(spec: &Spec) -> usize {
        if spec.has("two") { 2 } else { 1 }
    }

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        let name = format!("/{}", name(spec));
        let open = |flags: OFlag, attributes: Option<&MqAttr>| {
            let flags = MQ_OFlag::from_bits_retain(flags.bits());
            let mode = Mode::from_bits_truncate(0o600);
            mq_open(name.as_str(), flags, mode, attributes).map(sys::owned_queue).at("mq_open")
        };
        if !spec.has("old") {
            let (maxmsg, msgsize) = attributes(spec);
            let attributes = MqAttr::new(0, maxmsg as _, msgsize as _, 0);
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR;
            let new = open(flags, Some(&attributes))?;
            let mut messages = messages(spec);
            // The queue itself sorts the messages by priority.
            messages.sort_by_key(|(priority, _)| *priority);
            for (priority, message) in messages {
                mq_send(&sys::queue(&new), &message, priority).at("mq_send")?;
            }
        }
        let mut made = vec![open(Self::flags(spec, 0), None)?];
        if spec.has("two") {
            made.push(open(OFlag::O_RDONLY, None)?);
        }
        // The mode is set after the queue is open, since it may prevent its owner from opening it
        // again.
        if let Some(mode) = spec.number("mode")? {
            fchmod(&made[0], Mode::from_bits_truncate(mode as u32)).at("fchmod")?;
        }
        if !spec.has("kept") && !spec.has("old") {
            mq_unlink(name.as_str()).at("mq_unlink")?;
        }
        Ok(made)
    }

    fn finish(spec: &Spec) -> Result<()> {
        if spec.has("notify") {
            let none = SigEvent::new(SigevNotify::SigevNone);
            let fd = sys::at(spec.fds[0]).at("mq_notify")?;
            sys::mq_notify(fd, &none).at("mq_notify")?;
        }
        Ok(())
    }

    fn flags(spec: &Spec, nth: usize) -> OFlag {
        match (nth, spec.has("read"), spec.has("write")) {
            (1, ..) | (_, true, false) => OFlag::O_RDONLY,
            (_, false, true) => OFlag::O_WRONLY,
            _ => OFlag::O_RDWR,
        }
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let fd = sys::at(spec.fds[0])?;
        let found = stat(fd, libc::S_IFREG, bad)?;
        let gone = if spec.has("kept") || spec.has("old") { "" } else { " (deleted)" };
        bad.same("link", link(spec.fds[0]), PathBuf::from(format!("/{}{gone}", name(spec))));
        let mode = spec.known_number("mode").unwrap_or(0o600);
        bad.same("mode", u64::from(found.st_mode & 0o7777), mode);
        let has = mq_getattr(&sys::queue(&fd))?;
        bad.same("attributes", (has.maxmsg() as u64, has.msgsize() as u64), attributes(spec));
        if let Some(&second) = spec.fds.get(1).filter(|_| spec.has("two")) {
            bad.same("inode of the second", fstat(sys::at(second)?)?.st_ino, found.st_ino);
        }
        let flags = Self::flags(spec, 0);
        if flags == OFlag::O_RDONLY {
            bad.same("a send", mq_send(&sys::queue(&fd), b"x", 0), Err(Errno::EBADF));
        }
        fchmod(fd, Mode::from_bits_truncate(0o600))?;
        let both = reopen(fd, OFlag::O_RDWR | OFlag::O_NONBLOCK)?;
        fchmod(fd, Mode::from_bits_truncate(mode as u32))?;
        let seen = received(&both)?;
        bad.same("messages", &seen, &messages(spec));
        mq_send(&sys::queue(&both), b"new", 7)?;
        bad.same("a new message", received(&both)?, vec![(7, b"new".to_vec())]);
        for (priority, message) in seen {
            mq_send(&sys::queue(&both), &message, priority)?;
        }
        Ok(())
    }
}

/// The name of the queue, which no other test uses.
fn name(spec: &Spec) -> String {
    let given = spec.bytes("name").map(|name| String::from_utf8_lossy(name).into_owned());
    given.unwrap_or_else(|| {
        let dir = spec.dir().unwrap_or_default();
        let dir = dir.file_name().unwrap_or_default().to_string_lossy();
        format!("{dir}.{}", spec.fds[0])
    })
}

fn attributes(spec: &Spec) -> (u64, u64) {
    let of = |key, usual| spec.known_number(key).unwrap_or(usual);
    (of("maxmsg", USUAL.0), of("msgsize", USUAL.1))
}

/// The messages of `data`, with their priorities.
fn messages(spec: &Spec) -> Vec<(u32, Vec<u8>)> {
    let Some(data) = spec.bytes("data") else { return Vec::new() };
    let messages = data.split(|&byte| byte == b'+').map(|message| {
        let dot = message.iter().position(|&byte| byte == b'.').unwrap_or(0);
        let priority = String::from_utf8_lossy(&message[..dot]).parse().unwrap_or(0);
        let text = message.get(dot + 1..).unwrap_or_default();
        let length = text.strip_prefix(b"@").map(|n| String::from_utf8_lossy(n).parse());
        match length {
            Some(Ok(n)) => (priority, crate::spec::pattern(n)),
            _ => (priority, text.to_vec()),
        }
    });
    messages.collect()
}

/// Receives all messages.
fn received(fd: &OwnedFd) -> Result<Vec<(u32, Vec<u8>)>, Errno> {
    let queue = sys::queue(fd);
    let mut buffer = vec![0; mq_getattr(&queue)?.msgsize() as usize];
    let mut all = Vec::new();
    while mq_getattr(&queue)?.curmsgs() > 0 {
        let mut priority = 0;
        let len = mq_receive(&queue, &mut buffer, &mut priority)?;
        all.push((priority, buffer[..len].to_vec()));
    }
    Ok(all)
}
