//! Terminals: their line settings and window size, and the numbers and names of their devices.

use crate::error::{At, Error, Result};
use crate::image::{Bytes, Inode, inode_of};
use crate::sys::tty::{self, Termios};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd};

/// The number of control characters in the kernel's termios2; glibc's termios has room for 32.
pub const CHARACTERS: usize = 19;
/// The first major number of slaves of pseudo terminals; they have 136 to 143, and today's kernels
/// use 136 alone (devices.txt of the kernel).
const SLAVE_MAJOR: u32 = 136;
/// The line discipline of terminals, of which all state can be read: linux/tty.h.
const N_TTY: i32 = 0;

/// The flags, control characters and speeds of a terminal: struct termios2 of the kernel
/// (termios(3), ioctl_tty(2)).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// c_iflag
    pub iflag: u32,
    /// c_oflag
    pub oflag: u32,
    /// c_cflag
    pub cflag: u32,
    /// c_lflag
    pub lflag: u32,
    /// c_cc: all 19 control characters of the kernel.
    pub cc: Bytes,
    /// c_ispeed, in baud, also where the speed has no name (BOTHER).
    pub ispeed: u32,
    /// c_ospeed, in baud.
    pub ospeed: u32,
}

impl From<&Termios> for Line {
    fn from(it: &Termios) -> Line {
        Line {
            iflag: it.c_iflag,
            oflag: it.c_oflag,
            cflag: it.c_cflag,
            lflag: it.c_lflag,
            cc: Bytes(it.c_cc.to_vec()),
            ispeed: it.c_ispeed,
            ospeed: it.c_ospeed,
        }
    }
}

impl Line {
    /// The termios2 of these, with this line discipline. Fails with status 3 if there are not as
    /// many control characters as the kernel has.
    pub(crate) fn termios(&self, line: u8) -> Result<Termios> {
        let Line { iflag, oflag, cflag, lflag, cc, ispeed, ospeed } = self;
        let mut to = tty::no_termios();
        (to.c_iflag, to.c_oflag, to.c_cflag, to.c_lflag) = (*iflag, *oflag, *cflag, *lflag);
        (to.c_ispeed, to.c_ospeed, to.c_line) = (*ispeed, *ospeed, line);
        to.c_cc = cc.0.as_slice().try_into().map_err(|_| {
            Error::malformed(format!("{} control characters, not {CHARACTERS}", cc.0.len()))
        })?;
        Ok(to)
    }

    /// The settings of a new pseudo terminal: tty_std_termios of the kernel, with the flags of the
    /// pty driver.
    pub fn of_new_pty() -> Line {
        let cc = [3, 28, 127, 21, 4, 0, 1, 0, 17, 19, 26, 0, 18, 15, 23, 22, 0, 0, 0];
        Line {
            iflag: libc::ICRNL | libc::IXON,
            oflag: libc::OPOST | libc::ONLCR,
            cflag: libc::B38400 | libc::CS8 | libc::CREAD,
            lflag: libc::ISIG
                | libc::ICANON
                | libc::ECHO
                | libc::ECHOE
                | libc::ECHOK
                | libc::ECHOCTL
                | libc::ECHOKE
                | libc::IEXTEN,
            cc: Bytes(cc.to_vec()),
            ispeed: 38400,
            ospeed: 38400,
        }
    }

    /// The settings that differ from [`Line::of_new_pty`], each as an argument of stty(1).
    pub fn stty_arguments(&self) -> Vec<String> {
        self.stty_arguments_from(&Line::of_new_pty())
    }

