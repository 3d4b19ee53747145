//! pty(7): a master and its slaves, one object by the number of the slave's device. A pair is made
//! anew before all other descriptors, since paths and the controlling terminal lead to it.
//!
//! What waits in it can be read only by taking it out, which `waiting` does while all who have it
//! open stand still. Otherwise it is counted, and not kept.

use crate::error::{At, Error, Result};
use crate::image::{Inode, MessageMeta, OpenFile, Typed};
use crate::kind::context::{Opened, OpenedTogether, RestoreContext};
use crate::kind::terminal::pty_buffer::{BEFORE, Ends, HOLDS, Pieces, Turn, ready};
use crate::kind::{ContentsContext, ContentsPiece, Kind, ObjectCheck, OpenTerminal, Piece, Sink};
use crate::proc::openers::{self, Opener};
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
/// The highest index of a slave that is asked for: NR_UNIX98_PTY_MAX.
const HIGHEST: u32 = (1 << 20) - 1;
/// What of a slave's flags it is opened with; open(2) itself adds O_LARGEFILE.
const OPEN: u32 =
    (libc::O_ACCMODE | libc::O_NONBLOCK | libc::O_APPEND | libc::O_SYNC | libc::O_NOATIME) as u32
        | O_LARGEFILE;
/// How far the index of the pair may be above the lowest free one, to be made the same again.
const NEAR: usize = 256;

/// An end of a pseudo terminal.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pty {
    /// The end.
    master: bool,
    /// The number in the slave's name: TIOCGPTN.
    index: u32,
    /// A slave: it has hung up, since its master was closed or its session leader ended; all that
    /// is left of it is EIO. A master: it sees EIO, since all have closed the slave.
    hung: bool,
    /// How many bytes wait to be read at this end: FIONREAD. In canonical mode a line without its
    /// end does not count.
    queued: u32,
    /// A slave: it cannot be written to now (POLLOUT). Either its output is stopped, or its master
    /// has more to read than it holds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    blocked: bool,
    /// TIOCGEXCL, which each end has for itself.
    exclusive: bool,
    /// A master's TIOCGPKT.
    packet: bool,
    /// A master's TIOCGPTLCK: the slave cannot be opened.
    locked: bool,
    /// Settings of the pair; none of a slave that has hung up, and in a passive scan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    settings: Option<Settings>,
    /// User, group and permissions of the slave's node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<(u32, u32, u32)>,
    /// A master's TIOCGSID: the session whose controlling terminal the slave is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session: Option<i32>,
}

/// `/dev/pts/7`: 7.
fn index_of_link(link: &[u8]) -> Option<u32> {
    let link = link.strip_suffix(b" (deleted)").unwrap_or(link);
    std::str::from_utf8(link.strip_prefix(b"/dev/pts/")?).ok()?.parse().ok()
}

/// Whether a path is that of a slave whose pair is restored.
pub(crate) fn will_be(path: &[u8], cx: &RestoreContext<'_>) -> bool {
    let Some(index) = index_of_link(path) else { return false };
    let device = terminal::slave_device(index);
    let restored = |(file, _): &(&OpenFile, &Pty)| cx.lowest.contains_key(&file.id);
    let mut ends = cx.image.of_kind::<Pty>().filter(restored);
    ends.any(|(_, pty)| Kind::terminal(pty).is_some_and(|terminal| terminal.device == device))
}

fn is_ptmx(link: &[u8]) -> bool {
    link == b"/dev/ptmx" || link == b"/dev/pts/ptmx"
}

fn slave_of(inode: &Inode) -> Option<u32> {
    terminal::slave_index(inode.rdev?)
}

/// What an ioctl says, or nothing of one that has hung up.
fn unless_hung<T: Default>(answer: nix::Result<T>, hung: bool) -> Result<T> {
    match answer {
        Err(Errno::EIO) if hung => Ok(T::default()),
        other => Ok(other?),
    }
}

impl Kind for Pty {
    const NAME: &'static str = "pty";
    const EARLY: bool = true;

