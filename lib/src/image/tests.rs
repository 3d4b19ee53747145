//! What must hold of any image: it survives the stream, and no damage goes unnoticed.

use super::*;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use std::collections::BTreeMap;

fn bytes() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes)
}

fn lock() -> impl Strategy<Value = Lock> {
    ("[A-Z]{1,8}", any::<bool>(), any::<u64>(), any::<Option<u64>>())
        .prop_map(|(class, write, start, end)| Lock { class, write, start, end, breaking: false })
}

fn inode() -> impl Strategy<Value = Inode> {
    let numbers = (any::<(u32, u32)>(), any::<u64>(), any::<u32>(), any::<u32>());
    let rest = (any::<u64>(), any::<(i64, u32)>(), any::<Option<(u32, u32)>>());
    (numbers, rest).prop_map(|((dev, ino, mode, nlink), (size, mtime, rdev))| {
        let (uid, gid) = (mode ^ 7, nlink ^ 9);
        Inode { dev, ino, mode, nlink, uid, gid, size, mtime, rdev }
    })
}

prop_compose! {
    fn file()(
        kind in "[a-z]{1,9}", flags in any::<u32>(), pos in any::<i64>(), link in bytes(),
        mnt in any::<i32>(), inode in prop::option::of(inode()), object in any::<bool>(),
        signals in prop::option::of(any::<(i32, i32, i32)>()),
        locks in prop::collection::vec(lock(), 0..3), info in bytes(),
    ) -> OpenFile {
        let signals = signals.map(|(kind, id, signal)| Signals { kind, id, signal });
        let body = serde_cbor::to_vec(&BTreeMap::from([("info", info)])).unwrap();
        let object = object.then_some(0);
        OpenFile { id: 0, kind, flags, pos, link, mnt, inode, signals, object, locks, body }
    }
}

fn task() -> Task {
    Task {
        pid: 1,
        tgid: None,
        ppid: -1,
        pgid: 1,
        sid: 1,
        start: 1 << 40,
        comm: Bytes(b"a) \xff".to_vec()),
        exe: None,
        args: vec![Bytes(vec![0xff])],
        cwd: Some(Bytes(b"/".to_vec())),
        root: None,
        umask: 0o22,
        credentials: Credentials {
            uids: [0; 4],
            gids: [u32::MAX; 4],
            groups: vec![],
            caps: [1; 5],
        },
        namespaces: BTreeMap::from([("net".into(), 7)]),
        cgroup: Some(Bytes(b"/\xff".to_vec())),
        table: Table { id: 0, capacity: 64, highest: None, limit: (1024, u64::MAX) },
        terminal: Some(Terminal { device: 34816, foreground: -1, path: None }),
        stopped: true,
    }
}

prop_compose! {
    /// A whole image: files with ascending ids and gaps, slots that name them, contents.
    fn items()(
        files in prop::collection::vec((file(), 1u32..4), 1..8),
        slots in prop::collection::vec((any::<prop::sample::Index>(), 1u32..5, any::<bool>()), 0..8),
        data in prop::collection::vec(bytes(), 0..4),
    ) -> Vec<Item> {
        let head = Head {
            version: VERSION, minor: 0, tool: "t".into(), release: "0".into(),
            kernel: Bytes::default(), boot: String::new(), host: None, time: (1, 2),
            contents: true, frozen: false, passive: true,
        };
        let mut items = vec![Item::Head(head), Item::Task(task().into())];
        let mut ids = Vec::new();
        let mut objects = false;
        for (mut file, gap) in files {
            file.id = ids.last().map_or(0, |last| last + gap);
            objects |= file.object.is_some();
            ids.push(file.id);
            items.push(Item::File(file.into()));
        }
        let mut fd = 0;
        for (file, gap, cloexec) in slots {
            fd += gap;
            let file = ids[file.index(ids.len())];
            items.push(Item::Slot(Slot { table: 0, fd, cloexec, file, locks: Vec::new() }));
        }
        for (at, bytes) in data.into_iter().enumerate().filter(|_| objects) {
            items.push(Item::Data(Data { object: 0, offset: at as i64, with: None, bytes }));
        }
        items
    }
}

fn write(items: &[Item]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for item in items {
        writer.put(item).unwrap();
    }
    writer.end().unwrap()
}

