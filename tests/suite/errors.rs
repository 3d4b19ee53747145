//! Bad input gets one line and its status, and nothing is lost or half done.

use crate::harness::{Scratch, Target, feed, mkfd, run, sh, skip};

/// An image of a pipe with data, a file and an eventfd.
fn image(scratch: &Scratch) -> String {
    let image = scratch.path("a.fdi");
    let specs = ["pipe@3,4:data=hello", "regular@5:read", "eventfd@6:count=2"];
    let make = [&["make", "--close-std", "--dir", scratch.dir()][..], &specs].concat();
    let target = Target::start(mkfd(), &make).unwrap();
    run("fdscan", &["--data", "-o", &image, &target.pid()]).exits(0);
    image
}

#[test]
fn a_process_that_is_not_there() {
    run("fdscan", &["4194303"]).exits(5).says("fdscan: 4194303: no such process\n");
}

#[test]
fn words_that_mean_nothing() {
    run("fdscan", &["x"]).exits(2).says("'x' is no process id");
    run("fdscan", &[]).exits(2).says("PID is not given");
    run("fdscan", &["--no", "1"]).exits(2).says("unknown option '--no'");
    run("fdscan", &["-F", "pip", "1"]).exits(2).says("'pip' is neither");
    run("fdimg", &["frobnicate"]).exits(2);
    run("fdrestore", &[]).exits(2).says("COMMAND is not given");
    run("fdrestore", &["--no", "--", "true"]).exits(125).says("(status 2)");
}

#[test]
fn help_and_version_are_data() {
    for name in ["fdscan", "fdimg", "fdrestore", "ttyctl"] {
        assert!(run(name, &["--help"]).exits(0).out.contains("--version"));
        assert!(run(name, &["-V"]).exits(0).out.starts_with(name));
    }
}

#[test]
fn another_users_process() {
    if !nix::unistd::geteuid().is_root() {
        return skip("another_users_process", "it takes root to become another user");
    }
    let line = "setpriv --reuid 65534 --regid 65534 --clear-groups $fdscan 1 >/dev/null";
    sh(line).exits(4).says("it runs as uid 0, we as 65534");
}

#[test]
fn a_terminal_gets_no_image() {
    let line = "script -qec \"$fdscan $$\" /dev/null; exit $?";
    let ran = sh(line);
    assert_eq!(ran.status, Some(2), "{ran:?}");
    assert!(ran.out.contains("refusing to write a binary image to the terminal"), "{ran:?}");
}

#[test]
fn every_truncation_is_told_and_keeps_the_old_file() {
    let scratch = Scratch::new("truncated");
    let whole = std::fs::read(image(&scratch)).unwrap();
    let old = scratch.path("old.fdi");
    std::fs::write(&old, "old").unwrap();
    for len in (0..whole.len()).step_by(7) {
        feed(&whole[..len], "fdimg", &["write", &old]).exits(3).says("fdimg: stdin: ");
        assert_eq!(std::fs::read(&old).unwrap(), b"old");
    }
    let names: Vec<_> = std::fs::read_dir(scratch.dir()).unwrap().flatten().collect();
    assert!(names.iter().all(|name| !name.file_name().to_string_lossy().ends_with(".tmp")));
}

#[test]
fn every_flipped_bit_is_told() {
    let scratch = Scratch::new("flipped");
    let whole = std::fs::read(image(&scratch)).unwrap();
    for at in (0..whole.len()).step_by(5) {
        let mut bad = whole.clone();
        bad[at] ^= 1 << (at % 8);
        feed(&bad, "fdimg", &["verify"]).exits(3).says("fdimg: stdin: ");
    }
}

#[test]
fn what_is_no_image_at_all() {
    feed(b"hello, world\n", "fdimg", &["show"]).exits(3).says("not an fdkit image");
    feed(b"", "fdimg", &["show"]).exits(3).says("empty");
    feed(b"\xd9\xd9\xf7\xbf", "fdimg", &["show"]).exits(3).says("indefinite length");
    feed(b"\xd9\xd9\xf7\xa1\x64head\x5b\xff\xff\xff\xff\xff\xff\xff\xff", "fdimg", &["show"])
        .exits(3)
        .says("longer than 8 MiB");
    feed(&[b'x'; 100], "fdrestore", &["--", "true"]).exits(125).says("(status 3)");
}

