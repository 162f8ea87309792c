//! The task that has the leecher's machine.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::{Instant, MissedTickBehavior};

use super::announced::Announced;
use super::link::{ToSend, keep_open};
use super::pull::{Bytes, Line, Puller, Pulling};
use super::rest::Rest;
use super::{DestinationParts, DestinationStatus, INPUTS_MAX, Order, RestStatus, StartDevice};
use crate::AsyncBackend;
use crate::migrate::protocol::{
    AttemptId, Epoch, LeechRecord, Leecher, LeecherAction, LeecherEvent, LeecherNotice,
    LeecherTimer, Measured, Proof, SessionId, ToLeecher, ToSeeder,
};
use crate::migrate::prover::Prover;
use crate::migrate::record_keeper::RecordKeeper;
use crate::migrate::timers::Timers;
use crate::migrate::wire_form::{self, Piece};
use crate::net::Remote;
use crate::volume::Priority;

/// How often it is looked how many bytes have come.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// What the task waits for.
pub(super) enum Input {
    /// The seeder said something.
    Said {
        message: ToLeecher,
        /// Its requests have been held for so long.
        held: Option<Duration>,
        at: Instant,
        /// The bytes that follow it.
        pieces: Option<(AttemptId, mpsc::Receiver<Piece>)>,
    },
    /// There is a stream.
    Connected(ToSend),
    /// There is none any more.
    Disconnected,
    /// There will never be one again.
    Lost(String),
    /// Something that was begun has ended.
    Ended(LeecherEvent),
    /// The same, for the pull of that number.
    Pulled(u64, LeecherEvent),
    /// The same, for a record.
    Recorded(Box<RecordKeeper>, LeecherEvent),
    /// The device was started, then or never.
    Started(Instant, Result<(), String>),
}

/// See the module.
pub(super) struct Runner {
    machine: Leecher,
    remote: Arc<Remote>,
    store: Arc<dyn AsyncBackend>,
    puller: Puller,
    records: RecordKeeper,
    /// What is left at the seeder.
    rest: Option<Rest>,
    start_device: Option<StartDevice>,
    told: Box<dyn FnMut(LeecherNotice) + Send>,
    status: watch::Sender<DestinationStatus>,
    timers: Timers<LeecherTimer>,
    inputs: mpsc::Receiver<Input>,
    input: mpsc::Sender<Input>,
    outgoing: Option<ToSend>,
    link: AbortHandle,
    pulling: Option<Pulling>,
    /// Makes what has come durable.
    flushing: Option<AbortHandle>,
    /// Counts pulls: what one that was stopped has to say comes too late.
    pulls: u64,
    /// In which session what was pulled counts. In another one, and after proofs that differed, everything is
    /// handed out again, and compared.
    session: Option<SessionId>,
    compare: bool,
    /// The bytes of the last attempt, on their way.
    pieces: Option<(AttemptId, mpsc::Receiver<Piece>)>,
    /// When the seeder began to hold its requests, as seen from here.
    held_since: Option<Instant>,
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.link.abort();
    }
}

impl Runner {
    pub(super) fn new(
        machine: Leecher,
        parts: DestinationParts,
        announced: Option<Arc<Announced>>,
        rest: Option<Rest>,
        status: watch::Sender<DestinationStatus>,
    ) -> Self {
        let store = parts.store.as_async();
        let (input, inputs) = mpsc::channel(INPUTS_MAX);
        let linking = {
            let (remote, input) = (Arc::clone(&parts.remote), input.clone());
            tokio::spawn(async move {
                let error = keep_open(remote, input.clone()).await;
                let _ = input.send(Input::Lost(error.chain())).await;
            })
        };
        Self {
            machine,
            puller: Puller {
                remote: Arc::clone(&parts.remote),
                store: Arc::clone(&store),
                prover: Prover::new(Arc::clone(&store)),
                line: Arc::new(Line::new()),
                pulled_bytes: Arc::default(),
                fetched_bytes: Arc::default(),
                announced,
            },
            remote: parts.remote,
            store,
            records: parts.records,
            rest,
            start_device: Some(parts.start_device),
            told: parts.told,
            status,
            timers: Timers::default(),
            inputs,
            input,
            outgoing: None,
            link: linking.abort_handle(),
            pulling: None,
            flushing: None,
            pulls: 0,
            session: None,
            compare: true,
            pieces: None,
            held_since: None,
        }
    }

