//! The stream to the seeder, opened anew as long as there may be one.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::runner::Input;
use crate::migrate::protocol::{AttemptId, BlockSet, ToLeecher};
use crate::migrate::wire_form::{self, FromSeeder, Piece};
use crate::net::{MessageReceiver, MessageSender, Remote};
use crate::wire::migration as wire;
use crate::{Error, ErrorKind};

/// How many messages may wait to be sent. What does not fit is lost, and said again.
const MESSAGES_MAX: usize = 64;

/// How many pieces of the second phase may wait to be written. Then the seeder waits.
const PIECES_MAX: usize = 16;

/// Between two tries to open a stream.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) type Outgoing = (wire::ToSeeder, Option<BlockSet>);

/// Keeps a stream open until there can be none any more.
pub(super) async fn keep_open(remote: Arc<Remote>, inputs: mpsc::Sender<Input>) -> Error {
    loop {
        match remote.open_messages().await {
            Ok((sender, receiver)) => {
                let (outgoing, to_send) = mpsc::channel(MESSAGES_MAX);
                let sending = tokio::spawn(send(sender, to_send));
                let _ = inputs.send(Input::Connected(outgoing)).await;
                let error = receive(receiver, &inputs).await;
                sending.abort();
                tracing::debug!(error = error.chain(), "the stream to the seeder is gone");
                let _ = inputs.send(Input::Disconnected).await;
            }
            Err(error) if error.kind() == ErrorKind::Unreachable => {}
            Err(error) => return error,
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

async fn send(mut sender: MessageSender, mut to_send: mpsc::Receiver<Outgoing>) {
    while let Some((message, blocks)) = to_send.recv().await {
        let blocks = blocks.as_ref().map(BlockSet::as_treemap);
        // The other half sees the end, too.
        if sender.send(&message, blocks).await.is_err() {
            return;
        }
    }
}
