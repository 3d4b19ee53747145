//! Tests of the fixture mkfd itself: a check passes on what mkfd has made, and fails on anything
//! else.

use crate::harness::{Scratch, Target, pipeline, terminal};
use crate::kinds::{CASES, at};
use std::collections::BTreeSet;

/// Makes the first SPECs, and checks for the second ones by `mkfd check`. Gives status and stderr.
fn make_and_check(made: &[&str], wanted: &[&str]) -> (i32, String) {
    let scratch = Scratch::new();
    let words = ["mkfd", "make", "--dir", scratch.dir()];
    let check = ["--", "mkfd", "check", "--std", "0,1,2", "--dir", scratch.dir()];
    let ran = pipeline(&[&[&words[..], made, &check[..], wanted].concat()]);
    (ran.status(0), ran.stderr(0).to_owned())
}

#[test]
fn a_check_passes_on_what_mkfd_has_made() {
    for (name, specs) in CASES {
        // Close-on-exec descriptors are closed by the exec of the check.
        let specs = specs.iter().map(|spec| at(spec, &[3, 4, 5, 6]).replace("cloexec", ""));
        let specs: Vec<String> = specs.collect();
        let specs: Vec<&str> = specs.iter().map(String::as_str).collect();
        let (status, stderr) = make_and_check(&specs, &specs);
        match status {
            77 => crate::harness::skipped(&format!("{name}: {stderr}")),
            _ => assert_eq!(status, 0, "{name} {specs:?}\n{stderr}"),
        }
    }
}

#[test]
fn a_check_fails_on_anything_else() {
    let differences = pipeline(&[&["mkfd", "differences"]]).quiet().text();
    let mut kinds = BTreeSet::new();
    for line in differences.lines() {
        let words: Vec<&str> = line.split('\t').collect();
        let [kind, made, wanted, said] = words[..] else { panic!("{line:?}") };
        kinds.insert(kind);
        let (status, stderr) = make_and_check(&[made], &[wanted]);
        if status == 77 {
            crate::harness::skipped(&format!("{made}: {stderr}"));
            continue;
        }
        assert_eq!(status, 1, "{made} is taken for {wanted}\n{stderr}");
        assert!(stderr.contains(said), "{made} as {wanted}: {said:?} is not said\n{stderr}");
    }
    // A SPEC of the kind tty has the path of a terminal: see
    // a_check_of_a_terminal_fails_on_another_one.
    kinds.insert("tty");
    let list = pipeline(&[&["mkfd", "list"]]).quiet().text();
    let named = list.lines().filter(|line| !line.starts_with(' '));
    let named: BTreeSet<&str> = named.filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(kinds, named, "each kind has a difference that its check notices");
}

#[test]
fn a_check_of_a_terminal_fails_on_another_one() {
    let [(one, _master), (two, _other)] = [terminal(), terminal()];
    let [one, two] = [one, two].map(|slave| {
        let name = nix::unistd::ttyname(&slave).expect("its name").display().to_string();
        (format!("tty@3:path={name}"), slave)
    });
    let noecho = format!("{},noecho", one.0);
    for (wanted, said) in [(&two.0, "path is"), (&noecho, "echo is true")] {
        let (status, stderr) = make_and_check(&[&one.0], &[wanted]);
        assert_eq!(status, 1, "{} is taken for {wanted}\n{stderr}", one.0);
        assert!(stderr.contains(said), "{said:?} is not said\n{stderr}");
    }
}

#[test]
fn a_check_distinguishes_dups_from_separate_descriptions() {
    for (made, wanted) in [
        (&["eventfd@3", "eventfd@4"][..], &["eventfd@3,4:dup"][..]),
        (&["eventfd@3,4:dup"], &["eventfd@3", "eventfd@4"]),
        (&["regular@3:path=/dev/null", "regular@4"], &["regular@3,4:dup"]),
    ] {
        let (status, stderr) = make_and_check(made, wanted);
        assert_eq!(status, 1, "{made:?} is taken for {wanted:?}\n{stderr}");
    }
}

#[test]
fn a_target_has_its_specs_open_and_nothing_else() {
    let scratch = Scratch::new();
    let specs = ["mem@0", "pipe@9,8", "eventfd@3,60:dup,cloexec", "regular@4"];
    let target = target!(scratch.dir(), &specs);
    let numbers: Vec<u32> = target.open().into_iter().map(|(n, _)| n).collect();
    assert_eq!(numbers, [0, 3, 4, 8, 9, 60]);
    let info = std::fs::read_to_string(format!("/proc/{}/fdinfo/60", target.pid)).unwrap();
    assert!(info.contains("flags:\t02000002"), "{info}");
}

#[test]
fn a_spec_may_use_stdout_and_the_pid_is_still_printed() {
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["regular@1", "eventfd@2"]);
    let numbers: Vec<u32> = target.open().into_iter().map(|(n, _)| n).collect();
    assert_eq!(numbers, [1, 2]);
}

#[test]
fn mkfd_many_uses_consecutive_numbers_and_all_kinds() {
    let scratch = Scratch::new();
    let words = ["mkfd", "many", "100", "--close-std", "--dir", scratch.dir()];
    let target = Target::ready(&words).unwrap();
    let open = target.open();
    let numbers: Vec<u32> = open.iter().map(|(n, _)| *n).collect();
    assert_eq!(numbers, (3..103).collect::<Vec<u32>>());
    for (start, count) in [("/", 40), ("pipe:", 20), ("socket:", 20), ("anon_inode:[eventfd]", 20)]
    {
        let found = open.iter().filter(|(_, link)| link.starts_with(start)).count();
        assert_eq!(found, count, "{start}");
    }
}
