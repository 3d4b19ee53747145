//! pty(7): pseudo terminals. A master and its slaves are one object, known by the device number of
//! the slave. A pair is made before all other descriptors, since paths and the controlling terminal
//! refer to it.
//!
//! Unread bytes can only be read by consuming them. `pty_buffer` does so, and puts them back, while
//! all processes that have the pair open are frozen. Otherwise they are counted, and not kept.

use crate::error::{At, Error, Result};
use crate::image::{Inode, MessageMeta, OpenFile, Typed};
use crate::kind::context::{Opened, OpenedTogether, RestoreContext, owner_not_restored};
use crate::kind::effect::Effect;
use crate::kind::terminal::pty_buffer::{
    BufferRoundTrip, FLIP_BUFFER_CAPACITY, LDISC_CAPACITY, Pieces, PtyEnds,
};
use crate::kind::{
    ContentsContext, ContentsPiece, Kind, ObjectCheck, OpenTerminal, Piece, Sink, check_limit,
};
use crate::proc::openers::Opener;
use crate::proc::{Descriptor, FdInfo};
use crate::sys::flags::O_LARGEFILE;
use crate::sys::{self, tty};
use crate::terminal::{self, Settings};
use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::libc;
use nix::poll::PollFlags;
use nix::sys::stat::FchmodatFlags::FollowSymlink;
use nix::sys::stat::{Mode, fchmodat, fstat, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, chown};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// The device number of /dev/ptmx, and of the node `ptmx` in a devpts.
const PTMX: (u32, u32) = (5, 2);
/// The highest index of a slave that the kernel allows: NR_UNIX98_PTY_MAX of linux/tty.h.
const MAX_INDEX: u32 = (1 << 20) - 1;
/// The flags of open(2) that a slave is opened with. open(2) adds O_LARGEFILE itself; TIOCGPTPEER
/// does not.
const SLAVE_OPEN_FLAGS: u32 =
    (libc::O_ACCMODE | libc::O_NONBLOCK | libc::O_APPEND | libc::O_SYNC | libc::O_NOATIME) as u32
        | O_LARGEFILE;
/// The highest number of pairs that are held open to get a pair with the same index.
const MAX_HELD_PAIRS: usize = 256;

/// An end of a pseudo terminal.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pty {
    /// The end is the master.
    master: bool,
    /// The number in the slave's name: TIOCGPTN.
    index: u32,
    /// POLLHUP. Of a slave: its master was closed, or its session leader ended; system calls fail
    /// with EIO. Of a master: its slave was opened, and all descriptors of it are closed; reads
    /// fail with EIO.
    hung: bool,
    /// Unread bytes at this end: FIONREAD. In canonical mode an unfinished line does not count.
    queued: u32,
    /// A slave has no POLLOUT: its output is stopped, or the buffer of its master is full.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    blocked: bool,
    /// Exclusive mode of this end: TIOCGEXCL.
    exclusive: bool,
    /// Packet mode of a master: TIOCGPKT.
    packet: bool,
    /// The slave of this master cannot be opened: TIOCGPTLCK.
    locked: bool,
    /// The settings of the pair; none of a slave that has hung up, and in a passive scan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    settings: Option<Settings>,
    /// User, group and permissions of the slave's node in devpts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<(u32, u32, u32)>,
    /// The session whose controlling terminal the slave of this master is: TIOCGSID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session: Option<i32>,
}

/// The index in the path of a slave: 7 for `/dev/pts/7`.
fn index_of_link(link: &[u8]) -> Option<u32> {
    let link = link.strip_suffix(b" (deleted)").unwrap_or(link);
    std::str::from_utf8(link.strip_prefix(b"/dev/pts/")?).ok()?.parse().ok()
}

/// Reports whether a path is that of a slave whose pair is restored.
pub(crate) fn is_restored_slave(path: &[u8], cx: &RestoreContext<'_>) -> bool {
    let Some(index) = index_of_link(path) else { return false };
    let device = terminal::slave_device(index);
    let restored = |(file, _): &(&OpenFile, &Pty)| cx.lowest.contains_key(&file.id);
    let mut ends = cx.image.of_kind::<Pty>().filter(restored);
    ends.any(|(_, pty)| Kind::terminal(pty).is_some_and(|terminal| terminal.device == device))
}

