//! fdchild: restores the table of an image in a child process, by an executor that sends each
//! operation over a socket. It proves that the driver and the kinds need no table of their own.
//!
//! Usage: fdchild [--log FILE] [--highest N] [--skip] IMAGE [-- COMMAND [ARG...]]
//!
//! The child becomes COMMAND, with the 0, 1 and 2 of the caller, and fdchild exits with the status of
//! COMMAND, or with 125. Without COMMAND the child holds the descriptors with their close-on-exec
//! flags; fdchild prints its process id and waits for its end.
//!
//! `--log FILE` writes a line of JSON for each operation that the child has run: `operation`,
//! `outcome`, and `capacity`, the slots of the child's table after it. `--highest N`: the table of the
//! child has had this number open. `--skip` is `--missing skip` of fdrestore.

use fdkit::error::{At, Error, Result, Status};
use fdkit::kind::DecodedImage;
use fdkit::kind::context::{CttyPlan, Held, PidMap};
use fdkit::kind::effect::AllowList;
use fdkit::messages::Messages;
use fdkit::operation::{Operation, Outcome};
use fdkit::placement::{self, Placement, TableNeeds};
use fdkit::plan::{Inherit, Missing, Plan, RestoreOptions};
use fdkit::proc;
use fdkit::sys::own_table::OwnTable;
use fdkit::sys::{fork, socket};
use fdkit::table::command::set_controlling_terminal;
use fdkit::table::direct::DirectExecutor;
use fdkit::table::driver::TableRestore;
use fdkit::table::executor::Executor;
use fdkit::table::source::KindSource;
use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, pause, setsid};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::cell::RefCell;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
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
    /// Closes the socket and holds the descriptors until the child is killed. There is no reply.
    Hold,
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
    pid: Pid,
    log: Option<RefCell<File>>,
}

impl Child {
    fn ask(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(Reply, Vec<OwnedFd>)> {
        send(self.socket.as_fd(), request, fds)?;
        match receive(self.socket.as_fd())? {
            (Reply::Failed(why), _) => Err(system(why)),
            other => Ok(other),
        }
    }

    /// Writes the line of an operation to the log.
    fn log(&self, operation: &Operation, outcome: &Outcome) -> Result<()> {
        let Some(log) = &self.log else { return Ok(()) };
        let capacity = proc::capacity_of(self.pid.as_raw())?;
        let line = json!({"operation": operation, "outcome": outcome, "capacity": capacity});
        Ok(writeln!(log.borrow_mut(), "{line}")?)
    }
}

impl Executor for Child {
    fn place(&mut self, fds: Vec<OwnedFd>, operations: &[Operation]) -> Result<Vec<Held>> {
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        self.ask(&Request::Place(operations.to_vec()), &borrowed)?;
        operations.iter().try_for_each(|operation| self.log(operation, &Outcome::Done))?;
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
        self.ask(&Request::Control(operation.clone()), &[terminal])?;
        self.log(operation, &Outcome::Done)
    }

