//! The frame that every binary stands in: arguments, messages, exit status, exec.
//!
//! argh knows neither `--opt=value`, `-abc`, a bare `-`, nor arguments that are not UTF-8, so a
//! normaliser, driven by argh's own `ArgsInfo`, rewrites the command line before argh sees it.

use crate::error::{Error, Result, Status};
use crate::sys::start;
use crate::text::escape;
use argh::{ArgsInfo, FlagInfo, FlagInfoKind, FromArgValue, FromArgs};
use nix::errno::Errno;
use std::ffi::{CString, OsStr, OsString};
use std::fmt::Display;
use std::io::{IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::process::ExitCode;

/// Marks an argument that argh must not look at; what follows is its bytes in hexadecimal.
const GUARD: char = '\u{1}';

/// An argument as the user typed it, any bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arg(OsString);

impl Arg {
    /// The bytes as an OsStr.
    pub fn as_os_str(&self) -> &OsStr {
        &self.0
    }

    /// The bytes as a path.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// Whether it is `-`, which means stdin or stdout.
    pub fn is_dash(&self) -> bool {
        self.0 == "-"
    }
}

impl Display for Arg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&escape(self.0.as_bytes()))
    }
}

impl FromArgValue for Arg {
    fn from_arg_value(value: &str) -> Result<Self, String> {
        let Some(hex) = value.strip_prefix(GUARD) else { return Ok(Arg(value.into())) };
        let byte = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
        let bytes: Option<Vec<u8>> = (0..hex.len()).step_by(2).map(byte).collect();
        Ok(Arg(OsString::from_vec(bytes.ok_or("unreadable")?)))
    }
}

fn guard(arg: &[u8]) -> String {
    let hex = arg.iter().map(|byte| format!("{byte:02x}"));
    std::iter::once(GUARD.to_string()).chain(hex).collect()
}

/// What a command line turns out to be.
#[derive(Debug, PartialEq)]
enum Asked {
    /// Words for argh.
    Run(Vec<String>),
    Version,
}

/// Rewrites words, of which `optional` names the long options whose value may be left out.
fn normalise<A: ArgsInfo>(words: &[OsString], optional: &[(&str, &str)]) -> Result<Asked, String> {
    let info = A::get_args_info();
    let mut flags: &[FlagInfo<'_>] = info.flags;
    let mut commands = info.commands;
    let mut out = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let bytes = word.as_bytes();
        let mut value = |name: &str, glued: Option<&[u8]>, out: &mut Vec<String>| {
            let default = optional.iter().find(|(each, _)| name == format!("--{each}"));
            let value = match (glued, default) {
                (Some(value), _) => OsStr::from_bytes(value).to_owned(),
                (None, Some((_, default))) => default.into(),
                (None, None) => {
                    words.next().ok_or_else(|| format!("option '{name}' needs a value"))?.clone()
                }
            };
            out.push(name.to_owned());
            out.push(match value.to_str() {
                Some(text) if !text.starts_with(GUARD) && !text.starts_with('-') => text.to_owned(),
                _ => guard(value.as_bytes()),
            });
            Ok::<(), String>(())
        };
        if bytes == b"--" {
            out.extend(words.map(|rest| guard(rest.as_bytes())));
            break;
        } else if let Some(long) = bytes.strip_prefix(b"--") {
            let (name, glued) = match long.iter().position(|&byte| byte == b'=') {
                Some(at) => (&long[..at], Some(&long[at + 1..])),
                None => (long, None),
            };
            let name = format!("--{}", escape(name));
            match (name.as_str(), glued) {
                ("--version", None) => return Ok(Asked::Version),
                ("--help", None) => {
                    out.push(name);
                    continue;
                }
                _ => (),
            }
            let flag = flags.iter().find(|flag| flag.long == name);
            match flag.ok_or_else(|| format!("unknown option '{name}'"))?.kind {
                FlagInfoKind::Switch if glued.is_some() => {
                    return Err(format!("option '{name}' takes no value"));
                }
                FlagInfoKind::Switch => out.push(name),
                FlagInfoKind::Option { .. } => value(&name, glued, &mut out)?,
            }
        } else if bytes.len() > 1 && bytes[0] == b'-' {
            for (at, &short) in bytes.iter().enumerate().skip(1) {
                match short {
                    b'V' => return Ok(Asked::Version),
                    b'h' => {
                        out.push("--help".into());
                        continue;
                    }
                    _ => (),
                }
                let flag = flags.iter().find(|flag| flag.short == Some(short.into()));
                let unknown = || format!("unknown option '-{}'", escape(&bytes[at..=at]));
                let flag = flag.ok_or_else(unknown)?;
                match flag.kind {
                    FlagInfoKind::Switch => out.push(flag.long.to_owned()),
                    FlagInfoKind::Option { .. } => {
                        let glued = Some(&bytes[at + 1..]).filter(|rest| !rest.is_empty());
                        value(flag.long, glued, &mut out)?;
                        break;
                    }
                }
            }
        } else if let Some(at) = commands.iter().position(|it| it.name.as_bytes() == bytes) {
            let it = commands.swap_remove(at);
            out.push(it.name.to_owned());
            flags = it.command.flags;
            commands = it.command.commands;
        } else {
            out.push(match word.to_str() {
                Some(text) if text != "-" && !text.starts_with(GUARD) => text.to_owned(),
                _ => guard(bytes),
            });
        }
    }
    Ok(Asked::Run(out))
}

