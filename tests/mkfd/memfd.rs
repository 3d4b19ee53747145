//! memfd_create(2): content, holes, seals, huge pages, and a second description of the same file.

use crate::driver::{Bad, Difference, Fixture, link, reopen, stat, status};
use crate::lock;
use crate::regular::{default, position_and_access, read_whole};
use crate::spec::{At, Result, Spec, Stop};
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, Whence, fchown, ftruncate, lseek, write};
use std::ffi::{CString, OsString};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

pub(crate) struct Memfd;

/// The seals by their names.
const SEALS: &[(&str, i32)] =
    &[("seal", 1), ("shrink", 2), ("grow", 4), ("write", 8), ("future", 16), ("exec", 32)];

const NO_HUGE_PAGE: &str =
    "no huge page of 2 MiB is free (vm.nr_hugepages, vm.nr_overcommit_hugepages)";

impl Fixture for Memfd {
    const NAME: &'static str = "memfd";
    const ABOUT: &'static str = "a file in memory";
    const KEYS: &'static [(&'static str, &'static str)] = &[
        ("name", "its name; any bytes but zero"),
        ("data", "its content; @N for N bytes of a pattern"),
        ("after", "a hole before the data, in bytes"),
        ("size", "its size, where a hole comes after the data"),
        ("pos", "the position"),
        ("read", "the first description is O_RDONLY, made through /proc"),
        ("append", "O_APPEND"),
        ("two", "a second description, O_RDONLY, at the second number"),
        ("seals", "of seal, shrink, grow, write, future and exec, with + between"),
        ("unsealable", "made without MFD_ALLOW_SEALING"),
        ("noexec", "MFD_NOEXEC_SEAL"),
        ("huge", "MFD_HUGETLB, pages of 2 MiB"),
        ("mode", "its permissions, in decimal"),
        ("owner", "its user and group"),
        lock::KEY,
    ];
    const DIFFERENCES: &'static [Difference] = &[
        ("memfd@3:name=a", "memfd@3:name=b", "link is"),
        ("memfd@3:seals=grow", "memfd@3:seals=shrink", "seals is"),
        ("memfd@3:data=ab", "memfd@3:data=ac", "content"),
        ("memfd@3:data=x,size=9000,mode=384", "memfd@3:data=x,size=9000", "mode is"),
        ("memfd@3:data=%00", "memfd@3:data=,size=1", "allocated pages is 1"),
        ("memfd@3:huge", "memfd@3:data=", "write is Err(EINVAL)"),
        ("unlinked@3,4:two", "memfd@3,4:two", "F_GETFL"),
    ];

    fn arity(spec: &Spec) -> usize {
        if spec.has("two") { 2 } else { 1 }
    }

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        let name = CString::new(name(spec)).map_err(|_| Stop::Misuse("name: no zero".into()))?;
        let mut flags = MFdFlags::MFD_CLOEXEC;
        flags.set(MFdFlags::MFD_ALLOW_SEALING, !spec.has("unsealable"));
        flags.set(MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB, spec.has("huge"));
        let exec = if spec.has("noexec") { libc::MFD_NOEXEC_SEAL } else { libc::MFD_EXEC };
        let new = memfd_create(name.as_c_str(), flags | MFdFlags::from_bits_retain(exec));
        let new = match new {
            Err(Errno::ENODEV) if spec.has("huge") => {
                return Err(Stop::Cannot(NO_HUGE_PAGE.into()));
            }
            new => new.at("memfd_create")?,
        };
        let (data, after) = (data(spec), spec.number("after")?.unwrap_or(0));
        ftruncate(&new, size(spec) as i64).at("ftruncate")?;
        if spec.has("huge") {
            sys::fill_mapped(new.as_fd(), &data).or_else(|errno| match errno {
                Errno::ENOMEM | Errno::ENOSPC => Err(Stop::Cannot(NO_HUGE_PAGE.into())),
                other => Err(other).at("mmap"),
            })?;
        } else {
            let file = fs::File::from(new.try_clone().at("dup")?);
            file.write_all_at(&data, after).at("write")?;
        }
        if let Some(owner) = spec.number("owner")? {
            let id = owner as u32;
            fchown(&new, Some(Uid::from_raw(id)), Some(Gid::from_raw(id)))
                .at("fchown, which takes CAP_CHOWN")?;
        }
        if let Some(mode) = spec.number("mode")? {
            fchmod(&new, Mode::from_bits_truncate(mode as u32)).at("fchmod")?;
        }
        let sealed = SealFlag::from_bits_retain(seals(spec)?);
        if !spec.has("unsealable") {
            fcntl(&new, FcntlArg::F_ADD_SEALS(sealed)).at("F_ADD_SEALS")?;
        }
        let mut made = Vec::new();
        if spec.has("two") {
            made.push(reopen(&new, OFlag::O_RDONLY).at("a second description")?);
        }
        made.insert(
            0,
            match spec.has("read") {
                true => reopen(&new, OFlag::O_RDONLY).at("open it O_RDONLY")?,
                false => new,
            },
        );
        if spec.has("append") {
            fcntl(&made[0], FcntlArg::F_SETFL(OFlag::O_APPEND)).at("O_APPEND")?;
        }
        let pos = spec.number("pos")?.unwrap_or(0) as i64;
        lseek(&made[0], pos, Whence::SeekSet).at("lseek")?;
        Ok(made)
    }

    fn finish(spec: &Spec) -> Result<()> {
        lock::finish(spec)
    }

    fn flags(spec: &Spec, nth: usize) -> OFlag {
        if nth == 1 || spec.has("read") {
            return OFlag::O_RDONLY;
        }
        let mut flags = OFlag::O_RDWR;
        flags.set(OFlag::O_APPEND, spec.has("append"));
        flags
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let fd = sys::at(spec.fds[0])?;
        let found = stat(fd, libc::S_IFREG, bad)?;
        lock::check(spec, bad)?;
        let shown = [b"/memfd:", &name(spec)[..], b" (deleted)"].concat();
        bad.same("link", link(spec.fds[0]), PathBuf::from(OsString::from_vec(shown)));
        let usual = if spec.has("noexec") { 0o666 } else { 0o777 };
        let mode = spec.known_number("mode").unwrap_or(usual);
        bad.same("mode", u64::from(found.st_mode & 0o7777), mode);
        let owner = spec.known_number("owner").unwrap_or(nix::unistd::geteuid().as_raw().into());
        bad.same("owner", (found.st_uid.into(), found.st_gid.into()), (owner, owner));
        let made = seals(spec).unwrap_or_default();
        bad.same("seals", fcntl(fd, FcntlArg::F_GET_SEALS)?, made);
        let (hole, data) = (spec.known_number("after").unwrap_or(0) as usize, data(spec));
        let mut whole = vec![0; size(spec) as usize];
        whole[hole..][..data.len()].copy_from_slice(&data);
        let file = fs::File::from(reopen(fd, OFlag::O_RDONLY)?);
        bad.same_bytes("content", &read_whole(&file)?, &whole);
        if spec.has("huge") {
            let page = nix::sys::statfs::fstatfs(fd)?.block_size();
            bad.same("page size", page, 2 << 20);
        } else {
            let pages =
                if data.is_empty() { 0 } else { (hole + data.len()).div_ceil(4096) - hole / 4096 };
            bad.same("allocated pages", found.st_blocks / 8, pages as i64);
        }
        if let Ok(second) = sys::at(*spec.fds.get(1).unwrap_or(&-1)) {
            if spec.has("two") {
                let same = stat(second, libc::S_IFREG, bad)?;
                bad.same("inode of the second", same.st_ino, found.st_ino);
                bad.same("write through the second", write(second, b"x"), Err(Errno::EBADF));
            }
        }
        if made & !1 == 0 && !spec.has("huge") {
            position_and_access(spec, fd, &whole, bad)?;
        } else if !status(fd)?.contains(OFlag::O_RDWR) {
            bad.same("write", write(fd, b"x"), Err(Errno::EBADF));
        } else {
            sealed(fd, made, &whole, bad)?;
        }
        let more = fcntl(fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SEAL));
        let refused = made & 1 != 0 || spec.has("read");
        bad.same("F_SEAL_SEAL", more, if refused { Err(Errno::EPERM) } else { Ok(0) });
        Ok(())
    }
}

