//! The options of a restore: those of fdrestore, each defined once, with its help text.

use crate::cli::{Arg, units};
use crate::kind::context::Changed;
use crate::kind::effect::{Allow, AllowList};
use crate::placement::Placement;
use crate::plan::Action;
use argh::{ArgsInfo, FromArgValue, FromArgs};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;

/// Recreate the file descriptors of an image in a new command, or in a tree of processes: fdrestore [OPTIONS] [-- COMMAND...]
#[derive(FromArgs, ArgsInfo, Clone, Debug, Default)]
pub struct RestoreOptions {
    /// the image; stdin if - or left out
    #[argh(option, short = 'i', arg_name = "IMAGE")]
    pub image: Option<Arg>,
    /// the task whose table is restored (default: the first)
    #[argh(option, arg_name = "PID")]
    pub task: Option<i32>,
    /// create all processes of the image; each one holds its descriptors
    #[argh(switch)]
    pub tree: bool,
    /// with --tree: each process runs its program again
    #[argh(switch)]
    pub respawn: bool,
    /// with --tree: each process gets its old process id, or all is refused
    #[argh(switch)]
    pub same_pids: bool,
    /// where fdrestore places its own descriptors during the restore; see fdkit(7)
    #[argh(option, arg_name = "rlimit|task|late|tight", default = "Placement::Tight")]
    pub placement: Placement,
    /// use the caller's descriptor FD for KEY: the text of readlink, or FD or PID:FD of the image; a bare list (0,1,2) keeps the caller's own
    #[argh(option, arg_name = "KEY=FD")]
    pub inherit: Vec<Inherit>,
    /// for a descriptor that cannot be restored: fail, put /dev/null there, or skip it
    #[argh(option, arg_name = "fail|null|skip", default = "Missing::Fail")]
    pub missing: Missing,
    /// for a file that has changed since the scan: fail, warn or ignore it
    #[argh(option, arg_name = "fail|warn|ignore", default = "Changed::Warn")]
    pub changed: Changed,
    /// permit what goes beyond the image's own descriptors: devices, tun, network, names, suid, mqueue, tty, or all
    #[argh(option, arg_name = "WORD,...")]
    pub allow: Vec<AllowList>,
    /// open all paths below DIR
    #[argh(option, arg_name = "DIR")]
    pub root: Option<Arg>,
    /// take the controlling terminal from the session that has it
    #[argh(switch)]
    pub steal: bool,
    /// print system calls, dups and table sizes of the restore to stderr
    #[argh(option, arg_name = "text|json")]
    pub stats: Option<StatsFormat>,
    /// print the plan and restore nothing
    #[argh(switch, short = 'n')]
    pub dry_run: bool,
    /// print the plan as JSON
    #[argh(switch, short = 'J')]
    pub json: bool,
}

/// The policy for a descriptor that cannot be restored: `--missing`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Missing {
    /// The restore fails, and lists all of them.
    #[default]
    Fail,
    /// The substitute of its kind is opened: [`crate::kind::Kind::substitute`].
    Null,
    /// The number stays closed.
    Skip,
}

impl Missing {
    /// The action instead of opening a file that cannot be restored.
    pub(crate) fn instead(self) -> Action {
        match self {
            Missing::Null => Action::Null,
            Missing::Fail | Missing::Skip => Action::Skip,
        }
    }
}

crate::word_enum!(Missing { Fail = "fail", Null = "null", Skip = "skip" });

/// The format of the statistics: `--stats`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatsFormat {
    /// A table.
    Text,
    /// JSON.
    Json,
}

crate::word_enum!(StatsFormat { Text = "text", Json = "json" });

/// Descriptors of the caller that replace some of the image: `--inherit`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inherit {
    /// The descriptors stay at their numbers, and replace what the image has there.
    SameNumbers(Vec<RawFd>),
    /// The descriptor replaces the one of the image with this key: a link text, a number, or
    /// `PID:NUMBER`.
    Key(Vec<u8>, RawFd),
}

impl RestoreOptions {
    /// Reports whether `--allow` permits effects of this class.
    pub fn allows(&self, word: Allow) -> bool {
        AllowList::any_has(&self.allow, word)
    }

    /// The descriptors of the caller that stay at their numbers.
    pub fn same_numbers(&self) -> impl Iterator<Item = RawFd> + '_ {
        let numbers = |inherit: &'_ Inherit| match inherit {
            Inherit::SameNumbers(numbers) => numbers.clone(),
            Inherit::Key(..) => Vec::new(),
        };
        self.inherit.iter().flat_map(numbers)
    }

    /// The keys of `--inherit`, and the descriptors of the caller.
    pub fn inherit_keys(&self) -> impl Iterator<Item = (&[u8], RawFd)> {
        self.inherit.iter().filter_map(|inherit| match inherit {
            Inherit::Key(key, fd) => Some((&key[..], *fd)),
            Inherit::SameNumbers(_) => None,
        })
    }
}

impl FromArgValue for Inherit {
    /// Parses `KEY=FD`, or a list of numbers.
    fn from_arg_value(value: &str) -> Result<Inherit, String> {
        let word = Arg::from_arg_value(value)?;
        let bytes = word.as_os_str().as_bytes();
        let fd = |word: &[u8]| units::fd(word).map_err(|why| why.to_string());
        match bytes.iter().rposition(|&byte| byte == b'=') {
            Some(at) => Ok(Inherit::Key(bytes[..at].to_vec(), fd(&bytes[at + 1..])?)),
            None => bytes
                .split(|&byte| byte == b',')
                .map(fd)
                .collect::<Result<_, _>>()
                .map(Inherit::SameNumbers),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inherit_takes_a_key_or_a_list() {
        let key = |key: &str, fd| Ok(Inherit::Key(key.into(), fd));
        assert_eq!(Inherit::from_arg_value("pipe:[7]=3"), key("pipe:[7]", 3));
        assert_eq!(Inherit::from_arg_value("/a=b=4"), key("/a=b", 4));
        assert_eq!(Inherit::from_arg_value("0,2"), Ok(Inherit::SameNumbers(vec![0, 2])));
        let why = Inherit::from_arg_value("0,x").unwrap_err();
        assert_eq!(why, "'x' is not a descriptor number");
    }
}
