//! What has happened in a run, to be sure that it was not just calm.

use std::collections::BTreeMap;

/// Something that a run should have now and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Happened {
    Killed,
    PowerCut,
    Cut,
    Lost,
    Doubled,
    Resumed,
    ResumedByHoldLimit,
    ProofDiffered,
    RefusedBusy,
    RefusedMoved,
    RecordFailed,
    CommitErased,
    TooLate,
    InDoubt,
    AskedAndCommitted,
    AskedAndEnded,
    Moved,
    MovedInPostCopy,
    MovedBack,
    Released,
    Assumed,
    AssumedUncommitted,
    LeftAlone,
}

impl Happened {
    pub(super) const ALL: [Self; 23] = [
        Self::Killed,
        Self::PowerCut,
        Self::Cut,
        Self::Lost,
        Self::Doubled,
        Self::Resumed,
        Self::ResumedByHoldLimit,
        Self::ProofDiffered,
        Self::RefusedBusy,
        Self::RefusedMoved,
        Self::RecordFailed,
        Self::CommitErased,
        Self::TooLate,
        Self::InDoubt,
        Self::AskedAndCommitted,
        Self::AskedAndEnded,
        Self::Moved,
        Self::MovedInPostCopy,
        Self::MovedBack,
        Self::Released,
        Self::Assumed,
        Self::AssumedUncommitted,
        Self::LeftAlone,
    ];
}

/// How often each has.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) steps: u64,
    pub(super) writes: u64,
    pub(super) happened: BTreeMap<Happened, u64>,
}

impl Outcome {
    pub(super) fn count(&mut self, what: Happened) {
        *self.happened.entry(what).or_default() += 1;
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.writes += other.writes;
        for (what, times) in &other.happened {
            *self.happened.entry(*what).or_default() += times;
        }
    }
}
