//! A memory cgroup for a test: version 1, or version 2 where that has the memory controller. The
//! suite and the benchmark each use a part of this file.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A cgroup that is removed when this is dropped; no process may be left in it then.
pub(crate) struct Cgroup {
    path: PathBuf,
    unified: bool,
}

impl Cgroup {
    /// Creates a cgroup. Gives the reason if this system or user cannot.
    pub(crate) fn new() -> Result<Cgroup, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (root, unified) = root().ok_or("no memory cgroup is mounted")?;
        if unified {
            // The controller may be enabled already.
            let _ = fs::write(root.join("cgroup.subtree_control"), "+memory");
        }
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = root.join(format!("fdkit.{}.{next}", std::process::id()));
        fs::create_dir(&path).map_err(|err| format!("{}: {err}", path.display()))?;
        let cgroup = Cgroup { path, unified };
        let usage = cgroup.file("memory.usage_in_bytes", "memory.current");
        match usage.exists() {
            true => Ok(cgroup),
            false => Err(format!("{}: it does not count memory", usage.display())),
        }
    }

    fn file(&self, first: &str, second: &str) -> PathBuf {
        self.path.join(if self.unified { second } else { first })
    }

    /// The words that run a command in the cgroup.
    pub(crate) fn enter(&self) -> [String; 4] {
        let procs = self.path.join("cgroup.procs");
        let line = format!("echo $$ >'{}' && exec \"$@\"", procs.display());
        ["sh".into(), "-c".into(), line, "sh".into()]
    }

    /// Limits the memory of the cgroup, in bytes, without swap.
    #[allow(dead_code)]
    pub(crate) fn limit(&self, bytes: u64) {
        let file = self.file("memory.limit_in_bytes", "memory.max");
        fs::write(&file, bytes.to_string()).unwrap_or_else(|err| panic!("{file:?}: {err}"));
        // Without swap accounting this file does not exist.
        let swap = if self.unified { 0 } else { bytes };
        let file = self.file("memory.memsw.limit_in_bytes", "memory.swap.max");
        let _ = fs::write(file, swap.to_string());
    }

    /// The peak of the memory of all kinds, in bytes.
    #[allow(dead_code)]
    pub(crate) fn peak(&self) -> Option<u64> {
        number(&self.file("memory.max_usage_in_bytes", "memory.peak"))
    }

    /// The kernel memory of the cgroup, in bytes: tables, stacks, page tables.
    #[allow(dead_code)]
    pub(crate) fn kernel(&self) -> Option<u64> {
        match self.unified {
            false => number(&self.path.join("memory.kmem.usage_in_bytes")),
            true => {
                let text = fs::read_to_string(self.path.join("memory.stat")).ok()?;
                let line = text.lines().find_map(|line| line.strip_prefix("kernel "))?;
                line.trim().parse().ok()
            }
        }
    }

    /// The peak of the kernel memory, in bytes; version 2 does not have it.
    #[allow(dead_code)]
    pub(crate) fn kernel_peak(&self) -> Option<u64> {
        number(&self.path.join("memory.kmem.max_usage_in_bytes"))
    }

    /// The processes in the cgroup.
    pub(crate) fn processes(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A process that was just killed may still be in the cgroup.
        for _ in 0..500 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The directory where the memory controller is mounted, and whether it is version 2.
fn root() -> Option<(PathBuf, bool)> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mut mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        Some((words.next()?.to_owned(), words.next()?.to_owned(), words.next()?.to_owned()))
    });
    mounts.find_map(|(path, kind, options)| {
        let path = PathBuf::from(path);
        let has = |text: &str, by: &[char]| text.split(by).any(|word| word == "memory");
        match kind.as_str() {
            "cgroup" if has(&options, &[',']) => Some((path, false)),
            "cgroup2" => {
                let controllers = fs::read_to_string(path.join("cgroup.controllers")).ok()?;
                has(&controllers, &[' ', '\n']).then_some((path, true))
            }
            _ => None,
        }
    })
}
