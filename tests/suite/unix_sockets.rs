//! Queues of unix sockets: programs that send descriptors to themselves, trees that share them, and
//! forged queues.

use crate::forged::{forged, refused};
use crate::harness::{
    Pipeline, Scratch, Target, command, image, pipeline, python, restored, scan, tool,
};
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
    let said = ran.stderr(0).lines().filter(|line| {
        line.starts_with("fdrestore: queued in fd 3 (socket:[")
            && line.ends_with(": left out: no kind of this version restores it")
    });
    assert_eq!((said.count(), ran.stderr(0).lines().count()), (2, 2), "{}", ran.whole());
    ran.ok();
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
        let why = ["fd 3", "another socket is bound to"];
        pipeline(&[&["fdrestore", "-n", "-i", &file]]).refuses(6, &why);
        restored(&file, &[], &["true"]).refuses(125, &[why[0], why[1], "(status 6)"]);
        // It can be left out as anything that cannot be restored.
        let skip = restored(&file, &["--missing", "skip"], &["true"]).ok();
        assert!(skip.said().contains("left out: another socket"), "{}", skip.whole());
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
    let why = "replaced: the other end, socket:[";
    restored(&file, &["--missing", "null"], &check).refuses(0, &[why]).in_one_line();
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
    pipeline(&[&["fdrestore", "-n", "-i", &file]]).refuses(6, &texts[..2]);
    drop(target);
    pipeline(&[&restore]).quiet();
}

/// Listening sockets whose names do not lead to their files any more.
const MOVED: &str = "import os, socket, sys, time
home, deep = sys.argv[1], 'run/' + 'x' * 120
os.chdir(home); os.makedirs(deep)
def listener(name, cwd='.'):
    os.chdir(cwd); s = socket.socket(socket.AF_UNIX); s.bind(name); s.listen(3)
    os.chdir(home); s.set_inheritable(True); return s
a, b = listener('relative', 'run'), listener('../up', deep)
d = os.open(deep, os.O_PATH); os.dup2(d, 50); os.close(d)
c = listener('/proc/self/fd/50/long'); os.close(50); os.dup2(c.fileno(), 50); c.close()
d, e = listener(home + '/new'), listener('gone')
os.chmod('new', 0o640); os.rename('new', 'renamed'); os.unlink('gone')
print(a.fileno(), b.fileno(), 50, d.fileno(), e.fileno(), flush=True); time.sleep(1000)";

/// Checks the sockets of [`MOVED`] by connecting to their files.
const MOVED_BACK: &str = "import os, socket, sys
home, deep = sys.argv[1], 'run/' + 'x' * 120
os.chdir(home)
a, b, c, d, e = (socket.socket(fileno=int(n)) for n in sys.argv[2:])
for s, name, place in ((a, 'relative', 'run/relative'), (b, '../up', 'run/up'),
        (c, '/proc/self/fd/50/long', deep + '/long'), (d, home + '/new', 'renamed')):
    assert s.getsockname() == name, (s.getsockname(), name)
    os.chdir(os.path.dirname(place) or '.')
    client = socket.socket(socket.AF_UNIX); client.connect(os.path.basename(place)); s.accept()
    os.chdir(home)
assert e.getsockname() == 'gone' and os.stat('renamed').st_mode & 0o777 == 0o640
files = sorted(os.listdir('.')) + sorted(os.listdir('run')) + os.listdir(deep)
assert files == ['a.fdi', 'renamed', 'run', 'relative', 'up', 'x' * 120, 'long'], files
print('connected')";

