//! mq_overview(7): a queue of messages with priorities, which has a name and exists until it is
//! unlinked, even if no descriptor of it is open. A message can be read only by removing it.

use crate::error::{At, Error, Result, Status};
use crate::image::{MAX_CHUNK, MessageMeta, OpenFile};
use crate::kind::context::{Opened, RestoreContext};
use crate::kind::effect::{Allow, Effect};
use crate::kind::journal::{Journal, RETRY_LIMIT};
use crate::kind::{ContentsContext, ContentsPiece, Kind, ObjectCheck, Piece, Sink, check_limit};
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

/// The record of a queue. Its name is the last component of the link.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Mqueue {
    /// The maximum number of messages: mq_maxmsg of mq_getattr(3). Zero in a passive scan.
    maxmsg: u64,
    /// The maximum length of a message, in bytes: mq_msgsize.
    msgsize: u64,
    /// The number of messages in the queue: mq_curmsgs.
    messages: u64,
    /// The registration of mq_notify(3), if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    notify: Option<Notify>,
}

/// A registration for mq_notify(3), as the file of the queue shows it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Notify {
    /// SIGEV_SIGNAL 0, SIGEV_NONE 1 or SIGEV_THREAD 2.
    how: u32,
    /// The signal.
    signal: u32,
    /// The registered process; zero if it is in another pid namespace.
    pid: i32,
}

/// The type of the file system of queues, for statfs(2): ipc/mqueue.c.
const MQUEUE_MAGIC: u32 = 0x1980_0202;
/// The size in bytes of the file of each queue: FILENT_SIZE of ipc/mqueue.c.
const FILE_SIZE: u64 = 80;
/// The limits of maxmsg and msgsize for a privileged process: HARD_MSGMAX and HARD_MSGSIZEMAX of
/// linux/ipc_namespace.h.
const HARD_LIMITS: (u64, u64) = (65536, 16 << 20);
/// The number of priorities: MQ_PRIO_MAX of linux/limits.h.
const PRIORITIES: u32 = 32768;
const ACCESS: u32 = libc::O_ACCMODE as u32;
const NONBLOCK: u32 = libc::O_NONBLOCK as u32;

/// Parses the file of a queue: the bytes of all messages together, and the mq_notify(3)
/// registration (mqueue_read_file of ipc/mqueue.c).
fn parse_file(text: &str) -> Option<(u64, Option<Notify>)> {
    let value = |key: &str| text.split_whitespace().find_map(|word| word.strip_prefix(key));
    let notify = Notify {
        how: value("NOTIFY:")?.parse().ok()?,
        signal: value("SIGNO:")?.parse().ok()?,
        pid: value("NOTIFY_PID:")?.parse().ok()?,
    };
    let is_some = (notify.how, notify.signal, notify.pid) != (0, 0, 0);
    Some((value("QSIZE:")?.parse().ok()?, is_some.then_some(notify)))
}

/// Opens a new description with this access mode and O_NONBLOCK: that of the scanned process may
/// have another mode, or block.
fn open_nonblocking(copy: BorrowedFd<'_>, access: OFlag) -> nix::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
    let flags = access | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    open(path.as_str(), flags, Mode::empty())
}

/// Reads the file of a queue, as [`parse_file`].
fn read_file(queue: BorrowedFd<'_>) -> Result<(u64, Option<Notify>)> {
    let mut text = [0; FILE_SIZE as usize];
    let len = pread(queue, &mut text, 0).at(|| "read")?;
    let text = String::from_utf8_lossy(&text[..len]);
    parse_file(&text).ok_or_else(|| Error::unrestorable("the text of its file is not understood"))
}

fn is_queue(fd: BorrowedFd<'_>) -> bool {
    fstatfs(fd).is_ok_and(|found| found.filesystem_type().0 as u32 == MQUEUE_MAGIC)
}

/// The name of a queue: the last component of its link.
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

/// Reports whether a queue was opened by mq_open(3), and not by a path of a mounted mqueue file
/// system: open(2) adds O_LARGEFILE, and mq_open(3) does not.
fn is_opened_by_name(file: &OpenFile) -> bool {
    file.flags & O_LARGEFILE == 0
}

