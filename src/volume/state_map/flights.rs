//! Which blocks are being written right now: a bounded table, one range a slot.
//!
//! A write is in it from before it looks whether its region's intent is durable until after its
//! dirty bits were set for the last time. So a crash finds every block whose bytes may have changed
//! since the sender read them, and an intent is not withdrawn under a write.

use super::StateMap;
use super::words::{Ordering, fence};
use crate::volume::geometry::{BlockIndex, BlockRange};

/// The number of a place in the table: a queue's tags have their own (queue × depth + tag).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlightSlot(pub u32);

impl StateMap {
    /// Enters a range. What the caller loads afterwards it loads after the entry is visible: with
    /// the fence of whoever changes a word and then reads the table, at least one of the two sees
    /// what the other one wrote.
    pub(super) fn publish(&self, slot: FlightSlot, blocks: BlockRange) {
        let at = 2 * slot.0 as usize;
        let flights = self.words.flights();
        debug_assert_eq!(flights[at + 1].load(Ordering::Relaxed), 0, "a free slot");
        // An end of 0 is a free slot, so a reader sees the range once it sees its end.
        flights[at].store(blocks.first.0, Ordering::Release);
        flights[at + 1].store(blocks.end.0, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Takes the range out. Release: who sees the slot free sees the dirty bits of its write.
    pub(super) fn retire(&self, slot: FlightSlot) {
        self.words.flights()[2 * slot.0 as usize + 1].store(0, Ordering::Release);
    }

    /// The ranges that are in the table.
    ///
    /// A reader may get the end of one write with the start of the next one in the same slot. It
    /// then knows (Acquire of the start) all that the first one did. The next one's end came later
    /// than the look, so that one's own look, after its fence, finds what this reader changed
    /// before its fence.
    pub(super) fn under_way(&self) -> impl Iterator<Item = BlockRange> {
        self.words.flights().chunks_exact(2).filter_map(|slot| {
            let end = slot[1].load(Ordering::Acquire);
            let first = slot[0].load(Ordering::Acquire);
            (end != 0).then_some(BlockRange {
                first: BlockIndex(first),
                end: BlockIndex(end),
            })
        })
    }
}
