//! fdimg show: a line for each descriptor of an image, or JSON.

use crate::records::Records;
use crate::{CURE, TOOL, give_up_all_but};
use argh::{ArgsInfo, FromArgs};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use fdkit::cli::{self, Arg, Color, ImageInput};
use fdkit::error::{At, Result, Status};
use fdkit::filter::{Filter, Subject};
use fdkit::image::scan::{self, Token};
use fdkit::image::{Bytes, Image, Lock, Missing, OpenFile, Slot, Task};
use fdkit::kind;
use fdkit::sandbox::Needs;
use fdkit::text::escape;
use nix::libc;
use serde_json::{Map, Value, json};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::Write;
use std::rc::Rc;
use unicode_width::UnicodeWidthChar;

/// Show the descriptors of an image, a line each.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "show")]
pub(crate) struct Args {
    /// show only descriptors that pass, in the language of fdimg select
    #[argh(option, short = 'F', arg_name = "FILTER", from_str_fn(kind::filter))]
    filter: Vec<Filter>,
    /// print one JSON document
    #[argh(switch, short = 'J')]
    json: bool,
    /// colours: auto (on a terminal), always or never
    #[argh(option, arg_name = "auto|always|never", default = "Color::Auto")]
    color: Color,
    /// say what fdimg gives up before it reads the image
    #[argh(switch, short = 'v')]
    verbose: bool,
    /// the image; stdin if - or left out
    #[argh(positional, arg_name = "FILE")]
    file: Option<Arg>,
}

/// A line of the output: a descriptor, its file and the tasks that have it.
///
/// What is printed must grow with the image, and not with its square: a crafted image can have thousands
/// of descriptors of one description, and of one table thousands of tasks.
struct Row<'a> {
    tasks: Rc<Vec<&'a Task>>,
    slot: &'a Slot,
    file: &'a OpenFile,
    /// It is the first line of its open file description.
    first_of_file: bool,
    /// It is the first line of its table.
    first_of_table: bool,
    /// The other descriptors of the same open file description: `FD`, or `PID:FD` of another table. Only
    /// the first line of a description has them all; the others have that of the first line.
    shared: Vec<String>,
}

/// The length in bytes above which a name or body is shown only in the first line of its description.
const LONG: usize = 512;
/// The most descriptors of one description that a line shows.
const SHARED_IN_A_LINE: usize = 16;
/// The most tasks of a table that every descriptor of it lists.
const TASKS_IN_A_ROW: usize = 16;

pub(crate) fn run(args: &Args) -> Result<Status> {
    let input = ImageInput::new(args.file.as_ref());
    let from = input.open(&TOOL, CURE)?;
    give_up_all_but(Needs::Descriptors, args.verbose);
    let image = Image::load(from).at(|| input.to_string())?;
    for lacks in &image.missing {
        TOOL.warn(format_args!("{input}: {}", lacks.describe()));
    }
    let rows = rows(&image, &args.filter);
    let text = match args.json {
        true => document(&image, &rows),
        false => tables(&rows, image.head.host.as_ref(), args.color.on(), &input.to_string()),
    };
    cli::text_stdout()?.write_all(text.as_bytes())?;
    Ok(Status::Done)
}

fn rows<'a>(image: &'a Image, filters: &[Filter]) -> Vec<Row<'a>> {
    let mut tasks: HashMap<u32, Vec<&Task>> = HashMap::new();
    for task in &image.tasks {
        tasks.entry(task.table.id).or_default().push(task);
    }
    let with_pids = |(table, tasks): (u32, Vec<&'a Task>)| {
        let pids: Vec<i32> = tasks.iter().map(|task| task.pid).collect();
        (table, (Rc::new(tasks), pids))
    };
    let tasks: HashMap<u32, (Rc<Vec<&Task>>, Vec<i32>)> =
        tasks.into_iter().map(with_pids).collect();
    let mut holders: HashMap<u32, Vec<&Slot>> = HashMap::new();
    for slot in &image.slots {
        holders.entry(slot.file).or_default().push(slot);
    }
    let name = |holder: &Slot, of: &Slot| match holder.table == of.table {
        true => holder.fd.to_string(),
        false => format!("{}:{}", tasks[&holder.table].1[0], holder.fd),
    };
    let mut first_of_files: HashMap<u32, &Slot> = HashMap::new();
    let mut tables = HashSet::new();
    let mut rows = Vec::new();
    for slot in &image.slots {
        let (Some(file), Some((tasks_here, pids))) =
            (image.file(slot.file), tasks.get(&slot.table))
        else {
            continue;
        };
        let (kind, link) = (&file.kind, &file.link.0);
        let subject = Subject { fd: slot.fd, pids, kind, link };
        if !filters.iter().all(|filter| filter.passes(&subject)) {
            continue;
        }
        let first = *first_of_files.entry(slot.file).or_insert(slot);
        let first_of_file = std::ptr::eq(first, slot);
        let shared = match first_of_file {
            true => {
                let others =
                    holders[&slot.file].iter().filter(|other| !std::ptr::eq(**other, slot));
                others.map(|other| name(other, slot)).collect()
            }
            false => vec![name(first, slot)],
        };
        let first_of_table = tables.insert(slot.table);
        let tasks = tasks_here.clone();
        rows.push(Row { tasks, slot, file, first_of_file, first_of_table, shared });
    }
    rows
}

