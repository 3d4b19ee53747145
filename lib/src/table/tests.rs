//! Tests of the operations that the driver makes for small images, by the executor on paper.

use crate::error::Result;
use crate::image::{Bytes, Writer};
use crate::image::{Data, Head, Image, Item, Lock, MessageMeta, OpenFile, Signals, Slot, Task};
use crate::kind::context::{Held, Opened, PidMap, RestoreContext};
use crate::kind::tests::file_of;
use crate::kind::{Captured, DecodedImage};
use crate::messages::Messages;
use crate::operation::{Operation, Origin, Outcome};
use crate::placement::Placement;
use crate::plan::{Inherit, Missing, Plan, RestoreOptions, SingleTask};
use crate::proc::Process;
use crate::table::command::operations;
use crate::table::driver::TableRestore;
use crate::table::executor::Executor;
use crate::table::source::Source;
use nix::errno::Errno;
use nix::libc;
use nix::sys::eventfd::EventFd;
use proptest::prelude::*;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// An image of one task: its files by ascending id, its slots, and the contents of its queues.
#[derive(Default)]
struct Table {
    /// The process id of the task; 700 if the field is zero.
    pid: i32,
    files: Vec<OpenFile>,
    slots: Vec<Slot>,
    data: Vec<Data>,
}

impl Table {
    /// Adds a file, and returns its id.
    fn file(&mut self, file: OpenFile) -> u32 {
        let id = self.files.len() as u32;
        self.files.push(OpenFile { id, ..file });
        id
    }

    fn pid(&self) -> i32 {
        if self.pid == 0 { 700 } else { self.pid }
    }

    fn slot(&mut self, fd: u32, file: u32) -> &mut Slot {
        self.slots.push(Slot { table: 0, fd, cloexec: false, file, locks: Vec::new() });
        self.slots.last_mut().unwrap()
    }

    /// Adds a description at a number, and returns its id.
    fn at(&mut self, number: u32, fd: impl AsFd) -> u32 {
        let file = self.file(file_of(fd));
        self.slot(number, file);
        file
    }

    fn image(&self) -> DecodedImage {
        let myself = Process::open(std::process::id() as i32).unwrap();
        let task = Task {
            pid: self.pid(),
            terminal: None,
            ..myself.task(0, None, &mut Messages::kept()).unwrap()
        };
        let head = Head { contents: true, ..crate::capture::head("test", &mut Messages::kept()) };
        let mut writer = Writer::new(Vec::new());
        let mut put = |item: Item| writer.put(&item).unwrap();
        put(Item::Head(head));
        put(Item::Task(task.into()));
        self.files.iter().for_each(|file| put(Item::File(file.clone().into())));
        let mut slots = self.slots.clone();
        slots.sort_by_key(|slot| slot.fd);
        slots.into_iter().for_each(|slot| put(Item::Slot(slot)));
        self.data.iter().for_each(|data| put(Item::Data(data.clone())));
        let image = Image::load(&writer.end().unwrap()[..]).unwrap();
        DecodedImage::new(image).unwrap()
    }

    fn operations(&self, options: &RestoreOptions) -> Vec<Operation> {
        let image = self.image();
        let plan = Plan::new(&image, options, None, false).unwrap();
        assert_eq!(plan.problems, []);
        operations(&plan, options).unwrap()
    }
}

fn eventfd() -> EventFd {
    EventFd::new().unwrap()
}

fn place(number: RawFd, file: u32) -> Operation {
    Operation::Place { number, file, origin: Origin::Opened }
}

const SHRINK: Operation = Operation::Shrink { capacity: 64 };

#[test]
fn descriptions_are_opened_in_ascending_order_and_a_dup_follows_the_first_number() {
    let mut table = Table::default();
    let first = table.at(7, eventfd());
    let second = table.at(3, eventfd());
    table.slot(9, first);
    table.slot(4, second);
    let wanted = [
        place(3, second),
        Operation::Dup { from: 3, number: 4 },
        place(7, first),
        Operation::Dup { from: 7, number: 9 },
        SHRINK,
    ];
    assert_eq!(table.operations(&RestoreOptions::default()), wanted);
}

#[test]
fn only_the_tight_policy_shrinks_the_table() {
    let mut table = Table::default();
    let file = table.at(700, eventfd());
    let shrink = Operation::Shrink { capacity: 1024 };
    for placement in Placement::ALL {
        let options = RestoreOptions { placement, ..RestoreOptions::default() };
        let found = table.operations(&options);
        let wanted = match placement {
            Placement::Tight => vec![place(700, file), shrink.clone()],
            _ => vec![place(700, file)],
        };
        assert_eq!(found, wanted, "{placement:?}");
    }
}

