//! The end of a process that gets no memory: a message and a status, where std would end it by SIGABRT.

use super::own_table;
use nix::libc;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

/// The allocator of the system. A process for which it has no memory exits.
struct SystemOrExit;

#[global_allocator]
static ALLOCATOR: SystemOrExit = SystemOrExit;

/// The name of the tool, for the message.
static NAME: OnceLock<&'static str> = OnceLock::new();
/// The exit status: 7 of fdkit(7), or what [`set_status`] has set.
static STATUS: AtomicI32 = AtomicI32::new(7);

/// Sets the name of the tool for the message; the first call counts.
pub fn set_name(name: &'static str) {
    let _ = NAME.set(name);
}

/// Sets the exit status of a process that gets no memory.
pub fn set_status(status: u8) {
    STATUS.store(i32::from(status), Ordering::Relaxed);
}

/// Exits if there is no memory at `found`.
fn or_exit(found: *mut u8) -> *mut u8 {
    if found.is_null() {
        exit();
    }
    found
}

#[cold]
fn exit() -> ! {
    // Number 2 may be a restored descriptor by now.
    if !own_table::is_taken() {
        for part in [NAME.get().copied().unwrap_or("fdkit"), ": out of memory\n"] {
            // SAFETY: the kernel reads the bytes of `part`. Nothing is allocated.
            unsafe { libc::write(2, part.as_ptr().cast(), part.len()) };
        }
    }
    // SAFETY: _exit(2) runs no code of this process.
    unsafe { libc::_exit(STATUS.load(Ordering::Relaxed)) }
}

// SAFETY: each call is one of the allocator of the system with the same arguments, and its result is
// returned as it is, unless it is null: then the call does not return.
unsafe impl GlobalAlloc for SystemOrExit {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of this method, which is the same.
        or_exit(unsafe { System.alloc(layout) })
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above; `at` is of `System`, as all are.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        or_exit(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        or_exit(unsafe { System.realloc(at, layout, size) })
    }
}
