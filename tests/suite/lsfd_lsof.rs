//! fdkit, lsfd(1) and lsof(8) on every case of the round trips: they must agree on everything that
//! all of them show.

use crate::harness::{Scratch, Target, pipeline, skipped, which};
use crate::kinds::{CASES, PLACES, at};
use nix::libc;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What a tool shows of each number, by name.
type Said = BTreeMap<u64, BTreeMap<&'static str, Value>>;

/// The status flags that all tools have a name for, and their bits; those of several bits come
/// first.
const FLAGS: &[(&str, u64)] = &[
    ("sync", libc::O_SYNC as u64),
    ("dsync", libc::O_DSYNC as u64),
    ("append", libc::O_APPEND as u64),
    ("nonblock", libc::O_NONBLOCK as u64),
    ("async", libc::O_ASYNC as u64),
    ("direct", libc::O_DIRECT as u64),
    ("noatime", libc::O_NOATIME as u64),
    ("directory", libc::O_DIRECTORY as u64),
    ("path", libc::O_PATH as u64),
];

/// Makes each case, compares what fdkit and another tool show of it, and gives the names that were
/// compared.
fn each_case(
    peer: impl Fn(&str) -> Result<Said, String>,
    same: impl Fn(&mut BTreeMap<&'static str, Value>, &mut BTreeMap<&'static str, Value>),
) -> BTreeSet<&'static str> {
    let mut compared = BTreeSet::new();
    for (name, specs) in CASES {
        let scratch = Scratch::new();
        let specs: Vec<String> = specs.iter().map(|spec| at(spec, &PLACES[0])).collect();
        let specs: Vec<&str> = specs.iter().map(String::as_str).collect();
        let target = match Target::make(scratch.dir(), &specs) {
            Ok(target) => target,
            Err(reason) => {
                skipped(&format!("{name}: {reason}"));
                continue;
            }
        };
        let (mut ours, mut theirs) = (ours(&target.pid), peer(&target.pid).expect(name));
        let numbers = |said: &Said| said.keys().copied().collect::<Vec<_>>();
        assert_eq!(numbers(&ours), numbers(&theirs), "{name}: numbers");
        for (ours, (fd, theirs)) in ours.values_mut().zip(&mut theirs) {
            same(ours, theirs);
            for (what, theirs) in theirs {
                assert_eq!(ours.get(what), Some(&*theirs), "{name} {specs:?}: {what} of {fd}");
                compared.insert(*what);
            }
        }
    }
    compared
}

fn device(of: &Value) -> Value {
    json!(format!("{}:{}", of[0], of[1]))
}

