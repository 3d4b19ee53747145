//! The frame of every tool: the command line as getopt_long(3) takes it, messages, statuses, exec.
//!
//! argh parses, but it knows neither `--opt=value`, `-ovalue`, `-abc` nor `-`, takes only UTF-8, and
//! ends misuse with 1. So each command line is first walked along argh's own table of the options
//! ([`ArgsInfo`]) and put into the one form that argh never mistakes: long options, each with its
//! value as the next word, then `--`, then the rest.

pub mod progress;

use crate::error::{Error, Result, Status};
use crate::sys::{start, tty};
use crate::text::{escape, one_line};
use argh::{ArgsInfo, CommandInfoWithArgs, FlagInfo, FlagInfoKind, FromArgValue, FromArgs};
use nix::errno::Errno;
use std::cell::RefCell;
use std::ffi::{CString, OsStr, OsString};
use std::fmt::{self, Display, Write as _};
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::process::ExitCode;

/// A tool: its name, and what its command line has beyond argh's table.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    name: &'static str,
    chain: Chain,
    optional: &'static [(&'static str, &'static str)],
}

/// Where the words after `--` are a COMMAND.
#[derive(Clone, Copy, Debug)]
enum Chain {
    Never,
    Always,
    In(&'static [&'static str]),
}

/// How a tool's run ended, when it ended without an [`Error`].
///
/// Nobody needs to name it: a [`Status`] and the [`ExitCode`] of [`Tool::exec`] turn into it.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// The tool did its own work, with this status.
    Own(Status),
    /// COMMAND could not be become; the message is written.
    Exec(ExitCode),
}

impl From<Status> for End {
    fn from(status: Status) -> End {
        End::Own(status)
    }
}

impl From<ExitCode> for End {
    fn from(code: ExitCode) -> End {
        End::Exec(code)
    }
}

/// What a chain loader exits with when it fails before COMMAND: env(1), nice(1), timeout(1).
const OURS: u8 = 125;

impl Tool {
    /// A tool that runs nobody else: what stands after `--` are its own positionals.
    pub const fn new(name: &'static str) -> Tool {
        Tool { name, chain: Chain::Never, optional: &[] }
    }

    /// A tool that becomes the COMMAND after `--`.
    ///
    /// With a COMMAND each of its own failures exits 125, the failure's own status at the end of the
    /// message as `(status N)`, for 1 to 7 may be COMMAND's. Without one it exits with its own.
    pub const fn chain(name: &'static str) -> Tool {
        Tool { name, chain: Chain::Always, optional: &[] }
    }

