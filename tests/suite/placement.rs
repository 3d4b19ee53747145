//! Placement of the service descriptors: the kernel shows the table sizes that fdimg place
//! computes, and the default policy has the smallest.

use crate::harness::{Scratch, Target, fdsize, pipeline, tool};
use fdkit::placement::Placement;
use serde_json::Value;
use std::fs;

/// A soft limit below the highest number is raised while the table is restored, and put back.
#[test]
fn the_soft_limit_of_open_files_is_put_back() {
    let scratch = Scratch::new();
    let file = crate::harness::image(&scratch, &["eventfd@700"]);
    let fdrestore = tool("fdrestore").to_string_lossy().into_owned();
    let limited = ["sh", "-c", "ulimit -Sn 256; exec \"$@\"", "sh", &fdrestore, "-i", &file];
    let rest = ["--inherit", "0,1,2", "--", "sh", "-c", "ulimit -Sn; readlink /proc/self/fd/700"];
    let ran = pipeline(&[&[&limited[..], &rest].concat()]).quiet();
    assert_eq!(ran.text(), "256\nanon_inode:[eventfd]\n", "{}", ran.whole());
}

/// Runs a command by fdrestore, which starts with a large table and for which strace(1) lets a system
/// call fail. Gives FDSize of the command, and what fdrestore says.
fn restored_without(call: &str) -> (String, String) {
    let scratch = Scratch::new();
    let file = crate::harness::image(&scratch, &["eventfd@5"]);
    let (fdrestore, log) = (tool("fdrestore").to_string_lossy().into_owned(), scratch.file("log"));
    let start = ["mkfd", "exec", "--leak", "900", "--", "strace", "-f", "-o", &log];
    let inject = ["-e", call, "-e", &format!("inject={call}:error=EPERM"), &fdrestore];
    let restore = ["-i", &file, "--inherit", "0,1,2", "--", "grep", "FDSize", "/proc/self/status"];
    let ran = pipeline(&[&[&start[..], &inject, &restore].concat()]).ok();
    (ran.text().split_whitespace().nth(1).unwrap_or_default().to_owned(), ran.said().to_owned())
}

#[test]
fn a_table_shrinks_also_where_unshare_is_denied() {
    needs!(crate::harness::which("strace").is_some(), "strace is missing");
    assert_eq!(restored_without("unshare"), ("64".to_owned(), String::new()));
}

#[test]
fn a_table_that_cannot_be_shrunk_is_a_warning() {
    needs!(crate::harness::which("strace").is_some(), "strace is missing");
    let (size, said) = restored_without("clone");
    assert_eq!(size, "1024", "{said}");
    let why = "the descriptor table stays larger than needed: fork: Operation not permitted";
    assert_eq!(said, format!("fdrestore: {why}\n"));
}

#[test]
fn a_dry_run_refuses_a_table_without_room_for_the_service_descriptors() {
    let scratch = Scratch::new();
    let file = crate::harness::image(&scratch, &["eventfd@3", "eventfd@6"]);
    let fdrestore = tool("fdrestore").to_string_lossy().into_owned();
    let start = ["mkfd", "exec", "--", "sh", "-c", "ulimit -n \"$0\"; exec \"$@\""];
    let restore = |limit: &str, options: &[&str]| {
        let words = [limit, &fdrestore, "-i", &file, "--inherit", "0,1,2"];
        pipeline(&[&[&start[..], &words, options].concat()])
    };
    // Of 4 and 5 one is for stderr, the other for the root directory, or for a copy.
    restore("7", &["--root", "/", "-n"]).ok();
    let copied = ["--root", "/", "--inherit", "6=0"];
    let too_few = "the limit of 7 open files leaves too few numbers for 3 service descriptors";
    restore("7", &[&copied[..], &["-n"]].concat()).refuses(6, &[too_few]);
    restore("7", &[&copied[..], &["--", "true"]].concat()).refuses(125, &[too_few, "(status 6)"]);
    restore("8", &[&copied[..], &["-n"]].concat()).ok();
    restore("8", &[&copied[..], &["--", "true"]].concat()).ok();
}

