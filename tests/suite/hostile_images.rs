//! Images that somebody made to harm who restores them: contradictions, paths that lead elsewhere, and
//! sizes and numbers that no kernel has.

use crate::forged::{forged, refused};
use crate::harness::{
    Pipeline, RESTORE, Ran, Scratch, Target, image, image_if_can, pipeline, scan, tool, which,
};
use crate::rights;
use fdkit::image::{Item, OpenFile};
use nix::libc::{O_CREAT, O_EXCL, O_TRUNC};
use std::fs;

/// The bytes of an image with its files changed, in the order of their ids.
fn with_files(file: &str, change: impl FnOnce(&mut [&mut OpenFile])) -> Vec<u8> {
    forged(&fs::read(file).unwrap(), |items| {
        let files = items.iter_mut().filter_map(|item| match item {
            Item::File(file) => Some(&mut **file),
            _ => None,
        });
        change(&mut files.collect::<Vec<_>>());
    })
}

/// The flags that open(2) acts on once, and that the kernel does not keep.
const ONCE: u32 = (O_CREAT | O_EXCL | O_TRUNC) as u32;

#[test]
fn an_object_of_two_kinds_is_refused_and_the_file_keeps_its_contents() {
    let scratch = Scratch::new();
    let there = scratch.file("there");
    fs::write(&there, "contents").unwrap();
    for other in ["unlinked@4:data=x", "memfd@4:data=x", "pipe@4,5", "eventfd@4"] {
        let file = image(&scratch, &[&format!("regular@3:path={there}"), other]);
        // As the first and as the second file of the object.
        for reverse in [false, true] {
            let bytes = with_files(&file, |files| {
                files[0].object = Some(0);
                files[1].object = Some(0);
                files[1].flags |= ONCE;
                if reverse {
                    let (ids, others) = files.split_at_mut(1);
                    std::mem::swap(&mut *ids[0], &mut *others[0]);
                    std::mem::swap(&mut ids[0].id, &mut others[0].id);
                }
            });
            Pipeline::new(&[&["fdimg", "verify"]])
                .stdin(bytes.clone())
                .run()
                .refuses(3, &["object"]);
            refused(bytes, 3, &["its object 0 is of kind", "cannot also be of kind"]);
        }
    }
    assert_eq!(fs::read_to_string(&there).unwrap(), "contents");
}

#[test]
fn flags_that_create_or_truncate_a_file_are_ignored_by_a_restore() {
    let scratch = Scratch::new();
    let there = scratch.file("there");
    fs::write(&there, "contents").unwrap();
    let specs =
        [&format!("regular@3:path={there}"), "unlinked@4:data=hello,read", "memfd@5:data=memory"];
    let file = image(&scratch, &specs);
    let bytes = with_files(&file, |files| files.iter_mut().for_each(|file| file.flags |= ONCE));
    let read = "cat <&3; cat /proc/self/fd/4 /proc/self/fd/5";
    let ran = Pipeline::new(&[&[RESTORE, &["--", "sh", "-c", read]].concat()]).stdin(bytes).run();
    assert_eq!(ran.quiet().text(), "contentshellomemory");
    assert_eq!(fs::read_to_string(&there).unwrap(), "contents");
}

/// Runs fdrestore under strace, and gives its calls of open(2) that name a file of the scratch
/// directory, or a number of its own.
fn opened(scratch: &Scratch, bytes: Vec<u8>, options: &[&str]) -> (Ran, Vec<String>) {
    let log = scratch.file("log");
    let restore = tool("fdrestore").to_string_lossy().into_owned();
    let trace = "trace=open,openat,openat2,mknod,mknodat,mkdir,mkdirat,unlink,unlinkat,bind";
    let strace = ["strace", "-f", "-qq", "-o", &log, "-e", trace, &restore];
    let options = [&["--inherit", "0,1,2"], options].concat();
    let ran = Pipeline::new(&[&[&strace[..], &options].concat()]).stdin(bytes).run();
    let named = |line: &&str| line.contains(scratch.dir()) || line.contains("\"/proc/self/fd/");
    let log = fs::read_to_string(&log).unwrap();
    (ran, log.lines().filter(named).map(str::to_owned).collect())
}

