//! The suite: the real binaries, in real pipelines, on real processes.
//!
//! FDKIT_BINDIR names the folder of the tools under test (otherwise they are built here);
//! FDKIT_NO_SKIP=1 makes a skipped test fail.

#![deny(unsafe_code)]

mod cgroup; // memory cgroups
#[path = "../bench/chart.rs"]
mod chart; // the chart of the README
#[macro_use]
mod harness; // tools, targets, pipelines, skips
#[macro_use]
mod rights; // what not every user may do
mod normal; // two records of one thing, made comparable

mod costs; // --stats against strace, and the bounds of what a restore takes
mod daemons; // redis, nginx, postgres, asyncio: every descriptor has its kind
mod errors; // bad input: a clear line, the status, and nothing lost
mod executor; // operations that run in another process
mod files; // memfds, devices, queues, tunnels: programs, and what cannot come back
mod fixture; // mkfd itself: what it makes is as it says, and it notices what is not
mod grammar; // images are as fdimage(5) says, and every kind is named everywhere
mod images; // what released versions wrote stays readable
mod internet; // sockets: servers, clients, connections, ports that are taken, other namespaces
mod kinds; // every kind: make, scan, end, restore, look from inside, scan again
mod links; // netlink and packet sockets, tunnels: what is lost, and what cannot come back
mod locks; // who is kept out, by whom, and what cannot be taken again
mod man; // --help and the man pages agree
mod memory; // a tree that fitted its memory cgroup fits it again
mod odd; // what no kind knows is recorded in silence
mod peers; // lsfd and lsof say the same
mod pipelines; // python3, sh, redis-server; select, verify, head
mod placement; // fdimg place, and what the kernel shows after each policy
mod progress; // how far long work is, on a terminal
mod queues; // message queues: what is in them, and what becomes of their names
mod services; // nothing of fdrestore's own is left in COMMAND
mod terminals; // ttyctl, controlling terminals, and programs that are typed to
mod tree; // fdrestore --tree: real trees come back, or nothing does
mod typed; // what waits in pseudo terminals
mod unix; // what waits in the queues of unix sockets
mod watch; // epoll, inotify, fanotify: programs, and what cannot come back
