//! The restore of one descriptor table: the driver makes operations from a plan, executors run
//! them, and sources open the descriptions.
//!
//! The crate root has the operations (`operation`) and the plan (`plan`).

pub mod command;
pub mod direct;
pub mod driver;
pub mod executor;
pub mod fdstore;
pub mod services;
pub mod shrink;
pub mod source;
pub mod stats;
pub mod syscall_counter;

/// The tool that restores, as its messages name it.
pub(crate) const TOOL: &str = "fdrestore";

#[cfg(test)]
mod tests;