#[test]
fn a_dry_run_opens_the_files_of_an_image_with_o_path_only() {
    needs!(which("strace").is_some(), "strace is missing");
    let scratch = Scratch::new();
    let path = |name: &str| scratch.file(name);
    fs::write(path("regular"), "contents").unwrap();
    let specs = [
        format!("regular@3:path={}", path("regular")),
        "directory@4".to_owned(),
        "fifo@5,9".to_owned(),
        "unlinked@6:data=hello".to_owned(),
        "unix@7".to_owned(),
        "mem@8".to_owned(),
    ];
    let specs = specs.iter().map(String::as_str).collect::<Vec<_>>();
    let bytes = fs::read(image(&scratch, &specs)).unwrap();
    let (ran, calls) = opened(&scratch, bytes, &["-n"]);
    ran.ok();
    assert!(calls.iter().any(|call| call.contains("/regular")), "{calls:#?}");
    for call in calls {
        assert!(call.contains("O_PATH"), "{call}");
    }
}

#[test]
fn a_file_of_another_type_is_looked_at_and_not_opened() {
    needs!(which("strace").is_some(), "strace is missing");
    let scratch = Scratch::new();
    let (regular, target) = (scratch.file("regular"), scratch.file("target"));
    for spec in ["regular@3", "directory@3", "fifo@3,4", "mqueue"] {
        fs::write(&regular, "contents").unwrap();
        let file = image(
            &scratch,
            &[&match spec {
                "regular@3" => format!("regular@3:path={regular}"),
                "mqueue" => "mqueue@3".to_owned(),
                _ => spec.to_owned(),
            }],
        );
        let mut path = String::new();
        let bytes = with_files(&file, |files| {
            if spec == "mqueue" {
                // As if it was opened by a path, and not unlinked.
                files[0].inode.as_mut().expect("an inode").nlink = 1;
                files[0].flags |= 0o100_000;
                files[0].link = regular.as_bytes().into();
            }
            path = String::from_utf8(files[0].link.0.clone()).unwrap();
        });
        fs::rename(&path, scratch.file("moved")).unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        match spec {
            "fifo@3,4" => fs::write(&target, "").unwrap(),
            _ => nix::unistd::mkfifo(&target[..], nix::sys::stat::Mode::S_IRWXU).unwrap(),
        }
        for options in [&["-n"][..], &["--", "true"]] {
            let (ran, calls) = opened(&scratch, bytes.clone(), options);
            let text = if spec == "mqueue" { "not a message queue" } else { "another type" };
            ran.refuses(if options == ["-n"] { 6 } else { 125 }, &["fd 3", text]);
            assert!(calls.iter().any(|call| call.contains(&path)), "{spec}: {calls:#?}");
            for call in calls {
                assert!(call.contains("O_PATH"), "{spec}: {call}");
            }
        }
        fs::remove_file(&target).unwrap();
        fs::remove_file(&path).unwrap();
        let _ = fs::remove_file(scratch.file("moved"));
        let _ = fs::remove_dir_all(scratch.file("moved"));
    }
}

#[test]
fn an_unlinked_file_or_fifo_with_a_link_that_is_no_path_is_refused() {
    let scratch = Scratch::new();
    for spec in ["unlinked@3:data=hello", "unlinked@3:data=", "fifo@3,4:unlinked"] {
        let file = image(&scratch, &[spec]);
        for link in [&b""[..], b" (deleted)", b"name (deleted)", b"/ (deleted)", b"/.. (deleted)"] {
            let bytes = with_files(&file, |files| {
                files.iter_mut().for_each(|file| file.link = link.into());
            });
            refused(bytes, 3, &["fd 3"]);
        }
    }
}

#[test]
fn a_position_that_no_file_has_is_refused_before_anything_is_opened() {
    let scratch = Scratch::new();
    for spec in ["regular@3", "unlinked@3:data=hello", "memfd@3:data=hello", "directory@3"] {
        let file = image(&scratch, &[spec]);
        for pos in [i64::MIN, -1] {
            let bytes = with_files(&file, |files| files[0].pos = pos);
            refused(bytes, 3, &["fd 3", "position"]);
        }
    }
}

#[test]
fn a_stream_that_is_no_image_is_refused_at_its_first_bytes() {
    use std::io::Write;
    for stage in [&["fdrestore", "-n"][..], &["fdimg", "verify"], &["fdimg", "show"]] {
        let mut child = std::process::Command::new(tool(stage[0]))
            .args(&stage[1..])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let zeroes = vec![0; 1 << 20];
        // It ends at the first bytes, so the pipe breaks before all is written.
        let written = (0..64).take_while(|_| stdin.write_all(&zeroes).is_ok()).count();
        drop(stdin);
        let ran = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert_eq!(ran.status.code(), Some(3), "{stage:?}: {said}");
        assert!(written <= 1, "{stage:?}: {written} MiB were taken in");
    }
}

