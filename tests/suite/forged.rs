//! Forged images: images that were changed, with a correct checksum, and that a restore refuses.

use crate::harness::{Pipeline, RESTORE};
use fdkit::image::{Item, Reader, Writer};
use serde_cbor::Value;
use std::fs;

/// The image with its records changed, and with a correct `end`.
pub(crate) fn forged(bytes: &[u8], change: impl FnOnce(&mut Vec<Item>)) -> Vec<u8> {
    let mut reader = Reader::new(bytes);
    let mut items = Vec::new();
    while let Some(entry) = reader.next().unwrap() {
        items.push(entry.item);
    }
    change(&mut items);
    let mut writer = Writer::new(Vec::new());
    items.iter().for_each(|item| writer.put(item).unwrap());
    writer.end().unwrap()
}

/// The bytes of an image with the bodies of one kind changed.
pub(crate) fn with_body(file: &str, kind: &str, mut change: impl FnMut(&mut Value)) -> Vec<u8> {
    forged(&fs::read(file).unwrap(), |items| {
        for item in items {
            match item {
                Item::File(file) if file.kind == kind => {
                    let mut body = serde_cbor::from_slice(&file.body).unwrap();
                    change(&mut body);
                    file.body = serde_cbor::to_vec(&body).unwrap();
                }
                _ => (),
            }
        }
    })
}

/// The value in a body at this path of keys and indices.
pub(crate) fn at<'a>(mut value: &'a mut Value, path: &[&str]) -> &'a mut Value {
    for step in path {
        value = match value {
            Value::Map(map) => map.entry(Value::Text((*step).into())).or_insert(Value::Null),
            Value::Array(list) => &mut list[step.parse::<usize>().unwrap()],
            other => panic!("{step} of {other:?}"),
        };
    }
    value
}

/// An integer of any sign.
pub(crate) fn whole(n: i128) -> Value {
    Value::Integer(n)
}

/// Fails unless the restore of these bytes is refused before COMMAND runs.
#[track_caller]
pub(crate) fn refused(bytes: Vec<u8>, status: i32, texts: &[&str]) {
    let dry: &[&[&str]] = &[&["fdrestore", "--dry-run"]];
    Pipeline::new(dry).stdin(bytes.clone()).run().refuses(status, texts);
    let run: &[&[&str]] = &[&[RESTORE, &["--", "echo", "run"]].concat()];
    let ran = Pipeline::new(run).stdin(bytes).run();
    assert_eq!(ran.text(), "", "COMMAND ran\n{}", ran.whole());
    ran.refuses(125, texts).refuses(125, &[&format!("(status {status})")]);
}