    /// The settings that differ from others, each as an argument of stty(1).
    pub fn stty_arguments_from(&self, before: &Line) -> Vec<String> {
        let mut said = Vec::new();
        if self.ispeed != self.ospeed {
            said.push(format!("ispeed {} ospeed {}", self.ispeed, self.ospeed));
        } else if (self.ispeed, self.ospeed) != (before.ispeed, before.ospeed) {
            said.push(format!("speed {}", self.ospeed));
        }
        let pairs =
            [(self.cflag, before.cflag), (self.iflag, before.iflag), (self.oflag, before.oflag)];
        let pairs = pairs.into_iter().chain([(self.lflag, before.lflag)]);
        for ((is, was), names) in pairs.zip([CFLAGS, IFLAGS, OFLAGS, LFLAGS]) {
            for &(mask, bits, name) in names {
                match (is & mask == bits, was & mask == bits) {
                    (true, false) => said.push(name.to_owned()),
                    // One of several values ends with another; only cs8 and those of no delay have no
                    // name here.
                    (false, true) => said.push(format!("-{name}")),
                    _ => (),
                }
            }
        }
        let canonical = self.lflag & libc::ICANON != 0;
        for (at, name) in CC.iter().enumerate() {
            let Some(&is) = self.cc.0.get(at).filter(|_| !name.is_empty()) else { continue };
            let counted = matches!(*name, "min" | "time");
            if Some(&is) != before.cc.0.get(at) && !(counted && canonical) {
                let shown = if counted { is.to_string() } else { character(is) };
                said.push(format!("{name} {shown}"));
            }
        }
        said
    }
}

/// A control character as stty(1) shows it.
fn character(byte: u8) -> String {
    match byte {
        0 => "undef".to_owned(),
        0x7f => "^?".to_owned(),
        1..=0x1f => format!("^{}", (byte ^ 0x40) as char),
        0x20..=0x7e => (byte as char).to_string(),
        _ => format!("0x{byte:02x}"),
    }
}

/// The names that stty(1) has for the control characters, in the kernel's order.
const CC: [&str; CHARACTERS] = [
    "intr", "quit", "erase", "kill", "eof", "time", "min", "swtc", "start", "stop", "susp", "eol",
    "rprnt", "discard", "werase", "lnext", "eol2", "", "",
];

type Names = &'static [(u32, u32, &'static str)];

const fn flag(bit: u32, name: &'static str) -> (u32, u32, &'static str) {
    (bit, bit, name)
}

/// asm/termbits.h; libc does not have them on all its targets.
const IUCLC: u32 = if POWERPC { 0x1000 } else { 0x200 };
const XCASE: u32 = if POWERPC { 0x4000 } else { 0x4 };
const POWERPC: bool = cfg!(any(target_arch = "powerpc", target_arch = "powerpc64"));

const CFLAGS: Names = &[
    (libc::CSIZE, libc::CS5, "cs5"),
    (libc::CSIZE, libc::CS6, "cs6"),
    (libc::CSIZE, libc::CS7, "cs7"),
    flag(libc::PARENB, "parenb"),
    flag(libc::PARODD, "parodd"),
    flag(libc::CMSPAR, "cmspar"),
    flag(libc::HUPCL, "hupcl"),
    flag(libc::CSTOPB, "cstopb"),
    flag(libc::CREAD, "cread"),
    flag(libc::CLOCAL, "clocal"),
    flag(libc::CRTSCTS, "crtscts"),
];
const IFLAGS: Names = &[
    flag(libc::IGNBRK, "ignbrk"),
    flag(libc::BRKINT, "brkint"),
    flag(libc::IGNPAR, "ignpar"),
    flag(libc::PARMRK, "parmrk"),
    flag(libc::INPCK, "inpck"),
    flag(libc::ISTRIP, "istrip"),
    flag(libc::INLCR, "inlcr"),
    flag(libc::IGNCR, "igncr"),
    flag(libc::ICRNL, "icrnl"),
    flag(IUCLC, "iuclc"),
    flag(libc::IXON, "ixon"),
    flag(libc::IXANY, "ixany"),
    flag(libc::IXOFF, "ixoff"),
    flag(libc::IMAXBEL, "imaxbel"),
    flag(libc::IUTF8, "iutf8"),
];
const OFLAGS: Names = &[
    flag(libc::OPOST, "opost"),
    flag(libc::OLCUC, "olcuc"),
    flag(libc::ONLCR, "onlcr"),
    flag(libc::OCRNL, "ocrnl"),
    flag(libc::ONOCR, "onocr"),
    flag(libc::ONLRET, "onlret"),
    flag(libc::OFILL, "ofill"),
    flag(libc::OFDEL, "ofdel"),
    flag(libc::NLDLY, "nl1"),
    (libc::CRDLY, libc::CR1, "cr1"),
    (libc::CRDLY, libc::CR2, "cr2"),
    (libc::CRDLY, libc::CR3, "cr3"),
    (libc::TABDLY, libc::TAB1, "tab1"),
    (libc::TABDLY, libc::TAB2, "tab2"),
    (libc::TABDLY, libc::TAB3, "tab3"),
    flag(libc::BSDLY, "bs1"),
    flag(libc::VTDLY, "vt1"),
    flag(libc::FFDLY, "ff1"),
];
const LFLAGS: Names = &[
    flag(libc::ISIG, "isig"),
    flag(libc::ICANON, "icanon"),
    flag(XCASE, "xcase"),
    flag(libc::ECHO, "echo"),
    flag(libc::ECHOE, "echoe"),
    flag(libc::ECHOK, "echok"),
    flag(libc::ECHONL, "echonl"),
    flag(libc::NOFLSH, "noflsh"),
    flag(libc::TOSTOP, "tostop"),
    flag(libc::ECHOCTL, "echoctl"),
    flag(libc::ECHOPRT, "echoprt"),
    flag(libc::ECHOKE, "echoke"),
    flag(libc::FLUSHO, "flusho"),
    flag(libc::IEXTEN, "iexten"),
    flag(libc::EXTPROC, "extproc"),
];

