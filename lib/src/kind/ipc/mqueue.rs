//! mq_overview(7): a queue of messages with priorities, which has a name and lives on without any
//! descriptor. Its attributes are asked of a copy. There is no way to look at a message but to take
//! it out.

use crate::error::{At, Error, Result, Status};
use crate::image::{MAX_CHUNK, MessageMeta, OpenFile};
use crate::kind::context::{Opened, RestoreContext};
use crate::kind::journal::{Journal, RETRY_LIMIT};
use crate::kind::{ContentsContext, ContentsPiece, Kind, ObjectCheck, Piece, Sink};
use crate::operation::Outcome;
use crate::proc::Descriptor;
use crate::sys::flags::O_LARGEFILE;
use crate::sys::mqueue::{self, Attributes};
use crate::text::escape;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::sys::statfs::fstatfs;
use nix::sys::uio::pread;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;

/// A queue; its name is the last part of the link.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Mqueue {
    /// The most messages; zero if it could not be asked.
    maxmsg: u64,
    /// The most bytes of one.
    msgsize: u64,
    /// The messages that wait in it.
    messages: u64,
    /// Who is told of a message: mq_notify(3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    notify: Option<Notify>,
}

/// What the file of a queue tells of mq_notify(3).
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Notify {
    /// SIGEV_SIGNAL 0, SIGEV_NONE 1 or SIGEV_THREAD 2.
    how: u32,
    /// The signal.
    signal: u32,
    /// The process that asked to be told; zero if it is in another pid namespace.
    pid: i32,
}

/// The type of the file system of queues, for statfs(2): ipc/mqueue.c.
const MQUEUE_MAGIC: u32 = 0x1980_0202;
/// The size of the file that each queue is: FILENT_SIZE of ipc/mqueue.c.
const SIZE: u64 = 80;
/// HARD_MSGMAX and HARD_MSGSIZEMAX of linux/ipc_namespace.h: what root is bound to.
const HARD: (u64, u64) = (65536, 16 << 20);
/// MQ_PRIO_MAX of linux/limits.h
const PRIORITIES: u32 = 32768;
const ACCESS: u32 = libc::O_ACCMODE as u32;
const NONBLOCK: u32 = libc::O_NONBLOCK as u32;

/// The text that read(2) gives of a queue, and how many bytes its messages have.
fn told(text: &str) -> Option<(u64, Option<Notify>)> {
    let of = |key: &str| text.split_whitespace().find_map(|word| word.strip_prefix(key));
    let notify = Notify {
        how: of("NOTIFY:")?.parse().ok()?,
        signal: of("SIGNO:")?.parse().ok()?,
        pid: of("NOTIFY_PID:")?.parse().ok()?,
    };
    let is_some = (notify.how, notify.signal, notify.pid) != (0, 0, 0);
    Some((of("QSIZE:")?.parse().ok()?, is_some.then_some(notify)))
}

/// A description of ours, since theirs may be for one direction, or wait.
fn ours(copy: BorrowedFd<'_>, access: OFlag) -> nix::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
    let flags = access | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    open(path.as_str(), flags, Mode::empty())
}

fn ask(queue: BorrowedFd<'_>) -> Result<(u64, Option<Notify>)> {
    let mut text = [0; SIZE as usize];
    let len = pread(queue, &mut text, 0).at(|| "read")?;
    let text = String::from_utf8_lossy(&text[..len]);
    told(&text).ok_or_else(|| Error::unrestorable("its text is not a queue's"))
}

fn is_queue(fd: BorrowedFd<'_>) -> bool {
    fstatfs(fd).is_ok_and(|found| found.filesystem_type().0 as u32 == MQUEUE_MAGIC)
}

/// The name of a queue: the last part of its link.
fn name(file: &OpenFile) -> &[u8] {
    let link = match is_unlinked(file) {
        true => file.link.0.strip_suffix(b" (deleted)").unwrap_or(&file.link.0),
        false => &file.link.0,
    };
    link.rsplit(|&byte| byte == b'/').next().unwrap_or_default()
}

