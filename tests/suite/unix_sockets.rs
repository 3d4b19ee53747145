//! Queues of unix sockets: programs that send descriptors to themselves, trees that share them, and
//! forged queues.

use crate::epoll_inotify_fanotify::{refused, restored};
use crate::errors::forged;
use crate::harness::{Pipeline, Scratch, Target, command, image, pipeline, scan, tool};
use crate::pipelines::python;
use crate::rights;
use fdkit::image::{Bytes, Data, Item, MessageMeta, OpenFile};
use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A program that has sent itself the read end of a pipe and has closed its other descriptors of
/// that pipe.
const SENDER: &str = "import os, socket, time
a, b = socket.socketpair(); os.set_inheritable(a.fileno(), True)
r, w = os.pipe(); os.write(w, b'in the pipe'); os.close(w)
b.send(b'before'); socket.send_fds(b, [b'with'], [r, a.fileno()]); b.send(b'after')
os.close(r); b.close()
print(a.fileno(), flush=True); time.sleep(1000)";

const RECEIVER: &str = "import array, os, socket, sys
a = socket.socket(fileno=int(sys.argv[1]))
said, got = [], []
while True:
    text, rights, flags, _ = a.recvmsg(100, 4096)
    if not text: break
    said.append(text)
    for _, _, data in rights: got += array.array('i', data)
assert said == [b'beforewith', b'after'], said
pipe, own = got
assert os.read(pipe, 100) == b'in the pipe' and os.read(pipe, 1) == b''
assert os.stat(own) == os.stat(a.fileno())
left = sorted(int(n) for n in os.listdir('/proc/self/fd'))
print(left == [0, 1, 2, a.fileno(), pipe, own, left[-1]], 'done')";

#[test]
fn a_program_receives_the_descriptors_that_it_sent_to_itself() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let target = Target::program(&[python, "-c", SENDER]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    let number = target.said.clone();
    // The messages are still queued, for the program and for another scan.
    let again = scratch.file("b.fdi");
    scan(&target.pid, &again);
    assert_eq!(fs::read(&file).unwrap().len(), fs::read(&again).unwrap().len());
    drop(target);
    for policy in ["rlimit", "task", "late", "tight"] {
        let run = [python, "-c", RECEIVER, &number];
        let ran = restored(&file, &["--placement", policy], &run).quiet();
        assert_eq!(ran.text(), "True done\n", "{policy}");
    }
    // A pipe of the caller can replace the queued one.
    let link =
        links(&file).into_iter().rev().find(|link| link.starts_with("pipe:")).expect("a pipe");
    let handed = "exec 7<<E; exec \"$@\"
in the pipe
E";
    let key = format!("{link}=7");
    let restore = tool("fdrestore").to_string_lossy().into_owned();
    let command = [&restore, "-i", &file, "--inherit", "0,1,2", "--inherit", &key, "--"];
    let receive = RECEIVER.replace("b'in the pipe'", "b'in the pipe\\n'");
    let receive = [python, "-c", &receive, &number];
    let ran = pipeline(&[&[&["sh", "-c", handed, "sh"], &command[..], &receive].concat()]).quiet();
    assert_eq!(ran.text(), "True done\n");
}

/// The links of all files in an image.
fn links(file: &str) -> Vec<String> {
    let mut links = Vec::new();
    forged(&fs::read(file).unwrap(), |items| {
        for item in items {
            if let Item::File(file) = item {
                links.push(String::from_utf8_lossy(&file.link.0).into_owned());
            }
        }
    });
    links
}

