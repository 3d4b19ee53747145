//! mkfd, the fixture: makes descriptors of any kind at any numbers in a process that waits, and
//! checks them from inside after a restore.
//!
//! To add a kind: a file with a `Fixture`, its `mod` line, and its line in `FIXTURES`.

#![cfg_attr(not(test), no_main)]
#![deny(unsafe_code)]

mod driver;
mod many;
mod spec;
mod sys;
mod tree;

mod chardev;
mod directory;
mod epoll;
mod eventfd;
mod fanotify;
mod fifo;
mod icmp;
mod inet;
mod inotify;
mod lock;
mod mem;
mod memfd;
mod mqueue;
mod netlink;
mod ns;
mod opaque;
mod packet;
mod path;
mod pidfd;
mod pipe;
mod pty;
mod raw;
mod regular;
mod signalfd;
mod socketpair;
mod tcp;
mod timerfd;
mod tty;
mod tun;
mod udp;
mod unix;
mod unlinked;

use driver::{Bad, Entry, entry};
use nix::fcntl::OFlag;
use nix::unistd::Pid;
use spec::{At, Result, Spec, Stop};
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// Every kind of fixture.
static FIXTURES: &[Entry] = &[
    entry::<regular::Regular>(),
    entry::<unlinked::Unlinked>(),
    entry::<directory::Directory>(),
    entry::<pipe::Pipe>(),
    entry::<fifo::Fifo>(),
    entry::<eventfd::Eventfd>(),
    entry::<signalfd::Signalfd>(),
    entry::<timerfd::Timerfd>(),
    entry::<epoll::Epoll>(),
    entry::<inotify::Inotify>(),
    entry::<fanotify::Fanotify>(),
    entry::<pidfd::Pidfd>(),
    entry::<ns::Ns>(),
    entry::<mem::Mem>(),
    entry::<chardev::Chardev>(),
    entry::<tun::Tun>(),
    entry::<memfd::Memfd>(),
    entry::<mqueue::Mqueue>(),
    entry::<socketpair::Socketpair>(),
    entry::<unix::Unix>(),
    entry::<tcp::Tcp>(),
    entry::<udp::Udp>(),
    entry::<raw::Raw>(),
    entry::<icmp::Icmp>(),
    entry::<netlink::Netlink>(),
    entry::<packet::Packet>(),
    entry::<path::Path>(),
    entry::<pty::Pty>(),
    entry::<tty::Tty>(),
    entry::<opaque::Opaque>(),
];

const USAGE: &str = "\
mkfd make [--dir DIR] [--close-std] [--nofile N] [--share N] SPEC... [-- COMMAND...]
                         make, then print the pid and wait, or become COMMAND;
                         N children share the table (CLONE_FILES), and wait too
mkfd check [--dir DIR] [--std LIST|none] [--fdsize N] [--log FILE] SPEC...
                         look from inside: is each what make made, and is nothing else open?
mkfd many N [--dir DIR] [--mix files,pipes,socketpairs,eventfds] [--close-std]
                         N private descriptors from 3 up, print the pid, wait
mkfd tree N [--first LIST] [--later LIST] [--memory KIB]
                         N children with /dev/null at 0, 1, 2 and eventfds at the first numbers,
                         and a parent that has those, and the later ones; each writes to so
                         much memory of its own; print the parent's pid, wait
mkfd sleep [--close-std] print the pid and wait with whatever is open
mkfd show                print what is open, FDSize and FDRESTORE_CLOEXEC
mkfd exec [--close LIST] [--leak LIST] [--nofile N] -- COMMAND...
                         close all from 3 up, leave /dev/null at the leaked numbers, run COMMAND
mkfd list                the kinds and their keys
mkfd differences         what check must notice, a line each: a kind, what is made, for what it is
                         checked, and what check says then, with a tab between them

SPEC is NAME@FD[,FD...][:KEY[=VALUE][,...]]; %HH in a value is a byte. Keys of every kind:
  dup             the numbers beyond the kind's own are dups of its descriptions, in turn
  cloexec         close-on-exec (after a restore: named in FDRESTORE_CLOEXEC instead)
  nonblock[=N] async[=N]   O_NONBLOCK, O_ASYNC on all descriptions or the Nth (from 0)
  own[=pid|tid|pgrp] sig=N   F_SETOWN_EX to itself, F_SETSIG
--std LIST: exactly these of 0, 1, 2 are open besides the SPECs (default: any may be).
Exit status: 0 done, 1 failed or not as made, 2 misuse, 77 this kernel cannot make it.
";

