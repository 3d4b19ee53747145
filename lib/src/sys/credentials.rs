//! Credentials of this process: capabilities(7), and attributes set by prctl(2).

use nix::errno::Errno;
use nix::libc;

/// struct __user_cap_header_struct and two of struct __user_cap_data_struct: capset(2), version 3.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapSets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const VERSION_3: u32 = 0x2008_0522;

/// Sets the effective, permitted and inheritable capabilities of this process: capset(2). Bit n of
/// each mask is capability n.
pub fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> nix::Result<()> {
    let header = Header { version: VERSION_3, pid: 0 };
    let half = |shift: u32| CapSets {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: the kernel reads one header, whose version says that two structs follow.
    let set = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    Errno::result(set).map(drop)
}

fn prctl(what: i32, a: u64, b: u64) -> nix::Result<i32> {
    // SAFETY: none of the operations used here takes a pointer.
    Errno::result(unsafe { libc::prctl(what, a, b, 0, 0) })
}

/// Drops a capability from the bounding set, for good: PR_CAPBSET_DROP. It takes CAP_SETPCAP.
pub fn drop_from_bounding_set(capability: u32) -> nix::Result<()> {
    prctl(libc::PR_CAPBSET_DROP, capability.into(), 0).map(drop)
}

/// Adds a capability to the ambient set: PR_CAP_AMBIENT_RAISE. Fails with EPERM unless it is both
/// permitted and inheritable.
pub fn raise_ambient(capability: u32) -> nix::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, capability.into()).map(drop)
}

/// Keeps the permitted capabilities when the user ids change: PR_SET_KEEPCAPS.
pub fn keep_capabilities(on: bool) -> nix::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, on.into(), 0).map(drop)
}

/// Sets the dumpable attribute: whether this process's own user may trace it, and owns its files in
/// /proc. PR_SET_DUMPABLE; a change of credentials clears it.
pub fn set_dumpable(on: bool) -> nix::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, on.into(), 0).map(drop)
}

/// Has the kernel send SIGKILL to this process when its parent ends: PR_SET_PDEATHSIG. A change of
/// credentials clears it.
pub fn die_with_parent(on: bool) -> nix::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, if on { libc::SIGKILL as u64 } else { 0 }, 0).map(drop)
}

/// Makes this process the new parent of its orphaned descendants: PR_SET_CHILD_SUBREAPER.
pub fn become_subreaper() -> nix::Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0).map(drop)
}
