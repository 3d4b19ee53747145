//! No service descriptor of fdrestore is left in COMMAND, however fdrestore was started.

use crate::harness::{MKFD, Pipeline, Scratch, Target, image, pipeline, tool};
use std::fs;

/// SPECs of descriptors 0, 3, 4 and 5.
const FEW: [&str; 3] = ["mem@0:dev=zero,read", "pipe@3,4:data=hello", "eventfd@5:count=7"];

/// The command line that starts fdrestore with these numbers leaked to it, and these closed.
fn started(leak: &str, close: &str) -> Vec<String> {
    let words = [MKFD, "exec", "--leak", leak, "--close", close, "--"];
    words.map(str::to_owned).into()
}

/// Restores FEW with fdrestore started so; COMMAND must have these descriptors and no others.
fn few(leak: &str, close: &str) {
    let scratch = Scratch::new();
    let file = image(&scratch, &FEW);
    let log = scratch.file("log");
    let start = started(leak, close);
    let start: Vec<&str> = start.iter().map(String::as_str).collect();
    let restore = ["fdrestore", "-i", &file, "--", "mkfd", "check", "--std", "none", "--log", &log];
    let ran = pipeline(&[&[&start[..], &restore, &["--dir", scratch.dir()], &FEW].concat()]);
    let log = fs::read_to_string(log).unwrap_or_else(|err| format!("no log: {err}"));
    assert_eq!(log, "", "leaked {leak}, closed {close}\n{}", ran.whole());
    ran.ok();
}

#[test]
fn a_command_has_the_descriptors_of_the_image_and_no_others() {
    few("none", "none");
}

#[test]
fn leaked_descriptors_do_not_reach_the_command() {
    few("3", "none");
    few("3,4,5,6,7,8", "none");
    few("9,63,64,100,250,1000", "none");
}

#[test]
fn fdrestore_works_without_standard_descriptors() {
    few("none", "0");
    few("none", "0,1,2");
    few("3,700", "1,2");
}

#[test]
fn an_image_from_stdin_leaves_no_descriptor() {
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &FEW);
    let log = scratch.file("log");
    let restore = ["fdrestore", "--", "mkfd", "check", "--std", "none", "--log", &log];
    let scan = ["fdscan", "--data", &target.pid];
    pipeline(&[&scan, &[&restore[..], &FEW].concat()]).ok();
    assert_eq!(fs::read_to_string(log).unwrap(), "");
}

#[test]
fn inherited_descriptors_are_those_of_the_caller() {
    let scratch = Scratch::new();
    let file = image(&scratch, &FEW);
    let restore = ["fdrestore", "-i", &file, "--inherit", "1,2", "--", "mkfd", "check"];
    pipeline(&[&[&restore[..], &["--std", "1,2"], &FEW].concat()]).quiet();
    // The caller's own descriptor 0 replaces that of the image.
    let restore = ["fdrestore", "-i", &file, "--inherit", "0,1", "--", "cat"];
    let stages: &[&[&str]] = &[&restore];
    let ran = Pipeline::new(stages).stdin("from the caller").run().ok();
    assert_eq!(ran.text(), "from the caller");
}

/// FDSize of COMMAND for an image with these numbers, if fdrestore is started with a large table.
fn fdsize_for(numbers: &[u32]) -> u64 {
    let scratch = Scratch::new();
    let specs: Vec<String> = numbers.iter().map(|n| format!("eventfd@{n}")).collect();
    let specs: Vec<&str> = specs.iter().map(String::as_str).collect();
    let file = image(&scratch, &specs);
    let start = started("3,900", "none");
    let start: Vec<&str> = start.iter().map(String::as_str).collect();
    let restore = ["fdrestore", "-i", &file, "--inherit", "1", "--", "mkfd", "sleep"];
    let restored = Target::ready(&[&start[..], &restore].concat()).expect("no skip");
    let open: Vec<u32> = restored.open().into_iter().map(|(n, _)| n).filter(|&n| n != 1).collect();
    assert_eq!(open, numbers);
    restored.fdsize()
}

#[test]
fn a_table_is_the_smallest_that_holds_the_highest_number() {
    assert_eq!(fdsize_for(&[3]), 64);
    assert_eq!(fdsize_for(&[63]), 64);
    assert_eq!(fdsize_for(&[64]), 128);
    assert_eq!(fdsize_for(&[127]), 128);
    assert_eq!(fdsize_for(&[128]), 256);
    assert_eq!(fdsize_for(&[3, 255]), 256);
    assert_eq!(fdsize_for(&[256]), 512);
}

#[test]
fn a_table_without_room_for_service_descriptors_shrinks_at_the_end() {
    // One number is free, which the dynamic loader of the program needs.
    let mut numbers: Vec<u32> = (2..63).collect();
    assert_eq!(fdsize_for(&numbers), 64);
    numbers.extend(64..128);
    assert_eq!(fdsize_for(&numbers), 128);
}

#[test]
fn no_helper_process_of_fdrestore_is_left() {
    let scratch = Scratch::new();
    let file = image(&scratch, &FEW);
    let restore = ["fdrestore", "-i", &file, "--inherit", "1", "--", "mkfd", "sleep"];
    let restored = Target::ready(&restore).expect("no skip");
    let pid = &restored.pid;
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    assert_eq!(children, "");
    assert_eq!(fs::read_dir(format!("/proc/{pid}/task")).unwrap().count(), 1);
}

#[test]
fn the_command_keeps_the_callers_signals_directory_and_environment() {
    let scratch = Scratch::new();
    let file = image(&scratch, &FEW);
    let script = "pwd; echo $GIVEN; grep -E '^Sig(Blk|Ign)' /proc/self/status";
    let plain: &[&[&str]] = &[&["sh", "-c", script]];
    let restored: &[&[&str]] =
        &[&["fdrestore", "-i", &file, "--inherit", "1,2", "--", "sh", "-c", script]];
    let run =
        |stages| Pipeline::new(stages).cwd(scratch.dir()).env("GIVEN", "a b").run().ok().text();
    assert_eq!(run(restored), run(plain));
}

#[test]
fn fdrestore_works_with_a_limit_that_is_just_enough() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["pipe@3,4:data=x", "unlinked@5", "eventfd@29"]);
    let fdrestore = tool("fdrestore").to_string_lossy().into_owned();
    let start = [MKFD, "exec", "--nofile", "64", "--", &fdrestore];
    let restore = ["-i", &file, "--inherit", "0,1,2", "--", "mkfd", "check", "--std", "0,1,2"];
    let specs = ["--dir", scratch.dir(), "pipe@3,4:data=x", "unlinked@5", "eventfd@29"];
    pipeline(&[&[&start[..], &restore, &specs].concat()]).quiet();
}
