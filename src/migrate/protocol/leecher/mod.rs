//! The leecher: it asks for everything, and owns the volume once the seeder has said so.
//!
//! | state | waits for | after a restart |
//! |---|---|---|
//! | `Connecting` | `Welcome` | a new migration |
//! | `Marking` | record `Pulling` | by the record that counts |
//! | `Wanting`, `Pulling`, `Resting` | `Round`, its blocks, the next one | a new migration |
//! | `Preparing`, `Receiving`, `Securing` | `Dirty`, the bytes, store and proof | a new migration |
//! | `Recording` | record `Prepared` | by the record that counts |
//! | `Committing` | `Committed` or `Ended`: it cannot be given up | asks |
//! | `CutOver` | device, record, in post-copy the rest and its proof, `Released` | goes on |
//! | `Over` | nothing | a new migration |

mod attempt;
mod cut_over;
mod io;
mod rounds;

use std::time::Duration;

use attempt::Offer;
use cut_over::CutOver;
pub use io::{
    Finalize, LeecherAction, LeecherConfig, LeecherEvent, LeecherNotice, LeecherTimer, Mode,
};

use super::planted::{Bug, planted};
use super::record::{LeechRecord, Records, Stage, Standing};
use super::{Epoch, Prediction, Proof, Reason, SessionId, ToLeecher, ToSeeder, VolumeId};

/// Until something is said again.
const RETRY: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct Leecher {
    config: LeecherConfig,
    /// What the store had to do with before.
    found: Records,
    session: Option<SessionId>,
    /// Of the volume, once it is known.
    volume: Option<(VolumeId, Epoch)>,
    /// The record says that the volume is on its way here in this epoch.
    marked: Option<Epoch>,
    state: State,
    /// The last round that was asked for, and the last of this session of which everything is here.
    asked: u32,
    pulled: u32,
    /// Nothing that is here is trusted.
    anew: bool,
    rounds: u32,
    prediction: Prediction,
    attempts: u32,
    attempts_ended: u32,
    /// Of what the commit is for.
    proof: Option<Proof>,
    finalize_wanted: bool,
    post_copy_due: bool,
    actions: Vec<LeecherAction>,
}

#[derive(Debug)]
enum State {
    Connecting,
    Marking(Next),
    Wanting,
    Pulling,
    Resting,
    Preparing(Offer),
    Receiving(Offer),
    Securing(Offer),
    Recording(Offer, Option<Next>),
    Committing { record: LeechRecord, asks: bool },
    CutOver(CutOver),
    Over,
}

/// What to do after an attempt, or after a record.
#[derive(Debug, Clone, PartialEq)]
enum Next {
    Advance,
    Rest,
    Connect,
    Stop(Reason),
}

impl Leecher {
    /// A leecher into an empty store.
    pub fn new(config: LeecherConfig) -> Self {
        Self {
            config,
            found: Records::default(),
            session: None,
            volume: None,
            marked: None,
            state: State::Connecting,
            asked: 0,
            pulled: 0,
            anew: false,
            rounds: 0,
            prediction: Prediction::default(),
            attempts: 0,
            attempts_ended: 0,
            proof: None,
            finalize_wanted: false,
            post_copy_due: false,
            actions: Vec::new(),
        }
    }

    /// A leecher into a store with these records; none where the volume is and always was.
    pub fn with_records(config: LeecherConfig, records: &Records) -> Option<Self> {
        let mut leecher = Self::new(config);
        leecher.found = records.clone();
        let complete = records
            .leech
            .clone()
            .filter(|record| record.stage == Stage::Complete);
        match records.standing() {
            Standing::Moved(_) | Standing::Pulling(_) => {}
            Standing::InDoubt(record) if planted(Bug::ServeInDoubt) => {
                leecher.state = State::CutOver(CutOver::found(record));
            }
            Standing::InDoubt(record) => {
                leecher.volume = Some((record.volume, record.epoch));
                leecher.state = State::Committing { record, asks: true };
            }
            Standing::Completing(record) => {
                leecher.state = State::CutOver(CutOver::found(record));
            }
            Standing::Owner(_) => leecher.state = State::CutOver(CutOver::found(complete?)),
        }
        Some(leecher)
    }

    /// What follows from an event.
    #[must_use]
    pub fn handle(&mut self, event: LeecherEvent) -> Vec<LeecherAction> {
        match event {
            LeecherEvent::Begin => self.begin(),
            LeecherEvent::Message(message) => self.message(message),
            LeecherEvent::Connected => self.say_again(),
            LeecherEvent::Disconnected => self.disconnected(),
            LeecherEvent::Finalize => self.finalize(),
            LeecherEvent::Abort => self.abort(),
            LeecherEvent::AssumeCommitted => self.assume_committed(),
            LeecherEvent::Pulled { number, result } => self.pulled(number, result),
            LeecherEvent::Received { attempt, result } => self.received(attempt, result),
            LeecherEvent::Secured { attempt, result } => self.secured(attempt, result),
            LeecherEvent::Recorded { stage, result } => self.recorded(stage, result),
            LeecherEvent::Started(result) => self.started(result),
            LeecherEvent::RestPulled(result) => self.rest_pulled(result),
            LeecherEvent::RestSecured(result) => self.rest_secured(result),
            LeecherEvent::Timer(timer) => self.timer(timer),
        }
        std::mem::take(&mut self.actions)
    }

