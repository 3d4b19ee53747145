//! Images of released versions stay readable. `tests/images` has one of each version, and one of each
//! minor version of the format with a script that makes it, with the output that `fdimg show -J` of that
//! version had for it.

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
        let verified = pipeline(&[&["fdimg", "verify", file]]).quiet();
        let then = std::fs::read(path.with_extension("json")).expect("what was in it");
        let then: Value = serde_json::from_slice(&then).expect("JSON");
        assert!(says(&show(file), &then), "{file} is not read as it was: fdimg show -J {file}");
        let missing = then["missing"].as_array().map_or(0, Vec::len);
        let said = verified.text().matches(" is not in the image").count();
        assert_eq!(said, missing, "{}", verified.whole());
        // Every tool passes the image on unchanged.
        let bytes = std::fs::read(&path).expect("the image");
        assert!(pipeline(&[&["fdimg", "read", file]]).quiet().stdout == bytes, "{file}");
        let plan = pipeline(&[&["fdrestore", "-n", "--missing", "skip", "-i", file]]);
        assert_eq!(plan.status(0), 0, "{}", plan.whole());
    }
}

#[test]
fn an_image_of_minor_version_1_shows_what_that_version_added() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/images/minor-1.fdi");
    let shown = show(file);
    assert_eq!(shown["head"]["minor"], 1);
    assert_eq!(shown["head"]["host"], "kept.example");
    let (process, thread) = (&shown["tasks"][0], &shown["tasks"][1]);
    assert_eq!((&thread["tgid"], &thread["cgroup"]), (&process["pid"], &Value::from("/")));
    assert_eq!(shown["missing"][0]["why"], "no such process");
    let body = |fd: usize| &shown["descriptors"][fd]["body"];
    assert_eq!(body(0)["file"], "/var/tmp/fdkit-kept/new");
    assert_eq!((&body(1)["waits"], &body(1)["peer"]), (&Value::from(true), &4_197_777.into()));
    assert!(body(2)["netns"].is_u64());
    let ran = pipeline(&[&["fdimg", "show", file]]).ok();
    let text = ran.text();
    for part in [
        "  host kept.example  cgroup /\n",
        " (a thread of ",
        " old (file /var/tmp/fdkit-kept/new) LISTEN",
        " not accepted yet",
        " net:[",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(ran.said().contains("process 4194304 is not in the image: no such process"));
}
