//! The command line as getopt_long(3) takes it.
//!
//! argh parses, but it knows neither `--opt=value`, `-ovalue`, `-abc` nor `-`, takes only UTF-8, and
//! ends misuse with 1. So each command line is first walked along argh's own table of the options
//! ([`ArgsInfo`]) and put into the one form that argh never mistakes: long options, each with its
//! value as the next word, then `--`, then the rest.

use super::arg::{PROTECTED, protect, quoted, raw, why_raw};
use super::{Chain, Tool};
use crate::text::escape;
use argh::{ArgsInfo, CommandInfoWithArgs, FlagInfo, FlagInfoKind, FromArgs};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

impl Tool {
    /// Whether a COMMAND is taken after `--` on this level.
    pub(super) fn chains(&self, path: &[&'static str]) -> bool {
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
    pub(super) fn default_of(&self, flag: &FlagInfo) -> Option<&'static str> {
        let name = flag.long.strip_prefix("--")?;
        self.optional.iter().find(|(optional, _)| *optional == name).map(|(_, value)| *value)
    }

    pub(super) fn parse<A: FromArgs + ArgsInfo>(
        &self,
        args: Vec<OsString>,
    ) -> Result<Parsed<A>, Misuse> {
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

/// What a command line asks for.
#[derive(Debug)]
pub(super) enum Parsed<A> {
    Run(A, Vec<OsString>),
    Say(String),
}

/// A wrong command line, and whether a COMMAND stands at its end.
#[derive(Debug, PartialEq)]
pub(super) struct Misuse {
    pub(super) reason: String,
    pub(super) chained: bool,
}

/// Why a walk along the command line stopped.
#[derive(Debug, PartialEq)]
pub(super) enum Stop {
    End,
    Help,
    Version,
}

/// A walk along a command line, on the level of the (sub)command reached so far.
pub(super) struct Walk<'a> {
    pub(super) tool: &'a Tool,
    pub(super) level: &'a CommandInfoWithArgs,
    /// The subcommands entered.
    pub(super) path: Vec<&'static str>,
    /// What argh gets, but for the positionals of this level.
    options: Vec<String>,
    positionals: Vec<String>,
    /// Every word of the user's own, with its option, to recognise it in what argh says.
    pub(super) given: Vec<(Option<&'static str>, String)>,
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
}

/// The first character and its length; no character for a byte that begins none.
fn first_char(bytes: &[u8]) -> Option<(Option<char>, usize)> {
    let chunk = bytes.utf8_chunks().next()?;
    match chunk.valid().chars().next() {
        Some(letter) => Some((Some(letter), letter.len_utf8())),
        None => Some((None, chunk.invalid().len())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::arg::Arg;
    use super::super::usage::missing;
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStringExt;
    use std::path::Path;

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
    }
}