/// Reports whether a link is that of a master.
fn is_ptmx(link: &[u8]) -> bool {
    link == b"/dev/ptmx" || link == b"/dev/pts/ptmx"
}

/// The index of the slave that an inode is; none for other inodes.
fn slave_index_of(inode: &Inode) -> Option<u32> {
    terminal::slave_index(inode.rdev?)
}

/// The result of an ioctl, or the default value if it failed with EIO on a terminal that has hung
/// up.
fn default_if_hung_up<T: Default>(result: nix::Result<T>, hung_up: bool) -> Result<T> {
    match result {
        Err(Errno::EIO) if hung_up => Ok(T::default()),
        other => Ok(other?),
    }
}

impl Kind for Pty {
    const NAME: &'static str = "pty";
    const TAKES_CONTENTS_OUT: bool = true;
    const EARLY: bool = true;

    fn claims(descriptor: &Descriptor<'_>) -> bool {
        let char = descriptor.file_type() == Some(libc::S_IFCHR) && !descriptor.is_path();
        match &descriptor.inode {
            Some(inode) => char && (slave_index_of(inode).is_some() || inode.rdev == Some(PTMX)),
            None => {
                !descriptor.is_path()
                    && (is_ptmx(&descriptor.link.0) || index_of_link(&descriptor.link.0).is_some())
            }
        }
    }

    fn object(descriptor: &Descriptor<'_>) -> Option<(u32, u32, u64)> {
        let inode = descriptor.inode.as_ref()?;
        if let Some(index) = slave_index_of(inode) {
            // After a hangup a new pair may have the index.
            let open = inode.nlink > 0 && !is_hung_up(descriptor.copy.as_ref()?.as_fd()).ok()?;
            return open.then_some((inode.dev.0, inode.dev.1, u64::from(index)));
        }
        let index = tty::index(descriptor.copy.as_ref()?).ok()?;
        let node = terminal::slave_node(descriptor.process.thread, &descriptor.link.0, index)?;
        Some((node.dev.0, node.dev.1, u64::from(index)))
    }

    fn capture(descriptor: &Descriptor<'_>) -> Result<Self> {
        let slave = descriptor
            .inode
            .as_ref()
            .and_then(slave_index_of)
            .or_else(|| index_of_link(&descriptor.link.0));
        let master = slave.is_none();
        let mut this = Pty {
            master,
            index: slave.unwrap_or_default(),
            hung: descriptor.deleted().is_some(),
            queued: 0,
            blocked: false,
            exclusive: false,
            packet: false,
            locked: false,
            settings: None,
            node: descriptor.inode.as_ref().filter(|_| !master).map(owner_and_mode),
            session: None,
        };
        let Some(copy) = &descriptor.copy else {
            let fdinfo = descriptor.info.get("tty-index").and_then(|index| index.parse().ok());
            let why = "/proc/PID/fdinfo does not tell its index (tty-index)";
            this.index = slave.or(fdinfo).ok_or_else(|| Error::unrestorable(why))?;
            return Ok(this);
        };
        this.hung = is_hung_up(copy.as_fd())?;
        let slave_hung_up = this.hung && !master;
        this.queued = default_if_hung_up(sys::readable(copy.as_fd()), slave_hung_up)? as u32;
        this.blocked = !this.hung && !master && !has_event(copy.as_fd(), PollFlags::POLLOUT)?;
        this.exclusive = default_if_hung_up(tty::exclusive(copy), slave_hung_up)?;
        this.settings = if slave_hung_up { None } else { Some(Settings::read(copy)?) };
        if master {
            this.index = tty::index(copy)?;
            this.packet = tty::packet(copy)?;
            this.locked = tty::locked(copy)?;
            this.session = tty::session(copy).ok();
            let found =
                terminal::slave_node(descriptor.process.thread, &descriptor.link.0, this.index);
            this.node = found.as_ref().map(owner_and_mode);
        }
        Ok(this)
    }

