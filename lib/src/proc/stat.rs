//! /proc/PID/stat.

/// A parsed /proc/PID/stat, by the names of proc_pid_stat(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    comm: Vec<u8>,
    state: u8,
    fields: Vec<i64>,
}

impl Stat {
    /// Parses the line. The name may hold blanks and parentheses, so its end is the last one.
    pub fn parse(text: &[u8]) -> Option<Stat> {
        let open = text.iter().position(|&byte| byte == b'(')?;
        let close = text.iter().rposition(|&byte| byte == b')')?;
        let rest = std::str::from_utf8(text.get(close + 1..)?).ok()?;
        let field = |word: &str| word.parse().or_else(|_| word.parse::<u64>().map(|n| n as i64));
        let fields: Vec<i64> = rest.split_whitespace().map(|w| field(w).unwrap_or(0)).collect();
        let state = *rest.trim_start().as_bytes().first()?;
        let comm = text.get(open + 1..close)?.to_vec();
        (fields.len() > 25).then_some(Stat { comm, state, fields })
    }

    /// The name of the program.
    pub fn name(&self) -> &[u8] {
        &self.comm
    }

    /// That of a process or thread, if there is one with this id.
    pub fn of(pid: i32) -> Option<Stat> {
        Stat::parse(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Whether it has ended.
    pub fn is_zombie(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }

    /// Whether a signal has stopped it, and no tracer.
    pub fn is_stopped(&self) -> bool {
        self.state == b'T'
    }

    /// A field by its number in proc_pid_stat(5), which counts from 1.
    pub fn field(&self, number: usize) -> i64 {
        self.fields.get(number - 3).copied().unwrap_or(0)
    }
}

/// All processes that /proc shows, ascending, with their stat; what ends meanwhile is left out.
pub fn all() -> impl Iterator<Item = (i32, Stat)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut pids: Vec<i32> = pids.collect();
    pids.sort_unstable();
    pids.into_iter().filter_map(|pid| {
        Some((pid, Stat::parse(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)?))
    })
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
}
