//! argh behind the normaliser of [`super::getopt`]: its structs filled in, its help and its errors
//! in the form that all tools share.

use super::arg::{Protected, quoted, why_protected};
use super::getopt::{Misuse, Normalizer, Request, Syntax};
use argh::{ArgsInfo, FlagInfoKind, FromArgs};
use std::ffi::OsString;

/// A command line that was understood.
#[derive(Debug)]
pub(super) enum Parsed<A> {
    /// The arguments, and the words of COMMAND if there are any.
    Run(A, Vec<OsString>),
    /// The text that `--help` or `--version` asks for.
    Print(String),
}

/// Parses the words of the user, without the name of the tool.
pub(super) fn parse<A: FromArgs + ArgsInfo>(
    syntax: &Syntax,
    args: Vec<OsString>,
) -> Result<Parsed<A>, Misuse> {
    let top = A::get_args_info();
    let tool = syntax.tool;
    let mut line = Normalizer::new(syntax, &top);
    match line.read(args)? {
        Request::Version => {
            return Ok(Parsed::Print(format!("{tool} {}\n", env!("CARGO_PKG_VERSION"))));
        }
        Request::Help => {
            let mut words = line.subcommands.clone();
            words.push("--help");
            let text = match A::from_args(&[tool], &words) {
                Err(exit) if exit.status.is_ok() => exit.output,
                _ => format!("Usage: {tool}\n\nOptions:"),
            };
            return Ok(Parsed::Print(help(&line, &text)));
        }
        Request::Run => {}
    }
    let words = line.words();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let protected = Protected::expect(line.given.iter().map(|(_, word)| word));
    let parsed = A::from_args(&[tool], &words);
    let as_text = protected.not_taken();
    match parsed {
        // argh's own --help is never passed on, so this is a struct that ends argh by itself.
        Err(exit) if exit.status.is_ok() => Ok(Parsed::Print(exit.output)),
        Err(exit) => Err(line.misuse(reason(&line, &exit.output, &as_text), &[])),
        Ok(args) => match as_text.first() {
            Some(word) => {
                let reason = format!("argument {}: {}", quoted(word), why_protected(word));
                Err(line.misuse(reason, &[]))
            }
            None => Ok(Parsed::Run(args, line.command)),
        },
    }
}

/// argh's error as one line. `as_text` are the protected words that no argument of bytes has taken.
fn reason(line: &Normalizer, error: &str, as_text: &[String]) -> String {
    for (option, word) in &line.given {
        // The beginning of argh's error, and the argument that it is about.
        let subjects: Vec<(String, String)> = match option {
            Some(long) => {
                vec![(format!("Error parsing option '{long}'"), format!("option '{long}'"))]
            }
            None => {
                let names = line.table.positionals.iter().map(|positional| positional.name);
                names
                    .map(|n| (format!("Error parsing positional argument '{n}'"), n.into()))
                    .collect()
            }
        };
        for (start, subject) in subjects {
            let why = error.strip_prefix(&start);
            let why = why.and_then(|why| why.strip_prefix(" with value '"));
            let why = why.and_then(|why| why.strip_prefix(word.as_str()));
            match why.and_then(|why| why.strip_prefix("': ")) {
                Some(_) if as_text.contains(word) => {
                    return format!("{subject}: {}: {}", quoted(word), why_protected(word));
                }
                Some("duplicate values provided\n") => return format!("{subject} is given twice"),
                Some(why) => return format!("{subject}: {}: {}", quoted(word), plain(why)),
                None => {}
            }
        }
    }
    if let Some(word) = error.strip_prefix("Unrecognized argument: ") {
        let word = quoted(word.trim_end_matches('\n'));
        return match line.syntax.chains(&line.subcommands) {
            true => format!("unexpected argument {word}: COMMAND goes after '--'"),
            false => format!("unexpected argument {word}"),
        };
    }
    missing(error).unwrap_or_else(|| one_line(error))
}

/// The reason why a value is wrong, as one line; std's words about integers made plain.
fn plain(why: &str) -> String {
    match one_line(why).as_str() {
        "invalid digit found in string" | "cannot parse integer from empty string" => {
            "not a whole number".to_owned()
        }
        "number too large to fit in target type" => "too large a number".to_owned(),
        "number too small to fit in target type" => "too small a number".to_owned(),
        other => other.to_owned(),
    }
}

