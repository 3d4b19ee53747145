//! Round trips of every kind: make descriptors, scan them, end the process, restore them, check
//! them from inside with mkfd, scan them again, and compare the records.

use crate::canonical::records;
use crate::harness::{
    RESTORE, Scratch, Target, pipeline, python, restored, scan, show, skipped, terminal, tool,
    wait_for_program, which,
};
use crate::rights;

/// The numbers at which A, B, C and D of a case are restored: 3 to 6, where the tools' own
/// descriptors are created; the same in another order than they are made; some of them low; and
/// high ones.
pub(crate) const PLACES: &[[u32; 4]] =
    &[[3, 4, 5, 6], [5, 4, 3, 6], [4, 41, 50, 63], [700, 701, 64, 130]];

/// The cases: a name, and SPECs in which A, B, C and D stand for the numbers.
pub(crate) static CASES: &[(&str, &[&str])] = &[
    ("a regular file", &["regular@A"]),
    ("positions", &["regular@A:pos=7", "regular@B:pos=100000", "regular@C:read,pos=1"]),
    ("access modes", &["regular@A:read", "regular@B:write", "regular@C:append,write,pos=3"]),
    ("flags of open", &["regular@A:sync", "regular@B:noatime,nonblock", "regular@C:opath"]),
    ("a dup", &["regular@A,C:dup,pos=5", "regular@B"]),
    ("three dups of one", &["eventfd@B", "eventfd@A,C,D:dup,count=2"]),
    ("a lock of a table", &["regular@A:lock=posix-w:0-9+posix-r:20-29+posix-r:100-", "regular@B"]),
    ("locks of a table", &["regular@B:read,lock=posix-r:7-7", "regular@C:write,lock=posix-w"]),
    ("a lock of a dup", &["regular@A,C:dup,lock=posix-w:5-5", "regular@B,D:dup,lock=ofd-w:3-4"]),
    ("locks of a description", &["regular@A:lock=ofd-r:0-0+ofd-w:2-", "regular@B:read,lock=ofd-r"]),
    (
        "flocks",
        &[
            "regular@A:lock=flock-w",
            "regular@B,C:dup,read,lock=flock-r",
            "directory@D:lock=flock-w",
        ],
    ),
    (
        "locks of files without a name",
        &["unlinked@A:lock=posix-w:1-2", "memfd@B:lock=flock-w", "memfd@C:lock=posix-w+flock-r"],
    ),
    (
        "leases",
        &[
            "regular@A:read,own,async,lock=lease-r",
            "regular@B:own,async,sig=10,lock=lease-w",
            "regular@C:append",
        ],
    ),
    ("O_TMPFILE", &["regular@A:tmpfile,pos=3", "regular@B:tmpfile,data=@70000"]),
    ("an owner", &["regular@A:own,sig=10", "pipe@B,C:own=tid", "eventfd@D:own=pgrp,sig=34"]),
    ("signals", &["pipe@B,A:own,async=0,sig=12", "fifo@C:rdwr,own,async"]),
    ("a signal through a dup", &["pipe@A,B,C,D:dup,own,async=0,sig=35"]),
    ("an unlinked file", &["unlinked@A:pos=4", "unlinked@B:read", "unlinked@C:append,write"]),
    ("an empty unlinked file", &["unlinked@A:data="]),
    ("a long unlinked file", &["unlinked@A:data=@1000000,pos=900000", "unlinked@B,C:dup"]),
    ("two descriptions of an unlinked file", &["unlinked@A,B:two,pos=4,pos2=9", "unlinked@C"]),
    ("directories", &["directory@A", "directory@B:steps=3", "directory@C:opath"]),
    ("a directory without O_DIRECTORY", &["directory@A,B:dup,plain,steps=2"]),
    ("an empty pipe", &["pipe@A,B"]),
    ("a pipe with data", &["pipe@A,B:data=hello%0aworld", "pipe@D,C:data=@5000"]),
    ("a full pipe", &["pipe@A,B:data=@65536"]),
    ("a long pipe", &["pipe@A,B:size=1048576,data=@1000000"]),
    ("a short pipe", &["pipe@A,B:size=4096,data=x"]),
    ("packets in a pipe", &["pipe@A,B:packet,data=one+two+three"]),
    ("one nonblocking end", &["pipe@A,B:nonblock=0", "pipe@C,D:nonblock=1,data=x"]),
    ("two descriptions of a read end", &["pipe@A,B,C:two,data=hello,nonblock=2"]),
    ("dups of both ends", &["pipe@A,B,D,C:dup,data=hello"]),
    ("a pipe without a writer", &["pipe@A:reader,data=the end", "pipe@B:reader"]),
    ("a pipe without a reader", &["pipe@A:writer"]),
    ("fifos", &["fifo@A,B:data=hello", "fifo@C:rdwr,data=@4096,size=8192"]),
    (
        "fifos without a name",
        &["fifo@D,B:unlinked,data=hello", "fifo@C:unlinked,rdwr,data=@4096,size=8192,own,async"],
    ),
    ("dups of a fifo without a name", &["fifo@A,B,C,D:unlinked,dup,size=4096,nonblock=0"]),
    ("counts", &["eventfd@A", "eventfd@B:count=1", "eventfd@C:count=4294967296"]),
    ("the highest count", &["eventfd@A:count=0xfffffffffffffffe,nonblock"]),
    ("semaphores", &["eventfd@A:semaphore", "eventfd@B:count=1099511627776,semaphore"]),
    ("memfds", &["memfd@A:pos=5", "memfd@B:name=a%ff/b c,append", "memfd@C:name=,data="]),
    ("a long memfd", &["memfd@A:data=@1000000,pos=1000000", "memfd@B,C:dup,data=@70000"]),
    ("holes", &["memfd@A:after=8388608,data=x,size=33554432", "memfd@B:data=,size=10000"]),
    ("two descriptions of a memfd", &["memfd@A,B:two,pos=3", "memfd@C,D:two,read,pos=9"]),
    (
        "seals",
        &[
            "memfd@A:seals=shrink+grow+write+seal,data=@5000",
            "memfd@B:seals=grow",
            "memfd@C,D:two,seals=shrink+future,pos=2",
        ],
    ),
    (
        "a memfd that is not executable",
        &["memfd@A:noexec,data=", "memfd@B:seals=exec+shrink+grow+write+future,mode=320"],
    ),
    ("owners of memfds", &["memfd@A:owner=1234,mode=384", "memfd@B:unsealable,read"]),
    ("an empty file of huge pages", &["memfd@A:huge", "memfd@B,C:huge,two,size=0,seals=grow"]),
    ("huge pages", &["memfd@A:huge,data=@2500000,pos=9", "memfd@B:huge,data=x,seals=write+seal"]),
    ("null and zero", &["mem@A", "mem@B:dev=zero", "mem@C:write,append", "mem@D:dev=zero,read"]),
    ("full and random", &["mem@A:dev=full", "mem@B:dev=random", "mem@C:dev=urandom,read"]),
    (
        "character devices",
        &["chardev@A", "chardev@B:dev=btrfs-control,read", "chardev@C:dev=autofs,nonblock,cloexec"],
    ),
    (
        "character devices with a position, or none",
        &[
            "chardev@A:dev=cpu/0/cpuid,read,pos=4",
            "chardev@B:dev=kmsg,write",
            "chardev@C:dev=hwrng,read",
        ],
    ),
    (
        "netlink sockets",
        &[
            "netlink@A:set=270.3.1+270.5.1+1.8.100000",
            "netlink@B:groups=1+5+33+36,nonblock",
            "netlink@C:protocol=15,groups=1,dgram",
            "netlink@D:protocol=16,unbound,cloexec",
        ],
    ),
    (
        "messages between processes",
        &["netlink@A,C:protocol=2,dup,groups=3", "netlink@B:protocol=2,peer=77", "eventfd@D"],
    ),
    (
        "packet sockets",
        &[
            "packet@A:set=263.8.1+263.9.1+1.8.100000,members=2",
            "packet@B:dgram,any,all,nonblock",
            "packet@C:unbound,set=263.10.2+263.14.1",
            "packet@D:protocol=0,cloexec",
        ],
    ),
    (
        "a packet fanout group",
        &[
            "packet@A:protocol=0x9f01,fanout=0x10017123",
            "packet@C,B:dup,protocol=0x9f01,fanout=0x10017123",
        ],
    ),
    ("unattached tun descriptors", &["tun@A:unattached", "tun@C,B:dup,unattached,nonblock"]),
    (
        "message queues",
        &[
            "mqueue@A:maxmsg=3,msgsize=100,cloexec",
            "mqueue@B:read,nonblock,mode=416",
            "mqueue@C,D:dup,write",
        ],
    ),
    ("two descriptions of a message queue", &["mqueue@A,C:two", "mqueue@D,B:two,write,mode=128"]),
    ("socket pairs", &["socketpair@A,B:data=hello", "socketpair@D,C:sndbuf=40000,passcred"]),
    (
        "messages",
        &["socketpair@A,B:type=dgram,data=a++bc", "socketpair@C,D:type=seqpacket,data=x+y"],
    ),
    ("a long queue", &["socketpair@B,A:data=@90000", "socketpair@C,D:type=dgram,data=@100000"]),
    (
        "options of a socket",
        &["socketpair@A,B:options,data=hello", "socketpair@D,C:options,scm=pipe"],
    ),
    ("a closed peer", &["socketpair@A:alone,data=the end", "socketpair@C,B:shut,data=last"]),
    (
        "queued descriptors",
        &[
            "socketpair@A,B:scm=pipe,data=x",
            "socketpair@D,C:scm=pipe+epoll+pipe,type=dgram,data=a++b",
        ],
    ),
    (
        "queued sockets in queued sockets",
        &[
            "socketpair@B:alone,scm=nested+self+pipe",
            "socketpair@C,A:scm=self+nested,type=seqpacket",
        ],
    ),
    ("a signal of a socket", &["socketpair@A,B:own,async=0,sig=35,nonblock"]),
    (
        "listening unix sockets",
        &["unix@A", "unix@B:abstract=fdkit%00suite,backlog=3", "unix@C:unnamed"],
    ),
    (
        "listening TCP sockets",
        &["tcp@A", "tcp@B:v6,backlog=7", "tcp@C:host=0.0.0.0", "tcp@D:v6,host=::"],
    ),
    ("TCP sockets without a connection", &["tcp@A:fresh,nonblock", "tcp@B:bound", "tcp@C:ended"]),
    ("listening sockets of one port", &["tcp@A,C:two", "tcp@D,B:two,v6"]),
    (
        // SO_REUSEADDR, SO_KEEPALIVE, SO_RCVBUF; TCP_NODELAY, DEFER_ACCEPT, FASTOPEN, USER_TIMEOUT.
        "options of listening sockets",
        &[
            "tcp@A:set=1.2.1+1.9.1+1.8.40000+6.1.1+6.9.5+6.23.9+6.18.12345,bytes=6.13.reno",
            // IPV6_V6ONLY, IPV6_TCLASS; IP_FREEBIND; SO_BINDTODEVICE.
            "tcp@B:v6,host=::,set=41.26.1+41.67.16",
            "tcp@C:host=192.0.2.77,set=0.15.1,bound",
            "tcp@D:host=0.0.0.0,bytes=1.25.lo,fresh",
        ],
    ),
    ("listening MPTCP sockets", &["tcp@A:mptcp", "tcp@B:mptcp,v6,backlog=9", "tcp@C:mptcp,bound"]),
    ("UDP sockets", &["udp@A", "udp@B:v6,host=::,nonblock", "udp@C:fresh", "udp@D:lite"]),
    ("connected UDP sockets", &["udp@A:connected", "udp@B:v6,connected", "udp@C:connected,lite"]),
    ("UDP messages", &["udp@A:data=++a++bc", "udp@B:v6,data=x+y", "udp@C:lite,data=@9000"]),
    (
        "UDP messages from another machine",
        &[
            "udp@A:host=0.0.0.0,data=a+b,from=198.51.100.7",
            "udp@B:v6,host=::,data=a+b,from=2001:db8::7",
            "udp@C:v6,host=::,data=a++b,from=198.51.100.7",
            "udp@D:v6,host=::,data=a,from=127.0.0.1,lite",
        ],
    ),
    (
        "UDP messages of a connection",
        &["udp@A:connected,data=a++b", "udp@B:v6,connected,data=a++b", "udp@C:data=@60000"],
    ),
    ("UDP sockets of one port", &["udp@A,C:two,data=a+b+c+d+e", "udp@D,B:two,v6,data=a+b+c+d+e"]),
    ("UDP sockets shut down", &["udp@A:shut", "udp@B:shut=2", "udp@C:connected,shut"]),
    (
        // SO_BROADCAST, SO_RCVBUF, SO_PRIORITY, IP_TOS, IP_RECVERR, IP_PKTINFO, SO_TIMESTAMPNS,
        // UDP_GRO; SO_BINDTODEVICE, SO_MARK; IPV6_V6ONLY, IPV6_RECVERR, IPV6_RECVPKTINFO.
        "options of UDP sockets",
        &[
            "udp@A:data=a,set=1.6.1+1.8.40000+1.12.5+0.1.16+0.11.1+0.8.1+1.35.1+17.104.1",
            "udp@B:host=0.0.0.0,data=a+b,from=127.0.0.1,bytes=1.25.lo,set=1.36.7",
            "udp@C:v6,host=::,data=a,from=::1,set=41.26.1+41.25.1+41.49.1",
            "udp@D:fresh,set=1.9.1,lite",
        ],
    ),
    (
        "multicast groups",
        &[
            "udp@A:host=0.0.0.0,join=239.255.77.1+239.255.77.2/!192.0.2.1/!192.0.2.2",
            "udp@B:v6,host=::,join=ff15::77:1+ff15::77:2/2001:db8::1+239.255.77.3",
            "udp@C:fresh,join=232.1.77.1/192.0.2.3/192.0.2.4+224.0.0.1",
        ],
    ),
    ("a multicast group of a raw socket", &["raw@A:v6,join=ff15::77:3"]),
    (
        "raw sockets",
        &["raw@A", "raw@B:v6,bound", "raw@C:bound,connected", "raw@D:v6,connected,nonblock"],
    ),
    (
        // IP_HDRINCL, ICMP_FILTER, IP_TTL; IPV6_CHECKSUM; SO_BROADCAST.
        "options of raw sockets",
        &[
            "raw@A:set=0.3.1",
            "raw@B:protocol=1,set=255.1.14+0.2.9",
            "raw@C:v6,protocol=254,set=255.7.2",
            "raw@D:protocol=255,set=1.6.1",
        ],
    ),
    ("ping sockets", &["icmp@A", "icmp@B:v6,bound", "icmp@C:connected", "icmp@D:v6,connected"]),
    ("datagrams", &["unix@A:dgram,data=a++b", "unix@B:dgram"]),
    (
        "signalfds",
        &[
            "signalfd@A:signals=1+10+17",
            "signalfd@B:signals=34+64,nonblock",
            "signalfd@C",
            "signalfd@D:signals=2+32+33+63,cloexec",
        ],
    ),
    ("a disarmed timer", &["timerfd@A", "timerfd@B:at=0,clock=realtime", "timerfd@C:every=5"]),
    ("relative timers", &["timerfd@A:in=1000", "timerfd@B:in=2000.5,every=0.000000001,nonblock"]),
    (
        "absolute timers",
        &[
            "timerfd@A:clock=realtime,at=4000000000.123",
            "timerfd@B:clock=realtime,at=4000000000.5,every=86400,cancel",
            "timerfd@C:at=100000000,every=1.000000001",
            "timerfd@D:clock=boottime,at=100000000.001",
        ],
    ),
    (
        "alarm clocks",
        &[
            "timerfd@A:clock=realtime-alarm,at=4000000000",
            "timerfd@B:clock=boottime-alarm,in=1000,every=1000",
        ],
    ),
    ("unread ticks", &["timerfd@A:ticks=7", "timerfd@B:in=1000,every=1000,ticks=4294967297"]),
    (
        "expired timers",
        &[
            "timerfd@A:in=0.000000001",
            "timerfd@B:at=0.000000001",
            "timerfd@C:in=0.000000001,every=1000",
        ],
    ),
    ("a pidfd of the process itself", &["pidfd@A,C:dup", "pidfd@B:nonblock,cloexec"]),
    ("a pidfd of a thread", &["pidfd@A:thread", "pidfd@B:dead,thread,exit=256"]),
    ("a pidfd of init", &["pidfd@A:pid=1", "pidfd@C,B:pid=1,two"]),
    (
        "a pidfd of an ended process",
        &["pidfd@A:dead,exit=9", "pidfd@C,B:dead,two,exit=768", "pidfd@D:dead"],
    ),
    ("namespaces", &["ns@A", "ns@C,B:dup,of=user,cloexec", "ns@D:of=mnt,nonblock"]),
    (
        "namespaces for children",
        &[
            "ns@A:of=pid_for_children",
            "ns@B:of=time_for_children",
            "ns@C:of=pid",
            "ns@D:of=uts,opath",
        ],
    ),
    ("O_PATH descriptors", &["path@A", "path@B:of=fifo", "path@C:of=socket"]),
    ("an epoll", &["epoll@A,B:value=0xffffffff00000000", "epoll@C,D:events=0x2003"]),
    ("edge-triggered members", &["epoll@A,B:et", "epoll@C,D:et,events=0x2001"]),
    ("armed oneshot members", &["epoll@A,B:oneshot", "epoll@C,D:exclusive"]),
    ("disarmed oneshot members", &["epoll@A,B:fired,et", "epoll@D,C:fired"]),
    ("an epoll of a pipe", &["epoll@B,A,C:pipe", "eventfd@D"]),
    ("a file added with two numbers", &["epoll@A,B,C,D:dup,two"]),
    ("two epolls of one member", &["epoll@B,C,A:pair", "eventfd@D"]),
    ("an epoll in an epoll", &["epoll@A,B,C:nested", "eventfd@D"]),
    ("an epoll in one with a lower number", &["epoll@D,A,B:nested"]),
    ("a member whose number is closed", &["epoll@A,B:moved=7", "epoll@C,D:moved=299,et"]),
    ("a member whose number was reused", &["epoll@A,B,C:reused", "eventfd@D:count=4"]),
    ("two members with one number", &["epoll@A,B,C:twice", "eventfd@D"]),
    ("members with exchanged numbers", &["epoll@A,B,C:swapped", "eventfd@D"]),
    ("a member with the number of its epoll", &["epoll@A,B:replaced", "epoll@D,C:replaced,et"]),
    ("a disarmed member whose number is closed", &["epoll@A,B:moved=7,fired", "epoll@C,D:fired"]),
    ("busy polling", &["epoll@A,B:busy"]),
    ("a watch", &["inotify@A", "inotify@B:none", "inotify@C:file,nonblock", "inotify@D:link"]),
    ("masks of watches", &["inotify@A:oneshot", "inotify@B:unlinks", "inotify@C:mask=0xfc0"]),
    ("numbers of watches", &["inotify@A:wd=9", "inotify@C:wd=4000,both", "inotify@B,D:dup"]),
    ("a watch of an unlinked file", &["inotify@B,A:gone", "inotify@C,D:gone,wd=3"]),
    ("marks on inodes", &["fanotify@A", "fanotify@B:mask=0,ignored=2", "fanotify@C:evictable"]),
    ("ignore marks", &["fanotify@A:ignored=2,surv", "fanotify@B:ignored=2,ignore,surv"]),
    ("marks on mounts", &["fanotify@A:mount", "fanotify@B:mount,ignored=2,surv", "fanotify@C"]),
    ("marks on file systems", &["fanotify@A:filesystem", "fanotify@B:filesystem,flags=0x200"]),
    (
        "flags of fanotify groups",
        &["fanotify@A:flags=0x36,events=2", "fanotify@B:flags=6", "fanotify@C,D:dup"],
    ),
    ("a mark on an unlinked file", &["fanotify@B,A:gone"]),
    ("close-on-exec", &["pipe@A,B:cloexec,data=x", "regular@C:cloexec", "regular@D"]),
    ("a pseudo terminal", &["pty@A,B"]),
    ("a pseudo terminal made raw", &["pty@B,A:raw,rows=24,mode=0x190,cloexec"]),
    ("slaves of a pseudo terminal", &["pty@A,C,B,D:two,place,rows=7,nonblock=0"]),
    ("dups of a pseudo terminal", &["pty@C,A,B,D:dup,raw"]),
    ("packets of a pseudo terminal", &["pty@A,B:packet,raw,own,async=0,sig=12", "pty@D,C:packet"]),
    ("an exclusive terminal", &["pty@A,B:excl", "pty@D,C:shut"]),
    ("locked line settings", &["pty@A,B:locked,rows=9"]),
    ("a slave that has hung up", &["pty@A:slave,raw", "pty@B:slave"]),
    ("masters without a slave", &["pty@A:master", "pty@B:left,rows=5"]),
    ("all together", &["pipe@C,A:data=x", "unlinked@B", "eventfd@D:count=5"]),
];

