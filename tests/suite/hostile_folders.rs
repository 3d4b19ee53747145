//! Folders whose owner leads a restore by root elsewhere: names and directories that are exchanged while
//! the restore makes, binds, changes and removes its files.

use crate::harness::{RESTORE, Scratch, Target, image, pipeline, restored, scan, which};
use crate::rights;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::UnixListener;

/// Has a listening socket, and an unlinked file and fifo, in a folder.
const TARGET: &str = "
import os, socket, sys, time
folder = sys.argv[1]
listener = socket.socket(socket.AF_UNIX)
listener.bind(folder + '/socket')
os.chmod(folder + '/socket', 0o777)
listener.listen()
file = open(folder + '/file', 'w+')
os.mkfifo(folder + '/fifo')
fifo = os.open(folder + '/fifo', os.O_RDWR)
for name in ['file', 'fifo']:
    os.chmod(folder + '/' + name, 0o777)
    os.unlink(folder + '/' + name)
print('ready', flush=True)
time.sleep(1000)
";

/// Exchanges a folder for a link to another one, and the names in it for links to those there.
const OWNER: &str = "
import os, random, sys, time
folder, aside, elsewhere = sys.argv[1], sys.argv[1] + '.aside', sys.argv[2]
names = ['socket', 'file', 'fifo']
os.setgroups([]), os.setgid(65534), os.setuid(65534)
def attempt(call, *args):
    try: call(*args)
    except OSError: pass
print('ready', flush=True)
while True:
    # Most of the time all is as it was.
    time.sleep(random.random() / 500)
    os.rename(folder, aside)
    os.symlink(elsewhere, folder)
    time.sleep(random.random() / 1000)
    os.unlink(folder)
    os.rename(aside, folder)
    for name in names:
        time.sleep(random.random() / 2000)
        path = folder + '/' + name
        attempt(os.rename, path, path + '.aside')
        attempt(os.symlink, elsewhere + '/' + name, path)
        time.sleep(random.random() / 10000)
        attempt(os.unlink, path)
        attempt(os.unlink, path + '.aside')
";

/// What is in a directory, as text: the time of the last change of a name, and of each file its name, mode,
/// owner, inode and contents.
fn contents(dir: &str) -> String {
    let entries = fs::read_dir(dir).unwrap().map(|entry| {
        let entry = entry.unwrap();
        let is = entry.metadata().unwrap();
        let bytes = if is.is_file() { fs::read(entry.path()).unwrap() } else { Vec::new() };
        format!("{:?} {:o} {} {} {bytes:?}", entry.file_name(), is.mode(), is.uid(), is.ino())
    });
    let mut all: Vec<String> = entries.collect();
    all.sort();
    let changed = fs::metadata(dir).unwrap();
    format!("{}.{:09}\n{}", changed.mtime(), changed.mtime_nsec(), all.join("\n"))
}

