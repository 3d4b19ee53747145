//! The executor that restores the table of this process.

use crate::ctty;
use crate::error::{At, Error, Result};
use crate::kind::context::Held;
use crate::lock;
use crate::operation::{Operation, Outcome};
use crate::placement::{self, Placement};
use crate::sys::own_table::{OwnTable, PlacedFd, is_open};
use crate::sys::{self, Owner, epoll};
use crate::table::executor::Executor;
use crate::table::shrink;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::dup;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Runs operations by direct system calls.
pub struct DirectExecutor<'t> {
    table: &'t OwnTable,
    /// [`Placement::Late`]: descriptors stay where they come, and are moved at the end.
    late: bool,
    /// The caller's descriptors that are copied to other numbers, by their own numbers.
    inherited: HashMap<RawFd, PlacedFd>,
    /// Any open descriptor, with which holes are filled.
    filler: Option<RawFd>,
    /// Numbers that are filled for a while.
    held: Vec<(RawFd, RawFd)>,
    /// The current numbers of descriptors that are not at their final numbers, by those.
    elsewhere: HashMap<RawFd, RawFd>,
    /// Second numbers that wait for the moves: a final number and the new one.
    dups: Vec<(RawFd, RawFd)>,
}

impl<'t> DirectExecutor<'t> {
    /// An executor for the table of this process. `filler` is the number of any open descriptor.
    pub fn new(
        table: &'t OwnTable,
        policy: Placement,
        filler: Option<RawFd>,
    ) -> DirectExecutor<'t> {
        DirectExecutor {
            table,
            late: policy == Placement::Late,
            inherited: HashMap::new(),
            filler,
            held: Vec::new(),
            elsewhere: HashMap::new(),
            dups: Vec::new(),
        }
    }

    /// With these descriptors of the caller, by the numbers that they had.
    pub fn with_inherited(self, inherited: HashMap<RawFd, PlacedFd>) -> DirectExecutor<'t> {
        DirectExecutor { inherited, ..self }
    }

    /// Changes whether descriptors stay where they come until [`Executor::move_to_final`].
    pub(crate) fn set_late(&mut self, late: bool) {
        self.late = late;
    }

    /// Forgets what is not at its final number, and never will be.
    pub(crate) fn forget_moves(&mut self) {
        self.elsewhere.clear();
        self.dups.clear();
    }

    /// Closes what it has of the caller's for a while.
    pub fn close_inherited(&mut self) {
        self.inherited.drain().for_each(|(_, placed)| self.table.close(placed));
    }

    fn place_one(&mut self, fd: OwnedFd, number: RawFd) -> Result<Held> {
        if self.late {
            let placed = self.table.adopt(fd);
            if placed.number() != number {
                self.elsewhere.insert(number, placed.number());
            }
            return Ok(Held::Placed(placed));
        }
        self.filler = Some(number);
        let placed = self.table.place(fd, number).at(|| format!("place it at {number}"))?;
        Ok(Held::Placed(placed))
    }

    /// The descriptor whose final number this is. It must be open.
    fn at(&self, number: RawFd) -> PlacedFd {
        self.table.known(self.elsewhere.get(&number).copied().unwrap_or(number))
    }

    fn dup(&mut self, from: RawFd, number: RawFd) -> Result<()> {
        if self.late {
            self.dups.push((from, number));
            return Ok(());
        }
        let from = self.at(from);
        self.table.dup(from.as_fd(), number).at(|| format!("dup to {number}")).map(drop)
    }

    fn add_members(&self, number: RawFd, members: &[epoll::NewMember]) -> Result<Outcome> {
        let fd = self.at(number);
        let moved = members.iter().filter(|member| member.source != member.number);
        let added = match moved.map(|member| member.number).max() {
            None => epoll::add_members(fd.as_fd(), members),
            Some(highest) => {
                // A copy of the table has them at their exact numbers for a moment.
                let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
                let above = highest as u64 >= soft;
                if above {
                    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
                }
                let added = epoll::add_members(fd.as_fd(), members);
                if above {
                    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
                }
                added
            }
        };
        let errno = |outcome: nix::Result<()>| outcome.err().map_or(0, |errno| errno as i32);
        let added = added.at(|| "a copy of the table")?;
        Ok(Outcome::Members(added.into_iter().map(errno).collect()))
    }
}

/// The outcome of a lock: refused with status 6 is an answer.
fn refused(done: Result<()>) -> Result<Outcome> {
    match done {
        Ok(()) => Ok(Outcome::Done),
        Err(why) => Ok(Outcome::Refused(why.to_string())),
    }
}