/// A tool: its name, and what it does about a command after `--`.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    name: &'static str,
    chain: bool,
    optional: &'static [(&'static str, &'static str)],
}

impl Tool {
    /// A tool that does its work and ends.
    pub const fn new(name: &'static str) -> Tool {
        Tool { name, chain: false, optional: &[] }
    }

    /// A tool that becomes the COMMAND after `--`. Where one is given, every failure of the tool's
    /// own exits 125, as env(1) does, and its status stands at the end of the message.
    pub const fn chain(name: &'static str) -> Tool {
        Tool { name, chain: true, optional: &[] }
    }

    /// Long options whose value may be left out, with the value that then stands for it.
    pub const fn optional(mut self, table: &'static [(&'static str, &'static str)]) -> Tool {
        self.optional = table;
        self
    }

    /// The whole life of a tool: undo std, parse, run, say the error, give the status.
    pub fn main<A: FromArgs + ArgsInfo>(
        &self,
        run: fn(&Tool, A, Vec<OsString>) -> Result<Status>,
    ) -> ExitCode {
        start::sigpipe_default();
        let mut words: Vec<OsString> = std::env::args_os().skip(1).collect();
        let command = if self.chain { split(&mut words) } else { Vec::new() };
        let chained = !command.is_empty();
        match self.parse::<A>(&words) {
            Ok(Some(args)) => match run(self, args, command) {
                Ok(status) => ExitCode::from(status as u8),
                Err(err) => self.fail(&err, chained),
            },
            Ok(None) => ExitCode::SUCCESS,
            Err(err) => self.fail(&err, chained),
        }
    }

    /// Says an error; gives the status that it asks for, or 125 in place of a COMMAND's.
    fn fail(&self, err: &Error, chained: bool) -> ExitCode {
        if chained {
            self.warn(format_args!("{err} (status {})", err.status() as u8));
            ExitCode::from(125)
        } else {
            self.warn(err);
            ExitCode::from(err.status() as u8)
        }
    }

    fn parse<A: FromArgs + ArgsInfo>(&self, words: &[OsString]) -> Result<Option<A>> {
        let misuse = |why: String| Error::misuse(format!("{why}; see {} --help", self.name));
        let words = match normalise::<A>(words, self.optional).map_err(misuse)? {
            Asked::Run(words) => words,
            Asked::Version => {
                let line = format!("{} {}\n", self.name, env!("CARGO_PKG_VERSION"));
                text_stdout()?.write_all(line.as_bytes())?;
                return Ok(None);
            }
        };
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match A::from_args(&[self.name], &words) {
            Ok(args) => Ok(Some(args)),
            Err(early) if early.status.is_ok() => {
                let mut help = early.output.trim_end().to_owned();
                help.push_str("\n  -V, --version     display the version\n");
                text_stdout()?.write_all(help.as_bytes())?;
                Ok(None)
            }
            Err(early) => {
                // argh takes several lines, and shows guarded words as it saw them.
                let text = early.output.split(GUARD).next().unwrap_or_default();
                let lines: Vec<&str> =
                    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
                let line = lines.join(" ").replace("not provided:", "not given:");
                let mut letters = line.chars();
                let first = letters.next().into_iter().flat_map(char::to_lowercase);
                Err(misuse(first.chain(letters).collect::<String>()))
            }
        }
    }

