//! Fuzz target: an image of arbitrary records is read, checked and planned. Nothing is restored.

#![no_main]

use fdkit::error::Status;
use fdkit::image::{Bytes, Head, Item, VERSION, Writer, scan};
use fdkit::kind::DecodedImage;
use fdkit::plan::{Plan, RestoreOptions};
use libfuzzer_sys::fuzz_target;

/// The bytes with a head before them and, since no fuzzer guesses a checksum, their true end.
fn whole(records: &[u8]) -> Vec<u8> {
    let head = Head {
        version: VERSION,
        minor: 0,
        tool: String::new(),
        release: String::new(),
        kernel: Bytes::default(),
        boot: String::new(),
        host: None,
        time: (0, 0),
        contents: true,
        frozen: true,
        passive: false,
    };
    let mut writer = Writer::new(Vec::new());
    writer.put(&Item::Head(head)).expect("into memory");
    let mut rest = records;
    while let Ok(scan::Found::Whole(len)) = scan::item(rest) {
        writer.pass(&rest[..len]).expect("into memory");
        rest = &rest[len..];
    }
    writer.end().expect("into memory")
}

fuzz_target!(|bytes: &[u8]| {
    let _ = scan::tokens(bytes).count();
    for stream in [bytes, &whole(bytes)] {
        match DecodedImage::load(stream) {
            Ok(image) => drop(Plan::new(&image, &RestoreOptions::default(), None, false)),
            Err(err) => assert_eq!(err.status(), Status::Malformed, "{err}"),
        }
    }
});