    fn run(&mut self, operation: &Operation) -> Result<Outcome> {
        match self.ask(&Request::Run(operation.clone()), &[])?.0 {
            Reply::Outcome(outcome) => {
                self.log(operation, &outcome)?;
                Ok(outcome)
            }
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

/// The child: it runs what it is asked to on its own table. `highest` is a number that is opened and
/// closed before, so that the table is larger.
fn serve(socket: OwnedFd, number: RawFd, highest: Option<RawFd>) -> Result<()> {
    let table = OwnTable::take().ok_or(Errno::EBUSY)?;
    let mut socket = table.adopt(socket);
    if let Some(highest) = highest {
        table.close(table.dup(socket.as_fd(), highest).at(|| "--highest")?);
    }
    table.replace(&mut socket, number).at(|| "place the socket")?;
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
            Request::Hold => {
                table.close(socket);
                loop {
                    pause();
                }
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

/// The command line.
#[derive(Default)]
struct Args {
    image: OsString,
    command: Vec<String>,
    log: Option<OsString>,
    highest: Option<RawFd>,
    skip: bool,
}

impl Args {
    fn parse(words: &[OsString]) -> Result<Args> {
        let mut args = Args::default();
        let mut words = words.iter();
        let value = |word: Option<&OsString>| word.cloned().ok_or(Error::misuse("no value"));
        while let Some(word) = words.next() {
            match word.to_str() {
                Some("--log") => args.log = Some(value(words.next())?),
                Some("--highest") => {
                    let number = value(words.next())?;
                    let number = number.to_str().and_then(|number| number.parse().ok());
                    args.highest = Some(number.ok_or(Error::misuse("--highest: no number"))?);
                }
                Some("--skip") => args.skip = true,
                Some("--") => {
                    args.command = words.map(|word| word.to_string_lossy().into_owned()).collect();
                    break;
                }
                _ => args.image = word.clone(),
            }
        }
        Ok(args)
    }
}

fn run(args: &Args) -> Result<i32> {
    let bytes = std::fs::read(&args.image)?;
    let image = DecodedImage::load(&bytes[..])?;
    let own = vec![Inherit::SameNumbers(vec![0, 1, 2])];
    let missing = if args.skip { Missing::Skip } else { Missing::Fail };
    let allow = vec![AllowList::all()];
    let options = RestoreOptions { inherit: own, missing, allow, ..RestoreOptions::default() };
    let plan = Plan::new(&image, &options, None, false)?;
    plan.refuse(&mut messages())?;
    let numbers: Vec<u32> = plan.steps.iter().map(|step| step.fd as u32).collect();
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?.0;
    let limit = u32::try_from(limit).unwrap_or(u32::MAX);
    let wanted = TableNeeds { numbers: &numbers, sharers: 1, limit, ..TableNeeds::default() };
    let service = placement::service_numbers(Placement::Tight, &wanted, 1).ok_or(Errno::EMFILE)?[0];
    let log = args.log.as_ref().map(File::create).transpose()?.map(RefCell::new);
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let Some(pid) = fork::fork()? else {
        drop((ours, log));
        let served =
            start_child(&plan).and_then(|()| serve(theirs, service as RawFd, args.highest));
        if let Err(why) = served {
            eprintln!("fdchild: {why}");
        }
        fork::end(125)
    };
    drop(theirs);
    let mut executor = Child { socket: ours, pid, log };
    let restored = restore(&plan, &options, &bytes, args, &mut executor);
    drop(executor);
    let ended = waitpid(pid, None)?;
    restored?;
    match ended {
        WaitStatus::Exited(_, status) => Ok(status),
        other => Err(system(format!("the child ended: {other:?}"))),
    }
}

/// The first steps of the child: it ends with fdchild, and leads a session if it gets a terminal.
fn start_child(plan: &Plan<'_>) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    let takes_terminal = matches!(plan.terminal, CttyPlan::FromImage(_) | CttyPlan::FromPath(_));
    if takes_terminal {
        setsid()?;
    }
    Ok(())
}

/// Restores the table of the child, and lets it become COMMAND or hold its descriptors.
fn restore(
    plan: &Plan<'_>,
    options: &RestoreOptions,
    image: &[u8],
    args: &Args,
    executor: &mut Child,
) -> Result<()> {
    let pids = Pids { task: (plan.task.pid, plan.task.pgid), child: executor.pid.as_raw() };
    let cx = plan.context(image, &pids, None, options);
    let mut anew = KindSource;
    let mut restore = TableRestore::new(plan, options, cx, &mut anew, None);
    let mut messages = messages();
    restore.make_early(executor);
    set_controlling_terminal(plan, options, &mut restore, executor)?;
    restore.make(|_| true, executor)?;
    restore.end_making(executor, &mut messages)?;
    restore.move_to_final(executor)?;
    let mut unlocked = restore.finish(executor)?;
    unlocked.extend(restore.test_table_locks(executor)?);
    messages.extend(restore.cx.warnings.take());
    let restored = restore.end(plan);
    executor.run(&Operation::Shrink { capacity: placement::capacity(plan.highest()) })?;
    unlocked.extend(restored.take_table_locks(executor)?);
    messages.extend(unlocked);
    let cloexec = restored.close_on_exec();
    let end = match args.command.is_empty() {
        false => Request::Exec(args.command.clone(), cloexec),
        true => {
            for number in cloexec {
                executor.run(&Operation::CloseOnExec { first: number, last: number })?;
            }
            Request::Hold
        }
    };
    send(executor.socket.as_fd(), &end, &[])?;
    if args.command.is_empty() {
        println!("{}", executor.pid);
    }
    Ok(())
}

/// Messages that are written to stderr at once.
fn messages() -> Messages<'static> {
    Messages::passed(|line| eprintln!("fdchild: {line}"))
}

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    match Args::parse(&words).and_then(|args| run(&args)) {
        Ok(status) => ExitCode::from(status as u8),
        Err(why) => {
            eprintln!("fdchild: {why}");
            ExitCode::from(125)
        }
    }
}
