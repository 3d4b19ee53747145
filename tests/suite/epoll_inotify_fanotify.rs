//! Epoll, inotify and fanotify: real programs, what cannot be restored, and forged records.

use crate::forged::{at, forged, refused, whole, with_body};
use crate::harness::{
    MKFD, Pipeline, RESTORE, Scratch, Target, image, pipeline, python, restored, scan, settled,
    show, which,
};
use crate::rights;
use fdkit::image::Item;
use serde_cbor::Value;
use std::fs;

fn members(file: &str) -> serde_json::Value {
    let shown = show(file);
    let all = shown["descriptors"].as_array().unwrap();
    all.iter().find(|each| each["kind"] == "epoll").expect("an epoll")["body"]["members"].clone()
}

#[test]
fn an_epoll_with_a_forged_record_is_refused() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["epoll@3,4", "eventfd@5"]);
    let member = |key: &str, value: Value| {
        with_body(&file, "epoll", |body| *at(body, &["members", "0", key]) = value.clone())
    };
    let lost = |at_: Option<Value>| {
        with_body(&file, "epoll", |body| {
            let dev = Value::Array(vec![whole(0), whole(9)]);
            let pairs = [("dev", dev), ("ino", whole(7))];
            let pairs = pairs.map(|(key, value)| (Value::Text(key.into()), value));
            *at(body, &["members", "0", "lost"]) = Value::Map(pairs.into());
            if let Some(value) = &at_ {
                *at(body, &["members", "0", "at"]) = value.clone();
            }
        })
    };
    refused(member("fd", whole(1 << 31)), 3, &["fd 3", "has a number above 2147483647"]);
    refused(member("fd", whole(-1)), 3, &["fd 3", "body"]);
    refused(member("fd", whole(9)), 6, &["fd 3", "member 9", "not in the image"]);
    refused(member("at", whole(9)), 6, &["fd 3", "at 9", "not in the image"]);
    refused(member("at", whole(3)), 3, &["fd 3", "member of itself"]);
    refused(member("fd", whole(3)), 3, &["fd 3", "member of itself"]);
    refused(member("events", whole(0)), 3, &["fd 3", "events"]);
    refused(member("events", whole(1)), 3, &["fd 3", "events"]);
    refused(lost(None), 6, &["fd 3", "inode 7 on device 0:9", "had no descriptor"]);
    refused(lost(Some(whole(4))), 3, &["fd 3", "both the keys at and lost"]);
    let high = with_body(&file, "epoll", |body| {
        *at(body, &["members", "0", "at"]) = whole(4);
        *at(body, &["members", "0", "fd"]) = whole(i32::MAX.into());
    });
    refused(high, 6, &["fd 3", "limit"]);
    let twice = with_body(&file, "epoll", |body| match at(body, &["members"]) {
        Value::Array(list) => list.push(list[0].clone()),
        other => panic!("{other:?}"),
    });
    refused(twice, 3, &["fd 3", "twice"]);
    let nobody = with_body(&file, "epoll", |body| *at(body, &["pid"]) = whole(1));
    refused(nobody, 6, &["fd 3", "process 1", "not in the image"]);
    let none = with_body(&file, "epoll", |body| *at(body, &["members"]) = Value::Null);
    refused(none, 3, &["fd 3", "kind epoll"]);
}

#[test]
fn epoll_instances_that_contain_each_other_are_refused() {
    let scratch = Scratch::new();
    // Seven epoll instances, each of which contains the next one.
    let specs: Vec<String> = (0..7).map(|n| format!("epoll@{},{}", 3 + n, 20 + n)).collect();
    let file = image(&scratch, &specs.iter().map(String::as_str).collect::<Vec<_>>());
    let chain = |last: i128| {
        let mut n = 3;
        with_body(&file, "epoll", |body| {
            n += 1;
            *at(body, &["members", "0", "fd"]) = whole(if n == 10 { last } else { n });
        })
    };
    refused(chain(20), 6, &["fd 3", "more deeply than the kernel permits"]);
    refused(chain(9), 3, &["itself"]);
    refused(chain(8), 3, &["itself"]);
    // A loop is detected whatever its length.
    refused(chain(3), 3, &["itself"]);
    let two = with_body(&file, "epoll", |body| {
        let fd = at(body, &["members", "0", "fd"]);
        if *fd == whole(20) {
            *fd = whole(4);
        } else if *fd == whole(21) {
            *fd = whole(3);
        }
    });
    refused(two, 3, &["fd 3", "itself"]);
}