/// Runs a whole command line, and gives the exit status.
fn run(args: &[OsString]) -> i32 {
    match command(args) {
        Ok(status) => status,
        Err(stop) => {
            let (status, text) = match stop {
                Stop::Misuse(text) => (2, text),
                Stop::Cannot(text) => (77, text),
                Stop::Failed(text) => (1, text),
            };
            driver::say(&text);
            status
        }
    }
}

fn command(args: &[OsString]) -> Result<i32> {
    let mut args = Args::parse(args.get(1..).unwrap_or_default())?;
    let verb = args.words.first().cloned().unwrap_or_default();
    args.words.drain(..args.words.len().min(1));
    match verb.to_str().unwrap_or_default() {
        "make" => {
            let stdout = driver::make(&args.specs()?, args.nofile)?;
            if args.command.is_empty() {
                return wait(stdout, &args);
            }
            sys::unblock_signals();
            args.become_command()
        }
        "check" => {
            let specs = args.specs()?;
            let mut bad = Bad::default();
            driver::check(&specs, args.std.as_deref(), args.fdsize, &mut bad);
            driver::report(&bad, &specs, args.log.as_deref());
            Ok(if bad.is_empty() { 0 } else { 1 })
        }
        "many" => {
            let n = args.words.first().and_then(|n| n.to_str()?.parse().ok());
            let n = n.ok_or_else(|| Stop::Misuse("many: a number is needed".into()))?;
            many::make(n, args.mix.as_deref(), args.dir.as_deref())?;
            wait(1, &args)
        }
        "tree" => {
            let n = args.words.first().and_then(|n| n.to_str()?.parse().ok());
            let children = n.ok_or_else(|| Stop::Misuse("tree: a number is needed".into()))?;
            let (first, later, memory) = (&args.first, &args.later, args.memory << 10);
            let tree = tree::Tree { children, first, later, memory };
            let pid = std::process::id();
            tree::make(&tree, || say_pid(1, pid))?;
            loop {
                nix::unistd::pause();
            }
        }
        "sleep" => wait(1, &args),
        "show" => {
            let numbers = driver::open_numbers().at("/proc/self/fd")?;
            let mut text = String::new();
            for n in numbers {
                text += &format!("{n} {}\n", driver::link(n).display());
            }
            text += &format!("FDSize {}\n", driver::fdsize());
            if let Some(names) = std::env::var_os(driver::CLOEXEC) {
                text += &format!("{} {}\n", driver::CLOEXEC, names.to_string_lossy());
            }
            print(text.as_bytes())
        }
        "list" => {
            let mut text = String::new();
            for entry in FIXTURES {
                text += &format!("{:<11} {}\n", entry.name, entry.about);
                for (key, about) in entry.keys {
                    text += &format!("{:<13} {key:<10} {about}\n", "");
                }
            }
            print(text.as_bytes())
        }
        "differences" => {
            let mut text = String::new();
            for entry in FIXTURES {
                for (made, wanted, said) in entry.differences {
                    text += &format!("{}\t{made}\t{wanted}\t{said}\n", entry.name);
                }
            }
            print(text.as_bytes())
        }
        "exec" => exec(&args),
        "--help" | "-h" => print(USAGE.as_bytes()),
        _ => Err(Stop::Misuse(format!("usage:\n{USAGE}"))),
    }
}

/// The command line after the program: options may stand anywhere before `--`.
#[derive(Default)]
struct Args {
    words: Vec<OsString>,
    command: Vec<OsString>,
    dir: Option<PathBuf>,
    log: Option<PathBuf>,
    close_std: bool,
    std: Option<Vec<RawFd>>,
    close: Vec<RawFd>,
    leak: Vec<RawFd>,
    first: Vec<RawFd>,
    later: Vec<RawFd>,
    memory: usize,
    fdsize: Option<u64>,
    nofile: Option<u64>,
    share: u64,
    mix: Option<String>,
}

impl Args {
    fn parse(args: &[OsString]) -> Result<Args> {
        let mut it = args.iter();
        let mut out = Args::default();
        while let Some(arg) = it.next() {
            let mut value = || {
                it.next().ok_or_else(|| {
                    Stop::Misuse(format!("{}: a value is needed", arg.to_string_lossy()))
                })
            };
            match arg.to_str() {
                Some("--") => {
                    out.command = it.cloned().collect();
                    break;
                }
                Some("--dir") => out.dir = Some(value()?.into()),
                Some("--log") => out.log = Some(value()?.into()),
                Some("--close-std") => out.close_std = true,
                Some("--std") => out.std = Some(numbers(value()?)?),
                Some("--close") => out.close = numbers(value()?)?,
                Some("--leak") => out.leak = numbers(value()?)?,
                Some("--first") => out.first = numbers(value()?)?,
                Some("--memory") => out.memory = number(value()?)?,
                Some("--later") => out.later = numbers(value()?)?,
                Some("--fdsize") => out.fdsize = Some(number(value()?)?),
                Some("--nofile") => out.nofile = Some(number(value()?)?),
                Some("--share") => out.share = number(value()?)?,
                Some("--mix") => out.mix = Some(value()?.to_string_lossy().into_owned()),
                Some(option) if option.starts_with("--") && !out.words.is_empty() => {
                    return Err(Stop::Misuse(format!("{option}: no such option")));
                }
                _ => out.words.push(arg.clone()),
            }
        }
        Ok(out)
    }

