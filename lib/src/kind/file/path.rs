//! O_PATH descriptors of files that are neither regular nor directories: symbolic links, sockets,
//! devices. They indicate a location in the file system; the file itself is not opened (open(2)).

use crate::error::Result;
use crate::image::OpenFile;
use crate::kind::Kind;
use crate::kind::context::{Opened, RestoreContext};
use crate::kind::effect::{Effect, opening};
use crate::kind::file::place::Place;
use crate::kind::terminal::pty;
use crate::proc::Descriptor;
use nix::libc;
use serde::{Deserialize, Serialize};

/// The record. Path, flags, position and inode are recorded of every file.
#[derive(Serialize, Deserialize)]
pub(crate) struct Path {
    /// What the link does not tell of its place.
    #[serde(default, skip_serializing_if = "Place::is_plain")]
    place: Place,
}

impl Kind for Path {
    const NAME: &'static str = "path";

    fn claims(descriptor: &Descriptor<'_>) -> bool {
        descriptor.is_path()
            && descriptor.link.0.starts_with(b"/")
            && descriptor.deleted().is_none()
            && !descriptor.on_detached_mount()
    }

    fn capture(descriptor: &Descriptor<'_>) -> Result<Self> {
        Ok(Path { place: Place::find(descriptor) })
    }

    fn effects(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<Vec<Effect>> {
        Ok(opening(file, file, cx))
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        if pty::is_restored_slave(&file.link.0, cx) { Ok(()) } else { cx.check_path(file) }
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        let Path { place } = self;
        let link = file.inode.as_ref().is_some_and(|it| it.mode & libc::S_IFMT == libc::S_IFLNK);
        let nofollow = if link { libc::O_NOFOLLOW as u32 } else { 0 };
        let fd = cx.open(&file.link.0, file.flags | libc::O_PATH as u32 | nofollow)?;
        let opened = Opened::new(fd, file.flags);
        place.warn_if_elsewhere(file, &opened, cx)?;
        Ok(opened)
    }
}

#[cfg(test)]
mod tests {
    use crate::kind::tests::file_of;
    use std::fs::File;
    use std::os::unix::fs::OpenOptionsExt;

    #[test]
    fn an_o_path_descriptor_of_a_symbolic_link_is_a_path() {
        let open = |path: &str, flags| {
            File::options().read(true).custom_flags(nix::libc::O_PATH | flags).open(path).unwrap()
        };
        assert_eq!(file_of(open("/proc/self", nix::libc::O_NOFOLLOW)).kind, "path");
        assert_eq!(file_of(open("/proc/version", 0)).kind, "regular");
        assert_eq!(file_of(open("/proc", 0)).kind, "directory");
    }
}