#[test]
fn a_skipped_member_is_reported() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["epoll@3,4", "epoll@6,7,8:pipe", "regular@5"]);
    let opaque = forged(&fs::read(&file).unwrap(), |items| {
        let eventfd = |item: &&mut Item| matches!(item, Item::File(f) if f.kind == "eventfd");
        if let Some(Item::File(file)) = items.iter_mut().find(eventfd) {
            file.kind = "of tomorrow".into();
        }
    });
    let file = scratch.file("b.fdi");
    fs::write(&file, opaque).unwrap();
    let null = "the file at its number does not support epoll";
    for (policy, why) in [("skip", "it is not restored"), ("null", null)] {
        let fdinfo = ["cat", "/proc/self/fdinfo/3", "/proc/self/fdinfo/6"];
        let ran = restored(&file, &["--missing", policy], &fdinfo).ok();
        let said = format!("fd 3: its member 4 is left out: {why}");
        assert!(ran.stderr(0).contains(&said), "{}", ran.whole());
        assert_eq!(ran.text().matches("tfd:").count(), 1, "{}", ran.whole());
    }
    restored(&file, &[], &["true"]).refuses(125, &["of tomorrow"]);
}

#[test]
fn a_member_can_be_an_inherited_descriptor() {
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["epoll@3,0,1:pipe"]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    drop(target);
    let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2", "--", "cat"];
    // stdin of the first stage is /dev/null, which epoll does not accept; stdin of the second stage
    // is a pipe.
    let ran = pipeline(&[&["echo"], &[&restore[..], &["/proc/self/fdinfo/3"]].concat()]).quiet();
    assert!(ran.text().contains("tfd:        0 events:       19"), "{}", ran.whole());
    let ran = pipeline(&[&[&restore[..], &["/proc/self/fdinfo/3"]].concat()]).ok();
    assert!(ran.stderr(0).contains("its member 0 is left out"), "{}", ran.whole());
}

#[test]
fn a_oneshot_member_that_cannot_be_disarmed_is_reported() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["epoll@3,4,5:pipe,fired"]);
    let ran = restored(&file, &[], &["cat", "/proc/self/fdinfo/3"]).ok();
    assert!(ran.stderr(0).contains("fd 3: its member 4 was disabled"), "{}", ran.whole());
    assert!(ran.text().contains("events: 40000018"), "{}", ran.whole());
}

#[test]
fn a_member_added_with_a_high_number_does_not_enlarge_the_table() {
    let scratch = Scratch::new();
    let specs = ["epoll@3,4:moved=900", "epoll@5,6:moved=901,fired"];
    let file = image(&scratch, &specs);
    let check = [MKFD, "check", "--fdsize", "64"];
    restored(&file, &[], &[&check[..], &specs].concat()).ok();
    // A soft limit below these numbers makes no difference, and is not changed.
    let tool = crate::harness::tool("fdrestore").to_string_lossy().into_owned();
    let limited = ["sh", "-c", "ulimit -Sn 100; exec \"$@\"", "sh", &tool, "-i", &file];
    let look = "ulimit -Sn; cat /proc/self/fdinfo/3 /proc/self/fdinfo/5";
    let rest = ["--inherit", "0,1,2", "--", "sh", "-c", look];
    let ran = pipeline(&[&[&limited[..], &rest].concat()]).quiet();
    assert!(ran.text().starts_with("100\n"), "{}", ran.whole());
    assert!(ran.text().contains("tfd:      900 events:       19"), "{}", ran.whole());
    assert!(ran.text().contains("tfd:      901 events: 40000000"), "{}", ran.whole());
}

