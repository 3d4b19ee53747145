//! POSIX message queues: messages are read only while every process that has the queue open is
//! stopped, and a queue that still exists is not created again.

use crate::canonical::records;
use crate::forged::{at, refused, whole, with_body};
use crate::harness::{Scratch, Target, check, check_with, image, pipeline, restored, scan, show};
use crate::rights;
use nix::mqueue::{MQ_OFlag, mq_close, mq_open, mq_receive, mq_unlink};
use nix::sys::stat::Mode;
use serde_cbor::Value;

/// The name of the queue that the fixture makes at a number.
fn name(scratch: &Scratch, fd: u32) -> String {
    format!("/{}.{fd}", scratch.dir().rsplit('/').next().unwrap())
}

/// Names of queues, unlinked at the end of the test.
struct Names(Vec<String>);

impl Names {
    fn new(scratch: &Scratch, fds: &[u32]) -> Names {
        Names(fds.iter().map(|&fd| name(scratch, fd)).collect())
    }

    fn unlink(&self) {
        for name in &self.0 {
            let _ = mq_unlink(name.as_str());
        }
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.unlink();
    }
}

/// Runs `fdscan --freeze --data PID | fdimg write FILE`, which must succeed without a message.
#[track_caller]
fn frozen(pid: &str, file: &str) {
    pipeline(&[&["fdscan", "--freeze", "--data", pid], &["fdimg", "write", file]]).quiet();
}

const MESSAGES: &[&str] = &[
    "mqueue@3:data=9.urgent+1.first+1.+1.third+0.late+0.@8192,maxmsg=6",
    "mqueue@4:data=32767.x,write,mode=416",
    "mqueue@5,6:two,data=0.a+0.b",
    "mqueue@7",
];

/// Queues that have a name are restored.
const ALLOW: &[&str] = &["--allow", "mqueue"];

#[test]
fn messages_are_queued_again_in_their_order_with_their_priorities() {
    may!(rights::all_processes());
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), MESSAGES);
    let (file, second) = (scratch.file("a.fdi"), scratch.file("b.fdi"));
    frozen(&target.pid, &file);
    // The messages that were taken out are queued again, for another scan and for the process.
    frozen(&target.pid, &second);
    let fds = [3, 4, 5, 6, 7];
    assert_eq!(records(&show(&file), &fds), records(&show(&second), &fds));
    assert_eq!(std::fs::read(&file).unwrap().len(), std::fs::read(&second).unwrap().len());
    drop(target);
    let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2", "--", "mkfd", "sleep"];
    let again = Target::ready(&restore).unwrap();
    frozen(&again.pid, &second);
    assert_eq!(records(&show(&file), &fds), records(&show(&second), &fds));
    drop(again);
    for image in [&file, &second] {
        check(&scratch, image, MESSAGES).quiet();
    }
}

#[test]
fn without_freeze_messages_are_counted_and_not_read() {
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["mqueue@3:data=1.a+0.b"]);
    let file = scratch.file("a.fdi");
    let scan = ["fdscan", "--data", &target.pid];
    let ran = pipeline(&[&scan, &["fdimg", "write", &file]]);
    assert_eq!(ran.status(0), 1, "{}", ran.whole());
    assert!(
        ran.stderr(0).contains("fd 3") && ran.stderr(0).contains("--freeze"),
        "{}",
        ran.whole()
    );
    assert_eq!(show(&file)["descriptors"][0]["body"]["messages"], 2);
    // Contents were not requested, so there is no message about them.
    pipeline(&[&["fdscan", &target.pid], &["fdimg", "write", &file]]).quiet();
    drop(target);
    let ran = check(&scratch, &file, &["mqueue@3"]).ok();
    assert!(ran.stderr(0).contains("2 messages"), "{}", ran.whole());
}

#[test]
fn messages_are_not_read_if_another_process_uses_the_queue_or_wants_notification() {
    may!(rights::all_processes());
    let scratch = Scratch::new();
    let names = Names::new(&scratch, &[3]);
    let file = scratch.file("a.fdi");
    let target = target!(scratch.dir(), &["mqueue@3:kept,data=0.a"]);
    let spec = format!("mqueue@4:old,name={}", &names.0[0][1..]);
    let other = target!(scratch.dir(), &[&spec]);
    let scan = |pids: &[&str]| {
        let scan = [&["fdscan", "--freeze", "--data"], pids].concat();
        pipeline(&[&scan, &["fdimg", "write", &file]])
    };
    let ran = scan(&[&target.pid]);
    let why = format!("process {}, which is not frozen", other.pid);
    assert!(ran.status(0) == 1 && ran.stderr(0).contains(&why), "{}", ran.whole());
    // If both are stopped, the messages are read.
    scan(&[&target.pid, &other.pid]).quiet();
    drop(other);
    scan(&[&target.pid]).quiet();

    let target = target!(scratch.dir(), &["mqueue@8:notify,data=0.a"]);
    let ran = scan(&[&target.pid]);
    let why = format!("would notify process {}", target.pid);
    assert!(ran.status(0) == 1 && ran.stderr(0).contains(&why), "{}", ran.whole());
    drop(target);
    let ran = check(&scratch, &file, &["mqueue@8"]).ok();
    assert!(ran.stderr(0).contains("mq_notify"), "{}", ran.whole());
}

