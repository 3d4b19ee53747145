//! What a forked task does.

use super::state::{BORN, Before, RESTORED, Services, TreeRestore};
use crate::error::{At, Result};
use crate::sys::credentials;
use crate::sys::fork::{self};
use crate::table::fdstore::Store;
use nix::sys::signal::{SigmaskHow, sigprocmask};
use nix::unistd::{getpid, getppid};
use std::convert::Infallible;

impl TreeRestore<'_> {
    /// What a process of the tree does; it returns only to fail.
    pub(super) fn live(&self, at: usize, before: Before<'_>) -> Result<Infallible> {
        let nodes = &self.tree.shape.nodes[at];
        self.shared.set(self.pid_cell(at), getpid().as_raw());
        credentials::die_with_parent(true).at(|| "PR_SET_PDEATHSIG")?;
        if getppid().as_raw() != self.parent(at) {
            fork::end(1);
        }
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.mask), None)?;
        match nodes.owner == at {
            true => self.own(at, before),
            false => self.share(at, before),
        }
    }

    /// One that shares the table of another, who restores it.
    pub(super) fn share(&self, at: usize, before: Before<'_>) -> Result<Infallible> {
        let meter = self.meter();
        let socket = before.services.store.map(|number| self.table.known(number));
        let services = Services { store: socket, root: None };
        let store = services.store(self.shared);
        self.children(at, before.services, store.as_ref(), None)?;
        self.arrive(at, BORN);
        self.join(at)?;
        self.foreground(at)?;
        self.surround(at)?;
        self.arrive(at, RESTORED);
        self.reap_stand_ins(at);
        self.put_down(at, &meter, store.as_ref().map_or(0, Store::messages));
        self.go_on(at, &[])
    }
}
