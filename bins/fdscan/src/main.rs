#![forbid(unsafe_code)]
//! fdscan: a process, or a tree of them, becomes an image on stdout.

use argh::{ArgsInfo, FromArgs};
use fdkit::capture::{ScanOptions, capture};
use fdkit::cli::{self, Arg, Tool};
use fdkit::error::{At, Error, Result, Status};
use fdkit::filter::Filter;
use fdkit::image::NewFile;
use std::ffi::OsString;
use std::process::ExitCode;

/// Capture the file descriptors of processes as an image on stdout.
#[derive(FromArgs, ArgsInfo)]
struct Args {
    /// the descendants of each PID too
    #[argh(switch, short = 't')]
    tree: bool,
    /// only descriptors that pass: 3, 0-9, a kind, deleted, path:GLOB, pid:N; ! negates, a comma is or, repeated is and
    #[argh(option, short = 'F', arg_name = "FILTER")]
    filter: Vec<String>,
    /// contents of pipes and unlinked files too, objects of up to LIMIT bytes (16M)
    #[argh(option, arg_name = "LIMIT", from_str_fn(size))]
    data: Option<u64>,
    /// stop the processes while they are captured
    #[argh(switch)]
    freeze: bool,
    /// only the text of /proc: never touches a file, cannot tell what is shared
    #[argh(switch)]
    passive: bool,
    /// leave the processes stopped (SIGSTOP); implies --freeze
    #[argh(switch)]
    stop: bool,
    /// write the image to FILE
    #[argh(option, short = 'o', arg_name = "FILE")]
    output: Option<Arg>,
    /// say what was captured
    #[argh(switch, short = 'v')]
    verbose: bool,
    /// process ids
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
        return Err(Error::misuse("which process? PID is not given; see fdscan --help"));
    }
    if args.passive && (args.data.is_some() || args.freeze || args.stop) {
        return Err(Error::misuse("--passive goes with neither --data, --freeze nor --stop"));
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
    let mut say = |line| tool.warn(line);
    let (status, summary) = match args.output.as_ref().filter(|path| !path.is_dash()) {
        Some(path) => {
            let shown = || path.to_string();
            let new = NewFile::beside(path.as_path()).at(shown)?;
            let (new, status, summary) = capture(&pids, &options, new, &mut say)?;
            new.publish(path.as_path()).at(shown)?;
            (status, summary)
        }
        None => {
            let out = cli::binary_stdout("use a pipe ('| fdimg show') or -o FILE")?;
            let (_, status, summary) = capture(&pids, &options, out, &mut say)?;
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

fn size(text: &str) -> Result<u64, String> {
    cli::parse_size(text)
}

fn pid(word: &Arg) -> Result<i32> {
    if word.as_os_str() == "self" {
        return Ok(std::process::id() as i32);
    }
    let number = word.as_os_str().to_str().and_then(|text| text.parse().ok());
    number
        .filter(|&pid: &i32| pid > 0)
        .ok_or_else(|| Error::misuse(format!("'{word}' is no process id")))
}

#[cfg(test)]
mod tests {
    #[test]
    fn completions_are_those_of_the_options() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/completions");
        fdkit_completions::hold::<super::Args>(&super::TOOL, dir);
    }
}
