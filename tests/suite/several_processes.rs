//! Scans of several processes, some of which end, or may not be looked at.

use crate::harness::{MKFD, Ran, Scratch, Target, pipeline, show, tool};
use crate::rights;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// No process has this id: it is above /proc/sys/kernel/pid_max at its highest.
const NO_PROCESS: &str = "4194399";

fn sleeping() -> Target {
    target("exec sleep 100").executing("sleep")
}

fn target(script: &str) -> Target {
    Target::program(&["sh", "-c", &format!("echo ready; {script}")])
}

/// The names of the programs in an image, in its order.
fn programs(file: &str) -> Vec<String> {
    let shown = show(file);
    let tasks = shown["tasks"].as_array().expect("tasks");
    tasks.iter().map(|task| task["comm"].as_str().expect("comm").to_owned()).collect()
}

/// Runs a script in sh, with the tools as $fdscan and $fdimg, and without what the suite has inherited.
/// Fails if it takes more than a minute.
fn script(text: &str, args: &[&str]) -> Output {
    let mut child = Command::new(MKFD)
        .args([&["exec", "--", "sh", "-c", text, "sh"], args].concat())
        .env("fdscan", tool("fdscan"))
        .env("fdimg", tool("fdimg"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("sh");
    let begun = Instant::now();
    while child.try_wait().expect("wait").is_none() {
        if begun.elapsed() > Duration::from_secs(60) {
            let _ = child.kill();
            panic!("the script hangs: {text}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().expect("its output")
}

/// Runs a script that succeeds without a message.
fn quiet(text: &str, args: &[&str]) -> String {
    let Output { status, stdout, stderr } = script(text, args);
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success() && stderr.is_empty(), "{text}: {status}: {stderr}");
    String::from_utf8(stdout).expect("UTF-8")
}

/// Scans these processes into a file.
fn scan(file: &str, options: &[&str], pids: &[&str]) -> Ran {
    pipeline(&[&[&["fdscan", "-o", file], options, pids].concat()])
}

#[test]
fn the_other_processes_are_captured_if_one_does_not_exist() {
    let scratch = Scratch::new();
    let file = scratch.file("a.fdi");
    let (one, other) = (sleeping(), sleeping());
    for options in [&[][..], &["--passive"], &["--data"], &["--freeze"]] {
        let ran = scan(&file, options, &[&one.pid, NO_PROCESS, &other.pid]);
        ran.refuses(1, &[&format!("fdscan: {NO_PROCESS}: no such process")]).in_one_line();
        assert_eq!(programs(&file).len(), 2, "{options:?}");
    }
    // The image says itself what it lacks.
    let lacks = format!("process {NO_PROCESS} is not in the image: no such process");
    let missing = &show(&file)["missing"];
    assert_eq!(
        (missing.as_array().unwrap().len(), missing[0]["partial"].as_bool()),
        (1, Some(false))
    );
    assert_eq!(missing[0]["pid"].to_string(), NO_PROCESS);
    assert!(pipeline(&[&["fdimg", "verify", &file]]).ok().text().contains(&lacks));
    assert!(pipeline(&[&["fdimg", "show", &file]]).ok().said().contains(&lacks));
    let selected = scratch.file("b.fdi");
    pipeline(&[&["fdimg", "select", "-F", "0", &file], &["fdimg", "write", &selected]]).quiet();
    assert!(pipeline(&[&["fdimg", "show", &selected]]).ok().said().contains(&lacks));
    let plan = pipeline(&[&["fdrestore", "-n", "--tree", "--missing", "skip", "-i", &file]]);
    assert!(plan.ok().said().contains(&lacks));
}

#[test]
fn there_is_no_image_if_no_process_is_left() {
    let scratch = Scratch::new();
    let file = scratch.file("a.fdi");
    for options in [&[][..], &["--freeze"]] {
        let ran = scan(&file, options, &[NO_PROCESS, "4194398"]);
        ran.refuses(5, &[&format!("fdscan: {NO_PROCESS}: no such process"), "fdscan: 4194398: no"]);
        assert!(fs::metadata(&file).is_err(), "{options:?}");
        let ran = pipeline(&[&[&["fdscan"], options, &[NO_PROCESS]].concat(), &["cat"]]);
        assert_eq!((ran.status(0), ran.stdout.len()), (5, 0));
    }
}

#[test]
fn a_process_of_another_user_is_missing_beside_an_own_one() {
    may!(rights::other_user());
    let scratch = Scratch::new();
    let root = sleeping();
    // Other users may not be able to read the directory in which the tools were built.
    let copy = scratch.file("fdscan-copy");
    fs::copy(tool("fdscan"), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let file = scratch.file("a.fdi");
    let own = ["sh", "-c", "exec \"$0\" \"$1\" $$", &copy, &root.pid];
    let ran = pipeline(&[&[&nobody[..], &own].concat(), &["tee", &file]]);
    assert_eq!(ran.status(0), 1, "{}", ran.whole());
    assert!(ran.stderr(0).contains("it runs as uid 0, we as 65534"), "{}", ran.whole());
    let shown = show(&file);
    assert_eq!(shown["tasks"].as_array().unwrap().len(), 1);
    assert_eq!(shown["missing"][0]["pid"].to_string(), root.pid);
    // Without the own one nothing is left.
    let ran = pipeline(&[&[&nobody[..], &[&copy, &root.pid, NO_PROCESS]].concat()]);
    ran.refuses(4, &["it runs as uid 0, we as 65534", "no such process"]);
}

#[test]
fn a_tree_whose_children_live_a_moment_always_gives_an_image() {
    let scratch = Scratch::new();
    let file = scratch.file("a.fdi");
    let parent = target("while :; do sleep 0.02 & sleep 0.01; done");
    for nth in 0..30 {
        for options in [&["-t"][..], &["-t", "--freeze"]] {
            let ran = scan(&file, options, &[&parent.pid]);
            // 5: one that was not stopped became another program, or opened a file.
            let status = ran.status(0);
            let changed = status == 5 && options.len() == 1;
            assert!(matches!(status, 0 | 1) || changed, "scan {nth} {options:?}\n{}", ran.whole());
            pipeline(&[&["fdimg", "verify", &file]]).ok();
            assert_eq!(programs(&file)[0], "sh");
            fs::remove_file(&file).unwrap();
        }
    }
}

#[test]
fn the_tree_of_the_calling_shell_lacks_fdscan_and_the_readers_of_its_image() {
    let scratch = Scratch::new();
    let file = scratch.file("a.fdi");
    // A process that executes its program during the scan is said, so the program runs first.
    let waits =
        "sleep 100 & until read -r name <\"/proc/$!/comm\" && test \"$name\" = sleep; do :; done; ";
    for scan in [
        "\"$fdscan\" -t $$ | (cat; sleep 0 ) >\"$1\"; kill $!",
        "\"$fdscan\" -t $$ >\"$1\"; kill $!",
        "\"$fdscan\" -t $$ -o \"$1\"; kill $!",
    ] {
        for scan in [scan.to_owned(), scan.replace("-t", "-t --freeze")] {
            quiet(&format!("{waits}{scan}"), &[&file]);
            assert_eq!(programs(&file), ["sh", "sleep"], "{scan}");
        }
    }
}

#[test]
fn an_image_of_stopped_processes_is_written_when_they_run_again() {
    let scratch = Scratch::new();
    let file = scratch.file("large");
    // Longer than a pipe can hold, and read by the process that is scanned.
    fs::write(&file, vec![b'x'; 1 << 20]).unwrap();
    let text = "exec 3<\"$1\"; rm \"$1\"; image=$(\"$fdscan\" --freeze --data $$ | base64); echo ${#image}";
    let length: usize = quiet(text, &[&file]).trim().parse().unwrap();
    assert!(length > 1 << 20, "{length}");
}
