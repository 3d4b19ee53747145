//! The mounts that a process sees: proc_pid_mountinfo(5).

/// File systems whose lookups ask a server.
const REMOTE: [&[u8]; 8] =
    [b"nfs", b"nfs4", b"cifs", b"smb3", b"ceph", b"afs", b"9p", b"fuse.sshfs"];

/// A mount: a line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Its id. The kernel uses the id of an unmounted one again.
    pub id: u64,
    /// Major and minor device number of the file system, as `st_dev` of stat(2).
    pub dev: (u32, u32),
    /// The directory of the file system that is mounted; empty if it is not known.
    pub root: Vec<u8>,
    /// The mount point, relative to the root directory of the process.
    pub point: Vec<u8>,
    /// The type of the file system; empty if it is not known.
    pub file_system: Vec<u8>,
}

impl Mount {
    /// Parses a line without its newline. None if it is not one of mountinfo.
    pub fn parse(line: &[u8]) -> Option<Mount> {
        let words: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        let text = |at: usize| std::str::from_utf8(words.get(at)?).ok();
        let (major, minor) = text(2)?.split_once(':')?;
        // Any number of optional fields stand before the dash.
        let dash = words.iter().position(|word| *word == b"-")?;
        Some(Mount {
            id: text(0)?.parse().ok()?,
            dev: (major.parse().ok()?, minor.parse().ok()?),
            root: unescape(words.get(3)?),
            point: unescape(words.get(4)?),
            file_system: words.get(dash + 1)?.to_vec(),
        })
    }

    /// True if a lookup in it asks a server, which may never answer.
    pub fn is_remote(&self) -> bool {
        REMOTE.contains(&&self.file_system[..])
    }

    /// True if a process may have to answer for its files: that of FUSE, an automounter, or a server of
    /// a network file system that may be reached through one. Files of virtiofs are served outside of
    /// this system.
    pub fn is_served(&self) -> bool {
        let is_fuse = matches!(&self.file_system[..], b"fuse" | b"fuseblk" | b"autofs")
            || self.file_system.starts_with(b"fuse.");
        is_fuse || self.is_remote()
    }
}

/// Parses the text of mountinfo. Lines that are not understood are left out.
pub fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|&byte| byte == b'\n').filter_map(Mount::parse).collect()
}

/// The path that mountinfo shows with blanks, newlines and backslashes as three octal digits.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let digits = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok();
        let byte = if first == b'\\' { after.get(..3).and_then(digits) } else { None };
        out.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &after[3..] } else { after };
    }
    out
}

/// The mounts that a process sees, and how its paths look from here.
#[derive(Debug)]
pub struct MountView {
    /// All that can be reached from its root directory, in the order of mountinfo, and the one that
    /// its root directory is on.
    pub mounts: Vec<Mount>,
    /// Its root directory as readlink(2) shows it here; empty if it is the one of its mount
    /// namespace.
    pub root: Vec<u8>,
    /// True if its mount namespace is that of this process.
    pub is_own_namespace: bool,
    /// The ids of the mounts, ascending.
    ids: Vec<u64>,
    /// Those of [`Mount::is_served`], ascending.
    served: Vec<u64>,
}

impl MountView {
    /// The view of a process that sees these mounts.
    pub fn new(mounts: Vec<Mount>, root: Vec<u8>, is_own_namespace: bool) -> MountView {
        let mut ids: Vec<u64> = mounts.iter().map(|mount| mount.id).collect();
        ids.sort_unstable();
        let served = mounts.iter().filter(|mount| mount.is_served());
        let mut served: Vec<u64> = served.map(|mount| mount.id).collect();
        served.sort_unstable();
        MountView { mounts, root, is_own_namespace, ids, served }
    }

    /// True if a process may have to answer for the files of some mount.
    pub fn has_served(&self) -> bool {
        !self.served.is_empty()
    }

    /// True if a process may have to answer for the files of this mount: [`Mount::is_served`].
    pub fn is_served(&self, id: i32) -> bool {
        u64::try_from(id).is_ok_and(|id| self.served.binary_search(&id).is_ok())
    }

    /// The mount with this id.
    pub fn mount(&self, id: i32) -> Option<&Mount> {
        let id = u64::try_from(id).ok()?;
        self.mounts.iter().find(|mount| mount.id == id)
    }

    /// True if one of the mounts has this id.
    pub fn has(&self, id: i32) -> bool {
        u64::try_from(id).is_ok_and(|id| self.ids.binary_search(&id).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LINE: &[u8] =
        b"36 35 98:0 /a\\040b /mnt\\0401 rw,noatime master:1 shared:2 - nfs4 server:/x rw";

    #[test]
    fn a_line_is_taken_apart() {
        let mount = Mount::parse(LINE).unwrap();
        assert!(mount.is_remote());
        let (root, point, file_system) = (b"/a b".to_vec(), b"/mnt 1".to_vec(), b"nfs4".to_vec());
        assert_eq!(mount, Mount { id: 36, dev: (98, 0), root, point, file_system });
        for other in [&b"36 35 98:0 / /mnt"[..], b"36 35 98 / /mnt - ext4 x rw", b"", b"a b c d -"]
        {
            assert_eq!(Mount::parse(other), None, "{}", other.escape_ascii());
        }
    }

    #[test]
    fn only_three_octal_digits_are_an_escape() {
        assert_eq!(unescape(b"\\134\\04\\999\\"), b"\\\\04\\999\\");
    }

    #[test]
    fn a_view_has_the_mounts_of_all_lines_that_are_understood() {
        let text = [LINE, b"\nnot a mount\n7 1 0:5 / /dev rw - devtmpfs udev rw\n"].concat();
        let view = MountView::new(parse(&text), Vec::new(), true);
        assert_eq!(view.mounts.iter().map(|mount| mount.id).collect::<Vec<_>>(), [36, 7]);
        assert!(!view.mounts[1].is_remote());
        assert!(view.has(36) && view.has(7) && !view.has(37) && !view.has(-7));
    }

    proptest! {
        #[test]
        fn any_line_is_a_mount_or_not(line in "([0-9:/ \\\\-]|\\PC){0,80}", bytes: Vec<u8>) {
            let _ = Mount::parse(line.as_bytes());
            let _ = Mount::parse(&bytes);
        }

        #[test]
        fn an_escaped_path_is_itself_again(path in prop::collection::vec(any::<u8>(), 0..50)) {
            let escaped: Vec<u8> = path.iter().flat_map(|byte| match byte {
                b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
                &other => vec![other],
            }).collect();
            prop_assert_eq!(unescape(&escaped), path);
        }
    }
}