/// Checks that each seal prevents its operation, and that nothing else is prevented.
fn sealed(fd: BorrowedFd<'_>, made: i32, whole: &[u8], bad: &mut Bad) -> Result<(), Errno> {
    let len = whole.len() as i64;
    let expect = |seal: i32| if made & seal != 0 { Err(Errno::EPERM) } else { Ok(()) };
    let page = nix::sys::statfs::fstatfs(fd)?.block_size();
    if page == 4096 && !whole.is_empty() {
        let got = nix::sys::uio::pwrite(fd, &whole[..1], 0).map(drop);
        bad.same("write", got, expect(8 | 16));
    }
    bad.same("ftruncate to more", ftruncate(fd, len + page), expect(4));
    if made & 4 == 0 && made & 2 == 0 {
        ftruncate(fd, len)?;
    }
    if len > 0 {
        bad.same("ftruncate to less", ftruncate(fd, len - len.min(page)), expect(2));
    }
    let mode = nix::sys::stat::fstat(fd)?.st_mode;
    let other = Mode::from_bits_truncate((mode ^ 0o100) & 0o7777);
    bad.same("fchmod of x", fchmod(fd, other), expect(32));
    Ok(())
}

fn name(spec: &Spec) -> Vec<u8> {
    spec.bytes("name").unwrap_or(b"mkfd").to_vec()
}

fn data(spec: &Spec) -> Vec<u8> {
    match (spec.data(), spec.has("huge")) {
        (Some(data), _) => data,
        (None, true) => Vec::new(),
        (None, false) => default(spec),
    }
}

fn size(spec: &Spec) -> u64 {
    let data = spec.known_number("after").unwrap_or(0) + data(spec).len() as u64;
    let page = if spec.has("huge") { 2 << 20 } else { 1 };
    spec.known_number("size").unwrap_or(data.next_multiple_of(page))
}

/// All F_SEAL_* bits, with those that the flags of memfd_create(2) set.
fn seals(spec: &Spec) -> Result<i32> {
    if spec.has("unsealable") {
        return Ok(1);
    }
    let mut seals = if spec.has("noexec") { 32 } else { 0 };
    let words = spec.bytes("seals").unwrap_or_default().split(|&byte| byte == b'+');
    for word in words.filter(|word| !word.is_empty()) {
        let known = SEALS.iter().find(|(name, _)| name.as_bytes() == word);
        seals |= known.ok_or_else(|| Stop::Misuse("seals: see mkfd list".into()))?.1;
    }
    Ok(seals)
}
