//! The cost of a restore: --stats shows what strace shows, and the numbers are within bounds.

use crate::harness::{Pipeline, Scratch, Target, pipeline, root, tool, which};
use serde_json::Value;
use std::fs;

/// The image of a tree made by mkfd.
fn image(scratch: &Scratch, words: &[&str]) -> String {
    let target = Target::ready(&[&["mkfd"], words].concat()).expect("no skip");
    let file = scratch.file("a.fdi");
    pipeline(&[&["fdscan", "--tree", "-o", &file, &target.pid]]).quiet();
    file
}

/// A list of numbers as an argument of mkfd.
fn list(numbers: impl Iterator<Item = u32>) -> String {
    numbers.map(|number| number.to_string()).collect::<Vec<String>>().join(",")
}

/// Runs `fdrestore --tree` until everything is restored, and gives its statistics.
fn tree(file: &str, options: &[&str]) -> Value {
    let scratch = Scratch::new();
    let tool = tool("fdrestore").to_string_lossy().into_owned();
    let said = scratch.file("stderr");
    let line =
        format!("exec '{tool}' --tree --stats=json {} -i '{file}' 2>'{said}'", options.join(" "));
    let holders = Target::ready(&["mkfd", "exec", "--", "sh", "-c", &line]).expect("no skip");
    drop(holders);
    json(&fs::read_to_string(said).expect("what it said"))
}

/// Runs `fdrestore -- true`, started with the smallest table, and gives its statistics.
fn command(file: &str, options: &[&str]) -> Value {
    let tool = tool("fdrestore").to_string_lossy().into_owned();
    let options = options.join(" ");
    let line = format!("'{tool}' --stats=json {options} -i '{file}' -- true; exit $?");
    let ran = pipeline(&[&["mkfd", "exec", "--", "sh", "-c", &line]]).ok();
    json(ran.said())
}

fn json(text: &str) -> Value {
    let line = text.lines().last().unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|err| panic!("{err}\n{text}"))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}

fn tasks(stats: &Value) -> &Vec<Value> {
    stats["tasks"].as_array().expect("tasks")
}

/// The system calls of each process in the output of strace, by process id.
fn strace(scratch: &Scratch, command: &str) -> Vec<(String, Vec<String>)> {
    let log = scratch.file("trace");
    let line = format!("strace -ff -o '{log}' {command}");
    let holders = Target::ready(&["mkfd", "exec", "--", "sh", "-c", &format!("exec {line}")]);
    drop(holders);
    let files = fs::read_dir(scratch.dir()).expect("a folder").flatten();
    let name = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    files
        .filter_map(|entry| Some((name(&entry).strip_prefix("trace.")?.to_owned(), entry.path())))
        .map(|(pid, path)| {
            let text = fs::read_to_string(path).expect("a trace");
            let calls = text.lines().filter(|line| !line.starts_with(['+', '-']));
            (pid, calls.map(str::to_owned).collect())
        })
        .collect()
}

fn dups(calls: &[String]) -> usize {
    calls.iter().filter(|call| call.starts_with("dup") || call.contains("F_DUPFD")).count()
}

#[test]
fn stats_of_a_tree_count_the_system_calls_that_strace_sees() {
    needs!(which("strace").is_some(), "strace is missing");
    let scratch = Scratch::new();
    let first = list((3..10).chain([40, 41, 200]));
    let file = image(&scratch, &["tree", "3", "--first", &first, "--later", "12,600"]);
    let stats = tree(&file, &[]);
    let tool = tool("fdrestore").to_string_lossy().into_owned();
    let mut seen: Vec<(usize, usize)> = strace(&scratch, &format!("'{tool}' --tree -i '{file}'"))
        .into_iter()
        .filter(|(_, calls)| calls.iter().all(|call| !call.starts_with("execve")))
        // The helper processes that shrink a table make a few calls only.
        .filter(|(_, calls)| calls.iter().any(|call| call.starts_with("prctl(PR_SET_PDEATHSIG")))
        .map(|(_, calls)| (calls.len(), dups(&calls)))
        .collect();
    let mut said: Vec<(usize, usize)> = tasks(&stats)
        .iter()
        .map(|task| (number(&task["system_calls"]) as usize, number(&task["dups"]) as usize))
        .collect();
    seen.sort_unstable();
    said.sort_unstable();
    assert_eq!(seen.len(), 4);
    for (seen, said) in seen.iter().zip(&said) {
        // After the count has ended, a task wakes fdrestore and waits. At two barriers it waits for
        // others, unless they were there first.
        let beyond = seen.0 as i64 - said.0 as i64;
        assert!((-1..=4).contains(&beyond), "strace {seen:?}, --stats {said:?}");
        // The first task also moves the fdstore to its service number.
        assert!((said.1..=said.1 + 1).contains(&seen.1), "dups: strace {seen:?}, {said:?}");
    }
}

