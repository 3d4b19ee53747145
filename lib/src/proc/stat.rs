//! The line of /proc/PID/stat: proc_pid_stat(5).

use nix::libc;

/// State and numbers of a process or thread, by the names of proc_pid_stat(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    comm: Vec<u8>,
    state: u8,
    fields: Vec<i64>,
}

impl Stat {
    /// Parses the line. None if it is not understood.
    pub fn parse(text: &[u8]) -> Option<Stat> {
        let open = text.iter().position(|&byte| byte == b'(')?;
        // The name may contain blanks and parentheses.
        let close = text.iter().rposition(|&byte| byte == b')')?;
        let rest = std::str::from_utf8(text.get(close + 1..)?).ok()?;
        let field = |word: &str| word.parse().or_else(|_| word.parse::<u64>().map(|n| n as i64));
        let fields: Vec<i64> = rest.split_whitespace().map(|w| field(w).unwrap_or(0)).collect();
        let state = *rest.trim_start().as_bytes().first()?;
        let comm = text.get(open + 1..close)?.to_vec();
        (fields.len() > 25).then_some(Stat { comm, state, fields })
    }

    /// The name of the program: comm, at most 15 bytes.
    pub fn name(&self) -> &[u8] {
        &self.comm
    }

    /// Reads the line of a process or thread. None if there is none with this id.
    pub fn of(pid: i32) -> Option<Stat> {
        Stat::parse(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Reads the line of a process. None if there is none with this id.
    pub(super) fn read(pid: i32) -> std::io::Result<Option<Stat>> {
        match std::fs::read(format!("/proc/{pid}/stat")) {
            Ok(text) => Ok(Stat::parse(&text)),
            Err(err) if matches!(err.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// True if it has ended, and its parent has not waited for it yet.
    pub fn is_zombie(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }

    /// True if a signal has stopped it (T); false if a tracer has (t).
    pub fn is_stopped(&self) -> bool {
        self.state == b'T'
    }

    /// The letter of its state.
    pub fn state(&self) -> char {
        char::from(self.state)
    }

    /// The id of its parent.
    pub fn parent(&self) -> i32 {
        self.field(4) as i32
    }

    /// A field by its number in proc_pid_stat(5), which counts from 1; from 3 on. Zero if the kernel
    /// does not tell it.
    pub fn field(&self, number: usize) -> i64 {
        self.fields.get(number - 3).copied().unwrap_or(0)
    }
}

/// The ids of all processes that /proc shows, ascending.
pub fn pids() -> std::io::Result<Vec<i32>> {
    let mut pids: Vec<i32> = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        pids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    pids.sort_unstable();
    Ok(pids)
}

/// All processes that /proc shows, ascending, with their stat. One that ends meanwhile is left out.
pub fn all() -> impl Iterator<Item = (i32, Stat)> {
    pids().unwrap_or_default().into_iter().filter_map(|pid| Some((pid, Stat::of(pid)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_parentheses_does_not_shift_the_fields() {
        let line = b"7 (a) b) S 1 7 7 34816 7 0 0 0 0 0 0 0 0 0 20 0 1 0 4711 1 1 1 10 0 30 0 0";
        let stat = Stat::parse(line).unwrap();
        assert_eq!(stat.comm, b"a) b");
        assert_eq!((stat.field(4), stat.field(7), stat.field(22)), (1, 34816, 4711));
        let back = [b"7 )(".as_slice(), &b" S 1".repeat(20)].concat();
        assert_eq!(Stat::parse(&back), None);
    }

    #[test]
    fn states_are_told_apart() {
        let of = |state: char| {
            let line = format!("7 (a) {state}{}", " 0".repeat(26));
            let stat = Stat::parse(line.as_bytes()).unwrap();
            (stat.is_zombie(), stat.is_stopped())
        };
        assert_eq!(
            ['Z', 'X', 'T', 't', 'R'].map(of),
            [(true, false), (true, false), (false, true), (false, false), (false, false)]
        );
    }

    #[test]
    fn numbers_of_64_bits_are_kept_and_missing_ones_are_zero() {
        let line = format!("7 (a) S{} 18446744073709551615 0 0", " 0".repeat(22));
        let stat = Stat::parse(line.as_bytes()).unwrap();
        assert_eq!((stat.field(26) as u64, stat.field(52)), (u64::MAX, 0));
        // A kernel tells at least so many.
        assert_eq!(Stat::parse(b"7 (a) S 1 2 3"), None);
    }

    #[test]
    fn this_process_is_among_all() {
        let us = std::process::id() as i32;
        let start = Stat::of(us).unwrap().field(22);
        assert!(all().any(|(pid, stat)| pid == us && stat.field(22) == start));
        assert_eq!(Stat::of(-1), None);
    }
}
