//! The control socket of a running device: one JSON line in, one JSON line out.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::state::Status;
use crate::volume::state_map::Heat;
use crate::{Context, Error, ErrorKind, Result};

/// The longest question, in bytes.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// The longest answer, in bytes: a map of [`MAP_PARTS_MAX`] parts.
pub(super) const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// In how many parts a volume's map can be asked for.
pub const MAP_PARTS_MAX: u32 = 8192;

/// How many programs may ask at a time.
const CONNECTIONS_MAX: usize = 16;

/// How long a program may take to ask, or to take its answer.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);

/// How many orders wait until the device's process takes them.
const ORDERS_MAX: usize = 8;

pub(super) const SOCKET: &str = "control.sock";

/// What can be asked of a running device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
pub(super) enum Request {
    /// What has it done so far?
    Status,
    /// How much of each part of the volume is local, and dirty?
    Map {
        /// The number of parts.
        parts: u32,
    },
    /// Something that the process has to do first.
    #[serde(untagged)]
    Order(Command),
}

/// What a running device can be told to do. Each is answered when it is done, or why it is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
pub enum Command {
    /// Flush, remove the device, and end.
    Stop {
        /// Also when somebody holds the device open.
        force: bool,
        /// Give up local writes of a managed mount that the origin does not have.
        #[serde(default)]
        discard_dirty: bool,
    },
    /// Make everything that was written durable at the resource; the device goes on.
    Sync,
    /// Have the volume that is leeched move here as soon as possible.
    Finalize,
    /// Give the migration up.
    Abort,
}

/// What a running device answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub(super) enum Reply {
    /// Its counters.
    Status(Box<Status>),
    /// The parts of the volume; of small ones there may be fewer than were asked for.
    Map {
        /// From its start to its end.
        parts: Vec<Heat>,
    },
    /// The order was carried out.
    Done {
        /// What whoever gave it should know.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        note: Option<String>,
    },
    /// The device has ended as it was told, and something went wrong with it.
    EndedWith {
        /// The whole chain of causes.
        message: String,
    },
    /// The device ended for another reason before it came to it.
    Ended,
    /// It was not, or the question was not understood.
    Failed {
        /// Whether somebody holds what is asked for.
        busy: bool,
        /// The whole chain of causes.
        message: String,
    },
}

impl Reply {
    fn failed(error: &Error) -> Self {
        Self::Failed {
            busy: error.kind() == ErrorKind::Busy,
            message: error.chain(),
        }
    }
}

/// An order that waits for its answer. Dropping it unanswered tells the one who gave it that the
/// device ended first.
#[derive(Debug)]
pub struct Order {
    command: Command,
    answer: oneshot::Sender<Answer>,
}

#[derive(Debug)]
struct Answer {
    result: Result<Option<String>>,
    /// The device is gone.
    ended: bool,
    delivered: oneshot::Sender<()>,
}

impl Order {
    /// What is to be done.
    pub fn command(&self) -> &Command {
        &self.command
    }

    /// Says how it went, and waits until that was delivered or the other end has gone away, so
    /// that the process may end afterwards. Never takes longer than a few seconds.
    pub async fn answer(self, result: Result<()>) {
        self.answer_with(result.map(|()| None)).await;
    }

    /// The same, with something that whoever gave the order should know though it was carried out.
    pub async fn answer_with(self, result: Result<Option<String>>) {
        self.deliver(result, false).await;
    }

    /// The same where the device has ended, also if something went wrong with that.
    pub async fn answer_ended(self, result: Result<Option<String>>) {
        self.deliver(result, true).await;
    }

    async fn deliver(self, result: Result<Option<String>>, ended: bool) {
        let (delivered, delivery) = oneshot::channel();
        let answer = Answer {
            result,
            ended,
            delivered,
        };
        if self.answer.send(answer).is_ok() {
            let _ = timeout(PEER_TIMEOUT, delivery).await;
        }
    }
}

type MapCall = Arc<dyn Fn(u64) -> Option<Vec<Heat>> + Send + Sync>;

/// What questions are answered with.
pub struct Answers {
    status: Box<dyn Fn() -> Status + Send + Sync>,
    map: Option<MapCall>,
}

impl<F: Fn() -> Status + Send + Sync + 'static> From<F> for Answers {
    /// `status` is called on the tokio runtime and must not block. There is no map.
    fn from(status: F) -> Self {
        Self {
            status: Box::new(status),
            map: None,
        }
    }
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answers").finish_non_exhaustive()
    }
}

impl Answers {
    /// With the map of the volume in so many parts. The call may block; `None`: the volume is gone.
    #[must_use]
    pub fn with_map(self, map: impl Fn(u64) -> Option<Vec<Heat>> + Send + Sync + 'static) -> Self {
        Self {
            map: Some(Arc::new(map)),
            ..self
        }
    }

