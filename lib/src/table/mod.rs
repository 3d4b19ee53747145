//! One descriptor table: the driver that restores it, the operations of which that consists, the
//! executors that run them, and the sources of its descriptions.

pub mod command;
pub mod direct;
pub mod driver;
pub mod executor;
pub mod fdstore;
pub(crate) mod services;
pub mod shrink;
pub mod source;
pub mod stats;
pub mod syscall_counter;

#[cfg(test)]
mod tests;
