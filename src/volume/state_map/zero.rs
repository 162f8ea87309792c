//! Discards and writes of zeros: whole blocks, whole regions where they can, of any length.

use std::sync::PoisonError;

use super::flights::FlightSlot;
use super::places::Places;
use super::span::{Piece, pieces};
use super::words::{
    BITS, CLAIMED, DIRTIED, DIRTY, MIXED, Ordering, PLACE, PRESENT, SAVING, UNSAVED, WRITE_PAGES,
    fence, has_intent,
};
use super::{StateMap, all_present};
use crate::volume::geometry::{BlockRange, RegionIndex};

/// How a discard or a write of zeros may go on.
#[derive(Debug)]
#[must_use]
pub enum ZeroStart {
    /// All blocks are claimed: make the store read as zeros there, then `finish_zero`.
    Claimed(ZeroClaim),
    /// Another one has claimed some of them: nothing was begun, try again when a claim is
    /// released. Claims may have been held for a moment, so those who wait for blocks of the range
    /// have to be told.
    Busy,
    /// The region needs [`set_write_ready`](StateMap::set_write_ready) first, or
    /// [`prepare_zero`](StateMap::prepare_zero): nothing was begun. Claims may have been held for a
    /// moment, as with `Busy`.
    NotReady(RegionIndex),
    /// As many as there may be at once ([`ZERO_SLOTS`](super::ZERO_SLOTS)) are under way.
    Full,
}

/// Blocks that are claimed for a discard. It has to be given back with
/// [`finish_zero`](StateMap::finish_zero), as a [`FillClaim`](super::FillClaim) has.
#[derive(Debug)]
#[must_use]
pub struct ZeroClaim {
    blocks: BlockRange,
    slot: FlightSlot,
}

impl ZeroClaim {
    /// The blocks to be zeroed. After the end all who wait for one of them have to be told.
    pub fn blocks(&self) -> BlockRange {
        self.blocks
    }
}

impl StateMap {
    /// Claims whole blocks for a discard, or for writing zeros: a region that is covered as a whole
    /// and not mixed by its word, all others by their bits. What was present of the range is dirty
    /// afterwards.
    pub fn claim_zero(&self, blocks: BlockRange) -> ZeroStart {
        let Some(slot) = self.free_zero_slots().pop() else {
            return ZeroStart::Full;
        };
        self.publish(slot, blocks);
        if let Err(refused) = self.claim_pieces(blocks) {
            self.retire(slot);
            self.free_zero_slots().push(slot);
            return refused;
        }
        // Only now that nothing can refuse it any more: it makes more dirty than it claims alone.
        for piece in pieces(blocks) {
            self.dirty_before_zeroing(piece);
        }
        ZeroStart::Claimed(ZeroClaim { blocks, slot })
    }

    fn claim_pieces(&self, blocks: BlockRange) -> Result<(), ZeroStart> {
        for piece in pieces(blocks) {
            if let Err(refused) = self.claim_piece(piece) {
                let claimed = BlockRange {
                    end: piece.blocks().first,
                    ..blocks
                };
                for piece in pieces(claimed) {
                    self.release_piece(piece);
                }
                return Err(refused);
            }
        }
        Ok(())
    }

    fn claim_piece(&self, piece: Piece) -> Result<(), ZeroStart> {
        let _turn = self.turn();
        let whole = self.covers_region(piece);
        let claim = |word: u64| {
            let refused = word & (CLAIMED | MIXED) != 0 || !has_intent(word) || !whole;
            (!refused).then_some(word | CLAIMED)
        };
        let Err(word) = self.exchange(piece.region, claim) else {
            return Ok(());
        };
        if word & CLAIMED != 0 {
            return Err(ZeroStart::Busy);
        }
        if word & WRITE_PAGES == 0 || !has_intent(word) || all_present(word) {
            return Err(ZeroStart::NotReady(piece.region));
        }
        // It is absent or mixed, and only a discard could claim it as a whole: those take turns.
        if !self.open_absent(piece.region) || !self.claim_bits(piece.blocks()) {
            return Err(ZeroStart::Busy);
        }
        Ok(())
    }

    /// Takes back a claim that came to nothing.
    fn release_piece(&self, piece: Piece) {
        let release = |word: u64| (word & MIXED == 0).then_some(word & !CLAIMED);
        if self.exchange(piece.region, release).is_err() {
            self.release_bits(piece.blocks());
        }
    }

    /// After a crash from now on, what was present is found dirty.
    fn dirty_before_zeroing(&self, piece: Piece) {
        let _turn = self.turn();
        let dirty = |word: u64| (word & MIXED == 0 && all_present(word)).then_some(word | DIRTY);
        match self.exchange(piece.region, dirty) {
            Ok(before) if before & DIRTY == 0 => self.counts.dirty.add(piece.len()),
            Err(word) if word & MIXED != 0 => self.dirty_present(piece),
            Ok(_) | Err(_) => {}
        }
    }

    /// Ends a discard; `ok` says whether all its blocks read as zeros from the store. Otherwise
    /// what was absent stays absent.
    pub fn finish_zero(&self, claim: ZeroClaim, ok: bool) {
        // As in `end_write`, and between claims and UNSAVED as in `finish_fill`.
        fence(Ordering::SeqCst);
        let mut unsaved = false;
        for piece in pieces(claim.blocks) {
            let mut places = self.turn();
            if self.region(piece.region).load(Ordering::Acquire) & MIXED != 0 {
                unsaved |= self.land(piece, ok);
            } else {
                unsaved |= self.land_region(&mut places, piece, ok);
            }
        }
        if unsaved {
            self.count_unsaved();
        }
        for piece in pieces(claim.blocks) {
            self.release_piece(piece);
        }
        self.retire(claim.slot);
        self.free_zero_slots().push(claim.slot);
    }

    /// As [`land`](Self::land), for a region that is claimed by its word.
    fn land_region(&self, places: &mut Places, piece: Piece, ok: bool) -> bool {
        let landed = |word: u64| match (all_present(word), ok) {
            (true, _) => word | DIRTY | DIRTIED,
            // It may have been prepared when it was absent.
            (false, true) => word & !BITS | PRESENT | DIRTY | DIRTIED | UNSAVED,
            (false, false) => word,
        };
        let (Ok(before) | Err(before)) = self.exchange(piece.region, |word| Some(landed(word)));
        let after = landed(before);
        if after & PLACE == 0 {
            places.give_up(before);
        }
        let appeared = |bit| {
            if after & !before & bit != 0 {
                piece.len()
            } else {
                0
            }
        };
        self.counts.present.add(appeared(PRESENT));
        self.counts.dirty.add(appeared(DIRTY));
        after & (UNSAVED | SAVING) != 0
    }

    #[cfg(not(blockferry_loom))]
    fn free_zero_slots(&self) -> std::sync::MutexGuard<'_, Vec<FlightSlot>> {
        self.zero_slots
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(blockferry_loom)]
    fn free_zero_slots(&self) -> loom::sync::MutexGuard<'_, Vec<FlightSlot>> {
        self.zero_slots
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