    fn contents(
        copy: BorrowedFd<'_>,
        cx: &ContentsContext<'_>,
        limit: u64,
        to: Sink<'_>,
    ) -> Result<()> {
        let (major, minor, index) = cx.object;
        let device = terminal::slave_device(index as u32);
        let openers = cx.openers.of_terminal(device, Some((major, minor)));
        let captured = |it: &&Opener| cx.openers.is_captured(it.pid);
        let mut masters = openers.iter().filter(captured);
        let Some((pid, fd)) = masters.find_map(|it| Some((it.pid, *it.masters.first()?))) else {
            // Without its master the pair is not restored.
            return Ok(());
        };
        let master = sys::pidfd_getfd(sys::pidfd_open(pid)?.as_fd(), fd).at(|| "its master")?;
        if tty::index(&master) != Ok(index as u32) {
            return Err(Error::unrestorable("its master was closed during the scan"));
        }
        let input = unread_input(&openers);
        let counted = sys::readable(copy)? + sys::readable(master.as_fd())? + input;
        let uncaptured = uncaptured_opener(&openers, cx);
        let unreadable = uncaptured.is_none().then(|| cx.openers.unreadable()).flatten();
        if counted == 0 && (unreadable.is_some() || !cx.frozen) {
            // Without root some process is always hidden: no error where FIONREAD counts no bytes.
            // There may be an unfinished line, but without --freeze it could not be read anyway.
            return Ok(());
        }
        cx.require_frozen_with(|| uncaptured.or(unreadable))?;
        let has_slave = |it: &Opener| it.fds.iter().any(|fds| !fds.is_empty());
        if !is_hung_up(master.as_fd())? && !openers.iter().any(has_slave) {
            // Opening and closing the slave would make the master hang up.
            return match sys::readable(master.as_fd())? {
                0 => Ok(()),
                _ => Err(Error::unrestorable("its slave was never opened")),
            };
        }
        let flags = (libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC) as u32;
        let slave = tty::peer(&master, flags).at(|| "open the slave")?;
        let ends = PtyEnds { master: master.as_fd(), slave: slave.as_fd() };
        if !may_have_contents(ends)? {
            return Ok(());
        }
        require_reversible(ends, &openers)?;
        let times = [ends.master, ends.slave].map(|end| fstat(end).map(|found| (end, found)));
        let round_trip = BufferRoundTrip::new(ends).at(|| "read the settings")?;
        let mut log = BufferRoundTrip::log()?;
        let done = log.run_in_child_then_here(|log| round_trip.run(log))?;
        for (end, found) in times.into_iter().flatten() {
            // w(1) computes the idle time of a terminal from them.
            let atime = TimeSpec::new(found.st_atime, found.st_atime_nsec);
            let mtime = TimeSpec::new(found.st_mtime, found.st_mtime_nsec);
            let _ = futimens(end, &atime, &mtime);
        }
        done?;
        let pieces = round_trip.pieces(&log);
        let bytes: usize = pieces.iter().map(|(_, bytes)| bytes.len()).sum();
        check_limit(bytes as u64, limit)?;
        for (typed, bytes) in &pieces {
            let with =
                typed.map(|typed| MessageMeta { typed: Some(typed), ..MessageMeta::default() });
            to(Piece { bytes, with, ..Piece::default() })?;
        }
        Ok(())
    }

    fn terminal(&self) -> Option<OpenTerminal> {
        let device = terminal::slave_device(self.index);
        let terminal = OpenTerminal { device, is_pty: true, is_master: self.master };
        (self.master || !self.hung).then_some(terminal)
    }

    fn settings(&self) -> Option<&Settings> {
        self.settings.as_ref()
    }

    fn validate(&self, _: &OpenFile) -> Result<()> {
        if self.index > MAX_INDEX {
            let why = format!("its index is above the limit {MAX_INDEX} of pseudo terminals");
            return Err(Error::malformed(why));
        }
        self.settings.as_ref().map_or(Ok(()), Settings::validate)
    }

    fn object_check() -> Option<Box<dyn ObjectCheck<Self>>> {
        Some(Box::new(PairCheck::default()))
    }