#[test]
fn messages_for_two_processes_come_from_a_restored_sender() {
    may!(rights::senders());
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let script = "import os, signal, socket, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
a.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
r, w = os.pipe(); os.write(w, b'shared'); os.close(w)
socket.send_fds(b, [b'fds'], [r, os.open('/dev/zero', 0)]); os.close(r)
if os.fork() == 0:
    c, d = socket.socketpair()
    r, w = os.pipe(); os.write(w, b'private'); os.close(w)
    socket.send_fds(d, [b'x'], [r, c.fileno(), r]); os.close(r); d.close()
    b.send(b'of the child')
    os.kill(os.getppid(), signal.SIGUSR1)
    time.sleep(1000)
signal.sigwait([signal.SIGUSR1])
b.send(b'')
print('ready', flush=True); time.sleep(1000)";
    let target = Target::program(&[python, "-c", script]);
    let (file, second) = (scratch.file("a.fdi"), scratch.file("b.fdi"));
    let take = |pid: &str, file: &str| {
        pipeline(&[&["fdscan", "--tree", "--data", pid], &["fdimg", "write", file]]).quiet();
    };
    take(&target.pid, &file);
    drop(target);
    let restore = ["fdrestore", "--tree", "-i", &file, "--missing", "null"];
    let again = Target::ready(&restore).expect("no skip");
    let first = again.said.split_whitespace().last().expect("a pid").to_owned();
    take(&first, &second);
    let queues = |file: &str| {
        let mut queues: Vec<(Vec<u8>, usize, Option<usize>)> = Vec::new();
        forged(&fs::read(file).unwrap(), |items| {
            let tasks = items.iter().filter_map(|item| match item {
                Item::Task(task) => Some(task.pid),
                _ => None,
            });
            let tasks: Vec<i32> = tasks.collect();
            for item in items {
                let Item::Data(Data { with, bytes, .. }) = item else { continue };
                let with = with.clone().unwrap_or_default();
                let sender = with.credentials.map(|(pid, ..)| pid);
                let sender = sender.and_then(|pid| tasks.iter().position(|task| *task == pid));
                queues.push((bytes.0.clone(), with.files.len(), sender));
            }
        });
        queues
    };
    let is = queues(&file);
    for message in [
        (b"fds".to_vec(), 2, Some(0)),
        (b"of the child".to_vec(), 0, Some(1)),
        (vec![], 0, Some(0)),
        (b"x".to_vec(), 3, None),
        (b"shared".to_vec(), 0, None),
        (b"private".to_vec(), 0, None),
    ] {
        assert!(is.contains(&message), "{message:?} in {is:?}");
    }
    assert_eq!(is, queues(&second));
}

/// The image with its messages changed; `change` gets the first message with an envelope, and
/// copies of all files.
fn with_message(file: &str, change: impl FnOnce(&mut Data, &mut Vec<OpenFile>)) -> Vec<u8> {
    forged(&fs::read(file).unwrap(), |items| {
        let files = items.iter().filter_map(|item| match item {
            Item::File(file) => Some((**file).clone()),
            _ => None,
        });
        let mut files: Vec<OpenFile> = files.collect();
        let queue = items.iter_mut().find_map(|item| match item {
            Item::Data(data) if data.with.is_some() => Some(data),
            _ => None,
        });
        change(queue.expect("a message"), &mut files);
    })
}

fn with(data: &mut Data) -> &mut MessageMeta {
    data.with.as_mut().expect("an envelope")
}

#[test]
fn an_impossible_queue_is_refused_before_anything_is_created() {
    let scratch = Scratch::new();
    let stream = image(&scratch, &["socketpair@3,4:scm=pipe,data=x", "pipe@5,6"]);
    let bad = |change: &dyn Fn(&mut Data, &mut Vec<OpenFile>), status, text: &str| {
        refused(with_message(&stream, |data, files| change(data, files)), status, &[text]);
    };
    bad(&|data, _| with(data).files = vec![0; 254], 3, "has more than 253 descriptors");
    bad(&|data, _| data.bytes.0.clear(), 3, "descriptors are queued without a byte");
    bad(&|data, _| with(data).files = vec![77], 3, "file 77, queued in object");
    bad(
        &|data, files| {
            // The first pipe is the one that has numbers.
            let pipe = files.iter().find(|file| file.kind == "pipe").expect("a pipe");
            data.object = pipe.object.expect("its object");
        },
        3,
        "but its kind has no queue for them",
    );
    let listener = image(&scratch, &["unix@3", "socketpair@4,5:scm=pipe,type=dgram"]);
    let forged = with_message(&listener, |data, files| {
        let at = |file: &&OpenFile| file.kind == "unix";
        data.object = files.iter().find(at).and_then(|file| file.object).expect("its object");
    });
    refused(forged, 3, &["fd 3", "it listens"]);
    let pieces = image(&scratch, &["socketpair@3,4:type=dgram,scm=pipe"]);
    let forged = forged_pieces(&pieces);
    refused(forged, 3, &["fd 3", "in the middle of a message"]);
}

/// An image with a message of two pieces that both have descriptors.
fn forged_pieces(file: &str) -> Vec<u8> {
    forged(&fs::read(file).unwrap(), |items| {
        let at =
            items.iter().position(|item| matches!(item, Item::Data(data) if data.with.is_some()));
        let at = at.expect("a message");
        let mut first = items[at].clone();
        if let Item::Data(data) = &mut first {
            with(data).more = true;
        }
        items.insert(at, first);
    })
}

