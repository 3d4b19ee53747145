//! Plans for small images: their problems, locks and controlling terminals.

use super::*;
use crate::image::{Bytes, Data, Item, MessageMeta, Terminal, Writer};
use crate::kind::effect::AllowList;
use crate::proc::Process;
use argh::FromArgValue;
use nix::time::{ClockId, clock_gettime};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// An image of one task with a socket at 0, `count` descriptors that cannot be restored, and
/// `count` more of them in the queue of the socket.
fn unrestorable(count: u32) -> DecodedImage {
    let (socket, _peer) = UnixStream::pair().unwrap();
    let myself = Process::open(std::process::id() as i32).unwrap();
    let task = Task { pid: 700, ..myself.task(0, None, &mut Messages::kept()).unwrap() };
    let mut carrier = crate::kind::tests::file_of(&socket);
    carrier.object = Some(0);
    let unreadable = crate::kind::Captured::unreadable(0, &nix::errno::Errno::EIO.into());
    let opaque = OpenFile { link: Bytes(b"anon_inode:[odd]".to_vec()), ..unreadable.into_file(0) };
    let head = crate::image::Head {
        contents: true,
        ..crate::capture::head("test", &mut Messages::kept())
    };
    let mut items = vec![Item::Head(head), Item::Task(task.into()), Item::File(carrier.into())];
    items.extend((1..=2 * count).map(|id| Item::File(OpenFile { id, ..opaque.clone() }.into())));
    items.extend((0..=count).map(|at| {
        Item::Slot(Slot { table: 0, fd: at, cloexec: false, file: at, locks: Vec::new() })
    }));
    let queued: Vec<u32> = (count + 1..=2 * count).collect();
    items.extend(queued.chunks(250).map(|files| {
        let with = MessageMeta { files: files.to_vec(), ..MessageMeta::default() };
        let bytes = Bytes(b"x".to_vec());
        Item::Data(Data { object: 0, offset: 0, with: Some(with.into()), bytes })
    }));
    let mut writer = Writer::new(Vec::new());
    items.iter().for_each(|item| writer.put(item).unwrap());
    DecodedImage::load(&writer.end().unwrap()[..]).unwrap()
}

/// The problems of an image, and the CPU time that finding them takes.
fn problems(image: &DecodedImage) -> (Vec<String>, Duration) {
    let now = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
    let begun = now();
    let plan = Plan::new(image, &RestoreOptions::default(), None, false).unwrap();
    (plan.problems.into_iter().map(|problem| problem.line).collect(), now() - begun)
}

#[test]
fn each_problem_names_its_number_or_that_of_the_socket_in_whose_queue_it_is() {
    let (said, _) = problems(&unrestorable(2));
    let begins = |line: &str, with: &str| assert!(line.starts_with(with), "{said:?}");
    let carried = said.iter().filter(|line| line.starts_with("queued in fd 0 (socket:["));
    assert_eq!(carried.count(), 2, "{said:?}");
    begins(&said[1], "fd 1 (anon_inode:[odd]): ");
    begins(&said[2], "fd 2 (anon_inode:[odd]): ");
}

#[test]
fn the_time_for_many_problems_is_linear() {
    let most = hard_limit().unwrap().min(20_000) as u32 / 2 - 8;
    let least = most / 16;
    let took = |count: u32| {
        let image = unrestorable(count);
        let cost = (0..3).map(|_| problems(&image)).map(|(said, took)| {
            assert!(said.len() as u32 >= 2 * count, "{}", said.len());
            took
        });
        cost.min().unwrap_or_default()
    };
    let (few, many) = (took(least), took(most));
    // There are 16 times as many; quadratic time would be 256 times as long.
    assert!(many < few * 40, "{least}: {few:?}, {most}: {many:?}");
}
/// An image of one task with these files at the numbers from 3 up.
fn image_of(files: Vec<OpenFile>, terminal: Option<Terminal>) -> DecodedImage {
    let myself = Process::open(std::process::id() as i32).unwrap();
    let task = Task { pid: 700, terminal, ..myself.task(0, None, &mut Messages::kept()).unwrap() };
    let mut writer = Writer::new(Vec::new());
    let head = crate::image::Head {
        contents: true,
        ..crate::capture::head("test", &mut Messages::kept())
    };
    writer.put(&Item::Head(head)).unwrap();
    writer.put(&Item::Task(task.into())).unwrap();
    for (id, file) in (0..).zip(&files) {
        writer.put(&Item::File(OpenFile { id, ..file.clone() }.into())).unwrap();
    }
    for id in 0..files.len() as u32 {
        let slot = Slot { table: 0, fd: 3 + id, cloexec: false, file: id, locks: Vec::new() };
        writer.put(&Item::Slot(slot)).unwrap();
    }
    DecodedImage::load(&writer.end().unwrap()[..]).unwrap()
}

