//! How a managed mount works.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::order::PullOrder;
use crate::mount::deadline::IO_TIMEOUT_DEFAULT;
use crate::volume::geometry::{CHUNK_BYTES_DEFAULT, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, ChunkIndex};
use crate::volume::{Durability, format_size};
use crate::{Error, ErrorKind, Result};

/// The most chunks that are pulled, and the most runs that are pushed, at once.
pub const WORKERS_MAX: u32 = 256;

/// The least memory, in chunks, for what is on its way.
const MEMORY_CHUNKS_MIN: u64 = 8;

/// How a managed mount works. The defaults suit a link of 1 Gbit/s with 25 ms.
///
/// ```
/// use blockferry::mount::managed::ManagedOptions;
/// let options = ManagedOptions { pull_workers: 8, ..ManagedOptions::default() };
/// assert_eq!(options.chunk_bytes, 256 << 10);
/// ```
#[derive(Debug, Clone)]
pub struct ManagedOptions {
    /// What is fetched at once, in bytes: a power of two from 4 KiB to 4 MiB.
    pub chunk_bytes: u64,
    /// In which order the background pulls.
    pub pull: PullOrder,
    /// How many chunks it pulls at once, at most.
    pub pull_workers: u32,
    /// Whether local writes go to the origin by themselves.
    pub push: bool,
    /// How many runs are pushed at once, at most.
    pub push_workers: u32,
    /// How long local writes wait, so that what is written again goes once.
    pub push_interval: Duration,
    /// What an answered flush promises.
    pub durability: Durability,
    /// The most bytes a second that the background pulls.
    pub pull_rate: Option<u64>,
    /// The most bytes a second that are pushed.
    pub push_rate: Option<u64>,
    /// How far to read ahead of sequential misses, in bytes; 0: not at all.
    pub read_ahead_bytes: u64,
    /// The most memory for bytes on their way, in bytes.
    pub memory_limit_bytes: u64,
    /// How long a request waits for the origin; `None`: for ever.
    pub io_timeout: Option<Duration>,
    /// Where to write in which order chunks were first touched, when the mount ends.
    pub record_heat: Option<PathBuf>,
    /// Whether the volume can be migrated while it is in use.
    pub seedable: bool,
    /// What to call when something happens.
    pub hooks: Hooks,
}

impl Default for ManagedOptions {
    fn default() -> Self {
        Self {
            chunk_bytes: CHUNK_BYTES_DEFAULT,
            pull: PullOrder::Sequential,
            pull_workers: 64,
            push: true,
            push_workers: 64,
            push_interval: Duration::from_secs(1),
            durability: Durability::Local,
            pull_rate: None,
            push_rate: None,
            read_ahead_bytes: 8 << 20,
            memory_limit_bytes: 256 << 20,
            io_timeout: Some(IO_TIMEOUT_DEFAULT),
            record_heat: None,
            seedable: false,
            hooks: Hooks::default(),
        }
    }
}

impl ManagedOptions {
    /// Whether they can be met.
    ///
    /// # Errors
    /// `InvalidInput`, with what is allowed.
    pub fn check(&self) -> Result<()> {
        let bad = |message: String| Err(Error::new(ErrorKind::InvalidInput, message));
        let chunk = self.chunk_bytes;
        if !chunk.is_power_of_two() || !(CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&chunk) {
            return bad(format!(
                "a chunk of {chunk} bytes: it has to be a power of two from {} to {}",
                format_size(CHUNK_BYTES_MIN),
                format_size(CHUNK_BYTES_MAX)
            ));
        }
        for (what, workers) in [("pull", self.pull_workers), ("push", self.push_workers)] {
            if !(1..=WORKERS_MAX).contains(&workers) {
                return bad(format!(
                    "{workers} {what} workers: there can be 1 to {WORKERS_MAX}"
                ));
            }
        }
        let least = MEMORY_CHUNKS_MIN * chunk.max(super::batch::PIECE_BYTES);
        if self.memory_limit_bytes < least {
            return bad(format!(
                "a memory limit of {} is below the {} that chunks of {} need",
                format_size(self.memory_limit_bytes),
                format_size(least),
                format_size(chunk)
            ));
        }
        if self.pull_rate == Some(0) {
            return bad("a pull rate of 0: to pull nothing, use pull order none".to_owned());
        }
        if self.push_rate == Some(0) {
            return bad("a push rate of 0: to push nothing, use push off".to_owned());
        }
        if !self.push && self.durability == Durability::Remote {
            return bad(
                "nothing is pushed, so a flush cannot make bytes durable at the origin: use durability local or none"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

impl ManagedOptions {
    /// Whether what is to be recorded can be: before anything is begun.
    ///
    /// # Errors
    /// Why not.
    pub fn check_record(&self) -> Result<()> {
        let path = self.record_heat.as_ref();
        path.map_or(Ok(()), |path| super::order::check_writable(path))
    }
}

/// A call when something happens. It may block; the mount goes on meanwhile where it can.
pub type Hook = Arc<dyn Fn() -> Result<()> + Send + Sync>;

/// What to call when something happens.
#[derive(Clone, Default)]
pub struct Hooks {
    /// Before local writes are made durable at the origin, as `sync` or the end of the mount does. An
    /// error keeps that from happening.
    pub before_sync: Option<Hook>,
    /// After it, with how many bytes went.
    pub after_sync: Option<Arc<dyn Fn(u64) + Send + Sync>>,
    /// Before the mount ends, its device gone.
    pub before_close: Option<Hook>,
    /// All blocks of this chunk are local now. It is called by a thread of its own, one chunk after the
    /// other, and holds up nothing: what it is behind with waits (65536 runs of neighbouring chunks), what
    /// is more it is never told of and counted
    /// ([`chunks_untold`](super::ManagedStatus::chunks_untold)). When the mount ends it gets 5 seconds to hear
    /// of the rest, and is left alone then.
    pub chunk_is_local: Option<Arc<dyn Fn(ChunkIndex) + Send + Sync>>,
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks")
            .field("before_sync", &self.before_sync.is_some())
            .field("after_sync", &self.after_sync.is_some())
            .field("before_close", &self.before_close.is_some())
            .field("chunk_is_local", &self.chunk_is_local.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_cannot_be_met_are_refused_by_name() {
        let usual = ManagedOptions::default;
        usual().check().expect("the usual");
        let bad: [(ManagedOptions, &str); 8] = [
            (
                ManagedOptions {
                    chunk_bytes: 5000,
                    ..usual()
                },
                "power of two",
            ),
            (
                ManagedOptions {
                    chunk_bytes: 8 << 20,
                    ..usual()
                },
                "power of two",
            ),
            (
                ManagedOptions {
                    pull_workers: 0,
                    ..usual()
                },
                "pull workers",
            ),
            (
                ManagedOptions {
                    push_workers: 1000,
                    ..usual()
                },
                "push workers",
            ),
            (
                ManagedOptions {
                    memory_limit_bytes: 1 << 20,
                    ..usual()
                },
                "memory limit",
            ),
            (
                ManagedOptions {
                    pull_rate: Some(0),
                    ..usual()
                },
                "pull rate",
            ),
            (
                ManagedOptions {
                    push_rate: Some(0),
                    ..usual()
                },
                "push rate",
            ),
            (
                ManagedOptions {
                    push: false,
                    durability: Durability::Remote,
                    ..usual()
                },
                "durability",
            ),
        ];
        for (options, word) in bad {
            let error = options.check().expect_err(word);
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