    /// What is predicted of the hold.
    pub fn prediction(&self) -> &Prediction {
        &self.prediction
    }

    /// Whether the volume is here.
    pub fn is_owner(&self) -> bool {
        matches!(self.state, State::CutOver(_))
    }

    /// Whether nobody but the seeder knows if the volume is here.
    pub fn is_in_doubt(&self) -> bool {
        matches!(self.state, State::Committing { .. })
    }

    /// Whether a round may be left half pulled for the cut-over.
    pub fn may_leave_a_round(&self) -> bool {
        self.config.mode == Mode::Hybrid
    }

    /// Whether the volume is here, but for bytes that are, or may be, at the seeder alone.
    pub fn is_in_part(&self) -> bool {
        matches!(&self.state, State::CutOver(cut_over) if cut_over.is_in_part())
    }

    /// Whether what was pulled after the volume had moved is not what the seeder has.
    pub fn differs(&self) -> bool {
        matches!(&self.state, State::CutOver(cut_over) if cut_over.differs())
    }

    /// Whether everything is here, and durably known to be, so that the volume can be seeded.
    pub fn can_seed(&self) -> bool {
        matches!(&self.state, State::CutOver(cut_over) if cut_over.is_complete())
    }

    /// Whether nothing is left to do: the seeder is released, or the migration is over.
    pub fn is_done(&self) -> bool {
        match &self.state {
            State::CutOver(cut_over) => cut_over.is_done(),
            State::Over => true,
            _ => false,
        }
    }

    fn act(&mut self, action: LeecherAction) {
        self.actions.push(action);
    }

    fn send(&mut self, message: ToSeeder) {
        self.act(LeecherAction::Send(message));
    }

    fn tell(&mut self, notice: LeecherNotice) {
        self.act(LeecherAction::Tell(notice));
    }

    fn begin(&mut self) {
        match &self.state {
            State::CutOver(_) => return self.go_on_as_owner(),
            State::Committing { .. } => self.tell(LeecherNotice::InDoubt),
            _ => {}
        }
        self.say_again();
    }

    /// Says what it waits for an answer to, now and, if there is none, again.
    fn say_again(&mut self) {
        if let Some(message) = self.question() {
            self.send(message);
            if !planted(Bug::NoRetry) {
                self.act(LeecherAction::Arm(LeecherTimer::Retry, RETRY));
            }
        }
    }

    fn question(&self) -> Option<ToSeeder> {
        Some(match &self.state {
            State::Connecting => ToSeeder::Leech {
                migration: self.config.migration,
                name: self.config.name.clone(),
            },
            State::Wanting => ToSeeder::Round {
                session: self.session?,
                number: self.asked,
                pulled: self.pulled,
                anew: self.anew,
            },
            State::Preparing(offer) | State::Receiving(offer) => ToSeeder::Prepare {
                attempt: offer.attempt,
                pulled: self.pulled,
                post_copy: offer.post_copy,
            },
            State::Committing { record, asks } => {
                let attempt = record.attempt?;
                match asks {
                    true => ToSeeder::Ask { attempt },
                    false => ToSeeder::Commit {
                        attempt,
                        proof: self.proof,
                    },
                }
            }
            State::CutOver(cut_over) => cut_over.question()?,
            _ => return None,
        })
    }

    fn message(&mut self, message: ToLeecher) {
        match message {
            ToLeecher::Welcome {
                session,
                volume,
                epoch,
            } => self.welcome(session, volume, epoch),
            ToLeecher::Refused { migration, reason } if migration == self.config.migration => {
                self.refused(reason);
            }
            ToLeecher::Unknown { session } if self.session == Some(session) => self.lose_session(),
            ToLeecher::Refused { .. } | ToLeecher::Unknown { .. } => {}
            ToLeecher::Round {
                session,
                number,
                blocks,
            } => {
                let is_answer = self.session == Some(session) && self.asked == number;
                if is_answer && matches!(self.state, State::Wanting) {
                    self.anew = false;
                    self.state = State::Pulling;
                    self.act(LeecherAction::Pull { number, blocks });
                }
            }
            ToLeecher::Dirty {
                attempt,
                blocks,
                proof,
            } => self.dirty(attempt, blocks, proof),
            ToLeecher::Committed { attempt } => self.committed(attempt),
            ToLeecher::Ended { attempt, reason } => self.attempt_ended(attempt, reason),
            ToLeecher::Proof { attempt, proof } => self.proof(attempt, proof),
            ToLeecher::Released { attempt } => self.released(attempt),
        }
    }

