#![forbid(unsafe_code)]
//! fdscan: writes the descriptors of processes as an image.

use fdkit::capture::{ScanOptions, capture};
use fdkit::cli::{self, Arg, Tool, units};
use fdkit::error::{At, Error, Result, Status};
use fdkit::image::NewFile;
use std::ffi::OsString;
use std::process::ExitCode;

const TOOL: Tool = Tool::new("fdscan").optional(&[("data", "16M")]);

fn main() -> ExitCode {
    TOOL.main(run)
}

fn run(tool: &Tool, options: ScanOptions, _: Vec<OsString>) -> Result<Status> {
    let pids = options.pids.iter().map(pid).collect::<Result<Vec<i32>>>()?;
    if pids.is_empty() {
        return Err(Error::misuse("PID is not given; see fdscan --help"));
    }
    options.check()?;
    let mut messages = tool.messages();
    let (status, summary) = match options.output.as_ref().filter(|path| !path.is_dash()) {
        Some(path) => {
            let shown = || path.to_string();
            let new = NewFile::beside(path.as_path()).at(shown)?;
            let (new, status, summary) = capture(&pids, &options, new, &mut messages)?;
            new.publish(path.as_path()).at(shown)?;
            (status, summary)
        }
        None => {
            let out = cli::binary_stdout("use a pipe ('| fdimg show') or -o FILE")?;
            let (_, status, summary) = capture(&pids, &options, out, &mut messages)?;
            (status, summary)
        }
    };
    if options.verbose {
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
        fdkit_completions::hold::<super::ScanOptions>(&super::TOOL, dir);
    }
}
