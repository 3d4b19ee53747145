//! A process in a mount namespace of its own: 3,000 files below 827 mounts.

use crate::{Held, row, side_by_side};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fs::File;
use std::path::Path;

const FILES: usize = 3000;
const MOUNTS: usize = 827;

/// The argument of the program that opens the files.
pub(crate) const OPEN: &str = "--open";

/// Opens the files, prints the process id, and waits.
pub(crate) fn open(dir: &str) -> ! {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the soft limit");
    let path = |at: usize| Path::new(dir).join((at % MOUNTS).to_string()).join(at.to_string());
    let _files: Vec<File> = (0..FILES).map(|at| File::create(path(at)).expect("a file")).collect();
    println!("{}", std::process::id());
    loop {
        std::thread::park();
    }
}

/// Compares a scan from outside the namespace with one from inside.
pub(crate) fn compare(scan: &str, dir: &str) {
    let script = format!(
        "i=0; while [ $i -lt {MOUNTS} ]; do
            mkdir -p \"$1/$i\" && mount -t tmpfs -o size=1m none \"$1/$i\" || exit 1
            i=$((i + 1))
        done; exec \"$2\" {OPEN} \"$1\""
    );
    let own = std::env::current_exe().expect("this program");
    let own = own.to_str().expect("UTF-8");
    let Some(held) = Held::start(&["unshare", "-m", "sh", "-c", &script, "sh", dir, own]) else {
        println!("{:<34} no mount namespace can be made", "fdscan, 827 mounts");
        return;
    };
    let inside = ["nsenter", "-m", "-t", &held.pid, scan, "-o", "/dev/null", &held.pid];
    let times = side_by_side(&[vec![scan, "-o", "/dev/null", &held.pid], inside.to_vec()]);
    row("fdscan, 3000 files, 827 mounts", times[0], "in its namespace", times[1]);
}