/// A SPEC with numbers in place of the letters, in the part before the keys.
pub(crate) fn at(spec: &str, place: &[u32; 4]) -> String {
    let (name, rest) = spec.split_once('@').expect("NAME@");
    let (numbers, keys) = rest.split_once(':').map_or((rest, None), |(n, k)| (n, Some(k)));
    let number = |letter: &str| match letter {
        "A" => place[0].to_string(),
        "B" => place[1].to_string(),
        "C" => place[2].to_string(),
        "D" => place[3].to_string(),
        other => other.into(),
    };
    let numbers: Vec<String> = numbers.split(',').map(number).collect();
    let keys = keys.map(|keys| format!(":{keys}")).unwrap_or_default();
    format!("{name}@{}{keys}", numbers.join(","))
}

fn round_trip(name: &str) {
    let (_, templates) = CASES.iter().find(|(case, _)| *case == name).expect("a case");
    for place in PLACES {
        let scratch = Scratch::new();
        let specs: Vec<String> = templates.iter().map(|spec| at(spec, place)).collect();
        let specs: Vec<&str> = specs.iter().map(String::as_str).collect();
        let target = match Target::make(scratch.dir(), &specs) {
            Ok(target) => target,
            Err(reason) => return skipped(&reason),
        };
        let numbers: Vec<u32> = target.open().into_iter().map(|(n, _)| n).collect();
        let file = scratch.file("a.fdi");
        scan(&target.pid, &file);
        drop(target);
        pipeline(&[&["fdimg", "verify", &file]]).ok();

        let restore = [RESTORE, &["--allow", "all", "-i", &file, "--", "mkfd"]].concat();
        // Who may open nothing by its handle looks for it among the paths that a process has.
        let told: &[&str] = match rights::handles() {
            Ok(()) => &[],
            Err(_) => &["--dir", scratch.dir()],
        };
        let sleep = [&restore[..], &["sleep"], told].concat();
        let again = Target::ready(&sleep).expect("no skip");
        let second = scratch.file("b.fdi");
        scan(&again.pid, &second);
        drop(again);
        let (was, is) = (show(&file), show(&second));
        let (was, is) = (records(&was, &numbers), records(&is, &numbers));
        assert_eq!(was.len(), numbers.len(), "{specs:?}: the scan has {was:#?}");
        for (fd, was) in &was {
            assert_eq!(Some(was), is.get(fd), "{specs:?}: {fd} scanned again (left: the first)");
        }

        let check = ["check", "--std", "0,1,2", "--dir", scratch.dir()];
        pipeline(&[&[&restore[..], &check[..], &specs].concat()]).ok();
    }
}

