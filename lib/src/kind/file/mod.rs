//! Files of a file system: regular, unlinked, directories, O_PATH descriptors, memfds.

pub(super) mod directory;
pub(super) mod hardlink;
pub(super) mod memfd;
pub(super) mod path;
pub(super) mod regular;
pub(super) mod unlinked;
