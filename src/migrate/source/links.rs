//! The streams to the leechers.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::runner::Input;
use crate::migrate::on_their_way::OnTheirWay;
use crate::migrate::protocol::{AttemptId, BlockSet, MigrationId, ToSeeder};
use crate::migrate::wire_form::{self, Piece};
use crate::net::{Arrival, MessageReceiver, MessageSender};
use crate::wire::migration::{self as wire, MigrationMessage};

/// How many leechers may be connected.
const LINKS_MAX: usize = 64;

/// How many messages may wait to be sent to one. What does not fit is lost, and asked for again.
const MESSAGES_MAX: usize = 64;

/// How many pieces of an attempt's bytes may. Who has more waits.
const PIECES_MAX: usize = 16;

/// How many migrations a leecher may speak of: its own, and that of an earlier process of it.
const MIGRATIONS_MAX: usize = 4;

/// What is kept for a leecher that is away is dropped after this time.
const AWAY_AFTER: Duration = Duration::from_secs(600);

type Outgoing = (wire::ToLeecher, Option<BlockSet>);

/// Pieces that wait to be sent to one leecher.
pub(super) type Pieces = mpsc::Sender<(AttemptId, Piece)>;

#[derive(Debug)]
struct Link {
    outgoing: mpsc::Sender<Outgoing>,
    answers: OnTheirWay<wire::ToLeecher>,
    pieces: Pieces,
    /// The last attempt whose bytes were sent. They arrive if the link stays.
    sent: Option<AttemptId>,
    tasks: [AbortHandle; 2],
}

impl Link {
    fn send(&self, message: Outgoing) -> bool {
        let answer = answer_of(&message.0);
        let queue = || self.outgoing.try_send(message).is_ok();
        match answer {
            Some(answer) => self.answers.queue(answer, queue),
            None => queue(),
        }
    }
}

/// What a set of blocks answers, whenever that is.
fn answer_of(message: &wire::ToLeecher) -> Option<wire::ToLeecher> {
    let mut answer = message.carries_blocks().then(|| message.clone())?;
    if let wire::ToLeecher::Dirty { held_us, .. } = &mut answer {
        *held_us = 0;
    }
    Some(answer)
}

impl Drop for Link {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// Who is where.
#[derive(Debug, Default)]
pub(super) struct Links {
    next: u64,
    links: HashMap<u64, Link>,
    routes: HashMap<MigrationId, u64>,
    away: Vec<(MigrationId, Instant)>,
}

impl Links {
    /// Takes a new leecher in.
    pub(super) fn add(&mut self, arrival: Arrival, inputs: &mpsc::Sender<Input>) {
        if self.links.len() >= LINKS_MAX {
            tracing::warn!(peer = %arrival.peer, "there are {LINKS_MAX} leechers; one is sent away");
            return;
        }
        let number = self.next;
        self.next += 1;
        let (outgoing, to_send) = mpsc::channel(MESSAGES_MAX);
        let receiving = tokio::spawn(receive(arrival.receiver, number, inputs.clone()));
        let (pieces, pieces_to_send) = mpsc::channel(PIECES_MAX);
        let answers = OnTheirWay::default();
        let sending = send(arrival.sender, to_send, answers.clone(), pieces_to_send);
        let sending = tokio::spawn(sending);
        let tasks = [receiving.abort_handle(), sending.abort_handle()];
        let link = Link {
            outgoing,
            answers,
            pieces,
            sent: None,
            tasks,
        };
        self.links.insert(number, link);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.links.len()
    }

    /// A message came from this link. False: the leecher speaks of too many migrations.
    pub(super) fn heard(&mut self, link: u64, message: &ToSeeder) -> bool {
        if !self.links.contains_key(&link) {
            return true;
        }
        let migration = message.migration();
        self.away.retain(|(other, _)| *other != migration);
        self.routes.insert(migration, link);
        self.of_link(link).count() <= MIGRATIONS_MAX
    }

    fn of_link(&self, link: u64) -> impl Iterator<Item = MigrationId> + '_ {
        let routes = self.routes.iter();
        routes.filter_map(move |(migration, at)| (*at == link).then_some(*migration))
    }

    /// The link is gone. Gives the migrations that it was the way to.
    pub(super) fn remove(&mut self, link: u64) -> Vec<MigrationId> {
        let lost: Vec<_> = self.of_link(link).collect();
        for migration in &lost {
            self.routes.remove(migration);
            self.away.push((*migration, Instant::now() + AWAY_AFTER));
        }
        self.links.remove(&link);
        lost
    }

    /// Sends a message, if there is a way. Whether it is on it.
    pub(super) fn send(&self, to: MigrationId, message: Outgoing) -> bool {
        let link = self.routes.get(&to).and_then(|link| self.links.get(link));
        let sent = link.is_some_and(|link| link.send(message));
        if !sent {
            tracing::debug!(?to, "a message to a leecher is lost");
        }
        sent
    }

    /// Where the bytes of an attempt go; `None` where there is no way, or they go already.
    pub(super) fn pieces_of(&mut self, attempt: AttemptId) -> Option<Pieces> {
        let link = self.routes.get(&attempt.migration())?;
        let link = self.links.get_mut(link)?;
        let is_new = link.sent.replace(attempt) != Some(attempt);
        is_new.then(|| link.pieces.clone())
    }

    /// Waits for a leecher to have been away for too long. May be cancelled.
    pub(super) async fn away(&mut self) -> MigrationId {
        let Some((migration, due)) = self.away.first().copied() else {
            return std::future::pending().await;
        };
        tokio::time::sleep_until(due).await;
        self.away.remove(0);
        migration
    }
}

async fn receive(mut receiver: MessageReceiver, link: u64, inputs: mpsc::Sender<Input>) {
    loop {
        let input = match receiver.receive().await {
            Ok((message, payload)) => Input::Said(link, wire_form::from_leecher(message, payload)),
            Err(error) => Input::Gone(link, error),
        };
        let is_last = matches!(input, Input::Gone(..));
        if inputs.send(input).await.is_err() || is_last {
            return;
        }
    }
}

/// Sends messages, and pieces when there is no message.
async fn send(
    mut sender: MessageSender,
    mut to_send: mpsc::Receiver<Outgoing>,
    answers: OnTheirWay<wire::ToLeecher>,
    mut pieces: mpsc::Receiver<(AttemptId, Piece)>,
) {
    loop {
        let sent = tokio::select! {
            biased;
            Some((message, blocks)) = to_send.recv() => {
                let blocks = blocks.as_ref().map(BlockSet::as_treemap);
                let sent = sender.send(&message, blocks).await;
                if let Some(answer) = answer_of(&message) {
                    answers.sent(&answer);
                }
                sent
            }
            Some((attempt, piece)) = pieces.recv() => {
                let message = wire_form::of_piece(attempt, &piece);
                sender.send_bytes(&message, &piece.bytes).await
            }
            else => return,
        };
        // The other half sees the end, too.
        if sent.is_err() {
            return;
        }
    }
}
