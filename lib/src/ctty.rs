//! The controlling terminal, which belongs to a session and not to a descriptor (credentials(7)):
//! the decision which one a restored task gets, and the calls that give it.

use crate::error::{At, Error, Result, Status};
use crate::image::Task;
use crate::kind::DecodedImage;
use crate::kind::context::{CttyPlan, RestoreContext};
use crate::proc::Stat;
use crate::sys::tty;
use crate::terminal;
use crate::text::escape;
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd::{Pid, tcgetpgrp, tcsetpgrp};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

/// The place in its session of the process that will be a task of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionRole {
    /// The process leads its session: no other can take a controlling terminal.
    pub leader: bool,
    /// The session has a controlling terminal.
    pub has_ctty: bool,
}

impl SessionRole {
    /// The role of this process: fields 6 and 7 of proc_pid_stat(5). Fails where /proc is not mounted.
    pub fn myself() -> Result<SessionRole> {
        let stat = std::fs::read("/proc/self/stat").at(|| "/proc/self/stat")?;
        let stat = Stat::parse(&stat).ok_or_else(|| Error::new(Status::System, "stat"))?;
        Ok(SessionRole {
            leader: stat.field(6) == i64::from(std::process::id()),
            has_ctty: stat.field(7) != 0,
        })
    }
}

/// The device of this process's controlling terminal, as major and minor number; none if it has
/// none.
pub fn own() -> Option<(u32, u32)> {
    let stat = Stat::of(std::process::id() as i32)?;
    Some(tty::numbers(stat.field(7) as u32)).filter(|&device| device != (0, 0))
}

/// Decides which controlling terminal a task gets that has this role.
///
/// `made` says whether a file of the image is restored; `inherited` at which number a descriptor of
/// the caller takes the place of one. A restored pseudo terminal goes first, then a descriptor of
/// the caller; a path that ttyctl(1) retarget has written goes before both.
pub fn plan(
    image: &DecodedImage,
    task: &Task,
    role: SessionRole,
    made: impl Fn(u32) -> bool,
    inherited: impl Fn(u32) -> Option<RawFd>,
) -> CttyPlan {
    let Some(old) = &task.terminal else {
        return if role.has_ctty { CttyPlan::Kept } else { CttyPlan::None };
    };
    let device = tty::numbers(old.device);
    // The files that are open on it; true for an end of a pseudo terminal.
    let mut files = image.files_and_records().filter_map(|(file, record)| {
        let terminal = record.terminal().filter(|terminal| terminal.device == device)?;
        Some((file.id, terminal.is_pty))
    });
    let ctty_plan = match &old.path {
        Some(path) => Some(CttyPlan::FromPath(path.0.clone())),
        None => {
            let mut pair = files.clone().filter(|&(id, is_pty)| is_pty && made(id));
            let pair = pair.next().map(|(id, _)| CttyPlan::FromImage(id));
            pair.or_else(|| files.find_map(|(id, _)| inherited(id)).map(CttyPlan::FromCaller))
        }
    };
    let name = terminal::name(device);
    match ctty_plan {
        Some(CttyPlan::FromImage(_)) if role.has_ctty => {
            let cure = "run it without a terminal of its own, by setsid(1)";
            CttyPlan::Unavailable(format!(
                "{name} is restored, but COMMAND has another controlling terminal: {cure}"
            ))
        }
        _ if role.has_ctty => CttyPlan::Kept,
        Some(_) if !role.leader => CttyPlan::Unavailable(format!(
            "{name} cannot control COMMAND, which leads no session: run it by setsid(1)"
        )),
        Some(ctty_plan) => ctty_plan,
        None => CttyPlan::Unavailable(format!(
            "its controlling terminal {name} is outside the image, and COMMAND has none; name one \
             by ttyctl retarget, or use --inherit"
        )),
    }
}