macro_rules! round_trips {
    ($($test:ident: $case:literal;)*) => {
        $(#[test] fn $test() { round_trip($case); })*

        #[test]
        fn every_case_has_its_test() {
            let tested = [$($case),*];
            assert!(CASES.iter().all(|(case, _)| tested.contains(case)));
        }
    };
}

round_trips! {
    a_regular_file_is_restored: "a regular file";
    a_position_is_restored: "positions";
    access_modes_are_restored: "access modes";
    flags_of_open_are_restored: "flags of open";
    dups_share_a_description_again: "a dup";
    three_dups_share_a_description_again: "three dups of one";
    a_lock_of_a_table_is_acquired_again: "a lock of a table";
    locks_of_a_table_are_acquired_again: "locks of a table";
    a_lock_of_a_dup_is_acquired_again: "a lock of a dup";
    locks_of_a_description_are_acquired_again: "locks of a description";
    flocks_are_acquired_again: "flocks";
    files_without_a_name_are_locked_again: "locks of files without a name";
    leases_are_acquired_again: "leases";
    a_tmpfile_can_still_be_linked: "O_TMPFILE";
    the_owner_of_signals_is_the_command: "an owner";
    signals_are_sent_after_a_restore: "signals";
    a_signal_names_the_dup_that_requested_it: "a signal through a dup";
    an_unlinked_file_keeps_its_content_and_old_name: "an unlinked file";
    an_empty_unlinked_file_is_restored: "an empty unlinked file";
    a_long_unlinked_file_is_restored: "a long unlinked file";
    two_descriptions_of_an_unlinked_file_stay_one_inode: "two descriptions of an unlinked file";
    a_directory_keeps_its_position: "directories";
    a_directory_without_o_directory_is_restored: "a directory without O_DIRECTORY";
    an_empty_pipe_is_restored: "an empty pipe";
    a_pipe_keeps_its_data: "a pipe with data";
    a_full_pipe_is_restored: "a full pipe";
    a_long_pipe_is_restored: "a long pipe";
    a_short_pipe_is_restored: "a short pipe";
    packets_in_a_pipe_keep_their_boundaries: "packets in a pipe";
    a_pipe_with_one_nonblocking_end_is_restored: "one nonblocking end";
    two_descriptions_of_a_read_end_are_restored: "two descriptions of a read end";
    dups_of_both_ends_are_restored: "dups of both ends";
    a_pipe_without_a_writer_reads_end_of_file_after_its_data: "a pipe without a writer";
    a_pipe_without_a_reader_gives_epipe: "a pipe without a reader";
    a_fifo_is_restored_with_its_data: "fifos";
    a_fifo_without_a_name_is_restored_without_a_name: "fifos without a name";
    dups_of_a_fifo_without_a_name_are_restored: "dups of a fifo without a name";
    a_count_above_32_bits_is_restored: "counts";
    the_highest_count_is_restored: "the highest count";
    a_semaphore_is_restored: "semaphores";
    a_memfd_keeps_its_name_and_content: "memfds";
    a_long_memfd_is_restored: "a long memfd";
    a_hole_in_a_memfd_stays_a_hole: "holes";
    two_descriptions_of_a_memfd_stay_one_file: "two descriptions of a memfd";
    seals_prevent_the_same_operations: "seals";
    a_memfd_keeps_whether_it_is_executable: "a memfd that is not executable";
    a_memfd_keeps_its_owner: "owners of memfds";
    an_empty_file_of_huge_pages_is_restored: "an empty file of huge pages";
    huge_pages_are_restored: "huge pages";
    null_and_zero_are_restored: "null and zero";
    full_and_random_are_restored: "full and random";
    character_devices_are_restored: "character devices";
    a_character_device_keeps_its_position: "character devices with a position, or none";
    netlink_sockets_are_restored: "netlink sockets";
    a_netlink_socket_between_processes_is_restored: "messages between processes";
    packet_sockets_are_restored: "packet sockets";
    a_packet_fanout_group_is_restored: "a packet fanout group";
    an_unattached_tun_descriptor_is_restored: "unattached tun descriptors";
    message_queues_are_restored: "message queues";
    two_descriptions_of_a_message_queue_are_restored: "two descriptions of a message queue";
    socket_pairs_are_restored: "socket pairs";
    messages_keep_their_boundaries: "messages";
    a_long_queue_is_restored: "a long queue";
    options_of_a_socket_are_restored: "options of a socket";
    a_socket_with_a_closed_peer_reads_end_of_file: "a closed peer";
    queued_descriptors_are_restored: "queued descriptors";
    sockets_queued_in_queued_sockets_are_restored: "queued sockets in queued sockets";
    a_socket_sends_its_signal: "a signal of a socket";
    listening_unix_sockets_accept_connections: "listening unix sockets";
    a_listening_tcp_socket_accepts_clients: "listening TCP sockets";
    a_tcp_socket_without_a_connection_is_restored: "TCP sockets without a connection";
    two_listening_sockets_of_one_port_both_accept_clients: "listening sockets of one port";
    options_of_listening_sockets_are_restored: "options of listening sockets";
    a_listening_mptcp_socket_is_restored: "listening MPTCP sockets";
    a_udp_socket_is_restored: "UDP sockets";
    a_connected_udp_socket_is_restored: "connected UDP sockets";
    udp_messages_keep_boundaries_and_senders: "UDP messages";
    udp_messages_from_another_machine_keep_their_senders: "UDP messages from another machine";
    messages_of_a_connected_udp_socket_are_restored: "UDP messages of a connection";
    udp_messages_go_to_the_right_socket_of_a_shared_port: "UDP sockets of one port";
    a_udp_socket_is_shut_down_again: "UDP sockets shut down";
    options_of_udp_sockets_are_restored: "options of UDP sockets";
    multicast_groups_are_joined_again: "multicast groups";
    a_multicast_group_of_a_raw_socket_is_joined_again: "a multicast group of a raw socket";
    a_raw_socket_is_restored: "raw sockets";
    options_of_raw_sockets_are_restored: "options of raw sockets";
    a_ping_socket_is_restored: "ping sockets";
    datagrams_are_queued_again: "datagrams";
    a_signalfd_reads_its_signals: "signalfds";
    a_disarmed_timer_stays_disarmed: "a disarmed timer";
    a_relative_timer_keeps_its_remaining_time: "relative timers";
    an_absolute_timer_keeps_its_expiration: "absolute timers";
    a_timer_on_an_alarm_clock_is_restored: "alarm clocks";
    unread_ticks_are_restored: "unread ticks";
    an_expired_timer_does_not_expire_again: "expired timers";
    a_pidfd_of_the_process_itself_refers_to_the_new_process: "a pidfd of the process itself";
    a_pidfd_of_a_thread_is_restored: "a pidfd of a thread";
    a_pidfd_of_a_process_outside_the_image_refers_to_it_again: "a pidfd of init";
    a_pidfd_of_an_ended_process_keeps_its_exit_status: "a pidfd of an ended process";
    a_namespace_is_opened_again: "namespaces";
    a_namespace_for_children_is_opened_again: "namespaces for children";
    o_path_descriptors_are_restored: "O_PATH descriptors";
    an_epoll_is_restored_with_its_members: "an epoll";
    edge_triggered_members_are_restored: "edge-triggered members";
    an_armed_oneshot_member_is_still_armed: "armed oneshot members";
    a_disarmed_oneshot_member_stays_disarmed: "disarmed oneshot members";
    an_epoll_of_a_pipe_is_restored: "an epoll of a pipe";
    one_file_added_with_two_numbers_is_two_members: "a file added with two numbers";
    two_epoll_instances_share_a_member: "two epolls of one member";
    an_epoll_in_an_epoll_is_restored: "an epoll in an epoll";
    an_epoll_in_one_with_a_lower_number_is_restored: "an epoll in one with a lower number";
    a_member_whose_number_is_closed_is_restored: "a member whose number is closed";
    a_member_whose_number_was_reused_is_restored: "a member whose number was reused";
    two_members_with_one_number_are_restored: "two members with one number";
    members_with_exchanged_numbers_are_restored: "members with exchanged numbers";
    a_member_with_the_number_of_its_epoll_is_restored: "a member with the number of its epoll";
    a_disarmed_member_whose_number_is_closed_is_restored: "a disarmed member whose number is closed";
    busy_polling_is_restored: "busy polling";
    an_inotify_watch_is_restored: "a watch";
    masks_of_watches_are_restored: "masks of watches";
    numbers_of_watches_are_restored: "numbers of watches";
    a_watch_on_an_unlinked_file_is_restored: "a watch of an unlinked file";
    marks_on_inodes_are_restored: "marks on inodes";
    ignore_marks_are_restored: "ignore marks";
    marks_on_mounts_are_restored: "marks on mounts";
    marks_on_file_systems_are_restored: "marks on file systems";
    flags_of_fanotify_groups_are_restored: "flags of fanotify groups";
    a_mark_on_an_unlinked_file_is_restored: "a mark on an unlinked file";
    close_on_exec_descriptors_are_named_in_the_environment: "close-on-exec";
    a_pseudo_terminal_is_restored: "a pseudo terminal";
    a_raw_terminal_keeps_speed_size_and_control_characters: "a pseudo terminal made raw";
    all_slaves_and_their_path_are_restored: "slaves of a pseudo terminal";
    dups_of_both_ends_of_a_terminal_are_restored: "dups of a pseudo terminal";
    packet_mode_is_restored: "packets of a pseudo terminal";
    an_exclusive_terminal_is_restored: "an exclusive terminal";
    locked_line_settings_are_restored: "locked line settings";
    a_slave_without_a_master_is_restored_as_hung_up: "a slave that has hung up";
    a_master_without_a_slave_is_restored: "masters without a slave";
    descriptors_of_several_kinds_are_restored_together: "all together";
}

#[test]
fn without_data_a_pipe_is_restored_empty_and_the_image_has_no_contents() {
    let scratch = Scratch::new();
    // The data is a pattern, since the command line of mkfd is in the image, too.
    let target = target!(scratch.dir(), &["pipe@3,4:data=@600", "unlinked@5:data=@600"]);
    let fd = |n| format!("/proc/{}/fd/{n}", target.pid);
    let secret = std::fs::read(fd(5)).unwrap();
    let (plain, whole) = (scratch.file("a.fdi"), scratch.file("b.fdi"));
    pipeline(&[&["fdscan", "-F", "3,4", &target.pid], &["fdimg", "write", &plain]]).ok();
    scan(&target.pid, &whole);
    let holds = |file: &str| {
        let bytes = std::fs::read(file).unwrap();
        bytes.windows(secret.len()).any(|window| window == secret)
    };
    assert!(holds(&whole) && !holds(&plain));
    let restore = ["fdrestore", "-i", &plain, "--inherit", "0,1,2", "--", "mkfd", "check"];
    pipeline(&[&[&restore[..], &["pipe@3,4"]].concat()]).ok();
}

#[test]
fn a_terminal_outside_the_image_is_restored_as_the_named_one() {
    for place in PLACES {
        let scratch = Scratch::new();
        let ((old, _old_master), (new, _new_master)) = (terminal(), terminal());
        let path = |slave| nix::unistd::ttyname(slave).expect("its name").display().to_string();
        let (old, new) = (path(&old), path(&new));
        let spec = |path: &str| at(&format!("tty@A:noecho,path={path}"), place);
        let target = target!(scratch.dir(), &[&spec(&old)]);
        let [first, second] = ["a.fdi", "b.fdi"].map(|name| scratch.file(name));
        let scan = |pid: &str, file: &str| {
            let write = ["fdimg", "write", file];
            let numbers = ["fdscan", "-F", &place[0].to_string(), pid];
            pipeline(&[&numbers, &["ttyctl", "retarget", &new], &write]).quiet();
        };
        scan(&target.pid, &first);
        drop(target);
        let restore = [RESTORE, &["--allow", "tty", "-i", &first, "--", "mkfd"]].concat();
        let again = Target::ready(&[&restore[..], &["sleep"]].concat()).expect("no skip");
        scan(&again.pid, &second);
        drop(again);
        assert_eq!(records(&show(&first), &[place[0]]), records(&show(&second), &[place[0]]));
        let check = ["check", "--std", "0,1,2", &spec(&new)];
        pipeline(&[&[&restore[..], &check].concat()]).ok();
    }
}

#[test]
fn a_pidfd_of_a_process_that_has_ended_is_refused() {
    let scratch = Scratch::new();
    let other = Target::ready(&["mkfd", "sleep"]).expect("no skip");
    let spec = format!("pidfd@3:pid={}", other.pid);
    let target = target!(scratch.dir(), &[&spec]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    drop(target);
    let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2"];
    let run = |options: &[&str], command: &[&str]| {
        pipeline(&[&[&restore[..], options, &["--", "mkfd"], command].concat()])
    };
    run(&[], &["check", &spec]).quiet();
    let gone = format!("process {} has terminated", other.pid);
    drop(other);
    run(&[], &["show"]).refuses(125, &["fd 3", &gone, "(status 6)"]);
    // The replacement is a pidfd of a process that has ended, not a file that is always readable.
    let check = ["check", "--std", "0,1,2", "pidfd@3:dead"];
    run(&["--missing", "null"], &check).refuses(0, &["replaced: ", &gone]).in_one_line();
}

#[test]
fn a_pidfd_of_a_zombie_has_the_recorded_exit_status() {
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["pidfd@3:zombie,exit=1792", "pidfd@4:zombie,exit=15"]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    drop(target);
    let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2", "--", "mkfd", "check"];
    let wanted = ["pidfd@3:dead,exit=1792", "pidfd@4:dead,exit=15"];
    pipeline(&[&[&restore[..], &wanted].concat()]).quiet();
}

#[test]
fn a_namespace_is_found_while_a_process_is_in_it_and_refused_by_name_afterwards() {
    let scratch = Scratch::new();
    for name in ["net", "uts", "ipc", "user"] {
        let option = format!("--{name}");
        if let Err(reason) = rights::namespace(&option) {
            skipped(&reason);
            continue;
        }
        let holder = Target::ready(&["unshare", &option, "--", "mkfd", "sleep"]).unwrap();
        let spec = format!("ns@3:path=/proc/{}/ns/{name}", holder.pid);
        let target = target!(scratch.dir(), &[&spec]);
        let file = scratch.file("a.fdi");
        scan(&target.pid, &file);
        drop(target);
        let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2", "--", "mkfd", "check"];
        let run = || pipeline(&[&[&restore[..], &[&spec]].concat()]);
        run().quiet();
        drop(holder);
        run().refuses(125, &["fd 3", &format!("{name}:["), "in this namespace", "(status 6)"]);
    }
}

#[test]
fn a_namespace_that_is_only_mounted_is_opened_at_its_mount() {
    may!(rights::mounts(), rights::namespace("--net"), rights::programs(&["nsenter"]));
    let scratch = Scratch::new();
    let (place, file) = (scratch.file("a name"), scratch.file("a.fdi"));
    std::fs::write(&place, "").unwrap();
    let net = format!("--net={place}");
    pipeline(&[&["unshare", &net, "true"]]).quiet();
    let holder = Target::ready(&["nsenter", &net, "--", "mkfd", "sleep"]);
    let scanned = holder.and_then(|holder| {
        let spec = format!("ns@3:path=/proc/{}/ns/net", holder.pid);
        Target::make(scratch.dir(), &[&spec]).map(|target| scan(&target.pid, &file))
    });
    let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2", "--", "sh", "-c"];
    let same = "test /proc/self/fd/3 -ef \"$0\"";
    let ran = pipeline(&[&[&restore[..], &[same, &place]].concat()]);
    pipeline(&[&["umount", &place]]).quiet();
    scanned.unwrap();
    let ran = ran.ok();
    assert!(ran.stderr(0).contains("a name"), "{}", ran.whole());
}

#[test]
fn a_timer_expires_after_the_restore() {
    let scratch = Scratch::new();
    let specs = ["timerfd@3:in=6", "timerfd@4:in=6.5,every=1000"];
    let target = target!(scratch.dir(), &specs);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    drop(target);
    let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2", "--", "mkfd", "check"];
    pipeline(&[&[&restore[..], &specs].concat()]).quiet();
}

#[test]
fn a_time_that_passes_between_scan_and_restore_is_one_tick() {
    let scratch = Scratch::new();
    let at = std::time::SystemTime::now() + std::time::Duration::from_secs(6);
    let since = at.duration_since(std::time::UNIX_EPOCH).unwrap();
    let spec = |fd: u32, keys: &str, at: &str| format!("timerfd@{fd}:clock=realtime,at={at}{keys}");
    let specs = |at: &str, ticks: u32| {
        [
            spec(3, "", at),
            spec(4, ",every=1000", at),
            spec(5, &format!(",every=1000,ticks={ticks}"), at),
        ]
    };
    let made = specs(&format!("{}.{:09}", since.as_secs(), since.subsec_nanos()), 5);
    let target = target!(scratch.dir(), &made.each_ref().map(String::as_str));
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    drop(target);
    while std::time::SystemTime::now() < at {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    // One nanosecond after the epoch is in the past, too.
    let wanted = specs("0.000000001", 6);
    let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2", "--", "mkfd", "check"];
    pipeline(&[&[&restore[..], &wanted.each_ref().map(String::as_str)].concat()]).quiet();
}

#[test]
fn a_time_with_nanoseconds_is_kept_to_a_fraction_of_a_millisecond() {
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["timerfd@3:clock=realtime,at=4000000000.123456789"]);
    let file = scratch.file("a.fdi");
    let mut next = || {
        scan(&target.pid, &file);
        let body = &show(&file)["descriptors"][0]["body"];
        let part = |key: &str, n: usize| body[key][n].as_u64().unwrap();
        let next = [0, 1].map(|n| part("now", n) + part("value", n));
        next[0] * 1_000_000_000 + next[1]
    };
    // Another process may have run between the two readings of the clock.
    let all: Vec<u64> = std::iter::repeat_with(&mut next).take(5).collect();
    let exact = |next: &u64| next.abs_diff(4_000_000_000_123_456_789) < 500_000;
    assert!(all.iter().any(exact), "{all:?}");
}

#[test]
fn a_scan_counts_ticks_without_reading_them() {
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["timerfd@3:in=0.000000001,every=0.1"]);
    let ticks = || {
        let file = scratch.file("a.fdi");
        scan(&target.pid, &file);
        show(&file)["descriptors"][0]["body"]["ticks"].as_u64().unwrap()
    };
    let first = ticks();
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert!(ticks() >= first + 10);
    drop(target);
    let wanted = ["timerfd@3:in=0.000000001,every=0.1"];
    let restore = ["fdrestore", "-i", &scratch.file("a.fdi"), "--inherit", "0,1,2", "--"];
    // The restored timer has more than one tick. fdinfo shows only their number.
    pipeline(&[&[&restore[..], &["mkfd", "check"], &wanted].concat()]).refuses(1, &["ticks is"]);
}

#[test]
fn reading_contents_does_not_consume_them() {
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["pipe@3,4:data=hello", "unlinked@5:pos=3"]);
    for name in ["a.fdi", "b.fdi"] {
        scan(&target.pid, &scratch.file(name));
    }
    let (a, b) = (show(&scratch.file("a.fdi")), show(&scratch.file("b.fdi")));
    assert_eq!(a["descriptors"], b["descriptors"]);
    assert_eq!(target.open().len(), 3);
}

