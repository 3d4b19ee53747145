//! What is the same for all kinds: numbers, sharing, flags and owner; and the check that nothing
//! else is open.

use crate::spec::{At, Result, Spec, Stop};
use crate::{FIXTURES, sys};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::unistd::{Whence, lseek};
use std::collections::BTreeSet;
use std::fmt::{Debug, Display};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};

/// The variable in which fdrestore names the descriptors that had close-on-exec.
pub(crate) const CLOEXEC: &str = "FDRESTORE_CLOEXEC";

/// O_LARGEFILE as F_GETFL tells it.
const O_LARGEFILE: OFlag = OFlag::from_bits_retain(fdkit::sys::flags::O_LARGEFILE as i32);

/// What a check must notice: a SPEC to make, a SPEC to check in its place, and a text of the report.
pub(crate) type Difference = (&'static str, &'static str, &'static str);

/// One kind of fixture.
pub(crate) trait Fixture {
    const NAME: &'static str;
    /// One sentence for `mkfd list`.
    const ABOUT: &'static str;
    /// The keys of this kind, each with its meaning.
    const KEYS: &'static [(&'static str, &'static str)];
    /// What the check of this kind must notice. The suite makes each and checks for it.
    const DIFFERENCES: &'static [Difference];

    /// The number of descriptions that `make` makes, and of numbers that a SPEC needs.
    fn arity(_: &Spec) -> usize {
        1
    }
    /// Makes the descriptions, in the order of the numbers.
    fn make(spec: &Spec) -> Result<Vec<OwnedFd>>;
    /// The steps that are left when all descriptors of all SPECs have their numbers.
    fn finish(_: &Spec) -> Result<()> {
        Ok(())
    }
    /// The flags that F_GETFL returns for the nth description, without O_NONBLOCK and O_ASYNC,
    /// which have keys of their own.
    fn flags(_: &Spec, _: usize) -> OFlag {
        OFlag::O_RDWR
    }
    /// The checks of this kind alone, after those that all kinds have in common.
    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno>;
}

/// A row of `FIXTURES`.
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) keys: &'static [(&'static str, &'static str)],
    pub(crate) differences: &'static [Difference],
    arity: fn(&Spec) -> usize,
    make: fn(&Spec) -> Result<Vec<OwnedFd>>,
    finish: fn(&Spec) -> Result<()>,
    flags: fn(&Spec, usize) -> OFlag,
    check: fn(&Spec, &mut Bad) -> Result<(), Errno>,
}

/// The row of a kind.
pub(crate) const fn entry<F: Fixture>() -> Entry {
    Entry {
        name: F::NAME,
        about: F::ABOUT,
        keys: F::KEYS,
        differences: F::DIFFERENCES,
        arity: F::arity,
        make: F::make,
        finish: F::finish,
        flags: F::flags,
        check: F::check,
    }
}

/// The keys that every kind understands.
const COMMON: &[&str] = &["dup", "cloexec", "nonblock", "async", "own", "sig"];

fn kind(spec: &Spec) -> Result<&'static Entry> {
    let found = FIXTURES.iter().find(|entry| entry.name == spec.name);
    found.ok_or_else(|| Stop::Misuse(format!("{}: no such kind; see mkfd list", spec.name)))
}

/// The failed expectations.
#[derive(Default)]
pub(crate) struct Bad {
    lines: Vec<String>,
    at: String,
}

impl Bad {
    pub(crate) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Adds a failed expectation.
    pub(crate) fn say(&mut self, text: impl Display) {
        self.lines.push(format!("{}{text}", self.at));
    }

    /// Adds a failed expectation unless the condition holds.
    pub(crate) fn unless(&mut self, holds: bool, text: impl Display) {
        if !holds {
            self.say(text);
        }
    }

    /// Adds a failed expectation unless both values are equal.
    pub(crate) fn same<T: PartialEq + Debug>(&mut self, what: impl Display, got: T, made: T) {
        if got != made {
            self.say(format!("{what} is {got:?}, was made {made:?}"));
        }
    }

