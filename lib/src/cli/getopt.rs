//! The command line as getopt_long(3) takes it: a normaliser in front of argh.
//!
//! argh knows neither `--opt=value`, `-ovalue`, `-abc` nor `-`, and takes only UTF-8. So the words of
//! the user are first read along argh's own table of options ([`argh::ArgsInfo`]) and rewritten in
//! the one form that argh never mistakes: long options, each value as the next word, then `--`, then
//! the positionals. No function here reads or writes anything outside its arguments.

use super::arg::protect;
use crate::text::escape;
use argh::{CommandInfoWithArgs, FlagInfo, FlagInfoKind};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

/// The rules of a tool's command line that argh's table does not hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Syntax {
    /// The name of the tool.
    pub(super) tool: &'static str,
    pub(super) chain: Chain,
    /// Long options (without dashes) whose value may be left out, and the value that is then meant.
    pub(super) optional: &'static [(&'static str, &'static str)],
}

/// The subcommands where the words after `--` are a COMMAND that the tool becomes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Chain {
    Never,
    Always,
    In(&'static [&'static str]),
}

/// The request of a command line.
#[derive(Debug, PartialEq)]
pub(super) enum Request {
    Run,
    Help,
    Version,
}

/// A wrong command line.
#[derive(Debug, PartialEq)]
pub(super) struct Misuse {
    pub(super) reason: String,
    /// True where a COMMAND follows, so that the tool must exit with 125.
    pub(super) chained: bool,
}

impl Syntax {
    /// Returns true if the words after `--` are a COMMAND below these subcommands.
    pub(super) fn chains(&self, subcommands: &[&'static str]) -> bool {
        match self.chain {
            Chain::Never => false,
            Chain::Always => true,
            Chain::In(names) => subcommands.last().is_some_and(|last| names.contains(last)),
        }
    }

    /// Returns true if a COMMAND stands in `rest`, the words behind a misuse.
    fn command_follows(&self, subcommands: &[&'static str], rest: &[OsString]) -> bool {
        let Some(end) = rest.iter().position(|word| word == "--") else { return false };
        let chains = match self.chain {
            Chain::In(names) if subcommands.is_empty() => {
                rest[..end].iter().any(|word| names.iter().any(|name| word == name))
            }
            _ => self.chains(subcommands),
        };
        chains && end + 1 < rest.len()
    }

    /// The value meant by an option whose value is left out; none if it needs one.
    pub(super) fn default_value(&self, option: &FlagInfo) -> Option<&'static str> {
        let name = option.long.strip_prefix("--")?;
        self.optional.iter().find(|(optional, _)| *optional == name).map(|(_, value)| *value)
    }
}

/// A command line while it is rewritten. Its words end up in [`Normalizer::words`].
pub(super) struct Normalizer<'a> {
    pub(super) syntax: &'a Syntax,
    /// The table of the subcommand reached so far.
    pub(super) table: &'a CommandInfoWithArgs,
    /// The subcommands read so far.
    pub(super) subcommands: Vec<&'static str>,
    /// The words for argh, but for the positionals of the last subcommand.
    options: Vec<String>,
    positionals: Vec<String>,
    /// Each value (with its long option) and positional as argh gets it: argh's errors quote them.
    pub(super) given: Vec<(Option<&'static str>, String)>,
    /// The words after `--` where they are a COMMAND.
    pub(super) command: Vec<OsString>,
}

impl<'a> Normalizer<'a> {
    pub(super) fn new(syntax: &'a Syntax, top: &'a CommandInfoWithArgs) -> Normalizer<'a> {
        Normalizer {
            syntax,
            table: top,
            subcommands: Vec::new(),
            options: Vec::new(),
            positionals: Vec::new(),
            given: Vec::new(),
            command: Vec::new(),
        }
    }

    /// Reads the words of the user, without the name of the tool.
    pub(super) fn read(&mut self, args: Vec<OsString>) -> Result<Request, Misuse> {
        let mut rest = args.into_iter();
        let mut options_ended = false;
        while let Some(word) = rest.next() {
            let bytes = word.as_bytes();
            let request = match bytes.strip_prefix(b"-") {
                Some(b"-") if !options_ended => {
                    if self.syntax.chains(&self.subcommands) {
                        self.command = rest.collect();
                        return Ok(Request::Run);
                    }
                    options_ended = true;
                    continue;
                }
                Some([b'-', long @ ..]) if !options_ended => self.long(long, &mut rest),
                Some(short @ [_, ..]) if !options_ended => self.short(short, &mut rest),
                _ => self.operand(bytes).map(|is_subcommand| {
                    options_ended &= !is_subcommand;
                    Request::Run
                }),
            };
            match request {
                Ok(Request::Run) => {}
                Ok(answered) => return Ok(answered),
                Err(reason) => return Err(self.misuse(reason, rest.as_slice())),
            }
        }
        Ok(Request::Run)
    }