    /// A tool of which only these subcommands become a COMMAND, as said at [`Tool::chain`].
    pub const fn chain_in(self, subcommands: &'static [&'static str]) -> Tool {
        Tool { chain: Chain::In(subcommands), ..self }
    }

    /// Long options whose value may be left out (`--data[=LIMIT]`), each with the value that then
    /// stands for it.
    ///
    /// The names are written without dashes, and hold in all subcommands. Such an option takes a
    /// value by `=` alone, as in getopt_long(3); its short form takes none.
    pub const fn optional(self, table: &'static [(&'static str, &'static str)]) -> Tool {
        Tool { optional: table, ..self }
    }

    /// The name that stands before each message.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The whole life of a tool: undoes std, parses, runs, says the error, gives the status.
    ///
    /// `run` gets the COMMAND that stood after `--`, empty if there was none. `-h`, `--help`, `-V`
    /// and `--version` are answered here on every level; argument structs need not declare them.
    /// Misuse is one line and status 2.
    pub fn main<A, E>(&self, run: fn(&Tool, A, Vec<OsString>) -> Result<E>) -> ExitCode
    where
        A: FromArgs + ArgsInfo,
        E: Into<End>,
    {
        start::sigpipe_default();
        let (ended, chained) = match self.parse::<A>(std::env::args_os().skip(1).collect()) {
            Ok(Parsed::Run(args, command)) => {
                let chained = !command.is_empty();
                (run(self, args, command).map(E::into), chained)
            }
            Ok(Parsed::Say(text)) => (say(&text).map(End::Own), false),
            Err(misuse) => (Err(Error::misuse(misuse.reason)), misuse.chained),
        };
        self.end(ended, chained)
    }

    fn end(&self, ended: Result<End>, chained: bool) -> ExitCode {
        let failed = match ended {
            Ok(End::Exec(code)) => return code,
            Ok(End::Own(status)) if !chained || status == Status::Done => {
                return ExitCode::from(status as u8);
            }
            Ok(End::Own(status)) => Error::new(status, "COMMAND was not run"),
            Err(err) => err,
        };
        let status = failed.status() as u8;
        if chained {
            self.warn(format_args!("{failed} (status {status})"));
            ExitCode::from(OURS)
        } else {
            self.warn(failed);
            ExitCode::from(status)
        }
    }

    /// Says `name: message` on stderr, in a single write(2), so that tools in one pipeline do not
    /// mix their lines.
    ///
    /// That it cannot be said is nobody's failure: the result of the write is dropped. What could
    /// break the line or drive the terminal is shown as in [`escape`]; backslashes stay.
    pub fn warn(&self, message: impl Display) {
        progress::hide();
        self.warn_to(io::stderr().as_fd(), message);
    }

    fn warn_to(&self, fd: BorrowedFd, message: impl Display) {
        let line = format!("{}: {}\n", self.name, one_line(&message.to_string()));
        let _ = nix::unistd::write(fd, line.as_bytes());
    }

    /// Becomes COMMAND with this environment; returns only if that failed.
    ///
    /// COMMAND is looked up in our own PATH, and gets SIGPIPE as our caller had it. The failure is
    /// said as `name: COMMAND: reason` on `err_fd`, since 2 may by then be COMMAND's, and is 127 if
    /// there is no such program, else 126. Source: execvpe(3), env(1).
    pub fn exec(
        &self,
        command: &[OsString],
        env: &[(OsString, OsString)],
        err_fd: Option<BorrowedFd>,
    ) -> ExitCode {
        let Some(file) = command.first() else {
            return self.exec_failed(OsStr::new("COMMAND"), Errno::ENOENT, err_fd);
        };
        match exec(file, command, env) {
            Ok(never) => match never {},
            Err(errno) => self.exec_failed(file, errno, err_fd),
        }
    }

    fn exec_failed(&self, file: &OsStr, errno: Errno, err_fd: Option<BorrowedFd>) -> ExitCode {
        let message = format!("{}: {}", escape(file.as_bytes()), errno.desc());
        match err_fd {
            Some(fd) => self.warn_to(fd, message),
            None => self.warn(message),
        }
        ExitCode::from(if errno == Errno::ENOENT { 127 } else { 126 })
    }

    /// Whether a COMMAND is taken after `--` on this level.
    fn chains(&self, path: &[&'static str]) -> bool {
        match self.chain {
            Chain::Never => false,
            Chain::Always => true,
            Chain::In(names) => path.last().is_some_and(|last| names.contains(last)),
        }
    }

    /// Whether misuse found before these words still stands before a COMMAND.
    fn command_follows(&self, path: &[&'static str], rest: &[OsString]) -> bool {
        let Some(end) = rest.iter().position(|word| word == "--") else { return false };
        let chains = match self.chain {
            Chain::In(names) if path.is_empty() => {
                rest[..end].iter().any(|word| names.iter().any(|name| word == name))
            }
            _ => self.chains(path),
        };
        chains && end + 1 < rest.len()
    }

    /// What stands for the value of this option when it is left out, if it may be.
    fn default_of(&self, flag: &FlagInfo) -> Option<&'static str> {
        let name = flag.long.strip_prefix("--")?;
        self.optional.iter().find(|(optional, _)| *optional == name).map(|(_, value)| *value)
    }

    fn parse<A: FromArgs + ArgsInfo>(&self, args: Vec<OsString>) -> Result<Parsed<A>, Misuse> {
        let top = A::get_args_info();
        let mut walk = Walk::new(self, &top);
        let stop = walk.walk(args)?;
        match stop {
            Stop::Version => {
                let version = env!("CARGO_PKG_VERSION");
                return Ok(Parsed::Say(format!("{} {version}\n", self.name)));
            }
            Stop::Help => {
                let mut words = walk.path.clone();
                words.push("--help");
                let text = match A::from_args(&[self.name], &words) {
                    Err(exit) if exit.status.is_ok() => exit.output,
                    _ => format!("Usage: {}\n\nOptions:", self.name),
                };
                return Ok(Parsed::Say(walk.help(&text)));
            }
            Stop::End => {}
        }
        let words = walk.words();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        PROTECTED.set(walk.given.iter().map(|given| given.1.clone()).filter(|w| raw(w)).collect());
        let parsed = A::from_args(&[self.name], &words);
        let untaken = PROTECTED.take();
        match parsed {
            // argh's own triggers are never passed on, so that would be a tool's own early end.
            Err(exit) if exit.status.is_ok() => Ok(Parsed::Say(exit.output)),
            Err(exit) => Err(walk.misuse(walk.reason(&exit.output, &untaken), &[])),
            Ok(args) => match untaken.first() {
                Some(word) => {
                    let reason = format!("argument {}: {}", quoted(word), why_raw(word));
                    Err(walk.misuse(reason, &[]))
                }
                None => Ok(Parsed::Run(args, walk.command)),
            },
        }
    }
}

/// execvpe(3) with the strings of an `OsString` world.
fn exec(
    file: &OsStr,
    command: &[OsString],
    env: &[(OsString, OsString)],
) -> nix::Result<std::convert::Infallible> {
    // Of words of our own command line none can hold a NUL; of an image's, one could.
    let c = |bytes: Vec<u8>| CString::new(bytes).map_err(|_| Errno::EINVAL);
    let file = c(file.as_bytes().to_vec())?;
    let args = command.iter().map(|arg| c(arg.as_bytes().to_vec()));
    let args = args.collect::<nix::Result<Vec<_>>>()?;
    let env = env.iter().map(|(name, value)| c([name.as_bytes(), b"=", value.as_bytes()].concat()));
    let env = env.collect::<nix::Result<Vec<_>>>()?;
    start::sigpipe_as_inherited();
    let failed = nix::unistd::execvpe(&file, &args, &env);
    // A message that nobody reads must not turn 127 into a death by SIGPIPE.
    start::sigpipe_ignored();
    failed
}

/// What a command line asks for.
#[derive(Debug)]
enum Parsed<A> {
    Run(A, Vec<OsString>),
    Say(String),
}

/// A wrong command line, and whether a COMMAND stands at its end.
#[derive(Debug, PartialEq)]
struct Misuse {
    reason: String,
    chained: bool,
}

/// Why a walk along the command line stopped.
#[derive(Debug, PartialEq)]
enum Stop {
    End,
    Help,
    Version,
}

/// A walk along a command line, on the level of the (sub)command reached so far.
struct Walk<'a> {
    tool: &'a Tool,
    level: &'a CommandInfoWithArgs,
    /// The subcommands entered.
    path: Vec<&'static str>,
    /// What argh gets, but for the positionals of this level.
    options: Vec<String>,
    positionals: Vec<String>,
    /// Every word of the user's own, with its option, to recognise it in what argh says.
    given: Vec<(Option<&'static str>, String)>,
    command: Vec<OsString>,
}