    /// Adds a failed expectation unless the contents are equal; it prints only their beginning.
    pub(crate) fn same_bytes(&mut self, what: impl Display, got: &[u8], made: &[u8]) {
        if got != made {
            let at = got.iter().zip(made).take_while(|(a, b)| a == b).count();
            let show = |bytes: &[u8]| {
                let rest = &bytes[at.min(bytes.len())..];
                let text = rest[..rest.len().min(40)].escape_ascii().to_string();
                format!("{} bytes, from {at} on \"{text}\"", bytes.len())
            };
            self.say(format!("{what} is {}, was made {}", show(got), show(made)));
        }
    }
}

/// The descriptor for messages: 2, or a copy of it while a SPEC has 2.
static STDERR: AtomicI32 = AtomicI32::new(2);

/// Prints a line for the user.
pub(crate) fn say(text: &str) {
    if let Ok(stderr) = sys::at(STDERR.load(Ordering::Relaxed)) {
        let _ = nix::unistd::write(stderr, format!("mkfd: {text}\n").as_bytes());
    }
}

/// Reports whether the number 2 belongs to a SPEC.
pub(crate) fn stderr_is_aside() -> bool {
    STDERR.load(Ordering::Relaxed) != 2
}

/// Closes the copy of stderr that a SPEC at 2 asked for.
pub(crate) fn forget_stderr() {
    let n = STDERR.swap(2, Ordering::Relaxed);
    if n != 2 {
        sys::close(n);
    }
}

/// Prints the failed expectations on stderr, unless a SPEC has that number, and to the log.
pub(crate) fn report(bad: &Bad, specs: &[Spec], log: Option<&Path>) {
    let text: String = bad.lines.iter().map(|line| format!("mkfd: {line}\n")).collect();
    if !specs.iter().any(|spec| spec.fds.contains(&2)) {
        if let Ok(stderr) = sys::at(2) {
            let _ = nix::unistd::write(stderr, text.as_bytes());
        }
    }
    if let Some(log) = log {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log);
        let _ = file.and_then(|mut file| file.write_all(text.as_bytes()));
    }
}

/// Refuses SPECs that no kind can make, before anything is made.
pub(crate) fn look_at(specs: &[Spec]) -> Result<()> {
    let mut taken = BTreeSet::new();
    for spec in specs {
        let entry = kind(spec)?;
        for key in spec.keys() {
            if !COMMON.contains(&key) && !entry.keys.iter().any(|(k, _)| *k == key) {
                return Err(Stop::Misuse(format!("{}: no key {key}; see mkfd list", spec.name)));
            }
        }
        spec.number("sig")?;
        let (has, needs) = (spec.fds.len(), (entry.arity)(spec));
        if has < needs || (has > needs && !spec.has("dup")) {
            let text = format!("{}: {needs} numbers are needed, {has} given", spec.name);
            return Err(Stop::Misuse(text));
        }
        if let Some(twice) = spec.fds.iter().find(|&&n| !taken.insert(n)) {
            return Err(Stop::Misuse(format!("number {twice} is given twice")));
        }
    }
    Ok(())
}

