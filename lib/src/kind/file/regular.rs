//! Regular files that have a name, which may differ from the one by which they were opened. An
//! O_PATH descriptor of a regular file is of this kind too.

use crate::error::Result;
use crate::image::OpenFile;
use crate::kind::Kind;
use crate::kind::context::{Opened, RestoreContext, expect_type};
use crate::kind::file::hardlink::OtherName;
use crate::proc::Descriptor;
use nix::libc;
use serde::{Deserialize, Serialize};

/// The record of a regular file. Path, flags, position and inode are recorded of every file.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Regular {
    /// Its other name, if the one by which it was opened is unlinked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    renamed: Option<OtherName>,
}

impl Kind for Regular {
    const NAME: &'static str = "regular";
    const SEEKABLE: bool = true;

    fn claims(it: &Descriptor<'_>) -> bool {
        // A file of memfd_secret(2) has a link count of 1, but no path.
        it.link.0.starts_with(b"/")
            && it.link.0 != b"/secretmem (deleted)"
            && it.deleted().is_none()
            && match it.file_type() {
                Some(kind) => kind == libc::S_IFREG,
                // A passive scan has no inode: fdinfo shows O_DIRECTORY only if it was given to
                // open(2), so a directory may be taken for a file; devices are below /dev.
                None => {
                    it.info.flags & (libc::O_DIRECTORY as u32) == 0
                        && !it.link.0.starts_with(b"/dev/")
                        && !it.is_path()
                }
            }
            && !it.on_detached_mount()
    }

    fn capture(it: &Descriptor<'_>) -> Result<Self> {
        Ok(Regular { renamed: OtherName::find(it)? })
    }

    fn validate(&self, file: &OpenFile) -> Result<()> {
        expect_type(file, libc::S_IFREG)
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        cx.check_path_in_dry_run(&*OtherName::with_existing_name(&self.renamed, file)?)
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        let Regular { renamed } = self;
        cx.open_file_of_type(&*OtherName::with_existing_name(renamed, file)?, libc::S_IFREG)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::tests::{body_of, file_of};
    use std::collections::BTreeMap;
    use std::io::{Seek, SeekFrom};

    #[test]
    fn a_file_with_a_name_is_regular_and_has_its_position() {
        let mut file = std::fs::File::open("/proc/self/exe").unwrap();
        file.seek(SeekFrom::Start(5)).unwrap();
        let seen = file_of(&file);
        assert_eq!((seen.kind.as_str(), seen.pos), ("regular", 5));
        assert!(seen.link.0.starts_with(b"/") && seen.inode.is_some());
    }

    #[test]
    fn another_name_of_an_unlinked_file_is_found_and_a_name_that_ends_in_deleted_is_kept() {
        let dir = std::env::temp_dir().canonicalize().unwrap();
        let dir = dir.join(format!("fdkit-regular-{}", std::process::id()));
        let (name, other) = (dir.join("a"), dir.join("sub/other"));
        std::fs::create_dir_all(other.parent().unwrap()).unwrap();
        let file = std::fs::File::create(&name).unwrap();
        std::fs::hard_link(&name, &other).unwrap();
        std::fs::remove_file(&name).unwrap();
        let path = Some(crate::image::Bytes(other.as_os_str().as_encoded_bytes().to_vec()));
        let renamed = Some(serde_cbor::value::to_value(BTreeMap::from([("path", path)])).unwrap());
        let seen = serde_cbor::value::to_value(body_of::<Regular>(&file)).unwrap();
        assert_eq!(
            seen,
            serde_cbor::value::to_value(BTreeMap::from([("renamed", renamed)])).unwrap()
        );
        let called = std::fs::File::create(dir.join("b (deleted)")).unwrap();
        assert_eq!(body_of::<Regular>(&called), Regular { renamed: None });
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
