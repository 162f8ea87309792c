//! What came up in the lives, so that none of it is missed.

use std::collections::BTreeMap;

/// What happened.
#[derive(Debug, Default, Clone)]
pub(super) struct Outcome {
    /// How many times the power was cut and what was found was looked at.
    pub(super) states: u64,
    /// How often what came up in a life did.
    pub(super) events: BTreeMap<Event, u64>,
}

/// Something that a life has to have had in it to mean anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    PowerCut,
    Kill,
    Close,
    Checkpoint,
    FlushOfDataAlone,
    RemoteFlush,
    OriginCut,
    Intents,
    Settled,
    Epoch,
    /// A commit that was under way did not count.
    OlderCommit,
    NoSpace,
    FailedSync,
    RolledBack,
    KilledInside,
    KilledOpening,
    KilledClosing,
    KilledElsewhere,
}

impl Event {
    pub(super) const ALL: [Self; 18] = [
        Self::PowerCut,
        Self::Kill,
        Self::Close,
        Self::Checkpoint,
        Self::FlushOfDataAlone,
        Self::RemoteFlush,
        Self::OriginCut,
        Self::Intents,
        Self::Settled,
        Self::Epoch,
        Self::OlderCommit,
        Self::NoSpace,
        Self::FailedSync,
        Self::RolledBack,
        Self::KilledInside,
        Self::KilledOpening,
        Self::KilledClosing,
        Self::KilledElsewhere,
    ];
}

impl Outcome {
    pub(super) fn count(&mut self, event: Event) {
        *self.events.entry(event).or_default() += 1;
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.states += other.states;
        for (event, count) in &other.events {
            *self.events.entry(*event).or_default() += count;
        }
    }
}