    fn effects(&self, _: &OpenFile, cx: &RestoreContext<'_>) -> Result<Vec<Effect>> {
        // The pair is made from the record of its master.
        let settings = self.settings.as_ref().filter(|_| self.master && cx.checks_all);
        let set = settings.map(|it| it.changes(&Settings::of_new_pty(), true)).unwrap_or_default();
        let what = if set.is_empty() { None } else { Some(format!("sets {}", set.join(", "))) };
        Ok(what.into_iter().map(Effect::allowed).collect())
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        let peers = peers(file, cx);
        if self.hung && !self.master {
            return Ok(());
        }
        self.settings.as_ref().map_or(Ok(()), Settings::check)?;
        if !self.master && !peers.iter().any(|(_, peer)| peer.master) {
            return Err(Error::unrestorable("its master is outside the image"));
        }
        let without_slave = self.hung || self.locked || self.session == Some(cx.task.sid);
        if self.master && peers.is_empty() && !without_slave {
            return Err(Error::unrestorable(
                "the processes that have its slave open, if any, are outside the image",
            ));
        }
        Ok(())
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        if self.hung && !self.master {
            return restore_hung_up(self, file, cx);
        }
        // The whole pair is made at once, from the record of its master.
        let peers = peers(file, cx);
        let all = peers.iter().copied().chain([(file, self)]);
        let Some((master_file, master)) = all.clone().find(|(_, pty)| pty.master) else {
            return Err(Error::unrestorable("its master is outside the image"));
        };
        let Pty {
            master: _,
            index,
            hung,
            queued,
            blocked: _,
            exclusive,
            packet,
            locked,
            settings,
            node,
            session: _,
        } = master;
        if !is_ptmx(&master_file.link.0) {
            let name = crate::text::escape(&master_file.link.0);
            let line =
                format!("{name}: it was of another instance of devpts than /dev/pts is here");
            cx.warnings.push(line);
        }
        let new = open_master(&master_file.link.0, master_file.flags, *index, cx)?;
        let got = tty::index(&new)?;
        if got != *index {
            let (old, new) = (format!("/dev/pts/{index}"), format!("/dev/pts/{got}"));
            cx.warnings.push(format!("{old}: its index is in use; it is {new} now"));
            cx.renamed_paths.insert(old.into_bytes(), new.into_bytes());
        }
        tty::set_locked(&new, false).at(|| "TIOCSPTLCK")?;
        let mut warnings = Vec::new();
        let mut unread = u64::from(*queued);
        let mut blocked = false;
        let mut slaves = Vec::new();
        for (slave_file, slave) in all.filter(|(_, pty)| !pty.master) {
            let fd =
                tty::peer(&new, slave_file.flags & SLAVE_OPEN_FLAGS).at(|| "open the slave")?;
            slaves.push((slave_file, fd, slave));
            unread = unread.max(u64::from(slave.queued));
            blocked |= slave.blocked;
        }
        let pieces = recorded_pieces(master_file, cx)?;
        // A master that has hung up needs a slave that was opened and closed.
        let needs_slave = !pieces.is_empty() || blocked || *hung && slaves.is_empty();
        let flags = (libc::O_RDWR | libc::O_NONBLOCK) as u32;
        let slave = needs_slave.then(|| tty::peer(&new, flags)).transpose();
        let slave = slave.at(|| "open the slave")?;
        match (settings, &slave) {
            (Some(settings), Some(slave)) if !pieces.is_empty() => {
                let ends = PtyEnds { master: new.as_fd(), slave: slave.as_fd() };
                let line = settings.line.termios(0)?;
                let apply = || {
                    warnings = settings.apply(new.as_fd(), true)?;
                    Ok(())
                };
                ends.fill_new(&pieces, &line, apply).at(|| "put its contents back")?;
            }
            (Some(settings), _) => warnings = settings.apply(new.as_fd(), true)?,
            (None, _) => warnings
                .push("its settings are not in the image: scan without --passive".to_owned()),
        }
        // Without --freeze the slave may have been writing, and its master reading.
        let stopped = blocked && cx.image.head.frozen && (*queued as usize) < LDISC_CAPACITY;
        if let (true, Some(slave)) = (stopped, &slave) {
            stop_output(PtyEnds { master: new.as_fd(), slave: slave.as_fd() })?;
        } else if blocked {
            warnings.push("its output was blocked, and is not any more".to_owned());
        }
        drop(slave);
        let owner = node.as_ref().map(|node| set_slave_owner(got, node, cx)).transpose()?;
        warnings.extend(owner.flatten());
        if unread > 0 && pieces.is_empty() {
            let why = "its unread bytes are not in the image (scan with --freeze --data)";
            warnings.push(why.to_owned());
        }
        for line in warnings {
            cx.warnings.push(format!("/dev/pts/{got}: {line}"));
        }
        // Exclusive mode and the lock come last: with them the slave could not be opened here
        // either.
        for (_, slave, pty) in &slaves {
            if pty.exclusive {
                tty::set_exclusive(slave).at(|| "TIOCEXCL of the slave")?;
            }
        }
        if *exclusive {
            tty::set_exclusive(&new).at(|| "TIOCEXCL")?;
        }
        if *locked {
            tty::set_locked(&new, true).at(|| "TIOCSPTLCK")?;
        }
        if *packet {
            tty::set_packet(&new, true).at(|| "TIOCPKT")?;
        }
        let mut ends: Vec<(&OpenFile, OwnedFd)> = vec![(master_file, new)];
        ends.extend(slaves.into_iter().map(|(file, fd, _)| (file, fd)));
        let at = ends.iter().position(|(end, _)| end.id == file.id).ok_or(Errno::EBADF)?;
        let mut opened = Opened::new(ends.swap_remove(at).1, file.flags);
        let other =
            |(end, fd): (&OpenFile, OwnedFd)| OpenedTogether { file: end.id, fd, flags: end.flags };
        opened.others = ends.into_iter().map(other).collect();
        Ok(opened)
    }
}

