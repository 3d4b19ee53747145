//! What fdimg gives up before it reads an image: landlock(7), seccomp(2).

use crate::harness::{
    MKFD, Pipeline, Ran, Scratch, command, image, pipeline, root, settled, tool, which,
};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};

/// A user that does not own the files of the tests.
const USER: &[&str] = &["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"];

/// The command line of each subcommand: with the image in a file, and from stdin.
fn subcommands<'a>(file: &'a str, out: &'a str) -> Vec<(Vec<&'a str>, bool)> {
    let mut all = vec![(vec!["fdimg", "write", out], true), (vec!["fdimg", "read", "-"], true)];
    all.push((vec!["fdimg", "read", file], false));
    for words in [
        &["show"][..],
        &["show", "-J"],
        &["verify"],
        &["select", "-F", "3-9"],
        &["place"],
        &["place", "-J"],
    ] {
        all.push(([&["fdimg"], words, &[file]].concat(), false));
        all.push(([&["fdimg"], words].concat(), true));
    }
    all
}

/// Runs a command with these bytes as its stdin, if it has one.
fn run(words: &[&str], stdin: bool, bytes: &[u8]) -> Ran {
    let stages = [words];
    let pipeline = Pipeline::new(&stages);
    if stdin { pipeline.stdin(bytes) } else { pipeline }.run()
}

/// The value of a key of /proc/PID/status.
fn status(pid: u32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let value = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("none");
    value.trim_start_matches(':').trim().to_owned()
}

/// fdimg with these words, once it waits for the first byte of its stdin.
fn waiting(words: &[&str]) -> Child {
    let mut command = command(words);
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("fdimg");
    settled(&child.id().to_string());
    child
}

/// Whether this kernel has filters: seccomp(2).
fn has_seccomp() -> bool {
    fs::exists("/proc/sys/kernel/seccomp/actions_avail").is_ok_and(|exists| exists)
}

#[test]
fn fdimg_has_given_up_its_rights_when_it_waits_for_an_image() {
    needs!(has_seccomp(), "no seccomp filters here");
    let scratch = Scratch::new();
    let file = image(&scratch, &["regular@3", "pipe@4,5"]);
    let (bytes, out) = (fs::read(&file).unwrap(), scratch.file("out"));
    for (words, _) in subcommands(&file, &out).into_iter().filter(|(_, stdin)| *stdin) {
        let mut child = waiting(&words);
        let found = ["Seccomp", "NoNewPrivs"].map(|key| status(child.id(), key));
        assert_eq!(found, ["2", "1"], "{words:?}");
        child.stdin.take().expect("piped").write_all(&bytes).expect("it reads");
        let ran = child.wait_with_output().expect("a status");
        assert!(ran.status.success() && ran.stderr.is_empty(), "{words:?}: {ran:?}");
    }
    assert_eq!(fs::read(&out).unwrap(), bytes);
}

#[test]
fn fdimg_opens_and_runs_nothing_after_the_first_byte_of_an_image() {
    needs!(which("strace").is_some(), "strace is missing");
    let scratch = Scratch::new();
    let file = image(&scratch, &["regular@3", "pipe@4,5:data=x", "unix@6"]);
    let (bytes, out, log) = (fs::read(&file).unwrap(), scratch.file("out"), scratch.file("log"));
    for (words, stdin) in subcommands(&file, &out) {
        let program = tool(words[0]);
        let traced = ["strace", "-f", "-qq", "-o", &log, program.to_str().expect("UTF-8")];
        let traced = [&traced[..], &words[1..]].concat();
        let ran = run(&traced, stdin, &bytes);
        if ran.status(0) != 0 && ran.said().contains("strace") {
            skip!("strace cannot run fdimg: {}", ran.said());
        }
        ran.quiet();
        let log = fs::read_to_string(&log).unwrap();
        let lines: Vec<&str> = log.lines().collect();
        let at = |what: &str| lines.iter().rposition(|line| line.contains(what));
        let filter = at("seccomp(SECCOMP_SET_MODE_FILTER").expect("a filter");
        let domain = at("landlock_create_ruleset(").expect("a domain, or a try");
        let first =
            lines.iter().position(|line| line.contains("d9d9f7") || line.contains("head\\"));
        let first = first.expect("the first bytes of the image");
        assert!(domain < filter && filter < first, "{words:?}:\n{log}");
        for line in &lines[filter + 1..] {
            let call = line.split_once(' ').map_or("", |(_, rest)| rest.trim_start());
            let made = call.split('(').next().unwrap_or_default();
            for refused in ["open", "socket", "connect", "bind", "exec", "clone", "fork", "kill"] {
                assert!(!made.contains(refused), "{words:?}: {line}");
            }
            // Nothing that fdimg needs is missing in the list.
            assert!(!line.contains("EPERM") && !line.contains("EACCES"), "{words:?}: {line}");
        }
    }
}

