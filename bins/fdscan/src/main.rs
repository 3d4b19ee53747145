#![forbid(unsafe_code)]
//! fdscan: writes the descriptors of processes as an image.

use argh::{ArgsInfo, FromArgs};
use fdkit::capture::{ScanOptions, capture};
use fdkit::cli::{self, Arg, Tool, units};
use fdkit::error::{At, Error, Result, Status};
use fdkit::filter::Filter;
use fdkit::image::NewFile;
use std::ffi::OsString;
use std::process::ExitCode;

/// Capture the file descriptors of processes as an image on stdout.
#[derive(FromArgs, ArgsInfo)]
struct Args {
    /// also capture the descendants of each PID
    #[argh(switch, short = 't')]
    tree: bool,
    /// capture only descriptors that pass: 3, 0-9, a kind, deleted, path:GLOB, pid:N; ! negates, commas mean or, repeated options mean and
    #[argh(option, short = 'F', arg_name = "FILTER")]
    filter: Vec<String>,
    /// also capture contents, such as those of pipes and unlinked files, of up to LIMIT bytes each (default: 16M)
    #[argh(option, arg_name = "LIMIT", from_str_fn(units::size))]
    data: Option<u64>,
    /// stop the processes while they are captured
    #[argh(switch)]
    freeze: bool,
    /// read only the text of /proc: opens no other file, and cannot tell what is shared
    #[argh(switch)]
    passive: bool,
    /// leave the processes stopped by SIGSTOP; implies --freeze
    #[argh(switch)]
    stop: bool,
    /// write the image to FILE
    #[argh(option, short = 'o', arg_name = "FILE")]
    output: Option<Arg>,
    /// print a summary of the capture to stderr
    #[argh(switch, short = 'v')]
    verbose: bool,
    /// process ids, or self
    #[argh(positional, arg_name = "PID")]
    pids: Vec<Arg>,
}

const TOOL: Tool = Tool::new("fdscan").optional(&[("data", "16M")]);

fn main() -> ExitCode {
    TOOL.main(run)
}

fn run(tool: &Tool, args: Args, _: Vec<OsString>) -> Result<Status> {
    let pids = args.pids.iter().map(pid).collect::<Result<Vec<i32>>>()?;
    if pids.is_empty() {
        return Err(Error::misuse("PID is not given; see fdscan --help"));
    }
    if args.passive && (args.data.is_some() || args.freeze || args.stop) {
        return Err(Error::misuse("--passive cannot be combined with --data, --freeze or --stop"));
    }
    let kinds = fdkit::kind::names();
    let filter = |text: &String| Filter::parse(text, &kinds).map_err(Error::misuse);
    let options = ScanOptions {
        tree: args.tree,
        filters: args.filter.iter().map(filter).collect::<Result<_>>()?,
        data: args.data,
        passive: args.passive,
        freeze: args.freeze,
        stop: args.stop,
    };
    let mut warn = |line| tool.warn(line);
    let (status, summary) = match args.output.as_ref().filter(|path| !path.is_dash()) {
        Some(path) => {
            let shown = || path.to_string();
            let new = NewFile::beside(path.as_path()).at(shown)?;
            let (new, status, summary) = capture(&pids, &options, new, &mut warn)?;
            new.publish(path.as_path()).at(shown)?;
            (status, summary)
        }
        None => {
            let out = cli::binary_stdout("use a pipe ('| fdimg show') or -o FILE")?;
            let (_, status, summary) = capture(&pids, &options, out, &mut warn)?;
            (status, summary)
        }
    };
    if args.verbose {
        tool.warn(format_args!(
            "{} tasks, {} descriptors, {} descriptions ({} opaque), {} bytes of contents",
            summary.tasks, summary.slots, summary.files, summary.opaque, summary.contents
        ));
    }
    Ok(status)
}

/// The process id that a word means; `self` is this process.
fn pid(word: &Arg) -> Result<i32> {
    match word.as_os_str() == "self" {
        true => Ok(std::process::id() as i32),
        false => units::pid(word),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn completions_are_those_of_the_options() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/completions");
        fdkit_completions::hold::<super::Args>(&super::TOOL, dir);
    }
}
