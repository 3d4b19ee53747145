//! Compares the completions of the shells with the options of a tool. The test of each tool calls
//! this, since only the tool has its options.

use argh::{
    ArgsInfo, CommandInfoWithArgs, FlagInfo, FlagInfoKind, FromArgs, Optionality, SubCommandInfo,
};
use argh_complete::{Generator, bash::Bash, fish::Fish, zsh::Zsh};
use fdkit::cli::Tool;
use fdkit::word_enum::must_be;
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

/// A copy of an option for the generators. An option whose value may be left out takes no next
/// word, so to them it is a switch.
fn copy<'a>(tool: &Tool, flag: &FlagInfo<'a>) -> FlagInfo<'a> {
    let &FlagInfo { long, short, description, hidden, .. } = flag;
    let kind = match flag.kind {
        FlagInfoKind::Option { arg_name } if !tool.is_optional(flag) => {
            FlagInfoKind::Option { arg_name }
        }
        _ => FlagInfoKind::Switch,
    };
    FlagInfo { kind, optionality: Optionality::Optional, long, short, description, hidden }
}

/// argh's table of a tool as the generators need it. What it is made of is never freed.
fn table(tool: &Tool, name: &'static str, it: CommandInfoWithArgs) -> CommandInfoWithArgs {
    let version = (name == tool.name()).then_some(&VERSION);
    let flags: Vec<_> = it.flags.iter().chain(version).map(|flag| copy(tool, flag)).collect();
    let sub = |it: SubCommandInfo| SubCommandInfo {
        name: it.name,
        command: table(tool, it.name, it.command),
    };
    CommandInfoWithArgs {
        name,
        flags: flags.leak(),
        commands: it.commands.into_iter().map(sub).collect(),
        ..it
    }
}

/// The options of all subcommands, each with the subcommand that it belongs to.
fn options(it: &CommandInfoWithArgs) -> Vec<(Option<&'static str>, &'static FlagInfo<'static>)> {
    let subs = it
        .commands
        .iter()
        .flat_map(|sub| sub.command.flags.iter().map(|flag| (Some(sub.name), flag)));
    it.flags.iter().map(|flag| (None, flag)).chain(subs).collect()
}

/// The words that an option takes, if its `arg_name` lists them: `fail|null|skip`.
fn words(flag: &FlagInfo<'_>) -> Option<Vec<String>> {
    let FlagInfoKind::Option { arg_name } = flag.kind else { return None };
    let listed = arg_name.contains('|') && !arg_name.contains(|it: char| it.is_ascii_uppercase());
    listed.then(|| arg_name.split('|').map(str::to_owned).collect())
}

/// Adds the words of an option to the completions of bash, which have its name as a case.
fn bash_words(bash: &str, flag: &FlagInfo<'_>, words: &str) -> String {
    let short = flag.short.map(|short| format!(" | -{short}"));
    let case =
        format!("{}{})\n{}COMPREPLY=(", flag.long, short.unwrap_or_default(), " ".repeat(20));
    bash.replace(
        &format!("                {case})"),
        &format!("                {case} $(compgen -W \"{words}\" -- \"${{cur}}\") )"),
    )
}

/// Replaces the action of an option in the completions of zsh.
fn zsh_value(zsh: &str, flag: &FlagInfo<'_>, change: impl Fn(&str) -> String) -> String {
    let plain = format!("'{}[", flag.long);
    let bundled = format!(",{}}}'[", flag.long);
    let line = |line: &str| match line.trim_start().starts_with(&plain) || line.contains(&bundled) {
        true => change(line),
        false => line.to_owned(),
    };
    zsh.lines().map(|it| line(it) + "\n").collect()
}

/// Adds the words of an option to the completions of fish.
fn fish_words(fish: &str, flag: &FlagInfo<'_>, words: &str) -> String {
    let name = flag.long.trim_start_matches('-');
    let short = flag.short.map(|short| format!(" -s {short}")).unwrap_or_default();
    let option = format!(" -l {name}{short}");
    fish.replace(&format!("{option} -r"), &format!("{option} -x -a '{words}'"))
}

/// Fails unless each option that takes one of a few words lists them as its `arg_name`, which is
/// where --help and the completions have them from.
fn check_words<A: ArgsInfo + FromArgs>(tool: &Tool) {
    const NO_WORD: &str = "no such word";
    for (sub, flag) in options(&A::get_args_info()) {
        let FlagInfoKind::Option { arg_name } = flag.kind else { continue };
        let line: Vec<&str> = sub.into_iter().chain([flag.long, NO_WORD]).collect();
        let error = A::from_args(&[tool.name()], &line).err().map(|it| it.output);
        let error = error.unwrap_or_default();
        let error = error.split_once(&format!("'{NO_WORD}': ")).map(|(_, why)| why.trim());
        let needs = error.filter(|why| why.starts_with("must be ")).map(str::to_owned);
        let listed = words(flag)
            .map(|words| must_be(&words.iter().map(String::as_str).collect::<Vec<&str>>()));
        assert_eq!(
            listed, needs,
            "{}: arg_name = \"{arg_name}\" must list the words of its type: \"one|two|three\"",
            flag.long
        );
    }
}

/// Fails unless `dir`, the `completions/` of the tool, holds the completions of its options. With
/// `FDKIT_WRITE=1` they are written instead.
pub fn hold<A: ArgsInfo + FromArgs>(tool: &Tool, dir: &str) {
    check_words::<A>(tool);
    let name = tool.name();
    let options = options(&A::get_args_info());
    let table = table(tool, name, A::get_args_info());
    let mut bash = Bash::generate(name, &table);
    // zsh completes no files unless it is told to: here as values of options and as operands.
    let mut zsh = Zsh::generate(name, &table)
        .replace("'': :'", "'': :_default'")
        .replace("\n        && return 0", "\n        '*: :_default' \\\n        && return 0");
    // -x of commandline is of fish 4; -o is the same, and of fish 3 too.
    let mut fish = Fish::generate(name, &table).replace(" -xpc", " -opc");
    for (_, flag) in options {
        let words = words(flag).map(|words| words.join(" "));
        let action = words.as_ref().map_or(String::new(), |words| format!("({words})"));
        match (tool.is_optional(flag), &words) {
            (true, _) => {
                let (long, value) = (flag.long, format!("]:: :{action}'"));
                zsh = zsh_value(&zsh, flag, |line| {
                    line.replace(&format!("'{long}["), &format!("'{long}=-[")).replace("]'", &value)
                });
            }
            (false, Some(words)) => {
                bash = bash_words(&bash, flag, words);
                zsh = zsh_value(&zsh, flag, |line| {
                    line.replace(":_default'", &format!(":{action}'"))
                });
                fish = fish_words(&fish, flag, words);
            }
            (false, None) => (),
        }
    }
    for (name, text) in
        [(format!("{name}.bash"), bash), (format!("_{name}"), zsh), (format!("{name}.fish"), fish)]
    {
        let path = Path::new(dir).join(&name);
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        let text = lines.join("\n") + "\n";
        if std::env::var_os("FDKIT_WRITE").is_some() {
            std::fs::create_dir_all(dir).expect("a folder");
            std::fs::write(&path, &text).expect("written");
        }
        let there = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(there == text, "{name} is out of date: run FDKIT_WRITE=1 cargo test completions");
    }
}
