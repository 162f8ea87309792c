//! What a checkpoint takes of the map, and how a map is made of a checkpoint.
//!
//! A flush has to make a checkpoint durable only if a block that was written is not present in one
//! yet. So whoever makes blocks present marks their region UNSAVED first; a snapshot turns that
//! into SAVING, which stays until the checkpoint is durable; and a write that ends in a region with
//! either mark is counted. (That a block is dirty needs no checkpoint: its region's write intent
//! was durable before.)

use std::io;

use super::StateMap;
use super::places::Room;
use super::words::{
    DIRTIED, DIRTY, INTENT, MIXED, Ordering, PAGE_WORDS, PRESENT, SAVING, SENDING, STATE, UNSAVED,
    WRITE_PAGES, at_place, fence,
};
use crate::volume::geometry::RegionIndex;

/// What a checkpoint has of one region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegionSnapshot {
    /// No block is present.
    Absent,
    /// All blocks are present, and the origin has them.
    PresentClean,
    /// All blocks are present, and must still reach the origin.
    PresentDirty,
    /// The bits say for each block.
    Mixed(Box<RegionBits>),
}

/// The bits of one region: block `n` is bit `n % 64` of word `n / 64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionBits {
    /// The blocks in the local store.
    pub present: [u64; PAGE_WORDS],
    /// Those of them that must still reach the origin, or are on their way there.
    pub dirty: [u64; PAGE_WORDS],
}

impl StateMap {
    /// Begins a checkpoint, of which there is one at a time. Gives back the count that
    /// [`saved`](Self::saved) wants once it is durable. A checkpoint that was begun before and did
    /// not come that far is void: its regions are unsaved again.
    pub fn begin_snapshot(&self) -> u64 {
        for region in self.regions() {
            let void = |word: u64| (word & SAVING != 0).then_some(word & !SAVING | UNSAVED);
            let _where_there_is_one = self.exchange(region, void);
        }
        // Acquire: the blocks that were counted, and the marks of their regions, are seen.
        self.unsaved.load(Ordering::Acquire)
    }

    /// The regions in which blocks became present that no snapshot has.
    pub fn unsaved_regions(&self) -> impl Iterator<Item = RegionIndex> + '_ {
        self.regions()
            .filter(|region| self.region(*region).load(Ordering::Acquire) & UNSAVED != 0)
    }

    /// Takes a region into the checkpoint that was begun. All blocks are in it that were present
    /// before the call, each as dirty unless the origin has it.
    pub fn snapshot(&self, region: RegionIndex) -> RegionSnapshot {
        let _turn = self.turn();
        let take = |word: u64| (word & UNSAVED != 0).then_some(word & !UNSAVED | SAVING);
        let (Ok(word) | Err(word)) = self.exchange(region, take);
        if word & MIXED == 0 {
            return match (word & PRESENT, word & (DIRTY | SENDING)) {
                (0, _) => RegionSnapshot::Absent,
                (_, 0) => RegionSnapshot::PresentClean,
                (_, _) => RegionSnapshot::PresentDirty,
            };
        }
        // With the fence of whoever makes blocks present, between his claim and his look at the
        // mark. Either his claim is seen here, or he sees that the mark was taken and sets it
        // again. If his claim was released already, what he made present is seen below.
        fence(Ordering::SeqCst);
        let pages = self.pages(word);
        let claims = pages
            .claimed
            .iter()
            .fold(0, |all, word| all | word.load(Ordering::Acquire));
        if claims != 0 {
            self.flag(region, UNSAVED);
        }
        let mut bits = Box::new(RegionBits {
            present: [0; PAGE_WORDS],
            dirty: [0; PAGE_WORDS],
        });
        for at in 0..PAGE_WORDS {
            bits.present[at] = pages.present[at].load(Ordering::Acquire);
            if word & WRITE_PAGES != 0 {
                let dirty = pages.dirty[at].load(Ordering::Acquire);
                let sending = pages.sending[at].load(Ordering::Acquire);
                bits.dirty[at] = (dirty | sending) & bits.present[at];
            }
        }
        self.condense(region, bits)
    }

    /// A region of which all blocks are alike needs no bits.
    fn condense(&self, region: RegionIndex, bits: Box<RegionBits>) -> RegionSnapshot {
        let full = |page: &[u64; PAGE_WORDS]| {
            let mut words = self.whole(region).words();
            words.all(|(at, mask)| page[at] == mask)
        };
        let empty = |page: &[u64; PAGE_WORDS]| page.iter().all(|word| *word == 0);
        if empty(&bits.present) {
            RegionSnapshot::Absent
        } else if full(&bits.present) && empty(&bits.dirty) {
            RegionSnapshot::PresentClean
        } else if full(&bits.dirty) {
            RegionSnapshot::PresentDirty
        } else {
            RegionSnapshot::Mixed(bits)
        }
    }

    /// The checkpoint whose [`begin_snapshot`](Self::begin_snapshot) gave `token` is durable.
    pub fn saved(&self, token: u64) {
        for region in self.regions() {
            if self.region(region).load(Ordering::Acquire) & SAVING != 0 {
                self.region(region).fetch_and(!SAVING, Ordering::AcqRel);
            }
        }
        self.saved.store(token, Ordering::Release);
    }

    /// Puts a region of a checkpoint into a map in which it is absent. With `intent` there was a
    /// durable write intent: any present block may have been written since, so all are dirty.
    ///
    /// # Errors
    /// When there is no memory left in the run-time directory.
    pub fn restore(
        &mut self,
        region: RegionIndex,
        snapshot: &RegionSnapshot,
        intent: bool,
    ) -> io::Result<()> {
        let state = match snapshot {
            RegionSnapshot::Absent => 0,
            RegionSnapshot::PresentClean if !intent => PRESENT,
            RegionSnapshot::PresentClean | RegionSnapshot::PresentDirty => PRESENT | DIRTY,
            RegionSnapshot::Mixed(bits) => {
                let any_dirty = self.restore_bits(region, bits, intent)?;
                MIXED | if any_dirty { DIRTIED } else { 0 }
            }
        };
        let intent = if intent { INTENT } else { 0 };
        let restored = |word: u64| Some(word & !STATE | state | intent);
        let _always_done = self.exchange(region, restored);
        let (counts, _) = self.count(self.whole(region));
        self.counts.present.add(counts.present);
        self.counts.dirty.add(counts.dirty);
        Ok(())
    }

    /// True if some of them are dirty.
    fn restore_bits(
        &self,
        region: RegionIndex,
        bits: &RegionBits,
        intent: bool,
    ) -> io::Result<bool> {
        let dirty_of =
            |at: usize| if intent { u64::MAX } else { bits.dirty[at] } & bits.present[at];
        let any_dirty = (0..PAGE_WORDS).any(|at| dirty_of(at) != 0);
        let (room, flag) = match any_dirty {
            true => (Room::Write, WRITE_PAGES),
            false => (Room::Fill, 0),
        };
        let place = self.take_place(&mut self.turn(), room)?;
        self.flag(region, at_place(place) | flag);
        let pages = self.bits(region);
        for (at, mask) in self.whole(region).words() {
            pages.present[at].store(bits.present[at] & mask, Ordering::Relaxed);
            if any_dirty {
                pages.dirty[at].store(dirty_of(at) & mask, Ordering::Relaxed);
            }
        }
        Ok(any_dirty)
    }
}