    /// Says a line on stderr: `name: message`. A closed stderr is not an error.
    pub fn warn(&self, message: impl Display) {
        say(std::io::stderr().as_fd(), self.name, message);
    }

    /// Becomes COMMAND, with SIGPIPE as the caller gave it to us. Returns only if that fails: 127 if
    /// it was not found, 126 otherwise. The message goes to `err`, since 2 may be COMMAND's by now.
    pub fn exec(
        &self,
        command: &[OsString],
        env: &[(OsString, OsString)],
        err: Option<BorrowedFd<'_>>,
    ) -> i32 {
        let word = |word: &OsString| CString::new(word.as_bytes()).unwrap_or_default();
        let pair = |(key, value): &(OsString, OsString)| {
            CString::new([key.as_bytes(), b"=", value.as_bytes()].concat()).unwrap_or_default()
        };
        let argv: Vec<CString> = command.iter().map(word).collect();
        let envp: Vec<CString> = env.iter().map(pair).collect();
        let Some(program) = argv.first() else { return 127 };
        start::sigpipe_as_inherited();
        let Err(errno) = nix::unistd::execvpe(program, &argv, &envp);
        if let Some(err) = err {
            let name = escape(program.as_bytes());
            say(err, self.name, format_args!("{name}: {}", errno.desc()));
        }
        if errno == Errno::ENOENT { 127 } else { 126 }
    }
}

fn say(to: BorrowedFd<'_>, name: &str, message: impl Display) {
    let _ = nix::unistd::write(to, format!("{name}: {message}\n").as_bytes());
}

/// Cuts the command off, which stands after the first `--`.
fn split(words: &mut Vec<OsString>) -> Vec<OsString> {
    match words.iter().position(|word| word == "--") {
        Some(at) => {
            let command = words.split_off(at + 1);
            words.truncate(at);
            command
        }
        None => Vec::new(),
    }
}

/// stdout without a buffer and without panics.
#[derive(Debug)]
pub struct Out(());

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(nix::unistd::write(std::io::stdout().as_fd(), bytes)?)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// stdin without a buffer.
#[derive(Debug)]
pub struct In(());

impl Read for In {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        Ok(nix::unistd::read(std::io::stdin().as_fd(), into)?)
    }
}

fn open_at_start(fd: i32, name: &str) -> Result<()> {
    match start::closed_at_start(fd) {
        true => Err(Error::new(Status::System, format!("{name} is closed"))),
        false => Ok(()),
    }
}

/// stdout for text. Fails if the caller closed it.
pub fn text_stdout() -> Result<Out> {
    open_at_start(1, "stdout").map(|()| Out(()))
}

/// stdout for an image: never a terminal. `cure` says what to do instead.
pub fn binary_stdout(cure: &str) -> Result<Out> {
    open_at_start(1, "stdout")?;
    match std::io::stdout().is_terminal() {
        true => Err(Error::misuse(format!("an image is not written to a terminal; {cure}"))),
        false => Ok(Out(())),
    }
}

/// stdin for an image: never a terminal. `cure` says what to do instead.
pub fn binary_stdin(cure: &str) -> Result<In> {
    open_at_start(0, "stdin")?;
    match std::io::stdin().is_terminal() {
        true => Err(Error::misuse(format!("an image is not read from a terminal; {cure}"))),
        false => Ok(In(())),
    }
}

/// A number of bytes: `64`, `16K`, `1M`, `2G`, `1T`, in powers of 1024.
pub fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return Err(format!("'{text}' is no size: 64, 16K, 1M, 2G")),
    };
    let number: u64 =
        digits.parse().map_err(|_| format!("'{text}' is no size: 64, 16K, 1M, 2G"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("'{text}' is too large"))
}

/// When to use colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set or TERM is `dumb`.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl FromArgValue for Color {
    fn from_arg_value(value: &str) -> Result<Self, String> {
        match value {
            "auto" => Ok(Color::Auto),
            "always" => Ok(Color::Always),
            "never" => Ok(Color::Never),
            _ => Err("it is auto, always or never".into()),
        }
    }
}

