//! How much zeros go to the origin in one request: what it does in a fraction of the time that a
//! request has. Where it makes holes that is a lot; where it has to write them it is not.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::volume::geometry::{BLOCK_BYTES, BlockRange};

/// The least, in blocks: as much as goes in one request of bytes.
const BLOCKS_MIN: u64 = super::batch::PIECE_BYTES / BLOCK_BYTES;

/// At first, in blocks. All workers may have one under way before the first is answered.
const BLOCKS_FIRST: u64 = (4 << 20) / BLOCK_BYTES;

/// The most, in blocks.
pub(super) const BLOCKS_MAX: u64 = (1 << 30) / BLOCK_BYTES;

/// A request that takes longer was too large.
const SLOW_MAX: Duration = Duration::from_secs(1);

/// What part of the time of a request may be taken, where that is less.
const TIMEOUT_SHARE: u32 = 8;

/// One that took less than this part of it may be twice as large the next time.
const FAST_SHARE: u32 = 4;

/// The largest request for zeros that the origin is sent.
#[derive(Debug)]
pub(super) struct Zeros {
    blocks: AtomicU64,
    slow: Duration,
}

impl Zeros {
    pub(super) fn new(io_timeout: Option<Duration>) -> Self {
        let share = io_timeout.map_or(SLOW_MAX, |timeout| timeout / TIMEOUT_SHARE);
        Self {
            blocks: AtomicU64::new(BLOCKS_FIRST),
            slow: share.min(SLOW_MAX),
        }
    }

    /// Takes from the front of a run what may go in one request now.
    pub(super) fn take(&self, run: &mut BlockRange) -> BlockRange {
        run.take(self.blocks.load(Ordering::Relaxed))
    }

    /// A request for so many blocks was answered after this time.
    pub(super) fn took(&self, blocks: u64, time: Duration) {
        if time > self.slow {
            // Of itself: of many that were under way together each would halve it once more.
            let fewer = (blocks / 2).max(BLOCKS_MIN);
            self.blocks.fetch_min(fewer, Ordering::Relaxed);
        } else if time <= self.slow / FAST_SHARE {
            let more = (blocks * 2).min(BLOCKS_MAX);
            // Those that are as large as it may be now, and not what was left of a run.
            let grows = |now| (blocks == now).then_some(more);
            let _unless_smaller =
                self.blocks
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, grows);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Duration = Duration::from_millis(50);
    const SLOW: Duration = Duration::from_millis(1001);

    fn largest(zeros: &Zeros) -> u64 {
        zeros
            .take(&mut BlockRange::new(0, u64::MAX / BLOCK_BYTES))
            .len()
    }

    #[test]
    fn an_origin_that_makes_holes_gets_a_gigabyte_at_once_after_a_few_requests() {
        let zeros = Zeros::new(None);
        for _ in 0..8 {
            zeros.took(largest(&zeros), FAST);
        }
        assert_eq!(largest(&zeros), BLOCKS_MAX);
        zeros.took(largest(&zeros), FAST);
        assert_eq!(largest(&zeros), BLOCKS_MAX);
        // What was left of a run says nothing of larger ones.
        let zeros = Zeros::new(None);
        zeros.took(BLOCKS_FIRST - 1, FAST);
        assert_eq!(largest(&zeros), BLOCKS_FIRST);
    }

    #[test]
    fn an_origin_that_writes_zeros_gets_what_it_does_in_time() {
        // 100 MB a second.
        let time = |blocks: u64| Duration::from_micros(blocks * BLOCK_BYTES / 100);
        for (timeout_s, most) in [(None, 1), (Some(30), 1), (Some(2), 1)] {
            let timeout = timeout_s.map(Duration::from_secs);
            let zeros = Zeros::new(timeout);
            let slow = timeout.map_or(SLOW_MAX, |it| (it / TIMEOUT_SHARE).min(SLOW_MAX));
            let mut slower = 0;
            for _ in 0..1000 {
                let blocks = largest(&zeros);
                slower += u32::from(time(blocks) > slow);
                zeros.took(blocks, time(blocks));
            }
            assert!(slower <= most, "{slower} took too long");
            assert!(largest(&zeros) > BLOCKS_FIRST);
        }
        // However slow, and however many at once.
        let zeros = Zeros::new(None);
        for _ in 0..64 {
            zeros.took(BLOCKS_FIRST, SLOW);
        }
        assert_eq!(largest(&zeros), BLOCKS_FIRST / 2);
        for _ in 0..64 {
            zeros.took(largest(&zeros), SLOW);
        }
        assert_eq!(largest(&zeros), BLOCKS_MIN);
    }
}
