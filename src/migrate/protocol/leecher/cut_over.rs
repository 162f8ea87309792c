//! The volume is here: device, record, in post-copy the rest and its proof, and the release.

use std::time::Duration;

use super::{Leecher, LeecherAction, LeecherNotice, LeecherTimer, State};
use crate::migrate::protocol::record::{LeechRecord, Stage};
use crate::migrate::protocol::{AttemptId, BlockSet, Proof, ToSeeder};

/// Between two tries of what failed.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// How often what was pulled is compared before it counts as different: a read that went wrong at either end
/// once is no reason to keep the seeder for ever.
const COMPARISONS_MAX: u32 = 3;

/// See the module.
#[derive(Debug)]
pub(super) struct CutOver {
    record: LeechRecord,
    /// The record is durable.
    recorded: bool,
    /// The device was started, or cannot be.
    started: bool,
    /// How often the proofs differed.
    differed: u32,
    step: Step,
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    /// The rest is being pulled.
    Rest,
    /// It is being made durable.
    Securing,
    /// The seeder is asked for its proof.
    Proving(BlockSet, Proof),
    /// It is here, and equal.
    Proved,
    /// Its record is being made durable, and the device started.
    Completing,
    /// The seeder is told.
    Releasing,
    Done,
    /// What was pulled is not what the seeder has.
    Differs,
}

const COMPARED_AGAIN: &str =
    "what was pulled is not what the seeder has, by what both read back: both read it once more";

const UNREADABLE: &str =
    "the seeder cannot read back what was pulled from it, and its log says why";

impl CutOver {
    /// The seeder has just moved the volume here.
    pub(super) fn new(mut record: LeechRecord) -> Self {
        record.stage = match record.post_copy {
            true => Stage::Owner,
            false => Stage::Complete,
        };
        Self {
            recorded: false,
            ..Self::found(record)
        }
    }

    /// The record says that the volume is here.
    pub(super) fn found(record: LeechRecord) -> Self {
        let step = match record.stage {
            Stage::Owner => Step::Rest,
            _ => Step::Completing,
        };
        Self {
            record,
            recorded: true,
            started: false,
            differed: 0,
            step,
        }
    }

    pub(super) fn question(&self) -> Option<ToSeeder> {
        let attempt = self.record.attempt?;
        match &self.step {
            Step::Proving(blocks, _) => {
                let blocks = blocks.clone();
                Some(ToSeeder::Prove { attempt, blocks })
            }
            Step::Releasing => Some(ToSeeder::Release { attempt }),
            _ => None,
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.record.stage == Stage::Complete && self.recorded
    }

    pub(super) fn is_in_part(&self) -> bool {
        self.record.stage == Stage::Owner
    }

    pub(super) fn differs(&self) -> bool {
        self.step == Step::Differs
    }

    pub(super) fn is_done(&self) -> bool {
        self.step == Step::Done
    }
}

impl Leecher {
    fn owner(&mut self) -> Option<&mut CutOver> {
        match &mut self.state {
            State::CutOver(cut_over) => Some(cut_over),
            _ => None,
        }
    }

    /// At the step that it has come to.
    fn owner_at(&mut self, step: &Step) -> Option<&mut CutOver> {
        self.owner().filter(|cut_over| cut_over.step == *step)
    }

    pub(super) fn go_on_as_owner(&mut self) {
        let Some(cut_over) = self.owner() else {
            return;
        };
        let (record, recorded) = (cut_over.record.clone(), cut_over.recorded);
        let rest = cut_over.step == Step::Rest;
        self.act(LeecherAction::StartDevice(record.epoch));
        if !recorded {
            self.act(LeecherAction::Record(record));
        }
        if rest {
            self.act(LeecherAction::PullRest);
        }
    }

    pub(super) fn started(&mut self, result: Result<(), String>) {
        let Some(cut_over) = self.owner() else {
            return;
        };
        cut_over.started = true;
        let epoch = cut_over.record.epoch;
        self.tell(match result {
            Ok(()) => LeecherNotice::Owner(epoch),
            Err(text) => LeecherNotice::NoDevice(text),
        });
        self.complete();
    }

