//! What a forked task does.

use super::state::{BORN, Before, LOCK, RESTORED, TreeRestore};
use crate::error::{At, Result};
use crate::sys::credentials;
use crate::sys::fork::{self};
use crate::table::driver::With;
use crate::table::fdstore::Store;
use nix::errno::Errno;
use nix::sys::signal::{SigmaskHow, sigprocmask};
use nix::unistd::{getpid, getppid};
use std::collections::HashMap;
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
        let plan =
            self.tree.tables[self.tree.shape.nodes[at].owner].as_ref().ok_or(Errno::EBADF)?;
        let meter = self.meter();
        let store = before.services.store.map(|placed| Store::seated(placed, (self.shared, LOCK)));
        let with = With { handed: HashMap::new(), store: store.as_ref(), filler: None };
        self.children(at, before.services, &with, None)?;
        self.arrive(at, BORN);
        self.join(at)?;
        self.foreground(at)?;
        self.surround(at)?;
        self.arrive(at, RESTORED);
        self.reap_stand_ins(at);
        self.put_down(at, &meter, store.as_ref().map_or(0, Store::messages));
        self.go_on(at, plan)
    }
}