#[test]
fn a_socket_is_bound_again_where_its_file_is_though_its_name_does_not_lead_there() {
    may!(rights::capability("net_admin"));
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let home = scratch.dir();
    let target = Target::program(&[python, "-c", MOVED, home]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    let numbers = target.said.clone();
    drop(target);
    let shown = pipeline(&[&["fdimg", "show", &file]]).quiet().text();
    for part in ["relative (file ", "/run/relative) LISTEN", "/new (file ", "/renamed) LISTEN"] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    let numbers: Vec<&str> = numbers.split(' ').collect();
    let run = [&[python, "-c", MOVED_BACK, home], &numbers[..]].concat();
    // The second time the files are there, and no socket is bound to them.
    for _ in 0..2 {
        assert_eq!(restored(&file, &[], &run).quiet().text(), "connected\n");
    }
    // No name leads into a directory that was renamed.
    fs::rename(scratch.file("run"), scratch.file("walked")).unwrap();
    let ran = restored(&file, &[], &["true"]);
    ran.refuses(125, &["/run", "(status 6)"]);
    assert_eq!(fs::read_dir(home).unwrap().count(), 3);
}

#[test]
fn a_socket_of_a_chroot_is_bound_again_inside_of_it() {
    may!(rights::chroot(), rights::capability("net_admin"));
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let name = format!("fdkit-jail-{}.sock", std::process::id());
    let (jail, inside) = (scratch.file("jail"), scratch.file(&format!("jail/{name}")));
    fs::create_dir(&jail).unwrap();
    let script = "import os, socket, sys, time
os.chroot(sys.argv[1]); os.chdir('/'); s = socket.socket(socket.AF_UNIX); s.bind('/' + sys.argv[2])
s.listen(1); print('ready', flush=True); time.sleep(1000)";
    let target = Target::program(&[python, "-c", script, &jail, &name]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    drop(target);
    let connect = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
print(s.getpeername())";
    let ran = restored(&file, &[], &[python, "-c", connect, &inside]).quiet();
    assert_eq!(ran.text(), format!("/{name}\n"));
    assert!(!fs::exists(format!("/{name}")).unwrap());
}

#[test]
fn a_name_that_leads_nowhere_is_reported_by_a_scan_that_may_not_ask_for_the_file() {
    let less: &[&str] = match rights::capability("net_admin") {
        Err(_) => &[],
        Ok(()) => {
            may!(rights::less("-net_admin"));
            &["setpriv", "--bounding-set=-net_admin", "--"]
        }
    };
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let script = "import os, socket, sys, time
os.chdir(sys.argv[1]); os.mkdir('run')
a = socket.socket(socket.AF_UNIX); a.bind('here'); a.listen(1)
os.chdir('run'); b = socket.socket(socket.AF_UNIX); b.bind('there'); b.listen(1); os.chdir('..')
print(a.fileno(), b.fileno(), flush=True); time.sleep(1000)";
    let target = Target::program(&[python, "-c", script, scratch.dir()]);
    let numbers = target.said.clone();
    let file = scratch.file("a.fdi");
    let (here, there) = numbers.split_once(' ').expect("two numbers");
    let scan = [less, &["fdscan", "-F", here, &target.pid]].concat();
    pipeline(&[&scan]).quiet();
    let scan = [less, &["fdscan", "-F", there, "-o", &file, &target.pid]].concat();
    pipeline(&[&scan]).refuses(1, &["its name there is as it was bound", "CAP_NET_ADMIN"]);
    drop(target);
    let ran = restored(&file, &[], &["true"]).ok();
    assert!(ran.stderr(0).contains("there: a socket is bound to this name and has no file"));
}

/// A program with a pair, a listening socket and, where it may, a packet socket, all made before it
/// enters another network namespace.
const LEFT_BEHIND: &str = "import ctypes, os, socket, sys, time
s = list(socket.socketpair()) + [socket.socket(socket.AF_UNIX)]
s[0].send(b'data'); s[2].bind('\\0fdkit-behind-' + sys.argv[1]); s[2].listen(1)
if sys.argv[2] == 'packet': s.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
for it in s: it.set_inheritable(True)
assert ctypes.CDLL(None).unshare(0x40000000) == 0
print('ready', flush=True); time.sleep(1000)";

/// The kinds and the JSON objects of the sockets in an image.
fn sockets(file: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    forged(&fs::read(file).unwrap(), |items| {
        for item in items {
            let Item::File(file) = item else { continue };
            if file.link.0.starts_with(b"socket:[") {
                found.push((file.kind.clone(), String::from_utf8_lossy(&file.body).into_owned()));
            }
        }
    });
    found
}

#[test]
fn sockets_of_another_network_namespace_than_their_process_are_captured() {
    may!(rights::namespace("--net"), rights::capability("net_raw"));
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let file = scratch.file("a.fdi");
    let id = std::process::id().to_string();
    let left = [python, "-c", LEFT_BEHIND, &id, "packet"];
    let target = Target::program(&left);
    scan(&target.pid, &file);
    drop(target);
    let kinds: Vec<String> = sockets(&file).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["unix", "unix", "unix", "packet"]);
    let shown = pipeline(&[&["fdimg", "show", &file]]).quiet().text();
    let own = fs::read_link("/proc/self/ns/net").unwrap().to_string_lossy().into_owned();
    assert_eq!(shown.matches(&own).count(), 4, "{own} in {shown}");
    assert_eq!(shown.matches(" -> socket:[").count(), 2, "{shown}");
    // All of them are of the namespace of fdrestore.
    restored(&file, &[], &["true"]).quiet();
    // In another one the abstract name would be another, and so would be the packets.
    let away =
        ["unshare", "--net", "--", "fdrestore", "-i", &file, "--inherit", "0,1,2", "--", "true"];
    let ran = pipeline(&[&away]);
    let why = "it is in network namespace net:[";
    assert_eq!(ran.stderr(0).matches(why).count(), 2, "{}", ran.whole());
    ran.refuses(125, &["2 cannot be restored here", "(status 6)"]);
    // Without the right to ask in the other one they are not taken for anything else.
    may!(rights::less("-net_admin"));
    let target = Target::program(&left);
    let less = ["setpriv", "--bounding-set=-net_admin", "--", "fdscan", "-F", "unix,opaque"];
    let ran = pipeline(&[&[&less[..], &["-o", &file, &target.pid]].concat()]);
    let why =
        "recorded as opaque: sock_diag does not know it in the network namespace of its process";
    assert_eq!(ran.stderr(0).matches(why).count(), 4, "{}", ran.whole());
    assert_eq!(ran.status(0), 1);
    drop(target);
    // The process is in a namespace that it has not made, its sockets in one between.
    let target = Target::program(&[&["unshare", "--net", "--"][..], &left].concat());
    scan(&target.pid, &file);
    let shown = pipeline(&[&["fdimg", "show", &file]]).quiet().text();
    assert!(!shown.contains("opaque") && shown.matches(" net:[").count() == 4, "{shown}");
}

#[test]
fn sockets_of_a_user_namespace_are_captured_by_the_user_who_made_it() {
    may!(rights::user_namespace());
    let Some(python) = python() else { skip!("python3 is missing") };
    let user: &[&str] = match crate::harness::root() {
        true => {
            may!(rights::other_user());
            &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
        }
        false => &[],
    };
    let scratch = Scratch::new();
    let id = std::process::id().to_string();
    let unshare = ["unshare", "--map-root-user", "--net", "--"];
    let left = [python, "-c", LEFT_BEHIND, &id, "none"];
    let target = Target::program(&[user, &unshare, &left].concat());
    let scan = [user, &["fdscan", "-F", "unix,opaque", &target.pid]].concat();
    let file = scratch.file("a.fdi");
    pipeline(&[&scan, &["fdimg", "write", &file]]).quiet();
    let kinds: Vec<String> = sockets(&file).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["unix", "unix", "unix"]);
}