#[test]
fn fdimg_says_with_verbose_what_was_possible_and_goes_on_without_it() {
    needs!(which("strace").is_some(), "strace is missing");
    let scratch = Scratch::new();
    let file = image(&scratch, &["regular@3", "pipe@4,5"]);
    let (bytes, out) = (fs::read(&file).unwrap(), scratch.file("out"));
    let traced = ["strace", "-qq", "-o", "/dev/null"];
    let ran = pipeline(&[&[&traced[..], &["true"]].concat()]);
    needs!(ran.status(0) == 0, "strace cannot run a program: {}", ran.said());
    for (call, error, said) in [
        ("landlock_create_ruleset", "ENOSYS", "landlock: not supported by this kernel"),
        ("landlock_create_ruleset", "EOPNOTSUPP", "landlock: not enabled in this kernel"),
        ("landlock_restrict_self", "EPERM", "landlock: not possible: "),
        ("prctl", "EPERM", "seccomp: not possible: PR_SET_NO_NEW_PRIVS: Operation not permitted\n"),
        ("seccomp", "EINVAL", "seccomp: not possible: Invalid argument\n"),
        ("seccomp", "ENOSYS", "seccomp: not possible: Function not implemented\n"),
    ] {
        let inject = format!("inject={call}:error={error}");
        for (words, stdin) in subcommands(&file, &out) {
            let wanted = run(&words, stdin, &bytes).quiet();
            let program = tool(words[0]);
            let program = program.to_str().expect("UTF-8");
            for verbose in [&[][..], &["-v"], &["--verbose"]] {
                let words =
                    [&traced[..], &["-e", &inject, program, words[1]], verbose, &words[2..]];
                let words = words.concat();
                let ran = run(&words, stdin, &bytes).ok();
                assert_eq!(ran.stdout, wanted.stdout, "{}", ran.whole());
                if words.contains(&out.as_str()) {
                    assert_eq!(fs::read(&out).unwrap(), bytes, "{}", ran.whole());
                    fs::remove_file(&out).unwrap();
                }
                match verbose {
                    [] => assert_eq!(ran.said(), "", "{}", ran.whole()),
                    _ => assert!(ran.said().contains(said), "{}", ran.whole()),
                }
            }
        }
    }
}

#[test]
fn fdimg_says_in_two_lines_what_it_has_given_up() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["regular@3"]);
    let (bytes, out) = (fs::read(&file).unwrap(), scratch.file("out"));
    for (words, stdin) in subcommands(&file, &out) {
        let words = [&words[..2], &["-v"], &words[2..]].concat();
        let ran = run(&words, stdin, &bytes).ok();
        let lines: Vec<&str> = ran.said().lines().collect();
        let begin = ["fdimg: landlock: ", "fdimg: seccomp: "];
        let begins = lines.iter().zip(begin).all(|(line, begin)| line.starts_with(begin));
        assert!(lines.len() == 2 && begins, "{}", ran.whole());
    }
}