#[test]
fn the_members_of_an_epoll_are_added_when_all_numbers_are_placed() {
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
    use std::os::fd::AsRawFd;
    let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
    let member = eventfd();
    epoll.add(&member, EpollEvent::new(EpollFlags::EPOLLIN, 5)).unwrap();
    // The record refers to numbers of this process.
    let mut table = Table { pid: std::process::id() as i32, ..Table::default() };
    let (low, high) = (epoll.0.as_raw_fd(), member.as_fd().as_raw_fd());
    let outer = table.at(low as u32, &epoll.0);
    let inner = table.at(high as u32, &member);
    let found = table.operations(&RestoreOptions::default());
    let mut places = [place(low, outer), place(high, inner)];
    places.sort_by_key(|operation| match operation {
        Operation::Place { number, .. } => *number,
        _ => 0,
    });
    assert_eq!(found[..2], places);
    let Operation::EpollMembers { number, members } = &found[2] else { panic!("{found:?}") };
    assert_eq!((*number, members.len()), (low, 1));
    assert_eq!((members[0].source, members[0].number, members[0].data), (high, high, 5));
}

#[test]
fn owners_come_before_locks_of_descriptions_and_those_before_locks_of_the_table() {
    let dir = std::env::temp_dir().join(format!("fdkit-operations-{}", std::process::id()));
    let file = std::fs::File::options();
    let file = file.clone().read(true).write(true).create(true).truncate(true).open(&dir).unwrap();
    let lock = |class: &str| Lock {
        class: class.into(),
        write: true,
        start: 0,
        end: None,
        breaking: false,
    };
    let mut table = Table::default();
    let mut record = file_of(&file);
    record.flags |= libc::O_ASYNC as u32;
    record.signals = Some(Signals { kind: 1, id: 700, signal: 10 });
    record.locks = vec![lock("FLOCK")];
    let id = table.file(record.clone());
    table.slot(5, id).locks = vec![lock("POSIX")];
    let found = table.operations(&RestoreOptions::default());
    std::fs::remove_file(&dir).unwrap();
    let pid = std::process::id() as i32;
    let wanted = [
        place(5, id),
        Operation::Owner { number: 5, owner: Some((1, pid)), signal: 10 },
        Operation::Async { number: 5, flags: record.flags },
        Operation::Lock { number: 5, lock: lock("FLOCK") },
        Operation::TestLock { number: 5, lock: lock("POSIX") },
        SHRINK,
        Operation::Lock { number: 5, lock: lock("POSIX") },
    ];
    assert_eq!(found, wanted);
}

#[test]
fn an_owner_that_is_not_restored_is_left_unset_and_its_signal_is_kept() {
    let mut table = Table::default();
    let mut record = file_of(eventfd());
    record.signals = Some(Signals { kind: 1, id: 1, signal: 12 });
    let id = table.file(record);
    table.slot(3, id);
    let wanted = [place(3, id), Operation::Owner { number: 3, owner: None, signal: 12 }, SHRINK];
    assert_eq!(table.operations(&RestoreOptions::default()), wanted);
}

#[test]
fn what_cannot_be_restored_is_replaced_at_all_its_numbers_or_at_none() {
    let mut table = Table::default();
    let id = table.file(Captured::unreadable(3, &Errno::EIO.into()).into_file(0));
    table.slot(3, id);
    table.slot(8, id);
    let run = |missing| table.operations(&RestoreOptions { missing, ..RestoreOptions::default() });
    let null = |number| Operation::Place { number, file: id, origin: Origin::Null };
    assert_eq!(run(Missing::Null), [null(3), null(8), SHRINK]);
    assert_eq!(run(Missing::Skip), [SHRINK]);
}

#[test]
fn a_descriptor_of_the_caller_is_inherited_and_not_opened() {
    let mut table = Table::default();
    let file = table.at(0, eventfd());
    let other = table.at(6, eventfd());
    table.slot(7, file);
    let own = RestoreOptions {
        inherit: vec![Inherit::SameNumbers(vec![0])],
        ..RestoreOptions::default()
    };
    let wanted =
        [Operation::Inherit { number: 0, from: 0 }, place(6, other), place(7, file), SHRINK];
    assert_eq!(table.operations(&own), wanted);
}

