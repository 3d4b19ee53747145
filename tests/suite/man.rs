//! Each option of --help has its paragraph in the man page, and each paragraph its option.

use crate::harness::{pipeline, which};
use std::collections::BTreeSet;
use std::path::Path;

fn page(name: &str) -> String {
    let path = format!("{}/../man/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|err| panic!("{path}: {err}"))
}

fn long_options(text: &str) -> BTreeSet<String> {
    let words = text.lines().filter(|line| line.starts_with("  -")).flat_map(str::split_whitespace);
    words
        .filter_map(|word| word.strip_prefix("--"))
        .map(|word| word.trim_end_matches(',').to_owned())
        .collect()
}

fn described(page: &str) -> BTreeSet<String> {
    let items = page.lines().filter(|line| line.starts_with(".It Fl"));
    let words = items.flat_map(str::split_whitespace);
    words.filter_map(|word| word.strip_prefix('-')).map(str::to_owned).collect()
}

/// The subcommands of a tool, from the end of its help; an empty word for a tool that has none.
fn subcommands(help: &str) -> Vec<String> {
    let Some((_, list)) = help.split_once("\nCommands:\n") else { return vec![String::new()] };
    // The name of a subcommand is indented by two spaces, and the rest of its description by more.
    let names = list.lines().filter_map(|line| line.strip_prefix("  "));
    let names = names.filter(|line| !line.starts_with(' '));
    names.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn help_and_man_pages_name_the_same_options() {
    for (name, count) in [("fdscan", 1), ("fdrestore", 1), ("fdimg", 6), ("ttyctl", 5)] {
        let commands = subcommands(&pipeline(&[&[name, "--help"]]).quiet().text());
        assert!(commands.len() >= count, "{name}: {commands:?}");
        let mut helped = BTreeSet::new();
        for command in &commands {
            let args = [command.as_str(), "--help"];
            let args = if command.is_empty() { &args[1..] } else { &args[..] };
            let words = [&[name][..], args].concat();
            helped.extend(long_options(&pipeline(&[&words]).quiet().text()));
        }
        assert_eq!(helped, described(&page(&format!("{name}.1"))), "{name}");
    }
}

#[test]
fn the_man_pages_pass_mandoc_lint() {
    needs!(which("mandoc").is_some(), "mandoc is missing");
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../man");
    let lint = format!("mandoc -Tlint -Wwarning {dir}/*.[1-8]");
    assert_eq!(pipeline(&[&["sh", "-c", &lint]]).quiet().text(), "");
}

#[test]
fn bash_completes_subcommands_options_and_files() {
    let completions = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bins/fdimg/completions");
    let script = "source \"$0/fdimg.bash\"
        ask() { COMP_WORDS=(fdimg \"$@\"); COMP_CWORD=$#; _fdimg; echo \"${COMPREPLY[*]}\"; }
        ask ver; ask show --js; ask show -F ''; ask show --color a; ask show ./a";
    let words = ["bash", "-c", script, completions.to_str().unwrap()];
    // Where neither an option nor its word is meant, bash itself completes files.
    assert_eq!(pipeline(&[&words]).quiet().text(), "verify\n--json\n\nauto always\n\n");
}