/// The settings of a terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The line settings.
    pub line: Line,
    /// The line settings that only CAP_SYS_ADMIN can change, as bits and non-zero characters:
    /// TIOCGLCKTRMIOS. None if there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked: Option<Line>,
    /// The line discipline; zero is N_TTY.
    pub discipline: i32,
    /// The window: rows, columns, and its width and height in pixels; zeroes if no process has set
    /// them.
    pub size: [u16; 4],
}

impl Settings {
    /// Reads those of a terminal. Fails with EIO if it has hung up, with ENOTTY if it is no
    /// terminal.
    pub fn read(fd: impl AsFd) -> nix::Result<Settings> {
        let fd = fd.as_fd();
        let size = tty::winsize(fd)?;
        let locked = Line::from(&tty::line_lock(fd)?);
        let none = |it: &Line| {
            it.iflag | it.oflag | it.cflag | it.lflag == 0 && it.cc.0.iter().all(|&cc| cc == 0)
        };
        Ok(Settings {
            line: Line::from(&tty::line(fd)?),
            locked: Some(locked).filter(|it| !none(it)),
            discipline: tty::discipline(fd)?,
            size: [size.ws_row, size.ws_col, size.ws_xpixel, size.ws_ypixel],
        })
    }

    /// Fails with status 3 if these are no settings.
    pub fn validate(&self) -> Result<()> {
        self.line.termios(0)?;
        self.locked.as_ref().map(|it| it.termios(0)).transpose()?;
        Ok(())
    }

    /// Fails with status 3 if these are no settings, and with status 6 if the line discipline is
    /// one whose state cannot be read.
    pub fn check(&self) -> Result<()> {
        self.validate()?;
        match self.discipline {
            N_TTY => Ok(()),
            other => Err(Error::unrestorable(format!(
                "line discipline {other} keeps a state in the kernel that cannot be read"
            ))),
        }
    }

    /// What [`Settings::apply`] changes in a terminal that has the settings `before`, in words of
    /// stty(1).
    pub fn changes(&self, before: &Settings, size: bool) -> Vec<String> {
        let Settings { line, locked, discipline, size: window } = self;
        let mut said = line.stty_arguments_from(&before.line);
        // What has no name there: such as a character that the kernel does not use.
        if said.is_empty() && *line != before.line {
            said.push("bits without a name".to_owned());
        }
        if *discipline != before.discipline {
            said.push(format!("line {discipline}"));
        }
        if size && *window != before.size {
            said.push(format!("rows {} columns {}", window[0], window[1]));
        }
        if locked.is_some() && *locked != before.locked {
            said.push("locked settings".to_owned());
        }
        said
    }

    /// The settings of a new pseudo terminal.
    pub fn of_new_pty() -> Settings {
        Settings { line: Line::of_new_pty(), locked: None, discipline: N_TTY, size: [0; 4] }
    }

