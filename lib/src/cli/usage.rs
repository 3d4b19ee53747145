//! The help and the complaints of argh in the form of the tools.

use super::arg::{quoted, why_raw};
use super::getopt::Walk;
use argh::FlagInfoKind;

impl Walk<'_> {
    /// argh's complaint in one line of ours.
    pub(super) fn reason(&self, said: &str, untaken: &[String]) -> String {
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
    pub(super) fn help(&self, text: &str) -> String {
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

/// argh's list of what is missing, if it is that.
pub(super) fn missing(said: &str) -> Option<String> {
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
