//! Character devices: memory devices, plain devices, tun and tap.

pub(super) mod chardev;
pub(super) mod mem;
pub(super) mod tun;
