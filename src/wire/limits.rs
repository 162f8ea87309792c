//! The bounds of the protocol: every length that a peer sends is held against one of these
//! before anything is allocated.

use crate::volume::geometry::{BLOCK_BYTES, CHUNK_BYTES_MAX};

/// The longest message on the control stream, in bytes, without its length prefix.
pub const CONTROL_MESSAGE_BYTES_MAX: usize = 64 << 10;

/// The longest read or write, in bytes.
pub const DATA_BYTES_MAX: u64 = CHUNK_BYTES_MAX;

/// How many data requests a session may have open at once.
pub const SESSION_STREAMS_MAX: u32 = 1024;

/// How many bytes of reads and writes the server holds in memory for one session.
pub const SESSION_IN_FLIGHT_BYTES_MAX: u32 = 64 << 20;

/// How many of these only demand gets.
pub const SESSION_DEMAND_STREAMS: u32 = SESSION_STREAMS_MAX / 2;

/// How many of these bytes only demand gets.
pub const SESSION_DEMAND_BYTES: u32 = 16 << 20;

/// How many bytes of writes a client has under way. What the server has no room for waits in the
/// connection's window, which all requests share: this has to stay well below it.
pub const SESSION_BODY_BYTES_MAX: u32 = 32 << 20;

/// How many of these only demand gets.
pub const SESSION_DEMAND_BODY_BYTES: u32 = 8 << 20;

/// How many bytes of a volume follow one message of a migration.
pub const MIGRATION_BYTES_MAX: u32 = 256 << 10;

/// How many runs one request reads at most.
pub const RUNS_MAX: u32 = 256;

/// How many leaves one request asks the digests of at most.
pub const DIGESTS_MAX: u64 = 256;

/// How many extents one reply to a map request holds.
pub const EXTENTS_MAX: u64 = 1024;

/// How much of a map request's range one reply covers at most, in bytes.
pub const MAP_BYTES_MAX: u64 = 4 << 30;

/// The longest name of a volume, in bytes.
pub const VOLUME_NAME_BYTES_MAX: usize = 64;

/// The longest name by which a client introduces itself, in bytes.
pub const CLIENT_NAME_BYTES_MAX: usize = 255;

/// The longest text in a refusal, in bytes.
pub const REFUSAL_BYTES_MAX: usize = 1024;

/// The grain at which runs of zeros are found, in bytes.
pub const ZERO_GRAIN_BYTES: usize = BLOCK_BYTES as usize;

/// The shortest segment in the middle of a body, in bytes. It bounds how many headers a peer can
/// make us read for one body.
pub const SEGMENT_BYTES_MIN: u64 = 512;