#[test]
fn a_table_without_a_free_number_below_the_soft_limit_is_restored() {
    let scratch = Scratch::new();
    // The stderr of the caller has the one free number below the limit until COMMAND is executed.
    let numbers = (3..64).filter(|number| *number != 40);
    let specs: Vec<String> = numbers.map(|number| format!("eventfd@{number}")).collect();
    let specs: Vec<&str> = specs.iter().map(String::as_str).collect();
    let file = crate::harness::image(&scratch, &specs);
    let fdrestore = tool("fdrestore").to_string_lossy().into_owned();
    for (options, lines) in [(&[][..], 0), (&["--stats"], 2)] {
        let start = ["mkfd", "exec", "--leak", "900", "--", "sh", "-c"];
        let restore = ["ulimit -Sn 63; exec \"$@\"", "sh", &fdrestore, "-i", &file];
        let rest = [options, &["--inherit", "0,1,2", "--", "echo", "run"]].concat();
        let ran = pipeline(&[&[&start[..], &restore, &rest].concat()]).ok();
        assert_eq!(ran.text(), "run\n", "{}", ran.whole());
        assert_eq!(ran.said().lines().count(), lines, "{}", ran.whole());
    }
}

/// The names of the policies, as `--placement` takes them.
fn policies() -> impl Iterator<Item = &'static str> {
    Placement::ALL.into_iter().map(Placement::name)
}

/// The highest numbers around which the sizes of tables change.
const SWEEP: [u32; 26] = [
    3, 30, 60, 63, 64, 100, 120, 127, 128, 200, 240, 250, 255, 256, 400, 500, 511, 512, 1000, 1010,
    1023, 1024, 4000, 4095, 4096, 8191,
];

/// The image of a tree made by `mkfd tree`.
fn tree_image(scratch: &Scratch, words: &[&str]) -> String {
    let target = Target::ready(&[&["mkfd", "tree"], words].concat()).expect("no skip");
    let file = scratch.file("tree.fdi");
    pipeline(&[&["fdscan", "--tree", "-o", &file, &target.pid]]).quiet();
    file
}

fn place(file: &str, options: &[&str]) -> Value {
    let ran = pipeline(&[&[&["fdimg", "place", "-J"], options, &[file]].concat()]).quiet();
    serde_json::from_slice(&ran.stdout).unwrap_or_else(|err| panic!("{err}\n{}", ran.whole()))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}

/// Restores a tree, and gives FDSize of each process by its previous id.
fn held(file: &str, policy: &str, tasks: usize) -> Vec<(u64, u64)> {
    let restore = ["fdrestore", "--tree", "--placement", policy, "-i", file];
    let mut tree = Target::ready(&restore).expect("no skip");
    let mut lines = vec![tree.said.clone()];
    lines.extend((1..tasks).map(|_| tree.line()));
    let size = |line: &String| {
        let (old, new) = line.split_once(' ').expect("OLD NEW");
        (old.parse().expect("an id"), fdsize(new))
    };
    lines.iter().map(size).collect()
}

/// Restores an image with each policy. FDSize of each task must be the computed one, and with the
/// default policy the needed one, at any time.
fn as_forecast(what: &str, file: &str) {
    let forecast = place(file, &[]);
    let tasks = forecast["tasks"].as_array().expect("tasks");
    for policy in policies() {
        for (pid, size) in held(file, policy, tasks.len()) {
            let task = tasks.iter().find(|task| task["pid"] == pid).expect("the task");
            let said = &task["forecast"][policy];
            assert_eq!(size, number(&said["end"]["slots"]), "{what}, {policy}, task {pid}");
            let needed = number(&task["needed"]["slots"]);
            let highest = number(&task["highest"]);
            assert_eq!(needed, if highest < 64 { 64 } else { (highest + 1).next_power_of_two() });
            if policy == "tight" {
                assert_eq!(size, needed, "{what}, task {pid}");
                assert_eq!(number(&said["peak"]["slots"]), needed, "{what}, task {pid}");
            }
        }
    }
}

#[test]
fn tables_have_the_computed_sizes_for_all_highest_numbers() {
    for highest in SWEEP {
        let scratch = Scratch::new();
        let file = tree_image(&scratch, &["1", "--first", &highest.to_string()]);
        as_forecast(&format!("highest {highest}"), &file);
    }
}

