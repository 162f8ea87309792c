//! The calls of the queue threads.

use super::StateMap;
use super::flights::FlightSlot;
use super::span::{Piece, pieces};
use super::words::{
    CLAIMED, DIRTIED, MIXED, Ordering, PRESENT, SAVING, STATE, UNSAVED, WRITE_PAGES, clear, fence,
    has_intent, set,
};
use crate::volume::geometry::{BlockRange, RegionIndex};

/// How a write may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum WriteStart {
    /// All blocks are here: write, then `end_write`.
    Overwrite,
    /// The blocks are claimed for this write: write all of them whole, then `end_write`.
    Claimed,
    /// Another one has claimed some of them: nothing was begun, try again when a claim is
    /// released. Whoever takes such a request over has to wake those who wait for blocks of its
    /// range, as it may have held claims on these for a moment.
    Busy,
    /// The region has to be prepared for writes first: nothing was begun.
    NotReady(RegionIndex),
}

impl StateMap {
    /// Whether all blocks of the range can be read from the local store.
    #[inline]
    pub fn is_present(&self, blocks: BlockRange) -> bool {
        pieces(blocks).all(|piece| self.is_piece_present(piece))
    }

    #[inline]
    fn is_piece_present(&self, piece: Piece) -> bool {
        // Acquire, here and below: who sees that a block is present may read its bytes (L5). If the
        // region gives its bits up after this look at its word, see `collapse`.
        let word = self.region(piece.region).load(Ordering::Acquire);
        if word & MIXED == 0 {
            return word & PRESENT != 0;
        }
        let present = self.pages(word).present;
        piece
            .words()
            .all(|(word, mask)| present[word].load(Ordering::Acquire) & mask == mask)
    }

    /// Begins a write of these blocks. A block of which only a part is to be written has to be
    /// present already. Before `Overwrite` or `Claimed` is given back, what is present of the range
    /// is dirty.
    pub fn begin_write(&self, slot: FlightSlot, blocks: BlockRange) -> WriteStart {
        self.publish(slot, blocks);
        let start = self.start_write(blocks);
        if !matches!(start, WriteStart::Overwrite | WriteStart::Claimed) {
            self.retire(slot);
        }
        start
    }

    fn start_write(&self, blocks: BlockRange) -> WriteStart {
        for piece in pieces(blocks) {
            if let Err(refused) = self.open_for_write(piece.region) {
                return refused;
            }
        }
        let start = if self.is_present(blocks) {
            WriteStart::Overwrite
        } else if self.claim_bits(blocks) {
            WriteStart::Claimed
        } else {
            return WriteStart::Busy;
        };
        for piece in pieces(blocks) {
            self.dirty_present(piece);
        }
        start
    }

    /// Makes sure that the bits of a region can be used, and stay so.
    fn open_for_write(&self, region: RegionIndex) -> Result<(), WriteStart> {
        let word = self.region(region).load(Ordering::Acquire);
        if word & CLAIMED != 0 {
            return Err(WriteStart::Busy);
        }
        if word & WRITE_PAGES == 0 || !has_intent(word) || word & PRESENT != 0 {
            return Err(WriteStart::NotReady(region));
        }
        if word & STATE == MIXED || self.open_absent(region) {
            return Ok(());
        }
        // It was absent a moment ago: a discard has it.
        Err(WriteStart::Busy)
    }

    /// Claims all blocks of a range of mixed regions, or none.
    ///
    /// Acquire: who takes a claim sees what its last holder made present before it released it
    /// (L6).
    pub(super) fn claim_bits(&self, blocks: BlockRange) -> bool {
        for piece in pieces(blocks) {
            let claimed = self.bits(piece.region).claimed;
            for (word, mask) in piece.words() {
                let before = claimed[word].fetch_or(mask, Ordering::AcqRel);
                if before & mask != 0 {
                    clear(&claimed[word], mask & !before);
                    let word_start = piece.region.first_block().0 + word as u64 * 64;
                    let done = word_start + u64::from(mask.trailing_zeros());
                    self.release_bits(BlockRange::new(blocks.first.0, done));
                    return false;
                }
            }
        }
        true
    }

    /// Releases claims. Release: see [`claim_bits`](Self::claim_bits).
    pub(super) fn release_bits(&self, blocks: BlockRange) {
        for piece in pieces(blocks) {
            let claimed = self.bits(piece.region).claimed;
            for (word, mask) in piece.words() {
                clear(&claimed[word], mask);
            }
        }
    }

    /// Makes what is present of a mixed region's piece dirty, before its bytes change: after a
    /// crash it is then found dirty, or, if the sender takes it meanwhile, in the table.
    pub(super) fn dirty_present(&self, piece: Piece) {
        let pages = self.bits(piece.region);
        for (word, mask) in piece.words() {
            let present = mask & pages.present[word].load(Ordering::Acquire);
            self.counts.dirty.add(set(&pages.dirty[word], present));
        }
    }

    /// Ends a write that was begun; `ok` says whether its bytes are in the store. True if claims
    /// were released: those who wait for blocks of the range have to be told.
    pub fn end_write(
        &self,
        slot: FlightSlot,
        blocks: BlockRange,
        start: WriteStart,
        ok: bool,
    ) -> bool {
        let claimed = start == WriteStart::Claimed;
        // With the fence of the sender between its clearing of dirty and its reading: either it
        // reads the bytes of this write, or its clearing is seen here and dirty is set again (L8).
        fence(Ordering::SeqCst);
        let mut unsaved = false;
        for piece in pieces(blocks) {
            unsaved |= self.land(piece, claimed && ok);
        }
        if unsaved {
            self.count_unsaved();
        }
        if claimed {
            self.release_bits(blocks);
        }
        self.retire(slot);
        claimed
    }

    /// Makes a mixed region's piece dirty after its bytes changed, and present if `appear`. What is
    /// absent and stays so stays clean. The caller holds the claims if blocks are to appear, and
    /// had a sequentially consistent fence since it took them and since the bytes changed.
    ///
    /// True if the bytes are in blocks that no durable checkpoint may have as present.
    pub(super) fn land(&self, piece: Piece, appear: bool) -> bool {
        if appear {
            // Before present: who sees that one sees this flag, or that a snapshot took it, and
            // with it the block. See `snapshot` for the fence.
            self.flag(piece.region, UNSAVED);
        }
        let pages = self.bits(piece.region);
        for (word, mask) in piece.words() {
            let here = mask & pages.present[word].load(Ordering::Acquire);
            let changed = if appear { mask } else { here };
            // Before present: a block that is present and was never sent is dirty at every moment.
            self.counts.dirty.add(set(&pages.dirty[word], changed));
            if appear {
                self.counts.present.add(set(&pages.present[word], mask));
            }
        }
        // With the fence of the sender between its clearing of DIRTIED and its look at the bits:
        // either it sees those that were set above, or its clearing is seen here.
        fence(Ordering::SeqCst);
        let word = self.flag(piece.region, DIRTIED);
        word & (UNSAVED | SAVING) != 0
    }

    pub(super) fn count_unsaved(&self) {
        // Release: a snapshot that begins with this count sees the blocks that it stands for.
        self.unsaved.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether writes that have ended are in blocks that no durable checkpoint has as present, so
    /// that a flush needs one. Otherwise it needs the local store's own flush alone.
    pub fn needs_checkpoint(&self) -> bool {
        self.unsaved.load(Ordering::Acquire) != self.saved.load(Ordering::Acquire)
    }
}
