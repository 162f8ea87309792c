//! The headers of data requests and their replies: fixed, little-endian.
//!
//! ```text
//! request, 24 bytes                      reply, 16 bytes
//!  0  magic 0xB, version (4 bits each)    0  magic 0xB, version (4 bits each)
//!  1  operation                           1  status: 0 done, 1 failed, 2 malformed
//!  2  flags: 1 FUA, 2 no-unmap            2  zero (2)
//!  3  priority                            4  errno, or the number of the fault (4)
//!  4  how a read's reply may be           8  bytes of a read, extents of a map (8)
//!     compressed: 0 not, 1 lz4,
//!     2 zstd, 3 lz4 where it pays
//!  5  zero (3)
//!  8  offset (8)
//! 16  length (8)
//! ```

use super::WireError;
use super::codec::Compression;
use super::digest::LEAF_BYTES;
use super::limits::{DATA_BYTES_MAX, DIGESTS_MAX, EXTENTS_MAX};
use crate::volume::{Errno, Priority};

/// The version of the data headers; the low half of their first byte.
pub const DATA_VERSION: u8 = 1;

/// How long a request header is.
pub const REQUEST_BYTES: usize = 24;

/// How long a reply header is.
pub const REPLY_BYTES: usize = 16;

const MAGIC: u8 = 0xB0;
const FIRST_BYTE: u8 = MAGIC | DATA_VERSION;
const FLAG_FUA: u8 = 1;
const FLAG_NO_UNMAP: u8 = 2;

/// What a data request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Send the bytes of the range.
    Read,
    /// Store the body that follows.
    Write {
        /// Answer only when the bytes are durable.
        fua: bool,
    },
    /// Make every write that was answered durable.
    Flush,
    /// The bytes are no longer needed.
    Discard,
    /// The bytes read as zeros from now on.
    WriteZeroes {
        /// Answer only when the zeros are durable.
        fua: bool,
        /// Keep the space allocated.
        no_unmap: bool,
    },
    /// Tell data from holes, from the start of the range on.
    Map,
    /// From the reply on, the stream carries the messages of a migration, both ways.
    Migrate,
    /// Send the bytes of the runs that follow the header, one after the other. The range starts with the
    /// first of them, and is as long as all together.
    ReadRuns,
    /// Send the digests of the leaves that the range covers; it starts with one.
    Digests,
}

/// The head of a data request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHeader {
    /// What to do.
    pub operation: Operation,
    /// How urgent it is.
    pub priority: Priority,
    /// Where it starts, in bytes.
    pub offset: u64,
    /// How many bytes it is about.
    pub len: u64,
    /// How the bytes of a read may be compressed on their way here.
    pub reply: Compression,
}

/// The head of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyHeader {
    /// It was done. `count` is the number of bytes of a read, of extents of a map, else 0; the
    /// body follows.
    Done {
        /// How much the body holds.
        count: u64,
    },
    /// The backend failed.
    Failed(Errno),
    /// The request made no sense.
    Malformed(WireError),
}

impl Operation {
    fn code(self) -> u8 {
        match self {
            Self::Read => 1,
            Self::Write { .. } => 2,
            Self::Flush => 3,
            Self::Discard => 4,
            Self::WriteZeroes { .. } => 5,
            Self::Map => 6,
            Self::Migrate => 7,
            Self::ReadRuns => 8,
            Self::Digests => 9,
        }
    }

    fn flags(self) -> u8 {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        match self {
            Self::Write { fua } => flag(fua, FLAG_FUA),
            Self::WriteZeroes { fua, no_unmap } => {
                flag(fua, FLAG_FUA) | flag(no_unmap, FLAG_NO_UNMAP)
            }
            _ => 0,
        }
    }

    fn from_code(code: u8, flags: u8) -> Result<Self, WireError> {
        let fua = flags & FLAG_FUA != 0;
        let no_unmap = flags & FLAG_NO_UNMAP != 0;
        let operation = match code {
            1 => Self::Read,
            2 => Self::Write { fua },
            3 => Self::Flush,
            4 => Self::Discard,
            5 => Self::WriteZeroes { fua, no_unmap },
            6 => Self::Map,
            7 => Self::Migrate,
            8 => Self::ReadRuns,
            9 => Self::Digests,
            _ => return Err(WireError::Operation),
        };
        if operation.flags() == flags {
            Ok(operation)
        } else {
            Err(WireError::Flag)
        }
    }

    /// Whether the reply has bytes of the volume.
    pub fn reads(self) -> bool {
        matches!(self, Self::Read | Self::ReadRuns)
    }

    /// Whether it changes the volume.
    pub fn writes(self) -> bool {
        matches!(
            self,
            Self::Write { .. } | Self::Discard | Self::WriteZeroes { .. }
        )
    }

