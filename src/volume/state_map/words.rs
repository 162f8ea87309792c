//! The words that a state map is made of, and where they lie: in a live map, or in memory that the
//! model checker watches.

#[cfg(blockferry_loom)]
pub(super) use loom::{
    sync::Mutex,
    sync::atomic::{AtomicU64, Ordering, fence},
};
#[cfg(not(blockferry_loom))]
pub(super) use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering, fence},
};

use crate::volume::geometry::REGION_BLOCKS;

#[cfg(not(blockferry_loom))]
pub(super) use super::live_map::words::Words;
#[cfg(blockferry_loom)]
pub(super) use modelled::Words;

/// Words of 64 blocks in a page: in one of the four arrays of bits, those of one region.
pub(super) const PAGE_WORDS: usize = (REGION_BLOCKS / 64) as usize;

// A region's word: what is true of all its blocks alike, while it is not MIXED. All clear: absent.

/// All blocks are here.
pub(super) const PRESENT: u64 = 1;
/// All blocks are claimed by one discard.
pub(super) const CLAIMED: u64 = 1 << 1;
/// All blocks must still reach the origin.
pub(super) const DIRTY: u64 = 1 << 2;
/// All blocks are on their way to the origin.
pub(super) const SENDING: u64 = 1 << 3;
/// The bits say for each block what is true of it, and the four above are clear.
pub(super) const MIXED: u64 = 1 << 4;
/// All five: what a region is.
pub(super) const STATE: u64 = PRESENT | CLAIMED | DIRTY | SENDING | MIXED;

// And its flags.

/// All four pages of its place are allocated, not those of present and claimed alone.
pub(super) const WRITE_PAGES: u64 = 1 << 9;
/// That blocks of the region may change is on disk: its write intent. Only with it anything is
/// dirty.
pub(super) const INTENT: u64 = 1 << 10;
/// Somebody looks whether the intent can be withdrawn; until he knows no write begins.
pub(super) const WITHDRAWING: u64 = 1 << 11;
/// A dirty bit was set since the sender last looked.
pub(super) const DIRTIED: u64 = 1 << 12;
/// Blocks became present that no snapshot has.
pub(super) const UNSAVED: u64 = 1 << 13;
/// Blocks became present that are in a snapshot which is not durable yet.
pub(super) const SAVING: u64 = 1 << 14;

// And the place of its bits, in the upper half.

/// The number of the place, counted from 1; 0: none, the region is not mixed and not prepared.
pub(super) const PLACE: u64 = 0xffff_ffff << PLACE_SHIFT;
const PLACE_SHIFT: u32 = 32;

/// What a region has while it has bits.
pub(super) const BITS: u64 = PLACE | WRITE_PAGES;

/// The place of the bits of a region with this word.
pub(super) fn place_of(word: u64) -> Option<u32> {
    ((word >> PLACE_SHIFT) as u32).checked_sub(1)
}

/// The part of a region's word that says where its bits are. There are fewer than 2^32 places.
pub(super) fn at_place(place: u32) -> u64 {
    u64::from(place + 1) << PLACE_SHIFT
}

/// The bits of a place.
pub(super) struct Pages<'a> {
    /// The bytes are in the local store.
    pub(super) present: &'a [AtomicU64],
    /// Somebody is writing the bytes into the local store.
    pub(super) claimed: &'a [AtomicU64],
    /// The bytes must still reach the origin. Only to be touched with [`WRITE_PAGES`].
    pub(super) dirty: &'a [AtomicU64],
    /// The bytes are on their way to the origin. Only to be touched with [`WRITE_PAGES`].
    pub(super) sending: &'a [AtomicU64],
}

impl<'a> Pages<'a> {
    /// The four pages in a row of `4 * PAGE_WORDS` words.
    pub(super) fn in_row(words: &'a [AtomicU64]) -> Self {
        let (present, rest) = words.split_at(PAGE_WORDS);
        let (claimed, rest) = rest.split_at(PAGE_WORDS);
        let (dirty, sending) = rest.split_at(PAGE_WORDS);
        Self {
            present,
            claimed,
            dirty,
            sending,
        }
    }
}

/// Whether writes and discards may begin in a region with this word.
pub(super) fn has_intent(word: u64) -> bool {
    word & (INTENT | WITHDRAWING) == INTENT
}

/// Sets the bits and gives back how many were clear. What is set already costs a load alone.
pub(super) fn set(word: &AtomicU64, mask: u64) -> u64 {
    if word.load(Ordering::Acquire) & mask == mask {
        return 0;
    }
    let before = word.fetch_or(mask, Ordering::AcqRel);
    u64::from((mask & !before).count_ones())
}

/// Clears the bits and gives back how many were set.
pub(super) fn clear(word: &AtomicU64, mask: u64) -> u64 {
    let before = word.fetch_and(!mask, Ordering::AcqRel);
    u64::from((mask & before).count_ones())
}

#[cfg(blockferry_loom)]
mod modelled {
    use std::io;

    use super::super::live_map::LiveMap;
    use super::{AtomicU64, PAGE_WORDS, Pages};

    /// Words that the model checker watches. Those who build on a live map get them too, but are
    /// never run by it.
    pub(in super::super) struct Words {
        live: Option<LiveMap>,
        regions: Vec<AtomicU64>,
        flights: Vec<AtomicU64>,
        bits: Vec<AtomicU64>,
    }

    impl Words {
        pub(in super::super) fn new(regions: usize, slots: usize) -> Self {
            let words = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect();
            Self {
                live: None,
                regions: words(regions),
                flights: words(2 * slots),
                bits: words(4 * PAGE_WORDS * regions),
            }
        }

        pub(in super::super) fn over(live: LiveMap) -> Self {
            let layout = live.layout();
            Self {
                live: Some(live),
                ..Self::new(layout.regions as usize, layout.slots as usize)
            }
        }

        pub(in super::super) fn regions(&self) -> &[AtomicU64] {
            &self.regions
        }

        pub(in super::super) fn flights(&self) -> &[AtomicU64] {
            &self.flights
        }

        pub(in super::super) fn pages(&self, place: u32) -> Pages<'_> {
            Pages::in_row(&self.bits[4 * PAGE_WORDS * place as usize..][..4 * PAGE_WORDS])
        }

        pub(in super::super) fn allocate(&self, place: u32, pages: u64) -> io::Result<()> {
            self.live
                .as_ref()
                .map_or(Ok(()), |live| live.allocate_bits(place, pages))
        }

        pub(in super::super) fn complete(&self) -> io::Result<()> {
            self.live.as_ref().map_or(Ok(()), LiveMap::complete)
        }
    }
}
