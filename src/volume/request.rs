//! What a device asks of the engine, and what it gets back.

use std::fmt;
use std::io;

use super::geometry::ByteOffset;

/// The number of a request in its queue: from 0 to the queue's depth, free again once answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(pub u16);

impl Tag {
    /// The tag as an index into a table of the queue's depth.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// Fill the buffer from the volume.
    Read,
    /// Put the buffer into the volume.
    Write,
    /// Make every write that was answered durable.
    Flush,
    /// The bytes are no longer needed; they read as zeros afterwards where the resource can do it.
    Discard,
    /// The bytes read as zeros afterwards.
    WriteZeroes,
}

/// One request of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub op: Op,
    /// Answer only when the bytes are durable (force unit access).
    pub fua: bool,
    /// For [`Op::WriteZeroes`]: keep the space allocated.
    pub no_unmap: bool,
    /// Where it starts.
    pub offset: ByteOffset,
    /// How long it is; 0 for [`Op::Flush`].
    pub len_bytes: u64,
}

impl Request {
    /// A request without flags.
    pub const fn new(op: Op, offset: ByteOffset, len_bytes: u64) -> Self {
        Self {
            op,
            fua: false,
            no_unmap: false,
            offset,
            len_bytes,
        }
    }

    /// Whether it changes the volume.
    pub fn writes(&self) -> bool {
        matches!(self.op, Op::Write | Op::Discard | Op::WriteZeroes)
    }
}

/// An error code of the operating system, as a device hands it to its application.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

impl Errno {
    /// Input/output error.
    pub const EIO: Self = Self(libc::EIO);
    /// No space left on device.
    pub const ENOSPC: Self = Self(libc::ENOSPC);
    /// Operation not permitted: a write to something read-only.
    pub const EPERM: Self = Self(libc::EPERM);
    /// Invalid argument: a range past the end.
    pub const EINVAL: Self = Self(libc::EINVAL);
    /// Operation not supported.
    pub const EOPNOTSUPP: Self = Self(libc::EOPNOTSUPP);

    /// The code of `raw`, a positive errno; anything else becomes [`Errno::EIO`].
    pub fn from_raw(raw: i32) -> Self {
        if (1..4096).contains(&raw) {
            Self(raw)
        } else {
            Self::EIO
        }
    }

    /// The positive code.
    pub fn raw(self) -> i32 {
        self.0
    }
}

impl From<&io::Error> for Errno {
    fn from(error: &io::Error) -> Self {
        error.raw_os_error().map_or(Self::EIO, Self::from_raw)
    }
}

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Self {
        Self::from(&error)
    }
}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.0)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", nix::errno::Errno::from_raw(self.0))
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(nix::errno::Errno::from_raw(self.0).desc())
    }
}

/// How a request ended: with exactly the bytes that were asked for, or with an error.
pub type Outcome = Result<(), Errno>;