    fn check_range(self, offset: u64, len: u64) -> Result<(), WireError> {
        let longest = match self {
            Self::Read | Self::ReadRuns | Self::Write { .. } => DATA_BYTES_MAX,
            Self::Digests if !offset.is_multiple_of(LEAF_BYTES) => return Err(WireError::Range),
            Self::Digests => DIGESTS_MAX * LEAF_BYTES,
            Self::Flush | Self::Migrate => {
                return if (offset, len) == (0, 0) {
                    Ok(())
                } else {
                    Err(WireError::Range)
                };
            }
            Self::Discard | Self::WriteZeroes { .. } | Self::Map => u64::MAX,
        };
        if len == 0 || len > longest {
            return Err(WireError::Length);
        }
        match offset.checked_add(len) {
            Some(_) => Ok(()),
            None => Err(WireError::Range),
        }
    }
}

/// How a priority travels: 0 goes first.
pub fn priority_code(priority: Priority) -> u8 {
    match priority {
        Priority::Demand => 0,
        Priority::ReadAhead => 1,
        Priority::Pull => 2,
        Priority::Push => 3,
    }
}

fn priority_from_code(code: u8) -> Result<Priority, WireError> {
    match code {
        0 => Ok(Priority::Demand),
        1 => Ok(Priority::ReadAhead),
        2 => Ok(Priority::Pull),
        3 => Ok(Priority::Push),
        _ => Err(WireError::Priority),
    }
}

fn check_first_byte(byte: u8) -> Result<(), WireError> {
    match byte {
        FIRST_BYTE => Ok(()),
        other if other & 0xF0 == MAGIC => Err(WireError::Version),
        _ => Err(WireError::Magic),
    }
}

impl RequestHeader {
    /// The header as it travels.
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[0] = FIRST_BYTE;
        bytes[1] = self.operation.code();
        bytes[2] = self.operation.flags();
        bytes[3] = priority_code(self.priority);
        bytes[4] = self.reply.code();
        bytes[8..16].copy_from_slice(&self.offset.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    /// The header in `bytes`.
    ///
    /// # Errors
    /// The first thing that is wrong with it; a header that passes is within all limits.
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, WireError> {
        check_first_byte(bytes[0])?;
        let operation = Operation::from_code(bytes[1], bytes[2])?;
        let priority = priority_from_code(bytes[3])?;
        let reply = Compression::from_code(bytes[4])?;
        if reply != Compression::Off && !operation.reads() {
            return Err(WireError::Compression);
        }
        if bytes[5..8] != [0; 3] {
            return Err(WireError::Reserved);
        }
        let offset = u64_at(bytes, 8);
        let len = u64_at(bytes, 16);
        operation.check_range(offset, len)?;
        Ok(Self {
            operation,
            priority,
            offset,
            len,
            reply,
        })
    }
}

impl ReplyHeader {
    /// The header as it travels.
    pub fn encode(&self) -> [u8; REPLY_BYTES] {
        let (status, detail, count) = match *self {
            Self::Done { count } => (0, 0, count),
            Self::Failed(errno) => (1, errno.raw() as u32, 0),
            Self::Malformed(fault) => (2, fault.code(), 0),
        };
        let mut bytes = [0; REPLY_BYTES];
        bytes[0] = FIRST_BYTE;
        bytes[1] = status;
        bytes[4..8].copy_from_slice(&u32::to_le_bytes(detail));
        bytes[8..16].copy_from_slice(&u64::to_le_bytes(count));
        bytes
    }

    /// The header in `bytes`, as the reply to `request`.
    ///
    /// # Errors
    /// What is wrong with it; a count that passes is within what was asked for.
    pub fn decode(bytes: &[u8; REPLY_BYTES], request: &RequestHeader) -> Result<Self, WireError> {
        check_first_byte(bytes[0])?;
        if bytes[2..4] != [0; 2] {
            return Err(WireError::Reserved);
        }
        let detail = u32_at(bytes, 4);
        let count = u64_at(bytes, 8);
        match bytes[1] {
            0 if detail != 0 => Err(WireError::Reserved),
            0 => {
                let most = match request.operation {
                    Operation::Read | Operation::ReadRuns => request.len,
                    Operation::Map => EXTENTS_MAX,
                    Operation::Digests => request.len.div_ceil(LEAF_BYTES),
                    _ => 0,
                };
                if count <= most {
                    Ok(Self::Done { count })
                } else {
                    Err(WireError::Length)
                }
            }
            1 => Ok(Self::Failed(Errno::from_raw(
                i32::try_from(detail).unwrap_or(0),
            ))),
            2 => Ok(Self::Malformed(WireError::from_code(detail))),
            _ => Err(WireError::Status),
        }
    }
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

#[cfg(test)]
#[path = "data_tests.rs"]
mod tests;
