//! What a managed mount tells of itself.

use std::sync::atomic::Ordering::Relaxed;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::Shared;
use crate::volume::geometry::BLOCK_BYTES;
use crate::volume::managed::LatencySummary;

/// How far a managed mount is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ManagedStatus {
    /// How many bytes are in the local store.
    pub local_bytes: u64,
    /// How many of them are not durable at the origin yet.
    pub dirty_bytes: u64,
    /// How long the volume is, in bytes.
    pub size_bytes: u64,
    /// How many bytes came from the origin.
    pub fetched_bytes: u64,
    /// In how many requests.
    pub fetches: u64,
    /// How many went there.
    pub pushed_bytes: u64,
    /// The best rate lately from the origin, in bytes a second.
    pub pull_rate: u64,
    /// The best rate lately to it, in bytes a second.
    pub push_rate: u64,
    /// Fetches that are under way or wait for their turn.
    pub fetches_under_way: u64,
    /// Reads that had to wait for the origin.
    pub missed_reads: u64,
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
    /// Since when the origin cannot be reached, in seconds since 1970.
    pub away_since: Option<u64>,
    /// Why the origin will not come back.
    pub lost: Option<String>,
    /// The last failure, for people.
    pub last_error: Option<String>,
}

impl ManagedStatus {
    /// How long the pull will yet take at the present rate, in seconds.
    pub fn seconds_left(&self) -> Option<u64> {
        let left = self.size_bytes.saturating_sub(self.local_bytes);
        (left > 0 && self.pull_rate > 0).then(|| left.div_ceil(self.pull_rate))
    }
}

impl Shared {
    pub(super) fn status(&self) -> ManagedStatus {
        let counts = self.store.map.counts();
        let size_bytes = self.geometry.resource_bytes();
        let counters = &self.counters;
        let away_since = self.origin.away_since();
        ManagedStatus {
            // The last block may be short.
            local_bytes: (counts.present * BLOCK_BYTES).min(size_bytes),
            dirty_bytes: self.dirty_bytes().min(size_bytes),
            size_bytes,
            fetched_bytes: counters.fetched_bytes.load(Relaxed),
            fetches: counters.fetches.load(Relaxed),
            pushed_bytes: counters.pushed_bytes.load(Relaxed),
            pull_rate: self.downlink.rate() as u64,
            push_rate: self.uplink.rate() as u64,
            fetches_under_way: self.fetches.count() as u64,
            missed_reads: self.store.missed.load(Relaxed),
            hit_latency: self.store.hits.summary(),
            miss_latency: self.miss_times.summary(),
            timeouts: self.deadline.timeouts().load(Relaxed),
            origin_failures: counters.origin_failures.load(Relaxed),
            store_failures: counters.store_failures.load(Relaxed),
            away_since: away_since
                .and_then(|since| since.duration_since(UNIX_EPOCH).ok())
                .map(|since| since.as_secs()),
            lost: self.origin.lost_because(),
            last_error: super::lock(&self.last_error).clone(),
        }
    }
}
