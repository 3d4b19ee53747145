//! Regular files that have a name, which may differ from the one by which they were opened. An
//! O_PATH descriptor of a regular file is of this kind too.

use crate::error::Result;
use crate::image::OpenFile;
use crate::kind::Kind;
use crate::kind::context::{Opened, RestoreContext, expect_position, expect_type};
use crate::kind::effect::{Effect, opening};
use crate::kind::file::hardlink::OtherName;
use crate::kind::file::place::Place;
use crate::proc::Descriptor;
use nix::libc;
use serde::{Deserialize, Serialize};

/// The record of a regular file. Path, flags, position and inode are recorded of every file.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Regular {
    /// Its other name, if the one by which it was opened is unlinked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    renamed: Option<OtherName>,
    /// What the link does not tell of its place.
    #[serde(default, skip_serializing_if = "Place::is_plain")]
    place: Place,
}

/// Reports whether it is a file of pressure stall information: Documentation/accounting/psi.rst.
fn is_pressure_file(descriptor: &Descriptor<'_>) -> bool {
    let file_system = || descriptor.process.file_system_of(descriptor.info.mnt);
    let link = &descriptor.link.0;
    (link.windows(10).any(|part| part == b"/pressure/") && file_system() == Some(b"proc"))
        || (link.ends_with(b".pressure") && file_system() == Some(b"cgroup2"))
}

impl Kind for Regular {
    const NAME: &'static str = "regular";
    const SEEKABLE: bool = true;

    fn claims(descriptor: &Descriptor<'_>) -> bool {
        // A file of memfd_secret(2) has a link count of 1, but no path.
        descriptor.link.0.starts_with(b"/")
            && descriptor.link.0 != b"/secretmem (deleted)"
            && descriptor.deleted().is_none()
            && match descriptor.file_type() {
                Some(kind) => kind == libc::S_IFREG,
                // A passive scan has no inode: fdinfo shows O_DIRECTORY only if it was given to
                // open(2), so a directory may be taken for a file; devices are below /dev.
                None => {
                    descriptor.info.flags & (libc::O_DIRECTORY as u32) == 0
                        && !descriptor.link.0.starts_with(b"/dev/")
                        && !descriptor.is_path()
                }
            }
            && !descriptor.on_detached_mount()
    }

    fn capture(descriptor: &Descriptor<'_>) -> Result<Self> {
        let access = descriptor.flags() & libc::O_ACCMODE as u32;
        let may_have_trigger = access != libc::O_RDONLY as u32 && !descriptor.is_path();
        if may_have_trigger && is_pressure_file(descriptor) {
            // No call shows a trigger, and poll(2) would take its event.
            descriptor.warn("a PSI trigger that was set on it cannot be read, and is lost".into());
        }
        Ok(Regular { renamed: OtherName::find(descriptor)?, place: Place::find(descriptor) })
    }

    fn search(descriptor: &Descriptor<'_>) {
        // The capture says what fails.
        let _ = OtherName::find(descriptor);
    }

    fn validate(&self, file: &OpenFile) -> Result<()> {
        // The offsets of /proc/PID/mem are addresses of 64 bits.
        if !file.link.0.ends_with(b"/mem") {
            expect_position(file)?;
        }
        expect_type(file, libc::S_IFREG)
    }

    fn effects(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<Vec<Effect>> {
        // The check of its path says what fails.
        let named = OtherName::with_existing_name(&self.renamed, file);
        Ok(named.map(|named| opening(file, &named, cx)).unwrap_or_default())
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        cx.check_path(&*OtherName::with_existing_name(&self.renamed, file)?)
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        let Regular { renamed, place } = self;
        let file = OtherName::with_existing_name(renamed, file)?;
        let opened = cx.open_file_of_type(&file, libc::S_IFREG)?;
        place.warn_if_elsewhere(&file, &opened, cx)?;
        Ok(opened)
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
        assert_eq!(body_of::<Regular>(&called), Regular { renamed: None, place: Place::default() });
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