/// Makes all descriptors, and gives the number of the original stdout.
pub(crate) fn make(specs: &[Spec], nofile: Option<u64>) -> Result<RawFd> {
    sys::block_signals();
    sys::close_from(3).at("close_range")?;
    let wanted: BTreeSet<RawFd> = specs.iter().flat_map(|spec| spec.fds.clone()).collect();
    raise_limit(&wanted)?;
    let mut stdout = 1;
    if wanted.contains(&2) && sys::at(2).is_ok() {
        STDERR.store(aside(2, &wanted)?, Ordering::Relaxed);
    }
    if wanted.contains(&1) && sys::at(1).is_ok() {
        stdout = aside(1, &wanted)?;
    }
    for spec in specs {
        let entry = kind(spec)?;
        let made = (entry.make)(spec)?;
        let arity = made.len();
        assert_eq!(arity, (entry.arity)(spec), "{}: arity", spec.name);
        let cloexec = spec.has("cloexec");
        place(made, &spec.fds, cloexec, &wanted)?;
        for (i, &n) in spec.fds.iter().enumerate().skip(arity) {
            let first = sys::at(spec.fds[i % arity]).at("dup")?;
            sys::dup_to(first, n, cloexec).at(format!("dup3 to {n}"))?;
        }
        for (nth, &n) in spec.fds.iter().take(arity).enumerate() {
            dress(spec, nth, sys::at(n).at("fcntl")?)?;
        }
    }
    for spec in specs {
        (kind(spec)?.finish)(spec)?;
    }
    if let Some(limit) = nofile {
        set_limit(limit)?;
    }
    Ok(stdout)
}

/// Moves an own descriptor away from a number that a SPEC needs.
fn aside(n: RawFd, wanted: &BTreeSet<RawFd>) -> Result<RawFd> {
    let to = spare(wanted);
    sys::dup_to(sys::at(n).at("dup")?, to, true).at("dup3")?;
    Ok(to)
}

/// The lowest free number that no SPEC needs.
fn spare(wanted: &BTreeSet<RawFd>) -> RawFd {
    (3..).find(|n| !wanted.contains(n) && sys::at(*n).is_err()).expect("a free number")
}

/// Moves each descriptor to its number. One that has the number of another is moved away first.
fn place(
    mut made: Vec<OwnedFd>,
    numbers: &[RawFd],
    cloexec: bool,
    wanted: &BTreeSet<RawFd>,
) -> Result<()> {
    for (fd, &number) in made.iter_mut().zip(numbers) {
        if fd.as_raw_fd() != number && wanted.contains(&fd.as_raw_fd()) {
            *fd = sys::dup_above(fd.as_fd(), spare(wanted)).at("F_DUPFD")?;
        }
    }
    for (fd, &number) in made.into_iter().zip(numbers) {
        sys::move_to(fd, number, cloexec).at(format!("dup3 to {number}"))?;
    }
    Ok(())
}

/// Sets the flags and the owner of a description.
fn dress(spec: &Spec, nth: usize, fd: BorrowedFd<'_>) -> Result<()> {
    let name = |what| format!("{what} of {}", fd.as_raw_fd());
    if let Some(signal) = spec.number("sig")? {
        sys::fcntl(fd, sys::F_SETSIG, signal as libc::c_long).at(name("F_SETSIG"))?;
    }
    if let Some(owner) = owner(spec)? {
        sys::set_owner(fd, owner).at(name("F_SETOWN_EX"))?;
    }
    let more = by_keys(spec, nth);
    if !more.is_empty() {
        let flags = status(fd).at(name("F_GETFL"))? | more;
        fcntl(fd, FcntlArg::F_SETFL(flags)).at(name("F_SETFL"))?;
    }
    Ok(())
}

fn by_keys(spec: &Spec, nth: usize) -> OFlag {
    let mut flags = OFlag::empty();
    flags.set(OFlag::O_NONBLOCK, spec.applies("nonblock", nth));
    flags.set(OFlag::O_ASYNC, spec.applies("async", nth));
    flags
}

/// The owner that `own` means in the calling process.
fn owner(spec: &Spec) -> Result<Option<sys::Owner>> {
    if !spec.has("own") {
        return Ok(None);
    }
    let (kind, pid) = match spec.bytes("own").unwrap_or(b"pid") {
        b"tid" => (0, nix::unistd::gettid()),
        b"pid" => (1, nix::unistd::getpid()),
        b"pgrp" => (2, nix::unistd::getpgrp()),
        _ => return Err(Stop::Misuse("own: pid, tid or pgrp".into())),
    };
    Ok(Some(sys::Owner { kind, pid: pid.as_raw() }))
}

