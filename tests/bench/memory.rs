//! `just bench-memory`: the memory of the descriptor tables of a tree before the scan, at the peak
//! of the restore, and after it, with each policy. It prints a table and writes memory.json and the
//! chart.
//!
//! Arguments: the sizes of the trees (1 200 1000); or `draw`, to draw the chart from memory.json.

#[path = "../suite/cgroup.rs"]
mod cgroup;
mod chart;

use cgroup::Cgroup;
use fdkit::placement::{self, Placement};
use serde_json::{Map, Value, json};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

/// The highest numbers around which the sizes of tables change.
const SWEEP: [u32; 26] = [
    3, 30, 60, 63, 64, 100, 120, 127, 128, 200, 240, 250, 255, 256, 400, 500, 511, 512, 1000, 1010,
    1023, 1024, 4000, 4095, 4096, 8191,
];

/// The numbers that the parent of the last tree opens after it has forked its children.
const LATER: [u32; 3] = [300, 4095, 19000];

fn tool(name: &str) -> String {
    let path = Path::new(env!("CARGO_BIN_EXE_mkfd")).with_file_name(name);
    path.to_str().expect("UTF-8").to_owned()
}

/// Running processes, in a cgroup if possible; they are ended when this is dropped.
struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
    cgroup: Option<Cgroup>,
}

impl Running {
    fn start(words: &[&str]) -> Running {
        let cgroup = Cgroup::new().ok();
        let enter = cgroup.as_ref().map(Cgroup::enter);
        let enter = enter.iter().flatten().map(String::as_str);
        let words: Vec<&str> = enter.chain(words.iter().copied()).collect();
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        Running { child, stdout, cgroup }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("a line");
        assert!(!line.is_empty(), "it said nothing, and ended");
        line.trim_end().to_owned()
    }