#[test]
fn an_opaque_descriptor_is_refused_and_can_be_left_out() {
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["opaque@3", "eventfd@5"]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    drop(target);
    let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2"];
    let run = |options: &[&str], command: &[&str]| {
        pipeline(&[&[&restore[..], options, &["--", "mkfd"], command].concat()])
    };
    run(&[], &["show"]).refuses(125, &["io_uring", "(status 6)"]);
    run(&["--missing", "skip"], &["check", "--std", "0,1,2", "eventfd@5"]).ok();
    let shown = run(&["--missing", "null"], &["show"]).ok().text();
    assert!(shown.contains("\n3 /dev/null\n"), "{shown}");
}

#[test]
fn a_connection_to_outside_the_image_is_refused_or_reads_end_of_file() {
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["socketpair@3,4", "eventfd@5"]);
    let file = scratch.file("a.fdi");
    pipeline(&[&["fdscan", "-F", "!4", &target.pid], &["fdimg", "write", &file]]).ok();
    drop(target);
    let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2"];
    let run = |options: &[&str], command: &[&str]| {
        pipeline(&[&[&restore[..], options, &["--"], command].concat()])
    };
    run(&[], &["true"]).refuses(125, &["socket:[", "outside the image", "(status 6)"]);
    assert_eq!(run(&["--missing", "null"], &["cat", "/dev/fd/5"]).status(0), 1);
    let script = "import socket; s = socket.socket(fileno=3); print(s.recv(5))";
    may!(rights::programs(&["python3"]));
    let ran = run(&["--missing", "null"], &["python3", "-c", script]).ok();
    assert_eq!(ran.text(), "b''\n");
}