#[test]
fn a_member_whose_file_only_another_process_has_is_recorded_and_refused() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let script = "import os, select, time
r, w = os.pipe()
e = select.epoll(); e.register(r, select.EPOLLIN)
if os.fork() == 0: time.sleep(1000)
os.close(r)
print(e.fileno(), r, flush=True)
time.sleep(1000)";
    let target = Target::program(&[python, "-c", script]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    let (epoll, member) = target.said.split_once(' ').expect("two numbers");
    let (epoll, member) = (format!("fd {epoll}"), format!("member {member}"));
    assert!(members(&file)[0]["lost"]["ino"].as_u64() > Some(0), "{}", members(&file));
    drop(target);
    restored(&file, &[], &["true"]).refuses(125, &[&epoll, &member, "had no descriptor"]);
}

#[test]
fn an_inherited_epoll_is_restored_with_the_numbers_of_the_child() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    // In the child, the file of the member has another number than in the parent, which is scanned
    // first.
    let script = "import os, select, signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
r, w = os.pipe()
e = select.epoll(); e.register(r, select.EPOLLIN)
child = os.fork()
if child == 0:
    os.dup2(r, 50); os.close(r)
    os.open('/dev/zero', os.O_RDONLY)
    os.kill(os.getppid(), signal.SIGUSR1)
    time.sleep(1000)
signal.sigwait([signal.SIGUSR1])
print(child, e.fileno(), r, w, flush=True)
time.sleep(1000)";
    let target = Target::program(&[python, "-c", script]);
    let file = scratch.file("a.fdi");
    let tree = ["fdscan", "--tree", "--data", &target.pid];
    pipeline(&[&tree, &["fdimg", "write", &file]]).quiet();
    let said = target.said.clone();
    drop(target);
    let words: Vec<&str> = said.split(' ').collect();
    let [child, epoll, member, writer] = words[..] else { panic!("{said}") };
    let after = "import os, select, sys
epoll, member, writer = map(int, sys.argv[1:])
e = select.epoll.fromfd(epoll)
assert os.readlink(f'/proc/self/fd/{member}') == '/dev/zero'
assert e.poll(0) == []
os.write(writer, b'x')
assert e.poll(0) == [(member, select.EPOLLIN)], e.poll(0)
assert os.read(50, 9) == b'x'";
    let command = [python, "-c", after, epoll, member, writer];
    restored(&file, &["--task", child], &command).quiet();
}

#[test]
fn an_asyncio_program_continues() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let before = "import asyncio, os, socket
async def main():
    loop = asyncio.get_running_loop()
    fds = [os.eventfd(0) for _ in range(200)]
    for fd in fds: loop.add_reader(fd, os.eventfd_read, fd)
    for fd in fds[::2]: loop.remove_reader(fd)
    print(loop._selector.fileno(), fds[1], flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())";
    let target = Target::program(&[python, "-c", before]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    let said = target.said.clone();
    let numbers: Vec<&str> = said.split(' ').collect();
    let fdinfo = fs::read_to_string(format!("/proc/{}/fdinfo/{}", target.pid, numbers[0])).unwrap();
    let shown = show(&file);
    // The event loop wakes itself by a socket pair.
    let kinds = shown["descriptors"].as_array().unwrap().iter().map(|each| &each["kind"]);
    let sockets = kinds.filter(|kind| **kind == "opaque").count();
    drop(target);
    let after = "import select, os, sys
epoll, fd = map(int, sys.argv[1:])
e = select.epoll.fromfd(epoll)
os.eventfd_write(fd, 1)
assert e.poll(0) == [(fd, select.EPOLLIN)], e.poll(0)
print(open(f'/proc/self/fdinfo/{epoll}').read())";
    let command = [&[python, "-c", after][..], &numbers].concat();
    let missing: &[&str] = if sockets > 0 { &["--missing", "skip"] } else { &[] };
    let ran = restored(&file, missing, &command).ok();
    let set = |text: &str| {
        let lines = text.lines().filter_map(|line| line.strip_prefix("tfd:"));
        let mut lines: Vec<String> =
            lines.map(|line| line.split("pos:").next().unwrap_or_default().to_owned()).collect();
        lines.sort();
        lines
    };
    let (was, is) = (set(&fdinfo), set(&ran.text()));
    assert_eq!(was.len(), 101);
    let left_out = ran.stderr(0).matches("is left out").count();
    assert_eq!(is.len() + left_out, was.len(), "{}", ran.whole());
    assert!(is.iter().all(|line| was.contains(line)), "{is:?}");
}

