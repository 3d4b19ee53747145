//! Images with a valid checksum and contradictory contents: the records of real images, dropped,
//! repeated, exchanged and changed. No tool panics, is killed, or exits with a status that is not
//! documented.

use crate::forged::forged;
use crate::harness::{Pipeline, Scratch, image};
use fdkit::ctty::SessionRole;
use fdkit::error::Status;
use fdkit::image::{Bytes, Item};
use fdkit::kind::DecodedImage;
use fdkit::kind::effect::AllowList;
use fdkit::plan::{Missing, Plan, RestoreOptions};
use fdkit::table::command;
use fdkit::tree::{self, Mode, Tree};
use serde_cbor::Value;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Pseudorandom numbers that are the same in every run: xorshift64.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }

    /// A number at which a computation may overflow.
    fn odd(&mut self) -> i128 {
        let odd = [0, 1, -1, 63, 64, 1023, 0x7fff_ffff, 0xffff_ffff, 1 << 31, -(1 << 31)];
        let far = [i128::from(i64::MAX), i128::from(i64::MIN), i128::from(u64::MAX)];
        let at = self.below(odd.len() + far.len());
        odd.get(at).copied().unwrap_or_else(|| far[at - odd.len()])
    }
}

/// Changes one value somewhere in a body.
fn change_value(value: &mut Value, numbers: &mut Numbers) {
    match value {
        Value::Map(map) if !map.is_empty() => {
            let at = numbers.below(map.len());
            change_value(map.values_mut().nth(at).expect("a value"), numbers);
        }
        Value::Array(list) if !list.is_empty() => {
            let at = numbers.below(list.len());
            match numbers.below(4) {
                0 => drop(list.remove(at)),
                1 => list.push(list[at].clone()),
                _ => change_value(&mut list[at], numbers),
            }
        }
        Value::Bytes(bytes) => match numbers.below(3) {
            0 => bytes.clear(),
            1 => bytes.truncate(bytes.len() / 2),
            _ => bytes.extend([0, b'/', 0xff]),
        },
        Value::Bool(flag) => *flag = !*flag,
        Value::Text(text) => text.clear(),
        other => *other = Value::Integer(numbers.odd()),
    }
}

/// Makes one change in the records after the head.
fn change(items: &mut Vec<Item>, numbers: &mut Numbers) {
    let count = items.len() - 1;
    let (at, other) = (1 + numbers.below(count), 1 + numbers.below(count));
    match numbers.below(12) {
        0 => drop(items.remove(at)),
        1 => items.insert(at, items[at].clone()),
        2 => items.swap(at, other),
        _ => {
            let like = items[other].clone();
            match (&mut items[at], like) {
                (Item::File(file), Item::File(like)) if file.id != like.id => {
                    match numbers.below(4) {
                        0 => file.object = like.object,
                        1 => file.kind = like.kind.clone(),
                        2 => file.link = like.link.clone(),
                        _ => (file.kind, file.body) = (like.kind.clone(), like.body.clone()),
                    }
                }
                (Item::File(file), _) => match numbers.below(9) {
                    0 => file.flags = numbers.odd() as u32,
                    1 => file.pos = numbers.odd() as i64,
                    2 => file.object = [None, Some(0), Some(1)][numbers.below(3)],
                    3 => file.link = Bytes(vec![b'/'; numbers.below(3)]),
                    4 => file.inode = None,
                    5 => file.inode.iter_mut().for_each(|it| it.size = numbers.odd() as u64),
                    6 => file.inode.iter_mut().for_each(|it| it.mode = numbers.odd() as u32),
                    _ => {
                        let mut body = serde_cbor::from_slice(&file.body).unwrap();
                        change_value(&mut body, numbers);
                        file.body = serde_cbor::to_vec(&body).unwrap();
                    }
                },
                (Item::Slot(slot), _) => match numbers.below(3) {
                    0 => slot.fd = numbers.odd() as u32,
                    1 => slot.file = numbers.below(12) as u32,
                    _ => slot.table = numbers.odd() as u32,
                },
                (Item::Task(task), _) => match numbers.below(6) {
                    0 => task.pid = numbers.odd() as i32,
                    1 => task.ppid = task.pid,
                    2 => task.sid = numbers.odd() as i32,
                    3 => task.pgid = numbers.odd() as i32,
                    4 => task.table.limit = (numbers.odd() as u64, numbers.odd() as u64),
                    _ => task.table.capacity = numbers.odd() as u32,
                },
                (Item::Data(data), _) => match numbers.below(3) {
                    0 => data.offset = numbers.odd() as i64,
                    1 => data.object = numbers.below(4) as u32,
                    _ => data.bytes = Bytes(Vec::new()),
                },
                _ => (),
            }
        }
    }
}