/// argh's list of missing arguments as one line; none if the error is another one.
fn missing(error: &str) -> Option<String> {
    let mut parts: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in error.lines() {
        match line {
            "Required positional arguments not provided:" => parts.push(("argument", Vec::new())),
            "Required options not provided:" => parts.push(("option", Vec::new())),
            "One of the following subcommands must be present:" => {
                parts.push(("command, one of", Vec::new()));
            }
            _ => parts.last_mut()?.1.push(line.strip_prefix("    ")?),
        }
    }
    let part = |(title, names): &(&str, Vec<&str>)| {
        // The first command that argh lists is its own `help`, which the tools do not have.
        let skipped = if title.starts_with("command") { 1 } else { 0 };
        let names = &names[names.len().min(skipped)..];
        format!("missing {title} {}", names.join(", "))
    };
    let parts: Vec<String> = parts.iter().map(part).collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// The lines of a text as one, with commas between them.
fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join(", ")
}

/// argh's help with the options and the COMMAND that argh does not know of.
fn help(line: &Normalizer, text: &str) -> String {
    const HELP: &str = "  -h, --help        display usage information\n";
    const VERSION: &str = "  -V, --version     display the version\n";
    let (usage, rest) = text.split_once("\n\n").unwrap_or((text, ""));
    let mut usage = usage.to_owned();
    for flag in line.table.flags {
        let FlagInfoKind::Option { arg_name } = flag.kind else { continue };
        if line.syntax.default_value(flag).is_some() {
            let long = flag.long;
            let short = flag.short.map_or(long.to_owned(), |short| format!("-{short}"));
            let optional = format!("[{long}[=<{arg_name}>]]");
            usage = usage.replace(&format!("[{short} <{arg_name}>]"), &optional);
        }
    }
    if line.syntax.chains(&line.subcommands) {
        usage = usage.replace(" [--] ", " ");
        usage.push_str(" [-- COMMAND...]");
    }
    let declares_version = line.table.flags.iter().any(|flag| flag.long == "--version");
    let common = [HELP, if declares_version { "" } else { VERSION }].concat();
    let mut help = format!("{usage}\n\n");
    let mut has_common = false;
    for line in rest.trim_end().lines() {
        // The line that argh writes for its own --help.
        let of_help = line.starts_with("  ") && line.ends_with("display usage information");
        match of_help && !has_common {
            true => help.push_str(&common),
            false => help.extend([line, "\n"]),
        }
        has_common |= of_help;
    }
    if !has_common {
        help.push_str(&common);
    }
    help
}

#[cfg(test)]
mod tests {
    use super::super::arg::Arg;
    use super::super::getopt::Chain;
    use super::super::sample::{CHAIN, Open, SYNTAX, Show, Top, Verb, words};
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStringExt;
    use std::path::Path;

    fn show(args: Vec<OsString>) -> Show {
        match parse::<Top>(&SYNTAX, args) {
            Ok(Parsed::Run(Top { verb: Verb::Show(show), .. }, command)) if command.is_empty() => {
                show
            }
            other => panic!("{other:?}"),
        }
    }

