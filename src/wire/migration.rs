//! The messages of a migration: how they travel, and how long they may be.
//!
//! They go on a stream of their own, which a leecher opens by [`Operation::Migrate`]: length-prefixed,
//! as on the control stream. Some carry a set of blocks. That follows as its length (8 bytes,
//! little-endian) and its bytes, since it may be longer than a message. [`ToLeecher::Bytes`] is followed by
//! segments, as the reply to a read.
//!
//! [`Operation::Migrate`]: super::data::Operation::Migrate

use bincode::{Decode, Encode};
use roaring::RoaringTreemap;

use super::WireError;
use super::control::Message;
use super::limits::{CLIENT_NAME_BYTES_MAX, MIGRATION_BYTES_MAX, REFUSAL_BYTES_MAX};

/// How long the length of a set of blocks is.
pub const SET_PREFIX_BYTES: usize = 8;

/// Names a session: of which migration, with which process of the seeder, and its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Session {
    /// The migration.
    pub migration: [u8; 16],
    /// The seeder's process.
    pub instance: [u8; 16],
    /// Counted by that.
    pub number: u32,
}

/// Names an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Attempt {
    /// In which session.
    pub session: Session,
    /// Counted by the leecher.
    pub number: u32,
}

/// From a leecher to the seeder.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum ToSeeder {
    /// It wants the volume.
    Leech {
        /// Its migration.
        migration: [u8; 16],
        /// What to call it.
        name: String,
    },
    /// Which blocks to pull next?
    Round {
        /// In which session.
        session: Session,
        /// The round's number.
        number: u32,
        /// The last round that was pulled.
        pulled: u32,
        /// Everything is to be handed out again.
        anew: bool,
    },
    /// It wants to finalize.
    Prepare {
        /// The attempt.
        attempt: Attempt,
        /// The last round that was pulled.
        pulled: u32,
        /// The bytes are left for later.
        post_copy: bool,
    },
    /// The volume is to move.
    Commit {
        /// The attempt.
        attempt: Attempt,
        /// Of its store.
        proof: Option<[u8; 32]>,
    },
    /// It gives the attempt up.
    Abort {
        /// The attempt.
        attempt: Attempt,
    },
    /// What became of its commit?
    Ask {
        /// The attempt.
        attempt: Attempt,
    },
    /// What is the proof of the blocks that follow?
    Prove {
        /// The attempt that moved the volume.
        attempt: Attempt,
    },
    /// It needs the seeder no more.
    Release {
        /// The attempt that moved the volume.
        attempt: Attempt,
    },
    /// It leaves.
    Leave {
        /// Its migration.
        migration: [u8; 16],
    },
}

/// From the seeder to a leecher.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum ToLeecher {
    /// It is in.
    Welcome {
        /// The session.
        session: Session,
        /// The volume.
        volume: [u8; 16],
        /// The epoch that it would own it in.
        epoch: u64,
    },
    /// It is not, or not any more.
    Refused {
        /// Its migration.
        migration: [u8; 16],
        /// Why.
        reason: Reason,
    },
    /// The session is not known.
    Unknown {
        /// The session.
        session: Session,
    },
    /// The blocks that follow are to be pulled.
    Round {
        /// In which session.
        session: Session,
        /// The round's number.
        number: u32,
    },
    /// The seeder's requests are held; the blocks that follow are what the leecher may lack.
    Dirty {
        /// The attempt.
        attempt: Attempt,
        /// Of the seeder's store.
        proof: Option<[u8; 32]>,
        /// For how long they have been held, in microseconds.
        held_us: u64,
    },
    /// The volume is the leecher's.
    Committed {
        /// By which attempt.
        attempt: Attempt,
    },
    /// The attempt is over without a commit.
    Ended {
        /// The attempt.
        attempt: Attempt,
        /// Why.
        reason: Reason,
    },
    /// The proof that was asked for.
    Proof {
        /// The attempt that moved the volume.
        attempt: Attempt,
        /// None where the seeder cannot read its store.
        proof: Option<[u8; 32]>,
    },
    /// It is released.
    Released {
        /// The attempt that moved the volume.
        attempt: Attempt,
    },
    /// Bytes of the blocks that an attempt is about. They follow in segments.
    Bytes {
        /// The attempt.
        attempt: Attempt,
        /// Where they lie, in bytes.
        offset: u64,
        /// How many they are.
        len: u32,
    },
}

/// Why an attempt or a session ended.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Reason {
    /// Another leecher finalizes.
    Busy {
        /// Its name.
        by: String,
    },
    /// The volume has moved.
    Moved {
        /// To whom.
        to: String,
        /// In which epoch.
        epoch: u64,
    },
    /// There are as many leechers as may be.
    Full,
    /// The seeder gave it up.
    SeederAborted,
    /// The leecher gave it up.
    LeecherAborted,
    /// The hold took too long.
    HoldLimit,
    /// The connection was lost.
    Disconnected,
    /// The leecher asked.
    Asked,
    /// It was over before.
    Over,
    /// A hook at the seeder failed.
    HookFailed(String),
    /// A store failed.
    StoreFailed(String),
    /// The stores differ.
    ProofDiffers,
    /// The store has to do with another volume.
    AnotherVolume,
    /// What is at the seeder is old.
    Outdated,
}