impl<'a> Walk<'a> {
    fn new(tool: &'a Tool, top: &'a CommandInfoWithArgs) -> Walk<'a> {
        Walk {
            tool,
            level: top,
            path: Vec::new(),
            options: Vec::new(),
            positionals: Vec::new(),
            given: Vec::new(),
            command: Vec::new(),
        }
    }

    fn walk(&mut self, args: Vec<OsString>) -> Result<Stop, Misuse> {
        let mut rest = args.into_iter();
        let mut ended = false;
        while let Some(word) = rest.next() {
            let bytes = word.as_bytes();
            let step = match bytes.strip_prefix(b"-") {
                Some(b"-") if !ended => {
                    if self.tool.chains(&self.path) {
                        self.command = rest.collect();
                        return Ok(Stop::End);
                    }
                    ended = true;
                    continue;
                }
                Some([b'-', long @ ..]) if !ended => self.long(long, &mut rest),
                Some(short @ [_, ..]) if !ended => self.short(short, &mut rest),
                _ => self.operand(bytes).map(|entered| {
                    ended &= !entered;
                    Stop::End
                }),
            };
            match step {
                Ok(Stop::End) => {}
                Ok(stop) => return Ok(stop),
                Err(reason) => return Err(self.misuse(reason, rest.as_slice())),
            }
        }
        Ok(Stop::End)
    }

    /// `--name` or `--name=value`, without the dashes.
    fn long(
        &mut self,
        word: &[u8],
        rest: &mut impl Iterator<Item = OsString>,
    ) -> Result<Stop, String> {
        let (name, value) = match word.iter().position(|&byte| byte == b'=') {
            Some(at) => (&word[..at], Some(&word[at + 1..])),
            None => (word, None),
        };
        let declared =
            self.level.flags.iter().find(|f| f.long.as_bytes().strip_prefix(b"--") == Some(name));
        // argh's table always has --help as its own.
        let stop = match (name, declared) {
            (b"help", _) => Stop::Help,
            (b"version", None) => Stop::Version,
            (_, Some(flag)) => return self.option(flag, value, rest),
            (_, None) => return Err(format!("unknown option '--{}'", escape(name))),
        };
        match value {
            Some(_) => Err(format!("option '--{}' takes no value", escape(name))),
            None => Ok(stop),
        }
    }

    fn option(
        &mut self,
        flag: &FlagInfo<'static>,
        value: Option<&[u8]>,
        rest: &mut impl Iterator<Item = OsString>,
    ) -> Result<Stop, String> {
        if matches!(flag.kind, FlagInfoKind::Switch) {
            if value.is_some() {
                return Err(format!("option '{}' takes no value", flag.long));
            }
            self.options.push(flag.long.to_owned());
            return Ok(Stop::End);
        }
        let value = match (value, self.tool.default_of(flag)) {
            (Some(value), _) => protect(value),
            (None, Some(default)) => default.to_owned(),
            (None, None) => match rest.next() {
                Some(word) => protect(word.as_bytes()),
                None => return Err(format!("option '{}' needs a value", flag.long)),
            },
        };
        self.options.push(flag.long.to_owned());
        self.options.push(value.clone());
        self.given.push((Some(flag.long), value));
        Ok(Stop::End)
    }

    /// `-abc` or `-ovalue`, without the dash.
    fn short(
        &mut self,
        word: &[u8],
        rest: &mut impl Iterator<Item = OsString>,
    ) -> Result<Stop, String> {
        let mut tail = word;
        while let Some((letter, length)) = first_char(tail) {
            let (here, after) = tail.split_at(length);
            tail = after;
            match (letter, self.level.flags.iter().find(|f| letter.is_some() && f.short == letter))
            {
                (_, Some(flag)) => {
                    let takes = matches!(flag.kind, FlagInfoKind::Option { .. })
                        && self.tool.default_of(flag).is_none();
                    let value = (takes && !tail.is_empty()).then(|| std::mem::take(&mut tail));
                    self.option(flag, value, rest)?;
                }
                (Some('h'), None) => return Ok(Stop::Help),
                (Some('V'), None) => return Ok(Stop::Version),
                _ if here == word => return Err(format!("unknown option '-{}'", escape(word))),
                _ => {
                    let (here, word) = (escape(here), escape(word));
                    return Err(format!("unknown option '-{here}' in '-{word}'"));
                }
            }
        }
        Ok(Stop::End)
    }

    /// A word that is no option: says whether it was a subcommand.
    fn operand(&mut self, word: &[u8]) -> Result<bool, String> {
        let level = self.level;
        if let Some(sub) = level.commands.iter().find(|sub| sub.name.as_bytes() == word) {
            self.options = self.words();
            self.options.push(sub.name.to_owned());
            self.positionals.clear();
            self.path.push(sub.name);
            self.level = &sub.command;
            return Ok(true);
        }
        if !level.commands.is_empty() && level.positionals.is_empty() {
            return Err(format!("unknown command '{}'", escape(word)));
        }
        let word = protect(word);
        self.positionals.push(word.clone());
        self.given.push((None, word));
        Ok(false)
    }

    /// The command line as argh takes it.
    fn words(&self) -> Vec<String> {
        let mut words = self.options.clone();
        if !self.positionals.is_empty() {
            words.push("--".to_owned());
            words.extend_from_slice(&self.positionals);
        }
        words
    }

    /// Misuse for this reason, found when these words were still to come.
    fn misuse(&self, reason: String, rest: &[OsString]) -> Misuse {
        let path: String = self.path.iter().flat_map(|name| [" ", name]).collect();
        Misuse {
            reason: format!("{reason}; see {}{path} --help", self.tool.name),
            chained: !self.command.is_empty() || self.tool.command_follows(&self.path, rest),
        }
    }

    /// argh's complaint in one line of ours.
    fn reason(&self, said: &str, untaken: &[String]) -> String {
        for (option, word) in &self.given {
            let whats: Vec<(String, String)> = match option {
                Some(long) => {
                    vec![(format!("Error parsing option '{long}'"), format!("option '{long}'"))]
                }
                None => {
                    let names = self.level.positionals.iter().map(|p| p.name);
                    names
                        .map(|n| (format!("Error parsing positional argument '{n}'"), n.into()))
                        .collect()
                }
            };
            for (start, what) in whats {
                let why = said.strip_prefix(&start);
                let why = why.and_then(|why| why.strip_prefix(" with value '"));
                let why = why.and_then(|why| why.strip_prefix(word.as_str()));
                match why.and_then(|why| why.strip_prefix("': ")) {
                    Some(_) if untaken.contains(word) => {
                        return format!("{what}: {}: {}", quoted(word), why_raw(word));
                    }
                    Some("duplicate values provided\n") => return format!("{what} is given twice"),
                    Some(why) => return format!("{what}: {}: {}", quoted(word), joined(why)),
                    None => {}
                }
            }
        }
        if let Some(word) = said.strip_prefix("Unrecognized argument: ") {
            let word = quoted(word.trim_end_matches('\n'));
            return match self.tool.chains(&self.path) {
                true => format!("unexpected argument {word}: COMMAND goes after '--'"),
                false => format!("unexpected argument {word}"),
            };
        }
        missing(said).unwrap_or_else(|| joined(said))
    }

    /// argh's help with what it does not know of.
    fn help(&self, text: &str) -> String {
        let (usage, rest) = text.split_once("\n\n").unwrap_or((text, ""));
        let mut usage = usage.to_owned();
        for flag in self.level.flags {
            let FlagInfoKind::Option { arg_name } = flag.kind else { continue };
            if self.tool.default_of(flag).is_some() {
                let long = flag.long;
                let short = flag.short.map_or(long.to_owned(), |short| format!("-{short}"));
                let cure = format!("[{long}[=<{arg_name}>]]");
                usage = usage.replace(&format!("[{short} <{arg_name}>]"), &cure);
            }
        }
        if self.tool.chains(&self.path) {
            usage = usage.replace(" [--] ", " ");
            usage.push_str(" [-- COMMAND...]");
        }
        let mut help = format!("{usage}\n\n");
        let mut common = Some(
            "  -h, --help        display usage information\n  \
               -V, --version     display the version\n",
        );
        if self.level.flags.iter().any(|flag| flag.long == "--version") {
            common = Some("  -h, --help        display usage information\n");
        }
        for line in rest.trim_end().lines() {
            match common {
                // argh's own line, whatever its triggers are.
                Some(ours)
                    if line.starts_with("  ") && line.ends_with("display usage information") =>
                {
                    help.push_str(ours);
                    common = None;
                }
                _ => {
                    help.push_str(line);
                    help.push('\n');
                }
            }
        }
        help.push_str(common.unwrap_or_default());
        help
    }
}

