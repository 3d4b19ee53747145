//! Records of an image that is only shown or passed on, and may be of a newer version.

use crate::TOOL;
use fdkit::image::OpenFile;
use fdkit::kind::{self, Record};
use fdkit::text::escape;
use std::collections::BTreeSet;

/// Decodes the records of an image that is only shown or passed on. A record that this version
/// cannot decode was written by a newer one: one line a kind says so, and nothing is lost.
#[derive(Default)]
pub(crate) struct Records {
    undecoded: BTreeSet<String>,
    unread: BTreeSet<String>,
}

impl Records {
    /// The record of a file; none if this version cannot decode it. `image` is the name of the image.
    pub(crate) fn decode(&mut self, file: &OpenFile, image: &str) -> Option<Box<dyn Record>> {
        match kind::decode(file) {
            Ok(record) => Some(record),
            Err(why) => {
                if self.undecoded.len() < 100 && self.undecoded.insert(file.kind.clone()) {
                    let link = escape(&file.link.0);
                    TOOL.warn(format_args!(
                        "{image}: {link}: {why}; a newer version wrote it, and it is kept as it is"
                    ));
                }
                None
            }
        }
    }

    /// Warns, once for each reason, of a file that the scan did not read: a filter by its kind does
    /// not find it. `image` is the name of the image.
    pub(crate) fn warn_if_unread(&mut self, record: &dyn Record, file: &OpenFile, image: &str) {
        let Some(why) = record.unread_reason() else { return };
        if self.unread.len() < 100 && self.unread.insert(why.clone()) {
            let (link, kind) = (escape(&file.link.0), escape(file.kind.as_bytes()));
            TOOL.warn(format_args!(
                "{image}: {link}: of kind {kind}, since the scan did not read it: {}",
                escape(why.as_bytes())
            ));
        }
    }
}