#[test]
fn the_limit_of_data_applies_to_messages() {
    may!(rights::all_processes());
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["mqueue@3:data=0.hello"]);
    let scan = |limit| {
        let file = scratch.file("a.fdi");
        let limit = format!("--data={limit}");
        pipeline(&[&["fdscan", "--freeze", &limit, &target.pid], &["fdimg", "write", &file]])
    };
    scan(5).quiet();
    let ran = scan(4);
    assert!(ran.status(0) == 1 && ran.stderr(0).contains("limit 4"), "{}", ran.whole());
    scan(5).quiet();
}

#[test]
fn a_queue_that_still_exists_is_opened_and_not_changed() {
    may!(rights::all_processes());
    let scratch = Scratch::new();
    let _names = Names::new(&scratch, &[3, 4]);
    let specs = ["mqueue@3:kept,data=1.a+0.b", "mqueue@4:kept,read"];
    let target = target!(scratch.dir(), &specs);
    let file = scratch.file("a.fdi");
    frozen(&target.pid, &file);
    drop(target);
    let asked = ["opens the message queue /", "--allow mqueue permits that"];
    pipeline(&[&["fdrestore", "-n", "-i", &file]]).refuses(6, &asked);
    check_with(&scratch, &file, ALLOW, &specs).quiet();
    // A message that is received in the meantime is not restored.
    let flags = MQ_OFlag::O_RDONLY;
    let queue = mq_open(name(&scratch, 3).as_str(), flags, Mode::empty(), None).unwrap();
    let mut buffer = [0; 8192];
    mq_receive(&queue, &mut buffer, &mut 0).unwrap();
    mq_close(queue).unwrap();
    let ran = check_with(&scratch, &file, ALLOW, &["mqueue@3:kept,data=0.b", specs[1]]).ok();
    assert!(ran.stderr(0).contains("had 2 messages and has 1"), "{}", ran.whole());
}

#[test]
fn a_queue_that_was_removed_is_created_with_its_contents_mode_and_name() {
    may!(rights::all_processes());
    let scratch = Scratch::new();
    let names = Names::new(&scratch, &[3, 4]);
    let specs = ["mqueue@3:kept,data=1.a+0.b,mode=416,maxmsg=2", "mqueue@4,5:kept,two,write"];
    let target = target!(scratch.dir(), &specs);
    let file = scratch.file("a.fdi");
    frozen(&target.pid, &file);
    drop(target);
    names.unlink();
    check_with(&scratch, &file, ALLOW, &specs).quiet();
}

#[test]
fn a_queue_with_other_attributes_is_refused_before_anything_is_created() {
    let scratch = Scratch::new();
    let names = Names::new(&scratch, &[3]);
    let target = target!(scratch.dir(), &["mqueue@3:kept,maxmsg=3", "eventfd@4"]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    drop(target);
    names.unlink();
    let other = target!(scratch.dir(), &["mqueue@3:kept,maxmsg=4"]);
    refused(std::fs::read(&file).unwrap(), 6, &["fd 3", "4 messages of 8192", "3 of 8192"]);
    drop(other);
}

#[test]
fn an_unlinked_queue_does_not_take_the_name_of_another_queue() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["mqueue@3:maxmsg=3"]);
    let _names = Names::new(&scratch, &[3]);
    let _other = target!(scratch.dir(), &["mqueue@3:kept,data=0.mine"]);
    let ran = restored(&file, &[], &["mkfd", "show"]).ok();
    assert!(ran.stderr(0).contains("restored under a different one"), "{}", ran.whole());
    assert!(ran.text().contains("3 /.fdrestore-"), "{}", ran.whole());
    let seen = target!(scratch.dir(), &[&format!("mqueue@4:old,name={}", &name(&scratch, 3)[1..])]);
    let file = scratch.file("b.fdi");
    pipeline(&[&["fdscan", &seen.pid], &["fdimg", "write", &file]]).quiet();
    assert_eq!(show(&file)["descriptors"][0]["body"]["messages"], 1);
}

