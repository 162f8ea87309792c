//! The seeder: it owns the volume until its commit record is durable.
//!
//! | step of an attempt | waits for | ends the attempt |
//! |---|---|---|
//! | `BeforeSync` | the hook before the hold | all but the hold limit; the application goes on when the hook has ended |
//! | `Holding`, `Held`, `Syncing`, `AfterSync` | requests under way; a collection for a round; store, collection, proof; the hook after it | a failure, the hold limit, an abort by either end, a lost connection, a later attempt, `Ask` |
//! | `Offered` | `Commit` | the same, and other proofs |
//! | `Committing` | its record | nothing: only the record knows |
//! | `Erasing` | its record, whose write failed, to be erased | that |

mod attempt;
mod commit;
mod io;
mod session;

use std::collections::BTreeMap;

use attempt::{Attempt, Step};
pub use io::{Hook, SeederAction, SeederConfig, SeederEvent, SeederNotice, SeederTimer};
use session::{Asked, Session};

use super::planted::{Bug, planted};
use super::record::{CommitRecord, Records, Standing};
use super::{AttemptId, BlockSet, Epoch, MigrationId, Reason, SessionId, ToLeecher, ToSeeder};
use crate::volume::TRACKERS_MAX;
use std::time::Duration;

/// How many leechers a volume may have. Each has a tracker, and the proof has one.
const LEECHERS_MAX: usize = TRACKERS_MAX - 1;

/// Between two tries to erase a commit record.
const ERASE_PAUSE: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct Seeder {
    config: SeederConfig,
    epoch: Epoch,
    sessions: BTreeMap<MigrationId, Session>,
    sessions_made: u32,
    /// How often one has lost its connection.
    losses: u64,
    phase: Phase,
    actions: Vec<SeederAction>,
}

#[derive(Debug)]
enum Phase {
    Serving,
    Attempting(Attempt),
    Moved {
        record: CommitRecord,
        /// The hook before the close runs.
        closing: bool,
        /// Whether the new owner has everything.
        release: Release,
        /// The device that the volume had here is still there. It is not after a restart: then there
        /// may be one of the volume that has come back.
        has_device: bool,
    },
}

/// Whether the new owner needs the seeder no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Release {
    /// It does, as far as is known.
    Awaited,
    /// It has said that it does not, which is being made durable.
    Writing,
    /// It does not, also after a restart.
    Durable,
}

impl Seeder {
    /// A seeder of a resource with these records; none if the volume is not here as a whole.
    pub fn new(config: SeederConfig, records: &Records) -> Option<Self> {
        let (epoch, phase) = match records.standing() {
            Standing::Owner(epoch) => (epoch, Phase::Serving),
            Standing::Moved(record) => (
                record.epoch,
                Phase::Moved {
                    release: match record.released {
                        true => Release::Durable,
                        false => Release::Awaited,
                    },
                    record,
                    closing: false,
                    has_device: false,
                },
            ),
            Standing::Completing(_) | Standing::InDoubt(_) | Standing::Pulling(_) => return None,
        };
        Some(Self {
            config,
            epoch,
            sessions: BTreeMap::new(),
            sessions_made: 0,
            losses: 0,
            phase,
            actions: Vec::new(),
        })
    }

    /// What follows from an event.
    #[must_use]
    pub fn handle(&mut self, event: SeederEvent) -> Vec<SeederAction> {
        match event {
            SeederEvent::Message(message) => self.message(message),
            SeederEvent::Disconnected(migration) => self.disconnected(migration),
            SeederEvent::Away(migration) => self.leave(migration, Reason::Disconnected),
            SeederEvent::Abort => self.abort(),
            SeederEvent::Collected { session, blocks } => {
                let open = self.sessions.get_mut(&session.migration);
                if let Some(open) = open.filter(|open| open.id == session) {
                    let answer = open.collected(&blocks);
                    if let Some((number, blocks)) = answer {
                        self.hand_out(session, number, blocks);
                    }
                    self.sync_if_collected();
                }
            }
            SeederEvent::HookEnded {
                attempt,
                hook,
                result,
            } => self.hook_ended(attempt, hook, result),
            SeederEvent::Held(attempt) => {
                if let Some(current) = self.at(attempt, Step::Holding) {
                    current.step = Step::Held;
                    self.sync_if_collected();
                }
            }
            SeederEvent::Synced {
                attempt,
                blocks,
                result,
            } => self.synced(attempt, &blocks, result),
            SeederEvent::CommitWritten(result) => self.commit_written(result),
            SeederEvent::CommitErased(result) => self.commit_erased(result),
            SeederEvent::ReleasedWritten(result) => self.released_written(result),
            SeederEvent::Proved { attempt, proof } => {
                self.send(attempt.migration(), ToLeecher::Proof { attempt, proof });
            }
            SeederEvent::Timer(SeederTimer::HoldLimit(attempt)) => {
                if !planted(Bug::HoldForEver) {
                    self.end(attempt, Reason::HoldLimit);
                }
            }
            SeederEvent::Timer(SeederTimer::Erase) => {
                if let Phase::Attempting(Attempt {
                    step: Step::Erasing(_),
                    ..
                }) = self.phase
                {
                    self.act(SeederAction::EraseCommit);
                }
            }
        }
        std::mem::take(&mut self.actions)
    }

    /// The record of the move, once it is durable.
    pub fn moved(&self) -> Option<&CommitRecord> {
        match &self.phase {
            Phase::Moved { record, .. } => Some(record),
            _ => None,
        }
    }

    /// Whether whoever finalizes leaves the bytes for later.
    pub fn leaves_bytes(&self) -> bool {
        matches!(&self.phase, Phase::Attempting(attempt) if attempt.post_copy)
    }