/// Makes a slave that has hung up: its master is closed here.
fn restore_hung_up(record: &Pty, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<Opened> {
    // The index is all of its state.
    let Pty {
        master: _,
        index,
        hung: _,
        queued: _,
        blocked: _,
        exclusive: _,
        packet: _,
        locked: _,
        settings: _,
        node: _,
        session: _,
    } = *record;
    let master = open_master(b"/dev/ptmx", libc::O_RDWR as u32, index, cx)?;
    tty::set_locked(&master, false).at(|| "TIOCSPTLCK")?;
    let slave = tty::peer(&master, file.flags & SLAVE_OPEN_FLAGS).at(|| "open the slave")?;
    Ok(Opened::new(slave, file.flags))
}

/// The other restored descriptions of the pair, with their records.
fn peers<'a>(file: &OpenFile, cx: &RestoreContext<'a>) -> Vec<(&'a OpenFile, &'a Pty)> {
    let peers = cx.others_of_object(file).into_iter();
    peers.filter_map(|peer| Some((peer, cx.image.record_as(peer.id)?))).collect()
}

/// User, group and permissions of an inode.
fn owner_and_mode(inode: &Inode) -> (u32, u32, u32) {
    (inode.uid, inode.gid, inode.mode & 0o7777)
}

/// Reports whether poll(2) returns an event now.
fn has_event(copy: BorrowedFd<'_>, event: PollFlags) -> Result<bool> {
    Ok(sys::poll_now(copy, event).at(|| "poll")?.contains(event))
}

/// Reports POLLHUP: the other end is closed, or the terminal was hung up.
fn is_hung_up(copy: BorrowedFd<'_>) -> Result<bool> {
    has_event(copy, PollFlags::POLLHUP)
}

/// The first process outside the scan that has a descriptor of a pseudo terminal; or is of its
/// session, and has descriptors that cannot be read.
fn uncaptured_opener(openers: &[Opener], cx: &ContentsContext<'_>) -> Option<i32> {
    let own_pid = std::process::id() as i32;
    // The descriptors of this process are copies, unless the terminal is its controlling terminal.
    let has_copies = |it: &Opener| it.pid == own_pid && !it.member;
    let has_terminal =
        |it: &Opener| !it.masters.is_empty() || it.fds.as_ref().is_none_or(|it| !it.is_empty());
    let mut others = openers
        .iter()
        .filter(|it| !cx.openers.is_captured(it.pid) && !has_copies(it) && has_terminal(it));
    others.next().map(|it| it.pid)
}

/// The number of unread bytes of input (FIONREAD), read through a slave that a process has open;
/// zero if none can be copied.
fn unread_input(openers: &[Opener]) -> usize {
    let unread = openers.iter().find_map(|it| {
        let pidfd = sys::pidfd_open(it.pid).ok()?;
        let mut slaves = it.fds.iter().flatten();
        let slave = slaves.find_map(|&fd| sys::pidfd_getfd(pidfd.as_fd(), fd).ok())?;
        sys::readable(slave.as_fd()).ok()
    });
    unread.unwrap_or(0)
}