    fn claims(it: &Descriptor<'_>) -> bool {
        let char = it.file_type() == Some(libc::S_IFCHR) && !it.is_path();
        match &it.inode {
            Some(inode) => char && (slave_of(inode).is_some() || inode.rdev == Some(PTMX)),
            None => !it.is_path() && (is_ptmx(&it.link.0) || index_of_link(&it.link.0).is_some()),
        }
    }

    fn object(it: &Descriptor<'_>) -> Option<(u32, u32, u64)> {
        let inode = it.inode.as_ref()?;
        if let Some(index) = slave_of(inode) {
            // The number of one that has hung up may be another's by now.
            let living = inode.nlink > 0 && !hung(it.copy.as_ref()?.as_fd()).ok()?;
            return living.then_some((inode.dev.0, inode.dev.1, u64::from(index)));
        }
        let index = tty::index(it.copy.as_ref()?).ok()?;
        let node = terminal::slave_node(it.process.pid, &it.link.0, index)?;
        Some((node.dev.0, node.dev.1, u64::from(index)))
    }

    fn capture(it: &Descriptor<'_>) -> Result<Self> {
        let slave = it.inode.as_ref().and_then(slave_of).or_else(|| index_of_link(&it.link.0));
        let master = slave.is_none();
        let mut this = Pty {
            master,
            index: slave.unwrap_or_default(),
            hung: it.deleted().is_some(),
            queued: 0,
            blocked: false,
            exclusive: false,
            packet: false,
            locked: false,
            settings: None,
            node: it.inode.as_ref().filter(|_| !master).map(node),
            session: None,
        };
        let Some(copy) = &it.copy else {
            let told = it.info.get("tty-index").and_then(|index| index.parse().ok());
            this.index = slave.or(told).ok_or_else(|| Error::unrestorable("its index"))?;
            return Ok(this);
        };
        this.hung = hung(copy.as_fd())?;
        let dead = this.hung && !master;
        this.queued = unless_hung(sys::readable(copy.as_fd()), dead)? as u32;
        this.blocked = !this.hung && !master && !is_ready(copy.as_fd(), PollFlags::POLLOUT)?;
        this.exclusive = unless_hung(tty::exclusive(copy), dead)?;
        this.settings = if dead { None } else { Some(Settings::read(copy)?) };
        if master {
            this.index = tty::index(copy)?;
            this.packet = tty::packet(copy)?;
            this.locked = tty::locked(copy)?;
            this.session = tty::session(copy).ok();
            let found = terminal::slave_node(it.process.pid, &it.link.0, this.index);
            this.node = found.as_ref().map(node);
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
        if sys::readable(copy)? == 0 && !cx.frozen {
            // A line that has not ended is seen by nobody who does not read.
            return Ok(());
        }
        let device = terminal::slave_device(index as u32);
        let holders = openers::of(device, Some((major, minor)));
        let captured = |it: &&Opener| cx.captured.contains(&it.pid);
        let mut masters = holders.iter().filter(captured);
        let Some((pid, fd)) = masters.find_map(|it| Some((it.pid, *it.masters.first()?))) else {
            // It comes back as another terminal, if at all.
            return Ok(());
        };
        let master = sys::pidfd_getfd(sys::pidfd_open(pid)?.as_fd(), fd).at(|| "its master")?;
        if tty::index(&master) != Ok(index as u32) {
            return Err(Error::unrestorable("its master is another by now"));
        }
        let typed = typed(&holders, cx.captured);
        let counted = sys::readable(copy)? + sys::readable(master.as_fd())? + typed;
        let stranger = stranger(&holders, cx.captured);
        let hidden = stranger.is_none().then(|| openers::hidden(cx.captured)).flatten();
        if counted == 0 && hidden.is_some() {
            // Who is not root never knows, and most often there is nothing to know.
            return Ok(());
        }
        cx.require_frozen_by(|_| stranger.or(hidden))?;
        let opened = |it: &Opener| it.fds.iter().any(|fds| !fds.is_empty());
        if !hung(master.as_fd())? && !holders.iter().any(opened) {
            // To open the slave, and to close it again, would show at the master.
            return match sys::readable(master.as_fd())? {
                0 => Ok(()),
                _ => Err(Error::unrestorable("its slave was never open")),
            };
        }
        let flags = (libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC) as u32;
        let slave = tty::peer(&master, flags).at(|| "open the slave")?;
        let ends = Ends { master: master.as_fd(), slave: slave.as_fd() };
        if !worth(ends)? {
            return Ok(());
        }
        undisturbed(ends, &holders)?;
        let times = [ends.master, ends.slave].map(|end| fstat(end).map(|found| (end, found)));
        let turn = Turn::new(ends).at(|| "the line")?;
        let mut log = Turn::log()?;
        let turned = log.run_in_child_then_here(|log| turn.over(log))?;
        for (end, found) in times.into_iter().flatten() {
            // w(1) tells by them how long a terminal was idle.
            let (read, written) = (found.st_atime, found.st_mtime);
            let time = |seconds, nanoseconds| TimeSpec::new(seconds, nanoseconds);
            let read = time(read, found.st_atime_nsec);
            let _ = futimens(end, &read, &time(written, found.st_mtime_nsec));
        }
        turned?;
        let pieces = turn.pieces(&log);
        let bytes: usize = pieces.iter().map(|(_, bytes)| bytes.len()).sum();
        if bytes as u64 > limit {
            let why = format!("its {bytes} bytes are more than the limit {limit}");
            return Err(Error::unrestorable(why));
        }
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
        if self.index > HIGHEST {
            return Err(Error::malformed("an index that no pseudo terminal has"));
        }
        self.settings.as_ref().map_or(Ok(()), Settings::check)
    }

    fn object_check() -> Option<Box<dyn ObjectCheck<Self>>> {
        Some(Box::new(PairCheck::default()))
    }

    fn check(&self, file: &OpenFile, cx: &RestoreContext<'_>) -> Result<()> {
        let peers = peers(file, cx);
        if self.hung && !self.master {
            return Ok(());
        }
        if !self.master && !peers.iter().any(|(_, peer)| peer.master) {
            return Err(Error::unrestorable("its master is outside the image"));
        }
        let unopened = self.hung || self.locked || self.session == Some(cx.task.sid);
        if self.master && peers.is_empty() && !unopened {
            return Err(Error::unrestorable(
                "whoever has its slave open, if anybody has, is outside the image",
            ));
        }
        Ok(())
    }

    fn restore(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        if self.hung && !self.master {
            return self.hung_up(file, cx);
        }
        // The master has left all others at their numbers; whoever asks without it comes too early.
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
        let new = make(&master_file.link.0, master_file.flags, *index, cx)?;
        let got = tty::index(&new)?;
        if got != *index {
            let (old, new) = (format!("/dev/pts/{index}"), format!("/dev/pts/{got}"));
            cx.warnings.push(format!("{old}: its number is taken; it is {new} now"));
            cx.renamed_paths.insert(old.into_bytes(), new.into_bytes());
        }
        tty::set_locked(&new, false).at(|| "unlock it")?;
        let mut lost = Vec::new();
        let mut waiting = u64::from(*queued);
        let mut blocked = false;
        let mut slaves = Vec::new();
        for (slave_file, slave) in all.filter(|(_, pty)| !pty.master) {
            let fd = tty::peer(&new, slave_file.flags & OPEN).at(|| "open the slave")?;
            slaves.push((slave_file, fd, slave));
            waiting = waiting.max(u64::from(slave.queued));
            blocked |= slave.blocked;
        }
        let pieces = pieces(master_file, cx)?;
        // A slave that all have closed was open once.
        let of_ours = !pieces.is_empty() || blocked || *hung && slaves.is_empty();
        let flags = (libc::O_RDWR | libc::O_NONBLOCK) as u32;
        let slave = of_ours.then(|| tty::peer(&new, flags)).transpose();
        let slave = slave.at(|| "open the slave")?;
        match (settings, &slave) {
            (Some(settings), Some(slave)) if !pieces.is_empty() => {
                let ends = Ends { master: new.as_fd(), slave: slave.as_fd() };
                let line = settings.line.termios(0)?;
                let apply = || {
                    lost = settings.apply(new.as_fd(), true)?;
                    Ok(())
                };
                ends.put(&pieces, &line, apply).at(|| "put back what waited in it")?;
            }
            (Some(settings), _) => lost = settings.apply(new.as_fd(), true)?,
            (None, _) => lost.push("its settings are not in the image".to_owned()),
        }
        // Without --freeze it may have been busy, or drained meanwhile.
        let stopped = blocked && cx.image.head.frozen && (*queued as usize) < HOLDS;
        if let (true, Some(slave)) = (stopped, &slave) {
            stop(Ends { master: new.as_fd(), slave: slave.as_fd() })?;
        } else if blocked {
            lost.push("nothing could be written to it, and now it can".to_owned());
        }
        drop(slave);
        lost.extend(node.as_ref().map(|node| dress(got, node, cx)).transpose()?.flatten());
        if waiting > 0 && pieces.is_empty() {
            let why = "bytes waited in it, which are not in the image (scan with --freeze --data)";
            lost.push(why.to_owned());
        }
        for line in lost {
            cx.warnings.push(format!("/dev/pts/{got}: {line}"));
        }
        // What shuts others out comes last; once exclusive, not even we could open it again.
        for (_, slave, pty) in &slaves {
            if pty.exclusive {
                tty::set_exclusive(slave).at(|| "make the slave exclusive")?;
            }
        }
        if *exclusive {
            tty::set_exclusive(&new).at(|| "make it exclusive")?;
        }
        if *locked {
            tty::set_locked(&new, true).at(|| "lock it")?;
        }
        if *packet {
            tty::set_packet(&new, true).at(|| "packet mode")?;
        }
        let mut ends: Vec<(&OpenFile, OwnedFd)> = vec![(master_file, new)];
        ends.extend(slaves.into_iter().map(|(file, fd, _)| (file, fd)));
        let mine = ends.iter().position(|(end, _)| end.id == file.id).ok_or(Errno::EBADF)?;
        let mut opened = Opened::new(ends.swap_remove(mine).1, file.flags);
        let other =
            |(end, fd): (&OpenFile, OwnedFd)| OpenedTogether { file: end.id, fd, flags: end.flags };
        opened.others = ends.into_iter().map(other).collect();
        Ok(opened)
    }
}

impl Pty {
    /// A slave whose master is closed: that is how to get one.
    fn hung_up(&self, file: &OpenFile, cx: &mut RestoreContext<'_>) -> Result<Opened> {
        // Of one that has hung up nothing is left but its number, which is free again.
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
        } = *self;
        let master = make(b"/dev/ptmx", libc::O_RDWR as u32, index, cx)?;
        tty::set_locked(&master, false).at(|| "unlock it")?;
        let slave = tty::peer(&master, file.flags & OPEN).at(|| "open the slave")?;
        Ok(Opened::new(slave, file.flags))
    }
}

