//! The control stream: a preamble that no version changes, then length-prefixed messages.
//!
//! Both ends begin with `BFRY`, the lowest and the highest version that they speak (2 bytes
//! each, little-endian). The client sends its [`Hello`] right behind it; when the ranges do not
//! meet, either end can still say which versions there are.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::{Decode, Encode};

use super::limits::{
    CLIENT_NAME_BYTES_MAX, CONTROL_MESSAGE_BYTES_MAX, REFUSAL_BYTES_MAX, VOLUME_NAME_BYTES_MAX,
};
use super::{Secret, WireError};
use crate::ErrorKind;

/// The lowest version of the protocol that this build speaks. Version 1 knew neither the identity
/// of a volume's content nor managed mounts, and version 2 no [`ManagedStore::earlier`], without which a
/// server takes a copy of a store for the store.
pub const VERSION_MIN: u16 = 3;

/// The highest version of the protocol that this build speaks.
pub const VERSION_MAX: u16 = 3;

/// Bodies may be compressed by LZ4.
pub const FEATURE_LZ4: u64 = 1;

/// Bodies may be compressed by Zstandard.
pub const FEATURE_ZSTD: u64 = 2;

/// There is an operation by which a stream carries the messages of a migration.
pub const FEATURE_MIGRATION: u64 = 4;

/// One request may read many runs.
pub const FEATURE_RUNS: u64 = 8;

/// What is seeded can be compared by digests.
pub const FEATURE_DIGESTS: u64 = 16;

/// The features that this build has beyond the version's.
pub const FEATURES: u64 =
    FEATURE_LZ4 | FEATURE_ZSTD | FEATURE_MIGRATION | FEATURE_RUNS | FEATURE_DIGESTS;

/// How long a preamble is.
pub const PREAMBLE_BYTES: usize = 8;

/// How long the length prefix of a message is.
pub const FRAME_PREFIX_BYTES: usize = 4;

const MAGIC: [u8; 4] = *b"BFRY";

/// The first bytes on the control stream, each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preamble {
    /// The lowest version that its sender speaks.
    pub version_min: u16,
    /// The highest one.
    pub version_max: u16,
}

impl Preamble {
    /// What this build sends.
    pub const OURS: Self = Self {
        version_min: VERSION_MIN,
        version_max: VERSION_MAX,
    };

    /// The preamble as it travels.
    pub fn encode(&self) -> [u8; PREAMBLE_BYTES] {
        let mut bytes = [0; PREAMBLE_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&self.version_min.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.version_max.to_le_bytes());
        bytes
    }

    /// The preamble in `bytes`.
    ///
    /// # Errors
    /// `Magic` for anything else than a preamble.
    pub fn decode(bytes: &[u8; PREAMBLE_BYTES]) -> Result<Self, WireError> {
        let [m0, m1, m2, m3, min0, min1, max0, max1] = *bytes;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(WireError::Magic);
        }
        Ok(Self {
            version_min: u16::from_le_bytes([min0, min1]),
            version_max: u16::from_le_bytes([max0, max1]),
        })
    }

    /// The highest version that both ends speak.
    pub fn common_version(&self, other: &Self) -> Option<u16> {
        let highest = self.version_max.min(other.version_max);
        let lowest = self.version_min.max(other.version_min);
        (lowest <= highest).then_some(highest)
    }
}

/// What a client says.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum ClientMessage {
    /// Who it is and what it wants.
    Hello(Hello),
    /// It gives its lease back. The answer is [`ServerMessage::Released`].
    Release,
}

/// What a server says.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum ServerMessage {
    /// The client is in.
    Welcome(Welcome),
    /// It is not, and why.
    Refused(Refused),
    /// The lease is free, and nothing of the client is under way any more.
    Released,
}

/// The first message of a client.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// Bits of what the client can do beyond the version.
    pub features: u64,
    /// The volume that it wants.
    pub volume: String,
    /// The ticket's secret; none where certificates of a CA speak for both ends.
    pub secret: Option<Secret>,
    /// What the sessions of one mount have in common; drawn at random.
    pub client_id: [u8; 16],
    /// By what name to call the client: its host's.
    pub client_name: String,
    /// Grows with each session of this client.
    pub session: u64,
    /// Whether it wants to write.
    pub writable: bool,
    /// Whether to fence another writer.
    pub takeover: bool,
    /// The epoch of the lease that it was granted before; 0 for none.
    pub known_epoch: u64,
    /// The content that it wants to go on with, if it has seen one; another one is refused.
    pub known_identity: Option<[u8; 16]>,
    /// What a managed writer keeps locally; `None` for a direct one, and for a reader.
    pub managed: Option<ManagedStore>,
}

/// The local store of a managed writer. Its lease has no end in time, since the store may hold
/// what was not sent yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct ManagedStore {
    /// Drawn at random when the store was made.
    pub store: [u8; 16],
    /// The openings of the store of which one was the last that the server heard of: the last that it
    /// welcomed, and later ones whose hello was not answered. Zeros for none.
    pub earlier: [[u8; 16]; EARLIER_OPENINGS],
    /// Drawn at random for this opening of the store; durable there before the hello.
    pub opening: [u8; 16],
}

/// How many openings a store that cannot tell which one the server heard of last may name.
pub const EARLIER_OPENINGS: usize = 5;

