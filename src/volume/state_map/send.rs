//! Dirty blocks on their way to the origin.
//!
//! All calls here hold the turn, so that a block goes from dirty to sending and back in one step
//! for each other; writes of the queues go on meanwhile.

use super::span::{Piece, pieces};
use super::words::{DIRTIED, DIRTY, MIXED, Ordering, SENDING, WRITE_PAGES, clear, fence, set};
use super::{StateMap, all_present};
use crate::volume::geometry::{BlockIndex, BlockRange};

impl StateMap {
    /// The next run of blocks at or after `from` that must reach the origin, and are not on their
    /// way there already: from now on they are. Read their bytes after this, not before.
    ///
    /// A run lies in one region and has at most `max_blocks`, but for a region that is dirty as a
    /// whole and has no bits: that one is handed out whole, even where `from` lies within it.
    ///
    /// To go over the volume ask again from the end of what was given. `None` then says that every
    /// write that had ended before the first call was given out, or is given out again when the
    /// send that has its blocks is over.
    pub fn take_dirty(&self, from: BlockIndex, max_blocks: u64) -> Option<BlockRange> {
        let rest = BlockRange {
            first: from,
            end: self.blocks().end,
        };
        pieces(rest).find_map(|piece| self.take_piece(piece, max_blocks.max(1)))
    }

    fn take_piece(&self, piece: Piece, max_blocks: u64) -> Option<BlockRange> {
        if !may_have_dirty(self.region(piece.region).load(Ordering::Acquire)) {
            return None;
        }
        let _turn = self.turn();
        // Once more, now that it does not become mixed between look and exchange.
        if self.region(piece.region).load(Ordering::Acquire) & MIXED != 0 {
            return self.take_run(piece, max_blocks);
        }
        let take = |word: u64| {
            let takes = all_present(word) && word & (DIRTY | SENDING) == DIRTY;
            takes.then_some(word & !DIRTY | SENDING)
        };
        self.exchange(piece.region, take).ok()?;
        let whole = self.region_blocks(piece.region);
        self.counts.sending.add(whole.len());
        self.counts.dirty.sub(whole.len());
        Some(whole)
    }

    /// The turn is held, and the region is mixed and has all its pages.
    fn take_run(&self, piece: Piece, max_blocks: u64) -> Option<BlockRange> {
        if piece.first == 0 {
            self.region(piece.region)
                .fetch_and(!DIRTIED, Ordering::AcqRel);
            // With the second fence of a write: see `land`.
            fence(Ordering::SeqCst);
        }
        let pages = self.bits(piece.region);
        let mut again = 0;
        let run = piece.first_run(max_blocks, |at| {
            // Dirty first: what is present was dirty before.
            let dirty = pages.dirty[at].load(Ordering::Acquire);
            let unsent = dirty & pages.present[at].load(Ordering::Acquire);
            let sending = pages.sending[at].load(Ordering::Acquire);
            again |= unsent & sending;
            // L8: not again before its send was answered.
            unsent & !sending
        });
        if run.is_some() || again != 0 {
            // There may be more.
            self.flag(piece.region, DIRTIED);
        }
        let run = run?;
        for (at, mask) in run.words() {
            // Sending before dirty is cleared, so that a crash finds one of them.
            self.counts.sending.add(set(&pages.sending[at], mask));
            self.counts.dirty.sub(clear(&pages.dirty[at], mask));
        }
        // With the first fence of `end_write`: whose dirty was cleared above, his bytes are read,
        // and whoever's bytes are not read sets dirty again (L8).
        fence(Ordering::SeqCst);
        Some(run.blocks())
    }

    /// A send of blocks that were given out by [`take_dirty`](Self::take_dirty) failed, or was
    /// lost before a flush of the origin: they must be sent again.
    pub fn send_failed(&self, blocks: BlockRange) {
        for piece in pieces(blocks) {
            let _turn = self.turn();
            if self.region(piece.region).load(Ordering::Acquire) & MIXED != 0 {
                self.fail_bits(piece);
            } else if self.covers_region(piece) {
                let fail = |word: u64| (word & SENDING != 0).then_some(word & !SENDING | DIRTY);
                if let Ok(before) = self.exchange(piece.region, fail) {
                    self.counts.sending.sub(piece.len());
                    self.counts
                        .dirty
                        .add(if before & DIRTY == 0 { piece.len() } else { 0 });
                }
            }
        }
    }

    fn fail_bits(&self, piece: Piece) {
        if self.region(piece.region).load(Ordering::Acquire) & WRITE_PAGES == 0 {
            return;
        }
        let pages = self.bits(piece.region);
        for (at, mask) in piece.words() {
            let failed = mask & pages.sending[at].load(Ordering::Acquire);
            self.counts.dirty.add(set(&pages.dirty[at], failed));
            self.counts.sending.sub(clear(&pages.sending[at], failed));
        }
        self.flag(piece.region, DIRTIED);
    }

    /// A flush of the origin covered the send of these blocks: as far as they were not written
    /// since they were given out they are clean. The ranges are those that
    /// [`take_dirty`](Self::take_dirty) gave out: a part of a region without bits is passed over.
    pub fn flushed(&self, blocks: BlockRange) {
        for piece in pieces(blocks) {
            let _turn = self.turn();
            let word = self.region(piece.region).load(Ordering::Acquire);
            if word & (MIXED | WRITE_PAGES) == MIXED | WRITE_PAGES {
                let sending = self.bits(piece.region).sending;
                for (at, mask) in piece.words() {
                    self.counts.sending.sub(clear(&sending[at], mask));
                }
            } else if self.covers_region(piece) {
                let clean = |word: u64| (word & SENDING != 0).then_some(word & !SENDING);
                if self.exchange(piece.region, clean).is_ok() {
                    self.counts.sending.sub(piece.len());
                }
            }
        }
    }
}

/// Whether it is worth a look under the lock.
fn may_have_dirty(word: u64) -> bool {
    const LANDED: u64 = MIXED | DIRTIED | WRITE_PAGES;
    word & (MIXED | DIRTY) == DIRTY || word & LANDED == LANDED
}
