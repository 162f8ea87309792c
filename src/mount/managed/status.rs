//! What a managed mount tells of itself.

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Instant, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{PullOrder, Shared};
use crate::mount::announcer::Announcer;
use crate::volume::geometry::BLOCK_BYTES;
use crate::volume::managed::LatencySummary;

/// How far a managed mount is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ManagedStatus {
    /// How many bytes are in the local store.
    pub local_bytes: u64,
    /// How many of them are not durable at the origin yet; what was discarded here and is not discarded
    /// there counts as well.
    pub dirty_bytes: u64,
    /// How long the volume is, in bytes.
    pub size_bytes: u64,
    /// How many bytes came from the origin.
    pub fetched_bytes: u64,
    /// In how many requests.
    pub fetches: u64,
    /// How many went there.
    pub pushed_bytes: u64,
    /// How much was zeroed there without bytes: what was discarded here, or written as zeros.
    pub pushed_zeroes_bytes: u64,
    /// What came from the origin into the store in the last three seconds, in bytes a second.
    pub pull_rate: u64,
    /// What went there in the last three seconds, in bytes a second.
    pub push_rate: u64,
    /// The best rate lately from the origin, in bytes a second.
    pub pull_rate_best: u64,
    /// The best rate lately to it, in bytes a second.
    pub push_rate_best: u64,
    /// Whether all that is not local is being pulled.
    pub pulls: bool,
    /// How long that will take at the present rate, in seconds; `None` where nobody knows, or there
    /// is nothing left.
    pub seconds_left: Option<u64>,
    /// Fetches that are under way or wait for their turn.
    pub fetches_under_way: u64,
    /// Reads that had to wait for the origin.
    pub missed_reads: u64,
    /// Reads that had not to.
    pub hit_reads: u64,
    /// The share of these among all, from 0 to 1; `None` before the first read.
    pub hit_ratio: Option<f64>,
    /// How long reads took that had not to, from a sample of one in 64.
    pub hit_latency: LatencySummary,
    /// How long reads waited that had to.
    pub miss_latency: LatencySummary,
    /// Requests that failed because their time was over.
    pub timeouts: u64,
    /// Requests that the origin failed.
    pub origin_failures: u64,
    /// Failures of the local store.
    pub store_failures: u64,
    /// Since when nothing that takes room has fitted into it, in seconds since 1970.
    pub store_full_since: Option<u64>,
    /// Chunks that became local of which the hook was not told, as it was too far behind.
    pub chunks_untold: u64,
    /// Since when the origin cannot be reached, in seconds since 1970.
    pub away_since: Option<u64>,
    /// Why the origin will not come back.
    pub lost: Option<String>,
    /// The last failure, for people.
    pub last_error: Option<String>,
    /// The directory of the local store.
    pub store: PathBuf,
}

/// What was done so far.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) fetched_bytes: AtomicU64,
    pub(super) fetches: AtomicU64,
    pub(super) pushed_bytes: AtomicU64,
    pub(super) pushed_zeroes_bytes: AtomicU64,
    pub(super) origin_failures: AtomicU64,
    pub(super) store_failures: AtomicU64,
}

impl Shared {
    pub(super) fn fetched(&self, bytes: u64) {
        self.counters.fetches.fetch_add(1, Relaxed);
        self.counters.fetched_bytes.fetch_add(bytes, Relaxed);
    }

    /// Bytes are in the store that were not.
    pub(super) fn stored(&self, bytes: u64, data_bytes: u64) {
        self.pulling.moved(bytes, Instant::now());
        if data_bytes > 0 {
            self.store.room.taken();
        }
    }

    pub(super) fn dirty_bytes(&self) -> u64 {
        let counts = self.store.map.counts();
        (counts.dirty + counts.sending) * BLOCK_BYTES
    }

    pub(super) fn note_error(&self, error: String) {
        *super::lock(&self.last_error) = Some(error);
    }

    /// `reads`: how many the volume was asked for.
    pub(super) fn status(&self, reads: u64) -> ManagedStatus {
        let now = Instant::now();
        let counts = self.store.map.counts();
        let size_bytes = self.geometry.resource_bytes();
        let counters = &self.counters;
        let away_since = self.origin.away_since();
        // The last block may be short.
        let local_bytes = (counts.present * BLOCK_BYTES).min(size_bytes);
        let pulls = !matches!(self.options.pull, PullOrder::Nothing);
        let pull_rate = self.pulling.rate(now);
        let store_full_since = self.store.room.full_since();
        let missed_reads = self.store.missed.load(Relaxed);
        let hit_reads = reads.saturating_sub(missed_reads);
        ManagedStatus {
            local_bytes,
            dirty_bytes: self.dirty_bytes().min(size_bytes),
            size_bytes,
            fetched_bytes: counters.fetched_bytes.load(Relaxed),
            fetches: counters.fetches.load(Relaxed),
            pushed_bytes: counters.pushed_bytes.load(Relaxed),
            pushed_zeroes_bytes: counters.pushed_zeroes_bytes.load(Relaxed),
            pull_rate,
            push_rate: self.pushing.rate(now),
            pull_rate_best: self.downlink.rate() as u64,
            push_rate_best: self.uplink.rate() as u64,
            pulls,
            seconds_left: (pulls
                && local_bytes < size_bytes
                && pull_rate > 0
                && store_full_since.is_none())
            .then(|| (size_bytes - local_bytes).div_ceil(pull_rate)),
            fetches_under_way: self.fetches.count() as u64,
            missed_reads,
            hit_reads,
            hit_ratio: (reads > 0).then(|| hit_reads as f64 / reads as f64),
            hit_latency: self.store.hits.summary(),
            miss_latency: self.miss_times.summary(),
            timeouts: self.deadline.timeouts().load(Relaxed),
            origin_failures: counters.origin_failures.load(Relaxed),
            store_failures: counters.store_failures.load(Relaxed),
            store_full_since,
            chunks_untold: self.announcer.as_ref().map_or(0, Announcer::untold),
            away_since: away_since
                .and_then(|since| since.duration_since(UNIX_EPOCH).ok())
                .map(|since| since.as_secs()),
            lost: self.origin.lost_because(),
            last_error: super::lock(&self.last_error).clone(),
            // Known to whoever has the directory.
            store: PathBuf::new(),
        }
    }
}
