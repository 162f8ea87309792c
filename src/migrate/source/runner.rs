//! The task that has the seeder's machine.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle, spawn_blocking};
use tokio::time::Instant;

use super::links::Links;
use super::store::{Noting, SourceStore};
use super::{INPUTS_MAX, Order, SourceHooks, SourceParts, SourceStatus};
use crate::Error;
use crate::migrate::protocol::{
    AttemptId, BlockSet, Hook, Seeder, SeederAction, SeederEvent, SeederNotice, SeederTimer,
    ToSeeder,
};
use crate::migrate::record_keeper::RecordKeeper;
use crate::migrate::timers::Timers;
use crate::migrate::wire_form;
use crate::net::Arrival;
use crate::volume::geometry::{BLOCK_BYTES, BlockRange};
use crate::volume::{ByteOffset, Volume};

/// What the task waits for.
pub(super) enum Input {
    /// A leecher said something.
    Said(u64, ToSeeder),
    /// Its stream ended.
    Gone(u64, Error),
    /// Something that was begun has ended.
    Ended(SeederEvent),
    /// The same, for the proof of that number.
    Proved(u64, SeederEvent),
    /// The same, for a record.
    Recorded(Box<RecordKeeper>, SeederEvent),
}

/// A proof that is being made.
struct Proving {
    blocks: BlockSet,
    task: AbortHandle,
}

/// See the module.
pub(super) struct Runner {
    machine: Seeder,
    volume: Option<Arc<Volume>>,
    store: SourceStore,
    noting: Noting,
    records: RecordKeeper,
    arrivals: mpsc::Receiver<Arrival>,
    links: Links,
    hooks: SourceHooks,
    timers: Timers<SeederTimer>,
    inputs: mpsc::Receiver<Input>,
    input: mpsc::Sender<Input>,
    hold: Option<(Instant, JoinHandle<()>)>,
    /// The last message is on its way.
    sent: bool,
    /// The proof that is being made for the new owner (post-copy), and how many were begun.
    proving: Option<Proving>,
    proofs: u64,
    /// Undoes what a hook did.
    undoing: Option<JoinHandle<()>>,
    /// Sends the bytes of an attempt.
    sending: Option<AbortHandle>,
    told: Box<dyn FnMut(SeederNotice) + Send>,
    status: watch::Sender<SourceStatus>,
}

impl Runner {
    pub(super) fn new(
        machine: Seeder,
        parts: SourceParts,
        status: watch::Sender<SourceStatus>,
    ) -> Self {
        let all = parts.resource.geometry.resource_bytes();
        let all = BlockRange::touched(ByteOffset(0), all);
        let backend = parts.resource.as_async();
        let (input, inputs) = mpsc::channel(INPUTS_MAX);
        let moved_to = machine.moved();
        status.send_modify(|status| {
            status.moved_to = moved_to.map(|record| (record.to.clone(), record.epoch.0));
            status.released = moved_to.is_some_and(|record| record.released);
            status.in_part = moved_to.is_some_and(|record| record.post_copy);
        });
        Self {
            machine,
            store: SourceStore::new(parts.volume.clone(), backend, all),
            volume: parts.volume,
            noting: Noting::default(),
            records: parts.records,
            arrivals: parts.arrivals,
            links: Links::default(),
            hooks: parts.hooks,
            timers: Timers::default(),
            inputs,
            input,
            hold: None,
            sent: false,
            proving: None,
            proofs: 0,
            undoing: None,
            sending: None,
            told: parts.told,
            status,
        }
    }