impl Color {
    /// Whether stdout gets colours.
    pub fn on(self) -> bool {
        match self {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                std::io::stdout().is_terminal()
                    && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
                    && std::env::var_os("TERM").is_none_or(|value| value != "dumb")
            }
        }
    }
}

/// The columns of the terminal that stdout is, if it is one.
pub fn terminal_width() -> Option<usize> {
    let columns = crate::sys::tty::winsize(std::io::stdout()).ok()?.ws_col;
    (columns > 0).then_some(columns.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
    /// a tool
    #[argh(help_triggers("-h", "--help"))]
    struct Args {
        /// all
        #[argh(switch, short = 'a')]
        all: bool,
        /// bare
        #[argh(switch, short = 'b')]
        bare: bool,
        /// a file
        #[argh(option, short = 'o')]
        output: Option<Arg>,
        /// contents
        #[argh(option)]
        data: Option<String>,
        /// the rest
        #[argh(positional)]
        rest: Vec<Arg>,
    }

    const TOOL: Tool = Tool::new("tool").optional(&[("data", "16M")]);

    fn parse(words: &[&str]) -> Result<Args> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        Ok(TOOL.parse::<Args>(&words)?.unwrap())
    }

    fn rest(words: &[&str]) -> Vec<String> {
        parse(words).unwrap().rest.iter().map(Arg::to_string).collect()
    }

    #[test]
    fn a_value_may_be_glued_to_its_option() {
        for words in [&["-ofile"][..], &["-o", "file"], &["--output=file"], &["--output", "file"]] {
            assert_eq!(parse(words).unwrap().output.unwrap().as_os_str(), "file", "{words:?}");
        }
        assert_eq!(parse(&["-abo-"]).unwrap().output.unwrap().as_os_str(), "-");
    }

    #[test]
    fn short_options_may_be_bundled() {
        let args = parse(&["-ab"]).unwrap();
        assert!(args.all && args.bare);
    }

    #[test]
    fn a_dash_is_a_word_and_two_dashes_end_the_options() {
        assert_eq!(rest(&["-", "-a"]), ["-"]);
        assert_eq!(rest(&["--", "-a", "--"]), ["-a", "--"]);
        assert!(!parse(&["--", "-a"]).unwrap().all);
    }

    #[test]
    fn a_value_that_may_be_left_out_comes_only_with_an_equals_sign() {
        assert_eq!(parse(&["--data"]).unwrap().data.unwrap(), "16M");
        assert_eq!(parse(&["--data=5"]).unwrap().data.unwrap(), "5");
        assert_eq!(rest(&["--data", "5"]), ["5"]);
    }

    #[test]
    fn misuse_is_one_line_that_names_the_option() {
        for (words, why) in [
            (&["--none"][..], "unknown option '--none'; see tool --help"),
            (&["-x"], "unknown option '-x'; see tool --help"),
            (&["--all=yes"], "option '--all' takes no value; see tool --help"),
            (&["-o"], "option '--output' needs a value; see tool --help"),
        ] {
            let err = parse(words).unwrap_err();
            assert_eq!((err.status(), err.to_string().as_str()), (Status::Misuse, why));
        }
    }

    #[test]
    fn bytes_that_are_not_utf_8_arrive_unharmed() {
        let word = OsString::from_vec(vec![b'a', 0xff]);
        let args = TOOL.parse::<Args>(std::slice::from_ref(&word)).unwrap().unwrap();
        assert_eq!(args.rest, [Arg(word)]);
    }

    #[test]
    fn a_size_may_have_a_unit() {
        assert_eq!(size("64"), Ok(64));
        assert_eq!(size("16k"), Ok(16384));
        assert_eq!(size("2GiB"), Ok(2 << 30));
        assert!(size("1X").is_err() && size("").is_err() && size("99999999T").is_err());
    }

    proptest! {
        #[test]
        fn no_command_line_makes_it_panic(
            words in prop::collection::vec(prop::collection::vec(1u8.., 0..6), 0..5),
        ) {
            let words: Vec<OsString> = words.into_iter().map(OsString::from_vec).collect();
            let _ = TOOL.parse::<Args>(&words);
        }
    }
}
