//! Asks a running device over its control socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::control::{ANSWER_BYTES_MAX, Command, Reply, Request, SOCKET};
use super::state::Status;
use crate::volume::state_map::Heat;
use crate::{Error, ErrorKind, Result};

/// The counters of the device whose state is in `directory`.
pub(super) fn status(directory: &Path, patience: Duration) -> Result<Status> {
    match ask(directory, &Request::Status, patience)? {
        Reply::Status(status) => Ok(*status),
        Reply::Failed { busy, message } => Err(failed(busy, message)),
        other => Err(unexpected(&other)),
    }
}

/// The map of the volume behind the device, in so many parts.
pub(super) fn map(directory: &Path, parts: u32, patience: Duration) -> Result<Vec<Heat>> {
    match ask(directory, &Request::Map { parts }, patience)? {
        Reply::Map { parts } => Ok(parts),
        Reply::Failed { busy, message } => Err(failed(busy, message)),
        other => Err(unexpected(&other)),
    }
}

fn unexpected(reply: &Reply) -> Error {
    let what = match reply {
        Reply::Ended => "the device is ending",
        _ => "the process answered something else than it was asked",
    };
    Error::new(ErrorKind::Protocol, what)
}

/// What came of an order.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It was carried out; with what the process has to say to that.
    Done(Option<String>),
    /// The process says that it was not, or not without loss.
    Failed(Error),
    /// The device ended as it was told, and something went wrong with it.
    EndedWith(Error),
    /// The device ended, or is ending, for another reason.
    Ended,
}

/// Has a command carried out, and says what came of it. An error: the process could not be asked.
pub(super) fn order(directory: &Path, command: Command, patience: Duration) -> Result<Outcome> {
    match ask(directory, &Request::Order(command), patience)? {
        Reply::Failed { busy, message } => Ok(Outcome::Failed(failed(busy, message))),
        Reply::EndedWith { message } => Ok(Outcome::EndedWith(failed(false, message))),
        Reply::Ended => Ok(Outcome::Ended),
        Reply::Done { note } => Ok(Outcome::Done(note)),
        other => Err(unexpected(&other)),
    }
}

fn failed(busy: bool, message: String) -> Error {
    let kind = if busy { ErrorKind::Busy } else { ErrorKind::Io };
    Error::new(kind, message)
}

fn ask(directory: &Path, request: &Request, patience: Duration) -> Result<Reply> {
    let socket = directory.join(SOCKET);
    exchange(&socket, request, patience).or_else(|error| match error.kind() {
        // The process has closed its end, which is among the last things that it does.
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::UnexpectedEof => Ok(Reply::Ended),
        // That is what a socket's timeout is reported as.
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Err(Error::new(
            ErrorKind::TimedOut,
            format!(
                "the process did not answer within {} s",
                patience.as_secs_f32()
            ),
        )),
        _ => Err(Error::io("the process cannot be asked", error)),
    })
}

fn exchange(socket: &Path, request: &Request, patience: Duration) -> io::Result<Reply> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(patience))?;
    stream.set_read_timeout(Some(patience))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&answer)?)
}
