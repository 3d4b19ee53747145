//! System calls of a scan that fail, by the fault injection of strace(1): each is said in a line, or
//! the image is the same.

use crate::harness::{Pipeline, Ran, Scratch, Target, pipeline, tool, which};
use serde_json::Value;

/// Runs `strace OPTIONS fdscan PID | fdimg show -J`. strace writes its own lines to `log`.
fn traced(options: &[&str], log: &str, pid: &str) -> Ran {
    let scan = tool("fdscan").to_string_lossy().into_owned();
    let strace = ["strace", "-f", "-qq", "-o", log];
    let stages = [&strace[..], options, &[&scan, pid]].concat();
    Pipeline::new(&[&stages, &["fdimg", "show", "-J"]]).run()
}

/// The descriptors that the JSON of an image shows.
fn descriptors(ran: &Ran) -> Value {
    let mut shown: Value = serde_json::from_slice(&ran.stdout).expect("JSON");
    shown["descriptors"].take()
}

/// Fails each call of `name` that a scan of `specs` makes, one a scan. Gives what the scans said.
fn fail_each_call(name: &str, specs: &[&str]) -> Result<String, String> {
    let scratch = Scratch::new();
    let target = Target::make(scratch.dir(), specs)?;
    let log = scratch.file("log");
    let trace = format!("trace={name}");
    let whole = traced(&["-e", &trace], &log, &target.pid);
    if whole.status(0) != 0 {
        return Err(format!("strace cannot run fdscan: {}", whole.stderr(0)));
    }
    let wanted = descriptors(&whole.ok());
    let calls = std::fs::read_to_string(&log).unwrap().matches(&format!("{name}(")).count();
    assert!(calls > 0, "a scan of {specs:?} makes no call of {name}");
    let mut said = String::new();
    for nth in 1..=calls {
        let inject = format!("inject={name}:error=EIO:when={nth}");
        let ran = traced(&["-e", &trace, "-e", &inject], &log, &target.pid);
        match ran.status(0) {
            0 => {
                assert_eq!(ran.stderr(0), "", "{nth}: {}", ran.whole());
                assert_eq!(descriptors(&ran), wanted, "call {nth} of {name}");
            }
            // Before main the dynamic linker reads libraries, and the runtime of Rust polls 0, 1 and
            // 2 and aborts.
            127 if ran.stderr(0).contains("loading shared libraries") => continue,
            134 if (name, nth) == ("poll", 1) => continue,
            _ => assert!(ran.stderr(0).starts_with("fdscan: "), "{nth}: {}", ran.whole()),
        }
        said += ran.stderr(0);
    }
    Ok(said)
}

#[test]
fn a_call_that_fails_for_one_descriptor_is_said_and_the_descriptor_is_recorded_with_its_error() {
    needs!(which("strace").is_some(), "strace is missing");
    for (name, specs, texts) in [
        (
            "getsockopt",
            &["unix@3"][..],
            &["fd 3: it is recorded as opaque: SO_DOMAIN, SO_TYPE or SO_PROTOCOL: I/O error"][..],
        ),
        ("getsockname", &["udp@3"], &["fd 3: it is recorded as opaque: getsockname: I/O error"]),
        ("fcntl", &["pipe@3,4"], &["F_GETOWN_EX: I/O error", "opaque: F_GETPIPE_SZ: I/O error"]),
        ("ioctl", &["pipe@3,4", "inotify@5"], &["opaque: FIONREAD: I/O error"]),
        ("poll", &["pipe@3,4"], &["opaque: poll: I/O error"]),
        ("ioctl", &["epoll@3,4"], &["fd 3: it is recorded as opaque: EPIOCGPARAMS: I/O error"]),
        ("pread64", &["mqueue@3"], &["fd 3: whether a process has called mq_notify(3) is not"]),
        ("kcmp", &["epoll@3,4"], &["fd 3: kcmp: I/O error: its members are"]),
    ] {
        let said = match fail_each_call(name, specs) {
            Ok(said) => said,
            Err(reason) => skip!("{name}: {reason}"),
        };
        for text in texts {
            assert!(said.contains(text), "{name}: {text}\n{said}");
        }
    }
}

#[test]
fn descriptors_that_cannot_be_compared_are_said_once() {
    needs!(which("strace").is_some(), "strace is missing");
    let scratch = Scratch::new();
    let script = "exec 3</dev/null 4<&3 5<&3; echo; exec sleep 1000";
    let target = Target::program(&["sh", "-c", script]).executing("sleep");
    let log = scratch.file("log");
    for (errno, why) in [
        ("EPERM", "a security module or seccomp filter forbids it"),
        ("ENOSYS", "it takes a kernel with CONFIG_KCMP"),
        ("EIO", "I/O error"),
    ] {
        let inject = format!("inject=kcmp:error={errno}");
        let ran = traced(&["-e", "trace=kcmp", "-e", &inject], &log, &target.pid);
        let lost = "what descriptors and processes share may be missing in the image";
        let line = format!("fdscan: kcmp: {why}: {lost}\n");
        assert_eq!((ran.status(0), ran.stderr(0)), (1, &*line), "{}", ran.whole());
    }
}

#[test]
fn the_error_of_a_descriptor_that_could_not_be_read_is_shown_and_named_by_a_restore() {
    needs!(which("strace").is_some(), "strace is missing");
    let scratch = Scratch::new();
    let target = target!(scratch.dir(), &["udp@3", "eventfd@4"]);
    let (scan, log) = (tool("fdscan").to_string_lossy().into_owned(), scratch.file("log"));
    let inject = "inject=getsockname:error=EIO";
    let strace = ["strace", "-f", "-qq", "-o", &log, "-e", "trace=getsockname", "-e", inject];
    for filter in [&[][..], &["-F", "udp"], &["-F", "3"]] {
        let file = scratch.file("a.fdi");
        let scan = [&strace[..], &[&scan], filter, &[&target.pid]].concat();
        let ran = Pipeline::new(&[&scan, &["fdimg", "write", &file]]).run();
        let line = format!(
            "fdscan: {}: fd 3: it is recorded as opaque: getsockname: I/O error\n",
            target.pid
        );
        assert_eq!((ran.status(0), ran.stderr(0)), (1, &*line), "{}", ran.whole());
        let shown = pipeline(&[&["fdimg", "show", &file]]).quiet().text();
        assert!(shown.contains("(not read: getsockname: I/O error)"), "{shown}");
        pipeline(&[&["fdrestore", "-n", "-i", &file, "--inherit", "0,1,2"]])
            .refuses(6, &["fd 3", "the scan could not read it: getsockname: I/O error"]);
    }
}