/// Reports whether a pair has unread bytes, or may have: an unfinished line of canonical mode shows
/// neither in poll(2) nor in FIONREAD.
fn may_have_contents(PtyEnds { master, slave }: PtyEnds<'_>) -> Result<bool> {
    // poll(2) first flushes the flip buffer to the line discipline (n_tty_poll).
    let is_readable =
        |end| Ok::<_, Error>(has_event(end, PollFlags::POLLIN)? || sys::readable(end)? > 0);
    let settings = tty::line(slave).at(|| "read the settings")?;
    let canonical = settings.c_lflag & libc::ICANON != 0;
    Ok(canonical || is_readable(slave)? || is_readable(master)?)
}

/// Fails with status 6 if unread bytes cannot be read and put back unnoticed.
fn require_reversible(PtyEnds { master, slave }: PtyEnds<'_>, openers: &[Opener]) -> Result<()> {
    let no = |why: &str| Err(Error::unrestorable(why));
    let settings = Settings::read(slave).at(|| "read the settings")?;
    settings.check()?;
    if settings.locked.is_some() {
        return no("its settings are locked (TIOCSLCKTRMIOS)");
    }
    if settings.line.lflag & libc::EXTPROC != 0 || settings.line.iflag & libc::PARMRK != 0 {
        return no("EXTPROC or PARMRK is set, so that unread bytes cannot be put back unchanged");
    }
    if !has_event(slave, PollFlags::POLLOUT)? || sys::readable(master)? >= LDISC_CAPACITY {
        return no("its output is stopped, or the buffer of its master is full");
    }
    if tty::packet(master).at(|| "TIOCGPKT")? && has_event(master, PollFlags::POLLPRI)? {
        return no("a status byte is pending at its master (packet mode)");
    }
    let flags = |pid: i32, fd: RawFd| {
        std::fs::read(format!("/proc/{pid}/fdinfo/{fd}")).map(|it| FdInfo::parse(&it).flags)
    };
    let has_async = |it: &&Opener| {
        let mut fds = it.fds.iter().flatten().chain(&it.masters);
        fds.any(|&fd| flags(it.pid, fd).is_ok_and(|it| it & libc::O_ASYNC as u32 != 0))
    };
    match openers.iter().find(has_async) {
        Some(it) => no(&format!("process {} would get a signal (O_ASYNC)", it.pid)),
        None => Ok(()),
    }
}

/// Checks that the ends of a pair have one index and at most one master, and that a terminal with
/// these settings can hold its contents.
#[derive(Default)]
struct PairCheck {
    index: Option<u32>,
    masters: usize,
    /// An end has no settings, and so no contents.
    no_settings: bool,
    /// The settings of an end do not have ICANON.
    raw: bool,
    /// Unread bytes at the master, in the flip buffer of the slave, and in its line discipline.
    bytes: [usize; 3],
    /// The number of pieces at the slave.
    slave_pieces: usize,
}

impl ObjectCheck<Pty> for PairCheck {
    fn file(&mut self, record: &Pty, _: &OpenFile) -> Result<()> {
        self.masters += usize::from(record.master);
        if *self.index.get_or_insert(record.index) != record.index || self.masters > 1 {
            return Err(Error::malformed("its ends have different indexes, or two are masters"));
        }
        // A slave that has hung up has no contents.
        if record.master || !record.hung {
            match &record.settings {
                None => self.no_settings = true,
                Some(settings) => self.raw |= settings.line.lflag & libc::ICANON == 0,
            }
        }
        Ok(())
    }

    fn contents(&mut self, piece: &ContentsPiece<'_>) -> Result<()> {
        let canonical = !self.raw;
        let what = piece.meta.and_then(|meta| meta.typed);
        let (place, len) = match what {
            None => (0, piece.len),
            Some(Typed::Late) => (1, piece.len),
            Some(Typed::Eof) => (2, piece.len + 1),
            Some(_) => (2, piece.len),
        };
        let fits = match what {
            None | Some(Typed::Late) => true,
            Some(Typed::Open) => self.bytes[1] == 0,
            Some(Typed::Line) => canonical && piece.len > 0,
            Some(Typed::Whole) => canonical && piece.len > 0 && self.slave_pieces == 0,
            Some(Typed::Eof) => canonical,
            Some(Typed::Quote) => canonical && piece.len == 0,
        };
        self.bytes[place] += len;
        self.slave_pieces += usize::from(what.is_some());
        if !fits || self.no_settings {
            return Err(Error::malformed("a terminal with its settings cannot hold its contents"));
        }
        // The line discipline holds one byte less outside canonical mode.
        let [master, flip_buffer, ldisc] = self.bytes;
        if master > LDISC_CAPACITY
            || flip_buffer > FLIP_BUFFER_CAPACITY
            || ldisc > LDISC_CAPACITY + 1
        {
            return Err(Error::malformed("its contents are longer than a terminal can hold"));
        }
        Ok(())
    }
}

