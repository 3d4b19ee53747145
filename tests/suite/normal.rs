//! Two records of one thing, made comparable: what no restore can keep is taken out.

use serde_json::Value;
use std::collections::BTreeMap;

/// Keys of what is new with every process or kernel object: numbers of inodes, mounts and records,
/// pids, and times. Close-on-exec is off in COMMAND by design, and told in the environment.
const NEW: &[&str] = &[
    "peer", "pid", "pids", "file", "object", "ino", "mnt", "mtime", "id", "cloexec", "start",
    "time", "index",
];

/// The descriptors of `fdimg show -J` that have these numbers, without what cannot be kept.
pub(crate) fn records(shown: &Value, fds: &[u32]) -> BTreeMap<u64, Value> {
    let all = shown["descriptors"].as_array().expect("descriptors");
    let wanted = |fd: u64| fds.iter().any(|&each| u64::from(each) == fd);
    all.iter()
        .map(|each| (each["fd"].as_u64().expect("a number"), normal(each)))
        .filter(|(fd, _)| wanted(*fd))
        .collect()
}

/// A value without what cannot be kept.
fn normal(value: &Value) -> Value {
    match value {
        Value::Object(map) if map.contains_key("now") => timer(map.clone()),
        Value::Object(map) => map
            .iter()
            .filter(|(key, _)| !NEW.contains(&key.as_str()))
            .map(|(key, value)| (key.clone(), normal(value)))
            .collect(),
        // The number of a pseudo terminal, beside its major.
        Value::Array(list) if list.len() == 2 && list[0] == 136 => list[..1].to_vec().into(),
        Value::Array(list) => list.iter().map(normal).collect(),
        Value::String(text) => numbered(text).into(),
        other => other.clone(),
    }
}

/// A timer whose time goes on: an absolute one keeps when it expires, another that it does.
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

/// `/dev/pts/7`, `pipe:[123]` and `/dir/#123 (deleted)` without the number of the inode, `12:3` without a pid.
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

#[test]
fn what_a_restore_cannot_keep_is_not_compared() {
    let one = serde_json::json!({"descriptors": [{
        "pid": 7, "fd": 3, "name": "pipe:[12]", "shared": ["7:4"], "body": {"size": 1, "id": 4},
    }]});
    let two = serde_json::json!({"descriptors": [{
        "pid": 8, "fd": 3, "name": "pipe:[13]", "shared": ["8:4"], "body": {"size": 1, "id": 5},
    }, {"fd": 1}]});
    assert_eq!(records(&one, &[3]), records(&two, &[3]));
}

#[test]
fn a_timer_is_compared_by_when_it_expires() {
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
fn what_a_restore_must_keep_is_compared() {
    let one = serde_json::json!({"descriptors": [{"fd": 3, "pos": 7, "body": {"size": 1}}]});
    let two = serde_json::json!({"descriptors": [{"fd": 3, "pos": 7, "body": {"size": 2}}]});
    assert_ne!(records(&one, &[3]), records(&two, &[3]));
}
