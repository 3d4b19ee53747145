//! The record of a task, from stat, status, limits and links in /proc/PID.

use super::process::Process;
use super::read::{bracketed, read_at};
use super::status::{StatusText, hex, open_files};
use crate::error::Result;
use crate::image::{Bytes, Credentials, Table, Task, Terminal};
use crate::messages::Messages;
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::os::fd::RawFd;

impl Process {
    /// The record of a task in an image. `table` is the id of its descriptor table, `highest` the
    /// highest number in it. Says what could not be read, and is then not in the record.
    ///
    /// Fails with status 5 if the process has ended.
    pub fn task(
        &self,
        table: u32,
        highest: Option<RawFd>,
        messages: &mut Messages<'_>,
    ) -> Result<Task> {
        let stat = self.stat()?;
        let status = self.read("status")?;
        let status = StatusText(&status);
        let limits = self.read("limits")?;
        let number = |number: usize| stat.field(number) as i32;
        let device = stat.field(7) as u32;
        let cmdline = self.read("cmdline").unwrap_or_else(|err| {
            messages.push(err.to_string());
            Vec::new()
        });
        let cgroup = self.cgroup().unwrap_or_else(|errno| {
            messages.push(format!("cgroup: {}", errno.desc()));
            None
        });
        let mut link = |name: &str| match self.read_link(name) {
            Ok(link) => Some(link),
            // A thread of the kernel has no program.
            Err(Errno::ENOENT) => None,
            Err(errno) => {
                messages.push(format!("{name}: {}", errno.desc()));
                None
            }
        };
        let args = match cmdline.strip_suffix(b"\0") {
            Some(args) => args.split(|&byte| byte == 0).map(Bytes::from).collect(),
            None => Vec::new(),
        };
        let mut namespaces = BTreeMap::new();
        for name in ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"] {
            let inode = link(&format!("ns/{name}")).and_then(|link| bracketed(&link.0));
            namespaces.extend(inode.map(|inode| (name.to_owned(), inode)));
        }
        Ok(Task {
            pid: self.pid,
            tgid: self.tgid,
            ppid: number(4),
            pgid: number(5),
            sid: number(6),
            start: self.start,
            comm: Bytes(stat.name().to_vec()),
            exe: link("exe"),
            args,
            cwd: link("cwd"),
            root: link("root"),
            umask: status.octal("Umask"),
            credentials: Credentials {
                uids: status.four("Uid"),
                gids: status.four("Gid"),
                groups: status.words("Groups").filter_map(|word| word.parse().ok()).collect(),
                caps: ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
                    .map(|key| status.words(key).next().map_or(0, hex)),
            },
            namespaces,
            cgroup,
            table: Table {
                id: table,
                capacity: status.words("FDSize").next().map_or(0, |n| n.parse().unwrap_or(0)),
                highest: highest.map(|highest| highest as u32),
                limit: open_files(&limits).unwrap_or((0, 0)),
            },
            terminal: (device != 0).then(|| Terminal { device, foreground: number(8), path: None }),
            stopped: self.stopped,
        })
    }

    /// Its path in the cgroup v2 hierarchy: cgroups(7). None if there is no such hierarchy.
    fn cgroup(&self) -> nix::Result<Option<Bytes>> {
        let text = match read_at(self.dir()?, "cgroup") {
            // A kernel without CONFIG_CGROUPS has no such file.
            Err(Errno::ENOENT) => return Ok(None),
            read => read?,
        };
        // The names of cgroups have no newlines: the kernel refuses them.
        let path = text.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"0::"));
        Ok(path.map(Bytes::from))
    }
}
