//! Sockets: unix, internet, netlink and packet sockets, and the socket options of all of them.

pub(super) mod icmp;
pub(super) mod inet;
pub(super) mod multicast;
pub(super) mod netlink;
pub(super) mod option;
pub(super) mod packet;
pub(super) mod portless;
pub(super) mod raw;
pub(super) mod tcp;
pub(super) mod udp;
pub(super) mod unix;

use crate::error::Error;

/// The reason of the errors of a capture without a descriptor of the socket.
const PASSIVE_REASON: &str = "a passive scan does not read the state of sockets";

/// The error for a queue that has more bytes than `--data` allows.
fn over_limit(limit: u64) -> Error {
    let why = format!("its queue is longer than the limit {limit}: raise it (--data=BYTES)");
    Error::unrestorable(why)
}