/// A listening socket, at number 30, and three clients that wait to be accepted, of which the second
/// one is at the lowest number. Each has a child of its own.
const WAITING: &str = "import os, socket, sys, time
os.chdir(sys.argv[1])
kind = socket.SOCK_STREAM if sys.argv[2] == 'stream' else socket.SOCK_SEQPACKET
l = socket.socket(socket.AF_UNIX, kind); l.bind(sys.argv[3].replace('@', '\\0')); l.listen(5)
os.dup2(l.fileno(), 30)
for number, name in (31, 'a'), (20, 'b'), (32, 'c'):
    c = socket.socket(socket.AF_UNIX, kind); c.bind(name); os.unlink(name); c.connect(l.getsockname())
    if name == 'c': c.send(b'lost')
    os.dup2(c.fileno(), number)
    c.close()
if sys.argv[4] == 'unlinked': os.unlink(sys.argv[3])
l.close()
print('ready', flush=True); time.sleep(1000)";

const ACCEPTS: &str = "import socket, sys
l, a, b, c = (socket.socket(fileno=n) for n in (30, 31, 20, 32))
l.setblocking(False)
for name, s in ('a', a), ('b', b), ('c', c):
    other, at = l.accept()
    assert at == name and s.getblocking(), (at, name)
    s.send(b'to ' + name.encode()); assert other.recv(99) == b'to ' + name.encode()
    other.send(b'back'); assert s.recv(99) == b'back'
print('accepted')";