    /// Sets those of a terminal, at once and without a loss of what waits in it; those of the
    /// window with `size` only. Gives what could not be set, in words for the user.
    ///
    /// The foreground process group gets SIGWINCH if the size of the window changes.
    pub fn apply(&self, fd: BorrowedFd<'_>, size: bool) -> Result<Vec<String>> {
        let Settings { line, locked, discipline, size: [rows, cols, x, y] } = self;
        let discipline = *discipline as u8;
        let mut lost = Vec::new();
        tty::set_line(fd, &line.termios(discipline)?).at(|| "set the line")?;
        let now = Line::from(&tty::line(fd).at(|| "the line")?);
        if now != *line {
            lost.push("not all of its line settings were taken".to_owned());
        }
        if size {
            let (ws_row, ws_col, ws_xpixel, ws_ypixel) = (*rows, *cols, *x, *y);
            let size = libc::winsize { ws_row, ws_col, ws_xpixel, ws_ypixel };
            tty::set_winsize(fd, &size).at(|| "set the size")?;
        }
        if let Some(locked) = locked {
            match tty::set_line_lock(fd, &locked.termios(discipline)?) {
                Ok(()) => (),
                Err(Errno::EPERM) => {
                    lost.push("its locked settings are not locked: CAP_SYS_ADMIN is missing".into())
                }
                Err(errno) => return Err(errno).at(|| "lock the line"),
            }
        }
        Ok(lost)
    }
}

/// The index of a pseudo terminal, by the major and minor number of its slave; none of other
/// devices.
pub fn slave_index((major, minor): (u32, u32)) -> Option<u32> {
    (SLAVE_MAJOR..SLAVE_MAJOR + 8).contains(&major).then(|| (major - SLAVE_MAJOR) << 20 | minor)
}

/// The major and minor number of the slave with this index.
pub fn slave_device(index: u32) -> (u32, u32) {
    (SLAVE_MAJOR + (index >> 20 & 7), index & 0xf_ffff)
}

/// Reports whether a major and minor number are always those of a terminal, so that no ioctl is
/// needed to tell: /dev/tty and /dev/console, virtual consoles, serial lines, slaves of pseudo
/// terminals (devices.txt of the kernel).
pub fn is_terminal((major, minor): (u32, u32)) -> bool {
    match major {
        5 => minor != 2,
        4 | 166 | 188 | 204 | 229 => true,
        _ => slave_index((major, minor)).is_some(),
    }
}

/// Reports whether an inode is that of a terminal device, by its numbers and /sys/dev/char. The
/// device is not opened, since open(2) has side effects on some devices.
pub fn is_terminal_inode(node: &Inode) -> bool {
    let is = |(major, minor)| {
        let class = || std::fs::read_link(format!("/sys/dev/char/{major}:{minor}/subsystem"));
        // /dev/ptmx, 5:2, is of this class too, but an open of it makes a new pseudo terminal.
        (major, minor) != (5, 2)
            && (is_terminal((major, minor)) || class().is_ok_and(|it| it.ends_with("class/tty")))
    };
    node.mode & libc::S_IFMT == libc::S_IFCHR && node.rdev.is_some_and(is)
}

/// The path that udev and devpts give a terminal device, by its major and minor number; none if that
/// is not known.
pub fn default_path(device: (u32, u32)) -> Option<String> {
    if let Some(index) = slave_index(device) {
        return Some(format!("/dev/pts/{index}"));
    }
    match device {
        (4, minor) if minor < 64 => Some(format!("/dev/tty{minor}")),
        (4, minor) => Some(format!("/dev/ttyS{}", minor - 64)),
        (5, 1) => Some("/dev/console".to_owned()),
        (188, minor) => Some(format!("/dev/ttyUSB{minor}")),
        (229, minor) => Some(format!("/dev/hvc{minor}")),
        _ => None,
    }
}

/// The name of a terminal device in messages: its [`default_path`], or its numbers.
pub fn name(device: (u32, u32)) -> String {
    default_path(device).unwrap_or_else(|| format!("char {}:{}", device.0, device.1))
}

/// The node of the slave with this index whose master a process has opened by the path `master`.
/// Nothing is opened.
///
/// The kernel finds the file system of the slaves (devpts) beside the node of the master, and so
/// does this. None if it is not there.
pub fn slave_node(pid: i32, master: &[u8], index: u32) -> Option<Inode> {
    slave_path_and_node(pid, master, index).map(|(_, node)| node)
}

