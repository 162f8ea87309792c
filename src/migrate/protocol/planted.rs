//! Bugs that the simulation plants in the machines, to show that it finds them. In anything but a
//! test build there are none.

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code, reason = "only tests plant them"))]
pub(crate) enum Bug {
    /// The seeder says that the volume has moved before its record of it is durable.
    CommitBeforeRecord,
    /// The hold limit ends an attempt whose commit record is being written.
    AbortWhileCommitting,
    /// A commit record whose write failed is taken for not written.
    ResumeAfterFailedCommit,
    /// A commit moves the volume whichever attempt it belongs to.
    CommitOfAnotherAttempt,
    /// An attempt that was refused may begin all the same, when its message comes once more.
    BusyIsNotFinal,
    /// The seeder says that nothing came of an attempt, and leaves it open.
    AskedButOpen,
    /// An attempt for a process of the seeder before this one is taken.
    AnotherInstance,
    /// The blocks that were collected for an attempt that is over are forgotten.
    ForgetCollected,
    /// A round that was handed out counts as pulled.
    RoundCountsAtOnce,
    /// The seeder does not compare the proofs, nor does the leecher.
    ProofIgnored,
    /// A lost connection does not end an attempt, and neither does the hold limit.
    HoldForEver,
    /// Requests fail as soon as a commit arrives.
    FailBeforeRecord,
    /// The leecher says commit before its store is durable.
    CommitBeforeDurable,
    /// The leecher says commit before its record is durable.
    CommitBeforePrepared,
    /// The leecher takes a lost connection for the end of an attempt, though it has sent the commit.
    AbortAfterCommit,
    /// The leecher's record still says `Prepared` when it pulls the next round.
    PullWhilePrepared,
    /// The leecher starts the device when it finds its record to be `Prepared`.
    ServeInDoubt,
    /// The leecher says nothing twice.
    NoRetry,
    /// After a restart the record of a move away counts, whatever its epoch.
    IgnoreEpoch,
    /// The seeder lets the new owner go before it has recorded that it may.
    ReleasedBeforeRecord,
}

#[cfg(not(test))]
pub(super) const fn planted(_: Bug) -> bool {
    false
}

#[cfg(test)]
pub(super) use switch::planted;

#[cfg(test)]
pub(crate) use switch::plant;

#[cfg(test)]
mod switch {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    pub(in super::super) fn planted(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// For this thread's machines.
    pub(crate) fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }
}
