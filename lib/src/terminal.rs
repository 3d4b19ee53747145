//! Terminals: their line settings, the names of their devices, and who has them open.

use crate::error::{At, Error, Result};
use crate::image::{Bytes, Inode};
use crate::proc::inode_of;
use crate::sys::tty::{self, Termios};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd};

/// The control characters of the kernel; glibc shows 32, of which it has 19.
pub const CHARACTERS: usize = 19;
/// The majors of the slaves of pseudo terminals, 136 to 143, of which Linux uses the first.
const SLAVES: u32 = 136;
/// N_TTY, the only line discipline whose state is known here.
const N_TTY: i32 = 0;

/// Flags, characters and speeds: struct termios2 of the kernel (termios(3), ioctl_tty(2)).
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
    /// c_cc, all 19 characters of the kernel.
    pub cc: Bytes,
    /// Baud, of c_ispeed: true also where the speed has no name (BOTHER).
    pub ispeed: u32,
    /// Baud, of c_ospeed.
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
    /// For the kernel; `line` is the line discipline, which a termios names too.
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

    /// What a new pseudo terminal has: tty_std_termios of the kernel, with the pty driver's flags.
    pub fn usual() -> Line {
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

    /// In which settings it differs from [`Line::usual`], each as stty(1) would be told.
    pub fn unusual(&self) -> Vec<String> {
        let usual = Line::usual();
        let mut said = Vec::new();
        if self.ispeed != self.ospeed {
            said.push(format!("ispeed {} ospeed {}", self.ispeed, self.ospeed));
        } else if self.ospeed != usual.ospeed {
            said.push(format!("speed {}", self.ospeed));
        }
        let pairs =
            [(self.cflag, usual.cflag), (self.iflag, usual.iflag), (self.oflag, usual.oflag)];
        let pairs = pairs.into_iter().chain([(self.lflag, usual.lflag)]);
        for ((is, was), names) in pairs.zip([CFLAGS, IFLAGS, OFLAGS, LFLAGS]) {
            for &(mask, bits, name) in names {
                match (is & mask == bits, was & mask == bits) {
                    (true, false) => said.push(name.to_owned()),
                    // Nothing usual is one of several, but for cs8, for which another one stands.
                    (false, true) => said.push(format!("-{name}")),
                    _ => (),
                }
            }
        }
        let canonical = self.lflag & libc::ICANON != 0;
        for (at, name) in CC.iter().enumerate() {
            let Some(&is) = self.cc.0.get(at).filter(|_| !name.is_empty()) else { continue };
            let counted = matches!(*name, "min" | "time");
            if Some(&is) != usual.cc.0.get(at) && !(counted && canonical) {
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

/// The characters by stty(1)'s names, in the kernel's order.
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

/// What a terminal is set to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Its line.
    pub line: Line,
    /// What of the line is locked, as bits and non-zero characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked: Option<Line>,
    /// The line discipline; zero is N_TTY.
    pub discipline: i32,
    /// Rows, columns, and both in pixels; zeroes if nobody has said.
    pub size: [u16; 4],
}

impl Settings {
    /// Asks a terminal. Fails with EIO if it has hung up, with ENOTTY if it is none.
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

    /// Says why these cannot be put on a terminal here.
    pub fn check(&self) -> Result<()> {
        self.line.termios(0)?;
        self.locked.as_ref().map(|it| it.termios(0)).transpose()?;
        match self.discipline {
            N_TTY => Ok(()),
            other => Err(Error::unrestorable(format!(
                "line discipline {other} keeps a state in the kernel that nobody can read"
            ))),
        }
    }

    /// Puts them on a terminal, `size` too. Gives what the terminal did not take.
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

/// The index of a pseudo terminal by the device number of its slave.
pub fn slave_index((major, minor): (u32, u32)) -> Option<u32> {
    (SLAVES..SLAVES + 8).contains(&major).then(|| (major - SLAVES) << 20 | minor)
}

/// The device number of a slave.
pub fn slave_device(index: u32) -> (u32, u32) {
    (SLAVES + (index >> 20 & 7), index & 0xf_ffff)
}

/// Whether a device number is always that of a terminal: what is open need not be asked.
///
/// /dev/tty and /dev/console, virtual consoles and serial lines, slaves; source: devices.txt of the
/// kernel.
pub fn is_terminal((major, minor): (u32, u32)) -> bool {
    match major {
        5 => minor != 2,
        4 | 166 | 188 | 204 | 229 => true,
        _ => slave_index((major, minor)).is_some(),
    }
}

/// Whether a node is that of a terminal. To ask the device itself would be to open it, and not every
/// device bears that.
pub fn is_node(node: &Inode) -> bool {
    let is = |(major, minor)| {
        let class = || std::fs::read_link(format!("/sys/dev/char/{major}:{minor}/subsystem"));
        // The master of a new one, 5:2, is of this class too, and a terminal of nobody's.
        (major, minor) != (5, 2)
            && (is_terminal((major, minor)) || class().is_ok_and(|it| it.ends_with("class/tty")))
    };
    node.mode & libc::S_IFMT == libc::S_IFCHR && node.rdev.is_some_and(is)
}

/// Where a device usually is.
pub fn usual_path(device: (u32, u32)) -> Option<String> {
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

/// The name of a device for messages.
pub fn name(device: (u32, u32)) -> String {
    usual_path(device).unwrap_or_else(|| format!("char {}:{}", device.0, device.1))
}

/// The node of the slave of a master that a process has open under this name.
///
/// The kernel looks for the file system of the slaves beside the master's own node (devpts), and so
/// does this; nothing is opened.
pub fn slave_node(pid: i32, master: &[u8], index: u32) -> Option<Inode> {
    let slash = master.iter().rposition(|&byte| byte == b'/')?;
    let dir = std::str::from_utf8(&master[..slash]).ok()?;
    let places = [format!("{dir}/pts/{index}"), format!("{dir}/{index}")];
    places.iter().find_map(|place| {
        let path = format!("/proc/{pid}/root{place}");
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let node = open(path.as_str(), flags, Mode::empty()).ok()?;
        let node = inode_of(node.as_fd()).ok()?;
        (node.rdev == Some(slave_device(index))).then_some(node)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::pty::openpty;

    #[test]
    fn a_new_pseudo_terminal_has_nothing_unusual() {
        let pair = openpty(None, None).unwrap();
        let settings = Settings::read(&pair.slave).unwrap();
        assert_eq!(settings.line, Line::usual());
        assert_eq!(settings.line.unusual(), Vec::<String>::new());
        assert_eq!((settings.locked, settings.discipline), (None, 0));
    }

    #[test]
    fn what_is_unusual_has_the_names_of_stty() {
        let mut line = Line::usual();
        line.lflag &= !(libc::ICANON | libc::ECHO);
        line.iflag |= libc::IUTF8;
        line.oflag |= libc::TAB3;
        line.cflag = line.cflag & !libc::CSIZE | libc::CS7;
        (line.cc.0[0], line.cc.0[6]) = (0, 4);
        (line.ispeed, line.ospeed) = (9600, 9600);
        let said = line.unusual();
        let names = ["speed 9600", "cs7", "iutf8", "tab3", "-icanon", "-echo"];
        assert_eq!(said[..6], names);
        assert_eq!(said[6..], ["intr undef", "min 4"]);
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
    fn the_index_of_a_slave_is_in_its_number() {
        for index in [0, 7, 256, 70000] {
            assert_eq!(slave_index(slave_device(index)), Some(index));
        }
        assert_eq!(slave_index((4, 64)), None);
        assert!(is_terminal((5, 1)) && !is_terminal((5, 2)) && !is_terminal((1, 3)));
    }
}
