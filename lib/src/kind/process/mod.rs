//! Descriptors of processes and namespaces.

pub(super) mod ns;
pub(super) mod pidfd;
