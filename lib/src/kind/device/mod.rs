//! Character devices: memory devices, devices without state, tun and tap.

pub(super) mod chardev;
pub(super) mod mem;
pub(super) mod tun;
