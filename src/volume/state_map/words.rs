//! The words that a state map is made of, and where they lie: in a live map, or in memory that the
//! model checker watches.

#[cfg(blockferry_loom)]
pub(super) use loom::{
    sync::Mutex,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
};
#[cfg(not(blockferry_loom))]
pub(super) use std::sync::{
    Mutex,
    atomic::{AtomicU32, AtomicU64, Ordering, fence},
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
pub(super) const PRESENT: u32 = 1;
/// All blocks are claimed by one discard.
pub(super) const CLAIMED: u32 = 1 << 1;
/// All blocks must still reach the origin.
pub(super) const DIRTY: u32 = 1 << 2;
/// All blocks are on their way to the origin.
pub(super) const SENDING: u32 = 1 << 3;
/// The bits say for each block what is true of it, and the four above are clear. For good: a
/// region that is mixed stays so while the map is in use.
pub(super) const MIXED: u32 = 1 << 4;
/// All five: what a region is.
pub(super) const STATE: u32 = PRESENT | CLAIMED | DIRTY | SENDING | MIXED;

// And its flags.

/// The pages of present and claimed are allocated.
pub(super) const FILL_PAGES: u32 = 1 << 8;
/// All four pages are allocated.
pub(super) const WRITE_PAGES: u32 = 1 << 9;
/// That blocks of the region may change is on disk: its write intent. Only with it anything is
/// dirty.
pub(super) const INTENT: u32 = 1 << 10;
/// Somebody looks whether the intent can be withdrawn; until he knows no write begins.
pub(super) const WITHDRAWING: u32 = 1 << 11;
/// A dirty bit was set since the sender last looked.
pub(super) const DIRTIED: u32 = 1 << 12;
/// Blocks became present that no snapshot has.
pub(super) const UNSAVED: u32 = 1 << 13;
/// Blocks became present that are in a snapshot which is not durable yet.
pub(super) const SAVING: u32 = 1 << 14;

/// The bits of one region.
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
pub(super) fn has_intent(word: u32) -> bool {
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
    use super::{AtomicU32, AtomicU64, PAGE_WORDS, Pages};

    /// Words that the model checker watches. Those who build on a live map get them too, but are
    /// never run by it.
    pub(in super::super) struct Words {
        live: Option<LiveMap>,
        regions: Vec<AtomicU32>,
        flights: Vec<AtomicU64>,
        bits: Vec<AtomicU64>,
    }

    impl Words {
        pub(in super::super) fn new(regions: usize, slots: usize) -> Self {
            let words = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect();
            Self {
                live: None,
                regions: (0..regions).map(|_| AtomicU32::new(0)).collect(),
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

        pub(in super::super) fn regions(&self) -> &[AtomicU32] {
            &self.regions
        }

        pub(in super::super) fn flights(&self) -> &[AtomicU64] {
            &self.flights
        }

        pub(in super::super) fn pages(&self, region: usize) -> Pages<'_> {
            Pages::in_row(&self.bits[4 * PAGE_WORDS * region..][..4 * PAGE_WORDS])
        }

        pub(in super::super) fn allocate(&self, region: usize, pages: u64) -> io::Result<()> {
            self.live
                .as_ref()
                .map_or(Ok(()), |live| live.allocate_bits(region, pages))
        }

        pub(in super::super) fn complete(&self) -> io::Result<()> {
            self.live.as_ref().map_or(Ok(()), LiveMap::complete)
        }
    }
}