fn is_unlinked(file: &OpenFile) -> bool {
    file.inode.as_ref().is_some_and(|inode| inode.nlink == 0)
}

/// Whether it was opened by mq_open(3), and not by the path that it has where queues are mounted:
/// open(2) adds O_LARGEFILE, and mq_open(3) does not.
fn is_called(file: &OpenFile) -> bool {
    file.flags & O_LARGEFILE == 0
}

/// What a queue that stands is called now, by its link.
fn name_now(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).at(|| "readlink")?;
    let link = link.into_os_string().into_vec();
    Ok(link.rsplit(|&byte| byte == b'/').next().unwrap_or_default().to_vec())
}

impl Mqueue {
    fn attributes(&self) -> Attributes {
        let (maxmsg, msgsize) = (self.maxmsg as i64, self.msgsize as i64);
        Attributes { maxmsg, msgsize, curmsgs: 0 }
    }

    /// Whether this queue is one that could be the old one.
    fn fits(&self, found: &Attributes) -> Result<()> {
        if (Attributes { curmsgs: 0, ..*found }) == self.attributes() {
            return Ok(());
        }
        let (is, was) = ((found.maxmsg, found.msgsize), (self.maxmsg, self.msgsize));
        Err(Error::unrestorable(format!(
            "the queue of this name is for {} messages of {} bytes, and was for {} of {}",
            is.0, is.1, was.0, was.1
        )))
    }

    /// Whether this kernel lets us make it.
    fn allowed(&self) -> Result<()> {
        const CAP_SYS_RESOURCE: u32 = 24;
        if crate::proc::own_capabilities() & 1 << CAP_SYS_RESOURCE != 0 {
            return Ok(());
        }
        for (name, wanted) in [("msg_max", self.maxmsg), ("msgsize_max", self.msgsize)] {
            let text = std::fs::read_to_string(format!("/proc/sys/fs/mqueue/{name}"));
            let most = text.ok().and_then(|text| text.trim().parse::<u64>().ok());
            if let Some(most) = most.filter(|most| wanted > *most) {
                return Err(Error::unrestorable(format!(
                    "fs.mqueue.{name} is {most} and must be {wanted}"
                )));
            }
        }
        Ok(())
    }