/// `fdimg write` in all its forms in a directory, as a user.
fn writes(user: &[&str], dir: &str, bytes: &[u8]) {
    let fdimg = tool("fdimg");
    let fdimg = fdimg.to_str().expect("UTF-8");
    let write = |words: &[&str]| {
        let words = [user, &[fdimg, "write"], words].concat();
        Pipeline::new(&[&words]).stdin(bytes).cwd(dir).run()
    };
    let name = write(&[]).quiet().text();
    let names = ["out", "./out", name.trim_end()];
    // The second one replaces the first.
    names[..2].iter().for_each(|name| drop(write(&[name]).quiet()));
    write(&["/dev/null"]).quiet();
    for name in names {
        assert_eq!(fs::read(format!("{dir}/{name}")).unwrap(), bytes, "{name}");
    }
    // An image that is cut short leaves the old file, and no temporary name.
    let words = [user, &[fdimg, "write", "out"]].concat();
    let cut = &bytes[..bytes.len() - 9];
    Pipeline::new(&[&words]).stdin(cut).cwd(dir).run().refuses(3, &[]).in_one_line();
    assert_eq!(fs::read(format!("{dir}/out")).unwrap(), bytes);
    assert_eq!(fs::read_dir(dir).unwrap().count(), 2, "names in {dir}");
    fs::remove_file(format!("{dir}/out")).unwrap();
    fs::remove_file(format!("{dir}/{}", name.trim_end())).unwrap();
}

#[test]
fn fdimg_write_makes_and_replaces_files_with_what_it_keeps() {
    let scratch = Scratch::for_all_users();
    let bytes = fs::read(image(&scratch, &["regular@3"])).unwrap();
    let dir = scratch.file("dir");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    writes(&[], &dir, &bytes);
    if root() && which("setpriv").is_some() && fs::metadata(MKFD).is_ok() {
        let ran = pipeline(&[&[USER, &[tool("fdimg").to_str().unwrap(), "--version"]].concat()]);
        needs!(ran.status(0) == 0, "user 1000 cannot run fdimg: {}", ran.said());
        writes(USER, &dir, &bytes);
    }
}

#[test]
fn fdimg_write_has_a_temporary_name_where_there_is_no_o_tmpfile() {
    needs!(which("strace").is_some(), "strace is missing");
    let scratch = Scratch::new();
    let bytes = fs::read(image(&scratch, &["regular@3"])).unwrap();
    let (dir, log) = (scratch.file("dir"), scratch.file("log"));
    fs::create_dir(&dir).unwrap();
    let fdimg = tool("fdimg");
    let log_words = ["strace", "-qq", "-o", &log, "-e", "trace=openat"];
    let plain = [&log_words[..], &[fdimg.to_str().unwrap(), "write", "out"]].concat();
    let ran = Pipeline::new(&[&plain]).stdin(bytes.clone()).cwd(&dir).run();
    needs!(ran.status(0) == 0, "strace cannot run fdimg: {}", ran.said());
    let calls = fs::read_to_string(&log).unwrap();
    let nth = calls.lines().position(|line| line.contains("O_TMPFILE")).expect("O_TMPFILE") + 1;
    let inject = format!("inject=openat:error=EOPNOTSUPP:when={nth}");
    for (cut, status) in [(0, 0), (9, 3)] {
        let options = ["strace", "-qq", "-o", "/dev/null", "-e", &inject];
        let words = [&options[..], &[fdimg.to_str().unwrap(), "write", "out"]].concat();
        let ran = Pipeline::new(&[&words]).stdin(&bytes[..bytes.len() - cut]).cwd(&dir).run();
        assert_eq!(ran.status(0), status, "{}", ran.whole());
        assert_eq!(fs::read(format!("{dir}/out")).unwrap(), bytes);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "names in {dir}");
    }
}