#[test]
fn a_number_of_the_caller_that_the_image_does_not_have_is_placed_in_order() {
    let mut table = Table::default();
    let file = table.at(3, eventfd());
    let own = RestoreOptions {
        inherit: vec![Inherit::SameNumbers(vec![1])],
        ..RestoreOptions::default()
    };
    let wanted = [Operation::Inherit { number: 1, from: 1 }, place(3, file), SHRINK];
    assert_eq!(table.operations(&own), wanted);
}

#[test]
fn the_most_precise_key_replaces_a_descriptor_in_any_order_of_the_options() {
    let mut table = Table::default();
    let file = table.at(0, eventfd());
    table.slot(7, file);
    let key = |key: &str, fd| Inherit::Key(key.as_bytes().to_vec(), fd);
    let link = "anon_inode:[eventfd]";
    let found = |inherit: [Inherit; 2]| {
        table.operations(&RestoreOptions { inherit: inherit.to_vec(), ..RestoreOptions::default() })
    };
    let wanted = [
        Operation::Inherit { number: 0, from: 1 },
        Operation::Inherit { number: 7, from: 2 },
        SHRINK,
    ];
    assert_eq!(found([key(link, 1), key("7", 2)]), wanted);
    assert_eq!(found([key("700:7", 2), key(link, 1)]), wanted);
    let image = table.image();
    let options = |inherit: Vec<Inherit>| RestoreOptions { inherit, ..RestoreOptions::default() };
    let refusal = |inherit| Plan::new(&image, &options(inherit), None, false).err().unwrap();
    let why = refusal(vec![key("7", 1), key("700:7", 2)]);
    assert_eq!(why.to_string(), "--inherit: another --inherit replaces '7' already");
    let why = refusal(vec![key("701:7", 1)]);
    assert_eq!(why.to_string(), "--inherit: the image has no descriptor '701:7'");
}

#[test]
fn a_descriptor_that_this_program_has_opened_is_not_one_of_the_caller() {
    use std::os::fd::AsRawFd;
    let mut table = Table::default();
    table.at(3, eventfd());
    let image = table.image();
    let own = std::fs::File::open("/dev/null").unwrap();
    let inherit = vec![Inherit::Key(b"3".to_vec(), own.as_raw_fd())];
    let options = RestoreOptions { inherit, ..RestoreOptions::default() };
    let why = Plan::new(&image, &options, None, false).err().unwrap();
    assert_eq!(why.status() as u8, 2);
    assert!(why.to_string().ends_with("is not open"), "{why}");
}

/// An executor that keeps the descriptors of a table in this process, and lists the operations.
#[derive(Default)]
struct Recorder {
    operations: Vec<Operation>,
}

impl Executor for Recorder {
    fn place(&mut self, fds: Vec<OwnedFd>, operations: &[Operation]) -> Result<Vec<Held>> {
        self.operations.extend(operations.iter().cloned());
        Ok(fds.into_iter().map(Held::Owned).collect())
    }

    fn held(&self, _: RawFd) -> Result<Held> {
        Err(Errno::EBADF.into())
    }

    fn inherited(&self, number: RawFd) -> Result<Held> {
        self.held(number)
    }

    fn control(&mut self, _: BorrowedFd<'_>, _: &Operation) -> Result<()> {
        Err(Errno::EINVAL.into())
    }

    fn run(&mut self, operation: &Operation) -> Result<Outcome> {
        self.operations.push(operation.clone());
        Ok(Outcome::Done)
    }
}

/// A source that opens a pipe for every file.
struct PipeSource;

impl Source for PipeSource {
    fn open(&mut self, _: &OpenFile, _: &mut RestoreContext<'_>) -> Result<Opened> {
        let (reader, _) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        Ok(Opened::new(reader, 0))
    }
}