/// Makes a terminal the controlling terminal of this process, which leads a session and has none:
/// TIOCSCTTY of ioctl_tty(2). `steal` takes it from another session; that needs CAP_SYS_ADMIN.
///
/// Fails with status 4 if another session has it, which the message names, and with status 7 if it
/// has hung up.
pub fn take(terminal: BorrowedFd<'_>, steal: bool) -> Result<()> {
    match tty::control(terminal, steal) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) => {
            let device = tty::device(terminal).unwrap_or_default();
            let why = match (owner(device), steal) {
                (Some((sid, comm)), false) => {
                    format!(
                        "it is the controlling terminal of session {sid} ({comm}); end that session, \
                             or use --steal"
                    )
                }
                (Some((sid, comm)), true) => {
                    format!(
                        "taking it from session {sid} ({comm}) needs CAP_SYS_ADMIN: run it as root"
                    )
                }
                (None, _) => "this process leads no session or has a terminal already; start it \
                              by setsid(1), unless a session in another pid namespace has the \
                              terminal"
                    .to_owned(),
            };
            Err(Error::new(Status::Denied, why))
        }
        Err(Errno::EIO) => Err(Error::new(Status::System, "it has hung up: its master is closed")),
        Err(errno) => Err(errno).at(|| "TIOCSCTTY"),
    }
}

/// As [`take`], by a slave or a master of a pseudo terminal, or by any other terminal.
pub fn seize(terminal: BorrowedFd<'_>, steal: bool) -> Result<()> {
    // By a master, the master would become the controlling terminal, so the slave is opened.
    match tty::index(terminal) {
        Ok(_) => slave(terminal).and_then(|fd| take(fd.as_fd(), steal)),
        Err(_) => take(terminal, steal),
    }
}

/// Opens the slave of a master; one that is locked is unlocked meanwhile.
fn slave(master: BorrowedFd<'_>) -> Result<OwnedFd> {
    let locked = tty::locked(master)?;
    if locked {
        tty::set_locked(master, false)?;
    }
    let slave = tty::peer(master, libc::O_RDWR as u32).at(|| "open the slave");
    if locked {
        tty::set_locked(master, true)?;
    }
    slave
}

/// Opens the terminal at a path below the root of a restore. Fails with status 6 if another device is
/// there than this one, which [`tty::numbers`] decodes.
pub(crate) fn open(path: &[u8], device: u32, cx: &RestoreContext<'_>) -> Result<OwnedFd> {
    let place = cx.open(path, libc::O_PATH as u32)?;
    let node = crate::proc::inode_of(place.as_fd())?;
    if !terminal::is_terminal_inode(&node) || node.rdev != Some(tty::numbers(device)) {
        return Err(Error::unrestorable("the path is now that of another file"));
    }
    Ok(cx.reopen_descriptor(place.as_fd(), (libc::O_RDWR | libc::O_NONBLOCK) as u32)?.fd)
}

/// Puts a process group of this session into the foreground of its controlling terminal:
/// tcsetpgrp(3). Fails if there is none, or if the group is of another session.
pub fn set_foreground(group: Pid) -> Result<()> {
    // A background group that sets it gets SIGTTOU, unless that is blocked.
    let mut before = SigSet::empty();
    let stop: SigSet = [Signal::SIGTTOU].into_iter().collect();
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&stop), Some(&mut before))?;
    let set = std::fs::File::open("/dev/tty")
        .at(|| "/dev/tty")
        .and_then(|tty| tcsetpgrp(tty, group).at(|| "its foreground group"));
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    set
}

/// Reports whether a process group of this session is in the foreground of its controlling terminal:
/// tcgetpgrp(3).
pub fn is_foreground(group: Pid) -> bool {
    let terminal = std::fs::File::open("/dev/tty");
    terminal.is_ok_and(|terminal| tcgetpgrp(terminal) == Ok(group))
}

