//! The executor for the table of this process.

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

/// Runs operations on the table of this process, by direct system calls.
pub struct DirectExecutor<'t> {
    table: &'t OwnTable,
    /// [`Placement::Late`]: descriptors stay at the numbers where they are opened, and are moved at
    /// the end.
    late: bool,
    /// The copies of the caller's descriptors that are placed at other numbers, by the caller's
    /// numbers.
    inherited: HashMap<RawFd, PlacedFd>,
    /// The final number of any open descriptor, which is duplicated to fill gaps.
    filler: Option<RawFd>,
    /// The ranges of numbers that are filled for a while: first and last number.
    filled: Vec<(RawFd, RawFd)>,
    /// The current numbers of descriptors that are not at their final numbers, by final number.
    current: HashMap<RawFd, RawFd>,
    /// The dups to make after the moves: a final number of the description, and the new number.
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
            filled: Vec::new(),
            current: HashMap::new(),
            dups: Vec::new(),
        }
    }

    /// The executor with these copies of the caller's descriptors, by the caller's numbers.
    pub fn with_inherited(self, inherited: HashMap<RawFd, PlacedFd>) -> DirectExecutor<'t> {
        DirectExecutor { inherited, ..self }
    }

    /// Sets whether descriptors stay where they are opened until [`Executor::move_to_final`].
    pub(crate) fn set_late(&mut self, late: bool) {
        self.late = late;
    }

    /// Cancels all moves and dups that are still to be made.
    pub(crate) fn forget_moves(&mut self) {
        self.current.clear();
        self.dups.clear();
    }

    /// Closes the copies of the caller's descriptors.
    pub fn close_inherited(&mut self) {
        self.inherited.drain().for_each(|(_, placed)| self.table.close(placed));
    }

    fn place_one(&mut self, fd: OwnedFd, number: RawFd) -> Result<Held> {
        if self.late {
            let placed = self.table.adopt(fd);
            if placed.number() != number {
                self.current.insert(number, placed.number());
            }
            return Ok(Held::Placed(placed));
        }
        self.filler = Some(number);
        let placed = self.table.place(fd, number).at(|| format!("place it at {number}"))?;
        Ok(Held::Placed(placed))
    }

    /// The descriptor with this final number, which must be open, at its current number.
    fn at(&self, number: RawFd) -> PlacedFd {
        self.table.known(self.current.get(&number).copied().unwrap_or(number))
    }

    /// Closes the descriptor with this final number, at its current number.
    fn close(&mut self, number: RawFd) {
        let current = self.current.remove(&number).unwrap_or(number);
        self.table.close(self.table.known(current));
        // A closed number fills no gap.
        self.filler = self.filler.filter(|filler| *filler != number);
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
        let renumbered = members.iter().filter(|member| member.source != member.number);
        let added = match renumbered.map(|member| member.number).max() {
            None => epoll::add_members(fd.as_fd(), members),
            Some(highest) => {
                // A copy of the table has the members at these numbers while they are added. They
                // may be above the soft limit.
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

/// The outcome of taking or testing a lock: an error of status 6 is an outcome.
fn lock_outcome(done: Result<()>) -> Result<Outcome> {
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
        let mut held: Vec<(RawFd, Held)> = Vec::new();
        // From the last to the first: a descriptor can be open at the final number of an earlier
        // one.
        while let Some((fd, number)) = left.pop() {
            if !self.late && fd.as_raw_fd() != number {
                for (other, _) in left.iter_mut().filter(|(fd, _)| fd.as_raw_fd() == number) {
                    *other = dup(&*other).at(|| "dup")?;
                }
            }
            match self.place_one(fd, number) {
                Ok(placed) => held.push((number, placed)),
                Err(why) => {
                    held.into_iter().for_each(|(number, _)| self.close(number));
                    return Err(why);
                }
            }
        }
        let held = held.into_iter().rev().map(|(_, held)| held).collect();
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
            // The driver uses `place` and `control`, and finishes descriptions itself.
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
                return lock_outcome(lock::take(self.at(*number).as_fd(), lock));
            }
            Operation::TestLock { number, lock } => {
                return lock_outcome(lock::test(self.at(*number).as_fd(), lock));
            }
            Operation::Close { number } => self.close(*number),
            Operation::CloseOnExec { first, last } => {
                self.table.close_on_exec(*first, *last).at(|| "FD_CLOEXEC")?;
            }
            Operation::Shrink { capacity } => {
                shrink::to(*capacity)?;
            }
        }
        Ok(Outcome::Done)
    }

    /// Fills the gap if that takes fewer system calls than moving the descriptors after it: the
    /// lowest free number is then the final one.
    fn fill_gap(&mut self, expected: RawFd, number: RawFd, count: usize) -> Result<()> {
        let gap = (number - expected) as usize;
        let Some(filler) = self.filler.filter(|_| gap > 0 && !self.late && gap < 2 * count) else {
            return Ok(());
        };
        let filler = self.at(filler);
        for number in expected..number {
            // EBUSY: a service descriptor has the number, and so fills it.
            match self.table.dup(filler.as_fd(), number) {
                Ok(placed) => match self.filled.last_mut() {
                    Some((_, last)) if *last + 1 == placed.number() => *last = placed.number(),
                    _ => self.filled.push((placed.number(), placed.number())),
                },
                Err(Errno::EBUSY) => (),
                Err(errno) => return Err(errno).at(|| format!("dup to {number}")),
            }
        }
        Ok(())
    }

    fn close_gaps(&mut self) -> Result<()> {
        for (first, last) in std::mem::take(&mut self.filled) {
            self.table.close_range(first, last).at(|| "close_range")?;
        }
        Ok(())
    }

    fn move_to_final(&mut self) -> Result<Vec<(RawFd, RawFd)>> {
        let current = std::mem::take(&mut self.current);
        let moves: Vec<(RawFd, RawFd)> = current.iter().map(|(to, from)| (*from, *to)).collect();
        let mut pairs: Vec<(u32, u32)> =
            moves.iter().map(|&(from, to)| (from as u32, to as u32)).collect();
        pairs.sort_unstable();
        let highest = pairs.iter().map(|&(from, to)| from.max(to)).max().unwrap_or(0);
        // A spare number for cycles of moves: above all moved numbers, and not open.
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