    /// Reads `--name` or `--name=value`, given without its dashes.
    fn long(
        &mut self,
        word: &[u8],
        rest: &mut impl Iterator<Item = OsString>,
    ) -> Result<Request, String> {
        let (name, value) = match word.iter().position(|&byte| byte == b'=') {
            Some(at) => (&word[..at], Some(&word[at + 1..])),
            None => (word, None),
        };
        let declared =
            self.table.flags.iter().find(|f| f.long.as_bytes().strip_prefix(b"--") == Some(name));
        // argh's table always has --help as its own.
        let request = match (name, declared) {
            (b"help", _) => Request::Help,
            (b"version", None) => Request::Version,
            (_, Some(flag)) => return self.option(flag, value, rest),
            (_, None) => return Err(format!("unknown option '--{}'", escape(name))),
        };
        match value {
            Some(_) => Err(format!("option '--{}' takes no value", escape(name))),
            None => Ok(request),
        }
    }

    fn option(
        &mut self,
        flag: &FlagInfo<'static>,
        value: Option<&[u8]>,
        rest: &mut impl Iterator<Item = OsString>,
    ) -> Result<Request, String> {
        if matches!(flag.kind, FlagInfoKind::Switch) {
            if value.is_some() {
                return Err(format!("option '{}' takes no value", flag.long));
            }
            self.options.push(flag.long.to_owned());
            return Ok(Request::Run);
        }
        let value = match (value, self.syntax.default_value(flag)) {
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
        Ok(Request::Run)
    }

    /// Reads `-abc` or `-ovalue`, given without its dash.
    fn short(
        &mut self,
        word: &[u8],
        rest: &mut impl Iterator<Item = OsString>,
    ) -> Result<Request, String> {
        let mut tail = word;
        while let Some((letter, length)) = first_char(tail) {
            let (here, after) = tail.split_at(length);
            tail = after;
            match (letter, self.table.flags.iter().find(|f| letter.is_some() && f.short == letter))
            {
                (_, Some(flag)) => {
                    let takes_value = matches!(flag.kind, FlagInfoKind::Option { .. })
                        && self.syntax.default_value(flag).is_none();
                    let value =
                        (takes_value && !tail.is_empty()).then(|| std::mem::take(&mut tail));
                    self.option(flag, value, rest)?;
                }
                (Some('h'), None) => return Ok(Request::Help),
                (Some('V'), None) => return Ok(Request::Version),
                _ if here == word => return Err(format!("unknown option '-{}'", escape(word))),
                _ => {
                    let (here, word) = (escape(here), escape(word));
                    return Err(format!("unknown option '-{here}' in '-{word}'"));
                }
            }
        }
        Ok(Request::Run)
    }

    /// Reads a word that is no option. Returns true if it is a subcommand.
    fn operand(&mut self, word: &[u8]) -> Result<bool, String> {
        let table = self.table;
        if let Some(sub) = table.commands.iter().find(|sub| sub.name.as_bytes() == word) {
            self.options = self.words();
            self.options.push(sub.name.to_owned());
            self.positionals.clear();
            self.subcommands.push(sub.name);
            self.table = &sub.command;
            return Ok(true);
        }
        if !table.commands.is_empty() && table.positionals.is_empty() {
            return Err(format!("unknown command '{}'", escape(word)));
        }
        let word = protect(word);
        self.positionals.push(word.clone());
        self.given.push((None, word));
        Ok(false)
    }

    /// The command line as argh takes it.
    pub(super) fn words(&self) -> Vec<String> {
        let mut words = self.options.clone();
        if !self.positionals.is_empty() {
            words.push("--".to_owned());
            words.extend_from_slice(&self.positionals);
        }
        words
    }

    /// A misuse with the page to read; `rest` are the words that were not read.
    pub(super) fn misuse(&self, reason: String, rest: &[OsString]) -> Misuse {
        let subcommands: String = self.subcommands.iter().flat_map(|name| [" ", name]).collect();
        let follows = self.syntax.command_follows(&self.subcommands, rest);
        Misuse {
            reason: format!("{reason}; see {}{subcommands} --help", self.syntax.tool),
            chained: !self.command.is_empty() || follows,
        }
    }
}

/// The first character and its length in bytes; no character for a byte that begins none.
fn first_char(bytes: &[u8]) -> Option<(Option<char>, usize)> {
    let chunk = bytes.utf8_chunks().next()?;
    match chunk.valid().chars().next() {
        Some(letter) => Some((Some(letter), letter.len_utf8())),
        None => Some((None, chunk.invalid().len())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{CHAIN, SYNTAX, Top, words};
    use super::*;
    use argh::ArgsInfo;
    use std::os::unix::ffi::OsStringExt;

    /// The words for argh, and COMMAND.
    fn read(syntax: Syntax, args: Vec<OsString>) -> Result<(Vec<String>, Vec<OsString>), Misuse> {
        let top = Top::get_args_info();
        let mut line = Normalizer::new(&syntax, &top);
        assert_eq!(line.read(args)?, Request::Run);
        Ok((line.words(), line.command))
    }

    fn normal(line: &str) -> String {
        let (normal, command) = read(SYNTAX, words(line)).unwrap();
        assert!(command.is_empty());
        normal.join(" ")
    }

    fn misuse_of(syntax: Syntax, args: Vec<OsString>) -> Misuse {
        read(syntax, args).unwrap_err()
    }

    fn misuse(line: &str) -> String {
        misuse_of(SYNTAX, words(line)).reason
    }

    #[test]
    fn a_value_may_be_glued_to_its_option() {
        for line in ["--output=x", "--output x", "-ox", "-o x"] {
            assert_eq!(normal(&format!("show {line}")), "show --output x", "{line}");
        }
        assert_eq!(normal("show --output="), "show --output ");
        assert_eq!(normal("show --output=a=b"), "show --output a=b");
    }

    #[test]
    fn a_value_may_begin_with_a_dash() {
        for line in ["-n -5", "-n-5", "--depth=-5"] {
            assert_eq!(normal(&format!("show {line}")), "show --depth -5", "{line}");
        }
        for value in ["--json", "--help", "-", "--"] {
            assert_eq!(normal(&format!("show -o {value}")), format!("show --output {value}"));
        }
    }

    #[test]
    fn short_options_may_be_bundled() {
        assert_eq!(normal("show -Jaox"), "show --json --all --output x");
        assert_eq!(normal("show -Jao x"), "show --json --all --output x");
        assert_eq!(normal("-vv --verbose show"), "--verbose --verbose --verbose show");
    }

    #[test]
    fn options_and_positionals_come_in_any_order() {
        let line = normal("show a -J b -F x c --filter=y");
        assert_eq!(line, "show --json --filter x --filter y -- a b c");
    }

    #[test]
    fn a_bare_dash_is_a_positional() {
        assert_eq!(normal("show - -J -"), "show --json -- - -");
    }

    #[test]
    fn two_dashes_end_the_options() {
        let line = normal("show -a -- -J --help -- show help");
        assert_eq!(line, "show --all -- -J --help -- show help");
    }

    #[test]
    fn a_value_left_out_has_its_default_and_never_takes_the_next_word() {
        assert_eq!(normal("show --data x"), "show --data 1M -- x");
        assert_eq!(normal("show --data=2K"), "show --data 2K");
        assert_eq!(normal("show -dJ x"), "show --data 1M --json -- x");
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
        let misuse = misuse_of(SYNTAX, odd).reason;
        assert_eq!(misuse, "unknown option '-\\xff' in '-J\\xff'; see tool show --help");
    }

    #[test]
    fn a_command_stands_after_two_dashes() {
        let (line, command) = read(CHAIN, words("open 7 -ox -- prog --help -- -V")).unwrap();
        assert_eq!(line, ["open", "--output", "x", "--", "7"]);
        assert_eq!(command, words("prog --help -- -V"));
        assert_eq!(read(CHAIN, words("open 7")).unwrap().1, words(""));
        assert_eq!(read(CHAIN, words("open 7 --")).unwrap().1, words(""));
    }

    #[test]
    fn two_dashes_as_a_value_begin_no_command() {
        let (line, command) = read(CHAIN, words("open -o -- 7 -- prog")).unwrap();
        assert_eq!(line, ["open", "--output", "--", "--", "7"]);
        assert_eq!(command, words("prog"));
    }

    #[test]
    fn a_subcommand_that_runs_no_command_keeps_two_dashes_for_itself() {
        let (line, command) = read(CHAIN, words("show -- -J")).unwrap();
        assert_eq!((line.join(" ").as_str(), command.len()), ("show -- -J", 0));
    }

    #[test]
    fn a_misuse_tells_if_a_command_follows() {
        for (line, chained) in [
            ("open --bogus 7 -- prog", true),
            ("--bogus open 7 -- prog", true),
            ("open --bogus 7 --", false),
            ("open --bogus 7", false),
            ("--bogus show -- x", false),
            ("show --bogus -- open", false),
        ] {
            assert_eq!(misuse_of(CHAIN, words(line)).chained, chained, "{line}");
        }
        assert!(!misuse_of(SYNTAX, words("open --bogus -- prog")).chained);
        let always = Syntax { chain: Chain::Always, ..SYNTAX };
        assert!(misuse_of(always, words("--bogus -- prog")).chained);
    }

    #[test]
    fn a_byte_that_begins_no_character_is_one_by_itself() {
        assert_eq!(first_char("éx".as_bytes()), Some((Some('é'), 2)));
        assert_eq!(first_char(b"\xffx"), Some((None, 1)));
        assert_eq!(first_char(b""), None);
    }
}
