//! The fdstore: a queue of descriptors, behind one number, of which several processes take copies.
//!
//! The queue is that of a unix datagram socket connected to itself. A message has a run of descriptors
//! (SCM_RIGHTS) and one byte. MSG_PEEK receives a message without removing it, and SO_PEEK_OFF
//! selects it (unix(7), socket(7)). Since the sender is also the receiver, the limit of the peer's
//! queue (net.unix.max_dgram_qlen) does not apply.

use crate::error::{At, Error, Result};
use crate::sys;
use crate::sys::shared_mem::SharedMem;
use nix::errno::Errno;
use nix::libc;
use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

/// The fdstore in one process.
pub struct Store<'b> {
    socket: Socket<'b>,
    lock: (&'b SharedMem, usize),
    messages: Cell<u32>,
}

/// The socket of an fdstore.
enum Socket<'b> {
    Owned(OwnedFd),
    Borrowed(BorrowedFd<'b>),
}

impl AsFd for Socket<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Owned(fd) => fd.as_fd(),
            Socket::Borrowed(fd) => *fd,
        }
    }
}

impl<'b> Store<'b> {
    /// Creates an empty fdstore. `lock` is a cell of shared memory by which all receivers exclude
    /// each other, because SO_PEEK_OFF is a state of the socket.
    pub fn new(lock: (&'b SharedMem, usize)) -> Result<Store<'b>> {
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
        let socket = sys::socket::new(libc::AF_UNIX, kind, 0).at(|| "the fdstore")?;
        // autobind of unix(7): for an address of the family alone, the kernel chooses a free
        // abstract name.
        let family = (libc::AF_UNIX as libc::sa_family_t).to_ne_bytes();
        sys::socket::bind(socket.as_fd(), &family).at(|| "the fdstore")?;
        let name = sys::socket::name(socket.as_fd()).at(|| "the fdstore")?;
        sys::socket::connect(socket.as_fd(), &name).at(|| "the fdstore")?;
        let store = Store { socket: Socket::Owned(socket), lock, messages: Cell::new(0) };
        // Each message takes some hundred bytes of the buffer. The FORCE options, which exceed
        // wmem_max, take CAP_NET_ADMIN.
        for buffer in [libc::SO_SNDBUFFORCE, libc::SO_RCVBUFFORCE] {
            let _ = store.set(buffer, i32::MAX / 2);
        }
        Ok(store)
    }

    fn set(&self, option: i32, value: i32) -> nix::Result<()> {
        sys::socket::set_option(self.socket.as_fd(), libc::SOL_SOCKET, option, value)
    }

    /// Sends a message of at most [`MAX_FDS`](sys::socket::MAX_FDS) descriptors. Returns its index.
    pub fn put(&mut self, fds: &[BorrowedFd<'_>]) -> Result<u32> {
        match sys::socket::send(self.socket.as_fd(), &[], &[0], fds, None) {
            Err(Errno::EAGAIN) => {
                let why = "it is full; raise net.core.wmem_max with sysctl(8)";
                return Err(Error::from(Errno::EAGAIN).at(why).at("the fdstore"));
            }
            sent => drop(sent.at(|| "the fdstore")?),
        }
        Ok(self.messages.replace(self.messages.get() + 1))
    }

    /// Receives copies of the `count` descriptors of a message, at the lowest free numbers,
    /// ascending. Fails with EMFILE if the limit of open files does not permit all of them.
    pub fn get(&self, message: u32, count: usize) -> Result<Vec<OwnedFd>> {
        let _lock = StoreLock::take(self.lock.0, self.lock.1);
        self.messages.set(self.messages.get() + 1);
        self.set(libc::SO_PEEK_OFF, message as i32).at(|| "SO_PEEK_OFF")?;
        let fds = sys::socket::peek_message(self.socket.as_fd(), &mut [0], false)?.2.fds;
        match fds.len() == count {
            true => Ok(fds),
            // The kernel truncates the message (MSG_CTRUNC) at the limit of open files.
            false => Err(Errno::EMFILE.into()),
        }
    }

    /// An fdstore that another process has filled, by a descriptor of its socket.
    pub fn borrowed(socket: BorrowedFd<'b>, lock: (&'b SharedMem, usize)) -> Store<'b> {
        Store { socket: Socket::Borrowed(socket), lock, messages: Cell::new(0) }
    }

    /// The number of messages that were sent and received by this value.
    pub fn messages(&self) -> u32 {
        self.messages.get()
    }
}

impl AsFd for Store<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A lock between processes, in a cell: 0 free, 1 held, 2 held and waited for (futex(2)).
struct StoreLock<'a>(&'a SharedMem, usize);

impl<'a> StoreLock<'a> {
    fn take(shared: &'a SharedMem, at: usize) -> StoreLock<'a> {
        let cell = shared.cell(at);
        if cell.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            while cell.swap(2, Ordering::Acquire) != 0 {
                shared.wait(at, 2, None);
            }
        }
        StoreLock(shared, at)
    }
}

impl Drop for StoreLock<'_> {
    fn drop(&mut self) {
        if self.0.cell(self.1).swap(0, Ordering::Release) == 2 {
            self.0.wake_some(self.1, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clone_files::in_own_table;
    use std::os::fd::AsRawFd;

    fn inode(fd: BorrowedFd<'_>) -> u64 {
        crate::proc::inode_of(fd).unwrap().ino
    }

    #[test]
    fn messages_are_received_any_number_of_times_in_any_order() {
        // In a table of its own the lowest free number only rises. All are below a limit of 1024.
        in_own_table(|| {
            let shared = SharedMem::new(1, 0).unwrap();
            let mut store = Store::new((&shared, 0)).unwrap();
            let pipes: Vec<OwnedFd> = (0..500).map(|_| nix::unistd::pipe().unwrap().0).collect();
            let runs: Vec<&[OwnedFd]> = pipes.chunks(100).collect();
            for (at, run) in runs.iter().enumerate() {
                let fds: Vec<BorrowedFd<'_>> = run.iter().map(AsFd::as_fd).collect();
                assert_eq!(store.put(&fds).unwrap(), at as u32);
            }
            for at in [3, 4, 0, 3] {
                let got = store.get(at, 100).unwrap();
                for (got, put) in got.iter().zip(runs[at as usize]) {
                    assert_eq!(inode(got.as_fd()), inode(put.as_fd()));
                }
                assert!(got.is_sorted_by_key(AsRawFd::as_raw_fd));
            }
        });
    }
}
