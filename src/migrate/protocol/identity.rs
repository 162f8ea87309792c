//! What names a migration and its parts.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A migration: drawn at random by the leecher's process, for one volume into one store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MigrationId(pub [u8; 16]);

/// A process that seeds: drawn at random when it starts, so that what was meant for the one before
/// it is known as such.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Instance(pub [u8; 16]);

/// A volume, wherever it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VolumeId(pub [u8; 16]);

/// Counts the owners of a volume: each move raises it by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl Epoch {
    /// That of the next owner.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// As long as a seeder's process knows what a leecher has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SessionId {
    /// Whose it is.
    pub migration: MigrationId,
    /// With whom.
    pub instance: Instance,
    /// Counted by the seeder.
    pub number: u32,
}

/// A try of the second phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AttemptId {
    /// In which session.
    pub session: SessionId,
    /// Counted by the leecher, from 1 on. When a higher one was seen, this one is over.
    pub number: u32,
}

impl AttemptId {
    /// Whose it is.
    pub fn migration(&self) -> MigrationId {
        self.session.migration
    }
}

/// The root of a tree of BLAKE3 digests of what an end reads back from its own store.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof(pub [u8; 32]);

macro_rules! show_its_beginning {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let [a, b, c, d, ..] = self.0;
                write!(f, "{a:02x}{b:02x}{c:02x}{d:02x}…")
            }
        }
    )*};
}

show_its_beginning!(MigrationId, Instance, VolumeId, Proof);