/// The answer to a client that is in.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Welcome {
    /// The version that both ends speak from now on.
    pub version: u16,
    /// The features that both ends have.
    pub features: u64,
    /// The size of the resource in bytes.
    pub resource_bytes: u64,
    /// The smallest unit that the device reads or writes.
    pub logical_block_bytes: u32,
    /// The unit that it reads or writes best.
    pub physical_block_bytes: u32,
    /// Nobody can write this volume.
    pub read_only: bool,
    /// What else the resource offers.
    pub offers: Offers,
    /// Somebody else is writing at this time.
    pub has_writer: bool,
    /// What changes when unflushed writes may have been lost: the boot, the process.
    pub instance: [u8; 16],
    /// What stays the same as long as the volume has the same content, whatever is written to it
    /// by this protocol.
    pub identity: [u8; 16],
    /// Grows whenever the content may have been changed. None while a client that has written is
    /// there: what is read then may be changed without this one growing.
    pub generation: Option<u64>,
    /// The epoch of the client's lease; 0 for a reader.
    pub epoch: u64,
    /// How long the lease outlives a broken connection, in milliseconds.
    pub lease_ms: u64,
}

/// The part of a backend's capabilities that travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Offers {
    /// The size of request that suits it best, in bytes.
    pub preferred_bytes: u32,
    /// How many requests it can have in flight.
    pub max_concurrency: u32,
    /// A flush that returned means that the bytes survive a power cut.
    pub flush_is_durable: bool,
    /// It knows holes.
    pub sparse_map: bool,
    /// A discard does something.
    pub discard: bool,
}

/// Why a client is not in.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Refused {
    /// What to do about it, for a program.
    pub reason: Refusal,
    /// For the user.
    pub message: String,
}

/// What a program may want to tell apart about a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Refusal {
    /// The versions do not meet.
    Version,
    /// The secret is not the volume's.
    Secret,
    /// There is no such volume.
    NoVolume,
    /// The volume cannot be written.
    ReadOnly,
    /// Somebody else holds the lease.
    Held,
    /// Somebody else has held the lease since.
    Fenced,
    /// A later session of the same client was seen.
    Stale,
    /// The server has no room, or is on its way out: ask again.
    NotNow,
    /// The hello breaks the protocol.
    Malformed,
    /// The volume is there, but its content is not the one that the client knows.
    Replaced,
}

impl Refusal {
    /// The kind of the error that it becomes.
    pub fn kind(self) -> ErrorKind {
        match self {
            Self::Version | Self::Malformed => ErrorKind::Protocol,
            Self::Secret => ErrorKind::Unauthenticated,
            Self::NoVolume => ErrorKind::NotFound,
            Self::ReadOnly => ErrorKind::ReadOnly,
            Self::Held | Self::NotNow | Self::Stale => ErrorKind::Busy,
            Self::Fenced => ErrorKind::Fenced,
            Self::Replaced => ErrorKind::Replaced,
        }
    }
}

/// A message that can be put on the control stream.
pub trait Message: Encode + Decode<()> {
    /// Whether its texts are within their limits.
    fn is_within_limits(&self) -> bool;
}

impl Message for ClientMessage {
    fn is_within_limits(&self) -> bool {
        match self {
            Self::Hello(hello) => {
                hello.volume.len() <= VOLUME_NAME_BYTES_MAX
                    && hello.client_name.len() <= CLIENT_NAME_BYTES_MAX
            }
            Self::Release => true,
        }
    }
}

impl Message for ServerMessage {
    fn is_within_limits(&self) -> bool {
        match self {
            Self::Refused(refused) => refused.message.len() <= REFUSAL_BYTES_MAX,
            Self::Welcome(_) | Self::Released => true,
        }
    }
}

type Config = Configuration<LittleEndian, Fixint, Limit<CONTROL_MESSAGE_BYTES_MAX>>;

const CONFIG: Config = bincode::config::standard()
    .with_little_endian()
    .with_fixed_int_encoding()
    .with_limit::<CONTROL_MESSAGE_BYTES_MAX>();

/// The message with its length before it.
///
/// # Errors
/// `MessageLength` if it is above a limit.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, WireError> {
    if !message.is_within_limits() {
        return Err(WireError::MessageLength);
    }
    let body = bincode::encode_to_vec(message, CONFIG).map_err(|_| WireError::MessageLength)?;
    let mut frame = frame_prefix(body.len())?.to_vec();
    frame.extend_from_slice(&body);
    Ok(frame)
}

fn frame_prefix(len: usize) -> Result<[u8; FRAME_PREFIX_BYTES], WireError> {
    if len > CONTROL_MESSAGE_BYTES_MAX {
        return Err(WireError::MessageLength);
    }
    Ok((len as u32).to_le_bytes())
}

/// How long the message behind this prefix is.
///
/// # Errors
/// `MessageLength` if that is nothing or above the limit.
pub fn frame_bytes(prefix: [u8; FRAME_PREFIX_BYTES]) -> Result<usize, WireError> {
    let len = u32::from_le_bytes(prefix) as usize;
    if len == 0 || len > CONTROL_MESSAGE_BYTES_MAX {
        return Err(WireError::MessageLength);
    }
    Ok(len)
}

/// The message in `body`, all of it.
///
/// # Errors
/// `Message` for an unknown or malformed one, `MessageLength` for texts above their limits.
pub fn decode<M: Message>(body: &[u8]) -> Result<M, WireError> {
    let (message, used): (M, usize) =
        bincode::decode_from_slice(body, CONFIG).map_err(|_| WireError::Message)?;
    if used != body.len() {
        return Err(WireError::Message);
    }
    if !message.is_within_limits() {
        return Err(WireError::MessageLength);
    }
    Ok(message)
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
