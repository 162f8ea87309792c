//! The messages of the protocol as they travel, and back.

use roaring::RoaringTreemap;

use super::protocol::{
    AttemptId, BlockSet, Epoch, Instance, MigrationId, Proof, Reason, SessionId, ToLeecher,
    ToSeeder, VolumeId,
};
use crate::wire::migration as wire;

fn session(id: SessionId) -> wire::Session {
    wire::Session {
        migration: id.migration.0,
        instance: id.instance.0,
        number: id.number,
    }
}

fn session_id(session: wire::Session) -> SessionId {
    SessionId {
        migration: MigrationId(session.migration),
        instance: Instance(session.instance),
        number: session.number,
    }
}

fn attempt(id: AttemptId) -> wire::Attempt {
    wire::Attempt {
        session: session(id.session),
        number: id.number,
    }
}

fn attempt_id(attempt: wire::Attempt) -> AttemptId {
    AttemptId {
        session: session_id(attempt.session),
        number: attempt.number,
    }
}

fn set(blocks: Option<RoaringTreemap>) -> BlockSet {
    BlockSet::from(blocks.unwrap_or_default())
}

/// A message of a leecher on its way, and the blocks behind it.
pub(super) fn to_seeder(message: ToSeeder) -> (wire::ToSeeder, Option<BlockSet>) {
    let message = match message {
        ToSeeder::Leech { migration, name } => wire::ToSeeder::Leech {
            migration: migration.0,
            name,
        },
        ToSeeder::Round {
            session: id,
            number,
            pulled,
            anew,
        } => wire::ToSeeder::Round {
            session: session(id),
            number,
            pulled,
            anew,
        },
        ToSeeder::Prepare {
            attempt: id,
            pulled,
            post_copy,
        } => wire::ToSeeder::Prepare {
            attempt: attempt(id),
            pulled,
            post_copy,
        },
        ToSeeder::Commit { attempt: id, proof } => wire::ToSeeder::Commit {
            attempt: attempt(id),
            proof: proof.map(|proof| proof.0),
        },
        ToSeeder::Abort { attempt: id } => wire::ToSeeder::Abort {
            attempt: attempt(id),
        },
        ToSeeder::Ask { attempt: id } => wire::ToSeeder::Ask {
            attempt: attempt(id),
        },
        ToSeeder::Prove {
            attempt: id,
            blocks,
        } => {
            let message = wire::ToSeeder::Prove {
                attempt: attempt(id),
            };
            return (message, Some(blocks));
        }
        ToSeeder::Release { attempt: id } => wire::ToSeeder::Release {
            attempt: attempt(id),
        },
        ToSeeder::Leave { migration } => wire::ToSeeder::Leave {
            migration: migration.0,
        },
    };
    (message, None)
}

/// What arrived at the seeder.
pub(super) fn from_leecher(message: wire::ToSeeder, blocks: Option<RoaringTreemap>) -> ToSeeder {
    match message {
        wire::ToSeeder::Leech { migration, name } => ToSeeder::Leech {
            migration: MigrationId(migration),
            name,
        },
        wire::ToSeeder::Round {
            session,
            number,
            pulled,
            anew,
        } => ToSeeder::Round {
            session: session_id(session),
            number,
            pulled,
            anew,
        },
        wire::ToSeeder::Prepare {
            attempt,
            pulled,
            post_copy,
        } => ToSeeder::Prepare {
            attempt: attempt_id(attempt),
            pulled,
            post_copy,
        },
        wire::ToSeeder::Commit { attempt, proof } => ToSeeder::Commit {
            attempt: attempt_id(attempt),
            proof: proof.map(Proof),
        },
        wire::ToSeeder::Abort { attempt } => ToSeeder::Abort {
            attempt: attempt_id(attempt),
        },
        wire::ToSeeder::Ask { attempt } => ToSeeder::Ask {
            attempt: attempt_id(attempt),
        },
        wire::ToSeeder::Prove { attempt } => ToSeeder::Prove {
            attempt: attempt_id(attempt),
            blocks: set(blocks),
        },
        wire::ToSeeder::Release { attempt } => ToSeeder::Release {
            attempt: attempt_id(attempt),
        },
        wire::ToSeeder::Leave { migration } => ToSeeder::Leave {
            migration: MigrationId(migration),
        },
    }
}