/// The name now of an open queue, by its link.
fn current_name(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).at(|| "readlink")?;
    let link = link.into_os_string().into_vec();
    Ok(link.rsplit(|&byte| byte == b'/').next().unwrap_or_default().to_vec())
}

impl Mqueue {
    fn attributes(&self) -> Attributes {
        let (maxmsg, msgsize) = (self.maxmsg as i64, self.msgsize as i64);
        Attributes { maxmsg, msgsize, curmsgs: 0 }
    }

    /// Fails with status 6 if an existing queue has other attributes than the recorded one.
    fn check_attributes(&self, found: &Attributes) -> Result<()> {
        if (Attributes { curmsgs: 0, ..*found }) == self.attributes() {
            return Ok(());
        }
        let (is, was) = ((found.maxmsg, found.msgsize), (self.maxmsg, self.msgsize));
        Err(Error::unrestorable(format!(
            "the queue that has its name is for {} messages of {} bytes, the recorded one for {} of {}",
            is.0, is.1, was.0, was.1
        )))
    }

    /// Fails with status 6 if the limits of fs.mqueue do not permit such a queue. They do not bind
    /// a process with CAP_SYS_RESOURCE.
    fn check_limits(&self) -> Result<()> {
        const CAP_SYS_RESOURCE: u32 = 24;
        if crate::proc::own_capabilities() & 1 << CAP_SYS_RESOURCE != 0 {
            return Ok(());
        }
        for (name, wanted) in [("msg_max", self.maxmsg), ("msgsize_max", self.msgsize)] {
            let text = std::fs::read_to_string(format!("/proc/sys/fs/mqueue/{name}"));
            let limit = text.ok().and_then(|text| text.trim().parse::<u64>().ok());
            if let Some(limit) = limit.filter(|limit| wanted > *limit) {
                return Err(Error::unrestorable(format!(
                    "fs.mqueue.{name} is {limit} and must be {wanted}; set it with sysctl(8)"
                )));
            }
        }
        Ok(())
    }