    /// The kernel memory now, and its peak, in bytes.
    fn kernel(&self) -> (Option<u64>, Option<u64>) {
        // The kernel returns freed memory a moment later.
        std::thread::sleep(Duration::from_millis(100));
        let cgroup = self.cgroup.as_ref();
        (cgroup.and_then(Cgroup::kernel), cgroup.and_then(Cgroup::kernel_peak))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
        let left = || self.cgroup.as_ref().is_some_and(|cgroup| !cgroup.processes().is_empty());
        for _ in (0..500).take_while(|_| left()) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn fdsize(pid: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = text.lines().find_map(|line| line.strip_prefix("FDSize:"));
    line.and_then(|size| size.trim().parse().ok()).expect("FDSize")
}

/// The sizes of all tables now: of the first task, of the other task with the largest one, and the
/// bytes of all.
fn sizes(pids: &[String]) -> Map<String, Value> {
    let sizes: Vec<u64> = pids.iter().map(|pid| fdsize(pid)).collect();
    let child = sizes[1..].iter().max();
    let bytes: u64 = sizes.iter().map(|&size| placement::bytes(size)).sum();
    let named = [("parent", json!(sizes[0])), ("child", json!(child)), ("bytes", json!(bytes))];
    named.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Makes a tree, scans it, and restores it with each policy.
fn measure(tasks: usize, first: &[u32], later: &[u32], dir: &Path) -> Value {
    let list = |numbers: &[u32]| {
        let words: Vec<String> = numbers.iter().map(u32::to_string).collect();
        if words.is_empty() { "none".to_owned() } else { words.join(",") }
    };
    let (children, first_list) = ((tasks - 1).to_string(), list(first));
    let later_list = list(later);
    let image = dir.join("a.fdi").to_str().expect("UTF-8").to_owned();
    let mkfd = tool("mkfd");
    let words = [&mkfd, "tree", &children, "--first", &first_list, "--later", &later_list];
    let mut original = Running::start(&words);
    let pid = original.line();
    let scan = Command::new(tool("fdscan")).args(["--tree", "-o", &image, &pid]).status();
    assert!(scan.expect("fdscan").success(), "the tree was not captured");
    let place = Command::new(tool("fdimg")).args(["place", "-J", &image]).output().expect("fdimg");
    let place: Value = serde_json::from_slice(&place.stdout).expect("JSON");
    let all = place["tasks"].as_array().expect("tasks");
    assert_eq!(all.len(), tasks, "the image has all tasks");
    let pids: Vec<String> = all.iter().map(|task| task["pid"].to_string()).collect();
    let mut before = sizes(&pids);
    before.insert("kernel".into(), json!(original.kernel().0));
    drop(original);
    let needed = json!({
        "parent": all[0]["needed"]["slots"],
        "child": all.get(1).map(|child| &child["needed"]["slots"]),
        "bytes": place["sums"]["needed"]["bytes"],
    });
    let mut restored = Map::new();
    for policy in Placement::ALL {
        let tool = tool("fdrestore");
        let words = [&tool, "--tree", "--placement", policy.name(), "-i", &image];
        let mut tree = Running::start(&words);
        let lines: Vec<String> = (0..tasks).map(|_| tree.line()).collect();
        let new = |line: &String| line.split_once(' ').expect("OLD NEW").1.to_owned();
        let mut after = sizes(&lines.iter().map(new).collect::<Vec<String>>());
        let (kernel, peak) = tree.kernel();
        after.insert("kernel".into(), json!(kernel));
        after.insert("peak".into(), json!(peak));
        restored.insert(policy.name().into(), Value::Object(after));
    }
    json!({
        "tasks": tasks, "highest": first.last(), "later": later, "needed": needed,
        "before": before, "restored": restored,
    })
}

/// A number, or a dash.
fn shown(value: &Value) -> String {
    value.as_u64().map_or("-".into(), |value| value.to_string())
}

/// Bytes as KiB per task.
fn each(value: &Value, tasks: usize) -> String {
    let kib = |bytes: u64| format!("{:.1}", bytes as f64 / 1024.0 / tasks as f64);
    value.as_u64().map_or("-".into(), kib)
}

/// A line for a tree: slots of a task, then KiB of kernel memory per task.
fn row(tree: &Value, who: &str) -> String {
    let tasks = tree["tasks"].as_u64().expect("a number") as usize;
    let policies = || Placement::ALL.iter().map(|policy| &tree["restored"][policy.name()]);
    let mut cells = vec![shown(&tree["needed"][who]), shown(&tree["before"][who])];
    cells.extend(policies().map(|of| shown(&of[who])));
    cells.push(each(&tree["before"]["kernel"], tasks));
    cells.extend(policies().map(|of| each(&of["peak"], tasks)));
    cells.extend(policies().map(|of| each(&of["kernel"], tasks)));
    cells.iter().map(|cell| format!("{cell:>7}")).collect::<Vec<String>>().join(" ")
}

fn head(first: &str) {
    let names: Vec<&str> = Placement::ALL.iter().map(|policy| policy.name()).collect();
    let names = names.iter().map(|name| format!("{name:>7}")).collect::<Vec<String>>().join(" ");
    let blank = "";
    println!(
        "{blank:>8}  {:<47} {:>7} {:<31} KiB after, a task",
        "FDSize", "KiB", "KiB at the peak, a task"
    );
    println!("{first:>8}  {:>7} {:>7} {names} {:>7} {names} {names}", "needed", "before", "before");
}

fn here(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("bench").join(name)
}

fn draw() {
    let text = std::fs::read_to_string(here("memory.json")).expect("memory.json");
    let figures: Value = serde_json::from_str(&text).expect("JSON");
    std::fs::write(here("memory.svg"), chart::draw(&figures)).expect("memory.svg");
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    if args == ["draw"] {
        return draw();
    }
    // Descriptors that the caller left open would enlarge all tables.
    let table = fdkit::sys::own_table::OwnTable::take().expect("the table");
    table.close_range(3, std::os::fd::RawFd::MAX).expect("close_range");
    let sizes: Vec<usize> = match args.is_empty() {
        true => vec![1, 200, 1000],
        false => args.iter().map(|arg| arg.parse().expect("a number of tasks")).collect(),
    };
    let (limit, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .expect("the limit of open files");
    let dir = std::env::temp_dir().join(format!("fdkit-bench-memory-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a folder");
    println!("limit of open files: {limit}");
    if let Err(reason) = Cgroup::new() {
        println!("no kernel memory: {reason}");
    }
    let mut trees = Vec::new();
    for &tasks in &sizes {
        println!("\n{tasks} tasks, each with this highest number");
        head("highest");
        for highest in SWEEP.into_iter().filter(|&highest| u64::from(highest) < limit) {
            let tree = measure(tasks, &[highest], &[], &dir);
            println!("{highest:>8}  {}", row(&tree, "parent"));
            trees.push(tree);
        }
    }
    println!("\na parent, and 200 children of 0 to 5 from before it opened this number");
    head("parent");
    let mut bigs: Vec<Vec<u32>> = LATER.iter().map(|&later| vec![later]).collect();
    bigs.push(LATER.to_vec());
    for later in bigs.iter().filter(|later| later.iter().all(|&it| u64::from(it) < limit)) {
        let tree = measure(201, &[3, 4, 5], later, &dir);
        let name = if later.len() > 1 { "all" } else { &later[0].to_string() };
        println!("{name:>8}  {}", row(&tree, "parent"));
        println!("{:>8}  {}", "child", row(&tree, "child"));
        trees.push(tree);
    }
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    // Each tree is a line, so that a diff shows what has changed.
    let lines: Vec<String> = trees.iter().map(Value::to_string).collect();
    let (kernel, lines) = (json!(kernel.trim()), lines.join(",\n"));
    let text = format!("{{\"limit\":{limit},\"kernel\":{kernel},\"trees\":[\n{lines}\n]}}\n");
    std::fs::write(here("memory.json"), text).expect("memory.json");
    draw();
    let _ = std::fs::remove_dir_all(&dir);
}
