//! Memory for chunks on their way: page-aligned, reused, bounded.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::volume::Priority;
use crate::volume::priority_semaphore::{PriorityPermit, PrioritySemaphore};

/// What I/O past the page cache wants, in bytes.
const ALIGNMENT_BYTES: usize = 4096;

/// Memory is counted in pieces of this size.
const PIECE_BYTES: usize = 4096;

/// Above this buffers come in multiples of it, below in powers of two: few sizes, so that free ones
/// are of use.
const STEP_BYTES: usize = 64 << 10;

/// The share of the memory that free buffers may keep: one in as many.
const KEPT_SHARE: usize = 8;

/// How many free buffers are kept.
const KEPT_MAX: usize = 512;

/// The share of the memory that is kept for those who wait for it: one in as many.
const DEMAND_SHARE: u32 = 4;

/// The buffers of a mount. All of them together, free ones included, never hold more than the limit.
#[derive(Debug)]
pub(super) struct Buffers {
    left: Arc<PrioritySemaphore>,
    bulk_pieces: u32,
    free: Mutex<Free>,
    kept_bytes_max: usize,
}

#[derive(Debug, Default)]
struct Free {
    memory: Vec<Box<[u8]>>,
    bytes: usize,
    /// How many of them, the oldest ones, nobody has needed since they were looked at last.
    unused: usize,
}

impl Buffers {
    /// Buffers of at most `limit_bytes` together.
    pub(super) fn new(limit_bytes: usize) -> Arc<Self> {
        let kept_bytes_max = limit_bytes / KEPT_SHARE;
        let pieces = (limit_bytes - kept_bytes_max) / PIECE_BYTES;
        let pieces = u32::try_from(pieces).unwrap_or(u32::MAX);
        let demand = pieces / DEMAND_SHARE;
        Arc::new(Self {
            left: PrioritySemaphore::new(pieces, demand),
            bulk_pieces: pieces - demand,
            free: Mutex::default(),
            kept_bytes_max,
        })
    }

    /// How many buffers of `len_bytes` the background can hold at once.
    pub(super) fn bulk_buffers(&self, len_bytes: usize) -> u32 {
        self.bulk_pieces / pieces(capacity_of(len_bytes))
    }

    /// A buffer of `len_bytes`, as soon as there is room. What it holds is whatever it held before.
    pub(super) async fn take(self: &Arc<Self>, len_bytes: usize, priority: Priority) -> Buffer {
        let capacity = capacity_of(len_bytes);
        let permit = self.left.acquire(pieces(capacity), priority).await;
        let memory = self
            .free()
            .take(capacity)
            .unwrap_or_else(|| vec![0; capacity].into_boxed_slice());
        Buffer {
            start: memory.as_ptr().align_offset(ALIGNMENT_BYTES),
            memory: Some(memory),
            len_bytes,
            pool: Arc::clone(self),
            _permit: permit,
        }
    }