    /// Opens the existing queue of the recorded name or path. None if there is none; fails with
    /// status 6 if it has other attributes, or is not a queue.
    fn open_existing(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<Option<OwnedFd>> {
        let opened = match is_opened_by_name(file) {
            true => mqueue::open(name(file), (file.flags & (ACCESS | NONBLOCK)) as i32, None)
                .at(|| "mq_open"),
            false => self.open_path(file, cx),
        };
        let fd = match opened {
            Err(err) if err.errno() == Some(Errno::ENOENT) => return Ok(None),
            opened => opened?,
        };
        self.check_attributes(&mqueue::attributes(fd.as_fd()).at(|| "mq_getattr")?)?;
        Ok(Some(fd))
    }

    /// Opens the queue at the recorded path. The path may now lead to a device or fifo, and opening one
    /// can have any effect, so its file is looked at first. Opening a queue has none.
    fn open_path(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<OwnedFd> {
        let (place, found) = cx.look(&file.link.0, false)?;
        if found.mode & libc::S_IFMT != libc::S_IFREG || !is_queue(place.as_fd()) {
            return Err(Error::unrestorable(
                "its path now leads to a file that is not a message queue",
            ));
        }
        Ok(cx.open_seen(&file.link.0, place.as_fd(), file.flags)?.fd)
    }

    /// Creates the queue, by its name or, if it is unlinked and the name is taken, by another.
    fn create(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<(OwnedFd, Vec<u8>)> {
        let mut name = name(file).to_vec();
        let mut made = mqueue::open(&name, libc::O_RDWR, Some(&self.attributes()));
        if matches!(made, Err(Errno::EEXIST)) && is_unlinked(file) {
            // Another queue has the name now, and keeps it.
            name = format!(".fdrestore-{}-{}", std::process::id(), file.id).into_bytes();
            made = mqueue::open(&name, libc::O_RDWR, Some(&self.attributes()));
            let shown = escape(&file.link.0).into_owned();
            let why = "another queue has its name now; it is restored under a different one";
            cx.warnings.push(format!("{shown}: {why}"));
        }
        let made = made.map_err(|errno| match errno {
            Errno::EMFILE => Error::unrestorable(
                "the queues of this user have reached RLIMIT_MSGQUEUE (ulimit -q)",
            ),
            errno => errno.into(),
        });
        Ok((made.at(|| "mq_open")?, name))
    }

    /// Opens another description of a queue by the recorded path, if that leads to the queue.
    fn reopen_by_path(
        &self,
        queue: BorrowedFd<'_>,
        file: &OpenFile,
        cx: &mut RestoreContext<'_>,
    ) -> Result<Opened> {
        let inode = |fd: BorrowedFd<'_>| fstat(fd).map(|found| (found.st_dev, found.st_ino));
        if let Ok(Some(fd)) = self.open_existing(file, cx) {
            if inode(fd.as_fd())? == inode(queue)? {
                return Ok(Opened::new(fd, file.flags));
            }
        }
        if !is_unlinked(file) {
            let shown = escape(&file.link.0).into_owned();
            let why =
                "no mqueue file system is mounted there: the restored queue shows its name only";
            cx.warnings.push(format!("{shown}: {why}"));
        }
        cx.reopen_descriptor(queue, file.flags)
    }

    /// Opens another description of a queue that is open, with the flags of a file.
    fn reopen(
        &self,
        queue: BorrowedFd<'_>,
        file: &OpenFile,
        cx: &mut RestoreContext<'_>,
    ) -> Result<Opened> {
        let name = current_name(queue)?;
        let found = fstat(queue.as_fd())?;
        if is_opened_by_name(file) && found.st_nlink > 0 {
            let flags = file.flags & (ACCESS | NONBLOCK);
            let mut opened = mqueue::open(&name, flags as i32, None);
            if matches!(opened, Err(Errno::EACCES)) && is_unlinked(file) {
                // This process has created the queue, but the recorded mode, which is already set,
                // does not permit its owner to open it.
                let chmod = |mode| fchmod(queue.as_fd(), Mode::from_bits_truncate(mode));
                chmod(0o600).at(|| "fchmod")?;
                opened = mqueue::open(&name, flags as i32, None);
                chmod(found.st_mode & 0o7777).at(|| "fchmod")?;
            }
            return Ok(Opened::new(opened.at(|| "mq_open")?, flags));
        }
        self.reopen_by_path(queue.as_fd(), file, cx)
    }
}

impl Kind for Mqueue {
    const NAME: &'static str = "mqueue";
    const SHARES_OBJECT: bool = true;
    const TAKES_CONTENTS_OUT: bool = true;
    const SEEKABLE: bool = true;

    fn claims(descriptor: &Descriptor<'_>) -> bool {
        match (&descriptor.copy, &descriptor.inode) {
            (Some(copy), Some(inode)) => {
                inode.size == FILE_SIZE
                    && inode.mode & libc::S_IFMT == libc::S_IFREG
                    && !descriptor.is_path()
                    && is_queue(copy.as_fd())
            }
            // mq_open(3) opens files on an internal mount, which mountinfo does not list.
            _ => {
                let name = descriptor.link.0.strip_prefix(b"/");
                name.is_some_and(|name| !name.contains(&b'/') && !name.starts_with(b"memfd:"))
                    && !descriptor.is_path()
                    && descriptor.process.sees_mount(descriptor.info.mnt) == Some(false)
            }
        }
    }

    fn capture(descriptor: &Descriptor<'_>) -> Result<Self> {
        let Some(copy) = &descriptor.copy else {
            return Ok(Mqueue { maxmsg: 0, msgsize: 0, messages: 0, notify: None });
        };
        let found = mqueue::attributes(copy.as_fd()).at(|| "mq_getattr")?;
        let readable = open_nonblocking(copy.as_fd(), OFlag::O_RDONLY).map_err(Error::from);
        let notify = match readable.and_then(|queue| read_file(queue.as_fd())) {
            Ok((_, notify)) => notify,
            // Reading the file takes a readable description; permissions may not allow one.
            Err(err) if err.errno() == Some(Errno::EACCES) => None,
            Err(err) => {
                let why = "whether a process has called mq_notify(3) is not known";
                descriptor.warn(format!("{why}: {err}"));
                None
            }
        };
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
        let queue = open_nonblocking(copy, OFlag::O_RDWR).at(|| "open it to read and write")?;
        let (bytes, notify) = read_file(queue.as_fd())?;
        check_limit(bytes, limit)?;
        if let Some(notify) = notify {
            return Err(Error::unrestorable(format!(
                "reading them would notify process {}, which has called mq_notify(3)",
                notify.pid
            )));
        }
        let (messages, longest) = (found.curmsgs as usize, found.msgsize as usize);
        let rotation = Rotation { queue: queue.as_fd(), messages, bytes: bytes as usize };
        let mut journal = Rotation::journal(messages, bytes as usize, longest)?;
        let outcome = journal.run_in_child_then_here(|journal| rotation.run(journal))?;
        pass_messages(&journal, to)?;
        outcome.map_err(|(errno, lost)| {
            let why = format!("{lost} messages could not be put back into it: {}", errno.desc());
            Error::new(Status::System, why)
        })
    }

    fn validate(&self, file: &OpenFile) -> Result<()> {
        let name = name(file);
        if name.is_empty() || name.len() > 255 || name.contains(&0) {
            return Err(Error::malformed("its name does not have 1 to 255 bytes"));
        }
        if file.inode.is_none() {
            return Ok(());
        }
        let possible = |value, limit| (1..=limit).contains(&value);
        if !possible(self.maxmsg, HARD_LIMITS.0) || !possible(self.msgsize, HARD_LIMITS.1) {
            return Err(Error::malformed("its attributes are not within the limits of the kernel"));
        }
        Ok(())
    }

    fn object_check() -> Option<Box<dyn ObjectCheck<Self>>> {
        Some(Box::new(MessagesCheck::default()))
    }

    fn effects(&self, file: &OpenFile, _: &RestoreContext<'_>) -> Result<Vec<Effect>> {
        let shown = escape(name(file));
        Ok(vec![match is_unlinked(file) {
            true => Effect::allowed(format!("creates the message queue /{shown} for a moment")),
            false => {
                let what = format!("opens the message queue /{shown}, or creates it");
                Effect::needing(Allow::Mqueue, what)
            }
        }])
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        if file.inode.is_none() {
            return Err(Error::unrestorable(
                "a passive scan does not record its attributes; scan without --passive",
            ));
        }
        let exists = !is_unlinked(file) && self.open_existing(file, cx)?.is_some();
        if exists { Ok(()) } else { self.check_limits() }
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        if let Some(peer) = cx.open_of_object(file) {
            return self.reopen(peer.as_fd(), file, cx);
        }
        let shown = escape(&file.link.0).into_owned();
        let flags = file.flags & (ACCESS | NONBLOCK);
        let found = match is_unlinked(file) {
            true => None,
            false => self.open_existing(file, cx)?,
        };
        let Mqueue { maxmsg: _, msgsize: _, messages, ref notify } = *self;
        if let Some(notify) = notify {
            let why = "was registered with mq_notify(3): it has to register again";
            cx.warnings.push(format!("{shown}: process {} {why}", notify.pid));
        }
        if let Some(fd) = found {
            let now = mqueue::attributes(fd.as_fd()).at(|| "mq_getattr")?.curmsgs as u64;
            if now != messages {
                let why = "it exists already, and its messages are not changed";
                cx.warnings
                    .push(format!("{shown}: it had {messages} messages and has {now}: {why}"));
            }
            return Ok(Opened::new(fd, flags));
        }
        if messages > 0 && !cx.has_contents(file.object) {
            let why = "are not in the image (scan with --freeze --data): it is restored empty";
            cx.warnings.push(format!("{shown}: the {messages} messages in it {why}"));
        }
        let (queue, name) = self.create(file, cx)?;
        let made = (|| {
            let mut message = Vec::new();
            cx.contents(file.object, |chunk, bytes| {
                message.extend_from_slice(bytes);
                let with = chunk.with.as_deref().cloned().unwrap_or_default();
                if with.more {
                    return Ok(());
                }
                mqueue::send(queue.as_fd(), &message, with.priority.unwrap_or(0))
                    .at(|| "send its messages")?;
                message.clear();
                Ok(())
            })?;
            let made = match flags & ACCESS == libc::O_RDWR as u32 && is_opened_by_name(file) {
                true => Opened::new(queue.try_clone().at(|| "dup")?, 0),
                false if is_opened_by_name(file) => {
                    let fd = mqueue::open(&name, flags as i32, None).at(|| "mq_open")?;
                    Opened::new(fd, flags)
                }
                false => self.reopen_by_path(queue.as_fd(), file, cx)?,
            };
            cx.set_owner_and_mode(queue.as_fd(), file)?;
            Ok(made)
        })();
        // Other descriptions of the queue are opened by its name; the last one unlinks it.
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
            mqueue::unlink(&current_name(fd)?).at(|| "mq_unlink")?;
        }
        Ok(())
    }
}

/// Checks that the messages fit the attributes that each description of the queue records.
#[derive(Default)]
struct MessagesCheck {
    /// The maximum number of messages, and the maximum length of one in bytes.
    limits: Option<(u64, u64)>,
    messages: u64,
    /// The name, and whether the queue is unlinked.
    name: Option<(Vec<u8>, bool)>,
    /// The bytes so far of a message that is not complete.
    len: usize,
}

impl ObjectCheck<Mqueue> for MessagesCheck {
    fn file(&mut self, record: &Mqueue, file: &OpenFile) -> Result<()> {
        let name = (name(file).to_vec(), is_unlinked(file));
        if *self.name.get_or_insert_with(|| name.clone()) != name {
            return Err(Error::malformed("one queue has two names, or is unlinked and not"));
        }
        if file.inode.is_some() {
            let (messages, bytes) = self.limits.unwrap_or((u64::MAX, u64::MAX));
            self.limits = Some((messages.min(record.maxmsg), bytes.min(record.msgsize)));
        }
        Ok(())
    }

    fn contents(&mut self, piece: &ContentsPiece<'_>) -> Result<()> {
        let Some((maxmsg, msgsize)) = self.limits else { return Ok(()) };
        let priority = piece.meta.and_then(|meta| meta.priority).unwrap_or(0);
        self.len += piece.len;
        if self.len as u64 > msgsize || priority >= PRIORITIES {
            return Err(Error::malformed(
                "one of its messages has a length or priority that it does not permit",
            ));
        }
        if !piece.meta.is_some_and(|meta| meta.more) {
            self.messages += 1;
            self.len = 0;
        }
        match self.messages > maxmsg {
            true => Err(Error::malformed("it has more messages than it can hold")),
            false => Ok(()),
        }
    }
}

/// Receives all messages of a queue, and sends them again in the order in which they were received,
/// which is by priority and then by age: the queue is then as before.
///
/// A process that is killed ends after the system call that it is in: the last message may have been
/// received or sent, and not be counted in the journal. The counts of the queue tell.
#[derive(Clone, Copy)]
struct Rotation<'a> {
    queue: BorrowedFd<'a>,
    /// The messages in the queue before, and their bytes.
    messages: usize,
    bytes: usize,
}

/// The bytes of a priority, which the kernel writes behind a message.
const PRIORITY: usize = size_of::<u32>();

impl Rotation<'_> {
    /// A journal with room for all messages of a queue, none of which is longer than `longest`.
    fn journal(messages: usize, bytes: usize, longest: usize) -> Result<Journal> {
        Journal::new(messages, bytes, longest + PRIORITY)
    }

