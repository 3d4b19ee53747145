//! Compares the completions of the shells with the options of a tool. The test of each tool calls
//! this, since only the tool has its options.

use argh::{ArgsInfo, FlagInfo, FlagInfoKind, Optionality};
use argh_complete::{Generator, bash::Bash, fish::Fish, zsh::Zsh};
use std::path::Path;

/// The option that every tool has besides those in argh's table.
static VERSION: FlagInfo<'_> = FlagInfo {
    kind: FlagInfoKind::Switch,
    optionality: Optionality::Optional,
    long: "--version",
    short: Some('V'),
    description: "print the version",
    hidden: false,
};

fn copy<'a>(flag: &FlagInfo<'a>) -> FlagInfo<'a> {
    let &FlagInfo { long, short, description, hidden, .. } = flag;
    let kind = match flag.kind {
        FlagInfoKind::Switch => FlagInfoKind::Switch,
        FlagInfoKind::Option { arg_name } => FlagInfoKind::Option { arg_name },
    };
    FlagInfo { kind, optionality: Optionality::Optional, long, short, description, hidden }
}

/// zsh completes files only if told so: here as values of options and as operands.
fn with_files(zsh: &str) -> String {
    zsh.replace("'': :'", "'': :_default'")
        .replace("\n        && return 0", "\n        '*: :_default' \\\n        && return 0")
}

/// Fails unless `dir` (the tool's `completions/`) contains what is generated from its options. With
/// `FDKIT_WRITE=1` the files are written instead.
pub fn hold<A: ArgsInfo>(tool: &str, dir: &str) {
    let mut info = A::get_args_info();
    let flags: Vec<FlagInfo<'_>> = info.flags.iter().chain([&VERSION]).map(copy).collect();
    info.flags = &flags;
    info.name = tool;
    for (name, text) in [
        (format!("{tool}.bash"), Bash::generate(tool, &info)),
        (format!("_{tool}"), with_files(&Zsh::generate(tool, &info))),
        // -x exists in fish 4 only; -o is the same and exists in fish 3, too.
        (format!("{tool}.fish"), Fish::generate(tool, &info).replace(" -xpc", " -opc")),
    ] {
        let path = Path::new(dir).join(&name);
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        let text = lines.join("\n") + "\n";
        if std::env::var_os("FDKIT_WRITE").is_some() {
            std::fs::create_dir_all(dir).expect("a folder");
            std::fs::write(&path, &text).expect("written");
        }
        let there = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(there == text, "{name} is old: FDKIT_WRITE=1 cargo test completions");
    }
}
