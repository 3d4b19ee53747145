//! The records of an image, as fdimage(5) describes them. Integers have the kernel's values.

use super::scan;
use crate::error::{Error, Result};
use crate::text::escape;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::BTreeMap;
use std::fmt;

/// The major version of the format: a reader refuses any other.
pub const VERSION: u16 = 1;

/// The minor version that this version writes. 1 added the record `missing`, the
/// host, the cgroup of a task, and threads with tables of their own.
pub const MINOR: u16 = 1;

/// The most bytes of contents in one `data` record.
pub const MAX_CHUNK: usize = 64 << 10;

/// Bytes from the kernel, of any encoding: a CBOR byte string.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        Bytes(bytes.to_vec())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Bytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a byte string")
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }
            fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
                Ok(Bytes(bytes))
            }
        }
        from.deserialize_byte_buf(Visitor)
    }
}

fn is_false(flag: &bool) -> bool {
    !flag
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// The first record: what made the image, when, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// [`VERSION`].
    pub version: u16,
    /// The minor version, which grows when keys or types are added. Those that are there keep their
    /// meaning.
    pub minor: u16,
    /// The name of the tool that made the image.
    pub tool: String,
    /// The version of that tool.
    pub release: String,
    /// The release of the kernel: uname(2).
    pub kernel: Bytes,
    /// /proc/sys/kernel/random/boot_id.
    pub boot: String,
    /// The host name: gethostname(2). Minor version 1 added it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Bytes>,
    /// The time of the scan: seconds and nanoseconds since 1970, CLOCK_REALTIME.
    pub time: (u64, u32),
    /// It has contents, of queues and of files without a name: `--data`.
    pub contents: bool,
    /// The tasks were stopped while they were captured: `--freeze`.
    pub frozen: bool,
    /// Only the text of /proc was read, so that sharing, owners and sizes are not known:
    /// `--passive`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub passive: bool,
}

/// The credentials of a process: credentials(7), capabilities(7).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Credentials {
    /// Real, effective, saved and file system user id.
    pub uids: [u32; 4],
    /// Real, effective, saved and file system group id.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// The inheritable, permitted, effective, bounding and ambient capabilities, a bit each.
    pub caps: [u64; 5],
}

/// A controlling terminal: fields 7 and 8 of proc_pid_stat(5).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Terminal {
    /// The device number, encoded as it is there.
    pub device: u32,
    /// The foreground process group; negative if there is none.
    pub foreground: i32,
    /// The path by which it is to be opened, if ttyctl(1) retarget has set one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Bytes>,
}

/// The descriptor table of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// Its id in this stream. Tasks that share a table (CLONE_FILES) have one id.
    pub id: u32,
    /// The slots that the kernel has allocated: FDSize of proc_pid_status(5).
    pub capacity: u32,
    /// The highest open number, selected or not; none if the table was empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub highest: Option<u32>,
    /// The soft and the hard RLIMIT_NOFILE.
    pub limit: (u64, u64),
}

/// A process, which is one task of the image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// The process id, in the pid namespace of the scan; the id of a thread with a table of its own.
    pub pid: i32,
    /// The process that it is a thread of, if it is a thread with a descriptor table of its own. Minor
    /// version 1 added it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tgid: Option<i32>,
    /// The process id of its parent.
    pub ppid: i32,
    /// The id of its process group.
    pub pgid: i32,
    /// The id of its session.
    pub sid: i32,
    /// The time at which it started, in clock ticks since boot: field 22 of proc_pid_stat(5).
    pub start: u64,
    /// The name of the program, at most 15 bytes: proc_pid_comm(5).
    pub comm: Bytes,
    /// The path of the program, if it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe: Option<Bytes>,
    /// The arguments, as the process had them at the scan.
    pub args: Vec<Bytes>,
    /// The working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<Bytes>,
    /// The root directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Bytes>,
    /// The file mode creation mask.
    pub umask: u32,
    /// Its credentials.
    pub credentials: Credentials,
    /// The inode of each namespace by its name in /proc/PID/ns.
    pub namespaces: BTreeMap<String, u64>,
    /// Its path in the cgroup v2 hierarchy, as the cgroup namespace of the scan has it: the line `0::` of
    /// /proc/PID/cgroup. Minor version 1 added it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<Bytes>,
    /// Its descriptor table.
    pub table: Table,
    /// Its controlling terminal, also if no descriptor is open on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<Terminal>,
    /// A signal had stopped it: job control.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stopped: bool,
}

/// The inode of an open file description: inode(7). A passive scan has none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode {
    /// The major and minor number of the device that it is on.
    pub dev: (u32, u32),
    /// The inode number.
    pub ino: u64,
    /// The file type and mode.
    pub mode: u32,
    /// The number of hard links.
    pub nlink: u32,
    /// The user id of its owner.
    pub uid: u32,
    /// The id of its group.
    pub gid: u32,
    /// The size in bytes.
    pub size: u64,
    /// The time of the last change of the contents: seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// The major and minor number of the device that it represents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rdev: Option<(u32, u32)>,
}

