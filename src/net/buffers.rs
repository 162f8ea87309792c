//! Buffers for the bytes of requests, kept for the next one. They go to the transport as they
//! are, without a copy, and come back when the peer has acknowledged them.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use crate::volume::PriorityPermit;
use crate::wire::limits::DATA_BYTES_MAX;

const SMALLEST_BYTES: usize = 4 << 10;
const CLASSES: usize = (DATA_BYTES_MAX as usize / SMALLEST_BYTES).ilog2() as usize + 1;

/// How many bytes of free buffers are kept for each size.
const KEPT_BYTES_MAX: usize = 32 << 20;

/// Free buffers by size: powers of two.
#[derive(Debug, Default)]
pub(super) struct BufferPool {
    free: [Mutex<Vec<Box<[u8]>>>; CLASSES],
}

/// A buffer out of the pool. What it holds at first is left over from another request.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Box<[u8]>,
    len: usize,
    pool: Arc<BufferPool>,
    /// The room that the buffer takes of its session's share.
    _share: PriorityPermit,
}

fn class_of(len: usize) -> usize {
    let size = len.next_power_of_two().max(SMALLEST_BYTES);
    (size / SMALLEST_BYTES).ilog2() as usize
}

impl BufferPool {
    /// A buffer of `len` bytes, at most [`DATA_BYTES_MAX`].
    pub(super) fn take(self: &Arc<Self>, len: usize, share: PriorityPermit) -> Buffer {
        let class = class_of(len);
        let kept = self.free[class]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        Buffer {
            bytes: kept.unwrap_or_else(|| vec![0; SMALLEST_BYTES << class].into_boxed_slice()),
            len,
            pool: Arc::clone(self),
            _share: share,
        }
    }
}

impl Buffer {
    /// The bytes, to be filled.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let class = class_of(self.bytes.len());
        let mut free = self.pool.free[class]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if (free.len() + 1) * (SMALLEST_BYTES << class) <= KEPT_BYTES_MAX {
            free.push(mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{Priority, PrioritySemaphore};

    #[tokio::test]
    async fn buffers_come_back_and_only_so_many_are_kept() {
        let pool = Arc::new(BufferPool::default());
        let room = PrioritySemaphore::new(1000, 0);
        let share = || room.acquire(1, Priority::Demand);
        let most = DATA_BYTES_MAX as usize;
        for len in [1, 4096, 4097, most] {
            let buffer = pool.take(len, share().await);
            assert_eq!(buffer.as_ref().len(), len);
        }
        let kept = |class: usize| pool.free[class].lock().expect("unpoisoned").len();
        assert_eq!((kept(0), kept(1), kept(CLASSES - 1)), (1, 1, 1));
        let mut many = Vec::new();
        for _ in 0..20 {
            many.push(pool.take(most, share().await));
        }
        assert_eq!(kept(CLASSES - 1), 0);
        drop(many);
        assert_eq!(kept(CLASSES - 1), KEPT_BYTES_MAX / most);
        assert_eq!(room.free(), 1000);
    }
}