#[test]
fn a_queued_descriptor_that_cannot_be_restored_is_named_and_skipped_only_on_request() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["socketpair@3,4:scm=pipe+pipe"]);
    let bytes = forged(&fs::read(&file).unwrap(), |items| {
        for item in items {
            if let Item::File(file) = item {
                if file.kind == "pipe" {
                    file.kind = "opaque".into();
                    file.body = vec![0xa1, 0x64, b'i', b'n', b'f', b'o', 0x40];
                    file.object = None;
                }
            }
        }
    });
    // The contents of the pipes now belong to no file.
    refused(bytes, 3, &["contents of object"]);
    let bytes = forged(&fs::read(&file).unwrap(), |items| {
        items.retain(|item| !matches!(item, Item::Data(data) if data.with.is_none()));
        for item in items.iter_mut() {
            if let Item::File(file) = item {
                if file.kind == "pipe" {
                    file.kind = "opaque".into();
                    file.body = vec![0xa1, 0x64, b'i', b'n', b'f', b'o', 0x40];
                    file.object = None;
                }
            }
        }
    });
    refused(bytes.clone(), 6, &["queued in fd 3 (socket:[", "2 cannot be restored here"]);
    let skip: &[&[&str]] =
        &[&["fdrestore", "--missing", "skip", "--inherit", "0,1,2", "--", "true"]];
    let ran = Pipeline::new(skip).stdin(bytes).run();
    assert!(ran.stderr(0).contains("2 queued descriptors are not restored"), "{}", ran.whole());
    ran.ok().in_one_line();
}

#[test]
fn queued_sockets_may_form_cycles_be_nested_and_repeat_a_file() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["socketpair@3,4:scm=self+nested"]);
    // Each message has every file of the image attached.
    let bytes = forged(&fs::read(&file).unwrap(), |items| {
        let ids = items.iter().filter_map(|item| match item {
            Item::File(file) => Some(file.id),
            _ => None,
        });
        let ids: Vec<u32> = ids.collect();
        for item in items {
            if let Item::Data(Data { with: Some(with), .. }) = item {
                with.files = [&ids[..], &ids[..]].concat();
            }
        }
    });
    let run: &[&[&str]] = &[&["fdrestore", "--inherit", "0,1,2", "--", "mkfd", "show"]];
    let ran = Pipeline::new(run).stdin(bytes).run().quiet();
    assert_eq!(ran.text().lines().filter(|line| line.contains("socket:")).count(), 2);
    assert_eq!(ran.text().lines().count(), 6, "{}", ran.text());

    // A thousand sockets, each queued in the one before; the last one is queued in itself, too.
    let deep = forged(&fs::read(&file).unwrap(), |items| {
        let end = items.pop();
        let first = items.iter().position(|item| matches!(item, Item::Data(_))).expect("contents");
        let data = items.split_off(first);
        let mut sockets = items.iter().filter_map(|item| match item {
            Item::File(file) if file.kind == "unix" => Some(file.clone()),
            _ => None,
        });
        let inner = sockets.next_back().expect("the nested one");
        let mut queues = Vec::new();
        for n in 1..=1000 {
            let mut file = inner.clone();
            let id = inner.id + 1000 + n;
            let ino = (1 << 30) + u64::from(n);
            file.id = id;
            file.object = Some(1000 + n);
            file.link = Bytes(format!("socket:[{ino}]").into_bytes());
            file.inode.as_mut().expect("an inode").ino = ino;
            items.push(Item::File(file));
            let files = vec![if n == 1000 { id } else { id + 1 }];
            let with = Some(Box::new(MessageMeta { files, ..MessageMeta::default() }));
            let bytes = Bytes(b"x".to_vec());
            queues.push(Item::Data(Data { object: 1000 + n, offset: 0, with, bytes }));
        }
        items.extend(data);
        for item in items.iter_mut() {
            match item {
                Item::Data(Data { with: Some(with), .. }) if with.files.len() > 1 => {
                    with.files.push(inner.id + 1001);
                }
                _ => (),
            }
        }
        items.extend(queues);
        items.extend(end);
    });
    let ran = Pipeline::new(run).stdin(deep).run().quiet();
    assert_eq!(ran.text().lines().count(), 6, "{}", ran.text());
    assert!(ran.text().contains("FDSize 64\n"), "{}", ran.text());
}