/// The owner of an open file description, which is sent a signal when I/O is possible: F_SETOWN_EX
/// and F_SETSIG of fcntl(2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signals {
    /// F_OWNER_TID 0, F_OWNER_PID 1 or F_OWNER_PGRP 2.
    pub kind: i32,
    /// The id of the thread, process or process group; zero if there is no owner.
    pub id: i32,
    /// The signal; zero for SIGIO.
    pub signal: i32,
}

/// A lock or lease: a `lock:` line of proc_pid_fdinfo(5).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lock {
    /// `POSIX`, `FLOCK`, `OFDLCK`, `LEASE` or `DELEG`.
    pub class: String,
    /// It is exclusive, not shared.
    pub write: bool,
    /// The offset of the first byte.
    pub start: u64,
    /// The offset of the last byte; none if it reaches to the end of the file, however that grows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<u64>,
    /// A lease that its holder has to give up, since somebody waits to open the file: `write` then
    /// tells the lease that it may keep, not the one that it had.
    #[serde(default, skip_serializing_if = "is_false")]
    pub breaking: bool,
}

impl Lock {
    /// Reports whether it is a record lock of fcntl(2): it covers a range of bytes, and excludes
    /// other record locks.
    pub fn is_record(&self) -> bool {
        matches!(self.class.as_str(), "POSIX" | "OFDLCK")
    }

    /// The lock as messages name it.
    pub fn describe(&self) -> String {
        let how = if self.write { "write" } else { "read" };
        let class = match self.class.as_str() {
            "POSIX" => "POSIX",
            "OFDLCK" => "OFD",
            "FLOCK" if self.write => return "exclusive flock".to_owned(),
            "FLOCK" => return "shared flock".to_owned(),
            "LEASE" if self.breaking => return "lease that is being broken".to_owned(),
            "LEASE" => return format!("{how} lease"),
            other => return format!("{} lock", escape(other.as_bytes())),
        };
        match (self.start, self.end) {
            (0, None) => format!("{class} {how} lock"),
            (start, None) => format!("{class} {how} lock from byte {start} on"),
            (start, Some(end)) => format!("{class} {how} lock on bytes {start} to {end}"),
        }
    }
}

/// The name of the kind of a description that no kind claims: it is recorded, and not restored.
pub const OPAQUE: &str = "opaque";

/// An open file description: open(2). dup(2) and fork(2) make descriptors that share one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenFile {
    /// Its id in this stream; ids ascend.
    pub id: u32,
    /// The name of its kind.
    pub kind: String,
    /// The access mode and file status flags, without O_CLOEXEC: F_GETFL of fcntl(2).
    pub flags: u32,
    /// The file offset.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub pos: i64,
    /// The text of the link in /proc/PID/fd.
    pub link: Bytes,
    /// The id of the mount: proc_pid_mountinfo(5).
    pub mnt: i32,
    /// Its inode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inode: Option<Inode>,
    /// Its owner and signal, if it has either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signals: Option<Signals>,
    /// The id of the object that it shares with other descriptions, and whose contents are in
    /// `data` records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<u32>,
    /// The locks and the lease that belong to the description: FLOCK, OFDLCK, LEASE.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locks: Vec<Lock>,
    /// The properties that its kind defines: one encoded map.
    #[serde(skip)]
    pub body: Vec<u8>,
}

impl OpenFile {
    /// Reports whether no kind claimed it.
    pub fn is_opaque(&self) -> bool {
        self.kind == OPAQUE
    }
}

/// A descriptor: a number in a table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slot {
    /// The id of the table.
    pub table: u32,
    /// The number. The descriptors of a table ascend.
    pub fd: u32,
    /// Close-on-exec: FD_CLOEXEC of fcntl(2).
    #[serde(default, skip_serializing_if = "is_false")]
    pub cloexec: bool,
    /// The id of the open file description that it refers to.
    pub file: u32,
    /// The POSIX record locks of the table on this file, with the first of its numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locks: Vec<Lock>,
}

/// A piece of the contents of an object: bytes of a file or stream, or one message of a queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Data {
    /// The id of the object.
    pub object: u32,
    /// Its offset in a file. Pieces of a queue have zero, and are in the order of the queue.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub offset: i64,
    /// The properties of a message, if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub with: Option<Box<MessageMeta>>,
    /// At most [`MAX_CHUNK`] bytes.
    pub bytes: Bytes,
}

