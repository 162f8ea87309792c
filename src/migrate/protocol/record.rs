//! What each end keeps with its resource, and what it says after a restart.

use serde::{Deserialize, Serialize};

use super::planted::{Bug, planted};
use super::{AttemptId, Epoch, VolumeId};

/// The seeder's: the volume has moved away. This decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitRecord {
    /// Which volume.
    pub volume: VolumeId,
    /// The new owner's epoch.
    pub epoch: Epoch,
    /// By which attempt.
    pub attempt: AttemptId,
    /// The new owner's name.
    pub to: String,
    /// The new owner has everything, and needs the seeder no more.
    #[serde(default)]
    pub released: bool,
    /// Whether bytes were left here, which the new owner needs.
    #[serde(default)]
    pub post_copy: bool,
}

/// The leecher's: the volume is on its way here, or has arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeechRecord {
    /// Which volume.
    pub volume: VolumeId,
    /// The epoch that it is, or would be, owned in here.
    pub epoch: Epoch,
    /// How far it is.
    pub stage: Stage,
    /// The attempt that moves the volume; none in [`Stage::Pulling`].
    pub attempt: Option<AttemptId>,
    /// Whether that one leaves bytes at the seeder.
    pub post_copy: bool,
}

/// How far a leecher is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// The store has some bytes of the volume.
    Pulling,
    /// The store has all that it needs, durably, and a commit may have been sent.
    Prepared,
    /// The volume is here, but for bytes that are still at the seeder (post-copy).
    Owner,
    /// The volume is here, as a whole.
    Complete,
}

/// The two records of a resource, as far as it has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Records {
    /// It moved away.
    pub commit: Option<CommitRecord>,
    /// It came here.
    pub leech: Option<LeechRecord>,
}

/// What a resource is, by its records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// The volume is here.
    Owner(Epoch),
    /// The volume is here, but for bytes that are still at the seeder.
    Completing(LeechRecord),
    /// Whether it is here the seeder knows: ask.
    InDoubt(LeechRecord),
    /// It is elsewhere, and what is here is a part of it at most.
    Pulling(LeechRecord),
    /// It is elsewhere.
    Moved(CommitRecord),
}

impl Records {
    /// What the resource is. Of two records that of the higher epoch counts: the volume left after it
    /// came, or came back after it left.
    pub fn standing(&self) -> Standing {
        let left = |leech: &LeechRecord, commit: &CommitRecord| {
            commit.epoch >= leech.epoch || planted(Bug::IgnoreEpoch)
        };
        match (&self.commit, &self.leech) {
            (None, None) => Standing::Owner(Epoch(0)),
            (Some(commit), None) => Standing::Moved(commit.clone()),
            (Some(commit), Some(leech)) if left(leech, commit) => Standing::Moved(commit.clone()),
            (_, Some(leech)) => match leech.stage {
                Stage::Pulling => Standing::Pulling(leech.clone()),
                Stage::Prepared => Standing::InDoubt(leech.clone()),
                Stage::Owner => Standing::Completing(leech.clone()),
                Stage::Complete => Standing::Owner(leech.epoch),
            },
        }
    }
}