/// The other ends that are restored.
fn peers<'a>(file: &OpenFile, cx: &RestoreContext<'a>) -> Vec<(&'a OpenFile, &'a Pty)> {
    let peers = cx.others_of_object(file).into_iter();
    peers.filter_map(|peer| Some((peer, cx.image.record_as(peer.id)?))).collect()
}

fn node(inode: &Inode) -> (u32, u32, u32) {
    (inode.uid, inode.gid, inode.mode & 0o7777)
}

fn is_ready(copy: BorrowedFd<'_>, event: PollFlags) -> Result<bool> {
    Ok(ready(copy, event).at(|| "poll")?.contains(event))
}

/// Whether the other end is gone: POLLHUP.
fn hung(copy: BorrowedFd<'_>) -> Result<bool> {
    is_ready(copy, PollFlags::POLLHUP)
}

/// Who else is known to have a pseudo terminal open, or to be of its session and may have.
fn stranger(holders: &[Opener], captured: &[i32]) -> Option<i32> {
    let us = std::process::id() as i32;
    // What we have are copies, unless it is our own terminal.
    let ours = |it: &Opener| it.pid == us && !it.member;
    let has =
        |it: &Opener| !it.masters.is_empty() || it.fds.as_ref().is_none_or(|it| !it.is_empty());
    let mut others =
        holders.iter().filter(|it| !captured.contains(&it.pid) && !ours(it) && has(it));
    others.next().map(|it| it.pid)
}