    fn become_command(&self) -> Result<i32> {
        let Some((program, rest)) = self.command.split_first() else {
            return Err(Stop::Misuse("COMMAND is needed".into()));
        };
        Err(Command::new(program).args(rest).exec()).at(program.to_string_lossy())
    }

    fn specs(&self) -> Result<Vec<Spec>> {
        let parse = |word: &OsString| Spec::parse(word.as_bytes(), self.dir.clone());
        let specs = self.words.iter().map(parse).collect::<Result<Vec<_>>>()?;
        driver::look_at(&specs)?;
        Ok(specs)
    }
}

fn number<T: std::str::FromStr>(text: &OsStr) -> Result<T> {
    let number = text.to_str().and_then(|text| text.parse().ok());
    number.ok_or_else(|| Stop::Misuse(format!("{}: not a number", text.to_string_lossy())))
}

fn numbers(text: &OsStr) -> Result<Vec<RawFd>> {
    if text == "none" {
        return Ok(Vec::new());
    }
    text.to_string_lossy().split(',').map(|n| number(OsStr::new(n))).collect()
}

/// Prints the process id on `stdout`, and waits until a signal ends the process. Descriptors that
/// must not be open are closed before the id can be read: a child has a copy of stdout and prints
/// the id.
fn wait(stdout: RawFd, args: &Args) -> Result<i32> {
    sys::block_signals();
    let pid = std::process::id();
    for _ in 0..args.share {
        if sys::fork_with_table().at("clone")?.is_none() {
            loop {
                nix::unistd::pause();
            }
        }
    }
    if args.close_std || stdout != 1 || driver::stderr_is_aside() {
        let (r, w) = nix::unistd::pipe2(OFlag::O_CLOEXEC).at("pipe2")?;
        match sys::fork().at("fork")? {
            None => {
                drop(w);
                let _ = nix::unistd::read(&r, &mut [0]);
                say_pid(stdout, pid);
                std::process::exit(0);
            }
            Some(child) => {
                drop(r);
                close_what_is_mkfds_own(stdout, args);
                drop(w);
                let _ = nix::sys::wait::waitpid(Pid::from_raw(child), None);
            }
        }
    } else {
        say_pid(stdout, pid);
    }
    loop {
        nix::unistd::pause();
    }
}

fn say_pid(stdout: RawFd, pid: u32) {
    if let Ok(out) = sys::at(stdout) {
        let _ = nix::unistd::write(out, format!("{pid}\n").as_bytes());
    }
}

fn close_what_is_mkfds_own(stdout: RawFd, args: &Args) {
    if stdout != 1 {
        sys::close(stdout);
    }
    driver::forget_stderr();
    if args.close_std {
        let named = args.specs().unwrap_or_default();
        let named = |n: RawFd| named.iter().any(|spec| spec.fds.contains(&n));
        (0..3).filter(|&n| !named(n)).for_each(sys::close);
    }
}

fn exec(args: &Args) -> Result<i32> {
    sys::close_from(3).at("close_range")?;
    let wanted = args.leak.iter().copied().collect();
    driver::raise_limit(&wanted)?;
    for &n in &args.leak {
        let null = driver::open("/dev/null".as_ref(), OFlag::O_RDWR)?;
        sys::move_to(null, n, false).at(format!("dup3 to {n}"))?;
    }
    if let Some(limit) = args.nofile {
        driver::set_limit(limit)?;
    }
    args.close.iter().copied().for_each(sys::close);
    sys::reset_keyboard_signals();
    args.become_command()
}

fn print(bytes: &[u8]) -> Result<i32> {
    std::io::stdout().write_all(bytes).at("stdout")?;
    std::io::stdout().flush().at("stdout")?;
    Ok(0)
}

/// The number of an open descriptor, for messages.
fn raw(fd: impl std::os::fd::AsFd) -> RawFd {
    fd.as_fd().as_raw_fd()
}
