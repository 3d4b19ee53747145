//! Tests of the fixture mkfd itself: a check passes on what mkfd has made, and fails on anything
//! else.

use crate::harness::{Scratch, Target, pipeline};
use crate::kinds::{CASES, at};

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
    for (made, wanted, said) in [
        ("regular@3:pos=2", "regular@3", "position is 2, was made 0"),
        ("regular@3:read", "regular@3", "F_GETFL"),
        ("regular@3:data=abcd", "regular@3:data=abcx", "content"),
        ("unlinked@3", "regular@3", "(deleted)"),
        ("fifo@3,4:unlinked", "fifo@3,4", "link count"),
        ("regular@3", "regular@3:renamed", "ENOENT"),
        ("regular@3:lock=posix-w:0-9", "regular@3", "locks is"),
        ("regular@3", "regular@3:lock=posix-w:0-9", "locks is"),
        ("regular@3:lock=posix-w:0-9", "regular@3:lock=posix-w:0-8", "locks is"),
        ("regular@3:lock=posix-r:0-9", "regular@3:lock=posix-w:0-9", "locks is"),
        ("regular@3:lock=ofd-w:0-9", "regular@3:lock=posix-w:0-9", "locks is"),
        ("regular@3:lock=flock-r", "regular@3:lock=flock-w", "locks is"),
        ("directory@3", "directory@3:lock=flock-w", "locks is"),
        ("regular@3:read,own,async,lock=lease-r", "regular@3:read,own,async", "write lease is"),
        ("regular@3:own,async,lock=lease-w", "regular@3:own,async,lock=lease-r", "write lease is"),
        ("regular@3,4:dup", "regular@3", "4 is open and should not be"),
        ("regular@3", "regular@3,4:dup", "4 regular: not open"),
        ("eventfd@3,4:dup", "eventfd@4", "3 is open"),
        ("eventfd@3", "eventfd@3:cloexec", "FDRESTORE_CLOEXEC"),
        ("eventfd@3", "eventfd@3:own", "owner"),
        ("eventfd@3", "eventfd@3:sig=10", "F_GETSIG"),
        ("eventfd@3:count=3,semaphore", "eventfd@3:count=3", "a read is Some(1)"),
        ("eventfd@3:count=4", "eventfd@3:count=3", "count is Some(4)"),
        ("pipe@3,4:data=hello", "pipe@3,4:data=help", "data"),
        ("pipe@3,4:packet,data=a+b", "pipe@3,4:data=ab", "O_DIRECT"),
        ("pipe@3,4", "pipe@3,4:async", "O_ASYNC"),
        ("pipe@3,4", "pipe@3:reader", "a writer is still there"),
        ("pipe@3,4:size=4096", "pipe@3,4:size=8192", "size is 4096"),
        ("ns@3", "ns@3:of=uts", "inode is"),
        ("regular@3:read,path=/dev/null", "ns@3", "no namespace"),
        ("pidfd@3", "pidfd@3:thread", "F_GETFL"),
        ("pidfd@3", "pidfd@3:dead", "readable is false"),
        ("pidfd@3", "pidfd@3:pid=1", "process is"),
        ("pidfd@3:dead", "pidfd@3", "a signal is Err(ESRCH)"),
        ("pidfd@3:dead,exit=9", "pidfd@3:dead,exit=256", "exit is 9"),
        ("signalfd@3:signals=10", "signalfd@3:signals=10+64", "mask is"),
        ("signalfd@3:signals=12", "signalfd@3:signals=10", "not readable after signal 10"),
        ("timerfd@3:in=99", "timerfd@3", "time left is 9"),
        ("timerfd@3:in=900,every=5", "timerfd@3:in=900,every=5.5", "interval is 5000000000"),
        ("timerfd@3:in=900", "timerfd@3:in=1800", "time left"),
        ("timerfd@3:at=90000000", "timerfd@3:at=90000001", "time left"),
        ("timerfd@3:at=90000000", "timerfd@3:at=90000000.001", "time left"),
        ("timerfd@3:ticks=3", "timerfd@3:ticks=2", "ticks is \"3\""),
        ("timerfd@3:clock=boottime", "timerfd@3", "clock is \"7\""),
        ("timerfd@3:at=0", "timerfd@3", "flags is"),
        ("epoll@3,4:et", "epoll@3,4", "members of 3"),
        ("epoll@3,4:value=7", "epoll@3,4", "members of 3"),
        ("epoll@3,4:moved=9", "epoll@3,4", "members of 3"),
        ("epoll@3,4", "epoll@3,4:busy", "busy polling"),
        ("epoll@3,4,5:reused", "epoll@3,4,5:twice", "members of 3"),
        ("inotify@3:wd=2", "inotify@3", "watches"),
        ("inotify@3:oneshot", "inotify@3", "watches"),
        ("inotify@3:file", "inotify@3", "watches"),
        ("inotify@3:queued", "inotify@3", "events"),
        ("fanotify@3:flags=4", "fanotify@3", "group"),
        ("fanotify@3:mount", "fanotify@3", "mark"),
        ("fanotify@3:ignored=2", "fanotify@3", "mark"),
        ("mem@3", "mem@3:dev=zero", "device"),
        ("memfd@3:name=a", "memfd@3:name=b", "link is"),
        ("memfd@3:seals=grow", "memfd@3:seals=shrink", "seals is"),
        ("memfd@3:data=ab", "memfd@3:data=ac", "content"),
        ("memfd@3:data=x,size=9000,mode=384", "memfd@3:data=x,size=9000", "mode is"),
        ("memfd@3:data=%00", "memfd@3:data=,size=1", "allocated pages is 1"),
        ("memfd@3:huge", "memfd@3:data=", "write is Err(EINVAL)"),
        ("unlinked@3,4:two", "memfd@3,4:two", "F_GETFL"),
        ("chardev@3", "chardev@3:dev=autofs", "device"),
        ("chardev@3:dev=cpu/0/cpuid,read,pos=1", "chardev@3:dev=cpu/0/cpuid,read", "position is 1"),
        ("chardev@3:read", "chardev@3", "F_GETFL"),
        ("netlink@3:groups=1+5", "netlink@3:groups=1+33", "groups is [1, 5]"),
        ("netlink@3:protocol=16", "netlink@3", "protocol is 16"),
        ("netlink@3:unbound", "netlink@3", "bound is false"),
        ("netlink@3:dgram", "netlink@3", "type is"),
        ("netlink@3:peer=7,protocol=2", "netlink@3:peer=8,protocol=2", "peer is 7"),
        ("netlink@3:set=270.3.1", "netlink@3:set=270.3.0", "option 270.3"),
        ("packet@3:protocol=2048", "packet@3:protocol=2054", "protocol and device"),
        ("packet@3:any", "packet@3", "protocol and device"),
        ("packet@3:dgram", "packet@3", "type is"),
        ("packet@3:set=263.8.1", "packet@3:set=263.8.0", "option 263.8"),
        ("packet@3:fanout=0x1234", "packet@3", "fanout is"),
        ("chardev@3", "tun@3:unattached", "path is"),
        ("mqueue@3:maxmsg=3", "mqueue@3", "attributes"),
        ("mqueue@3:data=1.a+0.b", "mqueue@3:data=2.a+0.b", "messages"),
        ("mqueue@3:data=1.a+1.b", "mqueue@3:data=1.b+1.a", "messages"),
        ("mqueue@3:mode=416", "mqueue@3", "mode is"),
        ("mqueue@3:name=fdkit-a", "mqueue@3:name=fdkit-b", "link is"),
        ("unlinked@3", "mqueue@3", "link is"),
        ("socketpair@3,4:data=a", "socketpair@3,4:data=b", "data"),
        ("socketpair@3,4:type=dgram,data=a+b", "socketpair@3,4:type=dgram,data=ab", "messages"),
        ("socketpair@3,4", "socketpair@3,4:type=seqpacket", "type"),
        ("socketpair@3,4:scm=pipe", "socketpair@3,4:scm=pipe+pipe", "descriptors queued is 1"),
        ("socketpair@3,4:scm=pipe", "socketpair@3,4", "data"),
        ("socketpair@3,4", "socketpair@3,4:options", "option 13"),
        ("socketpair@3,4:scm=self", "socketpair@3,4:scm=pipe", "queued pipe"),
        ("unix@3:abstract=fdkit-a", "unix@3:abstract=fdkit-b", "name"),
        ("tcp@3", "tcp@3:bound", "listens is true"),
        ("tcp@3:set=1.15.1", "tcp@3", "SO_REUSEPORT is true"),
        ("tcp@3:fresh", "tcp@3:ended", "a read is None"),
        ("tcp@3", "tcp@3:mptcp", "protocol is 6"),
        ("tcp@3:set=1.9.0", "tcp@3:set=1.9.1", "option 1.9 is none is true"),
        ("tcp@3", "tcp@3:set=1.2.1", "what it is"),
        ("udp@3:fresh", "udp@3:fresh,join=239.255.77.1", "EADDRNOTAVAIL"),
        ("udp@3:fresh,join=239.255.77.1", "udp@3:fresh", "what it is"),
        ("raw@3", "raw@3:connected", "connected is false"),
        ("raw@3:protocol=254", "raw@3", "protocol is 254"),
        ("icmp@3:connected", "icmp@3", "connected is true"),
        ("udp@3", "udp@3:lite", "protocol is 17"),
        ("udp@3:data=a+b", "udp@3:data=ab", "messages"),
        ("udp@3", "udp@3:shut", "shut down for receiving is false"),
        ("udp@3:shut", "udp@3:shut=2", "shut down for both is false"),
        ("udp@3:fresh", "udp@3:fresh,set=1.6.1", "option 1.6 is none is true"),
        ("pty@3,4:raw", "pty@3,4", "echo is false"),
        ("pty@3,4:rows=3", "pty@3,4:rows=4", "size"),
        ("pty@3,4:packet", "pty@3,4", "packet mode"),
        ("pty@3,4:excl", "pty@3,4", "slave exclusive"),
        ("pty@3,4:shut", "pty@3,4", "master exclusive"),
        ("pty@3,4:locked", "pty@3,4", "what is locked"),
        ("pty@3,4:mode=384", "pty@3,4:mode=400", "mode"),
        ("pty@3,4:said=x", "pty@3,4", "what waits at the master"),
        ("pty@3,4:typed=a%0ab%04,raw", "pty@3,4:typed=a%0a,raw", "what was typed"),
        ("pty@3,4:typed=a%0ab%04", "pty@3,4:typed=a%0ac%04", "a line that was typed"),
        ("pty@3,4:typed=ab", "pty@3,4:typed=ac", "the line that was begun"),
        ("pty@3,4:stopped", "pty@3,4", "output stopped"),
        ("pty@3,4", "pty@3,4:off", "output stopped"),
        ("pty@3:master", "pty@3:left", "hung up"),
        ("directory@3:steps=2", "directory@3", "position"),
    ] {
        let (status, stderr) = make_and_check(&[made], &[wanted]);
        if status == 77 {
            crate::harness::skipped(&format!("{made}: {stderr}"));
            continue;
        }
        assert_eq!(status, 1, "{made} is taken for {wanted}\n{stderr}");
        assert!(stderr.contains(said), "{made} as {wanted}: {said:?} is not said\n{stderr}");
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
