//! The commit, and what is said of it from then on.

use super::attempt::Step;
use super::{ERASE_PAUSE, Hook, Phase, Release, Seeder, SeederAction, SeederNotice, SeederTimer};
use crate::migrate::protocol::planted::{Bug, planted};
use crate::migrate::protocol::record::CommitRecord;
use crate::migrate::protocol::{AttemptId, Proof, Reason, ToLeecher};

impl Seeder {
    pub(super) fn commit(&mut self, attempt: AttemptId, proof: Option<Proof>) {
        let Phase::Attempting(current) = &mut self.phase else {
            return self.answer(attempt);
        };
        if current.id != attempt && !planted(Bug::CommitOfAnotherAttempt) {
            return self.over(attempt, Reason::Over);
        }
        if current.step.is_decided() {
            return;
        }
        if current.step != Step::Offered {
            return self.end(attempt, Reason::Over);
        }
        if current.proof != proof && !planted(Bug::ProofIgnored) {
            return self.end(attempt, Reason::ProofDiffers);
        }
        current.step = Step::Committing;
        let record = self.commit_record();
        self.actions.extend(record.map(SeederAction::WriteCommit));
        if planted(Bug::FailBeforeRecord) {
            self.act(SeederAction::Fail);
        }
        if planted(Bug::CommitBeforeRecord) {
            self.send(attempt.migration(), ToLeecher::Committed { attempt });
        }
    }

    /// The record of the move that the current attempt is.
    pub(super) fn commit_record(&self) -> Option<CommitRecord> {
        let Phase::Attempting(current) = &self.phase else {
            return None;
        };
        Some(CommitRecord {
            volume: self.config.volume,
            epoch: self.epoch.next(),
            attempt: current.id,
            to: current.name.clone(),
            released: false,
            post_copy: current.post_copy,
        })
    }

    pub(super) fn commit_written(&mut self, result: Result<(), String>) {
        let record = self.commit_record();
        let Phase::Attempting(current) = &mut self.phase else {
            return;
        };
        let (Step::Committing, Some(record)) = (&current.step, record) else {
            return;
        };
        if let Err(text) = result {
            current.step = Step::Erasing(text.clone());
            if planted(Bug::ResumeAfterFailedCommit) {
                return self.commit_erased(Ok(()));
            }
            return self.act(SeederAction::EraseCommit);
        }
        let attempt = record.attempt;
        self.act(SeederAction::Fail);
        self.send(attempt.migration(), ToLeecher::Committed { attempt });
        self.act(SeederAction::CallHook(attempt, Hook::BeforeClose));
        self.act(SeederAction::Tell(SeederNotice::Moved(record.clone())));
        self.epoch = record.epoch;
        self.phase = Phase::Moved {
            record,
            closing: true,
            release: Release::Awaited,
            has_device: true,
        };
        let reason = self.moved_reason();
        for (migration, _) in std::mem::take(&mut self.sessions) {
            self.act(SeederAction::EndTracking(migration));
            if migration != attempt.migration() {
                let reason = reason.clone().unwrap_or(Reason::Over);
                self.refuse(migration, reason);
            }
        }
    }

    pub(super) fn commit_erased(&mut self, result: Result<(), String>) {
        let Phase::Attempting(current) = &self.phase else {
            return;
        };
        let Step::Erasing(text) = &current.step else {
            return;
        };
        let (attempt, reason) = (current.id, Reason::StoreFailed(text.clone()));
        match result {
            Ok(()) => {
                self.over(attempt, reason.clone());
                self.resume(reason);
            }
            Err(text) => {
                self.act(SeederAction::Tell(SeederNotice::RecordStuck(text)));
                self.act(SeederAction::Arm(SeederTimer::Erase, ERASE_PAUSE));
            }
        }
    }

    /// What became of an attempt that is not the current one.
    pub(super) fn answer(&mut self, attempt: AttemptId) {
        match self.moved() {
            Some(record) if record.attempt == attempt => {
                self.send(attempt.migration(), ToLeecher::Committed { attempt });
            }
            _ => {
                let reason = self.moved_reason().unwrap_or(Reason::Over);
                self.over(attempt, reason);
            }
        }
    }

    pub(super) fn asked(&mut self, attempt: AttemptId) {
        match &self.phase {
            Phase::Attempting(current) if current.id == attempt => {
                if planted(Bug::AskedButOpen) {
                    return self.over(attempt, Reason::Asked);
                }
                // Once it is decided the answer comes with the record.
                self.end(attempt, Reason::Asked);
            }
            _ => self.answer(attempt),
        }
    }

    pub(super) fn closed(&mut self, result: Result<(), String>) {
        if let Err(text) = result {
            self.act(SeederAction::Tell(SeederNotice::HookFailed(text)));
        }
        if let Phase::Moved { closing, .. } = &mut self.phase {
            *closing = false;
        }
        self.remove_device();
    }

    pub(super) fn release(&mut self, attempt: AttemptId) {
        let Phase::Moved {
            record, release, ..
        } = &mut self.phase
        else {
            return;
        };
        if record.attempt != attempt {
            return;
        }
        match release {
            _ if planted(Bug::ReleasedBeforeRecord) => {
                self.send(attempt.migration(), ToLeecher::Released { attempt });
            }
            Release::Awaited => {
                *release = Release::Writing;
                let mut record = record.clone();
                record.released = true;
                self.act(SeederAction::WriteReleased(record));
            }
            // It is answered when the record is durable.
            Release::Writing => {}
            Release::Durable => {
                self.send(attempt.migration(), ToLeecher::Released { attempt });
            }
        }
    }

    pub(super) fn released_written(&mut self, result: Result<(), String>) {
        let Phase::Moved {
            record, release, ..
        } = &mut self.phase
        else {
            return;
        };
        if let Err(text) = result {
            // The new owner says it again.
            *release = Release::Awaited;
            return self.act(SeederAction::Tell(SeederNotice::ReleaseNotKept(text)));
        }
        *release = Release::Durable;
        record.released = true;
        let attempt = record.attempt;
        self.act(SeederAction::Tell(SeederNotice::Released));
        self.remove_device();
        self.send(attempt.migration(), ToLeecher::Released { attempt });
    }

    /// Once nobody needs it any more.
    fn remove_device(&mut self) {
        if let Phase::Moved {
            closing: false,
            release: Release::Durable,
            has_device,
            ..
        } = &mut self.phase
            && std::mem::take(has_device)
        {
            self.act(SeederAction::RemoveDevice);
        }
    }
}