#[test]
fn the_epoll_instances_of_redis_and_nginx_are_captured() {
    let scratch = Scratch::new();
    let dir = scratch.dir();
    let conf = scratch.file("nginx.conf");
    let text = format!(
        "daemon off; master_process off; pid {dir}/pid; error_log {dir}/log;
        events {{ use epoll; }}
        http {{ access_log off; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p;
        fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
        server {{ listen unix:{dir}/nginx; }} }}"
    );
    fs::write(&conf, text).unwrap();
    let socket = |name| scratch.file(name);
    let redis =
        format!("redis-server --port 0 --unixsocket {} --save '' --dir {dir}", socket("redis"));
    let nginx = format!("nginx -c {conf} -e {dir}/log");
    for (name, command) in [("redis", redis), ("nginx", nginx)] {
        let program = command.split(' ').next().unwrap_or_default();
        needs!(which(program).is_some(), "{program} is missing");
        let wait = "while ! [ -S \"$0\" ]; do sleep 0.05; done; echo $!; wait";
        let script = format!("{command} >/dev/null & {wait}");
        let shell = Target::program(&["sh", "-c", &script, &socket(name)]);
        settled(&shell.said);
        let file = scratch.file(&format!("{name}.fdi"));
        scan(&shell.said, &file);
        let listed = members(&file);
        let listed = listed.as_array().unwrap();
        assert!(!listed.is_empty(), "{program}");
        assert!(listed.iter().all(|it| it.get("lost").is_none()), "{program}: {listed:?}");
    }
}

fn lines(text: &str, start: &str) -> Vec<String> {
    let mut lines: Vec<String> =
        text.lines().filter(|line| line.starts_with(start)).map(str::to_owned).collect();
    lines.sort();
    lines
}

/// The fdinfo of a descriptor, of a process or of COMMAND.
fn fdinfo(pid: &str, fd: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap()
}

#[test]
fn forged_watches_are_refused() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["inotify@3:both", "inotify@5,6:gone"]);
    let first = |path: &[&str], value: Value| {
        let mut done = false;
        with_body(&file, "inotify", |body| {
            if !done {
                *at(body, &[&["watches", "0"], path].concat()) = value.clone();
            }
            done = true;
        })
    };
    let bytes = |text: &str| Value::Bytes(text.into());
    refused(first(&["wd"], whole(0)), 3, &["fd 3", "watch 0"]);
    refused(first(&["wd"], whole(9)), 3, &["fd 3", "watch 8"]);
    refused(first(&["wd"], whole(1 << 31)), 3, &["fd 3", "watch 2147483648"]);
    refused(first(&["mask"], whole(0)), 3, &["fd 3", "watch 1", "mask"]);
    refused(first(&["mask"], whole(0x2000_0002)), 3, &["fd 3", "watch 1", "mask"]);
    refused(first(&["on", "fd"], whole(3)), 3, &["fd 3", "watch 1", "both"]);
    refused(first(&["on", "path"], Value::Null), 6, &["fd 3", "watch 1", "no path", "inode"]);
    refused(first(&["on", "path"], bytes("/no/such")), 6, &["fd 3", "watch 1", "/no/such"]);
    refused(first(&["on", "path"], bytes("/etc/passwd")), 6, &["fd 3", "watch 1", "type"]);
    refused(first(&["on", "path"], bytes("a\0b")), 6, &["fd 3", "watch 1"]);
    refused(first(&["on"], Value::Null), 3, &["fd 3", "kind inotify"]);
    let number = with_body(&file, "inotify", |body| {
        let fd = at(body, &["watches", "0", "on", "fd"]);
        if *fd != Value::Null {
            *fd = whole(77);
        }
    });
    refused(number, 6, &["fd 5", "watch 1", "descriptor 77"]);
    let twice = with_body(&file, "inotify", |body| {
        if let Value::Array(list) = at(body, &["watches"]) {
            let on = at(&mut list[0], &["on"]).clone();
            list.iter_mut().for_each(|watch| *at(watch, &["on"]) = on.clone());
        }
    });
    refused(twice, 3, &["fd 3", "one inode"]);
}