    fn welcome(&mut self, session: SessionId, volume: VolumeId, epoch: Epoch) {
        if !matches!(self.state, State::Connecting) || session.migration != self.config.migration {
            return;
        }
        if let Err(reason) = self.fits(volume, epoch) {
            return self.go(Next::Stop(reason));
        }
        if self.session.replace(session) != Some(session) {
            // What was asked for goes on being counted: a late welcome may have led away from this
            // session for a while.
            (self.pulled, self.rounds) = (0, 0);
            self.anew = false;
            self.prediction = Prediction::default();
        }
        if self.volume.is_none() && self.config.mode == Mode::Hybrid {
            let limit = self.config.pre_copy_limit;
            self.act(LeecherAction::Arm(LeecherTimer::PreCopyLimit, limit));
        }
        self.volume = Some((volume, epoch));
        if self.marked == Some(epoch) {
            self.advance();
        } else {
            self.mark(Next::Advance);
        }
    }

    /// Whether the store can take this volume in this epoch: its record must count after that of
    /// an earlier move away.
    fn fits(&self, volume: VolumeId, epoch: Epoch) -> Result<(), Reason> {
        let Records { commit, leech } = &self.found;
        let left = commit.as_ref().map(|record| record.volume);
        let came = leech.as_ref().map(|record| record.volume);
        if left.or(came).is_some_and(|known| known != volume) {
            return Err(Reason::AnotherVolume);
        }
        match commit {
            Some(commit) if commit.epoch >= epoch => Err(Reason::Outdated),
            _ => Ok(()),
        }
    }

    /// Has the record say that what is here is not the volume.
    fn mark(&mut self, next: Next) {
        let Some((volume, epoch)) = self.volume else {
            return self.go(next);
        };
        self.state = State::Marking(next);
        self.act(LeecherAction::Record(LeechRecord {
            volume,
            epoch,
            stage: Stage::Pulling,
            attempt: None,
            post_copy: false,
        }));
    }

    fn marked(&mut self, result: Result<(), String>) {
        let State::Marking(next) = &self.state else {
            return;
        };
        let next = match result {
            Ok(()) => next.clone(),
            Err(text) => Next::Stop(Reason::StoreFailed(text)),
        };
        if !matches!(&next, Next::Stop(_)) {
            self.marked = self.volume.map(|(_, epoch)| epoch);
        }
        self.go(next);
    }

    fn go(&mut self, next: Next) {
        match next {
            Next::Advance => self.advance(),
            Next::Rest if self.session.is_some() => self.rest(),
            Next::Rest | Next::Connect => {
                self.state = State::Connecting;
                self.say_again();
            }
            Next::Stop(reason) => {
                let migration = self.config.migration;
                self.send(ToSeeder::Leave { migration });
                self.state = State::Over;
                self.tell(LeecherNotice::Over(reason));
            }
        }
    }

    fn timer(&mut self, timer: LeecherTimer) {
        match timer {
            LeecherTimer::Retry => self.say_again(),
            LeecherTimer::Pause if matches!(self.state, State::Resting) => self.advance(),
            LeecherTimer::Pause => {}
            LeecherTimer::PreCopyLimit => {
                self.post_copy_due = true;
                let may_begin =
                    matches!(self.state, State::Wanting | State::Pulling | State::Resting);
                if may_begin && (self.finalize_wanted || self.is_automatic()) {
                    self.prepare();
                }
            }
            LeecherTimer::Again => self.try_again(),
        }
    }

    fn abort(&mut self) {
        let reason = Reason::LeecherAborted;
        match &mut self.state {
            State::Committing { .. } | State::CutOver(_) => self.tell(LeecherNotice::TooLate),
            State::Over => {}
            State::Marking(next) => *next = Next::Stop(reason),
            _ => self.give_up(Next::Stop(reason)),
        }
    }

    fn refused(&mut self, reason: Reason) {
        match &mut self.state {
            State::Connecting => self.go(Next::Stop(reason)),
            // It was let in since.
            _ if reason == Reason::Full => {}
            State::Committing { .. } | State::CutOver(_) | State::Over => {}
            State::Marking(next) => *next = Next::Stop(reason),
            _ => self.give_up(Next::Stop(reason)),
        }
    }

    /// The seeder's process does not know what is here.
    fn lose_session(&mut self) {
        match self.state {
            State::Committing { .. } | State::CutOver(_) | State::Over => {}
            State::Connecting | State::Marking(_) => self.session = None,
            _ => {
                self.session = None;
                self.give_up(Next::Connect);
            }
        }
    }

    fn disconnected(&mut self) {
        match &mut self.state {
            State::Committing { .. } if planted(Bug::AbortAfterCommit) => self.go(Next::Connect),
            State::Committing { asks, .. } => *asks = true,
            State::Preparing(_)
            | State::Receiving(_)
            | State::Securing(_)
            | State::Recording(..) => self.give_up(Next::Connect),
            _ => {}
        }
    }
}
