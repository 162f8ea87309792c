//! The messages of the protocol as they travel, and back.

use super::protocol::{
    AttemptId, BlockSet, Epoch, Instance, MigrationId, Proof, Reason, SessionId, ToLeecher,
    ToSeeder, VolumeId,
};
use crate::net::Payload;
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

fn set(payload: Payload) -> BlockSet {
    match payload {
        Payload::Blocks(blocks) => BlockSet::from(blocks),
        Payload::Nothing | Payload::Bytes(_) => BlockSet::new(),
    }
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
pub(super) fn from_leecher(message: wire::ToSeeder, payload: Payload) -> ToSeeder {
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
            blocks: set(payload),
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
pub(super) enum FromSeeder {
    /// A message of the protocol.
    Message(ToLeecher),
    /// Bytes of the blocks that an attempt is about.
    Bytes(AttemptId, Piece),
}

/// Bytes of the volume.
#[derive(Debug)]
pub(super) struct Piece {
    /// Where they lie, in bytes.
    pub(super) offset: u64,
    /// They.
    pub(super) bytes: Vec<u8>,
}

/// The message before a piece.
pub(super) fn of_piece(id: AttemptId, piece: &Piece) -> wire::ToLeecher {
    wire::ToLeecher::Bytes {
        attempt: attempt(id),
        offset: piece.offset,
        len: piece.bytes.len() as u32,
    }
}

/// What it means.
pub(super) fn from_seeder(message: wire::ToLeecher, payload: Payload) -> FromSeeder {
    FromSeeder::Message(match message {
        wire::ToLeecher::Bytes {
            attempt, offset, ..
        } => {
            let bytes = match payload {
                Payload::Bytes(bytes) => bytes,
                Payload::Nothing | Payload::Blocks(_) => Vec::new(),
            };
            return FromSeeder::Bytes(attempt_id(attempt), Piece { offset, bytes });
        }
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
            blocks: set(payload),
        },
        wire::ToLeecher::Dirty { attempt, proof, .. } => ToLeecher::Dirty {
            attempt: attempt_id(attempt),
            blocks: set(payload),
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
    })
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