#[test]
fn the_owner_of_a_folder_leads_no_restore_by_root_elsewhere() {
    may!(rights::other_user());
    needs!(which("python3").is_some(), "python3 is missing");
    let scratch = Scratch::for_all_users();
    let (theirs, elsewhere) = (scratch.file("theirs"), scratch.file("elsewhere"));
    let folder = format!("{theirs}/folder");
    for dir in [&theirs, &folder, &elsewhere] {
        fs::create_dir(dir).unwrap();
    }
    let target = Target::program(&["python3", "-c", TARGET, &folder]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    drop(target);
    // A file that must keep its mode, and the file of a socket that nobody is bound to.
    fs::write(format!("{elsewhere}/file"), "contents").unwrap();
    drop(UnixListener::bind(format!("{elsewhere}/socket")).unwrap());
    for name in ["file", "socket"] {
        let path = format!("{elsewhere}/{name}");
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    fs::remove_file(format!("{folder}/socket")).unwrap();
    for dir in [&theirs, &folder] {
        chown(dir, Some(65534), Some(65534)).unwrap();
    }
    let before = contents(&elsewhere);
    let restore = [RESTORE, &["-i", &file, "--", "true"]].concat();
    // Undisturbed it works, and says that the address differs.
    let ran = pipeline(&[&restore]).ok();
    assert!(ran.said().contains("user 65534 can move a directory of its path"), "{}", ran.whole());
    let _owner = Target::program(&["python3", "-c", OWNER, &folder, &elsewhere]);
    let tries = if std::env::var_os("FDKIT_SOAK").is_some() { 5000 } else { 100 };
    let mut restored = 0;
    for nth in 0..tries {
        let ran = pipeline(&[&restore]);
        restored += u32::from(ran.status(0) == 0);
        assert_eq!(contents(&elsewhere), before, "try {nth}\n{}", ran.whole());
    }
    println!("{tries} tries, {restored} restored");
}

#[test]
fn a_link_of_another_user_leads_to_no_other_file_than_the_recorded_one() {
    may!(rights::other_user());
    let scratch = Scratch::new();
    let (log, there) = (scratch.file("log"), scratch.file("there"));
    fs::write(&log, "").unwrap();
    let file = image(&scratch, &[&format!("regular@3:path={log}")]);
    restored(&file, &[], &["true"]).ok();
    fs::write(&there, "contents").unwrap();
    fs::remove_file(&log).unwrap();
    symlink(&there, &log).unwrap();
    // A link of our own, in a directory that only we can write, is followed, and the change is said.
    let ran = restored(&file, &[], &["true"]).ok();
    assert!(ran.said().contains("it is another inode"), "{}", ran.whole());
    lchown(&log, Some(65534), None).unwrap();
    let why = ["the symbolic link log", "belongs to user 65534"];
    pipeline(&[&["fdrestore", "-n", "-i", &file]]).refuses(6, &why);
    restored(&file, &[], &["true"]).refuses(125, &why);
    // The recorded file itself is opened, whatever leads to it.
    let moved = scratch.file("moved");
    let other = image(&scratch, &[&format!("regular@3:path={moved}")]);
    fs::rename(&moved, scratch.file("moved-away")).unwrap();
    symlink(scratch.file("moved-away"), &moved).unwrap();
    lchown(&moved, Some(65534), None).unwrap();
    restored(&other, &[], &["true"]).ok();
}

#[test]
fn a_fifo_that_the_recorded_user_cannot_write_is_filled_by_root_only_if_it_is_allowed() {
    may!(rights::other_user());
    needs!(which("python3").is_some(), "python3 is missing");
    let scratch = Scratch::for_all_users();
    let script = "
import os, sys, time
os.mkfifo(sys.argv[1], 0o600)
fifo = os.open(sys.argv[1], os.O_RDWR)
os.write(fifo, b'reboot')
os.setgroups([]), os.setgid(65534), os.setuid(65534)
print('ready', flush=True)
time.sleep(1000)";
    let fifo = scratch.file("fifo");
    let target = Target::program(&["python3", "-c", script, &fifo]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    drop(target);
    let restore = ["fdrestore", "--inherit", "0,1,2", "-i", &file];
    let why = ["writes 6 bytes", "user 65534 of its task cannot", "--allow names permits that"];
    pipeline(&[&[&restore[..], &["-n"]].concat()]).refuses(6, &why);
    pipeline(&[&[&restore[..], &["--", "true"]].concat()]).refuses(125, &why);
    let read = ["--allow", "names", "--", "head", "-c", "6", &fifo];
    assert_eq!(pipeline(&[&[&restore[..], &read].concat()]).ok().text(), "reboot");
    // The same by another name than the one by which it was opened.
    let target = Target::program(&["python3", "-c", script, &scratch.file("first")]);
    fs::hard_link(scratch.file("first"), scratch.file("second")).unwrap();
    fs::remove_file(scratch.file("first")).unwrap();
    scan(&target.pid, &file);
    drop(target);
    pipeline(&[&[&restore[..], &["-n"]].concat()]).refuses(6, &why);
    pipeline(&[&[&restore[..], &["--", "true"]].concat()]).refuses(125, &why);
    let planned = pipeline(&[&[&restore[..], &["--allow", "names", "-n"]].concat()]).ok().text();
    assert!(planned.contains("writes 6 bytes"), "{planned}");
    assert!(planned.contains(&format!("by the name {}", scratch.file("second"))), "{planned}");
}

/// A program that becomes the user 65534 and binds a socket to the path of its argument.
const BINDER: &str = "
import os, socket, sys, time
os.setgroups([]), os.setgid(65534), os.setuid(65534)
bound = socket.socket(socket.AF_UNIX); bound.bind(sys.argv[1])
print('ready', flush=True)
time.sleep(1000)";

#[test]
fn a_name_below_a_directory_that_the_recorded_user_cannot_search_is_made_only_if_it_is_allowed() {
    may!(rights::other_user());
    needs!(which("python3").is_some(), "python3 is missing");
    let scratch = Scratch::for_all_users();
    let (outer, inner) = (scratch.file("outer"), scratch.file("outer/inner"));
    fs::create_dir_all(&inner).unwrap();
    chown(&inner, Some(65534), Some(65534)).unwrap();
    let mode = |mode| fs::set_permissions(&outer, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o711);
    let socket = scratch.file("outer/inner/socket");
    let target = Target::program(&["python3", "-c", BINDER, &socket]);
    let file = scratch.file("a.fdi");
    scan(&target.pid, &file);
    drop(target);
    fs::remove_file(&socket).unwrap();
    mode(0o700);
    let restore = ["fdrestore", "--inherit", "0,1,2", "-i", &file];
    let plan = |more: &[&str]| pipeline(&[&[&restore[..], more, &["-n"]].concat()]);
    plan(&[]).refuses(6, &["user 65534 of its task cannot", "--allow names permits that"]);
    pipeline(&[&[&restore[..], &["--", "true"]].concat()]).refuses(125, &["--allow names"]);
    assert!(!std::path::Path::new(&socket).exists());
    plan(&["--allow", "names"]).ok();
    mode(0o711);
    plan(&[]).ok();
    pipeline(&[&[&restore[..], &["--", "true"]].concat()]).ok();
}