/// The properties of a message beside its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageMeta {
    /// The address of the sender, encoded as addresses are in the body of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Bytes>,
    /// The ids of the open file descriptions that are queued with it: SCM_RIGHTS of unix(7).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<u32>,
    /// The process, user and group id of the sender: SCM_CREDENTIALS of unix(7).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<(i32, u32, u32)>,
    /// The priority of a message of mq_overview(7); none is zero.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// The message is longer than one piece and goes on in the next.
    #[serde(default, skip_serializing_if = "is_false")]
    pub more: bool,
    /// The piece was typed to a terminal, and not read yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub typed: Option<Typed>,
}

/// The end of a piece that was typed to a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Typed {
    /// Its last byte ends a line.
    Line,
    /// VEOF, which is no byte of it, ends a line.
    Eof,
    /// It was there when canonical mode was switched on, and is read as one line.
    Whole,
    /// None: it is the beginning of a line, or any bytes outside canonical mode.
    Open,
    /// It has no bytes: VLNEXT was typed, so that the next character is taken as it is.
    Quote,
    /// It came when the line discipline was full, and has not been processed.
    Late,
}

/// A process that belongs to the scan, but that is not in the image, or not whole.
///
/// A reader can tell with it a part from the whole. It was added by minor version 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// The process id.
    pub pid: i32,
    /// The name of its program, if it was read in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comm: Option<Bytes>,
    /// Its task is in the image, but some of its descriptors are not.
    #[serde(default, skip_serializing_if = "is_false")]
    pub partial: bool,
    /// The reason, as fdscan has said it.
    pub why: String,
    /// The error of the system call that failed, if one did: errno(3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
}

impl Missing {
    /// The process and the reason, as messages have them.
    pub fn describe(&self) -> String {
        let comm = self.comm.iter().map(|comm| format!(" ({})", escape(&comm.0)));
        let part = if self.partial { "is not in the image whole" } else { "is not in the image" };
        format!(
            "process {}{} {part}: {}",
            self.pid,
            comm.collect::<String>(),
            escape(self.why.as_bytes())
        )
    }
}

/// The last record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The number of records before it.
    pub items: u64,
    /// The CRC-32 (IEEE 802.3) of all bytes before it.
    pub crc: u32,
}

/// A record of any type.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// `head`
    Head(Head),
    /// `task`
    Task(Box<Task>),
    /// `file`
    File(Box<OpenFile>),
    /// `slot`
    Slot(Slot),
    /// `data`
    Data(Data),
    /// `missing`
    Missing(Missing),
    /// `end`
    End(End),
    /// A type that this minor version does not know, which is passed on as it is.
    Other,
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_cbor::from_slice(bytes).map_err(|err| {
        let text = err.to_string();
        Error::malformed(text.split(" at offset").next().unwrap_or(&text))
    })
}

impl Item {
    /// Decodes the value of the record with this key. Fails with status 3.
    pub(super) fn decode(key: &[u8], value: &[u8]) -> Result<Item> {
        // A struct is also taken from an array by serde; an image has maps only.
        if value.first().is_none_or(|first| first >> 5 != 5) {
            return Err(Error::malformed(format!("{}: not a map", escape(key))));
        }
        Ok(match key {
            b"head" => Item::Head(decode(value)?),
            b"task" => Item::Task(decode(value)?),
            b"file" => {
                let mut file: Box<OpenFile> = decode(value)?;
                let body = scan::field(value, "body").unwrap_or(&[0xa0]);
                if body.first().is_none_or(|first| first >> 5 != 5) {
                    return Err(Error::malformed("file: its body is not a map"));
                }
                file.body = body.to_vec();
                Item::File(file)
            }
            b"slot" => Item::Slot(decode(value)?),
            b"data" => {
                let data: Data = decode(value)?;
                if data.bytes.0.len() > MAX_CHUNK || data.offset < 0 {
                    return Err(Error::malformed("data: more than 64 KiB, or a negative offset"));
                }
                Item::Data(data)
            }
            b"missing" => Item::Missing(decode(value)?),
            b"end" => Item::End(decode(value)?),
            _ => Item::Other,
        })
    }

    /// The record's key and its encoded value.
    pub(super) fn encode(&self) -> (&'static str, Vec<u8>) {
        // Encoding into memory fails for no type that is here.
        fn bytes(value: &impl Serialize) -> Vec<u8> {
            serde_cbor::to_vec(value).unwrap_or_default()
        }
        match self {
            Item::Head(it) => ("head", bytes(it)),
            Item::Task(it) => ("task", bytes(it)),
            Item::File(it) => {
                let mut map = bytes(it);
                scan::push_field(&mut map, "body", &it.body);
                ("file", map)
            }
            Item::Slot(it) => ("slot", bytes(it)),
            Item::Data(it) => ("data", bytes(it)),
            Item::Missing(it) => ("missing", bytes(it)),
            Item::End(it) => ("end", bytes(it)),
            Item::Other => ("other", vec![0xa0]),
        }
    }
}