    fn printed(syntax: Syntax, line: &str) -> String {
        match parse::<Top>(&syntax, words(line)) {
            Ok(Parsed::Print(text)) => text,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn misuse_of(syntax: Syntax, args: Vec<OsString>) -> Misuse {
        parse::<Top>(&syntax, args).unwrap_err()
    }

    fn misuse(line: &str) -> String {
        misuse_of(SYNTAX, words(line)).reason
    }

    fn arg(word: &str) -> Arg {
        OsString::from(word).into()
    }

    #[test]
    fn the_structs_get_what_the_words_say() {
        let seen = show(words("show -Jad -ox -n-5 -F a,b --filter=c - -- -J"));
        let want = Show {
            json: true,
            all: true,
            output: Some(arg("x")),
            depth: Some(-5),
            data: Some("1M".into()),
            filters: vec!["a,b".into(), "c".into()],
            files: vec![arg("-"), arg("-J")],
        };
        assert_eq!(seen, want);
        assert!(seen.files[0].is_dash());
        let Ok(Parsed::Run(top, _)) = parse::<Top>(&SYNTAX, words("-vv --verbose show")) else {
            panic!()
        };
        assert_eq!(top.verbose, 3);
        let line = words("open 7 -o -- -- prog -x");
        let Ok(Parsed::Run(top, command)) = parse::<Top>(&CHAIN, line) else { panic!() };
        assert_eq!(top.verb, Verb::Open(Open { output: Some(arg("--")), pid: 7 }));
        assert_eq!(command, words("prog -x"));
    }

    #[test]
    fn every_misuse_is_one_line() {
        for (line, reason) in [
            ("", "missing command, one of show, open; see tool --help"),
            ("shwo", "unknown command 'shwo'; see tool --help"),
            ("help", "unknown command 'help'; see tool --help"),
            ("open", "missing argument pid; see tool open --help"),
            ("open 1 2", "unexpected argument '2'; see tool open --help"),
            ("show -o", "option '--output' needs a value; see tool show --help"),
            ("show -ox -oy", "option '--output' is given twice; see tool show --help"),
            ("show -nx", "option '--depth': 'x': not a whole number; see tool show --help"),
            ("show --depth=", "option '--depth': '': not a whole number; see tool show --help"),
            (
                "show -n 9999999999",
                "option '--depth': '9999999999': too large a number; see tool show --help",
            ),
            (
                "show -n -9999999999",
                "option '--depth': '-9999999999': too small a number; see tool show --help",
            ),
            ("open x", "pid: 'x': not a whole number; see tool open --help"),
            ("open -- -1", "pid: '-1': not a whole number; see tool open --help"),
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
            let help = printed(SYNTAX, line);
            assert!(help.starts_with("Usage: tool [-v] <command>"), "{help}");
        }
        for line in ["show -h", "show --help", "show -Jh", "-v show x -h"] {
            let help = printed(SYNTAX, line);
            assert!(help.starts_with("Usage: tool show "), "{help}");
        }
        for line in ["-V", "--version", "-vV", "show -JV", "open --version"] {
            let version = concat!("tool ", env!("CARGO_PKG_VERSION"), "\n");
            assert_eq!(printed(SYNTAX, line), version, "{line}");
        }
        assert_eq!(misuse("--bogus --help"), "unknown option '--bogus'; see tool --help");
    }

    #[test]
    fn help_shows_the_options_that_argh_does_not_know() {
        for line in ["-h", "show -h", "open -h"] {
            let help = printed(SYNTAX, line);
            let common = "\n  -h, --help        display usage information\n  \
                          -V, --version     display the version\n";
            assert_eq!(help.matches(common).count(), 1, "{help}");
            assert_eq!(help.matches("display usage information").count(), 1, "{help}");
        }
        let help = printed(SYNTAX, "show -h");
        assert!(help.contains(" [--data[=<data>]]"), "{help}");
        let help = printed(CHAIN, "open -h");
        let usage = "Usage: tool open [-o <output>] <pid> [-- COMMAND...]\n";
        assert!(help.starts_with(usage), "{help}");
    }

    #[test]
    fn an_unexpected_word_of_a_chain_loader_is_told_where_command_goes() {
        let misuse = misuse_of(CHAIN, words("open 7 prog"));
        let reason = "unexpected argument 'prog': COMMAND goes after '--'; see tool open --help";
        assert_eq!(misuse, Misuse { reason: reason.into(), chained: false });
    }

    #[test]
    fn a_misuse_that_argh_finds_tells_if_a_command_follows() {
        assert!(misuse_of(CHAIN, words("open x -- prog")).chained);
        assert!(misuse_of(CHAIN, words("open -- prog")).chained);
        assert!(!misuse_of(CHAIN, words("open x --")).chained);
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
                let show = show([words("show"), args, vec![word.clone()]].concat());
                assert_eq!(show.output.unwrap().as_os_str(), word);
                assert_eq!(show.files[0].as_path(), Path::new(&word));
            }
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_misuse_where_text_is_due() {
        let with = |line: &str, last: &[u8]| {
            let last = OsString::from_vec(last.to_vec());
            misuse_of(SYNTAX, [words(line), vec![last]].concat()).reason
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
        let reason = format!("argument '\\xff': not UTF-8; {see}");
        assert_eq!(misuse_of(SYNTAX, args).reason, reason);
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
        fn no_command_line_panics_and_every_misuse_is_one_line(
            args in prop::collection::vec(word(), 0..8),
        ) {
            for syntax in [SYNTAX, CHAIN, Syntax { chain: Chain::Always, ..SYNTAX }] {
                if let Err(misuse) = parse::<Top>(&syntax, args.clone()) {
                    prop_assert!(!misuse.reason.contains(char::is_control), "{:?}", misuse);
                }
            }
        }
    }
}