impl Executor for DirectExecutor<'_> {
    fn place(&mut self, fds: Vec<OwnedFd>, operations: &[Operation]) -> Result<Vec<Held>> {
        let number = |operation: &Operation| match operation {
            Operation::Place { number, .. } => Ok(*number),
            _ => Err(Error::from(Errno::EINVAL)),
        };
        let numbers = operations.iter().map(number).collect::<Result<Vec<RawFd>>>()?;
        let mut left: Vec<(OwnedFd, RawFd)> = fds.into_iter().zip(numbers).collect();
        let mut held = Vec::new();
        // From the end: what came too low may be where an earlier one belongs.
        while let Some((fd, number)) = left.pop() {
            if !self.late && fd.as_raw_fd() != number {
                for (other, _) in left.iter_mut().filter(|(fd, _)| fd.as_raw_fd() == number) {
                    *other = dup(&*other).at(|| "dup")?;
                }
            }
            held.push(self.place_one(fd, number)?);
        }
        held.reverse();
        Ok(held)
    }

    fn held(&self, number: RawFd) -> Result<Held> {
        Ok(Held::Placed(self.at(number)))
    }

    fn inherited(&self, number: RawFd) -> Result<Held> {
        let copy = self.inherited.get(&number).map(PlacedFd::number);
        Ok(Held::Placed(self.table.known(copy.unwrap_or(number))))
    }

    fn control(&mut self, terminal: BorrowedFd<'_>, operation: &Operation) -> Result<()> {
        match operation {
            Operation::ControllingTerminal { steal, .. } => ctty::seize(terminal, *steal),
            _ => Err(Errno::EINVAL.into()),
        }
    }

    fn run(&mut self, operation: &Operation) -> Result<Outcome> {
        match operation {
            // These are placed, or finished, by the driver.
            Operation::Place { .. }
            | Operation::Finish { .. }
            | Operation::ControllingTerminal { .. } => return Err(Errno::EINVAL.into()),
            Operation::Inherit { number, from } => {
                if let Some(copy) = self.inherited.get(from).filter(|_| from != number) {
                    let at = || format!("dup {from} to {number}");
                    self.table.dup(copy.as_fd(), *number).at(at)?;
                }
            }
            Operation::Dup { from, number } => self.dup(*from, *number)?,
            Operation::EpollMembers { number, members } => {
                return self.add_members(*number, members);
            }
            Operation::Owner { number, owner, signal } => {
                let fd = self.at(*number);
                if *signal != 0 {
                    sys::set_signal(fd.as_fd(), *signal).at(|| "F_SETSIG")?;
                }
                if let Some((kind, id)) = *owner {
                    sys::set_owner(fd.as_fd(), Owner { kind, id }).at(|| "F_SETOWN_EX")?;
                }
            }
            Operation::Async { number, flags } => {
                let flags = OFlag::from_bits_retain(*flags as i32);
                fcntl(self.at(*number).as_fd(), FcntlArg::F_SETFL(flags)).at(|| "O_ASYNC")?;
            }
            Operation::Lock { number, lock } => {
                return refused(lock::take(self.at(*number).as_fd(), lock));
            }
            Operation::TestLock { number, lock } => {
                return refused(lock::test(self.at(*number).as_fd(), lock));
            }
            Operation::Close { number } => self.table.close(self.at(*number)),
            Operation::CloseOnExec { first, last } => {
                self.table.close_on_exec(*first, *last).at(|| "FD_CLOEXEC")?;
            }
            Operation::Shrink { capacity } => {
                shrink::to(*capacity).at(|| "shrink the table")?;
            }
        }
        Ok(Outcome::Done)
    }

    /// Fills the hole if that costs less than moving what comes after it: the lowest free number is
    /// then the right one again.
    fn prepare(&mut self, expected: RawFd, number: RawFd, makes: usize) -> Result<()> {
        let hole = (number - expected) as usize;
        let Some(filler) = self.filler.filter(|_| hole > 0 && !self.late && hole < 2 * makes)
        else {
            return Ok(());
        };
        let filler = self.at(filler);
        for number in expected..number {
            // A service descriptor may be in the hole; it fills its number as well.
            match self.table.dup(filler.as_fd(), number) {
                Ok(placed) => match self.held.last_mut() {
                    Some((_, last)) if *last + 1 == placed.number() => *last = placed.number(),
                    _ => self.held.push((placed.number(), placed.number())),
                },
                Err(Errno::EBUSY) => (),
                Err(errno) => return Err(errno).at(|| format!("hold number {number}")),
            }
        }
        Ok(())
    }

    fn release(&mut self) -> Result<()> {
        for (first, last) in std::mem::take(&mut self.held) {
            self.table.close_range(first, last).at(|| "close_range")?;
        }
        Ok(())
    }

    fn move_to_final(&mut self) -> Result<Vec<(RawFd, RawFd)>> {
        let elsewhere = std::mem::take(&mut self.elsewhere);
        let moves: Vec<(RawFd, RawFd)> = elsewhere.iter().map(|(to, from)| (*from, *to)).collect();
        let mut pairs: Vec<(u32, u32)> =
            moves.iter().map(|&(from, to)| (from as u32, to as u32)).collect();
        pairs.sort_unstable();
        let highest = pairs.iter().map(|&(from, to)| from.max(to)).max().unwrap_or(0);
        // What is where it belongs moves nowhere, and is in nobody's way.
        let free = |number: &u32| !is_open(*number as RawFd);
        let spare = (highest + 1..).find(|number| pairs.is_empty() || free(number));
        let spare = spare.unwrap_or(highest + 1);
        for (from, to) in placement::moves(&pairs, spare) {
            let placed = self.at(from as RawFd);
            self.table.shift(placed, to as RawFd).at(|| format!("move {from} to {to}"))?;
        }
        for (from, number) in std::mem::take(&mut self.dups) {
            let from = self.at(from);
            self.table.dup(from.as_fd(), number).at(|| format!("dup to {number}"))?;
        }
        Ok(moves)
    }
}