    pub(super) fn owner_recorded(&mut self, stage: Stage, result: Result<(), String>) {
        let Some(cut_over) = self.owner() else {
            return;
        };
        if cut_over.record.stage != stage {
            return;
        }
        match result {
            Ok(()) => {
                cut_over.recorded = true;
                self.complete();
            }
            Err(text) => self.fail(text),
        }
    }

    fn fail(&mut self, text: String) {
        self.tell(LeecherNotice::TryingAgain(text));
        self.act(LeecherAction::Arm(LeecherTimer::Again, TRY_AGAIN));
    }

    pub(super) fn try_again(&mut self) {
        let Some(cut_over) = self.owner() else {
            return;
        };
        let record = (!cut_over.recorded).then(|| cut_over.record.clone());
        let step = cut_over.step.clone();
        self.actions.extend(record.map(LeecherAction::Record));
        match step {
            Step::Rest => self.act(LeecherAction::PullRest),
            Step::Securing => self.act(LeecherAction::SecureRest),
            _ => {}
        }
    }

    pub(super) fn rest_pulled(&mut self, result: Result<(), String>) {
        let Some(cut_over) = self.owner_at(&Step::Rest) else {
            return;
        };
        match result {
            Ok(()) => {
                cut_over.step = Step::Securing;
                self.act(LeecherAction::SecureRest);
            }
            Err(text) => self.fail(text),
        }
    }

    pub(super) fn rest_secured(&mut self, result: Result<(BlockSet, Proof), String>) {
        let Some(cut_over) = self.owner_at(&Step::Securing) else {
            return;
        };
        match result {
            Ok((blocks, proof)) => {
                cut_over.step = Step::Proving(blocks, proof);
                self.say_again();
            }
            Err(text) => self.fail(text),
        }
    }

    pub(super) fn proof(&mut self, attempt: AttemptId, theirs: Option<Proof>) {
        let Some(cut_over) = self.owner() else {
            return;
        };
        let Step::Proving(_, ours) = &cut_over.step else {
            return;
        };
        if cut_over.record.attempt != Some(attempt) {
            return;
        }
        match theirs {
            Some(theirs) if theirs == *ours => {
                cut_over.step = Step::Proved;
                self.complete();
            }
            Some(_) => {
                cut_over.differed += 1;
                match cut_over.differed < COMPARISONS_MAX {
                    true => {
                        cut_over.step = Step::Securing;
                        self.tell(LeecherNotice::TryingAgain(COMPARED_AGAIN.to_owned()));
                        self.act(LeecherAction::SecureRest);
                    }
                    false => {
                        cut_over.step = Step::Differs;
                        self.tell(LeecherNotice::PulledDiffers);
                    }
                }
            }
            // It is asked again when the time for an answer is over.
            None => self.tell(LeecherNotice::TryingAgain(UNREADABLE.to_owned())),
        }
    }

    /// Goes on if the record of the step before is durable.
    fn complete(&mut self) {
        let Some(cut_over) = self.owner() else {
            return;
        };
        if !cut_over.recorded {
            return;
        }
        match cut_over.step {
            Step::Proved => {
                cut_over.step = Step::Completing;
                cut_over.recorded = false;
                cut_over.record.stage = Stage::Complete;
                let record = cut_over.record.clone();
                self.act(LeecherAction::Record(record));
            }
            Step::Completing if cut_over.started => {
                cut_over.step = Step::Releasing;
                self.say_again();
            }
            _ => {}
        }
    }

    pub(super) fn released(&mut self, attempt: AttemptId) {
        if let Some(cut_over) = self.owner_at(&Step::Releasing)
            && cut_over.record.attempt == Some(attempt)
        {
            cut_over.step = Step::Done;
            self.tell(LeecherNotice::Done);
        }
    }
}
