//! A live map after the process that used it died: nobody else looks at it, and each step may be
//! the last one, as this process may die too.

use super::StateMap;
use super::span::{Piece, pieces};
use super::words::{
    BITS, CLAIMED, DIRTIED, DIRTY, INTENT, MIXED, Ordering, PRESENT, SAVING, SENDING, STATE,
    UNSAVED, WITHDRAWING, WRITE_PAGES, clear, set,
};
use crate::volume::geometry::{BlockRange, RegionIndex};

impl StateMap {
    /// Brings a map in order that a dead process left (L8, L11): what was dirty, on its way, or
    /// being written is dirty, as far as it is present; nothing is claimed; what was not saved
    /// still is not. Doing it again changes nothing.
    pub fn recover(&mut self) {
        let interrupted: Vec<BlockRange> = self
            .under_way()
            .map(|flight| flight.intersection(self.blocks()))
            .collect();
        for region in self.regions() {
            self.recover_region(region, &interrupted);
        }
        for slot in self.words.flights() {
            slot.store(0, Ordering::Relaxed);
        }
        self.recount();
        let unsaved = self.unsaved_regions().next().is_some();
        self.saved.store(0, Ordering::Relaxed);
        self.unsaved.store(u64::from(unsaved), Ordering::Relaxed);
    }

    fn recover_region(&self, region: RegionIndex, interrupted: &[BlockRange]) {
        let word = self.region(region).load(Ordering::Relaxed);
        // Without an intent those that are in the table were refused, and wrote nothing.
        let interrupted = if word & INTENT != 0 { interrupted } else { &[] };
        let state = if word & MIXED != 0 {
            self.recover_bits(region, word, interrupted);
            MIXED | if word & WRITE_PAGES != 0 { DIRTIED } else { 0 }
        } else if word & PRESENT == 0 {
            0
        } else {
            let blocks = self.region_blocks(region);
            let written = interrupted.iter().any(|flight| flight.overlaps(blocks));
            let unsent = written || word & (DIRTY | SENDING | CLAIMED) != 0;
            PRESENT | if unsent { DIRTY } else { 0 }
        };
        let unsaved = if word & SAVING != 0 { UNSAVED } else { 0 };
        let mut kept = word & !(STATE | SAVING | WITHDRAWING) | state | unsaved;
        if state & MIXED == 0 {
            // It may have been prepared.
            kept &= !BITS;
            self.turn().give_up(word);
        }
        self.region(region).store(kept, Ordering::Relaxed);
    }

    fn recover_bits(&self, region: RegionIndex, word: u64, interrupted: &[BlockRange]) {
        let pages = self.pages(word);
        for claimed in pages.claimed {
            claimed.store(0, Ordering::Relaxed);
        }
        if word & WRITE_PAGES == 0 {
            return;
        }
        let blocks = self.region_blocks(region);
        for flight in interrupted {
            for piece in pieces(flight.intersection(blocks)) {
                self.dirty_present(piece);
            }
        }
        for (at, mask) in self.whole(region).words() {
            let present = pages.present[at].load(Ordering::Relaxed);
            let sending = pages.sending[at].load(Ordering::Relaxed);
            set(&pages.dirty[at], sending & mask & present);
            clear(&pages.dirty[at], !present);
            clear(&pages.sending[at], u64::MAX);
        }
    }

    /// Makes absent what the origin has: it is another origin than the blocks came from (L13).
    pub fn drop_clean(&mut self) {
        for region in self.regions() {
            if self.drop_clean_in(self.whole(region)) {
                self.flag(region, UNSAVED);
                self.count_unsaved();
            }
        }
        self.recount();
    }

    /// True if there was something to drop.
    fn drop_clean_in(&self, piece: Piece) -> bool {
        let word = self.region(piece.region).load(Ordering::Relaxed);
        if word & MIXED == 0 {
            if word & (PRESENT | DIRTY | SENDING) != PRESENT {
                return false;
            }
            self.region(piece.region)
                .store(word & !STATE, Ordering::Relaxed);
            return true;
        }
        let pages = self.pages(word);
        let mut dropped = 0;
        for (at, mask) in piece.words() {
            let mut clean = mask;
            if word & WRITE_PAGES != 0 {
                let dirty = pages.dirty[at].load(Ordering::Relaxed);
                clean &= !(dirty | pages.sending[at].load(Ordering::Relaxed));
            }
            dropped += clear(&pages.present[at], clean);
        }
        dropped != 0
    }
}