    /// Who finalizes, if anybody does.
    pub fn finalizing(&self) -> Option<&str> {
        match &self.phase {
            Phase::Attempting(attempt) => Some(&attempt.name),
            _ => None,
        }
    }

    fn act(&mut self, action: SeederAction) {
        self.actions.push(action);
    }

    fn send(&mut self, to: MigrationId, message: ToLeecher) {
        self.act(SeederAction::Send(to, message));
    }

    fn message(&mut self, message: ToSeeder) {
        if let Some(session) = self.sessions.get_mut(&message.migration()) {
            session.lost = None;
        }
        match message {
            ToSeeder::Leech { migration, name } => self.leech(migration, name),
            ToSeeder::Round {
                session,
                number,
                pulled,
                anew,
            } => {
                let everything = anew.then(|| BlockSet::of(self.config.blocks));
                let finalizing = matches!(&self.phase, Phase::Attempting(attempt) if attempt.id.session == session);
                match self.sessions.get_mut(&session.migration) {
                    // It has begun an attempt since it asked, or will ask again.
                    Some(open) if open.id == session && finalizing => {}
                    Some(open) if open.id == session => {
                        if anew && open.is_new(number) {
                            self.actions.push(SeederAction::ReadAnew);
                        }
                        match open.ask(number, pulled, everything) {
                            Asked::Nothing => {}
                            Asked::Collect => self.act(SeederAction::Collect(session)),
                            Asked::Again(number, blocks) => self.hand_out(session, number, blocks),
                        }
                    }
                    _ => self.unknown(session),
                }
            }
            ToSeeder::Prepare {
                attempt,
                pulled,
                post_copy,
            } => self.prepare(attempt, pulled, post_copy),
            ToSeeder::Commit { attempt, proof } => self.commit(attempt, proof),
            ToSeeder::Abort { attempt } => self.end(attempt, Reason::LeecherAborted),
            ToSeeder::Ask { attempt } => self.asked(attempt),
            ToSeeder::Prove { attempt, blocks } => {
                if self.moved().is_some_and(|record| record.attempt == attempt) {
                    self.act(SeederAction::Prove(attempt, blocks));
                }
            }
            ToSeeder::Release { attempt } => self.release(attempt),
            ToSeeder::Leave { migration } => self.leave(migration, Reason::LeecherAborted),
        }
    }

    fn hand_out(&mut self, session: SessionId, number: u32, blocks: BlockSet) {
        let message = ToLeecher::Round {
            session,
            number,
            blocks,
        };
        self.send(session.migration, message);
    }

    /// The process before this one may have known it, or it was away for too long.
    fn unknown(&mut self, session: SessionId) {
        match self.moved_reason() {
            Some(reason) => self.refuse(session.migration, reason),
            None => self.send(session.migration, ToLeecher::Unknown { session }),
        }
    }

    fn refuse(&mut self, migration: MigrationId, reason: Reason) {
        self.send(migration, ToLeecher::Refused { migration, reason });
    }

    fn moved_reason(&self) -> Option<Reason> {
        self.moved().map(|record| Reason::Moved {
            to: record.to.clone(),
            epoch: record.epoch,
        })
    }

    fn leech(&mut self, migration: MigrationId, name: String) {
        if let Some(reason) = self.moved_reason() {
            return self.refuse(migration, reason);
        }
        let is_new = !self.sessions.contains_key(&migration);
        if is_new && self.sessions.len() >= LEECHERS_MAX {
            self.leave_who_is_lost();
        }
        let id = match self.sessions.get(&migration) {
            Some(session) => session.id,
            None if self.sessions.len() >= LEECHERS_MAX => {
                return self.refuse(migration, Reason::Full);
            }
            None => {
                self.sessions_made += 1;
                let id = SessionId {
                    migration,
                    instance: self.config.instance,
                    number: self.sessions_made,
                };
                let all = BlockSet::of(self.config.blocks);
                self.sessions.insert(migration, Session::new(id, name, all));
                self.act(SeederAction::Track(id));
                id
            }
        };
        let welcome = ToLeecher::Welcome {
            session: id,
            volume: self.config.volume,
            epoch: self.epoch.next(),
        };
        self.send(migration, welcome);
    }

    fn over(&mut self, attempt: AttemptId, reason: Reason) {
        self.send(attempt.migration(), ToLeecher::Ended { attempt, reason });
    }

    fn leave(&mut self, migration: MigrationId, reason: Reason) {
        if let Phase::Attempting(current) = &self.phase
            && current.id.migration() == migration
        {
            if current.step.is_decided() {
                return;
            }
            let attempt = current.id;
            self.end(attempt, reason);
        }
        if self.sessions.remove(&migration).is_some() {
            self.act(SeederAction::EndTracking(migration));
        }
    }

    /// Keeps nothing any more for who lost its connection longest ago: should it come back, it compares.
    fn leave_who_is_lost(&mut self) {
        let sessions = self.sessions.iter();
        let lost = sessions.filter_map(|(migration, session)| Some((session.lost?, *migration)));
        if let Some((_, migration)) = lost.min() {
            self.leave(migration, Reason::Disconnected);
        }
    }

    fn abort(&mut self) {
        let decided = match &self.phase {
            Phase::Serving => false,
            Phase::Attempting(current) => current.step.is_decided(),
            Phase::Moved { .. } => true,
        };
        if decided {
            return self.act(SeederAction::Tell(SeederNotice::TooLate));
        }
        if let Phase::Attempting(current) = &self.phase {
            let attempt = current.id;
            self.end(attempt, Reason::SeederAborted);
        }
        for (migration, _) in std::mem::take(&mut self.sessions) {
            self.act(SeederAction::EndTracking(migration));
            self.refuse(migration, Reason::SeederAborted);
        }
    }
}
