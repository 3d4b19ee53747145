//! Nothing of fdrestore's own is left in COMMAND.

use crate::harness::{Scratch, Target, mkfd, run};

#[test]
fn slots_where_our_own_descriptors_are_born_are_not_disturbed() {
    let scratch = Scratch::new("services");
    let (image, log) = (scratch.path("a.fdi"), scratch.path("log"));
    let specs = ["mem@0", "eventfd@3:count=3", "pipe@4,5:data=x"];
    let make = [&["make", "--close-std", "--dir", scratch.dir()][..], &specs].concat();
    let target = Target::start(mkfd(), &make).unwrap();
    run("fdscan", &["--data", "-o", &image, &target.pid()]).exits(0);
    drop(target);
    let program = mkfd();
    let check = ["-i", &image, "--", program.to_str().unwrap(), "check", "--std", "none"];
    let more = ["--log", &log, "--dir", scratch.dir()];
    let ran = run("fdrestore", &[&check[..], &more, &specs].concat());
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    assert_eq!(ran.status, Some(0), "{ran:?} {said}");
}