    /// The one that is there by the same name, opened as the old one was.
    fn existing(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<Option<OwnedFd>> {
        let opened = match is_called(file) {
            true => mqueue::open(name(file), (file.flags & (ACCESS | NONBLOCK)) as i32, None)
                .at(|| "mq_open"),
            false => cx.open(&file.link.0, file.flags),
        };
        let fd = match opened {
            Err(err) if err.errno() == Some(Errno::ENOENT) => return Ok(None),
            opened => opened?,
        };
        if !is_queue(fd.as_fd()) {
            return Err(Error::unrestorable("the path now names something else"));
        }
        self.fits(&mqueue::attributes(fd.as_fd()).at(|| "mq_getattr")?)?;
        Ok(Some(fd))
    }

    /// Makes the queue, by its name if that is free.
    fn make(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<(OwnedFd, Vec<u8>)> {
        let mut name = name(file).to_vec();
        let mut made = mqueue::open(&name, libc::O_RDWR, Some(&self.attributes()));
        if matches!(made, Err(Errno::EEXIST)) && is_unlinked(file) {
            // The name is another's by now, who keeps it.
            name = format!(".fdrestore-{}-{}", std::process::id(), file.id).into_bytes();
            made = mqueue::open(&name, libc::O_RDWR, Some(&self.attributes()));
            let shown = escape(&file.link.0).into_owned();
            let why = "a new queue has its name: the restored one shows another";
            cx.warnings.push(format!("{shown}: {why}"));
        }
        let made = made.map_err(|errno| match errno {
            Errno::EMFILE => {
                Error::unrestorable("RLIMIT_MSGQUEUE allows no more bytes in queues of this user")
            }
            errno => errno.into(),
        });
        Ok((made.at(|| "mq_open")?, name))
    }

    /// A description of a queue by the path that it had, if that leads to it again.
    fn by_path(
        &self,
        queue: BorrowedFd<'_>,
        file: &OpenFile,
        cx: &mut RestoreContext<'_>,
    ) -> Result<Opened> {
        let inode = |fd: BorrowedFd<'_>| fstat(fd).map(|found| (found.st_dev, found.st_ino));
        if let Ok(Some(fd)) = self.existing(file, cx) {
            if inode(fd.as_fd())? == inode(queue)? {
                return Ok(Opened::new(fd, file.flags));
            }
        }
        if !is_unlinked(file) {
            let shown = escape(&file.link.0).into_owned();
            let why = "no queues are mounted there: the restored one shows its name alone";
            cx.warnings.push(format!("{shown}: {why}"));
        }
        cx.reopen_descriptor(queue, file.flags)
    }

    /// A description of a queue that stands, with these flags.
    fn again(
        &self,
        queue: BorrowedFd<'_>,
        file: &OpenFile,
        cx: &mut RestoreContext<'_>,
    ) -> Result<Opened> {
        let name = name_now(queue)?;
        let found = fstat(queue.as_fd())?;
        if is_called(file) && found.st_nlink > 0 {
            let flags = file.flags & (ACCESS | NONBLOCK);
            let mut opened = mqueue::open(&name, flags as i32, None);
            if matches!(opened, Err(Errno::EACCES)) && is_unlinked(file) {
                // We have made it; its mode, which it has by now, does not allow this to its owner.
                let chmod = |mode| fchmod(queue.as_fd(), Mode::from_bits_truncate(mode));
                chmod(0o600).at(|| "fchmod")?;
                opened = mqueue::open(&name, flags as i32, None);
                chmod(found.st_mode & 0o7777).at(|| "fchmod")?;
            }
            return Ok(Opened::new(opened.at(|| "mq_open")?, flags));
        }
        self.by_path(queue.as_fd(), file, cx)
    }
}

impl Kind for Mqueue {
    const NAME: &'static str = "mqueue";
    const SHARES_OBJECT: bool = true;
    const SEEKABLE: bool = true;

    fn claims(it: &Descriptor<'_>) -> bool {
        match (&it.copy, &it.inode) {
            (Some(copy), Some(inode)) => {
                inode.size == SIZE
                    && inode.mode & libc::S_IFMT == libc::S_IFREG
                    && !it.is_path()
                    && is_queue(copy.as_fd())
            }
            // What mq_open(3) opens is on a mount that is nowhere.
            _ => {
                let name = it.link.0.strip_prefix(b"/");
                name.is_some_and(|name| !name.contains(&b'/') && !name.starts_with(b"memfd:"))
                    && !it.is_path()
                    && it.process.sees_mount(it.info.mnt) == Some(false)
            }
        }
    }

    fn capture(it: &Descriptor<'_>) -> Result<Self> {
        let Some(copy) = &it.copy else {
            return Ok(Mqueue { maxmsg: 0, msgsize: 0, messages: 0, notify: None });
        };
        let found = mqueue::attributes(copy.as_fd()).at(|| "mq_getattr")?;
        // To read its text takes a description that can be read, which we may not be allowed.
        let asked = ours(copy.as_fd(), OFlag::O_RDONLY).map_err(Error::from);
        let notify = asked.and_then(|queue| ask(queue.as_fd())).ok().and_then(|(_, it)| it);
        Ok(Mqueue {
            maxmsg: found.maxmsg as u64,
            msgsize: found.msgsize as u64,
            messages: found.curmsgs as u64,
            notify,
        })
    }

    fn contents(
        copy: BorrowedFd<'_>,
        cx: &ContentsContext<'_>,
        limit: u64,
        to: Sink<'_>,
    ) -> Result<()> {
        let found = mqueue::attributes(copy).at(|| "mq_getattr")?;
        if found.curmsgs == 0 {
            return Ok(());
        }
        cx.require_frozen()?;
        let queue = ours(copy, OFlag::O_RDWR).at(|| "open it to read and write")?;
        let (bytes, notify) = ask(queue.as_fd())?;
        if bytes > limit {
            let why = format!("its {bytes} bytes are more than the limit {limit}");
            return Err(Error::unrestorable(why));
        }
        if let Some(notify) = notify {
            return Err(Error::unrestorable(format!(
                "process {} would be told of a message that is put back (mq_notify)",
                notify.pid
            )));
        }
        let (messages, longest) = (found.curmsgs as usize, found.msgsize as usize);
        let mut log = Journal::new(messages, bytes as usize, longest)?;
        let turned = log.run_in_child_then_here(|log| turn_over(log, queue.as_fd()))?;
        hand_on(&log, to)?;
        turned.map_err(|(errno, lost)| {
            let why = format!("{lost} messages could not be put back: {}", errno.desc());
            Error::new(Status::System, why)
        })
    }

    fn validate(&self, file: &OpenFile) -> Result<()> {
        let name = name(file);
        if name.is_empty() || name.len() > 255 || name.contains(&0) {
            return Err(Error::malformed("a queue has a name of 1 to 255 bytes"));
        }
        if file.inode.is_none() {
            return Ok(());
        }
        let possible = |value, most| (1..=most).contains(&value);
        if !possible(self.maxmsg, HARD.0) || !possible(self.msgsize, HARD.1) {
            return Err(Error::malformed("no queue has such attributes"));
        }
        Ok(())
    }

    fn object_check() -> Option<Box<dyn ObjectCheck<Self>>> {
        Some(Box::new(MessagesCheck::default()))
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        if file.inode.is_none() {
            return Err(Error::unrestorable("a passive scan tells nothing of a queue"));
        }
        let is_there = !is_unlinked(file) && self.existing(file, cx)?.is_some();
        if is_there { Ok(()) } else { self.allowed() }
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        if let Some(peer) = cx.open_of_object(file) {
            return self.again(peer.as_fd(), file, cx);
        }
        let shown = escape(&file.link.0).into_owned();
        let flags = file.flags & (ACCESS | NONBLOCK);
        let found = match is_unlinked(file) {
            true => None,
            false => self.existing(file, cx)?,
        };
        let Mqueue { maxmsg: _, msgsize: _, messages, ref notify } = *self;
        if let Some(notify) = notify {
            let why = "asked to be told of messages (mq_notify), and has to ask again";
            cx.warnings.push(format!("{shown}: process {} {why}", notify.pid));
        }
        if let Some(fd) = found {
            let now = mqueue::attributes(fd.as_fd()).at(|| "mq_getattr")?.curmsgs as u64;
            if now != messages {
                let why = "it is still there, and what is in it is left alone";
                cx.warnings
                    .push(format!("{shown}: it had {messages} messages and has {now}: {why}"));
            }
            return Ok(Opened::new(fd, flags));
        }
        if messages > 0 && !cx.has_contents(file.object) {
            let why = "are not in the image (scan with --freeze --data): it is restored empty";
            cx.warnings.push(format!("{shown}: the {messages} messages in it {why}"));
        }
        let (queue, name) = self.make(file, cx)?;
        let made = (|| {
            let mut message = Vec::new();
            cx.contents(file.object, |chunk, bytes| {
                message.extend_from_slice(bytes);
                let with = chunk.with.as_deref().cloned().unwrap_or_default();
                if with.more {
                    return Ok(());
                }
                mqueue::send(queue.as_fd(), &message, with.priority.unwrap_or(0))
                    .at(|| "put back its messages")?;
                message.clear();
                Ok(())
            })?;
            let made = match flags & ACCESS == libc::O_RDWR as u32 && is_called(file) {
                true => Opened::new(queue.try_clone().at(|| "dup")?, 0),
                false if is_called(file) => {
                    let fd = mqueue::open(&name, flags as i32, None).at(|| "mq_open")?;
                    Opened::new(fd, flags)
                }
                false => self.by_path(queue.as_fd(), file, cx)?,
            };
            cx.set_owner_and_mode(queue.as_fd(), file)?;
            Ok(made)
        })();
        // Other descriptions of it are opened by its name; the last of them to stand takes it away.
        if made.is_err() || is_unlinked(file) && cx.others_of_object(file).is_empty() {
            mqueue::unlink(&name).at(|| "mq_unlink")?;
        }
        made
    }

    fn finish_text(&self) -> Option<&'static str> {
        None
    }

    fn finish(
        &self,
        file: &OpenFile,
        _: RawFd,
        fd: BorrowedFd<'_>,
        _: &Outcome,
        _: &mut RestoreContext<'_>,
    ) -> Result<()> {
        if is_unlinked(file) && fstat(fd)?.st_nlink > 0 {
            mqueue::unlink(&name_now(fd)?).at(|| "mq_unlink")?;
        }
        Ok(())
    }
}

/// The messages of a queue fit its attributes, as each of its descriptions has them.
#[derive(Default)]
struct MessagesCheck {
    /// The most messages, and the most bytes of one.
    most: Option<(u64, u64)>,
    messages: u64,
    /// Bytes of the message that is not complete yet.
    len: usize,
}

impl ObjectCheck<Mqueue> for MessagesCheck {
    fn file(&mut self, record: &Mqueue, file: &OpenFile) -> Result<()> {
        if file.inode.is_some() {
            let (messages, bytes) = self.most.unwrap_or((u64::MAX, u64::MAX));
            self.most = Some((messages.min(record.maxmsg), bytes.min(record.msgsize)));
        }
        Ok(())
    }