fn mode(file: &OpenFile) -> &'static str {
    let flags = file.flags as i32;
    match flags & libc::O_ACCMODE {
        _ if flags & libc::O_PATH != 0 => "path",
        libc::O_RDONLY => "r",
        libc::O_WRONLY => "w",
        _ => "rw",
    }
}

/// The names of the file status flags, as in open(2).
fn flags(file: &OpenFile) -> Vec<&'static str> {
    const NAMES: [(i32, &str); 9] = [
        (libc::O_APPEND, "append"),
        (libc::O_NONBLOCK, "nonblock"),
        (libc::O_ASYNC, "async"),
        (libc::O_DIRECT, "direct"),
        (libc::O_NOATIME, "noatime"),
        (libc::O_SYNC, "sync"),
        (libc::O_DSYNC, "dsync"),
        (libc::O_TMPFILE, "tmpfile"),
        (libc::O_DIRECTORY, "directory"),
    ];
    let mut names = Vec::new();
    let mut left = file.flags as i32;
    for (bits, name) in NAMES {
        if left & bits == bits {
            names.push(name);
            left &= !bits;
        }
    }
    names
}

/// The short values of a body, as ` key=value`; the kind does not matter.
fn details(file: &OpenFile) -> String {
    let mut out = String::new();
    for (key, value) in scan::entries(&file.body) {
        let text = match scan::tokens(value).next() {
            Some(Token::Bool(true)) => format!(" {}", escape(key.as_bytes())),
            Some(Token::Uint(number)) if number > 0 => {
                format!(" {}={number}", escape(key.as_bytes()))
            }
            Some(Token::Nint(number)) => {
                format!(" {}={}", escape(key.as_bytes()), -1 - i128::from(number))
            }
            Some(Token::Text(text)) => {
                format!(" {}={}", escape(key.as_bytes()), escape(text.as_bytes()))
            }
            // Names are shown, and texts of several lines are not.
            Some(Token::Bytes(bytes)) if !bytes.is_empty() && bytes.len() < 200 => {
                let shown = escape(bytes);
                let line = !bytes.contains(&b'\n');
                if line { format!(" {}={shown}", escape(key.as_bytes())) } else { String::new() }
            }
            _ => String::new(),
        };
        out.push_str(&text);
    }
    out
}

/// The locks of a descriptor and of its file, as ` locks=POSIX-w:0-9,FLOCK-r`.
fn locks(row: &Row<'_>) -> String {
    let one = |lock: &Lock| {
        let (class, access) = (escape(lock.class.as_bytes()), if lock.write { 'w' } else { 'r' });
        match (lock.start, lock.end) {
            (0, None) => format!("{class}-{access}"),
            (start, None) => format!("{class}-{access}:{start}-"),
            (start, Some(end)) => format!("{class}-{access}:{start}-{end}"),
        }
    };
    let all: Vec<String> = row.file.locks.iter().chain(&row.slot.locks).map(one).collect();
    if all.is_empty() { String::new() } else { format!(" locks={}", all.join(",")) }
}

/// The other descriptors of the description, as `4,5,+7`.
fn shared(row: &Row<'_>) -> String {
    let mut text = row.shared[..row.shared.len().min(SHARED_IN_A_LINE)].join(",");
    if row.shared.len() > SHARED_IN_A_LINE {
        text.push_str(&format!(",+{}", row.shared.len() - SHARED_IN_A_LINE));
    }
    text
}

