//! One descriptor table: how it is restored, and what that takes.

pub mod driver;
pub mod fdstore;
pub(crate) mod lock;
pub mod shrink;
pub mod stats;
pub mod syscall_counter;
