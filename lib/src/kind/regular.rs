//! Regular files that still have the name by which they were opened, O_PATH ones too.

use super::Kind;
use crate::error::Result;
use crate::image::OpenFile;
use crate::proc::Descriptor;
use crate::site::{Made, Site};
use nix::libc;
use serde::{Deserialize, Serialize};

/// All that is known of one is known of every file: path, flags, position, inode.
#[derive(Serialize, Deserialize)]
pub(super) struct Regular {}

impl Kind for Regular {
    const NAME: &'static str = "regular";
    const SEEKS: bool = true;

    fn claims(it: &Descriptor<'_>) -> bool {
        // memfd_secret(2) gives a file that says it has a name, and is deleted all the same.
        it.link.0.starts_with(b"/")
            && it.link.0 != b"/secretmem (deleted)"
            && it.deleted().is_none()
            && match it.file_type() {
                Some(kind) => kind == libc::S_IFREG,
                // Without stat(2) a path may be a directory, but those have a flag of their own
                // only if O_DIRECTORY was given, and devices are below /dev.
                None => {
                    it.info.flags & (libc::O_DIRECTORY as u32) == 0
                        && !it.link.0.starts_with(b"/dev/")
                        && !it.is_path()
                }
            }
    }

    fn capture(_: &Descriptor<'_>) -> Result<Self> {
        Ok(Regular {})
    }

    fn check(&self, file: &OpenFile, site: &Site<'_>) -> Result<()> {
        site.expect_type(file, libc::S_IFREG)?;
        site.foresee(file)
    }

    fn restore(self, file: &OpenFile, site: &mut Site<'_>) -> Result<Made> {
        let Regular {} = self;
        site.reopen_typed(file, libc::S_IFREG)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::file_of;
    use std::io::{Seek, SeekFrom};

    #[test]
    fn a_file_with_a_name_is_regular_and_has_its_position() {
        let mut file = std::fs::File::open("/proc/self/exe").unwrap();
        file.seek(SeekFrom::Start(5)).unwrap();
        let seen = file_of(&file);
        assert_eq!((seen.kind.as_str(), seen.pos), ("regular", 5));
        assert!(seen.link.0.starts_with(b"/") && seen.inode.is_some());
    }
}
