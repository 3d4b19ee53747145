//! Sockets: unix, internet, netlink and packet.

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
