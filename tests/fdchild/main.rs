//! fdchild: restores the table of an image in a child process, by an executor that sends each
//! operation over a socket. It proves that the driver and the kinds need no table of their own.
//!
//! Usage: fdchild IMAGE -- COMMAND [ARG...]. COMMAND has the 0, 1 and 2 of the caller. It ends with the status of COMMAND, or with 125.

use fdkit::error::{At, Error, Result, Status};
use fdkit::kind::DecodedImage;
use fdkit::kind::context::{Held, PidMap};
use fdkit::operation::{Operation, Outcome};
use fdkit::placement::{self, Placement, TableNeeds};
use fdkit::plan::{Inherit, Plan, RestoreOptions};
use fdkit::sys::own_table::OwnTable;
use fdkit::sys::{fork, socket};
use fdkit::table::direct::DirectExecutor;
use fdkit::table::driver::TableRestore;
use fdkit::table::executor::Executor;
use fdkit::table::source::KindSource;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::{WaitStatus, waitpid};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// The longest message.
const LONGEST: usize = 1 << 17;

/// A request to the child. Descriptors come with it.
#[derive(Serialize, Deserialize)]
enum Request {
    /// [`Executor::place`]
    Place(Vec<Operation>),
    /// [`Executor::control`]
    Control(Operation),
    /// [`Executor::run`]
    Run(Operation),
    /// [`Executor::move_to_final`]
    Settle,
    /// [`Executor::held`]: a copy comes with the reply.
    Held(RawFd),
    /// Becomes COMMAND. There is no reply.
    Exec(Vec<String>, Vec<RawFd>),
}

/// The answer of the child.
#[derive(Serialize, Deserialize)]
enum Reply {
    Outcome(Outcome),
    Moves(Vec<(RawFd, RawFd)>),
    Failed(String),
}

fn send(to: BorrowedFd<'_>, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> Result<()> {
    let bytes = serde_cbor::to_vec(message).map_err(|err| system(err.to_string()))?;
    assert!(bytes.len() < LONGEST, "the message is too long");
    socket::send(to, &[], &bytes, fds, None).at(|| "send")?;
    Ok(())
}

fn receive<T: DeserializeOwned>(from: BorrowedFd<'_>) -> Result<(T, Vec<OwnedFd>)> {
    let mut ready = [nix::poll::PollFd::new(from, nix::poll::PollFlags::POLLIN)];
    nix::poll::poll(&mut ready, nix::poll::PollTimeout::NONE).at(|| "poll")?;
    let mut bytes = vec![0; LONGEST];
    // The descriptors are those of a look; then the message is taken away.
    let (len, _, ancillary) = socket::peek_message(from, &mut bytes, false).at(|| "receive")?;
    nix::unistd::read(from, &mut [0]).at(|| "receive")?;
    let message = serde_cbor::from_slice(&bytes[..len]).map_err(|err| system(err.to_string()))?;
    Ok((message, ancillary.fds))
}

fn system(why: impl Into<String>) -> Error {
    Error::new(Status::System, why.into())
}

/// The executor: the child that it speaks to has the table.
struct Child {
    socket: OwnedFd,
}

impl Child {
    fn ask(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(Reply, Vec<OwnedFd>)> {
        send(self.socket.as_fd(), request, fds)?;
        match receive(self.socket.as_fd())? {
            (Reply::Failed(why), _) => Err(system(why)),
            other => Ok(other),
        }
    }
}

impl Executor for Child {
    fn place(&mut self, fds: Vec<OwnedFd>, operations: &[Operation]) -> Result<Vec<Held>> {
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        self.ask(&Request::Place(operations.to_vec()), &borrowed)?;
        Ok(fds.into_iter().map(Held::Owned).collect())
    }

    fn held(&self, number: RawFd) -> Result<Held> {
        let (_, mut fds) = self.ask(&Request::Held(number), &[])?;
        Ok(Held::Owned(fds.pop().ok_or(Errno::EBADF)?))
    }

    fn inherited(&self, number: RawFd) -> Result<Held> {
        self.held(number)
    }

    fn control(&mut self, terminal: BorrowedFd<'_>, operation: &Operation) -> Result<()> {
        self.ask(&Request::Control(operation.clone()), &[terminal]).map(drop)
    }

    fn run(&mut self, operation: &Operation) -> Result<Outcome> {
        match self.ask(&Request::Run(operation.clone()), &[])?.0 {
            Reply::Outcome(outcome) => Ok(outcome),
            _ => Err(system("an answer to another question")),
        }
    }

