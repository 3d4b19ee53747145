//! Canonical forms of records, so that the record of a descriptor and the record of the restored
//! descriptor are equal: properties that no restore can keep are removed.

use fdkit::image::{Bytes, Image, OpenFile, Task};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};

/// The keys that differ for every process or kernel object: numbers of inodes, mounts and records,
/// process ids, and times. Close-on-exec is off in COMMAND by design, and named in the environment.
const NEW: &[&str] = &[
    "peer", "pid", "pids", "file", "object", "ino", "mnt", "mtime", "id", "cloexec", "start",
    "time", "index",
];

/// The descriptors of `fdimg show -J` with these numbers, in canonical form.
pub(crate) fn records(shown: &Value, fds: &[u32]) -> BTreeMap<u64, Value> {
    let all = shown["descriptors"].as_array().expect("descriptors");
    let wanted = |fd: u64| fds.iter().any(|&each| u64::from(each) == fd);
    all.iter()
        .map(|each| (each["fd"].as_u64().expect("a number"), canonical(each)))
        .filter(|(fd, _)| wanted(*fd))
        .collect()
}

/// A value in canonical form.
fn canonical(value: &Value) -> Value {
    match value {
        Value::Object(map) if map.contains_key("now") => timer(map.clone()),
        Value::Object(map) => map
            .iter()
            .filter(|(key, _)| !NEW.contains(&key.as_str()))
            .map(|(key, value)| (key.clone(), canonical(value)))
            .collect(),
        // The minor number of a pseudoterminal.
        Value::Array(list) if list.len() == 2 && list[0] == 136 => list[..1].to_vec().into(),
        Value::Array(list) => list.iter().map(canonical).collect(),
        Value::String(text) => numbered(text).into(),
        other => other.clone(),
    }
}

/// A timer, whose time runs between two scans: of an absolute timer the expiration is compared, of
/// another only whether it expires.
fn timer(mut map: serde_json::Map<String, Value>) -> Value {
    let mut seconds = |key| {
        let time = map.remove(key).expect("a time");
        (time[0].as_u64().expect("seconds"), time[1].as_u64().expect("nanoseconds"))
    };
    let (now, left) = (seconds("now"), seconds("value"));
    let next = match left {
        (0, 0) => Value::Null,
        _ if map["flags"].as_u64().is_some_and(|flags| flags & 1 == 1) => {
            let rest = now.1 + left.1;
            serde_json::json!([now.0 + left.0 + rest / 1_000_000_000, rest % 1_000_000_000])
        }
        _ => Value::Bool(true),
    };
    map.insert("next".into(), next);
    map.into()
}

/// `/dev/pts/7`, `pipe:[123]` and `/dir/#123 (deleted)` without the number, `12:3` without the
/// process id.
fn numbered(text: &str) -> String {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if let Some((kind, number)) = text.strip_suffix(']').and_then(|text| text.split_once(":[")) {
        if digits(number) {
            return format!("{kind}:[]");
        }
    }
    if let Some((dir, number)) = text.strip_suffix(" (deleted)").and_then(|t| t.rsplit_once("/#")) {
        if digits(number) {
            return format!("{dir}/# (deleted)");
        }
    }
    if text
        .strip_prefix("/dev/pts/")
        .is_some_and(|rest| digits(rest.trim_end_matches(" (deleted)")))
    {
        return text.replace(|letter: char| letter.is_ascii_digit(), "");
    }
    match text.split_once(':') {
        Some((pid, fd)) if digits(pid) && digits(fd) => fd.into(),
        _ => text.into(),
    }
}

