//! Rights and kernel features that tests need. Each function tries one of them, and fails with what
//! is missing and the capability that gives it.

use crate::harness::{Scratch, which};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixCredentials, sendmsg,
    socketpair,
};
use std::io::{ErrorKind, IoSlice};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

type Rights = Result<(), String>;

/// Skips the test with the reason unless all of these succeed.
macro_rules! may {
    ($($right:expr),+ $(,)?) => {
        $(if let Err(reason) = $right {
            skip!("{reason}");
        })+
    };
}

/// Runs a command. If it fails, the reason has `what` the command is for, and its output.
fn succeeds(what: &str, words: &[&str]) -> Rights {
    let said = match Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).output() {
        Ok(ran) if ran.status.success() => return Ok(()),
        Ok(ran) => String::from_utf8_lossy(&ran.stderr).lines().next().unwrap_or("").to_owned(),
        Err(err) => format!("{}: {err}", words[0]),
    };
    Err(format!("{what}: {said}"))
}

/// Fails unless these programs exist.
pub(crate) fn programs(names: &[&str]) -> Rights {
    match names.iter().find(|name| which(name).is_none()) {
        Some(name) => Err(format!("{name} is missing")),
        None => Ok(()),
    }
}

/// Fails unless a process can become another user and be scanned then.
pub(crate) fn other_user() -> Rights {
    let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "true"];
    succeeds("to run as another user takes CAP_SETUID and CAP_SETGID", &user)
}

/// Fails unless the user that a command like `setpriv --reuid=postgres` sets has a name; without a
/// command, the current user.
pub(crate) fn user_has_a_name(command: &[&str]) -> Rights {
    succeeds("there is no user with a name", &[command, &["id", "-un"]].concat())
}

/// Fails unless this process has capabilities of which a child can drop these, which are written as
/// for setpriv(1): `-sys_ptrace,-net_raw`.
pub(crate) fn less(capabilities: &str) -> Rights {
    let what = format!("to run without {capabilities} takes CAP_SETPCAP, and what is given up");
    succeeds(&what, &["setpriv", &format!("--bounding-set={capabilities}"), "true"])?;
    let mut names = capabilities.split(',').map(|name| name.trim_start_matches('-'));
    names.try_for_each(capability)
}

/// Fails unless this process has a capability, named as in setpriv(1).
pub(crate) fn capability(name: &str) -> Rights {
    let number = match name {
        "setuid" => 7,
        "net_admin" => 12,
        "net_raw" => 13,
        "sys_ptrace" => 19,
        "sys_admin" => 21,
        "checkpoint_restore" => 40,
        _ => panic!("{name}: not in this list"),
    };
    match fdkit::proc::own_capabilities() & 1 << number {
        0 => Err(format!("CAP_{} is missing", name.to_uppercase())),
        _ => Ok(()),
    }
}

/// Fails unless a new process can be given a process id: set_tid of clone3(2).
pub(crate) fn pids() -> Rights {
    capability("checkpoint_restore").or_else(|_| capability("sys_admin")).map_err(|_| {
        "to choose a pid takes CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN, which are missing".into()
    })
}

/// Fails unless a namespace can be created, named by its option of unshare(1).
pub(crate) fn namespace(option: &str) -> Rights {
    let takes = if option == "--user" { "is not permitted" } else { "takes CAP_SYS_ADMIN" };
    let what = format!("unshare {option} {takes}");
    succeeds(&what, &["unshare", option, "true"])
}

/// Fails unless a file system can be mounted.
pub(crate) fn mounts() -> Rights {
    let scratch = Scratch::new();
    let mount = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", scratch.dir()];
    succeeds("to mount takes CAP_SYS_ADMIN", &mount)
}

/// Fails unless a user namespace can be created.
pub(crate) fn user_namespace() -> Rights {
    succeeds("a user namespace cannot be made", &["unshare", "--map-root-user", "true"])
}

/// Fails unless a network namespace can be created, with devices in it.
pub(crate) fn devices() -> Rights {
    let script = "mount -t sysfs none /sys && ip link set lo up && ip tuntap add fdk0 mode tap";
    let words = ["unshare", "--net", "--mount", "sh", "-c", script];
    succeeds("to make a network device takes CAP_NET_ADMIN, ip(8) and /dev/net/tun", &words)
}

/// Fails unless a device node can be created and opened.
pub(crate) fn nodes() -> Rights {
    let scratch = Scratch::new();
    let script = "mknod \"$0\" c 1 3 && : >\"$0\"";
    let words = ["sh", "-c", script, &scratch.file("null")];
    succeeds("to make a device takes CAP_MKNOD, and a file system that has them", &words)
}

/// Fails unless the root directory can be changed.
pub(crate) fn chroot() -> Rights {
    succeeds("to change the root takes CAP_SYS_CHROOT", &["chroot", "/", "true"])
}

/// Fails unless a file can be opened by its handle: open_by_handle_at(2).
pub(crate) fn handles() -> Rights {
    // No such file exists, but only a caller with the right gets this error.
    match fdkit::sys::notify::open_by_handle(1, &[0; 8]) {
        Err(Errno::EPERM) => Err("to open by a handle takes CAP_DAC_READ_SEARCH".into()),
        _ => Ok(()),
    }
}

/// Fails unless a message can be sent with the address of another sender.
pub(crate) fn senders() -> Rights {
    let pair = socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::SOCK_CLOEXEC);
    let (one, _other) = pair.expect("a socket pair");
    let parent = nix::libc::ucred {
        pid: nix::unistd::getppid().as_raw(),
        uid: nix::unistd::getuid().as_raw(),
        gid: nix::unistd::getgid().as_raw(),
    };
    let parent = UnixCredentials::from(parent);
    let with = [ControlMessage::ScmCredentials(&parent)];
    let (text, none) = ([IoSlice::new(b"x")], MsgFlags::empty());
    match sendmsg::<()>(one.as_raw_fd(), &text, &with, none, None) {
        Ok(_) => Ok(()),
        Err(errno) => {
            let what = "to send a message in the name of another process takes CAP_SYS_ADMIN";
            Err(format!("{what}: {}", errno.desc()))
        }
    }
}

/// Fails unless the descriptors of all processes can be read. Otherwise nothing is known of what
/// other processes have open.
pub(crate) fn all_processes() -> Rights {
    static HIDDEN: OnceLock<Option<String>> = OnceLock::new();
    let hidden = || {
        let all = std::fs::read_dir("/proc").expect("/proc").flatten();
        let pids = all.filter_map(|entry| entry.file_name().into_string().ok());
        let mut pids = pids.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
        pids.find(|pid| {
            let found = std::fs::read_dir(format!("/proc/{pid}/fd"));
            found.is_err_and(|err| err.kind() == ErrorKind::PermissionDenied)
        })
    };
    match HIDDEN.get_or_init(hidden) {
        Some(pid) => Err(format!(
            "process {pid} may not be looked at, which takes CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"
        )),
        None => Ok(()),
    }
}