/// Writes an asked-for text to stdout. A reader that has left has seen enough.
fn say(text: &str) -> Result<Status> {
    match text_stdout()?.write_all(text.as_bytes()) {
        Err(err) if err.raw_os_error() != Some(Errno::EPIPE as i32) => {
            Err(Error::from(err).at("standard output"))
        }
        _ => Ok(Status::Done),
    }
}

/// argh's list of what is missing, if it is that.
fn missing(said: &str) -> Option<String> {
    let mut parts: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in said.lines() {
        match line {
            "Required positional arguments not provided:" => parts.push(("argument", Vec::new())),
            "Required options not provided:" => parts.push(("option", Vec::new())),
            "One of the following subcommands must be present:" => {
                parts.push(("command, one of", Vec::new()));
            }
            _ => parts.last_mut()?.1.push(line.strip_prefix("    ")?),
        }
    }
    let parts: Vec<String> = parts
        .iter()
        .map(|(title, names)| {
            // Among commands argh names its own `help` first, which is none here.
            let names =
                if title.starts_with("command") { &names[1.min(names.len())..] } else { names };
            format!("missing {title} {}", names.join(", "))
        })
        .collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// Lines as one.
fn joined(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join(", ")
}

/// The first character and its length; no character for a byte that begins none.
fn first_char(bytes: &[u8]) -> Option<(Option<char>, usize)> {
    let chunk = bytes.utf8_chunks().next()?;
    match chunk.valid().chars().next() {
        Some(letter) => Some((Some(letter), letter.len_utf8())),
        None => Some((None, chunk.invalid().len())),
    }
}

// ---- arguments of any bytes ----

/// What stands before the hex of a word that argh could not carry.
const MARK: char = '\x01';

thread_local! {
    /// Protected words that no [`Arg`] has taken yet: another type may have taken the hex for text.
    static PROTECTED: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// A word as argh can carry it: itself, or if it is not UTF-8 (or looks like a mark) its hex.
fn protect(word: &[u8]) -> String {
    if let Ok(text) = std::str::from_utf8(word) {
        if !raw(text) {
            return text.to_owned();
        }
    }
    let mut hex = String::with_capacity(1 + 2 * word.len());
    hex.push(MARK);
    for byte in word {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// Whether a word is a protected one.
fn raw(word: &str) -> bool {
    word.starts_with(MARK)
}

/// The bytes that the user typed.
fn unprotect(word: &str) -> Vec<u8> {
    let digit = |hex: u8| char::from(hex).to_digit(16).map(|digit| digit as u8);
    let byte = |pair: &[u8]| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?);
    let bytes =
        word.strip_prefix(MARK).and_then(|hex| hex.as_bytes().chunks(2).map(byte).collect());
    bytes.unwrap_or_else(|| word.as_bytes().to_vec())
}

/// A word in quotes, safe to show.
fn quoted(word: &str) -> String {
    format!("'{}'", escape(&unprotect(word)))
}

/// Why a protected word cannot be the value of any type but [`Arg`].
fn why_raw(word: &str) -> &'static str {
    match std::str::from_utf8(&unprotect(word)) {
        Ok(_) => "begins with a control character",
        Err(_) => "not UTF-8",
    }
}

/// An argument as the user typed it, any bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Arg(OsString);

impl Arg {
    /// The argument as the system takes it.
    pub fn as_os_str(&self) -> &OsStr {
        &self.0
    }

    /// The argument as the name of a file.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// Whether it is `-`, which stands for stdin or stdout.
    pub fn is_dash(&self) -> bool {
        self.0 == "-"
    }
}

impl From<OsString> for Arg {
    fn from(word: OsString) -> Arg {
        Arg(word)
    }
}

/// Shown as [`escape`] does.
impl Display for Arg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&escape(self.0.as_bytes()))
    }
}