    fn contents(&mut self, piece: &ContentsPiece<'_>) -> Result<()> {
        let Some((most, longest)) = self.most else { return Ok(()) };
        let priority = piece.meta.and_then(|meta| meta.priority).unwrap_or(0);
        self.len += piece.len;
        if self.len as u64 > longest || priority >= PRIORITIES {
            return Err(Error::malformed("no message of it has such a length or priority"));
        }
        if !piece.meta.is_some_and(|meta| meta.more) {
            self.messages += 1;
            self.len = 0;
        }
        match self.messages > most {
            true => Err(Error::malformed("it has more messages than it can hold")),
            false => Ok(()),
        }
    }
}

/// Takes out all messages and puts them back, in the order in which they come, which is that of
/// their priorities and then of their age: so they wait again as they did. Or says why not, and how
/// many remain. At stage 0 they are taken out, at stage n + 1 there are n back.
fn turn_over(log: &mut Journal, queue: BorrowedFd<'_>) -> std::result::Result<(), (Errno, usize)> {
    if log.stage() == 0 {
        take(log, queue);
        log.set_stage(1);
    }
    let taken = log.entries().count();
    let done = log.stage() - 1;
    for (nth, (priority, message)) in log.entries().enumerate().skip(done) {
        let mut tries = 0;
        while let Err(errno) = mqueue::send(queue, message, priority) {
            // Memory may be short for a while, or a stranger has filled the queue meanwhile.
            if !matches!(errno, Errno::ENOMEM | Errno::EAGAIN | Errno::EINTR)
                || tries == RETRY_LIMIT.0
            {
                return Err((errno, taken - nth));
            }
            tries += 1;
            std::thread::sleep(RETRY_LIMIT.1);
        }
        log.set_stage(nth + 2);
    }
    Ok(())
}

fn take(log: &mut Journal, queue: BorrowedFd<'_>) {
    let receive = |room: &mut [u8]| {
        let (len, priority) = mqueue::receive(queue, room)?;
        Ok((priority, len))
    };
    while log.add(receive).is_ok() {}
}

fn hand_on(log: &Journal, to: Sink<'_>) -> Result<()> {
    for (priority, message) in log.entries() {
        let priority = (priority != 0).then_some(priority);
        let mut rest = message;
        loop {
            let (bytes, after) = rest.split_at(rest.len().min(MAX_CHUNK));
            let more = !after.is_empty();
            let with = (more || priority.is_some()).then(|| MessageMeta {
                priority,
                more,
                ..MessageMeta::default()
            });
            to(Piece { bytes, with, ..Piece::default() })?;
            rest = after;
            if !more {
                break;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::tests::body_of;

    const SMALL: Attributes = Attributes { maxmsg: 4, msgsize: 100, curmsgs: 0 };

    fn queue(what: &str) -> OwnedFd {
        let name = format!("fdkit-{what}-{}", std::process::id()).into_bytes();
        let queue = mqueue::open(&name, libc::O_RDWR | libc::O_NONBLOCK, Some(&SMALL)).unwrap();
        mqueue::unlink(&name).unwrap();
        queue
    }

    #[test]
    fn the_text_of_a_queue_is_its_bytes_and_who_is_told() {
        let notify = |how, signal, pid| Some(Notify { how, signal, pid });
        let text = "QSIZE:5          NOTIFY:0     SIGNO:0     NOTIFY_PID:0     \n";
        assert_eq!(told(text), Some((5, None)));
        let text = "QSIZE:0          NOTIFY:0     SIGNO:10    NOTIFY_PID:77    \n";
        assert_eq!(told(text), Some((0, notify(0, 10, 77))));
        let text = "QSIZE:0          NOTIFY:1     SIGNO:0     NOTIFY_PID:0     \n";
        assert_eq!(told(text), Some((0, notify(1, 0, 0))));
        assert_eq!(told("QSIZE:5 NOTIFY:x"), None);
    }

    #[test]
    fn a_queue_has_its_attributes_and_a_count() {
        let queue = queue("attributes");
        mqueue::send(queue.as_fd(), b"hello", 3).unwrap();
        let body = Mqueue { maxmsg: 4, msgsize: 100, messages: 1, notify: None };
        assert_eq!(body_of::<Mqueue>(&queue), body);
    }

    #[test]
    fn messages_that_were_taken_wait_again_in_their_order_whoever_puts_them_back() {
        let queue = queue("order");
        let all: [(&[u8], u32); 4] = [(b"first", 1), (b"", 1), (b"urgent", 9), (b"late", 0)];
        for (message, priority) in all {
            mqueue::send(queue.as_fd(), message, priority).unwrap();
        }
        let mut log = Journal::new(4, ask(queue.as_fd()).unwrap().0 as usize, 100).unwrap();
        take(&mut log, queue.as_fd());
        assert_eq!(mqueue::attributes(queue.as_fd()).unwrap().curmsgs, 0);
        // As if the child had ended after the first was back.
        let (priority, first) = log.entries().next().unwrap();
        mqueue::send(queue.as_fd(), first, priority).unwrap();
        log.set_stage(2);
        turn_over(&mut log, queue.as_fd()).unwrap();
        // Done is done.
        turn_over(&mut log, queue.as_fd()).unwrap();
        let mut seen = Vec::new();
        hand_on(&log, &mut |piece| {
            seen.push((piece.bytes.to_vec(), piece.with.and_then(|with| with.priority)));
            Ok(())
        })
        .unwrap();
        let mut buffer = [0; 100];
        let mut received = Vec::new();
        while let Ok((len, priority)) = mqueue::receive(queue.as_fd(), &mut buffer) {
            received.push((buffer[..len].to_vec(), (priority > 0).then_some(priority)));
        }
        let wanted = [all[2], all[0], all[1], all[3]];
        let wanted = wanted.map(|(message, p)| (message.to_vec(), (p > 0).then_some(p)));
        assert_eq!((&received[..], &seen[..]), (&wanted[..], &wanted[..]));
    }

    #[test]
    fn what_does_not_fit_in_is_said_and_counted() {
        let queue = queue("full");
        mqueue::send(queue.as_fd(), b"mine", 0).unwrap();
        let mut log = Journal::new(1, 4, 100).unwrap();
        take(&mut log, queue.as_fd());
        log.set_stage(1);
        for _ in 0..4 {
            mqueue::send(queue.as_fd(), b"a stranger's", 0).unwrap();
        }
        assert_eq!(turn_over(&mut log, queue.as_fd()), Err((Errno::EAGAIN, 1)));
    }
}
