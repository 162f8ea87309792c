//! How much is present, dirty and on its way.

// Not the model checker's: nothing is decided by these.
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crossbeam::utils::CachePadded;
use serde::{Deserialize, Serialize};

use super::StateMap;
use super::span::{Piece, pieces};
use super::words::{DIRTY, MIXED, PRESENT, SENDING, WRITE_PAGES};
use crate::volume::geometry::BlockRange;

/// Blocks of a volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Blocks whose bytes are in the local store.
    pub present: u64,
    /// Blocks that must still reach the origin.
    pub dirty: u64,
    /// Blocks on their way to the origin; some of them may be dirty again.
    pub sending: u64,
}

/// What there is of one part of a volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heat {
    /// The blocks of this part.
    pub blocks: u64,
    /// How many of these are in the local store.
    pub present: u64,
    /// How many of these must still reach the origin, or are on their way there.
    pub dirty: u64,
}

/// The sums of what changed, each counted by who changed it.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) present: Counter,
    pub(super) dirty: Counter,
    pub(super) sending: Counter,
}

/// A count that may go below zero for a moment, when a bit is cleared and counted before the one
/// who set it has counted.
#[derive(Debug, Default)]
pub(super) struct Counter(CachePadded<AtomicU64>);

impl Counter {
    pub(super) fn add(&self, blocks: u64) {
        if blocks != 0 {
            self.0.fetch_add(blocks, Ordering::Relaxed);
        }
    }

    pub(super) fn sub(&self, blocks: u64) {
        if blocks != 0 {
            self.0.fetch_sub(blocks, Ordering::Relaxed);
        }
    }

    fn blocks(&self) -> u64 {
        (self.0.load(Ordering::Relaxed) as i64).max(0) as u64
    }
}

impl StateMap {
    /// How many blocks are present, dirty and on their way: exact when nothing is under way, and
    /// otherwise off by what is. To know that everything reached the origin, ask
    /// [`take_dirty`](Self::take_dirty).
    pub fn counts(&self) -> Counts {
        Counts {
            present: self.counts.present.blocks(),
            dirty: self.counts.dirty.blocks(),
            sending: self.counts.sending.blocks(),
        }
    }

    /// The volume in `buckets` parts of about the same length, and what there is of each.
    pub fn heat(&self, buckets: u64) -> Vec<Heat> {
        let bound =
            |bucket| (u128::from(self.blocks) * u128::from(bucket) / u128::from(buckets)) as u64;
        (0..buckets)
            .map(|bucket| BlockRange::new(bound(bucket), bound(bucket + 1)))
            .map(|part| {
                let mut heat = Heat {
                    blocks: part.len(),
                    ..Heat::default()
                };
                for piece in pieces(part) {
                    let (counts, unsent) = self.count(piece);
                    heat.present += counts.present;
                    heat.dirty += unsent;
                }
                heat
            })
            .collect()
    }

    /// Whether all of these blocks are present and nobody has written them here: whoever asks this after
    /// having read them has read what the origin has.
    pub fn came_from_origin(&self, blocks: BlockRange) -> bool {
        // With the turn regions keep their bits.
        let _turn = self.turn();
        fence(Ordering::SeqCst);
        pieces(blocks).all(|piece| {
            let (counts, unsent) = self.count(piece);
            counts.present == piece.len() && unsent == 0
        })
    }

    /// Counts the bits of a piece; the second is how many are dirty or on their way.
    pub(super) fn count(&self, piece: Piece) -> (Counts, u64) {
        let word = self.region(piece.region).load(Ordering::Acquire);
        let mut counts = Counts::default();
        let mut unsent = 0;
        if word & MIXED == 0 {
            let all_if = |bits| if word & bits != 0 { piece.len() } else { 0 };
            counts.present = all_if(PRESENT);
            counts.dirty = all_if(DIRTY);
            counts.sending = all_if(SENDING);
            return (counts, all_if(DIRTY | SENDING));
        }
        let pages = self.pages(word);
        let ones = |bits: u64| u64::from(bits.count_ones());
        for (at, mask) in piece.words() {
            counts.present += ones(pages.present[at].load(Ordering::Acquire) & mask);
            if word & WRITE_PAGES != 0 {
                let dirty = pages.dirty[at].load(Ordering::Acquire) & mask;
                let sending = pages.sending[at].load(Ordering::Acquire) & mask;
                counts.dirty += ones(dirty);
                counts.sending += ones(sending);
                unsent += ones(dirty | sending);
            }
        }
        (counts, unsent)
    }

    /// Counts everything anew.
    pub(super) fn recount(&self) {
        let mut sum = Counts::default();
        for piece in pieces(self.blocks()) {
            let (counts, _) = self.count(piece);
            sum.present += counts.present;
            sum.dirty += counts.dirty;
            sum.sending += counts.sending;
        }
        let set = |counter: &Counter, blocks| counter.0.store(blocks, Ordering::Relaxed);
        set(&self.counts.present, sum.present);
        set(&self.counts.dirty, sum.dirty);
        set(&self.counts.sending, sum.sending);
    }
}