/// It never fails. A type that needs all bytes of an argument is built on this one.
impl FromArgValue for Arg {
    fn from_arg_value(value: &str) -> std::result::Result<Arg, String> {
        if raw(value) {
            PROTECTED.with_borrow_mut(|untaken| {
                if let Some(at) = untaken.iter().position(|word| word == value) {
                    untaken.swap_remove(at);
                }
            });
        }
        Ok(Arg(OsString::from_vec(unprotect(value))))
    }
}

// ---- words ----

/// A size: a number alone or with K, M, G or T (by 1024 each, lower case too), and `B` or `iB`
/// after that if one likes.
///
/// The error is the reason alone, as argh wants it: not a size, or more than 64 bits hold.
pub fn parse_size(s: &str) -> std::result::Result<u64, String> {
    let end = s.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(s.len());
    let (number, unit) = s.split_at(end);
    let mut unit = unit.to_ascii_lowercase();
    if unit.ends_with('b') {
        unit.pop();
        if unit.len() > 1 && unit.ends_with('i') {
            unit.pop();
        }
    }
    let shift = match unit.as_str() {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err("not a size, such as 64, 16K or 1M".to_owned()),
    };
    if number.is_empty() {
        return Err("not a size, such as 64, 16K or 1M".to_owned());
    }
    let number = number.parse::<u64>().ok();
    number.and_then(|n| n.checked_mul(1 << shift)).ok_or_else(|| "too large a size".to_owned())
}

/// When to colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Color {
    /// On a terminal, if neither NO_COLOR nor `TERM=dumb` asks otherwise.
    #[default]
    Auto,
    /// Even in a pipe.
    Always,
    /// Not at all.
    Never,
}

impl Color {
    /// Whether to colour what goes to stdout.
    ///
    /// Source: isatty(3) and <https://no-color.org>: NO_COLOR counts when it is not empty.
    pub fn on(self) -> bool {
        match self {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty())
                    && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
                    && io::stdout().is_terminal()
            }
        }
    }
}

/// `auto`, `always` or `never`.
impl FromArgValue for Color {
    fn from_arg_value(value: &str) -> std::result::Result<Color, String> {
        match value {
            "auto" => Ok(Color::Auto),
            "always" => Ok(Color::Always),
            "never" => Ok(Color::Never),
            _ => Err("not auto, always or never".to_owned()),
        }
    }
}

/// The columns of the terminal that stdout is, if it is one and they are known.
///
/// Source: ioctl_tty(2) TIOCGWINSZ; COLUMNS for a terminal that was never told its size.
pub fn terminal_width() -> Option<usize> {
    let columns = tty::winsize(io::stdout()).ok()?.ws_col;
    let columns = match columns {
        0 => std::env::var("COLUMNS").ok()?.parse().ok()?,
        known => known.into(),
    };
    (columns > 0).then_some(columns)
}

// ---- streams ----

/// stdout, for data: every write is a write(2), and its error an error.
#[derive(Debug)]
pub struct Out(io::Stdout);

/// stdin, for data: every read is a read(2).
#[derive(Debug)]
pub struct In(io::Stdin);

/// stdout for an image.
///
/// Refuses a terminal as misuse, in one line that ends with this cure, and fails with
/// [`Status::System`] if stdout was closed when we started, where std would let /dev/null swallow
/// the image.
pub fn binary_stdout(cure: &str) -> Result<Out> {
    let out = text_stdout()?;
    if out.0.is_terminal() {
        return Err(Error::misuse(format!(
            "refusing to write a binary image to the terminal; {cure}"
        )));
    }
    Ok(out)
}

/// stdin for an image. Refuses what [`binary_stdout`] refuses, in the same way.
pub fn binary_stdin(cure: &str) -> Result<In> {
    open_at_start(0, "standard input")?;
    let from = io::stdin();
    if from.is_terminal() {
        return Err(Error::misuse(format!(
            "refusing to read a binary image from the terminal; {cure}"
        )));
    }
    Ok(In(from))
}

/// stdout for text. Fails with [`Status::System`] if it was closed when we started.
pub fn text_stdout() -> Result<Out> {
    open_at_start(1, "standard output")?;
    Ok(Out(io::stdout()))
}

fn open_at_start(fd: i32, name: &str) -> Result<()> {
    match start::closed_at_start(fd) {
        true => Err(Error::new(Status::System, "closed").at(name)),
        false => Ok(()),
    }
}

