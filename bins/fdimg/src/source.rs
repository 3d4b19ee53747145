//! Where an image comes from: a file, or stdin for `-` and for nothing.

use fdkit::cli::progress::Reading;
use fdkit::cli::{self, Arg};
use fdkit::error::{At, Result};
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