    /// Gives back what was not needed since the last call.
    pub(super) fn give_back_unused(&self) {
        let unused = self.free().take_unused();
        drop(unused);
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Free {
    fn take(&mut self, capacity: usize) -> Option<Box<[u8]>> {
        let mut newest_first = self.memory.iter().enumerate().rev();
        let (at, _) = newest_first.find(|(_, memory)| memory.len() == capacity)?;
        let memory = self.memory.remove(at);
        self.bytes -= capacity;
        self.unused = self.unused.min(at);
        Some(memory)
    }

    fn take_unused(&mut self) -> Vec<Box<[u8]>> {
        let unused: Vec<_> = self.memory.drain(..self.unused).collect();
        self.bytes -= unused.iter().map(|memory| memory.len()).sum::<usize>();
        self.unused = self.memory.len();
        unused
    }

    fn keep(&mut self, memory: Box<[u8]>, bytes_max: usize) {
        if self.memory.len() < KEPT_MAX && self.bytes + memory.len() <= bytes_max {
            self.bytes += memory.len();
            self.memory.push(memory);
        }
    }
}

/// How much memory a buffer of this length takes, with room to align it.
fn capacity_of(len_bytes: usize) -> usize {
    let len_bytes = if len_bytes > STEP_BYTES {
        len_bytes.next_multiple_of(STEP_BYTES)
    } else {
        len_bytes.next_power_of_two().max(PIECE_BYTES)
    };
    len_bytes + ALIGNMENT_BYTES
}

fn pieces(capacity: usize) -> u32 {
    u32::try_from(capacity / PIECE_BYTES).unwrap_or(u32::MAX)
}

/// Page-aligned memory that goes back to its pool.
#[derive(Debug)]
pub(super) struct Buffer {
    memory: Option<Box<[u8]>>,
    start: usize,
    len_bytes: usize,
    pool: Arc<Buffers>,
    _permit: PriorityPermit,
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
        if let Some(memory) = self.memory.take() {
            self.pool.free().keep(memory, self.pool.kept_bytes_max);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const LEN: usize = 60 << 10;

    #[tokio::test]
    async fn the_limit_holds_and_demand_has_a_share_of_its_own() {
        // An eighth is kept, a quarter of the rest is for demand: 3 of these for bulk, 1 for demand.
        let buffers = Buffers::new(320 << 10);
        assert_eq!(buffers.bulk_buffers(LEN), 3);
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(buffers.take(LEN, Priority::Pull).await);
        }
        let fourth = buffers.take(LEN, Priority::Pull);
        tokio::pin!(fourth);
        assert!(
            tokio::time::timeout(Duration::from_millis(20), &mut fourth)
                .await
                .is_err(),
            "bulk waits"
        );
        let demand = buffers.take(LEN, Priority::Demand).await;
        assert_eq!(demand.bytes().as_ptr().align_offset(4096), 0);
        drop(demand);
        held.pop();
        let mut fourth = fourth.await;
        fourth.bytes_mut().fill(1);
        assert_eq!(fourth.bytes().len(), LEN);
    }

    #[tokio::test]
    async fn what_is_kept_for_later_is_within_the_limit_and_of_use() {
        let buffers = Buffers::new(2 << 20);
        let mut held = Vec::new();
        for _ in 0..8 {
            held.push(buffers.take(LEN, Priority::Pull).await);
        }
        let last = held[7].bytes().as_ptr();
        drop(held.split_off(7));
        assert_eq!(
            buffers.take(LEN, Priority::Pull).await.bytes().as_ptr(),
            last
        );
        drop(held);
        let free = buffers.free();
        assert_eq!(
            free.bytes,
            free.memory.iter().map(|it| it.len()).sum::<usize>()
        );
        assert!(free.bytes > 0 && free.bytes <= (2 << 20) / KEPT_SHARE);
    }

    #[tokio::test]
    async fn what_nobody_has_needed_for_a_while_is_given_back() {
        let buffers = Buffers::new(2 << 20);
        let held = [
            buffers.take(LEN, Priority::Pull).await,
            buffers.take(LEN, Priority::Pull).await,
        ];
        drop(held);
        buffers.give_back_unused();
        assert_eq!(buffers.free().memory.len(), 2, "they were needed just now");
        drop(buffers.take(LEN, Priority::Pull).await);
        buffers.give_back_unused();
        assert_eq!(buffers.free().memory.len(), 1, "one is enough");
        buffers.give_back_unused();
        let free = buffers.free();
        assert_eq!((free.memory.len(), free.bytes), (0, 0));
    }

    #[tokio::test]
    async fn a_buffer_larger_than_all_there_is_comes_alone() {
        let buffers = Buffers::new(64 << 10);
        let large = buffers.take(1 << 20, Priority::Demand).await;
        assert_eq!(large.bytes().len(), 1 << 20);
    }
}