#[test]
fn a_lease_or_a_lock_of_another_process_is_a_problem_only_if_nothing_may_be_missing() {
    let path = std::env::temp_dir().join(format!("fdkit-plan-held-{}", std::process::id()));
    let file = crate::kind::tests::file_of(std::fs::File::create(&path).unwrap());
    let lock = |class: &str| Lock {
        class: class.into(),
        write: true,
        start: 0,
        end: None,
        breaking: false,
    };
    let inode = file.inode.as_ref().unwrap().key();
    let image = image_of(vec![OpenFile { locks: vec![lock("FLOCK")], ..file }], None);
    let checked = |class: &str, missing| {
        let options = RestoreOptions { missing, ..RestoreOptions::default() };
        let task = &image.tasks[0];
        let steps = table_steps(&image, task, &options).unwrap();
        let mut plan = Plan::from_steps(&image, task, steps);
        let held = [HeldLock { lock: lock(class), pid: -1, inode }];
        plan.check(&options, &SingleTask(task), None, false, &held).unwrap();
        let cures: Vec<Cure> = plan.problems.iter().map(|problem| problem.cure).collect();
        (cures, plan.steps[0].action)
    };
    assert_eq!(checked("LEASE", Missing::Fail), (vec![Cure::Descriptor], Action::Skip));
    assert_eq!(checked("LEASE", Missing::Null), (vec![], Action::Null));
    assert_eq!(checked("FLOCK", Missing::Fail), (vec![Cure::Lock], Action::Make));
    assert_eq!(checked("FLOCK", Missing::Skip), (vec![], Action::Make));
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_controlling_terminal_that_the_image_names_is_opened_only_if_it_is_allowed() {
    let named = CttyPlan::FromPath(b"/dev/pts/7".to_vec());
    let with = |words: &[&str]| {
        let list = |word: &&str| AllowList::from_arg_value(word).unwrap();
        let allow = words.iter().map(list).collect();
        allowed_terminal(named.clone(), &RestoreOptions { allow, ..RestoreOptions::default() })
    };
    for refused in [with(&[]), with(&["tun,names"])] {
        let CttyPlan::Unavailable(why) = refused else { panic!("{refused:?}") };
        assert!(why.contains("/dev/pts/7") && why.contains("--allow tty"), "{why}");
    }
    assert_eq!((with(&["tty"]), with(&["tun", "all"])), (named.clone(), named.clone()));
    let options = RestoreOptions::default();
    assert_eq!(allowed_terminal(CttyPlan::Kept, &options), CttyPlan::Kept);
}

#[test]
fn a_file_that_is_not_restored_is_none_of_its_object() {
    let unreadable = crate::kind::Captured::unreadable(0, &nix::errno::Errno::EIO.into());
    let odd = OpenFile { object: Some(7), ..unreadable.into_file(0) };
    let image = image_of(vec![odd.clone(), odd], None);
    let options = RestoreOptions { missing: Missing::Skip, ..RestoreOptions::default() };
    let task = &image.tasks[0];
    let steps = table_steps(&image, task, &options).unwrap();
    let mut plan = Plan::from_steps(&image, task, steps);
    assert_eq!(plan.objects, HashMap::from([(7, vec![0, 1])]));
    plan.check(&options, &SingleTask(task), None, false, &[]).unwrap();
    assert_eq!(plan.objects, HashMap::from([(7, vec![])]));
}

#[test]
fn the_callers_terminal_at_a_number_of_the_recorded_one_becomes_the_controlling_terminal() {
    let pair = nix::pty::openpty(None, None).unwrap();
    let device = crate::sys::tty::encoded(crate::sys::tty::device(&pair.slave).unwrap());
    let terminal = Terminal { device, foreground: 1, path: None };
    let file = crate::kind::tests::file_of(&pair.slave);
    let image = image_of(vec![file], Some(terminal));
    let planned = |inherit: Vec<Inherit>| {
        let options = RestoreOptions { inherit, ..RestoreOptions::default() };
        let task = &image.tasks[0];
        let steps = table_steps(&image, task, &options).unwrap();
        let role = SessionRole { leader: true, has_ctty: false };
        Plan::from_steps(&image, task, steps).plan_ctty(role, &options)
    };
    let given = planned(vec![Inherit::Key(b"3".to_vec(), 9)]);
    assert_eq!(given, CttyPlan::FromCaller(3));
    assert_ne!(planned(Vec::new()), given);
}