#[test]
fn stats_of_a_command_count_the_system_calls_that_strace_sees() {
    needs!(which("strace").is_some(), "strace is missing");
    let scratch = Scratch::new();
    let file = image(&scratch, &["tree", "0", "--first", &list((3..30).chain([50, 300]))]);
    let stats = command(&file, &["--inherit", "1"]);
    let task = &tasks(&stats)[0];
    let tool = tool("fdrestore").to_string_lossy().into_owned();
    let line = format!("'{tool}' --inherit 1 -i '{file}' -- echo done");
    let traces = strace(&scratch, &line);
    let calls = traces.iter().map(|(_, calls)| calls);
    let calls = calls.max_by_key(|calls| calls.len()).expect("a trace");
    let at = |what: &str| calls.iter().position(|call| call.starts_with(what));
    // The counted calls begin with the copy of stderr and end before the last steps.
    let begin = at("fcntl(2, F_DUPFD_CLOEXEC").expect("the beginning");
    // The last steps are to restore SIGPIPE and to execute COMMAND.
    let last = |call: &String| call.starts_with("execve") || call.starts_with("rt_sig");
    let end = begin + calls[begin..].iter().position(last).expect("an exec");
    let seen = (end - begin) as u64;
    let said = number(&task["system_calls"]);
    assert_eq!(seen, said, "strace, and --stats: {:#?}", &calls[begin..end]);
    // 0 and 2 are one description; 50 and 300 come after holes; /dev/null is opened with O_PATH first.
    assert_eq!(number(&task["dups"]), 1 + 2 + 1);
}

#[test]
fn a_task_with_inherited_descriptors_makes_few_system_calls_in_trees_of_any_size() {
    let scratch = Scratch::new();
    let mut took = Vec::new();
    for count in [500, 2000] {
        let file = image(&scratch, &["tree", &count.to_string(), "--first", &list(3..23)]);
        let stats = tree(&file, &[]);
        let tasks = tasks(&stats);
        assert_eq!(tasks.len(), count + 1);
        for task in &tasks[1..] {
            assert!(number(&task["system_calls"]) <= 25, "{task}");
            assert_eq!((number(&task["messages"]), number(&task["dups"])), (0, 0), "{task}");
            assert_eq!((number(&task["fdsize"]), number(&task["peak"])), (64, 64), "{task}");
        }
        took.push(number(&stats["sum"]["system_calls"]) / count as u64);
    }
    // The parent and fdrestore make a few calls for each task, too, and their number per task does
    // not grow.
    let [few, many] = took[..] else { unreachable!() };
    assert!((10..60).contains(&few) && many <= few + 2, "calls a task: {few}, then {many}");
}

#[test]
fn a_table_of_consecutive_private_descriptors_takes_a_dup_only_for_a_file_that_exists() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["many", "500", "--dir", scratch.dir()]);
    let shown = crate::harness::show(&file);
    let rows = shown["descriptors"].as_array().expect("rows");
    let files = rows.iter().filter(|row| row["kind"] == "regular").count() as u64;
    assert!(files > 0 && files < 500);
    let ours = ["--inherit", "0,1,2"];
    for stats in [command(&file, &ours), tree(&file, &ours)] {
        assert_eq!(number(&stats["tasks"][0]["descriptors"]), 503);
        // A file that exists is opened with O_PATH first.
        assert_eq!(number(&stats["tasks"][0]["dups"]), files, "{stats}");
    }
}

#[test]
fn a_run_of_shared_descriptors_takes_few_messages() {
    for count in [1, 99, 100, 500, 1000] {
        let scratch = Scratch::new();
        let file = image(&scratch, &["tree", "2", "--first", &list(3..3 + count)]);
        let stats = tree(&file, &[]);
        let own = number(&stats["fdrestore"]["messages"]);
        // /dev/null at 0, 1 and 2 is no run of descriptors, but one description.
        assert!(own <= u64::from(count) / 100 + 1 + 1, "{count}: {stats}");
        let parent = number(&stats["tasks"][0]["messages"]);
        assert!(parent <= u64::from(count) / 100 + 1 + 1, "{count}: {stats}");
        assert_eq!(number(&stats["tasks"][1]["messages"]), 0);
    }
}

