//! The second phase, up to the seeder's answer to the commit.

use super::cut_over::CutOver;
use super::{Leecher, LeecherAction, LeecherNotice, Next, State};
use crate::migrate::protocol::planted::{Bug, planted};
use crate::migrate::protocol::record::{LeechRecord, Stage};
use crate::migrate::protocol::{AttemptId, BlockSet, Proof, Reason, ToSeeder};

/// An attempt, and what the seeder has said to it.
#[derive(Debug, Clone)]
pub(super) struct Offer {
    pub(super) attempt: AttemptId,
    pub(super) post_copy: bool,
    /// Of the seeder's store.
    proof: Option<Proof>,
}

impl Leecher {
    /// Begins an attempt.
    pub(super) fn prepare(&mut self) {
        let Some(session) = self.session else {
            return self.go(Next::Connect);
        };
        if matches!(self.state, State::Pulling) {
            self.act(LeecherAction::StopPulling);
        }
        self.attempts += 1;
        let attempt = AttemptId {
            session,
            number: self.attempts,
        };
        self.state = State::Preparing(Offer {
            attempt,
            post_copy: self.leaves_bytes(),
            proof: None,
        });
        self.say_again();
    }

    fn current(&self) -> Option<AttemptId> {
        match &self.state {
            State::Preparing(offer)
            | State::Receiving(offer)
            | State::Securing(offer)
            | State::Recording(offer, _) => Some(offer.attempt),
            State::Committing { record, .. } => record.attempt,
            _ => None,
        }
    }

    pub(super) fn dirty(&mut self, attempt: AttemptId, blocks: BlockSet, proof: Option<Proof>) {
        let may_be_committed = matches!(self.state, State::Committing { .. } | State::CutOver(_));
        if self.current() != Some(attempt) && !may_be_committed {
            // Its requests are held for nothing.
            return self.send(ToSeeder::Abort { attempt });
        }
        let State::Preparing(offer) = &self.state else {
            return;
        };
        let mut offer = offer.clone();
        offer.proof = proof;
        if offer.post_copy {
            self.state = State::Securing(offer);
            let absent = Some(blocks);
            self.act(LeecherAction::Secure { attempt, absent });
        } else {
            self.state = State::Receiving(offer);
            self.act(LeecherAction::Receive(attempt, blocks));
        }
    }

    pub(super) fn received(&mut self, attempt: AttemptId, result: Result<(), String>) {
        let State::Receiving(offer) = &self.state else {
            return;
        };
        if offer.attempt != attempt {
            return;
        }
        if let Err(text) = result {
            return self.give_up(Next::Stop(Reason::StoreFailed(text)));
        }
        let offer = offer.clone();
        if planted(Bug::CommitBeforeDurable) {
            return self.record_prepared(offer);
        }
        self.state = State::Securing(offer);
        let absent = None;
        self.act(LeecherAction::Secure { attempt, absent });
    }

    pub(super) fn secured(&mut self, attempt: AttemptId, result: Result<Option<Proof>, String>) {
        let State::Securing(offer) = &self.state else {
            return;
        };
        if offer.attempt != attempt {
            return;
        }
        let offer = offer.clone();
        match result {
            Err(text) => self.give_up(Next::Stop(Reason::StoreFailed(text))),
            Ok(proof) if proof == offer.proof || planted(Bug::ProofIgnored) => {
                self.record_prepared(offer);
            }
            Ok(_) => self.distrust(),
        }
    }

    /// What is here differs from what is at the seeder, though all of it was pulled.
    fn distrust(&mut self) {
        self.anew = true;
        self.count_ended(Reason::ProofDiffers);
        self.give_up(Next::Rest);
    }

    fn record_prepared(&mut self, offer: Offer) {
        let Some(record) = self.prepared(&offer) else {
            return;
        };
        if planted(Bug::CommitBeforePrepared) {
            let (attempt, proof) = (offer.attempt, offer.proof);
            self.send(ToSeeder::Commit { attempt, proof });
        }
        self.state = State::Recording(offer, None);
        self.marked = None;
        self.act(LeecherAction::Record(record));
    }

    fn prepared(&self, offer: &Offer) -> Option<LeechRecord> {
        let (volume, epoch) = self.volume?;
        Some(LeechRecord {
            volume,
            epoch,
            stage: Stage::Prepared,
            attempt: Some(offer.attempt),
            post_copy: offer.post_copy,
        })
    }

    pub(super) fn recorded(&mut self, stage: Stage, result: Result<(), String>) {
        match stage {
            Stage::Pulling => self.marked(result),
            Stage::Prepared => self.prepared_recorded(result),
            Stage::Owner | Stage::Complete => self.owner_recorded(stage, result),
        }
    }

    fn prepared_recorded(&mut self, result: Result<(), String>) {
        let State::Recording(offer, next) = &self.state else {
            return;
        };
        let (offer, next) = (offer.clone(), next.clone());
        // It may count even if it failed: either way it has to be replaced.
        let next = match result {
            Ok(()) => next,
            Err(text) => Some(Next::Stop(Reason::StoreFailed(text))),
        };
        let Some(record) = self.prepared(&offer) else {
            return;
        };
        match next {
            None => {
                self.proof = offer.proof;
                self.state = State::Committing {
                    record,
                    asks: false,
                };
                self.say_again();
            }
            Some(next) => {
                let attempt = offer.attempt;
                self.send(ToSeeder::Abort { attempt });
                self.mark(next);
            }
        }
    }

    /// Ends what is under way before a commit was sent.
    pub(super) fn give_up(&mut self, next: Next) {
        let attempt = self.current();
        match &mut self.state {
            State::Recording(_, then) => {
                *then = Some(next);
                return;
            }
            State::Pulling | State::Receiving(_) => self.act(LeecherAction::StopPulling),
            _ => {}
        }
        if let Some(attempt) = attempt {
            self.send(ToSeeder::Abort { attempt });
        }
        self.go(next);
    }

    fn count_ended(&mut self, reason: Reason) {
        self.attempts_ended += 1;
        self.tell(LeecherNotice::AttemptEnded(reason));
        if self.attempts_ended == super::rounds::ATTEMPTS_MAX {
            self.tell(LeecherNotice::NowManual);
        }
    }

    pub(super) fn attempt_ended(&mut self, attempt: AttemptId, reason: Reason) {
        if self.current() != Some(attempt) {
            return;
        }
        let next = match &reason {
            Reason::Moved { .. } | Reason::SeederAborted => Next::Stop(reason.clone()),
            Reason::ProofDiffers => {
                self.anew = true;
                Next::Rest
            }
            _ => Next::Rest,
        };
        self.count_ended(reason);
        match &self.state {
            State::Committing { .. } if planted(Bug::PullWhilePrepared) => self.go(next),
            State::Committing { .. } => self.mark(next),
            _ => self.give_up(next),
        }
    }

    pub(super) fn committed(&mut self, attempt: AttemptId) {
        if let State::Committing { record, .. } = &self.state
            && record.attempt == Some(attempt)
        {
            let record = record.clone();
            self.cut_over(record);
        }
    }

    pub(super) fn assume_committed(&mut self) {
        let State::Committing { record, .. } = &self.state else {
            return;
        };
        if record.post_copy {
            return self.tell(LeecherNotice::BytesAtSeeder);
        }
        let record = record.clone();
        self.cut_over(record);
    }

    fn cut_over(&mut self, record: LeechRecord) {
        self.state = State::CutOver(CutOver::new(record));
        self.go_on_as_owner();
    }
}
