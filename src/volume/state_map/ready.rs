//! What a region needs before its bits are used: pages, and a durable intent for writes.

use std::io;

use super::StateMap;
use super::places::Room;
use super::span::{Piece, pieces};
use super::words::{
    AtomicU64, CLAIMED, DIRTIED, DIRTY, INTENT, MIXED, Ordering, PLACE, PRESENT, SENDING, STATE,
    WITHDRAWING, WRITE_PAGES, at_place, fence, has_intent, place_of,
};
use crate::volume::geometry::{BlockRange, RegionIndex};

impl StateMap {
    /// Takes memory for fills of a region, unless it is present as a whole.
    ///
    /// # Errors
    /// When there is none left in the run-time directory.
    pub fn prepare_fill(&self, region: RegionIndex) -> io::Result<()> {
        let word = || self.region(region).load(Ordering::Acquire);
        if word() & (PLACE | PRESENT) != 0 {
            return Ok(());
        }
        let mut places = self.turn();
        if word() & (PLACE | PRESENT) == 0 {
            let place = self.take_place(&mut places, Room::Fill)?;
            self.flag(region, at_place(place));
        }
        Ok(())
    }

    /// Takes memory for writes to a region, and makes it mixed if it is present as a whole. (A
    /// present region that a discard has claimed is left; try again when that has ended.)
    ///
    /// # Errors
    /// When there is no memory left in the run-time directory.
    pub fn prepare_write(&self, region: RegionIndex) -> io::Result<()> {
        if self.region(region).load(Ordering::Acquire) & WRITE_PAGES != 0 {
            return Ok(());
        }
        let mut places = self.turn();
        let word = self.region(region).load(Ordering::Acquire);
        if word & PRESENT != 0 {
            if word & CLAIMED == 0 {
                let place = self.take_place(&mut places, Room::Write)?;
                self.mix(region, word, place);
            }
            return Ok(());
        }
        let place = match place_of(word) {
            Some(place) => {
                if word & WRITE_PAGES == 0 {
                    self.widen_place(place)?;
                }
                place
            }
            None => self.take_place(&mut places, Room::Write)?,
        };
        self.flag(region, at_place(place) | WRITE_PAGES);
        Ok(())
    }

    /// Makes a present region mixed. Its turn is held, so that nobody else turns it, and only those
    /// who come too late for the bits of another region look at the place before it is mixed.
    fn mix(&self, region: RegionIndex, word: u64, place: u32) {
        let pages = self.words.pages(place);
        let store = |page: &[AtomicU64], at: usize, state: u64, mask: u64| {
            if word & state != 0 {
                // Release: as in `take_place`.
                page[at].store(mask, Ordering::Release);
            }
        };
        for (at, mask) in self.whole(region).words() {
            store(pages.present, at, PRESENT, mask);
            store(pages.dirty, at, DIRTY, mask);
            store(pages.sending, at, SENDING, mask);
        }
        let bits = at_place(place) | WRITE_PAGES;
        // Release: who sees that it is mixed sees the bits.
        let mixed = |word: u64| Some(word & !STATE | MIXED | DIRTIED | bits);
        let _always_done = self.exchange(region, mixed);
    }

    /// Takes memory for a discard of these blocks, as far as it needs any: regions that it covers
    /// as a whole stay without, unless they are mixed.
    ///
    /// # Errors
    /// When there is no memory left in the run-time directory.
    pub fn prepare_zero(&self, blocks: BlockRange) -> io::Result<()> {
        pieces(blocks)
            .filter(|piece| self.needs_bits(*piece))
            .try_for_each(|piece| self.prepare_write(piece.region))
    }

    fn needs_bits(&self, piece: Piece) -> bool {
        let word = self.region(piece.region).load(Ordering::Acquire);
        word & MIXED != 0 || !self.covers_region(piece)
    }

    /// The region's write intent is durable (or there is nothing durable here): it may be written
    /// to, and discarded.
    pub fn set_write_ready(&self, region: RegionIndex) {
        self.flag(region, INTENT);
    }

    /// Whether the region has a durable write intent that was not withdrawn. (A write may be told
    /// that it has not, for a moment, while somebody tries to withdraw it: it tries again.)
    pub fn write_ready(&self, region: RegionIndex) -> bool {
        self.region(region).load(Ordering::Acquire) & INTENT != 0
    }

    /// Whether a write of these blocks needs nothing to be prepared.
    pub fn can_write(&self, blocks: BlockRange) -> bool {
        pieces(blocks).all(|piece| {
            let word = self.region(piece.region).load(Ordering::Acquire);
            word & WRITE_PAGES != 0 && has_intent(word) && word & PRESENT == 0
        })
    }

    /// Ends all writes and discards for good, before the map is left: none begins any more. False if
    /// one is under way.
    pub fn end_writes(&self) -> bool {
        for region in self.regions() {
            // The turn, so that nobody takes the flag for his own and clears it.
            let _turn = self.turn();
            self.flag(region, WITHDRAWING);
        }
        // As in `withdraw_write_ready`.
        fence(Ordering::SeqCst);
        self.under_way().next().is_none()
    }

    /// Takes a region's write intent back, if no write is under way there and all its blocks are
    /// clean. True: writes are refused from now on, and once a checkpoint that has the region as
    /// clean is durable, the durable intent may be cleared as well.
    pub fn withdraw_write_ready(&self, region: RegionIndex) -> bool {
        // The turn, so that no block goes from dirty to sending, or back, between two looks.
        let _turn = self.turn();
        // The intent itself stays until it is known that nothing needs it: after a crash here,
        // what is under way in the region still counts.
        self.flag(region, WITHDRAWING);
        // With the fence in `publish`: a write that did not see the flag is seen in the table, or,
        // if it has ended, in the dirty bits.
        fence(Ordering::SeqCst);
        let withdrawn = self.is_idle(region) && self.is_clean(region);
        let over = WITHDRAWING | if withdrawn { INTENT } else { 0 };
        self.region(region).fetch_and(!over, Ordering::AcqRel);
        withdrawn
    }

    /// Whether no write and no discard of blocks of the region is under way.
    pub(super) fn is_idle(&self, region: RegionIndex) -> bool {
        let blocks = self.region_blocks(region);
        !self.under_way().any(|flight| flight.overlaps(blocks))
    }

    fn is_clean(&self, region: RegionIndex) -> bool {
        let (_, unsent) = self.count(self.whole(region));
        unsent == 0
    }
}
