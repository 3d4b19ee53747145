//! Made-up tasks and images for unit tests.

pub(super) use crate::image::tests::task_of_root as task;
use crate::image::{Bytes, Head, Image, Item, OpenFile, Slot, Task, VERSION, Writer};
use crate::kind::DecodedImage;
use std::collections::BTreeMap;

/// An image in the making.
pub(super) struct Builder {
    tasks: Vec<Task>,
    files: Vec<OpenFile>,
    slots: Vec<Slot>,
}

impl Builder {
    /// An image of these tasks, without files.
    pub(super) fn new(tasks: impl IntoIterator<Item = Task>) -> Builder {
        Builder { tasks: tasks.into_iter().collect(), files: Vec::new(), slots: Vec::new() }
    }

    /// Adds so many files of a kind that no version of fdkit knows.
    pub(super) fn files(&mut self, count: usize) -> &mut Builder {
        for _ in 0..count {
            self.file("unknown", "/unknown", &BTreeMap::<&str, u8>::new());
        }
        self
    }

    /// Adds a file. Its id is its index plus 100.
    pub(super) fn file(
        &mut self,
        kind: &str,
        link: &str,
        body: &impl serde::Serialize,
    ) -> &mut Builder {
        self.files.push(OpenFile {
            id: 100 + self.files.len() as u32,
            kind: kind.to_owned(),
            flags: 2,
            pos: 0,
            link: Bytes(link.as_bytes().to_vec()),
            mnt: 0,
            inode: None,
            signals: None,
            object: None,
            locks: Vec::new(),
            body: serde_cbor::to_vec(body).unwrap(),
        });
        self
    }

    /// Adds a number of a table, which names the file with this index. The numbers of a table
    /// ascend.
    pub(super) fn slot(&mut self, table: u32, fd: u32, file: usize) -> &mut Builder {
        let file = self.files[file].id;
        self.slots.push(Slot { table, fd, cloexec: false, file, locks: Vec::new() });
        self
    }

    /// The image, written and read again.
    pub(super) fn image(&self) -> DecodedImage {
        self.changed(|_| ())
    }

    /// The image with a change before its records are decoded.
    pub(super) fn changed(&self, change: impl FnOnce(&mut Image)) -> DecodedImage {
        let head = Head {
            version: VERSION,
            minor: 0,
            tool: "test".into(),
            release: "0".into(),
            kernel: Bytes::default(),
            boot: String::new(),
            host: None,
            time: (0, 0),
            contents: false,
            frozen: false,
            passive: false,
        };
        let mut writer = Writer::new(Vec::new());
        let tasks = self.tasks.iter().map(|task| Item::Task(task.clone().into()));
        let files = self.files.iter().map(|file| Item::File(file.clone().into()));
        let slots = self.slots.iter().map(|slot| Item::Slot(slot.clone()));
        for item in [Item::Head(head)].into_iter().chain(tasks).chain(files).chain(slots) {
            writer.put(&item).unwrap();
        }
        let mut image = Image::load(&writer.end().unwrap()[..]).unwrap();
        change(&mut image);
        DecodedImage::new(image).unwrap()
    }
}