/// The path of that node, as the process sees it.
pub fn slave_path(pid: i32, master: &[u8], index: u32) -> Option<String> {
    slave_path_and_node(pid, master, index).map(|(path, _)| path)
}

fn slave_path_and_node(pid: i32, master: &[u8], index: u32) -> Option<(String, Inode)> {
    let slash = master.iter().rposition(|&byte| byte == b'/')?;
    let dir = std::str::from_utf8(&master[..slash]).ok()?;
    let places = [format!("{dir}/pts/{index}"), format!("{dir}/{index}")];
    places.into_iter().find_map(|place| {
        let path = format!("/proc/{pid}/root{place}");
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let node = open(path.as_str(), flags, Mode::empty()).ok()?;
        let node = inode_of(node.as_fd()).ok()?;
        (node.rdev == Some(slave_device(index))).then_some((place, node))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::pty::openpty;

    #[test]
    fn a_new_pseudo_terminal_has_no_arguments_of_stty() {
        let pair = openpty(None, None).unwrap();
        let settings = Settings::read(&pair.slave).unwrap();
        assert_eq!(settings.line, Line::of_new_pty());
        assert_eq!(settings.line.stty_arguments(), Vec::<String>::new());
        assert_eq!((settings.locked, settings.discipline), (None, 0));
    }

    #[test]
    fn changed_settings_have_the_names_of_stty() {
        let mut line = Line::of_new_pty();
        line.lflag &= !(libc::ICANON | libc::ECHO);
        line.iflag |= libc::IUTF8;
        line.oflag |= libc::TAB3;
        line.cflag = line.cflag & !libc::CSIZE | libc::CS7;
        (line.cc.0[0], line.cc.0[6]) = (0, 4);
        (line.ispeed, line.ospeed) = (9600, 9600);
        let said = line.stty_arguments();
        let names = ["speed 9600", "cs7", "iutf8", "tab3", "-icanon", "-echo"];
        assert_eq!(said[..6], names);
        assert_eq!(said[6..], ["intr undef", "min 4"]);
        let back = Line::of_new_pty().stty_arguments_from(&line);
        assert_eq!(back[..5], ["speed 38400", "-cs7", "-iutf8", "-tab3", "icanon"]);
        let new = Settings::of_new_pty();
        let changed = Settings { size: [24, 80, 0, 0], ..new.clone() };
        assert_eq!(changed.changes(&new, true), ["rows 24 columns 80"]);
        assert_eq!(changed.changes(&new, false), Vec::<String>::new());
        assert_eq!(new.changes(&new, true), Vec::<String>::new());
    }

    #[test]
    fn settings_go_to_another_terminal_whole() {
        let (one, two) = (openpty(None, None).unwrap(), openpty(None, None).unwrap());
        let mut settings = Settings::read(&one.slave).unwrap();
        settings.line.lflag &= !libc::ECHO;
        settings.line.cc.0[18] = 9;
        settings.line.cflag = settings.line.cflag & !libc::CBAUD | libc::BOTHER;
        (settings.line.ispeed, settings.line.ospeed) = (12345, 12345);
        settings.size = [24, 80, 640, 480];
        assert_eq!(settings.apply(two.master.as_fd(), true).unwrap(), Vec::<String>::new());
        assert_eq!(Settings::read(&two.slave).unwrap(), settings);
        settings.line.cc.0.pop();
        assert!(settings.check().is_err());
    }

    #[test]
    fn the_window_is_set_only_if_asked_for() {
        let pair = openpty(None, None).unwrap();
        let mut settings = Settings::read(&pair.slave).unwrap();
        settings.size = [24, 80, 0, 0];
        settings.line.iflag |= libc::IUTF8;
        assert_eq!(settings.apply(pair.slave.as_fd(), false).unwrap(), Vec::<String>::new());
        let seen = Settings::read(&pair.master).unwrap();
        assert_eq!((seen.size, &seen.line), ([0; 4], &settings.line));
    }

    #[test]
    fn what_a_terminal_does_not_take_is_told() {
        let pair = openpty(None, None).unwrap();
        let mut settings = Settings::read(&pair.slave).unwrap();
        // The pty driver clears these: pty_set_termios of drivers/tty/pty.c.
        settings.line.cflag = settings.line.cflag & !libc::CSIZE | libc::CS7 | libc::PARENB;
        let lost = settings.apply(pair.slave.as_fd(), false).unwrap();
        assert_eq!(lost, ["not all of its line settings were taken"]);
        settings.discipline = 2;
        let why = settings.check().unwrap_err();
        assert_eq!(why.status(), crate::error::Status::Unrestorable);
        assert!(why.to_string().contains("line discipline 2"), "{why}");
    }

    #[test]
    fn a_locked_line_is_read_and_locked_again() {
        let (one, two) = (openpty(None, None).unwrap(), openpty(None, None).unwrap());
        let mut settings = Settings::read(&one.slave).unwrap();
        let mut locked = Line::from(&tty::no_termios());
        locked.lflag = libc::ECHO;
        settings.locked = Some(locked);
        let lost = settings.apply(two.slave.as_fd(), false).unwrap();
        let seen = Settings::read(&two.slave).unwrap().locked;
        match lost.is_empty() {
            true => assert_eq!(seen, settings.locked),
            // Without CAP_SYS_ADMIN.
            false => assert_eq!((lost.len(), seen), (1, None)),
        }
    }

    #[test]
    fn what_has_hung_up_or_is_no_terminal_has_no_settings() {
        let pair = openpty(None, None).unwrap();
        drop(pair.master);
        assert_eq!(Settings::read(&pair.slave).unwrap_err(), Errno::EIO);
        let null = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(Settings::read(&null).unwrap_err(), Errno::ENOTTY);
    }

    #[test]
    fn a_device_has_a_usual_path_or_numbers() {
        for (device, shown) in [
            ((136, 7), "/dev/pts/7"),
            ((137, 0), "/dev/pts/1048576"),
            ((4, 63), "/dev/tty63"),
            ((4, 64), "/dev/ttyS0"),
            ((5, 1), "/dev/console"),
            ((188, 2), "/dev/ttyUSB2"),
            ((229, 0), "/dev/hvc0"),
            ((204, 64), "char 204:64"),
        ] {
            assert_eq!(name(device), shown);
            assert_eq!(default_path(device).is_some(), !shown.starts_with("char"), "{shown}");
        }
        for (device, is) in [
            ((4, 0), true),
            ((5, 0), true),
            ((5, 2), false),
            ((135, 0), false),
            ((143, 9), true),
            ((144, 0), false),
            ((1, 3), false),
        ] {
            assert_eq!(is_terminal(device), is, "{device:?}");
        }
    }

    #[test]
    fn a_node_is_that_of_a_terminal_by_its_numbers() {
        let pair = openpty(None, None).unwrap();
        let slave = inode_of(pair.slave.as_fd()).unwrap();
        assert!(is_terminal_inode(&slave));
        // A new pseudo terminal, and no terminal that is there.
        assert!(!is_terminal_inode(&inode_of(pair.master.as_fd()).unwrap()));
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(!is_terminal_inode(&inode_of(null.as_fd()).unwrap()));
        assert!(!is_terminal_inode(&Inode { mode: libc::S_IFREG | 0o600, ..slave.clone() }));
        assert!(!is_terminal_inode(&Inode { rdev: None, ..slave }));
    }

    #[test]
    fn the_node_of_a_slave_is_found_beside_its_master() {
        let pair = openpty(None, None).unwrap();
        let pid = std::process::id() as i32;
        let index = tty::index(&pair.master).unwrap();
        let slave = inode_of(pair.slave.as_fd()).unwrap();
        for master in [&b"/dev/ptmx"[..], b"/dev/pts/ptmx"] {
            assert_eq!(slave_node(pid, master, index).unwrap().ino, slave.ino);
        }
        assert_eq!(slave_node(pid, b"/dev/ptmx", 999_999), None);
        assert_eq!(slave_node(pid, b"/nowhere/ptmx", index), None);
        assert_eq!(slave_node(pid, b"ptmx", index), None);
    }

    #[test]
    fn the_index_of_a_slave_is_in_its_number() {
        for index in [0, 7, 256, 70000] {
            assert_eq!(slave_index(slave_device(index)), Some(index));
        }
        assert_eq!(slave_index((4, 64)), None);
        assert!(is_terminal((5, 1)) && !is_terminal((5, 2)) && !is_terminal((1, 3)));
    }
}
