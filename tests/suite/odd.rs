//! What no kind knows: whatever it is, it is recorded in silence, shown as it is, and refused or
//! left out at the restore.

use crate::harness::{Scratch, Target, pipeline, root, scan, show};
use crate::watch::restored;

/// What this test makes, and the first line of what its fdinfo must tell, if it tells anything.
const ODD: &[(&str, &str)] = &[
    ("io_uring", "SqMask:"),
    ("userfaultfd", "pending:"),
    ("bpf-map", "map_type:"),
    ("bpf-prog", "prog_type:"),
    ("perf", ""),
    ("secret", ""),
    ("landlock", ""),
    ("seccomp", ""),
    ("fscontext", ""),
    ("vsock", ""),
    ("fuse", ""),
    ("kvm", ""),
    ("vga_arbiter", ""),
];

/// What kernels are often built without.
const ODDER: &[&str] = &["alg", "xdp", "key", "can"];

#[test]
fn a_scan_of_everything_odd_is_silent_and_shows_it_as_opaque() {
    needs!(root(), "only root can make all of them");
    let scratch = Scratch::new();
    let mut made = Vec::new();
    for (of, told) in ODD.iter().copied().chain(ODDER.iter().map(|of| (*of, ""))) {
        let spec = format!("opaque@3:of={of}");
        match Target::make(scratch.dir(), &[&spec]) {
            Ok(_) => made.push((of, told)),
            Err(_) if ODDER.contains(&of) => (),
            Err(reason) => crate::harness::skipped(&reason),
        }
    }
    let specs: Vec<String> =
        made.iter().zip(3..).map(|((of, _), n)| format!("opaque@{n}:of={of}")).collect();
    let mut specs: Vec<&str> = specs.iter().map(String::as_str).collect();
    specs.push("eventfd@40:count=5");
    let target = target!(scratch.dir(), &specs);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    for option in ["--freeze", "--passive"] {
        pipeline(&[&["fdscan", option, &target.pid], &["fdimg", "show"]]).quiet();
    }
    drop(target);
    let shown = show(&file);
    for ((of, told), n) in made.iter().zip(0..) {
        let record = &shown["descriptors"][n];
        assert_eq!(record["kind"], "opaque", "{of}: {record}");
        let info = record["body"]["info"].as_str().unwrap();
        assert!(info.contains(told), "{of}: {record}");
    }
    let text = pipeline(&[&["fdimg", "show", &file]]).quiet().text();
    assert_eq!(text.matches("opaque").count(), made.len(), "{text}");
    let count = format!("{} of", made.len());
    let refused = restored(&file, &[], &["true"]).refuses(125, &["fd 3", "(status 6)"]);
    assert!(made.len() >= 9, "{count}\n{}", refused.whole());
    let check = ["mkfd", "check", "--std", "0,1,2", "eventfd@40:count=5"];
    restored(&file, &["--missing", "skip"], &check).ok();
}