/// Raises RLIMIT_NOFILE so that these numbers and one more are possible.
pub(crate) fn raise_limit(wanted: &BTreeSet<RawFd>) -> Result<()> {
    let need = wanted.last().map_or(0, |&n| n as u64 + 2);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).at("getrlimit")?;
    if need > soft && need > hard {
        let text = format!("number {} is above the hard limit {hard}", need - 2);
        return Err(Stop::Cannot(text));
    }
    if need > soft { set_limit(need) } else { Ok(()) }
}

/// Sets the soft RLIMIT_NOFILE, also below numbers that are open.
pub(crate) fn set_limit(soft: u64) -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).at("getrlimit")?;
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).at("setrlimit")
}

/// Checks from inside that each descriptor is as made, and that nothing else is open.
pub(crate) fn check(specs: &[Spec], std: Option<&[RawFd]>, size: Option<u64>, bad: &mut Bad) {
    sys::block_signals();
    let size_now = fdsize();
    if let Some(size) = size {
        bad.same("FDSize", size_now, size);
    }
    only_these_are_open(specs, std, bad);
    cloexec_is_told(specs, bad);
    let mut whole = Vec::new();
    let mut firsts = Vec::new();
    for spec in specs {
        let Ok(entry) = kind(spec) else { continue };
        let arity = (entry.arity)(spec);
        let before = bad.lines.len();
        for (i, &n) in spec.fds.iter().enumerate() {
            bad.at = format!("{n} {}: ", spec.name);
            match sys::at(n) {
                Ok(fd) => check_one(spec, entry, i % arity, fd, bad),
                Err(_) => bad.say("not open"),
            }
        }
        if spec.fds.iter().any(|&n| sys::at(n).is_err()) {
            continue;
        }
        for (i, &n) in spec.fds.iter().enumerate().skip(arity) {
            bad.at = format!("{n} {}: ", spec.name);
            shared(spec.fds[i % arity], n, bad);
        }
        firsts.extend(spec.fds.iter().take(arity).map(|&n| (n, spec.name.as_str())));
        if bad.lines.len() == before {
            whole.push((spec, entry));
        }
    }
    for (i, &(a, name)) in firsts.iter().enumerate() {
        for &(b, other) in &firsts[..i] {
            let both = sys::at(a).and_then(|a| Ok((a, sys::at(b)?)));
            if let Ok(Some(true)) = both.map(|(a, b)| sys::same(a, b)) {
                bad.at = format!("{a} {name}: ");
                bad.say(format!("is a dup of {b} ({other}), was made apart"));
            }
        }
    }
    for (spec, entry) in whole {
        bad.at = format!("{} {}: ", spec.fds[0], spec.name);
        if let Err(errno) = (entry.check)(spec, bad) {
            bad.say(errno);
        }
    }
    bad.at.clear();
}

fn only_these_are_open(specs: &[Spec], std: Option<&[RawFd]>, bad: &mut Bad) {
    let open = match open_numbers() {
        Ok(open) => open,
        Err(errno) => return bad.say(format!("/proc/self/fd: {errno}")),
    };
    let named = |n: RawFd| specs.iter().any(|spec| spec.fds.contains(&n));
    for &n in open.iter().filter(|&&n| !named(n)) {
        let allowed = match std {
            Some(list) => list.contains(&n),
            None => n < 3,
        };
        bad.unless(allowed, format!("{n} is open and should not be: {}", link(n).display()));
    }
    for n in std.unwrap_or_default() {
        bad.unless(open.contains(n), format!("{n} is not open and should be"));
    }
}

fn cloexec_is_told(specs: &[Spec], bad: &mut Bad) {
    let made = specs.iter().filter(|spec| spec.has("cloexec")).flat_map(|spec| spec.fds.clone());
    let made: BTreeSet<RawFd> = made.collect();
    let text = std::env::var(CLOEXEC).unwrap_or_default();
    let told = text.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok());
    bad.same(CLOEXEC, told.collect::<BTreeSet<RawFd>>(), made);
}