impl Reason {
    /// The reason with its texts as short as they have to be.
    #[must_use]
    pub fn shortened(mut self) -> Self {
        match &mut self {
            Self::Busy { by: text } | Self::Moved { to: text, .. } => {
                shorten(text, CLIENT_NAME_BYTES_MAX);
            }
            Self::HookFailed(text) | Self::StoreFailed(text) => shorten(text, REFUSAL_BYTES_MAX),
            _ => {}
        }
        self
    }

    fn is_within_limits(&self) -> bool {
        match self {
            Self::Busy { by: text } | Self::Moved { to: text, .. } => {
                text.len() <= CLIENT_NAME_BYTES_MAX
            }
            Self::HookFailed(text) | Self::StoreFailed(text) => text.len() <= REFUSAL_BYTES_MAX,
            _ => true,
        }
    }
}

fn shorten(text: &mut String, bytes_max: usize) {
    let mut end = bytes_max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}

/// A message of a migration.
pub trait MigrationMessage: Message {
    /// Whether a set of blocks follows it.
    fn carries_blocks(&self) -> bool;

    /// How many bytes follow it, if any.
    fn carries_bytes(&self) -> Option<u32>;
}

impl Message for ToSeeder {
    fn is_within_limits(&self) -> bool {
        match self {
            Self::Leech { name, .. } => name.len() <= CLIENT_NAME_BYTES_MAX,
            _ => true,
        }
    }
}

impl MigrationMessage for ToSeeder {
    fn carries_blocks(&self) -> bool {
        matches!(self, Self::Prove { .. })
    }

    fn carries_bytes(&self) -> Option<u32> {
        None
    }
}

impl Message for ToLeecher {
    fn is_within_limits(&self) -> bool {
        match self {
            Self::Refused { reason, .. } | Self::Ended { reason, .. } => reason.is_within_limits(),
            Self::Bytes { offset, len, .. } => {
                (1..=MIGRATION_BYTES_MAX).contains(len)
                    && offset.checked_add(u64::from(*len)).is_some()
            }
            _ => true,
        }
    }
}

impl MigrationMessage for ToLeecher {
    fn carries_blocks(&self) -> bool {
        matches!(self, Self::Round { .. } | Self::Dirty { .. })
    }

    fn carries_bytes(&self) -> Option<u32> {
        match self {
            Self::Bytes { len, .. } => Some(*len),
            _ => None,
        }
    }
}

/// The longest set of blocks of a volume of `blocks` blocks, in bytes: each run of 65536 blocks takes
/// at most a bit a block and a head.
pub fn set_bytes_max(blocks: u64) -> u64 {
    const RUN_BLOCKS: u64 = 1 << 16;
    const RUN_BYTES_MAX: u64 = RUN_BLOCKS / 8 + 32;
    64 + blocks.div_ceil(RUN_BLOCKS).saturating_mul(RUN_BYTES_MAX)
}

/// A set of blocks as it travels, its length before it.
pub fn encode_set(blocks: &RoaringTreemap) -> Vec<u8> {
    // Of what was put together run by run a part may be kept as many short runs, which is longer than
    // any other way.
    let mut blocks = blocks.clone();
    blocks.optimize();
    let len = blocks.serialized_size();
    let mut bytes = Vec::with_capacity(SET_PREFIX_BYTES + len);
    bytes.extend_from_slice(&(len as u64).to_le_bytes());
    // A vector takes whatever is written to it.
    let _ = blocks.serialize_into(&mut bytes);
    bytes
}

/// How long the set behind this prefix is.
///
/// # Errors
/// `Length` if it cannot be one of blocks of a volume that has `volume_blocks`.
pub fn set_bytes(prefix: [u8; SET_PREFIX_BYTES], volume_blocks: u64) -> Result<usize, WireError> {
    let len = u64::from_le_bytes(prefix);
    if len > set_bytes_max(volume_blocks) {
        return Err(WireError::Length);
    }
    usize::try_from(len).map_err(|_| WireError::Length)
}

/// The set in `bytes`, all of it.
///
/// # Errors
/// `Message` for anything else, `Range` for blocks that a volume of `volume_blocks` does not have.
pub fn decode_set(bytes: &[u8], volume_blocks: u64) -> Result<RoaringTreemap, WireError> {
    let mut rest = bytes;
    let blocks = RoaringTreemap::deserialize_from(&mut rest).map_err(|_| WireError::Message)?;
    if !rest.is_empty() {
        return Err(WireError::Message);
    }
    match blocks.max() {
        Some(last) if last >= volume_blocks => Err(WireError::Range),
        _ => Ok(blocks),
    }
}

#[cfg(test)]
#[path = "migration_tests.rs"]
mod tests;