    pub(super) async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        loop {
            tokio::select! {
                Some(arrival) = self.arrivals.recv() => {
                    self.links.add(arrival, &self.input);
                    self.show();
                }
                Some(input) = self.inputs.recv() => self.take(input).await,
                Some(order) = orders.recv() => match order {
                    Order::Abort => self.handle(SeederEvent::Abort).await,
                },
                timer = self.timers.next() => self.handle(SeederEvent::Timer(timer)).await,
                away = self.links.away() => self.handle(SeederEvent::Away(away)).await,
                else => return,
            }
        }
    }

    async fn take(&mut self, input: Input) {
        match input {
            Input::Said(link, message) => {
                if !self.links.heard(link, &message) {
                    tracing::warn!("a leecher speaks of too many migrations, and is sent away");
                    return self.lose(link).await;
                }
                self.handle(SeederEvent::Message(message)).await;
            }
            Input::Gone(link, error) => {
                tracing::debug!(error = error.chain(), "a leecher is gone");
                self.lose(link).await;
            }
            Input::Ended(event) => self.handle(event).await,
            Input::Proved(number, event) => {
                if number == self.proofs && self.proving.take().is_some() {
                    self.handle(event).await;
                }
            }
            Input::Recorded(records, event) => {
                self.records = *records;
                self.handle(event).await;
            }
        }
    }

    async fn lose(&mut self, link: u64) {
        for migration in self.links.remove(link) {
            self.handle(SeederEvent::Disconnected(migration)).await;
        }
        self.show();
    }

    async fn handle(&mut self, event: SeederEvent) {
        tracing::trace!(?event, "seeder");
        for action in self.machine.handle(event) {
            tracing::trace!(?action, "seeder");
            self.carry_out(action).await;
        }
        self.show();
    }

    fn show(&self) {
        let (leechers, connected) = (self.noting.leechers(), self.links.len());
        let finalizing = self.machine.finalizing().map(str::to_owned);
        self.status.send_if_modified(|status| {
            let before = (status.leechers, status.connected, &status.finalizing);
            let changed = before != (leechers, connected, &finalizing);
            (status.leechers, status.connected) = (leechers, connected);
            status.finalizing = finalizing;
            changed
        });
    }

    async fn carry_out(&mut self, action: SeederAction) {
        match action {
            SeederAction::Send(to, message) => {
                let held = self.hold.as_ref().map(|(since, _)| since.elapsed());
                let held_us = held.map_or(0, |held| held.as_micros() as u64);
                let message = wire_form::to_leecher(message, held_us);
                self.sent = self.links.send(to, message);
            }
            SeederAction::SendBytes(attempt, blocks) => {
                // Without the message before them nobody takes them.
                if self.sent
                    && let Some(pieces) = self.links.pieces_of(attempt)
                {
                    let store = self.store.clone();
                    let sending =
                        tokio::spawn(async move { store.send(attempt, blocks, pieces).await });
                    self.sending = Some(sending.abort_handle());
                }
            }
            SeederAction::Track(session) => self.noting.begin(&self.store, session),
            SeederAction::EndTracking(migration) => self.noting.end(migration),
            SeederAction::ReadAnew => self.noting.read_anew(&self.store),
            SeederAction::Collect(session) => {
                let collecting = self.noting.collect(&self.store, session);
                let (store, proving) = (self.store.clone(), self.noting.proving());
                let input = self.input.clone();
                tokio::spawn(async move {
                    let blocks = collecting.await;
                    let event = SeederEvent::Collected { session, blocks };
                    let _ = input.send(Input::Ended(event)).await;
                    if let Some(proving) = proving
                        && let Err(error) = store.catch_up(&proving).await
                    {
                        tracing::debug!(error, "cannot read back");
                    }
                });
            }
            SeederAction::CallHook(attempt, hook) => self.call(attempt, hook),
            SeederAction::Hold(attempt) => self.begin_hold(attempt),
            SeederAction::Sync { attempt, prove } => {
                let syncing = self.noting.sync(&self.store, attempt, prove);
                self.begin(async move {
                    let (blocks, result) = syncing.await;
                    SeederEvent::Synced {
                        attempt,
                        blocks,
                        result,
                    }
                });
            }
            SeederAction::Resume => {
                if let Some(sending) = self.sending.take() {
                    sending.abort();
                }
                self.end_hold().await;
                if let Some(volume) = &self.volume {
                    volume.watch().resume();
                }
                self.undo();
            }
            SeederAction::WriteCommit(record) => {
                self.record(
                    move |records| records.write_commit(record),
                    SeederEvent::CommitWritten,
                );
            }
            SeederAction::WriteReleased(record) => {
                self.record(
                    move |records| records.write_released(&record),
                    SeederEvent::ReleasedWritten,
                );
            }
            SeederAction::EraseCommit => {
                self.record(RecordKeeper::restore, SeederEvent::CommitErased);
            }
            SeederAction::Fail => {
                if let Some(volume) = &self.volume {
                    volume.watch().close_moved();
                }
                self.end_hold().await;
                self.undo();
            }
            SeederAction::RemoveDevice => {
                self.status
                    .send_modify(|status| status.remove_device = true);
            }
            SeederAction::Prove(attempt, blocks) => self.prove(attempt, blocks),
            SeederAction::Arm(timer, after) => self.timers.arm(timer, after),
            SeederAction::Tell(notice) => {
                self.status.send_modify(|status| match &notice {
                    SeederNotice::Moved(record) => {
                        status.moved_to = Some((record.to.clone(), record.epoch.0));
                        status.in_part = record.post_copy;
                    }
                    SeederNotice::Released => status.released = true,
                    _ => {}
                });
                (self.told)(notice);
            }
        }
    }

    /// Unless that is under way already: the new owner asks again and again. After a crash it may ask for
    /// other blocks; then nobody wants what was asked for before.
    fn prove(&mut self, attempt: AttemptId, blocks: BlockSet) {
        if let Some(proving) = &self.proving {
            if proving.blocks == blocks {
                return;
            }
            proving.task.abort();
        }
        self.proofs += 1;
        let (input, store, number) = (self.input.clone(), self.store.clone(), self.proofs);
        let wanted = blocks.clone();
        let task = tokio::spawn(async move {
            let proof = store.prove(&wanted).await;
            let event = SeederEvent::Proved { attempt, proof };
            let _ = input.send(Input::Proved(number, event)).await;
        });
        self.proving = Some(Proving {
            blocks,
            task: task.abort_handle(),
        });
    }

    /// Does something that takes time.
    fn begin(&self, work: impl Future<Output = SeederEvent> + Send + 'static) {
        let input = self.input.clone();
        tokio::spawn(async move {
            let event = work.await;
            let _ = input.send(Input::Ended(event)).await;
        });
    }

    fn record(
        &self,
        write: impl FnOnce(&mut RecordKeeper) -> crate::Result<()> + Send + 'static,
        event: impl FnOnce(Result<(), String>) -> SeederEvent + Send + 'static,
    ) {
        let (input, mut records) = (self.input.clone(), self.records.clone());
        tokio::spawn(async move {
            let written = spawn_blocking(move || {
                let result = write(&mut records).map_err(|error| error.chain());
                (records, result)
            });
            // It ends early only with the runtime.
            if let Ok((records, result)) = written.await {
                let _ = input
                    .send(Input::Recorded(Box::new(records), event(result)))
                    .await;
            }
        });
    }

    /// Undoes what the hook before the hold did. The next one waits for that.
    fn undo(&mut self) {
        let Some(undo) = self.hooks.undo.clone() else {
            return;
        };
        self.undoing = Some(spawn_blocking(move || {
            if let Err(error) = undo() {
                tracing::error!(
                    error,
                    "what was done before requests were held is not undone"
                );
            }
        }));
    }

    fn call(&mut self, attempt: AttemptId, hook: Hook) {
        let undoing = self.undoing.take();
        let hooks = self.hooks.clone();
        // What is left for later is compared later.
        let leaves = self.machine.leaves_bytes();
        let proving = self.noting.proving().filter(|_| !leaves);
        let store = self.store.clone();
        self.begin(async move {
            if let Some(undoing) = undoing {
                let _ = undoing.await;
            }
            if hook == Hook::BeforeSync {
                store.prepare(proving).await;
            }
            let called = spawn_blocking(move || match hook {
                Hook::BeforeSync => hooks.before_sync.map_or(Ok(()), |call| call()),
                Hook::AfterSync(blocks) => {
                    let bytes = blocks * BLOCK_BYTES;
                    hooks.after_sync.map_or(Ok(()), |call| call(bytes))
                }
                Hook::BeforeClose => hooks.before_close.map_or(Ok(()), |call| call()),
            });
            let result = called.await.unwrap_or_else(|panic| Err(panic.to_string()));
            SeederEvent::HookEnded {
                attempt,
                hook,
                result,
            }
        });
    }

    /// Requests wait when this returns.
    fn begin_hold(&mut self, attempt: AttemptId) {
        let Some(volume) = self.volume.clone() else {
            return self.begin(async move { SeederEvent::Held(attempt) });
        };
        let input = self.input.clone();
        let mut holding: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
            volume.watch().hold().await;
            let _ = input.send(Input::Ended(SeederEvent::Held(attempt))).await;
        });
        let since = Instant::now();
        // It has to have begun before anything else is done: a `Resume` comes after it.
        let at_once = holding
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        let task = match at_once {
            Poll::Ready(()) => tokio::spawn(async {}),
            Poll::Pending => tokio::spawn(holding),
        };
        self.hold = Some((since, task));
    }

    /// Nothing waits for the hold any more.
    async fn end_hold(&mut self) {
        if let Some((_, task)) = self.hold.take() {
            task.abort();
            let _ = task.await;
        }
    }
}