#[test]
fn a_descriptor_that_fails_after_it_was_placed_is_closed_at_its_number() {
    let mut table = Table::default();
    // lseek(2) of a pipe fails.
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    let id = table.file(OpenFile { pos: 7, ..file_of(&file) });
    table.slot(3, id);
    table.slot(5, id);
    let image = table.image();
    let run = |missing| {
        let options = RestoreOptions { missing, ..RestoreOptions::default() };
        let plan = Plan::new(&image, &options, None, false).unwrap();
        let pids = SingleTask(plan.task);
        let cx = plan.context(&[], &pids, None, &options);
        let (mut recorder, mut source) = (Recorder::default(), PipeSource);
        let mut restore = TableRestore::new(&plan, &options, cx, &mut source, None);
        restore.make(|_| true, &mut recorder).unwrap();
        let mut said = Messages::kept();
        let made = restore.end_making(&mut recorder, &mut said);
        assert_eq!(made.is_err(), missing == Missing::Fail);
        (recorder.operations, said.take())
    };
    let null = |number| Operation::Place { number, file: id, origin: Origin::Null };
    let taken_away = [place(3, id), Operation::Close { number: 3 }];
    assert_eq!(run(Missing::Skip), (taken_away.to_vec(), Vec::new()));
    assert_eq!(run(Missing::Null).0, [&taken_away[..], &[null(3), null(5)]].concat());
    let (operations, said) = run(Missing::Fail);
    assert_eq!(operations, taken_away);
    assert!(said.len() == 1 && said[0].contains("lseek: Illegal seek"), "{said:?}");
}

#[test]
fn a_queued_descriptor_is_open_until_the_queue_is_filled() {
    let (socket, peer) = UnixStream::pair().unwrap();
    drop(peer);
    let mut table = Table::default();
    let carrier = table.file(OpenFile { object: Some(0), ..file_of(&socket) });
    table.slot(3, carrier);
    let queued = table.file(file_of(eventfd()));
    let meta = MessageMeta { files: vec![queued], ..MessageMeta::default() };
    let bytes = Bytes(b"x".to_vec());
    table.data.push(Data { object: 0, offset: 0, with: Some(meta.into()), bytes });
    let found = table.operations(&RestoreOptions::default());
    // The other end is closed in the image, and open until the queue is filled.
    let closed_end = Operation::Place { number: 0, file: carrier, origin: Origin::ClosedEnd };
    let what = "connect it, fill the queue, shut it down".to_owned();
    let wanted = [
        closed_end,
        place(1, queued),
        place(3, carrier),
        Operation::Finish { number: 3, file: carrier, what },
        Operation::Close { number: 0 },
        Operation::Close { number: 1 },
        SHRINK,
    ];
    assert_eq!(found, wanted);
}

#[test]
fn a_plan_counts_the_descriptors_that_the_restored_table_keeps() {
    let mut table = Table::default();
    table.at(3, eventfd());
    let unreadable = table.file(Captured::unreadable(3, &Errno::EIO.into()).into_file(0));
    table.slot(700, unreadable);
    let image = table.image();
    let planned = |missing| {
        let options = RestoreOptions { missing, ..RestoreOptions::default() };
        let plan = Plan::new(&image, &options, None, false).unwrap();
        let lowest = plan.lowest.get(&unreadable).copied();
        (plan.highest(), plan.descriptors(), lowest, plan.problems.len())
    };
    // A file that is not restored has no lowest number, and so is no peer or member of another.
    assert_eq!(planned(Missing::Fail), (Some(3), 1, None, 1));
    assert_eq!(planned(Missing::Skip), (Some(3), 1, None, 0));
    assert_eq!(planned(Missing::Null), (Some(700), 2, None, 0));
}

#[test]
fn a_plan_keeps_no_number_that_is_open_only_until_a_queue_is_filled() {
    let (socket, peer) = UnixStream::pair().unwrap();
    drop(peer);
    let mut table = Table::default();
    let carrier = table.file(OpenFile { object: Some(0), ..file_of(&socket) });
    table.slot(0, carrier);
    let queued = table.file(file_of(eventfd()));
    let meta = MessageMeta { files: vec![queued], ..MessageMeta::default() };
    let bytes = Bytes(b"x".to_vec());
    table.data.push(Data { object: 0, offset: 0, with: Some(meta.into()), bytes });
    let image = table.image();
    let plan = Plan::new(&image, &RestoreOptions::default(), None, false).unwrap();
    assert_eq!(plan.steps.last().map(|step| (step.fd, step.temporary)), Some((2, true)));
    assert_eq!((plan.highest(), plan.descriptors()), (Some(0), 1));
    assert_eq!(plan.numbers[0].len(), 1);
    // What the caller gives for a file in the queue is placed there, and closed after it.
    let key = Inherit::Key(b"anon_inode:[eventfd]".to_vec(), 0);
    let options = RestoreOptions { inherit: vec![key], ..RestoreOptions::default() };
    let found = table.operations(&options);
    let inherited: Vec<&Operation> =
        found.iter().filter(|it| matches!(it, Operation::Inherit { from: 0, .. })).collect();
    let [Operation::Inherit { number, .. }] = inherited[..] else { panic!("{found:?}") };
    assert!(found.contains(&Operation::Close { number: *number }), "{found:?}");
}