#[test]
fn the_exit_status_of_a_zombie_that_the_kernel_hides_is_not_recorded_as_zero() {
    needs!(which("python3").is_some(), "python3 is missing");
    may!(rights::other_user());
    let scratch = Scratch::new();
    let copy = scratch.file("fdscan-copy");
    std::fs::copy(tool("fdscan"), &copy).unwrap();
    std::fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    // The zombie is of root, and a process of another user has a pidfd of it.
    let script = "
import os, sys, time
zombie = os.fork()
if zombie == 0: os._exit(3)
os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
pidfd = os.pidfd_open(zombie)
os.set_inheritable(pidfd, True)
if os.fork() == 0:
    os.execvp(sys.argv[1], [*sys.argv[1:], 'sh', '-c', 'echo $$; exec sleep 1000'])
time.sleep(1000)
";
    let target = Target::program(&[&["python3", "-c", script], &nobody[..]].concat());
    wait_for_program(&target.said, "sleep");
    let file = scratch.file("a.fdi");
    let exit = || {
        let shown = show(&file);
        let all = shown["descriptors"].as_array().unwrap().clone();
        let pidfd = all.iter().find(|it| it["kind"] == "pidfd").expect("a pidfd");
        pidfd["body"].get("exit").cloned()
    };
    scan(&target.said, &file);
    assert_eq!(exit(), Some((3 << 8).into()));
    let scan = [&nobody[..], &[&copy, &target.said]].concat();
    let ran = pipeline(&[&scan, &["fdimg", "write", &file]]);
    assert_eq!(ran.status(0), 1, "{}", ran.whole());
    assert!(ran.stderr(0).contains("does not show the exit status"), "{}", ran.whole());
    assert_eq!(exit(), None);
}

