//! File system watches: inotify and fanotify.

pub(super) mod fanotify;
pub(super) mod fsnotify;
pub(super) mod inotify;
