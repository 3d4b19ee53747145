//! Sources, which open the descriptions of an image.

use crate::error::Result;
use crate::image::OpenFile;
use crate::kind::context::{Opened, RestoreContext};
use nix::errno::Errno;

/// Opens descriptions of an image, in this process.
pub trait Source {
    /// Opens a description. Fails with status 6 if that is not possible here.
    fn open(&mut self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened>;
}

/// The source that opens each description by its kind: [`crate::kind::Kind::restore`].
#[derive(Debug, Default)]
pub struct KindSource;

impl Source for KindSource {
    fn open(&mut self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        let image = cx.image;
        image.record(file.id).ok_or(Errno::EBADF)?.restore(file, cx)
    }
}