#[test]
fn a_peek_offset_of_the_program_is_restored() {
    may!(rights::all_processes());
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let script = "import os, socket, time
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
for text in (b'one', b'two', b'three'): b.send(text)
a.setsockopt(socket.SOL_SOCKET, 42, 0); a.recv(9, socket.MSG_PEEK)
print(a.fileno(), flush=True); time.sleep(1000)";
    let target = Target::program(&[python, "-c", script]);
    let file = scratch.file("a.fdi");
    // Without --freeze the program could read a message at the same moment.
    let ran = pipeline(&[&["fdscan", "--data", &target.pid]]);
    ran.refuses(1, &["would disturb its users", "--freeze"]).in_one_line();
    pipeline(&[&["fdscan", "--freeze", "--data", &target.pid], &["fdimg", "write", &file]]).quiet();
    let number = target.said.clone();
    drop(target);
    let after = "import socket, sys
a = socket.socket(fileno=int(sys.argv[1]))
assert a.getsockopt(socket.SOL_SOCKET, 42) == 3
assert a.recv(9, socket.MSG_PEEK) == b'two'
assert [a.recv(9) for _ in range(3)] == [b'one', b'two', b'three']";
    restored(&file, &[], &[python, "-c", after, &number]).quiet();
}

#[test]
fn a_peek_offset_is_reset_when_fdscan_is_killed() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["socketpair@3,4:type=dgram,data=@150000,sndbuf=400000"]);
    let ask = "import ctypes, os, socket, sys
process = os.pidfd_open(int(sys.argv[1]))
fd = ctypes.CDLL(None).syscall(438, process, 3, 0)
print(socket.socket(fileno=fd).getsockopt(socket.SOL_SOCKET, 42))";
    let offset = || {
        let ran = pipeline(&[&[python, "-c", ask, &target.pid]]).ok();
        ran.text().trim().parse::<i32>().expect("an offset")
    };
    let until = |what: &str, holds: &dyn Fn(i32) -> bool| {
        let begin = Instant::now();
        while !holds(offset()) {
            assert!(
                begin.elapsed() < Duration::from_secs(30),
                "{what}: the offset is {}",
                offset()
            );
        }
    };
    assert_eq!(offset(), -1);
    // The output is not read, so the scan blocks in the middle of the queue.
    let mut scan =
        command(&["fdscan", "--data", &target.pid]).stdout(Stdio::piped()).spawn().unwrap();
    until("lent", &|offset| offset >= 0);
    scan.kill().unwrap();
    scan.wait().unwrap();
    until("put back", &|offset| offset == -1);
}

#[test]
fn an_out_of_band_byte_is_reported_as_lost_and_the_rest_is_restored() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let script = "import os, socket, time
a, b = socket.socketpair(); a.set_inheritable(True)
b.send(b'before'); b.send(b'!', socket.MSG_OOB); b.send(b'after')
print(a.fileno(), flush=True); time.sleep(1000)";
    let target = Target::program(&[python, "-c", script]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    let number = target.said.clone();
    drop(target);
    let after = "import socket, sys
a = socket.socket(fileno=int(sys.argv[1]))
assert a.recv(99) == b'beforeafter'";
    let ran = restored(&file, &[], &[python, "-c", after, &number]).ok();
    assert!(ran.stderr(0).contains("out-of-band"), "{}", ran.whole());
    ran.in_one_line();
}