/// The recorded contents of a pair.
fn recorded_pieces(file: &OpenFile, cx: &RestoreContext<'_>) -> Result<Pieces> {
    let mut pieces = Pieces::new();
    cx.contents(file.object, |chunk, bytes| {
        let typed = chunk.with.as_ref().and_then(|with| with.typed);
        pieces.push((typed, bytes.to_vec()));
        Ok(())
    })?;
    Ok(pieces)
}

/// Stops the output of a terminal: by its STOP character if it has one, so that START resumes it,
/// else by TCOOFF. The record does not tell which of them stopped it.
fn stop_output(ends: PtyEnds<'_>) -> Result<()> {
    let line = tty::line(ends.slave).at(|| "read the settings")?;
    match line.c_cc[libc::VSTOP] {
        character if line.c_iflag & libc::IXON != 0 && character != 0 => ends.type_stop(character),
        _ => tty::set_stopped(ends.slave, true).map_err(Error::from),
    }
    .at(|| "stop its output")
}

/// Opens a new master, with this index if that is free and near. The kernel allocates the lowest
/// free index, so pairs with lower ones are held open meanwhile.
fn open_master(path: &[u8], flags: u32, index: u32, cx: &RestoreContext<'_>) -> Result<OwnedFd> {
    let path = if is_ptmx(path) { path } else { b"/dev/ptmx" };
    let node = cx.open(path, libc::O_PATH as u32)?;
    if crate::proc::inode_of(node.as_fd())?.rdev != Some(PTMX) {
        return Err(Error::unrestorable(
            "/dev/ptmx is not the device 5:2, which makes pseudo terminals",
        ));
    }
    let mut held = Vec::new();
    loop {
        let new = match cx.open_seen(path, node.as_fd(), flags).map(|opened| opened.fd) {
            // A pair with another index is better than none.
            Err(_) if !held.is_empty() => break,
            other => other?,
        };
        let got = tty::index(&new)?;
        if got == index {
            return Ok(new);
        }
        held.push(new);
        if got > index || held.len() > MAX_HELD_PAIRS {
            break;
        }
    }
    Ok(held.swap_remove(0))
}

/// Sets the owner and the permissions of a slave's node, by its path: opening and closing the slave
/// would make the master hang up. Returns a warning if the owner cannot be set.
fn set_slave_owner(
    index: u32,
    node: &(u32, u32, u32),
    cx: &RestoreContext<'_>,
) -> Result<Option<String>> {
    let place = cx.open(format!("/dev/pts/{index}").as_bytes(), libc::O_PATH as u32)?;
    let has = crate::proc::inode_of(place.as_fd())?;
    if has.rdev != Some(terminal::slave_device(index)) {
        return Err(Error::unrestorable("/dev/pts is not the devpts file system of /dev/ptmx"));
    }
    let (uid, gid, mode) = *node;
    let path = format!("/proc/self/fd/{}", place.as_raw_fd());
    if has.mode & 0o777 != mode & 0o777 {
        let mode = Mode::from_bits_truncate(mode & 0o777);
        fchmodat(AT_FDCWD, path.as_str(), mode, FollowSymlink).at(|| "chmod the slave")?;
    }
    if (has.uid, has.gid) == (uid, gid) {
        return Ok(None);
    }
    match chown(path.as_str(), Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))) {
        Ok(()) => Ok(None),
        Err(errno @ (Errno::EPERM | Errno::EINVAL)) => {
            Ok(Some(owner_not_restored(uid, gid, errno)))
        }
        Err(errno) => Err(errno).at(|| "chown the slave"),
    }
}