#[test]
fn forged_marks_are_refused() {
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["fanotify@3:mount"]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    drop(target);
    let mark = |path: &[&str], value: Value| {
        with_body(&file, "fanotify", |body| {
            *at(body, &[&["marks", "0"], path].concat()) = value.clone();
        })
    };
    refused(mark(&["flags"], whole(1)), 3, &["fd 3"]);
    refused(mark(&["mask"], whole(0)), 3, &["fd 3"]);
    refused(mark(&["mask"], whole(0x1_0000)), 6, &["fd 3", "permission"]);
    refused(mark(&["type"], Value::Text("net".into())), 3, &["fd 3", "kind fanotify"]);
    let plain = scratch.file("plain");
    fs::create_dir(&plain).unwrap();
    refused(mark(&["on", "path"], Value::Bytes(plain.into())), 6, &["fd 3", "not a mount point"]);
    refused(mark(&["on", "path"], Value::Bytes(scratch.dir().into())), 6, &["fd 3", "mount"]);
    refused(mark(&["on", "path"], Value::Null), 6, &["fd 3", "mount", "no path"]);
    let flags = with_body(&file, "fanotify", |body| *at(body, &["flags"]) = whole(1 << 30));
    let run: &[&[&str]] = &[&[RESTORE, &["--", "echo", "run"]].concat()];
    let ran = Pipeline::new(run).stdin(flags).run().refuses(125, &["fd 3", "fanotify_init"]);
    assert_eq!(ran.text(), "");
}

#[test]
fn permission_events_for_which_the_exec_would_wait_are_refused() {
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["fanotify@3:flags=4,mask=0x10000"]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    drop(target);
    restored(&file, &[], &["true"]).refuses(125, &["fd 3", "permission", "(status 6)"]);
}

#[test]
fn a_watched_directory_that_is_missing_or_another_one_is_reported() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["inotify@3", "eventfd@4"]);
    let (folder, aside) = (scratch.file("inotify.3"), scratch.file("aside"));
    fs::rename(&folder, &aside).unwrap();
    let name = &folder[..];
    restored(&file, &[], &["true"]).refuses(125, &["watch 1", name, "(status 6)", "--missing"]);
    restored(&file, &["--missing", "skip"], &["mkfd", "check", "eventfd@4"]).ok();
    fs::create_dir(&folder).unwrap();
    let ran = restored(&file, &[], &["true"]).ok();
    assert!(ran.stderr(0).contains("fd 3: its watch 1") && ran.stderr(0).contains("another inode"));
    restored(&file, &["--changed", "ignore"], &["true"]).quiet();
    restored(&file, &["--changed", "fail"], &["true"]).refuses(125, &[name, "another inode"]);
    // The path is opened below the root directory.
    let root = scratch.file("root");
    fs::create_dir_all(format!("{root}{}", scratch.dir())).unwrap();
    restored(&file, &["--root", &root], &["true"]).refuses(125, &[name]);
    fs::rename(&aside, format!("{root}{folder}")).unwrap();
    restored(&file, &["--root", &root], &["true"]).quiet();
}

