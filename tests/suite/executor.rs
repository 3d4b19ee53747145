//! The executors: operations that run in another process restore every fixture there.

use crate::harness::{Scratch, Target, pipeline, scan, skipped};
use crate::kinds::{CASES, PLACES, at};

/// Restores a case in a child process to which every operation is sent over a socket.
fn restored_over_a_socket(name: &str, templates: &[&str], place: &[u32; 4]) {
    let scratch = Scratch::new();
    let specs: Vec<String> = templates.iter().map(|spec| at(spec, place)).collect();
    let specs: Vec<&str> = specs.iter().map(String::as_str).collect();
    let target = match Target::make(scratch.dir(), &specs) {
        Ok(target) => target,
        Err(reason) => return skipped(&format!("{name}: {reason}")),
    };
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    drop(target);
    let check = ["fdchild", &file, "--", "mkfd", "check", "--std", "0,1,2", "--dir", scratch.dir()];
    pipeline(&[&[&check[..], &specs].concat()]).ok();
}

/// A share of all cases, so that several tests take them at once.
fn share(nth: usize) {
    for (name, templates) in CASES.iter().skip(nth).step_by(4) {
        for place in [&PLACES[0], &PLACES[2]] {
            restored_over_a_socket(name, templates, place);
        }
    }
}

#[test]
fn every_fixture_is_restored_by_operations_over_a_socket_1() {
    share(0);
}

#[test]
fn every_fixture_is_restored_by_operations_over_a_socket_2() {
    share(1);
}

#[test]
fn every_fixture_is_restored_by_operations_over_a_socket_3() {
    share(2);
}

#[test]
fn every_fixture_is_restored_by_operations_over_a_socket_4() {
    share(3);
}