#[test]
fn the_table_of_a_command_has_the_computed_size() {
    for highest in [3, 63, 64, 95, 96, 127, 128, 255, 500, 4095] {
        let scratch = Scratch::new();
        let file = tree_image(&scratch, &["0", "--first", &highest.to_string()]);
        let forecast = place(&file, &[]);
        for policy in policies() {
            // The shell's child starts with the smallest table; policies other than the default
            // keep a larger one.
            let tool = tool("fdrestore").to_string_lossy().into_owned();
            let line = format!(
                "'{tool}' --placement {policy} --inherit 1 -i '{file}' -- \
                 grep FDSize /proc/self/status; exit $?"
            );
            let text = pipeline(&[&["mkfd", "exec", "--", "sh", "-c", &line]]).quiet().text();
            let size = text.strip_prefix("FDSize:").and_then(|size| size.trim().parse().ok());
            let size: u64 = size.unwrap_or_else(|| panic!("no size: {text}"));
            let said = number(&forecast["tasks"][0]["forecast"][policy]["end"]["slots"]);
            assert_eq!(size, said, "highest {highest}, {policy}");
        }
    }
}

#[test]
fn children_of_a_parent_with_a_large_table_have_small_tables() {
    for later in ["300", "4095", "19000", "300,4095,19000"] {
        let scratch = Scratch::new();
        let file = tree_image(&scratch, &["5", "--first", "3,4,5", "--later", later]);
        as_forecast(&format!("a parent with {later}"), &file);
        // The sizes with the other policies are computed correctly, too.
        let forecast = place(&file, &[]);
        let child = &forecast["tasks"][1]["forecast"];
        let parent = number(&forecast["tasks"][0]["needed"]["slots"]);
        assert!(number(&child["task"]["end"]["slots"]) >= parent, "{child}");
        assert_eq!(child["late"]["end"]["slots"], 64);
    }
}

#[test]
fn a_table_without_a_free_number_is_larger_during_the_restore_only() {
    let scratch = Scratch::new();
    let dense: Vec<String> = (3..64).map(|number| number.to_string()).collect();
    let file = tree_image(&scratch, &["2", "--first", &dense.join(",")]);
    let forecast = place(&file, &[]);
    for (pid, size) in held(&file, "tight", 3) {
        assert_eq!(size, 64, "task {pid}");
    }
    let said = &forecast["tasks"][0]["forecast"]["tight"];
    assert_eq!((number(&said["peak"]["slots"]), number(&said["end"]["slots"])), (128, 64));
    let text = pipeline(&[&["fdimg", "place", &file]]).quiet().text();
    assert!(text.lines().nth(1).is_some_and(|line| line.ends_with("(128) 64")), "{text}");
}

