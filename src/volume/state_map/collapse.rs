//! A mixed region whose blocks have become alike gives its bits up.
//!
//! All its blocks are present then, and present is for good. So a thread that found it mixed, and
//! looks at its bits only now, may find in their place those of another region: "present" is true,
//! whoever's bit it was, and "absent", like "claimed", is looked at once more on the asynchronous
//! side. Whoever *changes* bits must not be there at all:
//!
//! | who | is kept out by |
//! |---|---|
//! | writes of the queues, and discards | the table, as when an intent is withdrawn |
//! | fills | their claims, which they take in their turn |
//! | the sender, snapshots, whoever prepares a region | the turn |
//! | a send that was not answered | its sending bits: such blocks are not alike |

use super::StateMap;
use super::places::PLACES_AT_EASE;
use super::words::{
    BITS, DIRTIED, DIRTY, MIXED, Ordering, PRESENT, STATE, WITHDRAWING, WRITE_PAGES, fence,
};
use crate::volume::geometry::{BlockRange, RegionIndex};

impl StateMap {
    /// Has a region give its bits up, if all its blocks are present, all clean or all dirty, and
    /// nobody is at work on it. A write has to [prepare](Self::prepare_write) it again.
    pub fn collapse(&self, region: RegionIndex) {
        // Of several that have just ended their part of the region, one sees all of them.
        fence(Ordering::SeqCst);
        // A look that disturbs nobody: most are not alike.
        let word = self.region(region).load(Ordering::Acquire);
        if word & MIXED == 0 || self.alike(region, word).is_none() {
            return;
        }
        let mut places = self.turn();
        let word = self.region(region).load(Ordering::Acquire);
        // Where writes have ended for good that has to stay so.
        if word & MIXED == 0 || word & WITHDRAWING != 0 {
            return;
        }
        self.flag(region, WITHDRAWING);
        // With the fence in `publish`: a write that did not see the flag is seen in the table, or,
        // if it has ended, in the bits.
        fence(Ordering::SeqCst);
        let state = match self.is_idle(region) {
            true => self.alike(region, word),
            false => None,
        };
        let turned = |word: u64| match state {
            Some(state) => word & !(STATE | BITS | WITHDRAWING) | state,
            None => word & !WITHDRAWING,
        };
        let _always_done = self.exchange(region, |word| Some(turned(word)));
        if state.is_some() {
            places.give_up(word);
        }
    }

    /// The same for all regions that the blocks are in.
    pub fn collapse_all(&self, blocks: BlockRange) {
        for region in blocks.regions() {
            self.collapse(region);
        }
    }

    /// The same for the regions of what has just been sent, where so many have bits that it is worth
    /// it, although the next write to each has to take them again.
    pub fn collapse_if_crowded(&self, sent: &[BlockRange]) {
        let crowded = self.turn().taken() > PLACES_AT_EASE;
        for blocks in sent.iter().filter(|_| crowded) {
            self.collapse_all(*blocks);
        }
    }

    /// The same for all regions in which nothing was written since the sender last looked.
    pub fn collapse_quiet(&self) {
        for region in self.regions() {
            if self.region(region).load(Ordering::Acquire) & (MIXED | DIRTIED) == MIXED {
                self.collapse(region);
            }
        }
    }

    /// What all blocks of a mixed region with this word are, in the bits of a word, if they are alike
    /// and nobody has a claim on one. Absent ones do not count as such: they may not stay so.
    fn alike(&self, region: RegionIndex, word: u64) -> Option<u64> {
        let pages = self.pages(word);
        let whole = self.whole(region);
        let full = |page: &[super::words::AtomicU64]| {
            let mut words = whole.words();
            words.all(|(at, mask)| page[at].load(Ordering::Acquire) & mask == mask)
        };
        let empty = |page: &[super::words::AtomicU64]| {
            page.iter().all(|word| word.load(Ordering::Acquire) == 0)
        };
        // Acquire of the claims: who released the last one has done with the bits.
        if !full(pages.present) || !empty(pages.claimed) {
            return None;
        }
        if word & WRITE_PAGES == 0 || empty(pages.dirty) && empty(pages.sending) {
            return Some(PRESENT);
        }
        (full(pages.dirty) && empty(pages.sending)).then_some(PRESENT | DIRTY)
    }
}
