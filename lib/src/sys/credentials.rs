//! Who a process runs as: credentials(7), capabilities(7).

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

/// Sets the effective, permitted and inheritable capabilities of this process, a bit each.
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

/// Takes a capability out of the bounding set, for good.
pub fn drop_bound(capability: u32) -> nix::Result<()> {
    prctl(libc::PR_CAPBSET_DROP, capability.into(), 0).map(drop)
}

/// Adds a capability, permitted and inheritable, to the ambient ones.
pub fn raise_ambient(capability: u32) -> nix::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, capability.into()).map(drop)
}

/// Keeps the permitted capabilities over the next change of user ids.
pub fn keep_capabilities(on: bool) -> nix::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, on.into(), 0).map(drop)
}

/// Whether /proc shows this process to its own user, and to debuggers.
pub fn set_dumpable(on: bool) -> nix::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, on.into(), 0).map(drop)
}

/// Has this process killed when its parent ends: PR_SET_PDEATHSIG.
pub fn die_with_parent(on: bool) -> nix::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, if on { libc::SIGKILL as u64 } else { 0 }, 0).map(drop)
}

/// Makes orphans of this process's descendants its own children: PR_SET_CHILD_SUBREAPER.
pub fn adopt_orphans() -> nix::Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0).map(drop)
}