#[test]
fn a_shared_table_has_the_computed_size() {
    for (numbers, tight) in [(vec![3, 95], 128), ((3..60).collect::<Vec<u32>>(), 64)] {
        let scratch = Scratch::new();
        let specs: Vec<String> = numbers.iter().map(|n| format!("eventfd@{n}")).collect();
        let specs: Vec<&str> = specs.iter().map(String::as_str).collect();
        let dir = scratch.dir();
        let make = ["mkfd", "make", "--close-std", "--dir", dir, "--share", "3"];
        let target = Target::ready(&[&make[..], &specs].concat()).expect("no skip");
        // The process that printed the line is its child, too, and ends.
        let children = format!("/proc/{0}/task/{0}/children", target.pid);
        let begin = std::time::Instant::now();
        while fs::read_to_string(&children).unwrap().split_whitespace().count() > 3 {
            assert!(begin.elapsed().as_secs() < 60, "who said it stays");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let file = scratch.file("shared.fdi");
        pipeline(&[&["fdscan", "--tree", "-o", &file, &target.pid]]).quiet();
        let forecast = place(&file, &[]);
        let tasks = forecast["tasks"].as_array().expect("tasks");
        assert_eq!(tasks.len(), 4);
        for policy in policies() {
            let said = number(&tasks[0]["forecast"][policy]["end"]["slots"]);
            for (pid, size) in held(&file, policy, 4) {
                assert_eq!(size, said, "{policy}, task {pid}");
            }
        }
        assert_eq!(tasks[0]["forecast"]["tight"]["end"]["slots"], tight);
        assert_eq!(tasks[1]["shares"], tasks[0]["pid"]);
    }
}

#[test]
fn the_chart_shows_the_numbers_of_the_benchmark() {
    let read = |name: &str| {
        let path = format!("{}/bench/{name}", env!("CARGO_MANIFEST_DIR"));
        fs::read_to_string(&path).unwrap_or_else(|err| panic!("{path}: {err}"))
    };
    let figures: Value = serde_json::from_str(&read("memory.json")).expect("figures");
    let again = "cargo bench -p fdkit-tests --bench memory -- draw";
    assert!(crate::chart::draw(&figures) == read("memory.svg"), "draw it again: {again}");
    // The README claims this.
    for tree in figures["trees"].as_array().expect("trees") {
        let (needed, tight) = (&tree["needed"], &tree["restored"]["tight"]);
        for who in ["parent", "child", "bytes"] {
            assert_eq!(tight[who], needed[who], "{who}, highest {}", tree["highest"]);
        }
    }
}

#[test]
fn sums_count_each_table_once_and_large_tables_are_marked() {
    let scratch = Scratch::new();
    let file = tree_image(&scratch, &["2", "--first", "3", "--later", "300"]);
    let forecast = place(&file, &["--limit", "2048"]);
    assert_eq!(forecast["sums"]["needed"]["slots"], 512 + 2 * 64);
    assert_eq!(forecast["sums"]["needed"]["bytes"], 4288);
    assert_eq!(forecast["sums"]["forecast"]["rlimit"]["slots"], 3 * 2048);
    assert_eq!(forecast["sums"]["forecast"]["rlimit"]["bytes"], 3 * 16960);
    let lines = |options: &[&str]| {
        let words = [&["fdimg", "place", "--limit", "2048"], options, &[&file]].concat();
        let text = pipeline(&[&words]).quiet().text();
        text.lines().map(str::to_owned).collect::<Vec<String>>()
    };
    let plain = lines(&[]);
    let last: Vec<&str> = plain[4].split_whitespace().collect();
    assert_eq!(last, ["SUM", "640", "640", "6144", "1536", "640", "640"]);
    // The children, with the policies that make their tables larger than needed.
    let child: Vec<&str> = plain[2].split_whitespace().skip(2).collect();
    assert_eq!(child, ["4", "3", "64", "64", "2048!", "512!", "64", "64"]);
    let bytes = lines(&["-b"]);
    let last: Vec<&str> = bytes[4].split_whitespace().collect();
    assert_eq!(last, ["SUM", "4288", "4288", "50880", "12864", "4288", "4288"]);
    assert!(!lines(&["--color", "always"])[1].contains("\x1b[33m"));
    // A table that was large before is marked as larger than needed, in text and JSON.
    let pids =
        Target::ready(&["mkfd", "exec", "--leak", "900", "--", "mkfd", "sleep", "--close-std"]);
    let pid = pids.expect("no skip");
    let file = scratch.file("bloated.fdi");
    let select = ["fdimg", "select", "-F", "!900"];
    pipeline(&[&["fdscan", &pid.pid], &select, &["fdimg", "write", &file]]).quiet();
    let words = ["fdimg", "place", "--color", "always", &file];
    let text = pipeline(&[&words]).quiet().text();
    let line = text.lines().nth(1).expect("a task");
    assert!(line.starts_with("\x1b[33m") && line.contains("1024! "), "{text}");
    assert_eq!(place(&file, &[])["tasks"][0]["bloated"], true);
}

#[test]
fn a_table_above_the_limit_has_no_computed_size() {
    let scratch = Scratch::new();
    let file = tree_image(&scratch, &["0", "--first", "300"]);
    let forecast = place(&file, &["--limit", "300"]);
    for policy in policies() {
        assert!(forecast["tasks"][0]["forecast"][policy].is_null(), "{policy}: {forecast}");
        assert!(forecast["sums"]["forecast"][policy]["slots"].is_null(), "{policy}");
    }
    let text = pipeline(&[&["fdimg", "place", "--limit", "300", &file]]).quiet().text();
    assert!(text.lines().last().is_some_and(|sum| sum.ends_with('-')), "{text}");
    // As for every command, the input has to be an image.
    pipeline(&[&["fdimg", "place", "/dev/null"]]).refuses(3, &["fdimg: /dev/null: "]);
    pipeline(&[&["fdimg", "place", "--limit", "x", &file]]).refuses(2, &["--limit"]);
}