#[test]
fn a_plan_locks_only_the_files_that_are_restored_at_their_numbers() {
    let path = std::env::temp_dir().join(format!("fdkit-plan-locks-{}", std::process::id()));
    let file = std::fs::File::create(&path).unwrap();
    let lock = Lock { class: "POSIX".into(), write: true, start: 0, end: None, breaking: false };
    let mut table = Table::default();
    let id = table.at(3, &file);
    table.slots[0].locks = vec![lock.clone()];
    table.slot(4, id);
    let locked = |inherit: Vec<Inherit>| {
        let options = RestoreOptions { inherit, ..RestoreOptions::default() };
        let image = table.image();
        let plan = Plan::new(&image, &options, None, false).unwrap();
        let locks = plan.locks(&plan.steps);
        locks.map(|(step, _, lock, of_table)| (step.fd, lock.clone(), of_table)).collect::<Vec<_>>()
    };
    assert_eq!(locked(Vec::new()), [(3, lock.clone(), true)]);
    assert_eq!(locked(vec![Inherit::Key(b"4".to_vec(), 0)]), [(3, lock, true)]);
    assert_eq!(locked(vec![Inherit::Key(b"3".to_vec(), 0)]), []);
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_plan_is_that_of_the_task_with_the_given_process_id() {
    let mut table = Table::default();
    table.at(3, eventfd());
    let image = table.image();
    let planned = |task| {
        let options = RestoreOptions { task, ..RestoreOptions::default() };
        Plan::new(&image, &options, None, false).map(|plan| plan.task.pid)
    };
    assert_eq!(planned(None).unwrap(), 700);
    assert_eq!(planned(Some(700)).unwrap(), 700);
    let why = planned(Some(9)).unwrap_err();
    assert_eq!((why.status() as u8, why.to_string().as_str()), (6, "the image has no task 9"));
}

#[test]
fn a_plan_for_one_task_knows_only_its_process_and_group() {
    let image = Table::default().image();
    let plan = Plan::new(&image, &RestoreOptions::default(), None, false).unwrap();
    let pids = SingleTask(plan.task);
    assert_eq!(pids.process(700), Some(std::process::id() as i32));
    assert_eq!(pids.process(701), None);
    // A group with other processes than the restored one is not that of the image.
    let (pid, group) = (nix::unistd::getpid(), nix::unistd::getpgrp());
    assert_eq!(pids.group(plan.task.pgid), (pid == group).then_some(group.as_raw()));
    assert_eq!(pids.group(plan.task.pgid + 1), None);
}

#[test]
fn a_plan_with_a_number_at_the_hard_limit_is_refused() {
    let hard = crate::plan::hard_limit().unwrap().min(u64::from(u32::MAX)) as u32;
    let planned = |number| {
        let mut table = Table::default();
        table.at(number, eventfd());
        let image = table.image();
        Plan::new(&image, &RestoreOptions::default(), None, false).map(|_| ()).map_err(|why| {
            assert!(why.to_string().contains("above the hard limit"), "{why}");
            why.status() as u8
        })
    };
    assert_eq!((planned(hard - 1), planned(hard)), (Ok(()), Err(6)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_number_is_placed_once_and_from_what_is_placed_before(
        slots in proptest::collection::btree_map(0..200u32, 0..6u32, 1..40),
    ) {
        let mut table = Table::default();
        let files: Vec<OpenFile> = (0..6).map(|_| file_of(eventfd())).collect();
        for file in files {
            table.file(file);
        }
        for (fd, file) in &slots {
            table.slot(*fd, *file);
        }
        let mut placed: Vec<RawFd> = Vec::new();
        let found = table.operations(&RestoreOptions::default());
        for operation in &found {
            let number = match operation {
                Operation::Place { number, .. } => *number,
                Operation::Dup { from, number } => {
                    prop_assert!(placed.contains(from));
                    *number
                }
                Operation::Shrink { .. } => continue,
                other => panic!("{other:?}"),
            };
            prop_assert!(placed.last().is_none_or(|last| *last < number));
            placed.push(number);
        }
        let wanted: Vec<RawFd> = slots.keys().map(|fd| *fd as RawFd).collect();
        prop_assert_eq!(placed, wanted);
    }
}