    fn move_to_final(&mut self) -> Result<Vec<(RawFd, RawFd)>> {
        match self.ask(&Request::Settle, &[])?.0 {
            // What is at a number of the child's is not at one of ours.
            Reply::Moves(_) => Ok(Vec::new()),
            _ => Err(system("an answer to another question")),
        }
    }
}

/// The child: it runs what it is asked to on its own table.
fn serve(socket: OwnedFd, number: RawFd) -> Result<()> {
    let table = OwnTable::take().ok_or(Errno::EBUSY)?;
    let placed = table.adopt(socket);
    let socket = table.replace(placed, number).at(|| "place the socket")?;
    for (first, last) in [(3, number - 1), (number + 1, RawFd::MAX)] {
        if first <= last {
            table.close_range(first, last).at(|| "close_range")?;
        }
    }
    let mut own = DirectExecutor::new(&table, Placement::Tight, Some(number));
    loop {
        let (request, fds): (Request, _) = receive(socket.as_fd())?;
        let reply = match request {
            Request::Place(operations) => {
                own.place(fds, &operations).map(|_| Reply::Outcome(Outcome::Done))
            }
            Request::Control(operation) => match fds.first() {
                Some(fd) => {
                    own.control(fd.as_fd(), &operation).map(|()| Reply::Outcome(Outcome::Done))
                }
                None => Err(Errno::EBADF.into()),
            },
            Request::Run(operation) => own.run(&operation).map(Reply::Outcome),
            Request::Settle => own.move_to_final().map(Reply::Moves),
            Request::Held(number) => match table.at(number) {
                Ok(placed) => {
                    let done = Reply::Outcome(Outcome::Done);
                    send(socket.as_fd(), &done, &[placed.as_fd()])?;
                    continue;
                }
                Err(errno) => Err(errno.into()),
            },
            Request::Exec(words, cloexec) => {
                let mut command = Command::new(&words[0]);
                command.args(&words[1..]).env_remove("FDRESTORE_CLOEXEC");
                if !cloexec.is_empty() {
                    let list: Vec<String> = cloexec.iter().map(ToString::to_string).collect();
                    command.env("FDRESTORE_CLOEXEC", list.join(","));
                }
                return Err(command.exec().into());
            }
        };
        let reply = reply.unwrap_or_else(|err| Reply::Failed(err.to_string()));
        send(socket.as_fd(), &reply, &[])?;
    }
}

/// The child as the only task of the image.
struct Pids {
    task: (i32, i32),
    child: i32,
}

impl PidMap for Pids {
    fn process(&self, pid: i32) -> Option<i32> {
        (pid == self.task.0).then_some(self.child)
    }

    fn group(&self, pgid: i32) -> Option<i32> {
        (pgid == self.task.0).then(|| nix::unistd::getpgrp().as_raw())
    }
}

fn run(words: &[OsString]) -> Result<i32> {
    let [path, _, command @ ..] = words else { return Err(Error::misuse("IMAGE -- COMMAND")) };
    let bytes = std::fs::read(path)?;
    let image = DecodedImage::load(&bytes[..])?;
    let own = (0..3).map(Inherit::SameNumber).collect();
    let options = RestoreOptions { inherit: own, ..RestoreOptions::default() };
    let plan = Plan::new(&image, &options, None, false)?;
    plan.refuse(&mut |line| eprintln!("fdchild: {line}"))?;
    let numbers: Vec<u32> = plan.steps.iter().map(|step| step.fd as u32).collect();
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?.0;
    let limit = u32::try_from(limit).unwrap_or(u32::MAX);
    let wanted = TableNeeds { numbers: &numbers, sharers: 1, limit, ..TableNeeds::default() };
    let service = placement::service_numbers(Placement::Tight, &wanted, 1).ok_or(Errno::EMFILE)?[0];
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let Some(child) = fork::fork()? else {
        drop(ours);
        let why = serve(theirs, service as RawFd);
        if let Err(why) = why {
            eprintln!("fdchild: {why}");
        }
        fork::end(125)
    };
    drop(theirs);
    let pids = Pids { task: (plan.task.pid, plan.task.pgid), child: child.as_raw() };
    let mut executor = Child { socket: ours };
    let cx = plan.context(&bytes, &pids, None, options.changed);
    let mut anew = KindSource;
    let mut restore = TableRestore::new(&plan, &options, cx, &mut anew, None);
    let mut say = |line: &str| eprintln!("fdchild: {line}");
    restore.make_early(&mut executor);
    restore.make(|_| true, &mut executor)?;
    restore.end_making(&mut executor, &mut say)?;
    restore.move_to_final(&mut executor)?;
    let mut unlocked = restore.finish(&mut executor)?;
    restore.cx.warnings.iter().for_each(|line| say(line));
    let restored = restore.end(&plan);
    unlocked.extend(restored.take_table_locks(&mut executor)?);
    unlocked.iter().for_each(|line| say(line));
    let command = command.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let exec = Request::Exec(command, restored.close_on_exec());
    send(executor.socket.as_fd(), &exec, &[])?;
    drop(executor);
    match waitpid(child, None)? {
        WaitStatus::Exited(_, status) => Ok(status),
        other => Err(system(format!("the child ended: {other:?}"))),
    }
}

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    match run(&words) {
        Ok(status) => ExitCode::from(status as u8),
        Err(why) => {
            eprintln!("fdchild: {why}");
            ExitCode::from(125)
        }
    }
}