/// The session whose controlling terminal a device is, and the name of the program of its leader,
/// or of a member if the leader is gone. None if no process that /proc shows has it.
pub fn owner(device: (u32, u32)) -> Option<(i32, String)> {
    let wanted = i64::from(tty::encoded(device) as i32);
    let mut found: Option<(i32, String)> = None;
    for (pid, stat) in crate::proc::all() {
        let sid = stat.field(6) as i32;
        if stat.field(7) == wanted && (found.is_none() || pid == sid) {
            found = Some((sid, escape(stat.name()).into_owned()));
            if pid == sid {
                break;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Bytes, Image, Item, OpenFile, Terminal, Writer};
    use crate::proc::Process;
    use serde_cbor::Value;
    use std::collections::BTreeMap;
    use std::os::fd::AsFd;
    use std::process::{Child, Command, Stdio};

    const LEADER: SessionRole = SessionRole { leader: true, has_ctty: false };
    const MEMBER: SessionRole = SessionRole { leader: false, has_ctty: false };
    const WITH_CTTY: SessionRole = SessionRole { leader: true, has_ctty: true };

    fn body(entries: &[(&str, Value)]) -> Vec<u8> {
        let map: BTreeMap<&str, &Value> = entries.iter().map(|(key, it)| (*key, it)).collect();
        serde_cbor::to_vec(&map).unwrap()
    }

    fn file(id: u32, kind: &str, body: Vec<u8>) -> OpenFile {
        let unread = crate::kind::Captured::unreadable(0, &Errno::EIO.into());
        OpenFile { id, kind: kind.into(), body, ..unread.into_file(0) }
    }

    /// An end of the pseudo terminal of index 5, or of another.
    fn pty(id: u32, index: u32, master: bool, hung: bool) -> OpenFile {
        let flag = Value::Bool;
        let body = body(&[
            ("master", flag(master)),
            ("index", Value::Integer(index.into())),
            ("hung", flag(hung)),
            ("queued", Value::Integer(0)),
            ("exclusive", flag(false)),
            ("packet", flag(false)),
            ("locked", flag(false)),
        ]);
        file(id, "pty", body)
    }

    /// A terminal that no scan finds the other end of, as /dev/pts/5 without its master.
    fn tty(id: u32, (major, minor): (u32, u32)) -> OpenFile {
        let numbers = [major, minor].map(|number| Value::Integer(number.into()));
        let body = body(&[
            ("device", Value::Array(numbers.to_vec())),
            ("asked", Value::Bool(false)),
            ("hung", Value::Bool(false)),
            ("queued", Value::Integer(0)),
            ("exclusive", Value::Bool(false)),
        ]);
        file(id, "tty", body)
    }

    /// The plan for a task with /dev/pts/5 for its controlling terminal, where the files with these
    /// ids are made, and the others are inherited at these numbers.
    fn planned(
        role: SessionRole,
        files: Vec<OpenFile>,
        made: &[u32],
        inherited: &[(u32, RawFd)],
        path: Option<&[u8]>,
    ) -> CttyPlan {
        let device = crate::sys::tty::encoded(terminal::slave_device(5));
        let path = path.map(Bytes::from);
        let old = Terminal { device, foreground: 1, path };
        plan_of(role, Some(old), files, made, inherited)
    }

    fn plan_of(
        role: SessionRole,
        old: Option<Terminal>,
        files: Vec<OpenFile>,
        made: &[u32],
        inherited: &[(u32, RawFd)],
    ) -> CttyPlan {
        let myself = Process::open(std::process::id() as i32).unwrap();
        let myself = myself.task(0, None, &mut crate::messages::Messages::kept()).unwrap();
        let task = Task { terminal: old, ..myself };
        let mut writer = Writer::new(Vec::new());
        writer
            .put(&Item::Head(crate::capture::head("test", &mut crate::messages::Messages::kept())))
            .unwrap();
        writer.put(&Item::Task(task.clone().into())).unwrap();
        files.into_iter().for_each(|file| writer.put(&Item::File(file.into())).unwrap());
        let image = Image::load(&writer.end().unwrap()[..]).unwrap();
        let image = DecodedImage::new(image).unwrap();
        let inherited = |id| inherited.iter().find(|(each, _)| *each == id).map(|(_, fd)| *fd);
        plan(&image, &task, role, |id| made.contains(&id), inherited)
    }

    fn why(plan: CttyPlan) -> String {
        match plan {
            CttyPlan::Unavailable(why) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_task_without_a_terminal_gets_none_and_keeps_that_of_the_caller() {
        let of = |role| plan_of(role, None, vec![pty(0, 5, false, false)], &[0], &[(0, 3)]);
        assert_eq!(of(LEADER), CttyPlan::None);
        assert_eq!(of(MEMBER), CttyPlan::None);
        assert_eq!(of(WITH_CTTY), CttyPlan::Kept);
    }

    #[test]
    fn a_leader_gets_the_pseudo_terminal_that_is_restored() {
        let pair =
            || vec![pty(0, 4, false, false), pty(1, 5, true, false), pty(2, 5, false, false)];
        // Either end does, the first that is made; the caller's descriptor comes after them.
        let of = |made: &[u32]| planned(LEADER, pair(), made, &[(1, 9)], None);
        assert_eq!(of(&[0, 1, 2]), CttyPlan::FromImage(1));
        assert_eq!(of(&[0, 2]), CttyPlan::FromImage(2));
        assert_eq!(of(&[0]), CttyPlan::FromCaller(9));
        let of = |role| planned(role, pair(), &[1, 2], &[], None);
        assert_eq!(
            why(of(MEMBER)),
            "/dev/pts/5 cannot control COMMAND, which leads no session: run it by setsid(1)"
        );
        // A session has one terminal at most.
        assert_eq!(
            why(of(WITH_CTTY)),
            "/dev/pts/5 is restored, but COMMAND has another controlling terminal: run it without a \
             terminal of its own, by setsid(1)"
        );
    }

    #[test]
    fn what_has_hung_up_or_is_another_terminal_controls_nothing() {
        let outside = "its controlling terminal /dev/pts/5 is outside the image, and COMMAND has \
                       none; name one by ttyctl retarget, or use --inherit";
        for files in [
            vec![],
            vec![pty(0, 5, false, true)],
            vec![pty(0, 4, false, false), pty(1, 6, true, false)],
            vec![tty(0, (4, 5))],
        ] {
            let all: Vec<u32> = files.iter().map(|file| file.id).collect();
            let given: Vec<(u32, RawFd)> = all.iter().map(|&id| (id, 7)).collect();
            assert_eq!(why(planned(LEADER, files.clone(), &all, &[], None)), outside);
            assert_eq!(why(planned(LEADER, files.clone(), &[], &given, None)), outside);
            assert_eq!(planned(WITH_CTTY, files, &all, &given, None), CttyPlan::Kept);
        }
        // A master whose slaves are all closed still has its terminal.
        let alone = planned(LEADER, vec![pty(0, 5, true, true)], &[0], &[], None);
        assert_eq!(alone, CttyPlan::FromImage(0));
    }

    #[test]
    fn a_terminal_of_the_caller_takes_the_place_of_one_outside_the_image() {
        let files = || vec![tty(0, (4, 1)), tty(1, (136, 5)), tty(2, (136, 5))];
        let of =
            |role, inherited: &[(u32, RawFd)]| planned(role, files(), &[0, 1, 2], inherited, None);
        assert_eq!(of(LEADER, &[(0, 3), (2, 8)]), CttyPlan::FromCaller(8));
        assert_eq!(of(LEADER, &[(1, 0), (2, 8)]), CttyPlan::FromCaller(0));
        assert_eq!(of(WITH_CTTY, &[(1, 0)]), CttyPlan::Kept);
        assert!(why(of(MEMBER, &[(1, 0)])).contains("leads no session"));
        // It is not made: nothing but the caller has it.
        assert!(why(of(LEADER, &[(0, 3)])).contains("outside the image"));
    }

    #[test]
    fn a_path_goes_before_what_is_in_the_image() {
        let path = Some(&b"/dev/pts/9"[..]);
        let of = |role| planned(role, vec![pty(0, 5, false, false)], &[0], &[(0, 3)], path);
        assert_eq!(of(LEADER), CttyPlan::FromPath(b"/dev/pts/9".to_vec()));
        assert_eq!(of(WITH_CTTY), CttyPlan::Kept);
        assert!(why(of(MEMBER)).contains("leads no session"));
    }

    /// A process that ends with this.
    struct Running(Child);

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn the_session_that_has_a_terminal_is_found_and_named() {
        assert_eq!(owner((3, 77)), None);
        let pair = nix::pty::openpty(None, None).unwrap();
        let device = crate::sys::tty::device(&pair.slave).unwrap();
        assert_eq!(owner(device), None);
        let mut shell = Command::new("setsid");
        shell.args(["--ctty", "sleep", "60"]).stdin(Stdio::from(pair.slave.try_clone().unwrap()));
        let Ok(child) = shell.stdout(Stdio::null()).stderr(Stdio::null()).spawn() else {
            eprintln!("SKIP setsid(1) is missing");
            return;
        };
        let child = Running(child);
        let named = || owner(device).filter(|(_, name)| name == "sleep");
        let mut found = None;
        for _ in 0..2000 {
            found = named();
            if found.is_some() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(found, Some((child.0.id() as i32, "sleep".to_owned())));
        let err = take(pair.slave.as_fd(), false).unwrap_err();
        assert_eq!(err.status(), Status::Denied);
        let sid = child.0.id();
        let session = format!("it is the controlling terminal of session {sid} (sleep)");
        assert_eq!(err.to_string(), format!("{session}; end that session, or use --steal"));
    }
}
