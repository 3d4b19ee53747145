//! Fuzz target: arbitrary bytes are parsed as files of /proc, and arbitrary text as a filter.

#![no_main]

use fdkit::filter::{Filter, Subject};
use fdkit::kind;
use fdkit::proc::{FdInfo, Stat, mounts};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let info = FdInfo::parse(bytes);
    let _ = info.locks();
    let _ = Stat::parse(bytes).map(|stat| stat.field(22));
    let _ = mounts::parse(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        if let Ok(filter) = Filter::parse(text, &kind::names()) {
            let subject = Subject { fd: 3, pids: &[1], kind: "pipe", link: b"pipe:[1]" };
            let _ = filter.passes(&subject);
        }
    }
});
