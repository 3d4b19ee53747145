//! fdrestore --stats: the costs of a restore, as a table and as JSON.

use fdkit::cli::Tool;
use fdkit::error::Result;
use fdkit::placement::{self, Size};
use fdkit::plan::{Plan, StatsFormat};
use fdkit::table::stats::{Meter, ProcessStats, TableStats};
use fdkit::table::syscall_counter::Counter;
use serde_json::{Value, json};

/// Starts to count system calls, and warns where that is not permitted.
pub(crate) fn count(tool: &Tool) -> Result<Counter> {
    let counter = Counter::start(1)?;
    if let Some(why) = counter.refusal() {
        tool.warn(why);
    }
    Ok(counter)
}

/// Writes the statistics of one restored table, by the process that counts.
pub(crate) fn of_one(
    plan: &Plan<'_>,
    mut meter: Meter<'_>,
    counter: &Counter,
    format: StatsFormat,
) -> Result<()> {
    let calls = meter.calls();
    let end = meter.measure_size()?;
    let descriptors = plan.descriptors();
    let table = Some(TableStats { descriptors, size: Size { peak: meter.peak, end } });
    let row = ProcessStats { pid: Some(plan.task.pid), table, calls, messages: 0 };
    counter.add_message(text(&[row], format).trim_end());
    Ok(())
}

/// The columns, and their keys in JSON.
const NAMES: [(&str, &str); 7] = [
    ("FDS", "descriptors"),
    ("CALLS", "system_calls"),
    ("DUPS", "dups"),
    ("MESSAGES", "messages"),
    ("PEAK", "peak"),
    ("FDSIZE", "fdsize"),
    ("BYTES", "bytes"),
];

/// The values of the columns; none where a value does not exist or is not known.
fn values(row: &ProcessStats) -> [Option<u64>; NAMES.len()] {
    let size = row.table.map(|table| table.size);
    [
        row.table.map(|table| table.descriptors as u64),
        row.calls.map(|calls| calls.all.into()),
        row.calls.map(|calls| calls.dups.into()),
        Some(row.messages.into()),
        size.map(|size| size.peak),
        size.map(|size| size.end),
        size.map(|size| placement::bytes(size.end)),
    ]
}

/// The sums of the columns. Those of calls are not known if the calls of one row are not.
fn sums(rows: &[ProcessStats]) -> [Option<u64>; NAMES.len()] {
    let counted = rows.iter().all(|row| row.calls.is_some());
    std::array::from_fn(|at| {
        let known = counted || !["CALLS", "DUPS"].contains(&NAMES[at].0);
        known.then(|| rows.iter().filter_map(|row| values(row)[at]).sum())
    })
}

/// The statistics as lines that each end with a newline.
pub(crate) fn text(rows: &[ProcessStats], format: StatsFormat) -> String {
    match format {
        StatsFormat::Text => {
            table(rows).iter().map(|line| format!("fdrestore: {line}\n")).collect()
        }
        StatsFormat::Json => format!("{}\n", document(rows)),
    }
}

fn table(rows: &[ProcessStats]) -> Vec<String> {
    let name = |row: &ProcessStats| row.pid.map_or("fdrestore".to_owned(), |pid| pid.to_string());
    let mut named = vec![];
    named.extend(rows.iter().map(|row| (name(row), values(row))));
    if rows.len() > 1 {
        named.push(("sum".to_owned(), sums(rows)));
    }
    let cells = |(name, values): (String, [Option<u64>; NAMES.len()])| {
        let values = values.map(|value| value.map_or("-".to_owned(), |value| value.to_string()));
        [vec![name], values.to_vec()].concat()
    };
    let head = ["PID"].into_iter().chain(NAMES.map(|(name, _)| name)).map(str::to_owned);
    let mut lines = vec![head.collect::<Vec<String>>()];
    lines.extend(named.into_iter().map(cells));
    let width = |at: usize| lines.iter().map(|line| line[at].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..=NAMES.len()).map(width).collect();
    let line = |cells: &Vec<String>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}"));
        padded.collect::<Vec<String>>().join("  ")
    };
    lines.iter().map(line).collect()
}

fn document(rows: &[ProcessStats]) -> Value {
    let entry = |values: [Option<u64>; NAMES.len()]| -> Value {
        let named = NAMES.iter().zip(values);
        named.map(|((_, key), value)| (key.to_string(), json!(value))).collect()
    };
    let task = |row: &ProcessStats| {
        let mut entry = entry(values(row));
        entry["pid"] = json!(row.pid);
        entry
    };
    let tasks: Vec<Value> = rows.iter().filter(|row| row.pid.is_some()).map(task).collect();
    let own = rows.iter().find(|row| row.pid.is_none());
    let own = own.map(|row| entry(values(row)));
    json!({"tasks": tasks, "fdrestore": own, "sum": entry(sums(rows))})
}

#[cfg(test)]
mod tests {
    use super::*;
    use fdkit::placement::Size;
    use fdkit::table::stats::TableStats;
    use fdkit::table::syscall_counter::Calls;

    fn row(pid: i32, calls: Option<u32>) -> ProcessStats {
        let size = Size { peak: 256, end: 128 };
        let calls = calls.map(|all| Calls { all, dups: 1 });
        ProcessStats {
            pid: Some(pid),
            table: Some(TableStats { descriptors: 4, size }),
            calls,
            messages: 2,
        }
    }

    #[test]
    fn sums_are_of_what_is_known() {
        let own = ProcessStats { pid: None, table: None, calls: None, messages: 3 };
        let rows = [row(7, Some(20)), row(8, Some(22)), own];
        let lines = table(&rows);
        let words = |at: usize| lines[at].split_whitespace().collect::<Vec<_>>();
        assert_eq!(words(1), ["7", "4", "20", "1", "2", "256", "128", "1144"]);
        assert_eq!(words(3), ["fdrestore", "-", "-", "-", "3", "-", "-", "-"]);
        assert_eq!(words(4), ["sum", "8", "-", "-", "7", "512", "256", "2288"]);
        let json = document(&rows);
        assert_eq!(json["tasks"][1]["system_calls"], 22);
        assert!(json["sum"]["system_calls"].is_null() && json["fdrestore"]["messages"] == 3);
        assert_eq!(document(&rows[..2])["sum"]["system_calls"], 42);
        // One table is its own sum.
        assert_eq!(table(&rows[..1]).len(), 2);
    }
}
