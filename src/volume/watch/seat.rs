//! What others know of a queue.

#[cfg(blockferry_loom)]
use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(blockferry_loom))]
use std::sync::atomic::{AtomicU64, Ordering};

/// The place of one queue. The queue's thread alone writes it.
pub(super) struct Seat {
    /// The last phase that the queue has seen, by its number. Requests start by it and by no other.
    seen: AtomicU64,
    /// The last phase that the queue had seen when it was last found with nothing to start and
    /// nothing under way.
    drained: AtomicU64,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Seat {
    /// Of a queue that has seen this phase, and nothing else.
    pub(super) fn new(generation: u64, wake: Box<dyn Fn() + Send + Sync>) -> Self {
        Self {
            seen: AtomicU64::new(generation),
            drained: AtomicU64::new(generation),
            wake,
        }
    }

    /// Has the queue look at the phase.
    pub(super) fn wake(&self) {
        (self.wake)();
    }

    // Release and acquire: what was done under an earlier phase is visible to whoever is told.

    pub(super) fn note_seen(&self, generation: u64) {
        self.seen.store(generation, Ordering::Release);
    }

    pub(super) fn note_drained(&self, generation: u64) {
        self.drained.store(generation, Ordering::Release);
    }

    pub(super) fn has_seen(&self, generation: u64) -> bool {
        self.seen.load(Ordering::Acquire) >= generation
    }

    pub(super) fn is_drained_since(&self, generation: u64) -> bool {
        self.drained.load(Ordering::Acquire) >= generation
    }
}
