//! Files that were opened by a name which is now unlinked, and have other names (hard links). They
//! are restored by one of the other names.

use crate::error::{Error, Result};
use crate::image::{Bytes, OpenFile};
use crate::kind::watch::fsnotify::with_path_finder;
use crate::proc::Descriptor;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::os::fd::AsFd;

/// The other name of a file whose first name is unlinked.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct OtherName {
    /// The path of another name; none if the scan found none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<Bytes>,
}

impl OtherName {
    /// Searches another name, if the link says that the first is deleted. None if the first name
    /// exists.
    pub(crate) fn find(descriptor: &Descriptor<'_>) -> Result<Option<OtherName>> {
        let Some(copy) =
            descriptor.copy.as_ref().filter(|_| descriptor.link.0.ends_with(b" (deleted)"))
        else {
            return Ok(None);
        };
        // The name of a file can itself end in " (deleted)".
        let (copy, link) = (copy.as_fd(), &descriptor.link.0);
        let path = with_path_finder(descriptor, |finder| Ok(finder.path_of(copy, link)))?;
        let other = OtherName { path: path.map(Bytes) };
        Ok((other.path.as_ref() != Some(&descriptor.link)).then_some(other))
    }

    /// The record of a file, with a path that exists as its link. Fails with status 6 if the scan
    /// found none.
    pub(crate) fn with_existing_name<'f>(
        other: &Option<OtherName>,
        file: &'f OpenFile,
    ) -> Result<Cow<'f, OpenFile>> {
        match other {
            None => Ok(Cow::Borrowed(file)),
            Some(OtherName { path: Some(path) }) => {
                Ok(Cow::Owned(OpenFile { link: path.clone(), ..file.clone() }))
            }
            Some(OtherName { path: None }) => Err(Error::unrestorable(
                "the name by which it was opened is unlinked, and the scan found no other name",
            )),
        }
    }
}
