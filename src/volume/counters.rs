//! What a queue did, counted by its own thread and read by any other.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::request::{Op, Outcome, Request};

/// The counters of one queue. One thread writes them, so counting is a load and a store.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct QueueCounters {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    flushes: AtomicU64,
    discards: AtomicU64,
    errors: AtomicU64,
}

/// A sum of counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Reads that were asked for.
    pub reads: u64,
    /// Bytes of these reads.
    pub read_bytes: u64,
    /// Writes that were asked for.
    pub writes: u64,
    /// Bytes of these writes.
    pub written_bytes: u64,
    /// Flushes that were asked for.
    pub flushes: u64,
    /// Discards and writes of zeros that were asked for.
    pub discards: u64,
    /// Requests that ended with an error.
    pub errors: u64,
}

impl QueueCounters {
    pub(super) fn count_request(&self, request: &Request) {
        match request.op {
            Op::Read => {
                add(&self.reads, 1);
                add(&self.read_bytes, request.len_bytes);
            }
            Op::Write => {
                add(&self.writes, 1);
                add(&self.written_bytes, request.len_bytes);
            }
            Op::Flush => add(&self.flushes, 1),
            Op::Discard | Op::WriteZeroes => add(&self.discards, 1),
        }
    }

    pub(super) fn count_outcome(&self, outcome: &Outcome) {
        if outcome.is_err() {
            add(&self.errors, 1);
        }
    }

    pub(super) fn add_to(&self, sum: &mut Counters) {
        sum.reads += self.reads.load(Ordering::Relaxed);
        sum.read_bytes += self.read_bytes.load(Ordering::Relaxed);
        sum.writes += self.writes.load(Ordering::Relaxed);
        sum.written_bytes += self.written_bytes.load(Ordering::Relaxed);
        sum.flushes += self.flushes.load(Ordering::Relaxed);
        sum.discards += self.discards.load(Ordering::Relaxed);
        sum.errors += self.errors.load(Ordering::Relaxed);
    }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Ordering::Relaxed) + count, Ordering::Relaxed);
}