fn check_one(spec: &Spec, entry: &Entry, nth: usize, fd: BorrowedFd<'_>, bad: &mut Bad) {
    match fcntl(fd, FcntlArg::F_GETFD) {
        Ok(flags) => bad.unless(flags & FdFlag::FD_CLOEXEC.bits() == 0, "FD_CLOEXEC is set"),
        Err(errno) => bad.say(format!("F_GETFD: {errno}")),
    }
    let made = (entry.flags)(spec, nth) | by_keys(spec, nth);
    match status(fd) {
        // O_LARGEFILE is ignored: open(2) adds it, and pipe2(2) does not.
        Ok(got) => {
            bad.same("F_GETFL", got - O_LARGEFILE, made);
            if got.contains(OFlag::O_PATH) {
                return;
            }
        }
        Err(errno) => bad.say(format!("F_GETFL: {errno}")),
    }
    let signal = spec.known_number("sig").unwrap_or(0) as i32;
    match sys::fcntl(fd, sys::F_GETSIG, 0) {
        Ok(got) => bad.same("F_GETSIG", got, signal),
        Err(errno) => bad.say(format!("F_GETSIG: {errno}")),
    }
    let nobody = sys::Owner { kind: 1, pid: 0 };
    match (sys::owner(fd), owner(spec)) {
        (Ok(got), Ok(Some(made))) => bad.same("owner", got, made),
        (Ok(got), Ok(None)) => bad.same("owner", got.pid, nobody.pid),
        (Err(errno), _) => bad.say(format!("F_GETOWN_EX: {errno}")),
        (_, Err(_)) => bad.say("own"),
    }
}

/// Checks that two numbers refer to one description: a change through one shows at the other.
fn shared(first: RawFd, second: RawFd, bad: &mut Bad) {
    let (Ok(a), Ok(b)) = (sys::at(first), sys::at(second)) else { return };
    if sys::same(a, b) == Some(false) {
        return bad.say(format!("is no dup of {first}, was made one"));
    }
    let Ok(flags) = status(a) else { return };
    if flags.contains(OFlag::O_PATH) {
        return;
    }
    let seen = fcntl(a, FcntlArg::F_SETFL(flags ^ OFlag::O_NONBLOCK)).and_then(|_| status(b));
    let back = fcntl(a, FcntlArg::F_SETFL(flags));
    bad.same(format!("status flags changed through {first}"), seen, Ok(flags ^ OFlag::O_NONBLOCK));
    bad.unless(back.is_ok(), "F_SETFL");
    let regular = fstat(a).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFREG);
    if let (true, Ok(position)) = (regular, lseek(a, 0, Whence::SeekCur)) {
        let moved = lseek(a, position + 1, Whence::SeekSet);
        bad.same(format!("position moved through {first}"), lseek(b, 0, Whence::SeekCur), moved);
        bad.unless(lseek(a, position, Whence::SeekSet).is_ok(), "lseek");
    }
}

/// Checks O_ASYNC: the signal comes when `act` makes the description ready, and names the
/// descriptor for which it was requested.
pub(crate) fn signal_comes(
    spec: &Spec,
    nth: usize,
    bad: &mut Bad,
    act: impl FnOnce() -> Result<(), Errno>,
) -> Result<(), Errno> {
    if !(spec.applies("async", nth) && spec.has("own")) {
        return act();
    }
    let signal = spec.known_number("sig").map_or(libc::SIGIO, |n| n as i32);
    while sys::wait_signal(signal, 0).is_some() {}
    act()?;
    match sys::wait_signal(signal, 2000) {
        // A plain SIGIO has no si_fd.
        Some(n) if spec.has("sig") => {
            bad.unless(spec.fds.contains(&n), format!("signal {signal} names {n} in si_fd"));
        }
        Some(_) => {}
        None => bad.say(format!("signal {signal} does not come")),
    }
    Ok(())
}

