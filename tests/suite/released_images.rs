//! Images of released versions stay readable: one of each is kept, with what `fdimg show -J`
//! showed.

use crate::harness::{pipeline, show};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn kept() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("images");
    let files = std::fs::read_dir(dir).expect("the images").flatten().map(|entry| entry.path());
    files.filter(|path| path.extension().is_some_and(|ext| ext == "fdi")).collect()
}

/// Whether everything that was shown then is shown now; a later version may show more.
fn says(now: &Value, then: &Value) -> bool {
    match (now, then) {
        (Value::Object(now), Value::Object(then)) => {
            then.iter().all(|(key, value)| now.get(key).is_some_and(|now| says(now, value)))
        }
        (Value::Array(now), Value::Array(then)) => {
            now.len() == then.len() && now.iter().zip(then).all(|(now, then)| says(now, then))
        }
        _ => now == then,
    }
}

#[test]
fn images_of_released_versions_show_what_they_showed_then() {
    let kept = kept();
    assert!(!kept.is_empty());
    for path in kept {
        let file = path.to_str().expect("UTF-8");
        pipeline(&[&["fdimg", "verify", file]]).quiet();
        let then = std::fs::read(path.with_extension("json")).expect("what was in it");
        let then: Value = serde_json::from_slice(&then).expect("JSON");
        assert!(says(&show(file), &then), "{file} is not read as it was: fdimg show -J {file}");
        // Every tool passes the image on unchanged.
        let bytes = std::fs::read(&path).expect("the image");
        assert!(pipeline(&[&["fdimg", "read", file]]).quiet().stdout == bytes, "{file}");
        let plan = pipeline(&[&["fdrestore", "-n", "--missing", "skip", "-i", file]]);
        assert_eq!(plan.status(0), 0, "{}", plan.whole());
    }
}