    async fn map(&self, parts: u32) -> Reply {
        let refused = |kind, why: String| Reply::failed(&Error::new(kind, why));
        let Some(map) = self.map.clone() else {
            let why = "only managed mounts have a map: a direct one keeps nothing here";
            return refused(ErrorKind::Unsupported, why.to_owned());
        };
        if !(1..=MAP_PARTS_MAX).contains(&parts) {
            let why = format!("a map has 1 to {MAP_PARTS_MAX} parts, not {parts}");
            return refused(ErrorKind::InvalidInput, why);
        }
        match tokio::task::spawn_blocking(move || map(parts.into())).await {
            Ok(Some(parts)) => Reply::Map { parts },
            Ok(None) | Err(_) => Reply::Ended,
        }
    }
}

/// The socket of a running device. Dropping it closes the socket.
#[derive(Debug)]
pub struct Control {
    orders: mpsc::Receiver<Order>,
    listening: JoinHandle<()>,
}

impl Control {
    /// The next order. Waits for ever if none comes; may be cancelled and called again.
    pub async fn order(&mut self) -> Order {
        match self.orders.recv().await {
            Some(order) => order,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Opens the control socket in a claimed directory and answers there from a task of the running
/// tokio runtime.
///
/// # Errors
/// When the socket cannot be made.
pub fn serve(directory: &Path, answers: impl Into<Answers>) -> Result<Control> {
    let path = directory.join(SOCKET);
    let cannot = || format!("cannot make the control socket {}", path.display());
    let listener = UnixListener::bind(&path).context_io(cannot)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).context_io(cannot)?;
    let (sender, orders) = mpsc::channel(ORDERS_MAX);
    let listening = tokio::spawn(listen(listener, Arc::new(answers.into()), sender));
    Ok(Control { orders, listening })
}

/// Removes the socket of a process that has died, from a directory that is claimed.
pub(super) fn remove_socket(directory: &Path) -> Result<()> {
    let path = directory.join(SOCKET);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(
            format!("cannot remove {}", path.display()),
            error,
        )),
        _ => Ok(()),
    }
}

async fn listen(listener: UnixListener, answers: Arc<Answers>, orders: mpsc::Sender<Order>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: others may close theirs meanwhile.
                tracing::warn!(%error, "control socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!("more than {CONNECTIONS_MAX} programs ask at a time; one was sent away");
            continue;
        };
        let (answers, orders) = (Arc::clone(&answers), orders.clone());
        tokio::spawn(async move {
            converse(stream, &answers, &orders).await;
            drop(place);
        });
    }
}

/// Serves one connection: a question, an answer.
async fn converse(mut stream: UnixStream, answers: &Answers, orders: &mpsc::Sender<Order>) {
    let Ok(Some(line)) = timeout(PEER_TIMEOUT, read_line(&mut stream)).await else {
        return;
    };
    let mut delivered = None;
    let reply = match understood(&line) {
        Err(error) => Reply::failed(&error),
        Ok(Request::Status) => Reply::Status(Box::new((answers.status)())),
        Ok(Request::Map { parts }) => answers.map(parts).await,
        Ok(Request::Order(command)) => {
            match carried_out(command, orders, &mut stream, &mut delivered).await {
                Some(reply) => reply,
                None => return,
            }
        }
    };
    let Ok(mut text) = serde_json::to_vec(&reply) else {
        return;
    };
    text.push(b'\n');
    let _ = timeout(PEER_TIMEOUT, stream.write_all(&text)).await;
    drop(stream);
    if let Some(delivered) = delivered {
        let _: Result<(), ()> = oneshot::Sender::send(delivered, ());
    }
}

/// A line, or `None` where there is none within the limit.
async fn read_line(stream: &mut UnixStream) -> Option<String> {
    let mut line = String::new();
    let mut reader = BufReader::new(stream.take(LINE_BYTES_MAX));
    reader.read_line(&mut line).await.ok()?;
    line.ends_with('\n').then_some(line)
}

fn understood(line: &str) -> Result<Request> {
    serde_json::from_str(line).map_err(|error| {
        Error::new(
            ErrorKind::Unsupported,
            "the process that serves this device does not understand the request; it may be of \
             another version",
        )
        .because(error)
    })
}

/// Hands an order over and waits for its answer, or until whoever gave it has gone away (`None`).
async fn carried_out(
    command: Command,
    orders: &mpsc::Sender<Order>,
    stream: &mut UnixStream,
    delivered: &mut Option<oneshot::Sender<()>>,
) -> Option<Reply> {
    let (answer, answered) = oneshot::channel();
    if orders.try_send(Order { command, answer }).is_err() {
        return Some(Reply::failed(&Error::new(
            ErrorKind::Busy,
            "the device is ending, or busy with other orders",
        )));
    }
    let mut byte = [0];
    let answer = tokio::select! {
        biased;
        answer = answered => answer,
        _ = stream.read(&mut byte) => return None,
    };
    Some(match answer {
        Ok(answer) => {
            *delivered = Some(answer.delivered);
            match answer.result {
                Ok(note) => Reply::Done { note },
                Err(error) if answer.ended => Reply::EndedWith {
                    message: error.chain(),
                },
                Err(error) => Reply::failed(&error),
            }
        }
        Err(_) => Reply::Ended,
    })
}
