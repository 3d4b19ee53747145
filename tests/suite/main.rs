//! The suite: runs the tools in pipelines, on real processes.
//!
//! FDKIT_BINDIR names the directory of the tools under test; otherwise they are built here.
//! FDKIT_NO_SKIP=1 turns a skipped test into a failure.

#![deny(unsafe_code)]

// Helpers.
mod canonical; // records in canonical form, so that two scans can be compared
mod cgroup; // memory cgroups
#[path = "../bench/chart.rs"]
mod chart; // the chart in the README
mod forged; // images that were changed
#[macro_use]
mod harness; // tools, processes to scan, pipelines, skips
#[macro_use]
mod rights; // rights and kernel features that tests need

// All kinds.
mod fixture; // mkfd itself: its check passes on what it has made, and on nothing else
mod grammar; // images against the grammar of fdimage(5); every kind is named everywhere
mod kinds; // round trips of every kind: make, scan, restore, check, scan again
mod lsfd_lsof; // fdkit, lsfd and lsof show the same
mod released_images; // images of released versions stay readable
mod unsupported; // descriptors that no kind supports

// Families of kinds: real programs, what cannot be restored, forged records.
mod epoll_inotify_fanotify;
mod files; // memfds, devices, files whose name has changed
mod internet_sockets; // servers and clients, connections, addresses in use, namespaces
mod locks; // flock, POSIX and OFD record locks, leases
mod message_queues; // POSIX message queues
mod netlink_packet_tun; // netlink sockets, packet sockets, tunnel devices
mod pending_errors; // errors that are pending on sockets stay there
mod quiet_reads; // files and queues are read unnoticed, also if the scan is killed
mod terminal_contents; // input and output queued in pseudoterminals
mod terminals; // ttyctl, controlling terminals, interactive programs
mod unix_sockets; // queues of unix sockets, with descriptors in them

// The tools.
mod daemons; // scans of redis, nginx, postgres and asyncio find no opaque descriptor
mod errors; // wrong input and wrong usage: the message, the status, and nothing lost
mod executor; // an executor in another process restores every fixture there
mod faults; // system calls of fdscan that fail are said
mod freeze; // fdscan --freeze: blocked calls, sandboxes, the time limit, tracers
mod hostile_folders; // folders whose owner exchanges names during a restore
mod hostile_images; // images that somebody made to harm who restores them
mod man; // the man pages have the options of --help
mod memory; // a restored tree fits into its memory cgroup
mod mutants; // images with contradictory records
mod pipelines; // the usual pipelines with python3, sh and redis-server; filters
mod placement; // the table sizes that fdimg place computes, and those of the kernel
mod progress; // the progress line on a terminal
mod sandbox; // what fdimg gives up before it reads an image
mod service_descriptors; // COMMAND has no descriptor or process of fdrestore
mod several_processes; // scans of processes of which some end, or may not be looked at
mod stats; // fdrestore --stats against strace, and bounds for its numbers
mod sweep; // every system call of the tools fails once
mod threads; // scans of threads with tables of their own, and of processes without a leader
mod tree; // fdrestore --tree
