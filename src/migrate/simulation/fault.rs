//! What is planted to show that it is found: a bug in a machine, or a promise that is not kept by
//! whoever carries out what a machine decides.

use crate::migrate::protocol::Bug;

/// A planted fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// In a machine.
    Bug(Bug),
    /// A hold is over though requests are under way.
    HoldNotDrained,
    /// A write is noted before its bytes change, and not again when they have.
    NotedOnlyBefore,
    /// The seeder's store is not durable when the hold says so.
    HoldWithoutFlush,
    /// The leecher's store is not durable when it says so.
    SecureWithoutSync,
    /// What was pulled in post-copy is not durable when the leecher says so.
    RestWithoutSync,
    /// A fetched block overwrites what was written at the new owner.
    FetchOverwrites,
    /// Blocks that are left at the seeder count as present.
    AbsentIsPresent,
    /// Bytes of a pull that was stopped reach the store.
    StoppedPullLands,
}

impl Fault {
    pub(super) const ALL: [Self; 28] = [
        Self::Bug(Bug::CommitBeforeRecord),
        Self::Bug(Bug::AbortWhileCommitting),
        Self::Bug(Bug::ResumeAfterFailedCommit),
        Self::Bug(Bug::CommitOfAnotherAttempt),
        Self::Bug(Bug::BusyIsNotFinal),
        Self::Bug(Bug::AskedButOpen),
        Self::Bug(Bug::AnotherInstance),
        Self::Bug(Bug::ForgetCollected),
        Self::Bug(Bug::RoundCountsAtOnce),
        Self::Bug(Bug::ProofIgnored),
        Self::Bug(Bug::HoldForEver),
        Self::Bug(Bug::FailBeforeRecord),
        Self::Bug(Bug::CommitBeforeDurable),
        Self::Bug(Bug::CommitBeforePrepared),
        Self::Bug(Bug::AbortAfterCommit),
        Self::Bug(Bug::PullWhilePrepared),
        Self::Bug(Bug::ServeInDoubt),
        Self::Bug(Bug::NoRetry),
        Self::Bug(Bug::IgnoreEpoch),
        Self::Bug(Bug::ReleasedBeforeRecord),
        Self::HoldNotDrained,
        Self::NotedOnlyBefore,
        Self::HoldWithoutFlush,
        Self::SecureWithoutSync,
        Self::RestWithoutSync,
        Self::FetchOverwrites,
        Self::AbsentIsPresent,
        Self::StoppedPullLands,
    ];

    /// From where to look for it: two take some seconds to be found from the first seed on, as they
    /// need a message that comes very late.
    pub(super) fn first_seed(self) -> u64 {
        match self {
            Self::Bug(Bug::BusyIsNotFinal) => 12_000,
            Self::Bug(Bug::AnotherInstance) => 18_000,
            _ => 1,
        }
    }

    pub(super) fn bug(self) -> Option<Bug> {
        match self {
            Self::Bug(bug) => Some(bug),
            _ => None,
        }
    }
}