#[test]
fn connected_sockets_keep_their_names_and_only_unused_socket_files_are_replaced() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let script = "import os, socket, sys, time
os.chdir(sys.argv[1])
kind = socket.SOCK_DGRAM
a, b, c = (socket.socket(socket.AF_UNIX, kind) for _ in range(3))
a.bind('one'); b.bind('\\0fdkit-two-' + sys.argv[1]); os.chmod('one', 0o640)
a.connect(b.getsockname()); b.connect('one')
b.send(b'from two')
server = socket.socket(socket.AF_UNIX); server.bind('server'); server.listen()
client = socket.socket(socket.AF_UNIX); client.bind('client'); client.connect('server')
client.send(b'hello'); accepted, _ = server.accept()
for s in (a, b, server, client, accepted): s.set_inheritable(True)
print(*(s.fileno() for s in (a, b, server, client, accepted)), flush=True); time.sleep(1000)";
    let target = Target::program(&[python, "-c", script, scratch.dir()]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    let numbers = target.said.clone();
    drop(target);
    let numbers: Vec<&str> = numbers.split(' ').collect();
    let after = "import os, socket, sys
os.chdir(sys.argv[1])
a, b, server, client, accepted = (socket.socket(fileno=int(n)) for n in sys.argv[2:])
two = ('\\0fdkit-two-' + sys.argv[1]).encode()
assert (a.getsockname(), a.getpeername()) == ('one', two)
assert a.recvfrom(99) == (b'from two', two)
assert os.stat('one').st_mode & 0o777 == 0o640
a.send(b'x'); assert b.recvfrom(9) == (b'x', 'one')
assert client.getsockname() == 'client' and accepted.getpeername() == 'client'
assert accepted.recv(9) == b'hello'
other = socket.socket(socket.AF_UNIX); other.connect('server'); other.send(b'new')
assert server.accept()[0].recv(9) == b'new'";
    let run = [&[python, "-c", after, scratch.dir()], &numbers[..]].concat();
    let ran = restored(&file, &[], &run).ok();
    assert!(
        ran.stderr(0).contains("it is not bound to its name server: a listening socket has"),
        "{}",
        ran.whole()
    );
    ran.in_one_line();
    // A socket file that no process listens on is replaced; any other file is not touched.
    fs::remove_file(scratch.file("server")).unwrap();
    fs::write(scratch.file("server"), "precious").unwrap();
    let ran = restored(&file, &[], &["true"]);
    ran.refuses(125, &["a file that is not a socket is at server", "(status 6)"]);
    assert_eq!(fs::read(scratch.file("server")).unwrap(), b"precious");
}

#[test]
fn a_socket_name_in_use_is_refused_and_its_owner_not_disturbed() {
    use std::os::unix::net::{UnixDatagram, UnixListener};
    let scratch = Scratch::new();
    let name = scratch.file("name");
    let target = target!(scratch.dir(), &[&format!("unix@3:path={name}")]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    drop(target);
    let taken = || {
        let ran = restored(&file, &[], &["true"]);
        ran.refuses(125, &["fd 3", "another socket is bound to", "(status 6)"]);
    };
    fs::remove_file(&name).unwrap();
    let listener = UnixListener::bind(&name).unwrap();
    taken();
    listener.set_nonblocking(true).unwrap();
    let found = listener.accept().map_err(|err| err.kind());
    assert!(matches!(found, Err(std::io::ErrorKind::WouldBlock)), "a connection");
    fs::remove_file(&name).unwrap();
    let receiver = UnixDatagram::bind(&name).unwrap();
    taken();
    // A connected datagram socket does not accept messages from other senders.
    receiver.connect(&name).unwrap();
    taken();
    drop(receiver);
    restored(&file, &[], &["true"]).quiet();
}

#[test]
fn a_unix_connection_to_outside_the_image_is_refused_inherited_or_closed() {
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["socketpair@3,4:data=lost"]);
    let file = scratch.file("a.fdi");
    pipeline(&[&["fdscan", "-F", "3", &target.pid], &["fdimg", "write", &file]]).quiet();
    let stream = fs::read(&file).unwrap();
    refused(stream, 6, &["fd 3", "the other end, socket:[", "is outside the image"]);
    let check = ["mkfd", "check", "--std", "0,1,2", "socketpair@3:alone"];
    restored(&file, &["--missing", "null"], &check).quiet();
    let handed = ["--inherit", "3=0", "--inherit", "0,1,2"];
    let ran =
        pipeline(&[&[&["fdrestore", "-i", &file][..], &handed, &["--", "mkfd", "show"]].concat()]);
    let text = ran.quiet().text();
    let link = |number: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(each, _)| *each == number).map(|(_, link)| link.to_owned())
    };
    assert!(link("3").is_some());
    assert_eq!(link("3"), link("0"));
}

#[test]
fn an_abstract_name_in_use_is_refused() {
    let scratch = Scratch::new();
    let name = format!("unix@3:abstract=fdkit-taken-{}", std::process::id());
    let target = target!(scratch.dir(), &[&name]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    let restore = ["fdrestore", "-i", &file, "--inherit", "0,1,2", "--", "true"];
    let texts = ["fd 3", "another socket is bound to", "(status 6)"];
    pipeline(&[&restore]).refuses(125, &texts);
    drop(target);
    pipeline(&[&restore]).quiet();
}