#[test]
fn no_table_is_ever_larger_than_needed_if_a_number_is_free() {
    for (numbers, needed) in [
        ((3..63).collect::<Vec<u32>>(), 64),
        ((3..62).chain([63]).collect(), 64),
        ((4..64).collect(), 64),
        ((3..127).collect(), 128),
        ((3..255).filter(|number| *number != 77).chain([255]).collect(), 256),
        (vec![8191], 8192),
    ] {
        let scratch = Scratch::new();
        let first = list(numbers.iter().copied());
        let file = image(&scratch, &["tree", "2", "--first", &first]);
        for stats in [command(&file, &[]), tree(&file, &[])] {
            for task in tasks(&stats) {
                let sizes = (number(&task["peak"]), number(&task["fdsize"]));
                assert_eq!(sizes, (needed, needed), "{first}: {stats}");
            }
        }
    }
    // If no number is free, the table is larger for a while, and the statistics show that.
    let scratch = Scratch::new();
    let file = image(&scratch, &["tree", "1", "--first", &list(3..64)]);
    for stats in [command(&file, &[]), tree(&file, &[])] {
        let task = &stats["tasks"][0];
        assert_eq!((number(&task["peak"]), number(&task["fdsize"])), (128, 64), "{stats}");
    }
}

#[test]
fn the_policies_differ_in_dups_and_table_sizes() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["tree", "0", "--first", &list(3..43)]);
    let of = |policy: &str| {
        let stats = tree(&file, &["--placement", policy]);
        let task = stats["tasks"][0].clone();
        (number(&task["dups"]), number(&task["fdsize"]))
    };
    // Two numbers are dups of a description, which was opened with O_PATH first. Whether a service descriptor at a low number is in the
    // way is a coincidence.
    assert_eq!(of("tight"), (3, 64));
    assert_eq!(of("task"), (3, 128));
    assert_eq!(of("rlimit").0, 3);
    let (dups, size) = of("late");
    assert!(dups >= 3 && size == 64, "{dups} {size}");
}

#[test]
fn stats_do_not_change_the_restored_processes() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["tree", "2", "--first", "3,4"]);
    // The restored process is not traced any more, and has no child of fdrestore.
    let script = "read -r children </proc/$$/task/$$/children; echo \"<$children>\"
        grep TracerPid /proc/$$/status; ls /proc/$$/fd";
    let run = |options: &[&str]| {
        let restore = [&["fdrestore"], options, &["--inherit", "1", "-i", &file]].concat();
        pipeline(&[&[&restore[..], &["--", "sh", "-c", script]].concat()]).ok().text()
    };
    assert_eq!(run(&["--stats"]), run(&[]));
    let mut holders = Target::ready(&["fdrestore", "--tree", "--stats", "-i", &file]).unwrap();
    for line in [holders.said.clone(), holders.line(), holders.line()] {
        let (_, pid) = line.split_once(' ').expect("OLD NEW");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
        assert!(status.contains("TracerPid:\t0\n"), "{status}");
    }
    // The command of a tree is executed only after the counting has ended.
    let tree = ["fdrestore", "--tree", "--stats", "--inherit", "1", "-i", &file];
    let ran = pipeline(&[&[&tree[..], &["--", "grep", "TracerPid", "/proc/self/status"]].concat()]);
    assert_eq!(ran.ok().text(), "TracerPid:\t0\n");
}

#[test]
fn stats_are_a_table_or_json_and_nothing_else() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["tree", "1", "--first", "3"]);
    let ran = pipeline(&[&["fdrestore", "--stats", "-i", &file, "--", "true"]]).ok();
    let lines: Vec<&str> = ran.said().lines().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines.iter().all(|line| line.starts_with("fdrestore: ")), "{lines:?}");
    assert!(lines[0].contains("CALLS") && lines[1].contains(" 64 "), "{lines:?}");
    let misuse = |options: &[&str], text: &str| {
        let words = [&["fdrestore", "-i", &file], options].concat();
        pipeline(&[&words]).refuses(2, &[text]);
    };
    misuse(&["--tree", "--stats=xml"], "--stats");
    misuse(&["--tree", "--stats", "-n"], "--dry-run");
}

#[test]
fn stats_without_permission_to_trace_show_all_but_the_system_calls() {
    needs!(which("strace").is_some(), "strace is missing");
    let scratch = Scratch::new();
    let file = image(&scratch, &["tree", "1", "--first", "3"]);
    let tool = tool("fdrestore").to_string_lossy().into_owned();
    // The process is traced by strace already.
    let words = ["strace", "-o", "/dev/null", &tool, "--stats=json", "-i", &file, "--", "true"];
    let ran = Pipeline::new(&[&words]).run().ok();
    let text = ran.said();
    assert!(text.contains("fdrestore: system calls are not counted: ptrace: "), "{text}");
    let stats = json(text);
    assert!(stats["tasks"][0]["system_calls"].is_null(), "{stats}");
    assert_eq!(stats["tasks"][0]["fdsize"], 64, "{stats}");
}

