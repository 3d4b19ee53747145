//! What a restore does beyond the descriptors of the image: the names that it makes, and what it opens or
//! changes that other processes have too. An image is a list of capabilities: see `--allow` of
//! fdrestore(1).

use crate::error::{Error, Result};
use crate::image::{Credentials, OpenFile};
use crate::kind::context::RestoreContext;
use crate::text::escape;
use crate::word_enum::must_be;
use argh::FromArgValue;
use nix::libc;
use nix::sys::stat::FileStat;

/// A class of effects that a user must allow: a word of `--allow`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Allow {
    /// A character device other than null, zero, full, random, urandom and tty.
    Devices,
    /// A tunnel device of the network: tun and tap.
    Tun,
    /// Groups of the network are joined, or messages are sent to it.
    Network,
    /// A name is made, or a fifo is filled, where the recorded user cannot.
    Names,
    /// A file gets the set-user-ID or the set-group-ID bit.
    Suid,
    /// A message queue that has a name.
    Mqueue,
    /// The settings of a terminal that exists already.
    Tty,
    /// All of these.
    All,
}

crate::word_enum!(Allow {
    Devices = "devices",
    Tun = "tun",
    Network = "network",
    Names = "names",
    Suid = "suid",
    Mqueue = "mqueue",
    Tty = "tty",
    All = "all",
});

/// The words of one `--allow`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowList(Vec<Allow>);

impl AllowList {
    /// The list that allows everything.
    pub fn all() -> AllowList {
        AllowList(vec![Allow::All])
    }

    /// Reports whether one of several lists allows these effects.
    pub fn any_has(lists: &[AllowList], word: Allow) -> bool {
        lists.iter().any(|list| list.has(word))
    }

    /// Reports whether these effects are allowed.
    pub fn has(&self, word: Allow) -> bool {
        self.0.iter().any(|&it| it == word || it == Allow::All)
    }
}

impl FromArgValue for AllowList {
    /// Parses words with commas between them.
    fn from_arg_value(value: &str) -> std::result::Result<AllowList, String> {
        let word = |word| Allow::from_arg_value(word);
        let words: std::result::Result<Vec<Allow>, String> = value.split(',').map(word).collect();
        let unknown = |_| format!("'{value}': each word {}", must_be(&Allow::ALL.map(Allow::name)));
        words.map(AllowList).map_err(unknown)
    }
}

/// Something that a restore does beyond the descriptors of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// The word of `--allow` that it needs; none if it is always allowed.
    pub needs: Option<Allow>,
    /// What is done, such as `opens the device /dev/kvm`, or how, such as `opened for reading`.
    pub what: String,
}

impl Effect {
    /// Fails with status 6 if these lists do not permit it.
    pub(crate) fn permitted(&self, lists: &[AllowList]) -> Result<()> {
        match self.needs.filter(|&word| !AllowList::any_has(lists, word)) {
            Some(word) => {
                Err(Error::unrestorable(format!("it {}; --allow {word} permits that", self.what)))
            }
            None => Ok(()),
        }
    }

    /// An effect that is always allowed.
    pub(crate) fn allowed(what: impl Into<String>) -> Effect {
        Effect { needs: None, what: what.into() }
    }

    /// An effect that needs this word.
    pub(crate) fn needing(word: Allow, what: impl Into<String>) -> Effect {
        Effect { needs: Some(word), what: what.into() }
    }
}

/// How a file that exists is opened, for the dry run: the flags of open(2) as words. `named` is the file by
/// the name that it has now.
pub(crate) fn opening(file: &OpenFile, named: &OpenFile, cx: &RestoreContext<'_>) -> Vec<Effect> {
    if !cx.checks_all {
        return Vec::new();
    }
    let flags = file.flags as i32;
    let access = match flags & libc::O_ACCMODE {
        _ if flags & libc::O_PATH != 0 => "opened with O_PATH",
        libc::O_RDONLY => "opened for reading",
        libc::O_WRONLY => "opened for writing",
        _ => "opened for reading and writing",
    };
    let append = if flags & libc::O_APPEND != 0 { " at the end" } else { "" };
    let name = match named.link == file.link {
        true => String::new(),
        false => format!(" by the name {}", escape(&named.link.0)),
    };
    vec![Effect::allowed(format!("{access}{append}{name}"))]
}

/// The effect of a file that is created with the set-user-ID or set-group-ID bit: inode(7).
pub(crate) fn set_id_bits(file: &OpenFile) -> Option<Effect> {
    let mode = file.inode.as_ref()?.mode & (libc::S_ISUID | libc::S_ISGID);
    let what = match (mode & libc::S_ISUID, mode & libc::S_ISGID) {
        (0, 0) => return None,
        (_, 0) => "gives a file the set-user-ID bit",
        (0, _) => "gives a file the set-group-ID bit",
        _ => "gives a file the set-user-ID and set-group-ID bits",
    };
    Some(Effect::needing(Allow::Suid, what))
}

/// Reports whether a user can write a file, or make names in a directory, by its mode. An access list
/// (acl(5)) that permits more is not read. The capabilities of the task do not count: those of a process
/// in a user namespace are not those that it has here.
pub(crate) fn can_write(who: &Credentials, file: &FileStat) -> bool {
    permission(who, file) & libc::S_IWOTH != 0
}

/// Reports whether a user can look up names in a directory, as [`can_write`].
pub(crate) fn can_search(who: &Credentials, dir: &FileStat) -> bool {
    permission(who, dir) & libc::S_IXOTH != 0
}

/// The bits of a mode that count for a user, as those for others.
fn permission(who: &Credentials, file: &FileStat) -> libc::mode_t {
    let ([.., uid], [.., gid]) = (who.uids, who.gids);
    let shift = match file {
        file if file.st_uid == uid => 6,
        file if file.st_gid == gid || who.groups.contains(&file.st_gid) => 3,
        _ => 0,
    };
    file.st_mode >> shift & 0o7
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_words_allows_these_or_all() {
        let list = AllowList::from_arg_value("tun,names").unwrap();
        assert!(list.has(Allow::Tun) && list.has(Allow::Names) && !list.has(Allow::Tty));
        assert!(AllowList::from_arg_value("all").unwrap().has(Allow::Tty));
        let wrong = AllowList::from_arg_value("tun,,").unwrap_err();
        assert!(wrong.starts_with("'tun,,': each word must be devices, tun, "), "{wrong}");
    }

    #[test]
    fn the_mode_tells_who_can_write() {
        let who = |uid, gid, groups: &[u32], effective| Credentials {
            uids: [0, 0, 0, uid],
            gids: [0, 0, 0, gid],
            groups: groups.to_vec(),
            caps: [0, 0, effective, 0, 0],
        };
        let mut dir = nix::sys::stat::stat("/").unwrap();
        (dir.st_uid, dir.st_gid) = (5, 6);
        let mut can = |mode, who: Credentials| {
            dir.st_mode = mode;
            can_write(&who, &dir)
        };
        assert!(can(0o700, who(5, 1, &[], 0)) && !can(0o077, who(5, 1, &[], 0)));
        assert!(can(0o070, who(1, 6, &[], 0)) && can(0o020, who(1, 1, &[9, 6], 0)));
        assert!(!can(0o707, who(1, 6, &[], 0)) && can(0o002, who(1, 1, &[], 0)));
        // CAP_DAC_OVERRIDE does not count.
        assert!(!can(0o775, who(1, 1, &[], 0)) && !can(0o000, who(1, 1, &[], 1 << 1)));
    }
}
