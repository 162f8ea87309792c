//! What the two ends say to each other.

use super::{AttemptId, BlockSet, Epoch, MigrationId, Proof, SessionId, VolumeId};

/// From a leecher.
#[derive(Debug, Clone, PartialEq)]
pub enum ToSeeder {
    /// It wants the volume, or comes back.
    Leech {
        /// Its migration.
        migration: MigrationId,
        /// What to call it: its host's name.
        name: String,
    },
    /// It asks which blocks to pull next.
    Round {
        /// In which session.
        session: SessionId,
        /// Grows with each round that it asks for; the same again asks for the same answer.
        number: u32,
        /// The last round of which everything is in its store.
        pulled: u32,
        /// It trusts nothing of what it has: everything is to be handed out again.
        anew: bool,
    },
    /// It wants to finalize: hold, and tell what changed.
    Prepare {
        /// The attempt, which begins with this.
        attempt: AttemptId,
        /// The last round of which everything is in its store.
        pulled: u32,
        /// Whether it leaves the bytes for later (post-copy).
        post_copy: bool,
    },
    /// Its store is durable and equal, and so is its record: the volume is to move.
    Commit {
        /// The attempt.
        attempt: AttemptId,
        /// Of its store; none in post-copy.
        proof: Option<Proof>,
    },
    /// It gives the attempt up. It has not sent a commit, and will not.
    Abort {
        /// The attempt.
        attempt: AttemptId,
    },
    /// It does not know what became of its commit. If nothing yet, nothing ever will.
    Ask {
        /// The attempt.
        attempt: AttemptId,
    },
    /// Post-copy: everything is pulled; what is the proof of these blocks at the seeder?
    Prove {
        /// The attempt that moved the volume.
        attempt: AttemptId,
        /// What it pulled.
        blocks: BlockSet,
    },
    /// It needs the seeder no more.
    Release {
        /// The attempt that moved the volume.
        attempt: AttemptId,
    },
    /// It leaves, and keeps what it has for another time.
    Leave {
        /// Its migration.
        migration: MigrationId,
    },
}

impl ToSeeder {
    /// Which migration it is of.
    pub fn migration(&self) -> MigrationId {
        match self {
            Self::Leech { migration, .. } | Self::Leave { migration } => *migration,
            Self::Round { session, .. } => session.migration,
            Self::Prepare { attempt, .. }
            | Self::Commit { attempt, .. }
            | Self::Abort { attempt }
            | Self::Ask { attempt }
            | Self::Prove { attempt, .. }
            | Self::Release { attempt } => attempt.migration(),
        }
    }
}

/// From the seeder.
#[derive(Debug, Clone, PartialEq)]
pub enum ToLeecher {
    /// It is in.
    Welcome {
        /// By which its messages are known from now on.
        session: SessionId,
        /// The volume.
        volume: VolumeId,
        /// The epoch that it would own it in.
        epoch: Epoch,
    },
    /// It is not, or not any more.
    Refused {
        /// Its migration.
        migration: MigrationId,
        /// Why.
        reason: Reason,
    },
    /// This process of the seeder does not know the session: say `Leech` again.
    Unknown {
        /// The session.
        session: SessionId,
    },
    /// The answer to `Round`.
    Round {
        /// In which session.
        session: SessionId,
        /// The round's number.
        number: u32,
        /// What to pull.
        blocks: BlockSet,
    },
    /// The seeder's requests are held.
    Dirty {
        /// The attempt.
        attempt: AttemptId,
        /// All that the leecher may not have as it is now. Their bytes follow unless in post-copy.
        blocks: BlockSet,
        /// Of the seeder's store; none in post-copy.
        proof: Option<Proof>,
    },
    /// The volume is the leecher's.
    Committed {
        /// By which attempt.
        attempt: AttemptId,
    },
    /// The attempt is over without a commit, and there will be none.
    Ended {
        /// The attempt.
        attempt: AttemptId,
        /// Why.
        reason: Reason,
    },
    /// The answer to `Prove`; none where the seeder cannot read its store.
    Proof {
        /// The attempt that moved the volume.
        attempt: AttemptId,
        /// Of the blocks that were asked for.
        proof: Option<Proof>,
    },
    /// The answer to `Release`.
    Released {
        /// The attempt that moved the volume.
        attempt: AttemptId,
    },
}

/// Why an attempt or a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Another leecher finalizes.
    Busy {
        /// Its name.
        by: String,
    },
    /// The volume has moved.
    Moved {
        /// The new owner's name.
        to: String,
        /// Its epoch.
        epoch: Epoch,
    },
    /// There are as many leechers as may be.
    Full,
    /// Somebody at the seeder gave it up.
    SeederAborted,
    /// The leecher gave it up.
    LeecherAborted,
    /// The hold would have taken too long.
    HoldLimit,
    /// The connection was lost.
    Disconnected,
    /// The leecher asked what became of it, and nothing had.
    Asked,
    /// There is a later one, or this one ended before.
    Over,
    /// A hook at the seeder failed.
    HookFailed(String),
    /// A store failed.
    StoreFailed(String),
    /// The two stores differ.
    ProofDiffers,
    /// The store that was to be leeched into has to do with another volume.
    AnotherVolume,
    /// The volume has left the leecher's host since the seeder had it: what is at the seeder is old.
    Outdated,
}