fn read(stream: &[u8]) -> crate::error::Result<Vec<Item>> {
    let mut reader = Reader::new(stream);
    let mut items = Vec::new();
    while let Some(entry) = reader.next()? {
        items.push(entry.item);
    }
    Ok(items)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_sequence_of_records_survives(items in items()) {
        prop_assert_eq!(read(&write(&items)).unwrap(), items);
    }

    #[test]
    fn any_flipped_bit_and_any_missing_byte_is_reported(items in items(), bit in 0usize..8) {
        let whole = write(&items);
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 1 << bit;
            prop_assert!(read(&bad).is_err(), "bit {} of byte {}", bit, at);
            bad.remove(at);
            prop_assert!(read(&bad).is_err(), "byte {} gone", at);
            prop_assert!(read(&whole[..at]).is_err(), "cut at {}", at);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read(&bytes);
        let _ = read(&[&scan::MARK[..], &bytes].concat());
    }
}

fn refused(items: &[Item]) -> String {
    read(&write(items)).unwrap_err().to_string()
}

#[test]
fn records_that_do_not_fit_together_are_refused() {
    let slot =
        |fd, file, table| Item::Slot(Slot { table, fd, cloexec: false, file, locks: vec![] });
    let begin = |more: &[Item]| {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let tree = items().new_tree(&mut runner).unwrap();
        let is_begin = |item: &Item| matches!(item, Item::Head(_) | Item::Task(_));
        let mut all: Vec<Item> = tree.current().into_iter().filter(is_begin).collect();
        let mut file = file().new_tree(&mut runner).unwrap().current();
        file.id = 5;
        file.object = Some(1);
        all.push(Item::File(file.into()));
        all.extend_from_slice(more);
        all
    };
    assert!(read(&write(&begin(&[slot(3, 5, 0)]))).is_ok());
    assert!(refused(&begin(&[slot(3, 4, 0)])).contains("names file 4, which is not there"));
    assert!(refused(&begin(&[slot(3, 5, 1)])).contains("of table 1, which no task has"));
    assert!(refused(&begin(&[slot(3, 5, 0), slot(3, 5, 0)])).contains("comes twice"));
    assert!(refused(&begin(&[slot(3, 5, 0), slot(2, 5, 0)])).contains("after a higher one"));
    let data = Item::Data(Data { object: 0, offset: 0, with: None, bytes: Bytes::default() });
    assert!(refused(&begin(&[data])).contains("contents of object 0"));
    let queued = |id| {
        let with = Some(Box::new(MessageMeta { files: vec![5, id], ..MessageMeta::default() }));
        Item::Data(Data { object: 1, offset: 0, with, bytes: Bytes::default() })
    };
    assert!(read(&write(&begin(&[queued(5)]))).is_ok());
    assert!(refused(&begin(&[queued(6)])).contains("file 6, queued in object 1, is not there"));
    assert!(refused(&begin(&[])[1..]).contains("a head stands first"));
}

#[test]
fn a_key_that_this_version_does_not_know_is_ignored_and_passed_on() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let all = items().new_tree(&mut runner).unwrap().current();
    let mut writer = Writer::new(Vec::new());
    let mut passed = Vec::new();
    for item in &all {
        let Item::File(file) = item else {
            writer.put(item).unwrap();
            continue;
        };
        // `refs` was in the grammar of minor version 0, and no version has written it.
        let (key, mut value) = Item::File(file.clone()).encode();
        scan::push_field(&mut value, "refs", &[0x81, 0x18, 99]);
        let record = [&[0xa1, 0x64], key.as_bytes(), &value].concat();
        writer.pass(&record).unwrap();
        passed.push(record);
    }
    let stream = writer.end().unwrap();
    assert_eq!(read(&stream).unwrap(), all);
    let mut reader = Reader::new(&stream[..]);
    let mut files = Vec::new();
    while let Some(RawItem { whole, item, .. }) = reader.next().unwrap() {
        files.extend(matches!(item, Item::File(_)).then(|| whole.to_vec()));
    }
    assert_eq!(files, passed);
}

/// A task of root with this table.
pub(crate) fn task_of_root(pid: i32, ppid: i32, pgid: i32, sid: i32, table: u32) -> Task {
    Task {
        pid,
        tgid: None,
        ppid,
        pgid,
        sid,
        start: 0,
        comm: Bytes::default(),
        exe: None,
        args: Vec::new(),
        cwd: None,
        root: None,
        umask: 0o22,
        credentials: Credentials { uids: [0; 4], gids: [0; 4], groups: Vec::new(), caps: [0; 5] },
        namespaces: BTreeMap::new(),
        cgroup: None,
        table: Table { id: table, capacity: 64, highest: None, limit: (1024, 1024) },
        terminal: None,
        stopped: false,
    }
}