/// A message of the seeder on its way, and the blocks behind it. `held_us`: for how long requests have
/// been held by now, in microseconds.
pub(super) fn to_leecher(message: ToLeecher, held_us: u64) -> (wire::ToLeecher, Option<BlockSet>) {
    let message = match message {
        ToLeecher::Welcome {
            session: id,
            volume,
            epoch,
        } => wire::ToLeecher::Welcome {
            session: session(id),
            volume: volume.0,
            epoch: epoch.0,
        },
        ToLeecher::Refused { migration, reason } => wire::ToLeecher::Refused {
            migration: migration.0,
            reason: reason_on_its_way(reason),
        },
        ToLeecher::Unknown { session: id } => wire::ToLeecher::Unknown {
            session: session(id),
        },
        ToLeecher::Round {
            session: id,
            number,
            blocks,
        } => {
            let session = session(id);
            let message = wire::ToLeecher::Round { session, number };
            return (message, Some(blocks));
        }
        ToLeecher::Dirty {
            attempt: id,
            blocks,
            proof,
        } => {
            let message = wire::ToLeecher::Dirty {
                attempt: attempt(id),
                proof: proof.map(|proof| proof.0),
                held_us,
            };
            return (message, Some(blocks));
        }
        ToLeecher::Committed { attempt: id } => wire::ToLeecher::Committed {
            attempt: attempt(id),
        },
        ToLeecher::Ended {
            attempt: id,
            reason,
        } => wire::ToLeecher::Ended {
            attempt: attempt(id),
            reason: reason_on_its_way(reason),
        },
        ToLeecher::Proof { attempt: id, proof } => wire::ToLeecher::Proof {
            attempt: attempt(id),
            proof: proof.map(|proof| proof.0),
        },
        ToLeecher::Released { attempt: id } => wire::ToLeecher::Released {
            attempt: attempt(id),
        },
    };
    (message, None)
}

/// What arrived at a leecher.
pub(super) fn from_seeder(message: wire::ToLeecher, blocks: Option<RoaringTreemap>) -> ToLeecher {
    match message {
        wire::ToLeecher::Welcome {
            session,
            volume,
            epoch,
        } => ToLeecher::Welcome {
            session: session_id(session),
            volume: VolumeId(volume),
            epoch: Epoch(epoch),
        },
        wire::ToLeecher::Refused { migration, reason } => ToLeecher::Refused {
            migration: MigrationId(migration),
            reason: reason_that_came(reason),
        },
        wire::ToLeecher::Unknown { session } => ToLeecher::Unknown {
            session: session_id(session),
        },
        wire::ToLeecher::Round { session, number } => ToLeecher::Round {
            session: session_id(session),
            number,
            blocks: set(blocks),
        },
        wire::ToLeecher::Dirty { attempt, proof, .. } => ToLeecher::Dirty {
            attempt: attempt_id(attempt),
            blocks: set(blocks),
            proof: proof.map(Proof),
        },
        wire::ToLeecher::Committed { attempt } => ToLeecher::Committed {
            attempt: attempt_id(attempt),
        },
        wire::ToLeecher::Ended { attempt, reason } => ToLeecher::Ended {
            attempt: attempt_id(attempt),
            reason: reason_that_came(reason),
        },
        wire::ToLeecher::Proof { attempt, proof } => ToLeecher::Proof {
            attempt: attempt_id(attempt),
            proof: proof.map(Proof),
        },
        wire::ToLeecher::Released { attempt } => ToLeecher::Released {
            attempt: attempt_id(attempt),
        },
    }
}

fn reason_on_its_way(reason: Reason) -> wire::Reason {
    let reason = match reason {
        Reason::Busy { by } => wire::Reason::Busy { by },
        Reason::Moved { to, epoch } => wire::Reason::Moved { to, epoch: epoch.0 },
        Reason::Full => wire::Reason::Full,
        Reason::SeederAborted => wire::Reason::SeederAborted,
        Reason::LeecherAborted => wire::Reason::LeecherAborted,
        Reason::HoldLimit => wire::Reason::HoldLimit,
        Reason::Disconnected => wire::Reason::Disconnected,
        Reason::Asked => wire::Reason::Asked,
        Reason::Over => wire::Reason::Over,
        Reason::HookFailed(text) => wire::Reason::HookFailed(text),
        Reason::StoreFailed(text) => wire::Reason::StoreFailed(text),
        Reason::ProofDiffers => wire::Reason::ProofDiffers,
        Reason::AnotherVolume => wire::Reason::AnotherVolume,
        Reason::Outdated => wire::Reason::Outdated,
    };
    reason.shortened()
}

fn reason_that_came(reason: wire::Reason) -> Reason {
    match reason {
        wire::Reason::Busy { by } => Reason::Busy { by },
        wire::Reason::Moved { to, epoch } => Reason::Moved {
            to,
            epoch: Epoch(epoch),
        },
        wire::Reason::Full => Reason::Full,
        wire::Reason::SeederAborted => Reason::SeederAborted,
        wire::Reason::LeecherAborted => Reason::LeecherAborted,
        wire::Reason::HoldLimit => Reason::HoldLimit,
        wire::Reason::Disconnected => Reason::Disconnected,
        wire::Reason::Asked => Reason::Asked,
        wire::Reason::Over => Reason::Over,
        wire::Reason::HookFailed(text) => Reason::HookFailed(text),
        wire::Reason::StoreFailed(text) => Reason::StoreFailed(text),
        wire::Reason::ProofDiffers => Reason::ProofDiffers,
        wire::Reason::AnotherVolume => Reason::AnotherVolume,
        wire::Reason::Outdated => Reason::Outdated,
    }
}
