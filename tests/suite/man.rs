//! Each option has a paragraph in the man page, a place in its SYNOPSIS, and a test. The options are
//! read from `--help`, which prints their definitions.

use crate::harness::{TOOLS, pipeline, which};
use std::collections::BTreeSet;
use std::path::Path;

/// An option of a tool, as `--help` shows it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Opt {
    /// `--missing`
    long: String,
    /// `-i`
    short: Option<String>,
    /// The words that it takes: `fail`, `null`, `skip`.
    words: Vec<String>,
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn page(tool: &str) -> String {
    read(&root().join(format!("man/{tool}.1")))
}

/// The lines of a section of `--help`, its continued lines left out.
fn section<'a>(help: &'a str, title: &str) -> Vec<&'a str> {
    let lines = help.lines().skip_while(move |line| *line != title).skip(1);
    lines
        .take_while(|line| line.starts_with("  "))
        .filter(|line| !line.starts_with("   "))
        .map(str::trim)
        .collect()
}

/// The options of a command, without those that every command has.
fn options_in(help: &str) -> Vec<Opt> {
    let usage = help.lines().next().unwrap_or_default();
    let option = |line: &str| {
        let names: Vec<&str> =
            line.split_whitespace().take_while(|it| it.starts_with('-')).collect();
        let (short, long) = match names[..] {
            [short, long] => (Some(short.trim_end_matches(',').to_owned()), long),
            [long] => (None, long),
            _ => panic!("not an option: {line}"),
        };
        let taken = [short.as_deref().unwrap_or(long), long].into_iter().find_map(|name| {
            let rest = usage
                .split_once(&format!("[{name} <"))
                .or(usage.split_once(&format!("[{name}[=<")));
            rest?.1.split('>').next()
        });
        let listed = taken.filter(|it| it.contains('|'));
        let words = listed.iter().flat_map(|it| it.split('|')).map(str::to_owned).collect();
        Opt { long: long.to_owned(), short, words }
    };
    let common = ["--help", "--version"];
    section(help, "Options:")
        .into_iter()
        .map(option)
        .filter(|it| !common.contains(&&*it.long))
        .collect()
}

/// The options of a tool and of all its subcommands.
fn options(tool: &str) -> BTreeSet<Opt> {
    let help = |words: &[&str]| pipeline(&[words]).quiet().text();
    let top = help(&[tool, "--help"]);
    let commands = section(&top, "Commands:").into_iter().filter_map(|line| line.split(' ').next());
    let below = commands.flat_map(|command| options_in(&help(&[tool, command, "--help"])));
    below.chain(options_in(&top)).collect()
}

/// The paragraph of an option in a man page: from its `.It Fl` to the next item.
fn paragraph<'a>(page: &'a str, long: &str) -> Option<&'a str> {
    let name = format!(" {}", &long[1..]);
    let items = page.split("\n.It ").skip(1);
    let of_option = |item: &&str| {
        let head = item.lines().next().unwrap_or_default();
        let mut names = head.split(&name[..]).skip(1);
        head.starts_with("Fl") && names.any(|rest| rest.is_empty() || rest.starts_with(' '))
    };
    items.into_iter().find(of_option)
}

/// The options of the SYNOPSIS: `-t`, `--tree`.
fn synopsis(page: &str) -> BTreeSet<String> {
    let text = page.split("\n.Sh SYNOPSIS\n").nth(1).unwrap_or_default();
    let text = text.split("\n.Sh ").next().unwrap_or_default();
    let words: Vec<&str> = text.split_whitespace().collect();
    let flags =
        words.windows(2).filter(|pair| pair[0] == "Fl" || pair[0] == ".Fl").map(|pair| pair[1]);
    let named = |flag: &str| match flag.strip_prefix('-') {
        Some(long) => vec![format!("--{long}")],
        None => flag.chars().map(|letter| format!("-{letter}")).collect(),
    };
    flags.flat_map(named).collect()
}

