//! The stream to the seeder, opened anew as long as there may be one.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::runner::Input;
use crate::migrate::on_their_way::OnTheirWay;
use crate::migrate::protocol::{AttemptId, BlockSet, ToLeecher};
use crate::migrate::wire_form::{self, FromSeeder, Piece};
use crate::net::{MessageReceiver, MessageSender, Remote};
use crate::wire::migration::{self as wire, MigrationMessage};
use crate::{Error, ErrorKind};

/// How many messages may wait to be sent. What does not fit is lost, and said again.
const MESSAGES_MAX: usize = 64;

/// How many pieces of the second phase may wait to be written. Then the seeder waits.
const PIECES_MAX: usize = 16;

/// Between two tries to open a stream.
const PAUSE: Duration = Duration::from_millis(100);

/// How many streams in a row may end because the seeder breaks the protocol. Then it will go on doing so.
const BROKEN_MAX: u32 = 5;

type Outgoing = (wire::ToSeeder, Option<BlockSet>);

/// The way to the seeder as long as a stream is open.
pub(super) struct ToSend {
    outgoing: mpsc::Sender<Outgoing>,
    questions: OnTheirWay<wire::ToSeeder>,
}

impl ToSend {
    /// Sends a message. Whether it is on its way.
    pub(super) fn send(&self, message: Outgoing) -> bool {
        let question = message.0.carries_blocks().then(|| message.0.clone());
        let queue = || self.outgoing.try_send(message).is_ok();
        match question {
            Some(question) => self.questions.queue(question, queue),
            None => queue(),
        }
    }
}

/// Keeps a stream open until there can be none any more.
pub(super) async fn keep_open(remote: Arc<Remote>, inputs: mpsc::Sender<Input>) -> Error {
    let mut broken = 0;
    loop {
        let error = match remote.open_messages().await {
            Ok((sender, receiver)) => {
                let (outgoing, to_send) = mpsc::channel(MESSAGES_MAX);
                let questions = OnTheirWay::default();
                let sending = tokio::spawn(send(sender, to_send, questions.clone()));
                let to_send = ToSend {
                    outgoing,
                    questions,
                };
                let _ = inputs.send(Input::Connected(to_send)).await;
                let error = receive(receiver, &inputs).await;
                sending.abort();
                tracing::debug!(error = error.chain(), "the stream to the seeder is gone");
                let _ = inputs.send(Input::Disconnected).await;
                error
            }
            Err(error) => error,
        };
        match error.kind() {
            ErrorKind::Unreachable => broken = 0,
            ErrorKind::Protocol if broken + 1 < BROKEN_MAX => {
                if broken == 0 {
                    tracing::warn!(error = error.chain(), "the seeder is tried again");
                }
                broken += 1;
            }
            _ => return error,
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn receive(mut receiver: MessageReceiver, inputs: &mpsc::Sender<Input>) -> Error {
    // Where the bytes of the last attempt go.
    let mut arriving: Option<(AttemptId, mpsc::Sender<Piece>)> = None;
    loop {
        match receiver.receive().await {
            Ok((message, payload)) => {
                let held = match message {
                    wire::ToLeecher::Dirty { held_us, .. } => Some(Duration::from_micros(held_us)),
                    _ => None,
                };
                let message = match wire_form::from_seeder(message, payload) {
                    FromSeeder::Message(message) => message,
                    FromSeeder::Bytes(attempt, piece) => {
                        if let Some((wanted, pieces)) = &arriving
                            && *wanted == attempt
                        {
                            // Nobody takes them when the attempt is over.
                            let _ = pieces.send(piece).await;
                        }
                        continue;
                    }
                };
                let mut pieces = None;
                if let ToLeecher::Dirty { attempt, .. } = &message
                    && arriving.as_ref().is_none_or(|(of, _)| of != attempt)
                {
                    let (to_store, from_seeder) = mpsc::channel(PIECES_MAX);
                    arriving = Some((*attempt, to_store));
                    pieces = Some((*attempt, from_seeder));
                }
                let said = Input::Said {
                    message,
                    held,
                    at: Instant::now(),
                    pieces,
                };
                let _ = inputs.send(said).await;
            }
            Err(error) => return error,
        }
    }
}

async fn send(
    mut sender: MessageSender,
    mut to_send: mpsc::Receiver<Outgoing>,
    questions: OnTheirWay<wire::ToSeeder>,
) {
    while let Some((message, blocks)) = to_send.recv().await {
        let blocks = blocks.as_ref().map(BlockSet::as_treemap);
        // The other half sees the end, too.
        if sender.send(&message, blocks).await.is_err() {
            return;
        }
        questions.sent(&message);
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;
    use crate::backend::{OpenOptions, open};
    use crate::net::{Content, RemoteOptions, ServedVolume, Server, ServerConfig, arrivals};

    /// Generous: nothing depends on it but when a failure is reported.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_seeder_that_breaks_the_protocol_each_time_is_not_tried_for_ever() {
        let resource = open("mem:1MiB", &OpenOptions::default()).expect("opened");
        let state = tempfile::tempdir().expect("a directory");
        let config = ServerConfig {
            state_dir: Some(state.path().to_owned()),
            ..ServerConfig::on("127.0.0.1:0".parse().expect("an address"))
        };
        let mut server = Server::bind(config, Vec::new()).expect("it listens");
        let (to_arrive, mut arriving) = arrivals();
        let ticket = server
            .add(ServedVolume {
                name: "disk".parse().expect("a name"),
                backend: resource.as_async(),
                block_bytes: None,
                read_only: true,
                content: Content::Instance,
                instance: resource.instance,
                leechers: Some(to_arrive),
            })
            .expect("added");
        let serving = tokio::spawn(server.run(pending()));
        let speaking = tokio::spawn(async move {
            let mut arrived = Vec::new();
            while let Some(mut arrival) = arriving.recv().await {
                // Something else than a seeder says.
                let nonsense = wire::ToSeeder::Leech {
                    migration: [0xff; 16],
                    name: "x".repeat(64),
                };
                let _ = arrival.sender.send(&nonsense, None).await;
                arrived.push(arrival);
            }
        });
        let options = RemoteOptions {
            read_only: true,
            ..RemoteOptions::default()
        };
        let remote = Remote::connect(ticket, options).await.expect("connected");
        let (input, mut inputs) = mpsc::channel(16 * BROKEN_MAX as usize);
        let ended = tokio::time::timeout(PATIENCE, keep_open(remote, input)).await;
        assert_eq!(ended.expect("it ends").kind(), ErrorKind::Protocol);
        let mut streams = 0;
        while let Some(input) = inputs.recv().await {
            streams += u32::from(matches!(input, Input::Connected(_)));
        }
        assert_eq!(streams, BROKEN_MAX);
        speaking.abort();
        serving.abort();
    }
}