#[test]
fn a_scan_of_many_processes_reads_all_sockets_at_once() {
    needs!(which("strace").is_some(), "strace is missing");
    needs!(which("python3").is_some(), "python3 is missing");
    let scratch = Scratch::new();
    let script = "
import os, signal, socket
r, w = os.pipe()
for _ in range(200):
    if not os.fork():
        pair = socket.socketpair()
        os.write(w, b'x')
        signal.pause()
for _ in range(200): os.read(r, 1)
print('made', flush=True)
signal.pause()";
    let tree = Target::ready(&["python3", "-c", script]).expect("no skip");
    let (log, tool) = (scratch.file("calls"), tool("fdscan").to_string_lossy().into_owned());
    let words = ["strace", "-f", "-e", "trace=socket,sendto", "-o", &log, &tool, "-t", &tree.pid];
    let ran = pipeline(&[&words, &["fdimg", "show", "-J"]]).ok();
    assert!(ran.text().matches("\"unix\"").count() >= 400, "{}", ran.whole());
    let calls = fs::read_to_string(&log).expect("a trace");
    let of = |call: &str| calls.lines().filter(|line| line.contains(call)).count();
    assert!((1..10).contains(&of("socket(")), "{} sockets", of("socket("));
    assert!((1..150).contains(&of("sendto(")), "{} questions", of("sendto("));
}

/// The lines of an strace of `fdscan OPTIONS`, which may be of these calls only, for a target with
/// these SPECs.
fn scan_calls(options: &[&str], calls: &str, specs: &[String]) -> Result<Vec<String>, String> {
    let scratch = Scratch::new();
    let specs: Vec<&str> = specs.iter().map(String::as_str).collect();
    let target = Target::make(scratch.dir(), &specs)?;
    let (log, tool) = (scratch.file("calls"), tool("fdscan").to_string_lossy().into_owned());
    let calls = format!("trace={calls}");
    let words = ["strace", "-f", "-e", &calls, "-o", &log, &tool];
    pipeline(&[&[&words, options, &[&target.pid]].concat(), &["fdimg", "verify"]]).ok();
    let text = fs::read_to_string(&log).expect("a trace");
    Ok(text.lines().map(str::to_owned).collect())
}

#[test]
fn the_openers_of_many_objects_are_found_by_one_walk_of_proc_before_the_stop() {
    needs!(which("strace").is_some(), "strace is missing");
    needs!(root(), "who is not root may not look at all processes");
    for spec in ["mqueue@N:data=0.a,maxmsg=1,msgsize=8", "pty@N,M:raw,said=ab,typed=cd"] {
        let numbered = |at: u32| {
            let (first, second) = (3 + 2 * at, 4 + 2 * at);
            spec.replace('N', &first.to_string()).replace('M', &second.to_string())
        };
        let specs: Vec<String> = (0..50).map(numbered).collect();
        let calls = match scan_calls(&["--data", "--freeze"], "openat,open,ptrace", &specs) {
            Ok(calls) => calls,
            Err(reason) => skip!("{reason}"),
        };
        let opened = |path: &str| {
            let path = format!("\"{path}\", O_");
            calls.iter().filter(|call| call.contains(&path)).count()
        };
        // The second list of processes tells which are new.
        assert_eq!((opened("/proc"), opened("/proc/1/fd")), (2, 1), "{spec}: {calls:#?}");
        let first = |text: &str| calls.iter().position(|call| call.contains(text));
        assert!(first("\"/proc/1/fd\"") < first("PTRACE_SEIZE"), "{spec}: {calls:#?}");
    }
}

#[test]
fn mountinfo_is_read_once_a_process() {
    needs!(which("strace").is_some(), "strace is missing");
    let specs: Vec<String> = (3..43)
        .map(|fd| format!("inotify@{fd}"))
        .chain((43..53).map(|fd| format!("regular@{fd}")))
        .collect();
    let calls = match scan_calls(&[], "openat,open", &specs) {
        Ok(calls) => calls,
        Err(reason) => skip!("{reason}"),
    };
    let reads = calls.iter().filter(|call| call.contains("mountinfo"));
    // That of the process, and our own.
    assert!((1..=2).contains(&reads.clone().count()), "{:#?}", reads.collect::<Vec<_>>());
}