/// An image of a chain of processes, each the child of the one before.
fn chain(scratch: &Scratch, levels: i32) -> Vec<u8> {
    let file = image(scratch, &["eventfd@3"]);
    forged(&fs::read(&file).unwrap(), |items| {
        let at = items.iter().position(|item| matches!(item, Item::Task(_))).expect("a task");
        let Item::Task(first) = items[at].clone() else { unreachable!() };
        let slot = items.iter().find_map(|item| match item {
            Item::Slot(slot) => Some(slot.clone()),
            _ => None,
        });
        let slot = slot.expect("a slot");
        for level in 1..levels {
            let mut task = first.clone();
            task.pid = 1_000_000 + level;
            task.ppid = if level == 1 { first.pid } else { task.pid - 1 };
            task.table.id = 1000 + level as u32;
            items.insert(at + level as usize, Item::Task(task));
            let table = 1000 + level as u32;
            items.push(Item::Slot(fdkit::image::Slot { table, ..slot.clone() }));
        }
    })
}

#[test]
fn a_tree_of_many_levels_is_planned_in_a_time_that_grows_with_its_levels() {
    let scratch = Scratch::new();
    let time = |levels| {
        let bytes = chain(&scratch, levels);
        let begin = std::time::Instant::now();
        Pipeline::new(&[&["fdrestore", "--tree", "-n"]]).stdin(bytes).run().ok();
        begin.elapsed()
    };
    let (few, many) = (time(200), time(1600));
    assert!(many < 16 * few + std::time::Duration::from_secs(1), "{few:?}, then {many:?}");
}

#[test]
fn a_tree_of_which_a_task_fails_ends_with_stats_too() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["regular@3"]);
    let bytes = with_files(&file, |files| {
        fs::remove_file(String::from_utf8_lossy(&files[0].link.0).as_ref()).unwrap()
    });
    for options in [&[][..], &["--stats"]] {
        let words = [&["fdrestore", "--tree"], options, &["--", "true"]].concat();
        let ran = Pipeline::new(&[&words]).stdin(bytes.clone()).run();
        ran.refuses(125, &["fd 3", "No such file"]);
    }
}

#[test]
fn what_is_shown_of_shared_descriptions_grows_with_the_image() {
    let scratch = Scratch::new();
    let file = image(&scratch, &["eventfd@3"]);
    let shared = |count: u32| {
        forged(&fs::read(&file).unwrap(), |items| {
            let slot = items.iter().find_map(|item| match item {
                Item::Slot(slot) => Some(slot.clone()),
                _ => None,
            });
            let slot = slot.expect("a slot");
            for fd in 0..count {
                items.push(Item::Slot(fdkit::image::Slot { fd: 10 + fd, ..slot.clone() }));
            }
            for item in items.iter_mut() {
                if let Item::File(file) = item {
                    file.link = vec![b'a'; 20_000].as_slice().into();
                }
            }
        })
    };
    for options in [&["fdimg", "show"][..], &["fdimg", "show", "-J"]] {
        let sizes = [1000, 4000].map(|count| {
            let ran = Pipeline::new(&[options]).stdin(shared(count)).run().ok();
            ran.stdout.len()
        });
        assert!(sizes[1] < 5 * sizes[0] && sizes[1] < 4_000_000, "{options:?}: {sizes:?}");
    }
}

#[test]
fn an_image_is_not_written_through_a_link_of_another_user_in_a_shared_folder() {
    use std::os::unix::fs::{PermissionsExt, lchown, symlink};
    let scratch = Scratch::new();
    let file = image(&scratch, &["eventfd@3"]);
    let (shared, kept) = (scratch.file("shared"), scratch.file("kept"));
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(&kept, "kept").unwrap();
    let (link, folder) = (format!("{shared}/link"), format!("{shared}/folder"));
    symlink(&kept, &link).unwrap();
    symlink(scratch.dir(), &folder).unwrap();
    let write = |path: &str| {
        let ran = Pipeline::new(&[&["fdimg", "write", path]]).stdin(fs::read(&file).unwrap()).run();
        (ran, fs::read(&kept).unwrap() == b"kept")
    };
    // An own link is kept, and what it leads to is replaced.
    let (ran, same) = write(&link);
    ran.quiet();
    assert!(!same && fs::symlink_metadata(&link).unwrap().is_symlink());
    fs::write(&kept, "kept").unwrap();
    for link in [&link, &folder] {
        let owned = lchown(link, Some(65534), Some(65534));
        needs!(owned.is_ok(), "lchown: {owned:?}");
    }
    for path in [&link, &format!("{folder}/kept")] {
        let (ran, same) = write(path);
        ran.refuses(4, &["symbolic link of uid 65534", "is not followed"]);
        assert!(same, "{path}");
        let pid = std::process::id().to_string();
        let ran = Pipeline::new(&[&["fdscan", "-o", path, &pid]]).run();
        ran.refuses(4, &["symbolic link of uid 65534"]);
        assert_eq!(fs::read(&kept).unwrap(), b"kept");
    }
}