    pub(super) async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        self.handle(LeecherEvent::Begin).await;
        let mut progress = tokio::time::interval(PROGRESS_INTERVAL);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(input) = self.inputs.recv() => self.take(input).await,
                Some(order) = orders.recv() => {
                    let event = match order {
                        Order::Finalize => LeecherEvent::Finalize,
                        Order::Abort => LeecherEvent::Abort,
                        Order::AssumeCommitted => LeecherEvent::AssumeCommitted,
                    };
                    self.handle(event).await;
                }
                timer = self.timers.next() => self.handle(LeecherEvent::Timer(timer)).await,
                _ = progress.tick() => {
                    self.show_progress();
                    self.keep_flushed();
                }
                else => return,
            }
        }
    }

    async fn take(&mut self, input: Input) {
        match input {
            Input::Said {
                message,
                held,
                at,
                pieces,
            } => {
                if pieces.is_some() {
                    self.pieces = pieces;
                }
                if let ToLeecher::Welcome { session, .. } = &message
                    && self.session.replace(*session) != Some(*session)
                {
                    self.compare = true;
                }
                if let Some(held) = held {
                    let rtt = self.remote.path_rtt().unwrap_or_default();
                    self.held_since = at.checked_sub(held + rtt / 2);
                }
                self.handle(LeecherEvent::Message(message)).await;
            }
            Input::Connected(outgoing) => {
                self.outgoing = Some(outgoing);
                self.handle(LeecherEvent::Connected).await;
            }
            Input::Disconnected => {
                self.outgoing = None;
                self.handle(LeecherEvent::Disconnected).await;
            }
            Input::Lost(why) => {
                self.status
                    .send_modify(|status| status.lost = Some(why.clone()));
                if self.machine.is_in_doubt() {
                    (self.told)(LeecherNotice::LeftInDoubt);
                } else if !self.machine.is_owner() {
                    self.handle(LeecherEvent::Abort).await;
                } else if !self.machine.is_done() {
                    (self.told)(LeecherNotice::SeederLost(why));
                }
            }
            Input::Ended(event) => self.handle(event).await,
            Input::Pulled(number, event) => {
                if number == self.pulls && self.pulling.take().is_some() {
                    if let LeecherEvent::Pulled { result: Ok(_), .. } = &event {
                        self.compare = false;
                    }
                    self.handle(event).await;
                }
            }
            Input::Recorded(records, event) => {
                self.records = *records;
                self.handle(event).await;
            }
            Input::Started(at, result) => {
                let downtime = self
                    .held_since
                    .filter(|_| result.is_ok())
                    .map(|since| at.saturating_duration_since(since));
                self.status.send_modify(|status| status.downtime = downtime);
                self.handle(LeecherEvent::Started(result)).await;
            }
        }
    }

    async fn handle(&mut self, event: LeecherEvent) {
        tracing::trace!(?event, "leecher");
        let pulled = matches!(event, LeecherEvent::Pulled { result: Ok(_), .. });
        for action in self.machine.handle(event) {
            tracing::trace!(?action, "leecher");
            self.carry_out(action).await;
        }
        let fetched = self.puller.fetched_bytes.load(Ordering::Relaxed);
        let prediction = self.machine.prediction();
        let (predicted, dirty) = (prediction.downtime(), prediction.dirty_bytes_per_s());
        let (is_owner, is_done) = (self.machine.is_owner(), self.machine.is_done());
        let can_seed = self.machine.can_seed();
        let rest = self.rest_status();
        self.status.send_if_modified(|status| {
            let before = status.clone();
            status.rounds += u32::from(pulled);
            status.fetched_bytes = fetched;
            status.predicted = predicted;
            status.dirty_bytes_per_s = dirty.map(|bytes| bytes as u64);
            (status.is_owner, status.is_done) = (is_owner, is_done);
            status.can_seed = can_seed;
            status.rest = rest;
            *status != before
        });
    }

    fn show_progress(&self) {
        let pulled = self.puller.pulled_bytes.load(Ordering::Relaxed);
        let fetched = self.puller.fetched_bytes.load(Ordering::Relaxed);
        let rest = self.rest_status();
        self.status.send_if_modified(|status| {
            let before = (status.pulled_bytes, status.fetched_bytes);
            let changed = before != (pulled, fetched) || status.rest != rest;
            (status.pulled_bytes, status.fetched_bytes) = (pulled, fetched);
            status.rest = rest;
            changed
        });
    }

    /// Where a round may be left for the cut-over at any time, little of it may be left to make durable then.
    fn keep_flushed(&mut self) {
        let may_be_left = self.machine.may_leave_a_round() && self.pulling.is_some();
        if !may_be_left
            || self
                .flushing
                .as_ref()
                .is_some_and(|task| !task.is_finished())
        {
            return;
        }
        let store = Arc::clone(&self.store);
        let flushing = tokio::spawn(async move {
            if let Err(error) = store.flush().await {
                // The flush at the end of the round says so.
                tracing::debug!(%error, "cannot flush");
            }
        });
        self.flushing = Some(flushing.abort_handle());
    }

    fn rest_status(&self) -> Option<RestStatus> {
        if !self.machine.is_in_part() {
            return None;
        }
        let (left_bytes, last_error) = self.rest.as_ref()?.left()?;
        let away = self.remote.away_since();
        let away = away.and_then(|since| since.duration_since(UNIX_EPOCH).ok());
        Some(RestStatus {
            left_bytes,
            last_error,
            away_since: away.map(|since| since.as_secs()),
            differs: self.machine.differs(),
        })
    }

    async fn carry_out(&mut self, action: LeecherAction) {
        match action {
            LeecherAction::Send(message) => {
                match &message {
                    ToSeeder::Round { anew: true, .. } => self.compare = true,
                    ToSeeder::Prepare {
                        attempt,
                        post_copy: true,
                        ..
                    } => {
                        if let Some(rest) = &self.rest {
                            rest.begin(*attempt);
                        }
                    }
                    _ => {}
                }
                let message = wire_form::to_seeder(message);
                if let Some(outgoing) = &self.outgoing
                    && !outgoing.send(message)
                {
                    tracing::debug!("a message to the seeder is lost");
                }
            }
            LeecherAction::Record(record) => self.record(record),
            LeecherAction::Pull { number, blocks } => {
                let (begun, remote) = (Instant::now(), Arc::clone(&self.remote));
                let fetched_bytes = Arc::clone(&self.puller.fetched_bytes);
                let fetched_before = fetched_bytes.load(Ordering::Relaxed);
                let bytes = match self.compare {
                    true => Bytes::FetchDiffering(blocks),
                    false => Bytes::Fetch(blocks, Priority::Pull),
                };
                self.pull(bytes, move |result| {
                    let rtt = remote.path_rtt().unwrap_or_default();
                    let measured = Measured {
                        bytes: fetched_bytes.load(Ordering::Relaxed) - fetched_before,
                        // The question for the blocks went before it.
                        took: begun.elapsed() + rtt,
                        rtt,
                    };
                    LeecherEvent::Pulled {
                        number,
                        result: result.map(|()| measured),
                    }
                });
            }
            LeecherAction::StopPulling => {
                self.pulls += 1;
                if let Some(pulling) = self.pulling.take() {
                    pulling.stop().await;
                }
            }
            LeecherAction::Receive(attempt, blocks) => {
                let bytes = blocks.len_bytes();
                self.status
                    .send_modify(|status| status.final_bytes = Some(bytes));
                let pieces = self.pieces.take().filter(|(of, _)| *of == attempt);
                let event = move |result| LeecherEvent::Received { attempt, result };
                match pieces {
                    Some((_, pieces)) => self.pull(Bytes::Come(blocks, pieces), event),
                    None => self.pull(Bytes::Fetch(blocks, Priority::Demand), event),
                }
            }
            LeecherAction::Secure { attempt, absent } => {
                let (store, prover) = (Arc::clone(&self.store), self.puller.prover.clone());
                let leaving = match absent {
                    None => None,
                    Some(absent) => {
                        Some(self.rest.as_ref().map(|rest| rest.leave(attempt, absent)))
                    }
                };
                self.begin(async move {
                    let result = match leaving {
                        None => secure(&*store, &prover).await.map(Some),
                        Some(Some(leaving)) => leaving.await.map(|()| None),
                        Some(None) => Err(NO_MAP.to_owned()),
                    };
                    LeecherEvent::Secured { attempt, result }
                });
            }
            LeecherAction::StartDevice(epoch) => {
                let in_part = self.machine.is_in_part();
                self.start_device(epoch, in_part);
            }
            LeecherAction::PullRest => {
                let rest = self.rest.clone();
                self.begin(async move {
                    LeecherEvent::RestPulled(match rest {
                        Some(rest) => rest.pulled().await,
                        None => Err(NO_MAP.to_owned()),
                    })
                });
            }
            LeecherAction::SecureRest => {
                let rest = self.rest.clone();
                self.begin(async move {
                    LeecherEvent::RestSecured(match rest {
                        Some(rest) => rest.secure().await,
                        None => Err(NO_MAP.to_owned()),
                    })
                });
            }
            LeecherAction::Arm(timer, after) => self.timers.arm(timer, after),
            LeecherAction::Tell(notice) => {
                if notice == LeecherNotice::Done {
                    // The mount of what was in part would look for a seeder that has gone.
                    let remote = Arc::clone(&self.remote);
                    tokio::spawn(async move {
                        let _ = remote.close().await;
                    });
                }
                (self.told)(notice);
            }
        }
    }

    /// Does something that takes time.
    fn begin(&self, work: impl Future<Output = LeecherEvent> + Send + 'static) {
        let input = self.input.clone();
        tokio::spawn(async move {
            let event = work.await;
            let _ = input.send(Input::Ended(event)).await;
        });
    }

    fn pull(
        &mut self,
        bytes: Bytes,
        event: impl FnOnce(Result<(), String>) -> LeecherEvent + Send + 'static,
    ) {
        self.pulls += 1;
        let (input, number) = (self.input.clone(), self.pulls);
        let len_bytes = bytes.len_bytes();
        self.puller.pulled_bytes.store(0, Ordering::Relaxed);
        self.status.send_modify(|status| {
            (status.round_bytes, status.pulled_bytes) = (len_bytes, 0);
        });
        let pulling = Pulling::begin(self.puller.clone(), bytes, move |result| {
            let event = event(result.map_err(|error| error.to_string()));
            async move {
                let _ = input.send(Input::Pulled(number, event)).await;
            }
        });
        self.pulling = Some(pulling);
    }

    fn record(&self, record: LeechRecord) {
        let (input, mut records) = (self.input.clone(), self.records.clone());
        let stage = record.stage;
        tokio::spawn(async move {
            let written = spawn_blocking(move || {
                let result = records.write_leech(record).map_err(|error| error.chain());
                (records, result)
            });
            // It ends early only with the runtime.
            if let Ok((records, result)) = written.await {
                let event = LeecherEvent::Recorded { stage, result };
                let _ = input.send(Input::Recorded(Box::new(records), event)).await;
            }
        });
    }

    fn start_device(&mut self, epoch: Epoch, in_part: bool) {
        let (input, start) = (self.input.clone(), self.start_device.take());
        let rest = self.rest.clone().filter(|_| in_part);
        tokio::spawn(async move {
            let mount = match rest {
                Some(rest) => rest.start().await.map(Some),
                None => Ok(None),
            };
            let result = match mount {
                Err(error) => Err(error.chain()),
                Ok(mount) => spawn_blocking(move || match start {
                    Some(start) => start(epoch, mount),
                    None => Err("it was started before".to_owned()),
                })
                .await
                .unwrap_or_else(|panic| Err(panic.to_string())),
            };
            let _ = input.send(Input::Started(Instant::now(), result)).await;
        });
    }
}

const NO_MAP: &str = "there is no place to note which bytes are at the seeder";

async fn secure(store: &dyn AsyncBackend, prover: &Prover) -> Result<Proof, String> {
    // It is read back while it is being made durable.
    let (flushed, proof) = tokio::join!(store.flush(), prover.prove());
    flushed.map_err(|error| error.to_string())?;
    proof
}