/// `fdscan PID | fdimg show -J`.
fn ours(pid: &str) -> Said {
    let ran = pipeline(&[&["fdscan", "-F", "0-99", pid], &["fdimg", "show", "-J"]]).quiet();
    let shown: Value = serde_json::from_slice(&ran.stdout).expect("JSON");
    let one = |each: &Value| {
        let inode = &each["inode"];
        let mode = inode["mode"].as_u64().expect("a mode");
        let kind = match mode as u32 & libc::S_IFMT {
            libc::S_IFIFO => "FIFO",
            libc::S_IFCHR => "CHR",
            libc::S_IFDIR => "DIR",
            libc::S_IFBLK => "BLK",
            libc::S_IFREG => "REG",
            libc::S_IFLNK => "LINK",
            libc::S_IFSOCK => "SOCK",
            _ => "anonymous",
        };
        let mut flags: BTreeSet<&str> =
            each["flags"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
        // O_TMPFILE contains O_DIRECTORY; lsof and lsfd do not show the other bit.
        if flags.remove("tmpfile") {
            flags.insert("directory");
        }
        let access = each["mode"].as_str().expect("a mode").to_owned();
        if access == "path" {
            flags.insert("path");
        }
        let name = each["name"].as_str().expect("a name");
        let said = BTreeMap::from([
            ("access", json!(access)),
            ("deleted", json!(name.ends_with(" (deleted)"))),
            ("device", device(&inode["dev"])),
            ("flags", json!(flags)),
            ("inode", inode["ino"].clone()),
            ("links", inode["nlink"].clone()),
            ("locks", each["locks"].clone()),
            ("mount", each["mnt"].clone()),
            ("name", json!(name)),
            ("owner", inode["uid"].clone()),
            ("position", each["pos"].clone()),
            (
                "real device",
                if inode["rdev"].is_null() { json!("0:0") } else { device(&inode["rdev"]) },
            ),
            ("size", inode["size"].clone()),
            ("type", json!(kind)),
        ]);
        (each["fd"].as_u64().expect("a number"), said)
    };
    shown["descriptors"].as_array().expect("descriptors").iter().map(one).collect()
}

#[test]
fn lsfd_shows_the_same() {
    let Some(lsfd) = which("lsfd") else { skip!("lsfd is missing") };
    let lsfd = lsfd.to_str().expect("UTF-8");
    let help = pipeline(&[&[lsfd, "--help"]]).ok().text();
    let has = |column: &str| {
        help.lines().any(|line| line.trim_start().starts_with(&format!("{column} ")))
    };
    // Later versions of lsfd decorate names and types, and show those of the kernel in other
    // columns.
    let name = if has("KNAME") { "KNAME" } else { "NAME" };
    let kind = if has("STTYPE") { "STTYPE" } else { "TYPE" };
    let columns = [
        "FD", name, kind, "MODE", "FLAGS", "DEV", "RDEV", "INODE", "MNTID", "NLINK", "POS", "SIZE",
        "FUID", "DELETED",
    ];
    if let Some(missing) = columns.iter().find(|column| !has(column)) {
        skip!("this lsfd has no column {missing}");
    }
    let columns = columns.join(",");
    let peer = |pid: &str| {
        let ran = pipeline(&[&[lsfd, "-J", "-p", pid, "-o", &columns]]).ok();
        let document: Value = serde_json::from_str(&ran.text()).map_err(|err| err.to_string())?;
        let rows = document["lsfd"].as_array().ok_or("no rows")?;
        let one = |row: &Value| {
            let fd = row["fd"].as_u64()?;
            let text = |key: &str| row[key.to_lowercase()].as_str().unwrap_or_default().to_owned();
            let bits = text("flags");
            let bits: Vec<&str> = bits.split(',').collect();
            let named = FLAGS.iter().filter(|(name, _)| bits.contains(name));
            let flags: BTreeSet<&str> = named.map(|(name, _)| *name).collect();
            let access = match text("mode").as_str() {
                "r--" => "r",
                "-w-" => "w",
                "rw-" => "rw",
                _ => "path",
            };
            let kind = text(kind);
            let said = BTreeMap::from([
                ("access", json!(access)),
                ("deleted", row["deleted"].clone()),
                ("device", row["dev"].clone()),
                ("flags", json!(flags)),
                ("inode", row["inode"].clone()),
                ("links", row["nlink"].clone()),
                ("mount", row["mntid"].clone()),
                ("name", row[name.to_lowercase()].clone()),
                ("owner", row["fuid"].clone()),
                ("position", row["pos"].clone()),
                ("real device", row["rdev"].clone()),
                ("size", row["size"].clone()),
                ("type", json!(if kind == "UNKN" { "anonymous" } else { &kind })),
            ]);
            Some((fd, said))
        };
        let mut said: Said = rows.iter().filter_map(one).collect();
        // Up to 2.38, lsfd merges consecutive numbers with the same name into one file.
        let mut before = Value::Null;
        for said in said.values_mut() {
            if said["name"] == before {
                ["inode", "links", "size", "owner"].iter().for_each(|what| drop(said.remove(what)));
            }
            before = said["name"].clone();
        }
        Ok(said)
    };
    let compared = each_case(peer, |ours, theirs| {
        // lsfd shows the protocol of a socket, escapes no names, and has no word for two flags.
        let odd = theirs["name"].as_str().is_some_and(|name| name.contains('\u{fffd}'));
        if ours["type"] == "SOCK" || odd {
            theirs.remove("name");
        }
        for said in [ours, theirs] {
            let flags = said["flags"].as_array().expect("flags").iter();
            let known = flags.filter(|flag| *flag != "async");
            let known =
                known.map(|flag| if flag == "sync" { json!("dsync") } else { flag.clone() });
            said.insert("flags", known.collect());
        }
    });
    let all = [
        "access",
        "deleted",
        "device",
        "flags",
        "inode",
        "links",
        "mount",
        "name",
        "owner",
        "position",
        "real device",
        "size",
        "type",
    ];
    assert_eq!(compared, BTreeSet::from(all));
}

#[test]
fn lsof_shows_the_same() {
    let Some(lsof) = which("lsof") else { skip!("lsof is missing") };
    let lsof = lsof.to_str().expect("UTF-8");
    let fields = |pid: &str, more: &[&str]| -> BTreeMap<u64, BTreeMap<char, String>> {
        // A NUL ends a field, and a newline ends a descriptor.
        let text = pipeline(&[&[&[lsof, "-w", "-n", "-P", "-p", pid], more].concat()]).ok().text();
        let one = |line: &str| {
            let fields = line.split('\0').filter_map(|field| {
                let first = field.chars().next()?;
                Some((first, field[first.len_utf8()..].to_owned()))
            });
            let fields: BTreeMap<char, String> = fields.collect();
            Some((fields.get(&'f')?.parse().ok()?, fields))
        };
        text.split_inclusive('\n').filter_map(|line| one(line.trim_end_matches('\n'))).collect()
    };
    let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    let device = |text: &str| {
        let dev = hex(text)?;
        Some(json!(format!("{}:{}", nix::sys::stat::major(dev), nix::sys::stat::minor(dev))))
    };
    let peer = |pid: &str| {
        let sizes = fields(pid, &["-s", "-F0fs"]);
        let one = |(fd, fields): (u64, BTreeMap<char, String>)| {
            let number = |text: &String| text.parse::<u64>().ok().map(|n| json!(n));
            let mut said = BTreeMap::new();
            let mut say = |what, value: Option<Value>| value.map(|value| said.insert(what, value));
            let access = fields.get(&'a').map(String::as_str);
            say("access", access.map(|it| json!(if it == "u" { "rw" } else { it.trim() })));
            say("device", fields.get(&'D').and_then(|it| device(it)));
            say("real device", fields.get(&'r').and_then(|it| device(it)));
            say("inode", fields.get(&'i').and_then(number));
            say("links", fields.get(&'k').and_then(number));
            let position =
                fields.get(&'o').and_then(|it| it.strip_prefix("0t")?.parse::<u64>().ok());
            say("position", position.map(|n| json!(n)));
            say("size", sizes.get(&fd).and_then(|it| it.get(&'s')).and_then(number));
            let bits = fields.get(&'G').and_then(|it| hex(it.split(';').next()?));
            let named = |bits: u64| {
                let mut left = bits;
                let mut names = BTreeSet::new();
                for (name, bits) in FLAGS {
                    if left & bits == *bits {
                        names.insert(*name);
                        left &= !bits;
                    }
                }
                json!(names)
            };
            say("flags", bits.map(named));
            say("locks", fields.get(&'l').map(|it| json!(it.trim())));
            let kind = fields.get(&'t').map(String::as_str).unwrap_or_default();
            say("type", Some(json!(if kind == "a_inode" { "anonymous" } else { kind })));
            say("name", fields.get(&'n').map(|it| json!(it)));
            (fd, said)
        };
        Ok(fields(pid, &["-o", "-F0fatlDioGknr"]).into_iter().map(one).collect())
    };
    let compared = each_case(peer, |ours, theirs| {
        // lsof has no word for O_PATH.
        if ours["access"] == "path" {
            theirs.remove("access");
        }
        // lsof shows a path as it is, with a note after it; files without a path have other names.
        let path = ours["name"].as_str().is_some_and(|name| name.starts_with('/'));
        if !path || ours["type"] == "SOCK" {
            theirs.remove("name");
        }
        // lsof shows the family of a socket as its type.
        if ours["type"] == "SOCK" {
            theirs.remove("type");
        }
        // lsof shows one lock of each process and inode.
        let locks = ours["locks"].as_array().expect("locks");
        let known = locks
            .iter()
            .filter(|lock| ["POSIX", "FLOCK"].contains(&lock["class"].as_str().unwrap()));
        let letter = |lock: &Value| {
            let whole = lock["start"] == 0 && lock["end"].is_null();
            match (lock["write"] == true, whole) {
                (true, true) => "W",
                (true, false) => "w",
                (false, true) => "R",
                (false, false) => "r",
            }
        };
        let letters: Vec<&str> = known.map(letter).collect();
        match letters.iter().find(|letter| theirs["locks"] == **letter) {
            Some(letter) => drop(ours.insert("locks", json!(letter))),
            None if letters.is_empty() => drop(theirs.remove("locks")),
            None => drop(ours.insert("locks", json!(letters))),
        }
    });
    let all = [
        "access",
        "device",
        "flags",
        "inode",
        "links",
        "locks",
        "name",
        "position",
        "real device",
        "size",
        "type",
    ];
    assert_eq!(compared, BTreeSet::from(all));
}
