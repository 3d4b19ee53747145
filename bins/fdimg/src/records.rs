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
}