/// Descriptors of every family of kinds, a set for each image.
const SPECS: [&[&str]; 4] = [
    &["pipe@3,4:data=hello", "eventfd@5", "unlinked@6:data=hello", "memfd@7:data=hello"],
    &["fifo@3,4:unlinked", "regular@5", "directory@6", "mem@7", "timerfd@8", "signalfd@9"],
    &["epoll@3,4", "inotify@5", "socketpair@6,7", "mqueue@8", "pty@9,10"],
    &["tcp@3", "udp@5", "unix@6", "netlink@7", "pidfd@8", "ns@9", "unlinked@10:data="],
];

/// The image with one to three changes, which `set` and `nth` determine.
fn mutant(whole: &[u8], set: usize, nth: u64) -> Vec<u8> {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15 ^ (nth << 8 | set as u64));
    (0..8).for_each(|_| _ = numbers.below(2));
    forged(whole, |items| {
        for _ in 0..1 + numbers.below(3) {
            if items.len() > 2 {
                change(items, &mut numbers);
            }
        }
    })
}

/// How many mutants of each image a test tries: FDKIT_MUTANTS, or this many.
fn count(default: u64) -> u64 {
    std::env::var("FDKIT_MUTANTS").map_or(default, |count| count.parse().unwrap())
}

/// Loads an image, plans the restore of a table and of the tree, and lists their operations. True if it
/// is whole. Fails with the error that a tool would have.
fn load_and_plan(mutant: &[u8], options: &RestoreOptions) -> fdkit::error::Result<bool> {
    let image = match DecodedImage::load(mutant) {
        Ok(image) => image,
        Err(err) => {
            assert_eq!(err.status(), Status::Malformed, "{err}");
            return Ok(false);
        }
    };
    let plan = Plan::new(&image, options, None, true)?;
    let operations = command::operations(&plan, options)?;
    assert!(operations.len() <= 10_000, "{} operations", operations.len());
    let tree = Tree::new(&image, options, None, SessionRole::myself()?, true)?;
    tree::operations(&tree, options, &Mode::new(options, Vec::new()))?;
    Ok(true)
}

#[test]
fn images_with_contradictory_records_are_refused_or_planned() {
    let scratch = Scratch::new();
    let allow = vec![AllowList::all()];
    let options = RestoreOptions { missing: Missing::Skip, allow, ..RestoreOptions::default() };
    let (mut all, mut whole, mut refused) = (0, 0, 0);
    for (set, specs) in SPECS.iter().enumerate() {
        let bytes = fs::read(image(&scratch, specs)).unwrap();
        for nth in 0..count(500) {
            let mutant = mutant(&bytes, set, nth);
            let begin = Instant::now();
            let name = || format!("mutant {nth} of image {set}");
            let run = || load_and_plan(&mutant, &options);
            let outcome = catch_unwind(AssertUnwindSafe(run));
            match outcome.unwrap_or_else(|_| panic!("{} panics", name())) {
                Ok(is_whole) => whole += u64::from(is_whole),
                Err(err) => {
                    let status = err.status();
                    let known = [Status::Malformed, Status::Denied, Status::Unrestorable];
                    assert!(known.contains(&status), "{}: {status:?}: {err}", name());
                    refused += 1;
                }
            }
            all += 1;
            assert!(begin.elapsed() < Duration::from_secs(5), "{} takes too long", name());
        }
    }
    println!("{all} mutants: {whole} planned, {refused} refused by the plan, the others malformed");
    assert!(whole > all / 20 && whole < all - all / 20, "{whole} of {all} are whole");
}

#[test]
fn images_with_contradictory_records_get_documented_statuses_in_time() {
    let tools: &[(&[&str], &[i32])] = &[
        (&["fdimg", "verify"], &[0, 1, 3]),
        (&["fdimg", "show"], &[0, 3]),
        (&["fdimg", "show", "-J"], &[0, 3]),
        (&["fdimg", "select", "-F", "3"], &[0, 1, 3, 5]),
        (&["fdimg", "place"], &[0, 3, 6]),
        (&["fdrestore", "-n"], &[0, 3, 6]),
        (&["fdrestore", "-n", "--tree"], &[0, 3, 6]),
    ];
    let scratch = Scratch::new();
    for (set, specs) in SPECS.iter().enumerate() {
        let whole = fs::read(image(&scratch, specs)).unwrap();
        for nth in 0..count(40).min(1000) {
            let mutant = mutant(&whole, set, nth);
            for (tool, statuses) in tools {
                let begin = Instant::now();
                let ran = Pipeline::new(&[tool]).stdin(mutant.clone()).run();
                let name = format!("mutant {nth} of image {set}");
                assert!(!ran.stderr(0).contains("panicked"), "{name}: {}", ran.whole());
                assert!(statuses.contains(&ran.status(0)), "{name}: {}", ran.whole());
                assert!(begin.elapsed() < Duration::from_secs(5), "{name}: {}", ran.whole());
            }
        }
    }
}
