//! Terminals: pseudo terminals and other terminal devices.

pub(super) mod pty;
pub(super) mod pty_buffer;
pub(super) mod tty;
