//! Directories, with the position of readdir(3).

use crate::error::{Error, Result};
use crate::image::OpenFile;
use crate::kind::Kind;
use crate::kind::context::{Opened, RestoreContext, expect_position, expect_type};
use crate::kind::effect::{Effect, opening};
use crate::kind::file::place::Place;
use crate::proc::Descriptor;
use nix::libc;
use serde::{Deserialize, Serialize};

/// The record. Path, flags, position and inode are recorded of every file. The recorded flags have O_DIRECTORY.
#[derive(Serialize, Deserialize)]
pub(crate) struct Directory {
    /// What the link does not tell of its place.
    #[serde(default, skip_serializing_if = "Place::is_plain")]
    place: Place,
}

impl Kind for Directory {
    const NAME: &'static str = "directory";
    const SEEKABLE: bool = true;

    fn claims(descriptor: &Descriptor<'_>) -> bool {
        descriptor.link.0.starts_with(b"/")
            && match descriptor.file_type() {
                Some(kind) => kind == libc::S_IFDIR,
                None => descriptor.info.flags & (libc::O_DIRECTORY as u32) != 0,
            }
            && !descriptor.on_detached_mount()
    }

    fn capture(descriptor: &Descriptor<'_>) -> Result<Self> {
        Ok(Directory { place: Place::find(descriptor) })
    }

    fn validate(&self, file: &OpenFile) -> Result<()> {
        expect_position(file)?;
        expect_type(file, libc::S_IFDIR)
    }

    fn effects(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<Vec<Effect>> {
        Ok(opening(file, file, cx))
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        if file.inode.as_ref().is_some_and(|inode| inode.nlink == 0) {
            return Err(Error::unrestorable("the directory was removed"));
        }
        cx.check_path(file)
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        let Directory { place } = self;
        let opened = cx.open_file_of_type(file, libc::S_IFDIR)?;
        place.warn_if_elsewhere(file, &opened, cx)?;
        Ok(opened)
    }
}

#[cfg(test)]
mod tests {
    use crate::kind::tests::file_of;
    use std::fs::File;

    #[test]
    fn a_directory_opened_without_o_directory_is_claimed() {
        assert_eq!(file_of(File::open("/proc").unwrap()).kind, "directory");
        assert_ne!(file_of(File::open("/proc/version").unwrap()).kind, "directory");
    }
}
