//! Executors: what runs the operations of a restore, on the table of some process.

use crate::error::Result;
use crate::kind::context::Held;
use crate::operation::{Operation, Outcome};
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

/// Runs operations on a descriptor table, which may be another process's.
pub trait Executor {
    /// Reports whether nothing is made: the operations are only listed.
    fn is_paper(&self) -> bool {
        false
    }

    /// Places descriptions, each at its number. `operations` are the [`Operation::Place`]s of them.
    /// Gives a descriptor in this process for each.
    fn place(&mut self, fds: Vec<OwnedFd>, operations: &[Operation]) -> Result<Vec<Held>>;

    /// A descriptor in this process for what is at a number of the table already.
    fn held(&self, number: RawFd) -> Result<Held>;

    /// A descriptor in this process for what the caller has at a number.
    fn inherited(&self, number: RawFd) -> Result<Held>;

    /// Makes the terminal behind a descriptor of this process the controlling one of the process.
    fn control(&mut self, terminal: BorrowedFd<'_>, operation: &Operation) -> Result<()>;

    /// Runs an operation on what is placed.
    fn run(&mut self, operation: &Operation) -> Result<Outcome>;

    /// Tells that descriptions are about to be made for so many numbers from `number` on, which
    /// follow `expected` after a hole.
    fn prepare(&mut self, _expected: RawFd, _number: RawFd, _makes: usize) -> Result<()> {
        Ok(())
    }

    /// Undoes [`Executor::prepare`].
    fn release(&mut self) -> Result<()> {
        Ok(())
    }

    /// Moves all that is not at its final number yet. Gives the moves that were made.
    fn move_to_final(&mut self) -> Result<Vec<(RawFd, RawFd)>> {
        Ok(Vec::new())
    }
}

/// The executor that only lists: for `--dry-run`, and for tests of plans.
#[derive(Debug, Default)]
pub struct Paper {
    /// The operations, in their order.
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