/// The descriptors that are open, without the one used to look.
pub(crate) fn open_numbers() -> Result<BTreeSet<RawFd>, Errno> {
    let mut dir = nix::dir::Dir::open("/proc/self/fd", OFlag::O_RDONLY, Mode::empty())?;
    let own = crate::raw(&dir);
    let mut open = BTreeSet::new();
    for item in dir.iter() {
        open.extend(item?.file_name().to_str().ok().and_then(|name| name.parse::<RawFd>().ok()));
    }
    open.remove(&own);
    Ok(open)
}

/// The link of a descriptor in /proc.
pub(crate) fn link(n: RawFd) -> PathBuf {
    std::fs::read_link(format!("/proc/self/fd/{n}")).unwrap_or_default()
}

/// A line of fdinfo, without blanks around it.
pub(crate) fn info(n: RawFd, key: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{n}")).unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(each, _)| *each == key).map_or("", |(_, value)| value.trim()).to_owned()
}

/// FDSize: the slots of the table. Reading it needs a free number.
pub(crate) fn fdsize() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("FDSize:"));
    line.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}

/// F_GETFL.
pub(crate) fn status(fd: BorrowedFd<'_>) -> Result<OFlag, Errno> {
    fcntl(fd, FcntlArg::F_GETFL).map(OFlag::from_bits_retain)
}

/// open(2).
pub(crate) fn open(path: &Path, flags: OFlag) -> Result<OwnedFd> {
    let mode = Mode::from_bits_truncate(0o600);
    nix::fcntl::open(path, flags | OFlag::O_CLOEXEC, mode).at(path.display())
}

/// Opens a device, for which the right or the device may be missing.
pub(crate) fn open_device(path: &Path, flags: OFlag) -> Result<OwnedFd> {
    match nix::fcntl::open(path, flags | OFlag::O_CLOEXEC, Mode::empty()) {
        Err(errno @ (Errno::EACCES | Errno::ENOENT | Errno::ENODEV | Errno::ENXIO)) => {
            Err(Stop::Cannot(format!("{}: {}", path.display(), errno.desc())))
        }
        other => other.at(path.display()),
    }
}

/// Opens a new description of the file that `fd` has open.
pub(crate) fn reopen(fd: impl AsFd, flags: OFlag) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", crate::raw(fd));
    nix::fcntl::open(path.as_str(), flags | OFlag::O_CLOEXEC, Mode::empty())
}

/// fstat(2), and a check of the file type.
pub(crate) fn stat(fd: BorrowedFd<'_>, kind: u32, bad: &mut Bad) -> Result<FileStat, Errno> {
    let stat = fstat(fd)?;
    bad.same("file type", format!("{:#o}", stat.st_mode & libc::S_IFMT), format!("{kind:#o}"));
    Ok(stat)
}

/// Reads everything that can be read without blocking.
pub(crate) fn drain(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let mut out = Vec::new();
    let mut buffer = vec![0; 65536];
    while ready(fd, nix::poll::PollFlags::POLLIN)? {
        let got = nix::unistd::read(fd, &mut buffer)?;
        if got == 0 {
            break;
        }
        out.extend_from_slice(&buffer[..got]);
    }
    Ok(out)
}

/// poll(2) without blocking.
pub(crate) fn ready(fd: BorrowedFd<'_>, what: nix::poll::PollFlags) -> Result<bool, Errno> {
    let mut polled = [nix::poll::PollFd::new(fd, what)];
    nix::poll::poll(&mut polled, nix::poll::PollTimeout::ZERO)?;
    Ok(polled[0].revents().is_some_and(|got| got.intersects(what)))
}

/// write(2) of all bytes.
pub(crate) fn write_all(fd: impl AsFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let n = nix::unistd::write(fd.as_fd(), bytes)?;
        bytes = &bytes[n..];
    }
    Ok(())
}
