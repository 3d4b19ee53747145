//! Processes and descriptors as /proc, sock_diag(7) and rtnetlink(7) tell them from outside.
//!
//! Parsers take bytes, so that they can be tested without a process; what opens files is apart.

mod descriptor;
mod fdinfo;
mod locks;
pub mod mounts;
pub mod network;
pub mod openers;
mod process;
mod read;
pub mod sock_diag;
pub mod socket_table;
mod stat;
mod status;
mod task;

pub use crate::image::inode_of;
pub use descriptor::Descriptor;
pub use fdinfo::{CLOEXEC, FdInfo, hex_word, word};
pub use locks::{HeldLock, locks};
pub use network::own_netns;
pub use process::{
    FoundPaths, Process, ProcessIdentity, ScanCache, attach_refusal, boot_id, own_namespace,
};
pub use read::bracketed;
pub use stat::{Stat, all, pids};
pub use status::{ThreadStatus, capacity_in, capacity_of, own_capabilities, own_capacity};
