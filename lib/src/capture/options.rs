//! The options of a scan: those of fdscan, each defined once, with its help text.

use crate::cli::{Arg, units};
use crate::error::{Error, Result};
use crate::filter::Filter;
use argh::{ArgsInfo, FromArgs};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileTypeExt;
use std::time::Duration;

/// Capture the file descriptors of processes as an image on stdout.
#[derive(FromArgs, ArgsInfo, Clone, Debug, Default)]
pub struct ScanOptions {
    /// also capture the descendants of each PID
    #[argh(switch, short = 't')]
    pub tree: bool,
    /// capture only descriptors that pass: 3, 0-9, a kind, deleted, path:GLOB, pid:N; ! negates, commas mean or, repeated options mean and
    #[argh(option, short = 'F', arg_name = "FILTER", from_str_fn(crate::kind::filter))]
    pub filter: Vec<Filter>,
    /// also capture contents, such as those of pipes and unlinked files, of up to LIMIT bytes each (default: 16M)
    #[argh(option, arg_name = "LIMIT", from_str_fn(units::size))]
    pub data: Option<u64>,
    /// stop the processes while they are captured
    #[argh(switch)]
    pub freeze: bool,
    /// read only the text of /proc: opens no other file, and cannot tell what is shared
    #[argh(switch)]
    pub passive: bool,
    /// leave the processes stopped by SIGSTOP; implies --freeze
    #[argh(switch)]
    pub stop: bool,
    /// give up if a process has not stopped after SECONDS; decimals are allowed (default: 5)
    #[argh(option, arg_name = "SECONDS", from_str_fn(units::seconds))]
    pub timeout: Option<Duration>,
    /// write the image to FILE
    #[argh(option, short = 'o', arg_name = "FILE")]
    pub output: Option<Arg>,
    /// print a summary of the capture to stderr
    #[argh(switch, short = 'v')]
    pub verbose: bool,
    /// process ids, or self
    #[argh(positional, arg_name = "PID")]
    pub pids: Vec<Arg>,
}

impl ScanOptions {
    /// Fails with status 2 if options contradict each other.
    pub fn check(&self) -> Result<()> {
        let why = if self.passive && (self.data.is_some() || self.freezes()) {
            "--passive cannot be combined with --data, --freeze or --stop"
        } else if self.timeout.is_some() && !self.freezes() {
            "--timeout requires --freeze or --stop"
        } else {
            return Ok(());
        };
        Err(Error::misuse(why))
    }

    /// True if the tasks are stopped during the scan.
    pub(super) fn freezes(&self) -> bool {
        self.freeze || self.stop
    }

    /// The link of stdout as /proc/PID/fd shows it, if the image is written to it, and it is a pipe.
    pub(super) fn output_pipe(&self) -> Option<Vec<u8>> {
        let stdout = "/proc/self/fd/1";
        let is_stdout = self.output.as_ref().is_none_or(Arg::is_dash);
        let is_pipe = || fs::metadata(stdout).is_ok_and(|found| found.file_type().is_fifo());
        let link = (is_stdout && is_pipe()).then(|| fs::read_link(stdout))?.ok()?;
        Some(link.into_os_string().into_vec())
    }
}