fn tables(rows: &[Row<'_>], host: Option<&Bytes>, color: bool, image: &str) -> String {
    let mut records = Records::default();
    let width = cli::terminal_width();
    let mut out = String::new();
    for group in rows.chunk_by(|a, b| a.slot.table == b.slot.table) {
        let names: Vec<String> = group[0].tasks.iter().map(|task| pid_and_name(task)).collect();
        if !out.is_empty() {
            out.push('\n');
        }
        let recorded = &group[0].tasks[0].table;
        let mut line = format!("{}  FDSize {}", names.join(", "), recorded.capacity);
        // Tasks with one table can be in several cgroups.
        let cgroups: BTreeSet<_> =
            group[0].tasks.iter().filter_map(|it| it.cgroup.as_ref()).collect();
        let names =
            [("host", host)].into_iter().chain(cgroups.iter().map(|it| ("cgroup", Some(*it))));
        for (key, name) in names.filter_map(|(key, name)| Some((key, name?))) {
            line.push_str(&format!("  {key} {}", escape(&name.0)));
        }
        push_line(&mut out, &line, width, if color { "1" } else { "" });
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(["FD", "KIND", "MODE", "POS", "FLAGS", "SHARED", "NAME"]);
        for row in group {
            let mut flags = flags(row.file);
            if row.slot.cloexec {
                flags.push("cloexec");
            }
            let record = records.decode(row.file, image);
            let mut name = match record.and_then(|record| record.describe(row.file)) {
                Some(text) => escape(text.as_bytes()).into_owned(),
                None => format!("{}{}", escape(&row.file.link.0), details(row.file)),
            };
            name.push_str(&locks(row));
            if !row.first_of_file && name.len() > LONG {
                name = format!("(as {})", row.shared.join(","));
            }
            table.add_row([
                row.slot.fd.to_string(),
                escape(row.file.kind.as_bytes()).into_owned(),
                mode(row.file).to_owned(),
                row.file.pos.to_string(),
                flags.join(","),
                shared(row),
                name,
            ]);
        }
        for column in [0, 3] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        for (at, line) in table.lines().enumerate() {
            let opaque = at > 0 && group.get(at - 1).is_some_and(|row| row.file.is_opaque());
            let style = match (color, at, opaque) {
                (true, 0, _) => "2",
                (true, _, true) => "33",
                _ => "",
            };
            push_line(&mut out, line.trim_end(), width, style);
        }
    }
    out
}

/// `PID COMM`, and of a thread the process that it belongs to.
fn pid_and_name(task: &Task) -> String {
    let name = format!("{} {}", task.pid, escape(&task.comm.0));
    match task.tgid {
        Some(tgid) => format!("{name} (a thread of {tgid})"),
        None => name,
    }
}

/// Adds a line, cut to `width` columns, in the colours of an SGR sequence (`33`).
pub(crate) fn push_line(out: &mut String, line: &str, width: Option<usize>, style: &str) {
    let mut room = width.unwrap_or(usize::MAX);
    let fits = |letter: &char| {
        let wide = letter.width().unwrap_or(0);
        room.checked_sub(wide).inspect(|left| room = *left).is_some()
    };
    let line: String = line.chars().take_while(fits).collect();
    match style {
        "" => out.push_str(&line),
        style => out.push_str(&format!("\x1b[{style}m{line}\x1b[0m")),
    }
    out.push('\n');
}

fn document(image: &Image, rows: &[Row<'_>]) -> String {
    let head = &image.head;
    let tasks: Vec<Value> = image.tasks.iter().map(task).collect();
    let descriptors: Vec<Value> = rows.iter().map(descriptor).collect();
    let document = json!({
        "head": {
            "version": head.version, "minor": head.minor, "tool": head.tool,
            "release": head.release, "kernel": escape(&head.kernel.0), "boot": head.boot,
            "host": head.host.as_ref().map(|host| escape(&host.0)), "time": head.time.0, "contents": head.contents, "frozen": head.frozen,
            "passive": head.passive,
        },
        "tasks": tasks,
        "descriptors": descriptors,
        "missing": image.missing.iter().map(missing).collect::<Vec<_>>(),
    });
    format!("{document:#}\n")
}

fn missing(missing: &Missing) -> Value {
    json!({
        "pid": missing.pid, "comm": missing.comm.as_ref().map(|comm| escape(&comm.0)),
        "partial": missing.partial, "why": escape(missing.why.as_bytes()), "errno": missing.errno,
    })
}

fn task(task: &Task) -> Value {
    let text = |bytes: &Option<Bytes>| bytes.as_ref().map(|b| escape(&b.0).into_owned());
    json!({
        "pid": task.pid, "tgid": task.tgid, "ppid": task.ppid, "pgid": task.pgid, "sid": task.sid,
        "start": task.start, "comm": escape(&task.comm.0), "exe": text(&task.exe),
        "args": task.args.iter().map(|arg| escape(&arg.0)).collect::<Vec<_>>(),
        "cwd": text(&task.cwd), "root": text(&task.root), "umask": task.umask,
        "uids": task.credentials.uids, "gids": task.credentials.gids,
        "groups": task.credentials.groups, "caps": task.credentials.caps, "namespaces": task.namespaces,
        "cgroup": text(&task.cgroup),
        "table": task.table.id, "capacity": task.table.capacity,
        "highest": task.table.highest,
        "limit": [task.table.limit.0, task.table.limit.1],
        "terminal": task.terminal.as_ref().map(|tty| json!({
            "device": tty.device, "foreground": tty.foreground, "path": text(&tty.path),
        })),
        "stopped": task.stopped,
    })
}

fn descriptor(row: &Row<'_>) -> Value {
    let file = row.file;
    // What is long is given once.
    let given = |len: usize| row.first_of_file || len <= LONG;
    let few = file.locks.len() <= SHARED_IN_A_LINE;
    let of_file = file.locks.iter().filter(|_| row.first_of_file || few);
    let locks: Vec<Value> = of_file
        .chain(&row.slot.locks)
        .map(|lock| {
            json!({
                "class": lock.class, "write": lock.write, "start": lock.start, "end": lock.end,
                "breaking": lock.breaking,
            })
        })
        .collect();
    json!({
        "pid": row.tasks[0].pid,
        "pids": (row.first_of_table || row.tasks.len() <= TASKS_IN_A_ROW)
            .then(|| row.tasks.iter().map(|task| task.pid).collect::<Vec<_>>()),
        "fd": row.slot.fd, "kind": file.kind, "mode": mode(file), "pos": file.pos,
        "flags": flags(file), "cloexec": row.slot.cloexec, "name": given(file.link.0.len()).then(|| escape(&file.link.0)),
        "shared": row.shared, "file": file.id, "object": file.object, "mnt": file.mnt,
        "inode": file.inode.as_ref().map(|it| json!({
            "dev": [it.dev.0, it.dev.1], "ino": it.ino, "mode": it.mode, "nlink": it.nlink,
            "uid": it.uid, "gid": it.gid, "size": it.size, "rdev": it.rdev,
        })),
        "signals": file.signals.as_ref().map(|it| json!({
            "kind": it.kind, "id": it.id, "signal": it.signal,
        })),
        "locks": locks,
        "body": given(file.body.len()).then(|| body(&mut scan::tokens(&file.body).peekable(), 0)),
    })
}

/// CBOR as JSON. The depth of the recursion is at most [`scan::MAX_DEPTH`].
fn body<'a>(tokens: &mut impl Iterator<Item = Token<'a>>, depth: usize) -> Value {
    let Some(token) = tokens.next().filter(|_| depth <= scan::MAX_DEPTH) else {
        return Value::Null;
    };
    match token {
        Token::Uint(number) => json!(number),
        Token::Nint(number) => match i64::try_from(number) {
            Ok(number) => json!(-1 - number),
            Err(_) => json!((-1 - i128::from(number)).to_string()),
        },
        Token::Bytes(bytes) => json!(escape(bytes)),
        Token::Text(text) => json!(escape(text.as_bytes())),
        Token::Bool(flag) => json!(flag),
        Token::Null => Value::Null,
        Token::Array(count) => (0..count).map(|_| body(tokens, depth + 1)).collect(),
        Token::Map(count) => {
            let mut map = Map::new();
            for _ in 0..count {
                if let Some(Token::Text(key)) = tokens.next() {
                    map.insert(escape(key.as_bytes()).into_owned(), body(tokens, depth + 1));
                }
            }
            Value::Object(map)
        }
    }
}