    /// Does all that is left to do. The stage is 0 until all messages are received, and n + 1 when n
    /// of them are sent. Fails with the errno, and the number of messages that are not sent.
    fn run(&self, journal: &mut Journal) -> std::result::Result<(), (Errno, usize)> {
        let mut sent = journal.stage().saturating_sub(1);
        if journal.stage() == 0 {
            self.receive_all(journal);
            journal.set_stage(1);
        } else if self.waiting() == Ok(sent + 1) {
            sent += 1;
        }
        let received = journal.entries().count();
        for (nth, (priority, message)) in journal.entries().enumerate().skip(sent) {
            let mut tries = 0;
            while let Err(errno) = mqueue::send(self.queue, message, priority) {
                // Memory may be short for a moment, or another process has filled the queue.
                if !matches!(errno, Errno::ENOMEM | Errno::EAGAIN | Errno::EINTR)
                    || tries == RETRY_LIMIT.0
                {
                    return Err((errno, received - nth));
                }
                tries += 1;
                std::thread::sleep(RETRY_LIMIT.1);
            }
            journal.set_stage(nth + 2);
        }
        Ok(())
    }

    /// The number of messages in the queue.
    fn waiting(&self) -> nix::Result<usize> {
        Ok(mqueue::attributes(self.queue)?.curmsgs as usize)
    }