#[test]
fn a_pipe_whose_capacity_the_user_may_not_set_is_refused_with_the_cure() {
    may!(rights::other_user());
    let limit = std::fs::read_to_string("/proc/sys/fs/pipe-max-size").unwrap();
    let above = 2 * limit.trim().parse::<u32>().unwrap();
    let scratch = Scratch::new();
    // Not every root can make such a pipe.
    let file = crate::harness::image(&scratch, &["pipe@3,4"]);
    let forged = crate::forged::with_body(&file, "pipe", |body| {
        *crate::forged::at(body, &["size"]) = crate::forged::whole(above.into());
    });
    std::fs::write(&file, forged).unwrap();
    let restore = tool("fdrestore").to_string_lossy().into_owned();
    let less = ["setpriv", "--bounding-set=-sys_resource", &restore];
    let ran =
        pipeline(&[&[&less[..], &["-i", &file, "--inherit", "0,1,2", "--", "true"]].concat()]);
    let why = format!("its capacity of {above} bytes is above fs.pipe-max-size");
    assert!(ran.stderr(0).contains(&why), "{}", ran.whole());
    assert_eq!(ran.status(0), 125, "{}", ran.whole());
}

#[test]
fn a_pseudoterminal_of_another_instance_of_devpts_is_restored_with_a_line() {
    let Some(python) = python() else { skip!("python3 is missing") };
    may!(rights::mounts());
    let scratch = Scratch::new();
    let script = format!(
        "mount -t devpts -o newinstance,ptmxmode=666 none {0} && cd {0} && exec \"$@\"",
        scratch.dir()
    );
    let open = "
import fcntl, os, time
a = os.open('ptmx', os.O_RDWR | os.O_NOCTTY)
fcntl.ioctl(a, 0x40045431, b'\\0' * 4)
b = os.open('0', os.O_RDWR | os.O_NOCTTY)
print(a, b, flush=True)
time.sleep(1000)";
    let start = ["unshare", "--mount", "sh", "-c", &script, "sh", python, "-c", open];
    let target = Target::ready(&start).expect("it starts");
    needs!(target.said.contains(' '), "devpts cannot be mounted: {}", target.said);
    let file = scratch.file("a.fdi");
    let numbers = target.said.replace(' ', ",");
    pipeline(&[&["fdscan", "-F", &numbers, &target.pid], &["fdimg", "write", &file]]).quiet();
    let ran = restored(&file, &["--inherit", "0,1,2"], &["true"]).ok();
    let line = format!("{}/ptmx: it was of another instance of devpts", scratch.dir());
    assert!(ran.stderr(0).contains(&line), "{}", ran.whole());
}
