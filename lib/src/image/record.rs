//! The records of an image, as fdimage(5) describes them. Integers keep the kernel's values.

use super::scan;
use crate::error::{Error, Result};
use crate::text::escape;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::BTreeMap;
use std::fmt;

/// The major version of the format: a reader refuses any other.
pub const VERSION: u16 = 1;

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
    /// Grows when keys are added; their meaning never changes.
    pub minor: u16,
    /// The tool that made the image.
    pub tool: String,
    /// The version of that tool.
    pub release: String,
    /// The kernel's release, as uname(2) says it.
    pub kernel: Bytes,
    /// /proc/sys/kernel/random/boot_id.
    pub boot: String,
    /// Seconds and nanoseconds since 1970.
    pub time: (u64, u32),
    /// Whether contents of queues and unlinked files are included.
    pub contents: bool,
    /// Whether the tasks were stopped while they were captured.
    pub frozen: bool,
    /// Whether only the text of /proc was used: sharing, owners and sizes are not known.
    #[serde(default, skip_serializing_if = "is_false")]
    pub passive: bool,
}

/// User and group ids, each as real, effective, saved and file system id, and capability sets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Credentials {
    /// User ids.
    pub uids: [u32; 4],
    /// Group ids.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Inheritable, permitted, effective, bounding and ambient capabilities.
    pub caps: [u64; 5],
}

/// A controlling terminal, from fields 7 and 8 of /proc/PID/stat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Terminal {
    /// The device, as the kernel encodes it there.
    pub device: u32,
    /// The foreground process group; negative if there is none.
    pub foreground: i32,
    /// Where it is to be opened, if somebody asked for one by name: ttyctl(1) retarget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Bytes>,
}

/// Facts of the table of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// An id of this stream; tasks made with CLONE_FILES share it.
    pub id: u32,
    /// FDSize of /proc/PID/status: the slots that the kernel has allocated.
    pub capacity: u32,
    /// The highest number open, whatever was selected; none if the table was empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub highest: Option<u32>,
    /// RLIMIT_NOFILE, soft and hard.
    pub limit: (u64, u64),
}

/// A process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Process id, in the pid namespace of the scan.
    pub pid: i32,
    /// Parent.
    pub ppid: i32,
    /// Process group.
    pub pgid: i32,
    /// Session.
    pub sid: i32,
    /// Clock ticks between boot and start: field 22 of /proc/PID/stat.
    pub start: u64,
    /// Name of the program, at most 15 bytes.
    pub comm: Bytes,
    /// Path of the program, if it may be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe: Option<Bytes>,
    /// The arguments, as the process has them now.
    pub args: Vec<Bytes>,
    /// The working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<Bytes>,
    /// The root directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Bytes>,
    /// The file mode creation mask.
    pub umask: u32,
    /// Who it runs as.
    pub credentials: Credentials,
    /// The inode of each namespace by its name in /proc/PID/ns.
    pub namespaces: BTreeMap<String, u64>,
    /// Its descriptor table.
    pub table: Table,
    /// Its controlling terminal, also where no descriptor names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<Terminal>,
    /// Whether a signal had stopped it: job control.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stopped: bool,
}

/// What stat(2) says of what is open. Nothing of it is known for a passive scan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode {
    /// Major and minor number of the device it is on.
    pub dev: (u32, u32),
    /// Inode number.
    pub ino: u64,
    /// Type and permissions.
    pub mode: u32,
    /// Names that it has.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// Last change of the contents, seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Major and minor number of the device that it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rdev: Option<(u32, u32)>,
}

/// Who is told by a signal that a descriptor is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signals {
    /// F_OWNER_TID 0, F_OWNER_PID 1 or F_OWNER_PGRP 2.
    pub kind: i32,
    /// The thread, process or group; zero for nobody.
    pub id: i32,
    /// The signal in place of SIGIO; zero for SIGIO itself.
    pub signal: i32,
}