#[test]
fn a_queue_opened_by_a_path_is_opened_by_that_path_again() {
    may!(rights::mounts());
    let scratch = Scratch::new();
    let names = Names::new(&scratch, &[3]);
    let place = scratch.file("queues");
    std::fs::create_dir(&place).unwrap();
    pipeline(&[&["mount", "-t", "mqueue", "none", &place]]).quiet();
    let path = format!("{place}{}", names.0[0]);
    let file = scratch.file("a.fdi");
    let scanned = Target::make(scratch.dir(), &["mqueue@3:kept"]).map(|maker| {
        let words = ["mkfd", "make", "--close-std", &format!("regular@4:path={path}")];
        let target = Target::ready(&words)?;
        scan(&target.pid, &file);
        drop(maker);
        Ok::<_, String>(())
    });
    let shown = show(&file);
    let by_path = restored(&file, ALLOW, &["mkfd", "show"]);
    names.unlink();
    let anew = restored(&file, ALLOW, &["mkfd", "show"]);
    pipeline(&[&["umount", &place]]).quiet();
    names.unlink();
    let unmounted = restored(&file, ALLOW, &["mkfd", "show"]);
    scanned.unwrap().unwrap();
    assert_eq!(shown["descriptors"][0]["kind"], "mqueue");
    for ran in [by_path.quiet(), anew.quiet()] {
        assert!(ran.text().contains(&format!("\n4 {path}\n")), "{}", ran.whole());
    }
    let ran = unmounted.ok();
    assert!(ran.stderr(0).contains("no mqueue file system is mounted there"), "{}", ran.whole());
    assert!(ran.text().contains(&format!("\n4 {}\n", names.0[0])), "{}", ran.whole());
}

#[test]
fn a_queue_with_a_forged_record_is_refused() {
    may!(rights::all_processes());
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["mqueue@3:maxmsg=2,msgsize=10,data=5.hello+4.x"]);
    let file = scratch.file("a.fdi");
    frozen(&target.pid, &file);
    drop(target);
    let body = |key: &str, value: i128| {
        with_body(&file, "mqueue", |body| *at(body, &[key]) = whole(value))
    };
    refused(body("maxmsg", 0), 3, &["fd 3", "attributes"]);
    refused(body("maxmsg", 1 << 40), 3, &["fd 3", "attributes"]);
    refused(body("msgsize", 1 << 30), 3, &["fd 3", "attributes"]);
    refused(body("maxmsg", 1), 3, &["fd 3", "more messages"]);
    refused(body("msgsize", 4), 3, &["fd 3", "length or priority"]);
    let text = with_body(&file, "mqueue", |body| *at(body, &["maxmsg"]) = Value::Text("3".into()));
    refused(text, 3, &["fd 3", "kind mqueue"]);
    let file_of = |change: fn(&mut fdkit::image::OpenFile)| {
        crate::forged::forged(&std::fs::read(&file).unwrap(), |items| {
            for item in items {
                match item {
                    fdkit::image::Item::File(file) if file.kind == "mqueue" => change(file),
                    _ => (),
                }
            }
        })
    };
    refused(
        file_of(|file| file.link = b"/".as_slice().into()),
        3,
        &["fd 3", "its name does not have"],
    );
    refused(file_of(|file| file.inode = None), 6, &["fd 3", "passive"]);
    let priority = crate::forged::forged(&std::fs::read(&file).unwrap(), |items| {
        for item in items {
            if let fdkit::image::Item::Data(data) = item {
                data.with.as_mut().unwrap().priority = Some(32768);
            }
        }
    });
    refused(priority, 3, &["fd 3", "length or priority"]);
}

#[test]
fn a_queue_above_a_limit_is_refused_and_the_sysctl_named() {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let may = fdkit::proc::own_capabilities() & CAP_SYS_RESOURCE != 0;
    let scratch = Scratch::new();
    let file = image(&scratch, &["mqueue@3"]);
    for (key, name) in [("maxmsg", "msg_max"), ("msgsize", "msgsize_max")] {
        let most = std::fs::read_to_string(format!("/proc/sys/fs/mqueue/{name}")).unwrap();
        let most: i128 = most.trim().parse().unwrap();
        let image = |value| with_body(&file, "mqueue", |body| *at(body, &[key]) = whole(value));
        let ran = |bytes| {
            let stage: &[&[&str]] = &[&["fdrestore", "--dry-run"]];
            crate::harness::Pipeline::new(stage).stdin(bytes).run()
        };
        ran(image(most)).ok();
        match may {
            true => drop(ran(image(most + 1)).ok()),
            false => refused(image(most + 1), 6, &["fd 3", &format!("fs.mqueue.{name} is {most}")]),
        }
    }
}

#[test]
fn a_passive_scan_recognises_a_queue_by_its_mount() {
    let scratch = Scratch::new();
    let _names = Names::new(&scratch, &[3]);
    let target = target!(scratch.dir(), &["mqueue@3:kept", "mqueue@4", "memfd@5"]);
    let file = scratch.file("a.fdi");
    pipeline(&[&["fdscan", "--passive", &target.pid], &["fdimg", "write", &file]]).quiet();
    let shown = show(&file);
    let kinds = |n: usize| shown["descriptors"][n]["kind"].as_str().unwrap().to_owned();
    assert_eq!([0, 1, 2].map(kinds), ["mqueue", "mqueue", "memfd"]);
}
