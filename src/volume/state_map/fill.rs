//! Fetched blocks on their way into the local store.

use super::StateMap;
use super::span::{pieces, push_runs};
use super::words::{CLAIMED, MIXED, Ordering, PLACE, PRESENT, STATE, UNSAVED, clear, fence, set};
use crate::volume::geometry::{BlockIndex, BlockRange};

/// Absent blocks that are claimed for a fill. It has to be given back with
/// [`finish_fill`](StateMap::finish_fill): one that is dropped leaves its blocks claimed until the
/// map is opened again, as whoever held it may still be writing to the store.
#[derive(Debug)]
#[must_use]
pub struct FillClaim {
    asked: BlockRange,
    runs: Vec<BlockRange>,
}

impl FillClaim {
    /// The blocks to fill, in order: those of the range that were absent and not claimed.
    pub fn runs(&self) -> &[BlockRange] {
        &self.runs
    }

    /// The range that was asked for. After the end of the fill all who wait for a block of it have
    /// to be told, as claims outside of [`runs`](Self::runs) may have been held for a moment.
    pub fn asked(&self) -> BlockRange {
        self.asked
    }
}

impl StateMap {
    /// Claims what is absent and not claimed by others. The bytes have arrived already, so the
    /// claim is held for a write into the local store alone. All regions of the range were
    /// [prepared](Self::prepare_fill); one that is not, as it was present as a whole or about to be, is
    /// left out.
    pub fn claim_fill(&self, blocks: BlockRange) -> FillClaim {
        let mut runs = Vec::new();
        for piece in pieces(blocks) {
            // The turn, so that the region keeps its bits until the claims are in them.
            let _turn = self.turn();
            let word = self.region(piece.region).load(Ordering::Acquire);
            if word & (PRESENT | CLAIMED) != 0 {
                continue;
            }
            if word & PLACE == 0 || !(word & MIXED != 0 || self.open_absent(piece.region)) {
                continue;
            }
            let pages = self.pages(word);
            let start = piece.region.first_block().0;
            for (at, mask) in piece.words() {
                let absent = mask & !pages.present[at].load(Ordering::Acquire);
                if absent & !pages.claimed[at].load(Ordering::Acquire) == 0 {
                    continue;
                }
                let before = pages.claimed[at].fetch_or(absent, Ordering::AcqRel);
                let ours = absent & !before;
                // Once more, now that nobody else can make them present: since the first look a
                // write may have, and its bytes must stay (L6). Its release of the claim was
                // acquired above, so what it made present is seen.
                let written = ours & pages.present[at].load(Ordering::Acquire);
                if written != 0 {
                    clear(&pages.claimed[at], written);
                }
                push_runs(
                    &mut runs,
                    BlockIndex(start + at as u64 * 64),
                    ours & !written,
                );
            }
        }
        FillClaim {
            asked: blocks,
            runs,
        }
    }

    /// Ends a fill; `ok` says whether all bytes of its runs are in the store.
    pub fn finish_fill(&self, claim: FillClaim, ok: bool) {
        // Between claim and flag: see `snapshot`.
        fence(Ordering::SeqCst);
        for piece in claim.runs.iter().copied().flat_map(pieces) {
            // It has them as long as there are claims.
            let pages = self.bits(piece.region);
            if ok {
                // Before present, as in `land`.
                self.flag(piece.region, UNSAVED);
            }
            for (at, mask) in piece.words() {
                if ok {
                    self.counts.present.add(set(&pages.present[at], mask));
                }
                clear(&pages.claimed[at], mask);
            }
        }
    }

    /// The first run of absent blocks between `from` and `to`, within one region. Blocks that are
    /// claimed count as absent.
    pub fn next_absent(&self, from: BlockIndex, to: BlockIndex) -> Option<BlockRange> {
        let range = BlockRange {
            first: from,
            end: to,
        };
        pieces(range).find_map(|piece| {
            let word = self.region(piece.region).load(Ordering::Acquire);
            if word & (STATE & !CLAIMED) == 0 {
                return Some(piece.blocks());
            }
            if word & MIXED == 0 {
                return None;
            }
            let present = self.pages(word).present;
            let absent = |at: usize| !present[at].load(Ordering::Acquire);
            Some(piece.first_run(u64::MAX, absent)?.blocks())
        })
    }
}