/// How much was typed and not read, as a slave tells it that one of these processes has open.
fn typed(holders: &[Opener], captured: &[i32]) -> usize {
    let mut these = holders.iter().filter(|it| captured.contains(&it.pid));
    let told = these.find_map(|it| {
        let pidfd = sys::pidfd_open(it.pid).ok()?;
        let mut slaves = it.fds.iter().flatten();
        let slave = slaves.find_map(|&fd| sys::pidfd_getfd(pidfd.as_fd(), fd).ok())?;
        sys::readable(slave.as_fd()).ok()
    });
    told.unwrap_or(0)
}

/// Whether anything waits in it, or may: a line that was begun is seen only by reading it.
fn worth(Ends { master, slave }: Ends<'_>) -> Result<bool> {
    // poll(2) also has handed on what is on its way.
    let waits = |end| Ok::<_, Error>(is_ready(end, PollFlags::POLLIN)? || sys::readable(end)? > 0);
    let canonical = tty::line(slave).at(|| "the line")?.c_lflag & libc::ICANON != 0;
    Ok(canonical || waits(slave)? || waits(master)?)
}

/// Says why what waits cannot be taken out and put back as it was.
fn undisturbed(Ends { master, slave }: Ends<'_>, holders: &[Opener]) -> Result<()> {
    let no = |why: &str| Err(Error::unrestorable(why));
    let settings = Settings::read(slave).at(|| "the line")?;
    settings.check()?;
    if settings.locked.is_some() {
        return no("its settings are locked");
    }
    if settings.line.lflag & libc::EXTPROC != 0 || settings.line.iflag & libc::PARMRK != 0 {
        return no("EXTPROC or PARMRK is set: what was typed is not what would be");
    }
    if !is_ready(slave, PollFlags::POLLOUT)? || sys::readable(master)? >= HOLDS {
        return no("its output is stopped, or more than its master holds");
    }
    if tty::packet(master).at(|| "packet mode")? && is_ready(master, PollFlags::POLLPRI)? {
        return no("a status waits in it (packet mode)");
    }
    let flags = |pid: i32, fd: RawFd| {
        std::fs::read(format!("/proc/{pid}/fdinfo/{fd}")).map(|it| FdInfo::parse(&it).flags)
    };
    let asked = |it: &&Opener| {
        let mut fds = it.fds.iter().flatten().chain(&it.masters);
        fds.any(|&fd| flags(it.pid, fd).is_ok_and(|it| it & libc::O_ASYNC as u32 != 0))
    };
    match holders.iter().find(asked) {
        Some(it) => no(&format!("process {} would be told by a signal (O_ASYNC)", it.pid)),
        None => Ok(()),
    }
}

