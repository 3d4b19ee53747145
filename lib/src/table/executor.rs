//! Executors, which run the operations of a restore on the descriptor table of a process.

use crate::error::Result;
use crate::kind::context::Held;
use crate::operation::{Operation, Outcome};
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

/// Runs operations on a descriptor table, which may be that of another process.
pub trait Executor {
    /// Reports whether the executor only lists the operations. Then nothing is opened for it.
    fn is_paper(&self) -> bool {
        false
    }

    /// Places descriptors, each at its number. `operations` has an [`Operation::Place`] for each of
    /// `fds`. Returns a descriptor in this process for each.
    fn place(&mut self, fds: Vec<OwnedFd>, operations: &[Operation]) -> Result<Vec<Held>>;

    /// A descriptor in this process for an open number of the table.
    fn held(&self, number: RawFd) -> Result<Held>;

    /// A descriptor in this process for a number of the caller, which may be placed elsewhere.
    fn inherited(&self, number: RawFd) -> Result<Held>;

    /// Makes a terminal the controlling terminal of the process:
    /// [`Operation::ControllingTerminal`]. `terminal` is a descriptor in this process.
    fn control(&mut self, terminal: BorrowedFd<'_>, operation: &Operation) -> Result<()>;

    /// Runs an operation on numbers that are placed.
    fn run(&mut self, operation: &Operation) -> Result<Outcome>;

    /// Prepares for a gap in the numbers of the table: the next description is for `number`, though
    /// the lowest free number is `expected`; `count` descriptions are opened in the run after the
    /// gap.
    fn fill_gap(&mut self, _expected: RawFd, _number: RawFd, _count: usize) -> Result<()> {
        Ok(())
    }

    /// Closes the numbers that [`Executor::fill_gap`] has opened.
    fn close_gaps(&mut self) -> Result<()> {
        Ok(())
    }

    /// Moves all descriptors to their final numbers. Returns the moves that were made, as pairs of
    /// the old and the new number.
    fn move_to_final(&mut self) -> Result<Vec<(RawFd, RawFd)>> {
        Ok(Vec::new())
    }
}

/// The executor on paper, which only lists the operations: for `--dry-run`, and for unit tests.
#[derive(Debug, Default)]
pub struct Paper {
    /// The operations, in order.
    pub operations: Vec<Operation>,
}

impl Executor for Paper {
    fn is_paper(&self) -> bool {
        true
    }

    fn place(&mut self, _: Vec<OwnedFd>, operations: &[Operation]) -> Result<Vec<Held>> {
        self.operations.extend(operations.iter().cloned());
        Ok(Vec::new())
    }

    fn held(&self, _: RawFd) -> Result<Held> {
        Err(nix::errno::Errno::EBADF.into())
    }

    fn inherited(&self, number: RawFd) -> Result<Held> {
        self.held(number)
    }

    fn control(&mut self, _: BorrowedFd<'_>, operation: &Operation) -> Result<()> {
        self.operations.push(operation.clone());
        Ok(())
    }

    fn run(&mut self, operation: &Operation) -> Result<Outcome> {
        self.operations.push(operation.clone());
        Ok(Outcome::Done)
    }
}
