//! Files whose name is gone while they have others (hard links): opened by one of those.

use crate::error::{Error, Result};
use crate::image::{Bytes, OpenFile};
use crate::kind::watch::fsnotify::finding;
use crate::proc::Descriptor;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::os::fd::AsFd;

/// That the name is gone by which a file was opened.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Renamed {
    /// A path of another name; none if none was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<Bytes>,
}

impl Renamed {
    /// Looks for another name, if that of the link is gone.
    pub(crate) fn find(it: &Descriptor<'_>) -> Result<Option<Renamed>> {
        let Some(copy) = it.copy.as_ref().filter(|_| it.link.0.ends_with(b" (deleted)")) else {
            return Ok(None);
        };
        // A file may also be called so.
        let (copy, link) = (copy.as_fd(), &it.link.0);
        let path = finding(it, |finder| Ok(finder.path_of(copy, link)))?;
        let renamed = Renamed { path: path.map(Bytes) };
        Ok((renamed.path.as_ref() != Some(&it.link)).then_some(renamed))
    }

    /// The record with a name that leads to it. Fails if none does.
    pub(crate) fn living<'f>(
        renamed: &Option<Renamed>,
        file: &'f OpenFile,
    ) -> Result<Cow<'f, OpenFile>> {
        match renamed {
            None => Ok(Cow::Borrowed(file)),
            Some(Renamed { path: Some(path) }) => {
                Ok(Cow::Owned(OpenFile { link: path.clone(), ..file.clone() }))
            }
            Some(Renamed { path: None }) => Err(Error::unrestorable(
                "its name is gone, and the scan found none of its other names",
            )),
        }
    }
}