impl Write for Out {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(nix::unistd::write(&self.0, buf)?)
    }

    fn write_vectored(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        // More than IOV_MAX are an error to writev(2); the rest comes with the next call.
        Ok(nix::sys::uio::writev(&self.0, &bufs[..bufs.len().min(1024)])?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Out {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Read for In {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(nix::unistd::read(&self.0, buf)?)
    }
}

impl AsFd for In {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// finds things
    #[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
    struct Top {
        /// be loud
        #[argh(switch, short = 'v')]
        verbose: u8,
        #[argh(subcommand)]
        verb: Verb,
    }

    #[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
    #[argh(subcommand)]
    enum Verb {
        Show(Show),
        Open(Open),
    }

    /// show a thing
    #[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
    #[argh(subcommand, name = "show", help_triggers("-h", "--help"))]
    struct Show {
        /// as JSON
        #[argh(switch, short = 'J')]
        json: bool,
        /// all of them
        #[argh(switch, short = 'a')]
        all: bool,
        /// where to
        #[argh(option, short = 'o')]
        output: Option<Arg>,
        /// how deep
        #[argh(option, short = 'n')]
        depth: Option<i32>,
        /// with contents
        #[argh(option, short = 'd')]
        data: Option<String>,
        /// only these
        #[argh(option, short = 'F', long = "filter")]
        filters: Vec<String>,
        #[argh(positional)]
        files: Vec<Arg>,
    }

    /// open a thing
    #[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
    #[argh(subcommand, name = "open")]
    struct Open {
        /// where to
        #[argh(option, short = 'o')]
        output: Option<Arg>,
        #[argh(positional)]
        pid: u32,
    }

    const TOOL: Tool = Tool::new("tool").optional(&[("data", "1M")]);
    const CHAIN: Tool = Tool::new("tool").optional(&[("data", "1M")]).chain_in(&["open"]);

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    fn show(line: &str) -> Show {
        match TOOL.parse::<Top>(words(&format!("show {line}"))) {
            Ok(Parsed::Run(Top { verb: Verb::Show(show), .. }, command)) if command.is_empty() => {
                show
            }
            other => panic!("{line}: {other:?}"),
        }
    }

    fn open(line: &str) -> (Open, Vec<OsString>) {
        match CHAIN.parse::<Top>(words(&format!("open {line}"))) {
            Ok(Parsed::Run(Top { verb: Verb::Open(open), .. }, command)) => (open, command),
            other => panic!("{line}: {other:?}"),
        }
    }

    fn said(line: &str) -> String {
        match TOOL.parse::<Top>(words(line)) {
            Ok(Parsed::Say(text)) => text,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn misuse_of(tool: Tool, args: Vec<OsString>) -> Misuse {
        match tool.parse::<Top>(args) {
            Err(misuse) => misuse,
            other => panic!("{other:?}"),
        }
    }

    fn misuse(line: &str) -> String {
        misuse_of(TOOL, words(line)).reason
    }

    fn arg(word: &str) -> Arg {
        Arg(word.into())
    }

    #[test]
    fn a_value_may_be_glued_to_its_option() {
        for line in ["--output=x", "--output x", "-ox", "-o x"] {
            assert_eq!(show(line).output, Some(arg("x")), "{line}");
        }
        assert_eq!(show("--output=").output, Some(arg("")));
        assert_eq!(show("--output=a=b").output, Some(arg("a=b")));
    }

    #[test]
    fn a_value_may_begin_with_a_dash() {
        assert_eq!(show("-n -5").depth, Some(-5));
        assert_eq!(show("-n-5").depth, Some(-5));
        assert_eq!(show("--depth=-5").depth, Some(-5));
        assert_eq!(show("-o --json").output, Some(arg("--json")));
        assert_eq!(show("-o --help").output, Some(arg("--help")));
        assert_eq!(show("-o -").output, Some(arg("-")));
        assert_eq!(show("-o --").output, Some(arg("--")));
    }

    #[test]
    fn short_options_may_be_bundled() {
        let seen = show("-Jaox");
        assert!(seen.json && seen.all);
        assert_eq!(seen.output, Some(arg("x")));
        assert_eq!(show("-Jao x"), seen);
        let Ok(Parsed::Run(Top { verbose, .. }, _)) =
            TOOL.parse::<Top>(words("-vv --verbose show"))
        else {
            panic!()
        };
        assert_eq!(verbose, 3);
    }

    #[test]
    fn options_and_positionals_come_in_any_order() {
        let seen = show("a -J b -F x c --filter=y");
        assert!(seen.json);
        assert_eq!(seen.filters, ["x", "y"]);
        assert_eq!(seen.files, [arg("a"), arg("b"), arg("c")]);
    }

    #[test]
    fn a_bare_dash_is_a_positional() {
        assert_eq!(show("- -J -").files, [arg("-"), arg("-")]);
        assert!(show("-").files[0].is_dash());
    }

    #[test]
    fn two_dashes_end_the_options() {
        let seen = show("-a -- -J --help -- show help");
        assert!(seen.all && !seen.json);
        assert_eq!(seen.files, ["-J", "--help", "--", "show", "help"].map(arg));
    }

    #[test]
    fn a_value_left_out_has_its_default_and_never_takes_the_next_word() {
        let seen = show("--data x");
        assert_eq!((seen.data.as_deref(), seen.files), (Some("1M"), vec![arg("x")]));
        assert_eq!(show("--data=2K").data.as_deref(), Some("2K"));
        let seen = show("-dJ x");
        assert_eq!((seen.data.as_deref(), seen.json), (Some("1M"), true));
    }

    #[test]
    fn a_switch_takes_no_value() {
        assert_eq!(
            misuse("show --json=yes"),
            "option '--json' takes no value; see tool show --help"
        );
        assert_eq!(misuse("--help=x"), "option '--help' takes no value; see tool --help");
        assert_eq!(misuse("--version=x"), "option '--version' takes no value; see tool --help");
    }

    #[test]
    fn an_unknown_option_is_named() {
        assert_eq!(misuse("--foo=3 show"), "unknown option '--foo'; see tool --help");
        assert_eq!(misuse("show --jso"), "unknown option '--jso'; see tool show --help");
        assert_eq!(misuse("show -x"), "unknown option '-x'; see tool show --help");
        assert_eq!(misuse("show -Jxa"), "unknown option '-x' in '-Jxa'; see tool show --help");
        assert_eq!(misuse("--json show"), "unknown option '--json'; see tool --help");
        assert_eq!(misuse("-J-"), "unknown option '-J' in '-J-'; see tool --help");
        let odd = vec!["show".into(), OsString::from_vec(b"-J\xff".to_vec())];
        let misuse = misuse_of(TOOL, odd).reason;
        assert_eq!(misuse, "unknown option '-\\xff' in '-J\\xff'; see tool show --help");
    }

    #[test]
    fn all_misuse_is_one_line() {
        for (line, reason) in [
            ("", "missing command, one of show, open; see tool --help"),
            ("shwo", "unknown command 'shwo'; see tool --help"),
            ("help", "unknown command 'help'; see tool --help"),
            ("open", "missing argument pid; see tool open --help"),
            ("open 1 2", "unexpected argument '2'; see tool open --help"),
            ("show -o", "option '--output' needs a value; see tool show --help"),
            ("show -ox -oy", "option '--output' is given twice; see tool show --help"),
            (
                "show -nx",
                "option '--depth': 'x': invalid digit found in string; see tool show --help",
            ),
            ("open x", "pid: 'x': invalid digit found in string; see tool open --help"),
            ("open -- -1", "pid: '-1': invalid digit found in string; see tool open --help"),
        ] {
            assert_eq!(misuse(line), reason, "{line}");
        }
        let missing = missing(concat!(
            "Required positional arguments not provided:\n    a\n    b\n",
            "Required options not provided:\n    --c\n"
        ));
        assert_eq!(missing.unwrap(), "missing argument a, b; missing option --c");
    }

    #[test]
    fn help_and_version_are_answered_on_every_level() {
        for line in ["-h", "--help", "-vh", "--help --bogus"] {
            assert!(said(line).starts_with("Usage: tool [-v] <command>"), "{}", said(line));
        }
        for line in ["show -h", "show --help", "show -Jh", "-v show x -h"] {
            assert!(said(line).starts_with("Usage: tool show "), "{}", said(line));
        }
        for line in ["-V", "--version", "-vV", "show -JV", "open --version"] {
            assert_eq!(said(line), concat!("tool ", env!("CARGO_PKG_VERSION"), "\n"), "{line}");
        }
        assert_eq!(misuse("--bogus --help"), "unknown option '--bogus'; see tool --help");
    }

    #[test]
    fn help_tells_what_argh_does_not_know() {
        for line in ["-h", "show -h", "open -h"] {
            let help = said(line);
            let common = "\n  -h, --help        display usage information\n  \
                          -V, --version     display the version\n";
            assert_eq!(help.matches(common).count(), 1, "{help}");
            assert_eq!(help.matches("display usage information").count(), 1, "{help}");
        }
        assert!(said("show -h").contains(" [--data[=<data>]]"), "{}", said("show -h"));
        let Ok(Parsed::Say(help)) = CHAIN.parse::<Top>(words("open -h")) else { panic!() };
        assert!(
            help.starts_with("Usage: tool open [-o <output>] <pid> [-- COMMAND...]\n"),
            "{help}"
        );
    }

    #[test]
    fn a_command_stands_after_two_dashes() {
        let (args, command) = open("7 -ox -- prog --help -- -V");
        assert_eq!((args.pid, args.output), (7, Some(arg("x"))));
        assert_eq!(command, words("prog --help -- -V"));
        assert_eq!(open("7").1, words(""));
        assert_eq!(open("7 --").1, words(""));
    }

    #[test]
    fn two_dashes_as_a_value_begin_no_command() {
        let (args, command) = open("-o -- 7 -- prog");
        assert_eq!(args.output, Some(arg("--")));
        assert_eq!(command, words("prog"));
    }

    #[test]
    fn a_stray_word_of_a_chain_loader_learns_where_command_goes() {
        let misuse = misuse_of(CHAIN, words("open 7 prog"));
        let reason = "unexpected argument 'prog': COMMAND goes after '--'; see tool open --help";
        assert_eq!(misuse, Misuse { reason: reason.into(), chained: false });
    }

    #[test]
    fn misuse_knows_whether_a_command_follows() {
        for (line, chained) in [
            ("open --bogus 7 -- prog", true),
            ("open x -- prog", true),
            ("open -- prog", true),
            ("--bogus open 7 -- prog", true),
            ("open --bogus 7 --", false),
            ("open --bogus 7", false),
            ("--bogus show -- x", false),
            ("show --bogus -- open", false),
        ] {
            assert_eq!(misuse_of(CHAIN, words(line)).chained, chained, "{line}");
        }
        assert!(!misuse_of(TOOL, words("open --bogus -- prog")).chained);
        assert!(misuse_of(Tool::chain("tool"), words("--bogus -- prog")).chained);
    }

    #[test]
    fn a_level_without_command_keeps_two_dashes_for_itself() {
        let Ok(Parsed::Run(Top { verb: Verb::Show(show), .. }, command)) =
            CHAIN.parse::<Top>(words("show -- -J"))
        else {
            panic!()
        };
        assert_eq!((show.files, command.len()), (vec![arg("-J")], 0));
    }

    #[test]
    fn bytes_that_are_no_text_reach_an_argument_unharmed() {
        for bytes in [&b"a\xff/\x80"[..], b"\xff", b"\x01", b"\x01ff", b"\x01zz"] {
            let word = OsString::from_vec(bytes.to_vec());
            let glued = |option: &str| [option.as_bytes(), bytes].concat();
            for args in [
                vec!["-o".into(), word.clone()],
                vec![OsString::from_vec(glued("-o"))],
                vec![OsString::from_vec(glued("--output="))],
            ] {
                let args = [words("show"), args, vec![word.clone()]].concat();
                let Ok(Parsed::Run(Top { verb: Verb::Show(show), .. }, _)) =
                    TOOL.parse::<Top>(args)
                else {
                    panic!("{bytes:?}")
                };
                assert_eq!(show.output.unwrap().as_os_str(), word);
                assert_eq!(show.files[0].as_path(), Path::new(&word));
            }
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_misuse_where_text_is_due() {
        let with = |line: &str, last: &[u8]| {
            let last = OsString::from_vec(last.to_vec());
            misuse_of(TOOL, [words(line), vec![last]].concat()).reason
        };
        let see = "see tool show --help";
        assert_eq!(
            with("show -n", b"\xff"),
            format!("option '--depth': '\\xff': not UTF-8; {see}")
        );
        assert_eq!(with("show -F", b"a\xff"), format!("argument 'a\\xff': not UTF-8; {see}"));
        assert_eq!(
            with("show -F", b"\x01"),
            format!("argument '\\x01': begins with a control character; {see}")
        );
        // The same word, once where it may stand and once where it may not.
        let odd = OsString::from_vec(b"\xff".to_vec());
        let args = vec!["show".into(), odd.clone(), "-F".into(), odd];
        assert_eq!(misuse_of(TOOL, args).reason, format!("argument '\\xff': not UTF-8; {see}"));
        assert_eq!(with("open", b"7\xff"), "pid: '7\\xff': not UTF-8; see tool open --help");
        assert_eq!(with("", b"sh\xff"), "unknown command 'sh\\xff'; see tool --help");
        assert_eq!(with("", b"--a\xff=b"), "unknown option '--a\\xff'; see tool --help");
    }

    #[test]
    fn a_message_is_one_line_and_keeps_what_is_escaped() {
        let (from, to) = nix::unistd::pipe().unwrap();
        TOOL.warn_to(to.as_fd(), format_args!("fd 3: {}: bad\nnews", escape(b"\x1b")));
        let mut buf = [0; 100];
        let n = nix::unistd::read(&from, &mut buf).unwrap();
        assert_eq!(&buf[..n], b"tool: fd 3: \\x1b: bad\\x0anews\n");
    }

    #[test]
    fn a_command_that_cannot_run_says_why() {
        let (from, to) = nix::unistd::pipe().unwrap();
        let code = TOOL.exec(&words("/no/such"), &[], Some(to.as_fd()));
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(127)));
        let code = TOOL.exec(&words("/dev/null"), &[], Some(to.as_fd()));
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(126)));
        let nul = [(OsString::from("A"), OsString::from("\0"))];
        let code = TOOL.exec(&words("/bin/true"), &nul, Some(to.as_fd()));
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(126)));
        let mut buf = [0; 200];
        let n = nix::unistd::read(&from, &mut buf).unwrap();
        let lines = "tool: /no/such: No such file or directory\n\
                     tool: /dev/null: Permission denied\n\
                     tool: /bin/true: Invalid argument\n";
        assert_eq!(std::str::from_utf8(&buf[..n]).unwrap(), lines);
        drop(from);
        let code = TOOL.exec(&words("/no/such"), &[], Some(to.as_fd()));
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(127)));
    }

    #[test]
    fn failures_before_a_command_exit_125() {
        let code = |ended: Result<End>, chained| format!("{:?}", CHAIN.end(ended, chained));
        let want = |code: u8| format!("{:?}", ExitCode::from(code));
        let gone = || Err(Error::from(Errno::ESRCH));
        assert_eq!(code(gone(), false), want(5));
        assert_eq!(code(gone(), true), want(125));
        assert_eq!(code(Ok(Status::No.into()), false), want(1));
        assert_eq!(code(Ok(Status::No.into()), true), want(125));
        assert_eq!(code(Ok(Status::Done.into()), true), want(0));
        assert_eq!(code(Ok(ExitCode::from(127).into()), true), want(127));
    }

    #[test]
    fn sizes_are_counted_by_1024() {
        for (text, size) in [
            ("0", 0),
            ("64", 64),
            ("64B", 64),
            ("16K", 16 << 10),
            ("16kib", 16 << 10),
            ("1MB", 1 << 20),
            ("2g", 2 << 30),
            ("1TiB", 1 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for text in
            ["", "K", "B", "-1", "+1", "1.5M", " 1", "1 K", "64iB", "1KK", "1KiBB", "1P", "1é"]
        {
            assert!(parse_size(text).unwrap_err().starts_with("not a size"), "{text}");
        }
        for text in ["18446744073709551616", "18014398509481984K", "99999999999T"] {
            assert_eq!(parse_size(text), Err("too large a size".to_owned()), "{text}");
        }
    }

    #[test]
    fn a_colour_is_one_of_three_words() {
        assert_eq!(Color::from_arg_value("auto"), Ok(Color::Auto));
        assert!(Color::from_arg_value("always").unwrap().on());
        assert!(!Color::from_arg_value("never").unwrap().on());
        assert!(Color::from_arg_value("yes").is_err());
    }

    /// A word near those that mean something.
    fn word() -> impl Strategy<Value = OsString> {
        const KNOWN: &[&str] = &[
            "show",
            "open",
            "-",
            "--",
            "-J",
            "-o",
            "-vJ",
            "--data",
            "--output=",
            "-h",
            "7",
            "\u{1}ff",
        ];
        let bytes = prop::collection::vec(any::<u8>(), 0..5);
        prop_oneof![
            prop::sample::select(KNOWN).prop_map(OsString::from),
            "[-=vJonFd7é\u{1}]{0,5}".prop_map(OsString::from),
            (prop::sample::select(KNOWN), bytes)
                .prop_map(|(word, tail)| OsString::from_vec([word.as_bytes(), &tail].concat())),
        ]
    }

    proptest! {
        #[test]
        fn no_command_line_panics_and_all_misuse_is_one_line(
            args in prop::collection::vec(word(), 0..8),
        ) {
            for tool in [TOOL, CHAIN, Tool::chain("tool")] {
                if let Err(misuse) = tool.parse::<Top>(args.clone()) {
                    prop_assert!(!misuse.reason.contains(char::is_control), "{:?}", misuse);
                }
            }
        }

        #[test]
        fn every_word_comes_back_from_its_protected_form(bytes in prop::collection::vec(any::<u8>(), 0..9)) {
            prop_assert_eq!(unprotect(&protect(&bytes)), bytes);
        }
    }
}
