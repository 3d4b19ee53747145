//! Descriptors that cannot be restored: their state is in memory or in hardware, or cannot be read.

use crate::driver::{Bad, Difference, Fixture, link};
use crate::spec::{At, Result, Spec, Stop};
use crate::sys::{self, Unsupported};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use std::os::fd::OwnedFd;

pub(crate) struct Opaque;

/// The name of each, how it is made, how its link begins, and its flags.
const UNSUPPORTED: &[(&str, Unsupported, &str, OFlag)] = &[
    ("io_uring", Unsupported::IoUring, "anon_inode:[io_uring]", OFlag::O_RDWR),
    ("userfaultfd", Unsupported::Userfaultfd, "anon_inode:[userfaultfd]", OFlag::O_RDWR),
    ("bpf-map", Unsupported::BpfMap, "anon_inode:bpf-map", OFlag::O_RDWR),
    ("bpf-prog", Unsupported::BpfProgram, "anon_inode:bpf-prog", OFlag::O_RDWR),
    ("perf", Unsupported::Perf, "anon_inode:[perf_event]", OFlag::O_RDWR),
    ("secret", Unsupported::Secret, "/secretmem (deleted)", OFlag::O_RDWR),
    ("landlock", Unsupported::Landlock, "anon_inode:[landlock-ruleset]", OFlag::O_RDWR),
    ("seccomp", Unsupported::Seccomp, "anon_inode:seccomp notify", OFlag::O_RDWR),
    ("fscontext", Unsupported::Fscontext, "anon_inode:[fscontext]", OFlag::O_RDWR),
    ("vsock", Unsupported::Socket(40, 1, 0), "socket:[", OFlag::O_RDWR),
    ("alg", Unsupported::Socket(38, 5, 0), "socket:[", OFlag::O_RDWR),
    ("xdp", Unsupported::Socket(44, 3, 0), "socket:[", OFlag::O_RDWR),
    ("key", Unsupported::Socket(15, 3, 2), "socket:[", OFlag::O_RDWR),
    ("can", Unsupported::Socket(29, 3, 1), "socket:[", OFlag::O_RDWR),
    ("fuse", Unsupported::Device(c"/dev/fuse"), "/dev/fuse", OFlag::O_RDWR),
    ("kvm", Unsupported::Device(c"/dev/kvm"), "/dev/kvm", OFlag::O_RDWR),
    ("vga_arbiter", Unsupported::Device(c"/dev/vga_arbiter"), "/dev/vga_arbiter", OFlag::O_RDWR),
];

impl Fixture for Opaque {
    const NAME: &'static str = "opaque";
    const ABOUT: &'static str = "what no tool restores; check wants it as it was";
    const KEYS: &'static [(&'static str, &'static str)] = &[(
        "of",
        "io_uring (as without), userfaultfd, bpf-map, bpf-prog, perf, secret, landlock, seccomp, \
         fscontext, vsock, alg, xdp, key, can, fuse, kvm or vga_arbiter",
    )];
    const DIFFERENCES: &'static [Difference] = &[("mem@3", "opaque@3", "link is")];

    fn make(spec: &Spec) -> Result<Vec<OwnedFd>> {
        let (name, unsupported, ..) =
            unsupported(spec).ok_or_else(|| Stop::Misuse("of: see mkfd list".into()))?;
        let made = sys::unsupported(unsupported).map_err(|errno| match errno {
            // The kernel or the machine may lack it.
            Errno::EACCES
            | Errno::EAFNOSUPPORT
            | Errno::EPROTONOSUPPORT
            | Errno::ESOCKTNOSUPPORT
            | Errno::ENOENT
            | Errno::ENODEV => Stop::Cannot(format!("{name}: {}", errno.desc())),
            other => Err::<(), _>(other).at(name).expect_err("it is one"),
        })?;
        Ok(vec![made])
    }

    fn flags(spec: &Spec, _: usize) -> OFlag {
        unsupported(spec).map_or(OFlag::O_RDWR, |(.., flags)| *flags)
    }

    fn check(spec: &Spec, bad: &mut Bad) -> Result<(), Errno> {
        let Some((.., start, _)) = unsupported(spec) else { return Err(Errno::EINVAL) };
        let link = link(spec.fds[0]).display().to_string();
        bad.unless(link.starts_with(start), format!("link is {link}, was made {start}"));
        Ok(())
    }
}

fn unsupported(spec: &Spec) -> Option<&'static (&'static str, Unsupported, &'static str, OFlag)> {
    let name = spec.bytes("of").unwrap_or(b"io_uring");
    UNSUPPORTED.iter().find(|(known, ..)| known.as_bytes() == name)
}
