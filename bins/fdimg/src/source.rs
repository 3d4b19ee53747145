//! Where an image comes from: a file, or stdin for `-` and for nothing.

use fdkit::cli::progress::Reading;
use fdkit::cli::{self, Arg};
use fdkit::error::{At, Result};
use fdkit::image::OpenFile;
use fdkit::kind::{self, Record};
use fdkit::text::escape;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;

/// Opens it. A terminal is refused.
pub(crate) fn open(file: Option<&Arg>) -> Result<Box<dyn Read>> {
    Ok(match file.filter(|path| !path.is_dash()) {
        Some(path) => Box::new(reading(File::open(path.as_path()).at(|| path.to_string())?)),
        None => Box::new(reading(cli::binary_stdin("name a FILE or use a pipe")?)),
    })
}

/// Something that this tool reads.
pub(crate) fn reading<R: Read + AsFd>(from: R) -> Reading<R> {
    Reading::new(crate::TOOL.name(), from)
}

/// Its name in messages.
pub(crate) fn name(file: Option<&Arg>) -> String {
    file.filter(|path| !path.is_dash()).map_or("stdin".to_owned(), Arg::to_string)
}

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
                    crate::TOOL.warn(format_args!(
                        "{image}: {link}: {why}; a newer version wrote it, and it is kept as it is"
                    ));
                }
                None
            }
        }
    }
}