/// Every string in the suite and in the unit tests of the tools that could be an option.
fn tested() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![root().join("tests/suite"), root().join("bins")];
    while let Some(folder) = folders.pop() {
        for entry in
            std::fs::read_dir(&folder).expect("a folder").map(|it| it.expect("an entry").path())
        {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|it| it == "rs") {
                let text = read(&entry);
                let text = match entry.starts_with(root().join("bins")) {
                    true => text.split("#[cfg(test)]").nth(1).unwrap_or_default(),
                    false => &text,
                };
                let word = |it: char| !it.is_ascii_alphanumeric() && it != '-';
                found.extend(text.split(word).filter(|it| it.starts_with('-')).map(str::to_owned));
            }
        }
    }
    found
}

#[test]
fn every_option_has_its_paragraph_its_place_in_the_synopsis_and_a_test() {
    let tested = tested();
    let mut missing = Vec::new();
    for tool in TOOLS {
        let (page, options) = (page(tool), options(tool));
        let synopsis = synopsis(&page);
        assert!(!options.is_empty(), "{tool} --help shows options");
        for Opt { long, short, words } in &options {
            let file = format!("man/{tool}.1");
            let names = [Some(long), short.as_ref()];
            let is_in = |set: &BTreeSet<String>| names.iter().flatten().any(|it| set.contains(*it));
            match paragraph(&page, long) {
                None => missing.push(format!("{file}: a paragraph '.It Fl {}'", &long[1..])),
                Some(text) => {
                    let head = text.lines().next().unwrap_or_default();
                    let letter = short.as_ref().map(|it| format!("Fl {}", &it[1..]));
                    if letter.is_some_and(|letter| !head.starts_with(&letter)) {
                        missing.push(format!("{file}: the short name in '.It {head}'"));
                    }
                    for word in words.iter().filter(|it| !text.contains(&format!("Ql {it}"))) {
                        missing.push(format!("{file}: '.Ql {word}' in the paragraph of {long}"));
                    }
                }
            }
            if !is_in(&synopsis) {
                missing.push(format!("{file}: {long} in the SYNOPSIS"));
            }
            if !is_in(&tested) {
                missing.push(format!("tests/suite: a test of {tool} {long}"));
            }
        }
        let known: BTreeSet<&str> = options.iter().map(|it| &it.long[2..]).collect();
        let items = page.lines().filter(|line| line.starts_with(".It Fl"));
        let described =
            items.flat_map(|line| line.split_whitespace().filter_map(|it| it.strip_prefix('-')));
        let gone = described.filter(|it| !known.contains(it) && !["help", "version"].contains(it));
        missing.extend(
            gone.map(|it| format!("{tool}: the option --{it} that man/{tool}.1 describes")),
        );
        for common in ["--help", "--version"] {
            assert!(paragraph(&page, common).is_some(), "man/{tool}.1 describes {common}");
        }
    }
    assert!(missing.is_empty(), "missing:\n  {}", missing.join("\n  "));
}

#[test]
fn the_man_pages_pass_mandoc_lint() {
    needs!(which("mandoc").is_some(), "mandoc is missing");
    let dir = root().join("man");
    let lint = format!("mandoc -Tlint -Wwarning {}/*.[1-8]", dir.display());
    assert_eq!(pipeline(&[&["sh", "-c", &lint]]).quiet().text(), "");
}

#[test]
fn bash_completes_subcommands_options_words_and_files() {
    let completions = root().join("bins/fdimg/completions");
    let script = "source \"$0/fdimg.bash\"
        ask() { COMP_WORDS=(fdimg \"$@\"); COMP_CWORD=$#; _fdimg; echo \"${COMPREPLY[*]}\"; }
        ask ver; ask show --js; ask show -F ''; ask show --color a; ask show ./a";
    let words = ["bash", "-c", script, completions.to_str().expect("a path")];
    // Where neither an option nor its word is meant, bash itself completes files.
    assert_eq!(pipeline(&[&words]).quiet().text(), "verify\n--json\n\nauto always\n\n");
}

#[test]
fn the_shells_take_the_completions() {
    let mut ran = 0;
    for (shell, file) in [("bash", "TOOL.bash"), ("zsh", "_TOOL"), ("fish", "TOOL.fish")] {
        if which(shell).is_none() {
            continue;
        }
        for tool in TOOLS {
            let name = format!("bins/{tool}/completions/{}", file.replace("TOOL", tool));
            let path = root().join(name).display().to_string();
            pipeline(&[&[shell, "-n", &path]]).ok();
            ran += 1;
        }
    }
    needs!(ran > 0, "neither bash, zsh nor fish is there");
}
