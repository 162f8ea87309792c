//! Memory for chunks on their way: page-aligned, reused, bounded.

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What I/O past the page cache wants, in bytes.
const ALIGNMENT_BYTES: usize = 4096;

/// Memory is counted in pieces of this size.
const PIECE_BYTES: usize = 4096;

/// How many free buffers are kept.
const KEPT_MAX: usize = 64;

/// The share of the memory that is kept for those who wait for it: one in as many.
const DEMAND_SHARE: usize = 4;

/// The buffers of a mount. All of them together never hold more than the limit.
#[derive(Debug)]
pub(super) struct Buffers {
    demand: Arc<Semaphore>,
    bulk: Arc<Semaphore>,
    free: ArrayQueue<Box<[u8]>>,
    /// The size of those that are kept.
    usual_bytes: usize,
}

/// For whom memory is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// An application waits: this has a share of its own.
    Demand,
    /// The background.
    Bulk,
}

impl Buffers {
    /// Buffers of usually `usual_bytes`, of at most `limit_bytes` together.
    pub(super) fn new(usual_bytes: usize, limit_bytes: usize) -> Arc<Self> {
        let pieces = (limit_bytes / PIECE_BYTES).min(Semaphore::MAX_PERMITS);
        let demand = pieces / DEMAND_SHARE;
        Arc::new(Self {
            demand: Arc::new(Semaphore::new(demand)),
            bulk: Arc::new(Semaphore::new(pieces - demand)),
            free: ArrayQueue::new(KEPT_MAX),
            usual_bytes,
        })
    }

    /// A buffer of `len_bytes`, as soon as there is room. What it holds is whatever it held before.
    pub(super) async fn take(self: &Arc<Self>, len_bytes: usize, purpose: Purpose) -> Buffer {
        let budget = match purpose {
            Purpose::Demand => &self.demand,
            Purpose::Bulk => &self.bulk,
        };
        // As much as there will ever be is enough for one.
        let pieces = len_bytes.div_ceil(PIECE_BYTES) as u32;
        let permit = budget.clone().acquire_many_owned(pieces).await.ok();
        let usual = len_bytes <= self.usual_bytes;
        let capacity = if usual { self.usual_bytes } else { len_bytes };
        let memory = match self.free.pop() {
            Some(memory) if usual => memory,
            _ => vec![0; capacity + ALIGNMENT_BYTES].into_boxed_slice(),
        };
        Buffer {
            start: memory.as_ptr().align_offset(ALIGNMENT_BYTES),
            memory: Some(memory),
            len_bytes,
            usual,
            pool: Arc::clone(self),
            _permit: permit,
        }
    }
}

/// Page-aligned memory that goes back to its pool.
#[derive(Debug)]
pub(super) struct Buffer {
    memory: Option<Box<[u8]>>,
    start: usize,
    len_bytes: usize,
    usual: bool,
    pool: Arc<Buffers>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Buffer {
    /// The bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        let memory = self.memory.as_deref().unwrap_or_default();
        &memory[self.start..self.start + self.len_bytes]
    }

    /// The bytes, to be filled.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        let memory = self.memory.as_deref_mut().unwrap_or_default();
        &mut memory[self.start..self.start + self.len_bytes]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let (true, Some(memory)) = (self.usual, self.memory.take()) {
            let _ = self.pool.free.push(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn the_limit_holds_and_demand_has_a_share_of_its_own() {
        let buffers = Buffers::new(64 << 10, 256 << 10);
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(buffers.take(64 << 10, Purpose::Bulk).await);
        }
        let fourth = buffers.take(64 << 10, Purpose::Bulk);
        tokio::pin!(fourth);
        assert!(
            tokio::time::timeout(Duration::from_millis(20), &mut fourth)
                .await
                .is_err(),
            "bulk waits"
        );
        let demand = buffers.take(64 << 10, Purpose::Demand).await;
        assert_eq!(demand.bytes().as_ptr().align_offset(4096), 0);
        held.pop();
        let mut fourth = fourth.await;
        fourth.bytes_mut().fill(1);
        assert_eq!(fourth.bytes().len(), 64 << 10);
    }
}