    /// Receives all messages into the journal; the mark of an entry is the priority.
    fn receive_all(&self, journal: &mut Journal) {
        if let Some(len) = self.uncounted(journal) {
            // The message is where the next one would be read to.
            let _ = journal.add(|room| Ok((priority_behind(room), len)));
        }
        let receive = |room: &mut [u8]| {
            let (message, priority) =
                room.split_last_chunk_mut::<PRIORITY>().ok_or(Errno::EINVAL)?;
            let len = mqueue::receive_with(self.queue, message, priority)?;
            Ok((priority_behind(room), len))
        };
        while journal.add(receive).is_ok() {}
    }

    /// The length of a message that was received and is not in the journal, if there is one.
    fn uncounted(&self, journal: &Journal) -> Option<usize> {
        let counted = journal.entries().count();
        if counted + self.waiting().ok()? + 1 != self.messages {
            return None;
        }
        let bytes: usize = journal.entries().map(|(_, bytes)| bytes.len()).sum();
        let waiting = read_file(self.queue).ok()?.0 as usize;
        self.bytes.checked_sub(bytes + waiting)
    }
}

/// The priority that the kernel has written at the end of the room of a message.
fn priority_behind(room: &[u8]) -> u32 {
    room.last_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

/// Passes the received messages on, in order.
fn pass_messages(journal: &Journal, to: Sink<'_>) -> Result<()> {
    for (priority, message) in journal.entries() {
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

    fn queue(test: &str) -> OwnedFd {
        let name = format!("fdkit-{test}-{}", std::process::id()).into_bytes();
        let queue = mqueue::open(&name, libc::O_RDWR | libc::O_NONBLOCK, Some(&SMALL)).unwrap();
        mqueue::unlink(&name).unwrap();
        queue
    }

    #[test]
    fn the_file_of_a_queue_has_its_bytes_and_the_registration() {
        let notify = |how, signal, pid| Some(Notify { how, signal, pid });
        let text = "QSIZE:5          NOTIFY:0     SIGNO:0     NOTIFY_PID:0     \n";
        assert_eq!(parse_file(text), Some((5, None)));
        let text = "QSIZE:0          NOTIFY:0     SIGNO:10    NOTIFY_PID:77    \n";
        assert_eq!(parse_file(text), Some((0, notify(0, 10, 77))));
        let text = "QSIZE:0          NOTIFY:1     SIGNO:0     NOTIFY_PID:0     \n";
        assert_eq!(parse_file(text), Some((0, notify(1, 0, 0))));
        assert_eq!(parse_file("QSIZE:5 NOTIFY:x"), None);
    }

    #[test]
    fn the_attributes_and_the_number_of_messages_are_captured() {
        let queue = queue("attributes");
        mqueue::send(queue.as_fd(), b"hello", 3).unwrap();
        let body = Mqueue { maxmsg: 4, msgsize: 100, messages: 1, notify: None };
        assert_eq!(body_of::<Mqueue>(&queue), body);
    }

    #[test]
    fn received_messages_are_sent_in_order_by_the_second_process_too() {
        let queue = queue("order");
        let all: [(&[u8], u32); 4] = [(b"first", 1), (b"", 1), (b"urgent", 9), (b"late", 0)];
        for (message, priority) in all {
            mqueue::send(queue.as_fd(), message, priority).unwrap();
        }
        let bytes = read_file(queue.as_fd()).unwrap().0 as usize;
        let rotation = Rotation { queue: queue.as_fd(), messages: 4, bytes };
        let mut journal = Rotation::journal(4, bytes, 100).unwrap();
        rotation.receive_all(&mut journal);
        assert_eq!(mqueue::attributes(queue.as_fd()).unwrap().curmsgs, 0);
        // As if the child was killed after it had sent the first.
        let (priority, first) = journal.entries().next().unwrap();
        mqueue::send(queue.as_fd(), first, priority).unwrap();
        journal.set_stage(2);
        rotation.run(&mut journal).unwrap();
        // The second call has nothing left to do.
        rotation.run(&mut journal).unwrap();
        let mut seen = Vec::new();
        pass_messages(&journal, &mut |piece| {
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

    /// All messages of a queue, with their priorities, in the order in which they are received.
    fn received(queue: &OwnedFd) -> Vec<(Vec<u8>, u32)> {
        let mut buffer = [0; 100];
        std::iter::from_fn(|| {
            mqueue::receive(queue.as_fd(), &mut buffer)
                .ok()
                .map(|(len, priority)| (buffer[..len].to_vec(), priority))
        })
        .collect()
    }

    #[test]
    fn a_message_that_a_killed_process_did_not_count_is_neither_lost_nor_doubled() {
        let queue = queue("uncounted");
        let all = [(b"urgent".to_vec(), 9), (b"first".to_vec(), 1), (Vec::new(), 1)];
        for (message, priority) in &all {
            mqueue::send(queue.as_fd(), message, *priority).unwrap();
        }
        let bytes = read_file(queue.as_fd()).unwrap().0 as usize;
        let rotation = Rotation { queue: queue.as_fd(), messages: 3, bytes };
        for counted in 0..3 {
            let mut journal = Rotation::journal(3, bytes, 100).unwrap();
            for nth in 0..=counted {
                // As if it was killed in the last call, after which it adds nothing.
                let added = journal.add(|room| {
                    let (message, priority) = room.split_last_chunk_mut().unwrap();
                    let len = mqueue::receive_with(queue.as_fd(), message, priority)?;
                    let priority = u32::from_ne_bytes(*priority);
                    if nth == counted { Err(Errno::EINTR) } else { Ok((priority, len)) }
                });
                assert_eq!(added.is_ok(), nth < counted);
            }
            rotation.run(&mut journal).unwrap();
            assert_eq!(journal.entries().count(), 3, "{counted} received");
            assert_eq!(rotation.waiting(), Ok(3));
            // As if it was killed after it had sent one that it did not count.
            assert_eq!(received(&queue), all, "{counted} received");
            for (message, priority) in &all[..=counted] {
                mqueue::send(queue.as_fd(), message, *priority).unwrap();
            }
            journal.set_stage(counted + 1);
            rotation.run(&mut journal).unwrap();
            assert_eq!(received(&queue), all, "{counted} sent");
            for (message, priority) in &all {
                mqueue::send(queue.as_fd(), message, *priority).unwrap();
            }
        }
    }

    #[test]
    fn messages_that_no_longer_fit_are_counted() {
        let queue = queue("full");
        mqueue::send(queue.as_fd(), b"mine", 0).unwrap();
        let rotation = Rotation { queue: queue.as_fd(), messages: 1, bytes: 4 };
        let mut journal = Rotation::journal(1, 4, 100).unwrap();
        rotation.receive_all(&mut journal);
        journal.set_stage(1);
        for _ in 0..4 {
            mqueue::send(queue.as_fd(), b"other", 0).unwrap();
        }
        assert_eq!(rotation.run(&mut journal), Err((Errno::EAGAIN, 1)));
    }
}