#[test]
fn a_version_of_the_future() {
    let scratch = Scratch::new("version");
    let mut bytes = std::fs::read(image(&scratch)).unwrap();
    let key = b"gversion";
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap();
    bytes[at + key.len()] = 9;
    feed(&bytes, "fdimg", &["verify"]).exits(3).says("version 9 of the format");
}

#[test]
fn a_full_disk_keeps_the_old_file() {
    let scratch = Scratch::new("full");
    let image = image(&scratch);
    let dir = scratch.path("mnt");
    let line = format!(
        "mkdir {dir} && mount -t tmpfs -o size=4k none {dir} || exit 77; echo old >{dir}/a; \
         $fdimg read {image} >{dir}/fill; $fdimg write {dir}/a <{image}; s=$?; cat {dir}/a; \
         umount {dir}; exit $s"
    );
    let ran = sh(&line);
    if ran.status == Some(77) {
        return skip("a_full_disk_keeps_the_old_file", "a tmpfs cannot be mounted");
    }
    assert_eq!(ran.exits(7).says("No space left on device").out, "old\n");
}

#[test]
fn a_command_that_cannot_run() {
    let scratch = Scratch::new("command");
    let image = image(&scratch);
    run("fdrestore", &["-i", &image, "--", "/none/such"]).exits(127).says("/none/such");
    run("fdrestore", &["-i", &image, "--", "/etc/passwd"]).exits(126).says("/etc/passwd");
    run("fdrestore", &["-i", &image, "--", "sh", "-c", "exit 9"]).exits(9);
}

#[test]
fn a_file_that_is_gone_and_the_cures() {
    let scratch = Scratch::new("gone");
    let image = image(&scratch);
    let shown = run("fdimg", &["show", "-J", "-F", "5", &image]).exits(0);
    let document: serde_json::Value = serde_json::from_str(&shown.out).unwrap();
    std::fs::remove_file(document["descriptors"][0]["name"].as_str().unwrap()).unwrap();
    run("fdrestore", &["-n", "-i", &image]).exits(6).says("fd 5 (");
    run("fdrestore", &["-i", &image, "--", "true"]).exits(125).says("(status 6)");
    let list = "ls -l /proc/self/fd/5 >&6 2>/dev/null; test -e /proc/self/fd/5";
    let null = ["-i", &image, "--missing", "null", "--", "sh", "-c", list];
    run("fdrestore", &null).exits(0);
    let skipped = ["-i", &image, "--missing", "skip", "--", "sh", "-c", list];
    run("fdrestore", &skipped).exits(1);
}

#[test]
fn a_file_that_grew_is_told_or_refused() {
    let scratch = Scratch::new("grew");
    let image = image(&scratch);
    let shown = run("fdimg", &["show", "-J", "-F", "5", &image]).exits(0);
    let document: serde_json::Value = serde_json::from_str(&shown.out).unwrap();
    std::fs::write(document["descriptors"][0]["name"].as_str().unwrap(), [b'x'; 999]).unwrap();
    let with = |policy| run("fdrestore", &["-i", &image, "--changed", policy, "--", "true"]);
    with("warn").exits(0).says("is 999");
    with("fail").exits(125).says("is 999");
    assert_eq!(with("ignore").exits(0).err, "");
}

#[test]
fn an_end_outside_the_image_is_refused_or_handed_over() {
    let scratch = Scratch::new("outside");
    let image = scratch.path("a.fdi");
    let target = Target::start("sh", &["-c", "echo $$; sleep 60"]).unwrap();
    run("fdscan", &["-F", "1", "-o", &image, &target.pid()]).exits(0);
    let refused = run("fdrestore", &["-i", &image, "--", "true"]).exits(125);
    refused.says("its read end is outside the image").says("--inherit KEY=FD");
    let handed = run("fdrestore", &["-i", &image, "--inherit", "1=1", "--", "echo", "here"]);
    assert_eq!(handed.exits(0).out, "here\n");
}