#[test]
fn unread_events_are_reported_as_lost() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["inotify@3:queued"]);
    let ran = restored(&file, &[], &["mkfd", "check", "--dir", scratch.dir(), "inotify@3"]).ok();
    assert!(ran.stderr(0).contains("fd 3: "), "{}", ran.whole());
    assert!(ran.stderr(0).contains(" bytes of its events are lost"), "{}", ran.whole());
}

#[test]
fn a_watch_on_a_skipped_descriptor_is_skipped() {
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["inotify@3,4:gone"]);
    let file = scratch.file("a.fdi");
    // The contents of the unlinked file are not in the image, so it cannot be restored.
    pipeline(&[&["fdscan", &target.pid], &["fdimg", "write", &file]]).quiet();
    drop(target);
    let ran = restored(&file, &["--missing", "skip"], &["cat", "/proc/self/fdinfo/3"]).ok();
    assert!(ran.stderr(0).contains("fd 3: its watch 1 is left out"), "{}", ran.whole());
    assert!(!ran.text().contains("inotify wd"), "{}", ran.whole());
}

#[test]
fn tail_and_inotifywait_keep_their_watches() {
    let scratch = Scratch::new();
    let (log, dir) = (scratch.file("log"), scratch.file("dir"));
    fs::write(&log, "one\n").unwrap();
    fs::create_dir(&dir).unwrap();
    let tail = ["tail", "-F", &log];
    let inotifywait = ["inotifywait", "-mrq", "--format", "%w%f", "-e", "create", scratch.dir()];
    for (words, watches) in [(&tail[..], 2), (&inotifywait, 2)] {
        needs!(which(words[0]).is_some(), "{} is missing", words[0]);
        let script = "\"$@\" >/dev/null & sleep 0.5; echo $!; wait";
        let shell = Target::program(&[&["sh", "-c", script, "sh"], words].concat());
        let file = format!("/tmp/fdkit.{}.{}.fdi", std::process::id(), words[0]);
        pipeline(&[&["fdscan", "-F", "inotify", &shell.said], &["fdimg", "write", &file]]).quiet();
        let fd = show(&file)["descriptors"][0]["fd"].as_u64().expect("an inotify") as u32;
        let was = lines(&fdinfo(&shell.said, fd), "inotify wd");
        assert_eq!(was.len(), watches, "{was:?}");
        let ran = restored(&file, &[], &["cat", &format!("/proc/self/fdinfo/{fd}")]).ok();
        let _ = fs::remove_file(file);
        assert_eq!(lines(&ran.text(), "inotify wd"), was);
    }
}

#[test]
fn inodes_watched_on_an_overlay_in_another_namespace_are_found() {
    may!(rights::mounts(), rights::programs(&["nsenter"]));
    let scratch = Scratch::new();
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir(scratch.file(name)).unwrap();
    }
    let script = "cd \"$1\" && echo x > lower/low &&
        mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged || exit 77
        shift; exec \"$@\"";
    let merged = scratch.file("merged");
    let make = [MKFD, "make", "--close-std", "--dir", &merged];
    let specs = ["inotify@3", "inotify@4:file", "inotify@5,6:gone", "fanotify@7"];
    let unshare = ["unshare", "-m", "sh", "-c", script, "sh", scratch.dir()];
    let target = match Target::ready(&[&unshare[..], &make, &specs].concat()) {
        Ok(target) => target,
        Err(reason) => skip!("{reason}"),
    };
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    let was: Vec<Vec<String>> =
        [3, 4, 7].map(|fd| lines(&fdinfo(&target.pid, fd), "inotify wd")).into();
    let enter = ["nsenter", "-m", "-t", &target.pid];
    let tool = crate::harness::tool("fdrestore").to_string_lossy().into_owned();
    let command = ["-i", &file, "--inherit", "0,1,2", "--", "cat", "/proc/self/fdinfo/3"];
    let others = ["/proc/self/fdinfo/4", "/proc/self/fdinfo/7"];
    let ran = pipeline(&[&[&enter[..], &[&tool], &command, &others].concat()]).quiet();
    let mut all = was.concat();
    all.sort();
    assert_eq!(all.len(), 2);
    assert_eq!(lines(&ran.text(), "inotify wd"), all);
    assert_eq!(lines(&ran.text(), "fanotify ino").len(), 1);
}