/// An image of a tree in canonical form: a value for each task and each slot, by their names. Ids
/// of processes and kernel objects are replaced by what shares them. `pids` maps the process ids of
/// this image to those of the image before.
///
/// The program that a task runs and the size of its kernel table are not part of it: a restore does
/// not determine them.
pub(crate) fn tree(image: &[u8], pids: &HashMap<i32, i32>) -> BTreeMap<String, Value> {
    let whole = Image::load(image).expect("an image");
    let known = |pid: i32| pids.get(&pid).copied().unwrap_or(0);
    let (tasks, slots) = (&whole.tasks, &whole.slots);
    // Things with an id of their own are named by the first task, or slot, that has them.
    let first = |same: &dyn Fn(&Task) -> bool| {
        tasks.iter().filter(|task| same(task)).map(|task| known(task.pid)).min()
    };
    let owner = |table: u32| first(&|task| task.table.id == table).expect("a task of it");
    let at = |file: u32| {
        let mut at: Vec<(i32, u32)> = slots
            .iter()
            .filter(|slot| slot.file == file)
            .map(|slot| (owner(slot.table), slot.fd))
            .collect();
        at.sort_unstable();
        at
    };
    let siblings = |file: &OpenFile| {
        let same = |other: &&OpenFile| file.object.is_some() && other.object == file.object;
        let mut siblings: Vec<_> =
            whole.files.iter().filter(same).map(|other| at(other.id)).collect();
        siblings.sort();
        siblings
    };
    let mut values = BTreeMap::new();
    for task in tasks {
        let mut value = json(&task);
        let map = value.as_object_mut().expect("a map");
        for key in ["start", "comm", "exe", "args", "pid"] {
            map.remove(key);
        }
        map.insert("ppid".into(), known(task.ppid).into());
        map.insert("pgid".into(), first(&|it| it.pgid == task.pgid).into());
        map.insert("sid".into(), first(&|it| it.sid == task.sid).into());
        map.insert("leads".into(), json!([task.pgid == task.pid, task.sid == task.pid]));
        map["table"]["id"] = owner(task.table.id).into();
        map["table"].as_object_mut().expect("a map").remove("capacity");
        if let Some(terminal) = map.get_mut("terminal") {
            let foreground = terminal["foreground"].as_i64().expect("a group") as i32;
            terminal["foreground"] = first(&|task| task.pgid == foreground).into();
            // A restored pseudoterminal may have another number.
            terminal["device"] = (terminal["device"].as_u64().expect("a device") >> 8).into();
        }
        values.insert(known(task.pid).to_string(), value);
    }
    for slot in slots {
        let file = whole.file(slot.file).expect("its file");
        let mut value = json(&file);
        let body: serde_cbor::Value = serde_cbor::from_slice(&file.body).expect("a body");
        value["body"] = readable(body);
        let mut value = canonical(&value);
        let map = value.as_object_mut().expect("a map");
        if let Some(signals) = &file.signals {
            map.insert("owner".into(), known(signals.id).into());
        }
        let contents: Vec<Value> = file
            .object
            .and_then(|object| whole.contents.get(&object))
            .into_iter()
            .flatten()
            .map(|chunk| {
                let bytes = &image[chunk.at as usize..][..chunk.len];
                let mut with = json(&chunk.with);
                if let Some(files) = chunk.with.as_ref().map(|with| &with.files) {
                    let link = |&id: &u32| numbered(&text(&whole.file(id).expect("it").link));
                    with["files"] = files.iter().map(link).collect::<Vec<_>>().into();
                    with["credentials"] = Value::Null;
                }
                json!([bytes.escape_ascii().to_string(), chunk.offset, with])
            })
            .collect();
        map.insert("contents".into(), contents.into());
        map.insert("cloexec".into(), slot.cloexec.into());
        map.insert("same file".into(), json!(at(file.id)));
        map.insert("same object".into(), json!(siblings(file)));
        values.insert(format!("{}:{}", owner(slot.table), slot.fd), value);
    }
    values
}

fn text(bytes: &Bytes) -> String {
    bytes.0.escape_ascii().to_string()
}

fn json(record: &impl serde::Serialize) -> Value {
    let bytes = serde_cbor::to_vec(record).expect("a record");
    readable(serde_cbor::from_slice(&bytes).expect("a value"))
}

/// CBOR as JSON, with byte strings as text.
fn readable(value: serde_cbor::Value) -> Value {
    use serde_cbor::Value as Cbor;
    match value {
        Cbor::Bool(is) => is.into(),
        Cbor::Integer(number) => json!(number),
        Cbor::Bytes(bytes) => bytes.escape_ascii().to_string().into(),
        Cbor::Text(text) => text.into(),
        Cbor::Array(list) => list.into_iter().map(readable).collect(),
        Cbor::Map(map) => {
            let entry = |(key, value)| match key {
                Cbor::Text(key) => (key, readable(value)),
                other => (readable(other).to_string(), readable(value)),
            };
            Value::Object(map.into_iter().map(entry).collect())
        }
        _ => Value::Null,
    }
}

#[test]
fn properties_that_no_restore_keeps_are_not_compared() {
    let one = serde_json::json!({"descriptors": [{
        "pid": 7, "fd": 3, "name": "pipe:[12]", "shared": ["7:4"], "body": {"size": 1, "id": 4},
    }]});
    let two = serde_json::json!({"descriptors": [{
        "pid": 8, "fd": 3, "name": "pipe:[13]", "shared": ["8:4"], "body": {"size": 1, "id": 5},
    }, {"fd": 1}]});
    assert_eq!(records(&one, &[3]), records(&two, &[3]));
}

#[test]
fn a_timer_is_compared_by_its_expiration() {
    let timer = |flags: u32, now, value| {
        let body = serde_json::json!({"flags": flags, "now": now, "value": value});
        records(&serde_json::json!({"descriptors": [{"fd": 3, "body": body}]}), &[3])
    };
    assert_eq!(timer(1, [5, 999_999_999], [7, 1]), timer(1, [9, 0], [4, 0]));
    assert_ne!(timer(1, [5, 0], [7, 1]), timer(1, [5, 0], [7, 0]));
    assert_eq!(timer(0, [5, 0], [7, 1]), timer(0, [9, 0], [6, 0]));
    assert_ne!(timer(0, [5, 0], [7, 1]), timer(0, [5, 0], [0, 0]));
}

#[test]
fn properties_that_a_restore_must_keep_are_compared() {
    let one = serde_json::json!({"descriptors": [{"fd": 3, "pos": 7, "body": {"size": 1}}]});
    let two = serde_json::json!({"descriptors": [{"fd": 3, "pos": 7, "body": {"size": 2}}]});
    assert_ne!(records(&one, &[3]), records(&two, &[3]));
}