#[test]
fn sockets_that_wait_to_be_accepted_wait_again_in_the_same_order() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    let name = format!("@fdkit-waits-{}", std::process::id());
    // Without CAP_NET_ADMIN a scan cannot know that a file was unlinked.
    let may_ask = rights::capability("net_admin").is_ok();
    let mut cases = vec![("stream", "s", ""), ("seqpacket", "t", ""), ("stream", &name, "")];
    if may_ask {
        cases.push(("stream", "u", "unlinked"));
    }
    for (kind, name, unlinked) in cases {
        let file = scratch.file("a.fdi");
        let words = [python, "-c", WAITING, scratch.dir(), kind, name, unlinked];
        let target = Target::program(&words);
        scan(&target.pid, &file);
        let alone = pipeline(&[&["fdscan", "-F", "20", &target.pid]]).quiet();
        drop(target);
        let text = pipeline(&[&["fdimg", "show", &file]]).quiet().text();
        assert_eq!(text.matches(" not accepted yet").count(), 3, "{text}");
        let ran = restored(&file, &[], &[python, "-c", ACCEPTS]).ok();
        assert_eq!(ran.text(), "accepted\n");
        let said = ran.stderr(0);
        assert!(said.contains("what it has sent is lost"), "{said}");
        assert_eq!(said.lines().filter(|line| line.contains("lost")).count(), 1, "{said}");
        let why = ["fd 20", "it waits to be accepted by socket:[", "outside the image"];
        refused(alone.stdout.clone(), 6, &why);
    }
}

/// The names of the clients that wait to be accepted in an image, in the order of the queue.
fn queue_of_clients(file: &str) -> Vec<String> {
    let mut names = Vec::new();
    forged(&fs::read(file).unwrap(), |items| {
        let sockets = items.iter().filter_map(|item| match item {
            Item::File(file) if file.kind == "unix" => Some(file),
            _ => None,
        });
        let sockets: Vec<_> = sockets.collect();
        let queue = sockets.iter().find_map(|file| {
            let at = file.body.windows(7).position(|part| part == b"clients")?;
            Some(file.body[at + 7..].to_vec())
        });
        let queue = queue.expect("a listener with clients");
        // A CBOR array of two numbers of 32 bits.
        assert_eq!((queue[0], queue[1], queue[6]), (0x82, 0x1a, 0x1a));
        for at in [2, 7] {
            let ino = u32::from_be_bytes(*queue[at..].first_chunk().expect("a number"));
            let link = format!("socket:[{ino}]");
            let client = sockets.iter().find(|file| file.link.0 == link.as_bytes());
            let body = String::from_utf8_lossy(&client.expect("a client").body).into_owned();
            let at = body.find("fdkit-client-").expect("its name") + 13;
            names.push(body[at..at + 1].to_owned());
        }
    });
    names
}

#[test]
fn clients_of_other_processes_of_a_tree_wait_again_in_the_same_order() {
    let Some(python) = python() else { skip!("python3 is missing") };
    let scratch = Scratch::new();
    // The second client is that of the first child.
    let script = "import os, signal, socket, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
name = '\\0fdkit-listens-' + sys.argv[1]
l = socket.socket(socket.AF_UNIX); l.bind(name); l.listen(5)
def client(which):
    c = socket.socket(socket.AF_UNIX); c.bind('\\0fdkit-client-' + which + sys.argv[1])
    c.connect(name); os.kill(os.getppid(), signal.SIGUSR1); time.sleep(1000)
first = os.fork()
if first == 0: l.close(); signal.sigwait([signal.SIGUSR1]); client('b')
if os.fork() == 0: l.close(); client('a')
signal.sigwait([signal.SIGUSR1]); os.kill(first, signal.SIGUSR1); signal.sigwait([signal.SIGUSR1])
print('ready', flush=True); time.sleep(1000)";
    let target = Target::program(&[python, "-c", script, &std::process::id().to_string()]);
    let (file, second) = (scratch.file("a.fdi"), scratch.file("b.fdi"));
    let take = |pid: &str, file: &str| {
        pipeline(&[&["fdscan", "--tree", pid], &["fdimg", "write", file]]).quiet();
    };
    take(&target.pid, &file);
    drop(target);
    assert_eq!(queue_of_clients(&file), ["a", "b"]);
    let restore = ["fdrestore", "--tree", "-i", &file, "--missing", "null"];
    let again = Target::ready(&restore).expect("no skip");
    let first = again.said.split_whitespace().last().expect("a pid").to_owned();
    take(&first, &second);
    assert_eq!(queue_of_clients(&second), ["a", "b"]);
}
