//! Pipes, fifos and POSIX message queues.

pub(super) mod fifo;
pub(super) mod mqueue;
pub(super) mod pipe;