/// A restore with these options is refused, and the message has the word; with it, it is not.
fn asks_for(word: &str, file: &str) {
    let restore = |options: &[&str]| {
        let words = [&["fdrestore", "--inherit", "0,1,2", "-i", file], options].concat();
        [["-n"].as_slice(), &["--", "true"]].map(|end| pipeline(&[&[&words, end].concat()]))
    };
    let reason = format!("--allow {word} permits that");
    for ran in restore(&[]) {
        assert!(ran.said().contains(&reason), "{}", ran.whole());
        assert!([6, 125].contains(&ran.status(0)), "{}", ran.whole());
    }
    // Another word is not enough.
    let other = if word == "tun" { "devices" } else { "tun" };
    for ran in restore(&["--allow", other]) {
        assert!(ran.said().contains(&reason), "{}", ran.whole());
    }
    for options in [format!("--allow={word}"), format!("--allow={other},all")] {
        for ran in restore(&[&options]) {
            ran.ok();
        }
    }
}

#[test]
fn what_goes_beyond_the_descriptors_of_an_image_is_refused_unless_it_is_allowed() {
    let scratch = Scratch::new();
    // A set-user-ID file, and a set-group-ID one.
    for (spec, bit) in [("unlinked@3:data=x", 0o4000), ("memfd@3:data=x", 0o2000)] {
        let made = image(&scratch, &[spec]);
        let bytes = with_files(&made, |files| files[0].inode.as_mut().unwrap().mode |= bit);
        let file = scratch.file("suid.fdi");
        fs::write(&file, bytes).unwrap();
        asks_for("suid", &file);
    }
    let mut skipped = Vec::new();
    for (word, spec) in
        [("devices", "chardev@3"), ("network", "udp@3:host=0.0.0.0,join=239.255.77.1")]
    {
        match image_if_can(&scratch, &[spec]) {
            Ok(file) => asks_for(word, &file),
            Err(why) => skipped.push(format!("{word}: {why}")),
        }
    }
    assert!(skipped.len() < 2, "{skipped:?}");
    for why in skipped {
        crate::harness::skipped(&why);
    }
}

#[test]
fn a_name_where_the_recorded_user_makes_none_is_made_by_root_only_if_it_is_allowed() {
    may!(rights::other_user());
    needs!(which("python3").is_some(), "python3 is missing");
    let scratch = Scratch::for_all_users();
    let script = "
import os, socket, sys, time
def become_nobody(): os.setgroups([]), os.setgid(65534), os.setuid(65534)
if sys.argv[2] == 'theirs': become_nobody()
listener = socket.socket(socket.AF_UNIX)
os.chdir(sys.argv[1])
listener.bind('socket')
listener.listen()
unlinked = open('file', 'w+')
os.unlink('file')
if sys.argv[2] != 'theirs': become_nobody()
print('ready', flush=True)
time.sleep(1000)";
    let file = scratch.file("a.fdi");
    let run = |folder: &str, whose: &str| {
        let target = Target::program(&["python3", "-c", script, folder, whose]);
        scan(&target.pid, &file);
    };
    run(scratch.dir(), "ours");
    asks_for("names", &file);
    // In a folder of that user it is not asked for.
    let theirs = scratch.file("theirs");
    fs::create_dir(&theirs).unwrap();
    std::os::unix::fs::chown(&theirs, Some(65534), None).unwrap();
    run(&theirs, "theirs");
    let plan = pipeline(&[&["fdrestore", "-n", "-J", "--inherit", "0,1,2", "-i", &file]]).ok();
    let plan: serde_json::Value = serde_json::from_slice(&plan.stdout).unwrap();
    let effects: Vec<_> =
        plan["operations"].as_array().unwrap().iter().map(|it| &it["effects"]).collect();
    let said = serde_json::to_string(&effects).unwrap();
    assert!(said.contains("binds a socket to socket") && said.contains("creates "), "{said}");
    assert!(!said.contains("names"), "{said}");
    pipeline(&[&["fdrestore", "--inherit", "0,1,2", "-i", &file, "--", "true"]]).ok();
}