#[test]
fn a_scan_causes_no_event_in_the_watches_that_it_captures() {
    // All events of a directory, a file and the root of a mount.
    let all = "inotify@3:mask=0xfff";
    let shm = "fanotify@6:mount,mask=0x4000003b";
    let specs = [all, "inotify@4:file,mask=0xfff", "inotify@5,7:gone,mask=0xfff", shm];
    let mut seen = Vec::new();
    // The scan of another test may read this directory while it searches for paths. It does not do
    // so every time.
    for _ in 0..4 {
        let scratch = Scratch::new();
        let target = target!(scratch.dir(), &specs);
        let file = scratch.file("a.fdi");
        // --data would read the unlinked file, which its watch would report.
        for _ in 0..2 {
            pipeline(&[&["fdscan", &target.pid], &["fdimg", "write", &file]]).quiet();
        }
        let shown = show(&file);
        let all = shown["descriptors"].as_array().unwrap();
        assert_eq!(all.len(), specs.len() + 1);
        let others = all.iter().filter(|it| it["fd"] != 7 && it["body"]["queued"] != 0);
        seen = others.cloned().collect();
        if seen.is_empty() {
            return;
        }
    }
    panic!("{seen:?}");
}

#[test]
fn a_watch_on_an_overlay_is_found_from_its_mount_point_and_one_that_is_not_found_is_said() {
    let Some(python) = python() else { skip!("python3 is missing") };
    may!(rights::mounts());
    let scratch = Scratch::new();
    let script = format!(
        "mount -t tmpfs none {0} && cd {0} && mkdir -p l/etc/app u w o && echo >l/etc/app/conf \
         && mount -t overlay none -o lowerdir=l,upperdir=u,workdir=w o && cd o && exec \"$@\"",
        scratch.dir()
    );
    // The process uses no path near the file.
    let watch = "
import ctypes, os, sys, time
libc = ctypes.CDLL(None)
inotify = libc.inotify_init1(0)
libc.inotify_add_watch(inotify, b'etc/app/conf', 2)
if sys.argv[1] == 'hidden': libc.mount(b'none', b'etc', b'tmpfs', 0, None)
os.chdir('/usr')
print(inotify, flush=True)
time.sleep(1000)";
    for (how, status) in [("visible", 0), ("hidden", 1)] {
        let start = ["unshare", "--mount", "sh", "-c", &script, "sh", python, "-c", watch, how];
        let made = Target::ready(&start);
        let Ok(target) = made else { skip!("no overlay: {}", made.err().unwrap_or_default()) };
        needs!(!target.said.is_empty(), "an overlay cannot be mounted");
        let file = scratch.file("a.fdi");
        let ran = pipeline(&[&["fdscan", &target.pid], &["fdimg", "write", &file]]);
        assert_eq!(ran.status(0), status, "{}", ran.whole());
        let said = format!("fd {}: its watch 1 cannot be restored: no path was found", target.said);
        assert_eq!(ran.stderr(0).contains(&said), how == "hidden", "{}", ran.whole());
        let path = format!("{}/o/etc/app/conf", scratch.dir());
        let image = fs::read(&file).unwrap();
        let found = image.windows(path.len()).any(|part| part == path.as_bytes());
        assert_eq!(found, how == "visible", "{how}");
    }
}