/// The ends of a pair have one index and at most one master, and its contents are what a terminal
/// with its settings can hold.
#[derive(Default)]
struct PairCheck {
    index: Option<u32>,
    masters: usize,
    /// An end has no settings, and so no contents.
    unset: bool,
    /// The settings of an end are not those of canonical mode.
    raw: bool,
    /// Bytes that wait at the master, before the line discipline, and in it.
    sum: [usize; 3],
    /// Pieces of what was typed.
    typed: usize,
}

impl ObjectCheck<Pty> for PairCheck {
    fn file(&mut self, record: &Pty, _: &OpenFile) -> Result<()> {
        self.masters += usize::from(record.master);
        if *self.index.get_or_insert(record.index) != record.index || self.masters > 1 {
            return Err(Error::malformed("the ends of its pseudo terminal do not fit together"));
        }
        // Nothing is put back through a slave that has hung up.
        if record.master || !record.hung {
            match &record.settings {
                None => self.unset = true,
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
            Some(Typed::Open) => self.sum[1] == 0,
            Some(Typed::Line) => canonical && piece.len > 0,
            Some(Typed::Whole) => canonical && piece.len > 0 && self.typed == 0,
            Some(Typed::Eof) => canonical,
            Some(Typed::Quote) => canonical && piece.len == 0,
        };
        self.sum[place] += len;
        self.typed += usize::from(what.is_some());
        if !fits || self.unset {
            return Err(Error::malformed("its contents are not what can wait in a terminal"));
        }
        // Outside canonical mode one byte less.
        if self.sum[0] > HOLDS || self.sum[1] > BEFORE || self.sum[2] > HOLDS + 1 {
            return Err(Error::malformed("more waits in it than a terminal holds"));
        }
        Ok(())
    }
}

/// What waited in it.
fn pieces(file: &OpenFile, cx: &RestoreContext<'_>) -> Result<Pieces> {
    let mut pieces = Pieces::new();
    cx.contents(file.object, |chunk, bytes| {
        let typed = chunk.with.as_ref().and_then(|with| with.typed);
        pieces.push((typed, bytes.to_vec()));
        Ok(())
    })?;
    Ok(pieces)
}

/// Stops the output, by the character if there is one, so that whoever has the terminal can let it
/// go on: which of both it was is not known.
fn stop(ends: Ends<'_>) -> Result<()> {
    let line = tty::line(ends.slave).at(|| "the line")?;
    match line.c_cc[libc::VSTOP] {
        character if line.c_iflag & libc::IXON != 0 && character != 0 => ends.stop(character),
        _ => tty::set_stopped(ends.slave, true).map_err(Error::from),
    }
    .at(|| "stop its output")
}

/// Opens a new master, with this index if that is free: the kernel gives the lowest, so lower ones
/// are held meanwhile.
fn make(path: &[u8], flags: u32, index: u32, cx: &RestoreContext<'_>) -> Result<OwnedFd> {
    let path = if is_ptmx(path) { path } else { b"/dev/ptmx" };
    let node = cx.open(path, libc::O_PATH as u32)?;
    if crate::proc::inode_of(node.as_fd())?.rdev != Some(PTMX) {
        return Err(Error::unrestorable("/dev/ptmx is not what opens pseudo terminals"));
    }
    let mut held = Vec::new();
    loop {
        let new = match cx.open(path, flags) {
            // Another number is better than none.
            Err(_) if !held.is_empty() => break,
            other => other?,
        };
        let got = tty::index(&new)?;
        if got == index {
            return Ok(new);
        }
        held.push(new);
        if got > index || held.len() > NEAR {
            break;
        }
    }
    Ok(held.swap_remove(0))
}

/// Gives the slave's node its owner and permissions; what could not be given. Opening the slave for
/// that would show at the master.
fn dress(index: u32, node: &(u32, u32, u32), cx: &RestoreContext<'_>) -> Result<Option<String>> {
    let place = cx.open(format!("/dev/pts/{index}").as_bytes(), libc::O_PATH as u32)?;
    let has = crate::proc::inode_of(place.as_fd())?;
    if has.rdev != Some(terminal::slave_device(index)) {
        return Err(Error::unrestorable("/dev/pts is not where /dev/ptmx makes slaves"));
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
        Err(Errno::EPERM | Errno::EINVAL) => {
            Ok(Some(format!("it was of {uid}:{gid}, whom we may not give it to")))
        }
        Err(errno) => Err(errno).at(|| "chown the slave"),
    }
}
