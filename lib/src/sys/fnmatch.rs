//! fnmatch(3): the patterns of the shell.

use nix::libc;
use std::ffi::{CStr, CString};

/// Whether a name matches a pattern of the shell, byte for byte: fnmatch(3) without flags, so that
/// `*` also matches a slash. A name with a NUL in it matches nothing.
pub fn matches(pattern: &CStr, name: &[u8]) -> bool {
    let Ok(name) = CString::new(name) else { return false };
    // SAFETY: both are C strings that outlive the call.
    unsafe { libc::fnmatch(pattern.as_ptr(), name.as_ptr(), 0) == 0 }
}
