//! Directories, with the position of readdir(3).

use crate::error::{Error, Result};
use crate::image::OpenFile;
use crate::kind::Kind;
use crate::kind::context::{Opened, RestoreContext, expect_type};
use crate::proc::Descriptor;
use nix::libc;
use serde::{Deserialize, Serialize};

/// The record has no fields: those of every file suffice. The recorded flags have O_DIRECTORY.
#[derive(Serialize, Deserialize)]
pub(crate) struct Directory {}

impl Kind for Directory {
    const NAME: &'static str = "directory";
    const SEEKABLE: bool = true;

    fn claims(it: &Descriptor<'_>) -> bool {
        it.link.0.starts_with(b"/")
            && match it.file_type() {
                Some(kind) => kind == libc::S_IFDIR,
                None => it.info.flags & (libc::O_DIRECTORY as u32) != 0,
            }
            && !it.on_detached_mount()
    }

    fn capture(_: &Descriptor<'_>) -> Result<Self> {
        Ok(Directory {})
    }

    fn validate(&self, file: &OpenFile) -> Result<()> {
        expect_type(file, libc::S_IFDIR)
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        if file.inode.as_ref().is_some_and(|inode| inode.nlink == 0) {
            return Err(Error::unrestorable("the directory was removed"));
        }
        cx.check_path_in_dry_run(file)
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        let Directory {} = self;
        cx.open_file_of_type(file, libc::S_IFDIR)
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