/// A lock, from a `lock:` line of fdinfo.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lock {
    /// `POSIX`, `FLOCK`, `OFDLCK`, `LEASE` or `DELEG`.
    pub class: String,
    /// Exclusive, not shared.
    pub write: bool,
    /// First byte.
    pub start: u64,
    /// Last byte; none for the end of the file, however it grows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<u64>,
    /// A lease that its holder is to give up, since somebody waits to open the file: `write` then
    /// says what it may keep, not what it had.
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

/// An open file description: what dup(2) and fork(2) share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenFile {
    /// An id of this stream; ids ascend.
    pub id: u32,
    /// The name of its kind.
    pub kind: String,
    /// Access mode and status flags, without O_CLOEXEC.
    pub flags: u32,
    /// The file position.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub pos: i64,
    /// What readlink(2) shows.
    pub link: Bytes,
    /// The mount, as /proc/PID/mountinfo numbers it.
    pub mnt: i32,
    /// What is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inode: Option<Inode>,
    /// Owner and signal, if it has either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signals: Option<Signals>,
    /// The object that it shares with other descriptions, and whose contents `data` records hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<u32>,
    /// Locks that belong to the description.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locks: Vec<Lock>,
    /// What only its kind understands: one encoded map.
    #[serde(skip)]
    pub body: Vec<u8>,
}

impl OpenFile {
    /// Reports whether no kind claimed it.
    pub fn is_opaque(&self) -> bool {
        self.kind == OPAQUE
    }
}

/// A number in a table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slot {
    /// The table.
    pub table: u32,
    /// The number. The slots of a table ascend.
    pub fd: u32,
    /// FD_CLOEXEC.
    #[serde(default, skip_serializing_if = "is_false")]
    pub cloexec: bool,
    /// The file it names.
    pub file: u32,
    /// POSIX record locks, which belong to the table: with the first of the numbers that have them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locks: Vec<Lock>,
}

/// A piece of the contents of an object, or one message of a queue with bounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Data {
    /// The object.
    pub object: u32,
    /// Where it stands in a file; pieces of a queue have zero and stand in their order.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub offset: i64,
    /// What came with a message, if anything did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub with: Option<Box<MessageMeta>>,
    /// At most [`MAX_CHUNK`] bytes.
    pub bytes: Bytes,
}

/// What a message of a queue has beside its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageMeta {
    /// The sender's address, written as the body of the file writes addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Bytes>,
    /// The files queued with it: SCM_RIGHTS.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<u32>,
    /// Process, user and group of the sender: SCM_CREDENTIALS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<(i32, u32, u32)>,
    /// The priority of a message of mq_overview(7); zero if it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// The message is longer than one piece and goes on in the next.
    #[serde(default, skip_serializing_if = "is_false")]
    pub more: bool,
    /// What was typed to a terminal, and not read yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub typed: Option<Typed>,
}

/// How a piece of what was typed to a terminal ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Typed {
    /// A line, by its last byte.
    Line,
    /// A line, by VEOF, which is no byte of it.
    Eof,
    /// All that was there when canonical mode was switched on: that is read as one line.
    Whole,
    /// Not yet: the beginning of a line, or any bytes outside canonical mode.
    Open,
    /// Without bytes: VLNEXT was typed, and the next character will be taken as it is.
    Quote,
    /// It came when the line discipline was full, which has not processed it.
    Late,
}

/// The last record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// How many records come before it.
    pub items: u64,
    /// CRC-32 (IEEE 802.3) of all bytes before it.
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
    /// `end`
    End(End),
    /// A type that a later minor version brought; passed on untouched.
    Other,
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_cbor::from_slice(bytes).map_err(|err| {
        let text = err.to_string();
        Error::malformed(text.split(" at offset").next().unwrap_or(&text))
    })
}

impl Item {
    /// Decodes the value of the record with this key.
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
            Item::End(it) => ("end", bytes(it)),
            Item::Other => ("other", vec![0xa0]),
        }
    }
}
